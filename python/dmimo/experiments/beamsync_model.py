# SPDX-License-Identifier: GPL-3.0-or-later
r"""Phase synchronisation of two access points as a matrix model, by its sufficient statistics.

The model is that of `core.beamsync` with unit radiated power per sample and noise CN(0, 1 / SNR): orthonormal pilots
in stage I, a burst x of energy |x|^2 in stage II and its return in stage III. What the estimators read of the N
samples of a burst is less than the samples: with :math:`\xi = |x|`,

.. math::
    Y_{B1} \Phi^* = c_A G_e^T + W, \qquad
    z = Y_{A1} x^* / \xi = c_B G_e a \xi + w, \qquad
    |Y_{A1}|_F^2 = |z|^2 + \sigma^2 \Gamma_{M_A (N - 1)}, \qquad
    Y_{B2} x / \xi = \sqrt c\, c_A G_e^T z^* + w'

with w, w' of M_A and M_B independent entries and a gamma-distributed energy of the samples' other N - 1 dimensions.
The law is exactly that of the samples and the cost of a trial does not depend on N. The same draws serve every SNR,
energy, kind of return and estimator.
"""

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core import beamsync
from ..core.synchronization_bounds import phase_offset_crlb

Gains = Literal["unit", "normal"]
Returned = Literal["conjugate", "matched"]


class PairDraws(NamedTuple):
    """All that is random in T trials with R rounds of stages II and III, M_A leader and M_B follower antennas.

    Attributes
    ----------
    g_e : (T, M_A, M_B) effective channel.
    c_leader, c_follower : (T,) ``t_1 / r_1`` of the first antennas.
    pilot_noise : (T, M_B, M_A) CN(0, 1), stage I after projection on the pilots.
    leader_noise, follower_noise : (T, R, M_A) and (T, R, M_B) CN(0, 1), stages II and III after projection on x.
    rest_energy : (T, R) energy of the leader's noise, of unit variance, outside x.
    """

    g_e: NDArray
    c_leader: NDArray
    c_follower: NDArray
    pilot_noise: NDArray
    leader_noise: NDArray
    follower_noise: NDArray
    rest_energy: NDArray


def draw_pairs(
    rng: np.random.Generator, num_trials: int, num_leader: int, num_follower: int, num_samples: int, *,
    gains: Gains = "unit", rounds: int = 1, dtype=np.complex128, reduced: bool = False,
) -> PairDraws:
    """Draws of `num_trials` independent trials.

    Parameters
    ----------
    num_leader, num_follower : M_A, M_B.
    num_samples : N, of one round's burst.
    gains : t and r of every antenna, "unit": unit modulus and random phase; "normal": CN(0, 1), with which squared
        phase errors have no finite mean (compare medians). Of unit-modulus gains only those of the first antennas
        are drawn: the others do not change the law of ``g_e``.
    dtype : complex128, or complex64 at half the time.
    reduced : draw the channel bidiagonal, as Householder reflections at both nodes would leave it: 2 M gamma variables
        instead of M^2 normal ones. The noise does not notice the reflections, so whatever is invariant under them
        keeps its law: all errors and bounds here, not fixed beams. Only with unit gains.
    """
    if gains not in ("unit", "normal"):
        raise ValueError(f'gains = "{gains}" must be "unit" or "normal"')
    if reduced and gains != "unit":
        raise ValueError(f'reduced = True needs gains = "unit", not "{gains}"')
    draw = _bidiagonal if reduced else complex_normal
    g_e = draw(rng, (num_trials, num_leader, num_follower), dtype)
    if gains == "unit":
        c_leader, c_follower = np.exp(2j * np.pi * rng.random((2, num_trials))).astype(dtype)
    else:
        r_leader = complex_normal(rng, (num_trials, num_leader), dtype)
        r_follower = complex_normal(rng, (num_trials, num_follower), dtype)
        t_leader, t_follower = complex_normal(rng, (2, num_trials), dtype)
        g_e = r_leader[:, :, None] * g_e * r_follower[:, None, :]
        c_leader, c_follower = t_leader / r_leader[:, 0], t_follower / r_follower[:, 0]
    rest = rng.standard_gamma(num_leader * (num_samples - 1), size=(num_trials, rounds))
    return PairDraws(
        g_e, c_leader, c_follower,
        complex_normal(rng, (num_trials, num_follower, num_leader), dtype),
        complex_normal(rng, (num_trials, rounds, num_leader), dtype),
        complex_normal(rng, (num_trials, rounds, num_follower), dtype),
        rest.astype(g_e.real.dtype),
    )  # fmt: skip


def concatenate(draws: list[PairDraws]) -> PairDraws:
    """The trials of several draws, such as one per seed, one after another."""
    return PairDraws(*(np.concatenate(parts) for parts in zip(*draws, strict=True)))


