# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the sources importable as ``gnuradio.dmimo`` without an install, here and in the processes that tests start."""

import gc
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

os.environ.setdefault("MPLBACKEND", "Agg")
# A shell lets what it starts in the background ignore Ctrl-C, and so would all that the tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

MODULES = subprocess.run([ROOT / "scripts" / "source-path"], check=True, capture_output=True, text=True).stdout.strip()
sys.path.insert(0, MODULES)
from gnuradio.dmimo import arithmetic  # noqa: E402

arithmetic.make_repeatable()
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [MODULES, os.environ.get("PYTHONPATH")]))

COLLECTED_EVERY = 2
_tests = itertools.count(1)


def pytest_runtest_teardown(item):
    """Free flowgraphs: they are cycles, and hold pieces of shared memory of which a system has 4096 for all."""
    if next(_tests) % COLLECTED_EVERY == 0:
        gc.collect()


@pytest.fixture
def dmimo_environment():
    """Variables of the commands that `dmimo` starts, None for those of the tests; to be overridden."""
    return None


@pytest.fixture
def dmimo(tmp_path, dmimo_environment):
    """Starts ``dmimo`` commands in a folder of the test, and ends those that are left."""
    from host_processes import Processes

    processes = Processes(tmp_path, dmimo_environment)
    yield processes
    processes.close()


@pytest.fixture(scope="session")
def uhd():
    """``gnuradio.uhd`` in a process whose UHD knows the virtual USRP; skips where that cannot be built."""
    import virtual_usrp_device

    virtual_usrp_device.use()
    from gnuradio import uhd

    return uhd
