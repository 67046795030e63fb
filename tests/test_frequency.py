# SPDX-License-Identifier: GPL-3.0-or-later
"""Frequency offset: exact without noise, on the bound with it, and honest about what it cannot tell."""

import numpy as np
import pytest
from gnuradio.dmimo.core import bounds, synchronization
from gnuradio.dmimo.core.frequency import autocorrelation

T = 1e-3 / 14  # the paper's symbol interval


def complex_normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def received(rng, x, offset_hz, *, num_antennas=16, noise_var=0.0, positions=None, gains=None, sample_interval=T):
    """(..., M, N) for offsets (...) and the gains (..., M) at the antennas."""
    positions = np.arange(x.shape[-1]) if positions is None else positions
    offset_hz = np.asarray(offset_hz)
    if gains is None:
        gains = complex_normal(rng, *offset_hz.shape, num_antennas)
    turn = np.exp(2j * np.pi * offset_hz[..., None] * positions * sample_interval)
    y = gains[..., None] * (x * turn)[..., None, :]
    return y + np.sqrt(noise_var) * complex_normal(rng, *y.shape), gains


def sinusoid(num):
    x = np.sin(2 * np.pi * 0.2 * np.arange(num) + 0.3)
    return x * np.sqrt(num / np.sum(x**2))


def waveforms(rng):
    gaps = complex_normal(rng, 24)
    gaps[3:17] = 0.0
    return {
        "sinusoid": sinusoid(10), "constant": np.ones(2), "complex": complex_normal(rng, 33), "with zeros": gaps,
        "edges": synchronization.edge_energy_waveform(20, share=0.9, peak_power=4.0),
    }  # fmt: skip


def test_offset_is_exact_without_noise():
    rng = np.random.default_rng(1)
    offset = np.array([123.4, -299.0, 0.01, 6900.0, -6900.0, 3500.0])
    for name, x in waveforms(rng).items():
        y, _ = received(rng, x, offset, num_antennas=3)
        estimate = synchronization.frequency_offset(y, x, T)
        np.testing.assert_allclose(estimate, offset, rtol=1e-10, atol=1e-11, err_msg=name)


def test_sign_is_that_of_the_carrier_of_the_sender():
    x = np.ones(8)
    y = np.exp(2j * np.pi * 250.0 * np.arange(8) * T)[None]
    assert synchronization.frequency_offset(y, x, T) == pytest.approx(250)
    assert synchronization.frequency_offset(np.conj(y), x, T) == pytest.approx(-250)


def test_estimate_is_the_maximum_of_the_likelihood():
    """Against a fine grid of eq. (26), of which it must not be worse anywhere, at an SNR with many maxima."""
    rng = np.random.default_rng(2)
    x = complex_normal(rng, 12)
    y, _ = received(rng, x, rng.uniform(-7000, 7000, 1000), num_antennas=3, noise_var=3.0)
    grid = np.linspace(-7000, 7000, 1401)
    turn = np.exp(-2j * np.pi * np.arange(12)[:, None] * grid * T) * np.conj(x)[:, None]
    for limit in (None, 2000.0, 50.0):
        estimate = synchronization.frequency_offset(y, x, T, max_offset=limit)
        value = np.sum(np.abs(np.einsum("tmn,tn->tm", y * np.conj(x),
                                        np.exp(-2j * np.pi * np.arange(12) * estimate[:, None] * T))) ** 2, axis=-1)
        allowed = np.abs(grid) <= (7000.0 if limit is None else limit)
        best = np.max(np.sum(np.abs(y @ turn[:, allowed]) ** 2, axis=-2), axis=-1)
        assert np.all(value >= best * (1 - 1e-9))
        assert np.all(np.abs(estimate) <= (7000.0 if limit is None else limit) * (1 + 1e-12))


