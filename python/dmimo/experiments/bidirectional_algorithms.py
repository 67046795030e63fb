# SPDX-License-Identifier: GPL-3.0-or-later
"""Calibration algorithms on the same data of a bidirectional exchange, and what joint transmission makes of them.

Everything is seen from the side that calibrates, called TRPs; for collaborating UEs take `Drop.swapped`.
"""

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..core import metrics, precoding
from ..core.bidirectional_baselines import per_subcarrier
from .bidirectional_exchange import Exchange
from .bidirectional_model import Scene

# Subcarriers of figures that compare algorithms: 49 on a comb of 32 across the band, as each link has in table I. All
# links have the same ones, which the algorithms without a model of the delay need.
COMMON = np.arange(-24, 25) * 32

LABELS = {
    "perfect": "perfect",
    "joint_ml": "joint ML, weighted",
    "ml_tls": "ML-TLS",
    "tracked_wideband": "ML-TLS + wideband tracking",
    "tls": "TLS",
    "argos_mean": "Argos-mean",
    "spanning_tree": "spanning tree",
    "argos": "Argos",
    "tracked_all": "ML-TLS + tracking per subcarrier, all UEs",
    "tracked_one": "ML-TLS + tracking per subcarrier, one UE",
    "uncalibrated": "uncalibrated",
}
BASELINES = ("tls", "argos_mean", "spanning_tree", "argos")
# In the order of the figures.
CURVES = ("perfect", "joint_ml", "ml_tls", "tracked_wideband", *BASELINES, "tracked_all", "tracked_one", "uncalibrated")


def baseline(data: Exchange, algorithm: str) -> NDArray:
    """Coefficients (T, M, K) on `COMMON` from an exchange there, by one of `BASELINES`.

    These take both channels in one place, the answered one fed back without loss, and work on each subcarrier by
    itself. The tree's links are chosen by their measured SNR.

    References
    ----------
    Bidirectional calibration (CARS), section II-D.
    """
    snr = link_snr(data.plain, data.heard) if algorithm == "spanning_tree" else None
    return per_subcarrier(data.plain, data.heard, algorithm, link_snr=snr)[0]


def link_snr(g: NDArray, h: NDArray) -> NDArray:
    """SNR (..., M, N) of the quotient of two measured channels in units of the noise, averaged over subcarriers."""
    power_g, power_h = np.abs(g) ** 2, np.abs(h) ** 2
    return np.mean(power_g * power_h / (power_g + power_h), axis=-1)


def downlink_weights(c: ArrayLike, uplink: ArrayLike) -> NDArray:
    r"""Weights (T, K, M, U) of U streams from coefficients (T, M, K) and uplink channels (T, M, U, K).

    No port sends more than its own full power, 1. One stream: every port sends all of it with the phase
    :math:`-\arg(c_m g_m)`. Several: zero-forcing on :math:`c_m g_{mu}`, all users at one amplitude, scaled until the
    most loaded port sends 1 on that subcarrier.
    """
    c, uplink = np.asarray(c), np.asarray(uplink)
    h = np.moveaxis(c[..., None, :] * uplink, -1, 1)
    if h.shape[-1] == 1:
        return np.conj(h) / np.abs(h)
    return precoding.zero_forcing(np.swapaxes(h, -2, -1), power="port") * np.sqrt(h.shape[-2])


def stream_powers(c: ArrayLike, uplink: ArrayLike, downlink: ArrayLike) -> tuple[NDArray, NDArray]:
    """Signal, and interference with noise, at each of U users, both (T, K, U), in units of the noise."""
    received = np.swapaxes(np.moveaxis(np.asarray(downlink), -1, 1), -2, -1) @ downlink_weights(c, uplink)
    power = np.abs(received) ** 2
    signal = np.diagonal(power, axis1=-2, axis2=-1)
    return signal, power.sum(axis=-1) - signal + 1.0


def spectral_efficiency(c: ArrayLike, uplink: ArrayLike, downlink: ArrayLike) -> NDArray:
    """Sum over users of log2(1 + SINR), mean over subcarriers, (T,) in bit/s/Hz; arguments as `stream_powers`."""
    signal, other = stream_powers(c, uplink, downlink)
    return np.log2(1.0 + signal / other).sum(axis=-1).mean(axis=-1)


def sinr_db(c: ArrayLike, uplink: ArrayLike, downlink: ArrayLike) -> NDArray:
    """Ratio of the mean powers over the band at each user, (T, U) in dB; arguments as `stream_powers`."""
    signal, other = stream_powers(c, uplink, downlink)
    return 10.0 * np.log10(signal.mean(axis=1) / other.mean(axis=1))


def mean_curve(values: NDArray) -> dict[str, list[float]]:
    """Mean over trials (T, ...) with its 95 % band."""
    mean, low, high = metrics.mean_interval(values, axis=0)
    return dict(zip(("mean", "low", "high"), (np.atleast_1d(x).tolist() for x in (mean, low, high)), strict=True))


def distribution(algorithm: str, values: NDArray, *, points: int = 101) -> dict:
    """What `plotting.distributions` draws of one of `LABELS`: quantiles of trials (T,), their mean and its band."""
    mean, low, high = (float(part) for part in metrics.mean_interval(values))
    quantiles = np.quantile(values, np.linspace(0.0, 1.0, points)).tolist()
    role = {"perfect": "reference", "uncalibrated": "without"}.get(algorithm)
    return {"label": LABELS[algorithm], "quantiles": quantiles, "mean": mean, "low": low, "high": high, "role": role}


def difference(arrays: Mapping[str, NDArray], better: str, worse: str) -> tuple[float, float]:
    """Mean over trials of one array less another of the same trials, and its standard error."""
    mean, error = metrics.mean_and_standard_error(arrays[better] - arrays[worse])
    return float(mean), float(error)


def scene_words(scene: Scene) -> str:
    """The parameters that a caption states."""
    sides = (("TRP", scene.num_trp, scene.trp_ports), ("UE", scene.num_ue, scene.ue_ports))
    words = [f"{num} {name}{'s' * (num > 1)} of {ports} port{'s' * (ports > 1)}" for name, num, ports in sides]
    words += [f"{scene.distance_m:g} m", f"{scene.power_dbm:g} dBm per port"]
    if max(scene.trp_ports, scene.ue_ports) > 1:
        words.append(f"cross-polar discrimination {scene.cross_polar_db:g} dB")
    if scene.num_scattered:
        words.append(f"{scene.num_scattered} scattered paths" + ("" if scene.line_of_sight else ", no line of sight"))
    if scene.shadowing_db:
        words.append(f"shadowing {scene.shadowing_db:g} dB")
    return ", ".join(words)
