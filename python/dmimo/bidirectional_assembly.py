# SPDX-License-Identifier: GPL-3.0-or-later
"""The bidirectional part of an assembly: plan, roles and collectors of exchange, tracking and joint transmissions."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from . import testbed
from .core.ofdm import OfdmGrid
from .core.waveforms import SlotLayout
from .protocols import verification
from .protocols.bidirectional import ExchangeRole
from .protocols.bidirectional_collector import BidirectionalCollector
from .protocols.bidirectional_filter import Filtered
from .protocols.bidirectional_plan import TRAINING, BidirectionalPlan
from .protocols.bidirectional_tracking import Extrapolation, OneWay
from .protocols.bidirectional_training import TrainingCollector, TrainingRole
from .protocols.slots import Collector, CollectorGroup, Role, Slot

UPLINK = "ul_"
"""Prefix of the phases in which the UEs send together."""
UE = "ue_"
"""Prefix of the UEs' set in the calibration product."""
SHARED_CFO_HZ = 0.1
"""Difference that is allowed for between carriers made from one reference."""


class Bidirectional:
    """What a testbed's `bidirectional` section asks for: access points are the TRPs.

    Parameters
    ----------
    bed : Testbed
        With a `bidirectional` section.
    layout : SlotLayout
        Of one symbol, as in joint transmissions.
    verifies : bool
        Whether joint transmissions of the UEs are measured too.
    """

    def __init__(self, bed: testbed.Testbed, layout: SlotLayout, verifies: bool):
        self._bed, self._settings, self._layout = bed, bed.bidirectional, layout
        self._verifies = verifies and self._settings.uplink

    @cached_property
    def plan(self) -> BidirectionalPlan:
        """Plan of exchange and tracking."""
        bed, slots, settings = self._bed, self._bed.slots, self._settings
        grid = OfdmGrid(bed.samp_rate / slots.pilot_samples, slots.pilot_samples, slots.prefix_samples,
                        slots.num_subcarriers, skip_dc=slots.num_subcarriers % 2 == 0)
        ues = tuple(node.name for node in bed.ues)
        return BidirectionalPlan(
            nodes=tuple(node.name for node in bed.nodes), trps=tuple(node.name for node in bed.aps),
            ues=tuple(name for name in ues if name in settings.calibrating), terminals=ues,
            num_ports=self._num_ports, num_beams=self._num_beams, grid=grid, slot_samples=slots.slot_samples,
            lead_samples=slots.lead_samples, advance_samples=self._layout.advance_samples,
            latency_samples=self._layout.latency_samples, receive_delay_samples=slots.receive_delay_samples,
            form=settings.form, fade_limit_db=settings.fade_limit_db, max_delay_s=settings.max_delay_s,
            max_cfo_hz=self._max_cfo_hz, center_freq=bed.center_freq, linewidth_hz=settings.linewidth_hz)

    @property
    def _max_cfo_hz(self) -> float | None:
        """As the testbed says; where it does not, radios that share a reference do not differ."""
        shared = self._bed.frontend == "usrp" and self._bed.usrp.shares_reference
        return SHARED_CFO_HZ if shared and self._settings.max_cfo_hz is None else self._settings.max_cfo_hz

    @property
    def beams_from(self) -> str | None:
        """Phase that chooses all beams, None where there is nothing to choose."""
        return TRAINING if self.plan.trains else None

    @property
    def _num_ports(self) -> Mapping[str, int]:
        return {node.name: node.num_ports for node in self._bed.nodes}

    @property
    def _num_beams(self) -> Mapping[str, int]:
        return {node.name: len(node.panel.beams) for node in self._bed.nodes}

    @property
    def pattern_samples(self) -> int:
        """Length of a TDD pattern as the testbed has it."""
        return round(self._settings.pattern_s * self._bed.samp_rate)

    @cached_property
    def uplink_plan(self) -> verification.Plan | None:
        """Plan of the UEs' joint transmissions to the first TRP."""
        if not self._verifies:
            return None
        bed, settings = self._bed, self._bed.verification
        counts = self.plan.num_ue_ports
        return verification.Plan(
            nodes=self.plan.nodes, aps=self.plan.ues, ue=self.plan.trps[0], num_ports=self._num_ports,
            num_beams=self._num_beams, layout=self._layout, samp_rate=bed.samp_rate,
            num_subbands=bed.slots.num_subbands, uplink_repeats=settings.uplink_repeats, repeats=settings.repeats,
            random_starts=settings.random_starts, seed=bed.seed, prefix=UPLINK, coefficients=UE,
            beams_from=self.beams_from, max_loss_db=None,
            cooperating=tuple(count for count in settings.cooperating if count <= counts))

    def first_phases(self, window: int) -> list[tuple[str, int, list[Slot]]]:
        """Phases before the first pattern."""
        return self.plan.phases(window)

    def pattern(self, window: int, verified: list[tuple[str, int, list[Slot]]]) -> list[tuple[str, int, list[Slot]]]:
        """Phases of a pattern; the first two begin at its start and in its middle."""
        uplink = [] if self.uplink_plan is None else self.uplink_plan.phases(window)
        return [*self.plan.pattern(), *verified, *uplink]

    def roles(self, name: str) -> list[Role]:
        """New roles of a node."""
        roles: list[Role] = [ExchangeRole(name, self.plan)]
        if self.plan.trains:
            roles.append(TrainingRole(name, self.plan))
        if self.uplink_plan is not None:
            roles.append(verification.VerificationRole(name, self.uplink_plan))
        return roles

    def collectors(self, schedule_slots: tuple[Slot, ...]) -> dict[str, Collector]:
        """New collectors by name."""
        settings = self._settings
        members: dict[str, Collector] = {"exchange": BidirectionalCollector(
            self.plan, schedule_slots, self._tracking(), estimator=settings.estimator,
            pattern_samples=self.pattern_samples, keeps_csi=settings.keep_csi,
            budget_rad=np.radians(settings.budget_deg) if settings.calibrate == "on_demand" else None)}
        if self.plan.trains:
            members["training"] = TrainingCollector(self.plan, schedule_slots)
        collectors: dict[str, Collector] = {"bidirectional": CollectorGroup(members)}
        if self.uplink_plan is not None:
            collectors["uplink_verifier"] = verification.Verifier(self.uplink_plan, schedule_slots)
        return collectors

    def _tracking(self) -> Extrapolation:
        settings = self._settings
        if settings.tracking == "kalman":
            return Filtered(self.plan, drift_hz=settings.drift_hz, drift_period_s=settings.drift_period_s)
        return (OneWay if settings.tracking == "wideband" else Extrapolation)(self.plan)
