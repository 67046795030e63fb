# SPDX-License-Identifier: GPL-3.0-or-later
"""Claims of the over-the-air DPD figures against closed forms and bounds; tolerances in standard errors."""

import json

import numpy as np
import pytest
from gnuradio.dmimo import experiments, plotting
from gnuradio.dmimo.core import metrics
from gnuradio.dmimo.core.amplifier_model import amplify
from gnuradio.dmimo.core.mutual_coupling import link_variance, predicted_covariance
from gnuradio.dmimo.core.predistortion import invertible_range
from gnuradio.dmimo.experiments import ota_dpd_combining, ota_dpd_model, ota_dpd_order, ota_dpd_rates
from scipy.special import erfc

# What makes each figure fast; the rest of its configuration stays.
ARRAY = {"rows": 2, "columns": 5}
SMALL = {
    "ota-dpd-1": {**ARRAY, "snr_db": [0.0, 20.0], "dpd_pilots": [10, 20, None]},
    "ota-dpd-2": {**ARRAY, "snr_db": [-10.0, 10.0], "at_db": [-10.0, 10.0], "num_users": 3, "num_channels": 2},
    "ota-dpd-combining": {**ARRAY, "snr_db": [0.0, 10.0], "num_pilots": 20},
    "ota-dpd-order": {"snr_db": [30.0, None], "orders": [3, 9]},
}


def simulate(name, trials, seed=1, **changes):
    figure = experiments.figure(name)
    configuration = {**figure.defaults, **changes}
    seeds = [np.random.SeedSequence(seed, spawn_key=(k,)) for k in range(trials)]
    return configuration, figure.trial_chunk(configuration, seeds)


def assert_mean(samples, expected, *, share=0.0, num_errors=4.0):
    mean, error = metrics.mean_and_standard_error(samples)
    assert np.all(np.abs(mean - expected) < num_errors * error + share * np.abs(expected)), (mean, expected, error)


# -- all figures ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
def test_every_figure_is_drawn_with_its_trials_and_assumptions_and_nothing_outside_the_page(name):
    configuration, arrays = simulate(name, 6, **SMALL[name])
    summary = json.loads(json.dumps(experiments.figure(name).summarise(configuration, arrays), allow_nan=False))
    assert summary["caption"].startswith("6 trials")
    assert f"assumed: 2 x {configuration['columns']} antennas" in summary["caption"]
    picture = getattr(plotting, experiments.figure(name).plot)({**summary, "seed": 1})
    picture.canvas.draw()
    inside, size = picture.get_tightbbox(picture.canvas.get_renderer()), picture.get_size_inches()
    assert min(inside.x0, inside.y0) >= 0
    assert inside.x1 <= size[0]
    assert inside.y1 <= size[1]
    for axes in picture.axes:
        assert axes.get_xlabel()
        assert axes.get_ylabel()
        assert axes.get_tightbbox().y1 < picture.texts[-1].get_window_extent().y0


@pytest.mark.parametrize("name", SMALL)
def test_a_trial_of_every_figure_depends_on_its_own_seed_only(name):
    figure = experiments.figure(name)
    configuration = {**figure.defaults, **SMALL[name]}
    seeds = [np.random.SeedSequence(3, spawn_key=(k,)) for k in range(3)]
    together, alone = figure.trial_chunk(configuration, seeds), figure.trial_chunk(configuration, seeds[2:])
    for key, values in together.items():
        np.testing.assert_allclose(values[2], alone[key][0], rtol=1e-9, atol=1e-25)


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("ota-dpd-1", {"dpd_pilots": [None]}, "dpd_pilots"),
        ("ota-dpd-2", {"at_db": [7.0]}, "at_db = 7.0"),
        ("ota-dpd-combining", {"at_db": 7.0}, "at_db = 7.0"),
        ("ota-dpd-order", {"snr_db": [None]}, "snr_db"),
        ("ota-dpd-2", {"amplifier": "tube"}, "tube"),
    ],
)
def test_a_configuration_that_cannot_be_drawn_is_refused_before_it_is_computed(name, changes, message):
    with pytest.raises(ValueError, match=message):
        simulate(name, 2, **changes)


