# SPDX-License-Identifier: GPL-3.0-or-later
"""The grid is exact through delays within the prefix, combs tile it, and pilots are those of the standard."""

import numpy as np
import pytest
from gnuradio.dmimo.core.ofdm import (
    CombError,
    CombMapping,
    OfdmGrid,
    PrefixError,
    extended_zadoff_chu,
    gold_qpsk,
    gold_sequence,
    pilot_sequence,
)

SMALL = OfdmGrid(subcarrier_spacing_hz=15e3, fft_size=64, cp_samples=12, num_subcarriers=48)


def elements(rng, grid, *shape):
    return rng.normal(size=(*shape, grid.num_subcarriers)) + 1j * rng.normal(size=(*shape, grid.num_subcarriers))


@pytest.mark.parametrize(
    "grid", [SMALL, OfdmGrid(15e3, 64, 12, 48, skip_dc=True), OfdmGrid(15e3, 60, 5, 47), OfdmGrid()]
)
def test_demodulation_inverts_modulation(grid):
    rng = np.random.default_rng(1)
    values = elements(rng, grid, 2, 3)
    samples = grid.modulate(values)
    assert samples.shape == (2, 3 * grid.symbol_samples)
    padded = np.concatenate([np.ones((2, 7)), samples, np.ones((2, 9))], axis=-1)
    np.testing.assert_allclose(grid.demodulate(padded, 3, start=7), values, atol=1e-12)
    np.testing.assert_allclose(grid.demodulate(padded, 3, start=7, advance_samples=5), values, atol=1e-12)


def test_samples_are_the_sum_of_the_tones_and_have_unit_power():
    rng = np.random.default_rng(2)
    grid = OfdmGrid(15e3, 64, 12, 48, skip_dc=True)
    values = np.exp(2j * np.pi * rng.random((1, 48)))
    n = np.arange(-12, 64)
    k = [*range(-24, 0), *range(1, 25)]
    np.testing.assert_array_equal(grid.subcarriers, k)
    expected = np.exp(2j * np.pi * np.outer(n, k) / 64) @ values[0] / np.sqrt(48)
    np.testing.assert_allclose(grid.modulate(values), expected, atol=1e-12)
    assert np.mean(np.abs(expected[12:]) ** 2) == pytest.approx(1.0)


def test_echoes_within_the_prefix_are_one_gain_per_subcarrier():
    rng = np.random.default_rng(3)
    values = elements(rng, SMALL, 4)
    sent = SMALL.modulate(values)
    taps = {-3: 0.4j, 0: 1.0, 8: -0.5 + 0.2j}
    received = sum(gain * np.roll(sent, delay) for delay, gain in taps.items())
    channel = sum(gain * np.exp(-2j * np.pi * SMALL.subcarriers * delay / 64) for delay, gain in taps.items())
    # The first and the last symbol are cut by np.roll.
    out = SMALL.demodulate(received, 4, advance_samples=4)
    np.testing.assert_allclose(out[1:3], (values * channel)[1:3], atol=1e-12)
    SMALL.require_delays(-3 / SMALL.samp_rate, 8 / SMALL.samp_rate, advance_samples=4)
    with pytest.raises(PrefixError, match="cyclic prefix of 12 samples"):
        SMALL.require_delays(-3 / SMALL.samp_rate, 8.1 / SMALL.samp_rate, advance_samples=4)
    with pytest.raises(PrefixError, match="opened 2 early"):
        SMALL.require_delays(-3 / SMALL.samp_rate, 0.0, advance_samples=2)


def test_carrier_phase_is_that_at_the_symbol_time():
    # One subcarrier: nothing interferes, and the phase is exact.
    values = np.zeros((3, 48))
    values[:, 5] = 1.0
    samples = SMALL.modulate(values)
    cfo_hz = 300.0
    turned = samples * np.exp(2j * np.pi * cfo_hz * np.arange(samples.size) / SMALL.samp_rate)
    for advance in (0, 6):
        seen = np.angle(SMALL.demodulate(turned, 3, advance_samples=advance)[:, 5])
        expected = 2 * np.pi * cfo_hz * SMALL.symbol_time_s(np.arange(3), advance_samples=advance)
        np.testing.assert_allclose(seen, expected, atol=1e-10)


