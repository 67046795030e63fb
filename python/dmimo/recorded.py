# SPDX-License-Identifier: GPL-3.0-or-later
"""Opens what `recording` has written: of a run that has ended, was killed, or goes on still."""

import fcntl
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import recording_format as form
from . import testbed as _testbed
from .protocols.slots import Grant
from .records import RecordError

# What may differ between the testbed of a recording and that of its replay: none of it changes what is on the air, or
# (faults) it is in the samples already.
FREE = {"name", "frontend", "recording", "faults", "calibration", "slots.watchdog_s", "slots.max_attempts",
        "bidirectional.estimator", "bidirectional.tracking", "bidirectional.linewidth_hz", "bidirectional.drift_hz",
        "bidirectional.drift_period_s", "bidirectional.keep_csi"}  # fmt: skip


class Attempt(NamedTuple):
    """One attempt at a slot as one node recorded it; `first` is the index of its first sample in the data file."""

    grant: Grant
    beam: int
    status: str
    counted: bool
    pass_index: int
    first: int
    count: int


class Phase(NamedTuple):
    """One pass through a phase that has ended; `product_sha256` None where the node was given no product."""

    name: str
    product_sha256: str | None


@dataclass(frozen=True)
class NodeRecording:
    """What one node has recorded; of a run that was cut off, up to where samples and journal are whole."""

    path: Path
    num_ports: int
    attempts: tuple[Attempt, ...]
    phases: tuple[Phase, ...]

    @cached_property
    def _data(self) -> np.ndarray:
        items = self.path.stat().st_size // form.DATA_TYPE.itemsize  # the last may be cut
        return np.memmap(self.path, form.DATA_TYPE, "r", shape=(items,))

    def samples(self, attempt: Attempt) -> np.ndarray:
        """What the ports received, complex64 (ports, samples)."""
        rows = self._data[attempt.first * self.num_ports : (attempt.first + attempt.count) * self.num_ports]
        return np.ascontiguousarray(rows.reshape(attempt.count, self.num_ports).T, np.complex64)


@dataclass(frozen=True)
class Recording:
    """A recording that has been opened.

    Attributes
    ----------
    directory : Path
    content : mapping
        The collection object.
    nodes : mapping of node to NodeRecording
    """

    directory: Path
    content: Mapping[str, Any]
    nodes: Mapping[str, NodeRecording]

    @property
    def complete(self) -> bool:
        """Whether the run came to its end, well or not."""
        return self.content["dmimo:complete"]

    @cached_property
    def testbed(self) -> _testbed.Testbed:
        """The testbed of the run."""
        return _testbed.parse(json.dumps(self.content["dmimo:configuration"]), source=str(self.directory))

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """Passes through phases that all nodes have ended, in the order of time."""
        done = min(len(node.phases) for node in self.nodes.values())
        passes = list(zip(*(node.phases[:done] for node in self.nodes.values()), strict=True))
        for members in passes:
            if len({member.name for member in members}) > 1:
                raise RecordError(f"{self.directory}: the nodes disagree on the order of phases: recordings of "
                                  "different runs?")
        return tuple(next((member for member in members if member.product_sha256), members[0]) for members in passes)

    def attempts(self, pass_index: int) -> Iterator[tuple[Grant, dict[str, Attempt]]]:
        """Attempts of one pass in the order of their release, each as the nodes that recorded it have it."""
        found: dict[Grant, dict[str, Attempt]] = {}
        for name, attempts in self._by_pass.items():
            for attempt in attempts.get(pass_index, ()):
                found.setdefault(attempt.grant, {})[name] = attempt
        return iter(sorted(found.items(), key=lambda item: item[0].start))

    @cached_property
    def _by_pass(self) -> dict[str, dict[int, list[Attempt]]]:
        out: dict[str, dict[int, list[Attempt]]] = {}
        for name, node in self.nodes.items():
            passes = out[name] = {}
            for attempt in node.attempts:
                passes.setdefault(attempt.pass_index, []).append(attempt)
        return out

    @cached_property
    def releases(self) -> int:
        """Attempts that the run released, as far as is known."""
        known = {attempt.grant for node in self.nodes.values() for attempt in node.attempts}
        return self.content.get("dmimo:releases", len(known))

    @cached_property
    def end_sample(self) -> int:
        """First absolute sample after the last slot, as far as is known."""
        return self.content.get("dmimo:end_sample", max(self._starts, default=0) + self.testbed.slots.slot_samples)

    @cached_property
    def first_sample(self) -> int:
        """First absolute sample of the first slot, as far as is known; a simulated run begins at 0."""
        begin = min(self._starts, default=0) if self.testbed.frontend == "usrp" else 0
        return self.content.get("dmimo:first_sample", begin)

    @property
    def epoch(self) -> int:
        """Epoch of the run, 0 where it is not known."""
        return self.content.get("dmimo:epoch", 0)

    @property
    def _starts(self) -> list[int]:
        return [attempt.grant.start for node in self.nodes.values() for attempt in node.attempts]

    @property
    def slots_done(self) -> int:
        """Slots that count, of the phases that have ended."""
        first = next(iter(self.nodes.values()))
        return sum(attempt.counted and attempt.pass_index < len(self.phases) for attempt in first.attempts)

    @property
    def error(self) -> str | None:
        """Why the run was not a success."""
        if self.complete:
            return self.content["dmimo:error"]
        return (f"the recording was cut off: it holds {len(self.phases)} phases, {self.slots_done} slots, "
                f"{(self.end_sample - self.first_sample) / self.testbed.samp_rate:.6g} s")


