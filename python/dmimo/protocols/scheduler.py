# SPDX-License-Identifier: GPL-3.0-or-later
"""The state machine that walks through a schedule: events in, actions out, no clock and no messages of its own.

Start samples are given out in the order of release, and a failed slot of an open-loop phase is repeated at the
phase's end, so that the run on the air is the same whatever the order in which acknowledgements arrive.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from .slots import Grant, Phase, Product, Schedule

OK = "ok"


@dataclass(frozen=True)
class Release:
    """Release these attempts, in this order."""

    grants: tuple[Grant, ...]


@dataclass(frozen=True)
class PhaseDone:
    """All slots of the phase are complete: these attempts count."""

    phase: str
    grants: tuple[Grant, ...]


@dataclass(frozen=True)
class Publish:
    """Give this product to every node."""

    product: Product


@dataclass(frozen=True)
class Finished:
    """The run is over; `error` is None where it succeeded."""

    error: str | None = None


Action = Release | PhaseDone | Publish | Finished


class SlotScheduler:
    """Releases the slots of a schedule phase by phase, repeats failed ones and waits at the barriers.

    Parameters
    ----------
    schedule : Schedule
    max_attempts : int
        Attempts at one slot before the run fails.
    first_start : int
        Absolute sample of the first slot.
    guard_samples : int
        Idle samples after a phase, and before a lock-step slot is repeated.
    until_sample : int
        Absolute sample up to which the schedule's cycle is begun again; the phases are walked through at least once.
    confirmed : mapping of node to int
        Ports of the nodes whose bursts a radio confirms, see `sent`: a slot in which they transmit is complete only
        with the confirmation of each port, since the others receive noise just as well.

    Every event method returns the actions to carry out, in order. After `Finished` all events are ignored.
    """

    def __init__(self, schedule: Schedule, *, max_attempts: int = 3, first_start: int = 0, guard_samples: int = 0,
                 until_sample: int = 0, confirmed: Mapping[str, int] | None = None):
        if max_attempts < 1:
            raise ValueError(f"max_attempts = {max_attempts}: must be at least 1")
        self._schedule = schedule
        self._max_attempts = max_attempts
        self._guard = guard_samples
        self._until = until_sample
        self._pace = 0
        self._paced_start = self._next_start = first_start
        self._phase_index = -1
        self._queue: list[int] = []
        self._retries: list[int] = []
        self._pending: dict[int, Grant] = {}  # attempts in flight, by slot
        self._awaited: dict[str, set[Grant]] = {node: set() for node in schedule.nodes}  # which of them, by node
        self._confirmed = dict(confirmed or {})
        self._awaited |= {_sender(node, port): set() for node, num in self._confirmed.items() for port in range(num)}
        self._failures: dict[int, dict[str, str]] = {}  # what went wrong in them, by slot and node
        self._attempts: dict[int, int] = {}
        self._tries: dict[int, int] = {}
        self._done: dict[int, Grant] = {}
        self._waiting_ready = set(schedule.nodes)
        self._product: Product | None = None
        self._waiting_product: set[str] = set()
        self._cycles = 0
        self.finished = False
        self.releases = 0
        self.end_sample = first_start

    @property
    def phase(self) -> Phase | None:
        """Phase under way, None before the first."""
        return self._schedule.phases[self._phase_index] if self._phase_index >= 0 else None

    @property
    def completed(self) -> int:
        """Number of slots completed."""
        return len(self._done)

    def ready(self, node: str, schedule_hash: str) -> list[Action]:
        """A node has reported that it holds the schedule of this hash."""
        if self.finished or node not in self._waiting_ready:
            return []
        if schedule_hash != self._schedule.hash:
            return self._finish(f"node {node} holds another schedule: hash {schedule_hash[:12]}, "
                                f"must be {self._schedule.hash[:12]}")
        self._waiting_ready.discard(node)
        return [] if self._waiting_ready else self._next_phase()

    def acknowledge(self, node: str, grants: Iterable[Grant], status: str = OK) -> list[Action]:
        """A node has finished these attempts; `status` is "ok" or says what went wrong in all of them."""
        if self.finished:
            return []
        awaited = self._awaited.get(node, set())
        over = awaited.intersection(grants)
        awaited -= over
        if status != OK:
            for grant in over:
                self._failures.setdefault(grant.slot, {})[node] = status
        complete = over.difference(*self._awaited.values())
        return self._complete(complete) if complete else []

    def sent(self, node: str, port: int, sample: int | None, status: str = OK) -> list[Action]:
        """A radio has said what became of a burst of one port: "ok" with the first sample after it, or what went wrong.

        What went wrong carries the time at which it was found, if any. A radio works bursts off in order, so that it
        means the first one that is still awaited.
        """
        sender, length = _sender(node, port), self._schedule.slot_samples
        awaited = sorted(self._awaited.get(sender, ()), key=lambda grant: grant.start)
        if status == OK:
            awaited = [grant for grant in awaited if sample is not None and 0 < sample - grant.start <= length]
        return self.acknowledge(sender, awaited[:1], status)

    def not_before(self, sample: int) -> None:
        """No slot that is released from now on may begin before this absolute sample."""
        self._next_start = max(self._next_start, sample)

    def _complete(self, complete: Iterable[Grant]) -> list[Action]:
        """All nodes have finished these attempts."""
        for grant in sorted(complete):
            slot = grant.slot
            del self._pending[slot]
            failures = self._failures.pop(slot, None)
            if failures is None:
                self._done[slot] = grant
            elif actions := self._retry(slot, failures):
                return actions
        return self._advance()

    def produced(self, product: Product) -> list[Action]:
        """The collector of the phase under way has made its product."""
        if self.finished or self._product is not None or self.phase is None or product.phase != self.phase.name:
            return []
        if not product.trusted:
            return self._finish(f"phase {product.phase}: not trusted: " + "; ".join(product.reasons))
        self._product = product
        if product.pace_samples is not None:
            self._pace = product.pace_samples
        self._waiting_product = set(self._schedule.nodes)
        return [Publish(product)]

    def product_acknowledged(self, node: str, phase: str) -> list[Action]:
        """A node has taken the product of a phase."""
        if self.finished or self._product is None or phase != self._product.phase:
            return []
        self._waiting_product.discard(node)
        return [] if self._waiting_product else self._next_phase()

    def timed_out(self, silent: Iterable[str] = ()) -> list[Action]:
        """Nothing has happened for as long as the watchdog waits; `silent` nodes did not answer a query either."""
        if self.finished:
            return []
        silent = sorted(silent)
        if self._waiting_ready:
            return self._finish(f"no ready message from {_names(silent or self._waiting_ready)}")
        if self._pending:
            return self._give_up_on_pending(silent)
        if self._product is not None:
            return self._finish(f"phase {self.phase.name}: product not acknowledged by {_names(self._waiting_product)}")
        missing = _names(silent) or "its collector"
        return self._finish(f"phase {self.phase.name}: no product, results missing from {missing}")

    def failed(self, error: str) -> list[Action]:
        """A block has failed with this error."""
        return [] if self.finished else self._finish(error)

    def _give_up_on_pending(self, silent: list[str]) -> list[Action]:
        lost = {grant: [node for node, awaited in self._awaited.items() if grant in awaited]
                for grant in sorted(self._pending.values())}
        for attempts in (self._pending, self._failures, *self._awaited.values()):
            attempts.clear()
        if silent:
            first = next(iter(lost))
            return self._finish(f"{_names(silent)} stopped answering: slot {first.slot} "
                                f"({self._purpose(first.slot)}), attempt {first.attempt}, not acknowledged")
        for grant, nodes in lost.items():
            if actions := self._retry(grant.slot, dict.fromkeys(nodes, "no acknowledgement")):
                return actions
        return self._advance()

    def _purpose(self, slot: int) -> str:
        return self._schedule.slots[slot].purpose

    def _retry(self, slot: int, failures: dict[str, str]) -> list[Action]:
        """Queue another attempt; the actions are empty unless there were too many."""
        if self._tries[slot] >= self._max_attempts:
            what = ", ".join(f"node {node}: {status}" for node, status in sorted(failures.items()))
            return self._finish(f"slot {slot} ({self._purpose(slot)}) failed in {self._max_attempts} attempts: {what}")
        if self.phase.window == 1:
            self._queue.insert(0, slot)
            self._next_start += self._guard
        else:
            self._retries.append(slot)
        return []

    def _advance(self) -> list[Action]:
        if not self._queue and not self._pending and self._retries:
            self._queue = sorted(self._retries)
            self._retries = []
        if not self._queue and not self._pending:
            phase = self.phase
            self._next_start += self._guard
            return [PhaseDone(phase.name, tuple(self._done[slot] for slot in phase.slots))]
        room = self.phase.window - len(self._pending)
        # Refill by half windows: one message then carries many slots.
        if not self._queue or room < max(1, min(len(self._queue), self.phase.window // 2)):
            return []
        grants = tuple(map(self._grant, self._queue[:room]))
        del self._queue[:room]
        self._await(grants)
        return [Release(grants)]

    def _await(self, grants: tuple[Grant, ...]) -> None:
        for node in self._schedule.nodes:
            self._awaited[node].update(grants)
        for grant in grants if self._confirmed else ():
            for node in self._schedule.slots[grant.slot].transmitters:
                for port in range(self._confirmed.get(node, 0)):
                    self._awaited[_sender(node, port)].add(grant)

    def _grant(self, slot: int) -> Grant:
        # Attempts are counted through all cycles, so that each has its own name; tries begin anew with the phase.
        attempt = self._attempts[slot] = self._attempts.get(slot, -1) + 1
        self._tries[slot] = self._tries.get(slot, 0) + 1
        grant = Grant(slot, attempt, self._next_start)
        self._next_start += self._schedule.slot_samples
        self.end_sample = self._next_start
        self.releases += 1
        self._pending[slot] = grant
        return grant

    def _next_phase(self) -> list[Action]:
        self._product = None
        self._phase_index += 1
        if self._phase_index == len(self._schedule.phases):
            self._cycles += 1
            enough = self._cycles >= self._schedule.cycles and self._next_start >= self._until
            if self._schedule.cycle == 0 or enough:
                return self._finish(None)
            self._phase_index -= self._schedule.cycle
        if self.phase.paced:
            self._paced_start = self._next_start = max(self._next_start, self._paced_start + self._pace)
        self._tries.clear()
        self._queue = list(self.phase.slots)
        return self._advance()

    def _finish(self, error: str | None) -> list[Action]:
        self.finished = True
        return [Finished(error)]


def _names(nodes: Iterable[str]) -> str:
    return ", ".join(f"node {node}" for node in sorted(nodes))


def _sender(node: str, port: int) -> str:
    return f"{node} sending on port {port}"
