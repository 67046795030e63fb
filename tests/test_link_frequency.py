# SPDX-License-Identifier: GPL-3.0-or-later
"""Frequency offsets from a few soundings at any times: exact, at the bound, and honest about wrong peaks."""

import numpy as np
import pytest
from gnuradio.dmimo.core import bidirectional_bounds as bounds
from gnuradio.dmimo.core.bidirectional import DisconnectedLinksError, joint_ml
from gnuradio.dmimo.core.cars import quotient
from gnuradio.dmimo.core.link_frequency import AmbiguousFrequencyError, LinkFrequency, Soundings, link_frequency
from gnuradio.dmimo.core.node_frequency import extrapolated, node_frequencies
from scipy.optimize import minimize_scalar
from test_bidirectional import FIRST_S, MIDDLE_S, SECOND_S, SPACING, TABLE, M, N, Network, complex_normal

SLOT_S = 8.92e-6
# Two answers two symbols apart, then a sounding 0.3 ms later; twice, a pattern apart.
TIMES_S = np.array([0.0, 2 * SLOT_S, 0.3e-3, 0.625e-3, 0.625e-3 + 2 * SLOT_S, 0.925e-3])
MAX_HZ = 1560.0
SRS = np.arange(-792, 792, 16)


def soundings(rng, frequency_hz, times_s, rho, num=99, turns=1.0, path=()):
    """(..., L, K) of a random unknown channel, and the noise; `path` is a phase (..., L) of the oscillators in rad."""
    times_s = np.asarray(times_s)
    h = complex_normal(rng, *np.shape(frequency_hz), 1, num)
    h /= np.sqrt(np.mean(np.abs(h) ** 2, axis=-1, keepdims=True))
    phase = 2 * np.pi * turns * np.asarray(frequency_hz)[..., None] * times_s
    if np.size(path):
        phase = phase + turns * path
    return h * np.exp(1j * phase[..., None]) + complex_normal(rng, *phase.shape, num) / np.sqrt(rho)


def test_nodes_of_the_exchange_are_exact_without_noise_from_all_kinds_of_soundings():
    """G, H, C and 1 / C of one network, each with its sign and factor, and all together."""
    network = Network(np.random.default_rng(1), num_paths=3)
    g, h = (np.stack([send(SRS, t) for t in TIMES_S], axis=-2) for send in (network.uplink, network.downlink))
    c = [quotient(network.uplink(SRS, t + SLOT_S), network.downlink(SRS, t - SLOT_S), t + SLOT_S, t - SLOT_S).c
         for t in TIMES_S[:2]]
    c = np.stack(c, axis=-2)
    kinds = [Soundings(g, TIMES_S), Soundings(h, TIMES_S, -1), Soundings(c, TIMES_S[:2], 2),
             Soundings(1 / c, TIMES_S[:2], -2)]
    truth = np.concatenate([network.trp[3], network.ue[3]])
    for groups in [*kinds, kinds]:
        links = link_frequency(groups, max_frequency_hz=MAX_HZ)
        np.testing.assert_allclose(links.frequency_hz, network.frequency_hz, atol=1e-6)
        assert links.trusted.all()
        for reference in (0, M + 1):
            nodes = node_frequencies(links, reference=reference)
            got = np.concatenate([nodes.frequency_trp_hz, nodes.frequency_ue_hz])
            np.testing.assert_allclose(got, truth - truth[reference], atol=1e-5)
            assert nodes.trusted.all()


@pytest.mark.parametrize("rho_db", [0, 10, 30])
def test_errors_meet_the_bound_and_are_predicted(rho_db):
    """3000 links, a standard error of 1.3 %; two kinds of soundings with their information added."""
    rng = np.random.default_rng(2)
    rho = 10 ** (rho_db / 10)
    frequency = rng.uniform(-1500, 1500, 3000)
    one = Soundings(soundings(rng, frequency, TIMES_S, rho), TIMES_S)
    two = Soundings(soundings(rng, frequency, TIMES_S[:3] + 1e-4, rho, num=60, turns=-2), TIMES_S[:3] + 1e-4, -2)
    apart = [bounds.frequency_std(TIMES_S, rho, 99), bounds.frequency_std(TIMES_S[:3], rho, 60, turns=-2)]
    for groups, bound in ((one, apart[0]), (two, apart[1]), ([one, two], (apart[0] ** -2 + apart[1] ** -2) ** -0.5)):
        links = link_frequency(groups, max_frequency_hz=MAX_HZ)
        error = (links.frequency_hz - frequency)[links.trusted]
        if rho_db == 0:
            # Over so short a time hardly a link is trusted here.
            if groups is not two:
                assert np.std(error / links.frequency_std_hz[links.trusted]) == pytest.approx(1.0, rel=0.1)
                assert np.mean(links.misfit[links.trusted]) == pytest.approx(1.0, abs=0.1)
            continue
        assert links.trusted.mean() > 0.999
        assert np.std(error) == pytest.approx(bound, rel=0.06)
        assert np.sqrt(np.mean(links.frequency_std_hz**2)) == pytest.approx(bound, rel=0.04)
        assert np.mean(links.misfit) == pytest.approx(1.0, abs=0.1)


