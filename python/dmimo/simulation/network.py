# SPDX-License-Identifier: GPL-3.0-or-later
"""The simulated network: what every port transmits in, what every port receives out."""

import itertools
from collections.abc import Sequence

import numpy as np

from .amplifiers import AmplifierBank
from .beams import BeamTimeline
from .channel import Channel
from .clocks import NodeClocks
from .faults import Fault, FaultInjector
from .hardware import quantise
from .node import SimulatedNode
from .noise import GRID, ReceiverNoise
from .oscillators import OscillatorBank
from .propagation import Propagation, Site

__all__ = ["Network", "SimulatedNode"]

Rows = np.ndarray | Sequence[np.ndarray]
_CHUNK_BLOCKS = 8  # blocks per pass: few enough for the cache, enough to outweigh the calls


class Network:
    """Physical model of a network of nodes, from transmitted to received samples.

    Port p of node j transmits x_p, port q of node i receives

        y_q(n + latency_samples) = r_q exp(-1j theta_i(n)) sum_p (h_qp * s_p)(n) + w_q
        s_p = t_p exp(1j theta_j) f(x_p)

    with the amplifier f, the synthesizer phases within t and r, h_qp = b_q^T H_ij b_p for the beams b of the two panels
    (H_ji = H_ij^T), and noise w; the converter acts last. The latency only delays what is returned: samples n
    of x and of y + latency belong to the same instant, for oscillators and beams alike. A node with a clock of its own
    sends its samples later and receives earlier indices, by the offset of `Clock.offset`.

    All arithmetic runs on blocks of `block_samples` anchored at absolute sample 0, and everything random is a function
    of absolute position: results depend neither on how the samples are cut into calls nor on what was asked before.

    Parameters
    ----------
    nodes : the nodes; ports are numbered through in this order.
    propagation : draws the antenna-domain channels.
    samp_rate : samples per second.
    seed : keys the receiver noise (oscillators and propagation have their own).
    block_samples : a multiple of 256.
    faults : `Fault`s to inject; they act in slots announced by `begin_slot`.

    Attributes
    ----------
    latency_samples : constant delay of everything received, as in a radio's pipeline. 0 unless paths or clocks need
        fractional (or negative) delays.
    takes_runs : whether several slots may be processed in one call, since nothing acts across or within them.
    """

    def __init__(
        self,
        nodes: Sequence[SimulatedNode],
        propagation: Propagation,
        *,
        samp_rate: float,
        seed: int,
        block_samples: int = 256,
        faults: Sequence[Fault] = (),
    ):
        if block_samples < GRID or block_samples % GRID != 0:
            raise ValueError(f"block_samples={block_samples} must be a multiple of {GRID}")
        self.nodes, self.samp_rate, self.block_samples = tuple(nodes), samp_rate, block_samples
        self.names = tuple(node.name for node in self.nodes)
        if len(set(self.names)) != len(self.names) or not self.names:
            raise ValueError(f"node names {self.names} must be distinct, and at least one")
        propagation.check_names(self.names)
        first = np.cumsum([0, *(node.num_ports for node in self.nodes)]).tolist()
        self._slices = [slice(a, b) for a, b in itertools.pairwise(first)]
        self.num_ports = first[-1]
        self._ports_per_node = [node.num_ports for node in self.nodes]
        self._draw_channel(propagation)
        sizes = (self._slices, _CHUNK_BLOCKS * block_samples, block_samples, self.channel.latency_samples)
        self._clocks = NodeClocks({node.name: node.clock for node in self.nodes}, *sizes)
        self.latency_samples = self._clocks.tx_latency + self.channel.latency_samples + self._clocks.rx_latency
        self._beams = BeamTimeline({node.name: (node.num_ports, node.panel.num_beams) for node in self.nodes})
        self._noise = self._make_noise(seed)
        self._amplifiers = AmplifierBank([node.amplifiers for node in self.nodes], self._slices)
        self.takes_runs = not (self.has_memory or any(fault.is_physical for fault in faults))
        self._faults = FaultInjector(faults, dict(zip(self.names, self._slices, strict=True)))
        self._allocate()
        self._flush(0)

    def ports(self, name: str) -> slice:
        """Return which of the network's ports belong to node `name`."""
        return self._slices[self._index(name)]

    def _index(self, name: str) -> int:
        if name not in self.names:
            raise ValueError(f"{name!r} is not a node of this network: {', '.join(self.names)}")
        return self.names.index(name)

    # -- set-up -------------------------------------------------------------------------------------------------------

    def _draw_channel(self, propagation: Propagation) -> None:
        nodes = self.nodes
        sites = [Site(n.name, n.num_ports, n.panel.num_antennas, tuple(n.position_m), n.array) for n in nodes]
        pairs = [(i, j) for i in range(len(nodes)) for j in range(i + 1, len(nodes))]
        self._paths = {(i, j): propagation.paths(sites[i], sites[j], self.samp_rate) for i, j in pairs}
        offset = np.array([node.clock.fixed_offset for node in nodes])
        loop = np.array([node.clock.loop_delay_samples for node in nodes])
        self._tx_gains = np.concatenate([n.tx_gains * np.exp(1j * n.oscillator.tx_phase) for n in nodes])
        self._rx_gains = np.concatenate([n.rx_gains * np.exp(-1j * n.oscillator.rx_phase) for n in nodes])
        self.channel = Channel(
            [n.panel for n in nodes],
            self._ports_per_node,
            self._paths,
            [propagation.coupling(site) for site in sites],
            (offset + loop)[None, :] - offset[:, None],
            self._tx_gains,
            self._rx_gains,
            self.block_samples,
        )

    def _make_noise(self, seed: int) -> ReceiverNoise:
        variance = [np.broadcast_to(np.asarray(n.noise_var, float), n.num_ports) for n in self.nodes]
        keys = [(seed, "noise", node.name, port) for node in self.nodes for port in range(node.num_ports)]
        return ReceiverNoise(keys, np.concatenate(variance), _CHUNK_BLOCKS * self.block_samples)

    def _allocate(self) -> None:
        """Make the work space; `_s` and `_turn` begin with num_taps - 1 and latency columns of earlier blocks."""
        num, self._past = _CHUNK_BLOCKS * self.block_samples, self.channel.num_taps - 1
        self._x = np.zeros((self.num_ports, num), dtype=np.complex64)
        self._s = np.zeros((self.num_ports, self._past + num), dtype=np.complex64)
        self._y = np.zeros((self.num_ports, num), dtype=np.complex64)
        self._moving = not all(node.oscillator.is_still for node in self.nodes)
        if self._moving:
            self._bank = OscillatorBank([node.oscillator for node in self.nodes], num // GRID)
            self._part = np.empty((len(self.nodes), num), dtype=np.float32)
            self._turn = np.ones((len(self.nodes), self.latency_samples + num), dtype=np.complex64)
            # The conjugate may go in place if it leaves no past to spoil.
            self._back = self._turn if self.latency_samples == 0 else np.empty_like(self._turn)

    @property
    def has_memory(self) -> bool:
        """Return whether what is received depends on earlier samples, so that blocks must be whole."""
        return self.channel.has_memory or self._clocks.is_active or self._amplifiers.has_memory

    @property
    def backlog_samples(self) -> int:
        """Return how many samples have been taken but not returned, because their block is incomplete."""
        return self._filled - self._emitted

    def reset(self) -> None:
        """Forget the past waveform; slots go on being counted."""
        self._flush(0)

    def _flush(self, start: int) -> None:
        """Forget the past: the next sample is `start`, before it was silence."""
        if start < 0:
            raise ValueError(f"start={start} must not be negative: time is counted from the epoch")
        self._base = start // self.block_samples * self.block_samples  # absolute sample of the next block
        self._filled = self._emitted = start - self._base
        self._x[:, : self._filled] = 0
        self._s[:, : self._past] = 0
        if self._moving:
            self._turn[:, : self.latency_samples] = 1  # turns silence, but its rounding errors must not tell the past
        self._clocks.flush()
        self._amplifiers.flush()
        self._beams.begin()

    # -- samples ------------------------------------------------------------------------------------------------------

    def begin_slot(self, start: int, num: int) -> tuple[str, ...]:
        """Count a slot of `num` samples from absolute sample `start`; return the nodes that lose what they receive.

        Only faults need this. Call it before the slot's samples are processed.
        """
        return self._faults.begin_slot(start, num)

    def process(
        self, x: Rows, start: int, beams: np.ndarray, *, final: bool, shifts: Sequence[int] | None = None
    ) -> np.ndarray:
        """Return what all ports receive, complex64 (P, samples now available).

        Samples that continue the previous call belong to the same waveform; a jump of `start` forgets the past.
        Only whole blocks are computed and returned, and with `final` what has come of the last one, as if silence
        followed; if samples do follow, the block is computed again with them, for the samples still to be returned.

        Parameters
        ----------
        x, start : complex (P, n), or P rows: transmitted from absolute sample `start` on.
        beams : int (P,), beam of each port in these samples, for transmitting and receiving; or (n, P), of n slots of
            equal length that make up these samples.
        final : whether to return the samples of an incomplete last block too (end of a slot).
        shifts : one integer per node: it uses its device samples n + shift for samples n from `start` on, when sending
            and when receiving (those are returned `latency_samples` later). Only adjustable clocks; None: no shifts.
        """
        backlog = self.backlog_samples if start == self._base + self._filled else 0
        out = np.empty((self.num_ports, backlog + len(x[0])), dtype=np.complex64)
        return out[:, : self.process_into(out, x, start, beams, final=final, shifts=shifts)]

    def process_into(
        self, out: Rows, x: Rows, start: int, beams: np.ndarray, *, final: bool, shifts: Sequence[int] | None = None
    ) -> int:
        """Do what `process` does, but write to the rows of `out` and return the number of samples written to each.

        Rows of `backlog_samples` more than come in with x are long enough.
        """
        if len(x) != self.num_ports:
            raise ValueError(f"x has {len(x)} rows; the network has {self.num_ports} ports")
        if start != self._base + self._filled:
            self._flush(start)
        self._clocks.set_shifts(start, shifts)
        num, size = len(x[0]), self.block_samples
        self._beams.switch(start, num, beams)
        taken = written = 0
        while True:
            count = min(num - taken, self._x.shape[1] - self._filled)
            self._take(x, taken, count)
            taken += count
            whole = self._filled // size * size
            end = self._filled if final and taken == num else whole
            if end > self._emitted:
                y = self._compute(-(-end // size) * size)[:, self._emitted : end]
                for row, received in zip(out, y, strict=True):
                    row[written : written + y.shape[1]] = received
                written, self._emitted = written + y.shape[1], end
            if whole:
                self._commit(whole)
            if taken == num:
                return written

    def _take(self, x: Rows, first: int, count: int) -> None:
        """Append samples first ... first + count - 1 of every row of x to the input buffer."""
        at = self._filled
        for row, samples in zip(self._x, x, strict=True):
            row[at : at + count] = samples[first : first + count]
        self._filled += count
        self._faults.silence(self._x[:, at : self._filled], self._base + at)

    def _compute(self, num: int) -> np.ndarray:
        """Return what is received in the next `num` samples (whole blocks); silence follows what has been taken."""
        self._x[:, self._filled : num] = 0
        if self._moving:
            self._oscillate(num)
        signal = self._transmit(num)
        y = self._y[:, :num]
        self._propagate(signal, y)
        if self._clocks.is_active and not self._clocks.network_time:
            self._clocks.receive(y, self._base)
        if self._moving:
            first = self._clocks.rx_latency if self._clocks.network_time else 0
            turn = np.conjugate(self._turn[:, first : first + num], out=self._back[:, :num])
            np.multiply(y, self._per_port(turn), out=y)
        if self._clocks.network_time:
            self._clocks.receive(y, self._base)
        self._receive(y)
        return y

    def _oscillate(self, num: int) -> None:
        """Write exp(1j theta) of every node for the next `num` samples."""
        base, phase = self._bank.grid_phase(self._base // GRID, num // GRID)
        base = np.remainder(base + np.pi, 2 * np.pi) - np.pi  # float32 is precise near 0
        phase += base.astype(np.float32)[..., None]
        turn = self._turn[:, self.latency_samples : self.latency_samples + num].reshape(phase.shape)
        part = self._part[:, :num].reshape(phase.shape)
        turn.real[:] = np.cos(phase, out=part)  # not straight to turn.real: the vector loops want contiguous output
        turn.imag[:] = np.sin(phase, out=part)

    def _per_port(self, turn: np.ndarray) -> np.ndarray:
        return turn if len(turn) == self.num_ports else np.repeat(turn, self._ports_per_node, axis=0)

    def _transmit(self, num: int) -> np.ndarray:
        """Return what reaches the antennas, complex64 (P, num), except for the gains t, which are in the channel."""
        x, signal = self._x[:, :num], self._s[:, self._past : self._past + num]
        clocks, network_time = self._clocks, self._clocks.network_time
        if not (self._moving or self._amplifiers or self._past or clocks.is_active):
            return x
        if self._amplifiers or network_time or not self._moving:
            signal[:] = x
            x = signal
        self._amplifiers.transmit(signal)
        if network_time:
            clocks.transmit(signal, self._base)
        if self._moving:
            first = self.latency_samples - (clocks.tx_latency if network_time else 0)
            np.multiply(x, self._per_port(self._turn[:, first : first + num]), out=signal)
        if clocks.is_active and not network_time:
            clocks.transmit(signal, self._base)
        return signal

    def _propagate(self, signal: np.ndarray, y: np.ndarray) -> None:
        """Write the channel's output for `signal` (P, num) to y; receive gains included."""
        channel, num, size = self.channel, signal.shape[1], self.block_samples
        self._beams.settle(self._base - self._past - self.latency_samples)
        matrices = None if channel.has_memory else self._matrices_of_blocks(num)
        if matrices is not None:
            channel.flat(matrices, signal, y)
            return
        for first in range(0, num, size):
            start, out = self._base + first, y[:, first : first + size]
            window = signal[:, first : first + size]
            if channel.has_memory:
                window = self._s[:, first : first + self._past + size]
            received = list(self._beams.overlaps(start, start + size, self.latency_samples - self._clocks.rx_latency))
            sent = list(self._beams.overlaps(start - self._past, start + size, self._clocks.tx_latency))
            for a, b, rx_beams in received:
                total = 0
                for c, d, tx_beams in sent:
                    part = window
                    if len(sent) > 1:
                        part = np.zeros_like(window)
                        part[:, c:d] = window[:, c:d]
                    total = total + channel.block(channel.matrix(rx_beams, tx_beams), part)
                out[:, a:b] = total[:, a:b]

    def _matrices_of_blocks(self, num: int) -> np.ndarray | None:
        """Return the flat channel of the next blocks, (P, P) or of each; None where beams change within a block."""
        if len(self._beams) == 1:
            _, _, beams = next(self._beams.stretches())
            return self.channel.matrix(beams, beams)
        base, size, matrices = self._base, self.block_samples, []
        stretches = [(max(a - base, 0), min(b - base, num), beams) for a, b, beams in self._beams.stretches()]
        if self.latency_samples or any(a % size or b % size for a, b, _ in stretches):
            return None
        for a, b, beams in stretches:
            matrices += [self.channel.matrix(beams, beams)] * ((b - a) // size)
        return np.array(matrices)

    def _receive(self, y: np.ndarray) -> None:
        """Add to y (P, num) what the receivers do: dead ports, noise, converters, faults."""
        self._faults.silence(y, self._base)
        self._noise.add(y, self._base)
        for node, rows in zip(self.nodes, self._slices, strict=True):
            if node.adc is not None:
                y[rows] = quantise(y[rows], *node.adc)
        self._faults.spoil(y, self._base)

    def _commit(self, num: int) -> None:
        """Move on by `num` samples (whole blocks, computed): keep only what later blocks need."""
        self._s[:, : self._past] = self._s[:, num : num + self._past]
        if self._moving:
            self._turn[:, : self.latency_samples] = self._turn[:, num : num + self.latency_samples]
        if self._clocks.is_active:
            self._clocks.commit(num, self._base + num)
        self._amplifiers.commit(self._x[:, :num])
        rest = self._filled - num
        self._x[:, :rest] = self._x[:, num : self._filled]
        self._base, self._filled, self._emitted = self._base + num, rest, max(0, self._emitted - num)

    # -- truth --------------------------------------------------------------------------------------------------------

    def true_calibration(self, sample: int, subcarriers_hz: np.ndarray | None = None) -> np.ndarray:
        """Return c = t / r of all ports, not normalised, at absolute sample `sample`.

        complex128 (P,), or (P, F) at baseband frequencies `subcarriers_hz` (F,): clocks, loop delays and amplifiers'
        memory change c with frequency. Receive phases are those of the same instant, `latency_samples` later in y.
        """
        phase = np.repeat([self._theta(i, sample) for i in range(len(self.nodes))], self._ports_per_node)
        c = self._tx_gains / self._rx_gains * np.exp(2j * phase)
        if subcarriers_hz is None:
            return c
        delay = [2 * self._clocks.offset(i, sample) + n.clock.loop_delay_samples for i, n in enumerate(self.nodes)]
        cycles = np.asarray(subcarriers_hz) / self.samp_rate
        c = c[:, None] * np.concatenate([self._amplifiers.linear_response(i, cycles) for i in range(len(self.nodes))])
        return c * np.exp(-2j * np.pi * np.multiply.outer(np.repeat(delay, self._ports_per_node), cycles))

    def of_nodes(self, values: np.ndarray, names: Sequence[str]) -> np.ndarray:
        """Return those of values (P, ...) of all ports that belong to these nodes, in their order."""
        return np.concatenate([values[self.ports(name)] for name in names])

    def true_clock_offset(self, name: str, sample: int, shift: int | None = None) -> float:
        """Return `Clock.offset` of a node [samples] under the shift that was set for `sample`, or under `shift`."""
        return self._clocks.offset(self._index(name), sample, shift)

    def _theta(self, node: int, sample: int) -> float:
        return float(self.nodes[node].oscillator.phase(sample, 1)[0])

    def true_channel(
        self, rx: str, tx: str, beams: np.ndarray, sample: int, subcarriers_hz: np.ndarray | None = None
    ) -> np.ndarray:
        """Return r h t between the ports of two nodes at absolute sample `sample`, straight from the model.

        complex128 (ports of rx, ports of tx), at band centre, or (..., F) at `subcarriers_hz`; `beams` (P,) as in
        `process`. True delays are in it, `latency_samples` is not.
        """
        i, j = self._index(rx), self._index(tx)
        beams, here, there = np.asarray(beams), self._slices[i], self._slices[j]
        if i == j:
            gains, delays = self.channel.coupling(i)[..., None].astype(np.complex128), np.zeros(1)
        else:
            paths = self._paths[i, j] if i < j else self._paths[j, i].transposed()
            w_rx = self.nodes[i].panel.codebook[:, beams[here]]
            w_tx = self.nodes[j].panel.codebook[:, beams[there]]
            gains, delays = np.einsum("paqbk,ap,bq->pqk", paths.gains, w_rx, w_tx), paths.delays_samples
        gains *= self._rx_gains[here, None, None] * self._tx_gains[there, None]
        gains *= np.exp(1j * (self._theta(j, sample) - self._theta(i, sample)))
        late = self._clocks.offset(j, sample) + self.nodes[j].clock.loop_delay_samples - self._clocks.offset(i, sample)
        cycles = np.asarray(0.0 if subcarriers_hz is None else subcarriers_hz) / self.samp_rate
        turn = np.exp(-2j * np.pi * np.multiply.outer(delays + late, cycles))
        return np.tensordot(gains, turn, axes=1) * self._amplifiers.linear_response(j, cycles)
