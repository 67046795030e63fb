# SPDX-License-Identifier: GPL-3.0-or-later
"""The figures that can be reproduced, by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

TrialChunk = Callable[[Mapping, Sequence[np.random.SeedSequence]], dict[str, np.ndarray]]
Summarise = Callable[[Mapping, Mapping[str, np.ndarray]], dict]

_FIGURES: dict[str, "Figure"] = {}


@dataclass(frozen=True)
class Figure:
    """One paper figure as a campaign of independent trials.

    Attributes
    ----------
    name : str
    title : str
        One line: what the figure shows.
    trial_chunk : callable (configuration, seeds) -> dict of arrays
        Vectorised over the trials: one seed each, one entry of every array's first axis each. Trial k may use no
        randomness but ``np.random.default_rng(seeds[k])``.
    summarise : callable (configuration, arrays) -> dict
        From the arrays of all trials to what the plot needs, in JSON's types.
    plot : str
        Function of `plotting` that turns the summary into a figure.
    defaults : mapping
        The configuration, JSON values; a campaign may change any of its keys.
    trials : int
        Default number of trials.
    block : int
        Trials always computed together in one call of `trial_chunk`. A vectorised solver may stop when the last member
        of its batch has converged, which moves the others by rounding errors; blocks fixed to the trial's index make
        the results independent of chunks and workers.
    """

    name: str
    title: str
    trial_chunk: TrialChunk
    summarise: Summarise
    plot: str
    defaults: Mapping
    trials: int
    block: int


def register(
    name: str, *, title: str, summarise: Summarise, plot: str, defaults: Mapping, trials: int, block: int = 50
) -> Callable[[TrialChunk], TrialChunk]:
    """Decorator that registers a `trial_chunk` function as the figure `name`.

    Raises
    ------
    ValueError
        If the name is taken by another function.
    """

    def decorate(trial_chunk: TrialChunk) -> TrialChunk:
        if name in _FIGURES:
            raise ValueError(f"name={name!r}: a figure of this name is registered already")
        _FIGURES[name] = Figure(name, title, trial_chunk, summarise, plot, dict(defaults), trials, block)
        return trial_chunk

    return decorate


def names() -> list[str]:
    """Names of all registered figures, sorted, numbers by their value."""
    return sorted(_FIGURES, key=lambda name: [(not part.isdigit(), int(part) if part.isdigit() else part)
                                              for part in name.split("-")])


def figure(name: str) -> Figure:
    """The registered figure of that name.

    Raises
    ------
    ValueError
        If there is none; the message lists those there are.
    """
    if name not in _FIGURES:
        raise ValueError(f"name={name!r} is no registered figure; there are: {', '.join(names())}")
    return _FIGURES[name]
