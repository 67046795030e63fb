# SPDX-License-Identifier: GPL-3.0-or-later
"""The maximum-likelihood estimator on pair statistics: spectral start and Fisher scoring with the graph Laplacian.

With ``P_ij = |y_ij|^2``, ``R_ij = y_ij^H y_ji`` and ``S_ij = |c_i|^2 + |c_j|^2`` the cost left after the unknown paths
are eliminated is ``J(c) = sum_{i<j} (|c_i|^2 P_ij + |c_j|^2 P_ji - 2 Re(c_i^* c_j R_ij)) / S_ij``. It depends on the
ratios of c only, so it is minimised over ``log c`` modulo a constant, where the Fisher information is a Laplacian.
"""

import numpy as np
from numpy.typing import NDArray

from .graph import solve_laplacian

# Rounds of three steps of a power iteration in `spectral_phases`, and the change of the unit vector in one step at
# which it counts as converged.
_POWER_ROUNDS = 4
_POWER_TOLERANCE = 1e-3
# Smallest Fisher weight of an edge relative to its |R|: keeps the Laplacian definite where Re(c_i^* c_j R_ij) <= 0.
_WEIGHT_FLOOR = 1e-3
# Above this variance of a pair's phase, in rad^2, the start is better than the minimum (see `maximum_likelihood`).
_MAX_EDGE_PHASE_VARIANCE = 0.25
# The cost is a difference of sums of order sum(P): changes below this share of it are rounding.
_COST_ROUNDING = 1e-13


def spectral_phases(correlation: NDArray, size: NDArray) -> NDArray:
    """Unit-modulus start (..., M): phases of the leading eigenvector of ``D^-1/2 R D^-1/2``, D = diag(sum_j |R_ij|).

    A global method: local optima with a winding phase, where descent from random starts ends on rings, are avoided.
    A few steps of the power iteration suffice on dense graphs. Elsewhere, as the matrix subtracted from the identity is
    positive semidefinite, the iteration runs on the inverse of that, which separates close eigenvalues. `size` is |R|.
    """
    scale = 1.0 / np.sqrt(size.sum(axis=-1))
    matrix = scale[..., :, None] * correlation
    matrix *= scale[..., None, :]
    # Start with the phases seen from one port, and that port itself as strong as the others together.
    index = np.arange(matrix.shape[-1])
    vector = matrix[..., :, 0].copy()
    vector[..., 0] = 1.0
    vector, converged = _power_iteration(matrix, vector)
    if not converged.all():
        # The small shift keeps the inverse finite without noise, where the smallest eigenvalue is zero.
        matrix = -matrix
        matrix[..., index, index] = 1.0 + 1e-9
        inverse = np.linalg.inv(matrix)
        # The column of the largest diagonal entry holds the wanted eigenvector with the largest share.
        best = np.diagonal(inverse, axis1=-2, axis2=-1).real.argmax(axis=-1)
        column = np.take_along_axis(inverse, best[..., None, None], axis=-1)[..., 0]
        vector = np.where(converged[..., None], vector, _power_iteration(inverse, column)[0])
    modulus = np.abs(vector)
    return np.where(modulus > 0, vector / np.where(modulus > 0, modulus, 1.0), 1.0)


def _power_iteration(matrix: NDArray, vector: NDArray) -> tuple[NDArray, NDArray]:
    """Vector (..., M) after the power iteration, and (...) whether its last step changed it little."""
    for _ in range(_POWER_ROUNDS):
        before = (matrix @ (matrix @ vector[..., None]))[..., 0]
        before /= np.abs(before).max(axis=-1, keepdims=True)
        vector = (matrix @ before[..., None])[..., 0]
        modulus = np.abs(vector)
        vector /= modulus.max(axis=-1, keepdims=True)
        # A port that no walk of this length reaches is exactly zero: not converged, whatever the others do.
        converged = (np.abs(vector - before).max(axis=-1) < _POWER_TOLERANCE) & modulus.all(axis=-1)
        if converged.all():
            break
    return vector, converged


def _log_magnitudes(power_skew: NDArray, size: NDArray) -> NDArray:
    """Weighted least squares (..., M) on the closed-form log magnitude ratio of each pair; `size` is |R|.

    One pair alone gives ``log |c_i / c_j| = asinh((P_ji - P_ij) / (2 |R_ij|))``.
    """
    sine = np.divide(-0.5 * power_skew, size, out=np.zeros_like(size), where=size > 0)
    weights = 0.5 * size / np.sqrt(1.0 + sine * sine)
    return solve_laplacian(weights, (weights * np.arcsinh(sine)).sum(axis=-1)[..., None])[..., 0]


