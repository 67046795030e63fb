# SPDX-License-Identifier: GPL-3.0-or-later
import itertools

import numpy as np
import pytest
from gnuradio.dmimo.core import metrics
from gnuradio.dmimo.core import synchronization_energy as energy
from gnuradio.dmimo.core.carrier_model import wrap
from gnuradio.dmimo.core.carrier_tracking import CarrierTracker
from gnuradio.dmimo.core.graph import DisconnectedGraphError, components
from gnuradio.dmimo.core.graph_synchronization import graph_phase_crlb, link_information, synchronise_graph
from gnuradio.dmimo.core.graph_tracking import GraphTracker
from gnuradio.dmimo.simulation.oscillators import Oscillator, OscillatorBank
from scipy.optimize import minimize

SAMP_RATE = 1e6


def symmetric(values):
    upper = np.triu(values, 1)
    return upper + np.swapaxes(upper, -2, -1)


def graph_of(num_nodes, edges):
    out = np.zeros((num_nodes, num_nodes))
    for (i, j), value in edges.items():
        out[i, j] = out[j, i] = value
    return out


def measure(rng, phi, variance):
    """One measurement of each pair: phi_i - phi_j + noise, antisymmetric."""
    noise = np.triu(rng.standard_normal(variance.shape) * np.sqrt(np.where(np.isfinite(variance), variance, 0.0)), 1)
    return wrap(phi[..., :, None] - phi[..., None, :] + noise - np.swapaxes(noise, -2, -1))


def halls(rng, num, num_nodes=12, shadowing_db=8.0):
    """Link qualities (num, M, M) of access points in a hall of 60 x 30 m: exponent 3, log-normal shadowing."""
    place = rng.uniform(0, 1, (num, num_nodes, 2)) * [60, 30]
    distance = np.linalg.norm(place[:, :, None] - place[:, None], axis=-1)
    loss_db = 30 * np.log10(np.maximum(distance, 3.0)) + rng.normal(0, shadowing_db, distance.shape)
    return symmetric(10 ** (-loss_db / 10)) * 1e5


def test_without_noise_all_phases_are_exact_on_any_connected_graph():
    rng = np.random.default_rng(1)
    phi = rng.uniform(-np.pi, np.pi, (50, 9))
    ring = graph_of(9, {(k, (k + 1) % 9): 1.0 for k in range(9)})
    chain = graph_of(9, {(k, k + 1): 10.0 ** (k - 4) for k in range(8)})
    for weights in (np.ones((9, 9)), ring, chain):
        variance = 1e-3 / np.where(weights > 0, weights, np.nan)
        found = synchronise_graph(measure(rng, phi, np.where(weights > 0, 0.0, np.nan)), variance, leader=4)
        np.testing.assert_allclose(wrap(found.phase_rad - (phi[:, 4:5] - phi)), 0, atol=1e-9)
        assert np.all(found.phase_rad[:, 4] == 0)


def test_a_follower_that_turns_by_its_phase_is_aligned_with_the_leader():
    # c_X = t_1 / r_1, phi_X its angle; the follower's transmission times e^{+j phi}, phi = phi_A - phi_B.
    rng = np.random.default_rng(2)
    c = np.exp(1j * rng.uniform(-np.pi, np.pi, 5))
    measured = np.angle(c[:, None] * c.conj())
    found = synchronise_graph(measured, 0.01, leader=2)
    np.testing.assert_allclose(c * np.exp(1j * found.phase_rad), c[2], atol=1e-12)


