# SPDX-License-Identifier: GPL-3.0-or-later
"""Speed of maximum likelihood from pair statistics against the alternating iteration it replaces.

All ratios are taken in one run, one BLAS thread, best of several repeats. The statistics are given; what they cost is
its own row. "Vectors" is one alternating iteration on contiguous arrays of the pairs' measurements, gathered
beforehand: psi and c by sums over components, no matrices. "Matrices" is one iteration with stacked matrices and
pseudo-inverses, at the largest size whose matrices stay below the limit stated.
"""

import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))
import conftest  # noqa: F401 - links the sources into the path
import numpy as np
from benchmarking import conclude
from gnuradio.dmimo.core import alternating
from gnuradio.dmimo.core.reciprocity import calibrate, pair_statistics

SNR_DB = 20.0  # per measurement
MATRIX_LIMIT_BYTES = 64e6
VECTORS_TARGET, MATRICES_TARGET, BEAMS_TARGET = 10.0, 1000.0, 1.3


def measure(rng, num_ports, num_beams, snr_db=SNR_DB):
    """y (M, M, B*B) of a Rayleigh network with unit-modulus gains, SNR per measurement."""
    shape = (num_ports, num_ports, num_beams**2)
    h = (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)
    lower = np.tril_indices(num_ports, -1)
    h[lower] = h[lower[1], lower[0]]
    t, r = np.exp(2j * np.pi * rng.random((2, num_ports)))
    noise = np.sqrt(0.5 * 10 ** (-snr_db / 10)) * (rng.normal(size=shape) + 1j * rng.normal(size=shape))
    return r[:, None, None] * h * t[None, :, None] + noise


def best_time(call, budget_s=1.0):
    """Shortest of at least 3 calls, in seconds; shortest, because anything else on the machine only adds time."""
    call()
    times, end = [], time.perf_counter() + budget_s
    while len(times) < 3 or (time.perf_counter() < end and len(times) < 300):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def matrix_bytes(num_ports, num_beams):
    """The larger dense matrix of the literal form: C, 2 E Q by E Q complex."""
    products = num_ports * (num_ports - 1) // 2 * num_beams**2
    return 2 * products * products * 16


def main() -> int:
    rng = np.random.default_rng(1)
    rows, verdicts = [], []

    y = measure(rng, 64, 16)
    statistics = pair_statistics(y)
    i, j = alternating.pairs(64)
    u, v = np.ascontiguousarray(y[i, j]), np.ascontiguousarray(y[j, i])
    c = calibrate(statistics)
    ml = best_time(lambda: calibrate(statistics))
    vectors = best_time(lambda: alternating.iterate_vectors(u, v, i, j, c))
    rows.append(("64 APs x 16 beams: ml from statistics, to convergence", ml))
    rows.append(("64 APs x 16 beams: one alternating iteration on vectors", vectors))
    rows.append(("64 APs x 16 beams: pair statistics (once)", best_time(lambda: pair_statistics(y))))
    verdicts.append(("vectors / ml, 64 x 16", vectors / ml, ">=", VECTORS_TARGET))

    sizes = [(m, b) for m in range(3, 17) for b in (2, 3, 4, 8) if matrix_bytes(m, b) <= MATRIX_LIMIT_BYTES]
    num_ports, num_beams = max(sizes, key=lambda size: matrix_bytes(*size))
    small = measure(rng, num_ports, num_beams)
    small_statistics = pair_statistics(small)
    small_c = calibrate(small_statistics)
    small_ml = best_time(lambda: calibrate(small_statistics))
    start = time.perf_counter()
    alternating.iterate_matrices(small, small_c)
    matrices = time.perf_counter() - start
    name = f"{num_ports} APs x {num_beams} beams"
    rows.append((f"{name}: ml from statistics, to convergence", small_ml))
    rows.append((f"{name}: one iteration with matrices ({matrix_bytes(num_ports, num_beams) / 1e6:.0f} MB)", matrices))
    verdicts.append((f"matrices / ml, {name}", matrices / small_ml, ">=", MATRICES_TARGET))

    # Equal energy of each pair: the number of steps to convergence depends on it, and on nothing else here.
    beams = (4, 8, 16)
    given = [pair_statistics(measure(rng, 64, b, SNR_DB + 20 * np.log10(16 / b))) for b in beams]
    # In turns: the machine's speed drifts.
    rounds = [[best_time(lambda part=part: calibrate(part), 0.3) for part in given] for _ in range(4)]
    by_beams = np.min(rounds, axis=0).tolist()
    rows += [(f"64 APs x {b} beams, equal energy of a pair: ml from statistics", seconds)
             for b, seconds in zip(beams, by_beams, strict=True)]
    verdicts.append(("ml, slowest / fastest of 4 to 16 beams", max(by_beams) / min(by_beams), "<=", BEAMS_TARGET))

    print(f"reciprocity, {SNR_DB:g} dB per measurement, unit-modulus gains, NumPy {np.__version__}")
    for label, seconds in rows:
        print(f"  {label:64s} {seconds * 1e3:12.3f} ms")
    return conclude(verdicts, digits=1)


if __name__ == "__main__":
    sys.exit(main())
