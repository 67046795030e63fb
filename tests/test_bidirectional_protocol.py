# SPDX-License-Identifier: GPL-3.0-or-later
"""Schedule, plan, roles and collectors of the bidirectional exchange, through a network model of the tests' own."""

import dataclasses
import itertools
import re

import numpy as np
import pytest
from air import Air, run_phase
from gnuradio.dmimo.core.ofdm import CombError, OfdmGrid
from gnuradio.dmimo.protocols.bidirectional import ExchangeRole
from gnuradio.dmimo.protocols.bidirectional_collector import MAX_FAILURES, BidirectionalCollector
from gnuradio.dmimo.protocols.bidirectional_filter import Filtered
from gnuradio.dmimo.protocols.bidirectional_plan import EXCHANGE, TRACKING, TRAINING, BidirectionalPlan
from gnuradio.dmimo.protocols.bidirectional_tracking import Extrapolation, OneWay
from gnuradio.dmimo.protocols.bidirectional_training import TrainingCollector, TrainingRole
from gnuradio.dmimo.protocols.slots import CHOSEN, Grant, build_schedule

RATE = 1e6
GRID = OfdmGrid(RATE / 128, 128, 32, 96, skip_dc=True)
PORTS = {"a": 2, "b": 1, "u": 1, "v": 2}
CFO = {"a": 3.0, "b": -4.0, "u": 5.0, "v": -2.0}


def filtered(plan):
    """Tracking by Kalman filters."""
    return Filtered(plan, drift_hz=0.1, drift_period_s=100.0)


def make_plan(ports=None, beams=None, calibrating=None, **changes):
    """Plan of nodes whose names begin with t or a ... m as TRPs, the others as UEs."""
    ports = PORTS if ports is None else ports
    trps = tuple(name for name in ports if name[0] < "n" or name[0] == "t")
    terminals = tuple(name for name in ports if name not in trps)
    settings = {
        "nodes": tuple(ports), "trps": trps, "ues": terminals if calibrating is None else calibrating,
        "terminals": terminals, "num_ports": ports, "num_beams": beams or dict.fromkeys(ports, 1), "grid": GRID,
        "slot_samples": 256, "lead_samples": 16, "advance_samples": 8, "max_cfo_hz": 200.0,
        "linewidth_hz": 1e-3, **changes}
    return BidirectionalPlan(**settings)


class Run:
    """Roles, collectors and air of a plan, phase by phase."""

    def __init__(self, plan, seed=1, tracking=Extrapolation, settings=None, **air):
        self.plan = plan
        self.air = Air(np.random.default_rng(seed), plan.num_ports, plan.num_beams, samp_rate=RATE, **air)
        self.schedule = build_schedule(plan.nodes, plan.slot_samples, plan.phases(8), plan.pattern(), paced=(0, 1))
        self.collector = BidirectionalCollector(plan, self.schedule.slots, tracking(plan), **settings or {})
        self.training = TrainingCollector(plan, self.schedule.slots)
        self.exchange_roles = {name: ExchangeRole(name, plan) for name in plan.nodes}
        self.training_roles = {name: TrainingRole(name, plan) for name in plan.nodes}
        self.start = 40_000

    def play(self, phase, results=None):
        """Product of a phase, given to all roles; `results` may change what is reported."""
        roles = self.training_roles if phase == TRAINING else self.exchange_roles
        grants, found, self.start = run_phase(self.air, self.schedule, phase, roles, self.start)
        found = found if results is None else results(found)
        product = (self.training if phase == TRAINING else self.collector).produce(phase, grants, found)
        if product.trusted:
            for role in (*self.exchange_roles.values(), *self.training_roles.values()):
                role.update(product)
        self.grants, self.found = grants, found
        return product

    def errors(self, product):
        """Largest errors of c of the TRPs and of the UEs against the truth at the product's own time."""
        out = []
        for prefix, names in (("", self.plan.trps), ("ue_", self.plan.ues)):
            truth = self.air.c(names, product.values[f"{prefix}reference_time"])
            out.append(np.abs(product.values[f"{prefix}c"] / (truth / truth[0]) - 1).max())
        return out


# -- schedule and plan ------------------------------------------------------------------------------------------------


