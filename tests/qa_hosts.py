# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs over several hosts: processes on this machine that speak over loopback."""

import json
import signal
import socket
from pathlib import Path

import pytest
from gnuradio.dmimo import testbed
from host_processes import ROOT, Relay, free_ports

EXAMPLES = ROOT / "examples"
ENDLESS = ("--duration", "1e6", "--no-verify")  # ends only when something happens to it
SWEEP = "three_panels.yml"
SYNC = "two_aps_drift.yml"


def bed(folder, example, remote, name="bed.yml", **settings):
    """Testbed file of an example with other hosts."""
    values = {"port": free_ports(2 * len(remote)), "remote": remote, "timeout_s": 60, **settings}
    (folder / name).write_text(f"{(EXAMPLES / example).read_text()}\nhosts: {json.dumps(values)}\n")
    return values


def report(folder):
    return json.loads((folder / "report.json").read_text())


def without_hosts(content):
    content["testbed"]["hosts"] = None
    return content


@pytest.mark.parametrize(("command", "example", "remote"), [
    (("calibrate",), SWEEP, {"pc1": ["ap1"], "pc2": ["ap2", "ue1"]}),
    (("sync", "--duration", 1), SYNC, {"pc2": ["ap2"]}),
    (("calibrate", "--seed", 3), "four_trps_two_ues.yml", {"trps": ["trp1", "trp2"], "ues": ["ue1"]})])
def test_a_run_over_hosts_is_that_of_one_process_bit_for_bit(dmimo, tmp_path, command, example, remote):
    bed(tmp_path, example, remote)
    hosts = [dmimo("node", "bed.yml", "--name", nodes[-1]) for nodes in remote.values()]
    several = dmimo(*command, "bed.yml", "--output", "several")
    assert several.ends() == 0, several.output
    for host, name in zip(hosts, remote, strict=True):
        assert host.ends() == 0, host.output
        assert f"host {name} (node" in host.output
        assert host.output.endswith("the run is over\n")
    one = dmimo(*command, EXAMPLES / example, "--output", "one")
    assert one.ends() == 0, one.output
    assert without_hosts(report(tmp_path / "several")) == without_hosts(report(tmp_path / "one"))
    assert several.output.split("\n", 1)[1].replace("several", "one").endswith(one.output.split("results in")[0] +
                                                                               "results in one/\n")


def test_a_run_over_hosts_is_recorded_by_the_coordinator_and_replays_bit_for_bit(dmimo, tmp_path):
    bed(tmp_path, SWEEP, {"pc1": ["ap1"], "pc2": ["ap2", "ap3"]})
    hosts = [dmimo("node", "bed.yml", "--name", name) for name in ("pc1", "pc2")]
    run = dmimo("calibrate", "bed.yml", "--output", "out", "--record", "recorded")
    assert run.ends() == 0, run.output
    assert [host.ends() for host in hosts] == [0, 0]
    whole = dmimo("calibrate", EXAMPLES / SWEEP, "--output", "one", "--record", "whole")
    assert whole.ends() == 0, whole.output
    for node in ("ap1", "ap2", "ap3", "ue1"):
        (recorded,), (expected,) = ([*(tmp_path / name).glob(f"*{node}*.sigmf-data")] for name in ("recorded", "whole"))
        assert recorded.read_bytes() == expected.read_bytes(), node
    replay = dmimo("replay", "recorded", "--output", "again")
    assert replay.ends() == 0, replay.output
    assert "are those of the recorded run, bit for bit" in replay.output


