# SPDX-License-Identifier: GPL-3.0-or-later
"""Predistorter: equal to core for any buffers, tables changed between two samples, clips, messages, linearity."""

import numpy as np
import pmt
import pytest
from gnuradio import blocks, dmimo, gr
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.core import predistortion as dpd
from gnuradio.dmimo.core.predistortion_table import apply_power_table, power_tables, scratch
from gnuradio.dmimo.protocols.slots import Product
from gnuradio.dmimo.simulation.amplifiers import GAN_POLYNOMIAL
from graph import message_sink, run_until, wait_for

GAN = np.array(GAN_POLYNOMIAL) / GAN_POLYNOMIAL[0]
POWERS = np.arange(5)


def gan(back_off_db):
    """Coefficients for samples of unit mean power."""
    return GAN * 10 ** (-back_off_db / 10 * POWERS)


COEFFICIENTS = np.array([gan(12), [1, -0.05 + 0.02j, 0, 0, 0], gan(9)])
PEAKS = np.array([np.inf, 2.0, 1.8])
X = np.random.default_rng(4).normal(scale=np.sqrt(0.5), size=(3, 30_000, 2)).view(complex)[..., 0].astype(np.complex64)


def of_core(x=X, coefficients=COEFFICIENTS, peaks=PEAKS):
    """Samples and clips of each port, from core's own function."""
    data = np.empty_like(x)
    memory = scratch(x.shape[1])
    return data, tuple(apply_power_table(*row, memory)
                       for row in zip(x, power_tables(coefficients, max_amplitude=peaks), data, strict=True))


def stream(block, x=X, max_items=None):
    """Output streams for finite inputs."""
    tb, sinks = gr.top_block(), [blocks.vector_sink_c() for _ in x]
    tb.sources = [blocks.vector_source_c(row.tolist()) for row in x]
    for port, (source, sink) in enumerate(zip(tb.sources, sinks, strict=True)):
        tb.connect(source, (block, port))
        tb.connect((block, port), sink)
    run_until(tb, lambda: min(len(sink.data()) for sink in sinks) == x.shape[1], max_items)
    return np.array([sink.data() for sink in sinks], np.complex64)


def call(block, x):
    """Output of one call of work."""
    out = np.empty_like(x)
    assert block.work(list(x), list(out)) == x.shape[1]
    return out


@pytest.mark.parametrize("max_items", [None, 1, 17, 1000, 5000])
def test_streams_equal_core_to_the_bit_whatever_the_buffers(max_items):
    num = 3000 if max_items == 1 else X.shape[1]
    x = X[:, :num]
    block = dmimo.predistorter(3, COEFFICIENTS, PEAKS)
    expected, clips = of_core(x)
    np.testing.assert_array_equal(stream(block, x, max_items), expected)
    assert block.clipped == clips
    assert block.samples == num
    exact = dpd.predistort_and_count(x.astype(complex), COEFFICIENTS, max_amplitude=PEAKS)
    assert block.clipped == tuple(exact.num_clipped)
    assert min(clips) > 0
    assert np.mean(np.abs(expected - exact.samples) ** 2) < 10**-8.5


def test_samples_pass_unchanged_by_default():
    x = 1e6 * X
    block = dmimo.predistorter(3)
    np.testing.assert_array_equal(stream(block, x), x)
    assert block.clipped == (0, 0, 0)
    assert block.limits == (np.inf,) * 3


def test_full_scale_limits_amplifiers_that_have_no_limit():
    block = dmimo.predistorter(3, [[1, 0.01], [1, 0.0], [1, -0.1]], full_scale=2.5)
    assert block.limits == pytest.approx((2.5, np.inf, 2 / 3 / np.sqrt(0.3)))
    stream(block, X)
    assert block.clipped == tuple(np.count_nonzero(np.abs(X) > np.array(block.limits)[:, None], axis=1))


def test_a_larger_table_is_nearer_to_the_inverse():
    exact = dpd.predistort(X.astype(complex), COEFFICIENTS, max_amplitude=PEAKS)
    coarse, fine = [np.mean(np.abs(call(dmimo.predistorter(3, COEFFICIENTS, PEAKS, size), X) - exact) ** 2)
                    for size in (512, 4096)]
    assert fine < coarse / 40  # of 64


