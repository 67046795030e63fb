# SPDX-License-Identifier: GPL-3.0-or-later
"""Processor time of the virtual USRP for 4 channels x 5 MS/s, of one usrp_source into null sinks.

The device must need less than the time that passes, on one core, so that a test's own blocks find room beside it:
without a transmission, and with all four channels transmitting, when sixteen paths are summed.
"""

import sys
import tempfile
import time
from pathlib import Path

import conftest  # noqa: F401  puts the sources on the path
import numpy as np
import virtual_usrp_device as virtual

if (reason := virtual.missing()) is not None:
    sys.exit(f"the virtual USRP cannot be built: {reason}")
virtual.use()
from benchmarking import conclude  # noqa: E402
from gnuradio import blocks, gr, uhd  # noqa: E402
from graph import wait_for  # noqa: E402
from virtual_usrp_graph import Radio  # noqa: E402

RATE, PORTS, SECONDS = 5_000_000, 4, 2


def processor_share(transmitting: bool) -> tuple[float, int]:
    """Processor seconds per second of streaming, and the number of overflows."""
    with tempfile.TemporaryDirectory() as folder:
        radio = Radio(uhd, Path(folder), rate=RATE)
        radio.set_time()
        tb, sinks = gr.top_block(), [blocks.null_sink(gr.sizeof_gr_complex) for _ in range(PORTS)]
        source = blocks.vector_source_c(np.full(1 << 16, 0.1).tolist(), True)
        sink = radio.sink
        if transmitting:  # one endless burst
            sink = uhd.usrp_sink(radio.args, uhd.stream_args("fc32", "", uhd.device_addr(""), list(range(PORTS))))
        for port in range(PORTS):
            tb.connect((radio.source, port), sinks[port])
            if transmitting:
                tb.connect(source, (sink, port))
        command = uhd.stream_cmd(uhd.STREAM_MODE_START_CONTINUOUS)
        command.stream_now, command.time_spec = False, radio.source.get_time_now() + uhd.time_spec(0.3)
        tb.start()
        radio.source.issue_stream_cmd(command)
        wait_for(lambda: sinks[0].nitems_read(0) > RATE / 10)
        begin, items = time.process_time(), sinks[0].nitems_read(0)
        wait_for(lambda: sinks[0].nitems_read(0) - items > SECONDS * RATE)
        spent, passed = time.process_time() - begin, (sinks[0].nitems_read(0) - items) / RATE
        tb.stop()
        tb.wait()
        return spent / passed, len(virtual.read_log(radio.log, "overflow"))


def main():
    verdicts = []
    for transmitting, label in ((False, "silent"), (True, "all transmit")):
        share, overflows = processor_share(transmitting)
        print(f"  {label}: {share:.2f} processor seconds a second, {overflows} overflows")
        verdicts.append((f"{PORTS} channels x {RATE / 1e6:g} MS/s, {label}: real time over processor time", 1 / share))
    return conclude([(label, ratio, ">=", 1) for label, ratio in verdicts])


if __name__ == "__main__":
    sys.exit(main())
