# SPDX-License-Identifier: GPL-3.0-or-later
"""Linearity: how well a UE can read data that an access point sends from all its ports, before and after linearising.

One phase after the uplink of a verification of each AP alone (`verification.Plan` with this one AP), which holds its
weights. In every slot one AP sends OFDM data, known to all from the seed, jointly and with each port at its own full
power. Three treatments take turns, with the same data, so that they compare:

* *before*: raw amplifiers, and the weights of an array that knows nothing of its chains, c = 1;
* *calibrated*: raw amplifiers, calibrated weights: what calibration alone is worth;
* *after*: calibrated weights, and the ports' predistortion at work.

Predistortion is not done here: the node leaves the bursts alone of which `LinearityPlan.is_raw` holds. The UE, with
its port 0, reports the spectra of the useful parts and the noise of the silence that ends each slot; error vector and
adjacent channels follow as `core.linearity` says. Ports without a coefficient (c = 0) are silent in all treatments.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import get_args

import numpy as np

from ..core import linearity, sounding
from ..core.waveforms import SlotLayout
from . import joint_transmission as joint
from . import verification
from .joint_transmission import MIN_DEVIATIONS
from .predistortion import NodePredistortion
from .slots import CHOSEN, Grant, Product, Reception, Slot

LINEARITY = "linearity"
TREATMENTS = ("before", "calibrated", "after")
BEFORE, CALIBRATED, AFTER = range(len(TREATMENTS))


@dataclass(frozen=True)
class LinearityPlan:
    """What the measurement needs to know about a run.

    Parameters
    ----------
    nodes : tuple of str
        All nodes, in the order of the schedule.
    verification : mapping of AP to verification.Plan
        Of this AP alone, and of the same UE; from its phases come beam, weights and coefficients.
    ue : str
    layout : SlotLayout
        One symbol per slot, as the verification has it. Slots hold as many as `burst_layout` says.
    samp_rate : float
    repeats : int
        Slots of each AP and treatment, each with data of its own; at least 2.
    modulation : "qam16", "qpsk" or "gaussian"
    power_db : float
        Of each port, relative to samples of unit mean power.
    guard_subcarriers : int
        Between the channel and its neighbours.
    seed : int
        Of the data.

    Raises
    ------
    ValueError
        If a value is out of range, a verification is of other nodes, or no silence is left in a slot.
    """

    nodes: tuple[str, ...]
    verification: Mapping[str, verification.Plan]
    ue: str
    layout: SlotLayout
    samp_rate: float
    repeats: int = 8
    modulation: linearity.Modulation = "qam16"
    power_db: float = 0.0
    guard_subcarriers: int = 0
    seed: int = 0

    def __post_init__(self):
        if not self.verification or not {self.ue, *self.verification} <= set(self.nodes):
            raise ValueError(f"verification of {tuple(self.verification)} for ue = {self.ue!r}: must be at least one, "
                             f"and all among the nodes {self.nodes}")
        for ap, plan in self.verification.items():
            if plan.aps != (ap,) or plan.ue != self.ue:
                raise ValueError(f"verification of {ap}: has aps = {plan.aps} and ue = {plan.ue!r}, must have this AP "
                                 f"alone and {self.ue!r}")
        if self.repeats < 2 or self.guard_subcarriers < 0:
            raise ValueError(f"repeats = {self.repeats}, guard_subcarriers = {self.guard_subcarriers}: must be at "
                             "least 2 and 0")
        if self.modulation not in get_args(linearity.Modulation):
            raise ValueError(f"modulation = {self.modulation!r}: must be one of {get_args(linearity.Modulation)}")
        if not np.isfinite(self.power_db):
            raise ValueError(f"power_db = {self.power_db}: must be finite")
        quiet = self.layout.silence
        if self.layout.num_ports != 1 or quiet.start == quiet.stop:
            raise ValueError(f"layout: {self.layout.num_ports} symbols and {quiet.stop - quiet.start} samples of "
                             "silence at the slot's end: must be one symbol and at least 1 sample, to know the noise")

    @property
    def aps(self) -> tuple[str, ...]:
        """Access points that are measured, one after the other."""
        return tuple(self.verification)

    @cached_property
    def burst_layout(self) -> SlotLayout:
        """Layout of the data, its `num_ports` the number of symbols one after another.

        As many as fit, each with as many samples of silence as it has subcarriers (one symbol in any case), so that the
        noise is known about as well as the powers from which it is subtracted.
        """
        symbol, quiet = self.layout.symbol, self.layout.silence
        room = quiet.stop - quiet.start + symbol.total_samples
        return replace(self.layout, num_ports=max(1, room // (symbol.total_samples + symbol.num_subcarriers)))

    @cached_property
    def shows_adjacent_channels(self) -> bool:
        """Whether the samples are fast enough to hold both adjacent channels."""
        try:
            linearity.adjacent_bins(self.layout.symbol, self.guard_subcarriers)
        except ValueError:
            return False
        return True

    def variant(self, ap: int, treatment: int, repeat: int) -> int:
        """Variant of a slot: number of the AP, treatment (`BEFORE`, `CALIBRATED` or `AFTER`), and repeat."""
        return (ap * len(TREATMENTS) + treatment) * self.repeats + repeat

    def meaning(self, variant: int) -> tuple[int, int, int]:
        """AP, treatment and repeat of a variant."""
        rest, repeat = divmod(variant, self.repeats)
        return *divmod(rest, len(TREATMENTS)), repeat

    def is_raw(self, slot: Slot) -> bool:
        """Whether the burst of a slot goes to the amplifiers as it is, without predistortion."""
        return slot.purpose == LINEARITY and self.meaning(slot.variant)[1] != AFTER

    def phases(self, window: int) -> list[tuple[str, int, list[Slot]]]:
        """Phase for `slots.build_schedule`."""
        slots = [plan.slot(LINEARITY, (ap,), CHOSEN, self.variant(number, treatment, repeat))
                 for repeat in range(self.repeats) for number, (ap, plan) in enumerate(self.verification.items())
                 for treatment in range(len(TREATMENTS))]
        return [(LINEARITY, window, slots)]

    def data(self, ap: int, repeat: int) -> np.ndarray:
        """Data (symbols, num_subcarriers) of an AP in a repeat, the same for all treatments."""
        rng = np.random.default_rng((self.seed, *LINEARITY.encode(), ap, repeat))
        shape = self.burst_layout.num_ports, self.layout.symbol.num_subcarriers
        return linearity.draw_data(rng, shape, self.modulation)


class LinearityRole:
    """What one node does: an AP sends data with the weights of its verification, the UE keeps spectra.

    Parameters
    ----------
    node : str
    plan : LinearityPlan
    predistortion : NodePredistortion, optional
        Of the node, whose clipped samples are counted.
    """

    reactive = False

    def __init__(self, node: str, plan: LinearityPlan, predistortion: NodePredistortion | None = None):
        self.purposes = frozenset({LINEARITY})
        self._node, self._plan = node, plan
        self._predistortion = predistortion
        self._position = plan.nodes.index(node)
        self._own = plan.verification.get(node)
        self._chosen = 0
        self._calibration: Mapping[str, object] | None = None
        self._design: Mapping[str, object] | None = None
        self._weights: list[np.ndarray] = []  # of a joint transmission without and with calibration
        self._reception = Reception()
        self._sender: dict[int, str] = {}  # of the slots kept

    def beam(self, slot: Slot) -> int:
        """Beam of the schedule, or the one chosen before."""
        beam = slot.beams[self._position]
        return self._chosen if beam == CHOSEN else beam

    def transmit(self, slot: Slot, start: int) -> np.ndarray | None:
        """The AP's burst of precoded data, each sample turned to its own time."""
        if self._node not in slot.transmitters:
            return None
        plan, design = self._plan, self._design
        if design is None:
            raise RuntimeError(f"node {self._node}: no weights have come before the slot {slot.index} of linearity")
        ap, treatment, repeat = plan.meaning(slot.variant)
        burst = data_burst(plan.burst_layout, self._weights[treatment != BEFORE], plan.data(ap, repeat))
        own = self._own.ports(self._node)
        turn = joint.own_time_turn(design, own, start, plan.layout.slot_samples, plan.samp_rate)
        return (10 ** (plan.power_db / 20) * burst * turn).astype(np.complex64)

    def receive(self, slot: Slot, grant: Grant, samples: np.ndarray) -> None:
        """The UE keeps what its port 0 hears."""
        if self._node == self._plan.ue:
            self._sender[grant.slot] = slot.transmitters[0]
            self._reception.keep(grant, samples[:1])

    def results(self, grants: Sequence[Grant]) -> dict[str, object] | None:
        """Spectra of all symbols of every slot kept; all of them are forgotten. None where there are none.

        Of a node that predistorts `clipped` and `predistorted`: samples of all its ports since it began.

        Returns
        -------
        dict
            `slots`, `starts` (n,) int64; `spectra` complex64 (n, symbols, pilot_samples), see
            `core.linearity.symbol_spectra`; `noise_var` (n,) of their elements, from the silence of each slot.
        """
        if self._predistortion is not None:
            return {"clipped": int(self._predistortion.num_clipped.sum()),
                    "predistorted": int(self._predistortion.num_samples.sum())}
        heard = [grant for grant in grants if grant.slot in self._sender]
        if not heard:
            return None
        samples = self._reception.take(heard)[:, 0]
        sender = np.array([self._sender[grant.slot] for grant in heard])
        self._sender.clear()
        layout = self._plan.burst_layout
        spectra = np.empty((len(heard), layout.num_ports, layout.symbol.pilot_samples), np.complex64)
        for ap in set(sender.tolist()):  # each AP has a carrier of its own
            spectra[sender == ap] = held_spectra(samples[sender == ap], layout)
        silence = sounding.noise_variance(samples[:, layout.silence])
        return {
            "slots": np.array([grant.slot for grant in heard]),
            "starts": np.array([grant.start for grant in heard]),
            "spectra": spectra,
            "noise_var": sounding.estimate_noise_variance(layout.symbol, silence),
        }

    def update(self, product: Product) -> None:
        """Take the chosen beam, coefficients, and the weights that were made of them."""
        plan, own = self._plan, self._own
        source = own if own is not None else next(iter(plan.verification.values()))
        if product.phase == source.beams_from:
            self._chosen = int(np.asarray(product.values["serving_beams"])[self._position])
        if own is None:
            return
        if product.phase == own.training:
            self._chosen = int(np.asarray(product.values["beams"])[0])
        self._calibration = own.calibration(product) or self._calibration
        if product.phase == own.uplink:
            self._take(product.values)

    def _take(self, design: Mapping[str, object]) -> None:
        """Weights for c = 1 and for the calibration from which the calibrated ones, conj(c h_ul), were made."""
        plan = self._plan
        if self._calibration is None:
            raise RuntimeError(f"node {self._node}: no calibration has come before its uplink")
        c = joint.calibration_per_subcarrier(self._calibration, plan.layout, plan.samp_rate)
        weights = np.asarray(design["weights"], np.complex128)
        plain = np.divide(weights, c.conj(), out=np.zeros_like(weights), where=c != 0)
        self._design, self._weights = design, [joint.full_power(plain), joint.full_power(weights)]


