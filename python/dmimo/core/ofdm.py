# SPDX-License-Identifier: GPL-3.0-or-later
"""OFDM grid, comb mapping of the bidirectional exchange, and the pilots on it.

Subcarriers are counted from band centre; positions on the grid from 0, the lowest active subcarrier.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .waveforms import zadoff_chu

# Bits that the Gold generator drops first (TS 38.211, section 5.2.1).
_GOLD_ADVANCE = 1600
_REGISTER_BITS = 31
# A new bit needs those up to 3 after the oldest in the register: 28 bits at once need only known ones.
_BLOCK_BITS = _REGISTER_BITS - 3


class CombError(ValueError):
    """The ports of the two sides do not share the subcarriers evenly."""


class PrefixError(ValueError):
    """Delays leave the cyclic prefix, so that symbols would run into each other."""


@dataclass(frozen=True)
class OfdmGrid:
    r"""Numerology of an OFDM signal.

    .. math:: x_n = \frac{1}{\sqrt{K}} \sum_k X_k e^{2j \pi k n / N}, \qquad n = -\mathrm{cp} \dots N - 1

    with K = `num_subcarriers` and N = `fft_size`: resource elements of unit energy on all active subcarriers make
    samples of unit mean power, and noise of variance s per sample has variance s K / N per element after `demodulate`.

    The defaults are table I of the paper, with 1584 active subcarriers.

    Parameters
    ----------
    subcarrier_spacing_hz : spacing of the subcarriers.
    fft_size : N.
    cp_samples : length of the cyclic prefix, at most N.
    num_subcarriers : K, active ones around band centre, at most N; for an even K there is one more below it than above.
    skip_dc : leave out band centre, where direct-conversion radios have their local-oscillator leakage; the active
        subcarriers above move up by one if K is even (then as many lie above as below).

    References
    ----------
    Bidirectional calibration (CARS), table I.
    """

    subcarrier_spacing_hz: float = 120e3
    fft_size: int = 2048
    cp_samples: int = 144
    num_subcarriers: int = 1584
    skip_dc: bool = False

    def __post_init__(self):
        if not (np.isfinite(self.subcarrier_spacing_hz) and self.subcarrier_spacing_hz > 0):
            raise ValueError(f"subcarrier_spacing_hz={self.subcarrier_spacing_hz} must be positive and finite")
        if self.fft_size < 2:
            raise ValueError(f"fft_size={self.fft_size} must be at least 2")
        if not 0 <= self.cp_samples <= self.fft_size:
            raise ValueError(f"cp_samples={self.cp_samples} must lie in 0 ... fft_size = {self.fft_size}")
        limit = self.fft_size - self.skip_dc
        if not 1 <= self.num_subcarriers <= limit:
            raise ValueError(f"num_subcarriers={self.num_subcarriers} must lie in 1 ... {limit}")
        if self.skip_dc and self.num_subcarriers % 2:
            raise ValueError(f"num_subcarriers={self.num_subcarriers} must be even with skip_dc")

    @property
    def samp_rate(self) -> float:
        """Samples per second, N times the spacing."""
        return self.fft_size * self.subcarrier_spacing_hz

    @property
    def symbol_samples(self) -> int:
        """Prefix and useful part."""
        return self.cp_samples + self.fft_size

    @property
    def subcarriers(self) -> NDArray:
        """Active subcarriers (K,), int64, ascending, 0 at band centre."""
        k = np.arange(self.num_subcarriers) - self.num_subcarriers // 2
        return k + (k >= 0) if self.skip_dc else k

    def modulate(self, values: ArrayLike, *, dtype=np.complex128) -> NDArray:
        """Samples (..., L * symbol_samples) of L symbols, prefix first, from resource elements (..., L, K)."""
        values = np.asarray(values)
        if values.ndim < 2 or values.shape[-1] != self.num_subcarriers:
            raise ValueError(f"values has shape {values.shape}; it must be (..., symbols, {self.num_subcarriers})")
        spectrum = np.zeros((*values.shape[:-1], self.fft_size), np.complex128)
        spectrum[..., self.subcarriers % self.fft_size] = values
        useful = np.fft.ifft(spectrum) * (self.fft_size / np.sqrt(self.num_subcarriers))
        symbols = np.concatenate([useful[..., self.fft_size - self.cp_samples :], useful], axis=-1)
        return symbols.reshape(*values.shape[:-2], -1).astype(dtype)

    def demodulate(self, samples: ArrayLike, num_symbols: int, *, start: int = 0, advance_samples: int = 0) -> NDArray:
        """Resource elements (..., L, K) of L consecutive symbols.

        Parameters
        ----------
        samples : (..., n)
        num_symbols : L.
        start : first sample of the first symbol's prefix.
        advance_samples : the windows open so much before the useful part, so that signals that arrive early count
            whole too; the turn over the subcarriers that this makes is removed, so delays keep their origin.

        Raises
        ------
        ValueError
            If a window is not inside the samples, or opens before its prefix.
        """
        samples = np.asarray(samples)
        self._check_advance(advance_samples)
        end = start + num_symbols * self.symbol_samples - advance_samples
        if num_symbols < 1 or start < 0 or end > samples.shape[-1]:
            raise ValueError(
                f"num_symbols={num_symbols} symbols from start={start} do not lie in {samples.shape[-1]} samples"
            )
        first = start + self.cp_samples - advance_samples + self.symbol_samples * np.arange(num_symbols)
        windows = samples[..., first[:, None] + np.arange(self.fft_size)]
        active = self.subcarriers
        turn = np.exp(2j * np.pi * (active * advance_samples % self.fft_size) / self.fft_size)
        spectrum = np.fft.fft(windows)[..., active % self.fft_size]
        return spectrum * (turn * np.sqrt(self.num_subcarriers) / self.fft_size)

    def symbol_time_s(self, symbol: ArrayLike, *, advance_samples: int = 0) -> NDArray:
        """Time in s to which the elements of a symbol belong, the centre of its window; 0 at the first prefix.

        A carrier that turns slowly is seen with the phase that it has at the centre of the N samples.
        """
        self._check_advance(advance_samples)
        first = np.asarray(symbol) * self.symbol_samples + self.cp_samples - advance_samples
        return (first + 0.5 * (self.fft_size - 1)) / self.samp_rate

    def require_delays(self, earliest_s: float, latest_s: float, *, advance_samples: int = 0) -> None:
        """Raise PrefixError unless signals from the earliest to the latest delay fill every window with one period."""
        self._check_advance(advance_samples)
        first, last = -advance_samples / self.samp_rate, (self.cp_samples - advance_samples) / self.samp_rate
        # Delays on the limit count as inside, also after rounding.
        slack = 1e-9 / self.samp_rate
        if not first - slack <= earliest_s <= latest_s <= last + slack:
            raise PrefixError(
                f"delays from {earliest_s * 1e9:g} to {latest_s * 1e9:g} ns must lie in {first * 1e9:g} ... "
                f"{last * 1e9:g} ns, the cyclic prefix of {self.cp_samples} samples opened {advance_samples} early"
            )

    def _check_advance(self, advance_samples: int) -> None:
        if not 0 <= advance_samples <= self.cp_samples:
            raise ValueError(f"advance_samples={advance_samples} must lie in 0 ... cp_samples = {self.cp_samples}")


@dataclass(frozen=True)
class CombMapping:
    r"""Which positions of the grid carry which pilot of a bidirectional exchange.

    The side that sounds has P ports on a comb of P; each of the Q ports of the side that responds takes every Q-th
    element of each of these combs, so that all P Q links are orthogonal in the response:

    .. math:: k_p = i P + p, \quad 0 \le i < K, \qquad k_{pq} = i P Q + q P + p, \quad 0 \le i < K / Q

    zero-based. For CSI-RS and UL-CARS P counts TRP ports and Q UE ports; for SRS and DL-CARS it is the reverse.

    Parameters
    ----------
    num_sounding, num_responding : P and Q.
    pilots_per_port : K, divisible by Q.

    Raises
    ------
    CombError
        If Q does not divide K.

    References
    ----------
    Bidirectional calibration (CARS), eq. (19). Deviation: port numbers start at 0 (with 1 to M the last port of the
    paper's formula falls into the next group), and N must divide K, which the paper leaves unsaid.
    """

    num_sounding: int
    num_responding: int
    pilots_per_port: int

    def __post_init__(self):
        for name in ("num_sounding", "num_responding", "pilots_per_port"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.pilots_per_port % self.num_responding:
            raise CombError(
                f"pilots_per_port={self.pilots_per_port} must be divisible by num_responding={self.num_responding}; "
                f"{self.pilots_per_port - self.pilots_per_port % self.num_responding} would be"
            )

    @classmethod
    def filling(cls, grid: OfdmGrid, num_sounding: int, num_responding: int) -> "CombMapping":
        """Mapping onto all active subcarriers; CombError, with the next smaller K, if they do not divide by P Q."""
        period = num_sounding * num_responding
        if min(num_sounding, num_responding) >= 1 and grid.num_subcarriers % period:
            fitting = grid.num_subcarriers // period * num_responding
            raise CombError(
                f"num_subcarriers={grid.num_subcarriers} is not divisible by num_sounding * num_responding = "
                f"{num_sounding} * {num_responding} = {period}; pilots_per_port={fitting} is the most that fits"
            )
        return cls(num_sounding, num_responding, grid.num_subcarriers // max(num_sounding, 1))

    @property
    def num_positions(self) -> int:
        """Positions that the mapping covers, P K."""
        return self.num_sounding * self.pilots_per_port

    @property
    def sounding(self) -> NDArray:
        """Positions (P, K) of the sounding pilots of each port."""
        return np.arange(self.num_positions).reshape(-1, self.num_sounding).T

    @property
    def response(self) -> NDArray:
        """Positions (P, Q, K / Q) of the response of port q for sounding port p."""
        by_group = np.arange(self.num_positions).reshape(-1, self.num_responding, self.num_sounding)
        return by_group.transpose(2, 1, 0)

    def subcarriers(self, grid: OfdmGrid) -> NDArray:
        """Subcarriers (P, Q, K / Q) of the response from band centre; CombError if the grid has too few."""
        if self.num_positions > grid.num_subcarriers:
            raise CombError(
                f"pilots_per_port={self.pilots_per_port} on a comb of {self.num_sounding} needs {self.num_positions} "
                f"subcarriers; the grid has {grid.num_subcarriers}"
            )
        return grid.subcarriers[self.response]


def gold_sequence(c_init: int, length: int) -> NDArray:
    """Pseudo-random bits c (length,), uint8: the length-31 Gold sequence of 5G NR.

    Two shift registers, ``x1(n+31) = x1(n+3) + x1(n)`` from 1, 0, 0, ... and ``x2(n+31) = x2(n+3) + x2(n+2) + x2(n+1)
    + x2(n)`` from the bits of `c_init`, lowest first; ``c(n) = x1(n+1600) + x2(n+1600)``, all modulo 2.

    References
    ----------
    3GPP TS 38.211, section 5.2.1.
    """
    if not 0 <= c_init < 1 << _REGISTER_BITS:
        raise ValueError(f"c_init={c_init} must lie in 0 ... 2^31 - 1")
    if length < 1:
        raise ValueError(f"length={length} must be at least 1")
    first = _shift_register(1, (0, 3), _GOLD_ADVANCE + length)
    second = _shift_register(c_init, (0, 1, 2, 3), _GOLD_ADVANCE + length)
    return (first ^ second)[_GOLD_ADVANCE:]


def gold_qpsk(c_init: int, length: int) -> NDArray:
    """QPSK values (length,) of unit modulus, ``((1 - 2 c(2n)) + j (1 - 2 c(2n+1))) / sqrt(2)`` (TS 38.211, 7.4.1.5)."""
    bits = gold_sequence(c_init, 2 * length).astype(float).reshape(-1, 2)
    return ((1.0 - 2.0 * bits[:, 0]) + 1j * (1.0 - 2.0 * bits[:, 1])) / np.sqrt(2.0)


def extended_zadoff_chu(root: int, length: int) -> NDArray:
    """Zadoff-Chu sequence of the largest prime length, continued cyclically to `length` (TS 38.211, 5.2.2.1).

    Every root from 1 to that prime less 1 gives unit modulus and a low cross-correlation with the others.
    """
    if length < 3:
        raise ValueError(f"length={length} must be at least 3")
    prime = next(n for n in range(length, 1, -1) if all(n % d for d in range(2, int(n**0.5) + 1)))
    if not 1 <= root < prime:
        raise ValueError(f"root={root} must lie in 1 ... {prime - 1}, below the largest prime up to length={length}")
    return np.resize(zadoff_chu(prime, root), length)


def pilot_sequence(purpose: Literal["srs", "csi_rs", "cars"], length: int, *, identity: int = 0) -> NDArray:
    """Pilot values (length,) of unit modulus, different for each purpose and identity.

    Parameters
    ----------
    purpose : "srs", extended Zadoff-Chu with root identity + 1; "csi_rs" and "cars", Gold-sequence QPSK with the
        initialisation of CSI-RS in symbols 0 and 1 (the paper leaves the CARS sequence open; its precoding undoes a
        low peak power anyway).
    length : number of pilots.
    identity : of the port that sends, 0 to 1023.
    """
    if not 0 <= identity < 1024:
        raise ValueError(f"identity={identity} must lie in 0 ... 1023")
    if purpose == "srs":
        return extended_zadoff_chu(identity + 1, length)
    if purpose not in ("csi_rs", "cars"):
        raise ValueError(f"purpose={purpose!r} must be 'srs', 'csi_rs' or 'cars'")
    symbol = 0 if purpose == "csi_rs" else 1
    return gold_qpsk((1024 * (symbol + 1) * (2 * identity + 1) + identity) % (1 << _REGISTER_BITS), length)


def _shift_register(state: int, taps: tuple[int, ...], length: int) -> NDArray:
    bits = np.zeros(max(length, _REGISTER_BITS) + _BLOCK_BITS, np.uint8)
    bits[:_REGISTER_BITS] = (state >> np.arange(_REGISTER_BITS)) & 1
    for n in range(0, length - _REGISTER_BITS, _BLOCK_BITS):
        new = bits[n + _REGISTER_BITS : n + _REGISTER_BITS + _BLOCK_BITS]
        for tap in taps:
            new ^= bits[n + tap : n + tap + len(new)]
    return bits[:length]
