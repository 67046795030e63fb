# SPDX-License-Identifier: GPL-3.0-or-later
"""Late bursts of whole runs on virtual USRPs at the default leads, while other processes keep every core busy.

Two boards x two channels, 1 MS/s, PPS; each protocol runs ten times, beside one busy process for every core. What
counts is what the device has logged: bursts that came after their time, and the shortest time that one came before it.
"""

import os
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
import conftest  # noqa: F401  puts the sources on the path
import numpy as np
import virtual_usrp_device as virtual

if (reason := virtual.missing()) is not None:
    sys.exit(f"the virtual USRP cannot be built: {reason}")
virtual.use()
import qa_usrp_protocols as protocols  # noqa: E402

RUNS = 10
PROTOCOLS = (("beam sweep", protocols.SWEEP, None), ("BeamSync", protocols.BEAMSYNC, "sync"),
             ("bidirectional", protocols.BIDIRECTIONAL, None))


@contextmanager
def busy_cores():
    """As many processes that compute as there are cores."""
    burn = [sys.executable, "-c", "while True: pass"]
    processes = [subprocess.Popen(burn) for _ in os.sched_getaffinity(0)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


def play(text, protocol):
    """Leads [s] of a run's bursts, how many were late, and the run's error."""
    with tempfile.TemporaryDirectory() as folder:
        assembly, log = protocols.on_radio(text, Path(folder), protocol, loop_delay=40)
        _, outcome = protocols.run(assembly, duration_s=1.0)
        bursts = virtual.read_log(log, "burst")
    return [burst["lead"] for burst in bursts], sum(burst["late"] for burst in bursts), outcome.error


def main() -> int:
    print(f"{RUNS} runs of each protocol on virtual USRPs, every core busy")
    print(f"{'':16}{'bursts':>8}{'late':>6}{'shortest lead [ms]':>20}{'median [ms]':>13}{'failed':>8}  no late one")
    reached = True
    with busy_cores():
        for name, text, protocol in PROTOCOLS:
            leads, late, errors = zip(*(play(text, protocol) for _ in range(RUNS)), strict=True)
            leads = 1e3 * np.concatenate(leads)
            failed = [error for error in errors if error is not None]
            good = not sum(late) and not failed
            reached &= good
            print(f"{name:16}{leads.size:8}{sum(late):6}{leads.min():20.1f}{np.median(leads):13.1f}{len(failed):8}  "
                  f"{'PASS' if good else 'FAIL'}")
            for error in failed:
                print(f"  {error}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())
