# SPDX-License-Identifier: GPL-3.0-or-later
from fractions import Fraction

import numpy as np
import pytest
from gnuradio.dmimo.core.carrier_model import CarrierModel
from scipy.integrate import solve_ivp


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


def test_the_frequency_prior_is_that_of_an_unknown_mean_and_a_stationary_wander():
    np.testing.assert_allclose(CarrierModel(0.0, 0.7).frequency_prior([2.0, 3.0]),
                               [[[4.49, 4.0], [4.0, 4.0]], [[9.49, 9.0], [9.0, 9.0]]], rtol=1e-14)


@pytest.mark.parametrize("offset", [1e-3, 1.0, 1e6])
@pytest.mark.parametrize("std", [1e-9, 1e-3, 10.0, 1e7])
@pytest.mark.parametrize("drift", [0.0, 1e-3, 0.05])
def test_a_measured_frequency_leaves_the_covariance_of_exact_arithmetic(offset, std, drift):
    a, d, v = (Fraction(x) ** 2 for x in (offset, drift, std))
    # [f, m] minus its covariance with the measurement, squared, over the variance of the measurement.
    prior = [[a + d, a], [a, a]]
    exact = [[prior[i][j] - prior[i][0] * prior[j][0] / (a + d + v) for j in range(2)] for i in range(2)]
    found = CarrierModel(0.0, drift).frequency_prior(offset, std)
    np.testing.assert_allclose(found, np.array(exact, float), rtol=1e-13)
