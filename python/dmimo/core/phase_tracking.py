# SPDX-License-Identifier: GPL-3.0-or-later
"""Oscillator phases over a sweep: random walks of all nodes, tracked through the timed products of all pairs.

c turns with twice the LO phase theta of its node, and theta is a Wiener process of variance rate 2 pi L in rad^2/s
beside a constant frequency; L is the Lorentzian linewidth in Hz, one for all nodes. So phi = 2 theta has the rate
q = 8 pi L of `sweep_walk`, which holds the linear estimation. Here are the steps around it: phases of the products
about the current track, a first guess of large wanders, the choice of sub-networks for the search of L, and the result.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import linalg

from . import sweep_walk
from .sweep_fit import JointFit, effective_information
from .sweep_model import TimedPairs

# Multiply-adds of one likelihood, and of the final solution (about 0.1 s).
_SEARCH_WORK = 3e7
_FINAL_WORK = 4e8
# Phase error of a node in a bin of the first guess, and the largest number of these bins.
_START_STD_RAD = 0.2
_START_BINS = 64
# Wander (rms) from which phases far from linear are expected, and the first guess is tried.
_LARGE_WANDER_RAD = 0.5
# Soft weight below which a pair has no phase.
_LEAST_WEIGHT = 0.1


@dataclass(frozen=True, eq=False)
class PhaseTrack:
    """What the phases of M ports did beyond the joint fit, relative to the reference port.

    phase (M,) rad at the reference time; frequency_hz (M,) to be added to that of the fit; phase_covariance (M, M),
    frequency_var (M,), phase_frequency_cov (M,): of their errors; linewidth_hz and its standard deviation; turn (E, Q):
    phase in rad of each product by the walks and frequencies; ratio: q over the scale of the noise.
    """

    phase: NDArray
    frequency_hz: NDArray
    phase_covariance: NDArray
    frequency_var: NDArray
    phase_frequency_cov: NDArray
    linewidth_hz: float
    linewidth_std_hz: float
    turn: NDArray
    ratio: float


def track_phases(
    pairs: TimedPairs, fit: JointFit, nodes: NDArray, reference: int, when_s: float, before: PhaseTrack | None = None,
    *, estimate_frequency: bool, noise_known: bool = True
) -> PhaseTrack | None:
    """Track of the nodes' phases, or None where the likelihood knows of no random walk.

    Parameters
    ----------
    pairs, fit : the products, and the fit whose c, frequencies and delays are taken out of them.
    nodes : (M,) node of each port, 0 ... N-1.
    reference : port relative to which results are given.
    when_s : reference time relative to that of the pairs.
    before : the track that was taken out of the products before the fit; None: none.
    noise_known : False if the level of the noise may also be lower than the products are scaled to.
    """
    used = (fit.information > 0) & (fit.weights[pairs.i, pairs.j] > _LEAST_WEIGHT) & (nodes[pairs.i] != nodes[pairs.j])
    if not used.any() or np.ptp(pairs.time_s[pairs.valid]) == 0.0:
        return None
    turned, weight, precision = _residual_products(pairs, fit)
    settings = (pairs, nodes, used, reference, when_s, estimate_frequency, 1.0 if noise_known else 0.0)
    if before is not None:
        return _linear_track(turned, weight, precision, before.turn, before.ratio, *settings)
    found = _linear_track(turned, weight, precision, np.zeros(turned.shape), None, *settings)
    # Around zero the estimate is robust: errors of the guess must not pass for a walk. Far from zero it is not linear.
    if found is None or np.sqrt((weight * found.turn**2).sum() / weight.sum()) < _LARGE_WANDER_RAD:
        return found
    guess = _first_guess(pairs, turned, weight, nodes, int(nodes[reference]))
    other = _linear_track(turned, weight, precision, guess, None, *settings)
    energy = [(turned[used] * np.exp(-1j * track.turn[used])).real.sum() for track in (found, other or found)]
    return other if energy[1] > energy[0] else found


def _linear_track(turned, weight, precision, turn, near, pairs, nodes, used, reference, when_s, frequency, least_scale):
    """PhaseTrack around the phases `turn` (E, Q) of the products, None where no walk is significant."""
    turned = turned * np.exp(-1j * turn)
    # What the fit lost by summing over the walk, as far as it is taken out now.
    total = np.maximum(turned.real.sum(axis=1), weight.sum(axis=1))
    share = np.divide(total, weight.sum(axis=1), out=np.ones_like(total), where=weight.sum(axis=1) > 0)[:, None]
    keep = pairs.valid & used[:, None] & (precision > 0)
    row = np.nonzero(keep)[0]
    time, lag = pairs.time_s[keep] - when_s, pairs.lag_s[keep]
    weight, precision = (weight * share)[keep], (precision * share)[keep]
    products = sweep_walk.Products(pairs.i[row], pairs.j[row], time - lag, time + lag,
                                   turn[keep] + turned.imag[keep] / weight, weight, precision)
    leads = np.zeros(len(nodes), bool)
    leads[np.unique(nodes, return_index=True)[1]] = True
    leads[nodes == nodes[reference]] = False
    leads[reference] = True
    rate = sweep_walk.most_likely(_networks(products, nodes, leads, frequency), least_scale, near)
    if rate is None:
        return None
    root = int(nodes[reference])
    data = sweep_walk.observe(products, nodes, leads, root, _FINAL_WORK, frequency=frequency)
    return _track(data, sweep_walk.solve(data, root, rate.ratio), rate, root, when_s, pairs, nodes, leads)


def _networks(
    products: sweep_walk.Products, nodes: NDArray, leads: NDArray, frequency: bool
) -> list[sweep_walk.Observations]:
    """Observations of parts of the network: all nodes, but no larger parts than have cells of single transmissions.

    The likelihood needs the exact times; pairs between the parts are not used.
    """
    num_nodes = int(nodes.max()) + 1
    moments = len(np.unique(np.rint(1e9 * np.concatenate([products.early_s, products.late_s]))))
    span = products.late_s.max() - products.early_s.min()
    lag = (products.late_s - products.early_s).max() / span * moments
    most = num_nodes
    # A part of n of the N nodes has the share n / N of the moments; there are N / n parts.
    while most > 2 and moments * most * (most * (lag * most / num_nodes + 2)) ** 2 > _SEARCH_WORK:
        most -= 1
    strength = np.zeros((num_nodes, num_nodes))
    np.add.at(strength, (nodes[products.i], nodes[products.j]), products.weight)
    strength = strength + strength.T
    networks = []
    for part in _parts(strength, most):
        label = np.full(num_nodes, -1)
        label[part] = np.arange(len(part))
        own = label[nodes]
        inside = (own[products.i] >= 0) & (own[products.j] >= 0)
        chosen = sweep_walk.Products(*(value[inside] for value in products))
        # The size was estimated: no longer cells for a little more work.
        work = 3.0 * _SEARCH_WORK * len(part) / num_nodes
        networks.append(sweep_walk.observe(chosen, own, leads, 0, work, frequency=frequency))
    return networks


def _parts(strength: NDArray, most: int) -> list[list[int]]:
    """Disjoint connected sets of 2 ... `most` nodes, each grown by the node joined to it most strongly."""
    strength = strength.copy()
    parts = []
    while strength.any():
        part = [int(strength.sum(axis=0).argmax())]
        while len(part) < most:
            joined = strength[part].sum(axis=0)
            joined[part] = 0.0
            if not joined.any():
                break
            part.append(int(joined.argmax()))
        parts.append(part)
        strength[part] = strength[:, part] = 0.0
    return parts


def _residual_products(pairs: TimedPairs, fit: JointFit) -> tuple[NDArray, NDArray, NDArray]:
    """Products (E, Q) without the fit's phases, their expected real parts, and the precision of their phases."""
    c, i, j = fit.c, pairs.i, pairs.j
    aligned = np.exp(2j * np.pi * (fit.delay_s[i] - fit.delay_s[j])[:, None, None] * pairs.subcarriers_hz[:, None])
    turned = (pairs.product @ aligned)[..., 0]
    turned *= np.exp(-4j * np.pi * (fit.frequency_hz[i] - fit.frequency_hz[j])[:, None] * pairs.time_s)
    turned *= (c[i].conj() * c[j] / (np.abs(c[i]) ** 2 + np.abs(c[j]) ** 2))[:, None]
    size = np.abs(pairs.product).sum(axis=2)
    share = np.divide(size, size.sum(axis=1, keepdims=True), out=np.zeros_like(size), where=size > 0)
    weight = np.maximum(fit.information, 0.0)[:, None] * share
    # The phase has half of the variance of the complex logarithm.
    return turned, weight, 2.0 * effective_information(pairs, fit)[:, None] * share


