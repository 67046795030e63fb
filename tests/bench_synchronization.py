# SPDX-License-Identifier: GPL-3.0-or-later
"""Speed of the phase trials from sufficient statistics and of the frequency estimate against what they replace.

All ratios are of processor time, taken in one run with one BLAS thread. The loop forms every received sample of
stages I to III of each trial and takes an SVD; 1000 trials of it are timed and scaled. The grid search evaluates
eq. (26) at 601 offsets for all trials of a batch in one matrix product, the fastest form of it; its offsets lie 1 Hz
apart.
"""

import os
import sys
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parent))
import conftest  # noqa: F401 - links the sources into the path
import numpy as np
from benchmarking import conclude, rms, timed
from gnuradio.dmimo.core.frequency import frequency_offset
from gnuradio.dmimo.experiments import beamsync_model as model

TRIALS, LOOP_TRIALS, TURNS, CHUNK = 100_000, 1000, 10, 250
NUM_ANTENNAS, NUM_SAMPLES, SNR_DB = 16, 100, 10.0
SAMPLE_INTERVAL, NUM_TONE, MAX_OFFSET_HZ, GRID_POINTS = 1e-3 / 14, 10, 300.0, 601
PHASE_TARGET, FREQUENCY_TARGET, LENGTH_TARGET, ERROR_TARGET = 10.0, 5.0, 1.2, 1.02


