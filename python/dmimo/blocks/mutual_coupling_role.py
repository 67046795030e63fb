# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's part in the measurements within arrays, for flowgraphs that wire the node themselves."""

from ..assembly import Assembly
from .role import role


class mutual_coupling_role(role):
    """Role that sends pilots port by port, listens to itself, and predistorts all that the node sends from then on.

    Parameters
    ----------
    assembly : Assembly
        Of a run that linearises the access points.
    name : str
        Node.
    fill : bool
        Zeros in silent slots: True for a simulated network, False for a radio.
    amplitude : float
        What a sample of unit power becomes on a radio, whose full scale is 1.
    """

    def __init__(self, assembly: Assembly, name: str, fill: bool = True, amplitude: float = 1.0):
        if assembly.protocol != "linearize":
            raise ValueError(f"assembly: is of a run to {assembly.protocol}, must be one to linearize")
        role.__init__(self, name, assembly.testbed.node(name).num_ports, assembly.schedule, assembly.roles(name),
                      assembly.testbed.samp_rate, fill, amplitude=amplitude, **assembly.faults(name))
