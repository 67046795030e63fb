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
from .timetags import RX_TIME, rate_ratio, sample_from_pmt

LOST, NOT_FINITE = "lost", "samples are not finite"
BURSTS = pmt.intern("bursts")
_start = attrgetter("start")


class burst_receiver(lean_sync_block):
    """Cuts granted slots out of streams that carry `rx_time` tags and publishes them as burst PDUs.

    The time of a sample follows from the last `rx_time` tag (at the start and after every discontinuity). Recent
    samples are kept in a ring, so a grant may come before or after its samples. Slots that are found complete together
    go out as one PDU; none waits for another. A slot that a discontinuity cuts, or that is older than the ring, is
    published alone and empty with status "lost"; one with NaN or infinity with "samples are not finite".

    Parameters
    ----------
    node : str
    num_ports : int
    slot_samples : int
    samp_rate : float
    history_samples : int
        Length of the ring; at least one slot.
    """

    def __init__(self, node: str, num_ports: int, slot_samples: int, samp_rate: float, history_samples: int = 65536):
        lean_sync_block.__init__(self, "burst_receiver", [np.complex64] * num_ports, None)
        if history_samples < slot_samples:
            raise ValueError(f"history_samples = {history_samples}: must be at least slot_samples = {slot_samples}")
        self._header = messages.burst_header(node, num_ports)
        self._slot_samples = slot_samples
        self._rate = rate_ratio(samp_rate)
        self._ring = np.zeros((num_ports, history_samples), np.complex64)
        self._waiting: list[Grant] = []  # by start
        self._reset()
        self.message_port_register_in(pmt.intern("grants"))
        self.set_msg_handler(pmt.intern("grants"), self.handle_grants)
        for port in ("bursts", "error"):
            self.message_port_register_out(pmt.intern(port))

    def start(self):
        """Item counters begin again with every start of the flowgraph."""
        self._reset()
        return super().start()

    def _reset(self):
        # Samples first <= sample < end of the current segment are in the ring, at sample % length.
        self._first = self._end = None

    @guarded
    def handle_grants(self, message):
        """Arm the slots of a `grant` message."""
        if messages.kind(message) != "grant":
            return
        self._waiting += messages.grants(message)
        self._waiting.sort(key=_start)
        self._serve()

    @guarded
    def work(self, input_items, output_items):
        """Take new samples into the ring, segment by segment, and publish the slots that they complete."""
        count = len(input_items[0])
        position = 0
        tags = self.get_tags_in_window(0, 0, count, RX_TIME)
        if tags:
            offset = self.nitems_read(0)
            for border, sample in sorted((tag.offset - offset, sample_from_pmt(tag.value, self._rate)) for tag in tags):
                self._take(input_items, position, border)
                position = border
                if sample != self._end:
                    self._first = self._end = sample
                    self._serve()
        self._take(input_items, position, count)
        return count

    def _take(self, input_items, begin: int, end: int) -> None:
        """Append items begin ... end - 1; a chunk larger than the ring goes in by parts."""
        if begin == end:
            return
        if self._end is None:
            raise ValueError("samples without a time: the stream must begin with an rx_time tag")
        length = self._ring.shape[1]
        limit = length - self._slot_samples + 1
        while begin < end:
            at = self._end % length
            count = min(end - begin, length - at, limit)
            for port, items in enumerate(input_items):
                self._ring[port, at : at + count] = items[begin : begin + count]
            begin += count
            self._end += count
            self._first = max(self._first, self._end - length)
            self._serve()

    def _serve(self) -> None:
        """Publish every armed slot that is complete or can no longer be."""
        if self._end is None or not self._waiting:
            return
        lost = bisect_left(self._waiting, self._first, key=_start)
        due = max(lost, bisect_left(self._waiting, self._end - self._slot_samples + 1, key=_start))
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
        num_ports, length = self._ring.shape
        first, total = grants[0].start, len(grants) * self._slot_samples
        if [grant.start for grant in grants] != list(range(first, first + total, self._slot_samples)):
            return np.concatenate([self._cut([grant]) for grant in grants])
        at = first % length
        samples = self._ring[:, at : at + total]
        if at + total > length:
            samples = np.concatenate([samples, self._ring[:, : at + total - length]], axis=1)
        return samples.reshape(num_ports, len(grants), self._slot_samples).swapaxes(0, 1)
