# SPDX-License-Identifier: GPL-3.0-or-later
"""The bidirectional exchange's plan: which slots TRPs and UEs need to learn the calibration of both sides.

Each slot holds one OFDM symbol. A TDD pattern has two phases:

* *exchange*, in lock-step, since slots answer earlier ones: the TRPs sound (CSI-RS), the UEs answer with the channel
  undone (UL-CARS), the UEs sound (SRS), the TRPs answer (DL-CARS), and both sound once more, for the oscillators'
  frequencies. From UL-CARS each TRP reads C = G / H, from DL-CARS each UE reads 1 / C. All ports of a side send at the
  same time, on combs.
* *tracking*, half a pattern later: CSI-RS and SRS again, whose phases show how far the oscillators have turned. They
  come in the order of the exchange's second soundings, so that both have turned for the same time.

Where panels have several beams, a phase *beam_training* comes first: the UEs sound through all pairs of beams. The
exchange then takes several rounds, in each of which a TRP and a UE point at each other with the best pair of beams of
their link; a TRP meets every UE once.

References
----------
Bidirectional calibration (CARS), sections III-A and III-C, figures 3 and 4. Deviation: both directions run in every
pattern, one after the other, so that both sides get their coefficients and the oscillators' frequencies show.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from ..core.cars import CarsForm
from ..core.ofdm import CombError, CombMapping, OfdmGrid
from ..core.ofdm_exchange import OfdmExchange
from .slots import CHOSEN, Slot

TRAINING, EXCHANGE, TRACKING = "beam_training", "exchange", "tracking"
CSI_RS, UL_CARS, SRS, DL_CARS = "csi_rs", "ul_cars", "srs", "dl_cars"
CSI_RS_PAIR, SRS_PAIR = "csi_rs_pair", "srs_pair"
TRACKING_SRS, TRACKING_CSI_RS = "tracking_srs", "tracking_csi_rs"
MIN_ELEMENTS = 4  # of a link, from which an estimate can be trusted


class Side(NamedTuple):
    """Purposes of the slots in which the nodes of one side hear the other side, answer it, read its answer, hear it
    once more, and track it."""

    hears: str
    answers: str
    reads: str
    pairs: str
    tracks: str


TRP_SIDE = Side(SRS, DL_CARS, UL_CARS, SRS_PAIR, TRACKING_SRS)
UE_SIDE = Side(CSI_RS, UL_CARS, DL_CARS, CSI_RS_PAIR, TRACKING_CSI_RS)
_EXCHANGE_SLOTS = (CSI_RS, UL_CARS, SRS, DL_CARS, CSI_RS_PAIR, SRS_PAIR)
_SENT_BY_TRPS = frozenset({CSI_RS, DL_CARS, CSI_RS_PAIR, TRACKING_CSI_RS})


@dataclass(frozen=True)
class BidirectionalPlan:
    """What all nodes need to know about a run.

    Parameters
    ----------
    nodes : tuple of str
        All nodes, in the order of the schedule.
    trps, ues : tuple of str
        The two sides; the UEs are those that take part in the calibration.
    terminals : tuple of str
        All UEs, also those that only train their beams.
    num_ports, num_beams : mapping of node to int
    grid : OfdmGrid
    slot_samples, lead_samples : int
        Length of a slot, and of the silence before its symbol.
    advance_samples : int
        How much earlier than expected the receive windows open.
    latency_samples, receive_delay_samples : int
        How much later samples are labelled than at the antenna, and arrive there than they were sent.
    form : "inverse", "conjugate" or "phase"
    fade_limit_db : float
        See `core.cars.cars_precoding`.
    max_delay_s : float, optional
        Largest offset between the clocks of a TRP and a UE; as much as prefix and combs take by default.
    max_cfo_hz : float, optional
        Largest difference between the oscillators of a TRP and a UE; as much as the slots can tell by default.
    center_freq : float
        In Hz. A node's oscillator drives its sample clock, too: delays drift by max_cfo_hz / center_freq at most.
    linewidth_hz : float
        Of each oscillator, for the deviations that are predicted.

    Raises
    ------
    CombError
        If the subcarriers are too few for all links.
    ValueError
        If the symbol does not fit into the slot, or a limit is beyond what the exchange can tell.
    """

    nodes: tuple[str, ...]
    trps: tuple[str, ...]
    ues: tuple[str, ...]
    terminals: tuple[str, ...]
    num_ports: Mapping[str, int]
    num_beams: Mapping[str, int]
    grid: OfdmGrid
    slot_samples: int
    lead_samples: int
    advance_samples: int
    latency_samples: int = 0
    receive_delay_samples: int = 0
    form: CarsForm = "inverse"
    fade_limit_db: float = 20.0
    max_delay_s: float | None = None
    max_cfo_hz: float | None = None
    center_freq: float = 26e9
    linewidth_hz: float = 0.0

    def __post_init__(self):
        if not self.trps or not self.ues:
            raise ValueError(f"trps = {self.trps}, ues = {self.ues}: must be at least one node each")
        if self.grid.cp_samples < 2:
            raise ValueError(f"cp_samples = {self.grid.cp_samples}: an exchange needs a prefix of at least 2")
        if not 0 < self.delay_limit_s <= self.unambiguous_delay_s:
            raise ValueError(f"max_delay_s = {self.max_delay_s:g}: must be positive and at most "
                             f"{self.unambiguous_delay_s:g}, beyond which soundings leave the prefix or have aliases")
        if self.max_cfo_hz is not None and not 0 < self.max_cfo_hz < self.unambiguous_cfo_hz:
            raise ValueError(f"max_cfo_hz = {self.max_cfo_hz:g}: must be positive and below {self.unambiguous_cfo_hz:g}"
                             ", beyond which frequencies have aliases; shorter slots allow more")
        # Combs and slot are checked as these are made.
        _ = self.down, self.up, self.train if self.trains else None

    @cached_property
    def down(self) -> OfdmExchange:
        """CSI-RS and UL-CARS."""
        return self._exchange(self.num_trp_ports, self.num_ue_ports)

    @cached_property
    def up(self) -> OfdmExchange:
        """SRS and DL-CARS."""
        return self._exchange(self.num_ue_ports, self.num_trp_ports)

    @cached_property
    def train(self) -> OfdmExchange:
        """Soundings of all UEs in the beam training."""
        return self._exchange(sum(self.num_ports[name] for name in self.terminals), 1)

    def _exchange(self, sounding: int, responding: int) -> OfdmExchange:
        """Combs of as many elements as the links can share evenly."""
        each = self.grid.num_subcarriers // (sounding * responding)
        if each < MIN_ELEMENTS:
            raise CombError(f"num_subcarriers = {self.grid.num_subcarriers}: must be at least "
                            f"{MIN_ELEMENTS * sounding * responding}, {MIN_ELEMENTS} for each of {sounding} x "
                            f"{responding} links between ports")
        return OfdmExchange(
            self.grid, CombMapping(sounding, responding, each * responding), self.slot_samples, self.lead_samples,
            self.advance_samples, self.latency_samples, self.receive_delay_samples)

    @property
    def num_trp_ports(self) -> int:
        """M, ports of all TRPs."""
        return sum(self.num_ports[name] for name in self.trps)

    @property
    def num_ue_ports(self) -> int:
        """N, ports of all calibrating UEs."""
        return sum(self.num_ports[name] for name in self.ues)

    @property
    def unambiguous_delay_s(self) -> float:
        """Offset of two clocks up to which soundings arrive within the prefix, and delays on their combs are unique."""
        ports = max(self.num_trp_ports, self.num_ue_ports)
        return 0.5 * min(self.grid.cp_samples, self.grid.fft_size / ports) / self.grid.samp_rate

    @property
    def delay_limit_s(self) -> float:
        """Largest offset of clocks that is expected."""
        return self.unambiguous_delay_s if self.max_delay_s is None else self.max_delay_s

    @property
    def cfo_limit_hz(self) -> float:
        """Largest difference of oscillators that is expected."""
        return self.unambiguous_cfo_hz if self.max_cfo_hz is None else self.max_cfo_hz

    @property
    def unambiguous_cfo_hz(self) -> float:
        """Offset between two nodes that turns SRS by half a turn from one sounding to the other, three slots later."""
        return self.grid.samp_rate / (6 * self.slot_samples)

    def side(self, node: str) -> Side | None:
        """Side of a node; None for those that take no part."""
        return TRP_SIDE if node in self.trps else UE_SIDE if node in self.ues else None

    def peers(self, node: str) -> tuple[str, ...]:
        """Nodes of the other side."""
        return self.ues if node in self.trps else self.trps

    def ports(self, node: str) -> slice:
        """Ports of a node among those of its side."""
        return self._ports(node, self.trps if node in self.trps else self.ues)

    def training_ports(self, node: str) -> slice:
        """Ports of a UE among those of all UEs."""
        return self._ports(node, self.terminals)

    def _ports(self, node: str, side: tuple[str, ...]) -> slice:
        first = sum(self.num_ports[name] for name in side[: side.index(node)])
        return slice(first, first + self.num_ports[node])

    @property
    def node_of_trp_port(self) -> np.ndarray:
        """Number of the TRP of each port, (M,)."""
        return np.repeat(np.arange(len(self.trps)), [self.num_ports[name] for name in self.trps])

    @property
    def node_of_ue_port(self) -> np.ndarray:
        """Number of the UE of each port, (N,)."""
        return np.repeat(np.arange(len(self.ues)), [self.num_ports[name] for name in self.ues])

    # -- beams --------------------------------------------------------------------------------------------------------

    @property
    def trains(self) -> bool:
        """Whether beams have to be chosen."""
        return any(self.num_beams[name] > 1 for name in (*self.trps, *self.terminals))

    @property
    def num_rounds(self) -> int:
        """Rounds of an exchange: one, or as many as it takes for every TRP to point at every UE."""
        return max(len(self.trps), len(self.ues)) if self.trains else 1

    def partner(self, node: str, round_: int) -> str | None:
        """Node that this one points at in a round; None where it has none."""
        own = (self.trps if node in self.trps else self.ues).index(node)
        other = (round_ - own) % self.num_rounds
        peers = self.peers(node)
        return peers[other] if other < len(peers) else None

    def heard_peers(self, node: str, round_: int) -> tuple[str, ...]:
        """Nodes of the other side whose links with this one are measured in a round."""
        if self.num_rounds == 1:
            return self.peers(node)
        partner = self.partner(node, round_)
        return () if partner is None else (partner,)

    @property
    def round_of_link(self) -> np.ndarray:
        """Round (M, N) in which the nodes of each link point at each other."""
        return (self.node_of_trp_port[:, None] + self.node_of_ue_port) % self.num_rounds

    # -- slots --------------------------------------------------------------------------------------------------------

    @property
    def window_start(self) -> int:
        """First sample of the receive windows."""
        late = self.latency_samples + self.receive_delay_samples
        return self.lead_samples + late + self.grid.cp_samples - self.advance_samples

    def phases(self, window: int) -> list[tuple[str, int, list[Slot]]]:
        """What comes before the first pattern, for `slots.build_schedule`."""
        if not self.trains:
            return []
        return [(TRAINING, window, [self._training_slot(variant) for variant in range(np.prod(self.training_shape))])]

    def pattern(self) -> list[tuple[str, int, list[Slot]]]:
        """Phases of one pattern."""
        exchange = [self._slot(purpose, round_) for round_ in range(self.num_rounds) for purpose in _EXCHANGE_SLOTS]
        tracking = [self._slot(purpose, round_) for round_ in range(self.num_rounds)
                    for purpose in (TRACKING_CSI_RS, TRACKING_SRS)]
        return [(EXCHANGE, 1, exchange), (TRACKING, 1, tracking)]

    @property
    def training_shape(self) -> tuple[int, int]:
        """Numbers of beams of the UEs, and of the TRPs, that the training goes through."""
        return (max(self.num_beams[name] for name in self.terminals), max(self.num_beams[name] for name in self.trps))

    def _training_slot(self, variant: int) -> Slot:
        ue_beam, trp_beam = np.unravel_index(variant, self.training_shape)
        beams = tuple(int((trp_beam if node in self.trps else ue_beam) % self.num_beams[node]) for node in self.nodes)
        return Slot(0, TRAINING, self.terminals, beams, variant)

    def _slot(self, purpose: str, round_: int) -> Slot:
        senders = self.trps if purpose in _SENT_BY_TRPS else self.ues
        beam = CHOSEN if self.trains else 0
        beams = tuple(0 if self.side(node) is None else beam for node in self.nodes)
        # All but the answers, and the first slot, are known from the start.
        follows = purpose not in (UL_CARS, DL_CARS) and (round_, purpose) not in ((0, CSI_RS), (0, TRACKING_CSI_RS))
        return Slot(0, purpose, senders, beams, round_, follows)
