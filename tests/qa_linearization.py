# SPDX-License-Identifier: GPL-3.0-or-later
"""Arrays that linearise and calibrate themselves, through the flowgraph and the command line, and what faults do."""

import json

import numpy as np
import pmt
import pytest
from bidirectional_beds import changed
from gnuradio import dmimo, gr
from gnuradio.dmimo import flowgraphs, records, records_predistortion, testbed
from gnuradio.dmimo.assembly import Assembly
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.core import metrics
from qa_apps import dmimo as command
from wired_nodes import wire_nodes

LIMIT_S = 60

# Third order with an own curve in each port; no terminal listens.
SMALL = """
version: 1
seed: 1
samp_rate: 1.0e+6
nodes:
  - {name: ap1, num_ports: 6, array: {rows: 2, columns: 3},
     hardware: {gain_std_db: 1, amplifier: {compression: [-0.03, 0.02], spread: 0.3}}}
  - {name: ue1, kind: ue}
propagation: {coupling: {perturbation_db: -10}}
noise: {snr_db: 50}
slots: {slot_samples: 400, pilot_samples: 128, num_subcarriers: 36, num_subbands: 1}
mutual_coupling: {num_pilots: 100}
"""
GAN = "amplifier: {kind: gan, back_off_db: 12, drive_std_db: 0.5, spread: 0.1}"
HEARD = f"""
version: 1
seed: 1
samp_rate: 1.0e+6
nodes:
  - {{name: ap1, num_ports: 4, array: {{rows: 2, columns: 2}}, hardware: {{gain_std_db: 1, {GAN}}}}}
  - {{name: ue1, kind: ue}}
propagation: {{coupling: {{perturbation_db: -10}}}}
noise: {{snr_db: 60}}
slots: {{slot_samples: 1024, pilot_samples: 256, num_subcarriers: 48, num_subbands: 1}}
verification: {{repeats: 2, random_starts: 16}}
mutual_coupling: {{order: 9, num_pilots: 400}}
linearity: {{repeats: 16}}
"""
TWO = [("num_ports: 4, array: {rows: 2, columns: 2}", "num_ports: 2, array: {rows: 1, columns: 2}"),
       ("  - {name: ue1", "  - {name: ap2, num_ports: 3, array: {rows: 1, columns: 3}, oscillator: {cfo_hz: 20},\n"
        "     hardware: {gain_std_db: 1, amplifier: {compression: [-0.02, 0.02], spread: 0.2}}}\n  - {name: ue1")]
SYNC = """
version: 1
seed: 1
samp_rate: 1.0e+6
node_defaults:
  oscillator: {linewidth_hz: 1.0e-5, drift_hz: 0.05, drift_period_s: 100}
  hardware: {gain_std_db: 1, amplifier: {compression: [-0.03, 0.03], spread: 0.3}}
nodes:
  - {name: ap1, num_ports: 6, array: {rows: 2, columns: 3}, oscillator: {cfo_hz: 40}}
  - {name: ap2, num_ports: 4, array: {rows: 2, columns: 2}, oscillator: {cfo_hz: -60}}
  - {name: ue1, kind: ue, oscillator: {cfo_hz: 25}, hardware: {amplifier: null}}
propagation: {coupling: {perturbation_db: -10}}
noise: {snr_db: 55}
slots: {slot_samples: 512, prefix_samples: 16, pilot_samples: 32, num_subcarriers: 24, num_subbands: 6}
verification: {uplink_repeats: 2, repeats: 2, random_starts: 32}
mutual_coupling: {num_pilots: 300}
beamsync: {sync_samples: 100, budget_deg: 5, linewidth_hz: 1.0e-5, drift_hz: 0.05, drift_period_s: 100, watches: 2}
"""


def play(*changes, text=SMALL, protocol="linearize", calibration_file=""):
    """Outcome of a run through the flowgraph."""
    assembly = Assembly(changed(text, *changes), protocol=protocol)
    return flowgraphs.run(flowgraphs.testbed_flowgraph(assembly, str(calibration_file)), timeout_s=LIMIT_S)


