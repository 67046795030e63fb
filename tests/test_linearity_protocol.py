# SPDX-License-Identifier: GPL-3.0-or-later
from dataclasses import replace

import numpy as np
import pytest
from air import Air, run_phase
from gnuradio.dmimo.core import predistortion
from gnuradio.dmimo.core.waveforms import SlotLayout, SoundingSymbol
from gnuradio.dmimo.protocols import verification
from gnuradio.dmimo.protocols.linearity import (
    AFTER,
    BEFORE,
    CALIBRATED,
    LINEARITY,
    TREATMENTS,
    LinearityCollector,
    LinearityPlan,
    LinearityRole,
    data_burst,
)
from gnuradio.dmimo.protocols.slots import Grant, Product, Slot, build_schedule
from gnuradio.dmimo.simulation.amplifiers import Amplifiers
from gnuradio.dmimo.simulation.network import Network, SimulatedNode
from gnuradio.dmimo.simulation.oscillators import Clock, Oscillator
from gnuradio.dmimo.simulation.propagation import Rayleigh

NODES = ("a", "ue", "b")
PORTS = {"a": 4, "ue": 2, "b": 3}
BEAMS = {"a": 1, "ue": 1, "b": 2}
APS = ("a", "b")
CFO = {"a": 40.0, "ue": -130.0, "b": -75.0}
LAYOUT = SlotLayout(1024, 8, SoundingSymbol(256, 64, 32), 1, 8)


def make_plan(layout=LAYOUT, *, aps=APS, samp_rate=1e6, nodes=NODES, ports=PORTS, beams=BEAMS, **options):
    single = {ap: verification.Plan(nodes, (ap,), "ue", ports, beams, layout, samp_rate, 8, 4, 2, 0, 3,
                                    prefix=f"{ap}_", coefficients=f"{ap}_") for ap in aps}
    return LinearityPlan(nodes, single, "ue", layout, samp_rate, **{"repeats": 4, "seed": 5} | options)


class Members:
    """Roles and collectors of the verifications' first phases and of the linearity phase."""

    def __init__(self, plan, predistort=None):
        own = plan.verification.values()
        phases = [phase for one in own for phase in one.phases(8)[:-1]]
        self.plan, self.predistort = plan, predistort or {}
        self.schedule = build_schedule(plan.nodes, plan.layout.slot_samples, phases + plan.phases(8))
        self.collectors = [verification.Verifier(one, self.schedule.slots) for one in own]
        self.collector = LinearityCollector(plan, self.schedule.slots)
        self.roles = {node: [LinearityRole(node, plan), *(verification.VerificationRole(node, one) for one in own)]
                      for node in plan.nodes}

    def update(self, product):
        for member in (*self.collectors, *(role for roles in self.roles.values() for role in roles)):
            member.update(product)

    def acting(self, phase):
        return {node: _Sender(node, next(role for role in roles if phase in role.purposes), self)
                for node, roles in self.roles.items()}

    def play(self, play, start, before=None):
        """Play all phases; `before(phase)` is called ahead of each. Returns the last product."""
        for phase in self.schedule.phases:
            if before is not None:
                before(phase.name)
            grants, results, start = play(self.schedule, phase.name, self.acting(phase.name), start)
            collector = next(one for one in (*self.collectors, self.collector) if phase.name in one.phases)
            product = collector.produce(phase.name, grants, results)
            if not product.trusted:
                return product
            self.update(product)
        return product


class _Sender:
    """A role with the predistortion of its node, which leaves raw bursts alone."""

    def __init__(self, node, role, members):
        self._role, self._plan = role, members.plan
        self._predistort = members.predistort.get(node)
        self.beam, self.receive, self.results = role.beam, role.receive, role.results

    def transmit(self, slot, start):
        burst = self._role.transmit(slot, start)
        if burst is None or self._predistort is None or self._plan.is_raw(slot):
            return burst
        return self._predistort(burst).astype(np.complex64)


def truth(air, aps, sample, wrong=None, reference=None):
    """Calibration product with the true coefficients of each AP, times `wrong` of it.

    Phases and frequencies are against the node `reference`, None: each AP by itself, as it calibrates internally.
    """
    values = {}
    for ap in aps:
        against = reference or ap
        c = air.c((ap,), sample) * np.exp(-2j * air.theta(against, sample)) * (wrong or {}).get(ap, 1.0)
        values |= {f"{ap}_c": c, f"{ap}_delay_s": np.zeros(c.size), f"{ap}_reference_time": sample,
                   f"{ap}_frequency_hz": np.full(c.size, air.cfo_hz[ap] - air.cfo_hz[against])}
    return Product("coupling", values)


