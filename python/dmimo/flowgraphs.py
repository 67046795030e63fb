# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds and runs the flowgraph of a testbed: scheduler, nodes, radios or simulated network, collectors of results."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress

from gnuradio import gr

from . import calibration_files, reports
from .assembly import Assembly
from .blocks.bidirectional_calibrator import bidirectional_calibrator
from .blocks.calibrator import calibrator
from .blocks.collector import collector
from .blocks.linearizer import linearizer
from .blocks.node import node
from .blocks.simulated_network import simulated_network
from .blocks.slot_scheduler import slot_scheduler
from .blocks.verifier import verifier
from .protocols import mutual_coupling_collector
from .protocols.slots import Collector
from .radio_settings import RadioSettings
from .recording import NodeRecorder, Recorder
from .reports import Outcome
from .testbed import Node

POLL_S = 0.1


class RunError(RuntimeError):
    """A run cannot begin; the message says in a sentence why."""


class testbed_flowgraph(gr.top_block):
    """The run of a testbed, on a simulated network or on USRPs: synchronisation, calibration, verification, as it asks.

    Parameters
    ----------
    assembly : Assembly
    calibration_file : str
        Calibration file to write after a beam sweep or a bidirectional run, beside which other files go (`linearizer`);
        empty for none. The blocks write as they find, `run` what a synchronisation has found.
    duration_s : float
        Network time up to which synchronisation goes on; the patterns of a bidirectional run are in its testbed file.
    recorder : Recorder, optional
        Records what all nodes receive; closed by whoever made it.

    Raises
    ------
    RunError
        A radio is not there, or does not do what the testbed asks of it.
    """

    def __init__(self, assembly: Assembly, calibration_file: str = "", duration_s: float = 0.0,
                 recorder: Recorder | None = None):
        gr.top_block.__init__(self, assembly.testbed.name or "dmimo")
        bed, schedule = assembly.testbed, assembly.schedule
        slots = bed.slots
        self.assembly = assembly
        self.network = None if assembly.uses_radios else assembly.network()
        self.radios = self._radios()
        self.scheduler = slot_scheduler(schedule, slots.max_attempts, slots.watchdog_s,
                                        until_sample=round(duration_s * bed.samp_rate), **self._timing())
        self.air = None if self.network is None else simulated_network(self.network)
        self.calibration_file = calibration_file
        self.collectors = {name: self._collector(name, member) for name, member in assembly.collectors().items()}
        self.nodes = [self._node(config, recorder) for config in bed.nodes]
        self._connect_streams()
        self._connect_messages()
        self._pin()

    def _radios(self) -> dict[str, gr.hier_block2]:
        """Radios by name, none with a simulated network."""
        if not self.assembly.uses_radios:
            return {}
        return {name: self._radio(name, settings) for name, settings in self.assembly.radios().items()}

    def _radio(self, name: str, settings: RadioSettings) -> gr.hier_block2:
        try:
            from .blocks.usrp_array import usrp_array  # needs UHD, and the simulation does not

            return usrp_array(settings, name)
        except (ImportError, RuntimeError, LookupError, ValueError) as error:  # UHD's exceptions, as they come
            words = f"{' '.join(str(error).split())} (dmimo doctor examines it)"
            raise RunError(f"radio {name}, args {settings.device_args!r}: {words}") from error

    def _timing(self) -> dict[str, object]:
        """What the scheduler is told of radios."""
        bed = self.assembly.testbed
        if not self.assembly.uses_radios:
            return {}
        return {"radios": tuple(self.assembly.radios()), "samp_rate": bed.samp_rate, "lead_s": bed.usrp.lead_s,
                "reactive_lead_s": bed.usrp.reactive_lead_s,
                "confirmed": {config.name: config.num_ports for config in bed.nodes}}

    def _node(self, config: Node, recorder: Recorder | None) -> node:
        return node_of(self.assembly, config, None if recorder is None else recorder.nodes[config.name])

    def _collector(self, name: str, member: Collector) -> collector:
        match name:
            case "calibrator":
                return calibrator(self.assembly, self.calibration_file)
            case "linearizer":
                return linearizer(self.assembly, self.calibration_file)
            case "bidirectional":
                return bidirectional_calibrator(self.assembly, self.calibration_file)
            case "verifier":
                return verifier(self.assembly)
        return collector(member, self.assembly.schedule.nodes, name)

    def _connect_streams(self) -> None:
        for member, config in zip(self.nodes, self.assembly.testbed.nodes, strict=True):
            for own, place in enumerate(self._places(config)):
                self.connect((member, own), place)
                self.connect(place, (member, own))

    def _places(self, config: Node) -> list[tuple[gr.basic_block, int]]:
        """Block and number of the streams that the ports of a node send to and receive from."""
        if self.air is not None:
            ports = self.network.ports(config.name)
            return [(self.air, port) for port in range(ports.start, ports.stop)]
        (radio,) = (radio for radio in self.radios.values() if config.name in radio.settings.nodes)
        return [(radio, port) for port in radio.settings.streams(config.name)]

    def _connect_messages(self) -> None:
        collectors = self.collectors.values()
        for member in self.nodes:
            self.msg_connect(self.scheduler, "control", member, "control")
            self.msg_connect(member, "status", self.scheduler, "status")
            for block in collectors:
                self.msg_connect(member, "results", block, "results")
        for block in collectors:
            self.msg_connect(self.scheduler, "phases", block, "phases")
            self.msg_connect(block, "products", self.scheduler, "products")
            self.msg_connect(block, "error", self.scheduler, "status")
        for radio in self.radios.values():
            self._connect_radio(radio)
        if self.air is not None:
            self.msg_connect(self.air, "error", self.scheduler, "status")

    def _connect_radio(self, radio: gr.hier_block2) -> None:
        self.msg_connect(self.scheduler, "control", radio, "control")
        self.msg_connect(radio, "status", self.scheduler, "status")
        for member, config in zip(self.nodes, self.assembly.testbed.nodes, strict=True):
            if config.name in radio.settings.nodes:
                self.msg_connect(radio, "events", member, "events")

    def members(self) -> dict[str, Collector]:
        """The collectors behind the blocks, by name."""
        return {name: block.member for name, block in self.collectors.items()}

    def _pin(self) -> None:
        """All blocks of the loop on one processor: Python ones share the interpreter lock, and waking another processor
        for each message costs more than it gains."""
        processor = [common_processor()]
        members = [block for member in self.nodes for block in member.members()]
        air = [] if self.air is None else [self.air]
        for block in (self.scheduler, *air, *self.collectors.values(), *members):
            block.set_processor_affinity(processor)


