# SPDX-License-Identifier: GPL-3.0-or-later
"""What becomes of bursts in a radio: UHD's asynchronous messages, with names."""

from collections.abc import Mapping

import pmt

from ..radio_time import position, rate_ratio
from . import messages
from .guard import guarded
from .lean import lean_message_block

EVENTS, ASYNC = pmt.intern("events"), pmt.intern("async_msgs")
CHANNEL, TIME, CODES = (pmt.intern(name) for name in ("channel", "time_spec", "event_code"))
ACKNOWLEDGED = "burst_ack"
ERRORS = {
    "time_error": "a burst came too late and was not sent",
    "underflow": "the samples of a burst came too late",
    "underflow_in_packet": "the samples of a burst came too late",
    "seq_error": "samples were lost on their way to the radio",
    "seq_error_in_burst": "samples were lost on their way to the radio",
}


class radio_events(lean_message_block):
    """Names the events that one `usrp_sink` reports: which node, port, board and channel, at which sample, what.

    Most devices tell each sink what became of its own bursts, by channels of its stream. Those of the B200 series have
    one queue for all of their sinks, of which whichever asks first gets a message, and name channels of the device.

    Parameters
    ----------
    places : mapping of int to (node, port, board, channel of the board, channel of the radio)
        What each channel in the sink's messages means.
    samp_rate : float

    Messages
    --------
    async_msgs : what the sink publishes there, one message per channel.
    events : type `radio_event`: `event` (UHD's name: burst_ack, time_error, underflow, ...), `node`, `port`, `board`,
        `channel`, `sample` (of the device time, where the device gives one: of an acknowledgement the end of the burst,
        nearest to it otherwise) and `error`, what went wrong in words, empty for an acknowledgement.
    """

    def __init__(self, places: Mapping[int, tuple[str, int, int, int, int]], samp_rate: float):
        lean_message_block.__init__(self, "radio_events")
        self._places, self._rate = dict(places), rate_ratio(samp_rate)
        self.message_port_register_in(ASYNC)
        self.set_msg_handler(ASYNC, self.handle_async)
        for port in ("events", "error"):
            self.message_port_register_out(pmt.intern(port))

    @guarded
    def handle_async(self, message):
        """Publish each event of a message of the sink."""
        content = pmt.cdr(message)
        place = self._places.get(pmt.to_uint64(pmt.dict_ref(content, CHANNEL, pmt.PMT_NIL)))
        if place is None:  # of a channel that nobody uses
            return
        node, port, board, board_channel, channel = place
        where = {"node": node, "port": port, "board": board, "channel": channel}
        time = pmt.dict_ref(content, TIME, pmt.PMT_NIL)
        if pmt.is_pair(time):
            where["sample"], _ = position(pmt.to_long(pmt.car(time)), pmt.to_double(pmt.cdr(time)), self._rate)
        codes = pmt.dict_ref(content, CODES, pmt.PMT_NIL)
        for index in range(pmt.length(codes)):
            event = pmt.symbol_to_string(pmt.nth(index, codes))
            error = "" if event == ACKNOWLEDGED else (
                f"node {node}, port {port}: board {board}, channel {board_channel} of it: "
                f"{ERRORS.get(event, event)}"
            )
            self.message_port_pub(EVENTS, messages.encode("radio_event", event=event, error=error, **where))
