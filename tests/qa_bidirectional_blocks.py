# SPDX-License-Identifier: GPL-3.0-or-later
"""Calibrator and monitor of a bidirectional run, wired by hand: what they publish, plot, keep and write."""

from itertools import pairwise

import numpy as np
import pmt
import pytest
from gnuradio import blocks, dmimo, gr
from gnuradio.dmimo import records, testbed
from gnuradio.dmimo.assembly import Assembly
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.blocks.bidirectional_monitor import phase_errors, prediction_error, snr_by_ports
from gnuradio.dmimo.protocols.slots import Product
from graph import message_sink

TEXT = """
version: 1
seed: 4
samp_rate: 15.36e+6
node_defaults: {hardware: {gain_std_db: 1.0}}
nodes:
  - {name: trp1, num_ports: 2, oscillator: {cfo_hz: 30}, clock: {offset_samples: 0.3}}
  - {name: trp2, oscillator: {cfo_hz: -50}, clock: {offset_samples: -0.4}}
  - {name: ue1, kind: ue, oscillator: {cfo_hz: 20}, clock: {offset_samples: -0.2}}
  - {name: ue2, kind: ue, oscillator: {cfo_hz: -10}, clock: {offset_samples: 0.5}}
propagation: {delays: false, num_taps: 2, delay_spread_s: 5.0e-8}
noise: {snr_db: 30}
slots: {slot_samples: 288, lead_samples: 8, prefix_samples: 32, pilot_samples: 128, num_subcarriers: 96,
        num_subbands: 12}
verification: {uplink_repeats: 1, repeats: 2, random_starts: 2, cooperating: [1, 2, 3]}
multiuser: {uplink_repeats: 1, repeats: 1, random_starts: 1}
bidirectional: {patterns: 3, pattern_s: 4.0e-3, max_cfo_hz: 300, tracking: wideband}
"""
KEYS = {"time_s", "delay_s", "prediction_error_rad", "phase_error_rad"}
EPOCH = 1_700_000_000_000_001
LIMIT_S = 60.0


def assembly_of(*changes):
    text = TEXT
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new)
    return Assembly(testbed.parse(text))


class bench(gr.top_block):
    """A run on a simulated network whose collectors are the two blocks, and probes of what the monitor plots."""

    def __init__(self, assembly, filename="", truth=True):
        gr.top_block.__init__(self)
        self.network = assembly.network()
        self.scheduler = dmimo.slot_scheduler(assembly.schedule, watchdog_s=5.0, epoch=EPOCH)
        self.air = dmimo.simulated_network(self.network)
        self.calibrator = dmimo.bidirectional_calibrator(assembly=assembly, filename=filename)
        self.monitor = dmimo.bidirectional_monitor(assembly=assembly, truth=truth)
        self.plots, self.products = message_sink(), message_sink()
        rate = assembly.testbed.samp_rate
        self.nodes = [dmimo.node(n.name, n.num_ports, assembly.schedule, assembly.roles(n.name), rate)
                      for n in assembly.testbed.nodes]
        for node, config in zip(self.nodes, assembly.testbed.nodes, strict=True):
            ports = self.network.ports(config.name)
            for own, port in enumerate(range(ports.start, ports.stop)):
                self.connect((node, own), (self.air, port))
                self.connect((self.air, port), (node, own))
            self.msg_connect(self.scheduler, "control", node, "control")
            self.msg_connect(node, "status", self.scheduler, "status")
            for block in (self.calibrator, self.monitor):
                self.msg_connect(node, "results", block, "results")
        for block in (self.calibrator, self.monitor):
            self.msg_connect(self.scheduler, "phases", block, "phases")
            self.msg_connect(block, "products", self.scheduler, "products")
            self.msg_connect(block, "error", self.scheduler, "status")
        self.msg_connect(self.calibrator, "products", self.products, "in")
        self.msg_connect(self.monitor, "plots", self.plots, "in")
        self.msg_connect(self.air, "error", self.scheduler, "status")

    def run_to_the_end(self):
        self.start()
        if not self.scheduler.finished_event.wait(LIMIT_S):
            self.stop()
        self.wait()  # for what comes after the end, too
        assert self.scheduler.finished_event.is_set(), "the run did not end"
        assert self.scheduler.error is None, self.scheduler.error
        return self

    def plotted(self, key):
        """Values of a key in the order in which the monitor published them."""
        found = [messages.product(m).values for m in self.plots.messages if messages.kind(m) == "product"]
        return np.array([values[key] for values in found if key in values])


