# SPDX-License-Identifier: GPL-3.0-or-later
"""Bidirectional runs through the flowgraph: the same as without GNU Radio, and what faults do to them."""

import numpy as np
import pytest
from bidirectional_beds import SMALL, Played, changed
from gnuradio.dmimo import flowgraphs, records
from gnuradio.dmimo.assembly import Assembly

ONCE = ("patterns: 2", "patterns: 1")
SLOTS = ["csi_rs", "ul_cars", "srs", "dl_cars", "csi_rs_pair", "srs_pair"]


def faults(*entries, watchdog=20):
    """Changes that add faults to a testbed."""
    return [("bidirectional:", f"faults: [{', '.join(entries)}]\nbidirectional:"),
            ("num_subbands: 12", f"num_subbands: 12, watchdog_s: {watchdog}")]


def play(*changes, calibration_file="", max_noutput_items=None, text=SMALL):
    """Outcome of a run through the flowgraph."""
    flowgraph = flowgraphs.testbed_flowgraph(Assembly(changed(text, *changes)), str(calibration_file))
    if max_noutput_items is not None:
        start = flowgraph.start
        flowgraph.start = lambda: start(max_noutput_items)
    return flowgraphs.run(flowgraph, timeout_s=60)


def encoded(report, folder):
    records.write_json(folder / "report.json", report)
    return (folder / "report.json").read_bytes()


def slot_of(purpose, number=0, changes=()):
    """Index of a slot of the schedule."""
    slots = Assembly(changed(SMALL, *changes)).schedule.slots
    return [slot.index for slot in slots if slot.purpose == purpose][number]


@pytest.mark.parametrize("max_noutput_items", [None, 100])
def test_flowgraph_and_direct_loop_give_the_same_report_byte_for_byte(tmp_path, max_noutput_items):
    direct = Played(changed(SMALL)).report
    assert [entry["event"] for entry in direct["patterns"]] == ["calibrated", "tracked"] * 2
    outcome = play(max_noutput_items=max_noutput_items)
    assert encoded(outcome.report, tmp_path) == encoded(direct, tmp_path)


PANELS = [("{name: trp1, num_ports: 2,", "{name: trp1, num_ports: 2, panel: {num_antennas: 4, beams: [0, 1, 2]},"),
          ("{name: ue2, kind: ue,", "{name: ue2, kind: ue, panel: {num_antennas: 2, beams: [0, 1]},")]


def test_beams_are_trained_alike_in_flowgraph_and_direct_loop(tmp_path):
    direct = Played(changed(SMALL, ONCE, *PANELS)).report
    assert direct["links"]["used"].all()
    assert encoded(play(ONCE, *PANELS).report, tmp_path) == encoded(direct, tmp_path)


def test_calibration_files_of_both_sides_can_be_read(tmp_path):
    outcome = play(ONCE, calibration_file=tmp_path / "calibration.h5")
    assert outcome.error is None
    report = outcome.report
    for name, content in (("calibration.h5", report), ("calibration-ue.h5", report["ue_calibration"])):
        record = records.load_calibration(tmp_path / name, changed(SMALL, ONCE))
        np.testing.assert_array_equal(record.c, content["c"])
        np.testing.assert_array_equal(record.delay_s, content["delay_s"])
        np.testing.assert_array_equal(record.frequency_hz, content["frequency_hz"])
        assert record.port_names == tuple(content["ports"])
        assert record.reference_time == content["reference_time"]
        assert record.reference == content["ports"][0]
        assert np.all(record.trusted)
    other = changed(SMALL, ("name: ue2, kind: ue, num_ports: 2", "name: ue2, kind: ue, num_ports: 1"))
    with pytest.raises(records.RecordError, match="port ue2:1 is not in the testbed"):
        records.load_calibration(tmp_path / "calibration-ue.h5", other)


# -- losses -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean():
    return play(ONCE).report


@pytest.mark.parametrize("node", ["trp2", "ue2"])
@pytest.mark.parametrize("purpose", [*SLOTS, "tracking_srs", "tracking_csi_rs"])
def test_slot_that_a_node_loses_is_repeated_and_the_calibration_is_right(purpose, node, clean):
    """Whoever lost it, sender or receiver: everybody repeats it, and the coefficients belong to the repetition."""
    report = play(ONCE, *faults(f"{{kind: lost_slot, node: {node}, slot: {slot_of(purpose)}}}")).report
    assert report["error"] is None
    assert report["slots"] == clean["slots"] + 1
    assert [entry["event"] for entry in report["patterns"]] == ["calibrated", "tracked"]
    for entry in report["patterns"]:
        # 40 dB per sample: a few tenths of a degree. A slot late is 4 pi 134 Hz * 19 us = 1.8 degrees, and more.
        assert entry["trp_phase_error_deg"] < 0.4
        assert entry["ue_phase_error_deg"] < 0.4
    assert report["coherent_gain_db"] == pytest.approx(report["ideal_gain_db"], abs=0.1)


