# SPDX-License-Identifier: GPL-3.0-or-later
"""File of all channels of a bidirectional run, for sensing and for estimators that are tried afterwards (HDF5)."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import h5py
import numpy as np

from .records import write_bytes

FORMAT, FORMAT_VERSION = "gr-dmimo csi", 1
ARRAYS = {
    "g": "uplink channels (entries, TRP ports, UE ports, subcarriers)",
    "h": "downlink channels (entries, TRP ports, UE ports, subcarriers)",
    "g_time": "samples (entries, TRP ports, UE ports) from origin to the middle of the sounding",
    "h_time": "samples (entries, TRP ports, UE ports) from origin to the middle of the sounding",
    "g_var": "noise variance (entries, TRP ports, UE ports) of an element of g",
    "h_var": "noise variance (entries, TRP ports, UE ports) of an element of h",
    "origin": "absolute sample (entries,) that the times count from",
    "c_trp": "two-way coefficients C (entries, TRP ports, UE ports, subcarriers) as read by the TRPs",
    "c_ue": "inverse coefficients 1 / C (entries, UE ports, TRP ports, subcarriers) as read by the UEs",
    "c_trp_time": "samples (entries, TRP ports, UE ports) from origin to the midpoint of sounding and answer",
    "c_ue_time": "samples (entries, UE ports, TRP ports) from origin to the midpoint of sounding and answer",
}


def save_csi(path: str | Path, entries: Sequence[tuple[str, Mapping[str, np.ndarray]]],
             subcarriers: Mapping[str, np.ndarray], attributes: Mapping[str, float],
             ports: Mapping[str, Sequence[str]]) -> None:
    """Write the channels of all phases; the file is whole or not there.

    Parameters
    ----------
    entries : sequence of (phase, arrays)
        In the order of time, arrays by the names in `ARRAYS`, without their first axis; each phase of a name has the
        same ones.
    subcarriers : mapping of name to int ndarray
        From band centre, of the arrays with a last axis of subcarriers.
    attributes : mapping of name to float
        Written to the file's attributes, such as `samp_rate`, `center_freq` and `subcarrier_spacing_hz`.
    ports : mapping of "trp", "ue" to sequence of str
        Names of the ports in the order of the arrays.
    """
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["format"], file.attrs["format_version"] = np.bytes_(FORMAT), np.int64(FORMAT_VERSION)
        for name, value in attributes.items():
            file.attrs[name] = np.float64(value)
        for name, values in subcarriers.items():
            file.create_dataset(f"subcarriers/{name}", data=values, track_times=False)
        for name, values in ports.items():
            file.create_dataset(f"ports/{name}", data=[value.encode() for value in values], track_times=False)
        for phase in dict.fromkeys(name for name, _ in entries):
            members = [arrays for name, arrays in entries if name == phase]
            for name in members[0]:
                data = np.array([arrays[name] for arrays in members])
                data = data.astype(np.complex64) if np.iscomplexobj(data) else data
                dataset = file.create_dataset(f"{phase}/{name}", data=data, track_times=False)
                dataset.attrs["meaning"] = np.bytes_(ARRAYS[name])
    write_bytes(path, buffer.getvalue())


def load_csi(path: str | Path) -> dict[str, dict[str, object]]:
    """Arrays of a file by phase and name; `subcarriers` and `ports` as they were saved, and `attributes`.

    Raises
    ------
    ValueError
        If it is no such file, or of a newer format.
    """
    with h5py.File(path, "r") as file:
        if file.attrs.get("format") != np.bytes_(FORMAT):
            raise ValueError(f"{path}: not a gr-dmimo CSI file")
        if file.attrs["format_version"] > FORMAT_VERSION:
            raise ValueError(f"{path}: format version {file.attrs['format_version']} is newer than this release reads; "
                             f"allowed: {FORMAT_VERSION}")
        content = {group: {name: dataset[()] for name, dataset in members.items()} for group, members in file.items()}
        content["ports"] = {side: tuple(name.decode() for name in names) for side, names in content["ports"].items()}
        content["attributes"] = {name: float(value) for name, value in file.attrs.items() if name != "format"}
    return content
