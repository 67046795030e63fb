# SPDX-License-Identifier: GPL-3.0-or-later
"""The coefficients that every algorithm finds in one exchange, and those that are followed from it a pattern later."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.bidirectional_baselines import per_subcarrier
from ..core.cars import CarsForm
from ..core.csi_tracking import phase_change_per_subcarrier, track, tracked_coefficient
from .bidirectional_algorithms import BASELINES, COMMON, baseline
from .bidirectional_exchange import exchange, sound
from .bidirectional_model import PATTERN_S, SYMBOL_S, Drop
from .bidirectional_polarisation import Polarised, calibrate

# The SRS of the pattern of the calibration comes so long after its sounding: CSI-RS, CARS, SRS, two symbols each.
SRS_DELAY_S = 4 * SYMBOL_S


class Found(NamedTuple):
    """Coefficients (T, M, K) on `bidirectional_algorithms.COMMON` by name of the algorithm, and when they hold."""

    coefficients: dict[str, NDArray]
    times_s: dict[str, float]


def compare(drop: Drop, rngs: Sequence[np.random.Generator], form: CarsForm = "inverse") -> Found:
    """One exchange at time 0 that all algorithms share; the tracked ones hold one pattern after its midpoint."""
    data = exchange(drop, rngs, COMMON, 0.0, form=form)
    calibrations = {key: calibrate(data, key, drop.scene) for key in ("joint_ml", "ml_tls")}
    now = {key: calibration.trp() for key, calibration in calibrations.items()}
    now |= {key: baseline(data, key) for key in BASELINES}
    now["perfect"] = drop.coefficients(COMMON, data.time_s)[0]
    now["uncalibrated"] = np.ones(now["perfect"].shape)
    later = tracked(drop, rngs, calibrations["ml_tls"])
    times = dict.fromkeys(now, data.time_s) | dict.fromkeys(later, data.time_s + PATTERN_S)
    return Found(now | later, times)


def tracked(drop: Drop, rngs: Sequence[np.random.Generator], calibration: Polarised) -> dict[str, NDArray]:
    r"""`calibration`, of an exchange at time 0, followed over one pattern by two noisy SRS, in three forms.

    tracked_wideband: one phase per link, all links joined to turns of the nodes (`csi_tracking.track`). The others as
    printed, eq. (32) and (33) with their signs corrected: :math:`C''_{mn}(k) = C'_{mn}(k) e^{2j \arg(G''/G')}` on each
    subcarrier. The paper does not say how the TRPs' coefficients follow from the M N of these: tracked_one divides by
    those of the first UE, as in (13), tracked_all takes total least squares over all UEs, as in (14), each link with
    the amplitude of its second SRS.

    References
    ----------
    Bidirectional calibration (CARS), section III-C.
    """
    first, second = (sound(drop, rngs, COMMON, time, "uplink") for time in (SRS_DELAY_S, SRS_DELAY_S + PATTERN_S))
    num = len(calibration.parts)
    # The references of all polarisations are ports of one AAU, whose oscillator they share.
    parts = tuple(
        track(part, first[:, p::num, p::num], second[:, p::num, p::num], PATTERN_S).calibration
        for p, part in enumerate(calibration.parts)
    )
    c = calibration.ue()[:, None] / calibration.trp()[:, :, None]
    c = tracked_coefficient(c, phase_change_per_subcarrier(first, second))
    weight = np.abs(second)
    return {
        "tracked_wideband": calibration._replace(parts=parts).trp(),
        "tracked_all": per_subcarrier(c * weight, weight, "tls")[0],
        "tracked_one": per_subcarrier(c, 1.0, "argos")[0],
    }
