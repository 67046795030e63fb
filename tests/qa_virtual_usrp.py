# SPDX-License-Identifier: GPL-3.0-or-later
"""The virtual USRP under the real gr-uhd blocks: what the tests of the radio front end stand on."""

import math
import shutil
import subprocess
import time

import numpy as np
import pytest
import virtual_usrp_device as virtual
from graph import wait_for
from virtual_usrp_graph import FREQ, LEAD_S, PORTS, RATE, Radio, one_board, ones, slow_sink


def test_uhd_finds_it_and_reads_back_what_is_set(uhd, tmp_path):
    assert any("virtual" in device.to_string() for device in uhd.find("type=virtual"))
    radio = Radio(uhd, tmp_path)
    for block in (radio.source, radio.sink):
        assert block.get_num_mboards() == 2
        block.set_gain(12.7, 1)
        assert block.get_samp_rate() == RATE
        assert block.get_center_freq(3) == FREQ
        assert (block.get_gain(1), block.get_gain(0)) == (12.5, 0)  # UHD rounds down to steps, half a decibel here
        wait_for(lambda block=block: block.get_sensor("lo_locked", 2).to_bool())
    assert radio.source.get_mboard_sensor("ref_locked", 1).to_bool()


@pytest.mark.parametrize(("layout", "spec", "other"), [("single", "A:A A:B", "A:B"), ("dual", "A:0 B:0", "B:0")])
def test_subdevices_follow_the_layout(uhd, tmp_path, layout, spec, other):
    source = one_board(uhd, tmp_path, layout=layout).source
    assert source.get_subdev_spec(0) == spec
    source.set_subdev_spec(other, 0)
    assert source.get_subdev_spec(0) == other
    with pytest.raises((RuntimeError, ValueError), match="C:7"):
        source.set_subdev_spec("C:7", 0)


@pytest.mark.parametrize("wrong", [{"nosie_db": 3}, {"coupling": "no such file"}, {"late": "x"}, {"speed": 0},
                                   {"ref_lost": "1"}, {"clock_jump": "1:0:2:3"}, {"compression": "-0.1:0:0.2"}])
def test_arguments_that_mean_nothing_are_refused(uhd, wrong):
    with pytest.raises((RuntimeError, ValueError), match=next(iter(wrong))):
        uhd.usrp_source(virtual.arguments(**wrong), uhd.stream_args("fc32"), False)


@pytest.mark.parametrize("rate", [1e6, 1.92e6, 5e6, 30.72e6])
def test_any_rate_is_exact_unless_the_master_clock_is_fixed(uhd, tmp_path, rate):
    radio = one_board(uhd, tmp_path, rate=int(rate))
    assert (radio.source.get_samp_rate(), radio.sink.get_samp_rate()) == (rate, rate)
    fixed = one_board(uhd, tmp_path, rate=int(rate), master_clock_rate=245.76e6)
    assert 245.76e6 / fixed.source.get_samp_rate() == pytest.approx(round(245.76e6 / rate), rel=1e-12)


def test_boards_agree_on_the_time_after_a_pps_and_not_before(uhd, tmp_path):
    radio = Radio(uhd, tmp_path)
    before = [radio.source.get_time_now(board).get_real_secs() for board in range(2)]
    assert abs(before[0] - before[1]) > 0.1
    radio.set_time()
    edges = [radio.source.get_time_last_pps(board).get_real_secs() for board in range(2)]
    now = [radio.source.get_time_now(board).get_real_secs() for board in range(2)]
    assert edges == [round(edges[0])] * 2
    assert 0 <= now[1] - now[0] < 0.5  # read one after the other


def test_edges_are_whole_seconds_of_the_computer_for_devices_of_all_its_processes(uhd, tmp_path):
    radio = one_board(uhd, tmp_path)
    radio.set_time()
    before, now, after = time.monotonic(), radio.source.get_time_now().get_real_secs(), time.monotonic()
    assert math.ceil(now - after - 1e-6) <= now - before + 1e-6


def test_boards_that_are_set_at_different_edges_disagree_by_whole_seconds(uhd, tmp_path):
    radio = Radio(uhd, tmp_path, pps_skew="1:1")
    radio.set_time()
    set_at = virtual.read_log(radio.log, "time_next_pps")
    assert [entry["board"] for entry in set_at] == [0, 1]
    wait_for(lambda: radio.source.get_time_now(1).get_real_secs() < 2)
    edges = []
    while len(edges) < 2 or edges[0][0] != edges[1][0]:  # both boards read between the same two edges
        edges = [
            [radio.source.get_time_last_pps(board).get_real_secs() for board in range(2)],
            [radio.source.get_time_last_pps(board).get_real_secs() for board in range(2)],
        ]
    assert edges[0][0] - edges[0][1] == 1


def test_a_board_without_pps_is_refused_by_uhd(uhd, tmp_path):
    radio = one_board(uhd, tmp_path, pps_missing=0)
    with pytest.raises(RuntimeError, match="PPS"):
        radio.set_time()


