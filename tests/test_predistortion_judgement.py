# SPDX-License-Identifier: GPL-3.0-or-later
"""When predistortion is refused: predictions against simulated errors, memory, misfits that all receivers share."""

import numpy as np
import pytest
from coupled_arrays import complex_normal
from gnuradio.dmimo.core import predistortion as dpd
from gnuradio.dmimo.core.memory_polynomial import predistort_with_memory
from gnuradio.dmimo.core.predistortion_identification import fit_statistics
from gnuradio.dmimo.core.predistortion_judgement import gaussian_clipping, judge
from gnuradio.dmimo.simulation.amplifiers import draw_amplifiers

PEAK = 10 ** (10 / 20)
PILOTS = dpd.design_pilots(120, "uniform", peak=PEAK, rng=np.random.default_rng(1))
KAPPA = np.array([-0.02 + 0.01j, -0.015 - 0.012j, -0.018 + 0.02j, -0.022, 0.01 - 0.02j, -0.012j])
# Of the data below.
AMPLITUDES = np.minimum(np.sqrt(-np.log1p(-(np.arange(64) + 0.5) / 64)), 2.0)


def memory_output(u, kappa, taps):
    """Plain arithmetic: each port's own third order, behind it a filter of its earlier outputs."""
    direct = u + kappa[:, None] * u * np.abs(u) ** 2
    out = direct.copy()
    for lag, tap in enumerate(taps, 1):
        out[:, lag:] += tap * direct[:, :-lag]
    return out


def hear(rng, kappa, taps=(), noise_var=0.0, pilots=PILOTS):
    """y (receivers, transmitters, pilots), and the gains behind it."""
    count = len(kappa)
    gains = complex_normal(rng, count, count) * np.sqrt(rng.uniform(0.5, 2.0, (count, 1)))
    y = gains[:, :, None] * memory_output(np.tile(pilots, (count, 1)), kappa, taps)
    return y + np.sqrt(noise_var) * complex_normal(rng, *y.shape)


def left_over(kappa, taps, coefficients, x):
    """NMSE of each port's true output with its predistorter, the best filter of eight taps removed."""
    if coefficients.ndim == 3:
        u = predistort_with_memory(x, coefficients, max_amplitude=PEAK).samples
    else:
        u = dpd.predistort(x, coefficients, max_amplitude=PEAK)
    out = memory_output(u, kappa, taps)[:, 7:]
    left = []
    for wanted, z in zip(x, out, strict=True):
        basis = np.stack([wanted[7 - lag : len(wanted) - lag] for lag in range(8)], axis=-1)
        rest = z - basis @ np.linalg.lstsq(basis, z, rcond=None)[0]
        left.append(np.sum(np.abs(rest) ** 2) / np.sum(np.abs(wanted) ** 2))
    return np.array(left)


def nmse(x, z):
    gain = np.sum(z * x.conj(), axis=-1, keepdims=True) / np.sum(np.abs(x) ** 2, axis=-1, keepdims=True)
    return np.mean(np.abs(z / gain - x) ** 2, axis=-1)


def gaussian(rng, count, num=4000):
    """Data of unit power inside what the amplifiers can be made to give."""
    x = complex_normal(rng, count, num)
    return x * np.minimum(1.0, 2.0 / np.abs(x))


@pytest.mark.parametrize("taps", [(), (0.12 + 0.05j,)])
def test_predicted_distortion_with_memory_is_what_is_left(taps):
    found, predicted = [], []
    for trial in range(40):
        rng = np.random.default_rng([trial, 5])
        statistics = dpd.pilot_statistics(hear(rng, KAPPA, taps, 1e-3), PILOTS, memory_depth=2)
        identified = dpd.identify_amplifiers(statistics, noise_var=1e-3, amplitudes=AMPLITUDES)
        assert not identified.unexplained.any()
        predicted.append(identified.distortion_with)
        found.append(left_over(KAPPA, taps, identified.coefficients, gaussian(rng, len(KAPPA))))
    ratio = np.mean(found, axis=1) / np.mean(predicted, axis=1)
    # The prediction's sequence has 512 samples: a tenth, beside four standard errors.
    assert abs(ratio.mean() - 1) < 0.1 + 4 * ratio.std(ddof=1) / np.sqrt(len(ratio))


