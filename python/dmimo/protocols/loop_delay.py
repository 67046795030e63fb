# SPDX-License-Identifier: GPL-3.0-or-later
r"""Loop delay: every port of a radio measures how many samples after it has sent something it hears it itself.

A radio labels what it sends and receives with one clock, but its transmit and receive chains (filters, converters) take
time: a port that sends at sample n hears itself at n + d, d a few to some hundred samples, not always the same for all
ports. The ports sound one after another with a wideband burst x, `repeats` times over, and each listens to itself:

.. math:: y_r(n) = g_r\, x(n - d) + w_r(n), \qquad r = 1 \dots \mathrm{repeats}

with unknown complex gains g. `core.timing.acquire` finds d by maximum likelihood. From then on the port sends half of
round(d) samples earlier and cuts its slots by the rest later: a loop does not tell how much of it is the transmitter's,
and two chains of one port are more alike than chains of two radios. What stays, less than a sample and half of what the
two chains differ by, is in the calibration c, where it belongs: it is the same in every measurement.

After every burst the nodes keep silent for `guard_samples` at least, so that a burst that is later than the slot can
measure (`max_delay_samples`) is not taken for an early one of the next slot.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..core.timing import acquire, fractional_shift, preamble
from .slots import Grant, Product, Reception, Slot

PURPOSE = PHASE = "loop_delay"
SILENT = -1  # variant of a slot in which nobody transmits
MAX_STD_SAMPLES = 0.1  # of an estimate that is trusted: then its nearest integer is wrong by chance in 1 of 10^6
MAX_RIVAL = 0.5  # power of a second path over that of the first, above which either may be the greater one next time
FIX = ("bring its transmit and receive antennas nearer or raise its gains, or give the delay of its node's ports as "
       "radio.loop_delays_samples with usrp.loop_delay: given")


@dataclass(frozen=True)
class LoopDelayPlan:
    """What the nodes need to know about the measurement.

    ::

        | margin | burst | max_delay_samples | margin |

    Parameters
    ----------
    nodes : tuple of str
        All nodes, in the order of the schedule.
    num_ports : mapping of node to int
        The nodes that measure, in the order of the product's ports.
    slot_samples : int
        At least 64.
    repeats : int
        Bursts of each port.
    guard_samples : int
        Silence after each burst, rounded up to slots.

    Raises
    ------
    ValueError
        If a slot is too short, or a number is not positive, or a node that measures is not in the schedule.
    """

    nodes: tuple[str, ...]
    num_ports: Mapping[str, int]
    slot_samples: int
    repeats: int = 2
    guard_samples: int = 1024

    def __post_init__(self):
        if self.slot_samples < 64:
            raise ValueError(f"slot_samples={self.slot_samples} must be at least 64 to measure loop delays")
        if self.repeats < 1 or self.guard_samples < 0:
            raise ValueError(f"repeats={self.repeats} must be at least 1, guard_samples={self.guard_samples} not "
                             "negative")
        unknown = sorted(set(self.num_ports) - set(self.nodes))
        if unknown or not self.num_ports or min(self.num_ports.values()) < 1:
            raise ValueError(f"num_ports={dict(self.num_ports)} must give at least one port to nodes among "
                             f"{self.nodes}")

    @property
    def margin_samples(self) -> int:
        """Silence at both ends of the slot, for fractions of a sample and delays just outside the range."""
        return min(16, self.slot_samples // 16)

    @cached_property
    def burst(self) -> np.ndarray:
        """Samples of the burst, complex128: a quarter of the slot, at least 24 and at most 512."""
        return preamble(min(512, max(24, self.slot_samples // 4)))

    @property
    def max_delay_samples(self) -> int:
        """Greatest delay that can be measured: half the slot, where the slot is short, up to all but 544 samples."""
        return self.slot_samples - len(self.burst) - 2 * self.margin_samples

    def ports(self, node: str) -> slice:
        """Where the node's ports are in the arrays of the product."""
        names = list(self.num_ports)
        first = sum(self.num_ports[name] for name in names[: names.index(node)])
        return slice(first, first + self.num_ports[node])

    def slots(self) -> list[Slot]:
        """Slots of the phase: all ports of all nodes, one after another, `repeats` times over."""
        beams = (0,) * len(self.nodes)
        silence = [Slot(0, PURPOSE, (), beams, SILENT)] * -(-self.guard_samples // self.slot_samples)
        out = []
        for _ in range(self.repeats):
            for node, count in self.num_ports.items():
                for port in range(count):
                    out += [Slot(0, PURPOSE, (node,), beams, port), *silence]
        return out


class LoopDelayRole:
    """What one node does: each of its ports sends by itself and listens to itself; all others are silent.

    Attributes
    ----------
    loop_delays : ndarray (num_ports,), int64, or None
        What is to be removed, once that has been measured. A measurement in a later run counts on that being done.
    """

    purposes = frozenset({PURPOSE})
    reactive = False

    def __init__(self, node: str, plan: LoopDelayPlan):
        self._node, self._plan = node, plan
        num_ports = plan.num_ports.get(node, 0)
        self.loop_delays: np.ndarray | None = None
        self._bursts = np.zeros((num_ports, num_ports, plan.slot_samples), np.complex64)
        first = plan.margin_samples
        for port in range(num_ports):
            self._bursts[port, port, first : first + len(plan.burst)] = plan.burst
        self._bursts_of_ports = list(self._bursts)  # the same objects every time: blocks encode them once
        self._reception = Reception()
        self._ports: dict[int, int] = {}  # by slot

    def beam(self, slot: Slot) -> int:
        """Beam 0."""
        return 0

    def transmit(self, slot: Slot, start: int) -> np.ndarray | None:
        """Burst of the port whose turn it is."""
        return self._bursts_of_ports[slot.variant] if self._node in slot.transmitters else None

    def receive(self, slot: Slot, grant: Grant, samples: np.ndarray) -> None:
        """Keep what the port hears whose turn it is."""
        if self._node in slot.transmitters:
            self._ports[grant.slot] = slot.variant
            self._reception.keep(grant, samples[slot.variant])

    def results(self, grants: Sequence[Grant]) -> dict[str, object] | None:
        """Measurement of each port, arrays (num_ports,).

        Returns
        -------
        dict
            `delay_samples`, `delay_std_samples`: of the loop, as if nothing were removed from it; `inside_samples`: the
            part of it that the slot had to measure; `snr`: per received sample; `found`; `rival`: power of the
            strongest other path over that of the path found.
        """
        heard = sorted((self._ports[grant.slot], grant) for grant in grants if grant.slot in self._ports)
        if not heard:
            return None
        num_ports, plan = len(self._bursts), self._plan
        samples = self._reception.take([grant for _, grant in heard]).reshape(num_ports, plan.repeats, -1)
        self._ports.clear()
        found = _acquire(samples, plan.burst)
        inside = found.delay_samples - plan.margin_samples
        before = 0 if self.loop_delays is None else self.loop_delays
        return {"delay_samples": inside + before, "delay_std_samples": found.delay_std_samples,
                "inside_samples": inside, "snr": found.snr, "found": found.trusted,
                "rival": _rival(samples, plan.burst, found.delay_samples)}

    def update(self, product: Product) -> None:
        """Take the delays of the node's ports."""
        if product.phase == PHASE and product.trusted and self._node in self._plan.num_ports:
            delays = np.asarray(product.values["loop_delays"])[self._plan.ports(self._node)]
            self.loop_delays = delays.astype(np.int64)


class GivenDelays:
    """Loop delays that are known; takes part in no slot.

    Parameters
    ----------
    delays : sequence of int
        Of the node's ports [samples].
    """

    purposes: frozenset[str] = frozenset()
    reactive = False

    def __init__(self, delays: Sequence[int]):
        self.loop_delays = np.array(delays, np.int64)

    def update(self, product: Product) -> None:
        """Nothing: the delays are known."""


class LoopDelayCollector:
    """Checks what the ports have measured and publishes the delays to remove.

    Parameters
    ----------
    plan : LoopDelayPlan

    Attributes
    ----------
    delays : dict of node to int64 ndarray (num_ports,)
        Measured and trusted; empty until then.
    """

    phases = frozenset({PHASE})

    def __init__(self, plan: LoopDelayPlan):
        self._plan = plan
        self.delays: dict[str, np.ndarray] = {}

    def update(self, product: Product) -> None:
        """Nothing: the measurement comes first."""

    def produce(self, phase: str, grants: Sequence[Grant], results: Mapping[str, Mapping[str, object]]) -> Product:
        """Product with arrays over the ports of all nodes that measure, see `LoopDelayPlan.ports`.

        `loop_delays`: int64, to be removed by the receivers; `delay_samples`, `delay_std_samples`: as measured, with
        the predicted standard deviation; `snr_db`: per received sample. Not trusted, with names and what to do, where a
        port does not hear itself, its delay is outside of what can be measured, or two paths are about equal.
        """
        silent = [node for node in self._plan.num_ports if not results.get(node)]
        if silent:
            return Product(PHASE, {}, False, tuple(f"node {node}: has measured no loop delay" for node in silent))
        merged = {key: np.concatenate([np.asarray(results[node][key]) for node in self._plan.num_ports])
                  for key in ("delay_samples", "delay_std_samples", "snr")}
        reasons = tuple(f"node {node}: port {port}: {doubt}; {FIX}" for node, count in self._plan.num_ports.items()
                        for port in range(count) if (doubt := self._doubt(results[node], port)))
        delays = np.where(np.isfinite(merged["delay_samples"]), merged["delay_samples"], 0.0)
        values = {"loop_delays": np.rint(delays).astype(np.int64), "delay_samples": merged["delay_samples"],
                  "delay_std_samples": merged["delay_std_samples"],
                  "snr_db": 10 * np.log10(np.maximum(merged["snr"], 1e-30))}
        if not reasons:
            self.delays = {node: values["loop_delays"][self._plan.ports(node)] for node in self._plan.num_ports}
        return Product(PHASE, values, not reasons, reasons)

    def _doubt(self, result: Mapping[str, object], port: int) -> str:
        """Why not to trust a port's measurement; empty if there is no reason."""
        delay, std, inside, snr, found, rival = (np.asarray(result[key])[port] for key in (
            "delay_samples", "delay_std_samples", "inside_samples", "snr", "found", "rival"))
        if not found:
            return "does not hear itself, so that its loop delay is not known"
        if not std < MAX_STD_SAMPLES:
            return (f"hears itself too weakly ({10 * np.log10(snr):.0f} dB): its loop delay has a predicted deviation "
                    f"of {std:.2f} samples")
        if delay < -0.5 or inside < 1 - self._plan.margin_samples:
            return f"hears itself {-delay:.1f} samples before it sends: its two chains do not share their time"
        if inside > self._plan.max_delay_samples + 0.5:
            return (f"its loop delay of about {delay:.0f} samples is more than can be measured in slots of "
                    f"slot_samples={self._plan.slot_samples}, {self._plan.max_delay_samples}")
        if rival > MAX_RIVAL:
            return f"hears itself over two paths of about equal power ({10 * np.log10(rival):.1f} dB)"
        return ""


def _acquire(samples: np.ndarray, burst: np.ndarray):
    """Estimate (ports,) from (ports, repeats, slot_samples): transmitter and receiver share their oscillator."""
    return acquire(samples, burst, samp_rate=1.0, max_offset_hz=0.0)


def _rival(samples: np.ndarray, burst: np.ndarray, delay: np.ndarray) -> np.ndarray:
    """Power (ports,) of the strongest path that is left without the first, over that of the first; 0 if none is."""
    left, power = _without(samples, burst, delay)
    second = _acquire(left, burst)
    _, other = _without(left, burst, second.delay_samples)
    return np.where(second.trusted, other / np.maximum(power, np.finfo(float).tiny), 0.0)


def _without(samples: np.ndarray, burst: np.ndarray, delay: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Samples (ports, repeats, n) without the burst at the delays (ports,), and the power (ports,) that it had."""
    padded = np.concatenate([burst, np.zeros(samples.shape[-1] - burst.size)])
    model = np.stack([fractional_shift(padded, d) for d in delay])[:, None]
    gain = np.sum(np.conj(model) * samples, axis=-1, keepdims=True) / np.sum(np.abs(burst) ** 2)
    return samples - gain * model, np.sum(np.abs(gain) ** 2, axis=(1, 2))
