# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of host and link: how early bursts must be handed over, and whether streams run without a loss."""

import time
from collections import Counter
from collections.abc import Sequence

from . import fixes
from .bench import Event
from .leads import Lead, Step, descend, ladder, late_bound
from .patient import Patient, counted, failed, passed
from .results import Result

BURSTS = 50
SPACING_S = 0.01
BURST_SAMPLES = 256
LOSSES = {"time_error": "late", "underflow": "underflow", "underflow_in_packet": "underflow",
          "seq_error": "lost on the way", "seq_error_in_burst": "lost on the way"}


def lead(patient: Patient) -> Result:
    """How far ahead must a burst be handed to the radio, so that it is never late?"""
    patient.require_transmission()
    late_boards: set[int] = set()

    def trial(lead_s: float) -> Step:
        events = patient.bench.silent_bursts(lead_s, SPACING_S, BURSTS, BURST_SAMPLES)
        late_boards.update(event.board for event in events if event.event == "time_error")
        return Step(lead_s, BURSTS, _not_sent(patient, events))

    found = descend(trial, ladder(patient.options.leads_s))
    wanted_s = min(patient.options.leads_s)
    tried = _words(found)
    values = {"smallest_s": found.smallest_s, "steps": [step._asdict() for step in found.steps]}
    names = ", ".join(patient.bench.radio.board_name(board) for board in sorted(late_boards))
    if found.smallest_s is None or found.smallest_s > wanted_s:
        return failed("lead", f"{tried}; the file asks for {_milli(wanted_s)}" + f" ({names})" * bool(names),
                      fixes.not_in_time(patient.kind), **values)
    return passed("lead", f"{tried}; the file asks for {_milli(wanted_s)}", **values)


def _not_sent(patient: Patient, events: Sequence[Event]) -> int:
    """Bursts of the port with the most of them that were late or of which nothing was heard."""
    sent = Counter((event.node, event.port) for event in events if event.event == "burst_ack")
    return max(BURSTS - sent[name, index] for name, index, _ in patient.bench.ports)


def _words(found: Lead) -> str:
    last = found.steps[-1]
    failing = f"{last.late} of {last.bursts} late or lost at {_milli(last.lead_s)}" if last.late else ""
    if found.smallest_s is None:
        return failing
    safe = (f"none of {BURSTS} late at {_milli(found.smallest_s)} (fewer than {100 * late_bound(BURSTS):.0f} % late "
            "with 95 % confidence)")
    return f"{safe}, {failing}" if failing else safe


def _milli(seconds: float) -> str:
    return f"{seconds * 1e3:g} ms"


def stream(patient: Patient) -> Result:
    """Do all ports send and receive for a while without a late burst, an underflow or an overflow?"""
    bench, duration_s = patient.bench, patient.options.duration_s
    period_s = max(2 * bench.slot_samples / float(bench.rate), SPACING_S)
    num_bursts = max(1, round(duration_s / period_s))
    counts: Counter[str] = Counter()
    boards: set[int] = set()
    if patient.options.transmit:
        events = bench.silent_bursts(max(patient.options.leads_s), period_s, num_bursts, bench.slot_samples)
        for event in events:
            if event.event in LOSSES and event.port == 0:  # one channel of an event counts
                counts[LOSSES[event.event]] += 1
                boards.add(event.board)
    else:
        time.sleep(duration_s)
    gaps = {name: lost for name, lost in bench.gaps().items() if lost}
    lost_samples = {name: sum(missing for _, missing in lost) for name, lost in gaps.items()}
    sent = f"{num_bursts} bursts of each node, " if patient.options.transmit else ""
    values = {"late": counts["late"], "underflows": counts["underflow"], "sequence_errors": counts["lost on the way"],
              "overflows": sum(map(len, gaps.values())), "lost_samples": lost_samples, "duration_s": duration_s}
    if not counts and not gaps:
        return passed("stream", f"{duration_s:g} s, {sent}no burst late, no underflow, no overflow", **values)
    words = [f"{counted(count, 'burst')} {what}" for what, count in sorted(counts.items())]
    words += [f"{counted(len(gaps[name]), 'overflow')} at {name} ({_boards_of(patient, name)}), "
              f"{counted(lost_samples[name], 'sample')} lost" for name in gaps]
    named = f" ({', '.join(bench.radio.board_name(board) for board in sorted(boards))})" if boards else ""
    return failed("stream", f"{duration_s:g} s, {sent}{'; '.join(words)}{named}", fixes.performance(patient.kind),
                  **values)


def _boards_of(patient: Patient, node: str) -> str:
    bench = patient.bench
    boards = sorted({bench.board_of(row) for row, (name, _, _) in enumerate(bench.ports) if name == node})
    return ", ".join(bench.radio.board_name(board) for board in boards)
