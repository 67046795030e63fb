# SPDX-License-Identifier: GPL-3.0-or-later
"""The maximum-likelihood estimator on pair statistics: spectral start and Fisher scoring with the graph Laplacian.

With ``P_ij = |y_ij|^2``, ``R_ij = y_ij^H y_ji`` and ``S_ij = |c_i|^2 + |c_j|^2`` the cost left after the unknown paths
are eliminated is ``J(c) = sum_{i<j} (|c_i|^2 P_ij + |c_j|^2 P_ji - 2 Re(c_i^* c_j R_ij)) / S_ij``. It depends on the
ratios of c only, so it is minimised over ``log c`` modulo a constant, where the Fisher information is a Laplacian.
"""

import numpy as np
from numpy.typing import NDArray

from .graph import solve_laplacian

# Steps of the power iteration on the inverse in `spectral_phases`; each costs one product of a matrix and a vector.
_POWER_STEPS = 12
# Smallest Fisher weight of an edge relative to its |R|: keeps the Laplacian definite where Re(c_i^* c_j R_ij) <= 0.
_WEIGHT_FLOOR = 1e-3
# Above this variance of a pair's phase, in rad^2, the start is better than the minimum (see `maximum_likelihood`).
_MAX_EDGE_PHASE_VARIANCE = 0.25
# The cost is a difference of sums of order sum(P): changes below this share of it are rounding.
_COST_ROUNDING = 1e-13


def spectral_phases(correlation: NDArray) -> NDArray:
    """Unit-modulus start (..., M): phases of the leading eigenvector of ``D^-1/2 R D^-1/2``, D = diag(sum_j |R_ij|).

    A global method: local optima with a winding phase, where descent from random starts ends on rings, are avoided.
    The eigenvector is the one of the smallest eigenvalue of the positive semidefinite ``I - D^-1/2 R D^-1/2``, found
    by power iteration on the inverse (a few times faster than an eigendecomposition).
    """
    num_nodes = correlation.shape[-1]
    degree = np.abs(correlation).sum(axis=-1)
    scale = 1.0 / np.sqrt(degree)
    matrix = -(scale[..., :, None] * correlation) * scale[..., None, :]
    index = np.arange(num_nodes)
    # The small shift keeps the inverse finite without noise, where the smallest eigenvalue is zero.
    matrix[..., index, index] = 1.0 + 1e-9
    inverse = np.linalg.inv(matrix)
    # The column of the largest diagonal entry contains the wanted eigenvector with the largest share.
    best = np.diagonal(inverse, axis1=-2, axis2=-1).real.argmax(axis=-1)
    vector = np.take_along_axis(inverse, best[..., None, None], axis=-1)
    for _ in range(_POWER_STEPS):
        vector = inverse @ vector
        vector /= np.abs(vector).max(axis=-2, keepdims=True)
    vector = vector[..., 0]
    size = np.abs(vector)
    return np.where(size > 0, vector / np.where(size > 0, size, 1.0), 1.0)


def start(power: NDArray, correlation: NDArray) -> NDArray:
    """Spectral phases with magnitudes from weighted least squares on the closed-form magnitude ratio of each edge.

    One edge alone gives ``log |c_i / c_j| = asinh((P_ji - P_ij) / (2 |R_ij|))``.
    """
    size = np.abs(correlation)
    difference = np.swapaxes(power, -2, -1) - power
    sine = np.divide(0.5 * difference, size, out=np.zeros_like(size), where=size > 0)
    weights = 0.5 * size / np.sqrt(1.0 + sine**2)
    log_size = solve_laplacian(weights, (weights * np.arcsinh(sine)).sum(axis=-1)[..., None])[..., 0]
    return spectral_phases(correlation) * np.exp(log_size)


