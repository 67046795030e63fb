# SPDX-License-Identifier: GPL-3.0-or-later
"""The bidirectional exchange: C = cU / cB at the midpoint, and estimators that fit it over all links."""

import numpy as np
import pytest
from gnuradio.dmimo.core import bidirectional_bounds as bounds
from gnuradio.dmimo.core.bidirectional import (
    DisconnectedLinksError,
    joint_ml,
    link_estimates,
    ml_tls,
    rank_one,
    tls_coefficients,
)
from gnuradio.dmimo.core.bidirectional_baselines import per_subcarrier
from gnuradio.dmimo.core.cars import at_time, cars_precoding, equivalent_channel, midpoint_s, quotient
from gnuradio.dmimo.core.graph import DisconnectedGraphError
from gnuradio.dmimo.core.ofdm import CombMapping, OfdmGrid, pilot_sequence
from gnuradio.dmimo.core.reciprocity import calibrate
from gnuradio.dmimo.core.synchronization import delay_and_gain

SPACING = 120e3
M, N = 8, 4
FIRST_S, SECOND_S = 1.3e-3, 1.3e-3 + 2 * 8.92e-6  # two symbols between the directions
MIDDLE_S = 0.5 * (FIRST_S + SECOND_S)
TABLE = CombMapping(M, N, 196).subcarriers(OfdmGrid())  # (M, N, 49)


def complex_normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


class Network:
    """Eq. (10), corrected: gains, delays and frequencies of table I, `num` drops of them."""

    def __init__(self, rng, *num, num_trp=M, num_ue=N, num_paths=1, cfo_hz=780.0):
        def nodes(count):
            gains = np.exp(0.1 * rng.normal(size=(2, *num, count)) + 2j * np.pi * rng.random((2, *num, count)))
            return *gains, rng.uniform(-10e-9, 10e-9, (*num, count)), rng.uniform(-cfo_hz, cfo_hz, (*num, count))

        self.trp, self.ue = nodes(num_trp), nodes(num_ue)
        shape = (*num, num_trp, num_ue, num_paths)
        self.gain = np.exp(2j * np.pi * rng.random(shape)) * 0.4 ** np.arange(num_paths)
        self.path_s = 50e-9 * np.arange(num_paths) + rng.uniform(0, 10e-9, shape)
        self.frequency_hz = self.ue[3][..., None, :] - self.trp[3][..., :, None]
        self.delay_s = self.ue[2][..., None, :] - self.trp[2][..., :, None]

    def air(self, k):
        turn = np.exp(-2j * np.pi * SPACING * k[..., None] * self.path_s[..., None, :])
        return np.sum(self.gain[..., None, :] * turn, axis=-1)

    def _turn(self, k, time_s):
        return np.exp(
            -2j * np.pi * SPACING * k * self.delay_s[..., None] + 2j * np.pi * self.frequency_hz[..., None] * time_s
        )

    def uplink(self, k, time_s):
        k = np.asarray(k)
        gains = self.trp[1][..., :, None] * self.ue[0][..., None, :]
        return gains[..., None] * self.air(k) * self._turn(k, time_s)

    def downlink(self, k, time_s):
        k = np.asarray(k)
        gains = self.trp[0][..., :, None] * self.ue[1][..., None, :]
        return gains[..., None] * self.air(k) / self._turn(k, time_s)

    def coefficients(self, k, time_s):
        """(c_trp (..., M, K), c_ue (..., N, K)) of the definition, t/r with twice the delay and twice the phase."""
        return tuple(
            (t / r)[..., None]
            * np.exp(-4j * np.pi * SPACING * np.asarray(k) * tau[..., None] + 4j * np.pi * f[..., None] * time_s)
            for t, r, tau, f in (self.trp, self.ue)
        )


def noisy_channels(rng, network, k, rho):
    """Estimates of both directions; rho, linear, is the SNR per element of a link of unit gain."""
    g, h = network.uplink(k, SECOND_S), network.downlink(k, FIRST_S)
    scale = np.sqrt(1 / np.asarray(rho, float))[..., None]
    return g + scale * complex_normal(rng, *g.shape), h + scale * complex_normal(rng, *h.shape)


