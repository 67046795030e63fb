# SPDX-License-Identifier: GPL-3.0-or-later
"""What a report says of a bidirectional run: patterns, links, the UEs' set, and joint transmissions of both sides."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from .assembly import Assembly
from .core import metrics
from .protocols.bidirectional_collector import BidirectionalCollector
from .protocols.bidirectional_plan import BidirectionalPlan
from .protocols.slots import Collector
from .simulation.network import Network

GAINS = ("coherent_gain", "ideal_gain", "uncalibrated_gain", "best_single_node", "downlink_snr", "joint_power")


def exchange(collectors: Mapping[str, Collector]) -> BidirectionalCollector:
    """The collector that calibrates."""
    return collectors["bidirectional"].members["exchange"]


def content(assembly: Assembly, network: Network | None, collectors: Mapping[str, Collector],
            time_s: Callable[[int], float]) -> dict[str, object]:
    """Keys of report.json beside those of the access points' calibration; `time_s` gives the time of a sample."""
    member, plan = exchange(collectors), assembly.bidirectional.plan
    patterns = [_pattern(plan, network, entry, time_s(entry["sample"])) for entry in member.history]
    out: dict[str, object] = {"patterns": patterns, "doubts": list(member.doubts)}
    known = [entry for entry in patterns if "trp_phase_deg" in entry]
    if known:
        out["calibrations"] = sum(entry["event"] == "calibrated" for entry in known)
    if known and network is not None:
        for side in ("trp", "ue"):
            errors = np.array([entry[f"{side}_phase_error_deg"] for entry in known])
            out[f"{side}_phase_error_rms_deg"] = float(np.sqrt(np.mean(errors**2)))
    if member.estimate is not None:
        out["links"] = _links(member)
    if member.ue_calibration is not None:
        out["ue_calibration"] = _side(assembly, network, member.ue_calibration, plan.ues)
    for name, key in (("verifier", ""), ("uplink_verifier", "uplink")):
        watches = getattr(collectors.get(name), "history", [])
        if watches:
            gains = _gains(watches, time_s)
            out["doubts"] += gains.pop("doubts")
            out |= {key: gains} if key else gains
    return out


def _pattern(plan: BidirectionalPlan, network: Network | None, entry: Mapping[str, object],
             time_s: float) -> dict[str, object]:
    """One phase of a pattern, with the errors of all phases against the truth where it is known."""
    out = {"phase": entry["phase"], "time_s": time_s, "event": entry["event"]}
    if "reasons" in entry:
        return out | {"reasons": entry["reasons"]}
    truth = None if network is None else network.true_calibration(entry["sample"])
    for side, names in (("trp", plan.trps), ("ue", plan.ues)):
        out[f"{side}_phase_deg"] = np.degrees(np.angle(entry[f"{side}_c"]))
        out[f"{side}_delay_s"] = entry[f"{side}_delay_s"]
        out[f"{side}_frequency_hz"] = entry[f"{side}_frequency_hz"]
        out[f"{side}_predicted_phase_std_deg"] = np.degrees(entry[f"{side}_phase_std_rad"])
        if truth is None:
            continue
        true_c = network.of_nodes(truth, names)
        # A side of one port has nothing to be calibrated.
        error = metrics.phase_error(entry[f"{side}_c"], true_c) if len(true_c) > 1 else 0.0
        out[f"{side}_phase_error_deg"] = float(np.degrees(error))
    return out | {"links_used": int(np.sum(entry["used"]))}


def _links(member: BidirectionalCollector) -> dict[str, object]:
    """The links (TRP ports, UE ports) of the last exchange."""
    found = member.estimate
    snr = np.abs(found.trp_links.gain) ** 2 / np.maximum(found.trp_links.element_var, np.finfo(float).tiny)
    with np.errstate(divide="ignore"):
        return {"used": found.used, "snr_db": 10 * np.log10(snr), "delay_s": found.trp_links.delay_s,
                "outlier_probability": found.trp_links.outlier_probability}


def _side(assembly: Assembly, network: Network | None, side, names: Sequence[str]) -> dict[str, object]:
    return {
        "ports": assembly.ports_of(names), "reference_time": side.reference_time, "c": side.c,
        "delay_s": side.delay_s, "frequency_hz": side.frequency_hz,
        "predicted_phase_std_deg": np.degrees(side.phase_std_rad), **assembly.truth(network, side, names=names),
    }


def _gains(watches: Sequence[Mapping[str, object]], time_s: Callable[[int], float]) -> dict[str, object]:
    """Mean gains of all patterns, as ratios of mean powers, and of each pattern."""
    out: dict[str, object] = {f"{key}_db": _mean_db([watch.get(f"{key}_db") for watch in watches]) for key in GAINS}
    if None not in (out["ideal_gain_db"], out["coherent_gain_db"]):
        out["loss_db"] = out["ideal_gain_db"] - out["coherent_gain_db"]
    out["watches"] = [{"time_s": time_s(watch["sample"]), **{f"{key}_db": watch.get(f"{key}_db") for key in GAINS}}
                      for watch in watches]
    rows = [watch["cooperation"] for watch in watches if watch.get("cooperation")]
    if rows:
        keys = [key for key in rows[0][0] if key.endswith("snr_db")]
        out["cooperation"] = [{"ports": row[0]["ports"], **{key: _mean_db([one[key] for one in row]) for key in keys}}
                              for row in zip(*rows, strict=True)]
    out["doubts"] = sorted({doubt for watch in watches for doubt in watch.get("doubts", ())})
    return out


def _mean_db(values_db: Sequence[float | None]) -> float | None:
    """Mean of powers in dB; None where none of them has any."""
    known = np.array([value for value in values_db if value is not None], float)
    return float(10 * np.log10(np.mean(10 ** (known / 10)))) if known.size else None
