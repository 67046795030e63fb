# SPDX-License-Identifier: GPL-3.0-or-later
"""Kalman tracking of a bidirectional run: all exchanges and soundings so far, weighted by what they are worth."""

from contextlib import suppress
from dataclasses import replace

import numpy as np

from ..core.bidirectional import DisconnectedLinksError
from ..core.carrier_model import wrap
from ..core.coefficient_tracking import CoefficientTracker
from .bidirectional_estimate import ExchangeEstimate, SideCalibration
from .bidirectional_frequency import LEAST_STD_RAD
from .bidirectional_links import Csi
from .bidirectional_plan import BidirectionalPlan
from .bidirectional_tracking import DIRECTIONS, Changes, OneWay, Sides

# Events of a tracker whose measurement counted.
TAKEN = frozenset({"started", "applied"})
# Exchanges whose sizes and delays are averaged, and deviations from their mean beyond which these have changed.
WINDOW, MAX_DEVIATIONS = 16, 6.0
SLACK = 0.02  # of log c, for what is no noise
# Exchanges from which their misses are judged, and deviations that these may have.
LEAST_EXCHANGES, MAX_SURPRISE = 5, 2.0
# Share of the exchanges with which the filter may begin anew.
MAX_SHARE = 0.3


class Filtered(OneWay):
    """Phases and frequencies from a Kalman filter for each side; sizes and delays are means over the last exchanges.

    Soundings count against those of the first exchange, for as long as the channel stays. Where a port does not go on
    as the filter expects (its oscillator has jumped, its channel has changed), the soundings are taken against the last
    exchange instead, the next exchange is due, and the filter begins anew with it.

    Parameters
    ----------
    plan : BidirectionalPlan
        With the linewidth.
    drift_hz, drift_period_s : float
        Of each oscillator, as in `core.carrier_model`.
    """

    def __init__(self, plan: BidirectionalPlan, *, drift_hz: float, drift_period_s: float):
        super().__init__(plan)
        self._settings = {"linewidth_hz": plan.linewidth_hz, "drift_hz": drift_hz, "drift_period_s": drift_period_s}
        self._surprises: list[float] = []
        self._exchanges = self._begins = 0
        self._trackers: Sides | None = None
        self._first: Csi | None = None
        self._first_sample, self._stale = 0, True

    def calibrated(self, estimate: ExchangeEstimate, again: Csi) -> Sides:
        """Take an exchange; coefficients at the time of its second soundings."""
        super().calibrated(estimate, again)
        sample = again.origin + round(float(again.g_time.mean()))
        grown = None
        if not self._stale:
            self._surprises.append(self._surprise(estimate))
        if not self._stale and self._take(estimate):
            with suppress(DisconnectedLinksError):  # the channel has changed
                grown = self._grown(self._changes(self._first, again, sample - self._first_sample))
        self._exchanges += 1
        if grown is None:
            self._begins += 1
            grown = self._begin(estimate, again, sample)
        tolerance = MAX_DEVIATIONS * float(np.median(estimate.trp_links.delay_std_s[estimate.used]))
        for side, size, delay, growth in zip(self._last, self._log_size, self._delay, grown, strict=True):
            size.add(np.log(np.abs(side.c)), MAX_DEVIATIONS * side.phase_std_rad + SLACK)
            delay.add(side.delay_s - growth, tolerance)
        return self._predicted(sample, grown)

    def tracked(self, csi: Csi) -> Sides:
        """Coefficients at the time of these soundings."""
        if not self._stale:
            sample = csi.origin + round(float(csi.g_time.mean()))
            changes = self._changes(self._first, csi, sample - self._first_sample)
            for tracker, change in zip(self._trackers, changes, strict=True):
                measured = change.trusted & tracker.referenced
                applied = tracker.update_csi(
                    change.phase_rad, np.where(measured, np.maximum(change.phase_std_rad, LEAST_STD_RAD) ** 2, np.inf),
                    sample)
                self._stale |= tracker.event not in TAKEN or _misses(applied, measured)
        self.event = "tracked" if self._stale else "filtered"
        return super().tracked(csi) if self._stale else self._predicted(sample, self._grown(changes))

    def deviation_rad(self, sample: int) -> float:
        """Largest predicted deviation of a phase at a later time; inf where the filter has to begin anew."""
        if self._stale:
            return np.inf
        num_trp = self._plan.num_trp_ports
        trp, ue = (tracker.predict(sample).phase_std_rad for tracker in self._trackers)
        return max(float(trp[:num_trp].max()), float(ue[num_trp:].max()))

    @property
    def doubts(self) -> tuple[str, ...]:
        """Whether exchanges and soundings miss what the filter predicts for them by more than it allows for."""
        if self._begins > max(2, MAX_SHARE * self._exchanges):
            return (f"the filter began anew with {self._begins} of {self._exchanges} exchanges: oscillators are worse "
                    "than linewidth_hz, drift_hz and drift_period_s say, or channels change",)
        ratio = np.sqrt(np.median(self._surprises)) if len(self._surprises) >= LEAST_EXCHANGES else 0.0
        if ratio <= MAX_SURPRISE:
            return ()
        return (f"exchanges miss the predicted phases by {ratio:.1f} deviations: the oscillators are worse than "
                "linewidth_hz, drift_hz and drift_period_s say",)

    def _surprise(self, estimate: ExchangeEstimate) -> float:
        """Mean square of the phases of an exchange against those predicted for it, over the variance of both."""
        num_trp, squares = self._plan.num_trp_ports, []
        for tracker, side, own in zip(self._trackers, (estimate.trp, estimate.ue),
                                      (slice(1, num_trp), slice(num_trp + 1, None)), strict=True):
            known = tracker.predict(side.reference_time)
            missed = wrap(np.angle(side.c[1:]) - np.concatenate([known.phase_trp_rad, known.phase_ue_rad])[own])
            squares.append(missed**2 / (known.phase_std_rad[own] ** 2 + side.phase_std_rad[1:] ** 2))
        return float(np.mean(np.concatenate(squares)))

    def _begin(self, estimate: ExchangeEstimate, again: Csi, sample: int) -> Sides:
        """Forget the past: filters that have seen this exchange only; returns the growth of delays, none."""
        plan, counts = self._plan, (self._plan.num_trp_ports, self._plan.num_ue_ports)
        oscillators = np.concatenate([plan.node_of_trp_port, len(plan.trps) + plan.node_of_ue_port])
        self._trackers = Sides(*(CoefficientTracker(
            plan.grid.samp_rate, num_trp=counts[0], num_ue=counts[1], offset_std_hz=plan.cfo_limit_hz,
            direction=direction, reference=reference, oscillators=oscillators, **self._settings)
            for direction, reference in zip(DIRECTIONS, (0, counts[0]), strict=True)))
        self._take(estimate)
        for tracker in self._trackers:
            tracker.set_reference(sample)
        self._first, self._first_sample, self._stale = again, sample, False
        self._log_size, self._delay = Sides(_Mean(), _Mean()), Sides(_Mean(), _Mean())
        return Sides(np.zeros(counts[0]), np.zeros(counts[1]))

    def _take(self, estimate: ExchangeEstimate) -> bool:
        """Give an exchange to the filters; whether they go on with all ports."""
        links, goes_on = estimate.link_frequencies, True
        # The phase noise of a node is common to all its links, and not averaged by them.
        walk = (max(estimate.used.shape) - 1) * links.walk_std_hz**2
        frequency_var = np.where(links.trusted, links.frequency_std_hz**2 + walk, np.inf)
        for tracker, phase, std in zip(self._trackers, (estimate.trp_phase, estimate.ue_phase),
                                       (estimate.trp_links.phase_std_rad, estimate.ue_links.phase_std_rad.T),
                                       strict=True):
            variance = np.where(estimate.used, np.maximum(std, LEAST_STD_RAD) ** 2, np.inf)
            applied = tracker.update_calibration(phase, variance,
                                                 estimate.trp.reference_time, links.frequency_hz, frequency_var)
            goes_on &= tracker.event in TAKEN and not _misses(applied, estimate.used)
        return goes_on

    def _grown(self, changes: Changes) -> Sides:
        """How much the delays of c have grown since the first soundings."""
        trp, ue = self._turns(changes)
        return Sides(2.0 * trp.delay_trp_s, 2.0 * ue.delay_ue_s)

    def _predicted(self, sample: int, grown: Sides) -> Sides:
        num_trp = self._plan.num_trp_ports
        own = slice(0, num_trp), slice(num_trp, None)
        return Sides(*(_side(*parts, sample) for parts in zip(
            self._last, self._trackers, own, self._log_size, self._delay, grown, strict=True)))


