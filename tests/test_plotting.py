# SPDX-License-Identifier: GPL-3.0-or-later
import os
import subprocess
import sys

import numpy as np
import pytest
from gnuradio.dmimo import plotting
from matplotlib.figure import Figure

SUMMARY = {
    "title": "Title", "caption": "400 trials, 95 % confidence bands", "x_label": "SNR [dB]", "y_label": "mean error",
    "x": [0.0, 10.0, 20.0],
    "curves": [{"label": f"curve {k}", "mean": [0.1 / k, 0.01 / k, 0.001 / k], "low": [0.09 / k, 0.009 / k, -0.001],
                "high": [0.11 / k, 0.011 / k, 0.002]} for k in (1, 2, 3)],
    "dashed": [{"label": "bound", "values": [0.03, 0.003, 0.0003]}],
}
REPORT = {"coherent_gain_db": 4.62, "coherent_gain_std_db": 0.03, "ideal_gain_db": 4.65, "uncalibrated_gain_db": -0.2,
          "uncalibrated_gain_std_db": 0.6, "best_single_node_db": 0.9,
          "single_node_db": {"ap1": 0.9, "ap2": -0.3, "ap3": -6.8}}


def phasors(num_ports, seed=1):
    rng = np.random.default_rng(seed)
    return np.exp(2j * np.pi * rng.random(num_ports)), np.exp(0.05j * rng.standard_normal(num_ports))


def labels(num_ports):
    return [f"ap{k}:0" for k in range(num_ports)]


def figures():
    few, many = phasors(3), phasors(16)
    many[0][3] = many[1][3] = np.nan
    matrix = 18 + 6 * np.random.default_rng(2).standard_normal((20, 20))
    matrix[0, 1] = np.nan
    return {
        "curves": lambda: plotting.error_curves(SUMMARY),
        "few": lambda: plotting.coefficients(*few, few[0] * few[1], labels=labels(3), phase_std_rad=[0, 0.05, 0.05]),
        "many": lambda: plotting.coefficients(*many, labels=labels(16)),
        "none": lambda: plotting.coefficients([np.nan] * 2, [np.nan] * 2, labels=labels(2), phase_std_rad=[np.nan] * 2),
        "exact": lambda: plotting.coefficients([1, 1j], [1, 1], labels=labels(2)),
        "gains": lambda: plotting.gain_bars(REPORT),
        "gains, least": lambda: plotting.gain_bars({"coherent_gain_db": -3.0, "ideal_gain_db": -2.0,
                                                    "uncalibrated_gain_db": None, "single_node_db": None}),
        "snr 2": lambda: plotting.pair_snr(matrix[:2, :2], labels(2)),
        "snr 8": lambda: plotting.pair_snr(matrix[:8, :8], labels(8)),
        "snr 20": lambda: plotting.pair_snr(matrix, labels(20)),
        "snr none": lambda: plotting.pair_snr(np.full((3, 3), np.nan), labels(3)),
    }


@pytest.mark.parametrize("name", figures())
def test_every_figure_has_named_axes_and_nothing_outside_the_page(name):
    figure = figures()[name]()
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    inside = figure.get_tightbbox(figure.canvas.get_renderer())
    width, height = figure.get_size_inches()
    assert inside.x0 >= 0
    assert inside.y0 >= 0
    assert inside.x1 <= width
    assert inside.y1 <= height
    for axes in figure.axes:
        assert axes.get_ylabel()
        if axes.get_label() != "<colorbar>" and name not in ("gains", "gains, least"):
            assert axes.get_xlabel() or axes.get_xticklabels()


def texts(figure):
    return [text.get_text() for text in figure.findobj(match=lambda artist: hasattr(artist, "get_text"))]


