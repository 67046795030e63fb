# SPDX-License-Identifier: GPL-3.0-or-later
"""What the benchmarks of the numerics share: processor time, RMSE, and the verdict on each ratio."""

import time

import numpy as np


def timed(call, repeats=1):
    """(shortest processor time in seconds, last result)."""
    times = []
    for _ in range(repeats):
        start = time.process_time()
        result = call()
        times.append(time.process_time() - start)
    return min(times), result


def rms(error):
    """Root mean square of real errors."""
    return float(np.sqrt(np.mean(np.asarray(error, float) ** 2)))


def conclude(verdicts, digits=2) -> int:
    """Print each (label, ratio, ">=" or "<=", target) with its verdict; exit code 1 if a target is missed."""
    failed = False
    for label, ratio, relation, target in verdicts:
        passed = ratio >= target if relation == ">=" else ratio <= target
        failed |= not passed
        print(f"  {label:64s} {ratio:12.{digits}f} x  target {relation} {target:g}  {'PASS' if passed else 'FAIL'}")
    return int(failed)
