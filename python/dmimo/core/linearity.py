# SPDX-License-Identifier: GPL-3.0-or-later
r"""What a receiver can say of a transmitter's linearity: error vector magnitude, and power in the adjacent channels.

Known data :math:`X_k` on the K occupied bins of OFDM symbols arrive, in the DFT of each symbol's useful part, as

.. math:: Y_k = e^{j \varphi} H_k X_k + D_k + N_k \quad (k\ \text{occupied}), \qquad Y_k = D_k + N_k \quad (\text{else})

with the channel :math:`H_k` times the amplifiers' linear gain, a phase of each symbol (two oscillators), distortion
:math:`D_k` uncorrelated with :math:`X_k`, and white noise of known variance v. Taken over exactly one period of the
symbol, the DFT is free of the sidelobes that OFDM symbols have in an analyser's spectrum, whose windows span several
symbols: what is found outside the occupied bins is distortion and noise alone (and :math:`(\pi f N / f_s)^2 / 3` at
most of a carrier that is off by f). It thus says nothing of the sidelobes.

Everything comes in *slots* of L symbols, whose data are independent; standard errors follow from how the slots differ,
to first order in their number (ratios of means). All powers are ratios; `ratio_db` turns them into dB.

References
----------
Definitions after 3GPP TS 38.104, sections 6.5.2 and 6.6.3. Deviations: the error vector is compared with the signal
as received, before the equaliser, so that a bin in a fade counts with the little power that it has; and both channels
are the occupied bins alone, without a filter.
"""

from typing import Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .waveforms import SlotLayout, SoundingSymbol

Modulation = Literal["qam16", "qpsk", "gaussian"]

# Phases of symbols and gains of subcarriers in turn: each step shrinks the error by about sqrt(K).
_PHASE_STEPS = 12


class Ratio(NamedTuple):
    """A ratio of powers (...) and its standard error (...), nan where there is only one slot."""

    value: NDArray
    std: NDArray


class ErrorVector(NamedTuple):
    """Power of the error vector over that of the signal, as received and without the noise, and the taps (..., K)."""

    received: Ratio
    corrected: Ratio
    gains: NDArray


class Leakage(NamedTuple):
    """Power of the lower and the upper adjacent channel over that of the channel: the inverse of their ACLR."""

    lower: Ratio
    upper: Ratio


def draw_data(rng: np.random.Generator, shape: tuple[int, ...], modulation: Modulation = "qam16") -> NDArray:
    """Independent data symbols of unit mean power, complex128 of `shape`: QPSK, 16-QAM or complex Gaussian."""
    if modulation == "gaussian":
        return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) / np.sqrt(2)
    if modulation not in get_args(Modulation):
        raise ValueError(f"modulation = {modulation!r}: must be one of {get_args(Modulation)}")
    levels = np.array([-1.0, 1.0]) if modulation == "qpsk" else np.array([-3.0, -1.0, 1.0, 3.0])
    levels = levels / np.sqrt(2 * np.mean(levels**2))
    return rng.choice(levels, shape) + 1j * rng.choice(levels, shape)


def symbol_spectra(samples: ArrayLike, layout: SlotLayout) -> NDArray:
    r"""DFT of the useful parts of all symbols of a slot, (..., L, N), L = `layout.num_ports` symbols in a row.

    In the units of `sounding.channel_estimate`, :math:`Y_k = \frac{\sqrt K}{N} \sum_n y_n e^{-2j \pi k n / N}`: data
    of unit power through a gain of 1 have unit power, and noise of variance s per sample has s K / N. Bins ascend from
    :math:`-\lfloor N / 2 \rfloor`, see `bin_indices`.

    Parameters
    ----------
    samples : (..., slot_samples)
    layout : its `num_ports` is the number of symbols.
    """
    samples, symbol = np.asarray(samples), layout.symbol
    starts = np.array([layout.useful_start(number) for number in range(layout.num_ports)])
    windows = samples[..., starts[:, None] + np.arange(symbol.pilot_samples)]
    scale = np.sqrt(symbol.num_subcarriers) / symbol.pilot_samples
    return np.fft.fftshift(np.fft.fft(windows), axes=-1) * scale


def bin_indices(symbol: SoundingSymbol) -> NDArray:
    """Bins (N,) of `symbol_spectra`, from band centre in steps of samp_rate / N."""
    return np.arange(symbol.pilot_samples) - symbol.pilot_samples // 2


