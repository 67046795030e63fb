# SPDX-License-Identifier: GPL-3.0-or-later
"""Tracking of C by one-way soundings: signs and the factor 2, bounds, links that contradict."""

import numpy as np
import pytest
from gnuradio.dmimo.core import bidirectional_bounds as bounds
from gnuradio.dmimo.core.bidirectional import BidirectionalCalibration, DisconnectedLinksError, joint_ml
from gnuradio.dmimo.core.carrier_model import wrap
from gnuradio.dmimo.core.cars import quotient
from gnuradio.dmimo.core.csi_tracking import (
    node_turns,
    phase_change,
    phase_change_per_subcarrier,
    track,
    tracked_coefficient,
    turned,
)
from gnuradio.dmimo.core.link_network import solve_links
from test_bidirectional import FIRST_S, MIDDLE_S, SECOND_S, SPACING, TABLE, M, N, Network, complex_normal

PATTERN_S = 0.625e-3
SRS = np.arange(-792, 792, 4)


def faded(rng, *shape):
    """Channels (..., 128) of three paths and unit mean energy over the band, with a random phase change."""
    path = complex_normal(rng, *shape, 3, 1) * np.exp(-2j * np.pi * np.arange(128) * rng.random((*shape, 3, 1)))
    h = path.sum(axis=-2)
    h /= np.sqrt(np.mean(np.abs(h) ** 2, axis=-1, keepdims=True))
    return h, rng.uniform(-np.pi, np.pi, shape)


def sounding(rng, network, direction, time_s, rho, k=SRS):
    g = network.uplink(k, time_s) if direction == "uplink" else network.downlink(k, time_s)
    return g + complex_normal(rng, *g.shape) / np.sqrt(rho)


@pytest.mark.parametrize("direction", ["uplink", "downlink"])
def test_coefficients_follow_the_oscillators_exactly_without_noise(direction):
    """Calibrated at the midpoint, tracked by soundings 0.1 ms later and a pattern apart, against the definition."""
    network = Network(np.random.default_rng(1), num_paths=3)
    c, time_s = quotient(network.uplink(TABLE, SECOND_S), network.downlink(TABLE, FIRST_S), SECOND_S, FIRST_S)
    for reference in (0, M + 2):
        calibration = joint_ml(c, TABLE, SPACING, max_delay=40e-9, time_s=time_s, reference=reference)
        send = network.uplink if direction == "uplink" else network.downlink
        first, second = (send(SRS, MIDDLE_S + lag) for lag in (1e-4, 1e-4 + PATTERN_S))
        moved = track(calibration, first, second, PATTERN_S, direction=direction, reference=reference)
        assert moved.calibration.time_s == pytest.approx(MIDDLE_S + PATTERN_S, rel=1e-14)
        assert moved.turns.trusted.all()
        assert not moved.turns.contradicts.any()
        truth = np.concatenate(network.coefficients(SRS, MIDDLE_S + PATTERN_S))
        got = np.concatenate([moved.calibration.trp(SRS), moved.calibration.ue(SRS)])
        np.testing.assert_allclose(got, truth / truth[reference], atol=1e-9)
        # With the sign or the factor wrong it would be worse than not tracking at all.
        assert np.max(np.abs(calibration.ue(SRS) - truth[M:] / truth[reference])) > 1.0


def test_coefficient_of_a_link_turns_by_twice_the_change_in_both_forms():
    network = Network(np.random.default_rng(2), num_paths=2)
    before, after = (network.uplink(SRS, t) / network.downlink(SRS, t) for t in (MIDDLE_S, MIDDLE_S + PATTERN_S))
    for direction, send in (("uplink", network.uplink), ("downlink", network.downlink)):
        soundings = send(SRS, 2e-3), send(SRS, 2e-3 + PATTERN_S)
        wide = phase_change(*soundings)
        np.testing.assert_allclose(tracked_coefficient(before, wide.phase_rad, direction=direction), after, atol=1e-9)
        narrow = phase_change_per_subcarrier(*soundings)
        np.testing.assert_allclose(tracked_coefficient(before, narrow, direction=direction), after, atol=1e-9)
    with pytest.raises(ValueError, match="direction = 'up'"):
        tracked_coefficient(before, wide.phase_rad, direction="up")


