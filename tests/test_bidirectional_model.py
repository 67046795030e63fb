# SPDX-License-Identifier: GPL-3.0-or-later
"""The matrix model of TRPs and UEs against eq. (10) written out element by element, its link budget, its statistics."""

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
from gnuradio.dmimo.core import bidirectional_bounds as bounds
from gnuradio.dmimo.core.delay import delay_and_gain
from gnuradio.dmimo.core.ofdm import CombMapping, OfdmGrid
from gnuradio.dmimo.experiments import bidirectional_exchange as air
from gnuradio.dmimo.experiments import bidirectional_model as model

SPACING = 120e3
FIRST_S = 1.3e-3
SECOND_S = FIRST_S + 2 * model.SYMBOL_S
MIDDLE_S = 0.5 * (FIRST_S + SECOND_S)
GRID = np.arange(-24, 25) * 32
TABLE = CombMapping(8, 4, 196).subcarriers(OfdmGrid())
RICH = model.Scene(num_trp=3, num_ue=2, trp_ports=2, ue_ports=2, num_scattered=4, rice_factor_db=3.0, shadowing_db=4.0)


def rngs(trials, seed=1):
    return [np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(k,))) for k in range(trials)]


@pytest.mark.parametrize("scene", [model.Scene(num_trp=3, num_ue=2), RICH, replace(RICH, line_of_sight=False)])
def test_channels_are_equation_10_written_out(scene):
    """Scalar by scalar, with the sign of every exponent as in the corrected equation."""
    drop = model.draw(scene, rngs(2))
    up, down = drop.uplink(GRID, SECOND_S), drop.downlink(GRID, FIRST_S)
    for t, m, n, i in [(0, 0, 1, 3), (1, 2, 0, 40), (1, up.shape[1] - 1, up.shape[2] - 1, 7)]:
        k = GRID[i]
        path = sum(a * np.exp(-2j * np.pi * k * SPACING * d)
                   for a, d in zip(drop.path_gain[t, m, n], drop.path_delay_s[t, m, n], strict=True))  # fmt: skip
        tau = drop.tau_ue_s[t, n] - drop.tau_trp_s[t, m]
        f = drop.frequency_ue_hz[t, n] - drop.frequency_trp_hz[t, m]
        turn = 2 * np.pi * f * SECOND_S - 2 * np.pi * k * SPACING * tau
        expected = drop.receive_trp[t, m] * drop.transmit_ue[t, n] * path * np.exp(1j * turn)
        assert up[t, m, n, i] == pytest.approx(expected, rel=1e-9)
        turn = 2 * np.pi * f * FIRST_S - 2 * np.pi * k * SPACING * tau
        expected = drop.transmit_trp[t, m] * drop.receive_ue[t, n] * path * np.exp(-1j * turn)
        assert down[t, m, n, i] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("subcarriers", [GRID, TABLE[:6, :4]])
def test_two_way_coefficient_is_the_ratio_of_coefficients_at_the_midpoint(subcarriers):
    drop = model.draw(RICH, rngs(3))
    c = drop.uplink(subcarriers, SECOND_S) / drop.downlink(subcarriers, FIRST_S)

    def ratio(time_s):
        if np.ndim(subcarriers) == 1:
            c_trp, c_ue = drop.coefficients(subcarriers, time_s)
            return c_ue[:, None] / c_trp[:, :, None]
        out = np.empty(c.shape, complex)
        for m, n in np.ndindex(c.shape[1:3]):
            c_trp, c_ue = drop.coefficients(subcarriers[m, n], time_s)
            out[:, m, n] = c_ue[:, n] / c_trp[:, m]
        return out

    np.testing.assert_allclose(c / ratio(MIDDLE_S), 1.0, atol=1e-10)
    for other in (FIRST_S, SECOND_S):
        assert np.max(np.abs(c / ratio(other) - 1)) > 0.05
    assert np.max(np.abs(c.conj() / ratio(MIDDLE_S) - 1)) > 0.5


