# SPDX-License-Identifier: GPL-3.0-or-later
"""Figures of a run that linearised its amplifiers over the air. To be called through `plotting`."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from .core import predistortion
from .plotting_style import COLOURS, darker, new_figure, set_title

# Amplitudes at which characteristics are drawn, from this far below unit mean power.
_POINTS, _LOWEST_DB = 400, -20.0
# Ports up to which lines are thick, and names are written out.
_FEW = 16
_IDENTIFIED, _REFUSED, _PREDISTORTED, _TRUE = COLOURS[1], COLOURS[0], COLOURS[2], "#000000"
_TREATMENTS = (("before", "before", COLOURS[0]), ("calibrated", "calibrated", COLOURS[4]),
               ("after", "predistorted and calibrated", COLOURS[1]))
# What a spectrum shows below its lowest level, and the lowest that it shows: the rest is rounding.
_ROOM_DB, _DEEPEST_DB = 4.0, -100.0
_DISTORTIONS = ("distortion_without_db", "distortion_with_db", "true_distortion_without_db", "true_distortion_with_db")
_PEAKS = "#8a8a8a"
# Distortions below the first are rounding: they are drawn at the second, where the axis ends.
_NOTHING_DB, _EDGE_DB = -120.0, -125.0


def linearization_figures(report: Mapping) -> dict[str, Figure]:
    """Figures by name, as far as the report reaches: `amplifiers`, `linearization` and `spectrum`.

    Parameters
    ----------
    report : mapping
        As written to report.json: `amplifiers`, and `linearity` with `testbed`. Complex numbers may be pairs, as in the
        file, and what is missing None or nan.
    """
    figures = {}
    found = report.get("amplifiers")
    if found:
        figures["amplifiers"] = amplifiers(found)
        if any(np.isfinite(_numbers(found.get(key), found)).any() for key in _DISTORTIONS):
            figures["linearization"] = linearization(found)
    if report.get("linearity"):
        figures["spectrum"] = spectrum(report["linearity"], report["testbed"], _predistorted(found))
    return figures


def _predistorted(section: Mapping | None) -> set[str]:
    """Access points with at least one port that is predistorted."""
    if not section:
        return set()
    refused = section["flags"].get("refused", ())
    return {port.rpartition(":")[0] for port in section["ports"] if port not in refused}


def amplifiers(section: Mapping) -> Figure:
    """Gain and phase of every amplifier over its input amplitude, as identified, in truth, and predistorted.

    Predistorted characteristics are over the wanted amplitude and end in a dot where the inverse does; they are those
    of the true amplifiers where these are known, otherwise of the identified ones, which are flat by construction. With
    memory all are those of a constant amplitude. Ports that stay as they are, are dotted.

    Parameters
    ----------
    section : mapping
        `amplifiers` of the report: `ports`, `order`, `memory_depth`, `coefficients`, `max_amplitude`, `flags`, and
        optionally `true_coefficients` and `true_saturation`.
    """
    num, refused = len(section["ports"]), _is_named(section, "refused")
    amplitude = 10 ** (np.linspace(_LOWEST_DB, _db(section["max_amplitude"]), _POINTS) / 20)
    model = _static(_complex(section["coefficients"], 3 if section["memory_depth"] > 1 else 2))
    identified = predistortion.amplify(amplitude, model) / amplitude
    laws = None if section.get("true_coefficients") is None else _true_laws(section)
    true = None if laws is None else _limited(amplitude, laws) / amplitude
    reach, predistorted = np.empty(0), np.empty((0, _POINTS))
    if not refused.all():
        limit = {"max_amplitude": section["max_amplitude"]}
        reach = predistortion.invertible_range(model[~refused], **limit).output_amplitude
        inputs = predistortion.predistort(amplitude, model[~refused], **limit)
        predistorted = predistortion.amplify(inputs, model[~refused]) if laws is None else _limited(
            inputs, tuple(part[~refused] for part in laws))
        predistorted = predistorted / amplitude
    figure, panels = new_figure(10.4, 5.0, columns=2)
    for axes, scale in zip(panels, (_db, lambda gain: np.degrees(np.angle(gain))), strict=True):
        _characteristics(axes, _db(amplitude), scale, identified, refused, true, predistorted, reach)
    panels[0].set_ylabel("gain [dB]")
    panels[1].set_ylabel("phase [degrees]")
    count = np.count_nonzero(refused)
    caption = f"{num} ports, order {section['order']}" + (
        f", memory of {section['memory_depth']} samples" if section["memory_depth"] > 1 else "")
    set_title(panels[0], "Gain (AM/AM)", caption + (f"; {count} refused" if count else ""))
    set_title(panels[1], "Phase (AM/PM)", "dots: largest amplitude that can be predistorted")
    _legend_below(figure, panels[0], columns=5)
    return figure


def _characteristics(axes, level_db: NDArray, scale, identified: NDArray, refused: NDArray, true: NDArray | None,
                     predistorted: NDArray, reach: NDArray) -> None:
    """Curves of complex gains (ports, points) over the level; one entry of the legend for each kind."""
    many = len(identified) > _FEW
    width, alpha = (0.5, 0.45) if many else (1.1, 0.9)
    kinds = [("identified", identified[~refused], {"color": _IDENTIFIED, "zorder": 2.0}),
             ("identified, refused", identified[refused], {"color": _REFUSED, "linestyle": ":", "zorder": 2.2,
                                                           "linewidth": 1.4 * width, "alpha": 1.0}),
             ("true", true, {"color": _TRUE, "linestyle": (0, (5, 4)), "zorder": 2.4, "linewidth": 0.7 * width,
                             "alpha": 0.8 * alpha}),
             ("predistorted" if true is not None else "predistorted, by the model", predistorted,
              {"color": _PREDISTORTED, "zorder": 2.6})]
    for label, gains, style in kinds:
        if gains is not None and len(gains):
            lines = axes.plot(level_db, scale(gains).T, **{"linewidth": width, "alpha": alpha} | style)
            lines[0].set_label(label)
    index = np.minimum(np.searchsorted(level_db, _db(reach)), len(level_db) - 1)
    inside = _db(reach) < level_db[-1]
    ends = scale(predistorted[np.arange(len(reach)), index])
    axes.plot(_db(reach)[inside], ends[inside], ".", color=darker(_PREDISTORTED), markersize=3 if many else 7, zorder=3)
    # A refused estimate may be anything: the others decide what is shown.
    shown = [scale(gains) for gains in (identified[~refused], true, predistorted) if gains is not None and len(gains)]
    values = np.concatenate([part[np.isfinite(part)] for part in shown or [scale(identified)]])
    low, high = min(values.min(initial=0.0), -0.1), max(values.max(initial=0.0), 0.1)
    axes.set(xlim=(level_db[0], level_db[-1]), ylim=(low - 0.08 * (high - low), high + 0.08 * (high - low)),
             xlabel="amplitude [dB over unit mean power]")
    axes.axvline(0.0, color="#b0b0b0", linewidth=0.8, zorder=1)
    axes.grid(True, color="#e4e4e4", linewidth=0.7)


def _true_laws(section: Mapping) -> tuple[NDArray, NDArray]:
    """Coefficients (ports, P) at constant amplitude, and saturation (ports,), of the true amplifiers."""
    given = section["true_coefficients"]
    is_real = not np.iscomplexobj(given)
    coefficients = _complex(given, np.ndim(given) - is_real)
    saturation = _numbers(section.get("true_saturation"), section)
    return _static(coefficients), np.where(np.isfinite(saturation), saturation, np.inf)


def _limited(x: NDArray, laws: tuple[NDArray, NDArray]) -> NDArray:
    """Outputs (ports, points) for inputs x, which keep their phase where they saturate."""
    coefficients, saturation = laws
    size = np.abs(x)
    return predistortion.amplify(x * np.minimum(1.0, saturation[:, None] / size), coefficients)


def _static(coefficients: NDArray) -> NDArray:
    """Coefficients (ports, P) at constant amplitude, relative to the linear one, from those with or without memory."""
    total = coefficients.sum(axis=1) if coefficients.ndim == 3 else coefficients
    return total / total[:, :1]


def linearization(section: Mapping) -> Figure:
    """Distortion of every port without and with predistortion, predicted, and true where it is known.

    Both within the invertible range, with predistortion what errors of the coefficients and higher orders leave; what
    clipping of the peaks beyond it adds is drawn by itself. What is below -120 dB stands at the axis' edge.

    Parameters
    ----------
    section : mapping
        `amplifiers` of the report: `ports`, `flags`, `distortion_without_db`, `predistorted_db`, `clipping_db`,
        `predicted_db`, and optionally `true_distortion_without_db`, `true_distortion_with_db`.
    """
    num, refused = len(section["ports"]), _is_named(section, "refused")
    told = {key: _numbers(section.get(f"{key}_db"), section) for key in (
        "distortion_without", "predistorted", "clipping", "true_distortion_without", "true_distortion_with")}
    gain = told["distortion_without"] - _numbers(section.get("predicted_db"), section)
    without, with_, clipping, true_without, true_with = (_at_edge(values) for values in told.values())
    place, size = np.arange(num), 6.0 if num <= _FEW else 3.6
    figure, axes = new_figure(min(5.2 + 0.35 * num, 12.0), 4.4)
    used = ~refused
    both = used & np.isfinite(with_ + without)
    axes.vlines(place[both], with_[both], without[both], color="#c8c8c8", linewidth=1.0, zorder=1)
    hollow = {"markerfacecolor": "none", "color": "#000000", "markersize": 1.45 * size, "zorder": 3}
    for label, which, values, marker, style in (
        ("without, predicted", slice(None), without, "o", {"color": COLOURS[0], "markersize": size}),
        ("with, predicted", used, with_, "s", {"color": COLOURS[1], "markersize": size}),
        ("clipped peaks, predicted", used, clipping, "_",
         {"color": _PEAKS, "markersize": 2 * size, "markeredgewidth": 1.6}),
        ("without, true", slice(None), true_without, "o", hollow),
        ("with, true", used, true_with, "s", hollow),
    ):
        if np.isfinite(values[which]).any():  # nothing to draw: nothing in the legend
            axes.plot(place[which], values[which], marker, label=label, clip_on=False, **style)
    low, high = _span(np.concatenate([without, with_[used], clipping[used], true_without, true_with[used]]))
    for index, port in enumerate(place[refused]):
        axes.axvspan(port - 0.5, port + 0.5, color="#e8e8e8", linewidth=0, zorder=0,
                     label=None if index else "refused: stays as it is")
    axes.set(xlim=(-0.6, num - 0.4), ylim=(low, high), ylabel="distortion over linear signal [dB]")
    _name_ticks(axes, section["ports"])
    axes.grid(True, axis="y", color="#e4e4e4", linewidth=0.7)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8.5)
    set_title(axes, "Distortion of each port", _median_gain(gain[used]))
    return figure


def _at_edge(values: NDArray) -> NDArray:
    """Distortions in dB, those that are next to nothing at the lower edge of the axis."""
    return np.where(values < _NOTHING_DB, _EDGE_DB, values)


def _median_gain(gain_db: NDArray) -> str:
    known = gain_db[np.isfinite(gain_db)]
    told = "within the invertible range"
    return f"{told}; predicted gain, clipped peaks included, median: {np.median(known):.1f} dB" if known.size else told


def _span(values: NDArray) -> tuple[float, float]:
    """Limits of an axis that holds all finite values; the lower one at most at the edge."""
    known = values[np.isfinite(values)]
    low, high = known.min(), known.max()
    room = max(0.1 * (high - low), 1.0)
    return max(low - room, _EDGE_DB), high + room


def spectrum(linearity: Mapping, testbed: Mapping, predistorted: Collection[str] | None = None) -> Figure:
    """Power spectrum that a user terminal receives from each access point: before, calibrated, and also predistorted.

    Parameters
    ----------
    linearity : mapping
        Of the report: `frequencies_hz`, and `access_points` with `spectrum_db`, `noise_db`, `aclr_db`, `evm_db` of each
        treatment, or `aclr_at_least_db`, `evm_at_most_db` where noise hides them.
    testbed : mapping
        Of the report; where the channel ends.
    predistorted : collection of str, optional
        Access points with ports that are predistorted: what that changed is told of these. None: of all.
    """
    frequency = np.asarray(linearity["frequencies_hz"], np.float64)
    order = np.argsort(frequency)
    factor, unit = (1e-6, "MHz") if np.ptp(frequency) >= 2e6 else (1e-3, "kHz")
    slots = testbed["slots"]
    edge = (slots["num_subcarriers"] // 2 + 0.5) * testbed["samp_rate"] / slots["pilot_samples"]
    aps = linearity["access_points"]
    columns = min(len(aps), 3)
    rows = -(-len(aps) // columns)
    figure, panels = new_figure(max(4.4 * columns, 6.4), 3.9 * rows + 0.5, columns=columns, rows=rows)
    panels = np.ravel(panels)
    for axes, (name, found) in zip(panels, aps.items(), strict=False):
        _spectra(axes, factor * frequency[order], found, order)
        axes.axvline(-factor * edge, color="#707070", linestyle=":", linewidth=1.0, label="channel edges")
        axes.axvline(factor * edge, color="#707070", linestyle=":", linewidth=1.0)
        axes.set(xlabel=f"frequency from band centre [{unit}]", ylabel="power per bin [dB over channel's mean]")
        is_told = predistorted is None or name in predistorted
        set_title(axes, f"Received from {name}", _summary(found) if is_told else "no port is predistorted")
    for axes in panels[len(aps) :]:
        axes.remove()
    _legend_below(figure, panels[0], columns=3)
    return figure


def _legend_below(figure: Figure, axes, columns: int) -> None:
    """Legend of the axes at the lower edge of the page, with lines that can be told apart however thin the curves."""
    handles, labels = axes.get_legend_handles_labels()
    rows = -(-len(labels) // columns)
    bottom = 0.24 * rows / figure.get_figheight()
    figure.get_layout_engine().set(rect=(0.0, bottom, 1.0, 1.0 - bottom))
    legend = figure.legend(handles, labels, loc="lower left", bbox_to_anchor=(0.01, 0.0), frameon=False, fontsize=9,
                           ncols=columns)
    for line in legend.get_lines():
        line.set(linewidth=1.3, alpha=1.0)


def _spectra(axes, frequency: NDArray, found: Mapping, order: NDArray) -> None:
    """Spectra of one access point, and dashed the noise in each of them."""
    lowest = []
    for key, label, colour in _TREATMENTS:
        if found.get(key) is None:
            continue
        level = np.asarray(found[key]["spectrum_db"], np.float64)[order]
        axes.plot(frequency, level, color=colour, linewidth=1.2, label=label)
        lowest += [np.min(level[np.isfinite(level)], initial=0.0)]
        noise = found[key].get("noise_db")
        if noise is not None and np.isfinite(noise):
            is_last = key == _TREATMENTS[-1][0]
            axes.axhline(noise, color=darker(colour), linestyle="--", linewidth=1.0,
                         label="noise, in the colour of its signal" if is_last else None)
            lowest.append(noise)
    bottom = max(min(lowest, default=-40.0), _DEEPEST_DB) - _ROOM_DB
    axes.set(xlim=(frequency[0], frequency[-1]), ylim=(bottom, 6.0))
    axes.grid(True, color="#e4e4e4", linewidth=0.7)


def _summary(found: Mapping) -> str:
    """What predistortion changed, with the same weights; empty where that is not known."""
    parts = []
    for key, limit, word, show, unit in (
        ("aclr_db", "aclr_at_least_db", "over", lambda value: f"{value:.1f}", "dB"),
        ("evm_db", "evm_at_most_db", "below", lambda value: f"{100 * 10 ** (value / 20):.2g}", "%"),
    ):
        sides = [found.get(side) or {} for side in ("calibrated", "after")]
        values = [show(side[key]) if side.get(key) is not None
                  else f"{word} {show(side[limit])}" if side.get(limit) is not None else None for side in sides]
        if None not in values:
            parts.append(f"{key[:-3].upper()} {values[0]} \N{RIGHTWARDS ARROW} {values[1]} {unit}")
    return f"predistorted: {'; '.join(parts)}" if parts else ""


def _name_ticks(axes, ports: Sequence[str]) -> None:
    """Names of the ports below the axis, as many as there is room for."""
    step = -(-len(ports) // 34)
    axes.set_xticks(range(0, len(ports), step), list(ports)[::step], fontsize=9 if len(ports) <= _FEW else 7,
                    rotation=45, ha="right", rotation_mode="anchor")


def _is_named(section: Mapping, flag: str) -> NDArray:
    return np.isin(section["ports"], list(section["flags"].get(flag, ())))


def _numbers(values, section: Mapping) -> NDArray:
    """Real numbers (ports,); nan for what is missing."""
    return np.full(len(section["ports"]), np.nan) if values is None else np.asarray(values, np.float64)


def _complex(values, dims: int) -> NDArray:
    """Complex array of so many axes, from itself or from pairs of real and imaginary part."""
    values = np.asarray(values)
    return values[..., 0] + 1j * values[..., 1] if values.ndim == dims + 1 else values.astype(complex)


def _db(amplitude):
    return 20 * np.log10(np.abs(amplitude))
