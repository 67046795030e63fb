# SPDX-License-Identifier: GPL-3.0-or-later
"""OFDM pilot source and sounder: every port on its comb, the same whatever the buffers, time by tags."""

import dataclasses

import numpy as np
import pmt
import pytest
from gnuradio import blocks, dmimo, gr
from gnuradio.dmimo import testbed
from gnuradio.dmimo.assembly import Assembly
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.blocks.timetags import RX_TIME, rate_ratio, time_to_pmt
from gnuradio.dmimo.core.ofdm_exchange import OfdmExchange
from graph import message_sink, run_until

P, Q, NUM, RATE = 3, 2, 400, 1e6
EXCHANGE = OfdmExchange.from_numbers(RATE, P, Q, NUM, fft_size=256, cp_samples=32, num_subcarriers=192,
                                     lead_samples=16, advance_samples=8)  # fmt: skip
DELAYS = np.array([0, 4, 19])
CHUNKS = [None, 1, 100]


def complex_normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def sent(block, length, max_items=None):
    tb = gr.top_block()
    count = block.output_signature().max_streams()
    tb.heads, tb.sinks = [blocks.head(8, length) for _ in range(count)], [blocks.vector_sink_c() for _ in range(count)]
    for port, (head, sink) in enumerate(zip(tb.heads, tb.sinks, strict=True)):
        tb.connect((block, port), head, sink)
    run_until(tb, lambda: min(len(sink.data()) for sink in tb.sinks) >= length, max_items)
    return np.array([sink.data() for sink in tb.sinks], np.complex64)


def sounded(block, streams, max_items=None, tags=(), num_messages=0, connected=True):
    """What a sounder sends for finite streams: vectors (ports, periods, n) and the fields of its messages."""
    tb, heard, errors = gr.top_block(), message_sink(), message_sink()
    tb.sources = [blocks.vector_source_c(row.tolist(), False, 1, list(tags) if port == 0 else [])
                  for port, row in enumerate(streams)]
    vlen = EXCHANGE.mapping.num_positions
    tb.sinks = [blocks.vector_sink_c(vlen) for _ in streams]
    for port, (source, sink) in enumerate(zip(tb.sources, tb.sinks, strict=True)):
        tb.connect(source, (block, port))
        if connected:
            tb.connect((block, port), sink)
    tb.msg_connect(block, "csi", heard, "in")
    tb.msg_connect(block, "error", errors, "in")
    wanted = num_messages * vlen if connected else 0

    def complete():
        return len(heard.messages) >= num_messages and all(len(sink.data()) >= wanted for sink in tb.sinks)

    run_until(tb, lambda: complete() or errors.messages, max_items)
    names = ("purpose", "start", "sample", "h", "noise_var", "heard")
    found = [{name: messages.get(message, name) for name in names} for message in heard.messages]
    vectors = np.array([sink.data() for sink in tb.sinks], np.complex64).reshape(len(streams), -1, vlen)
    return vectors, found, [pmt.symbol_to_string(text) for text in errors.messages]


def tag(offset, sample):
    return gr.tag_utils.python_to_tag((offset, RX_TIME, time_to_pmt(sample, rate_ratio(RATE)), pmt.PMT_F))


def received(rng, slots, num_rx):
    """Streams (num_rx, n) of slots (periods, P, n) through filters, and the truth (num_rx, P, subcarriers, ...)."""
    taps = complex_normal(rng, num_rx, P, 3)
    sent = np.concatenate(list(slots), axis=-1)
    streams = sum(np.pad(taps[..., i] @ sent, ((0, 0), (d, 0)))[:, : sent.shape[1]] for i, d in enumerate(DELAYS))
    return streams, taps


@pytest.mark.parametrize("max_items", CHUNKS)
@pytest.mark.parametrize("purpose", ["srs", "csi_rs"])
def test_source_repeats_the_pilots_of_its_ports_whatever_the_buffers(purpose, max_items):
    block = dmimo.ofdm_pilot_source(EXCHANGE, purpose, num_ports=2, first_port=1)
    slot = EXCHANGE.sounding(purpose)[1:]
    np.testing.assert_array_equal(sent(block, 1100, max_items), np.tile(slot, 3)[:, :1100])


def test_source_sends_one_slot_in_a_period():
    block = dmimo.ofdm_pilot_source(EXCHANGE, num_ports=P, period_samples=1000, offset_samples=450)
    expected = np.zeros((P, 1000), np.complex64)
    expected[:, 450:850] = EXCHANGE.sounding("srs")
    np.testing.assert_array_equal(sent(block, 2500), np.tile(expected, 3)[:, :2500])