def test_errors_have_the_bound_as_covariance_and_squared_residuals_the_degrees_of_freedom():
    rng = np.random.default_rng(3)
    information = symmetric(10 ** rng.uniform(2, 4, (7, 7)) * (rng.random((7, 7)) < 0.7))
    variance = 1.0 / np.where(information > 0, information, np.nan)
    phi = rng.uniform(-np.pi, np.pi, (4000, 7))
    found = synchronise_graph(measure(rng, phi, np.broadcast_to(variance, (4000, 7, 7))), variance, leader=1)
    error = wrap(found.phase_rad - (phi[:, 1:2] - phi))
    bound = graph_phase_crlb(information, leader=1)
    np.testing.assert_allclose(found.covariance[0], bound, rtol=1e-9, atol=1e-15)
    whitener = np.linalg.inv(np.linalg.cholesky(np.delete(np.delete(bound, 1, 0), 1, 1)))
    white = np.delete(error, 1, axis=1) @ whitener.T
    # Entries of a sample covariance of 4000 white errors deviate by 1/sqrt(4000), on the diagonal by sqrt(2) of it.
    np.testing.assert_allclose(white.T @ white / 4000, np.eye(6), atol=5 * np.sqrt(2 / 4000))
    loops = np.triu(information > 0).sum() - 6
    assert abs(found.misfit.mean() - 1) < 4 * np.sqrt(2 / loops / 4000) + 1e-2
    assert found.trusted.mean() > 0.999


def test_is_least_squares_of_an_independent_solver():
    rng = np.random.default_rng(4)
    information = symmetric(10 ** rng.uniform(0, 3, (6, 6)))
    phi = rng.uniform(-np.pi, np.pi, 6)
    measured = measure(rng, phi, 1.0 / np.where(information > 0, information, np.nan))

    def cost(x):
        theta = np.concatenate([[0.0], x])
        return (information * (1 - np.cos(np.where(information > 0, measured, 0) - theta[:, None] + theta))).sum()

    found = synchronise_graph(measured, 1.0 / np.where(information > 0, information, np.nan))
    best = minimize(cost, phi[1:] - phi[0], method="BFGS", options={"gtol": 1e-9})
    np.testing.assert_allclose(wrap(found.phase_rad[1:] + best.x), 0, atol=1e-6)


def test_a_ring_does_not_end_in_a_winding_phase():
    rng = np.random.default_rng(5)
    ring = graph_of(12, {(k, (k + 1) % 12): 0.05 for k in range(12)})
    variance = np.where(ring > 0, ring, np.inf)
    phi = rng.uniform(-np.pi, np.pi, (500, 12))
    found = synchronise_graph(measure(rng, phi, np.broadcast_to(variance, (500, 12, 12))), variance)
    # A phase that winds once leaves residuals of 2 pi / 12: cost of about 2 (1 - cos) 12 / 0.05 = 64, misfit 64.
    assert np.all(found.misfit < 25)
    error = wrap(found.phase_rad - (phi[:, :1] - phi))
    assert np.sqrt(np.mean(error**2)) < 1.1 * np.sqrt(np.diagonal(found.covariance, axis1=1, axis2=2).mean())


def test_one_order_of_a_pair_is_enough_and_contradicting_orders_raise():
    rng = np.random.default_rng(6)
    variance = symmetric(rng.uniform(0.01, 0.1, (4, 4)))
    measured = measure(rng, rng.uniform(-3, 3, 4), variance)
    both = synchronise_graph(measured, variance)
    upper = np.where(np.triu(np.ones((4, 4))) > 0, variance, np.inf)
    for given in (upper, upper.T):
        once = synchronise_graph(np.where(np.isfinite(given), measured, np.nan), given)
        np.testing.assert_allclose(once.phase_rad, both.phase_rad, atol=1e-12)
        np.testing.assert_allclose(once.covariance, both.covariance)
    for wrong in (-measured * np.tri(4) + measured * (1 - np.tri(4)), np.abs(measured)):
        with pytest.raises(ValueError, match="both orders"):
            synchronise_graph(wrong, variance)
    with pytest.raises(ValueError, match="must be positive"):
        synchronise_graph(measured, 0.0 * variance)
    with pytest.raises(ValueError, match="leader=4"):
        synchronise_graph(measured, variance, leader=4)


