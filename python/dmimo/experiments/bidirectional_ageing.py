# SPDX-License-Identifier: GPL-3.0-or-later
r"""What four streams lose by coefficients that are some TDD patterns old, and what carrying them on wins back.

Read from the paper (section V-C, fig. 21): four AAUs with two ports each send four streams to two UEs with two ports
each; the delay of the calibration counts in patterns of 0.625 ms. Joint precoding loses about 0.5 dB at two patterns
and 2 dB at six; local precoding per AAU hardly any, since the channels of an AAU drift together; per polarisation more,
about 1 dB at two patterns. The paper gives neither the oscillators nor what local precoding is.

Chosen here:

* Regularised zero-forcing of all four streams, by all eight ports at once, by the two ports of each AAU, or by the four
  ports of each polarisation, each group knowing its own channels only and scaled until its strongest port has full
  power. The uplink channel is that of the moment of transmission and known exactly, only the coefficients are old.
* Phase errors of the AAUs grow as those of coefficients c that turn with twice the oscillator: over a time t,

  .. math:: \sigma^2 = (4 \pi t)^2 f_\mathrm{rms}^2 + 8 \pi L\, t

  by a frequency offset that is not followed (uniform within :math:`\pm \sqrt 3 f_\mathrm{rms}`) and by phase noise of
  the linewidth L. Loss grows by 4 from two to six patterns in the paper: by more than the time and less than its
  square, so both take part. `max_frequency_ppb` and `linewidth_hz` are those with which joint precoding loses 0.5 and
  2 dB. Table I's 30 ppb, not followed, would leave nothing at one pattern: the AAUs of the paper share a reference.
* Equal path loss of 300 m, cross-polarised links 20 dB weaker. Coefficients by joint ML of each polarisation from one
  exchange; the ratio of the two ports of an AAU, which share its oscillator, is known (the paper's AAUs are calibrated
  within): one exchange with such cross-polarised links would know the phase between the polarisations to 47 degrees.

Better than holding: "carried on" by the frequencies of the AAUs from the last `history` exchanges, after which only the
phase noise is left; "tracked" by one sounding right before the transmission against one beside the exchange.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..core import metrics
from ..core.bidirectional import joint_ml
from ..core.csi_tracking import node_turns, phase_change
from ..core.link_frequency import Soundings, link_frequency
from ..core.node_frequency import node_frequencies
from ..core.precoding import regularised_zero_forcing
from .bidirectional_algorithms import COMMON, mean_curve
from .bidirectional_exchange import Exchange, exchange, sound
from .bidirectional_model import PATTERN_S, SPACING_HZ, SYMBOL_S, Drop, Scene, draw
from .registry import register
from .trials import generators

SCHEMES = {"joint": "joint precoding", "aau": "local per AAU", "polarisation": "local per polarisation"}
MEANS = {"held": "held", "carried": "carried on by estimated frequencies", "tracked": "tracked by a one-way sounding"}
# What fig. 21 is quoted with: loss in dB of joint precoding and per polarisation, by patterns.
PAPER = {"joint": {2: 0.5, 6: 2.0}, "polarisation": {2: 1.0}}
# Draws of phase errors for the prediction, for each trial.
_DRAWS = 8
# Subcarriers on which the SINR is read, among `COMMON`, and those of the one-way soundings, on a comb of 4.
_READ = slice(None, None, 4)
_SOUNDED = np.arange(-792, 792, 4)
# The one-way sounding after the beginning of a pattern, which also is when the streams are sent.
_USED_S = 3 * SYMBOL_S


def scene_of(configuration: Mapping) -> Scene:
    """Four AAUs and two UEs with two ports each."""
    return Scene(num_trp=4, num_ue=2, trp_ports=2, ue_ports=2, equal_path_loss=True,
                 **{key: configuration[key] for key in
                    ("power_dbm", "cross_polar_db", "linewidth_hz", "max_frequency_ppb")})  # fmt: skip


def groups(scheme: str) -> NDArray:
    """The group (8,) of each port, ports numbered AAU by AAU."""
    port = np.arange(8)
    return {"joint": 0 * port, "aau": port // 2, "polarisation": port % 2}[scheme]


def weights(forecast: NDArray, group: NDArray) -> NDArray:
    r"""Weights (T, K, M, N) of N streams, :math:`H_g^H (H_g H_g^H + \frac{N}{M_g} I)^{-1}` of each group's channel H_g.

    forecast (T, M, N, K) in units of the noise; a group of M_g ports has the power M_g.
    """
    channel = np.transpose(forecast, (0, 3, 2, 1))
    out = np.empty((*channel.shape[:2], channel.shape[3], channel.shape[2]), complex)
    for number in np.unique(group):
        ports = np.flatnonzero(group == number)
        regularisation = np.full(channel.shape[:2], channel.shape[2] / len(ports))
        part = regularised_zero_forcing(channel[..., ports], regularisation, power="port")
        out[:, :, ports] = part * np.sqrt(len(ports))
    return out


def by_aau(c: NDArray, uplink: NDArray, downlink: NDArray, scheme: str) -> NDArray:
    """What each AAU adds to the streams, (AAUs, T, K, N, N) from transmitted to the received, as weighted by c.

    Coefficients c (T, M, K), channels (T, M, N, K).
    """
    sent, channel = weights(c[:, :, None] * uplink, groups(scheme)), np.transpose(downlink, (0, 3, 2, 1))
    return np.stack([channel[..., first : first + 2] @ sent[:, :, first : first + 2] for first in range(0, 8, 2)])


def sinr_db(received: NDArray) -> NDArray:
    """SINR in dB (...), mean over subcarriers and streams, of received amplitudes (..., K, N, N) in noise CN(0, 1)."""
    power = np.abs(received) ** 2
    signal = np.diagonal(power, axis1=-2, axis2=-1)
    return np.mean(10.0 * np.log10(signal / (power.sum(axis=-1) - signal + 1.0)), axis=(-2, -1))


def erring(parts: NDArray, deviates: NDArray, variance: float) -> NDArray:
    """SINR in dB (T,) if the phases of the AAUs err by Gaussian deviates (draws, AAUs, T) times the deviation."""
    turn = np.exp(1j * np.sqrt(variance) * deviates)
    # One draw at a time: all of them are as large as a block of trials is many.
    return np.mean([sinr_db(np.einsum("at,atkij->tkij", one, parts)) for one in turn], axis=0)


def phase_variance(configuration: Mapping, means: str, passed_s: float) -> float:
    """Variance in rad^2 that the oscillators give each AAU's coefficient over a time, held or carried on."""
    walk = 8.0 * np.pi * configuration["linewidth_hz"] * passed_s
    largest = configuration["max_frequency_ppb"] * 1e-9 * Scene().carrier_hz
    offset = largest**2 / 3.0
    if means == "carried":
        # The line through the ends of a random walk is the best one.
        offset = configuration["linewidth_hz"] / (2.0 * np.pi * (configuration["history"] - 1) * PATTERN_S)
    return walk + (4.0 * np.pi * passed_s) ** 2 * offset


