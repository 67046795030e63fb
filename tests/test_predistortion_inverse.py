# SPDX-License-Identifier: GPL-3.0-or-later
"""Inverses of amplifiers: exact inside the invertible range, clipped and counted beyond."""

import numpy as np
import pytest
from gnuradio.dmimo.core import memory_polynomial as memory
from gnuradio.dmimo.core import predistortion as dpd
from gnuradio.dmimo.core.predistortion_bounds import data_amplitudes

GAN = np.array([0.999952 - 0.00981788j, -0.0618171 + 0.118845j, -1.69917 - 0.464933j, 3.27962 + 0.829737j,
                -1.80821 - 0.454331j])  # fmt: skip
GAN = GAN / GAN[0]


def db(ratio):
    return 10 * np.log10(np.maximum(ratio, 1e-30))


def nmse(output, wanted):
    return np.sum(np.abs(output - wanted) ** 2) / np.sum(np.abs(wanted) ** 2)


def samples(rng, limit, num):
    """Samples (..., num) of all amplitudes up to the limits (...), the limit itself and zero among them."""
    amplitude = rng.uniform(size=(*np.shape(limit), num))
    amplitude[..., 0], amplitude[..., 1] = 1.0, 0.0
    return limit[..., None] * amplitude * np.exp(2j * np.pi * rng.uniform(size=amplitude.shape))


def test_third_order_inverse_is_exact_for_any_kappa():
    rng = np.random.default_rng(1)
    kappa = 10 ** rng.uniform(-9, 3, 3000) * np.exp(2j * np.pi * rng.uniform(size=3000))
    kappa[:6] = 0.0, -0.1, 0.1, 0.2j, -0.3 + 1e-12j, np.exp(1j * np.arccos(-np.sqrt(0.75)))
    c = np.stack([np.ones(3000), kappa], axis=-1)
    reach = dpd.invertible_range(c)
    limit = np.where(np.isfinite(reach.output_amplitude), reach.output_amplitude, 10.0)
    x = samples(rng, limit, 200)
    u, clipped = dpd.predistort_and_count(x, c)
    assert np.max(np.abs(dpd.amplify(u, c) - x) / limit[:, None]) < 1e-10
    assert not np.any(clipped)
    # The smallest of the roots.
    assert np.all(np.abs(u) <= reach.input_amplitude[:, None] * (1 + 1e-12))
    # Closed form of the limit: 3 |k|^2 s^2 + 4 Re(k) s + 1 = 0.
    root = np.sqrt(np.maximum(4 * kappa.real**2 - 3 * np.abs(kappa) ** 2, 0))
    exists = (-kappa.real >= np.sqrt(0.75) * np.abs(kappa) * (1 + 1e-9)) & (kappa != 0)
    peak = (-2 * kappa.real[exists] - root[exists]) / (3 * np.abs(kappa[exists]) ** 2)
    np.testing.assert_allclose(reach.input_amplitude[exists] ** 2, peak, rtol=1e-6)
    assert exists.sum() > 100
    assert np.all(np.isinf(reach.input_amplitude[-kappa.real < np.sqrt(0.75) * np.abs(kappa) * (1 - 1e-9)]))


def test_inverse_of_a_real_compression_has_the_textbook_limit():
    reach = dpd.invertible_range([1.0, -1 / 3])
    assert reach.input_amplitude == pytest.approx(1.0)
    assert reach.output_amplitude == pytest.approx(2 / 3)
    assert dpd.predistort([2 / 3, 0.0, 1j * 2 / 3], [1.0, -1 / 3]) == pytest.approx([1.0, 0.0, 1j], abs=1e-7)


