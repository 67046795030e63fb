# SPDX-License-Identifier: GPL-3.0-or-later
"""The estimators that calibration papers compare with, on the statistics of `reciprocity.pair_statistics`.

Each takes power ``P_ij = |y_ij|^2`` and correlation ``R_ij = y_ij^H y_ji``, (..., M, M), zero where not measured, and
the reference port, and returns c (..., M) up to scale. Without noise ``R_ij = c_i c_j^* |psi|^2`` and
``P_ij = |c_j|^2 |psi|^2``, so ``R_ij / P_ij = c_i / c_j``.
"""

import numpy as np
from numpy.typing import NDArray

from .graph import maximum_spanning_tree, tree_product


def argos(power: NDArray, correlation: NDArray, reference: int) -> NDArray:
    """Ratio to the reference, ``c_i = sum_q y[ref,i] conj(y[i,ref]) / sum_q |y[i,ref]|^2``.

    Only the pairs of a star around the reference are used, and all of them are needed.

    References
    ----------
    C. Shepard et al., "Argos: Practical many-antenna base stations", MobiCom 2012, section 3.3 (one path component;
    more are combined here by least squares).
    """
    missing = np.any(correlation[..., reference] == 0, axis=tuple(range(correlation.ndim - 2)))
    missing[reference] = False
    if missing.any():
        ports = ", ".join(map(str, np.flatnonzero(missing)))
        raise ValueError(f'method "argos" needs pairs of every port with reference {reference}; none for {ports}')
    return _ratio_to_all(power, correlation)[..., reference]


def argos_mean(power: NDArray, correlation: NDArray, reference: int) -> NDArray:
    """Mean over every port k of the Argos ratios to k, each brought to the gauge of the reference.

    The route through k gives ``c_i = a_ik / a_ref,k`` with ``a_ik`` the Argos ratio of i to k: k = ref is the direct
    ratio, k = i the inverse of the opposite one. Routes whose pairs were not measured are left out of the mean.
    """
    ratio = _ratio_to_all(power, correlation)
    anchor = ratio[..., reference, :]
    usable = (ratio != 0) & (anchor != 0)[..., None, :]
    routes = np.divide(ratio, anchor[..., None, :], out=np.zeros_like(ratio), where=usable)
    count = usable.sum(axis=-1)
    if np.any(count == 0):
        ports = ", ".join(map(str, np.unique(np.argwhere(count == 0)[:, -1])))
        raise ValueError(f'method "argos_mean" needs a route of two pairs from reference {reference} to ports {ports}')
    return routes.sum(axis=-1) / count


def least_squares(power: NDArray, correlation: NDArray, reference: int) -> NDArray:
    """Minimiser of ``sum_{i<j} |c_i y_ij - c_j y_ji|^2`` with ``c[reference] = 1``.

    References
    ----------
    R. Rogalin et al., "Scalable synchronization and reciprocity calibration for distributed multiuser MIMO", IEEE
    Trans. Wireless Commun. 13(4), 2014, section V.
    """
    cost = _quadratic_cost(power, correlation)
    others = np.delete(np.arange(cost.shape[-1]), reference)
    right = -cost[..., others, reference, None]
    c = np.ones(cost.shape[:-1], complex)
    c[..., others] = np.linalg.solve(cost[..., others[:, None], others], right)[..., 0]
    return c


def tls(power: NDArray, correlation: NDArray, reference: int) -> NDArray:
    """Minimiser of ``sum_{i<j} |c_i y_ij - c_j y_ji|^2`` with ``|c| = 1``: an eigenvector (no reference)."""
    return np.linalg.eigh(_quadratic_cost(power, correlation))[1][..., 0]


def spanning_tree(power: NDArray, correlation: NDArray, reference: int) -> NDArray:
    """Product of the maximum-likelihood ratios of single pairs along the maximum-coherence spanning tree.

    The coherence of a pair is ``|R_ij|^2 / (P_ij P_ji)``; on a graph that is a tree this is the exact ML estimate.
    """
    both = power * np.swapaxes(power, -2, -1)
    coherence = np.divide(np.abs(correlation) ** 2, both, out=np.zeros_like(both), where=both > 0)
    # Without noise all coherences are 1 within rounding, which may exceed it; only the order matters.
    order, parent = maximum_spanning_tree(coherence, reference)
    return tree_product(pair_ratio(power, correlation), order, parent)


def pair_ratio(power: NDArray, correlation: NDArray) -> NDArray:
    """Maximum-likelihood ratio ``c_i / c_j`` of each pair taken alone, (..., M, M); 0 where not measured.

    ``c_i / c_j = lam / R_ij^*``, ``lam = (P_ji - P_ij)/2 + sqrt(((P_ji - P_ij)/2)^2 + |R_ij|^2)``.
    """
    half = 0.5 * (np.swapaxes(power, -2, -1) - power)
    size = np.abs(correlation)
    # lam / |R| = exp(asinh(half / |R|)): no cancellation for a large negative half.
    growth = np.exp(np.arcsinh(np.divide(half, size, out=np.zeros_like(half), where=size > 0)))
    return np.divide(correlation, size, out=np.zeros_like(correlation), where=size > 0) * growth


def _ratio_to_all(power: NDArray, correlation: NDArray) -> NDArray:
    """Argos ratio of i (row) to k (column), (..., M, M), 1 on the diagonal, 0 where not measured."""
    ratio = np.divide(correlation, power, out=np.zeros_like(correlation), where=power > 0)
    index = np.arange(ratio.shape[-1])
    ratio[..., index, index] = 1.0
    return ratio


def _quadratic_cost(power: NDArray, correlation: NDArray) -> NDArray:
    """Matrix A with ``c^H A c = sum_{i<j} |c_i y_ij - c_j y_ji|^2``."""
    cost = -correlation
    index = np.arange(cost.shape[-1])
    cost[..., index, index] = power.sum(axis=-1)
    return cost


ESTIMATORS = {
    "argos": argos,
    "argos_mean": argos_mean,
    "least_squares": least_squares,
    "tls": tls,
    "spanning_tree": spanning_tree,
}
