# SPDX-License-Identifier: GPL-3.0-or-later
"""The flowgraphs at the two ends of a link: bursts and network at the coordinator's, roles at the other."""

from collections.abc import Callable, Sequence

import numpy as np
import pmt
from gnuradio import gr

from .assembly import Assembly
from .blocks import messages
from .blocks.host_bridge import host_bridge
from .blocks.host_radio import host_radio
from .blocks.node import node
from .blocks.role import role
from .flowgraphs import common_processor, node_of
from .protocols.slots import Grant, Product
from .radio_settings import RadioSettings

TO_AIR = ("status", "results", "tx", "arm")  # ports of a role, without its `control` and `rx`
FROM_AIR = ("control", "rx")
TO_SCHEDULER, FROM_SCHEDULER = ("status", "results"), ("control",)  # of a node
RECORD = "record"


class Links:
    """The bridges of a flowgraph by name, and how their messages leave.

    Parameters
    ----------
    send : callable(to, message)
    """

    def __init__(self, send: Callable[[str, object], None]):
        self.send = send
        self._bridges: dict[str, host_bridge] = {}

    def bridge(self, name: str, inputs: Sequence[str], outputs: Sequence[str]) -> host_bridge:
        """New bridge to the one of that name at the other end."""
        self._bridges[name] = host_bridge(name, self.send, inputs, outputs)
        return self._bridges[name]

    def radio(self, name: str, settings: RadioSettings) -> host_radio:
        """New bridge to a radio at the other end."""
        key = radio_key(name)
        self._bridges[key] = host_radio(key, settings, self.send)
        return self._bridges[key]

    def deliver(self, to: str, message) -> None:
        """Publish a message from the other end by the bridge and port that it is for."""
        name, _, port = to.rpartition("/")
        if name not in self._bridges:
            raise ValueError(f"message to {to!r}: the bridges here are {sorted(self._bridges)}")
        self._bridges[name].deliver(port, message)

    def fail(self, text: str) -> None:
        """Report an error to the scheduler of the flowgraph, if it is here."""
        for bridge in list(self._bridges.values())[:1]:
            bridge.deliver("status", pmt.intern(text))


class RemoteRecorder:
    """Has what a node receives here recorded at the other end; takes the place of a `NodeRecorder`."""

    def __init__(self, node: str, send: Callable[[str, object], None]):
        self._to, self._send = f"{RECORD}/{node}", send

    def received(self, grants: Sequence[Grant], beams: Sequence[int], samples: np.ndarray | None,
                 status: str = "ok") -> None:
        """Record attempts that are over."""
        fields = {} if samples is None else {"samples": samples}
        self._send(self._to, messages.encode("received", grants=messages.grants_to_pmt(grants),
                                             beams=np.array(beams, np.int64), status=status, **fields))

    def phase_done(self, phase: str, grants: Sequence[Grant]) -> None:
        """Note that a phase has ended."""
        self._send(self._to, messages.encode("phase", phase=phase, grants=messages.grants_to_pmt(grants)))

    def product(self, product: Product) -> None:
        """Note what the phase produced."""
        self._send(self._to, messages.product_to_pmt(product))


def record(recorder, message) -> None:
    """Give a `NodeRecorder` what a `RemoteRecorder` has sent."""
    match messages.kind(message):
        case "received":
            status = messages.get(message, "status")
            samples = messages.get(message, "samples") if status == "ok" else None
            recorder.received(messages.grants(message), messages.get(message, "beams"), samples, status)
        case "phase":
            recorder.phase_done(messages.get(message, "phase"), messages.grants(message))
        case "product":
            recorder.product(messages.product(message))


def radio_key(name: str) -> str:
    """Name of a radio's bridge: a node may have the radio's name."""
    return f"radio {name}"


class radios_flowgraph(gr.top_block):
    """Some nodes with their radios.

    Parameters
    ----------
    assembly, nodes, links, record
        See `roles_flowgraph`.
    """

    def __init__(self, assembly: Assembly, nodes: Sequence[str], links: Links, record: bool):
        from .blocks.usrp_array import usrp_array  # needs UHD, and the simulation does not

        gr.top_block.__init__(self, "radios")
        self.schedule = assembly.schedule
        self.nodes = {name: node_of(assembly, assembly.testbed.node(name),
                                    RemoteRecorder(name, links.send) if record else None) for name in nodes}
        self.radios = {name: usrp_array(settings, name) for name, settings in assembly.radios().items()
                       if settings.nodes.keys() <= self.nodes.keys()}
        self.bridges = [self._connect_node(name, block, links) for name, block in self.nodes.items()]
        self.bridges += [self._connect_radio(name, block, links) for name, block in self.radios.items()]
        parts = [part for block in self.nodes.values() for part in block.members()]
        for block in (*self.bridges, *parts):
            block.set_processor_affinity([common_processor()])

    def _connect_node(self, name: str, block: node, links: Links) -> host_bridge:
        bridge = links.bridge(name, TO_SCHEDULER, FROM_SCHEDULER)
        self.msg_connect(bridge, "control", block, "control")
        for port in TO_SCHEDULER:
            self.msg_connect(block, port, bridge, port)
        return bridge

    def _connect_radio(self, name: str, radio, links: Links) -> host_bridge:
        bridge = links.bridge(radio_key(name), ("status",), FROM_SCHEDULER)
        self.msg_connect(bridge, "control", radio, "control")
        self.msg_connect(radio, "status", bridge, "status")
        for node_name in radio.settings.nodes:
            block = self.nodes[node_name]
            self.msg_connect(radio, "events", block, "events")
            for own, stream in enumerate(radio.settings.streams(node_name)):
                self.connect((block, own), (radio, stream))
                self.connect((radio, stream), (block, own))
        return bridge


class roles_flowgraph(gr.top_block):
    """The roles of some nodes of a simulated network that is elsewhere.

    Parameters
    ----------
    assembly : Assembly
    nodes : sequence of str
    links : Links
        To the coordinator.
    record : bool
        Whether the coordinator records.
    """

    def __init__(self, assembly: Assembly, nodes: Sequence[str], links: Links, record: bool):
        gr.top_block.__init__(self, "roles")
        self.schedule = assembly.schedule
        self.roles = {}
        for name in nodes:
            recorder = RemoteRecorder(name, links.send) if record else None
            bridge = links.bridge(name, TO_AIR, FROM_AIR)
            block = role(name, assembly.testbed.node(name).num_ports, self.schedule, assembly.roles(name),
                         assembly.testbed.samp_rate, recorder=recorder, **assembly.faults(name))
            for port in FROM_AIR:
                self.msg_connect(bridge, port, block, port)
            for port in TO_AIR:
                self.msg_connect(block, port, bridge, port)
            self.msg_connect(block, "error", bridge, "status")
            self.roles[name] = block, bridge
        for block in (block for pair in self.roles.values() for block in pair):
            block.set_processor_affinity([common_processor()])
