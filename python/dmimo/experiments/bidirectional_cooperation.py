# SPDX-License-Identifier: GPL-3.0-or-later
r"""One stream through cooperating ports: downlink of TRPs and uplink of UEs, calibrated at the served node or another.

Read from the paper (section V-C, fig. 15 and 16): coefficients of all ports from one port of UE 1 or of UE 2, then the
SNR of a stream to UE 1; about 5 dB per doubling of the ports (ideally 6), slightly less with the coefficients of UE 2,
no steady gain without; for two UEs 4.6 dB from two to four ports. Chosen, since the paper leaves it open:

* Every port is an AAU of its own with an oscillator and a clock of table I, 30 ppb and 10 ns; all links have the path
  loss of 300 m; every port sends at its own full power, so only phases are precoded and the ideal is 20 log10 of the
  number of ports.
* In one TDD pattern: CARS exchange on all subcarriers, two soundings of the served direction's reverse half a pattern
  apart, on a comb of 4, from whose phases each link's frequency follows (unambiguous to 1.6 kHz), and the
  transmission right after. The channel at the second sounding is known exactly; the coefficients move to the midpoint
  of that sounding and the transmission by the estimated frequencies.
* From the links of one node alone ML-TLS and joint ML are the same: there are as many links as unknowns.
* `mismatch_db`: what the antennas within an AAU leave of eq. (5) to (8), a factor 1 + CN(0, .) of each link and
  direction. A node's own coefficients contain it, another's contain a different one: that is what these cost.

The dashed losses follow from the bounds of the phases; the answer 1 / H (`cars.cars_precoding`) has a sixth more
variance than the bound at this SNR.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core import metrics
from ..core.bidirectional import joint_ml, ml_tls
from ..core.bidirectional_bounds import delay_crlb, element_variance
from ..core.link_frequency import LinkFrequency, Soundings, link_frequency
from ..core.node_frequency import extrapolated, node_frequencies
from ..core.ofdm import CombMapping, OfdmGrid
from .bidirectional_exchange import exchange, sound
from .bidirectional_model import PATTERN_S, SPACING_HZ, SYMBOL_S, Drop, Scene, draw, noise
from .registry import register
from .trials import generators

# The subcarriers on which the received SNR is read.
READ = np.arange(-792, 792, 33)
# The comb of the one-way soundings, the times in s of them and of the transmission, and to which coefficients belong.
SOUNDED = np.arange(-792, 792, 4)
FIRST_S, SECOND_S, SENT_S = 5 * SYMBOL_S, 5 * SYMBOL_S + 0.5 * PATTERN_S, 45 * SYMBOL_S
USED_S = 0.5 * (SECOND_S + SENT_S)
METHODS = {
    "perfect": "perfect coefficients",
    "own": "ML-TLS, measured at the served {node}",
    "own_joint": "joint ML, measured at the served {node}",
    "other": "ML-TLS, measured at another {node}",
    "both": "joint ML, measured at both {node}s",
    "none": "uncalibrated",
}
_SERVED = {"TRP": "UE", "UE": "TRP"}


class Channels(NamedTuple):
    """Links (T, M, 2, K) of the cooperating ports to the served node and another.

    forward, at the transmission; reverse, at the second sounding.
    """

    forward: NDArray
    reverse: NDArray


def networks(configuration: Mapping, rngs: Sequence[np.random.Generator]) -> Drop:
    """One network per trial with the cooperating ports in the place of the TRPs, and two nodes in that of the UEs.

    Nothing in the method tells TRPs from UEs: collaborating UEs hear DL-CARS and CSI-RS as TRPs hear UL-CARS and SRS.
    """
    num, drop_ues = max(configuration["num_ports"]), configuration["cooperating"] == "UE"
    scene = Scene(num_trp=2 if drop_ues else num, num_ue=num if drop_ues else 2, equal_path_loss=True,
                  power_dbm=configuration["power_dbm"])  # fmt: skip
    drop = draw(scene, rngs)
    return drop.swapped() if drop_ues else drop


def link_frequencies(drop: Drop, rngs: Sequence[np.random.Generator]) -> LinkFrequency:
    """Frequency offsets of the links (T, M, 2) from two soundings, half a pattern apart, heard by the TRPs' side."""
    heard = [sound(drop, rngs, SOUNDED, time_s, "uplink") for time_s in (FIRST_S, SECOND_S)]
    return link_frequency(Soundings(np.stack(heard, axis=-2), [FIRST_S, SECOND_S]))