def test_error_curves_draw_the_means_the_bands_and_dashed_bounds():
    (axes,) = plotting.error_curves(SUMMARY).axes
    assert axes.get_yscale() == "log"
    lines = {line.get_label(): line for line in axes.get_lines()}
    np.testing.assert_array_equal(lines["curve 2"].get_ydata(), SUMMARY["curves"][1]["mean"])
    np.testing.assert_array_equal(lines["bound"].get_ydata(), SUMMARY["dashed"][0]["values"])
    assert lines["bound"].get_linestyle() == "--"
    assert lines["curve 1"].get_linestyle() == "-"
    bands = [path.vertices for band in axes.collections for path in band.get_paths()]
    assert len(bands) == 3
    assert np.isclose(bands[0][:, 1], 0.11).any()
    assert np.isclose(bands[0][:, 1], 0.09).any()
    assert min(np.min(band[:, 1]) for band in bands) > 0
    assert "400 trials, 95 % confidence bands" in texts(axes.figure)


def test_coefficients_show_what_is_left_in_degrees_with_95_percent_bars():
    before = np.exp(1j * np.deg2rad([10.0, 100.0, -170.0]))
    figure = plotting.coefficients(before, np.exp(1j * np.deg2rad([0.0, 2.0, -5.0])), labels=labels(3),
                                   phase_std_rad=np.deg2rad([0.0, 1.0, 2.0]))
    left = figure.axes[1]
    (points,) = (line for line in left.get_lines() if line.get_marker() == "o")
    np.testing.assert_allclose(points.get_ydata(), [0, 2, -5], atol=1e-12)
    (bars,) = left.collections
    lengths = [np.ptp(bar[:, 1]) for bar in bars.get_segments()]
    np.testing.assert_allclose(lengths, [0, 3.92, 7.84], rtol=1e-3, atol=1e-9)
    # 10 to 190 degrees: the arc that does not cross the gap.
    assert any("spread over 180 degrees" in text for text in texts(figure))


def test_ports_that_were_not_calibrated_are_crossed_out():
    figure = plotting.coefficients([1, np.nan, 1j], [1, np.nan, 1], labels=labels(3))
    (crossed,) = (line for line in figure.axes[1].get_lines() if line.get_marker() == "x")
    assert crossed.get_xdata().tolist() == [1]


def test_gain_bars_have_the_heights_of_the_report_and_a_dashed_ideal():
    (axes,) = plotting.gain_bars(REPORT).axes
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], [4.62, -0.2, 0.9, -0.3, -6.8])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == [
        "calibrated", "uncalibrated,\nmean", "ap1\nalone", "ap2\nalone", "ap3\nalone"]
    (ideal,) = (line for line in axes.get_lines() if line.get_label() == "ideal, 4.65 dB")
    assert list(ideal.get_ydata()) == [4.65, 4.65]
    assert axes.get_ylim()[0] < -6.8
    (best,) = (plotting.gain_bars({key: REPORT[key] for key in ("coherent_gain_db", "ideal_gain_db",
                                                                  "best_single_node_db")}).axes)
    np.testing.assert_allclose([bar.get_height() for bar in best.patches], [4.62, 0.9])


def test_gain_bars_of_many_ports_are_the_strongest_and_the_weakest_that_are_heard():
    alone = {f"ap1:{port}": float(port % 7) - 2.0 + 0.01 * port for port in range(40)} | {"ap1:5": None}
    (axes,) = plotting.gain_bars(REPORT | {"single_node_db": alone}).axes
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[-2:] == ["strongest,\nap1:34\nalone", "weakest,\nap1:0\nalone"]
    assert [bar.get_height() for bar in axes.patches[-2:]] == [alone["ap1:34"], alone["ap1:0"]]
    few = plotting.gain_bars(REPORT | {"single_node_db": {"a": 1.0, "b": None}}).axes[0]
    assert [label.get_text() for label in few.get_xticklabels()][-1] == "a\nalone"



def test_bars_far_below_the_best_leave_the_scale_to_the_others():
    """The best is 4.65 dB: -35.34 dB is within 40 dB of it, -35.36 dB is not."""
    def drawn(value):
        figure = plotting.gain_bars(REPORT | {"single_node_db": {"a": 1.0, "b": value}})
        figure.canvas.draw()
        (number,) = (text for text in figure.axes[0].texts if text.get_text() == f"{value:.2f}".replace("-", "\u2212"))
        assert figure.axes[0].get_window_extent().contains(*number.get_window_extent().p0)
        return figure.axes[0].get_ylim()[0]

    assert drawn(-35.34) < -35.34
    # What is left is the interval of the uncalibrated mean.
    assert -3.0 < drawn(-35.36) < -0.2 - 1.96 * 0.6


