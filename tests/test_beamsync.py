# SPDX-License-Identifier: GPL-3.0-or-later
"""BeamSync's roles, played through a network model of the tests' own, with unequal nodes and gains."""

import numpy as np
import pytest
from air import Air
from gnuradio.dmimo.core import synchronization as sync
from gnuradio.dmimo.core.carrier_tracking import CarrierTracker
from gnuradio.dmimo.core.sync_burst import SyncBurst
from gnuradio.dmimo.core.waveforms import SlotLayout, SoundingSymbol
from gnuradio.dmimo.direct import DirectRun
from gnuradio.dmimo.protocols import internal_calibration
from gnuradio.dmimo.protocols.beamsync import Bystander, FollowerRole, LeaderRole
from gnuradio.dmimo.protocols.beamsync_collector import MAX_FAILURES, BeamSyncCollector, Pacing
from gnuradio.dmimo.protocols.beamsync_plan import (
    FREQUENCY,
    PHASE,
    PHASE_PILOT,
    PHASE_RETURN,
    PHASE_SIGNAL,
    BeamSyncPlan,
    resource_grid,
)
from gnuradio.dmimo.protocols.correction import NodeCorrection
from gnuradio.dmimo.protocols.slots import Product, build_schedule

PORTS = {"a": 3, "b": 4, "c": 2, "u": 1}
APS = {name: PORTS[name] for name in "abc"}
SLOT, RATE = 400, 1e6
PASSES = 4


class AirNetwork:
    """`Air` with the interface of the simulated network, and with coupling between the ports of a node."""

    def __init__(self, seed=7, **options):
        self.rng = np.random.default_rng(seed)
        self.air = Air(self.rng, PORTS, dict.fromkeys(PORTS, 1), samp_rate=RATE, **options)
        self.names, self.num_ports = tuple(PORTS), sum(PORTS.values())
        first = np.cumsum([0, *PORTS.values()])
        self._slices = {name: slice(first[k], first[k + 1]) for k, name in enumerate(PORTS)}
        self.coupling = {}
        for name, count in PORTS.items():
            g = self.rng.normal(size=(count, count)) + 1j * self.rng.normal(size=(count, count))
            self.coupling[name] = g + g.T - 2 * np.diag(np.diag(g))
        self.deaf = set()

    def ports(self, name):
        return self._slices[name]

    def begin_slot(self, start, num):
        return ()

    def process(self, x, start, beams, *, final, shifts=None):
        sent = {name: x[self.ports(name)].astype(complex) for name in self.names}
        received = self.air.slot(sent, dict.fromkeys(PORTS, 0), start, x.shape[1])
        out = np.zeros(x.shape, np.complex64)
        for name in self.names:
            own = self.air.r[name][:, None] * (self.coupling[name] @ (self.air.t[name][:, None] * sent[name]))
            out[self.ports(name)] = (received[name] + own) * (name not in self.deaf)
        return out

    def c(self, name, sample):
        return self.air.c([name], sample)


