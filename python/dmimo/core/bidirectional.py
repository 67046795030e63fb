# SPDX-License-Identifier: GPL-3.0-or-later
r"""Calibration coefficients and delays of TRPs and UEs from the two-way coefficients of their links.

.. math:: C_{mn}(k) = \frac{c^U_n}{c^B_m} e^{-4j \pi k \Delta (\tau_n - \tau_m)} + w, \qquad c = \beta^t / \beta^r

for TRP m, UE n and subcarrier k from band centre (`cars`). Only ratios of c and differences of delays can be known.
Nodes are numbered TRPs first: UE n is node M + n.

References
----------
Bidirectional calibration (CARS), section III-B, eq. (23) to (29).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bidirectional_bounds import bipartite
from .delay import DelayEstimate, delay_estimate, residual_variance
from .graph import DisconnectedGraphError, require_connected, solve_laplacian
from .reciprocity import fix_gauge

# Newton's method squares the error of the start, a fraction of a deviation: more only where links contradict.
_MAX_STEPS = 20
_TOLERANCE = 1e-12
# Nodes from which on a smaller eigenproblem, solved a few times, is faster than the whole.
_LARGE = 40
# Squared sine of the last step of the Rayleigh-quotient iteration: the next one is its cube.
_SETTLED = 1e-10
# Relative distance of its eigenvalue from the energy of the weakest node below which it would lose more than 3 digits.
_POLE_DISTANCE = 1e-3
# Smallest curvature of a link's likelihood relative to that at its peak, so that the steps stay uphill.
_CURVATURE_FLOOR = 0.05
# Noise variance of an element relative to its energy below which a link counts as noiseless: its residual, a difference
# of sums, is rounding there, and must not make the links' weights differ by orders.
_RELATIVE_VARIANCE_FLOOR = 1e-13


class DisconnectedLinksError(DisconnectedGraphError):
    """The links that carry a signal do not join all TRPs and UEs; `components` holds the node numbers."""

    def __init__(self, parts: tuple[tuple[int, ...], ...], num_trp: int):
        super().__init__(parts)
        listed = ", ".join(
            "{" + ", ".join(f"TRP {k}" if k < num_trp else f"UE {k - num_trp}" for k in part) + "}" for part in parts
        )
        self.args = (f"the links above their thresholds do not join all nodes; the components are {listed}",)


@dataclass(frozen=True, eq=False)
class BidirectionalCalibration:
    """Coefficients at band centre, and delays, of all nodes.

    Attributes
    ----------
    c_trp, c_ue : (..., M) and (..., N), in the gauge of `reference`.
    delay_trp_s, delay_ue_s : (..., M) and (..., N), one-way offsets tau relative to the reference, or with zero mean.
    used : (..., M, N) bool, links that counted; the others were below their threshold.
    spacing : of the subcarriers in Hz.
    time_s : to which the coefficients belong.
    """

    c_trp: NDArray
    c_ue: NDArray
    delay_trp_s: NDArray
    delay_ue_s: NDArray
    used: NDArray
    spacing: float
    time_s: float = 0.0

    def trp(self, subcarriers: ArrayLike) -> NDArray:
        """Coefficients (..., M, K) of the TRPs on the given subcarriers: ``h_dl = c h_ul`` up to a factor per UE."""
        return _on_subcarriers(self.c_trp, self.delay_trp_s, self.spacing, subcarriers)

    def ue(self, subcarriers: ArrayLike) -> NDArray:
        """Coefficients (..., N, K) of the UEs on the given subcarriers: ``h_ul = c h_dl`` up to a factor per TRP."""
        return _on_subcarriers(self.c_ue, self.delay_ue_s, self.spacing, subcarriers)


def link_estimates(
    c: ArrayLike, subcarriers: ArrayLike, spacing: float, *, max_delay: float | None = None
) -> DelayEstimate:
    """Step 1: delay, gain and trust of each link (..., M, N), see `delay.delay_estimate`.

    Parameters
    ----------
    c : (..., M, N, K), C on the pilots of each link.
    subcarriers : (K,), or (M, N, K) as `ofdm.CombMapping.subcarriers` gives them.
    spacing : Hz.
    max_delay : largest ``|tau_n - tau_m|`` in s; C is searched up to twice that.
    """
    c = np.asarray(c, complex)
    if c.ndim < 3:
        raise ValueError(f"c has shape {c.shape}; it must be (..., M, N, K)")
    return delay_estimate(c, subcarriers, spacing, max_delay=None if max_delay is None else 2.0 * max_delay)


def ml_tls(
    c: ArrayLike,
    subcarriers: ArrayLike,
    spacing: float,
    *,
    max_delay: float | None = None,
    reference: int | None = 0,
    time_s: float = 0.0,
) -> BidirectionalCalibration:
    """The paper's two steps: ML delay and gain of each link, then total least squares over all gains.

    The delays of the nodes are the least-squares fit to those of the links. Parameters as `link_estimates`;
    `reference` is the node with c = 1 and delay 0, None: mean |c|^2 = 1, angle(c[0]) = 0 and delays of zero mean.

    Raises
    ------
    DisconnectedLinksError
        If the links above their thresholds do not join all nodes.
    """
    links = link_estimates(c, subcarriers, spacing, max_delay=max_delay)
    require_links(links.trusted)
    nodes = tls_coefficients(links.gain, links.trusted)
    delays = node_delays(links.delay_s, links.trusted.astype(float))
    return node_calibration(nodes, delays, links.trusted, spacing, reference, time_s)


def joint_ml(
    c: ArrayLike,
    subcarriers: ArrayLike,
    spacing: float,
    *,
    max_delay: float | None = None,
    reference: int | None = 0,
    time_s: float = 0.0,
) -> BidirectionalCalibration:
    """Joint estimate: node delays that maximise the likelihood of all links together, then weighted rank-1 gains.

    M N links hold M + N - 1 delays and coefficients: fitting these directly, each link weighted by the inverse of its
    residual variance, attains the bound (`bidirectional_bounds.link_laplacian_pinv`) where the two steps do not.
    Parameters and errors as `ml_tls`.
    """
    c = np.asarray(c, complex)
    links = link_estimates(c, subcarriers, spacing, max_delay=max_delay)
    used = links.trusted
    require_links(used)
    # Links that are not used may hold anything.
    c = np.where(used[..., None], c, 0.0)
    energy = np.sum(c.real**2 + c.imag**2, axis=-1)
    num_pilots = c.shape[-1]
    k = np.broadcast_to(np.asarray(subcarriers), c.shape)
    precision = _inverse_variance(links.element_var, energy, num_pilots, used)
    start = node_delays(links.delay_s, precision * energy * np.var(k, axis=-1))
    delays = _refined_delays(c, k, spacing, precision, start)
    turn = 2j * np.pi * spacing * k * _link_delays(delays, *used.shape[-2:])[..., None]
    gain = np.mean(c * np.exp(turn), axis=-1)
    precision = _inverse_variance(residual_variance(energy, gain, num_pilots), energy, num_pilots, used)
    nodes = rank_one(gain, precision, tls_coefficients(gain, used))
    return node_calibration(nodes, delays, used, spacing, reference, time_s)


def require_links(used: NDArray) -> None:
    """Raise DisconnectedLinksError unless the links (..., M, N) join all TRPs and UEs."""
    try:
        require_connected(bipartite(np.asarray(used, bool)))
    except DisconnectedGraphError as error:
        raise DisconnectedLinksError(error.components, np.shape(used)[-2]) from None


def tls_coefficients(gain: NDArray, used: NDArray) -> NDArray:
    r"""Step 2: [c_B; c_U] (..., M + N), unit norm, that minimise :math:`\sum |c^B_m g_{mn} - c^U_n|^2`.

    The eigenvector of the smallest eigenvalue of

    .. math:: A = \begin{bmatrix} \mathrm{diag}_m \sum_n |g_{mn}|^2 & -g^* \\ -g^T & M I_N \end{bmatrix}

    with sums over the used links (M is their number per UE). This is "tls" of `reciprocity.calibrate` with
    ``y[m, n] = g`` and ``y[n, m] = 1``. Of many nodes only a matrix of the smaller side is decomposed.

    References
    ----------
    Bidirectional calibration (CARS), eq. (27) to (29). Deviation: the block printed as (28c), in place of A21, is A12
    and must be conjugated.
    """
    gain = np.where(used, gain, 0.0)
    energy, count = np.sum(gain.real**2 + gain.imag**2, axis=-1), used.sum(axis=-2).astype(float)
    if sum(gain.shape[-2:]) >= _LARGE:
        if gain.shape[-2] >= gain.shape[-1]:
            nodes = _smallest_eigenvector(energy, count, -gain.conj())
        else:
            nodes = _smallest_eigenvector(count, energy, -np.swapaxes(gain, -2, -1))
            nodes = None if nodes is None else np.roll(nodes, gain.shape[-2], axis=-1)
        if nodes is not None:
            return nodes
    num_trp = gain.shape[-2]
    cost = np.zeros((*gain.shape[:-2], sum(gain.shape[-2:]), sum(gain.shape[-2:])), complex)
    # The eigensolver reads the lower triangle only.
    cost[..., num_trp:, :num_trp] = -np.swapaxes(gain, -2, -1)
    index = np.arange(cost.shape[-1])
    cost[..., index, index] = np.concatenate([energy, count], axis=-1)
    return np.linalg.eigh(cost)[1][..., 0]


def _smallest_eigenvector(first: NDArray, second: NDArray, block: NDArray) -> NDArray | None:
    r"""Eigenvector (..., P + Q) of the smallest eigenvalue of ``[[diag(first), block], [block^H, diag(second)]]``.

    Rayleigh-quotient iteration, cubic, in which the first part is eliminated: what is left is the Q x Q matrix

    .. math:: F(\lambda) = \mathrm{diag}(s) - \lambda - B^H (\mathrm{diag}(f) - \lambda)^{-1} B

    It starts from the smallest eigenvector of F(0). None if it does not end at the smallest eigenvalue, which it has
    not if F just below is not positive definite, or so close to one of f that the inverse loses digits.
    """
    pole = first.min(axis=-1)
    if not np.all(pole > 0):
        return None
    back, index = np.swapaxes(block.conj(), -2, -1), np.arange(block.shape[-1])

    def schur(value: NDArray) -> tuple[NDArray, NDArray]:
        """F at these values, and the inverse of diag(f) - value."""
        inverse = 1.0 / (first - value[..., None])
        matrix = back @ (-inverse[..., None] * block)
        matrix[..., index, index] += second - value[..., None]
        return matrix, inverse

    matrix, inverse = schur(np.zeros(pole.shape))
    y = np.linalg.eigh(matrix)[1][..., 0]
    x = -inverse * (block @ y[..., None])[..., 0]
    for _ in range(_MAX_STEPS):
        size = np.sqrt(np.sum(np.abs(x) ** 2, axis=-1) + np.sum(np.abs(y) ** 2, axis=-1))[..., None]
        x, y = x / size, y / size
        crossed = (block @ y[..., None])[..., 0]
        value = np.sum(first * np.abs(x) ** 2 + 2.0 * (x.conj() * crossed).real, axis=-1)
        value += np.sum(second * np.abs(y) ** 2, axis=-1)
        # Just below, where the matrix is not quite singular, and must be positive definite in the end.
        value = value - _TOLERANCE * pole
        if not np.all(value < (1.0 - _POLE_DISTANCE) * pole):
            return None
        matrix, inverse = schur(value)
        try:
            y_new = np.linalg.solve(matrix, y[..., None] - back @ (inverse * x)[..., None])
            x_new = inverse * (x - (block @ y_new)[..., 0])
            y_new = y_new[..., 0]
            size = np.sum(np.abs(x_new) ** 2, axis=-1) + np.sum(np.abs(y_new) ** 2, axis=-1)
            overlap = np.sum(x.conj() * x_new, axis=-1) + np.sum(y.conj() * y_new, axis=-1)
            x, y = x_new, y_new
            if np.all(size - np.abs(overlap) ** 2 <= _SETTLED * size):
                np.linalg.cholesky(matrix)
                return np.concatenate([x, y], axis=-1) / np.sqrt(size)[..., None]
        except np.linalg.LinAlgError:
            return None
    return None


def node_delays(link_delay_s: NDArray, weights: NDArray) -> NDArray:
    """Weighted least-squares tau (..., M + N), zero mean, of ``2 (tau_n - tau_m)`` = link delays (..., M, N)."""
    # Links without weight may hold nan.
    pull = 0.5 * weights * np.where(weights > 0, link_delay_s, 0.0)
    scale = weights.max(axis=(-2, -1), keepdims=True)
    right = _to_nodes(pull / scale)
    return solve_laplacian(bipartite(weights / scale), right[..., None])[..., 0]


def rank_one(gain: NDArray, precision: NDArray, start: NDArray) -> NDArray:
    r"""[c_B; c_U] (..., M + N) that minimise :math:`\sum p_{mn} |g_{mn} - c^U_n / c^B_m|^2`, p = `precision`.

    Fisher scoring on log c: each step is one Laplacian system with the weights :math:`p |c^U / c^B|^2`. Its fixed
    points are those of alternating least squares, which needs O((M + N)^2) rounds on a chain of links where this
    needs about five. A zero-sum step keeps the product of all coefficients.
    """
    num_trp = gain.shape[-2]
    x = np.log(start)
    for _ in range(_MAX_STEPS):
        model = np.exp(x[..., None, num_trp:] - x[..., :num_trp, None])
        weights = precision * np.abs(model) ** 2
        pull = precision * model.conj() * np.where(precision > 0, gain - model, 0.0)
        scale = weights.max(axis=(-2, -1), keepdims=True)
        right = _to_nodes(pull / scale)
        step = solve_laplacian(bipartite(weights / scale), np.stack([right.real, right.imag], axis=-1))
        length = np.abs(step).max()
        x = x + (step[..., 0] + 1j * step[..., 1]) / max(length, 1.0)
        if length < _TOLERANCE:
            break
    return np.exp(x)


def node_calibration(
    nodes: NDArray, delays: NDArray, used: NDArray, spacing: float, reference: int | None, time_s: float
) -> BidirectionalCalibration:
    """Coefficients (..., M + N) and delays of all nodes in the gauge of `reference` (see `ml_tls`)."""
    num_trp, num_ue = used.shape[-2:]
    if reference is not None and not 0 <= reference < num_trp + num_ue:
        raise ValueError(f"reference = {reference} must be None or a node from 0 to {num_trp + num_ue - 1}")
    nodes = fix_gauge(nodes, reference)
    origin = delays.mean(axis=-1, keepdims=True) if reference is None else delays[..., reference, None]
    delays = delays - origin
    return BidirectionalCalibration(
        nodes[..., :num_trp], nodes[..., num_trp:], delays[..., :num_trp], delays[..., num_trp:], used, spacing, time_s
    )


def _refined_delays(c: NDArray, k: NDArray, spacing: float, precision: NDArray, delays: NDArray) -> NDArray:
    """Newton's method on the node delays for the likelihood of all links, their gains free."""
    num_trp, num_ue, num_pilots = c.shape[-3:]
    x = 2.0 * np.pi * spacing * (k - k.mean(axis=-1, keepdims=True))
    peak = np.sum(x**2, axis=-1) * np.sum(c.real**2 + c.imag**2, axis=-1)
    for _ in range(_MAX_STEPS):
        turned = c * np.exp(1j * x * _link_delays(delays, num_trp, num_ue)[..., None])
        s0, s1, s2 = (np.sum(turned * x**power, axis=-1) for power in range(3))
        # |s0|^2 / K over the noise variance is the log-likelihood; links turn by twice the nodes' delays.
        slope = -2.0 * np.imag(s0.conj() * s1) * (2.0 * precision / num_pilots)
        curvature = 2.0 * (np.real(s0.conj() * s2) - np.abs(s1) ** 2)
        curvature = np.maximum(curvature, _CURVATURE_FLOOR * peak) * (4.0 * precision / num_pilots)
        scale = curvature.max(axis=(-2, -1), keepdims=True)
        step = solve_laplacian(bipartite(curvature / scale), _to_nodes(slope / scale)[..., None])[..., 0]
        delays = delays + step
        if np.abs(step).max() * np.abs(x).max() < _TOLERANCE:
            break
    return delays


