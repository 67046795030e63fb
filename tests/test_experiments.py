# SPDX-License-Identifier: GPL-3.0-or-later
import itertools
import json
import math
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from gnuradio.dmimo import experiments
from gnuradio.dmimo.experiments import CampaignError, Timeouts, beam_sweep, campaign, executors, registry

FIGURE = "beam-sweep-1"
SMALL = {"snr_db": [10.0, 20.0]}


@pytest.fixture
def toy(monkeypatch):
    """A figure of blocks of 4 trials that remembers what it computed, and can be told to fail."""
    monkeypatch.setattr(registry, "_FIGURES", dict(registry._FIGURES))
    state = {"seeds": [], "result": lambda draws: {"x": draws}}

    @experiments.register(
        "toy", title="toy", plot="error_curves", trials=10, block=4, defaults={"scale": 2.0, "kind": "a"},
        summarise=lambda configuration, arrays: {
            "title": "toy", "caption": f"{len(arrays['x'])} trials", "x_label": "x", "y_label": "y", "x": [0.0, 1.0],
            "curves": [{"label": "x", "mean": [1.0, 2.0], "low": [1.0, 2.0], "high": [1.0, 2.0]}], "dashed": [],
        },
    )
    def trial_chunk(configuration, seeds):
        state["seeds"] += [seed.spawn_key for seed in seeds]
        draws = np.array([np.random.default_rng(seed).standard_normal(3) for seed in seeds])
        return state["result"](configuration["scale"] * draws)

    return state


def run(output, name=FIGURE, *, trials=100, seed=1, scheduler="synchronous", **options):
    return experiments.run(name, trials=trials, seed=seed, output=output, scheduler=scheduler, **options)


def files(result):
    return [path.read_bytes() for path in (result.data, result.report, result.picture)]


@pytest.fixture(scope="module")
def figure_1(tmp_path_factory):
    return run(tmp_path_factory.mktemp("figure"), trials=400)


def test_all_beams_beat_the_strongest_beam_beats_a_random_beam_at_every_snr(figure_1):
    errors = [figure_1.arrays[f"error_{key}"] for key in ("all_beams", "strongest", "random")]
    assert figure_1.configuration["snr_db"][0] == 0
    assert figure_1.configuration["snr_db"][-1] == 30
    for better, worse in itertools.pairwise(errors):
        difference = worse - better
        assert np.all(difference.mean(axis=0) > 4 * difference.std(axis=0, ddof=1) / np.sqrt(400))


def test_all_beams_meet_the_bound_from_15_db(figure_1):
    snr_db = np.array(figure_1.configuration["snr_db"])
    error, bound = figure_1.arrays["error_all_beams"], figure_1.arrays["bound"]
    excess = (error - bound)[:, snr_db >= 15]
    deviation = excess.std(axis=0, ddof=1) / np.sqrt(400)
    assert np.all(np.abs(excess.mean(axis=0)) < 4 * deviation + 0.02 * bound.mean(axis=0)[snr_db >= 15])
    assert np.all(figure_1.arrays["bound_corrected"] > bound)
    np.testing.assert_allclose(bound[:, -1] / bound[:, 0], 1e-3, rtol=1e-12)


def test_without_noise_every_set_of_measurements_gives_the_true_coefficients():
    configuration = {**registry.figure(FIGURE).defaults, "snr_db": [280.0]}
    arrays = beam_sweep.trial_chunk(configuration, np.random.SeedSequence(3).spawn(20))
    for key in beam_sweep.CURVES:
        assert np.all(arrays[f"error_{key}"] < 1e-20)


def test_the_summary_says_what_the_arrays_hold(figure_1):
    report = json.loads(figure_1.report.read_text())
    assert report["seed"] == 1
    assert report["trials"] == 400
    assert report["configuration"]["num_antennas"] == 32
    assert report["version"]
    assert "400 trials" in report["summary"]["caption"]
    curves = {curve["label"]: curve for curve in report["summary"]["curves"]}
    for key, label in beam_sweep.CURVES.items():
        values = figure_1.arrays[f"error_{key}"]
        np.testing.assert_allclose(curves[label]["mean"], values.mean(axis=0), rtol=1e-12)
        half = np.array(curves[label]["high"]) - curves[label]["mean"]
        np.testing.assert_allclose(half, 1.96 * values.std(axis=0) / 20, rtol=0.01)
    with np.load(figure_1.data, allow_pickle=False) as stored:
        np.testing.assert_array_equal(stored["error_random"], figure_1.arrays["error_random"])
    assert figure_1.picture.read_bytes().startswith(b"\x89PNG")


