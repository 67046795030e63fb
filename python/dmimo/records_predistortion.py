# SPDX-License-Identifier: GPL-3.0-or-later
"""File of a predistortion (HDF5): the amplifiers of all ports, their inverses as tables, and how far to trust them.

Written and checked as a calibration file (`records`): whole or not there, sealed, without times, nothing pickled.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np

from . import testbed as _testbed
from .core import predistortion
from .core.predistortion import Identification
from .records import RecordError, check_origin, jsonable, read_sealed, require, strings, text, write_sealed

FORMAT, FORMAT_VERSION = "gr-dmimo predistortion", 1
# Entries of a port's table. Interpolated between them, Gaussian data is right to 93 dB below it behind an amplifier of
# third order with -0.1 + 0.05j, to 119 dB behind the GaN polynomial at a back-off of 10 dB.
TABLE_SIZE = 1024
FLAGS = ("mismatch_limited", "receivers_disagree", "unexplained", "saturated", "unheard")

_MODEL = "F(u)_k = sum_l sum_p coefficients[m, (l,) p] u_(k-l) |u_(k-l)|^(2p); the linear one is 1, and |u|^2 = 1 is " \
         "the mean power of a port's samples"
# Name -> type, meaning; one row per dataset with a value, a row or a table for each port.
_ARRAYS = {
    "coefficients": (np.complex128, f"amplifier of each port, 1, 0, ... where refused: {_MODEL}"),
    "covariance": (np.complex128, "predicted, of the coefficients after the first, order by order"),
    "max_amplitude": (np.float64, "largest amplifier input |u| that is trusted; inf where refused"),
    "refused": (np.bool_, "True: the port is not predistorted, it would not help"),
    "distortion_without": (np.float64, "predicted power of distortion over that of the linear signal, before"),
    "distortion_with": (np.float64, "predicted power of distortion over that of the linear signal, predistorted"),
    "tx_gain_db": (np.float64, "dB"),
    "rx_gain_db": (np.float64, "dB"),
}
_TABLE = {
    "gains": (np.complex128, "u / x at equally spaced |x| from 0 to table_max_amplitude"),
    "table_max_amplitude": (np.float64, "largest wanted output |x|, to which samples are to be clipped; inf: none"),
}
_TEXTS = ("method", "design", "fingerprint", "version")


class PortPredistortion(NamedTuple):
    """Coefficients (ports, P) or (ports, L, P) and largest input (ports,), as a block `predistorter` takes them."""

    coefficients: np.ndarray
    max_amplitude: np.ndarray


@dataclass(frozen=True, eq=False)
class PredistortionRecord:
    """Predistortion of M ports of order 2 P - 1 and what it holds for.

    Attributes
    ----------
    port_names : M names such as ``ap1:0``.
    coefficients : (M, P), with memory (M, L, P), of the amplifiers, first entry 1; 1, 0, ... where refused.
    covariance : (M, n, n), predicted of the n = P L - 1 coefficients after the first, order by order.
    max_amplitude : (M,) largest amplifier input that is trusted, over unit mean power; inf where refused.
    refused : (M,) bool, ports that stay as they are.
    distortion_without, distortion_with : (M,) predicted, relative to the linear signal; nan where nothing is predicted.
    tx_gain_db, rx_gain_db : (M,) gain settings with which it was measured.
    epoch : in which it is valid: a retune, a gain change or a restart begins a new one.
    method, design : how receivers were combined, and the amplitudes of the pilots.
    flags : (M,) bool by name: what else is known of a port, see `Identification`.
    gains, table_max_amplitude : (M, T) and (M,), the inverse as `core.predistortion.PredistorterTable`; with memory,
        for which no table exists, None.
    """

    port_names: tuple[str, ...]
    coefficients: np.ndarray
    covariance: np.ndarray
    max_amplitude: np.ndarray
    refused: np.ndarray
    distortion_without: np.ndarray
    distortion_with: np.ndarray
    tx_gain_db: np.ndarray
    rx_gain_db: np.ndarray
    samp_rate: float
    center_freq: float
    epoch: int | str
    method: str = "svd"
    design: str = ""
    flags: Mapping[str, np.ndarray] = field(default_factory=dict)
    gains: np.ndarray | None = None
    table_max_amplitude: np.ndarray | None = None
    configuration: Mapping[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "port_names", tuple(self.port_names))
        for name, (dtype, _) in (_ARRAYS | _TABLE).items():
            if getattr(self, name) is not None:
                object.__setattr__(self, name, _frozen(getattr(self, name), dtype))
        flags = {name: _frozen(values, np.bool_) for name, values in sorted(self.flags.items())}
        object.__setattr__(self, "flags", flags)
        _check_shapes(self)
        _check_values(self)

    @property
    def order(self) -> int:
        """Highest order, 2 P - 1."""
        return 2 * self.coefficients.shape[-1] - 1

    @property
    def memory_depth(self) -> int:
        """L, 1 without memory."""
        return self.coefficients.shape[1] if self.coefficients.ndim == 3 else 1

    def of_ports(self, names: Sequence[str]) -> PortPredistortion:
        """What a block `predistorter` of these ports takes, in their order.

        Raises
        ------
        ValueError
            If a port is not in the record.
        """
        unknown = [name for name in names if name not in self.port_names]
        if unknown:
            raise ValueError(f"names: {', '.join(unknown)} not among the ports {', '.join(self.port_names)}")
        rows = [self.port_names.index(name) for name in names]
        return PortPredistortion(self.coefficients[rows], self.max_amplitude[rows])


def predistortion_record(identification: Identification, bed: _testbed.Testbed, *, epoch: int | str, design: str = "",
                         method: str = "svd", version: str = "") -> PredistortionRecord:
    """Record of what was identified of all ports of a testbed's access points.

    Parameters
    ----------
    identification : of the ports in the order of `testbed.port_names` (`Identification.joined`).
    epoch, design, method, version : see `PredistortionRecord`.
    """
    found = identification
    nodes_gains = [node.gains_db(bed.frontend) for node in bed.aps]
    tx_gain_db, rx_gain_db = (np.concatenate([gains[side] for gains in nodes_gains]) for side in (0, 1))
    peak = np.where(found.refused, np.inf, found.max_amplitude)
    flags = {name: getattr(found, name) for name in FLAGS if name != "unheard"} | {"unheard": ~found.heard}
    gains, limit = (None, None) if found.coefficients.ndim == 3 else _table(found.safe_coefficients, peak)
    return PredistortionRecord(
        port_names=_testbed.port_names(bed), coefficients=found.safe_coefficients, covariance=found.covariance,
        max_amplitude=peak, refused=found.refused, distortion_without=found.distortion_without,
        distortion_with=found.distortion_with, tx_gain_db=tx_gain_db, rx_gain_db=rx_gain_db, samp_rate=bed.samp_rate,
        center_freq=bed.center_freq, epoch=epoch, method=method, design=design, flags=flags, gains=gains,
        table_max_amplitude=limit, configuration=_testbed.to_dict(bed), fingerprint=_testbed.fingerprint(bed),
        version=version,
    )  # fmt: skip


def _table(coefficients: np.ndarray, peak: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gains (M, T) and their largest wanted amplitude (M,); 1 and inf for ports that stay as they are."""
    reach = predistortion.invertible_range(coefficients, max_amplitude=peak).output_amplitude
    ends = np.where(np.isfinite(reach), reach, 1.0)
    gains = predistortion.predistorter_table(coefficients, size=TABLE_SIZE, max_amplitude=peak, full_scale=ends).gains
    return gains, reach


