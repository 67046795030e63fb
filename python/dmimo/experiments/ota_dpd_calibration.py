# SPDX-License-Identifier: GPL-3.0-or-later
r"""Figure 1 of the over-the-air DPD paper: error of the calibration against reference SNR, with finite predistorters.

Read from the paper: amplifiers are identified with L_dpd pilots and predistorted; calibration pilots of constant
modulus, L_cal of them, then give ratios to the first antenna (a corner). Beside them the same ratios with perfect
predistorters, and with the reference of the smallest predicted error, and the solver on all pairs with its bound. The
paper's lengths are lost: 10 and 100, 1 and 10 here.

* The ratio has the paper's identification, an average over receivers after division by the coupling (its phases are
  random here, see `ota-dpd-combining`); the solver on all pairs the singular vector, and once the average: what that
  costs is hidden by the ratio's own error, not by that of all pairs.
* The mean square error is that of c with c[reference] = 1, its mean over the other antennas. Of the ratio's the
  *median* over trials is drawn: its denominator may vanish, so that its mean is infinite. The dashed closed form is the
  mean without these poles (`mutual_coupling.ratio_mean_square`), drawn where no link's relative error variance is above
  0.1.
* An estimated predistorter leaves each antenna a gain F(u) / x of its own, which calibration takes for a part of t: an
  error that all receivers see alike, and no solver can remove.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..core import bounds, metrics
from ..core.mutual_coupling import (
    all_pairs,
    best_reference,
    link_variance,
    predicted_covariance,
    ratio,
    ratio_mean_square,
)
from ..core.predistortion import Combining, identify_amplifiers, pilot_statistics
from .error_statistics import median_curve
from .ota_dpd_model import (
    ARRAY,
    SNR_LABEL,
    CoupledArray,
    assumptions,
    complex_normal,
    draw,
    linearised_gain,
    pilots,
    received,
)
from .registry import register
from .trials import generators, stack, steps

# The paper's reference, its first antenna: a corner of the array.
CORNER = 0
# Largest relative error variance of a link at which the closed form of the ratio is drawn: nothing shows its poles.
_TRUSTED_VARIANCE = 0.1


def dpd_key(combining: Combining, num_pilots: int | None) -> str:
    """How arrays name an identification; None: perfect coefficients ("none" names no predistortion)."""
    return "perfect" if num_pilots is None else f"{combining}_{num_pilots}"


def summarise(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """Error of c in the paper's gauge, and the alignment error of all estimators, with 95 % bands and bounds."""
    uncalibrated = arrays["alignment_uncalibrated"].mean()
    return {
        "title": "Calibration of predistorted antennas from their mutual coupling",
        "caption": f"{len(arrays['bound'])} trials, 95 % bands; c = 1 for all ports has an alignment error of "
                   f"{uncalibrated:.2f}. Amplifiers: third-order fit of the GaN polynomial. Left: median over "
                   f"trials of the ratio's error, which has no finite mean; its amplifiers are identified by an "
                   f"average, as in the paper; {assumptions(configuration)}.",
        "columns": 2,
        "height": 5.2,
        "panels": [_paper_panel(configuration, arrays), _alignment_panel(configuration, arrays)],
    }  # fmt: skip


