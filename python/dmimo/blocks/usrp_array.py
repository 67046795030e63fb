# SPDX-License-Identifier: GPL-3.0-or-later
"""One multi-channel USRP, of one board or several, in place of the simulated network."""

from gnuradio import gr, uhd

from ..radio_settings import RadioSettings, board_channels
from ..radio_time import rate_ratio
from .radio_events import radio_events
from .radio_start import INTERNAL, RadioError, RadioStart

# usrp_sink's event thread ends the process if a message of it finds no block to take it, and may outlive the flowgraph:
# what listens to it is never given up.
_listeners: list[radio_events] = []


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
        self.radio = RadioStart(settings, self.sources, self.sinks, self._channels)
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
        for port, source, sink, index in self.radio.members():
            for radio, antenna, gain_db in ((source, port.rx_antenna, port.rx_gain_db),
                                            (sink, port.tx_antenna, port.tx_gain_db)):
                if antenna:
                    radio.set_antenna(antenna, index)
                radio.set_gain(gain_db, index)
        for source in self.sources:
            source.set_blkd_input_timer_value(1)  # [ms]; an idle source would sleep 250 ms, and first bursts be late

    def _connect(self) -> None:
        for port, (_, source, sink, index) in enumerate(self.radio.members()):
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
        self.radio.check_references()
        self.radio.set_time()
        self.radio.tune(settle_s)
        return self.radio.stream()

    def now(self) -> float:
        """Device time [s]; for lead times, not for samples."""
        return self.radio.now()

    def gains(self) -> list[tuple[float, float]]:
        """Transmit and receive gain that each port really has [dB]: UHD rounds to its steps."""
        return [(sink.get_gain(index), source.get_gain(index)) for _, source, sink, index in self.radio.members()]
