# SPDX-License-Identifier: GPL-3.0-or-later
"""Curves of amplifiers and predistorters, held against closed forms and against what a node really sends."""

import numpy as np
import pytest
from gnuradio.dmimo.core import predistortion as dpd
from gnuradio.dmimo.core.memory_polynomial import predistort_with_memory
from gnuradio.dmimo.linearization_curves import curves

PEAK = 2.0
KAPPA = np.array([-0.03 + 0.02j, -0.05 - 0.04j, 0.02 + 0.01j])
MEMORY = np.array([[[1, -0.04 + 0.02j], [0.1 - 0.06j, 0.01j]], [[1, -0.03 - 0.01j], [-0.08j, -0.005]]])


def identify(coefficients, noise_var=0.0):
    """Identification of amplifiers (ports, P) or (ports, L, P) from what each port hears of each."""
    rng = np.random.default_rng(2)
    coefficients = np.asarray(coefficients, complex)
    taps = coefficients.reshape(len(coefficients), -1, coefficients.shape[-1])
    depth, count = taps.shape[1], len(taps)
    pilots = dpd.design_pilots(200, "uniform", peak=PEAK, backoff_db=6.0, rng=rng)
    sent = np.zeros((count, pilots.size), complex)
    for delay in range(depth):
        past = np.concatenate([np.zeros(delay), pilots])[: pilots.size]
        sent += sum(taps[:, delay, p, None] * past * np.abs(past) ** (2 * p) for p in range(taps.shape[2]))
    y = np.exp(2j * np.pi * rng.random((count, count, 1))) * sent
    y += np.sqrt(noise_var / 2) * (rng.standard_normal(y.shape) + 1j * rng.standard_normal(y.shape))
    return dpd.identify_amplifiers(dpd.pilot_statistics(y, pilots, order=2 * taps.shape[2] - 1, memory_depth=depth))


def third_order(kappa=KAPPA):
    return np.stack([np.ones_like(kappa), kappa], axis=-1)


def complex_gain(found, prefix=""):
    return 10 ** (found[f"{prefix}gain_db"] / 20) * np.exp(1j * found[f"{prefix}phase_rad"])


def test_amplitudes_are_equal_steps_up_to_the_largest_pilot():
    amplitude = 10 ** (curves({"ap1": identify(third_order())}, points=8)["amplitude_db"] / 20)
    assert amplitude == pytest.approx(PEAK * np.arange(1, 9) / 8)


def test_amplifiers_have_the_gain_and_phase_of_their_polynomial():
    found = curves({"ap1": identify(third_order())})
    power = 10 ** (found["amplitude_db"] / 10)
    assert np.abs(complex_gain(found) - (1 + KAPPA[:, None] * power)).max() < 1e-9
    # By hand: at amplitude 2 the first has 1 + 4 (-0.03 + 0.02j) = 0.88 + 0.08j.
    assert found["gain_db"][0, -1] == pytest.approx(10 * np.log10(0.88**2 + 0.08**2))
    assert found["phase_rad"][0, -1] == pytest.approx(np.arctan2(0.08, 0.88))


def test_predistorters_solve_the_cubic_of_a_third_order_amplifier():
    found = curves({"ap1": identify(third_order())}, points=40)
    power = 10 ** (found["amplitude_db"] / 10)
    for kappa, sent in zip(KAPPA, complex_gain(found, "predistorter_"), strict=True):
        for wanted, gain in zip(power, sent, strict=True):
            roots = np.roots([np.abs(kappa) ** 2, 2 * kappa.real, 1, -wanted])
            u = min(root.real for root in roots if abs(root.imag) < 1e-9 and root.real > 0)
            if u < 0.9 * PEAK**2:
                assert gain == pytest.approx(1 / (1 + kappa * u), abs=1e-9)


def test_what_an_amplifier_cannot_reach_is_sent_at_its_limit():
    found = curves({"ap1": identify(third_order())})
    sent = 10 ** ((found["amplitude_db"] + found["predistorter_gain_db"]) / 20)
    assert sent[0, -1] == pytest.approx(PEAK)  # gain below 1: the largest pilot is the limit
    assert sent[2, -1] < PEAK - 0.05  # gain above 1
    last = found["amplitude_db"] > 20 * np.log10(PEAK) - 0.3
    assert np.ptp(sent[0, last]) < 1e-9


def test_ports_of_several_access_points_follow_each_other():
    one, two = identify(third_order(KAPPA[:2])), identify(third_order(KAPPA[[2, 0, 1]]))
    found = curves({"ap1": one, "ap2": two}, points=16)
    power = 10 ** (found["amplitude_db"] / 10)
    assert np.abs(complex_gain(found) - (1 + KAPPA[[0, 1, 2, 0, 1], None] * power)).max() < 1e-9


def test_refused_predistorters_do_nothing():
    noisy = identify(third_order(1e-3 * KAPPA), noise_var=10.0)
    assert noisy.refused.all()
    found = curves({"ap1": noisy})
    assert np.abs(complex_gain(found, "predistorter_") - 1).max() < 1e-12


def test_with_memory_they_are_what_constant_signals_meet():
    found = curves({"ap1": identify(MEMORY)}, points=16)
    amplitude = 10 ** (found["amplitude_db"] / 20)
    linear, cubic = MEMORY.sum(axis=1).T[..., None]
    assert np.abs(complex_gain(found) - (1 + cubic / linear * amplitude**2)).max() < 1e-6
    inside = amplitude < 0.8 * PEAK
    constant = np.broadcast_to(amplitude[inside, None], (2, inside.sum(), 200))
    settled = predistort_with_memory(constant, MEMORY[:, None]).samples[..., -1]
    assert np.abs(complex_gain(found, "predistorter_")[:, inside] - settled / amplitude[inside]).max() < 1e-6


def test_nothing_identified_is_nothing_to_plot():
    assert curves({}) == {}
