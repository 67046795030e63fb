# SPDX-License-Identifier: GPL-3.0-or-later
r"""Frequencies of all oscillators from two-way coefficients that were read at different times.

A link's coefficient at band centre, read at time t, is

.. math:: a_{mn}(t) = |a_{mn}|\, e^{j (\varphi_n - \varphi_m) + 4j \pi (f_n - f_m) t} + w

with one phase per port and one frequency per node. Links may be read one after another, each at least twice: the phases
of all of them, unwrapped by the two readings of each, fix the frequencies much better than these two alone.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .bidirectional import require_links, tls_coefficients

# Gauss-Newton steps: the first is nearly exact, the unwrapped phases being linear in the unknowns.
_STEPS = 3
# Singular values below this share of the largest belong to what the links leave free.
_FREE = 1e-11
# Residuals beyond so many deviations were turned by something else, or unwrapped wrongly.
MAX_RESIDUAL = 5.0


class NodeFrequencies(NamedTuple):
    """Frequencies relative to the first TRP and what is known of them.

    frequency_hz (..., P) of all nodes, TRPs first, of the oscillators themselves (coefficients turn at twice that);
    covariance (..., P, P) Hz^2; consistent (..., S, M, N), whether a reading agrees with the fit.
    """

    frequency_hz: NDArray
    covariance: NDArray
    consistent: NDArray


def node_frequencies(
    gain: ArrayLike,
    time_s: ArrayLike,
    phase_std: ArrayLike,
    used: ArrayLike,
    node_of_trp_port: ArrayLike,
    node_of_ue_port: ArrayLike,
) -> NodeFrequencies:
    """Least-squares frequencies of all nodes, with the phases of all ports as unknowns beside them.

    The first two readings of a link must lie less than ``1 / (4 |f_n - f_m|)`` apart; what lies further is unwrapped
    by the fit.

    Parameters
    ----------
    gain : (..., S, M, N) complex, coefficients of S readings at band centre.
    time_s : (S, M, N) or with leading axes, of each reading; relative to a time nearby.
    phase_std : (..., S, M, N) rad.
    used : (..., M, N) bool; nothing is read from other links.
    node_of_trp_port, node_of_ue_port : (M,) and (N,), numbers from 0 in each of the two sides.

    Raises
    ------
    DisconnectedLinksError
        If the used links do not join all ports.
    ValueError
        If there are fewer than two readings, or they lie at one time.
    """
    gain, used = np.asarray(gain, complex), np.asarray(used, bool)
    time_s = np.broadcast_to(np.asarray(time_s, float), gain.shape)
    if gain.ndim < 3 or gain.shape[-3] < 2:
        raise ValueError(f"gain has shape {gain.shape}; it must be (..., S, M, N) with S = 2 readings or more")
    apart = time_s[..., 1, :, :] - time_s[..., 0, :, :]
    if not np.all(apart[np.broadcast_to(used, apart.shape)] != 0):
        raise ValueError("time_s: the first two readings of each link must lie at different times")
    require_links(used)
    trp, ue = np.asarray(node_of_trp_port), np.asarray(node_of_ue_port)
    mask = np.broadcast_to(used[..., None, :, :], gain.shape)
    weights = np.where(mask, 1.0 / np.asarray(phase_std, float) ** 2, 0.0)
    gain = np.where(mask, gain, 1.0)
    # In units of their own size, phases and frequencies have the same order of magnitude in the equations.
    unit = np.abs(time_s).max()
    links, rates = _incidence(trp, ue)
    turns = (4.0 * np.pi / unit) * time_s[..., None] * rates
    design = (links + turns).reshape(*gain.shape[:-3], -1, links.shape[-1])
    rows = weights.reshape(*gain.shape[:-3], -1)
    normal = _pinv(design, rows)
    unknowns = _start(gain, time_s / unit, weights, used, rates)
    for _ in range(_STEPS):
        pull = rows * _residual(gain, design, unknowns)
        unknowns = unknowns + np.einsum("...xy,...ry,...r->...x", normal, design, pull)
    residual = _residual(gain, design, unknowns).reshape(gain.shape)
    consistent = np.abs(residual) * np.sqrt(weights) <= MAX_RESIDUAL
    first = len(trp) + len(ue)
    difference = (np.eye(links.shape[-1])[first:] - np.eye(links.shape[-1])[first]) / unit
    return NodeFrequencies(unknowns @ difference.T, difference @ normal @ difference.T, consistent & mask)


def _incidence(trp: NDArray, ue: NDArray) -> tuple[NDArray, NDArray]:
    """What a link takes from its TRP and adds from its UE, (M, N, M + N + P): ports' phases, nodes' frequencies."""
    num_trp, num_ue, trps = len(trp), len(ue), trp.max() + 1
    m, n = np.arange(num_trp)[:, None], np.arange(num_ue)
    first = num_trp + num_ue
    links = np.zeros((num_trp, num_ue, first + trps + ue.max() + 1))
    rates = np.zeros_like(links)
    links[m, n, m], links[m, n, num_trp + n] = -1.0, 1.0
    rates[m, n, first + trp[:, None]], rates[m, n, first + trps + ue] = -1.0, 1.0
    return links, rates


def _start(gain: NDArray, time: NDArray, weights: NDArray, used: NDArray, rates: NDArray) -> NDArray:
    """Unknowns (..., M + N + P): frequencies from the two readings of each link, then phases from all readings."""
    apart = np.where(used, time[..., 1, :, :] - time[..., 0, :, :], 1.0)
    turn = np.angle(gain[..., 1, :, :] * gain[..., 0, :, :].conj()) / (4.0 * np.pi * apart)
    information = np.where(used, apart**2 * np.minimum(weights[..., 0, :, :], weights[..., 1, :, :]), 0.0)
    rows = rates.reshape(-1, rates.shape[-1])
    flat = (*information.shape[:-2], -1)
    normal = _pinv(np.broadcast_to(rows, (*information.shape[:-2], *rows.shape)), information.reshape(flat))
    unknowns = np.einsum("...xy,ry,...r->...x", normal, rows, (information * turn).reshape(flat))
    frequency = np.einsum("mnx,...x->...mn", rates, unknowns)[..., None, :, :]
    held = np.sum(weights * gain / np.abs(gain) * np.exp(-4j * np.pi * frequency * time), axis=-3)
    held = np.where(used, held, 1.0)
    phases = np.angle(tls_coefficients(held / np.abs(held), used))
    unknowns[..., : phases.shape[-1]] = phases
    return unknowns


def _residual(gain: NDArray, design: NDArray, unknowns: NDArray) -> NDArray:
    """Phases (..., S M N) of the readings against the model."""
    model = np.einsum("...rx,...x->...r", design, unknowns)
    return np.angle(gain.reshape(model.shape) * np.exp(-1j * model))


def _pinv(design: NDArray, rows: NDArray) -> NDArray:
    """Pseudo-inverse of the normal matrix; a common phase and a common frequency are free."""
    normal = np.einsum("...rx,...r,...ry->...xy", design, rows, design)
    return np.linalg.pinv(normal, rcond=_FREE, hermitian=True)
