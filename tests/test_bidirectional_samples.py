# SPDX-License-Identifier: GPL-3.0-or-later
"""The bidirectional exchange through OFDM samples in complex64: CSI-RS or SRS, the CARS answer, the joint downlink.

Two models carry the samples: the simulated network, and `Tones`, written here from the definitions, where fractional
delays are exact. An oscillator offset f makes neighbouring subcarriers interfere, at 120 kHz spacing and 1.5 kHz with
(pi f / spacing)^2 / 3 = -33 dB of an element's energy: that is physics, and it is predicted here, not tolerated.
"""

import numpy as np
import pytest
from gnuradio.dmimo.core.bidirectional import joint_ml
from gnuradio.dmimo.core.cars import at_time, cars_precoding, equivalent_channel, midpoint_s
from gnuradio.dmimo.core.ofdm import CombMapping, OfdmGrid, pilot_sequence
from gnuradio.dmimo.simulation.hardware import draw_gains
from gnuradio.dmimo.simulation.network import Network, SimulatedNode
from gnuradio.dmimo.simulation.oscillators import Clock, Oscillator
from gnuradio.dmimo.simulation.propagation import Rayleigh

TABLE = OfdmGrid()  # 200 MHz, 2048 points
SMALL = OfdmGrid(120e3, 128, 24, 96)
M, N = 4, 2
ADVANCE = 10
# Of a clock in samples: at 128 points, elements of a link are 8 apart, and C is unique for differences up to 4.
MAX_OFFSET = 1.9
# Rounding of complex64 is 6e-8 of an element's rms; links fade by up to 20 dB, and two symbols make one coefficient.
SINGLE = 2e-6


class Air:
    """Elements in, elements out, through complex64 samples: what both models share."""

    grid: OfdmGrid

    def symbol(self, elements, start):
        """Elements (nodes, K) that all nodes receive when they send `elements` (nodes, K) in a symbol at `start`."""
        sent = self.grid.modulate(elements[:, None], dtype=np.complex64)
        assert sent.dtype == np.complex64
        received = self.samples(sent, start)
        assert received.dtype == np.complex64
        return self.grid.demodulate(received, 1, advance_samples=ADVANCE)[:, 0]

    def time_s(self, start):
        return start / self.grid.samp_rate + float(self.grid.symbol_time_s(0, advance_samples=ADVANCE))


