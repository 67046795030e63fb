# SPDX-License-Identifier: GPL-3.0-or-later
"""The timed products of a sweep: how they turn with frequency and delay, and the first search for both.

For pair e = (i, j), component q and subcarrier k the product ``z = conj(y_ij) y_ji`` has the phase

    arg(c_i) - arg(c_j) + 4 pi (f_i - f_j) t_eq - 2 pi nu_k (d_i - d_j),

t_eq the midpoint of the two one-way times relative to the reference time: LO phases enter the two directions with
opposite signs, so the product turns at twice the difference and belongs to the midpoint. Products may only be summed
after derotation.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from .reciprocity import PairStatistics

# Complex values held at a time by the searches.
_CHUNK = 4_000_000
# Grid points per resolution cell; the parabola through the peak then errs by a few percent of a cell.
_LEAST_LEAD = 8.0  # e^-8 is the chance of a wrong choice
_WIDEST_SEARCH = 4.0  # times the unambiguous range of regular midpoints
_OVERSAMPLING = 4
# Time bins per period of the fastest product in the frequency search; 8 bins lose 2 % of the amplitude at its edge.
_BINS_PER_PERIOD = 8


@dataclass(frozen=True, eq=False)
class TimedPairs:
    """Products of all pairs that were measured in both directions; elements not measured hold zero.

    Attributes
    ----------
    i, j : (E,) ports of each pair, i < j.
    product : (E, Q, K) ``conj(y_ij) y_ji``, whitened.
    power_ij, power_ji : (E,) energies received by i and by j, whitened.
    count : (E,) number of products.
    valid : (E, Q) bool, True where measured.
    time_s : (E, Q) midpoints relative to the reference time.
    lag_s : (E, Q) half of the time between the two directions.
    subcarriers_hz : (K,) relative to band centre.
    """

    i: NDArray
    j: NDArray
    product: NDArray
    power_ij: NDArray
    power_ji: NDArray
    count: NDArray
    valid: NDArray
    time_s: NDArray
    lag_s: NDArray
    subcarriers_hz: NDArray

    def select(self, keep: NDArray) -> "TimedPairs":
        """Only the pairs in `keep` (E,) bool."""
        fields = ("i", "j", "product", "power_ij", "power_ji", "count", "valid", "time_s", "lag_s")
        return replace(self, **{name: getattr(self, name)[keep] for name in fields})

    def derotated(self, frequency_hz: NDArray) -> "TimedPairs":
        """The same as if the LO frequencies of the ports, (M,), were lower by these."""
        turns = 2.0 * (frequency_hz[self.i] - frequency_hz[self.j])[:, None] * self.time_s
        return replace(self, product=self.product * np.exp(-2j * np.pi * turns)[..., None])

    def scaled(self, factor: float) -> "TimedPairs":
        """The same in another unit of energy."""
        return replace(self, product=factor * self.product, power_ij=factor * self.power_ij,
                       power_ji=factor * self.power_ji)

    @property
    def last_s(self) -> float:
        """Time of the last one-way measurement."""
        return float((self.time_s + self.lag_s)[self.valid].max())


def timed_pairs(
    y: NDArray, times: NDArray, valid: NDArray, noise_var: NDArray | None, samp_rate: float, subcarriers_hz: NDArray
) -> tuple[TimedPairs, int]:
    """Products of all valid pairs, and the sample index that their times are relative to.

    y (M, M, Q, K), times (M, M, Q) int, valid (M, M, Q) symmetric. The origin is the centre of the midpoints, weighted
    with the magnitudes of the products and rounded to a sample.
    """
    i, j = np.nonzero(np.triu(valid.any(axis=-1), 1))
    here = valid[i, j]
    u, v = (np.where(here[..., None], part, 0.0).astype(complex) for part in (y[i, j], y[j, i]))
    if noise_var is not None:
        u /= np.sqrt(noise_var[i])[:, None, None]
        v /= np.sqrt(noise_var[j])[:, None, None]
    product = u.conj() * v
    # Twice the midpoints are integers: exact whatever the distance from sample 0.
    first = int(np.where(valid, times, np.iinfo(np.int64).max).min()) if len(i) else 0
    doubled = np.where(here, (times[i, j] - first) + (times[j, i] - first), 0)
    weight = np.abs(product).sum(axis=-1)
    total = weight.sum()
    centre = first + round(0.5 * float((weight * doubled).sum() / total)) if total > 0 else first
    time_s = np.where(here, 0.5 * (doubled - 2 * (centre - first)) / samp_rate, 0.0)
    lag_s = np.where(here, 0.5 * np.abs(times[i, j] - times[j, i]) / samp_rate, 0.0)
    power = [(part.real**2 + part.imag**2).sum(axis=(1, 2)) for part in (u, v)]
    count = here.sum(axis=-1) * len(subcarriers_hz)
    return TimedPairs(i, j, product, *power, count, here, time_s, lag_s, subcarriers_hz), centre


def time_moments(pairs: TimedPairs, df_hz: NDArray, dd_s: NDArray) -> NDArray:
    """Sums (6, E) over each pair of ``z, z t, z nu, z t^2, z t nu, z nu^2``, derotated by these differences (i - j)."""
    turn_t = np.exp(-4j * np.pi * df_hz[:, None] * pairs.time_s)
    turn_nu = np.exp(2j * np.pi * dd_s[:, None] * pairs.subcarriers_hz)
    return _moments(pairs.product, turn_t, turn_nu, pairs)


def information_shape(pairs: TimedPairs) -> NDArray:
    """The same six moments (6, E) of 1, averaged with the weights |z|: how information lies in time and frequency."""
    size = np.abs(pairs.product)
    moments = _moments(size, np.ones(pairs.time_s.shape), np.ones((len(size), len(pairs.subcarriers_hz))), pairs)
    return np.divide(moments, moments[0], out=np.zeros_like(moments), where=moments[0] > 0)


def _moments(values, turn_t, turn_nu, pairs):
    t, nu = pairs.time_s, pairs.subcarriers_hz
    over_t = np.stack([turn_t, turn_t * t, turn_t * t * t], axis=1) @ values
    both = over_t @ np.swapaxes(np.stack([turn_nu, turn_nu * nu, turn_nu * nu * nu], axis=1), -2, -1)
    return np.stack([both[:, a, b] for a, b in ((0, 0), (1, 0), (0, 1), (2, 0), (1, 1), (0, 2))])


def edge_matrix(pairs: TimedPairs, num_ports: int, upper: NDArray, lower: NDArray) -> NDArray:
    """Matrix (M, M) with ``upper`` at (i, j) and ``lower`` at (j, i) of each pair, zero elsewhere."""
    out = np.zeros((num_ports, num_ports), np.result_type(upper, lower))
    out[pairs.i, pairs.j] = upper
    out[pairs.j, pairs.i] = lower
    return out


def statistics(pairs: TimedPairs, num_ports: int, correlation: NDArray) -> PairStatistics:
    """PairStatistics of derotated sums ``correlation`` (E,); Q is the median over pairs of the number of products."""
    power = edge_matrix(pairs, num_ports, pairs.power_ij, pairs.power_ji)
    count = int(np.median(pairs.count))
    return PairStatistics(power, edge_matrix(pairs, num_ports, correlation, correlation.conj()), count)


def search_delay(pairs: TimedPairs, limit_s: float) -> tuple[NDArray, float]:
    """Difference d_i - d_j of each pair (E,) at the peak of its delay spectrum, and the number of cells searched.

    The spectra of the components are added as powers, since their phases still turn with time.
    """
    nu = pairs.subcarriers_hz
    step = 1.0 / (_OVERSAMPLING * (nu.max() - nu.min()))
    half = int(np.ceil(limit_s / step))
    grid = step * np.arange(-half, half + 1)
    kernel = np.exp(2j * np.pi * nu[:, None] * grid)
    spectrum = np.empty((len(pairs.i), len(grid)))
    chunk = max(1, _CHUNK // (pairs.product.shape[1] * len(grid)))
    for start in range(0, len(pairs.i), chunk):
        part = pairs.product[start : start + chunk] @ kernel
        spectrum[start : start + chunk] = (part.real**2 + part.imag**2).sum(axis=1)
    return _peak(spectrum, grid), max(1, len(grid) // _OVERSAMPLING)


def frequency_ranges(pairs: TimedPairs, samp_rate: float) -> tuple[float, float]:
    """Ranges of |f_i - f_j| in Hz to search: where to expect it, and the widest without an exact alias; 0, 0 if none.

    Products turn by ``4 pi (f_i - f_j) t``. The first is what the median spacing of a pair's midpoints resolves. If the
    midpoints lie on a grid of g / 2 samples, frequencies that differ by ``samp_rate / g`` cannot be told apart; the
    second is half of that, at most `_WIDEST_SEARCH` times the first, since rivals on a fine grid fit almost as well.
    """
    doubled = np.rint(2.0 * samp_rate * pairs.time_s).astype(np.int64)
    grid, steps = 1, []
    for row, valid in zip(doubled, pairs.valid, strict=True):
        step = np.diff(np.unique(row[valid]))
        if step.size:
            grid = max(grid, int(np.gcd.reduce(step)))
            steps.append(step)
    if not steps:
        return 0.0, 0.0
    near = 0.5 * samp_rate / float(np.median(np.concatenate(steps)))
    return near, max(near, min(0.5 * samp_rate / grid, _WIDEST_SEARCH * near))


def search_frequency(
    pairs: TimedPairs, delay_difference_s: NDArray, near_hz: float, limit_hz: float
) -> tuple[NDArray, int]:
    """Difference f_i - f_j of each pair (E,) at the peak of its periodogram, and the number of cells searched.

    Beyond `near_hz` (up to `limit_hz`) a peak counts only if its log likelihood leads by `_LEAST_LEAD`. Midpoints may
    be irregular: they are rounded to bins much shorter than the fastest turn, then one FFT of the bins.
    """
    t = pairs.time_s
    aligned = np.exp(2j * np.pi * delay_difference_s[:, None, None] * pairs.subcarriers_hz[:, None])
    series = (pairs.product @ aligned)[..., 0]
    bin_s = 1.0 / (_BINS_PER_PERIOD * 2.0 * limit_hz)
    index = np.rint((t - t.min()) / bin_s).astype(np.int64)
    num_bins = int(index.max()) + 1
    length = 1 << int(np.ceil(np.log2(_OVERSAMPLING * num_bins)))
    frequency = np.fft.fftfreq(length, 2.0 * bin_s)
    inside = np.flatnonzero(np.abs(frequency) <= limit_hz)
    inside = inside[np.argsort(frequency[inside])]
    expected, anywhere = np.empty(len(pairs.i)), np.empty(len(pairs.i))
    near = np.abs(frequency[inside]) <= near_hz
    chunk = max(1, _CHUNK // length)
    for start in range(0, len(pairs.i), chunk):
        part, where = series[start : start + chunk], index[start : start + chunk]
        flat = (np.arange(len(part))[:, None] * num_bins + where).ravel()
        binned = np.bincount(flat, part.real.ravel(), len(part) * num_bins) + 1j * np.bincount(
            flat, part.imag.ravel(), len(part) * num_bins
        )
        spectrum = np.fft.fft(binned.reshape(len(part), num_bins), length, axis=1)[:, inside]
        power, rows = spectrum.real**2 + spectrum.imag**2, slice(start, start + chunk)
        expected[rows] = _peak(np.where(near, power, 0.0), frequency[inside])
        anywhere[rows] = _peak(power, frequency[inside])
    here, there = (evidence(pairs, np.abs(time_moments(pairs, found, delay_difference_s)[0]) ** 2)
                   for found in (expected, anywhere))
    return np.where(there - here > _LEAST_LEAD, anywhere, expected), max(1, len(inside) // _OVERSAMPLING)


def evidence(pairs: TimedPairs, coherent_power: NDArray) -> NDArray:
    """``-(Q-1) log(1 - coherence)`` of each pair (E,): Exp(1) without signal; the coherence itself for one product.

    coherent_power : (E,), squared magnitude of the sum of the derotated products.
    """
    both = pairs.power_ij * pairs.power_ji
    size = np.divide(coherent_power, both, out=np.zeros_like(both), where=both > 0)
    return np.where(pairs.count > 1, -(pairs.count - 1) * np.log1p(-np.minimum(size, 1.0 - 1e-15)), size)


def _peak(spectrum: NDArray, grid: NDArray) -> NDArray:
    """Position of the largest value of each row, by a parabola through it and its neighbours."""
    if len(grid) < 3:
        return grid[spectrum.argmax(axis=1)]
    k = np.clip(spectrum.argmax(axis=1), 1, len(grid) - 2)
    rows = np.arange(len(spectrum))
    left, centre, right = spectrum[rows, k - 1], spectrum[rows, k], spectrum[rows, k + 1]
    bend = left - 2.0 * centre + right
    # At the ends of the grid the parabola may open upward or peak outside: no more than one step then.
    shift = np.divide(0.5 * (left - right), bend, out=np.zeros_like(bend), where=bend < 0)
    return grid[k] + np.clip(shift, -1.0, 1.0) * (grid[1] - grid[0])