def test_pattern_is_an_exchange_in_lock_step_and_a_tracking():
    plan = make_plan()
    (exchange, window, slots), (tracking, other, later) = plan.pattern()
    assert (exchange, tracking, window, other) == (EXCHANGE, TRACKING, 1, 1)
    trps, ues = ("a", "b"), ("u", "v")
    assert [(slot.purpose, slot.transmitters) for slot in slots] == [
        ("csi_rs", trps), ("ul_cars", ues), ("srs", ues), ("dl_cars", trps), ("csi_rs_pair", trps), ("srs_pair", ues)]
    assert [(slot.purpose, slot.transmitters) for slot in later] == [("tracking_csi_rs", trps), ("tracking_srs", ues)]
    assert plan.phases(8) == []
    assert {slot.beams for slot in (*slots, *later)} == {(0, 0, 0, 0)}


SIZES = [(4, 2), (2, 3), (3, 3), (1, 4), (5, 1)]


@pytest.mark.parametrize(("num_trp", "num_ue"), SIZES)
def test_every_trp_meets_every_ue_once_and_never_two_at_a_time(num_trp, num_ue):
    ports = {f"{kind}{i}": 1 for kind, num in (("t", num_trp), ("ue", num_ue)) for i in range(num)}
    plan = make_plan(ports, dict.fromkeys(ports, 2))
    met = []
    for round_ in range(plan.num_rounds):
        pairs = {(node, plan.partner(node, round_)) for node in plan.trps if plan.partner(node, round_)}
        # Both see it alike, and nobody has two partners.
        assert pairs == {(plan.partner(node, round_), node) for node in plan.ues if plan.partner(node, round_)}
        met += pairs
        for trp, ue in pairs:
            m, n = plan.trps.index(trp), plan.ues.index(ue)
            assert plan.round_of_link[m, n] == round_
            assert plan.heard_peers(trp, round_) == (ue,)
    assert sorted(met) == sorted(itertools.product(plan.trps, plan.ues))
    (_, _, slots), (_, _, later) = plan.pattern()
    assert [slot.variant for slot in later] == [r for r in range(plan.num_rounds) for _ in range(2)]
    assert {slot.beams for slot in slots} == {(CHOSEN,) * len(ports)}


def test_without_beams_one_round_measures_all_links():
    plan = make_plan()
    assert plan.num_rounds == 1
    assert plan.heard_peers("b", 0) == ("u", "v")
    assert not plan.round_of_link.any()


def test_beams_of_a_ue_that_only_trains_make_rounds_too():
    plan = make_plan(beams={"a": 1, "b": 1, "u": 1, "v": 4}, calibrating=("u",))
    assert plan.trains
    assert plan.num_rounds == 2
    assert plan.side("v") is None


def test_limits_are_those_of_prefix_and_combs_and_of_soundings_three_slots_apart():
    plan = make_plan()
    # Clocks apart by more than half a prefix of 32 samples cannot both be heard within it.
    assert plan.delay_limit_s * RATE == pytest.approx(16)
    # SRS of five ports lies 5 subcarriers apart: a delay is known within 128 / 5 samples, and so within half of it.
    assert make_plan({"a": 2, "u": 5}).delay_limit_s * RATE == pytest.approx(12.8)
    assert make_plan(max_delay_s=1e-6).delay_limit_s == 1e-6
    assert 2 * np.pi * plan.unambiguous_cfo_hz * 3 * 256 / RATE == pytest.approx(np.pi)


@pytest.mark.parametrize(("changes", "error", "text"), [
    ({"max_delay_s": 1.7e-5}, ValueError, "max_delay_s = 1.7e-05: must be positive and at most 1.6e-05"),
    ({"max_delay_s": 0.0}, ValueError, "max_delay_s = 0: must be positive"),
    ({"max_cfo_hz": 652.0}, ValueError, "max_cfo_hz = 652: must be positive and below 651.042"),
    ({"max_cfo_hz": 0.0}, ValueError, "max_cfo_hz = 0: must be positive"),
    ({"ports": {"a": 5, "u": 5}}, CombError, "must be at least 100, 4 for each of 5 x 5 links"),
    ({"slot_samples": 200}, ValueError, "slot_samples=200 is too short: symbol, tail and delays need 208"),
    ({"receive_delay_samples": 90}, ValueError, "slot_samples=256 is too short"),
    ({"calibrating": ()}, ValueError, "must be at least one node each")])
