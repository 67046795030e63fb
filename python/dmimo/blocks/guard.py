# SPDX-License-Identifier: GPL-3.0-or-later
"""Guards `work` and message handlers: an exception ends the run with its traceback instead of hanging the flowgraph."""

import functools
import traceback

import pmt

ERROR = pmt.intern("error")
WORK_DONE = -1


def guarded(method):
    """Method of a block with an `error` message port: an exception is published there, and -1 (done) returned.

    A block with a method `handle_error(text)` takes its own error there. GNU Radio leaves the flowgraph waiting when
    Python code raises in `work` or in a handler. The name is kept, since message handlers are found by it.
    """

    @functools.wraps(method)
    def wrapper(self, *args):
        try:
            return method(self, *args)
        except Exception:
            text = f"{self.name()}: {traceback.format_exc()}"
            if hasattr(type(self), "handle_error"):
                self.handle_error(text)
            self.message_port_pub(ERROR, pmt.intern(text))
            return WORK_DONE

    return wrapper
