# SPDX-License-Identifier: GPL-3.0-or-later
"""Random numbers addressed by what they are for and by absolute position, never by the order of the calls.

Everything random in the simulated network comes from a `KeyedStream`: the key names the use (seed, node, port),
the position is a sample index. So a gap of hours costs nothing, adding a node leaves the others' noise alone, and
results cannot depend on buffer sizes or on threads.
"""

import hashlib

import numpy as np

GRID = 256  # samples; noise and oscillator phases are drawn in blocks of this size, anchored at absolute sample 0


def seed_words(*key: object) -> list[int]:
    """Return eight 32-bit words that depend on every part of `key` (ints, strings, tuples of them)."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return [int.from_bytes(digest[4 * k : 4 * k + 4], "little") for k in range(8)]


class KeyedStream:
    """Random 64-bit words with random access: word k depends on the key and on k alone.

    PCG64-DXSM is used rather than a counter-based generator: its `advance` gives the same random access in about a
    microsecond, and it is three times as fast as NumPy's Philox where the words are read in order.
    """

    def __init__(self, *key: object):
        self._generator = np.random.PCG64DXSM(np.random.SeedSequence(seed_words(*key)))
        self._position = 0

    def words(self, first: int, num: int) -> np.ndarray:
        """Return words `first` ... `first + num - 1`, uint64 (num,)."""
        if first != self._position:
            self._generator.advance((first - self._position) % (1 << 128))
        self._position = first + num
        return self._generator.random_raw(num)


def standard_normal(words: np.ndarray) -> np.ndarray:
    """Return as many N(0, 1) draws, float64 (n,), as there are `words`, uint64 (n,), n even (Box and Muller)."""
    u = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    half = len(u) // 2
    radius = np.sqrt(-2.0 * np.log(u[:half]))
    return np.concatenate([radius * np.cos(2 * np.pi * u[half:]), radius * np.sin(2 * np.pi * u[half:])])


def polar_normal(words: np.ndarray, variance: float | np.ndarray = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return radius and angle, float32 (..., n), of complex Gaussian draws with E|z|^2 = `variance`.

    A word gives one draw. `words` is uint64 (..., n) with contiguous last axis, n even: the 32-bit halves of the first
    n/2 words make the radii, the others the angles, because the vector units want contiguous data.
    Single precision: |z| is at most 4.8 standard deviations of z.
    """
    n = words.shape[-1]
    halves = words.view(np.int32)
    radius = halves[..., :n].astype(np.float32)
    np.abs(radius, out=radius)
    radius *= np.float32(2.0**-31)
    radius += np.float32(2.0**-33)  # log(0)
    np.log(radius, out=radius)
    radius *= -np.asarray(variance, dtype=np.float32)
    np.sqrt(radius, out=radius)
    angle = halves[..., n:].astype(np.float32)
    angle *= np.float32(np.pi * 2.0**-31)
    return radius, angle
