"""The hidden folder in which a dataset is built: next to the dataset, or in the user's cache for one in a bucket."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from earthgpt_jax.common import files
from earthgpt_jax.common.digests import sha256
from earthgpt_jax.common.errors import EarthGPTError


@contextlib.contextmanager
def work_folder(out: Path) -> Iterator[Path]:
    """Create the folder in which `out` is built, `.<name>.building` next to it, and lock it for this process.

    If `out` is in a bucket, the folder is on this machine, in `builds` of the user's cache folder.

    On exit the folder is removed if `out` exists, or if no chunk is finished that a later build could use.

    Raises:
        EarthGPTError: another process is building `out`, or the folder belongs to another user, whose files could hold
            any code (`pickle`).
    """
    parent = out.parent
    if not files.renames_folders(out):
        parent = files.cache_folder() / "builds" / sha256(str(out))[:16]
    parent.mkdir(parents=True, exist_ok=True)
    work = parent / f".{out.name}.building"
    while True:
        work.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(work, os.O_RDONLY)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the lock ends with the process, even if it is killed
            except BlockingIOError:
                raise EarthGPTError(
                    f"{out} is being built by another process; wait for it, or choose another --out"
                ) from None
            except OSError:
                pass  # this file system has no locks
            if os.fstat(lock).st_uid != os.geteuid():
                raise EarthGPTError(f"{work}: belongs to another user; remove it, or choose another --out")
            if not work.exists() or not os.path.samestat(os.fstat(lock), work.stat()):
                continue  # another process finished and removed the folder between mkdir and flock
            try:
                yield work
            finally:
                if files.is_complete(out) or not any(work.glob("chunks/*.index")):
                    shutil.rmtree(work)
            return
        finally:
            os.close(lock)
