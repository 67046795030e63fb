# SPDX-License-Identifier: GPL-3.0-or-later
"""Amplifiers, arrays and their coupling: what a testbed file says is what the simulated network does to samples."""

from dataclasses import replace

import numpy as np
import pytest
from gnuradio.dmimo import simulated, testbed
from gnuradio.dmimo.simulation.amplifiers import GAN_POLYNOMIAL
from gnuradio.dmimo.simulation.network import Network

ARRAY = """
version: 1
seed: 5
nodes:
  - {name: ap1, num_ports: 6, array: {rows: 2, columns: 3, spacing_wavelengths: 0.6}, hardware: {gain_std_db: 1, %s}}
propagation: {coupling: {%s}}
noise: {snr_db: null}
slots: {slot_samples: 512}
mutual_coupling: {}
"""
LAW = "kind: log_distance, gain_db: -20, exponent: 3, reference_wavelengths: 0.6"
PAIR = """
version: 1
seed: 3
center_freq: 2.0e+9
node_defaults: {hardware: {gain_std_db: 2, %s}, oscillator: {cfo_hz: 20, linewidth_hz: 1}}
nodes:
  - {name: ap1, num_ports: 3}
  - {name: ap2, num_ports: 2, position_m: [30, 40, 0]}
  - {name: ue1, kind: ue, hardware: {amplifier: null}}
propagation: {coupling_db: -10}
noise: {snr_db: 10}
slots: {slot_samples: 1024}
"""
ROW, COLUMN = np.divmod(np.arange(6), 3)


def network(text: str, *parts: str) -> Network:
    return simulated.network(testbed.parse(text % parts))


def samples(num_ports: int, num: int = 700, power: float = 1.0) -> np.ndarray:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((num_ports, num)) + 1j * rng.standard_normal((num_ports, num))
    return (np.sqrt(power / 2) * x).astype(np.complex64)


def heard(net: Network, x: np.ndarray) -> np.ndarray:
    return net.process(x, 0, np.zeros(net.num_ports, int), final=True)


def chains(net: Network) -> tuple[np.ndarray, np.ndarray]:
    """Gains t and r of the only node, synthesizers included."""
    (node,) = net.nodes
    return (node.tx_gains * np.exp(1j * node.oscillator.tx_phase),
            node.rx_gains * np.exp(-1j * node.oscillator.rx_phase))


def law(kind: str) -> np.ndarray:
    """Coupling of the array, pair by pair, without anything random."""
    h = np.zeros((6, 6), complex)
    for q in range(6):
        for p in range(6):
            if p != q:
                d = 0.6 * np.hypot(ROW[p] - ROW[q], COLUMN[p] - COLUMN[q])
                loss_db = 20 + 30 * np.log10(d / 0.6) if kind == "log_distance" else 15 + 4 * (d - 0.3)
                h[q, p] = 10 ** (-loss_db / 20) * np.exp(-2j * np.pi * d)
    return h


@pytest.mark.parametrize(
    ("coupling", "kind"),
    [(LAW, "log_distance"),
     ("gain_db: -15, slope_db_per_wavelength: 4, reference_wavelengths: 0.3", "linear")],
)
def test_ports_hear_the_gan_polynomial_of_each_other_by_the_law_of_their_distance(coupling, kind):
    amplifier = "amplifier: {kind: gan, back_off_db: 7, saturation: 0.9, memory: [[0.1, -0.05], [0.02, 0.03]]}"
    net = network(ARRAY, amplifier, coupling)
    t, r = chains(net)
    x = np.zeros((6, 700), np.complex64)
    x[4] = samples(1, power=2.0)
    u = 10 ** (-7 / 20) * x[4].astype(complex)
    assert 50 < np.count_nonzero(np.abs(u) > 0.9) < 350  # enough of both
    u = np.where(np.abs(u) > 0.9, 0.9 * u / np.abs(u), u)
    out = sum(a * u * np.abs(u) ** (2 * p) for p, a in enumerate(GAN_POLYNOMIAL))
    memory = [1.0, 0.1 - 0.05j, 0.02 + 0.03j]
    out = np.convolve(out, memory)[:700] / (sum(memory) * GAN_POLYNOMIAL[0] * 10 ** (-7 / 20))
    expected = r[:, None] * law(kind)[:, 4:5] * t[4] * out
    np.testing.assert_allclose(heard(net, x), expected, atol=3e-6 * np.abs(expected).max())


