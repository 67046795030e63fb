# SPDX-License-Identifier: GPL-3.0-or-later
r"""Whether the soundings of an exchange arrived where they were expected, and what the clocks have to do with it.

The strongest path of a link takes d; the clocks of TRP m and UE n are off by tau. SRS then arrives :math:`d + \tau_n -
\tau_m` and CSI-RS :math:`d + \tau_m - \tau_n` after the time that is expected: half the difference is that of the
clocks, whatever the path, and it is unambiguous where the two-way coefficient, on a comb of M N and turning twice as
far, has long had aliases.
"""

from typing import NamedTuple

import numpy as np

from ..core.delay import DelayEstimate, delay_estimate
from ..core.ofdm_exchange import OfdmExchange
from .bidirectional_links import Csi
from .bidirectional_plan import BidirectionalPlan

# Deviations of a delay, and share of a sample for what the filters of clocks add, by which it may be beyond a limit.
_DEVIATIONS = 4.0
_SLACK_SAMPLES = 0.5


class Arrivals(NamedTuple):
    """Delays (M, N) in s of SRS at the TRPs and CSI-RS at the UEs from where they are expected, and deviations.

    Nan where a link has no delay that can be trusted.
    """

    up_s: np.ndarray
    down_s: np.ndarray
    up_std_s: np.ndarray
    down_std_s: np.ndarray

    @property
    def clocks_s(self) -> np.ndarray:
        """Offset (M, N) of the clock of each UE from that of each TRP, tau_n - tau_m."""
        return 0.5 * (self.up_s - self.down_s)


def arrivals(plan: BidirectionalPlan, csi: Csi) -> Arrivals:
    """Delays of all links, unambiguous within half of fft_size / P samples around the middle of the prefix.

    P is the number of ports that sound together.
    """
    up, down = _delays(plan.up, csi.g, (None, slice(None))), _delays(plan.down, csi.h, (slice(None), None))
    spreads = (np.where(found.trusted, found.delay_std_s, np.nan) for found in (up, down))
    middle = _middle_s(plan.up)
    return Arrivals(*(np.where(found.trusted, found.delay_s + middle, np.nan) for found in (up, down)), *spreads)


def doubts(plan: BidirectionalPlan, found: Arrivals) -> tuple[str, ...]:
    """What speaks against the soundings: arrivals outside the prefix, clocks further apart than C can tell."""
    rate = plan.grid.samp_rate
    early, late = -plan.advance_samples, plan.grid.cp_samples - plan.advance_samples
    reasons = []
    for delay, std, heard_at_trp in ((found.up_s, found.up_std_s, True), (found.down_s, found.down_std_s, False)):
        samples, slack = delay * rate, _SLACK_SAMPLES + _DEVIATIONS * std * rate
        # Comparisons with nan are false.
        beyond = np.maximum(samples - late - slack, early - slack - samples)
        if np.any(beyond > 0):
            m, n = np.unravel_index(np.nanargmax(beyond), beyond.shape)
            trp, ue = _names(plan, m, n)
            sender, receiver = (ue, trp) if heard_at_trp else (trp, ue)
            exchange = plan.up if heard_at_trp else plan.down
            alias = plan.grid.fft_size / exchange.mapping.num_sounding
            other = samples[m, n] - alias if samples[m, n] > 0 else samples[m, n] + alias
            reasons.append(f"node {receiver}: the sounding of {sender} arrives {samples[m, n]:+.0f} samples from where "
                           f"it is expected (or {other:+.0f}, the same on these combs): beyond the prefix, which takes "
                           f"{early} ... {late}")
    if reasons:  # which may have wrapped: nothing more can be said
        return tuple(reasons)
    offset, std = np.abs(found.clocks_s), 0.5 * np.hypot(found.up_std_s, found.down_std_s)
    beyond = offset - plan.delay_limit_s - _DEVIATIONS * std
    if np.any(beyond > 0):
        m, n = np.unravel_index(np.nanargmax(beyond), beyond.shape)
        trp, ue = _names(plan, m, n)
        what = "what prefix and combs can tell" if plan.max_delay_s is None else "max_delay_s"
        return (f"clocks of {trp} and {ue} differ by {offset[m, n] * 1e9:.0f} ns: more than {what}, "
                f"{plan.delay_limit_s * 1e9:.0f} ns",)
    return ()


def _delays(exchange: OfdmExchange, h: np.ndarray, sounding: tuple) -> DelayEstimate:
    """Delays from the middle of the prefix of channels (M, N, K) whose sounding ports have the axis kept."""
    k, grid = exchange.sounding_subcarriers[sounding], exchange.grid
    centred = h * np.exp(2j * np.pi * grid.subcarrier_spacing_hz * k * _middle_s(exchange))
    limit = 0.5 / (exchange.mapping.num_sounding * grid.subcarrier_spacing_hz)
    return delay_estimate(centred, k, grid.subcarrier_spacing_hz, max_delay=limit)


def _middle_s(exchange: OfdmExchange) -> float:
    """Delay in the middle of those that the prefix takes."""
    return (0.5 * exchange.grid.cp_samples - exchange.advance_samples) / exchange.grid.samp_rate


def _names(plan: BidirectionalPlan, m: int, n: int) -> tuple[str, str]:
    return plan.trps[plan.node_of_trp_port[m]], plan.ues[plan.node_of_ue_port[n]]
