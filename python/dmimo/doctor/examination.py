# SPDX-License-Identifier: GPL-3.0-or-later
"""All checks of a radio, in a process of their own.

UHD may end its process when a radio fails, or never return: then the check that was under way has failed, with UHD's
last words, and the doctor goes on.
"""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

from ..radio_settings import RadioSettings
from . import fixes
from .patient import Options, Patient, failed, one_line
from .results import CHECKS, TITLES, Check, Examination, Result, Skip

LIMITS_S = {"found": 60.0, "settings": 180.0}  # a rack of N310 takes a minute to open
LIMIT_S = 60.0
RETUNE_LIMIT_S = 10.0
STOP_LIMIT_S = 15.0
LAST_WORDS = 300  # characters of UHD's log that say why it ended

Watch = Callable[[Examination, Check | None], None]


def examine(name: str, settings: RadioSettings, options: Options, *, log: Path | None = None,
            watch: Watch | None = None) -> Examination:
    """Examine one radio.

    Parameters
    ----------
    name : str
    settings : RadioSettings
    options : Options
    log : Path, optional
        File for what UHD says.
    watch : callable, optional
        Told of the examination and the check that begins, None at the end.
    """
    examination = Examination(name, settings.device_args)
    with tempfile.TemporaryDirectory() as folder:
        log = log or Path(folder) / "uhd.log"
        context = multiprocessing.get_context("spawn")  # a fork would share UHD's and GNU Radio's threads
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_work, args=(theirs, settings, options, str(log)), daemon=True)
        process.start()
        theirs.close()
        try:
            _follow(examination, ours, options, log, watch)
            process.join(STOP_LIMIT_S)
        finally:
            process.kill()
            process.join()
    if watch:
        watch(examination, None)
    return examination


def _follow(examination: Examination, pipe: Connection, options: Options, log: Path, watch: Watch | None) -> None:
    """Take the results of the process as they come."""
    while remaining := examination.remaining():
        if watch:
            watch(examination, remaining[0])
        limit_s = _limit_s(remaining[0], options)
        try:
            told = pipe.recv() if pipe.poll(limit_s) else None
        except EOFError:
            words = f"UHD ended its process: {_last_words(log)}"
        else:
            if told is not None:
                result, examination.boards = told
                examination.results.append(result)
                continue
            words = f"the radio did not answer within {limit_s:g} s: {_last_words(log)}"
        examination.results.append(failed(remaining[0].key, words, fixes.unanswered()))
        examination.skip_remaining("the radio no longer answers")


def _limit_s(check: Check, options: Options) -> float:
    extra = {"phase": options.retunes * RETUNE_LIMIT_S, "stream": options.duration_s}
    return LIMITS_S.get(check.key, LIMIT_S) + extra.get(check.key, 0.0)


def _last_words(log: Path) -> str:
    text = " ".join(log.read_text(errors="replace").split()) if log.exists() else ""
    return f"...{text[-LAST_WORDS:]}" if len(text) > LAST_WORDS else text or "it said nothing"


def _work(pipe: Connection, settings: RadioSettings, options: Options, log: str) -> None:
    """The process: run the checks, send each result."""
    sys.stdout.flush()
    sys.stderr.flush()
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    for standard in (1, 2):  # UHD and GNU Radio write there themselves
        os.dup2(descriptor, standard)
    patient = Patient(settings, options)
    run(patient, lambda result: pipe.send((result, patient.boards)))
    if patient.bench is not None:
        patient.bench.stop()


def run(patient: Patient, report: Callable[[Result], None]) -> None:
    """Run the checks on one radio, and report each result."""
    done = Examination("", patient.settings.device_args)
    for check in CHECKS:
        reason = done.reason_to_skip(check)
        result = Result(check.key, "skipped", reason) if reason else _checked(patient, check)
        done.results.append(result)
        report(result)
        gone = _gone(patient) if result.status == "failed" else ""
        if gone:
            for left in done.remaining():
                report(Result(left.key, "skipped", gone))
            return


def _checked(patient: Patient, check: Check) -> Result:
    """One check; whatever the radio throws is a failure of it."""
    try:
        result = _functions()[check.key](patient)
    except Skip as skip:
        return Result(check.key, "skipped", str(skip))
    except Exception as error:
        result = failed(check.key, f"{type(error).__name__}: {one_line(error)}", fixes.unanswered())
    gone = _gone(patient) if result.status == "failed" else ""
    return failed(check.key, f"{gone}; {result.measured}", fixes.unanswered()) if gone else result


def _functions() -> dict[str, Callable[[Patient], Result]]:
    from . import checks

    own = {"found": checks.found, "settings": checks.settings, "reference": checks.reference, "pps": checks.pps,
           "time": checks.common_time, "synthesizers": checks.synthesizers, "streams": checks.streams}
    if sys.modules.get("gnuradio.uhd") is None:  # not found: only the first check is run
        return own
    from . import endurance, transmissions

    return {**own, "timed_burst": transmissions.timed_bursts, "timed_tune": transmissions.timed_tune,
            "phase": transmissions.phase, "lead": endurance.lead, "stream": endurance.stream}


def _gone(patient: Patient) -> str:
    """Which boards no longer answer, empty for none."""
    if patient.bench is None:
        return ""
    silent = []
    for board in patient.bench.radio.boards:
        try:
            patient.bench.radio.now(board)
        except Exception:
            silent.append(patient.bench.radio.board_name(board))
    return f"{', '.join(silent)}: no answer any more" if silent else ""


def summary(examination: Examination) -> str:
    """One sentence on an examination."""
    failures = [TITLES[result.check] for result in examination.results if result.status == "failed"]
    if failures:
        return f"radio {examination.name}: failed: {', '.join(failures)}"
    text = f"radio {examination.name}: all checks passed"
    for status in ("noted", "skipped"):
        titles = [TITLES[result.check] for result in examination.results if result.status == status]
        text += f"; {status}: {', '.join(titles)}" if titles else ""
    return text