def test_estimate_is_the_maximum_of_the_likelihood():
    """Against a fine grid and a bounded search of the full least-squares problem, unequal known noise."""
    rng = np.random.default_rng(3)
    frequency, var = rng.uniform(-1500, 1500, 20), np.array([1.0, 0.1, 0.5, 2.0, 0.2, 1.0]) * 0.3
    y = soundings(rng, frequency, TIMES_S, np.inf, num=3)
    y = y + complex_normal(rng, *y.shape) * np.sqrt(var)[:, None]
    got = link_frequency(Soundings(y, TIMES_S, noise_var=var), max_frequency_hz=MAX_HZ).frequency_hz

    def cost(f, link):
        steered = np.exp(2j * np.pi * f * TIMES_S) / np.sqrt(var)
        white = link / np.sqrt(var)[:, None]
        return -np.sum(np.abs(steered.conj() @ white) ** 2)

    grid = np.linspace(-MAX_HZ, MAX_HZ, 2001)
    for link, found in zip(y, got, strict=True):
        near = grid[np.argmin([cost(f, link) for f in grid])]
        best = minimize_scalar(cost, bounds=(max(near - 2, -MAX_HZ), min(near + 2, MAX_HZ)), args=(link,),
                               options={"xatol": 1e-6})
        assert found == pytest.approx(best.x, abs=1e-3)


def test_offsets_beyond_the_closest_pair_are_refused_by_name():
    rng = np.random.default_rng(4)
    wide = Soundings(soundings(rng, np.zeros(3), [0.0, 0.4e-3, 1e-3], 100.0), [0.0, 0.4e-3, 1e-3])
    with pytest.raises(AmbiguousFrequencyError, match=r"1560 Hz is beyond the unambiguous 1250 Hz.*400 us.*320.5") as e:
        link_frequency(wide, max_frequency_hz=MAX_HZ)
    assert (e.value.max_frequency_hz, e.value.unambiguous_hz) == (MAX_HZ, pytest.approx(1250.0))
    # The coefficient turns twice: half the range.
    with pytest.raises(AmbiguousFrequencyError, match="unambiguous 625 Hz"):
        link_frequency(Soundings(wide.g, wide.times_s, 2), max_frequency_hz=630.0)
    close = Soundings(soundings(rng, np.zeros(3), TIMES_S[:2], 100.0), TIMES_S[:2])
    assert link_frequency([wide, close], max_frequency_hz=MAX_HZ).trusted.all()
    assert link_frequency(wide).frequency_hz == pytest.approx(0.0, abs=30.0)


def test_wrong_peaks_are_as_frequent_as_predicted_and_rarely_trusted():
    """A close pair decides which period of the longer gap is right: at low SNR it fails as often as it says.

    Of 4000 links each; 118 failures at 3 dB have a standard error of 9 %. Of all links less than 1 in 100 is trusted
    and wrong.
    """
    rng = np.random.default_rng(5)
    times = np.array([0.0, 0.1e-3, 1.5e-3])
    for rho, least, most in ((0.5, 0.3, 0.45), (1.0, 0.1, 0.2), (2.0, 0.02, 0.04)):
        frequency = rng.uniform(-800, 800, 4000)
        links = link_frequency(Soundings(soundings(rng, frequency, times, rho, num=60), times), max_frequency_hz=MAX_HZ)
        wrong = np.abs(links.frequency_hz - frequency) > 0.35e3
        assert least < wrong.mean() < most
        assert links.outlier_probability.mean() == pytest.approx(wrong.mean(), rel=0.3)
        assert np.mean(wrong & links.trusted) < 0.01
    links = link_frequency(Soundings(soundings(rng, frequency, times, 10.0, num=60), times), max_frequency_hz=MAX_HZ)
    assert links.trusted.all()
    assert np.max(np.abs(links.frequency_hz - frequency)) < 20.0


