# SPDX-License-Identifier: GPL-3.0-or-later
r"""Kalman tracking of the phases of calibration coefficients, and of the oscillators behind them, over TDD patterns.

The phase of c of a node turns with twice its oscillator, which is the reciprocity phase that `graph_tracking` follows:
its frequencies are those of the oscillators. A two-way coefficient measures a difference of nodes,

.. math:: \arg C_{mn} = \varphi_n - \varphi_m, \qquad \varphi_X = \arg c_X, \qquad
          2 \phi_{mn}(t) = \varphi_n - \varphi_m + \alpha_{mn}, \qquad
          \alpha_{mn} = -(\varphi_n - \varphi_m)(t_\mathrm{ref}),

and the phase change phi of a one-way channel since its reference sounding the same but for a constant alpha. Taking "C
at the last calibration plus twice the change since" for a new measurement each time would count the errors of the
calibration and of the reference again and again. So alpha is part of the state: it starts as a copy of the phases with
all their errors, and later calibrations make it better, as long as the channel stays.

References
----------
Bidirectional calibration (CARS), eq. (30) to (33); the paper tracks without a filter.
"""

from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bidirectional import BidirectionalCalibration
from .bidirectional_bounds import bipartite
from .carrier_model import GATE, MAX_INNOVATION_STD_RAD, wrap
from .csi_tracking import Direction, direction_sign
from .graph_synchronization import pair_measurements
from .graph_tracking import GraphTracker


class CoefficientPrediction(NamedTuple):
    """What is known of the nodes relative to the reference, whose entries are zero; nodes are TRPs, then UEs.

    phase_trp_rad (M,), phase_ue_rad (N,): phases of the coefficients c, in (-pi, pi]. covariance (M + N, M + N) rad^2
    and phase_std_rad (M + N,): inf before the first calibration. oscillator_hz (M + N,), f of the oscillators, with
    oscillator_std_hz: c turns at twice that.
    """

    phase_trp_rad: NDArray
    phase_ue_rad: NDArray
    covariance: NDArray
    phase_std_rad: NDArray
    oscillator_hz: NDArray
    oscillator_std_hz: NDArray


