# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated network in flowgraphs: equal to the network itself, however the samples are cut, and tags exact."""

import threading

import numpy as np
import pmt
import pytest
from gnuradio import blocks, gr
from gnuradio.dmimo.blocks.simulated_network import simulated_network
from gnuradio.dmimo.blocks.timetags import rate_ratio, time_to_pmt
from gnuradio.dmimo.simulation.faults import Fault
from gnuradio.dmimo.simulation.hardware import Panel
from gnuradio.dmimo.simulation.network import Network, SimulatedNode
from gnuradio.dmimo.simulation.oscillators import Oscillator
from gnuradio.dmimo.simulation.propagation import Rayleigh

SAMP_RATE = 1e6
TIMEOUT_S = 30.0
HOUR = 3600 * 10**6 + 17
NAMES, PORTS = ("ap1", "ap2", "ue1"), (1, 2, 1)
FIRST_PORTS = (0, 1, 3)
FLAT = {}
TAPS = {"num_taps": 3, "delay_spread_s": 1e-6}


def make_network(propagation=FLAT, *, samp_rate=SAMP_RATE, **arguments):
    """Return ap1 with one port, ap2 with two and ue1 with one, two beams each, noisy and moving."""
    panel = Panel(2, np.array([[1, 1], [1, -1]]) / np.sqrt(2))
    nodes = []
    for i, (name, num_ports) in enumerate(zip(NAMES, PORTS, strict=True)):
        oscillator = Oscillator(samp_rate=samp_rate, seed_key=i, cfo_hz=10.0 * i, linewidth_hz=1.0)
        nodes.append(SimulatedNode(name, num_ports, oscillator, panel, noise_var=0.01))
    return Network(nodes, Rayleigh(seed=1, **propagation), samp_rate=samp_rate, seed=1, **arguments)


def waveform(num, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((4, num)) + 1j * rng.standard_normal((4, num))).astype(np.complex64)


def tag(offset, key, value):
    return gr.tag_utils.python_to_tag((offset, pmt.intern(key), value))


def slot_tags(starts, slot, beams, samp_rate=SAMP_RATE):
    """Return, per port, the tags of slots of equal length from absolute samples `starts`, with `beams` (slots, P)."""
    tags = [[] for _ in range(4)]
    for k, start in enumerate(starts):
        for port in FIRST_PORTS:
            tags[port].append(tag(k * slot, "tx_time", time_to_pmt(start, rate_ratio(samp_rate))))
            tags[port].append(tag(k * slot, "packet_len", pmt.from_long(slot)))
        for port in range(4):
            tags[port].append(tag(k * slot, "beam", pmt.from_long(int(beams[k][port]))))
    return tags


def packed_tags(starts, slot, beams, sizes):
    """Return, per port, the tags of the same slots in packets of so many slots, `sizes` of each node."""
    tags = [[] for _ in range(4)]
    for port in range(4):
        node = sum(port >= first for first in FIRST_PORTS) - 1
        for k, size in zip(np.cumsum([0, *sizes[node]]), sizes[node], strict=False):
            said = [int(beam) for beam in beams[k : k + size, port]]
            value = pmt.init_s32vector(size, said) if size > 1 else pmt.from_long(said[0])
            tags[port].append(tag(int(k) * slot, "beam", value))
            if port in FIRST_PORTS:
                time = time_to_pmt(starts[k], rate_ratio(SAMP_RATE))
                tags[port].append(tag(int(k) * slot, "tx_time", time))
                tags[port].append(tag(int(k) * slot, "packet_len", pmt.from_long(size * slot)))
    return tags


def run(network, x, tags=None, *, max_items=None, buffer=None, beams=None):
    """Return received samples per port, their rx_time tags [(offset, sample)], and error messages."""
    top, block = gr.top_block(), simulated_network(network, beams)
    debug = blocks.message_debug()
    top.msg_connect(block, "error", debug, "store")
    sources = [blocks.vector_source_c(row.tolist(), False, 1, tags[i] if tags else []) for i, row in enumerate(x)]
    sinks = [blocks.vector_sink_c() for _ in x]
    for port, (source, sink) in enumerate(zip(sources, sinks, strict=True)):
        top.connect(source, (block, port))
        top.connect((block, port), sink)
    if buffer:
        block.set_max_output_buffer(buffer)
    if max_items:
        block.set_max_noutput_items(max_items)
    finish(top)
    errors = [pmt.symbol_to_string(debug.get_message(k)) for k in range(debug.num_messages())]
    received = [np.array(sink.data(), np.complex64) for sink in sinks]
    return received, [times(sink.tags(), network.samp_rate) for sink in sinks], errors


