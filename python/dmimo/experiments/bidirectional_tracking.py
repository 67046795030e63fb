# SPDX-License-Identifier: GPL-3.0-or-later
"""Calibration once, then coefficients followed by one-way soundings: the forms that the figures compare."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.bidirectional import BidirectionalCalibration
from ..core.bidirectional_baselines import per_subcarrier
from ..core.csi_tracking import phase_change_per_subcarrier, track, tracked_coefficient
from .bidirectional_algorithms import COMMON
from .bidirectional_exchange import sound
from .bidirectional_model import PATTERN_S, SYMBOL_S, Drop

# The SRS of the pattern of the calibration comes so long after its sounding: CSI-RS, CARS, SRS, two symbols each.
SRS_DELAY_S = 4 * SYMBOL_S


class Tracked(NamedTuple):
    """Coefficients (T, M, K) on `COMMON` a pattern later: wideband, or each subcarrier alone with one or all UEs."""

    wideband: NDArray
    printed_one: NDArray
    printed_all: NDArray


def tracked(
    drop: Drop, rngs: Sequence[np.random.Generator], first_s: float, calibration: BidirectionalCalibration
) -> Tracked:
    r"""`calibration`, of the exchange that began at `first_s`, followed over one pattern by two noisy SRS.

    Wideband: one phase per link, all links joined to turns of the nodes (`csi_tracking.track`). As printed: eq. (32)
    and (33) with their signs corrected, :math:`C''_{mn}(k) = C'_{mn}(k) e^{2j \arg(G''/G')}` on each subcarrier. The
    paper does not say how the TRPs' coefficients follow from the M N of these: "one" divides by those of the first UE,
    as in (13), "all" takes total least squares over all UEs, as in (14).
    """
    times = [first_s + SRS_DELAY_S, first_s + SRS_DELAY_S + PATTERN_S]
    first, second = (sound(drop, rngs, COMMON, time, "uplink") for time in times)
    wideband = track(calibration, first, second, PATTERN_S).calibration.trp(COMMON)
    c = calibration.ue(COMMON)[:, None] / calibration.trp(COMMON)[:, :, None]
    c = tracked_coefficient(c, phase_change_per_subcarrier(first, second))
    return Tracked(wideband, per_subcarrier(c, 1.0, "argos")[0], per_subcarrier(c, 1.0, "tls")[0])
