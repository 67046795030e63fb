# SPDX-License-Identifier: GPL-3.0-or-later
r"""Delay and gain of a link from its subcarriers, by maximum likelihood.

.. math:: g_k = a\, e^{-2j \pi k \Delta d} + n_k

with k the subcarrier counted from band centre, :math:`\Delta` the spacing in Hz, d the delay in s and a the complex
gain at band centre. The likelihood is largest where :math:`|\sum_k g_k e^{2j \pi k \Delta d}|^2` is. One FFT over the
comb, zero where there is no pilot, finds the right peak, and Newton's method ends on it. The FFT has four times as many
points as the sum needs: between two of them the sum is, to machine precision, a polynomial that follows from the
nearest 17, so that nothing after the FFT depends on the number of pilots.

References
----------
Bidirectional calibration (CARS), eq. (23) to (25). Deviations: k are the true indices of the comb, from band centre
(the paper counts pilots from 0, which turns the gain by the delay of half a band), and d is the whole delay of the
argument: of a two-way coefficient it is twice the offset between the nodes.
"""

import math
from collections.abc import Iterator
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft
from scipy.special import factorial

from .bidirectional_bounds import delay_crlb, outlier_probability
from .frequency import detection_threshold

# Points of the coarse search per 1 / (span of the pilots): between them at most 15 % of a height is lost (two pilots).
_OVERSAMPLING = 4
_SCALLOP = 0.15
# Peaks that are climbed because they may be higher between the points; each round takes the next best.
_RIVAL_ROUNDS = 4
# Points on either side that the polynomial comes from: its error is 5e-13 of their height, 2e-14 with one more.
_NEIGHBOURS = 8
# Terms of the polynomial: up to half a point away the phases at the ends turn by pi / 8, (pi / 8)^13 / 13! = 9e-16; up
# to a point, where a limit cuts a peak, 7e-12.
_TERMS = 13
# Newton's method doubles the digits from about two; more steps only where noise made the top flat.
_NEWTON_STEPS = 12
_LAST_STEP = 3e-5
# Values of the spectra of the links searched at once: they stay in the cache.
_CHUNK_VALUES = 1 << 17
# Largest chance of a wrong peak with which a delay is still trusted.
MAX_OUTLIER_PROBABILITY = 1e-2


class DelayEstimate(NamedTuple):
    """Delay and gain (...) of links with what is known of their errors.

    delay_s, and gain at band centre; delay_std_s and phase_std_rad (of the gain), predicted from the residual,
    nan without a signal;
    element_var, variance of the noise of one element, from the residual; outlier_probability, chance that the peak is
    a wrong one; trusted, whether there is a signal for certain and the peak is the right one.
    """

    delay_s: NDArray
    gain: NDArray
    delay_std_s: NDArray
    phase_std_rad: NDArray
    element_var: NDArray
    outlier_probability: NDArray
    trusted: NDArray


class _Search(NamedTuple):
    """Delay and gain (...) of each link, its comb's points from first to last pilot, the search in cycles per point."""

    delay_s: NDArray
    gain: NDArray
    outside: NDArray
    num_points: NDArray
    searched_cycles: NDArray


def delay_and_gain(
    g: ArrayLike, subcarriers: ArrayLike, spacing: float, *, max_delay: float | None = None
) -> tuple[NDArray, NDArray]:
    r"""Maximum-likelihood (delay in s, complex gain at k = 0), both (...), for :math:`g_k = a e^{-2j \pi k \Delta d}`.

    Parameters
    ----------
    g : (..., K) complex.
    subcarriers : (K,) or broadcastable to g, int, k from band centre, all different, in any order and with any gaps.
    spacing : of the subcarriers in Hz.
    max_delay : largest ``|d|`` in s; the estimate stays within. None: ``1 / (2 D spacing)`` with D the largest step
        that leads to all pilots, beyond which delays have aliases. A limit lowers the SNR at which wrong peaks appear.

    Returns
    -------
    Nan for links that are zero or not finite. The factor 2 of a two-way measurement is the caller's.

    Raises
    ------
    ValueError
        If a shape does not fit, subcarriers repeat, or a number is out of range.
    """
    g, k = _as_arrays(g, subcarriers, spacing)
    search = _search(g, k, spacing, max_delay)
    return search.delay_s, search.gain