def test_batch_equals_loop_and_scale_and_antenna_order_do_not_matter():
    rng = np.random.default_rng(3)
    x = complex_normal(rng, 2, 3, 15)
    y, _ = received(rng, x, rng.uniform(-500, 500, (2, 3)), num_antennas=4, noise_var=0.1)
    whole = synchronization.frequency_offset(y, x, T)
    for i in np.ndindex(2, 3):
        assert synchronization.frequency_offset(y[i], x[i], T) == pytest.approx(whole[i], rel=1e-9)
    turned = y[:, :, ::-1] * np.exp(1j * rng.random((2, 3, 4, 1)))
    np.testing.assert_allclose(synchronization.frequency_offset(1e-7 * turned, 1e5 * x, T), whole, rtol=1e-9)
    np.testing.assert_allclose(synchronization.frequency_offset(y.astype(np.complex64), x, T), whole, atol=0.01)


def test_autocorrelations_are_those_of_a_sum_over_antennas():
    """Fewer samples than antennas and more take different ways."""
    rng = np.random.default_rng(13)
    for shape in ((4, 16, 10), (5, 5), (2, 3, 4), (1, 1, 30)):
        v = complex_normal(rng, *shape)
        num = shape[-1]
        plain = [np.sum(v[..., k:] * np.conj(v[..., : num - k]), axis=(-2, -1)) for k in range(num)]
        np.testing.assert_allclose(autocorrelation(v), np.stack(plain, axis=-1), atol=1e-12)


def dominant_gains(rng, num_trials, snr_db, num_antennas=16):
    """Gains |b| of stage II after stage I at the same SNR: the direction is estimated from noisy pilots."""
    g = complex_normal(rng, num_trials, num_antennas, num_antennas)
    noise = np.sqrt(10 ** (-snr_db / 10)) * complex_normal(rng, *g.shape)
    a = synchronization.dominant_direction(g + noise, method="power")
    return np.einsum("tij,ti->tj", g, a)


@pytest.mark.parametrize("snr_db", [0, 10, 20])
@pytest.mark.parametrize("waveform", ["sinusoid", "edges"])
def test_mean_squared_error_is_within_5_percent_of_the_bound(snr_db, waveform):
    """Figure 13's setting, offsets and search within 300 Hz: each squared error over the bound of its own trial.

    16 antennas, N_f = 10. 12000 squared normal errors have a standard error of 1.3 %. Without the help of the limits
    it is the next test's 4.8 % at 0 dB.
    """
    rng = np.random.default_rng(4)
    x = sinusoid(10) if waveform == "sinusoid" else synchronization.edge_energy_waveform(10)
    offset, noise_var = rng.uniform(-300, 300, 12000), 10 ** (-snr_db / 10)
    y, gains = received(rng, x, offset, noise_var=noise_var, gains=dominant_gains(rng, 12000, snr_db))
    bound = bounds.frequency_offset_crlb(x, np.sum(np.abs(gains) ** 2, axis=-1), noise_var, T)
    error = synchronization.frequency_offset(y, x, T, max_offset=300.0) - offset
    assert np.mean(error**2 / bound) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("snr_db", [0, 5])
def test_unknown_gains_cost_what_the_next_order_says(snr_db):
    """Mean squared error over ``(35) (1 + M s2 / (|b|^2 |x|^2))``, far from any limit: 1 within 3.5 standard errors."""
    rng = np.random.default_rng(5)
    x, noise_var, count = sinusoid(10), 10 ** (-snr_db / 10), 20000
    offset = rng.uniform(-200, 200, count)
    y, gains = received(rng, x, offset, noise_var=noise_var, gains=dominant_gains(rng, count, snr_db))
    energy = np.sum(np.abs(gains) ** 2, axis=-1)
    bound = bounds.frequency_offset_crlb(x, energy, noise_var, T) * (1 + 16 * noise_var / (energy * 10))
    error = synchronization.frequency_offset(y, x, T, max_offset=500.0) - offset
    assert np.mean(error**2 / bound) == pytest.approx(1, abs=3.5 * np.sqrt(2 / count))


