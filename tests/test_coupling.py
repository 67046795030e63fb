# SPDX-License-Identifier: GPL-3.0-or-later
"""Mutual coupling of planar arrays: positions, laws, reciprocity, and what the ports of a node hear of each other."""

import numpy as np
import pytest
from gnuradio.dmimo.simulation.coupling import CouplingLaw, PlanarArray
from gnuradio.dmimo.simulation.network import Network, SimulatedNode
from gnuradio.dmimo.simulation.oscillators import Oscillator
from gnuradio.dmimo.simulation.propagation import Rayleigh, Site

ARRAY = PlanarArray(4, 25)
OFF_DIAGONAL = ~np.eye(100, dtype=bool)


def rng(seed=1):
    return np.random.default_rng(seed)


def test_elements_are_numbered_along_the_rows():
    array = PlanarArray(2, 3, 0.6)
    np.testing.assert_allclose(array.positions(), 0.6 * np.array([[0, 0], [1, 0], [2, 0], [0, 1], [1, 1], [2, 1]]))
    assert array.num_elements == 6
    distances = array.distances()
    assert distances[0, 1] == pytest.approx(0.6)
    assert distances[0, 5] == pytest.approx(0.6 * np.sqrt(5))
    assert np.array_equal(distances, distances.T)


@pytest.mark.parametrize(
    ("law", "at_one", "at_two"),
    [
        (CouplingLaw("linear", gain_db=-20.0, slope_db_per_wavelength=4.0), -22.0, -26.0),
        (CouplingLaw("log_distance", gain_db=-20.0, exponent=3.0), -20 - 30 * np.log10(2), -20 - 60 * np.log10(2)),
        (CouplingLaw("log_distance", gain_db=-20.0, exponent=2.0, reference_wavelengths=1.0), -20.0, -26.0206),
    ],
)
def test_gain_falls_by_its_law_and_phase_turns_back_once_per_wavelength(law, at_one, at_two):
    h = law.matrix(PlanarArray(1, 3, 1.0), rng())
    level_db = 20 * np.log10(np.abs(h[[0, 0], [1, 2]]))
    np.testing.assert_allclose(level_db, [at_one, at_two], atol=1e-4)
    quarter = law.matrix(PlanarArray(1, 2, 1.25), rng())[0, 1]
    assert np.angle(quarter) == pytest.approx(-np.pi / 2)
    assert not np.any(np.diag(h))


@pytest.mark.parametrize("kind", ["linear", "log_distance"])
def test_coupling_is_exactly_reciprocal_with_a_perturbation_of_the_stated_level(kind):
    law = CouplingLaw(kind, perturbation_db=-10.0)
    h, plain = law.matrix(ARRAY, rng()), CouplingLaw(kind).matrix(ARRAY, rng())
    assert np.array_equal(h, h.T)
    assert not np.any(np.diag(h))
    upper = np.triu_indices(100, 1)
    z = (h - plain)[upper] / np.abs(plain[upper])
    tolerance = 4 * 0.1 / np.sqrt(z.size)
    assert abs(np.mean(np.abs(z) ** 2) - 0.1) < tolerance
    assert abs(np.mean(z**2)) < np.sqrt(2) * tolerance
    assert abs(np.mean(z)) < 4 * np.sqrt(0.1 / z.size)


def test_only_the_stated_perturbation_breaks_reciprocity():
    broken = CouplingLaw(perturbation_db=-10.0, nonreciprocity_db=-20.0)
    h, kept = broken.matrix(ARRAY, rng()), CouplingLaw(perturbation_db=-10.0).matrix(ARRAY, rng())
    error = (h - kept)[OFF_DIAGONAL] / np.abs(CouplingLaw().matrix(ARRAY, rng())[OFF_DIAGONAL])
    assert abs(np.mean(np.abs(error) ** 2) - 0.01) < 4 * 0.01 / np.sqrt(error.size)
    upper = np.triu_indices(100, 1)
    difference = (h - h.T)[upper] / np.abs(CouplingLaw().matrix(ARRAY, rng()))[upper]
    assert abs(np.mean(np.abs(difference) ** 2) - 0.02) < 4 * 0.02 / np.sqrt(difference.size)
    assert not np.any(np.diag(h))


