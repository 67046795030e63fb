# SPDX-License-Identifier: GPL-3.0-or-later
"""The virtual USRP under the real gr-uhd blocks: what the tests of the radio front end stand on."""

import shutil
import subprocess
import threading

import numpy as np
import pmt
import pytest
import virtual_usrp_device as virtual
from gnuradio import blocks, gr
from graph import message_sink, wait_for

RATE = 1_000_000
FREQ = 2.4e9
PORTS = 4  # 2 boards x 2 channels
LEAD_S = 0.5  # for commands of these tests: a busy machine may stall a thread for a while


@pytest.fixture(scope="module")
def uhd():
    virtual.use()
    from gnuradio import uhd

    return uhd


class burst_source(gr.sync_block):
    """Emits bursts (time in samples, (port, sample)) with their tags, then nothing, but does not end.

    A finished source would end the sink, too, and with it whatever listens to the sink's messages.
    """

    def __init__(self, bursts, num_ports, rate, pause_at=None):
        gr.sync_block.__init__(self, "burst_source", None, [np.complex64] * num_ports)
        self.samples = np.concatenate([np.zeros((num_ports, 0)), *(burst for _, burst in bursts)], 1)
        lengths = [burst.shape[1] for _, burst in bursts]
        self.tags = []
        for (when, _), length, offset in zip(bursts, lengths, np.cumsum([0, *lengths]), strict=False):
            if when is not None:
                full, part = divmod(int(when), rate)
                time = pmt.make_tuple(pmt.from_uint64(full), pmt.from_double(part / rate))
                self.tags.append((int(offset), "tx_time", time))
            self.tags.append((int(offset), "packet_len", pmt.from_long(length)))
        self.sent, self.pause_at, self.resume = 0, pause_at, threading.Event()

    def work(self, input_items, output_items):
        count = min(len(output_items[0]), self.samples.shape[1] - self.sent)
        if self.pause_at is not None and self.sent == self.pause_at:
            self.resume.wait(10)
        elif self.pause_at is not None and self.sent < self.pause_at:
            count = min(count, self.pause_at - self.sent)
        for port, out in enumerate(output_items):
            out[:count] = self.samples[port, self.sent : self.sent + count]
        for offset, key, value in self.tags:
            if self.sent <= offset < self.sent + count:
                self.add_item_tag(0, offset, pmt.intern(key), value)
        self.sent += count
        return count


