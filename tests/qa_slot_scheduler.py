# SPDX-License-Identifier: GPL-3.0-or-later
"""The scheduler block with radios that are nothing but messages: common time, begin, leads, silence."""

import math

import numpy as np
import pmt
import pytest
from gnuradio import dmimo, gr
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.protocols.slots import Grant, Slot, build_schedule
from gnuradio.dmimo.radio_clock import MIN_REPORTS
from graph import message_sink
from scheduler_bench import RATE, SCHEDULE, SLOT, Bench


def test_radios_are_aligned_to_the_latest_and_the_run_begins_when_all_stream(monkeypatch):
    with Bench(monkeypatch) as bench:
        bench.time("r1", 3.0, 8, delay_s=0.01)
        assert {messages.kind(message) for _, message in bench.published} == {"ask"}
        bench.time("r2", 5.0, 8)
        assert bench.told("align") == [{"radio": "r1", "seconds": 2}, {"radio": "r2", "seconds": 0}]
        bench.time("r1", 5.0)
        bench.status("radio_begin", radio="r1", sample=107_000, epoch=7)
        assert not bench.told("begin")
        bench.status("radio_begin", radio="r2", sample=106_000, epoch=9)
        assert bench.told("begin") == bench.told("begin", "phases") == [{"run": 0, "epoch": 9, "hash": SCHEDULE.hash}]
        assert len(bench.told("align")) == 2
        bench.ready()
        assert bench.granted() == [Grant(0, 0, 107_100), Grant(1, 0, 107_110)]


def test_one_radio_is_told_to_go_on_at_once(monkeypatch):
    with Bench(monkeypatch, radios=["r1"]) as bench:
        bench.time("r1", 3.0)
        assert bench.told("align") == [{"radio": "r1", "seconds": 0}]


def test_the_first_slot_is_a_lead_after_the_device_time_where_that_is_later(monkeypatch):
    with Bench(monkeypatch, lead_s=0.2) as bench:
        bench.begin()
        bench.local_s = 110.0
        bench.ready()
        assert bench.granted()[0].start == 113_200


def test_a_radio_that_is_off_a_whole_second_ends_the_run_by_name(monkeypatch):
    with Bench(monkeypatch, radios=["r1", "r2", "r3"]) as bench:
        for radio, ahead_s in [("r1", 3.0), ("r2", 5.37), ("r3", 4.0)]:
            bench.time(radio, ahead_s, MIN_REPORTS)
        assert "radio r2" in bench.block.error
        assert "0.37 s off a whole second" in bench.block.error
        assert not bench.told("align")
        assert bench.told("end")[0]["error"] == bench.block.error


def test_a_busy_computer_does_not_accuse_a_radio(monkeypatch):
    with Bench(monkeypatch, radios=["r1", "r2"]) as bench:
        for _ in range(100):
            bench.time("r1", 3.0)
            bench.time("r2", 4.0, delay_s=0.4, asked_s=0.5)
        assert bench.block.error is None
        assert bench.told("align") == [{"radio": "r1", "seconds": 1}, {"radio": "r2", "seconds": 0}]


def test_several_radios_are_asked_for_their_time_and_none_is_compared_before_it_answers(monkeypatch):
    with Bench(monkeypatch, radios=["r1", "r2"]) as bench:
        for _ in range(MIN_REPORTS):
            bench.time("r1", 3.0)
            bench.time("r2", 4.0, asked_s=math.inf)
        asked = [told["time"] for told in bench.told("ask")]
        assert asked == pytest.approx(100.0 + 0.1 * np.arange(MIN_REPORTS))
        assert not bench.told("align")
        bench.time("r2", 4.0)
        assert bench.told("align") == [{"radio": "r1", "seconds": 1}, {"radio": "r2", "seconds": 0}]


