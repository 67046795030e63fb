# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node does to everything it sends, so that its amplifiers look linear."""

from collections.abc import Callable, Sequence

import numpy as np

from ..core import predistortion
from ..core.memory_polynomial import predistort_with_memory
from .slots import Role, Slot

TABLE_SIZE = 4096  # entries; the gain between them is right to about the inverse of the square


class NodePredistortion:
    """Predistortion of one node, applied to whole bursts; a role sets it, the role block applies it.

    It comes last, after carrier and clock have been corrected: what it inverts is the amplifier right behind it. Until
    coefficients are known, and in slots that are `raw`, bursts pass unchanged.

    Parameters
    ----------
    num_ports : int
    raw : callable(Slot) -> bool
        Whether the bursts of a slot are to reach the amplifiers as they are.

    Attributes
    ----------
    num_clipped, num_samples : ndarray (num_ports,), int64
        Samples that were clipped to what the amplifier can deliver, and all that were predistorted.
    """

    def __init__(self, num_ports: int, raw: Callable[[Slot], bool]):
        self._raw = raw
        self._apply: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
        self.num_clipped = np.zeros(num_ports, np.int64)
        self.num_samples = np.zeros(num_ports, np.int64)

    def set(self, coefficients: np.ndarray, peak: np.ndarray) -> None:
        """Predistort from now on.

        Parameters
        ----------
        coefficients : ndarray (num_ports, P), or (num_ports, L, P) with memory
            Of the amplifiers, relative to the linear one; 1, 0, ... leaves a port as it is.
        peak : ndarray (num_ports,)
            Largest amplifier input up to which they hold; inf: everywhere.
        """
        if coefficients.ndim == 3:
            self._apply = lambda burst: predistort_with_memory(burst, coefficients, max_amplitude=peak)[:2]
            return
        linear = ~np.any(coefficients[:, 1:], axis=-1)
        reach = predistortion.invertible_range(coefficients, max_amplitude=peak).output_amplitude
        # A table must end somewhere: for ports that need none, anywhere.
        ends = np.where(np.isfinite(reach), reach, 1.0)
        table = predistortion.predistorter_table(coefficients, size=TABLE_SIZE, max_amplitude=peak, full_scale=ends)

        def apply(burst: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            samples, clipped = predistortion.apply_table(burst, table)
            return np.where(linear[:, None], burst, samples), np.where(linear, 0, clipped)

        self._apply = apply

    def transmit(self, burst: np.ndarray, slot: Slot) -> np.ndarray:
        """Burst (num_ports, n) for a slot as it goes to the amplifiers: complex64."""
        if self._apply is None or self._raw(slot):
            return burst
        samples, clipped = self._apply(burst)
        self.num_clipped += clipped
        self.num_samples += burst.shape[-1]
        return samples.astype(np.complex64)


def predistortion_of(roles: Sequence[Role]) -> NodePredistortion | None:
    """The predistortion that the roles of a node share, None where they have none."""
    return next((role.predistortion for role in roles if getattr(role, "predistortion", None) is not None), None)
