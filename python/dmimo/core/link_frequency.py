# SPDX-License-Identifier: GPL-3.0-or-later
r"""Carrier frequency offsets of links from a few soundings at any times.

A link is sounded L times; its channel on K elements is unknown but stays as it is,

.. math:: y_{l k} = h_k\, e^{2j \pi u f t_l} + n_{l k}, \qquad f = f_n - f_m,

with u = 1 for the uplink channel G, -1 for the downlink channel H, 2 for the two-way coefficient C and -2 for 1 / C.
With h eliminated, the likelihood depends on the L x L matrix :math:`R = \sum_k y_k y_k^H` only,

.. math:: J(f) = \frac{a^H R\, a}{a^H a}, \qquad a_l = e^{2j \pi u f t_l},

a sum of cosines of f, one for each pair of soundings. Soundings of different kinds, each with its own channel, share f:
their J over the noise variance are added. The pair closest in time bounds the offsets that can be told apart, the pair
farthest apart the precision; the search covers the former in steps of the latter, and Newton's method ends it.

References
----------
Bidirectional calibration (CARS), eq. (10) and (30); the paper leaves the estimation of frequencies open.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import special

from .delay import MAX_OUTLIER_PROBABILITY
from .frequency import FALSE_ALARM

# Points of the search per 1 / (longest turn): the peak is at most a sixteenth of a turn from one of them.
_OVERSAMPLING = 8
# Local maxima of the search that are climbed: with long gaps neighbours are nearly as high between the points.
_RIVALS = 8
_NEWTON_STEPS = 12
# Values of the search at a time.
_CHUNK_VALUES = 1 << 20
# Noise variance relative to the energy of an element below which the residual is rounding.
_RELATIVE_VARIANCE_FLOOR = 1e-13
# Energy over the noise that keeps the deviations of links without a signal finite.
_LEAST_ENERGY = 1e-3
# Soundings that agree with one frequency no better than once in so many links are not trusted.
_LEAST_CHANCE = 1e-6


class AmbiguousFrequencyError(ValueError):
    """No two soundings are close enough for the offsets searched; `max_frequency_hz` and `unambiguous_hz` say it."""

    def __init__(self, max_frequency_hz: float, unambiguous_hz: float, closest_s: float):
        self.max_frequency_hz, self.unambiguous_hz = max_frequency_hz, unambiguous_hz
        super().__init__(
            f"max_frequency_hz = {max_frequency_hz:g} Hz is beyond the unambiguous {unambiguous_hz:g} Hz: the closest "
            f"soundings are {closest_s * 1e6:g} us apart (times turns), and must be at most "
            f"{0.5e6 / max_frequency_hz:g} us apart"
        )


@dataclass(frozen=True, eq=False)
class Soundings:
    """Repeated soundings of one kind, with one channel.

    Attributes
    ----------
    g : (..., L, K), L of at least 2 soundings of each link (..., M, N) on K elements; gains of links alone have K = 1.
    times_s : (L,) in any order, to which the soundings belong (a two-way coefficient: the midpoint).
    turns : u, the soundings turn with u f.
    noise_var : scalar or broadcastable to (..., L), of an element; None: found from the soundings, one for all L, which
        needs K of at least 2.
    """

    g: ArrayLike
    times_s: ArrayLike
    turns: float = 1.0
    noise_var: ArrayLike | None = None

    def __post_init__(self):
        g, times = np.asarray(self.g), np.asarray(self.times_s, float)
        if g.ndim < 2 or g.shape[-2] < 2 or g.shape[-1] < 1 or times.shape != g.shape[-2:-1]:
            raise ValueError(f"g {g.shape} must be (..., L, K) with L >= 2, and times_s {times.shape} be (L,)")
        if not np.isfinite(times).all() or np.any(np.diff(np.sort(times)) <= 0):
            raise ValueError(f"times_s = {times} must be finite and all different")
        if not np.isfinite(self.turns) or self.turns == 0:
            raise ValueError(f"turns = {self.turns} must be finite and not zero")
        if self.noise_var is None and g.shape[-1] < 2:
            raise ValueError("g of a single element needs noise_var")
        if self.noise_var is not None and not np.all(np.asarray(self.noise_var) > 0):
            raise ValueError("noise_var must be positive")


class LinkFrequency(NamedTuple):
    """Frequency offsets f_n - f_m of links (...) with what is known of their errors.

    frequency_hz; frequency_std_hz, predicted, of all errors; walk_std_hz, the part of it by the phase noise of the two
    oscillators. outlier_probability: chance of a wrong peak. misfit: squared residual phases per degree of freedom, 1
    on average, nan without any (one group of two soundings). trusted: a signal for certain, the right peak, inside the
    limit, and soundings that agree with one frequency.
    """

    frequency_hz: NDArray
    frequency_std_hz: NDArray
    walk_std_hz: NDArray
    outlier_probability: NDArray
    misfit: NDArray
    trusted: NDArray


class _Terms(NamedTuple):
    """J of B links in units of the noise: a constant for each of G groups, and a sum over P pairs of soundings.

    level (B, G): what single soundings add to J. value (B, P) complex, turn_s (P,) = u (t_l - t_l'), pair_group (P,):
    J of a pair is ``Re(value e^{-2j pi f turn_s})``. first, second (P,): its soundings among all T, which have the
    group (T,), the place_s (T,) = u t, the turns (T,) = u, the share (B, T) of their group's weight, and clean (B, T),
    the energy of the signal in them on the scale of `value`. energy (B, G) of the soundings over the noise, known (B,
    G) whether the noise was given, num_elements (G,).
    """

    level: NDArray
    value: NDArray
    turn_s: NDArray
    pair_group: NDArray
    first: NDArray
    second: NDArray
    group: NDArray
    place_s: NDArray
    turns: NDArray
    share: NDArray
    clean: NDArray
    energy: NDArray
    known: NDArray
    num_elements: NDArray


def link_frequency(
    groups: Soundings | Sequence[Soundings], *, max_frequency_hz: float | None = None, linewidth_hz: float = 0.0
) -> LinkFrequency:
    """Maximum-likelihood frequency offset of each link from groups of soundings that share it.

    Parameters
    ----------
    groups : one or several, of the same links (..., M, N).
    max_frequency_hz : largest ``|f_n - f_m|``. None: what the closest pair of soundings can tell, 1 / (2 u dt).
    linewidth_hz : sum of the linewidths of the two oscillators; soundings are then weighted for it after the search.

    Raises
    ------
    AmbiguousFrequencyError
        If no pair of soundings is closer than ``1 / (2 u max_frequency_hz)``.
    ValueError
        If shapes do not fit or a number is out of range.
    """
    groups = [groups] if isinstance(groups, Soundings) else list(groups)
    if not groups:
        raise ValueError("groups must hold at least one of Soundings")
    if not (np.isfinite(linewidth_hz) and linewidth_hz >= 0):
        raise ValueError(f"linewidth_hz = {linewidth_hz} must be finite and not negative")
    limit = _limit(groups, max_frequency_hz)
    shape = np.broadcast_shapes(*(np.shape(group.g)[:-2] for group in groups))
    data = [_flat(group, shape) for group in groups]
    num_sounded = sum(y.shape[-2] for y, _ in data)
    span = max(abs(group.turns) * np.ptp(group.times_s) for group in groups)
    points = 2 * max(1, int(np.ceil(_OVERSAMPLING * span * limit))) + 1
    rows = max(1, _CHUNK_VALUES // max(points, num_sounded**2))
    parts = []
    for start in range(0, len(data[0][0]), rows):
        chunk = [(y[start : start + rows], var[start : start + rows]) for y, var in data]
        with np.errstate(invalid="ignore", over="ignore"):
            parts.append(_estimate(groups, chunk, limit * np.linspace(-1.0, 1.0, points), linewidth_hz))
    return LinkFrequency(*(np.concatenate(values).reshape(shape) for values in zip(*parts, strict=True)))


def _limit(groups: Sequence[Soundings], max_frequency_hz: float | None) -> float:
    """The limit of the search in Hz, checked against the closest pair of soundings."""
    closest = min(abs(group.turns) * np.diff(np.sort(group.times_s)).min() for group in groups)
    unambiguous = 0.5 / closest
    if max_frequency_hz is None:
        return unambiguous
    if not (np.isfinite(max_frequency_hz) and max_frequency_hz > 0):
        raise ValueError(f"max_frequency_hz = {max_frequency_hz} must be positive and finite")
    if max_frequency_hz > unambiguous * (1.0 + 1e-9):
        raise AmbiguousFrequencyError(max_frequency_hz, unambiguous, closest)
    return float(max_frequency_hz)


def _flat(group: Soundings, shape: tuple[int, ...]) -> tuple[NDArray, NDArray]:
    """Soundings (B, L, K) and their noise variances (B, L), nan where not known."""
    g = np.asarray(group.g, complex)
    y = np.broadcast_to(g, (*shape, *g.shape[-2:])).reshape(-1, *g.shape[-2:])
    var = np.nan if group.noise_var is None else np.asarray(group.noise_var, float)
    return y, np.broadcast_to(var, (*shape, g.shape[-2])).reshape(-1, g.shape[-2])


def _estimate(groups: Sequence[Soundings], data: list[tuple[NDArray, NDArray]], grid_hz: NDArray, linewidth: float):
    """Fields of `LinkFrequency` for B links, each (B,)."""
    valid = np.all([np.isfinite(y).all(axis=(-2, -1)) & y.any(axis=(-2, -1)) for y, _ in data], axis=0)
    data = [(np.where(valid[:, None, None], y, 1.0), var) for y, var in data]
    terms = _terms(groups, data)
    turn = np.exp(-2j * np.pi * terms.turn_s[:, None] * grid_hz)
    frequency, at_limit = _peak(terms, turn, grid_hz)
    by_pair = (terms.value * np.exp(-2j * np.pi * frequency[:, None] * terms.turn_s)).real
    explained = terms.level + by_pair @ np.eye(len(groups))[terms.pair_group]
    cells = len(groups) * (1.0 + 4.0 * np.abs(terms.turn_s).max() * (grid_hz[-1] - grid_hz[0]))
    detected = _chance(terms, explained).min(axis=1) * cells <= FALSE_ALARM
    energy = np.maximum(explained - terms.num_elements, 0.0)
    outlier = _outlier_probability(terms, energy, frequency, turn, grid_hz)
    shift, std, walk, misfit, agree = _fit(terms, energy, frequency, linewidth)
    trusted = valid & detected & (outlier <= MAX_OUTLIER_PROBABILITY) & ~at_limit & agree & np.isfinite(std)
    frequency = np.where(valid, frequency + (shift if linewidth > 0 else 0.0), np.nan)
    return frequency, np.where(valid, std, np.inf), walk, np.where(valid, outlier, 1.0), misfit, trusted


def _terms(groups: Sequence[Soundings], data: list[tuple[NDArray, NDArray]]) -> _Terms:
    parts, count = [], 0
    for number, (group, (y, var)) in enumerate(zip(groups, data, strict=True)):
        num_soundings, num_elements = y.shape[-2:]
        gram = y @ np.swapaxes(y.conj(), -2, -1)
        own = np.diagonal(gram, axis1=-2, axis2=-1).real
        known = np.isfinite(var).all(axis=-1)
        if not known.all():
            # A channel that stays is of rank one, whatever turns it.
            rest = own.sum(axis=-1) - np.linalg.eigvalsh(gram)[:, -1]
            floor = _RELATIVE_VARIANCE_FLOOR * own.mean(axis=-1) / num_elements
            found = np.maximum(rest / ((num_soundings - 1) * (num_elements - 1)), floor)
            var = np.where(known[:, None], var, found[:, None])
        weight = 1.0 / var
        total = weight.sum(axis=-1)
        first, second = np.triu_indices(num_soundings, 1)
        value = 2.0 * gram[:, first, second] * weight[:, first] * weight[:, second] / total[:, None]
        clean = 2.0 * (own - num_elements * var) * weight**2 / total[:, None]
        place = group.turns * np.asarray(group.times_s, float)
        parts.append((
            np.sum(own * weight**2, axis=-1) / total, np.sum(own * weight, axis=-1), known, value,
            weight / total[:, None], clean, place[first] - place[second], np.full(len(first), number),
            first + count, second + count, np.full(num_soundings, number), place,
            np.full(num_soundings, float(group.turns)),
        ))  # fmt: skip
        count += num_soundings
    level, energy, known, value, share, clean, *fixed = zip(*parts, strict=True)
    turn_s, pair_group, first, second, group, place, turns = (np.concatenate(part) for part in fixed)
    value, share, clean = (np.concatenate(part, axis=1) for part in (value, share, clean))
    level, energy, known = (np.stack(part, axis=1) for part in (level, energy, known))
    return _Terms(level, value, turn_s, pair_group, first, second, group, place, turns, share, clean, energy, known,
                  np.array([float(y.shape[-1]) for y, _ in data]))


def _peak(terms: _Terms, turn: NDArray, grid_hz: NDArray) -> tuple[NDArray, NDArray]:
    """Frequency (B,) at which J is largest within the grid's ends, and whether it is one of these."""
    height = _maxima((terms.value @ turn).real)
    best = np.argsort(-height, axis=1)[:, :_RIVALS]
    frequency = grid_hz[best]
    spacing, limit = (grid_hz[1] - grid_hz[0]), grid_hz[-1]
    rate = 2.0 * np.pi * terms.turn_s
    for _ in range(_NEWTON_STEPS):
        turned = terms.value[:, None] * np.exp(-1j * frequency[..., None] * rate)
        slope, curvature = turned.imag @ rate, -(turned.real @ rate**2)
        step = np.divide(-slope, curvature, out=0.5 * spacing * np.sign(slope), where=curvature < 0)
        moved = np.clip(frequency + np.clip(step, -0.5 * spacing, 0.5 * spacing), -limit, limit)
        length, frequency = np.abs(moved - frequency).max(), moved
        # One step after 1e-8 there is nothing left: the error squares.
        if not length > 1e-9 * spacing:
            break
    value = (terms.value[:, None] * np.exp(-1j * frequency[..., None] * rate)).real.sum(axis=-1)
    frequency = np.take_along_axis(frequency, value.argmax(axis=1)[:, None], axis=1)[:, 0]
    return frequency, np.abs(frequency) >= limit * (1.0 - 1e-12)


def _maxima(height: NDArray) -> NDArray:
    """The values (B, N) where they are local maxima, -inf elsewhere; the ends count as if it were lower beyond."""
    padded = np.pad(height, ((0, 0), (1, 1)), constant_values=-np.inf)
    return np.where((height >= padded[:, :-2]) & (height >= padded[:, 2:]), height, -np.inf)


def _chance(terms: _Terms, explained: NDArray) -> NDArray:
    """Chance (B, G) that noise alone has so large a J at one frequency.

    With known noise J is a sum of K squared magnitudes. Otherwise its share of all energy is Beta(K, K (L - 1)).
    """
    num = terms.num_elements
    others = num * (np.bincount(terms.group) - 1)
    rest = np.clip(1.0 - explained / terms.energy, 0.0, 1.0)
    return np.where(terms.known, special.gammaincc(num, np.maximum(explained, 0.0)), special.betainc(others, num, rest))


def _outlier_probability(
    terms: _Terms, energy: NDArray, frequency: NDArray, turn: NDArray, grid_hz: NDArray
) -> NDArray:
    r"""Chance (B,) that noise lifts another local maximum of the noise-free J above the right one.

    At a distance where the steering vectors of group g have the squared correlation b, J is lower by D = sum E_g (1 -
    b), and the difference of the two values has the variance 2 D + 2 sum K_g (1 - b), noise with signal and with noise:
    a chance of Q(D / std) for each.
    """
    pairs = 2.0 * terms.share[:, terms.first] * terms.share[:, terms.second]
    shifted = pairs * np.exp(2j * np.pi * frequency[:, None] * terms.turn_s)
    apart = []
    for weight in (energy[:, terms.pair_group], terms.num_elements[terms.pair_group]):
        apart.append(np.sum(weight * pairs, axis=1)[:, None] - ((weight * shifted) @ turn).real)
    rival = np.isfinite(_maxima(-apart[0]))
    lost, noise = (np.maximum(_between(part), 0.0) for part in apart)
    beside = np.abs(grid_hz - frequency[:, None]) > 0.5 / np.abs(terms.turn_s).max()
    spread = np.sqrt(2.0 * (lost + noise))
    score = np.divide(lost, spread, out=np.zeros_like(lost), where=spread > 0)
    return np.minimum(np.sum(special.ndtr(-score), axis=1, where=rival & beside), 1.0)


def _between(height: NDArray) -> NDArray:
    """Smallest values near the points of (B, N) by the parabolas through three; the ends as they are."""
    left, middle, right = height[:, :-2], height[:, 1:-1], height[:, 2:]
    bend = left - 2.0 * middle + right
    out = height.copy()
    out[:, 1:-1] -= np.divide(0.125 * (left - right) ** 2, bend, out=np.zeros_like(bend), where=bend > 0)
    return out


def _fit(terms: _Terms, energy: NDArray, frequency: NDArray, linewidth: float):
    """Straight lines through the phases of the soundings, one slope for all, after the turn by `frequency` is removed.

    Returns the change of the frequency that phase noise of this linewidth asks for, its deviation, that by the phase
    noise alone, the misfit, and whether it is a possible one and phases do not wander beyond a radian, (B,) each. The
    noise of a phase has the variance (1 + K / E) / 2 E over the share of the sounding in the energy E of its group.
    """
    num_links, num_sounded = terms.share.shape
    turned = terms.value * np.exp(-2j * np.pi * frequency[:, None] * terms.turn_s)
    total = terms.clean.astype(complex)
    np.add.at(total, (slice(None), terms.first), turned)
    np.add.at(total, (slice(None), terms.second), turned.conj())
    residual = np.angle(total)
    signal = np.maximum(energy, _LEAST_ENERGY)[:, terms.group]
    noise = (signal + terms.num_elements[terms.group]) / (2.0 * signal**2 * terms.share)
    time_s, turns = terms.place_s / terms.turns, terms.turns
    since = time_s - time_s.min()
    walk = 2.0 * np.pi * linewidth * np.outer(turns, turns) * np.minimum(since[:, None], since)
    scale = 2.0 * np.pi * np.abs(terms.turn_s).max()
    design = np.concatenate([2.0 * np.pi * (turns * since)[:, None] / scale,
                             np.eye(len(terms.num_elements))[terms.group]], axis=1)
    spread = walk + noise[:, :, None] * np.eye(num_sounded)
    weighted = np.linalg.solve(spread, np.broadcast_to(design, (num_links, *design.shape)))
    covariance = np.linalg.inv(design.T @ weighted)
    pull = np.einsum("btg,bt->bg", weighted, residual)
    fitted = np.einsum("bgh,bh->bg", covariance, pull)
    gain = np.einsum("btg,bg->bt", weighted, covariance[:, 0])
    walked = np.einsum("bt,tu,bu->b", gain, walk, gain)
    left = residual - fitted @ design.T
    cost = np.einsum("bt,bt->b", left, np.linalg.solve(spread, left[..., None])[..., 0])
    freedom = num_sounded - design.shape[1]
    agree = special.chdtrc(freedom, cost) > _LEAST_CHANCE if freedom else np.ones(num_links, bool)
    misfit = cost / freedom if freedom else np.full(num_links, np.nan)
    wander = 2.0 * np.pi * linewidth * np.max(turns**2) * since.max()
    return (fitted[:, 0] / scale, np.sqrt(covariance[:, 0, 0]) / scale, np.sqrt(np.maximum(walked, 0.0)) / scale,
            misfit, agree & (wander <= 1.0))
