# SPDX-License-Identifier: GPL-3.0-or-later
"""Free-running sounding: the same slot again and again."""


from ..core.waveforms import SlotLayout, SoundingSymbol
from .repeating_source import repeating_source


class pilot_source(repeating_source):
    """Streams of sounding slots, one per port; the ports' symbols follow one another inside the slot.

    Parameters
    ----------
    num_ports : int
    slot_samples, lead_samples, pilot_samples, num_subcarriers, prefix_samples : int
        Of the `SlotLayout` and its `SoundingSymbol`.
    amplitude : float
        Root mean square of a symbol's samples.
    """

    def __init__(self, num_ports: int = 1, slot_samples: int = 256, lead_samples: int = 16, pilot_samples: int = 128,
                 num_subcarriers: int = 96, prefix_samples: int = 32, amplitude: float = 1.0):
        symbol = SoundingSymbol(pilot_samples, num_subcarriers, prefix_samples)
        slot = SlotLayout(slot_samples, lead_samples, symbol, num_ports).sounding_burst()
        repeating_source.__init__(self, slot, amplitude, "pilot_source")
