# SPDX-License-Identifier: GPL-3.0-or-later
"""Figure of a synchronisation run: what is left of the phase, and what it costs. To be called through `plotting`."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from .plotting_style import COLOURS, MARKERS, new_figure, set_title

SMALLEST_SPAN_DB = 1.0


def synchronization(report: Mapping) -> Figure:
    """Phase error and coherent gain over the time of a run that synchronised again and again.

    Parameters
    ----------
    report : mapping
        As written to report.json: `followers`, `history`, `watches`, `testbed`, and `loss_db` where there are watches.
    """
    watches = report.get("watches") or []
    figure, axes = new_figure(11.0 if watches else 6.4, 4.4, columns=2 if watches else 1,
                              widths=(1, 1) if watches else (1,))
    panels = np.atleast_1d(axes)
    _phases(panels[0], report)
    if watches:
        _gains(panels[1], report, watches)
    for panel in panels:
        panel.grid(True, color="#dddddd", linewidth=0.7)
        panel.set_xlabel("network time [s]")
        panel.legend(loc="upper left", bbox_to_anchor=(-0.02, -0.16), frameon=False, fontsize=8.5, ncols=2)
    return figure


def _phases(axes, report: Mapping) -> None:
    rounds = [entry for entry in report["history"] if entry["phase"] == "phase"]
    times = np.array([entry["time_s"] for entry in rounds])
    for index, name in enumerate(report["followers"]):
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        reports = [entry["followers"][name] for entry in rounds]
        left = np.array([_left(report) for report in reports])
        applied = np.array([report["trusted"] for report in reports])
        axes.plot(times[applied], left[applied], color=colour, marker=marker, markersize=4, linestyle="none",
                  label=f"{name}, just synchronised")
        if not applied.all():
            axes.plot(times[~applied], left[~applied], color=colour, marker="x", markersize=5, linestyle="none",
                      label=f"{name}, measured, not applied")
    if any("phase_error_deg" in point for point in report.get("watches") or ()):
        axes.plot([point["time_s"] for point in report["watches"]],
                  [point["phase_error_deg"] for point in report["watches"]],
                  color="#707070", linewidth=1.0, label="rms over followers, true")
    budget = report["testbed"]["beamsync"]["budget_deg"]
    axes.axhline(budget, color="#000000", linestyle="--", linewidth=1.2, label="budget")
    axes.set_ylim(bottom=0)
    known = any("true_error_deg" in found for entry in rounds for found in entry["followers"].values())
    axes.set_ylabel("phase error, absolute [deg]" if known else "phase error, predicted deviation [deg]")
    count = report["synchronisations"]
    set_title(axes, "Phase error of the followers", f"{count} synchronisation{'s' if count != 1 else ''}")


def _left(report: Mapping) -> float:
    """Phase error in degrees that a correction leaves: the true one, or its predicted deviation with radios."""
    return abs(report.get("true_error_deg", np.degrees(report.get("phase_std_rad", np.nan))))


def _gains(axes, report: Mapping, watches) -> None:
    times = [point["time_s"] for point in watches]
    axes.plot(times, [point["ideal_gain_db"] for point in watches], color="#000000", linestyle="--", linewidth=1.2,
              label="ideal")
    axes.plot(times, [point["coherent_gain_db"] for point in watches], color=COLOURS[0], marker=MARKERS[0],
              markersize=3.5, label="coherent")
    axes.set_ylabel("gain over random node phases [dB]")
    # Hundredths of a decibel are the noise of the measurement: they must not fill the axes.
    top = max(point["ideal_gain_db"] for point in watches)
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, top - SMALLEST_SPAN_DB / 2), max(high, top + SMALLEST_SPAN_DB / 2))
    set_title(axes, "Coherent gain at the user terminal",
              f"loss to the ideal, averaged over time: {max(report['loss_db'], 0.0):.2f} dB")