def latest(data: Exchange, within: NDArray, scene: Scene) -> NDArray:
    """Coefficients (T, M, READ) by joint ML of the co-polarised links of each polarisation.

    within (T, 2, READ): of the ports of the first AAU, relative to its first port.
    """
    parts = [joint_ml(data.c[:, p::2, p::2], COMMON, SPACING_HZ, max_delay=2.0 * scene.max_delay_s) for p in (0, 1)]
    c = np.stack([part.trp(COMMON[_READ]) * within[:, [p]] for p, part in enumerate(parts)], axis=2)
    return c.reshape(len(c), -1, c.shape[-1])


def _frequencies(data: Sequence[Exchange], scene: Scene) -> NDArray:
    """f (T, AAUs) in Hz relative to the first, mean over the networks of both polarisations."""
    times = [each.time_s for each in data]
    found = []
    for p in (0, 1):
        c = np.stack([each.c[:, p::2, p::2] for each in data], axis=-2)
        links = link_frequency(Soundings(c, times, turns=2.0), linewidth_hz=2.0 * scene.linewidth_hz)
        found.append(node_frequencies(links).frequency_trp_hz)
    return np.mean(found, axis=0)


def _turns(first: NDArray, second: NDArray) -> NDArray:
    """Phasors (T, AAUs) by which coefficients turned between two soundings of the uplink (T, M, N, K)."""
    turns = [node_turns(phase_change(first[:, p::2, p::2], second[:, p::2, p::2])).turn_trp_rad for p in (0, 1)]
    total = np.exp(1j * np.array(turns)).sum(axis=0)
    return total / np.abs(total)


def loss_db(arrays: Mapping[str, np.ndarray], key: str, scheme: str) -> NDArray:
    """Loss (trials, delays) against held coefficients without delay, the first; of the predicted against exact ones.

    What the channel alone does to the SINR at each moment is taken out by that of exact coefficients.
    """
    lost = arrays[f"exact_{scheme}"] - arrays[f"{key}_{scheme}"]
    if key.startswith("predicted"):
        return lost
    return lost - (arrays[f"exact_{scheme}"] - arrays[f"held_{scheme}"])[:, :1]


