# SPDX-License-Identifier: GPL-3.0-or-later
r"""Quasi-static tracking of calibration coefficients by one-way channel estimates.

Between two soundings of a channel that stays as it is, only the oscillators turn it,

.. math:: G'' = G' e^{j \phi}, \qquad H'' = H' e^{-j \phi}, \qquad
          \phi_{mn} = \Delta\theta_n - \Delta\theta_m, \qquad C'' = G'' / H'' = C' e^{2 j \phi},

so a TRP that hears SRS (G) or a UE that hears CSI-RS (H) follows C without another answer. phi is known up to full
turns only; C turns twice as far, so these do not matter. `direction` says which channel was sounded: "uplink", G (...,
M, N, K) at the TRPs, or "downlink", H at the UEs, which turns the other way.

References
----------
Bidirectional calibration (CARS), section III-C, eq. (30) to (33). Deviations: phases have the sign of eq. (10) and
(30), which (31) and (32) turn round; the exponent of (33) needs the j that is missing; the band is summed before the
angle is taken, which is worth a factor of :math:`\sqrt K` over an angle for each subcarrier
(`phase_change_per_subcarrier`, as printed).
"""

from dataclasses import replace
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bidirectional import BidirectionalCalibration
from .carrier_model import MAX_INNOVATION_STD_RAD, SMALLEST_STD
from .delay import delay_and_gain
from .frequency import detection_threshold
from .link_network import solve_links

Direction = Literal["uplink", "downlink"]


class PhaseChange(NamedTuple):
    """What happened to links (...) between two soundings.

    phase_rad, at band centre, in (-pi, pi]; phase_std_rad, predicted, inf without a signal. delay_change_s, by which
    the delay of the channel has grown, and delay_std_s: zero where no change was looked for. trusted: both soundings
    hold the same channel for certain.
    """

    phase_rad: NDArray
    phase_std_rad: NDArray
    delay_change_s: NDArray
    delay_std_s: NDArray
    trusted: NDArray


class NodeTurns(NamedTuple):
    """How far the coefficients c of the nodes turned, relative to the reference node.

    turn_trp_rad (..., M), turn_ue_rad (..., N), in (-2 pi, 2 pi]: twice the turn of the oscillator; covariance (...,
    M + N, M + N) rad^2, TRPs first; misfit (...) and contradicts (..., M, N): see `link_network.LinkSolution`; trusted
    (..., M + N): standard deviation within `carrier_model.MAX_INNOVATION_STD_RAD`, and links that agree.
    delay_trp_s, delay_ue_s: growth of the nodes' one-way delays tau.
    """

    turn_trp_rad: NDArray
    turn_ue_rad: NDArray
    covariance: NDArray
    misfit: NDArray
    contradicts: NDArray
    trusted: NDArray
    delay_trp_s: NDArray
    delay_ue_s: NDArray


class Tracked(NamedTuple):
    """The moved calibration, the turns by which it was moved, and the links from which these were found."""

    calibration: BidirectionalCalibration
    turns: NodeTurns
    change: PhaseChange


