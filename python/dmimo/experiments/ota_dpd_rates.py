# SPDX-License-Identifier: GPL-3.0-or-later
r"""Figure 2 of the over-the-air DPD paper: downlink rates with zero-forcing, by calibration.

Read from the paper: i.i.d. Rayleigh fading to single-antenna UEs, perfect predistorters, an average SNR of 10 dB at
the UEs; perfect CSI, no calibration, and the ratio at some reference SNRs. The numbers of antennas and UEs and the
calibration pilots are lost: 4 x 25, 10 and 1 here. Chosen:

* The uplink channels are known, so that calibration is the only error; h_dl = t h, h_ul = h r.
* Each UE's beam has the same power p, whatever the calibration: weights are the columns of `precoding.zero_forcing`
  of the estimated downlink, each of unit norm, and :math:`p = 10^{SNR / 10} / (M - K + 1)` at unit noise variance.
  With perfect CSI and equal |t| the gain of a beam has the mean M - K + 1, and the mean SNR is the one wanted.
* The rate of UE k is :math:`\log_2(1 + p |h_k w_k|^2 / (1 + p \sum_{j \ne k} |h_k w_j|^2))`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..core import metrics
from ..core.mutual_coupling import all_pairs, best_reference, ratio
from ..core.precoding import downlink_channel, zero_forcing
from .ota_dpd_model import ARRAY, SNR_LABEL, CoupledArray, assumptions, complex_normal, draw, place
from .registry import register
from .trials import generators, stack, steps

METHODS = {"corner": "ratio to the first antenna, a corner", "best": "ratio to the best reference",
           "pairs": "all pairs"}  # fmt: skip
# Rates at which distributions are read, and the axis of losses in percent.
_POINTS, _LOSS_LIMITS = 61, (1e-3, 150.0)


def rates(channel: NDArray, weights: NDArray, power: float) -> NDArray:
    """Rate (..., K) in bit/s/Hz of each UE for channels (..., K, M), unit-norm weights (..., M, K), unit noise."""
    gain = power * np.abs(channel @ weights) ** 2
    wanted = np.einsum("...kk->...k", gain)
    return np.log2(1.0 + wanted / (1.0 + gain.sum(axis=-1) - wanted))


def loss(arrays: Mapping[str, np.ndarray], method: str) -> metrics.Interval:
    """Share of the mean rate with perfect CSI that a method loses at each SNR, paired over trials, with 95 % limits."""
    perfect = arrays["perfect"].mean(axis=(-2, -1))[:, None]
    found = arrays[method].mean(axis=(-2, -1))
    share = metrics.ratio_of_means_interval(found, np.broadcast_to(perfect, found.shape))
    return metrics.Interval(1.0 - share.value, 1.0 - share.upper, 1.0 - share.lower)


def summarise(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """Distribution of the UEs' rates at `at_db`, and the loss of mean rate against reference SNR, with 95 % bands."""
    first, at = configuration["at_db"][0], _places(configuration)[0]
    lost = loss(arrays, "pairs")
    words = f"{100 * lost.value[at]:.2g} % ({100 * lost.lower[at]:.2g} to {100 * lost.upper[at]:.2g})"
    return {
        "title": f"Downlink rates with zero-forcing to {configuration['num_users']} UEs, by calibration",
        "caption": f"{len(arrays['perfect'])} trials of {configuration['num_channels']} Rayleigh channels, 95 % bands; "
                   f"{configuration['snr_db_at_ue']:g} dB mean SNR at the UEs, {configuration['cal_pilots']} "
                   f"calibration pilot{'s' * (configuration['cal_pilots'] > 1)}, perfect predistorters. All pairs lose "
                   f"{words} of the rate with perfect CSI at {first:g} dB; {assumptions(configuration)}."
                   .replace(" -", " \N{MINUS SIGN}"),
        "columns": 2,
        "panels": [_distributions(configuration, arrays), _losses(configuration, arrays)],
    }  # fmt: skip


