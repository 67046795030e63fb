# SPDX-License-Identifier: GPL-3.0-or-later
"""Throughput of the predistorter against `multiply_const_cc` on each port: python tests/bench_predistorter.py.

The same flowgraph holds a predistorter of all ports or a multiplication on each, between sources of Gaussian samples
and null sinks; the two take turns. Rates are samples of each port per second of processor time that the whole
flowgraph takes: what counts where the cores are busy, and what stands even where the machine has other things to do.
The rate by the clock is printed too; there multiplications also gain by having a thread for each port. Exit code 1 if a
ratio misses the target.
"""

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
import conftest  # noqa: F401 - links the sources into the path
import numpy as np
from benchmarking import conclude
from gnuradio import blocks, dmimo, gr
from gnuradio.dmimo.simulation.amplifiers import GAN_POLYNOMIAL

PORTS = (1, 4, 8)
ROUNDS, WARM_UP_S, MEASURED_S = 6, 0.2, 0.5
TARGET = 0.3
BACK_OFF_DB = 12.0


def predistorters(num_ports):
    """One block, with its ports in a list of (block, port)."""
    gan = np.array(GAN_POLYNOMIAL) / GAN_POLYNOMIAL[0] * 10 ** (-BACK_OFF_DB / 10 * np.arange(5))
    block = dmimo.predistorter(num_ports, np.tile(gan, (num_ports, 1)))
    return [(block, port) for port in range(num_ports)]


def unchanged(num_ports):
    """A predistorter that copies: what the bridge to Python costs."""
    block = dmimo.predistorter(num_ports)
    return [(block, port) for port in range(num_ports)]


def multiplications(num_ports):
    """GNU Radio's own, a block for each port."""
    return [(blocks.multiply_const_cc(0.5), 0) for _ in range(num_ports)]


def rates(ports):
    """Mean samples of each port per second of processor time, and per second."""
    samples = np.random.default_rng(1).normal(scale=np.sqrt(0.5), size=(65_536, 2)).view(complex)[:, 0].tolist()
    top, keep = gr.top_block(), []
    for where in ports:
        source, sink = blocks.vector_source_c(samples, True), blocks.null_sink(gr.sizeof_gr_complex)
        top.connect(source, where, sink)
        keep += [source, sink]

    def state():
        return np.array([np.mean([block.nitems_written(port) for block, port in ports]), time.process_time(),
                         time.perf_counter()])  # fmt: skip

    top.start()
    time.sleep(WARM_UP_S)
    begin = state()
    time.sleep(MEASURED_S)
    count, processor_s, clock_s = state() - begin
    top.stop()
    top.wait()
    return np.array([count / processor_s, count / clock_s])


def main():
    verdicts = []
    print("MS/s of each port: per second of processor time, by the clock")
    for num_ports in PORTS:
        best = np.zeros((3, 2))
        for _ in range(ROUNDS):
            for kind, make in enumerate((multiplications, predistorters, unchanged)):
                best[kind] = np.maximum(best[kind], rates(make(num_ports)))
        for label, row in zip(("multiply_const_cc", "predistorter", "predistorter, unchanged"), best, strict=True):
            clock = row[1] / best[0, 1]
            print(f"  {num_ports} ports, {label:54s} {row[0] / 1e6:8.1f} {row[1] / 1e6:8.1f}  {clock:.2f} by the clock")
        verdicts.append((f"predistorter / multiply_const_cc, {num_ports} ports", best[1, 0] / best[0, 0], ">=", TARGET))
    return conclude(verdicts)


if __name__ == "__main__":
    sys.exit(main())
