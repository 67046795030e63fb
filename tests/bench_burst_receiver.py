# SPDX-License-Identifier: GPL-3.0-or-later
"""Processor time of burst_receiver for 8 ports x 5 MS/s, a tenth of the samples granted, against a null_sink.

Paced: the streams of a usrp_source on the virtual USRP (4 boards), slots of 256 samples in runs of 19 every 10 ms. What
counts is the processor time of the receiver's own thread, pinned to one core, for a second of the streams, which other
load on the machine does not enter; all slots must come, and the device must not overflow. Unpaced: the same ports from
GNU Radio's own blocks as fast as they go, for the greatest rate; there other load does count.
"""

import os
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import conftest  # noqa: F401  puts the sources on the path
import numpy as np
import pmt
import virtual_usrp_device as virtual

if (reason := virtual.missing()) is not None:
    sys.exit(f"the virtual USRP cannot be built: {reason}")
virtual.use()
from benchmarking import conclude  # noqa: E402
from gnuradio import blocks, dmimo, gr, uhd  # noqa: E402
from gnuradio.dmimo.blocks import messages  # noqa: E402
from gnuradio.dmimo.protocols.slots import Grant  # noqa: E402
from graph import wait_for  # noqa: E402
from virtual_usrp_graph import Radio  # noqa: E402

RATE, PORTS, SLOT, SECONDS, REPEATS, LIMIT_S = 5_000_000, 8, 256, 2, 3, 20
PERIOD, RUN, LEAD = RATE // 100, 19, RATE // 2  # samples between runs of slots, slots in a run, lead of their grants


class counter(gr.basic_block):
    """Counts received slots, and those that are not ok."""

    def __init__(self):
        gr.basic_block.__init__(self, "counter", None, None)
        self.message_port_register_in(pmt.intern("in"))
        self.set_msg_handler(pmt.intern("in"), self.count)
        self.received = self.spoilt = 0

    def count(self, message):
        grants, status = messages.burst_head(message)
        self.received += len(grants)
        self.spoilt += len(grants) * (status != "ok")


class Measured:
    """A block under measurement, `burst_receiver` or `null_sink`, that is granted slots as its streams go on."""

    def __init__(self, tb, receives):
        self.receives, self.counter, self.granted, self.next = receives, counter(), 0, None
        self.block = blocks.null_sink(gr.sizeof_gr_complex)
        if receives:
            self.block = dmimo.burst_receiver("ap1", PORTS, SLOT, RATE)
            tb.msg_connect(self.block, "bursts", self.counter, "in")
        self.block.set_processor_affinity([max(os.sched_getaffinity(0))])

    def items(self):
        return self.block.nitems_read(0)

    def processor_s(self):
        """Processor time of the block's thread; Linux cuts its name to 15 characters."""
        name = f"{self.block.name()}{self.block.unique_id()}"[:15]
        for task in Path("/proc/self/task").iterdir():
            if (task / "comm").read_text().strip() == name:
                return int((task / "schedstat").read_text().split()[0]) / 1e9
        sys.exit(f"there is no thread {name}")

    def follow(self, first, samples):
        """Grant slots until the streams, which began at the sample `first`, have gone on by `samples`.

        Returns processor seconds per second of the streams, and those per second on the clock.
        """
        wait_for(lambda: self.items() > RATE / 10)
        items, spent, begin = self.items(), self.processor_s(), time.monotonic()
        self.next = first + items + LEAD
        while self.items() - items < samples:
            if time.monotonic() - begin > LIMIT_S:
                sys.exit(f"{self.block.name()}: no {samples} samples within {LIMIT_S} s")
            while self.receives and self.next < first + self.items() + 2 * LEAD:
                self._grant()
            time.sleep(0.005)
        passed = (self.items() - items) / RATE
        return (self.processor_s() - spent) / passed, passed / (time.monotonic() - begin)

    def _grant(self):
        grants = [Grant(self.granted + k, 0, self.next + k * SLOT) for k in range(RUN)]
        message = messages.encode("grant", grants=messages.grants_to_pmt(grants))
        self.block.to_basic_block()._post(pmt.intern("grants"), message)
        self.granted += RUN
        self.next += PERIOD

    def finish(self):
        """Wait for the slots granted; return how many did not come, or not whole."""
        if self.receives:
            wait_for(lambda: self.counter.received == self.granted)
        return self.granted - self.counter.received + self.counter.spoilt


