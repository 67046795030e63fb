# SPDX-License-Identifier: GPL-3.0-or-later
"""One node of a distributed array: role, burst transmitter and burst receiver in a block."""

from gnuradio import gr

from ..protocols.slots import Schedule
from .burst_receiver import burst_receiver
from .burst_transmitter import burst_transmitter
from .role import role


class node(gr.hier_block2):
    """Role, transmitter and receiver of one node.

    Streams to and from the air, one message port to the scheduler (`control` in, `status` out) and one for `results`.
    On a radio `events` takes what it says of bursts, and `beam` tells an external beamformer the beam of every slot.

    Parameters
    ----------
    name : str
    num_ports : int
    schedule : Schedule
    roles : sequence of Role
    samp_rate : float
    fill : bool
        Zeros in silent slots: True for a simulated network, False for a radio.
    silent_from, unacknowledged
        Simulated faults, see `role`.
    recorder : NodeRecorder, optional
        Records what the node receives.
    amplitude : float
        What a sample of unit power becomes on a radio, whose full scale is 1.
    """

    def __init__(self, name: str, num_ports: int, schedule: Schedule, roles, samp_rate: float, fill: bool = True,
                 silent_from: int | None = None, unacknowledged: dict[int, int] | None = None, recorder=None,
                 amplitude: float = 1.0):
        signature = gr.io_signature(num_ports, num_ports, gr.sizeof_gr_complex)
        gr.hier_block2.__init__(self, f"node {name}", signature, signature)
        for port in ("status", "results", "beam"):
            self.message_port_register_hier_out(port)
        for port in ("control", "events"):
            self.message_port_register_hier_in(port)
        slot_samples = schedule.slot_samples
        self.role = role(name, num_ports, schedule, roles, samp_rate, fill, silent_from, unacknowledged, recorder,
                         amplitude)
        self.transmitter = burst_transmitter(num_ports, slot_samples)
        self.receiver = burst_receiver(name, num_ports, slot_samples, samp_rate)
        for port in range(num_ports):
            self.connect((self, port), (self.receiver, port))
            self.connect((self.transmitter, port), (self, port))
        self.msg_connect(self, "control", self.role, "control")
        self.msg_connect(self, "events", self.role, "events")
        self.msg_connect(self.role, "end", self.transmitter, "end")
        self.msg_connect(self.role, "tx", self.transmitter, "bursts")
        self.msg_connect(self.role, "arm", self.receiver, "grants")
        self.msg_connect(self.receiver, "bursts", self.role, "rx")
        self.msg_connect(self.role, "results", self, "results")
        self.msg_connect(self.role, "status", self, "status")
        self.msg_connect(self.role, "beam", self, "beam")
        failing = [self.role, self.receiver, *([self.transmitter] if num_ports > 1 else [])]
        for block in failing:
            self.msg_connect(block, "error", self, "status")

    def members(self):
        """Blocks inside, for a common processor affinity."""
        return [self.role, self.receiver, *self.transmitter.members()]
