# SPDX-License-Identifier: GPL-3.0-or-later
"""Node frequencies from two-way coefficients that were read one after another."""

import numpy as np
import pytest
from gnuradio.dmimo.core.bidirectional import DisconnectedLinksError
from gnuradio.dmimo.core.exchange_frequency import node_frequencies

TRP_NODES, UE_NODES = np.array([0, 0, 1, 2]), np.array([0, 1, 1])
SLOT_S = 10.4e-6


def readings(rng, *, num=1, noise_rad=0.0, rounds=True):
    """(gain, time_s, frequencies of the five nodes) of links read in slots of their own or all at once."""
    phase_trp, phase_ue = 2 * np.pi * rng.random((num, 4)), 2 * np.pi * rng.random((num, 3))
    frequency = rng.uniform(-780, 780, (num, 5))
    trp, ue = frequency[:, TRP_NODES], frequency[:, 3 + UE_NODES]
    order = (TRP_NODES[:, None] + UE_NODES) % 3 if rounds else np.zeros((4, 3))
    time_s = SLOT_S * (4.0 * order + np.array([0.5, 2.5])[:, None, None])
    turn = 4 * np.pi * (ue[:, None, None, :] - trp[:, None, :, None]) * time_s
    phase = (phase_ue[:, None, None, :] - phase_trp[:, None, :, None]) + turn
    noise = rng.normal(size=(num, 2, 4, 3)) * noise_rad
    size = rng.uniform(0.5, 2.0, (num, 1, 4, 3))
    return size * np.exp(1j * (phase + noise)), time_s, frequency - frequency[:, :1]


@pytest.mark.parametrize("rounds", [True, False])
def test_frequencies_are_exact_without_noise(rounds):
    gain, time_s, truth = readings(np.random.default_rng(1), num=5, rounds=rounds)
    used = np.ones((5, 4, 3), bool)
    used[:, 1, 2] = used[:, 3, 0] = False
    gain[~np.broadcast_to(used[:, None], gain.shape)] = np.nan
    found = node_frequencies(gain, time_s, 0.1, used, TRP_NODES, UE_NODES)
    np.testing.assert_allclose(found.frequency_hz, truth, atol=1e-5)
    np.testing.assert_array_equal(found.consistent, np.broadcast_to(used[:, None], gain.shape))


def test_error_is_as_predicted_and_rounds_at_different_times_help():
    num, noise = 4000, 0.05
    spreads = []
    for rounds in (False, True):
        gain, time_s, truth = readings(np.random.default_rng(2), num=num, noise_rad=noise, rounds=rounds)
        found = node_frequencies(gain, time_s, noise, np.ones((num, 4, 3), bool), TRP_NODES, UE_NODES)
        error = found.frequency_hz - truth
        assert np.all(error[:, 0] == 0)
        predicted = np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2)[0, 1:])
        rms = np.sqrt(np.mean(error[:, 1:] ** 2, axis=0))
        # The relative standard error of an rms is 1 / sqrt(2 num).
        np.testing.assert_allclose(rms / predicted, 1.0, atol=4 / np.sqrt(2 * num))
        spreads.append(predicted.mean())
    assert spreads[1] < 0.8 * spreads[0]


def test_a_reading_that_contradicts_the_others_is_named():
    gain, time_s, _ = readings(np.random.default_rng(3), noise_rad=0.01)
    gain[0, 1, 2, 1] *= np.exp(0.4j)
    found = node_frequencies(gain, time_s, 0.01, np.ones((1, 4, 3), bool), TRP_NODES, UE_NODES)
    assert not found.consistent[0, 1, 2, 1]


def test_links_that_do_not_join_all_nodes_are_an_error():
    gain, time_s, _ = readings(np.random.default_rng(4))
    used = np.ones((1, 4, 3), bool)
    used[:, 3] = False
    with pytest.raises(DisconnectedLinksError, match="TRP 3"):
        node_frequencies(gain, time_s, 0.1, used, TRP_NODES, UE_NODES)
    with pytest.raises(ValueError, match="2 readings"):
        node_frequencies(gain[:, 0], time_s[0], 0.1, np.ones((4, 3), bool), TRP_NODES, UE_NODES)
    with pytest.raises(ValueError, match="different times"):
        node_frequencies(gain, 0 * time_s + 1, 0.1, np.ones((1, 4, 3), bool), TRP_NODES, UE_NODES)
