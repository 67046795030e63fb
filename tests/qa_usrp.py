# SPDX-License-Identifier: GPL-3.0-or-later
"""The USRP array on virtual USRPs: coherent start, bursts and their events, and what is refused by name."""

import numpy as np
import pytest
import virtual_usrp_device as virtual
from gnuradio import gr
from gnuradio.dmimo import testbed
from gnuradio.dmimo.assembly import Assembly
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.blocks.burst_receiver import burst_receiver
from gnuradio.dmimo.blocks.burst_transmitter import burst_transmitter
from gnuradio.dmimo.blocks.calibrator import calibrator
from gnuradio.dmimo.blocks.node import node
from gnuradio.dmimo.blocks.slot_scheduler import slot_scheduler
from gnuradio.dmimo.blocks.timetags import rate_ratio, time_to_pmt
from gnuradio.dmimo.protocols.slots import Grant
from gnuradio.dmimo.radio_settings import RadioPort, RadioSettings
from graph import message_sink, message_source
from virtual_usrp_graph import FREQ, LEAD_S, RATE, true_gains

SLOT = 500
CHANNELS = {"ap1": [0, 1], "ap2": [2, 3]}


@pytest.fixture(scope="module")
def usrp_array():
    virtual.use()
    from gnuradio.dmimo.blocks import usrp_array

    return usrp_array


class Bench:
    """Nodes of two ports each on one virtual USRP, with the project's transmitter and receiver."""

    def __init__(self, module, tmp_path, *, channels=CHANNELS, mboards=2, port=(), settings=(), **options):
        self.log = tmp_path / "log.json"
        options = {"num_mboards": mboards, "log": self.log, "noise_db": -100, **options}
        ports = {
            name: [RadioPort(channel, **{"center_freq": FREQ, **dict(port)}) for channel in own]
            for name, own in channels.items()
        }
        self.events, self.errors = message_sink(), message_sink()
        settings = {"device_args": virtual.arguments(**options), "samp_rate": RATE, "nodes": ports, **dict(settings)}
        self.array = module.usrp_array(RadioSettings(**settings))
        self.tb = gr.top_block()
        self.bursts, self.grants, self.received, self.blocks = {}, {}, {}, []
        first = 0
        for name, own in channels.items():
            transmitter = burst_transmitter(len(own), SLOT)
            receiver = burst_receiver(name, len(own), SLOT, RATE)
            self.bursts[name], self.grants[name] = message_source(), message_source()
            self.received[name] = message_sink()
            for index in range(len(own)):
                self.tb.connect((transmitter, index), (self.array, first + index))
                self.tb.connect((self.array, first + index), (receiver, index))
            first += len(own)
            self.tb.msg_connect(self.bursts[name], "out", transmitter, "bursts")
            self.tb.msg_connect(self.grants[name], "out", receiver, "grants")
            self.tb.msg_connect(receiver, "bursts", self.received[name], "in")
            self.tb.msg_connect(receiver, "error", self.errors, "in")
            self.blocks += [transmitter, receiver]
        self.tb.msg_connect(self.array, "events", self.events, "in")
        self.tb.msg_connect(self.array, "error", self.errors, "in")

    def __enter__(self):
        self.tb.start()
        return self

    def __exit__(self, *_):
        self.tb.stop()
        self.tb.wait()

    def soon(self):
        return round((self.array.now() + LEAD_S) * RATE)

    def send(self, name, start, samples):
        """A burst (port, sample) of a node."""
        vector = messages.vector_to_pmt(samples.astype(np.complex64))
        time = time_to_pmt(start, rate_ratio(RATE))
        self.bursts[name].send(messages.transmit_burst(time, [0], [0], vector, 0))

    def arm(self, starts):
        """Ask all receivers for the slots that begin at these samples."""
        grants = messages.grants_to_pmt([Grant(slot, 0, start) for slot, start in enumerate(starts)])
        for source in self.grants.values():
            source.send(messages.encode("grant", grants=grants))

    def slots(self, name, count):
        """What a node has received, slot by slot, (port, sample); empty where it was lost."""
        for enough in range(1, count + 1):
            found = [messages.burst(message) for message in self.received[name].wait(enough)]
            pairs = [pair for burst in found for pair in zip(burst.grants, burst.samples, strict=True)]
            if len(pairs) >= count:
                return [samples for _, samples in sorted(pairs, key=lambda pair: pair[0].slot)]
        raise AssertionError("too few slots")

    def events_now(self, count):
        """Events as (event, node, port, board, channel, sample), sorted, and their errors."""
        told = [messages.values(message) for message in self.events.wait(count)]
        keys = ("event", "node", "port", "board", "channel", "sample")
        return sorted(tuple(event[key] for key in keys) for event in told), {event["error"] for event in told}


