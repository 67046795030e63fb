# SPDX-License-Identifier: GPL-3.0-or-later
"""Figure of a bidirectional run: phases and delays by pattern, SNR against cooperating ports. See `plotting`."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from .plotting_panels import panels

_SIDES = (("trp", "TRPs"), ("ue", "UEs"))
_SNR = (("snr_db", "calibrated"), ("uncalibrated_snr_db", "random node phases"))


def bidirectional(report: Mapping) -> Figure:
    """Phase errors and delays over time, and the SNR of both directions against cooperating ports.

    Parameters
    ----------
    report : mapping
        As written to report.json: `patterns`, `ports`, `testbed`, `seed`, and `cooperation`, also within `uplink`,
        where it was measured.
    """
    known = [entry for entry in report["patterns"] if "trp_phase_deg" in entry]
    time_ms = [1e3 * entry["time_s"] for entry in known]
    parts = [_errors(known, time_ms), _delays(report["ports"], known, time_ms)]
    for title, source in (("Joint downlink", report), ("Joint uplink", report.get("uplink", {}))):
        if source.get("cooperation"):
            parts.append(_cooperation(title, source["cooperation"]))
    return panels({
        "title": report["testbed"]["name"] or "Bidirectional calibration",
        "caption": f"Bidirectional calibration: {len(known)} measurements, {report['calibrations']} of them exchanges, "
                   f"the others soundings. Seed {report['seed']}.",
        "columns": 2, "panels": parts,
    })  # fmt: skip


def _errors(known: Sequence[Mapping], time_ms: Sequence[float]) -> dict[str, object]:
    predicted = [np.sqrt(np.mean(np.square(entry[f"{side}_predicted_phase_std_deg"][1:])))
                 if len(entry[f"{side}_predicted_phase_std_deg"]) > 1 else 0.0 for entry in known for side, _ in _SIDES]
    predicted = np.reshape(predicted, (-1, 2)).T
    return {
        "title": "Phase error of the coefficients, common phase removed", "x_label": "time [ms]",
        "y_label": "phase error, rms over ports [deg]", "x": time_ms,
        "curves": [_curve(name, [entry[f"{side}_phase_error_deg"] for entry in known]) for side, name in _SIDES
                   if f"{side}_phase_error_deg" in known[0]],
        "dashed": [{"label": f"{name}, predicted against the reference", "values": values, "colour": index}
                   for index, ((_, name), values) in enumerate(zip(_SIDES, predicted, strict=True))],
    }  # fmt: skip


def _delays(ports: Sequence[str], known: Sequence[Mapping], time_ms: Sequence[float]) -> dict[str, object]:
    delays = 1e9 * np.array([entry["trp_delay_s"] for entry in known])
    return {
        "title": "Delay of the TRPs' coefficients, twice that of their clocks", "x_label": "time [ms]",
        "y_label": f"delay against {ports[0]} [ns]", "x": time_ms,
        "curves": [_curve(port, values) for port, values in zip(ports[1:], delays.T[1:], strict=True)], "dashed": [],
    }  # fmt: skip


def _cooperation(title: str, rows: Sequence[Mapping]) -> dict[str, object]:
    counts = [row["ports"] for row in rows]
    return {
        "title": f"{title}, every port at its own full power", "x_label": "cooperating ports", "y_label": "SNR [dB]",
        "x": counts, "x_scale": "log", "x_ticks": counts,
        "curves": [_curve(label, [row[key] for row in rows]) for key, label in _SNR],
        "dashed": [{"label": "all in phase", "values": [row["ideal_snr_db"] for row in rows]}],
    }  # fmt: skip


def _curve(label: str, values: Sequence[float | None]) -> dict[str, object]:
    mean = np.array(values, float)
    return {"label": label, "mean": mean, "low": mean, "high": mean}
