# SPDX-License-Identifier: GPL-3.0-or-later
"""Conjugate return: energy, time, matched filter, bursts that cannot be returned."""

from fractions import Fraction

import numpy as np
import pmt
import pytest
from gnuradio import dmimo, gr
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.blocks.timetags import sample_from_pmt, time_to_pmt
from gnuradio.dmimo.core import beamsync
from gnuradio.dmimo.protocols.slots import Grant
from graph import message_sink, message_source

RATE = 1e6
LATENCY = 5000
Y = np.random.default_rng(1).normal(size=(3, 64, 2)).view(complex)[..., 0].astype(np.complex64)
X = np.exp(1j * np.pi * np.arange(40) ** 2 / 40)


def received(samples=Y, start=10**12 + 7, status="ok"):
    return messages.received_burst(messages.burst_header("a", 3), [Grant(4, 1, start)], samples, status)


def plain(samples=Y, **keys):
    meta = pmt.make_dict()
    for key, value in keys.items():
        meta = pmt.dict_add(meta, pmt.intern(key), value)
    return pmt.cons(meta, pmt.init_c32vector(samples.size, samples.reshape(-1).tolist()))


def answers(*bursts, **options):
    """What the block publishes for bursts, by port."""
    block = dmimo.conjugate_return(3, RATE, LATENCY, **options)
    published = {"returns": [], "dropped": [], "error": []}
    block.message_port_pub = lambda port, message: published[pmt.symbol_to_string(port)].append(message)
    for burst in bursts:
        block.handle_burst(burst)
    return published


def returned(burst, **options):
    published = answers(burst, **options)
    assert not published["dropped"]
    assert not published["error"]
    (answer,) = published["returns"]
    return pmt.car(answer), messages.vector_from_pmt(pmt.cdr(answer)).reshape(3, -1)


def key(meta, name):
    return pmt.dict_ref(meta, pmt.intern(name), pmt.PMT_NIL)


def test_return_is_the_conjugate_with_the_energy_of_its_length():
    _, out = returned(received())
    np.testing.assert_allclose(out, np.sqrt(64) / np.sqrt(np.sum(np.abs(Y) ** 2)) * Y.conj(), rtol=1e-6)
    assert np.sum(np.abs(out) ** 2) == pytest.approx(64, rel=1e-6)
    _, quiet = returned(received(1e-6 * Y), amplitude=0.5)
    np.testing.assert_allclose(quiet, 0.5 * out, rtol=1e-5)


def test_return_leaves_its_latency_after_the_burst_to_the_sample():
    meta, _ = returned(received())
    assert sample_from_pmt(key(meta, "tx_time"), Fraction(RATE)) == 10**12 + 7 + LATENCY
    assert pmt.to_long(key(meta, "slot")) == 4
    assert pmt.length(pmt.dict_keys(meta)) == 2, "what belongs to reception is not sent on"


def test_slots_received_together_are_returned_one_by_one():
    grants = [Grant(4, 0, 1000), Grant(6, 0, 3000)]
    together = messages.received_burst(messages.burst_header("a", 3), grants, np.stack([Y, 2j * Y]))
    first, second = answers(together)["returns"]
    for message, slot, start, samples in ((first, 4, 1000, Y), (second, 6, 3000, 2j * Y)):
        meta, out = pmt.car(message), messages.vector_from_pmt(pmt.cdr(message)).reshape(Y.shape)
        assert pmt.to_long(key(meta, "slot")) == slot
        assert sample_from_pmt(key(meta, "tx_time"), Fraction(RATE)) == start + LATENCY
        np.testing.assert_array_equal(out, returned(received(samples.astype(np.complex64)))[1])


def test_plain_bursts_are_timed_by_rx_time_or_go_at_once():
    meta, out = returned(plain(rx_time=time_to_pmt(777, Fraction(RATE)), beam=pmt.from_long(2)))
    assert sample_from_pmt(key(meta, "tx_time"), Fraction(RATE)) == 777 + LATENCY
    assert pmt.to_long(key(meta, "beam")) == 2
    np.testing.assert_array_equal(out, returned(received())[1])
    meta, same = returned(plain())
    assert pmt.length(pmt.dict_keys(meta)) == 0
    np.testing.assert_array_equal(same, out)


def test_part_of_a_burst_is_returned_in_its_place():
    _, out = returned(received(), first_sample=10, num_samples=30)
    np.testing.assert_allclose(out[:, 10:40], beamsync.conjugate_return(Y[:, 10:40]), rtol=1e-6)
    assert not np.any(out[:, :10])
    assert not np.any(out[:, 40:])
    np.testing.assert_allclose(returned(received(), first_sample=24)[1][:, 24:],
                               beamsync.conjugate_return(Y[:, 24:]), rtol=1e-6)


