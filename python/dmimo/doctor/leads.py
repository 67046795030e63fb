# SPDX-License-Identifier: GPL-3.0-or-later
"""How far ahead of its time a burst must be handed to the radio."""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

LADDER_S = (0.2, 0.1, 0.05, 0.02, 0.01, 0.005, 0.002, 0.001)


class Step(NamedTuple):
    """So many bursts were handed over `lead_s` before their time, and so many of them were not sent."""

    lead_s: float
    bursts: int
    late: int


class Lead(NamedTuple):
    """Outcome of a ladder.

    smallest_s : smallest lead at which no burst was late, with none late at any longer one; None where there is none.
    steps : what was tried, longest lead first.
    """

    smallest_s: float | None
    steps: list[Step]


def ladder(wanted_s: Sequence[float]) -> list[float]:
    """Leads to try, longest first: those that are wanted, and those of `LADDER_S` that are shorter than the longest."""
    if not wanted_s or min(wanted_s) <= 0:
        raise ValueError(f"wanted_s = {wanted_s}: must be at least one lead, all positive")
    return sorted({*wanted_s, *(lead for lead in LADDER_S if lead < max(wanted_s))}, reverse=True)


def descend(trial: Callable[[float], Step], leads_s: Iterable[float]) -> Lead:
    """Go down until bursts are late: a shorter lead is never safer than a longer one."""
    smallest, steps = None, []
    for lead_s in leads_s:
        steps.append(trial(lead_s))
        if steps[-1].late:
            break
        smallest = lead_s
    return Lead(smallest, steps)


def late_bound(bursts: int, confidence: float = 0.95) -> float:
    """Upper limit of the probability that a burst is late, when none of so many independent ones was.

    Exact (Clopper and Pearson): bursts that are late with probability p are all in time with probability (1 - p)^n.
    """
    if bursts < 1 or not 0 < confidence < 1:
        raise ValueError(f"bursts = {bursts}, confidence = {confidence}: must be at least 1, and between 0 and 1")
    return 1.0 - (1.0 - confidence) ** (1.0 / bursts)
