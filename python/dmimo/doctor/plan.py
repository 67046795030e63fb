# SPDX-License-Identifier: GPL-3.0-or-later
"""From a testbed file to the radios that are examined, and how."""

from collections.abc import Sequence
from dataclasses import replace

from .. import radio_plan
from ..radio_settings import RadioSettings
from ..testbed import Testbed
from ..testbed_sections import per_port
from . import fixes
from .patient import Options

MIN_RETUNES = 4


def radios(bed: Testbed, names: Sequence[str] = ()) -> dict[str, RadioSettings]:
    """Settings of the testbed's radios, as a run with `frontend: usrp` has them; of those with these names, if any.

    Raises
    ------
    ValueError
        If the testbed has no radios, or none of such a name.
    """
    if bed.usrp is None:
        raise ValueError(f"there is no radio in the testbed file: {fixes.NO_USRP_SECTION}")
    known = radio_plan.settings(replace(bed, frontend="usrp"))
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"--radio {', '.join(unknown)}: no such radio; allowed: {', '.join(known)}")
    return {name: known[name] for name in names or known}


def options(bed: Testbed, *, transmit: bool, retunes: int, duration_s: float) -> Options:
    """How the testbed's radios are examined: within what the file lets a run do.

    Raises
    ------
    ValueError
        If the retunes are too few to tell anything.
    """
    if 0 < retunes < MIN_RETUNES:
        raise ValueError(f"--retunes {retunes}: must be 0, or at least {MIN_RETUNES}")
    given = None
    if bed.usrp.loop_delay == "given":
        given = {node.name: per_port(node.radio.loop_delays_samples, node.num_ports, 0) for node in bed.nodes}
    return Options(amplitude=bed.usrp.tx_amplitude, transmit=transmit, retunes=retunes, duration_s=duration_s,
                   leads_s=(bed.usrp.lead_s, bed.usrp.reactive_lead_s), loop_delays=given)
