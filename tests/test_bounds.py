# SPDX-License-Identifier: GPL-3.0-or-later
"""Bounds against the Fisher information of the full model, psi included, by finite differences."""

import numpy as np
import pytest
from gnuradio.dmimo.core import bounds
from gnuradio.dmimo.core.graph import DisconnectedGraphError


def complex_normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def full_information_bound(mean, num_wanted, parameters, noise):
    """Pseudo-inverse of the Fisher information of all real parameters, first num_wanted rows and columns.

    mean(parameters) is the complex noiseless measurement, noise the variance of each element.
    """
    step = 1e-6
    columns = []
    for k in range(len(parameters)):
        move = np.zeros(len(parameters))
        move[k] = step
        columns.append((mean(parameters + move) - mean(parameters - move)) / (2 * step))
    jacobian = np.array(columns).T / np.sqrt(noise)[:, None]
    information = 2 * np.real(jacobian.conj().T @ jacobian)
    # The nuisance psi is eliminated by its Schur complement; what is left has only the gauge as null space.
    wanted, nuisance = slice(None, num_wanted), slice(num_wanted, None)
    a, b, d = information[wanted, wanted], information[wanted, nuisance], information[nuisance, nuisance]
    return np.linalg.pinv(a - b @ np.linalg.solve(d, b.T), rcond=1e-8, hermitian=True)


def problem(rng, num_ports=4, num_components=3):
    c = np.exp(0.4 * complex_normal(rng, num_ports) + 2j * np.pi * rng.random(num_ports))
    psi = complex_normal(rng, num_ports, num_ports, num_components)
    noise = rng.uniform(0.1, 0.5, num_ports)
    return c, psi, noise


def energy_matrix(psi, pairs, num_ports):
    out = np.zeros((num_ports, num_ports))
    for k, (i, j) in enumerate(pairs):
        out[i, j] = out[j, i] = np.sum(np.abs(psi[k]) ** 2)
    return out


def test_calibration_bound_equals_that_of_the_full_model():
    rng = np.random.default_rng(1)
    num_ports, pairs = 4, [(0, 1), (0, 2), (1, 2), (2, 3)]
    c, _, noise_var = problem(rng, num_ports)
    psi = complex_normal(rng, len(pairs), 3)
    noise = np.array([[noise_var[i]] * 3 + [noise_var[j]] * 3 for i, j in pairs]).ravel()

    def mean(p):
        x = np.exp(p[:num_ports] + 1j * p[num_ports : 2 * num_ports]) * c
        q = psi + (p[2 * num_ports :: 2] + 1j * p[2 * num_ports + 1 :: 2]).reshape(psi.shape)
        return np.concatenate([np.concatenate([x[j] * q[k], x[i] * q[k]]) for k, (i, j) in enumerate(pairs)])

    full = full_information_bound(mean, 2 * num_ports, np.zeros(2 * num_ports + 2 * psi.size), noise)
    mask = np.zeros((num_ports, num_ports), bool)
    for i, j in pairs:
        mask[i, j] = mask[j, i] = True
    energy = np.where(mask, energy_matrix(psi, pairs, num_ports), np.nan)
    ours = bounds.calibration_crlb(c, energy, noise_var, mask=mask)
    # Magnitudes and phases have half of the complex variance each and do not couple.
    np.testing.assert_allclose(full[:num_ports, :num_ports], ours / 2, atol=1e-6)
    np.testing.assert_allclose(full[num_ports:, num_ports:], ours / 2, atol=1e-6)
    np.testing.assert_allclose(full[:num_ports, num_ports:], 0.0, atol=1e-6)
    held = bounds.calibration_crlb(c, energy, noise_var, mask=mask, reference=2)
    np.testing.assert_allclose(held[2], 0.0, atol=1e-15)
    assert held[0, 0] == pytest.approx(ours[0, 0] + ours[2, 2] - 2 * ours[0, 2])


def test_joint_bound_equals_that_of_the_full_model_with_frequencies_and_delays():
    """Four ports on three nodes; each one-way transmission has its own time, psi its own value per subcarrier."""
    rng = np.random.default_rng(2)
    nodes, reference = np.array([0, 1, 1, 2]), 0
    pairs = [(0, 1), (0, 2), (0, 3), (1, 3)]
    num_q, nu = 3, np.array([-0.7, 0.1, 0.9])
    c, _, noise_var = problem(rng)
    psi = complex_normal(rng, len(pairs), num_q, len(nu))
    time = rng.normal(size=(len(pairs), num_q, 2))  # of reception by i and by j
    noise = np.array([noise_var[i] if way == 0 else noise_var[j] for i, j in pairs for way in (0, 1) for _ in range(9)])
    free_nodes, others = [1, 2], [1, 2, 3]

    def mean(p):
        x = c.copy()
        x[others] = c[others] * np.exp(p[:3] + 1j * p[3:6])
        f, d = np.zeros(3), np.zeros(4)
        f[free_nodes], d[others] = p[6:8], p[8:11]
        q = psi + (p[11::2] + 1j * p[12::2]).reshape(psi.shape)
        out = []
        for k, (i, j) in enumerate(pairs):
            # LO phases: theta_j - theta_i in what i receives, theta_i - theta_j in what j receives.
            to_i = np.exp(2j * np.pi * (f[nodes[j]] - f[nodes[i]]) * time[k, :, 0])[:, None]
            to_j = np.exp(2j * np.pi * (f[nodes[i]] - f[nodes[j]]) * time[k, :, 1])[:, None]
            out.append((x[j] * np.exp(-2j * np.pi * nu * d[j]) * q[k] * to_i).ravel())
            out.append((x[i] * np.exp(-2j * np.pi * nu * d[i]) * q[k] * to_j).ravel())
        return np.concatenate(out)

    full = full_information_bound(mean, 11, np.zeros(11 + 2 * psi.size), noise)
    moments = np.zeros((6, 4, 4))
    for k, (i, j) in enumerate(pairs):
        t = time[k].mean(axis=1)[:, None]
        w = bounds.edge_information(c, np.ones((4, 4)), noise_var)[i, j] * np.abs(psi[k]) ** 2
        sums = [np.sum(w * m) for m in (1, t, nu, t * t, t * nu, nu * nu)]
        moments[:, i, j] = moments[:, j, i] = sums
    ours = bounds.joint_crlb(moments, node_of_port=nodes, reference=reference)
    np.testing.assert_allclose(ours.phase_var[others], np.diag(full)[3:6], rtol=1e-5)
    np.testing.assert_allclose(ours.frequency_var[[1, 3]], np.diag(full)[6:8], rtol=1e-5)
    np.testing.assert_allclose(ours.frequency_var[1], ours.frequency_var[2])
    np.testing.assert_allclose(ours.delay_var[others], np.diag(full)[8:11], rtol=1e-5)
    np.testing.assert_allclose(ours.phase_frequency_cov[[1, 3]], [full[3, 6], full[5, 7]], rtol=1e-5)
    expected = full[:3, :3] + full[3:6, 3:6]
    np.testing.assert_allclose(ours.covariance[np.ix_(others, others)], expected, rtol=1e-5)
    np.testing.assert_array_equal(ours.covariance[reference], 0.0)


