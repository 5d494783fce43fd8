"""Processes of one run on this machine: started together, and none is left behind, whatever a test does."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import portpicker

from tests.support.devices import xla_flags

SHOWN = 3000  # characters of each process where they did not end as they should


class Ended(NamedTuple):
    """How a process ended and what it wrote."""

    status: int
    out: str
    err: str

    def tail(self) -> str:
        return f"status {self.status}\n{self.out[-SHOWN:]}\n{self.err[-SHOWN:]}"


class Together(contextlib.AbstractContextManager):
    """Python processes with `devices` devices each; those that still run at the end are killed.

    What they write goes to files: a pipe that nobody reads at the moment fills up, and all others wait for its process.

    Args:
        commands: words behind `python` for each of them.
        devices: CPU devices that each has.
        environment: variables besides those of this process.
    """

    def __init__(self, commands: Sequence[Sequence[object]], *, devices: int, **environment: str):
        variables = os.environ | {
            "XLA_FLAGS": xla_flags(devices), "JAX_PLATFORMS": "cpu", "PYTHONFAULTHANDLER": "1"
        } | environment  # fmt: skip
        self._folder = tempfile.TemporaryDirectory()
        self.processes = [
            self._start([sys.executable, *map(str, words)], index, variables) for index, words in enumerate(commands)
        ]

    def _start(self, command: list[str], index: int, variables: dict[str, str]) -> subprocess.Popen:
        with self._file(index, "out").open("w") as out, self._file(index, "err").open("w") as err:
            return subprocess.Popen(command, env=variables, stdout=out, stderr=err)

    def _file(self, index: int, stream: str) -> Path:
        return Path(self._folder.name, f"{index}.{stream}")

    def __exit__(self, *_: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self._folder.cleanup()

    def run(self) -> bool:
        """Whether all of them still do."""
        return all(process.poll() is None for process in self.processes)

    def ended(self, limit: float = 600) -> list[Ended]:
        """Waits for all of them; those that take longer than `limit` seconds fail the test, with their stacks."""
        end = time.monotonic() + limit
        with contextlib.suppress(subprocess.TimeoutExpired):
            for process in self.processes:
                process.wait(max(0, end - time.monotonic()))
        slow = [index for index, process in enumerate(self.processes) if process.poll() is None]
        for index in slow:
            self.processes[index].send_signal(signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.processes[index].wait(10)
        found = self.said()
        assert not slow, f"{slow} took longer than {limit} s\n" + "\n".join(each.tail() for each in found)
        return found

    def said(self) -> list[Ended]:
        """What each has written so far; a status of -1 where it has not ended."""
        return [
            Ended(
                -1 if process.poll() is None else process.returncode,
                *(self._file(index, stream).read_text(errors="replace") for stream in ("out", "err")),
            )
            for index, process in enumerate(self.processes)
        ]


def address() -> str:
    """Of a coordinator, on a port that is free."""
    return f"127.0.0.1:{portpicker.pick_unused_port()}"
