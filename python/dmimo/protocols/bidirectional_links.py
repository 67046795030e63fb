# SPDX-License-Identifier: GPL-3.0-or-later
"""From what all nodes report of a pattern to arrays over links, each with the time that it belongs to."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from ..core import sounding
from ..core.cars import midpoint_s
from ..core.waveforms import SoundingSymbol
from .bidirectional_plan import (
    CSI_RS,
    CSI_RS_PAIR,
    DL_CARS,
    SRS,
    SRS_PAIR,
    TRACKING_CSI_RS,
    TRACKING_SRS,
    UL_CARS,
    BidirectionalPlan,
)
from .slots import Grant, Slot

Results = Mapping[str, Mapping[str, object]]
Carriers = Mapping[str, tuple[float, float]]
"""Mean carrier in Hz that each node receives, and its deviation."""


class Csi(NamedTuple):
    """Channels of all links: g (M, N, K) uplink and h (M, N, K') downlink; times (M, N) in samples since `origin`.

    g_var and h_var (M, N): noise variance of an entry.
    """

    g: np.ndarray
    h: np.ndarray
    g_time: np.ndarray
    h_time: np.ndarray
    g_var: np.ndarray
    h_var: np.ndarray
    origin: int


class Coefficients(NamedTuple):
    """Two-way coefficients as read: C (M, N, K) by the TRPs, 1 / C (N, M, K') by the UEs, nan where not answered.

    Times (M, N) and (N, M) are the midpoints, in samples since the origin of the `Csi`. again: the channels of the
    second soundings, for the frequencies.
    """

    trp: np.ndarray
    ue: np.ndarray
    trp_time: np.ndarray
    ue_time: np.ndarray
    again: Csi


class Links:
    """Turns results into arrays; of each link the round in which its nodes point at each other.

    Parameters
    ----------
    plan : BidirectionalPlan
    schedule_slots : sequence of Slot
    """

    def __init__(self, plan: BidirectionalPlan, schedule_slots: Sequence[Slot]):
        self._plan, self._slots = plan, schedule_slots
        self._round = plan.round_of_link
        self._m, self._n = np.indices(self._round.shape)
        grid = plan.grid
        self._symbol = SoundingSymbol(grid.fft_size, grid.num_subcarriers, grid.cp_samples)

    def csi(self, grants: Sequence[Grant], results: Results, *, tracking: bool) -> Csi:
        """Channels of a phase, from SRS and CSI-RS."""
        return self._csi(grants, results, "h", *((TRACKING_SRS, TRACKING_CSI_RS) if tracking else (SRS, CSI_RS)))

    def _csi(self, grants: Sequence[Grant], results: Results, key: str, srs: str, csi_rs: str) -> Csi:
        plan = self._plan
        g, g_var = (self._gather(results, plan.trps, name) for name in (key, "noise_var"))
        h, h_var = (self._gather(results, plan.ues, name) for name in (key, "noise_var"))
        return Csi(g[self._round, self._m, self._n], h[self._round, self._n, self._m],
                   self._times(grants, srs), self._times(grants, csi_rs),
                   g_var[self._round, self._m], h_var[self._round, self._n], grants[0].start)

    def coefficients(self, grants: Sequence[Grant], results: Results) -> Coefficients:
        """What was read of the answers of an exchange."""
        plan = self._plan
        read = self._gather(results, plan.trps, "read")[self._round, self._m, self._n]
        scale = self._gather(results, plan.ues, "scale")[self._round, self._n, self._m]
        back = self._gather(results, plan.ues, "read")[self._round, self._n, self._m]
        back_scale = self._gather(results, plan.trps, "scale")[self._round, self._m, self._n]
        times = {purpose: self._times(grants, purpose) for purpose in (CSI_RS, UL_CARS, SRS, DL_CARS)}
        return Coefficients(
            _unscaled(read, scale), _unscaled(back, back_scale).swapaxes(0, 1),
            midpoint_s(times[CSI_RS], times[UL_CARS]), midpoint_s(times[SRS], times[DL_CARS]).T,
            self._csi(grants, results, "h_again", SRS_PAIR, CSI_RS_PAIR))

    def carriers_hz(self, results: Results) -> Carriers:
        """What each node receives, from the prefixes; unambiguous to half a bin."""
        plan, found = self._plan, {}
        count = (plan.grid.cp_samples - plan.advance_samples) // 2 + plan.advance_samples
        for name in (*plan.trps, *plan.ues):
            turn = np.sum(results[name]["turn"])
            coherence = np.abs(turn) / max(float(np.sum(results[name]["turn_energy"])), np.finfo(float).tiny)
            size = count * len(np.atleast_1d(results[name]["turn"])) * plan.num_ports[name]
            spread = np.sqrt(max(1.0 - coherence**2, 0.0) / (2.0 * size)) / max(coherence, 1e-6)
            per_radian = plan.grid.subcarrier_spacing_hz / (2.0 * np.pi)
            hertz = sounding.frequency_of_correlation(turn, self._symbol, plan.grid.samp_rate)
            found[name] = float(hertz), float(spread * per_radian)
        return found

    def _gather(self, results: Results, side: tuple[str, ...], key: str) -> np.ndarray:
        """Values of all nodes of a side, (rounds, ports of the side, ...)."""
        return np.concatenate([np.asarray(results[name][key]) for name in side], axis=1)

    def _times(self, grants: Sequence[Grant], purpose: str) -> np.ndarray:
        """Time (M, N) of the slots of a purpose, of each link that of its round, in samples since the first grant."""
        starts = {self._slots[grant.slot].variant: grant.start - grants[0].start for grant in grants
                  if self._slots[grant.slot].purpose == purpose}
        return np.array([starts[round_] for round_ in range(self._plan.num_rounds)])[self._round] + self._plan.up.middle


def _unscaled(read: np.ndarray, scale: np.ndarray) -> np.ndarray:
    return np.divide(read, scale[..., None], out=np.full(read.shape, np.nan + 0j), where=scale[..., None] > 0)
