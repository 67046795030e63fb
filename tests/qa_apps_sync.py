# SPDX-License-Identifier: GPL-3.0-or-later
"""`dmimo sync` as a user meets it: files, exit codes, one-line errors."""

import json
import runpy

import pytest
from gnuradio.dmimo import flowgraphs, testbed
from gnuradio.dmimo.synchronization_assembly import SETTLING
from qa_apps import ROOT, dmimo

DRIFT = ROOT / "examples" / "two_aps_drift.yml"
SECONDS = 2


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sync")
    done = dmimo("sync", DRIFT, "--duration", SECONDS, "--output", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "out", done


def test_sync_leaves_a_table_a_report_and_a_picture(run):
    out, done = run
    assert not done.stderr
    for words in ("Synchronisation", "coherent gain", "results in out/"):
        assert words in done.stdout
    assert {path.name for path in out.iterdir()} >= {"report.json", "synchronization.png"}
    assert "calibration.h5" not in {path.name for path in out.iterdir()}
    assert (out / "synchronization.png").read_bytes().startswith(b"\x89PNG")


def test_report_of_sync_says_what_was_found_and_what_it_gained(run):
    report = json.loads((run[0] / "report.json").read_text())
    assert report["error"] is None
    assert report["testbed"] == json.loads(json.dumps(testbed.to_dict(testbed.load(DRIFT))))
    assert (report["leader"], report["followers"]) == ("ap1", ["ap2"])
    assert report["duration_s"] > SECONDS
    exchanges = [entry for entry in report["history"] if entry["phase"] == "phase"]
    assert len(exchanges) == report["synchronisations"] > 2
    for entry in exchanges:
        found = entry["followers"]["ap2"]
        assert {"phase_rad", "phase_std_rad", "frequency_hz", "measured_rad", "next_sample", "trusted", "event",
                "true_error_deg"} <= set(found)
        assert abs(found["true_error_deg"]) < report["testbed"]["beamsync"]["budget_deg"]
    (frequency,) = [entry for entry in report["history"] if entry["phase"] == "frequency"]
    assert frequency["followers"]["ap2"]["frequency_hz"] == pytest.approx(200, abs=1)
    # Between the first exchanges nothing is watched.
    assert len(report["watches"]) == 2 * (report["synchronisations"] - (SETTLING - 1))
    assert report["loss_db"] < 0.1
    assert report["coherent_gain_db"] > report["best_single_node_db"] + 1


def test_same_seed_gives_the_same_report_byte_for_byte_and_another_seed_another(run, tmp_path):
    out, _ = run
    for seed, same in ((1, True), (2, False)):
        done = dmimo("sync", DRIFT, "--duration", SECONDS, "--seed", seed, "--output", "o", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert ((tmp_path / "o" / "report.json").read_bytes() == (out / "report.json").read_bytes()) is same


def test_testbed_without_section_beamsync_is_one_line_and_exit_code_2(tmp_path):
    done = dmimo("sync", ROOT / "examples" / "three_panels.yml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        "dmimo: testbed 'three panels' has no section beamsync: see Synchronising in the user guide"]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("arguments", [("--duration", "-1"), ("--seed", "-1"), ("--timeout", "0"), ("--pace", "1")])
def test_usage_errors_of_sync_are_one_line_and_exit_code_2(arguments, tmp_path):
    done = dmimo("sync", DRIFT, *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr


@pytest.mark.parametrize(("arguments", "limit_s"), [([], 3660.0), (["--duration", "86400"], 90000.0),
                                                    (["--duration", "86400", "--timeout", "7"], 7.0)])
def test_a_long_duration_is_not_cut_off_unless_a_timeout_says_so(tmp_path, monkeypatch, arguments, limit_s):
    app = runpy.run_path(str(ROOT / "apps" / "dmimo"), run_name="app")
    limits = []

    def run(*_, timeout_s, **__):
        limits.append(timeout_s)
        raise InterruptedError

    monkeypatch.setattr(flowgraphs, "run", run)
    with pytest.raises(InterruptedError):
        app["sync"].main([str(DRIFT), "--output", str(tmp_path), *arguments], standalone_mode=False)
    assert limits == [pytest.approx(limit_s)]


def test_follower_that_hears_nothing_ends_with_exit_code_1_and_its_name(tmp_path):
    text = DRIFT.read_text().replace("propagation: {", "propagation: {blocked_pairs: [[ap1, ap2]], ")
    (tmp_path / "bed.yml").write_text(text)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "synchronization.png").write_bytes(b"of an earlier run")
    done = dmimo("sync", "bed.yml", "--output", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("run failed: phase frequency: not trusted: node ap2: no frequency")
    assert "Traceback" not in done.stderr
    assert "node ap2" in json.loads((tmp_path / "out" / "report.json").read_text())["error"]
    assert not any(path.read_bytes() == b"of an earlier run" for path in (tmp_path / "out").iterdir())


def test_sync_without_verification_synchronises_all_the_same(tmp_path):
    done = dmimo("sync", DRIFT, "--duration", "1", "--no-verify", "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["synchronisations"] > 1
    assert "coherent_gain_db" not in report