def noisy_coefficient(rng, network, k, rho):
    return quotient(*noisy_channels(rng, network, k, rho), SECOND_S, FIRST_S).c


def alignment(estimate, truth):
    """1 - |c^H c_hat|^2 / ..., over axis -2 (nodes)."""
    product = np.abs(np.sum(estimate.conj() * truth, axis=-2)) ** 2
    return 1 - product / np.sum(np.abs(estimate) ** 2, axis=-2) / np.sum(np.abs(truth) ** 2, axis=-2)


def test_two_way_coefficient_is_the_ratio_of_node_coefficients_at_the_midpoint():
    network = Network(np.random.default_rng(1), num_paths=3)
    k = np.arange(-60, 60, 7)
    g, h = network.uplink(k, SECOND_S), network.downlink(k, FIRST_S)
    c, time_s = quotient(g, h, SECOND_S, FIRST_S)
    assert time_s == pytest.approx(MIDDLE_S, rel=1e-15)
    c_trp, c_ue = network.coefficients(k, time_s)
    np.testing.assert_allclose(c * c_trp[:, None] / c_ue[None], 1.0, atol=1e-10)
    # Neither end's time will do, nor one factor of 2 less, nor the conjugate.
    for other in (FIRST_S, SECOND_S):
        c_trp, c_ue = network.coefficients(k, other)
        assert np.max(np.abs(c * c_trp[:, None] / c_ue[None] - 1)) > 0.05
    later = network.coefficients(k, MIDDLE_S + 3e-4)
    moved = at_time(c, network.frequency_hz[..., None], MIDDLE_S, MIDDLE_S + 3e-4)
    np.testing.assert_allclose(moved * later[0][:, None] / later[1][None], 1.0, atol=1e-10)


@pytest.mark.parametrize("calibrator", [ml_tls, joint_ml])
@pytest.mark.parametrize("side", ["trp", "ue"])
def test_exchange_without_noise_calibrates_to_1e_10(calibrator, side):
    """CSI-RS and UL-CARS, or SRS and DL-CARS, through combs and pilots, to the downlink of each TRP's channel."""
    network, grid = Network(np.random.default_rng(2), num_paths=3), OfdmGrid()
    if side == "trp":
        k = CombMapping(M, N, 196).subcarriers(grid)
        heard, answer = network.downlink(k, FIRST_S), network.uplink(k, SECOND_S)
    else:
        k = CombMapping(N, M, 392).subcarriers(grid).transpose(1, 0, 2)
        heard, answer = network.uplink(k, FIRST_S), network.downlink(k, SECOND_S)
    pilots = pilot_sequence("cars", k.shape[-1], identity=3)
    # One burst per port that answers: all its links on one scale. Move these to the last axis.
    order = (1, 0, 2) if side == "trp" else (0, 1, 2)
    burst = cars_precoding(heard.transpose(order).reshape(heard.shape[1 if side == "trp" else 0], -1))
    assert burst.reads_amplitude
    assert not burst.limited.any()
    assert np.mean(np.abs(burst.weights) ** 2, axis=-1) == pytest.approx(1.0)
    weights = burst.weights.reshape(heard.transpose(order).shape).transpose(order)
    scale = burst.scale[None, :] if side == "trp" else burst.scale[:, None]
    read = equivalent_channel(answer * weights * pilots, pilots, scale)
    c = read if side == "trp" else 1 / read
    result = calibrator(c, k, SPACING, max_delay=40e-9, time_s=midpoint_s(FIRST_S, SECOND_S))
    assert result.used.all()
    subcarriers = np.arange(-700, 700, 100)
    c_trp, c_ue = network.coefficients(subcarriers, MIDDLE_S)
    np.testing.assert_allclose(result.trp(subcarriers), c_trp / c_trp[0], atol=1e-10)
    np.testing.assert_allclose(result.ue(subcarriers), c_ue / c_trp[0], atol=1e-10)
    np.testing.assert_allclose(result.delay_trp_s, network.trp[2] - network.trp[2][0], atol=1e-19)
    np.testing.assert_allclose(result.delay_ue_s, network.ue[2] - network.trp[2][0], atol=1e-19)
    # What it is for: the downlink to any UE from its uplink, up to one factor.
    ratio = network.downlink(subcarriers, FIRST_S) / (
        network.uplink(subcarriers, SECOND_S) * result.trp(subcarriers)[:, None]
    )
    np.testing.assert_allclose(ratio / ratio[0], 1.0, atol=1e-10)


