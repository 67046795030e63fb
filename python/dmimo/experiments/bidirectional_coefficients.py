# SPDX-License-Identifier: GPL-3.0-or-later
r"""What the two-way coefficient is made of: the same from every UE, twice the one-way offsets of time and frequency.

Read from the paper (section V-B, fig. 13 and 14): coefficients of every TDD pattern, normalised to the last port. Two
UEs with the polarisation of the TRP ports find the same delay and the same phase; so does, for the delay, the crossed
port of one of these UEs, while its phase is distorted. Over 5 s the timing and frequency read from the coefficient are
twice those of the uplink channel (6.3 m and 1100 Hz, after unfolding, to 3.2 m and 550 Hz).

Chosen, since the paper leaves it open: equal path loss of 300 m, the combs of table I (49 elements per link); CARS of
the form "phase", which reads C down to 0 dB per element, where dividing by the channel would not. TRPs are locked to
one frequency reference and wander a little, UEs by hundreds of hertz; clocks wander by nanoseconds. All wander is a sum
of sinusoids, constant within the 0.4 ms of a pattern's symbols.
The crossed port is 10 dB weaker: with 20 dB its links would be below their thresholds at 30 dBm. `mismatch_db` is what
the antennas within an AAU leave of eq. (5) to (8), a constant CN(0, .) added to each direction of a link, relative to a
link of equal polarisation: it is what makes the phase difference of the crossed port deviate from zero for good, which
noise alone (the paper's reason) could not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core import metrics
from ..core.bidirectional import link_estimates
from ..core.bidirectional_bounds import delay_crlb, element_variance
from ..core.delay import delay_and_gain
from ..core.frequency import frequency_offset
from ..core.ofdm import CombMapping, OfdmGrid
from .bidirectional_exchange import exchange, sound
from .bidirectional_model import LIGHT_M_S, PATTERN_S, SPACING_HZ, SYMBOL_S, Drop, Scene, draw, noise
from .error_statistics import wrap
from .registry import register
from .trials import generators

# 95 % of a normal distribution.
_TWO_SIDED_95 = 1.959964
_NUM_SINUSOIDS = 6
# Of 8 TRP ports and 4 UE ports: the first and the last of one polarisation; UE 1's and UE 2's port of the same, and
# UE 1's other port.
_TRP_PORTS, _UE_PORTS = [0, 6], [0, 2, 1]
_UE_LABELS = ("UE 1, port 0", "UE 2, port 0", "UE 1, port 1 (crossed)")
# One-way soundings, in symbols after that of the exchange: the uplink that is shown, and the downlink that judges.
_UPLINK, _DOWNLINK = 5, 9


class Wander(NamedTuple):
    """Sums of sinusoids: amplitude, rate in rad/s, and start phase, (T, nodes, sinusoids) each."""

    amplitude: NDArray
    rate: NDArray
    start: NDArray

    def value(self, time_s: NDArray) -> NDArray:
        """(T, S, nodes) at times (S,)."""
        return self._sum(self.amplitude, np.cos, time_s)

    def integral(self, time_s: NDArray) -> NDArray:
        """(T, S, nodes) of the value from 0 to times (S,)."""
        total = self._sum(self.amplitude / self.rate, np.sin, time_s)
        return total - self._sum(self.amplitude / self.rate, np.sin, np.zeros(1))

    def _sum(self, amplitude: NDArray, function, time_s: NDArray) -> NDArray:
        turn = self.rate[:, None] * time_s[:, None, None] + self.start[:, None]
        return np.sum(amplitude[:, None] * function(turn), axis=-1)


def wander(rngs: Sequence[np.random.Generator], std: NDArray, period_s: float) -> Wander:
    """Wander of nodes with standard deviations (nodes,) and periods from 1 to 3 times `period_s`."""
    shape = (len(std), _NUM_SINUSOIDS)
    drawn = np.stack([rng.random((2, *shape)) for rng in rngs])
    rate = 2.0 * np.pi / (period_s * (1.0 + 2.0 * drawn[:, 0]))
    amplitude = np.broadcast_to(np.sqrt(2.0 / _NUM_SINUSOIDS) * np.asarray(std)[:, None], rate.shape)
    return Wander(amplitude, rate, 2.0 * np.pi * drawn[:, 1])


def at_patterns(drop: Drop, frequency: Wander, clock: Wander, times_s: NDArray) -> Drop:
    """T S networks, that of each trial as it is in S patterns one after another, with their own origin of time.

    Nodes are counted TRPs first. The oscillators' phases at the beginning of a pattern are put into the gains.
    """
    changes = {name: np.repeat(getattr(drop, name), len(times_s), axis=0) for name in
               ("transmit_trp", "receive_trp", "transmit_ue", "receive_ue", "tau_trp_s", "tau_ue_s",
                "frequency_trp_hz", "frequency_ue_hz", "noise_trp_rad", "noise_ue_rad", "path_gain", "path_delay_s",
                "link_snr")}  # fmt: skip
    num_trp = drop.scene.num_trp
    for side, nodes in (("trp", drop.trp_of_port), ("ue", num_trp + drop.ue_of_port)):

        def flat(values: NDArray, nodes=nodes) -> NDArray:
            return values[..., nodes].reshape(-1, len(nodes))

        start = 2.0 * np.pi * np.repeat(times_s[None], len(drop.link_snr), axis=0).reshape(-1, 1)
        theta = start * changes[f"frequency_{side}_hz"] + 2.0 * np.pi * flat(frequency.integral(times_s))
        changes[f"transmit_{side}"] = changes[f"transmit_{side}"] * np.exp(1j * theta)
        changes[f"receive_{side}"] = changes[f"receive_{side}"] * np.exp(-1j * theta)
        changes[f"frequency_{side}_hz"] = changes[f"frequency_{side}_hz"] + flat(frequency.value(times_s))
        changes[f"tau_{side}_s"] = changes[f"tau_{side}_s"] + flat(clock.value(times_s))
    return replace(drop, **changes)


def _wanders(configuration: Mapping, rngs: Sequence[np.random.Generator], scene: Scene) -> tuple[Wander, Wander]:
    """Of the frequencies and of the clocks of all nodes."""
    split = [scene.num_trp, scene.num_ue]
    frequency = np.repeat([configuration["trp_wander_hz"], configuration["ue_wander_hz"]], split)
    clock = np.full(sum(split), configuration["clock_wander_s"])
    return tuple(wander(rngs, std, configuration["period_s"]) for std in (frequency, clock))


def _repeated(rngs: Sequence[np.random.Generator], number: int) -> list[np.random.Generator]:
    """The generator of each trial for all its patterns in turn."""
    return [rng for rng in rngs for _ in range(number)]


def _times_s(configuration: Mapping) -> NDArray:
    """Beginnings (S,) of patterns, as evenly spread as patterns can be."""
    last = np.rint(configuration["duration_s"] / PATTERN_S)
    return np.rint(np.linspace(0.0, last, configuration["points"])) * PATTERN_S


def summarise_agreement(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """Delay, phase and phase difference of the normalised coefficient in the first trial, and their rms over all."""
    times, trials = _times_s(configuration), len(arrays["delay_s"])
    notes = []
    panels = []
    for other, what in ((1, "two UEs"), (2, "two polarisations of UE 1")):
        difference, varies, stays = phase_difference(arrays, other)
        bound = np.degrees(np.hypot(arrays["phase_bound_rad"][:, 0], arrays["phase_bound_rad"][:, other]))
        mean, low, high = (np.sqrt(part) for part in metrics.mean_interval(varies))
        least, most = (np.sqrt(max(part, 0.0)) for part in metrics.mean_interval(stays)[1:])
        notes.append(f"Phase difference of {what}: varies by {mean:.2f}° rms [{low:.2f}, {high:.2f}], bound "
                     f"{np.sqrt(np.mean(bound**2)):.2f}°, around {np.sqrt(np.mean(stays)):.1f}° rms "
                     f"[{least:.1f}, {most:.1f}] off zero.")  # fmt: skip
        panels += _agreement_panels(arrays, times, other, what, difference[0], bound[0])
    flagged = 1.0 - np.mean(arrays["trusted"][..., 2])
    notes.append(f"{100 * flagged:.0f} % of the patterns of the crossed port are flagged as too weak and left out.")
    return {
        "title": "Calibration coefficient of a TRP port, normalised to the last port, measured at different UE ports",
        "caption": f"First of {trials} trials, bands: 95 % by the bounds; {configuration['power_dbm']:g} dBm, "
                   f"{configuration['cross_polar_db']:g} dB less at the crossed port, mismatch within an AAU "
                   f"{configuration['mismatch_db']:g} dB; wander: clocks {1e9 * configuration['clock_wander_s']:g} ns, "
                   f"TRPs {configuration['trp_wander_hz']:g} Hz, UEs {configuration['ue_wander_hz']:g} Hz. "
                   + " ".join(notes),
        "columns": 3,
        "panels": panels,
    }  # fmt: skip


def phase_difference(arrays: Mapping[str, np.ndarray], other: int) -> tuple[NDArray, NDArray, NDArray]:
    """Difference in degrees (trials, patterns) of UE ports 0 and `other`, nan where flagged; its variance over the
    patterns of each trial (trials,), which noise makes, and its squared mean, which a mismatch makes.
    """
    used = arrays["trusted"][..., 0] & arrays["trusted"][..., other]
    difference = np.degrees(wrap(arrays["phase_rad"][..., 0] - arrays["phase_rad"][..., other]))
    difference = np.where(used, difference, np.nan)
    varies = np.nanvar(difference, axis=1, ddof=1)
    # The noise of the mean is not mismatch.
    return difference, varies, np.nanmean(difference, axis=1) ** 2 - varies / used.sum(axis=1)


def _agreement_panels(
    arrays: Mapping[str, np.ndarray], times: NDArray, other: int, what: str, difference: NDArray, bound: float
) -> list[dict]:
    """The first trial at the UE ports 0 and `other`: delay, phase, and the difference of the phases."""
    half = _TWO_SIDED_95
    delays, phases = [], []
    first = np.unwrap(arrays["phase_rad"][0, :, 0])
    for index in (0, other):
        used = arrays["trusted"][0, :, index]
        delay = np.where(used, 1e9 * arrays["delay_s"][0, :, index], np.nan)
        band = half * 1e9 * arrays["delay_bound_s"][0, index]
        delays.append(_line(_UE_LABELS[index], delay, delay - band, delay + band, index))
        # Unfolded beside that of the first port: noise must not count as turns.
        phase = np.where(used, np.degrees(first + wrap(arrays["phase_rad"][0, :, index] - first)), np.nan)
        band = half * np.degrees(arrays["phase_bound_rad"][0, index])
        phases.append(_line(_UE_LABELS[index], phase, phase - band, phase + band, index))
    truth = np.degrees(first + wrap(arrays["true_phase_rad"][0] - first)).tolist()
    limits = [{"label": label, "colour": other, "values": np.full(len(times), value).tolist()}
              for label, value in (("95 % of the noise by the bound", half * bound), ("", -half * bound))]  # fmt: skip
    reach = max(20.0, 1.2 * np.nanmax(np.abs(difference)))
    common = {"x_label": "time [s]", "x": times.tolist()}
    return [
        {"title": f"delay, {what}", "y_label": "delay [ns]", "curves": delays, **common,
         "dashed": [{"label": "truth", "values": (1e9 * arrays["true_delay_s"][0]).tolist()}]},
        {"title": f"phase, {what}", "y_label": "phase [degrees]", "curves": phases, **common,
         "dashed": [{"label": "truth", "values": truth}]},
        {"title": f"phase difference, {what}", "y_label": "phase difference [degrees]", **common,
         "curves": [_line("difference", difference, difference, difference, other)],
         "dashed": limits, "y_limits": [-reach, reach]},
    ]  # fmt: skip


def _line(label: str, mean: NDArray, low: NDArray, high: NDArray, colour: int) -> dict:
    """A curve; what is nan becomes None, a gap."""
    parts = zip(("mean", "low", "high"), (mean, low, high), strict=True)
    values = {key: [None if np.isnan(value) else float(value) for value in part] for key, part in parts}
    return {"label": label, "colour": colour, **values}


@register(
    "bidirectional-13",
    title="Delay and phase of calibration coefficients from two UEs and from two polarisations, over time",
    summarise=summarise_agreement,
    plot="panels",
    defaults={"power_dbm": 30.0, "cross_polar_db": 10.0, "mismatch_db": -25.0, "duration_s": 5.0, "points": 161,
              "period_s": 2.0, "trp_wander_hz": 0.1, "ue_wander_hz": 200.0, "clock_wander_s": 2e-9},
    trials=100,
    block=10,
)
def agreement_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, np.ndarray]:
    """Delay and phase (trials, patterns, 3 UE ports) of c of TRP port 0 over c of the last, truth and bounds."""
    rngs = generators(seeds)
    scene = Scene(num_trp=4, num_ue=2, trp_ports=2, ue_ports=2, equal_path_loss=True, max_frequency_ppb=0.0,
                  power_dbm=configuration["power_dbm"], cross_polar_db=configuration["cross_polar_db"])  # fmt: skip
    drop = draw(scene, rngs)
    frequency, clock = _wanders(configuration, rngs, scene)
    drop, times = drop.select(trp=_TRP_PORTS, ue=_UE_PORTS), _times_s(configuration)
    weaker = np.sqrt(drop.link_snr[:, :1, :1] / drop.link_snr)
    mismatch = 10.0 ** (configuration["mismatch_db"] / 20.0) * weaker[:, None] * noise(rngs, (2, *weaker.shape[1:]))
    factor = np.repeat((1.0 + mismatch[:, 0]) / (1.0 + mismatch[:, 1]), len(times), axis=0)
    k = CombMapping(8, 4, 196).subcarriers(OfdmGrid())[np.ix_(_TRP_PORTS, _UE_PORTS)]
    moving = at_patterns(drop, frequency, clock, times)
    read = exchange(moving, _repeated(rngs, len(times)), k, 0.0, form="phase")
    links = link_estimates(read.c * factor[..., None], k, SPACING_HZ, max_delay=_reach_s(configuration))
    shape = (len(seeds), len(times), -1)
    c_trp = moving.coefficients([0], read.time_s)[0][..., 0]
    rho = [np.abs(part[..., 0]) ** 2 for part in (drop.uplink(k), drop.downlink(k))]
    crlb = delay_crlb(k, SPACING_HZ, element_variance(*rho))
    return {
        "delay_s": (links.delay_s[:, 1] - links.delay_s[:, 0]).reshape(shape),
        "trusted": links.trusted.all(axis=1).reshape(shape),
        "phase_rad": np.angle(links.gain[:, 1] * links.gain[:, 0].conj()).reshape(shape),
        "true_delay_s": 2.0 * (moving.tau_trp_s[:, 0] - moving.tau_trp_s[:, 1]).reshape(shape[:2]),
        "true_phase_rad": np.angle(c_trp[:, 0] * c_trp[:, 1].conj()).reshape(shape[:2]),
        "delay_bound_s": np.hypot(crlb.delay_std_s[:, 0], crlb.delay_std_s[:, 1]),
        "phase_bound_rad": np.hypot(crlb.phase_std_rad[:, 0], crlb.phase_std_rad[:, 1]),
    }


def _reach_s(configuration: Mapping) -> float:
    """Largest difference of two clocks: both offsets, and five deviations of both wanders."""
    return 2.0 * Scene().max_delay_s + 5.0 * np.sqrt(2.0) * configuration["clock_wander_s"]


def summarise_twice(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """Timing and frequency of one trial, one-way and two-way, and the ratio of all trials with 95 % bands."""
    times, trials = _times_s(configuration), len(arrays["uplink_delay_s"])
    panels, notes, ratios = [], [], []
    # The first trial in which the coefficient turns by more than half a turn per pattern, to show the unfolding.
    shown = int(np.argmax(np.abs(arrays["two_way_frequency_hz"]).max(axis=1) > 0.5 / PATTERN_S))
    for index, (key, factor, unit, name) in enumerate((
        ("delay_s", LIGHT_M_S, "m", "timing"), ("frequency_hz", 1.0, "Hz", "frequency"))):  # fmt: skip
        curves = []
        for number, (way, label) in enumerate((("uplink", "uplink channel"), ("two_way", "calibration coefficient"))):
            values = factor * arrays[f"{way}_{key}"][shown]
            # Of the timing only changes are known: the uplink's delay has the path in it.
            values = values - values[0] if key == "delay_s" else values
            band = _TWO_SIDED_95 * factor * arrays[f"{way}_{key.split('_')[0]}_bound"][shown]
            curves.append(_line(label, values, values - band, values + band, number))
        truth = factor * arrays[f"true_{key}"][shown]
        truth = 2.0 * (truth - truth[0] if key == "delay_s" else truth)
        dashed = [{"label": "twice the true offset", "values": truth.tolist()}]
        what = f"change of {name} [{unit}]"
        if key == "frequency_hz":
            what, rate = f"{name} [{unit}]", 1.0 / PATTERN_S
            folded = np.mod(np.array(curves[1]["mean"]) + 0.5 * rate, rate) - 0.5 * rate
            dashed.append({"label": "coefficient, before unfolding", "values": folded.tolist()})
        panels.append({"title": f"{name} over time", "x_label": "time [s]", "y_label": what, "x": times.tolist(),
                       "curves": curves, "dashed": dashed})  # fmt: skip
        interval = ratio(arrays, key, len(times))
        notes.append(f"{name} {interval.value:.4f} [{interval.lower:.4f}, {interval.upper:.4f}]")
        ends = range(len(times) // 10, len(times) + 1, max(len(times) // 20, 1))
        found = [ratio(arrays, key, end) for end in ends]
        ratios.append(_line(name, *zip(*found, strict=True), index))
    panels.append({"title": "two-way over one-way", "x_label": "observed time [s]", "y_label": "ratio",
                   "x": [times[end - 1] for end in ends], "curves": ratios,
                   "dashed": [{"label": "2", "values": [2.0] * len(ends)}]})  # fmt: skip
    return {
        "title": "Timing and frequency read from the calibration coefficient are twice those of the uplink channel",
        "caption": f"Trial {shown + 1} of {trials} trials; bands: 95 % by the bounds, of the ratio by all trials; "
                   f"{configuration['power_dbm']:g} dBm over 300 m, wander of clocks "
                   f"{1e9 * configuration['clock_wander_s']:g} ns, of the UE's oscillator "
                   f"{configuration['ue_wander_hz']:g} Hz; unfolded by continuity from ±800 Hz. "
                   f"Ratios: {', '.join(notes)}.",
        "columns": 3,
        "panels": panels,
    }  # fmt: skip


def ratio(arrays: Mapping[str, np.ndarray], key: str, points: int) -> metrics.Interval:
    r"""Two-way over one-way of the first `points` windows of all trials, with 95 % limits.

    .. math:: \frac{\sum (a - \bar a)(z - \bar z)}{\sum (b - \bar b)(z - \bar z)}

    with a from C, b from the uplink and z from a sounding of the downlink, whose noise is in neither: the slope of a
    over b itself would be too small by the noise in b.
    """
    a, b, z = (arrays[f"{way}_{key}"][:, :points] for way in ("two_way", "uplink", "downlink"))
    a, b, z = (part - part.mean(axis=1, keepdims=True) for part in (a, b, z))
    return metrics.ratio_of_means_interval(np.sum(a * z, axis=1), np.sum(b * z, axis=1))


@register(
    "bidirectional-14",
    title="Timing and frequency from the two-way coefficient are twice those of the uplink channel, over time",
    summarise=summarise_twice,
    plot="panels",
    defaults={"power_dbm": 30.0, "duration_s": 5.0, "points": 101, "patterns": 16, "period_s": 2.0,
              "trp_wander_hz": 0.1, "ue_wander_hz": 350.0, "clock_wander_s": 3e-9},
    trials=100,
    block=5,
)
def twice_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, np.ndarray]:
    """Delay and frequency (trials, windows) from C, from the uplink and from the downlink, truth and bounds.

    A window is some consecutive patterns: the frequency is that of maximum likelihood over all of them, known to
    1 / pattern, and unfolded by continuity from window to window. It starts within 350 Hz, where C is not yet folded.
    """
    rngs, number = generators(seeds), configuration["patterns"]
    scene = Scene(num_trp=1, num_ue=1, equal_path_loss=True, max_frequency_ppb=0.0,
                  power_dbm=configuration["power_dbm"])  # fmt: skip
    drop = draw(scene, rngs)
    frequency, clock = _wanders(configuration, rngs, scene)
    # Now the difference of the two begins anywhere within 350 Hz.
    begins = np.array([rng.uniform(-350.0, 350.0) for rng in rngs])[:, None]
    offset = begins - np.diff(frequency.value(np.zeros(1))[:, 0], axis=-1)
    drop = replace(drop, frequency_ue_hz=drop.frequency_ue_hz + offset)
    windows = _times_s(configuration)
    times = (windows[:, None] + PATTERN_S * np.arange(number)).ravel()
    moving, repeated = at_patterns(drop, frequency, clock, times), _repeated(rngs, len(times))
    k = CombMapping(8, 4, 196).subcarriers(OfdmGrid())[0, 0]
    read = {
        "two_way": exchange(moving, repeated, k, 0.0, form="phase").c,
        "uplink": sound(moving, repeated, k, _UPLINK * SYMBOL_S, "uplink"),
        # Both of its offsets have the other sign.
        "downlink": sound(moving, repeated, k, _DOWNLINK * SYMBOL_S, "downlink").conj(),
    }
    rho = np.abs(drop.uplink(k)[..., 0]).ravel() ** 2, np.abs(drop.downlink(k)[..., 0]).ravel() ** 2
    variance = {"two_way": element_variance(*rho), "uplink": 1.0 / rho[0]}
    out = {}
    for way, values in read.items():
        values = values.reshape(len(seeds), len(windows), number, len(k))
        turning = frequency_offset(np.swapaxes(values, -2, -1), np.ones(number), PATTERN_S)
        out[f"{way}_frequency_hz"] = np.unwrap(turning, axis=-1, period=1.0 / PATTERN_S)
        delays = delay_and_gain(values[:, :, 0], k, SPACING_HZ)[0]
        out[f"{way}_delay_s"] = np.unwrap(delays, axis=-1, period=1.0 / ((k[1] - k[0]) * SPACING_HZ))
    for way, v in variance.items():
        out[f"{way}_delay_bound"] = delay_crlb(k, SPACING_HZ, v).delay_std_s
        out[f"{way}_frequency_bound"] = _frequency_bound_hz(v / len(k), number)
    first = slice(None, None, number)
    out["true_delay_s"] = (moving.tau_ue_s - moving.tau_trp_s).reshape(len(seeds), -1)[:, first]
    turning = (moving.frequency_ue_hz - moving.frequency_trp_hz).reshape(len(seeds), -1, number)
    out["true_frequency_hz"] = turning.mean(axis=-1)
    return out


def _frequency_bound_hz(relative_var: NDArray, number: int) -> NDArray:
    r"""Deviation of a frequency from N phasors, :math:`\sqrt{6 v / (N (N^2 - 1))} / (2 \pi T)`."""
    return np.sqrt(6.0 * relative_var / (number * (number**2 - 1.0))) / (2.0 * np.pi * PATTERN_S)
