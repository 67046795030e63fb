# SPDX-License-Identifier: GPL-3.0-or-later
"""Phase and offset from a returned burst: exact without noise, invariant, flagged where there is nothing to read."""

import numpy as np
import pytest
from gnuradio.dmimo.core import bounds, synchronization
from gnuradio.dmimo.core.beamsync import nls_phasor

T = 1e-3 / 14  # the paper's symbol interval


def complex_normal(rng, *shape):
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)) / np.sqrt(2)


def wrapped(angle):
    return np.angle(np.exp(1j * np.asarray(angle)))


def rmse(error):
    return float(np.sqrt(np.mean(np.asarray(error) ** 2)))


class Pair:
    """Two nodes with antennas of their own t and r and oscillators `offset_hz` apart, sample by sample.

    Nothing is taken from the code under test: t and r enter as the hardware would have them, and every antenna sends
    with its internal calibration to the first one, eq. (54).
    """

    def __init__(self, rng, num_leader, num_follower, *, batch=(), offset_hz=0.0, noise_var=0.0, start_rad=None):
        self.rng, self.sigma, self.offset_hz = rng, np.sqrt(noise_var), offset_hz
        draw = [(0.5 + rng.random((*batch, m))) * np.exp(2j * np.pi * rng.random((*batch, m)))
                for m in (num_leader, num_leader, num_follower, num_follower)]
        self.t_a, self.r_a, self.t_b, self.r_b = draw
        self.g = complex_normal(rng, *batch, num_leader, num_follower)
        self.start_rad = rng.uniform(-np.pi, np.pi, (2, *batch)) if start_rad is None else start_rad

    def phases(self, times):
        """theta_A and theta_B (..., samples) at integer times."""
        split = 0.3 * self.offset_hz  # neither node is at the nominal frequency
        turn = 2 * np.pi * T * np.asarray(times)
        f_a, f_b = np.asarray(split)[..., None], np.asarray(split - self.offset_hz)[..., None]
        return self.start_rad[0][..., None] + f_a * turn, self.start_rad[1][..., None] + f_b * turn

    def phi(self, time):
        """phi_A - phi_B at a time in samples, also between them."""
        c = [t[..., 0] / r[..., 0] for t, r in ((self.t_a, self.r_a), (self.t_b, self.r_b))]
        a, b = self.phases(np.array([time]))
        return wrapped(np.angle(c[0] / c[1]) + 2 * (a - b)[..., 0])

    def send(self, samples, start, *, from_leader):
        """What the other node receives of samples (..., ports, n) from sample `start` on."""
        theta_a, theta_b = self.phases(start + np.arange(samples.shape[-1]))
        if from_leader:
            t, r, far, here, there, g = self.t_a, self.r_a, self.r_b, theta_a, theta_b, np.swapaxes(self.g, -2, -1)
        else:
            t, r, far, here, there, g = self.t_b, self.r_b, self.r_a, theta_b, theta_a, self.g
        internal = t[..., :1] / r[..., :1] * r / t
        air = (t * internal)[..., None] * samples * np.exp(1j * here)[..., None, :]
        out = far[..., None] * (g @ air)
        noise = self.sigma * complex_normal(self.rng, *out.shape) if self.sigma else 0.0
        return out * np.exp(-1j * there)[..., None, :] + noise

    def effective(self):
        return self.r_a[..., :, None] * self.g * self.r_b[..., None, :]


def run(pair, x, *, returned="conjugate", method="eigh"):
    """Stages I, II and III one after another from sample 0: (return, direction, start of II, start of III)."""
    num_leader = pair.g.shape[-2]
    pilots = np.linalg.qr(complex_normal(np.random.default_rng(0), num_leader, num_leader))[0]
    batch = pair.g.shape[:-2]
    heard = pair.send(np.broadcast_to(pilots.T, (*batch, num_leader, num_leader)), 0, from_leader=True)
    a = synchronization.dominant_direction(heard, method=method)
    second, third = num_leader, num_leader + len(x)
    y = pair.send(a[..., None] * x, second, from_leader=False)
    sent = synchronization.conjugate_return(y) if returned == "conjugate" else synchronization.matched_return(y, x)
    return pair.send(sent, third, from_leader=True), a, second, third


