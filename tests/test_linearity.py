# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest
from gnuradio.dmimo.core import linearity, metrics
from gnuradio.dmimo.core.waveforms import SlotLayout, SoundingSymbol

SYMBOL = SoundingSymbol(pilot_samples=256, num_subcarriers=64, prefix_samples=16)


def layout_of(num_symbols, symbol=SYMBOL, **options):
    slot = 10 + num_symbols * symbol.total_samples + symbol.prefix_samples + 30
    return SlotLayout(slot, 10, symbol, num_symbols, **options)


def complex_normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def ofdm(data, layout):
    """Slots (..., slot_samples) from data (..., L, K): a sum of exponentials, bin by bin."""
    symbol = layout.symbol
    n = np.arange(-symbol.prefix_samples, symbol.pilot_samples)
    waves = np.exp(2j * np.pi * np.outer(symbol.bins, n) / symbol.pilot_samples) / np.sqrt(symbol.num_subcarriers)
    samples = np.zeros((*data.shape[:-2], layout.slot_samples), complex)
    for number in range(data.shape[-2]):
        start = layout.symbol_start(number)
        samples[..., start : start + n.size] = data[..., number, :] @ waves
    return samples


def received_data(rng, slots, symbols, bins=64, *, trials=(), noise_var=0.0, modulation="qam16", phases=True):
    """Y, X (..., S, L, K) and H (..., K) through unequal channels, with a phase of each symbol."""
    x = linearity.draw_data(rng, (*trials, slots, symbols, bins), modulation)
    h = complex_normal(rng, *trials, bins)
    turn = np.exp(2j * np.pi * rng.random((*trials, slots, symbols, 1))) if phases else 1.0
    y = turn * h[..., None, None, :] * x
    return y + np.sqrt(noise_var) * complex_normal(rng, *y.shape), x, h


def assert_unbiased(values, stds, wanted):
    """The mean of trials within 4 standard errors, and the predicted error within 4 of its own."""
    mean, error = metrics.mean_and_standard_error(values)
    assert abs(mean - wanted) < 4 * error
    predicted, spread = np.mean(stds**2), np.var(values, ddof=1)
    # Relative deviation of a variance of n trials, and of the mean of predicted ones.
    slack = 4 * (np.sqrt(2 / (len(values) - 1)) * spread + np.std(stds**2) / np.sqrt(len(stds)))
    assert abs(predicted - spread) < slack, (predicted, spread)


@pytest.mark.parametrize(("modulation", "fourth"), [("qpsk", 1.0), ("qam16", 1.32), ("gaussian", 2.0)])
def test_data_have_unit_power_and_their_kurtosis(modulation, fourth):
    x = linearity.draw_data(np.random.default_rng(1), (200, 500), modulation)
    power = np.abs(x.ravel()) ** 2
    for values, wanted in ((x.ravel().real, 0.0), (power, 1.0), (power**2, fourth), ((x**2).ravel().real, 0.0)):
        mean, error = metrics.mean_and_standard_error(values)
        assert abs(mean - wanted) <= 4 * error + 1e-12
    assert len(np.unique(x.round(9))) == {"qpsk": 4, "qam16": 16, "gaussian": x.size}[modulation]


def test_unknown_modulation_is_refused():
    with pytest.raises(ValueError, match="modulation = 'qam64'"):
        linearity.draw_data(np.random.default_rng(1), (2,), "qam64")


