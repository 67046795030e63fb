# SPDX-License-Identifier: GPL-3.0-or-later
"""The estimators that the bidirectional exchange is compared with: each subcarrier on its own, no delay model.

All take the channels G and H (..., M, N, K) of TRPs m and UEs n and return the coefficients (c_trp (..., M, K),
c_ue (..., N, K)), each subcarrier up to a common factor.

References
----------
Bidirectional calibration (CARS), section II-D, eq. (13) to (18).
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bidirectional_bounds import bipartite
from .graph import maximum_spanning_tree, tree_product
from .reciprocity_baselines import tls as pair_tls

Baseline = Literal["argos", "argos_mean", "tls", "spanning_tree"]


def per_subcarrier(
    g: ArrayLike, h: ArrayLike, method: Baseline = "tls", *, reference_ue: int = 0, link_snr: ArrayLike | None = None
) -> tuple[NDArray, NDArray]:
    """Coefficients by one of the paper's baselines.

    Parameters
    ----------
    g, h : (..., M, N, K) uplink and downlink estimates, all links on the same subcarriers. After a CARS exchange only
        their quotient is known: then g = C and h = 1, at the price that "tls" no longer sees which elements are faded.
    method : "argos", the ratios to one UE; "argos_mean", their mean over all UEs, each brought to TRP 0 first; "tls",
        total least squares over all links; "spanning_tree", ratios along the tree of the strongest links.
    reference_ue : of "argos", and root of the tree.
    link_snr : (..., M, N), for "spanning_tree" only; all equal without it (the tree is then the reference's star
        and, through TRP 0, the other UEs).
    """
    g, h = np.broadcast_arrays(np.asarray(g, complex), np.asarray(h, complex))
    if g.ndim < 3:
        raise ValueError(f"g has shape {g.shape}; it must be (..., M, N, K)")
    if not 0 <= reference_ue < g.shape[-2]:
        raise ValueError(f"reference_ue = {reference_ue} must be a UE from 0 to {g.shape[-2] - 1}")
    g, h = np.moveaxis(g, -1, -3), np.moveaxis(h, -1, -3)
    links, num_trp = g / h, g.shape[-2]
    if method == "tls":
        nodes = pair_tls(*_statistics(g, h), 0)
    elif method == "spanning_tree":
        nodes = _spanning_tree(links, num_trp + reference_ue, link_snr)
    elif method in ("argos", "argos_mean"):
        per_ue = 1.0 / links
        if method == "argos":
            trp = per_ue[..., reference_ue]
        else:
            trp = np.mean(per_ue / per_ue[..., :1, :], axis=-1)
        # The UEs follow by least squares: the paper leaves them open.
        nodes = np.concatenate([trp, np.mean(links * trp[..., None], axis=-2)], axis=-1)
    else:
        raise ValueError(f"method = {method!r} must be 'argos', 'argos_mean', 'tls' or 'spanning_tree'")
    nodes = np.swapaxes(nodes, -2, -1)
    return nodes[..., :num_trp, :], nodes[..., num_trp:, :]


def _statistics(g: NDArray, h: NDArray) -> tuple[NDArray, NDArray]:
    """Power and correlation of `reciprocity.pair_statistics` with y[m, n] = G and y[n, m] = H."""
    num_trp = g.shape[-2]
    correlation, power = bipartite(g.conj() * h), bipartite(np.abs(g) ** 2)
    correlation[..., num_trp:, :num_trp] = np.swapaxes(g * h.conj(), -2, -1)
    power[..., num_trp:, :num_trp] = np.swapaxes(np.abs(h) ** 2, -2, -1)
    return power, correlation


def _spanning_tree(links: NDArray, root: int, link_snr: ArrayLike | None) -> NDArray:
    """Product of single-link ratios along the tree of largest SNR."""
    num_trp = links.shape[-2]
    snr = np.ones(links.shape) if link_snr is None else np.asarray(link_snr, float)[..., None, :, :]
    order, parent = maximum_spanning_tree(bipartite(np.broadcast_to(snr, links.shape)), root)
    ratios = bipartite(1.0 / links)
    ratios[..., num_trp:, :num_trp] = np.swapaxes(links, -2, -1)
    return tree_product(ratios, order, parent)
