# SPDX-License-Identifier: GPL-3.0-or-later
"""Memory of GNU Radio's C++ objects as NumPy arrays, without a copy."""

import ctypes

import numpy as np

COMPLEX64 = np.dtype(np.complex64)

_pointer = ctypes.PyDLL(None).PyCapsule_GetPointer
_pointer.restype = ctypes.c_void_p
_pointer.argtypes = [ctypes.py_object, ctypes.c_char_p]


class _Memory:
    """For NumPy's array interface."""

    __slots__ = ("__array_interface__",)


def array_at(capsule, num_items: int, dtype: np.dtype = COMPLEX64) -> np.ndarray:
    """Array (num_items,) in the memory of a capsule, valid as long as the C++ object lives."""
    memory = _Memory()
    memory.__array_interface__ = {
        "data": (_pointer(capsule, None), False), "typestr": dtype.str, "shape": (num_items,), "version": 3}
    return np.asarray(memory)
