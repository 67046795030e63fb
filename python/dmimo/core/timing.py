# SPDX-License-Identifier: GPL-3.0-or-later
r"""Time of arrival of a known preamble to a fraction of a sample, with an unknown carrier offset and channel.

Model, for a preamble x of N samples and M receive ports with unknown complex gains :math:`g_m`,

.. math:: y_m(n) = g_m\, x(n - d)\, e^{+2j \pi f n T} + w_m(n), \qquad T = 1 / f_s

d in samples, counted from the first sample of y, f in Hz. For white noise the gains drop out and the maximum-likelihood
estimate of (d, f) maximises the non-coherent sum over ports of

.. math:: \Lambda(d, f) = \sum_m \Big| \sum_n y_m(n)\, x^*(n - d)\, e^{-2j \pi f n T} \Big|^2

A channel with several taps moves the estimate to about the middle of its energy, summed over the M ports. That shift is
the same both ways only where the channel is: for one port at each end, which both send and receive. Even there, two
taps of similar strength make two maxima, and each way may take another: `relative_delay` compares the whole responses.
"""

from typing import NamedTuple

import numpy as np
import scipy.fft
from scipy.signal import max_len_seq
from scipy.special import betaincinv

from .clock_correction import ClockCorrection

__all__ = ["ClockCorrection", "TimingEstimate", "acquire", "delay_crlb", "fractional_shift", "preamble",
           "relative_delay", "response", "track"]

FALSE_ALARM = 1e-4  # of an acquisition, from noise alone
_MARGIN = 16  # samples around a preamble into which its fractional delays reach
_MAX_STEPS = 12
_FINE = 64  # steps per sample of the grid on which two responses are compared, before the parabola


class TimingEstimate(NamedTuple):
    """Arrival of a preamble, each (...).

    delay_samples : d, to a fraction of a sample.
    delay_std_samples : its predicted standard deviation, from the residual of the fit.
    frequency_hz, frequency_std_hz : the carrier offset f and its predicted standard deviation.
    snr : power of the preamble over that of the noise, per received sample, mean over ports.
    trusted : whether a preamble was found inside the search; otherwise the numbers mean nothing.
    """

    delay_samples: np.ndarray
    delay_std_samples: np.ndarray
    frequency_hz: np.ndarray
    frequency_std_hz: np.ndarray
    snr: np.ndarray
    trusted: np.ndarray


