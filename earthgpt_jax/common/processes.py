"""Initialisation of worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def init_worker(*ignored: signal.Signals) -> None:
    """Initialise a worker process: it ignores Ctrl-C, which its parent handles, and exits when its parent does.

    Args:
        ignored: further signals that the parent handles, such as the SIGTERM that a scheduler sends to all processes.
    """
    for number in (signal.SIGINT, *ignored):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    """Exit when the parent does: a killed parent cannot end its workers, and the pipes of a pool never close."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
