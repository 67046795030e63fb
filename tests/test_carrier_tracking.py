# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest
from carrier_pairs import (
    NODE,
    PAIR,
    SAMP_RATE,
    STD_HZ,
    STD_RAD,
    SimulatedPairs,
    mean_and_deviation,
    run_tracker,
    steps_of,
)
from gnuradio.dmimo.core.carrier_model import HORIZON_S, MAX_INNOVATION_STD_RAD, CarrierModel, wrap
from gnuradio.dmimo.core.carrier_tracking import CarrierTracker


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


def measured_and_planned(drift_hz, drift_period_s, count, *, num_pairs=4000, std_hz=1e-3, budget_rad=0.5):
    """Squares (count, pairs) of the normalised errors of phi before exchanges that trackers plan after a frequency.

    The pairs are drawn from `CarrierModel` itself: the sinusoids of the simulation's oscillators only come near it.
    """
    rng = np.random.default_rng(31)
    options = {"linewidth_hz": 2e-6, "drift_hz": drift_hz, "drift_period_s": drift_period_s}
    tracker = CarrierTracker(SAMP_RATE, offset_std_hz=1e6, shape=(num_pairs,), **options)
    model = CarrierModel(**options)
    mean = rng.normal(0, 3.0, num_pairs)
    truth = np.stack([rng.uniform(0, 6, num_pairs), mean + rng.normal(0, drift_hz, num_pairs), mean], axis=1)
    tracker.measure_frequency(truth[:, 1] + rng.normal(0, std_hz, num_pairs), std_hz)
    sample, squares = 1000, []
    for _ in range(count + 1):
        known = tracker.predict(sample)
        squares.append((wrap(known.phase_rad - truth[:, 0]) / known.phase_std_rad) ** 2)
        tracker.update(wrap(truth[:, 0] + rng.normal(0, STD_RAD, num_pairs)), STD_RAD, sample)
        # All trackers plan alike: the covariance does not depend on what is measured.
        following = int(tracker.next_synchronisation(budget_rad, sample).sample[0])
        interval, sample = (following - sample) / SAMP_RATE, following
        walked = rng.normal(size=(num_pairs, 2)) @ np.linalg.cholesky(model.noise(interval)[:2, :2]).T
        truth = truth @ model.transition(interval).T
        truth[:, :2] += walked
    assert np.all(tracker.events == "applied")
    return np.array(squares[1:])


@pytest.mark.parametrize(("drift_hz", "drift_period_s"), [(0.02, 1.0), (0.05, 60.0)])
def test_errors_before_each_exchange_after_a_measured_frequency_are_as_predicted(drift_hz, drift_period_s):
    for squares in measured_and_planned(drift_hz, drift_period_s, 8):
        mean, error = mean_and_deviation(squares)
        assert abs(mean - 1) < 4 * error < 0.1


def covariance_of(tracker):
    """Of [f, m] at the last update, from what the tracker predicts of f at three later times."""
    model, times = tracker.model, np.array([0.0, 0.5, 2.0]) * float(tracker.model.drift_period_s)
    rows, values = [], []
    for interval in times:
        a, b = model.transition(interval)[1, 1:]
        rows.append([a * a, 2 * a * b, b * b])
        std = tracker.predict(interval * SAMP_RATE).frequency_std_hz
        values.append(std**2 - model.noise(interval)[1, 1])
    return np.linalg.solve(rows, values)


@pytest.mark.parametrize("with_phase", [True, False])
def test_a_measured_frequency_tells_the_moment_exactly_and_the_mean_within_the_drift(with_phase):
    std, drift = 1e-3, 0.02
    tracker = CarrierTracker(SAMP_RATE, linewidth_hz=0.0, drift_hz=drift, drift_period_s=5.0, offset_std_hz=1e6)
    if with_phase:
        tracker.update(0.1, 0.01, 0, 321.5, std)
    else:
        tracker.measure_frequency(321.5, std)
        np.testing.assert_allclose([tracker.predict(0).frequency_hz, tracker.predict(0).frequency_std_hz], [321.5, std],
                                   rtol=1e-12)
        tracker.update(0.1, 0.01, 0)
    np.testing.assert_allclose(covariance_of(tracker), [std**2, std**2, std**2 + drift**2], rtol=1e-6)
    np.testing.assert_allclose(tracker.predict(100 * SAMP_RATE).frequency_hz, 321.5, rtol=1e-12)


def test_frequencies_measured_one_after_another_are_their_weighted_mean():
    tracker = CarrierTracker(SAMP_RATE, linewidth_hz=0.0, drift_hz=0.02, offset_std_hz=[1e6, 1e6, 0.1], shape=(3,))
    tracker.measure_frequency([3.0, np.nan, 0.3], [0.2, 0.1, 0.1])
    tracker.measure_frequency([4.0, 4.0, 7.0], [0.1, 0.1, np.inf])
    known = tracker.predict(0)
    np.testing.assert_allclose(known.frequency_hz, [3.8, 4.0, 0.3 * 0.0104 / 0.0204], rtol=1e-9)
    np.testing.assert_allclose(known.frequency_std_hz, [0.2 / np.sqrt(5), 0.1, np.sqrt(0.0104 / 2.04)], rtol=1e-9)


