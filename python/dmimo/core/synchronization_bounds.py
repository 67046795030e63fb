# SPDX-License-Identifier: GPL-3.0-or-later
"""Cramer-Rao bounds of the phase and frequency estimators of `beamsync` and `frequency`; model and names as there."""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .beamsync import dominant_direction

Returned = Literal["conjugate", "matched"]


def phase_offset_crlb(
    g_e: ArrayLike,
    noise_var: ArrayLike,
    num_samples: int,
    *,
    a: ArrayLike | None = None,
    leader_gain: ArrayLike = 1.0,
    follower_gain: ArrayLike = 1.0,
    power: float = 1.0,
    returned: Returned = "conjugate",
) -> NDArray:
    r"""Bound (...) in rad^2 on the variance of the phase offset from one return.

    The return has the mean :math:`e^{j \varphi} c_1 Q a^* x^H` and columns of covariance
    :math:`\sigma^2 (I + c_2^2 Q)`, :math:`Q = G_e^T G_e^*`, so

    .. math::
        \mathrm{CRB} = \frac{\sigma^2}{2 |x|^2 c\, \alpha_A \alpha_B\, b}, \qquad
        b = a^T Q (I + c\, \alpha_A Q)^{-1} Q a^*, \qquad c = \frac{1}{\alpha_B |G_e a|^2 + M_A \sigma^2 / p}

    with :math:`\alpha = |t_1 / r_1|^2`, p the power of x, and c by the mean energy of what the leader received. After
    a matched return the leader's noise is one column, :math:`M_A \sigma^2 / (p N)` in c. With a = v_1 it is
    `dominant_phase_offset_crlb`.

    Parameters
    ----------
    g_e : (..., M_A, M_B) complex.
    noise_var : (...), :math:`\sigma^2` of a sample at an antenna, the same at both ends.
    num_samples : N.
    a : (..., M_B) unit direction of stage II; None: the best, :math:`v_1`.
    leader_gain, follower_gain : (...), :math:`\alpha_A` and :math:`\alpha_B`.
    power : mean power of x and of the return.

    References
    ----------
    The paper has no bound on the phase; b is its eq. (15).
    """
    g_e = np.asarray(g_e)
    if g_e.ndim < 2:
        raise ValueError(f"g_e has shape {g_e.shape}; it must be (..., M_A, M_B)")
    noise_var, leader_gain, follower_gain = (np.asarray(v, float) for v in (noise_var, leader_gain, follower_gain))
    if a is None:
        eigenvalue = largest_eigenvalue(g_e)
        return dominant_phase_offset_crlb(
            eigenvalue, noise_var, num_samples, g_e.shape[-2], leader_gain=leader_gain, follower_gain=follower_gain,
            power=power, returned=returned,
        )  # fmt: skip
    c = return_scale(received_energy(g_e, a), noise_var, num_samples, g_e.shape[-2], follower_gain, power, returned)
    b = whitened_energy(g_e, a, c * leader_gain)
    return noise_var / (2.0 * num_samples * power * c * leader_gain * follower_gain * b)


def dominant_phase_offset_crlb(
    eigenvalue: ArrayLike,
    noise_var: ArrayLike,
    num_samples: int,
    num_leader: int,
    *,
    leader_gain: ArrayLike = 1.0,
    follower_gain: ArrayLike = 1.0,
    power: float = 1.0,
    returned: Returned = "conjugate",
) -> NDArray:
    r"""Bound (...) in rad^2 along the best direction, from the largest eigenvalue :math:`\lambda_1` of the channel.

    .. math:: \frac{\sigma^2 (1 + c\, \alpha_A \lambda_1)}{2 |x|^2 c\, \alpha_A \alpha_B \lambda_1^2}

    Parameters as `phase_offset_crlb`; `num_leader` is M_A.
    """
    lam, noise_var, leader_gain = (np.asarray(v, float) for v in (eigenvalue, noise_var, leader_gain))
    c = return_scale(lam, noise_var, num_samples, num_leader, np.asarray(follower_gain, float), power, returned)
    denominator = 2.0 * num_samples * power * c * leader_gain * follower_gain * lam**2
    return noise_var * (1.0 + c * leader_gain * lam) / denominator


def high_snr_phase_offset_crlb(
    eigenvalue: ArrayLike, noise_var: ArrayLike, num_samples: int, *, leader_gain: ArrayLike = 1.0,
    follower_gain: ArrayLike = 1.0, power: float = 1.0,
) -> NDArray:  # fmt: skip
    r"""High-SNR limit (...) of that, :math:`\frac{\sigma^2}{2 |x|^2 \lambda_1} (1/\alpha_A + 1/\alpha_B)`."""
    lam, noise_var = np.asarray(eigenvalue, float), np.asarray(noise_var, float)
    gains = 1.0 / np.asarray(leader_gain, float) + 1.0 / np.asarray(follower_gain, float)
    return noise_var * gains / (2.0 * num_samples * power * lam)


def frequency_offset_crlb(
    x: ArrayLike,
    signal_energy: ArrayLike,
    noise_var: ArrayLike,
    sample_interval: float = 1.0,
    *,
    positions: ArrayLike | None = None,
) -> NDArray:
    r"""Bound (...) in Hz^2 on the variance of the frequency offset, eq. (35).

    .. math:: \frac{\sigma^2}{8 \pi^2 T^2 |b|^2 \sum_n (n - n_c)^2 |x(n)|^2}

    with :math:`n_c` the energy centroid of x and b the unknown gains. The paper's (35) is in cycles per sample, as
    here with T = 1. An estimator that does not know b has :math:`1 + M \sigma^2 / (|b|^2 |x|^2)` times
    this to the next order.

    Parameters
    ----------
    x : (N,) what was sent.
    signal_energy : (...), :math:`|b|^2` over the antennas.
    noise_var : (...), :math:`\sigma^2`.
    sample_interval : T in seconds; 1 for cycles per sample.
    positions : (N,) time of each element of x in samples, for bursts with gaps in which b stays; None: 0 to N - 1.
    """
    spread = energy_spread(x, positions)
    scale = 8.0 * np.pi**2 * sample_interval**2
    return np.asarray(noise_var, float) / (scale * np.asarray(signal_energy, float) * spread)


