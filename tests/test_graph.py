# SPDX-License-Identifier: GPL-3.0-or-later
"""Graph routines against textbook graphs, brute force and SciPy."""

import itertools

import numpy as np
import pytest
from gnuradio.dmimo.core import graph
from scipy.sparse.csgraph import minimum_spanning_tree


def random_weights(rng, num_nodes, density=1.0, batch=()):
    w = rng.gamma(2.0, size=(*batch, num_nodes, num_nodes)) * (rng.random((num_nodes, num_nodes)) < density)
    w = np.triu(w, 1)
    w += np.swapaxes(w, -2, -1)
    ring = np.arange(num_nodes)
    w[..., ring, ring - 1] = w[..., ring - 1, ring] = 1.0
    return w


def chain(conductances):
    w = np.zeros((len(conductances) + 1,) * 2)
    k = np.arange(len(conductances))
    w[k, k + 1] = w[k + 1, k] = conductances
    return w


def test_components_lists_every_node_once():
    edges = np.zeros((5, 5), bool)
    edges[0, 3] = edges[3, 0] = edges[1, 4] = edges[4, 1] = True
    assert graph.components(edges) == ((0, 3), (1, 4), (2,))


def test_disconnected_graph_names_its_components():
    edges = np.ones((3, 4, 4), bool)
    edges[1, :2, 2:] = edges[1, 2:, :2] = False
    with pytest.raises(graph.DisconnectedGraphError, match=r"\{0, 1\}, \{2, 3\}") as caught:
        graph.require_connected(edges)
    assert caught.value.components == ((0, 1), (2, 3))


def test_connected_graph_without_a_star_passes():
    graph.require_connected(chain([1.0, 1.0, 1.0]) > 0)


def test_pseudo_inverse_equals_numpy():
    w = random_weights(np.random.default_rng(1), 7, 0.4, (3,))
    np.testing.assert_allclose(graph.laplacian_pinv(w), np.linalg.pinv(graph.laplacian(w)), atol=1e-12)


def test_diagonal_of_weights_is_ignored():
    w = random_weights(np.random.default_rng(2), 5)
    np.testing.assert_array_equal(graph.laplacian(w + 3.0 * np.eye(5)), graph.laplacian(w))


def test_solution_of_the_laplacian_has_zero_sum_and_solves():
    rng = np.random.default_rng(3)
    w = random_weights(rng, 9, 0.3, (2,))
    b = rng.normal(size=(2, 9, 2))
    b -= b.mean(axis=1, keepdims=True)
    x = graph.solve_laplacian(w, b)
    np.testing.assert_allclose(graph.laplacian(w) @ x, b, atol=1e-12)
    np.testing.assert_allclose(x.sum(axis=1), 0.0, atol=1e-12)


def test_effective_resistance_of_a_chain_adds_and_of_a_ring_is_in_parallel():
    conductances = np.array([1.0, 2.0, 4.0])
    resistance = graph.effective_resistance(chain(conductances))
    assert resistance[0, 3] == pytest.approx(1.75)
    assert resistance[1, 2] == pytest.approx(0.5)
    ring = chain(np.ones(5))
    ring[0, 5] = ring[5, 0] = 1.0
    assert graph.effective_resistance(ring)[0, 2] == pytest.approx(2 * 4 / 6)


@pytest.mark.parametrize("num_nodes", [2, 5, 12])
def test_maximum_spanning_tree_has_the_weight_that_scipy_finds(num_nodes):
    rng = np.random.default_rng(num_nodes)
    w = random_weights(rng, num_nodes, 0.5, (4,))
    order, parent = graph.maximum_spanning_tree(w, root=1)
    for k in range(4):
        ours = w[k][graph.tree_mask(order[k], parent[k])].sum() / 2
        # SciPy minimises; weights are shifted to stay positive, and a tree has num_nodes - 1 edges.
        shifted = np.where(w[k] > 0, 100.0 - w[k], 0.0)
        assert ours == pytest.approx(100.0 * (num_nodes - 1) - minimum_spanning_tree(shifted).sum())
        seen = {1}
        for node in order[k, 1:]:
            assert parent[k, node] in seen
            seen.add(node)


