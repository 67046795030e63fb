# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest
from gnuradio.dmimo.core.carrier_model import HORIZON_S, MAX_INNOVATION_STD_RAD, CarrierModel, wrap
from gnuradio.dmimo.core.carrier_tracking import (
    CarrierTracker,
    gain_budget,
    gain_loss_db,
    resynchronisation_interval,
    steady_state_std_rad,
)
from gnuradio.dmimo.simulation.oscillators import Oscillator, OscillatorBank
from scipy.integrate import solve_ivp

SAMP_RATE = 1e6
GRID = 256
# Of one node; the pair has twice the linewidth and sqrt(2) times the drift and the offset.
NODE = {"linewidth_hz": 2e-4, "drift_hz": 0.03, "drift_period_s": 20.0}
PAIR = {"linewidth_hz": 4e-4, "drift_hz": 0.03 * np.sqrt(2), "drift_period_s": 20.0}
OFFSET_HZ = 2.0
STD_RAD, STD_HZ = 0.03, 0.05


class SimulatedPairs:
    """phi and f of many pairs of the simulation's oscillators, at grid blocks; shares no code with the tracker."""

    def __init__(self, num_pairs, seed, offset_hz=OFFSET_HZ, **changes):
        rng = np.random.default_rng(seed)
        settings = {**NODE, **changes}
        cfo = rng.normal(0, offset_hz, (num_pairs, 2))

        def bank(**options):
            nodes = [Oscillator(samp_rate=SAMP_RATE, seed_key=(seed, *place), cfo_hz=cfo[place], **options)
                     for place in np.ndindex(num_pairs, 2)]
            return OscillatorBank(nodes, 1)

        self._all, self._smooth = bank(**settings), bank(**{**settings, "linewidth_hz": 0.0})

    def phi(self, block):
        """2 (theta_leader - theta_follower) at sample 256 block."""
        theta = self._all.grid_phase(block, 1)[0][:, 0].reshape(-1, 2)
        return 2.0 * (theta[:, 0] - theta[:, 1])

    def frequency_hz(self, block):
        """f_leader - f_follower, mean over the grid block, without phase noise."""
        turn = [self._smooth.grid_phase(b, 1)[0][:, 0].reshape(-1, 2).copy() for b in (block, block + 1)]
        turned = np.diff(turn[1] - turn[0], axis=1)[:, 0]
        return -wrap(turned) / (2 * np.pi * GRID / SAMP_RATE)


def run_tracker(pairs, num_pairs, blocks, seed, *, std_hz=STD_HZ, offset_hz=OFFSET_HZ, **changes):
    """Track all pairs over exchanges at `blocks`: errors and predicted deviations of phi and f just before each."""
    rng = np.random.default_rng((seed, 1))
    tracker = CarrierTracker(SAMP_RATE, **{**PAIR, **changes}, offset_std_hz=offset_hz * np.sqrt(2), shape=(num_pairs,))
    errors, deviations = [], []
    for block in blocks:
        phi, f = pairs.phi(block), pairs.frequency_hz(block)
        known = tracker.predict(GRID * block)
        errors.append([wrap(known.phase_rad - phi), known.frequency_hz - f])
        deviations.append([known.phase_std_rad, known.frequency_std_hz])
        tracker.update(wrap(phi + rng.normal(0, STD_RAD, num_pairs)), STD_RAD, GRID * block,
                       f + rng.normal(0, 1, num_pairs) * (std_hz if np.isfinite(std_hz) else 0), std_hz)
    return np.array(errors), np.array(deviations), tracker


def mean_and_deviation(x):
    """Mean over axis 0 of independent pairs, and its standard error."""
    return x.mean(axis=0), x.std(axis=0, ddof=1) / np.sqrt(len(x))


def steps_of(interval_s, count, first_s=0.01):
    """Grid blocks of an exchange soon after the first one, to find the frequency, then `count` at the interval."""
    return np.cumsum(np.rint(np.array([1.0, first_s, 0.1, 0.4, *[interval_s] * count]) * SAMP_RATE / GRID).astype(int))


