# SPDX-License-Identifier: GPL-3.0-or-later
"""Frequency corrector: absolute time, messages, setters, tags."""

from fractions import Fraction

import numpy as np
import pmt
import pytest
from gnuradio import blocks, dmimo, gr
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.blocks.timetags import time_to_pmt
from gnuradio.dmimo.protocols.correction import NodeCorrection
from graph import message_sink, run_until, wait_for

RATE = 1e6
X = np.random.default_rng(3).normal(size=(2, 10_000, 2)).view(complex)[..., 0].astype(np.complex64)


def theta(frequency_hz, samples):
    """2 pi f n / rate from rational arithmetic."""
    return 2 * np.pi * np.array([float(Fraction(frequency_hz) * int(n) / Fraction(RATE) % 1) for n in samples])


def tag(name, offset, sample):
    found = gr.tag_t()
    found.offset, found.key, found.value = offset, pmt.intern(name), time_to_pmt(sample, Fraction(RATE))
    return found


def run(block, x=X, tags=(), max_items=None, start=None):
    """Output streams and their tags for finite inputs; `tags` go on port 0."""
    tb, sinks = gr.top_block(), [blocks.vector_sink_c() for _ in x]
    tb.sources = [blocks.vector_source_c(row.tolist(), False, 1, list(tags) if k == 0 else [])
                  for k, row in enumerate(x)]
    for port, (source, sink) in enumerate(zip(tb.sources, sinks, strict=True)):
        tb.connect(source, (block, port))
        tb.connect((block, port), sink)
    run_until(tb, lambda: min(len(sink.data()) for sink in sinks) == x.shape[1], max_items)
    return np.array([sink.data() for sink in sinks]), [sink.tags() for sink in sinks]


def correction(**fields):
    return messages.encode("correction", **fields)


@pytest.mark.parametrize(("direction", "turn"), [
    ("transmit", lambda angle: np.exp(1j * (angle + 0.7))), ("receive", lambda angle: np.exp(-1j * angle))])
def test_streams_turn_by_the_items_since_the_start(direction, turn):
    block = dmimo.frequency_corrector(2, RATE, direction, 123.4, 0.7)
    data, _ = run(block)
    np.testing.assert_allclose(data, X * turn(theta(123.4, range(10_000))), atol=2e-6)


@pytest.mark.parametrize("max_items", [1, 17, 1000, 5000])
def test_output_is_the_same_to_the_bit_for_any_buffers(max_items):
    tags = [tag("rx_time", 0, 77), tag("rx_time", 3000, 10**11 + 5), tag("rx_time", 3001, 10**11 + 9000)]

    def block():
        made = dmimo.frequency_corrector(1, RATE, "receive", -321.0)
        made.handle_correction(correction(frequency_hz=5000.0, from_sample=2000))
        return made

    whole, _ = run(block(), X[:1, :6000], tags)
    later = X[0, 2500:3000] * np.exp(-1j * (theta(-321.0, [2000]) + theta(5000.0, 77 + np.arange(500, 1000))))
    np.testing.assert_allclose(whole[0, 2500:3000], later, atol=3e-6)
    data, _ = run(block(), X[:1, :6000], tags, max_items)
    np.testing.assert_array_equal(data, whole)


@pytest.mark.parametrize(("direction", "name", "sign"), [("transmit", "tx_time", 1), ("receive", "rx_time", -1)])
def test_time_tags_move_the_sample_across_gaps_and_pass_through(direction, name, sign):
    starts = [(0, 50_000), (1000, 10**12), (1500, 10**12 + 123_456)]
    tags = [tag(name, *start) for start in starts]
    data, found = run(dmimo.frequency_corrector(2, RATE, direction, 45.6), X[:, :2000], tags)
    samples = np.concatenate([50_000 + np.arange(1000), 10**12 + np.arange(500), 10**12 + 123_456 + np.arange(500)])
    np.testing.assert_allclose(data, X[:, :2000] * np.exp(sign * 1j * theta(45.6, samples)), atol=2e-6)
    assert [(t.offset, pmt.symbol_to_string(t.key)) for t in found[0]] == [(offset, name) for offset, _ in starts]
    assert all(pmt.equal(t.value, time_to_pmt(at, Fraction(RATE))) for t, (_, at) in zip(found[0], starts, strict=True))
    assert not found[1]


def test_tag_of_the_other_direction_does_not_move_the_sample():
    data, found = run(dmimo.frequency_corrector(1, RATE, "transmit", 45.6), X[:1], [tag("rx_time", 10, 5000)])
    np.testing.assert_allclose(data, X[:1] * np.exp(1j * theta(45.6, range(10_000))), atol=2e-6)
    assert len(found[0]) == 1


