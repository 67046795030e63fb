# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated network: samples in, samples out, held against its own truth, plain convolution and invariances."""

import itertools

import numpy as np
import pytest
from gnuradio.dmimo.simulation.faults import Fault
from gnuradio.dmimo.simulation.network import Network, SimulatedNode
from gnuradio.dmimo.simulation.oscillators import Clock, Oscillator
from gnuradio.dmimo.simulation.propagation import Rayleigh, Site
from networks import BLOCK, HOUR, MODELS, SAMP_RATE, make_network, noise_like


def in_pieces(network, x, start, beams, cuts):
    """Return what comes out when x goes in cut at `cuts`, nothing but the last piece being final."""
    pieces = itertools.pairwise([0, *cuts, x.shape[1]])
    return np.concatenate(
        [network.process(x[:, a:b], start + a, beams, final=b == x.shape[1]) for a, b in pieces], axis=1
    )


# -- the physics ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "moving", "tolerance"), [("flat", True, 5e-6), ("delays", False, 4e-4), ("taps", {"cfo_hz": 10.0}, 2e-3)]
)
@pytest.mark.parametrize("start", [0, HOUR])
def test_samples_follow_the_true_channel(model, moving, tolerance, start):
    """A tone in the pass-band from each port in turn, through every pair, against r h t at that time and frequency.

    The truth takes both oscillators at one instant; over the 5 us of "taps" 20 Hz turn by 6e-4.
    """
    network = make_network(**{**MODELS[model], "node": {}, "moving": moving})
    beams, num, cycles = np.array([1, 0, 2, 1]), 4 * BLOCK, 0.17
    tone, middle = np.exp(2j * np.pi * cycles * np.arange(num)), 2 * BLOCK
    for tx in network.names:
        for k, port in enumerate(range(4)[network.ports(tx)]):
            x = np.zeros((4, num), dtype=np.complex64)
            x[port] = tone
            y = network.process(x, start, beams, final=True)[:, middle + network.latency_samples] / tone[middle]
            for rx in network.names:
                h = network.true_channel(rx, tx, beams, start + middle, np.array([cycles * SAMP_RATE]))[:, k, 0]
                np.testing.assert_allclose(y[network.ports(rx)], h, atol=tolerance)


def test_flat_channel_equals_the_true_channel_at_every_sample():
    network = make_network(moving=True)
    x, beams, start = noise_like((4, 300)), np.array([2, 1, 0, 1]), HOUR
    y = network.process(x, start, beams, final=True)
    for n in (0, 100, 255, 256, 299):
        h = np.block([[network.true_channel(rx, tx, beams, start + n) for tx in network.names] for rx in network.names])
        np.testing.assert_allclose(y[:, n], h @ x[:, n], atol=5e-6)


@pytest.mark.parametrize(("model", "moving", "tolerance"), [("flat", True, 1e-5), ("taps", {"cfo_hz": 10.0}, 5e-3)])
@pytest.mark.parametrize("start", [0, HOUR])
def test_both_directions_of_a_pair_differ_by_the_ratio_of_their_calibration(model, moving, tolerance, start):
    """y_ij / y_ji = c_j / c_i, each beam pair with its transpose, for several ports per node."""
    network = make_network(**{**MODELS[model], "node": {}, "moving": moving})
    c, x, num = network.true_calibration(start + 600), noise_like(1024), 1024
    settings = [np.array(beams) for beams in ([0, 1, 2, 0], [2, 2, 1, 1])]
    for beams in settings:
        y = np.empty((4, 4), dtype=complex)
        for port in range(4):
            burst = np.zeros((4, num), dtype=np.complex64)
            burst[port] = x
            y[:, port] = network.process(burst, start, beams, final=True)[:, 600]
        for i, j in ((0, 1), (0, 3), (2, 3), (2, 0)):
            assert abs(y[i, j] / y[j, i] / (c[j] / c[i]) - 1) < tolerance


