# SPDX-License-Identifier: GPL-3.0-or-later
"""Weighted graphs of measured pairs: components, Laplacians, spanning trees, and which pairs to measure.

A calibration network is a graph: nodes are ports, an edge is a pair measured in both directions, and its weight is
the information that the pair gives about the ratio of its two coefficients. All functions take weights
``(..., M, M)``, symmetric, non-negative, zero where there is no edge; the diagonal is ignored.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import connected_components, dijkstra


class DisconnectedGraphError(ValueError):
    """The measured pairs do not join all nodes, so the ratio between the parts cannot be known.

    Attributes
    ----------
    components : tuple of tuple of int
        The nodes of each connected part, in ascending order.
    """

    def __init__(self, parts: tuple[tuple[int, ...], ...]):
        self.components = parts
        listed = ", ".join("{" + ", ".join(map(str, part)) + "}" for part in parts)
        super().__init__(f"the graph of measured pairs is not connected; its components are {listed}")


def components(edges: ArrayLike) -> tuple[tuple[int, ...], ...]:
    """Nodes of each connected component of ``edges`` (M, M), ordered by their smallest node."""
    _, label = connected_components(np.asarray(edges, bool), directed=False)
    return tuple(tuple(np.flatnonzero(label == k).tolist()) for k in range(label.max(initial=-1) + 1))


def require_connected(edges: ArrayLike) -> None:
    """Raise DisconnectedGraphError unless every graph of the batch ``edges`` (..., M, M), symmetric, is connected."""
    edges = np.asarray(edges, bool)
    num_nodes = edges.shape[-1]
    graphs = edges.reshape(-1, num_nodes, num_nodes)
    # A star around node 0 is connected; almost every batch passes here without a search.
    others = graphs[~graphs[:, 0, 1:].all(axis=-1)]
    for graph in np.unique(others, axis=0) if len(others) else ():
        parts = components(graph)
        if len(parts) > 1:
            raise DisconnectedGraphError(parts)


def laplacian(weights: NDArray) -> NDArray:
    """Graph Laplacian ``L = diag(sum_j w_ij) - w``, (..., M, M)."""
    out = -np.asarray(weights, float)
    index = np.arange(out.shape[-1])
    out[..., index, index] = 0.0
    out[..., index, index] = -out.sum(axis=-1)
    return out


def _grounded(weights: NDArray) -> NDArray:
    """Laplacian plus a multiple of the all-ones matrix: invertible, and equal to L on vectors that sum to zero."""
    index = np.arange(np.shape(weights)[-1])
    weights = np.array(weights, float)
    weights[..., index, index] = 0.0
    degree = weights.sum(axis=-1)
    scale = degree.mean(axis=-1) / len(index)
    # A single node or an empty graph has L = 0; any positive scale then makes the matrix harmless.
    out = np.subtract(np.where(scale > 0, scale, 1.0)[..., None, None], weights, out=weights)
    out[..., index, index] += degree
    return out


def solve_laplacian(weights: NDArray, b: NDArray) -> NDArray:
    """Solution x of ``L x = b`` with zero sum, for a connected graph; b (..., M, K) sums to zero over M."""
    return np.linalg.solve(_grounded(weights), b)


def laplacian_pinv(weights: NDArray) -> NDArray:
    """Pseudo-inverse of the Laplacian of a connected graph, (..., M, M)."""
    num_nodes = np.shape(weights)[-1]
    grounded = _grounded(weights)
    scale = grounded.sum(axis=(-2, -1)) / num_nodes**2  # the all-ones multiple: L itself sums to zero
    inverse = np.linalg.inv(grounded) - 1.0 / (num_nodes**2 * scale)[..., None, None]
    return 0.5 * (inverse + np.swapaxes(inverse, -2, -1))


def effective_resistance(weights: NDArray) -> NDArray:
    """Effective resistance between each pair of nodes, (..., M, M), for edges of conductance ``weights``.

    With the conductances of `bounds.calibration_crlb` it is the variance bound of ``log(c_i / c_j)``.
    """
    pinv = laplacian_pinv(weights)
    diagonal = np.diagonal(pinv, axis1=-2, axis2=-1)
    return diagonal[..., :, None] + diagonal[..., None, :] - 2.0 * pinv


def maximum_spanning_tree(weights: NDArray, root: int = 0) -> tuple[NDArray, NDArray]:
    """Order of nodes and parent of each, (..., M) and (..., M), of the spanning tree of largest total weight.

    Prim's method, vectorised over the batch. ``order[..., 0]`` is the root, every parent comes before its children,
    and ``parent[root] = root``. Pairs without an edge must have weight zero; the graph must be connected.
    """
    weights = np.asarray(weights, float)
    num_nodes = weights.shape[-1]
    flat = weights.reshape(-1, num_nodes, num_nodes)
    batch = np.arange(len(flat))
    order = np.full((len(flat), num_nodes), root)
    parent = np.full((len(flat), num_nodes), root)
    best = flat[:, root].copy()
    best[:, root] = -1.0
    for step in range(1, num_nodes):
        node = best.argmax(axis=1)
        if np.any(best[batch, node] <= 0.0):
            require_connected(weights > 0)
        order[:, step] = node
        best[batch, node] = -1.0
        better = (flat[batch, node] > best) & (best >= 0.0)
        best = np.where(better, flat[batch, node], best)
        parent = np.where(better, node[:, None], parent)
    shape = (*weights.shape[:-2], num_nodes)
    return order.reshape(shape), parent.reshape(shape)


def tree_product(ratios: NDArray, order: NDArray, parent: NDArray) -> NDArray:
    """Product of ``ratios[..., child, parent]`` from the root (value 1) along a tree, (..., M)."""
    num_nodes = ratios.shape[-1]
    flat = ratios.reshape(-1, num_nodes, num_nodes)
    order, parent = order.reshape(-1, num_nodes), parent.reshape(-1, num_nodes)
    batch = np.arange(len(flat))
    out = np.ones((len(flat), num_nodes), ratios.dtype)
    for step in range(1, num_nodes):
        node = order[:, step]
        above = parent[batch, node]
        out[batch, node] = out[batch, above] * flat[batch, node, above]
    return out.reshape(*ratios.shape[:-2], num_nodes)


def tree_mask(order: NDArray, parent: NDArray) -> NDArray:
    """Boolean (M, M) symmetric adjacency of one tree given by `maximum_spanning_tree`."""
    out = np.zeros((len(parent), len(parent)), bool)
    child = order[1:]
    out[child, parent[child]] = out[parent[child], child] = True
    return out


def choose_pairs(weights: ArrayLike, budget: int) -> NDArray:
    """Pairs to measure, (M, M) symmetric bool, so that the mean variance of the calibration is small.

    Greedy A-optimal design: minimises ``tr(L^+)``, the alignment-error bound for ``|c| = 1`` up to 1/M, one pair at a
    time. Adding a pair of weight w lowers the trace by ``w |L^+ (e_i - e_j)|^2 / (1 + w R_ij)`` with R the effective
    resistance (Sherman-Morrison). The start is the best of M + 1 spanning trees: the one of largest weight, and from
    each node the tree of least resistance; so the result is connected for every allowed budget. At the end pairs are
    exchanged as long as adding the best and removing the least useful one lowers the trace.

    Parameters
    ----------
    weights : (M, M) expected information of each pair (for example its SNR), zero where it cannot be measured.
    budget : number of pairs, at least M - 1.

    Raises
    ------
    ValueError
        If the budget cannot join all nodes. DisconnectedGraphError if no budget can.
    """
    weights = np.asarray(weights, float)
    num_nodes = len(weights)
    if not np.all(np.isfinite(weights) & (weights >= 0)) or not np.allclose(weights, weights.T):
        raise ValueError("weights must be finite, non-negative and symmetric")
    if budget < num_nodes - 1:
        raise ValueError(f"budget = {budget} pairs cannot join {num_nodes} nodes; at least {num_nodes - 1} are needed")
    require_connected(weights > 0)
    chosen = _best_tree(weights)
    pinv = laplacian_pinv(weights * chosen)
    available = np.triu(weights > 0, 1)
    for _ in range(min(budget, int(available.sum())) - (num_nodes - 1)):
        edge, pinv = _best_change(weights, pinv, available & ~chosen, 1.0)
        chosen[edge] = chosen[edge[::-1]] = True
    # Exchanges: one pair too many, then out with the least useful one. Each round lowers the trace, so it ends.
    while (available & ~chosen).any():
        added, larger = _best_change(weights, pinv, available & ~chosen, 1.0)
        removed, smaller = _best_change(weights, larger, available & chosen, -1.0)
        if np.trace(smaller) > np.trace(pinv) * (1.0 - 1e-9):
            break
        chosen[added] = chosen[added[::-1]] = True
        chosen[removed] = chosen[removed[::-1]] = False
        pinv = smaller
    return chosen


def _best_change(
    weights: NDArray, pinv: NDArray, candidates: NDArray, sign: float
) -> tuple[tuple[int, int], NDArray]:
    """Pair (i, j) among the candidates that is best to add (sign +1) or remove (-1), and the pseudo-inverse then."""
    w = sign * weights
    # For a bridge 1 - w R is zero: its removal is infinitely bad.
    remaining = np.maximum(1.0 + w * _spread(pinv), 1e-12)
    gain = np.where(candidates, w * _spread(pinv @ pinv) / remaining, -np.inf)
    i, j = np.unravel_index(gain.argmax(), gain.shape)
    column = pinv[:, i] - pinv[:, j]
    changed = pinv - w[i, j] / remaining[i, j] * np.outer(column, column)
    return (int(i), int(j)), changed


def _spread(a: NDArray) -> NDArray:
    """``(e_i - e_j)^T A (e_i - e_j)`` for all i, j."""
    diagonal = np.diagonal(a)
    return diagonal[:, None] + diagonal[None, :] - 2.0 * a


def _best_tree(weights: NDArray) -> NDArray:
    """Adjacency of the candidate spanning tree with the smallest trace of the Laplacian's pseudo-inverse."""
    resistance = np.divide(1.0, weights, out=np.zeros_like(weights), where=weights > 0)
    _, predecessors = dijkstra(resistance, directed=False, return_predecessors=True)
    candidates = [tree_mask(*maximum_spanning_tree(weights))]
    for root, predecessor in enumerate(predecessors):
        tree = np.zeros_like(weights, dtype=bool)
        child = np.delete(np.arange(len(weights)), root)
        tree[child, predecessor[child]] = tree[predecessor[child], child] = True
        candidates.append(tree)
    traces = [np.trace(laplacian_pinv(weights * tree)) for tree in candidates]
    return candidates[int(np.argmin(traces))]
