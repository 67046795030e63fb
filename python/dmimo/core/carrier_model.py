# SPDX-License-Identifier: GPL-3.0-or-later
"""The stochastic model of a carrier's phase and frequency that trackers and planners share, discretised exactly.

The reciprocity phase of a node, ``angle(t/r)``, turns with twice its oscillator's phase. That of a node or of the
difference of two nodes is phi with

    d phi = 4 pi f dt + sqrt(q) dW,         q = 8 pi linewidth_hz,
    f = m + u,   du = -u dt / T + sqrt(2 / T) drift_hz dB,   dm = 0,

W and B standard Wiener processes. The state is x = [phi rad, f Hz, m Hz]: phase, frequency, and the unknown constant
about which the frequency wanders as an Ornstein-Uhlenbeck process of rms drift_hz and time constant T. Over times far
below T this is a random walk of the frequency of variance rate 2 drift_hz^2 / T.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

PHASE, FREQUENCY, MEAN_FREQUENCY = 0, 1, 2
# d phi / dt over the frequency in Hz: twice the oscillator's.
TURN = 4.0 * np.pi
# An innovation of so many standard deviations does not belong to the model (false alarm 6e-7).
GATE = 5.0
# Above this standard deviation of the innovation the gate would reach pi, and a wrapped phase pass it unseen.
MAX_INNOVATION_STD_RAD = np.pi / GATE
# Planning horizon. Nothing holds longer than this without a measurement, whatever the model says (12 days).
HORIZON_S = 1e6
# Smallest standard deviation of a measurement that keeps covariances regular.
SMALLEST_STD = 1e-9
# Below this ratio of time to T the variance of the integrated wander is summed as a series: the closed form cancels.
_SERIES_BELOW = 0.1
_SERIES_TERMS = 14


@dataclass(frozen=True)
class CarrierModel:
    """Linewidth and wander of the difference of two carriers, or of one; scalars or arrays that broadcast.

    Parameters
    ----------
    linewidth_hz : full width of the Lorentzian line; for a pair the SUM of the linewidths of both nodes.
    drift_hz : rms of the frequency's wander; for a pair of independent nodes the ROOT of the sum of squares.
    drift_period_s : time constant T, the same for both nodes of a pair.
    """

    linewidth_hz: ArrayLike = 0.0
    drift_hz: ArrayLike = 0.0
    drift_period_s: ArrayLike = 100.0

    def __post_init__(self):
        for name in ("linewidth_hz", "drift_hz"):
            value = np.asarray(getattr(self, name), float)
            if not np.all(np.isfinite(value) & (value >= 0)):
                raise ValueError(f"{name}={getattr(self, name)} must be finite and not negative")
        if not np.all(np.isfinite(self.drift_period_s) & (np.asarray(self.drift_period_s) > 0)):
            raise ValueError(f"drift_period_s={self.drift_period_s} must be finite and positive")

    @property
    def phase_rate(self) -> NDArray:
        """Variance rate q of the phase's random walk in rad^2/s."""
        return 2.0 * TURN * np.asarray(self.linewidth_hz, float)

    def transition(self, interval_s: ArrayLike) -> NDArray:
        """F (..., 3, 3) of ``x(t + interval_s) = F x(t) + w``."""
        lost, lag, _ = self._parts(interval_s)
        period = np.asarray(self.drift_period_s, float)
        out = np.zeros((*lag.shape, 3, 3))
        out[..., PHASE, PHASE] = out[..., MEAN_FREQUENCY, MEAN_FREQUENCY] = 1.0
        out[..., PHASE, FREQUENCY] = TURN * period * lost
        out[..., PHASE, MEAN_FREQUENCY] = TURN * period * lag
        out[..., FREQUENCY, FREQUENCY] = 1.0 - lost
        out[..., FREQUENCY, MEAN_FREQUENCY] = lost
        return out

    def noise(self, interval_s: ArrayLike) -> NDArray:
        """Covariance Q (..., 3, 3) of w.

        With ``x = interval / T`` and ``a = exp(-x)``: ``Q_ff = d^2 (1 - a^2)``, ``Q_phi,f = 4 pi d^2 T (1 - a)^2`` and
        ``Q_phi,phi = q interval + (4 pi d T)^2 (2 x - 3 + 4 a - a^2)``.
        """
        lost, _, growth = self._parts(interval_s)
        period, power = np.asarray(self.drift_period_s, float), np.asarray(self.drift_hz, float) ** 2
        walked = self.phase_rate * np.asarray(interval_s, float)
        shape = np.broadcast_shapes(lost.shape, power.shape, walked.shape)
        out = np.zeros((*shape, 3, 3))
        out[..., PHASE, PHASE] = walked + (TURN * period) ** 2 * power * growth
        out[..., PHASE, FREQUENCY] = out[..., FREQUENCY, PHASE] = TURN * power * period * lost**2
        out[..., FREQUENCY, FREQUENCY] = power * lost * (2.0 - lost)
        return out

    def frequency_prior(self, offset_std_hz: ArrayLike, frequency_std_hz: ArrayLike = np.inf) -> NDArray:
        """Covariance (..., 2, 2) of [f, m] when m is N(0, offset_std_hz^2), the wander stationary and f was measured.

        What was measured is the frequency of that moment, f = m + u. With ``A = offset_std_hz^2``, ``d = drift_hz`` and
        ``v = frequency_std_hz^2`` (inf: not measured, otherwise positive)::

            var f = (A + d^2) v / (A + d^2 + v),  cov(f, m) = A v / (A + d^2 + v),  var m = A (d^2 + v) / (A + d^2 + v),

        which for a wide A are v, v and v + d^2. Their first column over v, times the innovation, changes the means.
        These products lose no digits; a Kalman update of a matrix with the element A + d^2 does where A is wide.
        """
        offset, wander = np.asarray(offset_std_hz, float) ** 2, np.asarray(self.drift_hz, float) ** 2
        variance = np.asarray(frequency_std_hz, float) ** 2
        share = 1.0 / (1.0 + (offset + wander) / variance)
        out = np.empty((*np.broadcast_shapes(share.shape, wander.shape), 2, 2))
        out[..., 0, 0] = (offset + wander) * share
        out[..., 0, 1] = out[..., 1, 0] = offset * share
        out[..., 1, 1] = offset * share * (1.0 + wander / variance)
        return out

    def _parts(self, interval_s: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
        """``1 - a``, ``x - (1 - a)`` and ``2 x - 3 + 4 a - a^2``."""
        x = np.asarray(interval_s, float) / np.asarray(self.drift_period_s, float)
        if not np.all(x >= 0):
            raise ValueError(f"interval_s={interval_s} must not be negative")
        lost = -np.expm1(-x)
        growth = 2.0 * x - lost * (2.0 + lost)
        # Coefficients (-1)^k (4 - 2^k) / k!; those of k < 3 are zero.
        k = np.arange(3, 3 + _SERIES_TERMS)
        factors = (-1.0) ** k * (4.0 - 2.0**k) / np.cumprod(np.concatenate([[6.0], k[1:]]))
        small = np.minimum(x, _SERIES_BELOW)
        series = (factors * small[..., None] ** k).sum(axis=-1)
        return lost, x - lost, np.where(x < _SERIES_BELOW, series, growth)


def wrap(phase: NDArray) -> NDArray:
    """The phase in (-pi, pi]."""
    return np.pi - np.mod(np.pi - phase, 2.0 * np.pi)
