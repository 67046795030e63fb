# SPDX-License-Identifier: GPL-3.0-or-later
"""Gain and phase of identified amplifiers and of their predistorters, over the amplitude of what goes in."""

from collections.abc import Mapping

import numpy as np

from .core import predistortion
from .core.predistortion import Identification

POINTS = 256


def curves(identifications: Mapping[str, Identification], points: int = POINTS) -> dict[str, np.ndarray]:
    """Curves of the ports of all access points, from amplitude 0 to that of the largest pilot.

    Returns
    -------
    dict
        `amplitude_db` (points,), of the input [dB], 0 dB that of samples of unit power, and for each port (ports,
        points): `gain_db` and `phase_rad`, of the amplifier relative to small signals; `predistorter_gain_db` and
        `predistorter_phase_rad`, of what is put in front of it: 0 where that is refused. With memory those of a
        constant signal, to which the predistorter also makes the linear taps one. Empty where there is no
        identification.
    """
    if not identifications:
        return {}
    largest = next(iter(identifications.values())).max_amplitude
    amplitude = largest * np.linspace(1 / points, 1, points)
    parts = [_responses(found, amplitude) for found in identifications.values()]
    amplifier, inverse = (np.concatenate(rows) for rows in zip(*parts, strict=True))
    return {"amplitude_db": 20 * np.log10(amplitude),
            "gain_db": 20 * np.log10(np.abs(amplifier)), "phase_rad": np.angle(amplifier),
            "predistorter_gain_db": 20 * np.log10(np.abs(inverse)), "predistorter_phase_rad": np.angle(inverse)}


def _responses(found: Identification, amplitude: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Complex gains (ports, points) of the amplifiers and of their predistorters."""
    coefficients, safe = found.coefficients, found.safe_coefficients
    small = np.ones((len(safe), 1))
    if coefficients.ndim == 3:  # a constant signal: all taps see the same
        (_, coefficients), (small, safe) = (_static(one) for one in (coefficients, safe))
    x = np.broadcast_to(amplitude.astype(complex), (len(coefficients), amplitude.size))
    limit = np.where(found.refused, np.inf, found.max_amplitude)
    # What is wanted is x itself, not x as the taps together pass small signals.
    sent = predistortion.predistort(x / small, safe, max_amplitude=limit)
    return predistortion.amplify(x, coefficients) / x, sent / x


def _static(coefficients: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gain (ports, 1) of small constant signals, and coefficients (ports, P) relative to it, from (ports, L, P)."""
    summed = coefficients.sum(axis=-2)
    return summed[:, :1], summed / summed[:, :1]
