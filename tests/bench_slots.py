# SPDX-License-Identifier: GPL-3.0-or-later
"""Slot rate of the whole loop against a bare loop of the same messages between empty Python blocks.

Three APs of one port, slots of 256 samples. The bare loop has the same blocks and message hops for every node and slot
(scheduler, role, transmitter, network, receiver, role, scheduler, and the arming of the receiver; messages stand for
the streams; several slots are one message where they are in ours), but its handlers only forward, and its blocks are
GNU Radio's own: `blocks/lean.py` says what ours save. The real network is flat and without noise;
`bench_simulated_network.py` measures the physics.
Both run as the real flowgraph does, pinned and with its scheduling policy, alternately, in one process. The rate counts
from the release of the first slot to the end of the last; CPU is that of the process meanwhile, bare and real.
"""

import os
import sys
import threading
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import conftest  # noqa: F401  puts the sources on the path
import numpy as np
import pmt
from gnuradio import gr
from gnuradio.dmimo import flowgraphs, testbed
from gnuradio.dmimo.assembly import Assembly
from gnuradio.dmimo.blocks import burst_transmitter
from gnuradio.dmimo.protocols.scheduler import PhaseDone, Release

NODES, REPEATS = 3, 5
RUNS = (("lock-step", 1, 5), ("open loop", 16, 20))  # name, window, passes: about half a second each
BURST_SLOTS = burst_transmitter.MAX_SAMPLES // 256
TESTBED = """
version: 1
node_defaults: {{panel: {{num_antennas: 8, beams: [0, 1, 2, 3, 4, 5, 6, 7]}}}}
nodes: [{{name: a}}, {{name: b}}, {{name: c}}]
propagation: {{delays: false}}
noise: {{snr_db: null}}
beam_sweep: {{passes: {passes}}}
slots: {{slot_samples: 256, window: {window}}}
"""


def now():
    """Seconds on the clock and of this process's CPU."""
    return np.array([time.perf_counter(), time.process_time()])


class bare(gr.basic_block):
    """Forwards what comes in at `in` to `out`, and to `aside`."""

    def __init__(self):
        gr.basic_block.__init__(self, "bare", None, None)
        for port in ("in", "back"):
            self.message_port_register_in(pmt.intern(port))
        for port in ("out", "aside", "up"):
            self.message_port_register_out(pmt.intern(port))
        self.set_msg_handler(pmt.intern("in"), self.forward)
        self.set_msg_handler(pmt.intern("back"), self.acknowledge)

    def forward(self, message):
        self.message_port_pub(pmt.intern("aside"), message)
        self.message_port_pub(pmt.intern("out"), message)

    def acknowledge(self, message):
        self.message_port_pub(pmt.intern("up"), message)


class bare_role(bare):
    """Forwards a grant of n slots once to `aside`, and to `out` as messages of as many as fit a burst."""

    def forward(self, message):
        self.message_port_pub(pmt.intern("aside"), message)
        count = pmt.to_long(message)
        for first in range(0, count, BURST_SLOTS):
            self.message_port_pub(pmt.intern("out"), pmt.from_long(min(BURST_SLOTS, count - first)))


class bare_network(gr.basic_block):
    """Forwards what comes from each transmitter to its node's receiver."""

    def __init__(self):
        gr.basic_block.__init__(self, "bare_network", None, None)
        for node in range(NODES):
            self.message_port_register_in(pmt.intern(f"in{node}"))
            self.message_port_register_out(pmt.intern(f"out{node}"))
            handler = getattr(self, f"forward{node}")
            self.set_msg_handler(pmt.intern(f"in{node}"), handler)

    def forward0(self, message):
        self.message_port_pub(pmt.intern("out0"), message)

    def forward1(self, message):
        self.message_port_pub(pmt.intern("out1"), message)

    def forward2(self, message):
        self.message_port_pub(pmt.intern("out2"), message)


