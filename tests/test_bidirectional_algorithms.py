# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures that compare calibration algorithms: closed forms, exactness without noise, and claims in standard errors."""

import functools
import itertools
import json

import numpy as np
import pytest
from gnuradio.dmimo import experiments, plotting
from gnuradio.dmimo.core import metrics
from gnuradio.dmimo.core.bidirectional import DisconnectedLinksError, joint_ml, ml_tls
from gnuradio.dmimo.core.ofdm import CombMapping, OfdmGrid
from gnuradio.dmimo.experiments import bidirectional_algorithms as algorithms
from gnuradio.dmimo.experiments import bidirectional_exchange as air
from gnuradio.dmimo.experiments import bidirectional_model as model
from gnuradio.dmimo.experiments import bidirectional_polarisation as polarisation
from gnuradio.dmimo.experiments.bidirectional_comparison import compare
from gnuradio.dmimo.experiments.bidirectional_indoor import HALL
from gnuradio.dmimo.experiments.bidirectional_single_stream import PAIR

K = algorithms.COMMON
NAMES = [f"bidirectional-{number}" for number in (5, 17, 18, 19, 20, 23, 24)]
LOUD_DBM = 190.0  # noise 80 dB below the rounding that matters
EQUAL = {"equal_path_loss": True, "gain_std": 0.0}


def rngs(trials, seed=1):
    return [np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(k,))) for k in range(trials)]


@functools.cache
def simulate(name, trials, changes="{}", seed=1):
    figure = experiments.figure(name)
    configuration = {**figure.defaults, **json.loads(changes)}
    seeds = [np.random.SeedSequence(seed, spawn_key=(k,)) for k in range(trials)]
    return configuration, figure.trial_chunk(configuration, seeds)


def run(name, trials, **changes):
    return simulate(name, trials, json.dumps(changes))[1]


def efficiencies(**scene):
    """Of 150 trials at 30 dBm."""
    arrays = run("bidirectional-5", 150, power_dbm=[30.0], scene=scene)
    return {key: values[:, 0] for key, values in arrays.items()}


def lead(better, worse):
    """Mean lead and its standard error."""
    return metrics.mean_and_standard_error(np.asarray(better) - np.asarray(worse))


def assert_ahead(arrays, better, worse, by=0.0):
    mean, error = lead(arrays[better], arrays[worse])
    assert mean - by > 3 * error, (better, worse, mean, error)


# -- streams ----------------------------------------------------------------------------------------------------------


def test_one_stream_with_exact_coefficients_has_the_power_of_all_amplitudes_in_phase():
    drop = model.draw(model.Scene(num_trp=5, num_ue=1, num_scattered=3), rngs(3))
    up, down = drop.uplink(K, 1e-4), drop.downlink(K, 1e-4)
    signal, other = algorithms.stream_powers(drop.coefficients(K, 1e-4)[0], up, down)
    np.testing.assert_allclose(signal[..., 0], np.sum(np.abs(down[:, :, 0]), axis=1) ** 2, rtol=1e-10)
    np.testing.assert_allclose(other, 1.0, rtol=1e-10)
    np.testing.assert_allclose(algorithms.spectral_efficiency(drop.coefficients(K, 1e-4)[0], up, down),
                               np.log2(1 + signal[..., 0]).mean(axis=1))  # fmt: skip
    # Neither the coefficients' conjugate nor their inverse will do.
    for wrong in (np.conj, np.reciprocal):
        signal, _ = algorithms.stream_powers(wrong(drop.coefficients(K, 1e-4)[0]), up, down)
        assert np.mean(signal[..., 0] / np.sum(np.abs(down[:, :, 0]), axis=1) ** 2) < 0.7


def test_zero_forcing_with_exact_coefficients_leaves_noise_alone_within_the_ports_power():
    drop = model.draw(model.Scene(num_ue=4, shadowing_db=3.0), rngs(3))
    c, up, down = drop.coefficients(K, 0.0)[0], drop.uplink(K, 0.0), drop.downlink(K, 0.0)
    _, other = algorithms.stream_powers(c, up, down)
    np.testing.assert_allclose(other, 1.0, rtol=1e-9)
    power = np.sum(np.abs(algorithms.downlink_weights(c, up)) ** 2, axis=-1)
    np.testing.assert_allclose(power.max(axis=-1), 1.0, rtol=1e-10)
    _, other = algorithms.stream_powers(np.ones(c.shape), up, down)
    assert np.median(other) > 5.0


