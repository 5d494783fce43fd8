"""Told to stop: SIGTERM (a scheduler takes the machine back) or Ctrl-C, and the step at which every process obeys.

A process of several (`jax.distributed`) leaves SIGTERM to the runtime, which tells the others and names the step
after the furthest one's, so that all of them save the same. A process that is alone notes the signal itself.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

import jax
from jax.experimental import multihost_utils

from earthgpt_jax.common.errors import EXIT_INTERRUPTED, EXIT_RETRY


class PreemptionSignal:
    """Notes signals while it is entered; ask `reached` behind every step, with that step's number.

    Ctrl-C once is a notice like SIGTERM, twice is a KeyboardInterrupt on the spot. Further SIGTERMs change nothing.
    Outside of the main thread, where Python takes no signals, nothing is noted.
    """

    def __init__(self) -> None:
        self._shared = jax.distributed.is_initialized()
        self._signal: signal.Signals | None = None
        self._since = 0.0
        self._obeyed = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> PreemptionSignal:
        if threading.current_thread() is threading.main_thread():
            mine = [signal.SIGINT] if self._shared else [signal.SIGTERM, signal.SIGINT]
            self._before = {number: signal.signal(number, self._note) for number in mine}
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]  # what it gave us
        if self._signal is not None and not self._obeyed and kind is None and not self._shared:
            signal.raise_signal(self._signal)  # it came behind the last step: whoever handles it now

    def reached(self, step: int) -> bool:
        """Whether to save behind `step` and stop; the same answer on every process."""
        if self._shared:
            try:
                self._obeyed = multihost_utils.reached_preemption_sync_point(step)
            except RuntimeError:  # jax_enable_preemption_service is off
                return False
        else:
            self._obeyed = self._signal is not None
        return self._obeyed

    def because(self) -> str:
        """What told us, and how long ago."""
        if self._signal is None:
            return "preemption notice"
        return f"{self._signal.name}, {time.monotonic() - self._since:.1f} s ago"

    @property
    def status(self) -> int:
        """The exit status that says so."""
        return EXIT_INTERRUPTED if self._signal is signal.SIGINT else EXIT_RETRY

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._signal is not None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            return
        self._signal, self._since = signal.Signals(number), time.monotonic()
        again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"\n{self._signal.name}: saving behind this step, then stopping{again}\n".encode())
        if self._shared:
            os.kill(os.getpid(), signal.SIGTERM)  # the runtime's notice, for all processes
