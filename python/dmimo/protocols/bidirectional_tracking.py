# SPDX-License-Identifier: GPL-3.0-or-later
"""How the coefficients of both sides go on between two exchanges of a bidirectional run."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..core import csi_tracking
from ..core.carrier_model import MAX_INNOVATION_STD_RAD, wrap
from ..core.cars import at_time
from ..core.ofdm_exchange import OfdmExchange
from .bidirectional_estimate import ExchangeEstimate, SideCalibration, frequency_variance
from .bidirectional_links import Csi
from .bidirectional_plan import BidirectionalPlan

DIRECTIONS: tuple[csi_tracking.Direction, csi_tracking.Direction] = ("uplink", "downlink")
Changes = tuple[csi_tracking.PhaseChange, csi_tracking.PhaseChange]
"""From SRS and from CSI-RS."""
# Changes of delay that are searched for, over the most that the sample clocks should drift, and in any case.
DRIFT_MARGIN, LEAST_SAMPLES = 2.0, 1e-3


class Sides(NamedTuple):
    """Calibration of TRPs and UEs."""

    trp: SideCalibration
    ue: SideCalibration


class Extrapolation:
    """Turns the coefficients of the last exchange by the frequencies that it found.

    Parameters
    ----------
    plan : BidirectionalPlan
    """

    event = "extrapolated"
    doubts: tuple[str, ...] = ()
    """What speaks against the assumptions so far."""

    def __init__(self, plan: BidirectionalPlan):
        self._plan = plan
        self._last: Sides | None = None
        self._anchor: Csi | None = None
        self._frequency_std = Sides(np.zeros(0), np.zeros(0))
        self._apart_hz = np.zeros(0)

    def calibrated(self, estimate: ExchangeEstimate, again: Csi) -> Sides:
        """Take an exchange, with its second soundings."""
        self._last, self._anchor = Sides(estimate.trp, estimate.ue), again
        self._frequency_std = Sides(*(np.sqrt(frequency_variance(self._plan, estimate.frequencies, side))
                                      for side in (0, 1)))
        self._apart_hz = estimate.apart_hz
        return self._last

    def tracked(self, csi: Csi) -> Sides:
        """Coefficients at the time of these soundings.

        Raises
        ------
        DisconnectedLinksError
            If soundings are needed and do not join all ports.
        """
        sample = csi.origin + round(float(csi.g_time.mean()))
        return self._moved(sample)

    def deviation_rad(self, sample: int) -> float:
        """Largest predicted deviation of a phase at a later time."""
        return max(float(side.phase_std_rad.max()) for side in self._moved(sample))

    def _moved(self, sample: int) -> Sides:
        rate = self._plan.grid.samp_rate
        out = []
        for side, spread in zip(self._last, self._frequency_std, strict=True):
            late_s = (sample - side.reference_time) / rate
            # The phase noise of two oscillators, and c turns by twice theirs.
            walk = np.where(spread > 0, 16 * np.pi * self._plan.linewidth_hz * abs(late_s), 0.0)
            std = np.sqrt(side.phase_std_rad**2 + (4 * np.pi * spread * late_s) ** 2 + walk)
            c = at_time(side.c, side.frequency_hz, 0.0, late_s)
            out.append(replace(side, c=c, phase_std_rad=std, reference_time=sample))
        return Sides(*out)


class OneWay(Extrapolation):
    """Turns the coefficients of the last exchange by what its soundings have turned since (quasi-static tracking).

    The TRPs' set follows SRS, the UEs' CSI-RS. The turn over that time also tells the frequencies better than the
    exchange alone, as long as these are good enough to count the full turns.
    """

    event = "tracked"

    def tracked(self, csi: Csi) -> Sides:
        """Coefficients at the time of these soundings, from the phases of all links against those at the exchange."""
        first, num_trp = self._anchor, self._plan.num_trp_ports
        elapsed = csi.origin - first.origin + round(float(csi.g_time.mean() - first.g_time.mean()))
        # What turned in this time after the second soundings turned as much in the same time after the coefficients.
        sample = self._last.trp.reference_time + elapsed
        trp, ue = self._turns(self._changes(first, csi, elapsed))
        self._tracked = Sides(
            self._turned(self._last.trp, trp.turn_trp_rad, trp.delay_trp_s, trp, slice(0, num_trp),
                         self._frequency_std.trp, sample),
            self._turned(self._last.ue, ue.turn_ue_rad, ue.delay_ue_s, ue, slice(num_trp, None),
                         self._frequency_std.ue, sample))
        return self._tracked

    def deviation_rad(self, sample: int) -> float:
        """That of the last tracking: soundings against the exchange's get no worse with time."""
        return max(float(side.phase_std_rad.max()) for side in self._tracked)

    def _turns(self, changes: Changes) -> list[csi_tracking.NodeTurns]:
        """Turns of all ports, from SRS relative to the first TRP's, from CSI-RS relative to the first UE's."""
        return [csi_tracking.node_turns(change, direction=direction, reference=reference) for change, direction,
                reference in zip(changes, DIRECTIONS, (0, self._plan.num_trp_ports), strict=True)]

    def _changes(self, first: Csi, csi: Csi, elapsed: float) -> Changes:
        """What happened to the links in `elapsed` samples since the first soundings, as SRS and as CSI-RS show it.

        Links are sounded one after another; each is brought to the same time by its own frequency.
        """
        plan, rate, out = self._plan, self._plan.grid.samp_rate, []
        drift_s = (DRIFT_MARGIN * plan.cfo_limit_hz / plan.center_freq * abs(elapsed) + LEAST_SAMPLES) / rate
        for before, after, times, sign, exchange, k in (
            (first.g, csi.g, csi.g_time - first.g_time, 1.0, plan.up, plan.up.sounding_subcarriers[None]),
            (first.h, csi.h, csi.h_time - first.h_time, -1.0, plan.down, plan.down.sounding_subcarriers[:, None]),
        ):
            late = csi.origin - first.origin + times - elapsed
            turned = after * np.exp(-2j * np.pi * sign * self._apart_hz * late / rate)[..., None]
            out.append(csi_tracking.phase_change(
                before, turned, subcarriers=k, spacing=plan.grid.subcarrier_spacing_hz,
                max_delay_change=min(drift_s, self._longest_s(exchange))))
        return tuple(out)

    @staticmethod
    def _longest_s(exchange: OfdmExchange) -> float:
        """Change of delay that a comb can tell from an alias."""
        return 0.5 / (exchange.mapping.num_sounding * exchange.grid.subcarrier_spacing_hz)

    def _turned(self, side: SideCalibration, turn: np.ndarray, delay_s: np.ndarray, turns: csi_tracking.NodeTurns,
                own: slice, frequency_std: np.ndarray, sample: int) -> SideCalibration:
        variance, trusted = np.diagonal(turns.covariance)[own], turns.trusted[own]
        seconds = 4.0 * np.pi * (sample - side.reference_time) / self._plan.grid.samp_rate
        # Full turns are counted by the frequency of the exchange.
        residual = wrap(turn - seconds * side.frequency_hz)
        counted = variance + (seconds * frequency_std) ** 2 <= MAX_INNOVATION_STD_RAD**2
        reasons = () if trusted.all() else (f"{int((~trusted).sum())} ports turned by a phase that is not known",)
        return replace(side, c=side.c * np.exp(1j * turn), reference_time=sample, delay_s=side.delay_s + 2.0 * delay_s,
                       frequency_hz=side.frequency_hz + np.where(counted, residual / seconds, 0.0),
                       phase_std_rad=np.sqrt(side.phase_std_rad**2 + variance), trusted=bool(trusted.all()),
                       reasons=reasons)
