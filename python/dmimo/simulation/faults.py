# SPDX-License-Identifier: GPL-3.0-or-later
"""Faults that a simulated network can inject, so that tests see how the rest of the system takes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

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


class FaultInjector:
    """Keeps count of the slots and does to the samples of a network's ports what the faults say.

    Parameters
    ----------
    faults : those that are not physical are left out.
    ports : node name -> which of the P ports are the node's.
    """

    def __init__(self, faults: Sequence[Fault], ports: Mapping[str, slice]):
        self._faults = [fault for fault in faults if fault.is_physical]
        for fault in self._faults:
            if fault.node not in ports:
                raise ValueError(f"{fault}: the network has the nodes {', '.join(ports)}")
            rows = ports[fault.node]
            if not 0 <= fault.port < rows.stop - rows.start:
                raise ValueError(f"{fault}: port must be within 0 ... {rows.stop - rows.start - 1}")
        self._ports = ports
        self._slots = 0
        self._dead_from: dict[int, int] = {}  # port -> absolute sample
        self._nans: list[tuple[int, int]] = []  # port, absolute sample

    def begin_slot(self, start: int, num: int) -> tuple[str, ...]:
        """Count a slot of `num` samples from absolute sample `start`; return the nodes that lose what they receive."""
        slot, self._slots = self._slots, self._slots + 1
        self._nans = []
        lost = []
        for fault in self._faults:
            if not fault.hits(slot):
                continue
            port = self._ports[fault.node].start + fault.port
            if fault.kind == "lost_slot":
                lost.append(fault.node)
            elif fault.kind == "dead_port":
                self._dead_from.setdefault(port, start)
            else:
                self._nans.append((port, start + num // 2))
        return tuple(lost)

    def silence(self, samples: np.ndarray, start: int) -> None:
        """Set dead ports' samples, (P, n) from absolute sample `start` on, to zero."""
        for port, since in self._dead_from.items():
            samples[port, max(0, since - start) :] = 0

    def spoil(self, samples: np.ndarray, start: int) -> None:
        """Write the NaNs into `samples`, (P, n) from absolute sample `start` on."""
        for port, sample in self._nans:
            if start <= sample < start + samples.shape[1]:
                samples[port, sample - start] = np.nan
