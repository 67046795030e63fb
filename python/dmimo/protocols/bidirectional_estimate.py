# SPDX-License-Identifier: GPL-3.0-or-later
"""The calibration of both sides from one exchange: coefficients, delays and frequencies of all ports."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ..core.bidirectional import joint_ml, link_estimates, ml_tls, require_links
from ..core.bidirectional_bounds import link_laplacian_pinv
from ..core.cars import at_time
from ..core.delay import DelayEstimate
from ..core.node_frequency import NodeFrequencies
from .bidirectional_frequency import exchange_frequencies
from .bidirectional_links import Coefficients, Csi
from .bidirectional_plan import BidirectionalPlan

Estimator = Literal["joint_ml", "ml_tls"]


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
    frequency of the UE of each link less that of its TRP.
    """

    trp: SideCalibration
    ue: SideCalibration
    trp_links: DelayEstimate
    ue_links: DelayEstimate
    used: np.ndarray
    frequencies: NodeFrequencies
    apart_hz: np.ndarray


def estimate_exchange(plan: BidirectionalPlan, read: Coefficients, csi: Csi,
                      estimator: Estimator = "joint_ml") -> ExchangeEstimate:
    """Calibration of both sides: the TRPs' from UL-CARS, the UEs' from DL-CARS, frequencies from both.

    1 / C has the form of C with the two sides exchanged, so the UEs' coefficients need no division by what was read.
    Links that were read at different times are turned to one, halfway, by the frequencies of their nodes. Predicted
    deviations are those of the joint estimator.

    Raises
    ------
    DisconnectedLinksError
        If the links on which both readings can be trusted do not join all ports.
    """
    grid, rate = plan.grid, plan.grid.samp_rate
    combs = plan.down.response_subcarriers, plan.up.response_subcarriers
    spacing = grid.subcarrier_spacing_hz
    trp_links, ue_links = (link_estimates(c, k, spacing, max_delay=plan.delay_limit_s)
                           for c, k in zip((read.trp, read.ue), combs, strict=True))
    used = trp_links.trusted & ue_links.trusted.T
    require_links(used)
    frequencies = exchange_frequencies(plan, csi, read, trp_links, ue_links, used)
    ports_hz = (frequencies.frequency_trp_hz[plan.node_of_trp_port], frequencies.frequency_ue_hz[plan.node_of_ue_port])
    apart = ports_hz[1] - ports_hz[0][:, None]
    middle = round(0.5 * float(read.trp_time.mean() + read.ue_time.mean()))
    moved = (at_time(read.trp, apart[..., None], read.trp_time[..., None] / rate, middle / rate),
             at_time(read.ue, -apart.T[..., None], read.ue_time[..., None] / rate, middle / rate))
    method = joint_ml if estimator == "joint_ml" else ml_tls
    sides = []
    for own, c, k, links, mask, late in zip((0, 1), moved, combs, (trp_links, ue_links), (used, used.T),
                                            (read.trp_time, read.ue_time), strict=True):
        c = np.where(mask[..., None], c, np.nan)
        nodes = method(c, k, spacing, max_delay=plan.delay_limit_s)
        covariance = _covariance(links, mask, k.shape[-1])
        turned = (4.0 * np.pi * late[mask].std() / rate) ** 2 * frequency_variance(plan, frequencies, own)
        sides.append(SideCalibration(
            nodes.c_trp, 2.0 * nodes.delay_trp_s, ports_hz[own] - ports_hz[own][0], covariance,
            np.sqrt(0.5 * np.diagonal(covariance).real + turned), csi.origin + middle))
    return ExchangeEstimate(*sides, trp_links, ue_links, used, frequencies, apart)


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
