# SPDX-License-Identifier: GPL-3.0-or-later
"""What ends a radio's epoch, on virtual USRPs: commands, lost clocks and times; what ends the radio; start, stop."""

import math
import threading
import time
from fractions import Fraction

import numpy as np
import pytest
import virtual_usrp_device as virtual
from gnuradio.dmimo.blocks import messages
from graph import wait_for
from usrp_bench import NAME, SLOT, Bench
from virtual_usrp_graph import FREQ, RATE, true_gains

BURST = np.full((2, SLOT), 0.3 + 0j)


@pytest.fixture(scope="module")
def usrp_array():
    virtual.use()
    from gnuradio.dmimo.blocks import usrp_array

    return usrp_array


def exchange(bench):
    """What all ports receive of a burst of the first node, over the burst, (4, SLOT), and how its slot was found."""
    start = max(bench.told("radio_begin")[-1]["sample"], bench.soon())
    bench.arm([start])
    bench.send("ap1", start, BURST)
    before = {name: len(received.messages) for name, received in bench.received.items()}
    wait_for(lambda: all(len(bench.received[name].messages) > count for name, count in before.items()))
    return np.concatenate([bench.last(name) for name in before])


def last_begin(bench):
    """Sample with which the streams have begun last, or will."""
    commands = virtual.read_log(bench.log, "stream")
    return max(entry["requested_time"] for entry in commands if entry["mode"] == "a") * RATE


def gains(bench):
    """The same as it must be after the last tune."""
    return true_gains(bench.log)[:, :2] @ BURST


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"ref_lost": "0.2:1:1"}, "board 1 (V1) has lost its reference, clock source external"),
        ({"lo_lost": "0.2:1:1"}, "board 1 (V1), channel 2: its receive synthesizer is not locked"),
        ({"clock_jump": "0.2:1:0.001"}, "board 1 (V1) reads"),
        ({"clock_jump": "0.2:1:1"}, "board 1 (V1) reads"),
        ({"overflow": 0.1, "after_overflow": "continue", "overflow_shift": -50000},
         "node ap2: its receive stream has lost its time"),
    ],
    ids=lambda value: "".join(value) if isinstance(value, dict) else "",
)
def test_lost_clocks_end_the_epoch_by_name_and_the_radio_recovers(usrp_array, tmp_path, fault, reason):
    began_us = time.time_ns() // 1000
    with Bench(usrp_array, tmp_path, receivers="overflow" not in fault, **fault) as bench:
        first = bench.begin()
        second = bench.begin(2)
        told = [bench.told("radio_begin")[0], *bench.told("radio_epoch")[:1], bench.told("radio_begin")[1]]
        if "overflow" not in fault:  # which comes again with every stream
            assert exchange(bench) == pytest.approx(gains(bench), abs=1e-3)
    assert reason in told[1]["reason"]
    assert told[1]["reason"].startswith("radio rack: ")
    epochs = [message["epoch"] for message in told]
    assert epochs == sorted(set(epochs))
    assert began_us <= epochs[0] <= time.time_ns() // 1000
    assert second > first
    samples = [message["sample"] for message in bench.told("radio_time")]
    assert np.diff(samples).min() > -2e-3 * RATE  # the device time goes on, even where boards had to be set anew
    assert np.diff(samples).max() < 5 * RATE


@pytest.mark.parametrize("after", ["continue", "restart", "stop"])
def test_an_ordinary_overflow_ends_no_epoch(usrp_array, tmp_path, after):
    with Bench(usrp_array, tmp_path, overflow=1.2, after_overflow=after) as bench:
        first = bench.begin()
        wait_for(lambda: len(virtual.read_log(bench.log, "overflow")) == 2)
        if after != "continue":
            wait_for(lambda: last_begin(bench) > first)
        wait_for(lambda: bench.array.now() * RATE > last_begin(bench))
        assert exchange(bench) == pytest.approx(gains(bench), abs=1e-3)
    assert len(bench.told("radio_begin")) == 1
    assert bench.told("radio_epoch") == []
    assert bench.failures() == []