def _side(last: SideCalibration, tracker: CoefficientTracker, own: slice, log_size: "_Mean", delay: "_Mean",
          growth: np.ndarray, sample: int) -> SideCalibration:
    """Calibration of the ports `own` as the filter predicts it."""
    known = tracker.predict(sample)
    phase = np.concatenate([known.phase_trp_rad, known.phase_ue_rad])[own]
    return replace(last, c=np.exp(log_size.value + 1j * phase), delay_s=delay.value + growth,
                   frequency_hz=known.oscillator_hz[own] - known.oscillator_hz[own][0],
                   covariance=known.covariance[own, own], phase_std_rad=known.phase_std_rad[own],
                   reference_time=sample)


def _misses(applied: np.ndarray, measured: np.ndarray) -> bool:
    """Whether a port lost more than half of its measured links (M, N): it turned, not they."""
    left_out = measured & ~applied
    return any(np.any(2 * left_out.sum(axis=axis) > measured.sum(axis=axis)) for axis in (0, 1))


class _Mean:
    """Mean of the last arrays, which begins anew where one of them is too far away."""

    def __init__(self):
        self.value, self._count = 0.0, 0

    def add(self, values: np.ndarray, tolerance: np.ndarray | float) -> None:
        if np.any(np.abs(values - self.value) > tolerance):
            self._count = 0
        self._count = min(self._count + 1, WINDOW)
        self.value = self.value + (values - self.value) / self._count
