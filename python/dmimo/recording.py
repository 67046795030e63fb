# SPDX-License-Identifier: GPL-3.0-or-later
"""Records what the nodes of a run receive, while it goes on, as a SigMF collection.

Samples and journal are written to the operating system at once, so that killing the process loses nothing of them; the
SigMF metadata are made of the journal when the run has ended. Until then the collection says that it is not complete,
and, brought up to date about every second, how far the run has come. `recorded` opens all of that.
"""

import fcntl
import hashlib
import os
import threading
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__, testbed
from . import recording_format as form
from .assembly import Assembly
from .protocols.slots import Grant, Product, Schedule
from .records import RecordError, write_bytes

BEAT_S = 1.0


class NodeRecorder:
    """Recorder of one node; its role calls it, always from the same thread.

    Parameters
    ----------
    directory : Path
    head : mapping
        Global object of the metadata.
    schedule : Schedule
    """

    def __init__(self, directory: Path, head: Mapping[str, Any], schedule: Schedule):
        self._directory, self._head, self.node = directory, head, head["dmimo:node"]
        self._slots = schedule.slots
        self._phases = {index: phase.name for phase in schedule.phases for index in phase.slots}
        self._hash = hashlib.sha512()
        self._data: int | None = None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
        self._journal = os.open(form.journal_path(directory, self.node), flags, 0o666)
        fcntl.flock(self._journal, fcntl.LOCK_EX)  # says that somebody records
        self.slots_done = self.phases_done = 0

    def received(self, grants: Sequence[Grant], beams: Sequence[int], samples: np.ndarray | None,
                 status: str = form.OK) -> None:
        """Record attempts that are over.

        Parameters
        ----------
        grants : sequence of Grant
            Of one phase.
        beams : sequence of int
            Beam that the node received with, by attempt.
        samples : complex64 ndarray (attempts, ports, samples), optional
            As they came from the air, without any correction; None where `status` is not "ok".
        status : str
            "ok", or what went wrong.
        """
        count = 0
        if samples is not None:
            count = samples.shape[-1]
            self._write_samples(np.ascontiguousarray(samples.swapaxes(-1, -2), form.DATA_TYPE))
        attempts = [[grant.slot, grant.attempt, grant.start, int(beam), self._slots[grant.slot].purpose]
                    for grant, beam in zip(grants, beams, strict=True)]
        self._note(attempts=attempts, phase=self._phases[grants[0].slot], status=status, samples=count)

    def phase_done(self, phase: str, grants: Iterable[Grant]) -> None:
        """Note that a phase has ended, and which attempts count."""
        attempts = [[grant.slot, grant.attempt] for grant in grants]
        self._note(done=phase, attempts=attempts)
        self.slots_done += len(attempts)
        self.phases_done += 1

    def product(self, product: Product) -> None:
        """Note what the phase that has ended produced."""
        self._note(product=product.phase, sha256=form.digest(product.values))

    def close(self, sample_zero: datetime | None) -> str:
        """Write the metadata; their SHA-512. The journal is left for the case that the collection is not written."""
        if self._data is not None:
            os.fsync(self._data)
            os.close(self._data)
        os.close(self._journal)
        journal = form.journal_path(self._directory, self.node).read_bytes()
        sha512 = None if self._data is None else self._hash.hexdigest()
        known = {} if sample_zero is None else {"dmimo:sample_zero": form.iso(sample_zero)}
        content = form.metadata({**self._head, **known}, form.entries(journal, np.iinfo(np.int64).max), sha512)
        return form.write(form.meta_path(self._directory, self.node), content)

    def _write_samples(self, samples: np.ndarray) -> None:
        if self._data is None:  # an empty data file cannot be opened as SigMF
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._data = os.open(form.data_path(self._directory, self.node), flags, 0o666)
        _write(self._data, memoryview(samples).cast("B"))
        self._hash.update(samples)

    def _note(self, **entry: object) -> None:
        _write(self._journal, memoryview(form.line(entry)))


