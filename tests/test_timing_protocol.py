# SPDX-License-Identifier: GPL-3.0-or-later
"""Timing roles through the simulated network, without GNU Radio: nodes that share no PPS find the leader's time."""

import numpy as np
import pytest
from gnuradio.dmimo.core.carrier import CarrierCorrection
from gnuradio.dmimo.core.timing import ClockCorrection, fractional_shift
from gnuradio.dmimo.protocols.slots import Grant, Product, build_schedule
from gnuradio.dmimo.protocols.timing import TIMING, TRACKING, TimingCollector, TimingPlan, TimingRole
from gnuradio.dmimo.simulation.network import Network, SimulatedNode
from gnuradio.dmimo.simulation.oscillators import Clock, Oscillator
from gnuradio.dmimo.simulation.propagation import Geometric, Rayleigh

SAMP_RATE, CENTER_FREQ, SECOND = 1e6, 3.5e9, 10**6
PLACES = ((0.0, 0.0, 0.0), (450.0, 0.0, 0.0), (0.0, 240.0, 0.0))


def make_network(clocks, *, snr_db=20.0, seed=1, ports=(1, 2, 1), silent=(), propagation=None, **oscillator):
    """Return a network with unit path gain, in line of sight by default; carriers follow the clocks."""
    nodes = []
    for k, clock in enumerate(clocks):
        cfo_hz = (clock.rate - 1.0) * CENTER_FREQ
        source = Oscillator(samp_rate=SAMP_RATE, seed_key=(seed, k), cfo_hz=cfo_hz, **oscillator)
        gains = np.zeros(ports[k]) if k in silent else np.ones(ports[k])
        nodes.append(SimulatedNode(f"ap{k}", ports[k], source, clock=clock, noise_var=10 ** (-snr_db / 10),
                                   tx_gains=gains, position_m=PLACES[k]))
    propagation = propagation or Geometric(seed=seed, num_paths=0, delays=True)
    return Network(nodes, propagation, samp_rate=SAMP_RATE, seed=seed)


class Run:
    """Plays phases: what the role blocks, the scheduler and the collector do."""

    def __init__(self, network, **options):
        self.network, names = network, network.names
        ports = {name: network.ports(name).stop - network.ports(name).start for name in names}
        self.plan = TimingPlan(names, names[0], names[1:], ports, 4096, SAMP_RATE,
                               **{"center_freq": CENTER_FREQ, "latency_samples": network.latency_samples, **options})
        self.schedule = build_schedule(names, 4096, self.plan.phases(8))
        self.clocks = {name: ClockCorrection(SAMP_RATE) for name in names[1:]}
        self.roles = {name: TimingRole(name, self.plan, self.clocks.get(name)) for name in names}
        self.collector = TimingCollector(self.plan)
        self.carriers = {}

    def play(self, phase, start, lost=()):
        """Play a phase, hand its product to the roles and return it; `lost` slots are received by nobody."""
        grants = []
        for index in self.schedule.phase(phase).slots:
            received = self.received(index, start)
            grants.append(Grant(index, 0, start))
            if index not in lost:
                for name, samples in received.items():
                    self.roles[name].receive(self.schedule.slots[index], grants[-1], samples)
            start += 4096
        results = {name: role.results(grants) for name, role in self.roles.items()}
        product = self.collector.produce(phase, grants, {name: r for name, r in results.items() if r})
        if product.trusted:
            for role in self.roles.values():
                role.update(product)
        return product

    def received(self, index, start):
        """Play a slot with every node's correction; return what each node receives."""
        network = self.network
        x = np.zeros((network.num_ports, 4096), np.complex64)
        for name, role in self.roles.items():
            burst = role.transmit(self.schedule.slots[index], start)
            if burst is not None:
                if name in self.carriers:
                    burst = burst * self.carriers[name].transmit_turn(start, 4096)
                x[network.ports(name)] = self._moved(name, burst, start, 1)
        y = network.process(x, start, np.zeros(len(x), int), final=True, shifts=self.shifts(start))
        out = {}
        for name in network.names:
            samples = self._moved(name, y[network.ports(name)], start, -1)
            if name in self.carriers:
                # Received samples are labelled later than they were at the antenna.
                samples = samples * self.carriers[name].receive_turn(start - network.latency_samples, 4096)
            out[name] = samples.astype(np.complex64)
        return out

    def _moved(self, name, samples, start, sign):
        return fractional_shift(samples, sign * self.clocks[name].fraction(start)) if name in self.clocks else samples

    def shifts(self, start):
        return [self.clocks[name].shift(start) if name in self.clocks else 0 for name in self.network.names]

    def misalignment(self, name, sample):
        """Return how late the follower is against the leader with its correction in force [samples]."""
        clock, truth = self.clocks[name], self.network.true_clock_offset
        own = truth(name, sample, clock.shift(sample)) + clock.fraction(sample)
        return own - truth(self.network.names[0], sample)


