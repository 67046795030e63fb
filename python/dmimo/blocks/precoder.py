# SPDX-License-Identifier: GPL-3.0-or-later
"""Linear precoding of streams onto ports."""

import numpy as np
import pmt

from ..core import precoding
from . import messages
from .guard import guarded
from .lean import lean_sync_block

CHUNK_SAMPLES = 4096
ANNOUNCES_EPOCH = ("begin", "radio_begin", "radio_epoch")


class precoder(lean_sync_block):
    """Port samples y_p = sum_s w_ps x_s / c_p: weights times streams, corrected by the calibration.

    Weights are designed on the uplink channel; dividing by c makes them fit the downlink
    (`precoding.apply_calibration`). Both may be changed while running; a change takes effect at the start of a call of
    `work`, for all ports at once.

    A calibration holds in the epoch in which it was measured. Where a newer one is announced on the port `epochs`
    (`begin` of a scheduler's `phases`, or what a `usrp_array` says of its epoch on `status`), nothing but zeros is sent
    until there is a calibration of that epoch; calibrations of older epochs are refused.

    Parameters
    ----------
    weights : array_like complex (num_ports, num_streams)
    calibration : array_like complex (num_ports,), optional
        c of each port; 1 by default.
    epoch : int, optional
        In which the calibration was measured (`records.CalibrationRecord.epoch`); None: it holds in all.
    """

    def __init__(self, weights, calibration=None, epoch: int | None = None):
        weights = np.atleast_2d(np.asarray(weights, np.complex128))
        lean_sync_block.__init__(self, "precoder", [np.complex64] * weights.shape[1], [np.complex64] * weights.shape[0])
        self._shape = weights.shape
        self._weights = weights
        self._calibration = np.ones(weights.shape[0], np.complex128)
        self._input = np.empty((weights.shape[1], CHUNK_SAMPLES), np.complex64)
        self._output = np.empty((weights.shape[0], CHUNK_SAMPLES), np.complex64)
        self._epoch: int | None = None  # latest announced
        self._calibrated_in: int | None = None
        for port, handler in (("weights", self.handle_weights), ("products", self.handle_product),
                              ("epochs", self.handle_epoch)):
            self.message_port_register_in(pmt.intern(port))
            self.set_msg_handler(pmt.intern(port), handler)
        self.message_port_register_out(pmt.intern("error"))
        self.set_weights(weights)
        if calibration is not None:
            self.set_calibration(calibration, epoch)

    @property
    def outdated(self) -> bool:
        """Whether the calibration is of an epoch that is over."""
        return None not in (self._epoch, self._calibrated_in) and self._calibrated_in < self._epoch

    def set_weights(self, weights) -> None:
        """Change the weights, (num_ports, num_streams)."""
        self._combine(self._checked("weights", np.atleast_2d(np.asarray(weights, np.complex128)), self._shape),
                      self._calibration)

    def set_calibration(self, calibration, epoch: int | None = None) -> None:
        """Change the calibration, (num_ports,), measured in this epoch; None: it holds in all."""
        calibration = self._checked("calibration", np.asarray(calibration, np.complex128), self._shape[:1])
        self._calibrated_in = epoch
        self._combine(self._weights, calibration)

    @staticmethod
    def _checked(name: str, value: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
        if value.shape != shape or not np.isfinite(value).all():
            raise ValueError(f"{name} of shape {value.shape}: must be finite and of shape {shape}")
        return value

    def _combine(self, weights: np.ndarray, calibration: np.ndarray) -> None:
        applied = precoding.apply_calibration(weights, calibration).astype(np.complex64)
        self._applied = np.zeros_like(applied) if self.outdated else applied
        self._weights, self._calibration = weights, calibration

    @guarded
    def handle_weights(self, message):
        """`weights` message: dictionary with the key weights, an array (num_ports, num_streams)."""
        self.set_weights(messages.get(message, "weights"))

    @guarded
    def handle_product(self, message):
        """Take c from the calibrator's product; one that is not trusted or of an older epoch is not applied."""
        product, epoch = messages.product(message), messages.epoch(message)
        over = None not in (epoch, self._epoch) and epoch < self._epoch
        if product.trusted and "c" in product.values and not over:
            self.set_calibration(product.values["c"], epoch)

    @guarded
    def handle_epoch(self, message):
        """Learn from a scheduler or radio that another epoch has begun."""
        if messages.kind(message) in ANNOUNCES_EPOCH:
            epoch = messages.get(message, "epoch")
            self._epoch = epoch if self._epoch is None else max(epoch, self._epoch)
            self._combine(self._weights, self._calibration)

    @guarded
    def work(self, input_items, output_items):
        """Multiply, in chunks that stay in the cache."""
        count, applied = len(output_items[0]), self._applied
        for begin in range(0, count, CHUNK_SAMPLES):
            size = min(CHUNK_SAMPLES, count - begin)
            x, y = self._input[:, :size], self._output[:, :size]
            for row, items in zip(x, input_items, strict=True):
                row[:] = items[begin : begin + size]
            np.matmul(applied, x, out=y)
            for row, items in zip(y, output_items, strict=True):
                items[begin : begin + size] = row
        return count