def delay_estimate(
    g: ArrayLike, subcarriers: ArrayLike, spacing: float, *, max_delay: float | None = None
) -> DelayEstimate:
    """Delay and gain as `delay_and_gain`, with predicted deviations and whether to trust them; the same parameters.

    A link is trusted if the model explains more of its energy than noise alone would with a probability of 1e-4
    (`frequency.detection_threshold`), the chance of a wrong peak is below `MAX_OUTLIER_PROBABILITY`, and no higher
    peak lies beyond `max_delay`. Three pilots leave 3 of 6 real values for the noise; with fewer than four nothing is
    trusted.
    """
    g, k = _as_arrays(g, subcarriers, spacing)
    search = _search(g, k, spacing, max_delay)
    gain, num_pilots = search.gain, g.shape[-1]
    energy = np.sum(g.real**2 + g.imag**2, axis=-1)
    element_var = residual_variance(energy, gain, num_pilots)
    # The fit makes the gain's energy larger by the noise in it.
    signal = np.abs(gain) ** 2 - element_var / num_pilots
    relative = np.divide(element_var, signal, out=np.full_like(signal, np.nan), where=signal > 0)
    crlb = delay_crlb(k, spacing, relative)
    # Cells of the search by their number over the span, as many as for a full comb of that length.
    outlier = outlier_probability(relative, num_pilots, 2.0 * search.searched_cycles * search.num_points)
    outlier = np.where(np.isnan(outlier), 1.0, outlier)
    # All links of a comb share their threshold.
    widths, member = np.unique(search.searched_cycles * search.num_points / num_pilots, return_inverse=True)
    threshold = np.array([detection_threshold(1, num_pilots, width) for width in widths])[member]
    threshold = threshold.reshape(gain.shape)
    with np.errstate(invalid="ignore"):
        detected = num_pilots * np.abs(gain) ** 2 > threshold * energy
    trusted = detected & (outlier <= MAX_OUTLIER_PROBABILITY) & ~search.outside & np.isfinite(search.delay_s)
    return DelayEstimate(search.delay_s, gain, crlb.delay_std_s, crlb.phase_std_rad, element_var, outlier, trusted)


def residual_variance(energy: NDArray, gain: NDArray, num_pilots: int) -> NDArray:
    """Noise variance of an element from what delay and gain (three of 2 K real numbers) leave of the energy."""
    return np.maximum(energy - num_pilots * np.abs(gain) ** 2, 0.0) / (num_pilots - 1.5)


