# SPDX-License-Identifier: GPL-3.0-or-later
"""The port-to-port channel of a network for given beams, and its action on blocks of samples."""

from collections import OrderedDict
from collections.abc import Sequence

import numpy as np
import scipy.fft

from .delays import delay_filters, filter_latency
from .hardware import Panel
from .propagation import Paths

_CACHE_BYTES = 1 << 26


def beam_gains(paths: Paths, panel_a: Panel, panel_b: Panel) -> np.ndarray:
    """Return w_a^T H_k w_b for all beams, complex128 (ports of a, beams of a, ports of b, beams of b, K)."""
    return np.einsum("paqbk,ac,bd->pcqdk", paths.gains, panel_a.codebook, panel_b.codebook, optimize=True)


class Channel:
    """Port-to-port channel r w_i^T H_ij w_j t, flat or with memory, for every choice of beams.

    A node does not hear itself: the diagonal blocks are zero, unless its ports are coupled. A port never does.

    Parameters
    ----------
    panels, num_ports : per node.
    paths : paths[i][j] for nodes i < j, the antenna-domain channel.
    couplings : per node, the matrix between its ports (num_ports, num_ports), the same for all beams; None: zero.
    extra_delay : (M, M) samples, added to every path from node j (column) to node i (row); may be negative.
    tx_gains, rx_gains : complex (P,), per port.
    block_samples : samples per block B.
    """

    def __init__(
        self,
        panels: Sequence[Panel],
        num_ports: Sequence[int],
        paths: dict[tuple[int, int], Paths],
        couplings: Sequence[np.ndarray | None],
        extra_delay: np.ndarray,
        tx_gains: np.ndarray,
        rx_gains: np.ndarray,
        block_samples: int,
    ):
        self._block = block_samples
        self._port = np.arange(sum(num_ports))
        self._node = np.repeat(np.arange(len(panels)), num_ports)
        self.hardware = np.multiply.outer(rx_gains, tx_gains)
        num_nodes, num_paths = len(panels), max((len(p.delays_samples) for p in paths.values()), default=1)
        delays = np.zeros((num_nodes, num_nodes, num_paths))
        present = np.zeros(delays.shape, dtype=bool)
        for (i, j), pair in paths.items():
            for rx, tx in ((i, j), (j, i)):
                present[rx, tx, : len(pair.delays_samples)] = True
                delays[rx, tx, : len(pair.delays_samples)] = pair.delays_samples + extra_delay[rx, tx]
        for i, coupling in enumerate(couplings):
            if coupling is not None:
                present[i, i, 0], delays[i, i, 0] = True, extra_delay[i, i]
        self._couplings = [np.zeros((n, n)) if c is None else c for n, c in zip(num_ports, couplings, strict=True)]
        delays[~present] = 0.0
        self.latency_samples = filter_latency(delays)
        self.num_taps = 1
        self._filters = None
        if np.any(delays != 0.0):
            filters = delay_filters(delays, self.latency_samples)
            self.num_taps = filters.shape[-1]
            self.num_bins = scipy.fft.next_fast_len(block_samples + self.num_taps - 1)
            self._filters = scipy.fft.fft(filters, self.num_bins).astype(np.complex64)
        self._table = self._beam_table(panels, num_ports, paths, num_paths if self._filters is not None else 1)
        self._cache: OrderedDict[bytes, np.ndarray] = OrderedDict()

    def _beam_table(self, panels, num_ports, paths, num_paths) -> np.ndarray:
        """Return the channel between all beams of all ports, complex64 (P, beams, P, beams, K)."""
        num, beams = len(self._port), max(panel.num_beams for panel in panels)
        first = np.concatenate([[0], np.cumsum(num_ports)])
        table = np.zeros((num, beams, num, beams, num_paths), dtype=np.complex64)
        for (i, j), pair in paths.items():
            gains = beam_gains(pair, panels[i], panels[j])
            if num_paths == 1:
                gains = gains.sum(axis=-1, keepdims=True)
            at_i, at_j = slice(first[i], first[i + 1]), slice(first[j], first[j + 1])
            _, beams_i, _, beams_j, depth = gains.shape
            table[at_i, :beams_i, at_j, :beams_j, :depth] = gains
            table[at_j, :beams_j, at_i, :beams_i, :depth] = gains.transpose(2, 3, 0, 1, 4)
        for i, coupling in enumerate(self._couplings):
            at, beams_i = slice(first[i], first[i + 1]), panels[i].num_beams
            table[at, :beams_i, at, :beams_i, 0] = coupling[:, None, :, None]
        return table

    def coupling(self, node: int) -> np.ndarray:
        """Return the coupling between the ports of a node, (num_ports, num_ports), without its gains t and r."""
        return self._couplings[node]

    @property
    def has_memory(self) -> bool:
        return self._filters is not None

    def matrix(self, rx_beams: np.ndarray, tx_beams: np.ndarray) -> np.ndarray:
        """Return the channel for beams (P,) each, complex64: flat (P_rx, P_tx), with memory (bins, P_rx, P_tx)."""
        key = rx_beams.tobytes() + tx_beams.tobytes()
        found = self._cache.get(key)
        if found is not None:
            self._cache.move_to_end(key)
            return found
        port = self._port
        gains = self._table[port[:, None], rx_beams[:, None], port, tx_beams] * self.hardware[..., None]
        if self._filters is None:
            found = gains[..., 0].astype(np.complex64)
        else:
            filters = self._filters[self._node[:, None], self._node]
            found = (gains.astype(np.complex64)[..., None, :] @ filters)[..., 0, :]
            found = np.ascontiguousarray(found.transpose(2, 0, 1))
        self._cache[key] = found
        while len(self._cache) > max(1, _CACHE_BYTES // found.nbytes):
            self._cache.popitem(last=False)
        return found

    def flat(self, matrix: np.ndarray, x: np.ndarray, out: np.ndarray) -> None:
        """Write matrix @ x to out, both complex64 (P, n B): one product of always the same shape per block.

        A BLAS may round a column differently in products of another shape.
        """
        blocks = (len(x), -1, self._block)
        np.matmul(matrix, x.reshape(blocks).transpose(1, 0, 2), out=out.reshape(blocks).transpose(1, 0, 2))

    def block(self, matrix: np.ndarray, window: np.ndarray) -> np.ndarray:
        """Return the channel's output, complex64 (P, B), for one block preceded by num_taps - 1 earlier samples."""
        return self.filtered(matrix, window) if self.has_memory else matrix @ window

    def filtered(self, matrix: np.ndarray, window: np.ndarray) -> np.ndarray:
        """Return the convolution, complex64 (P, B), for `window` = num_taps - 1 earlier samples and a block, (P, ...).

        Overlap-save: the first num_taps - 1 samples of the circular convolution are wrong and dropped.
        """
        spectra = np.ascontiguousarray(scipy.fft.fft(window, self.num_bins, axis=-1).T)
        spectra = np.matmul(matrix, spectra[..., None])[..., 0]
        first = self.num_taps - 1
        return scipy.fft.ifft(np.ascontiguousarray(spectra.T), axis=-1)[:, first : first + self._block]
