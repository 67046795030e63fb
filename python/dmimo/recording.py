# SPDX-License-Identifier: GPL-3.0-or-later
"""Records what the nodes of a run receive, while it goes on, as a SigMF collection.

A thread writes samples and journal, twenty times a second, so that roles do not wait for a disk and a process that is
killed loses little; what is written then is consistent. The SigMF metadata are made of the journal when the run has
ended. Until then the collection says that it is not complete and, brought up to date about every second, how far the
run has come. `recorded` opens all of that.
"""

import fcntl
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__, testbed
from . import recording_format as form
from .assembly import Assembly
from .protocols.slots import Grant, Product, Schedule
from .records import RecordError, write_bytes

WRITE_S = 0.05
COLLECTION_S = 1.0
MOST_PENDING = 512 * 2**20  # bytes of a node in memory; a disk that is so far behind will not catch up


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
        self._pending: deque[tuple[bytes, bytes, int]] = deque()  # samples, line of the journal, slots that it ends
        self._taken = self._written = 0  # bytes of samples
        self._failure: OSError | None = None
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

        Raises
        ------
        OSError
            If what came before could not be written, or cannot be written as fast as it comes.
        """
        count, data = 0, b""
        if samples is not None:
            count, data = samples.shape[-1], samples.swapaxes(-1, -2).astype(form.DATA_TYPE, copy=False).tobytes()
        attempts = [[grant.slot, grant.attempt, grant.start, int(beam), self._slots[grant.slot].purpose]
                    for grant, beam in zip(grants, beams, strict=True)]
        self._note(data, 0, attempts=attempts, phase=self._phases[grants[0].slot], status=status, samples=count)

    def phase_done(self, phase: str, grants: Iterable[Grant]) -> None:
        """Note that a phase has ended, and which attempts count."""
        attempts = [[grant.slot, grant.attempt] for grant in grants]
        self._note(b"", len(attempts), done=phase, attempts=attempts)

    def product(self, product: Product) -> None:
        """Note what the phase that has ended produced."""
        self._note(b"", 0, product=product.phase, sha256=form.digest(product.values))

    def _note(self, data: bytes, slots: int, **entry: object) -> None:
        if self._failure is not None:
            raise self._failure
        self._taken += len(data)
        if self._taken - self._written > MOST_PENDING:
            raise OSError(f"{self._directory}: the disk is slower than samples come: {MOST_PENDING} bytes are waiting")
        self._pending.append((data, form.line(entry), slots))

    def write(self) -> None:
        """Write what is pending, samples before what is said of them; only the recorder's thread calls this.

        A failure is raised at the next call of the role, which ends the run.
        """
        if not self._pending or self._failure is not None:
            return
        entries = [self._pending.popleft() for _ in range(len(self._pending))]
        samples, lines = (b"".join(entry[k] for entry in entries) for k in (0, 1))
        try:
            if samples:
                self._write_samples(samples)
            _write(self._journal, memoryview(lines))
        except OSError as error:
            self._failure = error
            return
        self._written += len(samples)
        self.slots_done += sum(slots for *_, slots in entries)
        self.phases_done += sum(slots > 0 for *_, slots in entries)

    def close(self, sample_zero: datetime | None) -> str:
        """Write the metadata; their SHA-512. The journal is left for the case that the collection is not written."""
        self.write()
        if self._data is not None:
            os.fsync(self._data)
            os.close(self._data)
        os.close(self._journal)
        if self._failure is not None:
            raise self._failure
        journal = form.journal_path(self._directory, self.node).read_bytes()
        sha512 = None if self._data is None else self._hash.hexdigest()
        known = {} if sample_zero is None else {"dmimo:sample_zero": form.iso(sample_zero)}
        content = form.metadata({**self._head, **known}, form.entries(journal, np.iinfo(np.int64).max), sha512)
        return form.write(form.meta_path(self._directory, self.node), content)

    def _write_samples(self, samples: bytes) -> None:
        if self._data is None:  # an empty data file cannot be opened as SigMF
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND
            self._data = os.open(form.data_path(self._directory, self.node), flags, 0o666)
        _write(self._data, memoryview(samples))
        self._hash.update(samples)


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
            "dmimo:verify": assembly.measures, "dmimo:duration_s": duration_s,
            "dmimo:schedule_sha256": schedule.hash, "dmimo:complete": False, "dmimo:error": None, "dmimo:files": [],
        }  # fmt: skip
        try:
            self._create(bed, schedule, testbed_file)
        except OSError as error:
            raise RecordError(f"{self.directory}: cannot be recorded to: {error.strerror}") from None
        self._closed = threading.Event()
        self._writer = threading.Thread(target=self._keep_up, name="recorder", daemon=True)
        self._writer.start()

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

    def close(self, error: str | None, releases: int, end_sample: int, files: Iterable[str | Path] = (),
              first_sample: int = 0, epoch: int = 0) -> None:
        """End the recording of a run that has ended.

        Parameters
        ----------
        error : str or None
            Of the run.
        releases, end_sample, first_sample, epoch : int
            Of its scheduler.
        files : iterable of path
            To be copied into the recording: calibration and report. Those that are not there are left out.
        """
        self._closed.set()
        self._writer.join()
        hashes = {name: node.close(self.sample_zero) for name, node in self.nodes.items()}
        for path in map(Path, files):
            if path.is_file():
                self._include(path.name, path.read_bytes())
        self._content |= {"dmimo:complete": True, "dmimo:error": error, "dmimo:releases": releases,
                          "dmimo:end_sample": end_sample, "dmimo:first_sample": first_sample,
                          "dmimo:epoch": epoch}
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
        """Write what the nodes have received, and keep what the collection says of the progress up to date."""
        said, due = self._done(), time.monotonic() + COLLECTION_S
        while not self._closed.wait(WRITE_S):
            for node in self.nodes.values():
                node.write()
            if time.monotonic() > due and self._done() != said:
                said, due = self._done(), time.monotonic() + COLLECTION_S
                with suppress(OSError):  # the nodes find the disk full too, and say so
                    self._write_collection(self._hashes)


def _write(descriptor: int, data: memoryview) -> None:
    """Write all of it: the operating system may take less, on a disk that fills up."""
    while data:
        data = data[os.write(descriptor, data) :]
