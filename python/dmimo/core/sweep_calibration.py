# SPDX-License-Identifier: GPL-3.0-or-later
"""Calibration of a real sweep: measurements with times, oscillators that drift apart, delays, missing data."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import sweep_model
from .graph import DisconnectedGraphError
from .phase_tracking import PhaseTrack, track_phases
from .reciprocity import Method, check_noise_var
from .sweep_fit import JointFit, joint_fit, network_values, usable_component
from .sweep_model import TimedPairs
from .sweep_result import SweepCalibration, degrees_of_freedom, sweep_result

__all__ = ["SweepCalibration", "calibrate_sweep"]

# Probability that any pair without signal passes for one with signal, over the whole network and all search cells.
_FALSE_ALARM = 1e-3
# Share of the unambiguous range beyond which a frequency or delay is reported as possibly aliased.
_AMBIGUITY_MARGIN = 0.9
# Deviations of a coarse frequency that must lie within half the range to be searched.
_PRIOR_STDS = 4.0
# Linear estimates of the oscillators' phases: around a first guess, then around the result and a fit without them.
_TRACKING_PASSES = 2


def calibrate_sweep(
    y: ArrayLike,
    times: ArrayLike,
    *,
    samp_rate: float,
    subcarriers_hz: ArrayLike | None = None,
    noise_var: ArrayLike | None = None,
    mask: ArrayLike | None = None,
    reference: int = 0,
    method: Method = "ml",
    estimate_frequency: bool = True,
    estimate_delay: bool = True,
    reference_time: int | None = None,
    max_frequency_hz: float | None = None,
    max_delay_s: float | None = None,
    node_of_port: ArrayLike | None = None,
    port_names: Sequence[str] | None = None,
    coarse_frequency_hz: ArrayLike | None = None,
    coarse_frequency_std_hz: ArrayLike | None = None,
) -> SweepCalibration:
    """Joint calibration, LO frequencies and delays of all ports from one sweep with times.

    Parameters
    ----------
    y : (M, M, Q) or (M, M, Q, K), y[i, j, q, k] received by port i from port j over path component q at subcarrier k;
        y[j, i, q, k] went over the same path. nan where a measurement is missing.
    times : (M, M, Q) int64, absolute sample index of the middle of each one-way measurement.
    samp_rate : samples per second.
    subcarriers_hz : (K,) frequencies relative to band centre; needed with K > 1.
    noise_var : scalar or (M,), variance of the noise in one element of y at each receiver; None: estimated.
    mask : (M, M, Q) bool, True where measured.
    reference : port with c = 1.
    method : estimator of `reciprocity.calibrate` for c; frequency and delay are joint maximum likelihood with any.
    estimate_frequency, estimate_delay : False where all nodes share a clock, or delays are known to be equal.
    reference_time : sample index at which c is given; None: the energy-weighted centre of the midpoints, or with phase
        noise the last measurement, from where c is used.
    max_frequency_hz, max_delay_s : prior limits on differences between nodes and between ports; None: what is
        unambiguous, see `sweep_model.frequency_ranges`, and 1 / (2 smallest subcarrier spacing).
    node_of_port : (M,) int, ports of one node share their LO and are not measured with one another; None: all differ.
    port_names : M names for the reasons; None: the ports' indices.
    coarse_frequency_hz, coarse_frequency_std_hz : (M,), a rough LO frequency of each port from elsewhere, which says
        where to search; left aside where it is not better than what the midpoints resolve anyway.

    Notes
    -----
    1. Products of both directions of each pair; the delay of each pair from its spectrum over subcarriers, then its
       frequency from the periodogram over midpoints. (Summing before either is removed cancels the signal.)
    2. Pairs that stand out of the noise are joined by a tree; differences along it, then least squares over all pairs
       that agree with it, give frequencies and delays of all ports. Ports that no pair reaches are given up.
    3. Joint maximum likelihood of (log c, f, d) from there (`sweep_fit.joint_fit`), with soft weights of the pairs; it
       reaches `bounds.joint_crlb`.
    4. Phase noise: the likelihood of a random walk of the nodes' phases (`phase_tracking.track_phases`). If one is
       significant, at a false-alarm probability of 1e-3, it is smoothed, and c comes from it at the reference time.

    Without phase noise the reference time defaults to the centre of the midpoints weighted with the products'
    magnitudes: there the errors of phase and frequency are uncorrelated and the phase error is smallest (exactly, if
    all pairs have the same centre). Predicted deviations include noise times noise, and are scaled by the root of
    `residual_chi2` above 1.

    Raises
    ------
    ValueError
        For inconsistent arguments. DisconnectedGraphError if no pair carries a signal.
    """
    y, times, nodes, nu = _check_arguments(y, times, subcarriers_hz, node_of_port, reference)
    noise = None if noise_var is None else check_noise_var(noise_var, len(y))
    valid = _valid_elements(y, mask, nodes)
    pairs, centre = sweep_model.timed_pairs(y, times, valid, noise, samp_rate, nu)
    reasons: list[str] = []
    names = [str(port) for port in range(len(y))] if port_names is None else port_names
    free = {"estimate_frequency": estimate_frequency, "estimate_delay": estimate_delay and len(nu) > 1}
    ranges_hz = sweep_model.frequency_ranges(pairs, samp_rate)
    if estimate_frequency and len(pairs.i) and ranges_hz[0] == 0:
        free["estimate_frequency"] = False
        reasons.append("frequency cannot be estimated: each pair has one midpoint only; repeat the sweep (more passes) "
                       "or switch the estimate off where all nodes share a clock")
    offset = _usable_prior(coarse_frequency_hz, coarse_frequency_std_hz, len(y), ranges_hz[0], estimate_frequency)
    pairs = pairs.derotated(offset)
    pairs, ports, frequency, delay = _search(
        pairs, nodes, reference, free, max_frequency_hz, max_delay_s, ranges_hz, reasons, names)
    local = np.searchsorted(ports, reference if reference in ports else ports[0])
    inside = replace(pairs, i=np.searchsorted(ports, pairs.i), j=np.searchsorted(ports, pairs.j))
    try:
        fit = joint_fit(inside, nodes[ports], local, frequency[ports], delay[ports], **free)
    except np.linalg.LinAlgError:
        free = dict.fromkeys(free, False)
        reasons.append("frequency or delay of some port is not determined by these measurements: taken from the search")
        fit = joint_fit(inside, nodes[ports], local, frequency[ports], delay[ports], **free)
    when = centre + round(samp_rate * inside.last_s) if reference_time is None else int(reference_time)
    fit, track = _track(inside, nodes[ports], local, fit, free, noise is not None, (when - centre) / samp_rate)
    if track is None and reference_time is None:
        when = centre
    times = (centre, when, samp_rate)
    offset = offset[ports] - offset[ports[local]]
    fit = replace(fit, frequency_hz=fit.frequency_hz + offset)
    return sweep_result(inside, ports, nodes, local, fit, free, noise, method, times, reasons, names, track)


def _usable_prior(frequency_hz, std_hz, num_ports: int, near_hz: float, wanted: bool) -> NDArray:
    """Frequencies (M,) to start from: those of the ports that are known well within the range to be searched."""
    if frequency_hz is None or not wanted:
        return np.zeros(num_ports)
    known = 2.0 * _PRIOR_STDS * np.asarray(std_hz, float) < near_hz
    return np.where(known.all(), np.asarray(frequency_hz, float), 0.0)


def _track(
    pairs: TimedPairs, nodes: NDArray, local: int, fit: JointFit, free: dict[str, bool], noise_known: bool,
    when_s: float,
) -> tuple[JointFit, PhaseTrack | None]:
    """Phases of the oscillators over the sweep, and the fit of the products without them; None: no phase noise."""
    own = np.unique(nodes, return_inverse=True)[1]
    first, track = fit, None
    for _ in range(_TRACKING_PASSES):
        rest = pairs if track is None else replace(pairs, product=pairs.product * np.exp(-1j * track.turn)[..., None])
        if track is not None:
            fit = joint_fit(rest, nodes, local, first.frequency_hz, fit.delay_s,
                            estimate_frequency=False, estimate_delay=free["estimate_delay"])
        level = 1.0 if noise_known else fit.residual / degrees_of_freedom(rest, nodes, free)
        if not level > 0:
            return first, None
        track = track_phases(
            pairs.scaled(1.0 / level), replace(fit, information=fit.information / level), own, local, when_s,
            track,
            estimate_frequency=free["estimate_frequency"], noise_known=noise_known)
        if track is None:
            return first, None
    return fit, track


def _check_arguments(y, times, subcarriers_hz, node_of_port, reference):
    y, times = np.asarray(y), np.asarray(times)
    if y.ndim == 3:
        y = y[..., None]
    num_ports = len(y)
    if y.ndim != 4 or y.shape[1] != num_ports or num_ports < 2:
        raise ValueError(f"y must have shape (M, M, Q) or (M, M, Q, K) with M of at least 2, not {y.shape}")
    if times.shape != y.shape[:3] or not np.issubdtype(times.dtype, np.integer):
        raise ValueError(f"times must be integers of shape {y.shape[:3]}, not {times.dtype} {times.shape}")
    if not 0 <= reference < num_ports:
        raise ValueError(f"reference = {reference} must be a port from 0 to {num_ports - 1}")
    if subcarriers_hz is None:
        if y.shape[3] > 1:
            raise ValueError(f"subcarriers_hz is needed with {y.shape[3]} subcarriers")
        subcarriers_hz = [0.0]
    nu = np.asarray(subcarriers_hz, float)
    if nu.shape != y.shape[3:] or len(np.unique(nu)) != len(nu):
        raise ValueError(f"subcarriers_hz must hold {y.shape[3]} different frequencies, not {nu}")
    nodes = np.arange(num_ports) if node_of_port is None else np.asarray(node_of_port)
    if nodes.shape != (num_ports,):
        raise ValueError(f"node_of_port must have shape ({num_ports},), not {nodes.shape}")
    return y, times.astype(np.int64, copy=False), np.unique(nodes, return_inverse=True)[1], nu


def _valid_elements(y: NDArray, mask: ArrayLike | None, nodes: NDArray) -> NDArray:
    """(M, M, Q) bool: measured in both directions, finite at all subcarriers, between different nodes."""
    valid = np.isfinite(y).all(axis=-1)
    if mask is not None:
        mask = np.asarray(mask)
        if mask.shape != valid.shape or mask.dtype != bool:
            raise ValueError(f"mask must be bool with shape {valid.shape}, not {mask.dtype} {mask.shape}")
        valid &= mask
    valid &= (nodes[:, None] != nodes)[:, :, None]
    return valid & np.swapaxes(valid, 0, 1)


def _search(
    pairs: TimedPairs,
    nodes: NDArray,
    reference: int,
    free: dict[str, bool],
    max_frequency_hz: float | None,
    max_delay_s: float | None,
    ranges_hz: tuple[float, float],
    reasons: list[str],
    names: Sequence[str],
) -> tuple[TimedPairs, NDArray, NDArray, NDArray]:
    """Usable pairs and ports, and frequency and delay of every port within the main lobe of the likelihood."""
    num_ports, num_pairs = len(nodes), len(pairs.i)
    df, dd = np.zeros(num_pairs), np.zeros(num_pairs)
    cells = limit_hz = limit_s = 1
    nu = pairs.subcarriers_hz
    if free["estimate_delay"] and num_pairs:
        limit_s = 0.5 / np.diff(np.sort(nu)).min() if max_delay_s is None else max_delay_s
        dd, found = sweep_model.search_delay(pairs, limit_s)
        cells *= found
    if free["estimate_frequency"] and num_pairs:
        near_hz, limit_hz = ranges_hz if max_frequency_hz is None else (max_frequency_hz, max_frequency_hz)
        df, found = sweep_model.search_frequency(pairs, dd, near_hz, limit_hz)
        cells *= found
    quality = sweep_model.evidence(pairs, np.abs(sweep_model.time_moments(pairs, df, dd)[0]) ** 2)
    seen = quality > np.log(cells * max(num_pairs, 1) / _FALSE_ALARM) if np.any(pairs.count > 1) else quality > 0
    ports, parts = usable_component(num_ports, pairs.i[seen], pairs.j[seen], reference)
    if len(ports) < 2:
        raise DisconnectedGraphError(tuple(parts))
    _report_lost_ports(ports, parts, reference, pairs, reasons, names)
    root = reference if reference in ports else ports[0]
    used = seen & np.isin(pairs.i, ports)
    found = pairs.select(used)
    df, dd, quality = (value[used] for value in (df, dd, quality))
    frequency, delay = np.zeros(num_ports), np.zeros(num_ports)
    if free["estimate_frequency"]:
        span = np.ptp(found.time_s[found.valid])
        used, i, j = np.unique(nodes[ports]), nodes[found.i], nodes[found.j]
        i, j = np.searchsorted(used, i), np.searchsorted(used, j)
        at_root = int(np.searchsorted(used, nodes[root]))
        values, agrees = network_values(len(used), i, j, df, quality, 0.5 / span, at_root)
        frequency[ports] = values[np.searchsorted(used, nodes[ports])]
        _report_differences("frequency", "Hz", df, agrees, found, limit_hz, max_frequency_hz is None, reasons, names)
    if free["estimate_delay"]:
        i, j = np.searchsorted(ports, found.i), np.searchsorted(ports, found.j)
        values, agrees = network_values(len(ports), i, j, dd, quality, 1.0 / np.ptp(nu), ports.index(root))
        delay[ports] = values
        _report_differences("delay", "s", dd, agrees, found, limit_s, max_delay_s is None, reasons, names)
    inside = np.isin(pairs.i, ports) & np.isin(pairs.j, ports)
    return pairs.select(inside), np.array(ports), frequency, delay


def _listed(pairs: TimedPairs, which: NDArray, names: Sequence[str]) -> str:
    named = [f"({names[i]}, {names[j]})" for i, j in zip(pairs.i[which], pairs.j[which], strict=True)]
    return ", ".join(named[:4]) + (f" and {len(named) - 4} more" if len(named) > 4 else "")


def _report_lost_ports(ports, parts, reference, pairs, reasons, names) -> None:
    measured = np.union1d(pairs.i, pairs.j)
    for part in parts:
        if part[0] in ports:
            continue
        for port in part if len(part) == 1 else ():
            what = "carries no signal on any pair" if port in measured else "was not measured with any other port"
            reasons.append(f"port {names[port]} {what}")
        if len(part) > 1:
            reasons.append(f"ports {', '.join(names[port] for port in part)} have no pair with a signal to the others")
    if reference not in ports:
        reasons.append(f"reference {names[reference]} cannot be calibrated: c is relative to port {names[ports[0]]}")


def _report_differences(name, unit, difference, agrees, pairs, limit, from_spacing, reasons, names) -> None:
    if not agrees.all():
        reasons.append(f"{name} of pairs {_listed(pairs, ~agrees, names)} contradicts the other pairs around a loop")
    close = agrees & (np.abs(difference) > _AMBIGUITY_MARGIN * limit)
    if close.any():
        kind = "ambiguity limit" if from_spacing else "given limit"
        reasons.append(f"{name} of pairs {_listed(pairs, close, names)} is close to the {kind} of {limit:.4g} {unit}")


