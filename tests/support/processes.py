"""Start the processes of a run on this machine together, and end all of them when the test ends."""

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

TAIL = 3000  # characters of output shown for each process when a test fails


class Ended(NamedTuple):
    """Exit status and output of a process; a status of -1 means that it is still running."""

    status: int
    out: str
    err: str

    def tail(self) -> str:
        return f"status {self.status}\n{self.out[-TAIL:]}\n{self.err[-TAIL:]}"


class Together(contextlib.AbstractContextManager):
    """Python processes with `devices` CPU devices each; those still running at the end are killed.

    Their output goes to files: an unread pipe would fill up and block its process, and with it all others.

    Args:
        commands: arguments of `python` for each process.
        devices: number of CPU devices per process.
        environment: environment variables in addition to those of this process.
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

    def are_running(self) -> bool:
        """Return whether all processes are still running."""
        return all(process.poll() is None for process in self.processes)

    def ended(self, limit: float = 600) -> list[Ended]:
        """Wait for all processes; if one takes longer than `limit` seconds, fail the test with all stacks."""
        end = time.monotonic() + limit
        with contextlib.suppress(subprocess.TimeoutExpired):
            for process in self.processes:
                process.wait(max(0, end - time.monotonic()))
        slow = [index for index, process in enumerate(self.processes) if process.poll() is None]
        for index in slow:
            self.processes[index].send_signal(signal.SIGABRT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.processes[index].wait(10)
        results = self.output()
        tails = "\n".join(result.tail() for result in results)
        assert not slow, f"processes {slow} took longer than {limit} s\n{tails}"
        return results

    def output(self) -> list[Ended]:
        """Return the status and the output so far of each process."""
        return [
            Ended(
                -1 if process.poll() is None else process.returncode,
                *(self._file(index, stream).read_text(errors="replace") for stream in ("out", "err")),
            )
            for index, process in enumerate(self.processes)
        ]


def address() -> str:
    """Return an address for a coordinator, with a free port."""
    return f"127.0.0.1:{portpicker.pick_unused_port()}"
