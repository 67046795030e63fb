# SPDX-License-Identifier: GPL-3.0-or-later
"""Soundings in, CARS bursts out, a fixed number of samples later."""

import numpy as np
import pmt

from ..core.ofdm_exchange import OfdmExchange
from . import messages, plain_bursts
from .guard import guarded
from .lean import lean_message_block
from .timetags import rate_ratio, time_to_pmt

ANSWERS, METADATA, DROPPED = (pmt.intern(port) for port in ("answers", "metadata", "dropped"))
FORMS = ("inverse", "conjugate", "phase")


class cars_responder(lean_message_block):
    """Answers every sounding with a burst that undoes the channels heard, `latency_samples` after the sounding's start.

    A sounding comes as what was received, on `bursts` (a PDU of one slot per port, of a `burst_receiver` or any other
    with `start` or `rx_time`), or as channels, on `csi` (of an `ofdm_sounder`). The answer on `answers` is a PDU of a
    slot, with `tx_time`, the sounding's `slot` and `beam` where it has them, and `cars`, what a reader must know; the
    same goes out on `metadata`, for a `cars_reader` elsewhere:

    `start`, `sample`: first sample of the answer's slot and the one to which its channels belong; `sounding_sample`, to
    which those undone in it belong; `first_port`; `scale` (num_ports, P), by which a reader divides what it sees of
    each link, 0 where that was not heard and has no answer; `limited` (num_ports, P), elements in fades, whose
    amplitude is not that of C; `reads_amplitude`, whether any element's is (only those of the form "inverse").

    A sounding without an answer (lost, without time, of another length, nothing heard) is named on `dropped` by a
    dictionary with `reason`, and `slot` and `start` where it has them; its metadata goes out with scales of 0. Other
    messages are an error.

    Parameters
    ----------
    exchange : OfdmExchange
    num_ports, first_port : int
        Ports of this node among the responding ones.
    latency_samples : int
        From the first sample of a sounding's slot to the first of its answer's; not less than a slot.
    purpose : "srs" or "csi_rs"
        Of the soundings on `bursts`.
    form : "inverse", "conjugate" or "phase"
        See `core.cars.cars_precoding`.
    fade_limit_db : float
        As there.
    amplitude : float
        Root mean square of an answer at full power; readers undo it with the scale.
    """

    def __init__(self, exchange: OfdmExchange, num_ports: int = 1, first_port: int = 0, latency_samples: int = 65536,
                 purpose: str = "srs", form: str = "inverse", fade_limit_db: float = 20.0, amplitude: float = 1.0):
        if latency_samples < exchange.slot_samples:
            raise ValueError(f"latency_samples = {latency_samples}: must be at least slot_samples = "
                             f"{exchange.slot_samples}, since an answer cannot begin before its sounding has ended")
        if purpose not in ("srs", "csi_rs"):
            raise ValueError(f"purpose = {purpose!r}: must be 'srs' or 'csi_rs'")
        if form not in FORMS:
            raise ValueError(f"form = {form!r}: must be one of {list(FORMS)}")
        for name, value in (("fade_limit_db", fade_limit_db), ("amplitude", amplitude)):
            if not 0 < value < float("inf"):
                raise ValueError(f"{name} = {value}: must be positive and finite")
        lean_message_block.__init__(self, "cars_responder")
        self._exchange, self._ports = exchange, exchange.ports("responding", first_port, num_ports)
        self._num_ports, self._first_port, self._latency = num_ports, first_port, latency_samples
        self._purpose, self._rate = purpose, rate_ratio(exchange.grid.samp_rate)
        self._reads_amplitude = form == "inverse"
        self._options = {"form": form, "fade_limit_db": fade_limit_db, "amplitude": amplitude}
        for port, handler in (("bursts", self.handle_burst), ("csi", self.handle_csi)):
            self.message_port_register_in(pmt.intern(port))
            self.set_msg_handler(pmt.intern(port), handler)
        for port in ("answers", "metadata", "dropped", "error"):
            self.message_port_register_out(pmt.intern(port))

    @guarded
    def handle_burst(self, message):
        """Answer a received burst, slot by slot, or say why not."""
        exchange = self._exchange
        for meta, samples in plain_bursts.slots_of(message, self._num_ports):
            start = plain_bursts.start_of(meta, self._rate)
            reason = plain_bursts.bad_status(meta)
            if reason is None and samples.shape[1] != exchange.slot_samples:
                reason = f"burst of {samples.shape[1]} samples: must have slot_samples = {exchange.slot_samples}"
            if reason is None and start is None:
                reason = "burst has no time"
            if reason is None:
                found = exchange.hear(samples, self._purpose)
                self._answer(meta, start, found.h, found.heard)
            else:
                self._drop(meta, start, reason)

    @guarded
    def handle_csi(self, message):
        """Answer channels that have been estimated."""
        purpose, start, h, heard = (messages.get(message, key) for key in ("purpose", "start", "h", "heard"))
        if purpose == "cars":
            raise ValueError("csi of purpose 'cars': an answer has no answer")
        self._answer(message, start, h, heard.astype(bool))

    def _answer(self, meta, start: int, h: np.ndarray, heard: np.ndarray) -> None:
        if not heard.any():
            self._drop(meta, start, "no port stands out of the noise")
            return
        answer = self._exchange.answer(h, heard, self._ports, **self._options)
        cars = self._metadata(start, answer.scale, answer.limited)
        self.message_port_pub(METADATA, cars)
        header = plain_bursts.copied(pmt.make_dict(), meta, messages.SLOT, messages.BEAM)
        header = pmt.dict_add(header, messages.TX_TIME, time_to_pmt(start + self._latency, self._rate))
        header = pmt.dict_add(header, pmt.intern("cars"), cars)
        self.message_port_pub(ANSWERS, pmt.cons(header, messages.vector_to_pmt(answer.burst)))

    def _drop(self, meta, start: int | None, reason: str) -> None:
        """Say that there is no answer; to readers too, if it is known in which slot."""
        self.message_port_pub(DROPPED, plain_bursts.dropped(meta, start, reason))
        if start is not None:
            shape = (self._num_ports, self._exchange.mapping.num_sounding)
            self.message_port_pub(METADATA, self._metadata(start, np.zeros(shape), np.zeros(shape, int)))

    def _metadata(self, start: int, scale: np.ndarray, limited: np.ndarray):
        """What a reader must know of the answer to the sounding that started then."""
        at, middle = start + self._latency, self._exchange.middle
        return messages.encode("cars", start=at, sample=at + middle, sounding_sample=start + middle, scale=scale,
                               limited=limited, first_port=self._first_port, reads_amplitude=self._reads_amplitude)