@pytest.mark.parametrize("returned", ["conjugate", "matched"])
@pytest.mark.parametrize("sizes", [(4, 6), (6, 4), (1, 3), (3, 1), (1, 1)])
def test_phase_is_exact_without_noise(sizes, returned):
    rng = np.random.default_rng(1)
    pair = Pair(rng, *sizes, batch=(20,))
    x = complex_normal(rng, 9)
    y, a, _, _ = run(pair, x, returned=returned)
    np.testing.assert_allclose(wrapped(synchronization.phase_offset(y, a, x) - pair.phi(0)), 0, atol=1e-12)


def test_a_follower_that_turns_its_transmission_by_the_phase_adds_up_at_a_terminal():
    """The sign of the correction, at a terminal that hears both nodes beam conjugately on their own uplink channels."""
    rng = np.random.default_rng(2)
    pair = Pair(rng, 4, 5, batch=(10,))
    x = complex_normal(rng, 8)
    y, a, _, _ = run(pair, x)
    phi = synchronization.phase_offset(y, a, x)
    theta_a, theta_b = (p[..., 0] for p in pair.phases([0]))
    received = []
    for t, r, theta, turn in ((pair.t_a, pair.r_a, theta_a, 0 * phi), (pair.t_b, pair.r_b, theta_b, phi)):
        h = complex_normal(rng, *t.shape)
        uplink = h * r * np.exp(-1j * theta)[:, None]
        weights = np.conj(uplink) * t[:, :1] / r[:, :1] * r / t * np.exp(1j * turn)[:, None]
        received.append(np.sum(h * t * weights, axis=-1) * np.exp(1j * theta))
    np.testing.assert_allclose(wrapped(np.angle(received[0]) - np.angle(received[1])), 0, atol=1e-12)


def test_direction_is_that_of_the_svd_for_wide_and_tall_bursts_and_both_methods():
    rng = np.random.default_rng(3)
    for shape in ((50, 4, 30), (50, 30, 4), (50, 5, 5), (2, 3, 6, 1)):
        y = complex_normal(rng, *shape)
        u = np.linalg.svd(y)[0][..., 0]
        for method, steps in (("eigh", 1), ("power", 16)):
            a = synchronization.dominant_direction(y, method=method, steps=steps)
            np.testing.assert_allclose(np.linalg.norm(a, axis=-1), 1, rtol=1e-12)
            along = np.abs(np.sum(a * u, axis=-1))  # |conj(u)^H a|
            np.testing.assert_allclose(along, 1, atol=1e-8)


def test_power_iteration_in_single_precision_collects_the_same_energy():
    rng = np.random.default_rng(4)
    y = 1e-12 * complex_normal(rng, 2000, 16, 16)
    a = synchronization.dominant_direction(y.astype(np.complex64), method="power")
    assert a.dtype == np.complex64
    energy = np.sum(np.abs(np.einsum("tij,ti->tj", y, a)) ** 2, axis=-1)
    best = np.linalg.svd(y, compute_uv=False)[:, 0] ** 2
    assert np.all(energy < best * (1 + 1e-5))
    assert np.mean(energy / best) > 1 - 1e-4
    assert np.min(energy / best) > 1 - 4e-3


def test_returns_have_the_energy_asked_for_and_the_form_of_the_paper():
    rng = np.random.default_rng(5)
    y, x = complex_normal(rng, 3, 4, 10), complex_normal(rng, 10)
    out = synchronization.conjugate_return(y)
    np.testing.assert_allclose(np.sum(np.abs(out) ** 2, axis=(-2, -1)), 10)
    np.testing.assert_allclose(out / np.conj(y), np.broadcast_to(out[:, :1, :1] / np.conj(y[:, :1, :1]), y.shape))
    assert np.all((out / np.conj(y)).real > 0)
    matched = synchronization.matched_return(y, x, energy=3.0)
    np.testing.assert_allclose(np.sum(np.abs(matched) ** 2, axis=(-2, -1)), 3)
    z = y @ np.conj(x) / np.sum(np.abs(x) ** 2)
    expected = np.conj(z)[..., None] * np.conj(x)
    np.testing.assert_allclose(matched / np.linalg.norm(matched, axis=(-2, -1), keepdims=True),
                               expected / np.linalg.norm(expected, axis=(-2, -1), keepdims=True))
    assert synchronization.conjugate_return(y.astype(np.complex64)).dtype == np.complex64


