# SPDX-License-Identifier: GPL-3.0-or-later
"""Timed wideband calibration against a simulation written out here: every one-way transmission, chain by chain."""

import numpy as np
import pytest
from gnuradio.dmimo.core import metrics
from gnuradio.dmimo.core.reciprocity import DisconnectedGraphError, calibrate
from gnuradio.dmimo.core.sweep_calibration import calibrate_sweep

SAMP_RATE = 1e6
SLOT = 256  # samples


class Network:
    """Ports with transmit and receive gains and chain delays, nodes with an oscillator phase theta(sample)."""

    def __init__(self, rng, node_of_port, *, cfo_hz=50.0, delay_s=0.0, gain_db=3.0):
        self.nodes = np.asarray(node_of_port)
        num_ports, num_nodes = len(self.nodes), self.nodes.max() + 1
        draw = 10 ** (gain_db / 20 * rng.normal(size=(2, num_ports)))
        self.t, self.r = draw * np.exp(2j * np.pi * rng.random((2, num_ports)))
        self.tx_delay, self.rx_delay = delay_s * rng.uniform(-0.5, 0.5, (2, num_ports))
        self.cfo_hz = rng.uniform(-cfo_hz, cfo_hz, num_nodes)
        self.phase = 2 * np.pi * rng.random(num_nodes)

    def theta(self, node, sample):
        return self.phase[node] + 2 * np.pi * self.cfo_hz[node] * (sample / SAMP_RATE)

    def transmit(self, port, sample, nu):
        turn = np.exp(1j * self.theta(self.nodes[port], sample))
        return self.t[port] * turn * np.exp(-2j * np.pi * nu * self.tx_delay[port])

    def receive(self, port, sample, nu):
        turn = np.exp(-1j * self.theta(self.nodes[port], sample))
        return self.r[port] * turn * np.exp(-2j * np.pi * nu * self.rx_delay[port])

    def calibration(self, sample, nu=0.0):
        ports = range(len(self.nodes))
        return np.array([self.transmit(m, sample, nu) / self.receive(m, sample, nu) for m in ports])


def schedule(rng, num_ports, num_components, start, *, jitter=0):
    """times (M, M, Q): in each round every port transmits in turn; others receive. Rounds follow one another."""
    times = np.zeros((num_ports, num_ports, num_components), np.int64)
    for q in range(num_components):
        for j in range(num_ports):
            late = 0 if jitter == 0 else int(rng.integers(0, jitter))
            times[:, j, q] = start + (q * num_ports + j) * SLOT + SLOT // 2 + late
    return times


def sweep(rng, net, times, nu, noise_var, blocked=()):
    """y (M, M, Q, K): reciprocal Rayleigh paths, flat over the band, through the chains at their times."""
    num_ports, _, num_components = times.shape
    y = np.zeros((*times.shape, len(nu)), complex)
    for i in range(num_ports):
        for j in range(i):
            path = (rng.normal(size=num_components) + 1j * rng.normal(size=num_components)) / np.sqrt(2)
            if (j, i) in blocked or i in blocked or j in blocked:
                path = 0 * path
            for q in range(num_components):
                to_i, to_j = times[i, j, q], times[j, i, q]
                y[i, j, q] = net.receive(i, to_i, nu) * path[q] * net.transmit(j, to_i, nu)
                y[j, i, q] = net.receive(j, to_j, nu) * path[q] * net.transmit(i, to_j, nu)
    sigma = np.sqrt(np.broadcast_to(noise_var, num_ports) / 2)[:, None, None, None]
    return y + sigma * (rng.normal(size=y.shape) + 1j * rng.normal(size=y.shape))


NU = 40e3 * np.arange(-6, 6)


