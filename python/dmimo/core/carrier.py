# SPDX-License-Identifier: GPL-3.0-or-later
"""Digital correction of a node's carrier: what turns its samples so that its oscillator looks like the leader's."""

from bisect import bisect_right
from fractions import Fraction
from operator import index
from typing import NamedTuple

import numpy as np

PHASE_BITS = 96  # of the accumulator: 1e12 samples of a step rounded to 2**-97 cycles are 2**-57 cycles off
MAX_RETUNES = 1024  # remembered; samples before the oldest of them are asked for no more
_CYCLE = 1 << PHASE_BITS
_COARSE_BITS = 20  # of the step's leading part, which times a 32-bit count is exact in double precision
_ROW_SAMPLES = 64


class _Segment(NamedTuple):
    """From sample `begin` on: accumulator there and step per sample, in 2**-96 cycles, and the transmit phase."""

    begin: int
    theta: int
    step: int
    frequency_hz: float
    phase_rad: float


class CarrierCorrection:
    r"""Phase by which a node turns what it sends and what it receives, exact for any absolute sample.

    A node whose oscillator is slower than the leader's by the offset f (`synchronization.frequency_offset` of what it
    receives from the leader) sends :math:`x(n) e^{+j (\theta(n) + \phi)}` and takes
    :math:`y(n) e^{-j \theta(n)}` for what it received, with

    .. math:: \theta(n) = \theta(n_0) + 2 \pi f (n - n_0) / f_s

    and n the absolute sample, counted since the epoch, so that gaps between bursts do no harm. A change of frequency
    keeps :math:`\theta` continuous. Transmit and receive have to turn by opposite angles: then the node's calibration
    c = t / r stays. Corrected on transmit alone it turns by :math:`2 \pi f (n - n_0) / f_s`, 36 degrees in 10 ms at
    10 Hz. The phase :math:`\phi`, which is to move c, acts on transmit only.

    The phase is kept as a hardware oscillator keeps it, in an integer accumulator of 96 bits per cycle: reduced modulo
    one cycle without loss, it is right to 1e-14 rad for samples up to 1e12 from a change of frequency, and never
    drifts however often that changes.

    Parameters
    ----------
    samp_rate : float
    frequency_hz : float
        f from the beginning on, with :math:`\theta(0) = 0`.
    phase_rad : float
        :math:`\phi` from the beginning on.

    Raises
    ------
    ValueError
        If the sample rate is not positive, or a value not finite.

    References
    ----------
    BeamSync paper, section on frequency synchronisation, corrects the transmission only.
    """

    def __init__(self, samp_rate: float, frequency_hz: float = 0.0, phase_rad: float = 0.0):
        if not (samp_rate > 0 and np.isfinite(samp_rate)):
            raise ValueError(f"samp_rate = {samp_rate}: must be positive and finite")
        self._rate = Fraction(samp_rate)
        self._segments = [_Segment(0, 0, self._step(frequency_hz), float(frequency_hz),
                                   _finite("phase_rad", phase_rad))]
        self._oldest: int | None = None

    @property
    def frequency_hz(self) -> float:
        """Offset f after the last change, in Hz."""
        return self._segments[-1].frequency_hz

    @property
    def phase_rad(self) -> float:
        """Phase of the transmission after the last change, in (-pi, pi]."""
        return self._segments[-1].phase_rad

    @property
    def changed_at(self) -> int:
        """Absolute sample of the last change; 0 before any."""
        return self._segments[-1].begin

    def retune(self, frequency_hz: float, at_sample: int) -> None:
        """Change the frequency from an absolute sample on, where the phase goes on without a jump.

        Parameters
        ----------
        frequency_hz : float
            New f (not an increment).
        at_sample : int
            Not before an earlier change; samples before it keep the frequency that they had.

        Raises
        ------
        ValueError
            If the frequency is not finite, or `at_sample` lies before an earlier change.
        """
        step = self._step(frequency_hz)
        self._change(at_sample, step=step, frequency_hz=float(frequency_hz))

    def advance(self, phase_rad: float, at_sample: int | None = None) -> None:
        """Add to the phase of the transmission: from an absolute sample on, or (None) of all samples asked for next.

        Raises
        ------
        ValueError
            If the phase is not finite, or `at_sample` lies before an earlier change.
        """
        phase_rad = _finite("phase_rad", phase_rad)
        if at_sample is None:
            self._segments = [part._replace(phase_rad=_wrapped(part.phase_rad + phase_rad)) for part in self._segments]
        else:
            self._change(at_sample, phase_rad=_wrapped(self.phase_rad + phase_rad))

    def theta(self, sample: int) -> float:
        """Phase of the carrier at an absolute sample, in radians in [-pi, pi), without that of the transmission."""
        sample = index(sample)
        cycles = _accumulated(self._segments[self._find(sample)], sample) / _CYCLE
        return 2 * np.pi * (cycles - (cycles >= 0.5))

    def transmit_turn(self, start: int, num: int) -> np.ndarray:
        r"""Factor of a transmission, :math:`e^{+j (\theta(n) + \phi)}`, complex128 (num,), for n = start ... ."""
        return self._turn(start, num, transmit=True)

    def receive_turn(self, start: int, num: int) -> np.ndarray:
        r"""Factor of what was received, :math:`e^{-j \theta(n)}`, complex128 (num,), for n = start ... ."""
        return self._turn(start, num, transmit=False).conj()

    def _turn(self, start: int, num: int, transmit: bool) -> np.ndarray:
        start, end = index(start), index(start) + index(num)
        if num < 0:
            raise ValueError(f"num = {num}: must not be negative")
        parts, first = [np.empty(0, np.complex128)], self._find(start)
        for k in range(first, len(self._segments)):
            begin = start if k == first else self._segments[k].begin
            stop = end if k + 1 == len(self._segments) else min(end, self._segments[k + 1].begin)
            if begin < stop:
                part = self._segments[k]
                turn = _phasors(_accumulated(part, begin), part.step, stop - begin)
                parts.append(turn * np.exp(1j * part.phase_rad) if transmit and part.phase_rad else turn)
        return parts[1] if len(parts) == 2 else np.concatenate(parts)

    def _find(self, sample: int) -> int:
        """Index of the segment of a sample; the first one extends to all earlier samples, unless some are forgotten."""
        if self._oldest is not None and sample < self._oldest:
            raise ValueError(f"sample {sample}: the correction before sample {self._oldest} is forgotten")
        return max(bisect_right(self._segments, sample, key=lambda part: part.begin) - 1, 0)

    def _change(self, at_sample: int, **values) -> None:
        at_sample, last = index(at_sample), self._segments[-1]
        if at_sample < last.begin:
            if len(self._segments) > 1:
                raise ValueError(f"at_sample = {at_sample}: must not lie before the change at sample {last.begin}")
            last = self._segments[0] = last._replace(begin=at_sample, theta=_accumulated(last, at_sample))
        changed = last._replace(begin=at_sample, theta=_accumulated(last, at_sample), **values)
        if len(self._segments) > 1 and at_sample == last.begin:
            self._segments[-1] = changed
        else:
            self._segments.append(changed)
        if len(self._segments) > MAX_RETUNES:
            del self._segments[0]
            self._oldest = self._segments[0].begin

    def _step(self, frequency_hz: float) -> int:
        """Steps per sample of the accumulator, rounded to a whole number."""
        return round(Fraction(_finite("frequency_hz", frequency_hz)) / self._rate * _CYCLE)


