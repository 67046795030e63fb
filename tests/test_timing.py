# SPDX-License-Identifier: GPL-3.0-or-later
"""Arrival of a preamble, shifts by fractions of a sample, and the filter of a clock's offset and rate."""

import numpy as np
import pytest
from gnuradio.dmimo.core.timing import (
    ClockCorrection,
    acquire,
    delay_crlb,
    fractional_shift,
    preamble,
    relative_delay,
    response,
    track,
)
from gnuradio.dmimo.core.waveforms import zadoff_chu

SAMP_RATE = 1e6
SEARCH = {"samp_rate": SAMP_RATE, "max_offset_hz": 8e3}
X = preamble(512)


def tone_sum(delay, num, x=X):
    """The preamble delayed by trigonometric interpolation, written out as a sum of sinusoids: (..., num)."""
    size = 2 * x.size
    values = np.fft.fft(x, size)
    used = np.flatnonzero(np.abs(values) > 1e-12 * np.abs(values).max())
    cycles = np.fft.fftfreq(size)[used]
    n = np.arange(num)[:, None] - np.asarray(delay)[..., None, None]
    inside = (n[..., 0] > -100) & (n[..., 0] < x.size + 100)  # one period of the interpolation
    return np.where(inside, np.exp(2j * np.pi * n * cycles) @ (values[used] / size), 0.0)


def noise(rng, shape, variance=1.0):
    return np.sqrt(variance / 2) * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


def received(rng, delay, frequency_hz, gains, num, noise_var=0.0, x=X):
    """Samples (..., M, num) of gains (..., M)."""
    turn = np.exp(2j * np.pi * np.asarray(frequency_hz)[..., None] / SAMP_RATE * np.arange(num))
    y = np.asarray(gains)[..., None] * (tone_sum(delay, num, x) * turn)[..., None, :]
    return y + noise(rng, y.shape, noise_var)