class SampledAmplifiers:
    """The air, with what nodes send through amplifiers of their own, sample by sample."""

    def __init__(self, air, amplifiers):
        self._air, self._amplifiers = air, amplifiers

    def __getattr__(self, name):
        return getattr(self._air, name)

    def slot(self, sent, beams, start, num_samples):
        sent = {node: self._amplifiers.get(node, lambda x: x)(burst) if burst is not None else None
                for node, burst in sent.items()}
        return self._air.slot(sent, beams, start, num_samples)


def measure(seed=3, *, noise_var=0.0, cfo_hz=None, wrong=None, amplifiers=None, predistort=None, late=None,
            layout=LAYOUT, max_delay=0, reference=None, **options):
    """Air and report with the true calibration, times `wrong`; noise comes with the data."""
    air = SampledAmplifiers(Air(np.random.default_rng(seed), PORTS, BEAMS, cfo_hz=cfo_hz, max_delay=max_delay),
                            amplifiers or {})
    members = Members(make_plan(layout, **options), predistort)
    replaced = {"a": np.arange(4) + 1j, "b": np.array([2, 1j, -1])}
    members.update(truth(air, APS, 10_000, replaced))
    members.update(truth(air, APS, 20_000, wrong, reference))

    def before(phase):
        if phase == LINEARITY:
            air._air.noise_var = noise_var
            if late is not None:
                members.update(late(air))

    product = members.play(lambda schedule, phase, roles, start: run_phase(air, schedule, phase, roles, start), 50_000,
                           before)
    return air, members.collector.report, product


def amplitudes(air, ap, beam):
    """Amplitude at the UE of each port of an AP alone, and the channel that an array with c = 1 believes in."""
    down = air.t[ap] * air.h["ue", ap][0, 0, :, beam] * air.r["ue"][0]
    up = air.r[ap] * air.h["ue", ap][0, 0, :, beam]
    return down, up


def chosen_beam(air, ap):
    energy = np.sum(np.abs(air.h[ap, "ue"][:, :, 0, 0] * air.r[ap][:, None]) ** 2, axis=0)
    return int(np.argmax(energy))


@pytest.mark.parametrize("options", [{}, {"cfo_hz": CFO}, {"cfo_hz": CFO, "reference": "a", "max_delay": 9}])
def test_powers_are_those_of_ports_at_full_power_with_and_without_calibration(options):
    air, report, _ = measure(**options)
    for ap in APS:
        down, up = amplitudes(air, ap, chosen_beam(air, ap))
        plain = np.abs(np.sum(down * np.exp(-1j * np.angle(up)))) ** 2
        best = np.sum(np.abs(down)) ** 2
        seen = {name: 10 ** (report["access_points"][ap][name]["power_db"] / 10) for name in TREATMENTS}
        # Data of 4 slots of 2 symbols, 16-QAM: their own mean power, the same in all treatments.
        data = seen["after"] / best
        assert abs(data - 1) < 4 * np.sqrt(0.32 / (4 * 2 * 64))
        assert seen["before"] == pytest.approx(plain * data, rel=5e-3)
        assert seen["calibrated"] == pytest.approx(best * data, rel=5e-3)
        assert plain < 0.9 * best


def test_linear_amplifiers_leave_nothing_but_rounding():
    _, report, product = measure(cfo_hz=CFO)
    for one in (values for ap in report["access_points"].values() for values in ap.values()):
        assert one["evm_db"] < -80
        assert one["aclr_db"] > 80
    assert product.values["evm_db"].shape == (2, 3)
    assert product.trusted


def test_offset_of_more_than_a_third_of_a_bin_is_held():
    """Of each AP by itself: 1500 and -1300 Hz against the UE."""
    _, report, _ = measure(cfo_hz={"a": 700.0, "ue": -800.0, "b": -2100.0})
    for one in (values for ap in report["access_points"].values() for values in ap.values()):
        assert one["evm_db"] < -80
        assert one["aclr_db"] > 80


