# SPDX-License-Identifier: GPL-3.0-or-later
"""The USRP array on virtual USRPs: coherent start, bursts and their events, and what is refused by name."""

import re

import numpy as np
import pytest
import virtual_usrp_device as virtual
from graph import wait_for
from usrp_bench import CHANNELS, SLOT, Bench
from virtual_usrp_graph import FREQ, RATE, true_gains


@pytest.fixture(scope="module")
def usrp_array():
    virtual.use()
    from gnuradio.dmimo.blocks import usrp_array

    return usrp_array


def test_bursts_of_two_nodes_arrive_at_their_samples_on_every_port(usrp_array, tmp_path):
    rng = np.random.default_rng(1)
    bursts = {name: rng.uniform(-0.3, 0.3, (2, SLOT)) + 0j for name in CHANNELS}
    with Bench(usrp_array, tmp_path, seed=4) as bench:
        first = bench.begin()
        assert first % RATE == 0
        start = max(first, bench.soon())
        starts = [start, start + SLOT, start + 2 * SLOT]
        bench.arm(starts)
        bench.send("ap2", starts[0], bursts["ap2"])
        bench.send("ap1", starts[2], bursts["ap1"])
        received = np.concatenate([bench.slots(name, 3) for name in CHANNELS], axis=1)
        events, errors = bench.events_now(4)

    gains = true_gains(bench.log)
    sent = np.zeros((3, 4, SLOT), complex)
    sent[0, 2:], sent[2, :2] = bursts["ap2"], bursts["ap1"]
    noise = received - gains @ sent
    assert np.mean(np.abs(noise) ** 2) == pytest.approx(1e-10, rel=6 / np.sqrt(noise.size))  # noise_db=-100
    assert events == sorted(
        ("burst_ack", name, port, board, 2 * board + port, starts[slot] + SLOT)
        for name, board, slot in [("ap1", 0, 2), ("ap2", 1, 0)]
        for port in range(2)
    )
    assert errors == {""}
    assert not bench.errors.messages


def test_a_node_may_take_any_channels_of_any_boards(usrp_array, tmp_path):
    burst = np.array([[0.3], [0.2j]]) * np.ones(SLOT)
    with Bench(usrp_array, tmp_path, channels={"ap1": [3, 0], "ap2": [1]}) as bench:
        start = max(bench.begin(), bench.soon())
        bench.arm([start])
        bench.send("ap1", start, burst)
        (received,) = bench.slots("ap2", 1)
        events, _ = bench.events_now(2)
    gains = true_gains(bench.log)
    assert received[0] == pytest.approx(gains[1, [3, 0]] @ burst, abs=1e-4)
    assert [event[2:5] for event in events] == [(0, 1, 3), (1, 0, 0)]


def test_the_boards_are_started_in_the_order_that_keeps_them_coherent(usrp_array, tmp_path, monkeypatch):
    monkeypatch.setattr("gnuradio.dmimo.blocks.radio_start.TUNE_LEAD_S", 1.0)  # much, for a busy machine
    bench = Bench(usrp_array, tmp_path)
    ((seconds, fraction), _) = bench.array.radio.edges()
    wait_for(lambda: bench.array.now() - (seconds + fraction) > 0.6)
    with bench:
        first = bench.begin()
    log = virtual.read_log(bench.log)
    streamers = [entry["direction"] for entry in log if entry["what"] == "streamer"]
    assert sorted(streamers) == ["rx", "rx", "tx", "tx"]
    order = [entry["what"] for entry in log]
    assert all(entry["after_edge"] < 0.5 for entry in log if entry["what"] == "time_next_pps")  # long before the next
    tunes = [entry for entry in log if entry["what"] == "tune"]
    assert len({entry["requested_time"] for entry in tunes}) == 1
    assert {(entry["board"], entry["direction"]) for entry in tunes} == {(b, d) for b in range(2) for d in ("rx", "tx")}
    assert min(entry["lead"] for entry in tunes) > 0
    last_streamer = max(place for place, what in enumerate(order) if what == "streamer")
    assert last_streamer < order.index("time_next_pps") < order.index("tune") < order.index("stream")
    assert first > tunes[0]["requested_time"] * RATE