FAR = (Clock(), Clock(1000.37, 1 + 2e-6, adjustable=True), Clock(-1000.81, 1 - 2e-6, adjustable=True))


def test_a_millisecond_and_two_ppm_off_is_aligned_to_a_tenth_of_a_sample_for_ten_minutes():
    """Cold start, then a round of tracking every 10 s with nothing in between; the truth is read all along."""
    run, second = Run(make_network(FAR)), SECOND
    assert run.play(TIMING, 0).trusted
    worst = 0.0
    for begin in range(0, 600, 10):
        if begin:
            product = run.play(TRACKING, begin * second)
            assert product.values["trusted"].all()
        for sample in np.linspace(begin * second + 40_000, (begin + 10) * second, 21).astype(int).tolist():
            worst = max(worst, *(abs(run.misalignment(name, sample)) for name in ("ap1", "ap2")))
    assert worst < 0.1
    # The clocks have drifted by over a thousand samples, and at the end the air agrees with the filter.
    assert [run.clocks[name].shift(600 * second) for name in ("ap1", "ap2")] == [200, -199]
    product = run.play(TRACKING, 600 * second)
    np.testing.assert_allclose(product.values["offset_samples"], 0.0, atol=0.02)
    np.testing.assert_allclose(product.values["propagation_samples"], [450 / 299.792458, 240 / 299.792458], atol=0.01)


def test_offset_and_frequency_are_measured_with_the_stated_deviations():
    """The first product against the truth at its reference sample, for many networks."""
    normalised = []
    for seed in range(12):
        run = Run(make_network(FAR, seed=seed))
        product = run.play(TIMING, 123 * 4096)
        values = product.values
        for k, name in enumerate(run.plan.followers):
            truth = run.network.true_clock_offset(name, int(values["reference_samples"][k]), 0)
            normalised.append([(values["offset_samples"][k] - truth) / values["offset_std_samples"][k],
                               (values["frequency_hz"][k] + run.network.nodes[k + 1].oscillator.cfo_hz)
                               / values["frequency_std_hz"][k]])
            assert values["offset_std_samples"][k] < 0.002
            assert values["frequency_std_hz"][k] < 5.0
    count = len(normalised)
    assert np.all(np.abs(np.mean(np.square(normalised), axis=0) - 1) < 4 * np.sqrt(2 / count))
    assert np.all(np.abs(np.mean(normalised, axis=0)) < 4 / np.sqrt(count))


@pytest.mark.parametrize("ports", [(4, 1, 2), (1, 4, 2)])
def test_multipath_does_not_move_the_offset_however_many_ports_a_node_has(ports):
    """Taps 1 us apart: other ports than the sending one, or another maximum each way, would be 0.9 samples off."""
    for seed in range(10):
        rayleigh = Rayleigh(seed=seed, num_taps=3, delay_spread_s=1e-6)
        run = Run(make_network(FAR, snr_db=60.0, seed=seed, ports=ports, propagation=rayleigh))
        values = run.play(TIMING, 123 * 4096).values
        assert values["trusted"].all()
        for k, name in enumerate(run.plan.followers):
            truth = run.network.true_clock_offset(name, int(values["reference_samples"][k]), 0)
            assert values["offset_samples"][k] == pytest.approx(truth, abs=0.02)


def test_one_direction_takes_the_propagation_for_an_early_clock():
    run = Run(make_network(FAR), bidirectional=False)
    assert [slot.transmitters for slot in run.schedule.slots if slot.transmitters] == [("ap0",), ("ap0",)]
    product = run.play(TIMING, 8192)
    assert np.isnan(product.values["propagation_samples"]).all()
    for name, distance in (("ap1", 450.0), ("ap2", 240.0)):
        assert run.misalignment(name, 2 * 4096) == pytest.approx(distance / 299.792458, abs=0.02)


