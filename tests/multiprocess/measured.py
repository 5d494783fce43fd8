"""One process of several: train, and report the peak of its memory in each phase.

usage: python -m tests.multiprocess.measured ADDRESS PROCESSES PROCESS WORKDIR REPORT KILLED CONFIG [OVERRIDE ...]

REPORT becomes a JSON file, rewritten in each phase and twice per second: `share`, the bytes of parameters and
optimizer state on the devices of this process, and `peaks`, phase -> kind of memory -> largest number of bytes. KILLED
is the index of the process that kills itself after its third step (-1: none).
"""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Of /proc/self/status. The kernel measures the peak of the whole, which can be reset; anonymous memory is sampled.
KINDS = {"VmHWM": "resident", "RssAnon": "anonymous"}
SECONDS = 0.005  # between samples
SAMPLES_PER_REPORT = 100


def memory() -> dict[str, int]:
    fields = (line.partition(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {KINDS[name]: int(text.split()[0]) << 10 for name, _, text in fields if name in KINDS}


class Peaks:
    """Peaks of memory by phase, from the first import on."""

    def __init__(self, report: Path) -> None:
        self.share, self._phase, self._report = 0, "imports", report
        self._peaks: dict[str, dict[str, int]] = {}
        self._lock = threading.Lock()
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self) -> None:
        for number in itertools.count():
            self._sample()
            if number % SAMPLES_PER_REPORT == 0:  # for a process that is ended in the middle of a phase
                self._write()
            time.sleep(SECONDS)

    def _write(self) -> None:
        with self._lock:
            new = self._report.with_suffix(".new")
            new.write_text(json.dumps({"share": self.share, "peaks": self._peaks}))
            new.replace(self._report)

    def _sample(self) -> None:
        peak = self._peaks.setdefault(self._phase, dict.fromkeys(KINDS.values(), 0))
        for kind, value in memory().items():
            peak[kind] = max(peak[kind], value)

    def enter(self, phase: str) -> None:
        self._sample()
        self._write()
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
        self._phase = phase

    def during(self, owner: Any, name: str, phase: str, *, after: str = "") -> None:
        """Measure the calls of a function as a phase, which ends in `after` or in the phase before it."""
        function = getattr(owner, name)

        def measured(*args: Any, **kwargs: Any) -> Any:
            before = self._phase
            self.enter(phase)
            result = function(*args, **kwargs)
            self.enter(after or before)
            return result

        setattr(owner, name, measured)


def main(
    address: str, processes: str, process: str, workdir: str, report: str, killed: str, name: str, *overrides: str
) -> None:
    peaks = Peaks(Path(report))
    import jax

    jax.distributed.initialize(
        address, num_processes=int(processes), process_id=int(process), initialization_timeout=300
    )
    from earthgpt_jax.config import load
    from earthgpt_jax.training import loop
    from earthgpt_jax.training.checkpoints import Checkpoints
    from earthgpt_jax.training.lifecycle import CheckpointScheduler
    from earthgpt_jax.training.throughput import COMPILE, StepTimer

    def kill(should_save: Callable[..., bool]) -> Callable[..., bool]:
        def should_save_or_die(self: CheckpointScheduler, step: int) -> bool:
            if process == killed and step == 3:
                self._checkpoints.wait()
                os.kill(os.getpid(), signal.SIGKILL)
            return should_save(self, step)

        return should_save_or_die

    def compiling(measure: Callable[..., Any]) -> Callable[..., Any]:
        @contextlib.contextmanager
        def measured(self: StepTimer, cause: str) -> Iterator[None]:
            if cause == COMPILE:
                peaks.enter("compile")
            with measure(self, cause):
                yield
            if cause == COMPILE:
                peaks.enter("step")

        return measured

    def weigh(run_steps: Callable[..., Any]) -> Callable[..., Any]:
        def weighed(run: Any, state: Any, *args: Any, **kwargs: Any) -> Any:
            for leaf in jax.tree.leaves((run.frozen, state)):
                shard = math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
                peaks.share += shard * jax.local_device_count()
            return run_steps(run, state, *args, **kwargs)

        return weighed

    CheckpointScheduler.should_save = kill(CheckpointScheduler.should_save)  # type: ignore[method-assign]
    loop._run_steps = weigh(loop._run_steps)
    StepTimer.measure = compiling(StepTimer.measure)  # type: ignore[method-assign]
    peaks.during(Checkpoints, "restore", "restore")
    peaks.during(Checkpoints, "save", "save", after="step while saving")
    peaks.during(loop, "_run_steps", "step", after="end")
    peaks.enter("start")
    loop.train(load(name, [f"--config.{word}" for word in overrides]), Path(workdir))
    peaks.enter("done")


if __name__ == "__main__":
    main(*sys.argv[1:])