@pytest.mark.parametrize("limit", [(100,), (1000,), (8192,), (1, 8192)])
def test_small_output_buffers_can_be_asked_for(limit):
    block = dmimo.predistorter(3, COEFFICIENTS, PEAKS)
    block.set_max_output_buffer(*limit)
    np.testing.assert_array_equal(stream(block), of_core()[0])
    np.testing.assert_array_equal(stream(block), of_core()[0])


def test_calls_are_large_where_samples_wait():
    sizes = []

    class observed(dmimo.predistorter):
        def work(self, input_items, output_items):
            sizes.append(len(output_items[0]))
            return super().work(input_items, output_items)

    x = np.tile(X[:1], 20)
    stream(observed(1, COEFFICIENTS[:1]), x)
    assert sum(sizes) == x.shape[1]
    assert max(sizes) > 8192  # what GNU Radio's buffers of 64 KiB hold


def test_streams_start_again_from_zero_clips():
    block = dmimo.predistorter(3, COEFFICIENTS, PEAKS)
    first = stream(block), block.clipped
    second = stream(block), block.clipped
    np.testing.assert_array_equal(second[0], first[0])
    assert second[1] == first[1] == of_core()[1]
    assert block.samples == X.shape[1]


def test_tags_stay_on_their_port():
    tags = []
    for port in range(2):
        tag = gr.tag_t()
        tag.offset, tag.key, tag.value = 1000 * port + 5, pmt.intern(f"of {port}"), pmt.PMT_T
        tags.append([tag])
    tb, block = gr.top_block(), dmimo.predistorter(2, COEFFICIENTS[:2])
    sinks = [blocks.vector_sink_c() for _ in range(2)]
    tb.sources = [blocks.vector_source_c(X[k].tolist(), False, 1, tags[k]) for k in range(2)]
    for port in range(2):
        tb.connect(tb.sources[port], (block, port))
        tb.connect((block, port), sinks[port])
    run_until(tb, lambda: min(len(sink.data()) for sink in sinks) == X.shape[1])
    found = [[(tag.offset, pmt.symbol_to_string(tag.key)) for tag in sink.tags()] for sink in sinks]
    assert found == [[(5, "of 0")], [(1005, "of 1")]]


# -- new tables -------------------------------------------------------------------------------------------------------


def coefficients_message(**values):
    return messages.encode("coefficients", **values)


def product(coefficients, peaks=None, epoch=None, trusted=True):
    values = {"predistortion": np.asarray(coefficients, complex)}
    values |= {} if peaks is None else {"predistortion_peak": np.asarray(peaks)}
    fields = {} if epoch is None else {"run": 0, "epoch": epoch}
    return messages.product_to_pmt(Product("amplitudes", values, trusted), **fields)


def test_new_table_holds_from_a_call_on_for_all_ports():
    block, at = dmimo.predistorter(3, COEFFICIENTS, PEAKS), 12_345
    old = call(block, X[:, :at])
    block.handle_coefficients(coefficients_message(coefficients=COEFFICIENTS[::-1].copy(), max_amplitude=PEAKS[::-1]))
    new = call(block, X[:, at:])
    np.testing.assert_array_equal(old, of_core()[0][:, :at])
    np.testing.assert_array_equal(new, of_core(X, COEFFICIENTS[::-1], PEAKS[::-1])[0][:, at:])


class changing(dmimo.predistorter):
    """Changes its table in the middle of a call of work, as the thread of a graphical interface may."""

    def _report(self):
        self.set_coefficients(COEFFICIENTS[::-1], PEAKS[::-1])


def test_table_that_comes_within_a_call_waits_for_the_next():
    block = changing(3, COEFFICIENTS, PEAKS, report_samples=777)
    np.testing.assert_array_equal(call(block, X), of_core()[0])
    np.testing.assert_array_equal(call(block, X), of_core(X, COEFFICIENTS[::-1], PEAKS[::-1])[0])


