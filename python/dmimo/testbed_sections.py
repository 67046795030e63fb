# SPDX-License-Identifier: GPL-3.0-or-later
"""The sections of a testbed file as frozen dataclasses: their fields are its keys, their defaults its defaults.

Units and limits stand in `testbed.schema.json`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

SHARED_SOURCES = {"external", "mimo"}  # of the reference; not gpsdo: each board has its own


@dataclass(frozen=True)
class Panel:
    """Analog panel behind each port; `beams` are column indices of its DFT codebook."""

    num_antennas: int = 1
    beams: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Amplifier:
    """Power amplifiers of the ports: third order, `compression` being a3/a1, or the GaN polynomial of 9th order.

    Complex numbers are (real, imaginary). `saturation` None: none for third order, 1 for the polynomial.
    """

    kind: Literal["third_order", "gan"] = "third_order"
    compression: tuple[float, ...] = (0.0, 0.0)
    back_off_db: float = 0.0
    saturation: float | None = None
    drive_std_db: float = 0.0
    spread: float = 0.0
    memory: tuple[tuple[float, ...], ...] = ()


@dataclass(frozen=True)
class Adc:
    """Analog-to-digital converter with `bits` per real component, clipping at `full_scale`."""

    bits: int = 12
    full_scale: float = 8.0


@dataclass(frozen=True)
class Hardware:
    """True hardware of a simulated node."""

    phase: Literal["random", "zero"] = "random"
    gain_std_db: float = 0.0
    amplifier: Amplifier | None = None
    adc: Adc | None = None
    noise_figure_db: float = 0.0


@dataclass(frozen=True)
class Oscillator:
    """Local oscillator of a simulated node."""

    phase: Literal["random", "zero"] = "random"
    cfo_hz: float = 0.0
    linewidth_hz: float = 0.0
    drift_hz: float = 0.0
    drift_period_s: float = 100.0


@dataclass(frozen=True)
class Clock:
    """Sample clock of a simulated node; with `follow_cfo` its rate error is cfo_hz / center_freq."""

    offset_samples: float = 0.0
    follow_cfo: bool = False
    loop_delay_samples: float = 0.0


@dataclass(frozen=True)
class Array:
    """Where the ports of a node stand: port row * columns + column on a rectangular grid."""

    rows: int
    columns: int
    spacing_wavelengths: float = 0.5


@dataclass(frozen=True)
class NodeRadio:
    """Radio and channels of a node; `name` None: the first radio, no `channels`: the next free ones.

    The lists have an entry for each port, one for all of them, or none: the node's gain, the testbed's carrier, the
    device's own antenna, a loop delay of 0.
    """

    name: str | None = None
    channels: tuple[int, ...] = ()
    tx_antennas: tuple[str, ...] = ()
    rx_antennas: tuple[str, ...] = ()
    tx_gains_db: tuple[float, ...] = ()
    rx_gains_db: tuple[float, ...] = ()
    center_freqs: tuple[float, ...] = ()
    loop_delays_samples: tuple[int, ...] = ()


@dataclass(frozen=True)
class Node:
    """Access point or user terminal."""

    name: str
    kind: Literal["ap", "ue"] = "ap"
    num_ports: int = 1
    tx_gain_db: float = 0.0
    rx_gain_db: float = 0.0
    position_m: tuple[float, ...] = (0.0, 0.0, 0.0)
    panel: Panel = Panel()
    array: Array | None = None
    hardware: Hardware = Hardware()
    oscillator: Oscillator = Oscillator()
    clock: Clock = Clock()
    radio: NodeRadio = NodeRadio()

    def gains_db(self, frontend: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Transmit and receive gain setting of each port [dB]; a radio's ports may have their own."""
        radio = self.radio if frontend == "usrp" else NodeRadio()
        return (per_port(radio.tx_gains_db, self.num_ports, self.tx_gain_db),
                per_port(radio.rx_gains_db, self.num_ports, self.rx_gain_db))


