# SPDX-License-Identifier: GPL-3.0-or-later
"""Calibration of a real sweep: measurements with times, oscillators that drift apart, delays, missing data."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import sweep_model
from .graph import DisconnectedGraphError
from .reciprocity import Method, calibrate, check_noise_var, fix_gauge
from .sweep_fit import JointFit, joint_bound, joint_fit, network_values, usable_component
from .sweep_model import TimedPairs

# Probability that any pair without signal passes for one with signal, over the whole network and all search cells.
_FALSE_ALARM = 1e-3
# Share of the unambiguous range beyond which a frequency or delay is reported as possibly aliased.
_AMBIGUITY_MARGIN = 0.9
# Residual beyond the noise, as a share of the signal, from which the model counts as wrong: 0.1 is about 0.4 rad rms.
_MAX_MISFIT = 0.1
# Predicted phase error from which a port is reported; at 30 degrees coherent combining loses 1 dB.
_MAX_PHASE_STD_RAD = np.radians(30.0)


@dataclass(frozen=True, eq=False)
class SweepCalibration:
    """Result of `calibrate_sweep`: the model ``c_m(t, f_k) = c_m exp(+4j pi f_m (t - t_ref) - 2j pi f_k d_m)``.

    Ports that could not be calibrated hold nan in every per-port array.

    Attributes
    ----------
    c : (M,) complex, at ``reference_time`` and band centre, ``c[reference] = 1``.
    frequency_hz : (M,) LO frequency of each port's node relative to the reference's node.
    delay_s : (M,) calibration delay relative to the reference port (c turns by exp(-2j pi f_k d) over the band).
    covariance : (M, M) predicted E[x x^H] of x = the error of log c (zero for the reference).
    phase_std_rad, frequency_std_hz, delay_std_s : (M,) predicted standard deviations.
    phase_frequency_covariance : (M,) predicted covariance of phase and frequency errors in rad Hz.
    reference : int, the port of the gauge (the requested one unless that port is dead).
    reference_time : int, sample index at which c holds.
    residual_chi2 : residual energy per degree of freedom in units of the given noise variance, 1 if the model fits;
        nan when the noise variance was estimated from that same residual.
    noise_var : (M,) noise variance per receiver, as given or estimated.
    pair_snr_db : (M, M) SNR of one element of y, mean over the elements of each pair; nan where not measured or where
        a port could not be calibrated.
    trusted : False if anything in ``reasons`` forbids to use the result unseen.
    reasons : what is wrong, each naming ports.
    """

    c: NDArray
    frequency_hz: NDArray
    delay_s: NDArray
    covariance: NDArray
    phase_std_rad: NDArray
    frequency_std_hz: NDArray
    delay_std_s: NDArray
    phase_frequency_covariance: NDArray
    reference: int
    reference_time: int
    residual_chi2: float
    noise_var: NDArray
    pair_snr_db: NDArray
    trusted: bool
    reasons: tuple[str, ...]

    def at(self, sample: int, samp_rate: float) -> NDArray:
        """Coefficients c (M,) extrapolated to another sample index, ``c exp(4j pi f (t - t_ref))``."""
        elapsed = (int(sample) - self.reference_time) / samp_rate
        return self.c * np.exp(4j * np.pi * self.frequency_hz * elapsed)

    def phase_std_at(self, sample: int, samp_rate: float) -> NDArray:
        """Predicted standard deviation of the phase of ``at(sample)`` in rad, (M,); constant frequency assumed."""
        turn = 4.0 * np.pi * (int(sample) - self.reference_time) / samp_rate
        variance = self.phase_std_rad**2 + 2.0 * turn * self.phase_frequency_covariance
        return np.sqrt(np.maximum(variance + (turn * self.frequency_std_hz) ** 2, 0.0))


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
    reference_time : sample index at which c is given; None: the energy-weighted centre of the midpoints.
    max_frequency_hz, max_delay_s : prior limits on differences between nodes and between ports; None: what is
        unambiguous, 1 / (4 median spacing of a pair's midpoints) and 1 / (2 smallest subcarrier spacing).
    node_of_port : (M,) int, ports of one node share their LO and are not measured with one another; None: all differ.

    Notes
    -----
    1. Products of both directions of each pair; the delay of each pair from its spectrum over subcarriers, then its
       frequency from the periodogram over midpoints. (Summing before either is removed cancels the signal.)
    2. Pairs that stand out of the noise are joined by a tree; differences along it, then least squares over all pairs
       that agree with it, give frequencies and delays of all ports. Ports that no pair reaches are given up.
    3. Joint maximum likelihood of (log c, f, d) from there (`sweep_fit.joint_fit`), with soft weights of the pairs; it
       reaches `bounds.joint_crlb`.

    The reference time defaults to the centre of the midpoints weighted with the products' magnitudes: there the errors
    of phase and frequency are uncorrelated and the phase error is smallest (exactly, if all pairs have the same
    centre). Predicted deviations include noise times noise, and are scaled by the root of `residual_chi2` above 1.

    Raises
    ------
    ValueError
        For inconsistent arguments. DisconnectedGraphError if no pair carries a signal.
    """
    y, times, nodes, nu = _check_arguments(y, times, subcarriers_hz, node_of_port, reference)
    noise = None if noise_var is None else check_noise_var(noise_var, len(y))
    valid = _valid_elements(y, mask, nodes)
    pairs, centre = sweep_model.timed_pairs(y, times, valid, noise, samp_rate, nu)
    reference_time = centre if reference_time is None else int(reference_time)
    reasons: list[str] = []
    free = {"estimate_frequency": estimate_frequency, "estimate_delay": estimate_delay and len(nu) > 1}
    if estimate_frequency and len(pairs.i) and not len(_midpoint_steps(pairs)):
        free["estimate_frequency"] = False
        reasons.append("frequency cannot be estimated: each pair has one midpoint only")
    pairs, ports, frequency, delay = _search(pairs, nodes, reference, free, max_frequency_hz, max_delay_s, reasons)
    local = np.searchsorted(ports, reference if reference in ports else ports[0])
    inside = replace(pairs, i=np.searchsorted(ports, pairs.i), j=np.searchsorted(ports, pairs.j))
    try:
        fit = joint_fit(inside, nodes[ports], local, frequency[ports], delay[ports], **free)
    except np.linalg.LinAlgError:
        free = dict.fromkeys(free, False)
        reasons.append("frequency or delay of some port is not determined by these measurements: taken from the search")
        fit = joint_fit(inside, nodes[ports], local, frequency[ports], delay[ports], **free)
    when = (centre, reference_time, samp_rate)
    return _result(inside, ports, nodes, local, fit, free, noise, method, when, reasons)


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
    reasons: list[str],
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
        limit_hz = 0.25 / float(np.median(_midpoint_steps(pairs))) if max_frequency_hz is None else max_frequency_hz
        df, found = sweep_model.search_frequency(pairs, dd, limit_hz)
        cells *= found
    quality = _evidence(pairs, sweep_model.time_moments(pairs, df, dd)[0])
    seen = quality > np.log(cells * max(num_pairs, 1) / _FALSE_ALARM) if np.any(pairs.count > 1) else quality > 0
    ports, parts = usable_component(num_ports, pairs.i[seen], pairs.j[seen], reference)
    if len(ports) < 2:
        raise DisconnectedGraphError(tuple(parts))
    _report_lost_ports(ports, parts, reference, pairs, reasons)
    root = reference if reference in ports else ports[0]
    found = pairs.select(seen & np.isin(pairs.i, ports))
    df, dd, quality = (value[seen & np.isin(pairs.i, ports)] for value in (df, dd, quality))
    frequency, delay = np.zeros(num_ports), np.zeros(num_ports)
    if free["estimate_frequency"]:
        span = np.ptp(found.time_s[found.valid])
        used, i, j = np.unique(nodes[ports]), nodes[found.i], nodes[found.j]
        i, j = np.searchsorted(used, i), np.searchsorted(used, j)
        at_root = int(np.searchsorted(used, nodes[root]))
        values, agrees = network_values(len(used), i, j, df, quality, 0.5 / span, at_root)
        frequency[ports] = values[np.searchsorted(used, nodes[ports])]
        _report_differences("frequency", df, agrees, found, limit_hz, max_frequency_hz is None, reasons)
    if free["estimate_delay"]:
        i, j = np.searchsorted(ports, found.i), np.searchsorted(ports, found.j)
        values, agrees = network_values(len(ports), i, j, dd, quality, 1.0 / np.ptp(nu), ports.index(root))
        delay[ports] = values
        _report_differences("delay", dd, agrees, found, limit_s, max_delay_s is None, reasons)
    inside = np.isin(pairs.i, ports) & np.isin(pairs.j, ports)
    return pairs.select(inside), np.array(ports), frequency, delay


