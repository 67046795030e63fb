# SPDX-License-Identifier: GPL-3.0-or-later
"""Files of a run: what is written is read back; what is damaged, partial or of another testbed is refused."""

import dataclasses
import json
import math
import os
import re
import signal
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from gnuradio.dmimo import records, testbed
from matplotlib.figure import Figure

BED = """\
version: 1
samp_rate: 1.0e6
nodes:
  - {name: ap1, num_ports: 2, tx_gain_db: 10}
  - {name: ap2, rx_gain_db: 5.5}
  - {name: ue1, kind: ue}
slots: {slot_samples: 1024}
"""
ARRAYS = ("c", "covariance", "frequency_hz", "delay_s", "tx_gain_db", "rx_gain_db", "trusted")


def make_record(**changes) -> records.CalibrationRecord:
    rng = np.random.default_rng(1)
    bed = testbed.parse(BED)
    root = rng.normal(size=(3, 3)) + 1j * rng.normal(size=(3, 3))
    values = {
        "c": np.exp(1j * rng.normal(size=3)),
        "covariance": root @ root.conj().T,
        "frequency_hz": rng.normal(size=3),
        "delay_s": 1e-6 * rng.normal(size=3),
        "tx_gain_db": [10.0, 10.0, 0.0],
        "rx_gain_db": [0.0, 0.0, 5.5],
        "port_names": testbed.port_names(bed),
        "reference": "ap1",
        "reference_time": 123456789012345,
        "epoch": 3,
        "samp_rate": 1e6,
        "center_freq": 3.5e9,
        "method": "ml",
        "trusted": [True, True, True],
        "reasons": ("ap2:0: weak, but measured – twice",),
        "configuration": testbed.to_dict(bed),
        "fingerprint": testbed.fingerprint(bed),
        "version": "0.1.0",
    }
    return records.CalibrationRecord(**(values | changes))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "calibration.h5"
    records.save_calibration(path, make_record())
    return path


def refusal(path, *args, **kwargs) -> str:
    with pytest.raises(records.RecordError) as caught:
        records.load_calibration(path, *args, **kwargs)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def assert_same(one, other):
    for field in dataclasses.fields(records.CalibrationRecord):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name), err_msg=field.name)
        assert type(getattr(one, field.name)) is type(getattr(other, field.name))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"epoch": "2026 – second", "reasons": (), "fingerprint": "", "version": "", "configuration": {}},
        {"trusted": [True, False, True], "c": [1, math.nan, 1j], "frequency_hz": [0, math.inf, 0]},
    ],
)
def test_saved_calibration_is_loaded_bit_for_bit(tmp_path, changes):
    record = make_record(**changes)
    records.save_calibration(tmp_path / "new" / "c.h5", record)
    assert_same(records.load_calibration(tmp_path / "new" / "c.h5"), record)
    assert os.listdir(tmp_path / "new") == ["c.h5"]


def test_large_configuration_is_kept(tmp_path):
    nodes = [{"name": f"ap{index}", "note": "x" * 1000} for index in range(300)]
    records.save_calibration(tmp_path / "c.h5", make_record(configuration={"nodes": nodes}))
    assert records.load_calibration(tmp_path / "c.h5").configuration == {"nodes": nodes}


