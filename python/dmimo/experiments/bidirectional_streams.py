# SPDX-License-Identifier: GPL-3.0-or-later
r"""Figures 19 and 20 of the bidirectional calibration paper: two downlink streams against the number of TRP ports.

Read from the paper: 4 TRPs of two ports (polarisations) each, 300 m; figure 19, one stream to each of two UEs, where
two TRP ports fail since each UE hears one of them only: the channel has rank 1; figure 20, two streams to the ports of
one UE, with coefficients that were measured with its port 0 or its port 1. Chosen here: port 0 of each UE receives in
figure 19; ports join TRP by TRP; zero-forcing with every port at most at its full power, on channels known but for
their calibration; places, power and 15 dB of polarisation as in `bidirectional_single_stream`. Not reproduced: the
measured channels; and power that falls with the number of ports.

What holds. Figure 19: with two ports both streams are lost even with perfect coefficients, at -8 dB: the singular
values of the channel are 22 dB apart and zero-forcing pays for it (noise in the coefficients is then no loss: it keeps
from nulling). With four they stand at 10 dB, and from four to eight ports gain 5.9 dB, of which 3.0 dB are the power of
the ports: the 3 dB of the paper. Figure 20: a UE's port hears the TRP ports of its own polarisation well and the others
at -4.3 dB per resource element, below the threshold of the estimator, which would refuse them. Taken all the same, as
the paper did, their phases are next to random: of the two streams, one gains 4.5 dB per doubling, the other, carried by
these ports, 0.7 dB (5 and 1 to 2 dB in the paper). Measured with both ports, each link weighted by what it carries,
both streams gain 5.4 dB, 0.4 dB less than with perfect coefficients; what is missing is the phase between the
polarisations, which one UE's eight weak links give to some degrees only.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from . import bidirectional_algorithms as algorithms
from .bidirectional_exchange import exchange
from .bidirectional_model import Drop, Scene, draw
from .bidirectional_polarisation import calibrate, from_one_port
from .bidirectional_single_stream import PAIR
from .registry import register
from .trials import generators

USERS = {"joint_ml": "joint ML, weighted", "ml_tls": "ML-TLS", "tls": "TLS", "uncalibrated": "uncalibrated"}
SOURCES = {"both": "both ports, joint ML", "port_0": "port 0 alone", "port_1": "port 1 alone",
           "uncalibrated": "uncalibrated"}  # fmt: skip


def _caption(configuration: Mapping, trials: int) -> str:
    return (f"{trials} trials, 95 % bands; {algorithms.scene_words(Scene(**configuration['scene']))}; zero-forcing, "
            f"every port at most at its full power.")  # fmt: skip


def _panel(configuration: Mapping, title: str, arrays: Mapping[str, np.ndarray], labels: Mapping, stream: int) -> dict:
    """SINR of one stream by coefficients, and with perfect ones dashed, against the number of ports."""
    return {
        "title": title, "x_label": "cooperating TRP ports", "y_label": "SINR [dB]", "x": configuration["num_ports"],
        "curves": [{"label": label, **algorithms.mean_curve(arrays[key][..., stream])}
                   for key, label in labels.items()],
        "dashed": [{"label": "perfect", "values": arrays["perfect"][..., stream].mean(axis=0).tolist()}],
        "x_scale": "log", "x_ticks": configuration["num_ports"],
    }  # fmt: skip


def summarise_users(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """SINR of both UEs, and how far apart the singular values of their channel are, against the number of ports."""
    panels = [_panel(configuration, f"UE {n}", arrays, USERS, n) for n in (0, 1)]
    panels.append({
        "title": "Rank", "x_label": "cooperating TRP ports", "y_label": "σ₂ / σ₁ [dB]",
        "x": configuration["num_ports"], "x_scale": "log", "x_ticks": configuration["num_ports"], "dashed": [],
        "curves": [{"label": "channel of both UEs", **algorithms.mean_curve(arrays["singular_db"])}],
    })  # fmt: skip
    return {"title": "Two downlink streams, one to each UE", "columns": 3, "panels": panels,
            "caption": _caption(configuration, len(arrays["perfect"]))}  # fmt: skip


def summarise_ports(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """SINR of both streams by the port that calibrated, against the number of TRP ports."""
    caption = _caption(configuration, len(arrays["perfect"])) + " Calibrated with this UE only."
    panels = [_panel(configuration, f"stream to port {p}", arrays, SOURCES, p) for p in (0, 1)]
    return {"title": "Two downlink streams to one UE, by the port that calibrated", "columns": 2, "panels": panels,
            "caption": caption}  # fmt: skip


@register(
    "bidirectional-19",
    title="Two streams to two UEs: SINR against cooperating TRP ports, and the rank of the channel",
    summarise=summarise_users,
    plot="panels",
    defaults={"scene": PAIR, "num_ports": [2, 4, 8]},
    trials=1000,
)
def users_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, np.ndarray]:
    """SINR in dB, (trials, numbers of ports, 2) per algorithm, and the singular values' ratio in dB.

    References
    ----------
    Bidirectional calibration (CARS), section V-C, figure 19.
    """
    rngs = generators(seeds)
    drop = draw(Scene(**configuration["scene"]), rngs)
    data = exchange(drop, rngs, algorithms.COMMON, 0.0)
    found = {key: calibrate(data, key, drop.scene).trp() for key in ("joint_ml", "ml_tls")}
    found["tls"] = algorithms.baseline(data, "tls")
    served = drop.select(ue=np.flatnonzero(np.arange(len(drop.ue_of_port)) % drop.scene.ue_ports == 0)[:2])
    return _against_ports(configuration, served, found, data.time_s)


@register(
    "bidirectional-20",
    title="Two streams to one UE, calibrated with one of its ports or with both",
    summarise=summarise_ports,
    plot="panels",
    defaults={"scene": {**PAIR, "num_ue": 1}, "num_ports": [2, 4, 8]},
    trials=1000,
)
def ports_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, np.ndarray]:
    """SINR in dB, (trials, numbers of ports, 2) by what calibrated.

    References
    ----------
    Bidirectional calibration (CARS), section V-C, figure 20.
    """
    rngs = generators(seeds)
    drop = draw(Scene(**configuration["scene"]), rngs)
    data = exchange(drop, rngs, algorithms.COMMON, 0.0)
    found = {f"port_{p}": from_one_port(data, p, drop.scene) for p in (0, 1)}
    found["both"] = calibrate(data, "joint_ml", drop.scene).trp()
    return _against_ports(configuration, drop.select(ue=[0, 1]), found, data.time_s)


def _against_ports(
    configuration: Mapping, served: Drop, found: Mapping[str, np.ndarray], time_s: float
) -> dict[str, np.ndarray]:
    """SINR of the two served ports for each number of TRP ports, with these and with perfect and no coefficients."""
    k = algorithms.COMMON
    perfect = served.coefficients(k, time_s)[0]
    found = {**found, "perfect": perfect, "uncalibrated": np.ones(perfect.shape)}
    up, down = served.uplink(k, time_s), served.downlink(k, time_s)
    counts = configuration["num_ports"]
    arrays = {key: np.stack([algorithms.sinr_db(c[:, :n], up[:, :n], down[:, :n]) for n in counts], axis=1)
              for key, c in found.items()}  # fmt: skip
    values = [np.linalg.svd(np.moveaxis(down[:, :n], -1, 1), compute_uv=False) for n in counts]
    ratio = np.stack([20 * np.log10(s[..., 1] / s[..., 0]).mean(axis=1) for s in values], axis=1)
    return arrays | {"singular_db": ratio}
