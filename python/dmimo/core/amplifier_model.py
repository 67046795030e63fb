# SPDX-License-Identifier: GPL-3.0-or-later
r"""Amplifiers as polynomials of odd order, without and with memory, and the basis that fits them stably.

.. math:: F(x_k) = \sum_{l=0}^{L-1} \sum_{p=0}^{P-1} \kappa_{lp}\, x_{k-l} |x_{k-l}|^{2p}, \qquad \kappa_{00} = 1

The coefficients are relative to the linear one, so that F has unit gain at small amplitudes; the order is 2 P - 1 and
L = 1 is an amplifier without memory. Powers of |x|^2 are nearly collinear. Fits run on the shifted Legendre
polynomials :math:`x P_p(2 |x|^2 / A^2 - 1)` instead, A the peak amplitude: they span the same functions at every
order, order 9 with a condition number of tens instead of 1e5, and are turned into powers at the end.

References
----------
Over-the-air DPD, eq. (5), which is third order without memory; memory polynomial: Kim and Konstantinou, "Digital
predistortion of wideband signals based on power amplifier model with memory", Electronics Letters 37(23), 2001.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import comb

# Smallest over largest eigenvalue of the basis' Gram matrix at which a fit still has digits to spare for 1e-10.
MIN_CONDITION = 1e-9


def amplify(x: ArrayLike, coefficients: ArrayLike) -> NDArray:
    r"""Amplifier's output :math:`F(x) = \sum_p \kappa_p x |x|^{2p}`, (..., N).

    Parameters
    ----------
    x : (..., N) complex.
    coefficients : (..., P) complex, leading axes broadcast against those of x. The first entry need not be 1.
    """
    x, coefficients = np.asarray(x), np.asarray(coefficients)
    power = x.real**2 + x.imag**2
    return x * polynomial(power, coefficients)


def amplify_with_memory(x: ArrayLike, coefficients: ArrayLike) -> NDArray:
    """Output (..., N) of the memory polynomial with coefficients (..., L, P), silent before the first sample of x."""
    x, coefficients = np.asarray(x), np.asarray(coefficients)
    depth = coefficients.shape[-2]
    out = 0.0
    for lag in range(depth):
        delayed = np.zeros_like(x)
        delayed[..., lag:] = x[..., : x.shape[-1] - lag]
        out = out + amplify(delayed, coefficients[..., lag, :])
    return out


def polynomial(power: NDArray, coefficients: NDArray) -> NDArray:
    """Complex gain :math:`F(x) / x` (..., N) at the powers |x|^2 (..., N), coefficients (..., P), by Horner's rule."""
    gain = coefficients[..., -1:] + np.zeros_like(power)
    for term in range(coefficients.shape[-1] - 2, -1, -1):
        gain = gain * power
        gain += coefficients[..., term, None]
    return gain


def num_terms(order: int) -> int:
    """P = (order + 1) / 2 for an odd order; ValueError for others."""
    if order < 1 or order % 2 == 0:
        raise ValueError(f"order = {order} must be odd and positive")
    return (order + 1) // 2


def legendre_basis(x: NDArray, terms: int, depth: int, peak: float) -> NDArray:
    """Basis (..., N - L + 1, P L) at x (..., N): column p L + l is ``x_{k-l} P_p(2 |x_{k-l}|^2 / peak^2 - 1)``.

    The first L - 1 samples only serve as the past of the others. Lower orders are the first columns of higher ones.
    """
    place = (x.real**2 + x.imag**2) * (2.0 / peak**2) - 1.0
    columns = [x]
    if terms > 1:
        columns.append(x * place)
    for p in range(1, terms - 1):
        columns.append(((2 * p + 1) * place * columns[p] - p * columns[p - 1]) / (p + 1))
    num = x.shape[-1] - depth + 1
    return np.stack(
        [column[..., depth - 1 - lag : depth - 1 - lag + num] for column in columns for lag in range(depth)], axis=-1
    )


