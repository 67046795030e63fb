# SPDX-License-Identifier: GPL-3.0-or-later
"""Whole runs through the flowgraph: samples, messages, faults."""

import json

import numpy as np
import pytest
from gnuradio.dmimo import flowgraphs, records, testbed
from gnuradio.dmimo.assembly import Assembly

BASE = """
version: 1
seed: {seed}
node_defaults:
  panel: {{num_antennas: 8, beams: [0, 3]}}
  hardware: {{gain_std_db: 1.0}}
  oscillator: {{linewidth_hz: {linewidth}}}
nodes:
  - {{name: ap1, oscillator: {{cfo_hz: {cfo}}}}}
  - {{name: ap2, position_m: [40, 0, 4], oscillator: {{cfo_hz: -{cfo}}}}}
  - {{name: ap3, position_m: [20, 30, 4], num_ports: {ports}}}
  - {{name: ue1, kind: ue, position_m: [18, 12, 1], panel: {{num_antennas: 1, beams: [0]}}}}
noise: {{snr_db: {snr}}}
slots: {{slot_samples: {slot}, window: {window}, watchdog_s: {watchdog}}}
verification: {{uplink_repeats: 4, repeats: 4, random_starts: 16}}
faults: {faults}
"""


def parameters(seed=1, snr=20, cfo=0, linewidth=0, ports=1, slot=256, window=16, faults="[]", watchdog=None):
    # A busy machine may be silent for longer than the runs with faults should take.
    watchdog = watchdog or (20.0 if faults == "[]" else 0.6)
    return locals()


def run(max_noutput_items=None, **changes):
    assembly = Assembly(testbed.parse(BASE.format(**parameters(**changes))))
    flowgraph = flowgraphs.testbed_flowgraph(assembly)
    if max_noutput_items is not None:
        start = flowgraph.start
        flowgraph.start = lambda: start(max_noutput_items)
    return flowgraphs.run(flowgraph, timeout_s=60)


def encoded(outcome, tmp_path, name):
    records.write_json(tmp_path / name, outcome.report)
    return (tmp_path / name).read_bytes()


@pytest.mark.parametrize("ports", [1, 2])
def test_run_without_noise_recovers_c_to_the_precision_of_its_samples(ports):
    outcome = run(snr="null", ports=ports, slot=256 if ports == 1 else 512)
    assert outcome.error is None
    c, truth = np.asarray(outcome.report["c"]), np.asarray(outcome.report["c_true"])
    assert np.max(np.abs(c / truth - 1)) < 1e-5
    assert outcome.report["coherent_gain_db"] == pytest.approx(outcome.report["ideal_gain_db"], abs=0.01)


@pytest.mark.parametrize("cfo", [0, 50])
def test_coherent_gain_lies_within_a_tenth_of_a_decibel_of_the_ideal_at_20_db_per_sample(cfo):
    for seed in range(1, 6):
        report = run(seed=seed, cfo=cfo, linewidth=0.01).report
        assert report["ideal_gain_db"] - report["coherent_gain_db"] == pytest.approx(0.0, abs=0.1)


def test_calibration_through_samples_agrees_with_its_predicted_deviation():
    errors = []
    for seed in range(1, 21):
        outcome = run(seed=seed, cfo=20)
        ratio = np.asarray(outcome.report["c"]) / np.asarray(outcome.report["c_true"])
        errors.append(np.degrees(np.angle(ratio[1:])) / np.asarray(outcome.report["predicted_phase_std_deg"])[1:])
    # 40 normalised errors, two by two correlated: their mean square is 1 with standard error at most sqrt(2 / 20).
    assert abs(np.mean(np.square(errors)) - 1) < 3 * np.sqrt(2 / 20)


def changed(old, new, **options):
    """Outcome of the base testbed with a piece of its text replaced."""
    text = BASE.format(**parameters(**options))
    assert old in text
    assembly = Assembly(testbed.parse(text.replace(old, new)))
    return flowgraphs.run(flowgraphs.testbed_flowgraph(assembly), timeout_s=60)


def test_clock_offsets_loop_delays_and_multipath_cost_no_gain():
    multipath = "propagation: {num_taps: 4, delay_spread_s: 1.0e-6}\nfaults: ["
    report = changed("faults: [", multipath, snr=30).report
    assert report["ideal_gain_db"] - report["coherent_gain_db"] == pytest.approx(0.0, abs=0.1)
    outcome = changed("{name: ap2,", "{name: ap2, clock: {offset_samples: 5, loop_delay_samples: 0.7},", snr=30)
    assert outcome.report["delay_s"][1] == pytest.approx(10.7e-6, abs=2e-8)  # twice the offset, once the loop
    assert outcome.report["ideal_gain_db"] - outcome.report["coherent_gain_db"] == pytest.approx(0.0, abs=0.1)


def test_sample_clock_that_follows_the_carrier_costs_no_gain():
    outcome = changed("{name: ap2,", "{name: ap2, clock: {offset_samples: 2, follow_cfo: true},", cfo=40, snr=30)
    assert outcome.error is None
    assert outcome.report["ideal_gain_db"] - outcome.report["coherent_gain_db"] == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize("cfo", [150, 400, 1500])
def test_frequencies_far_beyond_the_range_of_the_sweep_are_resolved_by_the_prefixes(cfo):
    report = run(cfo=cfo).report  # ap1 and ap2 differ by twice as much, midpoints resolve 217 Hz
    assert report["trusted"]
    assert report["frequency_hz"][1] == pytest.approx(-2 * cfo, abs=2)
    assert report["alignment_error"] < 1e-3
    assert report["ideal_gain_db"] - report["coherent_gain_db"] == pytest.approx(0.0, abs=0.1)


