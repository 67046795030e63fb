# SPDX-License-Identifier: GPL-3.0-or-later
"""Coarse delays and frequencies of a network from one-way measurements, to resolve what finer ones leave open.

A one-way measurement from j to i shows the delay D_ij = s_ij + (D_j - D_i)/2 with s symmetric, and the carrier
f_j - f_i: its difference to the other direction knows nothing of the path.
"""

import numpy as np
from numpy.typing import NDArray

from .graph import laplacian

# Coherence, in deviations of noise alone, from which a pair counts.
_LEAST_COHERENCE = 5.0


def coarse_values(difference: NDArray, coherence: NDArray, count: float | NDArray) -> tuple[NDArray, NDArray]:
    """Values x (M,) of the nodes from differences x_j - x_i, and their standard deviations per radian of phase.

    Parameters
    ----------
    difference : (M, M) antisymmetric, entry [i, j] = x_j - x_i, from phases of variance ``(1/rho^2 - 1)/(2 n)``.
    coherence : (M, M) symmetric, rho of each pair in 0 ... 1; the diagonal is ignored.
    count : number n of independent products in each pair.

    Returns
    -------
    x, std : (M,); x has zero mean over each connected part. A pair whose coherence may be noise alone (below
        5 / sqrt(n)) does not count; a node without pairs has x = 0 and an infinite std.
    """
    rho = np.clip(coherence, 1e-6, 1.0 - 1e-9)
    heard = coherence > _LEAST_COHERENCE / np.sqrt(count)
    np.fill_diagonal(heard, False)
    weights = np.where(heard, 2.0 * count / (1.0 / rho**2 - 1.0), 0.0)
    inverse = np.linalg.pinv(laplacian(weights), hermitian=True)
    values = inverse @ -np.sum(weights * difference, axis=1)
    std = np.sqrt(np.maximum(np.diagonal(inverse), 0.0))
    return values, np.where(heard.any(axis=1), std, np.inf)
