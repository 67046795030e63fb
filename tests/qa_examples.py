# SPDX-License-Identifier: GPL-3.0-or-later
"""The examples do what their notes say: installed, with the system's interpreter alone, from any directory."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from gnuradio.dmimo import flowgraphs, records, testbed
from gnuradio.dmimo.assembly import Assembly, find_testbed
from gnuradio.dmimo.core.predistortion import invertible_range
from gnuradio.dmimo.simulation.amplifiers import GAN_POLYNOMIAL
from test_install import PYTHON, ROOT, installed, module_path  # noqa: F401 (a fixture)

EXAMPLES = ROOT / "examples"
LIMIT_S = 60


def run(command, directory, **environment):
    """Return a finished process, with neither this tree's modules nor a user's in sight."""
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "GRC_BLOCKS_PATH")}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=directory, env=env | environment, capture_output=True, text=True,
                          timeout=LIMIT_S, check=False, stdin=subprocess.DEVNULL)  # fmt: skip


@pytest.fixture(scope="module")
def programs(installed, tmp_path_factory):  # noqa: F811
    """Return (directory with the programs made of the installed examples, environment to run them in)."""
    prefix, _ = installed
    share = prefix / "share" / "gnuradio"
    output = tmp_path_factory.mktemp("programs")
    environment = {"PYTHONPATH": str(module_path(prefix)), "GRC_BLOCKS_PATH": str(share / "grc" / "blocks")}
    flowgraph_files = sorted((share / "examples" / "dmimo").glob("*.grc"))
    result = run(["/usr/bin/grcc", "-o", output, *flowgraph_files], "/", **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    return output, environment


def test_installed_headless_example_calibrates_from_another_directory(programs, tmp_path):
    output, environment = programs
    result = run([PYTHON, "-s", output / "simulated_beam_sweep.py"], tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    gains = json.loads((tmp_path / "gains.json").read_text())
    assert gains["coherent_gain_db"] == pytest.approx(gains["ideal_gain_db"], abs=0.1)
    assert gains["coherent_gain_db"] > max(gains["uncalibrated_gain_db"], gains["best_single_node_db"]) + 2
    bed = testbed.load(EXAMPLES / "three_panels.yml")
    record = records.load_calibration(tmp_path / "calibration.h5", bed)
    assert tuple(record.port_names) == ("ap1:0", "ap2:0", "ap3:0")
    assert record.c[0] == pytest.approx(1.0)
    assert result.stdout.startswith(f"coherent gain {gains['coherent_gain_db']:.2f} dB")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration.h5", "gains.json"]


def test_installed_headless_synchronisation_keeps_the_gain_and_ends_by_itself(programs, tmp_path):
    output, environment = programs
    result = run([PYTHON, "-s", output / "simulated_beamsync.py"], tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    phases = np.fromfile(tmp_path / "phase_error.f32", np.float32)
    assert str(len(phases)) == result.stdout.split()[0]
    # The budget is a standard deviation of 5 degrees; the first phase is what the oscillators happened to have.
    assert len(phases) > 20
    assert np.sqrt(np.mean(phases[1:] ** 2)) < 6
    coherent, ideal, _, best = np.fromfile(tmp_path / "gains.f32", np.float32).reshape(-1, 4).T
    assert np.mean(ideal - coherent) < 0.05
    assert np.mean(coherent) > np.mean(best) + 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["gains.f32", "phase_error.f32"]


def test_synchronising_only_once_loses_the_gain(programs, tmp_path):
    output, environment = programs
    text = (EXAMPLES / "two_aps_drift.yml").read_text().replace("duration_s: 60", "duration_s: 20")
    (tmp_path / "once.yml").write_text(text + "  resynchronise: false\n")
    command = [PYTHON, "-s", output / "simulated_beamsync.py", "--testbed-file", "once.yml"]
    result = run(command, tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    coherent, ideal, *_ = np.fromfile(tmp_path / "gains.f32", np.float32).reshape(-1, 4).T
    assert np.mean(ideal - coherent) > 1
    assert np.max(np.abs(np.fromfile(tmp_path / "phase_error.f32", np.float32)[1:])) > 150


def test_block_by_block_synchronisation_tells_its_corrections(programs, tmp_path):
    output, environment = programs
    result = run([PYTHON, "-s", output / "simulated_beamsync_blocks.py"], tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    told = [float(value) for value in re.findall(r"frequency_hz \. ([\d.]+)", result.stdout)]
    assert len(told) > 20
    assert told == pytest.approx([200.0] * len(told), abs=0.5)
    words = result.stdout.splitlines()[-1].split()
    assert " ".join(words[:6]) == "ap2 turns what it sends by"
    assert float(words[6]) == pytest.approx(told[-1], abs=0.001)  # printed with six digits
    assert np.fromfile(tmp_path / "corrected.c64", np.complex64).size > 1000


def test_cars_exchange_reads_the_coefficients_and_follows_them(programs, tmp_path):
    output, environment = programs
    result = run([PYTHON, "-s", output / "simulated_cars.py"], tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    *delays, read, followed = [list(map(float, re.findall(r"(?<!trp)-?\d+\.?\d*", line)))
                               for line in result.stdout.splitlines()[-4:]]  # fmt: skip
    for found_ns, true_ns in delays:
        assert found_ns == pytest.approx(true_ns, abs=1.0)
    # 96 elements of 17 to 22 dB in both directions: sqrt(v / 2 K) is 0.5 to 0.8 degrees.
    exchanges, phase_deg, gain_db = read
    assert exchanges == 20
    assert phase_deg < 2
    assert gain_db < 0.5
    held_deg, later_deg, soundings = followed
    assert held_deg > 60
    assert later_deg < 3
    assert soundings > 200


def test_installed_bidirectional_example_calibrates_both_sides_and_ends_by_itself(programs, tmp_path):
    output, environment = programs
    result = run([PYTHON, "-s", output / "simulated_bidirectional.py"], tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    bed = testbed.load(EXAMPLES / "four_trps_two_ues.yml")
    errors_deg = np.fromfile(tmp_path / "phase_error.f32", np.float32).reshape(-1, 8)
    assert len(errors_deg) == 2 * bed.bidirectional.patterns
    assert np.sqrt(np.mean(errors_deg**2)) < 4
    snr_db = {(where, int(ports)): [float(value) for value in values] for where, ports, *values in re.findall(
        r"SNR at (\w+) from \w+, (\d) ports: ([\d.]+) dB, ideal ([\d.]+) dB, random phases ([\d.]+) dB", result.stdout)}
    assert set(snr_db) == {("ue1", 1), ("ue1", 2), ("ue1", 4), ("ue1", 8), ("trp1", 1), ("trp1", 2), ("trp1", 4)}
    assert all(calibrated > ideal - 0.5 for calibrated, ideal, _ in snr_db.values())
    # Of two ports one has the other polarisation: twice as many TRPs are four times the power, less what fading takes.
    assert snr_db["ue1", 8][0] > snr_db["ue1", 4][0] + 4 > snr_db["ue1", 2][0] + 7
    assert snr_db["ue1", 8][0] > snr_db["ue1", 8][2] + 2
    record = records.load_calibration(tmp_path / "calibration.h5", bed)
    assert len(record.port_names) == 8
    names = ["calibration-ue.h5", "calibration.h5", "phase_error.f32"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_predistortion_example_lowers_the_leakage_and_ends_by_itself(programs, tmp_path):
    output, environment = programs
    program = output / "simulated_predistortion.py"
    gains_db = {}
    for back_off_db in (8, 12):
        result = run([PYTHON, "-s", program, "--back-off-db", back_off_db], tmp_path, **environment)
        assert result.returncode == 0, result.stderr
        lines = re.findall(r"predistortion: (-[\d.]+) dB in the adjacent channel, (\d+) of (\d+)", result.stdout)
        (without_db, none, _), (with_db, clipped, num) = lines
        assert int(none) == 0
        # Of Gaussian samples, exp(-limit^2) lie beyond the limit.
        limit = invertible_range(gan(back_off_db)).output_amplitude
        assert int(clipped) == pytest.approx(int(num) * np.exp(-(limit**2)), rel=0.3)
        gains_db[back_off_db] = float(without_db) - float(with_db)
    assert gains_db[12] > 15
    assert gains_db[8] < 3
    assert not list(tmp_path.iterdir())


def gan(back_off_db):
    """Return the coefficients of the GaN amplifier for samples of unit mean power."""
    return np.array(GAN_POLYNOMIAL) / GAN_POLYNOMIAL[0] * 10 ** (-back_off_db / 10 * np.arange(5))


def test_installed_linearization_example_linearises_calibrates_and_ends_by_itself(programs, tmp_path):
    output, environment = programs
    result = run([PYTHON, "-s", output / "simulated_linearization.py"], tmp_path, **environment)
    assert result.returncode == 0, result.stderr
    told = {name: [float(value) for value in values] for name, *values in re.findall(
        r"(\w+): (-?[\d.]+) dB received, EVM ([\d.]+) %, adjacent channels ([\d.]+) dB down", result.stdout)}
    power_db, evm_percent, aclr_db = zip(*(told[name] for name in ("before", "calibrated", "after")), strict=True)
    assert min(power_db[1:]) > power_db[0] + 5
    assert evm_percent[2] < evm_percent[1] / 10
    assert aclr_db[2] > max(aclr_db[:2]) + 15
    bed = testbed.load(EXAMPLES / "array_2x4.yml")
    spectra_db = np.fromfile(tmp_path / "spectrum.f32", np.float32).reshape(3, bed.slots.pilot_samples)
    # Bins from the lowest frequency up: the occupied ones are in the middle, the adjacent channels beside them.
    assert np.median(spectra_db[:, 106:128], axis=1) == pytest.approx(0, abs=0.5)
    beside = 10 * np.log10(np.mean(10 ** (spectra_db[:, 56:104] / 10), axis=1))
    assert -beside == pytest.approx(aclr_db, abs=2)
    record = records.load_calibration(tmp_path / "calibration.h5", bed)
    assert record.port_names == Assembly(bed).port_names
    assert np.all(record.trusted)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration.h5", "predistortion.h5", "spectrum.f32"]


def test_failed_run_of_the_headless_example_ends_with_an_error_and_no_gains(programs, tmp_path):
    output, environment = programs
    text = (EXAMPLES / "three_panels.yml").read_text()
    (tmp_path / "faulty.yml").write_text(text + "faults: [{kind: lost_slot, node: ap2, slot: 3, count: 500}]\n")
    command = [PYTHON, "-s", output / "simulated_beam_sweep.py", "--testbed-file", "faulty.yml"]
    result = run(command, tmp_path, **environment)
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("run failed: slot 3 (sweep) failed in 3 attempts: node ap2")
    assert [path.name for path in tmp_path.iterdir()] == ["faulty.yml"]


# What a user does: looks at the window, moves what can be moved, closes it.
DRIVER = """
import importlib, sys, time
from PyQt5 import Qt
name, minimum = sys.argv[1], 2
application = Qt.QApplication(sys.argv[:1])
window = getattr(importlib.import_module(name), name)()
deadline = time.monotonic() + 30

