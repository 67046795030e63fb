# SPDX-License-Identifier: GPL-3.0-or-later
"""Calibration from the pilots that identify the amplifiers: exact without noise, at the bound, through samples."""

import numpy as np
import pytest
from coupled_arrays import array_gains, chains, complex_normal, received
from gnuradio.dmimo.core import metrics
from gnuradio.dmimo.core.amplifier_model import amplify
from gnuradio.dmimo.core.mutual_coupling import (
    all_pairs,
    link_gains,
    link_variance,
    predicted_covariance,
    reference_snr,
    single_stage,
    single_stage_variance,
)
from gnuradio.dmimo.core.predistortion import design_pilots
from gnuradio.dmimo.simulation.amplifiers import draw_amplifiers
from gnuradio.dmimo.simulation.coupling import CouplingLaw, PlanarArray
from gnuradio.dmimo.simulation.network import Network, SimulatedNode
from gnuradio.dmimo.simulation.oscillators import Oscillator
from gnuradio.dmimo.simulation.propagation import Rayleigh


@pytest.mark.parametrize("coefficients", [[1.0, -0.3 + 0.1j], [1.0, -0.2, 0.05j]])
def test_a_single_stage_is_exact_without_noise_and_a_mean_over_the_pilots_is_not(coefficients):
    rng = np.random.default_rng(7)
    gains, c, _ = array_gains(rng, 2, 5)
    order, spread = 2 * len(coefficients) - 1, 1 + 0.3 * complex_normal(rng, 10, 1)
    own = np.hstack([np.ones((10, 1)), spread * coefficients[1:]])
    pilots = design_pilots(30, rng=rng)
    y = received(rng, gains, own, pilots)
    np.testing.assert_allclose(single_stage(y, pilots, order=order), c / c[0], rtol=1e-10)
    np.testing.assert_allclose(link_gains(y, pilots, order=order), gains, rtol=1e-9, atol=1e-15)
    assert metrics.alignment_error(all_pairs(link_gains(y, pilots)), c) > 1e-4
    each = pilots * np.exp(2j * np.pi * rng.random((10, 1)))
    np.testing.assert_allclose(single_stage(received(rng, gains, own, each), each, order=order), c / c[0], rtol=1e-10)
    np.testing.assert_allclose(link_gains(received(rng, gains, own, each), each, order=order), gains, atol=1e-12)


@pytest.mark.parametrize("terms", [2, 3])
def test_single_stage_bound_is_that_of_the_whole_fisher_matrix(terms):
    """Unknown: log c, psi of every pair, kappa of every transmitter; all enter analytically."""
    rng = np.random.default_rng(19)
    num_ports, pilots = 4, design_pilots(8, rng=rng)
    gains, c, _ = array_gains(rng, 2, 2, spread_db=2.0)
    kappa = 0.2 * complex_normal(rng, num_ports, terms - 1)
    own, noise = np.hstack([np.ones((num_ports, 1)), kappa]), rng.uniform(0.5, 2.0, num_ports) * 1e-4
    pairs = [(i, j) for i in range(num_ports) for j in range(i)]
    rows = []
    for number, (i, j) in enumerate(pairs):
        for rx, tx in ((i, j), (j, i)):
            block = np.zeros((len(pilots), num_ports + len(pairs) + num_ports * (terms - 1)), complex)
            signal = gains[rx, tx] * amplify(pilots, own[tx])
            block[:, tx] = block[:, num_ports + number] = signal
            for p in range(1, terms):
                column = num_ports + len(pairs) + tx * (terms - 1) + p - 1
                block[:, column] = gains[rx, tx] * pilots * np.abs(pilots) ** (2 * p)
            rows.append(block / np.sqrt(noise[rx]))
    jacobian = np.vstack(rows)
    scale = np.linalg.norm(jacobian, axis=0)
    # A common factor of c goes into psi: hold c[0].
    held = np.delete(jacobian / scale, 0, axis=1)
    inverse = np.linalg.inv(held.conj().T @ held)[: num_ports - 1, : num_ports - 1]
    expected = (inverse / np.outer(scale[1:num_ports], scale[1:num_ports])).real
    energy = np.sum(np.abs(amplify(pilots, own)) ** 2, axis=-1)
    extra = single_stage_variance(gains, own, pilots, noise)
    got = predicted_covariance(link_variance(gains, noise, energy), port_variance=extra)[1:, 1:]
    np.testing.assert_allclose(got, expected, rtol=1e-6)
    assert np.all(extra > 0)


