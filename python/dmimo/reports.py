# SPDX-License-Identifier: GPL-3.0-or-later
"""From a run to its report: what was found, how far from the truth of a simulation, and the whole configuration."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from . import __version__, reports_bidirectional, reports_linearization, testbed
from .assembly import Assembly
from .core.sweep_calibration import SweepCalibration
from .protocols.beamsync_plan import PHASE
from .protocols.bidirectional_estimate import SideCalibration
from .protocols.slots import Collector
from .simulation.network import Network


@dataclass(frozen=True)
class Run:
    """A run that has ended: what it was made of, and how it went. Of radios no truth is known: `network` is None."""

    assembly: Assembly
    network: Network | None
    collectors: Mapping[str, Collector]
    error: str | None
    releases: int
    end_sample: int
    first_sample: int = 0

    def time_s(self, sample: int) -> float:
        """Network time of a sample since the run's first slot [s]."""
        return (sample - self.first_sample) / self.assembly.testbed.samp_rate

    @property
    def estimate(self) -> SweepCalibration | SideCalibration | None:
        """Calibration of the access points by beam sweep or bidirectional exchange, None without one."""
        if "bidirectional" in self.collectors:
            return reports_bidirectional.exchange(self.collectors).calibration
        if self.assembly.protocol == "linearize":  # several access points have one each
            found = list(self.collectors["linearizer"].calibrations.values())
            return found[0] if len(found) == 1 else None
        return getattr(self.collectors.get("calibrator"), "calibration", None)

    @property
    def synchronisations(self) -> list[dict[str, object]]:
        """History of the synchronisation, empty without one."""
        return history(self.collectors)


@dataclass(frozen=True)
class Outcome:
    """What a run left behind; `error` is None where it succeeded."""

    error: str | None
    report: Mapping[str, object]
    estimate: SweepCalibration | SideCalibration | None = None


def history(collectors: Mapping[str, Collector]) -> list[dict[str, object]]:
    """History of the synchronisation among these collectors, empty without one."""
    return collectors["beamsync"].members["beamsync"].history if "beamsync" in collectors else []


def report(run: Run) -> dict[str, object]:
    """Everything that `report.json` holds."""
    bed = run.assembly.testbed
    content: dict[str, object] = {
        "error": run.error,
        "seed": bed.seed,
        "version": __version__,
        "testbed": testbed.to_dict(bed),
        "slots": run.releases,
        "duration_s": run.time_s(run.end_sample),
        "pilot_samples": bed.slots.pilot_samples,
        **({} if run.network is None else {"snr_db_per_sample": bed.noise.snr_db}),
    }
    if "loop_delay" in run.collectors:
        content["loop_delays_samples"] = run.collectors["loop_delay"].delays
    if "beamsync" in run.collectors:
        content |= _synchronization(run)
    if run.estimate is not None:
        content |= _calibration(run, run.estimate)
    if "bidirectional" in run.collectors:
        content |= reports_bidirectional.content(run.assembly, run.network, run.collectors, run.time_s)
    verified = getattr(run.collectors.get("verifier"), "history", None)
    doubts: list[str] = []
    if verified and "bidirectional" not in run.collectors:
        content |= _gains(run, verified) if run.assembly.protocol == "sync" else _last(verified)
        doubts += verified[-1]["doubts"]
    if run.assembly.linearization is not None:
        linearized = reports_linearization.content(run.assembly, run.network, run.collectors)
        doubts += linearized["doubts"]
        content |= {**linearized, "doubts": content.get("doubts", [])}
    if doubts:
        content["doubts"] = list(dict.fromkeys([*content.get("doubts", ()), *doubts]))
    multiuser = getattr(run.collectors.get("multiuser"), "report", None)
    return content if multiuser is None else content | {"multiuser": multiuser}


def _calibration(run: Run, estimate: SweepCalibration | SideCalibration) -> dict[str, object]:
    corrections = {}
    for entry in run.synchronisations:
        if entry["phase"] == PHASE:
            corrections = {name: np.exp(1j * _turn(run, measured, int(estimate.reference_time)))
                           for name, measured in entry["followers"].items()}
    return {
        "ports": run.assembly.port_names,
        "trusted": bool(estimate.trusted),
        "reasons": estimate.reasons,
        "reference_time": int(estimate.reference_time),
        "frequency_hz": estimate.frequency_hz,
        "delay_s": estimate.delay_s,
        "c": estimate.c,
        "predicted_phase_std_deg": np.degrees(estimate.phase_std_rad),
        **{key: getattr(estimate, key) for key in ("pair_snr_db", "phase_noise_hz") if hasattr(estimate, key)},
        **run.assembly.truth(run.network, estimate, corrections),
    }


