# SPDX-License-Identifier: GPL-3.0-or-later
"""Delay and gain: exact without noise on any comb, on the bound with it, and honest below the threshold."""

import numpy as np
import pytest
from gnuradio.dmimo.core import bidirectional_bounds as bounds
from gnuradio.dmimo.core import synchronization
from gnuradio.dmimo.core.delay import delay_estimate

SPACING = 120e3
COMB = np.arange(49) * 32 - 784  # table I: 8 TRPs, 4 UEs


def complex_normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def link(delay_s, gain, subcarriers):
    return np.asarray(gain)[..., None] * np.exp(-2j * np.pi * SPACING * subcarriers * np.asarray(delay_s)[..., None])


@pytest.mark.parametrize(
    "subcarriers",
    [
        COMB,
        COMB + 17,
        np.array([5, -3]),
        np.array([-700, -699, -100, 0, 3, 640, 641]),
        np.random.default_rng(0).permutation(np.arange(-20, 21)),
        np.concatenate([np.arange(-24, 0), np.arange(1, 25)]),
    ],
    ids=["comb", "shifted comb", "two", "irregular", "any order", "no centre"],
)
def test_delay_and_gain_are_exact_without_noise(subcarriers):
    rng = np.random.default_rng(1)
    step = np.gcd.reduce(subcarriers - subcarriers.min())
    delay = rng.uniform(-0.49, 0.49, (3, 4)) / (step * SPACING)
    gain = complex_normal(rng, 3, 4)
    got, got_gain = synchronization.delay_and_gain(link(delay, gain, subcarriers), subcarriers, SPACING)
    np.testing.assert_allclose(got * SPACING, delay * SPACING, atol=1e-12)
    np.testing.assert_allclose(got_gain, gain, atol=1e-10)
    conj, _ = synchronization.delay_and_gain(np.conj(link(delay, gain, subcarriers)), subcarriers, SPACING)
    np.testing.assert_allclose(conj, -delay, atol=1e-15)


def test_gain_belongs_to_band_centre_not_to_the_first_pilot():
    k = COMB + 100
    _, gain = synchronization.delay_and_gain(link(30e-9, 2.0, k), k, SPACING)
    assert gain == pytest.approx(2.0, abs=1e-10)
    _, elsewhere = synchronization.delay_and_gain(link(30e-9, 2.0, k), np.arange(49) * 32, SPACING)
    assert abs(np.angle(elsewhere)) > 1.0


def test_batch_with_a_comb_for_each_link_equals_the_loop():
    rng = np.random.default_rng(2)
    offsets = np.array([[0, 8, 16], [1, 9, 17]])
    k = offsets[..., None] + np.arange(20) * 24 - 240
    k[1, 2] = np.sort(rng.choice(480, 20, replace=False)) - 240  # one link with other gaps
    delay = rng.uniform(-20e-9, 20e-9, (5, 2, 3))
    g = link(delay, complex_normal(rng, 5, 2, 3), k) + 0.2 * complex_normal(rng, 5, 2, 3, 20)
    whole = delay_estimate(g, k, SPACING, max_delay=40e-9)
    assert whole.delay_s.shape == whole.trusted.shape == (5, 2, 3)
    for i in np.ndindex(5, 2, 3):
        one = delay_estimate(g[i], k[i[1:]], SPACING, max_delay=40e-9)
        for name, value in one._asdict().items():
            np.testing.assert_allclose(getattr(whole, name)[i], value, rtol=1e-7, atol=1e-20, err_msg=name)
    # Phase, scale and conjugate-free invariance.
    turned = delay_estimate(3j * g, k, SPACING, max_delay=40e-9)
    np.testing.assert_allclose(turned.delay_s, whole.delay_s, atol=1e-16)
    np.testing.assert_allclose(turned.gain, 3j * whole.gain)
    np.testing.assert_allclose(turned.phase_std_rad, whole.phase_std_rad)


def test_estimate_is_the_maximum_of_the_likelihood():
    """Against a 10 ps grid, of which it must not be worse anywhere, at an SNR with many wrong peaks."""
    rng = np.random.default_rng(3)
    g = 0.3 + complex_normal(rng, 300, 49)
    grid = np.arange(-130e-9, 130e-9, 10e-12)
    height = np.abs(g @ np.exp(2j * np.pi * SPACING * COMB[:, None] * grid)) / 49
    for limit in (None, 20e-9):
        delay, gain = synchronization.delay_and_gain(g, COMB, SPACING, max_delay=limit)
        allowed = np.abs(grid) <= (np.inf if limit is None else limit)
        assert np.all(np.abs(gain) >= height[:, allowed].max(axis=-1) * (1 - 1e-9))
        assert limit is None or np.all(np.abs(delay) <= limit * (1 + 1e-12))


