# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's part in a beam sweep, for flowgraphs that wire role, transmitter and receiver themselves."""

from ..assembly import Assembly
from ..protocols.beam_sweep import SweepRole
from .role import role


class beam_sweep_role(role):
    """Role that sounds in the node's own slots and reports the channels heard in all others.

    Parameters
    ----------
    assembly : Assembly
        Of a run without verification (``verify=False``): its slots need a `verification_role`.
    name : str
        Node.
    fill : bool
        Zeros in silent slots: True for a simulated network, False for a radio.
    amplitude : float
        What a sample of unit power becomes on a radio, whose full scale is 1.
    """

    def __init__(self, assembly: Assembly, name: str, fill: bool = True, amplitude: float = 1.0):
        roles = [member for member in assembly.roles(name) if isinstance(member, SweepRole)]
        role.__init__(self, name, assembly.testbed.node(name).num_ports, assembly.schedule, roles,
                      assembly.testbed.samp_rate, fill, amplitude=amplitude, **assembly.faults(name))