def data_burst(layout: SlotLayout, weights: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Precoded OFDM data, complex128 (ports, slot_samples).

    Parameters
    ----------
    layout : SlotLayout
        Of as many symbols as there are data.
    weights : ndarray (ports, num_subcarriers)
    data : ndarray (symbols, num_subcarriers)
    """
    symbol, first = layout.symbol, layout.symbol_start(0)
    samples = symbol.samples(weights[:, None] * (data / symbol.sequence))
    burst = np.zeros((len(weights), layout.slot_samples), np.complex128)
    burst[:, first : first + layout.num_ports * symbol.total_samples] = samples.reshape(len(weights), -1)
    return burst


def held_spectra(samples: np.ndarray, layout: SlotLayout) -> np.ndarray:
    """Spectra (n, symbols, pilot_samples) of slots (n, slot_samples) of one carrier, its turn taken out."""
    symbol = layout.symbol
    turn = np.array([sounding.prefix_correlation(samples, symbol, layout.useful_start(number), layout.advance_samples)
                     for number in range(layout.num_ports)])
    correlation, energy = turn[:, 0].ravel(), turn[:, 1].real.ravel()
    samples = sounding.hold_carrier(samples, symbol, layout.useful_start(0), correlation, energy)
    return linearity.symbol_spectra(samples, layout)


class LinearityCollector:
    """Turns the UE's spectra into error vectors and powers of the adjacent channels.

    Attributes
    ----------
    report : dict or None
        `frequencies_hz` of the bins, and in `access_points`, for each AP and treatment, what `_judge` returns.
    """

    def __init__(self, plan: LinearityPlan, schedule_slots: Sequence[Slot]):
        self.phases = frozenset({LINEARITY})
        self._plan = plan
        self._slots = schedule_slots
        self.report: dict[str, object] | None = None

    def update(self, product: Product) -> None:
        """Nothing that others produce matters here."""

    def produce(self, phase: str, grants: Sequence[Grant], results: Mapping[str, Mapping[str, object]]) -> Product:
        """EVM and ACLR in dB (APs, treatments), nan where noise hides them."""
        plan, result = self._plan, results[self._plan.ue]
        meaning = [plan.meaning(self._slots[int(index)].variant) for index in result["slots"]]
        spectra, noise = np.asarray(result["spectra"], np.complex128), np.asarray(result["noise_var"])
        judged, reasons = {}, []
        for number, ap in enumerate(plan.aps):
            judged[ap] = {}
            for treatment, name in enumerate(TREATMENTS):
                which = [k for k, (a, t, _) in enumerate(meaning) if (a, t) == (number, treatment)]
                data = np.array([plan.data(number, meaning[k][2]) for k in which])
                judged[ap][name] = self._judge(spectra[which], data, noise[which])
            if not self._is_heard(spectra[which], noise[which]):  # after, the last
                reasons.append(f"node {ap}: {plan.ue} does not receive its joint transmission")
            judged[ap][TREATMENTS[AFTER]]["clips"] = results.get(ap, {}).get("clipped")
        frequencies = linearity.bin_indices(plan.layout.symbol) * (plan.samp_rate / plan.layout.symbol.pilot_samples)
        self.report = {"frequencies_hz": frequencies.tolist(), "access_points": judged}
        values = {key: np.array([[one[name][key] for name in TREATMENTS] for one in judged.values()], float)
                  for key in ("evm_db", "aclr_db")}
        return Product(LINEARITY, values, not reasons, tuple(reasons))

    def _judge(self, spectra: np.ndarray, data: np.ndarray, noise_var: np.ndarray) -> dict[str, object]:
        """Report on one AP and treatment; None where noise hides a value.

        Parameters
        ----------
        spectra : ndarray (repeats, symbols, pilot_samples)
        data : ndarray (repeats, symbols, num_subcarriers)
        noise_var : ndarray (repeats,)

        Returns
        -------
        dict
            `power_db`, of the channel's samples; `evm_db`, `evm_percent`, `aclr_db` (the worse side), `aclr_lower_db`,
            `aclr_upper_db`, all without the noise, and their standard errors `..._std_db`; `evm_received_db`, noise
            included; `evm_at_most_db`, `aclr_at_least_db`: two standard errors from the value, also where noise hides
            it; `noise_db` and `spectrum_db`, power per bin relative to the mean occupied one; `clips`, what the AP has
            clipped in all that it has predistorted so far, None where it has not.
        """
        symbol = self._plan.layout.symbol
        power = linearity.channel_power(spectra, symbol, noise_var)
        vector = linearity.error_vector(linearity.occupied(spectra, symbol), data, noise_var)
        evm_db, evm_std_db = _in_db(vector.corrected)
        spectrum = linearity.mean_spectrum(spectra, symbol)
        power_db, power_std_db = _in_db(power)
        return {
            "power_db": power_db, "power_std_db": power_std_db,
            "evm_db": evm_db, "evm_std_db": evm_std_db,
            "evm_percent": None if evm_db is None else 100 * 10 ** (evm_db / 20),
            "evm_received_db": _in_db(vector.received)[0],
            "evm_at_most_db": joint.decibels(float(linearity.upper_limit(vector.corrected))),
            **self._adjacent(spectra, noise_var),
            "noise_db": joint.decibels(float(np.mean(noise_var)), float(power.value)),
            "spectrum_db": (10 * np.log10(np.maximum(spectrum, np.finfo(np.float32).tiny))).tolist(),
            "clips": None,
        }  # fmt: skip

    def _is_heard(self, spectra: np.ndarray, noise_var: np.ndarray) -> bool:
        """Whether the channel's power stands out of the noise."""
        symbol, (repeats, symbols, _) = self._plan.layout.symbol, spectra.shape
        deviation = np.mean(noise_var) / np.sqrt(repeats * symbols * symbol.num_subcarriers)
        return bool(linearity.channel_power(spectra, symbol, noise_var).value > MIN_DEVIATIONS * deviation)

    def _adjacent(self, spectra: np.ndarray, noise_var: np.ndarray) -> dict[str, object]:
        """ACLR of both sides and the worse of them; None where the samples do not hold the channels."""
        plan, report = self._plan, {}
        sides = None
        if plan.shows_adjacent_channels:
            sides = linearity.adjacent_leakage(spectra, plan.layout.symbol, noise_var,
                                               guard_subcarriers=plan.guard_subcarriers)
            sides = {"worse": max(sides, key=lambda side: side.value), "lower": sides.lower, "upper": sides.upper}
        for name, key in (("worse", "aclr"), ("lower", "aclr_lower"), ("upper", "aclr_upper")):
            leakage_db, std_db = (None, None) if sides is None else _in_db(sides[name])
            report[f"{key}_db"], report[f"{key}_std_db"] = None if leakage_db is None else -leakage_db, std_db
        limit = None if sides is None else joint.decibels(float(linearity.upper_limit(sides["worse"])))
        return report | {"aclr_at_least_db": None if limit is None else -limit}


def _in_db(ratio: linearity.Ratio) -> tuple[float | None, float | None]:
    """A ratio and its standard error in dB as they go into a report."""
    return tuple(float(value) if np.isfinite(value) else None for value in linearity.ratio_db(ratio))
