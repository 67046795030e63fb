# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples for radios do what their notes say, on virtual USRPs and without any radio."""

import json
import os
import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import virtual_usrp_device as virtual
import yaml
from gnuradio.dmimo import flowgraphs, records, testbed
from gnuradio.dmimo.assembly import Assembly
from test_install import PYTHON, ROOT

EXAMPLES = ROOT / "examples"
LIMIT_S = 90
LOOP_DELAY = 17
# Boards of each radio, channels of each board, UHD's names of their subdevices, and the mean of the gain settings: at
# it the chains of a virtual board have the gain 1.
RACKS = {"four_b210": (1, 2, "single", 50), "two_x310": (2, 2, "dual", 15), "one_n310": (1, 4, "single", 45),
         "array_n310": (1, 4, "single", 45)}
# cars: two networks hold its two directions apart in time; a radio has one air. predistortion: shows one block in a
# stream, no run.
WITHOUT_TWIN = {"simulated_cars", "simulated_predistortion"}


def document(name: str) -> dict:
    """A testbed file of the examples."""
    return yaml.safe_load((EXAMPLES / f"{name}.yml").read_text(encoding="utf-8"))


def on_virtual_usrps(name: str, folder: Path, options: dict | None = None, **sections) -> Path:
    """The testbed file with virtual USRPs in place of its radios; `sections` are merged into the file's."""
    boards, channels, layout, nominal_gain = RACKS[name]
    bed = document(name)
    for key, changes in sections.items():
        bed[key] |= changes
    for number, radio in enumerate(bed["usrp"]["radios"]):
        radio["args"] = virtual.arguments(num_mboards=boards, num_channels=channels, layout=layout, medium=name, seed=5,
                                          first_board=number * boards, serial=f"V{'ABCD'[number]}",
                                          nominal_gain=nominal_gain, loop_delay=LOOP_DELAY, **(options or {}))
        if layout == "single":
            radio.pop("tx_subdevs", None), radio.pop("rx_subdevs", None)
    path = folder / f"virtual_{name}.yml"
    path.write_text(yaml.safe_dump(bed, sort_keys=False))
    return path


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """Return (directory with the programs made of the flowgraphs, environment to run them in)."""
    path = subprocess.run([ROOT / "scripts" / "source-path"], capture_output=True, text=True, check=True).stdout.strip()
    environment = {**virtual.environment(), "PYTHONPATH": path, "GRC_BLOCKS_PATH": str(ROOT / "grc")}
    output = tmp_path_factory.mktemp("programs")
    command = ["/usr/bin/grcc", "-o", output, *sorted(EXAMPLES.glob("usrp_*.grc"))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return output, environment


def run(programs, name, directory, *arguments):
    """Return a finished example, run in a directory of its own."""
    output, environment = programs
    command = [PYTHON, output / f"{name}.py", *arguments]
    return subprocess.run([str(word) for word in command], cwd=directory, env=environment, capture_output=True,
                          text=True, timeout=LIMIT_S, check=False, stdin=subprocess.DEVNULL)  # fmt: skip


# -- testbed files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RACKS)
def test_testbed_file_names_radios_that_hold_all_its_ports(name):
    bed = testbed.load(EXAMPLES / f"{name}.yml")
    assert bed.frontend == "usrp"
    radios = Assembly(bed).radios()
    boards, channels, *_ = RACKS[name]
    ports = [port for radio in radios.values() for port in radio.ports]
    assert len(ports) == sum(node.num_ports for node in bed.nodes)
    assert all(port.channel < boards * channels for port in ports)
    assert len({radio.device_args for radio in radios.values()}) == len(radios)
    for radio in radios.values():
        clock_hz = float(re.search(r"master_clock_rate=([\d.e+]+)", radio.device_args)[1])
        assert clock_hz % (2 * radio.samp_rate) == 0  # an even factor: all of UHD's half-band filters
    # Both directions through one antenna: without that nothing is reciprocal. A board that sends listens at RX2 only,
    # which is joined with TX/RX where an array is to hear itself.
    for radio in radios.values():
        for node, own in radio.nodes.items():
            listens = "RX2" if (name, node) == ("array_n310", "ap1") else "TX/RX"
            assert {(port.tx_antenna, port.rx_antenna) for port in own} == {("TX/RX", listens)}


@pytest.mark.parametrize("name", RACKS)
def test_testbed_file_runs_on_the_simulated_network_as_well(name):
    bed = document(name) | {"frontend": "simulated"}
    assembly = Assembly(testbed.parse(yaml.safe_dump(bed)))
    outcome = flowgraphs.run(flowgraphs.testbed_flowgraph(assembly), timeout_s=LIMIT_S)
    assert outcome.error is None
    assert outcome.report["coherent_gain_db"] == pytest.approx(outcome.report["ideal_gain_db"], abs=0.15)
    assert outcome.report["coherent_gain_db"] > outcome.report["uncalibrated_gain_db"] + 1


# -- flowgraphs without plots -----------------------------------------------------------------------------------------


def test_every_simulated_flowgraph_has_a_twin_for_radios():
    simulated = {path.stem.removeprefix("simulated_") for path in EXAMPLES.glob("simulated_*.grc")}
    radios = {path.stem.removeprefix("usrp_") for path in EXAMPLES.glob("usrp_*.grc")}
    assert simulated - {name.removeprefix("simulated_") for name in WITHOUT_TWIN} == radios


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("usrp_*.grc")), ids=lambda path: path.stem)
def test_note_says_what_to_read_before_transmitting_and_what_has_been_run(path):
    blocks = yaml.safe_load(path.read_text(encoding="utf-8"))["blocks"]
    (note,) = [block["parameters"]["comment"].replace("\n", " ") for block in blocks if block["name"] == "note"]
    (file,) = [block["parameters"]["value"] for block in blocks if block["name"] == "testbed_file"]
    assert file.removesuffix(".yml") in RACKS
    for words in (file, "docs/hardware.md before you transmit", "Look at", "virtual USRPs only, on no radio yet"):
        assert words in note


