# SPDX-License-Identifier: GPL-3.0-or-later
"""Every protocol on virtual USRPs of 2 boards x 2 channels, from the same testbed file as a simulation."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import virtual_usrp_device as virtual
from gnuradio.dmimo import flowgraphs, recorded, records, replay, testbed
from gnuradio.dmimo.assembly import Assembly
from gnuradio.dmimo.recording import Recorder
from virtual_usrp_graph import true_gains

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NOISE_DB = -55  # some 20 dB below what a port hears of another
LOOP_DELAYS = [40, 40, 43, 44]  # samples

RACK = """\
version: 1
frontend: usrp
center_freq: 2.4e+9
usrp: {radios: [{name: rack, args: ARGS}]}
"""
SWEEP = RACK + """\
name: a rack of two boards
nodes:
  - {name: ap1, num_ports: 1, radio: {channels: [0]}}
  - {name: ap2, num_ports: 2, radio: {channels: [3, 2]}}
  - {name: ue1, kind: ue, radio: {channels: [1]}}
noise: {snr_db: 20}
slots: {slot_samples: 512, prefix_samples: 32, pilot_samples: 128, watchdog_s: 5}
verification: {repeats: 4, random_starts: 16}
"""
TWO_USERS = RACK + """\
nodes:
  - {name: ap1}
  - {name: ap2}
  - {name: ue1, kind: ue}
  - {name: ue2, kind: ue}
slots: {slot_samples: 512, watchdog_s: 5}
verification: {repeats: 2, random_starts: 4}
multiuser: {precoder: zero_forcing, random_starts: 4}
"""
BEAMSYNC = RACK + """\
nodes:
  - {name: ap1, num_ports: 1, radio: {channels: [0]}}
  - {name: ap2, num_ports: 2, radio: {channels: [2, 3]}}
  - {name: ue1, kind: ue, radio: {channels: [1]}}
slots: {slot_samples: 512, lead_samples: 16, prefix_samples: 32, pilot_samples: 128, watchdog_s: 5}
verification: {uplink_repeats: 2, repeats: 2, random_starts: 4}
beamsync: {sync_samples: 128, linewidth_hz: 1.0e-5, drift_hz: 0.01, watches: 2, duration_s: 2, max_interval_s: 2}
"""
BIDIRECTIONAL = RACK + """\
nodes:
  - {name: trp1}
  - {name: trp2}
  - {name: ue1, kind: ue, num_ports: 2}
