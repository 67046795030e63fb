# SPDX-License-Identifier: GPL-3.0-or-later
"""Phases or frequencies of TRPs and UEs from those of the links between them, and links that contradict the others.

Link (m, n) measures ``x_n - x_m`` of its nodes with a variance. M N links hold M + N - 1 differences: what is left over
closes loops, and a link that does not fit in its loops is found by its residual. Nodes are numbered TRPs first: UE n is
node M + n.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bidirectional import require_links
from .bidirectional_bounds import bipartite
from .carrier_model import GATE, wrap
from .graph import components, solve_laplacian
from .graph_synchronization import graph_phase_crlb, synchronise_graph

# Share of a link's variance that its loops must leave in its residual, so that it can be judged at all.
_LEAST_REDUNDANCY = 1e-6
# Residuals correlated beyond this belong to links that only lie in the same loops: which of them is wrong stays open.
_ALIKE = 0.999


class LinkSolution(NamedTuple):
    """Values of the nodes relative to the reference, whose entries are zero.

    value (..., M + N), wrapped where circular; covariance (..., M + N, M + N). misfit (...): squared residuals per
    loop, 1 on average if the variances are right, nan on a tree. contradicts (..., M, N): links left out because they
    do not fit with the others. trusted (..., M + N): joined to the reference by links that agree; nothing is trusted
    where fewer loops agree than were broken by leaving links out.
    """

    value: NDArray
    covariance: NDArray
    misfit: NDArray
    contradicts: NDArray
    trusted: NDArray


def solve_links(
    difference: ArrayLike, variance: ArrayLike, *, reference: int = 0, circular: bool = True
) -> LinkSolution:
    """Weighted least-squares values of the nodes, with links left out whose residual is beyond `GATE` deviations.

    The worst link goes first, with those that cannot be told from it (in series with it in every loop), then the rest
    is solved again. Nodes that are then left without a link keep one for a value, which is not trusted.

    Parameters
    ----------
    difference, variance : (..., M, N), of ``x_n - x_m``; a variance that is not finite: not measured.
    reference : node (UE n is M + n) with the value zero.
    circular : values are phases in rad; errors von Mises, `graph_synchronization.synchronise_graph`.

    Raises
    ------
    DisconnectedLinksError
        If the measured links do not join all nodes.
    ValueError
        If a shape does not fit, a variance is not positive, or there is no such node.
    """
    difference, variance = np.broadcast_arrays(np.asarray(difference, float), np.asarray(variance, float))
    if difference.ndim < 2:
        raise ValueError(f"difference has shape {difference.shape}; it must be (..., M, N)")
    num_trp, num_ue = difference.shape[-2:]
    if not 0 <= reference < num_trp + num_ue:
        raise ValueError(f"reference = {reference} must be a node from 0 to {num_trp + num_ue - 1}")
    variance = np.where(np.isfinite(difference) & np.isfinite(variance), variance, np.inf)
    if np.any(variance <= 0):
        raise ValueError("the variance of a measured link must be positive")
    require_links(np.isfinite(variance))
    value, covariance, misfit = _solve(difference, variance, reference, circular)
    contradicts = np.zeros(difference.shape, bool)
    trusted = np.ones(value.shape, bool)
    worst = _normalised(difference, variance, value, covariance, circular)[0].max(axis=(-2, -1))
    # Networks with a contradiction are rare, and each is its own search.
    for index in map(tuple, np.argwhere(worst > GATE)):
        found = _without_contradictions(difference[index], variance[index], reference, circular)
        value[index], covariance[index], misfit[index], contradicts[index], trusted[index] = found
    return LinkSolution(value, covariance, misfit, contradicts, trusted)


def _solve(
    difference: NDArray, variance: NDArray, reference: int, circular: bool
) -> tuple[NDArray, NDArray, NDArray]:
    """Values relative to the reference, their covariance, and the misfit."""
    num_trp, num_ue = difference.shape[-2:]
    if circular:
        # Each link in one of its orders, UE before TRP.
        pair = np.zeros((*difference.shape[:-2], num_trp + num_ue, num_trp + num_ue))
        spread = np.full(pair.shape, np.inf)
        pair[..., num_trp:, :num_trp] = np.swapaxes(difference, -2, -1)
        spread[..., num_trp:, :num_trp] = np.swapaxes(variance, -2, -1)
        found = synchronise_graph(pair, spread, leader=reference)
        # Writable copies; and from what turns a node onto the leader to what it has more than the leader.
        return wrap(-found.phase_rad), found.covariance, np.array(found.misfit)
    measured = np.isfinite(variance)
    weights = np.where(measured, 1.0 / variance, 0.0)
    pull = weights * np.where(measured, difference, 0.0)
    right = np.concatenate([-pull.sum(axis=-1), pull.sum(axis=-2)], axis=-1)
    value = solve_laplacian(bipartite(weights), right[..., None])[..., 0]
    value = value - value[..., reference, None]
    residual = np.where(measured, difference - _links(value, num_trp), 0.0)
    cost = np.sum(weights * residual**2, axis=(-2, -1))
    loops = measured.sum(axis=(-2, -1)) - (num_trp + num_ue) + 1
    misfit = np.divide(cost, loops, out=np.full(np.shape(cost), np.nan), where=loops > 0)
    return value, graph_phase_crlb(bipartite(weights), leader=reference), misfit


def _normalised(
    difference: NDArray, variance: NDArray, value: NDArray, covariance: NDArray, circular: bool
) -> tuple[NDArray, NDArray]:
    """Residuals over their deviation (..., M, N), zero where no loop tests the link, and the residuals' variance."""
    num_trp = difference.shape[-2]
    diagonal = np.diagonal(covariance, axis1=-2, axis2=-1)
    fitted = (diagonal[..., :num_trp, None] + diagonal[..., None, num_trp:]
              - 2.0 * covariance[..., :num_trp, num_trp:])
    left = variance - fitted
    tested = np.isfinite(variance) & (left > _LEAST_REDUNDANCY * variance)
    residual = np.where(tested, difference - _links(value, num_trp), 0.0)
    residual = wrap(residual) if circular else residual
    return np.abs(residual) / np.sqrt(np.where(tested, left, 1.0)), np.where(tested, left, np.inf)


