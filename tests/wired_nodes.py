# SPDX-License-Identifier: GPL-3.0-or-later
"""Wires a simulated run whose nodes consist of role, transmitter and receiver, as a GRC user may do."""

from gnuradio import dmimo


def wire_nodes(top, assembly, network, make_role, collectors):
    """Connect `top.scheduler`, `top.air`, these collectors and all nodes; returns the nodes' blocks, to be kept."""
    bed, parts = assembly.testbed, []
    for node in bed.nodes:
        role = make_role(assembly=assembly, name=node.name)
        transmitter = dmimo.burst_transmitter(node.num_ports)
        receiver = dmimo.burst_receiver(node.name, node.num_ports, bed.slots.slot_samples, bed.samp_rate)
        parts += [role, transmitter, receiver]
        ports = network.ports(node.name)
        for own, port in enumerate(range(ports.start, ports.stop)):
            top.connect((transmitter, own), (top.air, port), (receiver, own))
        top.msg_connect(top.scheduler, "control", role, "control")
        top.msg_connect(role, "tx", transmitter, "bursts")
        top.msg_connect(role, "end", transmitter, "end")
        top.msg_connect(role, "arm", receiver, "grants")
        top.msg_connect(receiver, "bursts", role, "rx")
        for source, port in ((role, "status"), (role, "error"), (receiver, "error")):
            top.msg_connect(source, port, top.scheduler, "status")
        for collector in collectors:
            top.msg_connect(role, "results", collector, "results")
    for collector in collectors:
        top.msg_connect(top.scheduler, "phases", collector, "phases")
        top.msg_connect(collector, "products", top.scheduler, "products")
        top.msg_connect(collector, "error", top.scheduler, "status")
    return parts