def summarise(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """Loss against fresh coefficients, by scheme and by what is done about the age, with 95 % bands."""
    delays, trials = configuration["delays"], len(arrays["exact_joint"])
    loss = {(means, scheme): loss_db(arrays, means, scheme) for means in MEANS for scheme in SCHEMES}
    fresh = {scheme: metrics.mean_and_standard_error(arrays[f"exact_{scheme}"][:, 0] - arrays[f"held_{scheme}"][:, 0])
             for scheme in SCHEMES}  # fmt: skip
    by_scheme = [{"label": f"{label}, {arrays[f'held_{scheme}'][:, 0].mean():.1f} dB when fresh",
                  **mean_curve(loss["held", scheme])} for scheme, label in SCHEMES.items()]  # fmt: skip
    by_means = [{"label": label, "colour": 3 * (index > 0) + index, **mean_curve(loss[means, "joint"])}
                for index, (means, label) in enumerate(MEANS.items())]  # fmt: skip

    def predicted(means: str, scheme: str, colour: int) -> dict:
        values = loss_db(arrays, f"predicted_{means}", scheme).mean(axis=0)
        label = "by the oscillators alone, predicted" if colour == 0 else ""
        return {"label": label, "colour": colour, "values": values.tolist()}

    points = [{"label": f"paper, {SCHEMES[scheme]}", "x": list(values), "y": list(values.values()), "colour": colour}
              for (scheme, values), colour in zip(PAPER.items(), (0, 2), strict=True)]  # fmt: skip
    common = {"x_label": "age of the coefficients [TDD patterns]", "y_label": "loss of SINR [dB]", "x": delays}
    return {
        "title": "Four streams of four AAUs with two ports each: loss by the age of the calibration",
        "caption": f"{trials} trials, 95 % confidence bands; {configuration['power_dbm']:g} dBm per port, equal path "
                   f"loss, cross-polarised links {configuration['cross_polar_db']:g} dB weaker; oscillators of "
                   f"±{configuration['max_frequency_ppb'] * 26:.3g} Hz ({configuration['max_frequency_ppb']:g} ppb) "
                   f"and {configuration['linewidth_hz']:g} Hz linewidth; frequencies from the last "
                   f"{configuration['history']} exchanges. Fresh coefficients lose "
                   f"{', '.join(f'{mean:.2f} ± {error:.2f}' for mean, error in fresh.values())} dB against exact ones.",
        "columns": 2,
        "panels": [
            {"title": "coefficients held", "curves": by_scheme, "points": points, **common,
             "dashed": [predicted("held", scheme, index) for index, scheme in enumerate(SCHEMES)]},
            {"title": "joint precoding, coefficients moved on", "curves": by_means, **common,
             "dashed": [predicted("held", "joint", 0), predicted("carried", "joint", 4)]},
        ],
    }  # fmt: skip


@register(
    "bidirectional-21",
    title="Loss of four streams against the age of the calibration, and what moving the coefficients on wins back",
    summarise=summarise,
    plot="panels",
    defaults={"power_dbm": 30.0, "cross_polar_db": 20.0, "linewidth_hz": 0.22, "max_frequency_ppb": 0.28,
              "delays": list(range(9)), "history": 32},
    trials=200,
    block=20,
)
def ageing_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, np.ndarray]:
    """Mean SINR in dB (trials, delays) of each scheme: exact, by each of `MEANS`, and as the oscillators predict."""
    rngs, scene = generators(seeds), scene_of(configuration)
    used = [_USED_S + PATTERN_S * delay for delay in configuration["delays"]]
    begins = -PATTERN_S * np.arange(configuration["history"])[::-1]
    times = [*used, _USED_S, *begins, *(begins + 2 * SYMBOL_S)]
    drop = draw(scene, rngs, times)
    deviates = np.stack([rng.standard_normal((_DRAWS, 4)) for rng in rngs], axis=-1)
    data = [exchange(drop, rngs, COMMON, begin, second_s=begin + 2 * SYMBOL_S) for begin in begins.tolist()]
    ports = drop.coefficients(COMMON[_READ], 0.0)[0][:, :2]
    c, since = latest(data[-1], ports / ports[:, :1], scene), data[-1].time_s
    frequency = _frequencies(data, scene)
    beside = sound(drop, rngs, _SOUNDED, _USED_S, "uplink")
    out = {}
    for time_s in used:
        turned = {
            "held": np.ones_like(frequency),
            "carried": np.exp(4j * np.pi * frequency * (time_s - since)),
            "tracked": _turns(beside, sound(drop, rngs, _SOUNDED, time_s, "uplink")),
        }
        moved = {key: c * turn[:, drop.trp_of_port, None] for key, turn in turned.items()}
        for key, values in _sinrs(configuration, drop, moved, time_s, time_s - since, deviates).items():
            out.setdefault(key, []).append(values)
    return {key: np.stack(values, axis=-1) for key, values in out.items()}


def _sinrs(
    configuration: Mapping, drop: Drop, moved: Mapping[str, NDArray], time_s: float, passed_s: float, deviates: NDArray
) -> dict[str, NDArray]:
    """SINR in dB (T,) at one time of all schemes and means."""
    k = COMMON[_READ]
    uplink, downlink = drop.uplink(k, time_s), drop.downlink(k, time_s)
    exact = drop.coefficients(k, time_s)[0]
    out = {}
    for scheme in SCHEMES:
        parts = by_aau(exact / exact[:, :1], uplink, downlink, scheme)
        out[f"exact_{scheme}"] = sinr_db(parts.sum(axis=0))
        for means, c in moved.items():
            out[f"{means}_{scheme}"] = sinr_db(by_aau(c, uplink, downlink, scheme).sum(axis=0))
        for means in ("held", "carried"):
            variance = phase_variance(configuration, means, passed_s)
            out[f"predicted_{means}_{scheme}"] = erring(parts, deviates, variance)
    return out
