# SPDX-License-Identifier: GPL-3.0-or-later
"""Predistortion of a node's streams, by one table for each port."""

import operator

import numpy as np
import pmt
from gnuradio import gr

from ..core.predistortion_table import apply_power_table, power_tables, scratch
from . import messages
from .guard import guarded
from .lean import lean_sync_block
from .precoder import ANNOUNCES_EPOCH

CHUNK_SAMPLES = 8192  # a port's table and what it is applied to stay in the cache
# GNU Radio makes the buffers before and after a block for calls of this size, where a call costs less than the samples.
BUFFERED_SAMPLES = 16384


class predistorter(lean_sync_block):
    """Samples u of each port with F(u) = x, where F is its amplifier and x what it is to send.

    x and u are amplitudes relative to samples of unit mean power, as everywhere; the scale of the radio comes after.
    The inverse is looked up over |x|^2 (`core.predistortion_table`); samples beyond its range keep their phase, are
    brought back to its end, and are counted. New coefficients take effect at the start of a call of `work`, for all
    ports at once. Amplifiers are without memory: coefficients (num_ports, L, P) with L > 1 are refused.

    Coefficients hold in the epoch in which they were measured: another gain or frequency makes another amplifier. Where
    a newer one is announced on the port `epochs` (`begin` of a scheduler's `phases`, or what a `usrp_array` says of its
    epoch on `status`), samples pass unchanged until there are coefficients of that epoch; products of older epochs are
    refused.

    Message ports: `coefficients` takes a dictionary with coefficients and, optionally, max_amplitude; `products` the
    values predistortion (all ports, P) and predistortion_peak (all ports,) of a run. `clips` publishes dictionaries
    of `type` clips with the keys clipped (num_ports,) and samples, both since the start, after every
    `report_samples` samples in which one was clipped.

    Parameters
    ----------
    num_ports : int
    coefficients : array_like complex (num_ports, P), optional
        Odd orders of each amplifier, first entry 1; None: samples pass unchanged.
    max_amplitude : float or array_like (num_ports,)
        Largest amplifier input that is trusted; inf: up to where the amplifier can be inverted.
    table_size : int
        Entries of a port's table.
    full_scale : float
        Largest wanted amplitude where the amplifier sets no lower limit.
    first_port : int
        Where this block's ports begin among those of a product.
    report_samples : int
        At which number of samples clips are published, and at all multiples.
    epoch : int, optional
        In which the coefficients were measured; None: they hold in all.
    """

    def __init__(self, num_ports: int = 1, coefficients=None, max_amplitude=np.inf, table_size: int = 8192,
                 full_scale: float = 4.0, first_port: int = 0, report_samples: int = 1 << 20,
                 epoch: int | None = None):
        for name, value, least in (("num_ports", num_ports, 1), ("first_port", first_port, 0),
                                   ("report_samples", report_samples, 1)):
            if operator.index(value) < least:
                raise ValueError(f"{name} = {value}: must be at least {least}")
        lean_sync_block.__init__(self, "predistorter", [np.complex64] * num_ports, [np.complex64] * num_ports)
        self._num_ports, self._first_port, self._report_samples = num_ports, first_port, report_samples
        self._table_size, self._full_scale = table_size, full_scale
        self._memory = scratch(CHUNK_SAMPLES)
        self._epoch: int | None = None  # latest announced
        self._identity = self._tables_of(None, np.inf)
        self.set_coefficients(coefficients, max_amplitude, epoch)
        self._reset()
        self.set_tag_propagation_policy(gr.TPP_ONE_TO_ONE)
        self._buffered_samples = BUFFERED_SAMPLES
        self.set_output_multiple(self._buffered_samples)  # until the buffers are made
        for port, handler in (("coefficients", self.handle_coefficients), ("products", self.handle_product),
                              ("epochs", self.handle_epoch)):
            self.message_port_register_in(pmt.intern(port))
            self.set_msg_handler(pmt.intern(port), handler)
        for port in ("clips", "error"):
            self.message_port_register_out(pmt.intern(port))

    @property
    def clipped(self) -> tuple[int, ...]:
        """How many samples of each port have been clipped since the start."""
        return tuple(self._clipped)

    @property
    def samples(self) -> int:
        """How many samples of each port have been predistorted since the start."""
        return self._samples

    @property
    def limits(self) -> tuple[float, ...]:
        """Amplitude of each port beyond which samples are clipped; inf where they pass unchanged."""
        return tuple(table.limit for table in self._applied)

    @property
    def outdated(self) -> bool:
        """Whether the coefficients are of an epoch that is over."""
        return None not in (self._epoch, self._measured_in) and self._measured_in < self._epoch

    def set_coefficients(self, coefficients, max_amplitude=np.inf, epoch: int | None = None) -> None:
        """Change the coefficients, (num_ports, P), measured in this epoch; None: they hold in all. See the class."""
        self._tables = self._tables_of(coefficients, max_amplitude)
        self._measured_in = epoch
        self._choose()

    def _tables_of(self, coefficients, max_amplitude):
        coefficients = np.ones((self._num_ports, 1)) if coefficients is None else np.asarray(coefficients, complex)
        if coefficients.ndim == 3:
            if coefficients.shape[1] != 1:
                raise ValueError(f"coefficients of shape {coefficients.shape}: amplifiers with memory are not "
                                 "predistorted here, L of (num_ports, L, P) must be 1")  # fmt: skip
            coefficients = coefficients[:, 0]
        if coefficients.ndim != 2 or len(coefficients) != self._num_ports:
            raise ValueError(f"coefficients of shape {coefficients.shape}: must have shape ({self._num_ports}, P)")
        return power_tables(coefficients, size=self._table_size, max_amplitude=max_amplitude,
                            full_scale=self._full_scale)  # fmt: skip

    def _choose(self) -> None:
        self._applied = self._identity if self.outdated else self._tables

    def _reset(self) -> None:
        self._clipped, self._samples, self._reported = [0] * self._num_ports, 0, [0] * self._num_ports

    def start(self):
        """Count from zero, and take any number of samples."""
        self._reset()
        self.set_output_multiple(1)
        return super().start()

    def stop(self):
        """The next start makes new buffers."""
        self.set_output_multiple(self._buffered_samples)
        return super().stop()

    def set_max_output_buffer(self, *args) -> None:
        """Limit the output buffers, of all ports or (port, size): calls become smaller with them."""
        self._buffered_samples = max(1, min(self._buffered_samples, args[-1] // 2))
        self.set_output_multiple(self._buffered_samples)
        self.gateway.set_max_output_buffer(*args)

    @guarded
    def handle_coefficients(self, message):
        """`coefficients` message: dictionary with coefficients (num_ports, P) and optionally max_amplitude."""
        limited = pmt.is_dict(message) and pmt.dict_has_key(message, pmt.intern("max_amplitude"))
        limit = messages.get(message, "max_amplitude") if limited else np.inf
        self.set_coefficients(messages.get(message, "coefficients"), limit)

    @guarded
    def handle_product(self, message):
        """Take this block's ports of a product; one that is not trusted or of an older epoch is not applied."""
        product, epoch = messages.product(message), messages.epoch(message)
        over = None not in (epoch, self._epoch) and epoch < self._epoch
        if not product.trusted or "predistortion" not in product.values or over:
            return
        own = slice(self._first_port, self._first_port + self._num_ports)
        coefficients = product.values["predistortion"]
        if len(coefficients) < own.stop:
            raise ValueError(f"predistortion of {len(coefficients)} ports: must hold those from {own.start} to "
                             f"{own.stop - 1}, first_port = {self._first_port}")  # fmt: skip
        peak = product.values.get("predistortion_peak")
        self.set_coefficients(coefficients[own], np.inf if peak is None else peak[own], epoch)

    @guarded
    def handle_epoch(self, message):
        """Learn from a scheduler or radio that another epoch has begun."""
        if messages.kind(message) in ANNOUNCES_EPOCH:
            epoch = messages.get(message, "epoch")
            self._epoch = epoch if self._epoch is None else max(epoch, self._epoch)
            self._choose()

    @guarded
    def work(self, input_items, output_items):
        """Predistort, all ports by the tables that hold at the beginning."""
        count, tables, begin = len(output_items[0]), self._applied, 0
        with np.errstate(over="ignore", invalid="ignore"):  # of samples that are not finite
            while begin < count:
                # A report says the same however the samples come.
                left = self._report_samples - self._samples % self._report_samples
                part = slice(begin, begin + min(count - begin, CHUNK_SAMPLES, left))
                for port, table in enumerate(tables):
                    self._clipped[port] += apply_power_table(
                        input_items[port][part], table, output_items[port][part], self._memory)
                begin, self._samples = part.stop, self._samples + part.stop - part.start
                if self._samples % self._report_samples == 0:
                    self._report()
        return count

    def _report(self) -> None:
        """Publish the clips, where there are new ones."""
        if self._clipped != self._reported:
            self._reported = list(self._clipped)
            self.message_port_pub(pmt.intern("clips"), messages.encode(
                "clips", clipped=np.array(self._clipped), samples=self._samples))  # fmt: skip