def _first_guess(pairs: TimedPairs, turned: NDArray, weight: NDArray, nodes: NDArray, reference: int) -> NDArray:
    """Phases (E, Q) of the products from estimates in time bins, each alone, unwrapped over the bins."""
    i, j = nodes[pairs.i], nodes[pairs.j]
    num_nodes = int(nodes.max()) + 1
    total = np.zeros(num_nodes)
    np.add.at(total, i, weight.sum(axis=1))
    np.add.at(total, j, weight.sum(axis=1))
    num_bins = int(min(_START_BINS, 2.0 * _START_STD_RAD**2 * total.min()))
    if num_bins < 2:
        return np.zeros(turned.shape)
    time = pairs.time_s[pairs.valid]
    first, span = time.min(), np.ptp(time)
    place = np.where(pairs.valid, (pairs.time_s - first) / span * num_bins, 0.0)
    flat = (np.minimum(place.astype(int), num_bins - 1) * num_nodes + i[:, None]) * num_nodes + j[:, None]
    size = num_bins * num_nodes**2
    sums = np.bincount(flat.ravel(), turned.real.ravel(), size) + 1j * np.bincount(
        flat.ravel(), turned.imag.ravel(), size)
    sums = sums.reshape(num_bins, num_nodes, num_nodes)
    sums = sums + np.swapaxes(sums, 1, 2).conj()
    degree = np.abs(sums).sum(axis=2)
    lazy = sums / np.where(degree > 0, degree, 1.0)[..., None] + np.eye(num_nodes)
    phasor = np.ones((num_bins, num_nodes, 1), complex)
    for _ in range(4 * num_nodes + 20):
        phasor = lazy @ phasor
        phasor /= np.maximum(np.abs(phasor), 1e-300)
    angle = np.angle(phasor[..., 0] * phasor[:, reference].conj())
    centres = first + span * (np.arange(num_bins) + 0.5) / num_bins
    guess = np.zeros(turned.shape)
    for node in range(num_nodes):
        seen = (degree[:, node] > 0) & (degree[:, reference] > 0)
        if not seen.any():
            continue
        track = np.unwrap(angle[seen, node])
        for rows, sign in ((i == node, 1.0), (j == node, -1.0)):
            guess[rows] += sign * np.interp(pairs.time_s[rows], centres[seen], track)
    return guess