class Radio:
    """A usrp_source and a usrp_sink on one virtual device of `mboards` x 2 channels, set up and tuned."""

    def __init__(self, uhd, tmp_path, *, rate=RATE, mboards=2, **options):
        self.uhd, self.rate, self.log = uhd, rate, tmp_path / "log.json"
        options = {"num_mboards": mboards, "log": self.log, "noise_db": -100, **options}
        self.args, self.num_ports = virtual.arguments(**options), 2 * mboards
        stream = uhd.stream_args("fc32", "", uhd.device_addr(""), list(range(self.num_ports)))
        self.source = uhd.usrp_source(self.args, stream, False)
        self.sink = uhd.usrp_sink(self.args, stream, "packet_len")
        for radio in (self.source, self.sink):
            radio.set_samp_rate(rate)
            for port in range(self.num_ports):
                radio.set_center_freq(FREQ, port)
        for board in range(mboards):
            self.source.set_time_source("external", board)

    def set_time(self):
        self.source.set_time_unknown_pps(self.uhd.time_spec(0.0))

    def soon(self, board=0):
        """A sample index in the near future."""
        return round((self.source.get_time_now(board).get_real_secs() + LEAD_S) * self.rate)

    def truth(self):
        """Gains from port to port, (rx, tx), with the LO phases of the last tunes, from the device's log."""
        ports = {entry["port"]: entry for entry in virtual.read_log(self.log, "port")}
        t, r = (np.array([complex(*ports[port][key]) for port in sorted(ports)]) for key in "tr")
        phase = {"tx": np.zeros(len(ports)), "rx": np.zeros(len(ports))}
        for tune in virtual.read_log(self.log, "tune"):  # one synthesizer per board and direction
            phase[tune["direction"]][2 * tune["board"] : 2 * tune["board"] + 2] = tune["lo_phase"]
        h = np.zeros((len(ports), len(ports)), complex)
        for entry in virtual.read_log(self.log, "coupling"):
            h[entry["rx"], entry["tx"]] = h[entry["tx"], entry["rx"]] = complex(*entry["h"])
        return (r * np.exp(-1j * phase["rx"]))[:, None] * h * t * np.exp(1j * phase["tx"])

    def start(self, bursts=(), *, start, num_samples, pause_at=None, sinks=None):
        """Begin a flowgraph that sends `bursts` and receives `num_samples` from the sample index `start` on."""
        self.tb = gr.top_block()
        self.bursts = burst_source(bursts, self.num_ports, self.rate, pause_at)
        self.received = [blocks.vector_sink_c() for _ in range(self.num_ports)]
        self.listener = message_sink()
        self.tb.msg_connect(self.sink, "async_msgs", self.listener, "in")
        for port in range(self.num_ports):
            self.tb.connect((self.bursts, port), (self.sink, port))
            self.tb.connect((self.source, port), (sinks, port) if sinks else self.received[port])
        self.source.set_recv_timeout(0.01)
        self.tb.start()
        command = self.uhd.stream_cmd(self.uhd.STREAM_MODE_NUM_SAMPS_AND_DONE)
        command.num_samps, command.stream_now = num_samples, False
        full, part = divmod(int(start), self.rate)
        command.time_spec = self.uhd.time_spec(full, part / self.rate)
        self.source.issue_stream_cmd(command)

    def wait(self, count):
        """Return once that many samples have come."""
        wait_for(lambda: min(len(sink.data()) for sink in self.received) >= count)

    def stop(self):
        self.tb.stop()
        self.tb.wait()

    def run(self, bursts, *, start, num_samples, events=0):
        """What the ports receive, (port, sample), once there are that many and `events` asynchronous messages."""
        self.start(bursts, start=start, num_samples=num_samples)
        try:
            self.wait(num_samples)
            self.listener.wait(events)
        finally:
            self.stop()
        return np.array([sink.data() for sink in self.received], np.complex64)

    def events(self):
        """Asynchronous messages so far: (event, port, time in samples), sorted."""
        found = []
        for message in self.listener.messages:
            content = pmt.cdr(message)
            channel = pmt.to_uint64(pmt.dict_ref(content, pmt.intern("channel"), pmt.PMT_NIL))
            when = pmt.dict_ref(content, pmt.intern("time_spec"), pmt.PMT_NIL)
            sample = round((pmt.to_long(pmt.car(when)) + pmt.to_double(pmt.cdr(when))) * self.rate)
            codes = pmt.dict_ref(content, pmt.intern("event_code"), pmt.PMT_NIL)
            found += [(pmt.symbol_to_string(pmt.nth(k, codes)), channel, sample) for k in range(pmt.length(codes))]
        return sorted(found)

    def time_tags(self):
        """(offset, sample index) of the receiver's time tags."""
        return [(tag.offset, sample_of(tag, self.rate)) for tag in self.received[0].tags() if is_time(tag)]


def is_time(tag):
    return pmt.symbol_to_string(tag.key) == "rx_time"


def sample_of(tag, rate):
    full, part = pmt.to_uint64(pmt.tuple_ref(tag.value, 0)), pmt.to_double(pmt.tuple_ref(tag.value, 1))
    assert abs(part * rate - round(part * rate)) < 1e-4
    return full * rate + round(part * rate)


def ones(length, amplitude=0.5, num_ports=PORTS):
    return np.full((num_ports, length), amplitude, np.complex64)


def one_board(uhd, tmp_path, **options):
    return Radio(uhd, tmp_path, mboards=1, **options)


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


@pytest.mark.parametrize("wrong", [{"nosie_db": 3}, {"coupling": "no such file"}, {"late": "x"}, {"speed": 0}])
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


def test_a_timed_burst_arrives_at_its_sample_with_its_gain_on_every_port(uhd, tmp_path):
    delay, loop = 3, [0, 2, 5, 1]
    radio = Radio(uhd, tmp_path, delay=delay, loop_delay=loop, seed=4)
    radio.set_time()
    start = radio.soon()
    rng = np.random.default_rng(1)
    bursts = [(start + 1000, rng.uniform(-0.5, 0.5, (PORTS, 700)) + 0j), (start + 5000, 0.3j * np.eye(PORTS))]
    received = radio.run(bursts, start=start, num_samples=8000, events=8)

    sent = np.zeros((PORTS, 8000), complex)
    for when, burst in bursts:
        for port in range(PORTS):
            first = when - start + delay + loop[port]
            sent[port, first : first + burst.shape[1]] += burst[port]
    noise = received - radio.truth() @ sent
    assert np.mean(np.abs(noise) ** 2) == pytest.approx(1e-10, rel=6 / np.sqrt(noise.size))  # noise_db=-100
    assert radio.time_tags() == [(0, start)]
    ends = [start + 1700, start + 5000 + PORTS]
    assert radio.events() == sorted(("burst_ack", port, end) for port in range(PORTS) for end in ends)