# -- the preamble -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [256, 1000, 1024])
def test_preamble_stays_in_its_band_with_little_variation_of_its_power(length):
    x = preamble(length)
    assert np.mean(np.abs(x) ** 2) == pytest.approx(1.0)
    assert np.max(np.abs(x[length // 16 : -length // 16]) ** 2) < 10**0.1  # 1 dB
    spectrum, frequency = np.abs(np.fft.fft(x, 8 * length)) ** 2, np.fft.fftfreq(8 * length)
    assert spectrum[np.abs(frequency) > 0.4].sum() < 1e-5 * spectrum.sum()
    # Of a flat spectrum 0.75 wide.
    rms = np.sqrt(np.sum(spectrum * frequency**2) / spectrum.sum())
    assert rms == pytest.approx(0.75 / np.sqrt(12), rel=0.1)
    assert np.array_equal(x, preamble(length))


def ambiguity(x):
    """Normalised |correlation|^2 by frequency offset (up to 20 kHz) and delay, without the main lobe."""
    size, n, greatest = 2 * x.size, np.arange(x.size), 0.0
    for cycles in np.arange(-0.02, 0.02, 0.25 / x.size):
        z = np.fft.ifft(np.fft.fft(x * np.exp(2j * np.pi * cycles * n), size) * np.conj(np.fft.fft(x, size)))
        z = np.abs(z / x.size) ** 2
        if abs(cycles) < 1.0 / x.size:
            z[[0, 1, 2, -1, -2]] = 0.0
        greatest = max(greatest, z.max())
    return 10 * np.log10(greatest)


def test_no_delay_is_mistaken_for_another_whatever_the_carrier_offset():
    """A Zadoff-Chu sequence of the same length has a ridge: its correlation at 7 kHz only moves."""
    assert ambiguity(X) < -13.0
    assert ambiguity(zadoff_chu(512)) > -1.0


@pytest.mark.parametrize("arguments", [{"length": 23}, {"occupied": 0.0}, {"occupied": 1.01}])
def test_preambles_that_cannot_be_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        preamble(**arguments)


# -- the estimate -----------------------------------------------------------------------------------------------------


def test_estimate_is_exact_without_noise_for_any_fraction_and_frequency():
    rng = np.random.default_rng(1)
    delay, frequency = 100 + np.linspace(0, 2, 21), np.linspace(-7900.0, 7900.0, 21)
    found = acquire(received(rng, delay, frequency, noise(rng, (21, 2)), 700), X, **SEARCH)
    assert found.trusted.all()
    np.testing.assert_allclose(found.delay_samples, delay, atol=1e-4)
    np.testing.assert_allclose(found.frequency_hz, frequency, atol=0.05)


@pytest.mark.parametrize("snr_db", [20.0, 0.0])
@pytest.mark.parametrize("ports", [1, 4])
def test_errors_meet_the_bound_and_their_prediction(snr_db, ports):
    """Within 10 % of the bound: 750 trials have a standard error of 2.6 %."""
    rng, trials, snr, x = np.random.default_rng(2), 750, 10 ** (snr_db / 10), preamble(256)
    delay, frequency = rng.uniform(20, 60, 30), rng.uniform(-7e3, 7e3, 30)
    clean = received(rng, delay, frequency, np.exp(2j * np.pi * rng.random((30, ports))), 360, x=x)
    errors, predicted, powers = [], [], []
    for _ in range(trials // 30):
        found = acquire(clean + noise(rng, clean.shape, 1 / snr), x, **SEARCH)
        assert found.trusted.all()
        errors.append(found.delay_samples - delay)
        predicted.append(found.delay_std_samples**2)
        powers.append(found.snr)
    bound = np.sqrt(delay_crlb(x, snr, num_ports=ports))
    assert np.sqrt(np.mean(np.square(errors))) == pytest.approx(bound, rel=0.1)
    assert np.sqrt(np.mean(predicted)) == pytest.approx(bound, rel=0.05)
    assert abs(np.mean(errors)) < 4 * bound / np.sqrt(trials)
    assert np.mean(powers) == pytest.approx(snr, rel=0.05)


def test_bound_is_that_of_the_rms_bandwidth():
    """1 / (2 rho E beta^2) with beta^2 the mean squared angular frequency; a frequency to estimate costs little."""
    spectrum, frequency = np.abs(np.fft.fft(X, 8 * X.size)) ** 2, np.fft.fftfreq(8 * X.size)
    mean = np.sum(spectrum * frequency) / spectrum.sum()
    beta = (2 * np.pi) ** 2 * np.sum(spectrum * (frequency - mean) ** 2) / spectrum.sum()
    known = delay_crlb(X, 3.0, num_ports=2, known_frequency=True)
    assert known == pytest.approx(1 / (2 * 2 * 3.0 * X.size * beta), rel=1e-3)
    assert known < delay_crlb(X, 3.0, num_ports=2) < 1.1 * known


def test_frequency_meets_its_predicted_deviation():
    rng = np.random.default_rng(3)
    clean = received(rng, 60.3, -1234.5, np.ones(1), 650)
    found = acquire(clean + noise(rng, (300, 1, 650), 0.1), X, **SEARCH)
    error = found.frequency_hz + 1234.5
    assert np.sqrt(np.mean(error**2)) == pytest.approx(np.mean(found.frequency_std_hz), rel=4 / np.sqrt(600))


def test_batch_equals_loop_and_scale_and_phase_do_not_matter():
    rng = np.random.default_rng(4)
    y = received(rng, np.array([[20.4, 90.1], [3.0, 44.5]]), np.full((2, 2), 500.0), noise(rng, (2, 2, 3)), 700, 0.3)
    batch = acquire(y, X, **SEARCH)
    for i, j in np.ndindex(2, 2):
        for one in (acquire(y[i, j], X, **SEARCH), acquire(y[i, j] * 1e-3j, X, **SEARCH)):
            for a, b in zip(one, batch, strict=True):
                np.testing.assert_allclose(a, b[i, j], rtol=1e-6)


@pytest.mark.parametrize(("ports", "stated", "trials"), [(2, 0.1, 800), (1, 0.002, 4000)])
def test_noise_alone_passes_as_rarely_as_stated(ports, stated, trials):
    """The union bound is not exact, but neighbouring hypotheses are few: between a third and all of what is stated."""
    rng, x = np.random.default_rng(5), preamble(64)
    passed = sum(
        acquire(noise(rng, (200, ports, 150)), x, **SEARCH, false_alarm=stated).trusted.sum()
        for _ in range(trials // 200)
    )
    tolerance = 3 * np.sqrt(stated / trials)
    assert stated / 3 - tolerance < passed / trials < stated + tolerance


def test_bad_bursts_are_flagged_and_never_raise():
    y = received(np.random.default_rng(6), 40.2, 0.0, np.ones(1), 700)
    for spoiled in (np.zeros((1, 700)), np.where(np.arange(700) == 300, np.nan, y), np.roll(y, 3000 - 700 // 2)):
        assert not acquire(spoiled, X, **SEARCH).trusted
    far = received(np.random.default_rng(6), 40.2, 30e3, np.ones(1), 700)
    assert not acquire(far, X, **SEARCH).trusted
    assert acquire(np.zeros((1, 700)), X, **SEARCH).delay_std_samples == np.inf


def test_missing_samples_cost_what_they_carry():
    rng = np.random.default_rng(7)
    y = received(rng, 300.4, 4321.0, np.ones(2), 1500, 0.01)
    y[:, 600:] = 0.0
    found = acquire(y, X, **SEARCH)
    assert found.trusted
    assert abs(found.delay_samples - 300.4) < 0.02


@pytest.mark.parametrize("taps", [[1.0], [1.0, -0.2j, 0.4], [0.7, 0.72j], [0.5, 0.3, 0.55j]])
def test_two_responses_of_one_channel_tell_the_difference_of_their_delays(taps):
    """Even of taps that are nearly alike, where the greatest maximum of each response may be another."""
    delays, frequencies = np.array([40.13, 43.9, 39.55]), np.array([7000.0, -7000.0, 0.0])
    y = sum(tap * tone_sum(delays + k, 640) for k, tap in enumerate(taps))
    y = y * np.exp(2j * np.pi / SAMP_RATE * frequencies[:, None] * np.arange(640))
    found = acquire(y[:, None], X, **SEARCH)
    responses = response(y, X, found.delay_samples, found.frequency_hz, samp_rate=SAMP_RATE, reach=16)
    whole = np.round(found.delay_samples)
    for a, b in ((0, 1), (1, 0), (0, 2), (2, 1), (1, 1)):
        later = whole[b] - whole[a] + relative_delay(responses[a], responses[b])
        assert later == pytest.approx(delays[b] - delays[a], abs=0.02)


def test_tracking_finds_what_acquisition_finds():
    rng = np.random.default_rng(8)
    delay, frequency = np.array([200.3, 310.8, -0.6]), np.array([6900.0, -500.0, 10.0])
    y = received(rng, delay, frequency, np.ones((3, 2)), 900, 0.1)
    found = track(y, X, samp_rate=SAMP_RATE, delay_samples=delay + 2.5, frequency_hz=frequency + 100.0,
                  half_width_samples=6, max_offset_hz=300.0)
    assert found.trusted.all()
    np.testing.assert_allclose(found.delay_samples, delay, atol=5 * found.delay_std_samples.max())
    np.testing.assert_allclose(found.frequency_hz, frequency, atol=5 * found.frequency_std_hz.max())
    full = acquire(y[:2], X, **SEARCH)
    np.testing.assert_allclose(found.delay_samples[:2], full.delay_samples, atol=0.3 * full.delay_std_samples.max())


@pytest.mark.parametrize(
    ("y", "options", "message"),
    [
        (np.zeros((1, 500)), {}, "y has shape"),
        (np.zeros(700), {}, "y has shape"),
        (np.zeros((1, 700)), {"window": (0, 189)}, "window"),
        (np.zeros((1, 700)), {"max_offset_hz": -1.0}, "max_offset_hz"),
    ],
)
def test_searches_that_cannot_be_are_refused(y, options, message):
    with pytest.raises(ValueError, match=message):
        acquire(y, X, **{**SEARCH, **options})


# -- shifting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("delay", [0.3, -0.5, 2.75, -20.1])
def test_fractional_shift_is_band_limited_interpolation_later_for_positive_delays(delay):
    padded = np.pad(X, (60, 60))
    np.testing.assert_allclose(fractional_shift(padded, delay), tone_sum(60 + delay, padded.size), atol=2e-3)
    np.testing.assert_allclose(fractional_shift(fractional_shift(padded, delay), -delay), padded, atol=1e-3)


def test_whole_shifts_move_samples_and_rows_are_independent():
    rows = noise(np.random.default_rng(9), (2, 3, 100))
    shifted = fractional_shift(rows, 2)
    np.testing.assert_allclose(shifted[..., 2:], rows[..., :-2], atol=1e-12)
    np.testing.assert_allclose(shifted[..., :2], 0.0, atol=1e-12)
    np.testing.assert_allclose(fractional_shift(rows[1, 2], 0.4), fractional_shift(rows, 0.4)[1, 2], atol=1e-12)


# -- the filter -------------------------------------------------------------------------------------------------------


def test_shift_and_fraction_undo_the_offset():
    clock = ClockCorrection(SAMP_RATE)
    assert (clock.shift(5), clock.fraction(5), clock.predicted_std(5)) == (0, 0.0, np.inf)
    clock.update(1000.3, 0.01, 10**6, rate=-2e-6, rate_std=1e-9)
    for sample in (10**6, 2 * 10**6, 5 * 10**8):
        assert clock.offset(sample) == pytest.approx(1000.3 - 2e-6 * (sample - 10**6))
        assert clock.offset(sample) + clock.shift(sample) + clock.fraction(sample) == pytest.approx(0.0, abs=1e-9)
        assert abs(clock.fraction(sample)) <= 0.5
        assert isinstance(clock.shift(sample), int)
    assert clock.shift(10**6) == -1000


def test_filter_learns_the_rate_and_predicts_its_errors():
    """A clock that walks as the filter assumes: errors before each update against what was predicted."""
    rng, walk, step, trials = np.random.default_rng(10), 2e-8, 5 * 10**6, 200
    normalised = []
    for _ in range(trials):
        clock, offset, rate = ClockCorrection(SAMP_RATE, rate_walk=walk, rate_std=3e-6), 0.0, 3e-6 * rng.normal()
        for k in range(12):
            if k > 1:
                normalised.append((clock.offset(k * step) - offset) / clock.predicted_std(k * step))
            assert clock.update(offset + 0.02 * rng.normal(), 0.02, k * step)
            noises = rng.normal(size=2) * walk * np.sqrt(step / SAMP_RATE)
            offset += step * (rate + noises[0] / 2 + noises[1] / np.sqrt(12))
            rate += noises[0]
    count = len(normalised)
    assert np.mean(np.square(normalised)) == pytest.approx(1.0, abs=4 * np.sqrt(2 / count) * 1.5)  # correlated in time
    assert abs(np.mean(normalised)) < 6 / np.sqrt(count)


def test_outliers_are_left_out_until_the_third_in_a_row():
    clock = ClockCorrection(SAMP_RATE)
    for k in range(5):
        assert clock.update(10.0 + 1e-6 * k * 10**6, 0.01, k * 10**6)
    before = clock.offset(5 * 10**6)
    assert not clock.update(14.0, 0.01, 5 * 10**6)
    assert clock.offset(5 * 10**6) == before
    assert clock.update(before + 1.0, 0.01, 6 * 10**6)
    assert [clock.update(-500.0, 0.01, k * 10**6) for k in (7, 8, 9)] == [False, False, True]
    assert clock.offset(9 * 10**6) == -500.0


@pytest.mark.parametrize(("offset", "std", "sample"), [(np.nan, 1, 9), (0.0, 0.0, 9), (0.0, np.inf, 9), (0.0, 0.1, 4)])
def test_measurements_that_cannot_be_are_refused(offset, std, sample):
    clock = ClockCorrection(SAMP_RATE)
    clock.update(0.0, 0.1, 5)
    with pytest.raises(ValueError, match=r"offset_samples|sample="):
        clock.update(offset, std, sample)


@pytest.mark.parametrize("arguments", [{"rate_std": 0.0}, {"rate_walk": -1.0}, {"gate": 0.0}, {"floor_samples": 0.0}])
def test_filters_that_cannot_be_are_refused(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        ClockCorrection(SAMP_RATE, **arguments)
