# SPDX-License-Identifier: GPL-3.0-or-later
"""The message side of a node: grants in, bursts out, received bursts in, acknowledgements and results out."""

from collections.abc import Sequence

import numpy as np
import pmt

from ..protocols.slots import Grant, Role, Schedule
from . import messages
from .guard import guarded
from .lean import lean_message_block
from .timetags import rate_ratio, time_to_pmt

TX, ARM, STATUS, RESULTS = (pmt.intern(name) for name in ("tx", "arm", "status", "results"))
SYSTEM, END = messages.SYSTEM, pmt.intern("end")


class role(lean_message_block):
    """Runs protocol roles for one node: each acts in the slots whose purpose it owns.

    For every granted slot the receive window is armed first, then the burst (or silence) is sent; what the ports
    received is acknowledged and given to the role: at once if the role is `reactive`, otherwise when the phase ends.
    Grants and bursts that come twice are dropped.

    Parameters
    ----------
    node : str
    num_ports : int
    schedule : Schedule
    roles : sequence of Role
    samp_rate : float
        For the time of bursts.
    fill : bool
        Send zeros in silent slots, so that a simulated network advances all nodes alike; False for a radio.
    silent_from : int, optional
        Simulated fault: from this slot on the node no longer reacts to anything.
    unacknowledged : mapping of slot to int
        Simulated fault: how many of the slot's acknowledgements are lost.
    """

    def __init__(self, node: str, num_ports: int, schedule: Schedule, roles: Sequence[Role], samp_rate: float,
                 fill: bool = True, silent_from: int | None = None, unacknowledged: dict[int, int] | None = None):
        lean_message_block.__init__(self, "role")
        self._schedule = schedule
        self._roles = tuple(roles)
        self._by_purpose = {purpose: role for role in roles for purpose in role.purposes}
        missing = sorted({slot.purpose for slot in schedule.slots} - set(self._by_purpose))
        if missing:
            raise ValueError(f"roles: node {node} has none for slots of purpose {missing}")
        self._rate = rate_ratio(samp_rate)
        silence = np.zeros(num_ports * schedule.slot_samples, np.complex64)
        self._silence = messages.vector_to_pmt(silence) if fill else None
        self._num_ports = num_ports
        self._silent_from = silent_from
        self._silent = False
        self._unacknowledged = dict(unacknowledged or {})
        self._granted: dict[tuple[int, int], Grant] = {}
        self._kept: list = []
        self._encoded: tuple[np.ndarray | None, object] = (None, None)
        self._identity = {"run": 0, "epoch": 0, "node": node}
        self._ack = messages.encode("ack", **self._identity)
        for port, handler in (("control", self.handle_control), ("rx", self.handle_rx)):
            self.message_port_register_in(pmt.intern(port))
            self.set_msg_handler(pmt.intern(port), handler)
        for port in ("tx", "arm", "status", "results", "end", "error"):
            self.message_port_register_out(pmt.intern(port))

    @guarded
    def handle_control(self, message):
        """React to a message of the scheduler."""
        kind = messages.kind(message)
        if kind == "end":
            self.message_port_pub(END, messages.DONE)
            self._post(SYSTEM, messages.DONE)
        elif self._silent:
            return
        elif kind == "grant":
            self._grant(message)
        elif kind == "begin":
            self._begin(message)
        elif kind == "query":
            self._status("alive")
        elif kind == "phase":
            self._publish_results(message)
        elif kind == "product":
            product = messages.product(message)
            for role in self._roles:
                role.update(product)
            self._status("taken", phase=product.phase)

    def _begin(self, message) -> None:
        self._granted.clear()
        self._kept.clear()
        self._identity |= {key: messages.get(message, key) for key in ("run", "epoch")}
        self._ack = messages.encode("ack", **self._identity)
        self._status("ready", hash=self._schedule.hash)

    def _grant(self, message) -> None:
        grants = messages.grants(message)
        fresh = [grant for grant in grants if (grant.slot, grant.attempt) not in self._granted]
        if self._silent_from is not None:
            fresh = [grant for grant in fresh if grant.slot < self._silent_from]
            self._silent = len(fresh) < len(grants)
        if len(fresh) == len(grants):
            self.message_port_pub(ARM, message)
        elif fresh:
            self.message_port_pub(ARM, messages.encode("grant", grants=messages.grants_to_pmt(fresh)))
        for grant in fresh:
            self._granted[grant.slot, grant.attempt] = grant
            slot = self._schedule.slots[grant.slot]
            role = self._by_purpose[slot.purpose]
            vector = self._encode(grant, role.transmit(slot, grant.start))
            if vector is not None:
                time = time_to_pmt(grant.start, self._rate)
                self.message_port_pub(TX, messages.transmit_burst(time, role.beam(slot), grant.slot, vector))

    def _encode(self, grant: Grant, samples: np.ndarray | None):
        """Encoded samples; a burst that is sent again and again is encoded once. None: nothing to send."""
        if samples is None:
            return self._silence
        if self._encoded[0] is not samples:
            num_ports, length = samples.shape
            longest = self._schedule.slot_samples
            if num_ports != self._num_ports or length > longest or (self._silence is not None and length != longest):
                raise ValueError(f"slot {grant.slot}: burst of {num_ports} ports x {length} samples, must be "
                                 f"{self._num_ports} ports x {longest} samples")
            self._encoded = (samples, messages.vector_to_pmt(samples))
        return self._encoded[1]

    @guarded
    def handle_rx(self, message):
        """Take what the ports received in a granted slot."""
        grant, status = messages.burst_head(message)
        key = (grant.slot, grant.attempt)
        if self._granted.get(key) != grant:
            return
        # The grant stays known as taken, so that a copy of it or of its burst is dropped.
        self._granted[key] = None
        if status == "ok":
            if self._by_purpose[self._schedule.slots[grant.slot].purpose].reactive:
                self._receive(message)
            else:
                self._kept.append(message)
        if self._unacknowledged.get(grant.slot, 0):
            self._unacknowledged[grant.slot] -= 1
        else:
            self.message_port_pub(STATUS, messages.ack_to_pmt(self._ack, grant, status))

    def _receive(self, message) -> None:
        burst = messages.burst(message)
        slot = self._schedule.slots[burst.grant.slot]
        self._by_purpose[slot.purpose].receive(slot, burst.grant, burst.samples)

    def _publish_results(self, message) -> None:
        grants = messages.grants(message)
        phase = messages.get(message, "phase")
        for kept in self._kept:
            self._receive(kept)
        self._kept.clear()
        # A phase belongs to one role.
        values = self._by_purpose[self._schedule.slots[grants[0].slot].purpose].results(grants)
        self.message_port_pub(RESULTS, messages.encode("results", phase=phase, values=values or {}, **self._identity))

    def _status(self, kind: str, **fields) -> None:
        self.message_port_pub(STATUS, messages.encode(kind, **self._identity, **fields))
