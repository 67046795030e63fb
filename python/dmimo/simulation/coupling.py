# SPDX-License-Identifier: GPL-3.0-or-later
"""Mutual coupling between the elements of a planar array: where they stand and what they hear of each other."""

from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class PlanarArray:
    """Elements on a rectangular grid; element p = row * columns + column is port p of its node.

    rows, columns : number of each. spacing_wavelengths : distance between neighbours in a row and in a column.
    """

    rows: int
    columns: int
    spacing_wavelengths: float = 0.5

    def __post_init__(self):
        if self.rows < 1 or self.columns < 1:
            raise ValueError(f"rows={self.rows} and columns={self.columns} must be at least 1")
        if not 0.0 < self.spacing_wavelengths < np.inf:
            raise ValueError(f"spacing_wavelengths={self.spacing_wavelengths} must be positive and finite")

    @property
    def num_elements(self) -> int:
        return self.rows * self.columns

    def positions(self) -> np.ndarray:
        """Return where the elements stand, float64 (num_elements, 2): along the row and across [wavelengths]."""
        row, column = np.divmod(np.arange(self.num_elements), self.columns)
        return self.spacing_wavelengths * np.stack([column, row], axis=-1)

    def distances(self) -> np.ndarray:
        """Return the distances between elements, float64 (num_elements, num_elements) [wavelengths]."""
        place = self.positions()
        return np.linalg.norm(place[:, None] - place, axis=-1)


@dataclass(frozen=True)
class CouplingLaw:
    """Coupling between two elements at distance d (in wavelengths):

        h_ij = g(d) (exp(-2j pi d) + p z_ij + e z'_ij),      z_ij = z_ji ~ CN(0, 1), z'_ij ~ CN(0, 1)
        20 log10 g(d) = gain_db - slope_db_per_wavelength (d - d_0)          "linear": straight in decibels
        20 log10 g(d) = gain_db - 10 exponent log10(d / d_0)                 "log_distance": a power law

    with d_0 = `reference_wavelengths`. h is reciprocal, bit by bit, unless `nonreciprocity_db` is set: z' is drawn for
    each direction. An element does not hear itself: h_ii = 0.

    The default numbers are assumptions: neighbours at -17.5 dB, and a little over 50 dB of attenuation across 12
    wavelengths, about what has been reported for a 4 x 25 patch array at half a wavelength (the fit that the papers
    use is not printed in them).

    Parameters
    ----------
    kind : "linear" or "log_distance".
    gain_db : power gain at the distance d_0.
    slope_db_per_wavelength : attenuation per wavelength of "linear", not negative.
    exponent : of the power's fall with distance in "log_distance", not negative.
    reference_wavelengths : d_0.
    perturbation_db : 20 log10 p, what surroundings and element patterns add; None: p = 0.
    nonreciprocity_db : 20 log10 e; None: e = 0.

    References
    ----------
    J. Vieira et al., "Reciprocity calibration for massive MIMO: proposal, modeling, and validation", IEEE Trans.
    Wireless Commun. 16(5), 2017: straight-line fit of measured coupling in decibels over distance.
    """

    kind: Literal["linear", "log_distance"] = "linear"
    gain_db: float = -17.5
    slope_db_per_wavelength: float = 3.0
    exponent: float = 2.5
    reference_wavelengths: float = 0.5
    perturbation_db: float | None = None
    nonreciprocity_db: float | None = None

    def __post_init__(self):
        if self.kind not in ("linear", "log_distance"):
            raise ValueError(f"kind={self.kind!r} must be 'linear' or 'log_distance'")
        if not np.isfinite(self.gain_db):
            raise ValueError(f"gain_db={self.gain_db} must be finite")
        for key in ("slope_db_per_wavelength", "exponent"):
            if not 0.0 <= getattr(self, key) < np.inf:
                raise ValueError(f"{key}={getattr(self, key)} must be finite and not negative")
        if not 0.0 < self.reference_wavelengths < np.inf:
            raise ValueError(f"reference_wavelengths={self.reference_wavelengths} must be positive and finite")
        for key in ("perturbation_db", "nonreciprocity_db"):
            if getattr(self, key) is not None and not np.isfinite(getattr(self, key)):
                raise ValueError(f"{key}={getattr(self, key)} must be finite, or None for none")

    def attenuation_db(self, distance_wavelengths: np.ndarray) -> np.ndarray:
        """Return -20 log10 g(d) in decibels, of any shape; d must be positive."""
        distance, at = np.asarray(distance_wavelengths, dtype=np.float64), self.reference_wavelengths
        if self.kind == "linear":
            return self.slope_db_per_wavelength * (distance - at) - self.gain_db
        return 10.0 * self.exponent * np.log10(distance / at) - self.gain_db

    def matrix(self, array: PlanarArray, rng: np.random.Generator) -> np.ndarray:
        """Return h, complex128 (num_elements, num_elements), receiver first; zero on the diagonal.

        The random numbers do not depend on the levels: other `perturbation_db` scale the same perturbation.
        """
        num, distance = array.num_elements, array.distances()
        np.fill_diagonal(distance, 1.0)  # anything the laws are defined at; the entry is dropped below
        phasor = np.exp(-2j * np.pi * distance)
        both, single = (
            np.sqrt(0.5) * (rng.standard_normal((num, num)) + 1j * rng.standard_normal((num, num))) for _ in range(2)
        )
        upper = np.triu(both, 1)
        if self.perturbation_db is not None:
            phasor += 10.0 ** (self.perturbation_db / 20.0) * (upper + upper.T)
        if self.nonreciprocity_db is not None:
            phasor += 10.0 ** (self.nonreciprocity_db / 20.0) * single
        gains = 10.0 ** (-self.attenuation_db(distance) / 20.0) * phasor
        np.fill_diagonal(gains, 0.0)
        return gains