def pilot_direction(
    draws: PairDraws, noise_var: float, *, pilot_energy: float = 1.0, method: beamsync.Method = "power"
) -> NDArray:
    """Stage I: the follower's direction a (T, M_B); `pilot_energy` of each of the M_A pilots, 1 in the paper."""
    real = draws.g_e.real.dtype.type
    y = draws.pilot_noise * real(np.sqrt(noise_var))
    y += (draws.c_leader * real(np.sqrt(pilot_energy)))[:, None, None] * np.swapaxes(draws.g_e, -2, -1)
    return beamsync.dominant_direction(y, method=method)


def exact_direction(draws: PairDraws, *, method: beamsync.Method = "eigh") -> NDArray:
    """The direction v_1 (T, M_B) of the channel itself: perfect CSI."""
    return beamsync.dominant_direction(np.swapaxes(draws.g_e, -2, -1), method=method)


class Exchange(NamedTuple):
    """What stages II and III left: phases refer to the truth, so the angle of a phasor is its error.

    phasor (T, R): ``a^T Y x`` of each round. yx (T, R, M_B): ``Y x / |x|`` of each round. return_gain (T, R): c_2 of
    eq. (5). directions (T, R, M_B): those used.
    """

    phasor: NDArray
    yx: NDArray
    return_gain: NDArray
    directions: NDArray


def exchange(
    draws: PairDraws, a: NDArray, noise_var: float, sync_energy: float, *,
    return_energy: float | None = None, returned: Returned = "conjugate",
) -> Exchange:
    """Stages II and III, as many rounds as were drawn, the first along a (T, M_B), others by `next_direction`.

    Parameters
    ----------
    sync_energy : ``|x|^2`` of one round, N at unit power.
    return_energy : of one round's return; None: the same.
    returned : "conjugate", all of what the leader received; "matched", what its matched filter kept.
    """
    if returned not in ("conjugate", "matched"):
        raise ValueError(f'returned = "{returned}" must be "conjugate" or "matched"')
    real = draws.g_e.real.dtype.type
    sigma, xi = real(np.sqrt(noise_var)), real(np.sqrt(sync_energy))
    back = real(np.sqrt(sync_energy if return_energy is None else return_energy))
    turn = draws.c_leader * np.conj(draws.c_follower)
    turn = np.conj(turn / np.abs(turn))[:, None]
    rounds = []
    for k in range(draws.leader_noise.shape[1]):
        z = (xi * draws.c_follower)[:, None] * _apply(draws.g_e, a) + sigma * draws.leader_noise[:, k]
        energy = np.sum(z.real**2 + z.imag**2, axis=-1)
        if returned == "conjugate":
            energy = energy + sigma**2 * draws.rest_energy[:, k]
        gain = back / np.sqrt(energy)
        y = (gain * draws.c_leader)[:, None] * _apply_transposed(draws.g_e, np.conj(z))
        y = turn * (y + sigma * draws.follower_noise[:, k])
        rounds.append((xi * np.sum(a * y, axis=-1), y, gain * np.abs(draws.c_leader), a))
        a = np.conj(y) / np.linalg.norm(y, axis=-1, keepdims=True)
    return Exchange(*(np.stack(parts, axis=1) for parts in zip(*rounds, strict=True)))


def errors(result: Exchange) -> NDArray:
    """Phase errors (T, R) in rad: of the phasors of the first round, of the first two together, and so on."""
    return np.angle(np.cumsum(result.phasor, axis=1))


def nls_errors(draws: PairDraws, result: Exchange) -> NDArray:
    """Phase errors (T, R) in rad of eq. (9), a genie that knows the channel, of each round by itself."""
    return np.angle(beamsync.nls_phasor(result.yx, result.directions, draws.g_e[:, None], result.return_gain))


