# SPDX-License-Identifier: GPL-3.0-or-later
"""Over-the-air synchronisation of nodes with their own oscillators: all estimators under one name.

Phase and offset from a returned burst: `beamsync`. Frequency from beamed bursts: `frequency`.
"""

from .beamsync import (
    MAX_PHASE_STD_RAD,
    CarrierEstimate,
    centroid,
    conjugate_return,
    dominant_direction,
    matched_phase_std,
    matched_return,
    next_direction,
    phase_offset,
    phase_offset_nls,
    return_estimate,
    return_phasor,
)
from .delay import delay_and_gain
from .frequency import edge_energy_waveform, frequency_offset
from .frequency_bursts import FrequencyEstimate, frequency_estimate

__all__ = [
    "MAX_PHASE_STD_RAD",
    "CarrierEstimate",
    "FrequencyEstimate",
    "centroid",
    "conjugate_return",
    "delay_and_gain",
    "dominant_direction",
    "edge_energy_waveform",
    "frequency_estimate",
    "frequency_offset",
    "matched_phase_std",
    "matched_return",
    "next_direction",
    "phase_offset",
    "phase_offset_nls",
    "return_estimate",
    "return_phasor",
]
