# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks that listen to what the radio itself sends: bursts, a tune, phases after retunes."""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from gnuradio import uhd

from ..blocks.radio_start import RadioError, tune_request
from . import fixes
from .arrivals import arrivals, burst_gains, repeated_phase, sounding_burst, tone, tune_moment
from .bench import ANSWER_S, EARLY_SAMPLES, Bench, Event
from .patient import Paths, Patient, counted, failed, noted, one_line, passed
from .repeatability import REPEATABLE, Verdict, verdict
from .results import Result, Skip

ROUNDS = 4  # of bursts: for what noise and a lost slot spoil
FULL_SCALE = 0.99
MAX_JITTER_SAMPLES = 0.5
NOISY_RAD = 0.05  # of a phase: from there on 45 degrees are hard to tell from 90
AWAY_HZ = 10e6  # how far a retune goes and comes back: far enough for another state of the synthesizer
BEFORE_HZ_PER_RATE = 1 / 8  # receiver above its carrier before a timed tune: moves the tone to BEFORE_CYCLES
TUNE_TOLERANCE_S = 5e-6
NOT_SENT = ("time_error", "underflow", "underflow_in_packet", "seq_error", "seq_error_in_burst")
QUANTUM_WORDS = {180: "steps of 180 degrees", 90: "steps of 90 degrees", 45: "steps of 45 degrees", 0: "random",
                 None: "not told"}


def timed_bursts(patient: Patient) -> Result:
    """Are bursts sent at their times, and heard so much later as the loop takes?"""
    patient.require_transmission()
    bench = patient.bench
    burst = sounding_burst(patient.options.amplitude)
    first_event, rounds, sweeps = len(bench.mailbox.events), [], 0
    while len(rounds) < ROUNDS and sweeps < 2 * ROUNDS:
        sweeps += 1
        heard = bench.sound([(row, burst) for row in range(len(bench.ports))])
        if heard is not None:
            rounds.append(heard)
        elif bench.radio.dead_boards():
            return failed("timed_burst", "no samples come any more", fixes.unanswered())
    # A burst of a node is answered on each of its ports.
    expected = {name: sweeps * len(ports) for name, ports in bench.settings.nodes.items()}
    answers = sum(count * len(bench.settings.nodes[name]) for name, count in expected.items())
    bench.mailbox.wait(lambda: bench.num_answers(first_event) >= answers, ANSWER_S)
    events = bench.mailbox.events[first_event:]
    bad = _spoilt(bench, events) + _unanswered(bench, events, expected)
    if len(rounds) < ROUNDS:
        return failed("timed_burst", "received slots are lost or do not come", fixes.performance(patient.kind))
    patient.paths = paths = _paths(np.array(rounds), burst, patient.settings.samp_rate)
    if bad:
        return failed("timed_burst", "; ".join(bad), fixes.not_in_time(patient.kind))
    return _judge_paths(patient, np.array(rounds), paths)


def _spoilt(bench: Bench, events: Sequence[Event]) -> list[str]:
    """Which boards' bursts were not sent as they should be."""
    found = {}
    for event in events:
        if event.event in NOT_SENT:
            key = event.board, "late" if event.event == "time_error" else event.event.replace("_", " ")
            found.setdefault(key, set()).add((event.node, event.sample, event.port))
    return [f"{bench.radio.board_name(board)}: {counted(len({(node, sample) for node, sample, _ in which}), 'burst')} "
            f"of {', '.join(sorted({node for node, _, _ in which}))} {what}"
            for (board, what), which in sorted(found.items())]


def _unanswered(bench: Bench, events: Sequence[Event], expected: Mapping[str, int]) -> list[str]:
    """Ports of which some bursts are neither confirmed nor said to have failed."""
    told = Counter((event.node, event.port) for event in events)
    missing = {row: expected[name] - told[name, index] for row, (name, index, _) in enumerate(bench.ports)}
    return [f"{bench.port_name(row)}: nothing is said of {counted(count, 'burst')}" for row, count in missing.items()
            if count > 0]