def test_overflows_that_come_again_with_every_stream_end_the_run_by_name(usrp_array, tmp_path, monkeypatch):
    monkeypatch.setattr("gnuradio.dmimo.blocks.radio_control.RESTART_TIMEOUT_S", 0.5)
    with Bench(usrp_array, tmp_path, channels={"ap1": [0, 1]}, overflow=0.1) as bench:
        bench.begin()
        error = bench.failure()
    assert "node ap1: the receive stream from board 0 (V0) is off its samples: " in error
    assert "begun again for 0.5 s in vain" in error
    assert len(virtual.read_log(bench.log, "overflow")) >= 2


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ({"vanish_after": "0.7:1"}, "board 1 (V1) no longer answers"),
        ({"stalled": "0.1:1"}, "node ap2: nothing has been received for"),
        ({"ref_lost": "0.2:0", "num_mboards": 2}, "board 0 (V0): not locked to its reference"),
    ],
)
def test_a_board_that_does_not_come_back_is_an_error_with_its_name(usrp_array, tmp_path, monkeypatch, fault, error):
    monkeypatch.setattr("gnuradio.dmimo.blocks.radio_control.RECOVERY_TIMEOUT_S", 1.0)
    with Bench(usrp_array, tmp_path, **fault) as bench:
        bench.begin()
        assert error in bench.failure()
        assert "Traceback" not in bench.failure()
        wait_for(lambda: not bench.array.control.running)


def test_a_time_that_stands_still_is_an_error(usrp_array, tmp_path, monkeypatch):
    with Bench(usrp_array, tmp_path) as bench:
        bench.begin()
        now = bench.array.radio.now
        stopped = now(1)
        monkeypatch.setattr(bench.array.radio, "now", lambda board=0: now() if board == 0 else stopped)
        assert "board 1 (V1): the device time stands still" in bench.failure()


def test_a_failure_that_nobody_foresaw_is_told_with_its_traceback(usrp_array, tmp_path, monkeypatch):
    with Bench(usrp_array, tmp_path) as bench:
        bench.begin()
        monkeypatch.setattr(bench.array.radio, "unlocked_references", lambda: 1 / 0)
        assert "ZeroDivisionError" in bench.failure()


def test_a_retune_of_a_running_radio_tunes_all_ports_at_one_time_and_begins_an_epoch(usrp_array, tmp_path, monkeypatch):
    monkeypatch.setattr("gnuradio.dmimo.blocks.radio_start.TUNE_LEAD_S", 1.0)  # much, for a busy machine
    with Bench(usrp_array, tmp_path) as bench:
        bench.begin()
        bench.array.retune(FREQ + 1e6)
        bench.begin(2)
        assert exchange(bench) == pytest.approx(gains(bench), abs=1e-3)
    tunes = virtual.read_log(bench.log, "tune")
    assert [entry["freq"] for entry in tunes] == [FREQ] * 8 + [FREQ + 1e6] * 8
    assert len({entry["requested_time"] for entry in tunes}) == 2
    assert min(entry["lead"] for entry in tunes) > 0
    (ended,) = bench.told("radio_epoch")
    assert ended["reason"] == "radio rack: all ports tuned to 2401 MHz"
    first, second = (message["epoch"] for message in bench.told("radio_begin"))
    assert first < ended["epoch"] < second == bench.array.epoch


def test_a_radio_that_does_not_run_is_retuned_when_it_starts(usrp_array, tmp_path):
    bench = Bench(usrp_array, tmp_path)
    bench.array.retune(FREQ + 1e6)
    with bench:
        bench.begin()
    assert {entry["freq"] for entry in virtual.read_log(bench.log, "tune")} == {FREQ + 1e6}
    assert bench.told("radio_epoch") == []


