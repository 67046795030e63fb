# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of a radio that make no sense, and frequencies that reciprocity forbids."""

import pytest
from gnuradio.dmimo.radio_settings import RadioPort, RadioSettings, Tuned, board_channels, carrier_faults

FREQ = 2.4e9
PORTS = [RadioPort(channel, FREQ, lo_offset_hz=1e6) for channel in range(3)]
# UHD: a synthesizer 1 MHz above the carrier is made up for by -1 MHz in a transmitter, called +1 MHz in a receiver.
TX, RX = Tuned(FREQ + 1e6, -1e6, FREQ), Tuned(FREQ + 1e6, 1e6, FREQ)


def test_equal_frequencies_are_no_fault():
    assert carrier_faults(PORTS, [TX] * 3, [RX] * 3) == []
    assert carrier_faults([], [], []) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rf_hz": FREQ}, ["synthesizer"]),
        ({"dsp_hz": 1e6}, ["digital frequency"]),
        ({"carrier_hz": FREQ + 1e-3}, ["carrier"]),
        ({"carrier_hz": float("nan")}, ["carrier"]),
        ({"rf_hz": FREQ, "dsp_hz": 0.0}, ["synthesizer", "digital frequency"]),  # the same carrier, made otherwise
    ],
)
def test_directions_that_differ_are_named(changes, named):
    (fault,) = carrier_faults(PORTS, [TX, TX._replace(**changes), TX], [RX] * 3)
    assert fault.startswith("channel 1: ")
    assert [what for what in ("synthesizer", "digital frequency", "carrier") if f"{what} " in fault] == named


def test_ports_that_were_asked_for_one_carrier_must_be_at_one():
    apart = FREQ + 0.5
    tx, rx = ([value, value, value._replace(carrier_hz=apart)] for value in (TX, RX))
    (fault,) = carrier_faults(PORTS, tx, rx)
    assert "channel 2: carrier 2400000000.5000 Hz, but 2400000000.0000 Hz on channel 0" in fault
    elsewhere = [*PORTS[:2], RadioPort(2, apart, lo_offset_hz=1e6)]
    assert carrier_faults(elsewhere, tx, rx) == []


def test_channels_count_through_the_boards():
    assert board_channels([2, 1, 2]) == [(0, 0), (0, 1), (1, 0), (2, 0), (2, 1)]


@pytest.mark.parametrize(
    ("nodes", "named"),
    [
        ({}, "nodes"),
        ({"ap1": []}, "nodes"),
        ({"ap1": PORTS[:1], "ap2": PORTS[:2]}, "channel 0"),
    ],
)
def test_nodes_need_ports_of_their_own(nodes, named):
    with pytest.raises(ValueError, match=named):
        RadioSettings("", 1e6, nodes)


@pytest.mark.parametrize(("options", "named"), [((-1, FREQ), "channel"), ((0, 0.0), "center_freq")])
def test_ports_need_a_channel_and_a_carrier(options, named):
    with pytest.raises(ValueError, match=named):
        RadioPort(*options)


def test_a_retune_changes_the_carrier_of_all_ports_and_nothing_else():
    settings = RadioSettings("a", 1e6, {"ap1": PORTS[:1], "ap2": PORTS[1:]}, settle_s=0.3)
    retuned = settings.retuned(FREQ + 1)
    assert [port.center_freq for port in retuned.ports] == [FREQ + 1] * len(PORTS)
    assert retuned.retuned(FREQ) == settings
    assert settings.retuned(None) is settings
    with pytest.raises(ValueError, match="center_freq"):
        settings.retuned(0.0)