def _search(g: NDArray, k: NDArray, spacing: float, max_delay: float | None) -> _Search:
    flat, first = g.reshape(-1, g.shape[-1]), np.broadcast_to(k.min(axis=-1), g.shape[:-1]).reshape(-1)
    num = len(flat)
    out = _Search(np.empty(num), np.empty(num, complex), np.empty(num, bool), np.empty(num), np.empty(num))
    for rows, pattern in _patterns(k, g.shape):
        step = int(np.gcd.reduce(pattern))
        points = pattern // step
        length = int(points.max()) + 1
        max_cycles = _max_cycles(max_delay, step * spacing)
        size = max(1, _CHUNK_VALUES // (_OVERSAMPLING * length))
        for start in range(0, len(rows), size):
            # A slice where it will do: rows are not copied.
            part = slice(start, start + size) if len(rows) == num else rows[start : start + size]
            with np.errstate(invalid="ignore", over="ignore"):
                cycles, total, out.outside[part] = _peak(flat[part], points, max_cycles)
            out.delay_s[part] = cycles / (step * spacing)
            # The sum counts from the first pilot, the gain from band centre.
            out.gain[part] = total * np.exp(2j * np.pi * spacing * first[part] * out.delay_s[part]) / len(points)
        out.num_points[rows], out.searched_cycles[rows] = length, max_cycles
    return _Search(*(value.reshape(g.shape[:-1]) for value in out))


def _peak(g: NDArray, points: NDArray, max_cycles: float) -> tuple[NDArray, NDArray, NDArray]:
    r"""Cycles nu (B,) at which :math:`|\sum_n g_n e^{2j \pi \nu n}|` is largest, the sum there, and if it is cut off.

    g (B, K) lie at the integers `points` (K,), from 0; nu is searched from -max_cycles to max_cycles, and cut off where
    the sum is larger beyond.
    """
    length = int(points.max()) + 1
    size = fft.next_fast_len(_OVERSAMPLING * length)
    spectrum = np.zeros((len(g), size), complex)
    # A comb without gaps, as most are, is copied as a block.
    block = length == len(points) and (points == np.arange(length)).all()
    spectrum[:, slice(0, length) if block else points] = g
    spectrum = fft.ifft(spectrum, axis=-1, norm="forward", overwrite_x=True)
    power = _square(spectrum)
    height = power.max(axis=-1)
    if max_cycles < 0.5:
        # One point beyond the limit: the peak may lie between the last one inside and the limit.
        power[:, np.abs(fft.fftfreq(size, 1.0 / size)) >= max_cycles * size + 1.0] = -1.0
    climb = partial(_climb, spectrum, centre=0.5 * (length - 1), limit=max_cycles * size)
    rows = np.arange(len(g))
    peak, total = climb(rows, power.argmax(axis=-1))
    value, last = _square(total), peak
    for _ in range(_RIVAL_ROUNDS):
        # Out with the peak climbed last; another may be higher between the points, or this one cut by the limit.
        near = np.rint(last).astype(int)[:, None] + np.arange(-1, 2)
        power[rows[:, None], near % size] = -1.0
        left = power if len(rows) == len(g) else power[rows]
        rows = rows[left.max(axis=-1) > (1.0 - _SCALLOP) * value[rows]]
        if not len(rows):
            break
        last, other = climb(rows, power[rows].argmax(axis=-1))
        better = _square(other) > value[rows]
        peak[rows[better]], total[rows[better]] = last[better], other[better]
        value[rows] = _square(total[rows])
    outside = height > value * (1 + 1e-9)
    cycles = peak / size
    if max_cycles == 0.5:
        cycles -= np.rint(cycles)
    valid = np.isfinite(height) & (height > 0)
    return np.where(valid, cycles, np.nan), np.where(valid, total, np.nan), outside


def _climb(spectrum: NDArray, rows: NDArray, start: NDArray, *, centre: float, limit: float) -> tuple[NDArray, NDArray]:
    """Point (B,) of the peak next to the point `start` of some rows, within one point and the limit, and the sum there.

    spectrum (rows, size) of sums over pilots whose middle is `centre`; a limit of half of size is none.
    """
    size = spectrum.shape[-1]
    apart = np.arange(-_NEIGHBOURS, _NEIGHBOURS + 1)
    nearby = np.take(spectrum, (rows * size)[:, None] + (start[:, None] + apart) % size)
    nearby *= np.exp(-2j * np.pi * centre / size * apart)
    parts = np.empty((len(apart), 2, len(start)))
    parts[:, 0], parts[:, 1] = nearby.real.T, nearby.imag.T
    before, here, after = (part[0] ** 2 + part[1] ** 2 for part in parts[_NEIGHBOURS - 1 : _NEIGHBOURS + 2])
    # Value, slope and curvature, real and imaginary, as polynomials (terms, 3, 2, B) of the offset.
    series = (_interpolation() @ parts.reshape(len(apart), -1)).reshape(_TERMS, 3, 2, len(start))
    start = start - size * (2.0 * start >= size)
    low, high = -1.0, 1.0
    if 2 * limit < size:
        low, high = np.maximum(low, -limit - start), np.minimum(high, limit - start)
    # From the parabola through the three points, or the end to which they rise.
    moved = 0.5 * (before - after) / np.minimum(before - 2.0 * here + after, -np.finfo(float).tiny)
    moved = np.minimum(np.maximum(moved, low), high)
    for _ in range(_NEWTON_STEPS):
        offset = moved
        s0, s1, s2 = _evaluate(series, offset)
        slope = s0[0] * s1[0] + s0[1] * s1[1]
        curvature = s0[0] * s2[0] + s0[1] * s2[1] + s1[0] * s1[0] + s1[1] * s1[1]
        step = np.divide(-slope, curvature, out=0.25 * np.sign(slope), where=curvature < 0)
        moved = np.minimum(np.maximum(offset + np.minimum(np.maximum(step, -0.5), 0.5), low), high)
        step = moved - offset
        # The error of a step is some hundredths of its square, in points.
        if not (np.abs(step) > _LAST_STEP).any():
            break
    real, imag = s0 + step * (s1 + 0.5 * step * s2)
    return start + moved, (real + 1j * imag) * np.exp(2j * np.pi * centre / size * moved)


def _square(values: NDArray) -> NDArray:
    """Squared modulus."""
    out = values.real**2
    out += values.imag**2
    return out


def _evaluate(series: NDArray, offset: NDArray) -> NDArray:
    """Polynomials (terms, ..., B) at the offsets (B,), by Horner's rule."""
    value = series[-1].copy()
    for coefficient in series[-2::-1]:
        value *= offset
        value += coefficient
    return value


@lru_cache(maxsize=1)
def _interpolation() -> NDArray:
    r"""Coefficients A (terms * 3, neighbours) of polynomials in the offset x from a point, from the values around it.

    A signal of frequencies w up to pi / 4 per point is :math:`\sum_t x^t \sum_n A_{tn} v_n` between the points, where A
    solves :math:`\sum_n A_{tn} e^{j w n} = (j w)^t / t!` for all these w in least squares. After each term of the
    value come those of its first two derivatives.
    """
    apart, term = np.arange(-_NEIGHBOURS, _NEIGHBOURS + 1), np.arange(_TERMS)
    frequency = np.pi / _OVERSAMPLING * np.cos(np.pi * (np.arange(200) + 0.5) / 200)
    wave = np.exp(1j * np.multiply.outer(frequency, apart))
    taylor = (1j * frequency[:, None]) ** term / factorial(term)
    value = np.linalg.lstsq(
        np.concatenate([wave.real, wave.imag]), np.concatenate([taylor.real, taylor.imag]), rcond=1e-15
    )[0]
    slope = np.roll(value * term, -1, axis=1)
    curvature = np.roll(slope * term, -1, axis=1)
    return np.stack([value, slope, curvature]).transpose(2, 0, 1).reshape(-1, len(apart))


def _patterns(k: NDArray, shape: tuple[int, ...]) -> Iterator[tuple[NDArray, NDArray]]:
    """Rows of the batch that have the same subcarriers but for a common shift, and these (K,), from 0."""
    shifted = k - k.min(axis=-1, keepdims=True)
    if not shifted.size:
        return
    pattern = shifted.reshape(-1, shape[-1])[0]
    if np.all(shifted == pattern):
        yield np.arange(math.prod(shape[:-1])), pattern
        return
    distinct, member = np.unique(shifted.reshape(-1, shape[-1]), axis=0, return_inverse=True)
    member = np.broadcast_to(np.reshape(member, k.shape[:-1]), shape[:-1]).reshape(-1)
    for index, pattern in enumerate(distinct):
        yield np.flatnonzero(member == index), pattern


def _max_cycles(max_delay: float | None, step_hz: float) -> float:
    if max_delay is None:
        return 0.5
    if not 0.0 < max_delay * step_hz <= 0.5 * (1.0 + 1e-12):
        limit = 0.5 / step_hz
        raise ValueError(
            f"max_delay = {max_delay} s must be positive and at most 1 / (2 D spacing) = {limit:g} s, beyond which "
            "delays have aliases"
        )
    return min(float(max_delay * step_hz), 0.5)


def _as_arrays(g: ArrayLike, subcarriers: ArrayLike, spacing: float) -> tuple[NDArray, NDArray]:
    g, k = np.asarray(g, complex), np.asarray(subcarriers)
    if not (np.isfinite(spacing) and spacing > 0):
        raise ValueError(f"spacing = {spacing} Hz must be positive and finite")
    if k.ndim < 1 or k.dtype.kind not in "iu" or g.ndim < 1 or g.shape[-1] != k.shape[-1] or g.shape[-1] < 2:
        raise ValueError(
            f"subcarriers must be integers, (..., K) with K = {g.shape[-1:]} >= 2 as in g, not {k.dtype} {k.shape}"
        )
    try:
        fits = np.broadcast_shapes(k.shape, g.shape) == g.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"subcarriers of shape {k.shape} cannot be broadcast to the links {g.shape}")
    k = k.astype(np.int64)
    if np.any(np.diff(np.sort(k, axis=-1), axis=-1) == 0):
        raise ValueError("subcarriers must not repeat")
    return g, k
