# SPDX-License-Identifier: GPL-3.0-or-later
"""SRS or CSI-RS of a node's ports, slot after slot."""

import numpy as np

from ..core.ofdm_exchange import OfdmExchange
from .periods import check_period
from .repeating_source import repeating_source


class ofdm_pilot_source(repeating_source):
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
        waveform = np.zeros((num_ports, period), np.complex64)
        waveform[:, offset_samples : offset_samples + exchange.slot_samples] = exchange.sounding(purpose, ports)
        repeating_source.__init__(self, waveform, amplitude, "ofdm_pilot_source")
