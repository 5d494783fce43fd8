"""Keep local copies of files in buckets, in a folder that all processes of a machine share.

A copy is named by the address, size and version (generation or entity tag) of its object, so that a replaced object has
another copy. Copies that no process uses are deleted, the least recently used first, when a new one would exceed the
limit. Locks of the operating system say which are in use; they end with their process, even if it is killed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.digests import sha256
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.files import cache_folder, explain_write_errors

LIMIT_VARIABLE = "EARTHGPT_CACHE_GB"
DEFAULT_LIMIT_GB = 100.0
_PART = 16 << 20  # bytes per request
_REQUESTS = 8  # at a time


class CacheFullError(EarthGPTError):
    """A copy that does not fit next to those that are in use."""


class LocalCopy:
    """A local copy that stays until `close` is called or the process ends.

    Attributes:
        path: the local file.
    """

    def __init__(self, path: Path, descriptor: int):
        self.path, self._descriptor = path, descriptor

    def close(self) -> None:
        """Allow that the copy is deleted."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._descriptor = -1

    __del__ = close


def open_copy(source: BucketPath, *, size: int | None = None) -> LocalCopy:
    """Return a local copy of an object, downloading it if there is none.

    Args:
        size: the size in bytes that it should have.

    Raises:
        CacheFullError: the limit does not allow another copy of this size.
        EarthGPTError: the object has another size, the limit is no number, or the disk is full.
        FileNotFoundError: there is no such object.
    """
    version, found = source.version_and_size()
    if size is not None and found != size:
        raise EarthGPTError(f"{source}: expected {size} bytes, got {found}; copy or build it again")
    folder = cache_folder() / "objects"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{sha256(str(source), version, str(found))[:32]}-{source.name}"
    while True:
        descriptor = _lock_existing(path, fcntl.LOCK_SH)
        if descriptor is not None:
            os.utime(path)  # the least recently used are deleted first
            return LocalCopy(path, descriptor)
        with _locked(folder / f"{path.name}.lock"):  # one process downloads, the others wait
            if not path.exists():
                with explain_write_errors(path, consequence="the download is removed"):
                    _download(source, path, size=found)


def limit_bytes() -> int:
    """Return how many bytes all copies together may have.

    Raises:
        EarthGPTError: the environment variable is no number.
    """
    text = os.environ.get(LIMIT_VARIABLE, "")
    try:
        return int(float(text or DEFAULT_LIMIT_GB) * 1e9)
    except ValueError:
        raise EarthGPTError(f"{LIMIT_VARIABLE}: expected a number of gigabytes, got {text!r}") from None


def _download(source: BucketPath, path: Path, *, size: int) -> None:
    from earthgpt_jax.common.progress import Bar  # imported here: most programs download nothing

    partial = path.with_name(f"{path.name}.partial")
    with _locked(path.parent / ".lock"):
        _make_room(path.parent, size, source)
        descriptor = os.open(partial, os.O_CREAT | os.O_TRUNC | os.O_RDWR, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # a partial file without a lock was left by a killed process
        os.truncate(descriptor, size)  # counts towards the limit from now on
    try:

        def fetch(start: int) -> int:
            return os.pwrite(descriptor, source.read_range(start, min(start + _PART, size)), start)

        bar = Bar(total=size, desc=f"download {source.name}", unit="B", unit_scale=True, leave=False)
        with ThreadPoolExecutor(_REQUESTS) as threads, bar:
            for count in threads.map(fetch, range(0, size, _PART)):
                bar.update(count)
        os.replace(partial, path)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
    finally:
        os.close(descriptor)


def _make_room(folder: Path, size: int, source: BucketPath) -> None:
    """Delete copies that no process uses until another `size` bytes fit; the caller holds the folder's lock."""
    limit = limit_bytes()
    entries = {path: path.stat() for path in folder.iterdir() if not path.name.endswith(".lock")}
    used = sum(status.st_size for status in entries.values())
    for path, status in sorted(entries.items(), key=lambda item: item[1].st_mtime_ns):
        if used + size <= limit:
            return
        descriptor = _lock_existing(path, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if descriptor is not None:
            path.unlink()
            (folder / f"{path.name}.lock").unlink(missing_ok=True)
            os.close(descriptor)
            used -= status.st_size
    if used + size > limit:
        raise CacheFullError(
            f"{source}: its local copy of {size / 1e9:.3g} GB does not fit: copies in use have {used / 1e9:.3g} of at "
            f"most {limit / 1e9:.3g} GB; set {LIMIT_VARIABLE} to allow more, or XDG_CACHE_HOME to use a larger disk"
        )


def _lock_existing(path: Path, operation: int) -> int | None:
    """Open and lock a file; return None if it does not exist, has been replaced, or another process has the lock."""
    try:
        descriptor = os.open(path, os.O_RDWR)
    except FileNotFoundError:
        return None
    try:
        fcntl.flock(descriptor, operation)
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    except (BlockingIOError, FileNotFoundError):
        pass
    os.close(descriptor)
    return None


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of a file that is made if it does not exist."""
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o644)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        try:
            same = os.path.samestat(os.fstat(descriptor), path.stat())
        except FileNotFoundError:
            same = False
        if same:
            break
        os.close(descriptor)  # it was deleted together with its copy
    try:
        yield
    finally:
        os.close(descriptor)
