# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest
from gnuradio.dmimo.core import sounding
from gnuradio.dmimo.core.waveforms import SlotLayout, SoundingSymbol, orthonormal_pilots

SYMBOL = SoundingSymbol()
LAYOUT = SlotLayout(256, 16, SYMBOL)


def complex_normal(rng, shape):
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)


def received(taps, layout=LAYOUT):
    """The layout's burst through a finite impulse response, port contributions summed: (slot_samples,)."""
    burst = layout.sounding_burst(dtype=np.complex128)
    return sum(np.convolve(row, h)[: burst.shape[-1]] for row, h in zip(burst, taps, strict=True))


def response(taps, symbol=SYMBOL):
    return np.exp(-2j * np.pi * np.outer(symbol.bins, np.arange(len(taps))) / symbol.pilot_samples) @ taps


def test_estimate_is_exact_for_any_channel_within_the_prefix():
    taps = complex_normal(np.random.default_rng(1), 33)
    h = sounding.channel_estimate(received([taps]), SYMBOL, LAYOUT.useful_start(0))
    np.testing.assert_allclose(h, response(taps), atol=1e-12)


def test_estimate_is_wrong_for_a_channel_longer_than_the_prefix():
    taps = np.r_[np.zeros(60), 1]
    h = sounding.channel_estimate(received([taps]), SYMBOL, LAYOUT.useful_start(0))
    assert np.max(np.abs(h - response(taps))) > 0.1


def test_ports_are_separated_exactly_whatever_their_delays_and_carriers():
    layout = SlotLayout(720, 16, SYMBOL, num_ports=4)
    rng = np.random.default_rng(2)
    taps = complex_normal(rng, (4, 33))
    everything = received(taps, layout) * np.exp(2j * np.pi * 0.003 * np.arange(720))
    for port in range(4):
        alone = received([row * (index == port) for index, row in enumerate(taps)], layout)
        alone = alone * np.exp(2j * np.pi * 0.003 * np.arange(720))
        start = layout.useful_start(port)
        np.testing.assert_allclose(
            sounding.channel_estimate(everything, SYMBOL, start), sounding.channel_estimate(alone, SYMBOL, start),
            atol=1e-12,
        )


def test_an_early_window_looks_like_a_common_delay_and_takes_early_arrivals():
    early = SlotLayout(256, 16, SYMBOL, advance_samples=10)
    burst = LAYOUT.sounding_burst(dtype=np.complex128)[0]
    for delay in (-10, 0, 22):
        h = sounding.channel_estimate(np.roll(burst, delay), SYMBOL, early.useful_start(0))
        np.testing.assert_allclose(h, np.exp(-2j * np.pi * SYMBOL.bins * (delay + 10) / 128), atol=1e-12)


@pytest.mark.parametrize("num_subcarriers", [96, 97])
def test_phase_of_a_rotating_carrier_belongs_to_the_centroid_of_the_symbol(num_subcarriers):
    symbol = SoundingSymbol(128, num_subcarriers, 32)
    layout, cfo, start = SlotLayout(256, 16, symbol, advance_samples=5), 1e-5, 1000
    rotation = np.exp(2j * np.pi * cfo * (start + np.arange(256)))
    sent = layout.sounding_burst(dtype=np.complex128)[0]
    h = sounding.channel_estimate(sent * rotation, symbol, layout.useful_start(0))
    h = h * np.exp(2j * np.pi * symbol.bins * 5 / 128)
    window = np.arange(layout.useful_start(0), layout.useful_start(0) + 128)
    centroid = np.average(window, weights=np.abs(sent[window]) ** 2)
    expected = 2 * np.pi * cfo * (start + centroid)
    np.testing.assert_allclose(np.angle(np.mean(h)), expected, atol=2 * np.pi * cfo * 1e-3)
    assert abs(centroid - layout.middle(0)) < 2


def test_batch_equals_loop():
    samples = complex_normal(np.random.default_rng(3), (2, 3, 256))
    h = sounding.channel_estimate(samples, SYMBOL, 48)
    power = sounding.received_power(samples, SYMBOL, 48)
    assert h.shape == (2, 3, 96)
    assert power.power.shape == power.std.shape == (2, 3)
    np.testing.assert_array_equal(h[1, 2], sounding.channel_estimate(samples[1, 2], SYMBOL, 48))
    np.testing.assert_allclose(power.power[1, 2], sounding.received_power(samples[1, 2], SYMBOL, 48).power, rtol=1e-12)


