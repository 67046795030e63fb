# SPDX-License-Identifier: GPL-3.0-or-later
"""From a testbed file to what its radios are set to, and to what removes their loop delays."""

from collections.abc import Iterator, Mapping
from functools import cached_property

from .protocols import loop_delay
from .protocols.slots import Collector, Role, Slot
from .radio_settings import RadioPort, RadioSettings
from .testbed import Node, Radio, Testbed
from .testbed_sections import per_port


def nodes_of(bed: Testbed, radio: str) -> list[Node]:
    """Nodes of a radio, in the order of the file."""
    return [node for node in bed.nodes if bed.usrp.radio_of(node) == radio]


def channels(bed: Testbed, radio: str) -> dict[str, tuple[int, ...]]:
    """Channels of a radio's nodes: those that the file names, and the next free ones where it names none."""
    nodes = nodes_of(bed, radio)
    taken = {channel for node in nodes for channel in node.radio.channels}
    free = _others(taken)
    return {node.name: node.radio.channels or tuple(next(free) for _ in range(node.num_ports)) for node in nodes}


def _others(taken: set[int]) -> Iterator[int]:
    """Channels that are not taken, in ascending order."""
    channel = 0
    while True:
        if channel not in taken:
            yield channel
        channel += 1


def settings(bed: Testbed) -> dict[str, RadioSettings]:
    """Settings of every radio that a node belongs to, by name, in the order of the file."""
    return {radio.name: _settings(bed, radio) for radio in bed.usrp.radios if nodes_of(bed, radio.name)}


def _settings(bed: Testbed, radio: Radio) -> RadioSettings:
    own = channels(bed, radio.name)
    return RadioSettings(
        device_args=radio.args, samp_rate=bed.samp_rate,
        nodes={node.name: _ports(bed, node, own[node.name]) for node in nodes_of(bed, radio.name)},
        clock_source=radio.clock_source, time_source=radio.time_source, tx_subdevices=radio.tx_subdevs,
        rx_subdevices=radio.rx_subdevs, settle_s=bed.usrp.settle_s)


def _ports(bed: Testbed, node: Node, own: tuple[int, ...]) -> list[RadioPort]:
    radio, num = node.radio, node.num_ports
    tx_gains_db, rx_gains_db = node.gains_db(bed.frontend)
    columns: Mapping[str, tuple] = {
        "channel": own, "center_freq": per_port(radio.center_freqs, num, bed.center_freq),
        "tx_gain_db": tx_gains_db, "rx_gain_db": rx_gains_db,
        "tx_antenna": per_port(radio.tx_antennas, num, ""), "rx_antenna": per_port(radio.rx_antennas, num, "")}
    return [RadioPort(**dict(zip(columns, row, strict=True))) for row in zip(*columns.values(), strict=True)]


class LoopDelays:
    """What removes the delays between transmitters and receivers: measured in a run's first phase, or given.

    Parameters
    ----------
    bed : Testbed
        With a `usrp` section.
    """

    def __init__(self, bed: Testbed):
        self._bed = bed

    @cached_property
    def plan(self) -> loop_delay.LoopDelayPlan | None:
        """Plan of the measurement, None where the delays are given."""
        bed = self._bed
        if bed.usrp.loop_delay == "given":
            return None
        num_ports = {node.name: node.num_ports for node in bed.nodes}
        return loop_delay.LoopDelayPlan(tuple(num_ports), num_ports, bed.slots.slot_samples)

    def phases(self) -> list[tuple[str, int, list[Slot]]]:
        """Phases of the measurement."""
        return [] if self.plan is None else [(loop_delay.PHASE, self._bed.slots.window, self.plan.slots())]

    def role(self, name: str) -> Role:
        """New role of a node."""
        if self.plan is not None:
            return loop_delay.LoopDelayRole(name, self.plan)
        node = self._bed.node(name)
        return loop_delay.GivenDelays(per_port(node.radio.loop_delays_samples, node.num_ports, 0))

    def collectors(self) -> dict[str, Collector]:
        """New collectors by name."""
        return {} if self.plan is None else {loop_delay.PHASE: loop_delay.LoopDelayCollector(self.plan)}
