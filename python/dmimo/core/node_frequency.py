# SPDX-License-Identifier: GPL-3.0-or-later
"""Frequency offsets of TRPs and UEs from those of their links, and coefficients carried on by them."""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from .bidirectional import BidirectionalCalibration
from .carrier_model import TURN
from .cars import at_time
from .link_frequency import LinkFrequency
from .link_network import solve_links

# Keeps the weights of links without noise finite.
_SMALLEST_STD_HZ = 1e-9


class NodeFrequencies(NamedTuple):
    """Frequency offsets of the oscillators relative to that of the reference node.

    frequency_trp_hz (..., M), frequency_ue_hz (..., N); covariance (..., M + N, M + N) Hz^2, TRPs first; misfit (...),
    contradicts (..., M, N) and trusted (..., M + N): see `link_network.LinkSolution`.
    """

    frequency_trp_hz: NDArray
    frequency_ue_hz: NDArray
    covariance: NDArray
    misfit: NDArray
    contradicts: NDArray
    trusted: NDArray


def node_frequencies(links: LinkFrequency, *, reference: int = 0) -> NodeFrequencies:
    """Frequencies of all nodes by weighted least squares over the trusted links (..., M, N).

    Links are weighted by their noise; the phase noise of a node is common to all its links and not averaged by them, so
    it is added to the covariance, half of the links' to each node.

    Parameters
    ----------
    links : `link_frequency` of all links.
    reference : node (UE n is M + n) with the frequency zero.

    Raises
    ------
    DisconnectedLinksError
        If the trusted links do not join all nodes.
    """
    trusted, num_trp = np.asarray(links.trusted, bool), np.shape(links.trusted)[-2]
    walk = np.where(trusted, links.walk_std_hz**2, 0.0)
    variance = np.where(trusted, np.maximum(links.frequency_std_hz**2 - walk, _SMALLEST_STD_HZ**2), np.inf)
    found = solve_links(links.frequency_hz, variance, reference=reference, circular=False)
    each = 0.5 * walk.sum(axis=(-2, -1)) / np.maximum(trusted.sum(axis=(-2, -1)), 1)
    own = np.eye(found.value.shape[-1]) + 1.0
    own[reference] = own[:, reference] = 0.0
    covariance = found.covariance + each[..., None, None] * own
    return NodeFrequencies(found.value[..., :num_trp], found.value[..., num_trp:], covariance, found.misfit,
                           found.contradicts, found.trusted)


def extrapolated(
    calibration: BidirectionalCalibration, frequencies: NodeFrequencies, to_s: float, *, linewidth_hz: float = 0.0
) -> tuple[BidirectionalCalibration, NDArray]:
    r"""The calibration moved to another time by the nodes' frequencies, and what this adds to its phases' errors.

    .. math:: c(t) = c(t_0) e^{4j \pi f (t - t_0)}, \qquad
              \sigma^2 = (4 \pi \sigma_f (t - t_0))^2 + 16 \pi L |t - t_0|

    The deviations in rad (..., M + N) are those of the phases relative to the reference of the frequencies, whose own
    is zero, and whose c stays. L = `linewidth_hz` is that of each single node; the second term is twice (both nodes)
    the random walk of a phase that turns with twice the oscillator.
    """
    elapsed = to_s - calibration.time_s
    arguments = (calibration.time_s, to_s)
    moved = replace(
        calibration,
        c_trp=at_time(calibration.c_trp, frequencies.frequency_trp_hz, *arguments),
        c_ue=at_time(calibration.c_ue, frequencies.frequency_ue_hz, *arguments),
        time_s=to_s,
    )
    variance = np.diagonal(frequencies.covariance, axis1=-2, axis2=-1)
    walked = np.where(variance > 0, 4.0 * TURN * linewidth_hz * abs(elapsed), 0.0)
    return moved, np.sqrt((TURN * elapsed) ** 2 * variance + walked)
