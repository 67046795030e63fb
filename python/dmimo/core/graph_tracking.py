# SPDX-License-Identifier: GPL-3.0-or-later
"""Tracking of the phases and frequencies of many access points through measurements on a graph of pairs.

The Kalman form of `graph_synchronization`: every node has the state [phase, frequency, mean frequency] of
`carrier_model` and process noise of its own; the measurements of a moment enter as the Laplacian of their information.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .carrier_model import GATE, MAX_INNOVATION_STD_RAD, CarrierModel, wrap
from .carrier_tracking import MAX_GATED
from .graph import components, laplacian, require_connected
from .graph_synchronization import pair_measurements, synchronise_graph


class GraphPrediction(NamedTuple):
    """What is known of the nodes relative to the leader, whose entries are zero.

    phase_rad (M,), ``phi_leader - phi_m`` in (-pi, pi]; covariance (M, M) rad^2 and phase_std_rad (M,), inf before the
    first update; frequency_hz (M,), ``f_leader - f_m``, and frequency_std_hz (M,).
    """

    phase_rad: NDArray
    covariance: NDArray
    phase_std_rad: NDArray
    frequency_hz: NDArray
    frequency_std_hz: NDArray


class GraphTracker:
    """Kalman filter of the phases and frequencies of M nodes, measured pairwise.

    Only differences of phases are observed: the phase of the leader is taken from all others after each step, which
    changes no difference and no later one. With two nodes it is a `CarrierTracker`. As there, innovations are wrapped,
    and pairs beyond `GATE` standard deviations are not applied. Where a pair is too uncertain to unwrap, all phases are
    started anew from the measurements of the moment if these join all nodes (event "restarted"); otherwise the pair is
    left out. Frequencies, too, are started anew (event "lost") when pairs were gated in `MAX_GATED` updates in a row.
    `event` is the last update's: "started", "applied", "restarted", "lost"; or, nothing applied, "gated", "ambiguous",
    "late", "untrusted" (nothing measured, or loops that contradict each other at a start).

    Parameters
    ----------
    samp_rate : samples per second; times are absolute samples.
    linewidth_hz, drift_hz, drift_period_s : (M,) or scalars, of each single node.
    offset_std_hz : of the constant part of each node's frequency, about zero.
    num_nodes, leader : M and the node that the results are relative to.
    oscillators : (M,) numbers; nodes with the same one turn alike, ports of one radio. None: one for each node.
    """

    def __init__(
        self,
        samp_rate: float,
        *,
        num_nodes: int,
        linewidth_hz: ArrayLike,
        offset_std_hz: ArrayLike,
        drift_hz: ArrayLike = 0.0,
        drift_period_s: ArrayLike = 100.0,
        leader: int = 0,
        oscillators: ArrayLike | None = None,
    ):
        if not samp_rate > 0 or not np.all(np.asarray(offset_std_hz) > 0):
            raise ValueError(f"samp_rate={samp_rate} and offset_std_hz={offset_std_hz} must be positive")
        if num_nodes < 2 or not 0 <= leader < num_nodes:
            raise ValueError(f"num_nodes={num_nodes} must be at least 2, and leader={leader} one of them")
        self.samp_rate, self.leader, self._num = float(samp_rate), leader, num_nodes
        self.model = CarrierModel(*(np.broadcast_to(np.asarray(part, float), num_nodes)
                                    for part in (linewidth_hz, drift_hz, drift_period_s)))
        numbers = np.arange(num_nodes) if oscillators is None else np.asarray(oscillators)
        if numbers.shape != (num_nodes,):
            raise ValueError(f"oscillators has shape {numbers.shape}; it must be ({num_nodes},)")
        self._shared = numbers[:, None] == numbers
        self._prior = np.broadcast_to(self.model.frequency_prior(offset_std_hz), (num_nodes, 2, 2))
        self._prior_hz = np.zeros(num_nodes)
        self._sample, self._gated = 0.0, 0
        self.started, self.event = False, ""
        # State (3, M) flattened: all phases, all frequencies, all mean frequencies.
        self._state, self._covariance = self._from_priors()

    def predict(self, sample: float) -> GraphPrediction:
        """What is known at `sample`, not before the last update; the track stays as it is."""
        if self.started and sample < self._sample:
            raise ValueError(f"sample={sample} must not lie before the last update, at {self._sample}")
        state, covariance = self._propagate(sample)
        phases, frequencies = slice(0, self._num), slice(self._num, 2 * self._num)
        turn = np.eye(self._num)[self.leader] - np.eye(self._num)
        spread = turn @ covariance[frequencies, frequencies] @ turn.T
        known = covariance[phases, phases].copy()
        if not self.started:
            known = np.where(np.eye(self._num, dtype=bool), np.inf, 0.0)
            known[self.leader, self.leader] = 0.0
        return GraphPrediction(wrap(-state[phases]), known, np.sqrt(np.diagonal(known)), turn @ state[frequencies],
                               np.sqrt(np.maximum(np.diagonal(spread), 0.0)))

    def update(
        self,
        phase_rad: ArrayLike,
        variance: ArrayLike,
        sample: float,
        frequency_hz: ArrayLike | None = None,
        frequency_variance: ArrayLike | None = None,
    ) -> NDArray:
        """Take in the pairs measured at `sample`; returns which were applied, (M, M) bool, symmetric.

        Parameters
        ----------
        phase_rad, variance : (M, M), ``[i, j]``: phi_i - phi_j in rad, rad^2, as `pair_measurements` takes them; the
            variance is inf where not measured or flagged.
        sample : absolute sample that the measurements belong to; pairs measured one after another are one update each.
        frequency_hz, frequency_variance : (M, M) f_i - f_j of the same pairs in Hz, Hz^2; inf: not measured.

        Raises
        ------
        DisconnectedGraphError if the first measurements do not join all nodes. ValueError as `pair_measurements`.
        """
        shape = (self._num, self._num)
        phase, weights = pair_measurements(np.broadcast_to(phase_rad, shape), np.broadcast_to(variance, shape))
        frequency, frequency_weights = pair_measurements(
            np.broadcast_to(0.0 if frequency_hz is None else frequency_hz, shape),
            np.broadcast_to(np.inf if frequency_variance is None else frequency_variance, shape), circular=False)
        frequency_weights = np.where(weights > 0, frequency_weights, 0.0)
        self.event = "applied"
        if not weights.any() or (self.started and sample < self._sample):
            self.event = "late" if weights.any() else "untrusted"
            return np.zeros(shape, bool)
        if not self.started:
            require_connected(weights > 0)
        before = self._propagate(sample)
        after, applied, ambiguous = self._measured(before, phase, weights, frequency, frequency_weights)
        gated = self.started and np.any((weights > 0) & ~applied & ~ambiguous)
        self._gated = self._gated + 1 if gated else 0
        lost = self._gated >= MAX_GATED
        joined = len(components(weights > 0)) == 1
        if joined and (not self.started or lost or ambiguous.any()):
            first = synchronise_graph(phase, _inverse(weights), leader=self.leader)
            if not first.trusted.all():
                self.event = "untrusted"
                return np.zeros(shape, bool)
            self.event = "lost" if lost else "restarted" if self.started else "started"
            blank = self._from_priors() if lost else before
            blank, _ = self._with_frequencies(blank, frequency, frequency_weights)
            after, applied = self._with_phases(blank, first.phase_rad, first.covariance), weights > 0
            self._gated = 0
        elif not applied.any():
            self.event = "gated" if gated else "ambiguous"
            return applied
        self._state, self._covariance = self._gauge(*after)
        self._sample, self.started = float(sample), True
        return applied

    def retune(self, frequency_hz: ArrayLike, sample: float) -> None:
        """From `sample` on the carriers of the nodes are higher by `frequency_hz` (M,); phases go on continuously."""
        frequency = np.broadcast_to(np.asarray(frequency_hz, float), self._num)
        self._state, self._covariance = self._gauge(*self._propagate(sample))
        self._state[self._num :] += np.tile(frequency, 2)
        self._prior_hz = self._prior_hz + frequency
        self._sample = float(sample) if self.started else self._sample

    def advance(self, phase_rad: ArrayLike) -> None:
        """The transmissions of the nodes are turned by e^{+j phase_rad} more, (M,)."""
        self._state[: self._num] += np.broadcast_to(np.asarray(phase_rad, float), self._num)
        self._state, self._covariance = self._gauge(self._state, self._covariance)

    def _propagate(self, sample: float) -> tuple[NDArray, NDArray]:
        interval = (sample - self._sample) / self.samp_rate if self.started else 0.0
        transition, noise = self._node_model(interval)
        return self._gauge(transition @ self._state, transition @ self._covariance @ transition.T + noise)

    def _node_model(self, interval_s: float) -> tuple[NDArray, NDArray]:
        """Transition and process noise of all nodes' states, (3 M, 3 M) each."""
        intervals = np.full(self._num, interval_s)
        alone = np.eye(self._num, dtype=bool)
        return _by_node(self.model.transition(intervals), alone), _by_node(self.model.noise(intervals), self._shared)

    def _gauge(self, state: NDArray, covariance: NDArray) -> tuple[NDArray, NDArray]:
        """The same with the leader's phase as zero."""
        change = np.eye(3 * self._num)
        change[: self._num, self.leader] -= 1.0
        state = change @ state
        state[: self._num] = wrap(state[: self._num])
        return state, change @ covariance @ change.T

    def _from_priors(self) -> tuple[NDArray, NDArray]:
        state = np.concatenate([np.zeros(self._num), self._prior_hz, self._prior_hz])
        blocks = np.zeros((self._num, 3, 3))
        blocks[:, 1:, 1:] = self._prior
        return state, _by_node(blocks, self._shared)

    def _with_phases(self, known, phase: NDArray, covariance: NDArray) -> tuple[NDArray, NDArray]:
        """The same frequencies with phases known from elsewhere, ``phi_leader - phi_m``."""
        state, spread = known[0].copy(), known[1].copy()
        state[: self._num] = -phase
        spread[: self._num] = spread[:, : self._num] = 0.0
        spread[: self._num, : self._num] = covariance
        return state, spread

    def _measured(self, before, phase, weights, frequency, frequency_weights):
        """State and covariance with the pairs that fit the prediction, which these are, and which cannot be unwrapped.

        A pair is left out with both its phase and its frequency; the others are then judged again without it.
        """
        allowed = weights > 0
        while True:
            known, fits = self._with_frequencies(before, frequency, np.where(allowed, frequency_weights, 0.0))
            allowed = allowed & fits
            applied, wild = np.zeros_like(allowed), np.zeros_like(allowed)
            # Twice: what could not be unwrapped at first may be, with the loops that the other pairs close.
            for _ in range(2):
                residual, variance = self._innovation(known, 0, phase, weights)
                residual = wrap(residual)
                clear = allowed & ~applied & (variance <= MAX_INNOVATION_STD_RAD**2)
                wild |= clear & (residual**2 > GATE**2 * variance)
                known = self._fused(known, 0, residual, np.where(clear & ~wild, weights, 0.0))
                applied |= clear & ~wild
            if not wild.any():
                return known, applied, allowed & ~applied
            allowed = allowed & ~wild

    def _with_frequencies(self, before, frequency, information):
        """State and covariance with the frequencies that fit the prediction, and which pairs do (no frequency fits)."""
        residual, variance = self._innovation(before, 1, frequency, information)
        fits = (residual**2 <= GATE**2 * variance) | (information == 0)
        return self._fused(before, 1, residual, np.where(fits, information, 0.0)), fits

    def _innovation(self, known, place: int, value: NDArray, information: NDArray) -> tuple[NDArray, NDArray]:
        """Residual and its predicted variance, (M, M), inf where there is no measurement."""
        own = slice(place * self._num, (place + 1) * self._num)
        state, covariance = known[0][own], known[1][own, own]
        diagonal = np.diagonal(covariance)
        spread = diagonal[:, None] + diagonal - 2.0 * covariance
        return value - (state[:, None] - state), spread + _inverse(information)

    def _fused(self, known, place: int, residual: NDArray, information: NDArray) -> tuple[NDArray, NDArray]:
        """Kalman update in information form: ``P <- P (I + L P)^-1`` with the Laplacian L of the pairs."""
        state, covariance = known
        own = slice(place * self._num, (place + 1) * self._num)
        full = np.zeros_like(covariance)
        full[own, own] = laplacian(information)
        pull = np.zeros_like(state)
        pull[own] = (information * residual).sum(axis=1)
        after = np.linalg.solve(np.eye(len(state)) + covariance @ full, covariance)
        after = 0.5 * (after + after.T)
        return state + after @ pull, after


def _inverse(information: NDArray) -> NDArray:
    return np.divide(1.0, information, out=np.full(information.shape, np.inf), where=information > 0)


def _by_node(blocks: NDArray, joined: NDArray) -> NDArray:
    """(M, 3, 3) of each node, also between nodes that are joined (M, M) -> (3 M, 3 M) in the order of the state."""
    num_nodes = len(blocks)
    out = np.zeros((3, num_nodes, 3, num_nodes))
    first, second = np.nonzero(joined)
    out[:, first, :, second] = blocks[first]
    return out.reshape(3 * num_nodes, 3 * num_nodes)
