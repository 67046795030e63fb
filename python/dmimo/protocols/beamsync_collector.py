# SPDX-License-Identifier: GPL-3.0-or-later
"""Watches over the synchronisation of all followers: its history, when to synchronise again, when to give up.

The followers measure and correct by themselves. What they report here ends a cold start that failed, says when the
next synchronisation is due, and tells the other roles how the ports stand to each other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .beamsync_plan import FREQUENCY, PHASE, BeamSyncPlan
from .slots import Grant, Product

EXCESS = 3.0  # budgets, a deviation, by which an error shows that the oscillators are worse than assumed
MAX_FAILURES = 5  # synchronisations in a row that a follower may miss before the run ends


@dataclass(frozen=True)
class Pacing:
    """When to synchronise again: limits of the interval in samples, how many watches divide it, the phase error in rad
    that it is for; how many exchanges at the start have no watches between them, and their longest interval."""

    min_samples: int
    max_samples: int
    watches: int = 1
    budget_rad: float = np.inf
    settling: int = 0
    settling_samples: int = 0


class BeamSyncCollector:
    """Collects what the followers report.

    Parameters
    ----------
    plan : BeamSyncPlan
    num_ports : mapping of AP to number of ports, in the order of the calibration's ports
    pacing : Pacing
    amplitudes : ndarray (ports,), optional
        |c| of the ports as their gain settings have it: what the synchronisation finds is phases only.

    Attributes
    ----------
    history : list of dict
        One entry per phase: `phase`, `sample`, and per follower what `FollowerRole.results` gives. A phase stage also
        has `late`, whether it came later than the one before had planned, and `exceeded`, whether a follower was off
        by more than `EXCESS` budgets.
    """

    phases = frozenset({FREQUENCY, PHASE})

    def __init__(self, plan: BeamSyncPlan, num_ports: Mapping[str, int], pacing: Pacing,
                 amplitudes: np.ndarray | None = None):
        self._plan = plan
        self._pacing = pacing
        self._owner = [name for name, count in num_ports.items() for _ in range(count)]
        self._amplitudes = np.ones(len(self._owner)) if amplitudes is None else amplitudes
        self._c = self._amplitudes.astype(complex)
        self._due: int | None = None
        self._caution = 1.0
        self._exchanges = 0
        self._failures = dict.fromkeys(plan.followers, 0)
        self._synchronised: set[str] = set()
        self.history: list[dict[str, object]] = []

    def update(self, product: Product) -> None:
        """Take the internal calibration."""
        if "internal_c" in product.values:
            self._c = self._amplitudes * np.asarray(product.values["internal_c"])

    def produce(self, phase: str, grants: Sequence[Grant], results: Mapping[str, Mapping[str, object]]) -> Product:
        """Product of a phase: after the phase stage `c` of all ports, as other roles take a calibration.

        All followers transmit corrected, so c has one phase at all first ports and nothing turns: `frequency_hz` is 0.
        Its amplitudes are those of the gain settings, its `delay_s` what sub-bands have shown, 0 otherwise.
        """
        missing = sorted(set(self._plan.followers) - set(results))
        reports = {name: results[name] for name in self._plan.followers if name in results}
        sample = max((report["sample"] for report in reports.values()), default=grants[-1].start)
        self.history.append({"phase": phase, "sample": sample, "followers": reports})
        reasons = [f"node {name}: has measured nothing" for name in missing]
        for name, report in reports.items():
            reasons += self._judge(phase, name, report)
        if reasons:
            return Product(phase, {}, False, tuple(reasons))
        if phase == FREQUENCY:
            return Product(phase, {"sample": sample})
        self._judge_timing(grants[0].start, reports)
        delays = {name: report["delay_samples"] / self._plan.samp_rate for name, report in reports.items()}
        values = {"c": self._c, "frequency_hz": np.zeros(self._c.size), "reference_time": sample,
                  "delay_s": np.array([delays.get(name, 0.0) for name in self._owner])}
        values |= {key: np.array([float(report[key]) for report in reports.values()])
                   for key in ("phase_rad", "phase_std_rad", "turn_rad", "turn_hz")}
        return Product(phase, values, pace_samples=self._pace(sample, grants, reports))

    def _judge(self, phase: str, name: str, report: Mapping[str, object]) -> list[str]:
        """Reasons why the run cannot go on with this follower."""
        if report["trusted"]:
            self._failures[name] = 0
            if phase == PHASE:
                self._synchronised.add(name)
            return []
        self._failures[name] += 1
        if report["event"] == "distorted":
            return [f"node {name}: the burst from {self._plan.leader} arrives distorted, as by a delay of a fraction "
                    "of a sample; waveform 'ones' is indifferent to that"]
        if phase == FREQUENCY:
            return [f"node {name}: no frequency offset from {self._plan.leader} that could be trusted (found "
                    f"{report['frequency_hz']:.1f} Hz, predicted deviation {report['frequency_std_hz']:.1f} Hz)"]
        if name in self._synchronised and self._failures[name] < MAX_FAILURES:
            return []
        times = f"{self._failures[name]} times in a row" if name in self._synchronised else "at the first attempt"
        return [f"node {name}: the return from {self._plan.leader} could not be trusted {times} "
                f"({report['event']}, predicted deviation {np.degrees(report['measured_std_rad']):.1f} degrees)"]

    def _judge_timing(self, start: int, reports: Mapping[str, Mapping[str, object]]) -> None:
        """Note whether this exchange came too late, or found more than the plan had allowed for.

        Then the oscillators are worse than assumed: the plan is held to shorter intervals until it is right again.
        """
        known = [report for report in reports.values() if report["event"] == "applied"]
        limit = EXCESS * self._pacing.budget_rad
        surprised = [report["event"] in ("lost", "gated") for report in reports.values()]
        exceeded = self._due is not None and (
            any(abs(report["phase_rad"]) > limit and report["corrected"] for report in known) or any(surprised))
        late = self._due is not None and (
            start > self._due or any(report["event"] == "restarted" for report in reports.values()))
        self._caution = self._caution / 2 if exceeded else min(1.0, 1.2 * self._caution)
        self.history[-1] |= {"late": late, "exceeded": exceeded}

    def _pace(self, sample: int, grants: Sequence[Grant], reports: Mapping[str, Mapping[str, object]]) -> int:
        """Samples between watches, so that the next synchronisation comes when the first budget is used up."""
        pacing = self._pacing
        self._due = min(int(report["next_sample"]) for report in reports.values())
        failing = any(not report["trusted"] for report in reports.values())
        left = int(self._caution * (self._due - sample))
        self._exchanges += 1
        if self._exchanges < pacing.settling:
            interval, parts = min(left, pacing.settling_samples, pacing.max_samples), 1
        else:
            interval, parts = min(max(left, pacing.min_samples), pacing.max_samples), pacing.watches
        if failing:
            interval = pacing.min_samples
        # The exchange itself takes time, and the pace counts from its start.
        return max(1, (interval + sample - grants[0].start) // parts)