class CoefficientTracker:
    """Kalman filter of the phases of c of M TRPs and N UEs, and of their oscillators' frequencies.

    Wraps a `graph_tracking.GraphTracker`, with its gate, its unwrapping and its events for two-way measurements; to its
    state comes alpha of each link for one-way ones. `event` is the last update's, as there, and "unreferenced": no link
    of a one-way update has a reference sounding.

    Parameters
    ----------
    samp_rate : samples per second; times are absolute samples, fractions allowed.
    num_trp, num_ue : M and N.
    linewidth_hz, drift_hz, drift_period_s : (M + N,) or scalars, of each single oscillator (`carrier_model`; that c
        turns twice as far, and walks with four times the variance, is part of the model).
    offset_std_hz : standard deviation of the constant part of each oscillator's frequency, about zero.
    reference : node (UE n is M + n) that the results are relative to.
    direction : of the one-way soundings, see `csi_tracking`.
    path_rate_rad2_s : variance rate of 2 phi by slow changes of the channels themselves, each link on its own.
    oscillators : (M + N,) numbers; ports with the same one belong to one radio. None: one for each.
    """

    def __init__(
        self,
        samp_rate: float,
        *,
        num_trp: int,
        num_ue: int,
        linewidth_hz: ArrayLike,
        offset_std_hz: ArrayLike,
        drift_hz: ArrayLike = 0.0,
        drift_period_s: ArrayLike = 100.0,
        reference: int = 0,
        direction: Direction = "uplink",
        path_rate_rad2_s: float = 0.0,
        oscillators: ArrayLike | None = None,
    ):
        if num_trp < 1 or num_ue < 1:
            raise ValueError(f"num_trp={num_trp} and num_ue={num_ue} must be at least 1")
        if not path_rate_rad2_s >= 0:
            raise ValueError(f"path_rate_rad2_s={path_rate_rad2_s} must not be negative")
        self._shape, self._sign = (num_trp, num_ue), direction_sign(direction)
        self._graph = _LinkTracker(
            samp_rate, num_trp, num_ue, path_rate_rad2_s, linewidth_hz=linewidth_hz, offset_std_hz=offset_std_hz,
            drift_hz=drift_hz, drift_period_s=drift_period_s, leader=reference, oscillators=oscillators,
        )  # fmt: skip

    @property
    def event(self) -> str:
        """What became of the last update."""
        return self._graph.event

    @property
    def started(self) -> bool:
        """Whether there has been a calibration."""
        return self._graph.started

    @property
    def referenced(self) -> NDArray:
        """Links (M, N) whose reference sounding counts."""
        return self._graph.referenced.reshape(self._shape).copy()

    def update_calibration(
        self,
        phase_rad: ArrayLike,
        variance: ArrayLike,
        sample: float,
        frequency_hz: ArrayLike | None = None,
        frequency_variance: ArrayLike | None = None,
    ) -> NDArray:
        """Take in phases of C at the `sample` of the midpoint; returns which were applied, (M, N) bool.

        Parameters
        ----------
        phase_rad, variance : (M, N), of C at band centre (`bidirectional.link_estimates`), rad and rad^2; inf or nan:
            not measured or not trusted. Of 1 / C, which UEs read, give minus the phase.
        frequency_hz, frequency_variance : (M, N), f_n - f_m from data that is not given otherwise, too; inf: not
            measured. A contradicting frequency leaves its phase out, too.

        Raises
        ------
        DisconnectedLinksError, or DisconnectedGraphError, if the first calibration does not join all nodes.
        """
        frequency = (None, None)
        if frequency_hz is not None and frequency_variance is not None:
            frequency = (self._differences(frequency_hz), self._variances(frequency_variance))
        applied = self._graph.update(self._differences(phase_rad), self._variances(variance), sample, *frequency)
        return applied[: self._shape[0], self._shape[0] :]

    def update_frequency(self, frequency_hz: ArrayLike, variance: ArrayLike, sample: float) -> NDArray:
        """Take in frequencies f_n - f_m (M, N) of links, also before the first calibration; returns which applied."""
        applied = self._graph.update_frequency(self._differences(frequency_hz), self._variances(variance), sample)
        return applied[: self._shape[0], self._shape[0] :]

    def set_reference(self, sample: float, links: ArrayLike = True) -> None:
        """One-way phase changes of the links (M, N) count from the sounding at `sample` from now on.

        Keep a reference as long as the channel stays: its alpha is averaged over all calibrations since.

        Raises
        ------
        ValueError
            Before the first calibration, and for a sample before the last update.
        """
        self._graph.set_reference(sample, np.broadcast_to(np.asarray(links, bool), self._shape).reshape(-1))

    def update_csi(self, phase_change_rad: ArrayLike, variance: ArrayLike, sample: float) -> NDArray:
        """Take in phase changes phi since the reference sounding; returns which were applied, (M, N) bool.

        Links further than `GATE` deviations from the prediction, or too uncertain to unwrap, are not applied: the
        channel has changed, or the last update is too long ago.

        Parameters
        ----------
        phase_change_rad, variance : (M, N), `csi_tracking.phase_change` of the sounding at `sample` against the
            reference, one-way; inf or nan: not measured or not trusted. Half of the variance is taken to be the
            reference's, the same in all changes since, as it is at equal SNR.
        """
        phase, variance = (np.broadcast_to(np.asarray(part, float), self._shape).reshape(-1)
                           for part in (phase_change_rad, variance))
        return self._graph.update_csi(2.0 * self._sign * phase, 4.0 * variance, sample).reshape(self._shape)

    def predict(self, sample: float) -> CoefficientPrediction:
        """What is known at `sample`, not before the last update; the track stays as it is."""
        known = self._graph.predict(sample)
        # The graph's results are by how much the leader is ahead.
        phase, num_trp = wrap(-known.phase_rad), self._shape[0]
        return CoefficientPrediction(phase[:num_trp], phase[num_trp:], known.covariance, known.phase_std_rad,
                                     -known.frequency_hz, known.frequency_std_hz)

    def applied(self, calibration: BidirectionalCalibration, sample: float) -> BidirectionalCalibration:
        """The calibration, of one network, with the phases predicted for `sample`; the reference's c stays."""
        known, origin = self.predict(sample), self._graph.leader
        turn = np.exp(1j * np.angle(np.concatenate([calibration.c_trp, calibration.c_ue])[origin]))
        return replace(
            calibration,
            c_trp=np.abs(calibration.c_trp) * np.exp(1j * known.phase_trp_rad) * turn,
            c_ue=np.abs(calibration.c_ue) * np.exp(1j * known.phase_ue_rad) * turn,
            time_s=sample / self._graph.samp_rate,
        )

    def _differences(self, links: ArrayLike) -> NDArray:
        """Values of the UEs less those of the TRPs (M, N) as pairs of nodes, in both orders."""
        out = bipartite(np.broadcast_to(np.asarray(links, float), self._shape))
        out[: self._shape[0]] *= -1.0
        return out

    def _variances(self, links: ArrayLike) -> NDArray:
        joined = bipartite(np.ones(self._shape, bool))
        return np.where(joined, bipartite(np.broadcast_to(np.asarray(links, float), self._shape)), np.inf)


