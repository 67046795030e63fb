# SPDX-License-Identifier: GPL-3.0-or-later
"""Coherent downlink to several UEs at once, measured through the air: what each UE gets of every stream.

It follows any calibration. *mu_training*, where APs have beams: the UEs sound one after another in each beam, and the
beam of each AP that serves them all best is chosen. *mu_uplink*: the UEs sound one after another, the APs listen, and
weights for one stream to each UE are computed, by zero-forcing as a rule. *mu_downlink*: all APs send each stream
alone, so that every UE measures its own stream's power and what leaks from the others, then all streams at once, then
each stream with random node phases (a restart of every synthesizer).

The UEs use their port 0; see `joint_transmission` for what holds for all joint transmissions. A UE's oscillator turns
everything that it sends and receives by one phase, which a stream of its own does not mind.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import numpy as np

from ..core import precoding
from ..core.waveforms import SlotLayout
from . import joint_transmission as joint
from .joint_transmission import MIN_DEVIATIONS
from .multiuser_report import UserMeasurement, measure_user, predicted_suppression_db, spectral_efficiency
from .slots import CHOSEN, Grant, Product, Slot

TRAINING, UPLINK, DOWNLINK = "mu_training", "mu_uplink", "mu_downlink"
Method = Literal["zero_forcing", "regularised_zero_forcing", "mrt"]
MAX_CONDITION = 30.0  # two channels with a correlation of 0.998: zero-forcing has 24 dB of the power left


@dataclass(frozen=True)
class MultiuserPlan(joint.AccessPoints):
    """What a downlink to several UEs needs to know about a run.

    Parameters
    ----------
    nodes : tuple of str
        All nodes, in the order of the schedule.
    aps : tuple of str
        In the order of the calibration's ports.
    ues : tuple of str
        In the order of the streams.
    num_ports, num_beams : mapping of node to int
    layout : SlotLayout
        One symbol per slot: port 0 of a UE, or all ports of the APs together.
    samp_rate : float
    uplink_repeats, repeats, random_starts : int
        Soundings of each UE, joint transmissions, and transmissions with random node phases.
    seed : int
        Of the random node phases and of what tells the streams apart where they are sent at once.
    method : "zero_forcing", "regularised_zero_forcing" or "mrt"
    regularisation : float
        Of the regularised method, relative to the mean energy of a UE's channel.
    max_condition : float
        Condition number of the UEs' channels, each scaled to the same energy, beyond which zero-forcing is refused.
    min_suppression_db : float or None
        Power of a UE's stream over what leaks into it that the calibration has to reach; None: it is reported only.
    prefix, coefficients, beams_from
        See `joint_transmission.AccessPoints`.

    Raises
    ------
    ValueError
        If there is no UE, more UEs than ports, or a value is out of range.
    """

    names: ClassVar[tuple[str, str, str]] = (TRAINING, UPLINK, DOWNLINK)

    nodes: tuple[str, ...]
    aps: tuple[str, ...]
    ues: tuple[str, ...]
    num_ports: Mapping[str, int]
    num_beams: Mapping[str, int]
    layout: SlotLayout
    samp_rate: float
    uplink_repeats: int
    repeats: int
    random_starts: int
    seed: int
    method: Method = "zero_forcing"
    regularisation: float = 0.01
    max_condition: float = MAX_CONDITION
    min_suppression_db: float | None = None
    prefix: str = ""
    coefficients: str = ""
    beams_from: str | None = None

    def __post_init__(self):
        if self.method not in get_args(Method):
            raise ValueError(f"method = {self.method!r}: must be one of {get_args(Method)}")
        if not 1 <= len(self.ues) <= len(self.node_of_port) or set(self.ues) & set(self.aps):
            raise ValueError(f"ues = {self.ues}: must be 1 ... {len(self.node_of_port)} (ports of the APs) nodes that "
                             "are no APs")
        if min(self.uplink_repeats, self.repeats) < 1 or self.random_starts < 0:
            raise ValueError(f"uplink_repeats = {self.uplink_repeats}, repeats = {self.repeats}, random_starts = "
                             f"{self.random_starts}: must be at least 1, 1 and 0")
        if not (self.regularisation > 0 and self.max_condition > 1):
            raise ValueError(f"regularisation = {self.regularisation}, max_condition = {self.max_condition}: must be "
                             "positive, and above 1")

    @property
    def superposed(self) -> int:
        """Variant in which all streams are sent at once; variants below are the streams alone, in the UEs' order."""
        return len(self.ues)

    def start(self, number: int, stream: int) -> int:
        """Variant of a stream alone with random node phases."""
        return 1 + len(self.ues) * (1 + number) + stream

    def symbols(self) -> np.ndarray:
        """Signs (streams, num_subcarriers) of the streams where they are sent at once: known to all, independent."""
        shape = len(self.ues), self.layout.symbol.num_subcarriers
        return np.random.default_rng((self.seed, *b"multiuser")).choice([-1.0, 1.0], shape)

    def phases(self, window: int) -> list[tuple[str, int, list[Slot]]]:
        """Phases for `slots.build_schedule`."""
        phases, streams = [], range(len(self.ues))
        if self.trains:
            beams = range(self.most_beams)
            training = [self.slot(self.training, (ue,), beam, beam) for beam in beams for ue in self.ues]
            phases.append((self.training, window, training))
        uplink = [self.slot(self.uplink, (ue,), CHOSEN) for _ in range(self.uplink_repeats) for ue in self.ues]
        downlink = []
        for repeat in range(self.repeats):
            variants = [*streams, self.superposed]
            variants += [self.start(k, s) for k in range(repeat, self.random_starts, self.repeats) for s in streams]
            downlink += [self.slot(self.downlink, self.aps, CHOSEN, variant) for variant in variants]
        return [*phases, (self.uplink, window, uplink), (self.downlink, window, downlink)]