@pytest.mark.parametrize("snr_db", [10.0, 20.0])
def test_two_way_delay_and_phase_meet_their_bounds(snr_db):
    """Product form of C, the noise of both directions; 10 % and 4 standard errors of 4000 trials (1.1 % each)."""
    rng = np.random.default_rng(4)
    trials, rho = 4000, 10 ** (snr_db / 10)
    half = rng.uniform(-20e-9, 20e-9, trials)
    g = link(half, np.ones(trials), COMB) + complex_normal(rng, trials, 49) / np.sqrt(rho)
    h = link(-half, np.ones(trials), COMB) + complex_normal(rng, trials, 49) / np.sqrt(rho)
    delay, gain = synchronization.delay_and_gain(g * h.conj(), COMB, SPACING, max_delay=80e-9)
    v = bounds.element_variance(rho, rho)
    tau_std = np.sqrt(np.mean((delay / 2 - half) ** 2))
    phase_std = np.sqrt(np.mean(np.angle(gain) ** 2))
    assert 0.95 < tau_std / bounds.two_way_delay_std(v, 49, 32, SPACING) < 1.10
    # COMB has its centroid 16 subcarriers below band centre.
    crlb = bounds.delay_crlb(COMB, SPACING, v)
    assert 0.95 < phase_std / crlb.phase_std_rad < 1.10
    assert crlb.centroid_phase_std_rad == pytest.approx(bounds.two_way_phase_std(v, 49))
    assert crlb.delay_std_s / 2 == pytest.approx(bounds.two_way_delay_std(v, 49, 32, SPACING))


def test_bound_is_the_inverse_of_the_fisher_information():
    k, v = np.array([-40, -7, 3, 90, 91]), 0.3
    # Derivatives of exp(j (phase - 2 pi k df d)) by phase and d; real parameters, complex noise of variance v.
    jacobian = np.stack([np.ones(5), -2 * np.pi * SPACING * k])
    covariance = np.linalg.inv(2 / v * jacobian @ jacobian.T)
    crlb = bounds.delay_crlb(k, SPACING, v)
    assert crlb.phase_std_rad == pytest.approx(np.sqrt(covariance[0, 0]))
    assert crlb.delay_std_s == pytest.approx(np.sqrt(covariance[1, 1]))


def test_deviations_are_predicted_and_outliers_counted_below_the_threshold():
    rng = np.random.default_rng(5)
    trials = 4000
    for snr_db, rare in ((0.0, True), (-7.0, False)):
        v = 10 ** (-snr_db / 10)
        g = 1 + np.sqrt(v) * complex_normal(rng, trials, 49)
        estimate = delay_estimate(g, COMB, SPACING)
        crlb = bounds.delay_crlb(COMB, SPACING, v)
        wrong = np.abs(estimate.delay_s) > 1 / (32 * SPACING * 49)  # beyond the main lobe
        bound = bounds.outlier_probability(v, 49, 49)
        if rare:
            assert wrong.mean() <= bound + 3 / trials
            assert estimate.trusted.mean() > 0.999
            assert np.median(estimate.delay_std_s) == pytest.approx(crlb.delay_std_s, rel=0.03)
            assert np.median(estimate.phase_std_rad) == pytest.approx(crlb.phase_std_rad, rel=0.03)
        else:
            # The union bound is an upper one, near where outliers are few; 4 standard errors.
            allowance = 4 * np.sqrt(bound / trials)
            assert 0.4 * bound - allowance < wrong.mean() < bound + allowance
            assert (wrong & estimate.trusted).sum() <= 0.05 * wrong.sum()


def test_delay_limit_lowers_the_outlier_rate():
    rng = np.random.default_rng(6)
    g = 1 + np.sqrt(6.0) * complex_normal(rng, 2000, 49)
    wrong = [
        np.mean(np.abs(synchronization.delay_and_gain(g, COMB, SPACING, max_delay=limit)[0]) > 5.3e-9)
        for limit in (None, 20e-9)
    ]
    assert wrong[0] > 2 * wrong[1]


def test_noise_alone_and_what_is_not_finite_are_not_trusted():
    rng = np.random.default_rng(7)
    assert delay_estimate(complex_normal(rng, 5000, 49), COMB, SPACING).trusted.sum() <= 4
    g = np.ones((3, 49), complex)
    g[0], g[1, 3] = 0, np.nan
    estimate = delay_estimate(g, COMB, SPACING)
    np.testing.assert_array_equal(estimate.trusted, [False, False, True])
    assert np.isnan(estimate.delay_s[:2]).all()
    # What is not finite does not spoil the others.
    far = np.full((3, 49), np.nan, complex)
    far[1], far[2] = np.inf, link(13e-9, 2j, COMB)
    delay, gain = synchronization.delay_and_gain(far, COMB, SPACING)
    np.testing.assert_allclose(delay * SPACING, [np.nan, np.nan, 13e-9 * SPACING], atol=1e-13)
    np.testing.assert_allclose(gain[2], 2j, atol=1e-11)
    # A delay beyond the limit is not where the estimate says.
    far = delay_estimate(link(40e-9, 1.0, COMB), COMB, SPACING, max_delay=20e-9)
    assert not far.trusted


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((np.ones(3), [0, 1, 1], SPACING), {}, "must not repeat"),
        ((np.ones(3), [0, 1], SPACING), {}, "subcarriers must be integers"),
        ((np.ones(3), [0.0, 1.0, 2.0], SPACING), {}, "subcarriers must be integers"),
        ((np.ones((2, 3)), np.arange(12).reshape(4, 3), SPACING), {}, "cannot be broadcast"),
        ((np.ones(3), [0, 1, 2], 0.0), {}, "spacing = 0"),
        ((np.ones(3), [0, 2, 4], SPACING), {"max_delay": 3e-6}, "at most 1 / .2 D spacing. = 2.08"),
        ((np.ones(3), [0, 2, 4], SPACING), {"max_delay": 0.0}, "max_delay = 0.0"),
    ],
)
def test_wrong_arguments_are_named(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        synchronization.delay_and_gain(*arguments, **options)
