# SPDX-License-Identifier: GPL-3.0-or-later
"""Files that a run leaves behind: the calibration (HDF5), reports (JSON) and plots (PNG).

A file appears under its name only when it is whole: its bytes are made in memory, written to a temporary file beside
it, flushed to the disk and renamed. Equal content gives equal bytes: no times, no host, sorted keys. Nothing here is
pickled. `load_calibration` refuses what is damaged or belongs to another testbed or epoch, and says why.
"""

import contextlib
import hashlib
import io
import json
import math
import os
import re
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import h5py
import numpy as np

from . import testbed as _testbed

FORMAT = "gr-dmimo calibration"
FORMAT_VERSION = 1
_USER_BLOCK = 512  # smallest that HDF5 allows

# Name -> type, shape in units of the number of ports, unit or meaning; one row per dataset of the file.
_ARRAYS = {
    "c": (np.complex128, 1, "t / r of each port, relative to the reference"),
    "covariance": (np.complex128, 2, "covariance of log c"),
    "frequency_hz": (np.float64, 1, "Hz, relative to the reference"),
    "delay_s": (np.float64, 1, "s, relative to the reference"),
    "tx_gain_db": (np.float64, 1, "dB"),
    "rx_gain_db": (np.float64, 1, "dB"),
    "trusted": (np.bool_, 1, "False: do not use this port"),
}
_TEXTS = ("reference", "method", "fingerprint", "version")
_Content = TypeVar("_Content")
_DAMAGE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError)


class RecordError(ValueError):
    """A file that cannot be used: one line that names the file and the reason."""


