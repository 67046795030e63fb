# SPDX-License-Identifier: GPL-3.0-or-later
"""One multi-channel USRP, of one board or several, in place of the simulated network."""

import math
import time
from collections.abc import Callable, Iterator

from gnuradio import gr, uhd

from ..radio_settings import RadioPort, RadioSettings, Tuned, board_channels, carrier_faults
from ..radio_time import disagreeing_boards, next_common_second, rate_ratio
from .radio_events import radio_events

INTERNAL = "internal"
LOCK_TIMEOUT_S = 2.0
PPS_PERIOD_S = 1.1  # a little over the time between two edges
TUNE_LEAD_S = 0.1
START_LEAD_S = 0.2
POLL_S = 0.005

# usrp_sink's event thread ends the process if a message of it finds no block to take it, and may outlive the flowgraph:
# what listens to it is never given up.
_listeners: list[radio_events] = []


class RadioError(RuntimeError):
    """The radio is not in the state that coherent transmission needs; the message names the board or channel."""


class usrp_array(gr.hier_block2):
    """A multi_usrp: transmit streams of all ports in, receive streams of all ports out, in the order of its nodes.

    Transmit streams consist of bursts with `tx_time` and `packet_len` on the first item of each node's port 0, and of
    nothing in between; receive streams carry `rx_time`. Each node has its own sink and source, so that bursts of
    different nodes need not come in a common order.

    After the flowgraph has started, `begin` sets the boards' time at a PPS edge, checks it on each, tunes all ports at
    one device time, checks locks and frequencies, and lets all receive streams begin on one whole second.

    Parameters
    ----------
    settings : RadioSettings

    Messages
    --------
    events : what became of bursts, see `radio_events`.
    error : traceback of a failure in a handler.

    Raises
    ------
    RadioError
        The device does not do what the settings ask for.
    """

    def __init__(self, settings: RadioSettings):
        num_ports = len(settings.ports)
        signature = gr.io_signature(num_ports, num_ports, gr.sizeof_gr_complex)
        gr.hier_block2.__init__(self, "usrp_array", signature, signature)
        for port in ("events", "error"):
            self.message_port_register_hier_out(port)
        self.settings = settings
        self._rate = rate_ratio(settings.samp_rate)
        streams = {name: uhd.stream_args("fc32", "", uhd.device_addr(""), [port.channel for port in ports])
                   for name, ports in settings.nodes.items()}
        self.sources = [uhd.usrp_source(settings.device_args, stream, False) for stream in streams.values()]
        self._boards = range(self.sources[0].get_num_mboards())
        self._set_clocks()
        self._set_subdevices(self.sources[0], settings.rx_subdevices)
        self._channels = self._map_channels(self.sources[0])
        for channel in (port.channel for port in settings.ports):
            if channel >= len(self._channels):
                raise RadioError(f"channel {channel}: the radio has channels 0 to {len(self._channels) - 1}")
        self.listeners = [radio_events(name, [(*self._channels[port.channel], port.channel) for port in ports],
                                       settings.samp_rate) for name, ports in settings.nodes.items()]
        _listeners.extend(self.listeners)
        self.sinks = [uhd.usrp_sink(settings.device_args, stream, "packet_len") for stream in streams.values()]
        self._set_subdevices(self.sinks[0], settings.tx_subdevices)
        if self._map_channels(self.sinks[0]) != self._channels:
            raise RadioError("the boards' transmit and receive subdevices must be equally many")
        self._set_ports()
        self._connect()

    def _set_clocks(self) -> None:
        settings = self.settings
        if len(self._boards) > 1 and INTERNAL in (settings.clock_source, settings.time_source):
            raise RadioError(f"clock_source = {settings.clock_source}, time_source = {settings.time_source}: "
                             f"{len(self._boards)} boards need a common reference and a common PPS")
        for board in self._boards:
            self.sources[0].set_clock_source(settings.clock_source, board)
            self.sources[0].set_time_source(settings.time_source, board)

    def _set_subdevices(self, radio, specifications) -> None:
        if specifications and len(specifications) != len(self._boards):
            raise RadioError(f"{len(specifications)} subdevice specifications: must be one for each of the "
                             f"{len(self._boards)} boards")
        for board, specification in enumerate(specifications):
            radio.set_subdev_spec(specification, board)

    def _map_channels(self, radio) -> list[tuple[int, int]]:
        return board_channels([len(radio.get_subdev_spec(board).split()) for board in self._boards])

    def _set_ports(self) -> None:
        samp_rate = self.settings.samp_rate
        for radio in (*self.sources, *self.sinks):
            radio.set_samp_rate(samp_rate)
            if rate_ratio(radio.get_samp_rate()) != self._rate:
                raise RadioError(f"samp_rate = {samp_rate:g}: the radio can do {radio.get_samp_rate():.6f}; "
                                 "its master clock rate must be a multiple")
        for port, source, sink, index in self._members():
            for radio, antenna, gain_db in ((source, port.rx_antenna, port.rx_gain_db),
                                            (sink, port.tx_antenna, port.tx_gain_db)):
                if antenna:
                    radio.set_antenna(antenna, index)
                radio.set_gain(gain_db, index)
        for source in self.sources:
            source.set_blkd_input_timer_value(1)  # [ms]; an idle source would sleep 250 ms, and first bursts be late

    def _members(self) -> Iterator[tuple[RadioPort, uhd.usrp_source, uhd.usrp_sink, int]]:
        """Each port with the source and the sink that it belongs to, and its place in their streams."""
        for ports, source, sink in zip(self.settings.nodes.values(), self.sources, self.sinks, strict=True):
            for index, port in enumerate(ports):
                yield port, source, sink, index

    def _connect(self) -> None:
        for port, (_, source, sink, index) in enumerate(self._members()):
            self.connect((self, port), (sink, index))
            self.connect((source, index), (self, port))
        for sink, listener in zip(self.sinks, self.listeners, strict=True):
            self.msg_connect(sink, "async_msgs", listener, "async_msgs")
            self.msg_connect(listener, "events", self, "events")
            self.msg_connect(listener, "error", self, "error")

    def begin(self, settle_s: float = 0.1) -> int:
        """Set time, tune and let the streams begin; the flowgraph must be running, since that makes the streamers.

        Parameters
        ----------
        settle_s : float
            Between the tune and the check of the locks [s].

        Returns
        -------
        int
            First sample of all receive streams since the run's epoch, a whole second.

        Raises
        ------
        RadioError
            A board or channel is not what it must be; its name is in the message.
        """
        self._check_references()
        self._set_time()
        self._tune(settle_s)
        return self._stream()

    def now(self) -> float:
        """Device time [s]; for lead times, not for samples."""
        return self.sources[0].get_time_now(0).get_real_secs()

    def gains(self) -> list[tuple[float, float]]:
        """Transmit and receive gain that each port really has [dB]: UHD rounds to its steps."""
        return [(sink.get_gain(index), source.get_gain(index)) for _, source, sink, index in self._members()]

    def _board_name(self, board: int) -> str:
        """Number of a board and, where one of its channels is in use, through which UHD tells it, its serial number."""
        serials = [source.get_usrp_info(index)["mboard_serial"] for port, source, _, index in self._members()
                   if self._channels[port.channel][0] == board]
        return f"board {board} ({serials[0]})" if serials else f"board {board}"

    def _check_references(self) -> None:
        source, clock_source = self.sources[0], self.settings.clock_source
        for board in self._boards:
            if clock_source == INTERNAL or "ref_locked" not in source.get_mboard_sensor_names(board):
                continue
            if not _soon(lambda board=board: source.get_mboard_sensor("ref_locked", board).to_bool()):
                raise RadioError(f"{self._board_name(board)}: not locked to its reference, clock source {clock_source}")

    def _set_time(self) -> None:
        source = self.sources[0]
        if self.settings.time_source == INTERNAL:  # one board only
            source.set_time_now(uhd.time_spec(0.0), 0)
            return
        try:
            source.set_time_unknown_pps(uhd.time_spec(0.0))
        except RuntimeError as error:
            raise RadioError(f"time source {self.settings.time_source}: {str(error).strip()}") from error
        time.sleep(PPS_PERIOD_S)  # until every board has seen an edge with its new time
        wrong = disagreeing_boards(self._edges(), self._rate)
        if wrong:
            raise RadioError("; ".join(f"{self._board_name(board)} {text}" for board, text in wrong.items()))

    def _edges(self) -> list[tuple[int, float]]:
        """What each board reads at one and the same PPS edge."""
        seen: list[list] = []
        if not _soon(lambda: seen.append(self._read_edges()) or seen[-1:] == seen[-2:-1]):
            raise RadioError("the boards cannot be read between two PPS edges")
        return seen[-1]

    def _read_edges(self) -> list[tuple[int, float]]:
        times = [self.sources[0].get_time_last_pps(board) for board in self._boards]
        return [(moment.get_full_secs(), moment.get_frac_secs()) for moment in times]

    def _tune(self, settle_s: float) -> None:
        """Tune both directions of all ports at one device time, and check what came of it."""
        when = self.now() + TUNE_LEAD_S
        timed = [(radio, board) for radio in (self.sources[0], self.sinks[0]) for board in self._boards]
        for radio, board in timed:
            radio.set_command_time(uhd.time_spec(when), board)
        tx, rx = [], []
        for port, source, sink, index in self._members():
            request = uhd.tune_request(port.center_freq, port.lo_offset_hz)
            for radio, results in ((sink, tx), (source, rx)):
                results.append((radio, index, radio.set_center_freq(request, index)))
        for radio, board in timed:
            radio.clear_command_time(board)
        if not _soon(lambda: self.now() >= when + settle_s, TUNE_LEAD_S + settle_s + LOCK_TIMEOUT_S):
            raise RadioError(f"the device time stands still at {self.now():.3f} s")
        self._check_locks()
        faults = carrier_faults(self.settings.ports, *([_tuned(*result) for result in results] for results in (tx, rx)))
        if faults:
            raise RadioError("frequencies differ: " + "; ".join(faults))

    def _check_locks(self) -> None:
        for port, source, sink, index in self._members():
            for radio, name in ((source, "receive"), (sink, "transmit")):
                if "lo_locked" in radio.get_sensor_names(index) and not _soon(
                        lambda radio=radio, index=index: radio.get_sensor("lo_locked", index).to_bool()):
                    board, _ = self._channels[port.channel]
                    raise RadioError(f"{self._board_name(board)}, channel {port.channel}: its {name} synthesizer is "
                                     "not locked")

    def _stream(self) -> int:
        second = next_common_second(math.ceil(self.now() + START_LEAD_S), self._rate)
        command = uhd.stream_cmd(uhd.STREAM_MODE_START_CONTINUOUS)
        command.stream_now, command.time_spec = False, uhd.time_spec(second, 0.0)
        for source in self.sources:
            source.issue_stream_cmd(command)
        return second * self._rate.numerator // self._rate.denominator


def _tuned(radio, index: int, result: uhd.tune_result_t) -> Tuned:
    """What a channel of a source or sink has been tuned to, by the result of tuning and read back."""
    return Tuned(result.actual_rf_freq, result.actual_dsp_freq, radio.get_center_freq(index))


def _soon(condition: Callable[[], bool], timeout_s: float = LOCK_TIMEOUT_S) -> bool:
    """Whether a condition comes true within a time."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True