def test_estimates_do_not_depend_on_scale_common_phase_or_the_phase_of_the_direction():
    rng = np.random.default_rng(6)
    pair = Pair(rng, 5, 4, batch=(7,), noise_var=0.01)
    x = complex_normal(rng, 12)
    y, a, _, _ = run(pair, x)
    phase = synchronization.phase_offset(y, a, x)
    np.testing.assert_allclose(wrapped(synchronization.phase_offset(3e-5 * y, a, 7 * x) - phase), 0, atol=1e-12)
    turned = synchronization.phase_offset(y * np.exp(0.7j), a, x)
    np.testing.assert_allclose(wrapped(turned - phase), 0.7, atol=1e-12)
    first = synchronization.return_estimate(y, a, x, T, joint=True)
    second = synchronization.return_estimate(1e6 * y, a, x, T, joint=True)
    for one, two in zip(first, second, strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-6)


def test_batch_equals_loop():
    rng = np.random.default_rng(7)
    pair = Pair(rng, 4, 3, batch=(2, 3), noise_var=0.05)
    x = complex_normal(rng, 10)
    y, a, _, _ = run(pair, x)
    g_e, gain = pair.effective(), rng.random((2, 3))
    for name, call in {
        "direction": lambda i: synchronization.dominant_direction(y[i]),
        "next": lambda i: synchronization.next_direction(y[i], x),
        "conjugate": lambda i: synchronization.conjugate_return(y[i]),
        "matched": lambda i: synchronization.matched_return(y[i], x),
        "phase": lambda i: synchronization.phase_offset(y[i], a[i], x),
        "nls": lambda i: synchronization.phase_offset_nls(y[i], a[i], x, g_e[i], gain[i]),
        "joint": lambda i: np.stack(synchronization.return_estimate(y[i], a[i], x, T, joint=True), axis=-1),
        "leader": lambda i: synchronization.matched_phase_std(y[i], x),
    }.items():
        whole = call(...)
        for i in np.ndindex(2, 3):
            np.testing.assert_allclose(whole[i], call(i), rtol=1e-9, atol=1e-12, err_msg=name)


def test_nls_with_the_channel_estimate_of_stage_one_is_the_simple_estimator():
    rng = np.random.default_rng(8)
    pilots_received = complex_normal(rng, 30, 6, 5)  # c_A G_e^T + noise, after projection
    y, x = complex_normal(rng, 30, 6, 9), complex_normal(rng, 9)
    a = synchronization.dominant_direction(pilots_received)
    estimate = np.swapaxes(pilots_received, -2, -1)
    nls = synchronization.phase_offset_nls(y, a, x, estimate, rng.random(30))
    np.testing.assert_allclose(wrapped(nls - synchronization.phase_offset(y, a, x)), 0, atol=1e-10)
    # With any other channel it is not, or the test would show nothing.
    other = synchronization.phase_offset_nls(y, a, x, complex_normal(rng, 30, 5, 6), rng.random(30))
    assert rmse(wrapped(other - nls)) > 0.1


def test_nls_is_exact_with_the_true_channel_in_any_direction():
    rng = np.random.default_rng(9)
    pair = Pair(rng, 4, 6, batch=(20,))
    x = complex_normal(rng, 5)
    a = complex_normal(rng, 20, 6)
    a /= np.linalg.norm(a, axis=-1, keepdims=True)
    back = synchronization.conjugate_return(pair.send(a[..., None] * x, 0, from_leader=False))
    y = pair.send(back, 5, from_leader=True)
    nls = synchronization.phase_offset_nls(y, a, x, pair.effective(), 0.8)
    np.testing.assert_allclose(wrapped(nls - pair.phi(0)), 0, atol=1e-11)
    assert nls_phasor(y @ x, a, pair.effective(), 0.8).shape == (20,)


