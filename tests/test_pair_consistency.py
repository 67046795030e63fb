# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether pairs agree on a calibration: how often noise alone is suspected, and what is not missed."""

import numpy as np
import pytest
from coupled_arrays import array_gains, complex_normal
from gnuradio.dmimo.core.mutual_coupling import all_pairs
from gnuradio.dmimo.core.pair_consistency import TOLERANCE, consistency

NOISE = np.array([1.0, 2.0, 0.5, 1.5, 3.0, 0.7])


def measured(rng, gains, scale):
    noisy = gains + np.sqrt(scale * NOISE)[:, None] * complex_normal(rng, 6, 6)
    np.fill_diagonal(noisy, 0.0)
    return noisy


@pytest.mark.parametrize("snr_db", [-3, 10, 50])
def test_what_is_left_is_gamma_at_any_snr(snr_db):
    totals, agreed = [], []
    for trial in range(400):
        rng = np.random.default_rng([trial, 1])
        gains, _, _ = array_gains(rng, 2, 3, spread_db=3.0)
        scale = 10 ** (-snr_db / 10) * np.min(np.abs(gains[~np.eye(6, dtype=bool)]) ** 2 / NOISE.repeat(5))
        noisy = measured(rng, gains, scale)
        found = consistency(noisy, all_pairs(noisy, noise_var=scale * NOISE), scale * NOISE)
        totals.append(10 * found.excess)
        agreed.append(found.agrees)
    # Gamma(10), 15 pairs less 5 coefficients: mean 10, variance 10.
    mean, error = np.mean(totals), np.std(totals) / np.sqrt(len(totals))
    assert abs(mean - 10) < 4 * error
    assert np.mean(agreed) >= 1 - 3 / len(agreed)


@pytest.mark.parametrize("kind", ["not reciprocal", "moved", "compressed"])
def test_pairs_that_contradict_each_other_are_found_with_the_port_at_fault(kind):
    rng = np.random.default_rng(2)
    gains, _, h = array_gains(rng, 2, 3)
    scale = 1e-4 * np.min(np.abs(gains[~np.eye(6, dtype=bool)]) ** 2)
    wrong = gains.copy()
    if kind == "not reciprocal":
        wrong[4] *= 1 + 0.3 * complex_normal(rng, 6)
    elif kind == "moved":
        wrong[4, :3] *= np.exp(0.5j)  # halfway through
    else:
        wrong[4] *= 1 - 0.5 * np.abs(wrong[4]) / np.abs(wrong[4]).max()  # the more, the louder
    noisy = measured(rng, wrong, scale)
    found = consistency(noisy, all_pairs(noisy, noise_var=scale * NOISE), scale * NOISE)
    assert not found.agrees
    assert found.excess > 5
    assert np.argmax(found.port_excess) == 4
    fine = measured(rng, gains, scale)
    assert consistency(fine, all_pairs(fine, noise_var=scale * NOISE), scale * NOISE).agrees


def test_known_errors_of_the_ports_and_the_tolerance_are_allowed_for():
    rng = np.random.default_rng(5)
    gains, _, _ = array_gains(rng, 2, 3)
    tiny = np.full(6, 1e-12 * np.abs(gains).max() ** 2)
    # Receivers that see each sender a little differently, as amplifiers that are not quite linear make them.
    wrong = gains * (1 + 1e-2 * complex_normal(rng, 6, 6))
    c = all_pairs(wrong, noise_var=tiny)
    assert not consistency(wrong, c, tiny).agrees
    assert consistency(wrong, c, tiny, port_variance=np.full(6, 1e-4)).agrees
    nearly = gains * (1 + 0.3 * np.sqrt(TOLERANCE) * complex_normal(rng, 6, 6))
    assert consistency(nearly, all_pairs(nearly, noise_var=tiny), tiny).agrees


def test_two_ports_and_missing_pairs_do_not_count():
    rng = np.random.default_rng(6)
    gains, _, _ = array_gains(rng, 1, 2)
    assert consistency(gains, np.array([1.0, 1j]), 1e-9).agrees
    gains, c, _ = array_gains(rng, 2, 3)
    gains[1, 2] = 0.0
    assert consistency(gains, c / c[0], np.full(6, 1e-9)).agrees
