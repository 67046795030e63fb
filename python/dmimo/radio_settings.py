# SPDX-License-Identifier: GPL-3.0-or-later
"""What a multi-channel USRP is to be set to, and whether what it was tuned to can serve reciprocity calibration."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

MAX_CARRIER_ERROR_HZ = 1e-4  # ten times what a float resolves at 100 GHz; 0.04 degree in a second
MAX_CARRIER_OFFSET_HZ = 1e3  # from what was asked for: synthesizers with fine steps come much closer


@dataclass(frozen=True)
class RadioPort:
    """One port of a node: a transmit and a receive channel of the same number.

    Attributes
    ----------
    channel : int
        Channel of the multi_usrp, counted through its boards.
    center_freq : float
        Carrier of both directions [Hz].
    tx_gain_db, rx_gain_db : float
        Overall gains.
    tx_antenna, rx_antenna : str
        UHD's names; empty: the device's own choice.
    """

    channel: int
    center_freq: float
    tx_gain_db: float = 0.0
    rx_gain_db: float = 0.0
    tx_antenna: str = ""
    rx_antenna: str = ""

    def __post_init__(self):
        if self.channel < 0:
            raise ValueError(f"channel = {self.channel}: must not be negative")
        if not 0 < self.center_freq < math.inf:
            raise ValueError(f"center_freq = {self.center_freq}: must be positive")


@dataclass(frozen=True)
class RadioSettings:
    """A multi_usrp: one or several boards with common clock and PPS.

    Attributes
    ----------
    device_args : str
        UHD's device arguments.
    samp_rate : float
    nodes : mapping of node name to its ports
    clock_source, time_source : str
        UHD's names, the same for all boards. Several boards need a common PPS: not ``internal``.
    tx_subdevices, rx_subdevices : sequence of str
        UHD's subdevice specification of each board; empty: the device's own choice.
    settle_s : float
        Between a tune and the check of the locks [s].
    """

    device_args: str
    samp_rate: float
    nodes: Mapping[str, Sequence[RadioPort]]
    clock_source: str = "external"
    time_source: str = "external"
    tx_subdevices: Sequence[str] = ()
    rx_subdevices: Sequence[str] = ()
    settle_s: float = 0.1

    def __post_init__(self):
        if not self.nodes or not all(self.nodes.values()):
            raise ValueError(f"nodes = {dict(self.nodes)}: must be at least one, each with at least one port")
        channels = [port.channel for port in self.ports]
        twice = sorted({channel for channel in channels if channels.count(channel) > 1})
        if twice:
            raise ValueError(f"channel {', '.join(map(str, twice))}: must belong to one port only")

    def streams(self, node: str) -> range:
        """Numbers of a node's streams among those of all ports."""
        names = list(self.nodes)
        first = sum(len(self.nodes[name]) for name in names[: names.index(node)])
        return range(first, first + len(self.nodes[node]))

    @property
    def ports(self) -> list[RadioPort]:
        """Ports of all nodes, one node after the other."""
        return [port for ports in self.nodes.values() for port in ports]

    def retuned(self, center_freq: float | None) -> "RadioSettings":
        """The same with this carrier for all ports [Hz]; None changes nothing."""
        if center_freq is None:
            return self
        nodes = {name: [replace(port, center_freq=center_freq) for port in own] for name, own in self.nodes.items()}
        return replace(self, nodes=nodes)


class Tuned(NamedTuple):
    """What one direction of a port has been tuned to: synthesizer and digital frequency, and the carrier they make."""

    rf_hz: float
    dsp_hz: float
    carrier_hz: float


def unequal_carriers(carriers: Mapping[str, Sequence[tuple[float, float]]]) -> str:
    """What is wrong with the carriers, (asked for, tuned to), of radios on one reference; empty if nothing is.

    Synthesizers of different models may come to different carriers, and nobody looks for frequencies between radios
    that share a reference.
    """
    first: dict[float, tuple[str, float]] = {}
    for radio, pairs in carriers.items():
        for asked_hz, carrier_hz in pairs:
            other, other_hz = first.setdefault(asked_hz, (radio, carrier_hz))
            if not abs(carrier_hz - other_hz) <= MAX_CARRIER_ERROR_HZ:
                return (f"center_freq = {asked_hz:.0f} Hz: radio {radio} came to {carrier_hz:.4f} Hz, radio {other} "
                        f"to {other_hz:.4f} Hz: must be one that both can make, such as a multiple of 10 MHz")
    return ""


def board_channels(channels_of_boards: Sequence[int]) -> list[tuple[int, int]]:
    """Board, and channel on it, of each channel of a multi_usrp whose boards have so many channels."""
    return [(board, channel) for board, count in enumerate(channels_of_boards) for channel in range(count)]


def carrier_faults(ports: Sequence[RadioPort], tx: Sequence[Tuned], rx: Sequence[Tuned]) -> list[str]:
    """What is wrong with the frequencies read back; empty if they are the same wherever they must be.

    Reciprocity needs ONE carrier in both directions of a port, made by the synthesizers alone: a transmitter's digital
    oscillator starts anew with each burst while a receiver's runs on, so that any other digital frequency than 0 turns
    c from burst to burst. The carrier need not be exactly what was asked for, but ports that were asked for the same
    one must be at the same one, or their phases run away from one another.
    """
    faults = []
    first: dict[float, tuple[int, float]] = {}
    for port, sent, received in zip(ports, tx, rx, strict=True):
        wrong = _port_faults(port.center_freq, sent, received)
        if wrong:
            faults.append(f"channel {port.channel}: {'; '.join(wrong)}")
        channel, carrier_hz = first.setdefault(port.center_freq, (port.channel, received.carrier_hz))
        if not abs(carrier_hz - received.carrier_hz) <= MAX_CARRIER_ERROR_HZ:
            faults.append(
                f"channel {port.channel}: carrier {received.carrier_hz:.4f} Hz, but {carrier_hz:.4f} Hz on "
                f"channel {channel}, which was asked for the same"
            )
    return faults


def _port_faults(center_freq: float, sent: Tuned, received: Tuned) -> list[str]:
    """What is wrong with the frequencies of one port; NaN is, too."""
    faults = [
        f"digital frequency {tuned.dsp_hz:.4f} Hz for {direction}: must be 0, since it starts anew with each burst and "
        "turns what was calibrated"
        for direction, tuned in (("transmitting", sent), ("receiving", received))
        if not abs(tuned.dsp_hz) <= MAX_CARRIER_ERROR_HZ
    ]
    faults += [
        f"{what} {one:.4f} Hz for transmitting, {other:.4f} Hz for receiving"
        for what, one, other in (
            ("synthesizer", sent.rf_hz, received.rf_hz),
            ("carrier", sent.carrier_hz, received.carrier_hz),
        )
        if not abs(one - other) <= MAX_CARRIER_ERROR_HZ
    ]
    if not abs(received.carrier_hz - center_freq) <= MAX_CARRIER_OFFSET_HZ:
        faults.append(f"carrier {received.carrier_hz:.4f} Hz, but {center_freq:.4f} Hz was asked for")
    return faults