def test_link_budget_is_10_7_db_per_element_at_300_m_and_30_dbm():
    scene = model.Scene(equal_path_loss=True, gain_std=0.0)
    assert scene.path_loss_db(300.0) == pytest.approx(110.3, abs=0.05)
    drop = model.draw(scene, rngs(2))
    np.testing.assert_allclose(10 * np.log10(np.abs(drop.uplink(GRID)) ** 2), 10.7, atol=0.01)
    np.testing.assert_allclose(10 * np.log10(np.abs(drop.downlink(GRID)) ** 2), 10.7, atol=0.01)
    np.testing.assert_allclose(10 * np.log10(np.abs(drop.at_power(33.0).uplink(GRID)) ** 2), 13.7, atol=0.01)
    # Over the square, from 260 to 340 m: between 9.4 and 12 dB, and the mean of a typical link.
    snr_db = 10 * np.log10(model.draw(model.Scene(), rngs(200)).link_snr)
    assert 9.3 < snr_db.min() < snr_db.max() < 12.0
    assert snr_db.mean() == pytest.approx(10.65, abs=0.1)


def test_draws_have_the_ranges_of_table_i():
    drop = model.draw(model.Scene(), rngs(400))
    tau = np.concatenate([drop.tau_trp_s, drop.tau_ue_s], axis=1)
    assert 9.9e-9 < np.abs(tau).max() < 10e-9
    f = np.concatenate([drop.frequency_trp_hz, drop.frequency_ue_hz], axis=1)
    assert 770 < np.abs(f).max() < 780  # 30 ppb of 26 GHz
    for spread, full in ((tau, 20e-9), (f, 1560.0)):
        assert np.std(spread) == pytest.approx(full / np.sqrt(12), rel=0.04)
    level = np.log(np.abs(np.concatenate([drop.transmit_trp, drop.receive_ue], axis=1)))
    assert np.std(level) == pytest.approx(0.1, rel=0.04)  # 6400 values: 0.9 %
    assert abs(np.mean(drop.transmit_trp / np.abs(drop.transmit_trp))) < 4 / np.sqrt(3200)


def test_ports_of_a_node_share_clock_and_oscillator_and_differ_in_polarisation():
    scene = replace(RICH, line_of_sight=False, cross_polar_db=13.0, shadowing_db=0.0, equal_path_loss=True)
    drop = model.draw(replace(scene, linewidth_hz=50.0), rngs(300), [0.0, 1e-3])
    for name in ("tau_trp_s", "frequency_trp_hz", "noise_trp_rad", "tau_ue_s", "frequency_ue_hz", "noise_ue_rad"):
        values = getattr(drop, name)
        np.testing.assert_array_equal(values[:, ::2], values[:, 1::2], err_msg=name)
    assert np.all(drop.transmit_trp[:, 0] != drop.transmit_trp[:, 1])
    np.testing.assert_array_equal(drop.trp_of_port, [0, 0, 1, 1, 2, 2])
    power = np.mean(np.sum(np.abs(drop.path_gain) ** 2, axis=-1), axis=0)
    together = np.arange(6)[:, None] % 2 == np.arange(4) % 2
    # 300 trials of the mean of 12 links: relative deviation 1/sqrt(3600), several standard errors.
    assert np.mean(power[together]) / np.mean(power[~together]) == pytest.approx(10**1.3, rel=0.1)
    assert np.mean(power[together]) == pytest.approx(10**1.07, rel=0.08)
    np.testing.assert_allclose(drop.link_snr[0, :, 0], np.where(together[:, 0], 1.0, 10**-1.3) * 10**1.07, rtol=1e-3)


def test_phase_noise_has_the_variance_of_its_linewidth_and_turns_coefficients_twice():
    times = np.array([0.0, 1e-3, 4e-3])
    scene = model.Scene(num_trp=6, num_ue=4, linewidth_hz=20.0, max_frequency_ppb=0.0)
    drop = model.draw(scene, rngs(400), times[::-1])
    trp, ue = drop.phases(times)
    steps = np.diff(np.concatenate([trp, ue], axis=-1), axis=0)
    expected = 2 * np.pi * 20.0 * np.diff(times)
    # 4000 increments: 2.2 % on the variance.
    np.testing.assert_allclose(np.var(steps, axis=(1, 2)), expected, rtol=0.09)
    c = [drop.coefficients([0], t)[0][..., 0] for t in times[:2]]
    np.testing.assert_allclose(c[1] / c[0], np.exp(2j * (trp[1] - trp[0])), atol=1e-12)
    up = drop.uplink(GRID, times)
    np.testing.assert_allclose(up[1], drop.uplink(GRID, times[1]), atol=1e-12)
    turned = np.exp(1j * (ue[2, :, None, :] - trp[2, :, :, None]))[..., None] * drop.uplink(GRID, 0.0)
    np.testing.assert_allclose(up[2], turned, atol=1e-9)
    with pytest.raises(ValueError, match="not among the times"):
        drop.uplink(GRID, 2e-3)
    with pytest.raises(ValueError, match="times_s must name"):
        model.draw(scene, rngs(1))