def test_without_a_common_reference_the_rate_is_learned_from_the_offsets():
    run = Run(make_network(FAR), center_freq=None)
    for k in range(4):
        assert run.play(TRACKING if k else TIMING, k * SECOND).values["trusted"].all()
    assert run.clocks["ap1"].rate == pytest.approx(-2e-6, abs=3e-9)
    assert abs(run.misalignment("ap1", 5 * SECOND)) < 0.1


def test_a_leader_with_a_clock_of_its_own_is_followed():
    run = Run(make_network((Clock(3.3, 1 - 0.5e-6, adjustable=True), Clock(-250.0, 1 + 1e-6, adjustable=True))))
    for k in range(3):
        run.play(TRACKING if k else TIMING, k * SECOND)
    assert run.clocks["ap1"].rate == pytest.approx(-1.5e-6, abs=2e-9)
    assert abs(run.misalignment("ap1", 4 * SECOND)) < 0.02


def test_a_carrier_that_is_corrected_already_still_tells_the_rate():
    run = Run(make_network(FAR[:2]))
    carrier = CarrierCorrection(SAMP_RATE)
    carrier.retune(-6950.0, 0)  # 50 Hz short
    run.roles["ap1"] = TimingRole("ap1", run.plan, run.clocks["ap1"], carrier)
    run.carriers = {"ap1": carrier}
    product = run.play(TIMING, 0)
    assert product.values["frequency_hz"][0] == pytest.approx(-50.0, abs=5.0)
    assert run.clocks["ap1"].rate == pytest.approx(-2e-6, abs=2e-9)


def test_phases_of_a_corrected_node_do_not_show_its_shifts():
    """7 kHz and 2 ppm, both known: over a minute, 120 shifts of a sample, a carrier stays where it was, both ways.

    Clocks move by 0.008 samples within a slot and turn a carrier by less than 1e-4 rad there; filters err by 4e-4.
    """
    run, start = Run(make_network(FAR[:2], snr_db=200.0)), 10 * SECOND
    carrier = CarrierCorrection(SAMP_RATE)
    carrier.retune(-7000.0, 0)
    run.carriers = {"ap1": carrier}
    run.clocks["ap1"].update(run.network.true_clock_offset("ap1", start, 0), 1e-3, start, rate=1 / (1 + 2e-6) - 1)
    there, back = run.schedule.phase(TRACKING).slots
    place, x, gains = run.plan.place, run.plan.preamble, []
    for begin in range(start, start + 60 * SECOND, 1_730_003):
        begin -= begin % 4096
        gains.append([np.vdot(x, run.received(slot, begin)[name][0, place : place + x.size])
                      for slot, name in ((there, "ap1"), (back, "ap0"))])
    assert len({run.clocks["ap1"].shift(sample) for sample in range(start, start + 60 * SECOND, SECOND)}) > 50
    np.testing.assert_allclose(np.angle(np.array(gains) / gains[0]), 0.0, atol=2e-3)


def test_a_wrong_sign_or_an_ignored_fraction_would_show():
    """What the alignment test rests on: the correction left out, or turned round, misses by far more."""
    run = Run(make_network(FAR))
    run.play(TIMING, 0)
    truth, sample = run.network.true_clock_offset, 5 * SECOND
    clock = run.clocks["ap1"]
    assert abs(truth("ap1", sample, clock.shift(sample)) - clock.fraction(sample)) > 0.1
    assert abs(truth("ap1", sample, -clock.shift(sample))) > 1900


