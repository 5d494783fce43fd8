"""JAX's persistent compilation cache: programs that one start compiled are read from files by the next.

`train` keeps its programs in the work directory, shared by all hosts; process 0 writes them. The other commands use the
user's cache folder. JAX's own environment variables come first: `JAX_COMPILATION_CACHE_DIR` chooses another folder, and
`JAX_ENABLE_COMPILATION_CACHE=0` disables the cache.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax

MAX_BYTES = 4 << 30  # of a cache on a local or mounted disk; the programs used least recently are deleted
NOTICE_SECONDS = 4.0  # of compilation, after which a line says so
_TORN_AFTER = 60.0  # seconds after which an entry without its time of use was left by a killed process
_REQUEST = "/jax/compilation_cache/compile_requests_use_cache"
_HIT = "/jax/compilation_cache/cache_hits"
_COMPILED = "/jax/core/compile/backend_compile_duration"


@dataclasses.dataclass(kw_only=True)
class Usage:
    """What this process has compiled so far.

    Attributes:
        programs: number of programs that were needed.
        cached: number of those that were read from the cache.
        seconds: time spent on compiling and reading them.
    """

    programs: int = 0
    cached: int = 0
    seconds: float = 0.0


_usage = Usage()


def usage() -> Usage:
    """Return what this process has compiled since `enable_cache`."""
    return dataclasses.replace(_usage)


def user_folder() -> Path:
    """Return the cache folder of commands without a work directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "earthgpt_jax" / "programs"


def enable_cache(folder: Path | None = None) -> None:
    """Read and write compiled programs in `folder`; call it before anything is compiled.

    The folder is created with the first program; if it cannot be, the cache stays disabled. In a bucket the cache has
    no limit, because JAX would enforce it with a lock file.

    Args:
        folder: local folder or address of a bucket; None: `user_folder()`.
    """
    _count()
    settings: Any = jax.config  # whose attributes have no annotations
    if settings.jax_compilation_cache_dir or not settings.jax_enable_compilation_cache:
        return
    folder = user_folder() if folder is None else folder
    if "://" in str(folder):
        limit, fastest = -1, 1.0  # a request for each small program would take longer than to compile it
    else:
        limit, fastest = MAX_BYTES, 0.0
        if not _can_be_written(folder):
            return
        _remove_torn(folder)
    jax.config.update("jax_compilation_cache_max_size", limit)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", fastest)
    jax.config.update("jax_compilation_cache_dir", str(folder))


def _can_be_written(folder: Path) -> bool:
    """Return whether a folder is writable, or can be created; JAX creates it with the first program."""
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
    return existing.is_dir() and os.access(existing, os.W_OK)


def _remove_torn(folder: Path) -> None:
    """Remove entries that a killed process left without their time of use: JAX could neither use nor delete them."""
    for entry in folder.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process may have removed it
            unused = not entry.with_name(entry.name.removesuffix("-cache") + "-atime").exists()
            if unused and time.time() - entry.stat().st_mtime > _TORN_AFTER:
                entry.unlink()


@functools.cache
def _count() -> None:
    """Count programs from now on."""
    notice = _Notice()

    def on_event(event: str, **_: Any) -> None:
        if event == _REQUEST:
            _usage.programs += 1
            notice.begin()
        elif event == _HIT:
            _usage.cached += 1

    def on_duration(event: str, duration_secs: float, **_: Any) -> None:
        if event == _COMPILED:
            _usage.seconds += duration_secs
            notice.end()

    jax.monitoring.register_event_listener(on_event)
    jax.monitoring.register_event_duration_secs_listener(on_duration)


class _Notice:
    """Prints one line when this process has been compiling for `NOTICE_SECONDS` in all."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._begins: list[float] = []  # of the compilations in progress
        self._timer: threading.Timer | None = None
        self._printed = False

    def begin(self) -> None:
        with self._lock:
            self._begins.append(time.monotonic())
            if self._timer is None and not self._printed:
                self._wait()

    def end(self) -> None:
        with self._lock:
            self._begins = self._begins[:-1]

    def _busy(self) -> float:
        return _usage.seconds + (time.monotonic() - self._begins[-1] if self._begins else 0.0)

    def _wait(self) -> None:
        self._timer = threading.Timer(max(0.1, NOTICE_SECONDS - self._busy()), self._check)
        self._timer.daemon = True
        self._timer.start()

    def _check(self) -> None:
        with self._lock:
            self._timer = None
            if self._busy() >= NOTICE_SECONDS:
                self._printed = True
                if jax.process_index() == 0:
                    what = f"compiling for {jax.devices()[0].device_kind}"
                    sys.stderr.write(f"{what}; this can take minutes ({_next_start()})\n")
            elif self._begins:
                self._wait()


def _next_start() -> str:
    settings: Any = jax.config
    folder = settings.jax_compilation_cache_dir
    return f"the next start reads the programs from {folder}" if folder else "the compilation cache is disabled"
