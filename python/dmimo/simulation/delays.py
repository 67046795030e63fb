# SPDX-License-Identifier: GPL-3.0-or-later
"""Fractional delays by short windowed-sinc filters: of a path (constant), of a sample clock (changing)."""

from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

HALF_WIDTH = 12  # taps on either side; a fractional delay needs HALF_WIDTH - 1 samples of latency
_BETA = 7.5  # Kaiser window: the smallest worst error over the pass-band for this width
_PEAK = np.i0(_BETA)


def fractional_taps(delay: float | np.ndarray) -> np.ndarray:
    """Return the filter that delays by `delay` samples beyond its latency HALF_WIDTH - 1, float64 (..., 2 HALF_WIDTH).

    Kaiser-windowed sinc centred on the delay, which is within [0, 1) or at most a few hundredths outside. Delay 0 gives
    an exact delta. Over the pass-band, the central 80 % of the sampling band, the response differs from
    exp(-2j pi f (delay + HALF_WIDTH - 1)) by less than 4e-4; towards the band edges the error grows to order one.
    """
    offset = np.arange(1 - HALF_WIDTH, HALF_WIDTH + 1) - np.asarray(delay, dtype=np.float64)[..., None]
    window = np.i0(_BETA * np.sqrt(np.clip(1.0 - (offset / HALF_WIDTH) ** 2, 0.0, 1.0))) / _PEAK
    return np.where(offset == np.rint(offset), offset == 0.0, np.sinc(offset) * window)


@lru_cache(maxsize=1024)
def _cached_taps(delay: float) -> np.ndarray:
    """Return `fractional_taps` in single precision: a block ends with the delay that the next one begins with."""
    taps = fractional_taps(delay).astype(np.float32)
    taps.flags.writeable = False
    return taps


def filter_latency(delays_samples: np.ndarray) -> int:
    """Return the bulk delay [samples] that makes filters with all these delays causal; 0 if they are integers >= 0."""
    whole = np.floor(delays_samples)
    advance = max(0, -int(np.min(whole, initial=0.0)))
    return advance + (HALF_WIDTH - 1 if np.any(whole != delays_samples) else 0)


def delay_filters(delays_samples: np.ndarray, latency: int) -> np.ndarray:
    """Return the impulse responses of the delays plus `latency` [samples], float64 (..., num_taps)."""
    delays = np.asarray(delays_samples, dtype=np.float64)
    whole = np.floor(delays).astype(np.int64)
    first = whole + latency - (HALF_WIDTH - 1)  # index of the first of the fractional filter's taps
    short = fractional_taps(delays - whole)
    used = short != 0.0
    index = first[..., None] + np.arange(2 * HALF_WIDTH)
    if np.any(index[used] < 0):
        raise ValueError(f"latency={latency} is too small for delays down to {delays.min()} samples")
    out = np.zeros((*delays.shape, int(index[used].max(initial=0)) + 1))
    where = np.nonzero(used)
    out[(*where[:-1], index[where])] = short[where]
    return out


def shift_slowly(x: np.ndarray, delay: float, next_delay: float, num: int) -> np.ndarray:
    """Return the last `num` samples of x (ports, samples), complex64 (ports, num), under a linearly changing delay.

    y[n] = x(n - D(n)) with D from `delay` at the first of them to `next_delay` one after the last. Both at least
    HALF_WIDTH and their change far below a sample: the outputs of the filters for the two ends are cross-faded, which
    errs by the square of the change.
    """
    whole = int(np.floor(delay))
    newest = x.shape[-1] - whole + HALF_WIDTH - 1  # one past the newest sample that the filter touches
    window = x[:, newest - num - 2 * HALF_WIDTH + 1 : newest]
    early, late = _cached_taps(delay - whole), _cached_taps(next_delay - whole)
    fade = (np.arange(num) / num).astype(np.float32)
    out = np.empty((len(x), num), dtype=np.complex64)
    for row, target in zip(window, out, strict=True):
        before = np.convolve(row, early, "valid")
        target[:] = before + fade * (np.convolve(row, late, "valid") - before)
    return out