def test_reciprocity_holds_to_single_precision_over_multipath():
    propagation = Rayleigh(seed=1, num_taps=5, delay_spread_s=2e-6, delays=True)
    network = make_network(propagation=propagation)
    c, x, beams = network.true_calibration(0), noise_like(1024), np.array([1, 2, 0, 1])
    received = []
    for port in range(4):
        burst = np.zeros((4, 1024), dtype=np.complex64)
        burst[port] = x
        received.append(network.process(burst, HOUR, beams, final=True))
    for i, j in ((0, 1), (0, 3), (2, 3), (1, 0)):
        there, back = received[j][i], received[i][j]
        assert abs(np.vdot(back, there) / np.vdot(back, back) / (c[j] / c[i]) - 1) < 1e-6


def test_phases_turn_with_the_sign_of_the_convention():
    """Node 1 sends a constant, node 2 hears it turn by theta_1 - theta_2; c turns by twice the difference."""
    frequencies = (1000.0, -500.0)
    sources = [Oscillator(samp_rate=SAMP_RATE, seed_key=i, cfo_hz=f) for i, f in enumerate(frequencies)]
    nodes = [SimulatedNode(f"n{i}", 1, source) for i, source in enumerate(sources)]
    network = Network(nodes, Rayleigh(seed=1), samp_rate=SAMP_RATE, seed=1)
    x = np.array([np.ones(1000), np.zeros(1000)], dtype=np.complex64)
    y = network.process(x, 0, np.zeros(2, int), final=True)[1]
    np.testing.assert_allclose(y / y[0], np.exp(2j * np.pi * 1500.0 * np.arange(1000) / SAMP_RATE), atol=2e-6)
    c = network.true_calibration(1000) / network.true_calibration(0)
    np.testing.assert_allclose(c, np.exp(4j * np.pi * np.array(frequencies) * 1000 / SAMP_RATE), atol=1e-6)


def test_multipath_equals_direct_convolution():
    propagation = Rayleigh(seed=1, num_taps=6, delay_spread_s=3e-6)
    network, beams = make_network(propagation=propagation), np.array([0, 1, 2, 0])
    assert network.latency_samples == 0
    x = noise_like((4, 2000))
    y = network.process(x, 1000, beams, final=True)
    expected = np.zeros((4, 2000), dtype=complex)
    # Six integer taps follow from six frequencies.
    cycles = np.arange(6) / 6
    for rx, tx in itertools.product(network.names, network.names):
        h = np.fft.ifft(network.true_channel(rx, tx, beams, 0, cycles * SAMP_RATE))
        here, there = (enumerate(range(4)[network.ports(name)]) for name in (rx, tx))
        for (p, i), (q, j) in itertools.product(here, there):
            expected[i] += np.convolve(x[j], h[p, q])[:2000]
    np.testing.assert_allclose(y, expected, atol=2e-5)


def test_a_node_does_not_hear_itself_and_blocked_pairs_are_silent():
    network = make_network(propagation=Rayleigh(seed=1, blocked_pairs=[("ap1", "ap3")]))
    x = np.zeros((4, 10), dtype=np.complex64)
    x[1] = 1.0  # first port of ap2
    y = network.process(x, 0, np.zeros(4, int), final=True)
    assert not y[1:3].any()
    assert y[[0, 3]].all()
    x[1], x[0] = 0.0, 1.0
    y = network.process(x, 5000, np.zeros(4, int), final=True)
    assert not y[3].any()


def test_another_node_does_not_change_the_pairs_before():
    few, more = make_network((1, 2)), make_network((1, 2, 1))
    beams = np.array([1, 0, 2, 0])
    before, after = few.true_channel("ap1", "ap2", beams[:3], 5), more.true_channel("ap1", "ap2", beams, 5)
    assert np.array_equal(before, after)


@pytest.mark.parametrize("delays", [False, True])
def test_beams_act_from_the_slot_that_they_belong_to(delays):
    """A beam changes within a block: a sample meets its transmit beam on leaving, its receive beam on arrival."""
    network = make_network(propagation=Rayleigh(seed=1, delays=delays))
    first, second, change = np.array([0, 1, 2, 0]), np.array([2, 0, 1, 1]), 5 * BLOCK + 100
    x, total = noise_like((4, 10 * BLOCK)), 10 * BLOCK
    y = np.concatenate(
        [
            network.process(x[:, :change], 0, first, final=True),
            network.process(x[:, change:], change, second, final=True),
        ],
        axis=1,
    )
    before, after = (make_network(propagation=Rayleigh(seed=1, delays=delays)) for _ in range(2))
    late = change + network.latency_samples
    # The fractional delay filters reach latency_samples ahead, beyond the change.
    np.testing.assert_allclose(y[:, :change], before.process(x, 0, first, final=True)[:, :change], atol=1e-5)
    settled = late + network.channel.num_taps
    np.testing.assert_allclose(y[:, settled:], after.process(x, 0, second, final=True)[:, settled:total], atol=1e-5)
    assert np.abs(y[:, late:] - before.process(x, 0, first, final=True)[:, late:]).max() > 0.1