@pytest.mark.parametrize("order", [1, 5, 7, 9])
def test_higher_order_inverse_is_exact_inside_its_range(order):
    rng = np.random.default_rng(2)
    c = GAN[: (order + 1) // 2] * np.exp(0.1 * rng.standard_normal((20, (order + 1) // 2)))
    c[:, 0] = 1.0
    reach = dpd.invertible_range(c, max_amplitude=1.2)
    x = samples(rng, np.minimum(reach.output_amplitude, 2.0), 1000)
    u, clipped = dpd.predistort_and_count(x, c, max_amplitude=1.2)
    assert np.max(np.abs(dpd.amplify(u, c) - x)) < 1e-10
    assert np.max(np.abs(u)) <= 1.2 * (1 + 1e-12)
    assert not np.any(clipped)
    # The output rises all the way to the limit: the branch is the one from zero.
    grid = np.linspace(0.0, 1.0, 2000) * reach.input_amplitude[:, None]
    assert np.all(np.diff(np.abs(dpd.amplify(grid, c)), axis=-1) > -1e-12)


def test_expanding_amplifier_of_fifth_order_without_a_limit_is_inverted():
    rng = np.random.default_rng(3)
    c = np.array([1.0, 0.2 + 0.1j, 0.05])
    assert np.isinf(dpd.invertible_range(c).input_amplitude)
    x = samples(rng, np.array(30.0), 500)
    assert np.max(np.abs(dpd.amplify(dpd.predistort(x, c), c) - x)) < 1e-9


def test_range_ends_at_the_first_peak_of_the_gan_amplifier():
    grid = np.linspace(0, 1, 1_000_001)
    output = np.abs(dpd.amplify(grid, GAN))
    first = np.argmax(np.diff(output) < 0)
    reach = dpd.invertible_range(GAN)
    assert reach.input_amplitude == pytest.approx(grid[first], abs=2e-6)
    assert reach.output_amplitude == pytest.approx(output[first], rel=1e-9)
    assert dpd.invertible_range(GAN, max_amplitude=0.5).input_amplitude == 0.5


@pytest.mark.parametrize("coefficients", [[1.0, -0.3 + 0.1j], GAN])
def test_samples_beyond_the_range_keep_their_phase_and_are_counted(coefficients):
    reach = dpd.invertible_range(coefficients)
    phase = np.exp(2j * np.pi * np.arange(5) / 5)
    x = np.array([0.2, 0.5, 1.5, 3.0, 100.0]) * reach.output_amplitude * phase
    u, clipped = dpd.predistort_and_count(x, coefficients)
    assert clipped == 3
    output = dpd.amplify(u, coefficients)
    np.testing.assert_allclose(np.angle(output * phase.conj()), 0.0, atol=1e-9)
    np.testing.assert_allclose(np.abs(output), np.minimum(np.abs(x), reach.output_amplitude), rtol=1e-12)
    table = dpd.apply_table(x, dpd.predistorter_table(coefficients, full_scale=np.inf))
    assert table.num_clipped == 3
    np.testing.assert_allclose(table.samples, u, atol=1e-3)


def test_table_converges_with_the_square_of_its_size_and_serves_ports_at_once():
    rng = np.random.default_rng(4)
    c = np.stack([GAN, GAN * [1, 0.9, 1, 1, 1], [1, -0.1, 0, 0, 0]])
    x = samples(rng, 0.6 * dpd.invertible_range(c).output_amplitude, 4000)
    exact = dpd.predistort(x, c)
    error = [np.abs(dpd.apply_table(x, dpd.predistorter_table(c, size=size)).samples - exact).max()
             for size in (256, 1024)]  # fmt: skip
    assert error[1] < 1e-5
    assert error[0] / error[1] == pytest.approx(16.0, rel=0.2)
    alone = [dpd.apply_table(part, dpd.predistorter_table(row)).samples for part, row in zip(x, c, strict=True)]
    np.testing.assert_allclose(dpd.apply_table(x, dpd.predistorter_table(c)).samples, alone, atol=1e-14)
    np.testing.assert_allclose(exact, [dpd.predistort(*pair) for pair in zip(x, c, strict=True)], atol=1e-12)


@pytest.mark.parametrize(("backoff_db", "floor_db", "gain_db"), [(8, -24.9, 1.3), (10, -34.8, 8.3), (12, -50.3, 20.2)])
def test_what_clipping_leaves_of_the_gan_amplifier_is_that_of_a_limiter(backoff_db, floor_db, gain_db):
    # Mean power of Gaussian data below the largest input of the model, 1: the output ends at 0.73.
    rng = np.random.default_rng(5)
    reach = dpd.invertible_range(GAN).output_amplitude
    rms = 10 ** (-backoff_db / 20)
    x = rms * (rng.standard_normal(400_000) + 1j * rng.standard_normal(400_000)) / np.sqrt(2)
    u, clipped = dpd.predistort_and_count(x, GAN)
    share = np.exp(-((reach / rms) ** 2))
    assert clipped / x.size == pytest.approx(share, abs=5 * np.sqrt(share / x.size))
    output = dpd.amplify(u, GAN)
    np.testing.assert_allclose(output, x * np.minimum(1.0, reach / np.abs(x)), atol=1e-10)
    without = dpd.amplify(x * np.minimum(1.0, 1.0 / np.abs(x)), GAN)
    left, before = (db(nmse(z, np.vdot(x, z) / np.vdot(x, x) * x)) for z in (output, without))
    # The floor at 12 dB comes from the 90 largest of the samples.
    assert left == pytest.approx(floor_db, abs=2.0)
    assert before - left == pytest.approx(gain_db, abs=2.0)


def test_indirect_learning_approaches_the_inverse_with_its_order():
    amplitudes = data_amplitudes(400, backoff_db=12.0)
    x = amplitudes[amplitudes < 0.7] + 0j
    without = db(nmse(dpd.amplify(x, GAN), x))
    left = [db(nmse(dpd.amplify(dpd.amplify(x, dpd.indirect_inverse(GAN, x.real, order=order)), GAN), x))
            for order in (3, 7, 11)]  # fmt: skip
    assert left[0] < without - 5.0
    assert left[1] < left[0] - 5.0
    assert left[2] < left[1] - 5.0
    exact = db(nmse(dpd.amplify(dpd.predistort(x, GAN), GAN), x))
    assert exact < -200.0
    batch = dpd.indirect_inverse(np.stack([GAN, GAN * [1, 0.5, 1, 1, 1]]), x.real, order=5)
    np.testing.assert_allclose(batch[0], dpd.indirect_inverse(GAN, x.real, order=5), rtol=1e-9)


def memory_amplifiers(rng, num):
    c = np.zeros((num, 3, 3), complex)
    c[:, 0] = [1.0, -0.1 + 0.05j, -0.05]
    c[:, 1:] = [[0.08 + 0.03j, 0.02j, 0.01], [-0.03, 0.01, 0.0]]
    c[:, 1:] *= 1 + 0.2 * rng.standard_normal((num, 1, 1))
    return c


def test_memory_polynomial_is_identified_and_inverted_exactly():
    rng = np.random.default_rng(6)
    c = memory_amplifiers(rng, 6)
    pilots = dpd.design_pilots(300, rng=rng)
    gains = rng.standard_normal((6, 6)) + 1j * rng.standard_normal((6, 6))
    y = gains[..., None] * dpd.amplify_with_memory(pilots, c)
    statistics = dpd.pilot_statistics(y, pilots, order=5, memory_depth=3)
    found = dpd.identify_amplifiers(statistics).coefficients
    assert found.shape == c.shape
    assert np.abs(found - c).max() < 1e-10
    data = 0.25 * (rng.standard_normal((6, 4000)) + 1j * rng.standard_normal((6, 4000))) / np.sqrt(2)
    u = memory.predistort_with_memory(data, found)
    assert np.abs(dpd.amplify_with_memory(u.samples, c) - data).max() < 1e-10
    assert np.all(u.last_change < 1e-12)
    assert not np.any(u.num_clipped)
    # Without memory it is the memoryless inverse.
    direct = c[:, :1]
    np.testing.assert_allclose(
        memory.predistort_with_memory(data, direct).samples, dpd.predistort(data, direct[:, 0]), atol=1e-12
    )


def test_memory_output_equals_the_sum_written_out():
    rng = np.random.default_rng(7)
    x, c = rng.standard_normal(9) + 1j * rng.standard_normal(9), memory_amplifiers(rng, 1)[0]
    terms = [(lag, p) for lag in range(3) for p in range(3)]
    expected = [sum(c[lag, p] * x[k - lag] * abs(x[k - lag]) ** (2 * p) for lag, p in terms if k >= lag)
                for k in range(9)]  # fmt: skip
    np.testing.assert_allclose(dpd.amplify_with_memory(x, c), expected, rtol=1e-12)
    many = rng.standard_normal((2, 100)) + 1j * rng.standard_normal((2, 100))
    fitted = dpd.fit_amplifier(many, dpd.amplify_with_memory(many, 3j * c), order=5, memory_depth=3)
    np.testing.assert_allclose(fitted, np.stack([3j * c, 3j * c]), atol=1e-12)


def test_indirect_learning_with_memory_gains_25_db():
    rng = np.random.default_rng(8)
    c = memory_amplifiers(rng, 3)
    train, data = 0.25 * (rng.standard_normal((2, 3, 5000)) + 1j * rng.standard_normal((2, 3, 5000))) / np.sqrt(2)
    left = [db(nmse(dpd.amplify_with_memory(
        dpd.amplify_with_memory(data, memory.indirect_learning(train, c, order=order, memory_depth=depth)), c), data))
        for order, depth in ((5, 1), (5, 3), (7, 6))]  # fmt: skip
    without = db(nmse(dpd.amplify_with_memory(data, c), data))
    assert left[0] < without + 0.5
    assert left[1] < without - 20.0
    assert left[2] < without - 25.0


def test_weighted_fit_is_that_of_repeated_samples_and_poor_data_raise():
    rng = np.random.default_rng(9)
    x, z = rng.uniform(0.1, 1, 30) + 0j, rng.standard_normal(30) + 1j
    times = rng.integers(1, 4, 30)
    np.testing.assert_allclose(
        dpd.fit_amplifier(x, z, order=5, weights=times),
        dpd.fit_amplifier(np.repeat(x, times), np.repeat(z, times), order=5), rtol=1e-7)  # fmt: skip
    with pytest.raises(ValueError, match="amplitudes"):
        dpd.fit_amplifier(np.ones(10), np.ones(10))
    with pytest.raises(ValueError, match="samples"):
        dpd.fit_amplifier(x[:2], z[:2], order=5)
    with pytest.raises(ValueError, match="first entry 1"):
        dpd.predistort(x, [2.0, 0.1])
    with pytest.raises(ValueError, match="finite"):
        dpd.predistort(x, [1.0, np.nan])
    for coefficients in ([1.0, -0.1], [1.0, -0.1, 0.02]):
        for amplitude in (-1.0, 0.0, np.nan):
            with pytest.raises(ValueError, match=r"max_amplitude = .* must be positive"):
                dpd.predistort(x, coefficients, max_amplitude=amplitude)
        # No amplifier at all is no mistake.
        assert dpd.predistort(np.zeros((0, 5)), np.tile(coefficients, (0, 1))).shape == (0, 5)
