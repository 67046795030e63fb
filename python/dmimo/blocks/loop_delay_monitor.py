# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks the loop delays that the ports of radios measure of themselves."""

from ..assembly import Assembly
from ..protocols.slots import CollectorGroup, Product
from .collector import collector


class loop_delay_monitor(collector):
    """Publishes the loop delays that all receivers remove, and ends a run in which a port does not hear itself.

    It has nothing to do, and may stay, where the delays are given in the testbed file.

    Parameters
    ----------
    assembly : Assembly
        Of a testbed with `frontend: usrp`.

    Attributes
    ----------
    delays : dict of port name to int
        What was measured [samples]; empty until then.
    """

    def __init__(self, assembly: Assembly):
        if assembly.loop_delays is None:
            raise ValueError("assembly: the testbed's frontend is not usrp, so that there are no loop delays")
        group = CollectorGroup(assembly.loop_delays.collectors())
        collector.__init__(self, group, assembly.schedule.nodes, "loop_delay_monitor")
        self._ports = [f"{node.name}:{port}" for node in assembly.testbed.nodes for port in range(node.num_ports)]
        self.delays: dict[str, int] = {}

    def finish(self, product: Product) -> None:
        """Keep the delays."""
        if product.trusted:
            self.delays = {name: int(delay) for name, delay in zip(self._ports, product.values["loop_delays"],
                                                                   strict=True)}
