# SPDX-License-Identifier: GPL-3.0-or-later
"""Mutual coupling: an array's own receivers show the amplifiers of its transmitters, and then calibrate the array.

One port at a time sends while all ports of its access point (AP) listen, in a slot of its own, AP after AP. In the
phase *amplitudes* the pilots are of many amplitudes; from them all amplifiers are identified, and from then on
everything that the AP sends is predistorted. In the phase *coupling* the pilots are of one amplitude and go through the
linearised transmitters: every pair of ports is measured in both directions, which calibrates the AP. ::

    | lead | prefix | pilot pilot ... | prefix |      each pilot held for `hold_samples`

The AP's ports share an oscillator, so nothing turns. Pilots that are held, with the edges ignored, do not feel
fractions of a sample and filters of the radio, nor that a loop delay does not tell how much of it is the transmitter's:
between two ports whose loops differ by d samples, pilots are d / 2 late in one direction and early in the other. A pair
with more than that is noticed.

References
----------
Over-the-air DPD and reciprocity calibration, section III.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from ..core import predistortion
from ..core.predistortion import AmplitudeDesign, PilotStatistics
from .predistortion import NodePredistortion
from .slots import Grant, Product, Slot

AMPLITUDES, COUPLING = "amplitudes", "coupling"
"""Phases, and purposes of their slots."""
LAGS = 4  # samples beyond the guards, early and late, at which pilots are looked for
PILOT_SEED = 1  # of their order and phases, which only have to be known to all


@dataclass(frozen=True)
class MutualCouplingPlan:
    """What the nodes need to know about the measurement.

    Parameters
    ----------
    nodes : tuple of str
        All nodes, in the order of the schedule.
    num_ports : mapping of AP to int, in the order of the calibration's ports
    slot_samples, lead_samples, prefix_samples : int
    latency_samples : int
        How much later than at the antenna received samples are labelled.
    num_pilots : int
        In a slot of either phase.
    design : "uniform", "data_like" or "two_level"
        Amplitudes of the swept pilots.
    peak_db : float
        Power of the largest of them over that of linear pilots, which is 1.
    order, memory_depth : int
        Of the amplifiers' polynomials.
    repeats, linear_repeats : int
        Slots of each port in the two phases.
    hold_samples, guard_samples : int
        How long a pilot is held, and how many samples at either end of it are ignored.
    predistorts : bool
        Whether amplifiers are identified at all: otherwise there are linear pilots only.
    single_stage : bool
        Whether the swept pilots calibrate too: then there are no linear ones.
    full_scale : mapping of AP to float
        Amplitude of the real or imaginary part at which its receivers clip, where that is known.

    Raises
    ------
    ValueError
        If an AP has a single port, the pilots do not fit into a slot, the prefix is too short to find them when they
        are late, or nothing of a pilot is left between its guards.
    """

    nodes: tuple[str, ...]
    num_ports: Mapping[str, int]
    slot_samples: int
    lead_samples: int
    prefix_samples: int
    latency_samples: int = 0
    num_pilots: int = 100
    design: AmplitudeDesign = "uniform"
    peak_db: float = 11.0
    order: int = 3
    memory_depth: int = 1
    repeats: int = 1
    linear_repeats: int = 1
    hold_samples: int = 1
    guard_samples: int = 0
    predistorts: bool = True
    single_stage: bool = False
    full_scale: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self):
        if not self.num_ports or min(self.num_ports.values()) < 2:
            raise ValueError(f"num_ports = {dict(self.num_ports)}: every AP must have at least 2, to hear each other")
        if 2 * self.guard_samples >= self.hold_samples:
            raise ValueError(f"guard_samples = {self.guard_samples}: twice that must be below hold_samples = "
                             f"{self.hold_samples}")
        if self.memory_depth > 1 and self.hold_samples > 1:
            raise ValueError(f"memory_depth = {self.memory_depth}: pilots must not be held, hold_samples = 1")
        if self.single_stage and not self.predistorts:
            raise ValueError("single_stage: needs the swept pilots of predistorts = True")
        if self.prefix_samples < 2 * self.max_lag:
            raise ValueError(f"prefix_samples = {self.prefix_samples}: must be at least {2 * self.max_lag}")
        end = self.start + self.burst_samples + self.latency_samples + self.prefix_samples // 2
        if end > self.slot_samples:
            raise ValueError(f"slot_samples = {self.slot_samples}: pilots and silence around them need {end}")

    @property
    def start(self) -> int:
        """First sample of the pilots, counted from the start of the slot."""
        return self.lead_samples + self.prefix_samples

    @property
    def burst_samples(self) -> int:
        """Length of all pilots."""
        return len(self.swept_pilots) * self.hold_samples

    @cached_property
    def swept_pilots(self) -> np.ndarray:
        """Pilots of many amplitudes, complex128; with memory, the first only serve as the past of the others."""
        peak = 10 ** (self.peak_db / 20)
        return predistortion.design_pilots(self.num_pilots + self.memory_depth - 1, self.design, peak=peak,
                                           backoff_db=self.peak_db, rng=np.random.default_rng(PILOT_SEED))

    @cached_property
    def linear_pilots(self) -> np.ndarray:
        """Pilots of unit modulus."""
        return np.exp(1j * np.angle(self.swept_pilots))

    @property
    def max_lag(self) -> int:
        """How many samples early and late pilots are looked for."""
        return LAGS + self.guard_samples

    @property
    def num_averaged(self) -> int:
        """Samples that make a received pilot."""
        return self.hold_samples - 2 * self.guard_samples

    @property
    def silence(self) -> np.ndarray:
        """Samples of a slot in which nobody sends."""
        margin, begin = self.prefix_samples // 2, self.start + self.latency_samples
        return np.concatenate([np.arange(begin - margin),
                               np.arange(begin + self.burst_samples + margin, self.slot_samples)])

    def ports(self, ap: str) -> slice:
        """Where the AP's ports are in the arrays of the products."""
        names = list(self.num_ports)
        first = sum(self.num_ports[name] for name in names[: names.index(ap)])
        return slice(first, first + self.num_ports[ap])

    def phases(self, window: int, calibrates: bool = True) -> list[tuple[str, int, list[Slot]]]:
        """Phases for `slots.build_schedule`: without linear pilots where nobody asks for a calibration."""
        phases = []
        if self.predistorts:
            phases.append((AMPLITUDES, window, self._slots(AMPLITUDES, self.repeats)))
        if calibrates and not self.single_stage:
            phases.append((COUPLING, window, self._slots(COUPLING, self.linear_repeats)))
        return phases

    def _slots(self, purpose: str, repeats: int) -> list[Slot]:
        beams = (0,) * len(self.nodes)
        return [Slot(0, purpose, (ap,), beams, port)
                for _ in range(repeats) for ap, count in self.num_ports.items() for port in range(count)]

    def burst(self, port: int, num_ports: int, purpose: str) -> np.ndarray:
        """Slot in which one port sends: complex64 (num_ports, slot_samples)."""
        burst = np.zeros((num_ports, self.slot_samples), np.complex64)
        pilots = self.swept_pilots if purpose == AMPLITUDES else self.linear_pilots
        burst[port, self.start : self.start + self.burst_samples] = np.repeat(pilots, self.hold_samples)
        return burst

    def received(self, samples: np.ndarray) -> np.ndarray:
        """Pilots (ports, K) as received in a slot (ports, slot_samples)."""
        return self._held(samples).mean(axis=-1, dtype=complex)

    def saturated(self, ap: str, samples: np.ndarray) -> np.ndarray:
        """Ports (ports,) bool of an AP whose receivers clipped a pilot in a slot (ports, slot_samples)."""
        if ap not in self.full_scale:
            return np.zeros(len(samples), bool)
        held = self._held(samples)  # noise hides in their mean that some of them were clipped
        return np.maximum(np.abs(held.real), np.abs(held.imag)).max(axis=(-2, -1)) >= self.full_scale[ap]

    def _held(self, samples: np.ndarray) -> np.ndarray:
        """Samples (ports, K, num_averaged) of the pilots."""
        begin = self.start + self.latency_samples
        held = samples[:, begin : begin + self.burst_samples].reshape(len(samples), -1, self.hold_samples)
        return held[..., self.guard_samples : self.hold_samples - self.guard_samples]

    def lag_energies(self, samples: np.ndarray, purpose: str) -> np.ndarray:
        """Energy (ports, 2 max_lag + 1) of the correlation with the pilots, up to `max_lag` samples early and late,
        over what noise of variance 1 in every sample makes of it on average.
        """
        pilots = self.swept_pilots if purpose == AMPLITUDES else self.linear_pilots
        x = np.repeat(pilots, self.hold_samples).conj()
        begin = self.start + self.latency_samples - self.max_lag
        searched = samples[:, begin : begin + x.size + 2 * self.max_lag]
        windows = np.lib.stride_tricks.sliding_window_view(searched, x.size, axis=-1)
        return np.abs(windows @ x) ** 2 / np.sum(np.abs(x) ** 2)


