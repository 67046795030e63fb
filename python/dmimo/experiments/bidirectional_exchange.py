# SPDX-License-Identifier: GPL-3.0-or-later
"""What the nodes of a `bidirectional_model.Drop` receive: noisy channels, and two-way coefficients through CARS."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.cars import CarsForm, cars_precoding, equivalent_channel, midpoint_s
from .bidirectional_model import SYMBOL_S, Drop, noise


class Exchange(NamedTuple):
    """One exchange.

    Attributes
    ----------
    c : (T, M, N, K), G / H as read.
    time_s : to which c belongs.
    heard : (T, M, N, K), the sounding that was answered.
    plain : (T, M, N, K), the answering direction as plain pilots would have shown it, with the same noise: what
        estimators that need both channels in one place get.
    """

    c: NDArray
    time_s: float
    heard: NDArray
    plain: NDArray


def sound(
    drop: Drop, rngs: Sequence[np.random.Generator], subcarriers: ArrayLike, time_s: float, direction: str
) -> NDArray:
    """Estimates (T, M, N, K) of the channels of one `direction`, "uplink" (SRS) or "downlink" (CSI-RS), with noise.

    One resource element per link and subcarrier, so the estimate has the SNR of the element.
    """
    channel = getattr(drop, direction)(subcarriers, time_s)
    return channel + noise(rngs, channel.shape[1:])


def exchange(
    drop: Drop,
    rngs: Sequence[np.random.Generator],
    subcarriers: ArrayLike,
    first_s: float,
    *,
    side: Literal["trp", "ue"] = "trp",
    second_s: float | None = None,
    form: CarsForm = "inverse",
) -> Exchange:
    r"""Sounding and its CARS answer, each link's comb normalised by itself.

    For "trp" the UEs hear :math:`\hat H = H + n`, send :math:`w \propto 1 / \hat H` and the TRPs read :math:`G w + n'`
    over the scale of w, which is C; for "ue" the directions change places and the UEs read 1 / C, given back as C.

    Parameters
    ----------
    drop, rngs : networks, and one generator per network for the noise.
    subcarriers : (K,) or (M, N, K).
    first_s, second_s : times of the sounding and of the answer; two symbols apart by default.
    side : that reads and calibrates.
    form : of the answer, see `cars.cars_precoding`. With "conjugate" the sender's rms of :math:`\hat H` without noise
        travels with the burst: then c has the amplitude of C averaged over the burst, each element weighted by
        :math:`|H|^2`, which is right for channels with fades, where "inverse" spends its power on these.
    """
    second_s = first_s + 2 * SYMBOL_S if second_s is None else second_s
    there, back = ("downlink", "uplink") if side == "trp" else ("uplink", "downlink")
    heard = sound(drop, rngs, subcarriers, first_s, there)
    burst = cars_precoding(heard, form)
    channel = getattr(drop, back)(subcarriers, second_s)
    n = noise(rngs, channel.shape[1:])
    scale = burst.scale
    if form == "conjugate":
        power = np.mean(np.abs(heard) ** 2, axis=-1)
        scale = scale * np.maximum(power - 1.0, 0.1 * power) / np.sqrt(power)
    read = equivalent_channel(channel * burst.weights + n, 1.0, scale)
    return Exchange(read if side == "trp" else 1.0 / read, float(midpoint_s(first_s, second_s)), heard, channel + n)
