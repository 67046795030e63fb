# SPDX-License-Identifier: GPL-3.0-or-later
"""The command line as a user meets it: files, exit codes, one-line errors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from gnuradio.dmimo import records, testbed

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "three_panels.yml"


def dmimo(*arguments, cwd):
    return subprocess.run([sys.executable, ROOT / "apps" / "dmimo", *map(str, arguments)], cwd=cwd, text=True,
                          capture_output=True, timeout=100, stdin=subprocess.DEVNULL,
                          env={**os.environ, "COLUMNS": "120"}, check=False)


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo")
    done = dmimo("calibrate", EXAMPLE, "--output", "out", cwd=folder)
    assert done.returncode == 0, done.stderr
    return folder / "out", done


def test_calibrate_leaves_a_table_a_report_plots_and_a_calibration_that_loads(demo):
    out, done = demo
    assert "coherent gain" in done.stdout
    assert "ap3:0" in done.stdout
    assert not done.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        "calibration.h5", "coefficients.png", "gains.png", "pair_snr.png", "report.json"]
    bed = testbed.load(EXAMPLE)
    record = records.load_calibration(out / "calibration.h5", testbed=bed, epoch=0)
    report = json.loads((out / "report.json").read_text())
    assert [complex(*pair) for pair in report["c"]] == record.c.tolist()
    for key in ("coherent_gain_db", "ideal_gain_db", "uncalibrated_gain_db", "best_single_node_db", "alignment_error",
                "phase_error_deg", "slots", "duration_s", "seed", "version", "testbed"):
        assert report[key] is not None, key
    assert abs(report["coherent_gain_db"] - report["ideal_gain_db"]) < 0.1
    assert report["testbed"] == json.loads(json.dumps(testbed.to_dict(bed)))


def test_same_seed_gives_the_same_files_and_another_seed_others(demo, tmp_path):
    out, _ = demo
    for seed, same in ((1, True), (2, False)):
        assert dmimo("calibrate", EXAMPLE, "--seed", seed, "--output", tmp_path / "o", cwd=tmp_path).returncode == 0
        for name in ("report.json", "calibration.h5"):
            assert ((tmp_path / "o" / name).read_bytes() == (out / name).read_bytes()) is same


@pytest.mark.parametrize(("text", "message"), [
    ("version: 1\nnodes: [{name: a}, {name: b}]\nsamp_rat: 1e6\n", "samp_rat"),
    ("version: 1\nnodes: [{name: a}]\n", "nodes"),
    (": : :\n- x", "bed.yml:"),
])
def test_malformed_testbed_is_one_line_with_file_and_key_and_exit_code_2(tmp_path, text, message):
    (tmp_path / "bed.yml").write_text(text)
    done = dmimo("calibrate", "bed.yml", cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert "bed.yml" in done.stderr
    assert message in done.stderr


@pytest.mark.parametrize("arguments", [("calibrate", "absent.yml"), ("calibrate",), ("nonsense",),
                                       ("calibrate", EXAMPLE, "--seed", "-3"), ("figure", "no-such-figure"),
                                       ("figure", "beam-sweep-1", "--trials", "0")])
def test_usage_errors_are_one_line_and_exit_code_2(tmp_path, arguments):
    done = dmimo(*arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.startswith("dmimo: ")


def test_failed_run_exits_with_1_and_leaves_no_calibration_that_looks_whole(tmp_path):
    text = EXAMPLE.read_text().replace("slots: {", "slots: {watchdog_s: 0.5, ")
    (tmp_path / "bed.yml").write_text(text + "faults: [{kind: silent, node: ap2, slot: 4}]\n")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "calibration.h5").write_bytes(b"of an earlier run")
    (tmp_path / "out" / "gains.png").write_bytes(b"of an earlier run")
    (tmp_path / "out" / "coefficients-ap1.png").write_bytes(b"of an earlier run")
    done = dmimo("calibrate", "bed.yml", "--output", "out", cwd=tmp_path)
    assert done.returncode == 1
    assert "node ap2 stopped answering: slot" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["report.json"]
    assert "node ap2" in json.loads((tmp_path / "out" / "report.json").read_text())["error"]


def test_help_lists_commands_and_options(tmp_path):
    done = dmimo("--help", cwd=tmp_path)
    assert done.returncode == 0
    for command in ("calibrate", "figure"):
        assert command in done.stdout
        assert "--seed" in dmimo(command, "--help", cwd=tmp_path).stdout


def test_figure_list_names_figure_1(tmp_path):
    assert "beam-sweep-1" in dmimo("figure", "--list", cwd=tmp_path).stdout


def test_figure_writes_arrays_configuration_and_picture(tmp_path):
    done = dmimo("figure", "beam-sweep-1", "--trials", "50", "--output", "fig", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    written = {path.name for path in (tmp_path / "fig").iterdir()}
    assert {"beam-sweep-1.npz", "beam-sweep-1.json", "beam-sweep-1.png"} <= written