@pytest.mark.parametrize("returned", ["conjugate", "matched"])
def test_rounds_converge_to_the_channels_own_direction(returned):
    """From a random direction, without noise; both kinds of return are a step of the power iteration."""
    rng = np.random.default_rng(10)
    pair = Pair(rng, 5, 7, batch=(30,))
    x = complex_normal(rng, 6)
    a = complex_normal(rng, 30, 7)
    a /= np.linalg.norm(a, axis=-1, keepdims=True)
    _, values, right = np.linalg.svd(pair.effective())
    best = np.conj(right[:, 0])
    for _ in range(25):
        y = pair.send(a[..., None] * x, 0, from_leader=False)
        sent = synchronization.conjugate_return(y) if returned == "conjugate" else synchronization.matched_return(y, x)
        a = synchronization.next_direction(pair.send(sent, 6, from_leader=True), x)
    loss = 1 - np.abs(np.sum(np.conj(best) * a, axis=-1)) ** 2
    separated = (values[:, 1] / values[:, 0]) ** 2 < 0.7
    assert separated.sum() > 5
    assert np.all(loss[separated] < 1e-5)


@pytest.mark.parametrize(("returned", "joint"), [("conjugate", True), ("matched", True), ("conjugate", False)])
def test_phase_between_turning_oscillators_belongs_to_the_midpoint_and_frequency_has_its_sign(returned, joint):
    rng = np.random.default_rng(11)
    offset = rng.uniform(-200, 200, 12)
    x = complex_normal(rng, 40)
    if not joint or returned == "matched":
        # Where a turn is summed before it is known, only a burst symmetric about its centroid keeps the phase there.
        x, offset = np.abs(x) + np.abs(x[::-1]), offset / 20
    pair = Pair(rng, 4, 6, batch=(12,), offset_hz=offset)
    y, a, second, third = run(pair, x, returned=returned)
    estimate = synchronization.return_estimate(y, a, x, T, joint=joint, returned=returned)
    middle = 0.5 * (second + third) + synchronization.centroid(x)
    np.testing.assert_allclose(wrapped(estimate.phase_rad - pair.phi(middle)), 0, atol=1e-9)
    if joint:
        np.testing.assert_allclose(estimate.frequency_hz, offset, atol=1e-7)
        assert np.all(estimate.trusted)
    else:
        assert np.all(estimate.frequency_hz == 0)
        assert np.all(np.isinf(estimate.frequency_std_hz))


@pytest.mark.parametrize("returned", ["conjugate", "matched"])
def test_predicted_deviations_are_those_of_the_errors(returned):
    """Mean squared error over predicted variance at 10 dB and 0 dB, 3000 trials each: standard error 2.6 %.

    3 % more than one is expected: the mean of 1 / chi^2 with the fit's freedoms. Equal gains and energies, for the
    default share of the leader's noise in a matched return.
    """
    rng = np.random.default_rng(12)
    x = complex_normal(rng, 60)
    x *= np.sqrt(60) / np.linalg.norm(x)
    for noise_var in (0.1, 1.0):
        pair = Pair(rng, 8, 8, batch=(3000,), offset_hz=rng.uniform(-20, 20, 3000), noise_var=noise_var)
        for gain in (pair.t_a, pair.r_a, pair.t_b, pair.r_b):
            gain /= np.abs(gain)
        y, a, second, third = run(pair, x, returned=returned)
        e = synchronization.return_estimate(y, a, x, T, joint=True, max_offset=100.0, returned=returned)
        assert np.mean(e.trusted) > 0.999
        middle = 0.5 * (second + third) + synchronization.centroid(x)
        score = wrapped(e.phase_rad - pair.phi(middle)) / e.phase_std_rad
        assert np.mean(score[e.trusted] ** 2) == pytest.approx(1.03, abs=0.09)
        score = (e.frequency_hz - pair.offset_hz) / e.frequency_std_hz
        assert np.mean(score[e.trusted] ** 2) == pytest.approx(1.03, abs=0.09)