def _frozen(values: Any, dtype: Any) -> np.ndarray:
    array = np.array(values, dtype=dtype)
    array.flags.writeable = False
    return array


def _check_shapes(record: PredistortionRecord) -> None:
    count = len(record.port_names)
    if count == 0 or len(set(record.port_names)) != count:
        raise ValueError(f"port_names {record.port_names}: must be unique, at least one")
    shape = record.coefficients.shape
    if len(shape) not in (2, 3) or shape[0] != count or 0 in shape:
        raise ValueError(f"coefficients has shape {shape}: must be ({count}, P) or ({count}, L, P)")
    further = math.prod(shape[1:]) - 1
    wanted = {name: (count,) for name in _ARRAYS} | {"coefficients": shape, "covariance": (count, further, further)}
    has_table = record.gains is not None
    if has_table is not (record.table_max_amplitude is not None) or has_table is (len(shape) == 3):
        raise ValueError("gains and table_max_amplitude: must both be given without memory, and neither with it")
    if has_table:
        wanted |= {"gains": (count, record.gains.shape[-1]), "table_max_amplitude": (count,)}
    found = {name: getattr(record, name) for name in wanted} | {f"flags {name}": v for name, v in record.flags.items()}
    for name, array in found.items():
        if array.shape != wanted.get(name, (count,)):
            raise ValueError(f"{name} has shape {array.shape}: must be {wanted.get(name, (count,))}")


