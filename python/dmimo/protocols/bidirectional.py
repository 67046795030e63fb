# SPDX-License-Identifier: GPL-3.0-or-later
"""What TRPs and UEs do in a bidirectional exchange: sound, hear, answer with the channel undone, read the answer.

See `bidirectional_plan` for the slots. Both sides run the same role; which slots are theirs follows from the side.
"""

from collections.abc import Sequence

import numpy as np

from ..core import sounding
from ..core.ofdm_exchange import Answer, Heard
from ..core.waveforms import SoundingSymbol
from .bidirectional_plan import (
    CSI_RS,
    CSI_RS_PAIR,
    DL_CARS,
    SRS,
    SRS_PAIR,
    TRACKING_CSI_RS,
    TRACKING_SRS,
    TRAINING,
    TRP_SIDE,
    UL_CARS,
    BidirectionalPlan,
)
from .slots import CHOSEN, Grant, Product, Slot

ALWAYS = frozenset({TRACKING_CSI_RS, TRACKING_SRS})  # purposes of slots in use whether or not a calibration is due


class ExchangeRole:
    """What one node does in the exchange and in the tracking.

    Parameters
    ----------
    node : str
    plan : BidirectionalPlan
    """

    purposes = frozenset({CSI_RS, UL_CARS, SRS, DL_CARS, CSI_RS_PAIR, SRS_PAIR, TRACKING_CSI_RS, TRACKING_SRS})
    reactive = True

    def __init__(self, node: str, plan: BidirectionalPlan):
        self._node, self._plan = node, plan
        self._side = plan.side(node)
        self._calibrates = True
        self._link_beams: np.ndarray | None = None
        self._heard: dict[str, dict[int, Heard]] = {}  # by purpose and slot, of the last attempt
        self._read: dict[int, np.ndarray] = {}
        self._turns: dict[int, np.ndarray] = {}
        self._answers: dict[int, Answer] = {}  # by round
        if self._side is None:
            return
        down, up = (plan.down, "csi_rs"), (plan.up, "srs")
        (self._own, purpose), (self._other, self._expected) = (down, up) if self._side is TRP_SIDE else (up, down)
        self._ports = plan.ports(node)
        self._sounding = self._own.sounding(purpose, self._ports)
        self._symbol = SoundingSymbol(plan.grid.fft_size, plan.grid.num_subcarriers, plan.grid.cp_samples)
        peers = plan.peers(node)
        owners = np.repeat(np.arange(len(peers)), [plan.num_ports[name] for name in peers])
        self._wanted = [np.isin(owners, [peers.index(name) for name in plan.heard_peers(node, round_)])
                        for round_ in range(plan.num_rounds)]

    def beam(self, slot: Slot) -> int:
        """Beam towards the node's partner of the round."""
        plan = self._plan
        beam = slot.beams[plan.nodes.index(self._node)]
        if beam != CHOSEN:
            return beam
        partner = plan.partner(self._node, slot.variant)
        return 0 if partner is None else int(self._link_beams[plan.peers(self._node).index(partner)])

    def transmit(self, slot: Slot, start: int) -> np.ndarray | None:
        """Pilots, or the answer to those heard in the same round; silence where no calibration is due."""
        if self._node not in slot.transmitters or not (self._calibrates or slot.purpose in ALWAYS):
            return None
        if slot.purpose == self._side.answers:
            answer = self._answers.get(slot.variant)
            return None if answer is None else answer.burst
        return self._sounding

    def receive(self, slot: Slot, grant: Grant, samples: np.ndarray) -> None:
        """Estimate the other side's channels, or read its answer."""
        plan, side = self._plan, self._side
        if side is None or not (self._calibrates or slot.purpose in ALWAYS):
            return
        if slot.purpose in (side.hears, side.pairs, side.tracks):
            heard = self._other.hear(samples, self._expected)
            self._heard.setdefault(slot.purpose, {})[slot.index] = heard
            self._turns[slot.index] = np.sum(sounding.prefix_correlation(
                samples, self._symbol, plan.window_start, plan.advance_samples), axis=-1)
            if slot.purpose == side.hears:
                self._answers[slot.variant] = self._other.answer(
                    heard.h, heard.heard & self._wanted[slot.variant], self._ports, form=plan.form,
                    fade_limit_db=plan.fade_limit_db)
        elif slot.purpose == side.reads:
            own = np.arange(self._ports.start, self._ports.stop)
            self._read[slot.index] = self._own.read(samples).h[np.arange(len(own)), own]

    def results(self, grants: Sequence[Grant]) -> dict[str, object] | None:
        """What was heard and read in each round, None where there was nothing to hear.

        Returns
        -------
        dict
            `h` (rounds, own ports, ports of the other side, K), channels on the combs, with `noise_var` (rounds, own
            ports) of an entry; `turn` (n,), `turn_energy` (n,): `sounding.prefix_correlation` of each sounding. After
            an exchange also `h_again`, as `h`, of the second sounding; `scale` (rounds, own ports, ports of the other
            side) of the answers, 0 where a channel was not heard; and `read`, as `h`, of those received.
        """
        side = self._side
        if not self._heard:
            return None
        first = side.tracks if side.tracks in self._heard else side.hears
        heard = [each for _, each in sorted(self._heard[first].items())]
        turns = np.array(list(self._turns.values()))
        values: dict[str, object] = {
            "h": np.array([each.h for each in heard]),
            "noise_var": np.array([each.noise_var for each in heard]),
            "turn": turns[:, 0], "turn_energy": turns[:, 1].real,
        }
        if self._read:
            again = self._heard[side.pairs]
            values["h_again"] = np.array([again[slot].h for slot in sorted(again)])
            values["scale"] = np.array([self._answers[round_].scale for round_ in sorted(self._answers)])
            values["read"] = np.array([self._read[slot] for slot in sorted(self._read)])
        for kept in (self._heard, self._read, self._turns, self._answers):
            kept.clear()
        return values

    def update(self, product: Product) -> None:
        """Take the chosen beams, and whether the next pattern calibrates."""
        if product.phase == TRAINING and self._side is not None:
            beams = np.asarray(product.values["trp_beams" if self._node in self._plan.trps else "ue_beams"])
            own = (self._plan.trps if self._node in self._plan.trps else self._plan.ues).index(self._node)
            self._link_beams = beams[own] if self._node in self._plan.trps else beams[:, own]
        if "calibrates" in product.values:
            self._calibrates = bool(product.values["calibrates"])
