# SPDX-License-Identifier: GPL-3.0-or-later
"""Who takes part in a run over several hosts, who is lost, and what is left of a testbed."""

import json

import pytest
from gnuradio.dmimo import hosts, testbed
from gnuradio.dmimo.hosts import Gathering, Hello, HostError, Presence

BED = """
version: 1
slots: {slot_samples: 512}
nodes:
  - {name: ap1, num_ports: 2}
  - {name: ap2, num_ports: 2}
  - {name: ap3}
  - {name: ap4}
  - {name: ue1, kind: ue}
  - {name: ue2, kind: ue}
propagation: {pair_gain_db: {ap1-ap2: -3, ap1-ap4: -6, ap3-ue2: 1}, blocked_pairs: [[ap2, ap3], [ap1, ap3]]}
faults: [{kind: lost_slot, node: ap4, slot: 2}, {kind: lost_slot, node: ap1, slot: 3}]
verification: {ue: ue1, cooperating: [1, 4, 6]}
multiuser: {ues: [ue1, ue2]}
hosts: {remote: {pc1: [ap1], pc2: [ap2, ue2], pc4: [ap4]}, quorum: 2, timeout_s: 10, heartbeat_s: 1}
"""


def bed(*changes):
    text = BED
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    return testbed.parse(text)


def plain(a_bed):
    return json.loads(json.dumps(testbed.to_dict(a_bed)))


def hello(host, instance="x", version="1", configuration=None):
    return Hello(host, instance, version, plain(bed()) if configuration is None else configuration)


def gathering(now=0.0, quorum=2):
    return Gathering(bed(("quorum: 2", f"quorum: {quorum}")).hosts, "1", plain(bed()), now)


def test_each_host_has_its_own_pair_of_ports():
    settings = bed().hosts
    pairs = [hosts.addresses(settings, host, "10.0.0.1") for host in settings.remote]
    assert [address for pair in pairs for address in (pair.control, pair.status)] == [
        f"tcp://10.0.0.1:{port}" for port in range(5560, 5566)]


@pytest.mark.parametrize(("name", "host"), [("pc2", "pc2"), ("ap2", "pc2"), ("ue2", "pc2"), ("ap4", "pc4")])
def test_a_host_is_found_by_its_name_and_by_its_nodes(name, host):
    assert hosts.find(bed(), name) == host


@pytest.mark.parametrize("name", ["pc3", "ap3", ""])
def test_a_name_that_belongs_to_no_host_is_refused_with_those_there_are(name):
    with pytest.raises(ValueError, match=r"pc1 \(node ap1\), pc2 \(nodes ap2, ue2\), pc4 \(node ap4\)"):
        hosts.find(bed(), name)


def test_a_testbed_without_hosts_has_none():
    with pytest.raises(ValueError, match="has no hosts"):
        hosts.find(testbed.parse("version: 1\nnodes: [{name: a}, {name: b}]\n"), "a")


def test_a_run_begins_at_once_when_all_hosts_have_come():
    gather = gathering()
    for host in ("pc1", "pc2"):
        assert gather.hello(hello(host, f"{host}!"), 1.0) is None
        assert gather.decide(1.0) is None
    gather.hello(hello("pc4", "pc4!"), 2.0)
    assert gather.decide(2.0) == {"pc1": "pc1!", "pc2": "pc2!", "pc4": "pc4!"}


@pytest.mark.parametrize(("come", "quorum", "begins"), [
    (("pc1", "pc4"), 2, True), (("pc1",), 2, False), (("pc1",), 1, True), (("pc1", "pc2"), "null", False),
    ((), 1, False)])
def test_a_quorum_begins_after_the_time_out_and_not_before(come, quorum, begins):
    gather = gathering(quorum=quorum)
    for host in come:
        gather.hello(hello(host), 9.5)
    assert gather.decide(9.9) is None
    if begins:
        assert gather.decide(10.0) == dict.fromkeys(come, "x")
    else:
        missing = ", ".join(hosts.describe(bed().hosts.remote, host) for host in bed().hosts.remote if host not in come)
        with pytest.raises(HostError, match=f"came {len(come)} of 3 hosts") as error:
            gather.decide(10.0)
        assert f"missing: {missing}." in str(error.value)


def test_a_host_that_falls_silent_before_the_run_has_not_come():
    gather = gathering()
    gather.hello(hello("pc1"), 0.0)
    for host in ("pc2", "pc4"):
        gather.hello(hello(host), 4.9)
    assert gather.decide(4.9) is not None
    assert gather.decide(5.0) is None
    gather.hello(hello("pc1"), 5.1)
    assert gather.decide(5.1) is not None


def test_two_processes_of_one_name_never_begin_a_run():
    gather = gathering()
    for host in ("pc1", "pc2", "pc4"):
        gather.hello(hello(host), 8.0)
    gather.hello(hello("pc2", "y"), 8.0)
    assert gather.decide(9.0) is None
    with pytest.raises(HostError, match=r"pc2 \(nodes ap2, ue2\): 2 processes run under this name"):
        gather.decide(10.0)


def test_a_process_that_took_the_place_of_another_is_taken_once_the_other_is_silent():
    gather = gathering()
    gather.hello(hello("pc2", "old"), 0.0)
    for host in ("pc1", "pc2", "pc4"):
        gather.hello(hello(host, "new"), 4.0)
    assert gather.decide(4.9) is None
    assert gather.decide(5.0) == dict.fromkeys(("pc1", "pc2", "pc4"), "new")
    assert gather.replaced == ["pc2"]


