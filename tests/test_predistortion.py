# SPDX-License-Identifier: GPL-3.0-or-later
"""Identification of amplifiers over the air: exact without noise, at the bound with it, flagged where it fails."""

import numpy as np
import pytest
from gnuradio.dmimo.core import predistortion as dpd
from gnuradio.dmimo.core import predistortion_bounds as bounds
from gnuradio.dmimo.core.predistortion_identification import fit_statistics

# 3GPP R4-165901, gallium nitride, 9th order, for inputs up to 1.
GAN = np.array([0.999952 - 0.00981788j, -0.0618171 + 0.118845j, -1.69917 - 0.464933j, 3.27962 + 0.829737j,
                -1.80821 - 0.454331j])  # fmt: skip
GAN = GAN / GAN[0]


def noise(rng, shape, variance=1.0):
    return np.sqrt(variance / 2) * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


def array(rng, rows, columns):
    """Coupling h of a planar array, linear in decibels with distance and random phases, and chain gains r h t."""
    place = 0.5 * np.stack(np.meshgrid(np.arange(rows), np.arange(columns), indexing="ij"), -1).reshape(-1, 2)
    distance = np.linalg.norm(place[:, None] - place, axis=-1)
    ports = len(place)
    h = np.triu(10 ** ((-15.0 - 3.0 * distance) / 20) * np.exp(2j * np.pi * rng.uniform(size=(ports, ports))), 1)
    h = h + h.T
    r, t = np.exp(0.2 * rng.standard_normal((2, ports)) + 2j * np.pi * rng.uniform(size=(2, ports)))
    return h, r[:, None] * h * t


def third_order(rng, ports):
    return np.stack([np.ones(ports), -0.12 + 0.05j + noise(rng, ports, 2e-3)], axis=-1)


def reference_noise(h, snr_db):
    """Noise variance at which the weakest coupling has the given SNR, for pilots of unit power."""
    return np.abs(h[h != 0]).min() ** 2 / 10 ** (snr_db / 10)


