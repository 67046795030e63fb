# SPDX-License-Identifier: GPL-3.0-or-later
"""Oscillator phases as functions of absolute time."""

from fractions import Fraction

import numpy as np
import pytest
from gnuradio.dmimo.simulation.noise import GRID, KeyedStream, polar_normal, separate_arrays
from gnuradio.dmimo.simulation.oscillators import Clock, Oscillator, OscillatorBank

SAMP_RATE = 1e6
LINEWIDTH_HZ = 100.0
VARIANCE = 2 * np.pi * LINEWIDTH_HZ / SAMP_RATE  # of the increment per sample


def oscillator(key=1, **arguments):
    return Oscillator(samp_rate=SAMP_RATE, seed_key=key, **arguments)


def assert_variance(increments, expected):
    """Hold independent zero-mean increments against a variance, within 4 standard errors."""
    assert abs(np.mean(np.square(increments)) / expected - 1) < 4 * np.sqrt(2 / increments.size)


@pytest.mark.parametrize("start", [0, 255, 10**6 + 7, 10**12 + 3])
@pytest.mark.parametrize("cfo_hz", [50.0, -1234.5, 0.4 * SAMP_RATE])
def test_cfo_phase_is_exact_however_late(start, cfo_hz):
    theta = oscillator(cfo_hz=cfo_hz).phase(start, 600)
    turns = [float(Fraction(cfo_hz) / Fraction(SAMP_RATE) * n % 1) for n in range(start, start + 600)]
    assert np.max(np.abs(np.exp(1j * theta) - np.exp(2j * np.pi * np.array(turns)))) < 1e-6


@pytest.mark.parametrize("lag", [1, 3, 100, 256, 1000])
def test_phase_noise_increments_have_the_variance_of_the_line_width(lag):
    theta = oscillator(linewidth_hz=LINEWIDTH_HZ).phase(10**7, 400 * max(lag, 256))
    assert_variance(np.diff(theta[::lag]), lag * VARIANCE)


@pytest.mark.parametrize("border", [256, 256**2, 256**3, 256**4])
def test_phase_noise_increments_are_the_same_across_borders_of_the_grid(border):
    increments = [
        np.diff(oscillator(("border", key), linewidth_hz=LINEWIDTH_HZ).phase(border - 2, 4)) for key in range(1000)
    ]
    for across in np.transpose(increments):
        assert_variance(across, VARIANCE)


@pytest.mark.parametrize("lag", [5000, 256**2, 10**7, 3600 * 10**6])
def test_phase_noise_increments_are_right_over_long_times(lag):
    ends = []
    for key in range(300):
        source = oscillator(("long", key), linewidth_hz=LINEWIDTH_HZ)
        ends.append(source.phase(123 + lag, 1)[0] - source.phase(123, 1)[0])
    assert_variance(np.array(ends), lag * VARIANCE)


def test_increments_that_do_not_overlap_are_uncorrelated():
    step = np.diff(oscillator(linewidth_hz=LINEWIDTH_HZ).phase(0, 2**16 + 1)) / np.sqrt(VARIANCE)
    for lag in (1, 2, 128, 255, 256):
        assert abs(np.mean(step[lag:] * step[:-lag])) < 4 / np.sqrt(len(step) - lag)


def test_two_nodes_have_uncorrelated_phase_noise():
    a, b = (np.diff(oscillator((1, name), linewidth_hz=LINEWIDTH_HZ).phase(0, 40000)) for name in ("ap1", "ap2"))
    assert abs(np.mean(a * b)) / VARIANCE < 4 / np.sqrt(40000)


def test_random_access_equals_sequential_reading_bit_for_bit():
    kinds = {"cfo_hz": 33.3, "linewidth_hz": 10.0, "drift_hz": 5.0, "drift_period_s": 1.0}
    start, num = 256**2 * 3 - 1000, 2000
    whole = oscillator(**kinds).phase(start, num)
    source, rng = oscillator(**kinds), np.random.default_rng(1)
    for _ in range(30):
        first, last = np.sort(rng.integers(0, num + 1, 2))
        source.phase(int(rng.integers(0, 10**12)), 5)
        assert np.array_equal(source.phase(start + int(first), int(last - first)), whole[first:last])


