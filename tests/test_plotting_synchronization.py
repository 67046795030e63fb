# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
from gnuradio.dmimo import plotting
from matplotlib.colors import to_hex


def curve(scale):
    return {"mean": [scale, scale / 10], "low": [0.9 * scale, -1.0], "high": [1.1 * scale, scale / 9]}


FAMILIES = {
    "title": "Title", "caption": "12 trials", "x_label": "SNR [dB]", "y_label": "RMSE [rad]", "x": [0.0, 10.0],
    "kinds": ["one", "other"], "bound": "bound", "families": [
        {"label": "few", "curves": [curve(1.0), None], "dashed": [0.5, 0.05]},
        {"label": "many", "curves": [curve(0.1), curve(0.2)], "dashed": [[0.04, 0.004], [0.03, 0.003]]},
    ],
}  # fmt: skip
EVOLUTION = {
    "title": "Title", "caption": "12 trials", "x_label": "time [hours]", "y_label": "gain [dB]", "x": [0.0, 2.0],
    "curves": [{"label": "ideal", "mean": [15.0, 15.0], "low": [15.0, 15.0], "high": [15.0, 15.0], "reference": True},
               {"label": "drift", "mean": [15.0, 12.0], "low": [14.9, 11.0], "high": [15.1, 13.0]}],
}  # fmt: skip


def drawn(axes, values):
    return [line for line in axes.get_lines() if np.array_equal(line.get_ydata(), values)]


def test_families_share_a_colour_kinds_a_line_and_bounds_are_dashed():
    (axes,) = plotting.curve_families(FAMILIES).axes
    lines = {key: drawn(axes, values)[0] for key, values in
             {"few one": [1.0, 0.1], "many one": [0.1, 0.01], "many other": [0.2, 0.02]}.items()}
    assert to_hex(lines["many one"].get_color()) == to_hex(lines["many other"].get_color())
    assert to_hex(lines["many one"].get_color()) != to_hex(lines["few one"].get_color())
    assert lines["many one"].get_linestyle() == lines["few one"].get_linestyle() != lines["many other"].get_linestyle()
    for values in ([0.5, 0.05], [0.04, 0.004], [0.03, 0.003]):
        (bound,) = drawn(axes, values)
        assert bound.get_linestyle() == "--"
    assert axes.get_yscale() == "log"
    # A band below zero stays on the logarithmic axis.
    assert min(np.min(path.vertices[:, 1]) for band in axes.collections for path in band.get_paths()) > 0


def test_both_legends_of_families_are_there():
    figure = plotting.curve_families({**FAMILIES, "x_scale": "log", "x": [1.0, 10.0], "families_title": "SNR"})
    words = [text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]
    assert {"few", "many", "one", "other", "bound", "SNR"} <= set(words)


def test_an_evolution_is_linear_and_is_shown_again_from_near():
    far, near = plotting.evolution({**EVOLUTION, "zoom": [14.5, 15.1]}).axes
    assert far.get_yscale() == "linear"
    assert near.get_ylim() == (14.5, 15.1)
    for axes in (far, near):
        (ideal,), (drift,) = drawn(axes, [15.0, 15.0]), drawn(axes, [15.0, 12.0])
        assert ideal.get_linestyle() != drift.get_linestyle()
        assert len(axes.collections) == 1
    assert len(plotting.evolution(EVOLUTION).axes) == 1
