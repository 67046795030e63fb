# SPDX-License-Identifier: GPL-3.0-or-later
"""Tracking of the phase and frequency between a leader and its followers, and when to synchronise them again.

A follower B measures now and then ``phi = phi_A - phi_B`` against its leader A, mostly also the offset
``f = f_A - f_B``. Between exchanges phi turns with 4 pi f and wanders as `carrier_model` says. The Kalman filter here
holds what is known of it at any later sample, with its standard deviation; the planner turns an error budget into the
next exchange, and the steady state of the filter into an interval.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .carrier_model import (
    FREQUENCY,
    GATE,
    HORIZON_S,
    MAX_INNOVATION_STD_RAD,
    PHASE,
    SMALLEST_STD,
    TURN,
    CarrierModel,
    wrap,
)
from .synchronization_planning import gain_budget, gain_loss_db, resynchronisation_interval, steady_state_std_rad

__all__ = ["CarrierTracker", "Plan", "Prediction", "gain_budget", "gain_loss_db", "resynchronisation_interval",
           "steady_state_std_rad"]

# Consecutive gated updates after which the track is given up: the oscillator jumped, it is not the measurements.
MAX_GATED = 3


class Prediction(NamedTuple):
    """phase_rad (...) in (-pi, pi] and frequency_hz with standard deviations; that of the phase is inf before any."""

    phase_rad: NDArray
    phase_std_rad: NDArray
    frequency_hz: NDArray
    frequency_std_hz: NDArray


class Plan(NamedTuple):
    """sample (...) int64: when to synchronise; feasible (...) bool: False if the budget is passed already."""

    sample: NDArray
    feasible: NDArray


class CarrierTracker:
    """Kalman filter of phi and of the offset f between a leader and one follower, or many side by side.

    The state of each follower is [phi, f, m] of `carrier_model.CarrierModel`, at a sample of its own. Phases are
    circular: innovations are wrapped to (-pi, pi], which is unique while their standard deviation is below
    `MAX_INNOVATION_STD_RAD`. Above it the phase is started anew from the measurement and only the frequency is kept.

    After each `update`, `events` (...) says in a word what became of it: "applied"; "started", the first one;
    "restarted", the phase was too uncertain to unwrap; "lost", the innovation was beyond `GATE` standard deviations for
    the `MAX_GATED`-th time in a row, and phase and frequency were started anew; "gated", beyond and not applied;
    "untrusted", flagged or not finite, and "late", older than the track: not applied. `innovation` (...) is the wrapped
    innovation of its phase over its predicted standard deviation, white and of unit variance while the oscillators are
    as assumed, larger when they are worse: finite after "applied", after "gated" and "lost" where the phase could be
    unwrapped, otherwise nan.

    Parameters
    ----------
    samp_rate : samples per second; all times are absolute samples of the network, fractions allowed.
    linewidth_hz, drift_hz, drift_period_s : of the difference of leader and follower, as in `CarrierModel`.
    offset_std_hz : standard deviation of the constant part m of f, about zero, before any measurement; wide where
        nothing is known. A measured frequency is no m: it goes into `measure_frequency`.
    shape : of the followers; every argument and result broadcasts to it.
    """

    def __init__(
        self,
        samp_rate: float,
        *,
        linewidth_hz: ArrayLike,
        offset_std_hz: ArrayLike,
        drift_hz: ArrayLike = 0.0,
        drift_period_s: ArrayLike = 100.0,
        shape: tuple[int, ...] = (),
    ):
        if not samp_rate > 0 or not np.all(np.asarray(offset_std_hz, float) > 0):
            raise ValueError(f"samp_rate={samp_rate} and offset_std_hz={offset_std_hz} must be positive")
        self.samp_rate = float(samp_rate)
        self.model = CarrierModel(*(np.broadcast_to(np.asarray(part, float), shape)
                                    for part in (linewidth_hz, drift_hz, drift_period_s)))
        self._shape = shape
        self._offset_std_hz = np.broadcast_to(np.asarray(offset_std_hz, float), shape)
        self._offset_hz = np.zeros(shape)
        self._start = self._sample = np.zeros(shape)
        # What was known before the first phase, and whether a frequency was measured then.
        self._before = self._from_offset(np.zeros(shape), np.full(shape, np.inf))
        self._measured = np.zeros(shape, bool)
        self._state, self._covariance = (part.copy() for part in self._before)
        self._gated = np.zeros(shape, int)
        self.started = np.zeros(shape, bool)
        self.events = np.full(shape, "", "U9")
        self.innovation = np.full(shape, np.nan)

    def predict(self, sample: ArrayLike) -> Prediction:
        """What is known about phi and f at `sample`, not before the last update; the track stays as it is."""
        state, covariance = self._propagate(self._interval_s(sample))
        variance = np.where(self.started, covariance[..., PHASE, PHASE], np.inf)
        return Prediction(wrap(state[..., PHASE]), np.sqrt(variance), state[..., FREQUENCY],
                          np.sqrt(covariance[..., FREQUENCY, FREQUENCY]))

    def predicted_std_rad(self, sample: ArrayLike) -> NDArray:
        """Standard deviation (...) of the phase that `predict` returns."""
        return self.predict(sample).phase_std_rad

    def measure_frequency(self, frequency_hz: ArrayLike, frequency_std_hz: ArrayLike) -> None:
        """Take in a measurement of f before the first phase; until that, time stands still.

        It tells the frequency of the moment, f = m + u, and the constant part m only within drift_hz:
        `CarrierModel.frequency_prior`. A track that is lost starts from it again, aged by the time since the first
        phase, unless the frequency measured then differs by more than `GATE` standard deviations: the oscillator has
        changed its frequency, and the measurement is forgotten.

        Parameters
        ----------
        frequency_hz, frequency_std_hz : f = f_A - f_B; not finite: not measured.

        Raises
        ------
        ValueError if a standard deviation is negative, or something was measured of a follower that has a phase.
        """
        (std,) = self._broadcast(frequency_std_hz)
        if np.any(std < 0):
            raise ValueError(f"frequency_std_hz={frequency_std_hz} must not be negative")
        frequency, variance = self._measurement(frequency_hz, std, np.zeros(self._shape))
        known = np.isfinite(variance)
        if np.any(known & self.started):
            raise ValueError(f"frequency_hz={frequency_hz} must be measured before the first phase")
        self._before = self._with_frequency(self._before, frequency, variance)[0]
        self._measured = self._measured | known
        self._state, self._covariance = _where(self.started, (self._state, self._covariance), self._before)

    def update(
        self,
        phase_rad: ArrayLike,
        phase_std_rad: ArrayLike,
        sample: ArrayLike,
        frequency_hz: ArrayLike | None = None,
        frequency_std_hz: ArrayLike | None = None,
        trusted: ArrayLike = True,
        *,
        duration_s: ArrayLike = 0.0,
    ) -> NDArray:
        """Take in measurements of phi and, where given, f at `sample`; returns whether each was applied, (...) bool.

        Parameters
        ----------
        phase_rad, phase_std_rad : phi = phi_A - phi_B and its standard deviation.
        sample : absolute sample that the measurement belongs to, for a return the midpoint of its two transmissions.
        frequency_hz, frequency_std_hz : f = f_A - f_B, its error independent of that of the phase, as at the centroid
            of a burst; None or an infinite standard deviation: not measured.
        trusted : False where the estimator flagged its result. A follower without a new measurement gets False, too.
        duration_s : length of the burst. What the random walk of the phase does within it makes the fitted phase
            differ from phi at the middle by a variance of q duration / 12, and the fitted slope by 6 q / (5 duration).

        Raises
        ------
        ValueError if a standard deviation is negative.
        """
        sample, trusted, std, frequency_std, duration = self._broadcast(
            sample, trusted, phase_std_rad, np.inf if frequency_std_hz is None else frequency_std_hz, duration_s)
        if np.any(std < 0) or np.any(frequency_std < 0):
            raise ValueError("phase_std_rad and frequency_std_hz must not be negative")
        walked = self.model.phase_rate
        slope = np.divide(1.2 * walked, duration, out=np.zeros(self._shape), where=duration > 0) / TURN**2
        phase, variance = self._measurement(phase_rad, std, walked * duration / 12.0)
        frequency, frequency_variance = self._measurement(
            0.0 if frequency_hz is None else frequency_hz, frequency_std, slope)
        usable = trusted.astype(bool) & np.isfinite(variance) & np.isfinite(sample)
        late = usable & self.started & (sample < self._sample)
        usable &= ~late
        return self._take_in(phase, variance, frequency, frequency_variance, sample, usable, late)

    def _take_in(self, phase, variance, frequency, frequency_variance, sample, usable, late) -> NDArray:
        """Kalman update of the usable followers; variances are infinite where nothing was measured."""
        passed = np.where(usable & self.started, sample - self._sample, 0.0)
        state, covariance = self._propagate(passed / self.samp_rate)
        # The frequency first: it also narrows the phase, before that is unwrapped.
        state, covariance, off = _correct(state, covariance, FREQUENCY, frequency - state[..., FREQUENCY],
                                          frequency_variance)
        *tracked, innovation = _correct(state, covariance, PHASE, wrap(phase - state[..., PHASE]), variance)
        ambiguous = covariance[..., PHASE, PHASE] + variance > MAX_INNOVATION_STD_RAD**2
        beyond = usable & self.started & ((np.abs(off) > GATE) | ((np.abs(innovation) > GATE) & ~ambiguous))
        lost = beyond & (self._gated >= MAX_GATED - 1)
        applied = usable & (~beyond | lost)
        anew = applied & (ambiguous | ~self.started | lost)
        blank = self._started_anew(frequency, frequency_variance, sample, lost)
        kept = _where(lost | ~self.started, blank, (state, covariance))
        updated = _where(anew, _with_phase(*kept, phase, variance), tracked)

        self._state, self._covariance = _where(applied, updated, (self._state, self._covariance))
        self._state[..., PHASE] = wrap(self._state[..., PHASE])
        self._sample = np.where(applied, sample, self._sample)
        self._gated = np.where(applied, 0, self._gated + beyond)
        self.events = np.select(
            [late, ~usable, beyond & ~lost, lost, ~self.started, anew],
            ["late", "untrusted", "gated", "lost", "started", "restarted"], "applied").astype("U9")
        self.innovation = np.where(usable & self.started & ~ambiguous, innovation, np.nan)
        self._start = np.where(applied & ~self.started, sample, self._start)
        self.started = self.started | applied
        return applied

    def retune(self, frequency_hz: ArrayLike, sample: ArrayLike) -> None:
        """Take over that from `sample` on the follower's carrier is `frequency_hz` higher, in both directions.

        The correction is phase-continuous: phi goes on from its value at `sample`, f is lower by `frequency_hz`. The
        uncertainties stay as they are.
        """
        frequency, sample = self._broadcast(frequency_hz, sample)
        state, covariance = self._propagate(self._interval_s(sample))
        state[..., FREQUENCY:] -= frequency[..., None]
        self._offset_hz = self._offset_hz - frequency
        self._before[0][..., FREQUENCY:] -= frequency[..., None]
        self._state, self._covariance, self._sample = state, covariance, np.array(sample, float)

    def advance(self, phase_rad: ArrayLike) -> None:
        """Take over that the follower's transmission is turned by e^{+j phase_rad} more: phi is lower by it."""
        (phase,) = self._broadcast(phase_rad)
        self._state[..., PHASE] = wrap(self._state[..., PHASE] - phase)

    def widen(self, frequency_std_hz: ArrayLike) -> None:
        """Take over that f may be off by that standard deviation more than the model says."""
        (std,) = self._broadcast(frequency_std_hz)
        self._covariance = self._covariance.copy()
        self._covariance[..., FREQUENCY:, FREQUENCY:] += np.square(std)[..., None, None]

    def next_synchronisation(self, budget_rad: ArrayLike, now_sample: ArrayLike) -> Plan:
        """Latest sample at which the predicted standard deviation of phi is within the budget.

        It is never before `now_sample`, and at most `HORIZON_S` after it. Where the budget is passed at `now_sample`
        already, or nothing was measured yet, the plan is `now_sample` and not feasible. A budget above
        `MAX_INNOVATION_STD_RAD` counts as that: later the phase could not be unwrapped. Found by bisection to one
        sample; the variance grows with time, or falls first and grows then.
        """
        budget, now = self._broadcast(budget_rad, now_sample)
        if not np.all(budget > 0):
            raise ValueError(f"budget_rad={budget_rad} must be positive")
        budget = np.minimum(budget, MAX_INNOVATION_STD_RAD)
        low = now = np.ceil(now).astype(np.int64)
        feasible = self.predicted_std_rad(now) <= budget
        # Within the budget at `low`, beyond it at `high`, or no matter.
        high = now + np.int64(HORIZON_S * self.samp_rate)
        low = np.where(self.predicted_std_rad(high) <= budget, high, low)
        while np.any(feasible & (high - low > 1)):
            middle = low + (high - low) // 2
            within = self.predicted_std_rad(middle) <= budget
            low, high = np.where(within, middle, low), np.where(within, high, middle)
        return Plan(np.where(feasible, low, now), feasible)

    def _broadcast(self, *values: ArrayLike) -> list[NDArray]:
        return [np.broadcast_to(np.asarray(value), self._shape) for value in values]

    def _measurement(self, value: ArrayLike, std: NDArray, extra: NDArray) -> tuple[NDArray, NDArray]:
        """Values and variances (...): 0 and infinite where one of them is not finite."""
        (value,) = self._broadcast(value)
        known = np.isfinite(value) & np.isfinite(std)
        return np.where(known, value, 0.0), np.where(known, np.maximum(std, SMALLEST_STD) ** 2 + extra, np.inf)

    def _interval_s(self, sample: ArrayLike) -> NDArray:
        """Time from each follower's last update to `sample`; before the first update time stands still."""
        (sample,) = self._broadcast(sample)
        if np.any(self.started & (sample < self._sample)):
            raise ValueError(f"sample={sample} must not lie before the last update, at {self._sample}")
        return np.where(self.started, sample - self._sample, 0.0) / self.samp_rate

    def _propagate(self, interval_s: NDArray) -> tuple[NDArray, NDArray]:
        return self._aged((self._state, self._covariance), interval_s)

    def _aged(self, known: tuple[NDArray, NDArray], interval_s: NDArray) -> tuple[NDArray, NDArray]:
        """State and covariance after the interval."""
        transition = self.model.transition(interval_s)
        covariance = transition @ known[1] @ np.swapaxes(transition, -2, -1) + self.model.noise(interval_s)
        return (transition @ known[0][..., None])[..., 0], covariance

    def _started_anew(self, frequency, variance, sample, lost) -> tuple[NDArray, NDArray]:
        """Frequencies of a track without a phase: what was known before the first one, and what is measured now.

        Those that are lost and whose frequency has jumped forget what was measured before.
        """
        passed = np.where(lost, sample - self._start, 0.0) / self.samp_rate
        both, jumped = self._with_frequency(self._aged(self._before, passed), frequency, variance)
        jumped = jumped & lost
        blank = self._from_offset(np.zeros(self._shape), np.full(self._shape, np.inf))
        self._before = _where(jumped, blank, self._before)
        self._measured = self._measured & ~jumped
        return _where(jumped, self._from_offset(frequency, variance), both)

    def _with_frequency(self, known, frequency, variance) -> tuple[tuple[NDArray, NDArray], NDArray]:
        """What is known of the frequencies with another measurement, and whether that contradicts an earlier one."""
        *both, innovation = _correct(*known, FREQUENCY, frequency - known[0][..., FREQUENCY], variance)
        first = self._from_offset(frequency, variance)
        return _where(self._measured, both, first), self._measured & (np.abs(innovation) > GATE)

    def _from_offset(self, frequency: NDArray, variance: NDArray) -> tuple[NDArray, NDArray]:
        """State and covariance, without a phase, when f has been measured once, at this moment."""
        state, covariance = np.zeros((*self._shape, 3)), np.zeros((*self._shape, 3, 3))
        spread = self.model.frequency_prior(self._offset_std_hz, np.sqrt(variance))
        gain = spread[..., 0] / variance[..., None]
        state[..., FREQUENCY:] = self._offset_hz[..., None] + gain * (frequency - self._offset_hz)[..., None]
        covariance[..., FREQUENCY:, FREQUENCY:] = spread
        return state, covariance