def _without_contradictions(difference: NDArray, variance: NDArray, reference: int, circular: bool):
    """Value, covariance, misfit, contradicting links and trust of one network, see `solve_links`."""
    num_trp, num_ue = difference.shape
    measured, flagged = np.isfinite(variance), np.zeros(difference.shape, bool)
    while True:
        solved = np.where(_joined(measured & ~flagged, flagged), variance, np.inf)
        value, covariance, misfit = _solve(difference, solved, reference, circular)
        score, left = _normalised(difference, solved, value, covariance, circular)
        worst = np.unravel_index(score.argmax(), score.shape)
        if score[worst] <= GATE:
            break
        # Covariance of this residual with the others: through the fit only, but for itself.
        column = covariance[:, num_trp + worst[1]] - covariance[:, worst[0]]
        shared = column[None, num_trp:] - column[:num_trp, None]
        flagged |= np.abs(shared) > _ALIKE * np.sqrt(left * left[worst])
        flagged[worst] = True
    kept = measured & ~flagged
    parts = components(bipartite(kept))
    loops = kept.sum() - (num_trp + num_ue) + len(parts)
    broken = measured.sum() - (num_trp + num_ue) + 1 - loops
    trusted = np.zeros(num_trp + num_ue, bool)
    trusted[list(next(part for part in parts if reference in part))] = loops >= broken
    return value, covariance, misfit, flagged, trusted


def _joined(kept: NDArray, spare: NDArray) -> NDArray:
    """The kept links and as few of the spare ones as join all nodes; these then are in no loop."""
    out = kept.copy()
    label = np.empty(sum(kept.shape), int)
    for m, n in np.argwhere(spare):
        for number, part in enumerate(components(bipartite(out))):
            label[list(part)] = number
        out[m, n] |= label[m] != label[kept.shape[0] + n]
    return out


def _links(value: NDArray, num_trp: int) -> NDArray:
    """Differences (..., M, N) of the UEs' less the TRPs' values."""
    return value[..., None, num_trp:] - value[..., :num_trp, None]
