# SPDX-License-Identifier: GPL-3.0-or-later
r"""Inverses of memoryless amplifiers: closed form for third order, table and Newton's method for any order.

With s = |u|^2 the output power of :math:`F(u) = \sum_p \kappa_p u |u|^{2p}` is :math:`A(s) = s |P(s)|^2`. It grows up
to its first peak, the smallest positive root of A'(s): below it F has one inverse that starts at zero, and above it
none. At third order :math:`A = |\kappa|^2 s^3 + 2 \Re(\kappa) s^2 + s`, and the inverse is the smallest root of a
cubic. Inputs beyond the limit keep their phase and are clipped to it.

References
----------
Over-the-air DPD, eq. (15) to (17). Deviations: only ratios to the linear coefficient enter (the common factor is a
linear gain), and the range is limited to where the inverse exists, of which the paper says nothing.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .amplifier_model import amplify, fit_amplifier, polynomial

# The table brings Newton's method close enough for its error to end at rounding in these steps.
_NEWTON_STEPS = 5
_START_POINTS = 512
# A sample at the limit is not one that is clipped.
_LIMIT_ROUNDING = 1e-12
# Samples of the amplitudes to which indirect learning is fitted.
_TRAINING_POINTS = 512


class InvertibleRange(NamedTuple):
    """Limits (...) of the inverse: largest amplifier input |u| and the output |F(u)| there; inf without a limit."""

    input_amplitude: NDArray
    output_amplitude: NDArray


class Predistorted(NamedTuple):
    """Predistorted samples (..., N) and the number (...) of samples that were clipped to the invertible limit."""

    samples: NDArray
    num_clipped: NDArray


class PredistorterTable(NamedTuple):
    """Complex gains (..., T) at equally spaced wanted output amplitudes from 0 to max_amplitude (...)."""

    gains: NDArray
    max_amplitude: NDArray


def invertible_range(coefficients: ArrayLike, *, max_amplitude: ArrayLike = np.inf) -> InvertibleRange:
    """Range within which the amplifiers (..., P) can be inverted, see `InvertibleRange`.

    max_amplitude (...) limits the amplifier input further, to what the pilots reached: a polynomial says nothing
    beyond the amplitudes it was fitted to.

    Raises
    ------
    ValueError
        If a max_amplitude is not positive.
    """
    coefficients = np.asarray(coefficients, complex)
    if not np.all(np.asarray(max_amplitude) > 0.0):
        raise ValueError(f"max_amplitude = {max_amplitude} must be positive; inf: no limit")
    limit = np.minimum(np.sqrt(_first_peak(coefficients)), max_amplitude)
    finite = np.isfinite(limit)
    output = np.abs(amplify(np.where(finite, limit, 0.0)[..., None], coefficients))[..., 0]
    return InvertibleRange(limit, np.where(finite, output, np.inf))


def predistort(x: ArrayLike, coefficients: ArrayLike, *, max_amplitude: ArrayLike = np.inf) -> NDArray:
    """Amplifier inputs u (..., N) with F(u) = x, clipped at the invertible limit; see `predistort_and_count`."""
    return predistort_and_count(x, coefficients, max_amplitude=max_amplitude).samples


def predistort_and_count(x: ArrayLike, coefficients: ArrayLike, *, max_amplitude: ArrayLike = np.inf) -> Predistorted:
    r"""Amplifier inputs u (..., N) with F(u) = x, and how many samples were clipped.

    Exact to rounding within the invertible range. Third order: u = x / (1 + kappa s), s the smallest root of
    :math:`|\kappa|^2 s^3 + 2 \Re(\kappa) s^2 + s = |x|^2`. Higher orders: Newton's method on A(s) = |x|^2.

    Parameters
    ----------
    x : (..., N) complex, wanted outputs relative to the linear gain.
    coefficients : (..., P) complex with first entry 1; leading axes broadcast against those of x.
    max_amplitude : (...) largest amplifier input that is trusted.

    Raises
    ------
    ValueError
        If the first coefficients are not 1, or one is not finite, or a max_amplitude is not positive.
    """
    x, coefficients = np.asarray(x), _checked(coefficients)
    limit, reach = (value[..., None] for value in invertible_range(coefficients, max_amplitude=max_amplitude))
    amplitude = np.abs(x)
    beyond = amplitude > reach * (1.0 + _LIMIT_ROUNDING)
    if np.any(beyond):
        x = x * (np.where(beyond, reach, 1.0) / np.where(beyond, amplitude, 1.0))
        amplitude = np.minimum(amplitude, reach)
    power = _inverse_power(amplitude**2, coefficients, limit**2)
    return Predistorted(x / polynomial(power, coefficients), np.count_nonzero(beyond, axis=-1))


def predistorter_table(
    coefficients: ArrayLike, *, size: int = 1024, max_amplitude: ArrayLike = np.inf, full_scale: float = 1.0
) -> PredistorterTable:
    """Look-up table of the inverse of amplifiers (..., P): gains u / x over the wanted amplitude |x|.

    The table ends at the invertible limit, or at full_scale where that is lower. Errors of `apply_table` fall with
    1 / size^2 away from the limit, where the inverse is steep.
    """
    if size < 2:
        raise ValueError(f"size = {size} must be at least 2")
    coefficients = _checked(coefficients)
    limits = invertible_range(coefficients, max_amplitude=max_amplitude)
    top = np.minimum(limits.output_amplitude, full_scale)
    amplitude = top[..., None] * np.linspace(0.0, 1.0, size)
    power = _inverse_power(amplitude**2, coefficients, limits.input_amplitude[..., None] ** 2)
    return PredistorterTable(1.0 / polynomial(power, coefficients), top)


def apply_table(x: ArrayLike, table: PredistorterTable) -> Predistorted:
    """Samples (..., N) times the interpolated gain at their amplitude; clipped at the table's end, and counted."""
    x, top = np.asarray(x), table.max_amplitude[..., None]
    amplitude = np.abs(x)
    beyond = amplitude > top * (1.0 + _LIMIT_ROUNDING)
    x = x * (np.where(beyond, top, 1.0) / np.where(beyond, amplitude, 1.0))
    last = table.gains.shape[-1] - 1
    place = np.minimum(amplitude / top, 1.0) * last
    index = np.minimum(place.astype(np.intp), last - 1)
    shape = np.broadcast_shapes(index.shape[:-1], table.gains.shape[:-1])
    gains = np.broadcast_to(table.gains, (*shape, last + 1))
    index = np.broadcast_to(index, (*shape, index.shape[-1]))
    low, high = np.take_along_axis(gains, index, axis=-1), np.take_along_axis(gains, index + 1, axis=-1)
    return Predistorted(x * (low + (place - index) * (high - low)), np.count_nonzero(beyond, axis=-1))


