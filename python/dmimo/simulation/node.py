# SPDX-License-Identifier: GPL-3.0-or-later
"""What a simulated node consists of."""

from dataclasses import dataclass, field

import numpy as np

from .hardware import Panel
from .oscillators import Clock, Oscillator


@dataclass(frozen=True)
class SimulatedNode:
    """One node: an oscillator, a clock and `num_ports` ports, each with gains t and r and its own panel.

    tx_gains, rx_gains : complex (num_ports,), t and r without oscillator phases; None: all ones.
    noise_var : variance of the complex noise per received sample, a number or one per port; 0: none.
    compression : a3 / a1 of the third-order amplifier (`hardware.amplify`); None: linear.
    adc : (bits, full_scale) of `hardware.quantise`; None: ideal.
    """

    name: str
    num_ports: int
    oscillator: Oscillator
    panel: Panel = field(default_factory=Panel)
    tx_gains: np.ndarray | None = None
    rx_gains: np.ndarray | None = None
    clock: Clock = field(default_factory=Clock)
    noise_var: float | np.ndarray = 0.0
    compression: complex | None = None
    adc: tuple[int, float] | None = None
    position_m: tuple[float, float, float] = (0.0, 0.0, 0.0)

    def __post_init__(self):
        if self.num_ports < 1:
            raise ValueError(f"node {self.name}: num_ports={self.num_ports} must be at least 1")
        for key in ("tx_gains", "rx_gains"):
            gains = np.ones(self.num_ports) if getattr(self, key) is None else np.asarray(getattr(self, key))
            if gains.shape != (self.num_ports,):
                raise ValueError(f"node {self.name}: {key} has shape {gains.shape}, not ({self.num_ports},)")
            object.__setattr__(self, key, gains.astype(np.complex128))
        if not np.all(np.asarray(self.noise_var) >= 0.0):
            raise ValueError(f"node {self.name}: noise_var={self.noise_var} must not be negative")
