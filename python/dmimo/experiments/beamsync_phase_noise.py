# SPDX-License-Identifier: GPL-3.0-or-later
r"""Figure 10 of the BeamSync paper: phase error with the phase noise of two oscillators.

Each oscillator is a Wiener process with increments of variance :math:`4 \pi^2 f_c^2 c_{vco} T_s` per sample (eq. (40)).
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..core import beamsync
from ..core.waveforms import orthonormal_pilots
from . import beamsync_model as model
from . import error_statistics as statistics
from .registry import register
from .trials import SNR_LABEL, generators, noise_variances, steps

Sign = Literal["physics", "paper"]

# c_vco of section V-B [1 / (rad Hz)]; an ideal oscillator for comparison.
OSCILLATORS = {"LO 1": 1.7610e-19, "LO 2": 1.4647e-21, "ideal": 0.0}
KINDS = {
    "boundary": "physics, phase between stages II and III",
    "end": "physics, phase at the end of stage III",
    "paper": "the paper's sign, phase before stage I",
}


def increment_variance(c_vco: float, center_freq: float, sample_interval_s: float) -> float:
    """Variance [rad^2] of an oscillator's phase increment over `sample_interval_s`, below eq. (40)."""
    return 4.0 * np.pi**2 * center_freq**2 * c_vco * sample_interval_s


def turns(walk_a: NDArray, walk_b: NDArray, sign: Sign) -> tuple[NDArray, NDArray]:
    r"""Phases (..., samples) of what goes from A to B, and from B to A, from the phases of the two oscillators.

    "physics": A's chain adds :math:`+\theta_A`, B's receiver :math:`-\theta_B`, so A to B carries
    :math:`\theta_A - \theta_B` and B to A the opposite. "paper": :math:`\omega = \omega_A + \omega_B` both ways, eq.
    (42) to (44).
    """
    if sign == "physics":
        return walk_a - walk_b, walk_b - walk_a
    if sign == "paper":
        return walk_a + walk_b, walk_a + walk_b
    raise ValueError(f"sign={sign!r} must be 'physics' or 'paper'")


def walk_variance(weights: NDArray) -> float:
    """Variance of sum_n weights[n] w(n) of a random walk w with unit increments; the weights must sum to zero.

    The increment between samples k and k + 1 enters with the sum of all weights after it.
    """
    if abs(np.sum(weights)) > 1e-9 * np.sum(np.abs(weights)):
        raise ValueError(f"weights sum to {np.sum(weights)}, not to 0")
    return float(np.sum(np.cumsum(weights[::-1]) ** 2))


def drift_variance(num_pilots: int, num_samples: int, kind: str) -> float:
    r"""Variance of the estimate about the phase it is held against, in units of that of theta_A - theta_B's increments.

    The estimate is the mean over the burst of the sum (physics) or difference (paper) of the walk at a symbol of stage
    III and at the same symbol of stage II, N samples earlier. "boundary" is held against the sum of the last
    sample of stage II and the first of stage III, "end" against twice the last of stage III, "paper" against zero. For
    "boundary" that is (N - 1)(2 N - 1) / (3 N), for "paper" (2 N^2 + 1) / (3 N).
    """
    two, three = num_pilots + np.arange(num_samples), num_pilots + num_samples + np.arange(num_samples)
    weights = np.zeros(num_pilots + 2 * num_samples)
    weights[three] += 1.0 / num_samples
    weights[two] += (-1.0 if kind == "paper" else 1.0) / num_samples
    if kind == "boundary":
        weights[[two[-1], three[0]]] -= 1.0
    elif kind == "end":
        weights[three[-1]] -= 2.0
    return walk_variance(weights)


def summarise(configuration: Mapping, arrays: Mapping[str, NDArray]) -> dict:
    """RMSE by oscillator and sign, and the bound and the closed-form drift together."""
    gains = configuration["gains"]
    num_pilots, num_samples = configuration["num_antennas"], configuration["num_samples"]
    families, floors = [], {}
    for index, (name, c_vco) in enumerate(OSCILLATORS.items()):
        kinds = KINDS if c_vco > 0 else ["boundary"]
        curves = [statistics.error_curve(arrays[f"error_{kind}"][:, index], gains) if kind in kinds else None
                  for kind in KINDS]
        variance = 2.0 * increment_variance(c_vco, configuration["center_freq"], configuration["sample_interval_s"])
        floors[name] = {kind: np.sqrt(variance * drift_variance(num_pilots, num_samples, kind)) for kind in KINDS}
        total = arrays["bound"] + floors[name]["boundary"] ** 2
        families.append({"label": name, "curves": curves, "dashed": statistics.bound_curve(total, gains)})
    return {
        "title": f"Phase with phase noise, {num_pilots} antennas each, L = {num_pilots}, N = {num_samples}",
        "caption": statistics.caption(len(arrays["bound"]), configuration),
        "x_label": SNR_LABEL,
        "y_label": f"{statistics.statistic_name(gains)} of the phase [rad]", "x": list(configuration["snr_db"]),
        "kinds": list(KINDS.values()), "bound": "bound, and drift about the boundary", "families": families,
        "drift_rad": floors,
    }  # fmt: skip


