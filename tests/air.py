# SPDX-License-Identifier: GPL-3.0-or-later
"""A small network model of the tests' own, written sample by sample from the definitions, to hold the roles against.

It shares no code with `gnuradio.dmimo.simulation`: a disagreement shows an error in one of the two.
"""

import numpy as np
from gnuradio.dmimo.protocols.slots import Grant


class Air:
    """Nodes with unequal t and r, oscillators with frequency offsets, reciprocal beam channels with integer delays."""

    def __init__(self, rng, num_ports, num_beams, *, samp_rate=1e6, cfo_hz=None, noise_var=0.0, max_delay=0,
                 min_delay=0):
        self.names = list(num_ports)
        self.num_ports, self.num_beams = num_ports, num_beams
        self.samp_rate, self.noise_var, self.rng = samp_rate, noise_var, rng
        self.cfo_hz = cfo_hz or dict.fromkeys(self.names, 0.0)

        def gains(name):
            return np.exp(rng.normal(0, 0.3, num_ports[name]) + 2j * np.pi * rng.random(num_ports[name]))

        self.t = {name: gains(name) for name in self.names}
        self.r = {name: gains(name) for name in self.names}
        self.phase = {name: rng.uniform(-np.pi, np.pi) for name in self.names}
        self.h, self.delay = {}, {}
        for k, a in enumerate(self.names):
            for b in self.names[k + 1 :]:
                shape = (num_ports[a], num_beams[a], num_ports[b], num_beams[b])
                h = rng.normal(size=shape) + 1j * rng.normal(size=shape)
                self.h[a, b], self.h[b, a] = h, h.transpose(2, 3, 0, 1)
                self.delay[a, b] = self.delay[b, a] = min_delay + int(rng.integers(0, max_delay + 1))

    def theta(self, name, samples):
        """Oscillator phase at absolute samples."""
        return self.phase[name] + 2 * np.pi * self.cfo_hz[name] * samples / self.samp_rate

    def c(self, names, sample):
        """True t / r with oscillator phases at an absolute sample, ports of all names in order."""
        return np.concatenate([self.t[n] / self.r[n] * np.exp(2j * self.theta(n, sample)) for n in names])

    def slot(self, sent, beams, start, num_samples):
        """What every node receives in a slot: mapping of name to (num_ports, num_samples)."""
        n = start + np.arange(num_samples)
        received = {}
        for rx in self.names:
            y = np.zeros((self.num_ports[rx], num_samples), complex)
            for tx, burst in sent.items():
                if burst is None or tx == rx:
                    continue
                x = np.zeros((self.num_ports[tx], num_samples), complex)
                x[:, : burst.shape[1]] = burst
                x = self.t[tx][:, None] * x * np.exp(1j * self.theta(tx, n))
                x = np.roll(x, self.delay[rx, tx], axis=1)  # bursts end in silence longer than any delay
                y += self.h[rx, tx][:, beams[rx], :, beams[tx]] @ x
            y *= self.r[rx][:, None] * np.exp(-1j * self.theta(rx, n))
            noise = self.rng.normal(size=y.shape) + 1j * self.rng.normal(size=y.shape)
            received[rx] = y + np.sqrt(self.noise_var / 2) * noise
        return received


def run_phase(air, schedule, name, roles, start):
    """Play a phase through the air slot after slot; returns its grants and the results of all nodes."""
    grants = []
    for index in schedule.phase(name).slots:
        slot = schedule.slots[index]
        grant = Grant(index, 0, start)
        sent = {node: role.transmit(slot, start) for node, role in roles.items()}
        beams = {node: role.beam(slot) for node, role in roles.items()}
        for node, samples in air.slot(sent, beams, start, schedule.slot_samples).items():
            roles[node].receive(slot, grant, samples.astype(np.complex64))
        grants.append(grant)
        start += schedule.slot_samples
    results = {node: role.results(grants) for node, role in roles.items()}
    return grants, {node: values for node, values in results.items() if values}, start
