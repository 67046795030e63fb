# SPDX-License-Identifier: GPL-3.0-or-later
"""Arithmetic whose last bit is the same in each process of a machine; to be settled before NumPy is imported."""

import os
from contextlib import suppress
from pathlib import Path


def make_repeatable() -> None:
    """Choose the loops of NumPy and of its BLAS, here and in processes started from here; what is set already stays.

    One BLAS thread: sums must not depend on how many cores are idle. No AVX-512 in NumPy's own arithmetic: NumPy 1.24
    rounds products and magnitudes of a few complex numbers differently where input and output happen to lie within
    64 bytes, because it then leaves its fused loops.
    """
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    with suppress(OSError):  # a system without /proc: NumPy warns where a processor has no such loops
        if "avx512f" in Path("/proc/cpuinfo").read_text().split():
            os.environ.setdefault("NPY_DISABLE_CPU_FEATURES", "AVX512F")
