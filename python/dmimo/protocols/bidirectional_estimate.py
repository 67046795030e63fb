# SPDX-License-Identifier: GPL-3.0-or-later
"""The calibration of both sides from one exchange: coefficients, delays and frequencies of all ports."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ..core.bidirectional import (
    BidirectionalCalibration,
    DisconnectedLinksError,
    joint_ml,
    link_estimates,
    ml_tls,
    node_delays,
    require_links,
)
from ..core.bidirectional_bounds import link_laplacian_pinv
from ..core.carrier_model import wrap
from ..core.delay import DelayEstimate
from ..core.link_frequency import LinkFrequency
from ..core.node_frequency import NodeFrequencies
from .bidirectional_arrivals import Arrivals
from .bidirectional_frequency import exchange_frequencies
from .bidirectional_links import Coefficients, Csi
from .bidirectional_plan import BidirectionalPlan

Estimator = Literal["joint_ml", "ml_tls"]
# Delay in samples that soundings may leave in the coefficients, to either side.
RESIDUAL_SAMPLES = 2.0
# Deviations, and a phase for what is no noise (leakage between subcarriers), by which a link may miss the fit.
MAX_DEVIATIONS, SLACK_RAD = 6.0, 0.02


@dataclass(frozen=True, eq=False)
class SideCalibration:
    """Calibration of the ports of one side, relative to the first of them.

    c (M,) at band centre and at `reference_time` (samples since the epoch); delay_s (M,) the whole delay of c, twice
    that of the clock; frequency_hz (M,) of the oscillators; covariance (M, M) of log c, and phase_std_rad (M,).
    """

    c: np.ndarray
    delay_s: np.ndarray
    frequency_hz: np.ndarray
    covariance: np.ndarray
    phase_std_rad: np.ndarray
    reference_time: int
    reference: int = 0
    trusted: bool = True
    reasons: tuple[str, ...] = ()


class ExchangeEstimate(NamedTuple):
    """Both sides' calibrations, the links (M, N) behind them, and the frequencies of all nodes.

    trp_links and ue_links are the estimates from C and from 1 / C; used (M, N), links that counted; apart_hz (M, N),
    frequency of the UE of each link less that of its TRP; contradicts (M, N), used links that the coefficients of all
    others do not explain; trp_phase and ue_phase (M, N), of C at the reference time as each side has read it.
    """

    trp: SideCalibration
    ue: SideCalibration
    trp_links: DelayEstimate
    ue_links: DelayEstimate
    used: np.ndarray
    link_frequencies: LinkFrequency
    frequencies: NodeFrequencies
    apart_hz: np.ndarray
    contradicts: np.ndarray
    trp_phase: np.ndarray
    ue_phase: np.ndarray


def estimate_exchange(plan: BidirectionalPlan, read: Coefficients, csi: Csi, arrived: Arrivals,
                      estimator: Estimator = "joint_ml") -> ExchangeEstimate:
    """Calibration of both sides: the TRPs' from UL-CARS, the UEs' from DL-CARS, frequencies from both.

    The clocks are known from the one-way delays of the soundings, on their denser combs, before the coefficients are
    looked at: what is left of the delay is searched close to zero, without aliases and at a lower threshold. 1 / C has
    the form of C with the two sides exchanged, so the UEs' coefficients need no division by what was read.
    Links that were read at different times are turned to one, halfway, by the frequencies of their nodes. Predicted
    deviations are those of the joint estimator.

    Raises
    ------
    DisconnectedLinksError
        If the links on which both readings can be trusted do not join all ports.
    UnknownFrequenciesError
        If the oscillators' frequencies do not follow from the soundings.
    """
    rate, spacing = plan.grid.samp_rate, plan.grid.subcarrier_spacing_hz
    combs = plan.down.response_subcarriers, plan.up.response_subcarriers
    clocks = _clocks(arrived)
    apart_s = clocks[plan.num_trp_ports :] - clocks[: plan.num_trp_ports, None]
    centred = (_without_delay(read.trp, combs[0], spacing, 2.0 * apart_s),
               _without_delay(read.ue, combs[1], spacing, -2.0 * apart_s.T))
    limit_s = min(RESIDUAL_SAMPLES / rate, 0.25 / (apart_s.size * spacing))
    trp_links, ue_links = (link_estimates(c, k, spacing, max_delay=limit_s)
                           for c, k in zip(centred, combs, strict=True))
    used = trp_links.trusted & ue_links.trusted.T
    require_links(used)
    link_frequencies, frequencies = exchange_frequencies(plan, csi, read, trp_links, ue_links, used)
    ports_hz = (frequencies.frequency_trp_hz[plan.node_of_trp_port], frequencies.frequency_ue_hz[plan.node_of_ue_port])
    apart = ports_hz[1] - ports_hz[0][:, None]
    middle = round(0.5 * float(read.trp_time.mean() + read.ue_time.mean()))
    turn = 4.0 * np.pi / rate * apart
    trp = _Reading(centred[0], combs[0], trp_links, used, read.trp_time, turn * (middle - read.trp_time))
    ue = _Reading(centred[1], combs[1], ue_links, used.T, read.ue_time, -turn.T * (middle - read.ue_time))
    method = joint_ml if estimator == "joint_ml" else ml_tls
    fits = [method(each.moved, each.subcarriers, spacing, max_delay=limit_s) for each in (trp, ue)]
    # Links of other rounds were read at other times.
    turned = [(4.0 * np.pi * each.spread / rate) ** 2 * frequency_variance(plan, frequencies, side)
              for side, each in enumerate((trp, ue))]
    own = slice(None, plan.num_trp_ports), slice(plan.num_trp_ports, None)
    sides = (_calibration(*parts, csi.origin + middle, plan.form == "inverse") for parts in zip(
        fits, (trp, ue), turned, (clocks[rows] for rows in own), ports_hz, strict=True))
    agree = trp.agrees(fits[0], turned[0].max()) & ue.agrees(fits[1], turned[1].max()).T
    links = (trp_links._replace(delay_s=trp_links.delay_s + 2.0 * apart_s),
             ue_links._replace(delay_s=ue_links.delay_s - 2.0 * apart_s.T))
    return ExchangeEstimate(*sides, *links, used, link_frequencies, frequencies, apart, used & ~agree, trp.phase,
                            -ue.phase.T)


class _Reading(NamedTuple):
    """Two-way coefficients c (P, Q, K) as one side of P ports has read them, at `time` (P, Q), and their links.

    turn (P, Q): by how much each has turned until the common time.
    """

    c: np.ndarray
    subcarriers: np.ndarray
    links: DelayEstimate
    used: np.ndarray
    time: np.ndarray
    turn: np.ndarray

    @property
    def moved(self) -> np.ndarray:
        """The coefficients at the common time, nan on links that are not used."""
        return np.where(self.used[..., None], self.c, np.nan) * np.exp(1j * self.turn)[..., None]

    @property
    def phase(self) -> np.ndarray:
        """Phase of each link at the common time."""
        return np.angle(self.links.gain) + self.turn

    @property
    def spread(self) -> float:
        """Standard deviation of the times of the used links."""
        return float(self.time[self.used].std())

    def agrees(self, nodes: BidirectionalCalibration, turned: float) -> np.ndarray:
        """Whether each link has the phase that the coefficients of its nodes give it."""
        residual = self.phase - np.angle(nodes.c_ue / nodes.c_trp[:, None])
        return np.abs(wrap(residual)) <= MAX_DEVIATIONS * np.sqrt(self.links.phase_std_rad**2 + turned) + SLACK_RAD


def _calibration(nodes: BidirectionalCalibration, reading: _Reading, turned: np.ndarray, clocks: np.ndarray,
                 ports_hz: np.ndarray, time: int, reads_amplitude: bool) -> SideCalibration:
    """Calibration of the side that is the first of `nodes`; `clocks` were taken out of what was read.

    Where answers hold no amplitudes, all |c| are taken as equal.
    """
    covariance = _covariance(reading.links, reading.used, reading.c.shape[-1])
    c = nodes.c_trp if reads_amplitude else nodes.c_trp / np.abs(nodes.c_trp)
    return SideCalibration(
        c, 2.0 * (nodes.delay_trp_s + clocks - clocks[0]), ports_hz - ports_hz[0], covariance,
        np.sqrt(0.5 * np.diagonal(covariance).real + turned), time)


def _clocks(found: Arrivals) -> np.ndarray:
    """Offsets tau in s of all ports' clocks from the one-way delays of the soundings; zeros if these do not tell."""
    known = np.isfinite(found.clocks_s)
    weights = np.where(known, 1.0 / np.maximum(found.up_std_s**2 + found.down_std_s**2, 1e-30), 0.0)
    try:
        require_links(known)
    except DisconnectedLinksError:
        return np.zeros(sum(known.shape))
    return node_delays(2.0 * found.clocks_s, weights)