def make(network=None, *, followers=("b", "c"), linewidth_hz=1e-3, budget_deg=5.0, until=0, internal=True, correct=None,
         **options):
    """A run of internal calibration, frequency and phase stages; its followers' roles; the collector."""
    network = AirNetwork() if network is None else network
    symbol = SoundingSymbol(32, 24, 8)
    layouts = {name: SlotLayout(SLOT, 8, symbol, PORTS[name], 2) for name in APS}
    plan = BeamSyncPlan(tuple(PORTS), "a", followers, layouts, SyncBurst(SLOT, 8, 96, 8, 2), RATE,
                        **{"waveform": "ones", "frequency_repeats": 6, **options})
    first = [(internal_calibration.PHASE, 4, internal_calibration.internal_slots(tuple(PORTS), tuple(APS), 2))]
    frequency, phase = plan.phases()
    schedule = build_schedule(tuple(PORTS), SLOT, [*first * internal, frequency], [phase], paced=[0])

    def tracker():
        return CarrierTracker(RATE, linewidth_hz=linewidth_hz, offset_std_hz=1e6)

    places = dict(zip(APS, (slice(0, 3), slice(3, 7), slice(7, 9)), strict=True))
    roles = {}
    for name in PORTS:
        if name == "a":
            sync = LeaderRole(name, plan, places[name])
        elif name in followers:
            correction = (correct or NodeCorrection)(RATE)
            sync = FollowerRole(name, plan, places[name], places["a"], correction, tracker, np.radians(budget_deg))
        else:
            sync = Bystander(name, plan)
        roles[name] = [internal_calibration.InternalRole(name, layouts), sync]
    collector = BeamSyncCollector(plan, APS, Pacing(2000, 10**6))
    run = DirectRun(schedule, network, roles, [internal_calibration.InternalCollector(APS), collector],
                    until_sample=until)
    return run, network, {name: roles[name][1] for name in followers}, collector


def phase_left(network, role, name, sample):
    """Phase by which the corrected c of a follower's first port falls short of the leader's, in rad."""
    carrier = role.correction.carrier
    turn = np.exp(1j * (2 * carrier.theta(sample) + carrier.phase_rad))
    return np.angle(network.c("a", sample)[0] / (network.c(name, sample)[0] * turn))


@pytest.mark.parametrize("options", [
    {}, {"returns": "matched"}, {"rounds": 3}, {"rounds": 2, "returns": "matched"}, {"multiplexing": "subbands"},
    {"multiplexing": "subbands", "waveform": "gaussian"}, {"waveform": "gaussian"}, {"waveform": "sinusoid"},
    {"joint": False}, {"pilot_share": 0.25},
], ids=str)
def test_phase_is_exact_without_noise_for_unequal_nodes_and_gains(options):
    run, network, roles, _ = make(**options)
    assert run.run() is None
    for name, role in roles.items():
        assert abs(phase_left(network, role, name, run.end_sample)) < 1e-5


@pytest.mark.parametrize("options", [{}, {"multiplexing": "subbands"}, {"returns": "matched"}], ids=str)
def test_offsets_are_found_and_the_phase_holds_long_after(options):
    network = AirNetwork(cfo_hz={"a": 40.0, "b": -210.0, "c": 95.0, "u": 30.0})
    run, _, roles, _ = make(network, **options)
    assert run.run() is None
    for name, expected in (("b", 250.0), ("c", -55.0)):
        assert roles[name].correction.carrier.frequency_hz == pytest.approx(expected, abs=1e-3)
        for late in (0, 10_000):
            assert abs(phase_left(network, roles[name], name, run.end_sample + late)) < 1e-3


def test_a_correction_of_the_transmission_alone_leaves_the_phase_turning():
    class TransmitOnly(NodeCorrection):
        def receive(self, samples, start):
            return samples

    network = AirNetwork(cfo_hz={"a": 0.0, "b": -10.0, "c": 0.0, "u": 0.0})
    turned = {}
    for correct in (NodeCorrection, TransmitOnly):
        run, _, roles, _ = make(network, correct=correct)
        run.run()
        carrier, end = roles["b"].correction.carrier, run.end_sample
        c = [network.c("a", n)[0] / network.c("b", n)[0] for n in (end, end + 10_000)]
        applied = [carrier.theta(n) * (2 if correct is NodeCorrection else 1) for n in (end, end + 10_000)]
        turned[correct] = np.degrees(np.angle(c[1] / c[0] * np.exp(-1j * (applied[1] - applied[0]))))
    assert abs(turned[NodeCorrection]) < 0.05
    assert abs(turned[TransmitOnly]) == pytest.approx(36.0, abs=1.0)


