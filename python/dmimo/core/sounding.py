# SPDX-License-Identifier: GPL-3.0-or-later
"""Channel, noise and power estimates from received pilots.

Noise variances below are per complex sample, E|n|^2. A value that is not finite in the samples makes the estimates of
that window not finite: callers check with `numpy.isfinite` and flag the measurement.
"""

from typing import NamedTuple

import numpy as np

from .waveforms import SoundingSymbol


class PowerEstimate(NamedTuple):
    """Received power and the predicted standard deviation of that estimate, both (...)."""

    power: np.ndarray
    std: np.ndarray


def matched_filter(y, pilots) -> np.ndarray:
    r"""Channel estimates of a flat channel from orthonormal pilots, :math:`\hat h = y X^H`.

    For :math:`y = h X + n` with :math:`X X^H = I` this is the maximum-likelihood estimate; each entry has the noise
    variance of one received sample.

    Parameters
    ----------
    y : array_like (..., L)
    pilots : array_like (P, L)
        X, see `waveforms.orthonormal_pilots`.

    Returns
    -------
    ndarray (..., P)
    """
    return np.asarray(y) @ np.conj(np.asarray(pilots)).T


def channel_estimate(samples, symbol: SoundingSymbol, start: int) -> np.ndarray:
    r"""Least-squares channel at each occupied bin, in the units of sent and received sample amplitudes.

    With the window of N = `pilot_samples` samples from `start` inside the received symbol,

    .. math:: \hat h_k = \frac{\sqrt{K}}{N s_k} \sum_{n=0}^{N-1} y_{\mathrm{start} + n} e^{-2j \pi k n / N}
              = h_k + n_k, \qquad E|n_k|^2 = \sigma^2 K / N

    exact without noise for any channel that fits into the prefix. A window that starts d samples early sees
    :math:`h_k e^{-2j \pi k d / N}`. Of a carrier that rotates slowly, the mean over the band has the phase at the
    centroid of the symbol's energy (see `SlotLayout.middle`).

    Parameters
    ----------
    samples : array_like (..., n)
    symbol : SoundingSymbol
    start : int
        First sample of the window, `SlotLayout.useful_start(port)`.

    Returns
    -------
    ndarray (..., num_subcarriers), complex128
        In the order of `symbol.bins`.

    Raises
    ------
    ValueError
        If the window is not inside the samples.
    """
    spectrum = _spectrum(samples, symbol, start)
    return spectrum[..., symbol.bins] * (np.sqrt(symbol.num_subcarriers) / symbol.sequence / symbol.pilot_samples)


def estimate_noise_variance(symbol: SoundingSymbol, noise_var, num_subbands: int | None = None):
    r"""Noise variance of a `channel_estimate`, :math:`\sigma^2 K / N`, or of its `subband_average`.

    The average over the K / B bins of one of B sub-bands has variance :math:`\sigma^2 B / N`.

    Parameters
    ----------
    symbol : SoundingSymbol
    noise_var : float or array_like
        Noise variance of a received sample; white over the band.
    num_subbands : int, optional
        B; None for single bins.
    """
    groups = symbol.num_subcarriers if num_subbands is None else num_subbands
    _check_groups(symbol.num_subcarriers, groups)
    return np.asarray(noise_var) * (groups / symbol.pilot_samples)


def subband_average(h, num_subbands: int) -> np.ndarray:
    r"""Mean of the channel over equal groups of neighbouring subcarriers.

    A delay of d samples inside the average over G bins attenuates it by
    :math:`\sin(\pi d G / N) / (G \sin(\pi d / N))`: remove delays near N / G samples first.

    Parameters
    ----------
    h : array_like (..., num_subcarriers)
    num_subbands : int

    Returns
    -------
    ndarray (..., num_subbands)

    Raises
    ------
    ValueError
        If the subcarriers do not divide into `num_subbands` equal groups.
    """
    return _grouped(np.asarray(h), num_subbands).mean(axis=-1)


def common_delay(h, symbol: SoundingSymbol) -> float:
    r"""Delay common to many channel estimates, in samples, energy-weighted, within half a symbol.

    From the phase step between neighbouring bins, :math:`-\frac{N}{2 \pi} \angle \sum h_{k+1} h_k^*` over all
    estimates and neighbours.

    Parameters
    ----------
    h : array_like (..., num_subcarriers)
    symbol : SoundingSymbol
    """
    return float(delay_of_steps(np.sum(phase_steps(h, symbol)), symbol))


def phase_steps(h, symbol: SoundingSymbol) -> np.ndarray:
    r"""Steps between neighbouring bins, :math:`\sum_k h_{k+1} h_k^*`, (...) from (..., num_subcarriers).

    May be summed over estimates with the same delay before `delay_of_steps`.
    """
    h = np.asarray(h)
    neighbours = np.flatnonzero(np.diff(symbol.bins) == 1)
    return np.sum(h[..., neighbours + 1] * np.conj(h[..., neighbours]), axis=-1)


