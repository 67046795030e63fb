# SPDX-License-Identifier: GPL-3.0-or-later
"""Random walks of the nodes' phases, observed through pairs over a sweep: likelihood, smoothing, errors.

Model. An observation of nodes i and j, from the times t1 and t2 of its two directions, is

    [w_i(t1) + w_i(t2)] / 2 - [w_j(t1) + w_j(t2)] / 2 + 4 pi (f_i - f_j) t + b_a - b_b + noise,

w_n a Wiener process with variance rate q in rad^2/s and free start, f_n a free frequency in Hz, t the midpoint, and
b_a, b_b free constants of the ports a of i and b of j, zero for one leading port of each node.

The unknowns are w at the borders of cells of time: at all transmissions, where the size of the network allows. Within
longer cells w is the straight line plus a Brownian bridge, which counts as noise. The information matrix (graph
Laplacians of the observations in time, plus the random walk) is block-banded. Its Cholesky factorisation is the
information-form Kalman filter, back-substitution the smoother, and the determinant gives the likelihood of (q, s):
s scales white noise and walk together, so that excess white noise is not mistaken for a random walk.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import linalg, optimize, sparse

# 2 log of the likelihood ratio. On the border q = 0 it is half a chi-square: passed with probability 1e-3 without walk.
_SIGNIFICANT = 9.55
# The search for q: factor between the points of its grid, and wander in rad^2 over the sweep where the grid ends.
_STEP = 8.0
_LARGEST_WANDER = 30.0
# Least variance of an observation in rad^2: without noise the arithmetic would fail; nothing real is as good.
_LEAST_VARIANCE = 1e-12
# Parts of a cell in which times are told apart when averages of the bridge are computed.
_PARTS = 8


class Products(NamedTuple):
    """Products to be observed, all (n,): ports, times in s relative to the reference time, phase, weight, precision."""

    i: NDArray
    j: NDArray
    early_s: NDArray
    late_s: NDArray
    value: NDArray
    weight: NDArray
    precision: NDArray


class Rate(NamedTuple):
    """Most likely ratio q / s, standard deviation of its logarithm, and scale s."""

    ratio: float
    log_std: float
    scale: float


@dataclass(frozen=True, eq=False)
class Grid:
    """Cells between `borders_s` (C + 1,); N nodes. Unknown number k N + n is node n at border k."""

    borders_s: NDArray
    num_nodes: int

    @property
    def cells_s(self) -> NDArray:
        """Lengths of the cells."""
        return np.diff(self.borders_s)

    def locate(self, time_s: NDArray) -> tuple[NDArray, NDArray]:
        """Cell of each time and the place in it, 0 ... 1."""
        cell = np.clip(np.searchsorted(self.borders_s, time_s, "right") - 1, 0, len(self.borders_s) - 2)
        return cell, np.clip((time_s - self.borders_s[cell]) / self.cells_s[cell], 0.0, 1.0)


@dataclass(frozen=True, eq=False)
class Observations:
    """Phases `value` (n,) = borders @ w + slopes @ (f, b) + noise of variance s (white + q / s bridge)."""

    value: NDArray
    white: NDArray
    bridge: NDArray
    borders: sparse.csr_matrix
    slopes: sparse.csr_matrix
    offsets: sparse.csr_matrix
    grid: Grid

    @property
    def freedom(self) -> int:
        """Observations less free starts and frequencies."""
        return len(self.value) - self.offsets.shape[1] - self.slopes.shape[1]


@dataclass(frozen=True, eq=False)
class Solution:
    """Maximum of the posterior at one q / s. With n degrees of freedom -2 log likelihood = logs + n log s + energy / s.

    borders: w; constants: (f, b), f without the reference node; factor: Cholesky factor of the information of w in
    banded form; coupling: its information in common with (f, b); solved: the same multiplied by the inverse of that of
    w; schur: information of (f, b) with w unknown.
    """

    logs: float
    energy: float
    borders: NDArray
    constants: NDArray
    factor: NDArray
    coupling: NDArray
    solved: NDArray
    schur: NDArray


def observe(
    products: Products, nodes: NDArray, leads: NDArray, reference: int, work: float, *, frequency: bool
) -> Observations:
    """Products summed over all with the same ports and cells; as many cells as `work` multiply-adds allow.

    nodes (M,): node of each port, negative if it is not in `products`. leads (M,) bool: one leading port of each node.
    """
    a, b, early_s, late_s, value, weight, precision = products
    num_nodes, num_ports, i, j = int(nodes.max()) + 1, len(nodes), nodes[a], nodes[b]
    grid = _divide(early_s, late_s, num_nodes, work)
    num_cells = len(grid.cells_s)
    cells, places = zip(*(grid.locate(end) for end in (early_s, late_s)), strict=True)
    keys, group = np.unique(((a * num_ports + b) * num_cells + cells[0]) * num_cells + cells[1], return_inverse=True)
    num = len(keys)
    total = np.bincount(group, weight, num)
    first, second, middle, mean = (
        np.bincount(group, weight * part, num) / total for part in (*places, 0.5 * (early_s + late_s), value))
    rest, late = np.divmod(keys, num_cells)
    rest, early = np.divmod(rest, num_cells)
    ports = np.divmod(rest, num_ports)
    ends = nodes[ports[0]], nodes[ports[1]]
    bridge = _bridge(grid, (i, j), cells, places, weight, ends, (early, late))
    columns, entries = [], []
    for node, sign in zip(ends, (0.5, -0.5), strict=True):
        for cell, place in ((early, first), (late, second)):
            columns += [cell * num_nodes + node, (cell + 1) * num_nodes + node]
            entries += [sign * (1.0 - place), sign * place]
    ones = np.ones(num)
    offsets = _sparse(ends, [ones, -ones], num_nodes)[:, np.arange(num_nodes) != reference]
    slopes = offsets.multiply(4.0 * np.pi * middle[:, None]).tocsr() if frequency else offsets[:, :0]
    constants = _sparse(ports, [ones, -ones], num_ports)[:, (nodes >= 0) & ~leads]
    slopes = sparse.hstack([slopes, constants]).tocsr()
    borders = _sparse(columns, entries, num_nodes * (num_cells + 1))
    white = np.maximum(1.0 / np.bincount(group, precision, num), _LEAST_VARIANCE)
    return Observations(mean, white, bridge, borders, slopes, offsets, grid)


def _divide(early: NDArray, late: NDArray, num_nodes: int, work: float) -> Grid:
    """Borders at the times of all transmissions, or at as many of them as the work allows."""
    # Nanoseconds: finer than any sample, coarser than rounding.
    moments, index = np.unique(np.rint(1e9 * np.concatenate([early, late])), return_inverse=True)
    last = len(moments) - 1
    lag = int((index[len(early):] - index[: len(early)]).max())
    for step in range(1, last + 1):
        num = -(-last // step)
        if num_nodes * num * (num_nodes * (-(-lag // step) + 2)) ** 2 <= work:
            break
    return Grid(1e-9 * moments[np.append(np.arange(0, last, step), last)], num_nodes)


def _sparse(columns: list[NDArray], entries: list[NDArray], width: int) -> sparse.csr_matrix:
    rows = np.tile(np.arange(len(columns[0])), len(columns))
    shape = (len(columns[0]), width)
    return sparse.csr_matrix((np.concatenate(entries), (rows, np.concatenate(columns))), shape)


def _bridge(grid, nodes, cells, places, weight, group_nodes, group_cells) -> NDArray:
    """Variance of each observation by the bridges within its cells, for q = 1.

    The mean of a node's bridge over all its transmissions in a cell is common to many observations. Here each gets an
    independent error of such a size that the mean of a node and cell keeps its variance.
    """
    num_cells = len(grid.cells_s)
    size = grid.num_nodes * num_cells
    share, place = np.zeros(size * _PARTS), np.zeros(size * _PARTS)
    count = np.zeros(size)
    for node in (0, 1):
        for end in (0, 1):
            part = np.minimum((places[end] * _PARTS).astype(int), _PARTS - 1)
            flat = (nodes[node] * num_cells + cells[end]) * _PARTS + part
            share += np.bincount(flat, weight, size * _PARTS)
            place += np.bincount(flat, weight * places[end], size * _PARTS)
            count += np.bincount(group_nodes[node] * num_cells + group_cells[end], minlength=size)
    place = np.divide(place, share, out=np.zeros_like(place), where=share > 0).reshape(size, _PARTS)
    share = share.reshape(size, _PARTS)
    share = share / np.maximum(share.sum(axis=1, keepdims=True), 1e-300)
    together = np.zeros(size)
    for part in range(_PARTS):
        covariance = np.minimum(place[:, part, None], place) - place[:, part, None] * place
        together += share[:, part] * (share * covariance).sum(axis=1)
    together *= count * np.tile(grid.cells_s, grid.num_nodes)
    return sum(
        0.25 * together[node * num_cells + cell] for node in group_nodes for cell in group_cells
    )


def solve(data: Observations, reference: int, ratio: float) -> Solution:
    """Posterior maximum for the ratio of q to the scale s of the white noise, and its deviance."""
    grid = data.grid
    num_nodes, size = grid.num_nodes, grid.num_nodes * len(grid.borders_s)
    noise = data.white + ratio * data.bridge
    weighted = data.borders.multiply(1.0 / noise[:, None]).T.tocsr()
    information = sparse.tril((weighted @ data.borders).tocoo()).tocoo()
    below = information.row - information.col
    band = np.zeros((max(int(below.max()), num_nodes) + 1, size))
    band[below, information.col] = information.data
    # The random walk's own information; the common phase, which nothing measures, is held at the reference.
    step = np.repeat(1.0 / (ratio * grid.cells_s), num_nodes)
    band[0, num_nodes:] += step
    band[0, :-num_nodes] += step
    band[num_nodes, :-num_nodes] -= step
    hold = float(band[0].mean())
    band[0, reference] += hold
    factor = linalg.cholesky_banded(band, overwrite_ab=True, lower=True, check_finite=False)
    coupling = (weighted @ data.slopes).toarray()
    right = np.column_stack([weighted @ data.value, coupling])
    solved = linalg.cho_solve_banded((factor, True), right, check_finite=False)
    slopes = data.slopes.multiply(1.0 / noise[:, None]).T.tocsr()
    schur = (slopes @ data.slopes).toarray() - coupling.T @ solved[:, 1:]
    constants = np.linalg.solve(schur, slopes @ data.value - coupling.T @ solved[:, 0])
    borders = solved[:, 0] - solved[:, 1:] @ constants
    left = data.value - data.borders @ borders - data.slopes @ constants
    walked = borders[num_nodes:] - borders[:-num_nodes]
    energy = float(left @ (left / noise) + walked @ (step * walked))
    logs = np.log(noise).sum() + 2.0 * np.log(factor[0]).sum() - np.log(hold) + np.linalg.slogdet(schur)[1]
    logs -= np.log(step).sum()
    return Solution(float(logs), energy, borders, constants, factor, coupling, solved[:, 1:], schur)


def _still(data: Observations) -> tuple[float, float]:
    """`logs` and `energy` as of `Solution`, without a random walk: free starts and frequencies only."""
    design = sparse.hstack([data.offsets, data.slopes]).tocsr()
    weighted = design.multiply(1.0 / data.white[:, None]).T.tocsr()
    information = (weighted @ design).toarray()
    left = data.value - design @ np.linalg.solve(information, weighted @ data.value)
    return np.log(data.white).sum() + np.linalg.slogdet(information)[1], float(left @ (left / data.white))


def most_likely(networks: Sequence[Observations], least_scale: float, near: float | None = None) -> Rate | None:
    """Most likely rate of the walks, one for all; None where a rate of 0 is about as likely.

    Parameters
    ----------
    networks : parts of the network without a common node, so with independent walks; reference node 0.
    least_scale : the least that s can be, 1 where the noise is known.
    near : ratio q / s known up to a factor of 8; None: searched.
    """
    networks = [data for data in networks if data.freedom > 0]
    if not networks:
        return None
    freedom = sum(data.freedom for data in networks)

    def judge(parts: list[tuple[float, float]]) -> tuple[float, float]:
        energy = sum(part[1] for part in parts)
        scale = max(least_scale, energy / freedom)
        return sum(part[0] for part in parts) + freedom * np.log(scale) + energy / scale, scale

    def deviance(log_ratio: float) -> float:
        solutions = (solve(data, 0, float(np.exp(log_ratio))) for data in networks)
        return judge([(found.logs, found.energy) for found in solutions])[0]

    still = judge([_still(data) for data in networks])[0]
    if near is None:
        near = _best_of_grid(networks, deviance, still)
        if near is None:
            return None
    middle, half = np.log(near), np.log(_STEP)
    found = optimize.minimize_scalar(
        deviance, bounds=(middle - half, middle + half), method="bounded", options={"xatol": 0.03})
    if still - found.fun < _SIGNIFICANT:
        return None
    side = 0.3
    bend = (deviance(found.x - side) + deviance(found.x + side) - 2.0 * found.fun) / side**2
    ratio = float(np.exp(found.x))
    scale = judge([(part.logs, part.energy) for part in (solve(data, 0, ratio) for data in networks)])[1]
    return Rate(ratio, float(np.sqrt(2.0 / max(bend, 1e-3))), scale)


def _best_of_grid(networks: Sequence[Observations], deviance: Callable[[float], float], still: float) -> float | None:
    """Best ratio q / s of a coarse grid; None where none is much better than 0."""
    span = max(float(np.ptp(data.grid.borders_s)) for data in networks)
    if not span > 0:
        return None
    # A wander far below the error of a node's mean phase cannot be seen.
    low = min(1.0 / np.sum(1.0 / data.white) * data.grid.num_nodes for data in networks)
    high = np.log(_LARGEST_WANDER / span)
    low = min(np.log(1e-2 * low / span), high - 1.0)
    points = np.linspace(low, high, 1 + int(np.ceil((high - low) / np.log(_STEP))))
    values = [deviance(point) for point in points]
    # Between two points the deviance is lower by less than the rest.
    return None if still - min(values) < 0.4 * _SIGNIFICANT else float(np.exp(points[int(np.argmin(values))]))
