# SPDX-License-Identifier: GPL-3.0-or-later
"""Amplifiers of the simulated ports: polynomial, memory, back-off, saturation, and their place in a network."""

import itertools

import numpy as np
import pytest
from gnuradio.dmimo.simulation.amplifiers import (
    GAN_POLYNOMIAL,
    AmplifierBank,
    Amplifiers,
    draw_amplifiers,
    peak_amplitude,
    third_order_fit,
)
from gnuradio.dmimo.simulation.network import Network, SimulatedNode
from gnuradio.dmimo.simulation.oscillators import Clock
from gnuradio.dmimo.simulation.propagation import Rayleigh
from networks import BLOCK, HOUR, SAMP_RATE, make_network, noise_like

ORDERS = 2 * np.arange(5)


def rng(seed=1):
    return np.random.default_rng(seed)


def gan(u):
    """The relative 9th-order polynomial written out term by term."""
    return sum(a / GAN_POLYNOMIAL[0] * u * np.abs(u) ** p for a, p in zip(GAN_POLYNOMIAL, ORDERS, strict=True))


# -- one amplifier ----------------------------------------------------------------------------------------------------


def test_third_order_makes_the_intermodulation_of_two_tones():
    # (e^{ja} + e^{jb}) |.|^2 = 3 e^{ja} + 3 e^{jb} + e^{j(2a-b)} + e^{j(2b-a)}
    n = np.arange(64)
    tones = np.exp(2j * np.pi * 5 * n / 64) + np.exp(2j * np.pi * 8 * n / 64)
    a = -0.05 + 0.02j
    spectrum = np.fft.fft(Amplifiers([[1.0, a]])(tones[None])[0]) / 64
    expected = np.zeros(64, dtype=complex)
    expected[[5, 8]], expected[[2, 11]] = 1 + 3 * a, a
    np.testing.assert_allclose(spectrum, expected, atol=1e-13)


@pytest.mark.parametrize("back_off_db", [0.0, 6.0, 12.0])
def test_gan_amplifier_is_its_polynomial_at_the_back_off_with_unit_small_signal_gain(back_off_db):
    drive = 10 ** (-back_off_db / 20)
    x = rng().uniform(0, 1, 200) / drive * np.exp(2j * np.pi * rng(2).uniform(size=200))
    amplifiers = draw_amplifiers(rng(), 1, back_off_db=back_off_db)
    np.testing.assert_allclose(amplifiers(x[None])[0], gan(drive * x) / drive, rtol=1e-10, atol=1e-12)
    np.testing.assert_allclose(amplifiers(np.array([[1e-6j]])), [[1e-6j]], rtol=1e-10)


@pytest.mark.parametrize("back_off_db", [0.0, 9.0])
def test_beyond_unit_amplitude_the_output_stays_at_saturation_and_keeps_the_input_phase(back_off_db):
    level = 10 ** (back_off_db / 20)
    amplifiers = draw_amplifiers(rng(), 2, back_off_db=back_off_db)
    np.testing.assert_allclose(amplifiers.saturation, level)
    phase = np.exp(1j * np.array([0.0, 1.0, -2.5]))
    at, beyond = (amplifiers(np.tile(level * scale * phase, (2, 1))) for scale in (1.0, 5.0))
    np.testing.assert_allclose(beyond, at, rtol=1e-12)
    np.testing.assert_allclose(at / level, np.tile(gan(1.0) * phase, (2, 1)), rtol=1e-12)
    inside = np.tile(0.999 * level * phase, (2, 1))
    assert np.array_equal(amplifiers.limit(inside), inside)
    x = np.tile(5.0 * level * phase, (2, 1))
    assert np.array_equal(draw_amplifiers(rng(), 2, saturation=np.inf).limit(x), x)