def failing(node, port):
    """Change that takes a port away from the first slot on."""
    return "slots:", f"faults: [{{kind: dead_port, node: {node}, port: {port}}}]\nslots:"


# -- estimates --------------------------------------------------------------------------------------------------------


def test_amplifiers_and_calibration_have_the_predicted_deviations():
    kappa, phase = [], []
    for seed in range(24):
        outcome = play(("seed: 1", f"seed: {seed}"))
        assert outcome.error is None
        section, array = outcome.report["amplifiers"], outcome.report["access_points"]["ap1"]
        errors = np.abs(section["coefficients"] - section["true_coefficients"])[:, 1]
        kappa.append(np.mean(errors**2 / section["predicted_std"][:, 0] ** 2))
        std = np.radians(array["predicted_phase_std_deg"])
        hub = int(np.argmin(std))  # which the deviations count from
        keep = np.arange(6) != hub
        ratio = array["c"] / array["c_true"]
        phase.append(np.mean(np.angle(ratio / ratio[hub])[keep] ** 2) / np.mean(std[keep] ** 2))
    for found in (kappa, phase):
        mean, error = metrics.mean_and_standard_error(found)
        assert abs(mean - 1) < 4 * error, (mean, error)
        assert error < 0.25


@pytest.fixture(scope="module")
def heard():
    """Outcomes of runs that a terminal listens to."""
    return [play(("seed: 1", f"seed: {seed}"), text=HEARD) for seed in (1, 2, 3)]


def test_predistortion_cleans_the_adjacent_channels(heard):
    for outcome in heard:
        assert outcome.error is None
        found = outcome.report["linearity"]["access_points"]["ap1"]
        assert found["after"]["aclr_db"] > found["calibrated"]["aclr_db"] + 15
        assert found["after"]["evm_db"] < found["calibrated"]["evm_db"] - 15
        # Calibration alone cannot: amplifiers distort what they get, whatever its phase.
        assert abs(found["calibrated"]["aclr_db"] - found["before"]["aclr_db"]) < 3


def test_calibration_brings_the_power_with_raw_amplifiers_and_with_linear_ones(heard):
    for outcome in heard:
        report = outcome.report
        found = report["linearity"]["access_points"]["ap1"]
        assert report["coherent_gain_db"] == pytest.approx(report["ideal_gain_db"], abs=0.02)
        # Full power of each of four ports: at most 6.02 dB, with equal channels; compression takes some of it.
        assert 4.5 < found["calibrated"]["coherent_gain_db"] < found["after"]["coherent_gain_db"] < 6.03
        assert found["before"]["coherent_gain_db"] < found["calibrated"]["coherent_gain_db"] - 2


def test_report_has_what_was_found_and_how_well(heard, tmp_path):
    records.write_json(tmp_path / "report.json", heard[0].report)
    report = json.loads((tmp_path / "report.json").read_text())
    ports = [f"ap1:{port}" for port in range(4)]
    section = report["amplifiers"]
    assert section["ports"] == ports
    assert (section["order"], section["memory_depth"]) == (9, 1)
    for key in ("coefficients", "predicted_std", "true_coefficients"):
        assert len(section[key]) == 4, key
    for key in ("reach", "distortion_without_db", "distortion_with_db", "mismatch_db", "clipped_share", "num_receivers",
                "true_distortion_without_db", "true_distortion_with_db"):
        assert len(section[key]) == 4, key
    assert set(section["flags"]) == {"refused", "mismatch_limited", "receivers_disagree", "unexplained", "saturated",
                                     "unheard"}
    assert max(section["true_distortion_with_db"]) < min(section["true_distortion_without_db"]) - 20
    linearity = report["linearity"]
    assert len(linearity["frequencies_hz"]) == 256
    assert list(linearity["access_points"]["ap1"]) == sorted(("before", "calibrated", "after"))
    for one in linearity["access_points"]["ap1"].values():
        assert {"power_db", "coherent_gain_db", "evm_db", "evm_percent", "aclr_db", "aclr_lower_db", "aclr_upper_db",
                "evm_std_db", "aclr_std_db", "noise_db", "spectrum_db", "clips"} <= set(one)
        assert len(one["spectrum_db"]) == 256
    assert report["access_points"]["ap1"]["excluded"] == report["doubts"] == []


