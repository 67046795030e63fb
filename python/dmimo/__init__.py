# SPDX-License-Identifier: GPL-3.0-or-later
"""Phase-coherent distributed MIMO over the air: calibration, synchronisation, simulation, GNU Radio blocks.

The numerical layers (`core`, `simulation`, `protocols`, `experiments`) need no GNU Radio. The blocks are
imported on first use, so that ``from gnuradio import dmimo`` stays cheap and works where GNU Radio is absent.
"""

from importlib import import_module

__version__ = "0.1.0"

# Each block is a class of the same name in gnuradio.dmimo.blocks.<name>.
_BLOCKS = (
    "amplifier_model",
    "beam_sweep_role",
    "beamsync_follower",
    "beamsync_leader",
    "beamsync_monitor",
    "bidirectional_calibrator",
    "bidirectional_monitor",
    "burst_receiver",
    "burst_transmitter",
    "calibrator",
    "cars_reader",
    "cars_responder",
    "channel_estimator",
    "conjugate_return",
    "frequency_corrector",
    "linearity_monitor",
    "linearizer",
    "loop_delay_monitor",
    "mutual_coupling_role",
    "node",
    "ofdm_pilot_source",
    "ofdm_sounder",
    "phase_tracker",
    "pilot_source",
    "precoder",
    "predistorter",
    "product_probe",
    "role",
    "simulated_network",
    "slot_scheduler",
    "usrp_array",
    "verification_role",
    "verifier",
)

__all__ = ["__version__", *_BLOCKS]


def __getattr__(name: str):
    if name in _BLOCKS:
        return getattr(import_module(f"{__name__}.blocks.{name}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return sorted([*globals(), *_BLOCKS])