def test_plan_that_cannot_work_is_refused_before_anything_is_sent(changes, error, text):
    with pytest.raises(error, match=re.escape(text)):
        make_plan(**changes)


# -- exchange ---------------------------------------------------------------------------------------------------------

NUMBERS = [PORTS, {"a": 1, "b": 1, "c": 1, "d": 1, "u": 1, "v": 2}, {"a": 3, "b": 1, "u": 1, "v": 1, "w": 2},
           {"a": 1, "u": 4}]


@pytest.mark.parametrize("ports", NUMBERS)
def test_both_sides_learn_their_coefficients_without_noise(ports):
    """Flat channels with delays inside the prefix, gains with a spread of 0.3 nepers, complex64 bursts."""
    run = Run(make_plan(ports), max_delay=20)
    product = run.play(EXCHANGE)
    assert product.trusted
    assert max(run.errors(product)) < 1e-5
    np.testing.assert_allclose(product.values["delay_s"], 0.0, atol=1e-10)
    assert run.collector.estimate.used.all()
    # Wrong readings are not near: the conjugate, a side for the other, no reading at all.
    for wrong in (product.values["c"].conj(), 1 / product.values["c"], np.ones(run.plan.num_trp_ports)):
        values = product.values | {"c": wrong}
        assert run.plan.num_trp_ports == 1 or max(run.errors(dataclasses.replace(product, values=values))) > 0.1


def test_coefficients_belong_to_the_reference_time():
    """7 Hz turn c by 0.02 rad in a slot. Interference between subcarriers: pi / sqrt(3) * 9 / 7812 = 2e-3."""
    run = Run(make_plan(), cfo_hz=CFO, max_delay=3)
    product = run.play(EXCHANGE)
    assert max(run.errors(product)) < 2e-3
    for late in (-256, 256):
        values = product.values | {key: product.values[key] + late for key in ("reference_time", "ue_reference_time")}
        moved = run.errors(dataclasses.replace(product, values=values))
        # b and v differ from the first nodes of their sides by 7 Hz each.
        np.testing.assert_allclose(moved, 4 * np.pi * 7 * 256 / RATE, rtol=0.1)
    frequency = [CFO[name] - CFO["a"] for name in ("a", "a", "b")]
    np.testing.assert_allclose(product.values["frequency_hz"], frequency, atol=0.5)
    np.testing.assert_allclose(product.values["ue_frequency_hz"], [0, -7, -7], atol=0.5)


def play_with_losses(run, losses):
    """The exchange with slots repeated: `losses` maps a slot's position to who loses its first attempt.

    A reactive slot is repeated at once; nobody else knows that it will be.
    """
    roles, schedule, grants = run.exchange_roles, run.schedule, []
    for position, index in enumerate(schedule.phase(EXCHANGE).slots):
        slot = schedule.slots[index]
        for attempt, losers in enumerate([*losses.get(position, []), ()]):
            grant = Grant(index, attempt, run.start)
            sent = {node: role.transmit(slot, run.start) for node, role in roles.items()}
            beams = {node: role.beam(slot) for node, role in roles.items()}
            for node, samples in run.air.slot(sent, beams, run.start, schedule.slot_samples).items():
                if node not in losers:
                    roles[node].receive(slot, grant, samples.astype(np.complex64))
            run.start += schedule.slot_samples
        grants.append(grant)
    results = {node: role.results(grants) for node, role in roles.items()}
    return run.collector.produce(EXCHANGE, grants, {node: values for node, values in results.items() if values})


@pytest.mark.parametrize("position", range(6))
@pytest.mark.parametrize("losers", [("a", "b", "u", "v"), ("a",), ("v",), ()])
def test_slot_that_is_repeated_counts_once_and_at_its_last_time(position, losers):
    """All nodes, one of a side or nobody (only an acknowledgement was lost) missed the first of two attempts.

    A time of the first attempt would turn c by 4 pi 7 Hz * 128 samples = 0.011 rad at the least.
    """
    run = Run(make_plan(), cfo_hz=CFO, max_delay=3)
    product = play_with_losses(run, {position: [losers, losers]})
    assert product.trusted
    assert max(run.errors(product)) < 3e-3