def test_predicted_deviations_are_those_of_the_errors():
    """Errors over their predicted deviations have unit variance, within 4 standard errors."""
    scores = []
    for seed in range(100):
        run, network, roles, collector = make(AirNetwork(seed, noise_var=0.1), linewidth_hz=0.0, internal=False)
        truth = np.concatenate([network.c(name, 0) / network.c(name, 0)[0] for name in APS])
        for members in run._members._roles.values():
            members[1].update(Product(internal_calibration.PHASE, {"internal_c": truth}))
        assert run.run() is None
        for name, role in roles.items():
            left = phase_left(network, role, name, run.end_sample)
            scores.append(left / collector.history[-1]["followers"][name]["phase_std_rad"])
    assert abs(np.mean(np.square(scores)) - 1) < 4 * np.sqrt(2 / len(scores))
    assert abs(np.mean(scores)) < 4 / np.sqrt(len(scores))


def test_the_frequency_phase_of_a_deaf_follower_ends_the_run_and_names_it():
    network = AirNetwork(noise_var=0.01)
    network.deaf.add("c")
    run, _, roles, _ = make(network, internal=False)
    assert "node c" in run.run()
    assert roles["c"].correction.carrier.phase_rad == 0.0


def test_an_offset_outside_the_search_range_is_flagged_not_applied():
    network = AirNetwork(cfo_hz={"a": 0.0, "b": -2000.0, "c": 0.0, "u": 0.0}, noise_var=1e-3)
    run, _, roles, _ = make(network, max_offset_hz=500.0, internal=False)
    error = run.run()
    assert "node b" in error
    assert "frequency offset" in error
    assert roles["b"].correction.carrier.frequency_hz == 0.0


class Late(AirNetwork):
    """Everything arrives 0.15 samples late."""

    def process(self, x, start, beams, *, final, shifts=None):
        turn = np.exp(-2j * np.pi * 0.15 * np.fft.fftfreq(x.shape[1]))
        return super().process(np.fft.ifft(np.fft.fft(x) * turn).astype(np.complex64), start, beams, final=final)


def test_a_wide_waveform_a_fraction_of_a_sample_late_is_flagged_and_a_tone_does_not_mind():
    run, _, roles, _ = make(Late(noise_var=1e-6), waveform="gaussian")
    assert "distorted" in run.run()
    assert roles["b"].correction.carrier.frequency_hz == 0.0
    run, network, roles, _ = make(Late(noise_var=1e-6))
    assert run.run() is None
    assert abs(phase_left(network, roles["b"], "b", run.end_sample)) < 0.01


class Deafening(AirNetwork):
    """Follower b hears nothing from a sample on: its noise alone is received."""

    def __init__(self, since, **options):
        super().__init__(**options)
        self.since = since

    def process(self, x, start, beams, *, final, shifts=None):
        out = super().process(x, start, beams, final=final)
        if start >= self.since:
            noise = self.rng.normal(size=(2, *out[self.ports("b")].shape)) / 10
            out[self.ports("b")] = noise[0] + 1j * noise[1]
        return out


def test_a_follower_that_goes_deaf_keeps_its_phase_and_ends_the_run_after_some_attempts():
    run, _, roles, collector = make(Deafening(40_000, noise_var=0.01), until=10**7)
    error = run.run()
    assert "node b" in error
    assert f"{MAX_FAILURES} times in a row" in error
    flagged = [entry["followers"]["b"] for entry in collector.history[-MAX_FAILURES:]]
    assert not any(report["trusted"] for report in flagged)
    before = collector.history[-MAX_FAILURES - 1]["followers"]["b"]
    assert roles["b"].correction.carrier.phase_rad == pytest.approx(
        np.angle(np.exp(1j * (before["turn_rad"] - 2 * roles["b"].correction.carrier.theta(before["sample"])))))