def test_a_graph_in_parts_raises_with_the_parts():
    pairs = graph_of(5, {(0, 2): 1.0, (1, 3): 1.0, (3, 4): 1.0})
    with pytest.raises(DisconnectedGraphError, match=r"\{0, 2\}, \{1, 3, 4\}"):
        synchronise_graph(np.zeros((5, 5)), np.where(pairs > 0, 0.1, np.inf))
    with pytest.raises(DisconnectedGraphError):
        energy.allocate_energy(pairs)
    with pytest.raises(DisconnectedGraphError):
        energy.best_star(graph_of(4, {(0, 1): 1.0, (1, 2): 1.0, (2, 3): 1.0}))


def test_loops_that_contradict_each_other_and_far_nodes_are_flagged():
    rng = np.random.default_rng(7)
    variance = np.full((5, 5), 1e-3)
    variance[4] = variance[:, 4] = 3.0
    measured = measure(rng, rng.uniform(-3, 3, 5), np.full((5, 5), 1e-3))
    np.testing.assert_array_equal(synchronise_graph(measured, variance).trusted, [True] * 4 + [False])
    measured[0, 1] += 1.0
    measured[1, 0] -= 1.0
    assert not synchronise_graph(measured, variance).trusted.any()


def test_link_information_is_the_high_snr_limit_of_the_pair_bound():
    lam, noise, gain_a, gain_b, num, antennas = 50.0, 1e-9, 1.3, 0.6, 100, 16
    c = 1 / (gain_b * lam + antennas * noise)
    bound = noise * (1 + c * gain_a * lam) / (2 * num * c * gain_a * gain_b * lam**2)
    found = 1 / (2 * num * link_information(lam, noise, gain_a=gain_a, gain_b=gain_b))
    np.testing.assert_allclose(found, bound, rtol=1e-6)


@pytest.mark.parametrize("leader", [None, 1])
def test_the_best_star_is_that_of_an_independent_search(leader):
    quality = symmetric(10 ** np.random.default_rng(8).uniform(0, 2, (5, 5)))
    plan = energy.best_star(quality, 3.0, leader=leader)

    def error(logs, centre):
        share = np.exp(logs) / np.exp(logs).sum()
        edges = {(centre, j): 3.0 * e for j, e in zip(np.delete(np.arange(5), centre), share, strict=True)}
        return energy.mean_error(graph_of(5, edges) * quality, leader=leader)

    centres = range(5) if leader is None else [leader]
    least = min(minimize(error, np.zeros(4), args=(k,), options={"gtol": 1e-10}).fun for k in centres)
    np.testing.assert_allclose(plan.error, least, rtol=1e-6)
    np.testing.assert_allclose(np.triu(plan.energy).sum(), 3.0)
    np.testing.assert_allclose(energy.mean_error(plan.energy * quality, leader=leader), plan.error)


@pytest.mark.parametrize("leader", [None, 0])
def test_allocated_energies_are_optimal_within_the_stated_gap(leader):
    quality = symmetric(10 ** np.random.default_rng(9).uniform(0, 2, (4, 4)))
    plan = energy.allocate_energy(quality, 2.0, leader=leader, tolerance=1e-3)
    pairs = list(itertools.combinations(range(4), 2))

    def error(logs):
        share = 2.0 * np.exp(logs) / np.exp(logs).sum()
        return energy.mean_error(graph_of(4, dict(zip(pairs, share, strict=True))) * quality, leader=leader)

    least = min(minimize(error, start, options={"gtol": 1e-9}).fun
                for start in np.random.default_rng(1).normal(0, 1, (5, 6)))
    np.testing.assert_allclose(np.triu(plan.energy).sum(), 2.0)
    assert -1e-6 < plan.error / least - 1 <= plan.gap + 1e-6
    assert plan.gap < 0.02


@pytest.mark.parametrize("leader", [None, 0])
def test_the_best_tree_is_that_of_an_exhaustive_search(leader):
    for seed in range(5):
        quality = symmetric(10 ** np.random.default_rng(seed).uniform(0, 3, (5, 5)))
        least = np.inf
        for pairs in itertools.combinations(itertools.combinations(range(5), 2), 4):
            if len(components(graph_of(5, dict.fromkeys(pairs, 1.0)))) > 1:
                continue
            cost = 0.0
            for pair in pairs:
                parts = components(graph_of(5, {other: 1.0 for other in pairs if other != pair}))
                # Nodes on one side times on the other, or followers on the side without the leader.
                size = len(parts[0]) * len(parts[1]) / 25 if leader is None else len(parts[1]) / 4
                cost += np.sqrt(size / quality[pair])
            least = min(least, cost**2)
        np.testing.assert_allclose(energy.best_tree(quality, leader=leader).error, least, rtol=1e-9)