def _paper_panel(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    curves, dashed = [], []
    for cal in configuration["cal_pilots"]:
        for dpd in configuration["dpd_pilots"]:
            label = f"ratio, {_calibration(cal)}, {_predistorter(dpd)}"
            curves.append({"label": label, **median_curve(arrays[f"mse_ratio_{dpd_key('average', dpd)}_{cal}"])})
        worst, closed = arrays[f"worst_{cal}"].max(axis=0), arrays[f"closed_{cal}"].mean(axis=0)
        dashed.append({"label": f"closed form of the ratio, {_calibration(cal)}",
                       "values": [float(v) if w <= _TRUSTED_VARIANCE else None
                                  for v, w in zip(closed, worst, strict=True)]})  # fmt: skip
    longest = _longest(configuration)
    label = f"all pairs, {_calibration(cal)}, {_predistorter(longest)} and SVD (mean)"
    curves.append(_mean_curve(label, arrays[f"mse_pairs_{dpd_key('svd', longest)}_{cal}"]))
    bound = arrays["bound"].mean(axis=0).tolist()
    dashed.append({"label": f"bound of all pairs, {_calibration(cal)}", "values": bound})
    return {"title": "c = 1 at the first antenna, a corner, as in the paper", "x_label": SNR_LABEL,
            "y_label": "mean square error of c", "x": list(configuration["snr_db"]),
            "y_scale": "log", "curves": curves, "dashed": dashed}  # fmt: skip


def _alignment_panel(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    longest = _longest(configuration)
    shown = [("corner_perfect", "ratio to the corner, perfect DPD"),
             ("best_perfect", "ratio to the best reference, perfect DPD"),
             ("pairs_none", "all pairs, no DPD"),
             (f"pairs_{dpd_key('average', longest)}", f"all pairs, {_predistorter(longest)} and average"),
             (f"pairs_{dpd_key('svd', longest)}", f"all pairs, {_predistorter(longest)} and SVD"),
             ("pairs_perfect", "all pairs, perfect DPD")]  # fmt: skip
    curves = [_mean_curve(label, arrays[f"alignment_{key}"]) for key, label in shown]
    return {"title": f"whatever the reference; {_calibration(configuration['cal_pilots'][-1])}", "x_label": SNR_LABEL,
            "y_label": "mean alignment error", "x": list(configuration["snr_db"]), "y_scale": "log", "curves": curves,
            "dashed": [{"label": "bound of all pairs", "values": arrays["bound_alignment"].mean(axis=0).tolist()}]}


def _longest(configuration: Mapping) -> int:
    """The largest finite number of identification pilots."""
    numbers = [num for num in configuration["dpd_pilots"] if num is not None]
    if not numbers:
        raise ValueError(f"dpd_pilots = {configuration['dpd_pilots']} must hold at least one number")
    return max(numbers)


def _predistorter(dpd: int | None) -> str:
    return "perfect DPD" if dpd is None else f"DPD from {dpd} pilots"


def _calibration(cal: int) -> str:
    return f"{cal} pilot{'s' * (cal > 1)}"


def _mean_curve(label: str, values: NDArray) -> dict:
    limits = (part.tolist() for part in metrics.mean_interval(values))
    return {"label": label, **dict(zip(("mean", "low", "high"), limits, strict=True))}


@register(
    "ota-dpd-1",
    title="Calibration error against reference SNR after over-the-air DPD: ratio, all pairs, bounds",
    summarise=summarise,
    plot="panels",
    defaults={**ARRAY, "amplifier": "third_order", "snr_db": steps(-20.0, 30.0, 5.0),
              "dpd_pilots": [10, 100, None], "cal_pilots": [1, 10]},
    trials=100,
    block=5,
)  # fmt: skip
def trial_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, np.ndarray]:
    """Errors and bounds of each trial at each SNR, every array (trials, SNRs).

    The noise of a trial is the same at each SNR but for its scale. Gains of links are drawn with the variance
    ``s / L_cal`` that `mutual_coupling.link_gains` has for pilots of constant modulus, to which they are equal.
    """
    _longest(configuration)
    return stack([_trial(configuration, rng) for rng in generators(seeds)], axis=0)


def _trial(configuration: Mapping, rng: np.random.Generator) -> dict[str, NDArray]:
    array = draw(configuration, rng)
    noise_std = np.array([array.noise_std(snr_db) for snr_db in configuration["snr_db"]])
    left = {"none": linearised_gain(array.coefficients, np.ones((len(array.t), 1)))[None],
            "perfect": linearised_gain(array.coefficients, array.coefficients)[None]}  # fmt: skip
    for dpd in configuration["dpd_pilots"]:
        if dpd is not None:
            left |= _left(configuration, array, noise_std, dpd, rng)
    noise = {cal: complex_normal(rng, *array.gains.shape) / np.sqrt(cal) for cal in configuration["cal_pilots"]}
    out = _bounds(configuration, array, noise_std)
    last = configuration["cal_pilots"][-1]
    best = int(best_reference(array.gains))
    for key, gain in left.items():
        for cal, unit in noise.items():
            measured = array.gains * gain[:, None, :] + noise_std[:, None, None] * unit
            measured *= ~np.eye(len(array.t), dtype=bool)
            found = ratio(measured, CORNER)
            out[f"mse_ratio_{key}_{cal}"] = _mean_square(found, array.c)
            if cal == last:
                found = {"corner": found, "best": ratio(measured, best), "pairs": all_pairs(measured)}
                out |= {f"alignment_{name}_{key}": metrics.alignment_error(c, array.c) for name, c in found.items()}
                out[f"mse_pairs_{key}_{cal}"] = _mean_square(found["pairs"], array.c)
    out["alignment_uncalibrated"] = np.full(len(noise_std), metrics.alignment_error(np.ones_like(array.c), array.c))
    return out


def _left(
    configuration: Mapping, array: CoupledArray, noise_std: NDArray, dpd: int, rng: np.random.Generator
) -> dict[str, NDArray]:
    """Gains (SNRs, M) that predistorters from `dpd` pilots leave, by `dpd_key`."""
    x = pilots(configuration, dpd)
    clean, noise = received(array, x), complex_normal(rng, *array.gains.shape, dpd)
    left = {dpd_key(combining, dpd): [] for combining in ("average", "svd")}
    for std in noise_std:
        statistics = pilot_statistics(clean + std * noise, x)
        for combining in ("average", "svd"):
            found = identify_amplifiers(statistics, combining=combining, coupling=array.coupling)
            left[dpd_key(combining, dpd)].append(linearised_gain(array.coefficients, found.coefficients))
    return {key: np.stack(gains) for key, gains in left.items()}


def _mean_square(c_hat: NDArray, c: NDArray) -> NDArray:
    """Mean (...) over the other antennas of the squared error of c with c[corner] = 1."""
    others = np.arange(len(c)) != CORNER
    error = c_hat / c_hat[..., [CORNER]] - c / c[CORNER]
    return np.mean(np.abs(error[..., others]) ** 2, axis=-1)


def _bounds(configuration: Mapping, array: CoupledArray, noise_std: NDArray) -> dict[str, NDArray]:
    """Closed form of the ratio and its worst link for each L_cal, and the bounds of all pairs for the last one."""
    others = np.arange(len(array.c)) != CORNER
    power = np.abs(array.c[others] / array.c[CORNER]) ** 2
    out = {}
    for cal in configuration["cal_pilots"]:
        variance = noise_std[:, None, None] ** 2 * link_variance(array.gains, 1.0, cal)
        out[f"closed_{cal}"] = np.mean(power * ratio_mean_square(variance, CORNER)[:, others], axis=-1)
        worst = np.maximum(variance[:, CORNER, others], variance[:, others, CORNER])
        out[f"worst_{cal}"] = worst.max(axis=-1)
    covariance = predicted_covariance(link_variance(array.gains, 1.0, cal), reference=CORNER)
    out["bound"] = noise_std**2 * np.mean(power * np.diagonal(covariance)[others])
    energy = cal * np.abs(array.gains / array.c) ** 2
    out["bound_alignment"] = noise_std**2 * bounds.alignment_error_crlb(array.c, energy, 1.0)
    return out
