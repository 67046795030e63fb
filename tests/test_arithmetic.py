# SPDX-License-Identifier: GPL-3.0-or-later
"""Results do not depend on where memory happens to lie."""

import os
import subprocess
import sys

# The same few complex numbers again and again, between allocations of random sizes.
REPEATED = """
import numpy as np
from gnuradio.dmimo.core import metrics

rng = np.random.default_rng(1)
kept, different = [], 0
for _ in range(100):
    c = rng.normal(size=2) + 1j * rng.normal(size=2)
    c_hat = c * (1 + 0.01 * (rng.normal(size=2) + 1j * rng.normal(size=2)))
    found = set()
    for _ in range(300):
        kept.append(bytearray(rng.integers(1, 300)))
        if len(kept) > 500:
            del kept[rng.integers(0, 500)]
        found.add(float(metrics.alignment_error(c_hat.copy(), c.copy())))
    different += len(found) > 1
print(different)
"""
SETTINGS = ("OPENBLAS_NUM_THREADS", "NPY_DISABLE_CPU_FEATURES")


def ran(program):
    """Output of a Python program that finds none of the settings."""
    environment = {key: value for key, value in os.environ.items() if key not in SETTINGS}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True,
                          timeout=100, check=True)
    assert not done.stderr  # NumPy warns of settings that do not fit the processor
    return done.stdout.split()


def test_equal_numbers_give_equal_results_wherever_they_lie():
    settle = "from gnuradio.dmimo import arithmetic\narithmetic.make_repeatable()\n"
    assert ran(settle + REPEATED) == ["0"]


def test_what_the_user_has_set_stays_and_processes_inherit_the_rest():
    program = ("import os\nos.environ['OPENBLAS_NUM_THREADS'] = '2'\n"
               "from gnuradio.dmimo import arithmetic\narithmetic.make_repeatable()\n"
               f"print(*(os.environ.get(key, '-') for key in {SETTINGS!r}))")
    threads, features = ran(program)
    assert threads == "2"
    assert features in ("AVX512F", "-")
