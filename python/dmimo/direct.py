# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a schedule on the simulated network in one loop, without GNU Radio.

The same scheduler, roles, collectors and physics as in a flowgraph, so the same results; for compute clusters, and for
hours of network time in seconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import numpy as np

from .protocols.correction import correction_of
from .protocols.predistortion import predistortion_of
from .protocols.scheduler import Finished, PhaseDone, Publish, Release, SlotScheduler
from .protocols.slots import Collector, Grant, Product, Role, Schedule, Slot
from .simulation.network import Network


class Recorder(Protocol):
    """Records what a node receives; see `recording.NodeRecorder`."""

    def received(self, grants: Sequence[Grant], beams: Sequence[int], samples: np.ndarray | None,
                 status: str = "ok") -> None:
        """Attempts are over."""

    def phase_done(self, phase: str, grants: Sequence[Grant]) -> None:
        """A phase has ended."""

    def product(self, product: Product) -> None:
        """The node was given a product."""


class Participants:
    """All roles and collectors of a run, in one process.

    Parameters
    ----------
    schedule : Schedule
    roles : mapping of node to sequence of Role
    collectors : sequence of Collector
    """

    def __init__(self, schedule: Schedule, roles: Mapping[str, Sequence[Role]], collectors: Sequence[Collector]):
        self._slots, self._collectors = schedule.slots, collectors
        self._roles = {name: tuple(members) for name, members in roles.items()}
        self._acting = {name: {purpose: role for role in members for purpose in role.purposes}
                        for name, members in self._roles.items()}
        self.corrections = {name: correction_of(members) for name, members in self._roles.items()}
        self._predistortions = {name: predistortion_of(members) for name, members in self._roles.items()}

    def acting(self, name: str, slot: Slot) -> Role:
        """The role of a node that acts in a slot."""
        return self._acting[name][slot.purpose]

    def transmit(self, name: str, grant: Grant) -> np.ndarray | None:
        """Burst that a node sends in a slot, corrected and predistorted, complex64 (num_ports, n); None: silence."""
        slot, correction, predistortion = self._slots[grant.slot], self.corrections[name], self._predistortions[name]
        burst = self.acting(name, slot).transmit(slot, grant.start)
        if burst is not None and correction is not None:
            burst = correction.transmit(burst, grant.start)
        if burst is not None and predistortion is not None:
            burst = predistortion.transmit(burst, slot)
        return burst

    def receive(self, name: str, grant: Grant, samples: np.ndarray) -> None:
        """Give a node what its ports received, complex64 (num_ports, slot_samples)."""
        slot, correction = self._slots[grant.slot], self.corrections[name]
        if correction is not None:
            samples = correction.receive(samples, grant.start)
        self.acting(name, slot).receive(slot, grant, samples)

    def conclude(self, phase: str, grants: Sequence[Grant]) -> Product:
        """Product that the phase's collector makes of the attempts that count."""
        purpose = self._slots[grants[0].slot].purpose
        results = {name: _laid_out(roles[purpose].results(grants)) for name, roles in self._acting.items()}
        collector = next(member for member in self._collectors if phase in member.phases)
        product = collector.produce(phase, grants, {name: values for name, values in results.items() if values})
        return replace(product, values=_laid_out(product.values))

    def update(self, product: Product) -> None:
        """Give everybody a product."""
        for member in (*self._collectors, *(role for roles in self._roles.values() for role in roles)):
            member.update(product)


class DirectRun:
    """One run of a schedule.

    Parameters
    ----------
    schedule : Schedule
    network : Network
        With the schedule's nodes.
    roles : mapping of node to sequence of Role
    collectors : sequence of Collector
    until_sample, max_attempts
        As for `SlotScheduler`.
    recorders : mapping of node to Recorder
        Of the nodes that are recorded.

    Attributes
    ----------
    error : str or None
    releases, end_sample : as of the scheduler.
    """

    def __init__(self, schedule: Schedule, network: Network, roles: Mapping[str, Sequence[Role]],
                 collectors: Sequence[Collector], *, until_sample: int = 0, max_attempts: int = 3,
                 recorders: Mapping[str, Recorder] | None = None):
        self._schedule, self._network, self._recorders = schedule, network, dict(recorders or {})
        self._members = Participants(schedule, roles, collectors)
        self._scheduler = SlotScheduler(schedule, until_sample=until_sample, max_attempts=max_attempts)
        self.error: str | None = None

    @property
    def releases(self) -> int:
        """Attempts released, retries included."""
        return self._scheduler.releases

    @property
    def end_sample(self) -> int:
        """First absolute sample after the last slot released."""
        return self._scheduler.end_sample

    def run(self) -> str | None:
        """Run to the end; returns the error, None where the run succeeded."""
        machine, schedule = self._scheduler, self._schedule
        actions = [action for node in schedule.nodes for action in machine.ready(node, schedule.hash)]
        while actions:
            match actions.pop(0):
                case Release(grants):
                    for grant in grants:
                        actions += self._play(grant)
                case PhaseDone(phase, grants):
                    for recorder in self._recorders.values():
                        recorder.phase_done(phase, grants)
                    actions += machine.produced(self._members.conclude(phase, grants))
                case Publish(product):
                    for recorder in self._recorders.values():
                        recorder.product(product)
                    self._members.update(product)
                    for node in schedule.nodes:
                        actions += machine.product_acknowledged(node, product.phase)
                case Finished(error):
                    self.error = error
        return self.error

    def _play(self, grant: Grant) -> list:
        """Send and receive one slot; returns what the scheduler does next."""
        network, slot, num = self._network, self._schedule.slots[grant.slot], self._schedule.slot_samples
        sent = np.zeros((network.num_ports, num), np.complex64)
        beams, shifts = np.zeros(network.num_ports, np.int64), []
        for name in network.names:
            role, correction = self._members.acting(name, slot), self._members.corrections[name]
            burst = self._members.transmit(name, grant)
            if burst is not None:
                sent[network.ports(name), : burst.shape[1]] = burst
            beams[network.ports(name)] = role.beam(slot)
            shifts.append(0 if correction is None else correction.shift(grant.start))
        lost = network.begin_slot(grant.start, num)
        received = network.process(sent, grant.start, beams, final=True, shifts=shifts if any(shifts) else None)
        actions = []
        for name in self._schedule.nodes:
            samples = received[network.ports(name)]
            status = "lost" if name in lost else "ok" if np.isfinite(samples).all() else "samples are not finite"
            if name in self._recorders:
                kept = samples[None] if status == "ok" else None
                self._recorders[name].received([grant], beams[network.ports(name)][:1], kept, status)
            if status == "ok":
                self._members.receive(name, grant, samples)
            actions += self._scheduler.acknowledge(name, [grant], status)
        return actions


def _laid_out(values: Mapping[str, object] | None) -> dict[str, object]:
    """Values, arrays laid out as messages carry them: sums over other layouts differ in their last bits."""
    return {key: np.array(value, order="C") if isinstance(value, np.ndarray) else value
            for key, value in (values or {}).items()}
