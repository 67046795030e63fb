# SPDX-License-Identifier: GPL-3.0-or-later
r"""Do the pairs of ports agree on a calibration? What is left of each pair against what its noise explains.

With :math:`g_{mn} / g_{nm} = c_n / c_m` both directions of a pair give the same :math:`c_m g_{mn}`. The difference for
an estimate of c, over its deviation,

.. math:: z_{mn} = \frac{c_m g_{mn} - c_n g_{nm}}{\sqrt{|c_m|^2 s_m + |c_n|^2 s_n + v_{mn} |c_m g_{mn}|^2}}

has unit variance at any SNR, so that :math:`\sum_{m < n} |z_{mn}|^2` is Gamma with as many degrees of freedom as there
are pairs more than coefficients. Coupling that is not reciprocal, gains that move between the two directions and
receivers that compress all make it larger. v is what is known of the errors of the two ports beside noise; pairs are
said to agree if they do with v larger by `TOLERANCE`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaincc

from .predistortion_identification import FALSE_ALARM

# Relative power: 0.03 dB or 0.2 degrees between the two directions of a pair.
TOLERANCE = 1e-5


class Consistency(NamedTuple):
    """agrees: noise explains the pairs, but for the tolerance; excess: mean of |z|^2 over what noise makes of it;
    port_excess (M,): sum of each port's |z|^2 with the tolerance, the largest that of the port that fits worst.
    """

    agrees: bool
    excess: float
    port_excess: NDArray


def consistency(gains: ArrayLike, c: ArrayLike, noise_var: ArrayLike, port_variance: ArrayLike = 0.0) -> Consistency:
    """Whether pairs agree with the maximum-likelihood calibration that was made of them.

    Parameters
    ----------
    gains : (M, M), receiver first; pairs without a gain in either direction do not count. c : (M,).
    noise_var : (M,), of the gains' errors, for each receiver. port_variance : (M,), of log c from other errors.
    """
    gains, c = np.asarray(gains), np.asarray(c)
    paths = c[:, None] * gains
    noise = np.abs(c) ** 2 * np.broadcast_to(noise_var, c.shape)
    ports = np.broadcast_to(port_variance, c.shape)
    power = 0.5 * (np.abs(paths) ** 2 + np.abs(paths.T) ** 2)
    variance = noise[:, None] + noise + (ports[:, None] + ports) * power
    measured = (gains != 0) & (gains.T != 0) & ~np.eye(len(c), dtype=bool)
    difference = np.where(measured, np.abs(paths - paths.T) ** 2, 0.0)
    tolerated = difference / np.where(measured, variance + TOLERANCE * power, 1.0)
    freedom = np.count_nonzero(measured) // 2 - (len(c) - 1)
    if freedom < 1:
        return Consistency(True, 1.0, tolerated.sum(axis=1))
    excess = 0.5 * np.sum(difference / np.where(measured, variance, 1.0)) / freedom
    agrees = gammaincc(freedom, 0.5 * tolerated.sum()) >= FALSE_ALARM
    return Consistency(bool(agrees), float(excess), tolerated.sum(axis=1))
