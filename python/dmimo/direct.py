# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs a schedule on the simulated network in one loop, without GNU Radio.

The same scheduler, roles, collectors and physics as in a flowgraph, so the same results; for compute clusters, and for
hours of network time in seconds.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from .protocols.correction import correction_of
from .protocols.scheduler import Finished, PhaseDone, Publish, Release, SlotScheduler
from .protocols.slots import Collector, Grant, Role, Schedule, Slot
from .simulation.network import Network


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

    Attributes
    ----------
    error : str or None
    releases, end_sample : as of the scheduler.
    """

    def __init__(self, schedule: Schedule, network: Network, roles: Mapping[str, Sequence[Role]],
                 collectors: Sequence[Collector], *, until_sample: int = 0, max_attempts: int = 3):
        self._schedule, self._network, self._collectors = schedule, network, collectors
        self._roles = {name: tuple(members) for name, members in roles.items()}
        self._acting = {name: {purpose: role for role in members for purpose in role.purposes}
                        for name, members in self._roles.items()}
        self._corrections = {name: correction_of(members) for name, members in self._roles.items()}
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
                    actions += self._conclude(phase, grants)
                case Publish(product):
                    for member in (*self._collectors, *(role for roles in self._roles.values() for role in roles)):
                        member.update(product)
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
            role, correction = self._acting[name][slot.purpose], self._corrections[name]
            burst = role.transmit(slot, grant.start)
            if burst is not None:
                burst = burst if correction is None else correction.transmit(burst, grant.start)
                sent[network.ports(name), : burst.shape[1]] = burst
            beams[network.ports(name)] = role.beam(slot)
            shifts.append(0 if correction is None else correction.shift(grant.start))
        lost = network.begin_slot(grant.start, num)
        received = network.process(sent, grant.start, beams, final=True, shifts=shifts if any(shifts) else None)
        actions = []
        for name in self._schedule.nodes:
            samples = received[network.ports(name)]
            status = "lost" if name in lost else "ok" if np.isfinite(samples).all() else "samples are not finite"
            if status == "ok":
                self._receive(name, slot, grant, samples)
            actions += self._scheduler.acknowledge(name, [grant], status)
        return actions

    def _receive(self, name: str, slot: Slot, grant: Grant, samples: np.ndarray) -> None:
        correction = self._corrections[name]
        if correction is not None:
            samples = correction.receive(samples, grant.start)
        self._acting[name][slot.purpose].receive(slot, grant, samples)

    def _conclude(self, phase: str, grants: Sequence[Grant]) -> list:
        """Have the phase's collector make its product; returns what the scheduler does next."""
        purpose = self._schedule.slots[grants[0].slot].purpose
        results = {name: _laid_out(roles[purpose].results(grants)) for name, roles in self._acting.items()}
        collector = next(member for member in self._collectors if phase in member.phases)
        product = collector.produce(phase, grants, {name: values for name, values in results.items() if values})
        return self._scheduler.produced(replace(product, values=_laid_out(product.values)))


def _laid_out(values: Mapping[str, object] | None) -> dict[str, object]:
    """Values, arrays laid out as messages carry them: sums over other layouts differ in their last bits."""
    return {key: np.array(value, order="C") if isinstance(value, np.ndarray) else value
            for key, value in (values or {}).items()}
