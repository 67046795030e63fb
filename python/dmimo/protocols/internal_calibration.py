# SPDX-License-Identifier: GPL-3.0-or-later
"""Internal calibration: every access point (AP) calibrates its antennas to its first one over their mutual coupling.

One slot per AP and repeat: its ports sound one after another while all its ports listen, which measures every pair of
them in both directions.

References
----------
BeamSync, appendix, eq. (52)-(54), after Argos: bidirectional measurements of each antenna with the first one
(`method` "argos"). All pairs are measured in the same time, and maximum likelihood takes them all ("ml").
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ..core import bounds, reciprocity, sounding
from ..core.waveforms import SlotLayout
from .slots import Grant, Product, Reception, Slot

PURPOSE = PHASE = "internal"


def internal_slots(nodes: Sequence[str], aps: Sequence[str], repeats: int) -> list[Slot]:
    """Slots of the internal calibration, AP after AP, `repeats` times."""
    beams = (0,) * len(nodes)
    return [Slot(0, PURPOSE, (ap,), beams, repeat) for repeat in range(repeats) for ap in aps]


class InternalRole:
    """What one node does: an AP sounds and listens to itself, all others are silent."""

    purposes = frozenset({PURPOSE})
    reactive = False

    def __init__(self, node: str, layouts: Mapping[str, SlotLayout]):
        self._node = node
        self._layout = layouts.get(node)
        self._burst = None if self._layout is None else self._layout.sounding_burst()
        self._reception = Reception()
        self._heard: set[int] = set()

    def beam(self, slot: Slot) -> int:
        """Beam 0: the APs are digital."""
        return 0

    def transmit(self, slot: Slot, start: int) -> np.ndarray | None:
        """The sounding burst, in the node's own slots."""
        return self._burst if self._node in slot.transmitters else None

    def receive(self, slot: Slot, grant: Grant, samples: np.ndarray) -> None:
        """Keep what the node's ports hear of each other."""
        if self._node in slot.transmitters:
            self._heard.add(grant.slot)
            self._reception.keep(grant, samples)

    def results(self, grants: Sequence[Grant]) -> dict[str, object] | None:
        """Channel `h` complex128 (receiving port, sending port, components) and `noise_var` (ports,) of its entries."""
        heard = [grant for grant in grants if grant.slot in self._heard]
        if not heard:
            return None
        self._heard.clear()
        samples, symbol = self._reception.take(heard), self._layout.symbol
        starts = [self._layout.useful_start(port) for port in range(self._layout.num_ports)]
        h = np.stack([sounding.channel_estimate(samples, symbol, start) for start in starts], axis=2)
        noise = sounding.empty_bin_noise_variance(samples, symbol, starts[0]).mean(axis=0)
        h = np.moveaxis(h, 0, -2).reshape(*h.shape[1:3], -1)
        return {"h": h, "noise_var": sounding.estimate_noise_variance(symbol, noise)}

    def update(self, product: Product) -> None:
        """Nothing to take: other roles use the product."""


class InternalCollector:
    """Calibrates each AP by itself and publishes c of all ports, 1 at the first port of each AP.

    Parameters
    ----------
    aps : mapping of name to number of ports, in the order of the calibration's ports
    method : "ml" or "argos"
    max_phase_std_rad : float
        Predicted phase deviation of a port from which the product is not trusted.
    """

    phases = frozenset({PHASE})

    def __init__(self, aps: Mapping[str, int], method: str = "ml", max_phase_std_rad: float = 0.2):
        self._aps = aps
        self._method = method
        self._limit = max_phase_std_rad
        self.c: np.ndarray | None = None
        self.phase_std_rad: np.ndarray | None = None

    def update(self, product: Product) -> None:
        """Needs nothing from other phases."""

    def produce(self, phase: str, grants: Sequence[Grant], results: Mapping[str, Mapping[str, object]]) -> Product:
        """Product with `internal_c` and `internal_std_rad`, (ports,) of all APs in order."""
        parts = {ap: calibrate_array(np.asarray(results[ap]["h"]), np.asarray(results[ap]["noise_var"]), self._method)
                 for ap in self._aps}
        self.c = np.concatenate([c for c, _ in parts.values()])
        deviations = {ap: phase_std(covariance) for ap, (_, covariance) in parts.items()}
        self.phase_std_rad = np.concatenate(list(deviations.values()))
        reasons = tuple(
            f"node {ap}: port {port}: internal calibration is not trusted, its phase has a predicted deviation of "
            f"{np.degrees(std[port]):.0f} degrees"
            for ap, std in deviations.items() for port in np.flatnonzero(~(std < self._limit)))
        return Product(PHASE, {"internal_c": self.c, "internal_std_rad": self.phase_std_rad}, not reasons, reasons)


def calibrate_array(
    h: np.ndarray, noise_var: np.ndarray, method: str = "ml", hub: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """c (ports,) of one AP, 1 at its first port, and the predicted covariance (ports, ports) of log (c / c_hub).

    Parameters
    ----------
    h : ndarray (ports, ports, components)
        What each port received from each other one, receiver first.
    noise_var : ndarray (ports,)
        Of the entries, for each receiver.
    method : "ml" or "argos"
        All pairs, or those with the hub.
    hub : int
        Port that the others are compared with.
    """
    num_ports, num_components = len(h), h.shape[-1]
    if num_ports == 1:
        return np.ones(1, complex), np.zeros((1, 1))
    noise_var, mask = np.maximum(noise_var, 1e-30), None
    if method == "argos":
        mask = np.zeros((num_ports, num_ports), bool)
        mask[hub] = mask[:, hub] = True
        mask[hub, hub] = False
    c = reciprocity.calibrate(h, method, reference=hub, noise_var=noise_var, mask=mask)
    # E |y_ij|^2 = |c_j psi|^2 + noise: what is left without the noise gives the path's energy from both directions.
    energy = np.sum(np.abs(h) ** 2, axis=-1) - num_components * noise_var[:, None]
    path = (energy + energy.T) / (np.abs(c[:, None]) ** 2 + np.abs(c) ** 2)
    path = np.maximum(path, 0.01 * num_components * noise_var.mean())
    covariance = bounds.calibration_crlb(c, path, noise_var, mask=mask, num_components=num_components, reference=hub)
    return reciprocity.fix_gauge(c, 0), covariance


def phase_std(covariance: np.ndarray) -> np.ndarray:
    """Deviation (ports,) of the phases [rad]: their variance is half of the complex one, (ports, ports), of log c."""
    return np.sqrt(np.maximum(np.diagonal(covariance).real, 0.0) / 2)