def test_only_the_inverse_form_reads_the_amplitude_and_all_read_the_phase():
    rng = np.random.default_rng(3)
    h, c = complex_normal(rng, 5, 64), complex_normal(rng, 5, 1)
    for form, shape in (("inverse", 1.0), ("conjugate", np.abs(h) ** 2), ("phase", np.abs(h))):
        burst = cars_precoding(h, form, fade_limit_db=60.0)
        read = equivalent_channel(c * h * burst.weights, np.ones(64), burst.scale)
        np.testing.assert_allclose(np.angle(read / c), 0.0, atol=1e-12)
        shape = shape / np.sqrt(np.mean(np.abs(h) ** 2, axis=-1, keepdims=True)) if form == "conjugate" else shape
        np.testing.assert_allclose(np.abs(read / c), shape * np.ones(h.shape), rtol=1e-12)
        assert burst.reads_amplitude == (form == "inverse")
        assert np.all(burst.scale > 0)


@pytest.mark.parametrize(("form", "most"), [("inverse", 1.10), ("conjugate", 1.04), ("phase", 1.04)])
def test_delay_and_phase_through_cars_meet_the_bound_at_10_db(form, most):
    """10 dB per element in both directions; 10000 trials, a standard error of 0.7 %."""
    rng = np.random.default_rng(12)
    trials, k = 10000, np.arange(-24, 25) * 32
    half = rng.uniform(-20e-9, 20e-9, (trials, 1))
    g = np.exp(-2j * np.pi * SPACING * k * half)
    sigma = np.sqrt(0.1)
    burst = cars_precoding(g.conj() + sigma * complex_normal(rng, trials, 49), form)
    c = equivalent_channel(g * burst.weights + sigma * complex_normal(rng, trials, 49), np.ones(49), burst.scale)
    delay, gain = delay_and_gain(c, k, SPACING, max_delay=80e-9)
    v = bounds.element_variance(10.0, 10.0)
    assert 0.97 < np.std(delay / 2 - half[:, 0]) / bounds.two_way_delay_std(v, 49, 32, SPACING) < most
    assert 0.97 < np.sqrt(np.mean(np.angle(gain) ** 2)) / bounds.two_way_phase_std(v, 49) < most


def test_fades_are_limited_in_power_and_flagged():
    h = np.ones(100, complex)
    h[7], h[8], h[9] = 0.01j, 0.0, 0.11
    burst = cars_precoding(h, fade_limit_db=20.0)
    np.testing.assert_array_equal(np.flatnonzero(burst.limited), [7, 8])
    assert burst.weights[7] / abs(burst.weights[7]) == pytest.approx(-1j)
    assert np.abs(burst.weights).max() / burst.scale < 10.2
    assert np.isfinite(burst.weights).all()
    for wrong in (np.zeros(4), np.array([1.0, np.nan])):
        with pytest.raises(ValueError, match="finite and not zero"):
            cars_precoding(wrong)
    with pytest.raises(ValueError, match="form = 'matched'"):
        cars_precoding(h, "matched")