@pytest.mark.parametrize(("node", "slot", "reason"), [
    ("ap2", 8, "not trusted"), ("ap2", 18, "node ap2: ue1 does not receive it"),
    ("ue1", 25, "node ue1: the power of the joint")])
def test_port_that_dies_during_the_run_fails_it(node, slot, reason):
    outcome = run(faults=f"[{{kind: dead_port, node: {node}, slot: {slot}}}]")
    assert outcome.error is not None
    assert reason in outcome.error


def test_calibration_without_delay_estimate_works_where_there_is_none():
    outcome = changed("faults: [", "calibration: {delay: false}\nfaults: [")
    assert outcome.error is None
    assert outcome.report["alignment_error"] < 1e-3


def test_carrier_a_whole_bin_off_is_flagged():
    outcome = run(cfo=4000)  # ap1 and ap2 differ by twice as much; a bin is 7.8 kHz
    assert "carriers differ by more than half a bin" in outcome.error


def test_single_beam_needs_no_settings():
    outcome = flowgraphs.run(flowgraphs.testbed_flowgraph(Assembly(testbed.parse(
        "version: 1\nnodes: [{name: a}, {name: b, oscillator: {cfo_hz: 30}}, {name: c}]\n"))), timeout_s=60)
    assert outcome.error is None
    assert outcome.report["frequency_hz"][1] == pytest.approx(30, abs=8)


def test_method_that_fails_on_a_blocked_pair_is_flagged_by_port_name():
    blocked = "calibration: {method: argos}\npropagation: {blocked_pairs: [[ap1, ap3]]}\n"
    outcome = changed("faults: [", blocked + "faults: [")
    assert "port ap3:0: method argos is far from the maximum of the likelihood" in outcome.error


def test_network_without_any_signal_names_the_ports_that_nothing_joins():
    outcome = run(snr=-30)
    assert "no signal connects the ports" in outcome.error
    assert "ap1:0" in outcome.error
    assert "Traceback" not in outcome.error


def test_same_seed_gives_the_same_report_byte_for_byte_whatever_the_buffers(tmp_path):
    options = dict(cfo=30, linewidth=0.05)
    first = encoded(run(**options), tmp_path, "a.json")
    assert encoded(run(**options), tmp_path, "b.json") == first
    assert encoded(run(max_noutput_items=100, **options), tmp_path, "c.json") == first
    assert encoded(run(seed=2, **options), tmp_path, "d.json") != first


def test_lock_step_and_open_loop_measure_the_same(tmp_path):
    reports = [json.loads(encoded(run(window=window), tmp_path, "r.json")) for window in (1, 5, 64)]
    for report in reports:
        del report["testbed"]
    assert reports[0] == reports[1] == reports[2]


def test_lost_slot_and_nan_are_retried_and_the_calibration_holds():
    clean = run(snr="null")
    for kind in ("lost_slot", "nan"):
        for window in (1, 16):
            outcome = run(snr="null", window=window, faults=f"[{{kind: {kind}, node: ap2, slot: 3}}]")
            assert outcome.error is None
            assert outcome.report["slots"] == clean.report["slots"] + 1
            assert outcome.report["alignment_error"] < 1e-9


@pytest.mark.parametrize("kind", ["lost_slot", "nan"])
def test_slot_that_stays_lost_ends_the_run_with_node_and_slot(kind):
    # A repeated slot comes at the end of its phase: every slot of the network is hit.
    outcome = run(faults=f"[{{kind: {kind}, node: ap2, slot: 3, count: 1000}}]")
    assert "failed in 3 attempts: node ap2: " in outcome.error
    assert "slot 3 (sweep)" in outcome.error


def test_lost_acknowledgement_is_retried():
    outcome = run(faults="[{kind: lost_ack, node: ap1, slot: 5}]")
    assert outcome.error is None
    assert outcome.report["slots"] == run().report["slots"] + 1


def test_acknowledgement_lost_again_and_again_ends_the_run_with_node_and_slot():
    outcome = run(faults="[{kind: lost_ack, node: ap1, slot: 5, count: 100}]")
    assert outcome.error == "slot 5 (sweep) failed in 3 attempts: node ap1: no acknowledgement"


@pytest.mark.parametrize("window", [1, 16])
def test_node_that_stops_answering_is_named_with_the_slot(window):
    outcome = run(window=window, faults="[{kind: silent, node: ap3, slot: 7}]")
    assert "node ap3 stopped answering: slot 7 (sweep)" in outcome.error
    assert "c" not in outcome.report


def test_dead_port_is_flagged_by_name_and_nothing_is_applied():
    outcome = run(faults="[{kind: dead_port, node: ap2, slot: 0}]")
    assert "not trusted" in outcome.error
    assert outcome.report["trusted"] is False
    assert "coherent_gain_db" not in outcome.report


def test_failing_block_ends_the_run_with_its_traceback(monkeypatch):
    def fail(*_):
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr("gnuradio.dmimo.protocols.beam_sweep.SweepRole.results", fail)
    outcome = run()
    assert "broken on purpose" in outcome.error
    assert "Traceback" in outcome.error


def test_run_that_takes_too_long_is_stopped():
    silent = "[{kind: silent, node: ap1, slot: 0}]"
    assembly = Assembly(testbed.parse(BASE.format(**parameters(faults=silent, watchdog=100))))
    outcome = flowgraphs.run(flowgraphs.testbed_flowgraph(assembly), timeout_s=0.5)
    assert outcome.error == f"the run did not end within 0.5 s, after {outcome.report['slots']} slots"
    assert outcome.report["slots"] < len(assembly.schedule.slots)
