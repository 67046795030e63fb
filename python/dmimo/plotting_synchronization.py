# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures of synchronisation: families of curves, and what happens over hours. To be called through `plotting`."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from .plotting_style import COLOURS, MARKERS, darker, new_figure, set_title

# Of the kinds of curve in a family, in their order; dashes are kept for bounds.
_LINES = ("-", "-.", ":", (0, (3, 1, 1, 1, 1, 1)), (0, (1, 1)))
_FACES = (True, False, False, False, False)


def curve_families(summary: Mapping) -> Figure:
    """Curves told apart by colour (what is varied) and by line and marker (the method), with dashed bounds.

    Parameters
    ----------
    summary : mapping
        `title`, `caption`, `x_label`, `y_label`, `x` (n,), `kinds`: labels of the methods, `bound`: label of the dashed
        lines or None, `families`: list of mappings `label`, `curves` (one or None per kind, each a mapping `mean`,
        `low`, `high` (n,)) and `dashed` (n,), several (lines, n) or None. Optional `x_scale` ("log"), `y_scale`
        ("linear"), `families_title`.
    """
    labels = [*(family["label"] for family in summary["families"]), *summary["kinds"], summary["bound"] or ""]
    # The legends stand beside axes of the same width whatever they say.
    figure, axes = new_figure(5.8 + 0.072 * max(map(len, labels)), 4.8)
    x = np.asarray(summary["x"], np.float64)
    for index, family in enumerate(summary["families"]):
        colour = COLOURS[index % len(COLOURS)]
        for kind, curve in enumerate(family["curves"]):
            if curve is not None:
                _curve(axes, x, curve, colour, kind)
        for bound in [] if family["dashed"] is None else np.atleast_2d(family["dashed"]):
            axes.plot(x, bound, color=darker(colour), linestyle="--", linewidth=1.2, zorder=3)
    _scales(axes, summary)
    axes.set_xlim(x[0], x[-1])
    axes.set(xlabel=summary["x_label"], ylabel=summary["y_label"])
    _two_legends(axes, summary)
    set_title(axes, summary["title"], summary["caption"])
    return figure


def evolution(summary: Mapping) -> Figure:
    """Quantities over time on a linear axis with their bands, and once more from near if `zoom` is given.

    Parameters
    ----------
    summary : mapping
        `title`, `caption`, `x_label`, `y_label`, `x` (n,), `curves`: list of mappings `label`, `mean`, `low`, `high`
        (n,), `reference` (drawn as a thin line without a band). Optional `zoom` (low, high): limits of y of the second
        axes.
    """
    zoom = summary.get("zoom")
    figure, axes = new_figure(10.4 if zoom else 6.8, 5.4, columns=2 if zoom else 1, widths=(1, 1) if zoom else (1,))
    panels = np.atleast_1d(axes)
    x = np.asarray(summary["x"], np.float64)
    for panel in panels:
        for index, curve in enumerate(summary["curves"]):
            colour = COLOURS[index % len(COLOURS)]
            mean, low, high = (np.asarray(curve[key], np.float64) for key in ("mean", "low", "high"))
            if not curve.get("reference"):
                panel.fill_between(x, low, high, color=colour, alpha=0.22, linewidth=0)
            panel.plot(x, mean, color=colour, linestyle="-." if curve.get("reference") else "-", linewidth=1.4,
                       label=curve["label"])
        panel.set_xlim(x[0], x[-1])
        panel.grid(True, color="#dddddd", linewidth=0.7)
        panel.set(xlabel=summary["x_label"], ylabel=summary["y_label"])
    panels[0].legend(loc="upper left", bbox_to_anchor=(-0.02, -0.14), frameon=False, fontsize=8.5)
    set_title(panels[0], summary["title"], summary["caption"])
    if zoom:
        panels[1].set_ylim(*zoom)
        set_title(panels[1], "From near", "")
    return figure


def _curve(axes, x: np.ndarray, curve: Mapping, colour: str, kind: int) -> None:
    mean, low, high = (np.asarray(curve[key], np.float64) for key in ("mean", "low", "high"))
    # A band that reaches zero or below ends a decade below its curve on a logarithmic axis.
    axes.fill_between(x, np.maximum(low, mean / 10), high, color=colour, alpha=0.18, linewidth=0)
    axes.plot(x, mean, color=colour, linestyle=_LINES[kind], marker=MARKERS[kind], markersize=4.2, linewidth=1.3,
              markerfacecolor=colour if _FACES[kind] else "white", zorder=2.5, clip_on=False)


def _scales(axes, summary: Mapping) -> None:
    axes.set_xscale(summary.get("x_scale", "linear"))
    axes.set_yscale(summary.get("y_scale", "log"))
    axes.grid(True, which="major", color="#dddddd", linewidth=0.7)
    if axes.get_yscale() == "log":
        axes.yaxis.set_major_locator(LogLocator(base=10, numticks=12))
        axes.yaxis.set_minor_formatter(NullFormatter())
        axes.grid(True, which="minor", axis="y", color="#efefef", linewidth=0.5)


def _two_legends(axes, summary: Mapping) -> None:
    """Colours beside the axes above, kinds of line below: no curve is hidden by them."""
    colours = [Line2D([], [], color=COLOURS[k % len(COLOURS)], linewidth=2.5, label=family["label"])
               for k, family in enumerate(summary["families"])]
    lines = [Line2D([], [], color="#404040", linestyle=_LINES[k], marker=MARKERS[k], markersize=4.2, linewidth=1.3,
                    markerfacecolor="#404040" if _FACES[k] else "white", label=label)
             for k, label in enumerate(summary["kinds"])]
    if summary["bound"] is not None:
        lines.append(Line2D([], [], color="#404040", linestyle="--", linewidth=1.2, label=summary["bound"]))
    style = {"frameon": False, "fontsize": 8.5, "borderaxespad": 0.0}
    first = axes.legend(handles=colours, loc="upper left", bbox_to_anchor=(1.02, 1.0),
                        title=summary.get("families_title"), title_fontsize=8.5, alignment="left", **style)
    axes.add_artist(first)
    axes.legend(handles=lines, loc="lower left", bbox_to_anchor=(1.02, 0.0), **style)
