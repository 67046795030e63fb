# SPDX-License-Identifier: GPL-3.0-or-later
"""What recording costs: slots a second of a whole flowgraph with a recorder and without, and the size of a slot.

Three APs, slots of 256 samples at one port or 1024 samples at four, sweep only, alternately with and without. A slot's
time is that of the flowgraph from its start to its end, the calibration included; closing the recording, which writes
the metadata, comes on top.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import conftest  # noqa: F401  puts the sources on the path
import numpy as np
from gnuradio.dmimo import flowgraphs, testbed
from gnuradio.dmimo.assembly import Assembly
from gnuradio.dmimo.recording import Recorder

REPEATS, LEAST_RATIO = 5, 0.75
RUNS = (("lock-step", 1, 256, 1, 5), ("open loop", 1, 256, 16, 20), ("four ports", 4, 1024, 16, 2))
TESTBED = """
version: 1
node_defaults: {{num_ports: {ports}, panel: {{num_antennas: 8, beams: [0, 1, 2, 3, 4, 5, 6, 7]}}}}
nodes: [{{name: a}}, {{name: b}}, {{name: c}}]
propagation: {{delays: false}}
beam_sweep: {{passes: {passes}}}
slots: {{slot_samples: {samples}, window: {window}}}
"""


def rate(ports, samples, window, passes, records):
    """Slots a second; with a recording, how long it takes to close and the bytes of a slot at a node, data and rest."""
    made = Assembly(testbed.parse(TESTBED.format(**locals())))
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(folder, made) if records else None
        flowgraph = flowgraphs.testbed_flowgraph(made, recorder=recorder)
        begin = time.perf_counter()
        outcome = flowgraphs.run(flowgraph, timeout_s=120)
        end = time.perf_counter()
        if outcome.error is not None:
            sys.exit(outcome.error)
        slots = flowgraph.scheduler.releases
        if not records:
            return slots / (end - begin), ()
        recorder.close(None, slots, flowgraph.scheduler.end_sample)
        close_s = time.perf_counter() - end
        sizes = [sum(path.stat().st_size for path in Path(folder).glob(f"*-{kind}")) / slots / 3
                 for kind in ("data", "meta")]
        return slots / (end - begin), (close_s, *sizes)


def main() -> int:
    print(f"three APs, median of {REPEATS}")
    print(f"{'':12}{'plain [1/s]':>12}{'recorded':>10}{'ratio':>7}{'close [s]':>11}{'data, meta [B/slot]':>21}  target")
    reached = True
    for name, *settings in RUNS:
        pairs = [(rate(*settings, False)[0], rate(*settings, True)) for _ in range(REPEATS)]
        plain, recorded = zip(*pairs, strict=True)
        rates = np.array([found[0] for found in recorded])
        close_s, data, meta = np.median([found[1] for found in recorded], axis=0)
        ratio = np.median(rates / np.array(plain))
        reached &= ratio >= LEAST_RATIO
        print(f"{name:12}{np.median(plain):12.0f}{np.median(rates):10.0f}{ratio:7.2f}{close_s:11.2f}"
              f"{f'{data:.0f}, {meta:.0f}':>21}  {LEAST_RATIO} {'PASS' if ratio >= LEAST_RATIO else 'FAIL'}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
