# SPDX-License-Identifier: GPL-3.0-or-later
"""How the coefficients of both sides go on between two exchanges of a bidirectional run."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np

from ..core import csi_tracking
from ..core.carrier_model import MAX_INNOVATION_STD_RAD, wrap
from ..core.ofdm_exchange import OfdmExchange
from .bidirectional_estimate import ExchangeEstimate, SideCalibration, frequency_variance
from .bidirectional_links import Csi
from .bidirectional_plan import BidirectionalPlan

# Changes of delay that are searched for, over the most that the sample clocks should drift.
DRIFT_MARGIN = 2.0


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
        self._tracked = Sides(
            self._turned(trp, up.turn_trp_rad, up.delay_trp_s, up, own[0], self._frequency_std.trp, sample),
            self._turned(ue, down.turn_ue_rad, down.delay_ue_s, down, own[1], self._frequency_std.ue, sample))
        return self._tracked

    def deviation_rad(self, sample: int) -> float:
        """That of the last tracking: soundings against the exchange's get no worse with time."""
        return max(float(side.phase_std_rad.max()) for side in self._tracked)

    def _turns(self, direction: csi_tracking.Direction, before: np.ndarray, after: np.ndarray, late: np.ndarray,
               sample: int, reference: int) -> csi_tracking.NodeTurns:
        """Turns of all ports; links that were sounded at other times are brought to one by their own frequency."""
        plan, rate = self._plan, self._plan.grid.samp_rate
        elapsed = sample - self._last.trp.reference_time
        sign, mapping = (1.0, plan.up) if direction == "uplink" else (-1.0, plan.down)
        after = after * np.exp(-2j * np.pi * sign * self._apart_hz * (late - elapsed) / rate)[..., None]
        subcarriers = mapping.sounding_subcarriers[None] if direction == "uplink" else (
            mapping.sounding_subcarriers[:, None])
        drift_s = DRIFT_MARGIN * plan.max_cfo_hz / plan.center_freq * elapsed / rate
        change = csi_tracking.phase_change(before, after, subcarriers=subcarriers,
                                           spacing=plan.grid.subcarrier_spacing_hz,
                                           max_delay_change=min(drift_s, self._longest_s(mapping)))
        return csi_tracking.node_turns(change, direction=direction, reference=reference)

    @staticmethod
    def _longest_s(mapping: OfdmExchange) -> float:
        """Change of delay that a comb can tell from an alias."""
        return 0.5 / (mapping.mapping.num_sounding * mapping.grid.subcarrier_spacing_hz)

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
