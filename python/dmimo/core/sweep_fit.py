# SPDX-License-Identifier: GPL-3.0-or-later
"""Joint maximum likelihood of coefficients, node frequencies and port delays on the timed products of a sweep."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from . import bounds, sweep_model
from .detection import edge_weights
from .graph import components, laplacian, maximum_spanning_tree
from .reciprocity import PairStatistics, calibrate
from .sweep_model import TimedPairs

# Reweighted least-squares steps on the search results; each shrinks the scale to 0.7, all of them 40 thousandfold.
_ROBUST_STEPS = 30
# Limit of joint steps; three or four are usual.
_MAX_STEPS = 30
# The iteration ends when a step is this far below the noise (squared, in standard deviations), or at rounding.
_DECREMENT_TOLERANCE = 1e-12
_ROUNDING = 1e-28
# Step from which the weights of the pairs stay as they are, so that the iteration has a fixed point.
_FREEZE_WEIGHTS = 2


@dataclass(frozen=True, eq=False)
class JointFit:
    """Estimates for M ports (whitened c, mean power 1) and what they leave.

    c (M,), frequency_hz (M,), delay_s (M,) with zeros at the reference; statistics: derotated sums; weights (M, M) of
    the pairs in the fit; information (E,): ``Re(c_i^* c_j R_ij)/S_ij`` of each pair at the fit, unweighted; residual:
    energy that the model leaves.
    """

    c: NDArray
    frequency_hz: NDArray
    delay_s: NDArray
    statistics: PairStatistics
    weights: NDArray
    information: NDArray
    residual: float


def network_values(
    num_nodes: int, i: NDArray, j: NDArray, difference: NDArray, quality: NDArray, cell: float, root: int
) -> tuple[NDArray, NDArray]:
    """Values x (N,) with ``x_i - x_j = difference``, x[root] = 0, and which pairs (E,) agree within half a `cell`.

    Search peaks are either right within a fraction of a resolution cell or anywhere. The tree of the best pairs is the
    start of a robust fit over all pairs, least squares with the quality and a Cauchy weight of the residual, whose
    scale shrinks from the largest residual to a quarter of a cell: around each loop the majority decides, not the tree.
    """
    best, edge = np.zeros((num_nodes, num_nodes)), np.zeros((num_nodes, num_nodes), int)
    for e in np.argsort(quality):
        best[i[e], j[e]] = best[j[e], i[e]] = quality[e]
        edge[i[e], j[e]] = edge[j[e], i[e]] = e
    order, parent = maximum_spanning_tree(best, root)
    x = np.zeros(num_nodes)
    for node in order[1:]:
        e = edge[node, parent[node]]
        x[node] = x[parent[node]] + (difference[e] if i[e] == node else -difference[e])
    others = np.delete(np.arange(num_nodes), root)
    scale = np.abs(difference - (x[i] - x[j])).max()
    for _ in range(_ROBUST_STEPS):
        scale = max(0.7 * scale, 0.25 * cell)
        strength = quality / (1.0 + ((difference - (x[i] - x[j])) / scale) ** 2)
        weights, right = np.zeros((num_nodes, num_nodes)), np.zeros(num_nodes)
        np.add.at(weights, (i, j), strength)
        np.add.at(weights, (j, i), strength)
        np.add.at(right, i, strength * difference)
        np.add.at(right, j, -strength * difference)
        x[others] = np.linalg.solve(laplacian(weights)[np.ix_(others, others)], right[others])
    return x, np.abs(difference - (x[i] - x[j])) < 0.5 * cell


def joint_fit(
    pairs: TimedPairs,
    nodes: NDArray,
    reference: int,
    frequency_hz: NDArray,
    delay_s: NDArray,
    *,
    estimate_frequency: bool,
    estimate_delay: bool,
) -> JointFit:
    """Maximum likelihood from a start within the main lobe, by variable projection.

    c is solved for exactly at each frequency and delay (`reciprocity.calibrate`, ml); the step in frequency and delay
    comes from the joint normal equations in (phase, f, d), a block Laplacian of the pairs' moments.

    Raises LinAlgError if a frequency or delay is not determined by the measurements.
    """
    num_ports = len(nodes)
    free = estimate_frequency or estimate_delay
    design = bounds.phase_design(
        nodes, reference, estimate_frequency=estimate_frequency, estimate_delay=estimate_delay
    )
    shape = sweep_model.information_shape(pairs)
    weights, rounding = None, _ROUNDING * float(pairs.power_ij.sum() + pairs.power_ji.sum())
    for step in range(_MAX_STEPS):
        moments = sweep_model.time_moments(
            pairs, frequency_hz[pairs.i] - frequency_hz[pairs.j], delay_s[pairs.i] - delay_s[pairs.j]
        )
        stats = sweep_model.statistics(pairs, num_ports, moments[0])
        if step < _FREEZE_WEIGHTS:
            weights = _soft_weights(stats)
        c = calibrate(stats, "ml", reference=None, weights=weights)
        share = np.abs(c[pairs.i]) ** 2 + np.abs(c[pairs.j]) ** 2
        turned = c[pairs.i].conj() * c[pairs.j] / share * moments
        residual = _residual(pairs, c, share, turned[0])
        if not free:
            break
        change, decrement = _joint_step(pairs, design, shape, turned, weights[pairs.i, pairs.j])
        frequency_hz = frequency_hz + change[num_ports : 2 * num_ports]
        delay_s = delay_s + change[2 * num_ports :]
        if decrement < max(_DECREMENT_TOLERANCE * residual / pairs.count.sum(), rounding) and step >= _FREEZE_WEIGHTS:
            break
    return JointFit(c, frequency_hz, delay_s, stats, weights, turned[0].real, residual)


def effective_information(pairs: TimedPairs, fit: JointFit) -> NDArray:
    """Information (E,) of each pair about its complex log ratio at the fit, less what noise times noise costs."""
    gain = np.abs(fit.c) ** 2
    share = gain[pairs.i] + gain[pairs.j]
    information = np.maximum(fit.information, 0.0)
    # With |psi|^2 = information S / (|c_i|^2 |c_j|^2) the noise factor is 1 + Q / (|psi|^2 S).
    extra = pairs.count * gain[pairs.i] * gain[pairs.j] / share**2
    return information * np.divide(
        information, information + extra, out=np.zeros_like(information), where=information > 0
    )


def joint_bound(
    pairs: TimedPairs, fit: JointFit, nodes: NDArray, reference: int, shift_s: float, **free: bool
) -> bounds.JointCrlb:
    """Bound at the fit, with noise times noise, for coefficients given `shift_s` after the pairs' time origin."""
    effective = effective_information(pairs, fit)
    one, t, nu, tt, tnu, nunu = sweep_model.information_shape(pairs)
    shape = [one, t - shift_s, nu, tt - 2.0 * shift_s * t + shift_s**2, tnu - shift_s * nu, nunu]
    moments = [sweep_model.edge_matrix(pairs, len(nodes), effective * m, effective * m) for m in shape]
    return bounds.joint_crlb(np.array(moments), node_of_port=nodes, reference=reference, **free)


