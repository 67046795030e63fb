# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated network as a block: transmit streams of all ports in, receive streams of all ports out."""

from typing import NamedTuple

import numpy as np
import pmt
from gnuradio import gr

from ..simulation.network import Network
from . import messages
from .guard import guarded
from .lean import lean_rate_one_block
from .timetags import RX_TIME, rate_ratio, sample_from_pmt, time_to_pmt

_WORK_CALLED_PRODUCE = -2


class _Packet(NamedTuple):
    """Slots that a node has announced: absolute first sample, length of each, for each port the beams in them, and by
    how many samples the node shifts its clock."""

    start: int
    num: int
    beams: list[list[int]]
    shift: int

    @property
    def num_slots(self) -> int:
        return len(self.beams[0])

    def after(self, count: int) -> "_Packet | None":
        """What is left of it after so many slots."""
        if self.num_slots == count:
            return None
        return self._replace(start=self.start + count * self.num, beams=[beams[count:] for beams in self.beams])


class _Slot(NamedTuple):
    """Slot in progress, or slots: absolute first sample and length, beams (P,) or (slots, P), nodes that lose it, and
    the clock shift of each node, None where all are 0."""

    start: int
    num: int
    beams: np.ndarray
    lost: tuple[str, ...]
    shifts: list[int] | None