def occupied(spectra: ArrayLike, symbol: SoundingSymbol) -> NDArray:
    """The occupied bins (..., K) of spectra (..., N), in the order of `symbol.bins`."""
    return np.asarray(spectra)[..., symbol.bins + symbol.pilot_samples // 2]


def error_vector(
    received: ArrayLike, data: ArrayLike, noise_var: ArrayLike = 0.0, *, common_phase: bool = True
) -> ErrorVector:
    r"""Error vector power over signal power, after the best tap per subcarrier (and phase per symbol).

    Least squares over the n = S L symbols, :math:`\min \sum |Y_{sk} - e^{j \varphi_s} H_k X_{sk}|^2`, whose remainder E
    holds, of 2 n K real numbers, 2 K less for the taps, and n - 1 less for the phases. So

    .. math:: \hat e = \frac{E}{K (n - 1)}\,\frac{2 K}{2 K - 1}, \qquad
              \mathrm{EVM}^2 = \frac{\hat e - v}{\overline{|Y|^2} - \hat e}

    is free of what the fit takes away; the last factor of :math:`\hat e` belongs to the phases, the EVM as received has
    v = 0. A phase of each symbol also takes with it what the symbol's own mean power turns (AM/PM): of the distortion
    of a third-order amplifier with Gaussian data the share 3 / K at most.

    Parameters
    ----------
    received : (..., S, L, K) occupied bins, S slots of L symbols.
    data : (..., S, L, K), what was sent.
    noise_var : known noise variance of an element of `received`, a number or broadcasting to (..., S); where it was
        measured in each slot, give it for each, so that its error is part of the standard errors.
    common_phase : whether each symbol has a phase of its own.

    Returns
    -------
    ErrorVector

    Raises
    ------
    ValueError
        If there are fewer than two symbols.
    """
    received, data = np.broadcast_arrays(np.asarray(received), np.asarray(data))
    *_, num_slots, per_slot, num_bins = received.shape
    num = num_slots * per_slot
    if num < 2:
        raise ValueError(f"received has {num} symbols: the best tap of each subcarrier needs at least 2")
    flat = (*received.shape[:-3], num, num_bins)
    y, x = received.reshape(flat), data.reshape(flat)
    matched, energy = y * x.conj(), np.sum(np.abs(x) ** 2, axis=-2)
    phases = _common_phases(matched, energy) if common_phase else np.ones((*flat[:-1], 1))
    gains = np.sum(matched * phases.conj(), axis=-2) / energy
    error = np.abs(y - phases * gains[..., None, :] * x) ** 2
    freedom = (num - 1) / num * ((2 * num_bins - 1) / (2 * num_bins) if common_phase else 1.0)
    error = np.mean(error.reshape(received.shape), axis=(-2, -1)) / freedom
    signal = np.mean(np.abs(received) ** 2, axis=(-2, -1)) - error
    return ErrorVector(_ratio(error, signal), _ratio(error - noise_var, signal), gains)


def _common_phases(matched: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Phase factor (..., n, 1) of each symbol from Y X^* (..., n, K) and the data's energy (..., K)."""
    # The dominant left singular vector, exact for data of constant modulus, is where to start.
    phases = np.linalg.eigh(matched @ matched.conj().swapaxes(-2, -1))[1][..., -1:]
    phases = _unit(phases)
    for _ in range(_PHASE_STEPS):
        gains = np.sum(matched * phases.conj(), axis=-2) / energy
        phases = _unit(np.sum(matched * gains[..., None, :].conj(), axis=-1, keepdims=True))
    return phases


def _unit(z: np.ndarray) -> np.ndarray:
    modulus = np.abs(z)
    return np.divide(z, modulus, out=np.ones_like(z), where=modulus > 0)


def adjacent_bins(symbol: SoundingSymbol, guard_subcarriers: int = 0) -> tuple[NDArray, NDArray]:
    """Bins (K,) of the lower and the upper adjacent channel: as many as are occupied, `guard_subcarriers` away.

    Raises
    ------
    ValueError
        If the samples do not show them: N must be at least 2 (K // 2 + guard + K) + 1, about three times K.
    """
    if guard_subcarriers < 0:
        raise ValueError(f"guard_subcarriers={guard_subcarriers} must not be negative")
    first = symbol.num_subcarriers // 2 + guard_subcarriers + 1
    upper = first + np.arange(symbol.num_subcarriers)
    if 2 * upper[-1] + 1 > symbol.pilot_samples:
        raise ValueError(
            f"pilot_samples={symbol.pilot_samples} must be at least {2 * upper[-1] + 1} for adjacent channels of "
            f"num_subcarriers={symbol.num_subcarriers}, guard_subcarriers={guard_subcarriers} away"
        )
    return -upper[::-1], upper


def adjacent_leakage(
    spectra: ArrayLike, symbol: SoundingSymbol, noise_var: ArrayLike = 0.0, *, guard_subcarriers: int = 0
) -> Leakage:
    r"""Power of the adjacent channels over that of the channel, both without the noise.

    .. math:: \frac{\overline{\sum_{k \in \mathrm{adjacent}} |Y_k|^2} - K v}{\overline{\sum_{k \in \mathrm{occupied}}
              |Y_k|^2} - K v} = \frac{1}{\mathrm{ACLR}}

    The channel's power includes the distortion in it; band centre, where it is not occupied, is left out. An ACLR, in
    dB the negative of this ratio, is better the larger it is. Distortion of third order reaches just over both adjacent
    channels of a band sampled at three times its width; where the amplifier works on fewer samples, it folds back.

    Parameters
    ----------
    spectra : (..., S, L, N) of `symbol_spectra`.
    symbol : SoundingSymbol
    noise_var : a number, or broadcasting to (..., S), as in `error_vector`.
    guard_subcarriers : between the channels.

    Raises
    ------
    ValueError
        As `adjacent_bins`.
    """
    sides = adjacent_bins(symbol, guard_subcarriers)
    power = np.mean(np.abs(np.asarray(spectra)) ** 2, axis=-2)
    channel = np.mean(occupied(power, symbol), axis=-1) - noise_var
    middle = symbol.pilot_samples // 2
    return Leakage(*(_ratio(np.mean(power[..., middle + side], axis=-1) - noise_var, channel) for side in sides))


def channel_power(spectra: ArrayLike, symbol: SoundingSymbol, noise_var: ArrayLike = 0.0) -> Ratio:
    """Mean power (...) of the occupied bins of spectra (..., S, L, N), without the noise: that of unit samples is 1."""
    power = np.mean(np.abs(occupied(spectra, symbol)) ** 2, axis=(-2, -1))
    return _ratio(power - noise_var, np.ones_like(power))


def mean_spectrum(spectra: ArrayLike, symbol: SoundingSymbol) -> NDArray:
    """Mean power (..., N) of each bin of spectra (..., S, L, N), noise included; the mean of the occupied bins is 1."""
    power = np.mean(np.abs(np.asarray(spectra)) ** 2, axis=(-3, -2))
    return power / np.mean(occupied(power, symbol), axis=-1, keepdims=True)


def nmse(received: ArrayLike, wanted: ArrayLike) -> NDArray:
    r"""Power (...) of what is not along the wanted signal, over what is: :math:`|y - g x|^2 / |g x|^2`.

    g is the best linear gain, :math:`x^H y / |x|^2`. One number of n is fitted: on average noise loses the share 1 / n.

    Parameters
    ----------
    received, wanted : (..., n) y and x.
    """
    y, x = np.asarray(received), np.asarray(wanted)
    energy = np.sum(np.abs(x) ** 2, axis=-1, keepdims=True)
    along = np.sum(y * x.conj(), axis=-1, keepdims=True) / energy * x
    return np.sum(np.abs(y - along) ** 2, axis=-1) / np.sum(np.abs(along) ** 2, axis=-1)


def ratio_db(ratio: Ratio) -> Ratio:
    """A ratio and its standard error in dB; nan where the ratio is not positive, so that noise may be all there is."""
    value = np.where(ratio.value > 0, ratio.value, np.nan)
    return Ratio(10 * np.log10(value), 10 / np.log(10) * ratio.std / value)


def upper_limit(ratio: Ratio, num_deviations: float = 2.0) -> NDArray:
    """What a ratio of powers hardly exceeds: its value, or 0 if noise made it negative, and some standard errors."""
    return np.maximum(ratio.value, 0.0) + num_deviations * ratio.std


def _ratio(above: np.ndarray, below: np.ndarray) -> Ratio:
    """Ratio of the means over slots (..., S), and its standard error to first order."""
    above, below = np.broadcast_arrays(above, below)
    num, scale = above.shape[-1], np.mean(below, axis=-1)
    with np.errstate(divide="ignore", invalid="ignore"):  # no power at all
        value = np.mean(above, axis=-1) / scale
        if num < 2:
            return Ratio(value, np.full_like(value, np.nan))
        std = np.std(above - value[..., None] * below, axis=-1, ddof=1) / np.sqrt(num) / np.abs(scale)
    return Ratio(value, std)