def _correct(
    state: NDArray, covariance: NDArray, index: int, innovation: NDArray, variance: NDArray
) -> tuple[NDArray, NDArray, NDArray]:
    """State and covariance after a measurement of x[index], and the innovation over its standard deviation.

    `variance` inf changes nothing.
    """
    column = covariance[..., index]
    expected = column[..., index] + variance
    state = state + column * (innovation / expected)[..., None]
    after = covariance - column[..., :, None] * (column / expected[..., None])[..., None, :]
    # What the measurement leaves of its own row is a share of it: no difference that cancels.
    left = column / (1.0 + column[..., index] / variance)[..., None]
    after[..., index, :] = after[..., :, index] = left
    each = np.arange(3)
    after[..., each, each] = np.maximum(after[..., each, each], 0.0)
    return state, after, innovation / np.sqrt(expected)


def _with_phase(state: NDArray, covariance: NDArray, phase: NDArray, variance: NDArray) -> tuple[NDArray, NDArray]:
    """The same frequencies, with a phase known from the measurement alone."""
    state, covariance = state.copy(), covariance.copy()
    state[..., PHASE] = phase
    covariance[..., PHASE, :] = covariance[..., :, PHASE] = 0.0
    covariance[..., PHASE, PHASE] = variance
    return state, covariance


def _where(
    condition: NDArray, chosen: tuple[NDArray, NDArray], other: tuple[NDArray, NDArray]
) -> tuple[NDArray, NDArray]:
    """State and covariance by follower."""
    return (np.where(condition[..., None], chosen[0], other[0]),
            np.where(condition[..., None, None], chosen[1], other[1]))