@pytest.mark.parametrize(("purpose", "number", "node"), [
    ("beam_training", 0, "trp1"), ("beam_training", 4, "ue2"), ("srs", 0, "trp2"), ("dl_cars", 1, "ue1")])
def test_slots_lost_with_beams_change_nothing(purpose, number, node):
    """In the training, which is open-loop, and in either round of the exchange."""
    slot = slot_of(purpose, number, PANELS)
    outcome = play(ONCE, *PANELS, *faults(f"{{kind: lost_slot, node: {node}, slot: {slot}}}"))
    assert outcome.error is None
    assert outcome.report["links"]["used"].all()
    assert outcome.report["patterns"][0]["trp_phase_error_deg"] < 0.4
    assert outcome.report["patterns"][0]["ue_phase_error_deg"] < 0.4


@pytest.mark.parametrize("purpose", ["ul_cars", "dl_cars"])
def test_answer_whose_acknowledgement_is_lost_is_repeated(purpose):
    report = play(ONCE, *faults(f"{{kind: lost_ack, node: ue1, slot: {slot_of(purpose)}}}", watchdog=0.3)).report
    assert report["error"] is None
    assert report["patterns"][0]["trp_phase_error_deg"] < 0.4
    assert report["patterns"][0]["ue_phase_error_deg"] < 0.4


def test_slots_that_are_lost_do_not_cost_patterns():
    """Ten repetitions in the first pattern, whose phases then end later than planned."""
    first = slot_of("csi_rs")
    lost = [f"{{kind: lost_slot, node: ue1, slot: {first + 3 * k}}}" for k in range(10)]
    tight = ("pattern_s: 4.0e-3", "pattern_s: 0.5e-3")
    assert play(tight).report["calibrations"] == 2
    report = play(tight, *faults(*lost)).report
    assert report["error"] is None
    assert sum(entry["phase"] == "exchange" for entry in report["patterns"]) == 2


def test_slot_that_is_lost_too_often_ends_the_run():
    slot = slot_of("ul_cars")
    # The answer and the sounding after it are sent together, the answer then twice by itself.
    lost = [f"{{kind: lost_slot, node: trp1, slot: {slot + late}}}" for late in (0, 2, 3)]
    outcome = play(ONCE, *faults(*lost))
    assert outcome.error == f"slot {slot} (ul_cars) failed in 3 attempts: node trp1: lost"


def test_nan_in_an_answer_repeats_the_slot(clean):
    outcome = play(ONCE, *faults(f"{{kind: nan, node: ue2, slot: {slot_of('dl_cars')}, port: 1}}"))
    assert outcome.error is None
    assert outcome.report["slots"] == clean["slots"] + 1
    assert outcome.report["patterns"][0]["ue_phase_error_deg"] < 0.4


# -- nodes and links --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("purpose", ["csi_rs", "ul_cars", "tracking_srs"])
def test_terminal_that_falls_silent_ends_the_run_with_its_name(purpose):
    slot = slot_of(purpose)
    outcome = play(*faults(f"{{kind: silent, node: ue1, slot: {slot}}}", watchdog=0.5))
    assert outcome.error == f"node ue1 stopped answering: slot {slot} ({purpose}), attempt 0, not acknowledged"


def test_blocked_pair_is_flagged_and_left_out():
    report = play(ONCE, ("propagation: {", "propagation: {blocked_pairs: [[trp2, ue2]], ")).report
    assert report["error"] is None
    expected = np.ones((3, 3), bool)
    expected[2, 1:] = False
    np.testing.assert_array_equal(report["links"]["used"], expected)
    assert report["patterns"][0]["links_used"] == 7
    assert report["patterns"][0]["trp_phase_error_deg"] < 1.0
    assert report["coherent_gain_db"] == pytest.approx(report["ideal_gain_db"], abs=0.1)


