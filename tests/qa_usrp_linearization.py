# SPDX-License-Identifier: GPL-3.0-or-later
"""Arrays of virtual USRPs linearise and calibrate themselves; what is true stands in the log of the devices."""

import json
import re
import subprocess

import numpy as np
import pytest
import virtual_usrp_device as virtual
from gnuradio.dmimo import flowgraphs, testbed
from gnuradio.dmimo.assembly import Assembly
from test_install import PYTHON, ROOT
from virtual_usrp_graph import true_gains

NOISE_DB = -70  # some 34 dB below what a port hears of another one's samples of unit power
PORTS = 4  # of the array, on two boards; the user terminal is on a radio of its own
COMPRESSION = [-0.5 + 0.2j, -0.4 + 0.1j, -0.6 + 0.3j, -0.3 - 0.1j]  # over full scale
LOOP_DELAY = 40  # samples
DRIVE_DB = -3  # of the gain setting, below the nominal one
AMPLITUDE = 0.22  # of samples of unit power, over full scale

ARRAY = """\
version: 1
frontend: usrp
center_freq: 2.4e+9
usrp: {tx_amplitude: 0.22, radios: [{name: array, args: FIRST}, {name: desk, args: SECOND}]}
node_defaults: {radio: {tx_gains_db: [7], rx_gains_db: [10]}}
nodes:
  - {name: ap1, num_ports: 4, radio: {name: array}}
  - {name: ue1, kind: ue, radio: {name: desk}}
slots:
  {slot_samples: 1280, lead_samples: 32, prefix_samples: 32, pilot_samples: 256, num_subcarriers: 48, num_subbands: 1,
   watchdog_s: 20}
mutual_coupling: {num_pilots: 100, peak_db: 11, hold_samples: 8, guard_samples: 2, repeats: 2}
linearity: {repeats: 4}
verification: {repeats: 2, random_starts: 8}
"""
TWO_APS = """\
  - {name: ap1, num_ports: 2, radio: {name: array, channels: [0, 1]}}
  - {name: ap2, num_ports: 2, radio: {name: array, channels: [2, 3]}}
"""
BEAMSYNC = (re.sub(r"  - \{name: ap1.*\n", TWO_APS, ARRAY).replace("linearity: {repeats: 4}\n", "") +
            "beamsync: {sync_samples: 128, linewidth_hz: 1.0e-5, drift_hz: 0.01}\n")


@pytest.fixture
def log(tmp_path):
    """File for what the devices log, which nobody has written yet."""
    return tmp_path / "log.json"


def on_radios(text, log, **options):
    """Testbed file with virtual USRPs of one medium."""
    options = {"log": log, "seed": 5, "medium": log.parent.name, "nominal_gain": 10, "noise_db": NOISE_DB,
               "loop_delay": LOOP_DELAY, "compression": [part for k in COMPRESSION for part in (k.real, k.imag)],
               **options}
    desk = {key: value for key, value in options.items() if key != "compression"} | {"loop_delay": LOOP_DELAY}
    virtual.use()
    return text.replace("FIRST", f'"{virtual.arguments(num_mboards=2, **options)}"').replace(
        "SECOND", f'"{virtual.arguments(first_board=2, serial="W", **desk)}"')


def run(text):
    """Outcome of a run."""
    return flowgraphs.run(flowgraphs.testbed_flowgraph(Assembly(testbed.parse(text))), timeout_s=60)


def changed(text, *changes):
    """Text with each "old -> new" replaced, which must be there."""
    for old, new in (change.split(" -> ") for change in changes):
        assert old in text
        text = text.replace(old, new)
    return text


def true_kappa(log):
    """Coefficients of |x|^2 x for samples x of unit power, from the device's log."""
    logged = {entry["port"]: complex(*entry["compression"]) for entry in virtual.read_log(log, "port")}
    drive = AMPLITUDE * 10 ** (DRIVE_DB / 20)
    return drive**2 * np.array([logged[port] for port in range(PORTS)])