@pytest.mark.parametrize("kappa", [-0.2, -0.2 + 0.1j, 0.1 - 0.5j])
def test_third_order_output_peaks_where_its_derivative_is_zero(kappa):
    # d|F|^2/du = 0: 3|k|^2 q^2 + 4 Re(k) q + 1 = 0 with q = u^2 (the root where 1 + k q comes first)
    q = np.roots([3 * abs(kappa) ** 2, 4 * np.real(kappa), 1.0])
    expected = np.sqrt(min(q.real)) if np.all(np.abs(q.imag) < 1e-12) else np.inf
    assert peak_amplitude([1.0, kappa]) == pytest.approx(expected)
    if np.isfinite(expected):
        amplifier = draw_amplifiers(rng(), 1, [1.0, kappa], saturation=None)
        output = np.abs(amplifier(np.linspace(0, 3 * expected, 3000)[None].astype(complex))[0])
        assert np.all(np.diff(output) > -1e-12)


def test_gan_output_peaks_below_unit_amplitude():
    u = np.linspace(0, 1, 100001)
    assert peak_amplitude(GAN_POLYNOMIAL) == pytest.approx(u[np.abs(gan(u)).argmax()], abs=2e-5)
    assert peak_amplitude([1.0, 0.2]) == np.inf


@pytest.mark.parametrize("back_off_db", [8.0, 12.0])
def test_third_order_fit_leaves_an_error_orthogonal_to_its_terms(back_off_db):
    num, sigma = 400000, 10 ** (-back_off_db / 20)
    u = sigma * np.sqrt(0.5) * (rng().standard_normal(num) + 1j * rng(2).standard_normal(num))
    target = gan(u * np.minimum(1.0, 1.0 / np.abs(u)))
    basis = np.stack([u, u * np.abs(u) ** 2])
    fit = np.linalg.solve(basis.conj() @ basis.T, basis.conj() @ target)
    error = target - fit @ basis
    # Standard error of a least-squares coefficient, residuals independent of one another.
    inverse = np.linalg.inv(basis.conj() @ basis.T)
    spread = np.sqrt(np.diag(inverse @ ((basis.conj() * np.abs(error) ** 2) @ basis.T) @ inverse).real)
    got = third_order_fit(back_off_db)
    assert abs(got[1] - fit[1] / fit[0]) < 4 * np.hypot(spread[1], abs(got[1]) * spread[0])
    assert got[0] == 1.0


def test_third_order_fit_of_a_third_order_amplifier_is_itself():
    kappa = -0.1 + 0.05j
    np.testing.assert_allclose(third_order_fit(10.0, [2.0, 2.0 * kappa], saturation=np.inf), [1.0, kappa], rtol=1e-9)


def test_memory_polynomial_is_its_double_sum():
    a = noise_like((2, 4, 3)).astype(complex)
    amplifiers = Amplifiers(a)
    x = noise_like((2, 50), 1).astype(complex)
    y = amplifiers(x)
    relative = a / a[..., :1].sum(axis=1, keepdims=True)
    for port, n in ((0, 3), (1, 20), (1, 49)):
        terms = [relative[port, lag, p] * x[port, n - lag] * abs(x[port, n - lag]) ** (2 * p)
                 for p in range(3) for lag in range(4)]
        assert abs(y[port, n - 3] - sum(terms)) < 1e-12
    assert y.shape == (2, 47)


def test_linear_response_is_the_gain_of_a_small_tone_and_one_at_band_centre():
    amplifiers = draw_amplifiers(rng(), 2, memory=[0.1j, -0.05], spread=0.1)
    cycles, n = np.array([0.0, 0.07, -0.31]), np.arange(20)
    response = amplifiers.linear_response(cycles)
    np.testing.assert_allclose(response[:, 0], 1.0)
    for k, f in enumerate(cycles):
        tone = 1e-6 * np.exp(2j * np.pi * f * n)
        np.testing.assert_allclose(amplifiers(np.tile(tone, (2, 1))) / tone[2:], np.tile(response[:, k, None], 18),
                                   rtol=1e-9)


