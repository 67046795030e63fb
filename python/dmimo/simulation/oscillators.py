# SPDX-License-Identifier: GPL-3.0-or-later
"""The oscillators and sample clocks of the nodes as functions of absolute time."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from .noise import GRID, KeyedStream, polar_normal, seed_words, separate_arrays, standard_normal

_LEVELS = 6  # 256^(6 + 1) samples: two thousand years at 1 MS/s
_NUM_SINUSOIDS = 16
_RAMP = (np.arange(GRID) / GRID).astype(np.float32)
_TWO = np.float32(2.0)
_TILT = (np.arange(1, 65) / 64).astype(np.float32)
# Standard deviations in `BrownianBridges`, each as kept: steps of 4 samples, midpoints between points 4 and 2 apart.
_SCALE = np.repeat([np.sqrt(4.0) / 4, np.sqrt(4.0 / 4) / 2, np.sqrt(2.0 / 4)], (64, 64, 128)).astype(np.float32)


class WienerPath:
    """A Wiener process W on the integers with random access: W(n) does not depend on the calls made before.

    Levy's construction with 256-fold refinement: level l holds W at the multiples of 256^l; between two neighbours lies
    a Brownian bridge whose random numbers are keyed by (level, position). A value anywhere costs one bridge per level,
    the next values in order cost almost none.

    Parameters
    ----------
    key : names the path; different keys give independent paths.
    variance : E (W(n + 1) - W(n))^2.
    """

    def __init__(self, key: object, variance: float):
        self.variance = variance
        self._streams = [KeyedStream(key, "wiener", level) for level in range(_LEVELS + 1)]
        self._nodes: dict[int, tuple[int, np.ndarray]] = {}

    def _node(self, level: int, index: int) -> np.ndarray:
        """Return W at the 257 points n = (256 index + k) 256^level, k = 0 ... 256."""
        cached = self._nodes.get(level)
        if cached is not None and cached[0] == index:
            return cached[1]
        steps = standard_normal(self._streams[level].words(index * GRID, GRID)) * np.sqrt(self.variance * GRID**level)
        values = np.concatenate([[0.0], np.cumsum(steps)])
        if level < _LEVELS:
            parent, k = self._node(level + 1, index // GRID), index % GRID
            values += parent[k] + np.arange(GRID + 1) / GRID * (parent[k + 1] - parent[k] - values[-1])
        elif index != 0:
            raise ValueError(f"sample index beyond {GRID ** (_LEVELS + 1)}")
        self._nodes[level] = (index, values)
        return values

    def borders(self, first: int, num: int) -> np.ndarray:
        """Return W(256 m) for m = first ... first + num - 1, float64 (num,)."""
        parts = []
        while num > 0:
            index, k = divmod(first, GRID)
            count = min(num, GRID - k)
            parts.append(self._node(1, index)[k : k + count])
            first, num = first + count, num - count
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def words(self, first: int, num: int) -> np.ndarray:
        """Return the random words of the bridges within grid blocks first ... first + num - 1, uint64 (128 num,)."""
        return self._streams[0].words(first * (GRID // 2), num * (GRID // 2))


class BrownianBridges:
    """Brownian bridges on 0 ... 256, for (num, blocks) of them at once, in work space made once.

    A random walk with 64 steps is tilted to its end; then come Levy's midpoints: between two known points s apart lies
    their mean plus N(0, variance s / 4). Points s apart are kept divided by s, so that means are sums.

    Parameters
    ----------
    variance : of a step, (num,).
    blocks : the most that `fill` is asked for.
    """

    def __init__(self, variance: np.ndarray, blocks: int):
        num = len(variance)
        self._minus_variance = -2.0 * np.asarray(variance, dtype=np.float32)[:, None, None]
        self._radius, self._angle, self._part = separate_arrays(3, (num, blocks, GRID // 2))
        self._normal = np.empty((num, blocks, GRID), dtype=np.float32)
        self._points = [np.zeros((num, blocks, count + 1), dtype=np.float32) for count in (64, 128, 256)]

    def fill(self, words: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """Return bridges from 0 to `ends` (num, b), float32 (num, b, 257), given random words, uint64 (num, b, 128)."""
        blocks = slice(ends.shape[1])
        radius, angle, part, normal = (a[:, blocks] for a in (self._radius, self._angle, self._part, self._normal))
        polar_normal(words, self._minus_variance, radius, angle)
        np.multiply(radius, np.cos(angle, out=part), out=normal[..., : GRID // 2])
        np.multiply(radius, np.sin(angle, out=part), out=normal[..., GRID // 2 :])
        normal *= _SCALE
        points = self._points[0][:, blocks]
        np.cumsum(normal[..., :64], axis=-1, out=points[..., 1:])
        tilt = (ends / 4 - points[..., 64]).astype(np.float32)
        points[..., 1:] += tilt[..., None] * _TILT
        for finer, count in zip(self._points[1:], (64, 128), strict=True):
            finer = finer[:, blocks]
            sums = np.add(points[..., :-1], points[..., 1:], out=part[..., :count])
            np.add(sums, normal[..., count : 2 * count], out=finer[..., 1::2])
            np.multiply(points, _TWO, out=finer[..., ::2])
            points = finer
        return points


class Oscillator:
    """The local oscillator of a node: theta(n) = 2 pi f_cfo n / f_s + drift(n) + Wiener phase noise.

    Transmit chains multiply by exp(+1j (theta + tx_phase)), receive chains by exp(-1j (theta + rx_phase)). The three
    parts are functions of absolute time: reading theta hours later costs the same and does not depend on earlier reads.

    * Carrier frequency offset: counted in units of 2^-64 turns per sample, so the phase is exact for every n.
    * Drift: a frequency wander with rms `drift_hz` and about the spectrum of an Ornstein-Uhlenbeck process with time
      constant T = `drift_period_s`, 1 / (1 + (2 pi f T)^2): equal-power sinusoids whose frequencies are stratified
      quantiles of that spectrum. Linear in time within each 256 samples.
    * Phase noise: increments of variance 2 pi linewidth_hz / samp_rate per sample (Lorentzian line of that full width).

    The node's clock is not applied to theta: n counts the node's own samples, or network time in a network with a
    clock that is `adjustable` (the difference shows where a clock is far off).

    Parameters
    ----------
    samp_rate : samples per second.
    seed_key : names the random processes, e.g. (seed, node name); different keys are independent.
    cfo_hz, linewidth_hz, drift_hz, drift_period_s : as above.
    tx_phase, rx_phase : synthesizer phases [rad], constant within an epoch; added by the network, not by `phase`.
    """

    def __init__(
        self,
        *,
        samp_rate: float,
        seed_key: object,
        cfo_hz: float = 0.0,
        linewidth_hz: float = 0.0,
        drift_hz: float = 0.0,
        drift_period_s: float = 100.0,
        tx_phase: float = 0.0,
        rx_phase: float = 0.0,
    ):
        if not samp_rate > 0.0 or not drift_period_s > 0.0:
            raise ValueError(f"samp_rate={samp_rate} and drift_period_s={drift_period_s} must be positive")
        if not linewidth_hz >= 0.0 or not drift_hz >= 0.0:
            raise ValueError(f"linewidth_hz={linewidth_hz} and drift_hz={drift_hz} must not be negative")
        self.samp_rate, self.cfo_hz, self.tx_phase, self.rx_phase = samp_rate, cfo_hz, tx_phase, rx_phase
        turns = round(Fraction(cfo_hz) / Fraction(samp_rate) * 2**64) % 2**64
        self.turns = np.uint64(turns)  # 2^-64 per sample
        table = (np.arange(GRID, dtype=np.uint64) * self.turns).view(np.int64) * (2 * np.pi * 2.0**-64)
        self.ramp = table.astype(np.float32)  # CFO phase within a grid block, in [-pi, pi)
        self.wiener = WienerPath(seed_key, 2 * np.pi * linewidth_hz / samp_rate) if linewidth_hz > 0.0 else None
        self.drift = None
        if drift_hz > 0.0:
            self.drift = _drift_sinusoids(seed_key, drift_hz, drift_period_s, GRID / samp_rate)
        self.is_still = turns == 0 and self.wiener is None and self.drift is None

    def phase(self, start: int, num: int) -> np.ndarray:
        """Return theta [rad], modulo 2 pi, at samples `start` ... `start + num - 1`, float64 (num,)."""
        if start < 0:
            raise ValueError(f"start={start} must not be negative: time is counted from the epoch")
        first = start // GRID
        blocks = -(-(start + num) // GRID) - first
        base, rest = OscillatorBank([self], blocks).grid_phase(first, blocks)
        theta = (base[..., None] + rest).reshape(-1)
        return theta[start - first * GRID :][:num]


class OscillatorBank:
    """The phases of several oscillators at once, on whole grid blocks; element by element the same as of each alone.

    Parameters
    ----------
    oscillators : N of them.
    max_blocks : number of grid blocks that a call may ask for.
    """

    def __init__(self, oscillators: Sequence[Oscillator], max_blocks: int):
        shape = (len(oscillators), max_blocks)
        self._turns = np.array([o.turns for o in oscillators], dtype=np.uint64)[:, None]
        self._ramp = np.stack([o.ramp for o in oscillators])[:, None]
        self._rest = np.empty((*shape, GRID), dtype=np.float32)
        self._paths = [(i, o.wiener) for i, o in enumerate(oscillators) if o.wiener is not None]
        if self._paths:
            variance = np.array([0.0 if o.wiener is None else o.wiener.variance for o in oscillators])
            self._borders = np.zeros((shape[0], max_blocks + 1))
            self._words = np.zeros((*shape, GRID // 2), dtype=np.uint64)
            self._bridges = BrownianBridges(variance, max_blocks)
        self._drift = None
        if any(o.drift is not None for o in oscillators):
            still = np.zeros((3, _NUM_SINUSOIDS))
            drift = np.stack([still if o.drift is None else o.drift for o in oscillators])
            self._drift = drift.transpose(1, 2, 0)[..., None]  # each (sinusoids, N, 1)

    def grid_phase(self, first: int, num: int) -> tuple[np.ndarray, np.ndarray]:
        """Return theta on grid blocks first ... first + num - 1 as base + rest, in work space of this object.

        base: float64 (N, num), at the beginning of the blocks; rest: float32 (N, num, 256), small.
        """
        block = np.arange(first, first + num, dtype=np.uint64)
        base = (block * np.uint64(GRID) * self._turns).view(np.int64) * (2 * np.pi * 2.0**-64)
        rest = self._rest[:, :num]
        rest[:] = self._ramp
        if self._paths:
            borders, words = self._borders[:, : num + 1], self._words[:, :num]
            for i, path in self._paths:
                borders[i] = path.borders(first, num + 1)
                words[i] = path.words(first, num).reshape(num, -1)
            rest += self._bridges.fill(words, borders[:, 1:] - borders[:, :-1])[..., :GRID]
            base += borders[:, :-1]
        if self._drift is not None:
            amplitude, rate, start = self._drift
            turned = np.sin(rate * np.arange(first, first + num + 1, dtype=np.float64) + start)
            drift = (amplitude * (turned - np.sin(start))).sum(axis=0)
            rest += (drift[:, 1:] - drift[:, :-1]).astype(np.float32)[..., None] * _RAMP
            base += drift[:, :-1]
        return base, rest


def _drift_sinusoids(seed_key: object, drift_hz: float, drift_period_s: float, interval_s: float) -> np.ndarray:
    """Return phase amplitude [rad], phase per `interval_s` [rad] and start phase [rad] of the sinusoids, (3, 16)."""
    rng = np.random.default_rng(seed_words(seed_key, "drift"))
    quantile = (np.arange(_NUM_SINUSOIDS) + rng.uniform(0.05, 0.95, _NUM_SINUSOIDS)) / _NUM_SINUSOIDS
    frequency_hz = np.tan(np.pi / 2 * quantile) / (2 * np.pi * drift_period_s)
    amplitude = drift_hz * np.sqrt(2.0 / _NUM_SINUSOIDS) / frequency_hz
    return np.stack([amplitude, 2 * np.pi * interval_s * frequency_hz, rng.uniform(-np.pi, np.pi, _NUM_SINUSOIDS)])


@dataclass(frozen=True)
class Clock:
    """The node's sample clock: its sample n is converted at network time offset_samples + n / rate [nominal samples].

    A positive offset means that the node is late, in both directions: it transmits its samples later and receives
    signals at a smaller index. rate > 1 is a fast clock. `loop_delay_samples` is the delay of the transmit chain
    relative to the receive chain, put entirely into transmit. Hence at baseband frequency f [cycles per sample]
    t carries exp(-2j pi f (offset + loop_delay)), r exp(+2j pi f offset), and c = t / r carries
    exp(-2j pi f (2 offset + loop_delay)).

    reach_samples : how far a clock with rate != 1 may run away from nominal time, either way, before the network
        refuses to go on; it costs that much latency. For an adjustable clock, how far beyond both nominal time and
        `offset_samples`: the offset itself costs latency too.
    adjustable : whether the node may be told to use other device samples (see `Network.process`): under a shift of s
        it takes its sample n + s for the network's sample n, so that its offset in effect is s later.
    """

    offset_samples: float = 0.0
    rate: float = 1.0
    loop_delay_samples: float = 0.0
    reach_samples: int = 8
    adjustable: bool = False

    def __post_init__(self):
        if not abs(self.rate - 1.0) <= 1e-3:
            raise ValueError(f"rate={self.rate} must be within 1e-3 of 1")
        if self.reach_samples < 0:
            raise ValueError(f"reach_samples={self.reach_samples} must not be negative")

    def displacement(self, sample: float) -> float:
        """Return how much later than nominal the node converts its sample `sample` because of its rate [samples]."""
        return sample * (1.0 / self.rate - 1.0)

    @property
    def fixed_offset(self) -> float:
        """Return the part of the offset that never changes [samples]; of an adjustable clock there is none."""
        return 0.0 if self.adjustable else self.offset_samples

    @property
    def limits(self) -> tuple[float, float]:
        """Return the least and the greatest offset that the network allows, without `fixed_offset` [samples]."""
        offset = self.offset_samples if self.adjustable else 0.0
        return min(offset, 0.0) - self.reach_samples, max(offset, 0.0) + self.reach_samples

    def offset(self, sample: float, shift: int = 0) -> float:
        """Return how much later than nominal the node converts what it takes for sample `sample` [samples]."""
        return self.offset_samples + shift / self.rate + self.displacement(sample)

    def tx_delay(self, sample: float, shift: int = 0) -> float:
        """Return by how much what leaves at network time `sample` is older, in the node's samples.

        Without `fixed_offset`, which the network puts into its channel.
        """
        if not self.adjustable:
            return sample * (1.0 - self.rate)
        return sample * (1.0 - self.rate) + self.offset_samples * self.rate + shift

    def rx_delay(self, sample: float, shift: int = 0) -> float:
        """Return by how much the node's sample `sample` is older than that index in network time, as `tx_delay`."""
        return -(self.offset(sample, shift) - self.fixed_offset) if self.adjustable else -self.displacement(sample)