def test_edge_energy_beats_the_sinusoid_by_several_db():
    """Unit power and the same noise: 4.0 dB in the bound at N = 10, 4.6 dB at N = 64; and in the errors."""
    rng = np.random.default_rng(5)
    offset = rng.uniform(-200, 200, 4000)
    for num, expected in ((10, 4.0), (64, 4.6)):
        edges, tone = synchronization.edge_energy_waveform(num), sinusoid(num)
        bound_db = 10 * np.log10(bounds.frequency_offset_crlb(tone, 1, 1) / bounds.frequency_offset_crlb(edges, 1, 1))
        assert bound_db == pytest.approx(expected, abs=0.15)
        limit = min(300.0, 0.45 / (num * T))
        squares = []
        for x in (tone, edges):
            sent = np.clip(offset, -0.8 * limit, 0.8 * limit)
            y, _ = received(rng, x, sent, num_antennas=4, noise_var=0.01, gains=np.ones((4000, 4)))
            squares.append(np.mean((synchronization.frequency_offset(y, x, T, max_offset=limit) - sent) ** 2))
        assert 10 * np.log10(squares[0] / squares[1]) == pytest.approx(bound_db, abs=0.45)


def test_edge_energy_waveform_has_unit_power_and_keeps_its_limits():
    for num in (2, 3, 9, 10, 31):
        n = np.arange(num) - (num - 1) / 2
        last = np.inf
        for peak in (None, 5.0, 2.0, 1.3, 1.0):
            for share in (0.0, 0.4, 1.0):
                x = synchronization.edge_energy_waveform(num, share=share, peak_power=peak)
                assert np.mean(x**2) == pytest.approx(1)
                np.testing.assert_allclose(x, x[::-1])
                assert peak is None or np.max(x**2) <= peak * (1 + 1e-12)
                assert np.min(x**2) >= (1 - share) * (1 - 1e-12)
            spread = np.sum(n**2 * x**2)
            assert spread <= last * (1 + 1e-12)
            last = spread
        assert spread == pytest.approx(np.sum(n**2))  # a peak of the mean leaves constant modulus
    with pytest.raises(ValueError, match=r"share = 1\.5"):
        synchronization.edge_energy_waveform(4, share=1.5)
    with pytest.raises(ValueError, match=r"peak_power = 0\.5"):
        synchronization.edge_energy_waveform(4, peak_power=0.5)
    with pytest.raises(ValueError, match="num_samples = 1"):
        synchronization.edge_energy_waveform(1)


STARTS = np.array([0, 1000, 2000, 10000, 100000, 1000000])


def bursts(rng, x, offset, *, noise_var, starts=STARTS, num_antennas=4, jumps=None):
    positions = starts[:, None] + np.arange(x.shape[-1])
    gains = complex_normal(rng, *offset.shape, num_antennas)
    turn = np.exp(2j * np.pi * offset[..., None, None] * positions * 1e-6)
    if jumps is not None:
        turn = turn * np.exp(1j * jumps)[..., None]
    y = gains[..., None, :, None] * (x * turn)[..., None, :]
    return y + np.sqrt(noise_var) * complex_normal(rng, *y.shape), gains, positions


def test_one_burst_gives_the_frequency_offset_and_its_deviation():
    rng = np.random.default_rng(6)
    x, offset = complex_normal(rng, 30), rng.uniform(-3e4, 3e4, 1000)
    y, _, _ = bursts(rng, x, offset, noise_var=0.1, starts=np.array([7000]))
    estimate = synchronization.frequency_estimate(y, x, [7000], 1e-6, max_offset=5e4)
    alone = synchronization.frequency_offset(y[:, 0], x, 1e-6, max_offset=5e4)
    np.testing.assert_allclose(estimate.frequency_hz, alone)
    score = (estimate.frequency_hz - offset) / estimate.frequency_std_hz
    assert np.all(estimate.trusted)
    # 1000 squared normal scores: standard error 4.5 %.
    assert np.mean(score**2) == pytest.approx(1, abs=0.16)


