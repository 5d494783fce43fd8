"""A process that finishes no step any more says where it stands, and ends, so that it can be started again.

In a run of many hosts one that hangs stops them all, silently and at full price: everyone waits in a collective.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path

from earthgpt_jax.common.errors import EXIT_RETRY


class Watchdog:
    """While it is entered: `beat()` within every `seconds`, or the process ends with status `EXIT_RETRY`.

    The stacks of all threads then stand in `report` and on stderr. Where even this thread cannot run, because
    whatever hangs holds the interpreter's lock, `faulthandler`'s own thread writes the stacks to stderr `grace`
    seconds later and ends the process with status 1.

    Args:
        seconds: 0: no watching.
    """

    def __init__(self, *, seconds: float, report: Path, grace: float = 60.0):
        self._seconds, self._report, self._grace = seconds, report, grace
        self._ended = threading.Event()
        self._last, self._beats = time.monotonic(), 0

    def __enter__(self) -> Watchdog:
        if self._seconds:
            self.beat()
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._seconds:
            faulthandler.cancel_dump_traceback_later()

    def beat(self) -> None:
        """A step was finished."""
        self._last, self._beats = time.monotonic(), self._beats + 1
        if self._seconds:
            faulthandler.dump_traceback_later(self._seconds + self._grace, exit=True, file=sys.__stderr__ or 2)

    def _watch(self) -> None:
        while not self._ended.wait(max(0.05, self._last + self._seconds - time.monotonic())):
            if time.monotonic() - self._last >= self._seconds:
                self._bite()

    def _bite(self) -> None:
        message = (
            f"no step was finished for {self._seconds / 60:.3g} minutes (watchdog.minutes), after "
            f"{self._beats - 1} in this start; ending with status {EXIT_RETRY}"
        )
        try:
            self._report.parent.mkdir(parents=True, exist_ok=True)
            with self._report.open("w") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S %z')} {message}\n")
                file.flush()
                faulthandler.dump_traceback(file=file)
            message += f"; stacks of all threads: {self._report}"
        except OSError as error:  # a file system that hangs or is full may be the very reason
            message += f"; {self._report} could not be written ({error})"
        finally:
            os.write(2, f"error: {message}\n".encode())
            faulthandler.dump_traceback(file=sys.__stderr__ or 2)
            os._exit(EXIT_RETRY)