@pytest.mark.parametrize("combining", ["svd", "power", "average"])
@pytest.mark.parametrize("order", [3, 5, 9])
def test_noiseless_coefficients_are_exact(combining, order):
    rng = np.random.default_rng(1)
    h, gains = array(rng, 2, 4)
    c = GAN[: (order + 1) // 2] * np.exp(0.1 * noise(rng, (8, (order + 1) // 2)))
    c[:, 0] = 1.0
    pilots = dpd.design_pilots(100, rng=rng)
    y = gains[..., None] * dpd.amplify(pilots, c)
    # The transmitter's own antenna is no receiver.
    y[np.arange(8), np.arange(8)] = 1e3 * noise(rng, (8, 100))
    estimate = dpd.identify(y, pilots, order=order, combining=combining, coupling=h)
    assert estimate.shape == c.shape
    assert np.abs(estimate - c).max() < 1e-10
    assert np.all(estimate[:, 0] == 1.0)


def test_own_pilots_of_each_transmitter_and_batches_equal_loops():
    rng = np.random.default_rng(2)
    pilots = np.stack([dpd.design_pilots(60, rng=rng) for _ in range(5)])
    gains, c = noise(rng, (3, 6, 5)), np.stack([third_order(rng, 5) for _ in range(3)])
    y = gains[..., None] * dpd.amplify(pilots, c)[:, None] + noise(rng, (3, 6, 5, 60), 1e-4)
    together = dpd.identify_amplifiers(dpd.pilot_statistics(y, pilots))
    alone = [dpd.identify_amplifiers(dpd.pilot_statistics(part, pilots)) for part in y]
    for name in ("coefficients", "covariance", "distortion_with", "noise_var", "refused", "gain_energy"):
        np.testing.assert_allclose(
            getattr(together, name), np.stack([getattr(part, name) for part in alone]), rtol=1e-9, err_msg=name
        )
    assert np.abs(together.coefficients - c).max() < 0.1
    # Pilots may be others in each batch, too.
    pilots = np.stack([pilots, pilots[::-1], 0.9 * pilots])
    y = gains[..., None] * dpd.amplify(pilots, c)[:, None] + noise(rng, (3, 6, 5, 60), 1e-4)
    alone = [fit_statistics(dpd.pilot_statistics(part, x, peak=1.0)) for part, x in zip(y, pilots, strict=True)]
    several = fit_statistics(dpd.pilot_statistics(y, pilots, peak=1.0))
    np.testing.assert_allclose(several.coefficients, [part.coefficients for part in alone], rtol=1e-9)
    np.testing.assert_allclose(several.noise_var, [part.noise_var for part in alone], rtol=1e-9)
    # With other receivers than transmitters nothing is left out.
    assert np.all(together.num_receivers == 6)
    single = dpd.identify(y[0, :, 1:2], pilots[0, 1])
    with_noise = fit_statistics(dpd.pilot_statistics(y[0, :, 1:2], pilots[0, 1])).coefficients
    np.testing.assert_allclose(single, with_noise)


def test_coefficients_do_not_depend_on_phases_and_scales_of_the_chains():
    rng = np.random.default_rng(3)
    pilots = dpd.design_pilots(80, rng=rng)
    y = noise(rng, (7, 7, 1)) * dpd.amplify(pilots, third_order(rng, 7)) + noise(rng, (7, 7, 80), 1e-4)
    turned = 3.0 * np.exp(2j * np.pi * rng.uniform(size=(7, 1, 1))) * y * np.exp(2j * np.pi * rng.uniform(size=(7, 1)))
    np.testing.assert_allclose(dpd.identify(turned, pilots), dpd.identify(y, pilots), atol=1e-12)


def test_statistics_of_two_halves_add_to_those_of_the_whole_and_keep_their_size():
    rng = np.random.default_rng(4)
    pilots = dpd.design_pilots(200, rng=rng)
    y = noise(rng, (6, 6, 1)) * dpd.amplify(pilots, third_order(rng, 6)) + noise(rng, (6, 6, 200), 1e-3)
    whole = dpd.pilot_statistics(y, pilots)
    parts = slice(90), slice(90, None)
    first, second = (dpd.pilot_statistics(y[..., part], pilots[part], peak=whole.peak) for part in parts)
    for name in ("coefficients", "covariance", "noise_var", "mismatch"):
        expected = getattr(dpd.identify_amplifiers(whole), name)
        np.testing.assert_allclose(getattr(dpd.identify_amplifiers(first + second), name), expected, atol=1e-11)
    few = dpd.pilot_statistics(y[..., :20], pilots[:20])
    assert few.correlation.shape == whole.correlation.shape == (6, 6, 4)
    with pytest.raises(ValueError, match="peak"):
        _ = whole + dpd.pilot_statistics(y, 2 * pilots)


@pytest.mark.parametrize("snr_db", [10.0, -10.0])
def test_singular_vector_meets_the_bound_on_100_ports(snr_db):
    rng = np.random.default_rng(5)
    h, gains = array(rng, 4, 25)
    c, pilots = third_order(rng, 100), dpd.design_pilots(100, rng=rng)
    s = reference_noise(h, snr_db)
    clean = gains[..., None] * dpd.amplify(pilots, c)
    bound = dpd.coefficient_crlb(c, pilots, dpd.gain_energy(gains, s))[:, 0, 0].real
    ratio, predicted = [], []
    for _ in range(60):
        found = dpd.identify_amplifiers(dpd.pilot_statistics(clean + noise(rng, clean.shape, s), pilots))
        ratio.append(np.abs(found.coefficients[:, 1] - c[:, 1]) ** 2 / bound)
        predicted.append(found.covariance[:, 0, 0].real / bound)
    # 6000 exponential variables: the standard error of the mean is 1.3 %; 5 % are asked for.
    assert np.mean(ratio) == pytest.approx(1.0, abs=4 / np.sqrt(6000))
    assert np.mean(predicted) == pytest.approx(1.0, abs=0.02)


def test_order_9_covariance_is_that_of_the_bound():
    rng = np.random.default_rng(6)
    gains, pilots = noise(rng, (20, 400)), dpd.design_pilots(300, rng=rng)
    clean = gains[..., None] * dpd.amplify(pilots, GAN)
    s = 1e-7
    bound = dpd.coefficient_crlb(GAN, pilots, dpd.gain_energy(gains, s))
    error = dpd.identify(clean + noise(rng, clean.shape, s), pilots, order=9)[:, 1:] - GAN[1:]
    # |e|^2 in the metric of the bound is Gamma(4) distributed: mean 4, variance 4.
    metric = np.einsum("mp,mpq,mq->m", error.conj(), np.linalg.inv(bound), error).real
    assert metric.mean() == pytest.approx(4.0, abs=4 * 2 / np.sqrt(400))


def test_averages_meet_their_own_bounds_which_are_worse():
    rng = np.random.default_rng(7)
    h, gains = array(rng, 3, 4)
    c, pilots = third_order(rng, 12), dpd.design_pilots(100, rng=rng)
    s = reference_noise(h, 30.0)
    clean = gains[..., None] * dpd.amplify(pilots, c)
    weights = np.where(h != 0, 1 / np.where(h != 0, h, 1), 0.0)
    energy = {"average": dpd.gain_energy(gains, s, weights=weights),
              "power": dpd.gain_energy(gains, s, weights=h.conj() / s), "svd": dpd.gain_energy(gains, s)}  # fmt: skip
    for name, value in energy.items():
        bound = dpd.coefficient_crlb(c, pilots, value)[:, 0, 0].real
        ratio = []
        for _ in range(150):
            y = clean + noise(rng, clean.shape, s)
            ratio.append(np.abs(dpd.identify(y, pilots, combining=name, coupling=h)[:, 1] - c[:, 1]) ** 2 / bound)
        assert np.mean(ratio) == pytest.approx(1.0, abs=4 / np.sqrt(1800)), name
        assert np.all(energy["svd"] >= value * (1 - 1e-12))


def test_noise_times_noise_costs_what_is_predicted_and_silence_is_flagged():
    rng = np.random.default_rng(8)
    pilots = dpd.design_pilots(100, rng=rng)
    c = np.array([1.0, -0.12 + 0.05j])
    energy = np.sum(np.abs(dpd.amplify(pilots, c)) ** 2)
    receivers, transmitters = 40, 3000
    gains = np.exp(2j * np.pi * rng.uniform(size=(receivers, transmitters)))
    strength = 120.0
    s = receivers * energy / strength
    # The statistics' noise is that of the samples: made on them in one go.
    y = gains[..., None] * dpd.amplify(pilots, c) + noise(rng, (receivers, transmitters, 100), s)
    found = dpd.identify_amplifiers(dpd.pilot_statistics(y, pilots), noise_var=s)
    bound = dpd.coefficient_crlb(c, pilots, receivers / s)[0, 0].real
    ratio = np.abs(found.coefficients[:, 1] - c[1]) ** 2 / bound
    # Mean of what has heavy tails: the median of an exponential variable is log 2.
    assert np.median(ratio) / np.log(2) == pytest.approx(1 + receivers / strength, rel=0.1)
    assert np.median(found.covariance[:, 0, 0].real) / bound == pytest.approx(1 + receivers / strength, rel=0.1)
    assert np.mean(found.heard) > 0.999
    silent = dpd.identify_amplifiers(dpd.pilot_statistics(noise(rng, y.shape, s), pilots), noise_var=s)
    # 3000 transmitters: a false alarm of 1e-3 is exceeded by four standard errors at 10.
    assert np.sum(silent.heard) <= 10
    assert np.all(silent.refused | silent.heard)
    assert bounds.svd_threshold(receivers, 2) == pytest.approx(np.sqrt(80))


def test_third_order_fit_of_a_ninth_order_amplifier_is_limited_by_mismatch_not_noise():
    rng = np.random.default_rng(9)
    h, gains = array(rng, 2, 8)
    pilots = dpd.design_pilots(400, rng=rng)
    s = reference_noise(h, 40.0)
    y = gains[..., None] * dpd.amplify(pilots, GAN) + noise(rng, (16, 16, 400), s)
    statistics = dpd.pilot_statistics(y, pilots, order=9)
    third, ninth = (dpd.identify_amplifiers(statistics, order=order) for order in (3, 9))
    assert np.all(third.mismatch_limited)
    assert not np.any(ninth.mismatch_limited)
    # What a direct least-squares fit of order 3 leaves of the noiseless output.
    basis = pilots[:, None] * np.abs(pilots[:, None]) ** [0, 2]
    output = dpd.amplify(pilots, GAN)
    fitted = np.linalg.lstsq(basis, output, rcond=None)[0]
    expected = np.sum(np.abs(output - basis @ fitted) ** 2) / np.sum(np.abs(pilots * fitted[0]) ** 2)
    # The noise in what lies beyond moves its power by 2 sqrt(noise / mismatch).
    spread = 2 * np.sqrt(1 / (np.median(third.gain_energy) * np.sum(np.abs(pilots) ** 2)) / expected)
    np.testing.assert_allclose(third.mismatch, expected, rtol=6 * spread)
    assert 6 * spread < 0.1
    assert np.all(third.mismatch > 10 * third.distortion_with)
    # A third-order amplifier in the same noise is not accused.
    y = gains[..., None] * dpd.amplify(pilots, third_order(rng, 16)) + noise(rng, (16, 16, 400), s)
    assert not np.any(dpd.identify_amplifiers(dpd.pilot_statistics(y, pilots)).mismatch_limited)


def test_order_9_predistorter_of_the_gan_amplifier_reaches_minus_55_db():
    rng = np.random.default_rng(10)
    h, gains = array(rng, 2, 8)
    pilots = dpd.design_pilots(400, rng=rng)
    s = reference_noise(h, 40.0)
    y = gains[..., None] * dpd.amplify(pilots, GAN) + noise(rng, (16, 16, 400), s)
    found = dpd.identify_amplifiers(dpd.pilot_statistics(y, pilots, order=9))
    data = noise(rng, (16, 20000), 0.1)
    reach = dpd.invertible_range(found.coefficients, max_amplitude=found.max_amplitude).output_amplitude
    data[np.abs(data) > reach[:, None]] = 0.0
    out = dpd.amplify(found.predistort(data).samples, GAN)
    gain = np.sum(out * data.conj(), axis=-1) / np.sum(np.abs(data) ** 2, axis=-1)
    nmse = np.mean(np.sum(np.abs(out - gain[:, None] * data) ** 2, axis=-1) / np.sum(np.abs(data) ** 2, axis=-1))
    assert 10 * np.log10(nmse) < -65.0
    # The prediction is what is found, on the average over 16 ports.
    assert 10 * np.log10(nmse) == pytest.approx(10 * np.log10(found.distortion_with.mean()), abs=3.0)


def test_refusal_is_where_predistortion_does_not_help():
    rng = np.random.default_rng(11)
    pilots, ports = dpd.design_pilots(100, rng=rng), 300
    c = np.array([1.0, -0.12 + 0.05j])
    amplitudes = dpd.data_amplitudes(64)
    without = bounds.distortion_without(c, amplitudes)
    shares = []
    for snr_db in (-5.0, 7.0, 25.0):
        gains, s = np.exp(2j * np.pi * rng.uniform(size=(15, ports))), 10 ** (-snr_db / 10)
        y = gains[..., None] * dpd.amplify(pilots, c) + noise(rng, (15, ports, 100), s)
        found = dpd.identify_amplifiers(dpd.pilot_statistics(y, pilots), noise_var=s, amplitudes=amplitudes)
        matrix = bounds.predistorted_distortion(found.coefficients, amplitudes, 1.0)[0]
        actual = matrix[:, 0, 0].real * np.abs(found.coefficients[:, 1] - c[1]) ** 2
        shares.append(found.refused.mean())
        if snr_db >= 7.0:
            # Mean of 300 nearly exponential variables.
            assert actual.mean() == pytest.approx(found.distortion_with.mean(), rel=4 / np.sqrt(ports))
        safe = np.where(found.refused, without, actual)
        assert safe.mean() < 1.1 * without
        assert np.all(found.safe_coefficients[found.refused] == [1.0, 0.0])
        assert np.array_equal(found.safe_coefficients[~found.refused], found.coefficients[~found.refused])
    assert shares[0] > 0.99
    assert shares[1] > 0.8
    assert shares[2] == 0.0
    # A linear amplifier is left alone: estimates pass by chance with exp(-7).
    y = gains[..., None] * pilots + noise(rng, (15, ports, 100), s)
    linear = dpd.identify_amplifiers(dpd.pilot_statistics(y, pilots), noise_var=s)
    assert linear.refused.mean() > 0.98
    samples = np.full((ports, 2), 30.0 + 1j)
    kept = linear.predistort(samples)
    assert np.array_equal(kept.samples[linear.refused], samples[linear.refused])
    assert np.all(kept.num_clipped[linear.refused] == 0)


@pytest.mark.parametrize(("coefficients", "order"), [(GAN, 9), (np.array([1.0, -0.2]), 3), (np.array([1.0, 0.2j]), 3)])
def test_predistorter_never_makes_things_worse_however_much_it_clips(coefficients, order):
    rng = np.random.default_rng(16)
    pilots = dpd.design_pilots(100, rng=rng)
    statistics = dpd.pilot_statistics(noise(rng, (4, 1, 1)) * dpd.amplify(pilots, coefficients), pilots, order=order)
    refused = []
    for backoff_db in (-6.0, -3.0, 0.0, 3.0, 6.0, 9.0, 12.0):
        amplitudes = dpd.data_amplitudes(500, backoff_db=backoff_db)
        found = dpd.identify_amplifiers(statistics, amplitudes=amplitudes)
        left = []
        for inputs in (found.predistort(amplitudes[None] + 0j).samples[0], amplitudes):
            output = dpd.amplify(inputs, coefficients)
            gain = np.sum(output * amplitudes) / np.sum(amplitudes**2)
            left.append(np.sum(np.abs(output - gain * amplitudes) ** 2) / np.sum(np.abs(gain * amplitudes) ** 2))
        assert left[0] <= left[1] * (1 + 1e-6)
        refused.append(bool(found.refused[0]))
        reach = dpd.invertible_range(coefficients, max_amplitude=1.0).output_amplitude
        assert found.clipped_share[0] == pytest.approx(np.mean(amplitudes > reach), abs=0.003)
    assert not refused[-1]
    # Amplitudes that are nearly all clipped do better with a soft amplifier.
    assert refused[0] == (coefficients[1].real < 0.0)


def test_distortion_without_predistortion_is_predicted_without_bias():
    rng = np.random.default_rng(17)
    pilots, c, amplitudes = dpd.design_pilots(100, rng=rng), np.array([1.0, -0.12 + 0.05j]), dpd.data_amplitudes(64)
    gains, s = np.exp(2j * np.pi * rng.uniform(size=(15, 2000))), 10**-1.5
    y = gains[..., None] * dpd.amplify(pilots, c) + noise(rng, (15, 2000, 100), s)
    found = dpd.identify_amplifiers(dpd.pilot_statistics(y, pilots), noise_var=s, amplitudes=amplitudes)
    truth = bounds.distortion_without(c, amplitudes)
    # The error of kappa adds its own power, here 7 %; what the estimates scatter follows from the amplitude of kappa.
    scatter = found.distortion_without.std() / np.sqrt(2000)
    assert found.distortion_without.mean() == pytest.approx(truth, abs=4 * scatter)
    assert 8 * scatter < np.mean(found.distortion_with) < 0.2 * truth


@pytest.mark.parametrize("combining", ["svd", "average"])
def test_dead_receivers_and_transmitters_are_flagged_and_do_no_harm(combining):
    rng = np.random.default_rng(12)
    pilots, c, s = dpd.design_pilots(100, rng=rng), third_order(rng, 8), 1e-6
    gains = np.exp(2j * np.pi * rng.uniform(size=(8, 8)))
    y = gains[..., None] * dpd.amplify(pilots, c) + noise(rng, (8, 8, 100), s)
    y[3], y[4], y[6] = 0.0, np.nan, noise(rng, (8, 100), s)
    y[:, 5] = noise(rng, (8, 100), s)
    mask = np.ones((8, 8), bool)
    mask[7, 0] = False
    y[7, 0] = 1e6
    found = dpd.identify_amplifiers(
        dpd.pilot_statistics(y, pilots, mask=mask), combining=combining, coupling=gains.astype(complex)
    )
    assert found.deaf.tolist() == [i in (3, 4, 6) for i in range(8)]
    assert found.refused.tolist() == (~found.heard).tolist() == [m == 5 for m in range(8)]
    alive = np.arange(8) != 5
    variance = found.covariance[alive, 0, 0].real
    assert np.all(np.abs(found.coefficients[alive, 1] - c[alive, 1]) ** 2 < 16 * variance)
    assert np.all(variance < 1e-5)
    assert np.all(np.isfinite(found.predistort(noise(rng, (8, 50), 0.1)).samples))


def test_saturated_receivers_are_left_out_or_at_least_noticed():
    rng = np.random.default_rng(13)
    pilots, c, s = dpd.design_pilots(100, rng=rng), third_order(rng, 8), 1e-6
    gains = 0.1 * np.exp(2j * np.pi * rng.uniform(size=(8, 8)))
    gains[2, 3] *= 10
    y = gains[..., None] * dpd.amplify(pilots, c) + noise(rng, (8, 8, 100), s)
    y = np.clip(y.real, -0.5, 0.5) + 1j * np.clip(y.imag, -0.5, 0.5)
    unaware = dpd.identify_amplifiers(dpd.pilot_statistics(y, pilots))
    assert unaware.receivers_disagree.tolist() == [m == 3 for m in range(8)]
    aware = dpd.identify_amplifiers(dpd.pilot_statistics(y, pilots, full_scale=0.5))
    assert aware.saturated.tolist() == [m == 3 for m in range(8)]
    assert not np.any(aware.receivers_disagree)
    assert np.all(np.abs(aware.coefficients[:, 1] - c[:, 1]) ** 2 < 16 * aware.covariance[:, 0, 0].real)


def test_a_receiver_that_sees_a_slightly_different_amplifier_is_noticed():
    rng = np.random.default_rng(15)
    pilots, c, ports = dpd.design_pilots(100, rng=rng), np.array([1.0, -0.12 + 0.05j]), 200
    gains, s = np.exp(2j * np.pi * rng.uniform(size=(7, ports))), 1e-3
    equal = gains[..., None] * dpd.amplify(pilots, c) + noise(rng, (7, ports, 100), s)
    # Energy of the difference over the noise: 60, where 18 degrees of freedom exceed 37 with a probability of 1e-4.
    information = bounds.pilot_information(pilots, c)[0, 0].real
    change = np.sqrt(60 * s / information / (1 - 1 / 7)) * pilots * np.abs(pilots) ** 2
    other = equal.copy()
    other[2] += gains[2][:, None] * change
    flagged = [dpd.identify_amplifiers(dpd.pilot_statistics(y, pilots), noise_var=s).receivers_disagree.sum()
               for y in (equal, other)]  # fmt: skip
    assert flagged[0] <= 1
    assert flagged[1] > 0.9 * ports


def test_memory_that_no_order_explains_is_found_when_the_noise_is_known():
    rng = np.random.default_rng(14)
    pilots, s = dpd.design_pilots(300, rng=rng), 1e-6
    memory = np.array([[1.0, -0.1 + 0.05j], [0.03, 0.01j]])
    gains = np.exp(2j * np.pi * rng.uniform(size=(5, 5)))
    y = gains[..., None] * dpd.amplify_with_memory(pilots, memory) + noise(rng, (5, 5, 300), s)
    assert np.all(dpd.identify_amplifiers(dpd.pilot_statistics(y, pilots), noise_var=s).unexplained)
    statistics = dpd.pilot_statistics(y, pilots, memory_depth=2)
    found = dpd.identify_amplifiers(statistics, noise_var=s)
    assert not np.any(found.unexplained)
    assert np.abs(found.coefficients - memory).max() < 1e-2


def test_wrong_arguments_are_named():
    pilots, y = np.ones(10), np.ones((3, 3, 10), complex)
    two = dpd.design_pilots(10, "two_level")
    for call, word in [
        (lambda: dpd.identify(y, pilots), "amplitudes"),
        (lambda: dpd.identify(y, two, order=5), "amplitudes"),
        (lambda: dpd.identify(y, two, order=4), "odd"),
        (lambda: dpd.identify(y, two[:5]), "pilots"),
        (lambda: dpd.identify(y[0], two), "y must"),
        (lambda: dpd.identify(y, two, combining="average"), "coupling"),
        (lambda: dpd.identify(y, two, combining="mean"), "combining"),
        (lambda: dpd.identify(y, two, noise_var=-1.0), "noise_var"),
        (lambda: dpd.identify(y[..., :2], np.array([0.5, 1.0])), "noise"),
        (lambda: dpd.identify_amplifiers(dpd.pilot_statistics(y, two), order=5), "order"),
        (lambda: dpd.pilot_statistics(y, two, mask=np.ones(3, bool)), "mask"),
        (lambda: dpd.pilot_statistics(y, 0 * two), "zero"),
    ]:
        with pytest.raises(ValueError, match=word):
            call()