def test_spread_of_drive_and_of_the_deviation():
    num = 20000
    drive = draw_amplifiers(rng(), num, back_off_db=8.0, drive_std_db=1.5)
    level_db = -20 * np.log10(drive.saturation)
    assert abs(level_db.mean() + 8.0) < 4 * 1.5 / np.sqrt(num)
    assert abs(level_db.std() - 1.5) < 4 * 1.5 / np.sqrt(2 * num)
    nominal = np.array(GAN_POLYNOMIAL) / GAN_POLYNOMIAL[0]
    scale = drive.saturation[:, None] ** -(2.0 * np.arange(5))
    np.testing.assert_allclose(drive.coefficients[:, 0], nominal * scale, rtol=1e-12)
    spread = draw_amplifiers(rng(), num, spread=0.2).coefficients[:, 0, 1:] / nominal[1:] - 1
    np.testing.assert_allclose(spread, np.repeat(spread[:, :1], 4, axis=1), atol=1e-12)
    assert abs(np.mean(np.abs(spread[:, 0]) ** 2) - 0.04) < 4 * 0.04 / np.sqrt(num)
    assert abs(np.mean(spread[:, 0] ** 2)) < 4 * 0.04 * np.sqrt(2 / num)
    assert np.all(draw_amplifiers(rng(), num, spread=0.2).coefficients[..., 0] == 1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Amplifiers([1.0, 0.1]), "coefficients"),
        (lambda: Amplifiers([[0.0, 0.1]]), "linear"),
        (lambda: Amplifiers([[1.0, np.nan]]), "finite"),
        (lambda: Amplifiers([[1.0]], 0.0), "saturation"),
        (lambda: Amplifiers([[1.0]], [1.0, 2.0]), "saturation"),
        (lambda: draw_amplifiers(rng(), 2, [0.0, 1.0]), "coefficients"),
        (lambda: draw_amplifiers(rng(), 2, back_off_db=np.nan), "back_off_db"),
        (lambda: draw_amplifiers(rng(), 2, spread=-1.0), "spread"),
        (lambda: draw_amplifiers(rng(), 2, drive_std_db=np.inf), "drive_std_db"),
    ],
)
def test_bad_arguments_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- in a network -----------------------------------------------------------------------------------------------------


def node_of(network, index, **settings):
    """A node of a network again, with other settings."""
    node = network.nodes[index]
    kept = {key: getattr(node, key) for key in ("oscillator", "panel", "tx_gains", "rx_gains", "clock", "position_m")}
    return SimulatedNode(node.name, node.num_ports, **{**kept, **settings})


def with_amplifiers(amplifiers, *, moving=True, delays=False):
    """A network of 1 + 2 + 1 ports whose middle node has these amplifiers."""
    plain = make_network(moving=moving, propagation=Rayleigh(seed=1, delays=delays))
    nodes = [node_of(plain, i, amplifiers=amplifiers if i == 1 else None) for i in range(3)]
    return plain, Network(nodes, Rayleigh(seed=1, delays=delays), samp_rate=SAMP_RATE, seed=1)


BEAMS = np.zeros(4, int)


@pytest.mark.parametrize("memory", [(), (0.1, -0.05j, 0.02)])
@pytest.mark.parametrize("delays", [False, True])
def test_amplifiers_of_a_node_act_on_all_that_it_sends_and_on_nothing_else(memory, delays):
    amplifiers = draw_amplifiers(rng(), 2, back_off_db=3.0, spread=0.1, drive_std_db=1.0, memory=memory)
    plain, network = with_amplifiers(amplifiers, delays=delays)
    x = noise_like((4, 700))
    sent = x.copy()
    sent[1:3] = amplifiers(np.hstack([np.zeros((2, len(memory))), x[1:3]]))
    assert np.abs(sent[1:3] - x[1:3]).max() > 0.1
    start = 3 * BLOCK + 100
    np.testing.assert_allclose(network.process(x, start, BEAMS, final=True),
                               plain.process(sent, start, BEAMS, final=True), atol=1e-5)


