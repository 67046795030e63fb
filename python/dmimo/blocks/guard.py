# SPDX-License-Identifier: GPL-3.0-or-later
"""Guards `work` and message handlers: an exception ends the run with its traceback instead of hanging the flowgraph."""

import functools
import traceback

import pmt

ERROR = pmt.intern("error")
WORK_DONE = -1


def guarded(method):
    """Method of a block with an `error` message port: an exception is published there, and -1 (done) returned.

    GNU Radio leaves the flowgraph waiting when Python code raises in `work` or in a handler. The name is kept, since
    message handlers are found by it.
    """

    @functools.wraps(method)
    def wrapper(self, *args):
        try:
            return method(self, *args)
        except Exception:
            self.message_port_pub(ERROR, pmt.intern(f"{self.name()}: {traceback.format_exc()}"))
            return WORK_DONE

    return wrapper