def test_a_late_burst_is_reported_and_not_sent(uhd, tmp_path):
    radio = one_board(uhd, tmp_path, late="1@0", coupling="ones")
    start = radio.soon()
    bursts = [
        (start + 1000, ones(100, num_ports=2)),
        (start + 2000, ones(100, num_ports=2)),
        (start - 2 * LEAD_S * RATE, ones(100, num_ports=2)),
        (start + 3000, ones(100, num_ports=2)),
    ]
    received = radio.run(bursts, start=start, num_samples=5000, events=8)
    heard = np.abs(received).max(axis=0) > 1e-3
    assert np.flatnonzero(heard).tolist() == [*range(1000, 1100), *range(3000, 3100)]
    codes = [event for event, _, _ in radio.events()]
    assert (codes.count("time_error"), codes.count("burst_ack")) == (4, 4)
    late = [entry["burst"] for entry in virtual.read_log(radio.log, "burst") if entry["late"]]
    assert late == [1, 1, 2, 2]  # by the fault; by its time


def test_bursts_are_sent_in_order_even_if_the_next_one_should_have_begun(uhd, tmp_path):
    radio = one_board(uhd, tmp_path, coupling="ones")
    start = radio.soon()
    bursts = [(start + 1000, ones(500, num_ports=2)), (start + 1499, ones(10, num_ports=2))]
    radio.run(bursts, start=start, num_samples=3000, events=4)
    assert [event for event, _, _ in radio.events()] == ["burst_ack", "burst_ack", "time_error", "time_error"]


@pytest.mark.parametrize("timed", [True, False])
def test_a_burst_whose_rest_comes_too_late_underflows(uhd, tmp_path, timed):
    radio = one_board(uhd, tmp_path, coupling="ones")
    start = radio.soon()
    burst = (start if timed else None, ones(4000, num_ports=2))
    radio.start([burst], start=start, num_samples=RATE, pause_at=1000)
    try:
        radio.listener.wait(2)  # the device has run dry
        radio.bursts.resume.set()
        radio.listener.wait(4)
    finally:
        radio.stop()
    # gr-uhd sends the rest of a timed burst with its time, which has passed; without times it goes out when it comes.
    rest = "time_error" if timed else "burst_ack"
    events = radio.events()
    assert [event[:2] for event in events] == sorted((e, port) for e in ("underflow", rest) for port in range(2))
    dry = {port: sample for event, port, sample in events if event == "underflow"}
    begin = start if timed else round(virtual.read_log(radio.log, "burst")[0]["start"] * RATE)
    assert dry == {0: begin + 1000, 1: begin + 1000}
    assert len(virtual.read_log(radio.log, "burst")) == 2


def test_underflow_and_a_lost_acknowledgement_can_be_made_up(uhd, tmp_path):
    radio = one_board(uhd, tmp_path, coupling="ones", underflow=0, lost_ack="1@0")
    start = radio.soon()
    bursts = [(start + 1000 * k, ones(100, num_ports=2)) for k in range(3)]
    received = radio.run(bursts, start=start, num_samples=4000, events=6)
    heard = np.abs(received).max(axis=0) > 1e-3
    assert np.flatnonzero(heard).tolist() == [*range(50), *range(1000, 1100), *range(2000, 2100)]
    assert radio.events() == sorted(
        (event, port, start + sample)
        for event, sample in [("underflow", 50), ("burst_ack", 100), ("burst_ack", 2100)]
        for port in range(2)
    )


def test_a_slow_reader_loses_samples_and_the_next_time_tag_says_how_many(uhd, tmp_path):
    radio = one_board(uhd, tmp_path, rx_buffer=0.05)
    start = radio.soon()
    slow = slow_sink(2)
    radio.start(start=start, num_samples=10 * RATE, sinks=slow)
    try:
        wait_for(lambda: radio.soon() > start + (0.5 + 2 * LEAD_S) * RATE and slow.entered.is_set())
        slow.resume.set()
        wait_for(lambda: len(slow.tags) > 1)
    finally:
        radio.stop()
    (first, first_time), (second, second_time) = slow.tags[:2]
    (lost, *_) = [entry["lost"] for entry in virtual.read_log(radio.log, "overflow")]
    assert (first, first_time) == (0, start)
    assert second_time - first_time == second - first + lost
    assert lost > 0


def test_an_overflow_can_be_made_up(uhd, tmp_path):
    radio = one_board(uhd, tmp_path, overflow=[0.002, 0.004], overflow_gap=0.001, after_overflow="continue")
    start = radio.soon()
    radio.start(start=start, num_samples=8000)
    try:
        radio.wait(6000)
    finally:
        radio.stop()
    assert [(offset, time - start) for offset, time in radio.time_tags()] == [(0, 0), (2000, 3000), (3000, 5000)]