class MutualCouplingRole:
    """What one node does: each port of an AP sends in its own slots, all of them listen; all others are silent.

    Attributes
    ----------
    predistortion : NodePredistortion or None
        What makes the node's amplifiers linear, once they are known; None for nodes that are no AP.
    """

    purposes = frozenset({AMPLITUDES, COUPLING})
    reactive = True  # what a slot says is far smaller than its samples

    def __init__(self, node: str, plan: MutualCouplingPlan, predistortion: NodePredistortion | None = None):
        self._node, self._plan = node, plan
        self._num_ports = plan.num_ports.get(node, 0)
        self.predistortion = predistortion
        self._bursts: dict[tuple[str, int], np.ndarray] = {}
        self._heard: dict[tuple[int, int], tuple[Slot, object]] = {}

    def beam(self, slot: Slot) -> int:
        """Beam 0: coupling is measured between elements."""
        return 0

    def transmit(self, slot: Slot, start: int) -> np.ndarray | None:
        """The pilots of one port, in the node's own slots."""
        if self._node not in slot.transmitters:
            return None
        key = slot.purpose, slot.variant
        if key not in self._bursts:
            self._bursts[key] = self._plan.burst(slot.variant, self._num_ports, slot.purpose)
        return self._bursts[key]

    def receive(self, slot: Slot, grant: Grant, samples: np.ndarray) -> None:
        """Keep what the node's ports say about its sending port."""
        if self._node not in slot.transmitters:
            return
        plan, port = self._plan, slot.variant
        y = plan.received(samples)
        noise = np.mean(np.abs(samples[:, plan.silence]) ** 2, axis=-1) / plan.num_averaged
        heard: dict[str, object] = {"noise_var": noise, "lags": plan.lag_energies(samples, slot.purpose)}
        others = (np.arange(len(y)) != port)[:, None]
        saturated = others & plan.saturated(self._node, samples)[:, None]
        if slot.purpose == AMPLITUDES:
            statistics = predistortion.pilot_statistics(y[:, None], plan.swept_pilots, order=plan.order,
                                                        memory_depth=plan.memory_depth, mask=others & ~saturated)
            heard["statistics"] = replace(statistics, saturated=saturated)
        else:
            x = plan.linear_pilots
            heard["gains"] = gains = y @ x.conj() / x.size
            heard["saturated"] = saturated[:, 0]
            heard["residual_var"] = np.sum(np.abs(y - gains[:, None] * x) ** 2, axis=-1) / (x.size - 1)
        self._heard[grant.slot, grant.attempt] = slot, heard

    def results(self, grants: Sequence[Grant]) -> dict[str, object] | None:
        """What all slots of a phase say.

        Returns
        -------
        dict
            `starts` (n,) of the slots; `noise_var` (ports,) of a received pilot; `lags` (ports, ports, 2 max_lag + 1),
            receiver first, see `MutualCouplingPlan.lag_energies`, summed over repeats. In the phase *amplitudes* the
            fields of `PilotStatistics` for all pairs; in the phase *coupling* `gains` (ports, ports), receiver first,
            `saturated` (ports, ports) bool, whose receivers clipped in some slot, `residual_var` (ports, ports), what
            the gains leave of a received pilot, and `energy`, that of all linear pilots of a port.
        """
        kept = [(grant, *self._heard[grant.slot, grant.attempt]) for grant in grants
                if (grant.slot, grant.attempt) in self._heard]
        self._heard.clear()
        if not kept:
            return None
        ports = [slot.variant for _, slot, _ in kept]
        lags = np.zeros((self._num_ports, self._num_ports, 2 * self._plan.max_lag + 1))
        np.add.at(lags, (slice(None), ports), np.stack([heard["lags"] for _, _, heard in kept], axis=1))
        common = {"starts": np.array([grant.start for grant, _, _ in kept]),
                  "noise_var": np.mean([heard["noise_var"] for _, _, heard in kept], axis=0),
                  "lags": lags}
        if kept[0][1].purpose == AMPLITUDES:
            return common | self._statistics(ports, [heard["statistics"] for _, _, heard in kept])
        gains, residual = (np.zeros((self._num_ports, self._num_ports), dtype) for dtype in (complex, float))
        np.add.at(gains.T, ports, [heard["gains"] for _, _, heard in kept])
        np.add.at(residual.T, ports, [heard["residual_var"] for _, _, heard in kept])
        saturated = np.zeros(gains.shape, bool)
        np.logical_or.at(saturated.T, ports, [heard["saturated"] for _, _, heard in kept])
        repeats = len(ports) // self._num_ports
        return common | {"gains": gains / repeats, "saturated": saturated, "residual_var": residual / repeats,
                         "energy": float(repeats * self._plan.linear_pilots.size)}

    def _statistics(self, ports: list[int], heard: list[PilotStatistics]) -> dict[str, object]:
        """Fields of the statistics of all pairs, from those of one sending port in each slot."""
        summed: dict[int, PilotStatistics] = {}
        for port, one in zip(ports, heard, strict=True):
            summed[port] = summed[port] + one if port in summed else one
        columns = [summed[port] for port in range(self._num_ports)]
        joined = {name: np.concatenate([getattr(one, name) for one in columns], axis=1)
                  for name in ("correlation", "energy", "used", "saturated")}
        return joined | {"gram": columns[0].gram, "num_samples": columns[0].num_samples, "order": columns[0].order,
                         "memory_depth": columns[0].memory_depth, "peak": columns[0].peak}

    def update(self, product: Product) -> None:
        """Predistort from now on."""
        if self.predistortion is not None and product.phase == AMPLITUDES:
            own = self._plan.ports(self._node)
            self.predistortion.set(np.asarray(product.values["predistortion"])[own],
                                   np.asarray(product.values["predistortion_peak"])[own])
