# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults that a simulated network can inject, so that tests see how the rest of the system takes them."""

from dataclasses import dataclass

NETWORK_FAULTS: tuple[str, ...] = ("lost_slot", "dead_port", "nan")


@dataclass(frozen=True)
class Fault:
    """One fault of one node. Slots are counted from 0 in the order in which the network sees them, in its whole life.

    kind : "lost_slot": what the node receives in the slot is missing, as after an overflow of a USRP;
        "dead_port": from the slot on, the port radiates nothing and receives only noise (`count` plays no part);
        "nan": the middle sample that the port receives in the slot is NaN;
        other kinds concern the roles that run on the nodes; the network ignores them.
    node, slot, port : where; `port` plays no part in a lost slot.
    count : number of consecutive slots.
    """

    kind: str
    node: str
    slot: int
    port: int = 0
    count: int = 1

    @property
    def is_physical(self) -> bool:
        """Return whether the network injects it."""
        return self.kind in NETWORK_FAULTS

    def hits(self, slot: int) -> bool:
        """Return whether the fault is present in slot number `slot`."""
        return self.slot <= slot and (self.kind == "dead_port" or slot < self.slot + self.count)
