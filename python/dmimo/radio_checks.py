# SPDX-License-Identifier: GPL-3.0-or-later
"""Checks of what a testbed file says of radios and hosts, see `testbed_checks`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .testbed_yaml import Document, KeyPath, show

if TYPE_CHECKING:
    from .testbed import Node, Testbed

INTERNAL = "internal"
MIN_SLOT = 64  # of a measurement of loop delays
LISTS = ("tx_antennas", "rx_antennas", "tx_gains_db", "rx_gains_db", "center_freqs", "loop_delays_samples")


def check(document: Document, testbed: Testbed) -> None:
    """Raise TestbedError for radios and hosts that cannot be used."""
    if testbed.frontend == "usrp" and testbed.usrp is None:
        raise document.error(("frontend",), "value usrp: needs a section usrp with the radios, such as "
                                            "usrp: {radios: [{args: \"type=b200\"}]}")
    if testbed.usrp is not None:
        _check_radios(document, testbed)
        for index, node in enumerate(testbed.nodes):
            _check_node(document, testbed, index, node)
        _check_channels(document, testbed)
    if testbed.frontend == "usrp":
        _check_protocols(document, testbed)
    if testbed.hosts is not None:
        _check_hosts(document, testbed)


def _check_radios(document: Document, testbed: Testbed) -> None:
    first: dict[str, int] = {}
    args: dict[str, str] = {}
    for index, radio in enumerate(testbed.usrp.radios):
        path: KeyPath = ("usrp", "radios", index)
        if radio.name in first:
            line = document.line(("usrp", "radios", first[radio.name]))
            raise document.error((*path, "name"), f"value {radio.name}: must be unique; first on line {line}")
        first[radio.name] = index
        other = args.setdefault(radio.args.replace(" ", ""), radio.name)
        if other != radio.name:
            raise document.error((*path, "args"), f"value {show(radio.args)}: the same as of {other}, so that both are "
                                 "one device; needed: a serial or address of its own")
        if radio.time_source == INTERNAL and len(testbed.usrp.radios) > 1:
            raise document.error((*path, "time_source"), "value internal: several radios need a common PPS")


def _check_node(document: Document, testbed: Testbed, index: int, node: Node) -> None:
    path: KeyPath = ("nodes", index, "radio")
    names = [radio.name for radio in testbed.usrp.radios]
    if node.radio.name not in (None, *names):
        raise document.error((*path, "name"), f"value {node.radio.name}: no such radio; allowed: {', '.join(names)}")
    count = len(node.radio.channels)
    if count not in (0, node.num_ports):
        raise document.error((*path, "channels"), f"{count} channels: must be one for each of the {node.num_ports} "
                                                  f"ports of {node.name}, or none")
    for key in LISTS:
        count = len(getattr(node.radio, key))
        if count not in (0, 1, node.num_ports):
            raise document.error((*path, key), f"{count} entries: must be one for each of the {node.num_ports} ports "
                                               f"of {node.name}, one for all, or none")


def _check_channels(document: Document, testbed: Testbed) -> None:
    owner: dict[tuple[str, int], str] = {}
    for index, node in enumerate(testbed.nodes):
        radio = testbed.usrp.radio_of(node)
        for position, channel in enumerate(node.radio.channels):
            other = owner.setdefault((radio, channel), node.name)
            if other != node.name or channel in node.radio.channels[:position]:
                raise document.error(("nodes", index, "radio", "channels", position),
                                     f"value {channel}: belongs to node {other} already")


def _check_protocols(document: Document, testbed: Testbed) -> None:
    usrp, slots, settings = testbed.usrp, testbed.slots, testbed.bidirectional
    if usrp.loop_delay == "measured" and slots.slot_samples < MIN_SLOT:
        raise document.error(("slots", "slot_samples"), f"value {slots.slot_samples}: must be at least {MIN_SLOT} to "
                                                        "measure loop delays (usrp.loop_delay: given does not)")
    if settings is None or usrp.shares_reference:
        return
    # The soundings that show a frequency are two answers apart; a fifth in hand for the time that these take.
    limit_hz = 0.4 / (2 * usrp.reactive_lead_s + 4 * slots.slot_samples / testbed.samp_rate)
    if settings.max_cfo_hz is None or settings.max_cfo_hz > limit_hz:
        raise document.error(("bidirectional", "max_cfo_hz"), "radios without a common reference (clock_source: "
                             f"external for all): must say that carriers differ by at most {limit_hz:.3g} Hz, since "
                             "larger differences cannot be told from smaller ones; beamsync has no such limit")


def _check_hosts(document: Document, testbed: Testbed) -> None:
    hosts, host_of = testbed.hosts, {}
    names = [node.name for node in testbed.nodes]
    for host, members in hosts.remote.items():
        for index, name in enumerate(members):
            path: KeyPath = ("hosts", "remote", host, index)
            if name not in names:
                raise document.error(path, f"value {show(name)}: no such node; allowed: {', '.join(names)}")
            if name in host_of:
                raise document.error(path, f"value {show(name)}: runs on host {host_of[name]} already")
            host_of[name] = host
    if not hosts.remote:
        raise document.error(("hosts",), "required: remote, with at least one host")
    if hosts.quorum is not None and hosts.quorum > len(hosts.remote):
        raise document.error(("hosts", "quorum"), f"value {hosts.quorum}: there are {len(hosts.remote)} hosts")
    if testbed.frontend == "usrp":
        _check_owners(document, testbed, host_of)


def _check_owners(document: Document, testbed: Testbed, host_of: dict[str, str]) -> None:
    """Each radio belongs to one host."""
    users: dict[str, Node] = {}
    for index, node in enumerate(testbed.nodes):
        other = users.setdefault(testbed.usrp.radio_of(node), node)
        if host_of.get(node.name) != host_of.get(other.name):
            where = _places((other, node), host_of)
            raise document.error(("nodes", index, "radio"), f"the radio of {other.name}, too: {where}; must be one")


def _places(nodes: Sequence[Node], host_of: dict[str, str]) -> str:
    return ", ".join(f"{node.name} runs on {host_of.get(node.name, 'the coordinator')}" for node in nodes)
