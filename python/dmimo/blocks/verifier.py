# SPDX-License-Identifier: GPL-3.0-or-later
"""Designs the joint transmission and measures its coherent gain from what the UE reports."""

from pathlib import Path

from ..assembly import Assembly
from ..protocols.verification import DOWNLINK
from ..records import write_json
from .collector import collector


class verifier(collector):
    """Publishes chosen beams, precoding weights and the coherent gain as products for the scheduler.

    Parameters
    ----------
    assembly : Assembly
    filename : str
        JSON file for the gains; empty for none.
    """

    def __init__(self, assembly: Assembly, filename: str = ""):
        self._verifier = assembly.verifier()
        collector.__init__(self, self._verifier, assembly.schedule.nodes, "verifier")
        self._filename = filename

    @property
    def report(self) -> dict[str, object] | None:
        """Gains in dB, None before the downlink has ended."""
        return self._verifier.report

    @property
    def history(self) -> list[dict[str, object]]:
        """Gains of every measurement so far, and the absolute sample at which it began."""
        return self._verifier.history

    def finish(self, product) -> None:
        """Write the gains."""
        if self._filename and product.phase == DOWNLINK:
            write_json(Path(self._filename), self._verifier.report)