@pytest.mark.parametrize(("silent", "names"), [((2,), ["ap2", "ap0"]), ((0,), ["ap1", "ap2"])])
def test_a_preamble_that_nobody_hears_is_named_and_changes_nothing(silent, names):
    """A silent follower is missed by the leader, a silent leader by every follower."""
    network = make_network(FAR, silent=silent)
    product = Run(network).play(TIMING, 0)
    assert not product.trusted
    assert all(any(name in reason for reason in product.reasons) for name in names)
    run = Run(make_network(FAR))
    run.play(TIMING, 0)
    before = [run.clocks[name].offset(SECOND) for name in ("ap1", "ap2")]
    run.network = Network([SimulatedNode(n.name, n.num_ports, n.oscillator, clock=n.clock, noise_var=0.01,
                                         tx_gains=np.zeros(n.num_ports) if k in silent else n.tx_gains,
                                         position_m=n.position_m) for k, n in enumerate(run.network.nodes)],
                          Geometric(seed=1, num_paths=0, delays=True), samp_rate=SAMP_RATE, seed=1)
    product = run.play(TRACKING, 2 * SECOND)
    assert product.trusted
    assert product.values["trusted"].tolist() == [0 not in silent, False]
    assert product.reasons
    after = [run.clocks[name].offset(SECOND) for name in ("ap1", "ap2")]
    assert (before[0] == after[0]) == (0 in silent)
    assert before[1] == after[1]


def test_noise_alone_is_not_trusted():
    product = Run(make_network(FAR, snr_db=-60.0)).play(TIMING, 0)
    assert not product.trusted
    assert len(product.reasons) == 4


def test_lost_slots_are_silence():
    """A guard slot lost changes nothing that matters; the leader's lost, no follower finds it."""
    run = Run(make_network(FAR))
    senders = [slot.transmitters for slot in run.schedule.slots]
    guards = [k for k in run.schedule.phase(TIMING).slots if not senders[k]]
    leader = senders.index(("ap0",))
    assert run.play(TIMING, 0, lost=guards[-1:]).trusted
    product = Run(make_network(FAR)).play(TIMING, 0, lost=[leader, leader + 1])
    assert [reason for reason in product.reasons if "ap1" in reason or "ap2" in reason]


def test_schedule_leaves_room_for_what_it_searches():
    """Wherever clocks are within reach, preambles lie within the phase, and no other one in a search window."""
    for reach in (100, 1200, 3000, 9000):
        plan = TimingPlan(("a", "b", "c"), "b", ("c", "a"), {"a": 1, "b": 1, "c": 1}, 2048, SAMP_RATE,
                          preamble_samples=512, latency_samples=300, max_delay_samples=reach)
        schedule = build_schedule(plan.nodes, 2048, plan.phases(4))
        phase = schedule.phase(TIMING)
        senders = [(k, *schedule.slots[k].transmitters) for k in phase.slots if schedule.slots[k].transmitters]
        places = [2048 * k + plan.place for k, _ in senders]
        assert [name for _, name in senders] == ["b", "c", "a"]
        assert places[0] - reach >= 0
        assert places[-1] + reach + 512 <= 2048 * phase.count
        assert min(np.diff(places)) >= 3 * reach + 512  # two followers `reach` off, a window of `reach`
        assert schedule.phase(TRACKING).count == 3


def test_roles_without_a_part_in_it_stay_silent():
    plan = TimingPlan(("a", "b", "ue"), "a", ("b",), {"a": 1, "b": 1, "ue": 1}, 4096, SAMP_RATE)
    schedule, role = build_schedule(plan.nodes, 4096, plan.phases(4)), TimingRole("ue", plan)
    for slot in schedule.slots:
        assert role.transmit(slot, 0) is None
        role.receive(slot, Grant(slot.index, 0, 0), np.zeros((1, 4096), np.complex64))
    assert role.results([Grant(0, 0, 0)]) is None
    role.update(Product(TIMING, {}))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"followers": ()}, "followers"),
        ({"followers": ("a",)}, "followers"),
        ({"followers": ("x",)}, "followers"),
        ({"lead_samples": 20}, "lead_samples"),
        ({"max_delay_samples": 3}, "max_delay_samples"),
        ({"latency_samples": 3000}, "slot_samples"),
    ],
)
def test_plans_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TimingPlan(**{"nodes": ("a", "b"), "leader": "a", "followers": ("b",), "num_ports": {"a": 1, "b": 1},
                      "slot_samples": 4096, "samp_rate": SAMP_RATE, **options})


def test_a_follower_needs_a_clock():
    plan = TimingPlan(("a", "b"), "a", ("b",), {"a": 1, "b": 1}, 4096, SAMP_RATE)
    with pytest.raises(ValueError, match="node b"):
        TimingRole("b", plan)
