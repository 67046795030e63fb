# SPDX-License-Identifier: GPL-3.0-or-later
"""Channels of all ports of the other side from streams of OFDM slots."""

import numpy as np
import pmt
from gnuradio import gr

from ..core.ofdm_exchange import OfdmExchange
from . import messages
from .guard import guarded
from .periods import check_period
from .timetags import RX_TIME, rate_ratio, sample_from_pmt

CSI = pmt.intern("csi")
PURPOSES = ("srs", "csi_rs", "cars")


class ofdm_sounder(gr.decim_block):
    """Estimates one slot of every period, at all ports of this node: a message, and a vector on each output.

    The outputs may stay unconnected. The streams must be aligned to periods from their first sample on, and after every
    `rx_time` tag on port 0 (those of a `simulated_network`, or of a radio that starts on a period and loses nothing).
    Time counts from such a tag, without one from the first sample.

    Of a sounding (`purpose` "srs" or "csi_rs") a vector holds the P K channels of all sounding ports, port after port
    (`OfdmExchange.sounding_subcarriers`); of CARS bursts ("cars") those of all links, (P, Q, K / Q) in the order of
    `OfdmExchange.response_subcarriers`, still times the scale of each (see `cars_reader`).

    A message on `csi` is a dictionary with `purpose`; `start`, the first sample of the slot; `sample`, to which the
    channels belong (`OfdmExchange.middle`); `h` (num_ports, P, K) or (num_ports, P, Q, K / Q); `noise_var`
    (num_ports,), variance of the noise of an entry; `heard` (num_ports, P) or (num_ports, P, Q), links that stand out
    of the noise.

    Parameters
    ----------
    exchange : OfdmExchange
    purpose : "srs", "csi_rs" or "cars"
    num_ports : int
        Receiving ports of this node.
    period_samples, offset_samples : int
        As in `ofdm_pilot_source`.
    """

    def __init__(self, exchange: OfdmExchange, purpose: str = "srs", num_ports: int = 1, period_samples: int = 0,
                 offset_samples: int = 0):
        if purpose not in PURPOSES:
            raise ValueError(f"purpose = {purpose!r}: must be one of {list(PURPOSES)}")
        if num_ports < 1:
            raise ValueError(f"num_ports = {num_ports}: must be at least 1")
        period = check_period(exchange.slot_samples, period_samples, offset_samples)
        vector = np.dtype((np.complex64, exchange.mapping.num_positions))
        outputs = gr.py_io_signature(0, num_ports, [vector])
        gr.decim_block.__init__(self, "ofdm_sounder", [np.complex64] * num_ports, outputs, period)
        # With no output connected GNU Radio takes what is at hand times this rate, rounded down twice: 1 / period
        # would leave a whole period waiting for the next.
        self.set_relative_rate(period + 1, period**2)
        self._exchange, self._purpose = exchange, purpose
        self._period, self._offset = period, offset_samples
        self._rate = rate_ratio(exchange.grid.samp_rate)
        self._ahead = 0
        self.set_tag_propagation_policy(gr.TPP_DONT)
        for port in ("csi", "error"):
            self.message_port_register_out(pmt.intern(port))

    def start(self):
        """Item counters, and time with them, begin again with every start of the flowgraph."""
        self._ahead = 0  # of absolute time over the number of items
        return super().start()

    @guarded
    def work(self, input_items, output_items):
        """Estimate all slots at hand."""
        count, exchange = len(input_items[0]) // self._period, self._exchange
        periods = np.stack([items[: count * self._period] for items in input_items]).reshape(-1, count, self._period)
        slots = periods[..., self._offset : self._offset + exchange.slot_samples].swapaxes(0, 1)
        found = exchange.read(slots) if self._purpose == "cars" else exchange.hear(slots, self._purpose)
        for port, out in enumerate(output_items):
            out[:] = found.h[:, port].reshape(count, -1)
        for start, h, noise_var, heard in zip(self._starts(count), *found, strict=True):
            self.message_port_pub(CSI, messages.encode("csi", purpose=self._purpose, start=start, h=h, heard=heard,
                                                       sample=start + exchange.middle, noise_var=noise_var))
        return count

    def _starts(self, count: int) -> list[int]:
        """Absolute first samples of the slots of the next periods."""
        first = self.nitems_read(0)
        begins = first + self._period * np.arange(count)
        starts = begins + self._ahead
        for tag in self.get_tags_in_window(0, 0, count * self._period, RX_TIME):
            if (tag.offset - first) % self._period:
                raise ValueError(f"rx_time on item {tag.offset}, inside a period: the stream must have lost whole ones")
            self._ahead = sample_from_pmt(tag.value, self._rate) - tag.offset
            starts = np.where(begins >= tag.offset, begins + self._ahead, starts)
        return (starts + self._offset).tolist()