def test_power_of_the_ports_is_what_was_asked_for():
    _, reference, _ = measure()
    _, louder, _ = measure(power_db=-7.5)
    for ap in APS:
        for name in TREATMENTS:
            difference = (louder["access_points"][ap][name]["power_db"]
                          - reference["access_points"][ap][name]["power_db"])
            assert difference == pytest.approx(-7.5, abs=1e-3)


def test_wrong_calibration_lowers_the_power_after_and_not_before():
    """Weights for c = 1 are the same whatever the calibration was: it is divided out, conjugated."""
    _, good, _ = measure(cfo_hz=CFO)
    wrong = {"a": np.exp(1j * np.array([0, 2, -2, 1])) * [1, 2, 0.5, 3], "b": np.array([1, -1, 1j])}
    _, bad, _ = measure(cfo_hz=CFO, wrong=wrong)
    for ap in APS:
        assert bad["access_points"][ap]["before"]["power_db"] == pytest.approx(
            good["access_points"][ap]["before"]["power_db"], abs=1e-3)
        for name in ("calibrated", "after"):
            assert bad["access_points"][ap][name]["power_db"] < good["access_points"][ap][name]["power_db"] - 1


def test_calibration_that_comes_after_the_weights_changes_nothing():
    _, good, _ = measure(cfo_hz=CFO)
    _, same, _ = measure(cfo_hz=CFO, late=lambda air: truth(air, APS, 20_000, {"a": np.array([1, -1, 1j, 1])}))
    assert same == good


def test_excluded_ports_are_silent_in_all_treatments():
    wrong = {"a": np.array([1.0, 0.0, 1.0, 0.0])}
    air, report, _ = measure(wrong=wrong)
    down, up = amplitudes(air, "a", 0)
    seen = {name: 10 ** (report["access_points"]["a"][name]["power_db"] / 10) for name in TREATMENTS}
    ratio = np.abs(np.sum((down * np.exp(-1j * np.angle(up)))[::2])) ** 2 / np.sum(np.abs(down[::2])) ** 2
    assert seen["before"] / seen["after"] == pytest.approx(ratio, rel=2e-3)


def test_white_noise_is_taken_out_of_the_error_vector():
    """Without amplifiers the noise is all: as received it shows, corrected it does not. In standard errors."""
    noise_var = 1.0
    _, report, _ = measure(noise_var=noise_var, repeats=64, cfo_hz=CFO)
    for ap in APS:
        one = report["access_points"][ap]["after"]
        noise = noise_var * 64 / 256 / 10 ** (one["power_db"] / 10)
        # Silence of 400 samples in each of 64 slots.
        assert 10 ** (one["noise_db"] / 10) / noise == pytest.approx(1, abs=4 / np.sqrt(64 * 400))
        elements = 64 * 2 * 64
        assert 10 ** (one["evm_received_db"] / 10) / noise == pytest.approx(1, abs=4 / np.sqrt(elements))
        # Corrected, of the order of its standard error: within 4 of it.
        limit = 10 ** (one["evm_at_most_db"] / 10)
        std = noise * np.sqrt(1 / elements + 1 / (64 * 400))
        assert limit < 6 * std * 1.3
        corrected = 0.0 if one["evm_db"] is None else 10 ** (one["evm_db"] / 10)
        assert limit - corrected == pytest.approx(2 * std, rel=0.4)


def third_order(kappa):
    return lambda x: x + kappa[:, None] * x * np.abs(x) ** 2


