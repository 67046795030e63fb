# SPDX-License-Identifier: GPL-3.0-or-later
r"""Bounds of the bidirectional exchange: delay and phase of a link, and of the nodes behind all links.

One link is seen as :math:`g_k = a e^{-2j \pi k \Delta d} + n_k`, with `relative_var` the variance of n over
:math:`|a|^2`, :math:`\Delta` the subcarrier spacing and k counted from band centre. For the two-way coefficient
:math:`C = G/H` it is v of `element_variance` and :math:`d = 2 (\tau_n - \tau_m)`.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .graph import laplacian_pinv, require_connected


class DelayCrlb(NamedTuple):
    """Smallest standard deviations of a link: delay in s, phase in rad at band centre and at the pilots' centroid."""

    delay_std_s: NDArray
    phase_std_rad: NDArray
    centroid_phase_std_rad: NDArray


def element_variance(rho_g: ArrayLike, rho_h: ArrayLike) -> NDArray:
    r"""Relative variance v of one element of C, :math:`1/\rho_g + 1/\rho_h + 1/(\rho_g \rho_h)`.

    Exact for the product :math:`G H^*` of two noisy channels with the SNRs per resource element (linear); the quotient
    G/H has it to first order.
    """
    g, h = 1.0 / np.asarray(rho_g, float), 1.0 / np.asarray(rho_h, float)
    return g + h + g * h


def delay_crlb(subcarriers: ArrayLike, spacing: float, relative_var: ArrayLike) -> DelayCrlb:
    r"""Bounds of delay and phase with pilots on any subcarriers.

    .. math:: \sigma_d = \frac{\sqrt{v / 2}}{2 \pi \Delta \sqrt{\sum (k - \bar k)^2}}, \qquad
              \sigma_{\bar k} = \sqrt{v / 2 K}, \qquad
              \sigma_0^2 = \sigma_{\bar k}^2 + (2 \pi \Delta \bar k \sigma_d)^2

    Parameters
    ----------
    subcarriers : (..., K) from band centre.
    spacing : Hz.
    relative_var : (...) noise variance of an element over the energy of the signal in it.
    """
    k = np.asarray(subcarriers, float)
    half = 0.5 * np.asarray(relative_var, float)
    centroid = k.mean(axis=-1)
    spread = np.sum((k - centroid[..., None]) ** 2, axis=-1)
    delay_var = half / ((2.0 * np.pi * spacing) ** 2 * spread)
    middle_var = half / k.shape[-1]
    phase_var = middle_var + (2.0 * np.pi * spacing * centroid) ** 2 * delay_var
    return DelayCrlb(np.sqrt(delay_var), np.sqrt(phase_var), np.sqrt(middle_var))


def two_way_delay_std(relative_var: ArrayLike, num_pilots: int, comb: int, spacing: float) -> NDArray:
    r"""Bound in s on :math:`\tau_n - \tau_m` from K elements of C on a comb of D.

    :math:`\sigma_\tau = \sqrt{6 v / (K (K^2 - 1))} / (4 \pi D \Delta)`, half of `delay_crlb`: C turns twice.
    """
    return np.sqrt(6.0 * np.asarray(relative_var, float) / (num_pilots * (num_pilots**2 - 1.0))) / (
        4.0 * np.pi * comb * spacing
    )


def two_way_phase_std(relative_var: ArrayLike, num_pilots: int) -> NDArray:
    r"""Bound in rad on the phase of C at the centroid of K pilots, :math:`\sqrt{v / 2 K}`."""
    return np.sqrt(np.asarray(relative_var, float) / (2.0 * num_pilots))


def outlier_probability(relative_var: ArrayLike, num_pilots: int, num_cells: float) -> NDArray:
    r"""Upper bound on the chance that noise wins elsewhere in the search, :math:`(B - 1)/2\, e^{-K / 2 v}`.

    The union bound of B orthogonal signals with unknown phase; B = `num_cells` is the searched width of delays times
    the span of the pilots in Hz, K for the whole unambiguous range of a comb. Below the SNR at which it matters, the
    delay's standard deviation leaves the Cramer-Rao bound.
    """
    with np.errstate(divide="ignore"):  # without noise there is no wrong peak
        energy = np.divide(num_pilots, np.asarray(relative_var, float))
    return np.clip(0.5 * (np.maximum(num_cells, 1.0) - 1.0) * np.exp(-0.5 * energy), 0.0, 1.0)


def phase_change_std(rho_first: ArrayLike, rho_second: ArrayLike, num_pilots: ArrayLike) -> NDArray:
    r"""Bound in rad on the phase change of a one-way channel between two soundings, :math:`\sqrt{v / 2 K}`.

    v of `element_variance` with the SNRs per element of both soundings, the channel itself unknown; with K = 1 for one
    subcarrier alone. The coefficient that is turned by it turns twice as far: `tracked_phase_std`.
    """
    return np.sqrt(element_variance(rho_first, rho_second) / (2.0 * np.asarray(num_pilots, float)))


def tracked_phase_std(rho_first: ArrayLike, rho_second: ArrayLike, num_pilots: ArrayLike) -> NDArray:
    """Bound in rad on what tracking by one-way soundings adds to the phase of C: twice `phase_change_std`."""
    return 2.0 * phase_change_std(rho_first, rho_second, num_pilots)


def frequency_std(times_s: ArrayLike, rho: ArrayLike, num_pilots: int, *, turns: float = 1.0) -> NDArray:
    r"""Bound in Hz on the frequency of a link from L soundings of an unknown channel at any times.

    .. math:: \sigma_f^2 = \frac{1 + 1 / (L \rho)}{2 K \rho\, (2 \pi u)^2 \sum_i (t_i - \bar t)^2}

    u = `turns`, 1 for a one-way channel and 2 for the coefficient C. The term 1 / (L rho) is what the unknown channel
    costs at low SNR; with L = 2 this is `phase_change_std` over 2 pi u times the interval. Groups of soundings that
    share their frequency add their information, the inverse squares.

    Parameters
    ----------
    times_s : (L,).
    rho : (...) SNR per element (linear), the same in all soundings.
    num_pilots : K.
    """
    times, rho = np.asarray(times_s, float), np.asarray(rho, float)
    spread = np.sum((times - times.mean()) ** 2)
    information = 2.0 * num_pilots * rho * (2.0 * np.pi * turns) ** 2 * spread / (1.0 + 1.0 / (len(times) * rho))
    return 1.0 / np.sqrt(information)


def link_laplacian_pinv(weights: ArrayLike) -> NDArray:
    """Pseudo-inverse (..., M + N, M + N) for links (..., M, N) of the given information between TRPs and UEs.

    With ``K / v`` it is the bound on the covariance of ``log c`` (complex), with ``4 / std(d)^2`` that of the node
    delays. Variances of differences between nodes are effective resistances.

    Raises
    ------
    DisconnectedGraphError if the links with information do not join all nodes (UE n is node M + n).
    """
    weights = bipartite(np.asarray(weights, float))
    require_connected(weights > 0)
    return laplacian_pinv(weights)


def bipartite(links: NDArray) -> NDArray:
    """Symmetric matrix (..., M + N, M + N) of a graph whose edges (..., M, N) join TRPs with UEs only."""
    num_trp, num_ue = links.shape[-2:]
    out = np.zeros((*links.shape[:-2], num_trp + num_ue, num_trp + num_ue), links.dtype)
    out[..., :num_trp, num_trp:] = links
    out[..., num_trp:, :num_trp] = np.swapaxes(links, -2, -1)
    return out
