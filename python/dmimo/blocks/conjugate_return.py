# SPDX-License-Identifier: GPL-3.0-or-later
"""Received bursts in, their normalised conjugates out, a fixed number of samples later."""

import numpy as np
import pmt

from ..core import beamsync
from . import messages, plain_bursts
from .guard import guarded
from .lean import lean_message_block
from .timetags import rate_ratio, time_to_pmt

RETURNS, DROPPED = pmt.intern("returns"), pmt.intern("dropped")


class conjugate_return(lean_message_block):
    """Answers every burst with its conjugate on all ports, at the time of the burst plus `latency_samples`.

    A burst is a PDU (dictionary . c32vector), samples port-major: a received burst as `messages.received_burst` makes
    it, of which every slot is answered, or any other; its time is `start` (absolute sample) or `rx_time` (UHD's tuple).
    The return on `returns` is as
    long as the burst, has the same samples where the burst had them, sqrt(E) conj(Y) / |Y| with the energy E =
    `amplitude`^2 times `num_samples` over all ports, and zeros around them; its dictionary holds `tx_time`, and the
    burst's `slot` and `beam` where it has them. A burst without a time is returned without `tx_time`: at once.

    With a known `waveform` x the burst is matched-filtered first and the conjugate of the estimate is sent,
    conj(z) x^H with z = Y x^* / |x|^2: much less noise is returned at low SNR.

    A burst from which no return can be made (lost, without energy, with NaN or infinity, longer than the latency, so
    that its return would begin before it has ended) is answered on `dropped` by a dictionary with `reason`, and `slot`
    and `start` where the burst has them. A message that is no burst is an error.

    Parameters
    ----------
    num_ports : int
    samp_rate : float
    latency_samples : int
        From the first sample of a burst to the first of its return.
    waveform : array_like complex (n,), optional
        x; the conjugate of everything that was received without it.
    first_sample : int
        Where in the burst the part begins that is returned.
    num_samples : int
        Length of that part; 0: that of the waveform, or up to the end of the burst.
    amplitude : float
        Root mean square of the return, over all ports together.
    """

    def __init__(self, num_ports: int, samp_rate: float, latency_samples: int, waveform=None, first_sample: int = 0,
                 num_samples: int = 0, amplitude: float = 1.0):
        if num_ports < 1 or latency_samples < 1:
            raise ValueError(f"num_ports = {num_ports}, latency_samples = {latency_samples}: must be at least 1")
        if first_sample < 0 or num_samples < 0:
            raise ValueError(f"first_sample = {first_sample}, num_samples = {num_samples}: must not be negative")
        if not (amplitude > 0 and np.isfinite(amplitude)):
            raise ValueError(f"amplitude = {amplitude}: must be positive and finite")
        lean_message_block.__init__(self, "conjugate_return")
        self._num_ports, self._rate, self._latency = num_ports, rate_ratio(samp_rate), latency_samples
        self._waveform = None if waveform is None else _checked_waveform(waveform, num_samples)
        self._first = first_sample
        self._num_samples = num_samples if self._waveform is None else self._waveform.size
        self._amplitude = amplitude
        self.message_port_register_in(pmt.intern("bursts"))
        self.set_msg_handler(pmt.intern("bursts"), self.handle_burst)
        for port in ("returns", "dropped", "error"):
            self.message_port_register_out(pmt.intern(port))

    @guarded
    def handle_burst(self, message):
        """Return a burst, slot by slot, or say why not."""
        for meta, samples in plain_bursts.slots_of(message, self._num_ports):
            self._answer(meta, samples)

    def _answer(self, meta, samples: np.ndarray) -> None:
        start = plain_bursts.start_of(meta, self._rate)
        reason = self._obstacle(meta, samples)
        if reason is None:
            try:
                vector = messages.vector_to_pmt(self._returned(samples))
            except ValueError as refused:  # no energy, or not finite
                reason = str(refused)
        if reason is not None:
            self.message_port_pub(DROPPED, plain_bursts.dropped(meta, start, reason))
            return
        answer = plain_bursts.copied(pmt.make_dict(), meta, messages.SLOT, messages.BEAM)
        if start is not None:
            answer = pmt.dict_add(answer, messages.TX_TIME, time_to_pmt(start + self._latency, self._rate))
        self.message_port_pub(RETURNS, pmt.cons(answer, vector))

    def _obstacle(self, meta, samples: np.ndarray) -> str | None:
        """Why a burst cannot be returned whatever it holds."""
        wrong = plain_bursts.bad_status(meta)
        if wrong is not None:
            return wrong
        length = samples.shape[1]
        if length <= self._first or length < self._first + self._num_samples:
            return (f"burst of {length} samples: too short for first_sample = {self._first} and num_samples = "
                    f"{self._num_samples}")
        if length > self._latency:
            return f"burst of {length} samples: longer than latency_samples = {self._latency}"
        return None

    def _returned(self, samples: np.ndarray) -> np.ndarray:
        part = slice(self._first, self._first + self._num_samples if self._num_samples else samples.shape[1])
        y = samples[:, part].astype(np.complex128)
        energy = self._amplitude**2 * y.shape[1]
        out = np.zeros(samples.shape, np.complex64)
        if self._waveform is None:
            out[:, part] = beamsync.conjugate_return(y, energy=energy)
        else:
            out[:, part] = beamsync.matched_return(y, self._waveform, energy=energy)
        return out


def _checked_waveform(waveform, num_samples: int) -> np.ndarray:
    x = np.asarray(waveform, np.complex128)
    if x.ndim != 1 or not np.isfinite(x).all() or not np.any(x) or num_samples not in (0, x.size):
        raise ValueError(f"waveform of shape {x.shape}: must be finite, not zero, and (num_samples,) = "
                         f"({num_samples},) unless that is 0")
    return x
