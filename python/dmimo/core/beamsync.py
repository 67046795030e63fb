# SPDX-License-Identifier: GPL-3.0-or-later
r"""Phase of one access point against another from a burst that the other returns conjugated (BeamSync).

The leader A (M_A antennas) and the follower B (M_B), each calibrated internally to its first antenna, share the
reciprocal channel :math:`G_e = D_{r_A} G D_{r_B}` (M_A, M_B). With :math:`c_X = t_1 / r_1` of a node's first antenna
and :math:`\varphi = \angle c_A - \angle c_B`,

.. math::
    Y_{B1} = c_A G_e^T \Phi^T + W, \qquad Y_{A1} = c_B G_e a x^T + W, \qquad
    Y_{B2} = \sqrt c\, c_A G_e^T Y_{A1}^* + W

are pilots from A (stage I), x beamed by B along a, the conjugate of the dominant direction (stage II), and A's
return of what it received, conjugated and scaled to energy N (stage III). The phase of :math:`a^T Y_{B2} x` is
:math:`\varphi`; B multiplies what it transmits by :math:`e^{+j \varphi}`.

Between oscillators that turn, stage II at time n and stage III at n + D measure :math:`\varphi` at the midpoint
n + D / 2; `return_estimate` also reads the offset of the oscillators from the turn within the burst.

References
----------
BeamSync: Over-the-Air Synchronization for Distributed Massive MIMO Systems, section III, eq. (1) to (18).
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from . import frequency

Method = Literal["eigh", "power"]

Returned = Literal["conjugate", "matched"]

# A phase predicted to be worse than this is not applied: the mean gain of two nodes is then 1 dB short.
MAX_PHASE_STD_RAD = 0.5

# With the Gram matrix to the power 2^7 a nearly equal second direction takes at most some 0.3 % of the energy.
POWER_STEPS = 7


def dominant_direction(y: ArrayLike, *, method: Method = "eigh", steps: int = POWER_STEPS) -> NDArray:
    r"""Unit transmit direction (..., M_B) in which most energy was received, :math:`a = u_1^*`.

    :math:`u_1` is the first left singular vector of y, found as the top eigenvector of the smaller of the two Gram
    matrices, so a long burst costs no more than its Gram matrix. Its phase is arbitrary and cancels in the exchange.
    With more pilots than sending antennas (L > M_A) project on the known pilots first, :math:`Y \Phi^*`: the rest is
    noise only.

    Parameters
    ----------
    y : (..., M_B, L) complex, received pilots.
    method : "eigh", exact; "power", power iteration by squaring the Gram matrix `steps` times, which is the power
        2^steps, several times faster in large batches of small matrices. complex64 stays complex64. Where it has not
        converged the two directions have nearly the same energy, and either serves.

    Raises
    ------
    ValueError
        If a burst has no energy or a sample that is not finite: it has no direction.

    References
    ----------
    BeamSync, eq. (18) and section III-C.
    """
    y = _as_bursts(y, "y", ("M_B", "L"))
    energy = _require_energy(y, "y", "a dominant direction")
    tall = y.shape[-2] > y.shape[-1]
    # Of unit norm before anything is squared: complex64 would overflow or vanish.
    y = y * (1.0 / np.sqrt(energy)).astype(y.real.dtype)[..., None, None]
    adjoint = np.conj(np.swapaxes(y, -2, -1))
    gram = adjoint @ y if tall else y @ adjoint
    if method == "eigh":
        u = np.linalg.eigh(gram)[1][..., -1]
    elif method == "power":
        u = _power_vector(gram, steps)
    else:
        raise ValueError(f'method = "{method}" must be "eigh" or "power"')
    if tall:
        u = (y @ u[..., None])[..., 0]
    return np.conj(u) / np.linalg.norm(u, axis=-1, keepdims=True)


def next_direction(y: ArrayLike, x: ArrayLike) -> NDArray:
    r"""Direction (..., M_B) for a further round of stages II and III, :math:`a' \propto (Y_{B2} x)^*`.

    A round applies :math:`G_e^H G_e` to a, one step of a power iteration over the air: the direction converges to
    :math:`v_1` of the channel itself, with the error of the last round only. For both kinds of return.

    y (..., M_B, N) is the return, x (..., N) what was sent in stage II. ValueError if nothing of x is in a return.
    """
    y, x = _as_bursts(y, "y", ("M_B", "N")), _as_waveform(x, np.shape(y)[-1])
    direction = np.conj((y @ x[..., None])[..., 0])
    _require_energy(direction[..., None], "y x", "a direction")
    return direction / np.linalg.norm(direction, axis=-1, keepdims=True)


def conjugate_return(y: ArrayLike, *, energy: float | None = None) -> NDArray:
    r"""What the leader sends back, :math:`\sqrt c\, Y^*` with :math:`c = E / |Y|_F^2`, eq. (3), (..., M_A, N).

    Parameters
    ----------
    y : (..., M_A, N) complex, received in stage II.
    energy : E of the whole burst over all antennas; None: N, unit power per sample.

    Raises
    ------
    ValueError
        If a burst has no energy or a sample that is not finite.
    """
    y = _as_bursts(y, "y", ("M_A", "N"))
    scale = np.sqrt(_energy_or(energy, y.shape[-1]) / _require_energy(y, "y", "a return"))
    return np.conj(y) * scale.astype(y.real.dtype)[..., None, None]


def matched_return(y: ArrayLike, x: ArrayLike, *, energy: float | None = None) -> NDArray:
    r"""What a leader that knows x sends back, :math:`\propto z^* x^H` with :math:`z = Y x^* / |x|^2`, (..., M_A, N).

    The leader sends the conjugate of its channel estimate instead of N columns of amplified noise: at low SNR nearly
    all of the energy in `conjugate_return` is noise. The follower estimates as before. Within the burst the phase
    turns with the offset, not with twice the offset, since stage II is summed before it is returned. That sum must
    not turn by much (offset well below 1 / (N T)); its phase is then that of the centroid.

    Parameters
    ----------
    y : (..., M_A, N) complex, received in stage II.
    x : (..., N), what the follower sent.
    energy : of the whole burst over all antennas; None: N.

    Raises
    ------
    ValueError
        If there is nothing of x in a burst or a sample is not finite.
    """
    y, x = _as_bursts(y, "y", ("M_A", "N")), _as_waveform(x, np.shape(y)[-1])
    z = y @ np.conj(x)[..., None]
    _require_energy(z, "y conj(x)", "a return")
    out = np.conj(z * x[..., None, :])
    scale = np.sqrt(_energy_or(energy, y.shape[-1]) / _energy(out))
    return out * scale.astype(out.real.dtype)[..., None, None]


def return_phasor(y: ArrayLike, a: ArrayLike, x: ArrayLike) -> NDArray:
    r""":math:`a^T Y x` (...), complex, whose phase is :math:`\varphi`. Several rounds: add these, not their angles.

    Parameters
    ----------
    y : (..., M_B, N) complex, the return.
    a : (..., M_B), the direction in which x was sent.
    x : (..., N), what was sent.
    """
    y = _as_bursts(y, "y", ("M_B", "N"))
    x, a = _as_waveform(x, y.shape[-1]), _as_direction(a, y.shape[-2])
    with np.errstate(invalid="ignore", over="ignore"):
        return np.sum(a * (y @ x[..., None])[..., 0], axis=-1)


def phase_offset(y: ArrayLike, a: ArrayLike, x: ArrayLike) -> NDArray:
    r"""Phase offset :math:`\hat\varphi = \angle(a^T Y x)` in (-pi, pi], eq. (10), (...); nan if that is exactly zero.

    Parameters as `return_phasor`. It needs no channel estimate; with a along :math:`v_1` it equals `phase_offset_nls`.
    """
    return _angle(return_phasor(y, a, x))


def phase_offset_nls(y: ArrayLike, a: ArrayLike, x: ArrayLike, g_e: ArrayLike, return_gain: ArrayLike) -> NDArray:
    r"""Weighted least-squares phase offset with the channel known, eq. (9), (...): a genie's reference.

    .. math:: \hat\varphi = \angle\left(a^T Q (I + c_2^2 Q)^{-1} Y x\right), \qquad Q = G_e^T G_e^*

    With the channel estimate of stage I, whose dominant direction a is, it is identical to `phase_offset`.

    Parameters
    ----------
    y, a, x : as `return_phasor`.
    g_e : (..., M_A, M_B) complex, the true effective channel.
    return_gain : (...), :math:`c_2 = \sqrt c |t_1^A / r_1^A|` of eq. (5): by what the leader multiplied, in amplitude.
    """
    y, g_e = _as_bursts(y, "y", ("M_B", "N")), _as_bursts(g_e, "g_e", ("M_A", "M_B"))
    x, a = _as_waveform(x, y.shape[-1]), _as_direction(a, y.shape[-2])
    if g_e.shape[-1] != y.shape[-2]:
        raise ValueError(f"g_e has shape {g_e.shape}: its last axis must have the {y.shape[-2]} antennas of y")
    return _angle(nls_phasor((y @ x[..., None])[..., 0], a, g_e, return_gain))


class CarrierEstimate(NamedTuple):
    r"""Phase and offset from a return burst, each (...).

    phase_rad : :math:`\varphi` in (-pi, pi], nan for a burst without energy or not finite.
    phase_std_rad : predicted standard deviation, infinite if there is none.
    frequency_hz, frequency_std_hz : offset f_A - f_B of the oscillators; 0 and infinite if it was not estimated.
    trusted : whether the estimate is to be applied.
    """

    phase_rad: NDArray
    phase_std_rad: NDArray
    frequency_hz: NDArray
    frequency_std_hz: NDArray
    trusted: NDArray


def centroid(x: ArrayLike) -> NDArray:
    r"""Energy centroid of a waveform in samples, :math:`\sum n |x(n)|^2 / |x|^2`, (...): the time of its phase."""
    weight = np.abs(np.asarray(x)) ** 2
    return weight @ np.arange(weight.shape[-1]) / weight.sum(axis=-1)


def return_estimate(
    y: ArrayLike, a: ArrayLike, x: ArrayLike, sample_interval: float, *, joint: bool = False,
    max_offset: float | None = None, returned: Returned = "conjugate", leader_std_rad: ArrayLike | None = None,
) -> CarrierEstimate:
    r"""Phase offset, and with `joint` the oscillators' offset, from a return, with their predicted deviations.

    The burst combined along a and multiplied by what was sent turns with twice the offset, since stages II and III
    both turn (after a matched return only stage III does: once),

    .. math:: s(n) = (a^T Y)(n)\, x(n) = A |x(n)|^2 e^{j (\varphi + 2 \pi\, 2 f (n - n_c) T)} + \ldots

    and phase and frequency are its least squares, which is maximum likelihood along :math:`v_1`. The phase belongs to
    the energy `centroid` :math:`n_c` of the burst, where it does not depend on f: to the midpoint of the times at
    which sample :math:`n_c` was sent in stages II and III. Without `joint` it is `phase_offset`.

    Deviations come from what the fit leaves, so whatever noise the leader amplified is in them. A matched return
    carries the leader's noise as one common error that the burst does not show: `leader_std_rad` is its part, from
    the leader's `matched_phase_std`; None takes it to be as large as the follower's. Then the follower cannot know
    either whether the leader heard anything: a leader that did not must not return.

    Parameters
    ----------
    y, a, x : as `return_phasor`.
    sample_interval : T in seconds.
    joint : also estimate f.
    max_offset : largest ``|f|`` in Hz; None: as much as is unambiguous, ``1 / (4 T)``, matched ``1 / (2 T)``.

    Returns
    -------
    CarrierEstimate
        Trusted where finite, the predicted phase deviation is below `MAX_PHASE_STD_RAD`, the burst is not noise (less
        than 1e-3 of noise bursts pass) and, with `joint`, the largest maximum lies inside the limit.
    """
    y = _as_bursts(y, "y", ("M_B", "N"))
    x, a = _as_waveform(x, y.shape[-1]), _as_direction(a, y.shape[-2])
    if returned not in ("conjugate", "matched"):
        raise ValueError(f'returned = "{returned}" must be "conjugate" or "matched"')
    turns = 2.0 if returned == "conjugate" else 1.0
    largest = 0.5 / (turns * sample_interval) if sample_interval > 0 else np.nan
    max_cycles = frequency.check_max_cycles(largest if max_offset is None else max_offset, turns * sample_interval)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        u = np.sum(a[..., None] * y, axis=-2).astype(np.complex128, copy=False)
        fit = _fit_return(u, x, max_cycles if joint else 0.0)
        phase_var = fit.phase_var
        if returned == "matched":
            phase_var = phase_var + (phase_var if leader_std_rad is None else np.asarray(leader_std_rad, float) ** 2)
        phase_std = np.sqrt(phase_var)
        trusted = fit.heard & np.isfinite(fit.phase) & (phase_std < MAX_PHASE_STD_RAD)
    hertz = 1.0 / (turns * sample_interval)
    return CarrierEstimate(fit.phase, phase_std, fit.cycles * hertz, np.sqrt(fit.cycles_var) * hertz, trusted)


def matched_phase_std(y: ArrayLike, x: ArrayLike) -> NDArray:
    r"""What the leader's noise adds to the phase of its `matched_return`, in rad, (...); infinite if it heard nothing.

    :math:`\sqrt{\sigma^2 / (2 |b|^2 |x|^2)}` for :math:`Y = b x^T + W`, with the noise that is left beside x and the
    energy of b less its noise. Infinite, and there should be no return, where y may be noise alone (less than 1e-3 of
    noise bursts pass).

    Parameters
    ----------
    y : (..., M_A, N) complex, received in stage II.
    x : (..., N), what the follower sent.
    """
    y = _as_bursts(y, "y", ("M_A", "N"))
    x = _as_waveform(x, y.shape[-1])
    num_antennas, num_samples = y.shape[-2:]
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        total = np.sum(np.abs(y) ** 2, axis=(-2, -1), dtype=np.float64)
        inside = np.sum(np.abs(y @ np.conj(x)[..., None]) ** 2, axis=(-2, -1)) / np.sum(np.abs(x) ** 2, axis=-1)
        noise_var = np.maximum(total - inside, 0.0) / (num_antennas * max(num_samples - 1, 0))
        heard = inside > total * frequency.detection_threshold(num_antennas, num_samples, 0.0)
        std = np.sqrt(0.5 * noise_var / (inside - num_antennas * noise_var))
    return np.where(heard & np.isfinite(std), std, np.inf)


class _ReturnFit(NamedTuple):
    """Fit of a combined return: phase at the centroid, its variance, turn in cycles per sample, its variance, heard."""

    phase: NDArray
    phase_var: NDArray
    cycles: NDArray
    cycles_var: NDArray
    heard: NDArray


def _fit_return(u: NDArray, x: NDArray, max_cycles: float) -> _ReturnFit:
    """Least squares of ``A e^{j phi} x^*(n) e^{2j pi nu (n - n_c)}`` in u (..., N); `max_cycles` 0: nu is 0."""
    num_samples = u.shape[-1]
    s, weight = u * x, np.abs(x) ** 2
    middle = centroid(x)
    offset = np.arange(num_samples) - np.asarray(middle)[..., None]
    if max_cycles > 0:
        peak = frequency.periodogram_peak(frequency.autocorrelation(s[..., None, :]), max_cycles)
        cycles, inside = peak.cycles, ~peak.outside & ((np.abs(peak.cycles) < max_cycles) | (max_cycles >= 0.5))
        s = s * np.exp(-2j * np.pi * cycles[..., None] * offset)
    else:
        cycles, inside = np.zeros(s.shape[:-1]), True
    phasor, energy = s.sum(axis=-1), weight.sum(axis=-1)
    explained = np.abs(phasor) ** 2 / energy
    total = np.sum(np.abs(u) ** 2, axis=-1)
    freedoms = num_samples - (1.5 if max_cycles > 0 else 1.0)
    noise_var = np.maximum(total - explained, 0.0) / freedoms if freedoms > 0 else np.full(total.shape, np.inf)
    heard = inside & (explained > total * frequency.detection_threshold(1, num_samples, 2.0 * max_cycles))
    phase_var = np.where(explained > 0, 0.5 * noise_var / explained, np.inf)
    spread = np.sum(weight * offset**2, axis=-1) / energy
    cycles_var = phase_var / (4.0 * np.pi**2 * spread) if max_cycles > 0 else np.full(total.shape, np.inf)
    return _ReturnFit(_angle(phasor), np.where(np.isnan(phase_var), np.inf, phase_var), cycles, cycles_var, heard)


def nls_phasor(yx: NDArray, a: NDArray, g_e: NDArray, return_gain: ArrayLike) -> NDArray:
    """The statistic of eq. (9) from ``y x`` (..., M_B): all that it takes from the samples."""
    q = np.swapaxes(g_e, -2, -1) @ np.conj(g_e)
    covariance = np.eye(q.shape[-1]) + np.asarray(return_gain)[..., None, None] ** 2 * q
    whitened = np.linalg.solve(covariance, yx[..., None])
    return np.sum(a * (q @ whitened)[..., 0], axis=-1)


def _power_vector(gram: NDArray, steps: int) -> NDArray:
    """Top eigenvector (..., M), not normalised, of Gram matrices (..., M, M) of unit trace, which are overwritten.

    All squarings but four, which cost more than the sixteen products with a vector that stand for them.
    """
    if steps < 1:
        raise ValueError(f"steps = {steps} must be at least 1")
    square = np.empty(gram.shape, gram.dtype)
    for k in range(steps - 4):
        # In two buffers and as real numbers: fresh pages and complex divisions would cost more than products.
        np.matmul(gram, gram, out=square)
        gram, square = square, gram
        if k % 2 or k == steps - 5:  # the trace shrinks to no less than 1 / M^3 in between
            parts = gram.view(gram.real.dtype)
            parts *= 1.0 / np.trace(gram, axis1=-2, axis2=-1).real[..., None, None]
    # All columns tend to multiples of the eigenvector: the longest is the one farthest from zero.
    longest = np.argmax(np.diagonal(gram, axis1=-2, axis2=-1).real, axis=-1)
    u = np.take_along_axis(gram, longest[..., None, None], axis=-1)
    for k in range(1, 2 ** min(steps, 4)):
        u = gram @ u
        if k % 5 == 0:  # a product shrinks it by up to M
            u = u / np.linalg.norm(u, axis=-2, keepdims=True)
    return u[..., 0]


def _energy(y: NDArray) -> NDArray:
    """Summed over the last two axes, (...), in double precision."""
    return np.sum(y.real**2 + y.imag**2, axis=(-2, -1), dtype=np.float64)


def _angle(phasor: NDArray) -> NDArray:
    return np.where(phasor == 0, np.nan, np.angle(phasor))


def _energy_or(energy: float | None, num_samples: int) -> float:
    if energy is None:
        return float(num_samples)
    if not (np.isfinite(energy) and energy > 0):
        raise ValueError(f"energy = {energy} must be positive and finite")
    return float(energy)


def _as_bursts(y: ArrayLike, name: str, axes: tuple[str, str]) -> NDArray:
    y = np.asarray(y)
    if y.ndim < 2 or 0 in y.shape[-2:]:
        raise ValueError(f"{name} has shape {y.shape}; it must be (..., {axes[0]}, {axes[1]}), neither of them 0")
    return y if np.iscomplexobj(y) else y.astype(np.complex128)


def _as_waveform(x: ArrayLike, num_samples: int) -> NDArray:
    x = np.asarray(x)
    if x.ndim < 1 or x.shape[-1] != num_samples:
        raise ValueError(f"x has shape {x.shape}; its last axis must have the {num_samples} samples of y")
    if not np.all(np.isfinite(x)) or not np.all(np.any(x != 0, axis=-1)):
        raise ValueError("x must be finite and must not be zero throughout")
    return x


def _as_direction(a: ArrayLike, num_antennas: int) -> NDArray:
    a = np.asarray(a)
    if a.ndim < 1 or a.shape[-1] != num_antennas:
        raise ValueError(f"a has shape {a.shape}; its last axis must have the {num_antennas} antennas of y")
    return a


def _require_energy(y: NDArray, name: str, what: str) -> NDArray:
    """The energies (...), all finite and above zero."""
    energy = _energy(y)
    bad = ~(np.isfinite(energy) & (energy > 0))
    if bad.any():
        first = tuple(np.argwhere(bad)[0].tolist())
        where = f" at batch index {first}" if first else ""
        raise ValueError(f"{name} has energy {energy[first]:g}{where}; {what} needs a finite energy above zero")
    return energy
