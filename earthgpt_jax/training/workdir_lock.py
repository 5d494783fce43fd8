"""One run per work directory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import jax

from earthgpt_jax import distributed
from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.errors import EarthGPTError

_FILE = ".lock"


@contextlib.contextmanager
def hold(workdir: Path) -> Iterator[None]:
    """Keep other runs out of a work directory until the exit of the context, or the end of this process.

    Process 0 locks a file. The operating system releases the lock when the process ends, even if it is killed; data
    workers do not inherit it. In a bucket, and on file systems without locks, nothing is locked: a checkpoint in a
    bucket records its run instead (`checkpoint_stores.BucketStore`).

    Raises:
        EarthGPTError: another run uses the directory, or it cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with distributed.fail_together("locking the work directory"):
            if jax.process_index() == 0 and not isinstance(workdir, BucketPath):
                _lock(workdir, stack)
        yield


def _lock(workdir: Path, stack: contextlib.ExitStack) -> None:
    """Lock the directory until `stack` is closed."""
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(workdir / _FILE, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise EarthGPTError(
            f"{workdir}: cannot be written ({error.strerror}); choose another --workdir, or change its permissions"
        ) from error
    stack.callback(os.close, descriptor)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.read(descriptor, 200).decode(errors="replace").strip() or "unknown"
        raise EarthGPTError(
            f"{workdir}: another run uses this work directory ({owner}); wait for its end, stop it, or choose another "
            "--workdir"
        ) from None
    except OSError:
        return  # this file system has no locks
    os.truncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0)
