# SPDX-License-Identifier: GPL-3.0-or-later
r"""Delay and gain of a link from its subcarriers, by maximum likelihood.

.. math:: g_k = a\, e^{-2j \pi k \Delta d} + n_k

with k the subcarrier counted from band centre, :math:`\Delta` the spacing in Hz, d the delay in s and a the complex
gain at band centre. The likelihood is largest where :math:`|\sum_k g_k e^{2j \pi k \Delta d}|^2` is. One FFT over the
comb, zero where there is no pilot, finds the right peak, and Newton's method ends on it. Between two points of the FFT
the sum is a polynomial of the delay to machine precision: its coefficients are one matrix product, and the steps cost
the same for any number of pilots.

References
----------
Bidirectional calibration (CARS), eq. (23) to (25). Deviations: k are the true indices of the comb, from band centre
(the paper counts pilots from 0, which turns the gain by the delay of half a band), and d is the whole delay of the
argument: of a two-way coefficient it is twice the offset between the nodes.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft

from .bidirectional_bounds import delay_crlb, outlier_probability
from .frequency import detection_threshold

# Points of the coarse search per 1 / (span of the pilots): between them at most 15 % of a height is lost (two pilots).
_OVERSAMPLING = 4
_SCALLOP = 0.15
# Peaks that are climbed because they may be higher between the points; each round takes the next best.
_RIVAL_ROUNDS = 4
# Terms of the polynomial: the phases at the ends turn by pi / 4 from a point to the next, (pi / 4)^17 / 17! = 5e-17.
_TERMS = 17
# Newton's method doubles the digits from about one; more steps only where noise made the top flat.
_NEWTON_STEPS = 12
# Values of the spectra of the links searched at once: they stay in the cache.
_CHUNK_VALUES = 1 << 16
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
    return DelayEstimate(
        search.delay_s, gain, crlb.delay_std_s, crlb.phase_std_rad, element_var, outlier, trusted
    )


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
            part = rows[start : start + size]
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
    valid = np.isfinite(g).all(axis=-1) & g.any(axis=-1)
    g = np.where(valid[:, None], g, 1.0)
    padded = np.zeros((len(g), size), complex)
    padded[:, points] = g
    spectrum = fft.ifft(padded, axis=-1, norm="forward", overwrite_x=True)
    power = spectrum.real**2 + spectrum.imag**2
    height = power.max(axis=-1)
    bins = fft.fftfreq(size, 1.0 / size)
    # One point beyond the limit: the peak may lie between the last one inside and the limit.
    power[:, np.abs(bins) >= max_cycles * size + 1.0] = -1.0
    cycles, total = _climb(g, points, bins[power.argmax(axis=-1)], size, max_cycles)
    value = np.abs(total) ** 2
    rows, last = np.arange(len(g)), cycles
    for _ in range(_RIVAL_ROUNDS):
        # Out with the peak climbed last; another may be higher between the points, or this one cut by the limit.
        near = np.rint(last * size).astype(int)[:, None] + np.arange(-1, 2)
        power[rows[:, None], near % size] = -1.0
        rows = rows[power[rows].max(axis=-1) > (1.0 - _SCALLOP) * value[rows]]
        if not len(rows):
            break
        last, other = _climb(g[rows], points, bins[power[rows].argmax(axis=-1)], size, max_cycles)
        better = np.abs(other) ** 2 > value[rows]
        cycles[rows[better]], total[rows[better]] = last[better], other[better]
        value[rows] = np.abs(total[rows]) ** 2
    outside = height > value * (1 + 1e-9)
    wrapped = cycles - np.rint(cycles) if max_cycles == 0.5 else cycles
    total = np.where(valid, total, np.nan)
    return np.where(valid, wrapped, np.nan), total, outside


def _climb(
    g: NDArray, points: NDArray, start: NDArray, size: int, max_cycles: float
) -> tuple[NDArray, NDArray]:
    """Cycles (B,) of the peak next to the point start / size, within one point and the limit, and the sum there."""
    centre = 0.5 * points.max()
    turn = np.exp(2j * np.pi * np.arange(size) / size)
    shifted = g * turn[(start.astype(int)[:, None] * points) % size]
    # Coefficients of the sum as a polynomial of the offset from the point, with the phase at the centre of the comb.
    terms = np.cumprod(np.full((_TERMS, 1), 2j * np.pi / size) * (points - centre) / np.arange(1, _TERMS + 1)[:, None],
                       axis=0)  # fmt: skip
    series = [shifted.sum(axis=-1), *(shifted @ terms.T).T]
    low, high = -np.ones(len(g)), np.ones(len(g))
    if max_cycles < 0.5:
        low, high = np.maximum(low, -max_cycles * size - start), np.minimum(high, max_cycles * size - start)
    offset = np.clip(0.0, low, high)
    for _ in range(_NEWTON_STEPS):
        s0, s1, s2 = _expand(series, offset)
        slope = (s0.conj() * s1).real
        curvature = (s0.conj() * s2).real + np.abs(s1) ** 2
        step = np.divide(-slope, curvature, out=0.25 * np.sign(slope), where=curvature < 0)
        moved = np.clip(offset + np.clip(step, -0.5, 0.5), low, high)
        length, offset = np.abs(moved - offset).max(initial=0.0), moved
        # One step after 1e-8 there is nothing left: the error squares.
        if not length > 1e-9:
            break
    total = _expand(series, offset)[0] * np.exp(2j * np.pi * offset * centre / size)
    return (start + offset) / size, total


def _expand(series: list[NDArray], offset: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Polynomial and its first two derivatives at the offsets, by Horner's rule."""
    s0, s1, s2 = series[-1], 0.0, 0.0
    for coefficient in series[-2::-1]:
        s2 = s2 * offset + s1
        s1 = s1 * offset + s0
        s0 = s0 * offset + coefficient
    return s0, s1, 2.0 * s2


def _patterns(k: NDArray, shape: tuple[int, ...]) -> Iterator[tuple[NDArray, NDArray]]:
    """Rows of the batch that have the same subcarriers but for a common shift, and these (K,), from 0."""
    shifted = k - k.min(axis=-1, keepdims=True)
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