def test_equal_records_give_equal_bytes_in_every_process(path):
    script = "import sys, test_records as t; t.records.save_calibration(sys.argv[1], t.make_record())"
    other = path.with_name("other.h5")
    environment = os.environ | {"PYTHONHASHSEED": "77", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    subprocess.run([sys.executable, "-c", script, other], check=True, env=environment, timeout=60)
    assert other.read_bytes() == path.read_bytes()


def test_file_holds_no_time(path):
    now = int(path.stat().st_mtime)
    data = path.read_bytes()
    assert not any(when.to_bytes(4, "little") in data for when in range(now - 5, now + 1))


def test_file_is_plain_hdf5_with_units(path):
    with h5py.File(path) as file:
        assert file["c"].dtype == np.complex128
        assert file["delay_s"].attrs["meaning"] == b"s, relative to the reference"
        assert json.loads(file["configuration"][()])["samp_rate"] == 1e6
        assert list(file["port_names"]) == [b"ap1:0", b"ap1:1", b"ap2:0"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"c": np.ones(2)}, "c has shape (2,): must be (3,)"),
        ({"covariance": np.ones(3)}, "covariance has shape (3,): must be (3, 3)"),
        ({"c": [1, np.nan, 1]}, "c of port ap1:1 is not finite"),
        ({"delay_s": [0, 0, np.inf], "trusted": [False, True, True]}, "delay_s of port ap2:0 is not finite"),
        ({"covariance": np.diag([1, 1, np.nan])}, "covariance of port ap2:0 is not finite"),
        ({"port_names": ("a:0", "a:0", "b:0")}, "must be unique"),
        ({"samp_rate": 0.0}, "samp_rate 0.0: must be positive"),
        ({"center_freq": math.nan}, "center_freq nan: must be positive"),
    ],
)
def test_inconsistent_record_cannot_be_made(changes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        make_record(**changes)


def test_file_cut_anywhere_is_refused(path):
    whole = path.read_bytes()
    for length in [*range(600), *range(600, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        message = refusal(path)
        assert "cut off" in message or length < 100
        path.write_bytes(whole[:length] + bytes(len(whole) - length))
        if whole[length:].strip(b"\0"):
            assert "damaged" in refusal(path) or length < 100


def test_every_flipped_bit_is_refused(path):
    whole = path.read_bytes()
    rng = np.random.default_rng(2)
    for position in rng.integers(0, len(whole), 500):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        refusal(path)
    path.write_bytes(whole + b"\0")
    assert "damaged" in refusal(path)


def edit(path, change):
    with h5py.File(path, "r+") as file:
        change(file)
    path.write_bytes(records._seal(path.read_bytes()))


def replace(name, value):
    def change(file):
        del file[name]
        file[name] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda file: file.attrs.create("format", b"something"), "not a gr-dmimo calibration file"),
        (lambda file: file.attrs.pop("format"), "not a gr-dmimo calibration file"),
        (lambda file: file.attrs.create("format", 7), "damaged"),
        (lambda file: file.attrs.create("format_version", 2), "format version 2 is newer than this release reads"),
        (lambda file: file.pop("covariance"), "incomplete: covariance missing"),
        (lambda file: file.attrs.pop("epoch"), "incomplete: epoch missing"),
        (replace("c", np.ones(2, complex)), "c has shape (2,): must be (3,)"),
        (replace("c", np.full(3, np.nan)), "c of port ap1:0 is not finite"),
        (replace("configuration", b"{"), "damaged"),
        (replace("c", b"x"), "malformed"),
        (lambda file: file.attrs.create("reference_time", b"now"), "damaged"),
    ],
)
def test_edited_file_is_refused_with_its_reason(path, change, message):
    edit(path, change)
    assert message in refusal(path)


def test_file_edited_without_its_checksum_is_refused(path):
    with h5py.File(path, "r+") as file:
        file["c"][0] = 2
    assert "damaged: the content does not match its checksum" in refusal(path)


def test_foreign_files_are_refused(tmp_path):
    assert "cannot be read: No such file" in refusal(tmp_path / "none.h5")
    assert "cannot be read: Is a directory" in refusal(tmp_path)
    (tmp_path / "text.h5").write_text("c: 1")
    assert "not an HDF5 file" in refusal(tmp_path / "text.h5")
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["c"] = [1, 2]
    assert "not a gr-dmimo calibration file" in refusal(tmp_path / "other.h5")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("tx_gain_db: 10", "tx_gain_db: 12", "tx_gain_db of ap1:0 10.0, testbed has 12.0; tx_gain_db of ap1:1 10.0"),
        ("rx_gain_db: 5.5", "rx_gain_db: 6", "another testbed: rx_gain_db of ap2:0 5.5, testbed has 6.0"),
        ("num_ports: 2", "num_ports: 1", "another testbed: port ap1:1 is not in the testbed"),
        ("num_ports: 2", "num_ports: 3", "another testbed: port ap1:2 of the testbed is not calibrated"),
        ("name: ap2", "name: ap3", "port ap2:0 is not in the testbed; port ap3:0 of the testbed is not calibrated"),
        ("samp_rate: 1.0e6", "samp_rate: 2e6", "another testbed: samp_rate 1000000.0, testbed has 2000000.0"),
        ("samp_rate: 1.0e6", "center_freq: 2e9", "another testbed: center_freq 3500000000.0, testbed has 2000000000.0"),
    ],
)
def test_calibration_of_another_testbed_is_refused_naming_what_differs(path, old, new, message):
    assert message in refusal(path, testbed.parse(BED.replace(old, new)))