def test_gains_are_those_of_the_device(usrp_array, tmp_path):
    bench = Bench(usrp_array, tmp_path, port={"tx_gain_db": 12.7, "rx_gain_db": 3, "rx_antenna": "TX/RX"})
    assert bench.array.gains() == [(12.5, 3.0)] * 4
    assert bench.array.sources[1].get_antenna(1) == "TX/RX"


def test_a_late_burst_names_its_board_and_the_other_one_is_sent(usrp_array, tmp_path):
    burst = np.full((2, SLOT), 0.3)
    with Bench(usrp_array, tmp_path, late="0@1") as bench:
        start = max(bench.begin(), bench.soon())
        for name in CHANNELS:
            bench.send(name, start, burst)
        events, errors = bench.events_now(4)
    assert [event[:5] for event in events] == [
        ("burst_ack", "ap1", 0, 0, 0),
        ("burst_ack", "ap1", 1, 0, 1),
        ("time_error", "ap2", 0, 1, 2),
        ("time_error", "ap2", 1, 1, 3),
    ]
    assert any("ap2" in error and "board 1" in error and "too late" in error for error in errors)


@pytest.mark.parametrize(("channels", "options"), [
    ({"ap1": [0], "ap2": [1]}, {}),
    ({"ap1": [1]}, {}),
    ({"ap1": [0]}, {"settings": {"tx_subdevices": ["A:B"], "rx_subdevices": ["A:B"]}}),
])
def test_events_of_one_queue_for_all_sinks_are_those_of_their_nodes(usrp_array, tmp_path, channels, options):
    own = {"clock_source": "internal", "time_source": "internal", **options.get("settings", {})}
    with Bench(usrp_array, tmp_path, channels=channels, mboards=1, settings=own, shared_events=1) as bench:
        start = max(bench.begin(), bench.soon())
        wanted = []
        for burst in range(10):
            for place, (name, used) in enumerate(channels.items()):
                begin = start + (2 * burst + place) * SLOT
                bench.send(name, begin, np.full((1, SLOT), 0.1))
                wanted.append(("burst_ack", name, 0, 0, used[0], begin + SLOT))
        events, errors = bench.events_now(len(wanted))
    assert events == sorted(wanted)
    assert errors == {""}
    assert bench.failures() == []


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"pps_skew": "1:1"}, r"board 1 \(V1\) reads \d+ s at a PPS edge where others read \d+ s"),
        ({"pps_late": "1:0.98"}, r"board 1 \(V1\) is \+0\.0\d+ s off from the time of the others"),
        ({"pps_missing": 0}, r"board 0 \(V0\): sees no PPS edge"),
        ({"pps_missing": 1}, r"board 1 \(V1\) reads"),
        ({"unlocked": 1}, r"board 1 \(V1\): not locked to its reference"),
        ({"lo_unlocked": 1}, r"board 1 \(V1\), channel 2: its receive synthesizer is not locked"),
    ],
)
def test_a_board_that_is_not_in_step_is_named(usrp_array, tmp_path, fault, named):
    with Bench(usrp_array, tmp_path, **fault) as bench:
        bench.align()
        error = bench.failure()
    assert error.startswith("radio rack: ")
    assert re.search(named, error)


def test_directions_at_different_frequencies_are_refused(usrp_array, tmp_path, monkeypatch):
    with Bench(usrp_array, tmp_path) as bench:
        sink, tune = bench.array.sinks[1], bench.array.sinks[1].set_center_freq
        bench.array.radio.sinks[1] = type("Detuned", (), {
            "__getattr__": lambda self, name: getattr(sink, name),
            "set_center_freq": lambda self, request, index: tune(FREQ + 10 * index, index),
        })()  # fmt: skip
        bench.align()
        assert re.search(r"channel 3: .*carrier 2400000010\.0000 Hz for transmitting", bench.failure())


@pytest.fixture
def own_subdevices(usrp_array, monkeypatch):
    """Sources and sinks with subdevices of their own, as with RFNoC; those that they were given, by block and board."""
    from gnuradio import uhd

    given = {}
    for block in (uhd.usrp_source, uhd.usrp_sink):
        monkeypatch.setattr(block, "set_subdev_spec", lambda self, specification, board: given.update(
            {(self.symbol_name(), board): specification}))
        monkeypatch.setattr(block, "get_subdev_spec", lambda self, board: given.get(
            (self.symbol_name(), board), "A:A A:B"))
    return given


