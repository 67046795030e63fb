# SPDX-License-Identifier: GPL-3.0-or-later
"""Reciprocal propagation between the antennas of pairs of nodes.

Every pair is drawn from (seed, names of the two nodes in sorted order), so a node more or less leaves the other pairs
as they are. The channels are constant in time; a time-varying one would give `paths` the time and make the network
renew its channel table.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .coupling import CouplingLaw, PlanarArray
from .noise import seed_words

SPEED_OF_LIGHT_M_S = 299_792_458.0


@dataclass(frozen=True)
class Site:
    """What propagation needs to know of a node: its ports, the antennas behind each of them, and where they stand."""

    name: str
    num_ports: int = 1
    num_antennas: int = 1
    position_m: tuple[float, float, float] = (0.0, 0.0, 0.0)
    array: PlanarArray | None = None


class Paths(NamedTuple):
    """Channel between two nodes: sum over k of gains[..., k] at delays_samples[k].

    gains: complex128 (ports of a, antennas of a, ports of b, antennas of b, K); delays_samples: float64 (K,).
    """

    gains: np.ndarray
    delays_samples: np.ndarray

    def transposed(self) -> "Paths":
        """Return the same channel in the other direction (reciprocity: H_ba = H_ab^T)."""
        return Paths(self.gains.transpose(2, 3, 0, 1, 4), self.delays_samples)


class Propagation:
    """What the models share: path gains, blocked pairs, coupling, delays from positions, keyed random numbers.

    Parameters
    ----------
    seed : draws the channels.
    path_gain_db : mean power gain of every pair.
    pair_gain_db : extra gain of single pairs, keys "a-b" in either order, both directions alike.
    blocked_pairs : pairs of names that do not hear each other.
    delays : whether waves take distance / c; otherwise everything arrives at once (multipath taps excepted).
    coupling_db : power gain between any two ports of a node; None: they do not hear each other.
    coupling_law : instead of `coupling_db`, the law by which coupling falls with the distance in the node's array.
    cross_polarisation_db : how much lower the power gain is between ports of two nodes, one of them with an even number
        and the other with an odd one: two polarisations, both directions alike. None: all ports hear each other alike.
    """

    def __init__(
        self,
        *,
        seed: int,
        path_gain_db: float = 0.0,
        pair_gain_db: Mapping[str, float] | None = None,
        blocked_pairs: Iterable[tuple[str, str]] = (),
        delays: bool = False,
        coupling_db: float | None = None,
        coupling_law: CouplingLaw | None = None,
        cross_polarisation_db: float | None = None,
    ):
        if coupling_db is not None and not np.isfinite(coupling_db):
            raise ValueError(f"coupling_db={coupling_db} must be finite, or None for no coupling")
        if coupling_db is not None and coupling_law is not None:
            raise ValueError(f"coupling_db={coupling_db} and coupling_law exclude each other")
        if cross_polarisation_db is not None and not 0.0 <= cross_polarisation_db < np.inf:
            raise ValueError(f"cross_polarisation_db={cross_polarisation_db} must be finite and not negative, or None")
        self.seed, self.path_gain_db, self.delays, self.coupling_db = seed, path_gain_db, delays, coupling_db
        self.coupling_law = coupling_law
        self.cross_polarisation_db = cross_polarisation_db
        self.pair_gain_db = dict(pair_gain_db or {})
        self.blocked_pairs = {frozenset(pair) for pair in blocked_pairs}

    def check_names(self, names: Iterable[str]) -> None:
        """Raise ValueError when a pair gain or a blocked pair speaks of a node that is not among `names`."""
        names = list(names)
        for pair in self.blocked_pairs:
            if len(pair) != 2 or not pair <= set(names):
                raise ValueError(f"blocked_pairs: {sorted(pair)} must be two different nodes of {names}")
        allowed = {f"{a}-{b}" for a in names for b in names if a != b}
        for pair in self.pair_gain_db:
            if pair not in allowed:
                raise ValueError(f"pair_gain_db: {pair!r} must be two different nodes of {names} joined by '-'")

    def paths(self, a: Site, b: Site, samp_rate: float) -> Paths:
        """Return the channel between nodes `a` and `b`; `paths(b, a)` is its transpose."""
        if b.name < a.name:
            return self.paths(b, a, samp_rate).transposed()
        rng = np.random.default_rng(seed_words(self.seed, "propagation", a.name, b.name))
        paths = self._draw(rng, a, b, samp_rate)
        keys = (f"{a.name}-{b.name}", f"{b.name}-{a.name}")
        gain_db = self.path_gain_db + sum(self.pair_gain_db.get(key, 0.0) for key in keys)
        gain = 0.0 if frozenset((a.name, b.name)) in self.blocked_pairs else 10.0 ** (gain_db / 20.0)
        return Paths(gain * paths.gains * self._polarisation(a, b), paths.delays_samples)

    def _polarisation(self, a: Site, b: Site) -> np.ndarray:
        """Amplitude of each pair of ports by their polarisations, (ports of a, 1, ports of b, 1, 1)."""
        crossed = (np.arange(a.num_ports)[:, None] - np.arange(b.num_ports)) % 2
        weaker_db = 0.0 if self.cross_polarisation_db is None else self.cross_polarisation_db
        return 10.0 ** (-crossed * weaker_db / 20.0)[:, None, :, None, None]

    def coupling(self, site: Site) -> np.ndarray | None:
        """Return the coupling between the ports of a node, complex128 (num_ports, num_ports), None where there is none.

        Zero on the diagonal; before beams are formed, in no time. Without a law it is symmetric (reciprocal), of
        constant modulus and random phase: ports couple at a distance of some wavelengths, without fading. Else as
        `CouplingLaw.matrix` says, between the elements of the node's array (None: a row, half a wavelength apart).
        """
        if (self.coupling_db is None and self.coupling_law is None) or site.num_ports == 1:
            return None
        rng = np.random.default_rng(seed_words(self.seed, "coupling", site.name))
        if self.coupling_law is not None:
            array = PlanarArray(1, site.num_ports) if site.array is None else site.array
            if array.num_elements != site.num_ports:
                raise ValueError(f"node {site.name}: {array} must have one element for each of {site.num_ports} ports")
            return self.coupling_law.matrix(array, rng)
        phase = np.triu(rng.uniform(-np.pi, np.pi, (site.num_ports, site.num_ports)), 1)
        gains = 10.0 ** (self.coupling_db / 20.0) * np.exp(1j * (phase + phase.T))
        np.fill_diagonal(gains, 0.0)
        return gains

    def _draw(self, rng: np.random.Generator, a: Site, b: Site, samp_rate: float) -> Paths:
        raise NotImplementedError


def _complex_normal(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    return np.sqrt(0.5) * (rng.standard_normal(shape) + 1j * rng.standard_normal(shape))


class Rayleigh(Propagation):
    """Independent CN(0, 1) between all antennas of all ports, or `num_taps` of them with total mean power 1.

    Tap k is k samples after the first and has power proportional to exp(-k / (delay_spread_s samp_rate)).
    """

    def __init__(self, *, num_taps: int = 1, delay_spread_s: float = 0.0, **common):
        super().__init__(**common)
        if num_taps < 1 or not delay_spread_s >= 0.0 or (num_taps > 1 and delay_spread_s == 0.0):
            raise ValueError(f"num_taps={num_taps}, delay_spread_s={delay_spread_s}: several taps need a spread > 0")
        self.num_taps, self.delay_spread_s = num_taps, delay_spread_s

    def _draw(self, rng: np.random.Generator, a: Site, b: Site, samp_rate: float) -> Paths:
        taps = np.arange(self.num_taps, dtype=np.float64)
        power = np.exp(-taps / (self.delay_spread_s * samp_rate)) if self.num_taps > 1 else np.ones(1)
        shape = (a.num_ports, a.num_antennas, b.num_ports, b.num_antennas, self.num_taps)
        distance = np.linalg.norm(np.subtract(a.position_m, b.position_m)) if self.delays else 0.0
        gains = _complex_normal(rng, shape) * np.sqrt(power / power.sum())
        return Paths(gains, taps + distance / SPEED_OF_LIGHT_M_S * samp_rate)


class Geometric(Propagation):
    """Line of sight and `num_paths` scatterers between uniform linear arrays.

    The arrays have half-wavelength spacing along y and broadside along x; antenna n sees a wave from the unit direction
    u as exp(1j pi n u_y). The ports of a node are panels some wavelengths apart: the same directions and delays, but
    independent phases. Scatterers lie uniformly in a cube around the middle of the pair, with half its distance plus
    `scatter_radius_m` as half edge. Mean power 1 per antenna pair: K / (K + 1) line of sight of constant modulus, the
    rest shared equally by the CN scatterers, K = 10^(rice_factor_db / 10).
    """

    def __init__(self, *, num_paths: int = 8, rice_factor_db: float = 6.0, scatter_radius_m: float = 20.0, **common):
        super().__init__(**common)
        if num_paths < 0:
            raise ValueError(f"num_paths={num_paths} must not be negative")
        self.num_paths, self.rice_factor_db, self.scatter_radius_m = num_paths, rice_factor_db, scatter_radius_m

    def _draw(self, rng: np.random.Generator, a: Site, b: Site, samp_rate: float) -> Paths:
        at_a, at_b = np.asarray(a.position_m, dtype=float), np.asarray(b.position_m, dtype=float)
        direct = np.linalg.norm(at_a - at_b)
        half_edge = direct / 2 + self.scatter_radius_m
        scatterers = (at_a + at_b) / 2 + rng.uniform(-half_edge, half_edge, (self.num_paths, 3))
        response_a, response_b = (
            _array_response(np.vstack([other, scatterers]) - here, num)
            for here, other, num in ((at_a, at_b, a.num_antennas), (at_b, at_a, b.num_antennas))
        )
        rice = 10.0 ** (self.rice_factor_db / 10.0)
        amplitude = _complex_normal(rng, (a.num_ports, b.num_ports, self.num_paths + 1))
        amplitude[..., 0] /= np.abs(amplitude[..., 0])
        if self.num_paths > 0:
            amplitude[..., 0] *= np.sqrt(rice / (rice + 1.0))
            amplitude[..., 1:] /= np.sqrt((rice + 1.0) * self.num_paths)
        length = np.linalg.norm(scatterers - at_a, axis=1) + np.linalg.norm(scatterers - at_b, axis=1)
        delays = np.concatenate([[direct], length]) / SPEED_OF_LIGHT_M_S * samp_rate
        gains = np.einsum("pqk,ak,bk->paqbk", amplitude, response_a, response_b)
        return Paths(gains, delays if self.delays else np.zeros_like(delays))


def _array_response(direction: np.ndarray, num_antennas: int) -> np.ndarray:
    """Return exp(1j pi n u_y), complex (num_antennas, K), for direction vectors (K, 3) of any length."""
    length = np.linalg.norm(direction, axis=1)
    sine = np.divide(direction[:, 1], length, out=np.zeros_like(length), where=length > 0.0)
    return np.exp(1j * np.pi * np.outer(np.arange(num_antennas), sine))