def start(dmimo, remote, coordinator=("sync",), **settings):
    """Hosts by name and the coordinator of an endless run that has begun."""
    bed(dmimo.folder, SYNC, remote, **{"heartbeat_s": 0.4, **settings})
    hosts = {name: dmimo("node", "bed.yml", "--name", name) for name in remote}
    run = dmimo(*coordinator, "bed.yml", "--output", "out", *ENDLESS)
    for host in hosts.values():
        host.says("the run has begun")
    return hosts, run


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP])
def test_a_host_that_is_lost_ends_the_run_with_its_name(dmimo, tmp_path, how):
    hosts, run = start(dmimo, {"pc1": ["ap1"], "pc2": ["ap2"]})
    hosts["pc2"].process.send_signal(how)
    assert run.ends() == 1
    assert "run failed: host pc2 (node ap2) has not been heard of for 2 s" in run.output
    assert hosts["pc1"].ends() == 1
    assert "run failed: host pc2 (node ap2) has not been heard of for 2 s" in hosts["pc1"].output
    assert "host pc2 (node ap2)" in report(tmp_path / "out")["error"]


def test_a_host_that_is_interrupted_ends_the_run_with_its_name(dmimo):
    hosts, run = start(dmimo, {"pc1": ["ap1"], "pc2": ["ap2"]})
    hosts["pc2"].process.send_signal(signal.SIGINT)
    assert run.ends() == 1
    assert "host pc2 (node ap2) has ended: interrupted" in run.output
    assert hosts["pc2"].ends() == 1
    assert hosts["pc1"].ends() == 1


def test_hosts_whose_coordinator_is_killed_end_with_a_sentence(dmimo):
    hosts, run = start(dmimo, {"pc1": ["ap1"], "pc2": ["ap2"]})
    run.process.kill()
    for host in hosts.values():
        assert host.ends() == 1
        assert "run failed: the coordinator at tcp://127.0.0.1:" in host.output
        assert "has not been heard of for 2 s" in host.output


def test_interrupting_the_coordinator_ends_the_hosts(dmimo):
    hosts, run = start(dmimo, {"pc1": ["ap1"], "pc2": ["ap2"]}, heartbeat_s=10)
    run.process.send_signal(signal.SIGINT)
    assert run.ends() == 1
    for host in hosts.values():
        assert host.ends() == 1
        assert "run failed: interrupted, after" in host.output


def test_a_second_process_of_a_host_ends_the_run(dmimo):
    hosts, run = start(dmimo, {"pc1": ["ap1"], "pc2": ["ap2"]})
    dmimo("node", "bed.yml", "--name", "pc2")
    assert run.ends() == 1
    assert "host pc2 (node ap2): another process under this name has come" in run.output
    assert hosts["pc1"].ends() == 1


def test_another_version_is_refused_by_name_everywhere(dmimo, tmp_path):
    bed(tmp_path, SWEEP, {"pc1": ["ap1"], "pc2": ["ap2"]})
    good, run = dmimo("node", "bed.yml", "--name", "pc1"), dmimo("calibrate", "bed.yml")
    run.says("host pc1 (node ap1) has come")
    old = dmimo("node", "bed.yml", "--name", "pc2",
                prelude=f"sys.path.insert(0, {str(ROOT / 'build' / 'test_modules')!r})\n"
                        "from gnuradio import dmimo\ndmimo.__version__ = '0.0.1'")
    for member in (run, good, old):
        assert member.ends() == 1
        assert "run failed: host pc2 (node ap2) runs gr-dmimo 0.0.1, must be " in member.output


def test_another_testbed_file_is_refused_with_what_differs(dmimo, tmp_path):
    values = bed(tmp_path, SWEEP, {"pc1": ["ap1"]})
    other = {**values, "heartbeat_s": 2}
    (tmp_path / "other.yml").write_text((EXAMPLES / SWEEP).read_text().replace("snr_db: 20", "snr_db: 21") +
                                        f"\nhosts: {json.dumps(other)}\n")
    host, run = dmimo("node", "other.yml", "--name", "pc1"), dmimo("calibrate", "bed.yml")
    for member in (run, host):
        assert member.ends() == 1
        assert ("host pc1 (node ap1) has another testbed file: hosts.heartbeat_s is 2.0 there and 1.0 here; "
                "noise.snr_db is 21.0 there and 20.0 here") in member.output