def test_what_is_asked_for_while_the_radio_is_tuned_is_done_before_the_streams_of_the_next_start(usrp_array, tmp_path):
    bench, tuned = Bench(usrp_array, tmp_path), []
    tune, bench.array.radio.tune = bench.array.radio.tune, lambda: tuned.append(tune())
    with bench:
        bench.align()
        wait_for(lambda: virtual.read_log(bench.log, "tune"))
        bench.array.retune(FREQ + 1e6)
    assert tuned == []
    bench.status.messages.clear()
    with bench:
        first = bench.begin()
        count = len(virtual.read_log(bench.log, "tune"))
        wait_for(lambda: bench.array.now() * RATE > first + RATE)  # two watches
    assert len(virtual.read_log(bench.log, "tune")) == count
    assert virtual.read_log(bench.log, "tune")[-1]["freq"] == FREQ + 1e6
    assert bench.told("radio_epoch") == []


def test_a_start_knows_no_alignment_of_the_run_before_and_no_fault_of_streams_that_are_over(usrp_array, tmp_path):
    bench = Bench(usrp_array, tmp_path)
    control, tune = bench.array.control, bench.array.radio.tune

    def spoil():
        bench.array.clocks[0].fault = "of streams that are over"
        tune()

    bench.array.radio.tune = spoil
    control.handle_control(messages.encode("align", radio=NAME, seconds=3))
    with bench:
        first = bench.begin()
        wait_for(lambda: bench.array.now() * RATE > first + RATE)  # two watches
    assert len(virtual.read_log(bench.log, "time_next_pps")) == 2
    assert bench.told("radio_begin")[0]["epoch"] > 0
    assert bench.told("radio_epoch") == []


def test_a_gain_change_begins_an_epoch_and_is_what_the_device_makes_of_it(usrp_array, tmp_path):
    bench = Bench(usrp_array, tmp_path)
    bench.array.set_gain("ap1", 0, 1.0, 2.0)
    assert bench.array.gains() == [(1.0, 2.0), (0, 0), (0, 0), (0, 0)]
    with bench:
        bench.begin()
        bench.array.set_gain("ap2", 1, 3.2, 6.0)
        bench.begin(2)
        assert bench.array.gains() == [(1.0, 2.0), (0, 0), (0, 0), (3.0, 6.0)]
    (ended,) = bench.told("radio_epoch")
    assert "gains of node ap2, port 1, set to 3.2 dB transmitting and 6 dB receiving" in ended["reason"]


@pytest.mark.parametrize(("node", "port"), [("ap3", 0), ("ap1", 2), ("ap1", -1)])
def test_gains_of_ports_that_there_are_not_are_refused(usrp_array, tmp_path, node, port):
    with pytest.raises(ValueError, match="ap1 with 2, ap2 with 2"):
        Bench(usrp_array, tmp_path).array.set_gain(node, port, 0, 0)


def test_the_time_is_told_twenty_times_a_second_and_shifted_by_whole_seconds(usrp_array, tmp_path):
    with Bench(usrp_array, tmp_path) as bench:
        bench.align(3)
        before = len(bench.told("radio_time"))
        wait_for(lambda: bench.told("radio_begin"))
        wait_for(lambda: len(bench.told("radio_time")) >= before + 20)
    samples = np.array([message["sample"] for message in bench.told("radio_time")])
    steps = np.diff(samples) / RATE
    assert np.mean(steps[steps < 3]) > 0.045
    assert np.quantile(steps, 0.25) < 0.07  # others may be late
    assert steps.max() > 3
    assert bench.told("radio_begin")[0]["sample"] > 3 * RATE
    first, second = np.reshape([(entry["device_time"], entry["time"])
                                for entry in virtual.read_log(bench.log, "time_next_pps")], (2, 2, 2))
    assert first[:, 1].tolist() == [0, 0]
    assert second[:, 1].tolist() == (np.floor(second[:, 0]) + 1 + 3).tolist()


