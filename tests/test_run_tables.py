# SPDX-License-Identifier: GPL-3.0-or-later
"""Tables of a linearised run: the numbers of the report, and what they are called."""

import io
from types import SimpleNamespace

import numpy as np
import pytest
from gnuradio.dmimo import run_tables
from gnuradio.dmimo.protocols.bidirectional_estimate import SideCalibration
from rich.console import Console

FLAGS = ("refused", "mismatch_limited", "receivers_disagree", "unexplained", "saturated", "unheard")


def cells(table):
    """Cells of a table, row by row."""
    return list(zip(*(column.cells for column in table.columns), strict=True))


def headers(table):
    return [column.header for column in table.columns]


def printed(table, width):
    out = io.StringIO()
    Console(file=out, width=width).print(table)
    return out.getvalue()


def amplifiers(count=3, **flags):
    return {"ports": [f"ap1:{port}" for port in range(count)], "order": 3, "order_checked": True,
            "distortion_without_db": np.linspace(-30.0, -40.0, count), "distortion_with_db": np.full(count, -81.0),
            "predicted_db": np.linspace(-39.0, -41.0, count), "clipped_share": np.full(count, 3e-4), "deaf": [],
            "flags": {name: flags.get(name, []) for name in FLAGS}}


def test_amplifiers_show_all_that_predistortion_leaves():
    table = run_tables.amplifier_table(amplifiers(mismatch_limited=["ap1:1"], saturated=["ap1:2"]))
    assert table.title == "Amplifiers, order 3"
    assert cells(table) == [("ap1:0", "-30.0", "-39.0", "0.03", ""),
                            ("ap1:1", "-35.0", "-40.0", "0.03", "order too low"),
                            ("ap1:2", "-40.0", "-41.0", "0.03", "receivers saturated")]


def test_title_says_that_two_amplitudes_do_not_check_the_order():
    table = run_tables.amplifier_table(amplifiers() | {"order_checked": False})
    assert table.title == "Amplifiers, order 3, order not checked by two amplitudes"


def test_of_many_amplifiers_the_flagged_and_the_least_linear_are_shown():
    section = amplifiers(40, unheard=["ap1:39"])
    section["predicted_db"][39] = section["distortion_without_db"][39] = np.nan
    table = run_tables.amplifier_table(section)
    assert "16 of 40 ports" in table.title
    assert [row[0] for row in cells(table)] == [f"ap1:{port}" for port in (*range(15), 39)]
    assert cells(table)[-1][1:3] == ("-", "-")


def linearity():
    def treatment(gain_db):
        return {"power_db": 20.0, "coherent_gain_db": gain_db, "ideal_gain_db": 7.89, "evm_db": -60.0,
                "evm_percent": 0.1, "aclr_db": None}

    treatments = {"before": treatment(0.9), "calibrated": treatment(7.6), "after": treatment(7.83)}
    return {"access_points": {"ap1": treatments}}


def test_gain_of_the_joint_transmission_stands_beside_its_ideal():
    table = run_tables.linearity_table(linearity())
    assert cells(table)[2] == ("ap1", "after", "20.00", "7.83", "7.89", "-60.0", "0.100", "-")
    assert [row[1] for row in cells(table)] == ["before", "calibrated", "after"]
    text = printed(table, 80)
    for word in ("before", "calibrated", "after", "ideal", "ACLR", "[dB]"):
        assert word in text, word


def test_two_coherent_gains_are_told_apart():
    report = {"error": None, "coherent_gain_db": 6.2, "ideal_gain_db": 6.3, "linearity": linearity()}
    joint, verification = run_tables.result_tables(report)
    assert "every port at full power" in joint.title
    assert "ideal gain" in headers(joint)
    assert verification.title == "Verification, equal total power"
    assert run_tables.gains_table({"error": "x", "slots": 3}).title == "Run, FAILED"


def outcome(aps, report):
    calibration = SideCalibration(c=np.ones(2, complex), delay_s=np.zeros(2), frequency_hz=np.zeros(2),
                                  covariance=np.eye(2), phase_std_rad=np.full(2, 0.1), reference_time=0)
    return SimpleNamespace(estimate=calibration, report={"access_points": aps} if report else {})


@pytest.mark.parametrize(("port", "title"), [
    ("ap1:1", "Calibration, predicted std against ap1:1"), (None, "Calibration")])
def test_predicted_deviations_count_from_a_port_that_is_named(port, title):
    (table,) = run_tables.port_tables(outcome({"ap1": {"deviations_from": port}}, True), ["ap1:0", "ap1:1"])
    assert table.title == title
    (table,) = run_tables.port_tables(outcome({}, False), ["ap1:0", "ap1:1"])
    assert table.title == "Calibration"
