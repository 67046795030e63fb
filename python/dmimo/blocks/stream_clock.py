# SPDX-License-Identifier: GPL-3.0-or-later
"""Whether a receive stream goes on, and whether its time does."""

import numpy as np
import pmt

from ..radio_time import rate_ratio
from .guard import guarded
from .lean import lean_sync_block
from .timetags import RX_TIME, OffGrid, sample_from_pmt

CHUNK, CHUNK_S = 8192, 0.1  # samples that are looked at in one call, and how long they may take at low rates


class stream_clock(lean_sync_block):
    """Counts the samples of a stream and holds its `rx_time` tags against that count.

    A discontinuity that only loses samples is what every overflow is. Some radios begin the stream anew then, at any
    tick: its time is right, but its samples lie off the sample grid until it begins again. A time before that of the
    samples already received is no time any more.

    Parameters
    ----------
    samp_rate : float

    Attributes
    ----------
    num_samples : int
        Received since the start of the flowgraph.
    fault : str or None
        What was wrong with the time of the last discontinuity that lost it; to be reset by who reads it.
    off_grid : str or None
        How the samples that come now lie off the sample grid.

    Messages
    --------
    error : traceback of a failure.
    """

    def __init__(self, samp_rate: float):
        lean_sync_block.__init__(self, "stream_clock", [np.complex64], None)
        self.set_output_multiple(max(1, min(CHUNK, int(CHUNK_S * samp_rate))))
        self._rate = rate_ratio(samp_rate)
        self._reset()
        self.message_port_register_out(pmt.intern("error"))

    def _reset(self) -> None:
        self.num_samples, self.fault, self.off_grid = 0, None, None
        self._expected: tuple[int, int] | None = None  # offset and sample of the last tag

    def start(self):
        """Item counters begin again with every start of the flowgraph."""
        self._reset()
        return super().start()

    @guarded
    def work(self, input_items, output_items):
        """Count the samples and look at the times."""
        count = len(input_items[0])
        for tag in sorted(self.get_tags_in_window(0, 0, count, RX_TIME), key=lambda tag: tag.offset):
            self._compare(tag.offset, tag.value)
        self.num_samples += count
        return count

    def _compare(self, offset: int, value) -> None:
        try:
            sample, self.off_grid = sample_from_pmt(value, self._rate), None
        except OffGrid as error:
            self.off_grid = str(error)
            return
        if self._expected is not None:
            expected = self._expected[1] + offset - self._expected[0]
            if sample < expected:
                self.fault = f"time went back by {expected - sample} samples to sample {sample}"
        self._expected = offset, sample