class MultiuserRole(joint.JointRole):
    """What one node does in a downlink to several UEs; APs learn their beam and weights from the products."""

    def transmit(self, slot: Slot, start: int) -> np.ndarray | None:
        """A UE's sounding symbol, or an AP's precoded burst, each sample turned to its own time."""
        if self._node not in slot.transmitters:
            return None
        plan, given = self._plan, self._weights
        if slot.purpose != plan.downlink:
            return joint.sounding_burst(plan.layout, plan.num_ports[self._node])
        own = plan.ports(self._node)
        if slot.variant not in self._bursts:
            self._bursts[slot.variant] = joint.precoded_burst(plan.layout, self._stream_weights(slot.variant)[own])
        turn = joint.own_time_turn(given, own, start, plan.layout.slot_samples, plan.samp_rate)
        return (self._bursts[slot.variant] * turn).astype(np.complex64)

    def _stream_weights(self, variant: int) -> np.ndarray:
        """Weights (ports, num_subcarriers) of what is sent in a slot."""
        plan, weights = self._plan, np.asarray(self._weights["weights"])
        if variant == plan.superposed:
            return np.einsum("psk,sk->pk", weights, plan.symbols())
        if variant < plan.superposed:
            return weights[:, variant]
        start, stream = divmod(variant - plan.start(0, 0), len(plan.ues))
        return weights[:, stream] * joint.random_turn(plan.seed, plan.aps.index(self._node), start, self._watch)

    def receive(self, slot: Slot, grant: Grant, samples: np.ndarray) -> None:
        """APs keep the UEs' symbols, UEs keep the downlink."""
        if self._is_ap if slot.purpose != self._plan.downlink else self._node in self._plan.ues:
            # Each UE has its own carrier, the APs together have one.
            self._listener.keep(grant, samples, slot.transmitters[0])


