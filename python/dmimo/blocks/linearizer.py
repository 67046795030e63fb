# SPDX-License-Identifier: GPL-3.0-or-later
"""Identifies all amplifiers and calibrates all arrays from what their ports hear of each other."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pmt

from .. import calibration_files
from ..assembly import Assembly
from ..core.predistortion import Identification
from ..linearization_curves import curves
from ..protocols.bidirectional_estimate import SideCalibration
from ..protocols.mutual_coupling import AMPLITUDES
from ..protocols.slots import Product
from . import messages
from .collector import collector

PLOTS = pmt.intern("plots")


class linearizer(collector):
    """Publishes what to predistort with, then the calibration of every array, as products; writes both to files.

    Beside the products it publishes what there is to plot of the amplifiers (`linearization_curves.curves`).

    Parameters
    ----------
    assembly : Assembly
        Of a testbed with a `mutual_coupling` section, in a run without synchronisation.
    filename : str
        Calibration file, as of the last round; with several access points one for each, with its name before the
        suffix. `predistortion.h5` is written beside it. Empty for none.
    """

    def __init__(self, assembly: Assembly, filename: str = ""):
        members = assembly.collectors()
        if "linearizer" not in members:
            raise ValueError(f"assembly: a run to {assembly.protocol} of testbed {assembly.testbed.name!r} has no "
                             "collector of mutual coupling")
        collector.__init__(self, members["linearizer"], assembly.schedule.nodes, "linearizer")
        self.message_port_register_out(PLOTS)
        self._assembly, self._path = assembly, Path(filename) if filename else None
        self._measured = False

    @property
    def identifications(self) -> Mapping[str, Identification]:
        """Amplifiers by access point, empty before the first phase has ended."""
        return self.member.identifications

    @property
    def calibrations(self) -> Mapping[str, SideCalibration]:
        """Calibrations by access point, empty before they have been measured."""
        return self.member.calibrations

    def finish(self, product: Product) -> None:
        """Publish what there is to plot."""
        self._measured = True
        if product.phase == AMPLITUDES and product.trusted:
            plots = {name: np.asarray(value) for name, value in curves(self.identifications).items()}
            self.message_port_pub(PLOTS, messages.product_to_pmt(Product(product.phase, plots)))

    def ended(self) -> None:
        """Write the files, and let what plots finish too."""
        self._save()
        self.message_port_pub(PLOTS, messages.encode("end", error=""))

    def stop(self) -> bool:
        """Write the files if the flowgraph was stopped before the end of the run had come here."""
        self._save()
        return True

    def _save(self) -> None:
        if self._path is not None and self._measured:
            self._measured = False
            calibration_files.write_linearization(self._assembly, self.member, self._path, self.epoch)
