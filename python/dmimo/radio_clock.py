# SPDX-License-Identifier: GPL-3.0-or-later
"""What time it is on the radios of a run, from what they report; and how they come to a common time.

A radio reports its device time t in messages that arrive at the times a of this computer's monotonic clock, each later
by the delay D >= 0 of the message. With t = a - D + offset, the offset between the two clocks is the maximum of t - a
over messages, approached from below: late messages change nothing as long as some are punctual. A report also says
at which local time q it was asked for, the latest that the radio had been told: t was read after q, so that the offset
is at most t - q. Crystals drift apart by microseconds a second, so that old messages are forgotten.

Radios that take their time at edges of one PPS differ by whole seconds, since each computer chooses its own edge. They
are shifted to the latest of them. That a radio is wrong is said only where both bounds of its offset prove it: on a
busy computer all messages may be late, for as long as it is busy.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from .radio_time import rate_ratio

MEMORY_S = 10.0
MIN_REPORTS = 8  # before several radios are compared; one of so many messages is punctual
TOLERANCE_S = 0.01  # of a difference in whole seconds: drift while reports count, and what reading the time takes


class Offset(NamedTuple):
    """By how much a radio's device time is ahead of a local clock, at least and at most [s]."""

    least_s: float
    most_s: float


class RadioClock:
    """Estimates how far a radio's device time is ahead of a local clock.

    Parameters
    ----------
    memory_s : float
        How long a report counts.
    """

    def __init__(self, memory_s: float = MEMORY_S):
        self._memory_s = memory_s
        # Offsets that may still become the maximum: each is smaller than those before it. And negative upper bounds.
        self._least: deque[tuple[float, float]] = deque()
        self._most: deque[tuple[float, float]] = deque()
        self.reports = 0
        self.heard_s: float | None = None

    def report(self, device_s: float, arrival_s: float, asked_s: float = -math.inf) -> None:
        """Take a report of the device time, read after one time of the local clock and arrived at another [s]."""
        for bounds, bound in ((self._least, device_s - arrival_s), (self._most, asked_s - device_s)):
            while bounds and bounds[-1][1] <= bound:
                bounds.pop()
            bounds.append((arrival_s, bound))
            while bounds[0][0] < arrival_s - self._memory_s:
                bounds.popleft()
            other = self._most if bounds is self._least else self._least
            while other and other[0][1] + bound > TOLERANCE_S:  # of before the clock was set
                other.popleft()
        self.reports += 1
        self.heard_s = arrival_s

    @property
    def offset_s(self) -> float:
        """Device time minus local time [s], too small by the delay of the most punctual report."""
        return self.offset.least_s

    @property
    def offset(self) -> Offset:
        """Bounds of device time minus local time."""
        if not self._least:
            raise ValueError("offset_s: the radio has not reported its time")
        return Offset(self._least[0][1], -self._most[0][1])


def whole_second_shifts(offsets: Mapping[str, Offset]) -> tuple[dict[str, int], dict[str, str]]:
    """Whole seconds by which each clock must be set forward to agree with the latest one, and what is wrong.

    Parameters
    ----------
    offsets : mapping of name to Offset
        How far each clock is ahead of one and the same other clock.

    Returns
    -------
    shifts : mapping of name to int
        Not negative; empty if anything is wrong. What they must be where the bounds leave no choice; otherwise by the
        lower bounds, as if messages took equally long.
    faults : mapping of name to str
        What is wrong with each clock that is off a whole second from the others. Where as many agree on one fraction of
        a second as on another, those count as right that agree with the first clock.
    """
    names = list(offsets)
    seconds = {name: {other: _whole_seconds(offsets[other], offsets[name]) for other in names} for name in names}
    right = max(names, key=lambda name: sum(second is not None for second in seconds[name].values()))
    faults = {name: f"radio {name}: its time is {_off_second(offsets[name], offsets[right]):+.2f} s off a whole second "
                    f"from that of radio {right}: they have no common PPS"
              for name, second in seconds[right].items() if second is None}
    if faults:
        return {}, faults
    latest = max(seconds[right].values())
    return {name: latest - second for name, second in seconds[right].items()}, {}


def _difference(one: Offset, other: Offset) -> Offset:
    """By how much one clock is ahead of another."""
    return Offset(one.least_s - other.most_s, one.most_s - other.least_s)


def _whole_seconds(one: Offset, other: Offset) -> int | None:
    """Whole seconds by which one clock is ahead of another; None where it cannot be whole seconds."""
    least, most = _difference(one, other)
    lowest, highest = least - TOLERANCE_S, most + TOLERANCE_S
    seconds = round(one.least_s - other.least_s)
    if seconds < lowest:
        seconds = math.ceil(lowest)
    elif seconds > highest:
        seconds = math.floor(highest)
    return seconds if lowest <= seconds <= highest else None