def phase_change(
    first: ArrayLike,
    second: ArrayLike,
    *,
    subcarriers: ArrayLike | None = None,
    spacing: float | None = None,
    max_delay_change: float | None = None,
) -> PhaseChange:
    r"""Maximum-likelihood phase change of links whose channel is unknown on every subcarrier.

    .. math:: \phi = \arg \sum_k G''_k G'^*_k e^{2j \pi k \Delta\, \delta}

    With ``max_delay_change`` the change of delay delta is found with it, where the sum is largest: sample clocks drift
    apart between soundings, by 1 ns in 50 ms at 20 ppb, which turns the ends of a band of 200 MHz by 36 degrees. Its
    centroid hardly moves, so a small change is not worth the threshold that a search costs. The predicted deviations
    need no noise level: with v = 1 / (squared coherence of the soundings) - 1, which is `element_variance`, that of the
    phase is sqrt(v / 2K), or more where band centre is not the centroid and the delay is free.

    Parameters
    ----------
    first, second : (..., K), two soundings of the links; their gains may differ (AGC), their channels not.
    subcarriers, spacing : (K,) or broadcastable from band centre, and Hz; for the change of delay only.
    max_delay_change : largest ``|delta|`` in s. None: no change is looked for.

    Raises
    ------
    ValueError
        If the shapes differ, K is less than 2, or the subcarriers of a search are missing.
    """
    first, second = np.asarray(first, complex), np.asarray(second, complex)
    if first.shape != second.shape or first.ndim < 1 or first.shape[-1] < 2:
        raise ValueError(f"first {first.shape} and second {second.shape} must both be (..., K) with K >= 2")
    if max_delay_change is not None and (subcarriers is None or spacing is None):
        raise ValueError("max_delay_change needs subcarriers and spacing")
    num_pilots = first.shape[-1]
    valid = np.isfinite(first).all(axis=-1) & np.isfinite(second).all(axis=-1)
    product = np.where(valid[..., None], second, 0.0) * np.where(valid[..., None], first, 0.0).conj()
    if max_delay_change is None:
        total, delay = product.sum(axis=-1), np.zeros(product.shape[:-1])
    else:
        delay, gain = delay_and_gain(product, subcarriers, spacing, max_delay=max_delay_change)
        delay, total = np.nan_to_num(delay), np.nan_to_num(gain) * num_pilots
    energies = [np.sum(np.where(valid[..., None], g.real**2 + g.imag**2, 0.0), axis=-1) for g in (first, second)]
    both = energies[0] * energies[1]
    coherence = np.divide(np.abs(total) ** 2, both, out=np.zeros(both.shape), where=both > 0)
    relative = relative_variance(coherence, num_pilots)
    phase_var, delay_std = np.maximum(0.5 * relative / num_pilots, SMALLEST_STD**2), np.zeros(both.shape)
    searched = 0.0
    if max_delay_change is not None:
        phase_factor, delay_factor = _spread(product, total, delay, np.asarray(subcarriers), spacing)
        phase_var, delay_std = phase_var * phase_factor, np.sqrt(phase_var * delay_factor)
        searched = max_delay_change * spacing * np.ptp(subcarriers, axis=-1).max() / num_pilots
    # Noise alone: squared coherence of Beta(1, K - 1), the largest of all delays searched. What passes has deviations
    # of C, 2 phi, below half a radian.
    trusted = (coherence > detection_threshold(1, num_pilots, searched)) & np.isfinite(phase_var)
    return PhaseChange(np.angle(total), np.sqrt(phase_var), delay, delay_std, trusted)


def relative_variance(coherence: NDArray, num_pilots: int) -> NDArray:
    """v = 1 / coherence - 1 (...) from a squared coherence over K pilots less what noise adds; inf if nothing stays."""
    noise = (1.0 - np.minimum(coherence, 1.0)) / (num_pilots - 1)
    signal = coherence - noise
    return np.divide(num_pilots * noise, signal, out=np.full(np.shape(coherence), np.inf), where=signal > 0)


def phase_change_per_subcarrier(first: ArrayLike, second: ArrayLike) -> NDArray:
    """Phase changes (..., K) of every subcarrier alone, ``angle(G''_k / G'_k)``, eq. (32) with the sign corrected.

    Standard deviation `bidirectional_bounds.phase_change_std` with K = 1: C turned by twice this is noisier than by
    that of `phase_change` by the root of the number of subcarriers.
    """
    return np.angle(np.asarray(second) * np.conj(first))


def tracked_coefficient(c: ArrayLike, phase_rad: ArrayLike, *, direction: Direction = "uplink") -> NDArray:
    """C'' (..., K) = C' exp(2j phi), phi (...) of each link or (..., K) of each subcarrier (eq. (33), with the j)."""
    c, turn = np.asarray(c), 2.0 * direction_sign(direction) * np.asarray(phase_rad, float)
    return c * np.exp(1j * (turn if turn.ndim == c.ndim else turn[..., None]))


