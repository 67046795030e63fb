# SPDX-License-Identifier: GPL-3.0-or-later
"""The testbed file: nodes, propagation, time grid and calibration run, as validated frozen dataclasses.

The keys of the YAML file are the fields of `Testbed` and of the dataclasses in `testbed_sections`. Types, ranges and
choices stand in the published JSON Schema `testbed.schema.json`, which also lets an editor complete the file::

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
from .testbed_sections import (
    Adc,
    Amplifier,
    Array,
    BeamSweep,
    BeamSync,
    Bidirectional,
    CalibrationSettings,
    Clock,
    Coupling,
    Fault,
    Hardware,
    Hosts,
    Linearity,
    Multiuser,
    MutualCoupling,
    Node,
    NodeRadio,
    Noise,
    Oscillator,
    Panel,
    Propagation,
    Radio,
    Slots,
    Usrp,
    Verification,
)
from .testbed_yaml import TestbedError

__all__ = [
    "Adc", "Amplifier", "Array", "BeamSweep", "BeamSync", "Bidirectional", "CalibrationSettings", "Clock", "Coupling",
    "Fault", "Hardware", "Hosts", "Linearity", "Multiuser", "MutualCoupling", "Node", "NodeRadio", "Noise",
    "Oscillator", "Panel", "Propagation", "Radio", "Slots", "Testbed", "TestbedError", "Usrp", "Verification",
    "fingerprint", "identity", "load", "parse", "port_names", "to_dict",
]  # fmt: skip

VERSION = 1  # of the file format


@dataclass(frozen=True)
class Testbed:
    """One distributed MIMO testbed; `recording` is the directory that the front end "replay" takes its samples from."""

    __test__ = False  # not a test class, whatever its name

    nodes: tuple[Node, ...]
    name: str = ""
    seed: int = 1
    frontend: Literal["simulated", "usrp", "replay"] = "simulated"
    recording: str | None = None
    usrp: Usrp | None = None
    hosts: Hosts | None = None
    samp_rate: float = 1.0e6
    center_freq: float = 3.5e9
    propagation: Propagation = field(default_factory=Propagation)
    noise: Noise = field(default_factory=Noise)
    faults: tuple[Fault, ...] = ()
    slots: Slots = field(default_factory=Slots)
    beam_sweep: BeamSweep = field(default_factory=BeamSweep)
    calibration: CalibrationSettings = field(default_factory=CalibrationSettings)
    verification: Verification | None = None
    multiuser: Multiuser | None = None
    beamsync: BeamSync | None = None
    bidirectional: Bidirectional | None = None
    mutual_coupling: MutualCoupling | None = None
    linearity: Linearity | None = None

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
    testbed_checks.check_names(document, data)
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
    terminals, beams, propagation and the settings of the run may change without a calibration becoming wrong. With
    USRPs, the radios and the access points' channels belong to it, too.
    """
    radios = {} if configuration["frontend"] != "usrp" else {"radios": configuration["usrp"]["radios"]}
    keys = ("name", "num_ports", "tx_gain_db", "rx_gain_db", *(["radio"] if radios else []))
    aps = [{key: node[key] for key in keys} for node in configuration["nodes"] if node["kind"] == "ap"]
    return {"aps": aps, "center_freq": configuration["center_freq"], "samp_rate": configuration["samp_rate"], **radios}


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
    """Put the first access point, and the first user terminal or all of them, where the file leaves them open.

    Linearity is measured where verification is.
    """
    for section, key, kind in (("calibration", "reference", "ap"), ("verification", "ue", "ue"),
                               ("beamsync", "leader", "ap")):
        settings = data.get(section, {} if section == "calibration" else None)
        if settings is not None and settings.get(key) is None:
            first = next((node["name"] for node in data["nodes"] if node.get("kind", "ap") == kind), None)
            data[section] = {**settings, key: first}
    if data.get("linearity") is not None and data["linearity"].get("ue") is None:
        data["linearity"] = {**data["linearity"], "ue": (data.get("verification") or {}).get("ue")}
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
