# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the calibration files that a run leaves behind: of the access points, the user terminals, and all channels."""

from collections.abc import Mapping
from pathlib import Path

from . import __version__
from .assembly import Assembly
from .csi_records import save_csi
from .protocols import mutual_coupling_collector
from .protocols.bidirectional_collector import BidirectionalCollector
from .protocols.mutual_coupling_collector import MutualCouplingCollector
from .protocols.slots import Collector
from .records import save_calibration
from .records_predistortion import predistortion_record, save_predistortion


def write(assembly: Assembly, collectors: Mapping[str, Collector], path: str | Path, epoch: int = 0) -> None:
    """Write what the collectors of a run have calibrated; nothing where they have not."""
    coupling = mutual_coupling_collector.find(collectors)
    if coupling is not None:  # by itself, or before what follows
        write_linearization(assembly, coupling, path, epoch)
    if "bidirectional" in collectors:
        write_bidirectional(assembly, collectors["bidirectional"].members["exchange"], path, epoch)
    elif getattr(collectors.get("calibrator"), "calibration", None) is not None:
        save_calibration(path, assembly.record(collectors["calibrator"].calibration, epoch=epoch))


def write_bidirectional(assembly: Assembly, exchange: BidirectionalCollector, path: str | Path,
                        epoch: int = 0) -> None:
    """Write the calibration of the TRPs to `path`, that of the UEs beside it, with `-ue` before the suffix, and
    `csi.h5` where channels were kept."""
    path = Path(path)
    if exchange.csi:
        _write_csi(assembly, exchange, path.with_name("csi.h5"))
    if exchange.calibration is None:
        return
    save_calibration(path, assembly.record(exchange.calibration, epoch=epoch))
    beside = path.with_name(f"{path.stem}-ue{path.suffix}")
    save_calibration(beside, assembly.record(exchange.ue_calibration, assembly.bidirectional.plan.ues, epoch))


def write_linearization(assembly: Assembly, member: MutualCouplingCollector, path: str | Path,
                        epoch: int = 0) -> None:
    """Write the calibrations of all access points, each by itself: to `path`, or where there are several with the name
    of the access point before the suffix; and `predistortion.h5` of all of them beside."""
    path = Path(path)
    if member.identifications:
        bed = assembly.testbed
        record = predistortion_record(member.identification, bed, epoch=epoch, design=bed.mutual_coupling.design,
                                      version=__version__)
        save_predistortion(path.with_name("predistortion.h5"), record)
    for ap, calibration in member.calibrations.items():
        if not calibration.trusted:  # no two ports hear each other
            continue
        own = path if len(member.calibrations) == 1 else path.with_name(f"{path.stem}-{ap}{path.suffix}")
        save_calibration(own, assembly.record(calibration, (ap,), epoch))


def _write_csi(assembly: Assembly, exchange: BidirectionalCollector, path: Path) -> None:
    plan = assembly.bidirectional.plan
    subcarriers = {"g": plan.up.sounding_subcarriers, "h": plan.down.sounding_subcarriers,
                   "c_trp": plan.down.response_subcarriers, "c_ue": plan.up.response_subcarriers}
    attributes = {"samp_rate": plan.grid.samp_rate, "center_freq": plan.center_freq,
                  "subcarrier_spacing_hz": plan.grid.subcarrier_spacing_hz}
    ports = {"trp": assembly.ports_of(plan.trps), "ue": assembly.ports_of(plan.ues)}
    save_csi(path, exchange.csi, subcarriers, attributes, ports)