def _off_second(one: Offset, other: Offset) -> float:
    """Difference from the nearest whole second, halfway between its bounds [s]."""
    middle = sum(_difference(one, other)) / 2
    return middle - round(middle)


class Radios:
    """The radios of a run, from their first reports to the common begin, and what time it is on them.

    Parameters
    ----------
    names : sequence of str
    samp_rate : float
    """

    def __init__(self, names: Sequence[str], samp_rate: float):
        if len(set(names)) < len(names):
            raise ValueError(f"radios = {list(names)}: must have different names")
        self._rate = float(rate_ratio(samp_rate))
        self._clocks = {name: RadioClock() for name in names}
        self._first: dict[str, int] = {}
        self._epochs: dict[str, int] = {}
        self._waited: set[str] = set()  # radios in an epoch in which they have yet to begin
        self._compared = False

    def report(self, name: str, sample: int, arrival_s: float, asked_s: float = -math.inf) -> None:
        """A radio's device time, in samples, has arrived; read after one and before another time of the local clock."""
        self._known(name).report(sample / self._rate, arrival_s, asked_s)

    def align(self) -> tuple[dict[str, int], dict[str, str]]:
        """Whole seconds by which to shift each radio, and faults, as `whole_second_shifts`.

        Shifts are given once at the start and once after every epoch that has ended, as soon as enough reports have
        come from all, and faults whenever they are found; empty otherwise.
        """
        if not self._comparable:
            return {}, {}
        shifts, faults = self._compare()
        if self._compared and not faults:
            return {}, {}
        self._compared = True
        return shifts, faults

    def apart(self) -> dict[str, str]:
        """What is wrong with radios that do not have the time of the others, by name; empty where that is not known."""
        shifts, faults = self._compare() if self._comparable else ({}, {})
        latest = next((name for name, seconds in shifts.items() if seconds == 0), None)
        return faults | {name: f"radio {name}: its time is {seconds} s behind that of radio {latest}"
                         for name, seconds in shifts.items() if seconds}

    def compare_again(self) -> None:
        """Let `align` say once more how the radios come to a common time."""
        self._compared = False

    @property
    def _comparable(self) -> bool:
        several = len(self._clocks) > 1
        return not self._waited and all(
            clock.reports >= (MIN_REPORTS if several else 1) and (clock.offset.most_s < math.inf or not several)
            for clock in self._clocks.values())

    def _compare(self) -> tuple[dict[str, int], dict[str, str]]:
        return whole_second_shifts({name: clock.offset for name, clock in self._clocks.items()})

    def begun(self, name: str, sample: int, epoch: int) -> None:
        """A radio's streams run from this sample on, in this epoch."""
        self._known(name)
        self._first[name] = sample
        self._epochs[name] = epoch
        if name in self._waited:
            self._waited.remove(name)
            self._clocks[name] = RadioClock()  # until now its time may have been any

    def interrupted(self, name: str, epoch: int) -> None:
        """A radio is in another epoch, and has yet to begin in it; its time is to be learnt and compared anew."""
        self._known(name)
        self._clocks[name] = RadioClock()
        self._waited.add(name)
        self._compared = False
        self._first.pop(name, None)
        self._epochs[name] = epoch

    @property
    def ready(self) -> bool:
        """Whether all radios stream, and have told a common time."""
        return len(self._first) == len(self._clocks) and self._comparable and not self.apart()

    @property
    def first_sample(self) -> int:
        """First sample that all radios receive."""
        return max(self._first.values())

    @property
    def epoch(self) -> int:
        """The latest epoch of a radio: since then nothing has ended one."""
        return max(self._epochs.values())

    def now(self, local_s: float) -> int:
        """Device time, in samples, at a time of the local clock [s]: that of the latest radio."""
        return round((local_s + max(clock.offset_s for clock in self._clocks.values())) * self._rate)

    def missing(self) -> str:
        """What the run waits for, in words."""
        silent = [name for name, clock in self._clocks.items() if clock.reports == 0]
        if silent:
            return f"no time reported by {_words(silent)}"
        absent = [name for name in self._clocks if name not in self._first]
        if absent:
            return f"no begin of the streams reported by {_words(absent)}"
        if not self._comparable:
            return "too few reports of the time of the radios"
        return "; ".join(self.apart().values())

    def silent(self, local_s: float, limit_s: float) -> list[str]:
        """Radios that have not reported their time for so long."""
        return [name for name, clock in self._clocks.items() if clock.heard_s is None
                or clock.heard_s < local_s - limit_s]

    def _known(self, name: str) -> RadioClock:
        if name not in self._clocks:
            raise ValueError(f"radio {name!r}: the scheduler was given the radios {list(self._clocks)}")
        return self._clocks[name]


def _words(names: Iterable[str]) -> str:
    return ", ".join(f"radio {name}" for name in names)