def estimates(c: NDArray, k: NDArray, time_s: float, frequencies: LinkFrequency) -> dict[str, NDArray]:
    """Coefficients (T, M, READ) by each method at the midpoint of the second sounding and the transmission.

    c (T, M, 2, K) of time_s on the subcarriers k (M, 2, K).
    """

    def moved(calibrator, ends: list[int]) -> NDArray:
        result = calibrator(c[:, :, ends], k[:, ends], SPACING_HZ, max_delay=2.0 * Scene().max_delay_s, time_s=time_s)
        nodes = node_frequencies(LinkFrequency(*(field[..., ends] for field in frequencies)))
        return extrapolated(result, nodes, USED_S)[0].trp(READ)

    return {"own": moved(ml_tls, [0]), "own_joint": moved(joint_ml, [0]), "other": moved(ml_tls, [1]),
            "both": moved(joint_ml, [0, 1])}  # fmt: skip


def received_snr(channels: Channels, c: NDArray | float, ports: int) -> NDArray:
    """SNR (T,), mean over subcarriers, at the served node: unit-modulus weights ``conj(c reverse)`` of each port."""
    forecast = (c * channels.reverse[:, :, 0])[:, :ports]
    weights = forecast.conj() / np.abs(forecast)
    return np.mean(np.abs(np.sum(channels.forward[:, :ports, 0] * weights, axis=1)) ** 2, axis=-1)


def predicted_variance(configuration: Mapping) -> dict[str, NDArray]:
    """Phase variance (READ,) of a port's coefficient by the bounds of C, of the soundings, and the mismatch."""
    rho = 10.0 ** (0.1 * snr_per_element_db(configuration))
    k = _subcarriers(configuration)[0, 0]
    crlb = delay_crlb(k, SPACING_HZ, element_variance(rho, rho))
    coefficient = crlb.centroid_phase_std_rad**2
    coefficient = coefficient + (2.0 * np.pi * SPACING_HZ * (READ - k.mean()) * crlb.delay_std_s) ** 2
    # Two soundings of 1 / (2 K rho) each; c turns twice, over the time from the exchange to its use.
    passed = (USED_S - SYMBOL_S) / (SECOND_S - FIRST_S)
    frequency = (2.0 * passed) ** 2 * element_variance(rho, rho) / (2.0 * len(SOUNDED))
    one, link = coefficient + frequency, 10.0 ** (configuration["mismatch_db"] / 10.0)
    # Phase variance link / 2 in each direction, of two nodes' links; half of the difference where both are averaged.
    return {"own": one, "other": one + 2.0 * link, "both": 0.5 * (one + link)}


def predicted_loss_db(variance: NDArray, ports: int) -> float:
    """Loss of P equal ports with independent phase errors, ``e^{-s} + (1 - e^{-s}) / P`` over the band."""
    coherent = np.exp(-variance)
    return float(-10.0 * np.log10(np.mean(coherent + (1.0 - coherent) / ports)))


def snr_per_element_db(configuration: Mapping) -> float:
    """SNR per resource element of one port over 300 m."""
    scene = Scene(power_dbm=configuration["power_dbm"])
    return float(scene.snr_db_at_0_db_gain - scene.path_loss_db(scene.distance_m))


def _subcarriers(configuration: Mapping) -> NDArray:
    """(M, 2, K) that carry the links' coefficients: all active ones."""
    grid = OfdmGrid()
    return CombMapping.filling(grid, max(configuration["num_ports"]), 2).subcarriers(grid)