def delay_of_steps(steps, symbol: SoundingSymbol) -> np.ndarray:
    """Energy-weighted delay in samples, within half a symbol, for sums of `phase_steps`."""
    return -np.angle(steps) * (symbol.pilot_samples / (2 * np.pi))


def advance(h, symbol: SoundingSymbol, delay_samples) -> np.ndarray:
    r"""Channel estimates as if everything had arrived `delay_samples` earlier, :math:`h_k e^{+2j \pi k d / N}`.

    The same advance for both directions of a path keeps their reciprocity. `delay_samples` (...) broadcasts with the
    leading axes of h (..., num_subcarriers).
    """
    turns = np.asarray(delay_samples)[..., None] * symbol.bins / symbol.pilot_samples
    return np.asarray(h) * np.exp(2j * np.pi * turns)


def prefix_correlation(samples, symbol: SoundingSymbol, start: int, advance_samples: int = 0) -> np.ndarray:
    r"""Correlation of the prefix with the end of the symbol, which repeats it N samples later.

    .. math:: \sum_n y_{n + N} y_n^* = e^{2j \pi f N / f_s} \sum_n |y_n|^2

    for a carrier that is off by f, without noise; summed over the prefix's second half, which echoes do not reach, and
    the `advance_samples` by which the window opens early. `frequency_of_correlation` turns sums of it into Hz.

    Parameters
    ----------
    samples : array_like (..., n)
    symbol : SoundingSymbol
    start : int
        First sample of the window.
    advance_samples : int

    Returns
    -------
    correlation, energy : ndarray (...), complex and float
        The energy is the mean of both parts: the modulus of the correlation without noise.
    """
    samples = np.asarray(samples)
    first = start - (symbol.prefix_samples - advance_samples) // 2
    early = samples[..., first : start + advance_samples]
    late = samples[..., first + symbol.pilot_samples : start + advance_samples + symbol.pilot_samples]
    correlation = np.sum(late * np.conj(early), axis=-1, dtype=np.complex128)
    return correlation, 0.5 * early.shape[-1] * (_mean_power(early) + _mean_power(late))


def frequency_of_correlation(correlation, symbol: SoundingSymbol, samp_rate: float) -> np.ndarray:
    """Frequency in Hz, unambiguous to half a bin, samp_rate / (2 N), for sums of `prefix_correlation`."""
    return np.angle(correlation) * (samp_rate / (2 * np.pi * symbol.pilot_samples))


