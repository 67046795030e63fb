# SPDX-License-Identifier: GPL-3.0-or-later
"""The host that runs a testbed whose other nodes run on other hosts: it gathers them, leads them and watches over them.

For a simulated front end the network and the sample streams of all nodes are here, and the roles of remote nodes
elsewhere.
"""

import json
import secrets
import threading
import time
from collections.abc import Iterable
from functools import partial

from gnuradio import gr

from . import __version__, testbed
from .assembly import Assembly
from .blocks import messages
from .blocks.host_bridge import host_bridge
from .blocks.host_node import host_node
from .blocks.host_radio import host_radio
from .blocks.node import node
from .flowgraphs import testbed_flowgraph
from .hosts import LOST_AFTER, Gathering, Hello, HostError, Presence, Say, addresses, describe, without
from .hosts_flowgraphs import FROM_AIR, FROM_SCHEDULER, RECORD, TO_AIR, TO_SCHEDULER, Links, record
from .hosts_link import LINK, Beater, Link, text
from .radio_settings import RadioSettings
from .recording import Recorder
from .testbed import Node

POLL_S = 0.1


class Coordinator:
    """A run over several hosts, seen from where it is started; a context manager that ends the hosts with the run.

    First `gather`, then `flowgraph`, then run that.

    Parameters
    ----------
    assembly : Assembly
        Of a testbed with `hosts`.
    duration_s : float
        See `testbed_flowgraph`.
    record : bool
        Whether the run is recorded: hosts then send what their nodes receive.
    say : callable(text), optional
        Told what is waited for.

    Attributes
    ----------
    assembly : Assembly
        After `gather` that of the run: without the nodes of hosts that have not come.
    absent : tuple of str
        Hosts that have not come.

    Raises
    ------
    ValueError
        If the sockets cannot be bound.
    """

    def __init__(self, assembly: Assembly, *, duration_s: float = 0.0, record: bool = False, say: Say | None = None):
        self.assembly, self.absent = assembly, ()
        self._settings = settings = assembly.testbed.hosts
        self._say = say or (lambda text: None)
        self._options = {"protocol": assembly.protocol, "verify": assembly.measures,
                         "duration_s": float(duration_s), "seed": assembly.testbed.seed, "record": record}
        self._session = secrets.token_hex(8)
        self._state = threading.Condition()
        self._gathering: Gathering | None = None
        self._presence: Presence | None = None
        self._instances: dict[str, str] = {}  # of the hosts that take part and have not ended
        self._ready: dict[str, str] = {}
        self._ends = {host: Links(partial(self._send, host)) for host in settings.remote}
        self._recorder: Recorder | None = None
        self._problem: str | None = None
        self._built = self._over = False
        self._answering: set[str] = set()  # hosts that are to end, and have been told
        self._beater = Beater(self._beat, settings.heartbeat_s)
        self._links = {
            host: Link(addresses(settings, host, settings.bind), True, partial(self._receive, host),
                       partial(self._failed, host))
            for host in settings.remote}

    def __enter__(self) -> "Coordinator":
        return self

    def __exit__(self, kind, error, trace) -> None:
        if kind is not None:
            self.end(str(error) if isinstance(error, HostError) else f"the coordinator has ended: {error!r}")
        self.end(None)
        self._beater.stop()
        for link in self._links.values():
            link.close()

    def gather(self) -> Assembly:
        """Wait for the hosts; what the run is made of.

        Raises
        ------
        HostError
            If too few come, one is not as it must be, or the run cannot do without one that has not come.
        """
        settings, configuration = self._settings, testbed.to_dict(self.assembly.testbed)
        self._gathering = Gathering(settings, __version__, json.loads(json.dumps(configuration)), time.monotonic())
        where = ", ".join(f"{describe(settings.remote, host)} at {addresses(settings, host, settings.bind).control}"
                          for host in settings.remote)
        self._say(f"waiting for {where}")
        for link in self._links.values():
            link.open()
        self._beater.start()
        with self._state:
            come = self._until(lambda: self._gathering.decide(time.monotonic()))
            self._instances = dict(come)
            self._presence = Presence(list(come), settings.heartbeat_s, time.monotonic())
        for host in self._gathering.replaced:
            self._links[host].reopen()
        self.absent = tuple(host for host in settings.remote if host not in come)
        if self.absent:
            bed = without(self.assembly.testbed, self.absent)
            self._say(f"begin without {', '.join(describe(settings.remote, host) for host in self.absent)}")
            self.assembly = Assembly(bed, self._options["verify"], self._options["protocol"])
        return self.assembly

    def flowgraph(self, calibration_file: str = "", recorder: Recorder | None = None) -> testbed_flowgraph:
        """Flowgraph of the run, once all hosts have built their part.

        Raises
        ------
        HostError
            If a host cannot build its part, builds another schedule, or is lost.
        """
        self._recorder = recorder
        flowgraph = coordinated_flowgraph(self, calibration_file, self._options["duration_s"], recorder)
        with self._state:
            self._built = True
            for host in self._instances:
                self._start(host)
        deadline = time.monotonic() + self._settings.timeout_s
        with self._state:
            self._until(lambda: self._all_ready(deadline))
        return flowgraph

    def links(self, nodes: Iterable[str]) -> Links | None:
        """What leads to the host that these nodes run on, None where they run here."""
        here = set(nodes)
        return next((self._ends[host] for host, own in self._settings.remote.items() if here.intersection(own)), None)

    def go(self) -> None:
        """Let the hosts run."""
        for host in list(self._instances):
            self._links[host].say(self._session, "go")

    def end(self, error: str | None) -> None:
        """Tell the hosts that the run is over, and wait until they have ended; only the first call counts."""
        with self._state:
            if self._over:
                return
            self._over = True
            told = list(self._instances) if self._presence else self._arrived()
            for host in told:
                self._dismiss(host, error or "")
            deadline = time.monotonic() + LOST_AFTER * self._settings.heartbeat_s
            while self._answering and time.monotonic() < deadline:
                self._state.wait(POLL_S)

    def _dismiss(self, host: str, error: str) -> None:
        self._answering.add(host)
        self._links[host].say(self._session, "end", error=error)

    def _arrived(self) -> list[str]:
        """Hosts that have said hello, before it is settled who takes part."""
        present = {} if self._gathering is None else self._gathering.present(time.monotonic())
        return [host for host, instances in present.items() if instances]

    def _until(self, condition):
        """Wait, holding the lock, until a condition is neither None nor False; its value."""
        while True:
            if self._problem is not None:
                raise HostError(self._problem)
            value = condition()
            if value is not None and value is not False:
                return value
            self._state.wait(POLL_S)

    def _all_ready(self, deadline: float) -> bool:
        for host, found in self._ready.items():
            if found != self.assembly.schedule.hash:
                raise HostError(f"host {self._described(host)} has another schedule: hash {found[:12]}, must be "
                                f"{self.assembly.schedule.hash[:12]}")
        missing = [host for host in self._instances if host not in self._ready]
        if missing and time.monotonic() > deadline:
            raise HostError(f"host {self._described(missing[0])} did not become ready within "
                            f"{self._settings.timeout_s:g} s")
        return not missing

    def _described(self, host: str) -> str:
        return describe(self._settings.remote, host)

    def _send(self, host: str, to: str, message) -> None:
        """Send a run's message, unless nobody is there: the ZeroMQ sink would wait for ever."""
        if host in self._instances:
            self._links[host].send(self._session, to, message)

    def _beat(self) -> None:
        with self._state:
            now = time.monotonic()
            if self._presence is None:
                hosts = self._arrived()
            else:
                for host in self._presence.lost(now):
                    self._gone(host, f"has not been heard of for {self._presence.limit_s:g} s: it, its program or the "
                                     "network between has failed")
                hosts = list(self._instances)
        for host in hosts:
            self._links[host].say(self._session, "beat", instance=self._session)

    def _gone(self, host: str, why: str) -> None:
        """A host takes part no more."""
        self._answering.discard(host)
        if self._presence is not None:
            self._presence.left(host)
        if self._instances.pop(host, None) is not None and not self._over:
            self._fail(f"host {self._described(host)} {why}")

    def _fail(self, text: str) -> None:
        """End the run with an error, whatever state it is in."""
        self._problem = self._problem or text
        for links in self._ends.values():
            links.fail(text)

    def _failed(self, host: str, text: str) -> None:
        with self._state:
            self._fail(f"link to host {self._described(host)}: {text}")

    def _receive(self, host: str, session: str, to: str, message) -> None:
        """Take a message of a host, on its link's thread."""
        with self._state:
            if self._presence is not None and session == self._session:
                self._presence.heard(host, time.monotonic())
            if to == LINK:
                self._control(host, session, message)
                self._state.notify_all()
                return
        if session != self._session:
            return
        kind, _, name = to.partition("/")
        if kind == RECORD:
            record(self._recorder.nodes[name], message)
        else:
            self._ends[host].deliver(to, message)

    def _control(self, host: str, session: str, message) -> None:
        """Take one of the link's own messages."""
        kind, now = messages.kind(message), time.monotonic()
        if kind == "hello":
            self._hello(host, message, now)
            return
        if session != self._session:
            return
        self._only(host, messages.get(message, "instance"))
        if kind == "ready":
            self._ready[host] = messages.get(message, "hash")
        elif kind == "bye":
            self._gone(host, f"has ended: {text(message, 'error') or 'without a reason'}")

    def _hello(self, host: str, message, now: float) -> None:
        hello = Hello(host, messages.get(message, "instance"), messages.get(message, "version"),
                      json.loads(text(message, "configuration")))
        if self._presence is None:
            known = hello.instance in self._gathering.present(now)[host]
            refusal = self._gathering.hello(hello, now)
            if refusal is not None:
                self._dismiss(host, refusal)
                self._fail(refusal)
                return
            if not known:
                self._say(f"host {self._described(host)} has come")
            self._links[host].say(self._session, "beat", instance=self._session)
        elif host not in self._instances:
            self._dismiss(host, f"the run has begun without host {self._described(host)}")
        else:
            self._only(host, hello.instance)
            if self._built:  # it has opened its link anew since, and may not have heard
                self._start(host)

    def _start(self, host: str) -> None:
        """Have a host build its part."""
        self._links[host].say(self._session, "start", absent=self.absent, **self._options)

    def _only(self, host: str, instance: str) -> None:
        """End the run where a host's name belongs to two processes, which would share its messages."""
        if instance != self._instances.get(host, instance):
            self._fail(f"host {self._described(host)}: another process under this name has come; it was restarted, or "
                       "two of them run")


