# SPDX-License-Identifier: GPL-3.0-or-later
"""Carrier frequency offset from several bursts: coarse within each, fine from one to the next."""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .frequency import as_arrays, autocorrelation, check_max_cycles, detection_threshold, periodogram_peak

# Bursts are joined over a gap if one deviation turns them by at most a sixteenth: then the next maximum is eight away.
_SAFE_TURNS = 1.0 / 16.0
# A finer estimate further than this many deviations from the coarse one is another maximum.
_GATE = 6.0
_ROUNDING = 1e-9  # cycles over a burst: estimates without noise have no deviation
_NEWTON_STEPS = 12
# Variance of a phase in rad^2 from which noise may have turned one burst against the next.
_LOST_PHASE_VAR = 0.1


class FrequencyEstimate(NamedTuple):
    """Offset in Hz, its predicted standard deviation, and whether both are to be believed, each (...)."""

    frequency_hz: NDArray
    frequency_std_hz: NDArray
    trusted: NDArray


def frequency_estimate(
    y: ArrayLike, x: ArrayLike, starts: ArrayLike, sample_interval: float, *, max_offset: float | None = None,
    linewidth_hz: float = 0.0,
) -> FrequencyEstimate:
    r"""Offset, its predicted standard deviation and whether it is trusted, from bursts with gaps between them.

    Each burst by itself is unambiguous and coarse; the phases from burst to burst are fine and ambiguous. The first
    estimate takes the bursts' gains as unknown and unrelated (their periodograms added). Then bursts are joined into
    coherent groups, :math:`J = \sum_g |\sum_{k \in g} Y_k D^* x^*|^2`, whose span grows as long as the deviation
    reached so far leaves no doubt about the whole turns over it, each time with the maximum of the new J. With
    everything joined this is the maximum-likelihood estimate with one gain vector for all bursts; if a gap is too
    long for that, the estimate and its deviation are those of the groups reached.

    Parameters
    ----------
    y : (..., K, M, N) complex, K bursts received by M antennas.
    x : (N,) or (K, N), what was sent.
    starts : (K,) int, absolute sample of each burst's first, increasing; the oscillators run on between.
    sample_interval : T in seconds.
    max_offset : as in `frequency_offset`.
    linewidth_hz : sum of the linewidths of the two oscillators; their phase noise adds 2.4 pi linewidth / duration to
        the variance of the slope of a phase fitted over a duration.

    Returns
    -------
    FrequencyEstimate
        Each (...). Deviations follow the bound (35) with the noise and gains found, and what the unknown gains cost
        beyond it at low SNR. Not trusted: bursts that may be noise (`FALSE_ALARM`), that are not finite (nan), whose
        maximum is at the limit of the search, or that have a larger one beyond it, or that disagree with what they say
        together (the waveform arrives distorted, the same in each). A carrier beyond
        ``1 / (2 T)`` has an alias inside, which nothing here can tell.

    ValueError as `frequency_offset`, and for starts that overlap or do not fit.
    """
    y = np.asarray(y)
    if y.ndim < 3 or 0 in y.shape[-3:]:
        raise ValueError(f"y has shape {y.shape}; it must be (..., K, M, N), none of them 0")
    y, x = as_arrays(y, x)
    num_bursts, _, num_samples = y.shape[-3:]
    if x.shape not in ((num_samples,), (num_bursts, num_samples)):
        raise ValueError(f"x has shape {x.shape}; it must be ({num_samples},) or ({num_bursts}, {num_samples})")
    starts = np.asarray(starts)
    if starts.shape != (num_bursts,) or not np.all(np.diff(starts) >= num_samples):
        raise ValueError(f"starts = {starts} must be {num_bursts} samples, each {num_samples} or more after the last")
    max_cycles = check_max_cycles(max_offset, sample_interval)
    x = np.broadcast_to(x, (num_bursts, num_samples))
    flat = y.reshape(-1, *y.shape[-3:])
    with np.errstate(invalid="ignore", over="ignore"):
        items = [_estimate(item, x, starts - starts[0], max_cycles, linewidth_hz * sample_interval) for item in flat]
    cycles, std, trusted = (np.array(values).reshape(y.shape[:-3]) for values in zip(*items, strict=True))
    return FrequencyEstimate(cycles / sample_interval, std / sample_interval, trusted)


def _estimate(
    y: NDArray, x: NDArray, starts: NDArray, max_cycles: float, linewidth: float
) -> tuple[float, float, bool]:
    """(cycles per sample, their deviation, trusted) of one set of bursts (K, M, N); linewidth in cycles per sample."""
    product = y * np.conj(x)[:, None, :]
    peak = periodogram_peak(autocorrelation(product).sum(axis=0), max_cycles)
    cycles = float(peak.cycles)
    if not np.isfinite(cycles):
        return np.nan, np.inf, False
    groups = np.arange(len(starts))
    position = starts[:, None] + np.arange(y.shape[-1])
    total = float(np.sum(np.abs(y) ** 2))
    found = _group_energies(product, x, position, groups, cycles)[0]
    share = np.sum(found) / total
    threshold = detection_threshold(y.shape[0] * y.shape[1], y.shape[-1], 2.0 * max_cycles)
    std = np.hypot(_deviation(product, x, position, groups, cycles, total), _walk(position, groups, linewidth))
    consistent = True
    while np.isfinite(std) and groups[-1] > 0:
        wider = _joined(starts, _SAFE_TURNS / std if std > 0 else np.inf)
        if wider[-1] >= groups[-1]:
            break
        finer = _refine(product, position, wider, cycles, std)
        finer_std = np.hypot(_deviation(product, x, position, wider, finer, total), _walk(position, wider, linewidth))
        if not finer_std < std:
            # No common gain: phase noise, or the bursts one by one are wrong, all in the same way.
            consistent = 2.0 * np.pi * linewidth * (position[-1, -1] - position[0, 0]) > _LOST_PHASE_VAR
            break
        consistent = abs(finer - cycles) <= _GATE * std + _ROUNDING / y.shape[-1]
        if not consistent:
            break
        groups, cycles, std = wider, finer, finer_std
    inside = not bool(peak.outside) and (max_cycles >= 0.5 or abs(cycles) < max_cycles)
    return cycles, std, bool(share > threshold and inside and consistent and np.isfinite(std))