def test_on_equal_links_a_graph_saves_what_the_closed_forms_say():
    # Star (M-1)^3/M^2, complete graph (M-1)^2/(2M), both over M k: 2.63 dB for twelve nodes.
    equal = np.ones((12, 12))
    star, graph = energy.best_star(equal), energy.allocate_energy(equal)
    np.testing.assert_allclose(star.error, 11**3 / 144, rtol=1e-12)
    np.testing.assert_allclose(graph.error, 121 / 24, rtol=1e-6)
    # What it saves is the noise of a common leader: relative to that, equal energy on all pairs is no better.
    relative = [energy.mean_error(plan.energy, leader=0) for plan in (graph, star)]
    np.testing.assert_allclose(relative[0], relative[1], rtol=1e-6)


def test_twelve_access_points_on_uneven_links_are_synchronised_better_by_the_graph_than_by_the_best_star():
    rng = np.random.default_rng(12)
    num = 60
    quality = halls(rng, num)
    star, graph = energy.best_star(quality), energy.allocate_energy(quality)
    # Total energy for an error of the star of 0.01 rad^2, the same for the graph.
    total = star.error / 0.01
    phi = rng.uniform(-np.pi, np.pi, (num, 12))
    errors = []
    for plan in (star, graph):
        information = plan.energy * quality * total[:, None, None]
        variance = np.where(information > 0, 1.0 / np.where(information > 0, information, 1.0), np.inf)
        found = [synchronise_graph(measure(rng, phi, variance), variance) for _ in range(8)]
        errors.append(np.mean([metrics.alignment_error(np.exp(1j * (phi + one.phase_rad)), np.ones(12))
                               for one in found], axis=0))
    gain_db = -10 * np.log10(errors[1] / errors[0])
    mean, error = gain_db.mean(), gain_db.std(ddof=1) / np.sqrt(num)
    assert mean - 4 * error > 9.0
    predicted_db = 10 * np.log10(star.error / graph.error)
    # Errors of 8 measurements with some ten effective degrees of freedom: 0.8 dB each, twice.
    assert abs(mean - predicted_db.mean()) < 4 * 1.2 / np.sqrt(num) + 0.1
    assert np.all(predicted_db > 2.6)
    assert np.all(graph.gap < 0.05)


def test_every_pair_with_energy_has_a_sounding_node():
    quality = halls(np.random.default_rng(13), 1)[0]
    assert energy.sounding_nodes(energy.best_star(quality).energy).sum() == 1
    plan = energy.allocate_energy(quality)
    sounding = energy.sounding_nodes(plan.energy)
    assert np.all((plan.energy == 0) | sounding[:, None] | sounding)
    assert sounding.sum() < 12


# ---- tracking ----

NODE = {"linewidth_hz": 2e-4, "drift_hz": 0.03, "drift_period_s": 20.0}


def run_both(events):
    """The same exchanges of two nodes through both trackers; yields (event, applied, predictions) of each."""
    pair = CarrierTracker(SAMP_RATE, linewidth_hz=4e-4, drift_hz=0.05 * np.sqrt(2), drift_period_s=20.0,
                          offset_std_hz=3 * np.sqrt(2))
    graph = GraphTracker(SAMP_RATE, num_nodes=2, linewidth_hz=2e-4, drift_hz=0.05, drift_period_s=20.0,
                         offset_std_hz=3.0)
    for phase, std, sample, frequency, frequency_std in events:
        one = pair.update(phase, std, sample, frequency, frequency_std)
        upper = np.triu(np.ones((2, 2)), 1) > 0
        two = graph.update(np.where(upper, phase, 0.0), np.where(upper, std**2, np.inf), sample,
                           np.where(upper, frequency, 0.0), np.where(upper, frequency_std**2, np.inf))
        known = pair.predict(sample + 10), graph.predict(sample + 10)
        yield str(pair.events), graph.event, bool(one), bool(two[0, 1]), *known


