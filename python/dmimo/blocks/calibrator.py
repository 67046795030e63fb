# SPDX-License-Identifier: GPL-3.0-or-later
"""Calibrates the array from the sweep that all nodes report."""

from pathlib import Path

from ..assembly import Assembly
from ..core.sweep_calibration import SweepCalibration
from ..protocols.beam_sweep import SweepData
from ..records import save_calibration
from .collector import collector


class calibrator(collector):
    """Publishes the calibration as a product for the scheduler, and writes it to a file.

    Parameters
    ----------
    assembly : Assembly
    filename : str
        Calibration file to write; empty for none.
    """

    def __init__(self, assembly: Assembly, filename: str = ""):
        self._sweeps = assembly.sweep_collector()
        collector.__init__(self, self._sweeps, assembly.schedule.nodes, "calibrator")
        self._assembly = assembly
        self._filename = filename

    @property
    def estimate(self) -> SweepCalibration | None:
        """The calibration, None before the sweep has ended."""
        return self._sweeps.calibration

    @property
    def sweep(self) -> SweepData | None:
        """The measurements behind it."""
        return self._sweeps.sweep

    def finish(self, product) -> None:
        """Write the calibration file."""
        if self._filename and self._sweeps.calibration is not None:
            save_calibration(Path(self._filename), self._assembly.record(self._sweeps.calibration, epoch=self.epoch))