@dataclass(frozen=True)
class Radio:
    """A multi_usrp: one or several boards; `args` are UHD's device arguments, subdevices are given for each board."""

    name: str = "radio"
    args: str = ""
    clock_source: str = "external"
    time_source: str = "external"
    tx_subdevs: tuple[str, ...] = ()
    rx_subdevs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Usrp:
    """The front end of real radios: what they are, and how far ahead of time they are told what to send."""

    radios: tuple[Radio, ...] = (Radio(),)
    tx_amplitude: float = 0.2
    lead_s: float = 0.1
    reactive_lead_s: float = 0.05
    settle_s: float = 0.1
    loop_delay: Literal["measured", "given"] = "measured"

    def radio_of(self, node: Node) -> str:
        """Name of the radio that a node's ports belong to."""
        return self.radios[0].name if node.radio.name is None else node.radio.name

    @property
    def shares_reference(self) -> bool:
        """Whether all boards run on one frequency reference: a cable brings it to them, or there is a single board."""
        sources = [radio.clock_source for radio in self.radios]
        return set(sources) <= SHARED_SOURCES or sources == ["internal"]  # boards of one radio cannot be internal


@dataclass(frozen=True)
class Hosts:
    """Nodes that run on other hosts: `remote` is keyed by host; `quorum` None: all of them must come."""

    remote: dict[str, tuple[str, ...]] = field(default_factory=dict)
    bind: str = "127.0.0.1"
    coordinator: str = "127.0.0.1"
    port: int = 5560
    quorum: int | None = None
    timeout_s: float = 30.0
    heartbeat_s: float = 1.0


@dataclass(frozen=True)
class Coupling:
    """Law by which the coupling between the ports of a node falls with their distance; None: nothing random in it."""

    kind: Literal["linear", "log_distance"] = "linear"
    gain_db: float = -17.5
    slope_db_per_wavelength: float = 3.0
    exponent: float = 2.5
    reference_wavelengths: float = 0.5
    perturbation_db: float | None = None
    nonreciprocity_db: float | None = None


@dataclass(frozen=True)
class Propagation:
    """Reciprocal propagation between all nodes; `pair_gain_db` is keyed "ap1-ap2", in either order.

    Between the ports of one node there is the gain `coupling_db`, or the law `coupling`; both None: they do not hear
    each other. Even and odd ports are two polarisations where `cross_polarisation_db` says how much weaker they hear
    each other.
    """

    kind: Literal["rayleigh", "geometric"] = "rayleigh"
    path_gain_db: float = 0.0
    delays: bool = True
    num_taps: int = 1
    delay_spread_s: float = 0.0
    num_paths: int = 8
    rice_factor_db: float = 6.0
    pair_gain_db: dict[str, float] = field(default_factory=dict)
    blocked_pairs: tuple[tuple[str, ...], ...] = ()
    coupling_db: float | None = None
    coupling: Coupling | None = None
    cross_polarisation_db: float | None = None

    @property
    def couples_ports(self) -> bool:
        """Whether the ports of a node hear each other."""
        return self.coupling_db is not None or self.coupling is not None


@dataclass(frozen=True)
class Noise:
    """Receiver noise, 10^(-snr_db/10) per sample and port; None: no noise."""

    snr_db: float | None = 20.0


@dataclass(frozen=True)
class Fault:
    """One injected fault."""

    kind: Literal["lost_slot", "dead_port", "nan", "silent", "lost_ack"]
    node: str
    slot: int = 0
    port: int = 0
    count: int = 1


@dataclass(frozen=True)
class Slots:
    """Time grid and sounding symbols; `receive_delay_samples` is how long everything takes to arrive."""

    slot_samples: int = 256
    lead_samples: int = 16
    prefix_samples: int = 32
    pilot_samples: int = 128
    num_subcarriers: int = 96
    num_subbands: int = 12
    receive_delay_samples: int = 0
    window: int = 16
    max_attempts: int = 3
    watchdog_s: float = 20.0


@dataclass(frozen=True)
class BeamSweep:
    """Beam sweep; `beams` limits the beam pairs per pair of nodes, None sweeps all."""

    beams: int | None = None
    passes: int = 1


@dataclass(frozen=True)
class CalibrationSettings:
    """Estimator of the calibration; `reference` None in a file means the first access point."""

    method: Literal["argos", "argos_mean", "least_squares", "tls", "spanning_tree", "ml"] = "ml"
    reference: str | None = None
    frequency: bool = True
    delay: bool = True