def paced(receives):
    """Processor seconds per second of the streams, slots spoilt, overflows, behind a usrp_source."""
    with tempfile.TemporaryDirectory() as folder:
        radio = Radio(uhd, Path(folder), rate=RATE, mboards=PORTS // 2)
        radio.set_time()
        tb = gr.top_block()
        measured = Measured(tb, receives)
        for port in range(PORTS):
            tb.connect((radio.source, port), (measured.block, port))
        command = uhd.stream_cmd(uhd.STREAM_MODE_START_CONTINUOUS)
        begin = int(radio.source.get_time_now().get_real_secs()) + 2
        command.stream_now, command.time_spec = False, uhd.time_spec(float(begin))
        tb.start()
        radio.source.issue_stream_cmd(command)
        try:
            share, _ = measured.follow(begin * RATE, SECONDS * RATE)
            spoilt = measured.finish()
        finally:
            tb.stop()
            tb.wait()
        return share, spoilt, len(virtual.read_log(radio.log, "overflow"))


def unpaced(receives):
    """Seconds of the streams per second on the clock, from one C++ block that has all ports."""
    tb, size = gr.top_block(), gr.sizeof_gr_complex
    measured = Measured(tb, receives)
    tag = gr.tag_t()
    tag.key, tag.value = pmt.intern("rx_time"), pmt.make_tuple(pmt.from_uint64(0), pmt.from_double(0.0))
    head, rest = blocks.vector_source_c(np.zeros(4096 * PORTS).tolist(), False, PORTS, [tag]), blocks.null_source(
        size * PORTS)
    stream, split = blocks.stream_mux(size * PORTS, [4096, 2**31 - 1]), blocks.vector_to_streams(size, PORTS)
    tb.connect(head, (stream, 0))
    tb.connect(rest, (stream, 1))
    tb.connect(stream, split)
    for port in range(PORTS):
        tb.connect((split, port), (measured.block, port))
    tb.start()
    try:
        return measured.follow(0, SECONDS * RATE)[1]
    finally:
        tb.stop()
        tb.wait()


def main():
    print(f"{PORTS} ports x {RATE / 1e6:g} MS/s, {RUN * SLOT / PERIOD:.0%} of the samples in slots of {SLOT}; "
          f"load of the machine {os.getloadavg()[0]:.1f}; median of {REPEATS}")
    runs = [[paced(receives) for receives in (True, False)] for _ in range(REPEATS)]
    spoilt, overflows = (sum(run[0][k] for run in runs) for k in (1, 2))
    share, silent = np.median([[block[0] for block in run] for run in runs], axis=0)
    ratio = np.median([run[0][0] / run[1][0] for run in runs])
    fastest, silent_fastest = np.median([[unpaced(receives) for receives in (True, False)] for _ in range(REPEATS)], 0)
    print(f"  processor seconds a second: burst_receiver {share:.2f}, null_sink {silent:.2f}")
    print(f"  greatest rate of {PORTS} ports: burst_receiver {fastest * RATE / 1e6:.1f} MS/s, "
          f"null_sink {silent_fastest * RATE / 1e6:.1f} MS/s")
    return conclude([("overflows", overflows, "<=", 0), ("slots lost", spoilt, "<=", 0),
                     ("core that burst_receiver takes", share, "<=", 0.5),
                     ("processor time over null_sink's", ratio, "<=", 4.5),
                     ("greatest rate over null_sink's", fastest / silent_fastest, ">=", 0.5)])


if __name__ == "__main__":
    sys.exit(main())