def test_synchronisations_come_when_the_predicted_error_reaches_the_budget():
    linewidth, budget = 0.01, np.radians(5.0)
    run, _, _, collector = make(AirNetwork(noise_var=1e-4), linewidth_hz=linewidth, until=2 * 10**6)
    assert run.run() is None
    samples = [entry["sample"] for entry in collector.history if entry["phase"] == PHASE]
    exchange = 5 * SLOT  # between the due time and the end of the next one
    intervals = (np.diff(samples[5:]) - exchange) / RATE
    # The phase walks with 8 pi linewidth; frequency errors cost the rest.
    longest = budget**2 / (8 * np.pi * linewidth)
    assert np.all(intervals < longest)
    assert intervals[-1] > 0.8 * longest


def test_stage_one_of_the_phase_is_shared_and_no_resource_is_used_twice():
    for multiplexing in ("sequence", "subbands"):
        run, _, _, _ = make(multiplexing=multiplexing, internal=False)
        plan = run._members._roles["a"][1]._plan
        grid = resource_grid(plan)
        assert sum(block.stage == PHASE_PILOT for block in grid) == 1
        taken = set()
        for block in grid:
            cells = {(slot, bin_) for slot in range(block.first, block.first + block.count)
                     for bin_ in range(block.lowest, block.highest + 1)}
            assert not cells & taken
            taken |= cells
        if multiplexing == "subbands":
            lower, upper = (next(b for b in grid if b.stage == PHASE_SIGNAL and b.follower == name) for name in "bc")
            assert upper.lowest - lower.highest > plan.guard_bins
        assert {block.follower for block in grid if block.stage == PHASE_RETURN} == {"b", "c"}


def test_the_follower_leads_no_follower_of_its_own_and_every_follower_needs_a_layout():
    symbol = SoundingSymbol(32, 24, 8)
    layouts = {"a": SlotLayout(SLOT, 8, symbol)}
    burst = SyncBurst(SLOT, 8, 96, 8, 2)
    with pytest.raises(ValueError, match="followers"):
        BeamSyncPlan(("a", "b"), "a", ("a",), layouts, burst, RATE)
    with pytest.raises(ValueError, match="nodes b"):
        BeamSyncPlan(("a", "b"), "a", ("b",), layouts, burst, RATE)
    assert FREQUENCY != PHASE


class Clocked(AirNetwork):
    """Node b's sample clock is late by a fraction of a sample, and its transmit chain by another."""

    CLOCK, LOOP = 0.2, 0.1

    def process(self, x, start, beams, *, final, shifts=None):
        def late(samples, delay):
            turn = np.exp(-2j * np.pi * delay * np.fft.fftfreq(samples.shape[1]))
            return np.fft.ifft(np.fft.fft(samples) * turn).astype(np.complex64)

        x = x.copy()
        x[self.ports("b")] = late(x[self.ports("b")], self.CLOCK + self.LOOP)
        out = super().process(x, start, beams, final=final)
        out[self.ports("b")] = late(out[self.ports("b")], -self.CLOCK)
        return out


@pytest.mark.parametrize("multiplexing", ["sequence", "subbands"])
def test_a_clock_or_a_chain_that_is_late_does_not_turn_the_phase_at_band_centre(multiplexing):
    run, network, roles, collector = make(Clocked(noise_var=1e-6), multiplexing=multiplexing)
    assert run.run() is None
    for name, role in roles.items():
        assert abs(phase_left(network, role, name, run.end_sample)) < 0.01
    if multiplexing == "subbands":
        found = collector.history[-1]["followers"]
        assert found["b"]["delay_samples"] == pytest.approx(2 * Clocked.CLOCK + Clocked.LOOP, abs=0.01)
        assert found["c"]["delay_samples"] == pytest.approx(0.0, abs=0.01)


def off_by(offset_hz, std_hz=50.0):
    """The frequency estimator with an error."""
    estimate = sync.frequency_estimate

    def estimator(*arguments, **options):
        found = estimate(*arguments, **options)
        return found._replace(frequency_hz=found.frequency_hz + offset_hz, frequency_std_hz=np.array(std_hz))

    return estimator


