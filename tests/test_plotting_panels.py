# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest
from gnuradio.dmimo import plotting

PANEL = {
    "title": "left", "x_label": "ports", "y_label": "SNR [dB]", "x": [1, 2, 4],
    "curves": [{"label": "one", "mean": [1.0, 7.0, 13.0], "low": [0.9, 6.9, 12.9], "high": [1.1, 7.1, 13.1]},
               {"label": "other", "mean": [1.0, 0.5, 2.0], "low": [0.5, 0.0, 1.5], "high": [1.5, 1.0, 2.5]}],
    "dashed": [{"label": "ideal", "values": [1.0, 7.02, 13.04]}],
}  # fmt: skip
SUMMARY = {
    "title": "Title", "caption": "400 trials, " * 20, "columns": 2,
    "panels": [PANEL, {**PANEL, "title": "right", "x_scale": "log", "y_scale": "log", "x_ticks": [1, 2, 4],
                       "points": [{"label": "paper", "x": [2], "y": [6.0]}]}, {**PANEL, "y_limits": [0, 5]}],
}  # fmt: skip


def test_each_panel_has_its_curves_bands_bounds_and_axes():
    left, right, below = plotting.panels(SUMMARY).axes
    lines = {line.get_label(): line for line in left.get_lines()}
    np.testing.assert_array_equal(lines["other"].get_ydata(), [1.0, 0.5, 2.0])
    np.testing.assert_array_equal(lines["ideal"].get_ydata(), [1.0, 7.02, 13.04])
    assert lines["ideal"].get_linestyle() == "--"
    assert lines["one"].get_color() != lines["other"].get_color()
    assert [left.get_yscale(), right.get_yscale(), right.get_xscale()] == ["linear", "log", "log"]
    assert [text.get_text() for text in right.get_xticklabels()] == ["1", "2", "4"]
    assert "paper" in {line.get_label() for line in right.get_lines()}
    assert below.get_ylim() == (0, 5)
    # A band below zero stays on the logarithmic axis.
    assert min(np.min(path.vertices[:, 1]) for band in right.collections for path in band.get_paths()) > 0
    assert len(left.collections) == 2


@pytest.mark.parametrize("snr_db", [[1.0, 7.0, 13.1], [10.6, 16.7, 22.8, 28.8]])
def test_nothing_is_outside_the_page_and_the_caption_covers_no_axes(snr_db):
    # The layout of the second one changes the ticks: it gets other numbers at its axis than before.
    x = [2**k for k in range(len(snr_db))]
    left = {**PANEL, "x": x, "x_scale": "log", "x_ticks": x, "dashed": [{"label": "ideal", "values": snr_db}],
            "curves": [{"label": "one", "mean": snr_db, "low": snr_db, "high": snr_db}] * 4}  # fmt: skip
    right = {**left, "y_scale": "log", "dashed": [],
             "curves": [{"label": "loss", "mean": x, "low": x, "high": x}] * 5}  # fmt: skip
    parts = [left, right]
    figure = plotting.panels({**SUMMARY, "panels": parts, "seed": 17})
    figure.canvas.draw()
    inside = figure.get_tightbbox(figure.canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert 0 <= inside.x0 < inside.x1 <= width
    assert 0 <= inside.y0 < inside.y1 <= height
    (caption,) = [text for text in figure.texts if text.get_text().startswith("400")]
    assert caption.get_text().endswith("Seed 17.")
    lowest = caption.get_window_extent().y0
    assert all(axes.get_tightbbox().y1 < lowest for axes in figure.axes)
