# SPDX-License-Identifier: GPL-3.0-or-later
"""The virtual USRP (tests/virtual_usrp) for tests: built once, found by UHD as ``type=virtual``.

libuhd reads ``UHD_MODULE_PATH`` when it is loaded: a process that runs on the virtual USRP either gets `environment`
from its parent or calls `use` before anything imports ``gnuradio.uhd``. What the device arguments mean stands in
tests/virtual_usrp/settings.hpp.
"""

import fcntl
import functools
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).resolve().parent / "virtual_usrp"
BUILD = SOURCES.parent.parent / "build" / "virtual_usrp"
EXAMPLES = [Path(folder, "uhd", "examples") for folder in ("/usr/libexec", "/usr/lib", "/usr/local/lib")]
FLAGS = ["-std=c++17", "-O3", "-fPIC", "-Wall", "-Wextra"]


def _pkg_config(*options: str) -> list[str] | None:
    """Options for UHD, or None where its headers are not installed."""
    if shutil.which("pkg-config"):
        done = subprocess.run(["pkg-config", *options, "uhd"], capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.split()
    if Path("/usr/include/uhd/device.hpp").exists():
        return ["-luhd"] if "--libs" in options else []
    return None


def missing() -> str | None:
    """What keeps the virtual USRP from being built, or None."""
    if shutil.which("g++") is None:
        return "no g++ (apt: g++)"
    if _pkg_config("--cflags") is None:
        return "no UHD headers (apt: libuhd-dev)"
    return None


def _build(target: Path) -> None:
    # All sources as one: UHD's and Boost's headers cost more time than the sources.
    unit = "".join(f'#include "{source}"\n' for source in sorted(SOURCES.glob("*.cpp")))
    # UHD loads every file of the directory: only the finished library may lie there.
    finished = BUILD / f"{target.parent.name}.so"
    command = ["g++", *FLAGS, "-x", "c++", "-", *_pkg_config("--cflags"), "-shared", "-o", str(finished)]
    done = subprocess.run([*command, *_pkg_config("--libs")], input=unit, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    target.parent.mkdir(exist_ok=True)
    finished.rename(target)


@functools.cache
def library() -> Path:
    """The built library; skips the test, saying why, where it cannot be built.

    It is kept under build/, by the hash of its sources: a session builds it only after a change.
    """
    reason = missing()
    if reason is not None:
        pytest.skip(f"the virtual USRP cannot be built: {reason}")
    digest = hashlib.sha256(repr([FLAGS, _pkg_config("--cflags", "--modversion")]).encode())
    for source in sorted(SOURCES.glob("*.[ch]pp")):
        digest.update(source.name.encode() + source.read_bytes())
    target = BUILD / digest.hexdigest()[:16] / "libvirtual_usrp.so"
    if not target.exists():
        BUILD.mkdir(parents=True, exist_ok=True)
        with open(BUILD / "lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # test processes of one session build it once
            if not target.exists():
                _build(target)
    return target


def environment() -> dict[str, str]:
    """Variables for a process that runs on the virtual USRP; UHD is told to write warnings only."""
    return {**os.environ, "UHD_MODULE_PATH": str(library().parent), "UHD_LOG_CONSOLE_LEVEL": "warning"}


def use() -> None:
    """Make the virtual USRP known to this process, before its first import of ``gnuradio.uhd``."""
    wanted = environment()
    if os.environ.get("UHD_MODULE_PATH") == wanted["UHD_MODULE_PATH"]:
        return
    if "gnuradio.uhd" in sys.modules:
        raise RuntimeError("gnuradio.uhd was imported before virtual_usrp_device.use(): UHD has read its modules")
    os.environ.update(wanted)


def arguments(**options: object) -> str:
    """Device arguments: ``arguments(num_mboards=2)`` is ``"type=virtual,num_mboards=2"``; colons join lists."""
    words = {
        key: ":".join(map(str, value)) if isinstance(value, list | tuple) else value for key, value in options.items()
    }
    return ",".join(["type=virtual", *(f"{key}={value}" for key, value in words.items())])


def example(name: str, *options: str) -> str:
    """What one of the examples that come with UHD prints on the virtual USRP; skips the test where there are none."""
    found = [path for folder in EXAMPLES if (path := folder / name).exists()]
    if not found:
        pytest.skip("no UHD examples (apt: uhd-host)")
    command = [found[0], *options]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


def read_log(path: str | Path, what: str | None = None) -> list[dict]:
    """The commands in a device's log, in the order of their arrival; only those of the kind ``what``."""
    entries = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return [entry for entry in entries if what is None or entry["what"] == what]


if __name__ == "__main__":
    print(missing() or library())
