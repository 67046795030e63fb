# SPDX-License-Identifier: GPL-3.0-or-later
r"""Figures 23 and 24 of the bidirectional calibration paper: indoors without a line of sight, 8 + 8 AAUs.

Read from the paper: 8 AAUs on either side in one hall, no line of sight, rich multipath; figure 23, the SNR of one
stream, averaged over places, against the number of TRP ports, calibrated and not; figure 24, the SINR of 1, 2 and 4
streams by algorithm. Chosen here: one port per AAU; TRPs along 20 m, UEs in a square of 10 m around 12 m away; 8 paths
with a delay spread of 30 ns, CN(0, .) each, 25 dB behind walls and 3 dB of shadowing, which makes 12.5 dB per resource
element in the middle; 4 UEs calibrate, up to 4 others are served, each by one stream; one stream: every port at full
power, several: zero-forcing with every port at most at its full power. Not reproduced: the CNN, the hall itself.

The channels have fades. An answer 1 / h spends its power on these, so here the answer is the conjugate form, which
weights each subcarrier by its power, with its amplitude in the metadata (`bidirectional_exchange.exchange`): half the
phase error of the inverse form. C itself has no fades.

What holds. Uncalibrated, a doubling of the ports gains 3.3 to 4.2 dB, which is their power and that not all fade at
once; calibrated 6.0 to 6.7 dB, as with perfect coefficients. The order of the paper comes out at 2 and 4 streams as in
line of sight, and the distances grow with the number of streams: with one, ML-TLS is 0.07 dB ahead of TLS, with four 5.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from . import bidirectional_algorithms as algorithms
from .bidirectional_comparison import Found, compare
from .bidirectional_model import PATTERN_S, Drop, Scene, draw
from .registry import register
from .trials import generators

HALL = {"facade_m": 20.0, "distance_m": 12.0, "area_m": 10.0, "line_of_sight": False, "num_scattered": 8,
        "delay_spread_s": 30e-9, "extra_loss_db": 25.0, "shadowing_db": 3.0}  # fmt: skip
BY_PORTS = {"joint_ml": "joint ML, weighted", "ml_tls": "ML-TLS", "tls": "TLS", "argos": "Argos",
            "uncalibrated": "uncalibrated"}  # fmt: skip


def summarise_ports(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """Mean SNR of one stream against the number of ports."""
    ports = configuration["num_ports"]
    return {
        "title": "One downlink stream without a line of sight",
        "caption": _caption(configuration, arrays),
        "columns": 1,
        "panels": [{
            "title": "", "x_label": "cooperating TRP ports", "y_label": "SNR [dB]", "x": ports, "x_scale": "log",
            "x_ticks": ports,
            "curves": [{"label": label, **algorithms.mean_curve(arrays[key])} for key, label in BY_PORTS.items()],
            "dashed": [{"label": "perfect", "values": arrays["perfect"].mean(axis=0).tolist()}],
        }],
    }  # fmt: skip


def summarise_streams(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """Distribution and mean of the SINR with the most streams by algorithm, and the means against their number."""
    streams, curves = configuration["num_streams"], algorithms.CURVES
    return {
        "title": "Streams without a line of sight, by calibration algorithm",
        "caption": f"{_caption(configuration, arrays)} Tracked over one pattern of {PATTERN_S * 1e3:g} ms. "
                   f"Distribution and bars: {streams[-1]} streams",
        "x_label": "SINR per stream [dB]",
        "curves": [algorithms.distribution(key, arrays[key][:, -1]) for key in curves],
        "sweep": {"x_label": "streams", "x": streams, "x_ticks": streams,
                  "curves": [algorithms.mean_curve(arrays[key]) for key in curves]},
    }  # fmt: skip


@register(
    "bidirectional-23",
    title="One stream without a line of sight: SNR against cooperating TRP ports, calibrated and not",
    summarise=summarise_ports,
    plot="panels",
    defaults={"scene": HALL, "num_calibrating": 4, "num_ports": [1, 2, 4, 8]},
    trials=1000,
)
def ports_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, np.ndarray]:
    """SNR in dB, (trials, numbers of ports) per algorithm, at the first UE that did not calibrate.

    References
    ----------
    Bidirectional calibration (CARS), section V-C, figure 23.
    """
    drop, found = _calibrated(configuration, seeds)
    served = drop.select(ue=[configuration["num_calibrating"]])
    channels = _channels(served, found)
    return {
        key: np.stack([_sinr_db(found, channels, key, ports=n)[:, 0] for n in configuration["num_ports"]], axis=1)
        for key in (*BY_PORTS, "perfect")
    }


@register(
    "bidirectional-24",
    title="1, 2 and 4 streams without a line of sight: SINR by calibration algorithm",
    summarise=summarise_streams,
    plot="distributions",
    defaults={"scene": HALL, "num_calibrating": 4, "num_streams": [1, 2, 4]},
    trials=1000,
)
def streams_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, np.ndarray]:
    """SINR in dB, mean over the streams, (trials, numbers of streams) per algorithm.

    References
    ----------
    Bidirectional calibration (CARS), section V-C, figure 24.
    """
    drop, found = _calibrated(configuration, seeds)
    channels = _channels(drop.select(ue=slice(configuration["num_calibrating"], None)), found)
    return {
        key: np.stack([_sinr_db(found, channels, key, users=n).mean(axis=1) for n in configuration["num_streams"]], 1)
        for key in algorithms.CURVES
    }


def _calibrated(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> tuple[Drop, Found]:
    rngs = generators(seeds)
    drop = draw(Scene(**configuration["scene"]), rngs)
    return drop, compare(drop.select(ue=slice(0, configuration["num_calibrating"])), rngs, form="conjugate")


def _channels(served: Drop, found: Found) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """Uplink and downlink of the served UEs at each time for which coefficients were found."""
    return {time: (served.uplink(algorithms.COMMON, time), served.downlink(algorithms.COMMON, time))
            for time in set(found.times_s.values())}  # fmt: skip


def _sinr_db(found: Found, channels: Mapping, key: str, *, ports: int | None = None, users: int | None = None):
    """SINR (T, users) in dB of the first `users` served by the first `ports`; all of them by default."""
    up, down = (channel[:, :ports, :users] for channel in channels[found.times_s[key]])
    return algorithms.sinr_db(found.coefficients[key][:, :ports], up, down)


def _caption(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> str:
    trials, scene = len(arrays["perfect"]), Scene(**configuration["scene"])
    last = {key: values[:, -1] for key, values in arrays.items()}
    words = [f"{algorithms.LABELS[key]} {{:.3f}} ± {{:.3f}}".format(*algorithms.difference(last, "perfect", key))
             for key in ("joint_ml", "ml_tls", "tls")]  # fmt: skip
    return (f"{trials} trials, 95 % bands; {algorithms.scene_words(scene)}; {configuration['num_calibrating']} UEs "
            f"calibrate. Rightmost point below perfect in dB, with standard error: {', '.join(words)}.")  # fmt: skip