def _synchronization(run: Run) -> dict[str, object]:
    """History of the synchronisation; `true_error_deg` is what the correction leaves of the phase at its sample."""
    plan = run.assembly.synchronization.plan
    entries = []
    for entry in run.synchronisations:
        followers = {}
        for name, measured in entry["followers"].items():
            followers[name] = {key: value for key, value in measured.items() if not key.startswith("turn_")}
        if entry["phase"] == PHASE and run.network is not None:
            for name, error in true_phase_errors(run, entry["sample"], entry["followers"]).items():
                followers[name]["true_error_deg"] = float(np.degrees(error))
        entries.append({"phase": entry["phase"], "time_s": run.time_s(entry["sample"]), "followers": followers})
    rounds = [entry for entry in entries if entry["phase"] == PHASE]
    timing = run.collectors["beamsync"].members.get("timing")
    late, exceeded = (sum(bool(entry.get(key)) for entry in run.synchronisations) for key in ("late", "exceeded"))
    for phase, values in () if timing is None else timing.history:
        followers = {name: {"clock_offset_samples": float(values["offset_samples"][k]),
                            "clock_offset_std_samples": float(values["offset_std_samples"][k]),
                            "frequency_hz": float(values["frequency_hz"][k]), "trusted": bool(values["trusted"][k])}
                     for k, name in enumerate(plan.followers)}
        time_s = run.time_s(int(values["reference_samples"].max()))
        entries.append({"phase": phase, "time_s": time_s, "followers": followers})
    entries.sort(key=lambda entry: entry["time_s"])
    intervals = np.diff([entry["time_s"] for entry in rounds])
    return {
        "leader": plan.leader,
        "followers": list(plan.followers),
        "synchronisations": len(rounds),
        "mean_interval_s": float(intervals.mean()) if intervals.size else None,
        "late_synchronisations": late,
        "exceeded_synchronisations": exceeded,
        "doubts": _doubts(run, len(rounds), late, exceeded),
        "history": entries,
    }


def _doubts(run: Run, count: int, late: int, exceeded: int) -> list[str]:
    """What speaks against a synchronisation that came to its end."""
    doubts = []
    if exceeded:
        doubts.append(f"{exceeded} of {count} synchronisations found a phase beyond what the plan allows: the "
                      "oscillators are worse than linewidth_hz, drift_hz and drift_period_s say")
    if late:
        doubts.append(f"{late} of {count} synchronisations came later than planned: min_interval_s or the watches take "
                      "longer than the budget allows")
    reports = [report for entry in run.synchronisations if entry["phase"] == PHASE
               for report in entry["followers"].values()]
    infeasible = sum(not report["feasible"] for report in reports)
    if infeasible:
        doubts.append(f"{infeasible} of {len(reports)} measurements are not good enough for the budget by themselves")
    seen = getattr(run.collectors.get("verifier"), "history", [])
    return doubts + sorted({doubt for watch in seen for doubt in watch.get("doubts", ())})


def true_phase_errors(run: Run, sample: int, corrections: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """Phase in radians by which each follower's array, corrected, falls short of the leader's at `sample`.

    That of the sum over the ports of true over assumed c, so that errors of the internal calibrations count as they do
    in a joint transmission. A follower's correction has its `sample`, and `turn_rad` and `turn_hz` from there on.
    """
    network, sync = run.network, run.assembly.synchronization
    c = network.true_calibration(sample)
    internal = run.collectors["beamsync"].members.get("internal")
    known = np.ones(len(sync.node_of_port)) if internal is None else internal.c
    arrays = {ap: np.sum(c[network.ports(ap)] / known[sync.ports(ap)]) for ap in (sync.leader, *corrections)}
    return {name: float(np.angle(arrays[sync.leader] / arrays[name] * np.exp(-1j * _turn(run, correction, sample))))
            for name, correction in corrections.items()}


def _turn(run: Run, correction: Mapping[str, float], sample: int) -> float:
    """Phase in radians that a follower's correction adds to its c at `sample`."""
    late_s = (sample - correction["sample"]) / run.assembly.testbed.samp_rate
    return correction["turn_rad"] + 2 * np.pi * correction["turn_hz"] * late_s


def _gains(run: Run, watches: Sequence[Mapping[str, object]]) -> dict[str, object]:
    """Gains over time, and their averages over time as ratios of mean powers."""
    done = [entry for entry in run.synchronisations if entry["phase"] == PHASE]
    samples = np.array([entry["sample"] for entry in done])
    points = []
    for watch in watches:
        point = {key: watch[key] for key in ("coherent_gain_db", "ideal_gain_db")}
        point["time_s"] = run.time_s(watch["sample"])
        if run.network is not None:
            corrections = done[int(np.searchsorted(samples, watch["sample"])) - 1]["followers"]
            errors = list(true_phase_errors(run, watch["sample"], corrections).values())
            point["phase_error_deg"] = float(np.degrees(np.sqrt(np.mean(np.square(errors)))))
        points.append(point)
    times = np.array([point["time_s"] for point in points])
    # Each watch stands for the time around it.
    borders = np.concatenate([times[:1], (times[1:] + times[:-1]) / 2, times[-1:]])
    weights = np.diff(borders) if times.size > 1 else np.ones(1)
    averaged = {f"{key}_db": _mean_db([point[f"{key}_db"] for point in points], weights)
                for key in ("coherent_gain", "ideal_gain")}
    if "uncalibrated_gain_db" in watches[0]:
        starts = 10 ** (np.array([start for watch in watches for start in watch["random_starts_db"]
                                  if start is not None]) / 10)
        averaged["uncalibrated_gain_db"] = float(10 * np.log10(starts.mean()))
        spread = starts.std(ddof=1) / starts.mean() if starts.size > 1 else np.nan
        averaged["uncalibrated_gain_std_db"] = float(10 / np.log(10) * spread / np.sqrt(starts.size))
    if run.network is not None:
        squared = np.square([point["phase_error_deg"] for point in points])
        averaged["phase_error_deg"] = float(np.sqrt(np.average(squared, weights=weights)))
    return _last(watches) | averaged | {
        "watches": points,
        "loss_db": averaged["ideal_gain_db"] - averaged["coherent_gain_db"],
    }


def _last(watches: Sequence[Mapping[str, object]]) -> dict[str, object]:
    return {key: value for key, value in watches[-1].items() if key not in ("sample", "doubts")}


def _mean_db(values_db: Sequence[float], weights: np.ndarray) -> float:
    return float(10 * np.log10(np.average(10 ** (np.array(values_db, float) / 10), weights=weights)))
