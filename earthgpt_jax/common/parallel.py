"""Runs a function on files: here, in processes of this machine. `datasets.build.beam` does the same on a cluster."""

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
    """What runs the pieces of a build. A function leaves its result in files and can be run again."""

    def run(self, function: Function, jobs: Sequence[Path]) -> Iterator[Path]:
        """Yields each job once it is done, in any order; raises what the function raised."""


class LocalEngine:
    """This process, or `count` others, started when there is more than one job and kept until `close`."""

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
                f"a worker was killed, most likely for want of memory; try fewer than --workers {self._count}. "
                "What is finished is kept: the same command goes on from there"
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
    function: Callable[[_Item], _Result], items: Sequence[_Item], *, workers: int | None = None, fewest: int = 4
) -> Iterator[_Result]:
    """The results of a picklable function, in the order of `items`.

    Args:
        workers: processes, at most; None: one a core.
        fewest: items for each process, which takes seconds to start; where there are fewer, fewer are started.

    Raises:
        EarthGPTError: a worker was killed.
    """
    count = min(cores() if workers is None else workers, len(items) // fewest)
    if count < 2:
        yield from map(function, items)
        return
    with _processes(count) as pool:
        try:
            yield from pool.map(function, items)
        except BrokenProcessPool as error:
            raise EarthGPTError(
                f"one of {count} workers was killed, most likely for want of memory; try fewer (--workers)"
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processes(count: int) -> concurrent.futures.ProcessPoolExecutor:
    """Spawned, since readers of shards hold threads, which a fork would break."""
    context: Any = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(count, mp_context=context, initializer=processes.init_worker)
