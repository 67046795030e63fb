# SPDX-License-Identifier: GPL-3.0-or-later
"""What is set from a sample on and holds until it is set again: beams, clock shifts."""

from bisect import bisect_right
from collections.abc import Iterator

import numpy as np

_NEVER = 1 << 62


class Timeline:
    """Integer vectors that are constant over stretches of absolute samples.

    A *run* begins with `begin`: its first vector holds for everything before it too, since before a run is silence.
    What no longer takes part in a run is kept for `at` alone, as far as it has not been set anew.

    Parameters
    ----------
    kept : how many changes of the past to keep, about.
    """

    def __init__(self, kept: int = 0):
        self._kept = kept
        self._starts: list[int] = []
        self._values: list[np.ndarray] = []
        self._first = 0  # of this run

    def begin(self) -> None:
        """Begin a run: what has been set no longer takes part in `stretches`."""
        self._first = len(self._starts)
        self._forget()

    @property
    def is_empty(self) -> bool:
        """Return whether nothing has been set in this run."""
        return self._first == len(self._starts)

    def holds(self, values: np.ndarray) -> bool:
        """Return whether these values are the last ones set in this run."""
        return not self.is_empty and self._values[-1].tobytes() == values.tobytes()

    def set(self, start: int, values: np.ndarray) -> None:
        """Let `values` hold from absolute sample `start` on, which is after the earlier ones of this run."""
        begins = self.is_empty
        while self._starts and self._starts[-1] >= start:  # time went back
            del self._starts[-1], self._values[-1]
        if begins and self._values and self._values[-1].tobytes() == values.tobytes():
            self._first = len(self._starts) - 1
            return
        if begins:
            self._first = len(self._starts)
        self._starts.append(start)
        self._values.append(values.copy())

    def settle(self, oldest: int) -> None:
        """Take out of the run what ended before sample `oldest`: the rest holds for everything before."""
        while self._first + 1 < len(self._starts) and self._starts[self._first + 1] <= oldest:
            self._first += 1
        self._forget()

    def _forget(self) -> None:
        """Drop changes of the past beyond a quarter more than are to be kept."""
        if self._first > self._kept + self._kept // 4:
            excess = self._first - self._kept
            del self._starts[:excess], self._values[:excess]
            self._first = self._kept

    def at(self, sample: float) -> np.ndarray | None:
        """Return the values in force at `sample`, from earlier runs too; None if there are none."""
        if not self._starts:
            return None
        return self._values[max(bisect_right(self._starts, sample) - 1, 0)]

    def __len__(self) -> int:
        return len(self._starts) - self._first

    def stretches(self) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield (from, to, values) of every stretch of the run, in order, together without limits."""
        for k in range(self._first, len(self._starts)):
            start = -_NEVER if k == self._first else self._starts[k]
            yield start, self._starts[k + 1] if k + 1 < len(self._starts) else _NEVER, self._values[k]
