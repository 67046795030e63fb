# SPDX-License-Identifier: GPL-3.0-or-later
"""The leader of a synchronisation, for flowgraphs that wire role, transmitter and receiver themselves."""

from ..assembly import Assembly
from .role import role


class beamsync_leader(role):
    """All that the leader does in a run: sounds, returns conjugates, sends the frequency burst, and its other roles.

    Parameters
    ----------
    assembly : Assembly
        Of a testbed with a `beamsync` section, which names the leader.
    fill : bool
        Zeros in silent slots: True for a simulated network, False for a radio.
    amplitude : float
        What a sample of unit power becomes on a radio, whose full scale is 1.
    """

    def __init__(self, assembly: Assembly, fill: bool = True, amplitude: float = 1.0):
        if assembly.synchronization is None:
            raise ValueError("assembly: the testbed has no section beamsync")
        name = assembly.synchronization.leader
        role.__init__(self, name, assembly.testbed.node(name).num_ports, assembly.schedule, assembly.roles(name),
                      assembly.testbed.samp_rate, fill, amplitude=amplitude, **assembly.faults(name))
