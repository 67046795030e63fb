# SPDX-License-Identifier: GPL-3.0-or-later
"""Make the sources importable as ``gnuradio.dmimo`` without an install: link them into build/test_modules."""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MODULES = ROOT / "build" / "test_modules"

# One BLAS thread: results and timings must not depend on how many cores are idle.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")


def _link_sources() -> None:
    package = MODULES / "gnuradio" / "dmimo"
    package.parent.mkdir(parents=True, exist_ok=True)
    if not package.is_symlink() or package.resolve() != ROOT / "python" / "dmimo":
        package.unlink(missing_ok=True)
        package.symlink_to(os.path.relpath(ROOT / "python" / "dmimo", package.parent), target_is_directory=True)
    sys.path.insert(0, str(MODULES))
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(MODULES), os.environ.get("PYTHONPATH")]))


_link_sources()
