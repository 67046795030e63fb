# SPDX-License-Identifier: GPL-3.0-or-later
"""The steps that bring a multi_usrp into coherent operation, one function each, in the order in which they are taken.

All of them need the streamers: PPS time must be set after they exist, that is after the flowgraph has started.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

from gnuradio import gr, uhd

from ..radio_settings import RadioPort, RadioSettings, Tuned, carrier_faults
from ..radio_time import boards_apart, common_second, disagreeing_boards, position, rate_ratio, time_of

INTERNAL = "internal"
LOCK_TIMEOUT_S = 2.0
PPS_PERIOD_S = 1.1  # a little over the time between two edges
TUNE_LEAD_S = 0.1
START_LEAD_S = 0.2
POLL_S = 0.005


class RadioError(RuntimeError):
    """The radio is not in the state that coherent transmission needs; the message names the board or channel."""


class RadioStopped(Exception):
    """A step was given up because the radio is to stop; `RadioStart.wait` may raise it."""


class RadioStart:
    """Steps of a coherent start, and what the boards say of themselves.

    Parameters
    ----------
    settings : RadioSettings
    sources, sinks : sequence of usrp_source, usrp_sink
        One of each for a node, in the order of the settings.
    channels : sequence of (board, channel of the board)
        Of each channel of the radio.

    Attributes
    ----------
    wait : callable(seconds)
        What all waits are made of.
    carriers : list of (float, float)
        Carrier of each port as asked for and as tuned to, in Hz; empty before.
    """

    def __init__(self, settings: RadioSettings, sources: Sequence, sinks: Sequence,
                 channels: Sequence[tuple[int, int]]):
        self.settings, self.sources, self.sinks = settings, list(sources), list(sinks)
        self.channels = list(channels)
        self.boards = range(self.sources[0].get_num_mboards())
        self.rate = rate_ratio(settings.samp_rate)
        self.wait: Callable[[float], None] = time.sleep
        self.carriers: list[tuple[float, float]] = []
        self.log = gr.logger("radio")
        self._serials: dict[int, str] = {}
        for port, source, _, index in self.members():  # a board that has vanished can no longer be asked for it
            self._serials.setdefault(self.channels[port.channel][0], source.get_usrp_info(index)["mboard_serial"])

    def members(self) -> Iterator[tuple[RadioPort, uhd.usrp_source, uhd.usrp_sink, int]]:
        """Each port with the source and the sink that it belongs to, and its place in their streams."""
        for ports, source, sink in zip(self.settings.nodes.values(), self.sources, self.sinks, strict=True):
            for index, port in enumerate(ports):
                yield port, source, sink, index

    def board_name(self, board: int) -> str:
        """Number of a board and, where one of its channels is in use, through which UHD tells it, its serial number."""
        return f"board {board} ({self._serials[board]})" if board in self._serials else f"board {board}"

    def now(self, board: int = 0) -> float:
        """Device time [s]; for lead times, not for samples."""
        return self.sources[0].get_time_now(board).get_real_secs()

    def boards_of(self, node: str) -> list[str]:
        """Names of the boards on which a node has ports."""
        boards = {self.channels[port.channel][0] for port in self.settings.nodes[node]}
        return [self.board_name(board) for board in sorted(boards)]

    def dead_boards(self) -> list[int]:
        """Boards that do not answer when asked for their time."""
        return [board for board in self.boards if not self._answers(board)]

    def _answers(self, board: int) -> bool:
        try:
            self.now(board)
        except RuntimeError:
            return False
        return True

    def now_samples(self) -> int:
        """Device time in samples."""
        moment = self.sources[0].get_time_now(0)
        return position(moment.get_full_secs(), moment.get_frac_secs(), self.rate)[0]

    def soon(self, condition: Callable[[], bool], timeout_s: float = LOCK_TIMEOUT_S) -> bool:
        """Whether a condition comes true within a time."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                return False
            self.wait(POLL_S)
        return True

    def unlocked_references(self) -> list[int]:
        """Boards that are not locked to an external reference."""
        source = self.sources[0]
        if self.settings.clock_source == INTERNAL:
            return []
        return [board for board in self.boards if "ref_locked" in source.get_mboard_sensor_names(board)
                and not source.get_mboard_sensor("ref_locked", board).to_bool()]

    def check_references(self, timeout_s: float = LOCK_TIMEOUT_S) -> None:
        """Wait until every board is locked to its reference; RadioError otherwise."""
        if not self.soon(lambda: not self.unlocked_references(), timeout_s):
            raise RadioError("; ".join(f"{self.board_name(board)}: not locked to its reference, clock source "
                                       f"{self.settings.clock_source}" for board in self.unlocked_references()))

    def set_time(self, seconds: int = 0) -> None:
        """Set the time of all boards to whole seconds at the next PPS edge and verify it; without a PPS, set it now."""
        source = self.sources[0]
        if self.settings.time_source == INTERNAL:  # one board only
            source.set_time_now(uhd.time_spec(seconds, 0.0), 0)
            return
        self._wait_for_edge()
        begun = time.monotonic()
        source.set_time_next_pps(uhd.time_spec(seconds, 0.0))
        self._check_new_time(seconds, begun)

    def shift_time(self, seconds: int) -> None:
        """Shift the time of all boards by whole seconds at the next PPS edge, and verify it."""
        if self.settings.time_source == INTERNAL:
            raise RadioError("time source internal: without a common PPS it cannot be aligned to other radios")
        self.keep_time(seconds)

    def keep_time(self, shift: int = 0) -> None:
        """Set the time of all boards anew at a PPS edge, to what most of them read, and whole seconds more."""
        if self.settings.time_source == INTERNAL:  # a single board: nothing that it could be held against
            return
        self._wait_for_edge()
        second = common_second(self.edges()) + 1 + shift
        begun = time.monotonic()
        self.sources[0].set_time_next_pps(uhd.time_spec(second, 0.0))
        self._check_new_time(second, begun)

    def _wait_for_edge(self) -> None:
        """Return right after a PPS edge, so that all boards are told well before the next."""
        last = self._read_edge(0)
        if not self.soon(lambda: self._read_edge(0) != last, PPS_PERIOD_S):
            raise RadioError(f"{self.board_name(0)}: sees no PPS edge, time source {self.settings.time_source}")

    def _check_new_time(self, seconds: int, begun_s: float) -> None:
        self.wait(PPS_PERIOD_S)  # until every board has seen an edge with its new time
        self.check_edges()
        read = common_second(self.edges())
        if not 0 <= read - seconds <= time.monotonic() - begun_s:  # a busy computer may read it edges later
            raise RadioError(f"time source {self.settings.time_source}: the boards read {read} s at the PPS edge after "
                             f"their time was set to {seconds} s")

    def unequal_edges(self) -> list[str]:
        """Boards, by name, that have another time than the others, at a PPS edge or between, or read no whole second at
        their edges; and what."""
        wrong = boards_apart(self._offsets(), self.rate) | disagreeing_boards(self.edges(), self.rate)
        return [f"{self.board_name(board)} {text}" for board, text in wrong.items()]

    def check_edges(self) -> None:
        """Whether all boards have one time, and read a whole second at a PPS edge; RadioError otherwise."""
        wrong = self.unequal_edges()
        if wrong:
            raise RadioError("; ".join(wrong))

    def _offsets(self) -> list[tuple[float, float]]:
        """By how much each board's clock is ahead of the first's, at least and at most [s]: read between two readings
        of the first."""
        offsets = [(0.0, 0.0)]
        for board in self.boards[1:]:
            before, time_there, after = self._now_exact(0), self._now_exact(board), self._now_exact(0)
            offsets.append((float(time_there - after), float(time_there - before)))
        return offsets

    def _now_exact(self, board: int) -> Fraction:
        moment = self.sources[0].get_time_now(board)
        return moment.get_full_secs() + Fraction(moment.get_frac_secs())

    def edges(self) -> list[tuple[int, float]]:
        """What each board reads at one and the same PPS edge."""
        seen: list[list] = []
        if not self.soon(lambda: seen.append([*map(self._read_edge, self.boards)]) or seen[-1:] == seen[-2:-1]):
            raise RadioError("the boards cannot be read between two PPS edges")
        return seen[-1]

    def _read_edge(self, board: int) -> tuple[int, float]:
        moment = self.sources[0].get_time_last_pps(board)  # UHD's times cannot be compared in Python
        return moment.get_full_secs(), moment.get_frac_secs()

    def tune(self) -> None:
        """Tune both directions of all ports at one device time, and check what came of it."""
        when = self.now() + TUNE_LEAD_S
        timed = [(radio, board) for radio in (self.sources[0], self.sinks[0]) for board in self.boards]
        for radio, board in timed:
            radio.set_command_time(uhd.time_spec(when), board)
        tx, rx = [], []
        for port, source, sink, index in self.members():
            request = tune_request(port.center_freq)
            for radio, results in ((sink, tx), (source, rx)):
                results.append((radio, index, radio.set_center_freq(request, index)))
        for radio, board in timed:
            radio.clear_command_time(board)
        settled = when + self.settings.settle_s
        if not self.soon(lambda: self.now() >= settled, TUNE_LEAD_S + self.settings.settle_s + LOCK_TIMEOUT_S):
            raise RadioError(f"{self.board_name(0)}: the device time stands still at {self.now():.3f} s")
        self.check_locks()
        sent, received = ([_tuned(*result) for result in results] for results in (tx, rx))
        self.carriers = [(port.center_freq, one.carrier_hz)
                         for port, one in zip(self.settings.ports, received, strict=True)]
        faults = carrier_faults(self.settings.ports, sent, received)
        if faults:
            raise RadioError("not tuned to one carrier: " + "; ".join(faults))

    def unlocked_synthesizers(self) -> list[str]:
        """Names of the synthesizers that are not locked, by board and channel."""
        found = []
        for port, source, sink, index in self.members():
            for radio, name in ((source, "receive"), (sink, "transmit")):
                if "lo_locked" in radio.get_sensor_names(index) and not radio.get_sensor("lo_locked", index).to_bool():
                    board, _ = self.channels[port.channel]
                    found.append(f"{self.board_name(board)}, channel {port.channel}: its {name} synthesizer is not "
                                 "locked")
        return found

    def check_locks(self) -> None:
        """Wait until every synthesizer is locked; RadioError otherwise."""
        if not self.soon(lambda: not self.unlocked_synthesizers()):
            raise RadioError("; ".join(self.unlocked_synthesizers()))

    def retune(self, settings: RadioSettings, now: bool) -> None:
        """Take the carriers of these settings from now on, or from the next time that the radio is tuned."""
        self.settings = settings
        if now:
            self.tune()

    def set_gain(self, node: str, port: int, tx_db: float, rx_db: float) -> None:
        """Set a port's gains [dB]; UHD rounds them, see `gains`."""
        place = list(self.settings.nodes).index(node)
        for radio, what, gain_db in ((self.sinks[place], "transmit", tx_db), (self.sources[place], "receive", rx_db)):
            radio.set_gain(gain_db, port)
            if radio.get_gain(port) != gain_db:
                self.log.info(f"node {node}, port {port}: {what} gain {radio.get_gain(port):g} dB instead of "
                              f"{gain_db:g} dB, which the device cannot do")

    def gains(self) -> list[tuple[float, float]]:
        """Transmit and receive gain that each port really has [dB]: UHD rounds to its steps."""
        return [(sink.get_gain(index), source.get_gain(index)) for _, source, sink, index in self.members()]

    def halt(self) -> None:
        """Let all receive streams end; `stream` begins them again."""
        for source in self.sources:
            source.issue_stream_cmd(uhd.stream_cmd(uhd.STREAM_MODE_STOP_CONTINUOUS))

    def stream(self) -> int:
        """Let all receive streams begin with one sample, the first of a second; returns which it is."""
        sample = math.ceil(math.ceil(self.now() + START_LEAD_S) * self.rate)
        command = uhd.stream_cmd(uhd.STREAM_MODE_START_CONTINUOUS)
        command.stream_now, command.time_spec = False, uhd.time_spec(*time_of(sample, self.rate))
        for source in self.sources:
            source.issue_stream_cmd(command)
        return sample


def tune_request(frequency: float) -> uhd.tune_request:
    """Request for a carrier [Hz] by the synthesizer alone, as near to it as that comes, see `carrier_faults`."""
    request = uhd.tune_request(frequency)
    request.rf_freq_policy = request.dsp_freq_policy = uhd.tune_request.POLICY_MANUAL
    request.rf_freq, request.dsp_freq = frequency, 0.0
    return request


def _tuned(radio, index: int, result: uhd.tune_result_t) -> Tuned:
    """What a channel of a source or sink has been tuned to, by the result of tuning and read back."""
    return Tuned(result.actual_rf_freq, result.actual_dsp_freq, radio.get_center_freq(index))