def test_matched_return_holds_the_conjugate_of_the_channel_estimate():
    g = np.array([1, -2j, 0.5 + 1j])
    clean = np.zeros((3, 64), np.complex64)
    clean[:, 7:47] = g[:, None] * X
    _, out = returned(received(clean), waveform=X, first_sample=7)
    np.testing.assert_allclose(out[:, 7:47], np.conj(g[:, None] * X) / np.linalg.norm(g), atol=1e-6)
    assert not np.any(out[:, 47:])
    np.testing.assert_allclose(returned(received(clean), first_sample=7, num_samples=40)[1], out, atol=1e-6)
    # With noise it is what core makes of it, along x alone.
    noisy = returned(received(clean + 3 * Y), waveform=X, first_sample=7)[1][:, 7:47]
    np.testing.assert_allclose(noisy, beamsync.matched_return((clean + 3 * Y)[:, 7:47], X), atol=1e-5)


NAN = Y.copy()
NAN[1, 5] = complex(np.nan, 0)


@pytest.mark.parametrize(("burst", "options", "reason"), [
    (received(np.zeros_like(Y)), {}, "energy"),
    (received(NAN), {}, "finite"),
    (received(np.full_like(Y, np.inf)), {}, "finite"),
    (received(None, status="lost"), {}, "burst is lost"),
    (received(None), {}, "burst of 0 samples: too short"),
    (received(), {"waveform": X, "first_sample": 30}, "too short for first_sample = 30 and num_samples = 40"),
    (received(np.ones((3, LATENCY + 1), np.complex64)), {}, "longer than latency_samples = 5000"),
    (received(np.zeros_like(Y)), {"waveform": X}, "y conj(x)"),
])
def test_burst_that_cannot_be_returned_is_dropped_by_name(burst, options, reason):
    published = answers(burst, **options)
    assert not published["returns"]
    assert not published["error"]
    (dropped,) = published["dropped"]
    assert messages.kind(dropped) == "dropped"
    assert reason in messages.get(dropped, "reason")
    assert (messages.get(dropped, "slot"), messages.get(dropped, "start")) == (4, 10**12 + 7)


@pytest.mark.parametrize(("message", "text"), [
    (pmt.from_long(3), "no burst"),
    (pmt.cons(pmt.make_dict(), pmt.from_long(3)), "no burst"),
    (plain(Y[:2, :32]), "64 samples: must have num_ports = 3"),
    (plain(num_ports=pmt.from_long(2)), "burst of 2 ports"),
    (plain(rx_time=pmt.from_double(3.0)), "time tag"),
])
def test_message_that_is_no_burst_is_an_error(message, text):
    published = answers(message)
    assert not published["returns"]
    assert not published["dropped"]
    assert text in pmt.symbol_to_string(published["error"][0])


@pytest.mark.parametrize(("options", "text"), [
    ({"num_ports": 0}, "num_ports = 0"), ({"latency_samples": 0}, "latency_samples = 0"),
    ({"samp_rate": 0.0}, "samp_rate"), ({"first_sample": -1}, "first_sample = -1"),
    ({"num_samples": -1}, "num_samples = -1"), ({"amplitude": 0.0}, "amplitude = 0"),
    ({"waveform": np.zeros(4)}, "waveform"), ({"waveform": X, "num_samples": 39}, "waveform")])
def test_bad_arguments_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        dmimo.conjugate_return(**{"num_ports": 3, "samp_rate": RATE, "latency_samples": LATENCY} | options)


def test_flowgraph_returns_bursts_in_order_after_one_that_is_dropped():
    tb, block = gr.top_block(), dmimo.conjugate_return(3, RATE, LATENCY)
    source, returns, dropped = message_source(), message_sink(), message_sink()
    tb.msg_connect(source, "out", block, "bursts")
    tb.msg_connect(block, "returns", returns, "in")
    tb.msg_connect(block, "dropped", dropped, "in")
    tb.start()
    try:
        source.send(received(0 * Y))
        for k in range(3):
            source.send(received((k + 1) * Y, start=1000 * k))
        times = [sample_from_pmt(key(pmt.car(m), "tx_time"), Fraction(RATE)) for m in returns.wait(3)]
        dropped.wait(1)
    finally:
        tb.stop()
        tb.wait()
    assert times == [5000, 6000, 7000]


def test_follower_finds_the_phase_between_the_nodes_in_the_return():
    """Stages II and III of BeamSync through the block: phi = angle(c_A) - angle(c_B)."""
    rng = np.random.default_rng(5)
    g = rng.normal(size=(3, 4, 2)).view(complex)[..., 0]
    c_a, c_b = np.exp(1.1j), np.exp(-0.6j)
    a = rng.normal(size=(4, 2)).view(complex)[..., 0]
    for options in ({}, {"waveform": X}):
        _, sent = returned(received((c_b * g @ np.outer(a, X)).astype(np.complex64)), **options)
        assert beamsync.phase_offset(c_a * g.T @ sent, a, X) == pytest.approx(1.7, abs=1e-6)
