# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures of the coefficient itself: what two UEs agree on, and that it turns twice as fast as a one-way channel."""

import numpy as np
import pytest
from gnuradio.dmimo import experiments, plotting
from gnuradio.dmimo.experiments import bidirectional_coefficients as coefficients
from gnuradio.dmimo.experiments import registry
from gnuradio.dmimo.experiments.bidirectional_model import PATTERN_S, Scene, draw
from gnuradio.dmimo.experiments.error_statistics import wrap

TRIALS = 40


def chunk(name, trials, seed=1, **changes):
    figure = registry.figure(name)
    configuration = {**figure.defaults, **changes}
    return configuration, figure.trial_chunk(configuration, np.random.SeedSequence(seed).spawn(trials))


@pytest.fixture(scope="module")
def agreement():
    return chunk("bidirectional-13", TRIALS, points=81)


@pytest.fixture(scope="module")
def twice():
    return chunk("bidirectional-14", TRIALS)


def rms_over_bound(errors, bound):
    """Ratio of rms to bound, and its standard error, of errors (trials, patterns) and bounds (trials,)."""
    squared = np.nanmean((errors / bound[:, None]) ** 2, axis=1)
    error = squared.std(ddof=1) / np.sqrt(len(squared))
    return np.sqrt(squared.mean()), 0.5 * error / np.sqrt(squared.mean())


def test_two_ues_find_the_same_delay_as_well_as_the_bound_allows(agreement):
    _, arrays = agreement
    assert arrays["trusted"][..., :2].all()
    for index in (0, 1):
        errors = arrays["delay_s"][..., index] - arrays["true_delay_s"]
        value, error = rms_over_bound(errors, arrays["delay_bound_s"][:, index])
        assert abs(value - 1) < 4 * error < 0.15
    difference = arrays["delay_s"][..., 0] - arrays["delay_s"][..., 1]
    value, error = rms_over_bound(difference, np.hypot(*arrays["delay_bound_s"][:, :2].T))
    assert abs(value - 1) < 4 * error
    # It is a delay that moves: by far more than the bound.
    assert arrays["true_delay_s"].std(axis=1).mean() > 5 * arrays["delay_bound_s"][:, 0].mean()


def test_the_phase_of_both_ues_follows_the_coefficients_of_the_trps(agreement):
    configuration, arrays = agreement
    for index in (0, 1):
        errors = wrap(arrays["phase_rad"][..., index] - arrays["true_phase_rad"])
        errors = wrap(errors - np.angle(np.exp(1j * errors).mean(axis=1, keepdims=True)))
        value, error = rms_over_bound(errors, arrays["phase_bound_rad"][:, index])
        # One of the patterns went into the mean.
        assert abs(value - np.sqrt(80 / 81)) < 4 * error < 0.15
    turned = np.unwrap(arrays["true_phase_rad"], axis=1)
    assert np.ptp(turned, axis=1).mean() > 0.5


def test_the_phase_difference_is_noise_at_the_bound_around_the_mismatch_and_larger_at_the_crossed_port(agreement):
    configuration, arrays = agreement
    ratio = 10 ** (configuration["mismatch_db"] / 10)
    for other, crossed in ((1, 1.0), (2, 10 ** (configuration["cross_polar_db"] / 10))):
        _, varies, stays = coefficients.phase_difference(arrays, other)
        bound = np.degrees(np.hypot(*arrays["phase_bound_rad"][:, [0, other]].T))
        value, error = (varies / bound**2).mean(), (varies / bound**2).std(ddof=1) / np.sqrt(TRIALS)
        # At 1 dB per element a CARS answer is beyond its bound, but what is flagged is left out.
        assert abs(value - 1) < 4 * error + (0.0 if other == 1 else 0.25)
        # Half of a mismatch turns the phase; two links, two directions, at each of the two ports.
        expected = np.degrees(1) ** 2 * 2 * ratio * (1 + crossed)
        assert abs(stays.mean() - expected) < 4 * stays.std(ddof=1) / np.sqrt(TRIALS) + 0.1 * expected
    _, matched, _ = coefficients.phase_difference(arrays, 1)
    _, crossed, _ = coefficients.phase_difference(arrays, 2)
    assert np.sqrt(crossed.mean() / matched.mean()) > 2
    assert np.mean(~arrays["trusted"][..., 2]) > 0.1


def test_without_noise_and_mismatch_all_ue_ports_agree_exactly():
    _, arrays = chunk("bidirectional-13", 3, points=9, power_dbm=150.0, mismatch_db=-300.0)
    for index in range(3):
        np.testing.assert_allclose(arrays["delay_s"][..., index], arrays["true_delay_s"], atol=1e-14)
        assert np.abs(wrap(arrays["phase_rad"][..., index] - arrays["true_phase_rad"])).max() < 1e-4


