# SPDX-License-Identifier: GPL-3.0-or-later
r"""The two-way coefficients from all that is read of CARS bursts: what the other TRPs hear denoises each link's own.

UE n answers the sounding of TRP m' with :math:`1 / \hat H_{m'n}`, and every TRP m hears it:

.. math:: E_{mm'n}(k) = G_{mn}(k, t') / \hat H_{m'n}(k, t) + w_{mm'n}(k)

The diagonal m' = m is C. In the products across the diagonal the channels cancel as well, paths and all,

.. math:: E_{mm'n} E_{m'mn} = C_{mn} C_{m'n}

at the same midpoint as C, since each factor holds one G and one H of each of the two links. Two things are not exact:

* The combs of m and m' lie m' - m subcarriers apart. What is left is :math:`e^{-2j \pi (m' - m) \Delta (d_m - d_{m'})}`
  with the flights d, half the difference of the delays of the two factors, which are measured and taken out. That is
  exact for one path, and good while channels hardly change over M subcarriers.
* The noise of a UE's sounding is in every E of its burst alike; the other TRPs only average the noise of the TRPs.

With relative variances 1/rho_g and 1/rho_h of an element in the uplink and downlink, M equal TRPs on one path leave

.. math:: v = \frac{2 M - 1}{M^2} \frac{1}{\rho_g} + \frac{1}{\rho_h} \qquad\text{instead of}\qquad
          \frac{1}{\rho_g} + \frac{1}{\rho_h}

of the variance of delay and phase of a link, the least squares of a two-way layout: 2.1 dB with 8 TRPs and equal SNRs,
at most 3 dB then, and up to :math:`M^2 / (2 M - 1)` (6.3 dB) where UEs transmit with less power than TRPs. Products
add the product of two noises. Channels that differ over M subcarriers are noticed where pairs contradict the diagonal,
and then count less. Seen in dB, table I (8 TRPs, 4 UEs, comb 32), uplink / downlink SNR per element 10.7 / 10.7, 10.7 /
20.7, 7 / 7 and 25 / 25 dB: one path 1.7, 4.9, 1.2 and 1.9; three paths 50 ns apart, each 8 dB weaker, 1.5, 4.2, 0.7 and
1.8; four Rayleigh paths of equal strength 0 to 2, and a loss of 0.1 in phase at 25 dB, of 0.7 at 35 dB.

References
----------
Bidirectional calibration (CARS), eq. (20), of which the paper uses only m' = m. The exponent of the noise-free E is
separable in m and m', with the times of G and H as above (the paper has l and l' the other way round).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bidirectional import (
    BidirectionalCalibration,
    link_estimates,
    node_calibration,
    node_delays,
    rank_one,
    require_links,
    tls_coefficients,
)
from .bidirectional_bounds import delay_crlb
from .delay import delay_and_gain, delay_estimate

# Relative variance of an element that counts as no noise: rounding must not make the weights differ by orders.
_VARIANCE_FLOOR = 1e-13
# Noise alone makes it more than this for one UE in seven.
_ALLOWED_DISAGREEMENT = 1.6


class CrossLinks(NamedTuple):
    """Delay in s and gain at band centre of C (..., M, N), and `used`, the links whose own elements are trusted.

    element_var (..., M, N): relative variance of one element of C, infinite where not used. disagreement (..., N): mean
    square of what the pairs of a UE say beyond its own elements, over what noise explains: about 1 with one path; far
    above it they count less.
    """

    delay_s: NDArray
    gain: NDArray
    used: NDArray
    element_var: NDArray
    disagreement: NDArray


def cross_links(e: ArrayLike, subcarriers: ArrayLike, spacing: float, *, max_delay: float | None = None) -> CrossLinks:
    """Delay and gain of all links from all TRPs' readings of all CARS elements.

    Where the UEs sounded and the TRPs answered, m and m' count UEs and n TRPs, and what is called C is 1 / C.

    Parameters
    ----------
    e : (..., M, M', N, K), E read by TRP m on the elements that UE n sent for the sounding of TRP m', in the inverse
        form (`cars.equivalent_channel` with the scales (M', N) of the bursts).
    subcarriers : (M', N, K) as `ofdm.CombMapping.subcarriers` gives them: shifted copies of one comb.
    spacing : Hz.
    max_delay : largest ``|tau_n - tau_m|`` in s.

    Raises
    ------
    ValueError
        If a shape does not fit, or the combs are not copies of one.
    """
    e, k = np.asarray(e, complex), np.asarray(subcarriers)
    if e.ndim < 4 or e.shape[-4] != e.shape[-3] or k.shape != e.shape[-3:]:
        raise ValueError(f"e has shape {e.shape} and subcarriers {k.shape}; they must be (..., M, M, N, K), (M, N, K)")
    if np.any(k - k[..., :1] != k[0, 0] - k[0, 0, 0]):
        raise ValueError("subcarriers of all ports must be one comb, shifted")
    own = np.einsum("...mmnk->...mnk", e)
    links = link_estimates(own, k, spacing, max_delay=max_delay)
    used = links.trusted
    # Links that are not used may hold anything.
    own = np.where(used[..., None], own, 1.0)
    e = np.where((used[..., None, :, :] & used[..., None, :])[..., None], e, 1.0)
    links = links._replace(gain=np.where(used, links.gain, 1.0), delay_s=np.where(used, links.delay_s, 0.0))
    element_var = np.where(used, np.maximum(links.element_var / np.abs(links.gain) ** 2, _VARIANCE_FLOOR), np.inf)

    first, second = np.triu_indices(len(k), 1)
    both = used[..., first, :] & used[..., second, :]
    product, shift = _products(e, k, spacing, first, second)
    pairs = delay_estimate(product, k[first], spacing)
    sums = links.delay_s[..., first, :] + links.delay_s[..., second, :]
    # Sums of delays may have left the range in which the comb tells delays apart.
    period = 1.0 / (spacing * np.gcd.reduce(k[0, 0] - k[0, 0, 0]))
    alias = period * np.rint((sums - pairs.delay_s) / period)
    late = pairs.delay_s + alias - sums
    centre = shift * (pairs.delay_s + alias) + k[first][..., 0] * alias
    gain = pairs.gain * np.exp(2j * np.pi * spacing * centre)
    turn = np.log(gain / (links.gain[..., first, :] * links.gain[..., second, :]))

    own_rest, pair_rest = _rest(own, links, k, spacing), _rest(product, pairs, k[first], spacing)
    # What UEs' noise does to a pair it does to its own elements: their difference is the noise of TRPs, and misfit.
    noise = np.mean(np.abs(pair_rest - own_rest[..., first, :, :] - own_rest[..., second, :, :]) ** 2, axis=-1)
    late_std = delay_crlb(k[0, 0], spacing, np.maximum(noise, _VARIANCE_FLOOR)).delay_std_s
    turn_var = np.maximum(noise, _VARIANCE_FLOOR) / k.shape[-1]
    num_pairs = np.maximum(both.sum(axis=-2), 1)
    disagreement = np.maximum(
        *(np.sum(s, axis=-2, where=both) / num_pairs for s in (np.abs(turn) ** 2 / turn_var, (late / late_std) ** 2))
    )
    weight = np.where(both, _pair_weights(pair_rest, disagreement, len(k)), 0.0)
    step = _least_squares(weight, np.where(used, 1.0 / element_var, 1.0), [turn.real, turn.imag, late], first, second)
    gain, delay = links.gain * np.exp(step[..., 0] + 1j * step[..., 1]), links.delay_s + step[..., 2]
    return CrossLinks(delay, gain, used, element_var, disagreement)


def joint_cross(
    e: ArrayLike,
    subcarriers: ArrayLike,
    spacing: float,
    *,
    max_delay: float | None = None,
    reference: int | None = 0,
    time_s: float = 0.0,
) -> BidirectionalCalibration:
    """Coefficients and delays of all nodes as `bidirectional.joint_ml`, from all readings; parameters of both.

    Node delays are the weighted least squares of those of the links, gains their weighted rank-1 fit.

    Raises
    ------
    DisconnectedLinksError
        If the links above their thresholds do not join all nodes.
    """
    links = cross_links(e, subcarriers, spacing, max_delay=max_delay)
    require_links(links.used)
    gain = np.where(links.used, links.gain, 0.0)
    precision = 1.0 / links.element_var
    delays = node_delays(links.delay_s, precision)
    precision = precision / np.where(links.used, np.abs(gain) ** 2, 1.0)
    nodes = rank_one(gain, precision, tls_coefficients(gain, links.used))
    return node_calibration(nodes, delays, links.used, spacing, reference, time_s)


def _products(e: NDArray, k: NDArray, spacing: float, first: NDArray, second: NDArray) -> tuple[NDArray, NDArray]:
    """E across the diagonal (..., pairs, N, K) without the flights, and by how much it belongs above k[first]."""
    there, back = (np.moveaxis(e, (-4, -3), (0, 1))[index] for index in ((first, second), (second, first)))
    # (pairs, ..., N, K), each on the comb of the port that sounded.
    there, back = np.moveaxis(there, 0, -3), np.moveaxis(back, 0, -3)
    flights = 0.5 * (delay_and_gain(there, k[second], spacing)[0] - delay_and_gain(back, k[first], spacing)[0])
    apart = k[second][..., 0] - k[first][..., 0]
    return there * back * np.exp(2j * np.pi * spacing * apart * flights)[..., None], 0.5 * apart


def _pair_weights(rest: NDArray, disagreement: NDArray, num_trp: int) -> NDArray:
    """Inverse variance (..., pairs, N) of the pairs' elements, less where they disagree with the links' own."""
    variance = np.maximum(np.mean(np.abs(rest) ** 2, axis=-1), _VARIANCE_FLOOR)
    # Misfit belongs to a link and is in all of its pairs, up to M of them: their mean does not lessen it.
    inflation = np.maximum(0.5 * num_trp * (disagreement - _ALLOWED_DISAGREEMENT), 1.0)
    return 1.0 / (variance * inflation[..., None, :])


def _rest(values: NDArray, fit: NamedTuple, k: NDArray, spacing: float) -> NDArray:
    """What the tone of the fit leaves of values (..., K), relative to it; the gain is the one on the combs k."""
    tone = fit.gain[..., None] * np.exp(-2j * np.pi * spacing * k * fit.delay_s[..., None])
    return values / tone - 1.0


def _least_squares(
    pair_weight: NDArray, own_weight: NDArray, excess: list[NDArray], first: NDArray, second: NDArray
) -> NDArray:
    r"""Corrections x (..., M, N, 3) that minimise :math:`\sum w_{mm'} (y_{mm'} - x_m - x_{m'})^2 + \sum w_m x_m^2`."""
    num_trp = own_weight.shape[-2]
    sums = np.zeros((len(first), num_trp))
    sums[np.arange(len(first)), first] = sums[np.arange(len(first)), second] = 1.0
    weight, own = np.swapaxes(pair_weight, -2, -1), np.swapaxes(own_weight, -2, -1)
    right = np.stack([np.where(weight > 0, np.swapaxes(y, -2, -1), 0.0) for y in excess], axis=-1)
    normal = np.einsum("pm,...p,pq->...mq", sums, weight, sums) + own[..., None] * np.eye(num_trp)
    step = np.linalg.solve(normal, np.einsum("pm,...p,...pc->...mc", sums, weight, right))
    return np.swapaxes(step, -3, -2)