def test_amplitude_of_the_source_can_be_changed():
    block = dmimo.ofdm_pilot_source(EXCHANGE, num_ports=P)
    block.set_amplitude(0.25)
    np.testing.assert_allclose(sent(block, NUM), 0.25 * EXCHANGE.sounding("srs"), rtol=1e-6)
    with pytest.raises(ValueError, match="amplitude = nan"):
        block.set_amplitude(float("nan"))


def response(taps, subcarriers):
    turn = np.exp(-2j * np.pi * subcarriers[..., None] * DELAYS / 256)
    return np.sum(taps.reshape(*taps.shape[:2], *(1,) * (subcarriers.ndim - 1), 3) * turn, axis=-1)


@pytest.mark.parametrize("max_items", CHUNKS)
def test_sounder_hears_all_ports_at_all_ports_whatever_the_buffers(max_items):
    streams, taps = received(np.random.default_rng(1), [EXCHANGE.sounding("csi_rs")] * 4, 2)
    block = dmimo.ofdm_sounder(EXCHANGE, "csi_rs", num_ports=2)
    vectors, found, errors = sounded(block, streams, max_items, num_messages=4)
    assert not errors
    truth = response(taps, EXCHANGE.sounding_subcarriers)
    expected = np.broadcast_to(truth.reshape(2, 1, -1), vectors.shape)
    np.testing.assert_allclose(vectors, expected, atol=1e-5)
    assert [each["start"] for each in found] == [0, NUM, 2 * NUM, 3 * NUM]
    for each in found:
        np.testing.assert_allclose(each["h"], truth, atol=1e-5)
        assert each["purpose"] == "csi_rs"
        assert each["heard"].shape == (2, P)
        assert each["heard"].all()
        assert each["sample"] - each["start"] == EXCHANGE.middle == 16 + 32 - 8 + 127.5


def test_sounder_needs_no_stream_behind_it_and_tells_the_noise():
    """16 slots of 63 empty subcarriers: a standard error of 3 %."""
    rng = np.random.default_rng(2)
    streams, _ = received(rng, [EXCHANGE.sounding("srs", slice(0, 1)).repeat(P, 0) * [[1], [0], [0]]] * 16, 1)
    block = dmimo.ofdm_sounder(EXCHANGE)
    noisy = streams + 0.1 * complex_normal(rng, *streams.shape)
    vectors, found, errors = sounded(block, noisy, num_messages=16, connected=False)
    assert not vectors.size
    assert not errors
    assert [each["heard"].tolist() for each in found] == [[[1, 0, 0]]] * 16
    noise_var = np.mean([each["noise_var"] for each in found])
    assert noise_var == pytest.approx(0.01 * 192 / 256 / P, rel=0.12)
    silent = np.mean([np.abs(each["h"][0, 1:]) ** 2 for each in found])
    assert noise_var == pytest.approx(silent, rel=0.15)


def test_sounder_reads_the_slot_of_its_period_only():
    streams, taps = received(np.random.default_rng(3), [EXCHANGE.sounding("srs")], 1)
    period = np.full((1, 1000), 7.0, complex)
    period[:, 450:850] = streams
    block = dmimo.ofdm_sounder(EXCHANGE, "srs", period_samples=1000, offset_samples=450)
    vectors, found, _ = sounded(block, np.tile(period, 3), num_messages=3)
    assert [each["start"] for each in found] == [450, 1450, 2450]
    truth = response(taps, EXCHANGE.sounding_subcarriers).reshape(1, -1)
    np.testing.assert_allclose(vectors[0], np.broadcast_to(truth, (3, 192)), atol=1e-5)