def test_a_wave_under_way_while_beams_change_leaves_by_the_old_and_arrives_by_the_new():
    network = make_network((1, 1), clocks=(Clock(loop_delay_samples=40.0), Clock()))
    old, new, impulse = np.array([1, 0]), np.array([2, 2]), np.zeros((2, 300), dtype=np.complex64)
    impulse[0, 290] = 1.0
    network.process(impulse, 0, old, final=True)
    y = network.process(np.zeros((2, 300), np.complex64), 300, new, final=True)
    expected = network.true_channel("ap2", "ap1", np.array([old[0], new[1]]), 290)[0, 0]
    assert abs(y[1, 30] - expected) < 1e-6
    y[1, 30] = 0.0
    assert np.abs(y).max() < 1e-5


def test_synthesizer_phases_turn_what_is_sent_forward_and_what_is_received_back():
    def received(tx_phase, rx_phase):
        sources = [Oscillator(samp_rate=SAMP_RATE, seed_key=0, tx_phase=tx_phase, rx_phase=rx_phase) for _ in range(2)]
        nodes = [SimulatedNode(f"n{i}", 1, source) for i, source in enumerate(sources)]
        network = Network(nodes, Rayleigh(seed=1), samp_rate=SAMP_RATE, seed=1)
        x = np.array([[1.0], [0.0]], dtype=np.complex64)
        return network.process(x, 0, np.zeros(2, int), final=True)[1, 0], network.true_calibration(0)[0]

    (plain, _), (turned, c) = received(0.0, 0.0), received(0.9, 0.2)
    assert abs(turned / plain - np.exp(1j * (0.9 - 0.2))) < 1e-6
    assert abs(c - np.exp(1j * (0.9 + 0.2))) < 1e-12


def test_the_amplifier_comes_before_everything_else():
    x = noise_like((4, 500))
    a, beams = -0.05 + 0.02j, np.zeros(4, int)
    compressed = make_network(moving=True, node={"compression": a}).process(x, 300, beams, final=True)
    linear = make_network(moving=True).process(x * (1 + np.complex64(a) * np.abs(x) ** 2), 300, beams, final=True)
    np.testing.assert_allclose(compressed, linear, atol=2e-6)


def test_the_converter_comes_last():
    network = make_network(node={"adc": (6, 4.0), "noise_var": 1.0})
    y = network.process(noise_like((4, 500)), 0, np.zeros(4, int), final=True)
    step = 8.0 / 2**6
    np.testing.assert_allclose(y.real / step, np.rint(y.real / step), atol=1e-6)
    assert y.real.min() >= -4.0
    assert y.imag.max() <= 4.0 - step


# -- coupling between the ports of a node -----------------------------------------------------------------------------


def test_ports_of_a_node_hear_each_other_by_their_coupling():
    """y_q = r_q k_qp t_p x_p, the oscillator cancels; c of two ports follows from both directions alone."""
    propagation = Rayleigh(seed=1, coupling_db=-20.0)
    network, beams = make_network((3, 1), propagation, moving=True), np.zeros(4, int)
    k, node = propagation.coupling(Site("ap1", 3)), network.nodes[0]
    turn = np.exp(1j * (node.oscillator.tx_phase - node.oscillator.rx_phase))
    expected = turn * node.rx_gains[:, None] * k * node.tx_gains
    y = np.zeros((3, 3), dtype=complex)
    for port in range(3):
        x = np.zeros((4, 300), dtype=np.complex64)
        x[port] = 1.0
        received = network.process(x, HOUR, beams, final=True)[:3]
        np.testing.assert_allclose(received, np.repeat(expected[:, [port]], 300, axis=1), atol=1e-6)
        y[:, port] = received[:, 200]
    np.testing.assert_allclose(network.true_channel("ap1", "ap1", beams, HOUR), expected, atol=1e-12)
    c = network.true_calibration(HOUR)[:3]
    assert abs(y[0, 1] / y[1, 0] / (c[1] / c[0]) - 1) < 1e-5
    assert not np.any(np.diag(y))


