# SPDX-License-Identifier: GPL-3.0-or-later
"""What time it is on the radios of a run, from what they report; and how they come to a common time.

A radio reports its device time t in messages that arrive at the times a of this computer's monotonic clock, each later
by the delay D >= 0 of the message. With t = a - D + offset, the offset between the two clocks is the maximum of t - a
over messages, approached from below: late messages change nothing as long as some are punctual. Crystals drift apart
by microseconds a second, so that old messages are forgotten.

Radios that take their time at edges of one PPS differ by whole seconds, since each computer chooses its own edge. They
are shifted to the latest of them.
"""

from collections import deque
from collections.abc import Iterable, Mapping, Sequence

from .radio_time import rate_ratio

MEMORY_S = 10.0
MIN_REPORTS = 8  # before several radios are compared; one of so many messages is punctual
MANY_REPORTS = 100  # before one is accused: on a busy computer seconds may pass without a punctual message
# From a whole second: messages were 0.22 s late on a busy computer; without a common PPS it is less by chance in 0.56.
MAX_FRACTION_S = 0.28


class RadioClock:
    """Estimates how far a radio's device time is ahead of a local clock.

    Parameters
    ----------
    memory_s : float
        How long a report counts.
    """

    def __init__(self, memory_s: float = MEMORY_S):
        self._memory_s = memory_s
        # Offsets that may still become the maximum: each is smaller than those before it.
        self._offsets: deque[tuple[float, float]] = deque()
        self.reports = 0
        self.heard_s: float | None = None

    def report(self, device_s: float, arrival_s: float) -> None:
        """Take a report of the device time that arrived at a time of the local clock [s]."""
        offset = device_s - arrival_s
        while self._offsets and self._offsets[-1][1] <= offset:
            self._offsets.pop()
        self._offsets.append((arrival_s, offset))
        while self._offsets[0][0] < arrival_s - self._memory_s:
            self._offsets.popleft()
        self.reports += 1
        self.heard_s = arrival_s

    @property
    def offset_s(self) -> float:
        """Device time minus local time [s], too small by the delay of the most punctual report."""
        if not self._offsets:
            raise ValueError("offset_s: the radio has not reported its time")
        return self._offsets[0][1]


def whole_second_shifts(offsets_s: Mapping[str, float]) -> tuple[dict[str, int], dict[str, str]]:
    """Whole seconds by which each clock must be set forward to agree with the latest one, and what is wrong.

    Parameters
    ----------
    offsets_s : mapping of name to float
        How far each clock is ahead of one and the same other clock [s].

    Returns
    -------
    shifts : mapping of name to int
        Not negative; empty if anything is wrong.
    faults : mapping of name to str
        What is wrong with each clock that is off a whole second from the others. Where as many agree on one fraction of
        a second as on another, those count as right that agree with the first clock.
    """
    names = list(offsets_s)
    right = max(names, key=lambda name: sum(abs(_off_second(offsets_s[other] - offsets_s[name])) <= MAX_FRACTION_S
                                            for other in names))
    off = {name: _off_second(offsets_s[name] - offsets_s[right]) for name in names}
    faults = {name: f"radio {name}: its time is {fraction:+.2f} s off a whole second from that of radio {right}: they "
                    "have no common PPS" for name, fraction in off.items() if abs(fraction) > MAX_FRACTION_S}
    if faults:
        return {}, faults
    seconds = {name: round(offsets_s[name] - offsets_s[right]) for name in names}
    latest = max(seconds.values())
    return {name: latest - second for name, second in seconds.items()}, {}


def _off_second(difference_s: float) -> float:
    """Difference from the nearest whole second."""
    return difference_s - round(difference_s)


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

    def report(self, name: str, sample: int, arrival_s: float) -> None:
        """A radio's device time, in samples, has arrived at a time of the local clock [s]."""
        self._known(name).report(sample / self._rate, arrival_s)

    def align(self) -> tuple[dict[str, int], dict[str, str]]:
        """Whole seconds by which to shift each radio, and faults, as `whole_second_shifts`.

        Given once at the start and once after every epoch that has ended, as soon as enough reports have come from all,
        and many where they do not agree; empty otherwise.
        """
        if self._compared or not self._comparable:
            return {}, {}
        shifts, faults = self._compare()
        if faults and any(clock.reports < MANY_REPORTS for clock in self._clocks.values()):
            return {}, {}
        self._compared = True
        return shifts, faults

    def apart(self) -> dict[str, str]:
        """What is wrong with radios that do not have the time of the others, by name; empty where that is not known.

        A clock that has been set back is found out when its old reports are forgotten.
        """
        shifts, faults = self._compare() if self._comparable else ({}, {})
        latest = next((name for name, seconds in shifts.items() if seconds == 0), None)
        return faults | {name: f"radio {name}: its time is {seconds} s behind that of radio {latest}"
                         for name, seconds in shifts.items() if seconds}

    def compare_again(self) -> None:
        """Let `align` say once more how the radios come to a common time."""
        self._compared = False

    @property
    def _comparable(self) -> bool:
        enough = MIN_REPORTS if len(self._clocks) > 1 else 1
        return not self._waited and all(clock.reports >= enough for clock in self._clocks.values())

    def _compare(self) -> tuple[dict[str, int], dict[str, str]]:
        return whole_second_shifts({name: clock.offset_s for name, clock in self._clocks.items()})

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
