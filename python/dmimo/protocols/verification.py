# SPDX-License-Identifier: GPL-3.0-or-later
"""Verification: measures the coherent gain of a calibration through the air, from received samples alone.

Three phases follow the calibration. *training*: the UE sounds while the APs step through their beams, and the strongest
beam of each AP is chosen. *uplink*: the UE sounds, the APs listen with their chosen beams, and weights
w = conj(c h_ul) of unit total power are computed. *downlink*: the APs send to the UE jointly, each alone, and jointly
with random node phases (a restart of every synthesizer), and the UE reports what it receives.

The UE uses its port 0. Everything is per subcarrier, so that delays and multipath within the prefix do no harm.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..core import precoding, sounding
from ..core.waveforms import SlotLayout
from .slots import CHOSEN, Grant, Product, Reception, Slot

TRAINING, UPLINK, DOWNLINK = "training", "uplink", "downlink"
MIN_DEVIATIONS = 4.0  # of the noise's energy, by which the APs together must hear the UE
MAX_LOSS_DB = 1.0  # of the joint transmission against the ideal, from which the calibration counts as wrong


@dataclass(frozen=True)
class Plan:
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
    """

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

    @property
    def joint(self) -> int:
        """Variant of the calibrated joint transmission; variants 1 ... number of ports are one port alone."""
        return 0

    @property
    def node_of_port(self) -> tuple[str, ...]:
        """AP of each port of the calibration."""
        return tuple(ap for ap in self.aps for _ in range(self.num_ports[ap]))

    def start(self, number: int) -> int:
        """Variant of a joint transmission with random node phases."""
        return 1 + len(self.node_of_port) + number

    def ports(self, ap: str) -> slice:
        """Ports of an AP in the calibration."""
        counts = [self.num_ports[name] for name in self.aps]
        first = sum(counts[: self.aps.index(ap)])
        return slice(first, first + self.num_ports[ap])

    def phases(self, window: int) -> list[tuple[str, int, list[Slot]]]:
        """Phases for `slots.build_schedule`."""
        beams = max(self.num_beams[ap] for ap in self.aps)
        phases = []
        if beams > 1:
            training = [self._slot(TRAINING, (self.ue,), beam, beam) for beam in range(beams)]
            phases.append((TRAINING, window, training))
        uplink = [self._slot(UPLINK, (self.ue,), CHOSEN) for _ in range(self.uplink_repeats)]
        alone = [self._slot(DOWNLINK, (ap,), CHOSEN, 1 + k) for k, ap in enumerate(self.node_of_port)]
        downlink = []
        for repeat in range(self.repeats):
            downlink += [self._slot(DOWNLINK, self.aps, CHOSEN, self.joint), *alone]
            starts = range(repeat, self.random_starts, self.repeats)
            downlink += [self._slot(DOWNLINK, self.aps, CHOSEN, self.start(k)) for k in starts]
        return [*phases, (UPLINK, window, uplink), (DOWNLINK, window, downlink)]

    def _slot(self, purpose: str, transmitters: tuple[str, ...], beam: int, variant: int = 0) -> Slot:
        beams = tuple(
            0 if node not in self.aps else (beam % self.num_beams[node] if beam != CHOSEN else CHOSEN)
            for node in self.nodes
        )
        return Slot(0, purpose, transmitters, beams, variant)