def test_sounder_reads_the_links_of_answers():
    rng = np.random.default_rng(4)
    h = complex_normal(rng, Q, P, 64)
    answer = EXCHANGE.answer(h, np.ones((Q, P), bool), fade_limit_db=90.0)
    block = dmimo.ofdm_sounder(EXCHANGE, "cars")
    vectors, found, _ = sounded(block, answer.burst.sum(axis=0, keepdims=True), num_messages=1)
    own = np.stack([h[q, :, q::Q] for q in range(Q)], axis=1)  # (P, Q, K / Q)
    np.testing.assert_allclose(found[0]["h"][0], answer.scale.T[..., None] / own, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(vectors[0, 0], found[0]["h"].reshape(-1), rtol=1e-5, atol=1e-5)
    assert found[0]["heard"].shape == (1, P, Q)


@pytest.mark.parametrize("max_items", CHUNKS)
def test_time_follows_the_tags(max_items):
    """The stream begins at 10^12, and goes on two periods later than it should after the second one."""
    streams, _ = received(np.random.default_rng(5), [EXCHANGE.sounding("srs")] * 4, 1)
    tags = [tag(0, 10**12), tag(2 * NUM, 10**12 + 4 * NUM)]
    _, found, errors = sounded(dmimo.ofdm_sounder(EXCHANGE), streams, max_items, tags, num_messages=4)
    assert not errors
    assert [each["start"] - 10**12 for each in found] == [0, NUM, 4 * NUM, 5 * NUM]


def test_loss_inside_a_period_is_an_error():
    streams, _ = received(np.random.default_rng(5), [EXCHANGE.sounding("srs")] * 3, 1)
    _, _, errors = sounded(dmimo.ofdm_sounder(EXCHANGE), streams, None, [tag(NUM + 7, 9999)], num_messages=3)
    assert "rx_time on item 407, inside a period" in errors[0]


def test_time_begins_anew_with_the_flowgraph():
    streams, _ = received(np.random.default_rng(5), [EXCHANGE.sounding("srs")], 1)
    block = dmimo.ofdm_sounder(EXCHANGE)
    _, first, _ = sounded(block, streams, None, [tag(0, 800)], num_messages=1)
    block.start()
    assert first[0]["start"] == 800
    assert block._ahead == 0


@pytest.mark.parametrize(("make", "text"), [
    (lambda: dmimo.ofdm_pilot_source(EXCHANGE, "cars"), "purpose='cars'"),
    (lambda: dmimo.ofdm_pilot_source(EXCHANGE, num_ports=P, first_port=1), "within the 3 sounding ports"),
    (lambda: dmimo.ofdm_pilot_source(EXCHANGE, period_samples=500, offset_samples=101), "inside the period"),
    (lambda: dmimo.ofdm_sounder(EXCHANGE, "dmrs"), "purpose = 'dmrs'"),
    (lambda: dmimo.ofdm_sounder(EXCHANGE, num_ports=0), "num_ports = 0"),
    (lambda: dmimo.ofdm_sounder(EXCHANGE, period_samples=399), "inside the period"),
    (lambda: dmimo.ofdm_sounder(EXCHANGE, period_samples=500, offset_samples=-1), "inside the period")])
def test_bad_arguments_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


def test_source_and_sounder_meet_through_the_simulated_network():
    """Free-running, with oscillators that stand still and whole delays: what is heard is the model's own channel."""
    text = """
    version: 1
    node_defaults: {oscillator: {linewidth_hz: 0}}
    nodes: [{name: ap1, num_ports: 2}, {name: ap2}, {name: ue1, kind: ue, num_ports: 2}]
    propagation: {delays: false}
    noise: {snr_db: 80}
    slots: {slot_samples: 512}
    """
    network = Assembly(testbed.parse(text)).network()
    exchange = dataclasses.replace(EXCHANGE, latency_samples=network.latency_samples)
    tb, heard = gr.top_block(), message_sink()
    tb.air, tb.silence = dmimo.simulated_network(network), blocks.null_source(8)
    tb.pilots = [dmimo.ofdm_pilot_source(exchange, "csi_rs", 2), dmimo.ofdm_pilot_source(exchange, "csi_rs", 1, 2)]
    tb.sounder, tb.sink = dmimo.ofdm_sounder(exchange, "csi_rs", 2), blocks.null_sink(8)
    for port, (source, index) in enumerate([(tb.pilots[0], 0), (tb.pilots[0], 1), (tb.pilots[1], 0)]):
        tb.connect((source, index), (tb.air, port))
        tb.connect((tb.air, port), (tb.sink, port))
    for port in range(2):
        tb.connect((tb.silence, port), (tb.air, 3 + port), (tb.sounder, port))
    tb.msg_connect(tb.sounder, "csi", heard, "in")
    tb.start()
    try:
        first = heard.wait(3)[2]
    finally:
        tb.stop()
        tb.wait()
    h = messages.get(first, "h")
    beams = np.zeros(5, int)
    truth = np.concatenate([network.true_channel("ue1", name, beams, 800) for name in ("ap1", "ap2")], axis=-1)
    np.testing.assert_allclose(h, np.broadcast_to(truth[..., None], h.shape), atol=2e-3)