def test_third_order_has_its_back_off_on_a_scale_without_saturation():
    net = network(ARRAY, "amplifier: {compression: [-0.3, 0.1], back_off_db: 4}", LAW)
    t, r = chains(net)
    x = samples(6, power=3.0)
    u = x.astype(complex) * 10 ** (-4 / 20)
    out = x * (1 + (-0.3 + 0.1j) * np.abs(u) ** 2)
    expected = (r[:, None] * law("log_distance") * t) @ out
    np.testing.assert_allclose(heard(net, x), expected, atol=3e-6 * np.abs(expected).max())


def test_amplifiers_of_a_node_spread_as_the_file_says_and_the_truth_is_what_samples_see():
    amplifier = "amplifier: {kind: gan, back_off_db: 9, drive_std_db: 1.5, spread: 0.2, memory: [[0.1, 0.0]]}"
    net = network(ARRAY, amplifier, LAW)
    true = simulated.true_amplifiers(net, ["ap1"])
    assert true.coefficients.shape == (6, 2, 5)
    assert len(np.unique(np.abs(true.coefficients[:, 0, 1]))) == 6
    t, r = chains(net)
    x = samples(6)
    v = np.where(np.abs(x) > true.saturation[:, None], true.saturation[:, None] * x / np.abs(x), x).astype(complex)
    late = np.hstack([np.zeros((6, 1)), v[:, :-1]])
    out = sum(true.coefficients[:, lag, p, None] * part * np.abs(part) ** (2 * p)
              for lag, part in enumerate((v, late)) for p in range(5))
    expected = (r[:, None] * law("log_distance") * t) @ out
    np.testing.assert_allclose(heard(net, x), expected, atol=5e-6 * np.abs(expected).max())


def test_spread_of_many_amplifiers_is_the_one_asked_for_within_four_standard_errors():
    many = ARRAY.replace("num_ports: 6, array: {rows: 2, columns: 3", "num_ports: 256, array: {rows: 8, columns: 32")
    bed = testbed.parse(many % ("amplifier: {kind: gan, back_off_db: 9, drive_std_db: 1.5, spread: 0.2}", LAW))
    true = simulated.true_amplifiers(simulated.network(bed), ["ap1"])
    drive_db = -20 * np.log10(true.saturation)
    assert np.mean(drive_db) == pytest.approx(-9, abs=4 * 1.5 / np.sqrt(256))
    assert np.std(drive_db) == pytest.approx(1.5, abs=4 * 1.5 / np.sqrt(512))
    nominal = GAN_POLYNOMIAL[1] / GAN_POLYNOMIAL[0]
    factor = true.coefficients[:, 0, 1] * true.saturation**2 / nominal - 1
    assert np.sqrt(np.mean(np.abs(factor) ** 2)) == pytest.approx(0.2, abs=4 * 0.2 / np.sqrt(4 * 256))
    assert abs(np.mean(factor)) < 4 * 0.2 / np.sqrt(256)


def test_saturation_left_open_is_none_at_third_order_and_1_of_the_gan_polynomial():
    nets = [network(ARRAY, f"amplifier: {{{keys}, back_off_db: 6}}", LAW)
            for keys in ("compression: [-0.1, 0]", "kind: gan", "compression: [-0.1, 0], saturation: 0.5")]
    levels = [simulated.true_amplifiers(net, ["ap1"]).saturation for net in nets]
    assert np.all(np.isinf(levels[0]))
    np.testing.assert_allclose(levels[1:], np.outer([1.0, 0.5], np.full(6, 10 ** (6 / 20))))