def test_access_points_of_unequal_size_are_linearised_and_calibrated_each_by_itself(tmp_path):
    outcome = play(*TWO, text=HEARD, calibration_file=tmp_path / "calibration.h5")
    assert outcome.error is None
    report, bed = outcome.report, changed(HEARD, *TWO)
    assert report["amplifiers"]["ports"] == ["ap1:0", "ap1:1", "ap2:0", "ap2:1", "ap2:2"]
    assert report["amplifiers"]["flags"]["refused"] == []
    errors = np.abs(report["amplifiers"]["coefficients"] - report["amplifiers"]["true_coefficients"])[2:, 1]
    assert np.all(errors < 4 * report["amplifiers"]["predicted_std"][2:, 0])  # the third-order ones, of higher ports
    for ap, num_ports in (("ap1", 2), ("ap2", 3)):
        array = report["access_points"][ap]
        assert array["ports"] == [f"{ap}:{port}" for port in range(num_ports)]
        assert array["c"][array["ports"].index(array["reference"])] == 1
        assert array["alignment_error"] < 1e-5
        gains = array["verification"]
        assert gains["coherent_gain_db"] == pytest.approx(gains["ideal_gain_db"], abs=0.02)
        found = report["linearity"]["access_points"][ap]
        assert found["after"]["aclr_db"] > found["calibrated"]["aclr_db"] + 8
        record = records.load_calibration(tmp_path / f"calibration-{ap}.h5", bed)
        np.testing.assert_array_equal(record.c, array["c"])
        assert list(record.port_names) == array["ports"]
        with pytest.raises(records.RecordError, match="of another testbed: port ap1:2 of the testbed is not calibrated"
                           if ap == "ap1" else "port ap2:0 is not in the testbed"):
            records.load_calibration(tmp_path / f"calibration-{ap}.h5", changed(HEARD))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["calibration-ap1.h5", "calibration-ap2.h5",
                                                                "predistortion.h5"]


# -- blocks that a user wires -----------------------------------------------------------------------------------------


def overheard(block):
    """What a block publishes for plots from now on, as a list that grows."""
    kept, publish = [], block.message_port_pub

    def keep(port, message):
        if pmt.symbol_to_string(port) == "plots":
            kept.append(message)
        publish(port, message)

    block.message_port_pub = keep
    return kept


class wired(gr.top_block):
    """A run whose nodes are wired from role, transmitter and receiver."""

    def __init__(self, assembly):
        gr.top_block.__init__(self)
        self.network = assembly.network()
        self.scheduler = dmimo.slot_scheduler(assembly.schedule)
        self.air = dmimo.simulated_network(self.network)
        self.linearizer, self.monitor = dmimo.linearizer(assembly), dmimo.linearity_monitor(assembly)
        self.parts = wire_nodes(self, assembly, self.network, dmimo.mutual_coupling_role,
                                (self.linearizer, self.monitor))


def test_blocks_that_are_wired_by_hand_do_what_nodes_do_and_say_what_to_plot(heard):
    flowgraph = wired(Assembly(changed(HEARD), protocol="linearize"))
    plots = [overheard(block) for block in (flowgraph.linearizer, flowgraph.monitor)]
    flowgraph.run()  # ends by itself
    assert flowgraph.scheduler.error is None
    report, found = heard[0].report, flowgraph.monitor.report["access_points"]["ap1"]
    np.testing.assert_array_equal(flowgraph.linearizer.calibrations["ap1"].c, report["access_points"]["ap1"]["c"])
    for name, one in report["linearity"]["access_points"]["ap1"].items():
        assert found[name]["spectrum_db"] == one["spectrum_db"], name
        assert found[name]["clips"] == one["clips"]
    assert [[messages.kind(message) for message in one] for one in plots] == [["product", "end"]] * 2
    curves, heard_of = (messages.product(one[0]).values for one in plots)
    assert curves["gain_db"].shape == curves["predistorter_phase_rad"].shape == (4, curves["amplitude_db"].size)
    assert heard_of["ap1_spectrum_db"].shape == (3, 256)
    rows = [report["linearity"]["access_points"]["ap1"][name] for name in ("before", "calibrated", "after")]
    for key in ("evm_db", "aclr_db", "power_db"):
        assert heard_of[f"ap1_{key}"].tolist() == [row[key] for row in rows]


