# SPDX-License-Identifier: GPL-3.0-or-later
"""Verification: measures the coherent gain of a calibration through the air, from received samples alone.

Three phases follow the calibration. *training*: the UE sounds while the APs step through their beams, and the strongest
beam of each AP is chosen. *uplink*: the UE sounds, the APs listen with their chosen beams, and weights
w = conj(c h_ul) of unit total power are computed. *downlink*: the APs send to the UE jointly, each alone, and jointly
with random node phases (a restart of every synthesizer), and the UE reports what it receives. There may follow joint
transmissions of the first few ports only, each of them at its full power.

The UE uses its port 0; see `joint_transmission` for what holds for all joint transmissions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from ..core import precoding, sounding
from ..core.waveforms import SlotLayout
from . import joint_transmission as joint
from .joint_transmission import MIN_DEVIATIONS, decibels
from .slots import CHOSEN, Grant, Product, Slot

TRAINING, UPLINK, DOWNLINK = "training", "uplink", "downlink"
MAX_LOSS_DB = 1.0  # of the joint transmission against the ideal, from which the calibration counts as wrong
# By how much the joint transmission may exceed the ideal beyond three deviations: clipped peaks, drifting gains.
MAX_EXCESS_DB = 0.1


@dataclass(frozen=True)
class Plan(joint.AccessPoints):
    """What the verification needs to know about a run.

    Parameters
    ----------
    nodes : tuple of str
        All nodes, in the order of the schedule.
    aps : tuple of str
        In the order of the calibration's ports.
    ue : str
    num_ports, num_beams : mapping of node to int
    layout : SlotLayout
        One symbol per slot: port 0 of the UE, or all ports of the APs together.
    samp_rate : float
    num_subbands : int
        Sub-bands within which a precoded transmission has one phase.
    uplink_repeats, repeats, random_starts : int
    seed : int
        Of the random node phases.
    alone : "port" or "ap"
        Who sends alone, for the ideal: every port, or every AP with its own conjugate weights. Ports need no
        calibration for that; APs need fewer slots, but the ideal is then that of APs with their own calibration as it
        is (a BeamSync AP is calibrated internally), and says nothing of errors within an AP.
    max_loss_db : float or None
        Loss of the joint transmission against the ideal from which the calibration counts as wrong. None: the gains
        are reported, with what speaks against them as `doubts`, and never end the run. A joint transmission above the
        ideal is a doubt in any case.
    cooperating : tuple of int
        Numbers of ports n whose cooperation is measured: the first n of the calibration, each at unit power, `repeats`
        times, and as often with random node phases.
    prefix, coefficients, beams_from
        See `joint_transmission.AccessPoints`.
    scattered : "ap" or "port"
        What has one phase of its own: with which random phases the coherent gain compares the joint transmission.
        Ports within an AP share its oscillator; where the calibration is that of one array, they are what it aligns.

    Raises
    ------
    ValueError
        If `alone` or `scattered` is unknown or they do not go together, or a number of cooperating ports is not to be
        had or their shares are not measured.
    """

    names: ClassVar[tuple[str, str, str]] = (TRAINING, UPLINK, DOWNLINK)

    nodes: tuple[str, ...]
    aps: tuple[str, ...]
    ue: str
    num_ports: Mapping[str, int]
    num_beams: Mapping[str, int]
    layout: SlotLayout
    samp_rate: float
    num_subbands: int
    uplink_repeats: int
    repeats: int
    random_starts: int
    seed: int
    alone: Literal["port", "ap"] = "port"
    max_loss_db: float | None = MAX_LOSS_DB
    cooperating: tuple[int, ...] = ()
    prefix: str = ""
    coefficients: str = ""
    beams_from: str | None = None
    scattered: Literal["ap", "port"] = "ap"

    def __post_init__(self):
        for name in ("alone", "scattered"):
            if getattr(self, name) not in ("port", "ap"):
                raise ValueError(f"{name} = {getattr(self, name)!r}: must be 'port' or 'ap'")
        if self.scattered == "port" and self.alone != "port":
            raise ValueError(f"alone = {self.alone!r}: must be 'port' where ports are scattered")
        most = len(self.node_of_port)
        if any(not 1 <= count <= most for count in self.cooperating):
            raise ValueError(f"cooperating = {self.cooperating}: must be numbers of ports from 1 to {most}")
        if self.cooperating and self.alone != "port":
            raise ValueError(f"cooperating = {self.cooperating}: needs every port alone, not alone = {self.alone!r}")

    @property
    def joint(self) -> int:
        """Variant of the calibrated joint transmission."""
        return 0

    @property
    def senders(self) -> tuple[str, ...]:
        """AP that sends in each of the variants 1, 2, ... in which one port, or one AP, sends alone."""
        return self.node_of_port if self.alone == "port" else self.aps

    @property
    def unit_of_port(self) -> tuple[str, ...]:
        """What each port shares its phase with: its AP, or nobody."""
        if self.scattered == "ap":
            return self.node_of_port
        return tuple(f"{ap}:{port}" for ap in self.aps for port in range(self.num_ports[ap]))

    def start(self, number: int) -> int:
        """Variant of a joint transmission with random node phases."""
        return 1 + len(self.senders) + number

    def cooperation(self, position: int, start: int = 0) -> int:
        """Variant of the joint transmission of the first `cooperating[position]` ports.

        `start` 0 is the calibrated one, 1 ... `repeats` those with random node phases.
        """
        return self.start(self.random_starts) + position * (1 + self.repeats) + start

    def phases(self, window: int) -> list[tuple[str, int, list[Slot]]]:
        """Phases for `slots.build_schedule`."""
        phases = []
        if self.trains:
            training = [self.slot(self.training, (self.ue,), beam, beam) for beam in range(self.most_beams)]
            phases.append((self.training, window, training))
        uplink = [self.slot(self.uplink, (self.ue,), CHOSEN) for _ in range(self.uplink_repeats)]
        alone = [self.slot(self.downlink, (ap,), CHOSEN, 1 + k) for k, ap in enumerate(self.senders)]
        downlink = []
        for repeat in range(self.repeats):
            downlink += [self.slot(self.downlink, self.aps, CHOSEN, self.joint), *alone]
            starts = range(repeat, self.random_starts, self.repeats)
            downlink += [self.slot(self.downlink, self.aps, CHOSEN, self.start(k)) for k in starts]
            for position, count in enumerate(self.cooperating):
                senders = tuple(dict.fromkeys(self.node_of_port[:count]))
                downlink += [self.slot(self.downlink, senders, CHOSEN, self.cooperation(position, start))
                             for start in (0, 1 + repeat)]
        return [*phases, (self.uplink, window, uplink), (self.downlink, window, downlink)]


class VerificationRole(joint.JointRole):
    """What one node does in the verification; APs learn their beam and weights from the products."""

    def transmit(self, slot: Slot, start: int) -> np.ndarray | None:
        """The UE's sounding symbol, or the AP's precoded burst."""
        if self._node not in slot.transmitters:
            return None
        if slot.purpose == self._plan.downlink:
            return self._precoded(slot, start)
        return joint.sounding_burst(self._plan.layout, self._plan.num_ports[self._node])

    def _precoded(self, slot: Slot, start: int) -> np.ndarray:
        """Burst with the node's weights, each sample turned to its own time."""
        plan, given = self._plan, self._weights
        own = plan.ports(self._node)
        if slot.variant not in self._bursts:
            weights = self._variant_weights(slot.variant, np.asarray(given["weights"])[own])
            self._bursts[slot.variant] = joint.precoded_burst(plan.layout, weights)
        turn = joint.own_time_turn(given, own, start, plan.layout.slot_samples, plan.samp_rate)
        return (self._bursts[slot.variant] * turn).astype(np.complex64)

    def _variant_weights(self, variant: int, weights: np.ndarray) -> np.ndarray:
        """What becomes of the node's weights (own ports, num_subcarriers) in a variant of the downlink."""
        plan = self._plan
        if variant == plan.joint:
            return weights
        first = plan.ports(self._node).start
        ports = np.arange(first, first + len(weights))[:, None]
        if variant < plan.start(0):
            return joint.unit_power(weights if plan.alone == "ap" else np.where(ports == variant - 1, weights, 0))
        if variant >= plan.cooperation(0):
            position, start = divmod(variant - plan.cooperation(0), 1 + plan.repeats)
            weights = np.where(ports < plan.cooperating[position], joint.full_power(weights), 0)
            if start == 0:
                return weights
        units = plan.unit_of_port
        numbers = [list(dict.fromkeys(units)).index(units[port]) for port in range(first, first + len(weights))]
        turns = {number: joint.random_turn(plan.seed, number, variant, self._watch) for number in numbers}
        return weights * np.array([turns[number] for number in numbers])[:, None]

    def receive(self, slot: Slot, grant: Grant, samples: np.ndarray) -> None:
        """APs keep the UE's symbols, the UE keeps the downlink; other UEs keep nothing."""
        listens = self._node == self._plan.ue if slot.purpose == self._plan.downlink else self._is_ap
        if listens:
            self._listener.keep(grant, samples)  # all slots of a phase have one carrier


