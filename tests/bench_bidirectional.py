# SPDX-License-Identifier: GPL-3.0-or-later
"""Speed of the maximum-likelihood delay of a link, and of the calibration of all links, against what they replace.

All ratios are of processor time, taken in one run with one BLAS thread, at 120 kHz spacing and 10 dB per element. The
grid search evaluates eq. (25) every 10 ps over all delays that the comb tells apart, for all links of a batch in one
matrix product, the fastest form of it; the few pilots of a CARS link make that product cheap.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))
import conftest  # noqa: F401 - links the sources into the path
import numpy as np
from benchmarking import conclude, rms, timed
from gnuradio.dmimo.core.bidirectional import joint_ml, ml_tls, tls_coefficients
from gnuradio.dmimo.core.delay import delay_and_gain
from gnuradio.dmimo.core.ofdm import OfdmGrid

SPACING, GRID_STEP_S, SNR_DB = 120e3, 10e-12, 10.0
# Comb, pilots and least ratio: SRS of 4 UEs, CSI-RS of 8 TRPs, CARS between them.
COMBS = ((4, 396, 100.0), (8, 198, 100.0), (32, 49, 100.0))
LINKS, GRID_LINKS = 320, 16
ERROR_TARGET, STEP_TARGET = 1.02, 1.0


def links(comb, num_pilots, num_links, seed=1):
    """(subcarriers, C (links, K), delays of C)."""
    rng = np.random.default_rng(seed)
    k = (np.arange(num_pilots) - num_pilots // 2) * comb
    delay = rng.uniform(-40e-9, 40e-9, num_links)
    noise = rng.normal(size=(2, num_links, num_pilots)) * np.sqrt(0.5 * 10 ** (-SNR_DB / 10))
    return k, np.exp(-2j * np.pi * SPACING * k * delay[:, None]) + noise[0] + 1j * noise[1], delay


def grid_search(g, turn, grid):
    value = g @ turn
    return grid[np.argmax(value.real**2 + value.imag**2, axis=-1)]


def main() -> int:
    print(f"bidirectional calibration, {SNR_DB:g} dB per element, NumPy {np.__version__}")
    verdicts = []
    for comb, num_pilots, target in COMBS:
        k, g, delay = links(comb, num_pilots, LINKS)
        half = 0.5 / (comb * SPACING)
        grid = np.arange(-half, half, GRID_STEP_S)
        turn = np.exp(2j * np.pi * SPACING * k[:, None] * grid)
        ours, (estimate, _) = timed(lambda k=k, g=g: delay_and_gain(g, k, SPACING))
        part = slice(0, GRID_LINKS)
        brute, on_grid = timed(lambda g=g[part], turn=turn, grid=grid: grid_search(g, turn, grid), 2)
        ours, brute = ours / LINKS, brute / GRID_LINKS
        label = f"K = {num_pilots}, comb {comb}"
        print(f"  {label + ': delay of a link, FFT and Newton':64s} {ours * 1e6:12.1f} us")
        print(f"  {label + f': grid of {len(grid)} delays':64s} {brute * 1e6:12.1f} us")
        verdicts.append((f"{label}: grid search / delay estimate", brute / ours, ">=", target))
        errors = rms(estimate[part] - delay[part]) / rms(on_grid - delay[part])
        verdicts.append((f"{label}: delay RMSE, ours / grid", errors, "<=", ERROR_TARGET))

    rng = np.random.default_rng(2)
    gain = np.exp(2j * np.pi * rng.random((64, 32)))
    used = np.ones(gain.shape, bool)
    hermitian = rng.normal(size=(96, 96)) + 1j * rng.normal(size=(96, 96))
    hermitian += hermitian.conj().T
    step, _ = timed(lambda: [tls_coefficients(gain, used) for _ in range(20)], 5)
    dense, _ = timed(lambda: [np.linalg.eigh(hermitian) for _ in range(20)], 5)
    verdicts.append(("TLS step of 64 x 32 nodes / dense eigendecomposition", step / dense, "<=", STEP_TARGET))
    k, g, _ = links(32, 49, 32)
    c = g.reshape(8, 4, 49)
    for calibrator in (ml_tls, joint_ml):
        seconds, _ = timed(lambda f=calibrator: f(c, k, SPACING, max_delay=60e-9), 5)
        print(f"  {calibrator.__name__ + ' of 8 x 4 links, K = 49':64s} {seconds * 1e3:12.2f} ms")
    grid, values = OfdmGrid(), np.ones((14, 1584), complex)
    samples = grid.modulate(values)
    seconds, _ = timed(lambda: grid.demodulate(samples, 14))
    print(f"  {'demodulation, 2048 points':64s} {values.size / seconds / 1e6:12.2f} M elements/s")

    return conclude(verdicts)


if __name__ == "__main__":
    sys.exit(main())