def _midpoint_steps(pairs: TimedPairs) -> NDArray:
    """All positive intervals in s between consecutive midpoints of the same pair."""
    ordered = np.sort(np.where(pairs.valid, pairs.time_s, np.inf), axis=1)
    last = ordered[:, 1:]
    steps = np.where(np.isfinite(last), last, 0.0) - np.where(np.isfinite(last), ordered[:, :-1], 0.0)
    return steps[steps > 0]


def _evidence(pairs: TimedPairs, correlation: NDArray) -> NDArray:
    """``-(Q-1) log(1 - coherence)`` of each pair (E,): Exp(1) without signal; the coherence itself for one product."""
    both = pairs.power_ij * pairs.power_ji
    size = np.divide(np.abs(correlation) ** 2, both, out=np.zeros_like(both), where=both > 0)
    return np.where(pairs.count > 1, -(pairs.count - 1) * np.log1p(-np.minimum(size, 1.0 - 1e-15)), size)


def _listed(pairs: TimedPairs, which: NDArray) -> str:
    named = [f"({i}, {j})" for i, j in zip(pairs.i[which], pairs.j[which], strict=True)]
    return ", ".join(named[:4]) + (f" and {len(named) - 4} more" if len(named) > 4 else "")


def _report_lost_ports(ports, parts, reference, pairs, reasons) -> None:
    measured = np.union1d(pairs.i, pairs.j)
    for part in parts:
        if part[0] in ports:
            continue
        for port in part if len(part) == 1 else ():
            what = "carries no signal on any pair" if port in measured else "was not measured with any other port"
            reasons.append(f"port {port} {what}")
        if len(part) > 1:
            reasons.append(f"ports {', '.join(map(str, part))} have no pair with a signal to the others")
    if reference not in ports:
        reasons.append(f"reference {reference} cannot be calibrated: c is relative to port {ports[0]}")


