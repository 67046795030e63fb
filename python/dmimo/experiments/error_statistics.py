# SPDX-License-Identifier: GPL-3.0-or-later
"""From errors of many trials to curves with confidence bands, and where such a curve reaches a wanted error."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erf
from scipy.stats import binom

from ..core import metrics

# The gains of the radio chains: "unit" modulus and uniform phase, or the paper's "normal", CN(0, 1).
GAINS = ("unit", "normal")
# The phase RMSE at which BeamSync is held against its baselines.
WANTED_RMSE = 3e-3
# 95 % of a normal distribution.
_TWO_SIDED_95 = 1.959964


def wrap(angle: NDArray) -> NDArray:
    """Angles brought to (-pi, pi], the range in which a phase error is counted."""
    return np.pi - np.mod(np.pi - angle, 2.0 * np.pi)


def rms_curve(errors: ArrayLike) -> dict[str, list[float]]:
    """Root mean square over trials, (points,), with its 95 % band, from errors (trials, points).

    The band is that of the logarithm of the mean square, by the delta method: it stays positive where a few outliers
    make most of the mean.
    """
    mean, error = metrics.mean_and_standard_error(np.asarray(errors, np.float64) ** 2, axis=0)
    half = _TWO_SIDED_95 * np.divide(error, mean, out=np.zeros_like(mean), where=mean > 0)
    root = np.sqrt(mean)
    return _curve(root, root * np.exp(-0.5 * half), root * np.exp(0.5 * half))


def median_curve(errors: ArrayLike) -> dict[str, list[float]]:
    """Median over trials of the absolute error, (points,), with its distribution-free band of at least 95 %.

    The band is between two order statistics: the number of trials below the median is binomial, whatever the
    distribution of the errors, so it holds where the mean square is infinite.
    """
    ordered = np.sort(np.abs(np.asarray(errors, np.float64)), axis=0)
    trials = ordered.shape[0]
    below = int(binom.ppf(0.025, trials, 0.5))
    return _curve(np.median(ordered, axis=0), ordered[max(below - 1, 0)], ordered[min(trials - below, trials - 1)])


def error_curve(errors: ArrayLike, gains: str) -> dict[str, list[float]]:
    """`rms_curve` for gains of unit modulus; `median_curve` for "normal" ones.

    A gain CN(0, 1) makes the error variance proportional to 1 / |t|^2, whose mean is infinite: there the root mean
    square of any number of trials is the luck of the worst fade.

    Raises
    ------
    ValueError
        If `gains` is neither.
    """
    if gains not in GAINS:
        raise ValueError(f"gains={gains!r} must be one of {', '.join(map(repr, GAINS))}")
    return rms_curve(errors) if gains == "unit" else median_curve(errors)


def bound_curve(variance: ArrayLike, gains: str) -> list[float]:
    """What the errors of an efficient estimator with these variances (trials, points) would show in `error_curve`.

    For "normal" gains that is the median over trials of |sqrt(variance) e|, e ~ N(0, 1): the quantile of a
    mixture of normal distributions, found here by bisection.
    """
    variance = np.asarray(variance, np.float64)
    if gains == "unit":
        return np.sqrt(variance.mean(axis=0)).tolist()
    low, high = np.zeros(variance.shape[1]), 10.0 * np.sqrt(variance.max(axis=0))
    for _ in range(60):
        middle = 0.5 * (low + high)
        less = erf(middle / np.sqrt(2.0 * variance)).mean(axis=0) < 0.5
        low, high = np.where(less, middle, low), np.where(less, high, middle)
    return (0.5 * (low + high)).tolist()


def statistic_name(gains: str) -> str:
    """How to call on an axis what `error_curve` gives."""
    return "RMSE" if gains == "unit" else "median absolute error"


def snr_at(snr_db: Sequence[float], error: Sequence[float], wanted: float) -> float | None:
    """SNR [dB] at which a falling curve of errors reaches `wanted`, None if it never does.

    Between points the logarithm of the error is taken to be straight. The last crossing counts: below a threshold SNR
    a curve need not fall.
    """
    snr_db, level = np.asarray(snr_db, np.float64), np.log(np.asarray(error, np.float64) / wanted)
    falls = np.flatnonzero((level[:-1] > 0) & (level[1:] <= 0))
    if falls.size == 0:
        return None
    k = falls[-1]
    return float(snr_db[k] + (snr_db[k + 1] - snr_db[k]) * level[k] / (level[k] - level[k + 1]))


def gain_db(better: float | None, worse: float | None) -> float | None:
    """Difference of two results of `snr_at`; None if one of the curves never got there."""
    return None if better is None or worse is None else worse - better


def caption(trials: int, configuration: Mapping, *notes: str) -> str:
    """Number of trials, what the bands are, and the gains of the radio chains."""
    gains = "unit-modulus gains" if configuration["gains"] == "unit" else "gains CN(0, 1)"
    return ", ".join([f"{trials} trials", "95 % confidence bands", gains, *notes])


def _curve(mean: NDArray, low: NDArray, high: NDArray) -> dict[str, list[float]]:
    return {"mean": mean.tolist(), "low": low.tolist(), "high": high.tolist()}