def _soft_weights(stats: PairStatistics) -> NDArray:
    """`detection.edge_weights`, or equal weights where one product per pair leaves no coherence to judge by."""
    if stats.num_components < 2:
        return np.ones(stats.power.shape)
    return edge_weights(stats)


def _residual(pairs: TimedPairs, c: NDArray, share: NDArray, cross: NDArray) -> float:
    """Energy left by the model, ``sum (|c_i|^2 P_ij + |c_j|^2 P_ji)/S - 2 Re z``, over all pairs unweighted."""
    gain = np.abs(c) ** 2
    left = (gain[pairs.i] * pairs.power_ij + gain[pairs.j] * pairs.power_ji) / share - 2.0 * cross.real
    return float(left.sum())


def _joint_step(pairs, design, shape, turned, weight):
    """Fisher-scoring change (3M,) of phases, frequencies and delays, and its decrement (cost units)."""
    num_ports = len(design) // 3
    # Expected information: the pair's total with the shape of |z|; positive semidefinite, as single terms need not be.
    information = weight * np.maximum(turned[0].real, 1e-3 * np.abs(turned[0]))
    moments = [sweep_model.edge_matrix(pairs, num_ports, information * m, information * m) for m in shape]
    factors = (1.0, 4.0 * np.pi, -2.0 * np.pi)
    pull = [
        sweep_model.edge_matrix(pairs, num_ports, k * weight * m.imag, -k * weight * m.imag).sum(axis=1)
        for k, m in zip(factors, turned[:3], strict=True)
    ]
    right = design.T @ np.concatenate(pull)
    x = bounds.scaled_inverse(design.T @ bounds.phase_information(np.array(moments)) @ design) @ right
    # No more than a radian within a pair in one step: beyond that the expansion says nothing.
    change = design @ x
    frequency, delay = change[num_ports : 2 * num_ports], change[2 * num_ports :]
    largest = 4.0 * np.pi * np.abs(frequency[pairs.i] - frequency[pairs.j]) * np.sqrt(shape[3])
    largest = largest + 2.0 * np.pi * np.abs(delay[pairs.i] - delay[pairs.j]) * np.sqrt(shape[5])
    return change / max(1.0, largest.max(initial=0.0)), float(right @ x)


def usable_component(num_ports: int, i: NDArray, j: NDArray, reference: int) -> tuple[list[int], list[tuple[int, ...]]]:
    """Largest set of ports joined by the pairs (of equal ones that of the reference), and all sets."""
    edges = np.zeros((num_ports, num_ports), bool)
    edges[i, j] = edges[j, i] = True
    parts = components(edges)
    best = max(parts, key=lambda part: (len(part), reference in part))
    return list(best), list(parts)
