# SPDX-License-Identifier: GPL-3.0-or-later
"""Makes a radio ready when its flowgraph has started, tells its time, and watches over it."""

import math
import queue
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress

import numpy as np
import pmt

from ..testbed_sections import SHARED_SOURCES
from . import messages
from .guard import guarded
from .lean import lean_message_block
from .radio_start import INTERNAL, RadioError, RadioStart, RadioStopped
from .stream_clock import stream_clock

BEGIN, CONTROL, END, ERROR, STATUS = (pmt.intern(name) for name in ("begin", "control", "end", "error", "status"))
REPORT_PERIOD_S = 0.05
WATCH_PERIOD_S = 0.5
SILENT_WATCHES = 3  # in a row without a sample: the stream has stopped
DRAIN_S = 0.1  # without a sample: nothing of a stream that was ended is left
MAX_DRAINS = 20
STEADY_S = 1.0  # streams that go on for so long are in order again
RESTART_TIMEOUT_S = 5.0  # for which streams may be begun again and again before they are steady
ALIGN_TIMEOUT_S = 10.0
RECOVERY_TIMEOUT_S = 10.0
JOIN_TIMEOUT_S = 10.0


class radio_control(lean_message_block):
    """Carries out the steps of `RadioStart` once all blocks have started, and keeps the radio's epoch from then on.

    All commands to the radio are given on one thread of its own. It begins with a message that the block sends to
    itself when it starts and takes when all blocks of the flowgraph have started: the streamers then exist, as setting
    the time demands. It ends when the block stops, in the middle of a step if need be.

    Every half second each board must have kept its time, its lock and, by the PPS, its second, every synthesizer its
    lock, and every stream must have gone on. Where the clocks were lost, a new epoch begins: time, tuning and streams
    are made anew. After an overflow some radios begin a stream anew off the sample grid, others end it: all streams
    then begin once more on a whole second, in the same epoch, since neither time nor tuning were lost. A board that no
    longer answers, whose time stands still or whose streams do not come back is an error.

    Parameters
    ----------
    name : str
        Of the radio.
    radio : RadioStart
        Its waits become those of this block.
    clocks : sequence of stream_clock
        Of each source of the radio.
    by_hand : bool
        Do nothing of all this.

    Messages
    --------
    control : `align` {radio, seconds}: shift the time by whole seconds at a PPS edge; `ask` {time}: when the scheduler
        asks for the time; `end` ends the block.
    status : `radio_time` {radio, sample, asked}: device time, every 50 ms, and the last `ask` before it was read;
        `radio_begin` {radio, sample, epoch}: streams run from this sample on, with the ports' `carriers` (asked for,
        tuned to) [Hz] on a reference that radios share; `radio_epoch` {radio, epoch, reason}: this epoch has begun,
        since something ended the last.
    error : what went wrong, with the radio's name and the board.
    end : to the sources' `system` ports when the run has ended, so that a flowgraph may end without being stopped.
    """

    def __init__(self, name: str, radio: RadioStart, clocks: Sequence[stream_clock], by_hand: bool = False):
        lean_message_block.__init__(self, "radio_control")
        self._name, self._radio, self._clocks, self._by_hand = name, radio, list(clocks), by_hand
        if not by_hand:
            radio.wait = self._wait
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._requests: queue.SimpleQueue[tuple[str, Callable[[], None]]] = queue.SimpleQueue()
        self._alignments: queue.SimpleQueue[int] = queue.SimpleQueue()
        self._asked = -math.inf  # the scheduler's time at which it last asked for that of the radio [s]
        self._timed = False  # the device time is what it is to be
        self._reported_at = self._watched_at = 0.0  # monotonic clock [s]
        self._first = 0  # sample with which the streams begin
        self._times: list[float] = []
        self._silent: list[tuple[int, int]] = []
        self._troubled: float | None = None  # since when streams have been begun again [s], of the monotonic clock
        self.epoch = 0
        for port, handler in ((BEGIN, self.handle_begin), (CONTROL, self.handle_control)):
            self.message_port_register_in(port)
            self.set_msg_handler(port, handler)
        for port in (STATUS, ERROR, END):
            self.message_port_register_out(port)

    def start(self):
        """Ask for the thread; the message is taken when all blocks have started."""
        super().start()
        self._stopping.clear()
        while not self._alignments.empty():
            self._alignments.get()
        if not self._by_hand:
            self._post(BEGIN, pmt.PMT_T)
        return True

    def stop(self):
        """End the thread, wherever it is."""
        self._join()
        return super().stop()

    @property
    def running(self) -> bool:
        """Whether the radio is being made ready or is ready."""
        return self._thread is not None and self._thread.is_alive()

    def request(self, reason: str, action: Callable[[], None]) -> None:
        """Carry out what ends the epoch, at once in a radio that does not run."""
        self._requests.put((reason, action))
        if not self.running:
            self._carry_out_requests()

    @guarded
    def handle_begin(self, message):
        """Start the thread."""
        if not self.running and not self._stopping.is_set():
            self._thread = threading.Thread(target=self._run, name=f"radio_control {self._name}", daemon=True)
            self._thread.start()

    @guarded
    def handle_control(self, message):
        """Take what the scheduler says to all radios."""
        kind = messages.kind(message)
        if kind == "align" and messages.get(message, "radio") == self._name:
            self._alignments.put(messages.get(message, "seconds"))
        elif kind == "ask":
            self._asked = messages.get(message, "time")
        elif kind == "end":
            self._end()

    def _end(self) -> None:
        """Let the thread, the streams and then this block end. A source is done when nothing comes any more."""
        self._join()
        with suppress(RuntimeError):  # from a board that has vanished, and does not stream
            self._radio.halt()
        self.message_port_pub(END, messages.DONE)
        self._post(messages.SYSTEM, messages.DONE)

    def _join(self) -> None:
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(JOIN_TIMEOUT_S)

    def _run(self) -> None:
        try:
            self._make_ready()
            while True:
                self._wait(REPORT_PERIOD_S)
                self._serve()
                if time.monotonic() - self._watched_at >= WATCH_PERIOD_S:
                    self._watch()
        except RadioStopped:
            return
        except RadioError as error:
            self._fail(str(error))
        except Exception as error:
            self._fail(self._explain(error))

    def _fail(self, text: str) -> None:
        text = f"radio {self._name}: {text}"
        # At once, too: with a board that has vanished gr-uhd may end the process when the flowgraph is stopped.
        self._radio.log.error(text)
        self.message_port_pub(ERROR, pmt.intern(text))

    def _explain(self, error: Exception) -> str:
        """What made UHD throw: boards that do not answer, or else the traceback."""
        dead = self._radio.dead_boards()
        if dead:
            return f"{', '.join(map(self._radio.board_name, dead))} no longer answers: {str(error).strip()}"
        return traceback.format_exc()

    def _wait(self, seconds: float) -> None:
        """Wait, and tell the time meanwhile; RadioStopped if the radio is to stop."""
        until = time.monotonic() + seconds
        while True:
            left = until - time.monotonic()
            if self._stopping.wait(max(0.0, min(left, REPORT_PERIOD_S))):
                raise RadioStopped
            if self._timed and time.monotonic() - self._reported_at >= REPORT_PERIOD_S:
                self._report()
            if left <= REPORT_PERIOD_S:
                return

    def _tell(self, kind: str, **fields) -> None:
        self.message_port_pub(STATUS, messages.encode(kind, radio=self._name, **fields))

    def _report(self) -> None:
        self._reported_at = time.monotonic()
        asked = self._asked  # before the time is read
        self._tell("radio_time", sample=self._radio.now_samples(), asked=asked)

    def _make_ready(self) -> None:
        """All steps of the start, once the streamers exist."""
        self._timed = False
        self._radio.check_references()
        self._radio.set_time()
        self._timed = True
        self._report()
        if not self._radio.soon(lambda: not self._alignments.empty(), ALIGN_TIMEOUT_S):
            raise RadioError(f"no align message within {ALIGN_TIMEOUT_S:g} s: the scheduler must know this radio, and "
                             "its control be connected to the radio's")
        self._shift(self._alignments.get())
        self._new_epoch()
        self._stream()

    def _shift(self, seconds: int) -> None:
        if seconds:
            self._timed = False
            self._radio.shift_time(seconds)
            self._timed = True
            self._report()

    def _stream(self) -> None:
        """Tune, and let the streams begin."""
        self._carry_out_requests()
        self._radio.tune()
        self._begin(self._begin_streams())

    def _begin_streams(self) -> int:
        for clock in self._clocks:
            clock.fault = clock.off_grid = None  # of streams that are over
        return self._radio.stream()

    def _restart(self, reasons: Sequence[str]) -> None:
        """Let all streams begin anew, in the same epoch."""
        reason = "; ".join(reasons)
        if self._troubled is None:
            self._troubled = time.monotonic()
        elif time.monotonic() - self._troubled > RESTART_TIMEOUT_S:
            raise RadioError(f"{reason}; its streams were begun again for {RESTART_TIMEOUT_S:g} s in vain")
        self._radio.log.warn(f"radio {self._name}: {reason}; the streams begin again")
        self._radio.halt()
        self._drain()
        self._expect(self._begin_streams())

    def _drain(self) -> None:
        """Wait until nothing comes any more: gr-uhd gives the time of the new stream to the first sample that does."""
        before = None
        for _ in range(MAX_DRAINS):
            counts = [clock.num_samples for clock in self._clocks]
            if counts == before:
                return
            before = counts
            self._wait(DRAIN_S)

    def _begin(self, sample: int) -> None:
        self._troubled = None
        self._expect(sample)
        shared = self._radio.settings.clock_source in SHARED_SOURCES
        carriers = {"carriers": np.array(self._radio.carriers)} if shared else {}
        self._tell("radio_begin", sample=sample, epoch=self.epoch, **carriers)

    def _expect(self, sample: int) -> None:
        """Watch from now on streams that begin with this sample."""
        self._first, self._times, self._silent = sample, [], [(clock.num_samples, 0) for clock in self._clocks]
        self._watched_at = time.monotonic()

    def _new_epoch(self, reason: str = "") -> None:
        """Begin an epoch; what ended the last one is told."""
        self.epoch = max(self.epoch + 1, time.time_ns() // 1000)
        if reason:
            self._tell("radio_epoch", epoch=self.epoch, reason=f"radio {self._name}: {reason}")

    def _carry_out_requests(self) -> None:
        """What was asked for before the streams begin, also in a run that is over, ends no epoch."""
        while not self._requests.empty():
            _, action = self._requests.get()
            action()

    def _serve(self) -> None:
        """Carry out what was asked for since."""
        while not self._requests.empty():
            reason, action = self._requests.get()
            self._new_epoch(reason)
            action()
            self._new_epoch()
            self._begin(self._radio.now_samples())
        while not self._alignments.empty():
            seconds = self._alignments.get()
            if seconds:
                self._renew(f"its time is shifted by {seconds} s", seconds)

    def _watch(self) -> None:
        """Whether everything is as it was half a second ago."""
        self._watched_at = time.monotonic()
        times = [self._radio.now(board) for board in self._radio.boards]
        still = [board for board, (before, now) in enumerate(zip(self._times, times, strict=False)) if now <= before]
        if still:
            raise RadioError(f"{', '.join(map(self._radio.board_name, still))}: the device time stands still at "
                             f"{times[still[0]]:.3f} s")
        self._times = times
        lost = [f"{self._radio.board_name(board)} has lost its reference, clock source "
                f"{self._radio.settings.clock_source}" for board in self._radio.unlocked_references()]
        lost += self._radio.unlocked_synthesizers()
        if self._radio.settings.time_source != INTERNAL:
            lost += self._radio.unequal_edges()
        for node, clock in zip(self._radio.settings.nodes, self._clocks, strict=True):
            fault, clock.fault = clock.fault, None
            lost += [f"node {node}: its receive stream has lost its time: {fault}"] if fault else []
        if lost:
            self._renew("; ".join(lost))
        else:
            self._watch_streams()

    def _watch_streams(self) -> None:
        """Whether each source gives samples on the grid, from the device time on at which the streams begin."""
        passed = self._radio.now_samples() - self._first
        if passed < 0:
            return
        faults = self._stream_faults()
        if faults:
            self._restart(faults)
        elif passed > STEADY_S * self._radio.rate and not any(silent for _, silent in self._silent):
            self._troubled = None

    def _stream_faults(self) -> list[str]:
        faults = []
        for place, (node, clock) in enumerate(zip(self._radio.settings.nodes, self._clocks, strict=True)):
            before, silent = self._silent[place]
            silent = silent + 1 if clock.num_samples == before else 0
            self._silent[place] = clock.num_samples, silent
            boards = ", ".join(self._radio.boards_of(node))
            if silent >= SILENT_WATCHES:
                faults.append(f"node {node}: nothing has been received for {silent * WATCH_PERIOD_S:g} s from {boards}")
            elif clock.off_grid:
                faults.append(f"node {node}: the receive stream from {boards} is off its samples: {clock.off_grid}")
        return faults

    def _renew(self, reason: str, shift: int = 0) -> None:
        """Begin a new epoch with time, tuning and streams made anew; the time goes on, by `shift` seconds ahead."""
        self._new_epoch(reason)  # what is measured meanwhile is of use to nobody: a newer one begins with the streams
        self._radio.halt()
        self._radio.check_references(RECOVERY_TIMEOUT_S)
        self._timed = False
        self._radio.keep_time(shift)
        self._timed = True
        self._report()
        self._new_epoch()
        self._stream()