def finish(top):
    """Run a flowgraph to its end, which must come."""
    top.start()
    waiter = threading.Thread(target=top.wait, daemon=True)
    waiter.start()
    waiter.join(TIMEOUT_S)
    hung = waiter.is_alive()
    top.stop()
    assert not hung, "the flowgraph does not end"


def times(tags, samp_rate):
    """Return (offset, absolute sample) of each tag; all must be rx_time."""
    found = []
    for item in tags:
        assert pmt.symbol_to_string(item.key) == "rx_time"
        seconds, fraction = pmt.to_uint64(pmt.tuple_ref(item.value, 0)), pmt.to_double(pmt.tuple_ref(item.value, 1))
        assert 0.0 <= fraction < 1.0
        found.append((item.offset, round(seconds * samp_rate + fraction * samp_rate)))
    return found


def directly(network, x, starts, slot, beams):
    """Return what the network itself makes of the same slots."""
    return np.concatenate(
        [network.process(x[:, k * slot :][:, :slot], s, beams[k], final=True) for k, s in enumerate(starts)], axis=1
    )


@pytest.mark.parametrize("propagation", [FLAT, TAPS])
@pytest.mark.parametrize("slot", [256, 300])
@pytest.mark.parametrize("limits", [{}, {"max_items": 1}, {"max_items": 37}, {"max_items": 1000}, {"buffer": 1024}])
def test_slots_equal_the_network_for_any_buffer(propagation, slot, limits):
    starts = [512, 512 + slot, 100_000, 100_000 + slot, HOUR, HOUR + 3 * slot]
    beams = np.random.default_rng(1).integers(0, 2, (6, 4))
    x = waveform(6 * slot)
    y, tags, errors = run(make_network(propagation), x, slot_tags(starts, slot, beams), **limits)
    assert errors == []
    assert np.array_equal(y, directly(make_network(propagation), x, starts, slot, beams))
    assert tags == 4 * [[(0, 512), (2 * slot, 100_000), (4 * slot, HOUR), (5 * slot, HOUR + 3 * slot)]]


@pytest.mark.parametrize("propagation", [FLAT, TAPS])
@pytest.mark.parametrize("slot", [256, 300])
@pytest.mark.parametrize("limits", [{}, {"max_items": 1}, {"max_items": 600}, {"buffer": 1024}])
@pytest.mark.parametrize("sizes", [[[4, 2]] * 3, [[4, 2], [1, 3, 1, 1], [2, 2, 2]]])
def test_packets_of_several_slots_equal_the_network_for_any_buffer_and_packing(propagation, slot, limits, sizes):
    starts = [512 + k * slot for k in range(4)] + [HOUR, HOUR + slot]
    beams, x = np.random.default_rng(1).integers(0, 2, (6, 4)), waveform(6 * slot)
    y, tags, errors = run(make_network(propagation), x, packed_tags(starts, slot, beams, sizes), **limits)
    assert errors == []
    assert np.array_equal(y, directly(make_network(propagation), x, starts, slot, beams))
    assert tags == 4 * [[(0, 512), (4 * slot, HOUR)]]


