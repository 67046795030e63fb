# SPDX-License-Identifier: GPL-3.0-or-later
r"""Is predistortion with estimated coefficients worth while? Distortion without and with it, from their errors.

The output with the inverse of an estimate is exactly :math:`x - \sum_p \delta_p u |u|^{2p}`, so that its distortion is
tr(W_u C), C the covariance of the errors delta and W the matrix of `predistortion_bounds.distortion_matrix` over the
data's amplitudes. Without it, the distortion is :math:`\kappa^H W_x \kappa`, of which
:math:`\hat\kappa^H W_x \hat\kappa - \mathrm{tr}(W_x C)` is an unbiased estimate. With memory W is that of a sequence of
samples, and what a linear filter of x could do is no distortion.

What lies beyond the range that can be inverted is clipped. Gaussian data of unit power, clipped at the amplitude r, has
by Bussgang's theorem the gain :math:`g = 1 - e^{-r^2} + \tfrac{\sqrt\pi}{2} r\, \mathrm{erfc}(r)` and the distortion
:math:`(1 - e^{-r^2} - g^2) / g^2`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc

from .amplifier_model import amplify, delayed_powers, unpack_memory
from .memory_polynomial import predistort_with_memory
from .predistortion_bounds import data_amplitudes, predistorted_distortion
from .predistortion_inverse import invertible_range, predistort

# Quantiles of the data's amplitudes over which distortion is predicted, and how often they stand in a sequence.
_DATA_POINTS, _REPEATS = 64, 8
# Amplitudes of Gaussian data of unit power, rare ones too; their density is a exp(-a^2), but for a factor.
_TAIL = np.linspace(0.0, 4.5, 257)[1:]
# Amplitude from which a Gaussian sample of unit power is never found.
_FAR = 30.0
# Taps of the linear filter that is no distortion, at least as many as amplifiers remember.
_FILTER = 8
# A predistorter with memory is an iteration: its last change must be smaller, or it does not converge.
_CONVERGED = 1e-6


class Judgement(NamedTuple):
    """All (..., M_tx): see `predistortion.Identification`."""

    distortion_without: NDArray
    distortion_with: NDArray
    clipping: NDArray
    clipped_share: NDArray
    refused: NDArray


def judge(
    coefficients: NDArray,
    covariance: NDArray,
    heard: NDArray,
    *,
    depth: int,
    peak: float,
    amplitudes: NDArray | None,
    backoff_db: float,
    min_improvement: float,
) -> Judgement:
    """What to expect of predistortion; refused unless it lowers the distortion by a factor of `min_improvement`.

    The distortion must exceed the noise of its own estimate by that factor, too.

    Parameters
    ----------
    coefficients : (..., M_tx, P L), p-major, first entry 1. covariance : (..., M_tx, P L - 1, P L - 1) of the others.
    heard : (..., M_tx) bool; the others are refused.
    depth : L. peak : largest amplifier input that is trusted.
    amplitudes : (N,) of the data. None: Gaussian, `backoff_db` below the peak.
    """
    covariance = np.where(heard[..., None, None], covariance, 0.0)
    grid = data_amplitudes(_DATA_POINTS, peak=peak, backoff_db=backoff_db) if amplitudes is None else amplitudes
    grid = np.asarray(grid, float)
    unpacked = unpack_memory(coefficients, depth)
    reach = invertible_range(coefficients[..., ::depth], max_amplitude=peak).output_amplitude
    converges = np.ones(heard.shape, bool)
    if depth == 1:
        after, before, _ = predistorted_distortion(coefficients, grid, peak)
    else:
        after, before, converges = _distortion_with_memory(unpacked, grid, peak)
    kappa = coefficients[..., 1:]
    remaining = np.einsum("...pq,...qp->...", after, covariance).real
    noise = np.einsum("...pq,...qp->...", before, covariance).real
    without = np.maximum(np.einsum("...p,...pq,...q->...", kappa.conj(), before, kappa).real - noise, 0.0)
    # The inverse of an estimate avoids the inputs at which that one shoots up by chance, and `remaining` with it: the
    # distortion must also stand out of the noise of its own estimate.
    least = min_improvement * np.maximum(remaining, noise)
    refused = ~heard | ~converges | ~(without >= least) | (without <= 0.0)
    every, weights, rms = _every_amplitude(peak, amplitudes, backoff_db)
    if amplitudes is None:
        clipping, share = gaussian_clipping(reach / rms)
    else:
        clipping = _distortion(grid, np.minimum(grid, reach[..., None]) + 0j, weights)
        share = np.mean(grid > reach[..., None], axis=-1)
    # Clipping must not cost more than the distortion that goes. Beyond the pilots the amplifier is unknown: at best its
    # gain stays what it was.
    untouched = _untouched(every, coefficients[..., ::depth], peak, weights)
    refused |= (share > 0.0) & (clipping + remaining > untouched)
    return Judgement(without, np.where(heard, remaining, np.inf), clipping, share, refused)


def does_harm(
    coefficients: NDArray, actual: NDArray, *, peak: float, amplitudes: NDArray | None, backoff_db: float
) -> NDArray:
    """True (...) where predistortion by `coefficients` raises the distortion of amplifiers that are `actual`.

    For a model that is known to be too small, and without memory: its errors are not those of noise, which is all that
    `judge` knows of, and least squares over the pilots may put them where the data are.

    Parameters
    ----------
    coefficients : (..., P), first entry 1. actual : (..., P'), of a higher order, up to a factor.
    peak, amplitudes, backoff_db : see `judge`.
    """
    every, weights, _ = _every_amplitude(peak, amplitudes, backoff_db)
    output = amplify(predistort(every, coefficients, max_amplitude=peak), actual)
    return _distortion(every, output, weights) > _untouched(every, actual, peak, weights)


def _every_amplitude(peak: float, amplitudes: NDArray | None, backoff_db: float) -> tuple[NDArray, NDArray, float]:
    """Amplitudes (N,) of the data, rare ones too, their weights (N,), and the rms amplitude of Gaussian data."""
    rms = peak * 10.0 ** (-backoff_db / 20.0)
    if amplitudes is None:
        return rms * _TAIL, _TAIL * np.exp(-(_TAIL**2)), rms
    return np.asarray(amplitudes, float), np.ones(np.shape(amplitudes)), rms


def _untouched(every: NDArray, coefficients: NDArray, peak: float, weights: NDArray) -> NDArray:
    """Distortion (...) of amplifiers (..., P) as they are; beyond the peak their gain stays what it is there."""
    known = np.minimum(every, peak)
    output = amplify(known, coefficients) * (every / np.where(known > 0, known, 1.0))
    return _distortion(every, output, weights)


def gaussian_clipping(reach: NDArray) -> tuple[NDArray, NDArray]:
    """NMSE, best linear gain removed, and share of clipped samples, of Gaussian data of unit power clipped at (...)."""
    share = np.exp(-(reach**2))
    gain = 1.0 - share + 0.5 * np.sqrt(np.pi) * np.minimum(reach, _FAR) * erfc(reach)
    # Far out the difference is rounding.
    return np.maximum(1.0 - share - gain**2, 0.0) / gain**2, share


def _sequence(grid: NDArray) -> NDArray:
    """Samples (N,) of these amplitudes in an order and with phases that are random, and always the same."""
    rng = np.random.default_rng(0)
    amplitudes = rng.permutation(np.tile(grid, _REPEATS))
    return amplitudes * np.exp(2j * np.pi * rng.random(amplitudes.size))


def _distortion_with_memory(coefficients: NDArray, grid: NDArray, peak: float) -> tuple[NDArray, NDArray, NDArray]:
    """As `predistorted_distortion` for coefficients (..., L, P), and whether the predistorters (...) have an end."""
    depth, terms = coefficients.shape[-2:]
    x = _sequence(grid)
    result = predistort_with_memory(np.broadcast_to(x, (*coefficients.shape[:-2], x.size)), coefficients,
                                    max_amplitude=peak)
    filtered, _ = np.linalg.qr(delayed_powers(x, 1, _FILTER))
    power = np.sum(np.abs(x[_FILTER - 1 :]) ** 2)
    after, before = (_matrix(delayed_powers(u, terms, depth)[..., _FILTER - depth :, :], filtered, power)
                     for u in (result.samples, x))
    return after, before, result.last_change < _CONVERGED


def _matrix(basis: NDArray, linear: NDArray, power: float) -> NDArray:
    """W (..., D - 1, D - 1) of all functions (..., N, D) but the first; what lies along `linear` (N, F) is removed."""
    left = basis - linear @ (linear.conj().T @ basis)
    return (np.swapaxes(left.conj(), -1, -2) @ left)[..., 1:, 1:] / power


def _distortion(wanted: NDArray, output: NDArray, weights: NDArray) -> NDArray:
    """NMSE (...) of outputs (..., N) for wanted amplitudes (N,) of these weights (N,), best linear gain removed."""
    energy = np.sum(weights * wanted**2)
    share = np.abs(np.sum(weights * wanted * output, axis=-1)) ** 2 / energy
    return (np.sum(weights * np.abs(output) ** 2, axis=-1) - share) / np.maximum(share, 1e-300)