def test_the_discretisation_equals_the_integrated_differential_equations():
    model = CarrierModel(0.3, 0.7, 4.0)
    drift = np.array([[0, 4 * np.pi, 0], [0, -1 / 4.0, 1 / 4.0], [0, 0, 0]])
    diffusion = np.diag([8 * np.pi * 0.3, 2 * 0.7**2 / 4.0, 0])

    def slope(_, packed):
        transition, covariance = packed.reshape(2, 3, 3)
        return np.stack([drift @ transition, drift @ covariance + covariance @ drift.T + diffusion]).ravel()

    for interval in (1e-3, 0.399, 0.401, 3.0, 30.0):
        start = np.stack([np.eye(3), np.zeros((3, 3))]).ravel()
        solution = solve_ivp(slope, (0, interval), start, rtol=1e-11, atol=1e-16)
        transition, covariance = solution.y[:, -1].reshape(2, 3, 3)
        np.testing.assert_allclose(model.transition(interval), transition, rtol=1e-7, atol=1e-12)
        np.testing.assert_allclose(model.noise(interval), covariance, rtol=1e-6, atol=1e-13)


def test_two_steps_are_one_long_step():
    model = CarrierModel([0.3, 0.0], [0.7, 0.2], [4.0, 1e5])
    first, second = model.transition(1.3), model.transition(0.4)
    np.testing.assert_allclose(second @ first, model.transition(1.7), rtol=1e-10)
    both = second @ model.noise(1.3) @ np.swapaxes(second, -2, -1) + model.noise(0.4)
    np.testing.assert_allclose(both, model.noise(1.7), rtol=1e-8, atol=1e-14)


def test_without_noise_phase_and_frequency_are_exact_after_two_exchanges_and_for_hours():
    f, phi, start = 0.37, 2.9, 10**12
    tracker = CarrierTracker(SAMP_RATE, linewidth_hz=0.0, offset_std_hz=1.0)
    for later_s in (0.0, 0.01, 1.0):
        sample = start + int(later_s * SAMP_RATE)
        assert tracker.update(wrap(np.array(phi + 4 * np.pi * f * later_s)), 1e-6, sample)
    later = start + 3600 * int(SAMP_RATE)
    known = tracker.predict(later)
    assert abs(wrap(known.phase_rad - phi - 4 * np.pi * f * 3600)) < 1e-6
    assert abs(known.frequency_hz - f) < 1e-9


def test_the_frequency_turns_the_phase_by_four_pi_f_with_the_sign_of_leader_minus_follower():
    pairs = SimulatedPairs(5, 3, linewidth_hz=0.0, drift_hz=0.0)
    tracker = CarrierTracker(SAMP_RATE, linewidth_hz=0.0, offset_std_hz=3.0, shape=(5,))
    tracker.update(pairs.phi(1000), 1e-6, 256_000, pairs.frequency_hz(1000), 1e-9)
    np.testing.assert_allclose(wrap(tracker.predict(256 * 9000).phase_rad - pairs.phi(9000)), 0, atol=1e-4)
    assert np.abs(wrap(pairs.phi(9000) - pairs.phi(1000))).min() > 0.01


def test_retune_and_advance_move_the_prediction_as_they_move_the_carrier():
    tracker = CarrierTracker(SAMP_RATE, linewidth_hz=0.0, offset_std_hz=3.0)
    tracker.update(0.4, 1e-6, 0, 1.5, 1e-6)
    before = tracker.predict(500_000)
    tracker.retune(1.5, 500_000)
    # Phase-continuous: the phase stays where it is, and stands still from now on.
    for sample in (500_000, 2_500_000):
        np.testing.assert_allclose(wrap(tracker.predict(sample).phase_rad - before.phase_rad), 0, atol=1e-5)
    np.testing.assert_allclose(tracker.predict(500_000).phase_std_rad, before.phase_std_rad)
    tracker.advance(tracker.predict(2_500_000).phase_rad)
    np.testing.assert_allclose(tracker.predict(2_500_000).phase_rad, 0, atol=1e-12)
    assert tracker.update(0.0, 1e-4, 2_600_000, 0.0, 1e-3)


