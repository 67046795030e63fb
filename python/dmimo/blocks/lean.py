# SPDX-License-Identifier: GPL-3.0-or-later
"""A cheaper bridge from GNU Radio's C++ scheduler to Python blocks.

GNU Radio 3.10 makes a new Python thread state, with the pages of its stack, at every call of Python from a block's
thread, and unmaps it after the call: 10 us for every message and every `work`. It builds a new class and a tuple of
types for every buffer at every call of `work`, about 10 us a stream. And a Python block asks its C++ half for each
method by name through `__getattr__`. For blocks that are called for every slot that is more than half of their time;
they take this bridge instead.
"""

import ctypes
import threading

from gnuradio import gr

from .memory import array_at

_ensure, _release = ctypes.pythonapi.PyGILState_Ensure, ctypes.pythonapi.PyGILState_Release
_release.argtypes, _release.restype = [ctypes.c_int], None


class _Lean:
    """What all lean blocks share; to be initialised after GNU Radio's class.

    The thread state lives as long as the block's thread, on which GNU Radio calls `start` first and `stop` last.
    """

    _thread_state: tuple[int, int] | None = None  # thread and what its thread state is to be released with

    def _bind(self) -> None:
        """Look methods of the C++ half up once."""
        for name in ("message_port_pub", "nitems_read", "get_tags_in_window", "consume_each"):
            setattr(self, name, getattr(self.gateway, name))

    def start(self):
        """Keep the thread state: one reference more than the call has keeps it from being deleted."""
        self._thread_state = threading.get_ident(), _ensure()
        return True

    def stop(self):
        """Give the thread state back."""
        if self._thread_state is not None and self._thread_state[0] == threading.get_ident():
            _release(self._thread_state[1])
        self._thread_state = None
        return True


class lean_message_block(_Lean, gr.basic_block):
    """`gr.basic_block` with messages only."""

    def __init__(self, name: str):
        gr.basic_block.__init__(self, name, None, None)
        self._bind()


class lean_sync_block(_Lean, gr.sync_block):
    """`gr.sync_block` whose streams are all complex64, without history."""

    def __init__(self, name: str, inputs, outputs):
        gr.sync_block.__init__(self, name, inputs, outputs)
        self._bind()

    def handle_general_work(self, noutput_items, ninput_items, input_items, output_items):
        """Call `work` with the streams as arrays."""
        produced = self.work([array_at(capsule, noutput_items) for capsule in input_items],
                             [array_at(capsule, noutput_items) for capsule in output_items])
        if produced > 0:
            self.consume_each(produced)
        return produced


class lean_rate_one_block(_Lean, gr.sync_block):
    """Block of complex64 streams that produces as much as it consumes in the long run, but not in every call.

    It has a `general_work`, which consumes and produces as that of a `gr.basic_block`. To GNU Radio it is a block of
    fixed rate, of which it asks no more than there are input items.
    """

    def __init__(self, name: str, inputs, outputs):
        gr.sync_block.__init__(self, name, inputs, outputs)
        self._bind()

    def handle_general_work(self, noutput_items, ninput_items, input_items, output_items):
        """Call `general_work` with the streams as arrays."""
        arrays = [array_at(capsule, num_items) for capsule, num_items in zip(input_items, ninput_items, strict=True)]
        return self.general_work(arrays, [array_at(capsule, noutput_items) for capsule in output_items])
