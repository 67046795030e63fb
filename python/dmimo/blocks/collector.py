# SPDX-License-Identifier: GPL-3.0-or-later
"""Gathers what all nodes report at the end of a phase and publishes the product."""

import pmt
from gnuradio import gr

from ..protocols.slots import Collector
from . import messages
from .guard import guarded

PRODUCTS = pmt.intern("products")


class collector(gr.basic_block):
    """Runs a protocol's collector when the results of a phase are complete, in whatever order messages arrive.

    Parameters
    ----------
    collector : Collector
    nodes : sequence of str
        Nodes whose results are awaited.
    name : str
    """

    def __init__(self, collector: Collector, nodes, name: str = "collector"):
        gr.basic_block.__init__(self, name, None, None)
        self.member = collector
        self._nodes = frozenset(nodes)
        self._results: dict[str, dict[str, dict[str, object]]] = {}
        self._grants: dict[str, list] = {}
        self._identity: dict[str, int] = {}
        for port, handler in (("phases", self.handle_phases), ("results", self.handle_results)):
            self.message_port_register_in(pmt.intern(port))
            self.set_msg_handler(pmt.intern(port), handler)
        for port in ("products", "error"):
            self.message_port_register_out(pmt.intern(port))

    @guarded
    def handle_phases(self, message):
        """Learn which attempts count, take products of other phases, finish with the run."""
        kind = messages.kind(message)
        if kind == "phase" and messages.get(message, "phase") in self.member.phases:
            self._grants[messages.get(message, "phase")] = messages.grants(message)
            self._produce(messages.get(message, "phase"))
        elif kind == "product":
            self.member.update(messages.product(message))
        elif kind == "begin":
            self._identity = {key: messages.get(message, key) for key in ("run", "epoch")}
            self._results.clear()
            self._grants.clear()
        elif kind == "end":
            self.ended()
            self._post(messages.SYSTEM, messages.DONE)

    @guarded
    def handle_results(self, message):
        """Keep a node's results."""
        phase = messages.get(message, "phase")
        ours = messages.run(message) in (self._identity.get("run"), None)
        if ours and phase in self.member.phases:
            self._results.setdefault(phase, {})[messages.get(message, "node")] = messages.get(message, "values")
            self._produce(phase)

    def _produce(self, phase: str) -> None:
        results = self._results.get(phase, {})
        if phase not in self._grants or set(results) < self._nodes:
            return
        heard = {node: values for node, values in sorted(results.items()) if values}
        product = self.member.produce(phase, self._grants.pop(phase), heard)
        del self._results[phase]
        self.finish(product)
        self.message_port_pub(PRODUCTS, messages.product_to_pmt(product, **self._identity))

    @property
    def epoch(self) -> int:
        """Epoch of the run under way: what is measured holds in it only."""
        return self._identity.get("epoch", 0)

    def finish(self, product) -> None:
        """Hook: what a block does with a product before it is published."""

    def ended(self) -> None:
        """Hook: what a block does when the run is over."""