def test_two_nodes_are_a_pair():
    rng = np.random.default_rng(14)
    events = [(rng.normal(0, 0.1), 0.05, 1000 + 300_000 * k, rng.normal(0, 0.1), rng.choice([0.1, np.inf]))
              for k in range(20)]
    events += [(3.0, 0.05, 6_400_000, 0.0, np.inf), (0.0, 0.05, 6_500_000, 5.0, 0.1), (0.0, 0.05, 6_600_000, 0.0, 0.1)]
    events += [(1.0, 0.05, 200_000_000, 0.0, np.inf)]
    seen = []
    for name, other, one, two, pair, graph in run_both(events):
        seen.append(other)
        assert (name, one) == (other, two)
        np.testing.assert_allclose(wrap(pair.phase_rad - graph.phase_rad[1]), 0, atol=1e-8)
        np.testing.assert_allclose(pair.phase_std_rad, graph.phase_std_rad[1], rtol=1e-6)
        np.testing.assert_allclose(pair.frequency_hz, graph.frequency_hz[1], atol=1e-8)
        np.testing.assert_allclose(pair.frequency_std_hz, graph.frequency_std_hz[1], rtol=1e-6)
    assert seen[-4:] == ["gated", "gated", "applied", "restarted"]


class SimulatedNodes:
    """Phases 2 theta of nodes of many networks, from the simulation's oscillators."""

    def __init__(self, num, num_nodes, seed):
        cfo = np.random.default_rng(seed).normal(0, 1.0, (num, num_nodes))
        self.shape = (num, num_nodes)
        self._bank = OscillatorBank([Oscillator(samp_rate=SAMP_RATE, seed_key=(seed, *place), cfo_hz=cfo[place], **NODE)
                                     for place in np.ndindex(num, num_nodes)], 1)

    def phases(self, block):
        return 2 * self._bank.grid_phase(block, 1)[0][:, 0].reshape(self.shape)


def test_predicted_covariances_are_those_of_simulated_oscillators_on_a_ring_measured_in_turns():
    num, num_nodes, rng = 30, 5, np.random.default_rng(15)
    nodes = SimulatedNodes(num, num_nodes, 15)
    ring = graph_of(num_nodes, {(k, (k + 1) % num_nodes): 1.0 for k in range(num_nodes)})
    trackers = [GraphTracker(SAMP_RATE, num_nodes=num_nodes, offset_std_hz=1.0, leader=2, **NODE) for _ in range(num)]
    blocks = np.cumsum([100, 40, 400, 1500, *[1500] * 12])
    normalised = []
    for step, block in enumerate(blocks):
        phi = nodes.phases(int(block))
        # All pairs at first, then two or three of the ring in turns.
        chosen = ring if step < 4 else ring * ((np.add.outer(np.arange(5), np.arange(5)) + step) % 2)
        variance = np.where(chosen > 0, 0.03**2, np.inf)
        measured = measure(rng, phi, np.broadcast_to(variance, (num, num_nodes, num_nodes)))
        for k, tracker in enumerate(trackers):
            known = tracker.predict(256 * int(block))
            if step > 5:
                others = np.delete(np.arange(num_nodes), 2)
                error = wrap(known.phase_rad - (phi[k, 2] - phi[k]))[others]
                normalised.append(error @ np.linalg.solve(known.covariance[np.ix_(others, others)], error) / 4)
            tracker.update(measured[k], variance, 256 * int(block))
    per_network = np.reshape(normalised, (-1, num)).mean(axis=0)
    error = per_network.std(ddof=1) / np.sqrt(num)
    assert abs(per_network.mean() - 1) < 4 * error < 0.3