def test_sinr_is_the_ratio_of_mean_powers_in_db():
    rng = np.random.default_rng(4)
    c, up, down = (rng.normal(size=(2, *s, 3)) + 1j * rng.normal(size=(2, *s, 3)) for s in ((4,), (4, 2), (4, 2)))
    signal, other = algorithms.stream_powers(c, up, down)
    for t, u in np.ndindex(2, 2):
        h = np.moveaxis(down[t], -1, 0).swapaxes(1, 2)
        received = np.stack([h[i] @ algorithms.downlink_weights(c, up)[t, i] for i in range(3)])
        wanted = np.mean(np.abs(received[:, u, u]) ** 2)
        rest = 1.0 + np.mean(np.abs(received[:, u, 1 - u]) ** 2)
        assert algorithms.sinr_db(c, up, down)[t, u] == pytest.approx(10 * np.log10(wanted / rest))
    assert np.all(other >= 1.0)
    assert signal.shape == (2, 3, 2)


def test_link_snr_is_that_of_the_quotient():
    g, h = np.full((2, 3, 5), 4.0), np.full((2, 3, 5), 2.0j)
    np.testing.assert_allclose(algorithms.link_snr(g, h), 1 / (1 / 16 + 1 / 4))


# -- coefficients -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize(
    ("scene", "form"), [({}, "inverse"), ({**PAIR, "gain_std": 0.0}, "inverse"), (HALL, "conjugate")]
)
def test_every_algorithm_and_tracking_is_exact_without_noise(scene, form, swap):
    """Also a pattern later, and seen from the UEs: sign, factor 2 and time of the tracking would show.

    Between polarisations the phase is found; the ratio of amplitudes is taken as 1, here it is.
    """
    drop = model.draw(model.Scene(**scene), rngs(3)).at_power(LOUD_DBM)
    drop = drop.swapped() if swap else drop
    found = compare(drop, rngs(3, seed=2), form)
    assert set(found.coefficients) == set(algorithms.CURVES)
    for key, c in found.coefficients.items():
        assert found.times_s[key] == pytest.approx(model.SYMBOL_S + model.PATTERN_S * ("tracked" in key))
        truth = drop.coefficients(K, found.times_s[key])[0]
        error = metrics.alignment_error(np.moveaxis(c, -1, 1), np.moveaxis(truth, -1, 1))
        if key == "uncalibrated":
            assert np.min(error) > 0.05
        else:
            assert np.max(error) < 1e-8, key


def test_swapped_networks_exchange_the_directions():
    drop = model.draw(model.Scene(num_trp=3, num_ue=2, ue_ports=2, num_scattered=2), rngs(2))
    np.testing.assert_allclose(drop.swapped().uplink(K, 1e-3), drop.downlink(K, 1e-3).swapaxes(1, 2), rtol=1e-12)
    np.testing.assert_allclose(drop.swapped().downlink(K, 1e-3), drop.uplink(K, 1e-3).swapaxes(1, 2), rtol=1e-12)
    np.testing.assert_array_equal(drop.swapped().coefficients(K, 1e-3)[0], drop.coefficients(K, 1e-3)[1])


def test_conjugate_answer_reads_the_amplitude_of_c_over_fading_channels():
    drop = model.draw(model.Scene(**HALL), rngs(5)).at_power(LOUD_DBM)
    result = air.exchange(drop, rngs(5, seed=2), K, 0.0, form="conjugate")
    c_trp, c_ue = drop.coefficients(K, result.time_s)
    ratio = result.c * c_trp[:, :, None] / c_ue[:, None]
    np.testing.assert_allclose(ratio.mean(axis=-1), 1.0, atol=1e-6)
    assert np.std(np.abs(ratio)) > 0.3  # each element has the power of its subcarrier


