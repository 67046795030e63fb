# SPDX-License-Identifier: GPL-3.0-or-later
"""Simulated power amplifiers in streams."""

from typing import Literal

import numpy as np
import pmt
from gnuradio import gr

from ..simulation.amplifiers import Amplifiers, amplifier_law, draw_amplifiers
from .guard import guarded
from .lean import lean_sync_block

CHUNK_SAMPLES = 4096


class amplifier_model(lean_sync_block):
    """Samples behind the amplifiers of a node's ports, as `simulation.amplifiers` has them in a simulated network.

    A sample of unit mean power lies `back_off_db` below the amplitude to which the amplifier's coefficients refer, and
    the small-signal gain is 1 whatever the back-off. Parameters have the names and the meaning of the testbed file's
    `amplifier`; `set_amplifier` changes them all while the flowgraph runs, from the next call of `work` on. Amplifiers
    with memory see silence before the first sample.

    Parameters
    ----------
    num_ports : int
    kind : "third_order", u + compression u |u|^2, or "gan", a measured polynomial of order 9 (`GAN_POLYNOMIAL`)
    compression : complex
        Of kind third_order; without effect on gan.
    back_off_db : float
    saturation : float, optional
        Amplitude |u| from which the input is limited; None: none for third_order, 1 for gan.
    drive_std_db : float
        Standard deviation of the ports' input level, in dB.
    spread : float
        Relative standard deviation of the ports' deviation from linear.
    memory : sequence of complex
        Gains of the output of the earlier 1, 2 ... samples.
    seed : int
        Of what differs between ports.
    """

    def __init__(self, num_ports: int = 1, kind: Literal["third_order", "gan"] = "gan", compression: complex = 0.0,
                 back_off_db: float = 0.0, saturation: float | None = None, drive_std_db: float = 0.0,
                 spread: float = 0.0, memory=(), seed: int = 0):
        if num_ports < 1:
            raise ValueError(f"num_ports = {num_ports}: must be at least 1")
        lean_sync_block.__init__(self, "amplifier_model", [np.complex64] * num_ports, [np.complex64] * num_ports)
        self._num_ports = num_ports
        self.set_amplifier(kind, compression, back_off_db, saturation, drive_std_db, spread, memory, seed)
        self._past = np.zeros((num_ports, 0), np.complex64)
        self.set_tag_propagation_policy(gr.TPP_ONE_TO_ONE)
        self.message_port_register_out(pmt.intern("error"))

    @property
    def amplifiers(self) -> Amplifiers:
        """The amplifiers; their `coefficients` (num_ports, L, P) refer to samples of unit mean power."""
        return self._amplifiers

    def set_amplifier(self, kind: str, compression: complex = 0.0, back_off_db: float = 0.0,
                      saturation: float | None = None, drive_std_db: float = 0.0, spread: float = 0.0,
                      memory=(), seed: int = 0) -> None:
        """Change the amplifiers of all ports. What differs between them stays the same for the same seed."""
        compression = complex(compression)
        if not np.isfinite(compression):
            raise ValueError(f"compression = {compression}: must be finite")
        coefficients, saturation = amplifier_law(kind, compression, saturation)
        self._amplifiers = draw_amplifiers(
            np.random.default_rng(seed), self._num_ports, coefficients, back_off_db=back_off_db,
            saturation=saturation, drive_std_db=drive_std_db, spread=spread, memory=tuple(memory))  # fmt: skip

    def start(self):
        """Before the first sample was silence."""
        self._past = np.zeros((self._num_ports, 0), np.complex64)
        return super().start()

    @guarded
    def work(self, input_items, output_items):
        """Amplify, in chunks that stay in the cache; what a chunk's end leaves to the next is kept."""
        count, amplifiers = len(output_items[0]), self._amplifiers
        for begin in range(0, count, CHUNK_SAMPLES):
            part = slice(begin, begin + CHUNK_SAMPLES)
            x = np.hstack([self._recent(amplifiers.num_taps - 1), [items[part] for items in input_items]])
            for row, items in zip(amplifiers(x), output_items, strict=True):
                items[part] = row
            self._past = x[:, x.shape[1] - amplifiers.num_taps + 1 :]
        return count

    def _recent(self, num: int) -> np.ndarray:
        """Last `num` samples of each port, (num_ports, num); zeros where amplifiers with less memory kept none."""
        kept = self._past[:, max(self._past.shape[1] - num, 0) :]
        return np.pad(kept, ((0, 0), (num - kept.shape[1], 0)))
