# SPDX-License-Identifier: GPL-3.0-or-later
"""The scheduler block with radios that are nothing but messages: epochs that end, and starting again."""

import threading

import pmt
import pytest
from gnuradio import dmimo
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.protocols.slots import Grant, Product
from scheduler_bench import SCHEDULE, SLOT, Bench


def test_messages_of_a_run_that_is_over_change_nothing(monkeypatch):
    with Bench(monkeypatch) as bench:
        bench.begin()
        bench.ready()
        grants = bench.granted()
        bench.received(grants, run=5)
        for grant in grants:
            bench.sent("n1", grant.start + SLOT)
        bench.block.handle_product(messages.product_to_pmt(Product("open", {}), run=5, epoch=0))
        assert bench.block.completed == 0
        assert not bench.told("product")
        bench.received(grants)
        assert bench.block.completed == 2


def test_an_epoch_that_ends_in_a_run_is_an_error_with_radio_and_reason(monkeypatch):
    with Bench(monkeypatch) as bench:
        bench.begin()
        bench.status("radio_epoch", radio="r2", epoch=11, reason="radio r2: gain of channel 1 changed")
        error = "radio r2: its epoch has ended: gain of channel 1 changed"
        assert bench.block.error == error
        for node in SCHEDULE.nodes:
            bench.status("alive", node=node, **bench.identity)
        bench.block.handle_product(messages.product_to_pmt(Product("open", {}), **bench.identity))
        bench.block.handle_watchdog(pmt.PMT_T)
        bench.status("radio_epoch", radio="r2", epoch=12, reason="again")
        bench.status("radio_begin", radio="r2", sample=107_000, epoch=13)
        bench.time("r2", 0.0, 8)
        assert len(bench.told("align")) == 2
        assert "error" not in [port for port, _ in bench.published]
        assert bench.block.error == error


def test_a_radio_that_begins_anew_in_a_run_without_a_word_ends_it(monkeypatch):
    with Bench(monkeypatch) as bench:
        bench.begin()
        bench.status("radio_begin", radio="r2", sample=107_000, epoch=9)
        assert bench.block.error == "radio r2: its epoch has ended: it has begun anew"


def test_runs_without_end_begin_anew_in_a_new_epoch_once_the_radio_streams_again(monkeypatch):
    with Bench(monkeypatch, runs=0) as bench:
        bench.begin()
        bench.ready()
        grants = bench.granted()
        bench.status("radio_epoch", radio="r1", epoch=11, reason="board 0 has lost its reference")
        bench.received(grants)
        assert len(bench.told("begin")) == 1
        bench.time("r1", 3.0)
        bench.status("radio_begin", radio="r1", sample=150_000, epoch=12)
        bench.time("r1", 3.0, 7)
        assert len(bench.told("begin")) == 1
        bench.time("r1", 3.0)
        assert bench.told("begin")[1:] == [{"run": 1, "epoch": 12, "hash": SCHEDULE.hash}]
        bench.received(grants, run=0)
        bench.ready()
        assert bench.granted() == [Grant(0, 0, 150_100), Grant(1, 0, 150_110)]
        assert bench.block.error is None


def test_a_radio_that_comes_back_with_another_time_is_aligned_before_the_runs_go_on(monkeypatch):
    with Bench(monkeypatch, runs=0) as bench:
        bench.begin()
        for epoch, ahead_s in ((11, 0.0), (13, 3.0)):
            bench.status("radio_epoch", radio="r1", epoch=epoch, reason="restarted")
            bench.status("radio_begin", radio="r1", sample=150_000, epoch=epoch + 1)
            assert len(bench.told("begin")) == 1
            bench.time("r1", ahead_s, 8)
        assert [(told["radio"], told["seconds"]) for told in bench.told("align")[2:]] == [
            ("r1", 3), ("r2", 0), ("r1", 0), ("r2", 0)]
        assert [told["epoch"] for told in bench.told("begin")] == [9, 14]


@pytest.mark.parametrize("runs", [0, 1])
def test_a_radio_whose_time_leaps_in_a_run_ends_it_or_is_aligned(monkeypatch, runs):
    with Bench(monkeypatch, runs=runs) as bench:
        bench.begin()
        bench.time("r2", 5.0)
        error = "radio r1: its epoch has ended: its time is 2 s behind that of radio r2"
        assert bench.block.error == (error if runs else None)
        bench.time("r1", 3.0)
        asked = [(told["radio"], told["seconds"]) for told in bench.told("align")[2:]]
        assert asked == ([] if runs else [("r1", 2), ("r2", 0)])
        assert len(bench.told("begin")) == 1


def test_a_scheduler_that_is_started_again_begins_as_for_the_first_time(monkeypatch):
    with Bench(monkeypatch) as bench:
        bench.begin()
        bench.ready()
        bench.received(bench.granted())
        bench.status("radio_epoch", radio="r1", epoch=11, reason="retuned")
        bench.block.stop()
        bench.published.clear()
        bench.block.start()
        assert not bench.block.finished_event.is_set()
        assert (bench.block.error, bench.block.completed, bench.block.releases) == (None, 0, 0)
        bench.time("r1", 3.0)
        assert not bench.told("begin")
        bench.begin()
        assert bench.told("begin") == [{"run": 0, "epoch": 9, "hash": SCHEDULE.hash}]
        bench.walk()
        assert bench.block.error is None
        assert bench.block.finished_event.is_set()


def test_a_simulated_run_is_the_same_when_its_flowgraph_is_started_again():
    block = dmimo.slot_scheduler(SCHEDULE, epoch=4)
    told = []
    block.message_port_pub = lambda port, message: told.append(messages.values(message))
    for _ in range(2):
        block.start()
        block.stop()
        assert block.error == "the flowgraph was stopped before the run had finished"
    assert told == [{"run": 0, "epoch": 4, "hash": SCHEDULE.hash}] * 4


def test_a_watchdog_of_the_first_start_that_is_busy_does_not_outlive_the_second():
    block, busy, go_on = dmimo.slot_scheduler(SCHEDULE, watchdog_s=0.01), threading.Event(), threading.Event()
    block.message_port_pub = lambda *_: None
    block._post = lambda *_: busy.set() or go_on.wait(5)
    block.start()
    first = block._watchdog
    assert busy.wait(5)
    block.stop()
    threading.Timer(0.2, go_on.set).start()
    block.start()
    assert not first.is_alive()
    block.stop()


def test_runs_without_end_carry_the_epoch_on(monkeypatch):
    with Bench(monkeypatch, runs=0) as bench:
        bench.begin()
        bench.walk()
        assert [(begin["run"], begin["epoch"]) for begin in bench.told("begin")] == [(0, 9), (1, 9)]