def progress():
    if name == "simulated_sounding":
        return window.estimator.nitems_written(0) // 500
    if name == "simulated_frequency_correction":
        return min(window.power_plot.nitems_read(0) // 400, 2 * (window.corrector.frequency_hz == 200))
    if name == "simulated_beamsync_qt":
        return window.phase_plot.nitems_read(0) // window.history
    if name == "simulated_bidirectional_qt":
        return min(window.prediction_plot.nitems_read(0) // window.history, window.snr_plot.nitems_read(0))
    if name == "simulated_linearization_qt":
        return min(window.evm_plot.nitems_read(0) // window.history, window.inverse_phase_plot.nitems_read(7) // 2)
    return window.gain_plot.nitems_read(0) // window.history

def look():
    if progress() >= minimum or time.monotonic() > deadline:
        print("seen", progress(), window.grab().isNull())
        window.close()
        application.quit()

if name == "simulated_sounding":
    window.set_phase_2(90.0)
elif name == "simulated_beamsync_qt":
    window.set_speed(20)
elif name == "simulated_frequency_correction":
    window.set_frequency_hz(200.0)  # the corrector must hear of it by message
elif name not in ("simulated_bidirectional_qt", "simulated_linearization_qt"):
    window.set_slots_per_second(2000)
window.start()
window.show()
timer = Qt.QTimer()
timer.timeout.connect(look)
timer.start(50)
application.exec_()
assert progress() >= minimum, progress()
"""


@pytest.mark.parametrize("name", ["simulated_beam_sweep_qt", "simulated_beamsync_qt", "simulated_bidirectional_qt",
                                  "simulated_frequency_correction", "simulated_linearization_qt",
                                  "simulated_sounding"])
def test_example_with_plots_shows_data_and_closes(name, programs, tmp_path):
    output, environment = programs
    environment = environment | {
        "QT_QPA_PLATFORM": "offscreen",
        "XDG_CONFIG_HOME": str(tmp_path),  # no window geometry of earlier runs
        "PYTHONPATH": os.pathsep.join([environment["PYTHONPATH"], str(output)]),
    }
    (tmp_path / "drive.py").write_text(DRIVER)
    result = run([PYTHON, "-s", "drive.py", name], tmp_path, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    assert result.stdout.splitlines()[-1].endswith("False")


def test_interrupt_stops_the_headless_example_while_it_runs(programs, tmp_path):
    output, environment = programs
    text = (EXAMPLES / "three_panels.yml").read_text()
    (tmp_path / "long.yml").write_text(text + "beam_sweep: {passes: 2000}\n")
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | environment
    command = [PYTHON, "-s", "-c", SIGNALLED, output / "simulated_beam_sweep.py", "--testbed-file", "long.yml"]
    process = subprocess.Popen([str(word) for word in command], cwd=tmp_path, env=env, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    try:
        assert process.stdout.readline() == "started\n"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "stopped before the run had finished" in errors


# Runs a program and says when its flowgraph has started, so that a signal meets it running.
SIGNALLED = """
import runpy, sys
from gnuradio import gr
start = gr.top_block.start
def start_and_tell(self, *args):
    start(self, *args)
    print("started", flush=True)
gr.top_block.start = start_and_tell
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def calibrated(name):
    """Return assembly and report of a run of an example testbed file that reaches the ideal gain."""
    assembly = Assembly.load(EXAMPLES / name)
    outcome = flowgraphs.run(flowgraphs.testbed_flowgraph(assembly), timeout_s=LIMIT_S)
    assert outcome.error is None
    assert outcome.report["coherent_gain_db"] == pytest.approx(outcome.report["ideal_gain_db"], abs=0.1)
    return assembly, outcome.report


def test_cfo_testbed_reaches_the_ideal_gain_with_offsets_of_50_hz():
    assembly, report = calibrated("three_panels_cfo.yml")
    offsets = np.array([ap.oscillator.cfo_hz for ap in assembly.testbed.aps])
    assert {-50, 50} <= set(offsets)
    # Phase noise of 0.01 Hz linewidth over 7 ms moves a frequency by about sqrt(2 pi 0.01 / 0.007) / (2 pi) = 0.5 Hz.
    np.testing.assert_allclose(report["frequency_hz"], offsets - offsets[0], atol=3.0)


def test_eight_access_points_with_blocked_pairs_reach_the_ideal_gain():
    _, report = calibrated("eight_aps_blocked.yml")
    assert report["coherent_gain_db"] > 7.0  # the best possible is 10 log10(8) = 9.0


def test_blocked_pairs_leave_the_eight_access_points_connected():
    bed = testbed.load(EXAMPLES / "eight_aps_blocked.yml")
    names = [ap.name for ap in bed.aps]
    blocked = {frozenset(pair) for pair in bed.propagation.blocked_pairs}
    assert len(blocked) == 8
    reached, border = set(), [names[0]]
    while border:
        reached.add(name := border.pop())
        border += [other for other in names if other not in reached and frozenset((name, other)) not in blocked]
    assert reached == set(names)
    assert {len(ap.panel.beams) for ap in bed.aps} == {16}


def test_testbed_file_is_found_in_the_current_directory_then_beside_the_program_then_among_examples(
    tmp_path, monkeypatch
):
    current, program = tmp_path / "current", tmp_path / "program"
    for directory in (current, program):
        directory.mkdir()
        (directory / "three_panels.yml").write_text("")
    monkeypatch.chdir(current)
    monkeypatch.setattr(sys, "argv", [str(program / "flowgraph.py")])
    assert find_testbed("three_panels.yml") == current / "three_panels.yml"
    (current / "three_panels.yml").unlink()
    assert find_testbed("three_panels.yml") == program / "three_panels.yml"
    monkeypatch.setattr(sys, "argv", ["grcc", "-o", "/tmp", str(program / "flowgraph.grc")])
    assert find_testbed("three_panels.yml") == program / "three_panels.yml"
    (program / "three_panels.yml").unlink()
    assert find_testbed("three_panels.yml") == EXAMPLES / "three_panels.yml"
    assert find_testbed(EXAMPLES / "three_panels.yml") == EXAMPLES / "three_panels.yml"
    with pytest.raises(FileNotFoundError, match=f"'none.yml': no such file in {current}, {program}, .*{EXAMPLES}"):
        find_testbed(Path("none.yml"))
