# SPDX-License-Identifier: GPL-3.0-or-later
"""What to do about what a check has found, for the radio at hand.

Sources: the UHD manual's pages on device synchronisation, timed commands, transports and the B2x0, X3x0 and N3xx series
(files.ettus.com/manual), Ettus' application note AN-5501 on packet flow errors, and EttusResearch/uhd issue 610.
"""

import re

INSTALL_UHD = ("Install GNU Radio with its USRP blocks and UHD: sudo apt install gnuradio uhd-host. They belong to the "
               "system's interpreter: run /usr/bin/python3 apps/dmimo, or make the virtual environment with "
               "--system-site-packages.")
NO_USRP_SECTION = """\
add a section usrp with its radios, and to each node the channels that are its ports, such as

usrp:
  radios:
    - {name: rack, args: "type=b200", clock_source: external, time_source: external}
nodes:
  - {name: ap1, num_ports: 2, radio: {name: rack, channels: [0, 1]}}"""

_FAMILIES = {"b2": "b200", "x3": "x300", "n3": "n3xx", "x4": "x4xx", "e3": "e3xx", "n2": "usrp2", "usrp2": "usrp2"}


def family(name: str) -> str:
    """UHD's word for the family of a device (b200, x300, n3xx ...), from its arguments or a board's name; or empty."""
    given = re.search(r"(?:^|,)\s*type=([^,]*)", name)
    word = (given.group(1) if given else name).strip().lower()
    return next((known for start, known in _FAMILIES.items() if word.startswith(start)), "")


def _join(*parts: str) -> str:
    return " ".join(part for part in parts if part)


def not_found(device_args: str) -> str:
    """No device answers."""
    return _join(
        f'Look with: uhd_find_devices --args="{device_args}", and without --args for all that there is.',
        {"b200": "USB: is it plugged in and powered? Without root it needs UHD's udev rules (uhd-usrp.rules in "
                 "/usr/libexec/uhd/utils), and its firmware: sudo uhd_images_downloader.",
         "x300": "Network: ping its address; the host's interface needs an address in the same subnet (192.168.10.1 "
                 "for a new X310 on its 1 GbE port), and the firewall must let UDP pass.",
         "n3xx": "Network: ping its address; its SFP ports come as 192.168.10.2 and 192.168.20.2, the host needs an "
                 "address in the same subnet, and the firewall must let UDP pass."}.get(family(device_args), ""),
        "Then correct args in the testbed file: type, and addr or serial.")


def not_opened(kind: str) -> str:
    """The device was found, but it cannot be opened."""
    return ("If another program holds the radio, end it. If the words are about images or compatibility numbers, FPGA "
            "and UHD do not fit: sudo uhd_images_downloader, then "
            f'uhd_image_loader --args="type={kind or "..."},addr=..." where the radio keeps its image itself (not a '
            "B2xx), and switch it off and on. uhd_usrp_probe with the same arguments shows what the radio has.")


def refused(kind: str) -> str:
    """The device does not take a setting of the testbed file."""
    return _join(
        "Correct the testbed file where the words say so: samp_rate, channels, subdevices, antennas or sources.",
        {"b200": "A B2xx takes any master_clock_rate from 5e6 to 61.44e6 (two channels: 30.72e6) of which samp_rate is "
                 "an integer part. It makes some rates, such as 30.72e6, only nearly: give samp_rate as in the words, "
                 "with six decimals. Several B2xx are several radios: each has its own entry under usrp.radios.",
         "x300": "An X3x0 runs at master_clock_rate=200e6 or 184.32e6 in args; samp_rate must be an integer part.",
         "n3xx": "An N300 or N310 runs at master_clock_rate=122.88e6, 125e6 or 153.6e6 in args; samp_rate must be an "
                 "integer part."}.get(kind, "samp_rate must be an integer part of the master clock rate."))


def reference(clock_source: str, kind: str) -> str:
    """A board is not locked to its reference."""
    if clock_source == "gpsdo":
        return ("Is the GPSDO fitted, and its antenna under open sky? It needs minutes to lock after power on. Boards "
                "with a GPSDO each agree only while all of them are locked to GPS.")
    return _join(
        f"Is the cable of the {'10 MHz' if kind != 'n3xx' else '10, 20 or 25 MHz'} reference in the reference input of "
        "the named board, and its source switched on? An OctoClock shows by an LED whether it has a reference itself.",
        {"b200": "A B2xx takes at most +15 dBm there."}.get(kind, ""),
        "A single board alone may run on clock_source: internal.")


def pps(time_source: str) -> str:
    """A board sees no PPS edge, or another one than the others."""
    if time_source == "gpsdo":
        return "Is the GPSDO fitted and locked? Otherwise share one PPS (time_source: external)."
    return ("Is the cable of the PPS in the PPS input of the named board, and does its source give pulses? All boards "
            "take the PPS of one source, such as an OctoClock, over cables of equal length; the same box gives the "
            "10 MHz. A single board alone may run on time_source: internal.")


