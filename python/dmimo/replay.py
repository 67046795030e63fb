# SPDX-License-Identifier: GPL-3.0-or-later
"""Recomputes a run from its recording: the same roles and collectors, fed with the samples that the nodes received.

What a node sends does not go anywhere, but roles are asked for it as in the run, since what they make of an answer
depends on what they sent. Every product is compared with the one of the run. Needs no GNU Radio.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from . import calibration_files, reports, testbed
from . import recording_format as form
from .assembly import Assembly, Protocol
from .direct import Participants
from .protocols.slots import Grant
from .recorded import Attempt, Recording, differences, load
from .records import RecordError


class Replay:
    """A recording that is played through roles and collectors.

    Parameters
    ----------
    recording : Recording
    assembly : Assembly
        As made by `assembly_of` or `load_testbed`.

    Attributes
    ----------
    collectors : dict of name to Collector
    error : str or None
        Why the run that was recorded, or its replay, was not a success.
    compared : int
        Products that the recorded run has the digest of.
    different : list of str
        Phases whose product is not that of the run.
    """

    def __init__(self, recording: Recording, assembly: Assembly):
        self._recording, self._schedule = recording, assembly.schedule
        self.collectors = assembly.collectors()
        self._members = Participants(assembly.schedule, {name: assembly.roles(name) for name in recording.nodes},
                                     list(self.collectors.values()))
        self.error: str | None = None
        self.compared, self.different = 0, []

    def run(self, progress: Callable[[int, int], None] | None = None) -> str | None:
        """Play all phases that the recording holds; returns the error, None where the run succeeded."""
        self.error = self._run(progress) or self._recording.error
        return self.error

    def _run(self, progress: Callable[[int, int], None] | None) -> str | None:
        phases = self._recording.phases
        for index, phase in enumerate(phases):
            if progress is not None:
                progress(index, len(phases))
            counted = []
            for grant, found in self._recording.attempts(index):
                if error := self._play(grant, found):
                    return error
                if any(attempt.counted for attempt in found.values()):
                    counted.append(grant)
            product = self._members.conclude(phase.name, sorted(counted))
            if phase.product_sha256 is not None:
                self.compared += 1
                if form.digest(product.values) != phase.product_sha256:
                    self.different.append(phase.name)
            if not product.trusted:
                return f"phase {product.phase}: not trusted: " + "; ".join(product.reasons)
            self._members.update(product)
        return None

    def _play(self, grant: Grant, found: dict[str, Attempt]) -> str | None:
        """Give one slot to all nodes; returns what does not agree with the recording."""
        slot, members = self._schedule.slots[grant.slot], self._members
        for name in self._schedule.nodes:
            members.transmit(name, grant)  # roles and predistorters count on being asked
            beam, attempt = members.acting(name, slot).beam(slot), found.get(name)
            if attempt is not None and attempt.beam != beam:
                return (f"slot {slot.index} ({slot.purpose}): node {name} received with beam {attempt.beam}, the "
                        f"replay has chosen {beam}: what it computes differs from the run")
        for name, attempt in found.items():
            if attempt.status == form.OK:
                members.receive(name, grant, self._recording.nodes[name].samples(attempt))
        return None


def assembly_of(recording: Recording) -> Assembly:
    """The assembly of the run that was recorded."""
    content = recording.content
    assembly = Assembly(recording.testbed, content["dmimo:verify"], content["dmimo:protocol"])
    _check(recording, assembly)
    return assembly


def load_testbed(path: str | Path, seed: int | None = None, verify: bool = True,
                 protocol: Protocol | None = None) -> tuple[Recording, Assembly]:
    """Recording and assembly of a testbed file with ``frontend: replay``.

    The front end is that of the run, and so is the seed unless one is given; what only estimators are told may differ.

    Raises
    ------
    RecordError
        If the recording cannot be opened, or is of another testbed: every key that differs is named.
    """
    bed = testbed.load(path)
    recording = load(Path(path).parent / bed.recording)
    recorded = recording.testbed
    bed = replace(bed, frontend=recorded.frontend, recording=None, seed=recorded.seed if seed is None else seed)
    _refuse(recording, differences(recorded, bed))
    assembly = Assembly(bed, verify, protocol)
    _check(recording, assembly)
    return recording, assembly


def _check(recording: Recording, assembly: Assembly) -> None:
    """Raise RecordError unless the recording is of the assembly's schedule."""
    asked, recorded = assembly.protocol, recording.content["dmimo:protocol"]
    if asked != recorded:
        _refuse(recording, [f"the recording is of protocol {recorded}, asked for is {asked}"])
    asked, recorded = assembly.measures, recording.content["dmimo:verify"]
    if asked != recorded:
        _refuse(recording, [f"the recording is of a run {'with' if recorded else 'without'} verification"])
    if assembly.schedule.hash != recording.content["dmimo:schedule_sha256"]:
        _refuse(recording, [f"version {recording.content['dmimo:version']} made another schedule of this testbed"])


def _refuse(recording: Recording, reasons: Sequence[str]) -> None:
    if reasons:
        raise RecordError(f"{recording.directory}: does not fit: {'; '.join(reasons)}")


def run(recording: Recording, assembly: Assembly, *, calibration_file: str = "",
        progress: Callable[[int, int], None] | None = None) -> tuple[Replay, reports.Outcome]:
    """Replay a recording.

    Parameters
    ----------
    recording : Recording
    assembly : Assembly
    calibration_file : str
        Calibration file to write, as in a run; empty for none.
    progress : callable(phases done, all phases), optional

    Returns
    -------
    Replay, Outcome
        The report is that of the run, byte for byte, where all products are. The truth of a simulated run follows from
        its testbed; what was measured with values of the run that the replay finds otherwise is among its doubts.
    """
    player = Replay(recording, assembly)
    player.run(progress)
    if calibration_file:
        calibration_files.write(assembly, player.collectors, calibration_file, recording.epoch)
    ended = reports.Run(assembly, None if assembly.uses_radios else assembly.network(), player.collectors, player.error,
                        recording.releases, recording.end_sample, recording.first_sample)
    report = reports.report(ended)
    if player.different:
        doubt = (f"{len(player.different)} of {player.compared} products are not those of the recorded run, first that "
                 f"of phase {player.different[0]}: what was sent after it was made with the run's")
        report = {**report, "doubts": [*report.get("doubts", ()), doubt]}
    return player, reports.Outcome(player.error, report, ended.estimate)
