# SPDX-License-Identifier: GPL-3.0-or-later
"""A run over several hosts: who takes part, who has been lost, and what a testbed is without those that did not come.

Events in, decisions out; times are seconds of any clock that only goes forward. The sockets are in `hosts_link`.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import testbed
from .testbed import Hosts, Testbed

LOST_AFTER = 5  # heartbeats without a word
MOST_DIFFERENCES = 3  # named in a refusal
OWN = {"seed": None, "hosts": ("bind", "coordinator")}  # keys in which the files of two hosts may differ


class HostError(RuntimeError):
    """A run over several hosts that cannot begin, or cannot go on: one sentence."""


@dataclass(frozen=True)
class Addresses:
    """TCP addresses of one host's pair of sockets: `control` from the coordinator, `status` to it."""

    control: str
    status: str


def addresses(settings: Hosts, host: str, where: str) -> Addresses:
    """Addresses of a host's sockets at `where`: the address to bind, or the one to connect to."""
    first = settings.port + 2 * list(settings.remote).index(host)
    return Addresses(f"tcp://{where}:{first}", f"tcp://{where}:{first + 1}")


def find(bed: Testbed, name: str) -> str:
    """Host of that name in a testbed's `hosts.remote`, or the host of the node of that name."""
    remote = {} if bed.hosts is None else bed.hosts.remote
    if not remote:
        raise ValueError(f"testbed {bed.name!r} has no hosts.remote: all of its nodes run on one host")
    for host, nodes in remote.items():
        if name == host or name in nodes:
            return host
    known = ", ".join(describe(remote, host) for host in remote)
    raise ValueError(f"name = {name!r}: neither a host nor a remote node; the testbed has {known}")


def describe(remote: Mapping[str, Sequence[str]], host: str) -> str:
    """Host and its nodes for a message: ``pc2 (nodes ap2, ap3)``."""
    nodes = remote[host]
    return f"{host} ({'node' if len(nodes) == 1 else 'nodes'} {', '.join(nodes)})"


@dataclass(frozen=True)
class Hello:
    """How a host introduces itself: `instance` is unique to its process, `configuration` from `testbed.to_dict`."""

    host: str
    instance: str
    version: str
    configuration: Mapping[str, Any]