def test_every_source_and_sink_has_its_subdevices_on_every_board(usrp_array, tmp_path, own_subdevices):
    specifications = {"rx_subdevices": ["A:B A:A", "A:B"], "tx_subdevices": ["A:A A:B", "A:A"]}
    bench = Bench(usrp_array, tmp_path, channels={"ap1": [0, 1], "ap2": [2]}, settings=specifications)
    for blocks, key in ((bench.array.sources, "rx_subdevices"), (bench.array.sinks, "tx_subdevices")):
        assert [[block.get_subdev_spec(board) for board in range(2)] for block in blocks] == [specifications[key]] * 2


@pytest.mark.parametrize("deaf", ["usrp_source", "usrp_sink"])
def test_a_source_or_sink_with_another_map_of_channels_is_refused(usrp_array, tmp_path, monkeypatch, own_subdevices,
                                                                  deaf):
    from gnuradio import uhd

    kind = getattr(uhd, deaf)
    take, blocks = kind.set_subdev_spec, []

    def first_only(self, specification, board):
        blocks.append(self.symbol_name())
        if self.symbol_name() == blocks[0]:
            take(self, specification, board)

    monkeypatch.setattr(kind, "set_subdev_spec", first_only)
    one = {"rx_subdevices": ["A:A", "A:A"], "tx_subdevices": ["A:A", "A:A"]}
    with pytest.raises(usrp_array.RadioError, match="equally many"):
        Bench(usrp_array, tmp_path, channels={"ap1": [0], "ap2": [1]}, settings=one)


def test_sources_and_sinks_are_told_the_time_of_a_tune_on_every_board(usrp_array, tmp_path, monkeypatch):
    from gnuradio import uhd

    timed, tuned = set(), []
    for block in (uhd.usrp_source, uhd.usrp_sink):
        def tell(self, when, board, block=block, call=block.set_command_time):
            timed.add((block, board, when.get_real_secs()))
            call(self, when, board)

        def clear(self, board, call=block.clear_command_time):
            timed.clear()
            call(self, board)

        def tune(self, request, index, call=block.set_center_freq):
            tuned.append(set(timed))
            return call(self, request, index)

        monkeypatch.setattr(block, "set_command_time", tell)
        monkeypatch.setattr(block, "clear_command_time", clear)
        monkeypatch.setattr(block, "set_center_freq", tune)
    with Bench(usrp_array, tmp_path) as bench:
        bench.begin()
    assert len(tuned) == 8  # both directions of four ports
    for told in tuned:
        assert {(block, board) for block, board, _ in told} == {
            (block, board) for block in (uhd.usrp_source, uhd.usrp_sink) for board in range(2)}
        assert len({when for *_, when in told}) == 1


def test_a_time_may_be_verified_edges_later_than_it_was_taken(usrp_array, tmp_path, monkeypatch):
    monkeypatch.setattr("gnuradio.dmimo.blocks.radio_start.PPS_PERIOD_S", 3.2)  # as on a computer that stands still
    with Bench(usrp_array, tmp_path) as bench:
        assert bench.begin() >= 3 * RATE
    assert bench.failures() == []


@pytest.mark.parametrize("shift", [3, -3])
def test_a_time_that_no_board_has_taken_is_refused(usrp_array, tmp_path, monkeypatch, shift):
    from gnuradio import uhd

    with Bench(usrp_array, tmp_path) as bench:
        wait_for(lambda: bench.told("radio_time"))
        monkeypatch.setattr(uhd.usrp_source, "set_time_next_pps", lambda *_: None)
        bench.align(shift)
        error = bench.failure()
    assert re.search(r"time source external: the boards read \d+ s at the PPS edge after their time was set to", error)


