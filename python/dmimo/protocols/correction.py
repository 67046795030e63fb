# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node does to all it sends and receives, so that its oscillator and clock look like the leader's."""

from collections.abc import Sequence

import numpy as np

from ..core.carrier import CarrierCorrection
from ..core.clock_correction import ClockCorrection
from ..core.timing import fractional_shift
from .slots import Role


class NodeCorrection:
    """Carrier and clock correction of one node, applied to whole slots; its roles change it, its role block applies it.

    Parameters
    ----------
    samp_rate : float
    clock : ClockCorrection, optional
        None where all clocks are shared.
    latency_samples : int
        How much later than at the antenna received samples are labelled: they are turned by their time at the antenna,
        or every change of frequency would turn c.
    """

    def __init__(self, samp_rate: float, clock: ClockCorrection | None = None, latency_samples: int = 0):
        self.carrier = CarrierCorrection(samp_rate)
        self.clock = clock
        self._latency = latency_samples

    def shift(self, start: int) -> int:
        """Samples by which the node's device time is ahead of network time in the slot that begins at `start`."""
        return 0 if self.clock is None else self.clock.shift(start)

    def transmit(self, samples: np.ndarray, start: int) -> np.ndarray:
        """Burst (ports, n) to send from absolute sample `start` on, corrected: complex64."""
        turned = samples * self.carrier.transmit_turn(start, samples.shape[-1])
        return self._shifted(turned, start, 1.0).astype(np.complex64)

    def receive(self, samples: np.ndarray, start: int) -> np.ndarray:
        """Samples (ports, n) received from absolute sample `start` on, corrected: complex64."""
        shifted = self._shifted(samples, start, -1.0)
        return (shifted * self.carrier.receive_turn(start - self._latency, samples.shape[-1])).astype(np.complex64)

    def _shifted(self, samples: np.ndarray, start: int, sign: float) -> np.ndarray:
        fraction = 0.0 if self.clock is None else self.clock.fraction(start)
        return samples if fraction == 0.0 else fractional_shift(samples, sign * fraction)


def correction_of(roles: Sequence[Role]) -> NodeCorrection | None:
    """The correction that the roles of a node share, None where they have none."""
    return next((role.correction for role in roles if getattr(role, "correction", None) is not None), None)