def differences(ours: Any, theirs: Any, path: str = "") -> Iterator[str]:
    """In words, where two configurations made by `testbed.to_dict` differ, beyond what each host sets for itself."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        ignored = OWN.get(path, ()) if path else [key for key, below in OWN.items() if below is None]
        for key in dict.fromkeys([*ours, *theirs]):
            if key not in ignored:
                at = f"{path}.{key}" if path else str(key)
                yield from differences(ours.get(key), theirs.get(key), at)
    elif isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
            yield from differences(one, other, f"{path}[{index}]")
    elif ours != theirs:
        yield f"{path} is {_show(theirs)} there and {_show(ours)} here"


def _show(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else text[:37] + "..."


class Gathering:
    """Decides when a run can begin: when all hosts have said hello, or a quorum of them after the time-out.

    A host that falls silent again has not come. Two processes that call themselves by the same host's name would share
    its messages: while both are heard the run does not begin.

    Parameters
    ----------
    settings : Hosts
    version : str
        Of this program.
    configuration : mapping
        Of the run, made by `testbed.to_dict`.
    now : float
    """

    def __init__(self, settings: Hosts, version: str, configuration: Mapping[str, Any], now: float):
        self._settings, self._version, self._configuration = settings, version, configuration
        self._deadline = now + settings.timeout_s
        self._heard: dict[str, dict[str, float]] = {host: {} for host in settings.remote}  # by instance

    def hello(self, hello: Hello, now: float) -> str | None:
        """A host has introduced itself; why it is refused, None where it is welcome."""
        where = f"host {describe(self._settings.remote, hello.host)}"
        if hello.version != self._version:
            return f"{where} runs gr-dmimo {hello.version}, must be {self._version} as here"
        unlike = list(differences(self._configuration, hello.configuration))
        if unlike:
            more = len(unlike) - MOST_DIFFERENCES
            rest = f"; and {more} more" if more > 0 else ""
            return f"{where} has another testbed file: {'; '.join(unlike[:MOST_DIFFERENCES])}{rest}"
        self._heard[hello.host][hello.instance] = now
        return None

    @property
    def replaced(self) -> list[str]:
        """Hosts of which more than one process has been heard: an end of the link may still lead to the first."""
        return [host for host, instances in self._heard.items() if len(instances) > 1]

    def present(self, now: float) -> dict[str, tuple[str, ...]]:
        """Processes heard of lately, by host."""
        limit = LOST_AFTER * self._settings.heartbeat_s
        return {host: tuple(name for name, heard in instances.items() if now - heard < limit)
                for host, instances in self._heard.items()}

    def decide(self, now: float) -> dict[str, str] | None:
        """Hosts that take part, each with its process; None: go on waiting.

        Raises
        ------
        HostError
            If the time is over and not enough have come.
        """
        remote, late = self._settings.remote, now >= self._deadline
        present = self.present(now)
        double = [host for host, instances in present.items() if len(instances) > 1]
        if double and late:
            raise HostError(f"host {describe(remote, double[0])}: {len(present[double[0]])} processes run under this "
                            "name; end all but one")
        come = {host: instances[0] for host, instances in present.items() if instances}
        if not double and len(come) == len(remote):
            return come
        if not late or double:
            return None
        quorum = len(remote) if self._settings.quorum is None else self._settings.quorum
        if len(come) >= quorum:
            return come
        missing = [describe(remote, host) for host in remote if host not in come]
        raise HostError(f"within {self._settings.timeout_s:g} s came {len(come)} of {len(remote)} hosts, must be at "
                        f"least {quorum}; missing: {', '.join(missing)}. On each of them start: dmimo node TESTBED.yml "
                        "--name HOST")


class Presence:
    """Who has been silent for too long.

    Parameters
    ----------
    names : iterable of str
    heartbeat_s : float
        How often each is to be heard of; and how often `lost` is asked.
    now : float
    """

    def __init__(self, names: Sequence[str], heartbeat_s: float, now: float):
        self._heartbeat_s = heartbeat_s
        self.limit_s = LOST_AFTER * heartbeat_s
        self._heard = dict.fromkeys(names, now)
        self._asked = now

    def heard(self, name: str, now: float) -> None:
        """Somebody has said something."""
        if name in self._heard:
            self._heard[name] = now

    def left(self, name: str) -> None:
        """Somebody will not be heard any more, and has said so."""
        self._heard.pop(name, None)

    def lost(self, now: float) -> list[str]:
        """Those not heard of for `LOST_AFTER` heartbeats.

        The time for which this process itself stood still, and could not listen, does not count.
        """
        stalled = max(0.0, now - self._asked - 2 * self._heartbeat_s)
        self._asked = now
        if stalled:
            self._heard = {name: heard + stalled for name, heard in self._heard.items()}
        return [name for name, heard in self._heard.items() if now - heard >= self.limit_s]


def without(bed: Testbed, hosts: Sequence[str]) -> Testbed:
    """The testbed without these hosts' nodes, and without whatever concerns only them.

    Raises
    ------
    HostError
        If one of the nodes is needed: the reference, the leader, the terminal that verifies, the second access point.
    """
    remote = bed.hosts.remote
    absent = {node: host for host in hosts for node in remote[host]}
    data = testbed.to_dict(bed)
    for section, key in (("calibration", "reference"), ("beamsync", "leader"), ("verification", "ue")):
        name = (data[section] or {}).get(key)
        if name in absent:
            raise HostError(f"host {describe(remote, absent[name])} is missing, but {section}.{key} is {name}")
    if sum(ap.name not in absent for ap in bed.aps) < 2:
        missing = ", ".join(describe(remote, host) for host in hosts)
        raise HostError(f"without {missing} fewer than two access points are left")
    data["nodes"] = [node for node in data["nodes"] if node["name"] not in absent]
    data["hosts"]["remote"] = {host: nodes for host, nodes in remote.items() if host not in hosts}
    for section, key in (("multiuser", "ues"), ("bidirectional", "calibrating")):
        _keep_terminals(data, section, key, absent)
    propagation = data["propagation"]
    propagation["pair_gain_db"] = {pair: gain for pair, gain in propagation["pair_gain_db"].items()
                                   if absent.keys().isdisjoint(pair.split("-"))}
    propagation["blocked_pairs"] = [pair for pair in propagation["blocked_pairs"] if absent.keys().isdisjoint(pair)]
    data["faults"] = [fault for fault in data["faults"] if fault["node"] not in absent]
    if data["verification"]:
        ports = sum(node["num_ports"] for node in data["nodes"] if node["kind"] == "ap")
        data["verification"]["cooperating"] = [num for num in data["verification"]["cooperating"] if num <= ports]
    try:
        return testbed.parse(json.dumps(data), f"testbed without {', '.join(hosts)}")
    except testbed.TestbedError as error:
        raise HostError(str(error)) from None


def _keep_terminals(data: dict[str, Any], section: str, key: str, absent: Mapping[str, str]) -> None:
    if data[section]:
        left = [name for name in data[section][key] if name not in absent]
        if not left:
            raise HostError(f"{section}.{key}: none is left, missing: {', '.join(data[section][key])}")
        data[section][key] = left


Say = Callable[[str], None]
"""Takes a sentence for the user."""
