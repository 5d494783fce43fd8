"""Throughput of a run: where the time goes, tokens per second, MFU and goodput.

Results go to `throughput.jsonl`, apart from metrics.jsonl. A resumed run reproduces metrics.jsonl bit for bit; timings
cannot be reproduced, and goodput must remember the work that was repeated or waited for. The file is append-only:

    {"start_step": 0, "time": ..., ...}    a process started after `start_step` completed steps
    {"startup": {...}, "time": ..., ...}   what this start cost until the end of its first step (`Startup`)
    {"step": 10, "steps": 10, ...}         the `steps` steps up to `step`; docs/guides/running.md lists the fields
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import itertools
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.json_lines import JsonLines

T = TypeVar("T")

NAME = "throughput.jsonl"

# What the time of a run is spent on. STEP: the devices compute. The others: the devices are idle while the host starts
# up, compiles, waits for input, saves a checkpoint, or does anything else. VALIDATION: the devices
# validate instead of training.
START, COMPILE, INPUT, SAVE, OTHER, STEP = "start", "compile", "input", "save", "other", "step"
VALIDATION = "validation"


@dataclasses.dataclass(kw_only=True)
class Startup:
    """What a start costs, in seconds by phase.

    Attributes:
        seconds: phase -> seconds, in the order of the phases: `imports` (from the start of the process until `train` is
            called), `data`, `weights` (frozen ones), `state` (reading the trainable parameters or restoring a
            checkpoint), `compile` (of the step, or reading it from the cache), `first step`, and `other`.
        programs: number of programs that were needed.
        cached: number of those that were read from the compilation cache.
    """

    seconds: dict[str, float] = dataclasses.field(default_factory=dict)
    programs: int = 0
    cached: int = 0

    @contextlib.contextmanager
    def measure(self, phase: str) -> Iterator[None]:
        """Add the seconds of the block to a phase."""
        begin = time.monotonic()
        try:
            yield
        finally:
            self.add(phase, time.monotonic() - begin)

    def add(self, phase: str, seconds: float) -> None:
        """Add seconds to a phase."""
        self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds

    def end(self, *, first_step: float, total: float) -> None:
        """Add the phases `first step` and `other`, which is the rest of `total` seconds since `train` was called."""
        self.add("first step", first_step)
        self.add("other", max(0.0, total - (sum(self.seconds.values()) - self.seconds.get("imports", 0.0))))

    def __str__(self) -> str:
        phases = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in self.seconds.items())
        total = sum(self.seconds.values())
        return (
            f"{total:.1f} s until the end of the first step ({phases}); {self.cached} of {self.programs} programs from "
            "the compilation cache"
        )


_runs = itertools.count()


def seconds_before_run() -> float:
    """Return the seconds since this process was started; 0 for its later runs, and where the system does not tell."""
    if next(_runs):
        return 0.0
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError):
        return 0.0


class StepTimer:
    """Attribute every second of a run to one cause.

    The devices work on a step from its dispatch, or from the end of the previous step if that is later, until it
    finishes. Between steps they are idle, and the idle time is attributed to what the host did meanwhile. Waiting for
    a batch while the devices are busy therefore costs nothing.

    Args:
        now: clock in seconds; `time.monotonic` except in tests.

    Attributes:
        created: when it was created.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._seconds: collections.defaultdict[str, float] = collections.defaultdict(float)
        self._host_activity: list[tuple[str, float, float]] = []  # (cause, begin, end)
        self._last_finished = self.created = now()

    def end_startup(self) -> None:
        """Attribute the time since construction to `START`: reading weights, packing, restoring a checkpoint."""
        self._host_activity.append((START, self.created, self._now()))

    @contextlib.contextmanager
    def measure(self, cause: str) -> Iterator[None]:
        """Record that the host is busy with `cause` inside the context."""
        begin = self._now()
        try:
            yield
        finally:
            self._host_activity.append((cause, begin, self._now()))

    def measure_waits(self, cause: str, items: Iterable[T]) -> Iterator[T]:
        """Yield `items`, and attribute the wait for each to `cause`."""
        iterator = iter(items)
        while True:
            with self.measure(cause):
                item = next(iterator, iterator)  # the iterator itself marks the end
            if item is iterator:
                return
            yield item  # type: ignore[misc]

    def record_step(self, *, dispatched: float, finished: float) -> None:
        """Account for a step that was dispatched and finished at these times. Call it in step order."""
        begin = max(dispatched, self._last_finished)
        idle = begin - self._last_finished
        for cause, since, until in self._host_activity:
            overlap = max(0.0, min(until, begin) - max(since, self._last_finished))
            self._seconds[cause] += overlap
            idle -= overlap
        self._seconds[OTHER] += max(idle, 0.0)
        self._seconds[STEP] += finished - begin
        self._last_finished = finished
        self._host_activity = [activity for activity in self._host_activity if activity[2] > finished]

    def collect(self) -> dict[str, float]:
        """Return the seconds per cause since the last call, up to the end of the last recorded step.

        `VALIDATION` is among them only if there was a validation.
        """
        seconds = {cause: self._seconds[cause] for cause in (STEP, INPUT, SAVE, COMPILE, START, OTHER)}
        if self._seconds[VALIDATION]:
            seconds[VALIDATION] = self._seconds[VALIDATION]
        self._seconds.clear()
        return seconds


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlopsReference:
    """The FLOPs that training needs and the rate that the devices can reach, for MFU.

    Attributes:
        per_token, per_image: FLOPs per token (padding excluded) and per image, forward and backward, without
            recomputation.
        peak: FLOP/s of all devices together.
    """

    per_token: float
    per_image: float
    peak: float

    def mfu(self, *, tokens: float, images: float, seconds: float) -> float:
        """Return the model FLOPs utilization, from 0 to 1."""
        return (self.per_token * tokens + self.per_image * images) / (self.peak * seconds)


