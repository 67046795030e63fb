# SPDX-License-Identifier: GPL-3.0-or-later
"""Imports point one way, and the numerical layers need no GNU Radio."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parent.parent / "python" / "dmimo"
PACKAGE = "gnuradio.dmimo"
MODULES = sorted(path.relative_to(SOURCES) for path in SOURCES.rglob("*.py"))

# Layer -> (what of this package it may import, which other packages). A layer is a sub-package or a top-level module;
# "" is the package's own __init__, which everything may ask for the version.
TESTBED = {"coupling_checks", "radio_checks", "testbed", "testbed_checks", "testbed_sections", "testbed_yaml"}
FILES = {"csi_records", "records", *TESTBED}
RADIO = {"radio_clock", "radio_settings", "radio_time"}
RECORDINGS = {"recording", "recording_format"}
PLOTTING = {"core", "plotting_bidirectional", "plotting_bidirectional_run", "plotting_panels", "plotting_style",
            "plotting_predistortion", "plotting_sync_run", "plotting_synchronization"}
LAYERS = {
    "core": ({"core"}, {"numpy", "scipy"}),
    "simulation": ({"simulation", "core.waveforms"}, {"numpy", "scipy"}),
    "protocols": ({"protocols", "core"}, {"numpy"}),
    "radio_clock": ({"radio_time"}, set()),
    "radio_settings": (set(), set()),
    "radio_time": (set(), set()),
    "coupling_checks": (TESTBED, set()),
    "radio_checks": (TESTBED, set()),
    "radio_plan": ({"protocols", "radio_settings"} | TESTBED, set()),
    "testbed": (TESTBED, {"yaml", "jsonschema"}),
    "testbed_sections": (set(), set()),
    "testbed_yaml": (set(), {"yaml"}),
    "testbed_checks": (TESTBED, {"jsonschema"}),
    "records": (TESTBED, {"numpy", "h5py"}),
    "csi_records": ({"records"}, {"numpy", "h5py"}),
    "records_predistortion": ({"core", "records"} | TESTBED, {"numpy", "h5py"}),
    "plotting": (PLOTTING, {"numpy", "matplotlib"}),
    "plotting_bidirectional": ({"plotting_style"}, {"numpy", "matplotlib"}),
    "plotting_bidirectional_run": ({"plotting_panels"}, {"numpy", "matplotlib"}),
    "plotting_panels": ({"plotting_style"}, {"numpy", "matplotlib"}),
    "plotting_predistortion": ({"core", "plotting_style"}, {"numpy", "matplotlib"}),
    "plotting_style": (set(), {"numpy", "matplotlib"}),
    "plotting_sync_run": ({"plotting_style"}, {"numpy", "matplotlib"}),
    "plotting_synchronization": ({"plotting_style"}, {"numpy", "matplotlib"}),
    "experiments": ({"experiments", "core", "simulation", "protocols", "plotting", "records"},
                    {"numpy", "scipy", "dask", "distributed"}),
    "assembly": ({"core", "simulation", "protocols", "bidirectional_assembly", "linearization_assembly", "radio_plan",
                  "radio_settings", "simulated", "synchronization_assembly"} | FILES, {"numpy"}),
    "simulated": ({"core", "simulation", "protocols", "testbed"}, {"numpy"}),
    "bidirectional_assembly": ({"core", "protocols", "testbed"}, {"numpy"}),
    "linearization_assembly": ({"core", "protocols", "testbed"}, set()),
    "linearization_curves": ({"core"}, {"numpy"}),
    "synchronization_assembly": ({"core", "protocols", "linearization_assembly", "testbed"}, {"numpy"}),
    "recording_format": ({"records"}, {"numpy"}),
    "recording": ({"protocols", "assembly", "recording_format"} | FILES, {"numpy"}),
    "recorded": ({"protocols", "recording_format"} | FILES, {"numpy"}),
    "calibration_files": ({"protocols", "assembly", "records_predistortion"} | FILES, set()),
    "replay": ({"protocols", "assembly", "calibration_files", "direct", "recorded", "recording_format", "reports"}
               | FILES, set()),
    "direct": ({"simulation", "protocols"}, {"numpy"}),
    "reports": ({"core", "simulation", "protocols", "assembly", "reports_bidirectional", "reports_linearization"}
                | FILES, {"numpy"}),
    "reports_bidirectional": ({"core", "simulation", "protocols", "assembly"}, {"numpy"}),
    "reports_linearization": ({"core", "simulation", "protocols", "assembly", "simulated"}, {"numpy"}),
    "run_tables": ({"protocols", "reports"}, {"numpy", "rich"}),
    "blocks": ({"blocks", "core", "simulation", "protocols", "assembly", "calibration_files", "linearization_curves"}
               | RADIO | RECORDINGS | FILES, {"numpy", "gnuradio", "pmt"}),
    "flowgraphs": ({"blocks", "core", "protocols", "assembly", "calibration_files", "reports"} | RADIO | RECORDINGS
                   | FILES, {"gnuradio"}),
    "hosts": (TESTBED, set()),
    "hosts_link": ({"blocks", "hosts"}, {"gnuradio", "pmt"}),
    "hosts_flowgraphs": ({"blocks", "protocols", "assembly", "flowgraphs"} | RADIO, {"numpy", "gnuradio", "pmt"}),
    "hosts_coordinator": ({"blocks", "assembly", "flowgraphs", "hosts", "hosts_flowgraphs", "hosts_link"} | RADIO
                          | RECORDINGS | FILES, {"gnuradio"}),
    "hosts_node": ({"blocks", "assembly", "flowgraphs", "hosts", "hosts_flowgraphs", "hosts_link"} | FILES, set()),
    "doctor": ({"doctor", "core", "protocols", "blocks", "radio_plan"} | RADIO | TESTBED,
               {"numpy", "scipy", "gnuradio", "pmt", "rich"}),
    "arithmetic": (set(), set()),
    "": (set(), set()),
}  # fmt: skip
DYNAMIC = {"import_module", "__import__", "exec", "eval"}
LOADS_DYNAMICALLY = {Path("__init__.py")}  # the lazy exports of the blocks


def layer_of(path: Path) -> str:
    return path.parts[0] if len(path.parts) > 1 else path.stem.removesuffix("__init__").removesuffix("__main__")


def imported(path: Path, tree: ast.Module) -> set[str]:
    """Return the full names of all modules that a file imports, wherever in it the import stands."""
    package = [PACKAGE, *path.parts[:-1]]
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            names |= {f"{module}.{alias.name}" for alias in node.names}
    return names


def inside(name: str) -> str | None:
    """Return the part of a name below this package, down to the module that exists; None for other packages."""
    if name != PACKAGE and not name.startswith(PACKAGE + "."):
        return None
    parts = name.removeprefix(PACKAGE).strip(".").split(".")
    while parts and not ((SOURCES / Path(*parts)).is_dir() or (SOURCES / Path(*parts)).with_suffix(".py").exists()):
        parts.pop()
    return ".".join(filter(None, parts))


def violations(path: Path, source: str) -> list[str]:
    """Return what in a module at `path` (below python/dmimo) points the wrong way."""
    tree = ast.parse(source)
    layer = layer_of(path)
    if layer not in LAYERS:
        return [f"{path}: a new layer: say here what it may import"]
    internal, external = LAYERS[layer]
    found = []
    for name in sorted(imported(path, tree)):
        target = inside(name)
        if target is None:
            top = name.split(".")[0]
            if top not in external and top not in sys.stdlib_module_names:
                found.append(f"{path}: imports {name}; allowed: {sorted(external)}")
        elif target and not any(target == allowed or target.startswith(allowed + ".") for allowed in internal):
            found.append(f"{path}: imports {target}; allowed: {sorted(internal)}")
    calls = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    calls |= {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr == "import_module"}
    if path not in LOADS_DYNAMICALLY:
        found += [f"{path}: uses {name}, which hides imports from this test" for name in sorted(calls & DYNAMIC)]
    if layer == "blocks":
        names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        names |= {part for name in imported(path, tree) if name.startswith("numpy.") for part in name.split(".")}
        found += [f"{path}: uses {name}: linear algebra belongs in core" for name in sorted(names & {"linalg", "fft"})]
    return found


@pytest.mark.parametrize("path", MODULES, ids=str)
def test_imports_point_one_way(path):
    assert not violations(path, (SOURCES / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/x.py", "from gnuradio import gr"),
        ("core/x.py", "def f():\n    import matplotlib.pyplot"),
        ("core/x.py", "from ..simulation import network"),
        ("core/x.py", "from .. import simulation"),
        ("core/x.py", "from gnuradio.dmimo.protocols.slots import Slot"),
        ("core/x.py", "import importlib\nimportlib.import_module('gnuradio')"),
        ("core/x.py", "__import__('gnuradio')"),
        ("core/deeper/x.py", "from ...testbed import load"),
        ("simulation/x.py", "from ..core import reciprocity"),
        ("simulation/x.py", "from ..core.sounding import estimate"),
        ("simulation/x.py", "from .. import core"),
        ("protocols/x.py", "from ..simulation.network import Network"),
        ("protocols/x.py", "import pmt"),
        ("protocols/x.py", "import scipy.linalg"),
        ("testbed.py", "import matplotlib"),
        ("records.py", "import pmt"),
        ("records.py", "from .plotting import bars"),
        ("experiments/x.py", "from ..blocks import node"),
        ("experiments/x.py", "import matplotlib"),
        ("plotting.py", "from gnuradio import gr"),
        ("assembly.py", "from .blocks import node"),
        ("flowgraphs.py", "import dask"),
        ("blocks/x.py", "import dask.array"),
        ("blocks/x.py", "import numpy as np\nnp.linalg.solve(a, b)"),
        ("blocks/x.py", "import numpy as np\nnp.fft.fft(a)"),
        ("blocks/x.py", "from numpy import fft"),
        ("blocks/x.py", "from numpy.linalg import svd"),
        ("blocks/x.py", "from scipy import fft"),
        ("blocks/x.py", "import sigmf"),
        ("blocks/x.py", "from ..experiments import registry"),
        ("__init__.py", "from gnuradio import gr"),
        ("__init__.py", "from .blocks.node import node"),
        ("new_thing.py", "import os"),
        ("new_things/x.py", "import os"),
    ],
)
def test_wrong_import_is_found(path, source):
    assert len(violations(Path(path), source)) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("core/x.py", "import numpy as np\nfrom scipy import fft\nfrom . import bounds\nfrom .graph import y"),
        ("simulation/x.py", "from ..core import waveforms\nfrom ..core.waveforms import dft_codebook\nimport os.path"),
        ("experiments/x.py", "from ..core import bounds\nfrom .. import __version__, plotting\nimport dask"),
        ("blocks/x.py", "from gnuradio import gr\nimport pmt\nfrom ..core import precoding\nfrom . import messages"),
    ],
)
def test_right_import_is_accepted(path, source):
    assert violations(Path(path), source) == []


WITHOUT_GNU_RADIO = """
import importlib, importlib.util, pkgutil, sys
from importlib.machinery import ModuleSpec