@pytest.mark.parametrize("start", [-1, 129])
def test_window_outside_the_samples_raises(start):
    with pytest.raises(ValueError, match=f"start={start}"):
        sounding.channel_estimate(np.zeros(256), SYMBOL, start)


def test_noise_variance_of_the_estimates_follows_the_closed_form():
    rng, trials, sample_var = np.random.default_rng(4), 2000, 0.3
    noise = np.sqrt(sample_var) * complex_normal(rng, (trials, 128))
    h = sounding.channel_estimate(noise, SYMBOL, 0)
    averaged = sounding.subband_average(h, 12)
    for estimate, groups in ((h, None), (averaged, 12)):
        expected = sounding.estimate_noise_variance(SYMBOL, sample_var, groups)
        ratio = np.mean(np.abs(estimate) ** 2) / expected
        assert abs(ratio - 1) < 4 / np.sqrt(estimate.size)
    assert expected == pytest.approx(0.3 * 12 / 128)
    # Independent between sub-bands.
    cross = averaged.T @ averaged.conj() / trials / expected
    assert np.max(np.abs(cross - np.diag(np.diag(cross)))) < 5 / np.sqrt(trials)


def test_every_noise_estimate_is_unbiased_and_agrees_with_its_deviation():
    rng, trials, sample_var = np.random.default_rng(5), 2000, 0.02
    taps = complex_normal(rng, 2)
    samples = received([taps]) + np.sqrt(sample_var) * complex_normal(rng, (trials, 256))
    silent = sounding.noise_variance(samples[:, LAYOUT.silence])
    empty = sounding.empty_bin_noise_variance(samples, SYMBOL, LAYOUT.useful_start(0))
    h = sounding.channel_estimate(samples, SYMBOL, LAYOUT.useful_start(0))
    residual = sounding.residual_noise_variance(h, SYMBOL, 12) * 128 / 96
    assert residual.shape == (trials, 12)
    freedoms = (LAYOUT.silence.stop - LAYOUT.silence.start, SYMBOL.empty_bins.size, 6)
    for estimate, freedom in zip((silent, empty, residual), freedoms, strict=True):
        deviation = sample_var / np.sqrt(freedom)
        # The fit leaves some curvature of the channel: allow 0.5 %.
        assert abs(np.mean(estimate) - sample_var) < 4 * deviation / np.sqrt(estimate.size) + 0.005 * sample_var
        assert np.std(estimate) == pytest.approx(deviation, rel=0.1)


def test_residual_noise_is_zero_for_a_linear_channel_and_bounded_for_a_delay():
    slope = 1 + 0.3j + (0.01 - 0.02j) * SYMBOL.bins
    np.testing.assert_allclose(sounding.residual_noise_variance(slope, SYMBOL, 12), 0, atol=1e-24)
    # An odd number of groups puts the gap at band centre inside one: the fit must use the true bins.
    np.testing.assert_allclose(sounding.residual_noise_variance(slope, SYMBOL, 3), 0, atol=1e-24)
    delayed = np.exp(-2j * np.pi * SYMBOL.bins * 0.5 / 128)
    left = sounding.residual_noise_variance(delayed, SYMBOL, 12)
    assert np.all(left < 2 * (2 * np.pi * 0.5 * 8 / 128) ** 4 / 720)
    assert np.all(left > 0)


def test_subbands_average_neighbours_and_name_their_true_centres():
    h = np.arange(96.0)
    np.testing.assert_allclose(sounding.subband_average(h, 12), 3.5 + 8 * np.arange(12))
    centres = sounding.subband_centres_hz(SYMBOL, 12, 1e6)
    step = 1e6 / 128
    np.testing.assert_allclose(centres[[0, 5, 6, 11]], np.array([-44.5, -4.5, 4.5, 44.5]) * step)
    np.testing.assert_allclose(sounding.subband_centres_hz(SYMBOL, 3, 1e6)[1], 0, atol=1e-9)
    # For a small delay the phase of a sub-band is the phase at its centre.
    delayed = np.exp(-2j * np.pi * SYMBOL.bins * 0.01 / 128)
    phase = np.angle(sounding.subband_average(delayed, 12))
    np.testing.assert_allclose(phase, -2 * np.pi * centres * 0.01e-6, atol=1e-12)


