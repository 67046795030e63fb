# SPDX-License-Identifier: GPL-3.0-or-later
r"""CARS: the precoded answer to a sounding, from which its receiver reads the two-way coefficient C.

Between TRP m and UE n, uplink channel G and downlink channel H at subcarrier k and time t are

.. math:: G_{mn} = \beta^r_m \beta^t_n \bar H\, e^{-2j \pi k \Delta (\tau_n - \tau_m)} e^{+j (\theta_n - \theta_m)(t)}
          \qquad
          H_{mn} = \beta^t_m \beta^r_n \bar H\, e^{+2j \pi k \Delta (\tau_n - \tau_m)} e^{-j (\theta_n - \theta_m)(t)}

so that :math:`C = G / H = c^U_n / c^B_m` with :math:`c_X = (\beta^t / \beta^r) e^{-4j \pi k \Delta \tau_X} e^{+2j
\theta_X(t)}`. A UE that heard H sends 1 / H, and the TRP receives C; a TRP that heard G sends 1 / G, and the UE
receives 1 / C. G and H are measured one after the other: with a constant frequency their quotient is exactly C at the
**midpoint** of the two times, at neither of the two it is.

References
----------
Bidirectional calibration (CARS), eq. (10), (11), (20) to (22). Deviations: (10b) has the gains of the other direction;
the coefficient belongs to the midpoint, not to l'; see `cars_precoding` for the amplitude.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

CarsForm = Literal["inverse", "conjugate", "phase"]


class CarsBurst(NamedTuple):
    """Weights of a CARS burst and what its receiver must know.

    weights (..., K): mean ``|w|^2`` over the burst is 1. scale (...): the positive scalar of `equivalent_channel`, it
    travels in the metadata. limited (..., K): elements in fades, whose amplitude is not that of C. reads_amplitude:
    whether the far end reads ``|C|`` or only its phase.
    """

    weights: NDArray
    scale: NDArray
    limited: NDArray
    reads_amplitude: bool


class EquivalentChannel(NamedTuple):
    """C (..., K) and the time in s to which it belongs."""

    c: NDArray
    time_s: NDArray


def cars_precoding(h: ArrayLike, form: CarsForm = "inverse", *, fade_limit_db: float = 20.0) -> CarsBurst:
    r"""Weights that turn the far end's channel, the reciprocal of h, into its two-way coefficient.

    ========= ======================== ==================================================
    form      weights before scaling   the far end, with channel g, reads
    ========= ======================== ==================================================
    inverse   conj(h) / \|h\|^2          g / h = C, amplitude and phase
    conjugate conj(h) / rms(h)         C \|h\|^2 / rms(h): phase only
    phase     conj(h) / \|h\|            C \|h\|: phase only
    ========= ======================== ==================================================

    The paper prints the second form, of which (20) does not hold; only the first reads the amplitude of C, and spends
    its power on weak subcarriers for it. Where ``|h|`` lies more than `fade_limit_db` below the rms of the burst its
    weight is ``conj(h) / limit^2``: right in phase, too small in amplitude, and flagged.

    Dividing by a noisy h has a price: over a flat channel with 10 dB per element in both directions the deviations of
    delay and phase are 8 % above the bound for the inverse form, with 7 dB 25 % (16 % with a limit of 10 dB), and on
    it for the other two. The plain quotient of two estimates, which has no limit, fails below 10 dB.

    Parameters
    ----------
    h : (..., K) estimates on the elements of one burst (all links that share it, one scalar for all of them).
    form : see above.
    fade_limit_db : positive.

    Raises
    ------
    ValueError
        If h is not finite, or a burst is zero.
    """
    h = np.asarray(h, complex)
    energy = h.real**2 + h.imag**2
    mean = energy.mean(axis=-1, keepdims=True)
    if not np.all(np.isfinite(mean) & (mean > 0)):
        raise ValueError("h of a burst must be finite and not zero")
    if not fade_limit_db > 0:
        raise ValueError(f"fade_limit_db = {fade_limit_db} must be positive")
    limited = np.zeros(h.shape, bool)
    if form == "inverse":
        limit = mean * 10.0 ** (-fade_limit_db / 10.0)
        limited = energy < limit
        weights = h.conj() / np.maximum(energy, limit)
    elif form == "conjugate":
        weights = h.conj() / np.sqrt(mean)
    elif form == "phase":
        size = np.sqrt(energy)
        weights = np.divide(h.conj(), size, out=np.zeros_like(h), where=size > 0)
    else:
        raise ValueError(f"form = {form!r} must be 'inverse', 'conjugate' or 'phase'")
    scale = 1.0 / np.sqrt(np.mean(weights.real**2 + weights.imag**2, axis=-1))
    return CarsBurst(weights * scale[..., None], scale, limited, form == "inverse")


def equivalent_channel(received: ArrayLike, pilots: ArrayLike, scale: ArrayLike) -> NDArray:
    """Equivalent channel (..., K), C at a TRP and 1/C at a UE, from received elements of a CARS burst.

    Parameters
    ----------
    received : (..., K), channel times weights times pilots.
    pilots : (..., K), not zero.
    scale : (...), `CarsBurst.scale`.
    """
    return np.asarray(received) / np.asarray(pilots) / np.asarray(scale)[..., None]


def quotient(g: ArrayLike, h: ArrayLike, g_time_s: ArrayLike, h_time_s: ArrayLike) -> EquivalentChannel:
    """C = G / H at the midpoint of the two times, where both estimates are in one place (fed back)."""
    return EquivalentChannel(np.asarray(g) / np.asarray(h), midpoint_s(g_time_s, h_time_s))


def midpoint_s(first_time_s: ArrayLike, second_time_s: ArrayLike) -> NDArray:
    """Time to which C belongs, of symbols received centred at the given times (see `ofdm.OfdmGrid.symbol_time_s`).

    A wave carries the phase that its oscillator had when it left: in true time C belongs to half a flight before the
    middle of the two receptions. That is within the prefix, and neglected: 300 ns at 1.5 kHz turn C by 3 mrad.
    """
    return 0.5 * (np.asarray(first_time_s, float) + np.asarray(second_time_s, float))


def at_time(c: ArrayLike, frequency_hz: ArrayLike, from_s: ArrayLike, to_s: ArrayLike) -> NDArray:
    """Coefficients moved in time by the frequency of their node (or difference of nodes): they turn at twice it."""
    turn = np.asarray(frequency_hz) * (np.asarray(to_s, float) - np.asarray(from_s, float))
    return np.asarray(c) * np.exp(4j * np.pi * turn)
