# SPDX-License-Identifier: GPL-3.0-or-later
"""Result of a sweep's calibration: coefficients, what they become with time, predicted errors, judgement."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from . import bounds
from .phase_tracking import PhaseTrack
from .reciprocity import Method, calibrate, fix_gauge
from .sweep_fit import JointFit, joint_bound
from .sweep_model import TimedPairs

# Residual beyond the noise, as a share of the signal, from which the model counts as wrong: 0.05 is about 0.3 rad rms.
_MAX_MISFIT = 0.05
# Relative difference between an estimator's c and the maximum-likelihood one that is no longer a matter of efficiency.
_MAX_METHOD_DEVIATION = 0.5
# Predicted phase error from which a port is reported; at 30 degrees coherent combining loses 1 dB.
_MAX_PHASE_STD_RAD = np.radians(30.0)


@dataclass(frozen=True, eq=False)
class SweepCalibration:
    """Result of `calibrate_sweep`: the model ``c_m(t, f_k) = c_m exp(+4j pi f_m (t - t_ref) - 2j pi f_k d_m)``.

    With phase noise c turns beside that by twice a random walk: c and its deviations hold at the reference time, and
    the expected phase thereafter is what the model says, with an error that grows (`phase_std_at`).

    Ports that could not be calibrated hold nan in every per-port array.

    Attributes
    ----------
    c : (M,) complex, at ``reference_time`` and band centre, ``c[reference] = 1``.
    frequency_hz : (M,) LO frequency of each port's node relative to the reference's node. With phase noise: the
        constant frequency beneath the random walk, not the slope of the phase at the end of the sweep; increments of
        the walk to come do not depend on those seen, so this is what to extrapolate with.
    delay_s : (M,) calibration delay relative to the reference port (c turns by exp(-2j pi f_k d) over the band).
    covariance : (M, M) predicted E[x x^H] of x = the error of log c (zero for the reference).
    phase_std_rad, frequency_std_hz, delay_std_s : (M,) predicted standard deviations.
    phase_frequency_covariance : (M,) predicted covariance of phase and frequency errors in rad Hz.
    phase_noise_hz, phase_noise_std_hz : (M,) Lorentzian linewidth L of the oscillators and its standard deviation: the
        LO phase of each node is a random walk of variance rate 2 pi L in rad^2/s (c turns by twice the phase, relative
        to the reference's node: 16 pi L). One estimate for all nodes; 0 where it is not significantly above zero.
    node_of_port : (M,) node of each port, 0 ... N-1.
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
    phase_noise_hz: NDArray
    phase_noise_std_hz: NDArray
    node_of_port: NDArray
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
        """Predicted standard deviation of the phase of ``at(sample)`` in rad, (M,).

        Frequency errors and the random walk since the reference time are included. With phase noise it is too large
        for a sample within the sweep other than the reference time: what was measured around it is not kept.
        """
        elapsed = (int(sample) - self.reference_time) / samp_rate
        turn = 4.0 * np.pi * elapsed
        variance = self.phase_std_rad**2 + 2.0 * turn * self.phase_frequency_covariance
        other = self.node_of_port != self.node_of_port[self.reference]
        rate = 8.0 * np.pi * other * (self.phase_noise_hz + self.phase_noise_hz[self.reference])
        return np.sqrt(np.maximum(variance + (turn * self.frequency_std_hz) ** 2 + rate * abs(elapsed), 0.0))


def sweep_result(
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
    names: Sequence[str],
    track: PhaseTrack | None = None,
) -> SweepCalibration:
    """Result of a fit for `ports` of all: noise level, predicted errors, judgement. times: centre, reference, rate.

    With a track the fit is that of the products without it.
    """
    centre, reference_time, samp_rate = times
    shift_s = (reference_time - centre) / samp_rate
    freedom = degrees_of_freedom(pairs, nodes[ports], free)
    chi2 = fit.residual / freedom if freedom > 0 else np.nan
    used = [names[port] for port in ports]
    c = _coefficients(fit, method, local, used, reasons)
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
    inflation = max(chi2, 1.0) if np.isfinite(chi2) else 1.0
    linewidth, linewidth_std = 0.0, 0.0
    frequency = fit.frequency_hz
    if track is None:
        bound = bounds.JointCrlb(*(inflation * part for part in joint_bound(
            pairs, fit, nodes[ports], local, shift_s, **free)))
    else:
        c = c * np.exp(1j * track.phase)
        frequency = frequency + track.frequency_hz
        bound = _tracked_errors(pairs, fit, nodes[ports], local, inflation, track, free["estimate_delay"])
        linewidth, linewidth_std = track.linewidth_hz, track.linewidth_std_hz
    phase_std = np.sqrt(bound.phase_var)
    _judge(fit.residual - freedom, energy, phase_std, used, reasons)

    def spread(values):
        """`values` of the calibrated ports among all ports, NaN elsewhere."""
        out = np.full((len(nodes),) * np.ndim(values), np.nan, np.result_type(values, float))
        out[np.ix_(*(ports,) * np.ndim(values))] = values
        return out

    return SweepCalibration(
        c=spread(c),
        frequency_hz=spread(frequency),
        delay_s=spread(fit.delay_s),
        covariance=spread(bound.covariance),
        phase_std_rad=spread(phase_std),
        frequency_std_hz=spread(np.sqrt(bound.frequency_var)),
        delay_std_s=spread(np.sqrt(bound.delay_var)),
        phase_frequency_covariance=spread(bound.phase_frequency_cov),
        phase_noise_hz=spread(np.full(len(ports), linewidth)),
        phase_noise_std_hz=spread(np.full(len(ports), linewidth_std)),
        node_of_port=nodes,
        reference=int(ports[local]),
        reference_time=reference_time,
        residual_chi2=float(chi2),
        noise_var=noise,
        pair_snr_db=_pair_snr_db(pairs, ports, len(nodes), fit),
        trusted=not reasons,
        reasons=tuple(reasons),
    )


def _coefficients(fit: JointFit, method: Method, local: int, names: Sequence[str], reasons: list[str]) -> NDArray:
    """c of the method, (whitened) 1 at the reference; where it fails, that of maximum likelihood, and a reason."""
    best = fit.c / fit.c[local]
    try:
        c = calibrate(fit.statistics, method, reference=local, weights=fit.weights)
    except ValueError as error:
        reasons.append(f"method {method}: {error}")
        return best
    for port in np.flatnonzero(np.abs(c / best - 1.0) > _MAX_METHOD_DEVIATION):
        reasons.append(f"port {names[port]}: method {method} is far from the maximum of the likelihood")
    return c


def _judge(unexplained: float, energy: float, phase_std: NDArray, names: Sequence[str], reasons: list[str]) -> None:
    """Add reasons where the model does not fit, or an error is predicted to be large."""
    if unexplained > _MAX_MISFIT * energy:
        reasons.append(f"the model leaves {unexplained / energy:.0%} of the energy beyond the noise unexplained")
    for port in np.flatnonzero(~(phase_std <= _MAX_PHASE_STD_RAD)):
        reasons.append(f"port {names[port]}: predicted phase error above {np.degrees(_MAX_PHASE_STD_RAD):.0f} degrees")


def degrees_of_freedom(pairs: TimedPairs, nodes: NDArray, free: dict[str, bool]) -> float:
    """Residuals less unknowns: each product leaves one complex residual; a real unknown takes half of one."""
    num_ports = len(nodes)
    unknowns = 2 * (num_ports - 1) + (num_ports - 1) * free["estimate_delay"]
    unknowns += (len(np.unique(nodes)) - 1) * free["estimate_frequency"]
    return float(pairs.count.sum() - 0.5 * unknowns)


def _tracked_errors(
    pairs: TimedPairs, fit: JointFit, nodes: NDArray, local: int, inflation: float, track: PhaseTrack, delay: bool
) -> bounds.JointCrlb:
    """Predicted errors with a track, which gives the phases; magnitudes and delays are from the fit."""
    still = {"estimate_frequency": False, "estimate_delay": False}
    plain = joint_bound(pairs, fit, nodes, local, 0.0, **still).covariance
    whole = joint_bound(pairs, fit, nodes, local, 0.0, estimate_frequency=False, estimate_delay=delay)
    # A delay that is estimated adds to the error of the phase at band centre, not to the magnitude's.
    phase = inflation * (whole.covariance - plain) + track.phase_covariance
    return bounds.JointCrlb(
        0.5 * inflation * plain + phase,
        np.maximum(np.diagonal(phase), 0.0),
        track.frequency_var,
        inflation * whole.delay_var,
        track.phase_frequency_cov,
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