class Tones(Air):
    """A symbol is a sum of tones in continuous time from its first to its last sample, and silence elsewhere.

    Node j takes its sample n at time n + offset_j, in samples; its oscillator turns with true time. Paths (m, n, P).
    """

    def __init__(self, grid, seed, *, cfo_hz=0.0, num_paths=3, flight=0.0, num_trp=M, num_ue=N):
        rng, count = np.random.default_rng(seed), num_trp + num_ue
        self.grid, self.num_trp = grid, num_trp
        self.t, self.r = np.exp(0.1 * rng.normal(size=(2, count)) + 2j * np.pi * rng.random((2, count)))
        self.offset = rng.uniform(-MAX_OFFSET, MAX_OFFSET, count)
        self.cfo_hz = cfo_hz * rng.uniform(-1, 1, count)
        self.theta = rng.uniform(-np.pi, np.pi, count)
        shape = (num_trp, num_ue, num_paths)
        self.gains = np.exp(2j * np.pi * rng.random(shape)) * 0.25 ** np.arange(num_paths)
        self.flight = flight + 3.0 * np.arange(num_paths) + rng.uniform(0.0, 2.0, shape)
        span = self.flight.max() + 5.0
        grid.require_delays(-5.0 / grid.samp_rate, span / grid.samp_rate, advance_samples=ADVANCE)

    def links(self):
        for m in range(self.num_trp):
            for n in range(len(self.t) - self.num_trp):
                for gain, flight in zip(self.gains[m, n], self.flight[m, n], strict=True):
                    yield m, self.num_trp + n, gain, flight
                    yield self.num_trp + n, m, gain, flight

    def samples(self, sent, start):
        grid, n = self.grid, np.arange(self.grid.symbol_samples)
        tones, k = np.fft.fft(sent[:, grid.cp_samples :]), np.fft.fftfreq(grid.fft_size, 1 / grid.fft_size)
        received = np.zeros(sent.shape, complex)
        for rx, tx, gain, flight in self.links():
            late = self.offset[tx] - self.offset[rx] + flight
            shifted = np.fft.ifft(tones[tx] * np.exp(-2j * np.pi * k * late / grid.fft_size))
            wave = shifted[(n - grid.cp_samples) % grid.fft_size] * ((n >= late) & (n <= late + n[-1]))
            here = start + n + self.offset[rx]
            wave *= gain * np.exp(1j * (self.phase(tx, here - flight) - self.phase(rx, here)))
            received[rx] += self.r[rx] * self.t[tx] * wave
        return received.astype(np.complex64)

    def phase(self, node, time_samples):
        return self.theta[node] + 2 * np.pi * self.cfo_hz[node] * time_samples / self.grid.samp_rate

    def channel(self, rx, tx, k):
        """Channel on subcarriers k at time 0, without what oscillators do."""
        m, n = min(rx, tx), max(rx, tx) - self.num_trp
        late = self.offset[tx] - self.offset[rx] + self.flight[m, n]
        turn = np.exp(-2j * np.pi * np.multiply.outer(k, late) / self.grid.fft_size)
        return self.r[rx] * self.t[tx] * turn @ self.gains[m, n] * np.exp(1j * (self.theta[tx] - self.theta[rx]))

    def c(self, time_samples, k):
        turn = np.exp(-4j * np.pi * np.multiply.outer(self.offset, k) / self.grid.fft_size)
        at = self.theta + 2 * np.pi * self.cfo_hz * time_samples / self.grid.samp_rate
        return (self.t / self.r * np.exp(2j * at))[:, None] * turn


class Simulated(Air):
    """The simulated network: multipath on whole samples, clocks as given."""

    def __init__(self, grid, seed, *, cfo_hz=0.0, offsets=None, num_trp=M, num_ue=N, taps=4):
        rng, count, rate = np.random.default_rng(seed), num_trp + num_ue, grid.samp_rate
        self.grid, self.num_trp = grid, num_trp
        self.offset = rng.integers(-3, 4, count) if offsets is None else offsets
        self.cfo_hz = cfo_hz * (rng.uniform(-1, 1, count) if np.ndim(cfo_hz) == 0 else 1.0)
        nodes = [
            SimulatedNode(
                f"{'trp' if i < num_trp else 'ue'}{i}",
                1,
                Oscillator(
                    samp_rate=rate, seed_key=(seed, i), cfo_hz=self.cfo_hz[i], tx_phase=rng.uniform(-3, 3), rx_phase=1.0
                ),
                tx_gains=draw_gains(rng, 1, std_db=1.0),
                rx_gains=draw_gains(rng, 1, std_db=1.0),
                clock=Clock(offset_samples=float(self.offset[i])),
            )
            for i in range(count)
        ]
        channel = Rayleigh(seed=seed, num_taps=taps, delay_spread_s=1.0 / rate)
        self.network = Network(nodes, channel, samp_rate=rate, seed=seed)

    def samples(self, sent, start):
        padded = np.pad(sent, ((0, 0), (0, self.network.latency_samples)))
        received = self.network.process(padded, start, np.zeros(len(sent), int), final=True)
        return received[:, self.network.latency_samples :]

    def c(self, time_samples, k):
        """Truth at a time that need not be a whole sample: nothing turns by much in one."""
        whole = int(np.floor(time_samples))
        frequency_hz = k * self.grid.subcarrier_spacing_hz
        early, late = (self.network.true_calibration(sample, frequency_hz) for sample in (whole, whole + 1))
        return early * (late / early) ** (time_samples - whole)