def test_links_that_are_not_heard_are_not_answered_and_not_used():
    run = Run(make_plan(), max_delay=3)
    for pair in (("b", "v"), ("v", "b")):
        run.air.h[pair] *= 0.0
    run.air.noise_var = 1e-6
    product = run.play(EXCHANGE)
    assert product.trusted
    assert max(run.errors(product)) < 1e-2
    scale = run.found["v"]["scale"][0]
    assert np.all(scale[:, 2] == 0)
    assert np.all(scale[:, :2] > 0)
    expected = np.ones((3, 3), bool)
    expected[2, 1:] = False
    np.testing.assert_array_equal(run.collector.estimate.used, expected)


def test_ports_that_nothing_joins_are_named():
    run = Run(make_plan(), noise_var=1e-6)
    for pair in (("b", "v"), ("b", "u")):
        run.air.h[pair] = run.air.h[pair] * 0.0
        run.air.h[pair[::-1]] = run.air.h[pair].transpose(2, 3, 0, 1)
    product = run.play(EXCHANGE)
    assert not product.trusted
    assert product.reasons == ("the links above their thresholds do not join all ports; the parts are "
                               "{a:0, a:1, u:0, v:0, v:1}, {b:0}",)


def test_one_direction_alone_does_not_make_a_link():
    """Where b hears nothing of u, u still hears b: that is no two-way coefficient."""
    run = Run(make_plan(), noise_var=1e-6)
    run.air.h["b", "u"] = run.air.h["b", "u"] * 0.0
    product = run.play(EXCHANGE)
    assert product.trusted
    assert not run.collector.estimate.used[2, 0]
    assert run.collector.estimate.used.sum() == 8


@pytest.mark.parametrize("name", ["b", "v"])
def test_node_without_results_is_named(name):
    run = Run(make_plan())
    product = run.play(EXCHANGE, lambda found: {key: values for key, values in found.items() if key != name})
    assert not product.trusted
    assert product.reasons == (f"node {name}: has measured nothing",)


def test_terminals_that_do_not_calibrate_stay_silent_and_report_nothing():
    run = Run(make_plan(calibrating=("u",)))
    product = run.play(EXCHANGE)
    assert product.trusted
    assert set(run.found) == {"a", "b", "u"}
    slots = run.schedule.slots
    assert all(run.exchange_roles["v"].transmit(slot, 0) is None for slot in slots)
    assert len(product.values["ue_c"]) == 1
    assert max(run.errors(product)) < 1e-5


def test_nothing_is_sent_or_measured_while_no_exchange_is_due():
    run = Run(make_plan(), cfo_hz=CFO, tracking=OneWay, settings={"budget_rad": 0.2, "pattern_samples": 4000},
              noise_var=1e-4)
    assert run.play(EXCHANGE).values["calibrates"]
    product = run.play(TRACKING)
    assert product.trusted
    assert not product.values["calibrates"]
    slots = [run.schedule.slots[index] for index in run.schedule.phase(EXCHANGE).slots]
    assert all(role.transmit(slot, 0) is None for role in run.exchange_roles.values() for slot in slots)
    kept = run.collector.calibration
    product = run.play(EXCHANGE)
    assert run.found == {}
    assert product.trusted
    assert run.collector.calibration is kept
    assert [entry["event"] for entry in run.collector.history] == ["calibrated", "tracked"]
    # Tracking goes on, from the first exchange.
    product = run.play(TRACKING)
    assert max(run.errors(product)) < 0.05
    # As long after the coefficients as the soundings are after the exchange's second ones.
    assert product.values["reference_time"] > run.start - 1200


def test_exchange_is_due_when_the_budget_would_be_exceeded():
    """Extrapolated frequencies get worse with time: sooner or later the budget is gone, sooner with a smaller one."""
    waited = []
    for budget in (0.02, 0.2):
        run = Run(make_plan(), cfo_hz=CFO, settings={"budget_rad": budget, "pattern_samples": 4000}, noise_var=1e-4)
        run.play(EXCHANGE)
        waited.append(0)
        while waited[-1] < 100 and not run.play(TRACKING).values["calibrates"]:
            run.play(EXCHANGE)
            waited[-1] += 1
    assert waited[0] < waited[1] < 100