class OnlyDmimo:
    # A gnuradio package that holds dmimo and nothing else, as on a machine where GNU Radio is not installed.
    def find_spec(self, name, path=None, target=None):
        if name == "gnuradio":
            spec = ModuleSpec(name, None, is_package=True)
            spec.submodule_search_locations = [sys.argv[1] + "/gnuradio"]
            return spec
        if name.split(".")[0] in ("pmt", "uhd"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, OnlyDmimo())
for absent in ("gnuradio.gr", "gnuradio.blocks", "pmt"):
    try:
        importlib.import_module(absent)
    except ModuleNotFoundError:
        continue
    sys.exit(f"{absent} can be imported: this test would show nothing")
try:
    from gnuradio.dmimo.blocks import messages
    sys.exit("a block can be imported: this test would show nothing")
except ModuleNotFoundError:
    pass

from gnuradio import dmimo
names = ["testbed", "records", "plotting", "direct", "recording", "replay"]
for package in ("core", "simulation", "protocols", "experiments"):
    path = importlib.import_module("gnuradio.dmimo." + package).__path__
    names += [f"{package}.{module.name}" for module in pkgutil.walk_packages(path)]
for name in names:
    importlib.import_module("gnuradio.dmimo." + name)
print(len(names), *sorted(name for name in sys.modules if name.startswith("gnuradio.") and "dmimo" not in name))
"""


def test_numerical_layers_import_where_gnu_radio_is_absent():
    modules = SOURCES.parent.parent / "build" / "test_modules"
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_GNU_RADIO, modules], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stderr
    count, *strangers = result.stdout.split()
    packages = ("core", "simulation", "protocols", "experiments")
    assert int(count) == 6 + sum(path.parts[0] in packages and path.stem != "__init__" for path in MODULES)
    assert strangers == []
