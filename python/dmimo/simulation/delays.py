# SPDX-License-Identifier: GPL-3.0-or-later
"""Fractional delays by short windowed-sinc filters: of a path (constant), of a sample clock (changing)."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

HALF_WIDTH = 12  # taps on either side; a fractional delay needs HALF_WIDTH - 1 samples of latency
_BETA = 7.5  # Kaiser window: the smallest worst error over the pass-band for this width


def fractional_taps(delay: float | np.ndarray) -> np.ndarray:
    """Return the filter that delays by `delay` samples beyond its latency HALF_WIDTH - 1, float64 (..., 2 HALF_WIDTH).

    Kaiser-windowed sinc centred on the delay, which is within [0, 1) or at most a few hundredths outside. Delay 0 gives
    an exact delta. Over the pass-band, the central 80 % of the sampling band, the response differs from
    exp(-2j pi f (delay + HALF_WIDTH - 1)) by less than 4e-4; towards the band edges the error grows to order one.
    """
    offset = np.arange(1 - HALF_WIDTH, HALF_WIDTH + 1) - np.asarray(delay, dtype=np.float64)[..., None]
    window = np.i0(_BETA * np.sqrt(np.clip(1.0 - (offset / HALF_WIDTH) ** 2, 0.0, 1.0))) / np.i0(_BETA)
    return np.where(offset == np.rint(offset), offset == 0.0, np.sinc(offset) * window)


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
    early, late = (fractional_taps(d - whole).astype(np.float32) for d in (delay, next_delay))
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
    delays : node name -> delay(sample) [samples], beyond the stage's latency.
    rows : which ports are each node's, in the same order.
    max_samples, block_samples : the most that `run` is asked for, and the grid.
    latency : constant delay of the stage; the nodes' may go from HALF_WIDTH - latency to latency - HALF_WIDTH.
    lag : how much older than its index a sample is that leaves the stage.
    """

    def __init__(
        self,
        delays: Mapping[str, Callable[[float], float]],
        rows: Sequence[slice],
        max_samples: int,
        block_samples: int,
        latency: int,
        *,
        lag: int,
    ):
        self._delays, self._rows, self._latency, self._lag = delays, rows, latency, lag
        self._block, self._past = block_samples, 2 * (latency + HALF_WIDTH)
        self._buffer = np.zeros((rows[-1].stop, self._past + max_samples), dtype=np.complex64)

    def flush(self) -> None:
        """Forget the past."""
        self._buffer[:] = 0

    def commit(self, num: int) -> None:
        """Move on by `num` samples."""
        self._buffer[:, : self._past] = self._buffer[:, num : num + self._past]

    def run(self, x: np.ndarray, start: int) -> None:
        """Delay x, complex64 (P, whole blocks) from absolute sample `start`, in place."""
        num, size, reach = x.shape[1], self._block, self._latency - HALF_WIDTH
        self._buffer[:, self._past : self._past + num] = x
        for (name, delay), rows in zip(self._delays.items(), self._rows, strict=True):
            for first in range(0, num, size):
                sample = start + first - self._lag
                early, late = delay(sample), delay(sample + size)
                if max(abs(early), abs(late)) > reach:
                    raise ValueError(
                        f"the clock of node {name} is {late:.2f} samples away at sample {sample}; reach_samples={reach}"
                    )
                window = self._buffer[rows, first : first + self._past + size]
                x[rows, first : first + size] = shift_slowly(window, self._latency + early, self._latency + late, size)
