# SPDX-License-Identifier: GPL-3.0-or-later
"""Throughput of the simulated network: in a flowgraph against `multiply_matrix_cc`, and per slot of 256 samples.

Runs of the network and of the reference in the same graph take turns; the ratio is that of their best rates, so that it
stands even where the machine has other things to do.
"""

import sys
import time

import conftest  # noqa: F401  makes the sources importable
import numpy as np
from gnuradio import blocks, gr
from gnuradio.dmimo.blocks.simulated_network import simulated_network
from gnuradio.dmimo.simulation.hardware import draw_gains
from gnuradio.dmimo.simulation.network import Network, SimulatedNode
from gnuradio.dmimo.simulation.oscillators import Oscillator
from gnuradio.dmimo.simulation.propagation import Rayleigh

SAMP_RATE = 1e6
NUM_PORTS = 16
SECONDS = 0.7
ROUNDS = 4
IMPAIRED = {"noise_var": 0.01, "cfo_hz": 50.0, "linewidth_hz": 10.0}
# name, impairments, propagation, required share of the reference's throughput
CASES = (
    ("flat, no noise", {}, {}, 0.5),
    ("flat, noise, CFO, phase noise, gains", IMPAIRED, {}, 0.2),
    ("8 taps, no noise", {}, {"num_taps": 8, "delay_spread_s": 2e-6}, 0.1),
    ("8 taps, noise, CFO, phase noise, gains", IMPAIRED, {"num_taps": 8, "delay_spread_s": 2e-6}, 0.1),
)


def make_network(num_ports, propagation, *, noise_var=0.0, cfo_hz=0.0, linewidth_hz=0.0):
    """Return a network of single-port nodes with random gains and phases."""
    rng = np.random.default_rng(1)
    nodes = []
    for i in range(num_ports):
        oscillator = Oscillator(
            samp_rate=SAMP_RATE,
            seed_key=(1, i),
            cfo_hz=cfo_hz * rng.standard_normal(),
            linewidth_hz=linewidth_hz,
            tx_phase=rng.uniform(-np.pi, np.pi),
            rx_phase=rng.uniform(-np.pi, np.pi),
        )
        gains = {"tx_gains": draw_gains(rng, 1, std_db=1.0), "rx_gains": draw_gains(rng, 1, std_db=1.0)}
        nodes.append(SimulatedNode(f"ap{i + 1}", 1, oscillator, noise_var=noise_var, **gains))
    return Network(nodes, Rayleigh(seed=1, **propagation), samp_rate=SAMP_RATE, seed=1)


def graph_rate(block):
    """Return the steady output rate [samples/s per port] of `block` between vector sources and null sinks."""
    rng = np.random.default_rng(2)
    top = gr.top_block()
    parts = []
    for port in range(NUM_PORTS):
        waveform = rng.standard_normal(4096) + 1j * rng.standard_normal(4096)
        source, sink = blocks.vector_source_c(waveform.tolist(), True), blocks.null_sink(gr.sizeof_gr_complex)
        top.connect(source, (block, port))
        top.connect((block, port), sink)
        parts += [source, sink]
    top.start()
    time.sleep(0.3)
    begin, first = time.perf_counter(), block.nitems_written(0)
    time.sleep(SECONDS)
    last, end = block.nitems_written(0), time.perf_counter()
    top.stop()
    top.wait()
    return (last - first) / (end - begin)


def reference_rate():
    """Return the rate of a plain matrix of the same size."""
    rng = np.random.default_rng(3)
    matrix = rng.standard_normal((NUM_PORTS, NUM_PORTS)) + 1j * rng.standard_normal((NUM_PORTS, NUM_PORTS))
    return graph_rate(blocks.multiply_matrix_cc(matrix.tolist()))


def slot_time(impairments, propagation):
    """Return the median time [s] that a network of three single-port nodes takes for a slot of 256 samples."""
    network = make_network(3, propagation, **impairments)
    x = np.ones((3, 256), dtype=np.complex64)
    beams = np.zeros(3, dtype=np.int64)
    times = []
    for slot in range(500):
        begin = time.perf_counter()
        network.process(x, 256 * slot, beams, final=True)
        times.append(time.perf_counter() - begin)
    return float(np.median(times))


def main():
    """Print both tables; exit 1 if a ratio misses its target."""
    failed = False
    title = f"{NUM_PORTS} ports, ratio to multiply_matrix_cc"
    print(f"{title:45} | MS/s per port | ratio | target | slot of 256, 3 ports [us]")
    for name, impairments, propagation, target in CASES:
        reference = rate = 0.0
        for _ in range(ROUNDS):
            reference = max(reference, reference_rate())
            rate = max(rate, graph_rate(simulated_network(make_network(NUM_PORTS, propagation, **impairments))))
        failed |= rate < target * reference
        slot = slot_time(impairments, propagation) * 1e6
        print(f"{name:45} | {rate / 1e6:13.2f} | {rate / reference:5.2f} | {target:6.2f} | {slot:8.0f}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