def test_results_are_the_same_bit_for_bit_for_any_chunks_and_workers(tmp_path):
    results = [
        run(tmp_path / "one", trials=230, configuration=SMALL, chunk=1000),
        run(tmp_path / "small", trials=230, configuration=SMALL, chunk=1),
        run(tmp_path / "odd", trials=230, configuration=SMALL, chunk=70),
        run(tmp_path / "dask", trials=230, configuration=SMALL, chunk=50, scheduler=None, workers=2),
    ]
    assert len(list((tmp_path / "dask" / f"{FIGURE}.chunks").glob("*.npz"))) == 5
    assert results[0].arrays["error_random"].shape == (230, 2)
    for other in results[1:]:
        assert files(other) == files(results[0])


def test_each_trial_has_its_own_seed_and_another_campaign_other_ones(tmp_path, toy):
    result = run(tmp_path / "a", "toy", trials=10, chunk=8)
    assert toy["seeds"] == [(k,) for k in range(12)]
    expected = [2.0 * np.random.default_rng(np.random.SeedSequence(1, spawn_key=(k,))).standard_normal(3)
                for k in range(10)]
    np.testing.assert_array_equal(result.arrays["x"], expected)
    other = run(tmp_path / "b", "toy", trials=10, seed=2)
    assert not np.isin(other.arrays["x"], result.arrays["x"]).any()


def test_a_stopped_campaign_goes_on_where_it_was_with_the_same_result(tmp_path, toy):
    class Stop(Exception):
        pass

    def stop_at_8(done, total):
        if done == 8:
            raise Stop

    with pytest.raises(Stop):
        run(tmp_path / "stopped", "toy", trials=18, chunk=4, progress=stop_at_8)
    assert not (tmp_path / "stopped" / "toy.json").exists()
    # What a kill in the middle of a write leaves behind must not count as a chunk.
    (tmp_path / "stopped" / "toy.chunks" / ".abc.tmp").write_bytes(b"half")
    toy["seeds"].clear()
    seen = []
    resumed = run(tmp_path / "stopped", "toy", trials=18, chunk=8, progress=lambda *at: seen.append(at))
    assert toy["seeds"] == [(k,) for k in range(8, 20)]
    assert seen == [(8, 18), (16, 18), (18, 18)]
    assert files(resumed) == files(run(tmp_path / "straight", "toy", trials=18))


def test_more_trials_extend_a_finished_campaign_and_fewer_reuse_it(tmp_path, toy):
    short = run(tmp_path, "toy", trials=6)
    toy["seeds"].clear()
    long = run(tmp_path, "toy", trials=15)
    assert toy["seeds"] == [(k,) for k in range(8, 16)]
    np.testing.assert_array_equal(long.arrays["x"][:6], short.arrays["x"])
    toy["seeds"].clear()
    again = run(tmp_path, "toy", trials=3)
    assert toy["seeds"] == []
    np.testing.assert_array_equal(again.arrays["x"], long.arrays["x"][:3])


def test_a_hole_between_finished_chunks_is_filled(tmp_path, toy):
    whole = run(tmp_path, "toy", trials=20, chunk=4)
    (tmp_path / "toy.chunks" / "000000004-000000008.npz").unlink()
    (tmp_path / "toy.chunks" / "000000008-000000012.npz").unlink()
    toy["seeds"].clear()
    filled = run(tmp_path, "toy", trials=20, chunk=20)
    assert toy["seeds"] == [(k,) for k in range(4, 12)]
    np.testing.assert_array_equal(filled.arrays["x"], whole.arrays["x"])


def test_chunks_of_two_runs_at_once_may_overlap(tmp_path, toy):
    whole = run(tmp_path / "a", "toy", trials=20, chunk=8)
    run(tmp_path / "b", "toy", trials=20, chunk=12)
    for path in (tmp_path / "b" / "toy.chunks").glob("*.npz"):
        path.rename(tmp_path / "a" / "toy.chunks" / path.name)
    toy["seeds"].clear()
    np.testing.assert_array_equal(run(tmp_path / "a", "toy", trials=20).arrays["x"], whole.arrays["x"])
    assert toy["seeds"] == []