@pytest.fixture(scope="module")
def assembly():
    return assembly_of()


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("calibration")


@pytest.fixture(scope="module")
def done(assembly, directory):
    return bench(assembly, str(directory / "c.h5")).run_to_the_end()


def history(flowgraph):
    return flowgraph.calibrator.exchange.history


def test_both_blocks_alone_take_all_phases_of_a_run(done):
    assert [entry["event"] for entry in history(done)] == ["calibrated", "tracked"] * 3
    assert [len(watches) for watches in (done.monitor.downlink, done.monitor.uplink, done.monitor.users)] == [3, 3, 3]


def test_plots_follow_every_exchange_and_tracking(done, assembly):
    rate = assembly.testbed.samp_rate
    np.testing.assert_allclose(done.plotted("time_s"), [entry["sample"] / rate for entry in history(done)], rtol=1e-12)
    np.testing.assert_array_equal(done.plotted("delay_s"), [entry["trp_delay_s"] for entry in history(done)])
    assert done.plotted("prediction_error_rad").shape == done.plotted("phase_error_rad").shape == (6, 3)


def test_delays_plotted_are_twice_the_differences_of_the_clocks(done, assembly):
    offset = np.array([node.clock.offset_samples for node in assembly.testbed.aps])[[0, 0, 1]]
    twice_s = 2 * (offset - offset[0]) / assembly.testbed.samp_rate
    # From 32 elements over 96 subcarriers at 30 dB the deviation is about 0.1 ns.
    np.testing.assert_allclose(done.plotted("delay_s"), np.tile(twice_s, (6, 1)), atol=1e-9)


def test_plotted_phase_error_is_that_of_the_networks_ports(done, assembly):
    """Against the truth port by port, the access points of the network taken by name."""
    for entry, plotted in zip(history(done), done.plotted("phase_error_rad"), strict=True):
        truth = done.network.true_calibration(entry["sample"])[:3]
        turned = entry["trp_c"] / truth
        np.testing.assert_allclose(np.exp(1j * (plotted - plotted[0])),
                                   turned / turned[0] / np.abs(turned / turned[0]), atol=1e-9)
        assert abs(np.angle(np.exp(1j * plotted).sum())) < 1e-9
    assert np.abs(done.plotted("phase_error_rad")).max() < np.radians(10)


def test_prediction_error_is_the_frequencys_error_over_the_time_between(done, assembly):
    """Oscillators are steady here, so c turns by what the prediction lacks in frequency: 4 pi (f - f_hat) t."""
    cfo = np.array([node.oscillator.cfo_hz for node in assembly.testbed.aps])[[0, 0, 1]]
    entries = history(done)
    for (before, after), plotted in zip(pairwise(entries), done.plotted("prediction_error_rad")[1:], strict=True):
        seconds = (after["sample"] - before["sample"]) / assembly.testbed.samp_rate
        expected = 4 * np.pi * seconds * (cfo - cfo[0] - before["trp_frequency_hz"])
        # Both coefficients have errors of some degrees.
        assert np.abs(np.angle(np.exp(1j * (plotted - expected)))).max() < np.radians(12)
    np.testing.assert_array_equal(done.plotted("prediction_error_rad")[0], 0.0)


def test_snr_is_plotted_for_each_number_of_ports_in_every_pattern(done):
    plotted = done.plotted("snr_db")
    assert plotted.shape == (3, 3, 3)
    for watch, rows in zip(done.monitor.downlink, plotted, strict=True):
        np.testing.assert_array_equal(rows[0], [row["snr_db"] for row in watch["cooperation"]])
        np.testing.assert_array_equal(rows[1], [row["ideal_snr_db"] for row in watch["cooperation"]])
        np.testing.assert_array_equal(rows[2], [row["uncalibrated_snr_db"] for row in watch["cooperation"]])
    assert np.all(plotted[:, 0] > plotted[:, 1] - 0.5)