def test_numbers_of_bars_stand_on_white_above_the_ideal_line():
    (axes,) = plotting.gain_bars(REPORT).axes
    (ideal,) = (line for line in axes.get_lines() if line.get_linestyle() == "--")
    numbers = [text for text in axes.texts if text.get_text().replace(".", "").replace("\u2212", "").isdigit()]
    assert len(numbers) == 5
    for number in numbers:
        assert number.get_zorder() > ideal.get_zorder()
        assert number.get_bbox_patch().get_facecolor()[:3] == (1.0, 1.0, 1.0)


def test_ports_are_called_so_where_they_are_scattered():
    axes = plotting.gain_bars({"coherent_gain_db": 4.0, "ideal_gain_db": 4.1, "best_single_node_db": 0.5,
                               "port_power_db": [1.0, 2.0]}).axes[0]
    assert axes.get_ylabel() == "gain over random port phases [dB]"
    assert [label.get_text() for label in axes.get_xticklabels()][1] == "best port\nalone"
    assert plotting.gain_bars(REPORT).axes[0].get_ylabel() == "gain over random node phases [dB]"


def test_every_access_point_that_calibrated_itself_has_figures_of_its_own():
    def array(ap, gain_db):
        verification = None if gain_db is None else {"coherent_gain_db": gain_db, "ideal_gain_db": 4.0}
        return {"ports": [f"{ap}:0", f"{ap}:1"], "c": np.array([1.0, 1j]), "predicted_phase_std_deg": np.zeros(2),
                "verification": verification}

    report = {"coherent_gain_db": 2.0, "ideal_gain_db": 4.0, "access_points": {
        "ap1": array("ap1", 2.0), "ap2": array("ap2", 3.0), "ap3": array("ap3", None)}}
    figures = plotting.run_figures(report)
    assert set(figures) == {"coefficients-ap1", "gains-ap1", "coefficients-ap2", "gains-ap2", "coefficients-ap3"}
    for ap, gain_db in (("ap1", 2.0), ("ap2", 3.0)):
        assert figures[f"gains-{ap}"].axes[0].patches[0].get_height() == gain_db
        assert f"{ap}:1" in texts(figures[f"coefficients-{ap}"])
    one = report["access_points"]["ap1"]
    assert set(plotting.run_figures(report | one | {"access_points": {"ap1": one}})) == {"coefficients", "gains"}


def test_pair_snr_puts_receivers_in_rows_and_leaves_unmeasured_pairs_blank():
    snr_db = np.array([[99, 12.0, np.nan], [20.0, 99, -np.inf], [7.5, 30.0, 99]])
    figure = plotting.pair_snr(snr_db, labels(3))
    axes = figure.axes[0]
    found = {text.get_position(): text.get_text() for text in axes.texts if text.get_text()[0].isdigit()
             and "not" not in text.get_text()}
    # Positions are (column = transmitter, row = receiver).
    assert found == {(1, 0): "12.0", (0, 1): "20.0", (0, 2): "7.5", (1, 2): "30.0"}
    assert "receiv" in axes.get_ylabel()
    assert any("2 of 6 not measured" in text for text in texts(figure))
    np.testing.assert_array_equal(snr_db[0, 0], 99)


def test_wrong_lengths_raise():
    with pytest.raises(ValueError, match=r"after has shape \(2,\)"):
        plotting.coefficients([1, 1, 1], [1, 1], labels=labels(3))
    with pytest.raises(ValueError, match="snr_db has shape"):
        plotting.pair_snr(np.zeros((2, 3)), labels(3))


def test_plotting_needs_no_display_and_no_global_state():
    code = ("import sys; from gnuradio.dmimo import plotting; "
            "plotting.gain_bars({'coherent_gain_db': 1.0, 'ideal_gain_db': 1.0}).canvas.draw(); "
            "sys.exit('matplotlib.pyplot' in sys.modules)")
    environment = {**os.environ, "MPLBACKEND": "qtagg"}
    environment.pop("DISPLAY", None)
    assert subprocess.run([sys.executable, "-c", code], env=environment, timeout=120).returncode == 0
