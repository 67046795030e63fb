# SPDX-License-Identifier: GPL-3.0-or-later
"""From a testbed file to what a run is made of: schedule, roles, collectors, and the simulated network.

Needs no GNU Radio; the flowgraph and the blocks of a GRC user are built from the same `Assembly`.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from . import __version__, radio_plan, simulated, testbed
from .bidirectional_assembly import Bidirectional
from .core import waveforms
from .core.sweep_calibration import SweepCalibration
from .linearization_assembly import Linearization
from .protocols import beam_sweep, multiuser, verification
from .protocols.bidirectional_estimate import SideCalibration
from .protocols.slots import Collector, Role, Schedule, build_schedule
from .radio_settings import RadioSettings
from .records import CalibrationRecord
from .simulation.network import Network
from .synchronization_assembly import SETTLING, Synchronization

Protocol = Literal["sweep", "sync", "bidirectional", "linearize"]
WINDOW_ADVANCE = 4  # the receive window opens a quarter of the prefix early: clocks may be late by as much


class Assembly:
    """Everything that follows from a testbed.

    Parameters
    ----------
    bed : Testbed
    verify : bool
        Whether verification and downlink to several users follow, where the testbed has the sections
        `verification` and `multiuser`.
    protocol : "sweep", "sync", "bidirectional" or "linearize", optional
        What the run is for: "sweep" calibrates by a beam sweep, after a synchronisation where the testbed has a
        `beamsync` section; "sync" synchronises again and again; "bidirectional" calibrates access points and user
        terminals in TDD patterns; "linearize" identifies the amplifiers of every access point by its own receivers,
        predistorts them and calibrates each access point by itself. By default "bidirectional" with a section of that
        name, "linearize" for a testbed of one access point, "sweep" otherwise. With a section `mutual_coupling` the
        amplifiers are linearised first in the others, too.

    Raises
    ------
    ValueError
        If the testbed has no section for the protocol.
    """

    def __init__(self, bed: testbed.Testbed, verify: bool = True, protocol: Protocol | None = None):
        if bed.frontend == "replay":
            raise ValueError(f"testbed {bed.name!r} has frontend: replay, which `dmimo calibrate` and `dmimo sync` run")
        self.testbed = bed
        if protocol is None:
            protocol = "bidirectional" if bed.bidirectional is not None else (
                "sweep" if len(bed.aps) > 1 else "linearize")
        self.protocol = protocol
        self._verify = verify
        alone = protocol == "linearize"  # each access point by itself
        self.verifies = verify and bed.verification is not None and not alone
        self.serves_many = verify and bed.multiuser is not None and not alone
        if protocol == "sync" and bed.beamsync is None:
            raise ValueError(f"testbed {bed.name!r} has no section beamsync: see Synchronising in the user guide")
        if protocol == "bidirectional" and bed.bidirectional is None:
            raise ValueError(f"testbed {bed.name!r} has no section bidirectional: see the user guide")
        if protocol == "linearize" and bed.mutual_coupling is None:
            raise ValueError(f"testbed {bed.name!r} has no section mutual_coupling: see Linearising in the user guide")
        if protocol != "linearize" and len(bed.aps) < 2:
            raise ValueError(f"testbed {bed.name!r} has one access point: nothing to {protocol}; dmimo linearize "
                             "calibrates it by itself")
        self.port_names = self.ports_of()
        self._nodes = {node.name: node for node in bed.nodes}
        self._aps = tuple(ap.name for ap in bed.aps)

    @classmethod
    def load(cls, path: str | Path, seed: int | None = None, verify: bool = True,
             protocol: Protocol | None = None) -> "Assembly":
        """Assembly of a testbed file, with another seed where one is given."""
        bed = testbed.load(path)
        return cls(bed if seed is None else replace(bed, seed=seed), verify, protocol)

    @cached_property
    def symbol(self) -> waveforms.SoundingSymbol:
        """The sounding symbol of all slots."""
        slots = self.testbed.slots
        return waveforms.SoundingSymbol(slots.pilot_samples, slots.num_subcarriers, slots.prefix_samples)

    def layout(self, num_ports: int) -> waveforms.SlotLayout:
        """Where the symbols of so many ports lie in a slot."""
        slots = self.testbed.slots
        advance = slots.prefix_samples // WINDOW_ADVANCE
        return waveforms.SlotLayout(slots.slot_samples, slots.lead_samples, self.symbol, num_ports, advance,
                                    self.latency_samples, slots.receive_delay_samples)

    @cached_property
    def latency_samples(self) -> int:
        """How much later than at the antenna received samples are labelled; radios label them by the antenna's time."""
        return 0 if self.uses_radios else self.network().latency_samples

    @property
    def uses_radios(self) -> bool:
        """Whether the nodes are USRPs, of which no truth is known."""
        return self.testbed.frontend == "usrp"

    def radios(self) -> dict[str, RadioSettings]:
        """Settings of every radio that a node belongs to, by name.

        Raises
        ------
        ValueError
            If the testbed has no section `usrp`.
        """
        if self.testbed.usrp is None:
            raise ValueError(f"testbed {self.testbed.name!r} has no section usrp: see Radios in the user guide")
        return radio_plan.settings(self.testbed)

    @cached_property
    def layouts(self) -> dict[str, waveforms.SlotLayout]:
        """Layout of each AP's sounding, in the order of the calibration's ports."""
        return {name: self.layout(self._nodes[name].num_ports) for name in self._aps}

    @cached_property
    def order(self) -> np.ndarray:
        """Rounds of the beam sweep."""
        most = max(len(self._nodes[name].panel.beams) for name in self._aps)
        sweep = self.testbed.beam_sweep
        # One round shows no frequency.
        once = most == 1 or sweep.beams == 1
        passes = max(sweep.passes, 2) if once and self._estimates_frequency else sweep.passes
        return beam_sweep.rounds(most, beam_pairs=sweep.beams, passes=passes)

    @cached_property
    def plan(self) -> verification.Plan | None:
        """Plan of the verification."""
        if not self.verifies:
            return None
        bed = self.testbed
        settings = bed.verification
        return verification.Plan(
            nodes=tuple(self._nodes), aps=self._aps, ue=settings.ue,
            num_ports={name: node.num_ports for name, node in self._nodes.items()},
            num_beams={name: len(node.panel.beams) for name, node in self._nodes.items()},
            layout=self.layout(1), samp_rate=bed.samp_rate, num_subbands=bed.slots.num_subbands,
            uplink_repeats=settings.uplink_repeats,
            repeats=settings.repeats, random_starts=settings.random_starts, seed=bed.seed,
            **self._verification_options(),
        )

    def _verification_options(self) -> dict[str, object]:
        """What of the verification depends on the protocol."""
        if self.protocol == "sync":
            return {"alone": "ap", "max_loss_db": None}
        options: dict[str, object] = {"cooperating": self.testbed.verification.cooperating}
        if self.protocol == "bidirectional":
            options |= {"max_loss_db": None, "beams_from": self.bidirectional.beams_from}
        return options

    @cached_property
    def multiuser_plan(self) -> multiuser.MultiuserPlan | None:
        """Plan of the downlink to several user terminals."""
        if not self.serves_many:
            return None
        bed = self.testbed
        settings = bed.multiuser
        return multiuser.MultiuserPlan(
            nodes=tuple(self._nodes), aps=self._aps, ues=settings.ues,
            num_ports={name: node.num_ports for name, node in self._nodes.items()},
            num_beams={name: len(node.panel.beams) for name, node in self._nodes.items()},
            layout=self.layout(1), samp_rate=bed.samp_rate, uplink_repeats=settings.uplink_repeats,
            repeats=settings.repeats, random_starts=settings.random_starts, seed=bed.seed, method=settings.precoder,
            beams_from=None if self.bidirectional is None else self.bidirectional.beams_from)

    @cached_property
    def synchronization(self) -> Synchronization | None:
        """Plans and roles of the synchronisation, None without a `beamsync` section."""
        if self.testbed.beamsync is None or self.protocol == "linearize":
            return None
        return Synchronization(self.testbed, self.layouts, self.latency_samples, self.linearization)

    @cached_property
    def linearization(self) -> Linearization | None:
        """What linearises the access points, None without a `mutual_coupling` section."""
        if self.testbed.mutual_coupling is None:
            return None
        return Linearization(self.testbed, self.layout(1), self._verify and self.protocol == "linearize")

    @cached_property
    def bidirectional(self) -> Bidirectional | None:
        """Plans and roles of the bidirectional exchange, None for other protocols."""
        if self.protocol != "bidirectional":
            return None
        return Bidirectional(self.testbed, self.layout(1), self.verifies)

    @property
    def measures(self) -> bool:
        """Whether the run measures what it has calibrated, through the air."""
        alone = self.linearization is not None and (self.linearization.verifies or
                                                    self.linearization.measures_linearity)
        return self.verifies or self.serves_many or alone

    @property
    def watches(self) -> int:
        """Measurements of the coherent gain between synchronisations; 1 where nothing is measured."""
        return self.testbed.beamsync.watches if self.verifies or self.serves_many else 1

    @cached_property
    def schedule(self) -> Schedule:
        """The whole run."""
        nodes, window, slot_samples = tuple(self._nodes), self.testbed.slots.window, self.testbed.slots.slot_samples
        sync = self.synchronization
        first = [] if self.loop_delays is None else self.loop_delays.phases()
        if self.protocol == "linearize":
            return build_schedule(nodes, slot_samples, first, self.linearization.phases(window))
        if sync is not None:
            first += sync.first_phases()
        elif self.linearization is not None:
            first += self.linearization.plan.phases(window, calibrates=False)
        verified = self.plan.phases(window) if self.verifies else []
        if self.serves_many:
            verified = verified + self.multiuser_plan.phases(window)
        if self.protocol == "sync":
            # A watch at once; those after it, and the next synchronisation, at the pace.
            again = sync.repeated_phases()
            settling = again * (SETTLING - 1)
            paced = [*range(-len(settling), 1, len(again)),
                     *(len(again) + k * len(verified) for k in range(1, self.watches))]
            return build_schedule(nodes, slot_samples, first + settling, [*again, *verified * self.watches], paced)
        if self.bidirectional is not None:
            pattern = self.bidirectional.pattern(window, verified)
            first += self.bidirectional.first_phases(window)
            return build_schedule(nodes, slot_samples, first, pattern, paced=(0, 1),
                                  cycles=self.testbed.bidirectional.patterns)
        if sync is not None:
            first += sync.repeated_phases()
        beams = {name: len(self._nodes[name].panel.beams) for name in self._aps}
        slots = beam_sweep.sweep_slots(nodes, self._aps, beams, self.order)
        return build_schedule(nodes, slot_samples, [*first, (beam_sweep.PHASE, window, slots), *verified])

    @property
    def _estimates_frequency(self) -> bool:
        """Whether a sweep estimates frequencies. A common reference makes them 0; a measured one would only turn c."""
        shared = self.uses_radios and self.testbed.usrp.shares_reference
        return self.testbed.calibration.frequency and not shared

    @cached_property
    def loop_delays(self) -> radio_plan.LoopDelays | None:
        """What removes the loop delays of radios, None where there are none."""
        return radio_plan.LoopDelays(self.testbed) if self.uses_radios else None

    def roles(self, name: str) -> list[Role]:
        """New roles of a node."""
        self._known(name)
        roles: list[Role] = [] if self.loop_delays is None else [self.loop_delays.role(name)]
        if self.protocol == "linearize":
            return roles + self.linearization.roles(name)
        if self.synchronization is not None:
            roles += self.synchronization.roles(name)
        elif self.linearization is not None:
            roles.append(self.linearization.coupling_role(name))
        if self.bidirectional is not None:
            roles += self.bidirectional.roles(name)
        if self.protocol == "sweep":
            roles.append(beam_sweep.SweepRole(name, self.layouts, tuple(self._nodes)))
        if self.verifies:
            roles.append(verification.VerificationRole(name, self.plan))
        if self.serves_many:
            roles.append(multiuser.MultiuserRole(name, self.multiuser_plan))
        return roles

    def collectors(self) -> dict[str, Collector]:
        """New collectors by name; each phase of the schedule belongs to one of them."""
        sync = self.synchronization
        collectors: dict[str, Collector] = {} if self.loop_delays is None else self.loop_delays.collectors()
        if self.protocol == "linearize":
            return collectors | self.linearization.collectors(self.schedule.slots)
        if sync is not None:
            collectors["beamsync"] = sync.collector(self.watches)
        elif self.linearization is not None:
            collectors["linearizer"] = self.linearization.coupling_collector()
        if self.bidirectional is not None:
            collectors |= self.bidirectional.collectors(self.schedule.slots)
        if self.protocol == "sweep":
            collectors["calibrator"] = self.sweep_collector()
        if self.verifies:
            collectors["verifier"] = self.verifier()
        if self.serves_many:
            collectors["multiuser"] = multiuser.MultiuserCollector(self.multiuser_plan, self.schedule.slots)
        return collectors

    def faults(self, name: str) -> dict[str, object]:
        """Simulated faults of a node's role, as keyword arguments of the blocks `node` and `role`."""
        self._known(name)
        own = [fault for fault in self.testbed.faults if fault.node == name]
        silent = [fault.slot for fault in own if fault.kind == "silent"]
        lost = {fault.slot: fault.count for fault in own if fault.kind == "lost_ack"}
        return {"silent_from": min(silent, default=None), "unacknowledged": lost}

    def sweep_collector(self) -> beam_sweep.SweepCollector:
        """Collector that calibrates."""
        settings = self.testbed.calibration
        reference = self.port_names.index(f"{settings.reference}:0")
        return beam_sweep.SweepCollector(
            self.schedule.slots, self.layouts, self.order, self.testbed.slots.num_subbands, self.testbed.samp_rate,
            {"method": settings.method, "reference": reference, "estimate_frequency": self._estimates_frequency,
             "estimate_delay": settings.delay},
        )

    def verifier(self) -> verification.Verifier:
        """Collector that chooses beams, computes weights and measures gains."""
        if not self.verifies:
            raise ValueError("verification: the testbed has no such section, or it was switched off")
        return verification.Verifier(self.plan, self.schedule.slots)

    def network(self) -> Network:
        """The simulated network, drawn from the testbed's seed."""
        return simulated.network(self.testbed)

    def ports_of(self, names: Sequence[str] = ()) -> tuple[str, ...]:
        """Names of the ports of these nodes, of all access points by default."""
        return testbed.port_names(self.testbed, names)

    def record(self, estimate: SweepCalibration | SideCalibration, names: Sequence[str] = (),
               epoch: int = 0) -> CalibrationRecord:
        """Calibration file's content; `names` are the nodes with the calibrated ports, all access points by default."""
        bed = self.testbed
        nodes = [self._nodes[name] for name in names or self._aps]
        ports = self.ports_of(names)
        tx_gain_db, rx_gain_db = np.hstack([node.gains_db(bed.frontend) for node in nodes])
        return CalibrationRecord(
            c=estimate.c, covariance=estimate.covariance, frequency_hz=estimate.frequency_hz,
            delay_s=estimate.delay_s, tx_gain_db=tx_gain_db, rx_gain_db=rx_gain_db, port_names=ports,
            reference=ports[estimate.reference], reference_time=int(estimate.reference_time), epoch=epoch,
            samp_rate=bed.samp_rate, center_freq=bed.center_freq,
            method=bed.calibration.method if self.bidirectional is None else bed.bidirectional.estimator,
            trusted=np.isfinite(estimate.c) & estimate.trusted, reasons=estimate.reasons,
            configuration=testbed.to_dict(bed), fingerprint=testbed.fingerprint(bed), version=__version__,
        )

    def truth(self, network: Network | None, estimate: SweepCalibration | SideCalibration,
              corrections: Mapping[str, complex] | None = None, names: Sequence[str] = ()) -> dict[str, object]:
        """True c at the estimate's reference time in the estimate's gauge, and how far the estimate is from it, as a
        report has them; empty where there is no simulated network.

        `corrections` are the factors that a synchronisation has put on the c of some APs by then; `names` as in
        `record`.
        """
        return {} if network is None else simulated.truth(
            self.testbed, network, estimate, corrections, names or self._aps)

    def _known(self, name: str) -> None:
        if name not in self._nodes:
            raise ValueError(f"name = {name!r}: the testbed has the nodes {list(self._nodes)}")


def find_testbed(filename: str | Path) -> Path:
    """Path of a testbed file named in a flowgraph, whose program may be run from any directory.

    A relative name is looked for in the current directory, then beside the running program or the flowgraph (.grc) that
    is being compiled, then among the examples: installed ones, or those of the source tree.

    Raises
    ------
    FileNotFoundError
        If it is in none of these.
    """
    here = Path(__file__).resolve()
    programs = [Path(word).resolve().parent for word in sys.argv if Path(word).suffix in (".py", ".grc")]
    installed = [parent / "share" / "gnuradio" / "examples" / "dmimo" for parent in here.parents]
    directories = dict.fromkeys([Path.cwd(), *programs, *filter(Path.is_dir, installed), here.parents[2] / "examples"])
    for directory in directories:
        if (directory / filename).is_file():
            return directory / filename
    raise FileNotFoundError(f"filename = {str(filename)!r}: no such file in {', '.join(map(str, directories))}")
