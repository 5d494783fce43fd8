"""Write files and folders that are either complete or absent.

Each function writes to a temporary name next to the target and renames it at the end. A reader therefore never sees
half a file, and a killed process leaves the previous content, plus at most a `*.partial` file that nobody reads.

Everything a run writes goes through this module, so that it is the one place that needs to know a file system.
"""

from __future__ import annotations

import contextlib
import enum
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from earthgpt_jax.common.errors import EarthGPTError, find_full_disk


class IfExists(enum.Enum):
    """What `atomic_folder` does if the target exists already."""

    REFUSE = "refuse"
    REPLACE = "replace"


# ------------------------------------------------------------------------------------------------- files
@contextlib.contextmanager
def atomic_path(target: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to `target` and rename the file written there to `target` at the end of the block.

    The temporary name is unique among all processes and machines. If the block raises, the temporary file is removed
    and `target` stays as it was.

    Args:
        durable: flush the file to disk before it is renamed, so that it is complete even after a power failure.
    """
    partial = target.with_name(f"{target.name}.{uuid.uuid4().hex}.partial")
    try:
        yield partial
        if durable:
            _flush_to_disk(partial)
        os.replace(partial, target)
    except BaseException:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise


@contextlib.contextmanager
def atomic_open(target: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Open `target` for writing in binary mode; it appears, or is replaced, at the end of the block (`atomic_path`)."""
    with atomic_path(target, durable=durable) as partial, partial.open("wb") as file:
        yield file
        file.flush()


def write_bytes(path: Path, content: bytes, *, durable: bool = False) -> None:
    """Write a file atomically (`atomic_path`)."""
    with atomic_open(path, durable=durable) as file:
        file.write(content)


def write_text(path: Path, content: str, *, durable: bool = False) -> None:
    """Write a UTF-8 text file atomically (`atomic_path`)."""
    write_bytes(path, content.encode(), durable=durable)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented by one space and with a final newline."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_output(path: Path, content: bytes) -> None:
    """Write a file atomically, like `write_bytes`, and explain failures to the user.

    Raises:
        EarthGPTError: the folder is missing or not writable, or the disk is full.
    """
    with explain_write_errors(path):
        write_bytes(path, content)


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


# ----------------------------------------------------------------------------------------------- folders
def partial_folder(target: Path) -> Path:
    """Return the name of a folder while `atomic_folder` is not finished with it."""
    return target.with_name(target.name + ".partial")


@contextlib.contextmanager
def atomic_folder(target: Path, *, if_exists: IfExists = IfExists.REFUSE) -> Iterator[Path]:
    """Yield a temporary folder `NAME.partial` and rename it to `target` at the end of the block.

    If the block raises, the temporary folder is removed. A killed process leaves it; the next attempt removes it.

    Args:
        if_exists: refuse to write, or replace the folder, if `target` exists. An empty folder is always replaced.

    Raises:
        EarthGPTError: `target` exists and shall not be replaced.
    """
    occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if occupied and if_exists is IfExists.REFUSE:
        raise EarthGPTError(f"{target}: exists already; choose a folder that does not exist, or remove it")
    partial = partial_folder(target)
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        if if_exists is IfExists.REPLACE:
            shutil.rmtree(target, ignore_errors=True)
        elif target.exists():
            target.rmdir()  # fails where another process has filled it meanwhile
        os.replace(partial, target)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise


# ------------------------------------------------------------------------------------------------ errors
@contextlib.contextmanager
def explain_write_errors(target: Path, *, consequence: str = "no partial files remain") -> Iterator[None]:
    """Turn errors of the file system into an `EarthGPTError` that names `target` and says what to do.

    Args:
        consequence: what the failure means for the output, for the message.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        if find_full_disk(error) is not None:
            reason, remedy = "the disk is full", "free some space, or choose another folder"
        elif isinstance(error, OSError):
            reason = f"{error.strerror or error}{f' ({error.filename})' if error.filename else ''}"
            remedy = "choose another folder, or check its permissions"
        else:
            raise
        raise EarthGPTError(f"writing {target}: {reason}; {consequence}. Please {remedy}") from error