def test_calibration_with_the_ports_in_another_order_is_refused(path):
    first, second = BED.splitlines()[3:5]
    swapped = BED.replace(first, "@").replace(second, first).replace("@", second)
    assert "ports in the order ap1:0, ap1:1, ap2:0, testbed has ap2:0, ap1:0" in refusal(path, testbed.parse(swapped))


def test_calibration_of_the_same_testbed_and_epoch_is_accepted(path):
    changed = BED.replace("ue1", "ue2") + "seed: 9\n"
    assert_same(records.load_calibration(path, testbed.parse(changed), epoch=3), make_record())
    assert "calibration of epoch 3, now it is 4: measure again" in refusal(path, testbed.parse(BED), epoch=4)
    assert "epoch 3, now it is '3'" in refusal(path, epoch="3")


def test_gains_of_a_radio_are_compared_port_by_port(path):
    radio = BED.replace("tx_gain_db: 10", "radio: {tx_gains_db: [10, 20], rx_gains_db: [3]}").replace(
        "version: 1", "version: 1\nfrontend: usrp\nusrp: {}")
    bed = testbed.parse(radio)
    record = make_record(tx_gain_db=[10.0, 20.0, 0.0], rx_gain_db=[3.0, 3.0, 5.5], configuration=testbed.to_dict(bed),
                         fingerprint=testbed.fingerprint(bed))
    records.save_calibration(path, record)
    assert_same(records.load_calibration(path, bed), record)
    other = testbed.parse(radio.replace("[10, 20]", "[10, 21]"))
    assert refusal(path, other).endswith("another testbed: tx_gain_db of ap1:1 20.0, testbed has 21.0")


WRITER = """
import sys
from gnuradio.dmimo import records
while True:
    for fill in b"ab":
        records.write_bytes(sys.argv[1], bytes([fill]) * 3_000_000)
"""


def test_killed_writer_leaves_the_old_or_the_new_file_whole(tmp_path):
    path = tmp_path / "file.bin"
    whole = {b"a" * 3_000_000, b"b" * 3_000_000}
    for trial in range(6):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, path])
        try:
            deadline = time.monotonic() + 60
            # The last one is let write a file before it is killed.
            while not list(tmp_path.glob(".*.tmp")) or (trial == 5 and not path.exists()):
                assert time.monotonic() < deadline
                time.sleep(0.001)
            time.sleep(0.003 * trial)
        finally:
            writer.send_signal(signal.SIGKILL)
            writer.wait(30)
        assert not path.exists() or path.read_bytes() in whole
        for left in tmp_path.glob(".*.tmp"):
            left.unlink()
    assert path.exists()


def test_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file.bin"
    records.write_bytes(path, b"old")

    def full_disk(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space"):
        records.write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


def test_written_file_has_the_permissions_of_any_new_file(tmp_path):
    records.write_bytes(tmp_path / "one", b"1")
    (tmp_path / "two").write_bytes(b"2")
    assert (tmp_path / "one").stat().st_mode == (tmp_path / "two").stat().st_mode


def test_json_is_sorted_and_holds_null_where_a_number_is_not_finite(tmp_path):
    value = {"b": np.array([1.0, np.nan]), "a": (1, np.float32(0.5), np.int64(3), True), "c": 1 - 2j, "d": -math.inf}
    records.write_json(tmp_path / "r.json", value)
    text = (tmp_path / "r.json").read_text()
    assert json.loads(text) == {"a": [1, 0.5, 3, True], "b": [1.0, None], "c": [1.0, -2.0], "d": None}
    assert [line[3] for line in text.splitlines() if line.startswith('  "')] == ["a", "b", "c", "d"]
    records.write_json(tmp_path / "again.json", dict(reversed(value.items())))
    assert (tmp_path / "again.json").read_text() == text
    for wrong in ({"x": object()}, {1: 2}, {"x": {3, 4}}):
        with pytest.raises(TypeError):
            records.write_json(tmp_path / "wrong.json", wrong)
    assert not (tmp_path / "wrong.json").exists()


def test_equal_figures_give_equal_png_bytes(tmp_path):
    for name in ("a.png", "b.png"):
        figure = Figure()
        figure.subplots().plot([1, 2])
        records.write_figure(tmp_path / name, figure)
    data = (tmp_path / "a.png").read_bytes()
    assert data.startswith(b"\x89PNG")
    assert data.endswith(b"IEND\xaeB`\x82")
    assert data == (tmp_path / "b.png").read_bytes()
    assert b"Matplotlib" not in data
