# SPDX-License-Identifier: GPL-3.0-or-later
"""Slot rate of the whole loop against a bare loop of the same messages between empty Python blocks.

Three APs of one port, slots of 256 samples. The bare loop has the same blocks and message hops for every node and slot
(scheduler, role, transmitter, network, receiver, role, scheduler, and the arming of the receiver; messages stand for
the streams), but its handlers only forward. Both run pinned as the real flowgraph is, alternately, in one process.
"""

import os
import statistics
import sys
import threading
import time

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import conftest  # noqa: F401  puts the sources on the path
import pmt
from gnuradio import gr
from gnuradio.dmimo import flowgraphs, testbed
from gnuradio.dmimo.assembly import Assembly

NODES, REPEATS = 3, 5
TESTBED = """
version: 1
node_defaults: {{panel: {{num_antennas: 8, beams: [0, 1, 2, 3, 4, 5, 6, 7]}}}}
nodes: [{{name: a}}, {{name: b}}, {{name: c}}]
propagation: {{delays: false}}
beam_sweep: {{passes: {passes}}}
slots: {{slot_samples: 256, window: {window}}}
"""


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
        self.done = threading.Event()

    def release(self, count):
        for _ in range(count):
            self.sent += 1
            self.message_port_pub(pmt.intern("out"), pmt.from_long(self.sent))

    def start(self):
        self.release(self.window)
        return True

    def count(self, message):
        self.answers += 1
        complete = self.answers // NODES
        if complete >= self.total:
            self.done.set()
        elif self.answers % NODES == 0 and self.sent < self.total and self.sent - complete <= max(0, self.window // 2):
            self.release(self.window - (self.sent - complete))


def bare_rate(window, total):
    """Slots per second of the bare loop."""
    tb, scheduler = gr.top_block(), bare_scheduler(window, total)
    network = bare_network()
    blocks = [scheduler, network]
    for node in range(NODES):
        role, transmitter, receiver = bare(), bare(), bare()
        tb.msg_connect(scheduler, "out", role, "in")
        tb.msg_connect(role, "aside", receiver, "back")
        tb.msg_connect(role, "out", transmitter, "in")
        tb.msg_connect(transmitter, "out", network, f"in{node}")
        tb.msg_connect(network, f"out{node}", receiver, "in")
        tb.msg_connect(receiver, "out", role, "back")
        tb.msg_connect(role, "up", scheduler, "in")
        blocks += [role, transmitter, receiver]
    for block in blocks:
        block.set_processor_affinity([min(os.sched_getaffinity(0))])
    begin = time.perf_counter()
    tb.start()
    assert scheduler.done.wait(60)
    rate = total / (time.perf_counter() - begin)
    tb.stop()
    tb.wait()
    return rate


def real_rate(window, passes):
    """Slots per second of the flowgraph of a testbed, sweep only."""
    assembly = Assembly(testbed.parse(TESTBED.format(passes=passes, window=window)))
    flowgraph = flowgraphs.calibration_flowgraph(assembly)
    begin = time.perf_counter()
    complete = []
    released = flowgraph.scheduler._machine._advance

    def advance():
        actions = released()
        if flowgraph.scheduler.completed == len(assembly.schedule.slots):
            complete.append(time.perf_counter())
        return actions

    flowgraph.scheduler._machine._advance = advance
    outcome = flowgraphs.run(flowgraph, timeout_s=120)
    if outcome.error is not None:
        print(outcome.error, file=sys.stderr)
    return len(assembly.schedule.slots) / (complete[0] - begin)


def main():
    passes = 5
    total = passes * 64 * NODES
    rows = {}
    for _ in range(REPEATS):
        for name, window in (("lock-step", 1), ("open loop", 16)):
            rows.setdefault(name, []).append((bare_rate(window, total), real_rate(window, passes)))
    print(f"slots of 256 samples, {NODES} APs, {total} slots, median of {REPEATS}")
    print(f"{'':12}{'bare [1/s]':>12}{'real [1/s]':>12}{'ratio':>8}  target")
    medians = {}
    for name, pairs in rows.items():
        ratio = statistics.median(real / bare for bare, real in pairs)
        medians[name] = statistics.median(real for _, real in pairs)
        bare_median = statistics.median(bare for bare, _ in pairs)
        verdict = "PASS" if ratio >= 0.5 else "FAIL"
        print(f"{name:12}{bare_median:12.0f}{medians[name]:12.0f}{ratio:8.2f}  0.5 {verdict}")
    ratio = statistics.median(o[1] / s[1] for o, s in zip(rows["open loop"], rows["lock-step"], strict=True))
    print(f"open loop over lock-step: {ratio:.2f}, target 2 {'PASS' if ratio >= 2 else 'FAIL'}")


if __name__ == "__main__":
    main()
