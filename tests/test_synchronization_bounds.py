# SPDX-License-Identifier: GPL-3.0-or-later
"""Bounds against the Fisher information of the full model by finite differences, and against each other."""

import numpy as np
import pytest
from gnuradio.dmimo.core import bounds
from gnuradio.dmimo.core import synchronization_bounds as sync

T = 1e-3 / 14


def complex_normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def information(mean, parameters, covariance):
    """Fisher information of real parameters in a complex Gaussian vector of known covariance (Slepian-Bang)."""
    step = 1e-6
    columns = []
    for k in range(len(parameters)):
        move = np.zeros(len(parameters))
        move[k] = step
        columns.append((mean(parameters + move) - mean(parameters - move)) / (2 * step))
    jacobian = np.array(columns).T
    return 2 * np.real(jacobian.conj().T @ np.linalg.solve(covariance, jacobian))


def channel(rng, num_leader=4, num_follower=3):
    g_e = complex_normal(rng, num_leader, num_follower)
    a = complex_normal(rng, num_follower)
    return g_e, a / np.linalg.norm(a)


def scale(g_e, a, al_b, noise_var, columns):
    """c of the paper's eq. (3) from mean energies, `columns` of the leader's noise for each unit of signal."""
    return 1 / (al_b * np.linalg.norm(g_e @ a) ** 2 + columns * g_e.shape[0] * noise_var)


@pytest.mark.parametrize("returned", ["conjugate", "matched"])
def test_phase_bound_is_that_of_the_full_model(returned):
    """The mean of every received sample, the covariance with the leader's noise in it, amplitude unknown."""
    rng = np.random.default_rng(1)
    g_e, a = channel(rng)
    x = complex_normal(rng, 5)
    energy = np.sum(np.abs(x) ** 2)
    al_a, al_b, noise_var = 1.7, 0.4, 0.3
    # The leader's noise after a matched filter is one column of z, of variance s2 / |x|^2, times x^H.
    ratio = 1.0 if returned == "conjugate" else 1 / energy
    columns = len(x) / energy if returned == "conjugate" else 1 / energy
    c = scale(g_e, a, al_b, noise_var, columns)
    q = g_e.T @ np.conj(g_e)
    if returned == "conjugate":
        covariance = np.kron(np.eye(len(x)), noise_var * (np.eye(3) + c * al_a * q))
    else:
        waveform = np.outer(np.conj(x), x) * ratio
        covariance = np.kron(np.eye(len(x)), noise_var * np.eye(3)) + np.kron(waveform, noise_var * c * al_a * q)

    def mean(p):
        sent = np.outer(q @ np.conj(a), np.conj(x))
        return ((1 + p[1]) * np.exp(1j * p[0]) * np.sqrt(c * al_a * al_b) * sent).T.ravel()

    full = np.linalg.inv(information(mean, np.array([0.4, 0.0]), covariance))
    ours = bounds.phase_offset_crlb(g_e, noise_var, len(x), a=a, leader_gain=al_a, follower_gain=al_b,
                                    power=energy / len(x), returned=returned)
    assert ours == pytest.approx(full[0, 0], rel=1e-6)


def test_closed_form_is_the_general_bound_along_the_best_direction():
    rng = np.random.default_rng(2)
    g_e = complex_normal(rng, 20, 5, 4)
    _, values, right = np.linalg.svd(g_e)
    best, gains = np.conj(right[:, 0]), {"leader_gain": rng.random(20) + 0.2, "follower_gain": rng.random(20) + 0.2}
    for noise_var in (1e-3, 1.0, 30.0):
        for returned in ("conjugate", "matched"):
            general = bounds.phase_offset_crlb(g_e, noise_var, 12, a=best, returned=returned, **gains)
            given = bounds.phase_offset_crlb(g_e, noise_var, 12, returned=returned, **gains)
            closed = bounds.dominant_phase_offset_crlb(values[:, 0] ** 2, noise_var, 12, 5, returned=returned, **gains)
            np.testing.assert_allclose(general, closed, rtol=1e-9)
            np.testing.assert_allclose(given, closed, rtol=1e-9)
            other = complex_normal(rng, 20, 4)
            other /= np.linalg.norm(other, axis=-1, keepdims=True)
            assert np.all(bounds.phase_offset_crlb(g_e, noise_var, 12, a=other, returned=returned, **gains) > closed)
    formula = 0.5 * (1 + values[:, 0] ** 2 / (values[:, 0] ** 2 + 5 * 0.5)) / (
        2 * 12 * values[:, 0] ** 4 / (values[:, 0] ** 2 + 5 * 0.5)
    )
    np.testing.assert_allclose(bounds.phase_offset_crlb(g_e, 0.5, 12), formula)


def test_bound_tends_to_its_high_snr_limit_and_a_matched_return_lowers_it_at_low_snr():
    rng = np.random.default_rng(3)
    lam = np.linalg.svd(complex_normal(rng, 16, 16), compute_uv=False)[0] ** 2
    gains = {"leader_gain": 2.0, "follower_gain": 0.5}
    limit = bounds.high_snr_phase_offset_crlb(lam, 1e-6, 100, **gains)
    assert limit == pytest.approx(1e-6 / (2 * 100 * lam) * (1 / 2.0 + 1 / 0.5))
    for returned in ("conjugate", "matched"):
        bound = bounds.dominant_phase_offset_crlb(lam, 1e-6, 100, 16, returned=returned, **gains)
        assert bound == pytest.approx(limit, rel=1e-5)
    ratios = [bounds.dominant_phase_offset_crlb(lam, s2, 100, 16)
              / bounds.dominant_phase_offset_crlb(lam, s2, 100, 16, returned="matched") for s2 in (1e-3, 1.0, 100.0)]
    assert ratios[0] == pytest.approx(1, abs=1e-3)
    assert ratios[1] > 1.1
    assert ratios[2] > 10


