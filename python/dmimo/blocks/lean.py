# SPDX-License-Identifier: GPL-3.0-or-later
"""A cheaper bridge from GNU Radio's C++ scheduler to Python blocks of complex streams.

GNU Radio 3.10 builds a new class and a tuple of types for every buffer at every call of `work`, about 10 us a stream:
a quarter of the time of a slot. Blocks that are called for every slot take this bridge instead.
"""

import ctypes

import numpy as np
from gnuradio import gr

_pointer = ctypes.PyDLL(None).PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]
_COMPLEX64 = np.dtype(np.complex64).str


class _Buffer:
    """Memory of a stream, for NumPy's array interface."""

    __slots__ = ("__array_interface__",)


def _array(capsule, num_items: int) -> np.ndarray:
    buffer = _Buffer()
    buffer.__array_interface__ = {
        "data": (_pointer(capsule, None), False), "typestr": _COMPLEX64, "shape": (num_items,), "version": 3}
    return np.asarray(buffer)


class lean_sync_block(gr.sync_block):
    """`gr.sync_block` whose streams are all complex64, without history."""

    def handle_general_work(self, noutput_items, ninput_items, input_items, output_items):
        """Call `work` with the streams as arrays."""
        produced = self.work([_array(capsule, noutput_items) for capsule in input_items],
                             [_array(capsule, noutput_items) for capsule in output_items])
        self.consume_items(produced)
        return produced


class lean_rate_one_block(gr.sync_block):
    """Block of complex64 streams that produces as much as it consumes in the long run, but not in every call.

    It has a `general_work`, which consumes and produces as that of a `gr.basic_block`. To GNU Radio it is a block of
    fixed rate, of which it asks no more than there are input items; a general block it asks for ever less, a dozen times
    a slot, before it waits for input.
    """

    def handle_general_work(self, noutput_items, ninput_items, input_items, output_items):
        """Call `general_work` with the streams as arrays."""
        arrays = [_array(capsule, num_items) for capsule, num_items in zip(input_items, ninput_items, strict=True)]
        return self.general_work(arrays, [_array(capsule, noutput_items) for capsule in output_items])
