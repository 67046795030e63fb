# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures of amplifiers that were linearised: they show the numbers of the report, for few ports and for many."""

import json

import numpy as np
import pytest
from gnuradio.dmimo import plotting_predistortion as plotting
from gnuradio.dmimo import records, reports_linearization
from gnuradio.dmimo.core import predistortion as dpd
from gnuradio.dmimo.simulation.amplifiers import Amplifiers, draw_amplifiers
from matplotlib.figure import Figure

TESTBED = {"samp_rate": 1e6, "slots": {"num_subcarriers": 6, "pilot_samples": 16}}
GAN = draw_amplifiers(np.random.default_rng(7), 8, back_off_db=10.0, drive_std_db=0.5, spread=0.1)


def identify(true, *, order=9, memory_depth=1, variance=1e-6, silent=()):
    rng = np.random.default_rng(1)
    peak, count = np.sqrt(10), true.num_ports
    pilots = dpd.design_pilots(120, "data_like", peak=peak, backoff_db=10.0, rng=rng)
    gains = np.exp(2j * np.pi * rng.random((count, count)))
    gains[:, list(silent)] = 0.0
    past = np.concatenate([np.zeros(true.num_taps - 1), pilots])
    y = gains[..., None] * true(np.broadcast_to(past, (count, past.size)).astype(complex))
    y += np.sqrt(variance / 2) * (rng.standard_normal(y.shape) + 1j * rng.standard_normal(y.shape))
    return dpd.identify_amplifiers(dpd.pilot_statistics(y, pilots, order=order, memory_depth=memory_depth))


def section(true=GAN, known=True, **changes):
    ports = [f"ap1:{port}" for port in range(true.num_ports)]
    return reports_linearization.amplifiers_section(identify(true, **changes), ports, true if known else None)


def linearity(names=("ap1",)):
    """A channel of three bins each side and band centre, in the order of a DFT."""
    frequency = np.fft.fftfreq(16, 1e-6)
    inside = (np.abs(frequency) > 0) & (np.abs(frequency) < 0.2e6)

    def treatment(outside_db, noise_db, aclr_db, evm_db):
        return {"spectrum_db": np.where(inside, 0.0, outside_db - 1e-5 * frequency / 1e3).tolist(), "clips": None,
                "noise_db": noise_db, "aclr_db": aclr_db, "evm_db": evm_db}

    found = {"before": treatment(-25, -50, 24.0, -20.0), "calibrated": treatment(-40, -51, 39.0, -36.0),
             "after": treatment(-45, -57, None, -40.0) | {"aclr_at_least_db": 44.5}}
    return {"frequencies_hz": frequency.tolist(), "access_points": {name: found for name in names}}


def many():
    return draw_amplifiers(np.random.default_rng(3), 100, back_off_db=12.0, drive_std_db=0.5, spread=0.1)


def with_memory():
    return draw_amplifiers(np.random.default_rng(3), 4, [1, -0.05 + 0.02j], saturation=np.inf, memory=[0.1j])


REPORTS = {
    "known": lambda: {"amplifiers": section(silent=(3,)), "linearity": linearity(), "testbed": TESTBED},
    "radios": lambda: {"amplifiers": section(known=False), "linearity": linearity(("ap1", "ap2", "ap3", "ap4")),
                       "testbed": TESTBED},
    "two": lambda: {"linearity": linearity(("ap1", "ap2")), "testbed": TESTBED},
    "many": lambda: {"amplifiers": section(many(), variance=3e-3), "testbed": TESTBED},
    "memory": lambda: {"amplifiers": section(with_memory(), order=3, memory_depth=2)},
    "unheard": lambda: {"amplifiers": section(silent=range(8))},
    "unheard radios": lambda: {"amplifiers": section(silent=range(8), known=False)},
    "third order": lambda: {"amplifiers": section(order=3, variance=1e-3)},
}


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.filterwarnings("error")
def test_every_figure_has_named_axes_and_nothing_outside_the_page(name):
    report = REPORTS[name]()
    figures = plotting.linearization_figures(report)
    assert ("amplifiers" in figures) is ("amplifiers" in report)
    assert ("spectrum" in figures) is ("linearity" in report)
    # Where nobody heard anything and nothing is known there is no distortion to show.
    assert ("linearization" in figures) is ("amplifiers" in report and name != "unheard radios")
    for figure in figures.values():
        assert isinstance(figure, Figure)
        figure.canvas.draw()
        inside = figure.get_tightbbox(figure.canvas.get_renderer())
        width, height = figure.get_size_inches()
        assert min(inside.x0, inside.y0) >= 0
        assert inside.x1 <= width
        assert inside.y1 <= height
        for axes in figure.axes:
            assert axes.get_ylabel()
            assert axes.get_xlabel() or axes.get_xticklabels()
            for legend in figure.legends:
                assert not legend.get_window_extent().overlaps(axes.get_tightbbox(figure.canvas.get_renderer()))


