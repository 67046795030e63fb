# SPDX-License-Identifier: GPL-3.0-or-later
r"""Timing: nodes that share no PPS agree on the leader's time, through preambles over the air.

Two phases. *timing*, the cold start, searches far and wide; its slots leave room for nodes that are milliseconds off,
so that a preamble may be received in another slot than it was sent in. *timing_tracking* repeats the measurement in
one slot per node, around where the preamble is expected.

The leader sends a preamble in network time, then each follower sends one. A follower whose clock is late by o sees the
leader's preamble early, the leader sees the follower's late:

.. math:: d_{follower} = -o + \tau, \qquad d_{leader} = o + \tau, \qquad
          o = (d_{leader} - d_{follower}) / 2, \qquad \tau = (d_{leader} + d_{follower}) / 2

with the propagation delay tau, equal both ways because port 0 of each node both sends and receives: only one pair of
ports has one channel both ways. Through multipath d_leader - d_follower is found from the two responses of that
channel, one against the other (`core.timing.relative_delay`), since the maximum of each alone may belong to another
tap. Each d belongs to the follower's sample in which the middle of the preamble is received or sent; the offset to the
middle between the two.
One direction alone (`bidirectional=False`) takes o = -d_follower: it cannot tell an early clock from a long way, and
makes followers late by tau, so that what they send reaches the leader 2 tau late. In both, half the difference between
the two nodes' own delays from transmit to receive chain remains; it is calibrated inside a node, not over the air.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..core.carrier import CarrierCorrection
from ..core.timing import ClockCorrection, TimingEstimate, acquire, preamble, relative_delay, response
from .slots import Grant, Product, Slot

TIMING, TRACKING = "timing", "timing_tracking"
GUARD = -1  # variant of a slot in which nobody transmits
MARGIN_SAMPLES = 16  # around a search window: fractions of a sample, and the channel's response


@dataclass(frozen=True)
class TimingPlan:
    """What the nodes need to know about a run.

    Parameters
    ----------
    nodes : tuple of str
        All nodes, in the order of the schedule.
    leader : str
    followers : tuple of str
    num_ports : mapping of node to int
        Preambles are sent and received by port 0; the others stay silent.
    slot_samples : int
    samp_rate : float
    center_freq : float, optional
        Given where each node's sample clock and carrier come from one reference: the first carrier offset then tells
        the rate error of the clock.
    preamble_samples, lead_samples : int
        Length of the preamble, and silence before it in its slot.
    latency_samples : int
        By how much later received samples are labelled than they were at the antenna (a pipeline's delay).
    max_delay_samples : int
        How far a preamble may be from its place in the cold start: clock offset and propagation.
    track_samples : int
        The same in tracking; less than `lead_samples`.
    max_offset_hz : float
        Greatest carrier offset between two nodes.
    bidirectional : bool
        Whether followers send too.

    Raises
    ------
    ValueError
        If leader and followers are not different nodes, or a preamble with its search window does not fit into a slot.
    """

    nodes: tuple[str, ...]
    leader: str
    followers: tuple[str, ...]
    num_ports: Mapping[str, int]
    slot_samples: int
    samp_rate: float
    center_freq: float | None = None
    preamble_samples: int = 1024
    lead_samples: int = 64
    latency_samples: int = 0
    max_delay_samples: int = 1200
    track_samples: int = 16
    max_offset_hz: float = 20e3
    bidirectional: bool = True

    def __post_init__(self):
        taking_part = (self.leader, *self.followers)
        if not self.followers or len(set(taking_part)) < len(taking_part) or not set(taking_part) <= set(self.nodes):
            raise ValueError(f"leader {self.leader!r} and followers {self.followers} must be different nodes of "
                             f"{self.nodes}")
        if self.lead_samples - self.track_samples < MARGIN_SAMPLES:
            raise ValueError(f"lead_samples={self.lead_samples} must exceed track_samples={self.track_samples} by "
                             f"{MARGIN_SAMPLES} at least")
        if not 0 <= self.track_samples <= self.max_delay_samples:
            raise ValueError(f"max_delay_samples={self.max_delay_samples} must not be below track_samples, "
                             f"{self.track_samples}, and that not below 0")
        needed = self.place + self.preamble_samples + self.track_samples + MARGIN_SAMPLES
        if needed > self.slot_samples:
            raise ValueError(f"slot_samples={self.slot_samples}: a lead of {self.lead_samples}, a latency of "
                             f"{self.latency_samples}, the preamble and its search window need {needed}")

    @cached_property
    def preamble(self) -> np.ndarray:
        """Samples of the preamble, complex128 (preamble_samples,)."""
        return preamble(self.preamble_samples)

    @property
    def place(self) -> int:
        """Where in its slot an aligned node receives a preamble that took no time."""
        return self.lead_samples + self.latency_samples

    @property
    def middle(self) -> int:
        """Sample of a slot to which the delay of its preamble belongs."""
        return self.lead_samples + self.preamble_samples // 2

    def search(self, purpose: str) -> int:
        """How far from its place a preamble is searched for."""
        return self.max_delay_samples if purpose == TIMING else self.track_samples

    def phases(self, window: int) -> list[tuple[str, int, list[Slot]]]:
        """Phases for `slots.build_schedule`: cold start and one round of tracking."""
        senders = [self.leader, *(self.followers if self.bidirectional else ())]
        reach, slot = self.max_delay_samples, self.slot_samples
        before = max(0, -((self.place - reach) // slot))
        # Two followers may be off in opposite directions, and each listener looks as far as `reach` around its place.
        spacing = -(-(3 * reach + self.preamble_samples) // slot)
        after = (self.place + self.preamble_samples + reach + MARGIN_SAMPLES - 1) // slot
        cold = [self._guard()] * before
        for number, node in enumerate(senders):
            silent = after if number + 1 == len(senders) else spacing - 1
            cold += [self._slot(TIMING, number, node), *[self._guard()] * silent]
        tracking = [self._slot(TRACKING, number, node) for number, node in enumerate(senders)]
        return [(TIMING, window, cold), (TRACKING, window, tracking)]

    def _guard(self) -> Slot:
        return Slot(0, TIMING, (), (0,) * len(self.nodes), GUARD)

    def _slot(self, purpose: str, number: int, node: str) -> Slot:
        return Slot(0, purpose, (node,), (0,) * len(self.nodes), number)


class TimingRole:
    """What one node does for timing; a follower corrects its clock by what the leader and it have measured.

    Whoever runs the role applies the clock to all slots: device samples by `ClockCorrection.shift` and the fraction of
    a sample by `ClockCorrection.fraction`, both taken at the first sample of the slot.

    Parameters
    ----------
    node : str
    plan : TimingPlan
    clock : ClockCorrection, optional
        The follower's; the leader has none.
    carrier : CarrierCorrection, optional
        Of what the node sends and receives; its frequency is missing from the measured carrier offsets.
    """

    purposes = frozenset({TIMING, TRACKING})
    reactive = False

    def __init__(
        self,
        node: str,
        plan: TimingPlan,
        clock: ClockCorrection | None = None,
        carrier: CarrierCorrection | None = None,
    ):
        if node in plan.followers and clock is None:
            raise ValueError(f"node {node}: a follower needs a clock to correct")
        self._node, self._plan, self.clock, self._carrier = node, plan, clock, carrier
        self._position = plan.nodes.index(node)
        self._burst = np.zeros((plan.num_ports[node], plan.slot_samples), np.complex64)
        self._burst[0, plan.lead_samples : plan.lead_samples + plan.preamble_samples] = plan.preamble
        self._received: list[tuple[int, np.ndarray]] = []
        self._slots: dict[int, Slot] = {}

    def beam(self, slot: Slot) -> int:
        """Beam of the schedule."""
        return slot.beams[self._position]

    def transmit(self, slot: Slot, start: int) -> np.ndarray | None:
        """Preamble on port 0 in the node's own slots."""
        self._slots[slot.index] = slot
        return self._burst if self._node in slot.transmitters else None

    def receive(self, slot: Slot, grant: Grant, samples: np.ndarray) -> None:
        """Keep what is received in the whole phase: a preamble may arrive in any slot."""
        self._slots[slot.index] = slot
        if self._node in self._plan.followers or (self._node == self._plan.leader and self._plan.bidirectional):
            self._received.append((grant.start, samples[0]))  # the port that sends: reciprocal

    def results(self, grants: Sequence[Grant]) -> dict[str, object] | None:
        """Arrival of the preambles that the node listens to: the leader's, or for the leader each follower's.

        Returns
        -------
        dict
            `senders` (k,) int64, 0 for the leader and 1 ... for the followers; `starts` (k,) int64, of the slots they
            sent in; the fields of `TimingEstimate` (k,), delays relative to the preamble's place; `responses`
            complex128 (k, 2 MARGIN_SAMPLES + 1), of the channel around each delay rounded.
        """
        plan, received = self._plan, self._received
        self._received = []
        if not received:
            return None
        wanted = {0} if self._node != plan.leader else set(range(1, len(plan.followers) + 1))
        heard = [(self._slots[g.slot], g.start) for g in grants if self._slots[g.slot].variant in wanted]
        if not heard:
            return None
        reach = plan.search(heard[0][0].purpose)
        before = reach + MARGIN_SAMPLES
        num = plan.preamble_samples + 2 * before
        windows = np.stack([_gather(received, start + plan.place - before, num) for _, start in heard])
        found = acquire(windows[:, None], plan.preamble, samp_rate=plan.samp_rate, max_offset_hz=plan.max_offset_hz,
                        window=(MARGIN_SAMPLES, MARGIN_SAMPLES + 2 * reach))
        responses = response(windows, plan.preamble, found.delay_samples, found.frequency_hz,
                             samp_rate=plan.samp_rate, reach=MARGIN_SAMPLES)
        found = found._replace(delay_samples=found.delay_samples - before)
        numbers = {"senders": [slot.variant for slot, _ in heard], "starts": [start for _, start in heard]}
        return {**{key: np.array(value) for key, value in numbers.items()}, **found._asdict(), "responses": responses}

    def update(self, product: Product) -> None:
        """Correct the follower's clock, if its measurement is trusted."""
        plan, values = self._plan, product.values
        if product.phase not in self.purposes or self._node not in plan.followers:
            return
        k = plan.followers.index(self._node)
        if not values["trusted"][k]:
            return
        # What was measured is what the correction in force left over.
        corrected = np.mean([self.clock.offset(int(start)) for start in np.asarray(values["starts"])[k]])
        rate = rate_std = None
        if plan.center_freq is not None:
            carrier_hz = 0.0 if self._carrier is None else self._carrier.frequency_hz
            rate = float(values["frequency_hz"][k] + carrier_hz) / plan.center_freq
            rate_std = float(values["frequency_std_hz"][k]) / plan.center_freq
        self.clock.update(
            float(values["offset_samples"][k] + corrected),
            float(values["offset_std_samples"][k]),
            int(values["reference_samples"][k]),
            rate=rate,
            rate_std=rate_std,
        )


class TimingCollector:
    """Combines both directions into each follower's clock offset.

    Attributes
    ----------
    history : list of (phase, values)
        What every phase has produced.
    """

    phases = frozenset({TIMING, TRACKING})

    def __init__(self, plan: TimingPlan):
        self._plan = plan
        self.history: list[tuple[str, dict[str, np.ndarray]]] = []

    def update(self, product: Product) -> None:
        """Nothing: timing comes first."""

    def produce(self, phase: str, grants: Sequence[Grant], results: Mapping[str, Mapping[str, object]]) -> Product:
        """Product of a phase, arrays over the followers.

        `offset_samples`, `offset_std_samples`: how late the follower is beyond its present correction;
        `reference_samples`: the sample to which that belongs; `frequency_hz`, `frequency_std_hz`: carrier of the leader
        as the follower receives it; `propagation_samples`: NaN from one direction; `starts` (F, 1 or 2): of the slots
        measured in; `trusted`. A follower that is not trusted keeps its correction. The cold start needs all of them;
        tracking does without, and gives the reasons all the same.
        """
        rows, reasons = [], []
        for number, node in enumerate(self._plan.followers, start=1):
            row, doubts = self._combine(number, node, results)
            rows.append(row)
            reasons += doubts
        values = {key: np.array([row[key] for row in rows]) for key in rows[0]}
        self.history.append((phase, values))
        return Product(phase, values, phase == TRACKING or not reasons, tuple(reasons))

    def _combine(self, number: int, node: str, results) -> tuple[dict[str, object], list[str]]:
        """Return one follower's values and why not to trust them."""
        plan = self._plan
        there, start_there, response_there = _estimate(results.get(node), 0)
        doubts = [] if there.trusted else [f"node {node}: the preamble of {plan.leader} was not found"]
        if not plan.bidirectional:
            row = _row(-there.delay_samples, there.delay_std_samples, there.frequency_hz, there.frequency_std_hz,
                       start_there + plan.middle + there.delay_samples, np.nan, [start_there])
        else:
            back, start_back, response_back = _estimate(results.get(plan.leader), number)
            if not back.trusted:
                doubts.append(f"node {plan.leader}: the preamble of {node} was not found")
            later = back.delay_samples - there.delay_samples
            if not doubts:
                whole = np.round(back.delay_samples) - np.round(there.delay_samples)
                later = whole + relative_delay(response_there, response_back)
            row = _row(later / 2,
                       np.hypot(back.delay_std_samples, there.delay_std_samples) / 2,
                       (there.frequency_hz - back.frequency_hz) / 2,
                       np.hypot(back.frequency_std_hz, there.frequency_std_hz) / 2,
                       (start_there + start_back + there.delay_samples) / 2 + plan.middle,
                       (back.delay_samples + there.delay_samples) / 2, [start_there, start_back])
        return {**row, "trusted": not doubts}, doubts


_NOTHING = TimingEstimate(0.0, np.inf, 0.0, np.inf, 0.0, False)


def _row(offset, offset_std, frequency, frequency_std, reference, propagation, starts) -> dict[str, object]:
    return {
        "offset_samples": float(offset),
        "offset_std_samples": float(offset_std),
        "frequency_hz": float(frequency),
        "frequency_std_hz": float(frequency_std),
        "reference_samples": round(reference),
        "propagation_samples": float(propagation),
        "starts": starts,
    }


def _estimate(result: Mapping[str, object] | None, sender: int) -> tuple[TimingEstimate, int, np.ndarray | None]:
    """Return one sender's preamble from a node's results, the start of its slot and the response, if it is there."""
    at = [] if result is None else np.flatnonzero(np.asarray(result["senders"]) == sender)
    if len(at) == 0:
        return _NOTHING, 0, None
    k = int(at[-1])
    values = TimingEstimate(*(np.asarray(result[key])[k] for key in TimingEstimate._fields))
    return values, int(np.asarray(result["starts"])[k]), np.asarray(result["responses"])[k]


def _gather(received: Sequence[tuple[int, np.ndarray]], first: int, num: int) -> np.ndarray:
    """Return samples first ... first + num - 1 (num,) out of slots (start, samples); zeros where none were."""
    out = np.zeros(num, np.complex64)
    for start, samples in received:
        a, b = max(first, start), min(first + num, start + samples.size)
        if a < b:
            out[a - first : b - first] = samples[a - start : b - start]
    return out
