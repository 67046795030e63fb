# SPDX-License-Identifier: GPL-3.0-or-later
"""Turns what the phases of a run produce into streams, to be plotted or recorded."""

from collections import deque

import numpy as np
import pmt
from gnuradio import gr

from . import messages
from .guard import WORK_DONE, guarded

_QUANTITIES = {
    "phase_deg": lambda values: np.degrees(np.angle(values)),
    "magnitude": np.abs,
    "db": lambda values: 20 * np.log10(np.maximum(np.abs(values), np.finfo(float).tiny)),
    "real": np.real,
    "degrees": np.degrees,
    "nanoseconds": lambda values: 1e9 * np.real(values),
}


class product_probe(gr.sync_block):
    """Streams with one item per product: the entries of ``values[key]``, one stream for each entry.

    Products without the key are passed over. With ``vlen`` the items are vectors: ``values[key]`` holds `num_outputs`
    rows of so many entries. With ``history`` each product sends that many items, the values of the last products in
    order of time, so that a plot of `history` points scrolls; what has not happened yet is shown as the first value.
    The streams end with the run.

    Parameters
    ----------
    key : str
        Key of the product's values, such as `c` of the calibration or `gains_db` of the verification.
    num_outputs : int
        Entries of the value, or rows.
    quantity : {"phase_deg", "magnitude", "db", "real", "degrees", "nanoseconds"}
        What to send of each entry; "phase_deg" is the angle of a complex one, "degrees" a real one in radians turned
        into degrees, "nanoseconds" a real one in seconds, "db" 20 log10 of the magnitude.
    history : int
        Items per product.
    vlen : int
        Length of an item.
    """

    def __init__(self, key: str, num_outputs: int = 1, quantity: str = "real", history: int = 1, vlen: int = 1):
        if num_outputs < 1 or history < 1 or vlen < 1:
            raise ValueError(f"num_outputs = {num_outputs}, history = {history}, vlen = {vlen}: must be at least 1")
        if quantity not in _QUANTITIES:
            raise ValueError(f"quantity = {quantity!r}: must be one of {list(_QUANTITIES)}")
        item = np.float32 if vlen == 1 else (np.float32, vlen)
        gr.sync_block.__init__(self, "product_probe", None, [item] * num_outputs)
        self._key, self._vlen = key, vlen
        self._quantity = _QUANTITIES[quantity]
        self._recent: deque[np.ndarray] = deque(maxlen=history)
        self._rows: deque[np.ndarray] = deque()
        self._ended = False
        self.message_port_register_in(pmt.intern("phases"))
        self.set_msg_handler(pmt.intern("phases"), self.handle_phases)
        self.message_port_register_out(pmt.intern("error"))

    def start(self):
        """Forget what an earlier start has left."""
        self._recent.clear()
        self._rows.clear()
        self._ended = False
        return True

    @guarded
    def handle_phases(self, message):
        """Queue the entries of a product that has the key; finish after the queued items once the run has ended."""
        kind = messages.kind(message)
        if kind == "end":
            self._ended = True
        elif kind == "product":
            values = messages.product(message).values
            if self._key in values:
                self._queue(np.ravel(values[self._key]))

    def _queue(self, entries: np.ndarray) -> None:
        outputs = self.output_signature().max_streams()
        if entries.size != outputs * self._vlen:
            needed = f"num_outputs = {outputs}" + (f" times vlen = {self._vlen}" if self._vlen > 1 else "")
            raise ValueError(f"{self._key} has {entries.size} entries: must be {needed}")
        row = self._quantity(entries).astype(np.float32)
        row = row if self._vlen == 1 else row.reshape(outputs, self._vlen)
        self._recent.extend([row] * (1 if self._recent else self._recent.maxlen))
        self._rows.extend(self._recent)

    @guarded
    def work(self, input_items, output_items):
        """Send what is queued."""
        count = min(len(self._rows), len(output_items[0]))
        for item in range(count):
            for output, value in zip(output_items, self._rows.popleft(), strict=True):
                output[item] = value
        return WORK_DONE if self._ended and not count else count
