# SPDX-License-Identifier: GPL-3.0-or-later
"""What all protocols share in which UEs sound, calibrated weights follow from that, and the APs then send together.

The UEs sound with their port 0, one symbol per slot. c was measured at t_c, h_ul at t_u; a sample that AP m sends at t
needs c at (t_u + t) / 2, so its weight turns by -2 pi f_m (t_u + t - 2 t_c), f_m its oscillator against any common
reference. Everything is per subcarrier, so that delays and multipath within the prefix do no harm.

The sides may be swapped: UEs whose coefficients are known send jointly to an AP that sounds. What is said of APs here
then holds for them.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, NamedTuple

import numpy as np

from ..core import sounding
from ..core.waveforms import SlotLayout
from .slots import CHOSEN, Grant, Product, Reception, Slot

COEFFICIENTS = ("c", "delay_s", "frequency_hz", "reference_time")
MIN_DEVIATIONS = 4.0  # of the noise's energy, by which a signal must stand out to count as received


class AccessPoints:
    """What follows from the nodes of a plan: those of the schedule, and the APs in the order of the calibration.

    Attributes
    ----------
    prefix : str
        Of the names of the phases, so that several plans of a kind fit into one schedule.
    coefficients : str
        Before the keys `COEFFICIENTS` of the calibration products from which the APs' coefficients are taken.
    beams_from : str or None
        Phase whose product holds `serving_beams` (nodes,), the beam of every node, UEs included; None: the plan has a
        training of its own, in which UEs keep their first beam.
    """

    names: ClassVar[tuple[str, str, str]]
    """Names of the phases that choose beams, sound, and measure, before the prefix."""

    nodes: tuple[str, ...]
    aps: tuple[str, ...]
    num_ports: Mapping[str, int]
    num_beams: Mapping[str, int]
    prefix: str
    coefficients: str
    beams_from: str | None

    @property
    def training(self) -> str:
        """Phase, and purpose of its slots, that chooses beams."""
        return self.prefix + self.names[0]

    @property
    def uplink(self) -> str:
        """Phase, and purpose of its slots, in which the UEs sound."""
        return self.prefix + self.names[1]

    @property
    def downlink(self) -> str:
        """Phase, and purpose of its slots, in which the APs send."""
        return self.prefix + self.names[2]

    @property
    def trains(self) -> bool:
        """Whether the plan chooses beams itself."""
        return self.beams_from is None and self.most_beams > 1

    def calibration(self, product: Product) -> dict[str, object] | None:
        """The APs' `COEFFICIENTS` by these names, None where a product does not hold them."""
        found = {key: product.values.get(self.coefficients + key) for key in COEFFICIENTS}
        return None if any(value is None for value in found.values()) else found

    @property
    def node_of_port(self) -> tuple[str, ...]:
        """AP of each port of the calibration."""
        return tuple(ap for ap in self.aps for _ in range(self.num_ports[ap]))

    def ports(self, ap: str) -> slice:
        """Ports of an AP in the calibration."""
        counts = [self.num_ports[name] for name in self.aps]
        first = sum(counts[: self.aps.index(ap)])
        return slice(first, first + self.num_ports[ap])

    @property
    def most_beams(self) -> int:
        """Beams of the AP that has most of them."""
        return max(self.num_beams[ap] for ap in self.aps)

    def slot(self, purpose: str, transmitters: tuple[str, ...], beam: int, variant: int = 0) -> Slot:
        """Slot for `slots.build_schedule`: every AP with this beam (modulo its number of beams) or its chosen one."""
        beams = [beam if beam == CHOSEN else beam % self.num_beams[node] for node in self.nodes]
        if self.beams_from is None:
            beams = [own if node in self.aps else 0 for node, own in zip(self.nodes, beams, strict=True)]
        return Slot(0, purpose, transmitters, tuple(beams), variant)


class UplinkChannel(NamedTuple):
    """Channel (ports, num_subcarriers), and the absolute sample at the antenna to which its phases belong."""

    h: np.ndarray
    time: int


def sounding_burst(layout: SlotLayout, num_ports: int) -> np.ndarray:
    """What a UE sends, complex64 (num_ports, slot_samples): the symbol from port 0."""
    burst = np.zeros((num_ports, layout.slot_samples), np.complex64)
    burst[0] = layout.sounding_burst()[0]
    return burst


def precoded_burst(layout: SlotLayout, weights: np.ndarray) -> np.ndarray:
    """Symbols of all ports of an AP at once, complex128 (ports, slot_samples), from weights (ports, subcarriers)."""
    return np.concatenate([layout.joint_burst(row[None], dtype=np.complex128) for row in weights])


