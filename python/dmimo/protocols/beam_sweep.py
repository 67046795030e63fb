# SPDX-License-Identifier: GPL-3.0-or-later
"""Beam sweep: every access point (AP) sounds each of its beams while all others sweep theirs.

In round (a, b) each AP in turn transmits with beam b while all others receive with beam a; so one pass of B^2 rounds
of M slots measures all M (M - 1) B^2 ordered beam pairs. Rounds (a, b) and (b, a) follow one another: they hold the
two directions of the same path, and c turns with twice the oscillator phase between distant measurements.

References
----------
Vieira and Larsson, beam-sweep calibration, section II-B, eq. (5). The paper counts M B^2 measurements; ordered pairs
make it M (M - 1) B^2, in M B^2 slots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..core import sounding
from ..core.coarse import coarse_values
from ..core.graph import DisconnectedGraphError
from ..core.sweep_calibration import calibrate_sweep
from ..core.waveforms import SlotLayout
from .slots import Grant, Product, Reception, Slot

PURPOSE = "sweep"
PHASE = "sweep"
MIN_SILENCE_SAMPLES = 8
# Noise beside the symbol's bins over that in silence, and as a share of the signal, from which it is the signal's own.
MAX_NOISE_RATIO, MAX_LEAKAGE = 1.5, 0.005
NOISE_DEVIATIONS = 5.0  # of the ratio, by chance, that short sweeps must exceed


def rounds(num_beams: int, *, beam_pairs: int | None = None, passes: int = 1) -> np.ndarray:
    """Rounds (receive beam, transmit beam) of a sweep, in the order of transmission.

    Pairs of equal beams come first, then (0, 1), (1, 0), (1, 2), (2, 1), ... by growing distance, so that a partial
    sweep uses all beams and always holds both directions of a path.

    Parameters
    ----------
    num_beams : int
        Largest number of beams of any AP; an AP with fewer repeats its own (beam modulo its number).
    beam_pairs : int, optional
        Number of rounds in a pass of a partial sweep; all `num_beams`^2 by default. A cut between the directions of a
        path leaves both out.
    passes : int
        Repetitions of the whole.

    Returns
    -------
    ndarray of int, (num_rounds, 2)
    """
    if num_beams < 1 or passes < 1:
        raise ValueError(f"num_beams = {num_beams}, passes = {passes}: must be at least 1")
    if beam_pairs is not None and not 1 <= beam_pairs <= num_beams**2:
        raise ValueError(f"beam_pairs = {beam_pairs}: must lie in 1 ... num_beams^2 = {num_beams**2}")
    order = [(a, a) for a in range(num_beams)]
    for distance in range(1, num_beams):
        for a in range(num_beams - distance):
            order += [(a, a + distance), (a + distance, a)]
    if beam_pairs is not None:
        whole = beam_pairs - (beam_pairs > num_beams and (beam_pairs - num_beams) % 2)
        order = order[:whole]
    return np.array(order * passes)


def swapped(order: np.ndarray) -> np.ndarray:
    """For each round (a, b), the index of its reverse (b, a) in the same pass."""
    length = len(np.unique(order, axis=0))
    index = {tuple(pair): k for k, pair in enumerate(order[:length].tolist())}
    reverse = np.array([index[b, a] for a, b in order[:length].tolist()])
    return np.concatenate([reverse + start for start in range(0, len(order), length)])


def sweep_slots(
    nodes: Sequence[str], aps: Sequence[str], num_beams: Mapping[str, int], order: np.ndarray
) -> list[Slot]:
    """Slots of a sweep over `order`; a slot's `variant` is its round. Nodes that are no AP listen with beam 0."""
    slots = []
    for index, (receive, transmit) in enumerate(order.tolist()):
        for sender in aps:
            beams = tuple(
                0 if node not in aps else (transmit if node == sender else receive) % num_beams[node] for node in nodes
            )
            slots.append(Slot(0, PURPOSE, (sender,), beams, index))
    return slots


