# SPDX-License-Identifier: GPL-3.0-or-later
"""A USRP array on a virtual USRP between the project's transmitters and receivers; the test plays the scheduler."""

import numpy as np
import pmt
import virtual_usrp_device as virtual
from gnuradio import blocks, gr
from gnuradio.dmimo.blocks import messages
from gnuradio.dmimo.blocks.burst_receiver import burst_receiver
from gnuradio.dmimo.blocks.burst_transmitter import burst_transmitter
from gnuradio.dmimo.blocks.timetags import rate_ratio, time_to_pmt
from gnuradio.dmimo.protocols.slots import Grant
from gnuradio.dmimo.radio_settings import RadioPort, RadioSettings
from graph import message_sink, message_source, wait_for
from virtual_usrp_graph import FREQ, LEAD_S, RATE

SLOT = 500
CHANNELS = {"ap1": [0, 1], "ap2": [2, 3]}
NAME = "rack"


class Bench:
    """Nodes of two ports each on one virtual USRP, with the project's transmitter and receiver."""

    def __init__(self, module, tmp_path, *, channels=CHANNELS, mboards=2, port=(), settings=(), receivers=True,
                 rate=RATE, **options):
        self.log, self.rate = tmp_path / "log.json", rate
        options = {"num_mboards": mboards, "log": self.log, "noise_db": -100, **options}
        ports = {
            name: [RadioPort(channel, **{"center_freq": FREQ, **dict(port)}) for channel in own]
            for name, own in channels.items()
        }
        self.events, self.errors, self.status = message_sink(), message_sink(), message_sink()
        self.control, self.ending, self.epoch = message_source(), message_source(), 0
        settings = {"device_args": virtual.arguments(**options), "samp_rate": rate, "nodes": ports, **dict(settings)}
        self.array = module.usrp_array(RadioSettings(**settings), NAME)
        self.tb = gr.top_block()
        self.bursts, self.grants, self.received, self.blocks = {}, {}, {}, []
        first = 0
        for name, own in channels.items():
            transmitter = burst_transmitter(len(own), SLOT)
            # The receiver refuses a lost time, too.
            receiver = burst_receiver(name, len(own), SLOT, rate) if receivers else blocks.null_sink(8)
            self.bursts[name], self.grants[name] = message_source(), message_source()
            self.received[name] = message_sink()
            for index in range(len(own)):
                self.tb.connect((transmitter, index), (self.array, first + index))
                self.tb.connect((self.array, first + index), (receiver, index))
            first += len(own)
            self.tb.msg_connect(self.bursts[name], "out", transmitter, "bursts")
            self.tb.msg_connect(self.ending, "out", transmitter, "end")
            if receivers:
                self.tb.msg_connect(self.grants[name], "out", receiver, "grants")
                self.tb.msg_connect(receiver, "bursts", self.received[name], "in")
                self.tb.msg_connect(receiver, "error", self.errors, "in")
            self.blocks += [transmitter, receiver]
        self.tb.msg_connect(self.array, "events", self.events, "in")
        self.tb.msg_connect(self.array, "status", self.status, "in")
        self.tb.msg_connect(self.control, "out", self.array, "control")

    def __enter__(self):
        self.tb.start()
        return self

    def __exit__(self, *_):
        self.tb.stop()
        self.tb.wait()

    def end(self):
        """Let the flowgraph end by itself, as a scheduler and its nodes do."""
        self.control.send(messages.encode("end", error=""))
        self.ending.send(messages.DONE)
        for source in (self.control, self.ending, *self.bursts.values(), *self.grants.values()):
            source.to_basic_block()._post(messages.SYSTEM, messages.DONE)

    def last(self, name):
        """The slot that a node has received last, (port, sample)."""
        burst = messages.burst(self.received[name].messages[-1])
        assert burst.status == "ok"
        return burst.samples[-1]

    def told(self, kind):
        """What the radio has said of a kind, oldest first."""
        return [messages.values(message) for message in self.status.messages if messages.kind(message) == kind]

    def failures(self):
        """Errors that the radio has told."""
        return [pmt.symbol_to_string(message) for message in self.status.messages if pmt.is_symbol(message)]

    def failure(self):
        """The first error that the radio tells."""
        wait_for(self.failures)
        return self.failures()[0]

    def align(self, seconds=0):
        """Play the scheduler: once the radio has told its time, shift it by so many seconds."""
        wait_for(lambda: self.told("radio_time") or self.failures())
        self.control.send(messages.encode("align", radio=NAME, seconds=seconds))

    def begin(self, count=1):
        """First sample of the streams, once they have begun for the n-th time."""
        if count == 1:
            self.align()
        wait_for(lambda: len(self.told("radio_begin")) >= count or self.failures())
        assert not self.failures()
        return self.told("radio_begin")[count - 1]["sample"]

    def soon(self):
        return round((self.array.now() + LEAD_S) * self.rate)

    def send(self, name, start, samples):
        """A burst (port, sample) of a node."""
        vector = messages.vector_to_pmt(samples.astype(np.complex64))
        time = time_to_pmt(start, rate_ratio(self.rate))
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