def test_beam_sweep_calibrates_four_radios(programs, tmp_path):
    file = on_virtual_usrps("four_b210", tmp_path)
    result = run(programs, "usrp_beam_sweep", tmp_path, "--testbed-file", file)
    assert result.returncode == 0, result.stderr
    gains = json.loads((tmp_path / "gains.json").read_text())
    assert gains["coherent_gain_db"] == pytest.approx(gains["ideal_gain_db"], abs=0.02)
    assert gains["coherent_gain_db"] > gains["uncalibrated_gain_db"] + 1
    delays = dict.fromkeys(("ap1:0", "ap2:0", "ap3:0", "ue1:0"), LOOP_DELAY)
    assert f"loop delays in samples: {delays}" in result.stdout
    record = records.load_calibration(tmp_path / "calibration.h5", testbed.load(file))
    assert tuple(record.port_names) == ("ap1:0", "ap2:0", "ap3:0")
    assert record.epoch > 0


def test_beam_sweep_ends_with_the_name_of_a_radio_that_has_no_pps(programs, tmp_path):
    file = on_virtual_usrps("four_b210", tmp_path)
    bed = yaml.safe_load(file.read_text())
    bed["usrp"]["radios"][2]["args"] += ",pps_missing=0"
    file.write_text(yaml.safe_dump(bed, sort_keys=False))
    result = run(programs, "usrp_beam_sweep", tmp_path, "--testbed-file", file)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("run failed: ")
    assert "back" in result.stderr.splitlines()[-1]
    assert not (tmp_path / "gains.json").exists()


def test_beamsync_keeps_two_boards_in_phase_and_ends_by_itself(programs, tmp_path):
    file = on_virtual_usrps("two_x310", tmp_path, beamsync={"duration_s": 6})
    result = run(programs, "usrp_beamsync", tmp_path, "--testbed-file", file)
    assert result.returncode == 0, result.stderr
    phases_deg = np.fromfile(tmp_path / "phase_error.f32", np.float32)
    assert len(phases_deg) > 3
    assert abs(phases_deg[0]) > 5  # the synthesizers' own
    assert np.max(np.abs(phases_deg[1:])) < 3
    coherent, ideal, *_ = np.fromfile(tmp_path / "gains.f32", np.float32).reshape(-1, 4).T
    assert np.mean(ideal - coherent) < 0.1


def test_block_by_block_synchronisation_tells_its_corrections(programs, tmp_path):
    file = on_virtual_usrps("two_x310", tmp_path, beamsync={"duration_s": 5})
    result = run(programs, "usrp_beamsync_blocks", tmp_path, "--testbed-file", file)
    assert result.returncode == 0, result.stderr
    told = [float(value) for value in re.findall(r"frequency_hz \. (-?[\d.e-]+)", result.stdout)]
    assert len(told) > 3
    assert told == pytest.approx([0.0] * len(told), abs=0.01)  # a common reference
    assert result.stdout.splitlines()[-1].startswith("ap2 turns what it sends by ")
    assert np.fromfile(tmp_path / "corrected.c64", np.complex64).size > 10_000


