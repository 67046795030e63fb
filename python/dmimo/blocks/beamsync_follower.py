# SPDX-License-Identifier: GPL-3.0-or-later
"""A follower of a synchronisation, for flowgraphs that wire role, transmitter and receiver themselves."""

import pmt

from ..assembly import Assembly
from . import messages
from .role import role

CORRECTION = pmt.intern("correction")


class beamsync_follower(role):
    """All that a follower does in a run: measures its offset from the leader, corrects itself, and its other roles.

    Whenever the correction changes, the port `correction` says it as `frequency_corrector` takes it, for streams that
    the node sends and receives beside the run. The corrector of received streams needs `assembly.latency_samples` as
    its latency, or every change of frequency turns the node's calibration.

    Parameters
    ----------
    assembly : Assembly
        Of a testbed with a `beamsync` section.
    name : str
        An access point other than the leader.
    fill : bool
        Zeros in silent slots: True for a simulated network, False for a radio.
    amplitude : float
        What a sample of unit power becomes on a radio, whose full scale is 1.
    """

    def __init__(self, assembly: Assembly, name: str, fill: bool = True, amplitude: float = 1.0):
        followers = () if assembly.synchronization is None else assembly.synchronization.followers
        if name not in followers:
            raise ValueError(f"name = {name!r}: must be one of the testbed's followers, {followers}")
        role.__init__(self, name, assembly.testbed.node(name).num_ports, assembly.schedule, assembly.roles(name),
                      assembly.testbed.samp_rate, fill, amplitude=amplitude, **assembly.faults(name))
        self.message_port_register_out(CORRECTION)
        self._told = 0, 0.0, 0.0

    def updated(self) -> None:
        """Publish a correction that has changed."""
        carrier = self.correction.carrier
        state = carrier.changed_at, carrier.frequency_hz, carrier.phase_rad
        if state != self._told:
            self._told = state
            message = messages.encode("correction", from_sample=state[0], frequency_hz=state[1], phase_rad=state[2])
            self.message_port_pub(CORRECTION, message)