@pytest.mark.parametrize(("rho_first_db", "rho_second_db"), [(10, 10), (13, 10), (20, 30)])
def test_phase_changes_meet_their_bounds_and_the_band_is_worth_its_root(rho_first_db, rho_second_db):
    """8000 trials of frequency-selective channels: a standard error of 0.8 %. Per subcarrier a flat channel: in fades
    the angle of one subcarrier is far from its bound."""
    rng = np.random.default_rng(3)
    rho = 10 ** (np.array([rho_first_db, rho_second_db]) / 10)
    h, phi = faded(rng, 8000)
    noise = complex_normal(rng, 2, *h.shape) / np.sqrt(rho)[:, None, None]
    got = phase_change(h + noise[0], h * np.exp(1j * phi)[:, None] + noise[1])
    error = wrap(got.phase_rad - phi)
    bound = bounds.phase_change_std(*rho, 128)
    assert bound == pytest.approx(np.sqrt((rho.sum() + 1) / rho.prod() / 256), rel=1e-12)
    assert 0.97 < np.sqrt(np.mean(error**2)) / bound < 1.04
    assert np.sqrt(np.mean(got.phase_std_rad**2)) == pytest.approx(bound, rel=0.02)
    assert got.trusted.all()
    # The tracked coefficient, exact before.
    moved = np.angle(tracked_coefficient(np.ones((8000, 1)), got.phase_rad)[:, 0] * np.exp(-2j * phi))
    assert 0.97 < np.sqrt(np.mean(moved**2)) / bounds.tracked_phase_std(*rho, 128) < 1.04
    single = phase_change_per_subcarrier(1 + noise[0], np.exp(1j * phi)[:, None] + noise[1])
    alone = np.sqrt(np.mean(wrap(single - phi[:, None]) ** 2))
    assert 0.97 < alone / bounds.phase_change_std(*rho, 1) < 1.10
    assert alone > 10 * np.sqrt(np.mean(error**2))


def test_deviations_are_predicted_at_low_snr_and_noise_is_not_trusted():
    """Down to -2 dB per element within 8 % of the spread of 4000 errors (5 standard errors); noise passes 1e-4."""
    rng = np.random.default_rng(4)
    for rho in (0.6, 1.0, 100.0):
        h, phi = faded(rng, 4000)
        got = phase_change(h + complex_normal(rng, 4000, 128) / np.sqrt(rho),
                           7.0 * h * np.exp(1j * phi)[:, None] + 7.0 * complex_normal(rng, 4000, 128) / np.sqrt(rho))
        error = wrap(got.phase_rad - phi)[got.trusted]
        assert got.trusted.mean() > (0.95 if rho < 1 else 0.999)
        assert np.std(error / got.phase_std_rad[got.trusted]) == pytest.approx(1.0, rel=0.08)
    noise = phase_change(complex_normal(rng, 50000, 32), complex_normal(rng, 50000, 32))
    # 5 expected, Poisson.
    assert noise.trusted.sum() <= 16
    bad = phase_change(np.array([[np.nan] * 4, [0.0] * 4, [1.0] * 4]), np.ones((3, 4)))
    np.testing.assert_array_equal(bad.trusted, [False, False, True])
    assert np.isinf(bad.phase_std_rad[:2]).all()
    with pytest.raises(ValueError, match="K >= 2"):
        phase_change(np.ones((3, 1)), np.ones((3, 1)))
    with pytest.raises(ValueError, match="needs subcarriers"):
        phase_change(np.ones((3, 4)), np.ones((3, 4)), max_delay_change=1e-9)


def test_drifting_clocks_are_followed_in_delay_and_phase():
    """TRP and UE clocks move by up to 1 ns, band off centre: phase at band centre and delay within 5 % of the bound."""
    rng = np.random.default_rng(5)
    k, rho, trials = np.arange(-200, 600, 4), 100.0, 4000
    change_s, phi = rng.uniform(-1e-9, 1e-9, trials), rng.uniform(-np.pi, np.pi, trials)
    h = np.exp(2j * np.pi * rng.random((trials, len(k))))
    after = h * np.exp(1j * phi[:, None] - 2j * np.pi * SPACING * k * change_s[:, None])
    noisy = [g + complex_normal(rng, *g.shape) / np.sqrt(rho) for g in (h, after)]
    got = phase_change(*noisy, subcarriers=k, spacing=SPACING, max_delay_change=5e-9)
    bound = bounds.delay_crlb(k, SPACING, bounds.element_variance(rho, rho))
    assert got.trusted.all()
    for error, predicted, limit in (
        (got.delay_change_s - change_s, got.delay_std_s, bound.delay_std_s),
        (wrap(got.phase_rad - phi), got.phase_std_rad, bound.phase_std_rad),
    ):
        assert np.std(error) == pytest.approx(limit, rel=0.05)
        assert np.sqrt(np.mean(predicted**2)) == pytest.approx(limit, rel=0.02)
    without = phase_change(*noisy)
    assert np.std(wrap(without.phase_rad - phi)) > 5 * bound.phase_std_rad