def test_polarisations_are_brought_together_by_links_each_below_its_threshold():
    """15 dB of discrimination at 30 dBm: at once the network falls apart; by polarisation eight ports lose 0.1 dB."""
    scene = model.Scene(**PAIR)
    drop = model.draw(scene, rngs(200))
    data = air.exchange(drop, rngs(200, seed=2), K, 0.0)
    with pytest.raises(DisconnectedLinksError):
        joint_ml(data.c, K, model.SPACING_HZ, max_delay=20e-9)
    truth = drop.coefficients(K, data.time_s)[0]
    for side, exact in zip(("trp", "ue"), drop.coefficients(K, data.time_s), strict=True):
        phasor = getattr(polarisation.calibrate(data, "joint_ml", scene), side)() / exact
        coherence = np.abs(np.mean(phasor / np.abs(phasor), axis=1)) ** 2
        mean, error = metrics.mean_and_standard_error(coherence.mean(axis=-1))
        assert mean + 3 * error > 10**-0.01 > 0.9
        assert mean > 0.96
    one = polarisation.from_one_port(data, 0, scene)
    phasor = one / truth
    phasor /= np.abs(phasor)
    good, bad = (np.mean(np.abs(np.mean(phasor[:, p::2], axis=1)) ** 2) for p in (0, 1))
    assert good > 0.99  # 4 ports of its own polarisation
    assert bad < 0.45  # 0.25 would be random


def test_delays_of_both_polarisations_are_counted_from_the_same_clock():
    """The ports share clocks, so errors of one reference port may not become a delay between the polarisations."""
    scene = model.Scene(**PAIR)
    drop = model.draw(scene, rngs(200))
    data = air.exchange(drop, rngs(200, seed=2), K, 0.0)
    found = polarisation.calibrate(data, "joint_ml", scene)
    phasor = found.trp() / drop.coefficients(K, data.time_s)[0]
    phasor /= np.abs(phasor)

    def delay_rms(phasor):
        between = phasor[:, 1::2].sum(axis=1) * phasor[:, 0::2].sum(axis=1).conj()
        slope = np.angle(np.sum(between[:, 1:] * between[:, :-1].conj(), axis=-1))
        return np.sqrt(np.mean(slope**2)) / (4 * np.pi * 32 * model.SPACING_HZ)

    plain = phasor.copy()
    plain[:, 1::2] /= found.factors[1][:, None]
    # 200 trials: 5 % on each.
    assert delay_rms(phasor) < 0.75 * delay_rms(plain)


def test_combs_of_table_i_calibrate_as_well_as_the_common_subcarriers_of_the_figures():
    """49 elements per link either way: mean alignment errors over 200 networks differ by their noise only."""
    drop = model.draw(model.Scene(num_ue=4), rngs(200))
    errors = []
    for seed, k in enumerate((K, CombMapping(8, 4, 196).subcarriers(OfdmGrid()))):
        data = air.exchange(drop, rngs(200, seed=2 + seed), k, 0.0)
        found = ml_tls(data.c, k, model.SPACING_HZ, max_delay=20e-9).trp(K)
        truth = drop.coefficients(K, data.time_s)[0]
        errors.append(metrics.alignment_error(np.moveaxis(found, -1, 1), np.moveaxis(truth, -1, 1)).mean(axis=1))
    mean, error = lead(*errors)
    assert abs(mean) < 3 * error < 0.3 * np.mean(errors)


# -- figure 5 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("better", "worse"),
    [("perfect", "joint_ml"), ("joint_ml", "ml_tls"), ("ml_tls", "tls"), ("tls", "argos_mean"),
     ("argos_mean", "spanning_tree"), ("spanning_tree", "argos"), ("argos", "uncalibrated")],
)  # fmt: skip
def test_spectral_efficiency_has_the_order_of_the_paper(better, worse):
    assert_ahead(efficiencies(), better, worse)


def test_ml_tls_is_within_2_of_perfect_and_wideband_tracking_within_half_of_ml_tls():
    arrays = efficiencies()
    for better, worse, most in (("perfect", "ml_tls", 2.0), ("ml_tls", "tracked_wideband", 0.5)):
        mean, error = lead(arrays[better], arrays[worse])
        assert mean + 3 * error < most


