# SPDX-License-Identifier: GPL-3.0-or-later
r"""One OFDM symbol in a slot: soundings on combs, their CARS answers, and what a receiver finds in either.

The P ports of the side that sounds send pilots on a comb of P each (`ofdm.CombMapping`); each of the Q ports of the
side that answers undoes the channels that it heard (`cars.cars_precoding`) on every Q-th element of each comb. All
bursts are whole slots, all samples end with the axis of time.

References
----------
Bidirectional calibration (CARS), sections III-A and III-B, figure 4.
"""

import dataclasses
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from .cars import CarsForm, cars_precoding
from .frequency import FALSE_ALARM
from .ofdm import CombError, CombMapping, OfdmGrid, pilot_sequence

Sounding = Literal["srs", "csi_rs"]
# Identities that the pilots of the CARS can have.
_IDENTITIES = 1024


class Heard(NamedTuple):
    """Channels found in slots.

    h (..., P, K) of a sounding, (..., P, Q, K / Q) of CARS bursts, in the order of `ofdm.CombMapping`; noise_var (...),
    variance of the noise of an entry; heard (..., P) or (..., P, Q), whether a link stands out of the noise.
    """

    h: NDArray
    noise_var: NDArray
    heard: NDArray


class Answer(NamedTuple):
    """CARS bursts of R ports.

    burst (R, slot_samples) complex64; scale (R, P), what a reader divides the channel of each link by, 0 where there is
    no answer; limited (R, P) int, elements in fades, whose amplitude is not that of C.
    """

    burst: NDArray
    scale: NDArray
    limited: NDArray


