# SPDX-License-Identifier: GPL-3.0-or-later
r"""Cramer-Rao bounds of amplifier coefficients seen through unknown couplings, and the distortion that errors leave.

Every receiver has the same :math:`F(x) = B \theta`, B (K, P) the columns :math:`x|x|^{2p}`, times an unknown complex
gain :math:`g_i`. With the gain energy :math:`\gamma = \sum_i |g_i|^2 / s_i` and :math:`\kappa` the coefficients after
the linear one,

.. math:: \mathrm{cov}(\hat\kappa) \ge \left[\gamma\, D^H P_F^\perp D\right]^{-1}, \qquad D = B_{:, 1:}

where :math:`P_F^\perp` removes what a change of the unknown gains could explain. Errors are complex, the covariance is
:math:`E[\delta \delta^H]`. The leading singular vector attains the bound; each of its components has besides the factor
:math:`1 + M / \ell` of noise times noise, with :math:`\ell = \gamma |F|^2` and M receivers, and below
:math:`\ell = \sqrt{M P}` it says nothing at all (phase transition of spiked random matrices).

References
----------
Spiked matrices: Benaych-Georges and Nadakuditi, "The singular values and vectors of low rank perturbations of large
rectangular random matrices", J. Multivariate Analysis 111, 2012. The paper has no bound for the coefficients.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .amplifier_model import amplify, num_terms
from .predistortion_inverse import invertible_range, predistort


def gain_energy(gains: ArrayLike, noise_var: ArrayLike, *, weights: ArrayLike | None = None) -> NDArray:
    r"""Gain energy (..., M_tx) of a combination of receivers, :math:`|\sum_i w_i g_i|^2 / \sum_i |w_i|^2 s_i`.

    Parameters
    ----------
    gains : (..., M_rx, M_tx), ``g_im = r_i h_im a_m``; zero for pairs that are not used.
    noise_var : scalar or (..., M_rx), s.
    weights : (..., M_rx, M_tx); None: the best, ``w = g^* / s``, which gives :math:`\sum_i |g_i|^2 / s_i`.
        The paper's average has ``w = 1 / h``, power weighting ``w = h^* / s``, both zero on the transmitter itself.
    """
    gains = np.asarray(gains)
    noise = np.broadcast_to(noise_var, gains.shape[:-1])[..., None]
    if weights is None:
        return np.sum(np.abs(gains) ** 2 / noise, axis=-2)
    weights = np.asarray(weights)
    return np.abs(np.sum(weights * gains, axis=-2)) ** 2 / np.sum(np.abs(weights) ** 2 * noise, axis=-2)


def pilot_information(pilots: ArrayLike, coefficients: ArrayLike) -> NDArray:
    r"""Fisher information (..., P - 1, P - 1) of :math:`\kappa` per unit of gain energy, :math:`D^H P_F^\perp D`.

    Parameters
    ----------
    pilots : (..., K) complex amplifier inputs; only their amplitudes matter.
    coefficients : (..., P), the amplifier at which it is evaluated; [1, 0] for small kappa.
    """
    amplitude, coefficients = np.abs(np.asarray(pilots)), np.asarray(coefficients, complex)
    terms = coefficients.shape[-1]
    basis = amplitude[..., None] ** (2 * np.arange(1, terms) + 1)
    output = amplify(amplitude, coefficients)
    energy = np.sum(np.abs(output) ** 2, axis=-1)[..., None]
    shape = np.broadcast_shapes(basis.shape[:-2], output.shape[:-1])
    basis = np.broadcast_to(basis, (*shape, *basis.shape[-2:]))
    overlap = np.einsum("...k,...kp->...p", output.conj(), basis)
    across = overlap.conj()[..., :, None] * overlap[..., None, :] / energy[..., None]
    return np.swapaxes(basis, -1, -2) @ basis - across


def coefficient_crlb(coefficients: ArrayLike, pilots: ArrayLike, energy: ArrayLike) -> NDArray:
    """Covariance bound (..., P - 1, P - 1) of kappa.

    Parameters
    ----------
    coefficients : (..., P), first entry 1. pilots : (..., K). energy : (...) gain energy, see `gain_energy`.

    Raises
    ------
    ValueError
        If the pilots do not determine the coefficients.
    """
    information = pilot_information(pilots, coefficients)
    # Scaled to a unit diagonal: powers of the amplitude differ by orders of magnitude.
    scale = 1.0 / np.sqrt(np.einsum("...pp->...p", information).real)
    scaled = information * scale[..., :, None] * scale[..., None, :]
    if not (np.all(np.isfinite(scaled)) and np.all(np.linalg.cond(scaled) < 1e14)):
        raise ValueError("pilots must have at least as many amplitudes as there are coefficients")
    inverse = np.linalg.inv(scaled) * scale[..., :, None] * scale[..., None, :]
    return inverse / np.asarray(energy, float)[..., None, None]


def noise_penalty(strength: ArrayLike, num_receivers: ArrayLike) -> NDArray:
    r"""Factor :math:`1 + M / \ell` of the covariance above its bound at low SNR, for the singular vector."""
    return 1.0 + np.asarray(num_receivers) / np.asarray(strength, float)


def svd_threshold(num_receivers: ArrayLike, num_coefficients: int) -> NDArray:
    r"""Strength :math:`\ell = \gamma |F|^2` below which the singular vector is noise, :math:`\sqrt{M P}`."""
    return np.sqrt(np.asarray(num_receivers, float) * num_coefficients)


def data_amplitudes(num: int, *, peak: float = 1.0, backoff_db: float = 10.0) -> NDArray:
    r"""Amplitudes (N,) of Gaussian data in N equally likely steps, mean power peak^2 / 10^(backoff / 10), at most peak.

    The mean power is that before limiting: what exceeds the peak is set to it, as a clipping transmitter does.
    """
    rms = peak * 10.0 ** (-backoff_db / 20.0)
    share = (np.arange(num) + 0.5) / num
    return np.minimum(rms * np.sqrt(-np.log1p(-share)), peak)


def distortion_matrix(wanted: ArrayLike, inputs: ArrayLike, terms: int) -> NDArray:
    r"""Matrix W (..., P - 1, P - 1) with NMSE :math:`\delta^H W \delta` of :math:`x + \sum_p \delta_p u |u|^{2p}`.

    x (..., N) are wanted and u (..., N) input amplitudes with the same phase. A change of gain is no distortion: what
    lies along x is removed, and the rest is relative to the power of x.
    """
    wanted, inputs = np.asarray(wanted, float), np.asarray(inputs)
    power = inputs.real**2 + inputs.imag**2
    # A row for each term.
    basis = np.stack(np.broadcast_arrays(*(inputs * power**p for p in range(1, terms))), axis=-2)
    energy = np.sum(wanted**2, axis=-1)
    energy = np.where(energy > 0, energy, 1.0)[..., None, None]
    basis = basis - (basis @ wanted[..., None] / energy) * wanted[..., None, :]
    return basis.conj() @ np.swapaxes(basis, -1, -2) / energy


def distortion_without(coefficients: ArrayLike, amplitudes: ArrayLike) -> NDArray:
    """NMSE (...) of amplifiers (..., P) without predistortion over amplitudes (..., N), best linear gain removed."""
    kappa = np.asarray(coefficients, complex)[..., 1:]
    matrix = distortion_matrix(amplitudes, amplitudes, kappa.shape[-1] + 1)
    return np.einsum("...p,...pq,...q->...", kappa.conj(), matrix, kappa).real


def distortion_with(
    coefficients: ArrayLike, covariance: ArrayLike, amplitudes: ArrayLike, *, max_amplitude: ArrayLike = np.inf
) -> NDArray:
    r"""Expected NMSE (...) after predistortion with coefficients of a given error, over data amplitudes (N,).

    With :math:`u = \hat F^{-1}(x)` the output is exactly :math:`F(u) = x - \sum_p \delta_p u |u|^{2p}`, so that its
    expected distortion is the trace of the error's covariance times `distortion_matrix`; amplitudes beyond the
    invertible range are left out.

    Parameters
    ----------
    coefficients : (..., P). covariance : (..., P - 1, P - 1). amplitudes : (N,). max_amplitude : (...).
    """
    matrix = predistorted_distortion(coefficients, amplitudes, max_amplitude)[0]
    return np.einsum("...pq,...qp->...", matrix, np.asarray(covariance)).real


def predistorted_distortion(
    coefficients: ArrayLike, amplitudes: ArrayLike, max_amplitude: ArrayLike = np.inf
) -> tuple[NDArray, NDArray, NDArray]:
    """`distortion_matrix` (..., P - 1, P - 1) with and without predistorter over amplitudes in its range, and its end.

    The end (...) is the largest wanted amplitude that is not clipped.
    """
    coefficients = np.asarray(coefficients, complex)
    reach = invertible_range(coefficients, max_amplitude=max_amplitude).output_amplitude
    wanted = np.where(amplitudes <= reach[..., None], amplitudes, 0.0)
    inputs = predistort(wanted, coefficients, max_amplitude=max_amplitude)
    terms = coefficients.shape[-1]
    return distortion_matrix(wanted, inputs, terms), distortion_matrix(wanted, wanted, terms), reach


def best_two_level_information(peak: float = 1.0) -> float:
    r"""Largest information per pilot about third-order :math:`\kappa \to 0` with amplitudes up to `peak`, peak^6 / 16.

    The information is :math:`E[a^6] - E[a^4]^2 / E[a^2]`: the variance of a^2 under the weight a^2. With amplitudes b
    and 1 in shares 1 - w and w it is largest at :math:`w = b / (1 + b)`, :math:`b^2 (1 - b)^2`, and there at b = 1/2.
    """
    return math.pow(peak, 6) / 16.0


def crlb_from_amplitudes(order: int, pilots: ArrayLike, energy: ArrayLike) -> NDArray:
    """`coefficient_crlb` at kappa = 0 for an odd order: a plan before anything is known."""
    coefficients = np.zeros(num_terms(order))
    coefficients[0] = 1.0
    return coefficient_crlb(coefficients, pilots, energy)
