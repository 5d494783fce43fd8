"""What every worker process does first."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def prepare() -> None:
    """To be called in a worker process: it ends with its parent, and leaves an interrupt to it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent has it too, and ends us
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A parent that was killed cannot end us, and the pool's own pipes never close."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
