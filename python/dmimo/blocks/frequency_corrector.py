# SPDX-License-Identifier: GPL-3.0-or-later
"""Corrects the carrier of a node's streams, sample by sample of absolute time."""

import operator
from collections import deque

import numpy as np
import pmt
from gnuradio import gr

from ..core.carrier import CarrierCorrection
from . import messages
from .guard import guarded
from .lean import lean_sync_block
from .timetags import RX_TIME, rate_ratio, sample_from_pmt

TIME_TAGS = {"transmit": messages.TX_TIME, "receive": RX_TIME}
GRID_SAMPLES = 4096  # turns are computed on a grid fixed to absolute time, so that buffers cannot change a bit of them


class frequency_corrector(lean_sync_block):
    """Turns all streams of a node by the phase of its carrier's offset, as `core.carrier.CarrierCorrection` has it.

    Samples to send are multiplied by exp(+j (theta(n) + phase)), received ones by exp(-j theta(n - latency)), where
    theta turns by the frequency offset: those labelled n were at the antenna `latency_samples` earlier, and turned by
    theta(n) they would move the calibration at every change of frequency. n is the absolute sample: that of the last
    `tx_time` tag (transmit) or `rx_time` tag (receive) of port 0 plus the items since; without a tag the number of
    items since the start. So theta goes on through gaps between bursts. A node has one corrector in each direction,
    updated by the same messages.

    A message on `correction` is a dictionary with at least one of `frequency_hz` and `phase_rad` (both new values, not
    increments), and optionally `from_sample`, the absolute sample at the antenna from which on they hold (it may not
    lie before an earlier change), and `trusted`: an estimate that is not trusted is not applied. theta is continuous at
    that sample; of a message that comes after it has passed, the stream takes up the new theta at once. Without
    `from_sample` it holds from the next sample that is processed, or from a change already set for later.

    Parameters
    ----------
    num_ports : int
    samp_rate : float
    direction : "transmit" or "receive"
    frequency_hz : float
        Offset of the leader's oscillator from this node's; theta(0) = 0 at every start of the flowgraph.
    phase_rad : float
        Phase of the transmission; without effect on receive.
    latency_samples : int
        How much later than at the antenna received samples are labelled; without effect on transmit.
    """

    def __init__(self, num_ports: int, samp_rate: float, direction: str = "transmit", frequency_hz: float = 0.0,
                 phase_rad: float = 0.0, latency_samples: int = 0):
        if direction not in TIME_TAGS:
            raise ValueError(f"direction = {direction!r}: must be one of {sorted(TIME_TAGS)}")
        if num_ports < 1:
            raise ValueError(f"num_ports = {num_ports}: must be at least 1")
        if latency_samples < 0:
            raise ValueError(f"latency_samples = {latency_samples}: must not be negative")
        streams = [np.complex64] * num_ports
        lean_sync_block.__init__(self, "frequency_corrector", streams, streams)
        self._transmits, self._time_tag = direction == "transmit", TIME_TAGS[direction]
        self._latency = 0 if self._transmits else operator.index(latency_samples)
        self._samp_rate, self._rate = samp_rate, rate_ratio(samp_rate)
        self._correction = CarrierCorrection(samp_rate, frequency_hz, phase_rad)
        self._changes: deque[tuple[float | None, float | None]] = deque()
        self._reset()
        self.set_tag_propagation_policy(gr.TPP_ONE_TO_ONE)
        self.message_port_register_in(pmt.intern("correction"))
        self.set_msg_handler(pmt.intern("correction"), self.handle_correction)
        self.message_port_register_out(pmt.intern("error"))

    @property
    def frequency_hz(self) -> float:
        """Offset that is corrected, after the last change that has been applied."""
        return self._correction.frequency_hz

    @property
    def phase_rad(self) -> float:
        """Phase of the transmission, in (-pi, pi], after the last change that has been applied."""
        return self._correction.phase_rad

    def set_frequency(self, frequency_hz: float) -> None:
        """Change the frequency from the next sample that is processed on."""
        self._changes.append((_finite("frequency_hz", frequency_hz), None))

    def set_phase(self, phase_rad: float) -> None:
        """Change the phase of the transmission from the next sample that is processed on."""
        self._changes.append((None, _finite("phase_rad", phase_rad)))

    def stop(self):
        """Item counters, and time with them, begin again with the next start of the flowgraph."""
        self._correction = CarrierCorrection(self._samp_rate, self.frequency_hz, self.phase_rad)
        self._reset()
        return super().stop()

    def _reset(self) -> None:
        self._next = -self._latency  # absolute sample at the antenna of the next item
        self._turn: tuple[int | None, np.ndarray | None] = (None, None)  # cell of the grid, and its factors

    @guarded
    def handle_correction(self, message):
        """Take a new frequency or phase."""
        given = {key: _number(message, key) for key in ("frequency_hz", "phase_rad")}
        if all(value is None for value in given.values()):
            raise ValueError("correction: must hold frequency_hz or phase_rad")
        at_sample = _value(message, "from_sample")
        if at_sample is not None and (isinstance(at_sample, bool) or not isinstance(at_sample, int)):
            raise ValueError(f"from_sample = {at_sample!r}: must be an integer")
        if _value(message, "trusted") is False:
            return
        if at_sample is None:
            self._changes.append((given["frequency_hz"], given["phase_rad"]))
        else:
            self._change(**given, at_sample=at_sample)

    def _change(self, frequency_hz: float | None, phase_rad: float | None, at_sample: int) -> None:
        if frequency_hz is not None:
            self._correction.retune(frequency_hz, at_sample)
        if phase_rad is not None:
            self._correction.advance(phase_rad - self._correction.phase_rad, at_sample)
        self._turn = (None, None)

    @guarded
    def work(self, input_items, output_items):
        """Turn what lies between time tags, each stretch from its own absolute sample on."""
        count = len(output_items[0])
        position = 0
        tags = self.get_tags_in_window(0, 0, count, self._time_tag)
        if tags:
            offset = self.nitems_read(0)
            for border, sample in sorted((tag.offset - offset, sample_from_pmt(tag.value, self._rate)) for tag in tags):
                self._correct(input_items, output_items, position, border)
                position, self._next = border, sample - self._latency
        self._correct(input_items, output_items, position, count)
        return count

    def _correct(self, input_items, output_items, begin: int, end: int) -> None:
        """Turn items begin ... end - 1."""
        while self._changes and begin < end:
            self._change(*self._changes.popleft(), at_sample=max(self._next, self._correction.changed_at))
        while begin < end:
            cell, inside = divmod(self._next, GRID_SAMPLES)
            size = min(end - begin, GRID_SAMPLES - inside)
            turn = self._cell(cell)[inside : inside + size]
            for items, out in zip(input_items, output_items, strict=True):
                np.multiply(items[begin : begin + size], turn, out=out[begin : begin + size])
            begin += size
            self._next += size

    def _cell(self, cell: int) -> np.ndarray:
        if self._turn[0] != cell:
            turn = self._correction.transmit_turn if self._transmits else self._correction.receive_turn
            self._turn = (cell, turn(cell * GRID_SAMPLES, GRID_SAMPLES).astype(np.complex64))
        return self._turn[1]


def _value(message, key: str):
    """Value of a key of a dictionary, None where it has none; ValueError if the message is no dictionary."""
    if not pmt.is_dict(message):
        raise ValueError(f"correction: must be a dictionary, not {message}")
    return messages.get(message, key) if pmt.dict_has_key(message, pmt.intern(key)) else None


def _number(message, key: str) -> float | None:
    value = _value(message, key)
    return None if value is None else _finite(key, value)


def _finite(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not np.isfinite(value):
        raise ValueError(f"{name} = {value!r}: must be a finite number")
    return float(value)