class VerificationRole:
    """What one node does in the verification; APs learn their beam and weights from the products."""

    purposes = frozenset({TRAINING, UPLINK, DOWNLINK})
    reactive = False

    def __init__(self, node: str, plan: Plan):
        self._node = node
        self._plan = plan
        self._position = plan.nodes.index(node)
        self._is_ap = node in plan.aps
        self._beam = 0
        self._weights: Mapping[str, object] | None = None
        self._reception = Reception()
        self._listened: set[int] = set()
        self._bursts: dict[int, np.ndarray] = {}

    def beam(self, slot: Slot) -> int:
        """Beam of the schedule, or the one chosen in training."""
        beam = slot.beams[self._position]
        return self._beam if beam == CHOSEN else beam

    def transmit(self, slot: Slot, start: int) -> np.ndarray | None:
        """The UE's sounding symbol, or the AP's precoded burst."""
        if self._node not in slot.transmitters:
            return None
        if slot.purpose == DOWNLINK:
            return self._precoded(slot, start)
        burst = np.zeros((self._plan.num_ports[self._node], self._plan.layout.slot_samples), np.complex64)
        burst[0] = self._plan.layout.sounding_burst()[0]
        return burst

    def _precoded(self, slot: Slot, start: int) -> np.ndarray:
        """Burst with the node's weights, each sample turned to its own time.

        c was measured at t_c, h_ul at t_u; a sample sent at t needs c at (t_u + t)/2, so its weight turns by
        -2 pi f (t_u + t - 2 t_c). Middles of symbols are labelled half a sample late (`SlotLayout.middle`).
        """
        plan, given = self._plan, self._weights
        own = plan.ports(self._node)
        if slot.variant not in self._bursts:
            weights = np.asarray(given["weights"])[own]
            if 0 < slot.variant <= len(plan.node_of_port):
                weights = _unit_power(np.where(np.arange(own.start, own.stop)[:, None] == slot.variant - 1, weights, 0))
            if slot.variant > len(plan.node_of_port):
                rng = np.random.default_rng((plan.seed, plan.aps.index(self._node), slot.variant))
                weights = weights * np.exp(2j * np.pi * rng.random())
            self._bursts[slot.variant] = np.concatenate(
                [plan.layout.joint_burst(row[None], dtype=np.complex128) for row in weights])
        times = np.arange(plan.layout.slot_samples) + (start + given["uplink_time"] - 2 * given["reference_time"] + 0.5)
        turn = np.exp((-2j * np.pi / plan.samp_rate) * np.asarray(given["frequency_hz"])[own, None] * times)
        return (self._bursts[slot.variant] * turn).astype(np.complex64)

    def receive(self, slot: Slot, grant: Grant, samples: np.ndarray) -> None:
        """APs keep the UE's symbols, the UE keeps the downlink; other UEs keep nothing."""
        listens = self._node == self._plan.ue if slot.purpose == DOWNLINK else self._is_ap
        if listens:
            self._listened.add(grant.slot)
            self._reception.keep(grant, samples)

    def results(self, grants: Sequence[Grant]) -> dict[str, object] | None:
        """Channel per subcarrier in every slot listened to.

        Returns
        -------
        dict
            `slots`, `starts` (n,) int64; `h` complex128 (n, ports, num_subcarriers); `noise_var` (n, ports) of its
            entries.
        """
        heard = [grant for grant in grants if grant.slot in self._listened]
        if not heard:
            return None
        samples, layout = self._reception.take(heard), self._plan.layout
        self._listened.clear()
        window = layout.symbol, layout.useful_start(0)
        # All slots of a phase have one carrier: the UE's, or the one that the precoding gives to all APs.
        turn = sounding.prefix_correlation(samples, *window, layout.advance_samples)
        samples = sounding.hold_carrier(samples, *window, turn[0].sum(axis=1), turn[1].sum(axis=1))
        noise = sounding.empty_bin_noise_variance(samples, *window)
        return {
            "slots": np.array([grant.slot for grant in heard]),
            "starts": np.array([grant.start for grant in heard]),
            "h": sounding.channel_estimate(samples, *window),
            "noise_var": sounding.estimate_noise_variance(layout.symbol, noise),
        }

    def update(self, product: Product) -> None:
        """Take the chosen beam, or the weights."""
        if product.phase == TRAINING and self._is_ap:
            self._beam = int(np.asarray(product.values["beams"])[self._plan.aps.index(self._node)])
        elif product.phase == UPLINK:
            self._weights = product.values
            self._bursts.clear()