def run(flowgraph: testbed_flowgraph, *, timeout_s: float = 3600.0,
        progress: Callable[[int, int], None] | None = None,
        watch: Callable[[Mapping[str, Collector]], None] | None = None) -> Outcome:
    """Run a flowgraph to its end.

    Parameters
    ----------
    flowgraph : testbed_flowgraph
    timeout_s : float
        Limit of the whole run on the wall clock.
    progress : callable(completed slots, all slots), optional
    watch : callable(collectors by name), optional
        Called now and then while the flowgraph runs.

    Returns
    -------
    Outcome
        Also of a run that Ctrl-C or the time limit has ended: its error says so, and it holds what there was by then.
    """
    scheduler, total = flowgraph.scheduler, len(flowgraph.assembly.schedule.slots)
    deadline = time.monotonic() + timeout_s
    why = f"the run did not end within {timeout_s:g} s"
    try:  # a flowgraph that went on would keep the process from ending
        with batch_scheduling():
            flowgraph.start()
        while not scheduler.finished_event.wait(POLL_S) and time.monotonic() < deadline:
            if progress is not None:
                progress(scheduler.completed, total)
            if watch is not None:
                watch(flowgraph.members())
        if progress is not None:
            progress(scheduler.completed, total)
    except KeyboardInterrupt:
        why = "interrupted"
    finally:
        scheduler.abandon(f"{why}, after {scheduler.releases} slots")
        flowgraph.stop()
        flowgraph.wait()
    members = flowgraph.members()
    coupling = mutual_coupling_collector.find(members)
    if flowgraph.calibration_file and coupling is not None and "linearizer" not in members:  # that block writes
        calibration_files.write_linearization(flowgraph.assembly, coupling, flowgraph.calibration_file, scheduler.epoch)
    run = reports.Run(flowgraph.assembly, flowgraph.network, members, scheduler.error,
                      scheduler.releases, scheduler.end_sample, scheduler.first_sample)
    return Outcome(run.error, reports.report(run), run.estimate)


def node_of(assembly: Assembly, config: Node, recorder: NodeRecorder | None = None) -> node:
    """New block for a node of a testbed."""
    bed = assembly.testbed
    options = assembly.faults(config.name) if not assembly.uses_radios else {
        "fill": False, "amplitude": bed.usrp.tx_amplitude}
    return node(config.name, config.num_ports, assembly.schedule, assembly.roles(config.name), bed.samp_rate,
                recorder=recorder, **options)


def common_processor() -> int:
    """Processor that all blocks of a run share; runs side by side take different ones."""
    processors = sorted(os.sched_getaffinity(0))
    return processors[os.getpid() % len(processors)]


@contextmanager
def batch_scheduling():
    """Threads started inside do not preempt one another when they are woken.

    A message wakes its receiver while the sender still holds the interpreter lock; changing over at once costs two
    context switches for nothing.
    """
    policy = os.sched_getscheduler(0)
    with suppress(PermissionError):  # some containers forbid it; it is a matter of speed only
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    try:
        yield
    finally:
        with suppress(PermissionError):
            os.sched_setscheduler(0, policy, os.sched_param(0))


