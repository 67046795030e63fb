# SPDX-License-Identifier: GPL-3.0-or-later
"""What a run has found, as tables for the terminal."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from rich.markup import escape
from rich.table import Table

from . import reports
from .protocols.slots import Collector

LIVE_ROWS = 12
MAX_PORTS = 16  # rows of a table of amplifiers: flagged ports first, then the least linear ones
MAX_COEFFICIENTS = 48  # rows of a table of coefficients; of more ports only the first `MAX_PORTS` are shown
FLAGS = {"unheard": "not heard", "saturated": "receivers saturated", "receivers_disagree": "receivers disagree",
         "mismatch_limited": "order too low", "unexplained": "not a polynomial", "refused": "left as it is"}
"""Flags of amplifiers in a report, and in words."""
ERRORS = ("alignment_error", "phase_error_deg")  # of a calibration whose truth is known


def _table(title: str, headers: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    table = Table(*map(escape, headers), title=escape(title))
    for row in rows:
        table.add_row(*row)
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None or not np.isfinite(value) else f"{value:z.{digits}f}"  # z: no negative zero


def synchronization_table(members: Mapping[str, Collector], samp_rate: float) -> Table:
    """The last synchronisations of every follower."""
    rows = []
    # The history grows while this is drawn.
    for entry in list(reports.history(members))[-LIVE_ROWS:]:
        for name, found in entry["followers"].items():
            flagged = found["event"] in ("gated", "untrusted", "lost") and "measured_rad" in found
            left = [found["measured_rad"], None] if flagged else [found.get("phase_rad"), found.get("phase_std_rad")]
            due = found.get("next_sample")
            rows.append((f"{entry['sample'] / samp_rate:.4f}", name, f"{found['frequency_hz']:.3f}",
                         *("-" if value is None else f"{np.degrees(value):.2f}" for value in left),
                         "-" if due is None else f"{(due - found['sample']) / samp_rate:.3f}", found["event"]))
    headers = ("time [s]", "node", "offset [Hz]", "phase [deg]", "std [deg]", "next in [s]", "event")
    return _table(f"Synchronisation, last {LIVE_ROWS} rows", headers, rows[-LIVE_ROWS:])


def port_tables(outcome: reports.Outcome, port_names: Sequence[str]) -> Iterator[Table]:
    """Tables of the coefficients of both sides."""
    estimate, ue = outcome.estimate, outcome.report.get("ue_calibration")
    arrays = outcome.report.get("access_points", {})
    for ap, found in arrays.items():
        title = "Calibration" if len(arrays) == 1 else f"Calibration of {ap}"
        if found["deviations_from"] is not None:
            title += f", c = 1 and deviations against {found['deviations_from']}"
        columns = (found[key] for key in ("c", "predicted_phase_std_deg", "frequency_hz", "delay_s"))
        yield _coefficients(title + _distrust(found["trusted"]), found["ports"], *columns)
    if estimate is not None and not arrays:
        columns = (estimate.c, np.degrees(estimate.phase_std_rad), estimate.frequency_hz, estimate.delay_s)
        yield _coefficients("Calibration" + _distrust(estimate.trusted), port_names, *columns)
    if ue is not None:
        columns = (ue[key] for key in ("c", "predicted_phase_std_deg", "frequency_hz", "delay_s"))
        yield _coefficients("Calibration of the UEs", ue["ports"], *columns)


def _distrust(trusted: bool) -> str:
    return "" if trusted else ", NOT TRUSTED"


def _coefficients(title: str, port_names, c, phase_std_deg, frequency_hz, delay_s) -> Table:
    if len(port_names) > MAX_COEFFICIENTS:
        title, port_names = f"{title}, first {MAX_PORTS} of {len(port_names)} ports", port_names[:MAX_PORTS]
        c, phase_std_deg, frequency_hz, delay_s = (
            column[:MAX_PORTS] for column in (c, phase_std_deg, frequency_hz, delay_s))
    columns = (np.abs(c), np.degrees(np.angle(c)), phase_std_deg, frequency_hz, delay_s * 1e9)
    rows = ((name, *(_number(number, 3) for number in numbers))
            for name, *numbers in zip(port_names, *columns, strict=True))
    headers = ("port", "|c|", "phase [deg]", "predicted std [deg]", "CFO [Hz]", "delay [ns]")
    return _table(title, headers, rows)


def result_tables(report: Mapping[str, object]) -> Iterator[Table]:
    """Tables of all that a report holds but the coefficients."""
    if report.get("amplifiers"):
        yield amplifier_table(report["amplifiers"])
    if report.get("linearity"):
        yield linearity_table(report["linearity"])
    yield from verification_tables(report)
    yield from cooperation_tables(report)
    if report.get("multiuser"):
        yield users_table(report["multiuser"])


def verification_tables(report: Mapping[str, object]) -> Iterator[Table]:
    """Figures of merit: of several arrays that calibrated themselves one table each, and one of the run."""
    arrays = report.get("access_points", {})
    if len(arrays) < 2:
        yield gains_table(report)
        return
    for ap, found in arrays.items():
        gains = {key: found.get(key) for key in ERRORS} | (found["verification"] or {})
        if any(value is not None for value in gains.values()):  # an error is the run's
            yield gains_table(gains | {"error": None}, ap)
    of_arrays = {key for found in arrays.values() for key in found["verification"] or ()}.union(ERRORS)
    yield gains_table({key: value for key, value in report.items() if key not in of_arrays})


def gains_table(report: Mapping[str, object], ap: str | None = None) -> Table:
    """The figures of merit; gains are those at the same total power. Power of single ports: those are scattered."""
    scattered = "port_power_db" in report
    rows = (
        ("coherent gain", "coherent_gain_db", "dB"), ("ideal gain", "ideal_gain_db", "dB"),
        (f"uncalibrated, mean of random {'phases' if scattered else 'starts'}", "uncalibrated_gain_db", "dB"),
        (f"best single {'port' if scattered else 'node'}", "best_single_node_db", "dB"),
        ("alignment error (true c known)", "alignment_error", ""),
        ("phase error (true c known)", "phase_error_deg", "deg"),
        ("loss to the ideal, time average", "loss_db", "dB"), ("exchanges that calibrated", "calibrations", ""),
        ("phase error of the TRPs, rms over time", "trp_phase_error_rms_deg", "deg"),
        ("phase error of the UEs, rms over time", "ue_phase_error_rms_deg", "deg"),
        ("synchronisations", "synchronisations", ""),
        ("interval between them, mean", "mean_interval_s", "s"), ("slots", "slots", ""),
        ("network time", "duration_s", "s"),
    )
    title = "Verification" if ap is None else f"Verification of {ap}"
    title = f"{title}, equal total power" if "coherent_gain_db" in report else "Run" if ap is None else title
    return _table(title if report["error"] is None else f"{title}, FAILED", ("figure", "value", "unit"),
                  ((label, f"{report[key]:.4g}", unit) for label, key, unit in rows if report.get(key) is not None))


def cooperation_tables(report: Mapping[str, object]) -> Iterator[Table]:
    """The SNR against the number of cooperating ports, of both directions."""
    for title, source in (("Joint downlink", report), ("Joint uplink", report.get("uplink", {}))):
        if source.get("cooperation"):
            rows = ((str(row["ports"]), *(_number(row[key], 2) for key in ("snr_db", "ideal_snr_db",
                                                                          "uncalibrated_snr_db")))
                    for row in source["cooperation"])
            headers = ("ports", "SNR [dB]", "all in phase [dB]", "random node phases [dB]")
            yield _table(f"{title}, every port at its own full power", headers, rows)


def users_table(report: Mapping[str, object]) -> Table:
    """A downlink to several user terminals."""
    title = (f"Joint downlink, {report['method'].replace('_', ' ')}: "
             f"{report['spectral_efficiency_bps_hz']:.1f} bit/s/Hz in all, uncalibrated "
             f"{report['uncalibrated_spectral_efficiency_bps_hz']:.1f}")
    headers = ("user terminal", "SINR [dB]", "SNR [dB]", "suppression [dB]", "uncalibrated SINR [dB]")
    rows = ((name, *(_number(user[f"{key}_db"], 1) for key in ("sinr", "snr", "suppression", "uncalibrated_sinr")))
            for name, user in report["users"].items())
    return _table(title, headers, rows)


def amplifier_table(section: Mapping[str, object]) -> Table:
    """Amplifiers as identified, at most `MAX_PORTS` of them."""
    ports, without = (list(section[key]) for key in ("ports", "distortion_without_db"))
    words = {port: [word for flag, word in FLAGS.items() if port in section["flags"][flag]] for port in ports}
    for port in section["deaf"]:
        words[port].append("hears nobody")
    order = sorted(range(len(ports)), key=lambda k: (not words[ports[k]], -np.nan_to_num(without[k], nan=-np.inf)))
    shown = sorted(order[:MAX_PORTS])
    rows = ((ports[k], *_distortions(section, k), ", ".join(words[ports[k]])) for k in shown)
    title = f"Amplifiers, order {section['order']}"
    if not section["order_checked"]:
        title += ", order not checked by two amplitudes"
    if len(shown) < len(ports):
        title += f", {len(shown)} of {len(ports)} ports: flagged and least linear ones"
    # Broken, so that 80 columns hold them.
    headers = ("port", "distortion\n[dB]", "predistorted\n[dB]", "clipping\n[dB]", "clipped\n[%]", "flags")
    return _table(title, headers, rows)


def _distortions(section: Mapping[str, object], index: int) -> tuple[str, ...]:
    """Distortion of an amplifier inside the invertible range, without and with predistortion, and what it clips."""
    port, flags = section["ports"][index], section["flags"]
    silent = port in flags["unheard"]
    without, with_, clipping = (_number(section[f"{key}_db"][index], 1)
                                for key in ("distortion_without", "predistorted", "clipping"))
    if silent or port in flags["refused"]:
        return "-" if silent else without, "-", "-", "-"
    return without, with_, clipping, f"{100 * section['clipped_share'][index]:.2g}"


def linearity_table(section: Mapping[str, object]) -> Table:
    """How user terminals hear each access point's joint transmission before and after."""
    keys = (("power_db", 2), ("coherent_gain_db", 2), ("ideal_gain_db", 2), ("evm_db", 1), ("evm_percent", 3),
            ("aclr_db", 1))
    rows = ((ap, name, *(_number(found.get(key), digits) for key, digits in keys))
            for ap, treatments in section["access_points"].items() for name, found in treatments.items())
    headers = ("AP", "sent", "power", "gain", "ideal gain", "EVM", "EVM [%]", "ACLR")  # 80 columns must hold them
    return _table("Joint transmission, every port at full power [dB]; gain over random phases", headers, rows)