@pytest.mark.parametrize("clock", [Clock(loop_delay_samples=3.0), Clock(20.3, 1 + 1e-6, 0.4, adjustable=True)])
def test_coupling_sees_the_loop_delay_and_no_clock(clock):
    network, cycles, num = make_network((2, 1), Rayleigh(seed=1, coupling_db=0.0), clocks=(clock, Clock())), 0.11, 1500
    x = np.zeros((3, num), dtype=np.complex64)
    x[0] = np.exp(2j * np.pi * cycles * np.arange(num))
    y = network.process(x, 1000, np.zeros(3, int), final=True)[1]
    h = network.true_channel("ap1", "ap1", np.zeros(3, int), 1000, np.array([cycles * SAMP_RATE]))[1, 0, 0]
    assert abs(y[800 + network.latency_samples] / x[0, 800] / h - 1) < 1e-3
    assert abs(np.angle(h / network.true_channel("ap1", "ap1", np.zeros(3, int), 1000)[1, 0])
               + 2 * np.pi * cycles * clock.loop_delay_samples) % (2 * np.pi) < 1e-9


def test_coupling_leaves_all_other_pairs_as_they_are():
    x = noise_like((4, 600))
    x[1:3] = 0.0
    plain, coupled = (
        make_network(propagation=Rayleigh(seed=1, coupling_db=db)).process(x, 0, np.zeros(4, int), final=True)
        for db in (None, -10.0)
    )
    assert np.array_equal(plain, coupled)


# -- noise ------------------------------------------------------------------------------------------------------------


def silence(network, num, start=0):
    x = np.zeros((network.num_ports, num), np.complex64)
    return network.process(x, start, np.zeros(network.num_ports, int), final=True)


def test_noise_is_white_circular_and_independent_between_ports():
    variance = np.array([0.5, 1.0, 2.0, 4.0])
    levels = zip(make_network().nodes, (0.5, variance[1:3], 4.0), strict=True)
    nodes = [SimulatedNode(node.name, node.num_ports, node.oscillator, noise_var=v) for node, v in levels]
    w = silence(Network(nodes, Rayleigh(seed=1), samp_rate=SAMP_RATE, seed=1), 40000)
    tolerance = 4 / np.sqrt(w.shape[1])
    w = w / np.sqrt(variance)[:, None]
    covariance = w @ w.conj().T / w.shape[1]
    np.testing.assert_allclose(covariance, np.eye(4), atol=tolerance)
    assert np.max(np.abs(w @ w.T)) / w.shape[1] < tolerance * np.sqrt(2)
    for lag in (1, 64, 128, 256):
        assert np.max(np.abs(np.mean(w[:, lag:] * w[:, :-lag].conj(), axis=1))) < tolerance
    assert np.max(np.abs(np.mean(np.abs(w) ** 4, axis=1) - 2)) < tolerance * np.sqrt(20)


def test_noise_belongs_to_seed_node_port_and_time():
    w = silence(make_network(node={"noise_var": 1.0}), 600, start=1000)
    assert np.array_equal(silence(make_network(node={"noise_var": 1.0}), 300, start=1300), w[:, 300:])
    fewer = silence(make_network((1, 2), node={"noise_var": 1.0}), 600, start=1000)
    assert np.array_equal(fewer, w[:3])
    other = silence(make_network(seed=2, node={"noise_var": 1.0}), 600, start=1000)
    assert not np.any(other == w)


def test_silence_without_noise_is_zero():
    assert not silence(make_network(moving=True), 1000).any()


