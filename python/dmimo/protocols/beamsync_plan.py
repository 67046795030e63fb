# SPDX-License-Identifier: GPL-3.0-or-later
"""BeamSync's plan: which slots the leader and its followers need to agree on carrier and phase.

Two phases, both in lock-step, since each stage answers the one before:

* *frequency*: every follower sounds (stage I); the leader sends the synchronisation burst `frequency_repeats` times in
  the follower's dominant direction (stage II).
* *phase*: the leader sounds once for all followers (stage I); each follower sends the burst in its dominant direction
  (stage II) and the leader returns the conjugate (stage III), `rounds` times.

In the phase stage followers are served one after another, or side by side in sub-bands of one burst; in the frequency
stage one after another, since sub-bands leak into each other as long as the offsets stand.

References
----------
BeamSync, sections III-D and IV-C, figures 2, 3 and 5.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from ..core.sync_burst import SubBand, SyncBurst, Waveform, allocate_subbands, sync_waveform
from ..core.waveforms import SlotLayout
from .slots import Slot

FREQUENCY, PHASE = "frequency", "phase"
FREQUENCY_PILOT, FREQUENCY_SIGNAL = "frequency_pilot", "frequency_signal"
PHASE_PILOT, PHASE_SIGNAL, PHASE_RETURN = "phase_pilot", "phase_signal", "phase_return"

Multiplexing = Literal["sequence", "subbands"]
Return = Literal["amplify", "matched"]


@dataclass(frozen=True)
class BeamSyncPlan:
    """What leader and followers need to know about a run.

    Parameters
    ----------
    nodes : tuple of str
        All nodes, in the order of the schedule.
    leader : str
    followers : tuple of str
    layouts : mapping of node to SlotLayout
        Stage I of the leader and of each follower: all ports, one after another.
    burst : SyncBurst
        Stages II and III.
    samp_rate : float
    waveform : "ones", "gaussian" or "sinusoid"
    multiplexing : "sequence" or "subbands"
    guard_bins : int
        Empty bins between sub-bands.
    returns : "amplify" or "matched"
        What the leader returns: the conjugate of what it received, as in the paper, or of its matched filter's output,
        which leaves the noise beside the waveform behind.
    rounds : int
        Stages II and III in a row; each takes its direction from what the last one returned.
    frequency_repeats : int
        Bursts of the frequency stage, one slot after another.
    frequency_gaps : tuple of int
        Idle samples before each of further bursts: a longer span makes the frequency finer.
    pilot_share : float
        Energy of stage I relative to a port at unit power.
    joint : bool
        Estimate the residual frequency from the return as well.
    max_offset_hz : float, optional
        Largest frequency offset that is searched for.
    num_subbands : int
        Sub-bands of the sounding within which the channel is flat.
    leader_noise_db : float
        Noise of the leader's receiver over that of the followers', for the deviation of a matched return.
    seed : int
        Of the Gaussian waveform.
    """

    nodes: tuple[str, ...]
    leader: str
    followers: tuple[str, ...]
    layouts: Mapping[str, SlotLayout]
    burst: SyncBurst
    samp_rate: float
    waveform: Waveform = "ones"
    multiplexing: Multiplexing = "sequence"
    guard_bins: int = 4
    returns: Return = "amplify"
    rounds: int = 1
    frequency_repeats: int = 8
    pilot_share: float = 1.0
    joint: bool = True
    max_offset_hz: float | None = None
    num_subbands: int = 1
    leader_noise_db: float = 0.0
    seed: int = 1
    frequency_gaps: tuple[int, ...] = ()

    def __post_init__(self):
        if not self.followers or self.leader in self.followers or len(set(self.followers)) < len(self.followers):
            raise ValueError(f"followers = {self.followers}: must be distinct nodes other than leader = {self.leader}")
        unknown = sorted({self.leader, *self.followers} - (set(self.nodes) & set(self.layouts)))
        if unknown:
            raise ValueError(f"nodes {', '.join(unknown)}: must be among the nodes of the schedule and have a layout")
        if self.rounds < 1 or self.frequency_repeats < 2:
            raise ValueError(f"rounds = {self.rounds}: must be at least 1; frequency_repeats = "
                             f"{self.frequency_repeats}: at least 2")
        if not 0 < self.pilot_share <= 1:
            raise ValueError(f"pilot_share = {self.pilot_share}: must lie in (0, 1]")
        if self.multiplexing not in ("sequence", "subbands") or self.returns not in ("amplify", "matched"):
            raise ValueError(f"multiplexing = {self.multiplexing!r} must be 'sequence' or 'subbands', returns = "
                             f"{self.returns!r} 'amplify' or 'matched'")
        _ = self.bands

    @cached_property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """Followers whose phases are measured at the same time."""
        return (self.followers,) if self.multiplexing == "subbands" else tuple((name,) for name in self.followers)

    @cached_property
    def whole(self) -> SubBand:
        """The whole band, for the frequency stage."""
        return SubBand(self.burst.num_samples)

    @cached_property
    def whole_signal(self) -> np.ndarray:
        """Waveform of the frequency stage, (num_samples,), of mean power 1."""
        return sync_waveform(self.waveform, self.burst.num_samples, seed=self.seed)

    @cached_property
    def bands(self) -> dict[str, tuple[SubBand, ...]]:
        """Sub-bands of each follower in the phase stage: the whole, or two on either side of band centre.

        Two tell the phase at band centre from what a clock offset or a loop delay turns over the band.
        """
        if self.multiplexing == "sequence":
            return {name: (self.whole,) for name in self.followers}
        parts = allocate_subbands(self.burst.num_samples, 2 * len(self.followers), self.guard_bins)
        return {name: (parts[k], parts[-1 - k]) for k, name in enumerate(self.followers)}

    @cached_property
    def signal(self) -> np.ndarray:
        """Waveform of the phase stage as samples of a sub-band, of mean power 1."""
        width = next(iter(self.bands.values()))[0].width
        return sync_waveform(self.waveform, width, seed=self.seed)

    def group(self, slot: Slot) -> tuple[str, ...]:
        """Followers that a slot of stage II or III serves."""
        if slot.purpose == FREQUENCY_SIGNAL:
            return (self.followers[slot.variant],)
        return self.groups[slot.variant // self.rounds]

    def phases(self) -> list[tuple[str, int, list[Slot]]]:
        """Phases for `slots.build_schedule`, the frequency first."""
        return [self.frequency_stage(), self.phase_stage()]

    def frequency_stage(self) -> tuple[str, int, list[Slot]]:
        """The frequency stage, follower after follower."""
        slots = []
        for index, name in enumerate(self.followers):
            # The direction of the leader's bursts depends on the sounding, and nothing else on what came before.
            slots.append(self._slot(FREQUENCY_PILOT, (name,), index, follows=index > 0))
            slots.append(self._slot(FREQUENCY_SIGNAL, (self.leader,), index))
            idle = [0] * (self.frequency_repeats - 1) + list(self.frequency_gaps)
            slots += [self._slot(FREQUENCY_SIGNAL, (self.leader,), index, True, gap) for gap in idle]
        return FREQUENCY, 1, slots

    def phase_stage(self) -> tuple[str, int, list[Slot]]:
        """The phase stage: one sounding, then the exchanges."""
        slots = [self._slot(PHASE_PILOT, (self.leader,), 0)]
        for index, group in enumerate(self.groups):
            for variant in range(index * self.rounds, (index + 1) * self.rounds):
                other = index > 0 and variant == index * self.rounds
                slots += [self._slot(PHASE_SIGNAL, group, variant, follows=other),
                          self._slot(PHASE_RETURN, (self.leader,), variant)]
        return PHASE, 1, slots

    def _slot(self, purpose: str, transmitters: tuple[str, ...], variant: int, follows: bool = False,
              idle_samples: int = 0) -> Slot:
        return Slot(0, purpose, transmitters, (0,) * len(self.nodes), variant, follows, idle_samples)


@dataclass(frozen=True)
class Allocation:
    """A block of the time-frequency grid: slots first ... first + count - 1, bins from `lowest` to `highest`."""

    stage: str
    sender: str
    follower: str | None
    first: int
    count: int
    lowest: int
    highest: int


def resource_grid(plan: BeamSyncPlan) -> list[Allocation]:
    """Who sends where in the grid of slots and bins of the burst, over both phases: figure 5 of the paper.

    Stage I takes the whole band; `follower` is None where it serves all followers.
    """
    half = plan.burst.num_samples // 2
    blocks = []
    for index, slot in enumerate(slot for _, _, slots in plan.phases() for slot in slots):
        if slot.purpose in (FREQUENCY_PILOT, PHASE_PILOT):
            follower = slot.transmitters[0] if slot.purpose == FREQUENCY_PILOT else None
            blocks.append(Allocation(slot.purpose, slot.transmitters[0], follower, index, 1, -half, half - 1))
            continue
        for name in plan.group(slot):
            sender = name if slot.purpose == PHASE_SIGNAL else plan.leader
            for band in (plan.whole,) if slot.purpose == FREQUENCY_SIGNAL else plan.bands[name]:
                first, last = int(band.bins[0]), int(band.bins[-1])
                blocks.append(Allocation(slot.purpose, sender, name, index, 1, first, last))
    return blocks