class Recorder:
    """Recorder of a run.

    Parameters
    ----------
    directory : str or Path
        Made where it is not there; must not hold a recording.
    assembly : Assembly
    duration_s : float
        Duration that a synchronisation was asked for.
    testbed_file : str or Path, optional
        Copied as ``testbed.yml``; the configuration, with every default, is in the collection anyway.

    Attributes
    ----------
    sample_zero : datetime or None
        Date and time of the run's sample 0, to be set before `close` where the clock of the radios knows them.
    nodes : dict of node to NodeRecorder

    Raises
    ------
    RecordError
        If the directory holds a recording, or cannot be written to.
    """

    def __init__(self, directory: str | Path, assembly: Assembly, *, duration_s: float = 0.0,
                 testbed_file: str | Path | None = None):
        self.directory = Path(directory)
        self.sample_zero: datetime | None = None
        bed, schedule = assembly.testbed, assembly.schedule
        self._content: dict[str, Any] = {
            "core:version": form.SIGMF_VERSION, "core:extensions": form.EXTENSIONS,
            "core:description": bed.name or "a run of gr-dmimo", "dmimo:version": __version__,
            "dmimo:configuration": testbed.to_dict(bed), "dmimo:protocol": assembly.protocol,
            "dmimo:verify": assembly.verifies or assembly.serves_many, "dmimo:duration_s": duration_s,
            "dmimo:schedule_sha256": schedule.hash, "dmimo:complete": False, "dmimo:error": None, "dmimo:files": [],
        }  # fmt: skip
        try:
            self._create(bed, schedule, testbed_file)
        except OSError as error:
            raise RecordError(f"{self.directory}: cannot be recorded to: {error.strerror}") from None
        self._closed = threading.Event()
        self._beat = threading.Thread(target=self._keep_up, name="recorder", daemon=True)
        self._beat.start()

    def _create(self, bed: testbed.Testbed, schedule: Schedule, testbed_file: str | Path | None) -> None:
        folder = self.directory
        folder.mkdir(parents=True, exist_ok=True)
        heads = [form.header(node.name, node.num_ports, bed.samp_rate, bed.center_freq, schedule.slot_samples,
                             __version__) for node in bed.nodes]
        names = [form.COLLECTION, *(path(folder, node.name).name for node in bed.nodes
                                    for path in (form.meta_path, form.data_path, form.journal_path))]
        taken = [name for name in names if (folder / name).exists()]
        if taken:
            raise RecordError(f"{folder}: holds a recording already ({taken[0]}): name another directory")
        hashes = {head["dmimo:node"]: form.write(form.meta_path(folder, head["dmimo:node"]),
                                                 form.metadata(head, []))
                  for head in heads}
        if testbed_file is not None:
            self._include("testbed.yml", Path(testbed_file).read_bytes())
        self.nodes = {head["dmimo:node"]: NodeRecorder(folder, head, schedule) for head in heads}
        self._write_collection(hashes)

    def close(self, error: str | None, releases: int, end_sample: int, files: Iterable[str | Path] = ()) -> None:
        """End the recording of a run that has ended.

        Parameters
        ----------
        error : str or None
            Of the run.
        releases, end_sample : int
            Of its scheduler.
        files : iterable of path
            To be copied into the recording: calibration and report. Those that are not there are left out.
        """
        self._closed.set()
        self._beat.join()
        hashes = {name: node.close(self.sample_zero) for name, node in self.nodes.items()}
        for path in map(Path, files):
            if path.is_file():
                self._include(path.name, path.read_bytes())
        self._content |= {"dmimo:complete": True, "dmimo:error": error, "dmimo:releases": releases,
                          "dmimo:end_sample": end_sample}
        self._write_collection(hashes)
        for name in self.nodes:
            form.journal_path(self.directory, name).unlink()

    def _include(self, name: str, data: bytes) -> None:
        write_bytes(self.directory / name, data)
        self._content["dmimo:files"].append({"name": name, "hash": hashlib.sha512(data).hexdigest()})

    def _write_collection(self, hashes: Mapping[str, str]) -> None:
        self._hashes = dict(hashes)
        slots_done, phases_done = self._done()
        self._content |= {
            "core:streams": [{"name": name, "hash": value} for name, value in hashes.items()],
            "dmimo:slots_done": slots_done, "dmimo:phases_done": phases_done,
        }  # fmt: skip
        form.write(self.directory / form.COLLECTION, {"collection": self._content})

    def _done(self) -> tuple[int, int]:
        """Slots and phases that all nodes have ended."""
        members = self.nodes.values()
        return min(member.slots_done for member in members), min(member.phases_done for member in members)

    def _keep_up(self) -> None:
        """Keep what the collection says of the run's progress up to date."""
        written = self._done()
        while not self._closed.wait(BEAT_S):
            done = self._done()
            if done != written:
                self._write_collection(self._hashes)
                written = done


def _write(descriptor: int, data: memoryview) -> None:
    """Write all of it: the operating system may take less, on a disk that fills up."""
    while data:
        data = data[os.write(descriptor, data) :]
