# SPDX-License-Identifier: GPL-3.0-or-later
"""The doctor's flowgraph: one radio as a run uses it, sending bursts and receiving slots on request."""

import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import pmt
from gnuradio import gr

from ..blocks import messages
from ..blocks.burst_receiver import burst_receiver
from ..blocks.burst_transmitter import burst_transmitter
from ..blocks.lean import lean_message_block, lean_sync_block
from ..blocks.timetags import RX_TIME, nearest_from_pmt, time_to_pmt
from ..blocks.usrp_array import usrp_array
from ..protocols.slots import Grant
from ..radio_settings import RadioSettings
from ..radio_time import rate_ratio

MIN_SLOT_SAMPLES, MAX_SLOT_SAMPLES = 4096, 1 << 17
SLOT_S = 4e-3  # long enough to see a synthesizer settle
EARLY_SAMPLES = 256  # by which a burst may come before its time and is still seen
ANSWER_S = 3.0  # for slots and events after their time; UHD's asynchronous messages come some 0.1 s late
LEAD_S = 0.3  # of bursts that are not to be late; the testbed file may ask for more


class Event(NamedTuple):
    """What UHD says of a burst of a port."""

    event: str
    node: str
    port: int
    board: int
    sample: int | None


class mailbox(lean_message_block):
    """Sends bursts and slot requests to the nodes' blocks, and keeps what comes back for another thread."""

    def __init__(self, nodes: Sequence[str]):
        lean_message_block.__init__(self, "mailbox")
        self.events: list[Event] = []
        self.slots: dict[tuple[str, int], np.ndarray | None] = {}
        self.errors: list[str] = []
        self._changed = threading.Condition()
        for name in nodes:
            for kind in ("bursts", "grants"):
                self.message_port_register_out(pmt.intern(f"{kind}_{name}"))
        for port, handler in (("received", self.handle_received), ("events", self.handle_event),
                              ("failures", self.handle_failure)):
            self.message_port_register_in(pmt.intern(port))
            self.set_msg_handler(pmt.intern(port), handler)

    def handle_received(self, message):
        """Keep the samples of slots by node and first sample, None where they were lost."""
        burst = messages.burst(message)
        node = pmt.symbol_to_string(pmt.dict_ref(pmt.car(message), messages.NODE, pmt.PMT_NIL))
        with self._changed:
            for index, grant in enumerate(burst.grants):
                self.slots[node, grant.start] = burst.samples[index] if burst.status == "ok" else None
            self._changed.notify_all()

    def handle_event(self, message):
        """Keep an event."""
        told = messages.values(message)
        with self._changed:
            self.events.append(Event(told["event"], told["node"], told["port"], told["board"], told.get("sample")))
            self._changed.notify_all()

    def handle_failure(self, message):
        """Keep the traceback of a block."""
        with self._changed:
            self.errors.append(pmt.symbol_to_string(message) if pmt.is_symbol(message) else str(message))
            self._changed.notify_all()

    def wait(self, condition, timeout_s: float) -> bool:
        """Whether a condition on what has come holds within a time."""
        with self._changed:
            return self._changed.wait_for(condition, timeout_s)


class gap_counter(lean_sync_block):
    """Notes where a receive stream begins and how many samples it loses, from its `rx_time` tags."""

    def __init__(self, samp_rate: float):
        lean_sync_block.__init__(self, "gap_counter", [np.complex64], None)
        self.set_output_multiple(4096)
        self._rate = rate_ratio(samp_rate)
        self._last: tuple[int, int] | None = None  # offset and sample of the latest tag
        self.first: int | None = None
        self.seen = 0
        self.lost: list[tuple[int, int]] = []  # sample after the gap, samples that are missing

    def work(self, input_items, output_items):
        """Look at the tags of these samples."""
        count = len(input_items[0])
        for tag in self.get_tags_in_window(0, 0, count, RX_TIME):
            sample = nearest_from_pmt(tag.value, self._rate)
            if self._last is None:
                self.first = sample
            else:
                offset, before = self._last
                missing = sample - before - (tag.offset - offset)
                if missing:
                    self.lost.append((sample, missing))
            self._last = tag.offset, sample
        self.seen += count
        return count