def test_the_arrays_coefficients_and_noise_are_those_of_the_conventions():
    configuration = {**experiments.figure("ota-dpd-1").defaults, **ARRAY}
    array = ota_dpd_model.draw(configuration, np.random.default_rng(4))
    off = ~np.eye(10, dtype=bool)
    # y[i, j] / y[j, i] = c_j / c_i, receiver first.
    np.testing.assert_allclose((array.gains.T * array.c)[off], (array.gains * array.c[:, None])[off], rtol=1e-12)
    np.testing.assert_allclose(np.mean(np.abs(array.t) ** 2), 1.0)
    weakest = np.min(np.abs(array.gains[off]) ** 2)
    np.testing.assert_allclose(weakest / array.noise_std(7.0) ** 2, 10**0.7)
    x = ota_dpd_model.pilots(configuration, 400)
    np.testing.assert_allclose(np.mean(np.abs(x) ** 2), 1.0, rtol=0.02)
    np.testing.assert_allclose(np.abs(x).max(), 10**0.5)
    kappa = array.coefficients[3, 1]
    np.testing.assert_allclose(ota_dpd_model.received(array, x)[5, 3],
                               array.r[5] * array.coupling[5, 3] * array.t[3] * x * (1 + kappa * np.abs(x) ** 2))


# -- calibration error ------------------------------------------------------------------------------------------------


def test_without_noise_only_what_is_not_predistorted_is_wrong():
    configuration, arrays = simulate("ota-dpd-1", 4, **{**SMALL["ota-dpd-1"], "snr_db": [280.0]})
    for key in ("perfect", "svd_10", "svd_20", "average_20"):
        for name in ("corner", "best", "pairs"):
            assert np.all(arrays[f"alignment_{name}_{key}"] < 1e-18)
        assert np.all(arrays[f"mse_ratio_{key}_1"] < 1e-18)
    rng = np.random.default_rng(np.random.SeedSequence(1, spawn_key=(2,)))
    array = ota_dpd_model.draw(configuration, rng)
    compressed = array.c * (1.0 + array.coefficients[:, 1])
    error = 1.0 - np.abs(np.vdot(array.c, compressed)) ** 2 / (
        np.sum(np.abs(array.c) ** 2) * np.sum(np.abs(compressed) ** 2))
    for name in ("corner", "pairs"):
        np.testing.assert_allclose(arrays[f"alignment_{name}_none"][2], error, rtol=1e-6)


def test_equal_amplifiers_need_no_predistortion_for_their_calibration():
    equal = {"drive_std_db": 0.0, "spread": 0.0, "snr_db": [280.0]}
    _, arrays = simulate("ota-dpd-1", 2, **{**SMALL["ota-dpd-1"], **equal})
    assert np.all(arrays["alignment_pairs_none"] < 1e-18)


def test_all_pairs_meet_their_bound_after_predistortion_and_the_ratio_its_closed_form():
    configuration, arrays = simulate("ota-dpd-1", 300, **{**SMALL["ota-dpd-1"], "dpd_pilots": [100, None]})
    for key in ("perfect", "svd_100"):
        assert_mean(arrays[f"alignment_pairs_{key}"] / arrays["bound_alignment"], 1.0, share=0.02)
        assert_mean((arrays[f"mse_pairs_{key}_10"] / arrays["bound"])[:, 1:], 1.0, share=0.02)
        assert_mean((arrays[f"mse_ratio_{key}_10"] / arrays["closed_10"])[:, 1:], 1.0, share=0.03)
    assert np.all(arrays["worst_10"][:, 1] < 0.01)
    # The error delta of kappa turns its antenna by delta |u|^2, |u| about 1. Its variance is 1 / 850 of the gain energy
    # (most of it from the pilot at the peak), that of 10 pilots over all pairs 1 / 5: 0.7 % with |u|^6 = 1.24.
    more = (arrays["alignment_pairs_svd_100"] - arrays["alignment_pairs_perfect"]) / arrays["bound_alignment"]
    assert_mean(more, 0.0073)
    # What the paper's combination costs is seen by all pairs, and hardly by the ratio.
    excess = np.log(arrays["alignment_pairs_average_100"] / arrays["alignment_pairs_svd_100"])
    mean, error = metrics.mean_and_standard_error(excess)
    assert np.all(mean > 4.0 * error)
    assert np.all(mean > 0.1)
    assert configuration["cal_pilots"][-1] == 10


def test_both_bounds_are_of_one_covariance():
    changes = {**SMALL["ota-dpd-1"], "gains_std_db": 4.0, "dpd_pilots": [10]}
    configuration, arrays = simulate("ota-dpd-1", 1, **changes)
    array = ota_dpd_model.draw(configuration, np.random.default_rng(np.random.SeedSequence(1, spawn_key=(0,))))
    variance = link_variance(array.gains, array.noise_std(20.0) ** 2, 10)
    relative = predicted_covariance(variance)
    c = array.c
    covariance = np.diag(c) @ relative @ np.diag(c).conj()
    total = np.vdot(c, c).real
    expected = (np.trace(covariance) - c.conj() @ covariance @ c / total).real / total
    np.testing.assert_allclose(arrays["bound_alignment"][0, 1], expected)
    expected = np.mean(np.abs(c[1:] / c[0]) ** 2 * np.diagonal(relative)[1:])
    np.testing.assert_allclose(arrays["bound"][0, 1], expected)


