# SPDX-License-Identifier: GPL-3.0-or-later
"""Predistortion by a table over the power: error against the exact inverse, clipping, samples by themselves."""

import numpy as np
import pytest
from gnuradio.dmimo.core import predistortion as dpd
from gnuradio.dmimo.core.predistortion_table import apply_power_table, power_tables, scratch
from gnuradio.dmimo.simulation.amplifiers import GAN_POLYNOMIAL

NUM = 200_000


def gan(back_off_db):
    """Coefficients for samples of unit mean power."""
    a = np.array(GAN_POLYNOMIAL) / GAN_POLYNOMIAL[0]
    return a * 10 ** (-back_off_db / 10 * np.arange(5))


def gaussian(num=NUM, seed=1):
    x = np.random.default_rng(seed).normal(scale=np.sqrt(0.5), size=(num, 2)).view(complex)[:, 0]
    return x.astype(np.complex64)


def apply(x, table, memory=None):
    out = np.empty_like(x)
    return out, apply_power_table(x, table, out, memory or scratch(len(x)))


def error_db(error):
    return 10 * np.log10(np.mean(np.abs(error) ** 2))


AMPLIFIERS = {
    "GaN, 12 dB": gan(12), "GaN, 10 dB": gan(10), "GaN, 8 dB": gan(8), "third order": np.array([1, -0.03 + 0.01j]),
    "strong third order": np.array([1, -0.12 + 0.05j]), "grows for ever": np.array([1, 0.02j]),
}  # fmt: skip


@pytest.mark.parametrize("name", AMPLIFIERS)
@pytest.mark.parametrize("max_amplitude", [np.inf, np.sqrt(10.0)])
def test_table_is_as_near_to_the_exact_inverse_as_it_says(name, max_amplitude):
    c, x = AMPLIFIERS[name], gaussian()
    (table,) = power_tables(c[None], max_amplitude=max_amplitude)
    data, clipped = apply(x, table)
    exact = dpd.predistort_and_count(x.astype(complex), c, max_amplitude=max_amplitude)
    assert clipped == exact.num_clipped
    assert error_db(data - exact.samples) < -85
    limit = dpd.invertible_range(c, max_amplitude=max_amplitude).output_amplitude
    inside = np.abs(x) <= limit
    assert error_db((dpd.amplify(data.astype(complex), c) - x)[inside]) < -95


def test_clipped_samples_keep_their_phase_and_come_to_the_largest_input():
    c, x = gan(8), 3 * gaussian(10_000)
    (table,) = power_tables(c[None], max_amplitude=1.5)
    data, clipped = apply(x, table)
    exact = dpd.predistort_and_count(x.astype(complex), c, max_amplitude=1.5)
    beyond = np.abs(x) > table.limit
    assert clipped == exact.num_clipped == np.count_nonzero(beyond) > 5000
    np.testing.assert_allclose(data[beyond], exact.samples[beyond], rtol=2e-7)
    np.testing.assert_allclose(np.abs(data[beyond]), 1.5, rtol=2e-7)
    output = dpd.amplify(data[beyond].astype(complex), c)
    np.testing.assert_allclose(np.angle(output / x[beyond]), 0.0, atol=1e-6)


def test_samples_at_the_limit_are_not_clipped_and_those_above_are():
    (table,) = power_tables(gan(10)[None])
    turn = np.exp(2j * np.pi * np.random.default_rng(3).uniform(size=10_000))
    assert apply((table.limit * turn).astype(np.complex64), table)[1] == 0
    assert apply((table.limit * (1 + 1e-6) * turn).astype(np.complex64), table)[1] == 10_000


def test_each_port_has_its_own_range():
    c = np.array([[1, -0.1], [1, -0.01], [1, 0.0], [1, 0.0]])
    tables = power_tables(c, max_amplitude=[np.inf, np.inf, 2.0, np.inf], full_scale=3.0)
    # F = u - a u^3 has its peak at 1 / sqrt(3 a), where it is 2/3 of that.
    assert [table.limit for table in tables] == pytest.approx([2 / 3 / np.sqrt(0.3), 3.0, 2.0, np.inf])
    assert [table.passes for table in tables] == [False, False, False, True]
    x = np.array([1.5, 2.5, 100.0], np.complex64)
    assert [apply(x, table)[1] for table in tables] == [3, 1, 2, 0]
    np.testing.assert_array_equal(apply(x, tables[3])[0], x)
    np.testing.assert_allclose(apply(x, tables[2])[0], [1.5, 2.0, 2.0], rtol=1e-6)


def test_a_sample_does_not_depend_on_the_others():
    x, memory = 2 * gaussian(5000), scratch(5000)
    (table,) = power_tables(gan(10)[None])
    whole, clipped = apply(x, table, memory)
    borders = np.sort(np.random.default_rng(5).integers(0, 5000, 200))
    parts = [apply(part, table, memory) for part in np.split(x, borders)]
    np.testing.assert_array_equal(np.concatenate([part for part, _ in parts]), whole)
    assert sum(count for _, count in parts) == clipped > 100


def test_sample_that_is_not_finite_spoils_no_other():
    x = 2 * gaussian(1000)
    (table,) = power_tables(gan(10)[None])
    good, clipped = apply(x, table)
    bad = x.copy()
    bad[[10, 20, 30]] = np.nan, np.inf, 1e30
    with np.errstate(invalid="ignore", over="ignore"):
        data, count = apply(bad, table)
    others = np.delete(np.arange(1000), [10, 20, 30])
    np.testing.assert_array_equal(data[others], good[others])
    assert np.isnan(data[10])
    assert np.isnan(data[20])
    assert abs(data[30]) == pytest.approx(abs(table.end))
    before = np.count_nonzero(np.abs(x[[10, 20, 30]]) > table.limit)
    assert count == clipped - before + 2


@pytest.mark.parametrize(("arguments", "message"), [
    ({"coefficients": [1, -0.1]}, r"coefficients of shape \(2,\)"), ({"coefficients": [[2, 0.1]]}, "first entry 1"),
    ({"coefficients": [[1, np.nan]]}, "finite"), ({"coefficients": np.ones((2, 0))}, "coefficients of shape"),
    ({"size": 1}, "size = 1"), ({"max_amplitude": 0.0}, "max_amplitude = 0.0"),
    ({"max_amplitude": np.nan}, "max_amplitude = nan"), ({"max_amplitude": [1.0, 1.0]}, "one for each of the 1 ports"),
    ({"full_scale": 0.0}, "full_scale = 0.0"), ({"full_scale": np.inf}, "full_scale = inf")])
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        power_tables(**{"coefficients": [[1, -0.1]]} | arguments)
