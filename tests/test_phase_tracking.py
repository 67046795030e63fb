# SPDX-License-Identifier: GPL-3.0-or-later
"""Phase noise over a sweep, against random walks drawn here slot by slot."""

import numpy as np
import pytest
from gnuradio.dmimo.core import metrics, phase_tracking, sweep_calibration
from gnuradio.dmimo.core.sweep_calibration import calibrate_sweep

SAMP_RATE = 1e6
SLOT = 256  # samples
NU = 40e3 * np.arange(-4, 4)


class Sweep:
    """Rounds in which each port transmits once; path q one way in round q, the other way in that or the next.

    Oscillator phases of the nodes: a constant frequency and independent increments of variance 2 pi L dt from slot to
    slot. The paths are Rayleigh with unit mean power; t and r have 2 dB of spread.
    """

    def __init__(self, rng, nodes, rounds, *, linewidth_hz, noise_var=1e-3, cfo_hz=50.0, start=7_000_000):
        self.nodes = np.asarray(nodes)
        num_ports, num_nodes, num_slots = len(nodes), max(nodes) + 1, len(nodes) * (rounds + 40)
        self.start = start
        linewidth = np.broadcast_to(linewidth_hz, num_nodes)[:, None]
        steps = np.sqrt(2 * np.pi * linewidth * SLOT / SAMP_RATE) * rng.normal(size=(num_nodes, num_slots))
        self.cfo_hz = rng.uniform(-cfo_hz, cfo_hz, num_nodes)
        turn = 2 * np.pi * self.cfo_hz[:, None] * np.arange(num_slots) * SLOT / SAMP_RATE
        self.theta = 2 * np.pi * rng.random((num_nodes, 1)) + np.cumsum(steps, axis=1) + turn
        gains = 10 ** (0.1 * rng.normal(size=(2, num_ports))) * np.exp(2j * np.pi * rng.random((2, num_ports)))
        self.t, self.r = gains
        delay = 100e-9 * rng.uniform(-1, 1, num_ports)
        self.times = np.zeros((num_ports, num_ports, rounds), np.int64)
        self.y = np.zeros((num_ports, num_ports, rounds, len(NU)), complex)
        path = np.arange(rounds)
        # In pairs of rounds midpoints are twice as far apart: with many ports 100 Hz would be ambiguous.
        reverse = np.minimum(path ^ 1, rounds - 1) if num_ports <= 4 else path
        for i in range(num_ports):
            for j in range(i):
                h = (rng.normal(size=rounds) + 1j * rng.normal(size=rounds)) / np.sqrt(2)
                for to, sender, slot in ((i, j, path * num_ports + j), (j, i, reverse * num_ports + i)):
                    theta = self.theta[self.nodes[sender], slot] - self.theta[self.nodes[to], slot]
                    chain = self.r[to] * h * self.t[sender] * np.exp(1j * theta)
                    self.y[to, sender] = chain[:, None] * np.exp(-2j * np.pi * NU * delay[sender])
                    self.times[to, sender] = start + slot * SLOT
        noise = rng.normal(size=self.y.shape) + 1j * rng.normal(size=self.y.shape)
        self.y += np.sqrt(noise_var / 2) * noise
        self.end = start + (rounds * num_ports - 1) * SLOT
        self.noise_var = noise_var

    def truth(self, sample):
        """c relative to port 0; the sample must be that of a slot."""
        theta = self.theta[self.nodes, (sample - self.start) // SLOT]
        c = self.t / self.r * np.exp(2j * theta)
        return c / c[0]

    def calibrate(self, **options):
        options = {"noise_var": self.noise_var, "node_of_port": self.nodes, **options}
        return calibrate_sweep(self.y, self.times, samp_rate=SAMP_RATE, subcarriers_hz=NU, **options)


def normalised(got, sweep, sample=None):
    """Mean over ports of error^2 / predicted variance at a sample (the reference time by default), and rms error."""
    sample = got.reference_time if sample is None else sample
    error = np.angle(got.at(sample, SAMP_RATE) / sweep.truth(sample))[1:]
    return np.mean((error / got.phase_std_at(sample, SAMP_RATE)[1:]) ** 2), np.sqrt(np.mean(error**2))


def within(values, expected, tolerance):
    """Mean within 3 standard errors and a relative tolerance of what is expected."""
    mean, error = metrics.mean_and_standard_error(values)
    return abs(mean - expected) < 3 * error + tolerance * expected, (float(mean), float(error))


CASES = [([0, 1, 2, 3], 64, 0.01), ([0, 1, 2, 3], 64, 0.1), ([0, 0, 1, 2, 2, 2], 48, 0.03)]


@pytest.mark.parametrize(("nodes", "rounds", "linewidth_hz"), CASES)
def test_predicted_errors_and_linewidth_are_right_with_phase_noise(nodes, rounds, linewidth_hz):
    """CFO +-50 Hz, delays, 30 dB. At the end of the sweep, within it, 30 slots after it: error^2 / variance is 1."""
    rng = np.random.default_rng(1)
    at_end, inside, after, widths, ratio = [], [], [], [], []
    for run in range(30):
        sweep = Sweep(rng, nodes, rounds, linewidth_hz=linewidth_hz)
        got = sweep.calibrate()
        assert got.reference_time == sweep.end
        at_end.append(normalised(got, sweep)[0])
        after.append(normalised(got, sweep, sweep.end + 30 * SLOT)[0])
        middle = sweep.start + SLOT * (len(nodes) * rounds // 2)
        if run % 2:
            there = sweep.calibrate(reference_time=middle)
            assert there.reference_time == middle
            inside.append(normalised(there, sweep)[0])
        widths.append((got.phase_noise_hz[1] - linewidth_hz) / got.phase_noise_std_hz[1])
        ratio.append(got.phase_noise_hz[1] / linewidth_hz)
    for values in (at_end, inside, after):
        fine, seen = within(values, 1.0, 0.1)
        assert fine, seen
        assert seen[1] < 0.4
    fine, seen = within(ratio, 1.0, 0.05)
    assert fine, seen
    assert abs(np.mean(np.square(widths)) - 1.0) < 0.8  # 30 runs: three standard errors of 0.26


@pytest.mark.parametrize(("nodes", "rounds"), [([0, 1, 2, 3], 64), ([0, 1, 2, 3, 4, 5, 6, 7], 32)])
def test_tracking_beats_a_constant_frequency_at_the_end_of_the_sweep(monkeypatch, nodes, rounds):
    """Rms phase error at least 3 times smaller, at 0.05 Hz, where only the last round separates c from its use."""
    rng = np.random.default_rng(2)
    tracked, constant = [], []
    for _ in range(12):
        sweep = Sweep(rng, nodes, rounds, linewidth_hz=0.05)
        tracked.append(normalised(sweep.calibrate(), sweep)[1] ** 2)
        with monkeypatch.context() as patch:
            patch.setattr(sweep_calibration, "track_phases", lambda *a, **k: None)
            constant.append(normalised(sweep.calibrate(), sweep, sweep.end)[1] ** 2)
    assert np.sqrt(np.mean(tracked)) < np.sqrt(np.mean(constant)) / 3


@pytest.mark.parametrize(("nodes", "rounds", "noise_var"), [([0, 1, 2], 9, 0.03), ([0, 0, 1, 2, 3], 16, 0.1),
                                                           ([0, 1, 2, 3], 40, 1.0)])
def test_phase_noise_is_not_seen_where_there_is_none(nodes, rounds, noise_var):
    """Designed rate 1e-3: two of 100 are unlikely (0.5 %). The errors are those of the joint fit, as predicted."""
    rng = np.random.default_rng(3)
    seen, values = 0, []
    for _ in range(100):
        sweep = Sweep(rng, nodes, rounds, linewidth_hz=0.0, noise_var=noise_var)
        got = sweep.calibrate()
        if got.phase_noise_hz[-1] > 0:
            seen += 1
            continue
        error = np.angle(got.at(sweep.start, SAMP_RATE) / sweep.truth(sweep.start))[1:]
        values.append(np.mean((error / got.phase_std_at(sweep.start, SAMP_RATE)[1:]) ** 2))
    assert seen <= 1
    fine, found = within(values, 1.0, 0.05)
    assert fine, found


def test_long_cells_of_large_networks_keep_the_prediction(monkeypatch):
    """Cells of several transmissions, as 64 nodes get: error^2 / variance within a factor of 1.4 of 1."""
    monkeypatch.setattr(phase_tracking, "_FINAL_WORK", 2e5)
    rng = np.random.default_rng(4)
    values = []
    for _ in range(30):
        sweep = Sweep(rng, [0, 1, 2, 3, 4, 5], 48, linewidth_hz=0.03)
        values.append(normalised(sweep.calibrate(), sweep)[0])
    mean, error = metrics.mean_and_standard_error(values)
    assert error < 0.3
    assert 1 / 1.4 - 3 * error < mean < 1.4 + 3 * error, (float(mean), float(error))


def test_unequal_ports_missing_pairs_and_unknown_noise():
    rng = np.random.default_rng(5)
    values, widths = [], []
    for _ in range(40):
        sweep = Sweep(rng, [0, 0, 0, 1, 2, 2, 3], 32, linewidth_hz=0.05)
        sweep.y[0, 3] = np.nan
        sweep.y[4, 6] = np.nan
        sweep.y[rng.random(sweep.times.shape) < 0.1] = np.nan
        got = sweep.calibrate(noise_var=None)
        assert got.trusted, got.reasons
        values.append(np.mean((np.angle(got.at(sweep.end, SAMP_RATE) / sweep.truth(sweep.end))[3:]
                               / got.phase_std_at(sweep.end, SAMP_RATE)[3:]) ** 2))
        widths.append(got.phase_noise_hz[3] / 0.05)
    for found, tolerance in ((values, 0.15), (widths, 0.1)):
        fine, seen = within(found, 1.0, tolerance)
        assert fine, seen


def test_ports_of_the_reference_node_stay_together():
    """Their phases do not walk apart: nothing is added to their error, and the common walk of a node is common."""
    sweep = Sweep(np.random.default_rng(6), [0, 0, 1, 1], 64, linewidth_hz=0.05)
    got = sweep.calibrate()
    assert got.phase_noise_hz[1] > 0
    assert got.phase_std_rad[1] < 0.1 * got.phase_std_rad[2]
    difference = got.covariance[2, 2] + got.covariance[3, 3] - 2 * got.covariance[2, 3]
    assert difference.real < 0.05 * got.covariance[2, 2].real
    later = sweep.end + 1_000_000
    assert got.phase_std_at(later, SAMP_RATE)[1] == pytest.approx(got.phase_std_rad[1])
    growth = np.sqrt(got.phase_std_rad[2] ** 2 + 16 * np.pi * got.phase_noise_hz[2])
    assert got.phase_std_at(later, SAMP_RATE)[2] > growth


def test_short_sweeps_of_three_access_points_do_not_break():
    """27 slots at 0.01 and 1 Hz: finite results; where a walk is seen, its error is the predicted one within 1.6."""
    rng = np.random.default_rng(7)
    for linewidth_hz in (0.01, 1.0):
        values = []
        for _ in range(40):
            sweep = Sweep(rng, [0, 1, 2], 9, linewidth_hz=linewidth_hz, noise_var=1e-3)
            got = sweep.calibrate()
            assert np.isfinite(got.c).all()
            assert np.isfinite(got.covariance).all()
            if got.phase_noise_hz[1] > 0:
                values.append(normalised(got, sweep)[0])
        if linewidth_hz == 1.0:
            assert len(values) > 33
        if len(values) > 5:
            mean, error = metrics.mean_and_standard_error(values)
            assert mean < 1.6 + 3 * error, (linewidth_hz, float(mean), float(error))


def test_large_predicted_error_is_reported():
    sweep = Sweep(np.random.default_rng(8), [0, 1, 2], 100, linewidth_hz=1.0)
    got = sweep.calibrate()
    assert got.phase_noise_hz[1] == pytest.approx(1.0, rel=0.4)
    far = sweep.calibrate(reference_time=sweep.end + 100_000)
    assert not far.trusted
    assert any("predicted phase error" in reason for reason in far.reasons)
