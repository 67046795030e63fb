# SPDX-License-Identifier: GPL-3.0-or-later
"""Calibration of a real sweep: measurements with times, oscillators that drift apart, delays, missing data."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray


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
    pair_snr_db : (M, M) SNR of one element of y, mean over the elements of each pair; nan where not measured.
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
    method: str = "ml",
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
    method : estimator of `reciprocity.calibrate`; "ml" ends with joint steps in (log c, frequency, delay).
    estimate_frequency, estimate_delay : False where all nodes share a clock, or delays are known to be equal.
    reference_time : sample index at which c is given; None: the energy-weighted centre of the midpoints.
    max_frequency_hz, max_delay_s : prior limits on differences between nodes and between ports.
    node_of_port : (M,) int, ports of one node share their LO and are not measured with one another; None: all differ.
    """
    raise NotImplementedError