@dataclass(frozen=True, eq=False)
class CalibrationRecord:
    """One calibration of M ports and what it holds for.

    `c` is `t / r` per port, shape (M,), at sample `reference_time` of the run; it turns by twice `frequency_hz`, and
    `covariance`, shape (M, M), is that of log c. It is valid in `epoch` only: a retune, a gain change or a restart
    begins a new one. Ports with `trusted` False carry no usable coefficient, and may hold NaN; `reasons` says why.
    """

    c: np.ndarray
    covariance: np.ndarray
    frequency_hz: np.ndarray
    delay_s: np.ndarray
    tx_gain_db: np.ndarray
    rx_gain_db: np.ndarray
    port_names: tuple[str, ...]
    reference: str
    reference_time: int
    epoch: int | str
    samp_rate: float
    center_freq: float
    method: str
    trusted: np.ndarray
    reasons: tuple[str, ...] = ()
    configuration: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        set_field = object.__setattr__
        set_field(self, "port_names", tuple(self.port_names))
        set_field(self, "reasons", tuple(self.reasons))
        num_ports = len(self.port_names)
        if num_ports == 0 or len(set(self.port_names)) != num_ports:
            raise ValueError(f"port_names {self.port_names}: must be unique, at least one")
        for name, (dtype, dims, _) in _ARRAYS.items():
            array = np.array(getattr(self, name), dtype=dtype)
            array.flags.writeable = False
            set_field(self, name, array)
            if array.shape != (num_ports,) * dims:
                raise ValueError(f"{name} has shape {array.shape}: must be {(num_ports,) * dims}")
        for name in _ARRAYS:
            values = getattr(self, name)[self.trusted]
            bad = ~np.isfinite(values[:, self.trusted] if values.ndim == 2 else values)
            if bad.any():
                port = np.array(self.port_names)[self.trusted][np.nonzero(bad)[0][0]]
                raise ValueError(f"{name} of port {port} is not finite, though the port is trusted")
        for name in ("samp_rate", "center_freq"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise ValueError(f"{name} {getattr(self, name)}: must be positive and finite")


def save_calibration(path: str | Path, record: CalibrationRecord) -> None:
    """Write a calibration file; it is whole or not there, and equal records give equal bytes."""

    def fill(file: h5py.File) -> None:
        for name in _TEXTS:
            file.attrs[name] = np.bytes_(getattr(record, name).encode())
        file.attrs["epoch"] = np.bytes_(json.dumps(record.epoch))
        file.attrs["reference_time"] = np.int64(record.reference_time)
        for name in ("samp_rate", "center_freq"):
            file.attrs[name] = np.float64(getattr(record, name))
        for name, (_, _, meaning) in _ARRAYS.items():
            dataset = file.create_dataset(name, data=getattr(record, name), track_times=False)
            dataset.attrs["meaning"] = np.bytes_(meaning)
        for name in ("port_names", "reasons"):
            file.create_dataset(name, data=strings(getattr(record, name)), track_times=False)
        configuration = json.dumps(jsonable(record.configuration), sort_keys=True, allow_nan=False)
        file.create_dataset("configuration", data=np.bytes_(configuration), track_times=False)

    write_sealed(path, FORMAT, FORMAT_VERSION, fill)


def load_calibration(
    path: str | Path, testbed: _testbed.Testbed | None = None, epoch: int | str | None = None
) -> CalibrationRecord:
    """Return the calibration in a file.

    Parameters
    ----------
    testbed
        What the calibration is wanted for: RecordError names every port, gain, rate or frequency that differs.
    epoch
        Current epoch: RecordError when the calibration was measured in another one.

    Raises
    ------
    RecordError
        One line: not readable, not HDF5, not such a file, of a newer format, cut off, damaged, incomplete, of the
        wrong shape, not finite where trusted, or of another testbed or epoch.
    """
    record = read_sealed(path, FORMAT, FORMAT_VERSION, _read)
    check_origin(path, record, testbed, epoch)
    return record


def _read(file: h5py.File) -> CalibrationRecord:
    require(file, (*_ARRAYS, "port_names", "reasons", "configuration"),
            (*_TEXTS, "epoch", "reference_time", "samp_rate", "center_freq"))
    values: dict[str, Any] = {name: file[name][()] for name in _ARRAYS}
    values |= {name: tuple(text(item) for item in file[name][()]) for name in ("port_names", "reasons")}
    values |= {name: text(file.attrs[name]) for name in _TEXTS}
    values |= {name: float(file.attrs[name]) for name in ("samp_rate", "center_freq")}
    values["reference_time"] = int(file.attrs["reference_time"])
    values["epoch"] = json.loads(text(file.attrs["epoch"]))
    values["configuration"] = json.loads(text(file["configuration"][()]))
    try:
        return CalibrationRecord(**values)
    except ValueError as error:
        raise RecordError(str(error)) from None


def write_sealed(path: str | Path, file_format: str, format_version: int, fill: Callable[[h5py.File], None]) -> None:
    """Write an HDF5 file that `read_sealed` can tell from a damaged one; `fill` puts the content into it."""
    buffer = io.BytesIO()
    with h5py.File(buffer, "w", userblock_size=_USER_BLOCK) as file:
        file.attrs["format"] = np.bytes_(file_format)
        file.attrs["format_version"] = np.int64(format_version)
        fill(file)
    write_bytes(path, _seal(buffer.getvalue(), file_format))


def read_sealed(path: str | Path, file_format: str, format_version: int, read: Callable[[h5py.File], _Content]
                ) -> _Content:
    """Return what `read` makes of a file by `write_sealed`.

    Raises
    ------
    RecordError
        One line: not readable, not HDF5, not of this format, of a newer version, cut off, damaged, or what `read` says.
    """
    try:
        data = Path(path).read_bytes()
    except OSError as error:
        raise RecordError(f"{path}: cannot be read: {error.strerror}") from None
    try:
        _check_seal(data, file_format)
        with h5py.File(io.BytesIO(data), "r") as file:
            if "format" not in file.attrs or text(file.attrs["format"]) != file_format:
                raise RecordError(f"not a {file_format} file")
            version = int(file.attrs["format_version"])
            if version > format_version:
                raise RecordError(f"format version {version} is newer than this release reads; "
                                  f"allowed: {format_version}")
            return read(file)
    except RecordError as error:
        raise RecordError(f"{path}: {error}") from None
    except _DAMAGE as error:
        raise RecordError(f"{path}: damaged: {' '.join(str(error).split())}") from None


def require(file: h5py.File, datasets: Sequence[str], attributes: Sequence[str]) -> None:
    """RecordError, naming them, unless a file has all these datasets and attributes."""
    missing = [name for name in datasets if name not in file]
    missing += [name for name in attributes if name not in file.attrs]
    if missing:
        raise RecordError(f"incomplete: {', '.join(missing)} missing")


def text(value: Any) -> str:
    """Return a text read from the file, whichever string type another tool has made of it."""
    if isinstance(value, str):
        return value
    if isinstance(value, bytes):
        return value.decode()
    raise RecordError(f"damaged: a {type(value).__name__} where there should be text")


def _magic(file_format: str) -> bytes:
    return f"{file_format}, HDF5 from byte {_USER_BLOCK}".encode()


def _seal(data: bytes, file_format: str = FORMAT) -> bytes:
    """Return an HDF5 file with size and SHA-256 of the rest in its user block, which HDF5 itself skips.

    HDF5 does not notice most damage, and its library may crash on a damaged file: checked before it sees the file.
    """
    body = data[_USER_BLOCK:]
    seal = _magic(file_format) + f"\nsize {len(body)}\nsha256 {hashlib.sha256(body).hexdigest()}\n".encode()
    return seal.ljust(_USER_BLOCK, b"\n") + body


def _check_seal(data: bytes, file_format: str) -> None:
    if not data.startswith(_magic(file_format)):
        foreign = any(data[start : start + 8] == b"\x89HDF\r\n\x1a\n" for start in (0, 512, 1024, 2048))
        raise RecordError(f"not a {file_format} file" if foreign else "not an HDF5 file")
    size = re.search(rb"\nsize ([0-9]+)\n", data[:_USER_BLOCK])
    if len(data) < _USER_BLOCK or (size and len(data) < _USER_BLOCK + int(size[1])):
        raise RecordError("cut off: the end of the file is missing")
    if _seal(data, file_format) != data:
        raise RecordError("damaged: the content does not match its checksum")


def strings(texts: tuple[str, ...]) -> np.ndarray:
    """Return texts as fixed-length UTF-8: variable-length strings would leave chance bytes in the file."""
    return np.array([text.encode() for text in texts], dtype=None if texts else "S1")


def check_origin(path: str | Path, record: Any, testbed: _testbed.Testbed | None, epoch: int | str | None,
                 kind: str = "calibration") -> None:
    """RecordError, naming all that differs, if a record is of another testbed or epoch than these; None: any.

    A record has `port_names`, `tx_gain_db`, `rx_gain_db`, `samp_rate`, `center_freq`, `fingerprint` and `epoch`.
    """
    if testbed is not None:
        differences = _differences(record, testbed)
        if differences:
            raise RecordError(f"{path}: {kind} of another testbed: {'; '.join(differences)}")
    if epoch is not None and record.epoch != epoch:
        raise RecordError(f"{path}: {kind} of epoch {record.epoch!r}, now it is {epoch!r}: measure again")


def _differences(record: Any, testbed: _testbed.Testbed) -> list[str]:
    """Return what a testbed has otherwise than the record, one phrase each; empty when it fits."""
    found = []
    for name in ("samp_rate", "center_freq"):
        if getattr(record, name) != getattr(testbed, name):
            found.append(f"{name} {getattr(record, name)!r}, testbed has {getattr(testbed, name)!r}")
    ports = _testbed.port_names(testbed)
    if testbed.bidirectional is not None and not set(record.port_names) & set(ports):
        ports = _testbed.port_names(testbed, testbed.bidirectional.calibrating)
    owners = {port.partition(":")[0] for port in record.port_names}
    alone = isinstance(record, CalibrationRecord) and testbed.mutual_coupling is not None and len(owners) == 1
    if alone and owners <= {ap.name for ap in testbed.aps}:  # an access point that has calibrated itself
        ports = _testbed.port_names(testbed, tuple(owners))
    found += [f"port {port} is not in the testbed" for port in record.port_names if port not in ports]
    found += [f"port {port} of the testbed is not calibrated" for port in ports if port not in record.port_names]
    if not found and record.port_names != ports:
        found.append(f"ports in the order {', '.join(record.port_names)}, testbed has {', '.join(ports)}")
    for index, port in enumerate(record.port_names):
        for name, wanted in _gains_db(testbed, port).items() if port in ports else ():
            measured = float(getattr(record, name)[index])
            if measured != wanted:
                found.append(f"{name} of {port} {measured!r}, testbed has {wanted!r}")
    if not found and record.fingerprint != _testbed.fingerprint(testbed):
        found.append("fingerprints differ")
    return found


def _gains_db(testbed: _testbed.Testbed, port: str) -> dict[str, float]:
    """Gain settings of a port such as ``ap1:0``, which may be its radio's own."""
    name, number = port.split(":")
    tx_gains_db, rx_gains_db = testbed.node(name).gains_db(testbed.frontend)
    return {"tx_gain_db": tx_gains_db[int(number)], "rx_gain_db": rx_gains_db[int(number)]}


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as JSON, whole or not at all, keys sorted.

    NumPy arrays and scalars become lists and numbers, complex numbers [real, imaginary]. JSON has no NaN and no
    infinity: they become null, so that any reader can read a report in which something is missing.
    """
    content = json.dumps(jsonable(value), sort_keys=True, indent=2, allow_nan=False, ensure_ascii=False)
    write_bytes(path, content.encode() + b"\n")


def jsonable(value: Any) -> Any:
    """Return a value as plain data that JSON can hold, see `write_json`; TypeError where it cannot."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    match value:
        case Mapping():
            wrong = [key for key in value if not isinstance(key, str)]
            if wrong:
                raise TypeError(f"key {wrong[0]!r}: must be text")
            return {key: jsonable(item) for key, item in value.items()}
        case list() | tuple():
            return [jsonable(item) for item in value]
        case complex():
            return [jsonable(value.real), jsonable(value.imag)]
        case float():
            return value if math.isfinite(value) else None
        case None | bool() | int() | str():
            return value
    raise TypeError(f"{type(value).__name__} cannot be written as JSON")


def write_figure(path: str | Path, figure: Any, dpi: int = 150) -> None:
    """Write a matplotlib figure as PNG, whole or not at all, without the date and the version in it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    write_bytes(path, buffer.getvalue())


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file, whole or not at all; an existing one is replaced in one step. Directories are made."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _replacing(path) as descriptor, open(descriptor, "wb", closefd=False) as file:
        file.write(data)


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[int]:
    """Yield the descriptor of a temporary file that takes the place of `path` when the block ends well."""
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        try:
            yield descriptor
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)  # the new name, too, survives a power cut
    finally:
        os.close(directory)