def test_end_of_the_run_is_the_last_thing_plotted(done):
    kinds = [messages.kind(message) for message in done.plots.messages]
    assert kinds == ["product"] * 9 + ["end"]


def test_files_hold_the_last_coefficients_of_both_sides(done, directory):
    for name, ports, side in (("c.h5", ("trp1:0", "trp1:1", "trp2:0"), done.calibrator.calibration),
                              ("c-ue.h5", ("ue1:0", "ue2:0"), done.calibrator.ue_calibration)):
        record = records.load_calibration(directory / name)
        assert tuple(record.port_names) == ports
        np.testing.assert_array_equal(record.c, side.c)
        assert record.epoch == EPOCH
    assert sorted(path.name for path in directory.iterdir()) == ["c-ue.h5", "c.h5"]


def test_calibrator_publishes_the_coefficients_that_it_keeps(done):
    found = [messages.product(message) for message in done.products.wait(6)]
    assert [product.phase for product in found] == ["exchange", "tracking"] * 3
    for product, entry in zip(found, history(done), strict=True):
        np.testing.assert_array_equal(product.values["c"], entry["trp_c"])
        np.testing.assert_array_equal(product.values["ue_c"], entry["ue_c"])
    np.testing.assert_array_equal(found[-1].values["c"], done.calibrator.calibration.c)


def test_monitor_without_truth_and_without_verification_plots_what_is_left():
    assembly = assembly_of(("patterns: 3", "patterns: 1"))
    assembly = Assembly(assembly.testbed, verify=False)
    done = bench(assembly, truth=False).run_to_the_end()
    assert (done.monitor.downlink, done.monitor.uplink, done.monitor.users) == ([], [], [])
    found = [messages.product(message).values for message in done.plots.messages[:-1]]
    assert [set(values) for values in found] == [KEYS - {"phase_error_rad"}] * 2


def test_panels_are_trained_first_and_their_beams_published():
    panels = "node_defaults: {hardware: {gain_std_db: 1.0}, panel: {num_antennas: 4, beams: [0, 1, 2]}}"
    assembly = assembly_of(("node_defaults: {hardware: {gain_std_db: 1.0}}", panels), ("patterns: 3", "patterns: 1"))
    done = bench(assembly).run_to_the_end()
    first, *others = [messages.product(message) for message in done.products.wait(3)]
    assert [product.phase for product in (first, *others)] == ["beam_training", "exchange", "tracking"]
    assert first.values["trp_beams"].shape == first.values["ue_beams"].shape == (2, 2)
    assert done.plotted("time_s").shape == (2,)
    assert np.abs(done.plotted("phase_error_rad")).max() < np.radians(10)


class handed(gr.top_block):
    """A monitor that is given products by hand."""

    def __init__(self, assembly):
        gr.top_block.__init__(self)
        self.monitor, self.plots = dmimo.bidirectional_monitor(assembly=assembly, truth=False), message_sink()
        self.msg_connect(self.monitor, "plots", self.plots, "in")

    def give(self, *given):
        self.start()
        for message in (*given, messages.encode("end", error="")):
            self.monitor.to_basic_block()._post(pmt.intern("phases"), message)
        self.wait()
        return [messages.product(m).values for m in self.plots.messages if messages.kind(m) == "product"]


def calibration(phase, c, time, frequency_hz=(0.0, 0.0, 0.0)):
    values = {"c": np.asarray(c, complex), "frequency_hz": np.array(frequency_hz), "delay_s": np.zeros(3),
              "phase_std_rad": np.zeros(3), "reference_time": time}
    return messages.product_to_pmt(Product(phase, values))


