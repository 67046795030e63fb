# SPDX-License-Identifier: GPL-3.0-or-later
"""What the checks of one radio know of it and of one another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..radio_settings import RadioSettings
from . import fixes
from .results import Result, Skip

if TYPE_CHECKING:
    from .bench import Bench


@dataclass(frozen=True)
class Options:
    """How a radio is examined.

    Attributes
    ----------
    amplitude : float
        Largest magnitude of what is sent, full scale is 1.
    transmit : bool
        Whether to send anything at all.
    retunes : int
        Of the phase check; 0 leaves it out.
    duration_s : float
        Of the steady streams.
    leads_s : sequence of float
        Lead times that the testbed file asks for.
    loop_delays : mapping of node to sequence of int, or None
        What the file gives as loop delays; None: they are measured in each run.
    """

    amplitude: float = 0.2
    transmit: bool = True
    retunes: int = 16
    duration_s: float = 5.0
    leads_s: Sequence[float] = (0.1, 0.05)
    loop_delays: Mapping[str, Sequence[int]] | None = None


class Paths(NamedTuple):
    """What ports hear of each other, (P, P), receiver first: whether, how much later [samples], how well."""

    heard: np.ndarray
    delay_samples: np.ndarray
    snr_db: np.ndarray

    def best_sender(self, row: int) -> int | None:
        """The port that a receiving port listens to: itself where it hears itself, else the strongest one."""
        if self.heard[row, row]:
            return row
        return int(np.argmax(np.where(self.heard[row], self.snr_db[row], -np.inf))) if self.heard[row].any() else None


@dataclass
class Patient:
    """One radio under examination."""

    settings: RadioSettings
    options: Options
    bench: "Bench | None" = None
    boards: list[str] = field(default_factory=list)
    kind: str = ""
    paths: Paths | None = None

    def __post_init__(self):
        self.kind = fixes.family(self.settings.device_args)

    def require_transmission(self) -> None:
        """Skip where nothing may be sent."""
        if not self.options.transmit:
            raise Skip("nothing is sent (--no-transmit)")

    def require_paths(self) -> Paths:
        """What ports hear of each other; Skip where nobody hears anything."""
        self.require_transmission()
        if self.paths is None or not self.paths.heard.any():
            raise Skip("no port was heard")
        return self.paths


def passed(check: str, measured: str, **values: Any) -> Result:
    """A check that found what it wanted."""
    return Result(check, "passed", measured, values=values)


def noted(check: str, measured: str, follows: str, **values: Any) -> Result:
    """A check that found what the device cannot help, and what follows from it."""
    return Result(check, "noted", measured, follows, values)


def failed(check: str, measured: str, fix: str, **values: Any) -> Result:
    """A check that did not."""
    return Result(check, "failed", measured, fix, values)


def one_line(error: BaseException) -> str:
    """The words of an exception."""
    text = " ".join(str(error).split())
    return text or type(error).__name__


def counted(number: int, noun: str) -> str:
    """Number and noun, in the plural where it must be."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
