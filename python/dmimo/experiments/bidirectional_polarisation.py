# SPDX-License-Identifier: GPL-3.0-or-later
r"""Calibration of ports with two polarisations whose cross-polarised links are too weak to count by themselves.

Ports and UEs of one polarisation form a network of strong links; it is calibrated alone, :math:`\hat c_p` up to a
factor :math:`\alpha_p(k)` common to its TRPs and UEs. Ports of an AAU share clock and oscillator, so the delays of both
networks differ by one constant, and what is left is one complex number, which all cross-polarised links show together:

.. math::
    \frac{\alpha_1}{\alpha_0} = C_{mn} \frac{\hat c^B_m}{\hat c^U_n} \;\; (m \in 0,\, n \in 1), \qquad
    \frac{\alpha_0}{\alpha_1} = C_{mn} \frac{\hat c^B_m}{\hat c^U_n} \;\; (m \in 1,\, n \in 0).

Each of these links may lie below the threshold of a delay estimate; their sum over links and subcarriers does not.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.bidirectional import BidirectionalCalibration, joint_ml, link_estimates, ml_tls
from .bidirectional_algorithms import COMMON
from .bidirectional_exchange import Exchange
from .bidirectional_model import SPACING_HZ, Scene


class Polarised(NamedTuple):
    """Calibrations of the networks of each polarisation, and factors (T, K) on `COMMON` that bring these together."""

    parts: tuple[BidirectionalCalibration, ...]
    factors: tuple[NDArray, ...]

    def trp(self) -> NDArray:
        """Coefficients (T, M, K) of all TRP ports on `COMMON`."""
        return self._merged([part.trp(COMMON) for part in self.parts])

    def ue(self) -> NDArray:
        """Coefficients (T, N, K) of all UE ports on `COMMON`."""
        return self._merged([part.ue(COMMON) for part in self.parts])

    def _merged(self, values: list[NDArray]) -> NDArray:
        scaled = [value * factor[:, None] for value, factor in zip(values, self.factors, strict=True)]
        return np.stack(scaled, axis=2).reshape(len(scaled[0]), -1, len(COMMON))


def calibrate(data: Exchange, algorithm: str, scene: Scene) -> Polarised:
    """Calibration by "joint_ml" or "ml_tls" of one polarisation after the other; of all ports at once if there is one.

    The phase between the polarisations comes from their cross-polarised links, each element weighted by the power with
    which it was heard. Its amplitude, one for RF gains that are alike, is left at that.

    Parameters
    ----------
    data : exchange on `COMMON` of all links.
    """
    method = {"joint_ml": joint_ml, "ml_tls": ml_tls}[algorithm]
    num = min(scene.trp_ports, scene.ue_ports)
    parts = tuple(
        method(data.c[:, p::num, p::num], COMMON, SPACING_HZ, max_delay=2 * scene.max_delay_s, time_s=data.time_s)
        for p in range(num)
    )
    one = np.ones((len(data.c), len(COMMON)), complex)
    if num == 1:
        return Polarised(parts, (one,))
    # The clocks are the same ones: what differs is where each part has put its zero.
    delays = [np.concatenate([part.delay_trp_s, part.delay_ue_s], axis=-1) for part in parts]
    shift = np.mean(delays[0] - delays[1], axis=-1)
    turn = np.exp(-4j * np.pi * SPACING_HZ * COMMON * shift[:, None])
    whole = Polarised(parts, (one, turn))
    seen = data.c * np.abs(data.heard) ** 2 * whole.trp()[:, :, None] / whole.ue()[:, None]
    total = seen[:, 0::2, 1::2].sum(axis=(1, 2, 3)) + seen[:, 1::2, 0::2].sum(axis=(1, 2, 3)).conj()
    return Polarised(parts, (one, turn * (total / np.abs(total))[:, None]))


def from_one_port(data: Exchange, port: int, scene: Scene) -> NDArray:
    """Coefficients (T, M, K) on `COMMON` from the links of one UE port, whether these are to be trusted or not.

    Each link's delay and gain as in the first step of ML-TLS; with one UE port there is nothing to join them by.
    """
    links = link_estimates(data.c[:, :, [port]], COMMON, SPACING_HZ, max_delay=2 * scene.max_delay_s)
    return np.exp(2j * np.pi * SPACING_HZ * COMMON * links.delay_s) / links.gain