def test_ports_without_any_link_are_named():
    outcome = play(ONCE, ("propagation: {", "propagation: {blocked_pairs: [[trp2, ue2], [trp2, ue1]], "))
    assert "the links above their thresholds do not join all ports" in outcome.error
    assert "{trp1:0, trp1:1, ue1:0, ue2:0, ue2:1}, {trp2:0}" in outcome.error
    assert "calibrations" not in outcome.report


def test_graph_in_two_parts_is_named():
    outcome = play(ONCE, ("propagation: {", "propagation: {blocked_pairs: [[trp2, ue2], [trp1, ue1]], "))
    assert "{trp1:0, trp1:1, ue2:0, ue2:1}, {trp2:0, ue1:0}" in outcome.error


def test_port_that_is_dead_is_named():
    outcome = play(ONCE, *faults("{kind: dead_port, node: ue2, slot: 0, port: 1}"))
    assert "{ue2:1}" in outcome.error


def test_port_that_dies_later_keeps_the_last_calibration_until_it_counts_too_often():
    """In the second exchange and the tracking after it: not applied, and said; the third time ends the run."""
    cycle = len(Assembly(changed(SMALL)).schedule.slots)
    report = play(*faults(f"{{kind: dead_port, node: ue2, slot: {cycle}, port: 1}}")).report
    events = [entry["event"] for entry in report["patterns"]]
    assert events == ["calibrated", "tracked", "untrusted", "untrusted"]
    assert any("not trusted and not applied" in doubt for doubt in report["doubts"])
    longer = play(("patterns: 2", "patterns: 4"), *faults(f"{{kind: dead_port, node: ue2, slot: {cycle}, port: 1}}"))
    assert "not trusted" in longer.error


# -- limits -----------------------------------------------------------------------------------------------------------

ALIAS = 15.36e6 / (3 * 288)  # of soundings three slots apart


@pytest.mark.parametrize("limit", ["", ", max_cfo_hz: 2000"])
@pytest.mark.parametrize(("trp2", "ue1", "ue2"), [
    (-70, 20_000, -22), (8000, 20_000, -22), (-70, 64, -22 + ALIAS), (-70 + ALIAS, 64, -22 + ALIAS),
    (-70, 64 + ALIAS, -22 + ALIAS), (-70, 64, 15.36e6 / 288 - 22), (15.36e6 / 288, 64, 15.36e6 / 288),
    (-70, 64, 120e3 - 22)])
def test_oscillators_beyond_what_the_exchange_can_tell_end_the_run(trp2, ue1, ue2, limit):
    """Also where all phases are those of oscillators inside the range: aliases of soundings, of slots, of bins."""
    outcome = play(ONCE, ("cfo_hz: -70", f"cfo_hz: {trp2}"), ("cfo_hz: 64", f"cfo_hz: {ue1}"),
                   ("cfo_hz: -22", f"cfo_hz: {ue2}"), ("tracking: wideband", f"tracking: wideband{limit}"))
    assert outcome.error is not None
    assert "calibrations" not in outcome.report
    if ue2 < 100e3:  # otherwise every pilot is on another port's subcarrier: nothing is heard
        assert "oscillators differ by more than" in outcome.error
        assert ("max_cfo_hz = 2000" if limit else "8889 Hz that the slots can tell") in outcome.error


def test_oscillators_beyond_a_limit_of_the_file_end_the_run():
    changes = ("cfo_hz: -22", "cfo_hz: 3000"), ("tracking: wideband", "tracking: wideband, max_cfo_hz: 2000")
    assert "more than max_cfo_hz = 2000" in play(ONCE, *changes).error


def test_oscillators_within_a_wider_range_are_calibrated():
    wider = ("tracking: wideband", "tracking: wideband, max_cfo_hz: 4000")
    outcome = play(ONCE, ("cfo_hz: -22", "cfo_hz: 3000"), wider)
    assert outcome.error is None
    assert outcome.report["patterns"][0]["ue_frequency_hz"][1] == pytest.approx(3000 - 64, abs=100)


def test_arrivals_beyond_the_prefix_end_the_run():
    """Everything is expected 12 samples later than it comes: the windows open 8 early, which is too little."""
    outcome = play(ONCE, ("lead_samples: 8", "lead_samples: 8, receive_delay_samples: 12"),
                   ("slot_samples: 288", "slot_samples: 300"))
    assert "beyond the prefix, which takes -8 ... 24" in outcome.error


def test_combs_that_are_too_small_are_refused_before_the_run():
    with pytest.raises(ValueError, match="num_subcarriers = 108: must be at least 132, 4 for each of 11 x 3 links"):
        play(ONCE, ("name: trp2", "name: trp2, num_ports: 9"))
