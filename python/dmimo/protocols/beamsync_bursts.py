# SPDX-License-Identifier: GPL-3.0-or-later
"""What leader and followers of a synchronisation compute from bursts: channels, directions, powers, phases."""

from collections.abc import Sequence

import numpy as np

from ..core import sounding
from ..core import synchronization as sync
from ..core.sync_burst import SubBand
from ..core.waveforms import SlotLayout

# Difference in rad between the phases of two sub-bands from which whole turns between them are in doubt.
MAX_BAND_DIFFERENCE_RAD = 2.5
SMALLEST_STD_HZ = 1e-9  # estimates without noise have none


def unit_power(samples: np.ndarray) -> np.ndarray:
    """Burst (ports, samples) scaled to a mean power of 1 over all ports together; silence stays."""
    power = np.sum(np.abs(samples) ** 2) / samples.shape[-1]
    return samples / np.sqrt(power) if power > 0 else samples


def sounded_channel(samples: np.ndarray, layout: SlotLayout) -> np.ndarray:
    """Channel (receiving ports, sending ports, subcarriers) from a received sounding, whatever the sender's carrier."""
    windows = [(layout.symbol, layout.useful_start(port)) for port in range(layout.num_ports)]
    parts = [sounding.prefix_correlation(samples, *window, layout.advance_samples) for window in windows]
    turn, energy = (sum(part[k].sum() for part in parts) for k in range(2))
    return np.stack([sounding.channel_estimate(sounding.hold_carrier(samples, *window, turn, energy), *window)
                     for window in windows], axis=1)


def sounded_direction(
    samples: np.ndarray, layout: SlotLayout, bands: Sequence[SubBand], num_subbands: int
) -> np.ndarray:
    """Dominant direction (ports,) of a received sounding in a part of the band.

    The channel is averaged over `num_subbands` groups of bins that see the same of it: noise would count in each.
    """
    h, symbol = sounded_channel(samples, layout), layout.symbol
    h = sounding.subband_average(sounding.advance(h, symbol, sounding.common_delay(h, symbol)), num_subbands)
    centres = symbol.bins.reshape(num_subbands, -1).mean(axis=1) / symbol.pilot_samples
    chosen = np.zeros(centres.size, bool)
    for band in bands:
        position = centres * band.num_samples
        inside = (position >= band.bins[0] - 0.5) & (position <= band.bins[-1] + 0.5)
        chosen |= inside if inside.any() else np.arange(centres.size) == np.argmin(np.abs(position - band.centre))
    return sync.dominant_direction(h[..., chosen].reshape(len(h), -1))


def phase_at_band_centre(
    estimates: Sequence[sync.CarrierEstimate], bands: Sequence[SubBand]
) -> tuple[sync.CarrierEstimate, float]:
    r"""Phase and offset from one sub-band about band centre or from two beside it, and the delay of c in samples.

    A sample clock that is off, or a delay between a node's chains, turns c over the band. With phases at the centres
    nu_1 and nu_2 (cycles per sample) the phase at 0 is

    .. math:: \varphi = \varphi_1 - \frac{\nu_1}{\nu_1 - \nu_2} (\varphi_1 - \varphi_2),

    and :math:`(\varphi_1 - \varphi_2) / (2 \pi (\nu_1 - \nu_2))` the delay of the follower's c (twice its clock's
    offset plus its loop delay) against the leader's; 0 where there is one band. Not trusted if one of the two is not,
    or they are so far apart that whole turns are in doubt.
    """
    if len(estimates) == 1:
        return estimates[0], 0.0
    one, two = estimates
    nu_one, nu_two = (band.centre / band.num_samples for band in bands)
    difference = float(np.angle(np.exp(1j * (one.phase_rad - two.phase_rad))))
    share = nu_one / (nu_one - nu_two)
    std = np.hypot((1 - share) * one.phase_std_rad, share * two.phase_std_rad)
    weights = np.maximum([each.frequency_std_hz for each in estimates], SMALLEST_STD_HZ) ** -2.0
    known = weights.sum() > 0
    frequency = float(weights @ [each.frequency_hz for each in estimates] / weights.sum()) if known else 0.0
    combined = sync.CarrierEstimate(
        np.angle(np.exp(1j * (one.phase_rad - share * difference))), std, frequency,
        weights.sum() ** -0.5 if known else np.inf,
        bool(one.trusted and two.trusted and abs(difference) < MAX_BAND_DIFFERENCE_RAD))
    return combined, difference / (2 * np.pi * (nu_one - nu_two))
