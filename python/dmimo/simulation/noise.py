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


def separate_arrays(num: int, shape: tuple[int, ...]) -> list[np.ndarray]:
    """Return `num` float32 work arrays that do not touch each other in memory.

    NumPy takes adjoining arrays for overlapping ones, and then leaves its vector loops for scalar ones: thirty times
    slower, and rounded differently.
    """
    return [np.empty(shape, dtype=np.float32) for _ in range(num)]


def standard_normal(words: np.ndarray) -> np.ndarray:
    """Return as many N(0, 1) draws, float64 (n,), as there are `words`, uint64 (n,), n even (Box and Muller)."""
    u = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    half = len(u) // 2
    radius = np.sqrt(-2.0 * np.log(u[:half]))
    return np.concatenate([radius * np.cos(2 * np.pi * u[half:]), radius * np.sin(2 * np.pi * u[half:])])


def polar_normal(words: np.ndarray, minus_variance: np.ndarray, radius: np.ndarray, angle: np.ndarray) -> None:
    """Write radius and angle, float32 (..., n), of complex Gaussian draws with E|z|^2 = -`minus_variance`, float32.

    A word gives one draw. `words` is uint64 (..., n) with contiguous last axis, n even: the 32-bit halves of the first
    n/2 words make the radii, the others the angles, because the vector units want contiguous data.
    In single precision |z| is at most 4.8 standard deviations.
    """
    n = words.shape[-1]
    halves = words.view(np.int32)
    radius[:] = halves[..., :n]
    np.abs(radius, out=radius)
    radius *= np.float32(2.0**-31)
    radius += np.float32(2.0**-33)  # log(0)
    np.log(radius, out=radius)
    radius *= minus_variance
    np.sqrt(radius, out=radius)
    angle[:] = halves[..., n:]
    angle *= np.float32(np.pi * 2.0**-31)


class ReceiverNoise:
    """White complex Gaussian noise of each port, a function of (key of the port, absolute sample).

    Parameters
    ----------
    keys : one per port.
    variance : (P,), 0 for a port without noise.
    max_samples : the most that `add` is asked for.
    """

    def __init__(self, keys: list[object], variance: np.ndarray, max_samples: int):
        self._ports = np.flatnonzero(variance > 0.0)
        self._noisy = slice(None) if len(self._ports) == len(variance) else self._ports
        self._minus_variance = -variance[self._ports, None, None].astype(np.float32)
        self._streams = [KeyedStream(keys[p]) for p in self._ports]
        self._max_samples = max_samples
        self._words = np.empty((len(self._ports), max_samples), dtype=np.uint64)
        self._radius, self._angle, self._real, self._imag = separate_arrays(4, (len(self._ports), max_samples))
        self._first = self._end = 0  # samples whose noise is in _real and _imag

    def add(self, y: np.ndarray, start: int) -> None:
        """Add the noise of samples `start` ... to y, complex64 (P, n); both multiples of 256."""
        if not self._streams:
            return
        num = y.shape[1]
        if not self._first <= start <= start + num <= self._end:
            # Short calls in a row, slot after slot, are served from one draw: a call of NumPy costs more than a slot.
            self._draw(start, self._max_samples if start == self._end else num)
        held = slice(start - self._first, start - self._first + num)
        parts = y.view(np.float32).reshape(len(y), num, 2)
        parts[self._noisy, :, 0] += self._real[:, held]
        parts[self._noisy, :, 1] += self._imag[:, held]

    def _draw(self, start: int, num: int) -> None:
        for stream, words in zip(self._streams, self._words, strict=True):
            words[:num] = stream.words(start, num)
        arrays = (self._words, self._radius, self._angle, self._real, self._imag)
        words, radius, angle, real, imag = (a[:, :num].reshape(-1, num // GRID, GRID) for a in arrays)
        polar_normal(words, self._minus_variance, radius, angle)
        np.multiply(radius, np.cos(angle, out=real), out=real)
        np.multiply(radius, np.sin(angle, out=imag), out=imag)
        self._first, self._end = start, start + num
