# SPDX-License-Identifier: GPL-3.0-or-later
r"""The paper's baseline: both access points send and receive through the best column of a DFT matrix.

With :math:`F` the unit-norm DFT codebooks of the two ends, all that such an end sees of the effective channel is
:math:`H = F_A^T G_e F_B` (M_A, M_B), one number per pair of beams, and after the choice of a pair a scalar link. The
paper can be read in two ways (section V, eq. (39) and what follows it):

* "reception": each end picks its beam from what all its beams receive. B takes
  :math:`\arg\max_l \sum_k |S_{kl}|^2` over the pilots of all antennas of A; A takes the beam in which B's signal has
  the largest energy, and answers through it.
* "sweep": every pair of beams is measured as one scalar, the pair of largest magnitude is used. The pilot energy is
  that of BeamSync's stage I, M_A in total, so each of the M_A M_B measurements has 1 / M_B of a symbol's energy. That
  A comes to know its beam of the pair, which B chose, costs nothing here.

What the choice leaves unused, all other beams' samples, is what BeamSync's digital receivers gain.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core.waveforms import dft_codebook
from .beamsync_model import complex_normal

Reading = Literal["reception", "sweep"]
READINGS: Mapping[Reading, str] = {"reception": "FGB, each end's strongest beam", "sweep": "FGB, sweep of all pairs"}


class BeamNoise(NamedTuple):
    """Noise of unit variance of one trial, or of a batch of them: what `phase` and `received` take.

    pilots (..., M_A, M_B), forward (..., M_A) on the beams of A along the signal, rest (..., M_A) energy of the N - 1
    other dimensions of each of those bursts, back (...) in B's beam.
    """

    pilots: NDArray
    forward: NDArray
    rest: NDArray
    back: NDArray


def draw_noise(rng: np.random.Generator, num_a: int, num_b: int, num_samples: int) -> BeamNoise:
    """Noise of one trial with bursts of `num_samples` symbols."""
    rest = rng.standard_gamma(num_samples - 1, size=num_a)
    pilots, forward, back = (complex_normal(rng, shape) for shape in ((num_a, num_b), (num_a,), (1,)))
    return BeamNoise(pilots, forward, rest, back[0])


def stack(noises: Sequence[BeamNoise]) -> BeamNoise:
    """Noise of several trials as one batch."""
    return BeamNoise(*(np.stack(parts) for parts in zip(*noises, strict=True)))


def beam_channel(g_e: NDArray) -> NDArray:
    """H (..., M_A, M_B), the effective channel between the beams of the two ends."""
    num_a, num_b = g_e.shape[-2:]
    return dft_codebook(num_a).T @ g_e @ dft_codebook(num_b)


def phase(
    h: NDArray, c_a: ArrayLike, c_b: ArrayLike, num_samples: ArrayLike, noise_var: ArrayLike, noise: BeamNoise,
    reading: Reading = "reception",
) -> tuple[NDArray, NDArray]:
    r"""Phase estimate [rad] from a conjugate return over the chosen pair of beams, and its :math:`|H_{kl}|^2`, (...).

    After the choice the protocol is BeamSync's with one antenna at each end (M_A = M_B = 1 in eq. (1) to (10)):

    .. math::

        z_k = \sqrt{N} c_B H_{kl} + w, \qquad
        s = \sqrt{N / E_k}\; c_A H_{kl} z_k^\ast + w', \qquad \hat\varphi = \angle s

    with :math:`E_k` the energy of the burst in the beam, noise outside the direction of x included.

    Parameters
    ----------
    h : (..., M_A, M_B), see `beam_channel`.
    c_a, c_b : (...), t / r of the first antennas.
    num_samples : N, scalar or (...).
    noise_var : sigma^2, scalar or (...).
    noise : as from `draw_noise`, stacked.
    """
    c_a, c_b, num_samples, noise_var = (np.asarray(part)[..., None] for part in (c_a, c_b, num_samples, noise_var))
    sigma = np.sqrt(noise_var)
    if reading == "reception":
        link = _column(h, _received_beam(h, c_a, sigma, noise))
    else:
        k, link = _swept_pair(h, c_a, sigma, noise)
    z = np.sqrt(num_samples) * c_b * link + sigma * noise.forward
    energy = np.abs(z) ** 2 + noise_var * noise.rest
    if reading == "reception":
        k = np.argmax(energy, axis=-1)[..., None]
    link, z, energy = (np.take_along_axis(part, k, axis=-1)[..., 0] for part in np.broadcast_arrays(link, z, energy))
    s = np.sqrt(num_samples[..., 0] / energy) * c_a[..., 0] * link * z.conj() + sigma[..., 0] * noise.back
    return np.angle(s), np.abs(link) ** 2


def transmit_and_receive_beams(
    h: NDArray, c_b: ArrayLike, noise_var: ArrayLike, noise: BeamNoise, reading: Reading = "reception"
) -> tuple[NDArray, NDArray | None]:
    """Beam k of A (...) for the frequency signal, and beam l of B (...): None where B is still to pick it.

    Here B sends the pilots (stage I of the paper's section IV): A hears ``c_b H``, and in the reading "reception" B
    picks its beam from the energy of the signal it then receives.
    """
    c_b, noise_var = np.asarray(c_b)[..., None, None], np.asarray(noise_var)[..., None, None]
    if reading == "reception":
        heard = c_b * h + np.sqrt(noise_var) * noise.pilots
        return np.argmax((np.abs(heard) ** 2).sum(axis=-1), axis=-1), None
    heard = c_b * h / np.sqrt(h.shape[-2]) + np.sqrt(noise_var) * noise.pilots
    best = np.argmax(np.abs(heard).reshape(*heard.shape[:-2], -1), axis=-1)
    return np.divmod(best, h.shape[-1])


def _received_beam(h: NDArray, c_a: NDArray, sigma: NDArray, noise: BeamNoise) -> NDArray:
    """Beam of B (...) in which the pilots of all antennas of A together are strongest."""
    heard = c_a[..., None] * h + sigma[..., None] * noise.pilots
    return np.argmax((np.abs(heard) ** 2).sum(axis=-2), axis=-1)


def _swept_pair(h: NDArray, c_a: NDArray, sigma: NDArray, noise: BeamNoise) -> tuple[NDArray, NDArray]:
    """Beam of A (..., 1) of the strongest measured pair, and the column (..., M_A) of H of its beam of B."""
    heard = c_a[..., None] * h / np.sqrt(h.shape[-1]) + sigma[..., None] * noise.pilots
    best = np.argmax(np.abs(heard).reshape(*heard.shape[:-2], -1), axis=-1)
    k, column = np.divmod(best, h.shape[-1])
    return k[..., None], _column(h, column)


def _column(h: NDArray, column: NDArray) -> NDArray:
    h = np.broadcast_to(h, (*column.shape, *h.shape[-2:]))
    return np.take_along_axis(h, column[..., None, None], axis=-1)[..., 0]