class simulated_network(lean_rate_one_block):
    """Connects the transmit streams of all ports of a network to their receive streams, in place of radios.

    Slot-timed: when the streams begin with a `tx_time` tag, they consist of packets of one slot or several equal ones.
    On the first item of each, port 0 of every node carries `tx_time` and `packet_len`, and every port may carry `beam`:
    an integer, or for n slots an s32vector of n. Port 0 may carry `shift`, by which the node shifts its clock in the
    packet [samples]. Slots must be the same on all nodes, packets need not. The physics
    is computed for their absolute time; contiguous slots are one continuous waveform, a gap between them is silence.
    Free-running: without tags, a continuous channel from sample 0.

    Every output carries `rx_time` on its first item and after each discontinuity, as a USRP source does. A lost slot
    (`Fault`) is missing from the outputs of its node except for its last sample, which carries the new `rx_time`.

    Where paths have memory, free-running samples leave in whole blocks of `network.block_samples`.

    Parameters
    ----------
    network : the physical model; ports in the order of its nodes. A network serves one block.
    beams : beam of each port, (P,), where no tag says otherwise; all 0 by default.

    Messages
    --------
    error : traceback of a failure; the block then ends its streams.
    """

    def __init__(self, network: Network, beams=None):
        streams = [np.complex64] * network.num_ports
        lean_rate_one_block.__init__(self, "simulated_network", streams, streams)
        self.set_tag_propagation_policy(gr.TPP_DONT)
        self.message_port_register_out(pmt.intern("error"))
        self._network = network
        self._rate = rate_ratio(network.samp_rate)
        self._ports = [range(network.num_ports)[network.ports(name)] for name in network.names]
        self.set_beams(np.zeros(network.num_ports, dtype=np.int64) if beams is None else beams)
        self._reset()

    def set_beams(self, beams) -> None:
        """Set the beams of the ports, (P,), from the next call of `work` on."""
        beams = np.array(beams, dtype=np.int64)
        if beams.shape != (self._network.num_ports,):
            raise ValueError(f"beams has shape {beams.shape}; it must be ({self._network.num_ports},)")
        self._beams = beams

    def start(self):
        """Begin anew: item counters restart with every start of the flowgraph."""
        self._reset()
        return super().start()

    def _reset(self) -> None:
        self._network.reset()
        self._tagged: bool | None = None
        self._slot: _Slot | None = None
        self._packets: list[_Packet | None] = [None] * len(self._ports)  # of each node, what is to come
        self._time = pmt.PMT_NIL, 0  # last time tag and its sample
        self._next = 0  # absolute sample of the next input item
        self._ready: np.ndarray | None = None  # received samples that have not left yet,
        self._ready_from = 0  # the absolute sample of the first of them
        self._timeless = set(range(len(self._ports)))  # nodes whose next output item needs an rx_time tag

    def handle_forecast(self, noutput_items, ninputs):
        """Ask for a single item: a slot in flight must never wait for the next one."""
        return [1 if self._ready is None else 0] * ninputs

    @guarded
    def general_work(self, input_items, output_items):
        """Take what has come, slot by slot, and hand out what has been received."""
        room, available = len(output_items[0]), min(map(len, input_items))
        produced = [0] * len(output_items)
        consumed = 0
        if self._tagged is None and available:
            self._tagged = self._is_tagged()
        headers = self._headers(available) if self._tagged else None
        while True:
            self._deliver(output_items, produced, room)
            if self._ready is not None or consumed == available or max(produced) == room:
                break
            consumed += self._step(input_items, output_items, consumed, available, produced, headers)
        self.consume_each(consumed)
        if min(produced) == max(produced):
            return produced[0]
        for port, count in enumerate(produced):
            self.produce(port, count)
        return _WORK_CALLED_PRODUCE

    def _step(self, input_items, output_items, first: int, available: int, produced: list[int], headers) -> int:
        """Feed the network items from `first` on, of one slot or several whole ones at most; return how many.

        What is received goes straight to the outputs where it fits and is not lost, to `_ready` otherwise.
        """
        network, space = self._network, len(output_items[0]) - max(produced)
        if not self._tagged:
            # As many whole blocks as fit: a block in two parts is computed twice.
            fit = space - network.backlog_samples
            whole = (self._next + fit) // network.block_samples * network.block_samples - self._next
            count = min(available - first, whole if whole > 0 else max(fit, 1))
            beams, final, shifts = self._beams, not network.has_memory, None
        else:
            if self._slot is None:
                whole = min(available - first, space - network.backlog_samples)
                self._slot = self._begin_slots(first, whole, headers)
            left = self._slot.start + self._slot.num - self._next
            count, beams, shifts = min(left, available - first), self._slot.beams, self._slot.shifts
            final = count == left
            self._check_inside(first + count, headers)
        items = [port[first : first + count] for port in input_items]
        fits = network.backlog_samples + count <= space and not (self._slot is not None and self._slot.lost)
        if fits:
            outputs = [port[at:] for port, at in zip(output_items, produced, strict=True)]
            written = network.process_into(outputs, items, self._next, beams, final=final, shifts=shifts)
            if written:
                self._stamp(self._timeless, produced, self._ready_from)
                produced[:] = [at + written for at in produced]
                self._ready_from += written
            if self._slot is not None and final:
                self._slot = None
        else:
            received = network.process(items, self._next, beams, final=final, shifts=shifts)
            self._ready = received if received.shape[1] else None
        self._next += count
        return count

    def _stamp(self, nodes: set[int], produced: list[int], sample: int) -> None:
        """Tag the next output item of these nodes with the time of `sample`."""
        if not nodes:
            return
        time = time_to_pmt(sample, self._rate)
        for node in nodes:
            for port in self._ports[node]:
                self.add_item_tag(port, self.nitems_written(port) + produced[port], RX_TIME, time)
        self._timeless = self._timeless - nodes

    def _deliver(self, output_items, produced: list[int], room: int) -> None:
        """Move samples that are ready to the outputs, as many as there is room for, with their times."""
        if self._ready is None or room == max(produced):
            return
        count = min(self._ready.shape[1], room - max(produced))
        slot = self._slot
        complete = slot is not None and self._ready_from + count == slot.start + slot.num
        for node, ports in enumerate(self._ports):
            first = 0
            if slot is not None and self._network.names[node] in slot.lost:
                self._timeless = self._timeless | {node}
                first = count - 1 if complete else count
            if first < count:
                self._stamp(self._timeless & {node}, produced, self._ready_from + first)
            for port in ports:
                output_items[port][produced[port] : produced[port] + count - first] = self._ready[port, first:count]
                produced[port] += count - first
        self._ready_from += count
        self._ready = self._ready[:, count:] if count < self._ready.shape[1] else None
        if complete:
            self._slot = None

    # -- tags ---------------------------------------------------------------------------------------------------------

    def _is_tagged(self) -> bool:
        tagged = [bool(self.get_tags_in_window(ports[0], 0, 1, pmt.intern("tx_time"))) for ports in self._ports]
        if any(tagged) and not all(tagged):
            missing = [name for name, found in zip(self._network.names, tagged, strict=True) if not found]
            raise ValueError(f"streams of {', '.join(missing)} begin without tx_time, those of other nodes with it")
        return all(tagged)

    def _headers(self, available: int) -> list[dict[int, dict[str, object]]]:
        """Return, per node, the tags on port 0 among the items at hand: {relative offset: {key: value}}."""
        headers = []
        for ports in self._ports:
            origin = self.nitems_read(ports[0])
            found: dict[int, dict[str, object]] = {}
            for tag in self.get_tags_in_window(ports[0], 0, available):
                found.setdefault(tag.offset - origin, {})[pmt.symbol_to_string(tag.key)] = tag.value
            headers.append(found)
        return headers

    def _begin_slots(self, at: int, whole: int, headers) -> _Slot:
        """Take the slot that begins at relative item `at`, or several that lie within `whole` items.

        All nodes must say the same of it.
        """
        packets = [packet or self._read_packet(node, at, headers[node].pop(at, {}))
                   for node, packet in enumerate(self._packets)]
        start, num = packets[0][:2]
        if len({packet[:2] for packet in packets}) > 1:
            first, *others = [f"{name} {packet[:2]}" for name, packet in zip(self._network.names, packets, strict=True)]
            odd = [other for other, packet in zip(others, packets[1:], strict=True) if packet[:2] != (start, num)]
            raise ValueError(f"slots (first sample, length) differ: {first}, but {', '.join(odd)}")
        if num < 1 or start < self._next:
            raise ValueError(f"slot of {num} samples at {start}: must have samples, none before sample {self._next}")
        if start != self._next:
            self._timeless = set(range(len(self._ports)))
        self._next = self._ready_from = start
        count, lost = 1, ()
        if self._network.takes_runs:
            count = max(1, min(whole // num, *(packet.num_slots for packet in packets)))
        else:
            lost = self._network.begin_slot(start, num)
        beams = np.array(list(zip(*(beams[:count] for packet in packets for beams in packet.beams), strict=True)))
        self._packets = [packet.after(count) for packet in packets]
        shifts = [packet.shift for packet in packets]
        return _Slot(start, count * num, beams if count > 1 else beams[0], lost, shifts if any(shifts) else None)

    def _read_packet(self, node: int, at: int, tags: dict[str, object]) -> _Packet:
        """Packet that begins at relative item `at`, with these tags on port 0."""
        name, ports = self._network.names[node], self._ports[node]
        if "tx_time" not in tags or "packet_len" not in tags:
            raise ValueError(f"node {name}: no tx_time and packet_len where its slot should begin (item {at})")
        beams = [messages.per_slot(tags["beam"]) if "beam" in tags else [self._beams[ports[0]]]]
        for port in ports[1:]:
            said = self.get_tags_in_window(port, at, at + 1, pmt.intern("beam"))
            beams.append(messages.per_slot(said[0].value) if said else [self._beams[port]])
        if not pmt.equal(tags["tx_time"], self._time[0]):
            self._time = tags["tx_time"], sample_from_pmt(tags["tx_time"], self._rate)
        length, counts = pmt.to_long(tags["packet_len"]), list(map(len, beams))
        if length % counts[0] or counts.count(counts[0]) < len(counts):
            raise ValueError(f"node {name}: packet of {length} samples with beams of {counts} slots at its ports")
        shift = pmt.to_long(tags["shift"]) if "shift" in tags else 0
        return _Packet(self._time[1], length // counts[0], beams, shift)

    def _check_inside(self, end: int, headers) -> None:
        """Raise if a node begins another packet before relative item `end`, within the current slot."""
        for name, found in zip(self._network.names, headers, strict=True):
            # Tags come in the order of their items; that with which the slot began has been taken out.
            for at in list(found):
                if at >= end:
                    break
                if "tx_time" in found.pop(at):
                    raise ValueError(f"node {name}: a slot begins inside the one at sample {self._slot.start}")
