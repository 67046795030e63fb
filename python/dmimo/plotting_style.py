# SPDX-License-Identifier: GPL-3.0-or-later
"""What all figures have in common: colours, markers, an empty page, a title with its caption."""

from collections.abc import Sequence

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe-Ito: told apart by readers with any colour vision, and in grey.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "D", "^", "v", "P", "X")


def new_figure(width: float, height: float, *, columns: int = 1, widths: Sequence[float] | None = None, rows: int = 1):
    """An empty figure of that size in inches and its axes, side by side in one or several rows."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.1, h_pad=0.1)
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, gridspec_kw={"width_ratios": widths})
    for each in np.ravel(axes):
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelsize=9)
    return figure, axes


def set_title(axes, title: str, caption: str) -> None:
    """Title above the axes, and below it the caption in smaller letters."""
    axes.set_title(title, fontsize=10.5, loc="left", pad=20 if caption else 6)
    if caption:
        axes.annotate(caption, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", fontsize=8.5,
                      color="#505050", va="bottom", annotation_clip=False)


def darker(colour: str) -> tuple[float, ...]:
    """The colour at 60 % of its light: a bound stays visible on the curve that meets it."""
    return tuple(0.6 * int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
