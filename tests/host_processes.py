# SPDX-License-Identifier: GPL-3.0-or-later
"""Several `dmimo` processes on this machine: a coordinator and hosts, with their output in files."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 90.0


def free_ports(count: int) -> int:
    """First of so many consecutive TCP ports that are free."""
    for _ in range(100):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            first = probe.getsockname()[1]
        if first + count < 65000 and all(map(_is_free, range(first, first + count))):
            return first
    raise OSError(f"no {count} consecutive free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


class Dmimo:
    """A running ``dmimo`` command.

    Parameters
    ----------
    folder : Path
        Its working directory.
    arguments : sequence
    prelude : str
        Python statements to run in it first.
    environment : mapping, optional
    """

    def __init__(self, folder: Path, *arguments, prelude: str = "", environment: Mapping[str, str] | None = None):
        self.arguments = [str(argument) for argument in arguments]
        program = str(ROOT / "apps" / "dmimo")
        command = [program] if not prelude else [
            "-c", f"import runpy, sys\n{prelude}\nsys.argv = {[program, *self.arguments]!r}\n"
                  f"runpy.run_path({program!r}, run_name='__main__')"]
        self._output = folder / f"output-{time.monotonic_ns()}"
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, *command, *([] if prelude else self.arguments)], cwd=folder, stdin=subprocess.DEVNULL,
                stdout=output, stderr=subprocess.STDOUT, env={**(environment or os.environ), "COLUMNS": "120"})

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text()

    def ends(self, limit_s: float = LIMIT_S) -> int:
        """Its exit code, once it has ended."""
        try:
            return self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"{self.arguments} did not end within {limit_s:g} s: {self.output}") from None

    def says(self, text: str, limit_s: float = LIMIT_S) -> None:
        """Return once it has printed this."""
        deadline = time.monotonic() + limit_s
        while text not in self.output:
            assert time.monotonic() < deadline, f"{self.arguments} did not say {text!r}: {self.output}"
            assert self.process.poll() is None or text in self.output, f"{self.arguments} has ended: {self.output}"
            time.sleep(0.02)


class Processes:
    """Starts commands in a folder, and ends those that are left."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None):
        self.folder, self._environment = folder, environment
        self._started: list[Dmimo] = []

    def __call__(self, *arguments, prelude: str = "") -> Dmimo:
        """Start a command."""
        self._started.append(Dmimo(self.folder, *arguments, prelude=prelude, environment=self._environment))
        return self._started[-1]

    def close(self) -> None:
        """End those that are left."""
        for member in self._started:
            if member.process.poll() is None:
                member.process.kill()
            member.process.wait()
