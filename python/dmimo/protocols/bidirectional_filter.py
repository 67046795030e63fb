# SPDX-License-Identifier: GPL-3.0-or-later
"""Kalman tracking of a bidirectional run: all exchanges and soundings so far, weighted by what they are worth."""

from contextlib import suppress
from dataclasses import replace

import numpy as np

from ..core.bidirectional import DisconnectedLinksError
from ..core.coefficient_tracking import CoefficientTracker
from .bidirectional_estimate import ExchangeEstimate, SideCalibration
from .bidirectional_links import Csi
from .bidirectional_plan import BidirectionalPlan
from .bidirectional_tracking import DIRECTIONS, Changes, OneWay, Sides

# Events of a tracker whose measurement counted.
TAKEN = frozenset({"started", "applied", "restarted", "lost"})


class Filtered(OneWay):
    """Phases and frequencies from a Kalman filter for each side; sizes and delays are means over the exchanges.

    Soundings count against those of the first exchange, for as long as the channel stays: after some that did not fit,
    the next exchange begins anew.

    Parameters
    ----------
    plan : BidirectionalPlan
    linewidth_hz, drift_hz, drift_period_s : float
        Of each oscillator, as in `core.carrier_model`.
    """

    event = "filtered"

    def __init__(self, plan: BidirectionalPlan, *, linewidth_hz: float, drift_hz: float, drift_period_s: float):
        super().__init__(plan)
        counts = plan.num_trp_ports, plan.num_ue_ports
        oscillators = np.concatenate([plan.node_of_trp_port, len(plan.trps) + plan.node_of_ue_port])
        self._trackers = Sides(*(CoefficientTracker(
            plan.grid.samp_rate, num_trp=counts[0], num_ue=counts[1], linewidth_hz=linewidth_hz, drift_hz=drift_hz,
            drift_period_s=drift_period_s, offset_std_hz=plan.max_cfo_hz, direction=direction, reference=reference,
            oscillators=oscillators)
            for direction, reference in zip(DIRECTIONS, (0, counts[0]), strict=True)))
        self._first: Csi | None = None
        self._first_sample, self._stale = 0, True
        self._log_size = Sides(_Mean(), _Mean())
        self._delay = Sides(_Mean(), _Mean())

    def calibrated(self, estimate: ExchangeEstimate, csi: Csi, again: Csi) -> Sides:
        """Take an exchange; coefficients at the time of its second soundings."""
        super().calibrated(estimate, csi, again)
        sample = again.origin + round(float(again.g_time.mean()))
        links = estimate.link_frequencies
        frequency_var = np.where(links.trusted, links.frequency_std_hz**2, np.inf)
        for tracker, phase, std in zip(self._trackers, (estimate.trp_phase, estimate.ue_phase),
                                       (estimate.trp_links.phase_std_rad, estimate.ue_links.phase_std_rad.T),
                                       strict=True):
            tracker.update_calibration(phase, np.where(estimate.used, std**2, np.inf), estimate.trp.reference_time,
                                       links.frequency_hz, frequency_var)
        grown = None
        if not self._stale and all(tracker.referenced.any() for tracker in self._trackers):
            with suppress(DisconnectedLinksError):  # the channel has changed
                grown = self._grown(self._changes(self._first, again, sample - self._first_sample))
        if grown is None:
            self._first, self._first_sample, self._stale = again, sample, False
            self._delay, grown = Sides(_Mean(), _Mean()), Sides(0.0, 0.0)
            for tracker in self._trackers:
                tracker.set_reference(sample)
        for side, size, delay, growth in zip(self._last, self._log_size, self._delay, grown, strict=True):
            size.add(np.log(np.abs(side.c)))
            delay.add(side.delay_s - growth)
        return self._predicted(sample, grown)

    def tracked(self, csi: Csi) -> Sides:
        """Coefficients at the time of these soundings."""
        sample = csi.origin + round(float(csi.g_time.mean()))
        changes = self._changes(self._first, csi, sample - self._first_sample)
        for tracker, change in zip(self._trackers, changes, strict=True):
            variance = np.where(change.trusted, change.phase_std_rad**2, np.inf)
            tracker.update_csi(change.phase_rad, variance, sample)
            self._stale |= tracker.event not in TAKEN
        return self._predicted(sample, self._grown(changes))

    def deviation_rad(self, sample: int) -> float:
        """Largest predicted deviation of a phase at a later time."""
        num_trp = self._plan.num_trp_ports
        trp, ue = (tracker.predict(sample).phase_std_rad for tracker in self._trackers)
        return max(float(trp[:num_trp].max()), float(ue[num_trp:].max()))

    def _grown(self, changes: Changes) -> Sides:
        """How much the delays of c have grown since the first soundings."""
        trp, ue = self._turns(changes)
        return Sides(2.0 * trp.delay_trp_s, 2.0 * ue.delay_ue_s)

    def _predicted(self, sample: int, grown: Sides) -> Sides:
        num_trp = self._plan.num_trp_ports
        own = slice(0, num_trp), slice(num_trp, None)
        return Sides(*(self._side(*parts, sample) for parts in zip(
            self._last, self._trackers, own, self._log_size, self._delay, grown, strict=True)))

    def _side(self, last: SideCalibration, tracker: CoefficientTracker, own: slice, log_size: "_Mean", delay: "_Mean",
              growth: np.ndarray, sample: int) -> SideCalibration:
        known = tracker.predict(sample)
        phase = np.concatenate([known.phase_trp_rad, known.phase_ue_rad])[own]
        reasons = () if tracker.event in TAKEN else (f"soundings do not fit the track ({tracker.event})",)
        return replace(last, c=np.exp(log_size.value + 1j * phase), delay_s=delay.value + growth,
                       frequency_hz=known.oscillator_hz[own] - known.oscillator_hz[own][0],
                       covariance=known.covariance[own, own], phase_std_rad=known.phase_std_rad[own],
                       reference_time=sample, trusted=not reasons, reasons=reasons)


class _Mean:
    """Mean of arrays as they come."""

    def __init__(self):
        self.value, self._count = 0.0, 0

    def add(self, values: np.ndarray) -> None:
        self._count += 1
        self.value = self.value + (values - self.value) / self._count