class coordinated_flowgraph(testbed_flowgraph):
    """Flowgraph of a run whose other nodes run on other hosts.

    Starting it starts the hosts; when it has been stopped, they are told so and waited for.
    """

    def __init__(self, coordinator: Coordinator, calibration_file: str, duration_s: float, recorder: Recorder | None):
        self._coordinator = coordinator
        testbed_flowgraph.__init__(self, coordinator.assembly, calibration_file, duration_s, recorder)

    def _radio(self, name: str, settings: RadioSettings) -> gr.hier_block2 | host_radio:
        links = self._coordinator.links(settings.nodes)
        return super()._radio(name, settings) if links is None else links.radio(name, settings)

    def _node(self, config: Node, recorder: Recorder | None) -> node | host_node | host_bridge:
        links, assembly = self._coordinator.links([config.name]), self.assembly
        if links is None:
            return super()._node(config, recorder)
        if assembly.uses_radios:
            return links.bridge(config.name, FROM_SCHEDULER, TO_SCHEDULER)
        bridge = links.bridge(config.name, FROM_AIR, TO_AIR)
        return host_node(config.name, config.num_ports, assembly.schedule, assembly.testbed.samp_rate, bridge)

    def _places(self, config: Node) -> list[tuple[gr.basic_block, int]]:
        remote = self.assembly.uses_radios and self._coordinator.links([config.name]) is not None
        return [] if remote else super()._places(config)

    def _connect_radio(self, radio: gr.hier_block2 | host_radio) -> None:
        if not isinstance(radio, host_radio):
            super()._connect_radio(radio)
            return
        self.msg_connect(self.scheduler, "control", radio, "control")
        self.msg_connect(radio, "status", self.scheduler, "status")

    def start(self, *args):
        """Start the hosts' parts, then this one."""
        self._coordinator.go()
        super().start(*args)

    def wait(self):
        """Wait for this part to end, then for those of the hosts."""
        super().wait()
        self._coordinator.end(self.scheduler.error)