def return_samples(
    rng: np.random.Generator, draws: PairDraws, a: NDArray, noise_var: float, x: NDArray, *,
    stage_two: NDArray | float = 0.0, stage_three: NDArray | float = 0.0, returned: Returned = "conjugate",
) -> NDArray:
    r"""Samples ``u(n) = (a^T Y_B2)(n)`` (T, N) of one round, with oscillators that turn; phases refer to the truth.

    For `core.beamsync.return_estimate` (``u[:, None, :]``, direction ``ones(1)``). Of what the leader receives only
    the component along :math:`G_e a` comes back into u, and of the rest the energy only, so a trial costs N scalars
    at each end whatever the number of antennas; the law is exactly that of the samples.

    Parameters
    ----------
    draws, a : channel, gains and the direction of stage II; the noise of stages II and III comes from `rng`.
    x : (N,) what the follower sends; the return has its energy.
    stage_two, stage_three : (N,) or (T, N), ``theta_A - theta_B`` in rad at the samples of the two stages. A receives
        with minus this phase and B with plus. For the paper's (43) and (44), in which both directions turn alike by
        the sum of the oscillators' phases, give minus that sum in stage II and plus that sum in stage III.
    """
    x = np.asarray(x)
    size, num = len(draws.g_e), x.shape[-1]
    sigma, energy = np.sqrt(noise_var), float(np.sum(np.abs(x) ** 2))
    others = draws.g_e.shape[1] - 1
    along = np.linalg.norm(_apply(draws.g_e, a), axis=-1)[:, None]
    heard = (draws.c_follower[:, None] * along) * x * np.exp(-1j * np.asarray(stage_two))
    heard = heard + sigma * complex_normal(rng, (size, num))
    if returned == "matched":
        heard = (heard @ np.conj(x))[:, None] / energy * x
        rest = rng.standard_gamma(others, size=(size, 1)) if others else 0.0
    elif returned == "conjugate":
        rest = rng.standard_gamma(others * num, size=(size, 1)) if others else 0.0
    else:
        raise ValueError(f'returned = "{returned}" must be "conjugate" or "matched"')
    total = np.sum(np.abs(heard) ** 2, axis=-1, keepdims=True) + noise_var * rest
    sent = np.sqrt(energy / total) * np.conj(heard)
    u = draws.c_leader[:, None] * along * sent * np.exp(1j * np.asarray(stage_three))
    turn = draws.c_leader * np.conj(draws.c_follower)
    return np.conj(turn / np.abs(turn))[:, None] * (u + sigma * complex_normal(rng, (size, num)))


def bound(
    draws: PairDraws, noise_var: float, num_samples: int, *, a: NDArray | None = None,
    power: float = 1.0, returned: Returned = "conjugate",
) -> NDArray:
    """Cramer-Rao bound (T,) in rad^2 of one round with N samples of mean power `power`; a None: along v_1."""
    return phase_offset_crlb(
        draws.g_e, noise_var, num_samples, a=a, leader_gain=np.abs(draws.c_leader) ** 2,
        follower_gain=np.abs(draws.c_follower) ** 2, power=power, returned=returned,
    )  # fmt: skip


def split_energy(total: float, share: float, num_leader: int, *, rounds: int = 1) -> tuple[float, float]:
    """(pilot_energy, sync_energy) of a total over all stages, `share` of which goes to stage I.

    The rest goes to stages II and III alike. The paper's L = M_A, N spends ``M_A + 2 N``, a share of M_A / (M_A + 2 N).
    """
    if not 0.0 < share < 1.0:
        raise ValueError(f"share = {share} must lie between 0 and 1")
    return total * share / num_leader, total * (1.0 - share) / (2.0 * rounds)


class PhaseTrials(NamedTuple):
    """Phase errors in rad of one round, all from the same draws, (T,) each, and the bound in rad^2."""

    simple: NDArray
    matched: NDArray
    nls: NDArray
    exact: NDArray
    bound: NDArray


def phase_trials(draws: PairDraws, noise_var: float, num_samples: int, *, pilot_energy: float = 1.0) -> PhaseTrials:
    """The paper's estimator, the matched return, the NLS genie, perfect CSI (a = v_1, NLS) and the bound at v_1."""
    a, best = pilot_direction(draws, noise_var, pilot_energy=pilot_energy), exact_direction(draws)
    first = draws._replace(leader_noise=draws.leader_noise[:, :1])
    plain = exchange(first, a, noise_var, num_samples)
    matched = exchange(first, a, noise_var, num_samples, returned="matched")
    genie = exchange(first, best, noise_var, num_samples)
    return PhaseTrials(
        errors(plain)[:, 0], errors(matched)[:, 0], nls_errors(first, plain)[:, 0], errors(genie)[:, 0],
        bound(draws, noise_var, num_samples),
    )  # fmt: skip


def complex_normal(rng: np.random.Generator, shape: tuple[int, ...], dtype=np.complex128) -> NDArray:
    """CN(0, 1) draws of the given shape."""
    dtype = np.dtype(dtype)
    real = np.float32 if dtype == np.complex64 else np.float64
    out = rng.standard_normal((*shape[:-1], 2 * shape[-1]), dtype=real)
    out *= real(np.sqrt(0.5))
    return out.view(dtype)


def _bidiagonal(rng: np.random.Generator, shape: tuple[int, int, int], dtype=np.complex128) -> NDArray:
    """Bidiagonal matrices with the singular values of CN(0, 1) matrices: energies are gamma variables."""
    trials, rows, columns = shape
    out = np.zeros(shape, dtype)
    k = np.arange(min(rows, columns))
    out[:, k, k] = np.sqrt(rng.standard_gamma(rows - k, size=(trials, len(k))))
    k = np.arange(min(rows, columns - 1))
    out[:, k, k + 1] = np.sqrt(rng.standard_gamma(columns - 1 - k, size=(trials, len(k))))
    return out


def _apply(g_e: NDArray, a: NDArray) -> NDArray:
    return (g_e @ a[..., None])[..., 0]


def _apply_transposed(g_e: NDArray, z: NDArray) -> NDArray:
    return (z[..., None, :] @ g_e)[..., 0, :]
