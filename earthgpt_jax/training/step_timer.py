"""Where a run's time goes: the devices' own work, and what they wait for."""

from __future__ import annotations

import collections
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")

# What the host can be at while the devices have nothing to do, and `other`; `step` is the devices at work.
START, COMPILE, INPUT, SAVE, OTHER, STEP = "start", "compile", "input", "save", "other", "step"


class StepTimer:
    """Seconds by cause, each counted once.

    The devices work on a step from when it was handed to them, or the step before was finished, until it is
    finished. Between steps they are idle, and that time goes to what the host was at meanwhile. So a batch that was
    waited for while the devices were still busy costs nothing here, as it does not.

    Args:
        now: seconds, `time.monotonic` outside of tests.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
        self._at: list[tuple[str, float, float]] = []  # what the host was at, from when to when
        self._finished = self._began = now()

    def started(self) -> None:
        """All until now was the start: reading weights, planning the data, restoring."""
        self._at.append((START, self._began, self._now()))

    @contextlib.contextmanager
    def during(self, cause: str) -> Iterator[None]:
        begun = self._now()
        try:
            yield
        finally:
            self._at.append((cause, begun, self._now()))

    def waiting(self, cause: str, items: Iterable[T]) -> Iterator[T]:
        """`items`, the time of waiting for each put down to `cause`."""
        iterator = iter(items)
        while True:
            with self.during(cause):
                item = next(iterator, iterator)  # itself: there is none left
            if item is iterator:
                return
            yield item  # type: ignore[misc]

    def done(self, *, called: float, finished: float) -> None:
        """A step that was handed to the devices at `called` is finished; in order of the steps."""
        begun = max(called, self._finished)
        idle = begun - self._finished
        for cause, since, until in self._at:
            overlap = max(0.0, min(until, begun) - max(since, self._finished))
            self._seconds[cause] += overlap
            idle -= overlap
        self._seconds[OTHER] += max(idle, 0.0)
        self._seconds[STEP] += finished - begun
        self._finished = finished
        self._at = [entry for entry in self._at if entry[2] > finished]

    def take(self) -> dict[str, float]:
        """Seconds by cause since this was last asked, up to the end of the last step that is done."""
        taken = {cause: self._seconds[cause] for cause in (STEP, INPUT, SAVE, COMPILE, START, OTHER)}
        self._seconds.clear()
        return taken