def own_time_turn(given: Mapping[str, object], ports: slice, start: int, num_samples: int,
                  samp_rate: float) -> np.ndarray:
    """Factors (ports, num_samples) that turn each sample of a precoded burst to its own time.

    Parameters
    ----------
    given : mapping
        `uplink_time`, `reference_time` (samples) and `frequency_hz` (all ports), as the design's product holds them.
    ports : slice
        The AP's among them.
    start : int
        Absolute sample of the burst's first.
    """
    # Middles of symbols are labelled half a sample late (`SlotLayout.middle`).
    times = np.arange(num_samples) + (start + given["uplink_time"] - 2 * given["reference_time"] + 0.5)
    return np.exp((-2j * np.pi / samp_rate) * np.asarray(given["frequency_hz"])[ports, None] * times)


def random_turn(seed: int, ap: int, number: int, watch: int = 0) -> complex:
    """Phase factor of an AP in a joint transmission with random node phases; another in each watch."""
    return np.exp(2j * np.pi * np.random.default_rng((seed, ap, number, watch)).random())


def measure(samples: np.ndarray, layout: SlotLayout) -> tuple[np.ndarray, np.ndarray]:
    """Channel (n, ports, num_subcarriers) in each of n slots, and the noise variance (n, ports) of its entries.

    All slots (n, ports, slot_samples) must have one carrier: that of a UE, or the one that precoding gives to all APs.
    """
    window = layout.symbol, layout.useful_start(0)
    turn = sounding.prefix_correlation(samples, *window, layout.advance_samples)
    samples = sounding.hold_carrier(samples, *window, turn[0].sum(axis=1), turn[1].sum(axis=1))
    noise = sounding.empty_bin_noise_variance(samples, *window)
    return sounding.channel_estimate(samples, *window), sounding.estimate_noise_variance(layout.symbol, noise)


class Listener:
    """What a node receives in one phase, and the channels that follow from it.

    Parameters
    ----------
    layout : SlotLayout
    """

    def __init__(self, layout: SlotLayout):
        self._layout, self._reception = layout, Reception()
        self._carriers: dict[int, str] = {}  # of the slots listened to

    def keep(self, grant: Grant, samples: np.ndarray, carrier: str = "") -> None:
        """Store what was received in a slot, (ports, slot_samples); slots of one carrier are measured together."""
        self._carriers[grant.slot] = carrier
        self._reception.keep(grant, samples)

    def results(self, grants: Sequence[Grant]) -> dict[str, object] | None:
        """Channel per subcarrier in every slot kept; all of them are forgotten. None where there are none.

        Returns
        -------
        dict
            `slots`, `starts` (n,) int64; `h` complex128 (n, ports, num_subcarriers); `noise_var` (n, ports) of its
            entries.
        """
        heard = [grant for grant in grants if grant.slot in self._carriers]
        if not heard:
            return None
        samples = self._reception.take(heard)
        carriers = [self._carriers[grant.slot] for grant in heard]
        self._carriers.clear()
        h = np.empty((*samples.shape[:2], self._layout.symbol.num_subcarriers), np.complex128)
        noise_var = np.empty(samples.shape[:2])
        for carrier in set(carriers):
            own = np.array([one == carrier for one in carriers])
            h[own], noise_var[own] = measure(samples[own], self._layout)
        return {
            "slots": np.array([grant.slot for grant in heard]),
            "starts": np.array([grant.start for grant in heard]),
            "h": h,
            "noise_var": noise_var,
        }


def is_heard(h: np.ndarray, noise_var: np.ndarray) -> bool:
    """Whether the energy in repeated channels (repeats, ports, subcarriers) of all ports stands out of the noise.

    `noise_var` (repeats, ports) is that of the entries.
    """
    noise = noise_var.mean(axis=0)
    energy = np.mean(np.abs(h) ** 2, axis=(0, 2)) - noise
    # Deviation of their sum where there is nothing but noise.
    deviation = np.linalg.norm(noise) / np.sqrt(h.shape[0] * h.shape[2])
    return bool(energy.sum() > MIN_DEVIATIONS * deviation)


def is_unsteady(power: np.ndarray, noise_var: float, num_subcarriers: int) -> bool:
    """Whether a power (repeats,), mean over subcarriers, more than halves between repeats, beyond noise."""
    deviation = np.sqrt((2 * power.max() * noise_var + noise_var**2) / num_subcarriers)
    return bool(power.min() + MIN_DEVIATIONS * deviation < 0.5 * power.max())