def summarise(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """SNR against the number of ports, and what each method loses against perfect coefficients, with 95 % bands."""
    ports, cooperating = configuration["num_ports"], configuration["cooperating"]
    several = [p for p in ports if p > 1]
    trials = len(arrays["perfect"])
    labels = {key: label.format(node=_SERVED[cooperating]) for key, label in METHODS.items()}
    first = float(np.mean(arrays["perfect"][:, 0]))
    snr = [_curve(labels[key], index, arrays[key]) for index, key in enumerate(METHODS)
           if key not in ("own_joint", "both")]  # fmt: skip
    losses = [_curve(labels[key], index, (arrays["perfect"] - arrays[key])[:, len(ports) - len(several):])
              for index, key in enumerate(METHODS) if key not in ("perfect", "none")]  # fmt: skip
    variance = predicted_variance(configuration)
    dashed = [{"label": "" if key != "own" else "predicted from the bounds", "colour": list(METHODS).index(key),
               "values": [predicted_loss_db(variance[key], p) for p in several]} for key in variance]  # fmt: skip
    direction = "downlink" if cooperating == "TRP" else "uplink"
    doublings = np.diff(arrays["perfect"].mean(axis=0)) / np.diff(np.log2(ports))
    return {
        "title": f"One {direction} stream through cooperating {cooperating} ports, each at its own full power",
        "caption": f"{trials} trials, 95 % confidence bands; {configuration['power_dbm']:g} dBm per port, "
                   f"{snr_per_element_db(configuration):.1f} dB per resource element and link, equal path loss, "
                   f"30 ppb, 10 ns; mismatch within an AAU {configuration['mismatch_db']:g} dB. Perfect coefficients: "
                   f"{', '.join(f'{d:.2f}' for d in doublings)} dB per doubling.",
        "columns": 2,
        "panels": [
            {"title": "received SNR", "x_label": f"cooperating {cooperating} ports", "y_label": "SNR [dB]", "x": ports,
             "x_scale": "log", "x_ticks": ports, "curves": snr,
             "dashed": [{"label": "6.02 dB per doubling", "values": (first + 20 * np.log10(ports)).tolist()}]},
            {"title": "loss against perfect coefficients", "x_label": f"cooperating {cooperating} ports",
             "y_label": "loss [dB]", "x": several, "x_scale": "log", "x_ticks": several, "y_scale": "log",
             "curves": losses, "dashed": dashed},
        ],
    }  # fmt: skip


def _curve(label: str, colour: int, values: NDArray) -> dict:
    limits = (part.tolist() for part in metrics.mean_interval(values))
    return {"label": label, "colour": colour, **dict(zip(("mean", "low", "high"), limits, strict=True))}


def cooperation_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, np.ndarray]:
    """Received SNR in dB (trials, numbers of ports) by each of `METHODS`."""
    rngs = generators(seeds)
    drop = networks(configuration, rngs)
    mismatch = 10.0 ** (configuration["mismatch_db"] / 20.0) * noise(rngs, (2, *drop.link_snr.shape[1:]))
    up, down = np.moveaxis(1.0 + mismatch, 1, 0)[..., None]
    channels = Channels(drop.downlink(READ, SENT_S) * down, drop.uplink(READ, SECOND_S) * up)
    k = _subcarriers(configuration)
    read = exchange(drop, rngs, k, 0.0)
    known = estimates(read.c * (up / down), k, read.time_s, link_frequencies(drop, rngs))
    # What turns the reverse channel at its time into the forward one at its own; and nothing at all.
    known |= {"perfect": channels.forward[:, :, 0] / channels.reverse[:, :, 0], "none": 1.0}
    snr = {key: np.stack([received_snr(channels, known[key], p) for p in configuration["num_ports"]], axis=-1)
           for key in METHODS}  # fmt: skip
    return {key: 10.0 * np.log10(value) for key, value in snr.items()}


for _name, _cooperating, _num_ports, _title in (
    ("bidirectional-15", "TRP", [1, 2, 4, 8], "Downlink SNR of one stream against the number of cooperating TRP ports"),
    ("bidirectional-16", "UE", [1, 2, 4], "Uplink SNR of one stream against the number of cooperating UE ports"),
):
    register(_name, title=_title, summarise=summarise, plot="panels", trials=400, block=25,
             defaults={"cooperating": _cooperating, "num_ports": _num_ports, "power_dbm": 30.0, "mismatch_db": -25.0})(
        cooperation_chunk)  # fmt: skip
