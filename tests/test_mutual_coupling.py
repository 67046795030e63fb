# SPDX-License-Identifier: GPL-3.0-or-later
"""Calibration from mutual coupling: exact without noise, errors as predicted, the bound from 0 dB reference SNR."""

import numpy as np
import pytest
from coupled_arrays import array_gains, assert_mean, chains, complex_normal, flat, measured, received
from gnuradio.dmimo.core import bounds, metrics, mutual_coupling, reciprocity
from gnuradio.dmimo.core.amplifier_model import amplify
from gnuradio.dmimo.core.graph import DisconnectedGraphError
from gnuradio.dmimo.core.mutual_coupling import (
    all_pairs,
    best_reference,
    in_touch,
    known_coupling,
    link_gains,
    link_variance,
    predicted_covariance,
    ratio,
    ratio_mean_square,
    ratio_variance,
    reference_snr,
    single_stage,
)
from gnuradio.dmimo.core.predistortion import design_pilots
from gnuradio.dmimo.simulation.coupling import CouplingLaw, PlanarArray
from scipy.optimize import least_squares

# -- definitions ------------------------------------------------------------------------------------------------------


def test_reference_snr_is_that_of_one_pilot_over_the_weakest_link():
    rng = np.random.default_rng(1)
    gains, noise = complex_normal(rng, 3, 5, 5), np.array([1.0, 0.5, 2.0, 1.0, 0.1])
    links = [[abs(g[m, n]) ** 2 / noise[m] for m in range(5) for n in range(5) if m != n] for g in gains]
    np.testing.assert_allclose(reference_snr(gains, noise), np.min(links, axis=1))
    np.testing.assert_allclose(reference_snr(gains, noise, pilot_power=0.5), 0.5 * np.min(links, axis=1))
    np.testing.assert_allclose(reference_snr(gains, reference_snr(gains[0], 1.0) / 7.0)[0], 7.0)
    mask = np.abs(gains[0]) ** 2 / noise[:, None] > min(links[0])
    assert reference_snr(gains[0], noise, mask=mask) > min(links[0])


def test_link_gains_are_the_papers_mean_for_pilots_of_constant_modulus():
    rng = np.random.default_rng(2)
    x = 0.7 * np.exp(2j * np.pi * rng.random(11))
    y = complex_normal(rng, 2, 4, 4, 11)
    expected = (y * x.conj() / np.abs(x) ** 2).mean(axis=-1) * ~np.eye(4, dtype=bool)
    np.testing.assert_allclose(link_gains(y, x), expected)
    np.testing.assert_allclose(link_gains(y, np.tile(x, (4, 1))), expected)


def test_link_gains_are_unbiased_with_the_stated_variance_whatever_the_amplifier():
    rng = np.random.default_rng(3)
    gains, noise_var, pilots = complex_normal(rng, 3, 3), 0.3, design_pilots(20, "data_like")
    coefficients = np.array([[1.0, -0.3], [1.0, 0.1j], [1.0, -0.2 + 0.1j]])
    noise = np.sqrt(noise_var) * complex_normal(rng, 4000, 3, 3, 20)
    error = link_gains(received(rng, gains, coefficients, pilots) + noise, pilots, coefficients=coefficients) - gains
    energy = np.sum(np.abs(amplify(pilots, coefficients)) ** 2, axis=-1)
    relative = np.abs(error / gains) ** 2
    expected = link_variance(gains, noise_var, energy)
    for m, n in ((0, 1), (1, 0), (2, 1)):
        assert_mean(relative[:, m, n], expected[m, n])
        assert_mean(error[:, m, n].real, 0.0)
    assert np.all(np.isinf(np.diagonal(expected)))


def test_ratio_is_argos_on_one_component():
    rng = np.random.default_rng(4)
    gains = complex_normal(rng, 2, 3, 5, 5)
    for reference in (0, 3):
        expected = reciprocity.calibrate(gains[..., None], "argos", reference=reference)
        np.testing.assert_allclose(ratio(gains, reference), expected)
    each = np.array([[0, 1, 2], [3, 4, 0]])
    chosen = ratio(gains, each)
    for place in np.ndindex(2, 3):
        np.testing.assert_allclose(chosen[place], ratio(gains[place], each[place]))


