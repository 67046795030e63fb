# SPDX-License-Identifier: GPL-3.0-or-later
"""Radios on several hosts: each process of a run has virtual USRPs of its own, which share the PPS but not the air."""

import json
import signal

import pytest
import virtual_usrp_device as virtual
from host_processes import free_ports

RACK = """
version: 1
frontend: usrp
center_freq: 2.4e+9
usrp: {{radios: [{{name: rack, args: "{args}"}}]}}
nodes:
  - {{name: ap1, num_ports: 1, radio: {{channels: [0]}}}}
  - {{name: ap2, num_ports: 2, radio: {{channels: [3, 2]}}}}
  - {{name: ue1, kind: ue, radio: {{channels: [1]}}}}
slots: {{slot_samples: 512, prefix_samples: 32, pilot_samples: 128, watchdog_s: 5}}
verification: {{repeats: 4, random_starts: 16}}
hosts: {hosts}
"""
APART = """
version: 1
frontend: usrp
center_freq: 2.4e+9
usrp:
  radios: [{{name: one, args: "{one}"}}, {{name: two, args: "{two}"}}, {{name: three, args: "{three}"}}]
nodes:
  - {{name: ap1, num_ports: 2, radio: {{name: one}}}}
  - {{name: ap2, num_ports: 2, radio: {{name: two}}}}
  - {{name: ap3, num_ports: 2, radio: {{name: three}}}}
slots: {{slot_samples: 512, prefix_samples: 32, pilot_samples: 128, watchdog_s: 5}}
{more}
hosts: {hosts}
"""


@pytest.fixture
def dmimo_environment():
    return virtual.environment()


def hosts(**remote):
    return json.dumps({"port": free_ports(2 * len(remote)), "timeout_s": 60, "remote": remote})


def rack(folder, **options):
    """Testbed file of a rack on another host."""
    args = virtual.arguments(num_mboards=2, seed=5, noise_db=-55, loop_delay=[40, 40, 43, 44], **options)
    (folder / "bed.yml").write_text(RACK.format(args=args, hosts=hosts(rack=["ap1", "ap2", "ue1"])))


def apart(folder, more="", **two):
    """Testbed file of three radios, on three hosts."""
    args = {name: virtual.arguments(seed=seed, noise_db=-55, loop_delay=[10 * seed, 10 * seed + 1], **options)
            for seed, (name, options) in enumerate({"one": {}, "two": two, "three": {}}.items(), 1)}
    (folder / "bed.yml").write_text(APART.format(**args, more=more, hosts=hosts(pc2=["ap2"], pc3=["ap3"])))


def report(folder):
    return json.loads((folder / "report.json").read_text())


def test_a_rack_on_another_host_is_calibrated_recorded_and_replayed(dmimo, tmp_path):
    rack(tmp_path)
    host = dmimo("node", "bed.yml", "--name", "rack")
    run = dmimo("calibrate", "bed.yml", "--output", "out", "--record", "recorded")
    assert run.ends() == 0, run.output
    assert host.ends() == 0, host.output
    found = report(tmp_path / "out")
    assert found["loop_delays_samples"] == {"ap1": [40], "ap2": [44, 43], "ue1": [40]}
    assert abs(found["coherent_gain_db"] - found["ideal_gain_db"]) < 0.1
    assert (tmp_path / "out" / "calibration.h5").exists()
    replay = dmimo("replay", "recorded", "--output", "again")
    assert replay.ends() == 0, replay.output
    assert "are those of the recorded run, bit for bit" in replay.output


def test_radios_on_three_hosts_begin_together_and_each_measures_its_own_loop_delays(dmimo, tmp_path):
    apart(tmp_path)
    members = [dmimo("node", "bed.yml", "--name", name) for name in ("pc2", "pc3")]
    members.append(dmimo("calibrate", "bed.yml", "--output", "out"))
    for member in members:
        assert member.ends() == 1
        # All slots of the sweep were sent and received by all: the virtual air ends at each process.
        assert "phase sweep: not trusted: no signal connects the ports {ap1:0}, {ap1:1}, {ap2:0}, {ap2:1}" in " ".join(
            member.output.split())
    assert report(tmp_path / "out")["loop_delays_samples"] == {"ap1": [10, 11], "ap2": [20, 21], "ap3": [30, 31]}


def test_a_radio_that_fails_on_another_host_ends_the_run_with_its_name(dmimo, tmp_path):
    apart(tmp_path, serial="X", unlocked=0)
    members = [dmimo("node", "bed.yml", "--name", name) for name in ("pc2", "pc3")]
    members.append(dmimo("calibrate", "bed.yml", "--output", "out"))
    for member in members:
        assert member.ends() == 1
        assert "radio two" in member.output
        assert "X0" in member.output


def test_a_radio_that_another_host_does_not_find_is_said_with_its_arguments(dmimo, tmp_path):
    apart(tmp_path, unknown_option="1")
    members = [dmimo("node", "bed.yml", "--name", name) for name in ("pc2", "pc3")]
    members.append(dmimo("calibrate", "bed.yml", "--output", "out"))
    for member in members:
        assert member.ends() == 1
        assert "unknown_option" in member.output
        assert "Traceback" not in member.output
    assert "host pc2 (node ap2) has ended: its nodes could not be made: " in members[2].output


def test_a_host_with_a_radio_that_is_killed_ends_the_run_with_its_name(dmimo, tmp_path):
    apart(tmp_path)
    members = [dmimo("node", "bed.yml", "--name", name) for name in ("pc2", "pc3")]
    members.append(dmimo("calibrate", "bed.yml", "--output", "out"))
    members[0].says("the run has begun")
    members[0].process.send_signal(signal.SIGKILL)
    for member in members[1:]:
        assert member.ends() == 1
        assert "host pc2 (node ap2) has not been heard of for 5 s" in member.output