def test_eigenproblem_is_total_least_squares_on_the_pair_graph():
    """Against the generic estimator with y[m, n] = C and y[n, m] = 1, and against the printed cost by an SVD."""
    rng = np.random.default_rng(4)
    gain = complex_normal(rng, 5, 3)
    nodes = tls_coefficients(gain, np.ones((5, 3), bool))
    y = np.zeros((8, 8, 1), complex)
    y[:5, 5:, 0], y[5:, :5, 0] = gain, 1.0
    mask = y[..., 0] != 0
    np.testing.assert_allclose(nodes / nodes[0], calibrate(y, "tls", mask=mask), rtol=1e-9)
    rows = np.zeros((15, 8), complex)
    for row, (m, n) in enumerate(np.ndindex(5, 3)):
        rows[row, m], rows[row, 5 + n] = gain[m, n], -1.0
    smallest = np.linalg.svd(rows)[2][-1].conj()
    np.testing.assert_allclose(nodes / nodes[0], smallest / smallest[0], rtol=1e-9)


def tls_matrix(gain, used):
    """Q^H Q of the rows c_m g_mn - c_n of all links."""
    num_trp, num_ue = gain.shape
    rows = np.zeros((num_trp, num_ue, num_trp + num_ue), complex)
    m, n = np.ogrid[:num_trp, :num_ue]
    rows[m, n, m], rows[m, n, num_trp + n] = gain * used, -1.0 * used
    rows = rows.reshape(-1, num_trp + num_ue)
    return rows.conj().T @ rows


@pytest.mark.parametrize("shape", [(64, 32), (32, 64), (40, 40)])
@pytest.mark.parametrize("kind", ["links", "noiseless", "missing links", "weak node", "noise alone"])
def test_many_nodes_have_the_same_eigenvector(shape, kind):
    """The smaller problem against the whole matrix; the last two are those where it must give way to it."""
    rng = np.random.default_rng(14)
    trp, ue = (np.exp(0.3 * complex_normal(rng, n) + 2j * np.pi * rng.random(n)) for n in shape)
    gain = ue / trp[:, None] * (1 + (0 if kind == "noiseless" else 0.1) * complex_normal(rng, *shape))
    used = np.ones(shape, bool)
    if kind == "missing links":
        used = rng.random(shape) < 0.5
    elif kind == "weak node":
        gain[3] *= 1e-3
    elif kind == "noise alone":
        gain = complex_normal(rng, *shape)
    nodes = tls_coefficients(np.stack([gain, 2j * gain]), np.stack([used, used]))
    values, vectors = np.linalg.eigh(tls_matrix(gain, used))
    assert abs(np.vdot(vectors[:, 0], nodes[0])) == pytest.approx(1.0, abs=1e-12)
    np.testing.assert_allclose(np.linalg.norm(nodes, axis=-1), 1.0)
    np.testing.assert_allclose(tls_matrix(gain, used) @ nodes[0], values[0] * nodes[0], atol=1e-11 * values[-1])
    values, vectors = np.linalg.eigh(tls_matrix(2j * gain, used))
    assert abs(np.vdot(vectors[:, 0], nodes[1])) == pytest.approx(1.0, abs=1e-12)


def test_weighted_rank_one_is_the_fixed_point_of_alternating_least_squares():
    rng = np.random.default_rng(5)
    b, u = np.exp(complex_normal(rng, 5)), np.exp(complex_normal(rng, 3))
    precision = rng.uniform(0.1, 3.0, (5, 3))
    precision[0, 1] = precision[4, 0] = 0.0
    gain = u / b[:, None] + 0.05 * complex_normal(rng, 5, 3)
    nodes = rank_one(gain, precision, tls_coefficients(gain, precision > 0))
    a, v = 1 / b, u
    for _ in range(500):
        v = np.sum(precision * a[:, None].conj() * gain, axis=0) / np.sum(precision * np.abs(a[:, None]) ** 2, axis=0)
        a = np.sum(precision * v.conj() * gain, axis=1) / np.sum(precision * np.abs(v) ** 2, axis=1)
    np.testing.assert_allclose(nodes[5:] / nodes[:5, None], v * a[:, None], rtol=1e-9)