def test_a_quorum_runs_without_the_host_that_is_missing_and_a_late_one_is_sent_away(dmimo, tmp_path):
    remote = {"pc2": ["ap2"], "pc3": ["ap3"]}
    bed(tmp_path, SWEEP, remote, quorum=1, timeout_s=6)
    host, run = dmimo("node", "bed.yml", "--name", "pc2"), dmimo("calibrate", "bed.yml", "--output", "out")
    assert run.ends() == 0, run.output
    assert "begin without pc3 (node ap3)" in run.output
    assert host.ends() == 0, host.output
    assert [node["name"] for node in report(tmp_path / "out")["testbed"]["nodes"]] == ["ap1", "ap2", "ue1"]
    left = testbed.to_dict(testbed.load(EXAMPLES / SWEEP))
    left["nodes"] = [node for node in left["nodes"] if node["name"] != "ap3"]
    (tmp_path / "left.yml").write_text(json.dumps(left))
    assert dmimo("calibrate", "left.yml", "--output", "one").ends() == 0
    assert without_hosts(report(tmp_path / "out")) == without_hosts(report(tmp_path / "one"))


def test_a_host_that_comes_when_the_run_has_begun_without_it_is_sent_away(dmimo, tmp_path):
    text = (EXAMPLES / SYNC).read_text()
    assert "  - {name: ap2," in text
    (tmp_path / "three.yml").write_text(text.replace("  - {name: ap2,", "  - {name: ap3}\n  - {name: ap2,"))
    bed(tmp_path, tmp_path / "three.yml", {"pc2": ["ap2"], "pc3": ["ap3"]}, quorum=1, timeout_s=5)
    host, run = dmimo("node", "bed.yml", "--name", "pc2"), dmimo("sync", "bed.yml", *ENDLESS)
    host.says("the run has begun")
    late = dmimo("node", "bed.yml", "--name", "pc3")
    assert late.ends() == 1
    assert "run failed: the run has begun without host pc3 (node ap3)" in late.output
    assert run.process.poll() is None, run.output
    assert host.process.poll() is None, host.output


@pytest.mark.parametrize(("remote", "quorum", "words"), [
    ({"pc2": ["ap2"], "pc3": ["ap3"]}, None, "came 0 of 2 hosts, must be at least 2; missing: pc2 (node ap2), pc3 "),
    ({"pc1": ["ap1"], "pc2": ["ap2"]}, 1, "host pc1 (node ap1) is missing, but calibration.reference is ap1")])
def test_a_run_that_cannot_do_without_a_missing_host_says_so(dmimo, tmp_path, remote, quorum, words):
    bed(tmp_path, SWEEP, remote, quorum=quorum, timeout_s=5)
    hosts = [dmimo("node", "bed.yml", "--name", "pc2")] if quorum else []
    run = dmimo("calibrate", "bed.yml", "--output", "out")
    for member in (run, *hosts):
        assert member.ends() == 1
        assert f"{words}" in member.output
    assert not [*(tmp_path / "out").iterdir()]


def test_a_host_may_come_long_before_and_after_the_coordinator(dmimo, tmp_path):
    bed(tmp_path, SWEEP, {"pc1": ["ap1"], "pc2": ["ap2"]}, heartbeat_s=0.2)
    early = dmimo("node", "bed.yml", "--name", "pc1")
    early.says("waiting for the coordinator")
    run = dmimo("calibrate", "bed.yml", "--output", "out")
    run.says("host pc1 (node ap1) has come")
    late = dmimo("node", "bed.yml", "--name", "pc2")
    for member in (run, early, late):
        assert member.ends() == 0, member.output


@pytest.fixture
def tunnel():
    """Function that puts a relay for a host's ports at 127.0.0.2."""
    relays = []

    def make(port, **options):
        relays.append(Relay("127.0.0.2", "127.0.0.1", (port, port + 1), **options))
        return relays[-1]

    yield make
    for relay in relays:
        relay.close()


