# SPDX-License-Identifier: GPL-3.0-or-later
r"""Figures 6 to 9 of the BeamSync paper: error of the phase against SNR, antennas and burst length.

The SNR axis is 1 / sigma^2 at unit radiated power per symbol: orthonormal pilots, :math:`|x|^2 = N`, a return of energy
N. Errors are those of phi, in (-pi, pi]. With the configuration's ``"gains": "normal"``, the paper's t and r from
CN(0, 1), the curves are medians: the mean square is infinite there (`error_statistics.error_curve`). The noise of a
trial is the same at each SNR but for its scale, which leaves every point exact and makes the curves smooth.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..core import bounds, reciprocity
from ..core.synchronization_bounds import dominant_phase_offset_crlb, largest_eigenvalue
from . import beamsync_model as model
from . import error_statistics as statistics
from . import fixed_grid_of_beams as grid
from .registry import register
from .trials import SNR_LABEL, generators, noise_variances, stack, steps

_BLOCK = 200


class Pairs:
    """Draws of a batch of trials with M antennas at each end, for BeamSync and for FGB, and the bound on them."""

    def __init__(self, rngs: Sequence[np.random.Generator], num_antennas: int, num_samples: int, gains: str):
        size = (num_antennas, num_antennas, num_samples)
        self.draws = model.concatenate([model.draw_pairs(rng, 1, *size, gains=gains, dtype=np.complex64)
                                        for rng in rngs])
        self.beams = grid.stack([grid.draw_noise(rng, *size) for rng in rngs])
        self.h = grid.beam_channel(self.draws.g_e)
        self.phi = np.angle(self.draws.c_leader * self.draws.c_follower.conj())
        self._eigenvalue = largest_eigenvalue(self.draws.g_e)

    def redraw_rest(self, rngs: Sequence[np.random.Generator], num_samples: int) -> None:
        """Give the bursts another length: all that depends on it is the energy of the noise outside x."""
        num_antennas = self.h.shape[-1]
        rest = np.stack([rng.standard_gamma(num_antennas * (num_samples - 1), size=1) for rng in rngs])
        beams = np.stack([rng.standard_gamma(num_samples - 1, size=num_antennas) for rng in rngs])
        rest = rest.astype(np.float32)
        self.draws, self.beams = self.draws._replace(rest_energy=rest), self.beams._replace(rest=beams)

    def bound(self, noise_var: float, num_samples: int) -> NDArray:
        """Cramer-Rao bound along v_1 (T,) [rad^2]."""
        return dominant_phase_offset_crlb(
            self._eigenvalue, noise_var, num_samples, self.h.shape[-2],
            leader_gain=np.abs(self.draws.c_leader) ** 2, follower_gain=np.abs(self.draws.c_follower) ** 2,
        )  # fmt: skip

    def exchange(self, noise_var: float, num_samples: int, returned: model.Returned = "conjugate") -> model.Exchange:
        """Stages I to III of the paper."""
        a = model.pilot_direction(self.draws, noise_var)
        return model.exchange(self.draws, a, noise_var, num_samples, returned=returned)

    def fgb(self, noise_var: float, num_samples: int, reading: grid.Reading) -> NDArray:
        """Error of a fixed grid of beams (T,) [rad]."""
        found, _ = grid.phase(self.h, self.draws.c_leader, self.draws.c_follower, num_samples, noise_var, self.beams,
                              reading)
        return statistics.wrap(found - self.phi)


def _summary(configuration: Mapping, arrays: Mapping[str, NDArray], labels: Mapping[str, str],
             bound_labels: Mapping[str, str], title: str) -> dict:
    """Summary for `plotting.error_curves`, with the SNR at which each curve reaches `WANTED_RMSE`."""
    gains, snr_db = configuration["gains"], configuration["snr_db"]
    curves = {key: statistics.error_curve(arrays[f"error_{key}"], gains) for key in labels}
    dashed = {key: statistics.bound_curve(arrays[key], gains) for key in bound_labels}
    reached = {labels[key]: statistics.snr_at(snr_db, curve["mean"], statistics.WANTED_RMSE)
               for key, curve in curves.items()}
    reached |= {bound_labels[key]: statistics.snr_at(snr_db, values, statistics.WANTED_RMSE)
                for key, values in dashed.items()}
    return {
        "title": title,
        "caption": statistics.caption(len(arrays["bound"]), configuration),
        "x_label": SNR_LABEL,
        "y_label": f"{statistics.statistic_name(gains)} of the phase [rad]",
        "x": list(snr_db),
        "curves": [{"label": labels[key], **curve} for key, curve in curves.items()],
        "dashed": [{"label": bound_labels[key], "values": values} for key, values in dashed.items()],
        "snr_db_at_3_mrad": reached,
    }


# -- figure 6 ---------------------------------------------------------------------------------------------------------

_FIGURE_6 = {"simple": "BeamSync", "matched": "BeamSync, matched return", "sweep_32": "beam sweep [32], closed form",
             **{reading: label for reading, label in grid.READINGS.items()}}


def summarise_6(configuration: Mapping, arrays: Mapping[str, NDArray]) -> dict:
    """RMSE of BeamSync and its baselines at equal energy, with the bounds on BeamSync and on the beam sweep."""
    num = configuration["num_antennas"]
    return _summary(
        configuration, arrays, _FIGURE_6, {"bound": "bound, BeamSync", "bound_sweep": "bound, beam sweep"},
        f"Phase of two access points of {num} antennas, total energy {2 * num} symbols",
    )  # fmt: skip


@register(
    "beamsync-6",
    title="Phase error against SNR: BeamSync, beam sweep of two nodes, fixed grid of beams, at equal energy",
    summarise=summarise_6,
    plot="error_curves",
    defaults={"num_antennas": 16, "snr_db": steps(-20, 30, 2.5), "gains": "unit"},
    trials=2000,
    block=_BLOCK,
)
def beamsync_6(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, NDArray]:
    r"""Phase errors (trials, SNRs) with M antennas at each end, L = M and N = M / 2: 2 M symbols of energy in all.

    The beam sweep [32], all antennas with their own chains, spends the same as M orthonormal pilots in each direction:
    :math:`Y_A = c_B G_e + W`, :math:`Y_B^T = c_A G_e + W'`, and the maximum-likelihood estimate of two nodes is closed:
    :math:`\hat\varphi = \angle \langle Y_A, Y_B^T \rangle` (`core.reciprocity.calibrate` with Q = M^2 paths).

    Where the paper's sentences do not hold:

    * "BeamSync performs 3 dB better" than [32] is the limit of many antennas. The variances are
      :math:`\sigma^2 / (N \lambda_1)` and :math:`\sigma^2 / |G_e|_F^2`, so the gain is
      :math:`\lambda_1 N / M^2 = \lambda_1 / (2 M)`, and :math:`\lambda_1 \to 4 M` only slowly: 2.2 dB at 16 antennas by
      the bounds, and as measured at 3 mrad.
    * "much better at low SNR" is so against FGB. Against [32] with its maximum-likelihood estimate it is not: below
      -5 dB the beam sweep is the better of the two (0.59 to 0.74 rad at -10 dB), since the return is mostly
      amplified noise and the direction is poor. The matched-filter return removes the first of these reasons: 0.35 rad.
    """
    num = configuration["num_antennas"]
    rngs = generators(seeds)
    pairs = Pairs(rngs, num, num // 2, configuration["gains"])
    reverse = np.concatenate([model.complex_normal(rng, (1, num, num)) for rng in rngs])
    points = []
    for noise_var in noise_variances(configuration):
        error, variance = _beam_sweep(pairs, reverse, noise_var)
        points.append({
            "error_simple": model.errors(pairs.exchange(noise_var, num // 2))[:, 0],
            "error_matched": model.errors(pairs.exchange(noise_var, num // 2, "matched"))[:, 0],
            "error_sweep_32": error,
            **{f"error_{reading}": pairs.fgb(noise_var, num // 2, reading) for reading in grid.READINGS},
            "bound": pairs.bound(noise_var, num // 2), "bound_sweep": variance,
        })  # fmt: skip
    return stack(points)


def _beam_sweep(pairs: Pairs, reverse: NDArray, noise_var: float) -> tuple[NDArray, NDArray]:
    """Error of the two-node beam sweep (T,) [rad] and its bound [rad^2]."""
    draws, sigma = pairs.draws, np.sqrt(noise_var)
    paths = draws.g_e.reshape(len(draws.g_e), -1)
    y = np.zeros((len(paths), 2, 2, paths.shape[-1]), np.complex128)
    y[:, 0, 1] = draws.c_follower[:, None] * paths + sigma * reverse.reshape(paths.shape)
    forward = np.swapaxes(draws.pilot_noise, -2, -1).reshape(paths.shape)
    y[:, 1, 0] = draws.c_leader[:, None] * paths + sigma * forward
    c = np.stack([draws.c_leader, draws.c_follower], axis=-1)
    energy = np.sum(np.abs(paths) ** 2, axis=-1)[:, None, None] * (1.0 - np.eye(2))
    covariance = bounds.calibration_crlb(c, energy, noise_var)
    # Half of the complex variance of log c_1 with c_0 fixed is that of the phase.
    difference = np.array([1.0, -1.0])
    variance = 0.5 * np.einsum("i,tij,j->t", difference, covariance, difference).real
    estimate = reciprocity.calibrate(y, reference=0)[:, 1]
    return statistics.wrap(-np.angle(estimate) - pairs.phi), variance


# -- figure 7 ---------------------------------------------------------------------------------------------------------

_FIGURE_7 = {"simple": "BeamSync, simple estimator", "nls": "NLS, channel known",
             "exact": "channel and direction known", **{reading: label for reading, label in grid.READINGS.items()}}


def summarise_7(configuration: Mapping, arrays: Mapping[str, NDArray]) -> dict:
    """RMSE of each estimator and the bound, with the gain over the fixed grid of beams at 3 mrad."""
    num, num_samples = configuration["num_antennas"], configuration["num_samples"]
    title = f"Phase of two access points, {num} antennas each, L = {num}, N = {num_samples}"
    summary = _summary(configuration, arrays, _FIGURE_7, {"bound": "Cramér-Rao bound"}, title)
    reached = summary["snr_db_at_3_mrad"]
    summary["gain_over_fgb_db"] = {
        label: statistics.gain_db(reached[_FIGURE_7["simple"]], reached[label]) for label in grid.READINGS.values()
    }
    return summary


@register(
    "beamsync-7",
    title="Phase error against SNR: simple estimator, channel known, fixed grid of beams, bound",
    summarise=summarise_7,
    plot="error_curves",
    defaults={"num_antennas": 16, "num_samples": 100, "snr_db": steps(-20, 27.5, 2.5), "gains": "unit"},
    trials=2000,
    block=_BLOCK,
)
def beamsync_7(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, NDArray]:
    """Phase errors (trials, SNRs) of BeamSync's estimators, of two genies and of FGB.

    "NLS, channel known" has the direction of stage I and eq. (9) with the true channel; "channel and direction known"
    also sends along the true v_1.
    """
    num, num_samples = configuration["num_antennas"], configuration["num_samples"]
    pairs = Pairs(generators(seeds), num, num_samples, configuration["gains"])
    best = model.exact_direction(pairs.draws)
    points = []
    for noise_var in noise_variances(configuration):
        found = pairs.exchange(noise_var, num_samples)
        genie = model.exchange(pairs.draws, best, noise_var, num_samples)
        points.append({
            "error_simple": model.errors(found)[:, 0],
            "error_nls": model.nls_errors(pairs.draws, found)[:, 0],
            "error_exact": model.nls_errors(pairs.draws, genie)[:, 0],
            **{f"error_{reading}": pairs.fgb(noise_var, num_samples, reading) for reading in grid.READINGS},
            "bound": pairs.bound(noise_var, num_samples),
        })  # fmt: skip
    return stack(points)


# -- figures 8 and 9 --------------------------------------------------------------------------------------------------

_KINDS_8 = {"simple": "BeamSync, simple", "nls": "NLS, channel known", "sweep": grid.READINGS["sweep"]}
# Where doublings are compared: far enough up that stage I's noise does not tell, for any number of antennas.
_DOUBLING_RMSE = 1.5e-3
_KINDS_9 = {"simple": "BeamSync, simple", "sweep": grid.READINGS["sweep"]}


def summarise_8(configuration: Mapping, arrays: Mapping[str, NDArray]) -> dict:
    """Families of curves by antennas, and the gain per doubling at 1.5 mrad: of the simulation, the bound and FGB."""
    gains, snr_db = configuration["gains"], configuration["snr_db"]
    families, reached = [], []
    for index, num in enumerate(configuration["num_antennas"]):
        curves = {key: statistics.error_curve(arrays[f"error_{key}"][:, index], gains) for key in _KINDS_8}
        dashed = statistics.bound_curve(arrays["bound"][:, index], gains)
        families.append({"label": f"M = {num}", "curves": list(curves.values()), "dashed": dashed})
        levels = {"simulated": curves["simple"]["mean"], "bound": dashed, "FGB": curves["sweep"]["mean"]}
        reached.append({key: statistics.snr_at(snr_db, values, _DOUBLING_RMSE) for key, values in levels.items()})
    pairs = list(zip(reached[:-1], reached[1:], configuration["num_antennas"], strict=False))
    return {
        "title": f"Phase of two access points of M antennas, L = M, N = {configuration['num_samples']}",
        "caption": statistics.caption(len(arrays["bound"]), configuration),
        "x_label": SNR_LABEL, "y_label": f"{statistics.statistic_name(gains)} of the phase [rad]",
        "x": list(snr_db), "kinds": list(_KINDS_8.values()), "bound": "Cramér-Rao bound", "families": families,
        "snr_db_at_1_5_mrad": reached,
        "gain_per_doubling_db": [{"from": num, **{key: statistics.gain_db(after[key], before[key]) for key in before}}
                                 for before, after, num in pairs],
    }  # fmt: skip


@register(
    "beamsync-8",
    title="Phase error against SNR for 4 to 64 antennas",
    summarise=summarise_8,
    plot="curve_families",
    defaults={"num_antennas": [4, 8, 16, 32, 64], "num_samples": 100, "snr_db": steps(-10, 32.5, 2.5), "gains": "unit"},
    trials=2000,
    block=_BLOCK,
)
def beamsync_8(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, NDArray]:
    r"""Phase errors (trials, numbers of antennas, SNRs), M at each end; each M must be twice the one before.

    Where the paper's sentences do not hold: the gain per doubling is 3 dB only in the limit. :math:`\lambda_1` is near
    :math:`4 M - 4.46 M^{1/3}` on average (Tracy-Widom), so by the bound it is 4.1, 3.6, 3.3 and 3.2 dB from 4, 8, 16
    and 32 antennas, and the simulation follows it. At 3 mrad the last of these is 0.5 dB less: 64 antennas are there
    at 7 dB already, where stage I's noise tells. FGB does improve, by the larger choice of beam pairs, but less with
    each doubling: the best of M^2 pairs is only logarithmically better, ln(M^2) + 0.58 in mean energy.
    """
    rngs = generators(seeds)
    num_samples, sizes = configuration["num_samples"], []
    for num in configuration["num_antennas"]:
        pairs, points = Pairs(rngs, num, num_samples, configuration["gains"]), []
        for noise_var in noise_variances(configuration):
            found = pairs.exchange(noise_var, num_samples)
            points.append({
                "error_simple": model.errors(found)[:, 0], "error_nls": model.nls_errors(pairs.draws, found)[:, 0],
                "error_sweep": pairs.fgb(noise_var, num_samples, "sweep"), "bound": pairs.bound(noise_var, num_samples),
            })  # fmt: skip
        sizes.append(stack(points))
    return {key: np.stack([size[key] for size in sizes], axis=1) for key in sizes[0]}


def summarise_9(configuration: Mapping, arrays: Mapping[str, NDArray]) -> dict:
    """Families of curves by SNR over the burst length, and the slope of the error over the last decade."""
    gains, num_samples = configuration["gains"], configuration["num_samples"]
    families, slopes = [], []
    for index, snr_db in enumerate(configuration["snr_db"]):
        curves = [statistics.error_curve(arrays[f"error_{key}"][..., index], gains) for key in _KINDS_9]
        dashed = statistics.bound_curve(arrays["bound"][..., index], gains)
        families.append({"label": f"{snr_db:g} dB", "curves": curves, "dashed": dashed})
        ends = np.log([curves[0]["mean"][-1], curves[0]["mean"][0], num_samples[-1], num_samples[0]])
        slopes.append(float((ends[0] - ends[1]) / (ends[2] - ends[3])))
    return {
        "title": f"Phase of two access points, {configuration['num_antennas']} antennas each",
        "caption": statistics.caption(len(arrays["bound"]), configuration),
        "x_label": "length N of the synchronisation signal [symbols]", "x_scale": "log", "families_title": "SNR",
        "y_label": f"{statistics.statistic_name(gains)} of the phase [rad]", "x": list(num_samples),
        "kinds": list(_KINDS_9.values()), "bound": "Cramér-Rao bound", "families": families,
        "slope": slopes,
    }  # fmt: skip


@register(
    "beamsync-9",
    title="Phase error against the length of the synchronisation signal",
    summarise=summarise_9,
    plot="curve_families",
    defaults={"num_antennas": 16, "num_samples": [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000],
              "snr_db": [-10.0, 0.0, 10.0, 20.0], "gains": "unit"},
    trials=2000,
    block=_BLOCK,
)
def beamsync_9(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, NDArray]:
    r"""Phase errors (trials, lengths, SNRs).

    "The performance improves with the synchronisation signal length" as :math:`1 / \sqrt N` and no faster: the
    amplifying return sends back N columns of noise with N columns of signal, and stage I, which N does not touch, sets
    the direction. At -10 dB the direction is poor, and from N = 50 the curve stays above its bound, which is along v_1,
    by the same factor of 2.5; at 0 dB it is 1.3 at every N.
    """
    rngs = generators(seeds)
    lengths = configuration["num_samples"]
    pairs = Pairs(rngs, configuration["num_antennas"], lengths[0], configuration["gains"])
    rows = []
    for num_samples in lengths:
        pairs.redraw_rest(rngs, num_samples)
        rows.append(stack([{
            "error_simple": model.errors(pairs.exchange(noise_var, num_samples))[:, 0],
            "error_sweep": pairs.fgb(noise_var, num_samples, "sweep"), "bound": pairs.bound(noise_var, num_samples),
        } for noise_var in noise_variances(configuration)]))  # fmt: skip
    return {key: np.stack([row[key] for row in rows], axis=1) for key in rows[0]}
