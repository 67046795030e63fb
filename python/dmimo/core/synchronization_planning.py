# SPDX-License-Identifier: GPL-3.0-or-later
"""How often to synchronise: from an error budget and drift to seconds, and from lost gain to an error budget."""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .carrier_model import HORIZON_S, MAX_INNOVATION_STD_RAD, SMALLEST_STD, TURN, CarrierModel


def resynchronisation_interval(
    budget_rad: float,
    *,
    measurement_std_rad: float,
    frequency_std_hz: float,
    linewidth_hz: float,
    drift_hz: float,
    drift_period_s: float,
    shortest_s: float = 1e-3,
) -> float:
    """Longest interval [s] of periodic exchanges that keeps the tracked phase within an error budget all the time.

    The error is largest just before an exchange; there the standard deviation of a `CarrierTracker` in its steady state
    (`steady_state_std_rad`) equals the budget. Without drift ``tau = budget^4 / (q (budget^2 + measurement_std^2))``.
    At most `HORIZON_S`. The steady state knows the constant part of the offset; until a tracker has learnt it, over
    some drift periods, its own plan (`CarrierTracker.next_synchronisation`) is earlier. And it knows the frequency:
    exchanges that are so far apart from the very first on may never get there, as each phase would have to be started
    anew. The tracker's own plans lead from the first exchange to the steady state.

    Parameters
    ----------
    budget_rad : largest standard deviation of phi; innovations must stay below `MAX_INNOVATION_STD_RAD`.
    measurement_std_rad, frequency_std_hz : of one exchange; frequency_std_hz = inf: it measures the phase only.
    linewidth_hz, drift_hz, drift_period_s : as in `CarrierModel`.
    shortest_s : shortest interval that the network can keep, the duration of an exchange at least.

    Raises
    ------
    ValueError if the budget cannot be met even at `shortest_s`, with the standard deviation that can.
    """
    if not budget_rad > 0 or not math.hypot(budget_rad, measurement_std_rad) <= MAX_INNOVATION_STD_RAD:
        raise ValueError(f"budget_rad={budget_rad} must be positive, and together with measurement_std_rad="
                         f"{measurement_std_rad} at most {MAX_INNOVATION_STD_RAD:.3f}: else phases cannot be unwrapped")
    if not 0 < shortest_s < HORIZON_S:
        raise ValueError(f"shortest_s={shortest_s} must be positive and below {HORIZON_S}")
    model = {"measurement_std_rad": measurement_std_rad, "frequency_std_hz": frequency_std_hz,
             "linewidth_hz": linewidth_hz, "drift_hz": drift_hz, "drift_period_s": drift_period_s}
    reached = float(steady_state_std_rad(shortest_s, **model))
    if reached > budget_rad:
        raise ValueError(f"budget_rad={budget_rad} cannot be met: exchanges every shortest_s={shortest_s} s "
                         f"leave {reached:.3g} rad")
    if steady_state_std_rad(HORIZON_S, **model) <= budget_rad:
        return HORIZON_S
    low, high = math.log(shortest_s), math.log(HORIZON_S)
    for _ in range(60):
        middle = 0.5 * (low + high)
        within = steady_state_std_rad(math.exp(middle), **model) <= budget_rad
        low, high = (middle, high) if within else (low, middle)
    return math.exp(low)


