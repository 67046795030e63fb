# SPDX-License-Identifier: GPL-3.0-or-later
"""Downlink channels from uplink channels and a calibration, and the precoding weights for them.

Every function is batched over leading axes; in a wideband system the subcarriers are one of them. Channels have the
receiver first: `h_ul` (..., ports, users), `h_dl` (..., users, ports). Weights w (..., ports, users) send x = w s, and
the users receive h_dl w s.

Normalisation of the weights, for each matrix of the batch, always by one common positive scalar, so that the ratios of
what the users receive stay as computed: `power="total"`, the sum of :math:`|w|^2` over ports and users is 1;
`power="port"`, the most loaded port sends 1 / num_ports, every other one at most as much.
"""

from typing import Literal

import numpy as np

Power = Literal["total", "port"]


def downlink_channel(c, h_ul, *, user_axis: bool = True) -> np.ndarray:
    r"""Downlink channel of each user, up to one scalar per user, :math:`h^{dl}_{um} = c_m h^{ul}_{mu}`.

    With :math:`h^{ul}_{mu} = r_m g_{mu} t_u` and :math:`h^{dl}_{um} = r_u g_{mu} t_m` the ratio is
    :math:`c_m / c_u`; a user's own coefficient scales all that it receives and needs no calibration.

    Parameters
    ----------
    c : array_like (..., ports)
        Calibration :math:`c_m = t_m / r_m`, at the midpoint of the two times (`calibration_between`).
    h_ul : array_like (..., ports, users), or (..., ports) with ``user_axis=False``
    user_axis : bool
        Whether the last axis of `h_ul` counts users; without it there is one user and the result is `c * h_ul`.

    Returns
    -------
    ndarray (..., users, ports), or (..., ports)

    Raises
    ------
    ValueError
        If the numbers of ports differ.
    """
    c, h_ul = np.asarray(c), np.asarray(h_ul)
    axis = -2 if user_axis else -1
    if h_ul.ndim < -axis or h_ul.shape[axis] != c.shape[-1]:
        raise ValueError(f"h_ul has shape {h_ul.shape}, its axis {axis} must be the {c.shape[-1]} ports of c")
    return np.swapaxes(c[..., :, None] * h_ul, -2, -1) if user_axis else c * h_ul


def apply_calibration(weights, c) -> np.ndarray:
    r"""Weights for the downlink from weights designed on the uplink channel, :math:`w_m / c_m`.

    For weights w that suit the transpose of the uplink channel, :math:`h^{dl} (w / c) = (h^{ul})^T w` up to one
    scalar per user. Zero-forcing stays exact; for MRT and regularised weights with unequal :math:`|c_m|`, computing the
    weights from `downlink_channel` is better. The result is not normalised again.

    Parameters
    ----------
    weights : array_like (..., ports, users)
    c : array_like (..., ports)
        No coefficient may be 0.

    Returns
    -------
    ndarray (..., ports, users)

    References
    ----------
    Vieira and Larsson, beam-sweep calibration, section II-A, where C maps to t / r here.
    """
    weights, c = np.asarray(weights), np.asarray(c)
    if weights.ndim < 2 or weights.shape[-2] != c.shape[-1]:
        raise ValueError(f"weights has shape {weights.shape}, its axis -2 must be the {c.shape[-1]} ports of c")
    if not np.all(np.abs(c) > 0):
        raise ValueError("c must not contain zeros or NaN")
    return weights / c[..., :, None]


def calibration_at(c, frequency_hz, reference_time: int, time, samp_rate: float) -> np.ndarray:
    r"""Calibration at another time, :math:`c_m(t) = c_m(t_0) e^{+4j \pi f_m (t - t_0)}`.

    Transmit and receive chains turn by :math:`e^{+j\theta}` and :math:`e^{-j\theta}`, so c turns by twice the phase of
    the local oscillator.

    Parameters
    ----------
    c : array_like (..., ports)
        Calibration at `reference_time`.
    frequency_hz : array_like (..., ports)
        Frequency offset of each port's local oscillator (one way, not of c), relative to any common reference.
    reference_time, time : int
        In samples since the epoch; `time` may be an integer array that broadcasts with the leading axes of c.
    samp_rate : float

    Returns
    -------
    ndarray (..., ports)

    Raises
    ------
    ValueError
        If a time is not an integer.
    """
    return calibration_between(c, frequency_hz, reference_time, time, time, samp_rate)


def calibration_between(c, frequency_hz, reference_time: int, uplink_time, downlink_time, samp_rate: float):
    r"""Calibration that turns a channel measured at one time into the downlink channel at another.

    The uplink carries the oscillator phase :math:`-\theta_m(t_u)`, the downlink :math:`+\theta_m(t_d)`; their ratio
    turns by :math:`\theta_m(t_u) + \theta_m(t_d)`, which for a constant frequency is c at the midpoint
    :math:`(t_u + t_d) / 2`. The sum of the times is formed in integers, so half samples and long runs are exact.

    Parameters
    ----------
    c, frequency_hz, reference_time, samp_rate
        As in `calibration_at`.
    uplink_time, downlink_time : int
        Middles of the two symbols (`SlotLayout.middle`), in samples since the epoch.

    Returns
    -------
    ndarray (..., ports)
    """
    reference = _whole("reference_time", reference_time)
    doubled = _whole("uplink_time", uplink_time) + _whole("downlink_time", downlink_time) - 2 * reference
    if not samp_rate > 0:
        raise ValueError(f"samp_rate={samp_rate} must be positive")
    cycles = np.asarray(frequency_hz, np.float64) * (doubled[..., None] / samp_rate)
    return np.asarray(c) * np.exp(2j * np.pi * cycles)


