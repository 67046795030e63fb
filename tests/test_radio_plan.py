# SPDX-License-Identifier: GPL-3.0-or-later
"""Radios and hosts in a testbed file: what each port is set to, and mistakes by line."""

import pytest
from gnuradio.dmimo import radio_plan, testbed
from gnuradio.dmimo.assembly import Assembly

RACKS = """\
version: 1
frontend: usrp
center_freq: 2.4e9
usrp:
  radios:
    - {name: rack, args: "type=x300,addr0=1,addr1=2", tx_subdevs: ["A:0 B:0", "A:0 B:0"], clock_source: gpsdo}
    - {name: desk, args: type=b200}
  settle_s: 0.3
node_defaults: {rx_gain_db: 20, radio: {rx_antennas: [RX2]}}
nodes:
  - {name: ap1, num_ports: 2, radio: {channels: [3, 0], tx_gains_db: [5, 7], center_freqs: [2.41e+9, 2.42e+9]}}
  - {name: ap2, num_ports: 1, tx_gain_db: 9, radio: {tx_antennas: [TX/RX]}}
  - {name: ap3, num_ports: 2, radio: {name: desk}}
  - {name: ue1, kind: ue, radio: {name: rack}}
hosts:
  remote: {pc1: [ap1, ap2, ue1], pc2: [ap3]}
slots: {slot_samples: 512}
"""


def test_every_port_gets_what_the_file_says_of_it():
    bed = testbed.parse(RACKS)
    rack, desk = radio_plan.settings(bed).values()
    assert (rack.device_args, rack.clock_source, rack.time_source) == ("type=x300,addr0=1,addr1=2", "gpsdo", "external")
    assert rack.tx_subdevices == ("A:0 B:0", "A:0 B:0")
    assert rack.settle_s == 0.3
    rows = {name: [(port.channel, port.center_freq, port.tx_gain_db, port.rx_gain_db, port.tx_antenna, port.rx_antenna)
                   for port in ports] for name, ports in rack.nodes.items()}
    assert rows == {
        "ap1": [(3, 2.41e9, 5, 20, "", "RX2"), (0, 2.42e9, 7, 20, "", "RX2")],
        "ap2": [(1, 2.4e9, 9, 20, "TX/RX", "RX2")],
        "ue1": [(2, 2.4e9, 0, 20, "", "RX2")],
    }
    assert [port.channel for port in desk.nodes["ap3"]] == [0, 1]


def test_gain_settings_of_a_calibration_are_those_of_the_radio_only_where_one_is_used():
    bed = testbed.parse(RACKS)
    assert bed.node("ap1").gains_db("usrp") == ((5, 7), (20, 20))
    assert bed.node("ap1").gains_db("simulated") == ((0, 0), (20, 20))


def test_simulation_of_the_same_file_needs_no_radio():
    assembly = Assembly(testbed.parse(RACKS.replace("frontend: usrp", "frontend: simulated")))
    assert assembly.network().num_ports == 6


@pytest.mark.parametrize(("sources", "shared"), [
    (["external"], True), (["external", "mimo"], True), (["internal"], True), (["gpsdo"], False),
    (["external", "gpsdo"], False), (["internal", "internal"], False)])
def test_a_reference_is_shared_over_a_cable_or_on_one_board(sources, shared):
    assert testbed.Usrp(tuple(testbed.Radio(clock_source=source) for source in sources)).shares_reference is shared


def test_bidirectional_without_a_common_reference_needs_a_promise():
    promised = RACKS + "bidirectional: {max_cfo_hz: 3.9}"
    assert testbed.parse(promised).bidirectional.max_cfo_hz == 3.9


def test_fingerprint_follows_radio_and_channels_of_access_points_with_usrps_only():
    base = testbed.fingerprint(testbed.parse(RACKS))
    for old, new in [("type=b200", "type=b210"), ("[3, 0]", "[0, 3]"), ("[5, 7]", "[5, 8]")]:
        assert testbed.fingerprint(testbed.parse(RACKS.replace(old, new))) != base
        simulated = [text.replace("frontend: usrp", "frontend: simulated") for text in (RACKS, RACKS.replace(old, new))]
        assert len({testbed.fingerprint(testbed.parse(text)) for text in simulated}) == 1
    terminal = RACKS.replace("kind: ue, radio: {name: rack}", "kind: ue, radio: {name: rack, tx_gains_db: [3]}")
    assert testbed.fingerprint(testbed.parse(terminal)) == base


MISTAKES = [
    ("name: desk,", "name: rack,", 7, r"usrp\.radios\[1\]\.name: value rack: must be unique; first on line 6"),
    ("args: type=b200}", "args: a, time_source: internal}", 7, "several radios need a common PPS"),
    ("args: type=b200}", 'args: "type=x300,addr0=1, addr1=2"}', 7, "as of rack, so that both are one device"),
    ("{name: desk}}", "{name: dask}}", 13, "value dask: no such radio; allowed: rack, desk"),
    ("[3, 0]", "[3]", 11, "1 channels: must be one for each of the 2 ports of ap1, or none"),
    ("[5, 7]", "[5, 7, 8]", 11, "3 entries: must be one for each of the 2 ports of ap1, one for all, or none"),
    ("[3, 0]", "[3, 3]", 11, "value 3: belongs to node ap1 already"),
    ("{tx_antennas: [TX/RX]}", "{channels: [0]}", 12, "value 0: belongs to node ap1 already"),
    ("[ap3]", "[ap4]", 16, "no such node; allowed: ap1, ap2, ap3, ue1"),
    ("[ap3]", "[ap3, ap1]", 16, "runs on host pc1 already"),
    ("[ap1, ap2, ue1]", "[ap1, ue1]", 12, "the radio of ap1, too: ap1 runs on pc1, ap2 runs on the coordinator"),
    ("remote: {pc1: [ap1, ap2, ue1], pc2: [ap3]}", "quorum: 1", 15, "remote, with at least one host"),
    ("pc2: [ap3]}", "pc2: [ap3]}\n  quorum: 3", 17, "value 3: there are 2 hosts"),
    ("pc2: [ap3]}", "p-2: [ap3]}", 16, "must be a name"),
    ("settle_s: 0.3", "lead_s: 0", 8, "must be above 0"),
    ("slot_samples: 512", "slot_samples: 60, pilot_samples: 10, num_subcarriers: 8, num_subbands: 1, "
     "prefix_samples: 4, lead_samples: 2", 17, "value 60: must be at least 64"),
    ("slots: {slot_samples: 512}", "slots: {slot_samples: 512}\nbidirectional: {}", 18, "at most 3.92 Hz"),
    ("slots: {slot_samples: 512}", "slots: {slot_samples: 512}\nbidirectional: {max_cfo_hz: 4}", 18, "at most 3.92 Hz"),
]


@pytest.mark.parametrize(("old", "new", "line", "message"), MISTAKES)
def test_mistake_is_named_with_its_line(old, new, line, message):
    text = RACKS.replace(old, new)
    assert text != RACKS
    with pytest.raises(testbed.TestbedError, match=message) as caught:
        testbed.parse(text, source="bed.yml")
    assert f"bed.yml:{line}:" in str(caught.value)
