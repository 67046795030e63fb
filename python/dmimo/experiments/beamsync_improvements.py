# SPDX-License-Identifier: GPL-3.0-or-later
"""What does better than the paper at the same energy, one figure each: kind of return, rounds, share of stage I."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from . import beamsync_model as model
from . import error_statistics as statistics
from .registry import register
from .trials import SNR_LABEL, generators, noise_variances, stack, steps

_RETURNS = {"conjugate": "conjugate return, as in the paper", "matched": "matched-filter return"}


def _draw(configuration: Mapping, seeds: Sequence[np.random.SeedSequence], num_samples: int, rounds: int):
    """Draws of all trials; their channels and gains depend on the seeds only."""
    num = configuration["num_antennas"]
    return model.concatenate([
        model.draw_pairs(rng, 1, num, num, num_samples, gains=configuration["gains"], rounds=rounds, dtype=np.complex64)
        for rng in generators(seeds)
    ])


def _y_label(configuration: Mapping) -> str:
    return f"{statistics.statistic_name(configuration['gains'])} of the phase [rad]"


# -- matched return ---------------------------------------------------------------------------------------------------


def summarise_matched(configuration: Mapping, arrays: Mapping[str, NDArray]) -> dict:
    """RMSE of both returns with their bounds, and how many times smaller the matched one's is."""
    gains = configuration["gains"]
    curves = {key: statistics.error_curve(arrays[f"error_{key}"], gains) for key in _RETURNS}
    ratio = np.array(curves["conjugate"]["mean"]) / np.array(curves["matched"]["mean"])
    return {
        "title": f"Phase by kind of return, {configuration['num_antennas']} antennas each, "
                 f"N = {configuration['num_samples']}",
        "caption": statistics.caption(len(arrays["bound_matched"]), configuration), "x_label": SNR_LABEL,
        "y_label": _y_label(configuration), "x": list(configuration["snr_db"]),
        "curves": [{"label": label, **curves[key]} for key, label in _RETURNS.items()],
        "dashed": [{"label": f"bound, {key} return", "values": statistics.bound_curve(arrays[f"bound_{key}"], gains)}
                   for key in _RETURNS],
        "conjugate_over_matched": ratio.tolist(),
    }  # fmt: skip


@register(
    "beamsync-matched-return",
    title="Phase error against SNR: conjugate return and matched-filter return",
    summarise=summarise_matched,
    plot="error_curves",
    defaults={"num_antennas": 16, "num_samples": 100, "snr_db": steps(-20, 20, 2.5), "gains": "unit"},
    trials=4000,
    block=200,
)
def beamsync_matched_return(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, NDArray]:
    """Phase errors (trials, SNRs) of both kinds of return from the same draws.

    Below 0 dB per antenna most of what the leader received is noise, and the conjugate return spends its energy on it;
    the matched filter keeps one column of N. At -10 dB the RMSE is 2.4 times smaller, at
    0 dB 1.1 times, and from 10 dB up the two are the same within 1 %.
    """
    num_samples = configuration["num_samples"]
    draws, points = _draw(configuration, seeds, num_samples, 1), []
    for noise_var in noise_variances(configuration):
        a, point = model.pilot_direction(draws, noise_var), {}
        for returned in _RETURNS:
            found = model.exchange(draws, a, noise_var, num_samples, returned=returned)
            point[f"error_{returned}"] = model.errors(found)[:, 0]
            point[f"bound_{returned}"] = model.bound(draws, noise_var, num_samples, returned=returned)
        points.append(point)
    return stack(points)


# -- ping-pong --------------------------------------------------------------------------------------------------------


def summarise_ping_pong(configuration: Mapping, arrays: Mapping[str, NDArray]) -> dict:
    """Families of curves by rounds, and the RMSE of one round over that of several, at each SNR."""
    gains, rounds = configuration["gains"], configuration["rounds"]
    families = []
    for index, number in enumerate(rounds):
        curves = [statistics.error_curve(arrays[f"error_{key}"][:, index], gains) for key in _RETURNS]
        families.append({"label": f"{number} round{'s' if number > 1 else ''}", "curves": curves, "dashed": None})
    families[0]["dashed"] = statistics.bound_curve(arrays["bound"], gains)
    return {
        "title": f"Phase by rounds of stages II and III, M = {configuration['num_antennas']}, energy "
                 f"{_total(configuration):g}, stage I {100 * configuration['share']:.1f} %",
        "caption": statistics.caption(len(arrays["bound"]), configuration), "x_label": SNR_LABEL,
        "y_label": _y_label(configuration), "x": list(configuration["snr_db"]), "kinds": list(_RETURNS.values()),
        "bound": "bound, matched, one round", "families": families,
        "one_round_over_more": {str(number): {key: (np.array(families[0]["curves"][kind]["mean"]) / np.array(
            family["curves"][kind]["mean"])).tolist() for kind, key in enumerate(_RETURNS)}
            for number, family in zip(rounds[1:], families[1:], strict=True)},
    }  # fmt: skip