def _track(data: sweep_walk.Observations, solution: sweep_walk.Solution, rate: sweep_walk.Rate, reference: int,
           when_s: float, pairs: TimedPairs, nodes: NDArray, leads: NDArray) -> PhaseTrack:
    """Phases, frequencies and their errors at the reference time, relative to the reference node."""
    grid = data.grid
    num_nodes, every = grid.num_nodes, np.arange(grid.num_nodes)
    cell, place = (part.item() for part in grid.locate(np.zeros(())))
    choose = np.zeros((len(solution.borders), num_nodes))
    choose[cell * num_nodes + every, every] = 1.0 - place
    choose[(cell + 1) * num_nodes + every, every] += place
    relative = np.eye(num_nodes) - np.eye(num_nodes)[reference]
    spare = np.linalg.inv(solution.schur)
    across = choose.T @ solution.solved
    covariance = choose.T @ linalg.cho_solve_banded((solution.factor, True), choose) + across @ spare @ across.T
    # Between borders a bridge, beyond the sweep the random walk itself.
    beyond = max(grid.borders_s[0], -grid.borders_s[-1], 0.0)
    free = rate.ratio * (place * (1.0 - place) * grid.cells_s[cell] + beyond)
    covariance = relative @ (covariance + free * np.eye(num_nodes)) @ relative.T
    # From the nodes' phases and the constants to those of the ports.
    others, own = every != reference, ~leads
    num_slopes = len(solution.constants) - int(own.sum())
    port, constant = np.eye(num_nodes)[nodes], np.zeros((len(nodes), len(solution.constants)))
    constant[own, num_slopes + np.arange(own.sum())] = 1.0
    # Errors of the phases at the borders go with those of the constants: -H^-1 B spare.
    crossed = -port @ relative @ across @ spare
    covariance = port @ covariance @ port.T + constant @ spare @ constant.T
    covariance += crossed @ constant.T + constant @ crossed.T
    phase = port @ relative @ (choose.T @ solution.borders) + constant @ solution.constants
    frequency, variance, mixed = np.zeros(num_nodes), np.zeros(num_nodes), np.zeros(len(nodes))
    if num_slopes:
        frequency[others], variance[others] = solution.constants[:num_slopes], np.diagonal(spare)[:num_slopes]
        slope = np.zeros((len(nodes), len(solution.constants)))
        slope[:, :num_slopes] = port[:, others]
        mixed = np.einsum("mk,mk->m", crossed + constant @ spare, slope)
    track = solution.borders.reshape(-1, num_nodes)
    turn = 4.0 * np.pi * (frequency[nodes[pairs.i]] - frequency[nodes[pairs.j]])[:, None] * (pairs.time_s - when_s)
    for time in (pairs.time_s - pairs.lag_s - when_s, pairs.time_s + pairs.lag_s - when_s):
        cells, places = grid.locate(time)
        for ports, sign in ((pairs.i, 0.5), (pairs.j, -0.5)):
            node = nodes[ports][:, None]
            turn += sign * ((1.0 - places) * track[cells, node] + places * track[cells + 1, node])
    linewidth = rate.ratio * rate.scale / (8.0 * np.pi)
    return PhaseTrack(
        phase, frequency[nodes], rate.scale * covariance, rate.scale * variance[nodes],
        rate.scale * mixed, linewidth, linewidth * rate.log_std, turn, rate.ratio)
