# SPDX-License-Identifier: GPL-3.0-or-later
"""From the `beamsync` section of a testbed file to plans, roles and collectors of the synchronisation."""

from collections.abc import Mapping
from functools import cached_property

import numpy as np

from . import testbed
from .core.carrier_tracking import CarrierTracker
from .core.clock_correction import ClockCorrection
from .core.sync_burst import SyncBurst
from .core.waveforms import SlotLayout
from .linearization_assembly import Linearization
from .protocols import internal_calibration, timing
from .protocols.beamsync import Bystander, FollowerRole, LeaderRole
from .protocols.beamsync_collector import BeamSyncCollector, Pacing
from .protocols.beamsync_plan import BeamSyncPlan
from .protocols.correction import NodeCorrection
from .protocols.joint_transmission import AccessPoints
from .protocols.slots import Collector, CollectorGroup, Role, Slot

MAX_OFFSET_HZ = 20e3  # of carriers in a search for preambles, where the testbed sets no limit
UNKNOWN_OFFSET_HZ = 1e6  # deviation of an offset that was not measured
SETTLING = 4  # exchanges at the start: each holds several times as long as the one before
SETTLING_S = 1.0  # and at most so long: then the offset is known well enough
LEADS_OF_AN_EXCHANGE = 6  # of reactive slots: from a frequency stage to the first use of a phase, with some in hand
SUFFIX_SHARE = 4  # the burst's suffix is a quarter of the prefix: clocks may be early by as much


