# SPDX-License-Identifier: GPL-3.0-or-later
"""Pilots whose amplitudes reveal an amplifier: uniform, two-level and data-like.

Per unit of gain energy and pilot, with unit peak, third order and small kappa, the Fisher information of kappa is 1/16
for the best two levels, 0.0229 for uniform amplitudes and 0.0072 for data-like ones at 8 dB back-off
(`predistortion_bounds.pilot_information`). Two levels are the best of all designs with a limited peak for third order,
but cannot show that the order is higher; data-like amplitudes weigh the errors as the data will.
"""

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .predistortion_bounds import data_amplitudes

AmplitudeDesign = Literal["uniform", "two_level", "data_like"]


def pilot_amplitudes(
    num_pilots: int, design: AmplitudeDesign = "uniform", *, peak: float = 1.0, backoff_db: float = 8.0
) -> NDArray:
    """Amplitudes (K,) in (0, peak], ascending.

    Parameters
    ----------
    num_pilots : K, at least 2.
    design : "uniform", equally spaced amplitudes; "two_level", two thirds at half of the peak, one third at the peak,
        optimal for third order and of no use beyond; "data_like", quantiles of Gaussian data limited to the peak.
    peak : largest amplifier input. backoff_db : mean power of the data below the peak's ("data_like" only).
    """
    if num_pilots < 2:
        raise ValueError(f"num_pilots = {num_pilots} must be at least 2")
    if not (math.isfinite(peak) and peak > 0.0):
        raise ValueError(f"peak = {peak} must be positive and finite")
    if design == "uniform":
        return peak * np.arange(1, num_pilots + 1) / num_pilots
    if design == "two_level":
        at_peak = max(1, round(num_pilots / 3))
        return np.where(np.arange(num_pilots) < num_pilots - at_peak, 0.5 * peak, peak)
    if design == "data_like":
        amplitudes = data_amplitudes(num_pilots, peak=peak, backoff_db=backoff_db)
        # The range that is trusted ends at the largest pilot.
        amplitudes[-1] = peak
        return amplitudes
    raise ValueError(f'design = "{design}" must be "uniform", "two_level" or "data_like"')


def design_pilots(
    num_pilots: int,
    design: AmplitudeDesign = "uniform",
    *,
    peak: float = 1.0,
    backoff_db: float = 8.0,
    rng: np.random.Generator | None = None,
) -> NDArray:
    """Complex pilots (K,) with the amplitudes of `pilot_amplitudes`; `rng` gives random order and phases.

    Without memory neither matters; with memory, samples must vary independently, so that `rng` is needed there.
    """
    amplitudes = pilot_amplitudes(num_pilots, design, peak=peak, backoff_db=backoff_db)
    if rng is None:
        return amplitudes.astype(complex)
    return rng.permutation(amplitudes) * np.exp(2j * np.pi * rng.uniform(size=num_pilots))