class Exchange:
    """A sounding by P nodes at once on their combs, and the CARS answer of the Q others, through the air.

    read (receiving sounder, P, Q, K): what every sounder reads on the elements of sounding port p and responder q; its
    diagonal is C of TRP p and UE q if the TRPs sound, and 1 / C if the UEs do.
    """

    def __init__(self, air, sounding, responding, purpose, *, starts):
        grid, self.starts = air.grid, starts
        mapping = CombMapping.filling(grid, len(sounding), len(responding))
        self.k, positions = mapping.subcarriers(grid), mapping.response
        elements = np.zeros((len(sounding) + len(responding), grid.num_subcarriers), complex)
        for p, node in enumerate(sounding):
            elements[node, mapping.sounding[p]] = pilot_sequence(purpose, mapping.pilots_per_port, identity=p)
        self.sent = elements.sum(axis=0)
        heard = air.symbol(elements, starts[0])[responding] / self.sent
        self.h = np.stack([heard[q][positions[:, q]] for q in range(len(responding))], axis=1)
        self.burst = cars_precoding(self.h)
        pilots = np.stack([pilot_sequence("cars", self.k.shape[-1], identity=q) for q in range(len(responding))])
        elements = np.zeros_like(elements)
        for q, node in enumerate(responding):
            elements[node, positions[:, q]] = self.burst.weights[:, q] * pilots[q]
        self.answer = elements
        received = air.symbol(elements, starts[1])[sounding]
        self.read = np.stack([equivalent_channel(y[positions], pilots, self.burst.scale) for y in received])
        self.time_s = float(midpoint_s(*(air.time_s(start) for start in starts)))

    @property
    def diagonal(self):
        return np.einsum("ppqk->pqk", self.read)


def uplink_answers(air, **arguments):
    """TRPs sound, UEs answer, the TRPs read C (M, N, K)."""
    nodes = np.arange(air.num_trp), np.arange(air.num_trp, air.num_trp + N)
    return Exchange(air, *nodes, "csi_rs", **arguments)


def downlink_answers(air, **arguments):
    """UEs sound, TRPs answer, the UEs read 1 / C (N, M, K)."""
    nodes = np.arange(air.num_trp, air.num_trp + N), np.arange(air.num_trp)
    return Exchange(air, *nodes, "srs", **arguments)


def truth(air, k, time_s):
    """C (P, Q, K) on the exchange's subcarriers (P, Q, K), TRPs first."""
    nodes = air.c(time_s * air.grid.samp_rate, air.grid.subcarriers)
    at = np.searchsorted(air.grid.subcarriers, k)
    trp, ue = nodes[: air.num_trp, None], nodes[None, air.num_trp :]
    return np.take_along_axis(ue / trp, at, axis=-1)


def starts(grid, first=70_000):
    """Two symbols between the directions."""
    return first, first + 2 * grid.symbol_samples


MODELS = {
    "tones": lambda grid, **settings: Tones(grid, 3, **settings),
    "network": lambda grid, **settings: Simulated(grid, 5, **settings),
}


@pytest.mark.parametrize("grid", [TABLE, SMALL], ids=["2048 points", "128 points"])
@pytest.mark.parametrize("model", MODELS)
def test_coefficient_read_from_samples_is_that_of_the_nodes_to_single_precision(model, grid):
    """Timing offsets, multipath and gains, without frequency offsets; both directions."""
    air = MODELS[model](grid)
    down = uplink_answers(air, starts=starts(grid))
    whole = ~down.burst.limited
    assert whole.mean() > 0.9
    expected = truth(air, down.k, down.time_s)
    np.testing.assert_allclose((down.diagonal / expected)[whole], 1.0, atol=SINGLE)
    up = downlink_answers(air, starts=starts(grid))
    whole = ~up.burst.limited
    inverse = 1 / truth(air, up.k.swapaxes(0, 1), up.time_s).swapaxes(0, 1)
    np.testing.assert_allclose((up.diagonal / inverse)[whole], 1.0, atol=SINGLE)
    # Other readings are far off: C for 1 / C (a conjugate forgotten), and timing offsets counted once.
    assert np.abs(up.diagonal / inverse.conj() - 1).max() > 1.0
    once = np.exp(-2j * np.pi * down.k * (air.offset[M:] - air.offset[:M, None])[..., None] / grid.fft_size)
    assert np.abs(down.diagonal / (expected / once) - 1).max() > 0.1


