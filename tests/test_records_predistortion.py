# SPDX-License-Identifier: GPL-3.0-or-later
"""Predistortion files: what is written is read back and does what it should; what is wrong is refused in one line."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys

import h5py
import numpy as np
import pytest
from gnuradio.dmimo import records, records_predistortion, testbed
from gnuradio.dmimo.core import predistortion as dpd

BED = """\
version: 1
samp_rate: 1.0e6
nodes:
  - {name: ap1, num_ports: 3, tx_gain_db: 10}
  - {name: ap2, rx_gain_db: 5.5}
  - {name: ue1, kind: ue}
slots: {slot_samples: 1024}
"""
KAPPA = np.array([-0.03 + 0.02j, -0.025 - 0.01j, -0.02 + 0.03j, 0.0])


def amplifier(u, kappa):
    return u + kappa[:, None] * u * np.abs(u) ** 2


def make_record(memory_depth=1, **changes):
    """Four ports, the last of which nobody hears."""
    rng = np.random.default_rng(1)
    bed = testbed.parse(BED)
    pilots = dpd.design_pilots(80, "data_like", peak=np.sqrt(10), backoff_db=10.0, rng=rng)
    gains = np.exp(2j * np.pi * rng.random((4, 4)))
    gains[:, 3] = 0.0
    y = gains[..., None] * amplifier(np.tile(pilots, (4, 1)), KAPPA)
    y += 1e-5 * (rng.standard_normal(y.shape) + 1j * rng.standard_normal(y.shape))
    found = dpd.identify_amplifiers(dpd.pilot_statistics(y, pilots, memory_depth=memory_depth))
    record = records_predistortion.predistortion_record(found, bed, epoch=3, design="data_like", version="0.1.0")
    return dataclasses.replace(record, **changes)


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "predistortion.h5"
    records_predistortion.save_predistortion(path, make_record())
    return path


def refusal(path, *args, **kwargs):
    with pytest.raises(records.RecordError) as caught:
        records_predistortion.load_predistortion(path, *args, **kwargs)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(one, other):
    for item in dataclasses.fields(records_predistortion.PredistortionRecord):
        first, second = getattr(one, item.name), getattr(other, item.name)
        assert type(first) is type(second), item.name
        if item.name == "flags":
            assert list(first) == list(second)
            first, second = list(first.values()), list(second.values())
        np.testing.assert_array_equal(first, second, err_msg=item.name)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"memory_depth": 2},
        {"epoch": "2026 – second", "design": "", "fingerprint": "", "version": "", "configuration": {}, "flags": {}},
    ],
)
def test_saved_predistortion_is_loaded_bit_for_bit(tmp_path, changes):
    record = make_record(**changes)
    records_predistortion.save_predistortion(tmp_path / "new" / "p.h5", record)
    loaded = records_predistortion.load_predistortion(tmp_path / "new" / "p.h5")
    assert_same(loaded, record)
    assert (loaded.order, loaded.memory_depth) == (3, changes.get("memory_depth", 1))
    assert os.listdir(tmp_path / "new") == ["p.h5"]


def test_record_is_what_was_identified():
    record = make_record()
    assert record.port_names == ("ap1:0", "ap1:1", "ap1:2", "ap2:0")
    assert record.refused.tolist() == record.flags["unheard"].tolist() == [False, False, False, True]
    assert np.abs(record.coefficients[:3, 1] - KAPPA[:3]).max() < 1e-4
    np.testing.assert_array_equal(record.coefficients[3], [1, 0])
    np.testing.assert_allclose(record.max_amplitude, [np.sqrt(10)] * 3 + [np.inf])
    np.testing.assert_array_equal(record.tx_gain_db, [10, 10, 10, 0])
    np.testing.assert_array_equal(record.rx_gain_db, [0, 0, 0, 5.5])
    assert set(record.flags) == {"mismatch_limited", "receivers_disagree", "saturated", "unexplained", "unheard"}


def test_ports_are_given_to_a_predistorter_in_the_order_asked_for():
    record = make_record()
    coefficients, max_amplitude = record.of_ports(["ap2:0", "ap1:1"])
    np.testing.assert_array_equal(coefficients, record.coefficients[[3, 1]])
    np.testing.assert_array_equal(max_amplitude, record.max_amplitude[[3, 1]])
    with pytest.raises(ValueError, match=re.escape("ap3:0 not among the ports ap1:0, ap1:1, ap1:2, ap2:0")):
        record.of_ports(["ap1:0", "ap3:0"])


def test_file_is_plain_hdf5_that_says_what_it_is(path):
    # With nothing of this project: the inverse in the file makes the amplifiers linear.
    with h5py.File(path) as file:
        assert file.attrs["format"] == b"gr-dmimo predistortion"
        assert (file.attrs["order"], file.attrs["memory_depth"]) == (3, 1)
        assert file.attrs["design"] == b"data_like"
        datasets = []
        file.visititems(lambda name, item: datasets.append(name) if isinstance(item, h5py.Dataset) else None)
        for name in datasets:
            if name not in ("port_names", "configuration") and not name.startswith("flags/"):
                assert file[name].attrs["meaning"], name
        assert b"sum_p coefficients" in file["coefficients"].attrs["meaning"]
        assert list(file["port_names"]) == [b"ap1:0", b"ap1:1", b"ap1:2", b"ap2:0"]
        assert json.loads(file["configuration"][()])["samp_rate"] == 1e6
        assert file["flags/unheard"][()].tolist() == [False, False, False, True]
        gains, ends = file["gains"][()], file["table_max_amplitude"][()]
        peaks, refused = file["max_amplitude"][()], file["refused"][()]
    assert refused.tolist() == np.isinf(ends).tolist() == np.isinf(peaks).tolist()
    np.testing.assert_array_equal(gains[refused], 1.0)
    for row in np.flatnonzero(~refused):
        wanted = np.linspace(0.0, 0.98 * ends[row], 5000)
        u = wanted * np.interp(wanted, np.linspace(0.0, ends[row], gains.shape[1]), gains[row])
        error = amplifier(u[None], KAPPA[row : row + 1])[0] - wanted
        assert np.sqrt(np.mean(np.abs(error) ** 2) / np.mean(wanted**2)) < 1e-4
        assert np.abs(u).max() <= peaks[row]


def test_files_in_other_processes_are_equal_byte_for_byte(path):
    script = ("import sys, test_records_predistortion as t; "
              "t.records_predistortion.save_predistortion(sys.argv[1], t.make_record())")
    other = path.with_name("other.h5")
    environment = os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", script, other], check=True, env=environment, timeout=60)
    assert other.read_bytes() == path.read_bytes()
    now = int(path.stat().st_mtime)
    assert not any(when.to_bytes(4, "little") in path.read_bytes() for when in range(now - 5, now + 1))


def changed(name, index, value):
    values = np.array(getattr(make_record(), name))
    values[index] = value
    return {name: values}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port_names": ("a:0", "a:0", "b:0", "b:1")}, "must be unique"),
        ({"coefficients": np.ones((3, 2))}, "coefficients has shape (3, 2): must be (4, P) or (4, L, P)"),
        ({"coefficients": np.ones(4)}, "coefficients has shape (4,): must be (4, P) or (4, L, P)"),
        ({"coefficients": np.ones((4, 2, 2))}, "gains and table_max_amplitude: must both be given without memory"),
        ({"gains": None}, "gains and table_max_amplitude: must both be given without memory"),
        ({"covariance": np.ones((4, 2, 2))}, "covariance has shape (4, 2, 2): must be (4, 1, 1)"),
        ({"max_amplitude": np.ones(3)}, "max_amplitude has shape (3,): must be (4,)"),
        ({"table_max_amplitude": np.ones(3)}, "table_max_amplitude has shape (3,): must be (4,)"),
        ({"flags": {"unheard": [True]}}, "flags unheard has shape (1,): must be (4,)"),
        (changed("coefficients", (1, 1), math.nan), "coefficients of port ap1:1: must be finite, with 1"),
        (changed("coefficients", (2, 0), 1.1), "coefficients of port ap1:2: must be finite, with 1"),
        (changed("coefficients", (3, 1), 0.1), "coefficients of port ap2:0: must be 1, 0, ... where refused"),
        (changed("covariance", (0, 0, 0), math.inf), "covariance of port ap1:0: must be finite"),
        (changed("max_amplitude", 1, -1.0), "max_amplitude of port ap1:1: must be positive"),
        (changed("max_amplitude", 3, 2.0), "max_amplitude of port ap2:0: must be positive, and inf where refused"),
        (changed("tx_gain_db", 2, math.nan), "tx_gain_db of port ap1:2: must be finite"),
        (changed("gains", (1, 7), math.nan), "gains of port ap1:1: must be finite"),
        (changed("gains", (3, 7), 0.5), "gains of port ap2:0: must be 1 where refused"),
        (changed("table_max_amplitude", 0, 0.0), "table_max_amplitude of port ap1:0: must be positive"),
        ({"samp_rate": 0.0}, "samp_rate 0.0: must be positive"),
        ({"center_freq": math.nan}, "center_freq nan: must be positive"),
    ],
)
def test_inconsistent_record_cannot_be_made(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_record(**changes)


def test_record_cannot_be_changed():
    record = make_record()
    for values in (record.coefficients, record.gains, record.flags["unheard"]):
        with pytest.raises(ValueError, match="read-only"):
            values[0] = 0


def test_identification_of_other_ports_makes_no_record():
    found = dpd.identify_amplifiers(dpd.pilot_statistics(np.ones((3, 3, 80)) * np.linspace(0.1, 1, 80),
                                                         np.linspace(0.1, 1, 80)))
    with pytest.raises(ValueError, match=re.escape("coefficients has shape (3, 2): must be (4, P)")):
        records_predistortion.predistortion_record(found, testbed.parse(BED), epoch=0)


def test_file_cut_anywhere_is_refused(path):
    whole = path.read_bytes()
    for length in [*range(0, 600, 7), *range(600, len(whole), 4999), len(whole) - 1]:
        path.write_bytes(whole[:length])
        message = refusal(path)
        assert "cut off" in message or length < 100


def test_every_flipped_bit_is_refused(path):
    whole = path.read_bytes()
    rng = np.random.default_rng(2)
    for position in [*rng.integers(0, 512, 60), *rng.integers(0, len(whole), 100)]:
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        refusal(path)
    path.write_bytes(whole + b"\0")
    assert "damaged" in refusal(path)


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)
    path.write_bytes(records._seal(path.read_bytes(), records_predistortion.FORMAT))


def replace(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.attrs.create("format", b"something"), "not a gr-dmimo predistortion file"),
        (lambda file: file.attrs.create("format_version", 2), "format version 2 is newer than this release reads"),
        (lambda file: file.attrs.create("order", 5), "order 5: the coefficients have 3"),
        (lambda file: file.attrs.create("memory_depth", 2), "memory_depth 2: the coefficients have 1"),
        (lambda file: file.pop("covariance"), "incomplete: covariance missing"),
        (lambda file: file.pop("flags"), "incomplete: flags missing"),
        (lambda file: file.pop("gains"), "gains and table_max_amplitude: must both be given"),
        (lambda file: file.attrs.pop("epoch"), "incomplete: epoch missing"),
        (replace("refused", np.zeros(3, bool)), "refused has shape (3,): must be (4,)"),
        (replace("coefficients", np.full((4, 2), np.nan)), "coefficients of port ap1:0: must be finite"),
        (replace("configuration", b"{"), "damaged"),
        (replace("flags", 3), "damaged"),
        (replace("gains", b"x"), "malformed"),
    ],
)
def test_edited_file_is_refused_with_its_reason(path, change, message):
    edit(path, change)
    assert message in refusal(path)


def test_foreign_files_are_refused(tmp_path, path):
    assert "cannot be read: No such file" in refusal(tmp_path / "none.h5")
    (tmp_path / "text.h5").write_text("coefficients: 1")
    assert "not an HDF5 file" in refusal(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["coefficients"] = [1, 2]
    assert "not a gr-dmimo predistortion file" in refusal(tmp_path / "other.h5")
    # A calibration is no predistortion, nor the other way round.
    with pytest.raises(records.RecordError, match="not a gr-dmimo calibration file"):
        records.load_calibration(path)
    records.write_sealed(path, records.FORMAT, records.FORMAT_VERSION, lambda file: None)
    assert "not a gr-dmimo predistortion file" in refusal(path)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tx_gain_db: 10", "tx_gain_db: 12", "predistortion of another testbed: tx_gain_db of ap1:0 10.0, testbed has"),
        ("rx_gain_db: 5.5", "rx_gain_db: 6", "another testbed: rx_gain_db of ap2:0 5.5, testbed has 6.0"),
        ("num_ports: 3", "num_ports: 2", "another testbed: port ap1:2 is not in the testbed"),
        ("name: ap2", "name: ap3", "port ap2:0 is not in the testbed"),
        ("samp_rate: 1.0e6", "samp_rate: 2e6", "another testbed: samp_rate 1000000.0, testbed has 2000000.0"),
    ],
)
def test_predistortion_of_another_testbed_is_refused_naming_what_differs(path, old, new, message):
    assert message in refusal(path, testbed.parse(BED.replace(old, new)))


def test_predistortion_of_the_same_testbed_and_epoch_is_accepted(path):
    changed_elsewhere = BED.replace("ue1", "ue2") + "seed: 9\n"
    loaded = records_predistortion.load_predistortion(path, testbed.parse(changed_elsewhere), epoch=3)
    assert_same(loaded, make_record())
    assert "predistortion of epoch 3, now it is 4: measure again" in refusal(path, testbed.parse(BED), epoch=4)


def test_predistortion_holds_for_one_amplitude_of_the_radio(tmp_path):
    """Coefficients refer to samples before they are multiplied by it."""
    radio = BED + 'frontend: usrp\nusrp: {tx_amplitude: 0.2, radios: [{args: "type=x"}]}\n'
    record, bed = make_record(), testbed.parse(radio)
    record = dataclasses.replace(record, configuration=testbed.to_dict(bed), fingerprint=testbed.fingerprint(bed))
    path = tmp_path / "radio.h5"
    records_predistortion.save_predistortion(path, record)
    assert_same(records_predistortion.load_predistortion(path, bed), record)
    louder = testbed.parse(radio.replace("0.2", "0.3"))
    assert "usrp.tx_amplitude 0.2, testbed has 0.3" in refusal(path, louder)
