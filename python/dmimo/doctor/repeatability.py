# SPDX-License-Identifier: GPL-3.0-or-later
r"""Does a synthesizer come back with the same phase when it is tuned anew, and if not, what are the steps?

A divider behind a phase-locked loop starts in one of few states: after the n-th tune the phase is

.. math:: \varphi_n = \varphi + q k_n + \varepsilon_n, \qquad k_n \in \{0, \dots, 360^\circ / q - 1\}

with an unknown phase :math:`\varphi` of its own, a quantum q, states :math:`k_n` that are equally likely, and small
errors :math:`\varepsilon_n` of measurement and drift. q = 360 degrees is a phase that comes back, q = 0 one that may be
anything. With m = 360 / q the turned phases :math:`m \varphi_n` gather around one place, and around none for a finer
quantum; for von Mises errors of concentration :math:`\kappa = (m \sigma)^{-2}` the likelihood, its place integrated
out, is closed:

.. math:: \frac{p(\varphi_1 \dots \varphi_N \mid m)}{p(\varphi_1 \dots \varphi_N \mid \text{anything})}
          = \frac{I_0(\kappa R_m)}{I_0(\kappa)^N}, \qquad R_m = \Big| \sum_n e^{j m \varphi_n} \Big|

A coarser quantum is a special case of a finer one; that N draws of k fall on it by chance is what the finer one pays
for: two states look like one with probability :math:`2^{1-N}`.

References
----------
K. V. Mardia, P. E. Jupp, "Directional Statistics", Wiley, 2000: eq. (3.5.18) for the von Mises density, section 5.3 for
its likelihood.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import i0e, logsumexp

REPEATABLE, RANDOM = 360, 0
QUANTA_DEG = (REPEATABLE, 180, 90, 45, RANDOM)
MAX_DRIFT_DEG = 4.0  # of a phase that comes back: a joint transmission loses 10 log10(1 + 0.07^2) = 0.02 dB by it
CONFIDENCE = 0.99
_MIN_STD_DEG = 0.1
_NUM_STDS = 9


class Verdict(NamedTuple):
    """The quantum of a phase, and how sure that is.

    quantum_deg : 360 (comes back), 180, 90, 45, 0 (may be anything); None where the phases do not tell.
    error_probability : that another quantum is the true one, all having been equally likely before.
    spread_deg : rms deviation of the phases from the nearest state; None for no quantum or a random one.
    """

    quantum_deg: int | None
    error_probability: float
    spread_deg: float | None


def probabilities(phases_rad: ArrayLike, std_rad: ArrayLike, *, max_drift_rad: float = np.radians(MAX_DRIFT_DEG)
                  ) -> NDArray:
    r"""Probability of each of `QUANTA_DEG` given phases after retunes, (..., 5), all equally likely before.

    Errors are between what was measured of them and `max_drift_rad`: their scale :math:`\sigma` is integrated out,
    evenly in its logarithm.

    Parameters
    ----------
    phases_rad : array_like (..., N)
        One phase for each retune.
    std_rad : array_like (...)
        Standard deviation of each from noise.
    max_drift_rad : float
        Greatest standard deviation, noise apart, of a phase that is still said to come back.
    """
    phases = np.asarray(phases_rad, float)
    if phases.ndim == 0 or phases.shape[-1] < 2:
        raise ValueError(f"phases_rad of shape {phases.shape}: must be at least 2 phases")
    if not (np.all(np.isfinite(phases)) and np.all(np.asarray(std_rad) >= 0)):
        raise ValueError("phases_rad and std_rad must be finite, std_rad not negative")
    least = np.maximum(np.asarray(std_rad, float), np.radians(_MIN_STD_DEG))
    most = np.hypot(least, max_drift_rad)
    share = np.linspace(0.0, 1.0, _NUM_STDS)
    std = least[..., None] ** (1 - share) * most[..., None] ** share
    columns = [_log_likelihood(phases, REPEATABLE // quantum, std) for quantum in QUANTA_DEG[:-1]]
    log_likelihood = np.stack([*columns, np.zeros(phases.shape[:-1])], axis=-1)
    return np.exp(log_likelihood - logsumexp(log_likelihood, axis=-1, keepdims=True))


def _log_likelihood(phases: NDArray, turns: int, std: NDArray) -> NDArray:
    """Logarithm of the ratio in the module's equation, (...), mean over the last axis of the likelihoods of `std`."""
    concentration = (turns * std) ** -2.0
    resultant = np.abs(np.exp(1j * turns * phases).sum(axis=-1))[..., None]
    # log I0(x) = log(i0e(x)) + x; the exponents are taken together, since each alone may be huge.
    excess = np.log(i0e(concentration * resultant)) - phases.shape[-1] * np.log(i0e(concentration))
    values = excess + concentration * (resultant - phases.shape[-1])
    return logsumexp(values, axis=-1) - np.log(std.shape[-1])


def verdict(phases_rad: ArrayLike, std_rad: float, *, confidence: float = CONFIDENCE) -> Verdict:
    """The quantum of one synthesizer's phases (N,), if it is known with that confidence."""
    phases = np.asarray(phases_rad, float)
    chance = probabilities(phases, std_rad)
    best = int(np.argmax(chance))
    error = float(1.0 - chance[best])
    if chance[best] < confidence:
        return Verdict(None, error, None)
    quantum = QUANTA_DEG[best]
    return Verdict(quantum, error, None if quantum == RANDOM else spread_deg(phases, quantum))


def spread_deg(phases_rad: ArrayLike, quantum_deg: int) -> float:
    """Rms deviation of phases from the nearest of the states of a quantum [deg]."""
    turns = REPEATABLE // quantum_deg
    turned = np.exp(1j * turns * np.asarray(phases_rad, float))
    return float(np.degrees(np.sqrt(np.mean(np.angle(turned * np.conj(turned.mean())) ** 2))) / turns)
