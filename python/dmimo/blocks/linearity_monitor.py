# SPDX-License-Identifier: GPL-3.0-or-later
"""Measures what linearising and calibrating arrays is worth, and says round by round what there is to plot."""

from collections.abc import Mapping

import numpy as np
import pmt

from ..assembly import Assembly
from ..protocols.linearity import LINEARITY, TREATMENTS
from ..protocols.slots import CollectorGroup, Product
from . import messages
from .collector import collector

PLOTS = pmt.intern("plots")


class linearity_monitor(collector):
    """Measures every access point by itself at a user terminal, and publishes beside the products what to plot.

    It takes the place of all collectors but the `linearizer`. After each measurement of the linearity `plots` gives for
    each access point, under its name, an underscore and: `spectrum_db` (3, bins), power per bin as received, over the
    mean one in the channel, from the lowest frequency up, before, calibrated, and after; `evm_db`, `aclr_db` and
    `power_db` (3,).

    Parameters
    ----------
    assembly : Assembly
        Of a run that linearises the access points, with verification.
    """

    def __init__(self, assembly: Assembly):
        members = {name: member for name, member in assembly.collectors().items() if name != "linearizer"}
        if assembly.protocol != "linearize" or not members:
            raise ValueError(f"assembly: a run to {assembly.protocol} of testbed {assembly.testbed.name!r} measures no "
                             "access point by itself")
        collector.__init__(self, CollectorGroup(members), assembly.schedule.nodes, "linearity_monitor")
        self.message_port_register_out(PLOTS)

    @property
    def report(self) -> Mapping[str, object] | None:
        """What the terminal has heard (`LinearityCollector.report`), None before it has or where nobody asks."""
        return getattr(self.member.members.get("linearity"), "report", None)

    def finish(self, product: Product) -> None:
        """Publish spectra and figures of merit."""
        if product.phase == LINEARITY:
            plots = {f"{ap}_{key}": np.array([found[name][key] for name in TREATMENTS], float)
                     for ap, found in self.report["access_points"].items()
                     for key in ("spectrum_db", "evm_db", "aclr_db", "power_db")}
            self.message_port_pub(PLOTS, messages.product_to_pmt(Product(product.phase, plots)))

    def ended(self) -> None:
        """Let what plots finish too."""
        self.message_port_pub(PLOTS, messages.encode("end", error=""))
