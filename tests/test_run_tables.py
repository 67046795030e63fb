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
            "predistorted_db": np.linspace(-59.0, -61.0, count), "clipping_db": np.full(count, -42.0),
            "clipped_share": np.full(count, 3e-4), "deaf": [],
            "flags": {name: flags.get(name, []) for name in FLAGS}}


def test_amplifiers_show_what_predistortion_leaves_and_apart_from_it_what_is_clipped():
    table = run_tables.amplifier_table(amplifiers(mismatch_limited=["ap1:1"], saturated=["ap1:2"]))
    assert table.title == "Amplifiers, order 3"
    for word in ("distortion", "predistorted", "clipping", "[dB]", "[%]"):
        assert word in printed(table, 80), word
    assert cells(table) == [("ap1:0", "-30.0", "-59.0", "-42.0", "0.03", ""),
                            ("ap1:1", "-35.0", "-60.0", "-42.0", "0.03", "order too low"),
                            ("ap1:2", "-40.0", "-61.0", "-42.0", "0.03", "receivers saturated")]


def test_ports_without_predistortion_have_no_numbers_of_it():
    table = run_tables.amplifier_table(amplifiers(refused=["ap1:0", "ap1:1"], unheard=["ap1:1"]))
    assert cells(table) == [("ap1:0", "-30.0", "-", "-", "-", "left as it is"),
                            ("ap1:1", "-", "-", "-", "-", "not heard, left as it is"),
                            ("ap1:2", "-40.0", "-61.0", "-42.0", "0.03", "")]


def test_title_says_that_two_amplitudes_do_not_check_the_order():
    table = run_tables.amplifier_table(amplifiers() | {"order_checked": False})
    assert table.title == "Amplifiers, order 3, order not checked by two amplitudes"


def test_of_many_amplifiers_the_flagged_and_the_least_linear_are_shown():
    section = amplifiers(40, unheard=["ap1:39"])
    section["predistorted_db"][39] = section["distortion_without_db"][39] = np.nan
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


CALIBRATION = SideCalibration(c=np.ones(2, complex), delay_s=np.zeros(2), frequency_hz=np.zeros(2),
                              covariance=np.eye(2), phase_std_rad=np.full(2, 0.1), reference_time=0)


def array(ap, against=1, **changes):
    """What a report says of an array of two ports."""
    return {"ports": [f"{ap}:0", f"{ap}:1"], "deviations_from": None if against is None else f"{ap}:{against}",
            "trusted": True, "c": np.array([2j, 1.0]), "predicted_phase_std_deg": np.array([0.5, 0.0]),
            "frequency_hz": np.zeros(2), "delay_s": np.zeros(2), "verification": None} | changes


@pytest.mark.parametrize(("against", "title"), [
    (1, "Calibration, c = 1 and deviations against ap1:1"), (None, "Calibration")])
def test_coefficients_and_deviations_count_from_a_port_that_is_named(against, title):
    outcome = SimpleNamespace(estimate=CALIBRATION, report={"access_points": {"ap1": array("ap1", against)}})
    (table,) = run_tables.port_tables(outcome, ["ap1:0", "ap1:1"])
    assert table.title == title
    assert cells(table)[0][:4] == ("ap1:0", "2.000", "90.000", "0.500")
    (table,) = run_tables.port_tables(SimpleNamespace(estimate=CALIBRATION, report={}), ["a:0", "a:1"])
    assert table.title == "Calibration"
    assert [row[0] for row in cells(table)] == ["a:0", "a:1"]


def test_every_access_point_has_a_table_of_its_coefficients():
    report = {"access_points": {"ap1": array("ap1"), "ap2": array("ap2", trusted=False, c=np.array([1.0, 3.0]))}}
    tables = list(run_tables.port_tables(SimpleNamespace(estimate=None, report=report), []))
    assert [table.title for table in tables] == [
        "Calibration of ap1, c = 1 and deviations against ap1:1",
        "Calibration of ap2, c = 1 and deviations against ap2:1, NOT TRUSTED"]
    assert [row[:2] for table in tables for row in cells(table)] == [
        ("ap1:0", "2.000"), ("ap1:1", "1.000"), ("ap2:0", "1.000"), ("ap2:1", "3.000")]


def gains(coherent_db):
    return {"coherent_gain_db": coherent_db, "ideal_gain_db": 3.0, "uncalibrated_gain_db": 0.5,
            "best_single_node_db": 0.25, "port_power_db": [0.0, 0.0], "doubts": []}


def test_every_access_point_has_a_table_of_its_gains_and_the_run_one_of_its_own():
    arrays = {"ap1": array("ap1", verification=gains(2.5), phase_error_deg=7.0), "ap2": array("ap2"),
              "ap3": array("ap3", verification=gains(2.75))}
    report = {"error": "broken", "slots": 9, "phase_error_deg": 7.0, "access_points": arrays} | gains(2.5)
    tables = list(run_tables.result_tables(report))
    assert [table.title for table in tables] == [
        "Verification of ap1, equal total power", "Verification of ap3, equal total power", "Run, FAILED"]
    assert cells(tables[0]) == [
        ("coherent gain", "2.5", "dB"), ("ideal gain", "3", "dB"), ("uncalibrated, mean of random phases", "0.5", "dB"),
        ("best single port", "0.25", "dB"), ("phase error (true c known)", "7", "deg")]
    assert cells(tables[1])[0] == ("coherent gain", "2.75", "dB")
    assert cells(tables[2]) == [("slots", "9", "")]
    (alone,) = run_tables.result_tables(report | {"access_points": {"ap1": arrays["ap1"]}})
    assert alone.title == "Verification, equal total power, FAILED"
    assert ("slots", "9", "") in cells(alone)


def test_nodes_are_called_so_where_they_are_scattered():
    report = {"error": None} | gains(2.5)
    del report["port_power_db"]
    assert [row[0] for row in cells(run_tables.gains_table(report))][2:] == [
        "uncalibrated, mean of random starts", "best single node"]