def test_every_pacing_has_its_lead_and_a_late_burst_doubles_it(monkeypatch):
    with Bench(monkeypatch) as bench:
        bench.begin()
        bench.ready()
        first, second = bench.granted()
        bench.received([first, second])
        bench.local_s = 104.0
        bench.sent("n1", first.start + SLOT)
        bench.sent("n1", second.start + 2, "time_error", "too late")
        (again,) = bench.granted()
        assert again == Grant(1, 1, 107_200)
        bench.received([again])
        bench.sent("n1", again.start + SLOT)
        bench.local_s = 130.0
        bench.end_phase("open")
        (lock_step,) = bench.granted()
        assert lock_step == Grant(2, 0, 133_100)
        bench.local_s = 131.0
        bench.received([lock_step])
        (following,) = bench.granted()  # released without a confirmation
        assert following == Grant(3, 0, 134_100)
        bench.received([following])
        assert bench.phases_done() == ["open"]
        bench.sent("n2", lock_step.start + SLOT)
        bench.sent("n2", following.start + SLOT)
        assert bench.phases_done() == ["open", "lock step"]
        bench.end_phase("lock step")
        assert bench.block.error is None
        assert bench.block.finished_event.is_set()


def test_the_cycle_of_radios_is_begun_again_for_so_long_from_their_first_sample_on(monkeypatch):
    cycle = build_schedule(SCHEDULE.nodes, SLOT, [], [("open", 2, [Slot(0, "sound", ("n1",), (0, 0))] * 2)])
    with Bench(monkeypatch, schedule=cycle, until_sample=50) as bench:
        bench.begin()
        bench.ready()
        starts = []
        while bench.block.error is None and not bench.block.finished_event.is_set():
            grants = bench.granted()
            starts.append(grants[0].start)
            bench.received(grants)
            for grant in grants:
                bench.sent("n1", grant.start + SLOT)
            bench.end_phase("open")
        assert starts == [105_100, 105_120, 105_140]


def test_a_radio_that_falls_silent_with_its_nodes_is_named(monkeypatch):
    with Bench(monkeypatch) as bench:
        bench.begin()
        bench.ready()
        for _ in range(3):
            bench.local_s += 20.0
            bench.time("r1", 3.0)
            bench.block.handle_watchdog(pmt.PMT_T)
        assert bench.block.error == "radio r2: no longer reports its time"


def test_a_slot_is_released_shortly_before_its_lead_and_nobody_is_missed_till_then(monkeypatch):
    with Bench(monkeypatch, runs=2, pause_samples=150_000) as bench:
        bench.begin()
        bench.walk()
        first = 105_140 + 150_000
        for node in SCHEDULE.nodes:
            bench.status("ready", node=node, hash=SCHEDULE.hash, **bench.identity)
        last = bench.granted()
        while bench.local_s + bench.ahead_s < first / RATE - 20.5:
            bench.watch()
        assert bench.block.error is None
        assert len(bench.told("query")) >= 3
        bench.wait_until(first - 330)
        assert bench.granted() == last
        bench.wait_until(first - 300)
        assert bench.granted() == [Grant(0, 0, first), Grant(1, 0, first + SLOT)]


@pytest.mark.parametrize("held", [False, True])
def test_a_node_that_does_not_answer_is_named_whether_slots_are_in_flight_or_held(monkeypatch, held):
    with Bench(monkeypatch) as bench:
        bench.begin(first=(999_000, 999_000) if held else (105_000, 104_000))
        for node in SCHEDULE.nodes:
            bench.status("ready", node=node, hash=SCHEDULE.hash, **bench.identity)
        for _ in range(3):
            assert bench.block.error is None
            bench.watch(answering=["n1"])
        assert bench.block.error.startswith("node n2 stopped answering")
        assert ("before phase open" in bench.block.error) == held


@pytest.mark.parametrize(("lead_s", "reactive_lead_s", "doubled_s"), [
    (0.1, 0.6, 1.0), (3.0, 0.8, 1.6), (0.1, 2.5, 2.5)])
