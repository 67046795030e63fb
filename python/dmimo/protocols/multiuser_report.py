# SPDX-License-Identifier: GPL-3.0-or-later
"""What one UE measures in a downlink to several: its stream's power, what leaks from the others, and its SINR."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from . import joint_transmission as joint
from .joint_transmission import MIN_DEVIATIONS, decibels


@dataclass(frozen=True)
class UserMeasurement:
    """Ratios of powers as one UE measured them.

    Parameters
    ----------
    sinr : float
        Of its stream's power to leakage and noise, the streams sent one after another.
    superposed : float
        The same where all streams were sent at once.
    snr : float
        Without the leakage.
    suppression : float
        Of its stream's power to the leakage.
    starts : tuple of float
        The SINR for each set of random node phases.
    report : dict
        All in dB.
    reasons : tuple of str
        Why not to trust them.
    """

    sinr: float
    superposed: float
    snr: float
    suppression: float
    starts: tuple[float, ...]
    report: dict[str, object]
    reasons: tuple[str, ...]


def measure_user(plan, user: int, g: np.ndarray, noise_var: float, variants: np.ndarray) -> UserMeasurement:
    """Measurement of a UE of a `multiuser.MultiuserPlan` from all slots of its downlink.

    Parameters
    ----------
    plan : MultiuserPlan
    user : int
        Number of the UE, and of its stream.
    g : ndarray (n, num_subcarriers)
        Channel measured in each slot.
    noise_var : float
        Of an entry.
    variants : ndarray (n,) int
        What was sent in each slot.
    """
    power = np.mean(np.abs(g) ** 2, axis=-1) - noise_var
    others = [s for s in range(len(plan.ues)) if s != user]

    def mean_power(variant):
        return float(power[variants == variant].mean())

    def sinr(own, leaks):
        return max(own, 0.0) / (sum(max(leak, 0.0) for leak in leaks) + noise_var)

    signal, leaks = mean_power(user), {s: mean_power(s) for s in others}
    starts = tuple(sinr(mean_power(plan.start(k, user)), [mean_power(plan.start(k, s)) for s in others])
                   for k in range(plan.random_starts))
    superposed = _superposed_sinr(g[variants == user], g[variants == plan.superposed] * plan.symbols()[user], noise_var)
    leakage = sum(leaks.values())
    report = {
        "sinr_db": decibels(sinr(signal, leaks.values())),
        "superposed_sinr_db": decibels(superposed),
        "snr_db": decibels(signal, noise_var),
        "signal_db": decibels(signal),
        "noise_db": decibels(noise_var),
        "leakage_db": {plan.ues[s]: decibels(leak) for s, leak in leaks.items()},
        "suppression_db": decibels(signal, leakage),
        # Leakage that is no more than the deviation of its measurement by noise.
        "leakage_floor_db": decibels(noise_var * np.sqrt(max(len(others), 1) / (plan.repeats * g.shape[-1]))),
    }
    if starts:
        report["uncalibrated_sinr_db"] = decibels(float(np.mean(starts)))
    return UserMeasurement(sinr(signal, leaks.values()), superposed, max(signal, 0.0) / noise_var,
                           signal / leakage if leakage > 0 else np.inf, starts, report,
                           _doubts(plan, user, power[variants == user], leakage, noise_var))


def _superposed_sinr(alone: np.ndarray, together: np.ndarray, noise_var: float) -> float:
    """SINR of a stream whose channel was measured `alone` in what was received of all streams `together`.

    Both are (repeats, num_subcarriers), the stream's own symbols taken out. What is left of a slot after the best
    multiple of the channel is taken off is interference and noise; the noise of the channel itself is not counted.
    """
    channel = joint.combine_repeats(alone[:, None])[0]
    noise = noise_var / len(alone)
    gain = together @ channel.conj() / np.sum(np.abs(channel) ** 2)
    degrees = (channel.size - 1) / channel.size  # the gain is fitted
    rest = np.mean(np.abs(together - gain[:, None] * channel) ** 2) / degrees - np.mean(np.abs(gain) ** 2) * noise
    signal = np.mean(np.abs(gain) ** 2) * (np.mean(np.abs(channel) ** 2) - noise)
    return max(float(signal), 0.0) / max(float(rest), np.finfo(float).tiny)


def _doubts(plan, user: int, power: np.ndarray, leakage: float, noise_var: float) -> tuple[str, ...]:
    """Why not to trust a UE's measurement, from the powers of its stream (repeats,) and what leaks into it."""
    ue, num_subcarriers, signal = plan.ues[user], plan.layout.symbol.num_subcarriers, float(power.mean())
    if not signal > MIN_DEVIATIONS * noise_var / np.sqrt(num_subcarriers * power.size):
        return (f"node {ue}: does not receive its stream",)
    reasons = []
    if joint.is_unsteady(power, noise_var, num_subcarriers):
        reasons.append(f"node {ue}: the power of its stream more than halves between repeats")
    if plan.min_suppression_db is not None:
        entries = num_subcarriers * power.size
        deviation = np.sqrt((2 * max(leakage, 0.0) * noise_var + (len(plan.ues) - 1) * noise_var**2) / entries)
        if leakage - MIN_DEVIATIONS * deviation > signal * 10 ** (-plan.min_suppression_db / 10):
            reasons.append(f"node {ue}: other streams reach it only {decibels(signal, leakage):.1f} dB below its own, "
                           f"less than {plan.min_suppression_db:g} dB: calibration does not hold")
    return tuple(reasons)


def spectral_efficiency(sinr: Sequence[float]) -> float:
    """Sum over UEs of log2(1 + SINR), bit/s/Hz, the SINR that of the mean powers over the band."""
    return float(np.sum(np.log2(1 + np.asarray(sinr))))


def predicted_suppression_db(h_dl: np.ndarray, weights: np.ndarray, error: np.ndarray) -> list[float | None]:
    r"""Suppression that each UE would measure if nothing were wrong but the noise in the channels.

    Of weights for the estimate :math:`\hat h = h + e` a UE receives
    :math:`h_u w_s = \hat h_u w_s - e_u w_s` of a stream s; an error of the calibration comes on top.

    Parameters
    ----------
    h_dl : ndarray (num_subcarriers, users, ports)
    weights : ndarray (num_subcarriers, ports, users)
    error : ndarray (num_subcarriers, ports)
        Variance of e.
    """
    received = np.abs(h_dl @ weights) ** 2  # (num_subcarriers, users, streams)
    noise = np.einsum("kp,kps->s", error, np.abs(weights) ** 2) / len(h_dl)
    mean, users = received.mean(axis=0), range(h_dl.shape[1])
    return [decibels(mean[u, u], sum(mean[u, s] + noise[s] for s in users if s != u)) for u in users]