def test_joint_errors_are_near_their_bound_at_15_db():
    rng = np.random.default_rng(13)
    x = complex_normal(rng, 50)
    x *= np.sqrt(50) / np.linalg.norm(x)
    noise_var = 10**-1.5
    for returned in ("conjugate", "matched"):
        pair = Pair(rng, 8, 6, batch=(4000,), offset_hz=rng.uniform(-20, 20, 4000), noise_var=noise_var)
        y, a, second, third = run(pair, x, returned=returned)
        e = synchronization.return_estimate(y, a, x, T, joint=True, max_offset=100.0, returned=returned)
        gains = [np.abs(t[:, 0] / r[:, 0]) ** 2 for t, r in ((pair.t_a, pair.r_a), (pair.t_b, pair.r_b))]
        bound = bounds.joint_return_crlb(pair.effective(), x, noise_var, T, a=a, leader_gain=gains[0],
                                         follower_gain=gains[1], returned=returned)
        error = wrapped(e.phase_rad - pair.phi(0.5 * (second + third) + synchronization.centroid(x)))
        # Standard errors of 2.2 % in the mean square.
        assert np.mean(error**2 / bound.phase_var) == pytest.approx(1, abs=0.07)
        assert np.mean((e.frequency_hz - pair.offset_hz) ** 2 / bound.frequency_var) == pytest.approx(1, abs=0.07)


def test_joint_estimate_removes_the_floor_of_ten_hertz_at_20_db():
    """Figure 16's sizes; all errors refer to the instant before the first symbol, as the paper's floor does."""
    rng = np.random.default_rng(14)
    num, offset = 32, 10.0
    x = complex_normal(rng, num)
    pair = Pair(rng, num, num, batch=(300,), offset_hz=offset, noise_var=0.01)
    for gain in (pair.t_a, pair.r_a, pair.t_b, pair.r_b):
        gain /= np.abs(gain)
    y, a, second, third = run(pair, x)
    floor = rmse(wrapped(synchronization.phase_offset(y, a, x) - pair.phi(-1)))
    # The waveform's centroid is its own; on average it is the middle of the burst.
    expected = 2 * np.pi * offset * T * (second + third + 2 * (synchronization.centroid(x) + 1))
    assert floor == pytest.approx(expected, rel=0.02)
    assert expected == pytest.approx(2 * np.pi * offset * T * (2 * num + 2 * num + 1), rel=0.05)
    e = synchronization.return_estimate(y, a, x, T, joint=True, max_offset=300.0)
    lag = 0.5 * (second + third) + synchronization.centroid(x) + 1
    error = wrapped(e.phase_rad - 4 * np.pi * e.frequency_hz * T * lag - pair.phi(-1))
    assert rmse(error) < floor / 20
    assert np.all(e.trusted)


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("num_samples", [2, 3, 4, 10, 40])
def test_noise_alone_is_not_trusted(num_samples, joint):
    """Fewer than 1e-3 of 10000 bursts."""
    rng = np.random.default_rng(15)
    y, x, a = complex_normal(rng, 10000, 1, num_samples), complex_normal(rng, num_samples), np.ones(1)
    for limit in (None, 300.0):
        e = synchronization.return_estimate(y, a, x, T, joint=joint, max_offset=limit)
        assert np.count_nonzero(e.trusted) < 10


def test_bursts_that_cannot_be_read_are_flagged_and_do_not_spoil_their_neighbours():
    rng = np.random.default_rng(16)
    pair = Pair(rng, 4, 4, batch=(4,), offset_hz=50.0, noise_var=1e-4)
    x = complex_normal(rng, 30)
    y, a, _, _ = run(pair, x)
    clean = synchronization.return_estimate(y, a, x, T, joint=True)
    y[1], y[2, 0, 3], y[3, 1, 1] = 0.0, np.nan, np.inf
    for joint in (False, True):
        e = synchronization.return_estimate(y, a, x, T, joint=joint)
        assert e.trusted.tolist() == [True, False, False, False]
        assert np.all(np.isnan(e.phase_rad[1:]))
        assert np.all(np.isinf(e.phase_std_rad[1:]))
    assert e.phase_rad[0] == pytest.approx(clean.phase_rad[0])
    assert np.isnan(synchronization.phase_offset(y, a, x)[1])


