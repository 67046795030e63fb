# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs without GNU Radio as radios make them: bursts are confirmed late, and some are not sent."""

import numpy as np
from gnuradio.dmimo.direct import DirectRun
from gnuradio.dmimo.protocols.scheduler import SlotScheduler

LAG = 3  # slots after which a burst is confirmed, in lock-step


class Muted:
    """A network in which some nodes send nothing; then at least a little noise is received."""

    def __init__(self, network):
        self._network, self.muted, self._rng = network, (), np.random.default_rng(5)

    def __getattr__(self, name):
        return getattr(self._network, name)

    def process(self, sent, start, beams, **options):
        for node in self.muted:
            sent[self._network.ports(node)] = 0
        received = self._network.process(sent, start, beams, **options)
        if self.muted:
            received = received + 1e-6 * self._rng.normal(size=(*received.shape, 2)).view(complex)[..., 0]
        return received.astype(np.complex64)


class RadioRun(DirectRun):
    """A direct run; `unsent` holds (slot, attempt, node) of bursts that are not sent, which is said of their port 0."""

    def __init__(self, schedule, network, *parts, unsent=(), **options):
        super().__init__(schedule, network, *parts, **options)
        self._unsent = set(unsent)
        self._ports = {name: len(range(*network.ports(name).indices(network.num_ports))) for name in schedule.nodes}
        self._network = Muted(network)
        self._scheduler = SlotScheduler(schedule, confirmed=self._ports, **options)
        self._unconfirmed = []
        self.attempts = {}  # at each slot

    def _play(self, grant):
        slot = self._schedule.slots[grant.slot]
        self._network.muted = [node for node in slot.transmitters if (*grant[:2], node) in self._unsent]
        actions = super()._play(grant)
        self.attempts[grant.slot] = self.attempts.get(grant.slot, 0) + 1
        self._unconfirmed.append((grant, slot.transmitters))
        while self._unconfirmed and (not actions or len(self._unconfirmed) > LAG):
            actions += self._confirm(*self._unconfirmed.pop(0))
        return actions

    def _confirm(self, grant, nodes):
        actions, end = [], grant.start + self._schedule.slot_samples
        for node in nodes:
            for port in range(self._ports[node]):
                if (*grant[:2], node) in self._unsent and port == 0:
                    actions += self._scheduler.sent(node, port, grant.start + 1, "too late", late=True)
                else:
                    actions += self._scheduler.sent(node, port, end)
        return actions
