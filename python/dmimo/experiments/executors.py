# SPDX-License-Identifier: GPL-3.0-or-later
"""Where the chunks of a campaign are computed: in this process, or on dask.distributed workers.

Both are generators of (task, result) in order of completion. Closing one releases what it holds.
"""

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass

# How often a waiting campaign looks whether its workers are alive.
_POLL_S = 1.0
_CLOSE_S = 5.0


class CampaignError(RuntimeError):
    """A campaign could not go on; what was finished is kept and the same call resumes it."""


@dataclass(frozen=True)
class Timeouts:
    """Limits of every wait, in seconds: first worker, no worker left, no chunk finished."""

    start_s: float = 60.0
    lost_s: float = 30.0
    stall_s: float = 1800.0


def in_process(function: Callable, tasks: Sequence[tuple]) -> Iterator[tuple[tuple, object]]:
    """Results of ``function(*task)``, one after another in this process."""
    for task in tasks:
        yield task, function(*task)


def on_dask(
    function: Callable, tasks: Sequence[tuple], *, scheduler: str | None = None, workers: int | None = None,
    timeouts: Timeouts | None = None,
) -> Iterator[tuple[tuple, object]]:
    """Results of ``function(*task)`` from dask.distributed workers, in order of completion.

    Parameters
    ----------
    function : callable
        Importable by name on the workers.
    tasks : sequence of tuple
    scheduler : str, optional
        Address of a running scheduler ("tcp://host:8786"); a cluster of local processes by default.
    workers : int, optional
        Local processes, one thread each; as many as this process may use processors by default.
    timeouts : Timeouts, optional

    Raises
    ------
    CampaignError
        If no worker appears, all are lost, none finishes anything in time, or a task raises.
    """
    timeouts = Timeouts() if timeouts is None else timeouts
    with ExitStack() as stack:
        client = _connect(stack, scheduler, workers, timeouts)
        # Falling priorities: without them tasks run in any order, and a stop leaves holes.
        pending = {client.submit(function, *task, pure=False, priority=-k): task for k, task in enumerate(tasks)}
        watch = _Watch(client, timeouts)
        while pending:
            for future in _finished(client, pending):
                task = pending.pop(future)
                yield task, _result(future, task)
                future.release()
                watch.progress()
            watch.check()


def _connect(stack: ExitStack, scheduler: str | None, workers: int | None, timeouts: Timeouts):
    from distributed import Client, LocalCluster
    from distributed import TimeoutError as DaskTimeoutError

    where = "the local cluster" if scheduler is None else f"the scheduler at {scheduler}"
    try:
        if scheduler is None:
            # Started empty and then scaled: a worker that cannot start runs into our limit, not into an endless wait.
            cluster = stack.enter_context(
                LocalCluster(n_workers=0, threads_per_worker=1, processes=True, dashboard_address=None,
                             memory_limit=None, silence_logs=logging.ERROR)
            )
            cluster.scale(len(os.sched_getaffinity(0)) if workers is None else workers)
        client = Client(cluster if scheduler is None else scheduler, timeout=timeouts.start_s, set_as_default=False)
        stack.callback(_close, client)
        client.wait_for_workers(1, timeout=timeouts.start_s)
    except (DaskTimeoutError, OSError, ValueError) as error:
        raise CampaignError(f"no worker of {where} within {timeouts.start_s:g} s: {error}") from error
    return client


def _close(client) -> None:
    """Closing waits for the scheduler by default, minutes if that is dead."""
    from distributed import TimeoutError as DaskTimeoutError

    with suppress(DaskTimeoutError):
        client.close(timeout=_CLOSE_S)


def _finished(client, pending) -> list:
    from distributed import CancelledError, wait
    from distributed import TimeoutError as DaskTimeoutError

    try:
        with client.as_current():
            return list(wait(list(pending), timeout=_POLL_S, return_when="FIRST_COMPLETED").done)
    except DaskTimeoutError:
        return []
    except CancelledError as error:
        raise CampaignError("the connection to the scheduler was lost") from error


def _result(future, task: tuple):
    from distributed import CancelledError

    try:
        return future.result(timeout=_POLL_S * 60)
    except CancelledError as error:
        raise CampaignError("the connection to the scheduler was lost") from error
    except Exception as error:
        # Whatever the task raised on the worker, and the loss of the workers that held it.
        raise CampaignError(f"chunk {task[-2:]}: {type(error).__name__}: {error}") from error


class _Watch:
    """Raises when the workers are gone, or nothing is finished any more."""

    def __init__(self, client, timeouts: Timeouts):
        self._client, self._timeouts = client, timeouts
        self._finished = self._alive = time.monotonic()

    def progress(self) -> None:
        self._finished = time.monotonic()

    def check(self) -> None:
        now = time.monotonic()
        # A client that reconnects has already forgotten its tasks.
        if self._client.status != "running":
            raise CampaignError(f"the connection to the scheduler was lost (client is {self._client.status})")
        try:
            alive = bool(self._client.scheduler_info()["workers"])
        except OSError as error:
            raise CampaignError(f"the connection to the scheduler was lost: {error}") from error
        if alive:
            self._alive = now
        if now - self._alive > self._timeouts.lost_s:
            raise CampaignError(f"all workers are lost for {self._timeouts.lost_s:g} s")
        if now - self._finished > self._timeouts.stall_s:
            raise CampaignError(f"no chunk was finished for {self._timeouts.stall_s:g} s")