def _without_delay(c: np.ndarray, subcarriers: np.ndarray, spacing: float, delay_s: np.ndarray) -> np.ndarray:
    return c * np.exp(2j * np.pi * spacing * subcarriers * delay_s[..., None])


def frequency_variance(plan: BidirectionalPlan, frequencies: NodeFrequencies, side: int) -> np.ndarray:
    """Variance (ports,) of the frequencies of a side, 0 for TRPs and 1 for UEs, relative to its first port."""
    nodes = (plan.node_of_trp_port, len(plan.trps) + plan.node_of_ue_port)[side]
    difference = np.eye(len(frequencies.covariance))[nodes] - np.eye(len(frequencies.covariance))[nodes[0]]
    return np.maximum(np.einsum("px,xy,py->p", difference, frequencies.covariance, difference), 0.0)


def _covariance(links: DelayEstimate, used: np.ndarray, num_elements: int) -> np.ndarray:
    """Covariance (ports, ports) of log c of the first side, relative to its first port."""
    energy = np.abs(np.where(used, links.gain, 1.0)) ** 2
    # Without noise nothing is left of the residual but rounding.
    relative = np.maximum(np.where(used, links.element_var, 1.0) / energy, 1e-20)
    inverse = link_laplacian_pinv(np.where(used, num_elements / relative, 0.0))
    difference = np.eye(len(inverse))[: len(used)] - np.eye(len(inverse))[0]
    return difference @ inverse @ difference.T
