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

MAX_FAILURES = 5  # synchronisations in a row that a follower may miss before the run ends


@dataclass(frozen=True)
class Pacing:
    """When to synchronise again: limits of the interval in samples, and how many watches divide it."""

    min_samples: int
    max_samples: int
    watches: int = 1


class BeamSyncCollector:
    """Collects what the followers report.

    Parameters
    ----------
    plan : BeamSyncPlan
    num_ports : mapping of AP to number of ports, in the order of the calibration's ports
    pacing : Pacing

    Attributes
    ----------
    history : list of dict
        One entry per phase: `phase`, `sample`, and per follower what `FollowerRole.results` gives.
    """

    phases = frozenset({FREQUENCY, PHASE})

    def __init__(self, plan: BeamSyncPlan, num_ports: Mapping[str, int], pacing: Pacing):
        self._plan = plan
        self._pacing = pacing
        self._c = np.ones(sum(num_ports.values()), complex)
        self._failures = dict.fromkeys(plan.followers, 0)
        self._synchronised: set[str] = set()
        self.history: list[dict[str, object]] = []

    def update(self, product: Product) -> None:
        """Take the internal calibration."""
        if "internal_c" in product.values:
            self._c = np.asarray(product.values["internal_c"])

    def produce(self, phase: str, grants: Sequence[Grant], results: Mapping[str, Mapping[str, object]]) -> Product:
        """Product of a phase: after the phase stage `c` of all ports, as other roles take a calibration.

        All followers transmit corrected, so c is the internal calibration, of one phase at all first ports, and nothing
        turns: `frequency_hz` and `delay_s` are zero.
        """
        missing = sorted(set(self._plan.followers) - set(results))
        reports = {name: results[name] for name in self._plan.followers if name in results}
        self.history.append({"phase": phase, "sample": max(report["sample"] for report in reports.values()),
                             "followers": reports} if reports else {"phase": phase, "followers": {}})
        reasons = [f"node {name}: has measured nothing" for name in missing]
        for name, report in reports.items():
            reasons += self._judge(phase, name, report)
        if reasons:
            return Product(phase, {}, False, tuple(reasons))
        sample = self.history[-1]["sample"]
        if phase == FREQUENCY:
            return Product(phase, {"sample": sample})
        zeros = np.zeros(self._c.size)
        values = {"c": self._c, "frequency_hz": zeros, "delay_s": zeros, "reference_time": sample}
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

    def _pace(self, sample: int, grants: Sequence[Grant], reports: Mapping[str, Mapping[str, object]]) -> int:
        """Samples between watches, so that the next synchronisation comes when the first budget is used up."""
        pacing = self._pacing
        failing = any(not report["trusted"] for report in reports.values())
        left = min(int(report["next_sample"]) for report in reports.values()) - sample
        interval = pacing.min_samples if failing else min(max(left, pacing.min_samples), pacing.max_samples)
        # The exchange itself takes time, and the pace counts from its start.
        return max(1, (interval + sample - grants[0].start) // pacing.watches)