# -- exact without noise ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reference", [0, 6])
def test_all_calibrations_are_exact_without_noise(reference):
    rng = np.random.default_rng(5)
    gains, c, h = array_gains(rng, 2, 5, spread_db=3.0)
    c = c / c[reference]
    np.testing.assert_allclose(ratio(gains, reference), c, rtol=1e-10)
    np.testing.assert_allclose(all_pairs(gains, reference=reference), c, rtol=1e-10)
    np.testing.assert_allclose(all_pairs(gains, reference=reference, energy=rng.uniform(1, 9, 10)), c, rtol=1e-10)
    np.testing.assert_allclose(known_coupling(gains, 3j * h, reference=reference), c, rtol=1e-10)


def test_only_known_coupling_copes_with_coupling_that_is_not_reciprocal():
    rng = np.random.default_rng(6)
    h = CouplingLaw(nonreciprocity_db=-20.0).matrix(PlanarArray(2, 5), rng)
    t, r = chains(rng, 2, 10)
    gains, c = r[:, None] * h * t, (t / r) / (t[3] / r[3])
    np.testing.assert_allclose(known_coupling(gains, h, reference=3), c, rtol=1e-10)
    np.testing.assert_allclose(ratio(gains, 3, coupling=h), c, rtol=1e-10)
    assert metrics.alignment_error(all_pairs(gains), c) > 1e-4
    assert metrics.alignment_error(ratio(gains, 3), c) > 1e-4


# -- predicted errors -------------------------------------------------------------------------------------------------


def test_pair_variance_and_all_pairs_bound_are_those_of_the_bounds():
    rng = np.random.default_rng(8)
    gains, c, _ = array_gains(rng, 2, 4, spread_db=3.0)
    noise, num_pilots = rng.uniform(0.5, 2.0, 8) * 1e-3, 7
    v = link_variance(gains, noise, num_pilots)
    path_energy = num_pilots * np.abs(gains / c) ** 2
    off = ~np.eye(8, dtype=bool)
    information = bounds.edge_information(c, path_energy, noise)
    np.testing.assert_allclose(1.0 / ratio_variance(v)[off], information[off])
    np.testing.assert_allclose(predicted_covariance(v, reference=2),
                               bounds.calibration_crlb(c, path_energy, noise, reference=2), atol=1e-12)


@pytest.mark.parametrize("strength", [0.01, 0.03])
def test_ratio_error_is_its_closed_form(strength):
    rng = np.random.default_rng(9)
    gains = np.array([[0.0, 1.0], [0.8j, 0.0]])
    variance = strength * np.array([[1.0, 0.5], [1.5, 1.0]])
    v = variance / np.where(gains == 0, 1.0, np.abs(gains) ** 2)
    c = ratio(measured(rng, gains, variance, 400000))[:, 1]
    squares = np.abs(c / (gains[0, 1] / gains[1, 0]) - 1) ** 2
    expected = ratio_mean_square(v)[1]
    mean, error = metrics.mean_and_standard_error(squares)
    # What the series leaves out is of the order of its next terms, 6 a b^3 + 24 b^4.
    rest = 12 * (6 * v[0, 1] * v[1, 0] ** 3 + 24 * v[1, 0] ** 4)
    assert abs(mean - expected) < 4 * error + rest
    assert abs(mean - ratio_variance(v)[0, 1]) > 4 * error + rest
    assert ratio_mean_square(v)[0] == 0.0


def test_ratio_error_of_an_array_is_its_closed_form_for_each_port():
    rng = np.random.default_rng(10)
    gains, c, _ = array_gains(rng, 2, 5)
    noise = rng.uniform(0.5, 1.5, 10) * reference_snr(gains, 1.0) / 10**1.5
    v = link_variance(gains, noise, 1.0)
    estimate = ratio(measured(rng, gains, noise[:, None], 20000), 4)
    squares = np.abs(estimate / (c / c[4]) - 1) ** 2
    others = np.arange(10) != 4
    assert_mean(squares[:, others], ratio_mean_square(v, 4)[others])
    diagonal = np.diagonal(predicted_covariance(v, "ratio", reference=4))
    np.testing.assert_allclose(diagonal, ratio_variance(v)[4])


