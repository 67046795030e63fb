# SPDX-License-Identifier: GPL-3.0-or-later
r"""BeamSync: access points (APs) agree on carrier frequency and phase over the air, with no measurement leaving them.

The leader A and a follower B exchange bursts (`beamsync_plan`); each transmission of port m is multiplied by
c_1 / c_m of the node's internal calibration. The follower measures

* the frequency offset f = f_A - f_B from the leader's burst; it turns what it sends by :math:`e^{+2j\pi f n T}`,
  what it receives by the conjugate;
* the phase :math:`\varphi = \angle c_A - \angle c_B` from the conjugate that the leader returns; it turns what it
  sends by :math:`e^{+j\varphi}`.

CFO and phase noise enter the two directions with opposite signs: :math:`\varphi` moves by twice the difference of the
oscillators and belongs to the middle between stages II and III. The correction is the follower's `NodeCorrection`,
which its role block applies to everything that the node sends and receives; so every stage measures what is left.

References
----------
BeamSync, algorithms 1 and 2. Deviations: the frequency correction acts on receive too (transmit alone leaves the
calibration turning); a measurement has a time, and a tracking filter joins it to those before.
"""

from collections.abc import Callable, Sequence
from operator import itemgetter

import numpy as np

from ..core import synchronization as sync
from ..core.carrier_tracking import CarrierTracker
from ..core.sync_burst import SubBand
from .beamsync_bursts import phase_at_band_centre, sounded_direction, unit_power
from .beamsync_plan import (
    FREQUENCY,
    FREQUENCY_PILOT,
    FREQUENCY_SIGNAL,
    PHASE,
    PHASE_PILOT,
    PHASE_RETURN,
    PHASE_SIGNAL,
    BeamSyncPlan,
)
from .correction import NodeCorrection
from .slots import Grant, Product, Slot

MAX_DISTORTION = 0.01
SMALLEST_SHARE = 0.1  # of the budget is left to the oscillators, however bad the internal calibrations are
PURPOSES = frozenset({FREQUENCY_PILOT, FREQUENCY_SIGNAL, PHASE_PILOT, PHASE_SIGNAL, PHASE_RETURN})


class _SyncRole:
    """What leader, followers and bystanders have in common; a bystander is silent and deaf."""

    purposes = PURPOSES
    reactive = True

    def __init__(self, node: str, plan: BeamSyncPlan, ports: slice | None = None):
        self._node = node
        self._plan = plan
        self._ports = ports
        self._layout = plan.layouts.get(node)
        self._factors = np.ones(0 if self._layout is None else self._layout.num_ports)

    def beam(self, slot: Slot) -> int:
        """Beam 0: the APs are digital."""
        return 0

    def transmit(self, slot: Slot, start: int) -> np.ndarray | None:
        """Nothing."""
        return None

    def receive(self, slot: Slot, grant: Grant, samples: np.ndarray) -> None:
        """Nothing."""

    def results(self, grants: Sequence[Grant]) -> dict[str, object] | None:
        """Nothing."""
        return None

    def update(self, product: Product) -> None:
        """Take the internal calibration: transmissions of port m are multiplied by c_1 / c_m."""
        if "internal_c" in product.values and self._ports is not None:
            c = np.asarray(product.values["internal_c"])[self._ports]
            self._factors = c[0] / c

    def _sounding(self) -> np.ndarray:
        """The sounding burst: every port at unit power times the pilots' share, on average over the ports."""
        factors = self._factors / np.sqrt(np.mean(np.abs(self._factors) ** 2))
        burst = self._layout.sounding_burst(dtype=np.complex128)
        return (np.sqrt(self._plan.pilot_share) * factors[:, None] * burst).astype(np.complex64)

    def _burst(self, values: Sequence[np.ndarray], bands: Sequence[SubBand]) -> np.ndarray:
        """Useful samples (ports, num_samples) of unit power that carry `values` (ports, width), one for each band."""
        window = sum(band.insert(value) for band, value in zip(bands, values, strict=True))
        return unit_power(self._factors[:, None] * window)

    def _received(self, samples: np.ndarray, bands: Sequence[SubBand]) -> list[np.ndarray]:
        window = self._plan.burst.window(samples)
        return [band.extract(window) for band in bands]

    def _direction(self, samples: np.ndarray, sender: str, bands: Sequence[SubBand]) -> np.ndarray:
        """Dominant direction from a sounding of `sender`, in a part of the band."""
        return sounded_direction(samples, self._plan.layouts[sender], bands, self._plan.num_subbands)