def test_another_version_is_refused_by_name():
    refusal = gathering().hello(hello("pc2", version="0.9"), 0.0)
    assert refusal == "host pc2 (nodes ap2, ue2) runs gr-dmimo 0.9, must be 1 as here"


@pytest.mark.parametrize(("change", "words"), [
    (("{name: ap3}", "{name: ap3, tx_gain_db: 3}"), ["nodes[2].tx_gain_db is 3.0 there and 0.0 here"]),
    (("[ap1, ap3]", "[ap1, ap4]"), ['propagation.blocked_pairs[1][1] is "ap4" there and "ap3" here']),
    (("  - {name: ue2, kind: ue}", "  - {name: ue2, kind: ue}\n  - {name: ap5}"), ["nodes is "]),
    (("pc4: [ap4]", "pc5: [ap4]"), ['hosts.remote.pc4 is null there and ["ap4"] here',
                                    'hosts.remote.pc5 is ["ap4"] there and null here'])])
def test_another_testbed_file_is_refused_with_what_differs(change, words):
    refusal = gathering().hello(hello("pc1", configuration=plain(bed(change))), 0.0)
    assert refusal.startswith("host pc1 (node ap1) has another testbed file: ")
    for phrase in words:
        assert phrase in refusal


def test_many_differences_are_counted_not_listed():
    other = plain(bed())
    for node in other["nodes"]:
        node["tx_gain_db"] = 9.0
    assert gathering().hello(hello("pc1", configuration=other), 0.0).endswith("; and 3 more")


@pytest.mark.parametrize("change", [("heartbeat_s: 1", "heartbeat_s: 1, coordinator: 10.0.0.1, bind: 0.0.0.0"),
                                    ("version: 1", "version: 1\nseed: 7")])
def test_what_each_host_sets_for_itself_is_no_difference(change):
    assert gathering().hello(hello("pc1", configuration=plain(bed(change))), 0.0) is None


def test_a_host_is_lost_after_five_silent_heartbeats():
    presence = Presence(["pc1", "pc2"], 2.0, 0.0)
    for now in (2.0, 4.0, 6.0, 8.0):
        presence.heard("pc2", now)
        assert presence.lost(now) == []
    assert presence.lost(9.9) == []
    assert presence.lost(10.0) == ["pc1"]
    presence.left("pc1")
    assert presence.lost(12.0) == []
    presence.heard("pc1", 12.0)
    assert [presence.lost(now) for now in (14.0, 16.0, 17.9, 18.0)] == [[], [], [], ["pc2"]]


def test_nobody_is_lost_because_the_listener_stood_still():
    presence = Presence(["pc1"], 1.0, 0.0)
    assert presence.lost(1.0) == []
    assert presence.lost(60.0) == []  # 59 s, of which 57 s stood still
    assert presence.lost(61.0) == []
    assert presence.lost(62.0) == ["pc1"]


def test_a_testbed_without_a_host_keeps_nothing_of_its_nodes():
    left = hosts.without(bed(), ["pc2"])
    assert [node.name for node in left.nodes] == ["ap1", "ap3", "ap4", "ue1"]
    assert left.propagation.pair_gain_db == {"ap1-ap4": -6.0}
    assert left.propagation.blocked_pairs == (("ap1", "ap3"),)
    assert left.multiuser.ues == ("ue1",)
    assert left.verification.cooperating == (1, 4)
    assert left.hosts.remote == {"pc1": ("ap1",), "pc4": ("ap4",)}
    assert left.faults == bed().faults
    assert hosts.without(bed(), ["pc4"]).faults == bed().faults[1:]


def test_a_testbed_without_hosts_that_nobody_needs_is_otherwise_the_same():
    left, whole = plain(hosts.without(bed(), ["pc4"])), plain(bed())
    whole["nodes"] = [node for node in whole["nodes"] if node["name"] != "ap4"]
    del whole["propagation"]["pair_gain_db"]["ap1-ap4"], whole["hosts"]["remote"]["pc4"], whole["faults"][0]
    whole["verification"]["cooperating"] = [1, 4]
    assert left == whole


BEAMSYNC = ("multiuser: {ues: [ue1, ue2]}", "beamsync: {leader: ap4, internal_calibration: none}")


@pytest.mark.parametrize(("changes", "absent", "words"), [
    ((), ["pc1"], "host pc1 (node ap1) is missing, but calibration.reference is ap1"),
    ((("ue: ue1", "ue: ue2"),), ["pc2"], "host pc2 (nodes ap2, ue2) is missing, but verification.ue is ue2"),
    ((BEAMSYNC,), ["pc4"], "host pc4 (node ap4) is missing, but beamsync.leader is ap4"),
    ((("ues: [ue1, ue2]", "ues: [ue2]"),), ["pc2"], "multiuser.ues: none is left, missing: ue2"),
    ((("pc1: [ap1]", "pc1: [ap1, ap3]"), ("multiuser:", "calibration: {reference: ap4}\nmultiuser:")), ["pc1", "pc2"],
     "without pc1 (nodes ap1, ap3), pc2 (nodes ap2, ue2) fewer than two access points are left")])
def test_a_host_that_the_run_cannot_do_without_is_named_with_the_reason(changes, absent, words):
    with pytest.raises(HostError) as error:
        hosts.without(bed(*changes), absent)
    assert str(error.value) == words