class _LinkTracker(GraphTracker):
    """A `GraphTracker` of TRPs and UEs with alpha of each link, (M N,) in row order, at the end of its state."""

    def __init__(self, samp_rate: float, num_trp: int, num_ue: int, path_rate: float, **settings):
        self._num_links, self._path_rate = num_trp * num_ue, path_rate
        self.referenced = np.zeros(self._num_links, bool)
        # Links whose reference sounding's own noise is still to come: it is known with the first change.
        self._fresh = np.zeros(self._num_links, bool)
        super().__init__(samp_rate, num_nodes=num_trp + num_ue, **settings)
        trp, ue = np.divmod(np.arange(self._num_links), num_ue)
        self._rows = np.zeros((self._num_links, len(self._state)))
        each = np.arange(self._num_links)
        self._rows[each, num_trp + ue], self._rows[each, trp] = 1.0, -1.0
        self._own = 3 * self._num + each

    def update(self, *measured) -> NDArray:
        """As `GraphTracker.update`; a track that is lost has lost its references."""
        applied = super().update(*measured)
        if self.event == "lost":
            self.referenced[:] = False
        return applied

    def update_frequency(self, frequency_hz: NDArray, variance: NDArray, sample: float) -> NDArray:
        """Frequencies alone, (M + N, M + N) as `GraphTracker.update` takes them; which were applied."""
        frequency, weights = pair_measurements(frequency_hz, variance, circular=False)
        if not weights.any() or (self.started and sample < self._sample):
            self.event = "late" if weights.any() else "untrusted"
            return np.zeros(weights.shape, bool)
        known, fits = self._with_frequencies(self._propagate(sample), frequency, weights)
        applied = fits & (weights > 0)
        self.event = "applied" if applied.any() else "gated"
        self._keep(known, sample)
        return applied

    def set_reference(self, sample: float, links: NDArray) -> None:
        """alpha of the links is minus the phase difference of their nodes at `sample`, with its error."""
        if not self.started or sample < self._sample:
            raise ValueError(f"sample={sample} must not lie before the first calibration and the last update")
        state, covariance = self._propagate(sample)
        copy = np.eye(len(state))
        copy[self._own[links]] = -self._rows[links]
        self._keep((copy @ state, copy @ covariance @ copy.T), sample)
        self.referenced |= links
        self._fresh |= links

    def update_csi(self, phase: NDArray, variance: NDArray, sample: float) -> NDArray:
        """Differences of nodes plus alpha (M N,), half of the variance in alpha; which were applied."""
        measured = np.isfinite(phase) & np.isfinite(variance) & (variance > 0)
        allowed = measured & self.referenced
        late = self.started and sample < self._sample
        if late or not allowed.any():
            self.event = "late" if late else "unreferenced" if measured.any() else "untrusted"
            return np.zeros(self._num_links, bool)
        known = self._propagate(sample)
        first = allowed & self._fresh
        known[1][self._own[first], self._own[first]] += 0.5 * variance[first]
        self._fresh &= ~allowed
        rows = self._rows.copy()
        rows[np.arange(self._num_links), self._own] = 1.0
        applied, wild = np.zeros_like(allowed), np.zeros_like(allowed)
        # Twice: what could not be unwrapped at first may be, with what the other links tell.
        for _ in range(2):
            spread = np.sum((rows @ known[1]) * rows, axis=1) + 0.5 * variance
            residual = wrap(np.where(allowed, phase - rows @ known[0], 0.0))
            clear = allowed & ~applied & ~wild & (spread <= MAX_INNOVATION_STD_RAD**2)
            wild |= clear & (residual**2 > GATE**2 * spread)
            clear &= ~wild
            known = _fused(known, rows[clear], residual[clear], 0.5 * variance[clear])
            applied |= clear
        self.event = "applied" if applied.any() else "gated" if wild.any() else "ambiguous"
        self._keep(known, sample)
        return applied

    def _keep(self, known: tuple[NDArray, NDArray], sample: float) -> None:
        self._state, self._covariance = self._gauge(*known)
        self._sample = float(sample) if self.started else self._sample

    def _propagate(self, sample: float) -> tuple[NDArray, NDArray]:
        interval = (sample - self._sample) / self.samp_rate if self.started else 0.0
        nodes = slice(0, 3 * self._num)
        transition, noise = np.eye(len(self._state)), np.zeros(self._covariance.shape)
        transition[nodes, nodes], noise[nodes, nodes] = self._node_model(interval)
        noise[self._own, self._own] = self._path_rate * interval * self.referenced
        return self._gauge(transition @ self._state, transition @ self._covariance @ transition.T + noise)

    def _gauge(self, state: NDArray, covariance: NDArray) -> tuple[NDArray, NDArray]:
        change = np.eye(len(state))
        change[: self._num, self.leader] -= 1.0
        state = change @ state
        state[: self._num], state[3 * self._num :] = wrap(state[: self._num]), wrap(state[3 * self._num :])
        return state, change @ covariance @ change.T

    def _from_priors(self) -> tuple[NDArray, NDArray]:
        state, covariance = super()._from_priors()
        return np.pad(state, (0, self._num_links)), np.pad(covariance, (0, self._num_links))


def _fused(known: tuple[NDArray, NDArray], rows: NDArray, residual: NDArray, variance: NDArray):
    """Kalman update by measurements ``rows @ state`` with independent errors."""
    state, covariance = known
    column = covariance @ rows.T
    gain = np.linalg.solve(rows @ column + np.diag(variance), column.T).T
    # Joseph's form: stays positive where measurements are nearly exact.
    left = np.eye(len(state)) - gain @ rows
    after = left @ covariance @ left.T + (gain * variance) @ gain.T
    return state + gain @ residual, 0.5 * (after + after.T)
