# SPDX-License-Identifier: GPL-3.0-or-later
"""The burst by which two access points synchronise: where it lies in a slot, its waveform, its sub-bands."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

Waveform = Literal["ones", "gaussian", "sinusoid"]


@dataclass(frozen=True)
class SyncBurst:
    """Where the burst lies in a slot: `num_samples` useful ones between a cyclic prefix and a cyclic suffix.

    ::

        | lead | prefix | useful: num_samples | suffix | tail |

    The receiver's window is where the useful part was sent. Signals that arrive up to a prefix later or a suffix
    earlier are seen whole, cyclically shifted, and every sample of the window at its own time. A receiver whose samples
    are labelled `latency_samples` later than at the antenna opens its window later by as much.

    Raises
    ------
    ValueError
        If the burst and a tail of one prefix do not fit into the slot.
    """

    slot_samples: int
    lead_samples: int
    num_samples: int
    prefix_samples: int = 0
    suffix_samples: int = 0
    latency_samples: int = 0

    def __post_init__(self):
        for name in ("lead_samples", "prefix_samples", "suffix_samples", "latency_samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if self.num_samples < 1 or max(self.prefix_samples, self.suffix_samples) > self.num_samples:
            raise ValueError(f"num_samples={self.num_samples} must be at least 1, prefix_samples={self.prefix_samples} "
                             f"and suffix_samples={self.suffix_samples} at most that")
        burst = self.lead_samples + self.prefix_samples + self.num_samples + self.suffix_samples
        needed = max(burst + self.prefix_samples, self.useful_start + self.latency_samples + self.num_samples)
        if needed > self.slot_samples:
            raise ValueError(f"slot_samples={self.slot_samples} is too short: a burst of num_samples="
                             f"{self.num_samples}, with its prefix, suffix, tail and latency, needs {needed}")

    @property
    def useful_start(self) -> int:
        """First useful sample, counted from the start of the slot."""
        return self.lead_samples + self.prefix_samples

    @property
    def silence(self) -> slice:
        """The samples after the burst's echoes: noise only, if no other node sends in this slot; may be empty."""
        end = self.useful_start + self.num_samples + self.suffix_samples + self.prefix_samples + self.latency_samples
        return slice(min(end, self.slot_samples), self.slot_samples)

    def samples(self, useful: np.ndarray) -> np.ndarray:
        """Slot that carries `useful` (ports, num_samples): complex64 (ports, slot_samples), zeros elsewhere."""
        slot = np.zeros((len(useful), self.slot_samples), np.complex64)
        first, end = self.useful_start, self.useful_start + self.num_samples
        slot[:, first:end] = useful
        slot[:, self.lead_samples : first] = useful[:, self.num_samples - self.prefix_samples :]
        slot[:, end : end + self.suffix_samples] = useful[:, : self.suffix_samples]
        return slot

    def window(self, slot: np.ndarray) -> np.ndarray:
        """Useful samples of a received slot (..., slot_samples): complex128 (..., num_samples)."""
        first = self.useful_start + self.latency_samples
        return np.asarray(slot)[..., first : first + self.num_samples].astype(np.complex128)


