# SPDX-License-Identifier: GPL-3.0-or-later
"""Releases the slots of a schedule to all nodes, waits for their acknowledgements and ends the run."""

import threading
import time
from collections.abc import Mapping, Sequence

import pmt

from ..protocols import scheduler as machine
from ..protocols.slots import Schedule
from ..radio_clock import Radios
from ..radio_settings import unequal_carriers
from . import messages
from .guard import guarded
from .lean import lean_message_block

CONTROL, PHASES, FINISHED = (pmt.intern(name) for name in ("control", "phases", "finished"))
WATCHDOG = pmt.intern("watchdog")
CONFIRMATION_S = 3.0  # gr-uhd tells of one port after the other, a tenth or two of a second each
MAX_LEAD_S = 1.0  # of late bursts; what is asked for may be more
EARLY_S = 0.2  # more than the lead: the time of a radio comes every 50 ms, and messages take time
JOIN_TIMEOUT_S = 10.0
SILENCE_S = 2.0  # without the time of a radio, which comes every 50 ms
TOO_LATE = "time_error"  # UHD's name of a burst that came after its time


class slot_scheduler(lean_message_block):
    """Walks through a schedule: `begin`, grants phase by phase, products to all nodes, `end`.

    Where nothing happens for `watchdog_s`, all nodes are queried; slots without an acknowledgement are repeated, and a
    node that does not answer ends the run with an error that names it.

    The run begins when the flowgraph starts. With `radios` (`usrp_array`, under these names) it waits for all of them
    to report their time, tells each by how many whole seconds to shift it, so that all have the time of the latest, and
    begins when the streams of all run. Slots then begin a lead after their release, by the radios' own time; those that
    are to begin later are released shortly before the lead. A burst that comes too late doubles the lead, up to a
    second or what was asked for. Where a radio's epoch ends, through a retune for example, the
    run ends with an error; runs that go on until they are stopped begin anew. In a simulation nothing but the watchdog
    depends on a clock.

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
    radios : sequence of str
        Radios of the nodes; none: a simulated network.
    samp_rate : float, optional
        Required with radios.
    lead_s, reactive_lead_s : float
        How long before its start a slot of an open-loop and of a lock-step phase is released [s].
    confirmed : mapping of node to int, optional
        Ports of the nodes whose radio confirms every burst, see `protocols.scheduler.SlotScheduler`.
    radio_timeout_s : float
        Limit of the time that the radios take until all stream [s].
    """

    def __init__(self, schedule: Schedule, max_attempts: int = 3, watchdog_s: float = 20.0, epoch: int = 0,
                 guard_samples: int = 0, runs: int = 1, pause_samples: int = 0, until_sample: int = 0,
                 radios: Sequence[str] = (), samp_rate: float | None = None, lead_s: float = 0.1,
                 reactive_lead_s: float = 0.05, confirmed: Mapping[str, int] | None = None,
                 radio_timeout_s: float = 30.0):
        lean_message_block.__init__(self, "slot_scheduler")
        if not (watchdog_s > 0 and radio_timeout_s > 0):
            raise ValueError(f"watchdog_s = {watchdog_s}, radio_timeout_s = {radio_timeout_s}: must be positive")
        self._schedule = schedule
        if min(runs, pause_samples, until_sample) < 0:
            raise ValueError(f"runs = {runs}, pause_samples = {pause_samples}, until_sample = {until_sample}: "
                             "must not be negative")
        self._options = {"max_attempts": max_attempts, "guard_samples": guard_samples, "confirmed": confirmed}
        self._until = until_sample
        self._radio_names, self._samp_rate = tuple(radios), samp_rate
        self._radios: Radios | None = None
        self._carriers: dict[str, Sequence[tuple[float, float]]] = {}
        self._radio_timeout_s = radio_timeout_s
        if self._radio_names:
            self._options |= _leads(samp_rate, lead_s, reactive_lead_s)
        self._began = False
        self._waiting_since = 0.0
        self._runs, self._pause_samples = runs, pause_samples
        self._first_epoch = self._epoch = epoch
        self._prepare(0, 0)
        self._watchdog_s = watchdog_s
        self._watchdog: threading.Thread | None = None
        self._events = 0
        self._events_seen = -1
        self._alive: set[str] | None = None
        self.finished_event = threading.Event()
        self.error: str | None = None
        for port, handler in (("status", self.handle_status), ("products", self.handle_product),
                              ("watchdog", self.handle_watchdog)):
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

    @property
    def epoch(self) -> int:
        """Epoch of the run, see `messages`."""
        return self._epoch

    @property
    def first_sample(self) -> int:
        """First absolute sample of the run's first slot."""
        return self._first_sample

    def _prepare(self, run: int, first_start: int) -> None:
        # A simulation counts its time from zero, radios count theirs from anywhere.
        until = self._until + first_start * bool(self._radio_names)
        self._machine = machine.SlotScheduler(self._schedule, first_start=first_start, until_sample=until,
                                              **self._options)
        self._first_sample = first_start
        self._identity = {"run": run, "epoch": self._epoch}
        self._grant = messages.encode("grant", **self._identity)

    def _begin_run(self, run: int, first_start: int) -> None:
        """Ask all nodes whether they hold the schedule."""
        self._prepare(run, first_start)
        self._began = True
        self._tell_time()
        self._tell_all(messages.encode("begin", hash=self._schedule.hash, **self._identity))

    def _tell_all(self, message) -> None:
        """Tell nodes and collectors; grants and queries go to the nodes only."""
        self.message_port_pub(PHASES, message)
        self.message_port_pub(CONTROL, message)

    def start(self):
        """Begin the run, or wait for the radios."""
        super().start()
        self._forget()
        if self._radio_names:
            self._radios = Radios(self._radio_names, self._samp_rate)
            self._carriers.clear()
            self._waiting_since = time.monotonic()
        else:
            self._begin_run(0, 0)
        self._watchdog = threading.Thread(target=self._watch, name="slot_scheduler watchdog", daemon=True)
        self._watchdog.start()
        return True

    def _forget(self) -> None:
        """Be as before the first start."""
        if self._watchdog is not None:
            self._watchdog.join(JOIN_TIMEOUT_S)
        self._began, self.error, self._alive = False, None, None
        self.finished_event.clear()
        self._epoch = self._first_epoch
        self._prepare(0, 0)

    def stop(self):
        """A flowgraph that is stopped from outside ends the run too."""
        self.abandon("the flowgraph was stopped before the run had finished")
        return super().stop()

    def abandon(self, error: str) -> None:
        """End a run that has not finished, with this error; the nodes are not told."""
        if not self.finished_event.is_set():
            self.error = error
            self.finished_event.set()

    def _watch(self) -> None:
        start_s = min(self._watchdog_s, self._radio_timeout_s)
        while not self.finished_event.wait(self._watchdog_s if self._began else start_s):
            self._post(WATCHDOG, pmt.PMT_T)

    def _tell_time(self) -> None:
        """Tell the machine what time it is on the radios."""
        if self._began and self._radios is not None and not self._machine.finished:
            self._act(self._machine.time(self._radios.now(time.monotonic())))

    @guarded
    def handle_status(self, message):
        """A node or radio has answered; anything that is no status message is an error of a block."""
        kind = messages.kind(message)
        if kind.startswith("radio_"):
            self._radio_status(kind, message)
            return
        self._tell_time()
        self._events += 1
        if messages.run(message) not in (self._identity["run"], None):
            return  # of a run that is over
        if kind == "ack":
            self._act(self._machine.acknowledge(*messages.ack(message)))
        elif kind == "sent":
            self._burst_sent(**messages.values(message))
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

    def _burst_sent(self, node: str, port: int, event: str, status: str, sample: int | None = None, **_) -> None:
        """A node has told what its radio says of a burst."""
        self._act(self._machine.sent(node, port, sample, status, event == TOO_LATE))

    def _radio_status(self, kind: str, message) -> None:
        """A radio has told its time, or what has become of it."""
        radio = messages.get(message, "radio")
        if self._radios is None:
            self._act(self._machine.failed(f"radio {radio}: the scheduler was given no radios"))
        elif kind == "radio_time":
            self._radios.report(radio, messages.get(message, "sample"), time.monotonic(),
                                messages.get(message, "asked"))
            self._ask(radio)
            self._align()
            self._tell_time()
        elif kind == "radio_begin":
            if self._began:
                self._interrupt(radio, "it has begun anew")
            self._radios.begun(radio, messages.get(message, "sample"), messages.get(message, "epoch"))
            self._compare_carriers(radio, messages.values(message).get("carriers", ()))
        elif kind == "radio_epoch":
            self._radios.interrupted(radio, messages.get(message, "epoch"))
            self._interrupt(radio, messages.get(message, "reason"))
        if self._radios is not None and self._radios.ready and not (self._began or self._machine.finished):
            self._epoch = self._radios.epoch
            first = self._radios.first_sample + self._options["lead_samples"]
            self._begin_run(self._identity["run"], max(self._machine.end_sample, first))

    def _compare_carriers(self, radio: str, carriers: Sequence[tuple[float, float]]) -> None:
        """Radios that share a reference must have come to the same carriers."""
        self._carriers[radio] = carriers
        if fault := unequal_carriers(self._carriers):
            self._act(self._machine.failed(fault))

    def _ask(self, radio: str) -> None:
        """Tell several radios the time of asking for theirs, which bounds it from the other side; by the first's."""
        if radio == self._radio_names[0] and len(self._radio_names) > 1:
            self.message_port_pub(CONTROL, messages.encode("ask", time=time.monotonic()))

    def _align(self) -> None:
        """Tell the radios how to come to a common time, once they are known well enough; a run has one."""
        apart = self._radios.apart() if self._began else {}
        for radio, fault in list(apart.items())[:1]:
            self._radios.compare_again()
            self._interrupt(radio, fault)
        if self._machine.finished:
            return
        shifts, faults = self._radios.align()
        if faults:
            self._act(self._machine.failed("; ".join(faults.values())))
        for radio, seconds in shifts.items():
            self.message_port_pub(CONTROL, messages.encode("align", radio=radio, seconds=seconds))

    def _interrupt(self, radio: str, reason: str) -> None:
        """An epoch has ended: what was measured is of no use any more."""
        if not self._began or self._machine.finished:
            return
        if self._runs != 0:
            reason = reason.removeprefix(f"radio {radio}: ")
            self._act(self._machine.failed(f"radio {radio}: its epoch has ended: {reason}"))
            return
        self._began, self._waiting_since = False, time.monotonic()
        self._prepare(self._identity["run"] + 1, self._machine.end_sample)

    @guarded
    def handle_product(self, message):
        """A collector has produced what its phase was for."""
        self._tell_time()
        self._events += 1
        if messages.kind(message) == "product":
            if messages.run(message) in (self._identity["run"], None):
                self._act(self._machine.produced(messages.product(message)))
        else:
            self.handle_status(message)

    def handle_error(self, text: str) -> None:
        """End the run because the scheduler itself has failed."""
        self._act(self._machine.failed(text))

    @guarded
    def handle_watchdog(self, message):
        """First silence: query the nodes. Second: give up on what is missing."""
        self._tell_time()
        if not self._began:
            if time.monotonic() - self._waiting_since >= self._radio_timeout_s:
                self._act(self._machine.failed(f"{self._radios.missing()} within {self._radio_timeout_s:g} s"))
        elif self._events != self._events_seen:
            self._events_seen, self._alive = self._events, None
        elif self._alive is None:
            self._alive = set()
            self.message_port_pub(CONTROL, messages.encode("query", **self._identity))
        else:
            silent = set(self._schedule.nodes) - self._alive
            self._alive = None
            self._act(self._silent_radios() or self._machine.timed_out(silent))

    def _silent_radios(self) -> list[machine.Action]:
        """The end of the run where a radio no longer tells its time."""
        silent = [] if self._radios is None else self._radios.silent(time.monotonic(), SILENCE_S)
        return self._machine.failed(f"radio {', '.join(silent)}: no longer reports its time") if silent else []

    def _act(self, actions: list[machine.Action]) -> None:
        for action in actions:
            match action:
                case machine.Release(grants):
                    if self._machine.releases == len(grants):
                        self._first_sample = grants[0].start
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
            self._begin_run(run + 1, self._machine.end_sample + self._pause_samples)
            return
        self.error = error
        message = messages.encode("end", error=error or "", **self._identity)
        self._tell_all(message)
        self.message_port_pub(FINISHED, message)
        self.finished_event.set()
        self._post(messages.SYSTEM, messages.DONE)


def _leads(samp_rate: float | None, lead_s: float, reactive_lead_s: float) -> dict[str, int]:
    """Options of the state machine, in samples."""
    if samp_rate is None or not samp_rate > 0:
        raise ValueError(f"samp_rate = {samp_rate}: must be positive with radios")
    if min(lead_s, reactive_lead_s) < 0:
        raise ValueError(f"lead_s = {lead_s}, reactive_lead_s = {reactive_lead_s}: must not be negative")
    seconds = {"lead_samples": lead_s, "reactive_lead_samples": reactive_lead_s, "early_samples": EARLY_S,
               "confirmation_samples": CONFIRMATION_S,
               "max_lead_samples": max(MAX_LEAD_S, lead_s, reactive_lead_s)}
    return {key: round(value * samp_rate) for key, value in seconds.items()}
