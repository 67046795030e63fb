# SPDX-License-Identifier: GPL-3.0-or-later
"""Runs the trials of a figure in chunks, keeps every finished chunk, and writes the result, its report and its plot."""

import functools
import hashlib
import io
import json
import operator
import zipfile
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import __version__, records
from . import registry
from .executors import CampaignError, Timeouts, in_process, on_dask

Progress = Callable[[int, int], None]

# Chunks per campaign by default: enough to keep a cluster busy and to lose little at a stop.
_CHUNKS = 100


@dataclass(frozen=True)
class Result:
    """What a campaign found: arrays with one entry per trial, their summary, and the files written."""

    name: str
    arrays: dict[str, np.ndarray]
    summary: dict
    configuration: dict
    trials: int
    seed: int
    data: Path
    report: Path
    picture: Path


def run(
    name: str, *, trials: int | None = None, seed: int, output, chunk: int | None = None, scheduler: str | None = None,
    workers: int | None = None, configuration: Mapping | None = None, progress: Progress | None = None,
    timeouts: Timeouts | None = None,
) -> Result:
    """Runs a figure's campaign, or goes on with a stopped one, and writes the result.

    Trial k draws all its randomness from ``SeedSequence(seed, spawn_key=(k,))``, so the result depends on `seed`,
    `trials` and `configuration` only: bit for bit the same for any chunk size, number of workers, stop and resumption,
    or order. Each finished chunk is written to ``<output>/<name>.chunks`` in one step; a later call with the same seed
    and configuration uses it, also with another chunk size or more trials.

    Parameters
    ----------
    name : str
        A registered figure, see `registry.names`.
    trials : int, optional
        Number of trials; the figure's default otherwise.
    seed : int
    output : path
        Directory for ``<name>.npz`` (arrays), ``<name>.json`` (summary, configuration, seed, version) and
        ``<name>.png``; made if it does not exist.
    chunk : int, optional
        Trials per chunk, rounded up to whole blocks of the figure (`registry.Figure.block`); about a hundredth of the
        campaign by default.
    scheduler : str, optional
        Address of a dask scheduler, or "synchronous" to compute in this process; by default a cluster of local
        processes, unless a single chunk is left to do. A script that uses the cluster needs the usual
        ``if __name__ == "__main__"`` around its call.
    workers : int, optional
        Number of local processes.
    configuration : mapping, optional
        Changes to the figure's default configuration.
    progress : callable (done, total), optional
        Called with numbers of trials at the start and after each chunk.
    timeouts : Timeouts, optional
        Limits of the waits for workers.

    Returns
    -------
    Result

    Raises
    ------
    ValueError
        If a parameter is wrong, or `output` holds the chunks of another campaign: other seed, configuration or code.
    CampaignError
        If the workers fail. Finished chunks are kept.
    """
    figure = registry.figure(name)
    trials = _at_least_one("trials", figure.trials if trials is None else trials)
    chunk = _at_least_one("chunk", -(-trials // _CHUNKS) if chunk is None else chunk)
    seed = operator.index(seed)
    if seed < 0:
        raise ValueError(f"seed={seed} must not be negative")
    configuration = _configuration(figure, configuration)
    output = Path(output)
    store = _Store(output / f"{name}.chunks", _identity(figure, seed, configuration))

    wanted = -(-trials // figure.block) * figure.block
    missing = _split(store.missing(wanted), -(-chunk // figure.block) * figure.block)
    done = wanted - sum(stop - start for start, stop in missing)
    report = (lambda *_: None) if progress is None else progress
    report(min(done, trials), trials)
    tasks = [(name, code_fingerprint(), configuration, seed, start, stop) for start, stop in missing]
    if scheduler == "synchronous" or (scheduler is None and len(tasks) < 2):
        results = in_process(compute, tasks)
    else:
        results = on_dask(compute, tasks, scheduler=scheduler, workers=workers, timeouts=timeouts)
    with closing(results):
        for task, arrays in results:
            store.write(*task[-2:], arrays)
            done += task[-1] - task[-2]
            report(min(done, trials), trials)
    arrays = {key: values[:trials] for key, values in store.read(wanted).items()}
    return _write(figure, configuration, seed, trials, arrays, output)


def compute(name: str, code: str, configuration: dict, seed: int, start: int, stop: int) -> dict[str, np.ndarray]:
    """Arrays of trials `start` to `stop` - 1, both multiples of the figure's block; runs on a worker.

    Raises
    ------
    CampaignError
        If the worker has other code, or the figure returns something that is not one entry per trial.
    """
    if code != code_fingerprint():
        raise CampaignError(f"this worker has other code ({__version__}, {code_fingerprint()}) than the campaign "
                            f"({code}): install the same version")
    figure = registry.figure(name)
    blocks = []
    for first in range(start, stop, figure.block):
        seeds = [np.random.SeedSequence(seed, spawn_key=(k,)) for k in range(first, first + figure.block)]
        arrays = {key: np.asarray(values) for key, values in figure.trial_chunk(configuration, seeds).items()}
        for key, values in arrays.items():
            if values.shape[:1] != (figure.block,) or values.dtype.kind not in "biufc":
                raise CampaignError(f"{name}: {key} has shape {values.shape} and type {values.dtype}, not one number "
                                    f"or array of numbers for each of {figure.block} trials")
        blocks.append(arrays)
    return {key: np.concatenate([block[key] for block in blocks]) for key in blocks[0]}


@functools.cache
def code_fingerprint() -> str:
    """Hash of the sources that trials are computed with: chunks of different code must not be mixed, whatever the
    version number says.
    """
    package = Path(__file__).parent.parent
    digest = hashlib.sha256()
    for part in ("core", "experiments", "simulation"):
        for path in sorted((package / part).glob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


class _Store:
    """Finished chunks in a directory of their own, each in one file named by its trials."""

    def __init__(self, directory: Path, identity: dict):
        self._directory = directory
        path = directory / "campaign.json"
        if path.exists():
            _check_identity(directory, json.loads(path.read_text()), identity)
        else:
            records.write_json(path, identity)

    def missing(self, wanted: int) -> list[tuple[int, int]]:
        """Intervals of trials in 0 ... wanted - 1 that no file holds."""
        gaps, reached = [], 0
        for start, stop in self._intervals():
            if start >= wanted:
                break
            if start > reached:
                gaps.append((reached, start))
            reached = max(reached, stop)
        return gaps if reached >= wanted else [*gaps, (reached, wanted)]

    def write(self, start: int, stop: int, arrays: Mapping[str, np.ndarray]) -> None:
        records.write_bytes(self._path(start, stop), _npz(arrays))

    def read(self, wanted: int) -> dict[str, np.ndarray]:
        """Arrays of trials 0 ... wanted - 1."""
        parts, reached = [], 0
        for start, stop in self._intervals():
            if reached < min(stop, wanted):
                parts.append({key: values[reached - start : wanted - start]
                              for key, values in self._load(start, stop).items()})
                reached = stop
        return {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}

    def _load(self, start: int, stop: int) -> dict[str, np.ndarray]:
        path = self._path(start, stop)
        try:
            with np.load(path, allow_pickle=False) as file:
                return {key: file[key] for key in file.files}
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise CampaignError(f"{path} is damaged ({error}): delete it to compute its trials again") from error

    def _intervals(self) -> list[tuple[int, int]]:
        return sorted(tuple(map(int, path.stem.split("-"))) for path in self._directory.glob("[0-9]*-[0-9]*.npz"))

    def _path(self, start: int, stop: int) -> Path:
        return self._directory / f"{start:09d}-{stop:09d}.npz"


def _split(intervals, size: int) -> list[tuple[int, int]]:
    return [(first, min(first + size, stop)) for start, stop in intervals for first in range(start, stop, size)]


def _write(figure, configuration, seed, trials, arrays, output: Path) -> Result:
    from .. import plotting

    summary = figure.summarise(configuration, arrays)
    paths = {suffix: output / f"{figure.name}.{suffix}" for suffix in ("npz", "json", "png")}
    report = {**_identity(figure, seed, configuration), "title": figure.title, "trials": trials, "summary": summary}
    picture = getattr(plotting, figure.plot)({**summary, "seed": seed})
    records.write_bytes(paths["npz"], _npz(arrays))
    records.write_figure(paths["png"], picture)
    records.write_json(paths["json"], report)
    return Result(figure.name, arrays, summary, configuration, trials, seed, paths["npz"], paths["json"], paths["png"])


def _identity(figure, seed: int, configuration: dict) -> dict:
    """What the result of each trial depends on."""
    identity = {"figure": figure.name, "version": __version__, "code": code_fingerprint(), "seed": seed,
                "block": figure.block, "configuration": configuration}
    return {**identity, "configuration_hash": hashlib.sha256(_canonical(identity)).hexdigest()}


def _check_identity(directory: Path, found: dict, wanted: dict) -> None:
    if found.get("configuration_hash") == wanted["configuration_hash"]:
        return
    flat = [{**identity, **identity.get("configuration", {})} for identity in (found, wanted)]
    changes = [f"{key} is {flat[0].get(key)!r} there and {flat[1].get(key)!r} here"
               for key in sorted({*flat[0], *flat[1]} - {"configuration", "configuration_hash"})
               if flat[0].get(key) != flat[1].get(key)]
    raise ValueError(f"output: {directory} holds the chunks of another campaign ({'; '.join(changes)}): "
                     f"choose another directory, or delete this one")


def _configuration(figure, changes: Mapping | None) -> dict:
    unknown = set(changes or {}) - set(figure.defaults)
    if unknown:
        raise ValueError(f"configuration: {', '.join(sorted(unknown))} unknown to {figure.name}; "
                         f"allowed: {', '.join(sorted(figure.defaults))}")
    return json.loads(_canonical({**figure.defaults, **(changes or {})}))


def _canonical(value) -> bytes:
    """Equal values, equal bytes."""
    return json.dumps(value, sort_keys=True, allow_nan=False).encode()


def _npz(arrays: Mapping[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _at_least_one(name: str, value) -> int:
    value = operator.index(value)
    if value < 1:
        raise ValueError(f"{name}={value} must be at least 1")
    return value
