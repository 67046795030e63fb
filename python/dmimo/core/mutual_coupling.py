# SPDX-License-Identifier: GPL-3.0-or-later
r"""Calibration of an array from what its antennas hear of each other: ratios to a reference, all pairs, known coupling.

.. math:: y_{mn,k} = r_m h_{mn} t_n F_n(x_k) + w, \qquad g_{mn} = r_m h_{mn} t_n

Antenna n transmits K pilots x, m receives; F_n is its amplifier relative to the linear gain, which belongs to t_n
(F(x) = x where it is linear or linearised). `link_gains` gives an estimate of each g with the error variance
:math:`s_m / E_n`, E the energy of F(x). Two numbers per pair then remain, and :math:`c_n / c_m = g_{mn} / g_{nm}`
where the coupling is reciprocal. All estimators and predictions here work on g, v and nothing else, with

.. math:: v_{mn} = s_m / (E_n |g_{mn}|^2)

the relative error variance of one link. One pair alone knows log(c_i / c_j) with the variance V = v + v^T
(`ratio_variance`), which is the inverse of `bounds.edge_information`.

Reference SNR is defined here, once (`reference_snr`): the paper's axis, of the weakest link and of one pilot.

References
----------
Over-the-air DPD and reciprocity calibration, section III-C and eq. (19)-(22).
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaincc

from . import predistortion, reciprocity
from .amplifier_model import amplify, fit_amplifier
from .graph import laplacian_pinv, require_connected, solve_laplacian
from .predistortion_identification import FALSE_ALARM

# Noise variance where there is none.
_TINY = 1e-30
# Gauss-Newton steps of `known_coupling`, and the step at which it has converged.
_MAX_STEPS, _TOLERANCE = 50, 1e-13


def reference_snr(
    gains: ArrayLike, noise_var: ArrayLike, *, pilot_power: float = 1.0, mask: ArrayLike | None = None
) -> NDArray:
    r"""Reference SNR (...), a power ratio: :math:`\min_{m \ne n} |g_{mn}|^2 \overline{|x|^2} / s_m`.

    The received SNR of *one pilot* over the weakest link: the axis of the paper's figures ("the RX-SNR for the link
    between the antennas with least mutual coupling gain"). Neither the number of pilots nor an estimator is in it.
    It is inversely proportional to the noise: the variance for a wanted SNR is ``reference_snr(gains, 1.0) / snr``.

    Parameters
    ----------
    gains : (..., M, M), g, receiver first; the diagonal is ignored.
    noise_var : scalar or (..., M), s, of each receiver.
    pilot_power : mean :math:`|x|^2` at which the link is stated.
    mask : (M, M) bool, True where measured; None: all.
    """
    power = np.abs(np.asarray(gains)) ** 2
    noise = np.broadcast_to(noise_var, power.shape[:-1])[..., None]
    measured = reciprocity.measured_pairs(mask, power.shape[-1])
    return pilot_power * np.min(np.where(measured, power / noise, np.inf), axis=(-2, -1))


def link_gains(y: ArrayLike, pilots: ArrayLike, *, coefficients: ArrayLike | None = None, order: int = 1) -> NDArray:
    r"""Estimates (..., M, M) of the gains g of all links, zero on the diagonal.

    With :math:`z = F_n(x)` known it is :math:`\hat g_{mn} = \sum_k y_{mn,k} z_k^* / \sum_k |z_k|^2`, unbiased with
    variance :math:`s_m / \sum_k |z_k|^2`. That is the paper's eq. (20) for pilots of constant modulus; its mean of
    :math:`y x^* / |x|^2` weighs all pilots alike, which is worse for others. Without coefficients and at a higher
    order each link's linear coefficient comes from its own least-squares fit of a polynomial, whatever its amplifier:
    exact without noise, with a larger variance, since every link pays for the other terms. At order 1 distortion
    biases the gains.

    Parameters
    ----------
    y : (..., M, M, K) complex, receiver first. pilots : (K,) or (..., M, K), of each transmitter.
    coefficients : (..., M, P), first entry 1, of F (`predistortion.identify`); None: see `order`.
    order : odd, of the polynomial of each link when coefficients are None.
    """
    y, pilots = np.asarray(y), np.asarray(pilots)
    if y.ndim < 3 or y.shape[-3] != y.shape[-2] or pilots.shape[-1:] != y.shape[-1:]:
        raise ValueError(f"y must be (..., M, M, K) with pilots (..., K), not {y.shape} with {pilots.shape}")
    if coefficients is None and order > 1:
        gains = fit_amplifier(pilots[..., None, :, :] if pilots.ndim > 2 else pilots, y, order=order)[..., 0]
    else:
        z = pilots if coefficients is None else amplify(pilots, coefficients)
        if z.ndim == 1:
            gains = y @ z.conj() / np.vdot(z, z).real
        else:
            gains = np.einsum("...mnk,...nk->...mn", y, z.conj()) / np.sum(np.abs(z) ** 2, axis=-1)[..., None, :]
    index = np.arange(y.shape[-2])
    gains[..., index, index] = 0.0
    return gains


def in_touch(gains: ArrayLike, noise_var: ArrayLike) -> NDArray:
    """Ports (..., M), bool, that hear others and are heard, beyond what noise alone would do (`FALSE_ALARM`).

    Without a signal the energy of a port's M - 1 links, each over its noise, is Gamma(M - 1) in either direction.

    Parameters
    ----------
    gains : (..., M, M), estimates. noise_var : (..., M), of their errors, for each receiver.
    """
    gains, noise = np.asarray(gains), np.maximum(noise_var, _TINY)
    num_ports = gains.shape[-1]
    energy = np.where(np.eye(num_ports, dtype=bool), 0.0, np.abs(gains) ** 2) / noise[..., None]
    return (gammaincc(num_ports - 1, energy.sum(axis=-1)) < FALSE_ALARM) & (
        gammaincc(num_ports - 1, energy.sum(axis=-2)) < FALSE_ALARM)


def link_variance(gains: ArrayLike, noise_var: ArrayLike, energy: ArrayLike) -> NDArray:
    r"""Relative error variance (..., M, M), :math:`v_{mn} = s_m / (E_n |g_{mn}|^2)`; inf where there is no link.

    Parameters
    ----------
    gains : (..., M, M). noise_var : scalar or (..., M), s. energy : scalar or (..., M), E, of the pilots of each
        transmitter at its output, :math:`\sum_k |F_n(x_k)|^2`.
    """
    power = np.abs(np.asarray(gains)) ** 2
    noise = np.broadcast_to(noise_var, power.shape[:-1])[..., :, None]
    signal = power * np.broadcast_to(energy, power.shape[:-1])[..., None, :]
    index = np.arange(power.shape[-1])
    signal[..., index, index] = 0.0
    return np.divide(noise, signal, out=np.full(signal.shape, np.inf), where=signal > 0)


def ratio(gains: ArrayLike, reference: int | ArrayLike = 0, *, coupling: ArrayLike | None = None) -> NDArray:
    r"""Calibration (..., M) by the paper's closed form, :math:`c_n / c_{ref} = p_{ref,n} / p_{n,ref}`, p = g / h.

    Where the coupling is reciprocal, h cancels and is not needed. The same as method "argos" of `reciprocity.calibrate`
    on one component; here the reference may differ over leading axes.

    Parameters
    ----------
    gains : (..., M, M). reference : a port, or (...) ports such as `best_reference` gives.
    coupling : (..., M, M), h, for coupling that is known and not reciprocal.

    Raises
    ------
    ValueError
        If a port has no link with the reference.
    """
    gains = np.asarray(gains)
    num_ports = gains.shape[-1]
    at = np.broadcast_to(reference, gains.shape[:-2])[..., None]
    if np.any((at < 0) | (at >= num_ports)):
        raise ValueError(f"reference = {reference} must be a port from 0 to {num_ports - 1}")
    p = gains if coupling is None else _without(coupling, gains)
    ports = np.arange(num_ports)
    from_port = np.take_along_axis(p, at[..., None, :], axis=-2)[..., 0, :]
    from_reference = np.take_along_axis(p, at[..., :, None], axis=-1)[..., 0]
    own = ports == at
    if np.any(((from_reference == 0) | (from_port == 0)) & ~own):
        raise ValueError(f"reference = {reference} must have links with all ports in both directions")
    return np.divide(from_port, from_reference, out=np.ones(from_port.shape, complex), where=~own)


def ratio_variance(variance: ArrayLike) -> NDArray:
    """Variance (..., M, M) of log(c_i / c_j) from the pair alone, V = v + v^T, first order; zero on the diagonal."""
    variance = np.asarray(variance, float)
    pairs = variance + np.swapaxes(variance, -1, -2)
    index = np.arange(variance.shape[-1])
    pairs[..., index, index] = 0.0
    return pairs


def ratio_mean_square(variance: ArrayLike, reference: int = 0) -> NDArray:
    r"""Mean square (..., M) of the relative error of `ratio`, :math:`E |\hat c_n / c_n - 1|^2` with c_ref exact.

    The error is :math:`(z_1 - z_2) / (1 + z_2)`, with z_1 of variance a = v[ref, n] in the numerator and z_2 of
    variance b = v[n, ref] in the denominator. From :math:`E |1 + z|^{-2} \sim \sum_k k!\, b^k` and
    :math:`E |z|^2 |1 + z|^{-2} \sim \sum_k k!\, b^k` from k = 1 on it is

    .. math:: a + b + (a b + 2 b^2) + (2 a b^2 + 6 b^3) + \dots

    an asymptotic series, given here to the third order. Strictly the mean is infinite, as the denominator may vanish
    with a density of :math:`e^{-1/b} / (\pi b)`: below b = 0.1 no experiment will see that.
    """
    variance = np.asarray(variance, float)
    a, b = variance[..., reference, :].copy(), variance[..., :, reference].copy()
    a[..., reference] = b[..., reference] = 0.0
    return a + b + a * b + 2.0 * b**2 + 2.0 * a * b**2 + 6.0 * b**3


def best_reference(gains: ArrayLike, noise_var: ArrayLike = 1.0, energy: ArrayLike = 1.0) -> NDArray:
    r"""Reference (...) for which the predicted `metrics.alignment_error` of `ratio` is smallest.

    To first order that is :math:`\sum_n a_n (1 - a_n / A) V_{n,ref} / A` with :math:`a = |c|^2`, A their sum. It does
    not depend on the gauge, unlike the mean square error with c[ref] = 1, which rewards a large |c_ref|. Ports without
    a link to all others are never chosen if there is another one.

    Parameters
    ----------
    gains, noise_var, energy : as in `link_variance`, true or estimated; a common factor of the last two has no effect.
    """
    gains = np.asarray(gains)
    pairs = ratio_variance(link_variance(gains, noise_var, energy))
    power = np.abs(_without(gains, np.swapaxes(gains, -1, -2))) ** 2  # |c_n / c_ref|^2
    index = np.arange(gains.shape[-1])
    power[..., index, index] = 1.0
    power = power / power.sum(axis=-2, keepdims=True)
    with np.errstate(invalid="ignore"):
        error = np.sum(power * (1.0 - power) * pairs, axis=-2)
    return np.argmin(np.where(np.isfinite(pairs).all(axis=-2), error, np.inf), axis=-1)


def all_pairs(
    gains: ArrayLike,
    *,
    reference: int | None = 0,
    noise_var: ArrayLike | None = None,
    energy: ArrayLike | None = None,
    method: reciprocity.Method = "ml",
    mask: ArrayLike | None = None,
) -> NDArray:
    """Calibration (..., M) from all pairs: `reciprocity.calibrate` on the gains, weighted by their errors.

    Parameters
    ----------
    gains : (..., M, M). reference, method, mask : of `reciprocity.calibrate`.
    noise_var : scalar or (M,), of each receiver; None: equal.
    energy : (M,) of each transmitter's pilots at its output; None: equal.
    """
    gains = np.asarray(gains)
    if energy is None:
        return reciprocity.calibrate(gains[..., None], method, reference=reference, noise_var=noise_var, mask=mask)
    # Scaled to equal noise of a receiver from all transmitters, the coefficients are those times the same scale.
    scale = np.sqrt(np.broadcast_to(energy, gains.shape[:-1]))
    scaled = reciprocity.calibrate((gains * scale[..., None, :])[..., None], method, noise_var=noise_var, mask=mask)
    return reciprocity.fix_gauge(scaled / scale, reference)


def known_coupling(
    gains: ArrayLike, coupling: ArrayLike, *, noise_var: ArrayLike = 1.0, energy: ArrayLike = 1.0, reference: int = 0
) -> NDArray:
    r"""Calibration (..., M) with the coupling h known, also if it is not reciprocal; c[reference] = 1.

    Minimises :math:`\sum_{m \ne n} |g_{mn} - h_{mn} r_m t_n|^2 E_n / s_m` over all r and t, c = t / r: a rank-one fit
    without the diagonal. The start takes the phases of the leading singular vectors of :math:`h^* g E / s`, which are
    exact without noise, and the magnitudes of a straight-line fit of the logarithms; Gauss-Newton steps in log r and
    log t follow, each one solve with the Laplacian of the graph between receivers and transmitters.

    Where both directions of every pair have the same SNR, h is *no* help: the bound is that of `all_pairs`, because h
    only says something of the product of the two directions, c only of their ratio (`predicted_covariance`).

    Parameters
    ----------
    gains : (..., M, M), M >= 3. coupling : (M, M) or (..., M, M), h up to a common factor; 0 where not known.
    noise_var, energy : as in `link_variance`.

    Raises
    ------
    DisconnectedGraphError if the links do not join all receivers and transmitters (2 ports: use `ratio`).
    """
    gains, coupling = np.asarray(gains), np.asarray(coupling)
    weight = 1.0 / link_variance(np.where(coupling == 0, 0.0, np.ones_like(gains, float)), noise_var, energy)
    num_ports = gains.shape[-1]
    p = _without(coupling, gains)
    weight = weight * np.abs(coupling) ** 2
    require_connected(_both_sides(weight * np.abs(p) ** 2) > 0)
    logs = _rank_one_start(p, weight)
    cost = np.inf
    for _ in range(_MAX_STEPS):
        model = np.exp(logs[..., :num_ports, None] + logs[..., None, num_ports:])
        error = weight * (p - model)
        last, cost = cost, np.sum(error * (p - model).conj(), axis=(-2, -1)).real
        pull = model.conj() * error
        right = np.concatenate([pull.sum(axis=-1), -pull.sum(axis=-2)], axis=-1)[..., None]
        step = solve_laplacian(_both_sides(weight * np.abs(model) ** 2), right)[..., 0]
        step[..., num_ports:] *= -1.0
        length = np.abs(step).max(axis=-1, keepdims=True)
        logs = logs + step / np.maximum(length, 1.0)
        if length.max() < _TOLERANCE or np.all(np.abs(last - cost) < 1e-15 * cost):
            break
    return reciprocity.fix_gauge(np.exp(logs[..., num_ports:] - logs[..., :num_ports]), reference)


def predicted_covariance(
    variance: ArrayLike,
    method: Literal["ratio", "all_pairs", "known_coupling"] = "all_pairs",
    *,
    reference: int = 0,
    port_variance: ArrayLike = 0.0,
) -> NDArray:
    r"""Covariance (..., M, M) of the errors of log c, with that of the reference held at zero; first order.

    "ratio": diagonal, :math:`V_{n,ref}`. "all_pairs": the Cramer-Rao bound, pseudo-inverse of the Laplacian of 1 / V.
    "known_coupling": the bound with h known, from that of the graph between receivers and transmitters with weights
    1 / v. Equal v throughout give 2 v and 4 v / M: a single reference is M / 2 worse.

    Parameters
    ----------
    variance : (..., M, M), from `link_variance`.
    port_variance : scalar or (..., M), further independent errors of each port's log c (`single_stage_variance`).
    """
    variance = np.asarray(variance, float)
    num_ports = variance.shape[-1]
    if method == "ratio":
        covariance = ratio_variance(variance)[..., reference, None] * np.eye(num_ports)
    elif method == "all_pairs":
        pairs = variance + np.swapaxes(variance, -1, -2)
        require_connected(np.isfinite(pairs))
        covariance = laplacian_pinv(1.0 / pairs)
    elif method == "known_coupling":
        both = _both_sides(1.0 / variance)
        require_connected(both > 0)
        pinv = laplacian_pinv(both)
        upper, lower = pinv[..., :num_ports, :], pinv[..., num_ports:, :]
        covariance = (upper + lower)[..., :num_ports] + (upper + lower)[..., num_ports:]
    else:
        raise ValueError(f'method = "{method}" must be "ratio", "all_pairs" or "known_coupling"')
    covariance = covariance + np.broadcast_to(port_variance, variance.shape[:-1])[..., None] * np.eye(num_ports)
    row, column = covariance[..., reference, None, :], covariance[..., :, reference, None]
    return covariance - row - column + covariance[..., reference, None, reference, None]


def single_stage(
    y: ArrayLike,
    pilots: ArrayLike,
    *,
    order: int = 3,
    coefficients: ArrayLike | None = None,
    noise_var: ArrayLike | None = None,
    reference: int | None = 0,
) -> NDArray:
    r"""Calibration (..., M) from the amplitude-swept pilots that identified the amplifiers: no second set of pilots.

    The amplifiers are identified first (`predistortion.identify`), then every link's gain by the matched filter for
    F_n(x), then c from all pairs: the gain of small signals, as a predistorter with first coefficient 1 restores it.
    A mean over the pilots instead, as for linear ones, would take the compression for a part of t.

    Parameters
    ----------
    y : (..., M, M, K), receiver first. pilots : (K,) or (..., M, K), amplifier inputs.
    order : odd, of the amplifiers. coefficients : (..., M, P) if they are known already.
    noise_var : scalar or (M,), of each receiver; None: equal.
    """
    if coefficients is None:
        coefficients = predistortion.identify(y, pilots, order=order, noise_var=noise_var)
    energy = np.sum(np.abs(amplify(pilots, coefficients)) ** 2, axis=-1)
    gains = link_gains(y, pilots, coefficients=coefficients)
    return all_pairs(gains, reference=reference, noise_var=noise_var, energy=energy)


def single_stage_variance(
    gains: ArrayLike, coefficients: ArrayLike, pilots: ArrayLike, noise_var: ArrayLike
) -> NDArray:
    r"""Variance (..., M) that the estimated amplifiers add to each port's log c in `single_stage`.

    With :math:`D = [x|x|^2, x|x|^4, \dots]` the data determine :math:`\log c + b \kappa`, :math:`b = F^H D / |F|^2`,
    as well as linear pilots of the energy :math:`|F|^2` would, and kappa independently of that, from what is
    orthogonal to F. So the bound is that of the pairs plus, for each port by itself, :math:`b\, C_\kappa b^H`.

    Parameters
    ----------
    gains : (..., M, M). coefficients : (..., M, P). pilots : (K,) or (..., M, K). noise_var : scalar or (..., M).
    """
    gains, coefficients = np.asarray(gains), np.asarray(coefficients)
    gains = np.where(np.eye(gains.shape[-1], dtype=bool), 0.0, gains)
    covariance = predistortion.coefficient_crlb(coefficients, pilots, predistortion.gain_energy(gains, noise_var))
    amplitude = np.abs(np.asarray(pilots))
    basis = amplitude[..., None] ** (2 * np.arange(1, coefficients.shape[-1]) + 1)
    output = amplify(amplitude, coefficients)
    overlap = (output.conj()[..., None, :] @ basis)[..., 0, :] / np.sum(np.abs(output) ** 2, axis=-1)[..., None]
    return np.einsum("...p,...pq,...q->...", overlap, covariance, overlap.conj()).real


def _without(divisor: NDArray, value: NDArray) -> NDArray:
    """``value / divisor``, zero where the divisor is."""
    value, divisor = np.broadcast_arrays(value, divisor)
    return np.divide(value, divisor, out=np.zeros(value.shape, complex), where=divisor != 0)


def _both_sides(weights: NDArray) -> NDArray:
    """Weights (..., 2M, 2M) of the graph between receivers (first) and transmitters, from (..., M, M)."""
    num_ports = weights.shape[-1]
    out = np.zeros((*weights.shape[:-2], 2 * num_ports, 2 * num_ports))
    out[..., :num_ports, num_ports:] = weights
    out[..., num_ports:, :num_ports] = np.swapaxes(weights, -1, -2)
    return out


def _rank_one_start(p: NDArray, weight: NDArray) -> NDArray:
    """Start (..., 2M) of log r and log t for p_mn = r_m t_n off the diagonal, exact without noise."""
    left, _, right = np.linalg.svd(weight * p)
    phases = np.concatenate([np.angle(left[..., :, 0]), np.angle(right[..., 0, :])], axis=-1)
    power = np.abs(p) ** 2
    used = weight * power
    height = 0.5 * used * np.log(power, out=np.zeros_like(power), where=power > 0)
    sides = np.concatenate([height.sum(axis=-1), -height.sum(axis=-2)], axis=-1)
    size = solve_laplacian(_both_sides(used), sides[..., None])[..., 0]
    size[..., p.shape[-1] :] *= -1.0
    return size + 1j * phases