def test_amplifiers_leave_gains_and_phases_as_they_were():
    """The numbers are those of the first release, whose amplifiers were all alike."""
    nets = [network(PAIR, keys) for keys in ("amplifier: null", "amplifier: {kind: gan, spread: 0.3, drive_std_db: 1}")]
    for net in nets:
        ap1, ap2, _ = net.nodes
        np.testing.assert_allclose(ap1.tx_gains[0], -0.29375774 - 1.00995609j, atol=1e-8)
        np.testing.assert_allclose(ap2.rx_gains[1], -0.92269939 + 0.96813291j, atol=1e-8)
        assert ap1.oscillator.rx_phase == pytest.approx(1.6320002852759785, abs=1e-14)
        assert ap2.oscillator.tx_phase == pytest.approx(2.9566347163754685, abs=1e-14)
    for plain, loud in zip(*(net.nodes for net in nets), strict=True):
        np.testing.assert_array_equal(plain.tx_gains, loud.tx_gains)
        np.testing.assert_array_equal(plain.rx_gains, loud.rx_gains)
        assert (plain.oscillator.tx_phase, plain.oscillator.rx_phase) == (
            loud.oscillator.tx_phase, loud.oscillator.rx_phase)
        assert plain.noise_var == loud.noise_var


def test_plain_compression_is_the_same_network_bit_by_bit_as_a_node_with_nothing_else():
    bed = testbed.parse(PAIR % "amplifier: {compression: [-0.05, 0.02]}")
    net = simulated.network(bed)
    alike = [node if node.amplifiers is None else replace(node, amplifiers=None, compression=-0.05 + 0.02j)
             for node in net.nodes]
    other = Network(alike, simulated.propagation(bed), samp_rate=bed.samp_rate, seed=bed.seed)
    x = samples(6)
    y = heard(net, x)
    np.testing.assert_array_equal(y, heard(other, x))
    assert not np.array_equal(y, heard(network(PAIR, "amplifier: null"), x))


def test_amplifiers_depend_on_seed_and_name_alone():
    keys = "amplifier: {kind: gan, spread: 0.3, drive_std_db: 1}"
    text = PAIR.replace("num_ports: 3", "num_ports: 2")
    first, other = network(text, keys), network(text.replace("seed: 3", "seed: 4"), keys)
    fewer = network(text.replace("ap1", "ap3"), keys)
    ap1, ap2, changed, same = (simulated.true_amplifiers(net, [name]).coefficients for net, name in (
        (first, "ap1"), (first, "ap2"), (other, "ap2"), (fewer, "ap2")))
    np.testing.assert_array_equal(ap2, same)
    assert not np.any(np.isclose(ap1[:, 0, 1], ap2[:, 0, 1]))
    assert not np.any(np.isclose(changed[:, 0, 1], ap2[:, 0, 1]))


def test_true_amplifiers_come_in_the_order_asked_for_filled_up_with_zeros():
    text = PAIR.replace("num_ports: 2,", "num_ports: 2, hardware: {amplifier: {memory: [[0.2, 0]]}},")
    net = network(text, "amplifier: {compression: [-0.1, 0.05]}")
    true = simulated.true_amplifiers(net, ["ue1", "ap2", "ap1"])
    expected = np.zeros((6, 2, 2), complex)
    expected[0, 0, 0] = 1.0
    expected[1:3] = np.array([[1.0], [0.2]]) * [1.0, -0.1 + 0.05j] / 1.2
    expected[3:, 0] = [1.0, -0.1 + 0.05j]
    np.testing.assert_allclose(true.coefficients, expected, atol=1e-15)
    assert np.all(np.isinf(true.saturation))


def test_coupling_without_an_array_falls_along_a_row_and_its_random_parts_arrive():
    text = ARRAY.replace("num_ports: 6, array: {rows: 2, columns: 3, spacing_wavelengths: 0.6}", "num_ports: 40")
    plain, both, single = (network(text, "amplifier: null", LAW + more).channel.coupling(0) for more in (
        "", ", perturbation_db: -10", ", nonreciprocity_db: -10"))
    d = np.arange(1, 40) * 0.5
    np.testing.assert_allclose(plain[0, 1:], 10 ** (-(20 + 30 * np.log10(d / 0.6)) / 20) * np.exp(-2j * np.pi * d))
    np.testing.assert_array_equal(both, both.T)
    off = ~np.eye(40, dtype=bool)
    for part, num in ((both, 780), (single, 1560)):
        power = np.mean(np.abs(part[off] - plain[off]) ** 2 / np.abs(plain[off]) ** 2)
        assert power == pytest.approx(0.1, abs=4 * 0.1 / np.sqrt(num))
    assert not np.allclose(single, single.T)