class Bench:
    """One radio with the project's transmitter and receiver at every node.

    Parameters
    ----------
    settings : RadioSettings
    amplitude : float
        Largest magnitude of anything that is sent.
    lead_s : float
        How long before its time a burst is handed over.
    """

    def __init__(self, settings: RadioSettings, amplitude: float, lead_s: float = LEAD_S):
        self.settings, self.amplitude, self.lead_s = settings, amplitude, max(lead_s, LEAD_S)
        self.rate = rate_ratio(settings.samp_rate)
        self.slot_samples = min(max(MIN_SLOT_SAMPLES, int(SLOT_S * self.rate)), MAX_SLOT_SAMPLES)
        self.array = usrp_array(settings, by_hand=True)
        self.radio = self.array.radio
        self.mailbox = mailbox(list(settings.nodes))
        self.ports = [(name, index, port) for name, ports in settings.nodes.items() for index, port in enumerate(ports)]
        self.counters = {name: gap_counter(settings.samp_rate) for name in settings.nodes}
        self._connect()
        self._started = False

    def _connect(self) -> None:
        self.flowgraph, self._blocks, first = gr.top_block("doctor"), [], 0
        for name, ports in self.settings.nodes.items():
            transmitter = burst_transmitter(len(ports), self.slot_samples)
            receiver = burst_receiver(name, len(ports), self.slot_samples, self.settings.samp_rate,
                                      max(1 << 16, 2 * self.slot_samples))
            self._blocks += [transmitter, receiver]
            for index in range(len(ports)):
                self.flowgraph.connect((transmitter, index), (self.array, first + index))
                self.flowgraph.connect((self.array, first + index), (receiver, index))
            self.flowgraph.connect((self.array, first), self.counters[name])
            first += len(ports)
            self.flowgraph.msg_connect(self.mailbox, f"bursts_{name}", transmitter, "bursts")
            self.flowgraph.msg_connect(self.mailbox, f"grants_{name}", receiver, "grants")
            self.flowgraph.msg_connect(receiver, "bursts", self.mailbox, "received")
            self.flowgraph.msg_connect(receiver, "error", self.mailbox, "failures")
        self.flowgraph.msg_connect(self.array, "events", self.mailbox, "events")
        self.flowgraph.msg_connect(self.array, "status", self.mailbox, "failures")

    def start(self) -> None:
        """Make the streamers."""
        self.flowgraph.start()
        self._started = True

    def stop(self) -> None:
        """End the streams."""
        if self._started:
            self.flowgraph.stop()
            self.flowgraph.wait()

    def port_name(self, row: int) -> str:
        """Board, channel and node of a port, for tables."""
        name, index, port = self.ports[row]
        board, _ = self.radio.channels[port.channel]
        return f"{self.radio.board_name(board)}, channel {port.channel} ({name}:{index})"

    def board_of(self, row: int) -> int:
        """Board of a port."""
        return self.radio.channels[self.ports[row][2].channel][0]

    def send(self, name: str, start: int, samples: np.ndarray) -> None:
        """Hand over a burst (port, n) of a node; n must be a whole slot at most."""
        vector = messages.vector_to_pmt(np.ascontiguousarray(samples, np.complex64))
        burst = messages.transmit_burst(time_to_pmt(start, self.rate), [0], [0], vector)
        self.mailbox.message_port_pub(pmt.intern(f"bursts_{name}"), burst)

    def listen(self, starts: Sequence[int]) -> None:
        """Ask all nodes for the slots that begin at these samples."""
        grants = messages.grants_to_pmt([Grant(slot, 0, start) for slot, start in enumerate(starts)])
        for name in self.settings.nodes:
            self.mailbox.message_port_pub(pmt.intern(f"grants_{name}"), messages.encode("grant", grants=grants))

    def received(self, starts: Sequence[int], timeout_s: float = ANSWER_S) -> np.ndarray | None:
        """Slots (slot, port, n) of all ports; None if one was lost or has not come in time."""
        wanted = [(name, start) for start in starts for name in self.settings.nodes]
        until = max(starts) / self.rate - self.radio.now() + timeout_s
        if not self.mailbox.wait(lambda: all(key in self.mailbox.slots for key in wanted), max(until, timeout_s)):
            return None
        slots = [[self.mailbox.slots.pop((name, start)) for name in self.settings.nodes] for start in starts]
        if any(part is None for slot in slots for part in slot):
            return None
        return np.array([np.concatenate(slot) for slot in slots])

    def soon(self) -> int:
        """First sample of a burst that is handed over now."""
        return int((self.radio.now() + self.lead_s) * self.rate)

    def sound(self, plan: Sequence[tuple[int, np.ndarray]], start: int | None = None) -> np.ndarray | None:
        """Let one port (row) after another send its burst (n,); what all ports received, (burst, port, n), or None.

        The slots begin `EARLY_SAMPLES` before their bursts.
        """
        start = self.soon() if start is None else start
        starts = [start + 2 * self.slot_samples * index for index in range(len(plan))]
        slots = [when - EARLY_SAMPLES for when in starts]
        self.listen(slots)
        for when, (row, burst) in zip(starts, plan, strict=True):
            name, index, _ = self.ports[row]
            samples = np.zeros((len(self.settings.nodes[name]), burst.size), np.complex64)
            samples[index] = burst
            self.send(name, when, samples)
        return self.received(slots)

    def silent_bursts(self, lead_s: float, spacing_s: float, count: int, num_samples: int) -> list[Event]:
        """Hand bursts of zeros of all nodes over so long before their time; the events of all of them."""
        first_event = len(self.mailbox.events)
        offset = max(self.radio.now() - time.monotonic() for _ in range(5))
        begin = time.monotonic() + 0.02
        first_start = int((begin + offset + lead_s) * self.rate)
        for index in range(count):
            wait_s = begin + index * spacing_s - time.monotonic()
            if wait_s > 0:
                time.sleep(wait_s)
            start = int((begin + index * spacing_s + offset + lead_s) * self.rate)
            for name, ports in self.settings.nodes.items():
                self.send(name, start, np.zeros((len(ports), num_samples), np.complex64))
        expected = count * len(self.ports)
        self.mailbox.wait(lambda: self.num_answers(first_event) >= expected, lead_s + ANSWER_S)
        # What is told late of bursts before these does not count.
        return [event for event in self.mailbox.events[first_event:]
                if event.sample is None or event.sample >= first_start]

    def num_answers(self, first_event: int) -> int:
        """How many bursts' ends have been told, of each port, from an event on."""
        return sum(event.event in ("burst_ack", "time_error") for event in self.mailbox.events[first_event:])

    def gaps(self) -> Mapping[str, list[tuple[int, int]]]:
        """What each node's receive stream has lost so far."""
        return {name: list(counter.lost) for name, counter in self.counters.items()}
