# SPDX-License-Identifier: GPL-3.0-or-later
"""Benchmark of over-the-air identification and calibration: python tests/bench_predistortion.py (not for pytest).

100 ports in a 4 x 25 array. The alternating estimator solves for the receivers' gains with the coefficients held and
the reverse, from the same statistics, which is the fastest it can be made; 200 rounds as is usual. The calibration is
that of all pairs, against 200 rounds of the alternating iteration on the same statistics. Ratios of processor times on
one machine, and one absolute target. Exit code 1 if a target is missed.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))
import conftest  # noqa: F401 - links the sources into the path
import numpy as np
from benchmarking import conclude, timed
from coupled_arrays import array_gains, measured
from gnuradio.dmimo.core import metrics, mutual_coupling, reciprocity
from gnuradio.dmimo.core import predistortion as dpd
from gnuradio.dmimo.core.alternating import iterate_statistics
from gnuradio.dmimo.core.predistortion_identification import fit_statistics

PORTS, ROUNDS = 100, 200
IDENTIFICATION_S, ALTERNATING_TARGET, LENGTH_TARGET = 0.020, 10.0, 1.3


def alternating(statistics, rounds=ROUNDS):
    """Legendre coefficients (M_tx, P), first entry 1, by alternating least squares for all ports at once."""
    correlation = np.swapaxes(statistics.correlation, -3, -2)[..., :2]
    gram = statistics.gram[:2, :2]
    inverse = np.linalg.inv(gram)
    theta = np.zeros((correlation.shape[0], 2), complex)
    theta[:, 0] = 1.0
    for _ in range(rounds):
        energy = np.einsum("mp,pq,mq->m", theta.conj(), gram, theta).real
        gains = (correlation @ theta.conj()[..., None])[..., 0] / energy[:, None]
        combined = (gains.conj()[:, None] @ correlation)[:, 0] / np.sum(np.abs(gains) ** 2, axis=-1)[:, None]
        theta = combined @ inverse.T
        theta = theta / theta[:, :1]
    return theta


def alternating_calibration(gains, rounds=ROUNDS):
    """c (M,) by the alternating iteration on the pairs' statistics, from all ones."""
    statistics = reciprocity.pair_statistics(gains[..., None])
    c = np.ones(PORTS, complex)
    for _ in range(rounds):
        c = iterate_statistics(statistics.power, statistics.correlation, c)
    return c


def measure(rng, num_pilots):
    pilots = dpd.design_pilots(num_pilots, rng=rng)
    c = np.stack([np.ones(PORTS), -0.12 + 0.05j + 0.03 * rng.standard_normal(PORTS)], axis=-1)
    gains = 10 ** (-rng.uniform(0, 2, (PORTS, PORTS))) * np.exp(2j * np.pi * rng.uniform(size=(PORTS, PORTS)))
    y = gains[..., None] * dpd.amplify(pilots, c)
    return y + 1e-3 * (rng.standard_normal(y.shape) + 1j * rng.standard_normal(y.shape)), pilots


def main():
    rng = np.random.default_rng(1)
    y, pilots = measure(rng, 100)
    accumulate, statistics = timed(lambda: dpd.pilot_statistics(y, pilots), 20)
    long = dpd.pilot_statistics(*measure(rng, 400))
    # In turns: the machine's speed drifts.
    times = np.min([
        [timed(lambda part=part: dpd.identify_amplifiers(part), 10)[0] for part in (statistics, long)]
        for _ in range(5)], axis=0)  # fmt: skip
    ninth_statistics = dpd.pilot_statistics(y, pilots, order=9)
    ninth, _ = timed(lambda: dpd.identify_amplifiers(ninth_statistics), 10)
    fitted, _ = timed(lambda: fit_statistics(statistics), 20)
    slow, theta = timed(lambda: alternating(statistics), 3)
    found = dpd.identify_amplifiers(statistics, noise_var=2e-6)
    # kappa from the Legendre coefficients of P_1 = 2 u - 1.
    reached = 2 * theta[:, 1] / (1 - theta[:, 1]) / statistics.peak**2
    difference = np.abs(reached - found.coefficients[:, 1]) / np.sqrt(found.covariance[:, 0, 0].real)
    gains, true, _ = array_gains(rng, 4, 25)
    gains = measured(rng, gains, 1e-6 * np.abs(gains).max() ** 2, 1)[0]
    calibrated, c = timed(lambda: mutual_coupling.all_pairs(gains), 10)
    rounds, slow_c = timed(lambda: alternating_calibration(gains), 3)
    samples = np.tile(0.3 * np.exp(1j * np.arange(1000)), (PORTS, 1))
    closed, _ = timed(lambda: found.predistort(samples), 5)
    table = dpd.predistorter_table(found.coefficients)
    interpolated, _ = timed(lambda: dpd.apply_table(samples, table), 5)
    size = sum(part.nbytes for part in (statistics.gram, statistics.correlation, statistics.energy)) / 1e6
    print(f"{PORTS} ports, NumPy {np.__version__}; statistics {size:.1f} MB of {y.nbytes / 1e6:.0f} MB of samples")
    for label, seconds in [
        ("statistics of 100 pilots", accumulate), ("coefficients and their errors from them", fitted),
        ("the same, and predicted distortions and refusal", times[0]),
        ("all of it, order 9", ninth), (f"alternating least squares, {ROUNDS} rounds, same statistics", slow),
        ("calibration from all pairs", calibrated), (f"alternating calibration, {ROUNDS} rounds", rounds),
        ("100 x 1000 samples, closed form", closed), ("100 x 1000 samples, table", interpolated),
    ]:  # fmt: skip
        print(f"  {label:64s} {seconds * 1e3:12.3f} ms")
    print(f"  alternating differs by {difference.max():.1e} standard deviations")
    errors = (metrics.alignment_error(one, true) for one in (c, slow_c))
    print("  alignment error of all pairs {:.1e}, of the alternating rounds {:.1e}".format(*errors))
    return conclude([
        ("identification and calibration / 20 ms", (times[0] + calibrated) / IDENTIFICATION_S, "<=", 1.0),
        ("alternating / coefficients and errors", slow / fitted, ">=", ALTERNATING_TARGET),
        ("alternating / both, refusal included", (slow + rounds) / (times[0] + calibrated), ">=", ALTERNATING_TARGET),
        ("identification, 400 / 100 pilots", times[1] / times[0], "<=", LENGTH_TARGET),
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
