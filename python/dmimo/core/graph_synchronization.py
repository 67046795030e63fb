# SPDX-License-Identifier: GPL-3.0-or-later
"""Synchronisation of many access points on the graph of measured pairs, beside the star of one leader.

Pair (i, j) measures ``phi_ij = phi_i - phi_j`` of its nodes' reciprocity phases with variance v_ij. All measurements
together determine the phases up to a common one. The Fisher information of the phases is the Laplacian of the weights
1 / v_ij, as of the coefficients in `maximum_likelihood`, so a node's variance relative to the leader is an effective
resistance: every path between the two counts, not the direct link alone.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import chdtrc

from .carrier_model import MAX_INNOVATION_STD_RAD, wrap
from .graph import laplacian_pinv, require_connected, solve_laplacian
from .maximum_likelihood import spectral_phases

# Smallest Newton weight of a pair relative to its information, where its residual is beyond 90 degrees.
_WEIGHT_FLOOR = 1e-3
_MAX_STEPS = 50
_TOLERANCE_RAD = 1e-10
# Changes of the cost below this share of it, or of the information, are rounding.
_COST_ROUNDING, _INFORMATION_ROUNDING = 1e-13, 1e-28
# Loops that contradict each other more than noise does once in so many networks flag the result.
_FALSE_ALARM = 1e-6


class GraphPhases(NamedTuple):
    """Phases of M nodes relative to the leader, whose entries are zero.

    phase_rad (..., M): ``phi_leader - phi_m``, by which node m turns its transmission (times e^{+j phase}).
    covariance (..., M, M) rad^2, phase_std_rad (..., M). misfit (...): cost of the loops per degree of freedom, 1 on
    average if the variances are right, nan on a tree. trusted (..., M): standard deviation within
    `carrier_model.MAX_INNOVATION_STD_RAD` and loops that agree.
    """

    phase_rad: NDArray
    covariance: NDArray
    phase_std_rad: NDArray
    misfit: NDArray
    trusted: NDArray


def synchronise_graph(phase_rad: ArrayLike, variance: ArrayLike, *, leader: int = 0) -> GraphPhases:
    """Maximum-likelihood phases of all nodes from the pairs that were measured.

    Minimises ``sum w_ij (1 - cos(phi_ij - (phi_i - phi_j)))``, w = 1 / v: von Mises errors, Gaussian where they are
    small. Phasors only: the start is the leading eigenvector of the weighted phasors, which no winding number misleads
    (`maximum_likelihood.spectral_phases`); each step solves one Laplacian system and never raises the cost.

    Parameters
    ----------
    phase_rad, variance : (..., M, M) rad and rad^2, ``[i, j]`` the measured phi_i - phi_j; see `pair_measurements`.
    leader : node whose phase is zero.

    Raises
    ------
    DisconnectedGraphError if the measured pairs do not join all nodes. ValueError as `pair_measurements`.
    """
    phase, weights = pair_measurements(phase_rad, variance)
    phasor = weights * np.exp(1j * phase)
    num_nodes = weights.shape[-1]
    if not 0 <= leader < num_nodes:
        raise ValueError(f"leader={leader} must be one of the {num_nodes} nodes")
    require_connected(weights > 0)
    angles = _descend(np.angle(spectral_phases(phasor, weights)), phasor, weights)
    covariance = graph_phase_crlb(weights, leader=leader)
    std = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    cost = _cost(angles, phasor, weights)
    loops = np.count_nonzero(weights, axis=(-2, -1)) // 2 - num_nodes + 1
    misfit = np.divide(cost, loops, out=np.full(np.shape(cost), np.nan), where=loops > 0)
    agree = np.where(loops > 0, chdtrc(np.maximum(loops, 1), cost) > _FALSE_ALARM, True)
    trusted = (std <= MAX_INNOVATION_STD_RAD) & agree[..., None]
    return GraphPhases(wrap(angles[..., leader, None] - angles), covariance, std, misfit, trusted)


def graph_phase_crlb(information: ArrayLike, *, leader: int | None = 0) -> NDArray:
    """Cramer-Rao bound (..., M, M) on the covariance of the phases, rad^2.

    The pseudo-inverse of the Laplacian of `information` (..., M, M), the inverse variances 1 / v_ij of all pairs,
    symmetric and zero where not measured: errors with the common phase removed (leader None), whose trace over M is
    the mean alignment error; or errors relative to the leader, with effective resistances on the diagonal.
    """
    information = np.asarray(information, float)
    require_connected(information > 0)
    covariance = laplacian_pinv(information)
    if leader is None:
        return covariance
    return (covariance - covariance[..., leader, None, :] - covariance[..., :, leader, None]
            + covariance[..., leader, None, leader, None])


def link_information(
    largest_eigenvalue: ArrayLike, noise_var: float, *, gain_a: ArrayLike = 1.0, gain_b: ArrayLike = 1.0
) -> NDArray:
    """Information 1 / v of a BeamSync exchange per unit of radiated energy (stages II and III), at high SNR.

    From ``v = s2 (1/al_A + 1/al_B) / (2 N lam1)`` with energy N in each of the two stages: the information is energy
    times ``lam1 / (s2 (1/al_A + 1/al_B))``, lam1 the largest eigenvalue of the channel's Gram matrix and
    al = |t_1/r_1|^2 of leader and follower.
    """
    return np.asarray(largest_eigenvalue, float) / (noise_var * (1.0 / np.asarray(gain_a) + 1.0 / np.asarray(gain_b)))


def pair_measurements(difference: ArrayLike, variance: ArrayLike, *, circular: bool = True) -> tuple[NDArray, NDArray]:
    """Differences (..., M, M), antisymmetric, and their information, symmetric, zero where not measured.

    Parameters
    ----------
    difference : (..., M, M), ``[i, j]`` the value of node i less that of node j. One measurement for each pair: given
        in one order, or in both if they are each other's negative. Combine repeated measurements before.
    variance : (..., M, M), positive. inf or nan: not measured. A difference that is not finite counts as not measured,
        the diagonal is ignored.
    circular : differences are phases in rad, equal modulo 2 pi.

    Raises
    ------
    ValueError for other shapes, variances that are not positive, and orders of a pair that contradict each other.
    """
    value, variance = np.broadcast_arrays(np.asarray(difference, float), np.asarray(variance, float))
    if value.ndim < 2 or value.shape[-1] != value.shape[-2]:
        raise ValueError(f"difference and variance have shape {value.shape}, not (..., M, M)")
    measured = np.isfinite(variance) & np.isfinite(value) & ~np.eye(value.shape[-1], dtype=bool)
    if np.any(variance[measured] <= 0):
        raise ValueError("the variance of a measured pair must be positive")
    value = np.where(measured, value, 0.0)
    weights = np.divide(1.0, variance, out=np.zeros(value.shape), where=measured)
    other, other_weights = -np.swapaxes(value, -2, -1), np.swapaxes(weights, -2, -1)
    apart = wrap(value - other) if circular else value - other
    both = (weights > 0) & (other_weights > 0)
    if np.any(both & ((np.abs(apart) > 1e-9 * (1.0 + np.abs(value))) | ~np.isclose(weights, other_weights))):
        raise ValueError("a pair given in both orders must be one measurement: opposite differences, equal variances")
    return np.where(weights > 0, value, other), np.maximum(weights, other_weights)


def _cost(angles: NDArray, phasor: NDArray, weights: NDArray) -> NDArray:
    """``2 sum_{i<j} w (1 - cos r)`` (...): about the sum of squared residuals over their variances."""
    turn = np.exp(1j * angles)
    turned = np.angle(turn.conj()[..., :, None] * phasor * turn[..., None, :])
    return (weights * 2.0 * np.sin(0.5 * turned) ** 2).sum(axis=(-2, -1))


def _descend(angles: NDArray, phasor: NDArray, weights: NDArray) -> NDArray:
    """Node phases (..., M) at the minimum of `_cost` that the start belongs to."""
    cost = _cost(angles, phasor, weights)
    slack = _COST_ROUNDING * cost + _INFORMATION_ROUNDING * weights.sum(axis=(-2, -1))
    for _ in range(_MAX_STEPS):
        turn = np.exp(1j * angles)
        turned = turn.conj()[..., :, None] * phasor * turn[..., None, :]
        newton = np.maximum(turned.real, _WEIGHT_FLOOR * weights)
        step = solve_laplacian(newton, turned.imag.sum(axis=-1)[..., None])[..., 0]
        length = np.abs(step).max(axis=-1)
        share = 1.0 / np.maximum(length, 1.0)
        for _ in range(30):
            trial = angles + share[..., None] * step
            after = _cost(trial, phasor, weights)
            worse = after > cost + slack
            if not worse.any():
                break
            share = np.where(worse, 0.5 * share, share)
        better = ~worse
        angles = np.where(better[..., None], trial, angles)
        cost = np.where(better, after, cost)
        if np.max(length, initial=0.0, where=better) < _TOLERANCE_RAD:
            break
    return angles
