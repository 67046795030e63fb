# SPDX-License-Identifier: GPL-3.0-or-later
"""What calibration is judged by, and confidence intervals for it."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit
from scipy.stats import norm


def alignment_error(c_hat: ArrayLike, c: ArrayLike) -> NDArray:
    """One minus the squared cosine of the angle between c_hat and c, (...), from (..., M): 0 aligned, 1 orthogonal.

    ``1 - |c^H c_hat|^2 / (|c|^2 |c_hat|^2)``, computed as the energy of c_hat outside the direction of c, which keeps
    full relative precision for tiny errors where the difference from 1 would not.
    """
    c_hat, c = np.asarray(c_hat), np.asarray(c)
    unit = c / np.linalg.norm(c, axis=-1, keepdims=True)
    unit_hat = c_hat / np.linalg.norm(c_hat, axis=-1, keepdims=True)
    inner = (unit.conj() * unit_hat).sum(axis=-1, keepdims=True)
    return (np.abs(unit_hat - inner * unit) ** 2).sum(axis=-1)


def phase_error(c_hat: ArrayLike, c: ArrayLike) -> NDArray:
    """Circular standard deviation over ports of the phase of c_hat against c in rad, (...), common phase removed.

    ``sqrt(-2 ln |mean_m exp(j (arg c_hat_m - arg c_m))|)``; about the rms phase error while that is small.
    """
    product = np.asarray(c_hat) * np.conj(np.asarray(c))
    # From the cosines about the mean direction: 1 - |mean| without the difference from 1.
    phasor = product / np.abs(product)
    mean = phasor.mean(axis=-1, keepdims=True)
    shortfall = 2.0 * np.sin(0.5 * np.angle(phasor * np.conj(mean))) ** 2
    # The mean of unit phasors cannot exceed 1; rounding can.
    return np.sqrt(-2.0 * np.log1p(-np.clip(shortfall.mean(axis=-1), 0.0, 1.0)))


def coherent_gain(weights: ArrayLike, channel: ArrayLike, *, node_of_port: ArrayLike | None = None) -> NDArray:
    """Received power over its mean for random phases of the nodes, (...), from (..., M) each.

    ``|sum_n a_n|^2 / sum_n |a_n|^2`` with ``a_n = sum_(m of node n) w_m h_m``: the denominator is the mean over
    independent uniform phases of the nodes, at equal total power. For N nodes with equal terms in phase it is N, and on
    average 1 without calibration. `node_of_port` (M,) groups ports; None: every port is a node.
    """
    terms = np.asarray(weights) * np.asarray(channel)
    if node_of_port is not None:
        nodes = np.asarray(node_of_port)
        terms = terms @ (nodes[:, None] == np.unique(nodes)).astype(float)
    return np.abs(terms.sum(axis=-1)) ** 2 / (np.abs(terms) ** 2).sum(axis=-1)


class Interval(NamedTuple):
    """An estimate with its two-sided confidence limits."""

    value: NDArray
    lower: NDArray
    upper: NDArray


def mean_and_standard_error(x: ArrayLike, axis: int = 0) -> tuple[NDArray, NDArray]:
    """Mean of independent trials along an axis, and its standard error (unbiased variance over the number)."""
    x = np.asarray(x)
    count = x.shape[axis]
    if count < 2:
        raise ValueError(f"a standard error needs at least 2 trials along axis {axis}, not {count}")
    return x.mean(axis=axis), x.std(axis=axis, ddof=1) / np.sqrt(count)


def mean_interval(x: ArrayLike, axis: int = 0, confidence: float = 0.95) -> Interval:
    """Mean of independent trials with Student's t limits."""
    mean, error = mean_and_standard_error(x, axis)
    half = stdtrit(np.shape(x)[axis] - 1, 0.5 + 0.5 * _check_confidence(confidence)) * error
    return Interval(mean, mean - half, mean + half)


def ratio_of_means_interval(x: ArrayLike, y: ArrayLike, axis: int = 0, confidence: float = 0.95) -> Interval:
    """``mean(x) / mean(y)`` over paired trials, with limits by Fieller's theorem.

    The limits are the ratios r for which ``mean(x - r y)`` does not differ significantly from zero. They are infinite
    where the mean of y itself does not differ from zero.
    """
    (mx, ex), (my, ey) = mean_and_standard_error(x, axis), mean_and_standard_error(y, axis)
    count = np.shape(x)[axis]
    dx, dy = np.asarray(x) - np.expand_dims(mx, axis), np.asarray(y) - np.expand_dims(my, axis)
    covariance = (dx * dy).sum(axis=axis) / (count * (count - 1))
    t2 = stdtrit(count - 1, 0.5 + 0.5 * _check_confidence(confidence)) ** 2
    # Roots of (my^2 - t2 ey^2) r^2 - 2 (mx my - t2 cov) r + (mx^2 - t2 ex^2) = 0.
    a, b, c = my**2 - t2 * ey**2, mx * my - t2 * covariance, mx**2 - t2 * ex**2
    root = np.sqrt(np.maximum(b**2 - a * c, 0.0))
    with np.errstate(divide="ignore", invalid="ignore"):
        value, lower, upper = mx / my, (b - root) / a, (b + root) / a
    unbounded = a <= 0
    return Interval(value, np.where(unbounded, -np.inf, lower), np.where(unbounded, np.inf, upper))


def rate_interval(successes: ArrayLike, trials: ArrayLike, confidence: float = 0.95) -> Interval:
    """Rate of independent successes with Wilson's score limits, which behave at rates of 0 and 1 too.

    References
    ----------
    E. B. Wilson, "Probable inference, the law of succession, and statistical inference", J. Amer. Statist. Assoc. 22,
    1927.
    """
    successes, trials = np.asarray(successes, float), np.asarray(trials, float)
    if np.any(trials < 1) or np.any(successes < 0) or np.any(successes > trials):
        raise ValueError("successes must lie between 0 and trials, and trials must be positive")
    z = norm.ppf(0.5 + 0.5 * _check_confidence(confidence))
    rate = successes / trials
    centre = (rate + z**2 / (2.0 * trials)) / (1.0 + z**2 / trials)
    half = z * np.sqrt(rate * (1.0 - rate) / trials + z**2 / (4.0 * trials**2)) / (1.0 + z**2 / trials)
    # At the ends the limits are exactly 0 and 1 but for rounding.
    return Interval(
        rate, np.where(successes == 0, 0.0, centre - half), np.where(successes == trials, 1.0, centre + half)
    )


def _check_confidence(confidence: float) -> float:
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence = {confidence} must be between 0 and 1")
    return confidence