def amplifier_deviations(coefficients, predicted_std, log):
    """Errors of the coefficients (ports, 2) in predicted deviations."""
    return np.abs(coefficients[:, 1] - true_kappa(log)) / np.array(predicted_std)[:, 0]


def calibration_deviations(c, std_rad, log, ports=slice(0, PORTS)):
    """Errors of log c in predicted deviations, real and imaginary parts; the port that is known best left out."""
    gains = true_gains(log)[ports, ports]
    best = int(np.argmin(std_rad))
    ratio = c / (gains[best] / gains[:, best])
    others = np.arange(len(ratio)) != best
    errors = np.log(ratio[others] / ratio[best])
    std = np.hypot(std_rad[others], std_rad[best])
    return np.abs(errors.real) / std, np.abs(errors.imag) / std


def complex_of(pairs):
    return np.array([complex(*pair) for pair in pairs])


def test_the_command_finds_the_devices_amplifiers_and_gains(log, tmp_path):
    file, output = tmp_path / "array.yml", tmp_path / "results"
    file.write_text(on_radios(ARRAY, log))
    command = [PYTHON, ROOT / "apps" / "dmimo", "linearize", file, "--output", output]
    done = subprocess.run([str(word) for word in command], env=virtual.environment(), capture_output=True, text=True,
                          timeout=90, check=False, stdin=subprocess.DEVNULL)  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((output / "report.json").read_text())
    assert report["loop_delays_samples"] == {"ap1": [LOOP_DELAY] * PORTS, "ue1": [LOOP_DELAY]}

    amplifiers = report["amplifiers"]
    assert not any(amplifiers["flags"].values())
    assert np.max(amplifiers["predicted_std"]) < 1e-3
    found = np.array([complex_of(row) for row in amplifiers["coefficients"]])
    assert np.max(amplifier_deviations(found, amplifiers["predicted_std"], log)) < 4

    array = report["access_points"]["ap1"]
    std = np.radians(array["predicted_phase_std_deg"])
    assert np.all(std < np.radians(0.2))
    assert np.max(calibration_deviations(complex_of(array["c"]), std, log)) < 5

    before, calibrated, after = (report["linearity"]["access_points"]["ap1"][name]
                                 for name in ("before", "calibrated", "after"))
    assert calibrated["coherent_gain_db"] > before["coherent_gain_db"] + 3
    assert after["evm_at_most_db"] < calibrated["evm_db"] - 20
    assert after["aclr_at_least_db"] > calibrated["aclr_db"] + 15
    assert array["verification"]["ideal_gain_db"] - array["verification"]["coherent_gain_db"] < 0.02


@pytest.mark.parametrize(("hold", "guard", "slot_samples"), [(4, 1, 700), (16, 4, 1900)])
def test_held_pilots_bridge_loops_that_differ_by_twice_the_guard(hold, guard, slot_samples, log):
    text = changed(ARRAY, f"hold_samples: 8, guard_samples: 2 -> hold_samples: {hold}, guard_samples: {guard}",
                   f"slot_samples: 1280 -> slot_samples: {slot_samples}", "linearity: {repeats: 4}\n -> ")
    outcome = run(on_radios(text, log, loop_delay=[40, 40 + 2 * guard, 41, 39 + guard]))
    assert outcome.error is None
    section, array = outcome.report["amplifiers"], outcome.report["access_points"]["ap1"]
    assert np.max(amplifier_deviations(section["coefficients"], section["predicted_std"], log)) < 4
    std = np.radians(array["predicted_phase_std_deg"])
    assert np.max(calibration_deviations(array["c"], std, log)) < 5


def test_ports_whose_loops_differ_too_much_are_named(log):
    outcome = run(on_radios(ARRAY, log, loop_delay=[40, 40, 40, 52]))
    assert re.search(r"node ap1: pilots of port (3 arrive 6 samples late|[012] arrive 6 samples early) or more at port "
                     r"\d: guard_samples = 2 must be at least 6", outcome.error)
    assert "linearity" not in outcome.report


