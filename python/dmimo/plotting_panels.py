# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures of several panels with curves and bounds of their own. To be called through `plotting`."""

import textwrap
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from .plotting_style import COLOURS, MARKERS, darker, new_figure

# Size of a panel in inches.
_WIDTH, _HEIGHT = 4.5, 3.9
# Characters of the caption's letters in an inch.
_CHARACTERS = 16
_DASHES = (("#000000", "--"), ("#707070", ":"), ("#404040", "-."))


def panels(summary: Mapping) -> Figure:
    """Panels side by side and below one another, each with curves, their bands, and dashed bounds.

    Parameters
    ----------
    summary : mapping
        `title`, `caption`, `columns`, `panels`: list of mappings `title`, `x_label`, `y_label`, `x` (n,), `curves`:
        list of mappings `label`, `mean`, `low`, `high` (n,), `dashed`: list of mappings `label`, `values` (n,).
        Optional: `seed`, which a campaign adds and the caption ends with, and `height` of a row of panels with its
        legends in inches. Optional of a panel: `x_scale`, `y_scale` ("linear"), `x_ticks` (list of numbers),
        `y_limits` (low, high), `points`: list of mappings `label`, `x`, `y`. Optional of a curve: `colour`, its number
        in the order of colours and markers; of a dashed line and of points: the number of the curve that they belong
        to. Many points (more than 40) get no markers. None among the values of a dashed line is a gap.
    """
    parts, columns = summary["panels"], summary["columns"]
    rows = -(-len(parts) // columns)
    width, row_height = _WIDTH * columns, summary.get("height", _HEIGHT)
    seed = f" Seed {summary['seed']}." if "seed" in summary else ""
    caption = textwrap.fill(summary["caption"] + seed, int(_CHARACTERS * width))
    lines = 1 + caption.count("\n")
    figure, axes = new_figure(width, row_height * rows + 0.45 + 0.15 * lines, columns=columns, rows=rows)
    axes = np.ravel(axes)
    for each, part in zip(axes, parts, strict=False):
        _panel(each, part)
    for each in axes[len(parts) :]:
        each.remove()
    figure.suptitle(f"{summary['title']}\n", x=0.01, ha="left", fontsize=11, linespacing=1.1 + 0.85 * lines)
    _, height = figure.get_size_inches()
    figure.text(0.01, 1 - 0.32 / height, caption, fontsize=8.5, color="#505050", va="top", in_layout=False)
    # A layout changes how many ticks there are, these their digits, and the next layout makes room for them.
    for _ in range(2):
        figure.draw_without_rendering()
    return figure


def _panel(axes, part: Mapping) -> None:
    x = np.asarray(part["x"], np.float64)
    few = len(x) <= 40
    for index, curve in enumerate(part["curves"]):
        number = curve.get("colour", index)
        colour, marker = COLOURS[number % len(COLOURS)], MARKERS[number % len(MARKERS)]
        mean, low, high = (np.asarray(curve[key], np.float64) for key in ("mean", "low", "high"))
        if part.get("y_scale") == "log":
            # A band that reaches zero or below ends a decade below its curve.
            low = np.maximum(low, mean / 10)
        axes.fill_between(x, low, high, color=colour, alpha=0.22, linewidth=0)
        axes.plot(x, mean, color=colour, marker=marker if few else "", markersize=4.2, linewidth=1.2,
                  label=curve["label"], zorder=2.5, clip_on="y_limits" in part)
    for index, bound in enumerate(part["dashed"]):
        colour, dashes = _DASHES[index % len(_DASHES)]
        if "colour" in bound:
            colour, dashes = darker(COLOURS[bound["colour"] % len(COLOURS)]), "--"
        axes.plot(x, bound["values"], color=colour, linestyle=dashes, linewidth=1.2, label=bound["label"], zorder=3)
    for point in part.get("points", []):
        colour = darker(COLOURS[point.get("colour", -1) % len(COLOURS)])
        axes.plot(point["x"], point["y"], "*", color=colour, markersize=10, label=point["label"], zorder=4)
    _scales(axes, part, x)
    axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
    axes.set(xlabel=part["x_label"], ylabel=part["y_label"])
    axes.set_title(part["title"], fontsize=9.5, loc="left")
    axes.legend(loc="upper center", bbox_to_anchor=(0.45, -0.2), frameon=False, fontsize=8, borderaxespad=0.2)


def _scales(axes, part: Mapping, x: np.ndarray) -> None:
    axes.set_xscale(part.get("x_scale", "linear"))
    axes.set_yscale(part.get("y_scale", "linear"))
    if "x_ticks" in part:
        axes.xaxis.set_major_locator(FixedLocator(part["x_ticks"]))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    if axes.get_yscale() == "log":
        low, high = axes.get_ylim()
        if high < 300 * low:
            # Too few powers of ten to read the axis by.
            axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if "y_limits" in part:
        axes.set_ylim(*part["y_limits"])
    axes.set_xlim(x[0], x[-1])
