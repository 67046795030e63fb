# SPDX-License-Identifier: GPL-3.0-or-later
"""`dmimo doctor` as a user meets it, on virtual USRPs: what passes, what each fault fails, and what is said of it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import virtual_usrp_device as virtual

ROOT = Path(__file__).resolve().parent.parent
BED = """
version: 1
center_freq: 2.4e+9
usrp:
  lead_s: 0.8                    # much, for a busy machine
  reactive_lead_s: 0.8
{more}
  radios: [{{name: rack, args: "{args}"}}]
nodes:
  - {{name: ap1, num_ports: 2, radio: {{loop_delays_samples: [0, 30]}}}}
  - {{name: ap2, num_ports: 2}}
slots: {{slot_samples: 512}}
"""
TX_AMPLITUDE = 0.2  # the file's default


def dmimo(*arguments, cwd, environment=None):
    return subprocess.run([sys.executable, ROOT / "apps" / "dmimo", *map(str, arguments)], cwd=cwd, text=True,
                          capture_output=True, timeout=150, stdin=subprocess.DEVNULL, check=False,
                          env={**(environment or virtual.environment()), "COLUMNS": "120"})


def doctor(tmp_path, *options, more="", environment=None, **device):
    """Exit code, checks by key and everything printed of a run on two boards of two channels each."""
    args = virtual.arguments(**{"num_mboards": 2, "lo_phase_quantum": 0, "rx_buffer": 4, **device})
    (tmp_path / "bed.yml").write_text(BED.format(args=args, more=more))
    done = dmimo("doctor", "bed.yml", "--output", "out", "--duration", 1, *options, cwd=tmp_path,
                 environment=environment)
    assert not done.stderr, done.stderr
    (radio,) = json.loads((tmp_path / "out" / "doctor.json").read_text())["radios"]
    return done.returncode, {check["check"]: check for check in radio["checks"]}, " ".join(done.stdout.split())


def with_status(checks, status):
    return {key for key, check in checks.items() if check["status"] == status}


def test_a_healthy_radio_passes_every_check(tmp_path):
    log = tmp_path / "log.json"
    code, checks, printed = doctor(tmp_path, "--retunes", 10, log=log, loop_delay=[0, 37, 5, 0])
    assert with_status(checks, "passed") == set(checks), printed
    assert code == 0
    assert len(checks) == 12
    assert checks["timed_burst"]["values"]["loop_delay_samples"] == pytest.approx(
        {"ap1:0": 0, "ap1:1": 37, "ap2:0": 5, "ap2:1": 0}, abs=0.1)
    assert "loop delay ap1:0 0, ap1:1 37, ap2:0 5, ap2:1 0 samples" in checks["timed_burst"]["measured"]
    assert {one["quantum_deg"] for one in checks["phase"]["values"].values()} == {360}
    for board in ("board 0 (V0)", "board 1 (V1)"):
        assert abs(checks["timed_tune"]["values"][board]["left_s"]) < 10e-6
        assert board in printed
    assert "all checks passed" in printed
    order = [entry["what"] for entry in virtual.read_log(log)]
    assert max(place for place, what in enumerate(order) if what == "stream") > order.index("time_next_pps")


# Numbers of bursts: 8 of each node are sounding bursts, up to 2 more cross tunes; then come, without retunes, 50 for
# each lead until one is late, and those of the steady streams.
@pytest.mark.parametrize(("device", "options", "failing"), [
    ({"unlocked": 1, "lo_phase_quantum": 90}, ["--retunes", 10], {
        "reference": ["board 1 (V1): not locked to its reference", "10 MHz"],
        "phase": ["board 0 (V0), channels 0, 1: steps of 90 degrees", "board 1 (V1), channels 2, 3", "epoch"]}),
    ({"lo_phase_quantum": 180, "late": "0@1"}, ["--retunes", 10], {
        "phase": ["board 0 (V0), channels 0, 1: steps of 180 degrees", "board 1 (V1), channels 2, 3", "2 states"],
        "timed_burst": ["board 1 (V1): 1 burst of ap2 late", "usrp.lead_s"]}),
    ({"lo_phase_quantum": "none", "overflow": 0.6, "after_overflow": "continue", "lost_ack": "2@1"},
     ["--retunes", 10], {
        "timed_burst": ["board 1 (V1), channel 2 (ap2:0): nothing is said of 1 burst"],
        "phase": ["board 0 (V0), channels 0, 1: random", "board 1 (V1), channels 2, 3: random", "epoch"],
        "stream": ["1 overflow at ap1 (board 0 (V0)), 10000 samples lost", "ap2 (board 1 (V1))", "governor"]}),
    ({"late": "20@1", "underflow": ["80@0", "90@0"]}, ["--retunes", 0], {
        "lead": ["1 of 50 late or lost at 800 ms", "board 1 (V1)", "governor"],
        "stream": ["2 bursts underflow", "board 0 (V0)", "governor"]}),
    ({"pps_skew": "1:1"}, [], {"time": ["board 1 (V1) reads", "where others read", "equal length"]}),
    ({"pps_missing": 0}, [], {"pps": ["board 0 (V0): no PPS edge", "PPS input"]}),
    ({"lo_unlocked": 1}, [], {"synthesizers": ["board 1 (V1), channel 2", "not locked", "center_freq"]}),
    ({"coupling": "none"}, ["--retunes", 0], {"timed_burst": ["nobody hears board 0 (V0), channel 0 (ap1:0)",
                                                              "antennas"]}),
    ({"coupling_db": 20}, ["--retunes", 0], {"timed_burst": ["overdriven: board", "gains_db"]}),
], ids=lambda value: "-".join(value) if isinstance(value, dict) else "")
def test_a_fault_fails_its_check_by_name_with_a_fix(tmp_path, device, options, failing):
    code, checks, printed = doctor(tmp_path, *options, **device)
    noted = {"phase"} & set(failing)  # what the device cannot help is no fault
    assert with_status(checks, "noted") == noted, printed
    assert with_status(checks, "failed") == set(failing) - noted, printed
    assert code == 1
    for key, words in failing.items():
        text = f"{checks[key]['measured']} {checks[key]['fix']}"
        for word in words:
            assert word in text, text
    for check in checks.values():
        assert bool(check["fix"]) == (check["status"] in ("failed", "noted"))
    assert "fix: " in printed
    titles = [check["title"] for key, check in checks.items() if key in failing and key not in noted]
    assert f"radio rack: failed: {', '.join(titles)}" in printed


def test_a_board_that_vanishes_ends_the_examination_by_name(tmp_path):
    code, checks, printed = doctor(tmp_path, vanish_after="1.5:1")
    assert code == 1
    (key,) = with_status(checks, "failed")
    assert "board 1 (V1)" in checks[key]["measured"]
    assert "power" in checks[key]["fix"]
    after = [check for check in list(checks.values())[list(checks).index(key) + 1 :]]
    assert {check["status"] for check in after} == {"skipped"}, printed
    assert all("board 1 (V1)" in check["measured"] for check in after)


def test_a_loop_delay_other_than_given_is_told(tmp_path):
    _, checks, _ = doctor(tmp_path, "--retunes", 0, more="  loop_delay: given", loop_delay=[0, 37, 0, 0])
    assert with_status(checks, "failed") == {"timed_burst"}
    told = checks["timed_burst"]["measured"]
    assert "board 0 (V0), channel 1 (ap1:1): loop delay 37 samples, the file says 30" in told
    assert "loop_delays_samples" in checks["timed_burst"]["fix"]


def test_nothing_is_sent_where_nothing_may_be(tmp_path):
    log = tmp_path / "log.json"
    code, checks, printed = doctor(tmp_path, "--no-transmit", log=log)
    assert code == 0, printed
    assert virtual.read_log(log, "tune")
    assert not virtual.read_log(log, "burst")
    assert with_status(checks, "skipped") == {"timed_burst", "timed_tune", "phase", "lead"}
    assert "--no-transmit" in checks["lead"]["measured"]
    assert "bursts" not in checks["stream"]["measured"]


def test_a_sample_rate_that_the_radio_cannot_do_is_told(tmp_path):
    code, checks, _ = doctor(tmp_path, master_clock_rate=1.92e6)
    assert code == 1
    assert with_status(checks, "failed") == {"settings"}
    assert "samp_rate" in checks["settings"]["measured"]
    assert "master clock" in checks["settings"]["fix"]


@pytest.fixture(scope="module")
def patient(uhd):
    """A radio after the check of its bursts, in this process."""
    from gnuradio.dmimo.doctor import checks, transmissions
    from gnuradio.dmimo.doctor.patient import Options, Patient
    from gnuradio.dmimo.radio_settings import RadioPort, RadioSettings

    ports = {"ap1": [RadioPort(0, 2.4e9)], "ap2": [RadioPort(2, 2.4e9)]}
    made = Patient(RadioSettings(virtual.arguments(num_mboards=2, medium="doctor"), 1e6, ports), Options())
    for check in (checks.settings, checks.common_time, checks.synthesizers, checks.streams, transmissions.timed_bursts):
        told = check(made)
        assert told.status == "passed", told
    yield made
    made.bench.stop()


class Unpunctual:
    """A source that keeps command times by another clock, or not at all."""

    def __init__(self, uhd, source, shift_s):
        self.uhd, self.source, self.shift_s = uhd, source, shift_s

    def __getattr__(self, name):
        return getattr(self.source, name)

    def set_command_time(self, when, board):
        if self.shift_s is not None:
            self.source.set_command_time(self.uhd.time_spec(when.get_real_secs() + self.shift_s), board)


@pytest.mark.parametrize(("shift_s", "words", "measured"), [
    (None, r"board 1 \(V1\) tuned at once, not at its time", None),
    (-400e-6, r"board 1 \(V1\) tuned (\d+) us early, not at its time", 400),
    (0.05, r"board 1 \(V1\) not at the new frequency 1\.8 ms after its time", None),
    (300e-6, r"board 1 \(V1\) (\d+) us after its time", 300),
    (0.0, r"board 1 \(V1\) (\d+) us after its time", 0),
], ids=["never", "early", "late", "settles", "on time"])
def test_a_tune_at_another_time_than_asked_for_is_measured(uhd, patient, shift_s, words, measured):
    from gnuradio.dmimo.doctor import transmissions

    sources = patient.bench.array.sources
    kept, sources[1] = sources[1], Unpunctual(uhd, sources[1], shift_s)
    try:
        told = transmissions.timed_tune(patient)
    finally:
        sources[1] = kept
    found = re.search(words, told.measured)
    assert found, told.measured
    # The moved time is a sum of floats, the change is found on the grid of 1 us samples: one sample of each.
    assert measured is None or int(found[1]) == pytest.approx(measured, abs=2)
    assert "board 0 (V0)" not in told.measured or told.status == "passed"
    assert told.status == ("passed" if shift_s in (0.0, 300e-6) else "failed")
    assert ("settle_s" in told.fix) == (told.status == "failed")


def no_radio(tmp_path, environment):
    (tmp_path / "bed.yml").write_text(BED.format(args="type=b200,serial=NOSUCH", more=""))
    done = dmimo("doctor", "bed.yml", "--output", "out", cwd=tmp_path, environment=environment)
    assert done.returncode == 1, done.stderr
    (radio,) = json.loads((tmp_path / "out" / "doctor.json").read_text())["radios"]
    assert [check["status"] for check in radio["checks"]] == ["failed"] + ["skipped"] * 11
    return radio["checks"][0], " ".join(done.stdout.split())


def test_without_a_radio_it_says_how_to_look_for_one(tmp_path):
    found, printed = no_radio(tmp_path, virtual.environment())
    assert 'no device answers to args "type=b200,serial=NOSUCH"' in found["measured"]
    assert 'uhd_find_devices --args="type=b200,serial=NOSUCH"' in found["fix"]
    assert "USB" in found["fix"]
    assert "needs: found" in printed


def test_the_board_that_does_not_answer_is_told_among_several(tmp_path):
    (tmp_path / "bed.yml").write_text(BED.format(args="type0=virtual,serial0=A,type1=b200,serial1=NOSUCH", more=""))
    done = dmimo("doctor", "bed.yml", cwd=tmp_path)
    assert done.returncode == 1
    assert 'no device answers to args "type=b200,serial=NOSUCH"' in " ".join(done.stdout.split())
    assert "serial=A" not in done.stdout.split("\n", 1)[1]


def test_without_uhd_it_says_what_to_install(tmp_path):
    (tmp_path / "sitecustomize.py").write_text("import sys\nsys.modules['gnuradio.uhd'] = None\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    found, _ = no_radio(tmp_path, {**virtual.environment(), "PYTHONPATH": path})
    assert "not installed" in found["measured"]
    assert "sudo apt install gnuradio" in found["fix"]


def test_a_file_without_radios_is_a_usage_error_that_shows_what_to_add(tmp_path):
    done = dmimo("doctor", ROOT / "examples" / "three_panels.yml", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("dmimo: there is no radio in the testbed file: add a section usrp")
    assert "  radios:\n    - {name: rack" in done.stderr


@pytest.mark.parametrize(("options", "message"), [(["--radio", "other"], "no such radio; allowed: rack"),
                                                  (["--retunes", "1"], "must be 0, or at least 4"),
                                                  (["--duration", "0"], "--duration")])
def test_usage_errors_are_one_line(tmp_path, options, message):
    (tmp_path / "bed.yml").write_text(BED.format(args="type=virtual", more=""))
    done = dmimo("doctor", "bed.yml", *options, cwd=tmp_path, environment=dict(os.environ))
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_help_says_that_it_transmits(tmp_path):
    done = dmimo("doctor", "--help", cwd=tmp_path, environment=dict(os.environ))
    assert "TRANSMITS" in done.stdout
    assert "--no-transmit" in done.stdout