def indirect_inverse(coefficients: ArrayLike, amplitudes: ArrayLike, *, order: int = 9) -> NDArray:
    """Polynomial predistorter b (..., order terms) of amplifiers (..., P) by indirect learning: u = amplify(x, b).

    The polynomial from output back to input, fitted where the predistorted data are, is what the rounds of indirect
    learning converge to. The output is the model's: unlike received samples it has no noise that would shrink the
    coefficients. An approximation of the inverse that `predistort` has exactly; b is not normalised.

    Parameters
    ----------
    coefficients : (..., P). amplitudes : (N,) of the data; those beyond the invertible range are left out.
    order : of the predistorter, odd.
    """
    coefficients = _checked(coefficients)
    reach = invertible_range(coefficients).output_amplitude[..., None]
    amplitudes = np.sort(np.asarray(amplitudes, float))
    wanted = np.interp(np.linspace(0.0, 1.0, _TRAINING_POINTS), np.linspace(0.0, 1.0, len(amplitudes)), amplitudes)
    wanted = np.where(wanted <= reach, wanted, 0.0).astype(complex)
    return fit_amplifier(wanted, predistort(wanted, coefficients), order=order)


def _checked(coefficients: ArrayLike) -> NDArray:
    coefficients = np.asarray(coefficients, complex)
    if not (np.all(np.isfinite(coefficients)) and np.allclose(coefficients[..., 0], 1.0, rtol=0.0, atol=1e-12)):
        raise ValueError("coefficients must be finite and relative to the linear one, with first entry 1")
    return coefficients


def _power_polynomial(coefficients: NDArray) -> NDArray:
    """Real coefficients (..., 2 P) of A(s) = s |P(s)|^2, lowest first (of s^0)."""
    terms = coefficients.shape[-1]
    out = np.zeros((*coefficients.shape[:-1], 2 * terms))
    for p in range(terms):
        out[..., 1 + p : 1 + p + terms] += (coefficients[..., p, None].conj() * coefficients).real
    return out


def _first_peak(coefficients: NDArray) -> NDArray:
    """Smallest s > 0 (...) with A'(s) = 0; inf where A grows for ever.

    In t = 1 / s the polynomial A' is monic, whatever the size of the highest coefficients; as its companion matrix is
    real, LAPACK returns real roots as exactly real.
    """
    slope = _power_polynomial(coefficients)[..., 1:]
    slope = slope * np.arange(1, slope.shape[-1] + 1)
    degree = slope.shape[-1] - 1
    if degree == 0:
        return np.full(coefficients.shape[:-1], np.inf)
    companion = np.zeros((*slope.shape[:-1], degree, degree))
    companion[..., 0, :] = -slope[..., 1:] / slope[..., :1]
    companion[..., np.arange(1, degree), np.arange(degree - 1)] = 1.0
    roots = np.linalg.eigvals(companion)
    largest = np.where(roots.imag == 0.0, roots.real, 0.0).max(axis=-1)
    return np.divide(1.0, largest, out=np.full(largest.shape, np.inf), where=largest > 0)


