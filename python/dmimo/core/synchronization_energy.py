# SPDX-License-Identifier: GPL-3.0-or-later
"""Which pairs of access points to synchronise, and with how much energy each, at a given total.

Pair (i, j) that is given the energy e_ij yields information ``w_ij = e_ij k_ij`` on phi_i - phi_j, k_ij the quality of
the link (`graph_synchronization.link_information`). The error is a trace of the pseudo-inverse of the Laplacian of w,

* leader None: ``tr(L^+) / M``, the mean alignment error: mean square phase error with the common phase removed, which
  is what coherent transmission loses (to first order its share of the power);
* a leader: ``sum_m R_m,leader / (M - 1)``, the mean square error of the followers relative to it.

Both are ``tr(C L^+)`` with C the Laplacian of a complete graph or of a star. They are convex in the energies, and
proportional to the inverse of the total, so a factor in the error is the same factor in energy. A star of one leader,
any tree, and any graph are compared with the best energies of each.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse.csgraph import dijkstra

from .graph import laplacian, laplacian_pinv, maximum_spanning_tree, require_connected, tree_mask

# Shares of the energy below this are given to the other pairs: a pair costs more than its energy.
_SMALLEST_SHARE = 1e-3


class EnergyPlan(NamedTuple):
    """Energies of pairs and what they give.

    energy (..., M, M), symmetric, summing to the total over pairs; error (...) that it gives, rad^2; gap (...): how far
    the error may be above the least possible one, relative to it; nan where that is not known.
    """

    energy: NDArray
    error: NDArray
    gap: NDArray


def mean_error(information: ArrayLike, *, leader: int | None = None) -> NDArray:
    """The error (...) in rad^2 for pairs of information (..., M, M), as defined above."""
    information = np.asarray(information, float)
    require_connected(information > 0)
    criterion = _criterion(information.shape[-1], leader)
    return np.einsum("ij,...ij->...", criterion, laplacian_pinv(information))


def best_star(quality: ArrayLike, total: float = 1.0, *, leader: int | None = None) -> EnergyPlan:
    """The star of least error, over all leaders (None) or of the given one, with the best energies.

    The error of a star is ``sum_j 1 / (e_j k_j)`` times 1 / (M - 1) relative to the leader, or times (M - 1) / M^2 with
    the common phase removed: the same leader and energies ``e_j ~ k_j^(-1/2)`` are best for both. The error given is
    the second without a leader, the first with one.

    Raises
    ------
    DisconnectedGraphError if no node reaches all others.
    """
    quality = _check(quality, total)
    num_nodes = quality.shape[-1]
    apart = ~np.eye(num_nodes, dtype=bool)
    root = np.where(quality > 0, 1.0 / np.sqrt(np.where(quality > 0, quality, 1.0)), np.inf)
    spent = np.where(apart, root, 0.0).sum(axis=-1)
    centre = spent.argmin(axis=-1) if leader is None else np.full(spent.shape[:-1], leader)
    least = np.take_along_axis(spent, centre[..., None], axis=-1)
    if not np.all(np.isfinite(least)):
        require_connected((quality > 0) & (np.eye(num_nodes, dtype=bool)[centre][..., None, :]
                                           | np.eye(num_nodes, dtype=bool)[centre][..., :, None]))
    chosen = np.arange(num_nodes) == centre[..., None]
    share = np.where(chosen[..., :, None] & apart & (quality > 0), root / least[..., None], 0.0)
    energy = total * (share + np.swapaxes(share, -2, -1))
    return EnergyPlan(energy, mean_error(energy * quality, leader=leader), np.full(spent.shape[:-1], np.nan))


def best_tree(quality: ArrayLike, total: float = 1.0, *, leader: int | None = None) -> EnergyPlan:
    """A tree of small error with its best energies, for one network (M, M).

    On a tree the error is ``sum_e a_e / (e_e k_e)``, with ``a_e = n_e (M - n_e) / M^2`` for n_e nodes on one side of
    pair e, or the share of the followers behind it: energies ``~ sqrt(a_e / k_e)`` give the error
    ``(sum sqrt(a_e / k_e))^2 / total``. The search for the tree starts from the best of M shortest-path trees, the
    stars and the maximum spanning tree, and exchanges single pairs as long as that helps: a local optimum, mostly the
    best there is.
    """
    quality = _check(quality, total)
    if quality.ndim != 2:
        raise ValueError(f"quality has shape {quality.shape}, not (M, M)")
    require_connected(quality > 0)
    criterion = _criterion(len(quality), leader)
    trees = np.array(_first_trees(quality))
    costs = _tree_roots(trees, quality, criterion).sum(axis=(-2, -1))
    tree, cost = trees[costs.argmin()], costs.min()
    while True:
        trees = _exchanges(tree, quality)
        costs = _tree_roots(trees, quality, criterion).sum(axis=(-2, -1))
        if len(trees) == 0 or costs.min() > cost * (1.0 - 1e-9):
            break
        tree, cost = trees[costs.argmin()], costs.min()
    roots = _tree_roots(tree, quality, criterion)
    energy = 2.0 * total * roots / roots.sum()
    return EnergyPlan(energy, mean_error(energy * quality, leader=leader), np.array(np.nan))


def allocate_energy(
    quality: ArrayLike, total: float = 1.0, *, leader: int | None = None, tolerance: float = 1e-2,
    max_iterations: int = 2000,
) -> EnergyPlan:
    """The energies of all pairs with the least error: A-optimal design on the graph.

    Multiplicative updates ``e <- e sqrt(g)``, rescaled to the total, ``g_ij = k_ij (b_ij^T L^+ C L^+ b_ij)`` the
    derivative of the error; each lowers the error. At the optimum g is the same for all pairs that have energy and not
    larger elsewhere; as the error is convex and homogeneous, the least possible one is at least
    ``2 error - total max(g)``, from which the gap is known. Pairs with less than a thousandth of the energy are dropped
    at the end.

    Parameters
    ----------
    quality : (..., M, M) information per energy of each pair, symmetric, zero where a pair cannot be measured.
    total : energy of all pairs together.
    leader : criterion, see the module.
    tolerance : gap at which the iteration ends.

    References
    ----------
    Y. Yu, "Monotonic convergence of a general algorithm for computing optimal designs", Ann. Statist. 38, 2010:
    the exponent 1/2 for A-optimality.
    """
    quality = _check(quality, total)
    require_connected(quality > 0)
    criterion = _criterion(quality.shape[-1], leader)
    energy = (quality > 0) / np.count_nonzero(quality, axis=(-2, -1))[..., None, None]
    for _ in range(max_iterations):
        slope, error = _slope(energy, quality, criterion)
        going = slope.max(axis=(-2, -1)) > (1.0 + tolerance) * error
        if not going.any():
            break
        # Graphs that are done stay as they are: a batch gives what each graph gives alone.
        moved = energy * np.sqrt(slope)
        moved /= moved.sum(axis=(-2, -1), keepdims=True)
        energy = np.where(going[..., None, None], moved, energy)
    pruned = np.where(2.0 * energy >= _SMALLEST_SHARE, energy, 0.0)
    energy = pruned / pruned.sum(axis=(-2, -1), keepdims=True)
    require_connected(energy > 0)
    # The least possible error, by convexity from the energies before any were dropped.
    least = 2.0 * error - slope.max(axis=(-2, -1))
    error = _slope(energy, quality, criterion)[1]
    return EnergyPlan(2.0 * total * energy, error / (2.0 * total), error / np.maximum(least, 0.0) - 1.0)


def sounding_nodes(energy: ArrayLike) -> NDArray:
    """Nodes (M,) bool that must send stage I so that every pair with energy has one of its two nodes as leader.

    A small vertex cover of one network: always the node next with most pairs left; one node for a star.
    """
    left = np.asarray(energy) > 0
    chosen = np.zeros(len(left), bool)
    left = left.copy()
    while left.any():
        node = left.sum(axis=1).argmax()
        chosen[node] = True
        left[node] = left[:, node] = False
    return chosen


def _check(quality: ArrayLike, total: float) -> NDArray:
    quality = np.array(quality, float)
    if quality.ndim < 2 or quality.shape[-1] != quality.shape[-2] or quality.shape[-1] < 2:
        raise ValueError(f"quality has shape {quality.shape}, not (..., M, M) with M > 1")
    index = np.arange(quality.shape[-1])
    quality[..., index, index] = 0.0
    if not np.all(np.isfinite(quality) & (quality >= 0)) or not np.allclose(quality, np.swapaxes(quality, -2, -1)):
        raise ValueError("quality must be finite, not negative and symmetric")
    if not total > 0:
        raise ValueError(f"total={total} must be positive")
    return quality


def _criterion(num_nodes: int, leader: int | None) -> NDArray:
    """C (M, M) of the error tr(C L^+)."""
    if leader is None:
        return np.eye(num_nodes) / num_nodes - 1.0 / num_nodes**2
    star = np.zeros((num_nodes, num_nodes))
    star[leader] = star[:, leader] = 1.0 / (num_nodes - 1)
    return laplacian(star)


def _slope(energy: NDArray, quality: NDArray, criterion: NDArray) -> tuple[NDArray, NDArray]:
    """g (..., M, M) and the error (...) for energies that sum to one over both triangles, so to 1/2 over pairs.

    Scaled so that the mean of g over the energies is the error.
    """
    pinv = laplacian_pinv(energy * quality)
    inner = pinv @ criterion @ pinv
    diagonal = np.diagonal(inner, axis1=-2, axis2=-1)
    slope = quality * np.maximum(diagonal[..., :, None] + diagonal[..., None, :] - 2.0 * inner, 0.0)
    return 0.5 * slope, np.einsum("ij,...ij->...", criterion, pinv)


def _tree_roots(trees: NDArray, quality: NDArray, criterion: NDArray) -> NDArray:
    """``sqrt(a_e / k_e)`` (..., M, M) of the pairs of trees (..., M, M) bool.

    a_e is what pair e has in the error at equal information: the derivative there.
    """
    pinv = laplacian_pinv(trees.astype(float))
    inner = pinv @ criterion @ pinv
    diagonal = np.diagonal(inner, axis1=-2, axis2=-1)
    share = np.maximum(diagonal[..., :, None] + diagonal[..., None, :] - 2.0 * inner, 0.0)
    return np.sqrt(np.divide(share, quality, out=np.zeros(trees.shape), where=trees))


def _first_trees(quality: NDArray) -> list[NDArray]:
    """Shortest-path trees from each node for lengths k^(-1/2), complete stars, and the maximum spanning tree."""
    num_nodes = len(quality)
    length = np.divide(1.0, np.sqrt(quality), out=np.zeros_like(quality), where=quality > 0)
    _, predecessors = dijkstra(length, directed=False, return_predecessors=True)
    trees = [tree_mask(*maximum_spanning_tree(quality))]
    for root, predecessor in enumerate(predecessors):
        child = np.delete(np.arange(num_nodes), root)
        parents = [predecessor[child]]
        if np.all(quality[root, child] > 0):
            parents.append(np.full(num_nodes - 1, root))
        for parent in parents:
            tree = np.zeros((num_nodes, num_nodes), bool)
            tree[child, parent] = tree[parent, child] = True
            trees.append(tree)
    return trees


def _exchanges(tree: NDArray, quality: NDArray) -> NDArray:
    """All trees (K, M, M) that differ from `tree` in one pair."""
    out = []
    resistance = np.rint(_resistance(tree)).astype(int)
    for i, j in np.argwhere(np.triu(tree)):
        # Nodes on i's side are closer to i than to j.
        side = resistance[:, i] < resistance[:, j]
        for u, v in np.argwhere(side[:, None] & ~side & (quality > 0) & ~tree):
            other = tree.copy()
            other[i, j] = other[j, i] = False
            other[u, v] = other[v, u] = True
            out.append(other)
    return np.array(out).reshape(-1, *tree.shape)


def _resistance(tree: NDArray) -> NDArray:
    """Number of pairs on the way between each two nodes of a tree, (M, M)."""
    pinv = laplacian_pinv(tree.astype(float))
    diagonal = np.diagonal(pinv)
    return diagonal[:, None] + diagonal - 2.0 * pinv