def test_frequencies_are_measured_before_the_first_phase():
    tracker = CarrierTracker(SAMP_RATE, linewidth_hz=0.01, offset_std_hz=1e6, shape=(2,))
    tracker.update(0.0, 0.01, 0, trusted=[True, False])
    tracker.measure_frequency(1.0, [np.inf, 0.1])
    np.testing.assert_allclose(tracker.predict(0).frequency_hz, [0.0, 1.0])
    with pytest.raises(ValueError, match="must be measured before the first phase"):
        tracker.measure_frequency(1.0, 0.1)
    with pytest.raises(ValueError, match="must not be negative"):
        tracker.measure_frequency(1.0, -0.1)


def lose(tracker, *frequency):
    """Three phases that do not fit, from 7.0 s on: the last one gives up the track."""
    for sample in (7_000_000, 7_000_001, 7_000_002):
        tracker.update(-2.0, 0.001, sample, *frequency)
    assert tracker.events == "lost"
    return tracker.predict(7_000_002)


def test_a_lost_track_starts_from_the_measured_frequency_as_old_as_it_is():
    std, drift, period = 1e-3, 0.003, 5.0
    tracker = CarrierTracker(SAMP_RATE, linewidth_hz=1e-4, drift_hz=drift, drift_period_s=period, offset_std_hz=1e6)
    tracker.measure_frequency(10.3, std)
    tracker.update(0.3, 0.001, 1_000_000)
    tracker.retune(10.0, 1_500_000)
    tracker.update(tracker.predict(6_900_000).phase_rad, 0.01, 6_900_000)
    known, aged = lose(tracker), 1 - np.exp(-6.000002 / period)
    # f then and now share m: var (f_now - f_then) = 2 drift^2 (1 - exp(-t / T)).
    np.testing.assert_allclose(known.frequency_std_hz, np.sqrt(std**2 + 2 * drift**2 * aged), rtol=1e-9)
    np.testing.assert_allclose(known.frequency_hz, 0.3, rtol=1e-9)


def test_a_lost_track_whose_frequency_has_jumped_starts_from_the_new_one():
    tracker = CarrierTracker(SAMP_RATE, linewidth_hz=1e-4, drift_hz=0.001, drift_period_s=5.0, offset_std_hz=1e6)
    tracker.measure_frequency(0.0, 1e-3)
    tracker.update(0.3, 0.001, 1_000_000)
    known = lose(tracker, 4.0, 0.1)
    np.testing.assert_allclose([known.frequency_hz, known.frequency_std_hz], [4.0, 0.1], rtol=1e-9)
    tracker.update(-2.0, 0.001, 7_000_002, 4.0, 0.1)
    assert tracker.events == "applied"


def innovations(seed, **changes):
    """Squares (exchanges, pairs) of the innovations of trackers of `PAIR`, of pairs of oscillators with changes."""
    num_pairs, blocks, squares = 400, steps_of(0.5, 25), []
    run_tracker(SimulatedPairs(num_pairs, seed, **changes), num_pairs, blocks, seed,
                after=lambda tracker: squares.append(tracker.innovation**2))
    return np.array(squares)


def test_innovations_have_unit_variance_and_more_when_the_oscillators_are_worse():
    right = innovations(41)
    assert np.all(np.isnan(right[0]))
    mean, error = mean_and_deviation(right[4:].mean(axis=0))
    assert abs(mean - 1) < 4 * error < 0.1
    worse = innovations(41, linewidth_hz=10 * NODE["linewidth_hz"])
    mean, error = mean_and_deviation(np.nanmean(worse[4:], axis=0))
    assert mean - 1 > 10 * error


def test_innovations_are_those_of_phases_that_can_be_unwrapped():
    tracker = CarrierTracker(SAMP_RATE, linewidth_hz=0.01, offset_std_hz=0.1)
    rate = 8 * np.pi * 0.01 * 0.1 + (4 * np.pi * 0.1 * 0.1) ** 2
    for phase, sample, trusted, innovation, event in [
        (3.1, 0, True, np.nan, "started"), (3.1, 100_000, False, np.nan, "untrusted"),
        (-3.1, 100_000, True, (2 * np.pi - 6.2) / np.sqrt(0.02**2 * 2 + rate), "applied"),
        (-3.1, 0, True, np.nan, "late"), (-3.1, 10**9, True, np.nan, "restarted"),
    ]:
        tracker.update(phase, 0.02, sample, trusted=trusted)
        assert tracker.events == event
        np.testing.assert_allclose(tracker.innovation, innovation, rtol=1e-9)
    tracker.update(0.0, 0.02, 10**9)
    assert tracker.events == "gated"
    np.testing.assert_allclose(tracker.innovation, 3.1 / np.sqrt(2 * 0.02**2), rtol=1e-9)