class SweepRole:
    """What one AP does in a sweep: sounds in its own slots, estimates the channel from the sender in all others.

    Parameters
    ----------
    node : str
    layouts : mapping of node to SlotLayout
        Where each AP's ports lie in the slot.
    nodes : sequence of str
        Nodes of the schedule, for the order of its beams.
    """

    purposes = frozenset({PURPOSE})
    reactive = False

    def __init__(self, node: str, layouts: Mapping[str, SlotLayout], nodes: Sequence[str]):
        self._node = node
        self._layouts = layouts
        self._position = list(nodes).index(node)
        self._burst = layouts[node].sounding_burst() if node in layouts else None
        self._reception = Reception()
        self._senders: dict[int, str] = {}

    def beam(self, slot: Slot) -> int:
        """Beam that the schedule gives the node."""
        return slot.beams[self._position]

    def transmit(self, slot: Slot, start: int) -> np.ndarray | None:
        """The sounding burst, in the node's own slots."""
        return self._burst if self._node in slot.transmitters else None

    def receive(self, slot: Slot, grant: Grant, samples: np.ndarray) -> None:
        """Keep what other APs sent."""
        sender = slot.transmitters[0]
        if self._node in self._layouts and sender != self._node:
            self._senders[grant.slot] = sender
            self._reception.keep(grant, samples)

    def results(self, grants: Sequence[Grant]) -> dict[str, object] | None:
        """Channel of each subcarrier from each of the sender's ports for every slot listened to, and the noise.

        Returns
        -------
        dict
            `slots` (n,) and `starts` (n,) int64; `h` complex128 (n, own ports, largest number of ports of any sender,
            num_subcarriers), zero beyond the sender's ports; `noise_var` (own ports,): noise variance of a sample;
            `silence_var` (own ports,): the same while nobody sends, NaN where the slot has no such samples; `turn`,
            `turn_energy` (n,): `prefix_correlation` of the sender's carrier, summed over all ports.
        """
        heard = [grant for grant in grants if grant.slot in self._senders]
        if not heard:
            return None
        samples = self._reception.take(heard)
        senders = [self._senders[grant.slot] for grant in heard]
        self._senders.clear()
        ports = max(layout.num_ports for layout in self._layouts.values())
        h = np.zeros((len(heard), samples.shape[1], ports, self._layouts[senders[0]].symbol.num_subcarriers), complex)
        noise = np.zeros((len(heard), samples.shape[1]))
        silence = np.full((len(heard), samples.shape[1]), np.nan)
        turn, turn_energy = np.zeros(len(heard), complex), np.zeros(len(heard))
        for sender in dict.fromkeys(senders):
            chosen = np.array([name == sender for name in senders])
            layout = self._layouts[sender]
            quiet = samples[chosen][..., layout.silence]
            if quiet.shape[-1] >= MIN_SILENCE_SAMPLES:
                silence[chosen] = sounding.noise_variance(quiet)
            windows = [(layout.symbol, layout.useful_start(port)) for port in range(layout.num_ports)]
            for window in windows:
                parts = sounding.prefix_correlation(samples[chosen], *window, layout.advance_samples)
                turn[chosen] += parts[0].sum(axis=1)
                turn_energy[chosen] += parts[1].sum(axis=1)
            for port, window in enumerate(windows):
                held = sounding.hold_carrier(samples[chosen], *window, turn[chosen], turn_energy[chosen])
                h[chosen, :, port] = sounding.channel_estimate(held, *window)
                if port == 0:
                    noise[chosen] = sounding.empty_bin_noise_variance(held, *window)
        return {
            "slots": np.array([grant.slot for grant in heard]),
            "starts": np.array([grant.start for grant in heard]),
            "h": h,
            "noise_var": noise.mean(axis=0),
            "silence_var": silence.mean(axis=0),
            "turn": turn,
            "turn_energy": turn_energy,
        }

    def update(self, product: Product) -> None:
        """A sweep needs nothing from other phases."""


@dataclass(frozen=True)
class SweepData:
    """All measurements of a sweep.

    y[i, j, q, k] was received by port i from port j over path q in sub-band k, in the middle of sample times[i, j, q];
    NaN where nothing was measured. `noise_var` (ports,) is the noise variance of an entry. `coarse_delay` (ports,) is
    the calibration delay in samples that has been removed. `coarse_frequency_hz` (ports,) with its deviation is what
    the symbols' prefixes say; it has not been removed.
    """

    y: np.ndarray
    times: np.ndarray
    noise_var: np.ndarray
    coarse_delay: np.ndarray
    coarse_frequency_hz: np.ndarray
    coarse_frequency_std_hz: np.ndarray