def test_timing_and_frequency_of_the_coefficient_are_twice_those_of_the_uplink(twice):
    _, arrays = twice
    for key, precision in (("delay_s", 0.01), ("frequency_hz", 0.001)):
        interval = coefficients.ratio(arrays, key, arrays[f"true_{key}"].shape[1])
        error = (interval.upper - interval.lower) / (2 * 2.02)  # Student's t of 39 degrees of freedom
        assert abs(interval.value - 2) < 4 * error < precision


def test_one_way_and_two_way_offsets_are_at_their_bounds(twice):
    _, arrays = twice
    for key in ("delay_s", "frequency_hz"):
        for way, factor in (("two_way", 2), ("uplink", 1), ("downlink", 1)):
            errors = arrays[f"{way}_{key}"] - factor * arrays[f"true_{key}"]
            if key == "delay_s":
                # The uplink's delay has the path in it, unknown by the period of the comb.
                errors = errors - errors.mean(axis=1, keepdims=True)
            # Both directions of a link have almost the same bound.
            bound = arrays[f"{way.replace('down', 'up')}_{key.split('_')[0]}_bound"].ravel()
            value, error = rms_over_bound(errors, bound)
            assert abs(value - 1) < 4 * error + 0.05


def test_frequencies_beyond_half_a_turn_per_pattern_are_unfolded(twice):
    _, arrays = twice
    largest = np.abs(arrays["true_frequency_hz"]).max(axis=1)
    beyond = largest > 0.5 * 0.5 / PATTERN_S + 10
    assert beyond.sum() > TRIALS / 4
    errors = arrays["two_way_frequency_hz"] - 2 * arrays["true_frequency_hz"]
    assert np.abs(errors[beyond]).max() < 10
    assert np.abs(arrays["two_way_frequency_hz"][beyond]).max() > 0.5 / PATTERN_S


def test_wander_is_the_derivative_of_its_integral_and_has_its_deviation():
    rngs = [np.random.default_rng(k) for k in range(400)]
    moving = coefficients.wander(rngs, np.array([3.0, 0.0]), 2.0)
    times, step = np.linspace(0.0, 5.0, 51), 1e-4
    slope = (moving.integral(times + step) - moving.integral(times - step)) / (2 * step)
    np.testing.assert_allclose(slope, moving.value(times), atol=1e-5)
    np.testing.assert_allclose(moving.integral(np.zeros(1)), 0.0)
    squared = moving.value(times)[..., 0] ** 2
    error = squared.mean(axis=1).std(ddof=1) / 20
    assert abs(squared.mean() - 9.0) < 4 * error
    assert np.all(moving.value(times)[..., 1] == 0)


def test_frozen_patterns_are_the_network_at_their_times():
    rngs = [np.random.default_rng(k) for k in range(2)]
    drop = draw(Scene(num_trp=2, num_ue=1, trp_ports=2), rngs)
    still = coefficients.wander(rngs, np.zeros(3), 1.0)
    times, later = np.array([0.0, 1e-3, 0.7]), 3e-5
    k = np.array([-40, 0, 90])
    frozen = coefficients.at_patterns(drop, still, still, times)
    np.testing.assert_allclose(frozen.uplink(k, later).reshape(2, 3, 4, 1, 3),
                               np.moveaxis(drop.uplink(k, times + later), 0, 1), rtol=1e-9)  # fmt: skip
    np.testing.assert_allclose(frozen.downlink(k, later).reshape(2, 3, 4, 1, 3),
                               np.moveaxis(drop.downlink(k, times + later), 0, 1), rtol=1e-9)  # fmt: skip


@pytest.mark.parametrize("name", ["bidirectional-13", "bidirectional-14"])
def test_summaries_state_their_parameters_and_are_drawn(name, agreement, twice):
    configuration, arrays = agreement if name == "bidirectional-13" else twice
    figure = registry.figure(name)
    summary = figure.summarise(configuration, arrays)
    assert name in experiments.names()
    assert f"{TRIALS} trials" in summary["caption"]
    assert "30 dBm" in summary["caption"]
    drawn = getattr(plotting, figure.plot)({**summary, "seed": 1})
    assert [axes.get_xlabel() for axes in drawn.axes][:2] == ["time [s]"] * 2
    if name == "bidirectional-14":
        assert [line for line in drawn.axes[2].get_lines() if line.get_label() == "2"]


def test_trials_do_not_depend_on_their_neighbours():
    for name in ("bidirectional-13", "bidirectional-14"):
        configuration, together = chunk(name, 3, points=5)
        alone = registry.figure(name).trial_chunk(configuration, np.random.SeedSequence(1).spawn(3)[2:])
        for key, values in together.items():
            np.testing.assert_allclose(values[2:], alone[key], rtol=1e-7, atol=1e-17)
