"""Profiler traces of a few steps, for TensorBoard or Perfetto."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EarthGPTError

_SKIPPED, _TRACED = 2, 3  # by default, trace steps 3 to 5 since the start; the first one compiles


@dataclasses.dataclass(frozen=True, kw_only=True)
class Profile:
    """Which steps to trace, on which processes.

    Attributes:
        steps: `FIRST-LAST` or one step, counted from 1 as in metrics.jsonl; "" traces the third to fifth step since
            the start.
        all_processes: trace on every process instead of process 0 only.
    """

    steps: str = ""
    all_processes: bool = False


class Profiler:
    """Trace the steps that `profile` selects into `folder`; do nothing if `profile` is None.

    Args:
        start_step: number of steps completed before this start.
        last: last step of the run.

    Raises:
        EarthGPTError: `profile.steps` is not a valid range, or contains no step that this start runs.
    """

    def __init__(self, profile: Profile | None, folder: Path, *, start_step: int, last: int) -> None:
        self._steps = range(0)
        self._tracing = False
        self._folder, self._stack = folder, contextlib.ExitStack()
        if profile is None:
            return
        default = range(start_step + _SKIPPED + 1, start_step + _SKIPPED + _TRACED + 1)
        selected = _parse(profile.steps) if profile.steps else default
        steps = range(max(selected.start, start_step + 1), min(selected.stop, last + 1))
        if not steps:
            raise EarthGPTError(
                f"--profile: expected steps between {start_step + 1} and {last}, which this start runs, "
                f"got {selected.start}-{selected.stop - 1}"
            )
        if profile.all_processes:
            # Traces are named after the host; processes on hosts of the same name would overwrite each other.
            self._folder = folder / f"process-{jax.process_index()}"
        if profile.all_processes or jax.process_index() == 0:
            self._steps = steps

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @contextlib.contextmanager
    def annotate(self, step: int) -> Iterator[None]:
        """Wrap the dispatch of step `step` (from 0): start the trace at the first selected step, and mark each one."""
        if step + 1 == self._steps.start:
            jax.profiler.start_trace(self._stack.enter_context(files.local_folder(self._folder)))
            self._tracing = True
        if not self._tracing:
            yield
            return
        with jax.profiler.StepTraceAnnotation("train", step_num=step + 1):
            yield

    def after_dispatch(self, step: int, metrics: Any) -> None:
        """Stop the trace after the last selected step, once the devices have finished it."""
        if self._tracing and step + 2 == self._steps.stop:
            jax.block_until_ready(metrics)
            self._stop()

    def _stop(self) -> None:
        with self._stack:
            if self._tracing:
                self._tracing = False
                jax.profiler.stop_trace()


def _parse(steps: str) -> range:
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", steps)
    if not match or int(match[1]) < 1 or int(match[2] or match[1]) < int(match[1]):
        raise EarthGPTError(f"--profile {steps}: expected FIRST-LAST, such as 10-12, or one step")
    return range(int(match[1]), int(match[2] or match[1]) + 1)
