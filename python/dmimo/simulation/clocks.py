# SPDX-License-Identifier: GPL-3.0-or-later
"""The sample clocks of a network's nodes: their action on what is sent and received, and their shifts."""

from collections.abc import Mapping, Sequence

import numpy as np

from .delays import HALF_WIDTH, ClockStage
from .oscillators import Clock
from .timeline import Timeline

_KEPT_SHIFTS = 1 << 16  # changes of the past that can be asked for


class NodeClocks:
    """The clocks of all nodes, as far as they change with time; what is fixed is a delay of the channel.

    Parameters
    ----------
    clocks : by node.
    rows : which ports are each node's, in the same order.
    max_samples, block_samples : the most samples in a call, and the grid.
    channel_latency : of what lies between transmission and reception [samples].

    Attributes
    ----------
    is_active : whether any clock changes with time; if not, nothing below may be called but `set_shifts`.
    network_time : whether oscillators turn with network time; otherwise with their nodes' time, which differs little.
    tx_latency, rx_latency : constant delay of the two directions [samples].
    """

    def __init__(
        self,
        clocks: Mapping[str, Clock],
        rows: Sequence[slice],
        max_samples: int,
        block_samples: int,
        channel_latency: int,
    ):
        self._names, self._clocks = tuple(clocks), tuple(clocks.values())
        self.network_time = any(clock.adjustable for clock in self._clocks)
        self.is_active = self.network_time or any(clock.rate != 1.0 for clock in self._clocks)
        self.tx_latency = self.rx_latency = 0
        self._shifts = Timeline(kept=_KEPT_SHIFTS)
        self._none = np.zeros(len(clocks), dtype=np.int64)
        if not self.is_active:
            return
        least = min(clock.limits[0] for clock in self._clocks)
        greatest = max(clock.limits[1] for clock in self._clocks)
        self.tx_latency, self.rx_latency = (HALF_WIDTH + int(np.ceil(reach)) for reach in (-least, greatest))
        lag = self.tx_latency + channel_latency + self.rx_latency
        sizes = (rows, max_samples, block_samples)
        self._tx = ClockStage(
            [clock.tx_delay for clock in self._clocks],
            self._check_sent,
            *sizes,
            latency=self.tx_latency,
            greatest=greatest,
            lag=self.tx_latency,
            masked=True,
        )
        self._rx = ClockStage(
            [clock.rx_delay for clock in self._clocks],
            self._check_received,
            *sizes,
            latency=self.rx_latency,
            greatest=-least,
            lag=lag,
            masked=False,
        )
        self._memory = max(self._tx.past, lag)

    def _check_sent(self, node: int, delay: float, sample: float) -> None:
        """Raise ValueError if a clock is out of reach."""
        clock = self._clocks[node]
        least, greatest = clock.limits
        if not least <= delay <= greatest:
            raise ValueError(
                f"the clock of node {self._names[node]} is {delay + clock.fixed_offset:.2f} samples late at sample "
                f"{sample}, not within {least:g} ... {greatest:g}; reach_samples={clock.reach_samples}"
            )

    def _check_received(self, node: int, delay: float, sample: float) -> None:
        self._check_sent(node, -delay, sample)

    def set_shifts(self, start: int, shifts: Sequence[int] | None) -> None:
        """Let the nodes' shifts [samples] hold from absolute sample `start` on; None: no shifts."""
        if shifts is None and not self.is_active:
            return
        values = self._none if shifts is None else np.asarray(shifts)
        if self._shifts.holds(values):
            return
        if values.shape != self._none.shape or values.dtype.kind not in "iu":
            raise ValueError(f"shifts={shifts} must be one integer per node ({len(self._names)})")
        for name, clock, shift in zip(self._names, self._clocks, values.tolist(), strict=True):
            if shift != 0 and not clock.adjustable:
                raise ValueError(f"the clock of node {name} is not adjustable: its shift must be 0, not {shift}")
        self._shifts.set(start, values.astype(np.int64))

    def offset(self, node: int, sample: float, shift: int | None = None) -> float:
        """Return `Clock.offset` of a node at `sample`, under the shift in force then unless one is given."""
        if shift is None:
            shifts = self._shifts.at(sample)
            shift = 0 if shifts is None else int(shifts[node])
        return self._clocks[node].offset(sample, shift)

    def transmit(self, signal: np.ndarray, base: int) -> None:
        """Bring what the nodes send, complex64 (P, whole blocks) from sample `base`, to network time, in place."""
        self._tx.run(signal, base, list(self._shifts.stretches()))

    def receive(self, signal: np.ndarray, base: int) -> None:
        """Bring what arrives, complex64 (P, whole blocks), to the nodes' time, in place."""
        self._rx.run(signal, base, list(self._shifts.stretches()))

    def commit(self, num: int, base: int) -> None:
        """Move on by `num` samples, to `base`."""
        self._tx.commit(num)
        self._rx.commit(num)
        self._shifts.settle(base - self._memory)

    def flush(self) -> None:
        """Forget the past."""
        self._shifts.begin()
        if self.is_active:
            self._tx.flush()
            self._rx.flush()
