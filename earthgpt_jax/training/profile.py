"""A trace of a few steps, for TensorBoard's profiler or Perfetto."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from earthgpt_jax.common.errors import EarthGPTError

_SKIPPED, _TRACED = 2, 3  # by default: the third step of a start, and two more; the first compiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """Which steps are traced (as numbered in metrics.jsonl, from 1), and where.

    Attributes:
        steps: `FIRST-LAST`, or one number; "": the third to fifth of this start.
        everywhere: on all processes; the first alone otherwise.
    """

    steps: str = ""
    everywhere: bool = False


class Profiler:
    """Writes the trace of the steps that `profile` names into `folder`; nothing where it is None.

    Args:
        first, last: steps done before this start, and when the run is finished.

    Raises:
        EarthGPTError: `profile.steps` is no such range, or has no step that this start will do.
    """

    def __init__(self, profile: Profile | None, folder: Path, *, first: int, last: int):
        self._steps = range(0)
        self._running = False
        self._folder = folder
        if profile is None:
            return
        wanted = _parse(profile.steps) if profile.steps else range(first + _SKIPPED + 1, first + _SKIPPED + _TRACED + 1)
        steps = range(max(wanted.start, first + 1), min(wanted.stop, last + 1))
        if not steps:
            raise EarthGPTError(
                f"--profile: expected steps from {first + 1} to {last}, which this start will do, "
                f"got {wanted.start}-{wanted.stop - 1}"
            )
        if profile.everywhere:
            self._folder = folder / f"process-{jax.process_index()}"  # hosts of one name overwrite each other
        if profile.everywhere or jax.process_index() == 0:
            self._steps = steps

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            jax.profiler.stop_trace()
            self._running = False

    @contextlib.contextmanager
    def step(self, step: int) -> Iterator[None]:
        """Around the call of step `step` (from 0): starts the trace before its first, and marks each."""
        if step + 1 == self._steps.start:
            jax.profiler.start_trace(self._folder)
            self._running = True
        if not self._running:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
            yield

    def called(self, step: int, metrics: Any) -> None:
        """Behind the call of step `step`: ends the trace behind its last, once the devices have done it."""
        if self._running and step + 2 == self._steps.stop:
            jax.block_until_ready(metrics)
            jax.profiler.stop_trace()
            self._running = False


def _parse(steps: str) -> range:
    found = re.fullmatch(r"(\d+)(?:-(\d+))?", steps)
    if not found or int(found[1]) < 1 or int(found[2] or found[1]) < int(found[1]):
        raise EarthGPTError(f"--profile {steps}: expected FIRST-LAST, such as 10-12, or one step")
    return range(int(found[1]), int(found[2] or found[1]) + 1)