def test_joint_estimate_attains_the_bounds_where_links_differ():
    """Links from 14 to 34 dB, product noise negligible; RMS within 8 % (over 4 standard errors of 600 trials)."""
    rng = np.random.default_rng(6)
    network = Network(rng, cfo_hz=0.0)
    rho = 10 ** (rng.uniform(1.4, 3.4, (M, N)))
    k = np.arange(-24, 25)[None, None, :] * 32 + np.zeros((M, N, 1), int)
    c = network.uplink(k, 0) / network.downlink(k, 0)
    noise = np.abs(c) * np.sqrt(1 / rho)[..., None]
    c = c + noise * complex_normal(rng, 600, *c.shape)
    joint, steps = (f(c, k, SPACING, max_delay=40e-9, reference=None) for f in (joint_ml, ml_tls))

    coefficient_bound = bounds.link_laplacian_pinv(49 * rho)
    delay_bound = bounds.link_laplacian_pinv(4 / bounds.delay_crlb(k, SPACING, 1 / rho).delay_std_s ** 2)
    c_trp, c_ue = network.coefficients([0], 0.0)
    truth = np.log(np.concatenate([c_trp, c_ue])[:, 0])
    tau = np.concatenate([network.trp[2], network.ue[2]])

    def errors(result):
        log = np.log(np.concatenate([result.c_trp, result.c_ue], axis=-1) / np.exp(truth))
        log = np.log(np.exp(log - log[..., :1]))
        delay = np.concatenate([result.delay_trp_s, result.delay_ue_s], axis=-1) - tau
        log, delay = (e - e.mean(axis=-1, keepdims=True) for e in (log, delay))
        return np.sum(np.mean(np.abs(log) ** 2, axis=0)), np.sum(np.mean(delay**2, axis=0))

    got, two_step = errors(joint), errors(steps)
    for value, bound in zip(got, (np.trace(coefficient_bound), np.trace(delay_bound)), strict=True):
        assert 0.92**2 < value / bound < 1.08**2
    assert two_step[0] > 1.2 * got[0]
    assert two_step[1] > 1.2 * got[1]


@pytest.mark.parametrize("spread_db", [1.0, 5.0])
def test_errors_come_in_the_order_of_the_paper(spread_db):
    """Table I at 10.7 dB per element (30 dBm), give or take the spread: alignment error of the TRPs, 60 drops.

    The paper's order is that of links that differ: where all are equal, a tree only adds hops, and Argos is better.
    """
    rng = np.random.default_rng(7)
    network = Network(rng, 60)
    k = np.arange(-24, 25) * 32
    rho = 10 ** ((10.7 + rng.uniform(-spread_db, spread_db, (60, M, N))) / 10)
    g, h = noisy_channels(rng, network, k, rho)
    truth = network.coefficients(k, MIDDLE_S)[0]
    error = {}
    for method in ("tls", "argos_mean", "spanning_tree", "argos"):
        estimate, _ = per_subcarrier(g, h, method, link_snr=rho)
        error[method] = alignment(estimate, truth).mean()
    for calibrator in (ml_tls, joint_ml):
        estimate = calibrator(g / h, k, SPACING, max_delay=20e-9).trp(k)
        error[calibrator.__name__] = alignment(estimate, truth).mean()
    order = ["joint_ml", "ml_tls", "tls", "argos_mean", "spanning_tree", "argos"]
    if spread_db < 3.0:
        order[-2:] = order[:-3:-1]
    assert sorted(error, key=error.get) == order, error
    assert error["ml_tls"] < 0.1 * error["tls"]