def _check_values(record: PredistortionRecord) -> None:
    for name in ("samp_rate", "center_freq"):
        if not (math.isfinite(getattr(record, name)) and getattr(record, name) > 0):
            raise ValueError(f"{name} {getattr(record, name)}: must be positive and finite")
    flat = record.coefficients.reshape(len(record.port_names), -1)
    used = ~record.refused
    finite = {name: np.isfinite(getattr(record, name).reshape(len(flat), -1)).all(axis=1)
              for name in ("coefficients", "covariance", "tx_gain_db", "rx_gain_db")}
    _require(record, "coefficients", finite["coefficients"] & (flat[:, 0] == 1.0), "finite, with 1 as the linear one")
    _require(record, "coefficients", used | ~flat[:, 1:].any(axis=1), "1, 0, ... where refused")
    _require(record, "covariance", finite["covariance"] | record.refused, "finite")
    _require(record, "max_amplitude", (record.max_amplitude > 0) & (used | np.isinf(record.max_amplitude)),
             "positive, and inf where refused")
    for name in ("tx_gain_db", "rx_gain_db"):
        _require(record, name, finite[name], "finite")
    if record.gains is not None:
        _require(record, "gains", np.isfinite(record.gains).all(axis=1), "finite")
        _require(record, "gains", used | (record.gains == 1.0).all(axis=1), "1 where refused")
        _require(record, "table_max_amplitude", record.table_max_amplitude > 0, "positive")


def _require(record: PredistortionRecord, name: str, holds: np.ndarray, requirement: str) -> None:
    if not holds.all():
        port = record.port_names[int(np.argmin(holds))]
        raise ValueError(f"{name} of port {port}: must be {requirement}")


def save_predistortion(path: str | Path, record: PredistortionRecord) -> None:
    """Write a predistortion file; it is whole or not there, and equal records give equal bytes."""

    def fill(file: h5py.File) -> None:
        for name in _TEXTS:
            file.attrs[name] = np.bytes_(getattr(record, name).encode())
        file.attrs["epoch"] = np.bytes_(json.dumps(record.epoch))
        for name in ("samp_rate", "center_freq"):
            file.attrs[name] = np.float64(getattr(record, name))
        for name in ("order", "memory_depth"):
            file.attrs[name] = np.int64(getattr(record, name))
        for name, (_, meaning) in (_ARRAYS | ({} if record.gains is None else _TABLE)).items():
            dataset = file.create_dataset(name, data=getattr(record, name), track_times=False)
            dataset.attrs["meaning"] = np.bytes_(meaning)
        file.create_group("flags").attrs["meaning"] = np.bytes_("True: what the name says is so of the port")
        for name, values in record.flags.items():
            file["flags"].create_dataset(name, data=values, track_times=False)
        file.create_dataset("port_names", data=strings(record.port_names), track_times=False)
        configuration = json.dumps(jsonable(record.configuration), sort_keys=True, allow_nan=False)
        file.create_dataset("configuration", data=np.bytes_(configuration), track_times=False)

    write_sealed(path, FORMAT, FORMAT_VERSION, fill)


def load_predistortion(
    path: str | Path, testbed: _testbed.Testbed | None = None, epoch: int | str | None = None
) -> PredistortionRecord:
    """Return the predistortion in a file.

    Parameters
    ----------
    testbed
        What it is wanted for: RecordError names every port, gain, rate or frequency that differs, and the amplitude
        at which radios send.
    epoch
        Current epoch: RecordError when it was measured in another one.

    Raises
    ------
    RecordError
        One line: not readable, not HDF5, not such a file, of a newer format, cut off, damaged, incomplete, of the
        wrong shape, not finite where it is used, or of another testbed or epoch.
    """
    record = read_sealed(path, FORMAT, FORMAT_VERSION, _read)
    check_origin(path, record, testbed, epoch, "predistortion")
    if testbed is not None:
        measured, wanted = (_tx_amplitude(one) for one in (record.configuration, _testbed.to_dict(testbed)))
        if measured != wanted:
            raise RecordError(f"{path}: predistortion of another testbed: usrp.tx_amplitude {measured}, testbed has "
                              f"{wanted}")
    return record


def _tx_amplitude(configuration: Mapping[str, Any]) -> float | None:
    """What samples are multiplied by on their way to a radio, which coefficients refer to; None in a simulation."""
    return configuration["usrp"]["tx_amplitude"] if configuration.get("frontend") == "usrp" else None


def _read(file: h5py.File) -> PredistortionRecord:
    require(file, (*_ARRAYS, "flags", "port_names", "configuration"),
            (*_TEXTS, "epoch", "samp_rate", "center_freq", "order", "memory_depth"))
    values: dict[str, Any] = {name: file[name][()] for name in (*_ARRAYS, *_TABLE) if name in file}
    values["flags"] = {name: dataset[()] for name, dataset in file["flags"].items()}
    values["port_names"] = tuple(text(item) for item in file["port_names"][()])
    values |= {name: text(file.attrs[name]) for name in _TEXTS}
    values |= {name: float(file.attrs[name]) for name in ("samp_rate", "center_freq")}
    values["epoch"] = json.loads(text(file.attrs["epoch"]))
    values["configuration"] = json.loads(text(file["configuration"][()]))
    try:
        record = PredistortionRecord(**values)
    except ValueError as error:
        raise RecordError(str(error)) from None
    for name in ("order", "memory_depth"):
        if file.attrs[name] != getattr(record, name):
            raise RecordError(f"{name} {file.attrs[name]}: the coefficients have {getattr(record, name)}")
    return record
