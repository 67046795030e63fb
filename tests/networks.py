# SPDX-License-Identifier: GPL-3.0-or-later
"""Networks with random gains and phases, for the tests of the simulation."""

import numpy as np
from gnuradio.dmimo.simulation.hardware import Panel, draw_gains
from gnuradio.dmimo.simulation.network import Network, SimulatedNode
from gnuradio.dmimo.simulation.oscillators import Clock, Oscillator
from gnuradio.dmimo.simulation.propagation import Geometric, Rayleigh

SAMP_RATE = 1e6
BLOCK = 256
HOUR = 3600 * 10**6 + 77  # samples; not on the block grid
PLACES = ((0.0, 0.0, 0.0), (130.0, 20.0, 3.0), (40.0, 333.0, 0.0), (10.0, 9.0, 1.0))
MOVING = {"cfo_hz": 70.0, "linewidth_hz": 5.0, "drift_hz": 3.0, "drift_period_s": 1.0}


def dft_panel(num_antennas=4, num_beams=3):
    grid = np.outer(np.arange(num_antennas), np.arange(num_beams))
    return Panel(num_antennas, np.exp(2j * np.pi * grid / num_antennas) / np.sqrt(num_antennas))


def make_network(ports=(1, 2, 1), propagation=None, *, moving=False, clocks=None, seed=1, node=None, **arguments):
    """Return a network of nodes ap1, ap2 ... with random gains and phases; `moving`: with imperfect oscillators."""
    nodes = []
    for i, num_ports in enumerate(ports):
        rng = np.random.default_rng([seed, i])
        motion = dict(MOVING if moving is True else moving or {})
        motion["cfo_hz"] = motion.get("cfo_hz", 0.0) * rng.standard_normal()
        phases = {"tx_phase": rng.uniform(-np.pi, np.pi), "rx_phase": rng.uniform(-np.pi, np.pi)}
        settings = {
            "oscillator": Oscillator(samp_rate=SAMP_RATE, seed_key=(seed, i), **phases, **motion),
            "panel": dft_panel(),
            "tx_gains": draw_gains(rng, num_ports, std_db=2.0),
            "rx_gains": draw_gains(rng, num_ports, std_db=2.0),
            "clock": clocks[i] if clocks else Clock(),
            "position_m": PLACES[i],
            **(node or {}),
        }
        nodes.append(SimulatedNode(f"ap{i + 1}", num_ports, **settings))
    propagation = Rayleigh(seed=seed) if propagation is None else propagation
    return Network(nodes, propagation, samp_rate=SAMP_RATE, seed=seed, **arguments)


def noise_like(shape, seed=0):
    rng = np.random.default_rng(seed)
    return (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)).astype(np.complex64)


MODELS = {
    "flat": {},
    "moving": {"moving": True, "node": {"noise_var": 0.1}},
    "delays": {"propagation": Rayleigh(seed=1, delays=True)},
    "taps": {
        "propagation": Rayleigh(seed=1, num_taps=5, delay_spread_s=2e-6),
        "moving": True,
        "node": {"noise_var": 0.1},
    },
    "all": {
        "propagation": Geometric(seed=1, delays=True),
        "moving": True,
        "clocks": (Clock(), Clock(0.4, 1 + 2e-9, 1.5), Clock(rate=1 - 1e-9)),
        "node": {"noise_var": 0.1, "compression": -0.05 + 0.02j, "adc": (12, 16.0)},
    },
}
