# SPDX-License-Identifier: GPL-3.0-or-later
r"""Predistortion of streams in single precision: the gain u / x of each sample from a dense table over its power.

The gain of a memoryless predistorter is a function of :math:`s = |x|^2` alone. The range up to the largest power
:math:`S` that is not clipped is divided into T cells of equal width, and every sample gets the gain at the middle of
its cell,

.. math:: u = x\, g_k, \qquad k = \lfloor T s / S \rfloor, \qquad
    g_k = F^{-1}(a_k) / a_k, \quad a_k = \sqrt{S (k + 1/2) / T}.

Power needs no square root and one table look-up no interpolation; the amplifier's polynomial is one in s, so that
small amplitudes lose nothing. The error is :math:`|g'(s)| S / (T \sqrt{12})` rms within a cell. With T = 8192 and
Gaussian data of unit mean power it is 85 dB below the signal or less, at the amplifier's output 95 dB or less, for the
GaN polynomial at a back-off of 8 to 12 dB and for third order as strong as -0.12 + 0.05j. It is largest next to the
invertible limit, where u is steep but the output does not feel it.

References
----------
`predistortion_inverse.predistort`, which is exact, and `apply_table`, which interpolates over amplitude.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .predistortion_inverse import invertible_range, predistort

# A complex64 sample of the limit's amplitude may lie above it by the rounding of its parts, 2^-24.
_LIMIT_ROUNDING = 2.0**-23
# The power of a sample is wrong by a few roundings of 2^-24: whether it is beyond the limit is decided from its parts.
_POWER_MARGIN = 1e-5


class PowerTable(NamedTuple):
    """One port's predistorter.

    Attributes
    ----------
    gains : (T,) complex64, u / x in cells of equal width of the power; empty where samples pass unchanged.
    limit : wanted amplitude |x| beyond which samples are clipped; inf where they pass unchanged.
    end : complex, u for x = limit; a clipped sample is sent with this size, turned by its own phase.
    cells : float32 (1,), cells per unit of power. threshold : float32 (1,), cell above which samples may be clipped.
    """

    gains: NDArray
    limit: float
    end: complex
    cells: NDArray
    threshold: NDArray

    @property
    def passes(self) -> bool:
        """Whether samples are neither changed nor clipped."""
        return self.limit == np.inf


class Scratch(NamedTuple):
    """Memory for `apply_power_table`, each (N,): float32, float32, int32, indices, complex64."""

    power: NDArray
    part: NDArray
    whole: NDArray
    index: NDArray
    gains: NDArray


def scratch(num_samples: int) -> Scratch:
    """Memory for calls of `apply_power_table` with up to so many samples."""
    types = np.float32, np.float32, np.int32, np.intp, np.complex64
    return Scratch(*(np.empty(num_samples, dtype) for dtype in types))


def power_tables(
    coefficients: ArrayLike, *, size: int = 8192, max_amplitude: ArrayLike = np.inf, full_scale: float = 4.0
) -> tuple[PowerTable, ...]:
    """Tables of the predistorters of amplifiers (M, P), one for each.

    A table ends where its amplifier can no longer be inverted, or at full_scale where that is lower. Samples of an
    amplifier without coefficients after the first and without a largest amplitude pass unchanged, however large.

    Parameters
    ----------
    coefficients : (M, P) complex with first entry 1.
    size : T, number of cells.
    max_amplitude : number or (M,), largest amplifier input that is trusted; inf: up to the invertible limit.
    full_scale : largest wanted amplitude in the table; unit mean power is the reference.

    Raises
    ------
    ValueError
        If an argument has not these properties.
    """
    coefficients = np.asarray(coefficients, np.complex128)
    if coefficients.ndim != 2 or coefficients.shape[1] == 0:
        raise ValueError(f"coefficients of shape {coefficients.shape}: must have shape (num_ports, P)")
    if not size >= 2:
        raise ValueError(f"size = {size}: must be at least 2")
    if not 0.0 < full_scale < np.inf:
        raise ValueError(f"full_scale = {full_scale}: must be positive and finite")
    max_amplitude = np.asarray(max_amplitude, np.float64)
    if max_amplitude.shape not in ((), coefficients.shape[:1]) or not np.all(max_amplitude > 0.0):
        raise ValueError(f"max_amplitude = {max_amplitude}: must be positive, a number or one for each of the "
                         f"{len(coefficients)} ports")  # fmt: skip
    max_amplitude = np.broadcast_to(max_amplitude, coefficients.shape[:1])
    places = np.append(np.sqrt((np.arange(size) + 0.5) / size), 1.0)
    # Checks the coefficients too.
    predistort(np.zeros(1), coefficients, max_amplitude=max_amplitude)
    reach = invertible_range(coefficients, max_amplitude=max_amplitude).output_amplitude
    passes = np.isinf(max_amplitude) & ~np.any(coefficients[:, 1:], axis=1)
    limits = np.where(passes, np.inf, np.minimum(reach, full_scale))
    wanted = np.where(passes, 1.0, limits)[:, None] * places
    inputs = predistort(wanted, coefficients, max_amplitude=max_amplitude)
    gains = (inputs / wanted)[:, :-1].astype(np.complex64)
    cells = (size / limits**2).astype(np.float32)
    threshold = np.array([size * (1.0 - _POWER_MARGIN)], np.float32)
    return tuple(
        PowerTable(gains[port, : 0 if passes[port] else size], float(limits[port]), complex(inputs[port, -1]),
                   cells[port : port + 1], threshold)
        for port in range(len(coefficients))
    )  # fmt: skip


def apply_power_table(x: NDArray, table: PowerTable, out: NDArray, memory: Scratch) -> int:
    """Write the predistorted samples x (N,) to `out` (N,), both complex64; return how many were clipped.

    A sample's result does not depend on the others. Samples that are not finite come out as nan. NumPy warns of these,
    and of samples hundreds of times beyond the limit, unless it is told not to.
    """
    if table.passes:
        out[:] = x
        return 0
    power, part, whole, index, gains = (array[: len(x)] for array in memory)
    np.square(x.real, out=power)
    np.square(x.imag, out=part)
    np.add(power, part, out=power)
    np.multiply(power, table.cells, out=power)
    whole[:] = power  # in two steps, each of which is vectorised, which the direct one is not
    index[:] = whole
    table.gains.take(index, 0, gains, "clip")
    np.multiply(x, gains, out=out)
    candidates = (power > table.threshold).nonzero()[0]
    return _clip(x, candidates, table, out) if len(candidates) else 0


def _clip(x: NDArray, candidates: NDArray, table: PowerTable, out: NDArray) -> int:
    """Bring what is beyond the limit among the candidates, indices (n,), back to it; return how many those are.

    The others come to the limit too, by a share of the margin: less than the table changes.
    """
    samples = x[candidates].astype(np.complex128)
    amplitude = np.abs(samples)
    out[candidates] = samples * (table.end / amplitude)
    return int(np.count_nonzero(amplitude > table.limit * (1.0 + _LIMIT_ROUNDING)))