class Bystander(_SyncRole):
    """A node that takes no part, such as a user terminal."""


class LeaderRole(_SyncRole):
    """Sounds for all followers, returns the conjugate of what each sends, and sends the frequency burst.

    Parameters
    ----------
    node : str
    plan : BeamSyncPlan
    ports : slice
        The node's ports in the internal calibration of all APs.
    """

    def __init__(self, node: str, plan: BeamSyncPlan, ports: slice):
        super().__init__(node, plan, ports)
        self._directions: dict[str, np.ndarray] = {}
        self._returns: dict[str, list[np.ndarray]] = {}

    def transmit(self, slot: Slot, start: int) -> np.ndarray | None:
        """The sounding, the frequency burst or the returns, each of unit power over all ports."""
        if self._node not in slot.transmitters:
            return None
        if slot.purpose == PHASE_PILOT:
            return self._sounding()
        plan = self._plan
        useful = np.zeros((self._layout.num_ports, plan.burst.num_samples), complex)
        for name in plan.group(slot):
            if slot.purpose == FREQUENCY_SIGNAL and name in self._directions:
                useful += self._burst([self._directions[name][:, None] * plan.whole_signal], [plan.whole])
            elif slot.purpose == PHASE_RETURN and name in self._returns:
                useful += self._burst(self._returns[name], plan.bands[name])
        return plan.burst.samples(unit_power(useful))

    def receive(self, slot: Slot, grant: Grant, samples: np.ndarray) -> None:
        """Learn a follower's direction, or prepare its return."""
        if slot.purpose == FREQUENCY_PILOT:
            name = slot.transmitters[0]
            self._directions[name] = self._direction(samples, name, [self._plan.whole])
        elif slot.purpose == PHASE_SIGNAL:
            for name in slot.transmitters:
                self._prepare_return(name, self._received(samples, self._plan.bands[name]))

    def _prepare_return(self, name: str, received: list[np.ndarray]) -> None:
        """Nothing heard, nothing to return: the follower flags it."""
        self._returns.pop(name, None)
        x = self._plan.signal
        if self._plan.returns == "matched":
            if all(np.isfinite(sync.matched_phase_std(part, x)) for part in received):
                self._returns[name] = [sync.matched_return(part, x) for part in received]
        elif all(np.any(part) for part in received):
            self._returns[name] = [sync.conjugate_return(part) for part in received]


