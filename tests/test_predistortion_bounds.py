# SPDX-License-Identifier: GPL-3.0-or-later
"""Bounds, pilot designs and predicted distortion against closed forms and independent computations."""

import numpy as np
import pytest
from gnuradio.dmimo.core import predistortion as dpd
from gnuradio.dmimo.core import predistortion_bounds as bounds
from scipy.integrate import trapezoid

KAPPA = -0.15 + 0.08j


def test_bound_is_the_schur_complement_of_the_whole_fisher_information():
    rng = np.random.default_rng(1)
    pilots, c = dpd.design_pilots(40, rng=rng), np.array([1.0, KAPPA, 0.03 + 0.02j])
    gains, s = rng.standard_normal((5, 1)) + 1j * rng.standard_normal((5, 1)), rng.uniform(0.5, 2, 5)
    # Mean of receiver i, sample k: g_i F(x_k). Derivatives by the 5 gains and by the two coefficients, whitened.
    output = dpd.amplify(pilots, c)
    by_gain = np.einsum("ij,k->ikj", np.eye(5), output)
    by_kappa = gains[:, :, None] * (pilots[:, None] * np.abs(pilots[:, None]) ** [2, 4])
    jacobian = (np.concatenate([by_gain, by_kappa], axis=-1) / np.sqrt(s)[:, None, None]).reshape(-1, 7)
    whole = np.linalg.inv(jacobian.conj().T @ jacobian)[5:, 5:]
    energy = dpd.gain_energy(gains, s)
    np.testing.assert_allclose(dpd.coefficient_crlb(c, pilots, energy)[0], whole, rtol=1e-8)


def test_best_weights_have_the_most_gain_energy_and_phases_cancel_in_an_average():
    gains, s = np.array([[1.0], [-1.0], [0.5]]), np.array([1.0, 1.0, 0.25])
    assert dpd.gain_energy(gains, s) == pytest.approx([3.0])
    assert dpd.gain_energy(gains, s, weights=gains / s[:, None]) == pytest.approx([3.0])
    assert dpd.gain_energy(gains, s, weights=np.ones((3, 1))) == pytest.approx([0.25 / 2.25])


@pytest.mark.parametrize(
    ("design", "information"), [("uniform", 1 / 7 - 3 / 25), ("two_level", 1 / 16), ("data_like", None)]
)
def test_information_of_the_designs_has_its_closed_form(design, information):
    if information is None:
        # Moments of v = |x|^2 / mean power, exponential and limited to L: E[min(v, L)^n] = integral of n v^(n-1) e^-v.
        limit = 10**0.8
        v = np.linspace(0, limit, 200_001)
        moment = [trapezoid(n * v ** (n - 1) * np.exp(-v), v) for n in (1, 2, 3)]
        information = (moment[2] - moment[1] ** 2 / moment[0]) / limit**3
    num = 30_000
    amplitudes = dpd.pilot_amplitudes(num, design)
    assert amplitudes.max() == 1.0
    assert bounds.pilot_information(amplitudes, [1.0, 0.0])[0, 0].real / num == pytest.approx(information, rel=2e-3)


def test_two_levels_are_the_best_design_for_third_order():
    assert bounds.best_two_level_information() == pytest.approx(1 / 16)
    assert bounds.best_two_level_information(2.0) == pytest.approx(4.0)
    levels, share = np.meshgrid(np.linspace(0.01, 0.99, 99), np.linspace(0.01, 0.99, 99))
    moment = [share + (1 - share) * levels**n for n in (2, 4, 6)]
    information = moment[2] - moment[1] ** 2 / moment[0]
    assert information.max() == pytest.approx(1 / 16, rel=1e-3)
    assert levels.ravel()[information.argmax()] == pytest.approx(0.5, abs=0.011)
    # No three levels are better.
    rng = np.random.default_rng(2)
    amplitude, weight = rng.uniform(size=(20_000, 3)), rng.dirichlet(np.ones(3), 20_000)
    moment = [np.sum(weight * amplitude**n, axis=1) for n in (2, 4, 6)]
    assert np.max(moment[2] - moment[1] ** 2 / moment[0]) <= 1 / 16


