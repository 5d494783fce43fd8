"""Run functions in processes of this machine. `datasets.build.beam` runs the jobs of a build on a cluster."""

from __future__ import annotations

import concurrent.futures
import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any, Protocol, TypeVar

from earthgpt_jax.common import processes
from earthgpt_jax.common.errors import EarthGPTError

Function = Callable[[Path], None]
_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


class Engine(Protocol):
    """Runs the jobs of a build. The function writes its result to files and can be run again."""

    def run(self, function: Function, jobs: Sequence[Path]) -> Iterator[Path]:
        """Yield each job when it is finished, in any order; raise what the function raises."""


class LocalEngine:
    """An engine that uses `count` processes of this machine; with one, or for a single job, this process itself.

    The processes are started when they are first needed and end at `close`.
    """

    def __init__(self, count: int):
        if count < 1:
            raise EarthGPTError(f"--workers: expected at least 1, got {count}")
        self._count = count
        self._pool: concurrent.futures.ProcessPoolExecutor | None = None

    def run(self, function: Function, jobs: Sequence[Path]) -> Iterator[Path]:
        if self._count == 1 or len(jobs) < 2:
            for job in jobs:
                function(job)
                yield job
            return
        if self._pool is None:
            self._pool = _processes(self._count)
        futures = {self._pool.submit(function, job): job for job in jobs}
        try:
            for future in concurrent.futures.as_completed(futures):
                future.result()
                yield futures.pop(future)
        except BrokenProcessPool as error:
            raise EarthGPTError(
                f"a worker was killed, most likely because memory ran out; try fewer than --workers {self._count}. "
                "Finished parts are kept: the same command resumes there"
            ) from error

    def close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def __enter__(self) -> LocalEngine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def parallel_map(
    function: Callable[[_Item], _Result], items: Sequence[_Item], *, workers: int | None = None, min_items: int = 4
) -> Iterator[_Result]:
    """Yield the results of a picklable function, in the order of `items`.

    Args:
        workers: maximum number of processes; None: one per core.
        min_items: minimum number of items per process, because a process takes seconds to start.

    Raises:
        EarthGPTError: a worker was killed.
    """
    count = min(cores() if workers is None else workers, len(items) // min_items)
    if count < 2:
        yield from map(function, items)
        return
    with _processes(count) as pool:
        try:
            yield from pool.map(function, items)
        except BrokenProcessPool as error:
            raise EarthGPTError(
                f"one of {count} workers was killed, most likely because memory ran out; try fewer (--workers)"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processes(count: int) -> concurrent.futures.ProcessPoolExecutor:
    """Return a pool of spawned processes: readers of shards start threads, which do not survive a fork."""
    context: Any = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(count, mp_context=context, initializer=processes.init_worker)
