# SPDX-License-Identifier: GPL-3.0-or-later
"""Calibrates both sides of a bidirectional run, pattern by pattern."""

from pathlib import Path

from ..assembly import Assembly
from ..calibration_files import write_bidirectional
from ..protocols.bidirectional_collector import BidirectionalCollector
from ..protocols.bidirectional_estimate import SideCalibration
from .collector import collector


class bidirectional_calibrator(collector):
    """Publishes chosen beams and the calibration of both sides as products for the scheduler, and writes both to files.

    Parameters
    ----------
    assembly : Assembly
        Of a testbed with a `bidirectional` section.
    filename : str
        Calibration file of the TRPs, as of the last pattern; that of the UEs is beside it, with `-ue` before the
        suffix, and `csi.h5` where the testbed has `keep_csi`. Empty for none.
    """

    def __init__(self, assembly: Assembly, filename: str = ""):
        if assembly.bidirectional is None:
            raise ValueError(f"assembly: testbed {assembly.testbed.name!r} has no section bidirectional")
        group = assembly.bidirectional.collectors(assembly.schedule.slots)["bidirectional"]
        collector.__init__(self, group, assembly.schedule.nodes, "bidirectional_calibrator")
        self._assembly, self._path = assembly, Path(filename) if filename else None
        self._saved = False
        self._measured: tuple[SideCalibration | None, int] = None, 0  # calibration, and the epoch it was measured in

    @property
    def exchange(self) -> BidirectionalCollector:
        """The collector behind it, with the history of all patterns."""
        return self.member.members["exchange"]

    @property
    def calibration(self) -> SideCalibration | None:
        """Calibration of the TRPs, None before the first exchange."""
        return self.exchange.calibration

    @property
    def ue_calibration(self) -> SideCalibration | None:
        """Calibration of the UEs."""
        return self.exchange.ue_calibration

    def finish(self, product) -> None:
        """Note in which epoch the calibration was measured."""
        if self.calibration is not self._measured[0]:
            self._measured = self.calibration, self.epoch

    def ended(self) -> None:
        """Write the files."""
        self._save()

    def stop(self) -> bool:
        """Write the files if the flowgraph was stopped before the end of the run had come here."""
        self._save()
        return True

    def _save(self) -> None:
        if self._path is None or self._saved:
            return
        self._saved = True
        write_bidirectional(self._assembly, self.exchange, self._path, self._measured[1])