def _inverse_power(power: NDArray, coefficients: NDArray, limit: NDArray) -> NDArray:
    """Smallest s (..., N) with A(s) = power (..., N), at most limit (..., 1)."""
    terms = coefficients.shape[-1]
    if terms == 1:
        return power
    if terms == 2:
        return np.minimum(_cubic_root(power, coefficients[..., 1:]), limit)
    return _newton_root(power, coefficients, limit)


def _cubic_root(power: NDArray, kappa: NDArray) -> NDArray:
    r"""Smallest positive root s of :math:`|\kappa|^2 s^3 + 2 \Re(\kappa) s^2 + s = v`, kappa (..., 1), v (..., N).

    With s = v / tau it is the largest root of :math:`\tau^3 - \tau^2 - 2 \Re(\kappa) v \tau - |\kappa|^2 v^2 = 0`,
    which is close to 1 for small kappa: nothing is divided by kappa.
    """
    b, c = 2.0 * kappa.real * power, (kappa.real**2 + kappa.imag**2) * power**2
    # tau = z + 1/3 removes the square: z^3 - 3 p z - 2 q = 0.
    p, q = 1.0 / 9.0 + b / 3.0, 1.0 / 27.0 + b / 6.0 + 0.5 * c
    discriminant = q * q - p * p * p
    three = discriminant <= 0.0
    root = np.sqrt(np.where(three, p, 0.0))
    cosine = np.clip(q / np.where(three & (root > 0), root * p, 1.0), -1.0, 1.0)
    trigonometric = 2.0 * root * np.cos(np.arccos(cosine) / 3.0)
    # The sign keeps the sum under the root from cancelling.
    sign = np.where(q < 0.0, -1.0, 1.0)
    cube = sign * np.cbrt(np.abs(q) + np.sqrt(np.where(three, 0.0, discriminant)))
    single = cube + np.divide(p, cube, out=np.zeros_like(cube), where=cube != 0.0)
    tau = np.where(three, trigonometric, single) + 1.0 / 3.0
    # One step of Newton's method removes the rounding, except at the double root, where the output does not feel it.
    slope = tau * (3.0 * tau - 2.0) - b
    value = ((tau - 1.0) * tau - b) * tau - c
    tau = tau - np.where(slope > 1e-3, value / np.where(slope > 1e-3, slope, 1.0), 0.0)
    return power / tau


def _newton_root(power: NDArray, coefficients: NDArray, limit: NDArray) -> NDArray:
    """Smallest root s of A(s) = power by Newton's method on sqrt(A) over sqrt(s), from a table of that function."""
    shape = np.broadcast_shapes(power.shape[:-1], coefficients.shape[:-1])
    power = np.broadcast_to(power, (*shape, power.shape[-1]))
    if power.size == 0:
        return power
    # Without a limit of its own the table ends where the largest sample certainly is inside: A(top) >= power.
    top = np.sqrt(np.where(np.isfinite(limit), limit, _reach(power, coefficients)))
    grid = top * np.sin(0.5 * np.pi * np.linspace(0.0, 1.0, _START_POINTS))
    grid = np.broadcast_to(grid, (*shape, _START_POINTS))
    output = np.abs(amplify(grid, coefficients))
    wanted = np.sqrt(power)
    # One interpolation for all rows: each has an interval of its own, as the output grows within each.
    share = output[..., -1:]
    row = 2.0 * np.arange(np.prod(shape, dtype=int)).reshape(*shape, 1)
    a = np.interp((row + wanted / share).ravel(), (row + output / share).ravel(), grid.ravel()).reshape(power.shape)
    scale = np.arange(coefficients.shape[-1]) * 2 + 1
    for _ in range(_NEWTON_STEPS):
        gain = polynomial(a * a, coefficients)
        size = np.abs(gain)
        slope = (gain.conj() * polynomial(a * a, coefficients * scale)).real / np.where(size > 0, size, 1.0)
        step = np.where(slope > 1e-9, (size * a - wanted) / np.where(slope > 1e-9, slope, 1.0), 0.0)
        # Never by more than two intervals of the table: near the peak the slope is no guide.
        bound = 0.02 * top
        a = np.clip(a - np.clip(step, -bound, bound), 0.0, top)
    return a * a


def _reach(power: NDArray, coefficients: NDArray) -> NDArray:
    """s (..., 1) with A(s) >= the largest power, for amplifiers whose output grows for ever."""
    largest = power.max(axis=-1, keepdims=True, initial=0.0)
    s = np.where(largest > 0, largest, 1.0)
    for _ in range(60):
        short = s * np.abs(polynomial(s, coefficients)) ** 2 < largest
        if not np.any(short):
            break
        s = np.where(short, 2.0 * s, s)
    return s