def test_the_air_is_reciprocal_and_another_seed_is_another_one(uhd, tmp_path):
    couplings = []
    for seed in (1, 2):
        folder = tmp_path / str(seed)
        folder.mkdir()
        radio = one_board(uhd, folder, seed=seed, gains="unit", lo_phase_quantum=0)
        couplings.append({(e["rx"], e["tx"]): complex(*e["h"]) for e in virtual.read_log(radio.log, "coupling")})
        truth = radio.truth()
        assert abs(truth[0, 1]) == pytest.approx(abs(truth[1, 0]))
    assert couplings[0][1, 0] != couplings[1][1, 0]


def test_a_timed_tune_turns_the_phase_at_its_sample(uhd, tmp_path):
    radio = one_board(uhd, tmp_path, coupling="ones", gains="unit", lo_phase_quantum=90, seed=3)
    start = radio.soon()
    when = start + 6000
    full, part = divmod(when, RATE)
    radio.source.set_command_time(uhd.time_spec(full, part / RATE), 0)
    radio.source.set_center_freq(FREQ, 0)
    radio.source.clear_command_time(0)
    (tune,) = [entry for entry in virtual.read_log(radio.log, "tune") if entry.get("requested_time")]
    assert tune["lead"] == pytest.approx(tune["requested_time"] - tune["device_time"], abs=1e-9)
    received = radio.run([(start + 1000, ones(9000, num_ports=2))], start=start, num_samples=12000)

    phase = np.angle(received[:, 1000:10000])
    before, after = phase[:, :5000], phase[:, 5000:]
    turned = np.exp(1j * (after.mean() - before.mean()))
    assert np.ptp(before) < 0.01  # each side is constant, so that the jump is between samples 5999 and 6000
    assert np.ptp(after) < 0.01
    assert min(abs(turned - 1j**k) for k in range(1, 4)) < 0.01  # a multiple of the quantum, and not 0


def test_gains_are_decibels_and_frequency_offsets_turn(uhd, tmp_path):
    radio = one_board(uhd, tmp_path, coupling="ones", gains="unit")
    radio.sink.set_gain(6, 0)
    radio.source.set_gain(3, 1)
    radio.sink.set_center_freq(FREQ + 1e3, 0)  # the synthesizer is shared, the carrier is the channel's own
    radio.sink.set_center_freq(FREQ + RATE, 1)  # out of the receiver's band
    start = radio.soon()
    received = radio.run([(start, ones(2000, num_ports=2))], start=start, num_samples=2000)
    assert np.abs(received[0]) == pytest.approx(0.5 * 0.1 * 10 ** (6 / 20), rel=1e-3)
    assert np.abs(received[1]) == pytest.approx(0.5 * 0.1 * 10 ** (9 / 20), rel=1e-3)
    turn = np.angle(np.sum(received[:, 1:] * received[:, :-1].conj())) / (2 * np.pi)
    assert turn * RATE == pytest.approx(1e3, abs=1)


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
    (first, *_) = virtual.read_log(radio.log, "burst")
    begin = start if timed else round(first["device_time"] * RATE)
    assert dry == pytest.approx({0: begin + 1000, 1: begin + 1000}, abs=0 if timed else 50)
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


class slow_sink(gr.sync_block):
    """Takes nothing until `resume` is set."""

    def __init__(self, num_ports):
        gr.sync_block.__init__(self, "slow_sink", [np.complex64] * num_ports, None)
        self.resume, self.entered, self.tags = threading.Event(), threading.Event(), []

    def work(self, input_items, output_items):
        self.entered.set()
        self.resume.wait(10)
        tags = self.get_tags_in_window(0, 0, len(input_items[0]))
        self.tags += [(tag.offset, sample_of(tag, RATE)) for tag in tags if is_time(tag)]
        return len(input_items[0])


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
    radio = one_board(uhd, tmp_path, overflow=[0.002, 0.004], overflow_gap=0.001)
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


def test_devices_on_one_medium_hear_each_other(uhd, tmp_path):
    shared = {"medium": tmp_path.name, "mboards": 1, "coupling": "ones", "gains": "unit"}
    first, second = Radio(uhd, tmp_path, **shared), Radio(uhd, tmp_path, first_board=1, **shared)
    for radio in (first, second):
        radio.source.set_time_next_pps(uhd.time_spec(0.0))
    wait_for(lambda: max(radio.source.get_time_now().get_real_secs() for radio in (first, second)) < 1)
    start = first.soon()
    second.start(start=start, num_samples=3000)
    try:
        first.start([(start + 700, ones(100, num_ports=2))], start=start, num_samples=3000)
        second.wait(3000)
    finally:
        second.stop()
        first.stop()
    heard = np.flatnonzero(np.abs(second.received[1].data()) > 1e-3)
    assert heard.tolist() == [*range(700, 800)]


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
