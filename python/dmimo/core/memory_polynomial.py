# SPDX-License-Identifier: GPL-3.0-or-later
r"""Predistorters of amplifiers with memory: exact by iteration, and as a memory polynomial by indirect learning.

The memory polynomial :math:`F(u)_k = f_0(u_k) + \sum_{l \ge 1} f_l(u_{k-l})` (`amplifier_model`) is inverted by

.. math:: u \leftarrow f_0^{-1}\Big(x_k - \sum_{l \ge 1} f_l(u_{k-l})\Big)

which converges geometrically where the memory is weaker than the direct path, as it is in amplifiers.

References
----------
Indirect learning: Eun and Powers, IEEE Trans. Signal Processing 45(1), 1997, cited by the paper for its eq. (17).
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .amplifier_model import amplify_with_memory, fit_amplifier
from .predistortion_inverse import predistort_and_count


class PredistortedWithMemory(NamedTuple):
    """Samples (..., N), number (...) of clipped ones in the last step, and the largest change (...) in that step."""

    samples: NDArray
    num_clipped: NDArray
    last_change: NDArray


def predistort_with_memory(
    x: ArrayLike, coefficients: ArrayLike, *, max_amplitude: ArrayLike = np.inf, num_steps: int = 40
) -> PredistortedWithMemory:
    """Amplifier inputs u (..., N) whose output is x, silent before its first sample, for (..., L, P) coefficients.

    The error after n steps is the n-th power of the memory's share of the gain; the change of the last step shows it.
    Samples are clipped where the memoryless part cannot reach what is wanted.
    """
    x, coefficients = np.asarray(x, complex), np.asarray(coefficients, complex)
    if coefficients.ndim < 2 or num_steps < 1:
        raise ValueError("coefficients must have shape (..., L, P), and num_steps be at least 1")
    direct, memory = coefficients[..., 0, :], coefficients.copy()
    memory[..., 0, :] = 0.0
    u, change = x, np.inf
    for _ in range(num_steps):
        result = predistort_and_count(x - amplify_with_memory(u, memory), direct, max_amplitude=max_amplitude)
        change = np.abs(result.samples - u).max(axis=-1, initial=0.0)
        u = result.samples
        if np.all(change < 1e-14):
            break
    return PredistortedWithMemory(u, result.num_clipped, change)


def indirect_learning(
    x: ArrayLike, coefficients: ArrayLike, *, order: int = 5, memory_depth: int = 3, num_rounds: int = 4
) -> NDArray:
    """Memory-polynomial predistorter (..., L', P') of amplifiers (..., L, P): u = amplify_with_memory(x, b).

    In each round the post-distorter is fitted from the model's output back to its input and moved in front; the next
    round fits it where the predistorted signal then is. The model's output is free of noise: a fit to received samples
    would have noise in its regressors and shrink the coefficients.

    Parameters
    ----------
    x : (..., N) training samples, distributed as the data, inside the invertible range.
    coefficients : of the identified amplifiers. order, memory_depth : of the predistorter.
    """
    x, coefficients = np.asarray(x, complex), np.asarray(coefficients, complex)
    if num_rounds < 1:
        raise ValueError(f"num_rounds = {num_rounds} must be at least 1")
    u = x
    for _ in range(num_rounds):
        learned = fit_amplifier(amplify_with_memory(u, coefficients), u, order=order, memory_depth=memory_depth)
        learned = learned if memory_depth > 1 else learned[..., None, :]
        u = amplify_with_memory(x, learned)
    return learned