class FollowerRole(_SyncRole):
    """Measures its offset from the leader and corrects itself.

    Parameters
    ----------
    node : str
    plan : BeamSyncPlan
    ports : slice
        The node's ports in the internal calibration of all APs.
    correction : NodeCorrection
        Of the node; changed here, applied by its role block.
    make_tracker : callable() -> CarrierTracker
        New tracker of what the correction leaves, with nothing known of the frequency.
    leader_ports : slice
        The leader's ports in the internal calibration of all APs.
    budget_rad : float
        Phase error at which to synchronise again.
    again : bool
        Whether to correct the phase more than once; False: later exchanges measure only.
    """

    def __init__(self, node: str, plan: BeamSyncPlan, ports: slice, leader_ports: slice, correction: NodeCorrection,
                 make_tracker: Callable[[], CarrierTracker], budget_rad: float, again: bool = True):
        super().__init__(node, plan, ports)
        self._leader_ports = leader_ports
        self.correction = correction
        self._again, self._corrected = again, False
        self._make_tracker, self._budget = make_tracker, budget_rad
        self.tracker = make_tracker()
        self._bands, self._x = plan.bands[node], plan.signal
        self._internal_var: tuple[np.ndarray, float] | None = None
        self._delay_samples = 0.0
        self._applied_at = 0
        self._direction_now: np.ndarray | None = None
        self._stage = ""
        self._sent: tuple[int, np.ndarray] | None = None
        # By slot: what an attempt has brought that is repeated for another node's sake does not count twice.
        self._heard: dict[int, tuple[int, np.ndarray, float]] = {}
        self._measured: dict[int, tuple[int, sync.CarrierEstimate]] = {}
        self._pending: tuple[int, float, float] | None = None

    def transmit(self, slot: Slot, start: int) -> np.ndarray | None:
        """The sounding, or the synchronisation burst in the dominant direction."""
        if self._node not in slot.transmitters:
            return None
        if slot.purpose == FREQUENCY_PILOT:
            return self._sounding()
        if self._direction_now is None:
            return np.zeros((self._layout.num_ports, self._plan.burst.slot_samples), np.complex64)
        self._sent = start, self._direction_now
        values = self._direction_now[:, None] * self._x
        return self._plan.burst.samples(self._burst([values] * len(self._bands), self._bands))

    def receive(self, slot: Slot, grant: Grant, samples: np.ndarray) -> None:
        """Keep the leader's frequency bursts; learn the direction; measure the phase of a return."""
        self._stage = slot.purpose
        if slot.purpose == PHASE_PILOT:
            self._sent = None
            self._direction_now = self._direction(samples, self._plan.leader, self._bands)
        elif slot.purpose == FREQUENCY_SIGNAL and self._node in self._plan.group(slot):
            quiet = samples[..., self._plan.burst.silence]
            noise_var = float(np.mean(np.abs(quiet) ** 2)) if quiet.size else np.nan
            self._heard[grant.slot] = grant.start, self._plan.burst.window(samples), noise_var
        elif slot.purpose == PHASE_RETURN and self._node in self._plan.group(slot) and self._sent is not None:
            self._measure(grant, self._received(samples, self._bands))

    def _measure(self, grant: Grant, received: list[np.ndarray]) -> None:
        """Estimate phase and residual offset at the middle between what was sent and what came back."""
        (sent, direction), start = self._sent, grant.start
        plan, decimation = self._plan, self._bands[0].decimation
        returned = "matched" if plan.returns == "matched" else "conjugate"
        estimate, self._delay_samples = phase_at_band_centre(
            [sync.return_estimate(part, direction, self._x, decimation / plan.samp_rate, joint=plan.joint,
                                  returned=returned) for part in received], self._bands)
        variance = estimate.phase_std_rad**2
        if returned == "matched":
            # The estimate takes the leader's part, which it cannot see, to be as large as the follower's.
            variance = variance / 2 * (1 + 10 ** (plan.leader_noise_db / 10))
        # Phase noise between the two transmissions: they see the oscillators at two times, the middle is in between.
        variance = variance + float(self.tracker.model.phase_rate) * (start - sent) / plan.samp_rate / 4
        within = plan.burst.useful_start + sync.centroid(self._x) * decimation
        self._measured[grant.slot] = (round((sent + start) / 2 + within),
                                      estimate._replace(phase_std_rad=np.sqrt(variance)))
        if plan.rounds > 1 and all(np.any(part) for part in received):
            self._direction_now = sync.dominant_direction(np.stack([part @ self._x for part in received], axis=-1))

    def _internal_std(self) -> float:
        """What the internal calibrations add to the phase between the arrays; it does not average out over time."""
        if self._internal_var is None or self._direction_now is None:
            return 0.0
        own, leader = self._internal_var
        return float(np.sqrt(np.sum(np.abs(self._direction_now) ** 4 * own) + leader))

    def results(self, grants: Sequence[Grant]) -> dict[str, object] | None:
        """What a phase has measured; `update` applies it.

        Returns
        -------
        dict
            `sample`: from which on the correction acts; `frequency_hz`, `frequency_std_hz`: offset left until then;
            `trusted`: whether it will be corrected; `event`: what became of the measurement. After the phase stage
            also `phase_rad`, what is left at `sample`; `phase_std_rad`, predicted, of what remains, the internal
            calibrations' part included; `measured_rad`, `measured_std_rad`, `measured_sample` of the last measurement
            alone, `innovation`, its difference from the prediction over the deviation of that; `delay_samples` of the
            follower's c (from two sub-bands); `next_sample`, until when the predicted deviation stays within the
            budget, and whether that is `feasible`; and the correction from `sample` on: `turn_rad`, the phase that it
            adds to c there, `turn_hz`, how fast that turns.
        """
        sample = max(grant.start for grant in grants) + self._plan.burst.slot_samples
        return self._frequency_results(sample) if self._stage == FREQUENCY_SIGNAL else self._phase_results(sample)

    def _frequency_results(self, sample: int) -> dict[str, object]:
        heard = sorted(self._heard.values(), key=itemgetter(0))  # repeated slots come later
        starts, received, noise_vars = (np.array(part) for part in zip(*heard, strict=True))
        self._heard = {}
        estimate = sync.frequency_estimate(received, self._plan.whole_signal, starts, 1 / self._plan.samp_rate,
                                           max_offset=self._plan.max_offset_hz,
                                           linewidth_hz=float(self.tracker.model.linewidth_hz))
        offset, std, trusted = float(estimate.frequency_hz), float(estimate.frequency_std_hz), bool(estimate.trusted)
        event = "applied" if trusted else "untrusted"
        if trusted and self._distortion(received, offset, np.mean(noise_vars)) > MAX_DISTORTION:
            trusted, event = False, "distorted"
        self._pending = (sample, 0.0, offset) if trusted else None
        if trusted:
            self.tracker = self._make_tracker()
            self.tracker.measure_frequency(0.0, std)  # what the correction will leave
        return {"sample": sample, "frequency_hz": offset, "frequency_std_hz": std, "trusted": trusted, "event": event}

    def _distortion(self, received: np.ndarray, offset_hz: float, noise_var: float) -> float:
        """Share of the received energy that neither the waveform nor twice the noise explains; nan if unknown.

        A waveform as wide as the band, a fraction of a sample late, differs from itself alike in every burst: an error
        that averages over nothing.
        """
        x = self._plan.whole_signal
        turn = np.exp(-2j * np.pi * offset_hz / self._plan.samp_rate * np.arange(x.size))
        explained = np.sum(np.abs(received @ (turn * x.conj())) ** 2) / np.sum(np.abs(x) ** 2)
        noise = 2 * received.size * noise_var
        return float((np.sum(np.abs(received) ** 2) - explained - noise) / explained)

    def _phase_results(self, sample: int) -> dict[str, object]:
        measured, self._measured = sorted(self._measured.values(), key=itemgetter(0)), {}
        plan = self._plan
        applied, duration = False, plan.burst.num_samples / plan.samp_rate
        at, measured_phase, measured_std = sample, np.nan, np.inf
        for at, estimate in measured:
            measured_phase, measured_std = float(estimate.phase_rad), float(estimate.phase_std_rad)
            expected = float(self.tracker.predict(at).phase_rad)
            taken = bool(self.tracker.update(
                measured_phase, measured_std, at, estimate.frequency_hz, estimate.frequency_std_hz, estimate.trusted,
                duration_s=duration))
            if str(self.tracker.events) == "gated" and at > self._applied_at:
                # Off by more than the model allows: the frequency has moved, by as much as explains it.
                moved = float(np.angle(np.exp(1j * (measured_phase - expected))))
                self.tracker.widen(abs(moved) * plan.samp_rate / (4 * np.pi * (at - self._applied_at)))
            self._applied_at = at if taken else self._applied_at
            applied |= taken
        found = self.tracker.predict(sample)
        phase, offset = float(found.phase_rad), float(found.frequency_hz)
        corrects = applied and (self._again or not self._corrected)
        self._pending = (sample, phase, offset) if corrects else None
        internal = self._internal_std()
        left = np.sqrt(max(self._budget**2 - internal**2, (SMALLEST_SHARE * self._budget) ** 2))
        following = self.tracker.next_synchronisation(left, sample)
        carrier, phase_change, change_hz = self.correction.carrier, phase * corrects, offset * corrects
        return {
            "sample": sample, "frequency_hz": offset, "frequency_std_hz": float(found.frequency_std_hz),
            "phase_rad": phase, "phase_std_rad": float(np.hypot(found.phase_std_rad, internal)),
            "measured_rad": measured_phase, "measured_std_rad": measured_std, "measured_sample": at,
            "innovation": float(self.tracker.innovation), "delay_samples": self._delay_samples,
            "trusted": applied, "corrected": corrects,
            "event": "measured" if applied and not corrects else str(self.tracker.events),
            "next_sample": int(following.sample),
            "feasible": bool(following.feasible) and internal < self._budget,
            "turn_rad": 2 * carrier.theta(sample) + carrier.phase_rad + phase_change,
            "turn_hz": 2 * (carrier.frequency_hz + change_hz),
        }

    def update(self, product: Product) -> None:
        """Apply what was measured, after the leader's phase has ended for all nodes."""
        super().update(product)
        if "internal_std_rad" in product.values:
            variance = np.asarray(product.values["internal_std_rad"]) ** 2
            leader = variance[self._leader_ports]
            # The leader's part along its own dominant direction, which spreads over all its ports.
            self._internal_var = variance[self._ports], float(leader.mean() / leader.size)
        if product.phase not in (FREQUENCY, PHASE) or self._pending is None:
            return
        sample, phase, offset = self._pending
        self._pending = None
        carrier = self.correction.carrier
        carrier.retune(carrier.frequency_hz + offset, sample)
        carrier.advance(phase, sample)
        if product.phase == PHASE:
            self._corrected = True
            self.tracker.retune(offset, sample)
            self.tracker.advance(phase)