def _distributions(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    grid = np.linspace(0.0, 1.02 * np.max(arrays["perfect"]), _POINTS)
    at = _places(configuration)
    shown = [*(("corner", k) for k in at), ("pairs", at[0])]
    labels = [f"{METHODS[key]}, {configuration['snr_db'][k]:g} dB".replace(" -", " \N{MINUS SIGN}") for key, k in shown]
    curves = [_share_below(label, arrays[key][:, k], grid) for label, (key, k) in zip(labels, shown, strict=True)]
    dashed = [{"label": label, "values": _share_below("", arrays[key], grid)["mean"]}
              for key, label in (("perfect", "perfect CSI"), ("uncalibrated", "not calibrated"))]  # fmt: skip
    return {"title": "distribution, by reference SNR", "x_label": "rate of a UE [bit/s/Hz]",
            "y_label": "share of UEs below", "x": grid.tolist(), "y_limits": [0.0, 1.0], "curves": curves,
            "dashed": dashed}  # fmt: skip


def _places(configuration: Mapping) -> list[int]:
    """Where the reference SNRs of the distributions stand, the first of them the one of all pairs."""
    return [place({**configuration, "at_db": snr_db}, "at_db", "snr_db") for snr_db in configuration["at_db"]]


def _share_below(label: str, values: NDArray, grid: NDArray) -> dict:
    """Share of rates (trials, channels, UEs) below each of a grid, with the band of independent trials."""
    below = (values.reshape(len(values), -1, 1) <= grid).mean(axis=1)
    limits = (part.tolist() for part in metrics.mean_interval(below))
    return {"label": label, **dict(zip(("mean", "low", "high"), limits, strict=True))}


def _losses(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """Losses in percent; on the logarithmic axis what is lost by chance alone, or gained, is below its end."""
    curves = []
    for key, label in METHODS.items():
        limits = (np.maximum(100.0 * part, 0.1 * _LOSS_LIMITS[0]).tolist() for part in loss(arrays, key))
        curves.append({"label": label, **dict(zip(("mean", "low", "high"), limits, strict=True))})
    nothing = 100.0 * (1.0 - arrays["uncalibrated"].mean() / arrays["perfect"].mean())
    dashed = [{"label": label, "values": [float(value)] * len(configuration["snr_db"])}
              for label, value in (("1 %", 1.0), ("not calibrated", nothing))]  # fmt: skip
    return {"title": "loss of mean rate against perfect CSI", "x_label": SNR_LABEL, "y_label": "loss of rate [%]",
            "x": list(configuration["snr_db"]), "y_scale": "log", "y_limits": list(_LOSS_LIMITS), "curves": curves,
            "dashed": dashed}  # fmt: skip


@register(
    "ota-dpd-2",
    title="Downlink rates with zero-forcing, calibrated from mutual coupling: ratio, all pairs, perfect CSI",
    summarise=summarise,
    plot="panels",
    defaults={**ARRAY, "amplifier": "third_order", "snr_db": steps(-20.0, 30.0, 5.0), "at_db": [-10.0, 0.0, 10.0],
              "cal_pilots": 1, "num_users": 10, "snr_db_at_ue": 10.0, "num_channels": 5},
    trials=200,
    block=10,
)  # fmt: skip
def trial_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, np.ndarray]:
    """Rates of each UE: (trials, SNRs, channels, UEs) by each of `METHODS`, without SNRs for the two references.

    The noise of a trial is the same at each SNR but for its scale, and all methods see the same channels. Gains of
    links are drawn with the variance that `mutual_coupling.link_gains` has for pilots of constant modulus.
    """
    _places(configuration)
    return stack([_trial(configuration, rng) for rng in generators(seeds)], axis=0)


def _trial(configuration: Mapping, rng: np.random.Generator) -> dict[str, NDArray]:
    array = draw(configuration, rng)
    num_ports, num_users = len(array.t), configuration["num_users"]
    std = np.array([array.noise_std(snr_db) for snr_db in configuration["snr_db"]])
    std = std / np.sqrt(configuration["cal_pilots"])
    measured = array.gains + std[:, None, None] * complex_normal(rng, num_ports, num_ports)
    measured *= ~np.eye(num_ports, dtype=bool)
    found = {"corner": ratio(measured, 0), "best": ratio(measured, int(best_reference(array.gains))),
             "pairs": all_pairs(measured), "perfect": array.c, "uncalibrated": np.ones(num_ports)}  # fmt: skip
    h = complex_normal(rng, configuration["num_channels"], num_ports, num_users)
    power = 10.0 ** (configuration["snr_db_at_ue"] / 10.0) / (num_ports - num_users + 1)
    return {key: _rates_with(array, c, h, power) for key, c in found.items()}


def _rates_with(array: CoupledArray, c_hat: NDArray, h: NDArray, power: float) -> NDArray:
    """Rates (..., channels, K) with estimates (..., M), for channels (channels, M, K) without the chains."""
    uplink = array.r[:, None] * h
    downlink = np.swapaxes(array.t[:, None] * h, -2, -1)
    weights = zero_forcing(downlink_channel(c_hat[..., None, :], uplink))
    return rates(downlink, weights / np.linalg.norm(weights, axis=-2, keepdims=True), power)