class SweepCollector:
    """Collects the sweep from all APs and calibrates.

    Parameters
    ----------
    schedule_slots : sequence of Slot
        The whole schedule's slots.
    layouts : mapping of AP to SlotLayout, in the order of the calibration's ports
    order : ndarray (num_rounds, 2)
    num_subbands, samp_rate
        As for the roles.
    settings : mapping
        Keyword arguments of `calibrate_sweep` (method, reference, estimate_frequency, estimate_delay).
    """

    phases = frozenset({PHASE})

    def __init__(self, schedule_slots, layouts: Mapping[str, SlotLayout], order, num_subbands: int, samp_rate: float,
                 settings: Mapping[str, object]):
        self._slots = schedule_slots
        self._layouts = layouts
        self._layout = max(layouts.values(), key=lambda layout: layout.num_ports)
        self._advance, self._symbol = self._layout.advance_samples, self._layout.symbol
        self._swapped = swapped(order)
        self._num_subbands = num_subbands
        self._samp_rate = samp_rate
        self._settings = settings
        counts = [layout.num_ports for layout in layouts.values()]
        edges = np.concatenate([[0], np.cumsum(counts)])
        self._ports = {name: slice(edges[k], edges[k + 1]) for k, name in enumerate(layouts)}
        self.node_of_port = np.repeat(np.arange(len(counts)), counts)
        self._port_names = tuple(f"{name}:{port}" for name, count in zip(layouts, counts, strict=True)
                                 for port in range(count))
        self._port_variance = np.zeros(self.node_of_port.size)
        self.delay_samples = 0.0
        self.sweep: SweepData | None = None
        self.calibration = None

    def assemble(self, results: Mapping[str, Mapping[str, object]]) -> SweepData:
        """Measurements of all APs as arrays over (receiver, transmitter, path, sub-band).

        Two kinds of delay are removed before the subcarriers of a sub-band are averaged, where they would cancel them:
        the one common to all measurements (the receive window's, the radios' pipelines), and a coarse calibration delay
        of each port. The common delay beyond the window's advance is how much later than at the antenna the samples are
        labelled: the times are corrected by it.
        """
        ports, paths = self.node_of_port.size, self._swapped.size
        y = np.full((ports, ports, paths, self._num_subbands), np.nan + 0j)
        times = np.zeros((ports, ports, paths), np.int64)
        noise_var = np.full(ports, np.nan)
        steps, energy = np.zeros((ports, ports), complex), np.zeros((ports, ports))
        turn, turn_energy = np.zeros((ports, ports), complex), np.zeros((ports, ports))
        for own, theirs, rows, result, _ in self._links(results):
            h = np.asarray(result["h"])[rows][:, :, : theirs.stop - theirs.start]
            steps[own, theirs] = sounding.phase_steps(h, self._symbol).sum(axis=0)
            energy[own, theirs] = np.sum(np.abs(h) ** 2, axis=(0, 3))
            # One oscillator a node: its first port stands for all.
            turn[own.start, theirs.start] = np.asarray(result["turn"])[rows].sum()
            turn_energy[own.start, theirs.start] = np.asarray(result["turn_energy"])[rows].sum()
        common = self.delay_samples = float(sounding.delay_of_steps(steps.sum(), self._symbol))
        coarse = np.zeros(ports)
        if self._settings.get("estimate_delay", True):
            coarse = self._coarse_delays(steps, energy, paths)
        frequency, frequency_std = self._coarse_frequencies(turn, turn_energy, paths)
        latency = round(common) - self._advance
        for own, theirs, rows, result, path in self._links(results):
            delay = common + (coarse[theirs] - coarse[own, None]) / 2
            h = sounding.advance(np.asarray(result["h"])[rows][:, :, : theirs.stop - theirs.start], self._symbol, delay)
            y[own, theirs, path] = np.moveaxis(sounding.subband_average(h, self._num_subbands), 0, 2)
            middles = np.array([self._layout.midway(port) for port in range(theirs.stop - theirs.start)]) - latency
            times[own, theirs, path] = np.asarray(result["starts"])[rows] + middles[:, None]
            noise_var[own] = sounding.estimate_noise_variance(self._symbol, result["noise_var"], self._num_subbands)
        return SweepData(y, times, self._audible(noise_var, y), coarse, frequency, frequency_std)

    def _links(self, results):
        """For each receiver and sender: their ports, the result's rows from the sender, the result, the rows' paths."""
        order = list(self._layouts)
        for receiver, result in results.items():
            slots = [self._slots[index] for index in result["slots"]]
            senders = np.array([order.index(slot.transmitters[0]) for slot in slots])
            variants = np.array([slot.variant for slot in slots])
            for position, sender in enumerate(order):
                if sender == receiver:
                    continue
                rows = np.flatnonzero(senders == position)
                # The path is named after the beams of (earlier AP, later AP), whichever of them sends.
                earlier = order.index(receiver) < position
                path = variants[rows] if earlier else self._swapped[variants[rows]]
                yield self._ports[receiver], self._ports[sender], rows, result, path

    def _coarse_delays(self, steps: np.ndarray, energy: np.ndarray, num_paths: int) -> np.ndarray:
        """Calibration delay of each port in samples, unambiguous to half a symbol, from one-way delays.

        Sub-bands resolve no more than their own spacing allows; this is what they start from.
        """
        relative = sounding.delay_of_steps(steps * np.conj(steps.sum()), self._symbol)
        coherence = np.abs(steps) / np.maximum(energy, np.finfo(float).tiny)
        return coarse_values(relative - relative.T, np.minimum(coherence, coherence.T),
                             num_paths * self._symbol.num_subcarriers)[0]

    def _coarse_frequencies(self, turn: np.ndarray, energy: np.ndarray, num_paths: int):
        """Frequency in Hz of each port's oscillator and its deviation, from the prefixes; unambiguous to half a bin."""
        firsts = np.unique(self.node_of_port, return_index=True)[1]
        turn, energy = turn[np.ix_(firsts, firsts)], energy[np.ix_(firsts, firsts)]
        both = turn + np.conj(turn.T)
        coherence = np.abs(both) / np.maximum(energy + energy.T, np.finfo(float).tiny)
        # Both directions, and the samples of `prefix_correlation`; of several ports at least one.
        count = 2 * num_paths * ((self._symbol.prefix_samples - self._advance) // 2 + self._advance)
        hertz = sounding.frequency_of_correlation(both, self._symbol, self._samp_rate)
        values, std = coarse_values(hertz, coherence, count)
        per_radian = self._samp_rate / (2 * np.pi * self._symbol.pilot_samples)
        return values[self.node_of_port], std[self.node_of_port] * per_radian

    @staticmethod
    def _audible(noise_var: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Noise variances, none of them zero: a coarse converter may show none, and whitening divides by it."""
        return np.maximum(noise_var, max(1e-14 * float(np.nanmean(np.abs(y) ** 2)), 1e-30))

    def _leaks(self, results: Mapping[str, Mapping[str, object]]) -> tuple[str, ...]:
        """Receivers whose noise comes with the signal: from a carrier off by a bin or more, or from distortion.

        Mean powers of n independent samples have logarithms of variance 1 / n.
        """
        silence = self._layout.silence
        share = 1 / max(self._symbol.empty_bins.size, 1) + 1 / max(silence.stop - silence.start, 1)
        reasons = []
        for node, result in results.items():
            beside, silent = np.mean(result["noise_var"]), np.mean(result["silence_var"])
            power = float(np.mean(np.abs(result["h"]) ** 2))
            means = len(result["slots"]) * np.size(result["noise_var"])
            ratio = max(MAX_NOISE_RATIO, float(np.exp(NOISE_DEVIATIONS * np.sqrt(share / means))))
            if beside > ratio * silent and beside - silent > MAX_LEAKAGE * power:
                reasons.append(f"node {node}: {100 * (beside - silent) / power:.1f} % of the signal lie beside its "
                               "subcarriers: carriers differ by more than half a bin, or something distorts")
        return tuple(reasons)

    def update(self, product: Product) -> None:
        """Take how uncertain c is by the amplifiers, where these were linearised."""
        if "predistortion_variance" in product.values:
            self._port_variance = np.asarray(product.values["predistortion_variance"])

    def produce(self, phase: str, grants: Sequence[Grant], results: Mapping[str, Mapping[str, object]]) -> Product:
        """The calibration: c, frequency and delay of each port with their predicted deviations."""
        self.sweep, self.calibration = self.assemble(results), None
        sweep = self.sweep
        try:
            estimate = calibrate_sweep(
                sweep.y, sweep.times, samp_rate=self._samp_rate, noise_var=sweep.noise_var,
                subcarriers_hz=sounding.subband_centres_hz(self._symbol, self._num_subbands, self._samp_rate),
                node_of_port=self.node_of_port, port_names=self._port_names,
                coarse_frequency_hz=sweep.coarse_frequency_hz, coarse_frequency_std_hz=sweep.coarse_frequency_std_hz,
                **self._settings,
            )
        except DisconnectedGraphError as error:
            parts = ", ".join("{" + ", ".join(self._port_names[port] for port in part) + "}"
                              for part in error.components)
            return Product(phase, {}, False, (f"no signal connects the ports {parts}",))
        reasons = tuple(estimate.reasons) + self._leaks(results)
        if not 0 <= self.delay_samples <= self._symbol.prefix_samples:
            reasons += (f"signals arrive {self.delay_samples - self._advance:+.0f} samples from where they are "
                        f"expected: must be within -{self._advance} ... "
                        f"{self._symbol.prefix_samples - self._advance}, longer prefix_samples allow more",)
        coarse = (sweep.coarse_delay - sweep.coarse_delay[estimate.reference]) / self._samp_rate
        # Against the reference, whose amplifier errs as well.
        more = self._port_variance + self._port_variance[estimate.reference]
        more[estimate.reference] = 0.0
        self.calibration = estimate = replace(
            estimate, delay_s=estimate.delay_s + coarse, reasons=reasons, trusted=estimate.trusted and
            reasons == tuple(estimate.reasons), covariance=estimate.covariance + np.diag(more),
            phase_std_rad=np.sqrt(estimate.phase_std_rad**2 + more / 2))
        values = {name: getattr(estimate, name) for name in ("c", "frequency_hz", "delay_s", "phase_std_rad")}
        values["reference_time"] = int(estimate.reference_time)
        return Product(phase, values, bool(estimate.trusted), reasons)