def _accumulated(part: _Segment, sample: int) -> int:
    return (part.theta + part.step * (sample - part.begin)) % _CYCLE


def _phasors(theta: int, step: int, num: int) -> np.ndarray:
    """e^{2j pi (theta + step k) / 2**96} for k < num, as products of a phasor per row and one per column.

    In double precision, step k keeps its fraction only if the step is split: a leading part with so few bits that its
    product with k is exact, and a small rest.
    """
    step = (step + _CYCLE // 2) % _CYCLE - _CYCLE // 2
    unit = _CYCLE >> _COARSE_BITS
    coarse = (step + unit // 2) // unit
    rest = (step - coarse * unit) / _CYCLE
    columns = np.arange(min(num, _ROW_SAMPLES))
    rows = np.arange(0, num, _ROW_SAMPLES)
    scale = 2.0**-_COARSE_BITS
    rows = np.fmod(coarse * scale * rows, 1.0) + rest * rows + theta / _CYCLE
    columns = np.fmod(coarse * scale * columns, 1.0) + rest * columns
    return np.outer(np.exp(2j * np.pi * rows), np.exp(2j * np.pi * columns)).reshape(-1)[:num]


def _finite(name: str, value: float) -> float:
    if not np.isfinite(value):
        raise ValueError(f"{name} = {value}: must be finite")
    return float(value)


def _wrapped(phase_rad: float) -> float:
    return float(np.pi - (np.pi - phase_rad) % (2 * np.pi))