def test_report_without_amplifiers_has_no_figures():
    assert plotting.linearization_figures({"amplifiers": None, "linearity": None}) == {}
    assert plotting.linearization_figures({}) == {}


def labelled(axes, label):
    """Lines of one kind: only the first of them is in the legend."""
    (first,) = (line for line in axes.get_lines() if line.get_label() == label)
    return [line for line in axes.get_lines()
            if line.get_color() == first.get_color() and line.get_linestyle() == first.get_linestyle()
            and len(line.get_xdata()) == len(first.get_xdata())]


def test_characteristics_are_those_of_the_polynomials():
    found = section(silent=(3,))
    gain, phase = plotting.amplifiers(found).axes
    level = 10 ** (np.linspace(-20, 10, 400) / 20)
    heard = np.arange(8) != 3
    for kind, coefficients, rows in (("identified", found["coefficients"], heard),
                                     ("identified, refused", found["coefficients"], ~heard)):
        expected = sum(coefficients[rows, p, None] * level ** (2 * p) for p in range(5))
        drawn = [np.stack([line.get_ydata() for line in labelled(axes, kind)]) for axes in (gain, phase)]
        np.testing.assert_allclose(drawn[0], 20 * np.log10(np.abs(expected)), atol=1e-9)
        np.testing.assert_allclose(drawn[1], np.degrees(np.angle(expected)), atol=1e-9)
    true = np.stack([GAN(np.tile(level.astype(complex), (8, 1))) / level])[0]
    drawn = np.stack([line.get_ydata() for line in labelled(gain, "true")])
    np.testing.assert_allclose(drawn, 20 * np.log10(np.abs(true)), atol=1e-9)
    np.testing.assert_allclose(labelled(gain, "true")[0].get_xdata(), 20 * np.log10(level))
    assert "--" in labelled(gain, "true")[0].get_linestyle()
    assert labelled(gain, "identified, refused")[0].get_linestyle() == ":"


def test_predistorted_characteristics_are_flat_up_to_their_dots():
    found = section(known=False)
    for axes, clip in zip(plotting.amplifiers(found).axes, (-0.5, 0.0), strict=True):
        curves = labelled(axes, "predistorted, by the model")
        (dots,) = (line for line in axes.get_lines() if line.get_marker() == ".")
        np.testing.assert_allclose(dots.get_xdata(), 20 * np.log10(found["reach"]))
        assert len(curves) == len(dots.get_xdata()) == 8
        for curve, end in zip(curves, dots.get_xdata(), strict=True):
            level, value = curve.get_xdata(), curve.get_ydata()
            assert np.abs(value[level <= end]).max() < 1e-9
            # Beyond, the output stays where it is.
            np.testing.assert_allclose(value[level > end], 2 * clip * (level - end)[level > end], atol=1e-6)


def test_true_amplifier_behind_an_estimate_is_not_quite_flat():
    found = section(variance=1e-4)
    (gain, _) = plotting.amplifiers(found).axes
    curves = np.stack([line.get_ydata() for line in labelled(gain, "predistorted")])
    level = labelled(gain, "predistorted")[0].get_xdata()
    inside = curves[:, level < 5]
    assert 1e-4 < np.abs(inside).max() < 0.1


def test_saturation_is_drawn_where_the_amplifier_has_it():
    true = Amplifiers(np.tile([1, 0.01], (3, 1)), [1.5, 2.0, 100.0])
    gain = plotting.amplifiers(section(true, order=3)).axes[0]
    level = labelled(gain, "true")[0].get_xdata()
    for line, saturation in zip(labelled(gain, "true"), (1.5, 2.0), strict=False):
        end = 20 * np.log10(saturation * (1 + 0.01 * saturation**2))
        beyond = level > 20 * np.log10(saturation) + 0.1
        np.testing.assert_allclose(line.get_ydata()[beyond], (end - level)[beyond], atol=1e-9)


