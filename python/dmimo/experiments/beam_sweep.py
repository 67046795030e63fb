# SPDX-License-Identifier: GPL-3.0-or-later
"""Figure 1 of the beam-sweep calibration paper: alignment error against SNR for three sets of measurements."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..core import bounds, metrics, reciprocity
from ..core.waveforms import dft_codebook
from ..simulation.hardware import Panel, draw_gains
from ..simulation.propagation import Rayleigh, Site
from .registry import register

CURVES = {
    "random": "random beam pair",
    "strongest": "strongest beam pair",
    "all_beams": "all beams, maximum likelihood",
}


def summarise(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """Mean alignment error of each set with its 95 % band, and the bounds on the first, at each SNR."""
    trials = arrays["bound"].shape[0]
    curves = []
    for key, label in CURVES.items():
        mean, low, high = metrics.mean_interval(arrays[f"error_{key}"], axis=0)
        curves.append({"label": label, "mean": mean.tolist(), "low": low.tolist(), "high": high.tolist()})
    dashed = [{"label": label, "values": arrays[key].mean(axis=0).tolist()}
              for key, label in (("bound", "Cramér-Rao bound, all beams"),
                                 ("bound_corrected", "bound corrected for noise times noise"))]
    return {
        "title": f"Beam-sweep calibration of {configuration['num_nodes']} access points, "
                 f"{configuration['num_antennas']} antennas, {len(configuration['beams'])} beams each",
        "caption": f"{trials} trials, 95 % confidence bands",
        "x_label": "SNR per beamed measurement, 1/σ² [dB]",
        "y_label": "mean alignment error",
        "x": list(configuration["snr_db"]),
        "curves": curves,
        "dashed": dashed,
    }


@register(
    "beam-sweep-1",
    title="Alignment error against SNR: all beams jointly, the strongest and a random beam pair",
    summarise=summarise,
    plot="error_curves",
    defaults={"num_nodes": 3, "num_antennas": 32, "beams": [0, 1, 2], "snr_db": [2.5 * k for k in range(13)]},
    trials=10_000,
)
def trial_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, np.ndarray]:
    r"""Alignment errors and bounds of each trial at each SNR, every array (trials, SNRs).

    The two directions of each pair of nodes are, for every pair of beams,

    .. math:: Y_{ij} = r_i t_j W^T H_{ij} W + N_{ij}, \qquad H_{ji} = H_{ij}^T

    with unit-modulus t and r of uniform phase, H of antennas x antennas entries CN(0, 1), W the chosen columns of the
    unit-norm DFT codebook, and N of entries CN(0, 1 / SNR). "All beams" estimates c from the whole of Y. The other two
    take one bidirectional measurement per pair of nodes, of a random pair of beams or of the one with the largest
    channel gain (the true one, an advantage for this baseline), and apply the same maximum-likelihood estimator.
    The noise of a trial is the same at each SNR but for its scale, which leaves every point exact and makes the
    curves smooth.

    References
    ----------
    Vieira and Larsson, beam-sweep reciprocity calibration, eq. (5) and section III. Deviation: codebook columns have
    unit norm, so that the SNR of a beamed measurement is 1 / sigma^2.
    """
    draws = [_draw(configuration, np.random.default_rng(seed)) for seed in seeds]
    c, signal, noise, choice = (np.stack(part) for part in zip(*draws, strict=True))
    noise_var = 10.0 ** (-np.asarray(configuration["snr_db"], np.float64) / 10)
    y = signal[:, None] + np.sqrt(noise_var)[:, None, None, None] * noise[:, None]
    energy = np.abs(signal) ** 2
    picks = {"random": choice[..., None], "strongest": np.argmax(energy, axis=-1)[..., None]}
    measured = {"all_beams": y} | {
        key: np.take_along_axis(y, pick[:, None], axis=-1) for key, pick in picks.items()
    }
    arrays = {f"error_{key}": metrics.alignment_error(reciprocity.calibrate(values, reference=None), c[:, None])
              for key, values in measured.items()}
    # In units of the noise: the bounds take one noise variance per receiver, not one per SNR.
    relative = energy.sum(axis=-1)[:, None] / noise_var[:, None, None]
    for key, num_components in (("bound", None), ("bound_corrected", energy.shape[-1])):
        arrays[key] = bounds.alignment_error_crlb(c[:, None], relative, 1.0, num_components=num_components)
    return arrays


def _draw(configuration: Mapping, rng: np.random.Generator):
    """One trial: c (M,), noiseless and unit-noise measurements (M, M, B * B), a random beam pair per node pair (M, M).

    Beam pairs are ordered as in `reciprocity.pair_beam_sweep`, alike in both directions.
    """
    num_nodes, num_antennas = configuration["num_nodes"], configuration["num_antennas"]
    panel = Panel(num_antennas, dft_codebook(num_antennas, configuration["beams"]))
    sites = [Site(f"ap{m}", num_antennas=num_antennas) for m in range(num_nodes)]
    air = Rayleigh(seed=int(rng.integers(2**63)))
    num_beams = panel.num_beams
    t, r = draw_gains(rng, num_nodes), draw_gains(rng, num_nodes)
    sweep = np.zeros((num_nodes, num_nodes, num_beams, num_beams), np.complex128)
    for i in range(num_nodes):
        for j in range(i + 1, num_nodes):
            antennas = air.paths(sites[i], sites[j], samp_rate=1.0).gains[0, :, 0, :, 0]
            beamed = panel.codebook.T @ antennas @ panel.codebook
            sweep[i, j], sweep[j, i] = r[i] * t[j] * beamed, r[j] * t[i] * beamed.T
    noise = np.sqrt(0.5) * (rng.standard_normal(sweep.shape) + 1j * rng.standard_normal(sweep.shape))
    choice = rng.integers(num_beams**2, size=(num_nodes, num_nodes))
    choice = np.triu(choice, 1) + np.triu(choice, 1).T
    return t / r, reciprocity.pair_beam_sweep(sweep), reciprocity.pair_beam_sweep(noise), choice