def test_distortion_of_raw_ports_shows_before_and_goes_where_they_are_predistorted():
    """Predistorted with the true coefficients, at a power that leaves no clipping. One AP is not predistorted."""
    kappa = {"a": np.array([-0.02 + 0.03j] * 4), "b": np.array([-0.02 + 0.03j] * 3)}
    amplifiers = {ap: third_order(kappa[ap]) for ap in APS}
    coefficients = np.stack([np.ones(4), kappa["a"]], axis=-1)
    predistort = {"a": lambda x: predistortion.predistort(x.astype(complex), coefficients)}
    _, report, _ = measure(amplifiers=amplifiers, predistort=predistort, power_db=-9.0, modulation="gaussian",
                           repeats=24)
    # E|d|^2 = 2 |kappa|^2 P^3, of which 2/3 in the channel and 1/6 on each side; the ports' patterns are alike.
    power = 10 ** (-9.0 / 10)
    distortion = 2 * np.abs(kappa["a"][0]) ** 2 * power**2 / np.abs(1 + 2 * kappa["a"][0] * power) ** 2
    for ap, name in (("a", "before"), ("a", "calibrated"), ("b", "before"), ("b", "calibrated"), ("b", "after")):
        one = report["access_points"][ap][name]
        assert abs(one["evm_db"] - 10 * np.log10(distortion * 2 / 3)) < 4 * one["evm_std_db"] + 0.3
        for side in ("lower", "upper"):
            wanted = -10 * np.log10(distortion / 6)
            assert abs(one[f"aclr_{side}_db"] - wanted) < 4 * one[f"aclr_{side}_std_db"] + 0.2
        assert one["aclr_db"] == min(one["aclr_lower_db"], one["aclr_upper_db"])
    raw, linear = (report["access_points"]["a"][name] for name in ("calibrated", "after"))
    assert linear["evm_db"] < raw["evm_db"] - 25
    assert linear["aclr_db"] > raw["aclr_db"] + 25


def test_spectrum_has_its_bins_in_order():
    _, report, _ = measure(noise_var=1e-3)
    frequencies = np.array(report["frequencies_hz"])
    assert frequencies[[0, 128]].tolist() == [-5e5, 0.0]
    assert np.diff(frequencies) == pytest.approx(1e6 / 256)
    for one in report["access_points"]["b"].values():
        spectrum = 10 ** (np.array(one["spectrum_db"]) / 10)
        inside = (np.abs(frequencies) < 32.5e6 / 256) & (frequencies != 0)
        assert spectrum[inside].mean() == pytest.approx(1.0)
        assert spectrum[~inside].max() < 0.05
        assert one["clips"] is None


def test_adjacent_channels_that_the_samples_do_not_hold_are_not_reported():
    layout = SlotLayout(512, 8, SoundingSymbol(128, 96, 32), 1, 8)
    _, report, product = measure(layout=layout)
    assert product.trusted
    assert np.isnan(product.values["aclr_db"]).all()
    for one in report["access_points"]["a"].values():
        assert [value for key, value in one.items() if key.startswith("aclr")] == [None] * 7
        assert one["evm_db"] < -80


def test_access_point_that_the_ue_does_not_hear_is_named():
    _, _, product = measure(noise_var=1e8)
    assert not product.trusted
    assert any(reason == "node a: ue does not receive its joint transmission" for reason in product.reasons)


def test_slots_take_turns_and_their_variants_mean_what_they_say():
    plan = make_plan(repeats=3)
    ((name, window, slots),) = plan.phases(16)
    assert (name, window, len(slots)) == (LINEARITY, 16, 2 * 3 * 3)
    assert [plan.meaning(slot.variant) for slot in slots[:7]] == [
        (0, BEFORE, 0), (0, CALIBRATED, 0), (0, AFTER, 0), (1, BEFORE, 0), (1, CALIBRATED, 0), (1, AFTER, 0),
        (0, BEFORE, 1)]
    assert len({slot.variant for slot in slots}) == len(slots)
    assert {slot.transmitters for slot in slots} == {("a",), ("b",)}
    assert [plan.is_raw(slot) for slot in slots[:4]] == [True, True, False, True]
    assert not plan.is_raw(Slot(0, "a_uplink", ("ue",), (0, 0, 0), 0))


def test_data_are_known_to_all_and_differ_between_repeats():
    plan, same = make_plan(), make_plan()
    np.testing.assert_array_equal(plan.data(1, 2), same.data(1, 2))
    data = [plan.data(ap, repeat).ravel() for ap in range(2) for repeat in range(4)]
    correlation = np.abs(np.corrcoef(data)) - np.eye(8)
    assert correlation.max() < 5 / np.sqrt(data[0].size)
    assert not np.array_equal(plan.data(0, 0), make_plan(seed=6).data(0, 0))


@pytest.mark.parametrize(("slot_samples", "symbols"), [(353, 1), (1031, 2), (1032, 2), (1047, 2), (1384, 3)])
def test_slots_hold_as_many_symbols_as_leave_their_share_of_silence(slot_samples, symbols):
    layout = replace(LAYOUT, slot_samples=slot_samples)
    burst = make_plan(layout).burst_layout
    assert burst.num_ports == symbols
    quiet = burst.silence.stop - burst.silence.start
    assert symbols == 1 or quiet >= symbols * 64
    assert quiet < (symbols + 1) * 64 + 288


