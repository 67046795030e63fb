# SPDX-License-Identifier: GPL-3.0-or-later
r"""Carrier frequency offset of a beamed burst, by maximum likelihood, and waveforms that suit it.

The burst arrives with an unknown gain at each antenna,

.. math:: Y = b\, x^T D + W, \qquad D = \mathrm{diag}(e^{2j \pi f n T}),

and the likelihood is largest where :math:`|Y D^* x^*|^2` is. That is a trigonometric polynomial of f whose
coefficients are the autocorrelations of :math:`y_m x^*` summed over the antennas m: once summed, the antennas are
gone, one FFT samples it finely enough to find the right maximum, and Newton's method ends on it exactly.

References
----------
BeamSync: Over-the-Air Synchronization for Distributed Massive MIMO Systems, section IV, eq. (24) to (26). Deviation:
f has the sign that it has on the air (the paper's :math:`\Delta = -f`), x may be complex.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import fft, special

# Points of the coarse search per 1 / (N T): between them at most 4 % of a height is lost (all energy at the ends).
_OVERSAMPLING = 8
_SCALLOP = 0.04
# Newton's method doubles the digits from about two after the parabola; more only where noise made the top flat.
_NEWTON_STEPS = 12
# Trials searched at a time: spectra that stay in the cache.
_CHUNK_VALUES = 1 << 16
# Chance that noise alone passes for a burst; the searched frequencies share it. Below 1e-3 with room for what the
# count of independent frequencies leaves out.
FALSE_ALARM = 1e-4


class Peak(NamedTuple):
    """Maximum of a summed periodogram: cycles per sample (...), its value (...), whether a larger one lies outside."""

    cycles: NDArray
    value: NDArray
    outside: NDArray


def frequency_offset(
    y: ArrayLike, x: ArrayLike, sample_interval: float, *, max_offset: float | None = None
) -> NDArray:
    r"""Maximum-likelihood frequency offset f in Hz (...), for :math:`y \approx b\, x(n) e^{+2j \pi f n T}`.

    Parameters
    ----------
    y : (..., M, N) complex, what M antennas received.
    x : (N,) or (..., N), what was sent, real or complex; some samples, not all but one, may be zero.
    sample_interval : T in seconds.
    max_offset : largest ``|f|`` in Hz; the estimate stays within. None: ``1 / (2 T)``, beyond which f has aliases.
        A limit lowers the SNR at which wrong maxima appear, and is what makes a waveform with gaps unambiguous.

    Returns
    -------
    ndarray (...), nan for a burst that has no energy at the samples of x or is not finite. `frequency_estimate` also
    tells how far to trust it.

    ValueError if a shape does not fit, x is zero but for one sample, or the interval or the limit are out of range.
    """
    y, x = as_arrays(y, x)
    max_cycles = check_max_cycles(max_offset, sample_interval)
    product = y * np.conj(x)[..., None, :]
    flat = product.reshape(-1, *product.shape[-2:])
    rows = max(1, _CHUNK_VALUES // (max(_OVERSAMPLING, 2 * flat.shape[-2]) * flat.shape[-1]))
    out = np.empty(len(flat))
    with np.errstate(invalid="ignore", over="ignore"):
        for start in range(0, len(flat), rows):
            part = slice(start, start + rows)
            out[part] = periodogram_peak(autocorrelation(flat[part]), max_cycles).cycles
    return out.reshape(product.shape[:-2]) / sample_interval


def autocorrelation(v: NDArray) -> NDArray:
    """``sum_m sum_n v[m, n + k] conj(v[m, n])`` at lags k = 0 to N - 1, from (..., M, N)."""
    num = v.shape[-1]
    if num <= v.shape[-2]:
        # Sums along the diagonals of a Gram matrix: read in rows one shorter than they are, they are columns.
        batch = v.shape[:-2]
        gram = np.zeros((*batch, num, 2 * num), v.dtype)
        np.matmul(np.swapaxes(v, -2, -1), np.conj(v[..., ::-1]), out=gram[..., :num])
        return gram.reshape(*batch, -1)[..., :-num].reshape(*batch, num, -1).sum(axis=-2)[..., num - 1 :]
    spectrum = fft.fft(v, fft.next_fast_len(2 * num - 1), axis=-1)
    power = np.sum(spectrum.real**2 + spectrum.imag**2, axis=-2)
    return fft.ifft(power, axis=-1)[..., :num]


def periodogram_peak(lags: NDArray, max_cycles: float) -> Peak:
    r"""Maximum of :math:`J(\nu) = \sum_k r_k e^{-2j \pi \nu k}` (k of both signs) over ``|nu| <= max_cycles``.

    Parameters
    ----------
    lags : (..., N) complex, `autocorrelation`.
    max_cycles : in cycles per sample, up to 1/2.

    Returns
    -------
    Peak
        cycles is nan where `lags` is zero or not finite; `outside` is true where J is larger beyond the limit.
    """
    shape, lags = lags.shape[:-1], lags.reshape(-1, lags.shape[-1])
    scale = lags[:, :1].real
    valid = np.isfinite(lags).all(axis=-1) & (scale[:, 0] > 0)
    r = np.where(valid[:, None], lags / np.where(scale > 0, scale, 1.0), 0.0)
    size = fft.next_fast_len(_OVERSAMPLING * r.shape[-1], real=True)
    spectrum = fft.hfft(r, size, axis=-1)
    bins = fft.fftfreq(size, 1.0 / size)
    inside = np.abs(bins) <= max_cycles * size
    top = np.argmax(np.where(inside, spectrum, -np.inf), axis=-1)
    cycles = _climb(r, spectrum, top, max_cycles)
    value = _value(r, cycles)
    # Another lobe may be higher between the points, or cut by the limit: climb these too where they may win.
    away = np.abs((np.arange(size) - top[:, None] + size // 2) % size - size // 2) > 2
    rivals = spectrum > (1.0 - _SCALLOP) * value[:, None]
    last = np.flatnonzero(inside[: size // 2 + 1])[-1]
    for allowed in (inside, bins == last + 1, bins == -last - 1):
        rows = np.flatnonzero((rivals & allowed & away).any(axis=-1))
        if len(rows):
            start = np.argmax(np.where(allowed & away[rows], spectrum[rows], -np.inf), axis=-1)
            other = _climb(r[rows], spectrum[rows], start, max_cycles)
            higher = _value(r[rows], other)
            better = higher > value[rows]
            cycles[rows[better]], value[rows[better]] = other[better], higher[better]
    outside = spectrum.max(axis=-1) > value * (1 + 1e-9)
    cycles[~valid] = np.nan
    return Peak(cycles.reshape(shape), (value * scale[:, 0]).reshape(shape), outside.reshape(shape))


def _climb(r: NDArray, spectrum: NDArray, top: NDArray, max_cycles: float) -> NDArray:
    """The maximum (B,) next to the point `top` (B,) of the spectrum (B, size), held inside the limit."""
    size, rows = spectrum.shape[-1], np.arange(len(top))
    left, middle, right = (spectrum[rows, (top + shift) % size] for shift in (-1, 0, 1))
    bend = left - 2.0 * middle + right
    shift = np.divide(0.5 * (left - right), bend, out=np.zeros_like(bend), where=bend < 0)
    signed = np.where(top > (size - 1) // 2, top - size, top)
    cycles = _newton(r, (signed + np.clip(shift, -1.0, 1.0)) / size, 1.0 / size)
    if max_cycles >= 0.5:
        cycles = cycles - np.round(cycles)
    return np.clip(cycles, -max_cycles, max_cycles)


def _value(r: NDArray, cycles: NDArray) -> NDArray:
    """J (B,) from lags (B, N)."""
    turned = r * np.exp(-2j * np.pi * cycles[:, None] * np.arange(r.shape[-1]))
    return 2.0 * turned.real.sum(axis=-1) - turned[:, 0].real


def _newton(r: NDArray, cycles: NDArray, spacing: float) -> NDArray:
    """The stationary point next to `cycles`, to machine precision; at most half a spacing per step."""
    for _ in range(_NEWTON_STEPS):
        slope, curvature = _slopes(r, cycles)
        uphill = np.sign(slope) * spacing
        step = np.divide(-slope, curvature, out=uphill, where=curvature < 0)
        step = np.clip(step, -0.5 * spacing, 0.5 * spacing)
        cycles = cycles + step
        # Two steps after 1e-8 there is nothing left: the error squares.
        if not np.any(np.abs(step) > 1e-9 * spacing):
            break
    return cycles


def _slopes(r: NDArray, cycles: NDArray) -> tuple[NDArray, NDArray]:
    """First two derivatives of J by cycles, (B,) each, from lags (B, N)."""
    turn = 2.0 * np.pi * np.arange(r.shape[-1])
    turned = r * np.exp(-1j * cycles[:, None] * turn)
    return 2.0 * (turned.imag @ turn), -2.0 * (turned.real @ turn**2)


def detection_threshold(num_signals: int, num_samples: int, searched_cycles: float) -> float:
    r"""Share of the energy that a waveform must explain, above which a burst is not noise alone.

    The share :math:`\sum |y x^*|^2 / (|x|^2 \sum |y|^2)` of noise in `num_signals` antennas (and bursts) of N samples
    is Beta(M, M (N - 1)) at each frequency; the maximum over the searched width is taken as that of four independent
    ones per 1 / N, an upper bound from four samples on. `FALSE_ALARM` is for all of them together. With fewer samples a
    search fits nearly anything: the threshold is then 1, which nothing passes.
    """
    if num_samples < (4 if searched_cycles > 0 else 2):
        return 1.0
    frequencies = 1.0 + 4.0 * searched_cycles * num_samples
    return 1.0 - special.betaincinv(num_signals * (num_samples - 1), num_signals, FALSE_ALARM / frequencies)


def check_max_cycles(max_offset: float | None, sample_interval: float) -> float:
    """The limit of the search in cycles per sample, checked."""
    if not (np.isfinite(sample_interval) and sample_interval > 0):
        raise ValueError(f"sample_interval = {sample_interval} must be positive and finite")
    if max_offset is None:
        return 0.5
    if not 0.0 < max_offset * sample_interval <= 0.5:
        limit = 0.5 / sample_interval
        raise ValueError(f"max_offset = {max_offset} Hz must be positive and at most 1 / (2 T) = {limit:g} Hz")
    return float(max_offset * sample_interval)


def edge_energy_waveform(num_samples: int, *, share: float = 1.0, peak_power: float | None = None) -> NDArray:
    r"""Real synchronisation signal (N,) of unit mean power with its energy towards both ends.

    The bound of the frequency is inverse to :math:`\sum (n - n_c)^2 |x(n)|^2`, which is 3 (N - 1) / (N + 1) times as
    large with all energy in the two end samples as with constant modulus (4.5 dB at N = 32). `share` of the energy
    goes to the ends, as far out as `peak_power` lets it, and the rest evenly under it. Two separate pulses repeat in
    frequency at 1 / (distance T): search within half of that (`max_offset`), or keep some energy even.

    Parameters
    ----------
    num_samples : N, at least 2.
    share : 0, constant, to 1.
    peak_power : largest ``|x(n)|^2`` over the mean, at least 1; None: no limit.
    """
    if num_samples < 2:
        raise ValueError(f"num_samples = {num_samples} must be at least 2")
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"share = {share} must lie between 0 and 1")
    if peak_power is not None and not peak_power >= 1.0:
        raise ValueError(f"peak_power = {peak_power} must be at least 1, the mean")
    half = 0.5 * share * num_samples
    room = np.inf if peak_power is None else peak_power - (1.0 - share)
    if room >= half:
        side = np.zeros(num_samples)
        side[0] = half
    else:
        side = np.clip(half - room * np.arange(num_samples), 0.0, room)
    return np.sqrt(1.0 - share + side + side[::-1])


def as_arrays(y: ArrayLike, x: ArrayLike) -> tuple[NDArray, NDArray]:
    """Bursts (..., M, N) and their waveform (..., N) as arrays; ValueError where they do not fit each other."""
    y, x = np.asarray(y), np.asarray(x)
    if y.ndim < 2 or 0 in y.shape[-2:]:
        raise ValueError(f"y has shape {y.shape}; it must be (..., M, N), neither of them 0")
    if x.ndim < 1 or x.shape[-1] != y.shape[-1]:
        raise ValueError(f"x has shape {x.shape}; its last axis must have the {y.shape[-1]} samples of y")
    if not np.all(np.isfinite(x)) or np.any(np.count_nonzero(x, axis=-1) < 2):
        raise ValueError("x must be finite and have at least two samples that are not zero")
    return y, x