def test_bidirectional_calibrates_both_sides_and_ends_by_itself(programs, tmp_path):
    file = on_virtual_usrps("one_n310", tmp_path, bidirectional={"patterns": 2})
    result = run(programs, "usrp_bidirectional", tmp_path, "--testbed-file", file)
    assert result.returncode == 0, result.stderr
    snr_db = {(where, int(ports)): [float(value) for value in values] for where, ports, *values in re.findall(
        r"SNR at (\w+) from \w+, (\d) ports: ([\d.]+) dB, ideal ([\d.]+) dB, random phases ([\d.]+) dB", result.stdout)}
    assert set(snr_db) == {("ue1", 1), ("ue1", 2), ("trp1", 1), ("trp1", 2)}
    assert all(calibrated > ideal - 0.2 for calibrated, ideal, _ in snr_db.values())
    errors_deg = np.fromfile(tmp_path / "prediction_error.f32", np.float32).reshape(-1, 2)
    assert len(errors_deg) == 4
    assert np.max(np.abs(errors_deg)) < 5
    assert len(records.load_calibration(tmp_path / "calibration.h5", testbed.load(file)).port_names) == 2
    assert (tmp_path / "calibration-ue.h5").exists()


def test_linearization_lowers_what_leaks_into_adjacent_channels(programs, tmp_path):
    compression = [-0.8, 0.4, -0.7, 0.2, -0.9, 0.5, -0.6, -0.1]
    file = on_virtual_usrps("array_n310", tmp_path, {"compression": compression})
    result = run(programs, "usrp_linearization", tmp_path, "--testbed-file", file)
    assert result.returncode == 0, result.stderr
    line = r"^(\w+): (-?[\d.]+) dB received, EVM ([\d.]+) %, adjacent channels ([\d.]+) dB down"
    found = re.findall(line, result.stdout, re.MULTILINE)
    heard = {name: [float(value) for value in values] for name, *values in found}
    assert list(heard) == ["before", "calibrated", "after"]
    power, evm, aclr = np.array([*heard.values()]).T
    assert power[1] > power[0] + 1
    assert evm[2] < evm[1] / 5  # what peaks beyond the amplifiers' reach leave
    assert aclr[2] > aclr[1] + 10
    spectra_db = np.fromfile(tmp_path / "spectrum.f32", np.float32).reshape(3, -1)
    assert spectra_db.shape == (3, 256)
    record = records.load_calibration(tmp_path / "calibration.h5", testbed.load(file))
    assert tuple(record.port_names) == tuple(f"ap1:{port}" for port in range(4))
    assert (tmp_path / "predistortion.h5").exists()


# -- flowgraphs with plots --------------------------------------------------------------------------------------------

# What a user does: starts it, waits until the plots have data, closes the window.
DRIVER = """
import importlib, sys, time
from PyQt5 import Qt
name, plot, items, testbed_file = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
application = Qt.QApplication(sys.argv[:1])
window = getattr(importlib.import_module(name), name)(testbed_file=testbed_file)
deadline = time.monotonic() + 60
def look():
    seen = getattr(window, plot).nitems_read(0)
    if seen >= items or time.monotonic() > deadline:
        print("seen", seen, window.grab().isNull())
        window.close()
        application.quit()
window.start()
window.show()
timer = Qt.QTimer()
timer.timeout.connect(look)
timer.start(50)
application.exec_()
assert getattr(window, plot).nitems_read(0) >= items
"""


@pytest.mark.parametrize(("name", "rack", "plot", "items"), [
    ("usrp_beam_sweep_qt", "four_b210", "gain_plot", 60),  # a history's worth of points comes with each product
    ("usrp_beamsync_qt", "two_x310", "gain_plot", 240),
    ("usrp_bidirectional_qt", "one_n310", "snr_plot", 2),
    ("usrp_frequency_correction", "four_b210", "power_plot", 4000),
    ("usrp_linearization_qt", "array_n310", "evm_plot", 60),  # two rounds of a history each
    ("usrp_sounding", "two_x310", "channel", 20),
])  # fmt: skip
def test_example_with_plots_shows_data_and_closes(name, rack, plot, items, programs, tmp_path):
    output, environment = programs
    environment = environment | {
        "QT_QPA_PLATFORM": "offscreen",
        "XDG_CONFIG_HOME": str(tmp_path),  # no window geometry of earlier runs
        "PYTHONPATH": os.pathsep.join([environment["PYTHONPATH"], str(output)]),
    }
    (tmp_path / "drive.py").write_text(DRIVER)
    command = [PYTHON, "drive.py", name, plot, str(items), str(on_virtual_usrps(rack, tmp_path))]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT_S,
                            check=False, stdin=subprocess.DEVNULL)  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert re.search(r"^seen \d+ False$", result.stdout, re.MULTILINE)
