# SPDX-License-Identifier: GPL-3.0-or-later
"""Slots, phases and schedules: what every node of a run does when, known to all of them before it starts.

A protocol produces a `Schedule`. A *slot* is a fixed-length interval of samples in which named nodes transmit and
all others listen, each with a beam. Slots are grouped into *phases*; a phase ends at a barrier: its results are
combined into a `Product` (a calibration, chosen beams, precoding weights) that every node acknowledges before the
next phase is released.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import NamedTuple, Protocol

import numpy as np

CHOSEN = -1
"""Beam index of a slot that stands for the beam chosen at run time."""


@dataclass(frozen=True)
class Slot:
    """One slot of a schedule.

    Parameters
    ----------
    index : int
        Position in the schedule; the slot's identity in all messages.
    purpose : str
        What the slot is for; roles act on the purposes that they own.
    transmitters : tuple of str
        Nodes that transmit in it.
    beams : tuple of int
        Beam of each node, in the order of the schedule's nodes; `CHOSEN` where it is chosen at run time.
    variant : int
        Meaning defined by the purpose (round of a sweep, number of a random start).
    follows : bool
        Nothing in it depends on what the slot before it brings: a lock-step phase releases both together.
    idle_samples : int
        Idle samples before it.
    """

    index: int
    purpose: str
    transmitters: tuple[str, ...]
    beams: tuple[int, ...]
    variant: int = 0
    follows: bool = False
    idle_samples: int = 0


@dataclass(frozen=True)
class Phase:
    """A run of consecutive slots that ends at a barrier; `window` slots are in flight (1: lock-step, slot after slot,
    but those that follow one another are in flight together).

    A `paced` phase begins no earlier than the pace, which a product sets, after the last paced phase began.
    """

    name: str
    first: int
    count: int
    window: int
    paced: bool = False

    @property
    def slots(self) -> range:
        """Indices of the phase's slots."""
        return range(self.first, self.first + self.count)


@dataclass(frozen=True)
class Schedule:
    """The slots of a run, by phase; the last `cycle` phases are played at least `cycles` times, and for as long as the
    scheduler is told.

    Raises
    ------
    ValueError
        If phases do not cover the slots in order, a slot's index is not its position, a slot names an unknown node, or
        there are fewer phases than `cycle`.
    """

    nodes: tuple[str, ...]
    slot_samples: int
    slots: tuple[Slot, ...]
    phases: tuple[Phase, ...] = field(default=())
    cycle: int = 0
    cycles: int = 1

    def __post_init__(self):
        if self.slot_samples < 1:
            raise ValueError(f"slot_samples = {self.slot_samples}: must be at least 1")
        for position, slot in enumerate(self.slots):
            if slot.index != position:
                raise ValueError(f"slot {position}: index = {slot.index}, must equal its position")
            if len(slot.beams) != len(self.nodes):
                raise ValueError(f"slot {position}: {len(slot.beams)} beams, must be one per node ({len(self.nodes)})")
            if slot.idle_samples < 0:
                raise ValueError(f"slot {position}: idle_samples = {slot.idle_samples}, must not be negative")
            unknown = sorted(set(slot.transmitters) - set(self.nodes))
            if unknown:
                raise ValueError(f"slot {position}: transmitters {unknown} are not among the nodes {self.nodes}")
        covered = [index for phase in self.phases for index in phase.slots]
        if covered != list(range(len(self.slots))):
            raise ValueError("phases: must cover all slots once, in order")
        for phase in self.phases:
            if phase.window < 1 or phase.count < 1:
                raise ValueError(f"phase {phase.name}: window = {phase.window}, count = {phase.count}: at least 1 each")
        if not 0 <= self.cycle <= len(self.phases):
            raise ValueError(f"cycle = {self.cycle}: must lie in 0 ... number of phases = {len(self.phases)}")
        if self.cycles < 1:
            raise ValueError(f"cycles = {self.cycles}: must be at least 1")

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the whole schedule, hexadecimal: nodes of a run must agree on it."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def phase(self, name: str) -> Phase:
        """Phase of that name."""
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise ValueError(f"phase = {name!r}: the schedule has {[phase.name for phase in self.phases]}")

    def beam(self, slot: Slot, node: str) -> int:
        """Beam of `node` in `slot`, possibly `CHOSEN`."""
        return slot.beams[self.nodes.index(node)]