def test_message_takes_effect_at_its_sample_without_a_jump():
    block = dmimo.frequency_corrector(1, RATE, "transmit", 100.0)
    block.handle_correction(correction(frequency_hz=-900.0, phase_rad=0.5, from_sample=10**9 + 4321))
    data, _ = run(block, X[:1], [tag("tx_time", 0, 10**9)])
    angle = theta(100.0, 10**9 + np.arange(4321))
    border = theta(100.0, [10**9 + 4321])[0]
    angle = np.concatenate([angle, border + theta(-900.0, np.arange(10_000 - 4321)) + 0.5])
    np.testing.assert_allclose(data, X[:1] * np.exp(1j * angle), atol=2e-6)
    assert (block.frequency_hz, block.phase_rad) == (-900.0, 0.5)


def test_message_on_the_port_goes_on_from_the_next_sample_and_errors_change_nothing():
    """A stream that never ends is retuned while it runs: its phase step changes once, and nowhere by more."""
    block, errors, sink = dmimo.frequency_corrector(1, RATE, "receive", 1000.0), message_sink(), blocks.vector_sink_c()
    tb = gr.top_block()
    tb.source = blocks.vector_source_c(np.ones(100).tolist(), True)
    tb.throttle = blocks.throttle(8, 2e5)
    tb.connect(tb.source, tb.throttle, block, sink)
    tb.msg_connect(block, "error", errors, "in")
    tb.start(500)
    try:
        wait_for(lambda: len(sink.data()) > 2000)
        block._post(pmt.intern("correction"), correction(frequency_hz=float("nan")))
        block._post(pmt.intern("correction"), correction(frequency_hz=-3000.0))
        wait_for(lambda: block.frequency_hz == -3000.0)
        now = len(sink.data())
        wait_for(lambda: len(sink.data()) > now + 5000)
        errors.wait(1)
    finally:
        tb.stop()
        tb.wait()
    y = np.array(sink.data())
    steps = np.angle(y[1:] * y[:-1].conj()) * RATE / (2 * np.pi)
    border = np.argmax(np.abs(steps + 1000.0) > 1.0)
    assert border > 1000
    np.testing.assert_allclose(steps[:border], -1000.0, atol=0.1)
    np.testing.assert_allclose(steps[border + 1 :], 3000.0, atol=0.1)
    assert "frequency_hz = nan" in pmt.symbol_to_string(errors.messages[0])


def test_setters_take_effect():
    block = dmimo.frequency_corrector(2, RATE, "transmit", 10.0)
    block.set_frequency(-77.0)
    block.set_phase(-0.25)
    data, _ = run(block)
    np.testing.assert_allclose(data, X * np.exp(1j * (theta(-77.0, range(10_000)) - 0.25)), atol=2e-6)
    block.set_phase(1.0)
    data, _ = run(block)
    np.testing.assert_allclose(data, X * np.exp(1j * (theta(-77.0, range(10_000)) + 1.0)), atol=2e-6)
    for setter in (block.set_frequency, block.set_phase):
        with pytest.raises(ValueError, match="must be a finite number"):
            setter(float("inf"))


def test_time_and_frequency_given_later_hold_from_that_time_on():
    """A change without a sample, while one is set for later, joins that one."""
    block = dmimo.frequency_corrector(1, RATE, "transmit", 100.0)
    block.handle_correction(correction(frequency_hz=0.0, from_sample=5000))
    block.set_frequency(200.0)
    data, _ = run(block, X[:1])
    angle = np.concatenate([theta(100.0, range(5000)), theta(100.0, [5000]) + theta(200.0, range(5000))])
    np.testing.assert_allclose(data, X[:1] * np.exp(1j * angle), atol=2e-6)


def test_estimate_that_is_not_trusted_is_not_applied():
    block = dmimo.frequency_corrector(1, RATE, "transmit", 100.0)
    block.handle_correction(correction(frequency_hz=5.0, trusted=False))
    block.handle_correction(correction(frequency_hz=5.0, from_sample=0, trusted=False))
    data, _ = run(block, X[:1])
    np.testing.assert_allclose(data, X[:1] * np.exp(1j * theta(100.0, range(10_000))), atol=2e-6)
    block.handle_correction(correction(frequency_hz=5.0, trusted=True, from_sample=0))
    assert block.frequency_hz == 5.0