def test_single_stage_meets_its_bound():
    rng = np.random.default_rng(20)
    gains, c, _ = array_gains(rng, 2, 5)
    own = np.hstack([np.ones((10, 1)), (-0.3 + 0.1j) * (1 + 0.2 * complex_normal(rng, 10, 1))])
    pilots = design_pilots(50, "two_level", rng=rng)
    noise = rng.uniform(0.5, 2.0, 10) * reference_snr(gains, 1.0) / 10
    clean = received(rng, gains, own, pilots)
    y = clean + np.sqrt(noise)[:, None, None] * complex_normal(rng, 600, *clean.shape)
    squares = (np.abs(np.log(single_stage(y, pilots, noise_var=noise) / (c / c[0]))) ** 2)[:, 1:].mean(axis=-1)
    energy = np.sum(np.abs(amplify(pilots, own)) ** 2, axis=-1)
    v, extra = link_variance(gains, noise, energy), single_stage_variance(gains, own, pilots, noise)
    both, pairs = (np.diagonal(predicted_covariance(v, port_variance=p))[1:].mean() for p in (extra, 0.0))
    mean, error = metrics.mean_and_standard_error(squares)
    assert abs(mean / both - 1) < 0.02 + 4 * error / both
    assert both > 1.5 * pairs
    # Each link's own fit pays for the third order once per link instead of once per transmitter.
    linkwise = all_pairs(link_gains(y, pilots, order=3), noise_var=noise)
    alone = (np.abs(np.log(linkwise / (c / c[0]))) ** 2)[:, 1:].mean()
    assert alone > mean + 4 * error


def test_single_stage_with_known_amplifiers_weighs_unequal_pilots_and_meets_the_bound_of_linear_ones():
    rng = np.random.default_rng(24)
    gains, c, _ = array_gains(rng, 2, 4)
    own = np.hstack([np.ones((8, 1)), (-0.3 + 0.1j) * (1 + 0.2 * complex_normal(rng, 8, 1))])
    pilots = np.array([1.0, 0.1] * 4)[:, None] * design_pilots(20, rng=rng)
    noise = reference_snr(gains, 1.0) / 10
    clean = received(rng, gains, own, pilots)
    y = clean + np.sqrt(noise) * complex_normal(rng, 2000, *clean.shape)
    squares = (np.abs(np.log(single_stage(y, pilots, coefficients=own) / (c / c[0]))) ** 2)[:, 1:].mean(axis=-1)
    energy = np.sum(np.abs(amplify(pilots, own)) ** 2, axis=-1)
    bound = np.diagonal(predicted_covariance(link_variance(gains, noise, energy)))[1:].mean()
    mean, error = metrics.mean_and_standard_error(squares)
    assert abs(mean / bound - 1) < 0.02 + 4 * error / bound
    careless = np.abs(np.log(all_pairs(link_gains(y, pilots, coefficients=own)) / (c / c[0])))[:, 1:] ** 2
    assert careless.mean() > mean + 8 * error


def test_a_network_of_coupled_ports_with_amplifiers_is_calibrated_in_one_stage():
    """Through samples: what the ports of an access point hear of one another gives its c = t / r."""
    rng = np.random.default_rng(21)
    num_ports, num = 6, 256
    amplifiers = draw_amplifiers(rng, num_ports, [1.0, -0.3 + 0.05j], spread=0.1, back_off_db=3.0)
    gains = chains(rng, 2, num_ports)
    node = SimulatedNode(
        "ap1", num_ports, Oscillator(samp_rate=1e6, seed_key=1, tx_phase=1.0, rx_phase=-0.4),
        tx_gains=gains[0], rx_gains=gains[1], amplifiers=amplifiers, array=PlanarArray(2, 3),
    )  # fmt: skip
    law = CouplingLaw("log_distance", perturbation_db=-10.0)
    network = Network([node], Rayleigh(seed=1, coupling_law=law), samp_rate=1e6, seed=1)
    pilots = design_pilots(num, peak=10 ** (3 / 20), rng=rng).astype(np.complex64)
    y = np.zeros((num_ports, num_ports, num), complex)
    for port in range(num_ports):
        x = np.zeros((num_ports, num), np.complex64)
        x[port] = pilots
        y[:, port] = network.process(x, port * num, np.zeros(num_ports, int), final=True)
    c = network.true_calibration(0)
    estimate = single_stage(y, pilots)
    assert metrics.alignment_error(estimate, c) < 1e-10
    assert metrics.alignment_error(all_pairs(link_gains(y, pilots)), c) > 1e-5
    np.testing.assert_allclose(reference_snr(network.true_channel("ap1", "ap1", np.zeros(6, int), 0), 1.0),
                               np.min(np.abs(link_gains(y, pilots, order=3))[~np.eye(6, dtype=bool)]) ** 2, rtol=1e-4)
