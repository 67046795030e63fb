# SPDX-License-Identifier: GPL-3.0-or-later
"""A link to another host over GNU Radio's ZeroMQ message blocks, and what is said over it besides a run's messages.

Everything that crosses is ``((session . to) . message)``, see `host_endpoint`. A session is one run of the coordinator.
`to` is "name/port" for a message of the run's blocks (`host_bridge`), "record/node" for the recorder, or "link" for
these:

===== ==================================================== ============================================================
type  keys                                                 meaning
===== ==================================================== ============================================================
hello host, instance, version, configuration               a host is there; repeated until it is answered
beat  instance                                             still there; both ways, every heartbeat
start nodes, absent, protocol, verify, duration_s, seed,   to hosts: build your part of this run, without these hosts
      record
ready instance, hash                                       the host has built it, and this is its schedule
go                                                         to hosts: run
end   error                                                to hosts: the run is over; error is empty where it succeeded
bye   instance, error                                      the host has ended, and sends nothing more
===== ==================================================== ============================================================
"""

import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pmt
from gnuradio import blocks, gr, zeromq

from .blocks import messages
from .blocks.host_endpoint import host_endpoint, pieces
from .hosts import Addresses

LINK = "link"
POLL_MS = 100  # how long the ZeroMQ source waits for a message before it looks whether it is to stop
DRAIN_S = 0.5
FLUSH_S = 0.1
LIMIT_S = 10.0
IN = pmt.intern("in")
TEXTS = ("configuration", "error")  # of any length


def text(message, key: str) -> str:
    """A long text in one of the link's own messages."""
    return "".join(messages.get(message, key))


class Link:
    """One host's pair of sockets, served by a flowgraph of its own from `open` to `close`.

    Parameters
    ----------
    addresses : Addresses
    coordinator : bool
        Whether this is the coordinator's end, which binds both sockets.
    receive : callable(session, to, message)
    failed : callable(text)
        See `host_endpoint`.

    Raises
    ------
    ValueError
        If a socket cannot be bound or connected.
    """

    def __init__(self, addresses: Addresses, coordinator: bool, receive: Callable[[str, str, object], None],
                 failed: Callable[[str], None]):
        self._addresses, self._coordinator = addresses, coordinator
        self._receive, self._failed = receive, failed
        self._sending = threading.Lock()
        self._build()

    def _build(self) -> None:
        control, status, binds = self._addresses.control, self._addresses.status, self._coordinator
        out, into = (control, status) if binds else (status, control)
        self._push = _socket(zeromq.push_msg_sink, out, binds)
        self._pull = _socket(zeromq.pull_msg_source, into, binds)
        self._endpoint = host_endpoint(self._receive, self._failed)
        self._top = gr.top_block("link")
        self._top.msg_connect(self._pull, "out", self._endpoint, "in")
        self._top.msg_connect(self._endpoint, "out", self._push, "in")

    def reopen(self) -> None:
        """Close the sockets and open them again, so that nothing leads any more to a program that has gone.

        A PUSH socket deals its messages out to all who are connected, and one whose machine has failed stays so.
        """
        self.close()
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                self._build()
                break
            except ValueError:  # ZeroMQ closes sockets some time later
                if time.monotonic() > deadline:
                    raise
                time.sleep(FLUSH_S)
        self.open()

    def open(self) -> None:
        """Begin to send and receive."""
        self._top.start()

    def send(self, session: str, to: str, message) -> None:
        """Send a message, unless the link is closed; from any thread."""
        with self._sending:
            if self._endpoint is not None:
                self._endpoint.send(session, to, message)

    def say(self, session: str, kind: str, **fields) -> None:
        """Send one of the link's own messages."""
        whole = {key: pieces(value) if key in TEXTS else value for key, value in fields.items()}
        self.send(session, LINK, messages.encode(kind, **whole))

    def close(self) -> None:
        """Send what is left, for a limited time, and close the sockets."""
        deadline = time.monotonic() + DRAIN_S
        while self._push.nmsgs(IN) and time.monotonic() < deadline:
            time.sleep(FLUSH_S)
        # The ZeroMQ sink drops what has not left it yet.
        time.sleep(FLUSH_S)
        self._top.stop()
        waiting = threading.Thread(target=self._top.wait, name="link closing", daemon=True)
        waiting.start()
        waiting.join(DRAIN_S)
        if waiting.is_alive() and self._coordinator:
            self._drain(waiting)
        # A thread that comes back from GNU Radio when Python has ended would keep the process from ending.
        waiting.join(LIMIT_S)
        with self._sending:
            # ZeroMQ's sockets live, and take messages, as long as their blocks.
            self._push = self._pull = self._endpoint = self._top = None

    def _drain(self, waiting: threading.Thread) -> None:
        """Take the message off whose sending waits for a host that is not there: the ZeroMQ sink has no time limit."""
        drain = gr.top_block("drain")
        source = zeromq.pull_msg_source(self._push.last_endpoint(), POLL_MS, False)
        sink = blocks.message_debug()
        drain.msg_connect(source, "out", sink, "store")
        drain.start()
        waiting.join(LIMIT_S)
        drain.stop()
        drain.wait()


def _socket(block, address: str, bind: bool):
    """ZeroMQ block on an address; ValueError that says what to change where that fails."""
    try:
        return block(address, POLL_MS, bind)
    except RuntimeError as error:
        reasons = {"Address already in use": "another program uses it; choose another hosts.port",
                   "No such device": "this machine has no such address; see hosts.bind",
                   "Cannot assign requested address": "this machine has no such address; see hosts.bind"}
        reason = reasons.get(str(error), str(error))
        raise ValueError(f"{address}: cannot {'listen there' if bind else 'connect'}: {reason}") from None


class Beater:
    """Thread that calls a function every so often from `start` until it is stopped."""

    def __init__(self, beat: Callable[[], None], period_s: float):
        self._beat, self._period_s = beat, period_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to call."""
        self._thread.start()

    def _run(self) -> None:
        while not self._stopped.wait(self._period_s):
            self._beat()

    def stop(self) -> None:
        """End the thread, unless it is the calling one or was not started."""
        self._stopped.set()
        with suppress(RuntimeError):
            self._thread.join(LIMIT_S)