@pytest.mark.parametrize("nodes", [[0, 1, 2], [0, 0, 1, 2, 2], [0, 1, 0, 2, 3, 1, 1]])
@pytest.mark.parametrize("wideband", [False, True])
def test_noiseless_sweep_gives_the_true_coefficients_frequencies_and_delays(nodes, wideband):
    rng = np.random.default_rng(1)
    net = Network(rng, nodes, delay_s=200e-9)
    times = schedule(rng, len(nodes), 9, 123_456_789_012)
    nu = NU if wideband else np.zeros(1)
    y = sweep(rng, net, times, nu, 0.0)
    same = net.nodes[:, None] == net.nodes
    y[same] = np.nan
    got = calibrate_sweep(y, times, samp_rate=SAMP_RATE, subcarriers_hz=nu, node_of_port=nodes, noise_var=1e-9)
    truth = net.calibration(got.reference_time)
    assert got.trusted, got.reasons
    assert times.min() < got.reference_time < times.max()
    np.testing.assert_allclose(got.c, truth / truth[0], rtol=1e-6)
    np.testing.assert_allclose(got.frequency_hz, (net.cfo_hz - net.cfo_hz[0])[net.nodes], atol=1e-6)
    if wideband:
        delay = net.tx_delay - net.rx_delay
        np.testing.assert_allclose(got.delay_s, delay - delay[0], atol=1e-15)
        off = net.calibration(got.reference_time, 120e3)
        model = got.c * np.exp(-2j * np.pi * 120e3 * got.delay_s)
        np.testing.assert_allclose(model, off / off[0], rtol=1e-6)


def test_coefficients_extrapolate_to_another_time_and_reference_time_is_obeyed():
    rng = np.random.default_rng(2)
    net = Network(rng, [0, 1, 2, 3])
    times = schedule(rng, 4, 9, 5_000_000)
    y = sweep(rng, net, times, np.zeros(1), 0.0)[..., 0]
    got = calibrate_sweep(y, times, samp_rate=SAMP_RATE, noise_var=1e-9)
    later = got.reference_time + 70_000
    truth = net.calibration(later)
    np.testing.assert_allclose(got.at(later, SAMP_RATE), truth / truth[0], rtol=1e-5)
    there = calibrate_sweep(y, times, samp_rate=SAMP_RATE, noise_var=1e-9, reference_time=later)
    assert there.reference_time == later
    np.testing.assert_allclose(there.c, truth / truth[0], rtol=1e-5)
    np.testing.assert_allclose(there.phase_std_rad, got.phase_std_at(later, SAMP_RATE), rtol=1e-6)
    assert np.all(there.phase_std_rad[1:] > 2 * got.phase_std_rad[1:])


@pytest.mark.parametrize(
    ("nodes", "snr_db", "runs"), [([0, 1, 2], 15.0, 200), ([0, 0, 1, 2, 2], 10.0, 150), ([0, 1, 2, 3, 4, 5], 10.0, 150)]
)
def test_errors_are_as_large_as_the_joint_bound_says(nodes, snr_db, runs):
    """Root mean square over runs and ports of error / predicted deviation; 1 within 3 standard errors and 5 %.

    SNR axis: per element of y at unit gains. Gains spread by 3 dB, CFO +-50 Hz, delays +-100 ns, unequal noise.
    The standard error is taken over runs (ports of one run are correlated).
    """
    rng = np.random.default_rng(3)
    normalised = {"phase": [], "magnitude": [], "frequency": [], "delay": []}
    for _ in range(runs):
        net = Network(rng, nodes, delay_s=200e-9)
        noise_var = 10 ** (-snr_db / 10) * 10 ** rng.uniform(-0.3, 0.3, len(nodes))
        times = schedule(rng, len(nodes), 9, 10_000_000, jitter=100)
        y = sweep(rng, net, times, NU, noise_var)
        got = calibrate_sweep(
            y, times, samp_rate=SAMP_RATE, subcarriers_hz=NU, noise_var=noise_var, node_of_port=nodes
        )
        assert got.trusted, got.reasons
        truth = net.calibration(got.reference_time)
        error = np.log(got.c[1:] * truth[0] / truth[1:])
        delay = net.tx_delay - net.rx_delay
        other = net.nodes != net.nodes[0]
        magnitude_std = np.sqrt(got.covariance.real.diagonal()[1:] - got.phase_std_rad[1:] ** 2)
        normalised["phase"].append(np.mean((error.imag / got.phase_std_rad[1:]) ** 2))
        normalised["magnitude"].append(np.mean((error.real / magnitude_std) ** 2))
        frequency = (net.cfo_hz - net.cfo_hz[0])[net.nodes][other]
        normalised["frequency"].append(
            np.mean(((got.frequency_hz[other] - frequency) / got.frequency_std_hz[other]) ** 2)
        )
        normalised["delay"].append(np.mean(((got.delay_s - delay + delay[0])[1:] / got.delay_std_s[1:]) ** 2))
    for name, values in normalised.items():
        mean, error = metrics.mean_and_standard_error(values)
        assert abs(mean - 1.0) < 3 * error + 0.05, (name, float(mean), float(error))
        assert error < 0.1, name


