# SPDX-License-Identifier: GPL-3.0-or-later
"""What report.json says of a bidirectional run."""

import json

import numpy as np
import pytest
from bidirectional_beds import SMALL, Played, changed
from gnuradio.dmimo import records

ALWAYS = {"error", "seed", "version", "testbed", "slots", "duration_s", "pilot_samples", "snr_db_per_sample",
          "patterns", "doubts"}
CALIBRATION = {"ports", "trusted", "reasons", "reference_time", "frequency_hz", "delay_s", "c", "c_true",
               "predicted_phase_std_deg", "alignment_error", "phase_error_deg"}
GAINS = {"coherent_gain_db", "ideal_gain_db", "uncalibrated_gain_db", "best_single_node_db", "downlink_snr_db",
         "joint_power_db", "loss_db", "watches"}
RMS = {"calibrations", "trp_phase_error_rms_deg", "ue_phase_error_rms_deg"}
SIDES = ("trp", "ue")


def read(report, folder):
    """A report as a reader of report.json gets it."""
    records.write_json(folder / "report.json", report)
    return json.loads((folder / "report.json").read_text())


@pytest.fixture(scope="module")
def played():
    return Played(changed(SMALL))


def test_report_of_a_run_with_joint_transmissions(played, tmp_path):
    report = read(played.report, tmp_path)
    assert set(report) == ALWAYS | CALIBRATION | GAINS | RMS | {"links", "ue_calibration", "uplink"}
    assert report["error"] is None
    assert report["ports"] == ["trp1:0", "trp1:1", "trp2:0"]
    assert report["ue_calibration"]["ports"] == ["ue1:0", "ue2:0", "ue2:1"]
    assert set(report["uplink"]) == GAINS
    assert report["doubts"] == []
    assert report["testbed"]["bidirectional"]["patterns"] == 2
    # 2 patterns of 8 slots, and joint transmissions: 2 uplink, 2 * (1 + 3) + 2 downlink slots, and the other way round.
    assert report["slots"] == 2 * (8 + 2 * (2 + 2 * 4 + 2))


def test_patterns_carry_coefficients_of_both_sides_and_their_errors(played, tmp_path):
    report = read(played.report, tmp_path)
    entries = report["patterns"]
    assert [(entry["phase"], entry["event"]) for entry in entries] == [
        ("exchange", "calibrated"), ("tracking", "tracked")] * 2
    assert report["calibrations"] == 2
    starts = [entry["time_s"] for entry in entries]
    np.testing.assert_allclose(np.array(starts) - starts[0], [0, 2e-3, 4e-3, 6e-3], atol=0.1e-3)
    for side, names, ports in (("trp", ("trp1", "trp2"), 3), ("ue", ("ue1", "ue2"), 3)):
        for entry in entries:
            assert {key for key in entry if key.startswith(side)} == {f"{side}_{key}" for key in (
                "phase_deg", "delay_s", "frequency_hz", "predicted_phase_std_deg", "phase_error_deg")}
            assert len(entry[f"{side}_phase_deg"]) == len(entry[f"{side}_delay_s"]) == ports
            sample = round(entry["time_s"] * 15.36e6)
            truth = played.network.true_calibration(sample)[played.rows(names)]
            difference = np.radians(entry[f"{side}_phase_deg"]) - np.angle(truth / truth[0])
            wrapped = np.angle(np.exp(1j * difference))
            assert np.abs(wrapped).max() < 0.02
            error = np.degrees(np.sqrt(-2 * np.log(np.abs(np.mean(np.exp(1j * wrapped))))))
            assert entry[f"{side}_phase_error_deg"] == pytest.approx(error, rel=1e-3)
        squares = [entry[f"{side}_phase_error_deg"] ** 2 for entry in entries]
        assert report[f"{side}_phase_error_rms_deg"] == pytest.approx(np.sqrt(np.mean(squares)))
    assert {entry["links_used"] for entry in entries} == {9}


def test_links_say_which_were_used_and_how_well_they_were_heard(played, tmp_path):
    links = read(played.report, tmp_path)["links"]
    assert np.array(links["used"]).shape == (3, 3)
    assert np.array(links["used"]).all()
    # 2 (tau_n - tau_m) of the clocks, in samples.
    tau_trp, tau_ue = np.array([0.3, 0.3, -0.4]), np.array([-0.2, 0.5, 0.5])
    np.testing.assert_allclose(np.array(links["delay_s"]) * 15.36e6, 2 * (tau_ue - tau_trp[:, None]), atol=0.05)
    assert np.array(links["snr_db"]).min() > 20
    assert np.array(links["outlier_probability"]).max() < 1e-2


def test_gains_are_means_of_the_powers_of_all_patterns(played, tmp_path):
    report = read(played.report, tmp_path)
    for gains in (report, report["uplink"]):
        assert len(gains["watches"]) == 2
        for key in ("coherent_gain_db", "ideal_gain_db", "downlink_snr_db"):
            mean = np.mean([10 ** (watch[key] / 10) for watch in gains["watches"]])
            assert gains[key] == pytest.approx(10 * np.log10(mean))
        assert gains["loss_db"] == pytest.approx(gains["ideal_gain_db"] - gains["coherent_gain_db"])
        assert abs(gains["loss_db"]) < 0.1


def test_report_without_joint_transmissions_has_no_gains():
    report = Played(changed(SMALL), verify=False).report
    assert set(report) == ALWAYS | CALIBRATION | RMS | {"links", "ue_calibration"}


def test_uplink_can_be_left_out():
    report = Played(changed(SMALL, ("tracking: wideband", "tracking: wideband, uplink: false"))).report
    assert "uplink" not in report
    assert "coherent_gain_db" in report


def test_report_with_cooperation_and_several_users():
    report = Played(changed(SMALL, ("random_starts: 2}", "random_starts: 2, cooperating: [1, 2, 3]}\n"
                                    "multiuser: {uplink_repeats: 2, repeats: 2, random_starts: 2}"))).report
    assert report["error"] is None
    assert [row["ports"] for row in report["cooperation"]] == [1, 2, 3]
    assert np.all(np.diff([row["snr_db"] for row in report["cooperation"]]) > 0)
    assert [row["ports"] for row in report["uplink"]["cooperation"]] == [1, 2, 3]
    assert set(report["multiuser"]["users"]) == {"ue1", "ue2"}
    assert report["multiuser"]["spectral_efficiency_bps_hz"] > (
        report["multiuser"]["uncalibrated_spectral_efficiency_bps_hz"])


def test_run_that_fails_says_why_and_claims_no_calibration():
    blocked = "propagation: {blocked_pairs: [[trp2, ue1], [trp2, ue2]], "
    report = Played(changed(SMALL, ("propagation: {", blocked))).report
    assert set(report) == ALWAYS
    assert "{trp2:0}" in report["error"]
    (entry,) = report["patterns"]
    assert entry["event"] == "untrusted"
    assert "{trp2:0}" in entry["reasons"][0]
    assert report["doubts"][0].startswith("1 of 1 measurements were not trusted and not applied")


def test_side_of_one_port_has_nothing_to_be_calibrated():
    report = Played(changed(
        SMALL, ("tracking: wideband", "tracking: wideband, calibrating: [ue1]")), verify=False).report
    assert report["error"] is None
    assert report["ue_calibration"]["ports"] == ("ue1:0",)
    assert report["ue_calibration"]["phase_error_deg"] is None
    assert report["ue_phase_error_rms_deg"] == 0.0