def delayed_powers(x: NDArray, terms: int, depth: int) -> NDArray:
    """Functions (..., N - L + 1, P L) at x (..., N) as the coefficients have them: column p L + l is
    ``x_{k-l} |x_{k-l}|^(2p)``.
    """
    power, num = x.real**2 + x.imag**2, x.shape[-1] - depth + 1
    columns = [x * power**p for p in range(terms)]
    return np.stack(
        [column[..., depth - 1 - lag : depth - 1 - lag + num] for column in columns for lag in range(depth)], axis=-1
    )


def legendre_to_powers(terms: int, depth: int, peak: float) -> NDArray:
    r"""Matrix (P L, P L) from the coefficients of `legendre_basis` to those of :math:`x|x|^{2p}`, both p-major.

    :math:`P_p(2u - 1) = \sum_j (-1)^{p-j} \binom{p}{j} \binom{p+j}{j} u^j` with u = |x|^2 / peak^2.
    """
    j, p = np.meshgrid(np.arange(terms), np.arange(terms), indexing="ij")
    matrix = np.where(j <= p, (-1.0) ** (p - j) * comb(p, j) * comb(p + j, j), 0.0)
    return np.kron(matrix / float(peak) ** (2 * j), np.eye(depth))


def fit_amplifier(
    x: ArrayLike, output: ArrayLike, *, order: int = 3, memory_depth: int = 1, weights: ArrayLike | None = None
) -> NDArray:
    r"""Least-squares coefficients (..., P), or (..., L, P) where memory_depth L > 1, of `output` as a polynomial of x.

    Minimises :math:`\sum_k w_k |z_k - \sum_{lp} b_{lp} x_{k-l} |x_{k-l}|^{2p}|^2`; the linear coefficient is *not*
    divided out. With x and z exchanged it is a post-distorter (`indirect_learning`).

    Parameters
    ----------
    x : (..., N) complex input. output : (..., N) complex z. weights : (..., N) non-negative w; None: equal.

    Raises
    ------
    ValueError
        If the samples do not determine the coefficients (too few samples or amplitudes), or are not finite.
    """
    terms = num_terms(order)
    x, output = np.asarray(x, complex), np.asarray(output, complex)
    peak = _peak(x)
    basis = legendre_basis(x, terms, memory_depth, peak)
    target = output[..., memory_depth - 1 :]
    if weights is not None:
        root = np.sqrt(np.asarray(weights, float))[..., memory_depth - 1 :]
        basis, target = basis * root[..., None], target * root
    if basis.shape[-2] < basis.shape[-1]:
        raise ValueError(f"{basis.shape[-2]} samples cannot determine {basis.shape[-1]} coefficients")
    q, r = np.linalg.qr(basis)
    pivots = np.abs(np.diagonal(r, axis1=-2, axis2=-1))
    # A singular r, as the square root of a Gram matrix, has half of its digits.
    if not np.all(pivots.min(axis=-1) > np.sqrt(MIN_CONDITION) * pivots.max(axis=-1)):
        raise ValueError(f"order = {order} needs at least {terms} different amplitudes in x")
    fitted = np.linalg.solve(r, np.swapaxes(q.conj(), -1, -2) @ target[..., None])
    powers = (legendre_to_powers(terms, memory_depth, peak) @ fitted)[..., 0]
    return unpack_memory(powers, memory_depth)


def unpack_memory(coefficients: NDArray, depth: int) -> NDArray:
    """p-major coefficients (..., P L) as (..., P) for L = 1, as (..., L, P) otherwise."""
    if depth == 1:
        return coefficients
    shape = (*coefficients.shape[:-1], coefficients.shape[-1] // depth, depth)
    return np.swapaxes(coefficients.reshape(shape), -1, -2)


def _peak(x: NDArray) -> float:
    peak = float(np.abs(x).max(initial=0.0))
    if not (np.isfinite(peak) and peak > 0.0):
        raise ValueError("samples must be finite and not all zero")
    return peak