@register(
    "beamsync-ping-pong",
    title="Phase error against SNR for one, two and four rounds of stages II and III at the same energy",
    summarise=summarise_ping_pong,
    plot="curve_families",
    defaults={"num_antennas": 16, "num_samples": 100, "rounds": [1, 2, 4], "share": 0.02,
              "snr_db": steps(-15, 20, 2.5), "gains": "unit"},
    trials=4000,
    block=200,
)
def beamsync_ping_pong(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, NDArray]:
    """Phase errors (trials, rounds, SNRs): R rounds of N / R symbols each, a total of M + 2 N for all stages.

    Each round sends along the conjugate of the last return, a power iteration over the air, and the phasors of all
    rounds are added. It repairs a direction that stage I found badly, here with 2 % of the energy instead of the
    paper's M / (M + 2 N) = 7.4 %: at -5 dB four rounds have 1.7 times less RMSE than one with the conjugate return, 1.4
    times less with the matched one. From 10 dB up there is nothing left to repair, and nothing is lost.
    """
    rows = []
    total, num = _total(configuration), configuration["num_antennas"]
    for rounds in configuration["rounds"]:
        draws = _draw(configuration, seeds, configuration["num_samples"] // rounds, rounds)
        pilot, sync = model.split_energy(total, configuration["share"], num, rounds=rounds)
        points = []
        for noise_var in noise_variances(configuration):
            a = model.pilot_direction(draws, noise_var, pilot_energy=pilot)
            points.append({f"error_{returned}": model.errors(model.exchange(draws, a, noise_var, sync,
                                                                            returned=returned))[:, -1]
                           for returned in _RETURNS})
        rows.append(stack(points))
        if rounds == configuration["rounds"][0]:
            bound = np.stack([_bound(configuration, draws, noise_var, sync * rounds)
                              for noise_var in noise_variances(configuration)], axis=-1)
    return {**stack(rows, axis=1), "bound": bound}


def _bound(configuration: Mapping, draws: model.PairDraws, noise_var: float, sync_energy: float) -> NDArray:
    num_samples = configuration["num_samples"]
    return model.bound(draws, noise_var, num_samples, power=sync_energy / num_samples, returned="matched")


def _total(configuration: Mapping) -> float:
    """Energy of all stages in the paper, in symbols of unit power."""
    return float(configuration["num_antennas"] + 2 * configuration["num_samples"])


# -- energy share of stage I ------------------------------------------------------------------------------------------


def summarise_share(configuration: Mapping, arrays: Mapping[str, NDArray]) -> dict:
    """Families of curves by SNR over the share, the best share of each, and what it gains on the paper's."""
    gains, shares = configuration["gains"], configuration["shares"]
    paper = configuration["num_antennas"] / _total(configuration)
    families, best = [], []
    for index, snr_db in enumerate(configuration["snr_db"]):
        curves = [statistics.error_curve(arrays[f"error_{key}"][..., index], gains) for key in _RETURNS]
        families.append({"label": f"{snr_db:g} dB", "curves": curves, "dashed": None})
        for key, curve in zip(_RETURNS, curves, strict=True):
            k = int(np.argmin(curve["mean"]))
            there = np.exp(np.interp(np.log(paper), np.log(shares), np.log(curve["mean"])))
            best.append({"snr_db": snr_db, "return": key, "share": shares[k],
                         "gain_over_paper_db": float(20 * np.log10(there / curve["mean"][k]))})
    return {
        "title": f"Phase by stage I's share of the energy, M = {configuration['num_antennas']}, total "
                 f"{_total(configuration):g} symbols",
        "caption": statistics.caption(len(arrays["error_matched"]), configuration, f"the paper has {paper:.2f}"),
        "x_label": "share of stage I in the total energy", "x_scale": "log", "families_title": "SNR",
        "y_label": _y_label(configuration), "x": list(shares), "kinds": list(_RETURNS.values()), "bound": None,
        "families": families, "best": best,
    }  # fmt: skip


@register(
    "beamsync-energy-share",
    title="Phase error against stage I's share of the total energy",
    summarise=summarise_share,
    plot="curve_families",
    defaults={"num_antennas": 16, "num_samples": 8,
              "shares": [0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8],
              "snr_db": [0.0, 5.0, 10.0, 20.0], "gains": "unit"},
    trials=4000,
    block=200,
)
def beamsync_energy_share(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, NDArray]:
    """Phase errors (trials, shares, SNRs) at figure 6's energy, M + 2 N = 2 M; the paper spends half of it in stage I.

    The direction needs far less than half: what it misses costs in proportion to the square of its error, what it
    takes from stages II and III costs directly. The best share falls from 0.2 at 0 and 5 dB (1 dB better than a half)
    over 0.15 at 10 dB (1.7 dB) to 0.05 at 20 dB (2.7 dB); anything from 0.05 to 0.3 is within half a decibel up to
    10 dB.
    """
    num, num_samples = configuration["num_antennas"], configuration["num_samples"]
    draws, rows = _draw(configuration, seeds, num_samples, 1), []
    for share in configuration["shares"]:
        pilot, sync = model.split_energy(_total(configuration), share, num)
        points = []
        for noise_var in noise_variances(configuration):
            a = model.pilot_direction(draws, noise_var, pilot_energy=pilot)
            points.append({f"error_{returned}": model.errors(model.exchange(draws, a, noise_var, sync,
                                                                            returned=returned))[:, 0]
                           for returned in _RETURNS})
        rows.append(stack(points))
    return stack(rows, axis=1)