@pytest.mark.parametrize(("change", "message"), [
    ({"repeats": 1}, "repeats = 1"), ({"guard_subcarriers": -1}, "guard_subcarriers = -1"),
    ({"modulation": "qam64"}, "modulation = 'qam64'"), ({"power_db": np.nan}, "power_db = nan"),
    ({"layout": replace(LAYOUT, num_ports=2)}, "2 symbols"),
    ({"layout": replace(LAYOUT, slot_samples=328)}, "0 samples of silence"),
    ({"aps": ()}, "must be at least one"), ({"nodes": ("a", "b", "c")}, "all among the nodes"),
])  # fmt: skip
def test_plan_out_of_range_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        make_plan(**change)


def test_verification_of_other_nodes_is_refused():
    good = make_plan().verification
    with pytest.raises(ValueError, match="verification of b: has aps = \\('a',\\)"):
        LinearityPlan(NODES, {"b": good["a"]}, "ue", LAYOUT, 1e6)
    with pytest.raises(ValueError, match="ue = 'ue', must have this AP alone and 'b'"):
        LinearityPlan(NODES, {"a": good["a"]}, "b", LAYOUT, 1e6)


def test_burst_is_the_data_of_each_symbol_through_the_weights():
    """Against a sum of exponentials; from the lead on, prefixes first."""
    rng = np.random.default_rng(12)
    plan = make_plan()
    layout, symbol = plan.burst_layout, LAYOUT.symbol
    weights, data = rng.normal(size=(3, 64)) + 1j * rng.normal(size=(3, 64)), plan.data(0, 1)
    burst = data_burst(layout, weights, data)
    waves = np.exp(2j * np.pi * np.outer(symbol.bins, np.arange(-32, 256)) / 256) / 8
    wanted = np.einsum("pk,lk,kn->pln", weights, data, waves).reshape(3, -1)
    assert layout.num_ports == 2
    np.testing.assert_allclose(burst[:, 8 : 8 + 576], wanted, atol=1e-12)
    assert not burst[:, :8].any()
    assert not burst[:, 584:].any()


def test_each_sample_is_turned_to_its_own_time():
    """By -2 pi f (t_u + t - 2 t_c), half a sample later than the label; 100 Hz at 1 MS/s, 2.5 ms apart."""
    plan = make_plan()
    slot, frequency = plan.phases(1)[0][2][2], np.array([0.0, 100.0, -100.0, 50.0])
    role = LinearityRole("a", plan)
    role.update(Product("coupling", {"a_c": np.ones(4), "a_delay_s": np.zeros(4), "a_frequency_hz": frequency,
                                     "a_reference_time": 100}))
    role.update(Product("a_uplink", {"weights": np.ones((4, 64)), "uplink_time": 700, "frequency_hz": frequency,
                                     "reference_time": 100}))
    first, later = role.transmit(slot, 1000), role.transmit(slot, 3500)
    busy = np.abs(first[0]) > 0.1
    for port, turn in enumerate(-2 * np.pi * frequency * 2500e-6):
        np.testing.assert_allclose(later[port, busy] / first[port, busy], np.exp(1j * turn), atol=1e-5)
    times = np.flatnonzero(busy) + 1000 + 700 - 200 + 0.5
    np.testing.assert_allclose(first[1, busy] / first[0, busy], np.exp(-2e-4j * np.pi * times), atol=1e-5)


def test_slot_before_its_weights_is_an_error_that_names_the_node():
    plan = make_plan()
    role = LinearityRole("a", plan)
    with pytest.raises(RuntimeError, match="node a: no weights"):
        role.transmit(plan.phases(1)[0][2][0], 0)
    assert LinearityRole("b", plan).transmit(plan.phases(1)[0][2][0], 0) is None
    assert role.results([Grant(0, 0, 0)]) is None


SAMP_RATE = 1e6


