# SPDX-License-Identifier: GPL-3.0-or-later
"""Metrics against closed forms; intervals against SciPy and their own coverage."""

import numpy as np
import pytest
from gnuradio.dmimo.core import metrics
from scipy import stats


def complex_normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def test_alignment_error_is_the_squared_sine_of_the_angle():
    angle = np.array([0.0, 1e-9, 1e-4, 0.3, np.pi / 2])
    c = np.array([1.0, 0.0])
    c_hat = np.stack([np.cos(angle), 1j * np.sin(angle)], axis=-1)
    np.testing.assert_allclose(metrics.alignment_error(c_hat, c), np.sin(angle) ** 2, rtol=1e-12)


def test_alignment_error_ignores_a_common_factor_of_either_argument():
    rng = np.random.default_rng(1)
    c, c_hat = complex_normal(rng, 5, 4), complex_normal(rng, 5, 4)
    expected = 1 - np.abs(np.einsum("bm,bm->b", c.conj(), c_hat)) ** 2 / (
        np.einsum("bm,bm->b", c, c.conj()).real * np.einsum("bm,bm->b", c_hat, c_hat.conj()).real
    )
    np.testing.assert_allclose(metrics.alignment_error((2 - 3j) * c_hat, 0.1j * c), expected, rtol=1e-12)


def test_phase_error_is_the_rms_for_small_errors_and_ignores_magnitudes_and_common_phase():
    rng = np.random.default_rng(2)
    c = complex_normal(rng, 10000)
    error = 1e-3 * rng.normal(size=10000)
    c_hat = (2 - 1j) * c * rng.gamma(3.0, size=10000) * np.exp(1j * error)
    assert metrics.phase_error(c_hat, c) == pytest.approx(error.std(), rel=1e-4)


def test_phase_error_of_a_wrapped_normal_is_its_standard_deviation():
    rng = np.random.default_rng(3)
    error = 1.2 * rng.normal(size=200000)
    # Relative standard error of the estimate about 0.5 %: tolerance of 4.
    assert metrics.phase_error(np.exp(1j * error), np.ones(200000)) == pytest.approx(1.2, rel=0.02)


def test_phase_error_is_zero_for_equal_vectors():
    c = complex_normal(np.random.default_rng(4), 7)
    assert metrics.phase_error(1j * c, c) < 1e-7


def test_coherent_gain_is_the_number_of_equal_terms_in_phase():
    h = np.exp(1j * np.arange(6.0))
    assert metrics.coherent_gain(h.conj(), h) == pytest.approx(6.0)


def test_coherent_gain_averages_to_one_over_random_phases():
    rng = np.random.default_rng(5)
    h, w = complex_normal(rng, 5), complex_normal(rng, 5)
    gain = metrics.coherent_gain(w * np.exp(2j * np.pi * rng.random((40000, 5))), h)
    mean, error = metrics.mean_and_standard_error(gain)
    assert abs(mean - 1.0) < 4 * error


def test_coherent_gain_of_grouped_ports_keeps_the_phases_inside_a_node():
    rng = np.random.default_rng(6)
    h, w = complex_normal(rng, 4), complex_normal(rng, 4)
    node_of_port = np.array([1, 0, 1, 2])
    # The mean over random node phases, by brute force.
    turns = np.exp(2j * np.pi * rng.random((100000, 3)))[:, node_of_port]
    mean, error = metrics.mean_and_standard_error(np.abs((turns * w * h).sum(axis=1)) ** 2)
    ours = np.abs((w * h).sum()) ** 2 / metrics.coherent_gain(w, h, node_of_port=node_of_port)
    assert abs(ours - mean) < 4 * error


def test_mean_interval_equals_scipy():
    x = np.random.default_rng(7).normal(size=(20, 3))
    got = metrics.mean_interval(x, confidence=0.9)
    expected = stats.t.interval(0.9, 19, loc=x.mean(axis=0), scale=stats.sem(x, axis=0))
    np.testing.assert_allclose((got.lower, got.upper), expected)


def test_ratio_interval_covers_the_true_ratio_at_its_confidence():
    rng = np.random.default_rng(8)
    runs = 4000
    y = rng.gamma(2.0, 0.5, size=(60, runs))
    x = 0.7 * y + 0.3 * rng.gamma(2.0, 0.5, size=(60, runs))
    got = metrics.ratio_of_means_interval(x, y, confidence=0.9)
    covered = np.mean((got.lower < 1.0) & (got.upper > 1.0))
    # Standard error 0.005; skewed data cost about a percent.
    assert 0.87 < covered < 0.92


def test_ratio_interval_is_unbounded_when_the_denominator_may_be_zero():
    rng = np.random.default_rng(9)
    y = rng.normal(size=10)
    got = metrics.ratio_of_means_interval(1.0 + 0.1 * rng.normal(size=10), y - y.mean() + 1e-3)
    assert got.lower == -np.inf
    assert got.upper == np.inf


def test_rate_interval_equals_scipy_and_is_sane_at_the_ends():
    expected = stats.binomtest(7, 50).proportion_ci(0.95, method="wilson")
    got = metrics.rate_interval(7, 50)
    assert (got.lower, got.upper) == pytest.approx((expected.low, expected.high))
    assert metrics.rate_interval(0, 50).lower == 0.0
    assert 0.0 < metrics.rate_interval(0, 50).upper < 0.1
    assert metrics.rate_interval(50, 50).upper == 1.0


@pytest.mark.parametrize(
    "call",
    [
        lambda: metrics.mean_interval([1.0]),
        lambda: metrics.mean_interval([1.0, 2.0], confidence=1.0),
        lambda: metrics.rate_interval(3, 2),
        lambda: metrics.rate_interval(0, 0),
    ],
)
def test_bad_arguments_raise(call):
    with pytest.raises(ValueError, match=r"trials|confidence"):
        call()