@dataclass(frozen=True)
class OfdmExchange:
    """What both sides of an exchange know: numerology, combs, and where the symbol lies in a slot.

    ::

        | lead | prefix  useful | tail |        as sent; received later by latency_samples + receive_delay_samples

    Parameters
    ----------
    grid : numerology.
    mapping : combs; they begin at the lowest active subcarrier.
    slot_samples : length of a slot: lead, symbol, and a tail of at least one prefix.
    lead_samples : silence before the symbol.
    advance_samples : how much before the useful part the receive window opens, so that early signals count whole too;
        the turn over the subcarriers that this makes is removed.
    latency_samples : by how much later received samples are labelled than they were at the antenna.
    receive_delay_samples : by how much later than sent the symbol is expected at the antenna; delays count from it.
    full_power : a port spends the power of a full symbol, 1 per sample, on its own elements; otherwise every element
        has unit energy, and a port on a comb of P has the power 1 / P.

    Raises
    ------
    CombError
        If the combs need more subcarriers than the grid has.
    ValueError
        If the symbol does not fit into the slot, or no subcarrier is left empty to measure the noise in.
    """

    grid: OfdmGrid
    mapping: CombMapping
    slot_samples: int
    lead_samples: int = 0
    advance_samples: int = 0
    latency_samples: int = 0
    receive_delay_samples: int = 0
    full_power: bool = True

    def __post_init__(self):
        for name in ("lead_samples", "latency_samples", "receive_delay_samples"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} must not be negative")
        if not 0 <= self.advance_samples <= self.grid.cp_samples:
            raise ValueError(
                f"advance_samples={self.advance_samples} must lie in 0 ... cp_samples = {self.grid.cp_samples}"
            )
        end = self.lead_samples + self.grid.symbol_samples
        needed = max(end + self.grid.cp_samples, self._symbol_start + self.grid.symbol_samples - self.advance_samples)
        if needed > self.slot_samples:
            raise ValueError(f"slot_samples={self.slot_samples} is too short: symbol, tail and delays need {needed}")
        if self.mapping.num_positions > self.grid.num_subcarriers:
            raise CombError(
                f"num_subcarriers={self.grid.num_subcarriers} must be at least the {self.mapping.num_positions} of the "
                f"combs, {self.mapping.num_sounding} of {self.mapping.pilots_per_port}"
            )
        if self._empty.size == 0:
            raise ValueError(
                f"num_subcarriers={self.grid.num_subcarriers} of {self.grid.fft_size} leave none empty but band centre"
            )

    def __str__(self):
        mapping = self.mapping
        return f"{mapping.num_sounding} x {mapping.num_responding} ports, {mapping.pilots_per_port} pilots"

    @classmethod
    def from_numbers(
        cls,
        samp_rate: float,
        num_sounding: int,
        num_responding: int,
        slot_samples: int,
        *,
        fft_size: int,
        cp_samples: int,
        num_subcarriers: int,
        skip_dc: bool = False,
        pilots_per_port: int = 0,
        **options,
    ) -> "OfdmExchange":
        """Exchange with P = `num_sounding` and Q = `num_responding`, all in numbers; the rest as the attributes.

        `pilots_per_port` 0 fills all subcarriers, which P Q must then divide (CombError).
        """
        grid = OfdmGrid(samp_rate / fft_size, fft_size, cp_samples, num_subcarriers, skip_dc)
        if pilots_per_port:
            mapping = CombMapping(num_sounding, num_responding, pilots_per_port)
        else:
            mapping = CombMapping.filling(grid, num_sounding, num_responding)
        return cls(grid, mapping, slot_samples, **options)

    # -- combs --------------------------------------------------------------------------------------------------------

    @property
    def sounding_subcarriers(self) -> NDArray:
        """Subcarriers (P, K) of the soundings from band centre."""
        return self.grid.subcarriers[self.mapping.sounding]

    @property
    def response_subcarriers(self) -> NDArray:
        """Subcarriers (P, Q, K / Q) of the answers from band centre."""
        return self.mapping.subcarriers(self.grid)

    @property
    def middle(self) -> float:
        """Sample, from the start of the slot, to which a channel belongs.

        The middle of the window, halfway between sent and received; not later by the latency, which is no time on air.
        """
        window = self.grid.cp_samples - self.advance_samples + 0.5 * (self.grid.fft_size - 1)
        return self.lead_samples + 0.5 * self.receive_delay_samples + window

    def ports(self, side: Literal["sounding", "responding"], first: int, num: int) -> slice:
        """Ports first ... first + num - 1 of a side; ValueError if it has not got them."""
        total = self.mapping.num_sounding if side == "sounding" else self.mapping.num_responding
        if not 0 <= first < first + num <= total:
            raise ValueError(f"first_port={first}, num_ports={num}: must be within the {total} {side} ports")
        return slice(first, first + num)

    # -- sent ---------------------------------------------------------------------------------------------------------

    def sounding(self, purpose: Sounding, ports: slice = slice(None)) -> NDArray:
        """Slot (ports, slot_samples) complex64 with the pilots of these sounding ports on their combs."""
        positions = self.mapping.sounding[ports]
        return self._slot(positions, self._sounding_pilots(purpose)[ports] * self._element(positions.shape[-1]))

    def answer(
        self,
        h: ArrayLike,
        heard: ArrayLike,
        ports: slice = slice(None),
        *,
        form: CarsForm = "inverse",
        fade_limit_db: float = 20.0,
        amplitude: float = 1.0,
    ) -> Answer:
        """CARS bursts of these responding ports to the channels that they heard.

        Each link is scaled to the same power by itself, so that a weak one costs the others nothing; at full power the
        links that are answered share it. `scale` says how much of what a reader sees is not channel.

        Parameters
        ----------
        h : (R, P, K), `Heard.h` of a sounding at these ports.
        heard : (R, P) bool, links to answer.
        ports : R of the responding ports.
        form, fade_limit_db : see `cars.cars_precoding`.
        amplitude : factor on all of it, with the scale.

        Raises
        ------
        ValueError
            If the shapes do not fit, h of an answered link is not finite, or it is zero.
        """
        mapping, h, heard = self.mapping, np.asarray(h), np.asarray(heard, bool)
        rows = np.arange(mapping.num_responding)[ports]
        shape = (len(rows), mapping.num_sounding, mapping.pilots_per_port)
        if h.shape != shape or heard.shape != shape[:2]:
            raise ValueError(f"h of shape {h.shape}, heard {heard.shape}: must be (ports, P, K) = {shape}, (ports, P)")
        # Of each comb, every Q-th element from the port's own number on.
        by_port = h.reshape(*shape[:2], -1, mapping.num_responding)
        own = np.take_along_axis(by_port, rows[:, None, None, None], axis=-1)[..., 0]
        cars = cars_precoding(np.where(heard[..., None], own, 1.0), form, fade_limit_db=fade_limit_db)
        count = np.maximum(heard.sum(axis=-1), 1) * own.shape[-1]
        scale = np.where(heard, amplitude * self._element(count)[:, None], 0.0)
        values = cars.weights * self._response_pilots[:, rows].swapaxes(0, 1) * scale[..., None]
        positions = mapping.response[:, rows].swapaxes(0, 1).reshape(len(rows), -1)
        burst = self._slot(positions, values.reshape(len(rows), -1))
        return Answer(burst, cars.scale * scale, cars.limited.sum(axis=-1) * heard)

    # -- received -----------------------------------------------------------------------------------------------------

    def hear(self, samples: ArrayLike, purpose: Sounding) -> Heard:
        """Channels of all sounding ports from received slots (..., slot_samples)."""
        elements, noise_var = self._elements(samples)
        amplitude = self._element(self.mapping.pilots_per_port)
        h = elements[..., self.mapping.sounding] / (amplitude * self._sounding_pilots(purpose))
        return self._heard(h, noise_var / amplitude**2)

    def read(self, samples: ArrayLike) -> Heard:
        """Equivalent channels of all links times their scale, from received slots (..., slot_samples) with answers.

        At sounding port p the links (p, q) hold what `cars` is about; those of another port's comb hold eq. (20) of the
        paper.
        """
        elements, noise_var = self._elements(samples)
        return self._heard(elements[..., self.mapping.response] / self._response_pilots, noise_var)

    def _heard(self, h: NDArray, noise_var: NDArray) -> Heard:
        """Add whether a link has more energy than noise alone would with a probability of `FALSE_ALARM`."""
        limit = _energy_limit(h.shape[-1], self._empty.size)
        energy = np.mean(h.real**2 + h.imag**2, axis=-1)
        missing = energy.ndim - noise_var.ndim
        return Heard(h, noise_var, energy > limit * noise_var.reshape(noise_var.shape + (1,) * missing))

    def _elements(self, samples: ArrayLike) -> tuple[NDArray, NDArray]:
        """Elements (..., subcarriers of the grid) of slots, and the noise variance (...) of one."""
        samples, size, count = np.asarray(samples), self.grid.fft_size, self.grid.num_subcarriers
        if samples.shape[-1:] != (self.slot_samples,):
            raise ValueError(f"samples of shape {samples.shape} must be (..., slot_samples = {self.slot_samples})")
        start, advance = self._symbol_start, self.advance_samples
        every = self._whole.demodulate(samples, 1, start=start, advance_samples=advance)[..., 0, :]
        empty = every[..., self._empty]
        noise_var = np.mean(empty.real**2 + empty.imag**2, axis=-1) * (count / size)
        return every[..., self.grid.subcarriers + size // 2] * np.sqrt(count / size), noise_var

    # -- parts --------------------------------------------------------------------------------------------------------

    @property
    def _symbol_start(self) -> int:
        """First sample of the prefix as received and labelled."""
        return self.lead_samples + self.latency_samples + self.receive_delay_samples

    @cached_property
    def _whole(self) -> OfdmGrid:
        """Grid of all subcarriers, of which those are read that are empty."""
        return dataclasses.replace(self.grid, num_subcarriers=self.grid.fft_size, skip_dc=False)

    @cached_property
    def _empty(self) -> NDArray:
        """Positions on the whole grid that carry noise only: not in a comb, and not at band centre."""
        used = np.append(self.grid.subcarriers[: self.mapping.num_positions], 0)
        return np.setdiff1d(self._whole.subcarriers, used) + self.grid.fft_size // 2

    def _element(self, count: ArrayLike) -> NDArray:
        """Amplitude of the elements of a port that has so many of them."""
        count = np.asarray(count)
        return np.sqrt(self.grid.num_subcarriers / count) if self.full_power else np.ones(count.shape)

    def _sounding_pilots(self, purpose: Sounding) -> NDArray:
        """Pilots (P, K)."""
        return _sounding_pilots(purpose, self.mapping.num_sounding, self.mapping.pilots_per_port)

    @cached_property
    def _response_pilots(self) -> NDArray:
        """Pilots (P, Q, K / Q) of the answers."""
        mapping = self.mapping
        count, links = mapping.pilots_per_port // mapping.num_responding, mapping.num_sounding * mapping.num_responding
        pilots = [pilot_sequence("cars", count, identity=link % _IDENTITIES) for link in range(links)]
        return np.stack(pilots).reshape(mapping.num_sounding, mapping.num_responding, count)

    def _slot(self, positions: NDArray, values: NDArray) -> NDArray:
        """Slot (ports, slot_samples) complex64 with values on positions, both (ports, n)."""
        elements = np.zeros((len(positions), 1, self.grid.num_subcarriers), complex)
        np.put_along_axis(elements[:, 0], positions, values, axis=-1)
        slot = np.zeros((len(positions), self.slot_samples), np.complex64)
        slot[:, self.lead_samples : self.lead_samples + self.grid.symbol_samples] = self.grid.modulate(elements)
        return slot


@lru_cache(maxsize=16)
def _sounding_pilots(purpose: Sounding, num_ports: int, count: int) -> NDArray:
    """Pilots (num_ports, count). Roots of short sequences repeat, on other combs."""
    if purpose not in ("srs", "csi_rs"):
        raise ValueError(f"purpose={purpose!r} must be 'srs' or 'csi_rs'")
    identities = np.arange(num_ports) % max(count // 2, 1)
    return np.stack([pilot_sequence(purpose, count, identity=int(identity)) for identity in identities])


@lru_cache(maxsize=16)
def _energy_limit(num_elements: int, num_empty: int) -> float:
    """Ratio of mean energies that noise alone exceeds with `FALSE_ALARM`: an F variable, two real numbers each."""
    return float(stats.f.isf(FALSE_ALARM, 2 * num_elements, 2 * num_empty))
