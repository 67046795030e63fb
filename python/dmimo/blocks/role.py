# SPDX-License-Identifier: GPL-3.0-or-later
"""The message side of a node: grants in, bursts out, received bursts in, acknowledgements and results out."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pmt

from ..protocols.correction import correction_of
from ..protocols.predistortion import predistortion_of
from ..protocols.slots import Grant, Role, Schedule
from ..radio_time import time_of
from ..recording import NodeRecorder
from . import messages
from .burst_transmitter import MAX_SAMPLES
from .guard import guarded
from .lean import lean_message_block
from .timetags import rate_ratio, time_to_pmt

TX, ARM, STATUS, RESULTS, BEAM = (pmt.intern(name) for name in ("tx", "arm", "status", "results", "beam"))
SYSTEM, END = messages.SYSTEM, pmt.intern("end")
MAX_ENCODED = 16
LOST = 1e-6  # of the energy of a burst that may fall off its beginning: what -60 dB of distortion is


class role(lean_message_block):
    """Runs protocol roles for one node: each acts in the slots whose purpose it owns.

    For every granted slot the receive window is armed first, then the burst (or silence) is sent; what the ports
    received is acknowledged and given to the role: at once if the role is `reactive`, otherwise when the phase ends.
    Grants and bursts that come twice are dropped. For a simulated network, slots that are granted together and follow
    one another go out as one burst, as far as it fits GNU Radio's buffers. Where the roles share a `NodeCorrection`, it
    is applied to every burst that the node sends and receives; where they share a `NodePredistortion`, it is applied to
    what the node sends, last.

    On a radio (`fill` False) the clock correction shifts the device times of bursts and receive windows. What the radio
    says of a burst (`usrp_array`, port `events`) goes on to the scheduler, in network time. The beam of every granted
    slot is published on the port `beam`, before the burst, with the device time at which the slot begins. A role with
    an attribute `loop_delays`, int64 (num_ports,) or None, says how long each port's transmitter and receiver take
    together: half of it the port sends earlier, and its slots are cut by the rest later.

    Parameters
    ----------
    node : str
    num_ports : int
    schedule : Schedule
    roles : sequence of Role
    samp_rate : float
        For the time of bursts.
    fill : bool
        Send zeros in silent slots, so that a simulated network advances all nodes alike; False for a radio.
    silent_from : int, optional
        Simulated fault: from this slot on the node no longer reacts to anything.
    unacknowledged : mapping of slot to int
        Simulated fault: how many of the slot's acknowledgements are lost.
    recorder : NodeRecorder, optional
        Records every burst as it comes, before any correction.
    amplitude : float
        What a sample of unit power becomes; full scale of a radio is 1, and more than that an error.
    """

    def __init__(self, node: str, num_ports: int, schedule: Schedule, roles: Sequence[Role], samp_rate: float,
                 fill: bool = True, silent_from: int | None = None, unacknowledged: dict[int, int] | None = None,
                 recorder: NodeRecorder | None = None, amplitude: float = 1.0):
        lean_message_block.__init__(self, "role")
        if not amplitude > 0 or (fill and amplitude != 1):
            raise ValueError(f"amplitude = {amplitude}: must be positive, and 1 with fill = True")
        self._amplitude = amplitude
        self._recorder = recorder
        self._schedule = schedule
        self._roles = tuple(roles)
        self._by_purpose = {purpose: role for role in roles for purpose in role.purposes}
        missing = sorted({slot.purpose for slot in schedule.slots} - set(self._by_purpose))
        if missing:
            raise ValueError(f"roles: node {node} has none for slots of purpose {missing}")
        self._rate = rate_ratio(samp_rate)
        self.correction = correction_of(self._roles)
        self.predistortion = predistortion_of(self._roles)
        self._fill = fill
        self._most_slots = max(1, MAX_SAMPLES // schedule.slot_samples) if fill else 1
        self._silence = np.zeros((num_ports, schedule.slot_samples), np.complex64)
        self._num_ports = num_ports
        self._silent_from = silent_from
        self._silent = False
        self._unacknowledged = dict(unacknowledged or {})
        self._granted: set[Grant] = set()
        self._awaited: set[Grant] = set()  # granted, not received yet
        self._advance = np.zeros(num_ports, np.int64)  # by which the ports send earlier
        self._armed: dict[Grant, Grant] = {}  # to a radio whose clock is shifted, as armed: as granted
        self._kept: list[tuple[object, list[Grant]]] = []  # burst messages, attempts to take from each
        # By the identities of the bursts, which live as long as the entry.
        self._encoded: dict[tuple[int, ...], tuple[list[np.ndarray | None], object]] = {}
        self._identity = {"run": 0, "epoch": 0, "node": node}
        self._ack = messages.encode("ack", **self._identity)
        for port, handler in (("control", self.handle_control), ("rx", self.handle_rx), ("events", self.handle_event)):
            self.message_port_register_in(pmt.intern(port))
            self.set_msg_handler(pmt.intern(port), handler)
        for port in ("tx", "arm", "status", "results", "beam", "end", "error"):
            self.message_port_register_out(pmt.intern(port))

    @guarded
    def handle_control(self, message):
        """React to a message of the scheduler."""
        kind = messages.kind(message)
        if kind == "end":
            self.message_port_pub(END, messages.DONE)
            self._post(SYSTEM, messages.DONE)
        elif self._silent:
            return
        elif kind == "grant":
            self._grant(message)
        elif kind == "begin":
            self._begin(message)
        elif kind == "query":
            self._status("alive")
        elif kind == "phase":
            self._publish_results(message)
        elif kind == "product":
            product = messages.product(message)
            if self._recorder is not None:
                self._recorder.product(product)
            for role in self._roles:
                role.update(product)
            self._remove_loop_delays()
            self.updated()
            self._status("taken", phase=product.phase)

    def updated(self) -> None:
        """Hook: the roles have taken a product."""

    def _begin(self, message) -> None:
        self._granted.clear()
        self._awaited.clear()
        self._kept.clear()
        self._armed.clear()
        self._identity |= {key: messages.get(message, key) for key in ("run", "epoch")}
        self._ack = messages.encode("ack", **self._identity)
        self._remove_loop_delays()
        self._status("ready", hash=self._schedule.hash)

    def _grant(self, message) -> None:
        grants = messages.grants(message)
        fresh = [grant for grant in grants if grant not in self._granted]
        if self._silent_from is not None:
            fresh = [grant for grant in fresh if grant.slot < self._silent_from]
            self._silent = len(fresh) < len(grants)
        armed = fresh if self._fill else [self._on_radio(grant) for grant in fresh]
        if armed == grants:
            self.message_port_pub(ARM, message)
        elif armed:
            self.message_port_pub(ARM, messages.encode("grant", grants=messages.grants_to_pmt(armed)))
        self._granted.update(fresh)
        self._awaited.update(fresh)
        for run in self._runs(fresh):
            self._send(run)

    def _on_radio(self, grant: Grant) -> Grant:
        """A grant with the device time of its first sample."""
        shift = self._shift(grant.start)
        if shift == 0:
            return grant
        armed = grant._replace(start=grant.start + shift)
        self._armed[armed] = grant
        return armed

    def _runs(self, grants: list[Grant]) -> list[list[Grant]]:
        """Grants whose slots go out as one burst."""
        runs, run, expected = [], [], None
        for grant in grants:
            this = grant.start, self._shift(grant.start)
            if this == expected and len(run) < self._most_slots:
                run.append(grant)
            else:
                run = [grant]
                runs.append(run)
            expected = grant.start + self._schedule.slot_samples, this[1]
        return runs

    def _shift(self, start: int) -> int:
        return 0 if self.correction is None else self.correction.shift(start)

    def _room(self, start: int) -> int:
        """Samples of a slot before the next one may begin: its device time may be earlier where the shift changes."""
        length = self._schedule.slot_samples
        return length + min(0, self._shift(start + length) - self._shift(start))

    def _send(self, run: list[Grant]) -> None:
        slots, by_purpose, correction = self._schedule.slots, self._by_purpose, self.correction
        bursts, beams = [], []
        for index, _, start in run:
            slot = slots[index]
            role = by_purpose[slot.purpose]
            burst = role.transmit(slot, start)
            if burst is not None and correction is not None:
                burst = correction.transmit(burst, start)
                if not self._fill:
                    burst = burst[:, : self._room(start)]
            if burst is not None and self.predistortion is not None:
                burst = self.predistortion.transmit(burst, slot)
            bursts.append(burst)
            beams.append(role.beam(slot))
        start = run[0].start
        shift = self._shift(start)
        if not self._fill:
            # The radio knows device time only.
            start, shift = start + shift, 0
            self._publish_beam(run[0], beams[0], start)
            if bursts[0] is None:
                self._confirm_silence(run[0])
            start -= int(self._advance.min())
        vector = self._encode(run, bursts)
        if vector is not None:
            indices = [grant.slot for grant in run]
            self.message_port_pub(TX, messages.transmit_burst(time_to_pmt(start, self._rate), beams, indices, vector,
                                                              shift))

    def _publish_beam(self, grant: Grant, beam: int, sample: int) -> None:
        """Tell a beamformer outside of the radio the beam of a slot."""
        seconds, fraction = time_of(sample, self._rate)
        self.message_port_pub(BEAM, messages.encode(
            "beam", node=self._identity["node"], slot=grant.slot, attempt=grant.attempt, beam=beam, sample=sample,
            seconds=seconds, fraction=fraction))

    def _confirm_silence(self, grant: Grant) -> None:
        """A radio confirms bursts only: tell the scheduler where a burst that it may expect is not sent."""
        if self._identity["node"] in self._schedule.slots[grant.slot].transmitters:
            for port in range(self._num_ports):
                self._status("sent", port=port, event="silent", status="ok",
                             sample=grant.start + self._schedule.slot_samples)

    def _encode(self, run: list[Grant], bursts: list[np.ndarray | None]):
        """Encoded samples; bursts that are sent again and again are encoded once. None: nothing to send."""
        if not self._fill and bursts[0] is None:
            return None
        key = tuple(map(id, bursts))
        if key not in self._encoded:
            for grant, burst in zip(run, bursts, strict=True):
                if burst is not None:
                    self._check_shape(grant, *burst.shape)
            samples = np.concatenate([self._silence if burst is None else burst for burst in bursts], axis=1)
            if not self._fill:
                samples = self._scaled(run[0], samples)
            if len(self._encoded) == MAX_ENCODED:
                self._encoded.clear()
            self._encoded[key] = bursts, messages.vector_to_pmt(samples)
        return self._encoded[key][1]

    def _scaled(self, grant: Grant, samples: np.ndarray) -> np.ndarray:
        """Samples for the radio, complex64, each port's as early as its loop asks; ValueError beyond the full scale."""
        samples = self._staggered(grant, samples)
        scaled = np.ascontiguousarray(self._amplitude * samples, np.complex64)
        peak = float(np.abs(scaled.view(np.float32)).max(initial=0.0))
        if peak > 1:
            slot = self._schedule.slots[grant.slot]
            raise ValueError(f"node {self._identity['node']}, slot {grant.slot} ({slot.purpose}): tx_amplitude = "
                             f"{self._amplitude:g} makes a peak of {peak:.3g}, must be at most 1, full scale of the "
                             f"radio: lower it to {self._amplitude / peak:.2g}")
        return scaled

    def _staggered(self, grant: Grant, samples: np.ndarray) -> np.ndarray:
        """Samples with the ports that must send earlier than others earlier by that."""
        earlier = self._advance - self._advance.min()
        if not earlier.any():
            return samples
        samples, most = samples.copy(), int(earlier.max())
        # A clock correction leaves traces of a burst around it.
        lost = np.abs(samples[:, :most]) * (np.arange(most) < earlier[:, None])
        if np.sum(lost**2) > LOST * np.sum(np.abs(samples) ** 2):
            raise ValueError(f"node {self._identity['node']}, slot {grant.slot}: loop delays of its ports differ by "
                             f"{2 * most} samples: slots.lead_samples must be at least half of that")
        for port, early in enumerate(earlier):
            samples[port] = np.concatenate([samples[port, early:], np.zeros(early, samples.dtype)])
        return samples

    def _check_shape(self, grant: Grant, num_ports: int, length: int) -> None:
        longest = self._schedule.slot_samples
        if num_ports != self._num_ports or length > longest or (self._fill and length != longest):
            raise ValueError(f"slot {grant.slot}: burst of {num_ports} ports x {length} samples, must be "
                             f"{self._num_ports} ports x {longest} samples")

    @guarded
    def handle_rx(self, message):
        """Take what the ports received in granted slots."""
        grants, status = messages.burst_head(message)
        grants = self._as_granted(grants)
        taken = [grant for grant in grants if grant in self._awaited]
        if not taken:
            return
        self._awaited.difference_update(taken)
        # Slots in flight belong to one phase, a phase to one role.
        reactive = self._by_purpose[self._schedule.slots[taken[0].slot].purpose].reactive
        burst = self._burst(message) if status == "ok" and (reactive or self._recorder is not None) else None
        if self._recorder is not None:
            self._record(burst, taken, status)
        if status == "ok" and reactive:
            self._receive(burst, taken)
        elif status == "ok":
            self._kept.append((message, taken))
        acknowledged = taken
        if self._unacknowledged:
            acknowledged = [grant for grant in taken if not self._loses_acknowledgement(grant.slot)]
        if acknowledged:
            self.message_port_pub(STATUS, messages.ack_to_pmt(self._ack, acknowledged, status))

    def _as_granted(self, grants: list[Grant]) -> list[Grant]:
        return [self._armed.get(grant, grant) for grant in grants] if self._armed else grants

    def _burst(self, message) -> messages.Burst:
        """Content of a received burst, with its attempts as they were granted."""
        burst = messages.burst(message)
        return replace(burst, grants=self._as_granted(burst.grants)) if self._armed else burst

    @guarded
    def handle_event(self, message):
        """Tell the scheduler what the radio says of a burst of this node."""
        event = messages.values(message)
        if event["node"] != self._identity["node"]:
            return
        where = {}
        if "sample" in event:
            sample = event["sample"] + int(self._advance.min())
            where["sample"] = sample - self._shift(sample)
        self._status("sent", port=event["port"], event=event["event"], status=event["error"] or "ok", **where)

    def _remove_loop_delays(self) -> None:
        """Send earlier from now on, and tell the receiver by how much later to cut."""
        for member in self._roles:
            delays = getattr(member, "loop_delays", None)
            if delays is not None:
                self._advance = delays // 2
                self._encoded.clear()
                self.message_port_pub(ARM, messages.encode("delays", samples=delays - self._advance))

    def _record(self, burst: messages.Burst | None, taken: list[Grant], status: str) -> None:
        slots = [self._schedule.slots[grant.slot] for grant in taken]
        samples = None if burst is None else burst.samples
        if burst is not None and len(taken) < len(burst.grants):
            samples = samples[[grant in taken for grant in burst.grants]]
        self._recorder.received(taken, [self._by_purpose[slot.purpose].beam(slot) for slot in slots], samples, status)

    def _loses_acknowledgement(self, slot: int) -> bool:
        left = self._unacknowledged.get(slot, 0)
        if left:
            self._unacknowledged[slot] = left - 1
        return left > 0

    def _receive(self, burst: messages.Burst, taken: list[Grant]) -> None:
        for grant, samples in zip(burst.grants, burst.samples, strict=True):
            if grant in taken:
                if self.correction is not None:
                    samples = self.correction.receive(samples, grant.start)
                slot = self._schedule.slots[grant.slot]
                self._by_purpose[slot.purpose].receive(slot, grant, samples)

    def _publish_results(self, message) -> None:
        grants = messages.grants(message)
        phase = messages.get(message, "phase")
        if self._recorder is not None:
            self._recorder.phase_done(phase, grants)
        for message_kept, taken in self._kept:
            self._receive(self._burst(message_kept), taken)
        self._kept.clear()
        self._armed.clear()
        values = self._by_purpose[self._schedule.slots[grants[0].slot].purpose].results(grants)
        self.message_port_pub(RESULTS, messages.encode("results", phase=phase, values=values or {}, **self._identity))

    def _status(self, kind: str, **fields) -> None:
        self.message_port_pub(STATUS, messages.encode(kind, **self._identity, **fields))
