# SPDX-License-Identifier: GPL-3.0-or-later
"""The alternating iteration of the beam-sweep paper, in three forms that compute the same thing.

Kept to be read, and as the reference for `maximum_likelihood`, which is what one uses. The model is

    y = [.. ; y_ij ; y_ji ; ..] = A(psi) c + n = C(c) psi + n,     y_ij = c_j psi_ij,  y_ji = c_i psi_ij,

and each iteration is ``c <- A(psi)^+ y`` (paper: after eq. (10)) followed by ``psi <- C(c)^+ y``. The cost never
increases.

Deviations: the paper prints the psi step as a product with C; it is a product with its pseudo-inverse. Only ratios of
c are observable, so psi is started from c.

References
----------
J. Vieira and E. G. Larsson, beam-sweep calibration of distributed massive MIMO access points, section II-C and II-D,
eq. (6)-(12).
"""

import numpy as np
from numpy.typing import NDArray


def pairs(num_ports: int, mask: NDArray | None = None) -> tuple[NDArray, NDArray]:
    """Indices i < j of the measured pairs."""
    measured = np.ones((num_ports, num_ports), bool) if mask is None else np.asarray(mask)
    return np.nonzero(np.triu(measured & measured.T, 1))


def iterate_matrices(y: NDArray, c: NDArray, mask: NDArray | None = None) -> NDArray:
    """c after one iteration from c (M,), with stacked matrices and pseudo-inverses, as printed; y is (M, M, Q)."""
    num_ports, _, num_components = y.shape
    i, j = pairs(num_ports, mask)
    stacked = np.stack([y[i, j], y[j, i]], axis=1).reshape(-1)
    # C(c): block diagonal over pairs, (2 Q) x Q each.
    eye = np.eye(num_components)
    big_c = np.zeros((stacked.size, len(i) * num_components), complex)
    for k, (a, b) in enumerate(zip(i, j, strict=True)):
        columns = slice(k * num_components, (k + 1) * num_components)
        big_c[2 * k * num_components : 2 * (k + 1) * num_components, columns] = np.vstack([c[b] * eye, c[a] * eye])
    psi = (np.linalg.pinv(big_c) @ stacked).reshape(len(i), num_components)
    # A(psi): column j of the rows y_ij and column i of the rows y_ji hold psi_ij.
    big_a = np.zeros((len(i), 2, num_components, num_ports), complex)
    edge = np.arange(len(i))
    big_a[edge, 0, :, j] = psi
    big_a[edge, 1, :, i] = psi
    return np.linalg.pinv(big_a.reshape(-1, num_ports)) @ stacked


def iterate_vectors(u: NDArray, v: NDArray, i: NDArray, j: NDArray, c: NDArray) -> NDArray:
    """c after one iteration from c (M,), each pair on its own vectors: u = y[i, j], v = y[j, i], (E, Q)."""
    total = np.abs(c[i]) ** 2 + np.abs(c[j]) ** 2
    psi = (c[j].conj() / total)[:, None] * u
    psi += (c[i].conj() / total)[:, None] * v
    energy = np.einsum("eq,eq->e", psi.view(float), psi.view(float))
    conjugate = psi.conj()[:, None, :]
    toward_j, toward_i = (conjugate @ u[:, :, None])[:, 0, 0], (conjugate @ v[:, :, None])[:, 0, 0]
    return _gather(i, j, toward_i, toward_j, len(c)) / _gather(i, j, energy, energy, len(c))


def iterate_statistics(power: NDArray, correlation: NDArray, c: NDArray) -> NDArray:
    """c after one iteration from c (..., M), from the statistics of `reciprocity.pair_statistics`: O(pairs).

    ``G_ij = (|c_j|^2 P_ij + |c_i|^2 P_ji + 2 Re(c_j c_i^* R_ij)) / S_ij^2 = |psi_ij|^2`` and
    ``c_i <- sum_j ((c_j R_ij + c_i P_ji) / S_ij) / sum_j G_ij``.
    """
    own, other = c[..., :, None], c[..., None, :]
    total = np.abs(own) ** 2 + np.abs(other) ** 2
    reverse = np.swapaxes(power, -2, -1)
    cross = np.real(other * own.conj() * correlation)
    energy = (np.abs(other) ** 2 * power + np.abs(own) ** 2 * reverse + 2.0 * cross) / total**2
    return ((other * correlation + own * reverse) / total).sum(axis=-1) / energy.sum(axis=-1)


def _gather(i, j, at_i, at_j, num_ports):
    """Sum over the pairs of each port of a value that belongs to the pair's end i or j."""
    out = np.zeros(num_ports, np.result_type(at_i, at_j))
    np.add.at(out, i, at_i)
    np.add.at(out, j, at_j)
    return out
