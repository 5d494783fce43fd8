"""What every worker process does first."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def init_worker(*leave: signal.Signals) -> None:
    """To be called in a worker process: it ends with its parent, and leaves an interrupt to it.

    Args:
        leave: further signals that the parent has too and deals with, such as a scheduler's SIGTERM to all processes.
    """
    for number in (signal.SIGINT, *leave):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_die_with_parent, daemon=True).start()


def _die_with_parent() -> None:
    """A parent that was killed cannot end us, and the pool's own pipes never close."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
