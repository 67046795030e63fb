# SPDX-License-Identifier: GPL-3.0-or-later
"""Algorithms side by side: how a result is distributed over trials, and its means. To be called through `plotting`."""

import textwrap
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from .plotting_style import COLOURS, MARKERS, new_figure

_CHARACTERS = 15  # of the caption's letters in an inch
_LINES = ("-", "-.")
# Without what is known to nobody, and without any knowledge.
_REFERENCE, _WITHOUT = {"color": "#000000", "linestyle": "--"}, {"color": "#808080", "linestyle": ":"}


def distributions(summary: Mapping) -> Figure:
    """Distribution over trials, mean with its 95 % interval, and mean against a parameter, of several algorithms.

    Parameters
    ----------
    summary : mapping
        `title`, `caption`, `x_label`: of what is compared, `curves`: list of mappings `label`, `quantiles` (evenly from
        0 to 1), `mean`, `low`, `high`, `role` (None, "reference": dashed, "without": dotted). Optional `sweep`: mapping
        `x_label`, `x` (n,), `curves`: list of mappings `mean`, `low`, `high` (n,) in the order of the others, and
        optionally `x_ticks`. Optional `seed`, for the caption.
    """
    curves, sweep = summary["curves"], summary.get("sweep")
    columns = 3 if sweep else 2
    width, height = 4.1 * columns + 1.4, 4.4
    seed = f"; seed {summary['seed']}" if "seed" in summary else ""
    caption = textwrap.fill(summary["caption"] + seed, int(_CHARACTERS * width))
    lines = 1 + caption.count("\n")
    height += 0.5 + 0.15 * lines
    figure, axes = new_figure(width, height, columns=columns, widths=(1.0, 1.3, 1.0)[:columns])
    styles = _styles(curves)
    for curve, style in zip(curves, styles, strict=True):
        share = np.linspace(0.0, 1.0, len(curve["quantiles"]))
        axes[0].plot(curve["quantiles"], share, linewidth=1.4, label=curve["label"], **style)
    axes[0].set(xlabel=summary["x_label"], ylabel="share of trials below", ylim=(0, 1))
    axes[0].set_title("Distribution", fontsize=9.5, loc="left")
    _bars(axes[1], curves, styles, summary["x_label"])
    if sweep:
        _sweep(axes[2], sweep, styles, summary["x_label"])
    for each in axes:
        each.grid(True, axis="x" if each is axes[1] else "both", color="#dddddd", linewidth=0.7)
    figure.suptitle(f"{summary['title']}\n", x=0.01, ha="left", fontsize=11, linespacing=1.2 + 1.05 * lines)
    figure.text(0.01, 1 - 0.32 / height, caption, fontsize=8.5, color="#505050", va="top", in_layout=False)
    # Ticks may get more digits with the first layout; the next one makes room for them.
    figure.canvas.draw()
    return figure


def _styles(curves) -> list[dict]:
    """Six colours, black being the reference's; then the same with another line."""
    styles, number = [], 0
    for curve in curves:
        if curve["role"] is not None:
            styles.append(_REFERENCE if curve["role"] == "reference" else _WITHOUT)
            continue
        styles.append({"color": COLOURS[number % 6], "linestyle": _LINES[number // 6 % 2]})
        number += 1
    return styles


def _bars(axes, curves, styles, label: str) -> None:
    """Means as horizontal bars, named beside the axes: they are the legend of the other panels too."""
    places = -np.arange(len(curves))
    means = np.array([curve["mean"] for curve in curves])
    lowest = min(0.0, *(curve["low"] for curve in curves))
    ends = np.array([curve["high"] for curve in curves])
    span = ends.max() - lowest
    for place, curve, style in zip(places, curves, styles, strict=True):
        solid = curve["role"] is None
        # A broken line in the other panels is a hatched bar.
        hatched = solid and style["linestyle"] != "-"
        axes.barh(place, curve["mean"], 0.62, facecolor=style["color"] if solid and not hatched else "none",
                  edgecolor=style["color"], linestyle="-" if solid else style["linestyle"], linewidth=1.4,
                  hatch="////" if hatched else None)  # fmt: skip
        axes.plot([curve["low"], curve["high"]], [place, place], color="#202020", linewidth=1.6, zorder=3)
        text = f"{curve['mean']:.2f} ± {0.5 * (curve['high'] - curve['low']):.2f}".replace("-", "\N{MINUS SIGN}")
        axes.text(max(curve["high"], 0.0) + 0.02 * span, place, text, va="center", fontsize=8)
    axes.set_yticks(places, [curve["label"] for curve in curves], fontsize=8.5)
    axes.set(xlim=(lowest, means.max() + 0.38 * span), ylim=(places[-1] - 0.6, 0.6), xlabel=label)
    axes.set_title("Mean and its 95 % interval", fontsize=9.5, loc="left")


def _sweep(axes, sweep: Mapping, styles, label: str) -> None:
    x = np.asarray(sweep["x"], np.float64)
    for index, (curve, style) in enumerate(zip(sweep["curves"], styles, strict=True)):
        axes.fill_between(x, curve["low"], curve["high"], color=style["color"], alpha=0.2, linewidth=0)
        axes.plot(x, curve["mean"], linewidth=1.3, marker=MARKERS[index % len(MARKERS)], markersize=3.8, **style)
    axes.set(xlabel=sweep["x_label"], ylabel=label, xlim=(x[0], x[-1]))
    if "x_ticks" in sweep:
        axes.set_xticks(sweep["x_ticks"], [f"{tick:g}" for tick in sweep["x_ticks"]])
    axes.set_title("Mean, 95 % bands", fontsize=9.5, loc="left")
