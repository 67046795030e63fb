# SPDX-License-Identifier: GPL-3.0-or-later
"""From the `mutual_coupling` section of a testbed file to plans, roles and collectors that linearise its arrays."""

from collections.abc import Mapping
from functools import cached_property

from . import testbed
from .core.waveforms import SlotLayout
from .protocols import verification
from .protocols.linearity import LinearityCollector, LinearityPlan, LinearityRole
from .protocols.mutual_coupling import AMPLITUDES, MutualCouplingPlan, MutualCouplingRole
from .protocols.mutual_coupling_collector import MutualCouplingCollector
from .protocols.predistortion import NodePredistortion
from .protocols.slots import Collector, Role, Slot

RADIO_FULL_SCALE = 1.0  # of UHD's samples


class Linearization:
    """What identifies the amplifiers of all access points, calibrates each of them, and measures what that is worth.

    Parameters
    ----------
    bed : Testbed
        With a `mutual_coupling` section.
    layout : SlotLayout
        Of one symbol, as in joint transmissions.
    verifies : bool
        Whether a user terminal measures each access point by itself: its coherent gain, and its linearity.
    """

    def __init__(self, bed: testbed.Testbed, layout: SlotLayout, verifies: bool):
        self._bed, self._settings, self._layout = bed, bed.mutual_coupling, layout
        self.verifies = verifies and bed.verification is not None
        self.measures_linearity = verifies and bed.linearity is not None

    @cached_property
    def plan(self) -> MutualCouplingPlan:
        """Plan of the measurements within the arrays."""
        bed, slots, settings = self._bed, self._bed.slots, self._settings
        return MutualCouplingPlan(
            nodes=tuple(node.name for node in bed.nodes), num_ports={ap.name: ap.num_ports for ap in bed.aps},
            slot_samples=slots.slot_samples, lead_samples=slots.lead_samples, prefix_samples=slots.prefix_samples,
            latency_samples=self._layout.latency_samples, num_pilots=settings.num_pilots, design=settings.design,
            peak_db=settings.peak_db, order=settings.order, memory_depth=settings.memory_depth,
            repeats=settings.repeats, linear_repeats=settings.linear_repeats, hold_samples=settings.hold_samples,
            guard_samples=settings.guard_samples, predistorts=settings.predistort,
            single_stage=settings.calibration == "single_stage", full_scale=self._full_scales)

    @property
    def _full_scales(self) -> Mapping[str, float]:
        """Amplitude at which receivers clip: as the file says, or as it says of converters, or of a radio."""
        if self._settings.full_scale is not None:
            return {ap.name: self._settings.full_scale for ap in self._bed.aps}
        if self._bed.frontend == "usrp":
            return {ap.name: RADIO_FULL_SCALE for ap in self._bed.aps}
        converters = {ap.name: ap.hardware.adc for ap in self._bed.aps if ap.hardware.adc is not None}
        # The largest value that a converter puts out lies a step below its full scale.
        return {name: adc.full_scale * (1 - 0.5 ** (adc.bits - 1)) for name, adc in converters.items()}

    @cached_property
    def verification_plans(self) -> Mapping[str, verification.Plan]:
        """Plan of the joint transmission of each access point alone."""
        if not self.verifies:
            return {}
        bed, settings = self._bed, self._bed.verification
        num_ports = {node.name: node.num_ports for node in bed.nodes}
        return {ap.name: verification.Plan(
            nodes=self.plan.nodes, aps=(ap.name,), ue=settings.ue, num_ports=num_ports,
            num_beams=dict.fromkeys(num_ports, 1), layout=self._layout, samp_rate=bed.samp_rate,
            num_subbands=bed.slots.num_subbands, uplink_repeats=settings.uplink_repeats, repeats=settings.repeats,
            random_starts=settings.random_starts, seed=bed.seed, max_loss_db=None, prefix=f"{ap.name}_",
            coefficients=f"{ap.name}_", scattered="port") for ap in bed.aps}

    @cached_property
    def linearity_plan(self) -> LinearityPlan | None:
        """Plan of what the terminal hears of each access point before and after, None where nobody asks."""
        if not self.measures_linearity:
            return None
        bed, settings = self._bed, self._bed.linearity
        return LinearityPlan(
            nodes=self.plan.nodes, verification=self.verification_plans, ue=settings.ue, layout=self._layout,
            samp_rate=bed.samp_rate, repeats=settings.repeats, modulation=settings.modulation,
            power_db=settings.power_db, guard_subcarriers=settings.guard_subcarriers, seed=bed.seed)

    def phases(self, window: int) -> list[tuple[str, int, list[Slot]]]:
        """All phases of a run that does nothing else."""
        phases = self.plan.phases(window)
        for plan in self.verification_plans.values():
            phases += plan.phases(window)
        return phases if self.linearity_plan is None else phases + self.linearity_plan.phases(window)

    def coupling_role(self, name: str) -> Role:
        """New role of a node in the measurements within the arrays; with it comes the node's predistortion."""
        num_ports = self.plan.num_ports.get(name, 0)
        known = NodePredistortion(num_ports, self._is_raw) if num_ports and self._settings.predistort else None
        return MutualCouplingRole(name, self.plan, known)

    def _is_raw(self, slot: Slot) -> bool:
        return slot.purpose == AMPLITUDES or (self.linearity_plan is not None and self.linearity_plan.is_raw(slot))

    def roles(self, name: str) -> list[Role]:
        """New roles of a node in a run that does nothing else."""
        coupling = self.coupling_role(name)
        roles: list[Role] = [coupling]
        roles += [verification.VerificationRole(name, plan) for plan in self.verification_plans.values()]
        if self.linearity_plan is not None:
            roles.append(LinearityRole(name, self.linearity_plan, coupling.predistortion))
        return roles

    def coupling_collector(self, excludes: bool = True) -> MutualCouplingCollector:
        """New collector of the measurements within the arrays."""
        return MutualCouplingCollector(self.plan, self._settings.calibration, excludes=excludes)

    def collectors(self, schedule_slots: tuple[Slot, ...]) -> dict[str, Collector]:
        """New collectors by name for a run that does nothing else."""
        collectors: dict[str, Collector] = {"linearizer": self.coupling_collector()}
        for ap, plan in self.verification_plans.items():
            collectors[f"{ap}_verifier"] = verification.Verifier(plan, schedule_slots)
        if self.linearity_plan is not None:
            collectors["linearity"] = LinearityCollector(self.linearity_plan, schedule_slots)
        return collectors
