# SPDX-License-Identifier: GPL-3.0-or-later
"""The state machine that walks through a schedule: events in, actions out, no clock and no messages of its own.

Start samples are given out in the order of release, and a failed slot of an open-loop phase is repeated at the
phase's end, so that the run on the air is the same whatever the order in which acknowledgements arrive.
"""

import itertools
from bisect import insort
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .confirmations import OK, Confirmations
from .slots import Grant, Phase, Product, Schedule


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
        Ports of the nodes whose bursts a radio confirms, see `sent`: what a burst was for is done only with the
        confirmation of each port, since the others receive noise just as well. In an open-loop phase that is its slot,
        which is repeated where a burst was not sent. A lock-step phase goes on without confirmations, which come late;
        it ends only with all of them, and is repeated as a whole where a burst was not sent: what followed built on it.
    lead_samples, reactive_lead_samples : int
        How long before its start a slot of an open-loop and of a lock-step phase is released, where the `time` is told.
    max_lead_samples : int
        Up to which both are doubled when a burst came too late.
    early_samples : int
        How much longer than that before its start a slot may be released where the `time` is told and nothing is in
        flight. Slots that begin later, of a paced phase for example, are held until then.
    confirmation_samples : int, optional
        How long after its slot a burst may be confirmed, where the `time` is told; None: until the watchdog asks.

    Every event method returns the actions to carry out, in order. After `Finished` all events are ignored.
    """

    def __init__(self, schedule: Schedule, *, max_attempts: int = 3, first_start: int = 0, guard_samples: int = 0,
                 until_sample: int = 0, confirmed: Mapping[str, int] | None = None, lead_samples: int = 0,
                 reactive_lead_samples: int = 0, max_lead_samples: int = 0, early_samples: int = 0,
                 confirmation_samples: int | None = None):
        if max_attempts < 1:
            raise ValueError(f"max_attempts = {max_attempts}: must be at least 1")
        if min(lead_samples, reactive_lead_samples) < 0:
            raise ValueError(f"lead_samples = {lead_samples}, reactive_lead_samples = {reactive_lead_samples}: must "
                             "not be negative")
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
        self._confirmations = Confirmations(confirmed or {}, schedule.slot_samples)
        self._patience = None if confirmation_samples is None else schedule.slot_samples + confirmation_samples
        self._spoiled: dict[int, dict[str, str]] = {}  # bursts not sent in a lock-step phase, by slot and port
        self._leads, self._max_lead = (reactive_lead_samples, lead_samples), max_lead_samples
        self._early = early_samples
        self._now: int | None = None
        self._held_until: int | None = None  # when the next slot is released
        self._lead_known_at = first_start
        self._failures: dict[int, dict[str, str]] = {}  # what went wrong in them, by slot and node
        self._attempts: dict[int, int] = {}
        self._tries: dict[int, int] = {}
        self._rounds = 0  # of a lock-step phase
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
        return self._settle(over)

    def sent(self, node: str, port: int, sample: int | None, status: str = OK, late: bool = False) -> list[Action]:
        """A radio has said what became of a burst of one port: "ok" with the first sample after it, or what went wrong.

        What went wrong carries the time at which it was found, if any; `late` says that the burst came too late.
        """
        meant = None if self.finished else self._confirmations.take(node, port, sample, status)
        if meant is None:
            return []
        sender, grant = meant
        if late:
            self._lengthen_lead(grant)
        return self._confirmed([(sender, grant, status)])

    def _confirmed(self, told: Sequence[tuple[str, Grant, str]]) -> list[Action]:
        """Go on after what was told of bursts: sender, attempt, and "ok" or what went wrong."""
        failures = self._spoiled if self._in_lock_step else self._failures
        for sender, grant, status in told:
            if status != OK:
                failures.setdefault(grant.slot, {})[sender] = status
        if not self._in_lock_step:
            return self._settle({grant for _, grant, _ in told})
        return [] if self._pending else self._advance()

    def _lengthen_lead(self, grant: Grant) -> None:
        """Double the leads, unless the burst that came too late was released with shorter ones than these."""
        if grant.start >= self._lead_known_at:
            self._leads = tuple(max(lead, min(2 * lead, self._max_lead)) for lead in self._leads)
            self._lead_known_at = self._next_start

    @property
    def lead_samples(self) -> int:
        """How long before its start a slot of the phase under way is released."""
        return self._leads[0 if self._in_lock_step else 1]

    @property
    def _in_lock_step(self) -> bool:
        return self.phase is not None and self.phase.window == 1

    @property
    def holding(self) -> bool:
        """Whether the next slot begins so late that it is not released yet: until then nothing is awaited."""
        return self._held_until is not None and not self.finished

    def time(self, sample: int) -> list[Action]:
        """It is this absolute sample on the radios: no slot that is released from now on begins before the lead."""
        self._now = sample
        if overdue := [] if self._patience is None else self._confirmations.overdue(sample - self._patience):
            return self._confirmed([(name, grant, "not confirmed") for name, grant in overdue])
        return self._advance() if self.holding and sample >= self._held_until else []

    def _keep_lead(self, idle_samples: int = 0) -> None:
        """Begin late enough for a slot with so many idle samples before it."""
        if self._now is not None:
            self._next_start = max(self._next_start, self._now + self.lead_samples - idle_samples)

    def _hold(self, start: int) -> bool:
        """Whether it is too early to release a slot that begins then."""
        release = start - self.lead_samples - self._early
        hold = self._now is not None and not self._pending and self._now < release
        self._held_until = release if hold else None
        return hold

    def _settle(self, over: set[Grant]) -> list[Action]:
        """Go on where nothing more is awaited of these attempts."""
        complete = over.difference(*self._awaited.values())
        if not self._in_lock_step:
            complete = complete.difference(*self._confirmations.awaited.values())
        return self._complete(complete) if complete else []

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
        if self.holding:
            return self._finish(f"{_names(silent)} stopped answering before phase {self.phase.name}") if silent else []
        if self._waiting_ready:
            return self._finish(f"no ready message from {_names(silent or self._waiting_ready)}")
        if self._pending or self._confirmations.awaited:
            return self._give_up_on_missing(silent)
        if self._product is not None:
            return self._finish(f"phase {self.phase.name}: product not acknowledged by {_names(self._waiting_product)}")
        missing = _names(silent) or "its collector"
        return self._finish(f"phase {self.phase.name}: no product, results missing from {missing}")

    def failed(self, error: str) -> list[Action]:
        """A block has failed with this error."""
        return [] if self.finished else self._finish(error)

    def _give_up_on_missing(self, silent: list[str]) -> list[Action]:
        parties, pending = {**self._awaited, **self._confirmations.awaited}, set(self._pending.values())
        attempts = sorted(pending.union(*parties.values()))
        lost = {grant: [party for party, own in parties.items() if grant in own] for grant in attempts}
        for own in (self._pending, self._failures, self._confirmations, *self._awaited.values()):
            own.clear()
        if silent:
            first = attempts[0]
            return self._finish(f"{_names(silent)} stopped answering: slot {first.slot} "
                                f"({self._purpose(first.slot)}), attempt {first.attempt}, not acknowledged")
        for grant, missing in lost.items():
            failures = dict.fromkeys(missing, "no acknowledgement")
            if grant not in pending:
                self._spoiled[grant.slot] = failures
            elif actions := self._retry(grant.slot, failures):
                return actions
        return self._advance()

    def _purpose(self, slot: int) -> str:
        return self._schedule.slots[slot].purpose

    def _retry(self, slot: int, failures: dict[str, str]) -> list[Action]:
        """Queue another attempt; the actions are empty unless there were too many."""
        if self._tries[slot] >= self._max_attempts:
            return self._fail(slot, failures)
        if self.phase.window == 1:
            self._confirmations.forget(slot)
            insort(self._queue, slot)
            self._next_start += self._guard
        else:
            self._retries.append(slot)
        return []

    def _fail(self, slot: int, failures: dict[str, str]) -> list[Action]:
        what = ", ".join(f"node {node}: {status}" for node, status in sorted(failures.items()))
        return self._finish(f"slot {slot} ({self._purpose(slot)}) failed in {self._max_attempts} attempts: {what}")

    def _repeat_phase(self) -> list[Action]:
        """Play all slots of a lock-step phase once more, since bursts of it were not sent."""
        if self._rounds >= self._max_attempts:
            return self._fail(*min(self._spoiled.items()))
        self._spoiled.clear()
        self._confirmations.clear()
        for slot in self.phase.slots:
            self._done.pop(slot, None)
        self._next_start += self._guard
        self._play_phase()
        return self._advance()

    def _play_phase(self) -> None:
        self._rounds += 1
        self._tries.clear()
        self._queue = list(self.phase.slots)

    def _advance(self) -> list[Action]:
        if self._spoiled:
            return [] if self._pending else self._repeat_phase()
        if not self._queue and not self._pending and self._retries:
            self._queue = sorted(self._retries)
            self._retries = []
        if not self._queue and not self._pending:
            if self._confirmations.awaited:
                return []
            phase = self.phase
            self._next_start += self._guard
            return [PhaseDone(phase.name, tuple(self._done[slot] for slot in phase.slots))]
        room = self.phase.window - len(self._pending)
        # Refill by half windows: one message then carries many slots.
        if not self._queue or room < max(1, min(len(self._queue), self.phase.window // 2)):
            return []
        if self._in_lock_step:
            room = self._num_joined()
        idle = self._schedule.slots[self._queue[0]].idle_samples
        if self._hold(self._next_start + idle):
            return []
        self._keep_lead(idle)
        grants = tuple(map(self._grant, self._queue[:room]))
        del self._queue[:room]
        self._await(grants)
        return [Release(grants)]

    def _num_joined(self) -> int:
        """How many slots at the head of a lock-step phase's queue are released together."""
        joined = itertools.takewhile(lambda slot: self._schedule.slots[slot].follows, self._queue[1:])
        return 1 + sum(1 for _ in joined)

    def _await(self, grants: tuple[Grant, ...]) -> None:
        for node in self._schedule.nodes:
            self._awaited[node].update(grants)
        self._confirmations.expect(grants, self._schedule.slots, self._now or 0)

    def _grant(self, slot: int) -> Grant:
        # Attempts are counted through all cycles, so that each has its own name; tries begin anew with the phase.
        attempt = self._attempts[slot] = self._attempts.get(slot, -1) + 1
        self._tries[slot] = self._tries.get(slot, 0) + 1
        self._next_start += self._schedule.slots[slot].idle_samples
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
        self._keep_lead()
        if self.phase.paced:
            self._paced_start = self._next_start = max(self._next_start, self._paced_start + self._pace)
        self._rounds = 0
        self._play_phase()
        return self._advance()

    def _finish(self, error: str | None) -> list[Action]:
        self.finished = True
        return [Finished(error)]


def _names(nodes: Iterable[str]) -> str:
    return ", ".join(f"node {node}" for node in sorted(nodes))