def test_blocks_refuse_runs_that_are_not_theirs():
    sweep = Assembly(changed(HEARD, *TWO), protocol="sweep")
    dmimo.linearizer(sweep)  # linearises first, and then sweeps
    for block, arguments in ((dmimo.linearity_monitor, {}), (dmimo.mutual_coupling_role, {"name": "ap1"})):
        with pytest.raises(ValueError, match=r"assembly: .*run to.* sweep"):
            block(assembly=sweep, **arguments)
    with pytest.raises(ValueError, match="assembly: a run to sync of testbed '' has no collector of mutual coupling"):
        dmimo.linearizer(Assembly(changed(SYNC), protocol="sync"))
    with pytest.raises(ValueError, match="assembly: a run to linearize of testbed '' measures no access point"):
        dmimo.linearity_monitor(Assembly(changed(SMALL), protocol="linearize"))


# -- synchronised access points ---------------------------------------------------------------------------------------


def without_linearising(text):
    """The same testbed whose ports sound one after another instead, with raw amplifiers."""
    return "".join(line for line in text.splitlines(keepends=True) if not line.startswith("mutual_coupling"))


def test_a_synchronised_run_linearises_first_and_is_calibrated_better_for_it(tmp_path):
    (tmp_path / "bed.yml").write_text(SYNC)
    done = command("calibrate", "bed.yml", "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["amplifiers"]["flags"]["refused"] == []
    assert len(report["amplifiers"]["ports"]) == 10
    assert report["coherent_gain_db"] == pytest.approx(report["ideal_gain_db"], abs=0.02)
    raw = play(text=without_linearising(SYNC), protocol=None).report
    assert "amplifiers" not in raw
    # Each port's AM/PM at the amplitude of the pilots is in c.
    assert raw["phase_error_deg"] > 0.3
    assert report["phase_error_deg"] < raw["phase_error_deg"] / 8


def test_synchronising_again_and_again_linearises_at_the_start(tmp_path):
    (tmp_path / "bed.yml").write_text(SYNC)
    done = command("sync", "bed.yml", "--duration", 2, "--output", "out", "--record", "taken", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert command("replay", "taken", "--output", "again", cwd=tmp_path).returncode == 0
    for name in ("calibration-ap1.h5", "calibration-ap2.h5", "predistortion.h5", "report.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name
    record = records_predistortion.load_predistortion(tmp_path / "out" / "predistortion.h5",
                                                      testbed.load(tmp_path / "bed.yml"))
    assert not record.refused.any()
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["synchronisations"] > 2
    assert report["amplifiers"]["flags"]["refused"] == []
    assert report["coherent_gain_db"] > report["ideal_gain_db"] - 0.4  # the budget of 5 degrees, and oscillators
    assert report["coherent_gain_db"] > report["best_single_node_db"] + 2


# -- command line and recordings --------------------------------------------------------------------------------------


def test_recorded_run_is_replayed_bit_for_bit(tmp_path):
    bed = HEARD.replace("repeats: 16", "repeats: 4, power_db: 4")  # so much that samples are clipped
    (tmp_path / "bed.yml").write_text(bed)
    done = command("linearize", "bed.yml", "--output", "out", "--record", "taken", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for words in ("Amplifiers, order 9", "Joint transmission", "ap1:3"):
        assert words in done.stdout
    files = {path.name for path in (tmp_path / "out").iterdir()}
    assert files >= {"report.json", "calibration.h5", "predistortion.h5", "amplifiers.png", "spectrum.png"}
    again = command("replay", "taken", "--output", "again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    told = json.loads((tmp_path / "out" / "report.json").read_text())["linearity"]["access_points"]["ap1"]
    assert told["after"]["clips"] > 0
    words = again.stdout.split(" products are those of the recorded run, bit for bit")[0].split()
    assert words[-3] == words[-1] != "0"
    for name in ("report.json", "calibration.h5", "predistortion.h5"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_a_sweep_that_is_linearised_first_leaves_the_same_files_when_it_is_replayed(tmp_path):
    bed = SYNC[: SYNC.index("beamsync:")].replace("slot_samples: 512", "slot_samples: 1024")
    (tmp_path / "bed.yml").write_text(bed)
    done = command("calibrate", "bed.yml", "--output", "out", "--record", "taken", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    names = ["calibration.h5", "predistortion.h5"]
    assert sorted(path.name for path in (tmp_path / "out").glob("*.h5")) == names
    again = command("replay", "taken", "--output", "again", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    for name in names:
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "again" / name).read_bytes(), name


def test_couplings_below_the_noise_end_the_run_with_a_sentence(tmp_path):
    (tmp_path / "bed.yml").write_text(SMALL.replace("snr_db: 50", "snr_db: -20"))
    done = command("linearize", "bed.yml", "--output", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr == ("run failed: phase coupling: not trusted: node ap1: no two of its ports hear each other "
                           "well enough to be calibrated\n")
    # Amplifiers were not found either, and predistortion.h5 says so of every port.
    assert "calibration.h5" not in {path.name for path in (tmp_path / "out").iterdir()}


# -- faults -----------------------------------------------------------------------------------------------------------


def test_a_dead_port_is_named_and_costs_itself_only():
    outcome = play(failing("ap1", 2), text=HEARD)
    assert outcome.error is None
    report = outcome.report
    array, flags = report["access_points"]["ap1"], report["amplifiers"]["flags"]
    assert array["excluded"] == report["amplifiers"]["deaf"] == flags["refused"] == flags["unheard"] == ["ap1:2"]
    assert report["doubts"][0].endswith("stay silent in joint transmissions: ap1:2")
    assert np.isnan(array["c"][2])
    assert array["alignment_error"] < 1e-5
    found = report["linearity"]["access_points"]["ap1"]
    assert found["after"]["aclr_db"] > found["calibrated"]["aclr_db"] + 15
    assert report["coherent_gain_db"] == pytest.approx(report["ideal_gain_db"], abs=0.02)


def converters(full_scale):
    return "spread: 0.3}", f"spread: 0.3}}, adc: {{bits: 14, full_scale: {full_scale}}}"


@pytest.mark.parametrize("calibration", ["all_pairs", "single_stage"])
def test_receivers_that_swept_pilots_saturate_are_named_and_left_out(calibration):
    """Neighbours drive the receivers into their limit, ports further away do not."""
    outcome = play(converters(0.33), ("num_pilots: 100", f"num_pilots: 100, calibration: {calibration}"))
    assert outcome.error is None
    section, array = outcome.report["amplifiers"], outcome.report["access_points"]["ap1"]
    assert 0 < len(section["flags"]["saturated"]) < 6
    assert 0 < min(section["num_receivers"]) < 5
    errors = np.abs(section["coefficients"] - section["true_coefficients"])[:, 1]
    assert np.all(errors < 4 * section["predicted_std"][:, 0])
    assert array["excluded"] == []
    assert array["alignment_error"] < 2e-5


def test_receivers_that_everything_saturates_end_the_run_and_are_named():
    outcome = play(converters(0.05))
    assert outcome.error.endswith("no two of its ports hear each other well enough to be calibrated; the receivers "
                                  "clip on 30 links")
    assert outcome.report["amplifiers"]["flags"]["saturated"] == [f"ap1:{port}" for port in range(6)]
