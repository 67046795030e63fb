# SPDX-License-Identifier: GPL-3.0-or-later
"""Frequencies of all nodes from the soundings of an exchange, each made twice, and from its two-way coefficients."""

import numpy as np

from ..core.bidirectional import DisconnectedLinksError
from ..core.delay import DelayEstimate
from ..core.link_frequency import LinkFrequency, Soundings, link_frequency
from ..core.node_frequency import NodeFrequencies, node_frequencies
from .bidirectional_links import Coefficients, Csi
from .bidirectional_plan import BidirectionalPlan

# Phase that the strongest link at a receiver may be off by without any noise.
LEAST_STD_RAD = 1e-3


class UnknownFrequenciesError(ValueError):
    """The oscillators' frequencies do not follow from what the links show."""


def exchange_frequencies(plan: BidirectionalPlan, csi: Csi, read: Coefficients, trp_links: DelayEstimate,
                         ue_links: DelayEstimate, used: np.ndarray) -> tuple[LinkFrequency, NodeFrequencies]:
    """Frequencies of the links (M, N) between ports, and of the nodes, whose ports share an oscillator.

    Parameters
    ----------
    trp_links, ue_links : DelayEstimate
        (M, N) from C and (N, M) from 1 / C.
    used : ndarray (M, N) bool
        Links with a two-way coefficient that can be trusted.

    Raises
    ------
    UnknownFrequenciesError
        If the links with a frequency that can be trusted do not join all nodes, or the soundings came too far apart to
        tell the frequencies that the plan expects from others: on radios, where a slot that was late has lengthened the
        exchange.
    """
    count_trp, count_ue = plan.down.mapping.pilots_per_port, plan.up.mapping.pilots_per_port
    # 1 / (1 / C) is C again, its variance grows with the fourth power. Links without a coefficient say nothing by it.
    back = np.where(used, ue_links.gain.T, 1.0)
    gains = np.where(used, np.stack([trp_links.gain, 1.0 / back]), 0.0)
    noise = np.stack([trp_links.element_var / (count_trp // plan.num_ue_ports),
                      ue_links.element_var.T / (count_ue // plan.num_trp_ports) / np.abs(back) ** 4])
    noise = np.where(used, np.maximum(noise, np.finfo(float).tiny), 1.0)
    parts = [np.empty(used.shape) for _ in LinkFrequency._fields]
    for round_ in range(plan.num_rounds):
        here = plan.round_of_link == round_
        if not here.any():
            continue
        groups = [
            _group(plan, here, (csi.g, read.again.g), (csi.g_time, read.again.g_time), 1.0),
            _group(plan, here, (csi.h, read.again.h), (csi.h_time, read.again.h_time), -1.0),
            _group(plan, here, gains[..., None], (read.trp_time, read.ue_time.T), 2.0, noise),
        ]
        _check_spacing(plan, groups)
        for part, values in zip(parts, link_frequency(groups, linewidth_hz=2.0 * plan.linewidth_hz), strict=True):
            part[here] = values
    # Leakage and echoes beyond the prefix are the same in both soundings: their residual does not show them.
    least_hz = least_std(csi) * plan.grid.samp_rate / (2.0 * np.pi * 3.0 * plan.slot_samples)
    links = LinkFrequency(*parts[:-1], parts[-1] > 0)
    links = links._replace(frequency_std_hz=np.hypot(links.frequency_std_hz, least_hz))
    try:
        return links, node_frequencies(_of_nodes(plan, links, least_hz))
    except DisconnectedLinksError:
        raise UnknownFrequenciesError(
            f"the frequencies of {int(np.sum(used & ~links.trusted))} of {int(used.sum())} links cannot be trusted: "
            f"too weak, or oscillators differ by more than the {plan.unambiguous_cfo_hz:.0f} Hz that an exchange can "
            "tell"
        ) from None


def _check_spacing(plan: BidirectionalPlan, groups: list[Soundings]) -> None:
    closest_s = min(abs(group.turns) * np.ptp(group.times_s) for group in groups)
    if plan.max_cfo_hz is not None and plan.max_cfo_hz * closest_s > 0.5:
        raise UnknownFrequenciesError(
            f"soundings came {closest_s:.3g} s apart, which tells oscillators apart that differ by up to "
            f"{0.5 / closest_s:.3g} Hz, and not up to max_cfo_hz = {plan.max_cfo_hz:g}")


def least_std(csi: Csi) -> np.ndarray:
    """Phase (M, N) that links may be off by without noise: a share of the strongest signal at their receivers."""
    up, down = (np.mean(np.abs(each) ** 2, axis=-1) for each in (csi.g, csi.h))
    tiny = np.finfo(float).tiny
    worst = np.maximum(up.max(axis=1, keepdims=True) / np.maximum(up, tiny),
                       down.max(axis=0, keepdims=True) / np.maximum(down, tiny))
    return LEAST_STD_RAD * np.sqrt(worst)


def _group(plan: BidirectionalPlan, here: np.ndarray, soundings, times, turns: float, noise=None) -> Soundings:
    """Two soundings of the links of one round."""
    at = [float(time[here][0]) / plan.grid.samp_rate for time in times]
    g = np.stack([each[here] for each in soundings], axis=1)
    return Soundings(g, np.array(at), turns, None if noise is None else noise[:, here].T)


def _of_nodes(plan: BidirectionalPlan, links: LinkFrequency, least_hz: np.ndarray) -> LinkFrequency:
    """The links between ports as links between nodes: weighted means of frequencies that are the same.

    The ports' noise is averaged, the phase noise of the two oscillators is common to them.
    """
    trp = np.eye(len(plan.trps))[plan.node_of_trp_port]
    ue = np.eye(len(plan.ues))[plan.node_of_ue_port]

    def total(values: np.ndarray) -> np.ndarray:
        return trp.T @ values @ ue

    trusted = links.trusted
    noise = np.where(trusted, links.frequency_std_hz**2 - links.walk_std_hz**2, 1.0)
    weights = np.where(trusted, 1.0 / np.maximum(noise, least_hz**2), 0.0)
    sums = np.maximum(total(weights), np.finfo(float).tiny)
    frequency = total(weights * np.where(trusted, links.frequency_hz, 0.0)) / sums
    worst = total(weights * np.where(trusted, links.outlier_probability, 0.0)) / sums
    walk = np.sqrt(total(weights * np.where(trusted, links.walk_std_hz, 0.0) ** 2) / sums)
    return LinkFrequency(frequency, np.sqrt(1.0 / sums + walk**2), walk, worst, np.full(frequency.shape, np.nan),
                         total(trusted.astype(float)) > 0)