@dataclass(frozen=True)
class Verification:
    """Joint transmission to a user terminal; `ue` None in a file means the first one.

    `cooperating` are the numbers of ports whose SNR together, each at its full power, is measured.
    """

    ue: str | None = None
    uplink_repeats: int = 4
    repeats: int = 8
    random_starts: int = 32
    cooperating: tuple[int, ...] = ()


@dataclass(frozen=True)
class BeamSync:
    """Synchronisation of carrier and phase; `leader` None in a file means the first access point.

    `linewidth_hz`, `drift_hz` and `drift_period_s` are what is assumed of each oscillator: from its data sheet.
    """

    leader: str | None = None
    sync_samples: int = 128
    waveform: Literal["ones", "gaussian", "sinusoid"] = "ones"
    returns: Literal["amplify", "matched"] = "amplify"
    leader_noise_db: float = 0.0
    rounds: int = 1
    multiplexing: Literal["sequence", "subbands"] = "sequence"
    guard_bins: int = 4
    frequency_repeats: int = 8
    max_offset_hz: float | None = None
    pilot_share: float = 1.0
    joint: bool = True
    timing: bool = False
    preamble_samples: int = 1024
    max_delay_samples: int = 1200
    internal_calibration: Literal["ml", "argos", "none"] = "ml"
    internal_repeats: int = 4
    budget_deg: float = 10.0
    linewidth_hz: float = 0.001
    drift_hz: float = 0.1
    drift_period_s: float = 100.0
    min_interval_s: float = 0.05
    max_interval_s: float = 60.0
    watches: int = 3
    resynchronise: bool = True
    duration_s: float = 10.0


@dataclass(frozen=True)
class Multiuser:
    """Joint transmission to several user terminals at once; no `ues` means all of them."""

    ues: tuple[str, ...] = ()
    precoder: Literal["zero_forcing", "mrt", "regularised_zero_forcing"] = "zero_forcing"
    uplink_repeats: int = 4
    repeats: int = 4
    random_starts: int = 8


@dataclass(frozen=True)
class Bidirectional:
    """Calibration of access points and user terminals by SRS, CSI-RS and CARS; no `calibrating` means all terminals.

    `linewidth_hz`, `drift_hz` and `drift_period_s` are what is assumed of each oscillator: from its data sheet.
    """

    calibrating: tuple[str, ...] = ()
    estimator: Literal["joint_ml", "ml_tls"] = "joint_ml"
    form: Literal["inverse", "conjugate", "phase"] = "inverse"
    fade_limit_db: float = 20.0
    max_delay_s: float | None = None
    max_cfo_hz: float | None = None
    pattern_s: float = 0.625e-3
    patterns: int = 8
    calibrate: Literal["always", "on_demand"] = "always"
    budget_deg: float = 5.0
    tracking: Literal["kalman", "wideband", "none"] = "kalman"
    linewidth_hz: float = 0.001
    drift_hz: float = 0.1
    drift_period_s: float = 100.0
    uplink: bool = True
    keep_csi: bool = False


@dataclass(frozen=True)
class MutualCoupling:
    """Amplifiers and reciprocity of an array from what its ports hear of each other.

    One port at a time sends `num_pilots` pilots, each held for `hold_samples`, of which the first and last
    `guard_samples` are left out. `peak_db` is the largest pilot's power above that of samples of unit power.
    """

    num_pilots: int = 100
    design: Literal["uniform", "data_like", "two_level"] = "uniform"
    peak_db: float = 11.0
    order: int = 3
    memory_depth: int = 1
    repeats: int = 1
    linear_repeats: int = 1
    hold_samples: int = 1
    guard_samples: int = 0
    predistort: bool = True
    calibration: Literal["all_pairs", "ratio", "single_stage"] = "all_pairs"
    full_scale: float | None = None


@dataclass(frozen=True)
class Linearity:
    """How a user terminal hears each array's joint transmission; `ue` None in a file means that of `verification`."""

    ue: str | None = None
    repeats: int = 32
    modulation: Literal["qam16", "qpsk", "gaussian"] = "qam16"
    power_db: float = 0.0
    guard_subcarriers: int = 0


def per_port(values: Sequence[Any], num_ports: int, default: Any) -> tuple[Any, ...]:
    """Value of each port from a list with an entry for each, one for all, or none."""
    return tuple(values) if len(values) == num_ports else (values[0] if values else default,) * num_ports