@pytest.mark.parametrize(("message", "text"), [
    (pmt.from_double(3.0), "must be a dictionary"),
    (pmt.cons(pmt.make_dict(), pmt.PMT_NIL), "must "),
    (pmt.make_dict(), "must "),
    (correction(frequency="5"), "must hold frequency_hz or phase_rad"),
    (correction(from_sample=5), "must hold frequency_hz or phase_rad"),
    (correction(frequency_hz="fast"), "frequency_hz = 'fast': must be a finite number"),
    (correction(frequency_hz=True), "must be a finite number"),
    (correction(frequency_hz=5.0, phase_rad=float("inf")), "phase_rad = inf"),
    (correction(frequency_hz=5.0, from_sample=10.0), "from_sample = 10.0"),
    (correction(frequency_hz=5.0, from_sample=999), "at_sample = 999"),
])
def test_malformed_message_is_reported_and_changes_nothing(message, text):
    block, errors = dmimo.frequency_corrector(1, RATE), []
    block.handle_correction(correction(frequency_hz=1.0, phase_rad=2.0, from_sample=1000))
    block.message_port_pub = lambda port, value: errors.append((pmt.symbol_to_string(port), value))
    block.handle_correction(message)
    (port, value), = errors
    assert port == "error"
    assert text in pmt.symbol_to_string(value)
    assert (block.frequency_hz, block.phase_rad, len(block._changes)) == (1.0, 2.0, 0)


@pytest.mark.parametrize(("arguments", "text"), [
    ((0, RATE), "num_ports = 0"), ((1, 0.0), "samp_rate"), ((1, RATE, "both"), "direction = 'both'"),
    ((1, RATE, "receive", float("nan")), "frequency_hz"), ((1, RATE, "receive", 0.0, float("inf")), "phase_rad"),
    ((1, RATE, "receive", 0.0, 0.0, -1), "latency_samples = -1")])
def test_bad_arguments_are_refused(arguments, text):
    with pytest.raises(ValueError, match=text):
        dmimo.frequency_corrector(*arguments)


def two_nodes(offset_hz, seconds, transmit_block, receive_block):
    """Ratio of both directions' received tones, leader and follower with oscillators `offset_hz` apart."""
    n = np.arange(round(seconds * RATE))
    between = np.exp(2j * np.pi * offset_hz * n / RATE).astype(np.complex64)[None]
    received, _ = run(receive_block, between)  # by the follower, what the leader sends as 1
    sent, _ = run(transmit_block, np.ones_like(between))
    return (sent * between.conj() / received)[0]  # by the leader, what the follower sends as 1


def test_calibration_stays_only_when_both_directions_are_corrected():
    """BeamSync, science.md section 2: 10 Hz left on one side turn it 36 degrees in 10 ms."""
    def drift_deg(transmit_hz, receive_hz):
        y = two_nodes(10.0, 0.01, dmimo.frequency_corrector(1, RATE, "transmit", transmit_hz),
                      dmimo.frequency_corrector(1, RATE, "receive", receive_hz))
        return np.degrees(np.angle(y[-1] / y[0]))

    assert drift_deg(10.0, 10.0) == pytest.approx(0.0, abs=1e-3)
    assert drift_deg(10.0, 0.0) == pytest.approx(-36.0, abs=0.01)


@pytest.mark.parametrize("direction", ["transmit", "receive"])
@pytest.mark.parametrize("tags", [[], [(0, 10**9), (5000, 10**9 + 20_000)]])
def test_corrector_equals_that_of_a_node_across_a_change_of_frequency_at_the_antenna(direction, tags):
    """Received samples are labelled 300 late: on both sides the change is at the same instant of the antenna."""
    label = {"transmit": "tx_time", "receive": "rx_time"}[direction]
    starts, lengths = ([start for _, start in tags], [5000, 5000]) if tags else ([0], [10_000])
    change, node = starts[-1] + 2500, NodeCorrection(RATE, latency_samples=300)
    node.carrier.retune(-700.0, 0)
    node.carrier.retune(900.0, change)
    block = dmimo.frequency_corrector(2, RATE, direction, latency_samples=300)
    block.handle_correction(correction(frequency_hz=-700.0, from_sample=0))
    block.handle_correction(correction(frequency_hz=900.0, from_sample=change))
    data, _ = run(block, tags=[tag(label, *each) for each in tags])
    pieces = np.split(X, np.cumsum(lengths)[:-1], axis=1)
    expected = [getattr(node, direction)(piece, start) for piece, start in zip(pieces, starts, strict=True)]
    np.testing.assert_allclose(data, np.concatenate(expected, axis=1), atol=2e-6)


def test_calibration_stays_across_changes_of_frequency_only_with_the_latency():
    """What is received is labelled 500 late: ignored, a change by 250 Hz turns c by 250 * 500e-6 cycles."""
    latency = 500

    def turn_deg(told):
        correctors = [dmimo.frequency_corrector(1, RATE, direction, 0.0, latency_samples=told)
                      for direction in ("transmit", "receive")]
        for block in correctors:
            block.handle_correction(correction(frequency_hz=250.0, from_sample=4000))
        between = np.ones((1, 8000), np.complex64)
        sent, _ = run(correctors[0], between)
        received, _ = run(correctors[1], between, [tag("rx_time", 0, latency)])
        c = sent[0] * received[0]
        return np.degrees(np.angle(c[-1] / c[0]))

    assert turn_deg(latency) == pytest.approx(0.0, abs=1e-3)
    assert turn_deg(0) == pytest.approx(-45.0, abs=0.01)