def phase_trials(num_trials, num_samples, seed=1):
    """Phase errors of `num_trials` trials by sufficient statistics."""
    rng, noise_var, out = np.random.Generator(np.random.SFC64(seed)), 10 ** (-SNR_DB / 10), []
    for _ in range(num_trials // CHUNK):
        draws = model.draw_pairs(
            rng, CHUNK, NUM_ANTENNAS, NUM_ANTENNAS, num_samples, dtype=np.complex64, reduced=True
        )
        a = model.pilot_direction(draws, noise_var)
        out.append(model.errors(model.exchange(draws, a, noise_var, num_samples))[:, 0])
    return np.concatenate(out)


def phase_loop(num_trials, num_samples, seed=2):
    """Phase errors of the loop over trials with every sample formed."""
    rng, sigma = np.random.Generator(np.random.SFC64(seed)), np.sqrt(10 ** (-SNR_DB / 10))
    m, normal = NUM_ANTENNAS, model.complex_normal
    pilots = np.linalg.qr(normal(rng, (m, m)))[0]
    x = normal(rng, (num_samples,))
    x *= np.sqrt(num_samples) / np.linalg.norm(x)
    errors = np.empty(num_trials)
    for k in range(num_trials):
        g = normal(rng, (m, m))
        c_a, c_b = np.exp(2j * np.pi * rng.random(2))
        heard = c_a * g.T @ pilots.T + sigma * normal(rng, (m, m))
        a = np.conj(np.linalg.svd(heard)[0][:, 0])
        y_a = c_b * np.outer(g @ a, x) + sigma * normal(rng, (m, num_samples))
        sent = np.conj(y_a) * np.sqrt(num_samples / np.sum(np.abs(y_a) ** 2))
        y_b = c_a * g.T @ sent + sigma * normal(rng, (m, num_samples))
        errors[k] = np.angle(a @ y_b @ x * np.conj(c_a * np.conj(c_b)))
    return errors


def tone_bursts(num_trials, seed=3):
    """(received (trials, M, N), waveform, true offsets)."""
    rng = np.random.default_rng(seed)
    x = np.sin(2 * np.pi * 0.2 * np.arange(NUM_TONE) + 0.3)
    x *= np.sqrt(NUM_TONE / np.sum(x**2))
    offset = rng.uniform(-MAX_OFFSET_HZ, MAX_OFFSET_HZ, num_trials)
    turn = np.exp(2j * np.pi * offset[:, None] * np.arange(NUM_TONE) * SAMPLE_INTERVAL)
    gains = 1.8 * model.complex_normal(rng, (num_trials, NUM_ANTENNAS, 1))
    y = gains * (x * turn)[:, None, :]
    y += np.sqrt(10 ** (-SNR_DB / 10)) * model.complex_normal(rng, y.shape)
    return y, x, offset


def grid_search(y, x, chunk=50):
    """Eq. (26) at 601 offsets."""
    grid = np.linspace(-MAX_OFFSET_HZ, MAX_OFFSET_HZ, GRID_POINTS)
    turn = np.exp(-2j * np.pi * np.arange(len(x))[:, None] * grid * SAMPLE_INTERVAL) * np.conj(x)[:, None]
    out = np.empty(len(y))
    for start in range(0, len(y), chunk):
        part = y[start : start + chunk]
        value = (part.reshape(-1, len(x)) @ turn).reshape(*part.shape[:2], -1)
        out[start : start + chunk] = grid[np.argmax(np.sum(value.real**2 + value.imag**2, axis=1), axis=-1)]
    return out


def main() -> int:
    phase_trials(CHUNK, NUM_SAMPLES), phase_loop(50, NUM_SAMPLES)  # caches and imports
    # In turns: the machine's speed drifts.
    turns = []
    for k in range(TURNS):
        first = timed(lambda k=k: phase_loop(LOOP_TRIALS // TURNS, NUM_SAMPLES, seed=100 + k))
        turns.append((*first, *timed(lambda k=k: phase_trials(TRIALS // TURNS, NUM_SAMPLES, seed=k))))
    loop, ours = sum(turn[0] for turn in turns) * TRIALS / LOOP_TRIALS, sum(turn[2] for turn in turns)
    loop_errors, errors = (np.concatenate([turn[k] for turn in turns]) for k in (1, 3))
    lengths = [[timed(lambda n=n: phase_trials(4 * CHUNK, n))[0] for n in (100, 1000)] for _ in range(10)]
    by_length = np.min(lengths, axis=0)

    y, x, offset = tone_bursts(2000)
    estimate_s, estimate = timed(lambda: frequency_offset(y, x, SAMPLE_INTERVAL, max_offset=MAX_OFFSET_HZ), 5)
    grid_s, on_grid = timed(lambda: grid_search(y, x), 3)
    quiet = np.abs(frequency_offset(*_noiseless(), SAMPLE_INTERVAL, max_offset=MAX_OFFSET_HZ) - 123.456)

    print(f"synchronisation, {NUM_ANTENNAS} antennas, {SNR_DB:g} dB, NumPy {np.__version__}")
    for label, value in (
        (f"{TRIALS} phase trials, N = {NUM_SAMPLES}, from sufficient statistics", ours),
        (f"the loop with every sample and an SVD, scaled from {LOOP_TRIALS}", loop),
        ("2000 frequency estimates, FFT and Newton", estimate_s),
        (f"2000 grid searches over {GRID_POINTS} offsets", grid_s),
    ):
        print(f"  {label:64s} {value * 1e3:12.1f} ms")
    print(f"  {'phase RMSE, ours and loop':64s} {rms(errors):12.5f} {rms(loop_errors):.5f} rad")
    print(f"  {'frequency RMSE, ours and grid':64s} {rms(estimate - offset):12.3f} {rms(on_grid - offset):.3f} Hz")
    print(f"  {'frequency error without noise, off the grid':64s} {quiet:12.1e} Hz")
    verdicts = [
        ("loop / phase trials", loop / ours, ">=", PHASE_TARGET),
        ("phase trials, N = 1000 / N = 100", by_length[1] / by_length[0], "<=", LENGTH_TARGET),
        ("grid search / frequency estimate", grid_s / estimate_s, ">=", FREQUENCY_TARGET),
        ("frequency RMSE, ours / grid", rms(estimate - offset) / rms(on_grid - offset), "<=", ERROR_TARGET),
    ]
    return conclude(verdicts)


def _noiseless():
    x = np.sin(2 * np.pi * 0.2 * np.arange(NUM_TONE) + 0.3)
    return (x * np.exp(2j * np.pi * 123.456 * np.arange(NUM_TONE) * SAMPLE_INTERVAL))[None], x


if __name__ == "__main__":
    sys.exit(main())