def load(directory: str | Path) -> Recording:
    """Open a recording; nothing is written.

    Raises
    ------
    RecordError
        One line: no recording, of a newer format, damaged, or changed since it was written.
    """
    directory = Path(directory)
    content = _json(directory / form.COLLECTION).get("collection", {})
    missing = [key for key in ("core:streams", "dmimo:complete", "dmimo:configuration") if key not in content]
    if missing:
        raise RecordError(f"{directory / form.COLLECTION}: no recording of gr-dmimo: {', '.join(missing)} missing")
    for extension in content.get("core:extensions", ()):
        version = extension["version"]
        if extension["name"] == "dmimo" and version.split(".")[0] != "1":
            raise RecordError(f"{directory}: format {version} is newer than this release reads; allowed: 1")
    if content["dmimo:complete"]:
        for entry in content["dmimo:files"]:
            if (directory / entry["name"]).exists():
                _check_hash(directory / entry["name"], entry["hash"], form.COLLECTION)
    try:
        nodes = {stream["name"]: _node(directory, stream, content["dmimo:complete"])
                 for stream in content["core:streams"]}  # fmt: skip
    except (KeyError, TypeError, IndexError, ValueError) as error:
        if isinstance(error, RecordError):
            raise
        raise RecordError(f"{directory}: damaged: {type(error).__name__} {error}") from None
    return Recording(directory, content, nodes)


def recover(directory: str | Path) -> bool:
    """Give a recording that was cut off the SigMF metadata that its journals hold; False where there are none left.

    Data files are cut to whole slots. Estimates that were not reached stay missing, and the collection says so.

    Raises
    ------
    RecordError
        As for `load`, or if the run still goes on.
    """
    recording = load(directory)
    directory = recording.directory
    journals = {name: form.journal_path(directory, name) for name in recording.nodes}
    if recording.complete or not all(path.exists() for path in journals.values()):
        return False
    hashes = {name: _recover_node(directory, name, path) for name, path in journals.items()}
    content = {**recording.content, "core:streams": [{"name": name, "hash": hashes[name]} for name in hashes],
               "dmimo:slots_done": recording.slots_done, "dmimo:phases_done": len(recording.phases)}
    form.write(directory / form.COLLECTION, {"collection": content})
    for path in journals.values():
        path.unlink()
    return True


def _recover_node(directory: Path, name: str, journal: Path) -> str:
    with open(journal, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise RecordError(f"{directory}: the run still goes on") from None
    content, data = _journaled(directory, name), form.data_path(directory, name)
    if data.exists():
        end = max((one["core:sample_start"] + one["core:sample_count"] for one in content["annotations"]), default=0)
        with open(data, "r+b") as file:
            file.truncate(end * content["global"]["core:num_channels"] * form.DATA_TYPE.itemsize)
        if end == 0:
            data.unlink()
        else:
            content["global"]["core:sha512"] = _sha512(data)
    return form.write(form.meta_path(directory, name), content)


def _node(directory: Path, stream: Mapping[str, str], complete: bool) -> NodeRecording:
    name = stream["name"]
    meta, data = form.meta_path(directory, name), form.data_path(directory, name)
    if complete or not form.journal_path(directory, name).exists():
        _check_hash(meta, stream["hash"], form.COLLECTION)
        content = _json(meta)
        if "core:sha512" in content["global"]:
            _check_hash(data, content["global"]["core:sha512"], meta.name)
    else:
        content = _journaled(directory, name)
    attempts = tuple(_attempt(annotation) for annotation in content["annotations"])
    phases = tuple(Phase(phase["phase"], phase.get("product_sha256")) for phase in content["global"]["dmimo:phases"])
    return NodeRecording(data, content["global"]["core:num_channels"], attempts, phases)


def _journaled(directory: Path, name: str) -> dict[str, Any]:
    """Metadata of a run that has not ended, from its journal."""
    written, data = _json(form.meta_path(directory, name)), form.data_path(directory, name)
    size = data.stat().st_size if data.exists() else 0
    available = size // (written["global"]["core:num_channels"] * form.DATA_TYPE.itemsize)
    entries = form.entries(form.journal_path(directory, name).read_bytes(), available)
    head = {key: value for key, value in written["global"].items() if key != "core:sha512"}
    return form.metadata(head, entries)


def _attempt(annotation: Mapping[str, Any]) -> Attempt:
    grant = Grant(*(annotation[f"dmimo:{key}"] for key in ("slot", "attempt", "start")))
    return Attempt(grant, annotation["dmimo:beam"], annotation["dmimo:status"], annotation["dmimo:counted"],
                   annotation["dmimo:pass"], annotation["core:sample_start"], annotation["core:sample_count"])


def differences(recorded: Any, given: Any, path: str = "") -> list[str]:
    """What two testbeds have otherwise that matters to a replay, one phrase each."""
    if path in FREE or recorded == given:
        return []
    if type(recorded) is type(given):
        if is_dataclass(recorded):
            return [found for field in fields(recorded)
                    for found in differences(getattr(recorded, field.name), getattr(given, field.name),
                                             f"{path}.{field.name}".lstrip("."))]  # fmt: skip
        if isinstance(recorded, tuple) and len(recorded) == len(given):
            return [found for index, pair in enumerate(zip(recorded, given, strict=True))
                    for found in differences(*pair, f"{path}[{index}]")]
    return [f"{path} is {_short(recorded)} in the recording, {_short(given)} in the testbed"]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise RecordError(f"{path}: damaged: not JSON") from None
    if not isinstance(content, dict):
        raise RecordError(f"{path}: damaged: no JSON object")
    return content


def _check_hash(path: Path, expected: str, named_in: str) -> None:
    try:
        found = _sha512(path)
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from None
    if found != expected:
        raise RecordError(f"{path}: does not match its hash in {named_in}: damaged, or changed since it was recorded")


def _sha512(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha512").hexdigest()
