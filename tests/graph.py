# SPDX-License-Identifier: GPL-3.0-or-later
"""Helpers of the block tests: flowgraphs that end, and blocks that record messages."""

import threading
import time

import pmt
from gnuradio import gr

TIMEOUT_S = 60.0  # a flowgraph that hangs is meant, not a busy machine


class message_sink(gr.basic_block):
    """Keeps the messages of its port `in`; `wait(n)` returns once there are n of them."""

    def __init__(self):
        gr.basic_block.__init__(self, "message_sink", None, None)
        self.message_port_register_in(pmt.intern("in"))
        self.set_msg_handler(pmt.intern("in"), self.handle)
        self.messages = []
        self._arrived = threading.Condition()

    def handle(self, message):
        with self._arrived:
            self.messages.append(message)
            self._arrived.notify_all()

    def wait(self, count):
        with self._arrived:
            enough = self._arrived.wait_for(lambda: len(self.messages) >= count, TIMEOUT_S)
        assert enough, f"{len(self.messages)} of {count} messages came within {TIMEOUT_S} s"
        return self.messages


class message_source(gr.basic_block):
    """Publishes messages on its port `out`, from the test's own thread."""

    def __init__(self):
        gr.basic_block.__init__(self, "message_source", None, None)
        self.message_port_register_out(pmt.intern("out"))

    def send(self, message):
        self.message_port_pub(pmt.intern("out"), message)


def run_until(flowgraph, condition, max_noutput_items=None):
    """Run a flowgraph until `condition()` holds, then stop it."""
    flowgraph.start(*([max_noutput_items] if max_noutput_items else []))
    try:
        wait_for(condition)
    finally:
        flowgraph.stop()
        flowgraph.wait()


def wait_for(condition):
    """Return once `condition()` holds; fail after a limit."""
    pause, deadline = threading.Event(), time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, f"not so within {TIMEOUT_S} s"
        pause.wait(0.002)