def test_a_node_that_jumps_is_refused_and_then_believed_and_others_go_on():
    tracker = GraphTracker(SAMP_RATE, num_nodes=4, offset_std_hz=0.1, linewidth_hz=1e-4)
    phi, variance = np.array([0.0, 1.0, 2.0, -2.0]), 1e-4
    names = []
    for k in range(8):
        now = phi + (np.array([0, 0, 0, 1.0]) if k >= 4 else 0.0)
        applied = tracker.update(wrap(now[:, None] - now), variance, 100_000 * k)
        names.append(tracker.event)
        if k == 4:
            np.testing.assert_array_equal(applied[:3, :3], ~np.eye(3, dtype=bool))
            assert not applied[3].any()
    assert names == ["started", *["applied"] * 5, "lost", "applied"]
    np.testing.assert_allclose(wrap(tracker.predict(700_000).phase_rad + phi + [0, 0, 0, 1]), 0, atol=0.02)


def test_a_part_of_the_graph_is_not_enough_to_start_and_not_to_unwrap():
    tracker = GraphTracker(SAMP_RATE, num_nodes=3, offset_std_hz=0.5, linewidth_hz=0.0)
    part = np.where(graph_of(3, {(0, 1): 1.0}) > 0, 1e-4, np.inf)
    with pytest.raises(DisconnectedGraphError):
        tracker.update(np.zeros((3, 3)), part, 0)
    assert tracker.update(np.zeros((3, 3)), 1e-4, 0).sum() == 6
    assert not tracker.update(np.zeros((3, 3)), part, 1_000_000).any()
    assert tracker.event == "ambiguous"
    assert not tracker.update(np.zeros((3, 3)), np.inf, 1_000_000).any()
    assert tracker.event == "untrusted"
    assert tracker.update(np.ones((3, 3)) * 0, 1e-4, 1_000_000).all(where=~np.eye(3, dtype=bool))
    assert tracker.event == "restarted"
    assert not tracker.update(np.zeros((3, 3)), 1e-4, 999_999).any()
    assert tracker.event == "late"


def test_retune_and_advance_of_nodes_move_the_prediction():
    tracker = GraphTracker(SAMP_RATE, num_nodes=3, offset_std_hz=1.0, linewidth_hz=0.0)
    f, phi = np.array([0.3, -0.2, 0.1]), np.array([0.1, 0.7, -0.4])
    tracker.update(phi[:, None] - phi, 1e-8, 0, f[:, None] - f, 1e-8)
    at = tracker.predict(1_000_000)
    np.testing.assert_allclose(at.phase_rad, wrap(phi[0] - phi + 4 * np.pi * (f[0] - f)), atol=3e-3)
    tracker.retune(f[0] - f, 1_000_000)
    np.testing.assert_allclose(wrap(tracker.predict(9_000_000).phase_rad - at.phase_rad), 0, atol=1e-2)
    tracker.advance(tracker.predict(9_000_000).phase_rad)
    np.testing.assert_allclose(tracker.predict(9_000_000).phase_rad, 0, atol=1e-9)


def test_a_batch_gives_what_each_graph_gives_alone():
    rng = np.random.default_rng(21)
    quality = halls(rng, 4, num_nodes=6)
    together, stars = energy.allocate_energy(quality), energy.best_star(quality)
    phi = rng.uniform(-np.pi, np.pi, (4, 6))
    variance = 0.01 / np.where(quality > 0, quality / quality.max(), np.nan)
    measured = measure(rng, phi, variance)
    found = synchronise_graph(measured, variance, leader=3)
    for k in range(4):
        np.testing.assert_allclose(energy.allocate_energy(quality[k]).energy, together.energy[k], rtol=1e-9)
        np.testing.assert_allclose(energy.best_star(quality[k]).error, stars.error[k], rtol=1e-9)
        alone = synchronise_graph(measured[k], variance[k], leader=3)
        np.testing.assert_allclose(wrap(alone.phase_rad - found.phase_rad[k]), 0, atol=1e-9)
        np.testing.assert_allclose(alone.phase_std_rad, found.phase_std_rad[k])
