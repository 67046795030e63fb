# SPDX-License-Identifier: GPL-3.0-or-later
"""Streams that repeat one waveform; the base of the sources of pilots."""

import numpy as np
import pmt
from gnuradio import gr

from .guard import guarded


class repeating_source(gr.sync_block):
    """Repeats a waveform on all ports, from its first sample on, with an amplitude that may change.

    Parameters
    ----------
    waveform : ndarray complex64 (num_ports, n)
    amplitude : float
        Factor on the waveform.
    name : str
    """

    def __init__(self, waveform: np.ndarray, amplitude: float, name: str):
        gr.sync_block.__init__(self, name, None, [np.complex64] * len(waveform))
        self._waveform = waveform
        self.message_port_register_out(pmt.intern("error"))
        self.set_amplitude(amplitude)

    def set_amplitude(self, amplitude: float) -> None:
        """Change the amplitude from the next samples on."""
        if not np.isfinite(amplitude):
            raise ValueError(f"amplitude = {amplitude}: must be finite")
        self._amplitude = np.float32(amplitude)

    @guarded
    def work(self, input_items, output_items):
        """Go on where the last call ended."""
        count, period = len(output_items[0]), self._waveform.shape[1]
        index = (self.nitems_written(0) + np.arange(count)) % period
        for port, out in enumerate(output_items):
            np.multiply(self._waveform[port, index], self._amplitude, out=out)
        return count
