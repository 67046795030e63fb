# SPDX-License-Identifier: GPL-3.0-or-later
"""Where messages leave a flowgraph for another host, and where those from there enter it."""

from collections.abc import Callable, Sequence

import pmt

from . import messages
from .guard import guarded
from .host_endpoint import PIECE, pieces
from .lean import lean_message_block

LINK, STATUS, END, ERROR = (pmt.intern(name) for name in ("link", "status", "end", "error"))
FAILURE = "failure"


def _failure(text: str):
    return messages.encode(FAILURE, text=pieces(text))


class host_bridge(lean_message_block):
    """Stands for blocks that run on another host: what comes on a port here leaves by the port of that name there.

    Besides the ports that are asked for it has `end`: the scheduler's `end` comes out there at once, whether the other
    host still lives or not, for transmitters here.

    Parameters
    ----------
    name : str
        Equal at both ends.
    send : callable(to, message)
        Sends a message to the other host; `to` is "name/port".
    inputs, outputs : sequence of str
        Ports to the other host: any of `control`, `status`, `results`, `tx`, `arm`, `rx`. And from it.
    """

    def __init__(self, name: str, send: Callable[[str, object], None], inputs: Sequence[str], outputs: Sequence[str]):
        lean_message_block.__init__(self, f"host_bridge {name}")
        self._prefix, self._send = f"{name}/", send
        self._outputs = frozenset(outputs)
        for port in inputs:
            self.message_port_register_in(pmt.intern(port))
            self.set_msg_handler(pmt.intern(port), getattr(self, f"handle_{port}"))
        self.message_port_register_in(LINK)
        self.set_msg_handler(LINK, self.handle_link)
        for port in dict.fromkeys([*outputs, "end", "error"]):
            self.message_port_register_out(pmt.intern(port))

    def members(self):
        """This block, where it stands for a `node`: for a common processor affinity."""
        return [self]

    def deliver(self, port: str, message) -> None:
        """Publish a message from the other host, once the flowgraph runs; from any thread."""
        if port not in self._outputs:
            raise ValueError(f"message for port {port!r} of {self.name()}: has {sorted(self._outputs)}")
        self._post(LINK, pmt.cons(pmt.intern(port), message))

    def handle_error(self, text: str) -> None:
        """Tell the scheduler, here or at the other end."""
        if "status" in self._outputs:
            self.message_port_pub(STATUS, pmt.intern(text))
        else:
            self._send(f"{self._prefix}status", _failure(text))

    @guarded
    def handle_link(self, message):
        """Publish what has been delivered."""
        port, message = pmt.car(message), pmt.cdr(message)
        if messages.kind(message) == FAILURE:
            message = pmt.intern("".join(messages.get(message, "text")))
        self.message_port_pub(port, message)

    @guarded
    def handle_control(self, message):
        """Pass on what the scheduler says; of an `end`, which may carry a traceback, only that it is one."""
        if messages.kind(message) == "end":
            self.message_port_pub(END, messages.DONE)
            message = pmt.dict_add(message, ERROR, pmt.intern(messages.get(message, "error")[:PIECE]))
        self._send(f"{self._prefix}control", message)

    @guarded
    def handle_status(self, message):
        """Pass on acknowledgements, and errors, which are symbols of any length."""
        if pmt.is_symbol(message):
            message = _failure(pmt.symbol_to_string(message))
        self._send(f"{self._prefix}status", message)

    @guarded
    def handle_results(self, message):
        """Pass on results."""
        self._send(f"{self._prefix}results", message)

    @guarded
    def handle_tx(self, message):
        """Pass on a burst to send."""
        self._send(f"{self._prefix}tx", message)

    @guarded
    def handle_arm(self, message):
        """Pass on the slots to receive."""
        self._send(f"{self._prefix}arm", message)

    @guarded
    def handle_rx(self, message):
        """Pass on a received burst."""
        self._send(f"{self._prefix}rx", message)
