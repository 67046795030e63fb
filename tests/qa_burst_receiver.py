# SPDX-License-Identifier: GPL-3.0-or-later
import contextlib
import importlib
import itertools

import numpy as np
import pmt
import pytest
from gnuradio import blocks, dmimo, gr
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.protocols.slots import Grant
from graph import message_sink, run_until, wait_for

burst_receiver = importlib.import_module("gnuradio.dmimo.blocks.burst_receiver")

RATE = 1e6


def time_tag(offset, sample):
    tag = gr.tag_t()
    tag.offset, tag.key = offset, pmt.intern("rx_time")
    tag.value = pmt.make_tuple(pmt.from_uint64(int(sample // 10**6)), pmt.from_double(sample % 10**6 / 1e6))
    return tag


def receiver(segments, *, history=1000, num_ports=2):
    """Flowgraph, receiver, and sinks of its bursts and errors; samples are coded with their time and port."""
    times = np.concatenate([np.arange(start, start + length) for start, length in segments])
    offsets = np.cumsum([0] + [length for _, length in segments[:-1]])
    tags = [time_tag(int(o), s) for o, (s, _) in zip(offsets, segments, strict=True)]
    tb = gr.top_block()
    rx = dmimo.burst_receiver("ap1", num_ports, 100, RATE, history)
    tb.sources = [blocks.vector_source_c((times + 1j * port).tolist(), False, 1, tags) for port in range(num_ports)]
    tb.bursts, tb.errors = message_sink(), message_sink()
    for port, source in enumerate(tb.sources):
        tb.connect(source, (rx, port))
    tb.msg_connect(rx, "bursts", tb.bursts, "in")
    tb.msg_connect(rx, "error", tb.errors, "in")
    return tb, rx


def grant_message(*grants):
    return messages.encode("grant", grants=messages.grants_to_pmt(grants))


def receive(grants, segments, *, max_items=None):
    """Bursts that are cut for grants armed before the samples."""
    tb, rx = receiver(segments)
    rx.to_basic_block()._post(pmt.intern("grants"), grant_message(*grants))
    run_until(tb, lambda: tb.errors.messages or len(slots(tb.bursts.messages)) == len(grants), max_items)
    assert not tb.errors.messages
    return slots(tb.bursts.messages)


def slots(published):
    """(grant, samples, status) of every slot in these messages."""
    bursts = [messages.burst(message) for message in published]
    return [(grant, samples, b.status) for b in bursts for grant, samples in zip(b.grants, b.samples, strict=True)]


@pytest.mark.parametrize("max_items", [None, 3, 50, 256])
def test_slots_are_cut_sample_exact_whatever_the_buffers(max_items):
    grants = [Grant(0, 0, 1050), Grant(1, 0, 1150), Grant(5, 1, 1777)]
    received = receive(grants, [(1000, 1500)], max_items=max_items)
    assert [grant for grant, _, _ in received] == grants
    for grant, samples, _ in received:
        expected = np.arange(grant.start, grant.start + 100)
        np.testing.assert_array_equal(samples, np.array([expected, expected + 1j], np.complex64))


def test_times_of_days_are_exact():
    start = 86_400 * 10**6 + 123
    received = receive([Grant(0, 0, start + 10)], [(start, 400)])
    assert received[0][2] == "ok"


def test_slot_across_a_discontinuity_is_lost_and_its_neighbours_are_not():
    grants = [Grant(k, 0, 1000 + 100 * k) for k in range(4)]
    received = receive(grants, [(1000, 130), (1180, 300)])
    assert sorted((grant.slot, status, samples.shape[1]) for grant, samples, status in received) == [
        (0, "ok", 100), (1, "lost", 0), (2, "ok", 100), (3, "ok", 100)]


@pytest.mark.parametrize("max_items", [None, 50])
def test_slots_off_the_sample_grid_are_lost_and_those_after_it_are_not(max_items):
    grants = [Grant(k, 0, 1000 + 100 * k) for k in range(7)]
    received = receive(grants, [(1000, 130), (1180.3, 200), (1450, 300)], max_items=max_items)
    assert sorted((grant.slot, status) for grant, _, status in received) == [
        (0, "ok"), (1, "lost"), (2, "lost"), (3, "lost"), (4, "lost"), (5, "ok"), (6, "ok")]
    assert next(samples for grant, samples, _ in received if grant.slot == 5)[0, 0] == 1500


def test_a_stream_may_begin_off_the_sample_grid():
    received = receive([Grant(0, 0, 1300)], [(1000.3, 200), (1250, 200)])
    assert received[0][2] == "ok"


def test_a_second_start_knows_no_slots_of_the_first():
    tb, rx = receiver([(1000, 150)])
    rx.to_basic_block()._post(pmt.intern("grants"), grant_message(Grant(0, 0, 1000), Grant(1, 0, 1100)))
    run_until(tb, lambda: tb.bursts.messages)
    tb.disconnect_all()
    again, bursts = gr.top_block(), message_sink()
    for port in range(2):
        again.connect(blocks.vector_source_c([0j] * 400, False, 1, [time_tag(0, 1000)]), (rx, port))
    again.msg_connect(rx, "bursts", bursts, "in")
    rx.to_basic_block()._post(pmt.intern("grants"), grant_message(Grant(2, 0, 1200)))
    run_until(again, lambda: bursts.messages)
    assert [grant.slot for grant, _, _ in slots(bursts.messages)] == [2]


def test_consecutive_tags_without_a_gap_lose_nothing():
    received = receive([Grant(0, 0, 1050)], [(1000, 100), (1100, 100)])
    assert received[0][2] == "ok"


class paused_source(gr.sync_block):
    """Emits segments (start, length) of samples coded with their time and port, up to a limit that only grows.

    It does not end, so that what comes later finds the receiver running; `chunks` are the lengths it emits in turn.
    """

    def __init__(self, segments, num_ports, chunks=(8192,), spoilt=None):
        gr.sync_block.__init__(self, "paused_source", None, [np.complex64] * num_ports)
        self.times = np.concatenate([np.arange(start, start + length) for start, length in segments])
        offsets = np.cumsum([0] + [length for _, length in segments[:-1]])
        self.tags = [time_tag(int(offset), start) for offset, (start, _) in zip(offsets, segments, strict=True)]
        self.chunks, self.spoilt, self.sent, self.limit = itertools.cycle(chunks), spoilt, 0, len(self.times)
        self.message_port_register_in(pmt.intern("more"))
        self.set_msg_handler(pmt.intern("more"), self.handle_more)

    def handle_more(self, message):
        """Wakes the source."""

    def go_on(self, limit):
        """Emit up to the sample `limit`."""
        self.limit = limit
        self.to_basic_block()._post(pmt.intern("more"), pmt.PMT_NIL)

    def work(self, input_items, output_items):
        count = min(len(output_items[0]), next(self.chunks), self.limit - self.sent)
        times = self.times[self.sent : self.sent + count]
        for port, out in enumerate(output_items):
            out[:count] = np.where(times == self.spoilt, np.nan, times + 1j * port)
        for tag in self.tags:
            if self.sent <= tag.offset < self.sent + count:
                self.add_item_tag(0, tag.offset, tag.key, tag.value)
        self.sent += count
        return count


@contextlib.contextmanager
def running(segments, *, history=1000, num_ports=2, limit=None, **options):
    """Running flowgraph of a `paused_source` and a receiver of slots of 100 samples, after the samples of `limit`."""
    tb, source = gr.top_block(), paused_source(segments, num_ports, **options)
    if limit is not None:
        source.limit = limit
    rx = dmimo.burst_receiver("ap1", num_ports, 100, RATE, history)
    tb.bursts, tb.errors = message_sink(), message_sink()
    for port in range(num_ports):
        tb.connect((source, port), (rx, port))
    tb.msg_connect(rx, "bursts", tb.bursts, "in")
    tb.msg_connect(rx, "error", tb.errors, "in")
    tb.source, tb.rx = source, rx
    tb.start()
    try:
        wait_for(lambda: rx.nitems_read(0) == source.limit)
        yield tb
    finally:
        tb.stop()
        tb.wait()


def post(tb, *contents):
    """Send the receiver grants, or delays as lists."""
    for content in contents:
        message = messages.encode("delays", samples=np.array(content)) if isinstance(content, list) else (
            grant_message(content))
        tb.rx.to_basic_block()._post(pmt.intern("grants"), message)


@pytest.mark.parametrize(("start", "status"), [(1900, "ok"), (1744, "ok"), (1743, "lost")])
def test_grant_that_comes_after_its_samples_is_served_from_the_history_while_it_lasts(start, status):
    published = late(Grant(9, 0, start), history=256)
    assert [(grant.slot, state) for grant, _, state in slots(published)] == [(9, status)]


def late(*grants, history, count=1, num_ports=2, spoilt=None):
    """`count` messages published when slots of samples 1000 ... 1999 are asked for after them, `spoilt` being NaN."""
    with running([(1000, 1000)], history=history, num_ports=num_ports, spoilt=spoilt) as tb:
        tb.rx.to_basic_block()._post(pmt.intern("grants"), grant_message(*grants))
        published = tb.bursts.wait(count)
    assert len(published) == count
    assert not tb.errors.messages
    return published


@pytest.mark.parametrize("history", [1000, 600])
@pytest.mark.parametrize("num_ports", [1, 2])
@pytest.mark.parametrize("starts", [(1700, 1800, 1900), (1750, 1850), (1410, 1500, 1777), (1700, 1750, 1900), (1755,)])
def test_slots_complete_together_go_out_as_one_message_slot_by_slot(starts, num_ports, history):
    grants = [Grant(k, 0, start) for k, start in enumerate(starts)]
    (message,) = late(*grants[::-1], history=history, num_ports=num_ports)
    burst = messages.burst(message)
    assert burst.grants == grants
    times = np.array(starts)[:, None, None] + np.arange(100)
    np.testing.assert_array_equal(burst.samples, times + 1j * np.arange(num_ports)[:, None])


def test_slot_that_is_lost_or_not_finite_goes_alone():
    grants = [Grant(0, 0, 900), Grant(1, 0, 1700), Grant(2, 0, 1800), Grant(3, 0, 1900)]
    published = [messages.burst(message) for message in late(*grants, history=1000, count=4, spoilt=1850)]
    assert [(b.grants, b.status, b.samples.shape) for b in published] == [
        ([grants[0]], "lost", (1, 2, 0)), ([grants[1]], "ok", (1, 2, 100)),
        ([grants[2]], "samples are not finite", (1, 2, 0)), ([grants[3]], "ok", (1, 2, 100))]


def test_samples_are_kept_while_buffers_are_written_all_around():
    """Each slot is asked for when the stream stands between it and the end of the history."""
    generator = np.random.default_rng(3)
    with running([(0, 300_000)], history=1000, limit=1000, chunks=generator.integers(1, 700, 97).tolist()) as tb:
        for number in range(200):
            end = tb.source.limit
            post(tb, grant := Grant(number, 0, int(end - generator.integers(100, 1001))))
            burst = messages.burst(tb.bursts.wait(number + 1)[-1])
            assert (burst.grants, burst.status) == ([grant], "ok")
            np.testing.assert_array_equal(burst.samples[0], ports_from(grant.start))
            tb.source.go_on(tb.source.limit + int(generator.integers(1, 1500)))
            wait_for(lambda: tb.rx.nitems_read(0) == tb.source.limit)


# -- delays -----------------------------------------------------------------------------------------------------------


def ports_from(start, delays=(0, 0)):
    """Samples (2, 100) of a slot that begins at `start`, of ports shifted back by their delays."""
    return (start + np.arange(100) + np.array(delays)[:, None] + 1j * np.arange(2)[:, None]).astype(np.complex64)


def cut(delays, starts, segments, chunks):
    """(start, samples, status) of slots granted before the samples."""
    with running(segments, history=300, limit=0, chunks=chunks) as tb:
        post(tb, delays, *(Grant(k, 0, start) for k, start in enumerate(starts)))
        tb.source.go_on(len(tb.source.times))
        wait_for(lambda: tb.errors.messages or len(slots(tb.bursts.messages)) == len(starts))
    assert not tb.errors.messages
    return sorted(((grant.start, samples, status) for grant, samples, status in slots(tb.bursts.messages)),
                  key=lambda slot: slot[0])


@pytest.mark.parametrize("chunks", [(8192,), (1,), (3, 50, 7), (99, 101), (256,)])
@pytest.mark.parametrize("delays", [[0, 0], [7, 7], [0, 57], [61, 12], [200, 0]])
def test_each_port_is_cut_its_delay_later_whatever_the_buffers(delays, chunks):
    """The cut is that of a stream whose ports were shifted back by their delays."""
    starts = [1000, 1100, 1237, 1700]
    received = cut(delays, starts, [(1000, 1100)], chunks)
    assert [(start, status) for start, _, status in received] == [(start, "ok") for start in starts]
    for start, samples, _ in received:
        np.testing.assert_array_equal(samples, ports_from(start, delays))


@pytest.mark.parametrize("chunks", [(8192,), (1,), (37, 64)])
@pytest.mark.parametrize(("delays", "statuses"), [
    ([0, 0], ["ok", "lost", "ok"]),  # 1000 ... 1099, 1100 ... 1199, 1300 ... 1399 of 1000 ... 1149 and 1300 ...
    ([50, 50], ["ok", "lost", "ok"]),
    ([0, 51], ["lost", "lost", "ok"]),  # the later port is cut by the gap
    ([51, 0], ["lost", "lost", "ok"]),
])
def test_slot_is_lost_if_a_gap_cuts_any_of_its_ports(delays, statuses, chunks):
    received = cut(delays, [1000, 1100, 1300], [(1000, 150), (1300, 400)], chunks)
    assert [status for _, _, status in received] == statuses
    for start, samples, status in received:
        if status == "ok":
            np.testing.assert_array_equal(samples, ports_from(start, delays))


def test_slot_whose_ports_all_begin_after_a_gap_is_complete():
    received = cut([30, 40], [1270], [(1000, 150), (1300, 400)], (8192,))
    assert [status for _, _, status in received] == ["ok"]


def test_slot_waits_for_its_latest_port_and_no_longer():
    with running([(1000, 1000)], limit=239) as tb:
        post(tb, [40, 10], Grant(0, 0, 1100), [40, 10])
        tb.rx.to_basic_block()._post(pmt.intern("grants"), grant_message(Grant(1, 0, 500)))
        assert slots(tb.bursts.wait(1))[0][0].slot == 1  # lost: the messages before have been handled
        assert len(tb.bursts.messages) == 1
        tb.source.go_on(240)
        assert slots(tb.bursts.wait(2))[1][0].slot == 0


@pytest.mark.parametrize(("age", "status"), [(1000, "ok"), (1001, "lost")])
def test_late_grant_is_served_if_its_earliest_port_is_in_the_history(age, status):
    with running([(1000, 3000)], history=1000) as tb:
        post(tb, [150, 20], Grant(0, 0, 4000 - age - 20))
        assert slots(tb.bursts.wait(1))[0][2] == status


@pytest.mark.parametrize(("delays", "text"), [
    ([0, -1], "delays = [0, -1]: must be 2 whole numbers of samples, not negative"),
    ([1], "must be 2 whole numbers"), ([0.0, 1.0], "must be 2 whole numbers"),
    ([5, 906], "differ by more than history_samples = 1000 have room for beside slot_samples = 100")])
def test_delays_that_cannot_be_are_an_error(delays, text):
    with running([(1000, 100)]) as tb:
        post(tb, delays)
        assert text in pmt.symbol_to_string(tb.errors.wait(1)[0])


def test_delays_as_far_apart_as_the_history_are_taken():
    with running([(1000, 2000)]) as tb:
        post(tb, [5, 905], Grant(0, 0, 2000 - 5))
        assert slots(tb.bursts.wait(1))[0][2] == "ok"


# -- the load ---------------------------------------------------------------------------------------------------------


def test_only_slots_are_touched(monkeypatch):
    """Arrays are made of the streams' memory only for slots."""
    made = []
    array_at = burst_receiver.array_at
    monkeypatch.setattr(burst_receiver, "array_at", lambda *args: made.append(args) or array_at(*args))
    with running([(0, 100_000)], limit=50_000) as tb:
        assert not made
        post(tb, Grant(0, 0, 60_000))
        tb.source.go_on(100_000)
        tb.bursts.wait(1)
        wait_for(lambda: tb.rx.nitems_read(0) == 100_000)
        assert len(made) == 2  # one for each port


def test_slot_does_not_wait_for_the_next():
    tb, rx = receiver([(1000, 150)])
    rx.to_basic_block()._post(pmt.intern("grants"), grant_message(Grant(0, 0, 1000), Grant(1, 0, 1100)))
    run_until(tb, lambda: tb.bursts.messages)
    assert [messages.burst(message).grants for message in tb.bursts.messages] == [[Grant(0, 0, 1000)]]


@pytest.mark.parametrize(("tag", "text"), [
    (False, "must begin with an rx_time tag"), (True, "must be a tuple of whole seconds and fraction")])
def test_stream_without_a_time_is_an_error(tag, text):
    tb = gr.top_block()
    rx, errors = dmimo.burst_receiver("ap1", 1, 100, RATE, 256), message_sink()
    wrong = time_tag(0, 0)
    wrong.value = pmt.from_double(0)
    source = blocks.vector_source_c([0j] * 10, False, 1, [wrong] if tag else [])
    tb.connect(source, rx)
    tb.msg_connect(rx, "error", errors, "in")
    run_until(tb, lambda: errors.messages)
    assert text in pmt.symbol_to_string(errors.messages[0])


def test_history_shorter_than_a_slot_is_refused():
    with pytest.raises(ValueError, match="history_samples = 99"):
        dmimo.burst_receiver("ap1", 1, 100, RATE, 99)