def expand(
    c: NDArray, power_skew: NDArray, power: NDArray, correlation: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """Cost J (...), gradient dJ/d(log c)^* (..., M) and Fisher weights (..., M, M) at c; power_skew is ``P - P^T``."""
    energy = (c.conj() * c).real
    total = energy[..., :, None] + energy[..., None, :]
    share = energy[..., :, None] / total
    cross = (c.conj()[..., :, None] * correlation) * (c[..., None, :] / total)
    real = cross.real
    cost = (share * power - real).sum(axis=(-2, -1))
    slope = share * (1.0 - share) * power_skew + (2.0 * share - 1.0) * real
    gradient = slope.sum(axis=-1) - 1j * cross.imag.sum(axis=-1)
    return cost, gradient, np.maximum(real, _WEIGHT_FLOOR * np.abs(cross))


def _edge_phase_variance(c: NDArray, correlation: NDArray) -> NDArray:
    """Variance (...) in rad^2 of the phase of a pair about the fitted c, as closed loops show it; 0 on a tree.

    ``2 (1 - mean cosine)``, weighted by |R|, over the share of pairs that close loops.
    """
    size = np.abs(correlation)
    aligned = (c.conj()[..., :, None] * correlation * c[..., None, :]).real / np.abs(c[..., :, None] * c[..., None, :])
    num_pairs = (size > 0).sum(axis=(-2, -1)) / 2
    num_loops = num_pairs - c.shape[-1] + 1
    spread = 2.0 * (1.0 - aligned.sum(axis=(-2, -1)) / size.sum(axis=(-2, -1)))
    return np.where(num_loops > 0, spread * num_pairs / np.maximum(num_loops, 1), 0.0)


def maximum_likelihood(
    power: NDArray, correlation: NDArray, *, max_iterations: int = 100, tolerance: float = 1e-11
) -> NDArray:
    """Maximum-likelihood c (..., M), up to scale, from the statistics of `reciprocity.pair_statistics`.

    Each step solves one Laplacian system with the Fisher weights ``Re(c_i^* c_j R_ij)/S_ij``; it is limited to a factor
    e per coefficient and halved where the cost would rise, so the cost never increases. The fixed points are those of
    the alternating iteration (`alternating`), which needs O(M^2) iterations on rings where this needs about five.

    At very low SNR the start is returned: when the pairs contradict one another by more than half a radian rms
    (`_edge_phase_variance`), descent fits noise times noise, mostly in the magnitudes, and makes the alignment error
    larger than that of the start (by 10 to 50 %, seen with 4 to 16 nodes, 9 to 256 components, gains spread by 1 and
    3 dB; one step only, sometimes advised, is worse than none there). On a tree nothing can contradict, and the start
    is the exact solution.

    Parameters
    ----------
    power, correlation : (..., M, M), a connected graph, zero where not measured.
    max_iterations : limit of Fisher-scoring steps.
    tolerance : largest step of log c at which the iteration ends.

    References
    ----------
    J. Vieira and E. G. Larsson, "Reciprocity calibration of distributed massive MIMO access points for coherent
    operation" (beam sweep), section II-C, eq. (10): the same cost, minimised there by alternation.
    """
    power_skew = power - np.swapaxes(power, -2, -1)
    slack = _COST_ROUNDING * power.sum(axis=(-2, -1))
    c = start(power, correlation)
    cost, gradient, weights = expand(c, power_skew, power, correlation)
    active = _edge_phase_variance(c, correlation) <= _MAX_EDGE_PHASE_VARIANCE
    previous = 0.0
    for _ in range(max_iterations):
        right = np.stack([gradient.real, gradient.imag], axis=-1)
        x = solve_laplacian(weights, right)
        step = -(x[..., 0] + 1j * x[..., 1]) * active[..., None]
        size = np.abs(step).max(axis=-1)
        length = 1.0 / np.maximum(size, 1.0)
        trial = c * np.exp(length[..., None] * step)
        expansion = expand(trial, power_skew, power, correlation)
        while (worse := expansion[0] > cost + slack).any():
            # After 30 halvings the step is rounding error: stay where we are.
            length = np.where(worse, np.where(length > 1e-9, 0.5 * length, 0.0), length)
            trial = c * np.exp(length[..., None] * step)
            expansion = expand(trial, power_skew, power, correlation)
        c, (cost, gradient, weights) = trial, expansion
        # Convergence is linear, its rate set by the noise: the next step will be about largest^2 / previous.
        largest = size.max(initial=0.0)
        if largest * min(largest, previous) < tolerance * previous or largest < tolerance:
            break
        previous = largest
    return c