def test_carriers_are_those_of_the_synthesizers_alone(usrp_array, tmp_path):
    with Bench(usrp_array, tmp_path, lo_step=7) as bench:
        bench.begin()
        blocks = (*bench.array.sources, *bench.array.sinks)
        carriers = {block.get_center_freq(index) for block in blocks for index in range(2)}
    assert carriers == {7 * round(FREQ / 7)} != {FREQ}
    tuned = virtual.read_log(bench.log, "tune_dsp")
    assert {entry["freq"] for entry in tuned} == {0}
    assert len(tuned) == 2 * 4  # and by nobody else


def test_digital_frequencies_are_refused(usrp_array, tmp_path, monkeypatch):
    from gnuradio import uhd
    from gnuradio.dmimo.blocks import radio_start

    monkeypatch.setattr(radio_start, "tune_request", lambda frequency: uhd.tune_request(frequency, 1e6))
    with Bench(usrp_array, tmp_path) as bench:
        bench.align()
        error = bench.failure()
    assert "not tuned to one carrier: channel 0: digital frequency -1000000.0000 Hz for transmitting" in error
    assert "channel 3: " in error


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"channels": {"ap1": [0, 4]}}, "channel 4: the radio has channels 0 to 3"),
        ({"settings": {"clock_source": "internal"}}, "common reference"),
        ({"settings": {"time_source": "internal"}}, "common PPS"),
        ({"settings": {"rx_subdevices": ["A:A A:B"]}}, "one for each of the 2 boards"),
        ({"settings": {"tx_subdevices": ["A:A", "A:A A:B"]}}, "equally many"),
        ({"master_clock_rate": 1.92e6}, "samp_rate"),
    ],
)
def test_what_the_radio_cannot_do_is_refused(usrp_array, tmp_path, options, named):
    with pytest.raises(usrp_array.RadioError, match=named):
        Bench(usrp_array, tmp_path, **options)


def test_a_clock_that_makes_no_round_rate_is_used_at_its_own(usrp_array, tmp_path):
    clock = 30.72e6 + 0.2234  # as near to 30.72 MHz as a B210 comes
    with pytest.raises(usrp_array.RadioError, match=r"1920000\.000000: the radio can do 1920000\.013963;"):
        Bench(usrp_array, tmp_path, rate=1.92e6, master_clock_rate=clock)
    rate = 1_920_000.013963  # as it was told; no whole second but 0 is a sample
    with Bench(usrp_array, tmp_path, rate=rate, master_clock_rate=clock) as bench:
        begin = bench.begin()
        assert begin / rate < 10
        start = max(begin, bench.soon())
        bench.arm([start])
        bench.send("ap1", start, np.full((2, SLOT), 0.1))
        (heard,) = bench.slots("ap2", 1)
        events, _ = bench.events_now(2)
    assert [event[-1] for event in events] == [start + SLOT] * 2
    assert (np.abs(heard).min(axis=1) > 1e-3).all()  # from the first to the last sample of the slot
    assert bench.failures() == []


def test_one_board_needs_no_pps(usrp_array, tmp_path):
    own = {"clock_source": "internal", "time_source": "internal"}
    with Bench(usrp_array, tmp_path, channels={"ap1": [0, 1]}, mboards=1, settings=own, pps_missing=0) as bench:
        start = max(bench.begin(), bench.soon())
        bench.send("ap1", start, np.full((2, SLOT), 0.1))
        events, _ = bench.events_now(2)
    assert [event[-1] for event in events] == [start + SLOT] * 2


def test_four_ports_of_five_megasamples_a_second_lose_nothing(usrp_array, tmp_path):
    rate, num_bursts = 5_000_000, 40
    with Bench(usrp_array, tmp_path, rate=rate) as bench:
        start = max(bench.begin(), bench.soon())
        starts = [start + index * 10 * SLOT for index in range(num_bursts)]
        bench.arm(starts)
        for begin in starts:
            for name in CHANNELS:
                bench.send(name, begin, np.full((2, SLOT), 0.1))
        events, _ = bench.events_now(4 * num_bursts)
        assert all(slot.shape == (2, SLOT) for name in CHANNELS for slot in bench.slots(name, num_bursts))
        wait_for(lambda: min(clock.num_samples for clock in bench.array.clocks) > rate)
    assert {event[0] for event in events} == {"burst_ack"}
    assert virtual.read_log(bench.log, "overflow") == []
