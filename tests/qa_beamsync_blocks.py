# SPDX-License-Identifier: GPL-3.0-or-later
"""Leader, follower and monitor wired by hand: they synchronise, and say the correction that they apply."""

import numpy as np
import pmt
import pytest
from gnuradio import blocks, dmimo, gr
from gnuradio.dmimo import testbed
from gnuradio.dmimo.assembly import Assembly
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.core.carrier import CarrierCorrection
from gnuradio.dmimo.synchronization_assembly import SETTLING
from graph import message_sink

TEXT = """
version: 1
node_defaults: {oscillator: {linewidth_hz: 1.0e-5, drift_hz: 0.02, drift_period_s: 100}}
nodes: [{name: ap1, num_ports: 2, oscillator: {cfo_hz: 120}}, {name: ap2, oscillator: {cfo_hz: -80}}]
propagation: {delays: false, coupling_db: -10}
noise: {snr_db: 20}
slots: {slot_samples: 256, lead_samples: 8, prefix_samples: 8, pilot_samples: 32, num_subcarriers: 24}
beamsync: {sync_samples: 96, linewidth_hz: 1.0e-5, drift_hz: 0.02, drift_period_s: 100, budget_deg: 5}
"""
OFFSET_HZ = 200.0
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def assembly():
    return Assembly(testbed.parse(TEXT), protocol="sync")


class bench(gr.top_block):
    """A run whose two nodes are wired from role, transmitter and receiver; correctors in streams beside it."""

    def __init__(self, assembly, until_sample=3_000_000):
        gr.top_block.__init__(self)
        self.network, self.slot_samples = assembly.network(), assembly.schedule.slot_samples
        self.scheduler = dmimo.slot_scheduler(assembly.schedule, watchdog_s=3.0, until_sample=until_sample)
        self.air = dmimo.simulated_network(self.network)
        self.leader = dmimo.beamsync_leader(assembly=assembly)
        self.follower = dmimo.beamsync_follower(assembly=assembly, name="ap2")
        self.monitor = dmimo.beamsync_monitor(assembly=assembly)
        self.told = message_sink()
        self.parts = []
        for name, role in (("ap1", self.leader), ("ap2", self.follower)):
            self._wire(assembly.testbed, name, role)
        self.msg_connect(self.scheduler, "phases", self.monitor, "phases")
        self.msg_connect(self.monitor, "products", self.scheduler, "products")
        self.msg_connect(self.monitor, "error", self.scheduler, "status")
        self.msg_connect(self.follower, "correction", self.told, "in")
        # Beside the run: what the follower receives, as it is and corrected.
        self.corrector = dmimo.frequency_corrector(1, assembly.testbed.samp_rate, "receive")
        self.raw, self.corrected = blocks.vector_sink_c(), blocks.vector_sink_c()
        port = self.network.ports("ap2").start
        self.connect((self.air, port), self.raw)
        self.connect((self.air, port), self.corrector, self.corrected)
        self.msg_connect(self.follower, "correction", self.corrector, "correction")
        self.msg_connect(self.corrector, "error", self.scheduler, "status")

    def _wire(self, bed, name, role):
        ports = self.network.ports(name)
        num_ports = ports.stop - ports.start
        transmitter = dmimo.burst_transmitter(num_ports)
        receiver = dmimo.burst_receiver(name, num_ports, bed.slots.slot_samples, bed.samp_rate)
        self.parts += [transmitter, receiver]
        for own in range(num_ports):
            self.connect((transmitter, own), (self.air, ports.start + own), (receiver, own))
        for source, out, to, port in (
            (self.scheduler, "control", role, "control"), (role, "tx", transmitter, "bursts"),
            (role, "end", transmitter, "end"), (role, "arm", receiver, "grants"), (receiver, "bursts", role, "rx"),
            (role, "status", self.scheduler, "status"), (role, "error", self.scheduler, "status"),
            (receiver, "error", self.scheduler, "status"), (role, "results", self.monitor, "results"),
        ):
            self.msg_connect(source, out, to, port)

    def run_to_the_end(self):
        self.start()
        finished = self.scheduler.finished_event.wait(LIMIT_S)
        # The sink may be a message behind.
        self.told.wait(len(self.monitor.history))
        self.stop()
        self.wait()
        assert finished
        return self


@pytest.fixture(scope="module")
def done(assembly):
    flowgraph = bench(assembly).run_to_the_end()
    assert flowgraph.scheduler.error is None
    return flowgraph


def corrections(flowgraph):
    return [{key: messages.get(message, key) for key in ("from_sample", "frequency_hz", "phase_rad")}
            for message in flowgraph.told.messages]


def exchanges(flowgraph):
    return [entry for entry in flowgraph.monitor.history if entry["phase"] == "phase"]


def test_blocks_wired_by_hand_synchronise(done):
    assert len(exchanges(done)) > 3
    for entry in exchanges(done)[1:]:
        found = entry["followers"]["ap2"]
        assert found["trusted"]
        # The budget is a standard deviation of 5 degrees.
        assert abs(found["phase_rad"]) < 4 * np.radians(5)
        c = done.network.true_calibration(entry["sample"])
        left = np.angle(c[0] / c[2] * np.exp(-1j * found["turn_rad"]))
        assert abs(left) < 4 * found["phase_std_rad"]