def test_message_to_a_running_flowgraph_changes_all_ports_at_one_sample():
    tb, block = gr.top_block(), dmimo.predistorter(2, report_samples=1 << 40)
    tb.sources = [blocks.vector_source_c(X[k].tolist(), True) for k in range(2)]
    tb.throttles = [blocks.throttle(8, 2e6) for _ in range(2)]
    sinks = [blocks.vector_sink_c() for _ in range(2)]
    for port in range(2):
        tb.connect(tb.sources[port], tb.throttles[port], (block, port))
        tb.connect((block, port), sinks[port])
    tb.start()
    run = X.shape[1]
    try:
        for turn in range(20):
            level = block.samples
            wait_for(lambda level=level: block.samples > level + 5000)
            coefficients = np.ones((2, 1)) if turn % 2 else COEFFICIENTS[:2]
            block._post(pmt.intern("coefficients"), coefficients_message(coefficients=coefficients))
    finally:
        tb.stop()
        tb.wait()
    num = min(len(sink.data()) for sink in sinks)
    data = np.array([sink.data()[:num] for sink in sinks], np.complex64)
    place = np.arange(num) % run
    plain = data == X[:2, place]
    changed = data == of_core(X[:2], COEFFICIENTS[:2], np.inf)[0][:, place]
    assert np.all(plain | changed)
    # A sample whose two values are equal says nothing; there is none in these data.
    assert not np.any(plain & changed)
    assert np.count_nonzero(np.diff(changed[0])) >= 10
    np.testing.assert_array_equal(changed[0], changed[1])


def test_setter_and_product_take_effect_for_this_blocks_ports():
    block = dmimo.predistorter(2, first_port=1)
    block.handle_product(product(COEFFICIENTS, PEAKS))
    np.testing.assert_array_equal(call(block, X[1:]), of_core()[0][1:])
    block.handle_product(product(np.ones((3, 1)), np.full(3, np.inf)))
    np.testing.assert_array_equal(call(block, X[1:]), X[1:])
    block.set_coefficients(COEFFICIENTS[1:, None], PEAKS[1:])  # memory of no earlier sample
    np.testing.assert_array_equal(call(block, X[1:]), of_core()[0][1:])
    block.set_coefficients(None)
    np.testing.assert_array_equal(call(block, X[1:]), X[1:])


def test_product_without_peaks_is_limited_by_the_amplifiers_alone_and_one_not_trusted_is_not_applied():
    block = dmimo.predistorter(3)
    block.handle_product(product(COEFFICIENTS, trusted=False))
    block.handle_product(messages.product_to_pmt(Product("coupling", {"internal_c": np.ones(3)})))
    np.testing.assert_array_equal(call(block, X), X)
    block.handle_product(product(COEFFICIENTS))
    np.testing.assert_array_equal(call(block, X), of_core(peaks=np.inf)[0])


@pytest.mark.parametrize("announcement", [
    messages.encode("begin", run=1, epoch=8, hash=""), messages.encode("radio_begin", radio="r", sample=0, epoch=8),
    messages.encode("radio_epoch", radio="r", epoch=8, reason="gain changed")], ids=messages.kind)
def test_coefficients_of_an_epoch_that_is_over_are_not_applied(announcement):
    block = dmimo.predistorter(3, COEFFICIENTS, PEAKS, epoch=7)
    block.handle_epoch(messages.encode("begin", run=1, epoch=7, hash=""))
    assert not block.outdated
    np.testing.assert_array_equal(call(block, X), of_core()[0])
    block.handle_epoch(announcement)
    assert block.outdated
    block.handle_product(product(COEFFICIENTS, PEAKS, epoch=7))
    np.testing.assert_array_equal(call(block, X), X)
    block.handle_product(product(COEFFICIENTS, PEAKS, epoch=8))
    assert not block.outdated
    np.testing.assert_array_equal(call(block, X), of_core()[0])


def test_coefficients_without_an_epoch_hold_in_all():
    block = dmimo.predistorter(3, COEFFICIENTS, PEAKS)
    block.handle_epoch(messages.encode("begin", run=1, epoch=9, hash=""))
    np.testing.assert_array_equal(call(block, X), of_core()[0])


BAD_VALUES = [
    (np.ones((2, 1)), np.inf, r"must have shape \(3, P\)"),
    (2 * np.ones((3, 1)), np.inf, "first entry 1"),
    (np.full((3, 2), np.nan), np.inf, "finite"),
    (COEFFICIENTS, -1.0, "max_amplitude = -1.0"),
    (COEFFICIENTS, np.ones(2), "one for each of the 3 ports"),
    (np.stack([COEFFICIENTS, 0 * COEFFICIENTS], axis=1), np.inf, "amplifiers with memory are not predistorted here"),
]