@dataclass(frozen=True)
class SubBand:
    r"""A run of `width` DFT bins around the bin `centre` of a window of `num_samples` samples.

    What lies in it, as `width` samples at 1 / `decimation` of the rate:

    .. math:: y'_m = \frac{1}{N} \sum_{d} Y_{\mathrm{centre} + d} \, e^{2j\pi d m / \mathrm{width}},
              \qquad d = -\lfloor \mathrm{width}/2 \rfloor, \dots

    with Y the DFT of the window. White noise of variance s2 leaves `width` independent samples of variance
    s2 width / N. The conjugate of y' sent in the same sub-band is the conjugate about its centre, so that the way there
    and back meet at the same frequency.

    Raises
    ------
    ValueError
        If the sub-band does not fit into the band.
    """

    num_samples: int
    centre: int = 0
    width: int | None = None

    def __post_init__(self):
        if self.width is None:
            object.__setattr__(self, "width", self.num_samples)
        lowest, highest = self.bins[0], self.bins[-1]
        if not 1 <= self.width <= self.num_samples or (self.width < self.num_samples and (
                lowest < -(self.num_samples // 2) or highest > (self.num_samples - 1) // 2)):
            raise ValueError(f"sub-band of width={self.width} bins around centre={self.centre} must lie within the "
                             f"{self.num_samples} bins of the window")

    @property
    def bins(self) -> np.ndarray:
        """Bins of the window, as offsets from band centre, ascending."""
        return self.centre + np.arange(-(self.width // 2), self.width - self.width // 2)

    @property
    def decimation(self) -> float:
        """Samples of the window per sample of the sub-band."""
        return self.num_samples / self.width

    def extract(self, window: np.ndarray) -> np.ndarray:
        """What lies in the sub-band: (..., num_samples) -> (..., width)."""
        if self.width == self.num_samples and self.centre == 0:
            return np.asarray(window)
        spectrum = np.fft.fft(window)[..., self.bins % self.num_samples]
        return np.fft.ifft(np.fft.ifftshift(spectrum, axes=-1)) / self.decimation

    def insert(self, values: np.ndarray) -> np.ndarray:
        """Window that holds `values` (..., width) in this sub-band and nothing elsewhere: (..., num_samples)."""
        if self.width == self.num_samples and self.centre == 0:
            return np.asarray(values)
        spectrum = np.zeros((*np.shape(values)[:-1], self.num_samples), np.complex128)
        spectrum[..., self.bins % self.num_samples] = np.fft.fftshift(np.fft.fft(values), axes=-1)
        return np.fft.ifft(spectrum) * self.decimation


def allocate_subbands(num_samples: int, count: int, guard_bins: int) -> tuple[SubBand, ...]:
    """Equally wide sub-bands from the lower to the upper band edge, at least `guard_bins` apart.

    Raises
    ------
    ValueError
        If fewer than two bins a sub-band are left.
    """
    if count < 1 or guard_bins < 0:
        raise ValueError(f"count={count} must be at least 1, guard_bins={guard_bins} not negative")
    if count == 1:
        return (SubBand(num_samples),)
    width = num_samples // count - guard_bins
    if width < 2:
        raise ValueError(f"num_samples={num_samples} leaves {width} bins to each of {count} sub-bands with "
                         f"guard_bins={guard_bins}; at least 2 are needed")
    spacing = num_samples // count
    first = -(num_samples // 2) + guard_bins // 2 + width // 2
    return tuple(SubBand(num_samples, first + k * spacing, width) for k in range(count))


def sync_waveform(kind: Waveform, num: int, *, seed: int = 1) -> np.ndarray:
    """Waveform of mean power exactly 1, complex128 (num,): all ones, complex Gaussian, or a real sinusoid.

    The sinusoid has a whole number of periods, about num / 4. The Gaussian is drawn from `seed`, the same at all nodes.

    References
    ----------
    BeamSync, section V-A: the three signals compared there for the phase, V-D the sinusoid for the frequency.
    """
    if num < 1:
        raise ValueError(f"num={num} must be at least 1")
    match kind:
        case "ones":
            x = np.ones(num, np.complex128)
        case "gaussian":
            x = np.random.default_rng(seed).standard_normal((num, 2)) @ np.array([1, 1j])
        case "sinusoid":
            x = np.cos(2 * np.pi * max(1, num // 4) * np.arange(num) / num + np.pi / 4).astype(np.complex128)
        case _:
            raise ValueError(f"kind={kind!r} must be one of 'ones', 'gaussian', 'sinusoid'")
    return x * np.sqrt(num / np.sum(np.abs(x) ** 2))