@pytest.mark.parametrize("num_ports", [6, 20])
def test_a_single_reference_is_half_the_number_of_ports_worse_than_all_pairs_with_flat_coupling(num_ports):
    rng = np.random.default_rng(11)
    h = flat(rng, num_ports)
    t, r = chains(rng, 2, num_ports, spread_db=0.0)
    gains, c, s = r[:, None] * h * t, t / r, 1e-4
    noisy = measured(rng, gains, s, 2500)
    error = {
        name: (np.abs(estimate / (c / c[0]) - 1)[:, 1:] ** 2).mean(axis=1)
        for name, estimate in (("ratio", ratio(noisy)), ("all", all_pairs(noisy)), ("known", known_coupling(noisy, h)))
    }
    interval = metrics.ratio_of_means_interval(error["ratio"], error["all"], confidence=0.9999)
    assert interval.lower < num_ports / 2 < interval.upper
    assert interval.upper - interval.lower < 0.2 * num_ports / 2
    v = link_variance(gains, s, 1.0)
    for method, name, expected in (("ratio", "ratio", 2 * s), ("all_pairs", "all", 4 * s / num_ports),
                                   ("known_coupling", "known", 4 * s / num_ports)):
        np.testing.assert_allclose(np.diagonal(predicted_covariance(v, method))[1:], expected)
        assert_mean(error[name], expected)


@pytest.mark.parametrize(("snr_db", "num_pilots"), [(-10.0, 100), (0.0, 1), (0.0, 100), (20.0, 1)])
def test_all_pairs_meet_their_bound_from_0_db_reference_snr_on_4_by_25_antennas(snr_db, num_pilots):
    rng = np.random.default_rng(12)
    gains, c, _ = array_gains(rng)
    noise_var = reference_snr(gains, 1.0) / 10 ** (snr_db / 10)
    noisy = measured(rng, gains, noise_var / num_pilots, 150)
    estimate = all_pairs(noisy, reference=62)
    squares = (np.abs(estimate / (c / c[62]) - 1) ** 2).mean(axis=-1)
    covariance = predicted_covariance(link_variance(gains, noise_var, num_pilots), reference=62)
    bound = np.diagonal(covariance).mean()
    mean, error = metrics.mean_and_standard_error(squares)
    assert error < 0.05 * bound
    assert abs(mean / bound - 1) < 0.05 + 3 * error / bound
    # The error relative to one port is that port's error too; alignment averages over all and is sharper.
    mean, error = metrics.mean_and_standard_error(metrics.alignment_error(estimate, c))
    bound = bounds.alignment_error_crlb(c, num_pilots * np.abs(gains / c) ** 2, noise_var)
    assert error < 0.015 * bound
    assert abs(mean / bound - 1) < 0.05


def test_the_best_reference_is_central_and_a_corner_is_far_worse():
    rng = np.random.default_rng(13)
    gains, c, _ = array_gains(rng, slope_db_per_wavelength=1.5)
    noise_var = reference_snr(gains, 1.0) / 100
    best = int(best_reference(gains))
    assert 9 <= best % 25 <= 15
    noisy = measured(rng, gains, noise_var, 200)
    errors = np.array([metrics.alignment_error(ratio(noisy, reference), c) for reference in range(100)])
    mean, error = metrics.mean_and_standard_error(errors, axis=1)
    assert mean[best] < mean.min() + 4 * np.hypot(error[best], error[mean.argmin()])
    assert mean[0] > 5 * mean[best]
    at_all = bounds.alignment_error_crlb(c, np.abs(gains / c) ** 2, noise_var)
    # Ratios to the best one are far from the all-pairs bound, too.
    assert mean[best] > 50 * at_all
    predicted = predicted_covariance(link_variance(gains, noise_var, 1.0), "ratio", reference=best)
    power = np.abs(c) ** 2 / np.sum(np.abs(c) ** 2)
    expected = np.sum(power * (1 - power) * np.diagonal(predicted))
    assert abs(mean[best] - expected) < 4 * error[best] + 0.02 * expected