# -- rates ------------------------------------------------------------------------------------------------------------


def test_rates_are_those_of_signal_over_interference_and_noise():
    rng = np.random.default_rng(6)
    h = rng.normal(size=(2, 3, 5)) + 1j * rng.normal(size=(2, 3, 5))
    w = rng.normal(size=(2, 5, 3)) + 1j * rng.normal(size=(2, 5, 3))
    found = ota_dpd_rates.rates(h, w, 0.3)
    for trial, user in np.ndindex(2, 3):
        power = [0.3 * abs(sum(h[trial, user] * w[trial, :, stream])) ** 2 for stream in range(3)]
        sinr = power[user] / (1.0 + sum(power) - power[user])
        np.testing.assert_allclose(found[trial, user], np.log2(1.0 + sinr))


def test_perfect_csi_has_the_wanted_mean_snr_and_no_interference():
    _, arrays = simulate("ota-dpd-2", 60, **{**SMALL["ota-dpd-2"], "gains_std_db": 0.0})
    snr = (2.0 ** arrays["perfect"] - 1.0).mean(axis=(1, 2))
    assert_mean(snr, 10.0)
    # 10 ports and 3 users: the gain is chi-square of 8 complex dimensions.
    assert_mean((2.0 ** arrays["perfect"] - 1.0)[:, 0, 0] ** 2, 100.0 * (1.0 + 1.0 / 8.0))


def test_all_pairs_are_within_1_percent_of_perfect_csi_from_minus_10_db_reference_snr():
    configuration, arrays = simulate("ota-dpd-2", 20, snr_db=[-10.0, 0.0], at_db=[-10.0, 0.0])
    assert (configuration["rows"], configuration["columns"], configuration["cal_pilots"]) == (4, 25, 1)
    perfect = arrays["perfect"].mean(axis=(1, 2))
    lost = (perfect[:, None] - arrays["pairs"].mean(axis=(2, 3))) / perfect.mean()
    mean, error = metrics.mean_and_standard_error(lost)
    assert np.all(mean + 4.0 * error < 0.01)
    # The loss is what the calibration's error must cost, so that the comparison is not one of equal things.
    assert mean[0] > 4.0 * error[0] > 0.0
    interval = ota_dpd_rates.loss(arrays, "corner")
    assert interval.lower[0] > 0.2
    np.testing.assert_allclose(ota_dpd_rates.loss(arrays, "pairs").value, mean)
    assert arrays["uncalibrated"].mean() < 0.1 * arrays["perfect"].mean()


# -- combining --------------------------------------------------------------------------------------------------------


def test_a_gaussian_error_reads_its_variance_whatever_the_statistic():
    rng = np.random.default_rng(7)
    squares = np.abs(ota_dpd_model.complex_normal(rng, 400, 100)) ** 2 * 0.02
    assert_mean(squares.mean(axis=-1), 0.02)
    assert_mean(ota_dpd_combining.log_level_db(squares), 10 * np.log10(0.02))


def test_the_singular_vector_is_within_5_percent_of_the_bound_from_10_db_with_100_pilots():
    _, arrays = simulate("ota-dpd-combining", 100, seed=2, snr_db=[10.0])
    ratio = (arrays["square_svd"] / arrays["bound"]).mean(axis=-1)
    mean, error = metrics.mean_and_standard_error(ratio)
    assert np.all(error < 0.012)
    assert np.all(np.abs(mean - 1.0) < 0.05)


def test_averages_miss_the_bound_by_what_the_receivers_phases_leave():
    _, arrays = simulate("ota-dpd-combining", 40, snr_db=[10.0])
    level = {key: ota_dpd_combining.log_level_db(arrays[f"square_{key}"] / arrays["bound"])[:, 0]
             for key in ("average", "power")}  # fmt: skip
    for key, found in level.items():
        predicted = 10.0 * np.log10(arrays[f"predicted_{key}"]).mean(axis=-1)[:, 0]
        assert_mean(found - predicted, 0.0)
        assert found.mean() > 10.0
    assert level["average"].mean() > level["power"].mean() + 10.0


def test_the_predicted_excess_is_the_noise_of_each_combination_over_its_signal():
    changes = {**SMALL["ota-dpd-combining"], "snr_db": [10.0]}
    configuration, arrays = simulate("ota-dpd-combining", 1, **changes)
    array = ota_dpd_model.draw(configuration, np.random.default_rng(np.random.SeedSequence(1, spawn_key=(0,))))
    for sender in range(10):
        others = [m for m in range(10) if m != sender]
        best = sum(abs(array.gains[m, sender]) ** 2 for m in others)
        for key, weight in (("average", lambda h: 1.0 / h), ("power", np.conj)):
            weights = [weight(array.coupling[m, sender]) for m in others]
            signal = abs(sum(w * array.gains[m, sender] for w, m in zip(weights, others, strict=True))) ** 2
            expected = best * sum(abs(w) ** 2 for w in weights) / signal
            np.testing.assert_allclose(arrays[f"predicted_{key}"][0, 0, sender], expected)


