# SPDX-License-Identifier: GPL-3.0-or-later
import numpy as np
import pytest
from gnuradio.dmimo import plotting


def curve(label, mean, role=None):
    quantiles = np.linspace(mean - 2.0, mean + 2.0, 21).tolist()
    return {"label": label, "quantiles": quantiles, "mean": mean, "low": mean - 0.25, "high": mean + 0.25, "role": role}


CURVES = [curve("ideal", 12.4, "reference"), *(curve(f"algorithm {k}", 11.0 - k) for k in range(8)),
          curve("nothing", -1.5, "without")]  # fmt: skip
SWEEP = {"x_label": "streams", "x": [1, 2, 4], "x_ticks": [1, 2, 4],
         "curves": [{"mean": [c["mean"], 5.0, 2.0], "low": [c["mean"] - 1, 4.0, 1.0], "high": [c["mean"] + 1, 6.0, 3.0]}
                    for c in CURVES]}  # fmt: skip
SUMMARY = {"title": "Title", "caption": "400 trials, " * 25, "x_label": "SINR [dB]", "curves": CURVES, "seed": 3}


def test_distribution_bars_and_sweep_show_every_algorithm_in_its_style():
    left, middle, right = plotting.distributions({**SUMMARY, "sweep": SWEEP}).axes
    lines = {line.get_label(): line for line in left.get_lines()}
    np.testing.assert_allclose(lines["algorithm 3"].get_xdata(), CURVES[4]["quantiles"])
    np.testing.assert_allclose(lines["algorithm 3"].get_ydata(), np.linspace(0, 1, 21))
    assert (lines["ideal"].get_linestyle(), lines["nothing"].get_linestyle()) == ("--", ":")
    styles = {(line.get_color(), line.get_linestyle()) for line in lines.values()}
    assert len(styles) == len(CURVES)
    widths = [bar.get_width() for bar in middle.patches]
    np.testing.assert_allclose(widths, [c["mean"] for c in CURVES])
    assert [text.get_text() for text in middle.get_yticklabels()] == [c["label"] for c in CURVES]
    assert "8.00 ± 0.25" in {text.get_text() for text in middle.texts}
    assert "\N{MINUS SIGN}1.50 ± 0.25" in {text.get_text() for text in middle.texts}
    for line, each, left_line in zip(right.get_lines(), SWEEP["curves"], left.get_lines(), strict=True):
        np.testing.assert_array_equal(line.get_ydata(), each["mean"])
        assert line.get_color() == left_line.get_color()
    assert [text.get_text() for text in right.get_xticklabels()] == ["1", "2", "4"]
    assert len(right.collections) == len(CURVES)


@pytest.mark.parametrize("summary", [SUMMARY, {**SUMMARY, "sweep": SWEEP}])
def test_nothing_is_outside_the_page_and_the_caption_names_the_seed(summary):
    figure = plotting.distributions(summary)
    figure.canvas.draw()
    inside = figure.get_tightbbox(figure.canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert 0 <= inside.x0 < inside.x1 <= width
    assert 0 <= inside.y0 < inside.y1 <= height
    (caption,) = [text for text in figure.texts if text.get_text().startswith("400")]
    assert caption.get_text().endswith("seed 3")
    assert all(axes.get_tightbbox().y1 < caption.get_window_extent().y0 for axes in figure.axes)


def test_labels_of_panels_stay_inside_when_the_layout_changes_the_ticks():
    panel = {"title": "", "x_label": "ports", "y_label": "SNR [dB]", "x": [1, 2, 4, 8], "dashed": [],
             "curves": [{"label": str(k), "mean": [10.7, 17.3, 24.0, 30.0], "low": [10.2, 17.0, 23.6, 29.7],
                         "high": [11.2, 17.7, 24.3, 30.3]} for k in range(6)]}  # fmt: skip
    figure = plotting.panels({"title": "T", "caption": "long " * 60, "columns": 1, "panels": [panel]})
    figure.canvas.draw()
    assert figure.axes[0].yaxis.label.get_window_extent().x0 > 0