def test_bank_equals_its_oscillators_one_by_one():
    kinds = ({"cfo_hz": 10.0}, {"linewidth_hz": 10.0}, {"linewidth_hz": 20.0, "drift_hz": 1.0})
    sources = [oscillator(key, **kind) for key, kind in enumerate(kinds)]
    bank = OscillatorBank(sources, 16)
    for blocks in (16, 3, 1):
        base, rest = bank.grid_phase(7, blocks)
        for i, source in enumerate(sources):
            assert np.array_equal((base[i, :, None] + rest[i]).ravel(), source.phase(7 * GRID, blocks * GRID))


def test_drift_has_its_rms_and_its_time_scale():
    interval, drift_hz, period_s = 10**4, 5.0, 2.0
    frequency = []
    for key in range(400):
        source = oscillator(("drift", key), drift_hz=drift_hz, drift_period_s=period_s)
        phases = [source.phase(n, interval + 1)[[0, -1]] for n in (10**7, 10**7 + int(period_s * SAMP_RATE))]
        frequency.append([np.diff(p)[0] * SAMP_RATE / interval / (2 * np.pi) for p in phases])
    now, later = np.transpose(frequency)
    # A sum of 16 sinusoids is nearly Gaussian: variance of the power about 2; a few percent lie above 1 / interval.
    assert abs(np.mean(now**2) / drift_hz**2 - 1) < 4 * np.sqrt(2 / 400) + 0.05
    assert abs(np.mean(now * later) / drift_hz**2 - np.exp(-1)) < 4 / np.sqrt(400)


def test_phase_of_an_ideal_oscillator_is_zero():
    assert oscillator().is_still
    assert not oscillator().phase(12345, 1000).any()


def test_negative_time_is_refused():
    with pytest.raises(ValueError, match="start=-1"):
        oscillator().phase(-1, 2)


def test_keyed_words_do_not_depend_on_the_order_of_reading():
    whole = KeyedStream(1, "a").words(0, 1000)
    stream = KeyedStream(1, "a")
    for first, num in ((500, 10), (0, 3), (3, 400), (990, 10), (2, 1)):
        assert np.array_equal(stream.words(first, num), whole[first : first + num])
    assert not np.any(KeyedStream(1, "b").words(0, 1000) == whole)


def test_polar_draws_are_gaussian():
    words = KeyedStream("gauss").words(0, 2**18)
    radius, angle = separate_arrays(2, (2**18,))
    polar_normal(words, np.float32(-2.0), radius, angle)
    z = radius * np.exp(1j * angle)
    for part in (z.real, z.imag):
        for order, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10395 - 225)):
            assert abs(np.mean(part**order) - moment) < 4 * np.sqrt(variance / part.size)
    assert abs(np.mean(z**2)) < 4 * np.sqrt(8 / z.size)
    assert np.isfinite(z).all()


def test_clock_delays_have_the_sign_of_a_fast_clock():
    clock = Clock(rate=1.0 + 1e-5)
    assert clock.displacement(10**5) == pytest.approx(-1.0, rel=1e-4)  # its samples come early
    assert clock.tx_delay(10**5) == pytest.approx(-1.0, rel=1e-4)
    assert clock.rx_delay(10**5) == pytest.approx(+1.0, rel=1e-4)


@pytest.mark.parametrize("arguments", [{"rate": 1.01}, {"reach_samples": -1}])
def test_clock_refuses_bad_arguments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        Clock(**arguments)


@pytest.mark.parametrize("arguments", [{"linewidth_hz": -1.0}, {"drift_hz": -1.0}, {"drift_period_s": 0.0}])
def test_oscillator_refuses_bad_arguments(arguments):
    with pytest.raises(ValueError, match=next(iter(arguments))):
        oscillator(**arguments)
