# SPDX-License-Identifier: GPL-3.0-or-later
"""Propagation between pairs of nodes, and the filters that make its delays."""

import numpy as np
import pytest
from gnuradio.dmimo.simulation.delays import HALF_WIDTH, delay_filters, filter_latency, shift_slowly
from gnuradio.dmimo.simulation.propagation import SPEED_OF_LIGHT_M_S, Geometric, Rayleigh, Site

SAMP_RATE = 1e6
A, B, C = Site("a", 2, 3, (0.0, 0.0, 0.0)), Site("b", 1, 4, (300.0, 0.0, 0.0)), Site("c", 1, 1, (0.0, 400.0, 0.0))
PASS_BAND = np.linspace(-0.4, 0.4, 161)


@pytest.mark.parametrize("model", [Rayleigh, Geometric])
def test_the_other_direction_is_the_transpose(model):
    there, back = (model(seed=1).paths(*pair, SAMP_RATE) for pair in ((A, B), (B, A)))
    assert there.gains.shape[:4] == (2, 3, 1, 4)
    assert np.array_equal(back.gains, there.gains.transpose(2, 3, 0, 1, 4))
    assert np.array_equal(back.delays_samples, there.delays_samples)


def test_pairs_and_seeds_are_independent_and_repeatable():
    draws = [Rayleigh(seed=seed).paths(A, other, SAMP_RATE).gains for seed, other in ((1, B), (1, C), (2, B))]
    assert len({d.flat[0] for d in draws}) == 3
    assert np.array_equal(Rayleigh(seed=1).paths(A, B, SAMP_RATE).gains, draws[0])


def test_rayleigh_is_circular_gaussian_of_unit_power():
    z = Rayleigh(seed=1).paths(Site("a", 1, 100), Site("b", 1, 100), SAMP_RATE).gains.ravel()
    tolerance = 4 / np.sqrt(z.size)
    assert abs(np.mean(np.abs(z) ** 2) - 1) < tolerance
    assert abs(np.mean(np.abs(z) ** 4) - 2) < tolerance * np.sqrt(20)
    assert abs(np.mean(z**2)) < tolerance * np.sqrt(2)


def test_taps_have_an_exponential_profile_of_unit_power():
    model = Rayleigh(seed=1, num_taps=4, delay_spread_s=2e-6)
    paths = model.paths(Site("a", 1, 100), Site("b", 1, 100), SAMP_RATE)
    power = np.mean(np.abs(paths.gains) ** 2, axis=(0, 1, 2, 3))
    profile = np.exp(-np.arange(4) / 2.0)
    np.testing.assert_allclose(power, profile / profile.sum(), rtol=4 / np.sqrt(10**4))
    assert np.array_equal(paths.delays_samples, np.arange(4))


@pytest.mark.parametrize("model", [Rayleigh, Geometric])
def test_pair_gain_works_in_either_order_and_blocked_pairs_are_silent(model):
    plain = model(seed=1).paths(A, B, SAMP_RATE).gains
    for key in ("a-b", "b-a"):
        loud = model(seed=1, path_gain_db=-4.0, pair_gain_db={key: 10.0}).paths(B, A, SAMP_RATE).transposed().gains
        np.testing.assert_allclose(loud, plain * 10 ** (6 / 20), rtol=1e-12)
    blocked = model(seed=1, blocked_pairs=[("b", "a")])
    assert not blocked.paths(A, B, SAMP_RATE).gains.any()
    assert blocked.paths(A, C, SAMP_RATE).gains.all()


@pytest.mark.parametrize("model", [Rayleigh, Geometric])
def test_coupling_is_reciprocal_of_the_stated_gain_and_belongs_to_its_node(model):
    site = Site("a", 5, 3)
    k = model(seed=1, coupling_db=-15.0).coupling(site)
    assert np.array_equal(k, k.T)
    assert not np.any(np.diag(k))
    np.testing.assert_allclose(np.abs(k[np.triu_indices(5, 1)]) ** 2, 10**-1.5, rtol=1e-12)
    others = [model(seed=s, coupling_db=-15.0).coupling(Site(name, 5)) for s, name in ((1, "b"), (2, "a"))]
    assert len({h[0, 1] for h in (k, *others)}) == 3
    assert model(seed=1).coupling(site) is None
    assert np.array_equal(model(seed=1, coupling_db=-15.0).paths(A, B, SAMP_RATE).gains,
                          model(seed=1).paths(A, B, SAMP_RATE).gains)


@pytest.mark.parametrize("coupling_db", [np.inf, np.nan])
def test_coupling_must_be_finite(coupling_db):
    with pytest.raises(ValueError, match="coupling_db"):
        Rayleigh(seed=1, coupling_db=coupling_db)


