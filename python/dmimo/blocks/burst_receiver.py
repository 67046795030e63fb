# SPDX-License-Identifier: GPL-3.0-or-later
"""Sample streams in, the slots that were asked for out."""

import cmath
from bisect import insort

import numpy as np
import pmt

from ..protocols.slots import Grant
from . import messages
from .guard import guarded
from .lean import lean_sync_block
from .timetags import RX_TIME, rate_ratio, sample_from_pmt

LOST, NOT_FINITE = "lost", "samples are not finite"
BURSTS = pmt.intern("bursts")


class burst_receiver(lean_sync_block):
    """Cuts granted slots out of streams that carry `rx_time` tags and publishes them as burst PDUs.

    The time of a sample follows from the last `rx_time` tag (at the start and after every discontinuity). Recent
    samples are kept in a ring, so a grant may come before or after its samples. A slot that a discontinuity cuts, or
    that is older than the ring, is published empty with status "lost"; one with NaN or infinity with "samples are not
    finite".

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
        self._waiting: list[tuple[int, int, int]] = []
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
        for grant in messages.grants(message):
            insort(self._waiting, (grant.start, grant.slot, grant.attempt))
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
        if self._end is None:
            return
        while self._waiting:
            start = self._waiting[0][0]
            if self._first <= start and start + self._slot_samples > self._end:
                return
            start, slot, attempt = self._waiting.pop(0)
            grant = Grant(slot, attempt, start)
            if start < self._first:
                message = messages.received_burst(self._header, grant, None, LOST)
            else:
                samples = self._cut(start)
                # The sum is finite only if every sample is.
                finite = cmath.isfinite(samples.sum())
                message = messages.received_burst(self._header, grant, samples if finite else None,
                                                  "ok" if finite else NOT_FINITE)
            self.message_port_pub(BURSTS, message)

    def _cut(self, start: int) -> np.ndarray:
        length = self._ring.shape[1]
        at = start % length
        if at + self._slot_samples <= length:
            return self._ring[:, at : at + self._slot_samples]
        return np.concatenate([self._ring[:, at:], self._ring[:, : at + self._slot_samples - length]], axis=1)