def test_memory_of_linear_amplifiers_is_refused():
    """What is estimated is noise, and would be put in front of every signal."""
    rng = np.random.default_rng(3)
    for depth in (1, 2, 3):
        statistics = dpd.pilot_statistics(hear(rng, 0 * KAPPA, noise_var=1e-2), PILOTS, memory_depth=depth)
        found = dpd.identify_amplifiers(statistics, noise_var=1e-2)
        assert found.heard.all()
        assert found.refused.all()
        flat = found.safe_coefficients.reshape(len(KAPPA), -1)
        assert np.array_equal(flat, np.eye(1, flat.shape[1]).repeat(len(KAPPA), axis=0))


def test_predistorters_with_memory_that_have_no_end_are_refused():
    rng = np.random.default_rng(3)
    statistics = dpd.pilot_statistics(hear(rng, KAPPA, (1.1,)), PILOTS, memory_depth=2)
    found = dpd.identify_amplifiers(statistics)
    # Known exactly, and yet of no use.
    assert np.abs(found.coefficients[:, 1, 0] - 1.1).max() < 1e-9
    assert found.refused.all()
    weaker = dpd.identify_amplifiers(dpd.pilot_statistics(hear(rng, KAPPA, (0.3,)), PILOTS, memory_depth=2))
    assert not weaker.refused.any()


@pytest.mark.parametrize("taps", [(0.02,), (0.1 + 0.05j,)])
def test_a_misfit_that_all_receivers_share_is_not_averaged_away(taps):
    """A memoryless model of amplifiers with memory: its predistorter is used only where it helps."""
    outcomes = []
    for trial in range(10):
        rng = np.random.default_rng([trial, 9])
        y = hear(rng, KAPPA, taps, 1e-5)
        found = dpd.identify_amplifiers(dpd.pilot_statistics(y, PILOTS), noise_var=1e-5)
        blind = dpd.identify_amplifiers(dpd.pilot_statistics(y, PILOTS))
        assert found.unexplained.all()
        x = gaussian(rng, len(KAPPA))
        left = left_over(KAPPA, taps, found.coefficients, x)
        untouched = left_over(KAPPA, taps, np.tile([1.0, 0.0], (len(KAPPA), 1)), x)
        used = ~found.refused
        assert np.all(left[used] < untouched[used])
        outcomes.append((left, found.distortion_with, blind.distortion_with))
    left, with_noise, without = (np.mean(values) for values in zip(*outcomes, strict=True))
    # In size: such errors are no noise. Not knowing the noise, one would be wrong by far.
    assert 0.2 < left / with_noise < 3
    assert left / without > 2 * left / with_noise


def test_noise_that_is_all_there_is_enlarges_nothing():
    rng = np.random.default_rng(4)
    statistics = dpd.pilot_statistics(hear(rng, KAPPA, noise_var=1e-4), PILOTS)
    known, estimated = dpd.identify_amplifiers(statistics, noise_var=1e-4), dpd.identify_amplifiers(statistics)
    assert not known.unexplained.any()
    np.testing.assert_allclose(known.covariance, estimated.covariance, rtol=0.15)


@pytest.mark.parametrize(("peak_db", "helps"), [(5, False), (7, False), (11, True)])
def test_pilots_that_end_too_early_clip_more_than_they_mend(peak_db, helps):
    """GaN amplifiers of known coefficients at 12 dB back-off: beyond the pilots data are clipped."""
    amplifiers = draw_amplifiers(np.random.default_rng(1), 3, back_off_db=12.0, spread=0.1)
    coefficients, peak = amplifiers.coefficients[:, 0], 10 ** (peak_db / 20)
    judged = judge(coefficients, np.zeros((3, 4, 4)), np.ones(3, bool), depth=1, peak=peak, amplitudes=None,
                   backoff_db=peak_db, min_improvement=6.0)
    x = complex_normal(np.random.default_rng(2), 3, 200_000)
    sent = dpd.predistort(x, coefficients, max_amplitude=peak)
    before, after = (nmse(x, amplifiers(u)) for u in (x, sent))
    assert np.all((after < before) == helps)
    assert np.all(judged.refused == (not helps))
    if not helps:  # there are enough clips to count
        np.testing.assert_allclose(judged.clipping, after, rtol=0.1)


