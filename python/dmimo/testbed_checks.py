# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of a testbed file: the published JSON Schema first, then what a schema cannot say.

Each check raises `TestbedError` with the line of the value at fault; nothing here changes or fills in values.
"""

from __future__ import annotations

import difflib
import functools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema

from . import coupling_checks, radio_checks
from .testbed_yaml import Document, KeyPath, TestbedError, show

if TYPE_CHECKING:
    from .testbed import Node, Testbed

_TYPES = {
    "number": "a number",
    "integer": "an integer",
    "string": "text",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
_LIMITS = {
    "minimum": "must be at least {}",
    "exclusiveMinimum": "must be above {}",
    "maximum": "must be at most {}",
    "minItems": "must have at least {} entries",
    "maxItems": "must have at most {} entries",
    "maxLength": "must have at most {} characters",
}
NAME = "must be a name: a letter, then letters, digits and underscores"
FREE_KEYS = {"pair_gain_db": 'must name two nodes, as in "ap1-ap2"', "remote": NAME}


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    path = Path(__file__).with_name("testbed.schema.json")
    return jsonschema.Draft202012Validator(json.loads(path.read_text(encoding="utf-8")))


def check_schema(document: Document) -> None:
    """Raise TestbedError for the first thing in the document that the schema does not allow."""
    data = document.data
    if isinstance(data, Mapping) and "version" in data and data["version"] != 1:
        raise document.error(("version",), f"value {show(data['version'])}: unknown format version; allowed: 1")
    for path, value in _scalars(data, ()):
        if isinstance(value, float) and not math.isfinite(value):
            raise document.error(path, f"value {value}: must be a finite number")
    errors = [_schema_error(document, error) for error in _validator().iter_errors(data)]
    if errors:
        raise min(errors, key=lambda error: error[0])[1]


def _scalars(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _scalars(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _scalars(item, (*path, index))
    else:
        yield path, value


def _schema_error(document: Document, error: jsonschema.ValidationError) -> tuple[tuple[bool, int], TestbedError]:
    """Return the rank and the one-line form of a schema violation.

    They rank by line, but missing keys come last: a misspelt key is the better explanation of one.
    """
    path: KeyPath = tuple(error.absolute_path)
    if error.validator == "additionalProperties":
        path, problem = _unknown_key(document, path, error)
    elif error.validator == "required":
        missing = [key for key in error.validator_value if key not in error.instance]
        problem = f"required key missing: {', '.join(missing)}"
    else:
        problem = f"value {show(error.instance)}: {_requirement(path, error)}"
    return (error.validator == "required", document.line(path)), document.error(path, problem)


def _unknown_key(document: Document, path: KeyPath, error: jsonschema.ValidationError) -> tuple[KeyPath, str]:
    known = error.schema.get("properties")
    if known is None:  # a mapping with free keys
        (pattern,) = error.schema["patternProperties"]
        bad = next(key for key in error.instance if re.search(pattern, key) is None)
        return (*path, bad), FREE_KEYS[path[-1]]
    unknown = [key for key in error.instance if key not in known]
    key = min(unknown, key=lambda key: document.line((*path, key)))
    missing = [name for name in error.schema.get("required", ()) if name not in error.instance]
    close = difflib.get_close_matches(key, missing, n=1) or difflib.get_close_matches(key, known, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return (*path, key), f"unknown key; {hint}allowed: {', '.join(known)}"


def _requirement(path: KeyPath, error: jsonschema.ValidationError) -> str:
    """Return what the schema asks for, in words."""
    kind, limit = error.validator, error.validator_value
    if kind == "enum":
        words = [choice for choice in limit if isinstance(choice, str)]
        close = difflib.get_close_matches(str(error.instance), words, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        return f"{hint}allowed: {', '.join(str(choice) for choice in limit)}"
    if kind == "type":
        allowed = limit if isinstance(limit, list) else [limit]
        return "must be " + " or ".join(_TYPES[name] for name in allowed)
    if kind in _LIMITS:
        return _LIMITS[kind].format(f"{limit:.15g}")
    if kind == "uniqueItems":
        return "entries must be unique"
    if kind == "pattern":
        return NAME
    return error.message


def check_names(document: Document, data: Mapping[str, Any]) -> None:
    """Raise TestbedError when node names repeat or there are fewer access points than needed."""
    nodes = data["nodes"]
    first: dict[str, int] = {}
    for index, node in enumerate(nodes):
        path = ("nodes", index, "name")
        if node["name"] in first:
            line = document.line(("nodes", first[node["name"]], "name"))
            raise document.error(path, f"value {show(node['name'])}: must be unique; first on line {line}")
        first[node["name"]] = index
    num_aps = sum(node.get("kind", "ap") == "ap" for node in nodes)
    alone = data.get("mutual_coupling") is not None
    if num_aps < (1 if alone else 2):
        least = ("1 node of kind ap" if alone else
                 "2 nodes of kind ap, or a section mutual_coupling, with which one calibrates itself")
        raise document.error(("nodes",), f"{num_aps} access points; required: at least {least}")


def check(document: Document, testbed: Testbed) -> None:
    """Raise TestbedError for values that contradict each other."""
    _check_frontend(document, testbed)
    radio_checks.check(document, testbed)
    _check_panels(document, testbed)
    _check_arrays(document, testbed)
    _check_amplifiers(document, testbed)
    _check_pairs(document, testbed)
    _check_faults(document, testbed)
    _check_bidirectional(document, testbed)
    _check_roles(document, testbed)
    coupling_checks.check(document, testbed)
    _check_slots(document, testbed)
    _check_sweep(document, testbed)
    _check_beamsync(document, testbed)


def _check_frontend(document: Document, testbed: Testbed) -> None:
    if (testbed.frontend == "replay") is not bool(testbed.recording):
        problem = ("required with frontend: replay" if testbed.frontend == "replay" else
                   f"value {show(testbed.recording)}: only with frontend: replay")
        raise document.error(("recording",), problem)


def _check_reference(document: Document, path: KeyPath, name: str | None, nodes: Sequence[Node]) -> None:
    names = [node.name for node in nodes]
    if name is None and not names:
        raise document.error(path[:1], "the testbed has no user terminal; required: a node with kind: ue")
    if name not in names:
        close = difflib.get_close_matches(str(name), names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise document.error(path, f"value {show(name)}: no such node; {hint}allowed: {', '.join(names) or 'none'}")


def _check_panels(document: Document, testbed: Testbed) -> None:
    for index, node in enumerate(testbed.nodes):
        for position, beam in enumerate(node.panel.beams):
            if beam >= node.panel.num_antennas:
                path = _node_path(document, index, ("panel", "beams", position))
                limit = f"must be below num_antennas = {node.panel.num_antennas} of node {node.name}"
                raise document.error(path, f"value {beam}: {limit}; allowed: 0 to {node.panel.num_antennas - 1}")


def _check_arrays(document: Document, testbed: Testbed) -> None:
    for index, node in enumerate(testbed.nodes):
        array = node.array
        if array is not None and array.rows * array.columns != node.num_ports:
            path = _node_path(document, index, ("array",))
            problem = f"{array.rows} * {array.columns} places: must be num_ports = {node.num_ports} of node {node.name}"
            raise document.error(path, problem)
    if testbed.propagation.coupling is not None and testbed.propagation.coupling_db is not None:
        raise document.error(("propagation", "coupling"), "not together with coupling_db: each says how the ports of a "
                                                          "node hear each other; remove one of the two")


def _check_amplifiers(document: Document, testbed: Testbed) -> None:
    for index, node in enumerate(testbed.nodes):
        amplifier = node.hardware.amplifier
        if amplifier is None:
            continue
        if amplifier.kind != "third_order" and any(amplifier.compression):
            path = _node_path(document, index, ("hardware", "amplifier", "compression"))
            raise document.error(path, f"value {show(list(amplifier.compression))}: only with kind: third_order")
        if 1.0 + sum(complex(*gain) for gain in amplifier.memory) == 0.0:
            path = _node_path(document, index, ("hardware", "amplifier", "memory"))
            raise document.error(path, "1 and these gains must not add up to zero, which leaves no gain at band centre")


def _node_path(document: Document, index: int, path: KeyPath) -> KeyPath:
    """Return where the file sets a node's value: at the node itself or in node_defaults."""
    for start in (("nodes", index), ("node_defaults",)):
        if (*start, *path) in document.lines:
            return (*start, *path)
    return ("nodes", index, *path)