def test_a_radio_that_nobody_aligns_is_an_error(usrp_array, tmp_path, monkeypatch):
    monkeypatch.setattr("gnuradio.dmimo.blocks.radio_control.ALIGN_TIMEOUT_S", 0.2)
    with Bench(usrp_array, tmp_path) as bench:
        assert "no align message within 0.2 s" in bench.failure()


def test_a_radio_without_pps_cannot_be_aligned(usrp_array, tmp_path):
    own = {"clock_source": "internal", "time_source": "internal"}
    with Bench(usrp_array, tmp_path, channels={"ap1": [0, 1]}, mboards=1, settings=own) as bench:
        bench.align(1)
        assert "without a common PPS" in bench.failure()


@pytest.mark.parametrize("place", ["at once", "before an edge", "after an edge", "before an alignment"])
def test_the_flowgraph_stops_in_the_middle_of_the_start(usrp_array, tmp_path, monkeypatch, place):
    """Where the radio waits, it would wait for an hour."""
    if place != "before an alignment":
        monkeypatch.setattr("gnuradio.dmimo.blocks.radio_start.PPS_PERIOD_S", 3600.0)
    for limit in ("ALIGN_TIMEOUT_S", "JOIN_TIMEOUT_S"):
        monkeypatch.setattr(f"gnuradio.dmimo.blocks.radio_control.{limit}", 3600.0)
    bench = Bench(usrp_array, tmp_path, **{"pps_missing": 0} if place == "before an edge" else {})
    bench.tb.start()
    if place == "before an edge":
        wait_for(lambda: bench.array.control.running)
    elif place == "after an edge":
        wait_for(lambda: virtual.read_log(bench.log, "time_next_pps"))
    elif place == "before an alignment":
        wait_for(lambda: bench.told("radio_time"))

    def end():
        bench.tb.stop()
        bench.tb.wait()

    ending = threading.Thread(target=end, daemon=True)
    ending.start()
    ending.join(60)
    assert not ending.is_alive()
    assert not bench.array.control.running
    assert bench.failures() == []


def test_a_flowgraph_that_is_started_again_has_a_new_epoch(usrp_array, tmp_path):
    bench = Bench(usrp_array, tmp_path)
    for count in (1, 2):
        with bench:
            bench.status.messages.clear()
            bench.begin()
            assert exchange(bench) == pytest.approx(gains(bench), abs=1e-3)
            epoch, bench.epoch = bench.epoch, bench.told("radio_begin")[0]["epoch"]
            assert bench.epoch > epoch
        assert len(virtual.read_log(bench.log, "time_next_pps")) == 2 * count
    assert bench.failures() == []


def test_an_end_lets_the_flowgraph_end_without_being_stopped(usrp_array, tmp_path):
    with Bench(usrp_array, tmp_path) as bench:
        bench.begin()
        bench.end()
        waiting = threading.Thread(target=bench.tb.wait, daemon=True)
        waiting.start()
        waiting.join(5)
        assert not waiting.is_alive()
    assert not bench.array.control.running
    assert bench.failures() == []


@pytest.mark.parametrize("rate", [Fraction(10_000), Fraction(1_000_000, 7)])
def test_streams_that_begin_late_or_are_slow_are_not_taken_for_stopped(usrp_array, tmp_path, rate):
    with Bench(usrp_array, tmp_path, rate=float(rate), receivers=False, master_clock_rate=100e6) as bench:
        first = bench.begin()
        assert first == math.ceil(first // rate * rate)  # the first of a second
        wait_for(lambda: bench.array.now() > float(first / rate) + 0.2)
        told = len(bench.told("radio_time"))
        wait_for(lambda: len(bench.told("radio_time")) > told + 60)  # 3 s
        assert bench.array.clocks[0].num_samples > rate
    assert bench.failures() == []
