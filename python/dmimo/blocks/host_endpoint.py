# SPDX-License-Identifier: GPL-3.0-or-later
"""This program's end of a link to another host: between the ZeroMQ blocks and whoever the messages are for."""

from collections.abc import Callable

import pmt

from .guard import guarded
from .lean import lean_message_block

OUT = pmt.intern("out")
PIECE = 200  # characters, of at most four bytes


def pieces(text: str) -> tuple[str, ...]:
    """A text cut up, since GNU Radio does not deserialise a symbol of more than 1023 bytes; ``"".join`` undoes it."""
    return tuple(text[at : at + PIECE] for at in range(0, len(text), PIECE))


class host_endpoint(lean_message_block):
    """Sends and takes messages ``((session . to) . message)``: `session` and `to` are symbols, the rest is any message.

    Parameters
    ----------
    receive : callable(session, to, message)
        Takes what comes, in order, on this block's thread.
    failed : callable(text)
        Takes the traceback where `receive` raises, or a message has another form.
    """

    def __init__(self, receive: Callable[[str, str, object], None], failed: Callable[[str], None]):
        lean_message_block.__init__(self, "host_endpoint")
        self._receive, self._failed = receive, failed
        self.message_port_register_in(pmt.intern("in"))
        self.set_msg_handler(pmt.intern("in"), self.handle_in)
        for port in ("out", "error"):
            self.message_port_register_out(pmt.intern(port))

    def send(self, session: str, to: str, message) -> None:
        """Send a message; from any thread."""
        address = pmt.cons(pmt.intern(session), pmt.intern(to))
        self.message_port_pub(OUT, pmt.cons(address, message))

    def handle_error(self, text: str) -> None:
        """Tell whoever listens."""
        self._failed(text)

    @guarded
    def handle_in(self, message):
        """Take a message from the other host."""
        address = pmt.car(message) if pmt.is_pair(message) else pmt.PMT_NIL
        if not (pmt.is_pair(address) and pmt.is_symbol(pmt.car(address)) and pmt.is_symbol(pmt.cdr(address))):
            raise ValueError("a message of unknown form: does another program use this port?")
        self._receive(pmt.symbol_to_string(pmt.car(address)), pmt.symbol_to_string(pmt.cdr(address)), pmt.cdr(message))