def test_bursts_with_gaps_reach_the_bound_of_one_gain_for_all():
    """A last gap of 0.9 s at 20 dB: five orders finer than one burst, and still the right maximum."""
    rng = np.random.default_rng(7)
    x, offset = np.exp(2j * np.pi * rng.random(64)), rng.uniform(-5e3, 5e3, 300)
    y, gains, positions = bursts(rng, x, offset, noise_var=0.01)
    estimate = synchronization.frequency_estimate(y, x, STARTS, 1e-6, max_offset=2e4)
    bound = bounds.frequency_offset_crlb(np.tile(x, 6), np.sum(np.abs(gains) ** 2, axis=-1), 0.01, 1e-6,
                                         positions=positions.ravel())
    ratio = (estimate.frequency_hz - offset) ** 2 / bound
    assert np.max(ratio) < 20
    assert np.mean(ratio) == pytest.approx(1, abs=3.5 * np.sqrt(2 / 300))
    np.testing.assert_allclose(estimate.frequency_std_hz**2, bound, rtol=0.35)
    assert np.all(estimate.trusted)


def test_bursts_without_noise_are_exact_also_far_from_the_start():
    rng = np.random.default_rng(8)
    x, offset = complex_normal(rng, 20), np.array([1234.567, -9000.0, 5e4])
    y, _, _ = bursts(rng, x, offset, noise_var=0.0)
    for origin in (0, 10**12):
        estimate = synchronization.frequency_estimate(y, x, STARTS + origin, 1e-6)
        np.testing.assert_allclose(estimate.frequency_hz, offset, rtol=1e-10)


def test_a_gap_too_long_for_the_noise_is_not_bridged():
    """Two bursts a second apart at 0 dB: joined they would be fine and wrong; the deviation stays the coarse one."""
    rng = np.random.default_rng(9)
    x, offset = np.exp(2j * np.pi * rng.random(64)), rng.uniform(-5e3, 5e3, 400)
    y, gains, _ = bursts(rng, x, offset, noise_var=1.0, starts=np.array([0, 10**6]))
    estimate = synchronization.frequency_estimate(y, x, [0, 10**6], 1e-6, max_offset=2e4)
    bound = bounds.frequency_offset_crlb(x, 2 * np.sum(np.abs(gains) ** 2, axis=-1), 1.0, 1e-6)
    trusted = estimate.trusted
    assert np.mean(trusted) > 0.95
    assert np.all(estimate.frequency_std_hz[trusted] ** 2 > 0.5 * bound[trusted])
    score = (estimate.frequency_hz - offset)[trusted] / estimate.frequency_std_hz[trusted]
    assert np.mean(score**2) == pytest.approx(1, abs=3.5 * np.sqrt(2 / 400))


def test_bursts_that_jump_in_phase_are_not_joined():
    rng = np.random.default_rng(10)
    x, offset = np.exp(2j * np.pi * rng.random(64)), rng.uniform(-5e3, 5e3, 200)
    jumps = rng.uniform(-np.pi, np.pi, (200, 6))
    y, _, _ = bursts(rng, x, offset, noise_var=0.01, jumps=jumps)
    estimate = synchronization.frequency_estimate(y, x, STARTS, 1e-6, max_offset=2e4)
    score = np.abs(estimate.frequency_hz - offset) / estimate.frequency_std_hz
    # Three bursts close together can agree by chance on a frequency that explains their jumps.
    assert np.median(score) < 2
    assert np.mean(score > 8) < 0.05


