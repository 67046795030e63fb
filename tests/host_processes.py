# SPDX-License-Identifier: GPL-3.0-or-later
"""Several `dmimo` processes on this machine, with their output in files, and what can lie between them."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 90.0


PORTS = range(20_000, 32_000)  # below those that Linux gives to connections of its own choice
_kept: list[socket.socket] = []


def free_ports(count: int) -> int:
    """First of so many consecutive TCP ports that are free, and that no other test process is given."""
    for first in range(PORTS.start, PORTS.stop - count, count):
        if all(map(_keep, range(first, first + count))):
            return first
    raise OSError(f"no {count} consecutive free ports")


def _keep(port: int) -> bool:
    """Whether a port is free, and now kept for this process until it ends."""
    mark = socket.socket(socket.AF_UNIX)
    try:
        mark.bind(f"\0gr-dmimo test port {port}")  # a name that is no file, and goes with the process
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
    except OSError:
        mark.close()
        return False
    _kept.append(mark)
    return True


class Relay:
    """Carries TCP connections from one address to another, as a tunnel does, until it is cut.

    With `hold` the far end of a connection is kept when the near one closes, as of a machine whose power has failed.
    """

    def __init__(self, source: str, target: str, ports: Iterable[int], hold: bool = False):
        self._hold, self._kept = hold, []
        self._cut = threading.Event()
        self._listening = []
        for port in ports:
            self._listening.append(socket.create_server((source, port)))
            self._run(self._accept, self._listening[-1], (target, port))

    def cut(self) -> None:
        """Carry nothing any more, without a word to either end."""
        self._cut.set()

    def close(self) -> None:
        """Accept no more connections."""
        for server in self._listening:
            server.close()

    def _run(self, function, *arguments) -> None:
        threading.Thread(target=function, args=arguments, daemon=True).start()

    def _accept(self, server: socket.socket, target: tuple[str, int]) -> None:
        with suppress(OSError):  # closed
            while True:
                near, _ = server.accept()
                try:
                    far = socket.create_connection(target)
                except OSError:  # nobody there: a tunnel accepts, and then hangs up
                    near.close()
                    continue
                self._kept.append(far)
                self._run(self._carry, near, far, self._hold)
                self._run(self._carry, far, near, False)

    def _carry(self, source: socket.socket, target: socket.socket, hold: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if not self._cut.is_set():
                    target.sendall(data)
            if not (hold or self._cut.is_set()):
                target.shutdown(socket.SHUT_RDWR)


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
        self.reaches(lambda: text in self.output, f"say {text!r}", limit_s)

    def reaches(self, condition: Callable[[], bool], what: str, limit_s: float = LIMIT_S) -> None:
        """Return once a condition holds."""
        deadline = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < deadline, f"{self.arguments} did not {what}: {self.output}"
            assert self.process.poll() is None or condition(), f"{self.arguments} has ended: {self.output}"
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