def test_predicted_distortion_is_that_of_samples_with_erring_coefficients():
    rng = np.random.default_rng(3)
    c = np.array([1.0, KAPPA, -0.05])
    root = 1e-2 * (rng.standard_normal((2, 2)) + 1j * rng.standard_normal((2, 2)))
    covariance = root @ root.conj().T
    amplitudes = dpd.data_amplitudes(300, backoff_db=10.0)
    draws = 4000
    white = (rng.standard_normal((draws, 2)) + 1j * rng.standard_normal((draws, 2))) / np.sqrt(2)
    estimate = np.concatenate([np.ones((draws, 1)), c[1:] + white @ root.T], axis=-1)
    reach = dpd.invertible_range(c, max_amplitude=1.0).output_amplitude
    x = np.where(amplitudes <= 0.95 * reach, amplitudes, 0.0)
    output = dpd.amplify(dpd.predistort(np.tile(x, (draws, 1)), estimate), c)
    gain = np.sum(output * x, axis=-1) / np.sum(x**2)
    actual = np.sum(np.abs(output - gain[:, None] * x) ** 2, axis=-1) / np.sum(x**2)
    predicted = bounds.distortion_with(c, covariance, x)
    # To first order in the error; the Monte-Carlo error is about 2 %.
    assert actual.mean() == pytest.approx(predicted, rel=0.1)
    raw = dpd.amplify(amplitudes, c)
    gain = np.sum(raw * amplitudes) / np.sum(amplitudes**2)
    expected = np.sum(np.abs(raw - gain * amplitudes) ** 2) / np.sum(amplitudes**2)
    assert bounds.distortion_without(c, amplitudes) == pytest.approx(expected, rel=1e-9)


def test_distortion_matrix_is_a_quadratic_form_without_the_gain():
    rng = np.random.default_rng(4)
    wanted = rng.uniform(size=50)
    inputs = wanted * np.exp(2j * rng.uniform(size=50))
    delta = rng.standard_normal(2) + 1j * rng.standard_normal(2)
    error = delta @ np.stack([inputs * np.abs(inputs) ** 2, inputs * np.abs(inputs) ** 4])
    error = error - wanted * np.sum(wanted * error) / np.sum(wanted**2)
    matrix = bounds.distortion_matrix(wanted, inputs, 3)
    expected = np.sum(np.abs(error) ** 2) / np.sum(wanted**2)
    assert (delta.conj() @ matrix @ delta).real == pytest.approx(expected, rel=1e-12)


def test_amplitudes_beyond_the_range_do_not_count():
    c, covariance = np.array([1.0, -0.3 + 0.1j]), np.array([[1e-3]])
    reach = dpd.invertible_range(c, max_amplitude=0.9).output_amplitude
    amplitudes = np.linspace(0.01, 1.0, 80)
    inside = amplitudes[amplitudes <= reach]
    assert len(inside) < 70
    expected = bounds.distortion_with(c, covariance, inside, max_amplitude=0.9)
    assert bounds.distortion_with(c, covariance, amplitudes, max_amplitude=0.9) == pytest.approx(expected, rel=1e-12)


def test_data_amplitudes_have_the_stated_back_off():
    amplitudes = dpd.data_amplitudes(200_000, peak=2.0, backoff_db=12.0)
    limited = 1 - np.exp(-(10**1.2))
    assert np.mean(amplitudes**2) == pytest.approx(4 / 10**1.2 * limited, rel=1e-3)
    assert dpd.data_amplitudes(200_000, peak=2.0, backoff_db=6.0).max() == 2.0


def test_poor_designs_raise():
    with pytest.raises(ValueError, match="amplitudes"):
        bounds.crlb_from_amplitudes(5, dpd.pilot_amplitudes(30, "two_level"), 1.0)
    for arguments, word in [((1,), "num_pilots"), ((9, "three"), "design")]:
        with pytest.raises(ValueError, match=word):
            dpd.pilot_amplitudes(*arguments)
    with pytest.raises(ValueError, match="peak"):
        dpd.pilot_amplitudes(9, peak=0.0)
    plan = bounds.crlb_from_amplitudes(3, dpd.pilot_amplitudes(30, "two_level"), 2.0)
    assert plan[0, 0].real == pytest.approx(16 / 60)
