# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pmt
import pytest
from gnuradio import blocks, dmimo, gr
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.protocols.slots import Grant
from graph import message_sink, run_until

RATE = 1e6
HEADER = messages.burst_header("ap1", 2)


def transmit(bursts, expected, *, slot_samples=100, fill=True, max_items=None):
    """Streams and tags that come out for bursts (grant, samples, beam): `expected` samples, or an error."""
    tb = gr.top_block()
    tx = dmimo.burst_transmitter(2, slot_samples, RATE, fill)
    sinks = [blocks.vector_sink_c() for _ in range(2)]
    errors = message_sink()
    for port, sink in enumerate(sinks):
        tb.connect((tx, port), sink)
    tb.msg_connect(tx, "error", errors, "in")
    for grant, samples, beam in bursts:
        message = messages.burst_to_pmt(HEADER, grant, samples, beam=beam)
        tx.to_basic_block()._post(pmt.intern("bursts"), message)
    run_until(tb, lambda: errors.messages or min(len(sink.data()) for sink in sinks) >= expected, max_items)
    tags = [(port, t.offset, pmt.symbol_to_string(t.key), pmt.to_python(t.value))
            for port, sink in enumerate(sinks) for t in sink.tags()]
    return np.array([sink.data() for sink in sinks], np.complex64), sorted(tags), errors.messages


def burst(length, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(2, length)) + 1j * rng.normal(size=(2, length))).astype(np.complex64)


@pytest.mark.parametrize("max_items", [None, 1, 7, 64])
def test_bursts_leave_bit_exact_with_exact_tags_whatever_the_buffers(max_items):
    x, y = burst(100, 1), burst(40, 2)
    start = 3 * 10**12 + 7
    data, tags, errors = transmit(
        [(Grant(0, 0, 5), x, 2), (Grant(1, 0, 105), messages.EMPTY_BURST, 1), (Grant(2, 0, start), y, 0)],
        300, max_items=max_items)
    assert not errors
    np.testing.assert_array_equal(data[:, :100], x)
    assert not data[:, 100:200].any()
    np.testing.assert_array_equal(data[:, 200:240], y)
    assert not data[:, 240:].any()
    assert data.shape == (2, 300)
    assert tags == sorted(
        [(0, k * 100, "tx_time", t) for k, t in enumerate([(0, 5e-6), (0, 105e-6), (3 * 10**6, 7e-6)])]
        + [(0, k * 100, "packet_len", 100) for k in range(3)]
        + [(port, k * 100, "beam", beam) for port in range(2) for k, beam in enumerate([2, 1, 0])])


def test_without_fill_silence_emits_nothing():
    data, tags, _ = transmit([(Grant(0, 0, 0), messages.EMPTY_BURST, 1), (Grant(1, 0, 100), burst(100), 0)], 100, fill=False)
    assert data.shape == (2, 100)
    assert {tag[1] for tag in tags} == {0}


def test_burst_longer_than_its_slot_ends_in_an_error_that_names_the_slot():
    _, _, errors = transmit([(Grant(7, 0, 0), burst(101), 0)], 1)
    text = pmt.symbol_to_string(errors[0])
    assert "slot 7: burst of 2 ports x 101 samples" in text


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="slot_samples = 0"):
        dmimo.burst_transmitter(1, 0, RATE)