class Verifier:
    """Chooses beams, computes weights and turns the UE's reports into gains."""

    phases = frozenset({TRAINING, UPLINK, DOWNLINK})

    def __init__(self, plan: Plan, schedule_slots: Sequence[Slot]):
        self._plan = plan
        self._slots = schedule_slots
        self._calibration: Mapping[str, object] | None = None
        self._weights: Mapping[str, object] | None = None
        self.report: dict[str, object] | None = None

    def update(self, product: Product) -> None:
        """Take the calibration."""
        if "c" in product.values:
            self._calibration = product.values

    def produce(self, phase: str, grants: Sequence[Grant], results: Mapping[str, Mapping[str, object]]) -> Product:
        """Product of one of the three phases."""
        return {TRAINING: self._choose_beams, UPLINK: self._design, DOWNLINK: self._compare}[phase](results)

    def _choose_beams(self, results) -> Product:
        beams = []
        for ap in self._plan.aps:
            result = results[ap]
            energy = np.sum(np.abs(result["h"]) ** 2, axis=(1, 2))
            beams.append(self._slots[int(result["slots"][np.argmax(energy)])].variant % self._plan.num_beams[ap])
        return Product(TRAINING, {"beams": np.array(beams)})

    def _design(self, results) -> Product:
        """Weights of unit total power for the downlink, from the repeated uplink."""
        plan, given = self._plan, self._calibration
        starts = np.asarray(results[plan.aps[0]]["starts"])
        times = starts + plan.layout.middle(0)
        h = np.concatenate([np.asarray(results[ap]["h"]) for ap in plan.aps], axis=1)
        noise = np.concatenate([np.asarray(results[ap]["noise_var"]) for ap in plan.aps], axis=1)
        energy = np.mean(np.abs(h) ** 2, axis=(0, 2)) - noise.mean(axis=0)
        # Deviation of their sum where there is nothing but noise.
        deviation = np.linalg.norm(noise.mean(axis=0)) / np.sqrt(h.shape[0] * h.shape[2])
        if not energy.sum() > MIN_DEVIATIONS * deviation:
            return Product(UPLINK, {}, False, (f"node {plan.ue}: too weak: the energy that the APs receive from it is "
                                               f"within {MIN_DEVIATIONS:g} deviations of the noise",))
        # Samples are labelled later than at the antenna by the pipeline delay, which the channel shows.
        latency = round(sounding.common_delay(h, plan.layout.symbol)) - plan.layout.advance_samples
        uplink_time = int(times[len(times) // 2])
        turn = 2j * np.pi / plan.samp_rate * (times - uplink_time)[:, None] * np.asarray(given["frequency_hz"])
        combined = _combine_repeats(h * np.exp(turn)[..., None])
        delays = np.asarray(given["delay_s"])[:, None] * plan.layout.symbol.bins
        c = np.asarray(given["c"])[:, None] * np.exp(
            -2j * np.pi * plan.samp_rate / plan.layout.symbol.pilot_samples * delays)
        weights = np.conj(precoding.downlink_channel(c.T, combined.T, user_axis=False)).T
        weights = _unit_power(weights)
        self._weights = {"weights": weights, "uplink_time": uplink_time - latency,
                         "frequency_hz": given["frequency_hz"], "reference_time": int(given["reference_time"])}
        return Product(UPLINK, self._weights)

    def _compare(self, results) -> Product:
        """Gains of the joint transmission, over the mean power with random node phases at equal total power.

        A port alone at unit power with weights along its own channel h arrives with the amplitude |h|^2 / sqrt(E) per
        subcarrier, E = mean |h|^2: from these follow, without any phase, what the best weights of all ports (ideal) and
        of each AP (single node) would deliver.
        """
        plan, result = self._plan, results[self._plan.ue]
        g, noise = np.asarray(result["h"])[:, 0], np.asarray(result["noise_var"])[:, 0]
        symbol = plan.layout.symbol
        g = sounding.advance(g, symbol, sounding.common_delay(g, symbol))  # the UE's clock, common to all
        variants = np.array([self._slots[int(index)].variant for index in result["slots"]])
        power = np.mean(np.abs(g) ** 2, axis=-1) - noise
        owner, weights = np.array(plan.node_of_port), self._weights["weights"]
        alone = np.array([_amplitude(g[variants == 1 + k], plan.num_subbands) for k in range(owner.size)])
        error = float(np.mean(noise)) / (2 * plan.repeats)  # variance of each of these amplitudes
        single = {ap: _best_power(alone[owner == ap], error) for ap in plan.aps}
        shares = {ap: float(np.mean(np.sum(np.abs(weights[owner == ap]) ** 2, axis=0))) for ap in plan.aps}
        scattered = sum(shares[ap] * single[ap] for ap in plan.aps)
        starts = np.array([power[variants == plan.start(k)].mean() for k in range(plan.random_starts)])
        joint, ideal = power[variants == plan.joint], _best_power(alone, error)
        self.report = {
            "coherent_gain_db": _db(joint.mean(), scattered),
            "coherent_gain_std_db": _db_std(joint),
            "ideal_gain_db": _db(ideal, scattered),
            "best_single_node_db": _db(max(single.values()), scattered),
            "single_node_db": {ap: _db(value, scattered) for ap, value in single.items()},
            "joint_power_db": _db(joint.mean(), 1.0),
            "downlink_snr_db": _db(joint.mean(), np.mean(noise)),
        }
        if starts.size:
            self.report["uncalibrated_gain_db"] = _db(starts.mean(), scattered)
            self.report["uncalibrated_gain_std_db"] = _db_std(starts)
            self.report["random_starts_db"] = [_db(value, scattered) for value in starts]
        reasons = self._doubts(joint, ideal, single, shares, float(np.mean(noise)))
        gains = [self.report.get(f"{name}_db") for name in
                 ("coherent_gain", "ideal_gain", "uncalibrated_gain", "best_single_node")]
        return Product(DOWNLINK, {"gains_db": np.array(gains, float)}, not reasons, reasons)

    def _doubts(self, joint, ideal: float, single, shares, noise: float) -> tuple[str, ...]:
        """Why not to trust the result: an AP that the UE misses, or a joint transmission far from the ideal."""
        plan = self._plan
        floor = MIN_DEVIATIONS * noise / np.sqrt(plan.layout.symbol.num_subcarriers * plan.repeats)
        reasons = [f"node {ap}: {plan.ue} does not receive it, though it carries {shares[ap]:.0%} of the power"
                   for ap in plan.aps if shares[ap] > 0.01 and not single[ap] > floor]
        # Deviation of the power of one repeat by noise.
        deviation = np.sqrt((2 * joint.max() * noise + noise**2) / plan.layout.symbol.num_subcarriers)
        if joint.min() + MIN_DEVIATIONS * deviation < 0.5 * joint.max():
            reasons.append(f"node {plan.ue}: the power of the joint transmission more than halves between repeats")
        spread = joint.std(ddof=1) / np.sqrt(joint.size) if joint.size > 1 else 0.0
        if not joint.mean() + 3 * spread > ideal * 10 ** (-MAX_LOSS_DB / 10):
            loss_db = 10 * np.log10(ideal / max(joint.mean(), 1e-30))
            reasons.append(f"the joint transmission misses the ideal by {loss_db:.1f} dB: calibration does not hold")
        return tuple(reasons)


def _unit_power(weights: np.ndarray) -> np.ndarray:
    """Weights (ports, subcarriers) scaled to unit total power; zeros stay."""
    power = np.mean(np.sum(np.abs(weights) ** 2, axis=0))
    return weights / np.sqrt(power) if power > 0 else weights


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


def _combine_repeats(h: np.ndarray) -> np.ndarray:
    """Channel (ports, subcarriers) common to repeats (repeats, ports, subcarriers) that differ by one phase each.

    The dominant left singular vector holds those phases: the UE's oscillator turns between repeats, unknown to all.
    """
    x = h.reshape(len(h), -1)
    u = np.linalg.eigh(x @ x.conj().T)[1][:, -1]
    return (u.conj() @ x).reshape(h.shape[1:]) / np.sqrt(len(h))


def _amplitude(g: np.ndarray, num_subbands: int) -> np.ndarray:
    """Amplitude per subcarrier of repeated transmissions (repeats, subcarriers), unbiased by noise.

    The part of g in phase with its sub-band: the modulus would count noise as signal.
    """
    local = np.repeat(sounding.subband_average(g, num_subbands), g.shape[-1] // num_subbands, axis=-1)
    return np.mean(np.real(g * np.conj(local) / np.maximum(np.abs(local), np.finfo(float).tiny)), axis=0)


def _db(power: float, scale: float) -> float | None:
    """Ratio of powers in dB; None where it has none."""
    return float(10 * np.log10(power / scale)) if power > 0 and scale > 0 else None


def _db_std(powers: np.ndarray) -> float | None:
    """Standard error in dB of the mean of `powers`."""
    if powers.size < 2 or powers.mean() <= 0:
        return None
    return float(10 / np.log(10) * powers.std(ddof=1) / np.sqrt(powers.size) / powers.mean())