@pytest.mark.parametrize("symbol", [SYMBOL, SoundingSymbol(45, 15, 8), SoundingSymbol(45, 14, 8)])
def test_spectra_are_the_data_and_nothing_besides(symbol):
    """An independent modulator; a window that opens early turns the bins."""
    layout = layout_of(3, symbol, advance_samples=5, latency_samples=7, receive_delay_samples=3)
    data = linearity.draw_data(np.random.default_rng(2), (4, 3, symbol.num_subcarriers))
    samples = np.roll(ofdm(data, layout), 10, axis=-1)
    spectra = linearity.symbol_spectra(samples, layout)
    assert spectra.shape == (4, 3, symbol.pilot_samples)
    turn = np.exp(-2j * np.pi * symbol.bins * 5 / symbol.pilot_samples)
    np.testing.assert_allclose(linearity.occupied(spectra, symbol), data * turn, atol=1e-12)
    empty = ~np.isin(linearity.bin_indices(symbol), symbol.bins)
    assert np.abs(spectra[..., empty]).max() < 1e-12
    assert linearity.bin_indices(symbol)[symbol.pilot_samples // 2] == 0


def test_noise_of_spectra_has_the_stated_variance():
    rng = np.random.default_rng(3)
    layout = layout_of(4)
    spectra = linearity.symbol_spectra(np.sqrt(0.3) * complex_normal(rng, 200, layout.slot_samples), layout)
    mean, error = metrics.mean_and_standard_error(np.abs(spectra.ravel()) ** 2)
    assert abs(mean - 0.3 * 64 / 256) < 4 * error


@pytest.mark.parametrize("modulation", ["qpsk", "qam16", "gaussian"])
def test_error_vector_is_zero_without_noise_whatever_channel_and_phases(modulation):
    rng = np.random.default_rng(4)
    y, x, h = received_data(rng, 3, 2, 24, trials=(5,), modulation=modulation)
    vector = linearity.error_vector(y, x)
    assert np.abs(vector.received.value).max() < 1e-20
    assert np.abs(vector.gains) == pytest.approx(np.abs(h), rel=1e-9)


def test_phase_of_each_symbol_counts_as_error_where_it_is_not_removed():
    y, x, _ = received_data(np.random.default_rng(4), 3, 2, phases=False, modulation="qpsk")
    turned = y * np.exp(0.1j * np.array([1, -1, 1, -1, 1, -1])).reshape(3, 2, 1)
    assert linearity.error_vector(y, x, common_phase=False).received.value < 1e-25
    assert linearity.error_vector(turned, x).received.value < 1e-20
    kept = linearity.error_vector(turned, x, common_phase=False).received.value
    error = np.sin(0.1) ** 2 * 6 / 5  # the tap is cos(0.1) of the channel; n / (n - 1)
    assert kept == pytest.approx(error / (1 - error), rel=1e-9)


@pytest.mark.parametrize("common_phase", [True, False])
def test_error_vector_of_white_noise_is_the_inverse_of_the_snr(common_phase):
    """Unbiased with few symbols and bins too, where taps and phases take up much of the noise."""
    rng = np.random.default_rng(5)
    y, x, h = received_data(rng, 4, 1, 6, trials=(4000,), noise_var=1e-4, phases=common_phase)
    vector = linearity.error_vector(y, x, 1e-4, common_phase=common_phase)
    # Energy of what was received, trial by trial: the channel is random.
    energy = np.mean(np.abs(h[:, None, None] * x) ** 2, axis=(1, 2, 3))
    for ratio, wanted in ((vector.received, 1e-4), (vector.corrected, 0.0)):
        mean, error = metrics.mean_and_standard_error(ratio.value * energy)
        assert abs(mean - wanted) < 4 * error
        assert error < 2e-6


def test_standard_errors_of_the_error_vector_hold():
    """Noise known, and noise measured in each slot: then its error is the larger part."""
    rng = np.random.default_rng(6)
    y, x, _ = received_data(rng, 24, 2, 32, trials=(1500,), phases=True)
    y = y / np.sqrt(np.mean(np.abs(y) ** 2, axis=(1, 2, 3), keepdims=True))
    y = y + 0.1 * complex_normal(rng, *y.shape)
    for measured in (0.01, 0.01 * rng.chisquare(16, (1500, 24)) / 16):
        evm = linearity.error_vector(y, x, measured).corrected
        assert_unbiased(evm.value, evm.std, 0.0)


def test_error_vector_of_a_batch_equals_its_parts_and_scale_does_not_matter():
    y, x, _ = received_data(np.random.default_rng(7), 5, 2, trials=(3,), noise_var=0.01)
    noise = np.linspace(0.005, 0.015, 15).reshape(3, 5)
    batch = linearity.error_vector(y, x, noise).corrected
    for k in range(3):
        one = linearity.error_vector(7j * y[k], x[k], 49 * noise[k]).corrected
        assert one.value == pytest.approx(batch.value[k], rel=1e-9)
        assert one.std == pytest.approx(batch.std[k], rel=1e-9)


def test_one_symbol_is_too_few_for_an_error_vector_and_one_slot_for_its_error():
    y, x, _ = received_data(np.random.default_rng(8), 1, 2)
    assert np.isnan(linearity.error_vector(y, x).received.std)
    with pytest.raises(ValueError, match="1 symbols"):
        linearity.error_vector(y[:, :1], x[:, :1])


def third_order(compression, slots, symbols, *, trials, seed, noise_var=0.0, power=1.0, symbol=SYMBOL):
    """Spectra (trials, S, L, N) and data of Gaussian data through x + a x |x|^2."""
    rng, layout = np.random.default_rng(seed), layout_of(symbols, symbol)
    data = linearity.draw_data(rng, (trials, slots, symbols, symbol.num_subcarriers), "gaussian")
    x = np.sqrt(power) * ofdm(data, layout)
    y = x + compression * x * np.abs(x) ** 2
    y = y + np.sqrt(noise_var) * complex_normal(rng, *y.shape)
    return linearity.symbol_spectra(y, layout), data


def bussgang(compression, power, symbol):
    """Power of signal and distortion per bin, (N,) each, from Wick's theorem, by counting triples of bins.

    Gaussian x of power P: x + a x |x|^2 = (1 + 2 a P) x + d, and d has in bin k the power 2 |a|^2 P^3 / K^2 times the
    number of triples k1 + k2 - k3 = k, in units in which x has P in each of the K bins.
    """
    bins = linearity.bin_indices(symbol)
    line = np.isin(bins, symbol.bins).astype(float)
    triples = np.convolve(np.convolve(line, line), line[::-1])
    assert triples.sum() == symbol.num_subcarriers**3
    triples = triples[2 * (len(bins) // 2) + len(bins) - 1 - len(bins) // 2 + bins]  # where k = 0 stands in the sum
    distortion = 2 * np.abs(compression) ** 2 * power**3 * triples / symbol.num_subcarriers**2
    return line * power * np.abs(1 + 2 * compression * power) ** 2, distortion


@pytest.mark.parametrize("common_phase", [False, True])
@pytest.mark.parametrize("noise_var", [0.0, 4e-3])
def test_third_order_amplifier_has_the_error_vector_of_bussgangs_theorem(noise_var, common_phase):
    a, power = -0.03 + 0.04j, 1.3
    spectra, data = third_order(a, 16, 2, trials=150, seed=9, power=power, noise_var=noise_var)
    signal, distortion = bussgang(a, power, SYMBOL)
    noise, inside = noise_var * 64 / 256, np.isin(linearity.bin_indices(SYMBOL), SYMBOL.bins)
    received = linearity.occupied(spectra, SYMBOL)
    vector = linearity.error_vector(received, data, noise, common_phase=common_phase)
    wanted = distortion[inside].mean() / signal[inside].mean()
    if common_phase:  # a symbol's own mean power, of variance P^2 / K, turns it by Im(2 a / (1 + 2 a P)) of that
        wanted -= (2 * a / (1 + 2 * a * power)).imag ** 2 * power**2 / 64
    assert_unbiased(vector.corrected.value, vector.corrected.std, wanted)
    mean, error = metrics.mean_and_standard_error(vector.received.value)
    assert abs(mean - wanted - noise / signal[inside].mean()) < 4 * error
    if not common_phase:
        gain = np.mean(vector.gains) / (np.sqrt(power) * (1 + 2 * a * power))
        assert abs(gain - 1) < 1e-2


def test_two_thirds_of_the_distortion_lie_in_the_channel_and_a_sixth_on_each_side():
    """E|d|^2 = 2 |a|^2 P^3 in all; many subcarriers make the spectrum of three rectangles."""
    signal, distortion = bussgang(0.01, 1.0, SoundingSymbol(6144, 2000, 16))
    assert distortion.sum() / 2000 == pytest.approx(2e-4, rel=1e-6)
    bins = np.abs(linearity.bin_indices(SoundingSymbol(6144, 2000, 16)))
    shares = [distortion[which].sum() / distortion.sum() for which in (bins <= 1000, (bins > 1000) & (bins <= 3000))]
    assert shares == pytest.approx([2 / 3, 1 / 3], abs=1e-3)
    assert signal.sum() / 2000 == pytest.approx(1.02**2)


@pytest.mark.parametrize(("noise_var", "guard"), [(0.0, 0), (4e-3, 0), (0.0, 7)])
def test_third_order_amplifier_has_the_leakage_of_bussgangs_theorem(noise_var, guard):
    a, power = -0.03 + 0.04j, 1.3
    spectra, _ = third_order(a, 16, 2, trials=150, seed=10, power=power, noise_var=noise_var)
    signal, distortion = bussgang(a, power, SYMBOL)
    leakage = linearity.adjacent_leakage(spectra, SYMBOL, noise_var * 64 / 256, guard_subcarriers=guard)
    lower, upper = linearity.adjacent_bins(SYMBOL, guard)
    assert upper.tolist() == list(range(33 + guard, 97 + guard))
    channel = np.isin(linearity.bin_indices(SYMBOL), SYMBOL.bins)
    for side, bins in ((leakage.lower, lower), (leakage.upper, upper)):
        wanted = distortion[bins + 128].sum() / (signal + distortion)[channel].sum()
        assert_unbiased(side.value, side.std, wanted)


def test_sides_are_not_swapped_and_band_centre_does_not_count():
    spectra = np.zeros((2, 1, 256), complex)
    spectra[..., 128 + SYMBOL.bins] = 1.0
    spectra[..., 128 + 33 : 128 + 97] = 0.1  # above
    spectra[..., 128] = 100.0  # leakage of the local oscillator
    leakage = linearity.adjacent_leakage(spectra, SYMBOL)
    assert (leakage.lower.value, leakage.upper.value) == (0.0, pytest.approx(0.01))
    assert linearity.ratio_db(leakage.upper).value == pytest.approx(-20.0)
    guarded = linearity.adjacent_leakage(spectra, SYMBOL, guard_subcarriers=16)
    assert guarded.upper.value == pytest.approx(0.01 * 48 / 64)
    assert linearity.channel_power(spectra, SYMBOL, 0.25).value == 0.75
    assert linearity.mean_spectrum(spectra, SYMBOL)[[128, 140, 200, 30]] == pytest.approx([1e4, 1.0, 0.01, 0.0])


def test_noise_is_taken_out_of_the_channel_and_of_its_neighbours():
    """Noise of 0.25 within a channel of 1 and a neighbour of 0.36, of which 0.75 and 0.11 are signal."""
    spectra = np.zeros((2, 1, 256), complex)
    spectra[..., 128 + SYMBOL.bins] = 1.0
    spectra[..., 128 + 33 : 128 + 97] = 0.6  # above
    leakage = linearity.adjacent_leakage(spectra, SYMBOL, 0.25)
    assert leakage.upper.value == pytest.approx(0.11 / 0.75)
    assert leakage.lower.value == pytest.approx(-0.25 / 0.75)


def test_samples_that_do_not_show_the_adjacent_channels_are_refused():
    assert linearity.adjacent_bins(SoundingSymbol(193, 64, 16))[0][0] == -96
    with pytest.raises(ValueError, match="pilot_samples=192 must be at least 193"):
        linearity.adjacent_bins(SoundingSymbol(192, 64, 16))
    with pytest.raises(ValueError, match="at least 201"):
        linearity.adjacent_bins(SoundingSymbol(193, 64, 16), 4)
    with pytest.raises(ValueError, match="guard_subcarriers=-1"):
        linearity.adjacent_bins(SYMBOL, -1)


def test_nmse_ignores_a_gain_and_has_bussgangs_value():
    rng = np.random.default_rng(11)
    x = complex_normal(rng, 400, 500)
    a = 0.05 - 0.02j
    values = linearity.nmse(3j * (x + a * x * np.abs(x) ** 2), x)
    mean, error = metrics.mean_and_standard_error(values)
    # The best gain of 500 samples takes up a share of 4 / 500 at most (kurtosis of x times d).
    wanted = 2 * np.abs(a) ** 2 / np.abs(1 + 2 * a) ** 2
    assert abs(mean - wanted) < 4 * error + 0.008 * wanted
    assert np.abs(linearity.nmse(2 * x, x)).max() < 1e-30
    assert linearity.nmse([1.0, 1.0], [1.0, 0.0]) == pytest.approx(1.0)


def test_decibels_and_limits_of_a_ratio():
    ratio = linearity.Ratio(np.array([0.01, -0.001]), np.array([0.001, 0.002]))
    value, std = linearity.ratio_db(ratio)
    assert value[0] == pytest.approx(-20.0)
    assert std[0] == pytest.approx(10 * np.log10(1.1 / 0.9) / 2, rel=5e-3)
    assert np.isnan(value[1])
    assert np.isnan(std[1])
    assert linearity.upper_limit(ratio) == pytest.approx([0.012, 0.004])