class bare_scheduler(gr.basic_block):
    """Keeps `window` slots in flight until `total` have come back from all nodes."""

    def __init__(self, window, total):
        gr.basic_block.__init__(self, "bare_scheduler", None, None)
        self.message_port_register_in(pmt.intern("in"))
        self.message_port_register_out(pmt.intern("out"))
        self.set_msg_handler(pmt.intern("in"), self.count)
        self.window, self.total = window, total
        self.sent = self.answers = 0
        self.begin = self.end = None
        self.done = threading.Event()

    def release(self, count):
        self.sent += count
        self.message_port_pub(pmt.intern("out"), pmt.from_long(count))

    def start(self):
        self.begin = now()
        self.release(self.window)
        return True

    def count(self, message):
        self.answers += pmt.to_long(message)
        complete = self.answers // NODES
        if complete >= self.total:
            self.end = now()
            self.done.set()
        elif self.answers % NODES == 0 and self.sent < self.total and self.sent - complete <= max(0, self.window // 2):
            self.release(min(self.window - (self.sent - complete), self.total - self.sent))


def bare_times(window, total):
    """Seconds and CPU seconds per slot of the bare loop."""
    tb, scheduler = gr.top_block(), bare_scheduler(window, total)
    network = bare_network()
    blocks = [scheduler, network]
    for node in range(NODES):
        role, transmitter, receiver = bare_role(), bare(), bare()
        tb.msg_connect(scheduler, "out", role, "in")
        tb.msg_connect(role, "aside", receiver, "back")
        tb.msg_connect(role, "out", transmitter, "in")
        tb.msg_connect(transmitter, "out", network, f"in{node}")
        tb.msg_connect(network, f"out{node}", receiver, "in")
        tb.msg_connect(receiver, "out", role, "back")
        tb.msg_connect(role, "up", scheduler, "in")
        blocks += [role, transmitter, receiver]
    for block in blocks:
        block.set_processor_affinity([flowgraphs.common_processor()])
    with flowgraphs.batch_scheduling():
        tb.start()
    assert scheduler.done.wait(60)
    tb.stop()
    tb.wait()
    return (scheduler.end - scheduler.begin) / total


def real_times(window, passes):
    """Seconds and CPU seconds per slot of the flowgraph of a testbed, sweep only."""
    assembly = Assembly(testbed.parse(TESTBED.format(passes=passes, window=window)))
    flowgraph = flowgraphs.testbed_flowgraph(assembly)
    total, marks = len(assembly.schedule.slots), []
    act = flowgraph.scheduler._act

    def acting(actions):
        awaited = PhaseDone if marks else Release
        if any(isinstance(action, awaited) for action in actions):
            marks.append(now())
        act(actions)

    flowgraph.scheduler._act = acting
    outcome = flowgraphs.run(flowgraph, timeout_s=120)
    if outcome.error is not None:
        sys.exit(outcome.error)
    return (marks[-1] - marks[0]) / total


def main() -> int:
    runs = {name: [] for name, _, _ in RUNS}  # of each: (repeat, bare | real, time | CPU) per slot
    for _ in range(REPEATS):
        for name, window, passes in RUNS:
            runs[name].append((bare_times(window, passes * 64 * NODES), real_times(window, passes)))
    runs = {name: np.array(times) for name, times in runs.items()}
    print(f"slots of 256 samples, {NODES} APs, median of {REPEATS}")
    print(f"{'':12}{'bare [1/s]':>12}{'real [1/s]':>12}{'CPU [us]':>14}{'ratio':>8}  target")
    reached = True
    for name, times in runs.items():
        (bare, bare_cpu), (real, real_cpu) = np.median(times, axis=0)
        ratio = np.median(times[:, 0, 0] / times[:, 1, 0])
        cpu = f"{1e6 * bare_cpu:.0f}, {1e6 * real_cpu:.0f}"
        verdict = "PASS" if ratio >= 0.5 else "FAIL"
        reached &= ratio >= 0.5
        print(f"{name:12}{1 / bare:12.0f}{1 / real:12.0f}{cpu:>14}{ratio:8.2f}  0.5 {verdict}")
    ratio = np.median(runs["lock-step"][:, 1, 0] / runs["open loop"][:, 1, 0])
    print(f"open loop over lock-step: {ratio:.2f}, target 2 {'PASS' if ratio >= 2 else 'FAIL'}")
    return 0 if reached and ratio >= 2 else 1


if __name__ == "__main__":
    sys.exit(main())