@pytest.mark.parametrize(("coefficients", "peaks", "reason"), BAD_VALUES)
def test_bad_values_are_refused_and_the_old_table_stays(coefficients, peaks, reason):
    block = dmimo.predistorter(3, COEFFICIENTS, PEAKS)
    with pytest.raises(ValueError, match=reason):
        block.set_coefficients(coefficients, peaks, 3)
    with pytest.raises(ValueError, match=reason):
        dmimo.predistorter(3, coefficients, peaks)
    block.handle_epoch(messages.encode("begin", run=1, epoch=9, hash=""))
    np.testing.assert_array_equal(call(block, X), of_core()[0])


@pytest.mark.parametrize(("port", "message", "reason"), [
    ("coefficients", coefficients_message(coefficients=np.ones((1, 1))), "must have shape (3, P)"),
    ("coefficients", coefficients_message(coefficients=COEFFICIENTS, max_amplitude=0.0), "max_amplitude = 0.0"),
    ("coefficients", coefficients_message(other=1.0), "lacks 'coefficients'"),
    ("coefficients", pmt.intern("nonsense"), "lacks 'coefficients'"),
    ("products", product(COEFFICIENTS[:2]), "predistortion of 2 ports"),
    ("products", product(COEFFICIENTS, PEAKS[:2]), "one for each of the 3 ports"),
    ("products", pmt.intern("nonsense"), "lacks 'phase'"),
])  # fmt: skip
def test_bad_message_is_an_error_and_the_old_table_stays(port, message, reason):
    tb, block, errors = gr.top_block(), dmimo.predistorter(3, COEFFICIENTS, PEAKS), message_sink()
    sinks = [blocks.vector_sink_c() for _ in range(3)]
    tb.sources = [blocks.vector_source_c(row.tolist()) for row in X]
    for k in range(3):
        tb.connect(tb.sources[k], (block, k))
        tb.connect((block, k), sinks[k])
    tb.msg_connect(block, "error", errors, "in")
    block._post(pmt.intern(port), message)
    run_until(tb, lambda: errors.messages and min(len(sink.data()) for sink in sinks) == X.shape[1])
    assert reason in pmt.symbol_to_string(errors.messages[0])
    np.testing.assert_array_equal(np.array([sink.data() for sink in sinks], np.complex64), of_core()[0])


@pytest.mark.parametrize(("name", "value"), [
    ("num_ports", 0), ("first_port", -1), ("report_samples", 0), ("table_size", 1), ("full_scale", -1.0)])
def test_bad_arguments_are_refused(name, value):
    name_in_core = {"table_size": "size"}.get(name, name)
    with pytest.raises(ValueError, match=f"{name_in_core} = {value}"):
        dmimo.predistorter(**{"num_ports": 1, name: value})


# -- clips ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("max_items", [None, 100])
def test_clips_are_published_at_multiples_of_the_samples_in_which_there_are_new_ones(max_items):
    x = X[:2].copy()
    x[:, 8000:16_000] *= 0.01
    tb, block = gr.top_block(), dmimo.predistorter(2, COEFFICIENTS[:2], PEAKS[:2], report_samples=4000)
    told, sinks = message_sink(), [blocks.null_sink(8) for _ in range(2)]
    tb.sources = [blocks.vector_source_c(row.tolist()) for row in x]
    for k in range(2):
        tb.connect(tb.sources[k], (block, k))
        tb.connect((block, k), sinks[k])
    tb.msg_connect(block, "clips", told, "in")
    run_until(tb, lambda: len(told.messages) == 5 and block.samples == x.shape[1], max_items)
    found = {messages.get(message, "samples"): tuple(messages.get(message, "clipped")) for message in told.messages}
    assert {messages.kind(message) for message in told.messages} == {"clips"}
    assert found == {num: of_core(x[:, :num], COEFFICIENTS[:2], PEAKS[:2])[1]
                     for num in (4000, 8000, 20_000, 24_000, 28_000)}
