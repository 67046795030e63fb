# SPDX-License-Identifier: GPL-3.0-or-later
"""One of the other hosts of a run: it waits for the coordinator, builds its nodes' part and runs it until told."""

import json
import queue
import socket
import time
import uuid
from contextlib import suppress
from dataclasses import replace

from . import __version__, testbed
from .assembly import Assembly
from .blocks import messages
from .flowgraphs import batch_scheduling
from .hosts import HostError, Presence, Say, addresses, describe, find, without
from .hosts_flowgraphs import Links, radios_flowgraph, roles_flowgraph
from .hosts_link import LINK, Beater, Link, text
from .testbed import Testbed

CONNECT_S = 1.0
POLL_S = 0.1


class Lost(HostError):
    """The coordinator is not heard of any more."""


def serve(bed: Testbed, name: str, *, timeout_s: float, say: Say) -> str | None:
    """Take part in one run of a testbed as the host `name`; the run's error, None where it succeeded.

    Parameters
    ----------
    bed : Testbed
        This host's own copy.
    name : str
        Of the host in `hosts.remote`, or of one of its nodes.
    timeout_s : float
        How long to wait for the coordinator.
    say : callable(text)
        Told what happens.

    Raises
    ------
    ValueError
        If there is no such host.
    HostError
        If the coordinator does not come, is lost, or this host cannot do its part.
    """
    host = find(bed, name)
    where, described = addresses(bed.hosts, host, bed.hosts.coordinator), describe(bed.hosts.remote, host)
    deadline, instance = time.monotonic() + timeout_s, uuid.uuid4().hex
    say(f"host {described}: waiting for the coordinator at {where.control}")
    while time.monotonic() < deadline:
        if not _listens(where.status):
            time.sleep(POLL_S)
            continue
        member = Member(bed, host, instance, say)
        try:
            return member.run()
        except Lost:
            if member.begun:
                raise
    raise HostError(f"no coordinator at {where.status} within {timeout_s:g} s: start `dmimo calibrate` or `dmimo sync` "
                    "there, or see hosts.coordinator and hosts.bind")


def _listens(address: str) -> bool:
    """Whether anybody listens at a TCP address."""
    host, _, port = address.removeprefix("tcp://").rpartition(":")
    with suppress(OSError), socket.create_connection((host, int(port)), CONNECT_S):
        return True
    return False


class Member:
    """A host's part in one run, from hello to bye.

    Parameters
    ----------
    bed, host, say
        See `serve`.
    instance : str
        Unique to this process.
    """

    def __init__(self, bed: Testbed, host: str, instance: str, say: Say):
        self._bed, self._host, self._say = bed, host, say
        self._settings = bed.hosts
        self._instance = instance
        self._session = ""  # of the run that this host has been told of
        self._inbox: queue.Queue = queue.Queue()
        self._presence = Presence(["coordinator"], self._settings.heartbeat_s, time.monotonic())
        self._link = Link(addresses(self._settings, host, self._settings.coordinator), False, self._receive,
                          self._failed)
        self._ends = Links(self._send)

    @property
    def begun(self) -> bool:
        """Whether the coordinator has told this host of a run."""
        return bool(self._session)

    def run(self) -> str | None:
        """Take part; the run's error, None where it succeeded.

        Raises
        ------
        Lost
            If the coordinator is silent.
        HostError
            If this host cannot do its part.
        """
        beater = Beater(self._beat, self._settings.heartbeat_s)
        error: str | None = "interrupted"
        try:
            self._link.open()
            beater.start()
            self._beat()
            error = self._take_part()
        except Exception as problem:
            error = str(problem) if isinstance(problem, HostError) else f"{type(problem).__name__}: {problem}"
            raise
        finally:
            beater.stop()
            if self._session:
                self._link.say(self._session, "bye", instance=self._instance, error=error or "")
            self._link.close()
        return error

    def _take_part(self) -> str | None:
        message = self._next("start")
        if messages.kind(message) == "end":
            return text(message, "error") or None
        try:
            flowgraph = self._flowgraph(message)
        except (OSError, RuntimeError, ValueError) as problem:
            raise HostError(f"its nodes could not be made: {' '.join(str(problem).split())}") from problem
        self._link.say(self._session, "ready", instance=self._instance, hash=flowgraph.schedule.hash)
        message = self._next("go")
        if messages.kind(message) == "end":
            return text(message, "error") or None
        self._say("the run has begun")
        try:
            with batch_scheduling():
                flowgraph.start()
            return text(self._next("end"), "error") or None
        finally:
            flowgraph.stop()
            flowgraph.wait()

    def _flowgraph(self, message) -> roles_flowgraph | radios_flowgraph:
        """This host's part of the run that a `start` message describes."""
        keys = ("absent", "seed", "verify", "protocol", "record")
        absent, seed, verify, protocol, record = (messages.get(message, key) for key in keys)
        bed = replace(without(self._bed, absent) if absent else self._bed, seed=seed)
        assembly = Assembly(bed, verify, protocol)
        kind = radios_flowgraph if assembly.uses_radios else roles_flowgraph
        return kind(assembly, self._settings.remote[self._host], self._ends, record)

    def _next(self, kind: str):
        """The next message of the link of this kind, or the `end`."""
        while True:
            with suppress(queue.Empty):
                session, message = self._inbox.get(timeout=POLL_S)
                if isinstance(message, str):
                    raise HostError(message)
                if messages.kind(message) in (kind, "end"):
                    self._session = session
                    return message
            if self._presence.lost(time.monotonic()):
                address = addresses(self._settings, self._host, self._settings.coordinator).control
                raise Lost(f"the coordinator at {address} has not been heard of for {self._presence.limit_s:g} s: it, "
                           "its program or the network between has failed")

    def _beat(self) -> None:
        """Say that this host is there."""
        if self._session:
            self._link.say(self._session, "beat", instance=self._instance)
        else:
            self._link.say("", "hello", host=self._host, instance=self._instance, version=__version__,
                           configuration=json.dumps(testbed.to_dict(self._bed)))

    def _send(self, to: str, message) -> None:
        self._link.send(self._session, to, message)

    def _receive(self, session: str, to: str, message) -> None:
        """Take a message of the coordinator, on the link's thread."""
        if self._session not in ("", session):
            return
        self._presence.heard("coordinator", time.monotonic())
        if to == LINK:
            self._inbox.put((session, message))
        else:
            self._ends.deliver(to, message)

    def _failed(self, text: str) -> None:
        self._inbox.put((self._session, f"link to the coordinator: {text}"))