def _paths(rounds: np.ndarray, burst: np.ndarray, samp_rate: float) -> Paths:
    """Medians over rounds (round, sender, receiver, n): what is heard in at least half of them is heard."""
    num = rounds.shape[1]
    found = [[arrivals(slot, burst, samp_rate) for slot in sweep] for sweep in rounds]
    heard, delay, snr_db = (np.array([[one[index] for one in sweep] for sweep in found]) for index in range(3))
    known = np.where(heard, delay - EARLY_SAMPLES, np.nan)
    often = heard.sum(axis=0) >= max(1, len(rounds) // 2)
    middle = np.zeros((2, num, num))
    for sender, receiver in zip(*np.nonzero(often), strict=True):
        middle[:, sender, receiver] = (np.nanmedian(known[:, sender, receiver]),
                                       np.median(snr_db[heard[:, sender, receiver], sender, receiver]))
    return Paths(often.T, middle[0].T, middle[1].T)


def _judge_paths(patient: Patient, rounds: np.ndarray, paths: Paths) -> Result:
    bench, names = patient.bench, [f"{name}:{index}" for name, index, _ in patient.bench.ports]
    deaf = [bench.port_name(row) for row in range(len(names)) if not paths.heard[:, row].any()]
    if deaf:
        return failed("timed_burst", f"nobody hears {'; '.join(deaf)}", fixes.not_heard())
    peak = np.abs(np.stack([rounds.real, rounds.imag])).max(axis=(0, 1, 2, 4))
    loud = [bench.port_name(row) for row in range(len(names)) if peak[row] >= FULL_SCALE]
    if loud:
        return failed("timed_burst", f"overdriven: {'; '.join(loud)}", fixes.overdriven())
    early = [bench.port_name(row) for row in range(len(names))
             if paths.delay_samples[paths.heard[:, row], row].min() < -MAX_JITTER_SAMPLES]
    if early:
        return failed("timed_burst", f"heard before their time: {'; '.join(early)}", fixes.streams())
    delays = {name: round(float(paths.delay_samples[row, row]), 2) + 0.0 for row, name in enumerate(names)
              if paths.heard[row, row]}
    wrong = _wrong_delays(patient, delays)
    values = {"loop_delay_samples": delays, "heard": paths.heard.tolist(),
              "snr_db": [[round(float(snr_db), 1) if heard else None for heard, snr_db in zip(*row, strict=True)]
                         for row in zip(paths.heard, paths.snr_db, strict=True)]}
    if wrong:
        return failed("timed_burst", "; ".join(wrong), fixes.wrong_delay(), **values)
    return passed("timed_burst", f"all {len(names)} ports sent at their time; {_delay_words(delays, names)}", **values)


def _wrong_delays(patient: Patient, delays: dict[str, float]) -> list[str]:
    """Loop delays that are not those of the testbed file, where it gives any."""
    given = patient.options.loop_delays
    if given is None:
        return []
    wrong = []
    for row, (name, index, _) in enumerate(patient.bench.ports):
        measured = delays.get(f"{name}:{index}")
        if measured is not None and abs(measured - given[name][index]) > MAX_JITTER_SAMPLES:
            wrong.append(f"{patient.bench.port_name(row)}: loop delay {measured:g} samples, the file says "
                         f"{given[name][index]}")
    return wrong


def _delay_words(delays: dict[str, float], names: Sequence[str]) -> str:
    if not delays:
        return "heard by neighbours only, so loop delays are not known"
    rest = "" if len(delays) == len(names) else f"; not heard by themselves: {', '.join(sorted({*names} - {*delays}))}"
    if max(delays.values()) - min(delays.values()) < MAX_JITTER_SAMPLES:
        return f"loop delay {round(next(iter(delays.values())), 1):g} samples{rest}"
    each = ", ".join(f"{name} {round(delay, 1):g}" for name, delay in delays.items())
    return f"loop delay {each} samples{rest}"


def timed_tune(patient: Patient) -> Result:
    """Does a receiver of each board change its frequency at the time that it was told?"""
    paths, bench = patient.require_paths(), patient.bench
    words, wrong, values = [], [], {}
    for board in bench.radio.boards:
        rows = [row for row in range(len(bench.ports)) if bench.board_of(row) == board
                and paths.best_sender(row) is not None]
        if not rows:
            continue
        row = max(rows, key=lambda row: paths.snr_db[row, paths.best_sender(row)])
        fault, end_s, begin_s = _one_tune(patient, row, paths)
        name = bench.radio.board_name(board)
        values[name] = {"left_s": end_s, "settled_s": begin_s}
        (wrong if fault else words).append(f"{name} {fault or f'{_micro(max(begin_s, 0.0))} after its time'}")
    bench.radio.tune()
    if wrong:
        told = noted if patient.kind in fixes.NO_TIMED_TUNE else failed
        return told("timed_tune", "; ".join(wrong), fixes.timed_tune(patient.kind), **values)
    return passed("timed_tune", f"new frequency {', '.join(words)}", **values)


def _micro(seconds: float) -> str:
    return f"{seconds * 1e6:.0f} us"


def _one_tune(patient: Patient, row: int, paths: Paths) -> tuple[str, float | None, float | None]:
    """What is wrong with one timed tune; when the old frequency was left and the new one reached, after its time."""
    bench, rate = patient.bench, float(patient.bench.rate)
    for _ in range(2):
        heard = _across_a_tune(bench, row, paths.best_sender(row))
        if heard is not None:
            break
    else:
        return "received slots are lost", None, None
    middle = bench.slot_samples // 2 + EARLY_SAMPLES
    moment = tune_moment(heard)
    end_s, begin_s = (moment.end_of_old - middle) / rate, (moment.begin_of_new - middle) / rate
    tolerance_s = TUNE_TOLERANCE_S + 4 / rate
    half_s = (bench.slot_samples // 2 - EARLY_SAMPLES) / rate
    if end_s < -tolerance_s:
        at_once = moment.end_of_old < EARLY_SAMPLES + bench.slot_samples // 16
        return f"tuned {'at once' if at_once else f'{_micro(-end_s)} early'}, not at its time", end_s, begin_s
    if begin_s > 0.9 * half_s or moment.begin_of_new > bench.slot_samples * 15 // 16:
        return f"not at the new frequency {half_s * 1e3:.1f} ms after its time", end_s, begin_s
    return "", end_s, begin_s


def _across_a_tune(bench: Bench, row: int, sender: int) -> np.ndarray | None:
    """What a port receives of a tone while it is tuned, its time in the middle of the burst."""
    name, index, port = bench.ports[row]
    source = bench.array.sources[list(bench.settings.nodes).index(name)]
    board = bench.board_of(row)
    rate = bench.settings.samp_rate
    source.set_center_freq(tune_request(port.center_freq + rate * BEFORE_HZ_PER_RATE), index)
    bench.radio.wait(bench.settings.settle_s)
    start = bench.soon()
    when = start + bench.slot_samples // 2
    seconds, rest = divmod(when * bench.rate.denominator, bench.rate.numerator)
    source.set_command_time(uhd.time_spec(seconds, rest / bench.rate.numerator), board)
    source.set_center_freq(tune_request(port.center_freq), index)
    source.clear_command_time(board)
    received = bench.sound([(sender, tone(bench.slot_samples, bench.amplitude))], start)
    return None if received is None else received[0, row]


def phase(patient: Patient) -> Result:
    """Do the synthesizers come back with the same phase when they are tuned away and back?"""
    if patient.options.retunes == 0:
        raise Skip("left out (--retunes 0)")
    paths, bench = patient.require_paths(), patient.bench
    receivers = [row for row in range(len(bench.ports)) if paths.best_sender(row) is not None]
    senders = sorted({paths.best_sender(row) for row in receivers})
    phases, stds = [], []
    for _ in range(patient.options.retunes):
        try:
            _retune(patient)
        except RadioError as error:
            return failed("phase", f"after a retune: {one_line(error)}", fixes.synthesizers(patient.kind))
        gains = _gains(bench, paths, receivers, senders)
        if gains is None:
            return failed("phase", "received slots are lost or do not come", fixes.performance(patient.kind))
        turn, std = repeated_phase(gains)
        phases.append(turn)
        stds.append(std)
    std = np.sqrt(np.mean(np.square(stds), axis=0))
    verdicts = {row: verdict(np.array(phases)[:, place], float(std[place])) for place, row in enumerate(receivers)}
    return _judge_phases(patient, verdicts, dict(zip(receivers, std, strict=True)))


def _retune(patient: Patient) -> None:
    """Tune all ports away and back, together, at one device time."""
    bench = patient.bench
    for port, source, sink, index in bench.radio.members():
        for radio in (source, sink):
            away = AWAY_HZ if port.center_freq + AWAY_HZ <= radio.get_freq_range(index).stop() else -AWAY_HZ
            radio.set_center_freq(tune_request(port.center_freq + away), index)
    bench.radio.tune()


def _gains(bench: Bench, paths: Paths, receivers: Sequence[int], senders: Sequence[int]) -> np.ndarray | None:
    """Gain of each receiver from its sender, (receiver, ROUNDS)."""
    burst = sounding_burst(bench.amplitude)
    for _ in range(2):
        heard = bench.sound([(row, burst) for _ in range(ROUNDS) for row in senders])
        if heard is not None:
            break
    else:
        return None
    heard = heard.reshape(ROUNDS, len(senders), *heard.shape[1:])
    rows = [heard[:, senders.index(paths.best_sender(row)), row] for row in receivers]
    delays = [paths.delay_samples[row, paths.best_sender(row)] + EARLY_SAMPLES for row in receivers]
    return np.array([burst_gains(slots, burst, delay) for slots, delay in zip(rows, delays, strict=True)])


def _judge_phases(patient: Patient, verdicts: dict[int, Verdict], std_rad: dict[int, float]) -> Result:
    bench, retunes = patient.bench, patient.options.retunes
    values = {f"{bench.ports[row][0]}:{bench.ports[row][1]}": {
        **told._asdict(), "noise_deg": float(np.degrees(std_rad[row]))} for row, told in verdicts.items()}
    groups: dict[tuple[int, int | None], list[int]] = {}
    for row, told in verdicts.items():
        if told.quantum_deg != REPEATABLE:
            groups.setdefault((bench.board_of(row), told.quantum_deg), []).append(row)
    worst = max(told.error_probability for told in verdicts.values())
    sure = f"{counted(retunes, 'retune')}; chance of error {100 * max(worst, 1e-6):.1g} %"
    if not groups:
        spread = max(told.spread_deg for told in verdicts.values())
        return passed("phase", f"comes back within {max(spread, 0.1):.1f} degrees rms ({sure})", **values)
    words = []
    for (board, quantum), rows in sorted(groups.items(), key=lambda group: group[0][0]):
        channels = ", ".join(str(bench.ports[row][2].channel) for row in rows)
        words.append(f"{bench.radio.board_name(board)}, channel{'s' * (len(rows) > 1)} {channels}: "
                     f"{QUANTUM_WORDS[quantum]}")
    quanta = [quantum for _, quantum in groups]
    finest = None if None in quanta else min(quanta)
    if finest is None:
        noisy = max(std_rad.values()) > NOISY_RAD
        return noted("phase", f"{'; '.join(words)} ({counted(retunes, 'retune')})", fixes.undecided(noisy), **values)
    return noted("phase", f"{'; '.join(words)} ({sure})", fixes.phase(finest, patient.kind), **values)