def preamble(length: int = 1024, *, occupied: float = 0.75) -> np.ndarray:
    """Pseudo-noise of `length` samples and mean power 1 within the central part `occupied` of the band.

    The start is QPSK from two m-sequences; alternating projections on the band and on nearly constant modulus then make
    a burst that amplifiers and converters like, and that ends softly. Unlike a chirp (Zadoff-Chu), whose correlation
    moves along a delay-Doppler ridge, it does not take a carrier offset for a delay.

    Parameters
    ----------
    length : int
        At least 24.
    occupied : float
        Within (0, 1].

    Returns
    -------
    ndarray (length,), complex128
        The same on every machine, up to rounding.
    """
    if length < 24:
        raise ValueError(f"length={length} must be at least 24")
    if not 0.0 < occupied <= 1.0:
        raise ValueError(f"occupied={occupied} must be within (0, 1]")
    bits = int(np.ceil(np.log2(2 * length + 1)))
    signs = 2.0 * max_len_seq(bits, length=2 * length)[0] - 1.0
    x = (signs[:length] + 1j * signs[length:]) / np.sqrt(2.0)
    size = scipy.fft.next_fast_len(2 * length)
    in_band = np.abs(scipy.fft.fftfreq(size)) <= occupied / 2
    ramp = np.minimum(1.0, (np.arange(length) + 1) / (length // 16 + 1))
    taper = np.sin(np.pi / 2 * np.minimum(ramp, ramp[::-1]))
    for _ in range(60):
        limited = scipy.fft.ifft(scipy.fft.fft(x, size) * in_band)[:length]
        x = taper * limited / np.abs(limited)
    return limited / np.sqrt(np.mean(np.abs(limited) ** 2))


def acquire(
    y,
    x,
    *,
    samp_rate: float,
    max_offset_hz: float,
    window: tuple[int, int] | None = None,
    false_alarm: float = FALSE_ALARM,
) -> TimingEstimate:
    r"""Joint search for delay and frequency of a preamble, then maximum likelihood to a fraction of a sample.

    The search takes all whole delays in the window and frequencies half a resolution cell :math:`1 / (N T)` apart, as
    circular shifts of one spectrum. It decides by the coherence :math:`\Lambda / (|x|^2 E)` with the energy E received
    during the preamble, which for noise of any level is Beta(M, M (N - 1)): the threshold keeps the probability that
    noise alone passes below `false_alarm` over all hypotheses together (union bound). Newton steps with the expected
    information (Fisher scoring) then reach the maximum of :math:`\Lambda`, gains eliminated.

    Parameters
    ----------
    y : array_like (..., M, n)
        Samples of M ports. Zeros where samples are missing do no harm beyond the energy that they lack.
    x : array_like (N,)
        The preamble.
    samp_rate, max_offset_hz : float
        Search range of the frequency, either side of 0.
    window : (int, int), optional
        First and last whole delay of the search; all that leave the preamble within y by default.
    false_alarm : float

    Returns
    -------
    TimingEstimate
        Not trusted where the coherence stays below the threshold, a sample is not finite, or the refined estimate has
        left the search by more than a sample or a resolution cell.

    Raises
    ------
    ValueError
        If the preamble does not fit into y, or the window is not inside it.
    """
    y, x = np.asarray(y), np.asarray(x, dtype=np.complex128)
    first, last = _check_window(y, x, window)
    if not max_offset_hz >= 0.0:
        raise ValueError(f"max_offset_hz={max_offset_hz} must not be negative")
    shape = y.shape[:-2]
    y = y.reshape(-1, *y.shape[-2:]).astype(np.complex128)
    finite = np.isfinite(y).all(axis=(-2, -1))
    y = np.where(finite[:, None, None], y, 0.0)
    max_cycles = max_offset_hz / samp_rate
    coherence, delay, cycles, hypotheses = _search(y, x, max_cycles, first, last)
    num_ports = y.shape[1]
    floor = 1.0 - betaincinv(num_ports * (x.size - 1), num_ports, min(1.0, false_alarm / hypotheses))
    found = finite & (coherence > floor)
    fine, fine_cycles, variances, snr = _refine(y, x, delay, cycles)
    inside = (fine > first - 1) & (fine < last + 1) & (np.abs(fine_cycles) < max_cycles + 1 / x.size)
    delay_std, frequency_std = np.sqrt(variances[:, 0]), np.sqrt(variances[:, 1]) * samp_rate
    trusted = found & inside & np.isfinite(delay_std)
    estimate = TimingEstimate(fine, delay_std, fine_cycles * samp_rate, frequency_std, snr, trusted)
    return TimingEstimate(*(values.reshape(shape) for values in estimate))


def track(
    y,
    x,
    *,
    samp_rate: float,
    delay_samples,
    half_width_samples: int,
    max_offset_hz: float,
    frequency_hz=0.0,
    false_alarm: float = FALSE_ALARM,
) -> TimingEstimate:
    """Estimate as `acquire`, searched for only around a prediction; cheaper, and found in more noise.

    Parameters
    ----------
    y, x, samp_rate, false_alarm
        As in `acquire`.
    delay_samples, frequency_hz : array_like (...)
        The prediction.
    half_width_samples : int
        Greatest deviation from the predicted delay. Where y does not reach, zeros are taken.
    max_offset_hz : float
        Greatest deviation from the predicted frequency.
    """
    y, x = np.asarray(y), np.asarray(x)
    shape = y.shape[:-2]
    whole = np.broadcast_to(np.rint(delay_samples), shape).astype(np.int64)
    frequency = np.broadcast_to(np.asarray(frequency_hz, dtype=np.float64), shape)
    begin = whole - half_width_samples
    part = _cut(y.reshape(-1, *y.shape[-2:]), begin.reshape(-1), x.size + 2 * half_width_samples)
    part = part.reshape(*shape, *part.shape[-2:])
    turns = frequency[..., None] / samp_rate * np.arange(part.shape[-1])
    found = acquire(
        part * np.exp(-2j * np.pi * turns)[..., None, :],
        x,
        samp_rate=samp_rate,
        max_offset_hz=max_offset_hz,
        false_alarm=false_alarm,
    )
    return found._replace(
        delay_samples=found.delay_samples + begin, frequency_hz=found.frequency_hz + frequency
    )


def response(y, x, delay_samples, frequency_hz, *, samp_rate: float, reach: int) -> np.ndarray:
    r"""Channel's response to a preamble that was found, whole samples around its delay, complex128 (B, 2 reach + 1).

    .. math:: r(l) = \sum_n y(n)\, x^*(n - [d] - l)\, e^{-2j \pi f n T}, \qquad l = -reach \dots reach

    Parameters
    ----------
    y : array_like (B, n)
        Of one port.
    x : array_like (N,)
    delay_samples, frequency_hz : array_like (B,)
        As `acquire` has found them; [d] is d rounded.
    """
    y, x = np.asarray(y), np.asarray(x)
    whole = np.round(delay_samples).astype(np.int64)
    part = _cut(y[:, None], whole - reach, x.size + 2 * reach)[:, 0]
    part = part * np.exp(-2j * np.pi / samp_rate * np.asarray(frequency_hz)[:, None] * np.arange(part.shape[1]))
    return np.lib.stride_tricks.sliding_window_view(part, x.size, axis=1) @ np.conj(x)


def relative_delay(a, b) -> float:
    r"""By how many samples the response b is later than a, of one channel seen at two delays.

    The maximum over :math:`\delta` of :math:`|\sum_l a^*(l)\, b(l + \delta)|`, band-limited in between: the
    autocorrelation of the channel, whose one greatest maximum is at the difference of the delays for any taps.

    Parameters
    ----------
    a, b : array_like (L,)
        From `response`.
    """
    a, b = np.asarray(a), np.asarray(b)
    size = scipy.fft.next_fast_len(2 * a.size)
    cross = np.conj(scipy.fft.fft(a, size)) * scipy.fft.fft(b, size)
    wide = np.zeros(_FINE * size, np.complex128)
    bins = np.arange(size) - size // 2
    wide[bins] = cross[bins]
    power = np.abs(scipy.fft.ifft(wide)) ** 2
    k = int(np.argmax(power))
    before, top, after = power[k - 1], power[k], power[(k + 1) % power.size]
    bend = before - 2.0 * top + after
    k = k - power.size if k > power.size // 2 else k
    return float(k + (0.5 * (before - after) / bend if bend < 0.0 else 0.0)) / _FINE


def delay_crlb(x, snr, *, num_ports: int = 1, known_frequency: bool = False) -> np.ndarray:
    r"""Cramer-Rao bound of the delay of a preamble, variance in samples squared, (...).

    .. math:: \mathrm{var}\, d \ge \frac{1}{2 M \rho} \big[ (\Re A^H P^\perp A)^{-1} \big]_{11}

    with :math:`A = [\partial x(n - d) / \partial d,\; \partial x / \partial f]`, the projector :math:`P^\perp` off x
    (the unknown gains), and the signal-to-noise ratio :math:`\rho` per sample and port of a preamble of mean power 1.

    Parameters
    ----------
    x : array_like (N,)
    snr : array_like (...)
        Per sample and port, linear.
    num_ports : int
        M, of equal SNR.
    known_frequency : bool
        Whether the carrier offset is known; otherwise it is estimated too.
    """
    x = np.asarray(x, dtype=np.complex128)
    x = x / np.sqrt(np.mean(np.abs(x) ** 2))
    p, slopes = _model(_padded_spectrum(x), np.zeros(1), np.zeros(1), x.size)
    information = _gram(_off(p, slopes))[0]
    variance = 1.0 / information[0, 0] if known_frequency else np.linalg.inv(information)[0, 0]
    return variance / (2.0 * num_ports * np.asarray(snr, dtype=np.float64))


def fractional_shift(samples, delay_samples: float) -> np.ndarray:
    """Samples delayed by any number of samples, as many as came in, complex128 (..., n).

    Band-limited interpolation of the samples continued by silence; what is shifted past the ends is lost, so bursts
    that begin and end softly inside their slot keep all of their energy. Signals should leave the edges of the band
    free: a sharp edge of a full-band burst rings.

    Parameters
    ----------
    samples : array_like (..., n)
    delay_samples : float
        Positive: later.
    """
    samples = np.asarray(samples)
    num = samples.shape[-1]
    size = scipy.fft.next_fast_len(num + 2 * (_MARGIN + int(np.ceil(abs(delay_samples)))))
    turn = np.exp(-2j * np.pi * delay_samples * scipy.fft.fftfreq(size))
    return scipy.fft.ifft(scipy.fft.fft(samples.astype(np.complex128), size) * turn)[..., :num]


# -- the search -------------------------------------------------------------------------------------------------------


def _check_window(y: np.ndarray, x: np.ndarray, window) -> tuple[int, int]:
    most = y.shape[-1] - x.size
    if y.ndim < 2 or most < 0:
        raise ValueError(f"y has shape {y.shape}: it must be (..., ports, samples) with the {x.size} of the preamble")
    first, last = (0, most) if window is None else window
    if not 0 <= first <= last <= most:
        raise ValueError(f"window={window} must lie within 0 ... {most}")
    return first, last


def _search(y: np.ndarray, x: np.ndarray, max_cycles: float, first: int, last: int):
    """Return greatest coherence, its delay and frequency [cycles per sample], each (B,), and how many were compared."""
    size = scipy.fft.next_fast_len(y.shape[-1])  # correlations at the delays asked for do not wrap around
    spectrum = scipy.fft.fft(y, size)
    matched = np.conj(scipy.fft.fft(x, size))
    energy = np.cumsum(np.sum(y.real**2 + y.imag**2, axis=1), axis=-1)
    energy = np.concatenate([np.zeros((len(y), 1)), energy], axis=-1)
    received = energy[:, first + x.size : last + x.size + 1] - energy[:, first : last + 1]
    scale = np.sum(np.abs(x) ** 2) * np.maximum(received, 1e-12 * energy[:, -1:] + np.finfo(float).tiny)
    step = max(1, size // (2 * x.size))
    most = int(np.ceil(max_cycles * size / step))
    best, delay, cycles = np.full(len(y), -1.0), np.zeros(len(y), dtype=np.int64), np.zeros(len(y))
    for k in range(-most, most + 1):
        z = scipy.fft.ifft(np.roll(spectrum, -k * step, axis=-1) * matched)[..., first : last + 1]
        coherence = np.sum(z.real**2 + z.imag**2, axis=1) / scale
        at = np.argmax(coherence, axis=-1)
        value = coherence[np.arange(len(y)), at]
        better = value > best
        best[better], delay[better], cycles[better] = value[better], first + at[better], k * step / size
    return best, delay, cycles, (2 * most + 1) * (last - first + 1)


def _cut(y: np.ndarray, begin: np.ndarray, num: int) -> np.ndarray:
    """Return num samples from begin (B,) of y (B, M, n); zeros where y does not reach."""
    index = begin[:, None] + np.arange(num)
    inside = (index >= 0) & (index < y.shape[-1])
    part = np.take_along_axis(y, np.clip(index, 0, y.shape[-1] - 1)[:, None], axis=-1)
    return np.where(inside[:, None], part, 0.0)


# -- the fit ----------------------------------------------------------------------------------------------------------


def _padded_spectrum(x: np.ndarray) -> np.ndarray:
    """Return the spectrum of the preamble with _MARGIN zeros before and at least as many after it."""
    size = scipy.fft.next_fast_len(x.size + 2 * _MARGIN)
    return scipy.fft.fft(np.concatenate([np.zeros(_MARGIN), x]), size)


def _model(spectrum: np.ndarray, delay: np.ndarray, cycles: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the preamble p (B, K) at delays and frequencies (B,), and its two derivatives (B, 2, K)."""
    size = len(spectrum)
    turn = -2j * np.pi * scipy.fft.fftfreq(size)
    shifted = spectrum * np.exp(turn * delay[:, None])
    n = np.arange(size) - (_MARGIN + (length - 1) / 2)
    carrier = np.exp(2j * np.pi * cycles[:, None] * n)
    p, slope = scipy.fft.ifft(shifted) * carrier, scipy.fft.ifft(turn * shifted) * carrier
    return p, np.stack([slope, 2j * np.pi * n * p], axis=1)


def _gram(slopes: np.ndarray) -> np.ndarray:
    """Return Re A A^H of derivatives A (B, 2, K), (B, 2, 2)."""
    return np.real(slopes @ np.conj(slopes).swapaxes(-1, -2))


def _off(p: np.ndarray, slopes: np.ndarray) -> np.ndarray:
    """Return the derivatives (B, 2, K) without their part along p (B, K): the unknown gains take that."""
    along = np.sum(np.conj(p)[:, None] * slopes, axis=-1) / np.sum(np.abs(p) ** 2, axis=-1)[:, None]
    return slopes - along[..., None] * p[:, None]


def _refine(y: np.ndarray, x: np.ndarray, whole: np.ndarray, cycles: np.ndarray):
    """Return delay, frequency [cycles per sample], their variances (B, 2) and the SNR after Fisher scoring."""
    spectrum, tiny = _padded_spectrum(x), np.finfo(float).tiny
    size = len(spectrum)
    y_part = _cut(y, whole - _MARGIN, size)
    used = np.clip(np.minimum(whole - _MARGIN + size, y.shape[-1]) - np.maximum(whole - _MARGIN, 0), 1, None)
    delay, cycles = np.zeros(len(y)), cycles.copy()
    limit = np.array([0.5, 0.5 / x.size])
    for _ in range(_MAX_STEPS):
        p, slopes = _model(spectrum, delay, cycles, x.size)
        energy = np.sum(np.abs(p) ** 2, axis=-1)
        gain = (y_part @ np.conj(p)[..., None])[..., 0] / energy[:, None]
        power = np.sum(np.abs(gain) ** 2, axis=-1)
        slopes = _off(p, slopes)
        score = np.real(np.sum(np.conj(gain)[..., None] * (y_part @ np.conj(slopes).swapaxes(-1, -2)), axis=1))
        information = _gram(slopes)
        step = np.linalg.solve(information, score[..., None])[..., 0] / np.maximum(power, tiny)[:, None]
        step = np.clip(step, -limit, limit)
        delay, cycles = np.clip(delay + step[:, 0], -2.0, 2.0), cycles + step[:, 1]
        if np.all(np.abs(step) < 1e-5 * limit):
            break
    left = np.sum(np.abs(y_part - gain[..., None] * p[:, None]) ** 2, axis=(1, 2))
    noise = left / np.maximum(y.shape[1] * (used - 1.0) - 1.0, 1.0)
    diagonal = np.diagonal(np.linalg.inv(information), axis1=-2, axis2=-1)
    silent = power <= tiny
    variances = noise[:, None] / (2.0 * np.where(silent, 1.0, power)[:, None]) * diagonal
    variances[silent] = np.inf
    # Without noise the residual is that of rounding.
    snr = power * (np.sum(np.abs(x) ** 2) / x.size / y.shape[1]) / np.maximum(noise, tiny)
    return whole + delay, cycles, variances, snr
