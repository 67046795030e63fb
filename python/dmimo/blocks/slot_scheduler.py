# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases the slots of a schedule to all nodes, waits for their acknowledgements and ends the run."""

import threading
from collections.abc import Callable, Mapping

import pmt

from ..protocols import scheduler as machine
from ..protocols.slots import Schedule
from . import messages
from .guard import guarded
from .lean import lean_message_block

CONTROL, PHASES, FINISHED = (pmt.intern(name) for name in ("control", "phases", "finished"))
WATCHDOG = pmt.intern("watchdog")


class slot_scheduler(lean_message_block):
    """Walks through a schedule: `begin`, grants phase by phase, products to all nodes, `end`.

    The run begins when the flowgraph starts. Where nothing happens for `watchdog_s`, all nodes are queried; slots
    without an acknowledgement are repeated, and a node that does not answer ends the run with an error that names it.
    In a simulation nothing else depends on the clock.

    Parameters
    ----------
    schedule : Schedule
    max_attempts : int
        Attempts at one slot before the run fails.
    watchdog_s : float
    epoch : int
        Carried in every message.
    guard_samples : int
        Idle samples after a phase.
    runs : int
        How often to walk through the schedule; 0: until the flowgraph is stopped.
    pause_samples : int
        Idle samples between runs.
    until_sample : int
        Absolute sample up to which the cycle of the schedule, if it has one, is begun again.
    clock : callable() -> int, optional
        For radios: first absolute sample at which a burst that is released now can be sent, device time and lead. The
        run then begins with `begin`.
    confirmed : mapping of node to int, optional
        For radios: ports of the nodes whose bursts are confirmed on the port `events` (`usrp_array`). A slot in which
        one of them transmits is complete only when each of its ports has sent its burst.
    """

    def __init__(self, schedule: Schedule, max_attempts: int = 3, watchdog_s: float = 20.0, epoch: int = 0,
                 guard_samples: int = 0, runs: int = 1, pause_samples: int = 0, until_sample: int = 0,
                 clock: Callable[[], int] | None = None, confirmed: Mapping[str, int] | None = None):
        lean_message_block.__init__(self, "slot_scheduler")
        if not watchdog_s > 0:
            raise ValueError(f"watchdog_s = {watchdog_s}: must be positive")
        self._schedule = schedule
        if min(runs, pause_samples, until_sample) < 0:
            raise ValueError(f"runs = {runs}, pause_samples = {pause_samples}, until_sample = {until_sample}: "
                             "must not be negative")
        self._options = {"max_attempts": max_attempts, "guard_samples": guard_samples, "until_sample": until_sample,
                         "confirmed": confirmed}
        self._clock = clock
        self._runs, self._pause_samples = runs, pause_samples
        self._epoch = epoch
        self._prepare(0, 0)
        self._watchdog_s = watchdog_s
        self._watchdog: threading.Thread | None = None
        self._events = 0
        self._events_seen = -1
        self._alive: set[str] | None = None
        self.finished_event = threading.Event()
        self.error: str | None = None
        for port, handler in (("status", self.handle_status), ("products", self.handle_product),
                              ("events", self.handle_event), ("watchdog", self.handle_watchdog)):
            self.message_port_register_in(pmt.intern(port))
            self.set_msg_handler(pmt.intern(port), handler)
        for port in ("control", "phases", "finished", "error"):
            self.message_port_register_out(pmt.intern(port))

    @property
    def completed(self) -> int:
        """Slots completed so far."""
        return self._machine.completed

    @property
    def releases(self) -> int:
        """Attempts released, retries included."""
        return self._machine.releases

    @property
    def end_sample(self) -> int:
        """First absolute sample after the last slot released."""
        return self._machine.end_sample

    def _prepare(self, run: int, first_start: int) -> None:
        self._machine = machine.SlotScheduler(self._schedule, first_start=first_start, **self._options)
        self._identity = {"run": run, "epoch": self._epoch}
        self._grant = messages.encode("grant", **self._identity)

    def _begin(self) -> None:
        """Ask all nodes whether they hold the schedule."""
        self._tell_all(messages.encode("begin", hash=self._schedule.hash, **self._identity))

    def _tell_all(self, message) -> None:
        """Tell nodes and collectors; grants and queries go to the nodes only."""
        self.message_port_pub(PHASES, message)
        self.message_port_pub(CONTROL, message)

    def start(self):
        """Begin the run, unless a radio is to be made ready first."""
        super().start()
        if self._clock is None:
            self.begin()
        return True

    def begin(self, first_sample: int = 0) -> None:
        """Begin the run of a flowgraph that has been started, with no slot before this absolute sample."""
        self._machine.not_before(first_sample)
        self._begin()
        self._watchdog = threading.Thread(target=self._watch, name="slot_scheduler watchdog", daemon=True)
        self._watchdog.start()

    def stop(self):
        """A flowgraph that is stopped from outside ends the run too."""
        if not self.finished_event.is_set():
            self.error = "the flowgraph was stopped before the run had finished"
            self.finished_event.set()
        return super().stop()

    def _watch(self) -> None:
        while not self.finished_event.wait(self._watchdog_s):
            self._post(WATCHDOG, pmt.PMT_T)

    def _keep_lead(self) -> None:
        if self._clock is not None:
            self._machine.not_before(self._clock())

    @guarded
    def handle_event(self, message):
        """A radio has said what became of a burst."""
        self._events += 1
        self._keep_lead()
        event = messages.values(message)
        status = event["error"] or machine.OK
        self._act(self._machine.sent(event["node"], event["port"], event.get("sample"), status))

    @guarded
    def handle_status(self, message):
        """A node has answered; anything that is no status message is an error of a block."""
        self._keep_lead()
        kind = messages.kind(message)
        self._events += 1
        if kind == "ack":
            run, *acknowledged = messages.ack(message)
            if run == self._identity["run"]:
                self._act(self._machine.acknowledge(*acknowledged))
        elif kind == "ready":
            self._act(self._machine.ready(messages.get(message, "node"), messages.get(message, "hash")))
        elif kind == "taken":
            self._act(self._machine.product_acknowledged(messages.get(message, "node"), messages.get(message, "phase")))
        elif kind == "alive":
            if self._alive is not None:
                self._alive.add(messages.get(message, "node"))
            self._events -= 1
        else:
            text = pmt.symbol_to_string(message) if pmt.is_symbol(message) else f"unexpected message {message}"
            self._act(self._machine.failed(text))

    @guarded
    def handle_product(self, message):
        """A collector has produced what its phase was for."""
        self._keep_lead()
        self._events += 1
        if messages.kind(message) == "product":
            self._act(self._machine.produced(messages.product(message)))
        else:
            self.handle_status(message)

    def handle_error(self, text: str) -> None:
        """End the run because the scheduler itself has failed."""
        self._act(self._machine.failed(text))

    @guarded
    def handle_watchdog(self, message):
        """First silence: query the nodes. Second: give up on what is missing."""
        self._keep_lead()
        if self._events != self._events_seen:
            self._events_seen, self._alive = self._events, None
        elif self._alive is None:
            self._alive = set()
            self.message_port_pub(CONTROL, messages.encode("query", **self._identity))
        else:
            silent = set(self._schedule.nodes) - self._alive
            self._alive = None
            self._act(self._machine.timed_out(silent))

    def _act(self, actions: list[machine.Action]) -> None:
        for action in actions:
            match action:
                case machine.Release(grants):
                    message = pmt.dict_add(self._grant, messages.GRANTS, messages.grants_to_pmt(grants))
                    self.message_port_pub(CONTROL, message)
                case machine.PhaseDone(phase, grants):
                    self._tell_all(messages.encode(
                        "phase", phase=phase, grants=messages.grants_to_pmt(grants), **self._identity))
                case machine.Publish(product):
                    self._tell_all(messages.product_to_pmt(product, **self._identity))
                case machine.Finished(error):
                    self._finish(error)

    def _finish(self, error: str | None) -> None:
        run = self._identity["run"]
        if error is None and (self._runs == 0 or run + 1 < self._runs):
            self._prepare(run + 1, self._machine.end_sample + self._pause_samples)
            self._begin()
            return
        self.error = error
        message = messages.encode("end", error=error or "", **self._identity)
        self._tell_all(message)
        self.message_port_pub(FINISHED, message)
        self.finished_event.set()
        self._post(messages.SYSTEM, messages.DONE)
