# SPDX-License-Identifier: GPL-3.0-or-later
"""Cramer-Rao bounds of relative calibration, alone and jointly with oscillator frequencies and delays.

The Fisher information of ``log c`` is the Laplacian of a graph whose edge (i, j) has the weight

    w_ij = |psi_ij|^2 |c_i|^2 |c_j|^2 / (s_i |c_i|^2 + s_j |c_j|^2),

with psi the unknown path values (|psi_ij|^2 summed over components) in the model ``y_ij = c_j psi_ij + n``. Complex
errors: the covariance is ``E[x x^H]`` and the phase and the log magnitude have half of it each. Variances of
``log(c_i / c_j)`` are effective resistances; they are finite if and only if the graph is connected.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .graph import laplacian, laplacian_pinv, require_connected
from .synchronization_bounds import (
    ReturnCrlb,
    dominant_phase_offset_crlb,
    frequency_offset_crlb,
    high_snr_phase_offset_crlb,
    joint_return_crlb,
    phase_offset_crlb,
)

__all__ = [
    "JointCrlb",
    "ReturnCrlb",
    "alignment_error_crlb",
    "calibration_covariance",
    "calibration_crlb",
    "dominant_phase_offset_crlb",
    "edge_information",
    "frequency_offset_crlb",
    "high_snr_phase_offset_crlb",
    "joint_crlb",
    "joint_return_crlb",
    "phase_design",
    "phase_information",
    "phase_offset_crlb",
    "scaled_inverse",
]


def edge_information(
    c: ArrayLike,
    path_energy: ArrayLike,
    noise_var: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    num_components: int | None = None,
) -> NDArray:
    """Fisher information w_ij (..., M, M) of ``log(c_i / c_j)`` that each pair gives; see `calibration_crlb`."""
    path_energy = np.asarray(path_energy, float)
    num_ports = path_energy.shape[-1]
    measured = ~np.eye(num_ports, dtype=bool)
    if mask is not None:
        measured = measured & np.asarray(mask, bool) & np.asarray(mask, bool).T
    # What a pair that was not measured holds, also nan, must not matter.
    path_energy = np.where(measured, path_energy, 0.0)
    gain = np.abs(np.asarray(c)) ** 2
    noise = np.broadcast_to(np.asarray(noise_var, float), (num_ports,))
    loud = noise * gain
    spread = loud[..., :, None] + loud[..., None, :]
    weights = path_energy * gain[..., :, None] * gain[..., None, :] / spread
    if num_components is None:
        return weights
    squared = num_components * noise[:, None] * noise
    return weights * np.divide(
        path_energy, path_energy + squared / spread, out=np.zeros_like(weights), where=weights > 0
    )


def calibration_crlb(
    c: ArrayLike,
    path_energy: ArrayLike,
    noise_var: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    num_components: int | None = None,
    reference: int | None = None,
) -> NDArray:
    """Bound (..., M, M) on the covariance ``E[x x^H]`` of the error x of ``log c``.

    Parameters
    ----------
    c : (..., M) true coefficients (a common factor does matter: it scales psi).
    path_energy : (..., M, M) ``|psi_ij|^2``, the energy of ``y_ij`` without noise over ``|c_j|^2``; symmetric.
    noise_var : scalar or (M,), noise variance of one component at each receiver.
    mask : (M, M) bool, True where measured (in both directions).
    num_components : Q; if given, the noise-corrected variance instead of the bound: at low SNR noise times noise
        adds the factor ``1 + Q s_i s_j / (|psi|^2 (s_i |c_i|^2 + s_j |c_j|^2))`` to each pair, for equal noise and
        unit gains ``1 + Q s / (2 |psi|^2)``. Estimators that do not know psi reach this, not the bound.
    reference : None: errors with zero mean over the ports (pseudo-inverse); a port: errors relative to that port.

    Raises
    ------
    DisconnectedGraphError if the pairs with energy do not join all ports.
    """
    weights = edge_information(c, path_energy, noise_var, mask=mask, num_components=num_components)
    require_connected(weights > 0)
    covariance = laplacian_pinv(weights)
    if reference is None:
        return covariance
    return (
        covariance
        - covariance[..., reference, None, :]
        - covariance[..., :, reference, None]
        + covariance[..., reference, None, reference, None]
    )


def alignment_error_crlb(
    c: ArrayLike,
    path_energy: ArrayLike,
    noise_var: ArrayLike,
    *,
    mask: ArrayLike | None = None,
    num_components: int | None = None,
) -> NDArray:
    """Bound (...) on the mean of `metrics.alignment_error`, to first order in the error variance.

    ``(tr C - c^H C c / |c|^2) / |c|^2`` with ``C = diag(c) L^+ diag(c)^H``; ``tr(L^+)/M`` for |c| = 1. The metric is at
    most 1 and bends: its mean lies below a locally efficient estimator's bound by a relative amount of the order of
    the bound itself, so at a bound above 0.05 percent-level comparisons mean little. Parameters as `calibration_crlb`.
    """
    covariance = calibration_crlb(c, path_energy, noise_var, mask=mask, num_components=num_components)
    c = np.asarray(c)
    gain = np.abs(c) ** 2
    total = gain.sum(axis=-1)
    trace = (gain * np.diagonal(covariance, axis1=-2, axis2=-1)).sum(axis=-1)
    along = np.einsum("...i,...ij,...j->...", gain, covariance, gain) / total
    return (trace - along) / total


class JointCrlb(NamedTuple):
    """Bound on c, frequencies and delays estimated together, relative to the reference port and its node.

    covariance (M, M): ``E[x x^H]`` of log c. phase_var (M,) rad^2, frequency_var (M,) Hz^2, delay_var (M,) s^2, and
    phase_frequency_cov (M,) rad Hz. The reference has zeros.
    """

    covariance: NDArray
    phase_var: NDArray
    frequency_var: NDArray
    delay_var: NDArray
    phase_frequency_cov: NDArray


def joint_crlb(
    moments: NDArray,
    *,
    node_of_port: ArrayLike | None = None,
    reference: int = 0,
    estimate_frequency: bool = True,
    estimate_delay: bool = True,
) -> JointCrlb:
    """Bound with one frequency for each node and one delay for each port as further unknowns.

    The product of the two directions of pair (i, j) turns with ``4 pi (f_j - f_i) t - 2 pi nu (d_j - d_i)``, t the
    midpoint of its two times relative to the reference time and nu the subcarrier's frequency. The magnitudes of c
    do not couple with these; its phases do, through the moments of the pairs' information.

    Parameters
    ----------
    moments : (6, M, M), for each pair the sums over its elements of ``w, w t, w nu, w t^2, w t nu, w nu^2``, with w
        the `edge_information` of one element (t in seconds, nu in Hz).
    node_of_port : (M,) int, ports with the same number share a frequency; None: all differ.
    """
    num_ports = moments.shape[-1]
    nodes = np.arange(num_ports) if node_of_port is None else np.asarray(node_of_port)
    design = phase_design(nodes, reference, estimate_frequency=estimate_frequency, estimate_delay=estimate_delay)
    # Phases carry twice the information of the complex log ratio.
    covariance = design @ scaled_inverse(design.T @ phase_information(moments) @ design) @ design.T / 2.0
    magnitude = calibration_covariance(moments[0], reference) / 2.0
    variance = np.diagonal(covariance)
    phase = slice(0, num_ports)
    frequency = np.arange(num_ports, 2 * num_ports)
    return JointCrlb(
        magnitude + covariance[phase, phase],
        variance[phase],
        variance[frequency],
        variance[2 * num_ports :],
        covariance[frequency - num_ports, frequency],
    )


def scaled_inverse(a: NDArray) -> NDArray:
    """Inverse of a positive definite matrix whose rows have different units, so different sizes.

    Raises LinAlgError where an unknown is not determined: condition above 1e12 after scaling to a unit diagonal.
    """
    diagonal = np.diagonal(a)
    if np.any(diagonal <= 0) or not np.all(np.isfinite(a)):
        raise np.linalg.LinAlgError("an unknown does not appear in the measurements")
    scale = 1.0 / np.sqrt(diagonal)
    scaled = a * np.outer(scale, scale)
    if len(a) and np.linalg.eigvalsh(scaled)[0] < 1e-12:
        raise np.linalg.LinAlgError("a combination of unknowns is not determined by the measurements")
    return np.linalg.inv(scaled) * np.outer(scale, scale)


def calibration_covariance(weights: NDArray, reference: int) -> NDArray:
    """Inverse of the Laplacian of ``weights`` (M, M) with the reference held: zeros in its row and column."""
    others = np.delete(np.arange(len(weights)), reference)
    out = np.zeros(weights.shape)
    out[np.ix_(others, others)] = np.linalg.inv(laplacian(weights)[np.ix_(others, others)])
    return out


def phase_information(moments: NDArray) -> NDArray:
    """Matrix (3M, 3M) of the quadratic form of ``[phase; f; d]`` of all ports with the edge moments as weights."""
    turn, slope = 4.0 * np.pi, -2.0 * np.pi
    one, t, nu, tt, tnu, nunu = (laplacian(m) for m in moments)
    return np.block(
        [
            [one, turn * t, slope * nu],
            [turn * t, turn**2 * tt, turn * slope * tnu],
            [slope * nu, turn * slope * tnu, slope**2 * nunu],
        ]
    )


def phase_design(
    nodes: NDArray, reference: int, *, estimate_frequency: bool = True, estimate_delay: bool = True
) -> NDArray:
    """Matrix (3M, unknowns) from the free phases, node frequencies and delays to those of all ports."""
    num_ports = len(nodes)
    ports = np.delete(np.eye(num_ports), reference, axis=1)
    own = np.unique(nodes[nodes != nodes[reference]])
    by_node = (nodes[:, None] == own).astype(float)
    blocks = [(0, ports)]
    if estimate_frequency:
        blocks.append((1, by_node))
    if estimate_delay:
        blocks.append((2, ports))
    out = np.zeros((3 * num_ports, sum(block.shape[1] for _, block in blocks)))
    column = 0
    for row, block in blocks:
        out[row * num_ports : (row + 1) * num_ports, column : column + block.shape[1]] = block
        column += block.shape[1]
    return out