class Verifier:
    """Chooses beams, computes weights and turns the UE's reports into gains."""

    def __init__(self, plan: Plan, schedule_slots: Sequence[Slot]):
        self.phases = frozenset({plan.training, plan.uplink, plan.downlink})
        self._plan = plan
        self._slots = schedule_slots
        self._calibration: Mapping[str, object] | None = None
        self._weights: Mapping[str, object] | None = None
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

    def _choose_beams(self, results) -> Product:
        beams = []
        for ap in self._plan.aps:
            result = results[ap]
            energy = np.sum(np.abs(result["h"]) ** 2, axis=(1, 2))
            beams.append(self._slots[int(result["slots"][np.argmax(energy)])].variant % self._plan.num_beams[ap])
        return Product(self._plan.training, {"beams": np.array(beams)})

    def _design(self, results) -> Product:
        """Weights of unit total power for the downlink, from the repeated uplink."""
        plan, given = self._plan, self._calibration
        if given is None:
            return Product(plan.uplink, {}, False, ("no calibration has come before the uplink",))
        starts = np.asarray(results[plan.aps[0]]["starts"])
        h = np.concatenate([np.asarray(results[ap]["h"]) for ap in plan.aps], axis=1)
        noise = np.concatenate([np.asarray(results[ap]["noise_var"]) for ap in plan.aps], axis=1)
        if not joint.is_heard(h, noise):
            return Product(plan.uplink, {}, False, (f"node {plan.ue}: too weak: the energy received from it is within "
                                                    f"{MIN_DEVIATIONS:g} deviations of the noise",))
        uplink = joint.uplink_channel(h, starts, given["frequency_hz"], plan.layout, plan.samp_rate)
        c = joint.calibration_per_subcarrier(given, plan.layout, plan.samp_rate)
        weights = np.conj(precoding.downlink_channel(c.T, uplink.h.T, user_axis=False)).T
        self._weights = {"weights": joint.unit_power(weights), "uplink_time": uplink.time,
                         "frequency_hz": given["frequency_hz"], "reference_time": int(given["reference_time"])}
        return Product(plan.uplink, self._weights)

    def _compare(self, results) -> Product:
        """Gains of the joint transmission, over the mean power with random node phases at equal total power.

        A port alone (or an AP, |h|^2 then the sum over its ports) at unit power with weights along its own channel h
        arrives with the amplitude |h|^2 / sqrt(E) per subcarrier, E = mean |h|^2: from these follow, without any phase
        between them, what the best weights of all ports (ideal) and of each AP (single node) would deliver.
        """
        plan, result = self._plan, results[self._plan.ue]
        g, noise = np.asarray(result["h"])[:, 0], np.asarray(result["noise_var"])[:, 0]
        symbol = plan.layout.symbol
        g = sounding.advance(g, symbol, sounding.common_delay(g, symbol))  # the UE's clock, common to all
        variants = np.array([self._slots[int(index)].variant for index in result["slots"]])
        power = np.mean(np.abs(g) ** 2, axis=-1) - noise
        owner, weights = np.array(plan.unit_of_port), self._weights["weights"]
        sender = owner if plan.alone == "port" else np.array(plan.aps)
        alone = np.array([_amplitude(g[variants == 1 + k], plan.num_subbands) for k in range(sender.size)])
        error = float(np.mean(noise)) / (2 * plan.repeats)  # variance of each of these amplitudes
        units = tuple(dict.fromkeys(plan.unit_of_port))
        single = {unit: _best_power(alone[sender == unit], error) for unit in units}
        shares = {unit: float(np.mean(np.sum(np.abs(weights[owner == unit]) ** 2, axis=0))) for unit in units}
        scattered = sum(shares[unit] * single[unit] for unit in units)
        starts = np.array([power[variants == plan.start(k)].mean() for k in range(plan.random_starts)])
        together, ideal = power[variants == plan.joint], _best_power(alone, error)
        self.report = {
            "coherent_gain_db": decibels(together.mean(), scattered),
            "coherent_gain_std_db": _db_std(together),
            "ideal_gain_db": decibels(ideal, scattered),
            "best_single_node_db": decibels(max(single.values()), scattered),
            "single_node_db": {unit: decibels(value, scattered) for unit, value in single.items()},
            "joint_power_db": decibels(together.mean(), 1.0),
            "downlink_snr_db": decibels(together.mean(), np.mean(noise)),
        }
        if plan.scattered == "port":
            self.report["port_power_db"] = [decibels(value) for value in single.values()]
        if starts.size:
            self.report["uncalibrated_gain_db"] = decibels(starts.mean(), scattered)
            self.report["uncalibrated_gain_std_db"] = _db_std(starts)
            self.report["random_starts_db"] = [decibels(value, scattered) for value in starts]
        if plan.cooperating:
            self.report["cooperation"] = self._cooperation(power, variants, alone, float(np.mean(noise)))
        reasons = self._doubts(together, ideal, single, shares, float(np.mean(noise)))
        self.report["doubts"] = self._excess(together, ideal, float(np.mean(noise)))
        if plan.max_loss_db is None:
            self.report["doubts"], reasons = [*reasons, *self.report["doubts"]], ()
        self.history.append({"sample": int(result["starts"][0]), **self.report})
        gains = [self.report.get(f"{name}_db") for name in
                 ("coherent_gain", "ideal_gain", "uncalibrated_gain", "best_single_node")]
        return Product(plan.downlink, {"gains_db": np.array(gains, float)}, not reasons, reasons)

    def _cooperation(self, power: np.ndarray, variants: np.ndarray, alone: np.ndarray, noise: float):
        """SNR per resource element at the UE of the first n ports, each at its full power, for every number n.

        Parameters
        ----------
        power, variants : ndarray (slots,)
        alone : ndarray (ports, num_subcarriers)
            Amplitude of each port alone at unit power, with the same weights: the best n ports can do is their sum.
        noise : float
            Variance of an entry of the channel.
        """
        plan, error, rows = self._plan, noise / (2 * self._plan.repeats), []
        for position, count in enumerate(plan.cooperating):
            together = power[variants == plan.cooperation(position)]
            starts = np.array([power[variants == plan.cooperation(position, 1 + k)].mean()
                               for k in range(plan.repeats)])
            ideal = np.mean(np.sum(alone[:count], axis=0) ** 2) - count * error
            best = np.max(np.mean(alone[:count] ** 2, axis=1)) - error
            rows.append({
                "ports": count,
                "snr_db": decibels(together.mean(), noise), "snr_std_db": _db_std(together),
                "ideal_snr_db": decibels(ideal, noise), "best_port_snr_db": decibels(best, noise),
                "uncalibrated_snr_db": decibels(starts.mean(), noise), "uncalibrated_snr_std_db": _db_std(starts),
            })
        return rows

    def _doubts(self, together, ideal: float, single, shares, noise: float) -> tuple[str, ...]:
        """Why not to trust the result: an AP that the UE misses, or a joint transmission far from the ideal."""
        plan = self._plan
        floor = MIN_DEVIATIONS * noise / np.sqrt(plan.layout.symbol.num_subcarriers * plan.repeats)
        kind = "node" if plan.scattered == "ap" else "port"
        reasons = [f"{kind} {unit}: {plan.ue} does not receive it, though it carries {shares[unit]:.0%} of the power"
                   for unit in single if shares[unit] > 0.01 and not single[unit] > floor]
        if joint.is_unsteady(together, noise, plan.layout.symbol.num_subcarriers):
            reasons.append(f"node {plan.ue}: the power of the joint transmission more than halves between repeats")
        spread = together.std(ddof=1) / np.sqrt(together.size) if together.size > 1 else 0.0
        # An array's ports share oscillator and time: nothing but its calibration can lose so much.
        limit_db = MAX_LOSS_DB if plan.scattered == "port" else plan.max_loss_db
        if limit_db is not None and not together.mean() + 3 * spread > ideal * 10 ** (-limit_db / 10):
            loss_db = 10 * np.log10(ideal / max(together.mean(), 1e-30))
            reasons.append(f"the joint transmission misses the ideal by {loss_db:.1f} dB: calibration does not hold")
        return tuple(reasons)

    def _excess(self, together: np.ndarray, ideal: float, noise: float) -> list[str]:
        """Doubt in the ideal, where the joint transmission is above it by more than three deviations.

        Of the mean power P of n elements the noise v makes an error of variance (2 P v + v^2) / n, and v is known from
        no more; of the ideal I one of 2 I v / n, see `_best_power`.
        """
        plan, power = self._plan, together.mean()
        elements = plan.layout.symbol.num_subcarriers * plan.repeats
        spread = together.var(ddof=1) / together.size if together.size > 1 else 0.0
        variance = max(spread, 2 * (power * noise + noise**2) / elements) + 2 * ideal * noise / elements
        if not power > ideal * 10 ** (MAX_EXCESS_DB / 10) + 3 * np.sqrt(variance):
            return []
        by = f" by {10 * np.log10(power / ideal):.1f} dB" if ideal > 0 else ""
        what = "port" if plan.alone == "port" else "access point"
        return [f"the joint transmission exceeds the ideal{by}: the ideal is measured {what} by {what}, each at the "
                "full total power, at which amplifiers compress"]