def test_tracking_on_each_subcarrier_loses_over_10_with_one_ue_and_over_8_with_all():
    arrays = efficiencies()
    assert_ahead(arrays, "ml_tls", "tracked_one", by=10.0)
    assert_ahead(arrays, "ml_tls", "tracked_all", by=8.0)
    assert_ahead(arrays, "tracked_wideband", "argos")


def test_the_spanning_tree_is_ahead_of_argos_because_links_differ():
    assert_ahead(efficiencies(**EQUAL), "argos", "spanning_tree", by=1.0)
    assert_ahead(efficiencies(shadowing_db=3.0), "spanning_tree", "argos", by=1.0)
    # What weighting is worth grows with the differences too.
    mean, error = lead(efficiencies(**EQUAL)["joint_ml"], efficiencies(**EQUAL)["ml_tls"])
    assert abs(mean) < 0.02
    assert_ahead(efficiencies(shadowing_db=3.0), "joint_ml", "ml_tls", by=0.1)


def test_perfect_efficiency_of_one_stream_is_the_closed_form():
    arrays = run("bidirectional-5", 5, power_dbm=[30.0], scene={**EQUAL, "num_ue": 5})
    snr = 64 * 10 ** (0.1 * model.Scene().snr_db_at_0_db_gain - 0.1 * model.Scene().path_loss_db(300.0))
    np.testing.assert_allclose(arrays["perfect"][:, 0], np.log2(1 + snr), rtol=1e-9)


def test_the_power_of_the_distribution_must_be_one_of_the_sweep():
    with pytest.raises(ValueError, match=r"at_dbm=30\.0 must be one of"):
        run("bidirectional-5", 1, power_dbm=[35.0])


# -- figures 17 and 18 ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "ports"), [("bidirectional-17", 4), ("bidirectional-18", 2)])
def test_perfect_single_stream_adds_the_amplitudes_of_its_polarisation(name, ports):
    arrays = run(name, 5, scene={**PAIR, **EQUAL, "cross_polar_db": 90.0, "power_dbm": 110.0})
    np.testing.assert_allclose(arrays["perfect"], 90.7 + 20 * np.log10(ports), atol=0.01)


@pytest.mark.parametrize(("name", "loss"), [("bidirectional-17", 0.1), ("bidirectional-18", 0.1)])
def test_single_stream_loses_next_to_nothing_with_ml_tls_tracked_or_not(name, loss):
    arrays = run(name, 100)
    for key in ("joint_ml", "ml_tls", "tracked_wideband"):
        mean, error = lead(arrays["perfect"], arrays[key])
        assert 0 < mean + 3 * error < loss, key
        assert_ahead(arrays, key, "tls", by=0.2)
    for better, worse in (("tls", "spanning_tree"), ("tls", "argos"), ("tls", "argos_mean"), ("argos", "uncalibrated"),
                          ("argos", "tracked_one")):  # fmt: skip
        assert_ahead(arrays, better, worse)


# -- figures 19 and 20 ------------------------------------------------------------------------------------------------


def test_two_ports_have_no_rank_for_two_ues_and_four_have():
    arrays = run("bidirectional-19", 150)
    ratio = arrays["singular_db"].mean(axis=0)
    assert ratio[0] < -18 < -10 < ratio[1] < ratio[2] < -3
    for user in (0, 1):
        sinr = {key: values[..., user] for key, values in arrays.items() if key != "singular_db"}
        assert sinr["perfect"][:, 0].mean() < -5.0
        mean, error = lead(sinr["joint_ml"][:, 1], sinr["joint_ml"][:, 0])
        assert mean - 3 * error > 15.0
        # Power and coherence of twice the ports.
        mean, error = lead(sinr["joint_ml"][:, 2], sinr["joint_ml"][:, 1])
        assert 5.0 < mean - 3 * error < mean + 3 * error < 7.0
        assert_ahead({k: v[:, 2] for k, v in sinr.items()}, "ml_tls", "tls", by=3.0)
        assert sinr["uncalibrated"][:, 2].mean() < 1.0
    # The rank is one exactly where polarisations are strangers to each other.
    arrays = run("bidirectional-19", 3, scene={**PAIR, "cross_polar_db": 60.0, "power_dbm": 80.0})
    assert np.all(arrays["singular_db"][:, 0] < -50)