def test_noise_and_offsets_outside_the_search_are_flagged():
    rng = np.random.default_rng(11)
    x = np.exp(2j * np.pi * rng.random(24))
    noise = complex_normal(rng, 2000, 2, 3, 24)
    for limit in (None, 2e4):
        estimate = synchronization.frequency_estimate(noise, x, [0, 500], 1e-6, max_offset=limit)
        assert np.count_nonzero(estimate.trusted) < 2
    offset = rng.choice([-1, 1], 200) * rng.uniform(2.1e4, 4.9e5, 200)
    y, _, _ = bursts(rng, x, offset, noise_var=0.01, starts=np.array([0, 500]))
    outside = synchronization.frequency_estimate(y, x, [0, 500], 1e-6, max_offset=2e4)
    assert not np.any(outside.trusted)
    assert np.all(np.abs(outside.frequency_hz) <= 2e4)
    assert np.mean(synchronization.frequency_estimate(y, x, [0, 500], 1e-6).trusted) > 0.95


def test_bursts_that_are_silent_or_not_finite_are_flagged_alone():
    rng = np.random.default_rng(12)
    x = complex_normal(rng, 20)
    y, _, _ = bursts(rng, x, np.full(4, 700.0), noise_var=1e-3)
    y[1], y[2, 0, 1, 3], y[3, 2, 0, 0] = 0.0, np.nan, np.inf
    estimate = synchronization.frequency_estimate(y, x, STARTS, 1e-6)
    assert estimate.trusted.tolist() == [True, False, False, False]
    assert np.all(np.isnan(estimate.frequency_hz[1:]))
    assert np.all(np.isinf(estimate.frequency_std_hz[1:]))
    alone = synchronization.frequency_offset(y[:, 2], x, 1e-6)
    assert np.isfinite(alone).tolist() == [True, False, True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.ones(8)}, r"y has shape \(8,\)"),
        ({"x": np.ones(7)}, r"x has shape \(7,\).* 8 samples"),
        ({"x": np.eye(8)[0]}, "at least two samples"),
        ({"x": np.full(8, np.nan)}, "x must be finite"),
        ({"sample_interval": 0.0}, "sample_interval = 0"),
        ({"max_offset": 8000.0}, r"max_offset = 8000.* 7000 Hz"),
        ({"max_offset": 0.0}, "max_offset = 0"),
    ],
)
def test_wrong_arguments_raise_errors_that_name_them(change, message):
    arguments = {"y": np.ones((3, 8), complex), "x": np.ones(8), "sample_interval": T, "max_offset": None} | change
    with pytest.raises(ValueError, match=message):
        synchronization.frequency_offset(**arguments)


def test_wrong_bursts_raise_errors_that_name_them():
    y, x = np.ones((2, 3, 8), complex), np.ones(8)
    with pytest.raises(ValueError, match="starts"):
        synchronization.frequency_estimate(y, x, [0, 7], T)
    with pytest.raises(ValueError, match="starts"):
        synchronization.frequency_estimate(y, x, [0], T)
    with pytest.raises(ValueError, match=r"y has shape \(3, 8\)"):
        synchronization.frequency_estimate(y[0], x, [0], T)
    with pytest.raises(ValueError, match=r"x has shape \(3, 8\)"):
        synchronization.frequency_estimate(y, np.ones((3, 8)), [0, 8], T)


def test_bursts_distorted_alike_are_not_trusted():
    """A late copy of a wide waveform biases every burst alike, far beyond what the noise predicts."""
    rng = np.random.default_rng(8)
    num, bursts, rate = 128, 8, 1e6
    x = rng.standard_normal((num, 2)) @ [0.7, 0.7j]
    late = np.fft.ifft(np.fft.fft(x) * np.exp(-2j * np.pi * 0.3 * np.fft.fftfreq(num)))
    starts = np.arange(bursts) * 1024
    position = starts[:, None] + np.arange(num)
    turned = np.exp(2j * np.pi * 100.0 / rate * position)[:, None, :] * np.ones((1, 4, 1))
    noise = 1e-3 * rng.standard_normal((bursts, 4, num, 2)) @ [1, 1j]
    assert synchronization.frequency_estimate(turned * x + noise, x, starts, 1 / rate).trusted
    found = synchronization.frequency_estimate(turned * late + noise, x, starts, 1 / rate)
    assert not found.trusted or abs(found.frequency_hz - 100.0) < 6 * found.frequency_std_hz