def test_spanning_tree_of_a_disconnected_graph_raises():
    w = np.zeros((4, 4))
    w[0, 1] = w[1, 0] = w[2, 3] = w[3, 2] = 1.0
    with pytest.raises(graph.DisconnectedGraphError):
        graph.maximum_spanning_tree(w)


def test_product_along_a_tree_recovers_the_values():
    rng = np.random.default_rng(4)
    value = rng.normal(size=(3, 8)) + 1j * rng.normal(size=(3, 8))
    w = random_weights(rng, 8, 0.4, (3,))
    order, parent = graph.maximum_spanning_tree(w, root=2)
    product = graph.tree_product(value[:, :, None] / value[:, None, :], order, parent)
    np.testing.assert_allclose(product, value / value[:, 2:3], rtol=1e-12)


# --- which pairs to measure ---


def trace(w, chosen):
    return np.trace(graph.laplacian_pinv(w * chosen))


def as_mask(num_nodes, edges):
    out = np.zeros((num_nodes, num_nodes), bool)
    for i, j in edges:
        out[i, j] = out[j, i] = True
    return out


def test_greedy_choice_is_close_to_the_best_of_all_choices():
    rng = np.random.default_rng(5)
    edges = list(itertools.combinations(range(5), 2))
    excess = []
    for _ in range(6):
        w = random_weights(rng, 5)
        for budget in (4, 5, 7):
            masks = (as_mask(5, chosen) for chosen in itertools.combinations(edges, budget))
            best = min(trace(w, m) for m in masks if len(graph.components(m)) == 1)
            chosen = graph.choose_pairs(w, budget)
            assert chosen.sum() == 2 * budget
            assert len(graph.components(chosen)) == 1
            excess.append(trace(w, chosen) / best - 1)
    assert min(excess) > -1e-9
    assert max(excess) < 0.15
    assert np.mean(excess) < 0.03


def test_greedy_choice_beats_random_and_strongest_pairs():
    rng = np.random.default_rng(6)
    num_nodes, budget = 12, 20
    upper = np.triu_indices(num_nodes, 1)
    for _ in range(4):
        # Path gains spread by 6 dB, so that the strongest pairs cluster.
        gain = rng.lognormal(0.0, 0.7, num_nodes)
        w = random_weights(rng, num_nodes) * gain[:, None] * gain
        ours = trace(w, graph.choose_pairs(w, budget))
        tree = graph.tree_mask(*graph.maximum_spanning_tree(w))

        def completed(order, tree=tree):
            """The spanning tree (both rivals need one too) plus the first pairs in this order."""
            extra = [k for k in order if not tree[upper[0][k], upper[1][k]]][: budget - num_nodes + 1]
            return tree | as_mask(num_nodes, [(upper[0][k], upper[1][k]) for k in extra])

        strongest = completed(np.argsort(-w[upper]))
        randoms = [trace(w, completed(rng.permutation(len(upper[0])))) for _ in range(50)]
        assert ours < 0.8 * trace(w, strongest)
        assert ours < min(randoms)


def test_choice_refuses_what_cannot_work():
    w = random_weights(np.random.default_rng(7), 5)
    with pytest.raises(ValueError, match="budget = 3"):
        graph.choose_pairs(w, 3)
    w[:2, 2:] = w[2:, :2] = 0.0
    with pytest.raises(graph.DisconnectedGraphError):
        graph.choose_pairs(w, 8)


def test_choice_never_takes_a_pair_that_cannot_be_measured():
    w = random_weights(np.random.default_rng(8), 6, 0.4)
    chosen = graph.choose_pairs(w, 15)
    np.testing.assert_array_equal(chosen, w > 0)