def test_noise_dead_links_and_broken_soundings_are_not_trusted():
    rng = np.random.default_rng(6)
    noise = complex_normal(rng, 20000, 6, 12)
    assert link_frequency(Soundings(noise, TIMES_S), max_frequency_hz=MAX_HZ).trusted.sum() <= 8
    assert link_frequency(Soundings(noise, TIMES_S, noise_var=1.0), max_frequency_hz=MAX_HZ).trusted.sum() <= 8
    y = soundings(rng, np.full(5, 700.0), TIMES_S, 100.0)
    y[0], y[1, 2, 3] = 0.0, np.nan
    y[2, 3] *= 1j  # one sounding turned otherwise
    y[3, 4] = complex_normal(rng, 99)  # another channel: as good as noise in one of six
    links = link_frequency(Soundings(y, TIMES_S), max_frequency_hz=MAX_HZ)
    np.testing.assert_array_equal(links.trusted, [False, False, False, True, True])
    assert np.isnan(links.frequency_hz[:2]).all()
    assert abs(links.frequency_hz[3] - 700.0) < 4 * links.frequency_std_hz[3]
    assert links.frequency_std_hz[3] > 3 * links.frequency_std_hz[4]
    # Beyond the limit: at its end.
    assert not link_frequency(Soundings(y[4], TIMES_S), max_frequency_hz=600.0).trusted
    with pytest.raises(ValueError, match="needs noise_var"):
        Soundings(np.ones((2, 1)), [0, 1])
    with pytest.raises(ValueError, match="all different"):
        Soundings(np.ones((2, 3)), [0, 0])
    with pytest.raises(ValueError, match="turns = 0"):
        Soundings(np.ones((2, 3)), [0, 1], 0)


def test_gains_of_links_with_known_noise_do_as_well_as_their_elements():
    """A two-way coefficient without delay, its K elements averaged to one gain beforehand."""
    rng = np.random.default_rng(7)
    frequency = rng.uniform(-1500, 1500, 3000)
    times = TIMES_S[[0, 1, 3, 4]]
    turn = np.exp(4j * np.pi * frequency[:, None] * times)
    gain = turn + complex_normal(rng, *turn.shape) / np.sqrt(49 * 100.0)
    links = link_frequency(Soundings(gain[..., None], times, 2, noise_var=1 / 4900), max_frequency_hz=MAX_HZ)
    bound = bounds.frequency_std(times, 4900, 1, turns=2)
    assert links.trusted.mean() > 0.99
    assert np.std(links.frequency_hz[links.trusted] - frequency[links.trusted]) == pytest.approx(bound, rel=0.06)
    assert np.sqrt(np.mean(links.frequency_std_hz**2)) == pytest.approx(bound, rel=0.03)


def test_phase_noise_is_in_the_deviations_of_links_and_nodes():
    """Every node walks on its own, 5 Hz linewidth; links and nodes within 10 % of what they predict, 400 drops."""
    rng = np.random.default_rng(8)
    drops, linewidth = 400, 5.0
    frequency = rng.uniform(-700, 700, (drops, M + N))
    steps = np.sqrt(2 * np.pi * linewidth * np.diff(TIMES_S, prepend=0.0))
    walk = np.cumsum(steps * rng.normal(size=(drops, M + N, 6)), axis=-1)
    apart = frequency[:, None, M:] - frequency[:, :M, None]
    path = walk[:, None, M:] - walk[:, :M, None]
    y = soundings(rng, apart, TIMES_S, 30.0, num=32, path=path)
    links = link_frequency(Soundings(y, TIMES_S), max_frequency_hz=MAX_HZ, linewidth_hz=2 * linewidth)
    assert links.trusted.mean() > 0.99
    error = (links.frequency_hz - apart)[links.trusted]
    assert np.std(error / links.frequency_std_hz[links.trusted]) == pytest.approx(1.0, rel=0.1)
    assert np.mean(links.misfit) == pytest.approx(1.0, abs=0.15)
    blind = link_frequency(Soundings(y, TIMES_S), max_frequency_hz=MAX_HZ)
    assert np.std(blind.frequency_hz - apart) > np.std(error)
    nodes = node_frequencies(links, reference=2)
    got = np.concatenate([nodes.frequency_trp_hz, nodes.frequency_ue_hz], axis=-1)
    error = got - (frequency - frequency[:, 2:3])
    std = np.sqrt(np.diagonal(nodes.covariance, axis1=-2, axis2=-1))
    keep = np.arange(M + N) != 2
    assert np.sqrt(np.mean((error / np.where(std > 0, std, 1))[:, keep] ** 2)) == pytest.approx(1.0, rel=0.1)
    # Its share does not average over the links.
    assert np.mean(std[:, keep] ** 2) > 2 * np.mean(links.frequency_std_hz**2) / N


