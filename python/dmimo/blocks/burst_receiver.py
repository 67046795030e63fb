# SPDX-License-Identifier: GPL-3.0-or-later
"""Sample streams in, the slots that were asked for out."""

import cmath
from bisect import bisect_left
from operator import attrgetter

import numpy as np
import pmt

from ..protocols.slots import Grant
from . import messages
from .guard import guarded
from .lean import lean_sync_block
from .memory import array_at
from .timetags import RX_TIME, OffGrid, rate_ratio, sample_from_pmt

LOST, NOT_FINITE = "lost", "samples are not finite"
BURSTS = pmt.intern("bursts")
HISTORY_SAMPLES = 16384  # GNU Radio's buffers take four times as much
_start, _offset = attrgetter("start"), attrgetter("offset")


class burst_receiver(lean_sync_block):
    """Cuts granted slots out of streams that carry `rx_time` tags and publishes them as burst PDUs.

    The time of a sample follows from the last `rx_time` tag (at the start and after every discontinuity). GNU Radio
    keeps recent samples in the buffer that they come in (the block's history), so a grant may come before or after its
    samples; samples outside of slots are never touched. Slots that are found complete together go out as one PDU; none
    waits for another. A slot that a discontinuity cuts, or that is older than the history, is published alone and empty
    with status "lost"; one with NaN or infinity with "samples are not finite".

    A tag whose time lies off the sample grid (some USRPs begin a stream anew at any tick after an overflow) says that
    the samples after it belong to no slot: slots are not found in them, and lost once a time on the grid comes.

    A `delays` message on the port of the grants says by how many samples later than granted each port's slots are to be
    cut (the delay of its loop from transmitter to receiver), in slots armed before and after it.

    Parameters
    ----------
    node : str
    num_ports : int
    slot_samples : int
    samp_rate : float
    history_samples : int, optional
        How far back samples are kept; at least one slot, and what the ports' delays differ by. By default 16384, or two
        slots where these are longer.
    """

    def __init__(self, node: str, num_ports: int, slot_samples: int, samp_rate: float,
                 history_samples: int | None = None):
        lean_sync_block.__init__(self, "burst_receiver", [np.complex64] * num_ports, None)
        if history_samples is None:
            history_samples = max(HISTORY_SAMPLES, 2 * slot_samples)
        if history_samples < slot_samples:
            raise ValueError(f"history_samples = {history_samples}: must be at least slot_samples = {slot_samples}")
        self._header = messages.burst_header(node, num_ports)
        self._num_ports, self._slot_samples, self._history_samples = num_ports, slot_samples, history_samples
        self._rate = rate_ratio(samp_rate)
        self._delays = [0] * num_ports
        self._earliest = self._latest = 0  # of the delays
        self._waiting: list[Grant] = []  # by start
        self._reset()
        self._needed = [history_samples + 1] * num_ports
        self.set_history(history_samples + 1)
        # To GNU Radio a Python block has no fixed rate: it would count the history as new, ask for more than there is,
        # and halve that again and again. With "output" of this size it calls, once, when there is something new.
        self.set_output_multiple(history_samples + 1)
        self.set_max_noutput_items(history_samples + 1)
        self.message_port_register_in(pmt.intern("grants"))
        self.set_msg_handler(pmt.intern("grants"), self.handle_grants)
        for port in ("bursts", "error"):
            self.message_port_register_out(pmt.intern(port))

    def start(self):
        """Item counters begin again with every start of the flowgraph."""
        self._reset()
        return super().start()

    def stop(self):
        """The buffers go with the run, and so do the slots that were armed in it."""
        self._reset()
        self._waiting = []
        return super().stop()

    def _reset(self):
        # Samples first <= sample < end of the current segment can be read from the buffers of the last call of `work`,
        # in which `end` stands `position` items after the history.
        self._first = self._end = None
        self._off_grid = False  # no sample has a time, since the last tag was off the grid
        self._position = self._count = 0
        self._capsules, self._views = [], None

    @guarded
    def handle_grants(self, message):
        """Arm the slots of a `grant` message; take the ports' delays from a `delays` message."""
        kind = messages.kind(message)
        if kind == "grant":
            self._waiting += messages.grants(message)
            self._waiting.sort(key=_start)
            self._serve()
        elif kind == "delays":
            self._set_delays(messages.get(message, "samples"))
            self._serve()

    def _set_delays(self, samples) -> None:
        delays = np.asarray(samples)
        if delays.shape != (self._num_ports,) or delays.dtype.kind not in "iu" or delays.min() < 0:
            raise ValueError(f"delays = {delays.tolist()}: must be {self._num_ports} whole numbers of samples, not "
                             "negative")
        earliest, latest = int(delays.min()), int(delays.max())
        if self._slot_samples + latest - earliest > self._history_samples:
            raise ValueError(f"delays = {delays.tolist()}: differ by more than history_samples = "
                             f"{self._history_samples} have room for beside slot_samples = {self._slot_samples}")
        self._delays, self._earliest, self._latest = delays.tolist(), earliest, latest

    def handle_forecast(self, noutput_items, ninputs):
        """Return how many items are needed, with the history: GNU Radio asks before every `work`."""
        return self._needed

    def handle_general_work(self, noutput_items, ninput_items, input_items, output_items):
        """Call `work` with the streams as they come: arrays are made of them only for a slot."""
        taken = self.work(min(ninput_items) - self._history_samples, input_items)
        if taken > 0:
            self.consume_each(taken)
        return taken

    @guarded
    def work(self, count, capsules):
        """Take `count` new samples, which follow the history, segment by segment; publish the slots they complete."""
        self._capsules, self._views, self._count, self._position = capsules, None, count, 0
        tags = self.get_tags_in_window(0, 0, count, RX_TIME)
        if tags:
            offset = self.nitems_read(0)
            for tag in sorted(tags, key=_offset):
                self._take(tag.offset - offset)
                self._set_time(tag.value)
        self._take(count)
        if self._end is not None:  # what is older is overwritten from now on
            self._first = max(self._first, self._end - self._history_samples)
        return count

    def _set_time(self, value) -> None:
        """Take the time of a tag for the sample that comes next."""
        try:
            sample = sample_from_pmt(value, self._rate)
        except OffGrid:
            self._first = self._end = None
            self._off_grid = True
            return
        self._off_grid = False
        if sample != self._end:
            self._first = self._end = sample
            self._serve()

    def _take(self, position: int) -> None:
        """Go on to the item `position` of this call."""
        if position == self._position:
            return
        if self._end is not None:
            self._end += position - self._position
        elif not self._off_grid:
            raise ValueError("samples without a time: the stream must begin with an rx_time tag")
        self._position = position
        self._serve()

    def _serve(self) -> None:
        """Publish every armed slot that is complete or can no longer be."""
        if self._end is None or not self._waiting:
            return
        lost = bisect_left(self._waiting, self._first - self._earliest, key=_start)
        complete = self._end - self._slot_samples - self._latest
        due = max(lost, bisect_left(self._waiting, complete + 1, key=_start))
        if due == 0:
            return
        grants, self._waiting = self._waiting[:due], self._waiting[due:]
        for grant in grants[:lost]:
            self.message_port_pub(BURSTS, messages.received_burst(self._header, [grant], None, LOST))
        if lost < due:
            self._publish(grants[lost:])

    def _publish(self, grants: list[Grant]) -> None:
        """Publish complete slots: together if all are finite, otherwise one by one."""
        samples = self._cut(grants)
        # The sum is finite only if every sample is.
        if cmath.isfinite(samples.sum()):
            self.message_port_pub(BURSTS, messages.received_burst(self._header, grants, samples))
        elif len(grants) == 1:
            self.message_port_pub(BURSTS, messages.received_burst(self._header, grants, None, NOT_FINITE))
        else:
            for grant in grants:
                self._publish([grant])

    def _cut(self, grants: list[Grant]) -> np.ndarray:
        """Samples of these slots, (slots, num_ports, slot_samples), cut in one piece where they follow one another."""
        first, total = grants[0].start, len(grants) * self._slot_samples
        if [grant.start for grant in grants] != list(range(first, first + total, self._slot_samples)):
            return np.concatenate([self._cut([grant]) for grant in grants])
        if self._views is None:
            length = self._history_samples + self._count
            self._views = [array_at(capsule, length) for capsule in self._capsules]
        at = self._history_samples + self._position - self._end + first
        samples = np.empty((len(grants), self._num_ports, self._slot_samples), np.complex64)
        for port, (items, delay) in enumerate(zip(self._views, self._delays, strict=True)):
            samples[:, port] = items[at + delay : at + delay + total].reshape(len(grants), self._slot_samples)
        return samples