def test_one_port_calibrates_the_stream_of_its_polarisation_and_both_ports_both():
    arrays = run("bidirectional-20", 150)
    doubling = {key: np.diff(values, axis=1) for key, values in arrays.items() if key != "singular_db"}
    for port in (0, 1):
        own, other = (doubling[f"port_{port}"][..., stream] for stream in (port, 1 - port))
        for gain, low, high in ((own, 3.8, 5.2), (other, 0.0, 2.0), (doubling["both"][..., port], 5.0, 6.0)):
            mean, error = metrics.mean_and_standard_error(gain.mean(axis=1))
            assert low < mean - 3 * error < mean + 3 * error < high, (port, mean, error)
        mean, error = lead(arrays["perfect"][:, 2, port], arrays["both"][:, 2, port])
        assert mean + 3 * error < 2.0
        mean, error = lead(arrays["both"][:, 2, 1 - port], arrays[f"port_{port}"][:, 2, 1 - port])
        assert mean - 3 * error > 10.0


# -- figures 23 and 24 ------------------------------------------------------------------------------------------------


def test_without_line_of_sight_calibrated_ports_gain_6_db_and_uncalibrated_ones_their_power():
    arrays = run("bidirectional-23", 150)
    for key, low, high in (("ml_tls", 5.8, 7.0), ("uncalibrated", 3.0, 4.6)):
        mean, error = metrics.mean_and_standard_error(np.diff(arrays[key], axis=1).mean(axis=1))
        assert low < mean - 3 * error < mean + 3 * error < high, (key, mean, error)
    np.testing.assert_allclose(arrays["ml_tls"][:, 0], arrays["perfect"][:, 0], atol=1e-9)
    mean, error = lead(arrays["perfect"][:, -1], arrays["ml_tls"][:, -1])
    assert mean + 3 * error < 0.02


def test_the_distance_between_algorithms_grows_with_the_number_of_streams():
    arrays = run("bidirectional-24", 100)
    order = ["perfect", "joint_ml", "ml_tls", "tracked_wideband", "tls", "argos_mean", "spanning_tree", "argos",
             "uncalibrated"]  # fmt: skip
    for better, worse in itertools.pairwise(order):
        if (better, worse) != ("argos_mean", "spanning_tree"):
            for column in (1, 2):
                assert_ahead({key: values[:, column] for key, values in arrays.items()}, better, worse)
    for key in ("joint_ml", "ml_tls", "tls", "argos", "uncalibrated"):
        gap = arrays["perfect"] - arrays[key]
        for few, many in ((0, 1), (1, 2)):
            mean, error = lead(gap[:, many], gap[:, few])
            assert mean > 3 * error, key


# -- all --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_figures_summarise_to_json_and_plot(name):
    figure = experiments.figure(name)
    configuration, arrays = simulate(name, 4, json.dumps({"power_dbm": [30.0, 35.0]} if name == NAMES[0] else {}))
    summary = json.loads(json.dumps(figure.summarise(configuration, arrays)))
    assert "4 trials" in summary["caption"]
    assert "300 m" in summary["caption"] or "12 m" in summary["caption"]
    getattr(plotting, figure.plot)({**summary, "seed": 1}).canvas.draw()


@pytest.mark.parametrize("name", NAMES)
def test_trials_do_not_depend_on_their_neighbours(name):
    _, arrays = simulate(name, 4, json.dumps({"power_dbm": [30.0, 35.0]} if name == NAMES[0] else {}))
    figure = experiments.figure(name)
    configuration = {**figure.defaults, **({"power_dbm": [30.0, 35.0]} if name == NAMES[0] else {})}
    alone = figure.trial_chunk(configuration, [np.random.SeedSequence(1, spawn_key=(2,))])
    for key, values in alone.items():
        np.testing.assert_allclose(values[0], arrays[key][2], rtol=1e-6, err_msg=key)
