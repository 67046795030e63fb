# SPDX-License-Identifier: GPL-3.0-or-later
r"""Order of the amplifier model for a GaN amplifier: what noise, a model too small, and clipping leave of distortion.

The amplifier is the ninth-order polynomial of R4-165901 (`simulation.amplifiers.GAN_POLYNOMIAL`). An array identifies
it at different orders from pilots of a `design` whose largest is `peak_below_db` below the amplitude |u| = 1 where the
polynomial ends; it is predistorted by the numerical inverse of the model (`predistortion.predistort`) or by indirect
learning (`predistortion.indirect_inverse`, a polynomial of the model's order), limited to the largest pilot.

NMSE is the power of the output's error over that of the output's linear part, best linear gain removed, for Gaussian
data of unit mean power; "inside" counts the amplitudes that the true amplifier can be made to give below the largest
pilot, "all" every one: what lies beyond is clipped, and even the perfect inverse has the clipping's error, the floor.

A small array is the default: with 100 antennas, whose neighbours are 35 dB stronger than the weakest link, noise would
be far below everything else at these reference SNRs.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..core import metrics
from ..core.amplifier_model import amplify
from ..core.predistortion import (
    data_amplitudes,
    design_pilots,
    identify_amplifiers,
    indirect_inverse,
    invertible_range,
    pilot_statistics,
    predistort,
)
from .ota_dpd_model import ARRAY, CoupledArray, assumptions, complex_normal, draw, place, received
from .registry import register
from .trials import generators, stack

# Amplitudes of Gaussian data at unit power: the largest, beyond which is a share of 1e-11, and their number.
_LARGEST, _POINTS = 5.0, 1000
_AMPLITUDE = _LARGEST * (np.arange(_POINTS) + 0.5) / _POINTS
_WEIGHT = 2.0 * _AMPLITUDE * np.exp(-(_AMPLITUDE**2)) * _LARGEST / _POINTS
# Equally likely amplitudes for predictions and for indirect learning.
_DATA = data_amplitudes(512, peak=100.0, backoff_db=40.0)
_NMSE_LIMITS = [-75.0, -10.0]


def nmse(output: NDArray, reach: NDArray | float = np.inf) -> NDArray:
    """NMSE (...) of outputs (..., N) for data of the amplitudes `_AMPLITUDE` up to reach (...), best gain removed."""
    weight = np.where(np.asarray(reach)[..., None] >= _AMPLITUDE, _WEIGHT, 0.0)
    energy = np.sum(weight * _AMPLITUDE**2, axis=-1)
    gain = np.sum(weight * _AMPLITUDE * output, axis=-1) / energy
    error = np.sum(weight * np.abs(output - gain[..., None] * _AMPLITUDE) ** 2, axis=-1)
    return error / (np.abs(gain) ** 2 * energy)


def summarise(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """NMSE against order: by reference SNR and by inverse at one back-off, and over all samples at several."""
    at, noisy = place(configuration, "at_db", "back_offs_db"), _finite(configuration)[0]
    flagged = arrays["mismatch"][:, at, noisy].mean(axis=(0, -1))
    words = ", ".join(f"{100 * share:.0f} % at order {order}"
                      for order, share in zip(configuration["orders"], flagged, strict=True))  # fmt: skip
    return {
        "title": "GaN amplifier of ninth order: distortion after predistortion, by the order of the model",
        "caption": f"{len(arrays['floor'])} trials, 95 % bands; {configuration['num_pilots']} pilots "
                   f"({configuration['design'].replace('_', '-')}) up to {configuration['peak_below_db']:g} dB below "
                   f"|u| = 1. Without noise order 9 is exact: its NMSE is below the axis. Flagged as mismatch at "
                   f"{configuration['at_db']:g} dB back-off and {_words(configuration['snr_db'][noisy])}: {words}; "
                   f"{assumptions({**configuration, 'back_off_db': configuration['at_db']})} (left).",
        "columns": 3,
        "height": 4.3,
        "panels": [_noise_panel(configuration, arrays, at), _inverse_panel(configuration, arrays, at),
                   _clipping_panel(configuration, arrays)],
    }  # fmt: skip


def _finite(configuration: Mapping) -> list[int]:
    """Where there is noise, the lowest reference SNR first."""
    snr_db = configuration["snr_db"]
    return sorted((k for k, snr in enumerate(snr_db) if snr is not None), key=lambda k: snr_db[k])


def _words(snr_db: float | None) -> str:
    return "no noise" if snr_db is None else f"{snr_db:g} dB reference SNR"


def _panel(configuration: Mapping, title: str, **parts) -> dict:
    return {"title": title, "x_label": "order of the model", "x": configuration["orders"],
            "x_ticks": configuration["orders"], "y_label": "NMSE [dB]", **parts}  # fmt: skip


def _noise_panel(configuration: Mapping, arrays: Mapping[str, np.ndarray], at: int) -> dict:
    curves = [_curve(_words(snr_db), arrays["inside"][:, at, k]) for k, snr_db in enumerate(configuration["snr_db"])]
    dashed = [{"label": "" if index else "predicted from the noise alone", "colour": k,
               "values": _db(arrays["predicted"][:, at, k].mean(axis=(0, -1)))}
              for index, k in enumerate(_finite(configuration))]  # fmt: skip
    dashed.append({"label": "without predistortion", "colour": 6,
                   "values": [_db(arrays["without"][:, at].mean())] * len(configuration["orders"])})  # fmt: skip
    title = f"inside the invertible range, {configuration['at_db']:g} dB back-off"
    return _panel(configuration, title, y_limits=_NMSE_LIMITS, curves=curves, dashed=dashed)


def _inverse_panel(configuration: Mapping, arrays: Mapping[str, np.ndarray], at: int) -> dict:
    quiet = [_finite(configuration)[-1], *(k for k, snr_db in enumerate(configuration["snr_db"]) if snr_db is None)]
    curves = [_curve(f"{label}, {_words(configuration['snr_db'][k])}", arrays[key][:, at, k])
              for k in quiet for key, label in (("inside", "numerical"), ("indirect", "indirect learning"))]
    title = f"the inverse; inside, {configuration['at_db']:g} dB back-off"
    return _panel(configuration, title, y_limits=_NMSE_LIMITS, curves=curves, dashed=[])


def _clipping_panel(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    at = _finite(configuration)[-1]
    curves, dashed = [], []
    for index, back_off_db in enumerate(configuration["back_offs_db"]):
        without = f"{_db(arrays['without_all'][:, index].mean()):.1f}".replace("-", "\N{MINUS SIGN}")
        curves.append(_curve(f"{back_off_db:g} dB back-off ({without} dB without DPD)", arrays["all"][:, index, at]))
        floor = _db(arrays["floor"][:, index].mean())
        dashed.append({"label": "" if index else "clipping alone, perfect inverse", "colour": index,
                       "values": [floor] * len(configuration["orders"])})  # fmt: skip
    return _panel(configuration, f"all samples, {_words(configuration['snr_db'][at])}", curves=curves, dashed=dashed)


def _db(values: NDArray) -> list | float:
    return (10.0 * np.log10(np.maximum(values, 1e-30))).tolist()


def _curve(label: str, values: NDArray) -> dict:
    """NMSE (trials, orders, antennas), in dB of the mean."""
    limits = (_db(part) for part in metrics.mean_interval(values.mean(axis=-1)))
    return {"label": label, **dict(zip(("mean", "low", "high"), limits, strict=True))}


@register(
    "ota-dpd-order",
    title="Distortion of a GaN amplifier after over-the-air DPD against the model's order, and what clipping leaves",
    summarise=summarise,
    plot="panels",
    defaults={**{key: value for key, value in ARRAY.items() if key != "back_off_db"}, "rows": 2, "columns": 4,
              "amplifier": "gan", "drive_std_db": 0.0, "back_offs_db": [8.0, 10.0, 12.0], "at_db": 10.0,
              "peak_below_db": 0.5, "num_pilots": 100, "design": "uniform", "orders": [3, 5, 7, 9, 11],
              "snr_db": [20.0, 30.0, 40.0, None]},
    trials=60,
    block=4,
)  # fmt: skip
def trial_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, np.ndarray]:
    """NMSE and flags (trials, back-offs, SNRs, orders, antennas); what needs no model (trials, back-offs, antennas).

    The noise of a trial is the same at each SNR but for its scale.
    """
    place(configuration, "at_db", "back_offs_db")
    if not _finite(configuration):
        raise ValueError(f"snr_db = {configuration['snr_db']} must hold at least one number")
    return stack([_trial(configuration, rng) for rng in generators(seeds)], axis=0)


def _trial(configuration: Mapping, rng: np.random.Generator) -> dict[str, NDArray]:
    points = []
    for back_off_db in configuration["back_offs_db"]:
        array = draw({**configuration, "back_off_db": back_off_db}, rng)
        peak_db = back_off_db - configuration["peak_below_db"]
        x = design_pilots(configuration["num_pilots"], configuration["design"], peak=10.0 ** (peak_db / 20.0),
                          backoff_db=peak_db)
        clean, noise = received(array, x), complex_normal(rng, *array.gains.shape, len(x))
        stds = [0.0 if snr_db is None else array.noise_std(snr_db) for snr_db in configuration["snr_db"]]
        by_snr = stack([_orders(configuration, array, x, clean + std * noise) for std in stds], axis=0)
        points.append({**by_snr, **_references(array, np.abs(x).max())})
    return stack(points, axis=0)


def _references(array: CoupledArray, peak: float) -> dict[str, NDArray]:
    """NMSE (M,) with the perfect inverse over all samples, and without any inside and over all."""
    reach = invertible_range(array.coefficients, max_amplitude=peak).output_amplitude
    inputs = predistort(_AMPLITUDE.astype(complex), array.coefficients, max_amplitude=peak)
    untouched = _output(array, np.broadcast_to(_AMPLITUDE, inputs.shape))
    return {"floor": nmse(_output(array, inputs)), "without": nmse(untouched, reach), "without_all": nmse(untouched)}


def _output(array: CoupledArray, inputs: NDArray) -> NDArray:
    """Output of the true amplifiers for inputs (M, N), saturation included."""
    size = np.abs(inputs)
    limited = inputs * np.minimum(1.0, array.saturation[:, None] / np.maximum(size, 1e-12))
    return amplify(limited, array.coefficients)


def _orders(configuration: Mapping, array: CoupledArray, x: NDArray, y: NDArray) -> dict[str, NDArray]:
    """NMSE of each order (orders, M), and whether it was flagged as mismatch."""
    statistics = pilot_statistics(y, x, order=max(configuration["orders"]))
    peak = statistics.peak
    inside = invertible_range(array.coefficients, max_amplitude=peak).output_amplitude
    points = []
    for order in configuration["orders"]:
        found = identify_amplifiers(statistics, order=order, amplitudes=_DATA)
        output = _output(array, predistort(_AMPLITUDE.astype(complex), found.coefficients, max_amplitude=peak))
        reach = invertible_range(found.coefficients, max_amplitude=peak).output_amplitude
        taught = indirect_inverse(found.coefficients, _DATA[reach.min() >= _DATA], order=order)
        clipped = np.minimum(_AMPLITUDE, reach[:, None]).astype(complex)
        points.append({"inside": nmse(output, inside), "all": nmse(output),
                       "indirect": nmse(_output(array, amplify(clipped, taught)), inside),
                       "predicted": found.distortion_with, "mismatch": found.mismatch_limited})  # fmt: skip
    return stack(points, axis=0)
