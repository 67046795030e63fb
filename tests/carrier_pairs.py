# SPDX-License-Identifier: GPL-3.0-or-later
"""Pairs of simulated oscillators that trackers and planners are held against."""

import numpy as np
from gnuradio.dmimo.core.carrier_model import wrap
from gnuradio.dmimo.core.carrier_tracking import CarrierTracker
from gnuradio.dmimo.simulation.oscillators import Oscillator, OscillatorBank

SAMP_RATE = 1e6
GRID = 256
# Of one node; the pair has twice the linewidth and sqrt(2) times the drift and the offset.
NODE = {"linewidth_hz": 2e-4, "drift_hz": 0.03, "drift_period_s": 20.0}
PAIR = {"linewidth_hz": 4e-4, "drift_hz": 0.03 * np.sqrt(2), "drift_period_s": 20.0}
OFFSET_HZ = 2.0
STD_RAD, STD_HZ = 0.03, 0.05


class SimulatedPairs:
    """phi and f of many pairs of the simulation's oscillators, at grid blocks; shares no code with the tracker."""

    def __init__(self, num_pairs, seed, offset_hz=OFFSET_HZ, **changes):
        rng = np.random.default_rng(seed)
        settings = {**NODE, **changes}
        cfo = rng.normal(0, offset_hz, (num_pairs, 2))

        def bank(**options):
            nodes = [Oscillator(samp_rate=SAMP_RATE, seed_key=(seed, *place), cfo_hz=cfo[place], **options)
                     for place in np.ndindex(num_pairs, 2)]
            return OscillatorBank(nodes, 1)

        self._all, self._smooth = bank(**settings), bank(**{**settings, "linewidth_hz": 0.0})

    def phi(self, block):
        """2 (theta_leader - theta_follower) at sample 256 block."""
        theta = self._all.grid_phase(block, 1)[0][:, 0].reshape(-1, 2)
        return 2.0 * (theta[:, 0] - theta[:, 1])

    def frequency_hz(self, block):
        """f_leader - f_follower, mean over the grid block, without phase noise."""
        turn = [self._smooth.grid_phase(b, 1)[0][:, 0].reshape(-1, 2).copy() for b in (block, block + 1)]
        turned = np.diff(turn[1] - turn[0], axis=1)[:, 0]
        return -wrap(turned) / (2 * np.pi * GRID / SAMP_RATE)


def run_tracker(pairs, num_pairs, blocks, seed, *, std_hz=STD_HZ, offset_hz=OFFSET_HZ, after=None, **changes):
    """Track all pairs over exchanges at `blocks`: errors and predicted deviations of phi and f just before each.

    `after`, if given, is called with the tracker after each exchange.
    """
    rng = np.random.default_rng((seed, 1))
    tracker = CarrierTracker(SAMP_RATE, **{**PAIR, **changes}, offset_std_hz=offset_hz * np.sqrt(2), shape=(num_pairs,))
    errors, deviations = [], []
    for block in blocks:
        phi, f = pairs.phi(block), pairs.frequency_hz(block)
        known = tracker.predict(GRID * block)
        errors.append([wrap(known.phase_rad - phi), known.frequency_hz - f])
        deviations.append([known.phase_std_rad, known.frequency_std_hz])
        tracker.update(wrap(phi + rng.normal(0, STD_RAD, num_pairs)), STD_RAD, GRID * block,
                       f + rng.normal(0, 1, num_pairs) * (std_hz if np.isfinite(std_hz) else 0), std_hz)
        if after is not None:
            after(tracker)
    return np.array(errors), np.array(deviations), tracker


def mean_and_deviation(x):
    """Mean over axis 0 of independent pairs, and its standard error."""
    return x.mean(axis=0), x.std(axis=0, ddof=1) / np.sqrt(len(x))


def steps_of(interval_s, count, first_s=0.01):
    """Grid blocks of an exchange soon after the first one, to find the frequency, then `count` at the interval."""
    return np.cumsum(np.rint(np.array([1.0, first_s, 0.1, 0.4, *[interval_s] * count]) * SAMP_RATE / GRID).astype(int))
