# SPDX-License-Identifier: GPL-3.0-or-later
"""Free-running sounding: the same slot again and again."""

import numpy as np
import pmt
from gnuradio import gr

from ..core.waveforms import SlotLayout, SoundingSymbol
from .guard import guarded


class pilot_source(gr.sync_block):
    """Streams of sounding slots, one per port; the ports' symbols follow one another inside the slot.

    Parameters
    ----------
    num_ports : int
    slot_samples, lead_samples, pilot_samples, num_subcarriers, prefix_samples : int
        Of the `SlotLayout` and its `SoundingSymbol`.
    amplitude : float
        Root mean square of a symbol's samples.
    """

    def __init__(self, num_ports: int = 1, slot_samples: int = 256, lead_samples: int = 16, pilot_samples: int = 128,
                 num_subcarriers: int = 96, prefix_samples: int = 32, amplitude: float = 1.0):
        gr.sync_block.__init__(self, "pilot_source", None, [np.complex64] * num_ports)
        symbol = SoundingSymbol(pilot_samples, num_subcarriers, prefix_samples)
        self._slot = SlotLayout(slot_samples, lead_samples, symbol, num_ports).sounding_burst()
        self.message_port_register_out(pmt.intern("error"))
        self.set_amplitude(amplitude)

    def set_amplitude(self, amplitude: float) -> None:
        """Change the amplitude from the next samples on."""
        if not np.isfinite(amplitude):
            raise ValueError(f"amplitude = {amplitude}: must be finite")
        self._amplitude = np.float32(amplitude)

    @guarded
    def work(self, input_items, output_items):
        """Repeat the slot."""
        count, period = len(output_items[0]), self._slot.shape[1]
        index = (self.nitems_written(0) + np.arange(count)) % period
        for port, out in enumerate(output_items):
            np.multiply(self._slot[port, index], self._amplitude, out=out)
        return count
