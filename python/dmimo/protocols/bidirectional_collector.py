# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns each pattern of a bidirectional run into the calibration of both sides."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..core.bidirectional import DisconnectedLinksError
from . import bidirectional_arrivals
from .bidirectional_estimate import Estimator, ExchangeEstimate, SideCalibration, estimate_exchange
from .bidirectional_frequency import UnknownFrequenciesError
from .bidirectional_links import Carriers, Csi, Links
from .bidirectional_plan import EXCHANGE, TRACKING, BidirectionalPlan
from .bidirectional_tracking import Extrapolation
from .slots import Grant, Product, Slot

# Exchanges in a row that may fail, once there is a calibration, before the run does.
MAX_FAILURES = 3
# A carrier this many deviations from what the frequencies say was read an alias away.
MAX_CARRIER_DEVIATIONS = 5.0


class BidirectionalCollector:
    """Calibrates both sides in the patterns that ask for it, tracks them in all, and says when the next one is due.

    Parameters
    ----------
    plan : BidirectionalPlan
    schedule_slots : sequence of Slot
    tracking : Extrapolation
        How the coefficients go on between exchanges.
    estimator : "joint_ml" or "ml_tls"
    pattern_samples : int
        Length of a TDD pattern.
    budget_rad : float, optional
        An exchange is due when a phase is predicted to deviate by more in the next pattern; None: in every pattern.
    keeps_csi : bool
        Keep the channels of the whole run in `csi`.

    Attributes
    ----------
    calibration, ue_calibration : SideCalibration or None
        As last published.
    estimate : ExchangeEstimate or None
        Of the last exchange.
    history : list of dict
        One entry per phase.
    csi : list of (phase, arrays by name)
        Channels of each phase, see `Csi`; those of exchanges with the two-way coefficients `c_trp`, `c_ue` and their
        times `c_trp_time`, `c_ue_time`, see `Coefficients`.
    """

    phases = frozenset({EXCHANGE, TRACKING})

    def __init__(self, plan: BidirectionalPlan, schedule_slots: Sequence[Slot], tracking: Extrapolation, *,
                 estimator: Estimator = "joint_ml", pattern_samples: int = 0, budget_rad: float | None = None,
                 keeps_csi: bool = False):
        self._plan, self._links, self._tracking = plan, Links(plan, schedule_slots), tracking
        self._estimator, self._pattern_samples, self._keeps_csi = estimator, pattern_samples, keeps_csi
        self._budget_rad, self._due, self._failures = budget_rad, True, 0
        self.calibration: SideCalibration | None = None
        self.ue_calibration: SideCalibration | None = None
        self.estimate: ExchangeEstimate | None = None
        self.history: list[dict[str, object]] = []
        self.csi: list[tuple[str, dict[str, np.ndarray]]] = []

    @property
    def doubts(self) -> tuple[str, ...]:
        """What speaks against the calibration so far."""
        failed, doubts = [entry for entry in self.history if entry["event"] == "untrusted"], self._tracking.doubts
        if self._plan.form != "inverse":
            doubts += (f"answers of form {self._plan.form} hold no amplitudes: all |c| are taken as equal",)
        if not failed:
            return doubts
        return (*doubts, f"{len(failed)} of {len(self.history)} measurements were not trusted and not applied, the "
                f"first because {'; '.join(failed[0]['reasons'])}")

    def update(self, product: Product) -> None:
        """The calibration needs nothing from other phases."""

    def produce(self, phase: str, grants: Sequence[Grant], results: Mapping[str, Mapping[str, object]]) -> Product:
        """Both sides' calibration: `c`, `delay_s`, `frequency_hz`, `reference_time` of the TRPs, `ue_c`, ... of the
        UEs, and `calibrates`, whether the next exchange is due.
        """
        reasons: tuple[str, ...] = ()
        if phase == TRACKING or self._due:
            silent = [name for name in (*self._plan.trps, *self._plan.ues) if name not in results]
            if silent:
                return Product(phase, {}, False, tuple(f"node {name}: has measured nothing" for name in silent))
            csi = self._links.csi(grants, results, tracking=phase == TRACKING)
            if self._keeps_csi:
                self.csi.append((phase, csi._asdict()))
            reasons = self._exchange(grants, results, csi) if phase == EXCHANGE else self._track(csi)
        if reasons:
            return Product(phase, {}, False, reasons)
        return Product(phase, self._values(), pace_samples=self._pattern_samples // 2 or None)

    def _exchange(self, grants: Sequence[Grant], results, csi: Csi) -> tuple[str, ...]:
        """Calibrate; reasons why the run cannot go on."""
        read = self._links.coefficients(grants, results)
        if self._keeps_csi:
            self.csi[-1][1].update(c_trp=read.trp, c_ue=read.ue, c_trp_time=read.trp_time, c_ue_time=read.ue_time)
        arrived, carriers = bidirectional_arrivals.arrivals(self._plan, csi), self._links.carriers_hz(results)
        reasons = bidirectional_arrivals.doubts(self._plan, arrived) or self._strange_carriers(carriers)
        if reasons:
            return self._failed(EXCHANGE, csi, reasons)
        try:
            estimate = estimate_exchange(self._plan, read, csi, arrived, self._estimator)
            reasons = self._doubts(estimate, carriers, csi)
        except DisconnectedLinksError as error:
            reasons = (self._named(error),)
        except UnknownFrequenciesError as error:
            reasons = (str(error),)
        if reasons:
            return self._failed(EXCHANGE, csi, reasons)
        sides = self._tracking.calibrated(estimate, read.again)
        if sides.trp.reasons or sides.ue.reasons:
            return self._failed(EXCHANGE, csi, sides.trp.reasons + sides.ue.reasons)
        self._failures, self.estimate = 0, estimate
        self.calibration, self.ue_calibration = sides
        self._note(EXCHANGE, "calibrated")
        return ()

    def _track(self, csi: Csi) -> tuple[str, ...]:
        """Move on; reasons why the run cannot go on."""
        try:
            sides = self._tracking.tracked(csi)
            reasons = sides.trp.reasons + sides.ue.reasons
        except DisconnectedLinksError as error:
            reasons = (self._named(error),)
        self._due = True
        if reasons:
            return self._failed(TRACKING, csi, reasons)
        self._failures = 0
        self.calibration, self.ue_calibration = sides
        if self._budget_rad is not None:
            later = self.calibration.reference_time + self._pattern_samples
            self._due = self._tracking.deviation_rad(later) > self._budget_rad
        self._note(TRACKING, self._tracking.event)
        return ()

    def _failed(self, phase: str, csi: Csi, reasons: tuple[str, ...]) -> tuple[str, ...]:
        """Note a measurement that is not applied; the reasons again where nothing else is left."""
        self._failures += 1
        self.history.append({"phase": phase, "sample": csi.origin, "event": "untrusted", "reasons": reasons})
        return reasons if self.calibration is None or self._failures >= MAX_FAILURES else ()

    def _values(self) -> dict[str, object]:
        values: dict[str, object] = {"calibrates": self._due}
        for prefix, side in (("", self.calibration), ("ue_", self.ue_calibration)):
            for key in ("c", "delay_s", "frequency_hz", "phase_std_rad"):
                values[prefix + key] = getattr(side, key)
            values[f"{prefix}reference_time"] = int(side.reference_time)
        return values

    def _note(self, phase: str, event: str) -> None:
        self.history.append({
            "phase": phase, "sample": int(self.calibration.reference_time), "event": event,
            "used": self.estimate.used.copy(),
            **{f"{name}_{key}": getattr(side, key) for name, side in (("trp", self.calibration),
                                                                      ("ue", self.ue_calibration))
               for key in ("c", "delay_s", "frequency_hz", "phase_std_rad")}})

    def _named(self, error: DisconnectedLinksError) -> str:
        plan = self._plan
        names = [f"{name}:{port}" for name in (*plan.trps, *plan.ues) for port in range(plan.num_ports[name])]
        parts = ", ".join("{" + ", ".join(names[port] for port in part) + "}" for part in error.components)
        return f"the links above their thresholds do not join all ports; the parts are {parts}"

    def _strange_carriers(self, found: Carriers) -> tuple[str, ...]:
        """The node with the mean carrier farthest from zero, where no oscillators within the limit can make it."""
        limit = self._plan.cfo_limit_hz
        name = max(found, key=lambda node: abs(found[node][0]))
        hertz, std = found[name]
        if abs(hertz) <= limit + MAX_CARRIER_DEVIATIONS * std:
            return ()
        return (f"node {name}: carriers are {hertz:.0f} Hz off: oscillators differ by more than "
                f"{self._limit_in_words()}",)

    def _limit_in_words(self) -> str:
        plan = self._plan
        return (f"the {plan.unambiguous_cfo_hz:.0f} Hz that the slots can tell" if plan.max_cfo_hz is None else
                f"max_cfo_hz = {plan.max_cfo_hz:g}")

    def _doubts(self, estimate: ExchangeEstimate, carriers: Carriers, csi: Csi) -> tuple[str, ...]:
        """Frequencies beyond what the exchange can tell: larger than expected, or not those that the symbols show."""
        plan, apart = self._plan, estimate.apart_hz
        deviation = np.sqrt(np.diagonal(estimate.frequencies.covariance).max())
        worst = float(np.abs(apart[estimate.used]).max())
        if worst > plan.cfo_limit_hz + 4.0 * deviation:
            return (f"oscillators of a TRP and a UE differ by {worst:.0f} Hz: more than {self._limit_in_words()}",)
        if not estimate.frequencies.trusted.all():
            return ("the frequencies of the links contradict each other: oscillators drift within the exchange, or "
                    "differ by more than it can tell",)
        if estimate.contradicts.any():
            return (f"{int(estimate.contradicts.sum())} of {int(estimate.used.sum())} links contradict the others",)
        reasons = []
        for name, (hertz, std) in carriers.items():
            own = plan.ports(name)
            energy, beat = ((csi.g[own], apart[own]) if name in plan.trps else (csi.h[:, own], -apart[:, own]))
            weights = np.mean(np.abs(energy) ** 2, axis=-1)
            expected = float(np.sum(weights * beat) / np.sum(weights))
            if abs(hertz - expected) > max(plan.unambiguous_cfo_hz, MAX_CARRIER_DEVIATIONS * std):
                reasons.append(f"node {name}: carriers are {hertz:.0f} Hz off, not {expected:.0f} Hz: beyond the "
                               f"{plan.unambiguous_cfo_hz:.0f} Hz that the exchange can tell; shorter slots allow more")
        return tuple(reasons)
