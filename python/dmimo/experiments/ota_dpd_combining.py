# SPDX-License-Identifier: GPL-3.0-or-later
r"""Three ways to combine receivers that hear the same amplifier: errors of its coefficient against the bound.

All receivers see :math:`g_m F(x)` with unknown phases of g: the paper's average after division by the known coupling
adds what is left of them, r, and where they are uniform the sum may vanish. Its error then has no finite mean; neither
has that of the average weighted by the coupling's power. The logarithm has one, so that curves are means of the
logarithm (over antennas and trials), in the decibels of a complex Gaussian error:

.. math:: 10 \log_{10} e^{\overline{\ln |\hat\kappa - \kappa|^2} + 0.577\dots}

For a complex Gaussian error of variance s the mean of :math:`\ln |e|^2` is :math:`\ln s - 0.577\dots` (Euler's
constant): an error at its bound reads as the bound. Dashed: the bound, and what each combination must have by its gain
energy (`predistortion.gain_energy`) and, for the singular vector, by noise times noise.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..core import metrics
from ..core.predistortion import Combining, coefficient_crlb, gain_energy, identify_amplifiers, pilot_statistics
from ..core.predistortion_bounds import noise_penalty
from .ota_dpd_model import ARRAY, SNR_LABEL, CoupledArray, assumptions, complex_normal, draw, pilots, place, received
from .registry import register
from .trials import generators, stack, steps

METHODS: dict[Combining, str] = {"svd": "singular vector (SVD)", "power": "average weighted by the coupling's power",
                                 "average": "average after division by the coupling (paper)"}  # fmt: skip
_DB = 10.0 / np.log(10.0)


def log_level_db(squares: NDArray) -> NDArray:
    """Mean over antennas (last axis) of squared errors in dB, such that a complex Gaussian error reads its variance."""
    return _DB * (np.log(squares).mean(axis=-1) + np.euler_gamma)


def summarise(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """Error relative to kappa, and excess over the bound, both with 95 % bands over trials."""
    ratio = {key: arrays[f"square_{key}"] / arrays["bound"] for key in METHODS}
    at = place(configuration, "at_db", "snr_db")
    trial_means = ratio["svd"][:, at].mean(axis=-1)
    mean, error = metrics.mean_and_standard_error(trial_means)
    return {
        "title": "Third-order coefficient of an amplifier heard by an array whose receivers have random phases",
        "caption": f"{len(arrays['bound'])} trials of {arrays['bound'].shape[-1]} antennas, "
                   f"{configuration['num_pilots']} data-like pilots; means of the logarithm with 95 % bands, as "
                   f"averages have no finite mean square error. Mean square of SVD over its bound at "
                   f"{configuration['at_db']:g} dB: {mean:.3f} ± {error:.3f} (standard error); "
                   f"{assumptions(configuration)}.",
        "columns": 2,
        "height": 4.3,
        "panels": [_error_panel(configuration, arrays), _excess_panel(configuration, arrays, ratio)],
    }  # fmt: skip


def _error_panel(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    relative = {key: arrays[f"square_{key}"] / arrays["kappa_square"][:, None, :] for key in METHODS}
    bound = _DB * np.log(arrays["bound"] / arrays["kappa_square"][:, None, :]).mean(axis=(0, -1))
    return {"title": "error relative to the coefficient", "x_label": SNR_LABEL,
            "y_label": "error of κ over |κ| [dB]", "x": list(configuration["snr_db"]), "curves": _curves(relative),
            "dashed": [{"label": "Cramér-Rao bound", "values": bound.tolist()}]}  # fmt: skip


def _excess_panel(configuration: Mapping, arrays: Mapping[str, np.ndarray], ratio: Mapping[str, NDArray]) -> dict:
    dashed = []
    for index, (key, label) in enumerate((("svd", "SVD with noise times noise"), ("power", "predicted from weights"),
                                          ("average", "predicted from weights"))):  # fmt: skip
        values = _DB * np.log(arrays[f"predicted_{key}"]).mean(axis=(0, -1))
        dashed.append({"label": f"{label}" if key == "svd" else "", "values": values.tolist(), "colour": index})
    dashed[1]["label"] = "averages, from their gain energy"
    return {"title": "error over the bound", "x_label": SNR_LABEL, "y_label": "excess over the bound [dB]",
            "x": list(configuration["snr_db"]), "curves": _curves(ratio), "dashed": dashed}


def _curves(squares: Mapping[str, NDArray]) -> list[dict]:
    curves = []
    for key, label in METHODS.items():
        limits = (part.tolist() for part in metrics.mean_interval(log_level_db(squares[key])))
        curves.append({"label": label, **dict(zip(("mean", "low", "high"), limits, strict=True))})
    return curves


@register(
    "ota-dpd-combining",
    title="Amplifier identification against its bound: singular vector, average and power-weighted receivers",
    summarise=summarise,
    plot="panels",
    defaults={**ARRAY, "amplifier": "third_order", "num_pilots": 100, "snr_db": steps(-30.0, 30.0, 5.0), "at_db": 10.0},
    trials=60,
    block=4,
)  # fmt: skip
def trial_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, np.ndarray]:
    """Squared errors of kappa, their bounds and predicted excess, each (trials, SNRs, antennas); |kappa|^2 of each.

    The noise of a trial is the same at each SNR but for its scale. The variance of the noise is estimated.
    """
    place(configuration, "at_db", "snr_db")
    return stack([_trial(configuration, rng) for rng in generators(seeds)], axis=0)


def _trial(configuration: Mapping, rng: np.random.Generator) -> dict[str, NDArray]:
    array = draw(configuration, rng)
    x = pilots(configuration, configuration["num_pilots"])
    clean, noise = received(array, x), complex_normal(rng, *array.gains.shape, len(x))
    points = []
    for snr_db in configuration["snr_db"]:
        std = array.noise_std(snr_db)
        statistics = pilot_statistics(clean + std * noise, x)
        found = {key: identify_amplifiers(statistics, combining=key, coupling=array.coupling).coefficients
                 for key in METHODS}  # fmt: skip
        point = {f"square_{key}": np.abs(value - array.coefficients)[:, 1] ** 2 for key, value in found.items()}
        points.append({**point, **_predictions(array, x, std**2)})
    return {**stack(points, axis=0), "kappa_square": np.abs(array.coefficients[:, 1]) ** 2}


def _predictions(array: CoupledArray, x: NDArray, noise_var: float) -> dict[str, NDArray]:
    """Bound (M,) of the variance of kappa, and the factor over it that each combination must have."""
    energy = gain_energy(array.gains, noise_var)
    bound = coefficient_crlb(array.coefficients, x, energy)[:, 0, 0].real
    heard = array.coupling != 0
    inverse = np.divide(1.0, array.coupling, out=np.zeros_like(array.coupling), where=heard)
    weights = {"average": inverse, "power": array.coupling.conj()}
    out = {f"predicted_{key}": energy / gain_energy(array.gains, noise_var, weights=w) for key, w in weights.items()}
    output = x * (array.coefficients[:, :1] + array.coefficients[:, 1:] * np.abs(x) ** 2)
    strength = energy * np.sum(np.abs(output) ** 2, axis=-1)
    return {**out, "predicted_svd": noise_penalty(strength, len(energy) - 1), "bound": bound}
