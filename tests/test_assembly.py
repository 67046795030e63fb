# SPDX-License-Identifier: GPL-3.0-or-later
"""From a testbed file to simulation objects: every key arrives where it belongs, with its sign and unit."""

import numpy as np
import pytest
from gnuradio.dmimo import testbed
from gnuradio.dmimo.assembly import Assembly, noise_variance

TEXT = """
version: 1
seed: 3
center_freq: 2.0e+9
nodes:
  - {{name: ap1, num_ports: 2, panel: {{num_antennas: 8, beams: [1, 4, 6]}}, {ap1}}}
  - {{name: ap2, position_m: [30, 40, 0]}}
  - {{name: ue1, kind: ue}}
noise: {{snr_db: 10}}
slots: {{slot_samples: 512}}
verification: {{}}
"""


def network(ap1="kind: ap"):
    return Assembly(testbed.parse(TEXT.format(ap1=ap1))).network()


def node(name, ap1="kind: ap"):
    return next(n for n in network(ap1).nodes if n.name == name)


def test_gain_settings_act_on_their_own_chain():
    plain, louder = node("ap1"), node("ap1", "tx_gain_db: 6, rx_gain_db: -4")
    np.testing.assert_allclose(louder.tx_gains / plain.tx_gains, 10 ** (6 / 20))
    np.testing.assert_allclose(louder.rx_gains / plain.rx_gains, 10 ** (-4 / 20))


def test_noise_figure_adds_to_the_noise_of_one_node():
    assert np.all(node("ap2").noise_var == pytest.approx(0.1))
    assert np.all(node("ap1", "hardware: {noise_figure_db: 3}").noise_var == pytest.approx(0.1 * 10**0.3))
    assert noise_variance(20.0, 3.0) > noise_variance(20.0)


def test_clock_and_carrier_keep_their_signs():
    assert node("ap1", "clock: {offset_samples: 2.5, loop_delay_samples: 1.5}").clock.offset_samples == 2.5
    assert node("ap1", "clock: {loop_delay_samples: 1.5}").clock.loop_delay_samples == 1.5
    fast = "oscillator: {cfo_hz: 2000}, clock: {follow_cfo: true}"
    assert node("ap1", fast).clock.rate == pytest.approx(1 + 1e-6, abs=1e-12)
    assert node("ap1", "oscillator: {cfo_hz: 2000}").clock.rate == 1.0
    theta = node("ap1", "oscillator: {cfo_hz: 2000}").oscillator.phase(0, 2)
    assert theta[1] - theta[0] == pytest.approx(2 * np.pi * 2e-3)


def test_phases_and_gains_differ_between_nodes_and_seeds_and_repeat_with_them():
    first, again = network(), network()
    np.testing.assert_array_equal(first.true_calibration(0), again.true_calibration(0))
    assert len(set(np.round(np.angle(first.true_calibration(0)), 6))) == 4
    other = Assembly(testbed.parse(TEXT.format(ap1="kind: ap").replace("seed: 3", "seed: 4"))).network()
    assert not np.allclose(np.angle(first.true_calibration(0)), np.angle(other.true_calibration(0)))


def test_zero_phases_leave_only_gains():
    still = "hardware: {phase: zero}, oscillator: {phase: zero}"
    np.testing.assert_allclose(network(still).true_calibration(0)[:2], 1.0, atol=1e-12)


def test_schedule_covers_sweep_and_verification():
    assembly = Assembly(testbed.parse(TEXT.format(ap1="kind: ap")))
    assert [phase.name for phase in assembly.schedule.phases] == ["sweep", "training", "uplink", "downlink"]
    assert [p.name for p in Assembly(assembly.testbed, verify=False).schedule.phases] == ["sweep"]
    assert assembly.port_names == ("ap1:0", "ap1:1", "ap2:0")


def test_unknown_names_are_refused():
    assembly = Assembly(testbed.parse(TEXT.format(ap1="kind: ap")))
    with pytest.raises(ValueError, match="name = 'ap9'"):
        assembly.roles("ap9")
    with pytest.raises(ValueError, match="no such section"):
        Assembly(assembly.testbed, verify=False).verifier()
