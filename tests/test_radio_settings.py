# SPDX-License-Identifier: GPL-3.0-or-later
"""Settings of a radio that make no sense, and frequencies that reciprocity forbids."""

import re

import pytest
from gnuradio.dmimo.radio_settings import (
    RadioPort,
    RadioSettings,
    Tuned,
    board_channels,
    carrier_faults,
    unequal_carriers,
)

FREQ = 2.4e9
PORTS = [RadioPort(channel, FREQ) for channel in range(3)]
TUNED = Tuned(FREQ + 2, 0.0, FREQ + 2)  # as near as the synthesizer comes


def faults(tx=None, rx=None):
    """Faults with these changes of channel 1."""
    sent, received = (TUNED._replace(**(changes or {})) for changes in (tx, rx))
    return carrier_faults(PORTS, [TUNED, sent, TUNED], [TUNED, received, TUNED])


def test_equal_frequencies_are_no_fault():
    assert faults() == carrier_faults([], [], []) == []
    assert faults({"dsp_hz": -5e-5, "rf_hz": FREQ + 2.00005}, {"carrier_hz": FREQ + 1.99995}) == []


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"rf_hz": FREQ}, ["synthesizer"]),
        ({"dsp_hz": 1e-3}, ["digital frequency"]),
        ({"dsp_hz": -1e-3}, ["digital frequency"]),
        ({"dsp_hz": float("nan")}, ["digital frequency"]),
        ({"carrier_hz": FREQ + 2.001}, ["carrier"]),
        ({"carrier_hz": float("nan")}, ["carrier"]),
        ({"rf_hz": FREQ, "dsp_hz": 2.0}, ["digital frequency", "synthesizer"]),  # the same carrier, made otherwise
    ],
)
def test_directions_that_differ_are_named(changes, named):
    (fault,) = faults(changes)
    assert fault.startswith("channel 1: ")
    parts = fault.removeprefix("channel 1: ").split("; ")
    assert [re.match("digital frequency|synthesizer|carrier", part)[0] for part in parts] == named
    assert all("for transmitting" in part for part in parts)


def test_equal_digital_frequencies_of_both_directions_are_refused_all_the_same():
    # UHD: a synthesizer 1 MHz above the carrier is made up for by -1 MHz in a transmitter, called +1 MHz in a receiver.
    above = {"rf_hz": FREQ + 1e6 + 2}
    (fault,) = faults({**above, "dsp_hz": -1e6}, {**above, "dsp_hz": 1e6})
    assert "digital frequency -1000000.0000 Hz for transmitting" in fault
    assert "digital frequency 1000000.0000 Hz for receiving" in fault
    assert "starts anew with each burst" in fault


def test_a_carrier_that_is_not_the_one_asked_for_is_refused():
    off = Tuned(FREQ + 2e6, 0.0, FREQ + 2e6)
    (fault,) = carrier_faults(PORTS[:1], [off], [off])
    assert fault == "channel 0: carrier 2402000000.0000 Hz, but 2400000000.0000 Hz was asked for"


def test_ports_that_were_asked_for_one_carrier_must_be_at_one():
    apart = FREQ + 0.5
    values = [TUNED, TUNED, TUNED._replace(carrier_hz=apart)]
    (fault,) = carrier_faults(PORTS, values, values)
    assert "channel 2: carrier 2400000000.5000 Hz, but 2400000002.0000 Hz on channel 0" in fault
    assert carrier_faults([*PORTS[:2], RadioPort(2, apart)], values, values) == []


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


def test_radios_on_one_reference_that_come_to_different_carriers_are_named():
    same = {"r1": [(2.4e9, 2.4e9 + 3), (5e9, 5e9)], "r2": [(5e9, 5e9), (2.4e9, 2.4e9 + 3)]}
    assert unequal_carriers(same) == ""
    text = unequal_carriers({**same, "r3": [(2.4e9, 2.4e9 + 2)]})
    assert "radio r3 came to 2400000002.0000 Hz, radio r1 to 2400000003.0000 Hz" in text