def test_equals_batch_least_squares_over_all_states():
    rng = np.random.default_rng(7)
    model = CarrierModel(0.02, 0.05, 3.0)
    samples = np.cumsum(rng.integers(1000, 300_000, 12))
    phase, frequency = rng.normal(0, 0.2, 12), rng.normal(0, 0.1, 12)
    phase_std, frequency_std = rng.uniform(0.02, 0.1, 12), rng.uniform(0.05, 0.2, 12)
    frequency_std[3:5] = np.inf
    tracker = CarrierTracker(SAMP_RATE, linewidth_hz=0.02, drift_hz=0.05, drift_period_s=3.0, offset_std_hz=0.3)
    for k in range(12):
        assert tracker.update(phase[k], phase_std[k], samples[k], frequency[k], frequency_std[k])
    # Every state an unknown; rows of equal variance: the prior, the transitions, the measurements.
    rows, values = [], []

    def add(blocks, value, covariance):
        row = np.zeros((len(value), 36))
        for k, block in blocks.items():
            row[:, 3 * k : 3 * k + 3] = block
        whiten = np.linalg.inv(np.linalg.cholesky(covariance))
        rows.append(whiten @ row)
        values.append(whiten @ value)

    add({0: np.eye(3)[1:]}, np.zeros(2), np.array([[0.3**2 + 0.05**2, 0.3**2], [0.3**2, 0.3**2]]))
    for k in range(1, 12):
        interval = (samples[k] - samples[k - 1]) / SAMP_RATE
        covariance = model.noise(interval) + np.diag([0, 0, 1e-14])
        add({k: np.eye(3), k - 1: -model.transition(interval)}, np.zeros(3), covariance)
    for k in range(12):
        add({k: np.eye(3)[:1]}, phase[k : k + 1], np.array([[phase_std[k] ** 2]]))
        if np.isfinite(frequency_std[k]):
            add({k: np.eye(3)[1:2]}, frequency[k : k + 1], np.array([[frequency_std[k] ** 2]]))
    design = np.concatenate(rows)
    solution = np.linalg.lstsq(design, np.concatenate(values), rcond=None)[0]
    spread = np.linalg.inv(design.T @ design)[-3:, -3:]
    known = tracker.predict(samples[-1])
    np.testing.assert_allclose([known.phase_rad, known.frequency_hz], solution[-3:-1], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose([known.phase_std_rad, known.frequency_std_hz], np.sqrt(np.diag(spread)[:2]), rtol=1e-5)


@pytest.mark.parametrize("std_hz", [STD_HZ, np.inf])
def test_predicted_deviations_are_those_of_simulated_oscillators(std_hz):
    num_pairs, blocks = 400, steps_of(0.5, 25)
    errors, deviations, tracker = run_tracker(SimulatedPairs(num_pairs, 11), num_pairs, blocks, 11, std_hz=std_hz)
    assert np.all(tracker.events == "applied")
    squared = (errors / deviations)[12:] ** 2
    for which in range(2):
        mean, error = mean_and_deviation(squared[:, which].mean(axis=0))
        assert abs(mean - 1) < 4 * error < 0.2


@pytest.mark.parametrize("wrong", [{"linewidth_hz": PAIR["linewidth_hz"] / 2}, {"drift_hz": 0.0}])
def test_the_consistency_test_sees_a_wrong_model(wrong):
    num_pairs, blocks = 400, steps_of(0.5, 25)
    pairs = SimulatedPairs(num_pairs, 11)
    errors, deviations, _ = run_tracker(pairs, num_pairs, blocks, 11, std_hz=np.inf, **wrong)
    mean, error = mean_and_deviation(((errors / deviations)[12:, 0] ** 2).mean(axis=0))
    assert mean - 1 > 6 * error


@pytest.mark.parametrize(("budget", "std_hz"), [(0.15, STD_HZ), (0.3, np.inf)])
def test_exchanges_at_the_planned_interval_keep_the_budget_and_use_it(budget, std_hz):
    interval = resynchronisation_interval(budget, measurement_std_rad=STD_RAD, frequency_std_hz=std_hz, **PAIR)
    num_pairs = 400
    blocks = steps_of(interval, 30)
    # The constant part of the offset is known in the steady state; learning it takes several drift periods.
    pairs = SimulatedPairs(num_pairs, 23, offset_hz=1e-6)
    errors, _, _ = run_tracker(pairs, num_pairs, blocks, 23, std_hz=std_hz, offset_hz=1e-6)
    mean, error = mean_and_deviation((errors[14:, 0] ** 2).mean(axis=0) / budget**2)
    assert abs(mean - 1) < 4 * error < 0.25


def test_the_interval_has_its_closed_forms():
    common = {"frequency_std_hz": np.inf, "drift_period_s": 50.0}
    budget, std, linewidth = 0.1, 0.04, 0.02
    found = resynchronisation_interval(budget, measurement_std_rad=std, linewidth_hz=linewidth, drift_hz=0.0, **common)
    rate = 8 * np.pi * linewidth
    np.testing.assert_allclose(found, budget**4 / (rate * (budget**2 + std**2)), rtol=1e-9)
    # Exact measurements of both: what is left is what the oscillator does in one interval.
    exact = {"measurement_std_rad": 0.0, "frequency_std_hz": 0.0, "linewidth_hz": linewidth, "drift_hz": 0.1,
             "drift_period_s": 50.0}
    found = resynchronisation_interval(budget, **exact)
    np.testing.assert_allclose(CarrierModel(linewidth, 0.1, 50.0).noise(found)[0, 0], budget**2, rtol=1e-8)


def test_the_steady_state_is_where_the_filter_ends():
    tracker = CarrierTracker(SAMP_RATE, **PAIR, offset_std_hz=1.0)
    interval = 700_000
    for k in range(400):
        tracker.update(0.0, STD_RAD, k * interval, 0.0, STD_HZ)
    # After n exchanges the constant part of the offset is known to about drift / sqrt(n times interval over period).
    np.testing.assert_allclose(
        tracker.predicted_std_rad(400 * interval),
        steady_state_std_rad(0.7, measurement_std_rad=STD_RAD, frequency_std_hz=STD_HZ, **PAIR), rtol=2e-3)


def test_the_interval_falls_with_drift_linewidth_and_measurement_error_and_grows_with_the_budget():
    base = {"measurement_std_rad": 0.03, "frequency_std_hz": 0.5, "linewidth_hz": 2e-4, "drift_hz": 0.05,
            "drift_period_s": 20.0}
    interval = resynchronisation_interval(0.1, **base)
    for name, change in [("drift_hz", 0.1), ("linewidth_hz", 4e-4), ("measurement_std_rad", 0.05)]:
        assert resynchronisation_interval(0.1, **{**base, name: change}) < 0.95 * interval
    assert resynchronisation_interval(0.2, **base) > 1.5 * interval
    assert resynchronisation_interval(0.1, **{**base, "drift_hz": 0.0, "linewidth_hz": 0.0}) == HORIZON_S


def test_budgets_that_cannot_be_met_raise_with_what_can():
    model = {"measurement_std_rad": 0.05, "frequency_std_hz": 1.0, "linewidth_hz": 1.0, "drift_hz": 1.0,
             "drift_period_s": 10.0}
    with pytest.raises(ValueError, match=r"exchanges every shortest_s=0\.1 s leave 1\.6"):
        resynchronisation_interval(0.05, shortest_s=0.1, **model)
    for budget in (0.0, -1.0, np.nan, MAX_INNOVATION_STD_RAD):
        with pytest.raises(ValueError, match="budget_rad="):
            resynchronisation_interval(budget, **model)
    with pytest.raises(ValueError, match="linewidth_hz=-1"):
        resynchronisation_interval(0.1, **{**model, "linewidth_hz": -1.0})


def test_the_next_synchronisation_is_the_last_sample_within_the_budget():
    tracker = CarrierTracker(SAMP_RATE, linewidth_hz=[0.01, 0.1, 0.0], offset_std_hz=1.0, shape=(3,))
    before = tracker.next_synchronisation(0.2, 77)
    assert not before.feasible.any()
    assert np.all(before.sample == 77)
    tracker.update(0.0, [0.02, 0.02, 0.3], 1000, 0.0, 0.01)
    plan = tracker.next_synchronisation(0.2, 2000)
    np.testing.assert_array_equal(plan.feasible, [True, True, False])
    assert np.all(tracker.predicted_std_rad(plan.sample)[:2] <= 0.2)
    assert np.all(tracker.predicted_std_rad(plan.sample + 1)[:2] > 0.2)
    assert plan.sample[2] == 2000
    assert plan.sample[1] < plan.sample[0]
    # Later than the plan, it is never in the past.
    late = tracker.next_synchronisation(0.2, plan.sample + 5)
    np.testing.assert_array_equal(late.sample, plan.sample + 5)
    assert not late.feasible.any()


def test_its_own_plans_lead_a_tracker_to_the_steady_state_where_even_intervals_never_get():
    model = {"linewidth_hz": 1e-5, "drift_hz": 0.014, "drift_period_s": 30.0}
    interval = resynchronisation_interval(0.2, measurement_std_rad=0.005, frequency_std_hz=0.1, **model)
    planned, even = (CarrierTracker(SAMP_RATE, offset_std_hz=1e-3, **model) for _ in range(2))
    sample, events = 0, []
    for k in range(40):
        planned.update(0.0, 0.005, sample, 0.0, 0.1)
        even.update(0.0, 0.005, round(1.4 * k * interval * SAMP_RATE), 0.0, 0.1)
        events.append((str(planned.events), str(even.events)))
        before, sample = sample, int(planned.next_synchronisation(0.2, sample).sample)
    assert {name for name, _ in events[1:]} == {"applied"}
    np.testing.assert_allclose((sample - before) / SAMP_RATE, interval, rtol=0.02)
    # At 1.4 times the interval the steady state would be 0.32 rad, well within what can be unwrapped.
    assert {name for _, name in events[1:]} == {"restarted"}


def test_budgets_beyond_unwrapping_are_planned_as_what_can_be_unwrapped():
    tracker = CarrierTracker(SAMP_RATE, linewidth_hz=0.01, offset_std_hz=0.1)
    tracker.update(0.0, 0.01, 0)
    assert tracker.next_synchronisation(3.0, 0) == tracker.next_synchronisation(MAX_INNOVATION_STD_RAD, 0)


def test_an_oscillator_that_stands_still_is_planned_at_the_horizon():
    tracker = CarrierTracker(SAMP_RATE, linewidth_hz=0.0, offset_std_hz=1e-9)
    tracker.update(0.0, 0.01, 5)
    plan = tracker.next_synchronisation(0.1, 5)
    assert plan.feasible
    assert plan.sample == 5 + int(HORIZON_S * SAMP_RATE)


def test_flagged_late_and_wild_updates_are_not_applied_and_say_why():
    tracker = CarrierTracker(SAMP_RATE, linewidth_hz=0.01, offset_std_hz=0.1)
    assert not tracker.update(1.0, 0.01, 1000, trusted=False)
    assert tracker.events == "untrusted"
    assert np.isinf(tracker.predicted_std_rad(1000))
    assert tracker.update(1.0, 0.01, 1000)
    assert tracker.events == "started"
    before = tracker.predict(10_000)
    for phase, std, sample, trusted, event in [
        (1.0, 0.01, 9000, False, "untrusted"), (np.nan, 0.01, 9000, True, "untrusted"),
        (1.0, np.inf, 9000, True, "untrusted"), (1.0, 0.01, 900, True, "late"), (-1.0, 0.01, 9000, True, "gated"),
    ]:
        assert not tracker.update(phase, std, sample, trusted=trusted)
        assert tracker.events == event
        assert tracker.predict(10_000) == before
    assert not tracker.update(1.0, 0.01, 9000, 5.0, 0.01)
    assert tracker.events == "gated"
    with pytest.raises(ValueError, match="must not be negative"):
        tracker.update(1.0, -0.01, 9000)
    with pytest.raises(ValueError, match="must not lie before the last update"):
        tracker.predict(999)


def test_a_jump_of_the_oscillator_is_refused_twice_and_then_believed():
    tracker = CarrierTracker(SAMP_RATE, linewidth_hz=0.01, offset_std_hz=0.1)
    for sample in (0, 100_000, 200_000):
        tracker.update(0.3, 0.01, sample)
    events = []
    for sample in (300_000, 400_000, 500_000, 600_000):
        tracker.update(-2.0, 0.01, sample)
        events.append(str(tracker.events))
    assert events == ["gated", "gated", "lost", "applied"]
    assert abs(tracker.predict(600_000).phase_rad + 2.0) < 0.02
    # One wild measurement between good ones changes nothing.
    tracker.update(2.0, 0.01, 700_000)
    assert tracker.update(-2.0, 0.01, 800_000)


def test_a_phase_too_uncertain_to_unwrap_is_started_anew_and_the_frequency_kept():
    tracker = CarrierTracker(SAMP_RATE, linewidth_hz=0.01, offset_std_hz=10.0)
    tracker.update(0.3, 0.01, 0)
    assert tracker.update(-2.5, 0.01, 1_000_000)
    assert tracker.events == "restarted"
    assert abs(tracker.predict(1_000_000).phase_rad + 2.5) < 1e-12
    np.testing.assert_allclose(tracker.predicted_std_rad(1_000_000), 0.01)
    np.testing.assert_allclose(tracker.predict(1_000_000).frequency_std_hz, 10.0)
    # A good frequency in the same measurement resolves what the prediction alone could not: 2 turns in one second.
    other = CarrierTracker(SAMP_RATE, linewidth_hz=0.0, offset_std_hz=10.0)
    other.update(0.3, 0.01, 0)
    assert other.update(0.3, 0.01, 1_000_000, 1.001, 0.02)
    assert other.events == "applied"
    np.testing.assert_allclose(other.predict(1_000_000).frequency_hz, 1.0, atol=0.004)


def test_followers_side_by_side_are_followers_alone():
    rng = np.random.default_rng(5)
    linewidth = np.array([0.001, 0.01, 0.1])
    together = CarrierTracker(SAMP_RATE, linewidth_hz=linewidth, drift_hz=0.05, offset_std_hz=0.5, shape=(3,))
    alone = [CarrierTracker(SAMP_RATE, linewidth_hz=x, drift_hz=0.05, offset_std_hz=0.5) for x in linewidth]
    for k in range(1, 20):
        measured = rng.random(3) < 0.6
        phase, samples = rng.normal(0, 0.1, 3), 50_000 * k + np.array([0, 7000, 14000])
        applied = together.update(phase, 0.05, samples, 0.0, 0.1, measured)
        for m, tracker in enumerate(alone):
            assert tracker.update(phase[m], 0.05, samples[m], 0.0, 0.1, measured[m]) == applied[m]
    final = together.predict(2_000_000)
    for m, tracker in enumerate(alone):
        np.testing.assert_allclose([part[m] for part in final], tracker.predict(2_000_000), rtol=1e-10, atol=1e-12)


def test_phase_noise_within_a_burst_is_part_of_its_errors():
    rng = np.random.default_rng(9)
    duration, rate, num = 0.01, 8 * np.pi * 0.5, 1000
    walk = np.cumsum(rng.normal(0, np.sqrt(rate * duration / num), (2000, num)), axis=1)
    t = (np.arange(num) - 0.5 * (num - 1)) * duration / num
    slope = walk @ t / (t @ t) / (4 * np.pi)
    offset = walk.mean(axis=1) - walk[:, num // 2]
    tracker = CarrierTracker(SAMP_RATE, linewidth_hz=0.5, offset_std_hz=1e4)
    tracker.update(0.0, 0.0, 0, 0.0, 0.0, duration_s=duration)
    known = tracker.predict(0)
    np.testing.assert_allclose(known.phase_std_rad, np.sqrt(np.mean(offset**2)), rtol=0.07)
    np.testing.assert_allclose(known.frequency_std_hz, np.sqrt(np.mean(slope**2)), rtol=0.07)


@pytest.mark.parametrize("leader", [True, False])
@pytest.mark.parametrize("num_nodes", [2, 3, 12])
def test_gain_loss_is_the_mean_of_drawn_phases_and_the_budget_inverts_it(leader, num_nodes):
    rng = np.random.default_rng(num_nodes)
    errors = 0.5 * rng.standard_normal((100_000, num_nodes))
    if leader:
        errors[:, 0] = 0.0
    power = np.abs(np.exp(1j * errors).sum(axis=1)) ** 2 / num_nodes**2
    mean, error = mean_and_deviation(power)
    assert abs(10 ** (-gain_loss_db(0.5, num_nodes, leader=leader) / 10) - mean) < 4 * error
    for std in (1e-6, 0.01, 0.3, 1.5):
        loss = gain_loss_db(std, num_nodes, leader=leader)
        np.testing.assert_allclose(gain_budget(loss, num_nodes, leader=leader), std, rtol=1e-3 if std < 1e-3 else 1e-9)
    assert gain_budget(10 * np.log10(num_nodes) + 0.01, num_nodes, leader=leader) == np.inf
    assert gain_budget(0.0, num_nodes, leader=leader) == 0.0


def test_twenty_degrees_cost_less_than_one_decibel():
    assert gain_loss_db(np.radians(20), 1000) < 1.0
    assert gain_loss_db(np.radians(20), 31, leader=False) < 1.0
