# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the sources importable as ``gnuradio.dmimo`` without an install, here and in the processes that tests start."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

# One BLAS thread: results and timings must not depend on how many cores are idle.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

MODULES = subprocess.run([ROOT / "scripts" / "source-path"], check=True, capture_output=True, text=True).stdout.strip()
sys.path.insert(0, MODULES)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [MODULES, os.environ.get("PYTHONPATH")]))
