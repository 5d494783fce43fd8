"""Metrics of steps, brought to the host while the next step runs."""

from __future__ import annotations

import collections
import dataclasses
import queue
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future

import jax

from earthgpt_jax.input.batch import Batch


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinishedStep:
    """A step that the devices have finished.

    Attributes:
        called, finished: when it was handed to the devices, and when its metrics were there (`time.monotonic`).
    """

    step: int
    batch: Batch
    metrics: dict[str, float]
    called: float
    finished: float


class MetricsFetcher:
    """Steps go in as they are started and come out as they are done, in order, one behind the last that went in.

    A thread waits for each, so that the time of its end is known whatever the main thread is busy with. It is a
    daemon: devices that never answer shall not hold up the interpreter's end.
    """

    def __init__(self) -> None:
        self._started: collections.deque[tuple[int, Batch, float, Future]] = collections.deque()
        self._queue: queue.SimpleQueue[tuple[dict[str, jax.Array], Future] | None] = queue.SimpleQueue()
        threading.Thread(target=self._fetch, name="metrics", daemon=True).start()

    def __enter__(self) -> MetricsFetcher:
        return self

    def __exit__(self, *_: object) -> None:
        self._queue.put(None)

    def put(self, step: int, batch: Batch, metrics: dict[str, jax.Array], *, called: float) -> None:
        future: Future = Future()
        self._started.append((step, batch, called, future))
        self._queue.put((metrics, future))

    def take(self, *, all_of_them: bool) -> Iterator[FinishedStep]:
        """Those that are done, waiting for them; the newest is left running unless `all_of_them`."""
        while len(self._started) > (0 if all_of_them else 1):
            step, batch, called, future = self._started.popleft()
            metrics, finished = future.result()
            yield FinishedStep(step=step, batch=batch, metrics=metrics, called=called, finished=finished)

    def _fetch(self) -> None:
        while (item := self._queue.get()) is not None:
            metrics, future = item
            try:
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                future.set_result((values, time.monotonic()))
            except BaseException as error:  # the main thread's to handle
                future.set_exception(error)