@pytest.mark.parametrize("direction", ["uplink", "downlink"])
def test_node_delays_grow_with_the_clocks(direction):
    rng = np.random.default_rng(6)
    network, later = (Network(np.random.default_rng(7)) for _ in range(2))
    growth = rng.uniform(-1e-9, 1e-9, M + N)
    later.trp = (*network.trp[:2], network.trp[2] + growth[:M], network.trp[3])
    later.ue = (*network.ue[:2], network.ue[2] + growth[M:], network.ue[3])
    later.delay_s = later.ue[2] - later.trp[2][:, None]
    c = network.uplink(SRS, 0.0) / network.downlink(SRS, 0.0)
    calibration = joint_ml(c, SRS, SPACING, max_delay=40e-9)
    send = [getattr(net, direction)(SRS, t) for net, t in ((network, 0.0), (later, PATTERN_S))]
    moved = track(calibration, *send, PATTERN_S, direction=direction, subcarriers=SRS, max_delay_change=10e-9)
    truth = np.concatenate(later.coefficients(SRS, PATTERN_S))
    got = np.concatenate([moved.calibration.trp(SRS), moved.calibration.ue(SRS)])
    np.testing.assert_allclose(got, truth / truth[0], atol=1e-8)
    np.testing.assert_allclose(np.concatenate([moved.turns.delay_trp_s, moved.turns.delay_ue_s]),
                               growth - growth[0], atol=1e-17)


def test_node_turns_have_their_predicted_covariance_which_is_that_of_the_bound():
    """Links from 0 to 20 dB; 1500 networks, entries of the whitened covariance within 5 standard errors."""
    rng = np.random.default_rng(8)
    network = Network(rng, cfo_hz=200.0)
    rho, k = 10 ** rng.uniform(0, 2, (M, N))[..., None], SRS[::6]
    first, second = (
        network.uplink(k, t) + complex_normal(rng, 1500, M, N, len(k)) / np.sqrt(rho) for t in (0.0, 1e-3)
    )
    turns = node_turns(phase_change(first, second), reference=3)
    frequency = np.concatenate([network.trp[3], network.ue[3]])
    got = np.concatenate([turns.turn_trp_rad, turns.turn_ue_rad], axis=-1)
    error = wrap(got - 4 * np.pi * (frequency - frequency[3]) * 1e-3)
    assert np.all(got[:, 3] == 0)
    # SNRs are per element of this network's links, whose gains are not one.
    energy = rho[..., 0] * np.mean(np.abs(network.uplink(k, 0.0)) ** 2, axis=-1)
    information = 1 / bounds.phase_change_std(energy, energy, len(k)) ** 2
    pinv = 4 * bounds.link_laplacian_pinv(information)
    bound = pinv - pinv[3] - pinv[:, 3, None] + pinv[3, 3]
    np.testing.assert_allclose(turns.covariance.mean(axis=0), bound, rtol=0.03, atol=1e-12)
    keep = np.arange(M + N) != 3
    white = error[:, keep] @ np.linalg.inv(np.linalg.cholesky(bound[np.ix_(keep, keep)])).T
    np.testing.assert_allclose(white.T @ white / 1500, np.eye(M + N - 1), atol=5 * np.sqrt(2 / 1500))
    assert turns.misfit.mean() == pytest.approx(1.0, abs=0.1)
    assert turns.trusted.all()
    assert turns.contradicts.mean() < 1e-4


def test_links_whose_channel_changed_are_left_out_and_flagged():
    rng = np.random.default_rng(9)
    network = Network(rng)
    first, second = (sounding(rng, network, "uplink", t, 100.0) for t in (0, PATTERN_S))
    frequency = np.concatenate([network.trp[3], network.ue[3]])
    truth = 4 * np.pi * (frequency - frequency[0]) * PATTERN_S
    second[2, 1] *= np.exp(1j)
    second[6, 3] *= np.exp(-0.5j)
    turns = node_turns(phase_change(first, second))
    np.testing.assert_array_equal(np.argwhere(turns.contradicts), [[2, 1], [6, 3]])
    got = np.concatenate([turns.turn_trp_rad, turns.turn_ue_rad])
    assert np.all(np.abs(wrap(got - truth)) < 5 * np.sqrt(np.diagonal(turns.covariance)) + 1e-12)
    assert turns.trusted.all()
    # A link without any signal counts for nothing; without the last link of a node there is no result.
    second[4] = complex_normal(rng, N, len(SRS))
    with pytest.raises(DisconnectedLinksError, match=r"\{TRP 4\}"):
        node_turns(phase_change(first, second))


