# SPDX-License-Identifier: GPL-3.0-or-later
"""Recordings of flowgraphs and of the command line: the same files as without GNU Radio, and whole after kill -9."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import sigmf
from gnuradio.dmimo import flowgraphs, recorded, replay, testbed
from gnuradio.dmimo import recording_format as form
from gnuradio.dmimo.assembly import Assembly
from gnuradio.dmimo.recording import Recorder
from test_recording import LOST, RUNS, SWEEP, SYNC, assembly, encoded, play

ROOT = Path(__file__).resolve().parent.parent


def flow(made, folder, duration_s=0.0):
    """Outcome of a recorded run through the flowgraph."""
    recorder = Recorder(folder, made, duration_s=duration_s)
    flowgraph = flowgraphs.testbed_flowgraph(made, duration_s=duration_s, recorder=recorder)
    outcome = flowgraphs.run(flowgraph, timeout_s=60)
    recorder.close(outcome.error, flowgraph.scheduler.releases, flowgraph.scheduler.end_sample)
    return outcome


def dmimo(*arguments, cwd, python=(sys.executable,)):
    return subprocess.run([*python, ROOT / "apps" / "dmimo", *map(str, arguments)], cwd=cwd, text=True,
                          capture_output=True, timeout=100, stdin=subprocess.DEVNULL,
                          env={**os.environ, "COLUMNS": "120"}, check=False)


@pytest.mark.parametrize("name", RUNS)
def test_flowgraph_records_the_files_of_the_direct_loop_and_replays_to_its_report(name, tmp_path):
    """With a slot lost and retried; samples byte for byte, and everything said of them."""
    duration_s = RUNS[name][2]
    outcome = flow(assembly(name), tmp_path / "flow", duration_s)
    direct, *_ = play(assembly(name), duration_s, tmp_path / "direct")
    assert outcome.error is None
    for node in assembly(name).schedule.nodes:
        assert (tmp_path / "flow" / f"{node}.sigmf-data").read_bytes() == (
            tmp_path / "direct" / f"{node}.sigmf-data").read_bytes()
        flowed, looped = (recorded.load(tmp_path / kind).nodes[node] for kind in ("flow", "direct"))
        assert flowed.attempts == looped.attempts
        assert flowed.phases == looped.phases
        assert sum(attempt.status == "lost" for attempt in flowed.attempts) == (node == LOST[name])
    recording = recorded.load(tmp_path / "flow")
    player, again = replay.run(recording, replay.assembly_of(recording))
    assert player.different == []
    assert player.compared > 0
    assert encoded(again.report, tmp_path) == encoded(outcome.report, tmp_path) == encoded(direct, tmp_path)


@pytest.mark.parametrize(("kind", "annotated"), [("nan", "samples are not finite"), ("lost_ack", "ok")])
def test_attempts_that_failed_in_other_ways_are_recorded_too(kind, annotated, tmp_path):
    text = SWEEP.replace("slot_samples: 512", "slot_samples: 512, watchdog_s: 0.5")
    made = Assembly(testbed.parse(f"{text}faults: [{{kind: {kind}, node: ap2, slot: 4}}]\n"))
    outcome = flow(made, tmp_path / "r")
    assert outcome.error is None
    recording = recorded.load(tmp_path / "r")
    failed, repeated = [one for one in recording.nodes["ap2"].attempts if one.grant.slot == 4]
    assert (failed.status, failed.counted, failed.count) == (annotated, False, 512 * (annotated == "ok"))
    assert (repeated.status, repeated.counted, repeated.count) == ("ok", True, 512)
    _, again = replay.run(recording, replay.assembly_of(recording))
    assert encoded(again.report, tmp_path) == encoded(outcome.report, tmp_path)


def test_run_that_ended_because_a_node_fell_silent_replays_to_the_same_error_and_report(tmp_path):
    text = SWEEP.replace("slot_samples: 512", "slot_samples: 512, watchdog_s: 0.5")
    outcome = flow(Assembly(testbed.parse(f"{text}faults: [{{kind: silent, node: ap2, slot: 20}}]\n")), tmp_path / "r")
    assert "node ap2 stopped answering: slot 20" in outcome.error
    recording = recorded.load(tmp_path / "r")
    player, again = replay.run(recording, replay.assembly_of(recording))
    assert player.compared > 0
    assert encoded(again.report, tmp_path) == encoded(outcome.report, tmp_path)


# -- command line -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "bed.yml").write_text(SWEEP)
    done = dmimo("calibrate", "bed.yml", "--seed", 5, "--output", "out", "--record", "recording", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "recording in recording/" in done.stdout
    return folder


def test_recording_holds_the_testbed_file_and_the_results_with_their_hashes(recorded_run):
    folder = recorded_run / "recording"
    assert sorted(path.name for path in folder.iterdir()) == sorted([
        *(f"{node}.sigmf-{kind}" for node in ("ap1", "ap2", "ue1") for kind in ("data", "meta")),
        "calibration.h5", "report.json", "run.sigmf-collection", "testbed.yml"])
    assert (folder / "testbed.yml").read_text() == SWEEP
    for name in ("calibration.h5", "report.json"):
        assert (folder / name).read_bytes() == (recorded_run / "out" / name).read_bytes()
    content = json.loads((folder / form.COLLECTION).read_text())["collection"]
    for entry in content["dmimo:files"]:
        assert entry["hash"] == sigmf.hashing.calculate_sha512(filename=folder / entry["name"])
    assert content["dmimo:configuration"]["seed"] == 5


def test_replay_on_the_command_line_writes_the_results_of_the_run(recorded_run, tmp_path):
    done = dmimo("replay", recorded_run / "recording", "--output", "again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 products are those of the recorded run, bit for bit" in done.stdout
    for path in (recorded_run / "out").iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_testbed_file_with_front_end_replay_calibrates_from_the_recording(recorded_run, tmp_path):
    (recorded_run / "again.yml").write_text(SWEEP + "frontend: replay\nrecording: recording\n")
    done = dmimo("calibrate", recorded_run / "again.yml", "--output", "again", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("report.json", "calibration.h5"):
        assert (tmp_path / "again" / name).read_bytes() == (recorded_run / "out" / name).read_bytes()


@pytest.mark.parametrize(("arguments", "message"), [
    (("replay", "absent"), "absent/run.sigmf-collection: cannot be read: No such file"),
    (("replay", "recording", "--output", "recording"), "--output recording: is the recording"),
    (("calibrate", "bed.yml", "--record", "recording", "--output", "o"), "recording: holds a recording already"),
    (("calibrate", "replay.yml", "--record", "r2"), "--record: a replay receives nothing"),
    (("sync", "replay.yml"), "has no section beamsync"),
    (("calibrate", "wrong.yml"), "beam_sweep.passes is 1 in the recording, 2 in the testbed"),
])
def test_wrong_usage_is_one_line_and_exit_code_2(recorded_run, arguments, message):
    text = SWEEP + "frontend: replay\nrecording: recording\n"
    (recorded_run / "replay.yml").write_text(text)
    (recorded_run / "wrong.yml").write_text(text + "beam_sweep: {passes: 2}\n")
    done = dmimo(*arguments, cwd=recorded_run)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr


def test_system_python_records_without_the_sigmf_package(tmp_path):
    (tmp_path / "bed.yml").write_text(SWEEP)
    python = "/usr/bin/python3", "-s"
    assert subprocess.run([*python, "-c", "import sigmf"], capture_output=True, check=False).returncode != 0
    done = dmimo("calibrate", "bed.yml", "--output", "o", "--record", "r", cwd=tmp_path, python=python)
    assert done.returncode == 0, done.stderr
    sigmf.fromfile(str(tmp_path / "r" / form.COLLECTION))
    sigmf.fromfile(str(tmp_path / "r" / "ap1.sigmf-meta")).validate()


def test_kill_9_in_the_middle_leaves_files_that_open_and_replay_up_to_there(tmp_path):
    (tmp_path / "bed.yml").write_text(SYNC)
    process = subprocess.Popen(
        [sys.executable, ROOT / "apps" / "dmimo", "sync", "bed.yml", "--duration", "100000", "--output", "o",
         "--record", "r"], cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / "r"
    deadline = time.monotonic() + 60

    def slots_done():
        path = folder / form.COLLECTION
        return json.loads(path.read_text())["collection"]["dmimo:slots_done"] if path.exists() else 0

    try:
        while slots_done() < 100:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    told = slots_done()
    collection = sigmf.fromfile(str(folder / form.COLLECTION))
    assert collection.get_collection_field("dmimo:complete") is False
    for stream in collection.get_stream_names():
        sigmf.fromfile(str(folder / f"{stream}.sigmf-meta")).validate()

    recording = recorded.load(folder)
    assert recording.slots_done >= told  # the journals know of what came after the last word of the collection
    done = dmimo("replay", "r", "--output", "again", cwd=tmp_path)
    assert done.returncode == 1
    assert f"run failed: the recording was cut off: it holds {len(recording.phases)} phases" in done.stderr
    # The last phase's product may not have been written yet.
    same, compared = map(int, re.search(r"(\d+) of (\d+) products are those", done.stdout).groups())
    assert same == compared >= len(recording.phases) - 1
    report = json.loads((tmp_path / "again" / "report.json").read_text())
    assert "cut off" in report["error"]

    # The same run, ended in time: its estimates begin with those of the one that was killed.
    end_s = recording.end_sample / recording.testbed.samp_rate
    whole, *_ = play(Assembly(testbed.parse(SYNC), protocol="sync"), end_s + 1.0)
    count = len(report["history"])
    assert count > 2
    assert json.loads(encoded(whole, tmp_path))["history"][:count] == report["history"]
    for stream in collection.get_stream_names():  # completed by the replay
        one = sigmf.fromfile(str(folder / f"{stream}.sigmf-meta"))
        one.validate()
        assert len(one.get_annotations()) == len(recorded.load(folder).nodes[stream].attempts) >= told
    assert not list(folder.glob("*.journal"))
    assert recorded.load(folder).error == recording.error
