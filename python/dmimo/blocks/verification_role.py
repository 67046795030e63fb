# SPDX-License-Identifier: GPL-3.0-or-later
"""A node's part in a beam sweep and the verification after it, for flowgraphs that wire the node themselves."""

from ..assembly import Assembly
from .role import role


class verification_role(role):
    """Role that takes part in the beam sweep and then in the joint transmission that verifies the calibration.

    Parameters
    ----------
    assembly : Assembly
        Of a run with verification.
    name : str
        Node.
    fill : bool
        Zeros in silent slots: True for a simulated network, False for a radio.
    amplitude : float
        What a sample of unit power becomes on a radio, whose full scale is 1.
    """

    def __init__(self, assembly: Assembly, name: str, fill: bool = True, amplitude: float = 1.0):
        if not assembly.verifies:
            raise ValueError("assembly: has no verification; use beam_sweep_role")
        roles = assembly.roles(name)
        role.__init__(self, name, assembly.testbed.node(name).num_ports, assembly.schedule, roles,
                      assembly.testbed.samp_rate, fill, amplitude=amplitude, **assembly.faults(name))
