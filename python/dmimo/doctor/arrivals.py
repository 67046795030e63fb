# SPDX-License-Identifier: GPL-3.0-or-later
"""When a burst really arrived, with which phase, and when a tune really happened, from samples."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core import timing

BURST_SAMPLES = 1024
# Of the tone that a receiver hears before and after its tune, in cycles per sample: neither is the image of the other
# at the opposite frequency, and none lies at the leakage of the local oscillator.
BEFORE_CYCLES, AFTER_CYCLES = -1 / 32, 3 / 32
MIN_GAP_SAMPLES = 32  # between the tones; a shorter one is not told from none


class Arrivals(NamedTuple):
    """What one burst was to each of P receive ports.

    heard : (P,) bool, whether the burst stands out from the noise; otherwise the rest means nothing.
    delay_samples : (P,) after the first sample of the slot, to a fraction of a sample.
    snr_db : (P,) per sample.
    """

    heard: NDArray
    delay_samples: NDArray
    snr_db: NDArray


class TuneMoment(NamedTuple):
    """Last moment of the old tone and first of the new one, in samples after the first, and SNR of the new one [dB]."""

    end_of_old: int
    begin_of_new: int
    snr_db: float


def sounding_burst(amplitude: float) -> NDArray:
    """Wideband burst whose largest magnitude is `amplitude`, complex64 (BURST_SAMPLES,)."""
    burst = timing.preamble(BURST_SAMPLES)
    return (amplitude / np.abs(burst).max() * burst).astype(np.complex64)


def arrivals(y: ArrayLike, burst: ArrayLike, samp_rate: float) -> Arrivals:
    """Where a burst lies in the slots (P, n) of P ports."""
    found = timing.acquire(np.asarray(y)[:, None, :], burst, samp_rate=samp_rate, max_offset_hz=0.0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return Arrivals(found.trusted, found.delay_samples, 10 * np.log10(found.snr))


def burst_gains(y: ArrayLike, burst: ArrayLike, delay_samples: ArrayLike) -> NDArray:
    """Complex gain of a burst in the slots (..., n), searched for at its whole delay (...)."""
    y, burst = np.asarray(y), np.asarray(burst)
    first = np.rint(np.broadcast_to(delay_samples, y.shape[:-1])).astype(int)[..., None] + np.arange(burst.size)
    if np.any(first < 0) or np.any(first >= y.shape[-1]):
        raise ValueError("delay_samples: the burst must lie within the slot")
    return np.take_along_axis(y, first, -1) @ burst.conj() / np.sum(np.abs(burst) ** 2)


def repeated_phase(gains: ArrayLike) -> tuple[NDArray, NDArray]:
    """Phase of the mean of K repeated gains (..., K), and its standard deviation, from how they differ [rad]."""
    gains = np.asarray(gains)
    num = gains.shape[-1]
    if num < 2:
        raise ValueError(f"{num} repeats: must be at least 2")
    mean = gains.mean(axis=-1)
    across = np.imag(gains * np.conj(mean)[..., None]) / np.abs(mean)[..., None] ** 2
    return np.angle(mean), np.sqrt(np.sum(across**2, axis=-1) / (num - 1) / num)


def tone(num_samples: int, amplitude: float) -> NDArray:
    """What is sent across a tune: a tone at `AFTER_CYCLES`, complex64."""
    return (amplitude * np.exp(2j * np.pi * AFTER_CYCLES * np.arange(num_samples))).astype(np.complex64)


def tune_moment(y: ArrayLike) -> TuneMoment:
    r"""When a tone (n,) changed from `BEFORE_CYCLES` to `AFTER_CYCLES`.

    The old tone lasts for N samples and is then no more: maximum likelihood over N is

    .. math:: \hat N = \arg\max_N \frac{1}{N} \Big| \sum_{n < N} y(n) e^{-2j \pi f n} \Big|^2

    and the same, from the end, for the first sample of the new one. What lies between, a synthesizer that is not
    locked yet, belongs to neither. Where there is no change at all, one of them fills everything: the old one ends, or
    the new one begins, at an end of y.
    """
    y = np.asarray(y, complex)
    n = np.arange(y.size)
    old, new = (_energy(turned) for turned in (y * np.exp(-2j * np.pi * BEFORE_CYCLES * n),
                                               (y * np.exp(-2j * np.pi * AFTER_CYCLES * n))[::-1]))
    end, begin = int(np.argmax(old)) + 1, y.size - int(np.argmax(new)) - 1
    if begin - end < MIN_GAP_SAMPLES and 0 < end < y.size:
        # No gap: the first samples of one tone may look like more of the other one, so both are fitted together.
        end = begin = int(np.argmax(old[:-1] + new[-2::-1])) + 1
    new = (y * np.exp(-2j * np.pi * AFTER_CYCLES * n))[begin:]
    power = np.abs(new.mean()) ** 2
    noise = max(np.mean(np.abs(new) ** 2) - power, np.finfo(float).tiny)
    return TuneMoment(end, begin, float(10 * np.log10(max(power, np.finfo(float).tiny) / noise)))


def _energy(steady: NDArray) -> NDArray:
    """Energy that a constant explains if it lasts for 1, 2, ... samples."""
    return np.abs(np.cumsum(steady)) ** 2 / np.arange(1, steady.size + 1)