def _check_pairs(document: Document, testbed: Testbed) -> None:
    seen: dict[frozenset[str], str] = {}
    for key in testbed.propagation.pair_gain_db:
        path = ("propagation", "pair_gain_db", key)
        pair = key.split("-")
        _check_pair(document, path, pair, testbed)
        other = seen.setdefault(frozenset(pair), key)
        if other != key:
            raise document.error(path, f"same pair as {other}; a pair's gain holds for both directions")
    for index, pair in enumerate(testbed.propagation.blocked_pairs):
        _check_pair(document, ("propagation", "blocked_pairs", index), pair, testbed)


def _check_pair(document: Document, path: KeyPath, pair: Sequence[str], testbed: Testbed) -> None:
    for name in pair:
        _check_reference(document, path, name, testbed.nodes)
    if pair[0] == pair[1]:
        raise document.error(path, f"value {show(list(pair))}: a pair needs two different nodes")


def _check_faults(document: Document, testbed: Testbed) -> None:
    for index, fault in enumerate(testbed.faults):
        _check_reference(document, ("faults", index, "node"), fault.node, testbed.nodes)
        num_ports = testbed.node(fault.node).num_ports
        if fault.port >= num_ports:
            problem = f"value {fault.port}: node {fault.node} has {num_ports} ports; allowed: 0 to {num_ports - 1}"
            raise document.error(("faults", index, "port"), problem)