@pytest.mark.parametrize("model", [Rayleigh, Geometric])
def test_ports_of_different_polarisation_hear_each_other_weaker_in_both_directions(model):
    a, b = Site("a", 3, 2, (0.0, 0.0, 0.0)), Site("b", 2, 2, (300.0, 0.0, 0.0))
    plain = model(seed=1, coupling_db=-3.0)
    crossed = model(seed=1, coupling_db=-3.0, cross_polarisation_db=12.0)
    ratio = np.abs(crossed.paths(a, b, SAMP_RATE).gains / plain.paths(a, b, SAMP_RATE).gains) ** 2
    weak = 10**-1.2
    expected = np.array([[1, weak], [weak, 1], [1, weak]])[:, None, :, None, None]
    np.testing.assert_allclose(ratio, np.broadcast_to(expected, ratio.shape), rtol=1e-12)
    back = crossed.paths(b, a, SAMP_RATE).gains
    assert np.array_equal(back, crossed.paths(a, b, SAMP_RATE).transposed().gains)
    # Coupling within a node has its own gain.
    assert np.array_equal(crossed.coupling(a), plain.coupling(a))


@pytest.mark.parametrize("cross_polarisation_db", [np.inf, np.nan, -1.0])
def test_cross_polarisation_must_be_finite_and_not_negative(cross_polarisation_db):
    with pytest.raises(ValueError, match="cross_polarisation_db"):
        Rayleigh(seed=1, cross_polarisation_db=cross_polarisation_db)


@pytest.mark.parametrize("model", [Rayleigh, Geometric])
def test_the_first_delay_is_the_distance_over_the_speed_of_light(model):
    assert model(seed=1, delays=True).paths(A, B, SAMP_RATE).delays_samples[0] == pytest.approx(
        300 / SPEED_OF_LIGHT_M_S * SAMP_RATE
    )
    assert model(seed=1).paths(A, B, SAMP_RATE).delays_samples[0] == 0.0


def test_scattered_paths_are_longer_than_the_line_of_sight():
    delays = Geometric(seed=1, delays=True).paths(A, B, SAMP_RATE).delays_samples
    assert np.all(delays[1:] > delays[0])


def test_mean_power_of_the_geometric_model_is_one():
    rng = np.random.default_rng(1)
    power = []
    for seed in range(400):
        b = Site("b", 1, 4, tuple(rng.uniform(-50, 50, 3)))
        power.append(np.mean(np.abs(Geometric(seed=seed, rice_factor_db=0.0).paths(A, b, 1.0).gains.sum(axis=-1)) ** 2))
    assert abs(np.mean(power) - 1) < 4 * np.std(power) / np.sqrt(400)


def test_line_of_sight_is_the_product_of_two_steering_vectors():
    # From the origin, b lies at 30 degrees off broadside (x) towards the array's axis (y): phase step pi sin(30).
    a = Site("a", 1, 8, (0.0, 0.0, 0.0))
    b = Site("b", 1, 4, (100 * np.cos(np.pi / 6), 50.0, 0.0))
    h = Geometric(seed=1, num_paths=0).paths(a, b, SAMP_RATE).gains[0, :, 0, :, 0]
    expected = np.exp(1j * np.pi / 2 * np.arange(8))[:, None] * np.exp(-1j * np.pi / 2 * np.arange(4))
    np.testing.assert_allclose(h / h[0, 0], expected, atol=1e-12)
    assert abs(h[0, 0]) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"blocked_pairs": [("a", "z")]}, "blocked_pairs"),
        ({"blocked_pairs": [("a", "a")]}, "blocked_pairs"),
        ({"pair_gain_db": {"a-z": 1.0}}, "a-z"),
    ],
)
def test_unknown_names_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Rayleigh(seed=1, **arguments).check_names(["a", "b"])


@pytest.mark.parametrize("arguments", [{"num_taps": 0}, {"num_taps": 2}, {"num_taps": 2, "delay_spread_s": -1.0}])
def test_rayleigh_refuses_bad_taps(arguments):
    with pytest.raises(ValueError, match="num_taps"):
        Rayleigh(seed=1, **arguments)


def test_integer_delays_are_deltas_without_latency():
    delays = np.array([[0.0, 3.0], [7.0, 1.0]])
    assert filter_latency(delays) == 0
    filters = delay_filters(delays, 0)
    assert np.array_equal(filters, np.arange(8) == delays[..., None])


def test_negative_delays_need_latency():
    assert filter_latency(np.array([-2.0, 5.0])) == 2
    assert filter_latency(np.array([-1.5])) == 2 + HALF_WIDTH - 1
    with pytest.raises(ValueError, match="latency=1"):
        delay_filters(np.array([-2.0]), 1)


@pytest.mark.parametrize("delay", [0.01, 0.25, 0.5, 0.77, 3.3, -1.4])
def test_fractional_delays_are_exact_in_the_pass_band(delay):
    latency = filter_latency(np.array([delay]))
    taps = delay_filters(np.array([delay]), latency)[0]
    response = np.exp(-2j * np.pi * np.outer(PASS_BAND, np.arange(len(taps)))) @ taps
    ideal = np.exp(-2j * np.pi * PASS_BAND * (delay + latency))
    assert np.max(np.abs(response - ideal)) < 4e-4


@pytest.mark.parametrize("rate", [2e-5, -2e-5])
def test_a_slowly_changing_delay_stretches_a_tone(rate):
    cycles, num, past = 0.31, 512, 80
    n = np.arange(-past, num)
    tone = np.exp(2j * np.pi * cycles * n).astype(np.complex64)
    first = 20.3
    y = shift_slowly(tone[None], first, first + rate * num, num)[0]
    expected = np.exp(2j * np.pi * cycles * (n[past:] - first - rate * n[past:]))
    assert np.max(np.abs(y - expected)) < 5e-4
