# SPDX-License-Identifier: GPL-3.0-or-later
"""Pilots, beam codebooks, and where a sounding symbol lies in a slot."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np


def zadoff_chu(length: int, root: int = 1) -> np.ndarray:
    r"""Zadoff-Chu sequence: unit modulus, zero cyclic autocorrelation at every shift but 0.

    .. math:: x_n = \exp(-j \pi u\, n (n + L \bmod 2) / L), \qquad n = 0 \dots L - 1

    Its discrete Fourier transform has constant modulus as well.

    Parameters
    ----------
    length : int
        L, odd or even, at least 1.
    root : int
        u, coprime to L (otherwise the autocorrelation has side peaks).

    Returns
    -------
    ndarray (length,), complex128

    Raises
    ------
    ValueError
        If `length` is not positive or `root` shares a factor with it.

    References
    ----------
    D. C. Chu, "Polyphase codes with good periodic correlation properties," IEEE Trans. Inf. Theory, 1972.
    """
    _check_positive("length", length)
    if math.gcd(root, length) != 1:
        raise ValueError(f"root={root} must be coprime to length={length}")
    n = np.arange(length)
    # The phase in units of pi / L is an integer: reduced modulo 2 L it is exact for any length.
    return np.exp(-1j * np.pi * (root * n * (n + length % 2) % (2 * length)) / length)


def orthonormal_pilots(num_pilots: int, length: int, kind: Literal["dft", "zadoff_chu"] = "dft") -> np.ndarray:
    r"""Pilot matrix X with orthonormal rows, :math:`X X^H = I`, every entry of modulus :math:`1 / \sqrt{L}`.

    Parameters
    ----------
    num_pilots : int
        Number of rows P, at most `length`.
    length : int
        Number of symbols L.
    kind : "dft" or "zadoff_chu"
        Rows of the DFT matrix (tones: one of them constant), or cyclic shifts of one Zadoff-Chu sequence (each flat in
        time and frequency; spread as far apart as L allows, so that a common delay of less than L // P symbols does
        not turn one pilot into another).

    Returns
    -------
    ndarray (num_pilots, length), complex128

    Raises
    ------
    ValueError
        If there are more pilots than symbols, or `kind` is unknown.
    """
    _check_positive("num_pilots", num_pilots)
    if num_pilots > length:
        raise ValueError(f"num_pilots={num_pilots} must not exceed length={length}")
    if kind == "dft":
        return _dft(length, np.arange(num_pilots)).T.copy()
    if kind == "zadoff_chu":
        shift = length // num_pilots
        sequence = zadoff_chu(length) / np.sqrt(length)
        return np.stack([np.roll(sequence, p * shift) for p in range(num_pilots)])
    raise ValueError(f"kind={kind!r} must be 'dft' or 'zadoff_chu'")


def dft_codebook(num_antennas: int, beams=None) -> np.ndarray:
    r"""Beam codebook W of unit-norm DFT columns, :math:`W_{ab} = \exp(-2j \pi a b / A) / \sqrt{A}`.

    A port that transmits with beam b drives antenna a with W[a, b]; receiving with it sums the antennas with the same
    weights, not their conjugates, so that a channel measured with beams (b, b') in one direction is reciprocal to the
    one measured with (b', b) in the other.

    Parameters
    ----------
    num_antennas : int
        A.
    beams : sequence of int, optional
        Column indices b in 0 ... A - 1; all of them by default.

    Returns
    -------
    ndarray (num_antennas, num_beams), complex128

    Raises
    ------
    ValueError
        If an index is outside 0 ... A - 1, repeated, or there is none.
    """
    _check_positive("num_antennas", num_antennas)
    indices = np.arange(num_antennas) if beams is None else np.asarray(beams)
    if indices.ndim != 1 or indices.size == 0 or indices.dtype.kind not in "iu":
        raise ValueError(f"beams={beams!r} must be a non-empty list of integers")
    if indices.min() < 0 or indices.max() >= num_antennas:
        raise ValueError(f"beams={indices.tolist()} must lie in 0 ... num_antennas - 1 = {num_antennas - 1}")
    if len(set(indices.tolist())) < indices.size:
        raise ValueError(f"beams={indices.tolist()} must not repeat a beam")
    return _dft(num_antennas, indices)


@dataclass(frozen=True)
class SoundingSymbol:
    r"""A known multicarrier symbol: a Zadoff-Chu sequence on the bins around band centre, behind a cyclic prefix.

    .. math:: x_n = \frac{1}{\sqrt{K}} \sum_{k \in \mathrm{bins}} w_k s_k e^{2j \pi k n / N},
              \qquad n = -\mathrm{prefix} \dots N - 1

    with K = `num_subcarriers`, N = `pilot_samples` and optional precoding weights w. Without weights the mean power of
    the N useful samples is exactly 1; with weights it is the mean of :math:`|w_k|^2`.

    The occupied bins are symmetric about band centre: for an even K they are -K/2 ... -1, 1 ... K/2, leaving out bin 0,
    where direct-conversion radios have their local-oscillator leakage; for an odd K bin 0 is included.

    Raises
    ------
    ValueError
        If the bins do not fit into N samples, or a length is not positive.
    """

    pilot_samples: int = 128
    num_subcarriers: int = 96
    prefix_samples: int = 32

    def __post_init__(self):
        _check_positive("pilot_samples", self.pilot_samples)
        _check_positive("num_subcarriers", self.num_subcarriers)
        if not 0 <= self.prefix_samples <= self.pilot_samples:
            raise ValueError(
                f"prefix_samples={self.prefix_samples} must lie in 0 ... pilot_samples = {self.pilot_samples}"
            )
        if 2 * (self.num_subcarriers // 2) >= self.pilot_samples:
            raise ValueError(
                f"num_subcarriers={self.num_subcarriers} does not fit symmetrically into "
                f"pilot_samples={self.pilot_samples}"
            )

    @property
    def bins(self) -> np.ndarray:
        """Occupied bins, int64 (num_subcarriers,), ascending, as offsets from band centre in steps of samp_rate / N."""
        half = self.num_subcarriers // 2
        bins = np.arange(-half, half + 1)
        return bins if self.num_subcarriers % 2 else bins[bins != 0]

    @property
    def empty_bins(self) -> np.ndarray:
        """Bins that carry only noise, int64: neither occupied nor band centre (receiver offset, oscillator leakage)."""
        every = np.arange(-(self.pilot_samples // 2), (self.pilot_samples + 1) // 2)
        return np.setdiff1d(every, np.append(self.bins, 0))

    @property
    def sequence(self) -> np.ndarray:
        """Unit-modulus values s_k on the occupied bins, complex128 (num_subcarriers,)."""
        return zadoff_chu(self.num_subcarriers)

    @property
    def total_samples(self) -> int:
        """Prefix and useful part."""
        return self.prefix_samples + self.pilot_samples

    def samples(self, weights=None, *, dtype=np.complex128) -> np.ndarray:
        """Samples of the symbol, prefix first.

        Parameters
        ----------
        weights : array_like (..., num_subcarriers), optional
            Precoding weight of each occupied bin; 1 by default.
        dtype : complex64 or complex128

        Returns
        -------
        ndarray (..., prefix_samples + pilot_samples)
        """
        weights = np.ones(self.num_subcarriers) if weights is None else np.asarray(weights)
        if weights.shape[-1:] != (self.num_subcarriers,):
            raise ValueError(f"weights has shape {weights.shape}, its last axis must be {self.num_subcarriers}")
        values = self.sequence * weights
        spectrum = np.zeros((*values.shape[:-1], self.pilot_samples), np.complex128)
        spectrum[..., self.bins % self.pilot_samples] = values
        useful = np.fft.ifft(spectrum) * (self.pilot_samples / np.sqrt(self.num_subcarriers))
        prefix = useful[..., self.pilot_samples - self.prefix_samples :]
        return np.concatenate([prefix, useful], axis=-1).astype(dtype)


@dataclass(frozen=True)
class SlotLayout:
    """Where the symbols of a node's ports lie in a slot: one after another.

    Ports that sound at different times stay orthogonal under any channel shorter than the prefix, any frequency offset
    and any oscillator phase, which code or frequency division do not; the price is `num_ports` symbols of time.

    ::

        | lead | prefix useful | prefix useful | ...  | tail |
                    port 0          port 1

    The receiver's window for port p begins at `useful_start(p)`, `advance_samples` before the useful part as sent, so
    that it sees one whole period for relative delays from -advance_samples to prefix_samples - advance_samples. The
    advance looks like a delay common to everything received. A receiver whose samples are labelled `latency_samples`
    later than they were at the antenna (its pipeline) opens its windows later by as much. So does one that everything
    reaches `receive_delay_samples` after it was sent: the propagation delay common to all links, which may exceed the
    prefix; relative delays then count from there.

    Raises
    ------
    ValueError
        If the symbols as they arrive, or a tail of one prefix (echoes must die out before the next slot), do not fit
        into the slot.
    """

    slot_samples: int
    lead_samples: int
    symbol: SoundingSymbol
    num_ports: int = 1
    advance_samples: int = 0
    latency_samples: int = 0
    receive_delay_samples: int = 0

    def __post_init__(self):
        _check_positive("slot_samples", self.slot_samples)
        _check_positive("num_ports", self.num_ports)
        if self.lead_samples < 0:
            raise ValueError(f"lead_samples={self.lead_samples} must not be negative")
        if not 0 <= self.advance_samples <= self.symbol.prefix_samples:
            raise ValueError(
                f"advance_samples={self.advance_samples} must lie in 0 ... prefix_samples = "
                f"{self.symbol.prefix_samples}"
            )
        if self.receive_delay_samples < 0:
            raise ValueError(f"receive_delay_samples={self.receive_delay_samples} must not be negative")
        if self._end > self.slot_samples:
            late = self.receive_delay_samples
            raise ValueError(
                f"slot_samples={self.slot_samples} is too short: a lead of {self.lead_samples}, {self.num_ports} "
                f"symbols of {self.symbol.total_samples}, {f'a delay of {late} ' if late else ''}and a tail of "
                f"{self.symbol.prefix_samples} samples need {self._end}"
            )
        end = self.useful_start(self.num_ports - 1) + self.symbol.pilot_samples
        if self.latency_samples < 0 or end > self.slot_samples:
            raise ValueError(
                f"latency_samples={self.latency_samples} must not be negative, and leave the last receive window, "
                f"which ends after {end} samples, inside slot_samples={self.slot_samples}"
            )

    def symbol_start(self, port: int = 0) -> int:
        """First sample of the port's symbol (of its prefix), counted from the start of the slot."""
        if not 0 <= port < self.num_ports:
            raise ValueError(f"port={port} must lie in 0 ... num_ports - 1 = {self.num_ports - 1}")
        return self.lead_samples + port * self.symbol.total_samples

    def useful_start(self, port: int = 0) -> int:
        """First sample of the receiver's window of `pilot_samples` for this port's symbol."""
        late = self.latency_samples + self.receive_delay_samples - self.advance_samples
        return self.symbol_start(port) + self.symbol.prefix_samples + late

    def middle(self, port: int = 0) -> int:
        """Sample at the receiver's antenna to which the port's estimate belongs, the middle of its window.

        The receiver's oscillator has entered the estimate at this time, the sender's `receive_delay_samples` earlier.
        Weights from an uplink thus count from here, c from both directions of a link from `midway`.

        A rotating carrier is seen with its phase at the centroid of the energy in the window, which is not an integer:
        0.8 samples before the integer returned here for the default symbol without delay, within 2 samples of it for
        delays of a few. What is common to all symbols cancels in differences of times; what differs between links
        of different delay matters only to oscillators that turn visibly within a sample or two.
        """
        return self.useful_start(port) - self.latency_samples + self.symbol.pilot_samples // 2

    def midway(self, port: int = 0) -> int:
        """Sample halfway between where the middle of the window was sent and where it is received.

        The ratio of both directions, measured at t_1 and t_2 (at the antennas) over a delay d, has the phase
        theta_j(t_1 - d) + theta_j(t_2) - theta_i(t_1) - theta_i(t_2 - d): that of c_j / c_i at (t_1 + t_2 - d) / 2.
        """
        return self.middle(port) - self.receive_delay_samples // 2

    @property
    def silence(self) -> slice:
        """The samples after the echoes of the last symbol: noise only, if no other node sends in this slot.

        Empty if the slot is only just long enough.
        """
        return slice(min(self._end + self.latency_samples, self.slot_samples), self.slot_samples)

    @property
    def _end(self) -> int:
        """First sample after the echoes of the last symbol, at the antenna."""
        tail = self.receive_delay_samples + self.symbol.prefix_samples
        return self.symbol_start(self.num_ports - 1) + self.symbol.total_samples + tail

    def sounding_burst(self, *, dtype=np.complex64) -> np.ndarray:
        """Slot in which every port sends its symbol at its own position: (num_ports, slot_samples), zeros elsewhere."""
        burst = np.zeros((self.num_ports, self.slot_samples), dtype)
        symbol = self.symbol.samples(dtype=dtype)
        for port in range(self.num_ports):
            burst[port, self.symbol_start(port) : self.symbol_start(port) + symbol.size] = symbol
        return burst

    def joint_burst(self, weights, *, dtype=np.complex64) -> np.ndarray:
        """Slot in which all ports send together at the position of port 0, precoded.

        Parameters
        ----------
        weights : array_like (num_ports, num_subcarriers)

        Returns
        -------
        ndarray (num_ports, slot_samples)
        """
        if np.shape(weights) != (self.num_ports, self.symbol.num_subcarriers):
            raise ValueError(
                f"weights has shape {np.shape(weights)}, not (num_ports, num_subcarriers) = "
                f"{(self.num_ports, self.symbol.num_subcarriers)}"
            )
        burst = np.zeros((self.num_ports, self.slot_samples), dtype)
        symbol = self.symbol.samples(weights, dtype=dtype)
        burst[:, self.symbol_start(0) : self.symbol_start(0) + symbol.shape[-1]] = symbol
        return burst


def _dft(size: int, columns: np.ndarray) -> np.ndarray:
    return np.exp(-2j * np.pi * (np.outer(np.arange(size), columns) % size) / size) / np.sqrt(size)


def _check_positive(name: str, value: int) -> None:
    if value < 1:
        raise ValueError(f"{name}={value} must be at least 1")