# -- arrivals ---------------------------------------------------------------------------------------------------------


def late_clock(run, name, samples):
    """A node's clock is late: what it sends arrives so much later, what it receives has so much earlier indices."""
    for pair in run.air.delay:
        if name in pair:
            run.air.delay[pair] += samples if pair[1] == name else -samples


@pytest.mark.parametrize("late", [-7, 4, 13])
def test_clocks_are_told_apart_far_beyond_the_aliases_of_two_way_coefficients(late):
    """Elements of C lie 9 subcarriers apart: alone it is unique for clocks up to 3.6 samples apart."""
    run = Run(make_plan(), max_delay=3)
    late_clock(run, "v", late)
    run.air.delay = {pair: delay + 8 for pair, delay in run.air.delay.items()}  # the window is open that early
    product = run.play(EXCHANGE)
    assert product.trusted, product.reasons
    np.testing.assert_allclose(product.values["ue_delay_s"] * RATE, [0, 2 * late, 2 * late], atol=1e-3)
    np.testing.assert_allclose(product.values["delay_s"] * RATE, 0, atol=1e-3)
    assert max(run.errors(product)) < 1e-4


@pytest.mark.parametrize(("delay", "text"), [
    (25, "node a: the sounding of u arrives +25 samples from where it is expected (or -18, the same on these combs): "
         "beyond the prefix, which takes -8 ... 24; node u: the sounding of a arrives +25"),
    (-9, "arrives -9 samples"), (-12, "arrives -12 samples"), (28, "arrives +28 samples")])
def test_arrivals_beyond_the_prefix_are_named(delay, text):
    run = Run(make_plan(), noise_var=1e-3)
    for pair in (("a", "u"), ("u", "a")):
        run.air.delay[pair] = delay
    product = run.play(EXCHANGE)
    assert not product.trusted
    assert text in "; ".join(product.reasons)


@pytest.mark.parametrize("delay", [24, -8])
def test_arrivals_at_the_ends_of_the_prefix_are_inside(delay):
    run = Run(make_plan(), noise_var=1e-3)
    run.air.delay = dict.fromkeys(run.air.delay, delay)
    assert run.play(EXCHANGE).trusted


def test_clocks_further_apart_than_expected_are_named():
    run = Run(make_plan(max_delay_s=3e-6), noise_var=1e-3)
    run.air.delay = dict.fromkeys(run.air.delay, 8)
    late_clock(run, "v", 3)
    assert run.play(EXCHANGE).trusted
    late_clock(run, "v", 2)
    product = run.play(EXCHANGE)
    # The first exchange counts; this one is not applied.
    assert product.trusted
    assert run.collector.history[-1]["event"] == "untrusted"
    assert run.collector.history[-1]["reasons"] == (
        "clocks of a and v differ by 5000 ns: more than max_delay_s, 3000 ns",)


# -- tracking ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tracking", [Extrapolation, OneWay, filtered])
def test_coefficients_are_those_of_later_times(tracking):
    run = Run(make_plan(), cfo_hz=CFO, tracking=tracking, noise_var=1e-6)
    first = run.play(EXCHANGE)
    run.start += 2000
    product = run.play(TRACKING)
    assert product.values["reference_time"] - first.values["reference_time"] > 2000
    # The turns since the exchange: 0.4 rad for the 14 Hz of b and v relative to a and u, with the factor 2.
    turn = np.angle(product.values["c"][2] / first.values["c"][2])
    late_s = (product.values["reference_time"] - first.values["reference_time"]) / RATE
    assert turn == pytest.approx(4 * np.pi * -7 * late_s, abs=0.02)
    assert max(run.errors(product)) < 0.02