class Synchronization(AccessPoints):
    """What the synchronisation of a testbed is made of.

    Parameters
    ----------
    bed : Testbed
        With a `beamsync` section.
    layouts : mapping of AP to SlotLayout
    latency_samples : int
        How much later than at the antenna received samples are labelled.
    linearization : Linearization, optional
        Calibrates the ports of the access points to each other, instead of the internal calibration.
    """

    def __init__(self, bed: testbed.Testbed, layouts: Mapping[str, SlotLayout], latency_samples: int,
                 linearization: Linearization | None = None):
        self._bed, self._settings = bed, bed.beamsync
        self._layouts, self._latency, self._linearization = layouts, latency_samples, linearization
        self.nodes = tuple(node.name for node in bed.nodes)
        self.leader = self._settings.leader
        self.followers = tuple(ap.name for ap in bed.aps if ap.name != self.leader)
        self.num_ports = {ap.name: ap.num_ports for ap in bed.aps}
        self.aps = tuple(self.num_ports)

    @cached_property
    def plan(self) -> BeamSyncPlan:
        """Plan of the exchanges."""
        settings, slots = self._settings, self._bed.slots
        burst = SyncBurst(slots.slot_samples, slots.lead_samples, settings.sync_samples, slots.prefix_samples,
                          slots.prefix_samples // SUFFIX_SHARE, self._latency)
        return BeamSyncPlan(
            nodes=self.nodes, leader=self.leader, followers=self.followers, layouts=self._layouts, burst=burst,
            samp_rate=self._bed.samp_rate, waveform=settings.waveform, multiplexing=settings.multiplexing,
            guard_bins=settings.guard_bins, returns=settings.returns, rounds=settings.rounds,
            frequency_repeats=settings.frequency_repeats, pilot_share=settings.pilot_share, joint=settings.joint,
            max_offset_hz=settings.max_offset_hz, num_subbands=slots.num_subbands,
            leader_noise_db=settings.leader_noise_db, seed=self._bed.seed, frequency_gaps=self._frequency_gaps)

    @property
    def _frequency_gaps(self) -> tuple[int, ...]:
        """Gaps between further bursts of the frequency stage with radios, whose exchanges are leads apart.

        Each burst doubles the span, which the frequency found so far bridges, up to what an exchange takes.
        """
        bed = self._bed
        if bed.frontend != "usrp":
            return ()
        span, gaps = self._settings.frequency_repeats * bed.slots.slot_samples, []
        while span < LEADS_OF_AN_EXCHANGE * bed.usrp.reactive_lead_s * bed.samp_rate:
            gaps.append(span)
            span += span + bed.slots.slot_samples
        return tuple(gaps)

    @cached_property
    def timing_plan(self) -> timing.TimingPlan | None:
        """Plan of the alignment of the sample clocks, None where they are shared."""
        settings, bed = self._settings, self._bed
        if not settings.timing:
            return None
        return timing.TimingPlan(
            nodes=self.nodes, leader=self.leader, followers=self.followers,
            num_ports={node.name: node.num_ports for node in bed.nodes}, slot_samples=bed.slots.slot_samples,
            samp_rate=bed.samp_rate, center_freq=bed.center_freq, preamble_samples=settings.preamble_samples,
            latency_samples=self._latency, max_delay_samples=settings.max_delay_samples,
            max_offset_hz=MAX_OFFSET_HZ if settings.max_offset_hz is None else settings.max_offset_hz)

    @property
    def calibrates(self) -> bool:
        """Whether the access points calibrate their own ports first, and in the common slots of all their ports."""
        wanted = self._linearization is None and self._settings.internal_calibration != "none"
        return wanted and max(self.num_ports.values()) > 1

    def first_phases(self) -> list[tuple[str, int, list[Slot]]]:
        """Phases of a cold start up to the frequency."""
        phases = [] if self.timing_plan is None else self.timing_plan.phases(self._bed.slots.window)[:1]
        if self.calibrates:
            slots = internal_calibration.internal_slots(self.nodes, self.aps,
                                                        self._settings.internal_repeats)
            phases.append((internal_calibration.PHASE, self._bed.slots.window, slots))
        if self._linearization is not None:
            phases += self._linearization.plan.phases(self._bed.slots.window)
        return [*phases, self.plan.frequency_stage()]

    def repeated_phases(self) -> list[tuple[str, int, list[Slot]]]:
        """Phases that are repeated: tracking of the clocks, and the phase stage."""
        tracking = [] if self.timing_plan is None else self.timing_plan.phases(self._bed.slots.window)[1:]
        return [*tracking, self.plan.phase_stage()]

    def roles(self, name: str) -> list[Role]:
        """New roles of a node."""
        roles: list[Role] = [internal_calibration.InternalRole(name, self._layouts)] if self.calibrates else []
        if self._linearization is not None:
            roles.append(self._linearization.coupling_role(name))
        clock = correction = None
        if name in self.followers:
            clock = None if self.timing_plan is None else ClockCorrection(self._bed.samp_rate)
            correction = NodeCorrection(self._bed.samp_rate, clock, self._latency)
        if self.timing_plan is not None:
            carrier = None if correction is None else correction.carrier
            roles.append(timing.TimingRole(name, self.timing_plan, clock, carrier))
        if name == self.leader:
            return [*roles, LeaderRole(name, self.plan, self.ports(name))]
        if name not in self.followers:
            return [*roles, Bystander(name, self.plan)]
        budget = np.radians(self._settings.budget_deg)
        return [*roles, FollowerRole(name, self.plan, self.ports(name), self.ports(self.leader), correction,
                                     self._tracker, budget, again=self._settings.resynchronise)]

    def collector(self, watches: int) -> CollectorGroup:
        """New collectors of the synchronisation, as one; `watches` paced phases lie between synchronisations."""
        settings, rate = self._settings, self._bed.samp_rate
        pacing = Pacing(round(settings.min_interval_s * rate), round(settings.max_interval_s * rate), watches,
                        np.radians(settings.budget_deg), SETTLING, round(SETTLING_S * rate))
        gains_db = np.hstack([ap.gains_db(self._bed.frontend) for ap in self._bed.aps])
        amplitudes = 10 ** ((gains_db[0] - gains_db[1]) / 20)
        members: dict[str, Collector] = {
            "beamsync": BeamSyncCollector(self.plan, self.num_ports, pacing, amplitudes)}
        if self._linearization is not None:
            members["internal"] = self._linearization.coupling_collector(excludes=False)
        elif self.calibrates:
            members["internal"] = internal_calibration.InternalCollector(
                self.num_ports, settings.internal_calibration)
        if self.timing_plan is not None:
            members["timing"] = timing.TimingCollector(self.timing_plan)
        return CollectorGroup(members)

    def _tracker(self) -> CarrierTracker:
        """Tracker of the difference of two of the assumed oscillators."""
        settings = self._settings
        return CarrierTracker(
            self._bed.samp_rate, linewidth_hz=2 * settings.linewidth_hz, drift_hz=np.sqrt(2) * settings.drift_hz,
            drift_period_s=settings.drift_period_s, offset_std_hz=UNKNOWN_OFFSET_HZ)
