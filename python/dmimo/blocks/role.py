# SPDX-License-Identifier: GPL-3.0-or-later
"""The message side of a node: grants in, bursts out, received bursts in, acknowledgements and results out."""

from collections.abc import Sequence

import numpy as np
import pmt
from gnuradio import gr

from ..protocols.slots import Grant, Role, Schedule
from . import messages
from .guard import guarded

TX, ARM, STATUS, RESULTS = (pmt.intern(name) for name in ("tx", "arm", "status", "results"))


class role(gr.basic_block):
    """Runs protocol roles for one node: each acts in the slots whose purpose it owns.

    For every granted slot the receive window is armed first, then the burst (or silence) is sent; what the ports
    received is given to the role and acknowledged. Grants and bursts that come twice are dropped.

    Parameters
    ----------
    node : str
    num_ports : int
    schedule : Schedule
    roles : sequence of Role
    silent_from : int, optional
        Simulated fault: from this slot on the node no longer reacts to anything.
    unacknowledged : mapping of slot to int
        Simulated fault: how many of the slot's acknowledgements are lost.
    """

    def __init__(self, node: str, num_ports: int, schedule: Schedule, roles: Sequence[Role],
                 silent_from: int | None = None, unacknowledged: dict[int, int] | None = None):
        gr.basic_block.__init__(self, "role", None, None)
        self._node = node
        self._schedule = schedule
        self._roles = tuple(roles)
        self._by_purpose = {purpose: role for role in roles for purpose in role.purposes}
        missing = sorted({slot.purpose for slot in schedule.slots} - set(self._by_purpose))
        if missing:
            raise ValueError(f"roles: node {node} has none for slots of purpose {missing}")
        self._header = messages.burst_header(node, num_ports)
        self._silent_from = silent_from
        self._silent = False
        self._unacknowledged = dict(unacknowledged or {})
        self._granted: dict[tuple[int, int], Grant] = {}
        self._encoded: tuple[np.ndarray | None, object] = (None, None)
        self._ack = messages.encode("ack", node=node)
        for port, handler in (("control", self.handle_control), ("rx", self.handle_rx)):
            self.message_port_register_in(pmt.intern(port))
            self.set_msg_handler(pmt.intern(port), handler)
        for port in ("tx", "arm", "status", "results", "error"):
            self.message_port_register_out(pmt.intern(port))

    @guarded
    def handle_control(self, message):
        """React to a message of the scheduler."""
        kind = messages.kind(message)
        if kind == "end":
            self._post(messages.SYSTEM, messages.DONE)
        elif self._silent:
            return
        elif kind == "grant":
            self._grant(message)
        elif kind == "begin":
            self._granted.clear()
            self._status("ready", hash=self._schedule.hash)
        elif kind == "query":
            self._status("alive")
        elif kind == "phase":
            self._publish_results(message)
        elif kind == "product":
            product = messages.product(message)
            for role in self._roles:
                role.update(product)
            self._status("taken", phase=product.phase)

    def _grant(self, message) -> None:
        grants = messages.grants(message)
        if self._silent_from is not None and any(grant.slot >= self._silent_from for grant in grants):
            self._silent = True
            return
        fresh = [grant for grant in grants if (grant.slot, grant.attempt) not in self._granted]
        if len(fresh) == len(grants):
            self.message_port_pub(ARM, message)
        elif fresh:
            self.message_port_pub(ARM, messages.encode("grant", grants=messages.grants_to_pmt(fresh)))
        for grant in fresh:
            self._granted[grant.slot, grant.attempt] = grant
            slot = self._schedule.slots[grant.slot]
            role = self._by_purpose[slot.purpose]
            samples = role.transmit(slot, grant.start)
            self.message_port_pub(TX, messages.burst_to_pmt(self._header, grant, self._encode(samples),
                                                            beam=role.beam(slot), purpose=slot.purpose))

    def _encode(self, samples: np.ndarray | None):
        """Encoded samples; a burst that is sent again and again is encoded once."""
        if samples is None:
            return messages.EMPTY_BURST
        if self._encoded[0] is not samples:
            self._encoded = (samples, messages.vector_to_pmt(samples))
        return self._encoded[1]

    @guarded
    def handle_rx(self, message):
        """Take what the ports received in a granted slot."""
        burst = messages.burst(message)
        key = (burst.grant.slot, burst.grant.attempt)
        if self._silent or self._granted.get(key) != burst.grant:
            return
        # The grant stays known as taken, so that a copy of it or of its burst is dropped.
        self._granted[key] = None
        status = burst.status
        if status == "ok" and not np.isfinite(burst.samples.sum()):
            status = "samples are not finite"
        if status == "ok":
            slot = self._schedule.slots[burst.grant.slot]
            self._by_purpose[slot.purpose].receive(slot, burst.grant, burst.samples)
        if self._unacknowledged.get(burst.grant.slot, 0):
            self._unacknowledged[burst.grant.slot] -= 1
            return
        ack = pmt.dict_add(self._ack, messages.SLOT, pmt.from_long(burst.grant.slot))
        ack = pmt.dict_add(ack, messages.ATTEMPT, pmt.from_long(burst.grant.attempt))
        self.message_port_pub(STATUS, pmt.dict_add(ack, messages.STATUS, pmt.intern(status)))

    def _publish_results(self, message) -> None:
        grants = messages.grants(message)
        phase = messages.get(message, "phase")
        # A phase belongs to one role.
        values = self._by_purpose[self._schedule.slots[grants[0].slot].purpose].results(grants)
        self.message_port_pub(RESULTS, messages.encode("results", node=self._node, phase=phase, values=values or {}))

    def _status(self, kind: str, **fields) -> None:
        self.message_port_pub(STATUS, messages.encode(kind, node=self._node, **fields))