def test_memory_is_drawn_at_constant_amplitude():
    true = with_memory()
    gain = plotting.amplifiers(section(true, order=3, memory_depth=2, variance=1e-20)).axes[0]
    level = 10 ** (np.linspace(-20, 10, 400) / 20)
    # A Hammerstein amplifier: the memory only scales.
    expected = 1 + (true.coefficients[:, 0, 1] / true.coefficients[:, 0, 0])[:, None] * level**2
    for kind in ("identified", "true"):
        drawn = np.stack([line.get_ydata() for line in labelled(gain, kind)])
        np.testing.assert_allclose(drawn, 20 * np.log10(np.abs(expected)), atol=1e-6)


def test_a_hundred_ports_have_thin_lines_and_a_short_legend():
    figure = plotting.amplifiers(section(many(), variance=3e-3))
    widest = max(line.get_linewidth() for line in labelled(figure.axes[0], "identified"))
    assert widest <= 0.5 < labelled(plotting.amplifiers(section()).axes[0], "identified")[0].get_linewidth()
    (legend,) = figure.legends
    assert len(legend.get_texts()) <= 4
    assert min(line.get_linewidth() for line in legend.get_lines()) > 1
    assert len(plotting.linearization(section(many(), variance=3e-3)).axes[0].get_xticklabels()) <= 40


def test_a_refused_estimate_does_not_set_the_scale():
    found = section(silent=(3,))
    found["coefficients"][3, 1:] = 1e3
    low, high = plotting.amplifiers(found).axes[0].get_ylim()
    assert -8 < low < high < 2


def test_distortions_are_those_of_the_report():
    found = section(silent=(3,), variance=1e-4)
    axes = plotting.linearization(found).axes[0]
    drawn = {line.get_label(): line for line in axes.get_lines()}
    heard = np.arange(8) != 3
    for label, key, rows in (("without, predicted", "distortion_without_db", slice(None)),
                             ("with, predicted", "predistorted_db", heard),
                             ("clipped peaks, predicted", "clipping_db", heard),
                             ("without, true", "true_distortion_without_db", slice(None)),
                             ("with, true", "true_distortion_with_db", heard)):
        np.testing.assert_allclose(drawn[label].get_ydata(), found[key][rows], err_msg=label)
        np.testing.assert_array_equal(drawn[label].get_xdata(), np.arange(8)[rows], err_msg=label)
    (grey,) = (patch for patch in axes.patches if patch.get_label() == "refused: stays as it is")
    np.testing.assert_allclose([grey.get_xy()[:, 0].min(), grey.get_xy()[:, 0].max()], [2.5, 3.5])
    radios = plotting.linearization(section(known=False)).axes[0]
    assert not any("true" in line.get_label() for line in radios.get_lines())
    assert not radios.patches


def test_what_higher_orders_leave_and_what_clips_is_drawn():
    """Order 3 on GaN: the errors of the coefficients alone are far below the truth."""
    found = section(order=3, variance=1e-6)
    used = ~np.isin(found["ports"], found["flags"]["refused"])
    axes = plotting.linearization(found).axes[0]
    drawn = {line.get_label(): line.get_ydata() for line in axes.get_lines()}
    assert np.all(drawn["with, predicted"] > found["distortion_with_db"][used] + 10)
    np.testing.assert_allclose(drawn["with, predicted"], drawn["with, true"], atol=5)
    assert axes.get_ylim()[0] > -100
    lower = plotting.linearization(found | {"clipping_db": np.full(8, -115.0)}).axes[0]
    assert lower.get_ylim()[0] < -115
    gain = np.median((found["distortion_without_db"] - found["predicted_db"])[used])
    assert f"clipped peaks included, median: {gain:.1f} dB" in axes.texts[0].get_text()


def test_next_to_no_distortion_is_drawn_where_the_axis_ends():
    found = section() | {"true_distortion_with_db": np.array([-320.0, -120.1, -119.9, *[-60.0] * 5])}
    axes = plotting.linearization(found).axes[0]
    assert axes.get_ylim()[0] == -125
    (true,) = (line for line in axes.get_lines() if line.get_label() == "with, true")
    np.testing.assert_array_equal(true.get_ydata(), [-125, -125, -119.9, *[-60.0] * 5])
    # Median gain is that of the report.
    gain = np.median(found["distortion_without_db"] - found["predicted_db"])
    assert f"median: {gain:.1f} dB" in axes.texts[0].get_text()


