# SPDX-License-Identifier: GPL-3.0-or-later
"""One multi-channel USRP, of one board or several, in place of the simulated network."""

from gnuradio import gr, uhd

from ..radio_settings import RadioSettings, board_channels
from .radio_control import radio_control
from .radio_events import radio_events
from .radio_start import INTERNAL, RadioError, RadioStart
from .stream_clock import stream_clock

# usrp_sink's event thread ends the process if a message of it finds no block to take it, and may outlive the flowgraph:
# what listens to it is never given up.
_listeners: list[radio_events] = []
MAX_RATE_ERROR_HZ = 1e-6  # what six decimals leave: not a hundredth of a sample in hours
SHARED_EVENTS = "B2"  # beginning of the names of devices whose sinks read one queue of events


class usrp_array(gr.hier_block2):
    """A multi_usrp: transmit streams of all ports in, receive streams of all ports out, in the order of its nodes.

    Transmit streams consist of bursts with `tx_time` and `packet_len` on the first item of each node's port 0, and of
    nothing in between; receive streams carry `rx_time`. Each node has its own sink and source, so that bursts of
    different nodes need not come in a common order.

    When the flowgraph starts, the boards' time is set at a PPS edge and checked on each, aligned to that of other
    radios as the scheduler says, all ports are tuned at one device time, locks and frequencies are checked, and all
    receive streams begin with the first sample of one second. From then on the radio is watched, see `radio_control`.

    Parameters
    ----------
    settings : RadioSettings
    name : str
        Of the radio, in messages.
    by_hand : bool
        Take none of the steps: whoever made the block takes them with `radio`, a `RadioStart`.

    Messages
    --------
    control : from the scheduler: `align` {radio, seconds}, `ask` {time}, `end`.
    events : what became of bursts, to all nodes, see `radio_events`.
    status : to the scheduler: `radio_time`, `radio_begin`, `radio_epoch`, see `radio_control`, and errors as text.

    Raises
    ------
    RadioError
        The device does not do what the settings ask for.
    """

    def __init__(self, settings: RadioSettings, name: str = "radio", by_hand: bool = False):
        num_ports = len(settings.ports)
        signature = gr.io_signature(num_ports, num_ports, gr.sizeof_gr_complex)
        gr.hier_block2.__init__(self, "usrp_array", signature, signature)
        for port in ("events", "status"):
            self.message_port_register_hier_out(port)
        self.message_port_register_hier_in("control")
        self.settings = settings
        streams = {name: uhd.stream_args("fc32", "", uhd.device_addr(""), [port.channel for port in ports])
                   for name, ports in settings.nodes.items()}
        self.sources = [uhd.usrp_source(settings.device_args, stream, False) for stream in streams.values()]
        self._boards = range(self.sources[0].get_num_mboards())
        self._set_clocks()
        self._set_subdevices(self.sources, settings.rx_subdevices)
        self._channels = self._map_channels(self.sources[0])
        for channel in (port.channel for port in settings.ports):
            if channel >= len(self._channels):
                raise RadioError(f"channel {channel}: the radio has channels 0 to {len(self._channels) - 1}")
        self.sinks = [uhd.usrp_sink(settings.device_args, stream, "packet_len") for stream in streams.values()]
        self._set_subdevices(self.sinks, settings.tx_subdevices)
        if any(self._map_channels(radio) != self._channels for radio in (*self.sources, *self.sinks)):
            raise RadioError("the boards' transmit and receive subdevices must be equally many")
        self.listeners = [radio_events(places, settings.samp_rate) for places in self._event_places()]
        _listeners.extend(self.listeners)
        self.radio = RadioStart(settings, self.sources, self.sinks, self._channels)
        self._set_ports()
        self.clocks = [stream_clock(settings.samp_rate) for _ in self.sources]
        self.control = radio_control(name, self.radio, self.clocks, by_hand)
        self._connect()

    def _set_clocks(self) -> None:
        settings = self.settings
        if len(self._boards) > 1 and INTERNAL in (settings.clock_source, settings.time_source):
            raise RadioError(f"clock_source = {settings.clock_source}, time_source = {settings.time_source}: "
                             f"{len(self._boards)} boards need a common reference and a common PPS")
        for board in self._boards:
            self.sources[0].set_clock_source(settings.clock_source, board)
            self.sources[0].set_time_source(settings.time_source, board)

    def _set_subdevices(self, radios, specifications) -> None:
        if specifications and len(specifications) != len(self._boards):
            raise RadioError(f"{len(specifications)} subdevice specifications: must be one for each of the "
                             f"{len(self._boards)} boards")
        # Clocks are the boards' own, but with RFNoC each source and sink has a map of channels to itself.
        for radio in radios:
            for board, specification in enumerate(specifications):
                radio.set_subdev_spec(specification, board)

    def _event_places(self) -> list[dict[int, tuple[str, int, int, int, int]]]:
        """What the channels in the messages of each sink mean, see `radio_events`."""
        places = [{index: (name, index, *self._channels[port.channel], port.channel)
                   for index, port in enumerate(ports)} for name, ports in self.settings.nodes.items()]
        sink = self.sinks[0]
        if not sink.get_usrp_info(0)["mboard_id"].startswith(SHARED_EVENTS):
            return places
        # Messages name the front end, 0 for A and 1 for B, whatever the channels are.
        ends = [1 if entry.endswith("B") else 0 for entry in sink.get_subdev_spec(0).split()]
        return [{ends[place[-1]]: place for own in places for place in own.values()}] * len(places)

    def _map_channels(self, radio) -> list[tuple[int, int]]:
        return board_channels([len(radio.get_subdev_spec(board).split()) for board in self._boards])

    def _set_ports(self) -> None:
        samp_rate = self.settings.samp_rate
        for radio in (*self.sources, *self.sinks):
            radio.set_samp_rate(samp_rate)
            if abs(radio.get_samp_rate() - samp_rate) > MAX_RATE_ERROR_HZ:
                raise RadioError(f"samp_rate = {samp_rate:.6f}: the radio can do {radio.get_samp_rate():.6f}; "
                                 "its master clock rate must be a multiple")
        for port, source, sink, index in self.radio.members():
            for radio, antenna in ((source, port.rx_antenna), (sink, port.tx_antenna)):
                if antenna:
                    radio.set_antenna(antenna, index)
        for name, ports in self.settings.nodes.items():
            for index, port in enumerate(ports):
                self.radio.set_gain(name, index, port.tx_gain_db, port.rx_gain_db)
        for source in self.sources:
            source.set_blkd_input_timer_value(1)  # [ms]; an idle source would sleep 250 ms, and first bursts be late

    def _connect(self) -> None:
        for port, (_, source, sink, index) in enumerate(self.radio.members()):
            self.connect((self, port), (sink, index))
            self.connect((source, index), (self, port))
        for source, clock in zip(self.sources, self.clocks, strict=True):
            self.connect((source, 0), clock)
            self.msg_connect(self.control, "end", source, "system")
        for sink, listener in zip(self.sinks, self.listeners, strict=True):
            self.msg_connect(sink, "async_msgs", listener, "async_msgs")
            self.msg_connect(listener, "events", self, "events")
        self.msg_connect(self, "control", self.control, "control")
        self.msg_connect(self.control, "status", self, "status")
        for block in (self.control, *self.clocks, *self.listeners):
            self.msg_connect(block, "error", self, "status")

    @property
    def epoch(self) -> int:
        """Number of the epoch, the Unix time in microseconds at which it began; 0 before the first."""
        return self.control.epoch

    def now(self) -> float:
        """Device time [s]; for lead times, not for samples."""
        return self.radio.now()

    def gains(self) -> list[tuple[float, float]]:
        """Transmit and receive gain that each port really has [dB]: UHD rounds to its steps."""
        return self.radio.gains()

    def set_gain(self, node: str, port: int, tx_db: float, rx_db: float) -> None:
        """Set the gains of a port [dB], see `gains` for what becomes of them. While the radio runs, a new epoch begins.

        Raises
        ------
        ValueError
            No such port.
        """
        ports = self.settings.nodes.get(node, ())
        if not 0 <= port < len(ports):
            known = ", ".join(f"{name} with {len(own)}" for name, own in self.settings.nodes.items())
            raise ValueError(f"node = {node!r}, port = {port}: the radio has the nodes and numbers of ports {known}")
        reason = f"gains of node {node}, port {port}, set to {tx_db:g} dB transmitting and {rx_db:g} dB receiving"
        self.control.request(reason, lambda: self.radio.set_gain(node, port, tx_db, rx_db))

    def retune(self, center_freq: float) -> None:
        """Tune all ports to a carrier [Hz], at one device time. While the radio runs, a new epoch begins.

        A radio that does not run is tuned when it starts.

        Raises
        ------
        ValueError
            The frequency is not positive.
        """
        settings = self.settings = self.settings.retuned(center_freq)
        self.control.request(f"all ports tuned to {center_freq / 1e6:g} MHz",
                             lambda: self.radio.retune(settings, self.control.running))
