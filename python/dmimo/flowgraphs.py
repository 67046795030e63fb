# SPDX-License-Identifier: GPL-3.0-or-later
"""Builds and runs the flowgraph of a testbed: scheduler, nodes, simulated network, calibrator, verifier."""

import os
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import numpy as np
from gnuradio import gr

from . import __version__, testbed
from .assembly import Assembly
from .blocks.calibrator import calibrator
from .blocks.node import node
from .blocks.simulated_network import simulated_network
from .blocks.slot_scheduler import slot_scheduler
from .blocks.verifier import verifier
from .core.sweep_calibration import SweepCalibration

POLL_S = 0.1


@dataclass(frozen=True)
class Outcome:
    """What a run left behind; `error` is None where it succeeded."""

    error: str | None
    report: Mapping[str, object]
    estimate: SweepCalibration | None = None


class calibration_flowgraph(gr.top_block):
    """Beam sweep, calibration and verification on a simulated network.

    Parameters
    ----------
    assembly : Assembly
    calibration_file : str
        Calibration file to write; empty for none.
    """

    def __init__(self, assembly: Assembly, calibration_file: str = ""):
        gr.top_block.__init__(self, assembly.testbed.name or "dmimo")
        bed, schedule = assembly.testbed, assembly.schedule
        slots = bed.slots
        self.assembly = assembly
        self.network = assembly.network()
        self.scheduler = slot_scheduler(schedule, slots.max_attempts, slots.watchdog_s)
        self.air = simulated_network(self.network)
        self.calibrator = calibrator(assembly, calibration_file)
        self.verifier = verifier(assembly) if assembly.verifies else None
        self.nodes = [node(n.name, n.num_ports, schedule, assembly.roles(n.name), bed.samp_rate,
                           **assembly.faults(n.name)) for n in bed.nodes]
        self._connect_streams()
        self._connect_messages()
        self._pin()

    def _connect_streams(self) -> None:
        for member, config in zip(self.nodes, self.assembly.testbed.nodes, strict=True):
            ports = self.network.ports(config.name)
            for own, port in enumerate(range(ports.start, ports.stop)):
                self.connect((member, own), (self.air, port))
                self.connect((self.air, port), (member, own))

    def _connect_messages(self) -> None:
        collectors = [block for block in (self.calibrator, self.verifier) if block is not None]
        for member in self.nodes:
            self.msg_connect(self.scheduler, "control", member, "control")
            self.msg_connect(member, "status", self.scheduler, "status")
            for block in collectors:
                self.msg_connect(member, "results", block, "results")
        for block in collectors:
            self.msg_connect(self.scheduler, "phases", block, "phases")
            self.msg_connect(block, "products", self.scheduler, "products")
            self.msg_connect(block, "error", self.scheduler, "status")
        self.msg_connect(self.air, "error", self.scheduler, "status")

    def _pin(self) -> None:
        """All blocks of the loop on one processor: Python ones share the interpreter lock, and waking another processor
        for each message costs more than it gains."""
        processor = [common_processor()]
        members = [block for member in self.nodes for block in member.members()]
        for block in (self.scheduler, self.air, self.calibrator, self.verifier, *members):
            if block is not None:
                block.set_processor_affinity(processor)


def run(flowgraph: calibration_flowgraph, *, timeout_s: float = 3600.0,
        progress: Callable[[int, int], None] | None = None) -> Outcome:
    """Run a calibration flowgraph to its end.

    Parameters
    ----------
    flowgraph : calibration_flowgraph
    timeout_s : float
        Limit of the whole run on the wall clock.
    progress : callable(completed slots, all slots), optional

    Returns
    -------
    Outcome
    """
    scheduler, total = flowgraph.scheduler, len(flowgraph.assembly.schedule.slots)
    deadline = time.monotonic() + timeout_s
    with batch_scheduling():
        flowgraph.start()
    try:
        while not scheduler.finished_event.wait(POLL_S) and time.monotonic() < deadline:
            if progress is not None:
                progress(scheduler.completed, total)
        error = scheduler.error if scheduler.finished_event.is_set() else (
            f"the run did not end within {timeout_s:g} s: {scheduler.completed} of {total} slots are complete")
        if progress is not None:
            progress(scheduler.completed, total)
    finally:
        flowgraph.stop()
        flowgraph.wait()
    return _outcome(flowgraph, error)


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


def _outcome(flowgraph: calibration_flowgraph, error: str | None) -> Outcome:
    assembly, estimate = flowgraph.assembly, flowgraph.calibrator.estimate
    bed = assembly.testbed
    report: dict[str, object] = {
        "error": error,
        "seed": bed.seed,
        "version": __version__,
        "testbed": testbed.to_dict(bed),
        "slots": flowgraph.scheduler.releases,
        "duration_s": flowgraph.scheduler.end_sample / bed.samp_rate,
        "pilot_samples": bed.slots.pilot_samples,
        "snr_db_per_sample": bed.noise.snr_db,
    }
    if estimate is None:
        return Outcome(error, report)
    truth = assembly.truth(flowgraph.network, estimate)
    report |= {
        "ports": assembly.port_names,
        "trusted": bool(estimate.trusted),
        "reasons": estimate.reasons,
        "reference_time": int(estimate.reference_time),
        "frequency_hz": estimate.frequency_hz,
        "delay_s": estimate.delay_s,
        "c": estimate.c,
        "c_true": truth["c"],
        "predicted_phase_std_deg": np.degrees(estimate.phase_std_rad),
        "pair_snr_db": estimate.pair_snr_db,
        "phase_noise_hz": estimate.phase_noise_hz,
        "alignment_error": truth["alignment_error"],
        "phase_error_deg": truth["phase_error_deg"],
    }
    if flowgraph.verifier is not None and flowgraph.verifier.report is not None:
        report |= flowgraph.verifier.report
    return Outcome(error, report, estimate)
