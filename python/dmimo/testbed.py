# SPDX-License-Identifier: GPL-3.0-or-later
"""The testbed file: nodes, propagation, time grid and calibration run, as validated frozen dataclasses.

The keys of the YAML file are the fields of the dataclasses below. Types, ranges and choices stand in the published
JSON Schema `testbed.schema.json`, which also lets an editor complete the file::

    # yaml-language-server: $schema=.../testbed.schema.json

What a schema cannot say (names that refer to each other, symbols that must fit a slot) is checked in
`testbed_checks`. Every error is one line: file, line, key, value and what is allowed.
"""

import hashlib
import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal

from . import testbed_checks, testbed_yaml
from .testbed_yaml import TestbedError

__all__ = ["Testbed", "TestbedError", "fingerprint", "identity", "load", "parse", "port_names", "to_dict"]

VERSION = 1  # of the file format


@dataclass(frozen=True)
class Panel:
    """Analog panel behind each port; `beams` are column indices of its DFT codebook."""

    num_antennas: int = 1
    beams: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Amplifier:
    """Third-order amplifier: `compression` is a3/a1 as (real, imaginary)."""

    compression: tuple[float, ...] = (0.0, 0.0)


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
class Node:
    """Access point or user terminal."""

    name: str
    kind: Literal["ap", "ue"] = "ap"
    num_ports: int = 1
    tx_gain_db: float = 0.0
    rx_gain_db: float = 0.0
    position_m: tuple[float, ...] = (0.0, 0.0, 0.0)
    panel: Panel = Panel()
    hardware: Hardware = Hardware()
    oscillator: Oscillator = Oscillator()
    clock: Clock = Clock()


@dataclass(frozen=True)
class Propagation:
    """Reciprocal propagation between all nodes; `pair_gain_db` is keyed "ap1-ap2", in either order.

    `coupling_db` is the mean gain between the ports of one node; None: they do not hear each other. Even and odd ports
    are two polarisations where `cross_polarisation_db` says how much weaker they hear each other.
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
    cross_polarisation_db: float | None = None


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
class Testbed:
    """One distributed MIMO testbed; `recording` is the directory that the front end "replay" takes its samples from."""

    __test__ = False  # not a test class, whatever its name

    nodes: tuple[Node, ...]
    name: str = ""
    seed: int = 1
    frontend: Literal["simulated", "replay"] = "simulated"
    recording: str | None = None
    samp_rate: float = 1.0e6
    center_freq: float = 3.5e9
    propagation: Propagation = field(default_factory=Propagation)
    noise: Noise = Noise()
    faults: tuple[Fault, ...] = ()
    slots: Slots = Slots()
    beam_sweep: BeamSweep = BeamSweep()
    calibration: CalibrationSettings = CalibrationSettings()
    verification: Verification | None = None
    multiuser: Multiuser | None = None
    beamsync: BeamSync | None = None
    bidirectional: Bidirectional | None = None

    @property
    def aps(self) -> tuple[Node, ...]:
        """The access points, in file order."""
        return tuple(node for node in self.nodes if node.kind == "ap")

    @property
    def ues(self) -> tuple[Node, ...]:
        """The user terminals, in file order."""
        return tuple(node for node in self.nodes if node.kind == "ue")

    def node(self, name: str) -> Node:
        """Return the node called `name`; KeyError when there is none."""
        for node in self.nodes:
            if node.name == name:
                return node
        raise KeyError(name)


def load(path: str | Path) -> Testbed:
    """Return the testbed of a YAML file; TestbedError, one line, when it cannot be used."""
    return parse(testbed_yaml.read(path), source=str(path))


def parse(text: str, source: str = "<string>") -> Testbed:
    """Return the testbed of a YAML text; `source` is the file name in errors."""
    document = testbed_yaml.compose(text, source)
    testbed_checks.check_schema(document)
    data = dict(document.data)
    del data["version"]
    defaults = data.pop("node_defaults", {})
    data["nodes"] = [_merge(defaults, node) for node in data["nodes"]]
    testbed_checks.check_names(document, data["nodes"])
    _fill_names(data)
    testbed = _build(Testbed, data)
    testbed_checks.check(document, testbed)
    return testbed


def to_dict(testbed: Testbed) -> dict[str, Any]:
    """Return the testbed as plain data, every default written out; its YAML parses to an equal testbed."""
    return {"version": VERSION, **_plain(asdict(testbed))}


def port_names(testbed: Testbed, names: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the calibrated ports in the order of c: ``("ap1:0", "ap1:1", "ap2:0", ...)``.

    Those of all access points, or of the nodes `names` in the order of the file.
    """
    nodes = [node for node in testbed.nodes if node.name in names] if names else testbed.aps
    return tuple(f"{node.name}:{port}" for node in nodes for port in range(node.num_ports))


def identity(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a calibration depends on, out of a configuration made by `to_dict`.

    These are the rate and frequency, and the name, number of ports and gain settings of every access point. User
    terminals, beams, propagation and the settings of the run may change without a calibration becoming wrong.
    """
    keys = ("name", "num_ports", "tx_gain_db", "rx_gain_db")
    aps = [{key: node[key] for key in keys} for node in configuration["nodes"] if node["kind"] == "ap"]
    return {"aps": aps, "center_freq": configuration["center_freq"], "samp_rate": configuration["samp_rate"]}


def fingerprint(testbed: Testbed) -> str:
    """Return the SHA-256 of what a calibration depends on, see `identity`."""
    text = json.dumps(identity(to_dict(testbed)), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _merge(defaults: Mapping[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` over `defaults`, mapping by mapping; lists and scalars are replaced whole."""
    merged = dict(defaults)
    for key, value in values.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _fill_names(data: dict[str, Any]) -> None:
    """Put the first access point, and the first user terminal or all of them, where the file leaves them open."""
    for section, key, kind in (("calibration", "reference", "ap"), ("verification", "ue", "ue"),
                               ("beamsync", "leader", "ap")):
        settings = data.get(section, {} if section == "calibration" else None)
        if settings is not None and settings.get(key) is None:
            first = next((node["name"] for node in data["nodes"] if node.get("kind", "ap") == kind), None)
            data[section] = {**settings, key: first}
    every = [node["name"] for node in data["nodes"] if node.get("kind", "ap") == "ue"]
    for section, key in (("multiuser", "ues"), ("bidirectional", "calibrating")):
        if data.get(section) is not None and not data[section].get(key):
            data[section] = {**data[section], key: every}


def _build(kind: Any, value: Any) -> Any:
    """Return plain data as an instance of a dataclass, or of one of the types its fields have."""
    if is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        return kind(**{f.name: _build(hints[f.name], value[f.name]) for f in fields(kind) if f.name in value})
    origin = typing.get_origin(kind)
    if origin is tuple:
        return tuple(_build(typing.get_args(kind)[0], item) for item in value)
    if origin is dict:
        return {key: _build(typing.get_args(kind)[1], item) for key, item in value.items()}
    if origin in (types.UnionType, typing.Union):
        return None if value is None else _build(typing.get_args(kind)[0], value)
    return kind(value) if kind in (int, float) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