def test_baselines_are_exact_without_noise():
    network = Network(np.random.default_rng(8), 2, num_paths=2)
    k = np.arange(-20, 20, 5)
    g, h = network.uplink(k, SECOND_S), network.downlink(k, FIRST_S)
    truth = network.coefficients(k, MIDDLE_S)
    for method in ("argos", "argos_mean", "tls", "spanning_tree"):
        trp, ue = per_subcarrier(g, h, method, reference_ue=2)
        np.testing.assert_allclose(trp / trp[..., :1, :], truth[0] / truth[0][..., :1, :], atol=1e-10, err_msg=method)
        np.testing.assert_allclose(ue / trp[..., :1, :], truth[1] / truth[0][..., :1, :], atol=1e-10, err_msg=method)
    with pytest.raises(ValueError, match="method = 'cnn'"):
        per_subcarrier(g, h, "cnn")
    with pytest.raises(ValueError, match="reference_ue = 4"):
        per_subcarrier(g, h, reference_ue=4)


@pytest.mark.parametrize("calibrator", [ml_tls, joint_ml])
def test_links_without_a_signal_are_left_out_and_what_they_hold_does_not_matter(calibrator):
    rng = np.random.default_rng(9)
    network = Network(rng)
    c = noisy_coefficient(rng, network, TABLE, np.full((M, N), 1e6))
    c[2, 1], c[5, 0], c[0, 3] = 30 * complex_normal(rng, 49), np.nan, 0.0
    links = link_estimates(c, TABLE, SPACING, max_delay=20e-9)
    assert not links.trusted[[2, 5, 0], [1, 0, 3]].any()
    assert links.trusted.sum() == M * N - 3
    result = calibrator(c, TABLE, SPACING, max_delay=20e-9)
    np.testing.assert_array_equal(result.used, links.trusted)
    truth = network.coefficients(np.arange(-700, 700, 200), MIDDLE_S)[0]
    assert np.max(alignment(result.trp(np.arange(-700, 700, 200)), truth)) < 1e-5


@pytest.mark.parametrize("calibrator", [ml_tls, joint_ml])
def test_disconnected_links_raise_an_error_that_names_the_parts(calibrator):
    rng = np.random.default_rng(10)
    c = noisy_coefficient(rng, Network(rng, num_trp=3, num_ue=2), TABLE[:3, :2], np.full((3, 2), 1e4))
    c[0, 1], c[1:, 0] = complex_normal(rng, 49), complex_normal(rng, 2, 49)
    with pytest.raises(DisconnectedLinksError, match=r"\{TRP 0, UE 0\}, \{TRP 1, TRP 2, UE 1\}") as caught:
        calibrator(c, TABLE[:3, :2], SPACING)
    assert isinstance(caught.value, DisconnectedGraphError)
    assert caught.value.components == ((0, 3), (1, 2, 4))


@pytest.mark.parametrize("calibrator", [ml_tls, joint_ml])
def test_batch_equals_loop_and_gauge_holds(calibrator):
    rng = np.random.default_rng(11)
    c = noisy_coefficient(rng, Network(rng, 3), TABLE, np.full((3, M, N), 300.0))
    whole = calibrator(c, TABLE, SPACING, reference=M + 1)
    np.testing.assert_array_equal(whole.c_ue[:, 1], 1.0)
    np.testing.assert_array_equal(whole.delay_ue_s[:, 1], 0.0)
    mean = calibrator(c, TABLE, SPACING, reference=None)
    for i in range(3):
        one = calibrator(c[i] * 2j, TABLE, SPACING, reference=M + 1)  # a common factor goes into the UEs
        np.testing.assert_allclose(one.delay_trp_s, whole.delay_trp_s[i], atol=1e-17)
        np.testing.assert_allclose(one.c_ue, whole.c_ue[i], rtol=1e-2)
        again = calibrator(c[i], TABLE, SPACING, reference=M + 1)
        np.testing.assert_allclose(again.c_trp, whole.c_trp[i], rtol=1e-9)
        nodes = np.concatenate([mean.c_trp[i], mean.c_ue[i]])
        assert np.mean(np.abs(nodes) ** 2) == pytest.approx(1.0)
        np.testing.assert_allclose(mean.c_trp[i] / mean.c_ue[i, 1], whole.c_trp[i], rtol=1e-9)
    with pytest.raises(ValueError, match="reference = 12"):
        calibrator(c, TABLE, SPACING, reference=12)
