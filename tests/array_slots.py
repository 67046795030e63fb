# SPDX-License-Identifier: GPL-3.0-or-later
"""Access points for the mutual-coupling protocol without a network: slots by plain arithmetic, and a loop over them."""

import numpy as np
from coupled_arrays import array_gains, complex_normal
from gnuradio.dmimo.protocols.mutual_coupling import AMPLITUDES, COUPLING, MutualCouplingPlan, MutualCouplingRole
from gnuradio.dmimo.protocols.mutual_coupling_collector import MutualCouplingCollector
from gnuradio.dmimo.protocols.predistortion import NodePredistortion
from gnuradio.dmimo.protocols.slots import Grant, Slot, build_schedule

LATENCY = 5
KAPPA = np.array([-0.021 + 0.013j, -0.017 - 0.02j, -0.03 + 0.004j, -0.012 + 0.018j, -0.026 - 0.007j, -0.02 + 0.021j])


class Array:
    """One access point: what its ports hear when one of them sends, by plain arithmetic."""

    def __init__(self, rng, rows, columns, kappa=KAPPA, noise_var=0.0, saturation=1e9):
        self.gains, self.c, _ = array_gains(rng, rows, columns)
        self.gains *= 10  # couplings near -20 dB
        self.kappa, self.noise_var, self.rng, self.saturation = kappa, noise_var, rng, saturation
        self.late = 0
        self.loop_delays = np.zeros(len(self.c), int)  # half of each is removed before sending, half from what is heard

    def hear(self, burst):
        x = burst.astype(complex)
        x = x * np.minimum(1.0, self.saturation / np.maximum(np.abs(x), 1e-30))
        sent = x + self.kappa[: len(x), None] * x * np.abs(x) ** 2
        clean = np.zeros(sent.shape, complex)
        for port, other in np.ndindex(self.gains.shape):
            delay = LATENCY + self.late + (self.loop_delays[other] - self.loop_delays[port]) // 2
            clean[port] += self.gains[port, other] * np.roll(sent[other], delay)
        return clean + np.sqrt(self.noise_var) * complex_normal(self.rng, *clean.shape)


def run(plan, arrays, calibration="all_pairs", retry=None):
    """Products by phase, collector and predistortions of a run; the slot `retry` is heard twice, first as noise."""
    raw = {name: NodePredistortion(len(array.c), lambda slot: slot.purpose == AMPLITUDES)
           for name, array in arrays.items()}
    roles = {name: MutualCouplingRole(name, plan, raw.get(name)) for name in plan.nodes}
    collector, products = MutualCouplingCollector(plan, calibration), {}
    schedule = build_schedule(plan.nodes, plan.slot_samples, plan.phases(4))
    for phase in schedule.phases:
        grants = []
        for index in phase.slots:
            slot, (sender,) = schedule.slots[index], schedule.slots[index].transmitters
            grant = Grant(index, int(index == retry), 1000 + index * plan.slot_samples)
            grants.append(grant)
            burst = raw[sender].transmit(roles[sender].transmit(slot, grant.start), slot)
            heard = {name: array.hear(burst) if name == sender else np.zeros((len(array.c), plan.slot_samples))
                     for name, array in arrays.items()}
            for name, role in roles.items():
                samples = heard.get(name, np.zeros((1, plan.slot_samples)))
                if index == retry:
                    role.receive(slot, grant._replace(attempt=0), complex_normal(np.random.default_rng(0),
                                                                                 *samples.shape))
                role.receive(slot, grant, samples)
        results = {name: result for name, role in roles.items() if (result := role.results(grants)) is not None}
        products[phase.name] = product = collector.produce(phase.name, grants, results)
        for role in roles.values():
            role.update(product)
    return products, collector, raw


def plan_of(num_ports, **changes):
    options = {"slot_samples": 400, "lead_samples": 16, "prefix_samples": 16, "latency_samples": LATENCY} | changes
    return MutualCouplingPlan(("ue", *num_ports), num_ports, **options)


def predistorted(plan, predistortion, x):
    """Samples as a linear slot sends them, and how many of each port were clipped."""
    before = predistortion.num_clipped.copy()
    samples = predistortion.transmit(x, Slot(0, COUPLING, plan.nodes[1:], (0,) * len(plan.nodes)))
    return samples, predistortion.num_clipped - before
