# SPDX-License-Identifier: GPL-3.0-or-later
"""Arrays in, matplotlib figures out: with the modules it is made of, the only one that imports matplotlib.

Every function returns a `matplotlib.figure.Figure` that belongs to the caller: no global state, no window, usable
without a display and from any thread.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from .plotting_bidirectional import distributions
from .plotting_bidirectional_run import bidirectional
from .plotting_panels import panels
from .plotting_predistortion import linearization_figures
from .plotting_style import COLOURS, MARKERS, new_figure, set_title
from .plotting_sync_run import synchronization
from .plotting_synchronization import curve_families, evolution

__all__ = [
    "COLOURS",
    "MARKERS",
    "bidirectional",
    "coefficients",
    "curve_families",
    "distributions",
    "error_curves",
    "evolution",
    "gain_bars",
    "pair_snr",
    "panels",
    "run_figures",
    "synchronization",
]

# 95 % of a normal distribution.
_TWO_SIDED_95 = 1.959964
# Nodes or ports of which a figure has a bar for each, and how far below the best the scale of these goes.
_MANY_BARS, _SCALE_DB = 16, 40.0


def error_curves(summary: Mapping) -> Figure:
    """Errors on a logarithmic axis with confidence bands, and dashed bounds.

    Parameters
    ----------
    summary : mapping
        `title`, `caption`, `x_label`, `y_label`, `x` (n,), `curves`: list of mappings `label`, `mean`, `low`, `high`
        (n,), `dashed`: list of mappings `label`, `values` (n,).
    """
    figure, axes = new_figure(6.4, 4.6)
    x = np.asarray(summary["x"], np.float64)
    lowest = min(np.min(np.asarray(curve["mean"], np.float64)) for curve in summary["curves"])
    for index, curve in enumerate(summary["curves"]):
        colour = COLOURS[index % len(COLOURS)]
        mean, low, high = (np.asarray(curve[key], np.float64) for key in ("mean", "low", "high"))
        # A band that reaches zero or below ends at the bottom of a logarithmic axis.
        axes.fill_between(x, np.maximum(low, lowest / 10), high, color=colour, alpha=0.22, linewidth=0)
        axes.plot(x, mean, color=colour, marker=MARKERS[index % len(MARKERS)], markersize=4.5, label=curve["label"],
                  clip_on=False, zorder=2.5)
    for index, bound in enumerate(summary["dashed"]):
        # Above the curves: an efficient estimator would hide its bound.
        axes.plot(x, bound["values"], color=("#000000", "#707070")[index % 2], linestyle=("--", ":")[index % 2],
                  linewidth=1.3, label=bound["label"], zorder=3)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(base=10, numticks=12))
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_xlim(x[0], x[-1])
    axes.set_xlabel(summary["x_label"])
    axes.set_ylabel(summary["y_label"])
    axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
    axes.grid(True, which="minor", axis="y", color="#efefef", linewidth=0.5)
    axes.legend(frameon=True, framealpha=0.95, edgecolor="none", fontsize=8.5).set_zorder(4)
    set_title(axes, summary["title"], summary["caption"])
    return figure


def run_figures(report: Mapping) -> dict[str, Figure]:
    """Figures of a run by name, as far as its report reaches: `coefficients`, `gains`, `pair_snr`, `synchronization`,
    `bidirectional`, `amplifiers`, `linearization`, `spectrum`.

    Of several arrays that calibrated themselves, `coefficients-ap1` and `gains-ap1`, ..., each by itself.

    Parameters
    ----------
    report : mapping
        As written to report.json: `ports`, `c`, `c_true` where the truth is known, `predicted_phase_std_deg`,
        `pair_snr_db`, `access_points` where arrays calibrated themselves, and the keys of `gain_bars`,
        `synchronization`, `bidirectional` and `linearization_figures`.
    """
    arrays = report.get("access_points") or {}
    if len(arrays) > 1:
        figures = {f"{name}-{ap}": figure for ap, found in arrays.items()
                   for name, figure in _calibration_figures({**found, **(found["verification"] or {})}).items()}
    else:
        figures = _calibration_figures(report)
    if report.get("pair_snr_db") is not None:
        figures["pair_snr"] = pair_snr(report["pair_snr_db"], report["ports"])
    figures |= linearization_figures(report)
    if report.get("calibrations"):
        figures["bidirectional"] = bidirectional(report)
    if report.get("synchronisations"):
        figures["synchronization"] = synchronization(report)
    return figures


def _calibration_figures(report: Mapping) -> dict[str, Figure]:
    """`coefficients` and `gains`, as far as the report of one calibration reaches."""
    figures = {}
    if report.get("c") is not None:
        # All have c = 1 at the reference, so what is left and its predicted deviation are relative to it.
        c, std = np.asarray(report["c"]), np.radians(report["predicted_phase_std_deg"])
        truth = None if report.get("c_true") is None else np.asarray(report["c_true"])
        after = None if truth is None else c / truth
        figures["coefficients"] = coefficients(c, after, truth, labels=report["ports"], phase_std_rad=std)
    if report.get("coherent_gain_db") is not None:
        figures["gains"] = gain_bars(report)
    return figures


def coefficients(before, after=None, truth=None, *, labels: Sequence[str], phase_std_rad=None) -> Figure:
    """Calibration coefficients as found, in the complex plane, and the phase of each port that is left afterwards.

    Where nobody knows what is left, its predicted deviation alone is drawn around zero.

    Ports whose values are not finite (not calibrated) are crossed out.

    Parameters
    ----------
    before : array_like (ports,), complex
        Estimated c = t / r of each port, as the hardware started.
    after : array_like (ports,), complex, optional
        What is left of c once it is applied: estimate over truth, or a second measurement over the first. The phase
        common to all is for the caller to remove.
    truth : array_like (ports,), complex, optional
        True c in the same gauge as `before`.
    labels : sequence of str
        Name of each port.
    phase_std_rad : array_like (ports,), optional
        Predicted standard deviation of each phase of `after`; drawn as 95 % bars.
    """
    before = _row("before", before, labels, complex)
    known = after is not None
    after = _row("after", after if known else np.where(np.isfinite(before), 1.0, np.nan), labels, complex)
    truth = None if truth is None else _row("truth", truth, labels, complex)
    bars = None
    if phase_std_rad is not None:
        bars = _TWO_SIDED_95 * np.rad2deg(_row("phase_std_rad", phase_std_rad, labels, float))
    figure, (plane, left) = new_figure(9.6, 4.6, columns=2, widths=(1, 1.25))
    _phasors(plane, before, truth, labels)
    _residual_phases(left, np.rad2deg(np.angle(after)), bars, labels)
    caption = f"before, the phases spread over {_phase_spread_deg(before):.0f} degrees"
    title = "After: phase left per port" if known else "After: predicted deviation per port"
    set_title(left, title, caption + ("" if bars is None else "; bars: predicted 95 %"))
    return figure


def _phasors(axes, values: np.ndarray, truth: np.ndarray | None, labels: Sequence[str]) -> None:
    angle = np.linspace(0, 2 * np.pi, 181)
    axes.plot(np.cos(angle), np.sin(angle), color="#cccccc", linewidth=0.8, zorder=1)
    few = len(labels) <= len(COLOURS)
    for index in np.flatnonzero(np.isfinite(values)):
        colour = COLOURS[index] if few else COLOURS[1]
        axes.annotate("", (values[index].real, values[index].imag), (0, 0), zorder=2,
                      arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0, "linewidth": 1.4})
        if few:
            axes.plot([], [], color=colour, label=labels[index])
    shown = [1.0, *np.abs(values[np.isfinite(values)])]
    if truth is not None:
        axes.plot(truth.real, truth.imag, "o", markersize=9, markerfacecolor="none", markeredgecolor="#404040",
                  label="truth")
        shown += [*np.abs(truth[np.isfinite(truth)])]
    reach = 1.15 * max(shown)
    axes.set(xlim=(-reach, reach), ylim=(-reach, reach), xlabel="real part of c", ylabel="imaginary part of c",
             box_aspect=1)
    axes.grid(True, color="#eeeeee", linewidth=0.7)
    if few or truth is not None:
        axes.legend(fontsize=8, frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    set_title(axes, "Before: coefficients as found", f"{len(labels)} ports")


def _residual_phases(axes, phase_deg: np.ndarray, bars: np.ndarray | None, labels: Sequence[str]) -> None:
    where = np.arange(len(labels))
    known = np.isfinite(phase_deg)
    axes.axhline(0, color="#404040", linewidth=0.8, linestyle="--")
    axes.errorbar(where[known], phase_deg[known], yerr=None if bars is None else bars[known], fmt="o",
                  color=COLOURS[1], markersize=4.5, capsize=3, linewidth=1.2)
    if not known.all():
        axes.plot(where[~known], np.zeros(np.count_nonzero(~known)), "x", color=COLOURS[0], markersize=8,
                  markeredgewidth=2, label="not calibrated")
        axes.legend(fontsize=8, frameon=True, framealpha=0.95, edgecolor="none", loc="best")
    reach = np.nanmax(np.abs(phase_deg[known]) + (0 if bars is None else np.nan_to_num(bars[known])), initial=0)
    reach = 1.25 * reach if reach > 0 else 1.0
    axes.set(xlim=(-0.6, len(labels) - 0.4), ylim=(-reach, reach), ylabel="phase left [degrees]", box_aspect=0.8)
    _name_ticks(axes.xaxis, labels)
    axes.grid(True, axis="y", color="#e4e4e4", linewidth=0.7)


def _phase_spread_deg(c: np.ndarray) -> float:
    """Smallest arc that holds the phases of all finite entries."""
    phase = np.sort(np.angle(c[np.isfinite(c)]))
    if phase.size == 0:
        return 0.0
    return 360 - np.rad2deg(np.max(np.diff(phase, append=phase[0] + 2 * np.pi)))


def gain_bars(report: Mapping) -> Figure:
    """Received power over the mean with random node phases, in dB: joint transmission, its ideal, and the alternatives.

    Bars that are more than `_SCALE_DB` below the best leave the page; their number stands at its lower edge.

    Parameters
    ----------
    report : mapping
        `coherent_gain_db`, `ideal_gain_db`, and optionally `uncalibrated_gain_db`, `single_node_db` (mapping of node
        name to dB, of which only the strongest and the weakest are drawn where there are more than `_MANY_BARS`;
        otherwise `best_single_node_db`) and standard errors `coherent_gain_std_db`, `uncalibrated_gain_std_db`, drawn
        as 95 % bars. None counts as absent. With `port_power_db` it is ports that have random phases.
    """
    unit = "port" if "port_power_db" in report else "node"
    bars = [("calibrated", report["coherent_gain_db"], report.get("coherent_gain_std_db"), COLOURS[1])]
    if report.get("uncalibrated_gain_db") is not None:
        bars.append(("uncalibrated,\nmean", report["uncalibrated_gain_db"], report.get("uncalibrated_gain_std_db"),
                     COLOURS[0]))
    alone = report.get("single_node_db")
    if alone is None and report.get("best_single_node_db") is not None:
        alone = {f"best {unit}": report["best_single_node_db"]}
    heard = {name: value for name, value in (alone or {}).items() if value is not None}
    if len(heard) > _MANY_BARS:
        ends = max(heard, key=heard.get), min(heard, key=heard.get)
        heard = {f"{which},\n{name}": heard[name] for which, name in zip(("strongest", "weakest"), ends, strict=True)}
    bars += [(f"{name}\nalone", value, None, "#9a9a9a") for name, value in heard.items()]
    figure, axes = new_figure(max(4.8, 1.6 + 0.75 * len(bars)), 4.2)
    ideal = report["ideal_gain_db"]
    reached = [ideal, 0.0]
    lowest = max([ideal, *(value for _, value, *_ in bars)]) - _SCALE_DB
    for place, (_, value, std, colour) in enumerate(bars):
        half = 0.0 if std is None else _TWO_SIDED_95 * std
        axes.bar(place, value, 0.62, color=colour, yerr=half or None, capsize=4, error_kw={"linewidth": 1.2})
        end, side = (value + half, 1) if value >= 0 else (value - half, -1)
        label = {"text": f"{value:.2f}".replace("-", "\N{MINUS SIGN}"), "ha": "center", "textcoords": "offset points",
                 "fontsize": 8.5, "zorder": 4,
                 "bbox": {"facecolor": "white", "edgecolor": "none", "boxstyle": "square,pad=0.1"}}
        if value < lowest:
            axes.annotate(xy=(place, 0), xycoords=axes.get_xaxis_transform(), xytext=(0, 4), va="bottom", **label)
            continue
        axes.annotate(xy=(place, end), xytext=(0, 4 * side), va="bottom" if side > 0 else "top", **label)
        reached += [value - half, value + half]
    axes.axhline(ideal, color="#404040", linestyle="--", linewidth=1.2, label=f"ideal, {ideal:.2f} dB", zorder=3)
    axes.axhline(0, color="#404040", linewidth=0.8)
    low, high = min(reached), max(reached)
    span = high - low or 1.0
    axes.set_ylim(low - (0.12 * span if low < 0 else 0), high + 0.25 * span)
    axes.set_xlim(-0.6, len(bars) - 0.4)
    axes.set_xticks(range(len(bars)), [label for label, *_ in bars], fontsize=9)
    axes.set_ylabel(f"gain over random {unit} phases [dB]")
    axes.legend(frameon=False, fontsize=9, loc="upper right")
    set_title(axes, "Received power, equal total transmit power", "error bars: 95 % interval of the mean")
    return figure


def pair_snr(snr_db, labels: Sequence[str]) -> Figure:
    """SNR of each ordered pair of ports, rows receive, columns transmit, as an annotated matrix.

    Parameters
    ----------
    snr_db : array_like (ports, ports)
        In dB; entries that are not finite, and the diagonal, were not measured and stay blank.
    labels : sequence of str
        Name of each port.
    """
    values = np.array(snr_db, np.float64)
    if values.shape != (len(labels), len(labels)):
        raise ValueError(f"snr_db has shape {values.shape}, not ({len(labels)}, {len(labels)}) as the labels")
    np.fill_diagonal(values, np.nan)
    known = np.isfinite(values)
    values[~known] = np.nan
    size = 1.6 + 0.62 * min(max(len(labels), 3), 14)
    figure, axes = new_figure(size + 1.6, size + 0.9)
    low, high = (np.min(values[known]), np.max(values[known])) if known.any() else (0.0, 1.0)
    if high - low < 1:
        low, high = low - 0.5, high + 0.5
    image = axes.imshow(values, cmap="viridis", vmin=low, vmax=high, aspect="auto")
    axes.set_facecolor("#e6e6e6")
    if len(labels) <= 16:
        for i, j in np.argwhere(known):
            # Dark ground below the middle of the map, light ground above.
            shade = "white" if values[i, j] < low + 0.6 * (high - low) else "black"
            axes.text(j, i, f"{values[i, j]:.1f}", ha="center", va="center", fontsize=8, color=shade)
    _name_ticks(axes.xaxis, labels)
    _name_ticks(axes.yaxis, labels)
    axes.set(xlabel="transmitting port", ylabel="receiving port")
    figure.colorbar(image, ax=axes, fraction=0.046, pad=0.04, label="SNR [dB]")
    missing = int(np.count_nonzero(~known)) - len(labels)
    of = len(labels) * (len(labels) - 1)
    set_title(axes, "SNR of each pair", f"{missing} of {of} not measured" if missing else "")
    return figure


def _name_ticks(axis, labels: Sequence[str]) -> None:
    step = -(-len(labels) // 32)
    axis.set_ticks(range(0, len(labels), step), list(labels)[::step], fontsize=9 if len(labels) <= 16 else 7)
    if axis.axis_name == "x" and (len(labels) > 8 or max(map(len, labels)) > 6):
        for tick in axis.get_ticklabels():
            tick.set(rotation=45, ha="right", rotation_mode="anchor")


def _row(name: str, values, labels: Sequence[str], kind) -> np.ndarray:
    values = np.asarray(values, kind)
    if values.shape != (len(labels),):
        raise ValueError(f"{name} has shape {values.shape}, not ({len(labels)},) as the labels")
    return values