def test_amplifier_memory_crosses_the_cuts_of_the_calls_and_a_gap_flushes_it():
    amplifiers = draw_amplifiers(rng(), 2, back_off_db=3.0, memory=(0.3, 0.2j))
    x, cuts = noise_like((4, 2000)), (0, 1, 255, 256, 700, 701, 2000)
    whole = with_amplifiers(amplifiers)[1].process(x, HOUR, BEAMS, final=True)
    network = with_amplifiers(amplifiers)[1]
    assert network.has_memory
    assert not network.takes_runs
    parts = [network.process(x[:, a:b], HOUR + a, BEAMS, final=True) for a, b in itertools.pairwise(cuts)]
    assert np.array_equal(np.hstack(parts), whole)
    later = HOUR // BLOCK * BLOCK + 4096 * BLOCK  # the first sample of a block
    after_gap = network.process(x, later, BEAMS, final=True)
    assert np.array_equal(after_gap, with_amplifiers(amplifiers)[1].process(x, later, BEAMS, final=True))


def test_no_amplifiers_and_linear_amplifiers_give_the_same_samples():
    plain, linear = with_amplifiers(Amplifiers(np.ones((2, 1))))
    x = noise_like((4, 600))
    assert np.array_equal(plain.process(x, 0, BEAMS, final=True), linear.process(x, 0, BEAMS, final=True))
    assert plain.takes_runs
    assert linear.takes_runs


def test_compression_is_short_for_third_order_amplifiers_without_saturation():
    a = -0.05 + 0.02j
    short = make_network(node={"compression": a}).process(3 * noise_like((4, 600)), 0, BEAMS, final=True)
    x = 3 * noise_like((4, 600))
    sent = x * (1 + np.complex64(a) * (x.real**2 + x.imag**2))
    assert np.array_equal(make_network().process(sent, 0, BEAMS, final=True), short)


def test_truth_at_a_frequency_holds_the_small_signal_response():
    amplifiers = draw_amplifiers(rng(), 2, memory=(0.2, -0.1j))
    plain, network = with_amplifiers(amplifiers, moving=False)
    cycles = np.array([0.0, 0.11, -0.2])
    response = amplifiers.linear_response(cycles)
    c, h = ([n.true_calibration(0, cycles * SAMP_RATE), n.true_channel("ap3", "ap2", BEAMS, 0, cycles * SAMP_RATE)]
            for n in (plain, network))
    np.testing.assert_allclose(h[0][1:3], c[0][1:3] * response, rtol=1e-12)
    np.testing.assert_allclose(h[0][[0, 3]], c[0][[0, 3]], rtol=1e-12)
    np.testing.assert_allclose(h[1], c[1] * response, rtol=1e-12)
    x = np.zeros((4, 600), complex)
    x[1] = 1e-3 * np.exp(2j * np.pi * cycles[1] * np.arange(600))
    y = network.process(x, 0, BEAMS, final=True)[3, 300]
    assert abs(y / x[1, 300] / h[1][0, 0, 1] - 1) < 1e-4
    np.testing.assert_allclose(network.true_channel("ap3", "ap2", BEAMS, 0), h[1][..., 0], rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"amplifiers": Amplifiers(np.ones((3, 1)))}, "amplifiers of 3 ports"),
        ({"amplifiers": Amplifiers(np.ones((2, 1))), "compression": 0.1}, "exclude"),
    ],
)
def test_nodes_refuse_amplifiers_that_do_not_fit(settings, message):
    with pytest.raises(ValueError, match=message):
        node_of(make_network(), 1, **settings)


def test_an_empty_bank_is_false():
    assert not AmplifierBank([None, None], [slice(0, 1), slice(1, 3)])


def test_a_clock_of_its_own_comes_after_the_amplifier():
    """A node's amplifier sees the device's samples, whatever the offset of its clock."""
    clocks, amplifiers = (Clock(), Clock(offset_samples=40.0), Clock()), draw_amplifiers(rng(), 2, memory=(0.3,))
    plain = make_network(clocks=clocks)
    nodes = [node_of(plain, i, amplifiers=amplifiers if i == 1 else None) for i in range(3)]
    network = Network(nodes, Rayleigh(seed=1), samp_rate=SAMP_RATE, seed=1)
    x = noise_like((4, 600))
    sent = x.copy()
    sent[1:3] = amplifiers(np.hstack([np.zeros((2, 1)), x[1:3]]))
    np.testing.assert_allclose(network.process(x, 512, BEAMS, final=True), plain.process(sent, 512, BEAMS, final=True),
                               atol=1e-5)
