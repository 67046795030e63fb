# SPDX-License-Identifier: GPL-3.0-or-later
"""From a testbed file to simulation objects: every key arrives where it belongs, with its sign and unit."""

import numpy as np
import pytest
from gnuradio.dmimo import testbed
from gnuradio.dmimo.assembly import Assembly
from gnuradio.dmimo.direct import DirectRun
from gnuradio.dmimo.simulated import noise_variance
from gnuradio.dmimo.simulation.propagation import Geometric, Rayleigh

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


LINE_OF_SIGHT = """
version: 1
seed: 3
samp_rate: 245.76e+6
node_defaults: {num_ports: 2, hardware: {gain_std_db: 1}}
nodes:
  - {name: ap1, oscillator: {cfo_hz: 30e+3}}
  - {name: ap2, position_m: [300, 0, 0], oscillator: {cfo_hz: -20e+3}}
  - {name: ue1, kind: ue, position_m: [150, 260, 0]}
propagation: {kind: geometric, num_paths: 0, rice_factor_db: 9, cross_polarisation_db: 8}
noise: {snr_db: 30}
slots: {slot_samples: 1024, receive_delay_samples: 246, prefix_samples: 36}
beam_sweep: {passes: 4}
verification: {repeats: 4, random_starts: 4, cooperating: [1, 2, 4]}
"""


def test_propagation_keys_reach_the_model(monkeypatch):
    seen = {}
    for model in (Geometric, Rayleigh):
        monkeypatch.setattr(f"gnuradio.dmimo.simulated.{model.__name__}",
                            lambda _model=model, **given: seen.update(given) or _model(**given))
    Assembly(testbed.parse(LINE_OF_SIGHT)).network()
    assert [seen[key] for key in ("num_paths", "rice_factor_db", "cross_polarisation_db")] == [0, 9.0, 8.0]
    network()
    assert seen["cross_polarisation_db"] is None


def test_nodes_further_apart_than_the_prefix_are_calibrated_with_a_receive_delay():
    """300 m at 245.76 MS/s are 246 samples; the oscillators turn by 18 degrees against each other on the way."""
    assembly = Assembly(testbed.parse(LINE_OF_SIGHT))
    collectors = assembly.collectors()
    roles = {node.name: assembly.roles(node.name) for node in assembly.testbed.nodes}
    network = assembly.network()
    assert DirectRun(assembly.schedule, network, roles, list(collectors.values())).run() is None
    calibration = collectors["calibrator"].calibration
    assert assembly.truth(network, calibration)["phase_error_deg"] < 1.0
    report = collectors["verifier"].report
    assert report["coherent_gain_db"] == pytest.approx(report["ideal_gain_db"], abs=0.05)
    rows = report["cooperation"]
    assert [row["ports"] for row in rows] == [1, 2, 4]
    for row in rows:
        assert row["snr_db"] == pytest.approx(row["ideal_snr_db"], abs=0.05)
    # Two APs at the same distance: 6 dB more, but for 1 dB of gain deviation; powers alone would add 3 dB.
    assert rows[2]["snr_db"] > rows[1]["snr_db"] + 3.0
    # Without it, no window sees a whole symbol.
    near = Assembly(testbed.parse(LINE_OF_SIGHT.replace("receive_delay_samples: 246, ", "")))
    roles = {node.name: near.roles(node.name) for node in near.testbed.nodes}
    error = DirectRun(near.schedule, near.network(), roles, list(near.collectors().values())).run()
    assert "samples from where they are expected" in error


def test_unknown_names_are_refused():
    assembly = Assembly(testbed.parse(TEXT.format(ap1="kind: ap")))
    with pytest.raises(ValueError, match="name = 'ap9'"):
        assembly.roles("ap9")
    with pytest.raises(ValueError, match="no such section"):
        Assembly(assembly.testbed, verify=False).verifier()
