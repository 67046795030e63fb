# SPDX-License-Identifier: GPL-3.0-or-later
"""Beams of all ports of a network, from the sample on from which they are set."""

from collections.abc import Iterator, Mapping

import numpy as np

from .timeline import Timeline


class BeamTimeline(Timeline):
    """Beams (P,) of all ports, constant over stretches of absolute samples.

    Parameters
    ----------
    nodes : mapping of name to (number of ports, number of beams), in the order of the ports.
    """

    def __init__(self, nodes: Mapping[str, tuple[int, int]]):
        super().__init__()
        counts = [num_ports for num_ports, _ in nodes.values()]
        self._names = np.repeat(list(nodes), counts)
        self._num_beams = np.repeat([num_beams for _, num_beams in nodes.values()], counts)

    def switch(self, start: int, num: int, beams: np.ndarray) -> None:
        """Take the beams of `num` samples from `start` on: (P,), or (n, P) of n slots."""
        beams, num_ports = np.asarray(beams, dtype=np.int64), len(self._names)
        if beams.shape[-1:] != (num_ports,) or beams.ndim > 2:
            raise ValueError(f"beams has shape {beams.shape}, not ({num_ports},) or (slots, {num_ports})")
        if beams.ndim == 1 and self.holds(beams):
            return
        # Negative ones are huge as unsigned numbers: one comparison for both limits.
        if (beams.view(np.uint64) >= self._num_beams.view(np.uint64)).any():
            *slot, port = np.argwhere((beams < 0) | (beams >= self._num_beams))[0]
            name, last = self._names[port], self._num_beams[port] - 1
            raise ValueError(f"beam {beams[*slot, port]} of node {name} must be within 0 ... {last}")
        slots = [beams] if beams.ndim == 1 else beams
        for k, each in enumerate(slots):
            if not self.holds(each):
                self.set(start + k * (num // len(slots)), each)

    def overlaps(self, first: int, last: int, delay: int) -> Iterator[tuple[int, int, np.ndarray]]:
        """Yield (from, to, beams) of each stretch of constant beams, `delay` later, relative to sample `first`."""
        for start, end, beams in self.stretches():
            a, b = max(start + delay, first), min(end + delay, last)
            if a < b:
                yield a - first, b - first, beams