def test_fractional_clocks_of_the_network_are_as_good_as_their_filters():
    """A filter errs by up to 4e-4 over the central 80 % of the band; C holds four of them, two of each node."""
    rng = np.random.default_rng(9)
    air = Simulated(TABLE, 5, offsets=rng.uniform(-2.5, 2.5, M + N))
    down = uplink_answers(air, starts=starts(TABLE))
    error = np.abs(down.diagonal / truth(air, down.k, down.time_s) - 1)[~down.burst.limited]
    assert error.max() < 4 * 4e-4


def interference(grid, offset_hz):
    """Share D[..., k, l] of element l that is seen on element k under a frequency offset (...), closed form."""
    k = grid.subcarriers
    cycles = k - k[:, None] + np.asarray(offset_hz)[..., None, None] / grid.subcarrier_spacing_hz
    size = grid.fft_size
    turn = np.exp(1j * np.pi * cycles * (size - 1) / size)
    return turn * np.sinc(cycles) / np.sinc(cycles / size)


def with_interference(air, elements, start):
    """What `Air.symbol` of single-path `Tones` must be, without samples."""
    grid, received = air.grid, np.zeros(elements.shape, complex)
    first = start + grid.cp_samples - ADVANCE
    k = grid.subcarriers
    for rx, tx, _, flight in air.links():
        offset_hz = air.cfo_hz[tx] - air.cfo_hz[rx]
        opened = air.phase(tx, first + air.offset[rx] - flight) - air.phase(rx, first + air.offset[rx])
        opened -= air.theta[tx] - air.theta[rx]
        # Windows open early: undone after the transform, on the element where it is seen.
        seen = interference(grid, offset_hz) * np.exp(2j * np.pi * (k[:, None] - k) * ADVANCE / grid.fft_size)
        received[rx] += np.exp(1j * opened) * seen @ (air.channel(rx, tx, k) * elements[tx])
    return received


def test_interference_of_frequency_offsets_is_the_closed_form_to_single_precision():
    air = Tones(SMALL, 4, cfo_hz=780.0, num_paths=1)
    for answers in (uplink_answers, downlink_answers):
        elements = answers(air, starts=starts(SMALL)).answer
        got, expected = air.symbol(elements, 70_000), with_interference(air, elements, 70_000)
        scale = np.sqrt(np.mean(np.abs(expected) ** 2))
        np.testing.assert_allclose(got / scale, expected / scale, atol=SINGLE)


def rms(values):
    return np.sqrt(np.mean(np.abs(values) ** 2))


