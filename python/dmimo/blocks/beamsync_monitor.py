# SPDX-License-Identifier: GPL-3.0-or-later
"""Watches over the synchronisation that leader and followers report."""

from ..assembly import Assembly
from .collector import collector


class beamsync_monitor(collector):
    """Publishes when the next synchronisation is due and how the ports stand to each other, and ends a failed start.

    Parameters
    ----------
    assembly : Assembly
        Of a testbed with a `beamsync` section.
    """

    def __init__(self, assembly: Assembly):
        if assembly.synchronization is None:
            raise ValueError("assembly: the testbed has no section beamsync")
        collector.__init__(self, assembly.collectors()["beamsync"], assembly.schedule.nodes, "beamsync_monitor")

    @property
    def history(self) -> list[dict[str, object]]:
        """What the followers reported, one entry per exchange: see `BeamSyncCollector`."""
        return self.member.members["beamsync"].history