def node_turns(change: PhaseChange, *, direction: Direction = "uplink", reference: int = 0) -> NodeTurns:
    """Turns of the coefficients of all nodes by weighted least squares over all links.

    M N links hold M + N - 1 unknowns: each node's turn is better than that of its links, and a link that turned
    otherwise (its channel changed) contradicts the others and is left out. Links are weighted by their predicted
    deviations; links that are not trusted do not count.

    Parameters
    ----------
    change : of links (..., M, N), see `phase_change`.
    reference : node (UE n is M + n) whose turn is zero; only differences can be known.

    Raises
    ------
    DisconnectedLinksError
        If the trusted links do not join all nodes.
    """
    sign, num_trp = direction_sign(direction), np.shape(change.phase_rad)[-2]
    variance = np.where(change.trusted, change.phase_std_rad**2, np.inf)
    found = solve_links(sign * change.phase_rad, variance, reference=reference)
    turn, covariance = 2.0 * found.value, 4.0 * found.covariance
    std = np.sqrt(np.diagonal(covariance, axis1=-2, axis2=-1))
    trusted = found.trusted & (std <= MAX_INNOVATION_STD_RAD)
    delay = np.zeros(turn.shape)
    if np.any(change.delay_std_s > 0):
        variance = np.where(change.trusted, change.delay_std_s**2, np.inf)
        delay = solve_links(sign * change.delay_change_s, variance, reference=reference, circular=False).value
    return NodeTurns(turn[..., :num_trp], turn[..., num_trp:], covariance, found.misfit, found.contradicts, trusted,
                     delay[..., :num_trp], delay[..., num_trp:])


def turned(calibration: BidirectionalCalibration, turns: NodeTurns, elapsed_s: float) -> BidirectionalCalibration:
    """The calibration with each c turned, delays grown, and its time moved on; the reference's c stays.

    Phase changes over ``elapsed_s`` carry c from its time t to ``t + elapsed_s`` also where the first sounding was not
    made at t, as long as frequencies stay constant: c belongs to the midpoint of an exchange, soundings lie after it.
    """
    return replace(
        calibration,
        c_trp=calibration.c_trp * np.exp(1j * turns.turn_trp_rad),
        c_ue=calibration.c_ue * np.exp(1j * turns.turn_ue_rad),
        delay_trp_s=calibration.delay_trp_s + turns.delay_trp_s,
        delay_ue_s=calibration.delay_ue_s + turns.delay_ue_s,
        time_s=calibration.time_s + elapsed_s,
    )


def track(
    calibration: BidirectionalCalibration,
    first: ArrayLike,
    second: ArrayLike,
    elapsed_s: float,
    *,
    direction: Direction = "uplink",
    reference: int = 0,
    subcarriers: ArrayLike | None = None,
    max_delay_change: float | None = None,
) -> Tracked:
    """The calibration moved to ``time_s + elapsed_s`` by two one-way soundings so far apart.

    Parameters
    ----------
    calibration : coefficients of TRPs and UEs.
    first, second : (..., M, N, K), soundings G ("uplink") or H ("downlink") of all links, `elapsed_s` apart.
    reference : the calibration's (0 for None, which keeps angle(c[0]) = 0).
    subcarriers, max_delay_change : see `phase_change`.

    Raises
    ------
    DisconnectedLinksError
        If the links whose change is trusted do not join all nodes.
    """
    change = phase_change(first, second, subcarriers=subcarriers, spacing=calibration.spacing,
                          max_delay_change=max_delay_change)
    turns = node_turns(change, direction=direction, reference=reference)
    return Tracked(turned(calibration, turns, elapsed_s), turns, change)


def _spread(
    product: NDArray, total: NDArray, delay: NDArray, subcarriers: NDArray, spacing: float
) -> tuple[NDArray, NDArray]:
    """Variances of the phase at band centre and of the delay, over that of the phase if the delay were known."""
    turned = product * np.exp(2j * np.pi * spacing * subcarriers * delay[..., None]) * total[..., None].conj()
    size = np.abs(total) ** 2
    # Each subcarrier counts by its energy, which these have on average.
    weights = turned.real / np.where(size > 0, size, np.inf)[..., None]
    centroid = np.sum(weights * subcarriers, axis=-1)
    spread = np.sum(weights * (subcarriers - centroid[..., None]) ** 2, axis=-1)
    inverse = np.divide(1.0, spread, out=np.full(size.shape, np.inf), where=spread > 0)
    return 1.0 + centroid**2 * inverse, inverse / (2.0 * np.pi * spacing) ** 2


def direction_sign(direction: Direction) -> float:
    """+1 if a sounding turns as C does, -1 if the other way."""
    if direction not in ("uplink", "downlink"):
        raise ValueError(f"direction = {direction!r} must be 'uplink' or 'downlink'")
    return 1.0 if direction == "uplink" else -1.0