def _report_differences(name, difference, agrees, pairs, limit, from_spacing, reasons) -> None:
    if not agrees.all():
        reasons.append(f"{name} of pairs {_listed(pairs, ~agrees)} contradicts the other pairs around a loop")
    close = agrees & (np.abs(difference) > _AMBIGUITY_MARGIN * limit)
    if close.any():
        kind = "ambiguity limit" if from_spacing else "given limit"
        reasons.append(f"{name} of pairs {_listed(pairs, close)} is close to the {kind} of {limit:.4g}")


def _result(
    pairs: TimedPairs,
    ports: NDArray,
    nodes: NDArray,
    local: int,
    fit: JointFit,
    free: dict[str, bool],
    noise: NDArray | None,
    method: Method,
    times: tuple[int, int, float],
    reasons: list[str],
) -> SweepCalibration:
    """Result of a fit for `ports` of all: noise level, predicted errors, judgement. times: centre, reference, rate."""
    centre, reference_time, samp_rate = times
    shift_s = (reference_time - centre) / samp_rate
    unknowns = 2 * (len(ports) - 1) + (len(ports) - 1) * free["estimate_delay"]
    unknowns += (len(np.unique(nodes[ports])) - 1) * free["estimate_frequency"]
    # Each product leaves one complex residual; a real unknown takes half of one.
    freedom = pairs.count.sum() - 0.5 * unknowns
    chi2 = fit.residual / freedom if freedom > 0 else np.nan
    c = calibrate(fit.statistics, method, reference=local, weights=fit.weights)
    if noise is None:
        # From here on in units of the estimated noise.
        noise, level, chi2 = np.full(len(nodes), chi2), chi2, np.nan
        if not level > 0:
            reasons.append("noise_var is not given and cannot be estimated: too few measurements")
        fit = replace(fit, information=fit.information / level, residual=fit.residual / level)
        energy = (pairs.power_ij.sum() + pairs.power_ji.sum()) / level
    else:
        c = fix_gauge(c / np.sqrt(noise[ports]), local)
        energy = pairs.power_ij.sum() + pairs.power_ji.sum()
    c = c * np.exp(4j * np.pi * fit.frequency_hz * shift_s)
    bound = joint_bound(pairs, fit, nodes[ports], local, shift_s, **free)
    inflation = max(chi2, 1.0) if np.isfinite(chi2) else 1.0
    phase_std = np.sqrt(inflation * bound.phase_var)
    if fit.residual - freedom > _MAX_MISFIT * energy:
        share = (fit.residual - freedom) / energy
        reasons.append(f"the model leaves {share:.0%} of the energy beyond the noise unexplained")
    for port in ports[~(phase_std <= _MAX_PHASE_STD_RAD)]:
        reasons.append(f"port {port}: predicted phase error above {np.degrees(_MAX_PHASE_STD_RAD):.0f} degrees")

    def spread(values, empty=np.nan):
        out = np.full(len(nodes), empty, np.result_type(values))
        out[ports] = values
        return out

    covariance = np.full((len(nodes), len(nodes)), np.nan, bound.covariance.dtype)
    covariance[np.ix_(ports, ports)] = inflation * bound.covariance
    return SweepCalibration(
        c=spread(c),
        frequency_hz=spread(fit.frequency_hz),
        delay_s=spread(fit.delay_s),
        covariance=covariance,
        phase_std_rad=spread(phase_std),
        frequency_std_hz=spread(np.sqrt(inflation * bound.frequency_var)),
        delay_std_s=spread(np.sqrt(inflation * bound.delay_var)),
        phase_frequency_covariance=spread(inflation * bound.phase_frequency_cov),
        reference=int(ports[local]),
        reference_time=reference_time,
        residual_chi2=float(chi2),
        noise_var=noise,
        pair_snr_db=_pair_snr_db(pairs, ports, len(nodes), fit),
        trusted=not reasons,
        reasons=tuple(reasons),
    )


def _pair_snr_db(pairs: TimedPairs, ports: NDArray, num_ports: int, fit: JointFit) -> NDArray:
    """(M, M) mean SNR of one element received by i from j: ``|c_j|^2 |psi|^2 / count`` in units of the noise."""
    gain = np.abs(fit.c) ** 2
    common = np.maximum(fit.information, 0.0) * (gain[pairs.i] + gain[pairs.j]) / pairs.count
    out = np.full((num_ports, num_ports), np.nan)
    i, j = ports[pairs.i], ports[pairs.j]
    # Nothing above the noise is shown as -60 dB.
    out[i, j] = 10.0 * np.log10(np.maximum(common / gain[pairs.i], 1e-6))
    out[j, i] = 10.0 * np.log10(np.maximum(common / gain[pairs.j], 1e-6))
    return out