@pytest.mark.parametrize("model", MODELS)
def test_error_under_frequency_offsets_is_interference_in_size_and_scale(model):
    """rms error of C: pi / sqrt(3) times the rms offset over the spacing, once for each symbol; 25 % for the combs."""
    errors = []
    for cfo_hz in (780.0, 390.0):
        air = MODELS[model](TABLE, cfo_hz=cfo_hz, **({"num_paths": 1} if model == "tones" else {"taps": 1}))
        down, up = uplink_answers(air, starts=starts(TABLE)), downlink_answers(air, starts=starts(TABLE))
        ratio = np.stack([
            down.diagonal / truth(air, down.k, down.time_s),
            1 / up.diagonal.swapaxes(0, 1) / truth(air, up.k.swapaxes(0, 1), up.time_s),
        ])  # fmt: skip
        errors.append([rms(r - 1) for r in ratio])
        if model == "tones":  # links of equal strength
            offset_hz = air.cfo_hz[M:] - air.cfo_hz[:M, None]
            expected = np.pi * np.sqrt(2 / 3) * rms(offset_hz) / TABLE.subcarrier_spacing_hz
            np.testing.assert_allclose(errors[-1], expected, rtol=0.25)
    # The phases with which interference adds up differ from run to run.
    np.testing.assert_allclose(errors[0], 2 * np.array(errors[1]), rtol=0.15)


def one_link_one_element(air, start, gap):
    """C on one subcarrier, where nothing interferes, and the time from which `midpoint_s` counts its middle."""
    first, second = starts(air.grid, start)[0], start + gap
    at = air.grid.num_subcarriers // 3
    elements = np.zeros((2, air.grid.num_subcarriers), complex)
    elements[0, at] = 1.0
    h = air.symbol(elements, first)[1, at]
    answer = cars_precoding(h[None])
    elements[:, at] = 0.0, answer.weights[0]
    c = equivalent_channel(air.symbol(elements, second)[0, at][None], 1.0, answer.scale)[0]
    return c, air.grid.subcarriers[at], float(midpoint_s(air.time_s(first), air.time_s(second)))


@pytest.mark.parametrize("gap", [2 * 2192, 5 * 2192 + 1])
def test_coefficient_belongs_to_the_midpoint_less_half_the_flight(gap):
    """In true time, symbols centred on (N - 1) / 2 of their windows, however early these open, at -780 and 780 Hz.

    With its receivers' clocks late by a and b samples and a flight of d the middle of a link is at (a + b - d) / 2: at
    1560 Hz and 300 ns (the prefix ends at 586 ns) its C is 3 mrad from that of the midpoint.
    """
    air = Tones(TABLE, 6, num_trp=1, num_ue=1, num_paths=1, flight=73.0)
    air.cfo_hz = np.array([-780.0, 780.0])
    c, k, time_s = one_link_one_element(air, 70_000, gap)
    middle = time_s * TABLE.samp_rate + 0.5 * (air.offset.sum() - air.flight[0, 0, 0])

    def error(time_samples, turns=1.0):
        turn = np.exp(4j * np.pi * turns * air.cfo_hz * time_samples / TABLE.samp_rate)
        trp, ue = air.c(0.0, np.array([k]))[:, 0] * turn
        return abs(c * trp / ue - 1)

    assert error(middle) < SINGLE
    assert 2e-3 < error(time_s * TABLE.samp_rate) < 4e-3
    half_sample = 4 * np.pi * 1560 * 0.5 / TABLE.samp_rate
    assert error(middle + 0.5) == pytest.approx(half_sample, abs=SINGLE)
    for wrong in (middle - gap / 2, middle + gap / 2):  # the ends
        assert error(wrong) > 0.15
    assert error(middle, turns=0.5) > 0.15  # the factor 2
    assert error(-middle) > 0.15


def test_network_agrees_on_the_midpoint():
    """Its oscillators turn with each node's own samples: the middles of two nodes differ by their clocks' offset."""
    cfo_hz, offsets = np.array([-780.0, 780.0]), np.array([2, -3])
    air = Simulated(TABLE, 6, cfo_hz=cfo_hz, offsets=offsets, num_trp=1, num_ue=1, taps=1)
    c, k, time_s = one_link_one_element(air, 70_000, 2 * 2192)
    middle, late = time_s * TABLE.samp_rate, air.offset[1] - air.offset[0]

    def error(trp_samples, ue_samples):
        return abs(c * air.c(trp_samples, np.array([k]))[0, 0] / air.c(ue_samples, np.array([k]))[1, 0] - 1)

    assert error(middle + late / 2, middle - late / 2) < SINGLE
    assert error(middle - 2192, middle - 2192) > 0.1
    assert error(middle + 2192, middle + 2192) > 0.1