def test_bursts_of_two_nodes_arrive_at_their_samples_on_every_port(usrp_array, tmp_path):
    rng = np.random.default_rng(1)
    bursts = {name: rng.uniform(-0.3, 0.3, (2, SLOT)) + 0j for name in CHANNELS}
    with Bench(usrp_array, tmp_path, seed=4) as bench:
        first = bench.array.begin()
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
        start = max(bench.array.begin(), bench.soon())
        bench.arm([start])
        bench.send("ap1", start, burst)
        (received,) = bench.slots("ap2", 1)
        events, _ = bench.events_now(2)
    gains = true_gains(bench.log)
    assert received[0] == pytest.approx(gains[1, [3, 0]] @ burst, abs=1e-4)
    assert [event[2:5] for event in events] == [(0, 1, 3), (1, 0, 0)]


def test_the_boards_are_started_in_the_order_that_keeps_them_coherent(usrp_array, tmp_path):
    with Bench(usrp_array, tmp_path) as bench:
        first = bench.array.begin()
    log = virtual.read_log(bench.log)
    order = [entry["what"] for entry in log]
    tunes = [entry for entry in log if entry["what"] == "tune"]
    assert len({entry["requested_time"] for entry in tunes}) == 1
    assert {(entry["board"], entry["direction"]) for entry in tunes} == {(b, d) for b in range(2) for d in ("rx", "tx")}
    assert min(entry["lead"] for entry in tunes) > 0
    assert max(place for place, what in enumerate(order) if what == "stream") > order.index("time_next_pps")
    assert first > tunes[0]["requested_time"] * RATE


def test_gains_are_those_of_the_device(usrp_array, tmp_path):
    bench = Bench(usrp_array, tmp_path, port={"tx_gain_db": 12.7, "rx_gain_db": 3, "rx_antenna": "TX/RX"})
    assert bench.array.gains() == [(12.5, 3.0)] * 4
    assert bench.array.sources[1].get_antenna(1) == "TX/RX"


def test_a_late_burst_names_its_board_and_the_other_one_is_sent(usrp_array, tmp_path):
    burst = np.full((2, SLOT), 0.3)
    with Bench(usrp_array, tmp_path, late="0@1") as bench:
        start = max(bench.array.begin(), bench.soon())
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


@pytest.mark.parametrize(
    ("fault", "named"),
    [
        ({"pps_skew": "1:1"}, r"board 1 \(V1\) reads \d+ s at a PPS edge where others read \d+ s"),
        ({"pps_missing": 0}, r"board 0 \(V0\): sees no PPS edge"),
        ({"pps_missing": 1}, r"board 1 \(V1\) reads"),
        ({"unlocked": 1}, r"board 1 \(V1\): not locked to its reference"),
        ({"lo_unlocked": 1}, r"board 1 \(V1\), channel 2: its receive synthesizer is not locked"),
    ],
)
def test_a_board_that_is_not_in_step_is_named(usrp_array, tmp_path, fault, named):
    with Bench(usrp_array, tmp_path, **fault) as bench, pytest.raises(usrp_array.RadioError, match=named):
        bench.array.begin()


def test_directions_at_different_frequencies_are_refused(usrp_array, tmp_path, monkeypatch):
    with Bench(usrp_array, tmp_path) as bench:
        sink, tune = bench.array.sinks[1], bench.array.sinks[1].set_center_freq
        bench.array.radio.sinks[1] = type("Detuned", (), {
            "__getattr__": lambda self, name: getattr(sink, name),
            "set_center_freq": lambda self, request, index: tune(FREQ + 10 * index, index),
        })()  # fmt: skip
        with pytest.raises(usrp_array.RadioError, match=r"channel 3: .*carrier 2400000010\.0000 Hz for transmitting"):
            bench.array.begin()


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


