# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pmt
import pytest
from gnuradio import blocks, dmimo, gr
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.protocols.slots import Grant
from graph import message_sink, run_until

RATE = 1e6


def time_tag(offset, sample):
    tag = gr.tag_t()
    tag.offset, tag.key = offset, pmt.intern("rx_time")
    tag.value = pmt.make_tuple(pmt.from_uint64(sample // 10**6), pmt.from_double(sample % 10**6 / 1e6))
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


def test_consecutive_tags_without_a_gap_lose_nothing():
    received = receive([Grant(0, 0, 1050)], [(1000, 100), (1100, 100)])
    assert received[0][2] == "ok"


@pytest.mark.parametrize(("start", "status"), [(1900, "ok"), (1744, "ok"), (1743, "lost")])
def test_grant_that_comes_after_its_samples_is_served_from_the_ring_while_it_lasts(start, status):
    published = late(Grant(9, 0, start), history=256)
    assert [(grant.slot, state) for grant, _, state in slots(published)] == [(9, status)]


def late(*grants, history, num_ports=2, spoilt=None):
    """What is published when slots of samples 1000 ... 1999 are asked for after them, sample `spoilt` being NaN."""
    tb, rx = receiver([(1000, 1000)], history=history, num_ports=num_ports)
    run_until(tb, lambda: rx.nitems_read(0) == 1000)
    if spoilt is not None:
        rx._ring[-1, spoilt % history] = np.nan
    published = []
    rx.message_port_pub = lambda port, message: published.append(message)
    rx.handle_grants(grant_message(*grants))
    return published


@pytest.mark.parametrize("history", [1000, 600])  # the slots cross the ring's end in the second
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
    published = [messages.burst(message) for message in late(*grants, history=1000, spoilt=1850)]
    assert [(b.grants, b.status, b.samples.shape) for b in published] == [
        ([grants[0]], "lost", (1, 2, 0)), ([grants[1]], "ok", (1, 2, 100)),
        ([grants[2]], "samples are not finite", (1, 2, 0)), ([grants[3]], "ok", (1, 2, 100))]


def test_slot_does_not_wait_for_the_next():
    tb, rx = receiver([(1000, 150)])
    rx.to_basic_block()._post(pmt.intern("grants"), grant_message(Grant(0, 0, 1000), Grant(1, 0, 1100)))
    run_until(tb, lambda: tb.bursts.messages)
    assert [messages.burst(message).grants for message in tb.bursts.messages] == [[Grant(0, 0, 1000)]]


@pytest.mark.parametrize(("segments", "tag", "text"), [
    ([(0, 10)], False, "must begin with an rx_time tag"), ([(0, 10)], True, "+0.300 samples off the sample grid")])
def test_stream_without_a_usable_time_is_an_error(segments, tag, text):
    tb = gr.top_block()
    rx, errors = dmimo.burst_receiver("ap1", 1, 100, RATE, 256), message_sink()
    off = time_tag(0, 0)
    off.value = pmt.make_tuple(pmt.from_uint64(0), pmt.from_double(0.3e-6))
    source = blocks.vector_source_c([0j] * 10, False, 1, [off] if tag else [])
    tb.connect(source, rx)
    tb.msg_connect(rx, "error", errors, "in")
    run_until(tb, lambda: errors.messages)
    assert text in pmt.symbol_to_string(errors.messages[0])


def test_ring_shorter_than_a_slot_is_refused():
    with pytest.raises(ValueError, match="history_samples = 99"):
        dmimo.burst_receiver("ap1", 1, 100, RATE, 99)