class MultiuserCollector:
    """Chooses beams, computes weights and turns the UEs' reports into powers, SINRs and spectral efficiency."""

    def __init__(self, plan: MultiuserPlan, schedule_slots: Sequence[Slot]):
        self.phases = frozenset({plan.training, plan.uplink, plan.downlink})
        self._plan = plan
        self._slots = schedule_slots
        self._calibration: Mapping[str, object] | None = None
        self._design_report: dict[str, object] = {}
        self.report: dict[str, object] | None = None
        self.history: list[dict[str, object]] = []

    def update(self, product: Product) -> None:
        """Take the latest calibration."""
        self._calibration = self._plan.calibration(product) or self._calibration

    def produce(self, phase: str, grants: Sequence[Grant], results: Mapping[str, Mapping[str, object]]) -> Product:
        """Product of one of the three phases."""
        plan = self._plan
        return {plan.training: self._choose_beams, plan.uplink: self._design, plan.downlink: self._compare}[phase](
            results)

    def _by_ue(self, result: Mapping[str, object]) -> np.ndarray:
        """UE that sent in each slot of a result, as its number."""
        return np.array([self._plan.ues.index(self._slots[int(index)].transmitters[0]) for index in result["slots"]])

    def _choose_beams(self, results) -> Product:
        """Beam of each AP with the largest energy from all UEs, each UE's scaled to the same sum over the beams."""
        plan, beams = self._plan, []
        for ap in plan.aps:
            result = results[ap]
            beam = np.array([self._slots[int(index)].variant for index in result["slots"]]) % plan.num_beams[ap]
            energy = np.zeros((len(plan.ues), plan.num_beams[ap]))
            # Beams that come twice, since another AP has more, are measured twice.
            np.add.at(energy, (self._by_ue(result), beam), np.sum(np.abs(result["h"]) ** 2, axis=(1, 2)))
            energy /= np.bincount(beam, minlength=plan.num_beams[ap])
            beams.append(int(np.argmax(np.sum(energy / energy.sum(axis=1, keepdims=True), axis=0))))
        return Product(plan.training, {"beams": np.array(beams)})

    def _design(self, results) -> Product:
        """Weights of unit total power in every subcarrier, for all streams together, from the repeated uplink."""
        plan, given = self._plan, self._calibration
        if given is None:
            return Product(plan.uplink, {}, False, ("no calibration has come before the uplink",))
        first = results[plan.aps[0]]
        sender, starts = self._by_ue(first), np.asarray(first["starts"])
        h = np.concatenate([np.asarray(results[ap]["h"]) for ap in plan.aps], axis=1)
        noise = np.concatenate([np.asarray(results[ap]["noise_var"]) for ap in plan.aps], axis=1)
        reasons = tuple(f"node {ue}: too weak: the energy received from it is within {MIN_DEVIATIONS:g} "
                        "deviations of the noise" for u, ue in enumerate(plan.ues)
                        if not joint.is_heard(h[sender == u], noise[sender == u]))
        if reasons:
            return Product(plan.uplink, {}, False, reasons)
        channels, time = [], None
        for u in range(len(plan.ues)):
            own = sender == u
            channel, time = joint.uplink_channel(h[own], starts[own], given["frequency_hz"], plan.layout,
                                                 plan.samp_rate, time)
            channels.append(channel)
        c = joint.calibration_per_subcarrier(given, plan.layout, plan.samp_rate).T
        h_dl = precoding.downlink_channel(c, np.stack(channels, axis=-1).swapaxes(0, 1))
        reasons = self._obstacles(h_dl)
        if reasons:
            return Product(plan.uplink, {}, False, reasons)
        weights = self._weights(h_dl)
        error = np.abs(c) ** 2 * noise.mean(axis=0) / plan.uplink_repeats
        self._design_report["predicted_suppression_db"] = predicted_suppression_db(h_dl, weights, error)
        return Product(plan.uplink, {"weights": np.moveaxis(weights, 0, -1), "uplink_time": time,
                                     "frequency_hz": given["frequency_hz"],
                                     "reference_time": int(given["reference_time"])})

    def _obstacles(self, h_dl: np.ndarray) -> tuple[str, ...]:
        """Why the UEs cannot be separated, (num_subcarriers, users, ports)."""
        plan = self._plan
        rows = h_dl / np.linalg.norm(h_dl, axis=-1, keepdims=True)
        condition = float(np.median(np.linalg.cond(rows)))
        self._design_report["condition_number"] = condition
        if plan.method != "zero_forcing" or condition <= plan.max_condition:
            return ()
        correlation = np.mean(np.abs(rows @ rows.conj().swapaxes(-2, -1)), axis=0) - np.eye(len(plan.ues))
        a, b = np.unravel_index(np.argmax(correlation), correlation.shape)
        return (f"node {plan.ues[min(a, b)]}: its channel is too much like that of {plan.ues[max(a, b)]} (condition "
                f"number {condition:.3g}, at most {plan.max_condition:g}): zero-forcing cannot separate them",)

    def _weights(self, h_dl: np.ndarray) -> np.ndarray:
        plan = self._plan
        if plan.method == "mrt":
            return precoding.mrt(h_dl)
        if plan.method == "zero_forcing":
            return precoding.zero_forcing(h_dl)
        energy = np.mean(np.sum(np.abs(h_dl) ** 2, axis=-1))
        return precoding.regularised_zero_forcing(h_dl, plan.regularisation * energy)

    def _compare(self, results) -> Product:
        """SINR of each UE, calibrated and with random node phases, and the sums of their spectral efficiencies."""
        plan = self._plan
        users = [self._measure(u, results[ue]) for u, ue in enumerate(plan.ues)]
        sinr = [user.sinr for user in users]
        self.report = self._design_report | {
            "method": plan.method,
            "users": {ue: user.report for ue, user in zip(plan.ues, users, strict=True)},
            "spectral_efficiency_bps_hz": spectral_efficiency(sinr),
            "superposed_spectral_efficiency_bps_hz": spectral_efficiency([user.superposed for user in users]),
            "leakage_free_spectral_efficiency_bps_hz": spectral_efficiency([user.snr for user in users]),
        }
        if plan.random_starts:
            starts = [spectral_efficiency(one) for one in zip(*(user.starts for user in users), strict=True)]
            self.report["uncalibrated_spectral_efficiency_bps_hz"] = float(np.mean(starts))
        self.history.append({"sample": int(results[plan.ues[0]]["starts"][0]), **self.report})
        reasons = tuple(reason for user in users for reason in user.reasons)
        values = {"sinr_db": 10 * np.log10(np.maximum(sinr, 1e-30)),
                  "spectral_efficiency_bps_hz": self.report["spectral_efficiency_bps_hz"]}
        return Product(plan.downlink, values, not reasons, reasons)

    def _measure(self, user: int, result: Mapping[str, object]) -> UserMeasurement:
        variants = np.array([self._slots[int(index)].variant for index in result["slots"]])
        noise_var = float(np.mean(np.asarray(result["noise_var"])[:, 0]))
        return measure_user(self._plan, user, np.asarray(result["h"])[:, 0], noise_var, variants)
