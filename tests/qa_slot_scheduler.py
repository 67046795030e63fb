# SPDX-License-Identifier: GPL-3.0-or-later
"""The scheduler block with radios that are nothing but messages: common time, begin, leads, epochs."""

from types import SimpleNamespace

import pmt
import pytest
from gnuradio import dmimo, gr
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.protocols.slots import Grant, Product, Slot, build_schedule
from graph import message_sink, message_source

RATE = 1000.0
SLOT = 10
SCHEDULE = build_schedule(("n1", "n2"), SLOT, [
    ("open", 2, [Slot(0, "sound", ("n1",), (0, 0))] * 2), ("lock step", 1, [Slot(0, "sound", ("n2",), (0, 0))] * 2)])
CONFIRMED = {"n1": 1, "n2": 1}


class Bench:
    """A scheduler whose messages are recorded; the local clock is set by hand, device time is `ahead` of it."""

    def __init__(self, monkeypatch, radios=("r1", "r2"), schedule=SCHEDULE, **options):
        self.local_s, self.ahead_s = 100.0, 3.0
        module = "gnuradio.dmimo.blocks.slot_scheduler"
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(monotonic=lambda: self.local_s))
        self.block = dmimo.slot_scheduler(schedule, radios=radios, samp_rate=RATE, confirmed=CONFIRMED, **options)
        self.published = []
        self.block.message_port_pub = lambda port, message: self.published.append(
            (pmt.symbol_to_string(port), message))
        self.block.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.block.stop()

    def status(self, kind, **fields):
        self.block.handle_status(messages.encode(kind, **fields))

    def time(self, radio, ahead_s, count=1, delay_s=0.0):
        self.ahead_s = ahead_s
        for _ in range(count):
            sample = round((self.local_s - delay_s + ahead_s) * RATE)
            self.status("radio_time", radio=radio, sample=sample)
            self.local_s += 0.05

    def begin(self, first=(105_000, 104_000), epochs=(7, 9), ahead_s=3.0):
        """All radios agree and stream."""
        for radio in ("r1", "r2"):
            self.time(radio, ahead_s, 8)
        for radio, sample, epoch in zip(("r1", "r2"), first, epochs, strict=True):
            self.status("radio_begin", radio=radio, sample=sample, epoch=epoch)

    def ready(self):
        """All nodes hold the schedule; and it is time for the first slot."""
        for node in SCHEDULE.nodes:
            self.status("ready", node=node, hash=self.told("begin")[-1]["hash"], **self.identity)
        self.wait_until(self.block.first_sample - 250)

    def wait_until(self, sample):
        """Let the local clock go on until the device time is this one."""
        self.local_s = max(self.local_s, sample / RATE - self.ahead_s)
        self.time("r1", self.ahead_s)

    @property
    def identity(self):
        begin = self.told("begin")[-1]
        return {key: begin[key] for key in ("run", "epoch")}

    def told(self, kind, port="control"):
        return [messages.values(message) for name, message in self.published
                if name == port and messages.kind(message) == kind]

    def phases_done(self):
        return [messages.get(message, "phase") for name, message in self.published
                if name == "phases" and messages.kind(message) == "phase"]

    def granted(self):
        """Grants of the last message."""
        return messages.grants([message for name, message in self.published if messages.kind(message) == "grant"][-1])

    def received(self, grants, **other):
        for node in SCHEDULE.nodes:
            header = messages.encode("ack", node=node, **{**self.identity, **other})
            self.block.handle_status(messages.ack_to_pmt(header, grants, "ok"))

    def sent(self, node, sample, event="burst_ack", status="ok", **other):
        self.status("sent", node=node, port=0, sample=sample, event=event, status=status, **{**self.identity, **other})

    def walk(self):
        """A run without a hitch."""
        self.ready()
        for phase in ("open", "lock step"):
            for _ in range(1 if phase == "open" else 2):
                grants = self.granted()
                self.received(grants)
                for grant in grants:
                    self.sent("n1" if phase == "open" else "n2", grant.start + SLOT)
            self.end_phase(phase)

    def watch(self, answering=SCHEDULE.nodes):
        """As long passes as the watchdog waits; these nodes answer a query."""
        queries = len(self.told("query"))
        for _ in range(400):
            for radio in ("r1", "r2"):
                self.status("radio_time", radio=radio, sample=round((self.local_s + self.ahead_s) * RATE))
            self.local_s += 0.05
        self.block.handle_watchdog(pmt.PMT_T)
        if len(self.told("query")) > queries:
            for node in answering:
                self.status("alive", node=node, **self.identity)

    def end_phase(self, phase):
        self.block.handle_product(messages.product_to_pmt(Product(phase, {}), **self.identity))
        for node in SCHEDULE.nodes:
            self.status("taken", node=node, phase=phase, **self.identity)