def test_a_host_behind_a_tunnel_waits_for_the_coordinator_and_runs(dmimo, tmp_path, tunnel):
    values = bed(tmp_path, SWEEP, {"pc1": ["ap1"]}, coordinator="127.0.0.2", heartbeat_s=0.2)
    tunnel(values["port"])
    host = dmimo("node", "bed.yml", "--name", "pc1")
    impatient = dmimo("node", "bed.yml", "--name", "pc1", "--timeout", 2)
    assert impatient.ends() == 1  # the tunnel listens all the time, and nobody answers
    assert "no coordinator at tcp://127.0.0.2:" in impatient.output
    run = dmimo("calibrate", "bed.yml", "--output", "out")
    for member in (run, host):
        assert member.ends() == 0, member.output


def test_a_host_that_lost_its_power_while_others_were_waited_for_may_come_again(dmimo, tmp_path, tunnel):
    values = bed(tmp_path, SWEEP, {"pc1": ["ap1"], "pc2": ["ap2"]}, coordinator="127.0.0.2")
    tunnel(values["port"], hold=True)
    tunnel(values["port"] + 2)
    run, first = dmimo("calibrate", "bed.yml", "--output", "out"), dmimo("node", "bed.yml", "--name", "pc1")
    run.says("host pc1 (node ap1) has come")
    first.process.kill()
    again = dmimo("node", "bed.yml", "--name", "pc1")
    run.says("host pc1 (node ap1) has come\nhost pc1 (node ap1) has come")
    for member in (run, again, dmimo("node", "bed.yml", "--name", "pc2")):
        assert member.ends() == 0, member.output


def test_a_network_that_is_cut_ends_both_sides(dmimo, tmp_path, tunnel):
    values = bed(tmp_path, SYNC, {"pc2": ["ap2"]}, coordinator="127.0.0.2", heartbeat_s=0.4)
    relay = tunnel(values["port"])
    host, run = dmimo("node", "bed.yml", "--name", "pc2"), dmimo("sync", "bed.yml", *ENDLESS)
    host.says("the run has begun")
    relay.cut()
    for member, lost in ((run, "host pc2 (node ap2)"), (host, "the coordinator at tcp://127.0.0.2:")):
        assert member.ends() == 1
        assert f"run failed: {lost}" in member.output
        assert "has not been heard of for 2 s" in member.output


def test_a_host_gives_up_waiting_for_a_coordinator(dmimo, tmp_path):
    values = bed(tmp_path, SWEEP, {"pc1": ["ap1"]})
    host = dmimo("node", "bed.yml", "--name", "pc1", "--timeout", 1)
    assert host.ends() == 1
    assert f"no coordinator at tcp://127.0.0.1:{values['port'] + 1} within 1 s" in host.output


def test_a_port_that_is_taken_is_one_line_with_address_and_key(dmimo, tmp_path):
    values = bed(tmp_path, SWEEP, {"pc1": ["ap1"]})
    with socket.socket() as other:
        other.bind(("127.0.0.1", values["port"] + 1))
        run = dmimo("calibrate", "bed.yml")
        assert run.ends() == 2
    assert run.output == (f"dmimo: tcp://127.0.0.1:{values['port'] + 1}: cannot listen there: another program uses it; "
                          "choose another hosts.port\n")


def test_an_unknown_host_is_one_line(dmimo, tmp_path):
    bed(tmp_path, SWEEP, {"pc1": ["ap1"]})
    host = dmimo("node", "bed.yml", "--name", "pc7")
    assert host.ends() == 2
    assert host.output == "dmimo: name = 'pc7': neither a host nor a remote node; the testbed has pc1 (node ap1)\n"


def test_sockets_listen_on_loopback_unless_the_file_says_otherwise(dmimo, tmp_path):
    for settings, address in (({}, "127.0.0.1"), ({"bind": "0.0.0.0"}, "0.0.0.0")):
        values = bed(tmp_path, SWEEP, {"pc1": ["ap1"]}, **settings)
        run = dmimo("calibrate", "bed.yml")
        run.says("waiting for")
        sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()]
        listening = [entry[1] for entry in sockets if entry[3] == "0A"]
        number = "".join(f"{int(part):02X}" for part in reversed(address.split(".")))
        for port in (values["port"], values["port"] + 1):
            assert [entry for entry in listening if entry.endswith(f":{port:04X}")] == [f"{number}:{port:04X}"]
        run.process.kill()