def test_phase_and_frequency_errors_are_uncorrelated_at_the_default_reference_time():
    rng = np.random.default_rng(4)
    net = Network(rng, [0, 1, 2, 3])
    times = schedule(rng, 4, 25, 0)
    y = sweep(rng, net, times, np.zeros(1), 0.05)
    got = calibrate_sweep(y, times, samp_rate=SAMP_RATE, noise_var=0.05)
    correlation = got.phase_frequency_covariance[1:] / (got.phase_std_rad * got.frequency_std_hz)[1:]
    assert np.abs(correlation).max() < 0.3
    edge = calibrate_sweep(y, times, samp_rate=SAMP_RATE, noise_var=0.05, reference_time=0)
    assert np.all(edge.phase_std_rad[1:] > 1.5 * got.phase_std_rad[1:])


def test_summing_before_derotation_is_badly_wrong():
    """The plain estimator on the same data: with 50 Hz of CFO, and with delays across the band, it fails."""
    rng = np.random.default_rng(5)
    for cfo_hz, delay_s in ((50.0, 0.0), (0.0, 4e-6)):
        net = Network(rng, [0, 1, 2, 3], cfo_hz=cfo_hz, delay_s=delay_s)
        times = schedule(rng, 4, 9, 0)
        y = sweep(rng, net, times, NU, 0.01)
        got = calibrate_sweep(y, times, samp_rate=SAMP_RATE, subcarriers_hz=NU, noise_var=0.01)
        truth = net.calibration(got.reference_time)
        assert metrics.alignment_error(got.c, truth) < 1e-3
        summed_first = calibrate(y.reshape(4, 4, -1))
        assert metrics.alignment_error(summed_first, truth) > 0.05


@pytest.mark.parametrize("method", ["argos", "argos_mean", "least_squares", "tls", "spanning_tree"])
def test_other_methods_work_on_the_derotated_sums(method):
    rng = np.random.default_rng(6)
    net = Network(rng, [0, 1, 2, 3], delay_s=200e-9)
    times = schedule(rng, 4, 9, 0)
    y = sweep(rng, net, times, NU, 1e-4)
    got = calibrate_sweep(y, times, samp_rate=SAMP_RATE, subcarriers_hz=NU, noise_var=1e-4, method=method)
    assert metrics.alignment_error(got.c, net.calibration(got.reference_time)) < 1e-4


def test_frequency_is_shared_by_the_ports_of_a_node():
    rng = np.random.default_rng(7)
    nodes = [0, 0, 1, 1]
    net = Network(rng, nodes)
    times = schedule(rng, 4, 9, 0)
    got = calibrate_sweep(
        sweep(rng, net, times, np.zeros(1), 0.05), times, samp_rate=SAMP_RATE, noise_var=0.05, node_of_port=nodes
    )
    assert got.frequency_hz[2] == got.frequency_hz[3]
    assert got.frequency_hz[1] == 0.0


def test_without_offsets_the_result_is_that_of_calibrate():
    rng = np.random.default_rng(8)
    net = Network(rng, [0, 1, 2, 3], cfo_hz=0.0)
    times = schedule(rng, 4, 9, 0)
    y = sweep(rng, net, times, np.zeros(1), 1e-3)[..., 0]
    got = calibrate_sweep(y, times, samp_rate=SAMP_RATE, noise_var=1e-3, estimate_frequency=False)
    np.testing.assert_allclose(got.c, calibrate(y, noise_var=1e-3), rtol=1e-2)
    np.testing.assert_array_equal(got.frequency_hz, 0.0)
    np.testing.assert_array_equal(got.frequency_std_hz, 0.0)


# --- missing, bad and impossible data ---


def noisy(rng, num_ports=5, noise_var=0.01, **options):
    net = Network(rng, np.arange(num_ports), delay_s=200e-9)
    times = schedule(rng, num_ports, 9, 0)
    return net, times, sweep(rng, net, times, NU, noise_var, **options)


def run(y, times, **options):
    options = {"noise_var": 0.01, "subcarriers_hz": NU, **options}
    return calibrate_sweep(y, times, samp_rate=SAMP_RATE, **options)