def test_every_change_is_told_once_with_its_sample(done):
    told = corrections(done)
    assert len(told) == 1 + len(exchanges(done))  # frequency, then phases
    samples = [entry["sample"] for entry in done.monitor.history if "followers" in entry]
    assert [correction["from_sample"] for correction in told] == samples
    assert told[0]["frequency_hz"] == pytest.approx(OFFSET_HZ, abs=1.0)
    assert told[0]["phase_rad"] == 0.0


def test_last_correction_is_the_followers_state(done):
    carrier = done.follower.correction.carrier
    assert corrections(done)[-1] == {"from_sample": carrier.changed_at, "frequency_hz": carrier.frequency_hz,
                                     "phase_rad": carrier.phase_rad}


def test_correction_that_was_told_makes_the_same_turn_as_the_follower(done):
    """The phase counts from theta(0) = 0, so frequencies, phases and samples are all that another block needs."""
    carrier, other = done.follower.correction.carrier, CarrierCorrection(1e6)
    for told in corrections(done):
        other.retune(told["frequency_hz"], told["from_sample"])
        other.advance(told["phase_rad"] - other.phase_rad, told["from_sample"])
    start = done.scheduler.end_sample
    np.testing.assert_allclose(other.transmit_turn(start, 64), carrier.transmit_turn(start, 64), atol=1e-9)
    np.testing.assert_allclose(other.receive_turn(start, 64), carrier.receive_turn(start, 64), atol=1e-9)


def slots_received(flowgraph):
    """What port 0 of the follower received, as it is and corrected: (slots, samples) each."""
    num = flowgraph.slot_samples
    return [np.reshape(sink.data(), (-1, num)) for sink in (flowgraph.raw, flowgraph.corrected)]


def test_corrector_beside_the_run_turns_by_what_was_told_when_it_held(done):
    raw, corrected = slots_received(done)
    *before, last = corrections(done)
    start = done.scheduler.end_sample - raw.shape[1]  # the last slot, just before the last correction
    assert last["from_sample"] == done.scheduler.end_sample
    carrier = CarrierCorrection(1e6)
    for told in before:
        carrier.retune(told["frequency_hz"], told["from_sample"])
    np.testing.assert_allclose(corrected[-1], raw[-1] * carrier.receive_turn(start, raw.shape[1]), rtol=1e-5, atol=1e-7)


def test_corrector_beside_the_run_brings_the_leaders_carrier_to_frequency_zero(done, assembly):
    """The return is a tone: it turns by 200 Hz as received, and stands still as corrected."""
    burst, half = assembly.synchronization.plan.burst, 48
    schedule = assembly.schedule
    first = next(slot.index for slot in schedule.slots if slot.purpose == "phase_return")
    cycle = sum(phase.count for phase in schedule.phases[-schedule.cycle :])

    def frequency_hz(slots):
        y = slots[first::cycle, burst.useful_start : burst.useful_start + burst.num_samples]
        return np.angle(np.sum(y[:, half:] * y[:, :half].conj())) / (2 * np.pi * half * 1e-6)

    raw, corrected = (frequency_hz(slots) for slots in slots_received(done))
    assert raw == pytest.approx(corrected + OFFSET_HZ, abs=1.0)  # the same noise in both
    # Noise of 20 dB over 48 samples and as many later: sqrt(1 / 48 / 100) / (2 pi 48 us) = 48 Hz for one burst.
    count = len(exchanges(done))
    assert corrected == pytest.approx(0.0, abs=4 * 48 / np.sqrt(count))
    assert 4 * 48 / np.sqrt(count) < OFFSET_HZ


def test_products_say_what_was_found_for_every_follower(assembly):
    flowgraph = bench(assembly, until_sample=0)
    seen = message_sink()
    flowgraph.msg_connect(flowgraph.monitor, "products", seen, "in")
    flowgraph.run_to_the_end()
    found = [messages.product(message) for message in seen.wait(2 + SETTLING)]
    assert [product.phase for product in found] == ["internal", "frequency", *["phase"] * SETTLING]
    assert found[-1].values["phase_rad"].shape == found[-1].values["phase_std_rad"].shape == (1,)
    assert found[-1].values["c"].shape == (3,)
    assert found[-1].pace_samples > 0


def test_blocks_say_what_is_wrong_with_their_testbed(assembly):
    sweep = Assembly(testbed.parse("{version: 1, nodes: [{name: ap1}, {name: ap2}]}"))
    for make in (dmimo.beamsync_leader, dmimo.beamsync_monitor):
        with pytest.raises(ValueError, match="no section beamsync"):
            make(assembly=sweep)
    for name in ("ap1", "ap9"):
        with pytest.raises(ValueError, match=f"name = '{name}': must be one of the testbed's followers"):
            dmimo.beamsync_follower(assembly=assembly, name=name)


def test_follower_tells_nothing_before_it_has_found_anything(assembly):
    follower, told = dmimo.beamsync_follower(assembly=assembly, name="ap2"), []
    follower.message_port_pub = lambda port, message: told.append(pmt.symbol_to_string(port))
    follower.updated()
    assert "correction" not in told
    follower.correction.carrier.retune(1.0, 100)
    follower.updated()
    follower.updated()
    assert told == ["correction"]
