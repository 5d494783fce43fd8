"""Lifecycle of a run: when it saves, how it stops on a signal, and what ends it when it hangs."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import Any

import jax
from jax.experimental import multihost_utils

from earthgpt_jax.common import files
from earthgpt_jax.common.errors import EXIT_INTERRUPTED, EXIT_RETRY, RunStopped
from earthgpt_jax.training.checkpoints import Checkpoints
from earthgpt_jax.training.state import State

_REPORT_SECONDS = 10.0  # that the watchdog waits for its report to be written


class PreemptionSignal:
    """Catch SIGTERM (preemption) and Ctrl-C, and let every process stop after the same step.

    Enter it as a context, and call `received(step)` after every step. The first Ctrl-C acts like SIGTERM; the second
    raises KeyboardInterrupt at once. Further SIGTERMs have no effect. Outside the main thread, where Python delivers no
    signals, nothing is caught.

    With several processes (`jax.distributed`), SIGTERM is left to JAX's preemption service: it notifies the other
    processes and chooses a step that none of them has passed, so that all save the same one. A single process handles
    the signal itself.
    """

    def __init__(self) -> None:
        self._distributed = jax.distributed.is_initialized()
        self._signal: signal.Signals | None = None
        self._signal_time = 0.0
        self._received = False
        self._previous_handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> PreemptionSignal:
        if threading.current_thread() is threading.main_thread():
            caught = [signal.SIGINT] if self._distributed else [signal.SIGTERM, signal.SIGINT]
            self._previous_handlers = {number: signal.signal(number, self._handle) for number in caught}
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # a value that `signal.signal` returned
        if self._signal is not None and not self._received and kind is None and not self._distributed:
            signal.raise_signal(self._signal)  # it arrived after the last step: pass it on to the previous handler

    def received(self, step: int) -> bool:
        """Return whether to save after `step` and stop; every process gets the same answer."""
        if self._distributed:
            try:
                self._received = multihost_utils.reached_preemption_sync_point(step)
            except RuntimeError:  # jax_enable_preemption_service is off
                return False
        else:
            self._received = self._signal is not None
        return self._received

    def reason(self) -> str:
        """Describe the signal, for example "SIGTERM, 0.3 s ago"."""
        if self._signal is None:
            return "preemption notice"
        return f"{self._signal.name}, {time.monotonic() - self._signal_time:.1f} s ago"

    @property
    def exit_status(self) -> int:
        """The exit status of a run that stopped on this signal."""
        return EXIT_INTERRUPTED if self._signal is signal.SIGINT else EXIT_RETRY

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._signal is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._signal, self._signal_time = signal.Signals(number), time.monotonic()
        hint = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        # Not print: the signal may have interrupted one.
        os.write(2, f"\n{self._signal.name}: saving after this step, then stopping{hint}\n".encode())
        if self._distributed:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX's preemption service takes it from here


class CheckpointScheduler:
    """Save every N steps, after the last step, and when a preemption signal arrives.

    Args:
        every: number of steps between checkpoints.
        last: last step of the run.
        metadata: plain JSON that every checkpoint carries about the run.
    """

    def __init__(
        self,
        checkpoints: Checkpoints,
        *,
        every: int,
        last: int,
        preemption: PreemptionSignal,
        metadata: Mapping[str, Any],
    ) -> None:
        self._checkpoints, self._preemption, self._metadata = checkpoints, preemption, dict(metadata)
        self._every, self._last, self._preempted = every, last, False

    def should_save(self, step: int) -> bool:
        """Return whether to save the state after `step` steps. Call it once per step, on every process."""
        self._preempted = self._preemption.received(step)
        return self._preempted or step % self._every == 0 or step == self._last

    def save(self, step: int, state: State) -> None:
        """Save the state after `step` steps.

        Raises:
            RunStopped: the run was preempted; the checkpoint is on disk.
        """
        self._checkpoints.save(step, state, self._metadata | {"data_position": step})
        if self._preempted:
            self._checkpoints.wait()
            raise RunStopped(
                f"stopped ({self._preemption.reason()}): step {step} of {self._last} is saved in "
                f"{self._checkpoints.folder(step)}. Rerun the same command to resume.",
                status=self._preemption.exit_status,
            )


class Watchdog:
    """End the process with status 75 if no `heartbeat()` arrives within `seconds`.

    A host that hangs stops all the others without an error message: they wait in a collective. The watchdog writes the
    stacks of all threads to `report` and to stderr before it ends the process, so that the launcher can restart it. If
    the hang holds the interpreter's lock, so that the watchdog thread cannot run, `faulthandler` writes the stacks to
    stderr after `grace` more seconds and ends the process with status 1.

    Args:
        seconds: 0 disables the watchdog.
        report: file for the stacks, on a disk or in a bucket.
        grace: seconds that `faulthandler` waits longer than the watchdog thread.
    """

    def __init__(self, *, seconds: float, report: Path, grace: float = 60.0) -> None:
        self._seconds, self._report, self._grace = seconds, report, grace
        self._exited = threading.Event()
        self._last_heartbeat, self._heartbeats = time.monotonic(), 0

    def __enter__(self) -> Watchdog:
        if self._seconds:
            self.heartbeat()
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._exited.set()
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()

    def heartbeat(self) -> None:
        """Report that a step has finished."""
        self._heartbeats += 1
        self.postpone()

    def postpone(self) -> None:
        """Report progress other than a finished step, for example a batch of validation."""
        self._last_heartbeat = time.monotonic()
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds + self._grace, exit=True, file=sys.__stderr__ or 2)

    def _watch(self) -> None:
        while not self._exited.wait(max(0.05, self._last_heartbeat + self._seconds - time.monotonic())):
            if time.monotonic() - self._last_heartbeat >= self._seconds:
                self._end_process()

    def _end_process(self) -> None:
        message = (
            f"no step finished for {self._seconds / 60:.3g} minutes (watchdog.minutes), after "
            f"{self._heartbeats - 1} steps since this start; ending with status {EXIT_RETRY}"
        )
        # In a thread of its own: a file system or bucket that does not answer may be the cause of the hang.
        failures: list[Exception] = []
        writer = threading.Thread(target=self._write_report, args=(message, failures), daemon=True)
        writer.start()
        writer.join(_REPORT_SECONDS)
        try:
            if failures or writer.is_alive():
                message += f"; {self._report} could not be written ({failures[0] if failures else 'no answer'})"
            else:
                message += f"; stacks of all threads: {self._report}"
        finally:
            os.write(2, f"error: {message}\n".encode())
            faulthandler.dump_traceback(file=sys.__stderr__ or 2)
            os._exit(EXIT_RETRY)

    def _write_report(self, message: str, failures: list[Exception]) -> None:
        try:
            with tempfile.TemporaryFile("w+") as file:
                faulthandler.dump_traceback(file=file)
                file.seek(0)
                stacks = file.read()
            self._report.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(self._report, f"{time.strftime('%Y-%m-%d %H:%M:%S %z')} {message}\n{stacks}")
        except Exception as error:  # reported in place of the stacks
            failures.append(error)