def test_missing_measurements_are_left_out():
    rng = np.random.default_rng(9)
    net, times, y = noisy(rng)
    mask = rng.random(times.shape) > 0.15
    y[rng.random(times.shape) < 0.1] = np.nan
    y[~mask] = 1e6
    y[1, 3] = np.nan
    got = run(y, times, mask=mask)
    assert got.trusted, got.reasons
    assert metrics.alignment_error(got.c, net.calibration(got.reference_time)) < 1e-3
    assert np.isnan(got.pair_snr_db[3, 1])
    assert 0.8 < got.residual_chi2 < 1.2


def test_times_of_missing_measurements_do_not_matter():
    rng = np.random.default_rng(10)
    _, times, y = noisy(rng)
    y[2, 1, 4] = np.nan
    expected = run(y, times)
    wild = times.copy()
    wild[2, 1, 4] = wild[1, 2, 4] = -(10**15)
    got = run(y, wild)
    assert got.reference_time == expected.reference_time
    np.testing.assert_allclose(got.c, expected.c, rtol=1e-9)


@pytest.mark.parametrize("port", [3, 0])
@pytest.mark.parametrize("cause", ["dead", "nan"])
def test_dead_port_is_named_and_the_others_are_calibrated(port, cause):
    rng = np.random.default_rng(11)
    net, times, y = noisy(rng, blocked=(port,))
    if cause == "nan":
        y[port] = np.nan
    got = run(y, times)
    assert not got.trusted
    assert any(f"port {port}" in reason for reason in got.reasons)
    assert np.isnan(got.c[port])
    assert np.isnan(got.phase_std_rad[port])
    rest = np.delete(np.arange(5), port)
    assert np.isfinite(got.covariance[np.ix_(rest, rest)]).all()
    assert metrics.alignment_error(got.c[rest], net.calibration(got.reference_time)[rest]) < 1e-3
    assert got.reference == (1 if port == 0 else 0)
    assert got.c[got.reference] == 1.0


def test_blocked_pairs_do_no_harm():
    rng = np.random.default_rng(12)
    net, times, y = noisy(rng, blocked=((0, 1), (2, 3)))
    got = run(y, times)
    assert got.trusted, got.reasons
    assert metrics.alignment_error(got.c, net.calibration(got.reference_time)) < 1e-3
    assert got.pair_snr_db[0, 1] < -5 < 10 < got.pair_snr_db[0, 2]


def test_ports_split_in_two_groups_keep_the_larger_and_say_so():
    rng = np.random.default_rng(13)
    _, times, y = noisy(rng, blocked=tuple((i, j) for i in (0, 1, 2) for j in (3, 4)))
    got = run(y, times)
    assert not got.trusted
    assert any("3, 4" in reason for reason in got.reasons)
    assert np.isfinite(got.c[:3]).all()
    assert np.isnan(got.c[3:]).all()


@pytest.mark.parametrize("content", [np.nan, "noise"])
def test_nothing_usable_raises(content):
    rng = np.random.default_rng(14)
    _, times, y = noisy(rng, blocked=(0, 1, 2, 3, 4))
    if content != "noise":
        y[:] = np.nan
    with pytest.raises(DisconnectedGraphError, match="not connected"):
        run(y, times)


def test_noise_alone_rarely_passes_for_a_port():
    rng = np.random.default_rng(15)
    seen = 0
    for _ in range(60):
        _, times, y = noisy(rng, blocked=(4,))
        seen += np.isfinite(run(y, times).c[4])
    # At a designed rate of 1e-3 for the whole network two hits in 60 are already unlikely (0.2 %).
    assert seen <= 1


def test_unknown_noise_is_estimated_and_the_prediction_stays():
    rng = np.random.default_rng(16)
    _, times, y = noisy(rng, noise_var=0.03)
    given, unknown = run(y, times, noise_var=0.03), run(y, times, noise_var=None)
    assert unknown.noise_var[0] == pytest.approx(0.03, rel=0.1)  # 540 complex residuals: 4 % standard error
    np.testing.assert_allclose(unknown.phase_std_rad, given.phase_std_rad, rtol=0.1)
    assert np.isnan(unknown.residual_chi2)
    np.testing.assert_allclose(unknown.c, given.c, rtol=1e-9)