def hold_carrier(samples, symbol: SoundingSymbol, start: int, correlation, energy) -> np.ndarray:
    r"""Samples with the turn of the carrier over a symbol's window taken out; its phase in the middle stays.

    A carrier that is off by f leaks from each bin into its neighbours, like noise, and makes a Zadoff-Chu symbol look
    delayed. The turn is that of `prefix_correlation`, summed over symbols from the same sender; one that may be noise
    alone (modulus below 5 deviations of noise) is left.

    Parameters
    ----------
    samples : array_like (..., n)
    symbol, start
        As in `channel_estimate`.
    correlation, energy : array_like (k,)
        Of k symbols.
    """
    total, whole = np.sum(correlation), float(np.sum(energy))
    length = max(1, symbol.prefix_samples // 2) * np.size(correlation)
    if not np.abs(total) > 5.0 * whole / np.sqrt(length):
        return np.asarray(samples)
    n = np.arange(np.shape(samples)[-1]) - (start + (symbol.pilot_samples - 1) / 2)
    return np.asarray(samples) * np.exp(-1j * np.angle(total) / symbol.pilot_samples * n)


def subband_centres_hz(symbol: SoundingSymbol, num_subbands: int, samp_rate: float) -> np.ndarray:
    """Mean frequency of each group of `subband_average`, in Hz from band centre: (num_subbands,), ascending."""
    return _grouped(symbol.bins, num_subbands).mean(axis=-1) * (samp_rate / symbol.pilot_samples)


def noise_variance(samples) -> np.ndarray:
    r"""Mean power of samples in which nobody transmits; relative standard deviation :math:`1 / \sqrt{n}`.

    Parameters
    ----------
    samples : array_like (..., n)

    Returns
    -------
    ndarray (...)

    Raises
    ------
    ValueError
        If there are no samples.
    """
    samples = np.asarray(samples)
    if samples.shape[-1] == 0:
        raise ValueError("samples is empty: there is no silence to measure the noise in")
    return _mean_power(samples)


def empty_bin_noise_variance(samples, symbol: SoundingSymbol, start: int) -> np.ndarray:
    r"""Noise variance per sample from the empty bins of the same window as the symbol.

    Relative standard deviation :math:`1 / \sqrt{m}` with m = `symbol.empty_bins.size`. Intermodulation of an
    overdriven amplifier and frequency offsets near the bin spacing leak into these bins and count as noise.

    Parameters
    ----------
    samples, symbol, start
        As in `channel_estimate`.

    Returns
    -------
    ndarray (...)

    Raises
    ------
    ValueError
        If the symbol leaves no bin empty.
    """
    if symbol.empty_bins.size == 0:
        raise ValueError(f"num_subcarriers={symbol.num_subcarriers} leaves no empty bin to measure the noise in")
    return _mean_power(_spectrum(samples, symbol, start)[..., symbol.empty_bins]) / symbol.pilot_samples


def residual_noise_variance(h, symbol: SoundingSymbol, num_subbands: int, *, order: int = 1) -> np.ndarray:
    r"""Noise variance of the channel estimates in each sub-band, from what is left after a polynomial fit.

    A check of the noise that needs no silence: in each group of G bins a complex polynomial of degree `order` is
    removed and the residual energy is divided by its G - order - 1 degrees of freedom. The result is unbiased where the
    channel is such a polynomial over the group; the curvature left by a delay of d samples adds about
    :math:`|h|^2 (2 \pi d G / N)^4 / 720` for order 1. Multiply by N / K for the variance per received sample.

    Parameters
    ----------
    h : array_like (..., num_subcarriers)
        From `channel_estimate`.
    symbol : SoundingSymbol
    num_subbands : int
    order : int

    Returns
    -------
    ndarray (..., num_subbands)
        Relative standard deviation :math:`1 / \sqrt{G - \mathrm{order} - 1}`.

    Raises
    ------
    ValueError
        If a group has no more than order + 1 subcarriers.
    """
    grouped = _grouped(np.asarray(h), num_subbands)
    bins = _grouped(symbol.bins, num_subbands)
    freedom = bins.shape[-1] - order - 1
    if freedom < 1:
        raise ValueError(f"num_subbands={num_subbands}: groups of {bins.shape[-1]} are too small for order={order}")
    powers = (bins - bins.mean(axis=-1, keepdims=True))[..., None] ** np.arange(order + 1)
    basis = np.stack([np.linalg.qr(matrix)[0] for matrix in powers])
    fit = np.einsum("bgk,blk,...bl->...bg", basis, basis, grouped)
    return _mean_power(grouped - fit) * (bins.shape[-1] / freedom)


def received_power(samples, symbol: SoundingSymbol, start: int, *, noise_var=None) -> PowerEstimate:
    r"""Power of a known symbol as received: sample power with the noise removed, and its predicted deviation.

    .. math:: \hat P = \frac{1}{K} \sum_k |\hat h_k|^2 - v, \qquad v = \sigma^2 K / N,
              \qquad \mathrm{var} \hat P = (2 P v + v^2) / K \;[+\; v^2 / m]

    The bracket applies when the noise variance is itself measured, in the m empty bins of the window. The sum over bins
    of powers needs no phase, so a delay within the prefix changes nothing, a frequency-selective channel is measured
    right, and an offset of f Hz costs only what it moves into empty bins, of order (f N / samp_rate)^2; to first order
    in the noise it is as good as a coherent sum. `power` is unbiased and can be negative where there is no signal.

    Parameters
    ----------
    samples, symbol, start
        As in `channel_estimate`.
    noise_var : array_like (...), optional
        Known noise variance per received sample; measured in the empty bins by default.

    Returns
    -------
    PowerEstimate
    """
    if noise_var is None:
        noise_var, freedom = empty_bin_noise_variance(samples, symbol, start), symbol.empty_bins.size
    else:
        noise_var, freedom = np.asarray(noise_var), np.inf
    v = estimate_noise_variance(symbol, noise_var)
    power = _mean_power(channel_estimate(samples, symbol, start)) - v
    variance = (2 * np.maximum(power, 0) * v + v**2) / symbol.num_subcarriers + v**2 / freedom
    return PowerEstimate(power, np.sqrt(variance))


def _spectrum(samples, symbol: SoundingSymbol, start: int) -> np.ndarray:
    samples = np.asarray(samples)
    if start < 0 or start + symbol.pilot_samples > samples.shape[-1]:
        raise ValueError(
            f"start={start}: a window of {symbol.pilot_samples} samples is not inside {samples.shape[-1]} samples"
        )
    return np.fft.fft(samples[..., start : start + symbol.pilot_samples])


def _mean_power(x: np.ndarray) -> np.ndarray:
    return np.mean(x.real**2 + x.imag**2, axis=-1, dtype=np.float64)


def _grouped(values: np.ndarray, groups: int) -> np.ndarray:
    _check_groups(values.shape[-1], groups)
    return values.reshape(*values.shape[:-1], groups, values.shape[-1] // groups)


def _check_groups(num_subcarriers: int, groups: int) -> None:
    if groups < 1 or num_subcarriers % groups:
        raise ValueError(f"num_subbands={groups} must divide the {num_subcarriers} subcarriers into equal groups")
