# SPDX-License-Identifier: GPL-3.0-or-later
"""The file of a run's channels."""

import h5py
import numpy as np
import pytest
from gnuradio.dmimo.csi_records import load_csi, save_csi

PORTS = {"trp": ("a:0", "b:0"), "ue": ("u:0", "u:1", "v:0")}


def entry(rng, phase):
    g = rng.normal(size=(2, 3, 5)) + 1j * rng.normal(size=(2, 3, 5))
    return phase, {"g": g, "g_time": rng.normal(size=(2, 3)), "origin": np.int64(rng.integers(1 << 40))}


def test_channels_come_back_by_phase_in_the_order_of_time(tmp_path):
    rng = np.random.default_rng(1)
    entries = [entry(rng, phase) for phase in ("exchange", "tracking", "tracking", "exchange", "tracking")]
    subcarriers = rng.integers(-50, 50, (3, 5))
    save_csi(tmp_path / "csi.h5", entries, {"g": subcarriers}, {"samp_rate": 1e6}, PORTS)
    found = load_csi(tmp_path / "csi.h5")
    np.testing.assert_array_equal(found["subcarriers"]["g"], subcarriers)
    assert found["ports"] == PORTS
    assert found["attributes"]["samp_rate"] == 1e6
    for phase in ("exchange", "tracking"):
        for name, values in found[phase].items():
            sent = np.array([arrays[name] for own, arrays in entries if own == phase])
            np.testing.assert_allclose(values, sent, rtol=2e-7 if name == "g" else 0)
    assert found["tracking"]["g"].dtype == np.complex64
    assert found["tracking"]["origin"].dtype == np.int64


def test_other_files_and_newer_formats_are_refused(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file.attrs["format"] = "something"
    with pytest.raises(ValueError, match="not a gr-dmimo CSI file"):
        load_csi(tmp_path / "other.h5")
    save_csi(tmp_path / "csi.h5", [entry(np.random.default_rng(2), "tracking")], {}, {}, PORTS)
    with h5py.File(tmp_path / "csi.h5", "a") as file:
        file.attrs["format_version"] = 9
    with pytest.raises(ValueError, match="version 9 is newer"):
        load_csi(tmp_path / "csi.h5")
