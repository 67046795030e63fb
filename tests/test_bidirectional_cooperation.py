# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures of cooperating ports: gain per doubling, and what estimated or foreign coefficients lose."""

import numpy as np
import pytest
from gnuradio.dmimo import experiments, plotting
from gnuradio.dmimo.experiments import bidirectional_cooperation as cooperation
from gnuradio.dmimo.experiments import registry

TRIALS = 300
DIRECTIONS = ["bidirectional-15", "bidirectional-16"]


def chunk(name, trials, seed=1, **changes):
    figure = registry.figure(name)
    configuration = {**figure.defaults, **changes}
    return configuration, figure.trial_chunk(configuration, np.random.SeedSequence(seed).spawn(trials))


def mean_and_error(values):
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


@pytest.fixture(scope="module", params=DIRECTIONS)
def campaign(request):
    return request.param, *chunk(request.param, TRIALS)


def test_each_doubling_of_ports_with_exact_coefficients_gains_at_least_5_5_db_and_without_about_3(campaign):
    _, _, arrays = campaign
    gain, error = mean_and_error(np.diff(arrays["perfect"], axis=1))
    assert np.all(gain - 4 * error > 5.5)
    # Unequal amplitudes of the ports add to 6.02 dB no more than their spread: the mean over ports of both.
    assert np.all(np.abs(gain - 6.02) < 4 * error + 0.05)
    gain, error = mean_and_error(np.diff(arrays["none"], axis=1))
    assert np.all(gain + 4 * error < 4.5)


def test_own_coefficients_lose_under_0_2_db_and_foreign_ones_under_0_3_db_more(campaign):
    _, _, arrays = campaign
    for key in ("own", "own_joint", "both"):
        loss, error = mean_and_error(arrays["perfect"] - arrays[key])
        assert np.all(loss + 4 * error < 0.2)
    more, error = mean_and_error(arrays["own"] - arrays["other"])
    assert np.all(more + 4 * error < 0.3)
    # Foreign coefficients do cost something, and averaging over both ends costs less.
    assert np.all((more - 4 * error)[1:] > 0)
    less, error = mean_and_error(arrays["both"] - arrays["other"])
    assert np.all((less - 4 * error)[1:] > 0)


def test_losses_are_those_that_the_bounds_predict(campaign):
    """The answer 1 / H costs up to 20 % above the bound at 10 dB; the mismatch and the soundings cost nothing more."""
    _, configuration, arrays = campaign
    variance = cooperation.predicted_variance(configuration)
    for key in ("own", "own_joint", "other", "both"):
        loss, error = mean_and_error(arrays["perfect"] - arrays[key])
        for index, ports in enumerate(configuration["num_ports"][1:], start=1):
            predicted = cooperation.predicted_loss_db(variance[key.removesuffix("_joint")], ports)
            assert predicted - 4 * error[index] < loss[index] < 1.2 * predicted + 4 * error[index]
            assert error[index] < 0.12 * predicted


@pytest.mark.parametrize("name", DIRECTIONS)
def test_at_high_power_and_without_mismatch_every_calibration_is_perfect(name):
    _, arrays = chunk(name, 20, power_dbm=110.0, mismatch_db=-200.0)
    for key in ("own", "own_joint", "other", "both"):
        np.testing.assert_allclose(arrays[key], arrays["perfect"], atol=1e-6)
    # Not because nothing was wrong.
    assert np.mean(arrays["perfect"][:, -1] - arrays["none"][:, -1]) > 3


def test_frequencies_come_from_soundings_that_the_cooperating_ports_hear():
    configuration = {**registry.figure("bidirectional-15").defaults, "power_dbm": 110.0}
    for side in ("TRP", "UE"):
        rngs = [np.random.default_rng(k) for k in range(5)]
        drop = cooperation.networks({**configuration, "cooperating": side, "num_ports": [1, 4]}, rngs)
        truth = drop.frequency_ue_hz[:, None] - drop.frequency_trp_hz[:, :, None]
        assert truth.shape == (5, 4, 2)
        np.testing.assert_allclose(cooperation.link_frequencies(drop, rngs).frequency_hz, truth, atol=0.01)
        assert np.abs(truth).max() > 500


def test_the_first_port_alone_needs_no_coefficients(campaign):
    _, _, arrays = campaign
    for key in cooperation.METHODS:
        np.testing.assert_allclose(arrays[key][:, 0], arrays["perfect"][:, 0])


def test_summaries_state_their_parameters_and_are_drawn(campaign):
    name, configuration, arrays = campaign
    figure = registry.figure(name)
    summary = figure.summarise(configuration, arrays)
    assert name in experiments.names()
    for words in (f"{TRIALS} trials", "30 dBm", "10.7 dB per resource element"):
        assert words in summary["caption"]
    snr, loss = getattr(plotting, figure.plot)({**summary, "seed": 1}).axes
    assert "SNR [dB]" in snr.get_ylabel()
    assert "loss [dB]" in loss.get_ylabel()
    lines = {line.get_label(): line for line in snr.get_lines()}
    np.testing.assert_allclose(lines["uncalibrated"].get_ydata(), arrays["none"].mean(axis=0))
    ideal = lines["6.02 dB per doubling"].get_ydata()
    np.testing.assert_allclose(np.diff(ideal), 20 * np.log10(2))


def test_trials_do_not_depend_on_their_neighbours():
    for name in DIRECTIONS:
        configuration, together = chunk(name, 3)
        alone = registry.figure(name).trial_chunk(configuration, np.random.SeedSequence(1).spawn(3)[2:])
        for key, values in together.items():
            np.testing.assert_allclose(values[2:], alone[key], rtol=1e-9)