def test_one_way_tracking_does_without_frequencies_where_an_oscillator_moves():
    """b turns by 1 rad after the exchange, out of any frequency: c by 2."""
    errors = []
    for tracking in (Extrapolation, OneWay):
        run = Run(make_plan(), cfo_hz=CFO, tracking=tracking, noise_var=1e-6)
        run.play(EXCHANGE)
        run.air.phase["b"] += 1.0
        run.air.phase["v"] -= 0.3
        errors.append(run.errors(run.play(TRACKING)))
    assert min(errors[0]) > 0.3
    assert max(errors[1]) < 0.01


@pytest.mark.parametrize("name", ["a", "b", "u", "v"])
@pytest.mark.parametrize("turn", [0.3, 1.0])
@pytest.mark.parametrize("before", [EXCHANGE, TRACKING])
def test_filter_follows_an_oscillator_that_jumps(name, turn, before):
    """Nothing in the filter's model jumps; soundings and exchanges that show it count for more than the past."""
    run = Run(make_plan(), cfo_hz=CFO, tracking=filtered, noise_var=1e-6)
    for pattern in range(5):
        for phase in (EXCHANGE, TRACKING):
            if pattern == 2 and phase == before:
                run.air.phase[name] += turn
            product = run.play(phase)
            assert product.trusted, product.reasons
            assert max(run.errors(product)) < 0.03


def test_filter_asks_for_an_exchange_where_an_oscillator_jumps():
    run = Run(make_plan(), cfo_hz=CFO, tracking=filtered, noise_var=1e-6, settings={"budget_rad": 1.0})
    assert not [run.play(phase) for phase in (EXCHANGE, TRACKING)][-1].values["calibrates"]
    run.air.phase["b"] += 1.0
    run.play(EXCHANGE)
    product = run.play(TRACKING)
    assert product.values["calibrates"]
    assert max(run.errors(product)) < 0.03
    assert not [run.play(phase) for phase in (EXCHANGE, TRACKING)][-1].values["calibrates"]


def test_filter_follows_a_gain_that_changes():
    run = Run(make_plan(), cfo_hz=CFO, tracking=filtered, noise_var=1e-6)
    for phase in (EXCHANGE, TRACKING) * 3:
        run.play(phase)
    run.air.r["b"] = 0.5 * run.air.r["b"]
    product = run.play(EXCHANGE)
    assert max(run.errors(product)) < 0.03


def wandering(step_rad, patterns=12, tracking=filtered, **settings):
    """A run whose oscillators take random steps before each exchange."""
    run, rng = Run(make_plan(**settings), cfo_hz=CFO, tracking=tracking, noise_var=1e-4), np.random.default_rng(5)
    for _ in range(patterns):
        for name in run.air.phase:
            run.air.phase[name] += step_rad * rng.normal()
        for phase in (EXCHANGE, TRACKING):
            run.play(phase)
    return run


def test_oscillators_worse_than_assumed_are_said():
    """Steps of 0.05 rad against the few milliradians of a linewidth of 1 mHz; with 1 Hz they would be no surprise."""
    assert wandering(0.0).collector.doubts == ()
    (doubt,) = wandering(0.05).collector.doubts
    assert "oscillators are worse than linewidth_hz" in doubt
    assert wandering(0.05, linewidth_hz=1.0).collector.doubts == ()


@pytest.mark.parametrize(("form", "sized"), [("inverse", True), ("conjugate", False), ("phase", False)])
def test_answers_without_amplitudes_make_no_claim_of_them(form, sized):
    run = Run(make_plan(form=form), cfo_hz=CFO, noise_var=1e-6)
    product = run.play(EXCHANGE)
    truth = run.air.c(run.plan.trps, product.values["reference_time"])
    c = product.values["c"]
    np.testing.assert_allclose(np.abs(c), np.abs(truth / truth[0]) if sized else 1.0, atol=0.01)
    np.testing.assert_allclose(np.angle(c / truth * truth[0]), 0.0, atol=0.01)
    assert (run.collector.doubts == ()) == sized


@pytest.mark.parametrize("tracking", [OneWay, filtered])
def test_tracking_that_fails_keeps_the_calibration_until_it_fails_too_often(tracking):
    run = Run(make_plan(), tracking=tracking, noise_var=1e-6)
    good = run.play(EXCHANGE)
    run.air.noise_var = 1e4
    for _ in range(MAX_FAILURES - 1):
        product = run.play(TRACKING)
        assert product.trusted
        np.testing.assert_array_equal(product.values["c"], good.values["c"])
        assert product.values["calibrates"]
    product = run.play(EXCHANGE)
    assert not product.trusted
    assert [entry["event"] for entry in run.collector.history] == ["calibrated", *["untrusted"] * MAX_FAILURES]


