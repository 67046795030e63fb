# SPDX-License-Identifier: GPL-3.0-or-later
"""Burst PDUs in, tagged sample streams out."""

import pmt
from gnuradio import gr, pdu

from . import messages
from .guard import guarded

MAX_SAMPLES = 2048  # of a burst that fits twice into GNU Radio's default buffer, of 4096 complex samples


class port_splitter(gr.basic_block):
    """Splits burst PDUs, port-major, into one PDU per port, on the message ports port0, port1, ..."""

    def __init__(self, num_ports: int):
        gr.basic_block.__init__(self, "port_splitter", None, None)
        self._outputs = [pmt.intern(f"port{port}") for port in range(num_ports)]
        self.message_port_register_in(pmt.intern("bursts"))
        self.set_msg_handler(pmt.intern("bursts"), self.handle_burst)
        for port in (*self._outputs, pmt.intern("error")):
            self.message_port_register_out(port)

    @guarded
    def handle_burst(self, message):
        """Publish each port's samples with the burst's keys."""
        samples = messages.vector_from_pmt(pmt.cdr(message))
        if samples.size % len(self._outputs):
            raise ValueError(f"burst of {samples.size} samples: must be a multiple of "
                             f"num_ports = {len(self._outputs)}")
        for port, row in zip(self._outputs, samples.reshape(len(self._outputs), -1), strict=True):
            self.message_port_pub(port, pmt.cons(pmt.car(message), messages.vector_to_pmt(row)))


class burst_transmitter(gr.hier_block2):
    """Turns burst PDUs into streams, one per port; a burst's keys become tags of its first sample on every port.

    A burst for the air carries `tx_time` and `beam`; the stream block adds `packet_len`. Nothing is sent between
    bursts: where silence must advance a simulated network, it is sent as zeros (`role`). Every burst leaves in one
    piece, by GNU Radio's own `pdu_to_tagged_stream`, without Python.

    Parameters
    ----------
    num_ports : int
    max_samples : int
        Longest burst, per port.
    """

    def __init__(self, num_ports: int, max_samples: int = MAX_SAMPLES):
        if num_ports < 1 or max_samples < 1:
            raise ValueError(f"num_ports = {num_ports}, max_samples = {max_samples}: must be at least 1")
        gr.hier_block2.__init__(self, "burst_transmitter", gr.io_signature(0, 0, 0),
                                gr.io_signature(num_ports, num_ports, gr.sizeof_gr_complex))
        for port in ("bursts", "end"):
            self.message_port_register_hier_in(port)
        self.streams = [pdu.pdu_to_tagged_stream(gr.types.complex_t, "packet_len") for _ in range(num_ports)]
        self.splitter = port_splitter(num_ports) if num_ports > 1 else None
        for port, stream in enumerate(self.streams):
            # Called only where the longest burst fits, in a buffer of twice its length: a call for which there is too
            # little room makes GNU Radio wait a quarter of a second, since a source without output waits for messages.
            stream.set_output_multiple(max(max_samples, MAX_SAMPLES))
            self.connect(stream, (self, port))
            self.msg_connect(self, "end", stream, "system")
            if self.splitter is not None:
                self.msg_connect(self.splitter, f"port{port}", stream, "pdus")
        if self.splitter is None:
            self.msg_connect(self, "bursts", self.streams[0], "pdus")
        else:
            self.message_port_register_hier_out("error")
            self.msg_connect(self, "bursts", self.splitter, "bursts")
            self.msg_connect(self, "end", self.splitter, "system")
            self.msg_connect(self.splitter, "error", self, "error")

    def members(self):
        """Blocks inside, for a common processor affinity."""
        return [*self.streams, *([self.splitter] if self.splitter else [])]