def uplink_channel(h: np.ndarray, starts: np.ndarray, frequency_hz, layout: SlotLayout, samp_rate: float,
                   time: int | None = None) -> UplinkChannel:
    """One channel from repeated soundings of a UE, whose oscillator turns unknown to all, by the APs' own turns.

    Parameters
    ----------
    h : ndarray (repeats, ports, num_subcarriers)
    starts : ndarray (repeats,) int
        Of the slots.
    frequency_hz : array_like (ports,)
        Of the APs' oscillators.
    time : int, optional
        Where to refer the phases to; the middle repeat by default.
    """
    # Samples are labelled later than at the antenna by the pipeline delay, which the channel shows.
    latency = round(sounding.common_delay(h, layout.symbol)) - layout.advance_samples
    times = np.asarray(starts) + layout.middle(0) - latency
    time = int(times[len(times) // 2]) if time is None else time
    turn = 2j * np.pi / samp_rate * (times - time)[:, None] * np.asarray(frequency_hz)
    return UplinkChannel(combine_repeats(h * np.exp(turn)[..., None]), time)


def calibration_per_subcarrier(given: Mapping[str, object], layout: SlotLayout, samp_rate: float) -> np.ndarray:
    """Calibration (ports, num_subcarriers) from a calibration product's `c` and `delay_s` of each port."""
    delays = np.asarray(given["delay_s"])[:, None] * layout.symbol.bins
    return np.asarray(given["c"])[:, None] * np.exp(-2j * np.pi * samp_rate / layout.symbol.pilot_samples * delays)


def unit_power(weights: np.ndarray) -> np.ndarray:
    """Weights (ports, subcarriers) scaled to unit total power; zeros stay."""
    power = np.mean(np.sum(np.abs(weights) ** 2, axis=0))
    return weights / np.sqrt(power) if power > 0 else weights


def full_power(weights: np.ndarray) -> np.ndarray:
    """Weights (ports, subcarriers) scaled to unit power of each port; zeros stay."""
    amplitude = np.sqrt(np.mean(np.abs(weights) ** 2, axis=1, keepdims=True))
    return np.divide(weights, amplitude, out=np.zeros_like(weights), where=amplitude > 0)


def combine_repeats(h: np.ndarray) -> np.ndarray:
    """Channel (ports, subcarriers) common to repeats (repeats, ports, subcarriers) that differ by one phase each.

    The dominant left singular vector holds those phases: the UE's oscillator turns between repeats, unknown to all.
    """
    x = h.reshape(len(h), -1)
    u = np.linalg.eigh(x @ x.conj().T)[1][:, -1]
    return (u.conj() @ x).reshape(h.shape[1:]) / np.sqrt(len(h))


def decibels(power: float, scale: float = 1.0) -> float | None:
    """Ratio of powers in dB; None where it has none."""
    return float(10 * np.log10(power / scale)) if power > 0 and scale > 0 else None


class JointRole:
    """What the roles of joint transmissions have in common: beams, listening, and what they take from products.

    Parameters
    ----------
    node : str
    plan : AccessPoints
        With `layout`.
    """

    reactive = False

    def __init__(self, node: str, plan):
        self.purposes = frozenset({plan.training, plan.uplink, plan.downlink})
        self._node = node
        self._plan = plan
        self._position = plan.nodes.index(node)
        self._is_ap = node in plan.aps
        self._beam = 0
        self._weights: Mapping[str, object] | None = None
        self._watch = -1  # number of the weights' design
        self._listener = Listener(plan.layout)
        self._bursts: dict[int, np.ndarray] = {}

    def beam(self, slot: Slot) -> int:
        """Beam of the schedule, or the one chosen in training."""
        beam = slot.beams[self._position]
        return self._beam if beam == CHOSEN else beam

    def results(self, grants: Sequence[Grant]) -> dict[str, object] | None:
        """Channel per subcarrier in every slot listened to, as `Listener` has it."""
        return self._listener.results(grants)

    def update(self, product: Product) -> None:
        """Take the chosen beam, or the weights."""
        plan = self._plan
        if product.phase == plan.beams_from:
            self._beam = int(np.asarray(product.values["serving_beams"])[self._position])
        elif product.phase == plan.training and self._is_ap:
            self._beam = int(np.asarray(product.values["beams"])[plan.aps.index(self._node)])
        elif product.phase == plan.uplink:
            self._weights = product.values
            self._bursts.clear()
            self._watch += 1