@pytest.mark.parametrize(("num_sounding", "num_responding", "pilots"), [(4, 2, 12), (8, 4, 196), (1, 1, 5), (3, 5, 10)])
def test_comb_tiles_the_grid(num_sounding, num_responding, pilots):
    mapping = CombMapping(num_sounding, num_responding, pilots)
    everything = np.arange(num_sounding * pilots)
    np.testing.assert_array_equal(np.sort(mapping.sounding.ravel()), everything)
    np.testing.assert_array_equal(np.sort(mapping.response.ravel()), everything)
    for p in range(num_sounding):
        np.testing.assert_array_equal(mapping.sounding[p], [i * num_sounding + p for i in range(pilots)])
        for q in range(num_responding):
            expected = [
                i * num_sounding * num_responding + q * num_sounding + p for i in range(pilots // num_responding)
            ]
            np.testing.assert_array_equal(mapping.response[p, q], expected)
            # What is sent back lies on what was heard.
            assert np.isin(mapping.response[p, q], mapping.sounding[p]).all()


def test_combs_that_do_not_divide_are_refused_and_say_what_would():
    with pytest.raises(CombError, match=r"pilots_per_port=198 .* num_responding=4; 196 would be"):
        CombMapping(8, 4, 198)
    with pytest.raises(CombError, match=r"1584 is not divisible .* 8 \* 4 = 32; pilots_per_port=196 is the most"):
        CombMapping.filling(OfdmGrid(), 8, 4)
    assert CombMapping.filling(OfdmGrid(), 4, 4).pilots_per_port == 396
    table = CombMapping(8, 4, 196)
    assert table.subcarriers(OfdmGrid()).shape == (8, 4, 49)
    assert table.subcarriers(OfdmGrid())[0, 0, 0] == -792
    with pytest.raises(CombError, match="needs 1600 subcarriers; the grid has 1584"):
        CombMapping(8, 4, 200).subcarriers(OfdmGrid())
    with pytest.raises(ValueError, match="num_sounding=0"):
        CombMapping(0, 4, 8)


def test_gold_sequence_equals_the_recursion_of_the_standard():
    for c_init in (1, 0x12345678 & 0x7FFFFFFF, 2**31 - 1, 0):
        x1, x2 = [1] + [0] * 30, [(c_init >> i) & 1 for i in range(31)]
        for n in range(1600 + 300):
            x1.append((x1[n + 3] + x1[n]) % 2)
            x2.append((x2[n + 3] + x2[n + 2] + x2[n + 1] + x2[n]) % 2)
        expected = [(x1[n + 1600] + x2[n + 1600]) % 2 for n in range(300)]
        np.testing.assert_array_equal(gold_sequence(c_init, 300), expected)
        for length in (1, 27, 31, 60):
            np.testing.assert_array_equal(gold_sequence(c_init, length), expected[:length])
    bits = gold_sequence(77, 20000)
    # 4.5 standard errors of fair coins.
    assert abs(bits.mean() - 0.5) < 4.5 * 0.5 / np.sqrt(20000)
    np.testing.assert_allclose(gold_qpsk(5, 4) * np.sqrt(2), _qpsk(gold_sequence(5, 8)))


def _qpsk(bits):
    return [(1 - 2.0 * bits[2 * i]) + 1j * (1 - 2.0 * bits[2 * i + 1]) for i in range(len(bits) // 2)]


def test_pilots_have_unit_modulus_and_differ():
    for length in (12, 49, 396):
        seen = [pilot_sequence(p, length, identity=i) for p in ("srs", "csi_rs", "cars") for i in (0, 7)]
        np.testing.assert_allclose(np.abs(seen), 1.0, atol=1e-12)
        likeness = np.abs(np.conj(seen) @ np.transpose(seen)) / length
        assert np.max(likeness - np.eye(6)) < 0.9
    spectrum = np.abs(np.fft.fft(extended_zadoff_chu(3, 31)))
    np.testing.assert_allclose(spectrum, np.sqrt(31), atol=1e-12)
    np.testing.assert_array_equal(extended_zadoff_chu(3, 36)[31:], extended_zadoff_chu(3, 31)[:5])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: OfdmGrid(fft_size=1024), "num_subcarriers=1584"),
        (lambda: OfdmGrid(cp_samples=-1), "cp_samples=-1"),
        (lambda: OfdmGrid(subcarrier_spacing_hz=0.0), "subcarrier_spacing_hz=0"),
        (lambda: OfdmGrid(num_subcarriers=47, fft_size=64, cp_samples=4, skip_dc=True), "must be even"),
        (lambda: SMALL.modulate(np.ones((2, 47))), r"\(..., symbols, 48\)"),
        (lambda: SMALL.demodulate(np.ones(151), 2), "do not lie in 151 samples"),
        (lambda: SMALL.demodulate(np.ones(200), 1, advance_samples=13), "advance_samples=13"),
        (lambda: gold_sequence(1 << 31, 5), "c_init="),
        (lambda: extended_zadoff_chu(31, 36), "root=31"),
        (lambda: pilot_sequence("dmrs", 12), "purpose='dmrs'"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
