# SPDX-License-Identifier: GPL-3.0-or-later
"""The form of a recording: SigMF metadata, and the journal that they are made of when a run has ended.

A recording is a directory with a SigMF collection (``run.sigmf-collection``) of one SigMF recording per node. A node's
data file holds what its ports received in the slots of the run and nothing between them, ports interleaved, in the
order of arrival. The metadata has

* a capture wherever the samples do not continue those before, with the absolute sample of the run
  (``core:global_index``) that it begins with,
* an annotation for every attempt at a slot, with what the slot was for, the beam it was received with, whether it
  arrived (``dmimo:status``; nothing is recorded of what did not), in which pass through a phase it was, and whether it
  counted there,
* ``dmimo:phases``: the phases that have ended, one entry for each pass, with the SHA-256 of the product that the node
  was given.

While a run goes on these facts are in a journal, a line of JSON for each, beside the data file; only whole lines count.

References
----------
SigMF specification 1.2.0.
"""

import hashlib
import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np

from .records import write_bytes

SIGMF_VERSION = "1.2.0"
EXTENSIONS = [{"name": "dmimo", "version": "1.0.0", "optional": True}]
DATA_TYPE = np.dtype("<c8")
NAME = "run"
COLLECTION = f"{NAME}.sigmf-collection"
LABEL_LENGTH = 20  # that SigMF recommends
OK = "ok"


def meta_path(directory: Path, node: str) -> Path:
    """Metadata of a node's recording."""
    return directory / f"{node}.sigmf-meta"


def data_path(directory: Path, node: str) -> Path:
    """Samples of a node's recording."""
    return directory / f"{node}.sigmf-data"


def journal_path(directory: Path, node: str) -> Path:
    """Journal of a node's recording, there while the run goes on and after it was killed."""
    return directory / f"{node}.journal"


def header(node: str, num_ports: int, samp_rate: float, center_freq: float, slot_samples: int,
           version: str) -> dict[str, Any]:
    """Global object of a node's metadata."""
    return {
        "core:version": SIGMF_VERSION, "core:datatype": "cf32_le", "core:sample_rate": samp_rate,
        "core:num_channels": num_ports, "core:recorder": f"gr-dmimo {version}", "core:collection": NAME,
        "core:extensions": EXTENSIONS, "core:description": f"what node {node} received in the slots of a run",
        "dmimo:node": node, "dmimo:center_freq": center_freq, "dmimo:slot_samples": slot_samples, "dmimo:phases": [],
    }  # fmt: skip


def metadata(head: Mapping[str, Any], entries: Iterable[Mapping[str, Any]],
             sha512: str | None = None) -> dict[str, Any]:
    """SigMF metadata of a node's recording.

    Parameters
    ----------
    head : mapping
        As made by `header`; with ``dmimo:sample_zero``, date and time of the run's sample 0, where they are known.
    entries : iterable of mapping
        Journal.
    sha512 : str, optional
        Of the data file; None where there is none.
    """
    captures, annotations, phases = [], [], []
    by_attempt: dict[tuple[int, int], dict[str, Any]] = {}
    position, expected = 0, None
    for entry in entries:
        if "product" in entry:
            phases[-1]["product_sha256"] = entry["sha256"]
            continue
        if "done" in entry:
            for attempt in entry["attempts"]:
                by_attempt[tuple(attempt)]["dmimo:counted"] = True
            phases.append({"phase": entry["done"]})
            continue
        count = entry["samples"]
        for slot, attempt, start, beam, purpose in entry["attempts"]:
            if count and start != expected:
                captures.append(_capture(head, position, start))
            annotation = by_attempt[slot, attempt] = {
                "core:sample_start": position, "core:sample_count": count, "core:label": purpose[:LABEL_LENGTH],
                "dmimo:slot": slot, "dmimo:attempt": attempt, "dmimo:start": start, "dmimo:purpose": purpose,
                "dmimo:phase": entry["phase"], "dmimo:pass": len(phases), "dmimo:beam": beam,
                "dmimo:status": entry["status"], "dmimo:counted": False,
            }  # fmt: skip
            annotations.append(annotation)
            position += count
            expected = start + count if count else expected
    hashed = {} if sha512 is None else {"core:sha512": sha512}
    return {"global": {**head, **hashed, "dmimo:phases": phases}, "captures": captures or [_capture(head, 0, 0)],
            "annotations": annotations}


def _capture(head: Mapping[str, Any], position: int, start: int) -> dict[str, Any]:
    """Capture of samples that begin with absolute sample `start`; `core:global_index` is the exact time."""
    capture = {"core:sample_start": position, "core:global_index": start, "core:frequency": head["dmimo:center_freq"]}
    if "dmimo:sample_zero" in head:
        zero, late_s = datetime.fromisoformat(head["dmimo:sample_zero"]), start / head["core:sample_rate"]
        time = zero + timedelta(seconds=late_s)
        capture["core:datetime"] = iso(time)
    return capture


def iso(time: datetime) -> str:
    """Date and time as SigMF wants them."""
    return time.isoformat(timespec="microseconds").replace("+00:00", "Z")


def line(entry: Mapping[str, Any]) -> bytes:
    """Line of a journal."""
    return json.dumps(entry, separators=(",", ":")).encode() + b"\n"


def entries(journal: bytes, available: int) -> list[dict[str, Any]]:
    """Entries of a journal up to the first that is not whole, or whose samples are not among the `available` ones."""
    found, samples = [], 0
    for text in journal.split(b"\n")[:-1]:
        try:
            entry = json.loads(text)
        except ValueError:
            break
        if "status" in entry:
            samples += entry["samples"] * len(entry["attempts"])
            if samples > available:
                break
        found.append(entry)
    return found


def write(path: Path, content: Mapping[str, Any]) -> str:
    """Write JSON, whole or not at all; its SHA-512."""
    data = json.dumps(content, separators=(",", ":"), allow_nan=False).encode() + b"\n"
    write_bytes(path, data)
    return hashlib.sha512(data).hexdigest()


def digest(values: Mapping[str, object]) -> str:
    """SHA-256 of a product's values: equal for equal bits, whatever loop or message has carried them."""
    total = hashlib.sha256()
    _feed(total, values)
    return total.hexdigest()


def _feed(total, value: object) -> None:
    if isinstance(value, np.ndarray):
        array = value.astype(np.int64) if value.dtype.kind in "iub" else value
        total.update(f"array {array.dtype.str} {array.shape} ".encode())
        total.update(np.ascontiguousarray(array))
    elif isinstance(value, Mapping):
        total.update(f"mapping {len(value)} ".encode())
        for key in sorted(value):
            total.update(f"{key} ".encode())
            _feed(total, value[key])
    elif isinstance(value, str):
        total.update(f"text {len(value)} {value} ".encode())
    elif isinstance(value, float | np.floating):
        total.update(struct.pack("<d", value))
    elif isinstance(value, Sequence):
        total.update(f"list {len(value)} ".encode())
        for item in value:
            _feed(total, item)
    else:
        total.update(f"number {int(value)} ".encode())