def test_radios_are_aligned_to_the_latest_and_the_run_begins_when_all_stream(monkeypatch):
    with Bench(monkeypatch) as bench:
        bench.time("r1", 3.0, 8, delay_s=0.01)
        assert not bench.published
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
            bench.time(radio, ahead_s, 8)
        assert "radio r2" in bench.block.error
        assert "0.37 s off a whole second" in bench.block.error
        assert not bench.told("align")
        assert bench.told("end")[0]["error"] == bench.block.error


def test_every_pacing_has_its_lead_and_a_late_burst_doubles_it(monkeypatch):
    with Bench(monkeypatch) as bench:
        bench.begin()
        bench.ready()
        first, second = bench.granted()
        bench.received([first, second])
        bench.local_s = 120.0
        bench.sent("n1", first.start + SLOT)
        bench.sent("n1", second.start + 2, "time_error", "too late")
        (again,) = bench.granted()
        assert again == Grant(1, 1, 123_200)
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
        bench.status("radio_begin", radio="r2", sample=107_000, epoch=12)
        assert "error" not in [port for port, _ in bench.published]
        assert bench.block.error == error


def test_a_radio_that_begins_anew_in_a_run_without_a_word_ends_it(monkeypatch):
    with Bench(monkeypatch) as bench:
        bench.begin()
        bench.status("radio_begin", radio="r2", sample=107_000, epoch=9)
        assert bench.block.error == "radio r2: its epoch has ended: it has begun anew"


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
        assert bench.told("begin")[1:] == [{"run": 1, "epoch": 12, "hash": SCHEDULE.hash}]
        bench.received(grants, run=0)
        bench.ready()
        assert bench.granted() == [Grant(0, 0, 150_100), Grant(1, 0, 150_110)]
        assert bench.block.error is None


def test_runs_without_end_carry_the_epoch_on(monkeypatch):
    with Bench(monkeypatch, runs=0) as bench:
        bench.begin()
        bench.walk()
        assert [(begin["run"], begin["epoch"]) for begin in bench.told("begin")] == [(0, 9), (1, 9)]


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


@pytest.mark.parametrize(("told", "error"), [
    ([], "no time reported by radio r1, radio r2 within 0.3 s"),
    ([("radio_time", {"sample": 5})], "no time reported by radio r2 within 0.3 s"),
])
def test_a_radio_that_is_missing_ends_the_run_by_name_within_a_limit(told, error):
    tb, finished, source = gr.top_block(), message_sink(), message_source()
    block = dmimo.slot_scheduler(SCHEDULE, radios=["r1", "r2"], samp_rate=RATE, radio_timeout_s=0.3)
    tb.msg_connect(block, "finished", finished, "in")
    tb.msg_connect(source, "out", block, "status")
    tb.start()
    for kind, fields in told:
        source.send(messages.encode(kind, radio="r1", **fields))
    try:
        (message,) = finished.wait(1)
    finally:
        tb.stop()
        tb.wait()
    assert messages.get(message, "error") == error


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
