# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated network that a testbed file describes, and what a report says of its truth."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from .core import metrics, reciprocity, waveforms
from .core.sweep_calibration import SweepCalibration
from .protocols.bidirectional_estimate import SideCalibration
from .simulation.amplifiers import Amplifiers, amplifier_law, draw_amplifiers
from .simulation.coupling import CouplingLaw, PlanarArray
from .simulation.faults import Fault
from .simulation.hardware import Panel, draw_gains
from .simulation.network import Network, SimulatedNode
from .simulation.noise import seed_words
from .simulation.oscillators import Clock, Oscillator
from .simulation.propagation import Geometric, Propagation, Rayleigh
from .testbed import Node, Testbed


def network(bed: Testbed) -> Network:
    """The simulated network, drawn from the testbed's seed."""
    faults = [Fault(f.kind, f.node, f.slot, f.port, f.count) for f in bed.faults]
    nodes = [simulated_node(bed, node) for node in bed.nodes]
    return Network(nodes, propagation(bed), samp_rate=bed.samp_rate, seed=bed.seed, faults=faults)


def propagation(bed: Testbed) -> Propagation:
    """What lies between the nodes and between the ports of each."""
    settings = bed.propagation
    common = dict(seed=bed.seed, path_gain_db=settings.path_gain_db, delays=settings.delays,
                  pair_gain_db=settings.pair_gain_db, blocked_pairs=settings.blocked_pairs,
                  coupling_db=settings.coupling_db, cross_polarisation_db=settings.cross_polarisation_db,
                  coupling_law=None if settings.coupling is None else CouplingLaw(**asdict(settings.coupling)))
    if settings.kind == "geometric":
        return Geometric(num_paths=settings.num_paths, rice_factor_db=settings.rice_factor_db, **common)
    return Rayleigh(num_taps=settings.num_taps, delay_spread_s=settings.delay_spread_s, **common)


def simulated_node(bed: Testbed, node: Node) -> SimulatedNode:
    """One node with its true hardware, keyed by the testbed's seed and its name."""
    hardware, oscillator, clock = node.hardware, node.oscillator, node.clock
    rng = np.random.default_rng([bed.seed, *node.name.encode()])
    gains = [draw_gains(rng, node.num_ports, phase=hardware.phase, std_db=hardware.gain_std_db)
             * 10 ** (np.array(gains_db) / 20) for gains_db in node.gains_db("simulated")]
    phases = rng.uniform(-np.pi, np.pi, 2) * (oscillator.phase == "random")
    noise_var = 0.0 if bed.noise.snr_db is None else noise_variance(bed.noise.snr_db, hardware.noise_figure_db)
    return SimulatedNode(
        name=node.name, num_ports=node.num_ports,
        panel=Panel(node.panel.num_antennas, waveforms.dft_codebook(node.panel.num_antennas, node.panel.beams)),
        tx_gains=gains[0], rx_gains=gains[1],
        oscillator=Oscillator(
            samp_rate=bed.samp_rate, seed_key=(bed.seed, node.name), cfo_hz=oscillator.cfo_hz,
            linewidth_hz=oscillator.linewidth_hz, drift_hz=oscillator.drift_hz,
            drift_period_s=oscillator.drift_period_s, tx_phase=phases[0], rx_phase=phases[1]),
        clock=Clock(offset_samples=clock.offset_samples, loop_delay_samples=clock.loop_delay_samples,
                    rate=1.0 + (oscillator.cfo_hz / bed.center_freq if clock.follow_cfo else 0.0),
                    adjustable=_aligns(bed, node)),
        noise_var=noise_var,
        amplifiers=_amplifiers(bed, node),
        adc=None if hardware.adc is None else (hardware.adc.bits, hardware.adc.full_scale),
        position_m=node.position_m,
        array=None if node.array is None else PlanarArray(**asdict(node.array)),
    )


def _amplifiers(bed: Testbed, node: Node) -> Amplifiers | None:
    """A node's amplifiers, drawn with a generator of their own: the node's gains and phases do not depend on them."""
    settings = node.hardware.amplifier
    if settings is None:
        return None
    coefficients, saturation = amplifier_law(settings.kind, complex(*settings.compression), settings.saturation)
    return draw_amplifiers(
        np.random.default_rng(seed_words(bed.seed, node.name, "amplifier")), node.num_ports, coefficients,
        back_off_db=settings.back_off_db, drive_std_db=settings.drive_std_db, spread=settings.spread,
        saturation=saturation,
        memory=[complex(*gain) for gain in settings.memory])


def _aligns(bed: Testbed, node: Node) -> bool:
    """Whether a node corrects its sample clock."""
    settings = bed.beamsync
    return settings is not None and settings.timing and node.kind == "ap" and node.name != settings.leader


def noise_variance(snr_db: float, noise_figure_db: float = 0.0) -> float:
    """Noise variance per received sample for an SNR at unit transmit power and unit mean gain of a beam pair."""
    return 10 ** ((noise_figure_db - snr_db) / 10)


def truth(bed: Testbed, network: Network, estimate: SweepCalibration | SideCalibration,
          corrections: Mapping[str, complex] | None, names: Sequence[str]) -> dict[str, object]:
    """True c of the nodes `names`, and how far an estimate is from it: see `Assembly.truth`."""
    c = network.of_nodes(network.true_calibration(int(estimate.reference_time)), names)
    if corrections:
        owners = [name for name in names for _ in range(bed.node(name).num_ports)]
        c = c * np.array([corrections.get(name, 1.0) for name in owners])
    c = reciprocity.fix_gauge(c, estimate.reference)
    known = np.isfinite(estimate.c)
    if known.sum() < 2:
        return {"c_true": c, "alignment_error": None, "phase_error_deg": None}
    return {
        "c_true": c,
        "alignment_error": float(metrics.alignment_error(estimate.c[known], c[known])),
        "phase_error_deg": float(np.degrees(metrics.phase_error(estimate.c[known], c[known]))),
    }


def true_amplifiers(network: Network, names: Sequence[str]) -> Amplifiers:
    """The true amplifiers of all ports of the nodes `names`, in their order.

    Coefficients (ports, L, P) relative to the linear gain at band centre, sum_l a_l0 = 1, filled up with zeros to the
    longest memory and highest order among them; saturation (ports,) in the amplitude of samples, inf where there is
    none. Linear ports have a_00 = 1.
    """
    nodes = {node.name: node for node in network.nodes}
    own = [Amplifiers(np.ones((nodes[name].num_ports, 1))) if nodes[name].amplifiers is None
           else nodes[name].amplifiers for name in names]
    taps, orders = np.max([amplifiers.coefficients.shape[1:] for amplifiers in own], axis=0)
    coefficients = np.zeros((sum(amplifiers.num_ports for amplifiers in own), taps, orders), np.complex128)
    first = 0
    for amplifiers in own:
        last = first + amplifiers.num_ports
        coefficients[first:last, : amplifiers.num_taps, : amplifiers.coefficients.shape[2]] = amplifiers.coefficients
        first = last
    return Amplifiers(coefficients, np.concatenate([amplifiers.saturation for amplifiers in own]))