class ReturnCrlb(NamedTuple):
    """Bounds from one return: phase at the burst's energy centroid in rad^2, offset in Hz^2, uncorrelated, (...)."""

    phase_var: NDArray
    frequency_var: NDArray


def joint_return_crlb(
    g_e: ArrayLike,
    x: ArrayLike,
    noise_var: ArrayLike,
    sample_interval: float,
    *,
    a: ArrayLike | None = None,
    leader_gain: ArrayLike = 1.0,
    follower_gain: ArrayLike = 1.0,
    returned: Returned = "conjugate",
) -> ReturnCrlb:
    r"""Bounds (...) on phase and oscillator offset f together from the return burst.

    At the energy centroid of x the two do not couple: the phase has the bound of `phase_offset_crlb`. The samples
    of a conjugate return turn by :math:`4 \pi f T` each, with the same information per sample as the phase,

    .. math:: \mathrm{var}(f) \ge \frac{\mathrm{CRB}(\varphi)\, |x|^2}{(4 \pi T)^2 \sum_n (n - n_c)^2 |x(n)|^2}.

    Those of a matched return turn by :math:`2 \pi f T`, in the follower's noise alone.

    Parameters as `phase_offset_crlb`, with the waveform x (N,) and the sample interval T in seconds.
    """
    g_e, x = np.asarray(g_e), np.asarray(x)
    energy = float(np.sum(np.abs(x) ** 2))
    num_samples, num_leader = x.shape[-1], g_e.shape[-2]
    power = energy / num_samples
    if a is None:
        a = dominant_direction(np.swapaxes(g_e, -2, -1))
    phase_var = phase_offset_crlb(
        g_e, noise_var, num_samples, a=a, leader_gain=leader_gain, follower_gain=follower_gain, power=power,
        returned=returned,
    )  # fmt: skip
    if returned == "conjugate":
        return ReturnCrlb(phase_var, phase_var * energy / ((4.0 * np.pi * sample_interval) ** 2 * energy_spread(x)))
    noise_var, leader_gain, follower_gain = (np.asarray(v, float) for v in (noise_var, leader_gain, follower_gain))
    c = return_scale(received_energy(g_e, a), noise_var, num_samples, num_leader, follower_gain, power, returned)
    signal = c * leader_gain * follower_gain * whitened_energy(g_e, a, np.zeros(()))
    return ReturnCrlb(phase_var, frequency_offset_crlb(x, signal, noise_var, sample_interval))


def energy_spread(x: ArrayLike, positions: ArrayLike | None = None) -> float:
    """``sum (n - n_c)^2 |x(n)|^2`` about the energy centroid."""
    x = np.asarray(x)
    weight = np.abs(x) ** 2
    positions = np.arange(x.shape[-1], dtype=float) if positions is None else np.asarray(positions, float)
    if x.ndim != 1 or positions.shape != x.shape:
        raise ValueError(f"x and positions must be of the same shape (N,), not {x.shape} and {positions.shape}")
    return float(weight @ (positions - weight @ positions / weight.sum()) ** 2)


def largest_eigenvalue(g_e: NDArray) -> NDArray:
    """Largest squared singular value (...)."""
    g_e = np.asarray(g_e)
    adjoint = np.conj(np.swapaxes(g_e, -2, -1))
    gram = g_e @ adjoint if g_e.shape[-2] <= g_e.shape[-1] else adjoint @ g_e
    return np.linalg.eigvalsh(gram)[..., -1]


def received_energy(g_e: NDArray, a: ArrayLike) -> NDArray:
    """Energy (...) that the leader receives of each sample of unit power, over that of its gain, ``|G_e a|^2``."""
    received = (g_e @ np.asarray(a)[..., None])[..., 0]
    return np.sum(np.abs(received) ** 2, axis=-1)


def whitened_energy(g_e: NDArray, a: ArrayLike, gain: ArrayLike) -> NDArray:
    r"""b of eq. (15) with :math:`c_2^2` = `gain`, (...)."""
    q = np.swapaxes(g_e, -2, -1) @ np.conj(g_e)
    mean = q @ np.conj(np.asarray(a))[..., None]
    covariance = np.eye(q.shape[-1]) + np.asarray(gain)[..., None, None] * q
    return np.sum(np.conj(mean) * np.linalg.solve(covariance, mean), axis=(-2, -1)).real


def return_scale(
    energy: ArrayLike, noise_var: ArrayLike, num_samples: int, num_leader: int, follower_gain: ArrayLike,
    power: float, returned: Returned,
) -> NDArray:  # fmt: skip
    """c of eq. (3) by mean energies: by what the leader multiplies in power, for `energy` ``|G_e a|^2``."""
    if returned not in ("conjugate", "matched"):
        raise ValueError(f'returned = "{returned}" must be "conjugate" or "matched"')
    columns = num_samples if returned == "matched" else 1
    return 1.0 / (follower_gain * np.asarray(energy) + num_leader * noise_var / (columns * power))
