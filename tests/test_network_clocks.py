# SPDX-License-Identifier: GPL-3.0-or-later
"""Clocks of the simulated network: what they delay, and the shifts that correct them at run time."""

import itertools

import numpy as np
import pytest
from gnuradio.dmimo.simulation.oscillators import Clock
from gnuradio.dmimo.simulation.propagation import Rayleigh
from networks import BLOCK, HOUR, MODELS, SAMP_RATE, make_network, noise_like

# -- clocks -----------------------------------------------------------------------------------------------------------


def clock_response(network, cycles, start):
    """Return y_ij / x for a tone, (P, P), around `start`."""
    num = 5 * BLOCK
    tone = np.exp(2j * np.pi * cycles * np.arange(num))
    response = np.zeros((network.num_ports, network.num_ports), dtype=complex)
    for port in range(network.num_ports):
        x = np.zeros((network.num_ports, num), dtype=np.complex64)
        x[port] = tone
        y = network.process(x, start - num // 2, np.zeros(network.num_ports, int), final=True)
        response[:, port] = y[:, num // 2 + network.latency_samples] / tone[num // 2]
    return response


@pytest.mark.parametrize(
    "clocks",
    [
        (Clock(), Clock(2.0), Clock(loop_delay_samples=3.0)),
        (Clock(0.3), Clock(-1.7), Clock(0.0, 1.0, 2.6)),
        (Clock(rate=1 + 1e-6), Clock(rate=1 - 2e-6), Clock(0.25, 1.0, 0.5)),
    ],
)
def test_clocks_delay_transmission_and_advance_reception(clocks):
    network = make_network((1, 1, 1), clocks=clocks)
    cycles, start = 0.12, 2 * 10**6
    response = clock_response(network, cycles, start)
    for i, j in itertools.permutations(range(3), 2):
        rx, tx = network.names[i], network.names[j]
        h = network.true_channel(rx, tx, np.zeros(3, int), start, np.array([cycles * SAMP_RATE]))[0, 0, 0]
        assert abs(response[i, j] / h - 1) < 2e-3
    c = network.true_calibration(start, np.array([cycles * SAMP_RATE]))[:, 0]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs(response[i, j] / response[j, i] / (c[j] / c[i]) - 1) < 2e-3


def test_a_late_clock_transmits_later_and_receives_earlier_indices():
    network = make_network((1, 1), clocks=(Clock(), Clock(5.0)))
    assert network.latency_samples == 5
    impulse = np.zeros((2, 100), dtype=np.complex64)
    impulse[:, 20] = 1.0
    y = network.process(impulse, 0, np.zeros(2, int), final=True)
    assert np.flatnonzero(np.abs(y[0]) > 1e-3).tolist() == [20 + 5 + 5]  # what the late node sent
    assert np.flatnonzero(np.abs(y[1]) > 1e-3).tolist() == [20 + 5 - 5]  # what it received


def test_identity_clocks_cost_nothing():
    network = make_network(clocks=(Clock(), Clock(), Clock()))
    assert network.latency_samples == 0
    assert not network.has_memory


def test_a_clock_that_runs_away_is_named():
    network = make_network((1, 1), clocks=(Clock(), Clock(rate=1 + 1e-6)))
    with pytest.raises(ValueError, match=r"clock of node ap2.*reach_samples=8"):
        network.process(np.zeros((2, 300), np.complex64), 10**8, np.zeros(2, int), final=True)


# -- clocks that are corrected at run time ----------------------------------------------------------------------------

LATE = Clock(1000.3, 1 + 2e-6, 1.5, adjustable=True)  # 1 ms late, 2 ppm fast, 1.5 samples between its chains
EARLY = Clock(-37.4, 1 - 1e-6, adjustable=True)


def test_a_shift_moves_what_is_sent_and_what_is_received():
    network = make_network((1, 1), clocks=(Clock(), Clock(100.0, adjustable=True)))
    for shift in (0, -100, -97):
        impulse = np.zeros((2, 600), dtype=np.complex64)
        impulse[:, 150] = 1.0
        start = 10_000 * (1 - shift)
        y = network.process(impulse, start, np.zeros(2, int), final=True, shifts=(0, shift))
        late = 150 + network.latency_samples
        assert np.flatnonzero(np.abs(y[0]) > 1e-3).tolist() == [late + 100 + shift]
        assert np.flatnonzero(np.abs(y[1]) > 1e-3).tolist() == [late - 100 - shift]
        assert network.true_clock_offset("ap2", start + 5) == 100 + shift
    assert network.true_clock_offset("ap2", 20_000, shift=-3) == 97


def test_large_offsets_cost_latency_on_their_own_side_only():
    assert make_network((1, 1), clocks=(Clock(), LATE)).latency_samples < 1000 + 100
    assert make_network((1, 1), clocks=(LATE, EARLY)).latency_samples < 1000 + 37 + 100


@pytest.mark.parametrize("start", [10**6, 3 * 10**8])
def test_samples_follow_the_true_channel_under_shifts(start):
    """Tones through pairs of clocks far off, brought within a sample by their shifts.

    Within a sample 100 Hz turn by 6e-4, within the latency of clocks 40 samples to a millisecond off by far more.
    """
    clocks, cycles, num = (LATE, EARLY, Clock()), 0.12, 16 * BLOCK
    network, beams = make_network((1, 1, 1), clocks=clocks, moving={"cfo_hz": 100.0}), np.zeros(3, int)
    shifts = [-round(network.true_clock_offset(name, start, shift=0)) for name in network.names]
    assert abs(shifts[0] + 1000) <= start * 2e-6 + 1
    tone, middle = np.exp(2j * np.pi * cycles * np.arange(num)), 8 * BLOCK
    response = np.zeros((3, 3), dtype=complex)
    for j in range(3):
        x = np.zeros((3, num), dtype=np.complex64)
        x[j] = tone
        y = network.process(x, start - middle, beams, final=True, shifts=shifts)
        response[:, j] = y[:, middle + network.latency_samples] / tone[middle]
    frequency_hz = np.array([cycles * SAMP_RATE])
    for i, j in itertools.permutations(range(3), 2):
        h = network.true_channel(network.names[i], network.names[j], beams, start, frequency_hz)[0, 0, 0]
        assert abs(response[i, j] / h - 1) < 2e-3
    c = network.true_calibration(start, frequency_hz)[:, 0]
    for i, j in ((0, 1), (0, 2), (1, 2)):
        assert abs(response[i, j] / response[j, i] / (c[j] / c[i]) - 1) < 2e-3


def test_oscillators_turn_with_network_time_whatever_the_shift():
    """What is sent one sample earlier under a shift of one sample is the same wave, 7 kHz off or not."""
    moving = {"cfo_hz": 7000.0, "linewidth_hz": 5.0}
    network = make_network((1, 1), clocks=(Clock(), Clock(adjustable=True)), moving=moving)
    x, start = np.zeros((2, 1001), dtype=np.complex64), 10**6
    x[1, 100:900] = noise_like(800)
    plain = network.process(x[:, :-1], start, np.zeros(2, int), final=True)[0]
    network.reset()
    shifted = network.process(x[:, 1:], start, np.zeros(2, int), final=True, shifts=(0, 1))[0]
    np.testing.assert_allclose(shifted, plain, atol=1e-5)
    assert np.abs(plain).max() > 0.1


def test_each_sample_keeps_its_own_shift_when_it_changes_within_a_run():
    """Impulses right before and after the change, with device samples left out there, or used twice."""
    clock = Clock(5.0, adjustable=True)
    for first, second in ((-5, -2), (-2, -5)):
        network = make_network((1, 1), clocks=(Clock(), clock))
        x = np.zeros((2, 700), dtype=np.complex64)
        x[:, [299, 300]] = 1.0
        pieces = [
            network.process(x[:, a:b], a, np.zeros(2, int), final=True, shifts=(0, shift))
            for a, b, shift in ((0, 300, first), (300, 700, second))
        ]
        y = np.abs(np.concatenate(pieces, axis=1)) > 1e-3
        late = network.latency_samples
        assert np.flatnonzero(y[0]).tolist() == sorted([299 + late + 5 + first, 300 + late + 5 + second])
        # Received indices around the change: wave n is heard as n - 5 - shift by the shift in force at that index.
        heard = {n - 5 - shift for n in (299, 300) for shift in (first, second)
                 if (n - 5 - shift < 300) == (shift == first)}
        assert np.flatnonzero(y[1]).tolist() == sorted(n + late for n in heard)
        assert [network.true_clock_offset("ap2", n) for n in (299, 300)] == [5 + first, 5 + second]


def test_any_cutting_gives_the_same_bits_under_shifts():
    clocks = (Clock(), LATE, EARLY)
    options = {**MODELS["moving"], "clocks": clocks, "propagation": Rayleigh(seed=1, delays=True)}
    x, beams, start = noise_like((4, 6000)), np.array([1, 0, 2, 1]), HOUR // 100
    offset = [make_network(clocks=clocks).true_clock_offset(name, start) for name in ("ap2", "ap3")]
    changes = [(0, -round(offset[0]), -round(offset[1])), (0, -round(offset[0]) + 3, -round(offset[1]) - 1)]
    borders = [0, 2500, 4100]  # the shifts change here, back and forth

    def run(network, cuts):
        ends, out = sorted({*borders, *cuts, 6000}), []
        for a, b in itertools.pairwise(ends):
            shifts = changes[sum(border <= a for border in borders) % 2]
            out.append(network.process(x[:, a:b], start + a, beams, final=b == 6000, shifts=shifts))
        return np.concatenate(out, axis=1)

    whole, network, rng = run(make_network(**options), []), make_network(**options), np.random.default_rng(2)
    for _ in range(3):
        network.process(x[:, :700], start + 10**6, beams, final=True, shifts=changes[0])  # something else before
        assert np.array_equal(run(network, rng.integers(0, 6001, rng.integers(1, 30)).tolist()), whole)


def test_shifts_that_cannot_be_are_refused():
    network, x = make_network((1, 1), clocks=(Clock(), LATE)), np.zeros((2, 300), np.complex64)
    wrong = {(1, 0): "ap1 is not adjustable", (0, 1.5): "one integer per node", (0,): "one integer per node"}
    for shifts, message in wrong.items():
        with pytest.raises(ValueError, match=message):
            network.process(x, 0, np.zeros(2, int), final=True, shifts=shifts)
    with pytest.raises(ValueError, match=r"clock of node ap2 is 1020.*reach_samples=8"):
        network.process(x, 1000, np.zeros(2, int), final=True, shifts=(0, 20))
    with pytest.raises(ValueError, match="ap1 is not adjustable"):
        make_network((1, 1)).process(x, 0, np.zeros(2, int), final=True, shifts=(1, 0))