def test_scattered_paths_have_their_rice_factor_and_stay_in_the_prefix():
    drop = model.draw(model.Scene(num_scattered=5, rice_factor_db=6.0, equal_path_loss=True), rngs(200))
    power = np.mean(np.abs(drop.path_gain) ** 2, axis=(0, 1, 2))
    assert power[0] / power[1:].sum() == pytest.approx(10**0.6, rel=0.05)
    assert power.sum() == pytest.approx(10**1.07, rel=0.02)
    excess = drop.path_delay_s - drop.path_delay_s[..., :1]
    assert 0 < excess[..., 1:].min() < excess.max() < 400e-9 < OfdmGrid().cp_samples / OfdmGrid().samp_rate
    # Mean of an exponential of 30 ns cut off at 400 ns, 51200 values.
    assert np.mean(excess[..., 1:]) == pytest.approx(30e-9, rel=0.03)


def test_trials_depend_on_their_own_seed_only_and_selection_commutes():
    whole = model.draw(RICH, rngs(4))
    alone = model.draw(RICH, rngs(4)[2:3])
    np.testing.assert_allclose(alone.uplink(GRID, FIRST_S)[0], whole.uplink(GRID, FIRST_S)[2], rtol=1e-12)
    part = whole.select(trp=[4, 1], ue=slice(2, None))
    np.testing.assert_array_equal(part.downlink(GRID, 1e-3), whole.downlink(GRID, 1e-3)[:, [4, 1]][:, :, 2:])
    np.testing.assert_array_equal(part.coefficients(GRID)[0], whole.coefficients(GRID)[0][:, [4, 1]])
    np.testing.assert_array_equal(part.trp_of_port, [2, 0])
    assert model.Scene(**json.loads(json.dumps(asdict(RICH)))) == RICH


@pytest.mark.parametrize("side", ["trp", "ue"])
def test_exchange_through_cars_meets_the_bound_on_the_delay(side):
    """15 dB above the 10.7 dB of 30 dBm, where the inverse form costs under 3 %; 3200 links, 1.3 % each."""
    drop = model.draw(model.Scene(num_ue=4, equal_path_loss=True, gain_std=0.0), rngs(100)).at_power(45.0)
    result = air.exchange(drop, rngs(100, seed=2), TABLE, FIRST_S, side=side)
    assert result.time_s == pytest.approx(MIDDLE_S, rel=1e-12)
    delay, gain = delay_and_gain(result.c, TABLE, SPACING, max_delay=60e-9)
    error = delay / 2 - (drop.tau_ue_s[:, None, :] - drop.tau_trp_s[:, :, None])
    v = bounds.element_variance(10**2.57, 10**2.57)
    assert np.std(error) / bounds.two_way_delay_std(v, 49, 32, SPACING) == pytest.approx(1.0, abs=0.05)
    c_trp, c_ue = drop.coefficients([0], result.time_s)
    phase = np.angle(gain * c_trp / np.swapaxes(c_ue, 1, 2))
    # At band centre, a little off the centroid of each comb.
    predicted = bounds.delay_crlb(TABLE, SPACING, v).phase_std_rad
    assert np.mean((phase / predicted) ** 2) == pytest.approx(1.0, abs=0.1)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"num_trp": 0}, "num_trp=0"), ({"ue_ports": 3}, "ue_ports=3"), ({"line_of_sight": False}, "is no path")],
)
def test_impossible_scenes_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        model.Scene(**change)