def test_legend_has_what_is_drawn_and_no_more():
    def entries(found):
        return [text.get_text() for text in plotting.linearization(found).axes[0].get_legend().get_texts()]

    kinds = ["without, predicted", "with, predicted", "clipped peaks, predicted", "without, true", "with, true"]
    assert entries(section()) == kinds
    refused = section()
    refused["flags"] = refused["flags"] | {"refused": refused["ports"]}
    assert entries(refused) == ["without, predicted", "without, true", "refused: stays as it is"]
    assert entries(section(silent=range(8))) == ["without, true", "refused: stays as it is"]


def test_spectrum_speaks_of_predistortion_where_a_port_is_predistorted():
    found = {"ports": ["ap1:0", "ap1:1", "ap2:0", "ap2:1"], "flags": {"refused": ["ap1:0", "ap2:0", "ap2:1"]}}
    assert plotting._predistorted(found) == {"ap1"}
    assert plotting._predistorted(None) == set()
    figure = plotting.spectrum(linearity(("ap1", "ap2")), TESTBED, {"ap1"})
    told = [axes.texts[0].get_text() for axes in figure.axes]
    assert told[0].startswith("predistorted: ACLR")
    assert told[1] == "no port is predistorted"
    figure = plotting.linearization_figures({"linearity": linearity(), "testbed": TESTBED})["spectrum"]
    assert figure.axes[0].texts[0].get_text() == "no port is predistorted"


def test_spectrum_is_in_the_order_of_frequency_between_the_channel_edges():
    report = linearity(("ap1", "ap2"))
    figure = plotting.spectrum(report, TESTBED)
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["Received from ap1", "Received from ap2"]
    axes = figure.axes[0]
    drawn = {line.get_label(): line for line in axes.get_lines()}
    frequency = drawn["before"].get_xdata()
    np.testing.assert_allclose(frequency, np.arange(-8, 8) * 62.5)
    assert axes.get_xlabel().endswith("[kHz]")
    for key, label in (("before", "before"), ("calibrated", "calibrated"),
                       ("after", "predistorted and calibrated")):
        given = dict(zip(report["frequencies_hz"], report["access_points"]["ap1"][key]["spectrum_db"], strict=True))
        np.testing.assert_allclose(drawn[label].get_ydata(), [given[1e3 * f] for f in frequency])
    edges = [line.get_xdata()[0] for line in axes.get_lines() if line.get_linestyle() == ":"]
    # Three bins of 62.5 kHz to each side, and half a bin.
    np.testing.assert_allclose(sorted(edges), [-218.75, 218.75])
    noise = [line.get_ydata()[0] for line in axes.get_lines() if line.get_linestyle() == "--"]
    assert noise == [-50, -51, -57]
    texts = [text.get_text() for text in axes.texts]
    assert texts == ["predistorted: ACLR 39.0 \N{RIGHTWARDS ARROW} over 44.5 dB; EVM 1.6 \N{RIGHTWARDS ARROW} 1 %"]
    wide = {"frequencies_hz": [20 * f for f in report["frequencies_hz"]], "access_points": report["access_points"]}
    assert plotting.spectrum(wide, TESTBED | {"samp_rate": 20e6}).axes[0].get_xlabel().endswith("[MHz]")


def test_treatments_without_noise_or_spectrum_are_left_out():
    report = linearity()
    found = report["access_points"]["ap1"]
    found["before"]["noise_db"] = None
    found["calibrated"] = None
    axes = plotting.spectrum(report, TESTBED).axes[0]
    assert "calibrated" not in [line.get_label() for line in axes.get_lines()]
    assert [line.get_ydata()[0] for line in axes.get_lines() if line.get_linestyle() == "--"] == [-57]
    assert not axes.texts


@pytest.mark.parametrize("name", ["known", "memory", "unheard"])
def test_report_file_gives_the_same_figures(tmp_path, name):
    report = REPORTS[name]()
    records.write_json(tmp_path / "report.json", report)
    again = plotting.linearization_figures(json.loads((tmp_path / "report.json").read_text()))
    for key, figure in plotting.linearization_figures(report).items():
        for one, other in zip(figure.axes, again[key].axes, strict=True):
            for line, same in zip(one.get_lines(), other.get_lines(), strict=True):
                np.testing.assert_allclose(line.get_xydata(), same.get_xydata(), rtol=1e-9, err_msg=key)
