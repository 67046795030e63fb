# SPDX-License-Identifier: GPL-3.0-or-later
"""Speed of the maximum-likelihood delay of a link, and of the calibration of all links, against what they replace.

All ratios are of processor time, taken in one run with one BLAS thread, at 120 kHz spacing and 10 dB per element. The
grid search evaluates eq. (25) every 10 ps over all delays that the comb tells apart, for all links of a batch in one
matrix product, the fastest form of it; the few pilots of a CARS link make that product cheap. Ratios are medians of
rounds in which both take turns.
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
from gnuradio.dmimo.core.cars import cars_precoding, equivalent_channel
from gnuradio.dmimo.core.delay import delay_and_gain
from gnuradio.dmimo.core.ofdm import CombMapping, OfdmGrid, pilot_sequence

SPACING, GRID_STEP_S, SNR_DB = 120e3, 10e-12, 10.0
# Comb, pilots and least ratio: SRS of 4 UEs, CSI-RS of 8 TRPs, CARS between them.
COMBS = ((4, 396, 100.0), (8, 198, 100.0), (32, 49, 100.0))
LINKS, GRID_LINKS, ROUNDS = 320, 16, 7
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


def repeated(ours, theirs, ours_each, theirs_each):
    """Medians of the times of both per item, and of their ratio: neighbours in time share what else runs."""
    times = []
    for _ in range(ROUNDS):
        first, _ = timed(ours, 3)
        second, _ = timed(theirs)
        times.append((first / ours_each, second / theirs_each, second / theirs_each / (first / ours_each)))
    return np.median(times, axis=0)


def bench_delay(verdicts):
    for comb, num_pilots, target in COMBS:
        k, g, delay = links(comb, num_pilots, LINKS)
        half = 0.5 / (comb * SPACING)
        grid = np.arange(-half, half, GRID_STEP_S)
        turn = np.exp(2j * np.pi * SPACING * k[:, None] * grid)
        part = slice(0, GRID_LINKS)
        estimate, _ = delay_and_gain(g, k, SPACING)
        on_grid = grid_search(g[part], turn, grid)
        ours, brute, ratio = repeated(
            lambda k=k, g=g: [delay_and_gain(g, k, SPACING) for _ in range(5)],
            lambda g=g[part], turn=turn, grid=grid: grid_search(g, turn, grid),
            5 * LINKS,
            GRID_LINKS,
        )
        label = f"K = {num_pilots}, comb {comb}"
        print(f"  {label + ': delay of a link, FFT and Newton':64s} {ours * 1e6:12.1f} us")
        print(f"  {label + f': grid of {len(grid)} delays':64s} {brute * 1e6:12.1f} us")
        verdicts.append((f"{label}: grid search / delay estimate", ratio, ">=", target))
        errors = rms(estimate[part] - delay[part]) / rms(on_grid - delay[part])
        verdicts.append((f"{label}: delay RMSE, ours / grid", errors, "<=", ERROR_TARGET))


def bench_nodes(verdicts):
    """Gains of links at 10 dB per element, after 49 elements, and their matrix."""
    rng = np.random.default_rng(2)
    trp, ue = np.exp(2j * np.pi * rng.random(64)), np.exp(2j * np.pi * rng.random(32))
    noise = np.sqrt(0.5 * 0.2 / 49) * rng.normal(size=(2, 64, 32))
    gain, used = ue / trp[:, None] + noise[0] + 1j * noise[1], np.ones((64, 32), bool)
    matrix = np.block([[32.0 * np.eye(64), -gain.conj()], [-gain.T, 64.0 * np.eye(32)]])
    matrix[np.arange(64), np.arange(64)] = np.sum(np.abs(gain) ** 2, axis=-1)
    step, dense, ratio = repeated(
        lambda: [tls_coefficients(gain, used) for _ in range(20)],
        lambda: [np.linalg.eigh(matrix) for _ in range(20)],
        20,
        20,
    )
    print(f"  {'TLS step of 64 x 32 nodes':64s} {step * 1e3:12.2f} ms")
    print(f"  {'dense eigendecomposition of its matrix':64s} {dense * 1e3:12.2f} ms")
    verdicts.append(("TLS step of 64 x 32 nodes / dense eigendecomposition", 1.0 / ratio, "<=", STEP_TARGET))
    k, tau = links(32, 49, 1)[0], rng.uniform(-10e-9, 10e-9, 12)
    noise = np.sqrt(0.5 * 10 ** (-SNR_DB / 10)) * rng.normal(size=(2, 8, 4, 49))
    c = np.exp(-4j * np.pi * SPACING * k * (tau[8:] - tau[:8, None])[..., None]) + noise[0] + 1j * noise[1]
    for calibrator in (ml_tls, joint_ml):
        seconds, _ = timed(lambda f=calibrator: f(c, k, SPACING, max_delay=60e-9), 5)
        print(f"  {calibrator.__name__ + ' of 8 x 4 links, K = 49':64s} {seconds * 1e3:12.2f} ms")


def pattern(grid, mapping, channel):
    """CSI-RS and UL-CARS of 8 TRPs and 4 UEs through samples, then joint_ml; the number of elements received."""
    k, positions = mapping.subcarriers(grid), mapping.response
    elements = np.zeros((8, 1, grid.num_subcarriers), complex)
    for m in range(8):
        elements[m, 0, mapping.sounding[m]] = pilot_sequence("csi_rs", mapping.pilots_per_port, identity=m)
    sent = elements[:, 0].sum(axis=0)
    samples = np.tensordot(channel, grid.modulate(elements, dtype=np.complex64), axes=(0, 0))
    heard = grid.demodulate(samples, 1)[:, 0]
    h = np.stack([heard[n, positions[:, n]] / sent[positions[:, n]] for n in range(4)], axis=1)
    burst = cars_precoding(h)
    answer = np.zeros((4, 1, grid.num_subcarriers), complex)
    for n in range(4):
        answer[n, 0, positions[:, n]] = burst.weights[:, n] * pilot_sequence("cars", 49, identity=n)
    samples = np.tensordot(channel, grid.modulate(answer, dtype=np.complex64), axes=(1, 0))
    read = grid.demodulate(samples, 1)[:, 0]
    cars = np.stack([pilot_sequence("cars", 49, identity=n) for n in range(4)])
    own = np.stack([read[m][positions[m]] for m in range(8)])
    joint_ml(equivalent_channel(own, cars, burst.scale), k, SPACING, max_delay=60e-9)
    return heard.size + read.size


def bench_elements():
    grid, values = OfdmGrid(), np.ones((14, 1584), complex)
    samples = grid.modulate(values)
    seconds, _ = timed(lambda: grid.demodulate(samples, 14), 5)
    print(f"  {'demodulation, 2048 points':64s} {values.size / seconds / 1e6:12.2f} M elements/s")
    rng, mapping = np.random.default_rng(3), CombMapping(8, 4, 196)
    channel = np.exp(2j * np.pi * rng.random((8, 4)))
    pattern(grid, mapping, channel)
    seconds, elements = timed(lambda: pattern(grid, mapping, channel), 5)
    print(f"  {'a pattern of 8 TRPs and 4 UEs, samples to coefficients':64s} {seconds * 1e3:12.2f} ms")
    label = "  of all elements received: modulation to joint_ml"
    print(f"  {label:64s} {elements / seconds / 1e6:12.2f} M elements/s")


def main() -> int:
    print(f"bidirectional calibration, {SNR_DB:g} dB per element, NumPy {np.__version__}")
    verdicts = []
    bench_delay(verdicts)
    bench_nodes(verdicts)
    bench_elements()
    return conclude(verdicts)


if __name__ == "__main__":
    sys.exit(main())
