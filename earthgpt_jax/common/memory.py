"""Give freed memory back to the operating system (Linux with glibc; elsewhere nothing happens).

glibc keeps freed blocks for later: all that are smaller than a threshold, which grows to 32 MiB as larger ones are
freed. In a process that loads, compiles, trains and saves, what one phase has freed adds to the memory of the next.
"""

from __future__ import annotations

import ctypes
import functools
import sys

_M_MMAP_THRESHOLD = -3  # of malloc.h
_THRESHOLD = 1 << 20  # bytes; larger blocks go back when they are freed


def return_large_blocks() -> None:
    """From now on, return freed blocks of at least 1 MiB at once."""
    if library := _glibc():
        library.mallopt(_M_MMAP_THRESHOLD, _THRESHOLD)


def return_freed_blocks() -> None:
    """Return what has been freed so far, of any size, for example by the compiler."""
    if library := _glibc():
        library.malloc_trim(0)


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None