def _check_roles(document: Document, testbed: Testbed) -> None:
    _check_reference(document, ("calibration", "reference"), testbed.calibration.reference, testbed.aps)
    if testbed.verification is not None:
        _check_reference(document, ("verification", "ue"), testbed.verification.ue, testbed.ues)
        most = sum(ap.num_ports for ap in testbed.aps)
        for index, count in enumerate(testbed.verification.cooperating):
            if count > most:
                raise document.error(("verification", "cooperating", index), f"value {count}: the access points have "
                                     f"{most} ports; allowed: 1 to {most}")
    if testbed.multiuser is not None:
        _check_terminals(document, ("multiuser", "ues"), testbed.multiuser.ues, testbed)


def _check_terminals(document: Document, path: KeyPath, names: Sequence[str], testbed: Testbed) -> None:
    """Raise TestbedError unless `names`, all that there are where the file gives none, are user terminals."""
    if not names:
        raise document.error(path[:1], "the testbed has no user terminal; required: at least one")
    for index, name in enumerate(names):
        _check_reference(document, (*path, index), name, testbed.ues)


def _check_slots(document: Document, testbed: Testbed) -> None:
    slots = testbed.slots
    node = max(testbed.nodes, key=lambda node: node.num_ports)
    # In a bidirectional exchange all ports sound at once, on combs; over mutual coupling they send pilots of their own.
    in_turn = testbed.beamsync is not None or (testbed.bidirectional is None and testbed.mutual_coupling is None)
    count = node.num_ports if in_turn else 1
    symbol = slots.prefix_samples + slots.pilot_samples
    needed = slots.lead_samples + count * symbol + slots.prefix_samples + slots.receive_delay_samples
    if needed > slots.slot_samples:
        problem = (
            f"value {slots.slot_samples}: must be at least {needed} = lead_samples + {count} "
            f"port{'s' if count > 1 else ''} of {node.name} * (prefix_samples + pilot_samples) "
            f"+ prefix_samples{' + receive_delay_samples' if slots.receive_delay_samples else ''}"
        )
        raise document.error(("slots", "slot_samples"), problem)
    if slots.num_subcarriers >= slots.pilot_samples:
        problem = f"value {slots.num_subcarriers}: must be below pilot_samples = {slots.pilot_samples}"
        raise document.error(("slots", "num_subcarriers"), problem)
    if slots.num_subcarriers % slots.num_subbands:
        problem = f"value {slots.num_subbands}: must divide num_subcarriers = {slots.num_subcarriers}"
        raise document.error(("slots", "num_subbands"), problem)


def _check_sweep(document: Document, testbed: Testbed) -> None:
    if len(testbed.aps) < 2:
        return
    sizes = sorted(len(ap.panel.beams) for ap in testbed.aps)
    most = sizes[-1] * sizes[-2]
    if testbed.beam_sweep.beams is not None and testbed.beam_sweep.beams > most:
        problem = f"value {testbed.beam_sweep.beams}: a pair has at most {most} beam pairs; allowed: 1 to {most}, null"
        raise document.error(("beam_sweep", "beams"), problem)


def _check_beamsync(document: Document, testbed: Testbed) -> None:
    settings, slots = testbed.beamsync, testbed.slots
    if settings is None:
        return
    _check_reference(document, ("beamsync", "leader"), settings.leader, testbed.aps)
    beamed = [ap.name for ap in testbed.aps if len(ap.panel.beams) > 1]
    if beamed:
        raise document.error(("beamsync",), f"access points with beams ({', '.join(beamed)}): only digital ones, with "
                                            "one beam per port, can be synchronised")
    needed = slots.lead_samples + settings.sync_samples + 3 * slots.prefix_samples
    if needed > slots.slot_samples:
        problem = (f"value {settings.sync_samples}: slot_samples must be at least {needed} = lead_samples + "
                   "sync_samples + 3 * prefix_samples")
        raise document.error(("beamsync", "sync_samples"), problem)
    if slots.receive_delay_samples:
        raise document.error(("slots", "receive_delay_samples"), f"value {slots.receive_delay_samples}: must be 0 with "
                             "beamsync, whose bursts are expected within a prefix")
    many = any(ap.num_ports > 1 for ap in testbed.aps)
    unheard = testbed.frontend == "simulated" and not testbed.propagation.couples_ports
    if settings.internal_calibration != "none" and many and unheard:
        raise document.error(("beamsync", "internal_calibration"), f"value {settings.internal_calibration}: the ports "
                             "of a node must hear each other: propagation.coupling or propagation.coupling_db must "
                             "be set; allowed: none")
    if settings.min_interval_s > settings.max_interval_s:
        problem = f"value {settings.min_interval_s:g}: must be at most max_interval_s = {settings.max_interval_s:g}"
        raise document.error(("beamsync", "min_interval_s"), problem)


def _check_bidirectional(document: Document, testbed: Testbed) -> None:
    settings = testbed.bidirectional
    if settings is None:
        return
    _check_terminals(document, ("bidirectional", "calibrating"), settings.calibrating, testbed)
    if testbed.slots.prefix_samples < 2:
        problem = f"value {testbed.slots.prefix_samples}: must be at least 2 for a bidirectional exchange"
        raise document.error(("slots", "prefix_samples"), problem)
    if testbed.beamsync is not None:
        raise document.error(("bidirectional",), "not together with beamsync: each calibrates a run in its own way; "
                                                 "remove one of the two")