def test_linear_amplifiers_are_left_as_they_are(log):
    outcome = run(on_radios(changed(ARRAY, "linearity: {repeats: 4}\n -> "), log, compression="0:0"))
    assert outcome.error is None
    section, array = outcome.report["amplifiers"], outcome.report["access_points"]["ap1"]
    assert np.max(amplifier_deviations(section["coefficients"], section["predicted_std"], log)) < 4
    assert section["flags"]["refused"] == section["ports"]
    std = np.radians(array["predicted_phase_std_deg"])
    assert np.max(calibration_deviations(array["c"], std, log)) < 5


def test_pilots_beyond_full_scale_are_refused_before_anything_is_sent(log):
    text = on_radios(ARRAY, log)
    testbed.parse(changed(text, "tx_amplitude: 0.22 -> tx_amplitude: 0.281"))  # 11 dB below 1 are 0.2818
    with pytest.raises(testbed.TestbedError, match=r"peak_db: value 11: .* at most 10.97 with usrp.tx_amplitude"):
        testbed.parse(changed(text, "tx_amplitude: 0.22 -> tx_amplitude: 0.2825"))
    assert not log.exists()  # no device was opened


def test_data_beyond_full_scale_end_the_run_before_they_are_sent(log):
    outcome = run(on_radios(changed(ARRAY, "linearity: { -> linearity: {power_db: 6, "), log))
    words = r"node ap1, slot (\d+) \(linearity\): tx_amplitude = 0.22 makes a peak of 1\.\d+, must be at most 1"
    slot = int(re.search(words, outcome.error)[1])
    bursts = [entry for entry in virtual.read_log(log, "burst") if (entry["board"], entry["channel"]) == (0, 0)]
    assert 0 < len(bursts) <= slot + 2  # every slot before it at most, of the array's or the terminal's first port


def test_a_saturated_receiver_is_flagged_by_the_ports_it_hears_and_left_out(log, tmp_path):
    rng = np.random.default_rng(3)
    lines = []
    for rx in range(PORTS + 2):
        for tx in range(rx + 1):
            h = (4 if (rx, tx) == (2, 1) else 0.1) * np.exp(2j * np.pi * rng.uniform())
            lines += [f"{i} {j} {h.real} {h.imag}" for i, j in {(rx, tx), (tx, rx)}]
    (tmp_path / "coupling").write_text("\n".join(lines))
    text = changed(ARRAY, "linearity: {repeats: 4}\n -> ")
    outcome = run(on_radios(text, log, coupling=tmp_path / "coupling", coupling_db=0))
    assert outcome.error is None
    section, array = outcome.report["amplifiers"], outcome.report["access_points"]["ap1"]
    assert section["flags"]["saturated"] == ["ap1:1", "ap1:2"]
    assert list(section["num_receivers"]) == [3, 2, 2, 3]
    # The others have heard them.
    assert np.max(amplifier_deviations(section["coefficients"], section["predicted_std"], log)) < 4
    std = np.radians(array["predicted_phase_std_deg"])
    assert np.max(calibration_deviations(array["c"], std, log)) < 5


def test_beamsync_calibrates_arrays_that_have_linearised_themselves(log):
    outcome = run(on_radios(BEAMSYNC, log))
    assert outcome.error is None
    section = outcome.report["amplifiers"]
    assert np.max(amplifier_deviations(section["coefficients"], section["predicted_std"], log)) < 4
    c = outcome.report["c"]
    std = np.radians(outcome.report["predicted_phase_std_deg"])
    for ports in (slice(0, 2), slice(2, 4)):  # between the boards there is what the synchronisation has turned
        assert np.max(calibration_deviations(c[ports], std[ports], log, ports)) < 5
    assert outcome.report["ideal_gain_db"] - outcome.report["coherent_gain_db"] < 0.02
    assert outcome.report["coherent_gain_db"] > outcome.report["uncalibrated_gain_db"] + 1