@pytest.mark.parametrize("propagation", [FLAT, TAPS])
@pytest.mark.parametrize("limits", [{}, {"max_items": 1}, {"max_items": 100}, {"max_items": 1000}, {"buffer": 1024}])
def test_free_running_equals_the_network_for_any_buffer(propagation, limits):
    num = 1000 if limits.get("max_items") == 1 else 20_000
    x, beams = waveform(num), np.array([1, 0, 1, 0])
    y, tags, errors = run(make_network(propagation), x, beams=beams, **limits)
    network = make_network(propagation)
    expected = network.process(x, 0, beams, final=not network.has_memory)
    assert expected.shape[1] == (num // 256 * 256 if network.has_memory else num)
    assert errors == []
    assert np.array_equal(y, expected)
    assert tags == 4 * [[(0, 0)]]


def test_contiguous_slots_from_zero_equal_free_running():
    x, beams = waveform(10 * 512), np.zeros((10, 4), dtype=int)
    tagged, tags, _ = run(make_network(TAPS), x, slot_tags(range(0, 5120, 512), 512, beams))
    untagged, _, _ = run(make_network(TAPS), x)
    assert np.array_equal(tagged, untagged)
    assert tags == 4 * [[(0, 0)]]


@pytest.mark.parametrize("samp_rate", [1e6, 30.72e6, 1e6 / 3, 100e6 / 7])
def test_times_are_exact_at_odd_rates(samp_rate):
    starts = [1, 10**10 + 7]
    beams = np.zeros((2, 4), dtype=int)
    _, tags, errors = run(
        make_network(samp_rate=samp_rate), waveform(512), slot_tags(starts, 256, beams, samp_rate)
    )
    assert errors == []
    assert [offset for offset, _ in tags[0]] == [0, 256]
    assert [sample for _, sample in tags[0]] == starts


def test_a_network_serves_one_run_after_another():
    x, starts, beams = waveform(512), [512, 768], np.zeros((2, 4), dtype=int)
    network = make_network(TAPS)
    first, second = (run(network, x, slot_tags(starts, 256, beams)) for _ in range(2))
    assert np.array_equal(first[0], second[0])
    assert first[1:] == second[1:]


def test_set_beams_takes_effect():
    x = waveform(256)
    block = simulated_network(make_network())
    block.set_beams([1, 0, 1, 1])
    other, _, _ = run(make_network(), x, beams=[1, 0, 1, 1])
    plain, _, _ = run(make_network(), x)
    assert np.abs(np.subtract(other, plain)).max() > 0.1
    top = gr.top_block()
    sources, sinks = [blocks.vector_source_c(row.tolist()) for row in x], [blocks.vector_sink_c() for _ in x]
    for port, (source, sink) in enumerate(zip(sources, sinks, strict=True)):
        top.connect(source, (block, port))
        top.connect((block, port), sink)
    finish(top)
    assert np.array_equal([np.array(s.data(), np.complex64) for s in sinks], other)
    with pytest.raises(ValueError, match="beams"):
        block.set_beams([0])


@pytest.mark.parametrize("limits", [{}, {"max_items": 37}])
def test_a_lost_slot_is_missing_but_for_its_last_sample(limits):
    """As after an overflow: fewer samples, and the next carries a new time. ap2 (two ports) loses slots 1 and 2."""
    starts, beams, x = [512, 768, 1024, 1280, 5000], np.zeros((5, 4), dtype=int), waveform(5 * 256)
    y, tags, errors = run(
        make_network(faults=[Fault("lost_slot", "ap2", 1, count=2)]), x, slot_tags(starts, 256, beams), **limits
    )
    whole = directly(make_network(), x, starts, 256, beams)
    assert errors == []
    for port in (0, 3):
        assert np.array_equal(y[port], whole[port])
        assert tags[port] == [(0, 512), (1024, 5000)]
    for port in (1, 2):
        assert np.array_equal(y[port], np.delete(whole[port], np.r_[256:511, 512:767]))
        assert tags[port] == [(0, 512), (256, 768 + 255), (257, 1024 + 255), (514, 5000)]


def test_faults_in_a_packet_hit_single_slots():
    starts, beams, x = [512 + k * 256 for k in range(4)], np.zeros((4, 4), dtype=int), waveform(4 * 256)
    faults = [Fault("lost_slot", "ap2", 1), Fault("nan", "ue1", 2), Fault("dead_port", "ap1", 3)]
    y, tags, errors = run(make_network(faults=faults), x, packed_tags(starts, 256, beams, [[4]] * 3))
    x[0, 3 * 256 :] = 0
    whole = directly(make_network(), x, starts, 256, beams)
    assert errors == []
    assert np.array_equal(y[1], np.delete(whole[1], np.r_[256:511]))
    assert tags[1] == tags[2] == [(0, 512), (256, 768 + 255)]
    assert np.argwhere(np.isnan(y[3])).tolist() == [[2 * 256 + 128]]
    assert np.array_equal(np.delete(y[3], 2 * 256 + 128), np.delete(whole[3], 2 * 256 + 128))
    assert np.array_equal(y[0][: 3 * 256], whole[0, : 3 * 256])
    assert not np.array_equal(y[0][3 * 256 :], whole[0, 3 * 256 :])


def test_nan_arrives_where_the_fault_says():
    starts, beams = [512, 768], np.zeros((2, 4), dtype=int)
    y, _, errors = run(make_network(faults=[Fault("nan", "ue1", 1)]), waveform(512), slot_tags(starts, 256, beams))
    assert errors == []
    assert np.argwhere(np.isnan(y)).tolist() == [[3, 256 + 128]]


def broken_tags(kind):
    """Return slot tags with one mistake, and what the error must say."""
    tags = slot_tags([512, 1024], 256, np.zeros((2, 4), dtype=int))
    rate = rate_ratio(SAMP_RATE)
    if kind == "time":
        tags[3][3] = tag(256, "tx_time", time_to_pmt(1025, rate))
        return tags, "ue1 (1025, 256)"
    if kind == "length":
        tags[1][1] = tag(0, "packet_len", pmt.from_long(255))
        return tags, "ap2 (512, 255)"
    if kind == "missing":
        tags[1] = tags[1][:3]
        return tags, "node ap2: no tx_time"
    if kind == "untagged":
        tags[1] = []
        return tags, "streams of ap2 begin without tx_time"
    if kind == "inside":
        tags[3].append(tag(300, "tx_time", time_to_pmt(2000, rate)))
        return tags, "node ue1: a slot begins inside"
    if kind == "past":
        return slot_tags([512, 700], 256, np.zeros((2, 4), dtype=int)), "none before sample 768"
    if kind == "off grid":
        tags[0][0] = tag(0, "tx_time", pmt.make_tuple(pmt.from_uint64(0), pmt.from_double(512.3e-6)))
        return tags, "off the sample grid"
    if kind == "uneven":
        tags[1][2] = tag(0, "beam", pmt.init_s32vector(3, [0, 1, 0]))
        return tags, "node ap2: packet of 256 samples with beams of [3, 1] slots"
    if kind == "parted":
        tags[3][2] = tag(0, "beam", pmt.init_s32vector(2, [0, 1]))
        return tags, "ue1 (512, 128)"
    assert kind == "beam"
    tags[2][0] = tag(0, "beam", pmt.from_long(7))
    return tags, "beam 7 of node ap2"


@pytest.mark.parametrize("kind", ["time", "length", "missing", "untagged", "inside", "past", "off grid", "uneven",
                                  "parted", "beam"])
def test_a_mistake_in_the_tags_ends_the_run_with_its_name(kind):
    tags, message = broken_tags(kind)
    _, _, errors = run(make_network(), waveform(512), tags)
    assert len(errors) == 1
    assert errors[0].startswith("simulated_network")
    assert ("OffGrid" if kind == "off grid" else "ValueError") in errors[0]
    assert message in errors[0]


class one_slot_source(gr.sync_block):
    """Sends the next slot of ones only when a message has come: a reactive protocol with one slot in flight."""

    def __init__(self, num_slots, slot, with_frame):
        gr.sync_block.__init__(self, "one_slot_source", None, [np.complex64])
        self._granted, self._sent, self._num, self._slot, self._frame = slot, 0, num_slots * slot, slot, with_frame
        self.message_port_register_in(pmt.intern("go"))
        self.set_msg_handler(pmt.intern("go"), self.go)

    def go(self, _):
        self._granted += self._slot

    def work(self, _, output_items):
        if self._sent == self._num:
            return -1
        count = min(self._granted - self._sent, len(output_items[0]))
        for at in range(-self._sent % self._slot, count, self._slot):
            if self._frame:
                time = time_to_pmt(10 * (self._sent + at), rate_ratio(SAMP_RATE))
                self.add_item_tag(0, self.nitems_written(0) + at, pmt.intern("tx_time"), time)
                self.add_item_tag(0, self.nitems_written(0) + at, pmt.intern("packet_len"), pmt.from_long(self._slot))
        output_items[0][:count] = 1.0
        self._sent += count
        return count


class slot_sink(gr.sync_block):
    """Says when all its inputs have received another slot."""

    def __init__(self, num_ports, slot):
        gr.sync_block.__init__(self, "slot_sink", [np.complex64] * num_ports, None)
        self._slot, self.received = slot, 0
        self.message_port_register_out(pmt.intern("done"))

    def work(self, input_items, _):
        before, self.received = self.received, self.received + len(input_items[0])
        for _ in range(self.received // self._slot - before // self._slot):
            self.message_port_pub(pmt.intern("done"), pmt.PMT_T)
        return len(input_items[0])


@pytest.mark.parametrize("propagation", [FLAT, TAPS])
def test_one_slot_in_flight_never_waits_for_the_next(propagation):
    num_slots, slot = 50, 200
    top, block, sink = gr.top_block(), simulated_network(make_network(propagation)), slot_sink(4, slot)
    sources = [one_slot_source(num_slots, slot, port in FIRST_PORTS) for port in range(4)]
    for port, source in enumerate(sources):
        top.connect(source, (block, port))
        top.connect((block, port), (sink, port))
        top.msg_connect(sink, "done", source, "go")
    finish(top)
    assert sink.received == num_slots * slot


if __name__ == "__main__":
    raise SystemExit(pytest.main([__file__]))
