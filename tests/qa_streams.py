# SPDX-License-Identifier: GPL-3.0-or-later
"""The free-running blocks: pilot source, channel estimator, precoder."""

import numpy as np
import pmt
import pytest
from gnuradio import blocks, dmimo, gr
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.core import precoding
from gnuradio.dmimo.core.waveforms import SlotLayout, SoundingSymbol
from gnuradio.dmimo.protocols.slots import Product
from graph import message_sink, run_until

SLOT = SlotLayout(512, 16, SoundingSymbol(128, 96, 32), 2).sounding_burst()


def run_streams(block, inputs, length, max_items=None):
    """Outputs of a block for finite inputs, cut to `length` items."""
    tb = gr.top_block()
    tb.sources = [blocks.vector_source_c(x.tolist()) for x in inputs]
    sizes = block.output_signature().sizeof_stream_items()
    count = block.output_signature().max_streams()
    sizes = [sizes[min(k, len(sizes) - 1)] for k in range(count)]
    heads = [blocks.head(size, length) for size in sizes]
    tb.heads, tb.sinks = heads, [blocks.vector_sink_c(size // 8) for size in sizes]
    for port, source in enumerate(tb.sources):
        tb.connect(source, (block, port))
    for port, (head, sink) in enumerate(zip(heads, tb.sinks, strict=True)):
        tb.connect((block, port), head, sink)
    pairs = list(zip(tb.sinks, sizes, strict=True))
    run_until(tb, lambda: min(len(sink.data()) * 8 // size for sink, size in pairs) >= length, max_items)
    return np.array([sink.data() for sink in tb.sinks], np.complex64)


@pytest.mark.parametrize("max_items", [None, 1, 100])
def test_pilot_source_repeats_the_slot_whatever_the_buffers(max_items):
    block = dmimo.pilot_source(num_ports=2, slot_samples=512)
    data = run_streams(block, [], 1300, max_items)
    np.testing.assert_array_equal(data, np.tile(SLOT, 3)[:, :1300])


def test_pilot_amplitude_can_be_changed():
    block = dmimo.pilot_source(num_ports=2, slot_samples=512, amplitude=1.0)
    block.set_amplitude(0.25)
    np.testing.assert_allclose(run_streams(block, [], 512), 0.25 * SLOT, rtol=1e-6)
    with pytest.raises(ValueError, match="amplitude = nan"):
        block.set_amplitude(float("nan"))


@pytest.mark.parametrize("max_items", [None, 1, 3])
def test_channel_estimator_returns_the_response_of_a_two_tap_channel(max_items):
    h = np.array([[0.5 - 1j, 0.25], [-0.3, 1j]])
    received = sum(np.convolve(np.tile(SLOT[port], 4), h[port]) for port in range(2))
    block = dmimo.channel_estimator(num_ports=2, slot_samples=512)
    data = run_streams(block, [received], 4, max_items).reshape(4, 2, 96)
    bins = SoundingSymbol(128, 96, 32).bins
    expected = h[:, :1] + h[:, 1:] * np.exp(-2j * np.pi * bins / 128)
    np.testing.assert_allclose(data, np.broadcast_to(expected, data.shape), atol=1e-5)


WEIGHTS = np.array([[1, 2j], [0.5 - 1j, 3], [-1j, 0.25]])
C = np.array([1, 0.5 + 1j, -2j])
X = np.random.default_rng(2).normal(size=(2, 10_000, 2)).view(complex)[..., 0]


@pytest.mark.parametrize("max_items", [None, 17, 5000])
def test_precoder_equals_core_whatever_the_buffers(max_items):
    block = dmimo.precoder(weights=WEIGHTS, calibration=C)
    data = run_streams(block, X, 10_000, max_items)
    np.testing.assert_allclose(data, precoding.apply_calibration(WEIGHTS, C) @ X, rtol=1e-5, atol=1e-5)


def test_precoder_setters_and_messages_take_effect():
    block = dmimo.precoder(weights=WEIGHTS)
    block.set_weights(2 * WEIGHTS)
    np.testing.assert_allclose(run_streams(block, X, 100), 2 * WEIGHTS @ X[:, :100], rtol=1e-5, atol=1e-5)
    block = dmimo.precoder(weights=WEIGHTS)
    block.handle_weights(messages.encode("weights", weights=3 * WEIGHTS))
    block.handle_product(messages.product_to_pmt(Product("sweep", {"c": C})))
    expected = 3 * WEIGHTS / C[:, None] @ X[:, :100]
    np.testing.assert_allclose(run_streams(block, X, 100), expected, rtol=1e-5, atol=1e-5)


def test_precoder_applies_no_calibration_that_is_not_trusted():
    block = dmimo.precoder(weights=WEIGHTS)
    block.handle_product(messages.product_to_pmt(Product("sweep", {"c": C}, False, ("dead port",))))
    np.testing.assert_allclose(run_streams(block, X, 100), WEIGHTS @ X[:, :100], rtol=1e-5, atol=1e-5)


def calibration_of(epoch, c=C):
    return messages.product_to_pmt(Product("sweep", {"c": c}), run=0, epoch=epoch)


def sent_by(block):
    return run_streams(block, X, 100)


@pytest.mark.parametrize("announcement", [
    messages.encode("begin", run=1, epoch=8, hash=""), messages.encode("radio_begin", radio="r", sample=0, epoch=8),
    messages.encode("radio_epoch", radio="r", epoch=8, reason="retuned")], ids=messages.kind)
@pytest.mark.parametrize("given", ["by message", "at the start"])
def test_precoder_sends_nothing_with_a_calibration_of_an_epoch_that_is_over(announcement, given):
    block = dmimo.precoder(WEIGHTS, *([C, 7] if given == "at the start" else []))
    if given == "by message":
        block.handle_product(calibration_of(7))
    assert not block.outdated
    block.handle_epoch(announcement)
    assert block.outdated
    block.handle_product(calibration_of(7))
    block.set_weights(WEIGHTS)
    assert not np.any(block._applied)
    block.handle_product(calibration_of(8, 2 * C))
    np.testing.assert_allclose(sent_by(block), WEIGHTS / (2 * C[:, None]) @ X[:, :100], rtol=1e-5, atol=1e-5)


def test_precoder_keeps_the_calibration_of_the_latest_epoch():
    block = dmimo.precoder(WEIGHTS, C, epoch=8)
    block.handle_epoch(messages.encode("begin", run=1, epoch=8, hash=""))
    block.handle_product(calibration_of(7, 2 * C))
    assert not block.outdated
    np.testing.assert_allclose(sent_by(block), WEIGHTS / C[:, None] @ X[:, :100], rtol=1e-5, atol=1e-5)


def test_precoder_sends_zeros_when_its_calibration_is_outdated():
    block = dmimo.precoder(WEIGHTS, C, epoch=7)
    block.handle_epoch(messages.encode("begin", run=1, epoch=8, hash=""))
    assert not np.any(sent_by(block))


def test_precoder_goes_on_in_the_same_epoch_and_without_one():
    block = dmimo.precoder(WEIGHTS, C, epoch=7)
    for announced in (7, 5):  # of radios that began earlier
        block.handle_epoch(messages.encode("radio_begin", radio="r", sample=0, epoch=announced))
    block.handle_epoch(messages.encode("radio_time", radio="r", sample=0))
    assert not block.outdated
    block.set_calibration(C)
    block.handle_epoch(messages.encode("begin", run=1, epoch=9, hash=""))
    np.testing.assert_allclose(sent_by(block), WEIGHTS / C[:, None] @ X[:, :100], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("setter", "value"), [
    ("set_weights", np.zeros((2, 2))), ("set_weights", np.full((3, 2), np.nan)),
    ("set_calibration", np.ones(2)), ("set_calibration", np.zeros(3))])
def test_precoder_refuses_bad_values_and_keeps_the_old(setter, value):
    block = dmimo.precoder(weights=WEIGHTS)
    with pytest.raises(ValueError, match=r"weights|calibration|c must"):
        getattr(block, setter)(value)
    block.set_weights(2 * WEIGHTS)
    np.testing.assert_allclose(run_streams(block, X, 100), 2 * WEIGHTS @ X[:, :100], rtol=1e-5, atol=1e-5)


def test_precoder_reports_a_bad_message_as_an_error():
    tb, block, errors = gr.top_block(), dmimo.precoder(weights=WEIGHTS), message_sink()
    tb.sources = [blocks.null_source(8) for _ in range(2)]
    tb.sinks = [blocks.null_sink(8) for _ in range(3)]
    for port, source in enumerate(tb.sources):
        tb.connect(source, (block, port))
    for port, sink in enumerate(tb.sinks):
        tb.connect((block, port), sink)
    tb.msg_connect(block, "error", errors, "in")
    block._post(pmt.intern("weights"), messages.encode("weights", weights=np.zeros((1, 1))))
    run_until(tb, lambda: errors.messages)
    assert "must be finite and of shape (3, 2)" in pmt.symbol_to_string(errors.messages[0])