def test_node_frequencies_have_their_predicted_covariance():
    """2000 networks of links with given deviations, entries of the whitened covariance within 5 standard errors."""
    rng = np.random.default_rng(9)
    frequency, std = rng.uniform(-780, 780, M + N), rng.uniform(1, 20, (M, N))
    measured = frequency[M:] - frequency[:M, None] + std * rng.normal(size=(2000, M, N))
    zeros, ones = np.zeros_like(measured), np.ones(measured.shape, bool)
    nodes = node_frequencies(LinkFrequency(measured, std + zeros, zeros, zeros, zeros, ones))
    got = np.concatenate([nodes.frequency_trp_hz, nodes.frequency_ue_hz], axis=-1)
    error = got - frequency + frequency[0]
    root = np.linalg.cholesky(nodes.covariance[0, 1:, 1:])
    white = error[:, 1:] @ np.linalg.inv(root).T
    np.testing.assert_allclose(white.T @ white / 2000, np.eye(M + N - 1), atol=5 * np.sqrt(2 / 2000))
    measured[0, 3, 1] += 500.0
    ones[1, :, 2] = False
    flagged = node_frequencies(LinkFrequency(measured[0], std, zeros[0], zeros[0], zeros[0], ones[0]))
    np.testing.assert_array_equal(np.argwhere(flagged.contradicts), [[3, 1]])
    with pytest.raises(DisconnectedLinksError, match=r"\{UE 2\}"):
        node_frequencies(LinkFrequency(measured[1], std, zeros[1], zeros[1], zeros[1], ones[1]))


def test_coefficients_are_carried_through_a_pattern_with_the_predicted_deviation():
    """Calibrated once, carried over 0.5 ms by measured frequencies: exact without noise; with noise as predicted."""
    rng = np.random.default_rng(10)
    network = Network(rng)
    c, time_s = quotient(network.uplink(TABLE, SECOND_S), network.downlink(TABLE, FIRST_S), SECOND_S, FIRST_S)
    calibration = joint_ml(c, TABLE, SPACING, max_delay=40e-9, time_s=time_s)
    g = np.stack([network.uplink(SRS[::3], t) for t in TIMES_S], axis=-2)
    truth = np.concatenate(network.coefficients([0], MIDDLE_S + 0.5e-3))[:, 0]
    exact, std = extrapolated(calibration, node_frequencies(link_frequency(Soundings(g, TIMES_S))), MIDDLE_S + 0.5e-3)
    got = np.concatenate([exact.c_trp, exact.c_ue])
    np.testing.assert_allclose(got, truth / truth[0], atol=1e-6)
    assert exact.time_s == MIDDLE_S + 0.5e-3
    y = g + complex_normal(rng, 300, *g.shape) / np.sqrt(30)
    nodes = node_frequencies(link_frequency(Soundings(y, TIMES_S), max_frequency_hz=MAX_HZ))
    moved, std = extrapolated(calibration, nodes, MIDDLE_S + 0.5e-3)
    error = np.angle(np.concatenate([moved.c_trp, moved.c_ue], axis=-1) / truth * truth[0])
    assert std.shape == (300, M + N)
    assert np.all(std[:, 0] == 0)
    assert np.sqrt(np.mean((error[:, 1:] / std[:, 1:]) ** 2)) == pytest.approx(1.0, rel=0.06)
    walked = extrapolated(calibration, nodes, MIDDLE_S + 0.5e-3, linewidth_hz=10.0)[1]
    np.testing.assert_allclose((walked**2 - std**2)[:, 1:], 2 * 8 * np.pi * 10.0 * 0.5e-3, rtol=1e-9)


def test_batch_equals_loop_and_order_common_phase_and_gain_do_not_matter():
    rng = np.random.default_rng(11)
    frequency = rng.uniform(-1500, 1500, (3, 2))
    y = soundings(rng, frequency, TIMES_S, 20.0)
    whole = link_frequency(Soundings(y, TIMES_S), max_frequency_hz=MAX_HZ, linewidth_hz=1.0)
    order = rng.permutation(6)
    for index in np.ndindex(3, 2):
        one = link_frequency(Soundings(7j * y[index][order], TIMES_S[order]), max_frequency_hz=MAX_HZ, linewidth_hz=1.0)
        for a, b in zip(one, whole, strict=True):
            np.testing.assert_allclose(a, b[index], rtol=1e-6)