def test_offset_outside_the_search_is_flagged():
    rng = np.random.default_rng(17)
    offset = rng.choice([-1, 1], 200) * rng.uniform(110, 1500, 200)
    pair = Pair(rng, 4, 4, batch=(200,), offset_hz=offset, noise_var=0.01)
    x = complex_normal(rng, 40)
    y, a, _, _ = run(pair, x)
    assert not np.any(synchronization.return_estimate(y, a, x, T, joint=True, max_offset=100.0).trusted)
    assert np.all(synchronization.return_estimate(y, a, x, T, joint=True, max_offset=1600.0).trusted)


def test_leader_knows_what_its_noise_adds_and_whether_it_heard():
    rng = np.random.default_rng(18)
    x, b = complex_normal(rng, 20), complex_normal(rng, 5)
    y = b[:, None] * x + 0.3 * complex_normal(rng, 4000, 5, 20)
    std = synchronization.matched_phase_std(y, x)
    phase = np.angle(np.sum(np.conj(b) * (y @ np.conj(x)), axis=-1))
    assert rmse(phase) == pytest.approx(np.sqrt(np.mean(std**2)), rel=0.05)
    noise = synchronization.matched_phase_std(complex_normal(rng, 10000, 5, 20), x)
    assert np.count_nonzero(np.isfinite(noise)) < 10
    # Told, the follower adds it to its own; not told, it doubles its own.
    own = synchronization.return_estimate(y, np.conj(b) / 3, x, T, returned="matched", leader_std_rad=0.0)
    told = synchronization.return_estimate(y, np.conj(b) / 3, x, T, returned="matched", leader_std_rad=0.2)
    alike = synchronization.return_estimate(y, np.conj(b) / 3, x, T, returned="matched")
    np.testing.assert_allclose(told.phase_std_rad**2, own.phase_std_rad**2 + 0.04)
    np.testing.assert_allclose(alike.phase_std_rad**2, 2 * own.phase_std_rad**2)
    lost = synchronization.return_estimate(y, np.conj(b) / 3, x, T, returned="matched", leader_std_rad=np.inf)
    assert not np.any(lost.trusted)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda y, a, x: synchronization.conjugate_return(0 * y), r"y has energy 0 at batch index \(0,\)"),
        (lambda y, a, x: synchronization.conjugate_return(y * np.nan), "y has energy nan"),
        (lambda y, a, x: synchronization.conjugate_return(y[0, 0]), r"y has shape \(6,\)"),
        (lambda y, a, x: synchronization.conjugate_return(y, energy=0.0), "energy = 0"),
        (lambda y, a, x: synchronization.matched_return(0 * y, x), r"y conj\(x\) has energy 0"),
        (lambda y, a, x: synchronization.matched_return(y, x[:-1]), r"x has shape \(5,\).* 6 samples"),
        (lambda y, a, x: synchronization.dominant_direction(0 * y), "y has energy 0"),
        (lambda y, a, x: synchronization.dominant_direction(y[:, :0]), r"y has shape \(2, 0, 6\)"),
        (lambda y, a, x: synchronization.dominant_direction(y, method="svd"), 'method = "svd"'),
        (lambda y, a, x: synchronization.dominant_direction(y, method="power", steps=0), "steps = 0"),
        (lambda y, a, x: synchronization.next_direction(0 * y, x), "y x has energy 0"),
        (lambda y, a, x: synchronization.phase_offset(y, a[:-1], x), r"a has shape \(3,\).* 4 antennas"),
        (lambda y, a, x: synchronization.phase_offset(y, a, 0 * x), "x must be finite and must not be zero"),
        (lambda y, a, x: synchronization.phase_offset_nls(y, a, x, y[:, :, :5], 1.0), r"g_e has shape \(2, 4, 5\)"),
        (lambda y, a, x: synchronization.return_estimate(y, a, x, 0.0), "sample_interval = 0"),
        (lambda y, a, x: synchronization.return_estimate(y, a, x, T, joint=True, max_offset=4e3), "max_offset = 4000"),
        (lambda y, a, x: synchronization.return_estimate(y, a, x, T, returned="both"), 'returned = "both"'),
    ],
)
def test_wrong_arguments_raise_errors_that_name_them(call, message):
    rng = np.random.default_rng(19)
    with pytest.raises(ValueError, match=message):
        call(complex_normal(rng, 2, 4, 6), complex_normal(rng, 4), complex_normal(rng, 6))