def test_one_board_needs_no_pps(usrp_array, tmp_path):
    own = {"clock_source": "internal", "time_source": "internal"}
    with Bench(usrp_array, tmp_path, channels={"ap1": [0, 1]}, mboards=1, settings=own, pps_missing=0) as bench:
        start = max(bench.array.begin(), bench.soon())
        bench.send("ap1", start, np.full((2, SLOT), 0.1))
        events, _ = bench.events_now(2)
    assert [event[-1] for event in events] == [start + SLOT] * 2


SWEEP = """
version: 1
center_freq: 2.4e+9
nodes:
  - {name: ap1, num_ports: 2}
  - {name: ap2, num_ports: 2}
slots: {slot_samples: 512, window: 16, watchdog_s: 2}
"""


class Sweep:
    """The beam sweep of two access points of two ports each on a virtual USRP."""

    def __init__(self, module, tmp_path, **options):
        self.log = tmp_path / "log.json"
        options = {"num_mboards": 2, "log": self.log, "seed": 3, **options}
        ports = {name: [RadioPort(channel, FREQ) for channel in own] for name, own in CHANNELS.items()}
        self.array = module.usrp_array(RadioSettings(virtual.arguments(**options), RATE, ports))
        assembly = Assembly(testbed.parse(SWEEP))
        schedule, slots = assembly.schedule, assembly.testbed.slots
        self.total = len(schedule.slots)
        self.scheduler = slot_scheduler(
            schedule,
            slots.max_attempts,
            slots.watchdog_s,
            clock=self.clock,
            confirmed={n.name: n.num_ports for n in assembly.testbed.nodes},
        )
        self.calibrator = calibrator(assembly, "")
        self.nodes = [
            node(n.name, n.num_ports, schedule, assembly.roles(n.name), RATE, fill=False)
            for n in assembly.testbed.nodes
        ]
        self.tb = gr.top_block()
        for first, member in zip((0, 2), self.nodes, strict=True):
            for port in range(2):
                self.tb.connect((member, port), (self.array, first + port))
                self.tb.connect((self.array, first + port), (member, port))
            self.tb.msg_connect(self.scheduler, "control", member, "control")
            self.tb.msg_connect(member, "status", self.scheduler, "status")
            self.tb.msg_connect(member, "results", self.calibrator, "results")
        self.tb.msg_connect(self.scheduler, "phases", self.calibrator, "phases")
        self.tb.msg_connect(self.calibrator, "products", self.scheduler, "products")
        self.tb.msg_connect(self.calibrator, "error", self.scheduler, "status")
        self.tb.msg_connect(self.array, "events", self.scheduler, "events")
        self.tb.msg_connect(self.array, "error", self.scheduler, "status")

    def clock(self):
        return round((self.array.now() + LEAD_S) * RATE)

    def run(self):
        """What the calibration gives, and the error that ended the run, None for none."""
        self.tb.start()
        try:
            self.scheduler.begin(self.array.begin() + round(LEAD_S * RATE))
            assert self.scheduler.finished_event.wait(60)
        finally:
            self.tb.stop()
            self.tb.wait()
        return self.calibrator.member.calibration, self.scheduler.error

    def truth(self):
        """c of all ports by that of the first, from the gains y[i, j] / y[j, i] = c_j / c_i of the device's log."""
        gains = true_gains(self.log)
        return gains[0] / gains[:, 0]


@pytest.mark.parametrize(
    ("fault", "repeated"),
    [
        ({}, 0),
        ({"late": "0@1"}, 1),
        ({"underflow": "1@0"}, 1),
        ({"lost_ack": "1@0"}, 1),
        ({"overflow": LEAD_S + 700e-6, "overflow_gap": 100e-6}, 1),  # in the second slot
    ],
    ids=["no fault", "late burst", "underflow", "lost acknowledgement", "overflow"],
)
def test_a_beam_sweep_calibrates_the_boards_and_repeats_what_went_wrong(usrp_array, tmp_path, fault, repeated):
    sweep = Sweep(usrp_array, tmp_path, **fault)
    calibration, error = sweep.run()
    assert error is None
    assert sweep.scheduler.releases == sweep.total + repeated
    assert np.all(calibration.trusted)
    assert np.abs(calibration.c / sweep.truth() - 1) == pytest.approx(0, abs=1e-3)


def test_a_board_whose_bursts_are_never_sent_ends_the_run_by_name(usrp_array, tmp_path):
    sweep = Sweep(usrp_array, tmp_path, late=[f"{burst}@1" for burst in range(20)])
    calibration, error = sweep.run()
    assert calibration is None
    assert "board 1" in error
    assert "too late" in error