def start(power: NDArray, correlation: NDArray) -> NDArray:
    """Start (..., M) of the descent: spectral phases with least-squares magnitudes; exact without noise."""
    size = np.abs(correlation)
    phases = spectral_phases(correlation, size)
    return phases * np.exp(_log_magnitudes(power - np.swapaxes(power, -2, -1), size))


def _expand(
    c: NDArray, power: NDArray, power_skew: NDArray, correlation: NDArray, floor: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """Cost J (...), gradient dJ/d(log c)^* (..., M) and Fisher weights (..., M, M) at c.

    power_skew is ``P - P^T``, floor the smallest weight of each pair. With ``z = c_i^* c_j R_ij / S_ij`` the gradient
    is ``sum_j [|c_i|^2 |c_j|^2 (P_ij - P_ji) / S_ij^2 + (|c_i|^2 - |c_j|^2) Re z / S_ij - j Im z]``.
    """
    energy = (c.conj() * c).real
    inverse = 1.0 / (energy[..., :, None] + energy[..., None, :])
    cross = c.conj()[..., :, None] * correlation
    cross *= c[..., None, :]
    cross *= inverse
    real = np.ascontiguousarray(cross.real)
    total = cross.sum(axis=-1)
    cost = (energy * np.einsum("...ij,...ij->...i", inverse, power) - total.real).sum(axis=-1)
    # (|c_i|^2 - |c_j|^2) / S = 2 |c_i|^2 / S - 1: the -1 goes into the total.
    pull = inverse * power_skew
    pull *= energy[..., None, :]
    pull += 2.0 * real
    gradient = energy * np.einsum("...ij,...ij->...i", inverse, pull) - total
    return cost, gradient, np.maximum(real, floor)


def _edge_phase_variance(phases: NDArray, correlation: NDArray, size: NDArray) -> NDArray:
    """Variance (...) in rad^2 of the phase of a pair about the fitted phases, as closed loops show it; 0 on a tree.

    ``2 (1 - mean cosine)``, weighted by |R|, over the share of pairs that close loops.
    """
    num_pairs = 0.5 * (size > 0).sum(axis=(-2, -1))
    num_loops = num_pairs - phases.shape[-1] + 1
    aligned = (phases.conj() * (correlation @ phases[..., None])[..., 0]).real.sum(axis=-1)
    spread = 2.0 * (1.0 - aligned / size.sum(axis=(-2, -1)))
    return np.where(num_loops > 0, spread * num_pairs / np.maximum(num_loops, 1), 0.0)


def maximum_likelihood(
    power: NDArray, correlation: NDArray, *, max_iterations: int = 100, tolerance: float = 1e-12
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
    tolerance : expected next step of log c at which the iteration ends; the error left may be larger by the condition
        of the graph, M^2/10 on a ring.

    References
    ----------
    J. Vieira and E. G. Larsson, "Reciprocity calibration of distributed massive MIMO access points for coherent
    operation" (beam sweep), section II-C, eq. (10): the same cost, minimised there by alternation.
    """
    power_skew = power - np.swapaxes(power, -2, -1)
    slack = _COST_ROUNDING * power.sum(axis=(-2, -1))
    size = np.abs(correlation)
    floor = 0.5 * _WEIGHT_FLOOR * size  # |z| is at most |R| / 2
    phases = spectral_phases(correlation, size)
    active = _edge_phase_variance(phases, correlation, size) <= _MAX_EDGE_PHASE_VARIANCE
    c = phases * np.exp(_log_magnitudes(power_skew, size))
    cost, gradient, weights = _expand(c, power, power_skew, correlation, floor)
    slope = np.abs(gradient).max(axis=-1)
    for _ in range(max_iterations):
        # Real and imaginary part are two right-hand sides of the same real system.
        step = -solve_laplacian(weights, gradient[..., None].view(float)).view(complex)[..., 0]
        step *= active[..., None]
        length = np.abs(step).max(axis=-1)
        share = 1.0 / np.maximum(length, 1.0)
        trial = c * np.exp(share[..., None] * step)
        expansion = _expand(trial, power, power_skew, correlation, floor)
        while (worse := expansion[0] > cost + slack).any():
            # After 30 halvings the step is rounding error: stay where we are.
            share = np.where(worse, np.where(share > 1e-9, 0.5 * share, 0.0), share)
            trial = c * np.exp(share[..., None] * step)
            expansion = _expand(trial, power, power_skew, correlation, floor)
        c, (cost, gradient, weights) = trial, expansion
        # Convergence is linear, its rate set by the noise: steps shrink as the gradient does.
        last, slope = slope, np.abs(gradient).max(axis=-1)
        if (length * np.minimum(slope, last)).max() <= tolerance * last.max() or length.max() < tolerance:
            break
    return c