@pytest.mark.parametrize("num_subbands", [0, 7, 97])
def test_unequal_groups_raise(num_subbands):
    with pytest.raises(ValueError, match=f"num_subbands={num_subbands}"):
        sounding.subband_average(np.zeros(96), num_subbands)
    with pytest.raises(ValueError, match=f"num_subbands={num_subbands}"):
        sounding.subband_centres_hz(SYMBOL, num_subbands, 1.0)


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("amplitude", [0.0, 0.1, 3.0])
def test_received_power_is_unbiased_and_its_deviation_is_as_predicted(amplitude, known):
    rng, trials, sample_var = np.random.default_rng(6), 4000, 0.5
    samples = received([np.r_[np.zeros(7), amplitude]]) + np.sqrt(sample_var) * complex_normal(rng, (trials, 256))
    estimate = sounding.received_power(
        samples, SYMBOL, LAYOUT.useful_start(0), noise_var=sample_var if known else None
    )
    spread = np.std(estimate.power)
    assert abs(np.mean(estimate.power) - amplitude**2) < 4 * spread / np.sqrt(trials)
    predicted = np.sqrt(np.mean(estimate.std**2))
    # Standard error of a sample deviation: 1 / sqrt(2 trials); max(power, 0) inside the prediction biases it upwards
    # where there is no signal.
    assert spread == pytest.approx(predicted, rel=4 / np.sqrt(2 * trials) + (0.05 if amplitude < 1 else 0))


def test_received_power_is_exact_without_noise_for_any_delay_and_a_small_frequency_offset():
    for taps in ([0.5j], np.r_[np.zeros(32), 2.0], [0.3, 0, 0.4j]):
        power, std = sounding.received_power(received([np.asarray(taps)]), SYMBOL, LAYOUT.useful_start(0))
        np.testing.assert_allclose(power, np.mean(np.abs(response(np.asarray(taps))) ** 2), rtol=1e-12)
        assert std < 1e-12
    rotating = received([np.ones(1)]) * np.exp(2j * np.pi * 50e-6 * np.arange(256))
    power, _ = sounding.received_power(rotating, SYMBOL, LAYOUT.useful_start(0))
    assert abs(power - 1) < 4 * (50e-6 * 128) ** 2


def test_power_needs_the_noise_where_no_bin_is_empty():
    full = SoundingSymbol(63, 63, 0)
    samples = full.samples()
    with pytest.raises(ValueError, match="no empty bin"):
        sounding.received_power(samples, full, 0)
    assert sounding.received_power(samples, full, 0, noise_var=0.0).power == pytest.approx(1, rel=1e-12)


def test_not_finite_samples_give_not_finite_estimates_of_their_window_only():
    samples = np.stack([received([np.ones(1)])] * 2)
    samples[0, 60] = np.nan
    assert not np.isfinite(sounding.channel_estimate(samples, SYMBOL, 48)[0]).any()
    assert np.isfinite(sounding.channel_estimate(samples, SYMBOL, 48)[1]).all()


def test_matched_filter_recovers_a_flat_channel_with_the_noise_of_one_sample():
    rng = np.random.default_rng(7)
    pilots = orthonormal_pilots(3, 16, "zadoff_chu")
    h = complex_normal(rng, (5, 2, 3))
    np.testing.assert_allclose(sounding.matched_filter(h @ pilots, pilots), h, atol=1e-12)
    noise = complex_normal(rng, (4000, 16))
    assert abs(np.mean(np.abs(sounding.matched_filter(noise, pilots)) ** 2) - 1) < 4 / np.sqrt(12000)


def test_no_silence_raises():
    with pytest.raises(ValueError, match="samples is empty"):
        sounding.noise_variance(np.zeros((3, 0)))


@pytest.mark.parametrize("delay", [0, 19, -7])
def test_common_delay_is_found_and_its_removal_keeps_the_energy_of_sub_bands(delay):
    symbol = SoundingSymbol(128, 96, 32)
    rng = np.random.default_rng(4)
    flat = rng.normal(size=(5, 3, 1)) + 1j * rng.normal(size=(5, 3, 1))
    h = flat * np.exp(-2j * np.pi * symbol.bins * delay / 128)
    assert sounding.common_delay(h, symbol) == pytest.approx(delay, abs=1e-9)
    kept = sounding.subband_average(sounding.advance(h, symbol, delay), 12)
    np.testing.assert_allclose(kept, np.broadcast_to(flat, kept.shape), rtol=1e-9)