def test_a_board_that_vanishes_is_named_and_silences_the_stream(uhd, tmp_path):
    radio = Radio(uhd, tmp_path, vanish_after="0.6:1")
    radio.set_time()
    start = radio.soon()
    radio.start(start=start - LEAD_S * RATE // 2, num_samples=10 * RATE)
    try:
        with pytest.raises(RuntimeError, match=r"board 1 \(V1\) does not answer"):
            wait_for(lambda: radio.source.get_time_now(1).get_real_secs() < 0)
        radio.source.get_time_now(0)
    finally:
        radio.stop()
    assert 0 < len(radio.received[0].data()) <= 0.6 * RATE


def test_locks_that_are_missing_show_in_the_sensors(uhd, tmp_path):
    radio = Radio(uhd, tmp_path, unlocked=1, lo_unlocked=0, lo_settle=0)
    assert [radio.source.get_mboard_sensor("ref_locked", board).to_bool() for board in range(2)] == [True, False]
    assert [radio.sink.get_sensor("lo_locked", port).to_bool() for port in range(PORTS)] == [False] * 2 + [True] * 2


def test_nodes_share_a_device_by_their_own_sinks_and_sources(uhd, tmp_path):
    whole = Radio(uhd, tmp_path, coupling="ones", gains="unit")
    whole.set_time()
    nodes = [Radio(uhd, tmp_path, channels=channels, coupling="ones", gains="unit") for channels in ([0, 1], [3])]
    start = whole.soon()
    for node, sample in zip(nodes, (1000, 2000), strict=True):
        node.start([(start + sample, ones(100, num_ports=node.num_ports))], start=start, num_samples=4000)
    try:
        for node in nodes:
            node.wait(4000)
            node.listener.wait(node.num_ports)
    finally:
        for node in nodes:
            node.stop()
    for node in nodes:
        for sink in node.received:
            assert np.flatnonzero(np.abs(sink.data()) > 1e-3).tolist() == [*range(1000, 1100), *range(2000, 2100)]
        assert len(node.events()) == node.num_ports  # each sink hears of its own bursts only
    assert len({entry["h"][0] for entry in virtual.read_log(whole.log, "coupling")}) == 1


def test_the_log_tells_each_command_with_its_lead(uhd, tmp_path):
    radio = one_board(uhd, tmp_path)
    start = radio.soon()
    radio.run([(start + 100, ones(10, num_ports=2))], start=start, num_samples=1000)
    (stream, *_), (burst, *_) = virtual.read_log(radio.log, "stream"), virtual.read_log(radio.log, "burst")
    for entry, sample in ((stream, start), (burst, start + 100)):
        assert entry["requested_time"] == pytest.approx(sample / RATE, abs=1e-9)
        assert 0 < entry["lead"] <= LEAD_S + 1e-3
    (end, *_) = virtual.read_log(radio.log, "burst_end")
    assert (end["samples"], end["time"]) == (10, pytest.approx((start + 110) / RATE, abs=1e-9))


def test_stock_tools_and_the_python_module_run_on_it():
    script = "import uhd, json; print(json.dumps(uhd.usrp.MultiUSRP('type=virtual,num_mboards=2').get_num_mboards()))"
    python = ["/usr/bin/python3", "-c", script]
    if subprocess.run(["/usr/bin/python3", "-c", "import uhd"], capture_output=True, check=False).returncode:
        pytest.skip("no Python module uhd (apt: python3-uhd)")
    done = subprocess.run(python, env=virtual.environment(), capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "2"
    if shutil.which("uhd_usrp_probe") is None:
        pytest.skip("no UHD tools (apt: uhd-host)")
    probe = ["uhd_usrp_probe", "--args", "type=virtual"]
    done = subprocess.run(probe, env=virtual.environment(), capture_output=True, text=True, check=True, timeout=60)
    assert "RX Frontend: B" in done.stdout


@pytest.mark.parametrize(("kind", "dtype", "scale"), [("float", "f4", 1), ("double", "f8", 1), ("short", "i2", 32767)])
def test_uhds_own_recorder_takes_each_sample_format(tmp_path, kind, dtype, scale):
    out = tmp_path / "samples"
    options = {"args": virtual.arguments(noise_db=-40), "type": kind, "file": out, "nsamps": 20000, "setup": 0.1}
    virtual.example(
        "rx_samples_to_file", "--rate=1e6", "--freq=1e9", *(f"--{key}={value}" for key, value in options.items())
    )
    samples = np.fromfile(out, dtype) / scale
    assert samples.size == 40000
    assert 2 * np.mean(samples**2) == pytest.approx(1e-4, rel=6 / np.sqrt(20000))


def test_uhds_own_test_of_events_passes():
    summary = virtual.example("test_messages", "--args=type=virtual", "--test-chain").split("Summary:")[1]
    outcomes = [line.split("->")[1].split() for line in summary.splitlines() if "->" in line]
    assert len(outcomes) == 5
    assert all(int(successes) > 0 and failures == "0" for successes, _, failures, _ in outcomes), summary
