# SPDX-License-Identifier: GPL-3.0-or-later
"""A virtual USRP under gr-uhd's blocks in a flowgraph of few lines: bursts at their times, samples, events."""

import threading

import numpy as np
import pmt
import virtual_usrp_device as virtual
from gnuradio import blocks, gr
from graph import message_sink, wait_for

RATE = 1_000_000
FREQ = 2.4e9
PORTS = 4  # of a Radio as it comes: 2 boards x 2 channels
LEAD_S = 0.5  # for commands of these tests: a busy machine may stall a thread for a while


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
    """A usrp_source and a usrp_sink on one virtual device of `mboards` x 2 channels, set up and tuned.

    They take all channels or the given ones; radios with the same options and folder are one device.
    """

    def __init__(self, uhd, tmp_path, *, rate=RATE, mboards=2, channels=None, **options):
        self.uhd, self.rate, self.log = uhd, rate, tmp_path / "log.json"
        options = {"num_mboards": mboards, "log": self.log, "noise_db": -100, **options}
        channels = list(range(2 * mboards)) if channels is None else channels
        self.args, self.num_ports = virtual.arguments(**options), len(channels)
        stream = uhd.stream_args("fc32", "", uhd.device_addr(""), channels)
        # Lives longer than the sink, whose thread ends the process if a message finds nobody to take it.
        self.listener = message_sink()
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
        """Gains from port to port, (rx, tx), see `true_gains`."""
        return true_gains(self.log)

    def start(self, bursts=(), *, start, num_samples, pause_at=None, sinks=None):
        """Begin a flowgraph that sends `bursts` and receives `num_samples` from the sample index `start` on."""
        self.tb = gr.top_block()
        self.bursts = burst_source(bursts, self.num_ports, self.rate, pause_at)
        self.received = [blocks.vector_sink_c() for _ in range(self.num_ports)]
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


def true_gains(log):
    """Gains from port to port, (rx, tx), with the LO phases of the last tunes, from the log of boards of 2 channels."""
    ports = {entry["port"]: entry for entry in virtual.read_log(log, "port")}
    t, r = (np.array([complex(*ports[port][key]) for port in sorted(ports)]) for key in "tr")
    phase = {"tx": np.zeros(len(ports)), "rx": np.zeros(len(ports))}
    for tune in virtual.read_log(log, "tune"):  # one synthesizer per board and direction
        first = tune["port"] - tune["channel"]
        phase[tune["direction"]][first : first + 2] = tune["lo_phase"]
    h = np.zeros((len(ports), len(ports)), complex)
    for entry in virtual.read_log(log, "coupling"):
        h[entry["rx"], entry["tx"]] = h[entry["tx"], entry["rx"]] = complex(*entry["h"])
    return (r * np.exp(-1j * phase["rx"]))[:, None] * h * t * np.exp(1j * phase["tx"])


def is_time(tag):
    return pmt.symbol_to_string(tag.key) == "rx_time"


def sample_of(tag, rate):
    full, part = pmt.to_uint64(pmt.tuple_ref(tag.value, 0)), pmt.to_double(pmt.tuple_ref(tag.value, 1))
    assert abs(part * rate - round(part * rate)) < 1e-4
    return full * rate + round(part * rate)


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


def ones(length, amplitude=0.5, num_ports=PORTS):
    return np.full((num_ports, length), amplitude, np.complex64)


def one_board(uhd, tmp_path, **options):
    return Radio(uhd, tmp_path, mboards=1, **options)