slots: {slot_samples: 512, pilot_samples: 256, num_subcarriers: 192, watchdog_s: 5}
verification: {repeats: 2, random_starts: 4}
bidirectional: {patterns: 2, pattern_s: 0.1, linewidth_hz: 1.0e-5, drift_hz: 0.01}
"""


def on_radio(text, tmp_path, protocol=None, **options):
    """Assembly of a testbed on virtual USRPs, and the log of their commands."""
    log = tmp_path / "log.json"
    options = {"num_mboards": 2, "log": log, "seed": 5, "noise_db": NOISE_DB, "loop_delay": LOOP_DELAYS, **options}
    virtual.use()
    text = text.replace("ARGS", f'"{virtual.arguments(**options)}"')
    return Assembly(testbed.parse(text), protocol=protocol), log


def run(assembly, **options):
    """Flowgraph that has run, and its outcome."""
    flowgraph = flowgraphs.testbed_flowgraph(assembly, **options)
    return flowgraph, flowgraphs.run(flowgraph, timeout_s=60)


def true_c(assembly, log):
    """c of the access points' ports by that of the first, y[i, j] / y[j, i] = c_j / c_i, from the device's log."""
    nodes = assembly.radios()["rack"].nodes
    channels = [port.channel for ap in assembly.testbed.aps for port in nodes[ap.name]]
    gains = true_gains(log)
    return gains[channels[0], channels] / gains[channels, channels[0]]


def deviations(estimate, truth):
    """Phase errors in predicted deviations, the reference left out."""
    errors = np.angle(estimate.c / truth)
    return np.abs(errors[1:] - errors[0]) / estimate.phase_std_rad[1:]


def test_beam_sweep_and_joint_transmission(tmp_path):
    assembly, log = on_radio(SWEEP, tmp_path)
    flowgraph, outcome = run(assembly, calibration_file=str(tmp_path / "calibration.h5"))
    assert outcome.error is None
    assert flowgraph.scheduler.releases == len(assembly.schedule.slots)  # nothing was repeated
    delays = outcome.report["loop_delays_samples"]
    assert {name: list(found) for name, found in delays.items()} == {"ap1": [40], "ap2": [44, 43], "ue1": [40]}
    assert np.all(deviations(outcome.estimate, true_c(assembly, log)) < 5)
    assert outcome.report["ideal_gain_db"] - outcome.report["coherent_gain_db"] < 0.1
    assert "c_true" not in outcome.report
    record = records.load_calibration(tmp_path / "calibration.h5", assembly.testbed)
    assert record.epoch > 1.6e15  # microseconds since 1970
    with pytest.raises(records.RecordError, match="measure again"):
        records.load_calibration(tmp_path / "calibration.h5", assembly.testbed, epoch=record.epoch + 1)


def quality(outcome):
    """Predicted variance of the phase between two ports over what their SNRs make of it, up to a constant."""
    snr_db = np.array(outcome.report["pair_snr_db"], float)
    return outcome.estimate.phase_std_rad[1] ** 2 / np.sum(10 ** (-np.array([snr_db[0, 1], snr_db[1, 0]]) / 10))


def test_a_calibration_is_as_good_as_with_the_simulated_front_end_at_the_same_snr(tmp_path):
    assembly, _ = on_radio(TWO_USERS, tmp_path)
    _, on_radios = run(assembly)
    bed = replace(assembly.testbed, frontend="simulated",
                  calibration=replace(assembly.testbed.calibration, frequency=False))
    # The phase noise that each run finds makes them differ, upwards only.
    simulated = [quality(run(Assembly(replace(bed, seed=seed), verify=False))[1]) for seed in range(20)]
    assert 0.98 * min(simulated) < quality(on_radios) < 1.25 * max(simulated)


def test_two_users(tmp_path):
    assembly, _ = on_radio(TWO_USERS, tmp_path)
    _, outcome = run(assembly)
    assert outcome.error is None
    users = outcome.report["multiuser"]["users"]
    for user in users.values():
        assert user["sinr_db"] > user["uncalibrated_sinr_db"] + 6


def test_synchronisation(tmp_path):
    assembly, _ = on_radio(BEAMSYNC, tmp_path, "sync", loop_delay=40)
    _, outcome = run(assembly, duration_s=2.0)
    assert outcome.error is None
    report = outcome.report
    # Eight bursts in a row leave a hertz or more; those over growing gaps serve exchanges that are leads apart.
    (frequency,) = [entry["followers"]["ap2"] for entry in report["history"] if entry["phase"] == "frequency"]
    assert frequency["frequency_std_hz"] < 0.02
    assert abs(frequency["frequency_hz"]) < 4 * frequency["frequency_std_hz"]
    assert report["synchronisations"] >= 2
    assert report["loss_db"] < 0.1
    assert "phase_error_deg" not in report


def test_frequency_bursts_double_their_span_up_to_what_an_exchange_takes():
    bed = testbed.parse(BEAMSYNC.replace("ARGS", '""'))
    slots = [slot for slot in Assembly(bed, protocol="sync").schedule.slots if slot.purpose == "frequency_signal"]
    ends = np.cumsum([slot.idle_samples + 512 for slot in slots])
    assert ends[7] == 8 * 512
    assert ends[8:] - ends[7:-1] == pytest.approx(ends[7:-1] + 512)
    assert ends[-2] < 6 * bed.usrp.reactive_lead_s * bed.samp_rate <= ends[-1]
    simulated = Assembly(replace(bed, frontend="simulated",
                                 beamsync=replace(bed.beamsync, internal_calibration="none")),
                         protocol="sync")
    assert not any(slot.idle_samples for slot in simulated.schedule.slots)


def test_bidirectional_exchange(tmp_path):
    assembly, log = on_radio(BIDIRECTIONAL, tmp_path)
    _, outcome = run(assembly)
    assert outcome.error is None
    assert np.all(deviations(outcome.estimate, true_c(assembly, log)) < 5)
    assert outcome.report["loss_db"] < 0.1


def test_record_then_replay_gives_the_same_products(tmp_path):
    assembly, _ = on_radio(SWEEP, tmp_path)
    recorder = Recorder(tmp_path / "recording", assembly)
    flowgraph, outcome = run(assembly, recorder=recorder, calibration_file=str(tmp_path / "run.h5"))
    scheduler = flowgraph.scheduler
    recorder.close(outcome.error, scheduler.releases, scheduler.end_sample, first_sample=scheduler.first_sample,
                   epoch=scheduler.epoch)
    recording = recorded.load(tmp_path / "recording")
    player, again = replay.run(recording, replay.assembly_of(recording), calibration_file=str(tmp_path / "again.h5"))
    assert player.compared == len(assembly.schedule.phases)
    assert player.different == []
    for name, report in (("run.json", outcome.report), ("again.json", again.report)):
        records.write_json(tmp_path / name, report)
    for name in ("json", "h5"):
        assert (tmp_path / f"again.{name}").read_bytes() == (tmp_path / f"run.{name}").read_bytes()


def test_a_board_that_vanishes_ends_the_run_with_its_name(tmp_path):
    text = SWEEP.replace("slot_samples: 512", "slot_samples: 65536")  # long enough to be in the middle
    assembly, _ = on_radio(text, tmp_path, vanish_after="1:1")
    _, outcome = run(assembly)
    assert "board 1 (V1)" in outcome.error


def test_the_virtual_rack_of_the_examples_is_coherent():
    virtual.use()
    assembly = Assembly.load(EXAMPLES / "virtual_rack.yml")
    _, outcome = run(assembly)
    assert outcome.error is None
    assert outcome.report["ideal_gain_db"] - outcome.report["coherent_gain_db"] < 0.1


@pytest.mark.parametrize(("old", "new", "words"), [
    ("type=virtual", "type=nosuch", "radio rack, args 'type=nosuch,.*No devices found"),
    ("[3, 2]", "[3, 4]", "channel 4: the radio has channels 0 to 3"),
    ("args:", "time_source: nowhere, args:", "radio rack, .*nowhere"),
])
def test_a_radio_that_cannot_be_used_is_named_before_the_run(tmp_path, old, new, words):
    virtual.use()
    text = SWEEP.replace("ARGS", f'"{virtual.arguments(num_mboards=2)}"').replace(old, new)
    with pytest.raises(flowgraphs.RunError, match=words):
        flowgraphs.testbed_flowgraph(Assembly(testbed.parse(text)))