@pytest.mark.parametrize("options", [{}, {"multiplexing": "subbands"}, {"rounds": 2}], ids=str)
def test_a_phase_belongs_to_the_middle_between_what_was_sent_and_what_came_back(monkeypatch, options):
    """With 30 Hz left by the frequency stage a millisecond turns the phase by 22 degrees."""
    monkeypatch.setattr("gnuradio.dmimo.core.synchronization.frequency_estimate", off_by(30.0))
    run, network, roles, collector = make(until=30_000, linewidth_hz=1e-9, **options)
    assert run.run() is None
    stages = [entry for entry in collector.history if entry["phase"] == PHASE]
    assert len(stages) > 1
    for name, role in roles.items():
        assert abs(phase_left(network, role, name, run.end_sample)) < 2e-3
        assert {entry["followers"][name]["event"] for entry in stages[1:]} == {"applied"}
        # Sub-bands leak into each other at 30 Hz, which leaves some tenths of a hertz.
        assert abs(stages[-1]["followers"][name]["phase_rad"]) < (0.2 if "multiplexing" in options else 5e-3)


def test_bursts_have_unit_power_whatever_the_gains_and_pilots_their_share():
    sent = {}

    class Overheard(AirNetwork):
        def process(self, x, start, beams, *, final, shifts=None):
            sent.setdefault(start // SLOT, x)
            return super().process(x, start, beams, final=final)

    run, _, _, _ = make(Overheard(), pilot_share=0.25)
    assert run.run() is None
    plan = run._members._roles["a"][1]._plan
    for k, slot in enumerate(run._schedule.slots[len(APS) * 2 :], len(APS) * 2):
        burst = sent[k]
        if slot.purpose.endswith("pilot"):
            layout = plan.layouts[slot.transmitters[0]]
            total = layout.num_ports * layout.symbol.total_samples
            assert np.sum(np.abs(burst) ** 2) == pytest.approx(0.25 * total, rel=0.1)
        else:
            power = np.mean(np.sum(np.abs(plan.burst.window(burst)) ** 2, axis=0))
            assert power == pytest.approx(1.0, rel=1e-4)


class Noisy(AirNetwork):
    """The leader's receiver is 15 dB noisier than the others."""

    def process(self, x, start, beams, *, final, shifts=None):
        out = super().process(x, start, beams, final=final)
        own = out[self.ports("a")]
        noise = self.rng.normal(size=(2, *own.shape)) * np.sqrt((10**1.5 - 1) * self.air.noise_var / 2)
        own += noise[0] + 1j * noise[1]
        return out


@pytest.mark.parametrize("options", [{}, {"returns": "matched", "leader_noise_db": 15.0}], ids=str)
def test_a_noisy_leader_counts_in_the_predicted_deviation(options):
    scores = []
    for seed in range(60):
        run, network, roles, collector = make(Noisy(seed, noise_var=0.01), linewidth_hz=0.0, internal=False, **options)
        truth = np.concatenate([network.c(name, 0) / network.c(name, 0)[0] for name in APS])
        for members in run._members._roles.values():
            members[1].update(Product(internal_calibration.PHASE, {"internal_c": truth}))
        assert run.run() is None
        for name, role in roles.items():
            left = phase_left(network, role, name, run.end_sample)
            scores.append(left / collector.history[-1]["followers"][name]["phase_std_rad"])
    # What the follower takes for the leader's part is right for equal gains only.
    assert 0.3 < np.mean(np.square(scores)) < 3.0


def test_amplitudes_of_the_gain_settings_are_part_of_the_calibration():
    run, _, _, collector = make()
    collector._amplitudes = np.linspace(0.5, 2.0, 9)
    products = []
    produce = collector.produce
    collector.produce = lambda *arguments: products.append(produce(*arguments)) or products[-1]
    assert run.run() is None
    internal = run._members._collectors[0]
    np.testing.assert_allclose(np.abs(products[-1].values["c"]) / np.abs(internal.c), collector._amplitudes)