def test_a_success_begins_the_count_of_failures_anew():
    run = Run(make_plan(), tracking=OneWay, noise_var=1e-6)
    run.play(EXCHANGE)
    for noise in (1e4, 1e-6) * MAX_FAILURES:
        run.air.noise_var = noise
        assert run.play(TRACKING).trusted


def move(run, name):
    """Other channels between a node and all others, 6 samples longer."""
    for pair in [pair for pair in run.air.h if pair[0] == name]:
        h = run.air.rng.normal(size=(*run.air.h[pair].shape, 2)) @ np.array([1, 1j])
        run.air.h[pair], run.air.h[pair[::-1]] = h, h.transpose(2, 3, 0, 1)
        run.air.delay[pair] = run.air.delay[pair[::-1]] = run.air.delay[pair] + 6


@pytest.mark.parametrize("tracking", [Extrapolation, OneWay, filtered])
@pytest.mark.parametrize("moved", [("v",), ("b",), ("u", "v")])
@pytest.mark.parametrize("before", [EXCHANGE, TRACKING])
def test_channel_that_has_changed_costs_a_tracking_at_most(tracking, moved, before):
    """Coefficients belong to the nodes: an exchange finds them whatever the channel was before."""
    run = Run(make_plan(), cfo_hz=CFO, tracking=tracking, noise_var=1e-6)
    phases = [EXCHANGE, TRACKING] * 3
    change = 2 + (before == TRACKING)
    for position, phase in enumerate(phases):
        if position == change:
            for name in moved:
                move(run, name)
        product = run.play(phase)
        assert product.trusted, product.reasons
        assert max(run.errors(product)) < 0.03
    events = [entry["event"] == "untrusted" for entry in run.collector.history]
    assert sum(events) <= (before == TRACKING and tracking is not Extrapolation)


# -- beams ------------------------------------------------------------------------------------------------------------

BEAMS = {"a": 3, "b": 2, "u": 1, "v": 4}


@pytest.mark.parametrize("calibrating", [("u", "v"), ("v",)])
def test_training_finds_the_best_pair_of_each_link(calibrating):
    run = Run(make_plan(beams=BEAMS, calibrating=calibrating), noise_var=1e-4)
    product = run.play(TRAINING)
    air = run.air
    for m, trp in enumerate(("a", "b")):
        for n, ue in enumerate(calibrating):
            energy = np.sum(np.abs(air.r[trp][:, None, None, None] * air.h[trp, ue] * air.t[ue][:, None]) ** 2,
                            axis=(0, 2))
            best = np.unravel_index(energy.argmax(), energy.shape)
            assert (product.values["trp_beams"][m, n], product.values["ue_beams"][m, n]) == best
    serving = product.values["serving_beams"]
    assert serving.shape == (4,)
    assert np.all((serving >= 0) & (serving < list(BEAMS.values())))


def test_exchange_with_beams_calibrates_through_the_pair_of_each_link():
    run = Run(make_plan(beams=BEAMS), cfo_hz=CFO, noise_var=1e-8)
    beams = run.play(TRAINING).values
    for slot in (run.schedule.slots[index] for index in run.schedule.phase(EXCHANGE).slots):
        for trp, ue in zip(("a", "b"), (run.plan.partner(name, slot.variant) for name in ("a", "b")), strict=True):
            m, n = run.plan.trps.index(trp), run.plan.ues.index(ue)
            assert run.exchange_roles[trp].beam(slot) == beams["trp_beams"][m, n]
            assert run.exchange_roles[ue].beam(slot) == beams["ue_beams"][m, n]
    product = run.play(EXCHANGE)
    assert max(run.errors(product)) < 3e-3
    assert run.collector.estimate.used.all()
    # Two rounds of six slots: links of the second round were read 6 slots later, and are brought to one time.
    assert len(run.grants) == 12
    product = run.play(TRACKING)
    assert max(run.errors(product)) < 0.02
