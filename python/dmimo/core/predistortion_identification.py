# SPDX-License-Identifier: GPL-3.0-or-later
r"""Amplifier coefficients of every transmitter from what all other antennas received, with their predicted errors.

With the basis orthonormalised over the pilots (Q R = B) the statistics of a transmitter are a matrix with a row for
each receiver, :math:`A_i = g_i (R\theta)^T + n_i`, of rank one without noise. Its leading right singular vector gives
:math:`R\theta` and hence :math:`\kappa` with nothing known about couplings or receivers, and attains the bound.

Where it breaks: with strength :math:`\ell = \gamma |F|^2`, M receivers and D coefficients the variance has the factor
:math:`1 + M / \ell` over the bound, and below :math:`\ell = \sqrt{M D}` the vector is noise. On a 4 x 25 array whose
couplings span 35 dB, with 100 pilots, variance over bound was 1.01 from -20 dB SNR of the weakest coupling, 1.04 at
-30 dB, 1.76 at -40 dB, and from -45 dB transmitters are missed. `heard` asks for three times that threshold, which
noise alone passes in less than one of a thousand cases.

References
----------
Over-the-air DPD, eq. (10) to (14). Deviations: the paper averages after division by known couplings, where the unknown
phases of the receivers may cancel; here that average and the one weighted by power are options beside the singular
vector. Everything is relative to the linear coefficient.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaincc, gammainccinv

from .amplifier_model import MIN_CONDITION, legendre_to_powers, num_terms
from .predistortion_bounds import noise_penalty
from .predistortion_statistics import PilotStatistics

Combining = Literal["svd", "average", "power"]

# Rounding of an energy relative to itself: what is left of it after a fit is no smaller than this.
_ENERGY_ROUNDING = 1e-15
# A test of the model fails where noise alone would exceed its statistic with this probability.
FALSE_ALARM = 1e-4
# Strength over the threshold of the singular vector, from which it is trusted: noise alone stays below.
_STRENGTH_MARGIN = 3.0


class RawFit(NamedTuple):
    """What the combination of receivers says, before it is judged; P L coefficients, p-major.

    coefficients (..., M_tx, P L) first entry 1; covariance (..., M_tx, P L - 1, P L - 1) of the others, predicted;
    strength (..., M_tx), ``gamma |F|^2``; gain_energy (..., M_tx), gamma; heard (..., M_tx), whether strength is above
    the threshold; mismatch (..., M_tx), power relative to the linear output that higher orders explain and noise does
    not; mismatch_significant and receivers_disagree (..., M_tx); noise_var (..., M_rx); num_receivers (..., M_tx);
    deaf (..., M_rx), receivers that hear nobody in the pairs that are used; unexplained (..., M_tx), more is left than
    the given noise; excess (..., M_tx), by how much: variance over that of the noise, less 1, summed over receivers;
    extended (..., M_tx, P' L), coefficients up to a factor with all the terms of the statistics, as `combining` "svd".
    """

    coefficients: NDArray
    covariance: NDArray
    strength: NDArray
    gain_energy: NDArray
    heard: NDArray
    mismatch: NDArray
    mismatch_significant: NDArray
    receivers_disagree: NDArray
    noise_var: NDArray
    num_receivers: NDArray
    deaf: NDArray
    unexplained: NDArray
    excess: NDArray
    extended: NDArray


class _Whitened(NamedTuple):
    """fitted (..., M_rx, M_tx, D) and beyond (..., M_rx, M_tx, E), projections on orthonormal functions within and
    beyond the order; inverse_r (..., M_tx or 1, D, D), from there to Legendre coefficients; num_beyond (..., M_tx or 1)
    and outside (..., M_tx or 1, D + E, E), from projections beyond the order to all Legendre coefficients
    """

    fitted: NDArray
    beyond: NDArray
    inverse_r: NDArray
    num_beyond: NDArray
    outside: NDArray


def fit_statistics(
    statistics: PilotStatistics,
    *,
    order: int | None = None,
    combining: Combining = "svd",
    coupling: ArrayLike | None = None,
    noise_var: ArrayLike | None = None,
) -> RawFit:
    """Coefficients and what is known about them; see `identify_amplifiers` for the parameters."""
    order = statistics.order if order is None else order
    if num_terms(order) > num_terms(statistics.order):
        raise ValueError(f"order = {order} must not exceed that of the statistics, {statistics.order}")
    size = num_terms(order) * statistics.memory_depth
    whitened = _whiten_basis(statistics, size)
    noise = _noise(statistics, whitened, noise_var)
    scale = (1.0 / np.sqrt(noise))[..., :, None, None]
    # Transmitters first, a matrix of receivers and functions for each.
    fitted = np.swapaxes(whitened.fitted * scale, -3, -2)
    beyond = np.swapaxes(whitened.beyond * scale, -3, -2)
    deaf = statistics.used.any(axis=-1) & _hears_nobody(fitted, statistics.used)
    num_receivers = np.count_nonzero(statistics.used & (statistics.energy > 0), axis=-2)
    if combining == "svd":
        direction, strength, heard = _leading_vector(fitted, num_receivers)
        penalty = noise_penalty(np.maximum(strength, 1e-300), num_receivers)
    elif combining in ("average", "power"):
        direction, strength, heard = _weighted_mean(
            fitted, noise, statistics.used & ~deaf[..., None], combining, coupling
        )
        penalty = np.ones_like(strength)
    else:
        raise ValueError(f'combining = "{combining}" must be "svd", "average" or "power"')
    to_powers = legendre_to_powers(num_terms(order), statistics.memory_depth, statistics.peak) @ whitened.inverse_r
    coefficients, covariance, linear = _to_coefficients(direction, strength, to_powers, penalty)
    # An average's direction has errors of its own, which the test would take for receivers that disagree.
    common = direction if combining == "svd" else _leading_vector(fitted, num_receivers)[0]
    tests = _test_model(fitted, beyond, common, num_receivers, whitened.num_beyond)
    unexplained, excess = _beyond_noise(statistics, whitened, noise, noise_var is not None)
    extended = (whitened.outside @ tests.beyond[..., None])[..., 0]
    extended[..., :size] += (whitened.inverse_r @ common[..., None])[..., 0]
    all_terms = statistics.gram.shape[-1] // statistics.memory_depth
    linear_energy = statistics.gram[..., 0, 0].real
    linear_gain = np.where(heard, tests.gain * np.abs(linear) ** 2 * linear_energy, np.inf)
    return RawFit(
        coefficients=coefficients,
        covariance=covariance,
        strength=strength,
        gain_energy=strength * np.abs(linear) ** 2,
        heard=heard,
        mismatch=tests.excess / linear_gain,
        mismatch_significant=tests.higher_order,
        receivers_disagree=tests.disagree,
        noise_var=noise,
        num_receivers=num_receivers,
        deaf=deaf,
        unexplained=unexplained,
        excess=excess,
        extended=extended @ legendre_to_powers(all_terms, statistics.memory_depth, statistics.peak).T,
    )


def _whiten_basis(statistics: PilotStatistics, size: int) -> _Whitened:
    """Projections of all pairs on functions that are orthonormal over the pilots: `size` ones, and those beyond."""
    gram = statistics.gram
    inner = gram[..., :size, :size]
    eigenvalues = np.linalg.eigvalsh(inner)
    if not np.all(eigenvalues[..., 0] > MIN_CONDITION * eigenvalues[..., -1]):
        raise ValueError("pilots do not determine the coefficients: they need more amplitudes, or a lower order")
    # gram = R^H R, and the projections are R^-H correlation.
    lower_inverse = np.linalg.inv(np.linalg.cholesky(inner))
    correlation = statistics.correlation
    fitted = _apply(lower_inverse, correlation[..., :size])
    overlap = lower_inverse @ gram[..., :size, size:]
    rest = gram[..., size:, size:] - np.swapaxes(overlap.conj(), -1, -2) @ overlap
    value, vector = np.linalg.eigh(rest)
    present = value > MIN_CONDITION * eigenvalues[..., -1:]
    root = np.where(present, 1.0 / np.sqrt(np.where(present, value, 1.0)), 0.0)
    project = root[..., :, None] * np.swapaxes(vector.conj(), -1, -2)
    beyond = correlation[..., size:] - _apply(np.swapaxes(overlap.conj(), -1, -2), fitted)
    inverse_r = np.swapaxes(lower_inverse.conj(), -1, -2)
    to_legendre = np.swapaxes(project.conj(), -1, -2)
    outside = np.concatenate([-inverse_r @ overlap @ to_legendre, to_legendre], axis=-2)
    return _Whitened(fitted, _apply(project, beyond), inverse_r, np.count_nonzero(present, axis=-1), outside)


def _apply(matrix: NDArray, vectors: NDArray) -> NDArray:
    """Matrix ((..., M_tx,) E, D) times vectors (..., M_rx, M_tx, D)."""
    if matrix.ndim == 2:
        return vectors @ matrix.T
    return np.swapaxes(np.swapaxes(vectors, -3, -2) @ np.swapaxes(matrix, -1, -2), -3, -2)


def _noise(statistics: PilotStatistics, whitened: _Whitened, noise_var: ArrayLike | None) -> NDArray:
    """Noise variance (..., M_rx): given, or what the whole basis leaves of the energy over all transmitters."""
    energy, used = statistics.energy, statistics.used
    batch = energy.shape[:-2]
    num_receivers = energy.shape[-2]
    loudest = energy.max(axis=-1)
    # A receiver that is dead altogether must not get an infinite weight.
    floor = _ENERGY_ROUNDING * np.where(loudest > 0, loudest, 1.0) / statistics.num_samples
    if noise_var is not None:
        noise = np.asarray(noise_var, float)
        if not np.all((noise >= 0) & np.isfinite(noise)) or noise.shape[-1:] not in ((), (1,), (num_receivers,)):
            raise ValueError(f"noise_var = {noise_var} must not be negative, a scalar or (..., {num_receivers})")
        return np.maximum(np.broadcast_to(noise, (*batch, num_receivers)), floor)
    left, freedom = _leftover(statistics, whitened)
    if not np.all(freedom > 0):
        raise ValueError(
            f"{statistics.num_samples} pilots are too few to estimate the noise of these orders: pass noise_var"
        )
    # Of each transmitter, whichever receiver: an axis before the last one.
    total = np.sum(np.where(used, np.atleast_1d(freedom)[..., None, :], 0), axis=-1)
    return np.maximum(np.sum(np.where(used, left, 0.0), axis=-1) / np.maximum(total, 1), floor)


def _leftover(statistics: PilotStatistics, whitened: _Whitened) -> tuple[NDArray, NDArray]:
    """Energy (..., M_rx, M_tx) that the whole basis leaves, and its degrees of freedom (..., M_tx or 1)."""
    left = statistics.energy - _square(whitened.fitted) - _square(whitened.beyond)
    return left, statistics.num_samples - whitened.fitted.shape[-1] - whitened.num_beyond


def _beyond_noise(
    statistics: PilotStatistics, whitened: _Whitened, noise: NDArray, is_known: bool
) -> tuple[NDArray, NDArray]:
    """`unexplained` and `excess` of `RawFit` (..., M_tx): what the whole basis leaves against noise (..., M_rx)."""
    left, freedom = _leftover(statistics, whitened)
    # Rounding, where the signal is far above the noise.
    left = np.maximum(left - 1e-13 * statistics.energy, 0.0)
    total = np.sum(np.where(statistics.used, left / noise[..., None], 0.0), axis=-2)
    num = np.count_nonzero(statistics.used, axis=-2)
    unexplained = is_known & (freedom > 0) & (gammaincc(np.maximum(freedom * num, 1), total) < FALSE_ALARM)
    return unexplained, np.maximum(total / np.maximum(freedom, 1) - num, 0.0)


def _hears_nobody(fitted: NDArray, used: NDArray) -> NDArray:
    """Receivers (..., M_rx) in which no transmitter stands out of unit noise; fitted (..., M_tx, M_rx, D).

    An average must leave them out. The singular vector need not: many that hear nobody alone may do so together.
    """
    loudest = _square(fitted).max(axis=-2)
    num = np.maximum(np.count_nonzero(used, axis=-1), 1)
    return ~(num * gammaincc(fitted.shape[-1], loudest) < FALSE_ALARM)


def _leading_vector(fitted: NDArray, num_receivers: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    r"""Unit R theta (..., M_tx, D), strength and whether it is there, from rows of unit noise (..., M_tx, M_rx, D).

    The largest eigenvalue is :math:`(\ell + M)(\ell + D) / \ell`; the strength :math:`\ell` is the root above the
    threshold, and zero where there is none.
    """
    size = fitted.shape[-1]
    value, vector = np.linalg.eigh(np.swapaxes(fitted.conj(), -1, -2) @ fitted)
    noise = num_receivers + size
    excess = value[..., -1] - noise
    threshold = np.sqrt(num_receivers * float(size))
    root = excess**2 - 4.0 * threshold**2
    strength = np.where((excess > 0) & (root > 0), 0.5 * (excess + np.sqrt(np.maximum(root, 0.0))), 0.0)
    return vector[..., -1].conj(), strength, strength > _STRENGTH_MARGIN * threshold


def _weighted_mean(
    fitted: NDArray, noise: NDArray, used: NDArray, combining: Combining, coupling: ArrayLike | None
) -> tuple[NDArray, NDArray, NDArray]:
    """As `_leading_vector`, of receivers averaged after division by the coupling, or weighted by its power over s."""
    if coupling is None:
        raise ValueError(f'combining = "{combining}" needs the coupling; "svd" does not')
    coupling = np.asarray(coupling)
    if coupling.shape[-2:] != used.shape[-2:]:
        raise ValueError(f"coupling must have shape (..., {used.shape[-2]}, {used.shape[-1]}), not {coupling.shape}")
    known = used & (coupling != 0) & np.isfinite(coupling)
    safe = np.where(known, coupling, 1.0)
    # Rows were divided by sqrt(s): the weights of the averages by 1 / h and by h^* / s in these units.
    root = np.sqrt(noise)[..., None]
    weights = np.where(known, root / safe if combining == "average" else safe.conj() / root, 0.0)
    variance = np.sum(np.abs(weights) ** 2, axis=-2)
    total = np.einsum("...im,...mid->...md", weights, fitted)
    size = fitted.shape[-1]
    power = _square(total) / np.where(variance > 0, variance, 1.0)
    strength = np.maximum(power - size, 0.0)
    norm = np.sqrt(_square(total))[..., None]
    direction = np.where(norm > 0, total / np.where(norm > 0, norm, 1.0), np.eye(size)[0])
    return direction, strength, (power > 0) & (gammaincc(size, power) < FALSE_ALARM)


def _to_coefficients(
    direction: NDArray, strength: NDArray, to_powers: NDArray, penalty: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    r"""Coefficients (..., D), covariance (..., D - 1, D - 1), and linear coefficient (...) of the unit direction v.

    With theta = T v a change :math:`\epsilon \perp v` moves :math:`\kappa = \theta_{1:} / \theta_0` by
    :math:`(T_{1:} - \kappa T_0) \epsilon / \theta_0`; epsilon has the variance penalty / strength in each direction. A
    change along v moves nothing, as :math:`(T_{1:} - \kappa T_0) v = 0`.
    """
    powers = (to_powers @ direction[..., None])[..., 0]
    linear = powers[..., 0]
    # Nothing heard: the identity, with an infinite error.
    heard = (strength > 0) & (linear != 0.0)
    linear = np.where(heard, linear, 1.0)
    coefficients = np.where(heard[..., None], powers / linear[..., None], 0.0)
    coefficients[..., 0] = 1.0
    slope = to_powers[..., 1:, :] - coefficients[..., 1:, None] * to_powers[..., :1, :]
    variance = penalty / np.where(heard, strength, 1.0) / np.abs(linear) ** 2
    covariance = slope @ np.swapaxes(slope.conj(), -1, -2) * variance[..., None, None]
    return coefficients, np.where(heard[..., None, None], covariance, np.inf), linear


class _Tests(NamedTuple):
    """excess (...), energy beyond the order less its noise, in a unit of which the combined signal has `gain` (...);
    beyond (..., E), combined, of a signal whose projection within the order is the direction."""

    excess: NDArray
    gain: NDArray
    higher_order: NDArray
    disagree: NDArray
    beyond: NDArray


def _test_model(
    fitted: NDArray, beyond: NDArray, direction: NDArray, num_receivers: NDArray, num_beyond: NDArray
) -> _Tests:
    """Is there a common signal beyond the order, and do the receivers see different amplifiers?

    With the receivers combined as they heard the signal, what lies beyond the order is noise of unit variance per
    function if the order suffices. What is orthogonal to both combination and direction is noise if the rank is one.
    """
    gains = (fitted @ direction.conj()[..., None])[..., 0]
    gain = _square(gains)
    root = np.sqrt(np.where(gain > 0, gain, 1.0))[..., None]
    combined = np.einsum("...i,...ie->...e", gains.conj(), beyond) / root
    common = _square(combined)
    higher_order = (num_beyond > 0) & (gammaincc(np.maximum(num_beyond, 1), common) < FALSE_ALARM)
    total = _square(fitted).sum(axis=-1) - gain + _square(beyond).sum(axis=-1) - common
    # Rounding of the total, where the signal is far above the noise.
    total = np.maximum(total - 1e-12 * gain, 0.0)
    freedom = (num_receivers - 1) * (fitted.shape[-1] - 1 + num_beyond)
    disagree = (freedom > 0) & (gammaincc(np.maximum(freedom, 1), total) < FALSE_ALARM)
    excess = np.where(higher_order, common - num_beyond, 0.0)
    return _Tests(excess, gain, higher_order, disagree, combined / root)


def _square(values: NDArray) -> NDArray:
    """Energy over the last axis."""
    return np.einsum("...d,...d->...", values.real, values.real) + np.einsum(
        "...d,...d->...", values.imag, values.imag
    )


def misalignment(energy: NDArray, noise_var: NDArray, repeats: int, share: float) -> NDArray:
    """By how many samples the pilots of each pair (ports, ports) are late: integers, negative where early.

    0 where less than that is certain: where the expected lag holds at least `share` of the energy at the best one, or
    noise alone could exceed the difference, see `FALSE_ALARM`, in one of all pairs. A port does not count for itself.

    Parameters
    ----------
    energy : ndarray (ports, ports, 2 L + 1)
        At the lags -L to L, receiver first; of noise alone Gamma(repeats) times the receiver's `noise_var`.
    noise_var : ndarray (ports,)
    repeats : int
    share : float
    """
    centre = energy.shape[-1] // 2
    others = ~np.eye(len(energy), dtype=bool)
    best = energy.max(axis=-1)
    chance = gammainccinv(repeats, FALSE_ALARM / energy.size) * noise_var[:, None]
    off = others & (energy[..., centre] < share * best) & (best - energy[..., centre] > chance)
    return np.where(off, energy.argmax(axis=-1) - centre, 0)