class ClockStage:
    """One direction of all nodes' sample clocks: delays that change slowly with time, on a grid of blocks.

    Parameters
    ----------
    delays : per node, delay(sample, shift) [samples] beyond the stage's latency; at least HALF_WIDTH - latency.
    check : check(node, delay, sample), raises where a delay is not allowed.
    rows : which ports are each node's, in the same order.
    max_samples, block_samples : the most that `run` is asked for, and the grid.
    latency : constant delay of the stage.
    greatest : the greatest delay that `check` allows [samples].
    lag : how much older than its index a sample is that leaves the stage.
    masked : whether a shift belongs to the samples that enter the stage (in transmission), not to those that leave it.

    Attributes
    ----------
    past : number of earlier samples that what leaves depends on.
    """

    def __init__(
        self,
        delays: Sequence[Callable[[float, int], float]],
        check: Callable[[int, float, float], None],
        rows: Sequence[slice],
        max_samples: int,
        block_samples: int,
        *,
        latency: int,
        greatest: float,
        lag: int,
        masked: bool,
    ):
        self._delays, self._check, self._rows, self._latency, self._lag = delays, check, rows, latency, lag
        self._block, self._masked = block_samples, masked
        self.past = latency + int(np.ceil(greatest)) + 2 * HALF_WIDTH
        self._buffer = np.zeros((rows[-1].stop, self.past + max_samples), dtype=np.complex64)

    def flush(self) -> None:
        """Forget the past."""
        self._buffer[:] = 0

    def commit(self, num: int) -> None:
        """Move on by `num` samples."""
        self._buffer[:, : self.past] = self._buffer[:, num : num + self.past]

    def run(self, x: np.ndarray, start: int, shifts: Sequence[tuple[int, int, np.ndarray]]) -> None:
        """Delay x, complex64 (P, whole blocks) from absolute sample `start`, in place.

        shifts : (from, to, shift of each node [samples]) stretch by stretch, together without limits.
        """
        num, size = x.shape[1], self._block
        self._buffer[:, self.past : self.past + num] = x
        for node, rows in enumerate(self._rows):
            for first in range(0, num, size):
                window = self._buffer[rows, first : first + self.past + size]
                out = x[rows, first : first + size]
                if len(shifts) == 1:
                    delays = self._ends(node, start + first, int(shifts[0][2][node]))
                    out[:] = shift_slowly(window, *delays, size)
                elif self._masked:
                    self._sum_entering(node, start + first, shifts, window, out)
                else:
                    self._choose_leaving(node, start + first, shifts, window, out)

    def _ends(self, node: int, index: int, shift: int) -> tuple[float, float]:
        """Return the delays at the beginning and the end of the block that leaves at `index`, latency included."""
        samples = index - self._lag, index - self._lag + self._block
        ends = [self._delays[node](sample, shift) for sample in samples]
        for delay, sample in zip(ends, samples, strict=True):
            self._check(node, delay, sample)
        return self._latency + ends[0], self._latency + ends[1]

    def _sum_entering(self, node: int, index: int, shifts, window: np.ndarray, out: np.ndarray) -> None:
        """Write the sum of what has entered under each shift."""
        out[:] = 0
        oldest = index - self.past  # the window's first sample
        for begin, end, shift in shifts:
            delay = self._latency + self._delays[node](index - self._lag, int(shift[node]))
            last = index + self._block - delay + HALF_WIDTH + 1
            if end <= index - delay - HALF_WIDTH - 1 or begin >= last:
                continue
            ends = self._ends(node, index, int(shift[node]))
            part = np.zeros_like(window)
            a, b = max(begin - oldest, 0), min(max(end - oldest, 0), window.shape[1])
            part[:, a:b] = window[:, a:b]
            out += shift_slowly(part, *ends, self._block)

    def _choose_leaving(self, node: int, index: int, shifts, window: np.ndarray, out: np.ndarray) -> None:
        """Write what leaves, each sample under its own shift."""
        for begin, end, shift in shifts:
            a, b = max(begin + self._lag - index, 0), min(end + self._lag - index, self._block)
            if a < b:
                ends = self._ends(node, index, int(shift[node]))
                out[:, a:b] = shift_slowly(window, *ends, self._block)[:, a:b]
