# SPDX-License-Identifier: GPL-3.0-or-later
"""What a simulated node consists of."""

from dataclasses import dataclass, field

import numpy as np

from .amplifiers import Amplifiers
from .coupling import PlanarArray
from .hardware import Panel
from .oscillators import Clock, Oscillator


@dataclass(frozen=True)
class SimulatedNode:
    """One node: an oscillator, a clock and `num_ports` ports, each with gains t and r and its own panel.

    tx_gains, rx_gains : complex (num_ports,), t and r without oscillator phases; None: all ones.
    noise_var : variance of the complex noise per received sample, a number or one per port; 0: none.
    amplifiers : of the ports (`amplifiers.draw_amplifiers`); None: linear.
    compression : short for third-order amplifiers, all alike: a3 / a1 at unit amplitude, no saturation; None: none.
    adc : (bits, full_scale) of `hardware.quantise`; None: ideal.
    array : where the ports stand, for the law of their coupling; None: in a row, half a wavelength apart.
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
    amplifiers: Amplifiers | None = None
    array: PlanarArray | None = None

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
        if self.compression is not None:
            if self.amplifiers is not None:
                raise ValueError(f"node {self.name}: compression and amplifiers exclude each other")
            alike = np.tile([1.0, self.compression], (self.num_ports, 1))
            object.__setattr__(self, "amplifiers", Amplifiers(alike))
        if self.amplifiers is not None and self.amplifiers.num_ports != self.num_ports:
            raise ValueError(
                f"node {self.name}: amplifiers of {self.amplifiers.num_ports} ports for num_ports={self.num_ports}"
            )
        if self.array is not None and self.array.num_elements != self.num_ports:
            raise ValueError(f"node {self.name}: array={self.array} must have num_ports={self.num_ports} elements")