def test_leads_are_doubled_up_to_a_second_or_what_was_asked_for(monkeypatch, lead_s, reactive_lead_s, doubled_s):
    with Bench(monkeypatch, lead_s=lead_s, reactive_lead_s=reactive_lead_s) as bench:
        bench.begin()
        bench.ready()
        first, second = bench.granted()
        bench.received([first, second])
        bench.sent("n1", first.start + SLOT)
        bench.sent("n1", second.start + 2, "time_error", "too late")
        bench.wait_until(bench.granted()[0].start)
        (again,) = bench.granted()
        bench.received([again])
        bench.sent("n1", again.start + SLOT)
        bench.end_phase("open")
        now = round((bench.local_s + bench.ahead_s) * RATE)
        assert bench.granted()[0].start - now == pytest.approx(doubled_s * RATE, abs=1)


@pytest.mark.parametrize(("told", "missing"), [([], "radio r1, radio r2"), (["r1"], "radio r2")])
def test_a_radio_that_is_missing_ends_the_run_by_name_within_a_limit(monkeypatch, told, missing):
    with Bench(monkeypatch) as bench:
        for radio in told:
            bench.time(radio, 3.0)
        bench.local_s = 129.9
        bench.block.handle_watchdog(pmt.PMT_T)
        assert bench.block.error is None
        bench.local_s = 130.0
        bench.block.handle_watchdog(pmt.PMT_T)
        assert bench.block.error == f"no time reported by {missing} within 30 s"


def test_radios_that_say_nothing_at_all_end_a_flowgraph_too():
    tb, finished = gr.top_block(), message_sink()
    block = dmimo.slot_scheduler(SCHEDULE, radios=["r1", "r2"], samp_rate=RATE, radio_timeout_s=0.3)
    tb.msg_connect(block, "finished", finished, "in")
    tb.start()
    try:
        (message,) = finished.wait(1)
    finally:
        tb.stop()
        tb.wait()
    assert messages.get(message, "error") == "no time reported by radio r1, radio r2 within 0.3 s"


def test_a_radio_whose_streams_do_not_begin_is_named(monkeypatch):
    with Bench(monkeypatch) as bench:
        bench.time("r1", 3.0, 8)
        bench.time("r2", 3.0, 8)
        bench.status("radio_begin", radio="r1", sample=107_000, epoch=7)
        bench.local_s += 31
        bench.block.handle_watchdog(pmt.PMT_T)
        assert bench.block.error == "no begin of the streams reported by radio r2 within 30 s"


def test_radios_that_the_scheduler_was_not_told_of_are_an_error(monkeypatch):
    with Bench(monkeypatch, radios=()) as bench:
        bench.time("r1", 3.0)
        assert bench.block.error == "radio r1: the scheduler was given no radios"
    with Bench(monkeypatch, radios=["r2"]) as bench:
        bench.time("r1", 3.0)
        assert "radio 'r1': the scheduler was given the radios ['r2']" in bench.block.error


@pytest.mark.parametrize("options", [{"samp_rate": None}, {"samp_rate": 0.0}, {"lead_s": -0.1}, {"reactive_lead_s": -1},
                                     {"radio_timeout_s": 0}])
def test_wrong_options_are_refused_by_name(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))} = "):
        dmimo.slot_scheduler(SCHEDULE, **{"radios": ["r1"], "samp_rate": RATE, **options})


@pytest.mark.parametrize(("carriers", "refused"), [
    ([[2.4e9, 2.4e9]], False), ([[2.4e9, 2.4e9 + 1]], True), (None, False)])
def test_radios_that_share_a_reference_must_share_their_carriers(monkeypatch, carriers, refused):
    with Bench(monkeypatch) as bench:
        bench.time("r1", 3.0, 8)
        bench.time("r2", 3.0, 8)
        bench.status("radio_begin", radio="r1", sample=107_000, epoch=7, carriers=np.array([[2.4e9, 2.4e9]]))
        more = {} if carriers is None else {"carriers": np.array(carriers)}
        bench.status("radio_begin", radio="r2", sample=107_000, epoch=7, **more)
        assert ("radio r2 came to" in (bench.block.error or "")) is refused
