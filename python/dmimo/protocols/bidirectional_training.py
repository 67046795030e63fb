# SPDX-License-Identifier: GPL-3.0-or-later
"""Beam training of a bidirectional run: all UEs sound through all pairs of beams, and the best ones are chosen.

Two choices come of it: the pair for each link between a TRP and a UE, with which it is calibrated, and one beam for
each node, with which the TRPs together serve the UEs.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from .bidirectional_plan import TRAINING, BidirectionalPlan
from .slots import Grant, Product, Reception, Slot


class TrainingRole:
    """What one node does in the beam training: UEs sound, TRPs measure.

    Parameters
    ----------
    node : str
    plan : BidirectionalPlan
    """

    purposes = frozenset({TRAINING})
    reactive = False

    def __init__(self, node: str, plan: BidirectionalPlan):
        self._node, self._plan = node, plan
        self._reception = Reception()
        own = node in plan.terminals
        self._burst = plan.train.sounding("srs", plan.training_ports(node)) if own else None

    def beam(self, slot: Slot) -> int:
        """Beam of the schedule."""
        return slot.beams[self._plan.nodes.index(self._node)]

    def transmit(self, slot: Slot, start: int) -> np.ndarray | None:
        """The sounding of a UE."""
        return self._burst

    def receive(self, slot: Slot, grant: Grant, samples: np.ndarray) -> None:
        """TRPs keep what they receive."""
        if self._node in self._plan.trps:
            self._reception.keep(grant, samples)

    def results(self, grants: Sequence[Grant]) -> dict[str, object] | None:
        """`slots` (n,), and `energy` (n, ports of all UEs) that all own ports receive from each, noise removed."""
        if self._node not in self._plan.trps:
            return None
        samples = self._reception.take(grants)
        heard = self._plan.train.hear(samples, "srs")
        energy = np.mean(np.abs(heard.h) ** 2, axis=-1) - heard.noise_var[..., None]
        return {"slots": np.array([grant.slot for grant in grants]), "energy": energy.sum(axis=1)}

    def update(self, product: Product) -> None:
        """The training needs nothing from other phases."""


class TrainingCollector:
    """Chooses the beams.

    Parameters
    ----------
    plan : BidirectionalPlan
    schedule_slots : sequence of Slot
    """

    phases = frozenset({TRAINING})

    def __init__(self, plan: BidirectionalPlan, schedule_slots: Sequence[Slot]):
        self._plan, self._slots = plan, schedule_slots

    def update(self, product: Product) -> None:
        """The training needs nothing from other phases."""

    def produce(self, phase: str, grants: Sequence[Grant], results: Mapping[str, Mapping[str, object]]) -> Product:
        """`trp_beams` and `ue_beams` (TRPs, calibrating UEs) of each link; `serving_beams` of all nodes."""
        plan = self._plan
        energy = self._energies(results)
        links = energy[:, [plan.terminals.index(name) for name in plan.ues]]
        ue_beam, trp_beam = np.unravel_index(links.reshape(*links.shape[:2], -1).argmax(axis=-1), plan.training_shape)
        trp, ue = self._serving(energy)
        beams = dict(zip(plan.trps, trp, strict=True)) | dict(zip(plan.terminals, ue, strict=True))
        trp_counts, ue_counts = (np.array([plan.num_beams[name] for name in side]) for side in (plan.trps, plan.ues))
        return Product(phase, {
            "trp_beams": trp_beam % trp_counts[:, None], "ue_beams": ue_beam % ue_counts,
            "serving_beams": np.array([beams[name] % plan.num_beams[name] for name in plan.nodes]),
        })

    def _energies(self, results) -> np.ndarray:
        """Energy (TRPs, UEs, beams of UEs, beams of TRPs)."""
        plan = self._plan
        owners = np.repeat(np.arange(len(plan.terminals)), [plan.num_ports[name] for name in plan.terminals])
        out = np.zeros((len(plan.trps), len(plan.terminals), np.prod(plan.training_shape)))
        for row, name in enumerate(plan.trps):
            result = results[name]
            variants = [self._slots[int(index)].variant for index in result["slots"]]
            by_node = np.asarray(result["energy"]) @ (owners[:, None] == np.arange(len(plan.terminals)))
            out[row][:, variants] = by_node.T
        return out.reshape(*out.shape[:2], *plan.training_shape)

    @staticmethod
    def _serving(energy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Beam of each TRP and of each UE for all of them together.

        Each UE takes the beam with which the TRPs, each at its best, reach it with the most energy; then each TRP the
        one with which it reaches the UEs best, the energy of each UE counted relative to the most it could have.
        """
        ue = energy.max(axis=-1).sum(axis=0).argmax(axis=-1)
        given = np.take_along_axis(energy, ue[None, :, None, None], axis=2)[:, :, 0]
        share = given / np.maximum(given.max(axis=-1).sum(axis=0), np.finfo(float).tiny)[:, None]
        return share.sum(axis=1).argmax(axis=-1), ue
