# SPDX-License-Identifier: GPL-3.0-or-later
"""Gains between the antennas of an array, with errors and through amplifiers, for the tests of its calibration."""

import numpy as np
from gnuradio.dmimo.core import metrics
from gnuradio.dmimo.core.amplifier_model import amplify
from gnuradio.dmimo.simulation.coupling import CouplingLaw, PlanarArray


def complex_normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def chains(rng, *shape, spread_db=1.0):
    return 10 ** (spread_db * rng.normal(size=shape) / 20) * np.exp(2j * np.pi * rng.random(shape))


def flat(rng, num_ports):
    """Reciprocal coupling of equal strength and random phase."""
    phase = np.triu(rng.uniform(-np.pi, np.pi, (num_ports, num_ports)), 1)
    h = np.exp(1j * (phase + phase.T))
    np.fill_diagonal(h, 0.0)
    return h


def array_gains(rng, rows=4, columns=25, spread_db=1.0, **law):
    """g, c and h of a planar array whose chains have the spread."""
    h = CouplingLaw(perturbation_db=-10.0, **law).matrix(PlanarArray(rows, columns), rng)
    t, r = chains(rng, 2, rows * columns, spread_db=spread_db)
    return r[:, None] * h * t, t / r, h


def measured(rng, gains, variance, num_trials):
    """Gains (trials, M, M) with the error variance (scalar or (M, M)) of each link."""
    noisy = gains + np.sqrt(variance) * complex_normal(rng, num_trials, *gains.shape)
    index = np.arange(len(gains))
    noisy[:, index, index] = 0.0
    return noisy


def received(rng, gains, coefficients, pilots, noise_var=0.0):
    """y (M, M, K) through the amplifiers (M, P), receiver first."""
    y = gains[:, :, None] * amplify(pilots, coefficients)
    return y + np.sqrt(noise_var) * complex_normal(rng, *y.shape)


def assert_mean(samples, expected, num_errors=4.0):
    mean, error = metrics.mean_and_standard_error(samples)
    assert np.all(np.abs(mean - expected) < num_errors * error), (mean, expected, error)
