# SPDX-License-Identifier: GPL-3.0-or-later
"""How the coefficients of both sides go on between two exchanges of a bidirectional run."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..core import csi_tracking
from ..core.carrier_model import MAX_INNOVATION_STD_RAD, wrap
from .bidirectional_estimate import ExchangeEstimate, SideCalibration, frequency_variance
from .bidirectional_links import Csi
from .bidirectional_plan import BidirectionalPlan


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

    def __init__(self, plan: BidirectionalPlan):
        self._plan = plan
        self._last: Sides | None = None
        self._anchor: Csi | None = None
        self._frequency_std = Sides(np.zeros(0), np.zeros(0))
        self._apart_hz = np.zeros(0)

    def calibrated(self, estimate: ExchangeEstimate, csi: Csi) -> Sides:
        """Take an exchange."""
        self._last, self._anchor = Sides(estimate.trp, estimate.ue), csi
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
            turn = np.exp(4j * np.pi * side.frequency_hz * late_s)
            std = np.hypot(side.phase_std_rad, 4 * np.pi * spread * late_s)
            out.append(replace(side, c=side.c * turn, phase_std_rad=std, reference_time=sample))
        return Sides(*out)


class OneWay(Extrapolation):
    """Turns the coefficients of the last exchange by what its soundings have turned since (quasi-static tracking).

    The TRPs' set follows SRS, the UEs' CSI-RS. The turn over that time also tells the frequencies better than the
    exchange alone, as long as these are good enough to count the full turns.
    """

    event = "tracked"

    def tracked(self, csi: Csi) -> Sides:
        """Coefficients at the time of these soundings, from the phases of all links against those at the exchange."""
        first, (trp, ue), num_trp = self._anchor, self._last, self._plan.num_trp_ports
        sample = csi.origin + round(float(csi.g_time.mean()))
        apart = csi.origin - first.origin
        up = self._turns("uplink", first.g, csi.g, apart + csi.g_time - first.g_time, sample, 0)
        down = self._turns("downlink", first.h, csi.h, apart + csi.h_time - first.h_time, sample, num_trp)
        own = slice(0, num_trp), slice(num_trp, None)
        self._tracked = Sides(self._turned(trp, up.turn_trp_rad, up, own[0], self._frequency_std.trp, sample),
                              self._turned(ue, down.turn_ue_rad, down, own[1], self._frequency_std.ue, sample))
        return self._tracked

    def deviation_rad(self, sample: int) -> float:
        """That of the last tracking: soundings against the exchange's get no worse with time."""
        return max(float(side.phase_std_rad.max()) for side in self._tracked)

    def _turns(self, direction: csi_tracking.Direction, before: np.ndarray, after: np.ndarray, late: np.ndarray,
               sample: int, reference: int) -> csi_tracking.NodeTurns:
        """Turns of all ports; links that were sounded at other times are brought to one by their own frequency."""
        excess_s = (late - (sample - self._last.trp.reference_time)) / self._plan.grid.samp_rate
        sign = 1.0 if direction == "uplink" else -1.0
        after = after * np.exp(-2j * np.pi * sign * self._apart_hz * excess_s)[..., None]
        return csi_tracking.node_turns(csi_tracking.phase_change(before, after), direction=direction,
                                       reference=reference)

    def _turned(self, side: SideCalibration, turn: np.ndarray, turns: csi_tracking.NodeTurns, own: slice,
                frequency_std: np.ndarray, sample: int) -> SideCalibration:
        variance, trusted = np.diagonal(turns.covariance)[own], turns.trusted[own]
        seconds = 4.0 * np.pi * (sample - side.reference_time) / self._plan.grid.samp_rate
        # Full turns are counted by the frequency of the exchange.
        residual = wrap(turn - seconds * side.frequency_hz)
        counted = variance + (seconds * frequency_std) ** 2 <= MAX_INNOVATION_STD_RAD**2
        reasons = () if trusted.all() else (f"{int((~trusted).sum())} ports turned by a phase that is not known",)
        return replace(side, c=side.c * np.exp(1j * turn), reference_time=sample,
                       frequency_hz=side.frequency_hz + np.where(counted, residual / seconds, 0.0),
                       phase_std_rad=np.sqrt(side.phase_std_rad**2 + variance), trusted=bool(trusted.all()),
                       reasons=reasons)
