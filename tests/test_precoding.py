# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest
from gnuradio.dmimo.core import precoding


def complex_normal(rng, shape):
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)


def link(rng, users=3, ports=8, batch=(4,)):
    """A reciprocal link with unequal hardware: h_ul (..., ports, users), h_dl (..., users, ports), c (..., ports)."""
    g = complex_normal(rng, (*batch, ports, users))
    t, r = (rng.lognormal(0, 0.5, (*batch, ports)) * np.exp(2j * np.pi * rng.random((*batch, ports))) for _ in "tr")
    t_user, r_user = (complex_normal(rng, (*batch, users)) for _ in "tr")
    h_ul = r[..., :, None] * g * t_user[..., None, :]
    h_dl = r_user[..., :, None] * np.swapaxes(g, -1, -2) * t[..., None, :]
    return h_ul, h_dl, t / r


def interference(received):
    """Largest off-diagonal amplitude relative to the smallest diagonal one."""
    diagonal = np.abs(np.einsum("...uu->...u", received))
    off = np.abs(received) * (1 - np.eye(received.shape[-1]))
    return np.max(off) / np.min(diagonal)


def test_downlink_channel_is_the_true_one_up_to_a_scalar_per_user():
    h_ul, h_dl, c = link(np.random.default_rng(1))
    ratio = h_dl / precoding.downlink_channel(c, h_ul)
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[..., :1], ratio.shape), rtol=1e-12)
    single = precoding.downlink_channel(c, h_ul[..., 1], user_axis=False)
    np.testing.assert_allclose(single, precoding.downlink_channel(c, h_ul)[..., 1, :], rtol=1e-12)


def test_calibrated_zero_forcing_leaves_no_interference_with_unequal_gains():
    h_ul, h_dl, c = link(np.random.default_rng(2))
    w = precoding.zero_forcing(precoding.downlink_channel(c, h_ul))
    assert interference(h_dl @ w) < 1e-12
    # What calibration is for: without it, or with the wrong sign of the phase, users interfere.
    assert interference(h_dl @ precoding.zero_forcing(np.swapaxes(h_ul, -1, -2))) > 0.1
    assert interference(h_dl @ precoding.zero_forcing(precoding.downlink_channel(c.conj(), h_ul))) > 0.1


def test_calibrated_uplink_weights_are_zero_forcing_on_the_downlink():
    h_ul, h_dl, c = link(np.random.default_rng(3))
    w = precoding.apply_calibration(precoding.zero_forcing(np.swapaxes(h_ul, -1, -2)), c)
    assert interference(h_dl @ w) < 1e-12


def test_zero_forcing_equals_the_pseudo_inverse_and_serves_users_equally():
    h = complex_normal(np.random.default_rng(4), (5, 3, 7))
    w = precoding.zero_forcing(h)
    expected = np.linalg.pinv(h)
    expected /= np.linalg.norm(expected, axis=(-2, -1), keepdims=True)
    np.testing.assert_allclose(w, expected, atol=1e-12)
    gains = np.einsum("...uu->...u", h @ w)
    np.testing.assert_allclose(gains, np.broadcast_to(gains[..., :1].real, gains.shape), atol=1e-12)


def test_mrt_receives_the_norm_and_no_random_weights_receive_more():
    rng = np.random.default_rng(5)
    h = complex_normal(rng, (6, 1, 4))
    received = np.abs((h @ precoding.mrt(h))[..., 0, 0])
    np.testing.assert_allclose(received, np.linalg.norm(h[..., 0, :], axis=-1), rtol=1e-12)
    random = complex_normal(rng, (500, 6, 4, 1))
    random /= np.linalg.norm(random, axis=-2, keepdims=True)
    assert np.all(np.abs(h @ random)[..., 0, 0] < received)


def test_calibrated_mrt_collects_all_the_power_of_the_true_downlink():
    h_ul, h_dl, c = link(np.random.default_rng(6), users=1)
    w = precoding.mrt(precoding.downlink_channel(c, h_ul))
    np.testing.assert_allclose(
        np.abs(h_dl @ w)[..., 0, 0], np.linalg.norm(h_dl[..., 0, :], axis=-1), rtol=1e-12
    )


def test_regularised_zero_forcing_goes_from_zero_forcing_to_mrt():
    h = complex_normal(np.random.default_rng(7), (5, 3, 7))
    np.testing.assert_allclose(precoding.regularised_zero_forcing(h, 1e-10), precoding.zero_forcing(h), atol=1e-8)
    np.testing.assert_allclose(precoding.regularised_zero_forcing(h, 1e10), precoding.mrt(h), atol=1e-8)


def test_regularised_zero_forcing_minimises_the_mean_square_error():
    rng = np.random.default_rng(8)
    h, noise_var, users = complex_normal(rng, (3, 5)), 0.3, 3

    def mean_square_error(w):
        """E|s - g (H w s + n)|^2 at the best common receiver scale g >= 0, total power 1."""
        effective = h @ w
        linear = np.trace(effective).real
        return users - linear**2 / (np.sum(np.abs(effective) ** 2) + users * noise_var)

    best = mean_square_error(precoding.regularised_zero_forcing(h, users * noise_var))
    for factor in (0.5, 2.0):
        assert best < mean_square_error(precoding.regularised_zero_forcing(h, factor * users * noise_var))
    assert best < min(mean_square_error(precoding.zero_forcing(h)), mean_square_error(precoding.mrt(h)))