def common_time(kind: str) -> str:
    """Boards did not take the same time at the same edge."""
    return _join(
        "The named board missed the edge, or takes it in another cycle: PPS and 10 MHz must come from one source over "
        "cables of equal length, with edges that are steep and high enough. Switch the board off and on and try again.",
        {"usrp2": 'On N2x0 try time_source: _external_, the other clock edge.'}.get(kind, ""))


def synthesizers(kind: str) -> str:
    """A synthesizer does not lock, or the directions are at different frequencies."""
    return _join(
        "Not locked: is center_freq within the range of the board (uhd_usrp_probe), and the reference locked? A longer "
        "usrp.settle_s gives it more time. Another carrier than the synthesizers can make, or "
        "unequal ones: choose a rounder center_freq, such as a multiple of 1 MHz.",
        {"b200": "On a B2xx the two channels of a direction share one synthesizer: equal center_freqs."}.get(kind, ""))


def streams() -> str:
    """Receive streams did not begin as asked."""
    return ("The radio started without its common time, or samples do not arrive. Run uhd_usrp_probe, switch the radio "
            "off and on, and look at the cable or network between host and radio.")


def not_in_time(kind: str) -> str:
    """Bursts come too late to the radio, or samples get lost on the way."""
    return _join("Give them more time (usrp.lead_s, usrp.reactive_lead_s), or the host less to do:", performance(kind))


def performance(kind: str) -> str:
    """Advice on a host that is too slow for its radio."""
    return _join(
        "CPU governor to performance (sudo cpupower frequency-set -g performance), no other load, a smaller samp_rate.",
        {"b200": "USB: a USB 3 port of its own without a hub (uhd_usrp_probe says USB 3), and more buffers in "
                 "args: num_recv_frames=512,num_send_frames=512.",
         "": "Network or USB: larger buffers, see the UHD manual on transports."}.get(
             kind, "Network: MTU 9000 on the host's interface (then UHD takes frames of 8000 bytes; "
                   "recv_frame_size and send_frame_size in args set them), sudo sysctl -w net.core.rmem_max=33554432 "
                   "net.core.wmem_max=33554432, larger NIC rings (ethtool -G), num_recv_frames=512 in args."))


def not_heard() -> str:
    """A port's bursts reach no receiver."""
    return ("Are antennas on the ports that the file names (tx_antennas, rx_antennas), near enough? Otherwise raise "
            "tx_gains_db, rx_gains_db or usrp.tx_amplitude, or connect a cable with an attenuator of 30 dB or more.")


def overdriven() -> str:
    """A receiver clips."""
    return "Lower rx_gains_db or tx_gains_db of the named ports, or put an attenuator between them."


def wrong_delay() -> str:
    """A burst arrives at another time than the testbed file says."""
    return ("Correct radio.loop_delays_samples of the node in the testbed file, or let it be measured: "
            "usrp.loop_delay: measured.")


NO_TIMED_TUNE = ("b200", "n3xx")  # kinds of devices that have none


def timed_tune(kind: str) -> str:
    """A tune did not happen at its time."""
    return {
        "b200": "No fault of your set-up: the transceiver of a B2xx is tuned at once, whatever the command time. Its "
                "phase is new after each tune, so calibrate after each start and retune.",
        "x300": "UHD 4.3 has a fault with timed commands on the X310 (EttusResearch/uhd issue 610): take a newer UHD "
                "with its FPGA image. Until then calibrate after each start and retune, and set usrp.settle_s above "
                "the time given here.",
        "n3xx": "The transceiver of an N3xx is tuned by its own processor, not at the command time. Calibrate after "
                "each start and retune, and set usrp.settle_s above the time given here.",
    }.get(kind, "This radio does not tune when it is told to. Calibrate after each start and retune, and set "
                "usrp.settle_s above the time given here.")


def undecided(noisy: bool) -> str:
    """The retunes do not tell whether the phase comes back."""
    return "Measure again with more --retunes" + (
        " and more signal: higher gains or nearer antennas." if noisy else ": these few may be either.")


def phase(quantum_deg: int, kind: str) -> str:
    """The phase does not come back after a retune."""
    return _join(
        "A calibration is good until the next retune, start or gain change. Runs of dmimo begin a new epoch each time, "
        "measure anew and refuse calibrations of another epoch; do the same in your own flowgraphs.",
        "" if quantum_deg == 0 else f"One phase then tells which of the {360 // quantum_deg} states it is.",
        {"x300": "UBX and SBX boards keep their phase between boards when tuned by timed commands; other boards do "
                 "not.",
         "b200": "A B2xx has no means to bring it back."}.get(kind, ""))


def unanswered() -> str:
    """The radio stopped answering."""
    return ("Look at its power, its cable and the network or USB port between (sudo dmesg | tail), switch it off and "
            "on, and run this again. The log of UHD is beside doctor.json with --output.")