def build_schedule(
    nodes: Sequence[str], slot_samples: int, phases: Sequence[tuple[str, int, Sequence[Slot]]],
    repeated: Sequence[tuple[str, int, Sequence[Slot]]] = (), paced: Sequence[int] = (), cycles: int = 1,
) -> Schedule:
    """Schedule of consecutive phases, each given as (name, window, slots); slots are renumbered by position.

    Those in `repeated` follow and form the cycle, played at least `cycles` times; `paced` are the positions, among
    them, of paced phases.
    """
    slots: list[Slot] = []
    spans = []
    for position, (name, window, members) in enumerate([*phases, *repeated], -len(phases)):
        spans.append(Phase(name, len(slots), len(members), window, position in paced))
        slots += [replace(slot, index=len(slots) + k) for k, slot in enumerate(members)]
    return Schedule(tuple(nodes), slot_samples, tuple(slots), tuple(spans), len(repeated), cycles)


class Grant(NamedTuple):
    """Release of one attempt at one slot, whose first sample is the absolute sample `start`."""

    slot: int
    attempt: int
    start: int


@dataclass(frozen=True)
class Product:
    """What a phase produced, for every node to acknowledge by its `phase`.

    `values` holds arrays, numbers and strings. A product that is not trusted is never applied: it ends the run with
    its `reasons`. `pace_samples` sets how far apart paced phases begin from now on.
    """

    phase: str
    values: Mapping[str, object]
    trusted: bool = True
    reasons: tuple[str, ...] = ()
    pace_samples: int | None = None


class Role(Protocol):
    """What one node does in the slots of some purposes."""

    purposes: frozenset[str]
    reactive: bool
    """Whether `receive` must come at once, since what is sent next depends on it; otherwise before `results`."""

    def beam(self, slot: Slot) -> int:
        """Beam of the node's ports in this slot."""

    def transmit(self, slot: Slot, start: int) -> np.ndarray | None:
        """Burst to send in the slot that starts at absolute sample `start`: complex64 (num_ports, n); None: silence."""

    def receive(self, slot: Slot, grant: Grant, samples: np.ndarray) -> None:
        """Keep what the node's ports received in the slot: complex64 (num_ports, slot_samples)."""

    def results(self, grants: Sequence[Grant]) -> dict[str, object] | None:
        """Results of a finished phase from the attempts that count, or None where the role has none."""

    def update(self, product: Product) -> None:
        """Take what a phase produced."""


class Collector(Protocol):
    """Combines all nodes' results of a phase into its product."""

    phases: frozenset[str]

    def update(self, product: Product) -> None:
        """Take what another phase produced."""

    def produce(self, phase: str, grants: Sequence[Grant], results: Mapping[str, Mapping[str, object]]) -> Product:
        """Product of the phase, from each node's results by node name."""


class CollectorGroup:
    """Several collectors as one; each phase belongs to one of them.

    Parameters
    ----------
    members : mapping of name to Collector
    """

    def __init__(self, members: Mapping[str, Collector]):
        self.members = dict(members)
        self._owner = {phase: member for member in members.values() for phase in member.phases}
        self.phases = frozenset(self._owner)

    def update(self, product: Product) -> None:
        """Give every member what a phase of somebody else has produced."""
        for member in self.members.values():
            member.update(product)

    def produce(self, phase: str, grants: Sequence[Grant], results: Mapping[str, Mapping[str, object]]) -> Product:
        """Product of the phase from the member that it belongs to."""
        return self._owner[phase].produce(phase, grants, results)


class Reception:
    """Received slots of one node, kept per slot and attempt until their phase ends."""

    def __init__(self):
        self._samples: dict[tuple[int, int], np.ndarray] = {}

    def keep(self, grant: Grant, samples: np.ndarray) -> None:
        """Store the samples of one attempt."""
        self._samples[grant.slot, grant.attempt] = samples

    def take(self, grants: Sequence[Grant]) -> np.ndarray:
        """Samples of these attempts, (len(grants), num_ports, slot_samples); everything kept is forgotten."""
        taken = np.stack([self._samples[grant.slot, grant.attempt] for grant in grants])
        self._samples.clear()
        return taken