# -- order ------------------------------------------------------------------------------------------------------------


def test_the_clipping_floor_is_that_of_a_soft_limiter():
    configuration, arrays = simulate("ota-dpd-order", 2, spread=0.0, **SMALL["ota-dpd-order"])
    for index, back_off_db in enumerate(configuration["back_offs_db"]):
        array = ota_dpd_model.draw({**configuration, "back_off_db": back_off_db}, np.random.default_rng(1))
        peak = 10.0 ** ((back_off_db - configuration["peak_below_db"]) / 20.0)
        reach = invertible_range(array.coefficients[0], max_amplitude=peak).output_amplitude
        # Gaussian x of unit power limited to the amplitude reach: Bussgang's gain and the output power.
        gain = 1.0 - np.exp(-(reach**2)) + 0.5 * np.sqrt(np.pi) * reach * erfc(reach)
        expected = (1.0 - np.exp(-(reach**2)) - gain**2) / gain**2
        np.testing.assert_allclose(arrays["floor"][:, index], expected, rtol=2e-3)


def test_order_9_is_exact_without_noise_and_order_3_is_flagged_as_mismatch():
    configuration, arrays = simulate("ota-dpd-order", 4, snr_db=[30.0, None], orders=[3, 9, 11])
    assert np.all(arrays["inside"][:, :, 1, 1:] < 1e-18)
    np.testing.assert_allclose(arrays["all"][:, :, 1, 1], arrays["floor"], rtol=1e-6)
    assert np.all(arrays["mismatch"][:, :, 1, 0])
    assert np.all(arrays["mismatch"][:, configuration["back_offs_db"].index(10.0), 0, 0])
    assert not np.any(arrays["mismatch"][:, :, :, 1:])
    # The polynomial inverse of indirect learning is an approximation, but one worth having.
    assert np.all(arrays["indirect"][:, :, 1, 1] > 1e4 * arrays["inside"][:, :, 1, 1])
    assert np.all(arrays["indirect"][:, :, 1, 1] < 0.03 * arrays["without"])


def test_order_9_leaves_less_than_55_db_from_30_db_reference_snr():
    _, arrays = simulate("ota-dpd-order", 12, snr_db=[30.0], orders=[9], back_offs_db=[10.0, 12.0])
    mean, error = metrics.mean_and_standard_error(arrays["inside"][:, :, 0, 0].mean(axis=-1), axis=0)
    assert np.all(mean + 4 * error < 10**-5.5)


def test_what_noise_leaves_of_distortion_at_order_9_is_what_identification_predicts():
    configuration, arrays = simulate("ota-dpd-order", 60, snr_db=[40.0], orders=[9], back_offs_db=[10.0])
    found, predicted = (arrays[key][:, 0, 0, 0].mean(axis=-1) for key in ("inside", "predicted"))
    assert_mean(found / predicted.mean(), 1.0, share=0.1)
    assert configuration["amplifier"] == "gan"


def test_without_predistortion_the_distortion_is_that_of_random_samples():
    configuration, arrays = simulate("ota-dpd-order", 2, spread=0.0, **SMALL["ota-dpd-order"])
    array = ota_dpd_model.draw({**configuration, "back_off_db": 10.0}, np.random.default_rng(1))
    x = ota_dpd_model.complex_normal(np.random.default_rng(8), 50, 20_000)
    limited = x * np.minimum(1.0, array.saturation[0] / np.abs(x))
    y = amplify(limited, array.coefficients[0])
    gain = np.sum(y * x.conj(), axis=-1) / np.sum(np.abs(x) ** 2, axis=-1)
    error = np.mean(np.abs(y - gain[:, None] * x) ** 2, axis=-1) / np.abs(gain) ** 2
    assert_mean(error, arrays["without_all"][0, configuration["back_offs_db"].index(10.0), 0])
    np.testing.assert_allclose(ota_dpd_order.nmse(2j * ota_dpd_order._AMPLITUDE), 0.0, atol=1e-28)


def test_panels_are_as_high_as_a_figure_asks_for():
    configuration, arrays = simulate("ota-dpd-order", 2, **SMALL["ota-dpd-order"])
    summary = experiments.figure("ota-dpd-order").summarise(configuration, arrays)
    heights = [plotting.panels({**summary, "height": height}).get_size_inches()[1] for height in (4.0, 5.5)]
    assert heights[1] - heights[0] == pytest.approx(1.5)
