# SPDX-License-Identifier: GPL-3.0-or-later
"""Pairs and beam pairs without signal: false alarms at their rate; weights that help where they can and never hurt."""

import numpy as np
import pytest
from gnuradio.dmimo.core import detection, graph, metrics
from gnuradio.dmimo.core.reciprocity import PairStatistics, calibrate, pair_statistics


def complex_normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def network(rng, runs, num_ports, num_components, noise_var, *, amplitude=1.0, blocked=None, spread=0.2):
    """True c and y for Rayleigh paths of the given component amplitudes (broadcast against (..., M, M, Q))."""
    draw = np.exp(spread * rng.normal(size=(2, runs, num_ports)) + 2j * np.pi * rng.random((2, runs, num_ports)))
    t, r = draw
    h = complex_normal(rng, runs, num_ports, num_ports, num_components) * amplitude
    if blocked is not None:
        h = h * ~blocked[..., None]
    lower = np.tril_indices(num_ports, -1)
    h[:, lower[0], lower[1]] = h[:, lower[1], lower[0]]
    y = r[:, :, None, None] * h * t[:, None, :, None] + np.sqrt(noise_var) * complex_normal(rng, *h.shape)
    return t / r, y


def blocked_pairs(rng, runs, num_ports, rate):
    """Random blocked pairs (runs, M, M); a chain through all ports stays open."""
    out = np.triu(rng.random((runs, num_ports, num_ports)) < rate, 1)
    k = np.arange(num_ports - 1)
    out[:, k, k + 1] = False
    return out | np.swapaxes(out, 1, 2)


def mean_error(y, c, **options):
    return metrics.alignment_error(calibrate(y, **options), c)


@pytest.mark.parametrize("num_components", [2, 9, 64])
@pytest.mark.parametrize("false_alarm", [0.01, 0.1])
def test_false_alarms_come_at_their_rate_whatever_the_noise(num_components, false_alarm):
    rng = np.random.default_rng(1)
    noise = 10 ** rng.uniform(-1, 1, 6)
    y = np.sqrt(noise)[:, None, None] * complex_normal(rng, 3000, 6, 6, num_components)
    present = detection.edge_detection(pair_statistics(y), false_alarm, keep_connected=False)
    hits = present[:, *np.triu_indices(6, 1)].sum()
    interval = metrics.rate_interval(hits, 3000 * 15, confidence=0.9999)
    assert interval.lower < false_alarm < interval.upper


def test_strong_pairs_are_detected_and_the_diagonal_is_not():
    rng = np.random.default_rng(2)
    blocked = blocked_pairs(rng, 20, 6, 0.4)
    _, y = network(rng, 20, 6, 16, 0.01, blocked=blocked)
    present = detection.edge_detection(pair_statistics(y), 1e-6, keep_connected=False)
    np.testing.assert_array_equal(present, ~blocked & ~np.eye(6, dtype=bool))


def test_pruning_never_disconnects():
    rng = np.random.default_rng(3)
    y = complex_normal(rng, 50, 7, 7, 8)
    for present in detection.edge_detection(pair_statistics(y), 1e-3):
        graph.require_connected(present)


@pytest.mark.parametrize(
    ("snr_db", "num_ports", "num_components", "runs"), [(5, 8, 9, 1500), (0, 16, 16, 600), (-5, 16, 256, 60)]
)
def test_soft_weights_beat_pruning_and_no_weights_with_blocked_pairs_at_low_snr(
    snr_db, num_ports, num_components, runs
):
    """40 % of the pairs blocked; SNR per element of the others. All on the same data, Fieller limits at 99 %."""
    rng = np.random.default_rng(4)
    blocked = blocked_pairs(rng, runs, num_ports, 0.4)
    c, y = network(rng, runs, num_ports, num_components, 10 ** (-snr_db / 10), blocked=blocked)
    statistics = pair_statistics(y)
    soft = mean_error(statistics, c, weights=detection.edge_weights(statistics))
    none = mean_error(statistics, c)
    assert metrics.ratio_of_means_interval(none, soft, confidence=0.99).lower > 1.02
    for false_alarm in (0.1, 0.01):
        pruned = mean_error(statistics, c, weights=detection.edge_detection(statistics, false_alarm))
        ratio = metrics.ratio_of_means_interval(pruned, soft, confidence=0.99)
        # At the better of the two thresholds pruning may come close, never ahead.
        assert ratio.upper > 1.0
        assert ratio.value > 0.99
        if false_alarm == 0.01 and snr_db > -5:
            assert ratio.lower > 1.1