def test_best_reference_is_the_minimum_of_the_predicted_alignment_error():
    rng = np.random.default_rng(14)
    gains, c, _ = array_gains(rng, 2, 3, spread_db=6.0)
    noise, energy = rng.uniform(0.2, 5.0, 6), rng.uniform(0.5, 2.0, 6)
    pairs = ratio_variance(link_variance(gains, noise, energy))
    predicted = []
    for reference in range(6):
        covariance = np.diag(c) @ np.diag(pairs[:, reference]) @ np.diag(c).conj().T
        total = np.vdot(c, c).real
        predicted.append((np.trace(covariance) - c.conj() @ covariance @ c / total).real / total)
    assert best_reference(gains, noise, energy) == np.argmin(predicted)
    batch = np.stack([gains, gains[::-1, ::-1]])
    assert best_reference(batch)[1] == 5 - best_reference(gains)
    broken = gains.copy()
    broken[best_reference(gains), (best_reference(gains) + 1) % 6] = 0.0
    assert best_reference(broken) not in (best_reference(gains), (best_reference(gains) + 1) % 6)


# -- known coupling ---------------------------------------------------------------------------------------------------


def test_knowing_the_coupling_is_no_help_where_both_directions_have_the_same_snr():
    rng = np.random.default_rng(15)
    gains, _, h = array_gains(rng, 2, 6, spread_db=0.0)
    v = link_variance(gains, 1e-3, 1.0)
    known = predicted_covariance(v, "known_coupling")
    np.testing.assert_allclose(known, predicted_covariance(v), rtol=1e-8, atol=1e-9)
    uneven = link_variance(gains, 1e-3 * 10 ** rng.uniform(-1, 1, 12), 1.0)
    known, unknown = (np.trace(predicted_covariance(uneven, m)) for m in ("known_coupling", "all_pairs"))
    assert known < 0.99 * unknown


def test_known_coupling_starts_at_the_solution_without_noise(monkeypatch):
    gains, c, h = array_gains(np.random.default_rng(25), 2, 5, spread_db=6.0)
    monkeypatch.setattr(mutual_coupling, "_MAX_STEPS", 1)
    np.testing.assert_allclose(known_coupling(gains, h), c / c[0], rtol=1e-9)


def test_known_coupling_meets_its_bound_with_unequal_noise_and_pilots():
    rng = np.random.default_rng(16)
    gains, c, h = array_gains(rng, 2, 5, spread_db=2.0)
    noise = 10 ** rng.uniform(-1, 1, 10) * reference_snr(gains, 1.0) / 100
    energy = rng.uniform(0.5, 2.0, 10)
    noisy = measured(rng, gains, noise[:, None] / energy, 3000)
    v = link_variance(gains, noise, energy)
    for method, estimate in (("known_coupling", known_coupling(noisy, h, noise_var=noise, energy=energy)),
                             ("all_pairs", all_pairs(noisy, noise_var=noise, energy=energy))):
        squares = (np.abs(np.log(estimate / (c / c[0]))) ** 2).mean(axis=-1)
        bound = np.diagonal(predicted_covariance(v, method)).mean()
        mean, error = metrics.mean_and_standard_error(squares)
        assert abs(mean / bound - 1) < 0.02 + 4 * error / bound