def _walk(position: NDArray, groups: NDArray, linewidth: float) -> float:
    """Deviation in cycles per sample of the groups' mean slope by phase noise of that linewidth [cycles per sample]."""
    _, first = np.unique(groups, return_index=True)
    last = np.append(first[1:], len(groups)) - 1
    spans = position[last, -1] - position[first, 0] + 1
    return float(np.sqrt(0.6 * linewidth / np.pi / np.mean(spans) / len(spans)))


def _joined(starts: NDArray, span: float) -> NDArray:
    """Number (K,) of the group of each burst: as many in a row as start within `span` samples of the first."""
    groups, first = np.zeros(len(starts), int), 0
    for k in range(1, len(starts)):
        new = starts[k] - starts[first] > span
        first = k if new else first
        groups[k] = groups[k - 1] + new
    return groups


def _grouped(product: NDArray, position: NDArray, groups: NDArray, cycles: float) -> tuple[NDArray, NDArray, NDArray]:
    """``sum y x^* e^{-2j pi nu n}`` of each group (G, M) and its first two derivatives by nu."""
    _, first = np.unique(groups, return_index=True)
    last = np.append(first[1:], len(groups)) - 1
    # Counted from the middle of each group: large numbers only between groups, where the phase does not matter.
    middle = 0.5 * (position[first, 0] + position[last, -1])
    turn = 2.0 * np.pi * (position - middle[groups][:, None])
    turned = product * np.exp(-1j * cycles * turn)[:, None, :]
    zero, one, two = (
        np.add.reduceat((turned * turn[:, None, :] ** power).sum(axis=-1), first, axis=0) for power in (0, 1, 2)
    )
    return zero, -1j * one, -two


def _refine(product: NDArray, position: NDArray, groups: NDArray, cycles: float, std: float) -> float:
    """The maximum of the groups' coherent likelihood next to `cycles`."""
    for _ in range(_NEWTON_STEPS):
        value, slope, curvature = _grouped(product, position, groups, cycles)
        first = 2.0 * np.sum(np.conj(value) * slope).real
        second = 2.0 * np.sum(np.abs(slope) ** 2 + (np.conj(value) * curvature).real)
        step = -first / second if second < 0 else np.sign(first) * std
        cycles += float(np.clip(step, -std, std))
        if abs(step) < 1e-9 * std:
            break
    return cycles


def _group_energies(
    product: NDArray, x: NDArray, position: NDArray, groups: NDArray, cycles: float
) -> tuple[NDArray, NDArray, NDArray]:
    """Energy in y that each group's gain explains, energy of x in it, and its sum ``(n - n_c)^2 |x|^2``, (G,) each."""
    weight = np.abs(x) ** 2
    _, first = np.unique(groups, return_index=True)
    energy, moment = (np.add.reduceat(v.sum(axis=-1), first) for v in (weight, weight * position))
    spread = np.add.reduceat((weight * (position - (moment / energy)[groups][:, None]) ** 2).sum(axis=-1), first)
    value = _grouped(product, position, groups, cycles)[0]
    return np.sum(np.abs(value) ** 2, axis=-1) / energy, energy, spread


def _deviation(
    product: NDArray, x: NDArray, position: NDArray, groups: NDArray, cycles: float, total: float
) -> float:
    """Predicted deviation in cycles per sample with the noise found; infinite without signal or a fit to the groups."""
    num_bursts, num_antennas, num_samples = product.shape
    if num_samples < 2:
        return np.inf
    alone = np.sum(_group_energies(product, x, position, np.arange(num_bursts), cycles)[0])
    explained, energy, spread = _group_energies(product, x, position, groups, cycles)
    noise_var = max(total - alone, 0.0) / (num_bursts * num_antennas * (num_samples - 1))
    # What noise adds to |b|^2 |x|^2, and noise times noise, which is what not knowing b costs.
    signal = np.maximum(explained - num_antennas * noise_var, 0.0)
    information = np.sum(signal / energy * spread)
    if not information > 0:
        return np.inf
    excess = np.sum((signal + num_antennas * noise_var) / energy * spread) / information
    joined = num_bursts - len(explained)
    misfit = alone - np.sum(explained) - joined * num_antennas * noise_var
    if misfit > 0.25 * np.sum(signal):
        return np.inf  # half a radian between bursts: they do not share one gain
    if misfit > _GATE * np.sqrt(joined * num_antennas) * noise_var:
        noise_var += 2.0 * misfit / joined  # phase noise between bursts, all of it in the phase
    return float(np.sqrt(noise_var * excess / (8.0 * np.pi**2 * information)))