@pytest.mark.parametrize("snr_db", [-5, 0, 5, 10])
def test_soft_weights_cost_nothing_when_all_pairs_carry_signal(snr_db):
    rng = np.random.default_rng(5)
    c, y = network(rng, 400, 8, 16, 10 ** (-snr_db / 10))
    statistics = pair_statistics(y)
    soft = mean_error(statistics, c, weights=detection.edge_weights(statistics))
    ratio = metrics.ratio_of_means_interval(soft, mean_error(statistics, c), confidence=0.99)
    assert ratio.lower < 1.03


def test_edge_weights_are_small_without_signal_and_one_without_noise():
    rng = np.random.default_rng(6)
    blocked = blocked_pairs(rng, 20, 8, 0.4)
    _, y = network(rng, 20, 8, 64, 0.1, blocked=blocked)
    weights = detection.edge_weights(pair_statistics(y))
    np.testing.assert_array_equal(weights, np.swapaxes(weights, 1, 2))
    off = ~np.eye(8, dtype=bool)
    assert weights[blocked].mean() < 0.1
    assert weights[~blocked & off].min() > 0.8
    np.testing.assert_array_equal(weights[:, ~off], 0.0)
    _, clean = network(rng, 3, 4, 5, 0.0)
    # The grid of noncentralities ends where the weight is 1 but for noise that no longer matters.
    assert detection.edge_weights(pair_statistics(clean))[:, 0, 1].min() > 0.97


def few_strong_beams(rng, runs, num_ports, num_components, num_strong):
    """Amplitudes (runs, M, M, Q): num_strong beam pairs carry all the energy, mean power 1."""
    rank = rng.random((runs, num_ports, num_ports, num_components)).argsort(axis=-1)
    out = (rank < num_strong) * np.sqrt(num_components / num_strong)
    lower = np.tril_indices(num_ports, -1)
    out[:, lower[0], lower[1]] = out[:, lower[1], lower[0]]
    return out


@pytest.mark.parametrize(("snr_db", "least_gain"), [(-8, 1.3), (-5, 1.3), (0, 1.15)])
def test_beam_pair_weights_beat_equal_weights_with_few_strong_beams(snr_db, least_gain):
    """4 of 64 beam pairs carry signal; SNR per element averaged over all 64."""
    rng = np.random.default_rng(7)
    noise_var = 10 ** (-snr_db / 10)
    c, y = network(rng, 250, 5, 64, noise_var, amplitude=few_strong_beams(rng, 250, 5, 64, 4))
    weighted = pair_statistics(y, noise_var=noise_var, weights=detection.beam_pair_weights(y, noise_var))
    equal = pair_statistics(y, noise_var=noise_var)
    ratio = metrics.ratio_of_means_interval(mean_error(equal, c), mean_error(weighted, c), confidence=0.99)
    assert ratio.lower > least_gain


@pytest.mark.parametrize("snr_db", [-5, 0, 5, 15])
@pytest.mark.parametrize("num_components", [9, 64])
@pytest.mark.parametrize("spread", [0.0, 0.3])
def test_beam_pair_weights_are_never_noticeably_worse(snr_db, num_components, spread):
    """All beams alike (Rayleigh), the case in which equal weights are right; the mean loss stays below 5 %."""
    rng = np.random.default_rng(8)
    noise_var = 10 ** (-snr_db / 10)
    c, y = network(rng, 300, 5, num_components, noise_var, spread=spread)
    weighted = pair_statistics(y, noise_var=noise_var, weights=detection.beam_pair_weights(y, noise_var))
    equal = pair_statistics(y, noise_var=noise_var)
    ratio = metrics.ratio_of_means_interval(mean_error(weighted, c), mean_error(equal, c), confidence=0.6827)
    error = (ratio.upper - ratio.lower) / 2
    assert error < 0.02
    assert ratio.value < 1.05 + error


def test_beam_pair_weights_leave_noiseless_calibration_exact():
    rng = np.random.default_rng(9)
    c, y = network(rng, 10, 4, 16, 0.0, amplitude=few_strong_beams(rng, 10, 4, 16, 3))
    weights = detection.beam_pair_weights(y, 1e-3)
    np.testing.assert_array_equal(weights, np.swapaxes(weights, 1, 2))
    assert mean_error(pair_statistics(y, weights=weights), c).max() < 1e-12


def test_bad_arguments_raise():
    statistics = PairStatistics(np.ones((3, 3)), np.ones((3, 3)), 1)
    with pytest.raises(ValueError, match="num_components = 1"):
        detection.edge_weights(statistics)
    with pytest.raises(ValueError, match="false_alarm"):
        detection.edge_detection(statistics, 1.0)
