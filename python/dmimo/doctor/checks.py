# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of a radio up to its streams: is it there, is it in step. One function each, in the order of `CHECKS`."""

import itertools
import math
import time
from collections.abc import Sequence
from typing import NamedTuple

from ..radio_time import time_of
from . import fixes
from .patient import Patient, counted, failed, one_line, passed
from .results import Result

INTERNAL = "internal"
PPS_WATCH_S = 2.3  # two edges, whenever it begins
MAX_PPS_SPREAD_S = 0.05  # between boards that are read one after the other over a network
STREAM_S = 0.2
STREAM_WAIT_S = 3.0


def found(patient: Patient) -> Result:
    """Does a device answer to the arguments?"""
    try:
        from gnuradio import uhd
    except ImportError as error:
        return failed("found", f"GNU Radio's USRP blocks are not installed: {one_line(error)}", fixes.INSTALL_UHD)
    arguments = patient.settings.device_args
    answers = {one: [address.to_string() for address in uhd.find(uhd.device_addr(one))]
               for one in arguments_of_boards(arguments)}
    missing = [one for one, devices in answers.items() if not devices]
    if missing:
        words = " and to ".join(f'"{one}"' for one in missing)
        return failed("found", f"no device answers to args {words}", fixes.not_found(missing[0]))
    devices = [device for found_ones in answers.values() for device in found_ones]
    return passed("found", f"{counted(len(devices), 'device')}, UHD {uhd.get_version_string()}", devices=devices,
                  uhd=uhd.get_version_string())


def arguments_of_boards(device_args: str) -> list[str]:
    """Arguments of each board on its own: to UHD keys that end in a digit, such as addr0 and addr1, are one board's."""
    pairs = [(key.strip(), value) for key, _, value in (pair.partition("=") for pair in device_args.split(","))]
    numbers = sorted({key[-1] for key, _ in pairs if key[-1:].isdigit()})
    if not numbers:
        return [device_args]
    return [",".join(f"{key.removesuffix(number)}={value}" for key, value in pairs
                     if key.endswith(number) or not key[-1:].isdigit()) for number in numbers]


def settings(patient: Patient) -> Result:
    """Can it be opened, and does it take rate, channels, antennas, gains and sources?"""
    from ..blocks.radio_start import RadioError
    from .bench import Bench

    try:
        patient.bench = Bench(patient.settings, patient.options.amplitude, max(patient.options.leads_s))
        patient.bench.start()
    except RadioError as error:
        return failed("settings", one_line(error), fixes.refused(patient.kind))
    except (RuntimeError, KeyError, IndexError, ValueError) as error:  # UHD's exceptions, as they come
        text = one_line(error)
        fix = fixes.refused(patient.kind) if isinstance(error, IndexError | ValueError) else fixes.not_opened(
            patient.kind)
        return failed("settings", text, fix)
    radio = patient.bench.radio
    patient.boards = [radio.board_name(board) for board in radio.boards]
    patient.kind = fixes.family(radio.sources[0].get_usrp_info(0)["mboard_id"]) or patient.kind
    return passed("settings", f"{', '.join(patient.boards)}; {counted(len(patient.bench.ports), 'port')} at "
                              f"{patient.settings.samp_rate / 1e6:g} MS/s", boards=patient.boards)


def reference(patient: Patient) -> Result:
    """Is every board locked to its reference?"""
    from ..blocks.radio_start import RadioError

    radio, source = patient.bench.radio, patient.settings.clock_source
    if source == INTERNAL:
        return passed("reference", "one board on its own oscillator (clock_source: internal)")
    try:
        radio.check_references()
    except RadioError as error:
        return failed("reference", one_line(error), fixes.reference(source, patient.kind))
    sensors = {board: set(radio.sources[0].get_mboard_sensor_names(board)) for board in radio.boards}
    if "gpsdo" in (source, patient.settings.time_source):
        lost = [radio.board_name(board) for board, names in sensors.items() if "gps_locked" in names
                and not radio.sources[0].get_mboard_sensor("gps_locked", board).to_bool()]
        if lost:
            return failed("reference", f"{', '.join(lost)}: GPSDO not locked to GPS",
                          fixes.reference("gpsdo", patient.kind))
    silent = [radio.board_name(board) for board, names in sensors.items() if "ref_locked" not in names]
    if silent:
        return passed("reference", f"clock source {source}; {', '.join(silent)} cannot tell whether it is locked")
    return passed("reference", f"{counted(len(sensors), 'board')} locked to clock source {source}")


