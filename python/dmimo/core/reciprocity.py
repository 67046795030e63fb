# SPDX-License-Identifier: GPL-3.0-or-later
"""Relative reciprocity calibration: pair statistics and every estimator on them.

One problem on a graph. Port j transmits, port i receives, the propagation h is reciprocal and the chains are not:

    y[i, j, q] = r_i h_q t_j + n        y[j, i, q] = r_j h_q t_i + n'

With ``c_m = t_m / r_m`` and the unknown path values ``psi_q = r_i r_j h_q`` this is ``u = c_j psi + n``,
``v = c_i psi + n'``: what is known about ``c_i / c_j`` enters only through the energies of u and v and their
correlation. All estimators here work on these three numbers per pair, whatever the number of beams, pilots or
subcarriers behind them.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import reciprocity_baselines as baselines
from .detection import beam_pair_weights, edge_detection, edge_weights
from .graph import DisconnectedGraphError, require_connected
from .maximum_likelihood import maximum_likelihood

__all__ = [
    "DisconnectedGraphError",
    "Method",
    "PairStatistics",
    "beam_pair_weights",
    "calibrate",
    "edge_detection",
    "edge_weights",
    "fix_gauge",
    "pair_beam_sweep",
    "pair_statistics",
]

Method = Literal["argos", "argos_mean", "least_squares", "tls", "spanning_tree", "ml"]


@dataclass(frozen=True, eq=False)
class PairStatistics:
    """Sufficient statistics of all pairs; whitened if ``noise_var`` is not None. Pairs not measured hold zero.

    Attributes
    ----------
    power : (..., M, M) ``P_ij = |y_ij|^2 / s_i``, energy received by i from j.
    correlation : (..., M, M) ``R_ij = y_ij^H y_ji / sqrt(s_i s_j)``, Hermitian, ``c_i c_j^* |psi|^2`` without noise.
    num_components : Q, the number of path components summed.
    noise_var : (M,) the ``s_i`` that the statistics were divided by, or None (``s_i = 1``).
    """

    power: NDArray
    correlation: NDArray
    num_components: int
    noise_var: NDArray | None = None

    def __add__(self, other: "PairStatistics") -> "PairStatistics":
        """Statistics of both sets of measurements together, with the same c and the same noise."""
        if (self.noise_var is None) != (other.noise_var is None) or (
            self.noise_var is not None and not np.array_equal(self.noise_var, other.noise_var)
        ):
            raise ValueError("statistics whitened with different noise variances cannot be added")
        return PairStatistics(
            self.power + other.power,
            self.correlation + other.correlation,
            self.num_components + other.num_components,
            self.noise_var,
        )


def pair_beam_sweep(sweep: ArrayLike) -> NDArray:
    """Measurements (..., M, M, B*B) in which y[i, j, q] and y[j, i, q] went over the same pair of beams.

    ``sweep[..., i, j, a, b]`` was received by i with beam a from j with beam b, so the reverse direction of the same
    path is ``sweep[..., j, i, b, a]``: the component index is ``a*B + b`` for i < j and ``b*B + a`` for i > j. The
    transpose is essential; without it, the two directions have nothing in common.
    """
    sweep = np.asarray(sweep)
    if sweep.ndim < 4 or sweep.shape[-4] != sweep.shape[-3] or sweep.shape[-2] != sweep.shape[-1]:
        raise ValueError(f"sweep must have shape (..., M, M, B, B), not {sweep.shape}")
    below = np.tri(sweep.shape[-4], k=-1, dtype=bool)[:, :, None, None]
    paired = np.where(below, np.swapaxes(sweep, -2, -1), sweep)
    return paired.reshape(*sweep.shape[:-2], -1)


def pair_statistics(
    y: ArrayLike, *, noise_var: ArrayLike | None = None, mask: ArrayLike | None = None, weights: ArrayLike | None = None
) -> PairStatistics:
    """Energies and correlations of all pairs, the sufficient statistics of c.

    Parameters
    ----------
    y : (..., M, M, Q) complex, y[..., i, j, q] received by i from j over path component q; y[..., j, i, q] went over
        the same path. The diagonal is ignored.
    noise_var : scalar or (M,), noise variance of each receiver; the statistics are then in units of the noise and
        estimators weight the receivers correctly (whitening). None: equal receivers.
    mask : (M, M) bool, True where measured. A pair counts only if both directions are measured; what the others hold
        (also nan) is ignored.
    weights : (..., M, M, Q) non-negative weight of each component, equal for both directions, such as
        `beam_pair_weights` gives.

    Raises
    ------
    ValueError
        If a measured pair holds nan or inf (the message names it), or a shape or the noise variance is wrong.
    """
    y = np.asarray(y)
    if y.ndim < 3 or y.shape[-3] != y.shape[-2]:
        raise ValueError(f"y must have shape (..., M, M, Q), not {y.shape}")
    num_ports = y.shape[-2]
    measured = measured_pairs(mask, num_ports)
    y = np.where(measured[:, :, None], y, 0.0).astype(np.complex128, copy=False)
    weighted = y if weights is None else y * np.asarray(weights)
    power = np.einsum("...q,...q->...", weighted.real, y.real) + np.einsum("...q,...q->...", weighted.imag, y.imag)
    _require_finite(power, "y")
    correlation = np.einsum("...ijq,...jiq->...ij", weighted.conj(), y)
    if noise_var is not None:
        noise_var = check_noise_var(noise_var, num_ports)
    return _whiten(PairStatistics(power, correlation, y.shape[-1]), noise_var)


def calibrate(
    y_or_statistics: ArrayLike | PairStatistics,
    method: Method = "ml",
    *,
    reference: int | None = 0,
    noise_var: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> NDArray:
    """Calibration coefficients c (..., M), ``c_m = t_m / r_m`` up to the common factor that `reference` fixes.

    Parameters
    ----------
    y_or_statistics : measurements (..., M, M, Q) or the result of `pair_statistics`.
    method : "ml", maximum likelihood (`maximum_likelihood`); "argos", ratio to the reference; "argos_mean", mean of
        those ratios over two-hop routes; "least_squares" and "tls", the cost ``sum |c_i y_ij - c_j y_ji|^2`` with
        ``c[reference] = 1`` and with ``|c| = 1``; "spanning_tree", product along the maximum-coherence tree.
    reference : port with c = 1; None: mean |c|^2 = 1 and angle(c[0]) = 0 (methods that need one port use port 0).
    noise_var : scalar or (M,) per receiver; not together with statistics that are whitened already.
    mask : (M, M) bool, True where measured; see `pair_statistics`.
    weights : (..., M, M) weight of each pair, such as `edge_weights` gives.

    Raises
    ------
    ValueError
        For inconsistent arguments, nan in measured data, and "argos" with a port that has no direct pair with the
        reference. DisconnectedGraphError, naming the components, if the measured pairs do not join all ports.
    """
    statistics = _as_statistics(y_or_statistics, noise_var, mask)
    power, correlation = statistics.power, statistics.correlation
    if weights is not None:
        weights = np.asarray(weights)
        power, correlation = power * weights, correlation * weights
    num_ports = power.shape[-1]
    if num_ports < 2:
        raise ValueError(f"at least 2 ports are needed, not {num_ports}")
    if reference is not None and not 0 <= reference < num_ports:
        raise ValueError(f"reference = {reference} must be None or a port from 0 to {num_ports - 1}")
    # A pair with an exactly zero correlation says nothing about its ratio.
    require_connected(correlation != 0)
    root = 0 if reference is None else reference
    if method == "ml":
        c = maximum_likelihood(power, correlation)
    elif method in baselines.ESTIMATORS:
        c = baselines.ESTIMATORS[method](power, correlation, root)
    else:
        raise ValueError(f'method = "{method}" must be "ml" or one of {", ".join(baselines.ESTIMATORS)}')
    if statistics.noise_var is not None:
        c = c / np.sqrt(statistics.noise_var)
    return fix_gauge(c, reference)


def fix_gauge(c: NDArray, reference: int | None) -> NDArray:
    """c (..., M) scaled to ``c[reference] = 1``, or for None to mean |c|^2 = 1 and angle(c[0]) = 0."""
    if reference is not None:
        c = c / c[..., reference, None]
        c[..., reference] = 1.0
        return c
    c = c * np.exp(-1j * np.angle(c[..., :1]))
    return c / np.sqrt(np.mean(np.abs(c) ** 2, axis=-1, keepdims=True))


def measured_pairs(mask: ArrayLike | None, num_ports: int) -> NDArray:
    """(M, M) symmetric bool: pairs measured in both directions, without the diagonal."""
    if mask is None:
        return ~np.eye(num_ports, dtype=bool)
    mask = np.asarray(mask)
    if mask.shape != (num_ports, num_ports) or mask.dtype != bool:
        raise ValueError(f"mask must be bool with shape ({num_ports}, {num_ports}), not {mask.dtype} {mask.shape}")
    return mask & mask.T & ~np.eye(num_ports, dtype=bool)


def check_noise_var(noise_var: ArrayLike, num_ports: int) -> NDArray:
    """noise_var as (M,) float, positive and finite."""
    value = np.asarray(noise_var, float)
    if value.shape not in ((), (num_ports,)) or not np.all((value > 0) & np.isfinite(value)):
        raise ValueError(f"noise_var = {noise_var} must be positive, a scalar or one for each of {num_ports} ports")
    return np.broadcast_to(value, (num_ports,))


def _require_finite(values: NDArray, name: str) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        *batch, i, j = np.argwhere(bad)[0].tolist()
        where = f" at batch index {tuple(batch)}" if batch else ""
        raise ValueError(f"{name} of the measured pair ({i}, {j}), receiver {i}, holds nan or inf{where}")


def _whiten(statistics: PairStatistics, noise_var: NDArray | None) -> PairStatistics:
    if noise_var is None:
        return statistics
    scale = 1.0 / np.sqrt(noise_var)
    correlation = statistics.correlation * (scale[:, None] * scale)
    return replace(
        statistics, power=statistics.power / noise_var[:, None], correlation=correlation, noise_var=noise_var
    )


def _as_statistics(y_or_statistics, noise_var, mask) -> PairStatistics:
    if not isinstance(y_or_statistics, PairStatistics):
        return pair_statistics(y_or_statistics, noise_var=noise_var, mask=mask)
    statistics = y_or_statistics
    num_ports = statistics.power.shape[-1]
    if mask is not None:
        measured = measured_pairs(mask, num_ports)
        statistics = replace(
            statistics,
            power=np.where(measured, statistics.power, 0.0),
            correlation=np.where(measured, statistics.correlation, 0.0),
        )
    _require_finite(statistics.power, "power")
    _require_finite(statistics.correlation, "correlation")
    if noise_var is None:
        return statistics
    if statistics.noise_var is not None:
        raise ValueError("noise_var is given twice: these statistics are whitened already")
    return _whiten(statistics, check_noise_var(noise_var, num_ports))