def test_coefficients_that_are_only_repeated_are_not_plotted_again(assembly):
    given = [calibration("exchange", [1, 1, 1], 100), calibration("tracking", [1, 1j, 1], 200),
             calibration("exchange", [1, 1j, 1], 200), calibration("tracking", [1, 1, 1], 300)]
    found = handed(assembly).give(*given)
    np.testing.assert_allclose([values["prediction_error_rad"][1] for values in found], [0, np.pi / 2, -np.pi / 2])


def test_new_run_predicts_nothing_from_the_last_one(assembly):
    begin = messages.encode("begin", run=1, epoch=0, hash="")
    given = calibration("exchange", [1, 1, 1], 100), begin, calibration("exchange", [1, 1j, -1], 90)
    found = handed(assembly).give(*given)
    np.testing.assert_array_equal([values["prediction_error_rad"] for values in found], np.zeros((2, 3)))


def test_products_of_other_phases_and_without_coefficients_are_passed_over(assembly):
    given = (messages.product_to_pmt(Product("exchange", {"calibrates": True})),
             messages.product_to_pmt(Product("uplink", {"c": np.ones(3, complex), "reference_time": 3})))
    assert handed(assembly).give(*given) == []


def test_prediction_turns_by_twice_the_frequency():
    before = {"c": np.array([1, 2j]), "frequency_hz": np.array([0.0, 100.0]), "reference_time": 1000}
    after = {"c": np.array([1, 1j * np.exp(4j * np.pi * 100.0 * 1e-3 + 0.2j)]), "frequency_hz": np.zeros(2),
             "reference_time": 2000}
    np.testing.assert_allclose(prediction_error(before, after, 1e6), [0.0, 0.2], atol=1e-12)


def test_phase_errors_know_no_common_phase_and_no_scale():
    c = np.array([1, 2j, -0.5, 1 + 1j])
    errors = np.array([0.1, -0.1, 0.3, -0.3])
    found = phase_errors(c * np.exp(1j * (errors + 2.5)) * [3, 1, 0.2, 1], c)
    np.testing.assert_allclose(found, errors, atol=1e-12)  # symmetric errors: their phasors sum to a real number


def test_snr_by_ports_has_a_gap_where_nothing_is_known():
    rows = [{"snr_db": 3.0, "ideal_snr_db": 3.1, "uncalibrated_snr_db": None, "ports": 1},
            {"snr_db": 9.0, "ideal_snr_db": 9.1, "uncalibrated_snr_db": 6.0, "ports": 2}]
    np.testing.assert_array_equal(snr_by_ports(rows), [[3.0, 9.0], [3.1, 9.1], [np.nan, 6.0]])


def test_blocks_say_what_is_wrong_with_their_testbed():
    sweep = Assembly(testbed.parse("{version: 1, name: no exchange, nodes: [{name: ap1}, {name: ap2}]}"))
    for make in (dmimo.bidirectional_calibrator, dmimo.bidirectional_monitor):
        with pytest.raises(ValueError, match="testbed 'no exchange' has no section bidirectional"):
            make(assembly=sweep)


def test_probes_make_streams_of_the_plots_and_end_with_the_run(assembly):
    flowgraph = bench(assembly)
    kept = {}
    for key, outputs, vlen in (("prediction_error_rad", 3, 1), ("snr_db", 3, 3)):
        probe = dmimo.product_probe(key=key, num_outputs=outputs, vlen=vlen)
        flowgraph.msg_connect(flowgraph.monitor, "plots", probe, "phases")
        kept[key] = probe, [blocks.vector_sink_f(vlen) for _ in range(outputs)]
        for port, sink in enumerate(kept[key][1]):
            flowgraph.connect((probe, port), sink)
    flowgraph.start()
    flowgraph.wait()  # by itself: nothing stops it
    assert flowgraph.scheduler.error is None
    for key, (_, sinks) in kept.items():
        streams = np.array([sink.data() for sink in sinks], np.float32)
        expected = np.moveaxis(flowgraph.plotted(key).reshape(*flowgraph.plotted(key).shape[:2], -1), 1, 0)
        np.testing.assert_array_equal(streams, expected.reshape(3, -1).astype(np.float32))
