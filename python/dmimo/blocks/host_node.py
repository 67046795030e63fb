# SPDX-License-Identifier: GPL-3.0-or-later
"""A node whose role runs on another host, while its bursts are sent and received here."""

from gnuradio import gr

from ..protocols.slots import Schedule
from .burst_receiver import burst_receiver
from .burst_transmitter import burst_transmitter
from .host_bridge import host_bridge


class host_node(gr.hier_block2):
    """Takes the place of a `node` in the flowgraph of a simulated network: transmitter and receiver, without the role.

    Parameters
    ----------
    name : str
    num_ports : int
    schedule : Schedule
    samp_rate : float
    bridge : host_bridge
        To the role, with the inputs `control` and `rx` and the outputs `status`, `results`, `tx` and `arm`.
    """

    def __init__(self, name: str, num_ports: int, schedule: Schedule, samp_rate: float, bridge: host_bridge):
        signature = gr.io_signature(num_ports, num_ports, gr.sizeof_gr_complex)
        gr.hier_block2.__init__(self, f"host node {name}", signature, signature)
        for port in ("status", "results"):
            self.message_port_register_hier_out(port)
        self.message_port_register_hier_in("control")
        self.bridge = bridge
        self.transmitter = burst_transmitter(num_ports, schedule.slot_samples)
        self.receiver = burst_receiver(name, num_ports, schedule.slot_samples, samp_rate)
        for port in range(num_ports):
            self.connect((self, port), (self.receiver, port))
            self.connect((self.transmitter, port), (self, port))
        self.msg_connect(self, "control", bridge, "control")
        self.msg_connect(bridge, "end", self.transmitter, "end")
        self.msg_connect(bridge, "tx", self.transmitter, "bursts")
        self.msg_connect(bridge, "arm", self.receiver, "grants")
        self.msg_connect(self.receiver, "bursts", bridge, "rx")
        self.msg_connect(bridge, "results", self, "results")
        self.msg_connect(bridge, "status", self, "status")
        failing = [self.receiver, *([self.transmitter] if num_ports > 1 else [])]
        for block in failing:
            self.msg_connect(block, "error", self, "status")

    def members(self):
        """Blocks inside, for a common processor affinity."""
        return [self.bridge, self.receiver, *self.transmitter.members()]
