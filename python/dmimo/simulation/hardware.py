# SPDX-License-Identifier: GPL-3.0-or-later
"""What a node's analog hardware does to samples: port gains, panel beams, converter (amplifiers: `amplifiers`)."""

from typing import Literal

import numpy as np


class Panel:
    """The analog beamforming panel behind a port: `num_antennas` antennas and a codebook of beams.

    The same column w is used both ways, w x on transmit and w^T y on receive (no conjugate), so that the port-to-port
    channel w_i^T H_ij w_j keeps the reciprocity of H_ji = H_ij^T.

    Parameters
    ----------
    num_antennas : number of antennas A.
    codebook : complex (A, B), one beam per column, each of unit norm (what is radiated is the port's power).
        None: a single antenna with a single beam.
    """

    def __init__(self, num_antennas: int = 1, codebook: np.ndarray | None = None):
        codebook = np.ones((1, 1)) if codebook is None and num_antennas == 1 else codebook
        if codebook is None:
            raise ValueError(f"codebook=None is only possible with num_antennas=1, not {num_antennas}")
        codebook = np.asarray(codebook, dtype=np.complex128)
        if codebook.ndim != 2 or codebook.shape[0] != num_antennas or codebook.shape[1] == 0:
            raise ValueError(f"codebook has shape {codebook.shape}; it must be ({num_antennas}, number of beams)")
        if not np.allclose(np.linalg.norm(codebook, axis=0), 1.0, atol=1e-6):
            raise ValueError("codebook columns must have unit norm")
        self.num_antennas = num_antennas
        self.codebook = codebook

    @property
    def num_beams(self) -> int:
        return self.codebook.shape[1]


def draw_gains(
    rng: np.random.Generator, num_ports: int, *, phase: Literal["random", "zero"] = "random", std_db: float = 0.0
) -> np.ndarray:
    """Return the complex gains t or r of a node's ports, complex128 (num_ports,).

    |gain| is log-normal, N(0, std_db^2) in decibels; the phase is uniform on (-pi, pi] or zero.
    """
    if phase not in ("random", "zero"):
        raise ValueError(f"phase={phase!r} must be 'random' or 'zero'")
    if not std_db >= 0.0:
        raise ValueError(f"std_db={std_db} must not be negative")
    magnitude = 10.0 ** (std_db * rng.standard_normal(num_ports) / 20.0)
    angle = rng.uniform(-np.pi, np.pi, num_ports)  # drawn in both modes: |gain| must not depend on the mode
    return magnitude * np.exp(1j * angle) if phase == "random" else magnitude.astype(np.complex128)


def quantise(x: np.ndarray, bits: int, full_scale: float) -> np.ndarray:
    """Return x as a converter with `bits` bits sees it, real and imaginary parts each; same dtype as x.

    2^bits levels of width 2 full_scale / 2^bits, zero among them; what exceeds them is clipped.
    """
    if bits < 1 or not full_scale > 0.0:
        raise ValueError(f"bits={bits} must be at least 1 and full_scale={full_scale} positive")
    step = 2.0 * full_scale / 2.0**bits
    out = np.empty_like(x)
    for source, target in ((x.real, out.real), (x.imag, out.imag)):
        np.clip(np.rint(source / step), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1, out=target)
        target *= step
    return out