def test_levels_scale_one_draw():
    weak, strong, plain = (CouplingLaw(perturbation_db=p).matrix(ARRAY, rng()) for p in (-30.0, -10.0, None))
    np.testing.assert_allclose(strong - plain, 10 * (weak - plain), atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PlanarArray(0, 2), "rows"),
        (lambda: PlanarArray(1, 2, 0.0), "spacing_wavelengths"),
        (lambda: CouplingLaw("square"), "kind"),
        (lambda: CouplingLaw(gain_db=np.nan), "gain_db"),
        (lambda: CouplingLaw(slope_db_per_wavelength=-1.0), "slope_db_per_wavelength"),
        (lambda: CouplingLaw(exponent=np.inf), "exponent"),
        (lambda: CouplingLaw(reference_wavelengths=0.0), "reference_wavelengths"),
        (lambda: CouplingLaw(perturbation_db=np.inf), "perturbation_db"),
        (lambda: CouplingLaw(nonreciprocity_db=np.nan), "nonreciprocity_db"),
        (lambda: Rayleigh(seed=1, coupling_db=-10.0, coupling_law=CouplingLaw()), "exclude"),
        (lambda: Rayleigh(seed=1, coupling_law=CouplingLaw()).coupling(Site("a", 5, array=ARRAY)), "5 ports"),
        (lambda: node("a", 5, PlanarArray(2, 3)), "array"),
    ],
)
def test_bad_arguments_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# -- in propagation and in a network ----------------------------------------------------------------------------------


def node(name, num_ports, array=None, seed=0):
    phases = rng(seed).uniform(-np.pi, np.pi, (2, num_ports))
    return SimulatedNode(name, num_ports, Oscillator(samp_rate=1e6, seed_key=name), tx_gains=np.exp(1j * phases[0]),
                         rx_gains=np.exp(1j * phases[1]), array=array)


def test_each_node_has_its_own_coupling_and_paths_between_nodes_do_not_change():
    law = CouplingLaw(perturbation_db=-10.0)
    model, array = Rayleigh(seed=1, coupling_law=law), PlanarArray(2, 3)
    a, b = Site("a", 6, array=array), Site("b", 6, array=array)
    assert np.array_equal(model.coupling(a), Rayleigh(seed=1, coupling_law=law).coupling(a))
    assert not np.allclose(model.coupling(a), model.coupling(b))
    assert not np.allclose(model.coupling(a), Rayleigh(seed=2, coupling_law=law).coupling(a))
    assert model.coupling(Site("c", 1)) is None
    assert np.array_equal(model.paths(a, b, 1e6).gains, Rayleigh(seed=1).paths(a, b, 1e6).gains)


def test_a_node_without_an_array_is_a_row_at_half_a_wavelength():
    model = Rayleigh(seed=1, coupling_law=CouplingLaw(perturbation_db=-10.0))
    assert np.array_equal(model.coupling(Site("a", 5)), model.coupling(Site("a", 5, array=PlanarArray(1, 5, 0.5))))


@pytest.mark.parametrize("nonreciprocity_db", [None, -3.0])
def test_ports_receive_each_other_through_the_law_receiver_first(nonreciprocity_db):
    law, array = CouplingLaw(gain_db=0.0, nonreciprocity_db=nonreciprocity_db), PlanarArray(2, 2)
    model = Rayleigh(seed=1, coupling_law=law)
    network = Network([node("a", 4, array), node("b", 1)], model, samp_rate=1e6, seed=1)
    h, sender, beams = model.coupling(Site("a", 4, array=array)), network.nodes[0], np.zeros(5, int)
    expected = sender.rx_gains[:, None] * h * sender.tx_gains
    for port in range(4):
        x = np.zeros((5, 256), np.complex64)
        x[port] = 1.0
        y = network.process(x, 0, beams, final=True)[:4, 100]
        np.testing.assert_allclose(y, expected[:, port], atol=1e-6)
    np.testing.assert_allclose(network.true_channel("a", "a", beams, 0), expected, atol=1e-12)