# -- the grid ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", [BLOCK, 2 * BLOCK, 300])
@pytest.mark.parametrize("start", [0, 5 * BLOCK, 1000])
def test_slots_processed_together_are_those_processed_one_by_one(slot, start):
    options = {"moving": True, "node": {"noise_var": 0.1}}
    x, beams = noise_like((4, 11 * slot)), np.random.default_rng(3).integers(0, 3, (11, 4))
    beams[4:7] = beams[4]
    network = make_network(**options)
    assert network.takes_runs
    y = network.process(x, start, beams, final=True)
    single = make_network(**options)
    parts = [single.process(x[:, k * slot :][:, :slot], start + k * slot, beams[k], final=True) for k in range(11)]
    np.testing.assert_array_equal(y, np.concatenate(parts, axis=1))


def test_networks_with_memory_or_faults_take_slots_one_by_one():
    assert not make_network(**MODELS["taps"]).takes_runs
    assert not make_network(faults=[Fault("nan", "ap1", 0)]).takes_runs
    assert make_network(faults=[Fault("silent", "ap1", 0)]).takes_runs


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("start", [0, 5 * BLOCK, HOUR])
def test_any_cutting_gives_the_same_bits(model, start):
    x, beams = noise_like((4, 5000)), np.array([1, 0, 2, 1])
    whole = make_network(**MODELS[model]).process(x, start, beams, final=True)
    rng = np.random.default_rng(1)
    network = make_network(**MODELS[model])
    for _ in range(4):
        network.process(x[:, :700], start + 10**6, beams, final=True)  # something else before
        cuts = np.sort(rng.integers(0, 5001, rng.integers(1, 40)))
        assert np.array_equal(in_pieces(network, x, start, beams, cuts.tolist()), whole)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("slot", [BLOCK, 2 * BLOCK, 300])
def test_contiguous_slots_equal_the_continuous_run(model, slot):
    x, beams, start = noise_like((4, 6 * slot)), np.array([1, 0, 2, 1]), 7 * BLOCK
    whole = make_network(**MODELS[model]).process(x, start, beams, final=True)
    network = make_network(**MODELS[model])
    slots = [
        network.process(x[:, k * slot : (k + 1) * slot], start + k * slot, beams, final=True) for k in range(6)
    ]
    assert [y.shape[1] for y in slots] == 6 * [slot]
    if slot % BLOCK == 0:
        assert np.array_equal(np.concatenate(slots, axis=1), whole)
    else:
        step = 32.0 / 2**12 if model == "all" else 0.0  # a converter may round the last bit the other way
        np.testing.assert_allclose(np.concatenate(slots, axis=1), whole, atol=2e-5 + 1.5 * step)


@pytest.mark.parametrize("model", ["delays", "taps", "all"])
def test_a_gap_flushes_the_state(model):
    x, beams = noise_like((4, 500)), np.array([1, 0, 2, 1])
    expected = make_network(**MODELS[model]).process(x, HOUR, beams, final=True)
    network = make_network(**MODELS[model])
    network.process(x, HOUR - 501, beams, final=True)
    assert np.array_equal(network.process(x, HOUR, beams, final=True), expected)
    network.reset()
    assert np.array_equal(network.process(x, HOUR, beams, final=True), expected)


def test_multipath_tails_enter_the_next_contiguous_slot():
    network, beams = make_network(**MODELS["delays"]), np.array([1, 0, 2, 1])
    network.process(noise_like((4, BLOCK)), 0, beams, final=True)
    tail = silence_with(network, beams, BLOCK, BLOCK)
    assert np.all(np.abs(tail[:, : network.latency_samples]).max(axis=1) > 0.1)
    assert np.abs(tail[:, network.channel.num_taps :]).max() < 1e-5


def silence_with(network, beams, start, num):
    return network.process(np.zeros((4, num), np.complex64), start, beams, final=True)


def test_incomplete_blocks_wait_unless_final():
    network, x = make_network(), noise_like((4, 1000))
    assert network.process(x[:, :300], 0, np.zeros(4, int), final=False).shape == (4, 256)
    assert network.backlog_samples == 44
    assert network.process(x[:, 300:400], 300, np.zeros(4, int), final=False).shape == (4, 0)
    assert network.process(x[:, 400:410], 400, np.zeros(4, int), final=True).shape == (4, 154)


# -- faults -----------------------------------------------------------------------------------------------------------