def simulated(moving=True, noise_var=1e-4):
    """An AP of six ports through third-order amplifiers of their own, a UE, and oscillators that differ."""
    rng = np.random.default_rng(17)
    kappa = (-0.02 + 0.025j) * (1 + 0.3 * (rng.normal(size=6) + 1j * rng.normal(size=6)))
    coefficients = np.stack([np.ones(6), kappa], axis=-1)
    nodes = []
    for name, ports, cfo_hz in (("a", 6, 60.0), ("ue", 1, -140.0)):
        motion = {"cfo_hz": cfo_hz} if moving else {}
        phases = {"tx_phase": rng.uniform(-np.pi, np.pi), "rx_phase": rng.uniform(-np.pi, np.pi)}
        gains = np.exp(rng.normal(0, 0.2, (2, ports)) + 2j * np.pi * rng.random((2, ports)))
        nodes.append(SimulatedNode(name, ports, Oscillator(samp_rate=SAMP_RATE, seed_key=(name,), **phases, **motion),
                                   tx_gains=gains[0], rx_gains=gains[1], clock=Clock(), noise_var=noise_var,
                                   amplifiers=Amplifiers(coefficients) if name == "a" else None))
    network = Network(nodes, Rayleigh(seed=4, num_taps=3, delay_spread_s=1e-6), samp_rate=SAMP_RATE, seed=2)
    c = nodes[0].tx_gains / nodes[0].rx_gains
    return network, c, coefficients


def play_network(network):
    """Slots through a `Network`, as `air.run_phase` has it."""
    def play(schedule, phase, roles, start):
        grants = []
        for index in schedule.phase(phase).slots:
            slot = schedule.slots[index]
            x = np.zeros((network.num_ports, schedule.slot_samples), np.complex64)
            for node, role in roles.items():
                burst = role.transmit(slot, start)
                if burst is not None:
                    x[network.ports(node)] = burst
            y = network.process(x, start, np.zeros(network.num_ports, int), final=True)
            grants.append(Grant(index, 0, start))
            for node, role in roles.items():
                role.receive(slot, grants[-1], y[network.ports(node)])
            start += schedule.slot_samples
        results = {node: role.results(grants) for node, role in roles.items()}
        return grants, {node: values for node, values in results.items() if values}, start
    return play


def run_simulated(noise_var=1e-4, **options):
    network, c, coefficients = simulated(noise_var=noise_var)
    layout = replace(LAYOUT, latency_samples=network.latency_samples)
    plan = make_plan(layout, aps=("a",), nodes=("a", "ue"), ports={"a": 6, "ue": 1}, beams={"a": 1, "ue": 1}, **options)
    members = Members(plan, {"a": lambda x: predistortion.predistort(x.astype(complex), coefficients)})
    members.update(Product("coupling", {"a_c": c, "a_delay_s": np.zeros(6), "a_frequency_hz": np.zeros(6),
                                        "a_reference_time": 0}))
    product = members.play(play_network(network), 40_960)
    return members.collector.report["access_points"]["a"], product


def test_simulated_array_is_linearised_and_calibrated_through_frequency_selective_channels():
    report, product = run_simulated(repeats=16, power_db=-3.0)
    before, calibrated, after = (report[name] for name in TREATMENTS)
    assert product.trusted
    assert -45 < before["evm_db"] < -25
    assert before["aclr_db"] < 45
    assert after["aclr_at_least_db"] > calibrated["aclr_db"] + 12
    assert after["evm_at_most_db"] < calibrated["evm_db"] - 12
    assert calibrated["power_db"] > before["power_db"] + 2
    assert abs(after["power_db"] - calibrated["power_db"]) < 0.5
    # Noise is per sample and unit power: 64 of 256 bins.
    assert after["noise_db"] == pytest.approx(10 * np.log10(1e-4 / 4) - after["power_db"], abs=0.2)


def test_simulated_reports_agree_with_and_without_noise_within_their_standard_errors():
    clean, _ = run_simulated(noise_var=1e-12, repeats=16, power_db=-3.0)
    noisy, _ = run_simulated(noise_var=3e-3, repeats=16, power_db=-3.0)
    for key in ("evm", "aclr_lower", "aclr_upper"):
        # Same data: the difference is noise alone.
        difference = noisy["before"][f"{key}_db"] - clean["before"][f"{key}_db"]
        assert abs(difference) < 4 * noisy["before"][f"{key}_std_db"]
    assert noisy["before"]["evm_received_db"] > noisy["before"]["evm_db"] + 1