def mrt(h, *, power: Power = "total") -> np.ndarray:
    r"""Maximum-ratio (conjugate) weights :math:`w \propto h^H`: for one user the most power of any unit-power weights.

    Several users share the power in proportion to their channel gains, the limit of `regularised_zero_forcing` for
    strong regularisation.

    Parameters
    ----------
    h : array_like (..., users, ports)
        Downlink channel.
    power : "total" or "port"

    Returns
    -------
    ndarray (..., ports, users)

    Raises
    ------
    ValueError
        If a channel is zero or not finite.
    """
    return _normalised(_hermitian(_checked(h)), power)


def zero_forcing(h, *, power: Power = "total") -> np.ndarray:
    r"""Zero-forcing weights :math:`w \propto h^H (h h^H)^{-1}`: every user receives its own stream alone.

    All users receive the same amplitude; the least transmit power of all weights that do so.

    Parameters
    ----------
    h : array_like (..., users, ports)
        Downlink channel with users <= ports and full row rank.
    power : "total" or "port"

    Returns
    -------
    ndarray (..., ports, users)

    Raises
    ------
    ValueError
        If there are more users than ports, or two users cannot be separated (rank deficient).
    """
    h = _checked(h)
    users, ports = h.shape[-2:]
    if users > ports:
        raise ValueError(f"h has {users} users and {ports} ports: zero-forcing needs at least as many ports as users")
    u, s, vh = np.linalg.svd(h, full_matrices=False)
    # The threshold of numpy.linalg.matrix_rank: singular values below it are rounding errors.
    deficient = s[..., -1] <= s[..., 0] * ports * np.finfo(s.dtype).eps
    if np.any(deficient):
        where = "" if deficient.ndim == 0 else f" at batch index {tuple(np.argwhere(deficient)[0].tolist())}"
        raise ValueError(f"h is rank deficient{where}: its {users} users cannot be separated")
    return _normalised((_hermitian(vh) / s[..., None, :]) @ _hermitian(u), power)


def regularised_zero_forcing(h, regularisation, *, power: Power = "total") -> np.ndarray:
    r"""Regularised zero-forcing weights :math:`w \propto h^H (h h^H + \alpha I)^{-1}`.

    :math:`\alpha \to 0` is zero-forcing, :math:`\alpha \to \infty` MRT; users times noise variance over total transmit
    power is the choice of least mean square error.

    Parameters
    ----------
    h : array_like (..., users, ports)
        Downlink channel.
    regularisation : float or array_like (...)
        :math:`\alpha > 0`, in the unit of :math:`|h|^2`.
    power : "total" or "port"

    Returns
    -------
    ndarray (..., ports, users)

    Raises
    ------
    ValueError
        If the regularisation is not positive (zero: use `zero_forcing`) or a channel is zero or not finite.

    References
    ----------
    Peel, Hochwald and Swindlehurst, "A vector-perturbation technique for near-capacity multiantenna multiuser
    communication, part I," IEEE Trans. Commun., 2005.
    """
    h, alpha = _checked(h), np.asarray(regularisation, np.float64)
    if not np.all(alpha > 0):
        raise ValueError(f"regularisation={regularisation} must be positive")
    gram = h @ _hermitian(h) + alpha[..., None, None] * np.eye(h.shape[-2])
    return _normalised(_hermitian(np.linalg.solve(gram, h)), power)


def _normalised(weights: np.ndarray, power: Power) -> np.ndarray:
    port_power = np.sum(weights.real**2 + weights.imag**2, axis=-1)
    if power == "total":
        scale = port_power.sum(axis=-1)
    elif power == "port":
        scale = port_power.max(axis=-1) * weights.shape[-2]
    else:
        raise ValueError(f"power={power!r} must be 'total' or 'port'")
    return weights / np.sqrt(scale)[..., None, None]


def _checked(h) -> np.ndarray:
    h = np.asarray(h)
    if h.ndim < 2:
        raise ValueError(f"h has shape {h.shape}, it must be (..., users, ports)")
    if not np.all(np.isfinite(h)):
        raise ValueError("h must be finite")
    if np.any(np.max(np.abs(h), axis=(-2, -1)) == 0):
        raise ValueError("h must not be zero")
    return h


def _hermitian(a: np.ndarray) -> np.ndarray:
    return np.conj(np.swapaxes(a, -2, -1))


def _whole(name: str, time) -> np.ndarray:
    value = np.asarray(time)
    if value.dtype.kind not in "iu":
        raise ValueError(f"{name}={time!r} must be an integer number of samples")
    return value.astype(np.int64)