def _inverse_variance(element_var: NDArray, energy: NDArray, num_pilots: int, used: NDArray) -> NDArray:
    """Precision (..., M, N) of one element of each link, relative to the largest; 0 for links that are not used."""
    floor = _RELATIVE_VARIANCE_FLOOR * energy / num_pilots
    variance = np.where(used, np.maximum(element_var, floor), 1.0)
    precision = np.where(used, 1.0 / variance, 0.0)
    return precision / precision.max(axis=(-2, -1), keepdims=True)


def _link_delays(delays: NDArray, num_trp: int, num_ue: int) -> NDArray:
    """Delays of C (..., M, N), ``2 (tau_n - tau_m)``."""
    return 2.0 * (delays[..., None, num_trp:] - delays[..., :num_trp, None])


def _to_nodes(links: NDArray) -> NDArray:
    """Sums (..., M + N) of what each link (..., M, N) adds to its UE and takes from its TRP."""
    return np.concatenate([-links.sum(axis=-1), links.sum(axis=-2)], axis=-1)


def _on_subcarriers(c: NDArray, delay_s: NDArray, spacing: float, subcarriers: ArrayLike) -> NDArray:
    return c[..., None] * np.exp(-4j * np.pi * spacing * np.asarray(subcarriers) * delay_s[..., None])