def test_alignment_bound_is_the_trace_over_m_for_unit_modulus():
    rng = np.random.default_rng(3)
    c = np.exp(2j * np.pi * rng.random((5, 6)))
    energy = rng.gamma(3.0, size=(5, 6, 6))
    energy += np.swapaxes(energy, 1, 2)
    trace = np.trace(bounds.calibration_crlb(c, energy, 0.1), axis1=1, axis2=2)
    np.testing.assert_allclose(bounds.alignment_error_crlb(c, energy, 0.1), trace / 6)


def test_alignment_bound_is_the_mean_of_the_metric_for_small_gaussian_errors():
    from gnuradio.dmimo.core import metrics

    rng = np.random.default_rng(4)
    c, _, noise_var = problem(rng, 5)
    energy = rng.gamma(3.0, size=(5, 5))
    energy = 1e4 * (energy + energy.T)
    covariance = bounds.calibration_crlb(c, energy, noise_var)
    values, vectors = np.linalg.eigh(covariance)
    x = complex_normal(rng, 40000, 5) * np.sqrt(np.maximum(values, 0)) @ vectors.T
    mean, error = metrics.mean_and_standard_error(metrics.alignment_error(c * np.exp(x), c))
    assert abs(mean - bounds.alignment_error_crlb(c, energy, noise_var)) < 4 * error


def test_bound_does_not_depend_on_how_gain_is_split_between_c_and_psi():
    rng = np.random.default_rng(5)
    c, _, noise_var = problem(rng, 4)
    energy = rng.gamma(3.0, size=(4, 4))
    energy += energy.T
    np.testing.assert_allclose(
        bounds.alignment_error_crlb(3j * c, energy / 9, noise_var), bounds.alignment_error_crlb(c, energy, noise_var)
    )


def test_noise_correction_is_one_plus_q_over_twice_the_energy():
    plain = bounds.edge_information(np.ones(2), np.full((2, 2), 5.0), 0.5)[0, 1]
    corrected = bounds.edge_information(np.ones(2), np.full((2, 2), 5.0), 0.5, num_components=8)[0, 1]
    assert plain == pytest.approx(5.0 / (2 * 0.5))
    assert corrected == pytest.approx(plain / (1 + 8 * 0.5 / (2 * 5.0)))


def test_noise_corrected_variance_of_one_pair_is_that_of_the_product_with_unequal_noise_and_gain():
    """Phase of sum conj(u) v over many draws of the noise, at an SNR where noise times noise is half of it."""
    rng = np.random.default_rng(6)
    c, noise_var, num_components = np.array([1.0, 2.0j]), np.array([0.4, 0.9]), 400
    psi = np.full(num_components, 0.4)
    u = c[1] * psi + np.sqrt(noise_var[0]) * complex_normal(rng, 20000, num_components)
    v = c[0] * psi + np.sqrt(noise_var[1]) * complex_normal(rng, 20000, num_components)
    phase = np.angle((u.conj() * v).sum(axis=1) * c[1])
    energy = np.full((2, 2), np.sum(psi**2))
    predicted = bounds.calibration_crlb(c, energy, noise_var, num_components=num_components, reference=0)[1, 1] / 2
    plain = bounds.calibration_crlb(c, energy, noise_var, reference=0)[1, 1] / 2
    assert phase.var() == pytest.approx(predicted, rel=0.04)  # standard error 1 %
    assert predicted > 1.3 * plain


def test_unidentifiable_networks_raise():
    energy = np.ones((4, 4))
    mask = np.ones((4, 4), bool)
    mask[:2, 2:] = False
    with pytest.raises(DisconnectedGraphError, match=r"\{0, 1\}, \{2, 3\}"):
        bounds.calibration_crlb(np.ones(4), energy, 1.0, mask=mask)
    with pytest.raises(np.linalg.LinAlgError):  # one midpoint per pair: frequency and phase cannot be told apart
        bounds.joint_crlb(np.array([np.ones((2, 2))] * 6), estimate_delay=False)