def test_known_coupling_is_the_least_squares_fit_that_a_general_optimiser_finds():
    rng = np.random.default_rng(17)
    gains, c, h = array_gains(rng, 2, 3, spread_db=3.0)
    noise, energy = rng.uniform(0.5, 2.0, 6) * 0.05 * np.abs(h[0, 1]) ** 2, rng.uniform(0.5, 2.0, 6)
    noisy = measured(rng, gains, noise[:, None] / energy, 1)[0]
    root = np.sqrt(energy / noise[:, None]) * ~np.eye(6, dtype=bool)

    def residual(parameters):
        r, t = parameters.view(complex).reshape(2, 6)
        return (root * (noisy - r[:, None] * h * t)).ravel().view(float)

    starts = [np.concatenate([r, c * r]) for r in np.exp(1j * rng.uniform(-np.pi, np.pi, (20, 6)))]
    fits = [least_squares(residual, s.view(float), xtol=1e-14, ftol=1e-14, gtol=1e-14) for s in starts]
    r, t = min(fits, key=lambda fit: fit.cost).x.view(complex).reshape(2, 6)
    best = known_coupling(noisy, h, noise_var=noise, energy=energy)
    np.testing.assert_allclose(best, (t / r) / (t[0] / r[0]), rtol=1e-5)
    assert metrics.alignment_error(best, c) > 1e-4


def test_batch_equals_loop():
    rng = np.random.default_rng(18)
    gains, _, h = array_gains(rng, 2, 3)
    noisy = measured(rng, gains, 0.01 * np.abs(h[0, 1]) ** 2, 4)
    looped = [known_coupling(g, h) for g in noisy]
    np.testing.assert_allclose(known_coupling(noisy.reshape(2, 2, 6, 6), h).reshape(4, 6), looped, rtol=1e-8)
    pilots, own = design_pilots(20), np.tile([1.0, -0.3 + 0.1j], (6, 1))
    y = np.stack([received(rng, gains, own, pilots, 1e-4) for _ in range(4)])
    looped = [single_stage(each, pilots) for each in y]
    np.testing.assert_allclose(single_stage(y.reshape(2, 2, 6, 6, 20), pilots).reshape(4, 6), looped, rtol=1e-8)


# -- degenerate input -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: ratio(g, 5), "reference = 5"),
        (lambda g: ratio(np.where(np.eye(5, k=1) > 0, 0.0, g), 0), "both directions"),
        (lambda g: predicted_covariance(np.abs(g), "argos"), "method"),
        (lambda g: link_gains(g[..., None], np.ones(3)), "pilots"),
        (lambda g: link_gains(np.ones((2, 3, 4)), np.ones(4)), "y must be"),
        (lambda g: known_coupling(g[:2, :2], g[:2, :2]), "component"),
    ],
)
def test_bad_arguments_raise(call, message):
    gains = complex_normal(np.random.default_rng(22), 5, 5)
    with pytest.raises(ValueError, match=message):
        call(gains)


def test_ports_that_nobody_hears_are_named():
    gains, _, h = array_gains(np.random.default_rng(23), 2, 3)
    gains[4] = gains[:, 4] = 0.0
    for call in (lambda: all_pairs(gains), lambda: known_coupling(gains, h),
                 lambda: predicted_covariance(link_variance(gains, 1.0, 1.0))):
        with pytest.raises(DisconnectedGraphError, match="4"):
            call()


def test_ports_without_a_signal_pass_for_audible_as_rarely_as_stated():
    rng = np.random.default_rng(8)
    noise = np.array([0.5, 1.0, 2.0, 4.0])
    gains = np.sqrt(noise)[:, None] * complex_normal(rng, 400_000, 4, 4)
    share = in_touch(gains, noise).mean(axis=0)
    # Both directions must stand out, and they share no link: 1e-8.
    assert np.all(share < 1e-5)
    one_way = gains.copy()
    one_way[:, 2] += 100.0  # port 2 hears; whether it is heard is left to chance
    assert in_touch(one_way, noise)[:, 2].mean() == pytest.approx(1e-4, abs=4 * np.sqrt(1e-4 / 400_000))


def test_a_port_that_is_dead_in_one_direction_is_not_in_touch():
    rng = np.random.default_rng(9)
    gains, _, _ = array_gains(rng, 2, 3)
    noise = np.full(6, 1e-6)
    deaf, mute = gains.copy(), gains.copy()
    deaf[3], mute[:, 4] = 0.0, 0.0
    assert in_touch(gains, noise).all()
    assert in_touch(deaf, noise).tolist() == [True] * 3 + [False] + [True] * 2
    assert in_touch(mute, noise).tolist() == [True] * 4 + [False, True]
