# SPDX-License-Identifier: GPL-3.0-or-later
r"""Over-the-air digital predistortion: amplifiers identified by an array's own receivers, and their inverses.

.. math:: y_{im,k} = r_i h_{im} a_{1,m} F_m(x_k) + w, \qquad F(x) = x + \kappa_1 x|x|^2 + \kappa_2 x|x|^4 + \dots

Antenna m transmits pilots of different amplitudes while all others listen. `identify` gives the coefficients,
`identify_amplifiers` also their predicted errors, flags, and coefficients that are safe to use: an amplifier that is
known so badly that its predistorter would do harm gets none.

References
----------
Over-the-air DPD and reciprocity calibration, section III-A and III-B; the modules re-exported here say where and why
they deviate.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .amplifier_model import amplify, amplify_with_memory, fit_amplifier, unpack_memory
from .predistortion_bounds import coefficient_crlb, data_amplitudes, gain_energy
from .predistortion_identification import Combining, fit_statistics
from .predistortion_inverse import (
    InvertibleRange,
    Predistorted,
    PredistorterTable,
    apply_table,
    indirect_inverse,
    invertible_range,
    predistort,
    predistort_and_count,
    predistorter_table,
)
from .predistortion_judgement import does_harm, judge
from .predistortion_pilots import AmplitudeDesign, design_pilots, pilot_amplitudes
from .predistortion_statistics import PilotStatistics, pilot_statistics

__all__ = [
    "AmplitudeDesign",
    "Combining",
    "Identification",
    "InvertibleRange",
    "PilotStatistics",
    "Predistorted",
    "PredistorterTable",
    "amplify",
    "amplify_with_memory",
    "apply_table",
    "coefficient_crlb",
    "data_amplitudes",
    "design_pilots",
    "fit_amplifier",
    "gain_energy",
    "identify",
    "identify_amplifiers",
    "indirect_inverse",
    "invertible_range",
    "pilot_amplitudes",
    "pilot_statistics",
    "predistort",
    "predistort_and_count",
    "predistorter_table",
]

# By what factor predistortion must be expected to lower the distortion. At 1 it would help on average; but where there
# is no distortion at all, estimates pass a factor m by chance with a probability of exp(-1 - m) at third order.
MIN_IMPROVEMENT = 6.0
# Mean power of the data below that of the largest pilot, where nothing else is said.
DATA_BACKOFF_DB = 10.0


@dataclass(frozen=True, eq=False)
class Identification:
    """Amplifiers of all transmitters with what is known of their errors; P = (order + 1) / 2, L the memory depth.

    Distortions are NMSE (power relative to the linear signal, best linear gain removed) over the data's amplitudes.

    Attributes
    ----------
    coefficients : (..., M_tx, P), with memory (..., M_tx, L, P); first entry 1.
    covariance : (..., M_tx, P L - 1, P L - 1), predicted of the entries after the first (order-major with memory: p,
        then l); inf where nothing was heard.
    gain_energy : (..., M_tx), ``sum_i |g_im|^2 / s_i`` of the combination of receivers.
    noise_var : (..., M_rx), given or estimated.
    num_receivers : (..., M_tx) that were used.
    max_amplitude : largest pilot; the polynomial says nothing beyond.
    distortion_without, distortion_with : (..., M_tx) predicted NMSE without and with predistortion inside the
        invertible range; the latter from the errors of the coefficients alone.
    clipping : (..., M_tx) NMSE that clipping beyond that range leaves, whatever the coefficients' errors.
    mismatch : (..., M_tx) NMSE over the pilots that a higher order would explain and noise cannot.
    heard : (..., M_tx) bool, False below the threshold under which the estimate is noise.
    mismatch_limited : (..., M_tx) bool: the model is too small, and that costs more than the noise does.
    receivers_disagree : (..., M_tx) bool: receivers see different amplifiers (one is saturated, or the coupling is not
        flat or not constant).
    unexplained : (..., M_tx) bool: even two more orders leave more than the noise that was given, such as memory does.
    saturated : (..., M_tx) bool: a receiver reached its full scale and was left out.
    deaf : (..., M_rx) bool: receivers that hear nobody; averages leave them out.
    clipped_share : (..., M_tx) share of the data's samples beyond the invertible range.
    refused : (..., M_tx) bool: predistortion is not expected to help; `safe_coefficients` are the identity.
    """

    coefficients: NDArray
    covariance: NDArray
    gain_energy: NDArray
    noise_var: NDArray
    num_receivers: NDArray
    max_amplitude: float
    distortion_without: NDArray
    distortion_with: NDArray
    clipping: NDArray
    mismatch: NDArray
    heard: NDArray
    mismatch_limited: NDArray
    receivers_disagree: NDArray
    unexplained: NDArray
    saturated: NDArray
    deaf: NDArray
    clipped_share: NDArray
    refused: NDArray

    @classmethod
    def joined(cls, parts: Sequence["Identification"]) -> "Identification":
        """Identification of the ports of several arrays, one after another, from those of each by the same pilots.

        Raises
        ------
        ValueError
            If there is none, or their largest pilots differ.
        """
        peaks = [part.max_amplitude for part in parts]
        if not parts or not np.allclose(peaks, peaks[0]):
            raise ValueError(f"parts have the largest pilots {peaks}: must be at least one, and all alike")
        values = {item.name: [getattr(part, item.name) for part in parts] for item in fields(cls)}
        return cls(**{name: value[0] if name == "max_amplitude" else np.concatenate(value)
                      for name, value in values.items()})

    @property
    def safe_coefficients(self) -> NDArray:
        """Coefficients with the identity, 1, 0, 0, ..., for the transmitters that are refused."""
        identity = np.zeros(self.coefficients.shape[self.refused.ndim :])
        identity.flat[0] = 1.0
        refused = self.refused.reshape(self.refused.shape + (1,) * identity.ndim)
        return np.where(refused, identity, self.coefficients)

    def predistort(self, x: ArrayLike) -> Predistorted:
        """Samples (..., M_tx, N) predistorted by the safe coefficients, and clips; clipped to the pilots' range too.

        Refused transmitters are neither changed nor clipped. Without memory only.
        """
        limit = np.where(self.refused, np.inf, self.max_amplitude)
        return predistort_and_count(x, self.safe_coefficients, max_amplitude=limit)


def identify(
    y: ArrayLike,
    pilots: ArrayLike,
    *,
    order: int = 3,
    combining: Combining = "svd",
    coupling: ArrayLike | None = None,
    noise_var: ArrayLike | None = None,
) -> NDArray:
    """Coefficients (..., M_tx, (order + 1) / 2) of all amplifiers relative to the linear one, first entry 1.

    As `identify_amplifiers`, which also says whether they are to be trusted, without memory.

    Parameters
    ----------
    y : (..., M_rx, M_tx, K) complex, received by i while m transmits. The diagonal is ignored where M_rx = M_tx.
    pilots : (K,) or (..., M_tx, K) complex amplifier inputs.
    order, combining, coupling, noise_var : see `identify_amplifiers`.
    """
    statistics = pilot_statistics(y, pilots, order=order)
    return fit_statistics(statistics, combining=combining, coupling=coupling, noise_var=noise_var).coefficients


def identify_amplifiers(
    statistics: PilotStatistics,
    *,
    order: int | None = None,
    combining: Combining = "svd",
    coupling: ArrayLike | None = None,
    noise_var: ArrayLike | None = None,
    amplitudes: ArrayLike | None = None,
    backoff_db: float = DATA_BACKOFF_DB,
    min_improvement: float = MIN_IMPROVEMENT,
) -> Identification:
    r"""Amplifiers of all transmitters, their predicted errors and flags; see `Identification`.

    Predistortion is refused where it is not expected to help (`predistortion_judgement`); where the order is too low,
    without memory, also where it would raise the distortion of the amplifier with two more orders. Where the noise is
    known and more than it is left (`unexplained`), what is left may be common to all receivers, as memory and smeared
    pilots are: no combination of receivers then lowers its effect, and the covariance is enlarged by
    :math:`1 + \sum_i (\hat s_i / s_i - 1)` to what it would be for such errors, :math:`\hat s` from what is left.

    Parameters
    ----------
    statistics : from `pilot_statistics`.
    order : odd, at most that of the statistics (None).
    combining : "svd", leading singular vector, needs no coupling; "average", the paper's mean after division by the
        coupling, in which unknown receivers may cancel; "power", the same weighted by the coupling's power over the
        noise, the best only for equal receivers.
    coupling : (..., M_rx, M_tx), h; for "average" and "power".
    noise_var : scalar or (..., M_rx). None: from what two terms more than the statistics' order leave.
    amplitudes : (N,) of the data, for the refusal. None: Gaussian, `backoff_db` below the largest pilot.
    min_improvement : factor between the distortions without and with, at least 1.

    Raises
    ------
    ValueError
        If the pilots do not determine the coefficients, or an argument is out of range.
    """
    if not min_improvement >= 1.0:
        raise ValueError(f"min_improvement = {min_improvement} must be at least 1")
    order = statistics.order if order is None else order
    if order < 3:
        raise ValueError(f"order = {order} must be at least 3: a linear amplifier has nothing to identify")
    fit = fit_statistics(statistics, order=order, combining=combining, coupling=coupling, noise_var=noise_var)
    covariance, more = fit.covariance.copy(), fit.unexplained & fit.heard
    covariance[more] *= 1.0 + fit.excess[more, None, None]
    judged = judge(
        fit.coefficients, covariance, fit.heard, depth=statistics.memory_depth,
        peak=statistics.peak, amplitudes=amplitudes, backoff_db=backoff_db, min_improvement=min_improvement,
    )  # fmt: skip
    refused = judged.refused.copy()
    small = fit.mismatch_significant & ~refused
    if statistics.memory_depth == 1 and np.any(small):
        refused[small] = does_harm(
            fit.coefficients[small], fit.extended[small], peak=statistics.peak, amplitudes=amplitudes,
            backoff_db=backoff_db,
        )  # fmt: skip
    # What the noise costs over the pilots: each coefficient beyond the linear one has the variance 1 / strength.
    noise_cost = (fit.coefficients.shape[-1] - 1) / np.maximum(fit.strength, 1e-300)
    return Identification(
        coefficients=unpack_memory(fit.coefficients, statistics.memory_depth),
        covariance=covariance,
        gain_energy=fit.gain_energy,
        noise_var=fit.noise_var,
        num_receivers=fit.num_receivers,
        max_amplitude=statistics.peak,
        distortion_without=judged.distortion_without,
        distortion_with=judged.distortion_with,
        clipping=judged.clipping,
        mismatch=fit.mismatch,
        heard=fit.heard,
        mismatch_limited=fit.heard & fit.mismatch_significant & (fit.mismatch > noise_cost),
        receivers_disagree=fit.heard & fit.receivers_disagree,
        unexplained=fit.unexplained,
        saturated=np.any(statistics.saturated, axis=-2),
        deaf=fit.deaf,
        clipped_share=judged.clipped_share,
        refused=refused,
    )