def run_slots(network, num_slots, slot=BLOCK):
    """Return the received samples (slots, P, n) and what begin_slot said, for contiguous slots of ones."""
    received, lost = [], []
    for k in range(num_slots):
        lost.append(network.begin_slot(k * slot, slot))
        x = np.ones((network.num_ports, slot), np.complex64)
        received.append(network.process(x, k * slot, np.zeros(network.num_ports, int), final=True))
    return np.array(received), lost


def test_a_dead_port_neither_radiates_nor_hears():
    # ap2 has two ports; the second of them, port 2 of the network, dies with slot 2.
    network = make_network(faults=[Fault("dead_port", "ap2", 2, port=1)], node={"noise_var": 1e-4})
    healthy, _ = run_slots(make_network(node={"noise_var": 1e-4}), 4)
    y, lost = run_slots(network, 4)
    assert lost == [(), (), (), ()]
    assert np.array_equal(y[:2], healthy[:2])
    assert abs(np.mean(np.abs(y[2:, 2]) ** 2) / 1e-4 - 1) < 4 / np.sqrt(2 * BLOCK)
    beams = np.zeros(4, int)
    missing = network.true_channel("ap1", "ap2", beams, 0)[0, 1]
    np.testing.assert_allclose(healthy[2:, 0] - y[2:, 0], missing, atol=1e-5)
    assert np.array_equal(y[:, 1], healthy[:, 1])


@pytest.mark.parametrize("slot", [BLOCK, 300])
def test_nan_hits_the_middle_of_its_slots_only(slot):
    y, _ = run_slots(make_network(faults=[Fault("nan", "ap2", 1, port=1, count=2)]), 5, slot)
    assert [tuple(w) for w in np.argwhere(np.isnan(y))] == [(1, 2, slot // 2), (2, 2, slot // 2)]


def test_lost_slots_are_announced_by_node():
    faults = [Fault("lost_slot", "ap2", 1, count=2), Fault("lost_slot", "ap3", 2), Fault("silent", "ap1", 0)]
    assert run_slots(make_network(faults=faults), 4)[1] == [(), ("ap2",), ("ap2", "ap3"), ()]


@pytest.mark.parametrize("fault", [Fault("nan", "ap9", 0), Fault("dead_port", "ap1", 0, port=1)])
def test_faults_of_things_that_are_not_there_are_refused(fault):
    with pytest.raises(ValueError, match=fault.kind):
        make_network(faults=[fault])


# -- boundaries -------------------------------------------------------------------------------------------------------


def test_ports_are_numbered_in_the_order_of_the_nodes():
    network = make_network((1, 2, 1))
    assert [network.ports(name) for name in network.names] == [slice(0, 1), slice(1, 3), slice(3, 4)]
    assert network.num_ports == 4
    with pytest.raises(ValueError, match="ap9"):
        network.ports("ap9")


@pytest.mark.parametrize(
    ("x", "start", "beams", "message"),
    [
        (np.zeros((3, 5)), 0, [0, 0, 0, 0], "3 rows"),
        (np.zeros((4, 5)), -1, [0, 0, 0, 0], "start=-1"),
        (np.zeros((4, 5)), 0, [0, 0, 3, 0], "beam 3 of node ap2"),
        (np.zeros((4, 5)), 0, [0, 0, 0], "beams"),
    ],
)
def test_process_refuses_what_does_not_fit(x, start, beams, message):
    with pytest.raises(ValueError, match=message):
        make_network().process(x, start, np.array(beams), final=True)


@pytest.mark.parametrize("block_samples", [0, 100, 300])
def test_the_block_grid_must_fit_the_oscillators(block_samples):
    with pytest.raises(ValueError, match="block_samples"):
        make_network(block_samples=block_samples)


@pytest.mark.parametrize("arguments", [{"num_ports": 0}, {"tx_gains": np.ones(3)}, {"noise_var": -1.0}])
def test_nodes_refuse_bad_arguments(arguments):
    oscillator = Oscillator(samp_rate=1.0, seed_key=0)
    with pytest.raises(ValueError, match=next(iter(arguments))):
        SimulatedNode(**{"name": "n", "num_ports": 2, "oscillator": oscillator, **arguments})