class ThroughputLog:
    """Append to `throughput.jsonl` in a work directory.

    Args:
        start_step: number of steps completed before this start.
        positions_per_step: token positions of a global batch, padding included.
        flops_reference: None if the peak rate of the devices is unknown; `mfu` is then omitted.
        metadata: fields to add to the line of this start.
        now: Unix time; `time.time` except in tests.

    Raises:
        EarthGPTError: the file was written by an earlier version.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        start_step: int,
        positions_per_step: int,
        flops_reference: FlopsReference | None,
        metadata: Mapping[str, Any],
        now: Callable[[], float] = time.time,
    ) -> None:
        self._log = JsonLines(workdir / NAME)
        self._lines = self._log.earlier
        if self._lines and "start_step" not in self._lines[0]:
            raise EarthGPTError(
                f"{workdir / NAME}: expected the first line to have 'start_step', got {', '.join(self._lines[0])}; the "
                "file was written by an earlier version. Delete it, or use another --workdir."
            )
        self._positions_per_step, self._flops_reference, self._now = positions_per_step, flops_reference, now
        self._append({"start_step": start_step, "time": now(), **metadata})

    def flush(self) -> None:
        """Wait until all lines are stored."""
        self._log.flush()

    def record_startup(self, startup: Startup) -> None:
        """Append a line about what this start cost."""
        seconds = {phase: round(value, 3) for phase, value in startup.seconds.items()}
        self._append(
            {"startup": seconds, "time": self._now(), "programs": startup.programs, "cached_programs": startup.cached}
        )

    def close(self) -> None:
        self._log.close()

    def record(
        self, step: int, *, steps: int, tokens: float, images: float, seconds: Mapping[str, float]
    ) -> dict[str, Any]:
        """Append a line about the `steps` steps up to `step`, and return it.

        Args:
            tokens, images: totals of those steps, padding excluded.
            seconds: seconds per cause, from `StepTimer.collect`.
        """
        not_training = seconds[START] + seconds[COMPILE] + seconds.get(VALIDATION, 0.0)
        running = max(sum(seconds.values()) - not_training, 1e-9)
        line: dict[str, Any] = {
            "step": step,
            "steps": steps,
            "time": self._now(),
            "seconds": dict(seconds),
            "step_seconds": seconds[STEP] / steps,
            "tokens_per_second": tokens / running,
            "positions_per_second": steps * self._positions_per_step / running,
            "images_per_second": images / running,
        }
        if self._flops_reference:
            line["mfu"] = self._flops_reference.mfu(tokens=tokens, images=images, seconds=running)
        line["goodput"] = goodput([*self._lines, line])
        self._append(line)
        return line

    def _append(self, line: dict[str, Any]) -> None:
        self._lines.append(line)
        self._log.write(line)


def goodput(lines: Iterable[Mapping[str, Any]]) -> float:
    """Return the share of the time since the first start that the devices spent on steps that still count.

    A step that a later start repeats counts once. Startup, compilation, waiting for saves and for input, and the time
    between two starts count as elapsed time only.

    Args:
        lines: contents of `throughput.jsonl`.
    """
    useful: list[tuple[int, int, float]] = []  # (last step, number of steps, seconds of device work)
    first_time = last_time = None
    for line in lines:
        first_time, last_time = line["time"] if first_time is None else first_time, line["time"]
        if "start_step" in line:
            useful = [kept for entry in useful if (kept := _truncate(line["start_step"], *entry))]
        elif "steps" in line:
            useful.append((line["step"], line["steps"], line["seconds"][STEP]))
    if first_time is None or last_time is None:
        return 0.0
    return sum(seconds for _, _, seconds in useful) / max(last_time - first_time, 1e-9)


def _truncate(start_step: int, last: int, steps: int, seconds: float) -> tuple[int, int, float] | None:
    """Keep the part of an entry that a start after `start_step` steps does not repeat; None if nothing is left."""
    kept = min(steps, start_step - (last - steps))
    return (min(last, start_step), kept, seconds * kept / steps) if kept > 0 else None