@register(
    "beamsync-10",
    title="Phase error against SNR with phase noise of two oscillators, in the physical and the paper's sign",
    summarise=summarise,
    plot="curve_families",
    defaults={"num_antennas": 16, "num_samples": 20, "snr_db": steps(-10, 40, 5), "center_freq": 3e9,
              "sample_interval_s": 1e-3 / 14, "gains": "unit"},
    trials=1000,
)
def trial_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, NDArray]:
    r"""Phase errors (trials, oscillators, SNRs) of each of `KINDS`, through every received sample.

    The stages follow each other without a gap: pilots at samples 1 ... L, stage II L + 1 ... L + N, stage III the next
    N; a symbol of x returns N samples after it was sent. x is a complex sinusoid, one turn in the burst.

    Where the paper's equations do not hold: (42) to (44) give both directions the sum of the phases,
    so that the return undoes the oscillators' turn and N steps of it remain. In fact the directions carry opposite
    signs, phi turns by twice :math:`\theta_A - \theta_B`, and the estimate belongs to the boundary of stages II and
    III. Held against the phase there, the error is that of the paper's figure within 4 %: variances
    (N - 1)(2 N - 1) / (3 N) and (2 N^2 + 1) / (3 N) increments. But already at the end of stage III phi has moved on,
    and the error is twice as large. "BeamSync can perform well in the presence of phase noise" therefore
    holds for LO 2 at the paper's T = 1/14 ms (0.030 rad at the boundary) and not for LO 1 (0.33 rad), whatever the
    SNR. The paper does not say whether T_s is the symbol's interval T or that of a sample at 20 MHz; with
    ``sample_interval_s`` of 50 ns both are 38 times smaller.
    """
    num, num_samples = configuration["num_antennas"], configuration["num_samples"]
    rngs = generators(seeds)
    draws = model.concatenate([model.draw_pairs(rng, 1, num, num, num_samples, gains=configuration["gains"])
                               for rng in rngs])
    noise = [np.stack(parts) for parts in zip(*(_sample_noise(rng, num, num_samples) for rng in rngs), strict=True)]
    walks = np.cumsum([rng.standard_normal((2, num + 2 * num_samples)) for rng in rngs], axis=-1)
    walks -= walks[..., :1]
    noise_var = np.array(noise_variances(configuration))
    rows = []
    for c_vco in OSCILLATORS.values():
        std = np.sqrt(increment_variance(c_vco, configuration["center_freq"], configuration["sample_interval_s"]))
        row = {kind: np.empty((len(seeds), len(noise_var))) for kind in KINDS}
        for index, variance in enumerate(noise_var):
            for sign in ("physics", "paper"):
                for kind, error in _errors(draws, noise, std * walks, variance, sign).items():
                    row[kind][:, index] = error
        rows.append(row)
    arrays = {f"error_{kind}": np.stack([row[kind] for row in rows], axis=1) for kind in KINDS}
    bound = np.stack([model.bound(draws, variance, num_samples) for variance in noise_var], axis=-1)
    return {**arrays, "bound": bound}


def _sample_noise(rng: np.random.Generator, num: int, num_samples: int) -> list[NDArray]:
    """Unit noise of the three stages, (M_B, L), (M_A, N), (M_B, N)."""
    return [model.complex_normal(rng, (num, length)) for length in (num, num_samples, num_samples)]


def _errors(draws: model.PairDraws, noise: Sequence[NDArray], walks: NDArray, noise_var: float, sign: Sign) -> dict:
    """Phase errors (T,) of the kinds that belong to a sign."""
    num, num_samples = draws.g_e.shape[-1], noise[1].shape[-1]
    forward, back = turns(walks[:, 0], walks[:, 1], sign)
    parts = np.split(np.arange(walks.shape[-1]), [num, num + num_samples])
    sigma, x = np.sqrt(noise_var), np.exp(2j * np.pi * np.arange(num_samples) / num_samples)
    down = draws.c_leader[:, None, None] * np.swapaxes(draws.g_e, -2, -1)
    up = draws.c_follower[:, None, None] * draws.g_e
    pilots = orthonormal_pilots(num, num)
    y = down @ pilots * np.exp(1j * forward[:, None, parts[0]]) + sigma * noise[0]
    a = beamsync.dominant_direction(y @ pilots.conj().T)
    y = (up @ a[..., None]) * x * np.exp(1j * back[:, None, parts[1]]) + sigma * noise[1]
    y = down @ beamsync.conjugate_return(y) * np.exp(1j * forward[:, None, parts[2]]) + sigma * noise[2]
    phi = np.angle(draws.c_leader * draws.c_follower.conj())
    error = beamsync.phase_offset(y, a, x) - phi
    if sign == "paper":
        return {"paper": statistics.wrap(error)}
    boundary = forward[:, parts[1][-1]] + forward[:, parts[2][0]]
    return {"boundary": statistics.wrap(error - boundary), "end": statistics.wrap(error - 2.0 * forward[:, -1])}
