# SPDX-License-Identifier: GPL-3.0-or-later
r"""Sufficient statistics of amplitude-swept pilots: all that identification needs, whatever the number of pilots.

.. math:: y_{im,k} = g_{im} F_m(x_k) + w, \qquad g_{im} = r_i h_{im} a_{1,m}

With the basis :math:`\phi_d` of `amplifier_model` the pilots enter only through the Gram matrix of the basis, the
correlation of each pair with it, and each pair's energy. Statistics of more pilots are sums.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .amplifier_model import legendre_basis, legendre_to_powers, num_terms

# Terms beyond the order asked for that are accumulated to tell a model that is too small from noise.
PROBE_TERMS = 2


@dataclass(frozen=True, eq=False)
class PilotStatistics:
    r"""What all pilots say about all amplifiers. D = P' L functions :math:`\phi_d`, p-major, P' with the probe terms.

    Attributes
    ----------
    gram : (..., M_tx, D, D), or (D, D) for pilots common to all, :math:`\sum_k \phi_d^* \phi_{d'}`.
    correlation : (..., M_rx, M_tx, D), :math:`\sum_k \phi_d^*(x_k) y_k`; zero for pairs that are not used.
    energy : (..., M_rx, M_tx), :math:`\sum_k |y_k|^2`.
    used : (..., M_rx, M_tx) bool: neither masked nor the transmitter's own antenna, finite and not saturated.
    saturated : (..., M_rx, M_tx) bool: some sample reached the receiver's full scale.
    num_samples : K that were summed.
    order, memory_depth : asked for; identification may use any lower order.
    peak : amplitude at which the basis is scaled, the largest of the pilots.
    """

    gram: NDArray
    correlation: NDArray
    energy: NDArray
    used: NDArray
    saturated: NDArray
    num_samples: int
    order: int
    memory_depth: int
    peak: float

    def __add__(self, other: "PilotStatistics") -> "PilotStatistics":
        """Statistics of both sets of pilots together; pairs unused in either are unused."""
        for name in ("order", "memory_depth", "peak"):
            if getattr(self, name) != getattr(other, name):
                raise ValueError(f"statistics with {name} {getattr(self, name)} and {getattr(other, name)} do not add")
        return replace(
            self,
            gram=self.gram + other.gram,
            correlation=self.correlation + other.correlation,
            energy=self.energy + other.energy,
            used=self.used & other.used,
            saturated=self.saturated | other.saturated,
            num_samples=self.num_samples + other.num_samples,
        )


def pilot_statistics(
    y: ArrayLike,
    pilots: ArrayLike,
    *,
    order: int = 3,
    memory_depth: int = 1,
    mask: ArrayLike | None = None,
    full_scale: float | None = None,
    peak: float | None = None,
) -> PilotStatistics:
    r"""Sufficient statistics of the amplifiers' coefficients; see `PilotStatistics`.

    Parameters
    ----------
    y : (..., M_rx, M_tx, K) complex, received by i while m transmits its pilots. Pairs with nan or inf are not used.
    pilots : (K,), or (M_tx, K) or (..., M_tx, K), complex amplifier inputs x_k. With memory they are successive
        samples, and the first memory_depth - 1 only serve as the past of the others.
    order : odd, highest order to identify; two more terms are accumulated to detect a larger one.
    mask : (..., M_rx, M_tx) bool, True where measured. None: all. Where M_rx = M_tx, receiver m is transmitter m's own
        antenna, and the diagonal is ignored.
    full_scale : amplitude of the real or imaginary part at which receivers clip; pairs that reach it are not used.
    peak : scale of the basis, only needed when statistics of pilots with different largest amplitudes shall be added.

    Raises
    ------
    ValueError
        If a shape does not fit, or pilots are not finite or all zero.
    """
    # In double precision: the noise is what a difference of energies leaves.
    y, pilots = np.asarray(y, np.complex128), np.asarray(pilots, np.complex128)
    _check_shapes(y, pilots)
    terms = num_terms(order) + PROBE_TERMS
    largest = float(np.abs(pilots).max(initial=0.0))
    if not (np.isfinite(largest) and largest > 0.0):
        raise ValueError("pilots must be finite and not all zero")
    peak = largest if peak is None else float(peak)
    if not largest <= peak * (1.0 + 1e-12):
        raise ValueError(f"peak = {peak} must not be below the largest pilot, {largest}")
    basis = legendre_basis(pilots, terms, memory_depth, peak)
    y = y[..., memory_depth - 1 :]
    with np.errstate(invalid="ignore", over="ignore"):
        energy = np.einsum("...k,...k->...", y.real, y.real) + np.einsum("...k,...k->...", y.imag, y.imag)
    used = np.isfinite(energy) & measured_pairs(mask, y.shape[-3:-1])
    saturated = np.zeros(used.shape, bool)
    if full_scale is not None:
        largest_part = np.maximum(np.abs(y.real).max(axis=-1), np.abs(y.imag).max(axis=-1))
        saturated = used & (largest_part >= full_scale)
        used = used & ~saturated
    if not np.all(used):
        y, energy = np.where(used[..., None], y, 0.0), np.where(used, energy, 0.0)
    conjugate = basis.conj()
    if pilots.ndim == 1:
        correlation = y @ conjugate
    else:
        correlation = np.swapaxes(np.swapaxes(y, -3, -2) @ conjugate, -3, -2)
    gram = np.swapaxes(conjugate, -1, -2) @ basis
    return PilotStatistics(
        gram, correlation, energy, used, saturated, basis.shape[-2], order, memory_depth, peak
    )


def matched_gains(statistics: PilotStatistics, coefficients: ArrayLike) -> tuple[NDArray, NDArray]:
    r"""Gains (..., M_rx, M_tx) of all links behind known amplifiers, and the energy (..., M_tx) of what these put out.

    The matched filter :math:`\hat g_{im} = \sum_k F_m^*(x_k) y_k / E_m`, :math:`E_m = \sum_k |F_m(x_k)|^2`, from the
    statistics alone; its variance is :math:`s_i / E_m`. Zero for pairs that are not used.

    Parameters
    ----------
    coefficients : (..., M_tx, P), with memory (..., M_tx, L, P), of F relative to the linear one, of an order not above
        that of the statistics.
    """
    depth, size = statistics.memory_depth, statistics.gram.shape[-1]
    powers = np.asarray(coefficients, complex)
    if depth > 1:  # p-major, as the basis
        powers = np.swapaxes(powers, -1, -2).reshape(*powers.shape[:-2], -1)
    if powers.shape[-1] > size:
        raise ValueError(f"coefficients of shape {np.shape(coefficients)} are of a higher order than the statistics")
    powers = np.concatenate([powers, np.zeros((*powers.shape[:-1], size - powers.shape[-1]))], axis=-1)
    to_powers = legendre_to_powers(size // depth, depth, statistics.peak)
    theta = np.linalg.solve(to_powers, powers[..., None])[..., 0]
    output = statistics.gram @ theta[..., None]
    energy = np.einsum("...d,...d->...", theta.conj(), output[..., 0]).real
    return np.einsum("...imd,...md->...im", statistics.correlation, theta.conj()) / energy[..., None, :], energy


def measured_pairs(mask: ArrayLike | None, shape: tuple[int, int]) -> NDArray:
    """(..., M_rx, M_tx) bool: measured, and not the transmitter's own antenna where receivers are the transmitters."""
    measured = ~np.eye(shape[0], dtype=bool) if shape[0] == shape[1] else np.ones(shape, bool)
    if mask is None:
        return measured
    mask = np.asarray(mask)
    if mask.shape[-2:] != shape or mask.dtype != bool:
        raise ValueError(f"mask must be bool with shape (..., {shape[0]}, {shape[1]}), not {mask.dtype} {mask.shape}")
    return mask & measured


def _check_shapes(y: NDArray, pilots: NDArray) -> None:
    if y.ndim < 3:
        raise ValueError(f"y must have shape (..., M_rx, M_tx, K), not {y.shape}")
    if pilots.ndim < 1 or pilots.shape[-1] != y.shape[-1] or (pilots.ndim > 1 and pilots.shape[-2] != y.shape[-2]):
        raise ValueError(
            f"pilots must have shape ({y.shape[-1]},) or (..., {y.shape[-2]}, {y.shape[-1]}), not {pilots.shape}"
        )
