# SPDX-License-Identifier: GPL-3.0-or-later
r"""Figures 17 and 18 of the bidirectional calibration paper: one coherent stream, by calibration algorithm.

Read from the paper: 4 TRPs and 2 UEs of two ports (polarisations) each, 300 m in line of sight; figure 17 is the SNR of
one downlink stream from all 8 TRP ports, figure 18 that of one uplink stream from both UEs' 4 ports. Chosen here: the
receiver is port 0 of the first AAU; every port sends all of its own power with the conjugate phase, on channels known
but for their calibration; power and places as in table I, without the gain of the arrays; 15 dB between co- and
cross-polarised paths, so that cross-polarised links (-4.3 dB per resource element) carry next to nothing by themselves,
as the paper saw them; tracking over one pattern of 0.625 ms. Not reproduced: the CNN, and the measured channels.

The maximum-likelihood forms calibrate each polarisation and join both (`bidirectional_polarisation`): the
cross-polarised links are below their thresholds one by one, and would leave two parts. The baselines know no threshold.

What holds: one stream forgives much. ML-TLS loses 0.05 dB against perfect coefficients, and no more when tracked, TLS
0.5 dB, spanning tree and Argos just over 1 dB. Argos-mean is the worst of the baselines here: its plain mean over UE
ports takes cross-polarised quotients at full weight. Tracking on each subcarrier by itself is worse than Argos.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from . import bidirectional_algorithms as algorithms
from .bidirectional_comparison import compare
from .bidirectional_model import PATTERN_S, Drop, Scene, draw
from .registry import register
from .trials import generators

PAIR = {"num_trp": 4, "num_ue": 2, "trp_ports": 2, "ue_ports": 2, "cross_polar_db": 15.0}


def _summarise(configuration: Mapping, arrays: Mapping[str, np.ndarray], title: str, label: str) -> dict:
    words = [f"{algorithms.LABELS[key]} {{:.3f}} ± {{:.3f}}".format(*algorithms.difference(arrays, "perfect", key))
             for key in ("joint_ml", "ml_tls", "tracked_wideband", "tls")]  # fmt: skip
    return {
        "title": title,
        "caption": f"{len(arrays['perfect'])} trials; {algorithms.scene_words(Scene(**configuration['scene']))}; "
                   f"tracked over one pattern of {PATTERN_S * 1e3:g} ms; below perfect in dB, with standard error: "
                   f"{'; '.join(words)}",
        "x_label": label,
        "curves": [algorithms.distribution(key, arrays[key]) for key in algorithms.CURVES],
    }  # fmt: skip


def summarise_downlink(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """Distribution and mean of the SNR by algorithm."""
    return _summarise(configuration, arrays, "One downlink stream from all TRP ports", "SNR at port 0 of a UE [dB]")


def summarise_uplink(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """Distribution and mean of the SNR by algorithm."""
    return _summarise(configuration, arrays, "One uplink stream from all UE ports", "SNR at port 0 of a TRP [dB]")


@register(
    "bidirectional-17",
    title="One downlink stream from cooperating TRPs: SNR by calibration algorithm",
    summarise=summarise_downlink,
    plot="distributions",
    defaults={"scene": PAIR},
    trials=1000,
)
def downlink_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, np.ndarray]:
    """SNR of each trial in dB, (trials,) per algorithm.

    References
    ----------
    Bidirectional calibration (CARS), section V-C, figure 17.
    """
    rngs = generators(seeds)
    return _snr_db(draw(Scene(**configuration["scene"]), rngs), rngs)


@register(
    "bidirectional-18",
    title="One uplink stream from collaborating UEs: SNR by calibration algorithm",
    summarise=summarise_uplink,
    plot="distributions",
    defaults={"scene": PAIR},
    trials=1000,
)
def uplink_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, np.ndarray]:
    """SNR of each trial in dB, (trials,) per algorithm: the UEs calibrate and send, the TRPs answer and listen.

    References
    ----------
    Bidirectional calibration (CARS), section V-C, figure 18.
    """
    rngs = generators(seeds)
    return _snr_db(draw(Scene(**configuration["scene"]), rngs).swapped(), rngs)


def _snr_db(drop: Drop, rngs) -> dict[str, np.ndarray]:
    found, receiver = compare(drop, rngs), drop.select(ue=[0])
    channels = {time: (receiver.uplink(algorithms.COMMON, time), receiver.downlink(algorithms.COMMON, time))
                for time in set(found.times_s.values())}  # fmt: skip
    return {key: algorithms.sinr_db(c, *channels[found.times_s[key]])[:, 0] for key, c in found.coefficients.items()}
