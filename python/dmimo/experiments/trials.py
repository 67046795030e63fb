# SPDX-License-Identifier: GPL-3.0-or-later
"""What trial functions have in common: generators from seeds, axes of SNR, arrays from points."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

# Unit radiated power per symbol over all antennas of a node.
SNR_LABEL = "SNR at unit radiated power, 1/σ² [dB]"


def steps(first: float, last: float, step: float) -> list[float]:
    """Numbers from `first` to `last`, both included."""
    return [first + step * k for k in range(round((last - first) / step) + 1)]


def generators(seeds: Sequence[np.random.SeedSequence]) -> list[np.random.Generator]:
    """One generator per trial."""
    return [np.random.default_rng(seed) for seed in seeds]


def noise_variances(configuration: Mapping) -> list[float]:
    """sigma^2 at each of the configuration's SNRs."""
    return [10.0 ** (-snr_db / 10.0) for snr_db in configuration["snr_db"]]


def stack(points: Sequence[Mapping[str, NDArray]], axis: int = -1) -> dict[str, NDArray]:
    """Arrays with one more axis from one mapping of arrays per point."""
    return {key: np.stack([point[key] for point in points], axis=axis) for key in points[0]}