def steady_state_std_rad(
    interval_s: ArrayLike,
    *,
    measurement_std_rad: ArrayLike,
    frequency_std_hz: ArrayLike,
    linewidth_hz: ArrayLike,
    drift_hz: ArrayLike,
    drift_period_s: ArrayLike,
) -> NDArray:
    """Standard deviation (...) of phi just before an exchange, after very many exchanges every `interval_s`.

    Solution of the discrete Riccati equation of [phi, f], m being known after many exchanges, by structured doubling.
    Frequencies are counted in rad per interval. Arguments as of `resynchronisation_interval`; they broadcast.

    References
    ----------
    B. D. O. Anderson, "Second-order convergent algorithms for the steady-state Riccati equation", Int. J. Control 28,
    1978: each step doubles the number of exchanges.
    """
    interval, phase_std, frequency_std, linewidth, drift, period = np.broadcast_arrays(*(
        np.asarray(value, float) for value in (interval_s, measurement_std_rad, frequency_std_hz, linewidth_hz,
                                               drift_hz, drift_period_s)))
    if not np.all((interval > 0) & (phase_std >= 0) & (frequency_std >= 0)):
        raise ValueError("interval_s must be positive, measurement_std_rad and frequency_std_hz not negative")
    model = CarrierModel(linewidth, drift, period)
    scale = np.ones((*interval.shape, 2))
    scale[..., 1] = TURN * interval
    covariance = model.noise(interval)[..., :2, :2] * scale[..., :, None] * scale[..., None, :]
    step = np.swapaxes(model.transition(interval)[..., :2, :2] * scale[..., :, None] / scale[..., None, :], -2, -1)
    information = np.zeros_like(covariance)
    information[..., 0, 0] = 1.0 / np.maximum(phase_std, SMALLEST_STD) ** 2
    information[..., 1, 1] = 1.0 / (scale[..., 1] * np.maximum(frequency_std, SMALLEST_STD)) ** 2
    # Without drift f is known exactly in the end: what is left is the phase alone.
    still = drift == 0.0
    step[still, 1, 1] = step[still, 0, 1] = step[still, 1, 0] = 0.0
    for _ in range(40):
        spread = np.linalg.inv(np.eye(2) + information @ covariance)
        back = np.swapaxes(step, -2, -1)
        change = back @ covariance @ spread @ step
        information = information + step @ spread @ information @ back
        step = step @ spread @ step
        covariance = covariance + change
        if np.all(change[..., 0, 0] <= 1e-13 * covariance[..., 0, 0]):
            break
    return np.sqrt(covariance[..., 0, 0])


def gain_loss_db(phase_std_rad: ArrayLike, num_nodes: int, *, leader: bool = True) -> NDArray:
    """Mean loss (...) of coherent power of N equal nodes, in dB, at Gaussian phase errors of that rms.

    Of the ideal power N^2 the share left is, with ``e = exp(-s^2 / 2)``,

    * leader: ``(N + 2 (N - 1) e + (N - 1)(N - 2) e^2) / N^2``: N - 1 followers have independent errors relative to the
      leader, which has none (2 (N - 1) of the ordered pairs contain it, (N - 1)(N - 2) two followers);
    * otherwise ``e^2 + (1 - e^2) / N``: all N nodes have independent errors.
    """
    _check_nodes(num_nodes)
    e = np.exp(-0.5 * np.asarray(phase_std_rad, float) ** 2)
    if leader:
        share = (num_nodes + 2 * (num_nodes - 1) * e + (num_nodes - 1) * (num_nodes - 2) * e**2) / num_nodes**2
    else:
        share = e**2 + (1.0 - e**2) / num_nodes
    return -10.0 * np.log10(share)


def gain_budget(loss_db: ArrayLike, num_nodes: int, *, leader: bool = True) -> NDArray:
    """Phase error budget (...) in rad rms at which the mean loss is `loss_db`: the inverse of `gain_loss_db`.

    Infinite from 10 log10 N dB, the loss at random phases, upwards.
    """
    _check_nodes(num_nodes)
    loss = np.asarray(loss_db, float)
    if not np.all(loss >= 0):
        raise ValueError(f"loss_db={loss_db} must not be negative")
    # The share missing, exact for small losses; 1 - e solves a quadratic equation, by the form that does not cancel.
    missing = -np.expm1(-np.log(10.0) / 10.0 * loss)
    possible = missing < 1.0 - 1.0 / num_nodes
    missing = np.where(possible, missing, 0.0)
    if leader:
        a, b, c = (num_nodes - 1) * (num_nodes - 2), (num_nodes - 1) ** 2, missing * num_nodes**2
        log_e = np.log1p(-c / (b + np.sqrt(b**2 - a * c)))
    else:
        log_e = 0.5 * np.log1p(-missing * num_nodes / (num_nodes - 1))
    return np.where(possible, np.sqrt(-2.0 * log_e), np.inf)


def _check_nodes(num_nodes: int) -> None:
    if num_nodes < 2:
        raise ValueError(f"num_nodes={num_nodes} must be at least 2")
