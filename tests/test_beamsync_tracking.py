# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest
from gnuradio.dmimo import experiments, plotting
from gnuradio.dmimo.core import synchronization_energy as energy
from gnuradio.dmimo.core.carrier_model import wrap
from gnuradio.dmimo.experiments import beamsync_graph, beamsync_tracking, registry


def chunk(name, trials, seed=1, **changes):
    figure = registry.figure(name)
    configuration = {**figure.defaults, **changes}
    return configuration, figure.trial_chunk(configuration, np.random.SeedSequence(seed).spawn(trials))


@pytest.fixture(scope="module")
def tracked():
    return chunk("beamsync-tracking", 60, points=101)


@pytest.fixture(scope="module")
def halls():
    return chunk("beamsync-graph", 60, energy_db=[0.0, 20.0, 40.0])


@pytest.fixture(scope="module")
def intervals():
    return chunk("beamsync-interval", 60, budget_rad=[0.1], drift_hz=[0.01, 0.1])


def test_tracked_with_planned_exchanges_the_mean_error_keeps_the_budget_and_the_prediction(tracked):
    configuration, arrays = tracked
    squared = (arrays["tracked"] / arrays["predicted"]) ** 2
    per_trial = squared.mean(axis=1)
    error = per_trial.std(ddof=1) / np.sqrt(len(per_trial))
    assert abs(per_trial.mean() - 1) < 4 * error < 0.4
    assert np.all(arrays["predicted"] <= configuration["budget_rad"] * 1.001)
    over_time = np.mean(arrays["tracked"] ** 2, axis=1)
    assert over_time.mean() + 4 * over_time.std() / np.sqrt(60) < configuration["budget_rad"] ** 2


def test_the_same_number_of_exchanges_without_tracking_is_at_least_twice_as_wrong(tracked):
    _, arrays = tracked
    rms = {key: np.sqrt(np.mean(arrays[key] ** 2)) for key in beamsync_tracking.METHODS}
    # "once" knows the frequency of the beginning exactly; 60 trials with a tenth of relative error each way.
    assert rms["once"] > 2 * rms["tracked"]
    assert rms["each"] > 5 * rms["tracked"]


def test_without_errors_of_oscillators_and_measurements_every_method_is_exact():
    _, arrays = chunk("beamsync-tracking", 3, points=21, duration_s=5.0, linewidth_hz=0.0, drift_hz=0.0,
                      phase_std_rad=1e-7, frequency_std_hz=1e-7)
    for key in beamsync_tracking.METHODS:
        assert np.abs(arrays[key]).max() < 1e-4
    # Not because nothing turns.
    pairs = beamsync_tracking.OscillatorPairs([np.random.default_rng(1)], offset_hz=0.5)
    assert abs(wrap(pairs.phase(4000) - pairs.phase(0))[0]) > 0.1


def test_simulated_oscillators_meet_the_budget_at_the_planned_interval(intervals):
    configuration, arrays = intervals
    at_planned = arrays["squared_error"][..., 1] / np.array(configuration["budget_rad"])[:, None] ** 2
    error = at_planned.std(axis=0, ddof=1) / np.sqrt(60)
    assert np.all(np.abs(at_planned.mean(axis=0) - 1) < 4 * error)
    assert np.all(error < 0.2)
    longer, shorter = arrays["squared_error"][..., 2].mean(axis=0), arrays["squared_error"][..., 0].mean(axis=0)
    assert np.all(longer > 2 * shorter)


def test_the_interval_found_is_that_of_the_error_curve(intervals):
    configuration, arrays = intervals
    summary = beamsync_tracking.summarise_interval(configuration, arrays)
    family = summary["families"][0]
    np.testing.assert_allclose(family["curves"][0]["mean"], family["dashed"], rtol=0.25)
    assert np.all(np.less(family["curves"][0]["low"], family["curves"][0]["high"]))
    # Twice the error at all intervals: the budget is reached sooner.
    twice = beamsync_tracking.summarise_interval(configuration, {"squared_error": 2 * arrays["squared_error"]})
    assert np.all(np.less(twice["families"][0]["curves"][0]["mean"], family["curves"][0]["mean"]))


def test_the_graph_beats_the_best_tree_and_that_the_best_star_at_equal_total_energy(halls):
    _, arrays = halls
    saved, error = beamsync_graph.saving_db(arrays, "graph")
    assert saved - 4 * error > 10.0
    tree, tree_error = beamsync_graph.saving_db(arrays, "tree")
    assert tree - 4 * tree_error > 9.5
    assert saved > tree
    # In the errors themselves, hall by hall.
    ratio_db = 10 * np.log10(arrays["error_star"][:, 1:] / arrays["error_graph"][:, 1:]).mean(axis=1)
    assert ratio_db.mean() - 4 * ratio_db.std(ddof=1) / np.sqrt(60) > 9.0


def test_errors_meet_their_bounds_where_the_bound_is_small(halls):
    _, arrays = halls
    for key in beamsync_graph.CURVES:
        ratio = arrays[f"error_{key}"][:, -1] / arrays[f"bound_{key}"][:, -1]
        assert abs(ratio.mean() - 1) < 4 * ratio.std(ddof=1) / np.sqrt(60)


def test_no_energy_is_given_away_and_soundings_are_paid():
    configuration, _ = chunk("beamsync-graph", 1, energy_db=[40.0])
    quality, phases, noise = beamsync_graph._hall(configuration, np.random.default_rng(2))
    assert phases.shape == (12,)
    np.testing.assert_allclose(noise, noise.conj().T)
    for plan in (energy.best_star(quality), energy.best_tree(quality), energy.allocate_energy(quality)):
        np.testing.assert_allclose(np.triu(plan.energy).sum(), 1.0)
    # With soundings as long as all else together nothing would be left for a graph.
    with_short, with_long = (chunk("beamsync-graph", 5, energy_db=[40.0], num_samples=n)[1] for n in (50, 1000))
    for key, nodes in (("star", 1), ("graph", 3)):
        assert np.all(with_short[f"bound_{key}"] > with_long[f"bound_{key}"] * (1 + 0.9 * nodes * 16 / 1100))


@pytest.mark.parametrize("name", ["beamsync-tracking", "beamsync-interval", "beamsync-graph"])
def test_summaries_are_drawn(name, tracked, intervals, halls):
    results = {"beamsync-tracking": tracked, "beamsync-interval": intervals, "beamsync-graph": halls}
    configuration, arrays = results[name]
    figure = registry.figure(name)
    summary = figure.summarise(configuration, arrays)
    assert name in experiments.names()
    assert "60 " in summary["caption"]
    drawn = getattr(plotting, figure.plot)(summary)
    assert drawn.axes[0].get_xlabel() == summary["x_label"]


def test_trials_do_not_depend_on_their_neighbours():
    for name, changes in (("beamsync-tracking", {"points": 11, "duration_s": 3.0}),
                          ("beamsync-graph", {"energy_db": [30.0]})):
        configuration, together = chunk(name, 3, **changes)
        figure = registry.figure(name)
        alone = figure.trial_chunk(configuration, np.random.SeedSequence(1).spawn(3)[2:])
        for key, values in together.items():
            np.testing.assert_allclose(values[2:], alone[key], rtol=1e-6)