def test_clipping_of_gaussian_data_is_that_of_samples():
    x = complex_normal(np.random.default_rng(2), 2_000_000)
    for reach in (0.7, 1.5, 2.5):
        y = x * np.minimum(1.0, reach / np.abs(x))
        gain = np.vdot(x, y) / np.vdot(x, x)
        nmse = np.mean(np.abs(y - gain * x) ** 2) / np.abs(gain) ** 2
        found, share = gaussian_clipping(np.array(reach))
        assert found == pytest.approx(nmse, rel=0.02)
        assert share == pytest.approx(np.mean(np.abs(x) > reach), rel=0.03)
    far, none = gaussian_clipping(np.array([4.0, np.inf]))
    assert none[1] == far[1] == 0
    assert 0 < far[0] < 1e-6


def test_rare_clips_are_counted():
    kappa = np.full((1, 2), [1.0, -0.03 + 0.02j])
    judged = judge(kappa, np.zeros((1, 1, 1)), np.ones(1, bool), depth=1, peak=PEAK, amplitudes=None, backoff_db=10.0,
                   min_improvement=6.0)
    reach = dpd.invertible_range(kappa, max_amplitude=PEAK).output_amplitude
    assert judged.clipped_share == pytest.approx(np.exp(-(reach**2)))
    assert 0 < judged.clipped_share < 0.02
    # Of data that are given, those that are clipped; 3 dB less power, fewer clips.
    given = judge(kappa, np.zeros((1, 1, 1)), np.ones(1, bool), depth=1, peak=PEAK, amplitudes=np.array([1.0, 5.0]),
                  backoff_db=10.0, min_improvement=6.0)
    assert given.clipped_share == 0.5
    less = judge(kappa, np.zeros((1, 1, 1)), np.ones(1, bool), depth=1, peak=PEAK, amplitudes=None, backoff_db=13.0,
                 min_improvement=6.0)
    assert less.clipped_share == pytest.approx(np.exp(-(reach**2) * 10**0.3))


def test_few_pilots_of_a_linear_amplifier_hardly_ever_pass_for_distortion():
    """Between the two largest of few data-like pilots order 9 swings, and its inverse stays out of there."""
    rng = np.random.default_rng(5)
    x = dpd.design_pilots(12, "data_like", rng=rng)
    gains = complex_normal(rng, 4, 4)
    y = gains[:, :, None] * x + 0.03 * complex_normal(rng, 400, 4, 4, len(x))
    found = dpd.identify_amplifiers(dpd.pilot_statistics(y, x, order=9), noise_var=0.03**2)
    # One in a thousand of 1600, and three standard errors more.
    assert np.count_nonzero(~found.refused) <= 6


def test_terms_beyond_the_order_are_those_of_the_amplifier():
    rng = np.random.default_rng(6)
    true = np.concatenate([np.ones((8, 1)), 0.05 * complex_normal(rng, 8, 3)], axis=1)
    x = dpd.design_pilots(60, rng=rng)
    y = complex_normal(rng, 8, 8)[:, :, None] * dpd.amplify(np.tile(x, (8, 1)), true)
    for pilots in (x, np.tile(x, (8, 1))):
        found = fit_statistics(dpd.pilot_statistics(y, pilots, order=3)).extended
        np.testing.assert_allclose(found / found[:, :1], true, atol=1e-10)


@pytest.mark.parametrize("limit", [0.6, 0.7, 0.8])
def test_a_model_that_is_too_small_does_no_harm(limit):
    """Linear up to a limit, which the largest pilots exceed: third order spreads the edge over all amplitudes."""
    rng = np.random.default_rng(7)

    def limited(u):
        return u * np.minimum(1.0, limit / np.maximum(np.abs(u), limit))

    x = dpd.design_pilots(100, rng=rng)
    y = complex_normal(rng, 4, 4)[:, :, None] * limited(x) + 0.01 * complex_normal(rng, 4, 4, 100)
    found = dpd.identify_amplifiers(dpd.pilot_statistics(y, x), backoff_db=12.0, noise_var=1e-4)
    assert np.all(found.mismatch_limited)
    data = 10 ** (-12 / 20) * complex_normal(rng, 4, 20000)
    after = nmse(data, limited(found.predistort(data).samples))
    assert np.all(after <= 1.1 * nmse(data, limited(data)))
