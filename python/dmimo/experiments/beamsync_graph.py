# SPDX-License-Identifier: GPL-3.0-or-later
"""Twelve access points on uneven links: synchronised on a graph of pairs, a tree, or the star of the best leader."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..core import metrics
from ..core import synchronization_energy as energy
from ..core.graph_synchronization import graph_phase_crlb, link_information, synchronise_graph
from ..simulation.propagation import Rayleigh, Site
from .registry import register

CURVES = {"star": "best star", "tree": "best tree", "graph": "graph"}
# Where the path gain is 0 dB, and the least distance that counts.
_REFERENCE_M, _LEAST_M = 20.0, 3.0


def summarise(configuration: Mapping, arrays: Mapping[str, np.ndarray]) -> dict:
    """Mean alignment error of star, tree and graph with 95 % bands, and their bounds, at each total energy."""
    trials = len(arrays["bound_star"])
    families = []
    for key, label in CURVES.items():
        mean, low, high = (part.tolist() for part in metrics.mean_interval(arrays[f"error_{key}"]))
        families.append({"label": label, "curves": [{"mean": mean, "low": low, "high": high}],
                         "dashed": arrays[f"bound_{key}"].mean(axis=0).tolist()})
    saved = {key: saving_db(arrays, key) for key in ("tree", "graph")}
    words = ", ".join(f"{key} {mean:.1f} ± {error:.1f} dB" for key, (mean, error) in saved.items())
    return {
        "title": f"{configuration['num_nodes']} access points in a hall at equal total energy",
        "caption": f"{trials} halls, 95 % bands; energy saved over the star: {words}",
        "x_label": f"total energy over noise, received at {_REFERENCE_M:g} m [dB]",
        "y_label": "mean alignment error [rad²]",
        "x": list(configuration["energy_db"]),
        "families": families,
        "families_title": "pairs measured",
        "kinds": ["maximum likelihood"],
        "bound": "Cramér-Rao bound",
    }


def saving_db(arrays: Mapping[str, np.ndarray], key: str) -> tuple[float, float]:
    """Energy that `key` saves over the best star at the same bound: mean over halls in dB, and its standard error."""
    ratio = 10.0 * np.log10(arrays["bound_star"][:, -1] / arrays[f"bound_{key}"][:, -1])
    mean, error = metrics.mean_and_standard_error(ratio)
    return float(mean), float(error)


@register(
    "beamsync-graph",
    title="Alignment error of twelve access points against total energy: best star, best tree, graph",
    summarise=summarise,
    plot="curve_families",
    defaults={"num_nodes": 12, "num_antennas": 16, "num_samples": 100, "hall_m": [60.0, 30.0], "exponent": 3.0,
              "shadowing_db": 8.0, "energy_db": [5.0 * k for k in range(9)]},
    trials=200,
)
def trial_chunk(configuration: Mapping, seeds: Sequence[np.random.SeedSequence]) -> dict[str, np.ndarray]:
    r"""Alignment errors and bounds of each hall at each energy, every array (trials, energies).

    Access points stand uniformly in the hall. Pair (i, j) has the path gain of its distance, log-normal shadowing and
    iid Rayleigh fading between its antennas; an exchange with energy e measures its phase difference as the angle of

    .. math:: e^{j(\varphi_i - \varphi_j)} + CN(0, 2 v), \qquad v = 2 \sigma^2 / (e \lambda_1)

    (unit-modulus gains; the high-SNR bound of BeamSync with its energy equally in stages II and III). Star, tree and
    graph have the energies that are best for each. A node that leads any pair sends stage I once: M antennas' worth of
    energy, M / (2 N (K - 1)) of the total with K nodes and N samples. The star pays that once, the others for a vertex
    cover of their pairs.

    What the graph gains over the star is mostly that of short links in several hops, which a tree has as well; loops
    add about 0.6 dB, and a check of the measurements. Without shadowing (links spread by the places alone) the graph
    saves 6.6 dB, with 8 dB of shadowing 12 dB; counted relative to a leader instead, 1 dB less. Shares matter: equal
    energies on all pairs cost 3 to 5 dB.
    """
    draws = [_hall(configuration, np.random.default_rng(seed)) for seed in seeds]
    quality, phases, noise = (np.stack(part) for part in zip(*draws, strict=True))
    trees = [energy.best_tree(one) for one in quality]
    plans = {"star": energy.best_star(quality).energy, "tree": np.stack([tree.energy for tree in trees]),
             "graph": energy.allocate_energy(quality).energy}
    totals = 10.0 ** (np.asarray(configuration["energy_db"], np.float64) / 10)
    num_nodes = configuration["num_nodes"]
    sounding = configuration["num_antennas"] / (2.0 * configuration["num_samples"] * (num_nodes - 1))
    arrays = {}
    for key, plan in plans.items():
        left = 1.0 - sounding * np.array([energy.sounding_nodes(one).sum() for one in plan])
        # (trials, energies, M, M)
        information = (plan * quality)[:, None] * left[:, None, None, None] * totals[:, None, None]
        bound = graph_phase_crlb(information, leader=None)
        arrays[f"bound_{key}"] = np.trace(bound, axis1=-2, axis2=-1) / num_nodes
        arrays[f"error_{key}"] = _alignment_errors(information, phases, noise)
    return arrays


def _alignment_errors(information: NDArray, phases: NDArray, noise: NDArray) -> NDArray:
    variance = np.divide(1.0, information, out=np.full(information.shape, np.inf), where=information > 0)
    turn = np.exp(1j * (phases[:, None, :, None] - phases[:, None, None, :]))
    spread = np.where(np.isfinite(variance), np.sqrt(2.0 * np.where(np.isfinite(variance), variance, 0.0)), 0.0)
    found = synchronise_graph(np.angle(turn + spread * noise[:, None]), variance)
    return metrics.alignment_error(np.exp(1j * (phases[:, None] + found.phase_rad)), np.ones(phases.shape[-1]))


def _hall(configuration: Mapping, rng: np.random.Generator) -> tuple[NDArray, NDArray, NDArray]:
    """One trial: information per energy over noise of each pair, true phases (K,), Hermitian noise CN(0, 1)."""
    num_nodes, num_antennas = configuration["num_nodes"], configuration["num_antennas"]
    place = rng.uniform(0.0, 1.0, (num_nodes, 2)) * configuration["hall_m"]
    distance = np.maximum(np.linalg.norm(place[:, None] - place, axis=-1), _LEAST_M)
    gain_db = -10.0 * configuration["exponent"] * np.log10(distance / _REFERENCE_M)
    gain_db += configuration["shadowing_db"] * rng.standard_normal(gain_db.shape)
    sites = [Site(f"ap{m}", num_antennas=num_antennas) for m in range(num_nodes)]
    air = Rayleigh(seed=int(rng.integers(2**63)))
    quality = np.zeros((num_nodes, num_nodes))
    i, j = np.triu_indices(num_nodes, 1)
    channels = np.stack([air.paths(sites[a], sites[b], 1.0).gains[0, :, 0, :, 0] for a, b in zip(i, j, strict=True)])
    largest = np.linalg.norm(channels, 2, axis=(-2, -1)) ** 2
    quality[i, j] = link_information(10.0 ** (gain_db[i, j] / 10.0) * largest, 1.0)
    noise = np.triu(rng.standard_normal((num_nodes, num_nodes)) + 1j * rng.standard_normal((num_nodes, num_nodes)), 1)
    noise = np.sqrt(0.5) * (noise + noise.conj().T)
    return quality + quality.T, rng.uniform(-np.pi, np.pi, num_nodes), noise