def calibrated(grid, exchange):
    max_delay = 2 * MAX_OFFSET / grid.samp_rate
    return joint_ml(exchange.diagonal, exchange.k, grid.subcarrier_spacing_hz, max_delay=max_delay)


def sounded(air, start):
    """One UE sounds all subcarriers; uplink channels (M, K) at the TRPs."""
    elements = np.zeros((M + N, air.grid.num_subcarriers), complex)
    elements[M] = pilot_sequence("srs", air.grid.num_subcarriers)
    return air.symbol(elements, start)[:M] / elements[M]


def together(air, weights, start):
    """What the UE receives (K,) when the TRPs send their weights (M, K) at once, and what it receives of each alone."""
    elements = np.zeros((M + 1, M + N, air.grid.num_subcarriers), complex)
    elements[0, :M] = weights
    elements[1 + np.arange(M), np.arange(M)] = weights
    received = [air.symbol(e, start)[M] for e in elements]
    return received[0], np.array(received[1:])


@pytest.mark.parametrize("grid", [TABLE, SMALL], ids=["2048 points", "128 points"])
def test_joint_downlink_adds_amplitudes_to_single_precision(grid):
    """Every TRP at its full power with the phases of conj(c h_ul), c estimated through the exchange."""
    air = Tones(grid, 7)
    start = starts(grid)[0]
    exchange = uplink_answers(air, starts=starts(grid))
    assert not exchange.burst.limited.any()
    nodes = calibrated(grid, exchange)
    h_ul = sounded(air, start + 4 * grid.symbol_samples)
    c = nodes.trp(grid.subcarriers)
    weights = (c * h_ul).conj() / np.abs(c * h_ul)
    total, alone = together(air, weights, start + 8 * grid.symbol_samples)
    amplitudes = np.abs(alone).sum(axis=0)
    np.testing.assert_allclose(np.abs(total) / amplitudes, 1.0, atol=SINGLE)
    # Each one's phase, to first order, on top of the sum, which forgives small errors.
    np.testing.assert_allclose(np.angle(alone / total), 0.0, atol=2 * SINGLE)
    for wrong in ((c * h_ul.conj()), (h_ul / c).conj(), h_ul.conj()):
        total, alone = together(air, wrong / np.abs(wrong), start + 8 * grid.symbol_samples)
        assert np.mean(np.abs(total) / np.abs(alone).sum(axis=0)) < 0.9


def test_joint_downlink_under_frequency_offsets_needs_the_coefficient_of_its_own_midpoint():
    """780 Hz: c moved by its nodes' frequencies from the exchange to between sounding and transmission."""
    air = Tones(TABLE, 8, cfo_hz=780.0, num_paths=1)
    start, symbol = starts(TABLE)[0], TABLE.symbol_samples
    exchange = uplink_answers(air, starts=starts(TABLE))
    nodes = calibrated(TABLE, exchange)
    up, down = start + 40 * symbol, start + 70 * symbol
    h_ul, c = sounded(air, up), nodes.trp(TABLE.subcarriers)

    def spread(to_s):
        moved = at_time(c, air.cfo_hz[:M, None], exchange.time_s, to_s) * h_ul
        alone = together(air, moved.conj() / np.abs(moved), down)[1].mean(axis=-1)
        return np.abs(alone.sum()) / np.abs(alone).sum()

    between = float(midpoint_s(air.time_s(up), air.time_s(down)))
    # Phases within 20 mrad, what interference leaves in the estimates.
    assert spread(between) > 1 - 0.5 * 0.02**2
    for wrong in (air.time_s(up), air.time_s(down), exchange.time_s):
        assert spread(wrong) < 0.95
