# SPDX-License-Identifier: GPL-3.0-or-later
"""Exact arithmetic between UHD's times, (whole seconds, fraction), and integer samples; checks of the boards' clocks.

Sample n of a stream with the rate f_s belongs to the device time n / f_s. A run sets the time of its boards to zero at
a PPS edge: from then on n counts from the run's epoch.
"""

import math
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

MAX_RESIDUAL_SAMPLES = 0.01


class OffGrid(ValueError):
    """A time that belongs to no sample."""


def rate_ratio(samp_rate: float) -> Fraction:
    """Sample rate as a ratio of integers, so that time arithmetic is exact."""
    if not 0 < samp_rate < math.inf:
        raise ValueError(f"samp_rate = {samp_rate}: must be positive")
    return Fraction(samp_rate).limit_denominator(10**6)


def time_of(sample: int, rate: Fraction) -> tuple[int, float]:
    """Device time of a sample, (whole seconds, fraction)."""
    seconds, rest = divmod(sample * rate.denominator, rate.numerator)
    return seconds, rest / rate.numerator


def position(seconds: int, fraction: float, rate: Fraction) -> tuple[int, float]:
    """Sample nearest to a device time, and by how many samples the time lies behind it."""
    # Whole samples in integers; only what is left, less than a second, in floating point.
    whole, rest = divmod(seconds * rate.numerator, rate.denominator)
    exact = (rest + fraction * rate.numerator) / rate.denominator
    sample = round(exact)
    return whole + sample, exact - sample


def sample_of(seconds: int, fraction: float, rate: Fraction) -> int:
    """Sample of a device time; OffGrid if the time lies off the sample grid by more than 0.01 sample."""
    sample, residual = position(seconds, fraction, rate)
    if abs(residual) > MAX_RESIDUAL_SAMPLES:
        raise OffGrid(f"time ({seconds}, {fraction}): {residual:+.3f} samples off the sample grid")
    return sample


def common_second(edges: Sequence[tuple[int, float]]) -> int:
    """Whole second that most boards read at a PPS edge, one that is nearest to what they read."""
    return Counter(_nearest(edges)).most_common(1)[0][0]


def _nearest(edges: Sequence[tuple[int, float]]) -> list[int]:
    # An edge that is latched early reads just less than its second.
    return [seconds + round(fraction) for seconds, fraction in edges]


def boards_apart(offsets: Sequence[tuple[float, float]], rate: Fraction) -> dict[int, str]:
    """Boards whose clocks are apart from those of the others at any one moment, and by how much.

    Boards that were set to one second at different PPS edges read whole seconds at their own edges all the same.

    Parameters
    ----------
    offsets : sequence of (float, float)
        By how much each board's clock is ahead of one and the same clock, at least and at most [s].
    rate : Fraction
        Sample rate: half a sample is tolerated.

    Returns
    -------
    dict
        Text by board number, empty where all may agree. Where the boards are split evenly, those count as right that
        agree with the first one.
    """
    tolerance_s = float(0.5 / rate)

    def agree(one: tuple[float, float], other: tuple[float, float]) -> bool:
        return max(one[0] - other[1], other[0] - one[1]) <= tolerance_s

    right = max(offsets, key=lambda offset: sum(agree(offset, other) for other in offsets), default=(0.0, 0.0))
    return {board: f"is {(sum(offset) - sum(right)) / 2:+.6f} s off from the time of the others: they have no "
                   "common PPS" for board, offset in enumerate(offsets) if not agree(offset, right)}


def disagreeing_boards(edges: Sequence[tuple[int, float]], rate: Fraction) -> dict[int, str]:
    """Boards whose clocks read another time at a PPS edge than the others, or no whole second, and what they say.

    A common PPS that set the clocks to a whole second makes every board read the same whole second at every edge.

    Parameters
    ----------
    edges : sequence of (whole seconds, fraction)
        Time that each board read at the last PPS edge; all at the same one.
    rate : Fraction
        Sample rate: half a sample is tolerated, since PPS edges are latched with the boards' own clocks.

    Returns
    -------
    dict
        Text by board number, empty where all agree. Where the boards are split evenly, those count as right that agree
        with the first one.
    """
    tolerance_s = float(0.5 / rate)
    common = common_second(edges) if edges else 0
    wrong = {}
    for board, (second, (seconds, fraction)) in enumerate(zip(_nearest(edges), edges, strict=True)):
        if second != common:
            wrong[board] = f"reads {second} s at a PPS edge where others read {common} s"
        elif abs(seconds - second + fraction) > tolerance_s:
            wrong[board] = f"reads {seconds + fraction:.9f} s at a PPS edge, not a whole second"
    return wrong
