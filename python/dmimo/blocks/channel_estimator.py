# SPDX-License-Identifier: GPL-3.0-or-later
"""Channel estimates from a stream of sounding slots."""

import numpy as np
import pmt
from gnuradio import gr

from ..core import sounding
from ..core.waveforms import SlotLayout, SoundingSymbol
from .guard import guarded


class channel_estimator(gr.decim_block):
    """One vector of channel coefficients per slot, transmitting port after transmitting port.

    The stream must be aligned to slots from its first sample on, as a `pilot_source` through a simulated network is.

    Parameters
    ----------
    num_ports : int
        Ports of the transmitting node.
    slot_samples, lead_samples, pilot_samples, num_subcarriers, prefix_samples : int
        As in `pilot_source`.
    advance_samples : int
        How much earlier than the symbol the receive window opens (`SlotLayout`).
    """

    def __init__(self, num_ports: int = 1, slot_samples: int = 256, lead_samples: int = 16, pilot_samples: int = 128,
                 num_subcarriers: int = 96, prefix_samples: int = 32, advance_samples: int = 0):
        vector = np.dtype((np.complex64, num_ports * num_subcarriers))
        gr.decim_block.__init__(self, "channel_estimator", [np.complex64], [vector], slot_samples)
        symbol = SoundingSymbol(pilot_samples, num_subcarriers, prefix_samples)
        self._layout = SlotLayout(slot_samples, lead_samples, symbol, num_ports, advance_samples)
        self.message_port_register_out(pmt.intern("error"))

    @guarded
    def work(self, input_items, output_items):
        """Estimate all slots at hand."""
        layout, out = self._layout, output_items[0]
        slots = input_items[0][: len(out) * layout.slot_samples].reshape(len(out), layout.slot_samples)
        estimates = [sounding.channel_estimate(slots, layout.symbol, layout.useful_start(port))
                     for port in range(layout.num_ports)]
        out[:] = np.concatenate(estimates, axis=-1)
        return len(out)
