# SPDX-License-Identifier: GPL-3.0-or-later
"""Channels of CARS bursts and what was sent in them in, two-way coefficients out."""

from dataclasses import dataclass, field

import numpy as np
import pmt

from ..core.cars import equivalent_channel, midpoint_s
from ..core.ofdm_exchange import OfdmExchange
from . import messages
from .guard import guarded
from .lean import lean_message_block

COEFFICIENTS, DROPPED = pmt.intern("coefficients"), pmt.intern("dropped")
WAITING_SLOTS = 64  # for the channels or the metadata of which to come; messages on different ports overtake each other


@dataclass
class _Slot:
    """What has come of a slot: channels as in `csi`, metadata of responders by their first port."""

    csi: object = None
    metadata: dict[int, object] = field(default_factory=dict)


class cars_reader(lean_message_block):
    """Two-way coefficients of the links of this node, one that sounded, from the answers that it has received.

    What was received comes on `csi`, from an `ofdm_sounder` with purpose "cars"; scales and times on `metadata`, from
    every `cars_responder` that answers in the same slots. When all of a slot has come, in any order, a dictionary goes
    out on `coefficients`: `start`, of the answer's slot; `c` (num_ports, Q, K / Q), nan where a link is not used, on
    the own ports of `OfdmExchange.response_subcarriers`; `used` (num_ports, Q), links that were heard in both
    directions; `sample` (Q,), to which c belongs, halfway between sounding and answer; `noise_var` (num_ports, Q), of
    an entry of c, from the answer alone; `limited` (num_ports, Q), elements in fades; `reads_amplitude`, whether that
    of the others is C's. c is the channel to this node over that from it: C = G / H where TRPs sound (CSI-RS), 1 / C
    where UEs do (SRS).

    A slot that is still incomplete when `WAITING_SLOTS` others wait is named on `dropped` by `reason` and `start`.

    Parameters
    ----------
    exchange : OfdmExchange
    num_ports, first_port : int
        Ports of this node among the sounding ones.
    num_responders : int
        Nodes that answer in the same slots.
    """

    def __init__(self, exchange: OfdmExchange, num_ports: int = 1, first_port: int = 0, num_responders: int = 1):
        if num_responders < 1:
            raise ValueError(f"num_responders = {num_responders}: must be at least 1")
        ports = exchange.ports("sounding", first_port, num_ports)
        lean_message_block.__init__(self, "cars_reader")
        self._mapping, self._num_responders = exchange.mapping, num_responders
        self._ports = np.arange(ports.start, ports.stop)
        self._slots: dict[int, _Slot] = {}
        for port, handler in (("csi", self.handle_csi), ("metadata", self.handle_metadata)):
            self.message_port_register_in(pmt.intern(port))
            self.set_msg_handler(pmt.intern(port), handler)
        for port in ("coefficients", "dropped", "error"):
            self.message_port_register_out(pmt.intern(port))

    def start(self):
        """Forget what an earlier start has left."""
        self._slots.clear()
        return super().start()

    @guarded
    def handle_csi(self, message):
        """Take the channels of a slot."""
        if messages.get(message, "purpose") != "cars":
            raise ValueError(f"csi of purpose {messages.get(message, 'purpose')!r}: must be 'cars'")
        start = messages.get(message, "start")
        self._slot(start).csi = message
        self._publish_complete(start)

    @guarded
    def handle_metadata(self, message):
        """Take what a responder sends in a slot."""
        if messages.kind(message) != "cars":
            raise ValueError(f"metadata of type {messages.kind(message)!r}: must be 'cars'")
        start = messages.get(message, "start")
        self._slot(start).metadata[messages.get(message, "first_port")] = message
        self._publish_complete(start)

    def _slot(self, start: int) -> _Slot:
        slot = self._slots.setdefault(start, _Slot())
        if len(self._slots) > WAITING_SLOTS:
            late = min(self._slots)
            lacking = self._slots.pop(late)
            reason = "no channels" if lacking.csi is None else (
                f"metadata of {len(lacking.metadata)} of {self._num_responders} responders")
            self.message_port_pub(DROPPED, messages.encode("dropped", reason=reason, start=late))
        return slot

    def _publish_complete(self, start: int) -> None:
        slot = self._slots.get(start)
        if slot is None or slot.csi is None or len(slot.metadata) < self._num_responders:
            return
        del self._slots[start]
        count, mapping = len(self._ports), self._mapping
        scale, limited = np.zeros((mapping.num_responding, count)), np.zeros((mapping.num_responding, count), int)
        sample = np.full(mapping.num_responding, np.nan)
        for first, cars in slot.metadata.items():
            rows = slice(first, first + len(messages.get(cars, "scale")))
            scale[rows] = messages.get(cars, "scale")[:, self._ports]
            limited[rows] = messages.get(cars, "limited")[:, self._ports]
            sample[rows] = midpoint_s(messages.get(cars, "sounding_sample"), messages.get(cars, "sample"))
        h, heard, noise_var = (messages.get(slot.csi, key) for key in ("h", "heard", "noise_var"))
        used = heard[np.arange(count), self._ports].astype(bool) & (scale.T > 0)
        scale = np.where(used, scale.T, 1.0)
        c = equivalent_channel(h[np.arange(count), self._ports], 1.0, scale)
        self.message_port_pub(COEFFICIENTS, messages.encode(
            "coefficients", start=start, c=np.where(used[..., None], c, np.nan), used=used, sample=sample,
            noise_var=np.where(used, noise_var[:, None] / scale**2, np.nan), limited=limited.T,
            reads_amplitude=all(messages.get(cars, "reads_amplitude") for cars in slot.metadata.values())))
