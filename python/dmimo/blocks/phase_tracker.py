# SPDX-License-Identifier: GPL-3.0-or-later
"""Two-way coefficients followed by one-way soundings."""

from collections import deque
from typing import NamedTuple

import numpy as np
import pmt

from ..core.csi_tracking import phase_change, phase_change_per_subcarrier, tracked_coefficient
from . import messages
from .guard import guarded
from .lean import lean_message_block

TRACKED = pmt.intern("tracked")
KEPT_SOUNDINGS = 32  # among which coefficients, which come later than what they belong to, find their anchor
MODES = ("wideband", "per_subcarrier")


class _Sounding(NamedTuple):
    """Channels (num_ports, Q, K) of a sounding, and the sample to which they belong."""

    h: np.ndarray
    sample: float


class phase_tracker(lean_message_block):
    """Turns coefficients by twice the phase by which the channels to this node have turned since they were measured.

    Coefficients come on `reference`, from a `cars_reader` of this node: channel to this node over channel from it, with
    `c` (num_ports, Q, K), `used` (num_ports, Q) and `sample`. Soundings of the other side come on `csi`, from an
    `ofdm_sounder` of this node: `h` (num_ports, Q, K), `start` and `sample`. The sounding nearest to the coefficients
    in time, of the last `KEPT_SOUNDINGS` and those to come, is the anchor; every other sends a dictionary on `tracked`:
    `c`; `used`, without the links of which no phase is trusted (their c is nan); `phase_rad`, change of the channels
    since the anchor, (num_ports, Q) in "wideband" mode and (num_ports, Q, K) in "per_subcarrier", with `phase_std_rad`
    (num_ports, Q) predicted for the former; `start` of the sounding; and `sample`, to which c belongs: as much later
    than the reference's as the sounding than the anchor, which is exact while frequencies stay. A new reference takes
    the place of the old.

    One phase for the whole band is far better than one for each subcarrier; the latter, as the paper prints it, is for
    comparison, and takes soundings on the subcarriers of the coefficients.

    Parameters
    ----------
    mode : "wideband" or "per_subcarrier"

    References
    ----------
    Bidirectional calibration (CARS), section III-C, through `core.csi_tracking`.
    """

    def __init__(self, mode: str = "wideband"):
        lean_message_block.__init__(self, "phase_tracker")
        self.set_mode(mode)
        self._clear()
        for port, handler in (("csi", self.handle_csi), ("reference", self.handle_reference)):
            self.message_port_register_in(pmt.intern(port))
            self.set_msg_handler(pmt.intern(port), handler)
        for port in ("tracked", "error"):
            self.message_port_register_out(pmt.intern(port))

    def set_mode(self, mode: str) -> None:
        """Change the mode from the next sounding on."""
        if mode not in MODES:
            raise ValueError(f"mode = {mode!r}: must be one of {list(MODES)}")
        self._mode = mode

    def start(self):
        """Forget what an earlier start has left."""
        self._clear()
        return super().start()

    def _clear(self) -> None:
        self._reference: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None  # c, used, sample
        self._anchor: _Sounding | None = None
        self._recent: deque[_Sounding] = deque(maxlen=KEPT_SOUNDINGS)

    @guarded
    def handle_reference(self, message):
        """Take new coefficients; of the soundings heard so far the nearest is their anchor, until one is nearer."""
        c, used, sample = (messages.get(message, key) for key in ("c", "used", "sample"))
        self._reference = c, np.asarray(used, bool), np.asarray(sample, float)
        self._anchor = min(self._recent, key=self._distance, default=None)

    @guarded
    def handle_csi(self, message):
        """Turn the coefficients, or take the sounding as their anchor."""
        h, start, sample = (messages.get(message, key) for key in ("h", "start", "sample"))
        sounding = _Sounding(h, sample)
        self._recent.append(sounding)
        if self._reference is None:
            return
        c, used, when = self._reference
        if h.shape[:2] != c.shape[:2]:
            raise ValueError(f"csi: h of shape {h.shape} must have the links of the reference, {c.shape[:2]}")
        if self._anchor is None or self._distance(sounding) < self._distance(self._anchor):
            self._anchor = sounding
            return
        self._publish(start, sounding)

    def _distance(self, sounding: _Sounding) -> float:
        """Of a sounding from the reference, in samples."""
        return abs(sounding.sample - np.nanmean(self._reference[2]))

    def _publish(self, start: int, sounding: _Sounding) -> None:
        (c, used, when), h = self._reference, sounding.h
        change = phase_change(self._anchor.h, h)
        phase = change.phase_rad
        if self._mode == "per_subcarrier":
            if h.shape != c.shape:
                raise ValueError(f"csi: h of shape {h.shape} must be on the subcarriers of the reference, {c.shape}")
            phase = phase_change_per_subcarrier(self._anchor.h, h)
        used = used & change.trusted
        # What is relative to this node turns as the channel to it does, be it a TRP or a UE.
        turned = tracked_coefficient(c, phase, direction="uplink")
        self.message_port_pub(TRACKED, messages.encode(
            "tracked", start=start, c=np.where(used[..., None], turned, np.nan), used=used, phase_rad=phase,
            phase_std_rad=change.phase_std_rad, sample=when + (sounding.sample - self._anchor.sample)))
