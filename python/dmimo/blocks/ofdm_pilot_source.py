# SPDX-License-Identifier: GPL-3.0-or-later
"""SRS or CSI-RS of a node's ports, slot after slot."""

import numpy as np
import pmt
from gnuradio import gr

from ..core.ofdm_exchange import OfdmExchange
from .guard import guarded
from .periods import check_period


class ofdm_pilot_source(gr.sync_block):
    """Streams of sounding slots, one per port, each port on its own comb; the first sample is that of a period.

    Parameters
    ----------
    exchange : OfdmExchange
    purpose : "srs" or "csi_rs"
    num_ports : int
        Ports of this node,
    first_port : int
        from this one of the sounding ports on.
    period_samples, offset_samples : int
        A slot in every period, so much after its beginning, silence in the rest; 0: slot after slot.
    amplitude : float
        Root mean square of a symbol at full power (`OfdmExchange.full_power`).
    """

    def __init__(self, exchange: OfdmExchange, purpose: str = "srs", num_ports: int = 1, first_port: int = 0,
                 period_samples: int = 0, offset_samples: int = 0, amplitude: float = 1.0):
        ports = exchange.ports("sounding", first_port, num_ports)
        period = check_period(exchange.slot_samples, period_samples, offset_samples)
        gr.sync_block.__init__(self, "ofdm_pilot_source", None, [np.complex64] * num_ports)
        self._period = np.zeros((num_ports, period), np.complex64)
        self._period[:, offset_samples : offset_samples + exchange.slot_samples] = exchange.sounding(purpose, ports)
        self.message_port_register_out(pmt.intern("error"))
        self.set_amplitude(amplitude)

    def set_amplitude(self, amplitude: float) -> None:
        """Change the amplitude from the next samples on."""
        if not np.isfinite(amplitude):
            raise ValueError(f"amplitude = {amplitude}: must be finite")
        self._amplitude = np.float32(amplitude)

    @guarded
    def work(self, input_items, output_items):
        """Repeat the period."""
        count, period = len(output_items[0]), self._period.shape[1]
        index = (self.nitems_written(0) + np.arange(count)) % period
        for port, out in enumerate(output_items):
            np.multiply(self._period[port, index], self._amplitude, out=out)
        return count