@pytest.mark.parametrize("weights", [precoding.mrt, precoding.zero_forcing,
                                     lambda h, **k: precoding.regularised_zero_forcing(h, [0.1, 2, 30], **k)])
def test_power_is_normalised_as_stated_by_a_common_scale_and_batch_equals_loop(weights):
    h = complex_normal(np.random.default_rng(9), (3, 2, 4))
    total, port = weights(h), weights(h, power="port")
    assert total.shape == (3, 4, 2)
    np.testing.assert_allclose(np.sum(np.abs(total) ** 2, axis=(-2, -1)), 1, rtol=1e-12)
    np.testing.assert_allclose(np.max(np.sum(np.abs(port) ** 2, axis=-1), axis=-1), 1 / 4, rtol=1e-12)
    ratio = port / total
    np.testing.assert_allclose(ratio, np.broadcast_to(ratio[:, :1, :1].real, ratio.shape), rtol=1e-12)
    if weights in (precoding.mrt, precoding.zero_forcing):
        np.testing.assert_allclose(weights(h[1]), total[1], atol=1e-14)
    with pytest.raises(ValueError, match="power='all'"):
        weights(h, power="all")


def test_calibration_at_follows_twice_the_oscillator_phase():
    rng = np.random.default_rng(10)
    samp_rate, frequency = 1e6, np.array([0.0, 50.0, -13.7])
    c0, r = complex_normal(rng, 3), complex_normal(rng, 3)

    def turning(time):
        theta = 2 * np.pi * frequency * (time / samp_rate)
        return c0 * r * np.exp(1j * theta) / (r * np.exp(-1j * theta))

    c = precoding.calibration_at(turning(1_000), frequency, 1_000, 61_000, samp_rate)
    np.testing.assert_allclose(c, turning(61_000), atol=1e-12)
    batch = precoding.calibration_at(turning(0), frequency, 0, np.array([0, 77, 10**6]), samp_rate)
    np.testing.assert_allclose(batch[1], turning(77), atol=1e-12)
    np.testing.assert_allclose(batch[0], c0, atol=1e-12)


def test_midpoint_rule_turns_an_uplink_of_one_time_into_the_downlink_of_another():
    rng = np.random.default_rng(11)
    samp_rate, frequency, reference_time = 1e6, np.array([20.0, -50.0, 31.0]), 5_000
    g, t, r = (complex_normal(rng, 3) for _ in "gtr")

    def phase(time):
        return np.exp(2j * np.pi * frequency * (time / samp_rate))

    h_ul = r * np.conj(phase(20_000)) * g
    h_dl = t * phase(20_901) * g
    c_reference = t / r * phase(reference_time) ** 2
    c = precoding.calibration_between(c_reference, frequency, reference_time, 20_000, 20_901, samp_rate)
    np.testing.assert_allclose(c * h_ul, h_dl, atol=1e-12)
    at_uplink = precoding.calibration_at(c_reference, frequency, reference_time, 20_000, samp_rate)
    assert np.max(np.abs(at_uplink * h_ul - h_dl)) > 0.01


def test_times_after_days_keep_half_a_sample():
    day = 86_400 * 10**8
    frequency = np.array([1e6])
    late = precoding.calibration_between([1.0], frequency, 0, 3 * day, 3 * day + 1, 1e8)
    # 1 MHz times whole days is a whole number of turns; half a sample at 100 MS/s is left, doubled: 3.6 degrees.
    np.testing.assert_allclose(np.angle(late), 2 * np.pi * 0.01, atol=1e-4)
    exact = precoding.calibration_between([1.0], frequency, 3 * day, 3 * day, 3 * day + 1, 1e8)
    np.testing.assert_allclose(np.angle(exact), 2 * np.pi * 0.01, atol=1e-12)


@pytest.mark.parametrize("times", [(0.5, 0, 0), (0, 1.0, 0), (0, 0, np.float64(3))])
def test_float_times_are_refused(times):
    with pytest.raises(ValueError, match="must be an integer number of samples"):
        precoding.calibration_between([1.0], [0.0], *times, 1e6)


def test_rank_deficient_and_degenerate_channels_raise():
    rng = np.random.default_rng(12)
    h = complex_normal(rng, (4, 2, 5))
    h[2, 1] = (0.3 - 2j) * h[2, 0]
    with pytest.raises(ValueError, match=r"rank deficient at batch index \(2,\)"):
        precoding.zero_forcing(h)
    precoding.regularised_zero_forcing(h, 0.1)
    with pytest.raises(ValueError, match="6 users and 5 ports"):
        precoding.zero_forcing(complex_normal(rng, (6, 5)))
    for weights in (precoding.mrt, precoding.zero_forcing):
        with pytest.raises(ValueError, match="finite"):
            weights(np.array([[1.0, np.nan]]))
        with pytest.raises(ValueError, match="not be zero"):
            weights(np.zeros((1, 3)))
        with pytest.raises(ValueError, match="users, ports"):
            weights(np.ones(3))
    with pytest.raises(ValueError, match="regularisation="):
        precoding.regularised_zero_forcing(h, 0.0)


def test_wrong_shapes_and_zero_coefficients_raise():
    with pytest.raises(ValueError, match="ports of c"):
        precoding.downlink_channel(np.ones(3), np.ones((4, 3)))
    with pytest.raises(ValueError, match="ports of c"):
        precoding.apply_calibration(np.ones((4, 3)), np.ones(3))
    with pytest.raises(ValueError, match="zeros or NaN"):
        precoding.apply_calibration(np.ones((3, 1)), np.array([1, 0, 1]))
