# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pmt
import pytest
from gnuradio import blocks, dmimo, gr
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.blocks.timetags import rate_ratio, time_to_pmt
from graph import message_sink, run_until

RATE = rate_ratio(1e6)


def transmit(bursts, expected, *, num_ports=2, max_items=None, max_samples=2048):
    """Streams and tags for bursts (start, beam, slot, samples): `expected` samples per port, or an error."""
    tb = gr.top_block()
    tx = dmimo.burst_transmitter(num_ports, max_samples)
    for stream in tx.streams:  # for ever instead of a quarter of a second
        stream.set_blkd_input_timer_value(1_000_000)
    sinks, errors = [blocks.vector_sink_c() for _ in range(num_ports)], message_sink()
    for port, sink in enumerate(sinks):
        tb.connect((tx, port), sink)
    entry, port_name = (tx.splitter, "bursts") if num_ports > 1 else (tx.streams[0], "pdus")
    if num_ports > 1:
        tb.msg_connect(tx, "error", errors, "in")
    for start, beam, slot, samples in bursts:
        vector = messages.vector_to_pmt(samples)
        entry._post(pmt.intern(port_name), messages.transmit_burst(time_to_pmt(start, RATE), [beam], [slot], vector))
    run_until(tb, lambda: errors.messages or min(len(sink.data()) for sink in sinks) >= expected, max_items)
    tags = [(port, t.offset, pmt.symbol_to_string(t.key), pmt.to_python(t.value))
            for port, sink in enumerate(sinks) for t in sink.tags()]
    return np.array([sink.data() for sink in sinks], np.complex64), sorted(tags), errors.messages


def burst(length, seed=0, num_ports=2):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(num_ports, length)) + 1j * rng.normal(size=(num_ports, length))).astype(np.complex64)


@pytest.mark.parametrize("num_ports", [1, 2, 3])
@pytest.mark.parametrize("max_items", [None, 300])
def test_bursts_leave_bit_exact_with_exact_tags_on_every_port(num_ports, max_items):
    x, y = burst(100, 1, num_ports), burst(40, 2, num_ports)
    late = 3 * 10**12 + 7
    data, tags, errors = transmit([(5, 2, 17, x), (late, 0, 18, y)], 140, num_ports=num_ports, max_items=max_items)
    assert not errors
    np.testing.assert_array_equal(data, np.concatenate([x, y], axis=1))
    assert tags == sorted(
        (port, offset, key, value) for port in range(num_ports)
        for offset, time, beam, slot, length in ((0, (0, 5e-6), 2, 17, 100), (100, (3 * 10**6, 7e-6), 0, 18, 40))
        for key, value in (("tx_time", time), ("beam", beam), ("slot", slot), ("packet_len", length)))


def test_long_burst_leaves_whole():
    x = burst(30_000, 3)
    data, tags, _ = transmit([(0, 0, 0, x)], 30_000, max_samples=30_000)
    np.testing.assert_array_equal(data, x)
    assert [tag[3] for tag in tags if tag[2] == "packet_len"] == [30_000, 30_000]


def test_burst_that_does_not_divide_among_the_ports_is_an_error():
    _, _, errors = transmit([(0, 0, 0, np.zeros(101, np.complex64))], 1)
    assert "101 samples: must be a multiple of num_ports = 2" in pmt.symbol_to_string(errors[0])


def test_end_finishes_the_streams():
    tb = gr.top_block()
    tx, sink = dmimo.burst_transmitter(1), blocks.vector_sink_c()
    tb.connect(tx, sink)
    tx.streams[0]._post(messages.SYSTEM, messages.DONE)
    tb.run()  # returns because the source has finished
    assert not sink.data()


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="num_ports = 0"):
        dmimo.burst_transmitter(0)


def test_long_bursts_say_nothing_on_the_console(capfd):
    dmimo.burst_transmitter(2, 4096)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("length", [300, 2048, 5000])
def test_bursts_that_do_not_fit_the_buffer_together_wait_for_room_no_longer_than_needed(length):
    """A source's wait for messages, which GNU Radio ends after a while, would not end here; that for room does."""
    bursts = [(k * length, 0, k, burst(length, k, 1)) for k in range(40)]
    data, tags, _ = transmit(bursts, 40 * length, num_ports=1, max_samples=length)
    np.testing.assert_array_equal(data, np.concatenate([samples for *_, samples in bursts], axis=1))
    assert [tag[3] for tag in tags if tag[2] == "packet_len"] == [length] * 40