def test_a_channel_that_changed_altogether_is_not_trusted():
    """Independent turns of all links: what is left after sorting out is not believed."""
    rng = np.random.default_rng(10)
    phi = rng.uniform(-np.pi, np.pi, (40, M, N))
    found = solve_links(phi, np.full((M, N), 1e-4))
    assert not found.trusted.any()


def test_a_contradiction_in_the_only_loop_of_a_node_is_not_pinned_on_one_link():
    """Two TRPs and three UEs: of a UE's two links either may be wrong; the others still agree."""
    difference = np.zeros((2, 3))
    difference[1, 2] = 0.5
    for circular in (True, False):
        found = solve_links(difference, np.full((2, 3), 1e-4), circular=circular)
        np.testing.assert_array_equal(np.argwhere(found.contradicts), [[0, 2], [1, 2]])
        np.testing.assert_array_equal(found.trusted, [True, True, True, True, False])
        np.testing.assert_allclose(found.value[:4], 0.0, atol=1e-12)
    alone = solve_links(difference[:, 1:], np.full((2, 2), 1e-4))
    assert alone.contradicts.all()
    assert not alone.trusted.any()


def test_linear_links_are_solved_by_weighted_least_squares():
    """Against numpy's least squares with a row for each link."""
    rng = np.random.default_rng(11)
    value, variance = rng.normal(size=(M, N)) * 100, rng.uniform(0.5, 2.0, (M, N)) * 1e6
    variance[0, 1:] = np.inf
    rows, right = [], []
    for m, n in np.argwhere(np.isfinite(variance)):
        row = np.zeros(M + N)
        row[M + n], row[m] = 1.0, -1.0
        rows.append(row / np.sqrt(variance[m, n]))
        right.append(value[m, n] / np.sqrt(variance[m, n]))
    rows = np.delete(rows, 5, axis=1)
    expected, cost = np.linalg.lstsq(rows, right, rcond=None)[:2]
    found = solve_links(value, variance, reference=5, circular=False)
    np.testing.assert_allclose(np.delete(found.value, 5), expected, atol=1e-9)
    np.testing.assert_allclose(found.misfit, cost[0] / (len(right) - M - N + 1), rtol=1e-9)
    np.testing.assert_allclose(np.delete(np.delete(found.covariance, 5, 0), 5, 1),
                               np.linalg.inv(rows.T @ rows), rtol=1e-9, atol=1e-6)
    for wrong, message in ((np.zeros((M, N)), "must be positive"), (np.ones(3), "must be")):
        with pytest.raises(ValueError, match=message):
            solve_links(value if wrong.ndim > 1 else wrong, wrong)
    with pytest.raises(ValueError, match="reference = 12"):
        solve_links(value, variance, reference=12)


def test_batch_equals_loop_and_common_phases_do_not_matter():
    rng = np.random.default_rng(12)
    network = Network(rng, 4)
    first, second = (sounding(rng, network, "uplink", t, 30.0) for t in (0, PATTERN_S))
    second[2, 1, 1] *= 1j
    whole = node_turns(phase_change(first, second))
    for i in range(4):
        again = node_turns(phase_change(first[i], second[i]))
        for a, b in zip(again, whole, strict=True):
            np.testing.assert_allclose(a, b[i], atol=1e-9)
        # A common turn goes into the UEs, a common gain nowhere.
        one = node_turns(phase_change(first[i] * 3j, second[i] * 0.2))
        np.testing.assert_allclose(one.turn_trp_rad, again.turn_trp_rad, atol=1e-9)
        np.testing.assert_allclose(wrap(one.turn_ue_rad - again.turn_ue_rad + np.pi / 2), np.pi / 2 - np.pi, atol=1e-9)
    calibration = BidirectionalCalibration(np.ones((4, M)), np.ones((4, N)), np.zeros((4, M)), np.zeros((4, N)),
                                           np.ones((4, M, N), bool), SPACING, 1.0)
    moved = turned(calibration, whole, 0.5)
    assert moved.time_s == 1.5
    assert moved.spacing == SPACING
    np.testing.assert_allclose(np.angle(moved.c_trp * np.exp(-1j * whole.turn_trp_rad)), 0.0, atol=1e-12)
