# SPDX-License-Identifier: GPL-3.0-or-later
"""The probe that turns products into streams, in a running flowgraph."""

import numpy as np
import pmt
import pytest
from gnuradio import blocks, dmimo, gr
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.protocols.slots import Product
from graph import wait_for

PHASES = pmt.intern("phases")


def product(**values):
    return messages.product_to_pmt(Product("sweep", values))


END = messages.encode("end", run=0, epoch=0, error="")


class bench(gr.top_block):
    """A probe, sinks for its streams, and a store of its errors."""

    def __init__(self, **options):
        gr.top_block.__init__(self)
        self.probe = dmimo.product_probe(**options)
        self.sinks = [blocks.vector_sink_f(options.get("vlen", 1)) for _ in range(options.get("num_outputs", 1))]
        self.errors = blocks.message_debug()
        for port, sink in enumerate(self.sinks):
            self.connect((self.probe, port), sink)
        self.msg_connect(self.probe, "error", self.errors, "store")

    def send(self, *given):
        for message in given:
            self.probe.to_basic_block()._post(PHASES, message)

    def streams(self, *given):
        """What comes out for these messages and the end of the run, which must end the flowgraph."""
        self.start()
        self.send(*given, END)
        wait_for(lambda: all(sink.nitems_read(0) for sink in self.sinks) or not given)
        self.wait()
        return np.array([sink.data() for sink in self.sinks])


@pytest.mark.parametrize(
    ("quantity", "expected"),
    [
        ("phase_deg", [[90.0, -135.0], [0.0, 180.0]]),
        ("magnitude", [[2.0, np.sqrt(2.0)], [10.0, 0.1]]),
        ("db", [[20 * np.log10(2.0), 10 * np.log10(2.0)], [20.0, -20.0]]),
        ("real", [[0.0, -1.0], [10.0, -0.1]]),
    ],
)
def test_each_product_gives_one_item_per_entry_in_the_quantity_asked_for(quantity, expected):
    flowgraph = bench(key="c", num_outputs=2, quantity=quantity)
    streams = flowgraph.streams(product(c=np.array([2j, -1 - 1j])), product(c=np.array([10.0 + 0j, -0.1 + 0j])))
    np.testing.assert_allclose(streams.T, expected, rtol=1e-6, atol=1e-5)
    assert flowgraph.errors.num_messages() == 0


def test_real_entries_in_radians_become_degrees():
    flowgraph = bench(key="phase_rad", num_outputs=2, quantity="degrees")
    streams = flowgraph.streams(product(phase_rad=np.array([np.pi / 2, -0.1])))
    np.testing.assert_allclose(streams.T, [[90.0, -18 / np.pi]], rtol=1e-6)


def test_real_entries_in_seconds_become_nanoseconds():
    flowgraph = bench(key="delay_s", num_outputs=2, quantity="nanoseconds")
    streams = flowgraph.streams(product(delay_s=np.array([1.5e-9, -2e-6])))
    np.testing.assert_allclose(streams.T, [[1.5, -2000.0]], rtol=1e-6)


def test_rows_come_out_as_vectors_each_on_its_stream():
    flowgraph = bench(key="snr_db", num_outputs=2, vlen=3)
    first, second = np.arange(6.0).reshape(2, 3), 10 + np.arange(6.0).reshape(2, 3)
    streams = flowgraph.streams(product(snr_db=first), product(snr_db=second))
    np.testing.assert_array_equal(streams.reshape(2, 2, 3), np.stack([first, second], axis=1))


def test_vectors_have_a_history_too():
    flowgraph = bench(key="snr_db", vlen=2, history=2)
    streams = flowgraph.streams(*(product(snr_db=np.array([[k, 10.0 * k]])) for k in (1, 2)))
    np.testing.assert_array_equal(streams.reshape(-1, 2), [[1, 10], [1, 10], [1, 10], [2, 20]])


def test_products_without_the_key_and_other_messages_are_passed_over():
    flowgraph = bench(key="c", num_outputs=1)
    given = product(weights=np.ones(7)), messages.encode("ready", node="ap1", hash=""), product(c=np.array([3.0]))
    np.testing.assert_array_equal(flowgraph.streams(*given), [[3.0]])
    assert flowgraph.errors.num_messages() == 0


def test_zero_and_not_a_number_come_out_finite_and_as_they_are():
    flowgraph = bench(key="gains_db", num_outputs=2, quantity="db")
    (zero,), (missing,) = flowgraph.streams(product(gains_db=np.array([0.0, np.nan])))
    assert np.isfinite(zero)
    assert zero < -1000
    assert np.isnan(missing)


def test_history_repeats_the_last_products_so_that_a_plot_scrolls():
    flowgraph = bench(key="c", num_outputs=1, history=3)
    streams = flowgraph.streams(*(product(c=np.array([float(k)])) for k in (1, 2, 3, 4)))
    np.testing.assert_array_equal(streams, [[1, 1, 1, 1, 1, 2, 1, 2, 3, 2, 3, 4]])


def test_number_of_entries_other_than_outputs_is_reported():
    flowgraph = bench(key="c", num_outputs=2)
    flowgraph.start()
    flowgraph.send(product(c=np.ones(3)))
    wait_for(lambda: flowgraph.errors.num_messages())
    assert "c has 3 entries: must be num_outputs = 2" in pmt.symbol_to_string(flowgraph.errors.get_message(0))
    flowgraph.send(END)
    flowgraph.wait()


def test_number_of_entries_other_than_rows_of_vectors_is_reported():
    flowgraph = bench(key="snr_db", num_outputs=2, vlen=4)
    flowgraph.start()
    flowgraph.send(product(snr_db=np.ones((2, 3))))
    wait_for(lambda: flowgraph.errors.num_messages())
    text = pmt.symbol_to_string(flowgraph.errors.get_message(0))
    assert "snr_db has 6 entries: must be num_outputs = 2 times vlen = 4" in text
    flowgraph.send(END)
    flowgraph.wait()


def test_second_start_begins_with_an_empty_history():
    flowgraph = bench(key="c", num_outputs=1, history=2)
    flowgraph.streams(product(c=np.array([1.0])))
    flowgraph.sinks[0].reset()
    np.testing.assert_array_equal(flowgraph.streams(product(c=np.array([5.0]))), [[5, 5]])


@pytest.mark.parametrize("options", [{"num_outputs": 0}, {"history": 0}, {"vlen": 0}, {"quantity": "phase"}])
def test_bad_parameters_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        dmimo.product_probe(key="c", **options)
