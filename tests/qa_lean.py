# SPDX-License-Identifier: GPL-3.0-or-later
import threading
import weakref

import pmt
from gnuradio import gr
from gnuradio.dmimo.blocks.lean import lean_message_block
from graph import message_source, run_until

IN = pmt.intern("in")


class Mark:
    """Something that belongs to a thread."""


class counting(lean_message_block):
    """Counts its messages in a variable of the block's thread."""

    def __init__(self):
        lean_message_block.__init__(self, "counting")
        self.message_port_register_in(IN)
        self.set_msg_handler(IN, self.count)
        self.local, self.counts, self.mark = threading.local(), [], None

    def count(self, message):
        """Count, and mark the thread at the first message."""
        if not hasattr(self.local, "count"):
            self.local.count, self.local.mark = 0, Mark()
            self.mark = weakref.ref(self.local.mark)
        self.local.count += 1
        self.counts.append(self.local.count)


def run(num):
    """Return a block that has taken `num` messages and was stopped."""
    top, block, source = gr.top_block(), counting(), message_source()
    top.msg_connect(source, "out", block, "in")

    def sent():
        source.send(pmt.PMT_T)
        return len(block.counts) >= num

    run_until(top, sent)
    return block


def test_a_thread_keeps_its_state_from_message_to_message():
    counts = run(5).counts
    assert counts == list(range(1, len(counts) + 1))


def test_the_state_ends_with_the_thread():
    block = run(1)
    assert block.mark is not None
    assert block.mark() is None


def test_start_and_stop_outside_a_flowgraph_do_no_harm():
    block = counting()
    assert block.stop()
    assert block.start()
    assert block.stop()
