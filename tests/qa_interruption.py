# SPDX-License-Identifier: GPL-3.0-or-later
"""Commands that are interrupted: nothing hangs, and what there was by then is not lost."""

import json
import signal

import pytest
from host_processes import ROOT

EXAMPLES = ROOT / "examples"
LIMIT_S = 60.0
# Ctrl-C reaches the main thread in the middle of what it does there.
AT = """
import os, signal
from gnuradio import gr
whole = gr.top_block.{method}
def interrupted(self, *arguments):
    {before}
    whole(self, *arguments)
    {after}
gr.top_block.{method} = interrupted
"""
STUBBORN = """
import time
def stubborn():
    try:
        print("waiting", flush=True)
        time.sleep(3600)
    except KeyboardInterrupt:
        print("still waiting", flush=True)
        time.sleep(3600)
"""
KILL = "os.kill(os.getpid(), signal.SIGINT)"


def report(dmimo):
    return json.loads((dmimo.folder / "out" / "report.json").read_text())


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_reports_what_there_was_and_its_recording_replays(dmimo, how):
    run = dmimo("sync", EXAMPLES / "two_aps_drift.yml", "--duration", "1e6", "--output", "out", "--record", "rec")
    data = dmimo.folder / "rec" / "ap1.sigmf-data"
    run.reaches(lambda: data.exists() and data.stat().st_size > 0, "record")
    run.process.send_signal(how)
    assert run.ends(LIMIT_S) == 1
    assert "run failed: interrupted, after" in run.output
    assert report(dmimo)["error"].startswith("interrupted, after")
    assert report(dmimo)["slots"] > 0
    replay = dmimo("replay", "rec", "--output", "again")
    assert replay.ends() == 1  # as the run did
    assert "are those of the recorded run, bit for bit" in replay.output


@pytest.mark.parametrize(("method", "before", "after"), [
    ("start", KILL, "pass"), ("start", "pass", KILL), ("wait", KILL, "pass")])
def test_a_run_ends_wherever_an_interruption_meets_it(dmimo, method, before, after):
    run = dmimo("sync", EXAMPLES / "two_aps_drift.yml", "--duration", "1", "--no-verify", "--output", "out",
                prelude=AT.format(method=method, before=before, after=after))
    assert run.ends(LIMIT_S) == 1
    assert "interrupted" in run.output


def test_a_second_interruption_ends_a_command_that_cleans_up(dmimo):
    run = dmimo("sync", EXAMPLES / "two_aps_drift.yml", "--duration", "1", "--no-verify", "--output", "out",
                prelude=STUBBORN + AT.format(method="stop", before="stubborn()", after="pass"))
    for said in ("waiting", "still waiting"):
        run.says(said)
        run.process.send_signal(signal.SIGINT)
    assert run.ends(LIMIT_S) == -signal.SIGINT
