# SPDX-License-Identifier: GPL-3.0-or-later
"""Burst PDUs in, tagged sample streams out."""

from collections import deque

import numpy as np
import pmt
from gnuradio import gr

from . import messages
from .guard import WORK_DONE, guarded
from .timetags import TX_TIME, rate_ratio, time_to_pmt

PACKET_LEN = pmt.intern("packet_len")


class burst_transmitter(gr.sync_block):
    """Turns burst PDUs into streams with `tx_time`, `packet_len` (port 0) and `beam` (every port) tags.

    Bursts leave in the order of arrival. A silent slot becomes `slot_samples` zeros with ``fill``, so that a simulated
    network advances all nodes alike; without it (a radio) silence emits nothing.

    Parameters
    ----------
    num_ports : int
    slot_samples : int
        Samples of a slot; a shorter burst is completed with zeros.
    samp_rate : float
        For the tags' time, whole seconds and fraction.
    fill : bool
    """

    def __init__(self, num_ports: int, slot_samples: int, samp_rate: float, fill: bool = True):
        gr.sync_block.__init__(self, "burst_transmitter", None, [np.complex64] * num_ports)
        if slot_samples < 1 or samp_rate <= 0:
            raise ValueError(f"slot_samples = {slot_samples}, samp_rate = {samp_rate}: must be positive")
        self._num_ports = num_ports
        self._slot_samples = slot_samples
        self._rate = rate_ratio(samp_rate)
        self._fill = fill
        self._queue: deque = deque()
        self._position = 0
        self._ended = False
        for port, handler in (("bursts", self.handle_burst), ("control", self.handle_control)):
            self.message_port_register_in(pmt.intern(port))
            self.set_msg_handler(pmt.intern(port), handler)
        self.message_port_register_out(pmt.intern("error"))

    @guarded
    def handle_burst(self, message):
        """Queue a burst."""
        burst = messages.burst(message)
        num_ports, length = burst.samples.shape
        if num_ports != self._num_ports or length > self._slot_samples:
            raise ValueError(f"slot {burst.grant.slot}: burst of {num_ports} ports x {length} samples, "
                             f"must be {self._num_ports} ports x at most {self._slot_samples}")
        if length or self._fill:
            self._queue.append(burst)

    @guarded
    def handle_control(self, message):
        """Finish after the queued bursts once the run has ended."""
        if messages.kind(message) == "end":
            self._ended = True

    @guarded
    def work(self, input_items, output_items):
        """Copy queued slots into the output buffers."""
        room, done = len(output_items[0]), 0
        while self._queue and done < room:
            burst = self._queue[0]
            if self._position == 0:
                self._tag(burst, self.nitems_written(0) + done)
            count = min(room - done, self._slot_samples - self._position)
            part = burst.samples[:, self._position : self._position + count]
            for port, out in enumerate(output_items):
                out[done : done + part.shape[1]] = part[port]
                out[done + part.shape[1] : done + count] = 0
            done += count
            self._position += count
            if self._position == self._slot_samples:
                self._queue.popleft()
                self._position = 0
        return WORK_DONE if not done and self._ended else done

    def _tag(self, burst: messages.Burst, offset: int) -> None:
        self.add_item_tag(0, offset, TX_TIME, time_to_pmt(burst.grant.start, self._rate))
        self.add_item_tag(0, offset, PACKET_LEN, pmt.from_long(self._slot_samples))
        beam = pmt.from_long(burst.beam)
        for port in range(self._num_ports):
            self.add_item_tag(port, offset, messages.BEAM, beam)