def _best_power(alone: np.ndarray, error: float) -> float:
    """Power at unit total power of the best weights of ports whose amplitudes alone are (ports, subcarriers).

    With |h|^2 = alone sqrt(E) and sqrt(E) = mean(alone), maximum-ratio weights of all ports deliver the amplitude
    sum |h|^2 / sqrt(sum E). `error` is the variance of an entry of `alone`, which adds to the square.
    """
    root = np.maximum(alone.mean(axis=1), 0.0)
    energy = float(np.sum(root**2))
    if energy == 0.0:
        return 0.0
    return float(np.mean((root @ alone) ** 2) / energy - error)


def _amplitude(g: np.ndarray, num_subbands: int) -> np.ndarray:
    """Amplitude per subcarrier of repeated transmissions (repeats, subcarriers), unbiased by noise.

    The part of g in phase with its sub-band: the modulus would count noise as signal.
    """
    local = np.repeat(sounding.subband_average(g, num_subbands), g.shape[-1] // num_subbands, axis=-1)
    return np.mean(np.real(g * np.conj(local) / np.maximum(np.abs(local), np.finfo(float).tiny)), axis=0)


def _db_std(powers: np.ndarray) -> float | None:
    """Standard error in dB of the mean of `powers`."""
    if powers.size < 2 or powers.mean() <= 0:
        return None
    return float(10 / np.log(10) * powers.std(ddof=1) / np.sqrt(powers.size) / powers.mean())