def test_pair_snr_is_that_of_the_simulation():
    rng = np.random.default_rng(17)
    net = Network(rng, [0, 1, 2], gain_db=6.0)
    times = schedule(rng, 3, 200, 0)
    noise_var = np.array([0.1, 0.02, 0.5])
    clean = sweep(rng, net, times, np.zeros(1), 0.0)
    noise = (rng.normal(size=clean.shape) + 1j * rng.normal(size=clean.shape)) / np.sqrt(2)
    y = clean + np.sqrt(noise_var)[:, None, None, None] * noise
    got = calibrate_sweep(y, times, samp_rate=SAMP_RATE, noise_var=noise_var)
    for i, j in ((0, 1), (1, 0), (2, 0), (1, 2)):
        expected = 10 * np.log10(np.mean(np.abs(clean[i, j]) ** 2) / noise_var[i])
        # Standard error about 0.4 dB (relative error of the power 1/sqrt(200 SNR) and more at low SNR).
        assert got.pair_snr_db[i, j] == pytest.approx(expected, abs=1.0)


def test_model_misfit_shows_in_chi_square_and_is_distrusted():
    """Random phases of each one-way transmission, as without a common time grid."""
    rng = np.random.default_rng(18)
    _, times, y = noisy(rng, noise_var=1e-4)
    good = run(y, times, noise_var=1e-4)
    assert good.trusted
    y *= np.exp(0.8j * rng.normal(size=(*times.shape, 1)))
    bad = run(y, times, noise_var=1e-4)
    assert bad.residual_chi2 > 100 * good.residual_chi2
    assert not bad.trusted
    assert any("unexplained" in reason for reason in bad.reasons)
    assert np.all(bad.phase_std_rad[1:] > 5 * good.phase_std_rad[1:])


def test_frequency_near_the_ambiguity_limit_is_reported():
    rng = np.random.default_rng(19)
    net = Network(rng, [0, 1, 2], cfo_hz=0.0)
    times = schedule(rng, 3, 16, 0)
    limit = SAMP_RATE / (4 * 3 * SLOT)
    net.cfo_hz[1] = 0.96 * limit
    y = sweep(rng, net, times, np.zeros(1), 1e-3)
    got = calibrate_sweep(y, times, samp_rate=SAMP_RATE, noise_var=1e-3)
    assert not got.trusted
    assert any("ambiguity limit" in reason for reason in got.reasons)
    prior = calibrate_sweep(y, times, samp_rate=SAMP_RATE, noise_var=1e-3, max_frequency_hz=1.5 * limit)
    assert abs(prior.frequency_hz[1] - net.cfo_hz[1]) < 1.0 or not prior.trusted


def test_pair_that_contradicts_the_loop_is_reported():
    rng = np.random.default_rng(20)
    _, times, y = noisy(rng)
    turn = np.exp(4j * np.pi * 80.0 * (times[1, 2] / SAMP_RATE))
    y[1, 2] *= turn[:, None]
    got = run(y, times)
    assert not got.trusted
    assert any("(1, 2)" in reason and "contradicts" in reason for reason in got.reasons)


def test_one_midpoint_says_that_frequency_is_unknown():
    rng = np.random.default_rng(21)
    net = Network(rng, [0, 1], cfo_hz=0.0)
    times = schedule(rng, 2, 1, 0)
    got = calibrate_sweep(sweep(rng, net, times, np.zeros(1), 0.0), times, samp_rate=SAMP_RATE, noise_var=1e-6)
    assert not got.trusted
    assert any("frequency" in reason for reason in got.reasons)
    truth = net.calibration(0)
    assert metrics.alignment_error(got.c, truth) < 1e-12


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reference": 5}, "reference"),
        ({"subcarriers_hz": None}, "subcarriers_hz is needed"),
        ({"subcarriers_hz": np.zeros(12)}, "subcarriers_hz"),
        ({"node_of_port": [0, 1]}, "node_of_port"),
        ({"mask": np.ones((5, 5), bool)}, "mask"),
        ({"noise_var": -1.0}, "noise_var"),
        ({"times": np.zeros((5, 5, 9))}, "times"),
        ({"y": np.zeros((5, 4, 9))}, "y must"),
    ],
)
def test_bad_arguments_raise(change, message):
    rng = np.random.default_rng(22)
    _, times, y = noisy(rng)
    arguments = {"y": y, "times": times, **change}
    with pytest.raises(ValueError, match=message):
        run(arguments.pop("y"), arguments.pop("times"), **arguments)