@pytest.mark.parametrize(
    ("change", "words"),
    [({"seed": 2}, "seed is 1 there and 2 here"), ({"configuration": {"scale": 3}}, "scale is 2.0 there and 3 here")],
)
def test_the_directory_of_another_campaign_is_refused(tmp_path, toy, change, words):
    run(tmp_path, "toy", trials=4)
    before = sorted(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    with pytest.raises(ValueError, match=words):
        run(tmp_path, "toy", trials=4, **change)
    assert before == sorted(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_a_damaged_chunk_is_named(tmp_path, toy):
    run(tmp_path, "toy", trials=8, chunk=4)
    chunk = tmp_path / "toy.chunks" / "000000004-000000008.npz"
    for damage in (chunk.read_bytes()[:100], b"", b"text"):
        chunk.write_bytes(damage)
        with pytest.raises(CampaignError, match=r"000000004-000000008\.npz is damaged"):
            run(tmp_path, "toy", trials=8)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"trials": 0}, "trials=0"), ({"chunk": 0}, "chunk=0"), ({"seed": -1}, "seed=-1"), ({"name": "no"}, "there are:"),
     ({"configuration": {"skale": 1}}, "skale unknown to toy; allowed: kind, scale")],
)
def test_wrong_parameters_raise_before_anything_is_written(tmp_path, toy, options, words):
    with pytest.raises(ValueError, match=words):
        run(tmp_path / "out", **{"name": "toy", **options})
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("result", [{"x": np.zeros(3)}, {"x": np.array(["a"] * 4)}, {"x": 1.0}])
def test_a_figure_that_does_not_return_one_number_per_trial_is_refused(tmp_path, toy, result):
    toy["result"] = lambda draws: result
    with pytest.raises(CampaignError, match="toy: x has shape"):
        run(tmp_path, "toy", trials=4)


def test_a_name_can_be_registered_once(toy):
    with pytest.raises(ValueError, match="registered already"):
        registry.register("toy", title="", plot="", trials=1, defaults={}, summarise=None)(lambda *_: {})


def test_chunks_of_other_code_are_refused_by_workers_and_directories(tmp_path, toy, monkeypatch):
    with pytest.raises(CampaignError, match="this worker has other code"):
        campaign.compute("toy", "0123456789abcdef", {"scale": 1.0}, 1, 0, 4)
    run(tmp_path, "toy", trials=4)
    monkeypatch.setattr(campaign, "code_fingerprint", lambda: "0123456789abcdef")
    with pytest.raises(ValueError, match=r"code is .* there and '0123456789abcdef' here"):
        run(tmp_path, "toy", trials=4)


def test_an_unreachable_scheduler_is_an_error_within_the_limit(tmp_path):
    with pytest.raises(CampaignError, match=r"no worker of the scheduler at tcp://127\.0\.0\.1:9 within 1 s"):
        run(tmp_path, scheduler="tcp://127.0.0.1:9", timeouts=Timeouts(start_s=1))


def test_failing_lost_stalled_and_missing_workers_are_errors_that_keep_what_is_done():
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=0, threads_per_worker=1, processes=True, dashboard_address=None) as cluster:
        address = cluster.scheduler_address

        def results(function, tasks, **limits):
            return executors.on_dask(function, tasks, scheduler=address, timeouts=Timeouts(**limits))

        with pytest.raises(CampaignError, match="no worker"):
            next(results(abs, [(1,)], start_s=0.5))
        cluster.scale(1)
        assert sorted(results(abs, [(-1,), (-2,)])) == [((-2,), 2), ((-1,), 1)]
        with pytest.raises(CampaignError, match="math domain error"):
            list(results(math.sqrt, [(-1,)]))
        with pytest.raises(CampaignError, match="KilledWorker"):
            list(results(os._exit, [(1,)]))
        with pytest.raises(CampaignError, match="no chunk was finished for 1 s"):
            list(results(time.sleep, [(3,)], stall_s=1))
        done = results(time.sleep, [(0.01,), (60,)], lost_s=1)
        assert next(done)[0] == (0.01,)
        cluster.scale(0)
        with pytest.raises(CampaignError, match="all workers are lost"):
            list(done)
        cluster.scale(1)
        done = results(time.sleep, [(0.01,), (60,)])
        assert next(done)[0] == (0.01,)
    with pytest.raises(CampaignError, match="connection to the scheduler was lost"):
        list(done)


def test_importing_experiments_loads_neither_dask_nor_matplotlib_nor_gnu_radio():
    code = ("import sys; from gnuradio.dmimo import experiments; "
            "sys.exit(bool({'distributed', 'dask', 'matplotlib', 'gnuradio.gr', 'pmt'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0
