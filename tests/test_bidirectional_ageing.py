# SPDX-License-Identifier: GPL-3.0-or-later
"""Figure of four streams with old coefficients: the paper's losses, what oscillators predict, what tracking saves."""

import numpy as np
import pytest
from gnuradio.dmimo import experiments, plotting
from gnuradio.dmimo.experiments import bidirectional_ageing as ageing
from gnuradio.dmimo.experiments import registry
from gnuradio.dmimo.experiments.bidirectional_model import PATTERN_S, draw

NAME = "bidirectional-21"


def chunk(trials, seed=1, **changes):
    figure = registry.figure(NAME)
    configuration = {**figure.defaults, **changes}
    return configuration, figure.trial_chunk(configuration, np.random.SeedSequence(seed).spawn(trials))


@pytest.fixture(scope="module")
def campaign():
    return chunk(100, delays=[0, 2, 6])


def mean_and_error(values):
    return values.mean(axis=0), values.std(axis=0, ddof=1) / np.sqrt(len(values))


def complex_normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def test_held_coefficients_lose_what_the_paper_measured(campaign):
    configuration, arrays = campaign
    for scheme, points in ageing.PAPER.items():
        loss, error = mean_and_error(ageing.loss_db(arrays, "held", scheme))
        for delay, wanted in points.items():
            index = configuration["delays"].index(delay)
            assert abs(loss[index] - wanted) < 4 * error[index] < 0.45 * wanted
    # The ports of an AAU drift together.
    loss, error = mean_and_error(ageing.loss_db(arrays, "held", "aau"))
    assert np.all(loss - 4 * error < 0.2)
    joint, other = (ageing.loss_db(arrays, "held", scheme) for scheme in ("joint", "polarisation"))
    more, error = mean_and_error(other - joint)
    assert np.all((more - 4 * error)[1:] > 0)


def test_losses_are_those_of_phase_errors_that_the_oscillators_predict(campaign):
    _, arrays = campaign
    for scheme in ageing.SCHEMES:
        for means in ("held", "carried"):
            excess = ageing.loss_db(arrays, means, scheme) - ageing.loss_db(arrays, f"predicted_{means}", scheme)
            predicted = ageing.loss_db(arrays, f"predicted_{means}", scheme).mean(axis=0)
            mean, error = mean_and_error(excess)
            # Part of what the prediction adds is lost already when the coefficients are fresh.
            assert np.all(np.abs(mean) < 4 * error + 0.12 * predicted + 0.02)


def test_carried_on_only_phase_noise_is_left_and_one_way_tracking_leaves_nothing(campaign):
    _, arrays = campaign
    for scheme in ageing.SCHEMES:
        saved, error = mean_and_error(arrays[f"carried_{scheme}"] - arrays[f"held_{scheme}"])
        # Of an AAU by itself there is hardly anything to save.
        assert np.all((saved - 4 * error)[-1:] > (0 if scheme != "aau" else -0.1))
        lost, error = mean_and_error(ageing.loss_db(arrays, "tracked", scheme))
        assert np.all(np.abs(lost) < 4 * error + 0.03)
        assert np.all(error < 0.02)
    assert np.mean(arrays["carried_joint"] - arrays["held_joint"], axis=0)[-1] > 0.5


def test_oscillators_that_stay_cost_nothing_at_any_age():
    _, arrays = chunk(4, delays=[0, 3, 8], linewidth_hz=0.0, max_frequency_ppb=0.0, history=4)
    for scheme in ageing.SCHEMES:
        np.testing.assert_allclose(ageing.loss_db(arrays, "held", scheme), 0.0, atol=1e-9)


def test_an_offset_alone_is_carried_on_exactly():
    _, arrays = chunk(20, delays=[0, 8], linewidth_hz=0.0, power_dbm=40.0)
    for means in ("carried", "tracked"):
        assert np.abs(ageing.loss_db(arrays, means, "joint")[:, 1]).max() < 0.1
    assert ageing.loss_db(arrays, "held", "joint")[:, 1].mean() > 3


