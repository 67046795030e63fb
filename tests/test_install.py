# SPDX-License-Identifier: GPL-3.0-or-later
"""The CMake install: whole, importable from the system's interpreter alone, and gone after uninstall."""

import os
import re
import stat
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
PYTHON = "/usr/bin/python3"
SOURCES = ROOT / "python" / "dmimo"


def run(*command, check=True, **environment):
    env = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= environment
    return subprocess.run(
        [str(part) for part in command], env=env, check=check, capture_output=True, text=True, timeout=110, cwd="/"
    )


def configure(build, *options, **environment):
    return run("cmake", "-S", ROOT, "-B", build, *options, check=False, **environment)


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Return (prefix, build directory) of an install under a path with a space, python3 on PATH being a useless one."""
    base = tmp_path_factory.mktemp("an install")
    fake = base / "bin"
    fake.mkdir()
    (fake / "python3").write_text("#!/bin/sh\necho 'No module named gnuradio' >&2\nexit 1\n")
    (fake / "python3").chmod(0o755)
    path = f"{fake}:{os.environ['PATH']}"
    result = configure(base / "build", f"-DCMAKE_INSTALL_PREFIX={base / 'prefix'}", PATH=path)
    assert result.returncode == 0, result.stdout + result.stderr
    run("cmake", "--build", base / "build", PATH=path)
    run("cmake", "--install", base / "build", PATH=path)
    return base / "prefix", base / "build"


def module_path(prefix: Path) -> Path:
    (found,) = prefix.glob("lib/python3*/*-packages")
    return found


def test_every_source_is_installed_unchanged(installed):
    module = module_path(installed[0]) / "gnuradio" / "dmimo"
    sources = {path.relative_to(SOURCES) for path in SOURCES.rglob("*") if path.suffix in (".py", ".json")}
    assert len(sources) > 15
    assert {path.relative_to(module) for path in module.rglob("*") if path.suffix in (".py", ".json")} == sources
    for name in sources:
        assert (module / name).read_bytes() == (SOURCES / name).read_bytes(), name


def test_installed_module_imports_in_the_system_interpreter_without_user_packages(installed):
    modules = module_path(installed[0])
    script = "from gnuradio import dmimo, gr; print(dmimo.__file__, dmimo.__version__)"
    script += "; from gnuradio.dmimo import testbed; testbed.parse('version: 1\\nnodes: [{name: a}, {name: b}]')"
    result = run(PYTHON, "-s", "-c", script, PYTHONPATH=str(modules))
    file, _, version = result.stdout.strip().rpartition(" ")
    assert Path(file) == modules / "gnuradio" / "dmimo" / "__init__.py"
    assert version == project_version()


def test_blocks_examples_and_application_are_installed(installed):
    prefix = installed[0]
    for source, pattern, target in (
        ("grc", "*.block.yml", "share/gnuradio/grc/blocks"),
        ("examples", "*.grc", "share/gnuradio/examples/dmimo"),
        ("examples", "*.yml", "share/gnuradio/examples/dmimo"),
        ("apps", "dmimo", "bin"),
    ):
        names = {path.name for path in (ROOT / source).glob(pattern)}
        assert {path.name for path in (prefix / target).glob(pattern)} == names
    program = prefix / "bin" / "dmimo"
    assert program.stat().st_mode & stat.S_IXOTH
    assert program.read_text().startswith(f"#!{PYTHON}\n")
    result = run(program, "--help", PYTHONPATH=str(module_path(prefix)))
    assert "calibrate" in result.stdout


def test_schema_beside_the_installed_module_is_found(installed):
    modules = module_path(installed[0])
    script = "from gnuradio.dmimo import testbed; testbed.parse('version: 1\\nnodse: []')"
    result = run(PYTHON, "-s", "-c", script, check=False, PYTHONPATH=str(modules))
    assert result.returncode != 0
    assert "unknown key; did you mean nodes?" in result.stderr


def test_uninstall_leaves_no_file(installed):
    prefix, build = installed
    modules = module_path(prefix)
    run(PYTHON, "-s", "-c", "from gnuradio.dmimo import testbed", PYTHONPATH=str(modules), PYTHONDONTWRITEBYTECODE="")
    assert list(modules.rglob("__pycache__"))
    (prefix / "share" / "gnuradio" / "other").write_text("not ours")
    run("cmake", "--build", build, "--target", "uninstall")
    assert [path.name for path in prefix.rglob("*") if not path.is_dir()] == ["other"]
    assert not list(prefix.rglob("*dmimo*"))
    run("cmake", "--install", build)  # the other tests may follow


def test_interpreter_without_gnu_radio_is_refused_with_a_clear_message(tmp_path):
    useless = tmp_path / "python3"
    useless.write_text("#!/bin/sh\necho \"ModuleNotFoundError: No module named 'gnuradio'\" >&2\nexit 1\n")
    useless.chmod(0o755)
    result = configure(tmp_path / "build", f"-DPYTHON_EXECUTABLE={useless}")
    message = " ".join(result.stderr.split())
    assert result.returncode != 0
    assert "No Python interpreter that can import GNU Radio. Tried:" in message
    assert f"{useless}: ModuleNotFoundError: No module named 'gnuradio'" in message
    assert "-DPYTHON_EXECUTABLE=/path/to/python3" in message


def test_virtual_environment_first_on_the_path_is_passed_over(tmp_path):
    assert sys.prefix != sys.base_prefix, "the tests run in .venv"
    result = configure(tmp_path / "build", PATH=f"{sys.prefix}/bin:{os.environ['PATH']}")
    assert result.returncode == 0, result.stderr
    assert f"for {PYTHON}\n" in result.stdout


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [("/usr/local", r"/usr/local/lib/python3\.\d+/dist-packages"), ("/usr", "/usr/lib/python3/dist-packages")],
)
def test_module_goes_where_the_system_interpreter_looks(tmp_path, prefix, expected):
    result = configure(tmp_path / "build", f"-DCMAKE_INSTALL_PREFIX={prefix}")
    assert result.returncode == 0, result.stderr
    (place,) = re.findall("module: (.*)/gnuradio/dmimo$", result.stdout, re.MULTILINE)
    assert re.fullmatch(expected, place)
    assert place in run(PYTHON, "-s", "-c", "import sys; print(*sys.path, sep='\\n')").stdout.splitlines()


def project_version() -> str:
    return re.search('__version__ = "(.*)"', (SOURCES / "__init__.py").read_text())[1]


def test_one_version_everywhere():
    version = project_version()
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == version
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    manifest, description = yaml.safe_load_all((ROOT / "MANIFEST.yml").read_text())
    assert manifest["version"] == version
    assert len(description) > 50
    assert re.search(r"^## \[(.*?)\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == version


def test_wheel_has_every_package():
    packages = {"gnuradio.dmimo"} | {f"gnuradio.dmimo.{path.parent.name}" for path in SOURCES.glob("*/__init__.py")}
    assert set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]) == packages


def test_source_path_makes_and_mends_its_link(tmp_path):
    copy = tmp_path / "a copy"
    (copy / "scripts").mkdir(parents=True)
    (copy / "python" / "dmimo").mkdir(parents=True)
    script = copy / "scripts" / "source-path"
    script.write_bytes((ROOT / "scripts" / "source-path").read_bytes())
    script.chmod(0o755)
    link = copy / "build" / "test_modules" / "gnuradio" / "dmimo"
    for _ in range(2):
        assert run(script).stdout == f"{copy}/build/test_modules\n"
        assert link.resolve() == copy / "python" / "dmimo"
        link.unlink()
        link.symlink_to("/nowhere")


@pytest.mark.parametrize("script", ["bootstrap", "demo", "test", "bench", "source-path"])
def test_script_is_posix_shell_and_executable(script):
    path = ROOT / "scripts" / script
    assert path.stat().st_mode & stat.S_IXUSR
    assert path.read_text().startswith("#!/bin/sh\n# SPDX-License-Identifier: GPL-3.0-or-later\n")
    assert "set -eu" in path.read_text()
    run("dash", "-n", path)