def pps(patient: Patient) -> Result:
    """Does every board see PPS edges, a second apart, and all the same ones?"""
    radio, source = patient.bench.radio, patient.settings.time_source
    if source == INTERNAL:
        return passed("pps", "one board keeps its own time (time_source: internal)")
    seen = _watch_edges(radio)
    blind = [radio.board_name(board) for board, edges in seen.items() if not edges]
    if blind:
        return failed("pps", f"{', '.join(blind)}: no PPS edge in {PPS_WATCH_S:g} s, time source {source}",
                      fixes.pps(source))
    uneven = [f"{radio.board_name(board)}: edges {after.device_s - before.device_s:.6f} s apart"
              for board, edges in seen.items() for before, after in itertools.pairwise(edges)
              if not second_apart(before, after)]
    if uneven:
        return failed("pps", "; ".join(uneven), fixes.pps(source))
    offsets = {board: edges_apart(seen[0], edges) for board, edges in seen.items()}
    apart = [f"{radio.board_name(board)}: edges {offset:+.2f} s from those of {radio.board_name(0)}"
             for board, offset in offsets.items() if offset]
    if apart:
        return failed("pps", "; ".join(apart), fixes.pps(source))
    return passed("pps", f"every board sees one edge a second, time source {source}")


class Edge(NamedTuple):
    """A PPS edge that a board has passed: the host times between which it was, and the board's own time at it [s]."""

    after_s: float
    before_s: float
    device_s: float


def _watch_edges(radio) -> dict[int, list[Edge]]:
    """PPS edges that each board passes."""
    read: dict[int, tuple[float, float]] = {}  # when a board was last asked, and what it said
    seen: dict[int, list[Edge]] = {board: [] for board in radio.boards}
    deadline = time.monotonic() + PPS_WATCH_S
    over = False
    while not over:
        over = time.monotonic() >= deadline  # looked at once more, whatever kept this process
        for board in radio.boards:
            asked = time.monotonic()
            last = radio.sources[0].get_time_last_pps(board).get_real_secs()
            if board in read and last != read[board][1]:
                seen[board].append(Edge(read[board][0], time.monotonic(), last))
            read[board] = asked, last
        time.sleep(0.002)
    return seen


def second_apart(before: Edge, after: Edge) -> bool:
    """Whether two edges, seen one after the other, can be those of one a second: some between may have been missed."""
    seconds = round(after.device_s - before.device_s)
    return (seconds >= 1 and abs(after.device_s - before.device_s - seconds) <= 1e-3
            and after.after_s - before.before_s <= 1 + MAX_PPS_SPREAD_S)


def edges_apart(here: Sequence[Edge], there: Sequence[Edge]) -> float:
    """By how much the edges of one board come after those of another [s], modulo a second; 0 unless it is certain."""
    offsets = []
    for one, other in itertools.product(here, there):
        least, most = other.after_s - one.before_s, other.before_s - one.after_s
        if math.floor(most + MAX_PPS_SPREAD_S) < math.ceil(least - MAX_PPS_SPREAD_S):
            middle = (least + most) / 2
            offsets.append((most - least, middle - round(middle)))
    return min(offsets)[1] if offsets else 0.0


def common_time(patient: Patient) -> Result:
    """Do all boards take the same time at the same edge, now that the streamers exist?"""
    from ..blocks.radio_start import RadioError

    try:
        patient.bench.radio.set_time()
    except RadioError as error:
        return failed("time", one_line(error), fixes.common_time(patient.kind))
    if patient.settings.time_source == INTERNAL:
        return passed("time", "set to 0 s, on one board")
    num = len(patient.bench.radio.boards)
    return passed("time", f"{counted(num, 'board')} read{'s' if num == 1 else ''} the same whole second at a PPS edge"
                  if num > 1 else "it reads a whole second at a PPS edge")


def synthesizers(patient: Patient) -> Result:
    """After a tune, do all synthesizers lock, and are both directions at the same carrier?"""
    from ..blocks.radio_start import RadioError

    try:
        patient.bench.radio.tune()
    except RadioError as error:
        return failed("synthesizers", one_line(error), fixes.synthesizers(patient.kind))
    carriers = sorted({port.center_freq for port in patient.settings.ports})
    return passed("synthesizers", f"locked, and the same carrier both ways: "
                                  f"{', '.join(f'{carrier / 1e6:.6g} MHz' for carrier in carriers)}")


def streams(patient: Patient) -> Result:
    """Do the receive streams of all nodes begin at the time that they were told?"""
    bench = patient.bench
    first = bench.radio.stream()
    enough = STREAM_S * patient.settings.samp_rate
    bench.radio.soon(lambda: min(counter.seen for counter in bench.counters.values()) >= enough,
                     first / bench.rate - bench.radio.now() + STREAM_WAIT_S)
    silent = [name for name, counter in bench.counters.items() if counter.first is None]
    if silent:
        return failed("streams", f"no samples come for {', '.join(silent)}", fixes.streams())
    wrong = [f"{name} began {counter.first - first:+d} samples from its time"
             for name, counter in bench.counters.items() if counter.first != first]
    if wrong:
        return failed("streams", "; ".join(wrong), fixes.streams())
    seconds, _ = time_of(first, bench.rate)
    return passed("streams", f"samples of {', '.join(bench.counters)} begin at {seconds} s exactly, as asked",
                  first_sample=first)
