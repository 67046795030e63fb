# SPDX-License-Identifier: GPL-3.0-or-later
"""Monte-Carlo campaigns: seed in, arrays out; one registered function per figure.

>>> from gnuradio.dmimo import experiments
>>> "beamsync-7" in experiments.names()
True
>>> result = experiments.run("beam-sweep-1", trials=2000, seed=1, output="results")   # doctest: +SKIP
"""

from . import (  # noqa: F401  (they register their figures)
    beam_sweep,
    beamsync_evolution,
    beamsync_frequency,
    beamsync_graph,
    beamsync_improvements,
    beamsync_phase,
    beamsync_phase_noise,
    beamsync_residual,
    beamsync_tracking,
    bidirectional_ageing,
    bidirectional_coefficients,
    bidirectional_cooperation,
    bidirectional_efficiency,
    bidirectional_indoor,
    bidirectional_single_stream,
    bidirectional_streams,
    ota_dpd_calibration,
    ota_dpd_combining,
    ota_dpd_order,
    ota_dpd_rates,
)
from .campaign import Result, run
from .executors import CampaignError, Timeouts
from .registry import Figure, figure, names, register

__all__ = ["CampaignError", "Figure", "Result", "Timeouts", "figure", "names", "register", "run"]