def test_phase_variance_is_that_of_the_simulated_coefficients():
    configuration = {**registry.figure(NAME).defaults, "linewidth_hz": 0.4}
    passed = 7 * PATTERN_S
    rngs = [np.random.default_rng(k) for k in range(3000)]
    drop = draw(ageing.scene_of(configuration), rngs, [0.0, passed])
    first, second = (drop.coefficients([0], time)[0][..., 0] for time in (0.0, passed))
    turn = second * first.conj()
    np.testing.assert_allclose(np.angle(turn[:, 0]), np.angle(turn[:, 1]))
    squared = np.angle(turn[:, 0] * turn[:, 2].conj()) ** 2
    predicted = 2 * ageing.phase_variance(configuration, "held", passed)
    assert abs(squared.mean() - predicted) < 4 * squared.std(ddof=1) / np.sqrt(len(squared))
    assert squared.std(ddof=1) / np.sqrt(len(squared)) < 0.03 * predicted


def test_local_weights_know_their_own_ports_only_and_fill_the_strongest():
    rng = np.random.default_rng(3)
    forecast = 3 * complex_normal(rng, 2, 8, 4, 5)
    for scheme, size in (("joint", 8), ("aau", 2), ("polarisation", 4)):
        group = ageing.groups(scheme)
        assert np.all(np.bincount(group)[group] == size)
        sent = ageing.weights(forecast, group)
        power = np.sum(np.abs(sent) ** 2, axis=-1)
        for number in np.unique(group):
            np.testing.assert_allclose(power[..., group == number].max(axis=-1), 1.0)
        changed = forecast.copy()
        changed[:, group != 0] *= 1j
        np.testing.assert_allclose(ageing.weights(changed, group)[:, :, group == 0], sent[:, :, group == 0])
    # Strong channels of as many ports as streams: zero forcing.
    strong = 1e6 * forecast[:, ::2]
    sent = ageing.weights(strong, np.zeros(4, int))
    through = np.einsum("tmnk,tkms->tkns", strong, sent)
    np.testing.assert_allclose(through - through * np.eye(4), 0.0, atol=1e-6 * np.abs(through).max())


def test_sinr_counts_the_other_streams_and_the_noise_once():
    rng = np.random.default_rng(4)
    c, uplink, downlink = complex_normal(rng, 1, 8, 1), complex_normal(rng, 1, 8, 4, 1), complex_normal(rng, 1, 8, 4, 1)
    parts = ageing.by_aau(c, uplink, downlink, "polarisation")
    assert parts.shape == (4, 1, 1, 4, 4)
    sent = ageing.weights(c[:, :, None] * uplink, ageing.groups("polarisation"))[0, 0]
    expected = []
    for n in range(4):
        powers = [abs(sum(downlink[0, m, n, 0] * sent[m, s] for m in range(8))) ** 2 for s in range(4)]
        expected.append(10 * np.log10(powers[n] / (sum(powers) - powers[n] + 1)))
    np.testing.assert_allclose(ageing.sinr_db(parts.sum(axis=0)), np.mean(expected))
    np.testing.assert_allclose(ageing.erring(parts, rng.normal(size=(3, 4, 1)), 0.0), np.mean(expected))


def test_the_summary_states_its_parameters_and_is_drawn(campaign):
    configuration, arrays = campaign
    figure = registry.figure(NAME)
    summary = figure.summarise(configuration, arrays)
    assert NAME in experiments.names()
    for words in ("100 trials", "30 dBm", "Hz linewidth", "0.28 ppb"):
        assert words in summary["caption"]
    held, moved = getattr(plotting, figure.plot)({**summary, "seed": 1}).axes
    lines = {line.get_label(): line for line in held.get_lines()}
    np.testing.assert_allclose(lines["paper, joint precoding"].get_ydata(), [0.5, 2.0])
    assert {"held", "tracked by a one-way sounding"} <= {line.get_label() for line in moved.get_lines()}


def test_trials_do_not_depend_on_their_neighbours():
    configuration, together = chunk(3, delays=[0, 4], history=4)
    alone = registry.figure(NAME).trial_chunk(configuration, np.random.SeedSequence(1).spawn(3)[2:])
    for key, values in together.items():
        np.testing.assert_allclose(values[2:], alone[key], atol=1e-5)