def test_power_and_length_enter_by_energy_at_high_snr():
    rng = np.random.default_rng(4)
    g_e = complex_normal(rng, 3, 4)
    long = bounds.phase_offset_crlb(g_e, 1e-6, 40)
    assert bounds.phase_offset_crlb(g_e, 1e-6, 10, power=4.0) == pytest.approx(long, rel=1e-4)


def test_frequency_bound_is_that_of_the_full_model():
    """Unknown gains at each antenna, complex x, a gap between samples; in Hz."""
    rng = np.random.default_rng(5)
    b, x, noise_var = complex_normal(rng, 3), complex_normal(rng, 6), 0.2
    positions = np.array([0, 1, 2, 40, 41, 47])

    def mean(p):
        gain = p[1:4] + 1j * p[4:]
        return np.outer(gain, x * np.exp(2j * np.pi * (30.0 + p[0]) * T * positions)).ravel()

    # Hz are large beside the other parameters' units: a step of 1e-6 Hz would vanish in rounding.
    def scaled(p):
        return mean(np.concatenate([[1e3 * p[0]], p[1:]]))

    start = np.concatenate([[0.0], b.real, b.imag])
    full = np.linalg.inv(information(scaled, start, noise_var * np.eye(18)))[0, 0] * 1e6
    ours = bounds.frequency_offset_crlb(x, np.sum(np.abs(b) ** 2), noise_var, T, positions=positions)
    assert ours == pytest.approx(full, rel=1e-6)


def test_frequency_bound_is_the_papers_equation_35_in_cycles_per_sample():
    rng = np.random.default_rng(6)
    x, n = rng.normal(size=10), np.arange(1, 11)
    for energy, noise_var in ((3.0, 0.1), (0.7, 2.0)):
        bracket = np.sum(n**2 * x**2) - np.sum(n * x**2) ** 2 / np.sum(x**2)
        paper = noise_var / (8 * np.pi**2 * energy * bracket)
        assert bounds.frequency_offset_crlb(x, energy, noise_var) == pytest.approx(paper)
    # Doubling the length at unit power is 9 dB; at constant energy 6 dB.
    short, long = (bounds.frequency_offset_crlb(np.ones(n), 1.0, 1.0) for n in (500, 1000))
    assert short / long == pytest.approx(8, rel=1e-4)
    assert bounds.frequency_offset_crlb(np.sqrt(2) * np.ones(500), 1.0, 1.0) / long == pytest.approx(4, rel=1e-4)


@pytest.mark.parametrize("returned", ["conjugate", "matched"])
def test_joint_bound_is_that_of_the_full_model_and_does_not_couple_at_the_centroid(returned):
    rng = np.random.default_rng(7)
    g_e, a = channel(rng)
    x = complex_normal(rng, 6)
    energy = np.sum(np.abs(x) ** 2)
    al_a, al_b, noise_var = 0.6, 1.3, 0.3
    n = np.arange(6) - np.sum(np.arange(6) * np.abs(x) ** 2) / energy
    q = g_e.T @ np.conj(g_e)
    ours = bounds.joint_return_crlb(g_e, x, noise_var, T, a=a, leader_gain=al_a, follower_gain=al_b, returned=returned)
    if returned == "conjugate":
        c, turns = scale(g_e, a, al_b, noise_var, len(x) / energy), 2
        covariance = np.kron(np.eye(6), noise_var * (np.eye(3) + c * al_a * q))
    else:
        c, turns = scale(g_e, a, al_b, noise_var, 1 / energy), 1
        covariance = noise_var * np.eye(18)

    def mean(p):
        turn = np.exp(1j * (p[0] + 2 * np.pi * turns * 1e3 * p[1] * n * T))
        return ((1 + p[2]) * np.sqrt(c * al_a * al_b) * np.outer(q @ np.conj(a), np.conj(x) * turn)).T.ravel()

    full = np.linalg.inv(information(mean, np.zeros(3), covariance))
    assert ours.frequency_var == pytest.approx(full[1, 1] * 1e6, rel=1e-5)
    assert abs(full[0, 1]) < 1e-5 * np.sqrt(full[0, 0] * full[1, 1])
    if returned == "conjugate":
        assert ours.phase_var == pytest.approx(full[0, 0], rel=1e-6)
    best = sync.joint_return_crlb(g_e, x, noise_var, T, leader_gain=al_a, follower_gain=al_b, returned=returned)
    assert best.phase_var < ours.phase_var
    assert best.frequency_var < ours.frequency_var


def test_bounds_are_batched_and_name_wrong_arguments():
    rng = np.random.default_rng(8)
    g_e, x, noise_var = complex_normal(rng, 2, 3, 5, 4), complex_normal(rng, 7), rng.random((2, 3)) + 0.1
    whole = bounds.joint_return_crlb(g_e, x, noise_var, T)
    for i in np.ndindex(2, 3):
        one = bounds.joint_return_crlb(g_e[i], x, noise_var[i], T)
        assert one.phase_var == pytest.approx(whole.phase_var[i])
        assert one.frequency_var == pytest.approx(whole.frequency_var[i])
    with pytest.raises(ValueError, match='returned = "amplified"'):
        bounds.phase_offset_crlb(g_e, 0.1, 5, returned="amplified")
    with pytest.raises(ValueError, match=r"g_e has shape \(4,\)"):
        bounds.phase_offset_crlb(g_e[0, 0, 0], 0.1, 5)
    with pytest.raises(ValueError, match="same shape"):
        bounds.frequency_offset_crlb(x, 1.0, 1.0, positions=np.arange(6))
