"""Paths that users name, on a disk or in a bucket, and writing that leaves files and folders complete or absent.

Everything a run writes goes through this module, so that it is the one place that needs to know a file system. `path`
turns the text of a command line or a config into a path: a `pathlib.Path` of a local file, or a `BucketPath` of a
`gs://` or `s3://` address.

On a disk, each function writes to a temporary name next to the target and renames it at the end. A reader therefore
never sees half a file, and a killed process leaves the previous content, plus at most a `*.partial` file that nobody
reads.

In a bucket nothing can be renamed. A file is written to local scratch space (`TMPDIR`) and uploaded; the object
appears, or is replaced, when the upload is complete. A folder is written in these steps, also where a bucket is mounted
as a local folder:

1. An empty object `NAME.partial` next to the folder says that it is being written.
2. The objects of a previous folder are deleted, its key file first. The key file is one without which readers treat a
   folder as absent: `config.json` of a model, `manifest.json` of a dataset.
3. All files but the key file are uploaded under their final names.
4. The key file is uploaded. From now on the folder exists.
5. `NAME.partial` is deleted.

A process that is killed at any of them leaves a folder without its key file, which is absent, or a complete one. The
next attempt finds `NAME.partial` and starts again at step 2. A folder may have one writer at a time.
"""

from __future__ import annotations

import contextlib
import enum
import glob as glob_lib
import json
import os
import re
import shutil
import tempfile
import uuid
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO

from earthgpt_jax.common.buckets import SERVICES, BucketPath, configure
from earthgpt_jax.common.errors import EarthGPTError, find_full_disk

_UPLOADS = 8  # at a time
_MOUNTED_BUCKETS = re.compile(r"gcsfuse|mountpoint-s3|s3fs|rclone|goofys|geesefs|blobfuse")


class IfExists(enum.Enum):
    """What `atomic_folder` does if the target exists already."""

    REFUSE = "refuse"
    REPLACE = "replace"


# ------------------------------------------------------------------------------------------------- paths
def path(text: str | os.PathLike[str]) -> Path:
    """Return the path that a user names: of a local file, or a `BucketPath` for `gs://bucket/...` or `s3://bucket/...`.

    `pathlib.Path` alone would turn `gs://` into `gs:/`, a local folder.

    Raises:
        EarthGPTError: the address has another scheme or no bucket, or the package for its scheme is not installed.
    """
    name = os.fspath(text)
    scheme, separator, rest = name.partition("://")
    if not separator or not re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]*", scheme):
        return Path(name)
    if scheme not in SERVICES:
        raise EarthGPTError(
            f"{name!r}: expected a local path, or an address with {' or '.join(f'{known}://' for known in SERVICES)}, "
            f"got {scheme}://"
        )
    if not rest.strip("/"):
        raise EarthGPTError(
            f"{name!r}: expected the name of a bucket after {scheme}://, such as {scheme}://bucket/runs"
        )
    configure(scheme)
    return BucketPath(name)


def output_path(text: str | os.PathLike[str]) -> Path:
    """Return the path of a file or folder that a command writes at its end. Missing folders are made then.

    Raises:
        EarthGPTError: nothing can be written there, which would otherwise be found after the work.
    """
    target = path(text)
    if not isinstance(target, BucketPath):
        above = next(folder for folder in target.absolute().parents if folder.exists())
        if not above.is_dir():
            raise EarthGPTError(f"{text}: expected a path in a folder, got one in the file {above}")
        if not os.access(above, os.W_OK | os.X_OK):
            raise EarthGPTError(f"{text}: expected a folder that can be written, got {above}; choose another one")
    return target


def glob(pattern: str) -> list[Path]:
    """Return the files and folders that a pattern such as `scenes/**/*.tif` or `gs://bucket/*.png` matches, sorted."""
    start = path(pattern)
    if isinstance(start, BucketPath):
        bucket = BucketPath(f"{start.scheme}://{start.bucket}")
        return sorted(bucket.glob(pattern.removeprefix(f"{bucket}/")))
    return [Path(name) for name in sorted(glob_lib.glob(pattern, recursive=True))]


def cache_folder() -> Path:
    """Return the local folder for what can be made again: `earthgpt` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "earthgpt")


def copy(source: Path, target: Path) -> None:
    """Copy a file, from and to a disk or a bucket; `target` appears, or is replaced, once it is complete."""
    if isinstance(source, BucketPath):
        with atomic_path(target) as partial:
            source.download(partial)
    elif isinstance(target, BucketPath):
        target.upload(source)
    else:
        with atomic_path(target) as partial:
            shutil.copyfile(source, partial)


@contextlib.contextmanager
def local_copy(path: Path) -> Iterator[Path]:
    """Yield a local file with the content of `path`, for libraries that cannot read from a bucket.

    It is `path` itself if that is local, and otherwise a temporary file of the same name.
    """
    if not isinstance(path, BucketPath):
        yield path
        return
    with tempfile.TemporaryDirectory(prefix="earthgpt-") as scratch:
        path.download(Path(scratch, path.name))
        yield Path(scratch, path.name)


def read_ranges(path: Path, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
    """Return bytes `start:stop` of a file for each range.

    Raises:
        OSError: the file cannot be read.
    """
    if isinstance(path, BucketPath):
        return path.read_ranges(ranges)
    with path.open("rb") as file:

        def read(start: int, stop: int) -> bytes:
            file.seek(start)
            return file.read(stop - start)

        return [read(*item) for item in ranges]


def file_sizes(folder: Path) -> dict[str, int]:
    """Return the size in bytes of every file below a folder, by its path relative to it; {} if there is no folder."""
    if isinstance(folder, BucketPath):
        return {path.relative_to(folder).as_posix(): info["size"] for path, info in folder.walk_files().items()}
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in folder.rglob("*") if path.is_file()}


def accepts_files(folder: Path) -> bool:
    """Return whether files can be written into a folder without making it: it exists, or is in a bucket."""
    return isinstance(folder, BucketPath) or folder.is_dir()


def remove_folder(folder: Path) -> None:
    """Remove a folder and everything in it, if it exists."""
    if isinstance(folder, BucketPath):
        folder.rmtree()
    else:
        shutil.rmtree(folder, ignore_errors=True)


# ------------------------------------------------------------------------------------------------- files
@contextlib.contextmanager
def atomic_path(target: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a temporary path next to `target` and rename the file written there to `target` at the end of the block.

    The temporary name is unique among all processes and machines. If the block raises, the temporary file is removed
    and `target` stays as it was. For a target in a bucket, the temporary file is in local scratch space and uploaded.

    Args:
        durable: flush the file to disk before it is renamed, so that it is complete even after a power failure.
    """
    if isinstance(target, BucketPath):
        with tempfile.TemporaryDirectory(prefix="earthgpt-") as scratch:
            local = Path(scratch, target.name)
            yield local
            target.upload(local)
        return
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
    if isinstance(path, BucketPath):
        path.write_bytes(content)
        return
    with atomic_open(path, durable=durable) as file:
        file.write(content)


def write_text(path: Path, content: str, *, durable: bool = False) -> None:
    """Write a UTF-8 text file atomically (`atomic_path`)."""
    write_bytes(path, content.encode(), durable=durable)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON file atomically, indented by one space and with a final newline."""
    write_text(path, json.dumps(value, indent=1) + "\n")


def write_output(path: Path, content: bytes) -> None:
    """Write a file atomically, like `write_bytes`, make its folder, and explain failures to the user.

    Raises:
        EarthGPTError: the folder is not writable, the disk is full, or a bucket cannot be written.
    """
    with explain_write_errors(path):
        if not isinstance(path, BucketPath):
            path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, content)


def _flush_to_disk(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


# ----------------------------------------------------------------------------------------------- folders
def partial_folder(target: Path) -> Path:
    """Return the name that says that `atomic_folder` is not finished with `target`.

    On a disk it is the folder that is renamed to `target` at the end, in a bucket an empty object.
    """
    return target.with_name(target.name + ".partial")


@contextlib.contextmanager
def atomic_folder(target: Path, *, key_file: str, if_exists: IfExists = IfExists.REFUSE) -> Iterator[Path]:
    """Yield an empty local folder whose content becomes `target` at the end of the block.

    If the block raises, what it wrote is removed. A killed process leaves a `NAME.partial`; the next attempt removes
    it. On a disk the folder is renamed. In a bucket the files are uploaded, the key file last; see the top of this
    module.

    Args:
        key_file: the file in this folder without which readers treat it as absent.
        if_exists: refuse to write, or replace the folder, if `target` exists. An empty folder is always replaced. In a
            bucket the previous folder is removed at the beginning of the block, on a disk at its end.

    Raises:
        EarthGPTError: `target` exists and shall not be replaced.
        FileNotFoundError: at the end of the block, there is no key file.
    """
    make = _renamed_folder if renames_folders(target) else _uploaded_folder
    with make(target, key_file=key_file, if_exists=if_exists) as folder:
        yield folder
        if not (folder / key_file).exists():
            raise FileNotFoundError(f"{target}: {key_file} was not written")


@contextlib.contextmanager
def folder_part(target: Path) -> Iterator[Path]:
    """Yield the local folder into which another process writes its files of a folder.

    One process is in the block of `atomic_folder` meanwhile and leaves it after all others have left theirs. The key
    file is written by that process.
    """
    if renames_folders(target):
        yield partial_folder(target)
        return
    with tempfile.TemporaryDirectory(prefix="earthgpt-") as scratch:
        yield Path(scratch)
        _upload(Path(scratch), target)


def move_folder(source: Path, target: Path, *, key_file: str, content: str) -> None:
    """Rename a complete local folder to `target`, which must not exist, or upload it.

    An upload that was interrupted continues with the files that are missing, if `content` is the same.

    Args:
        key_file: see `atomic_folder`.
        content: identifies the bytes of all files.

    Raises:
        EarthGPTError: `target` exists already.
        OSError: another process has made `target` meanwhile.
    """
    if renames_folders(target):
        os.replace(source, target)
        return
    mark = partial_folder(target)
    unfinished = mark.exists()
    if not unfinished and is_complete(target):
        raise _occupied(target)
    if not unfinished or mark.read_text() != content:
        _clear(target, key_file)  # before the mark says that what is there belongs to this content
        write_text(mark, content)
    _upload(source, target, last=key_file, skip_same_size=True)
    mark.unlink(missing_ok=True)


def is_complete(folder: Path) -> bool:
    """Return whether a folder exists and `atomic_folder` or `move_folder` has finished it."""
    return folder.exists() and (renames_folders(folder) or not partial_folder(folder).exists())


@contextlib.contextmanager
def local_folder(target: Path) -> Iterator[Path]:
    """Yield a local folder whose files are in `target` after the block, for libraries that write to a disk only.

    It is `target` itself on a disk, and otherwise a temporary folder, which is uploaded at the end of the block.
    """
    if not isinstance(target, BucketPath):
        yield target
        return
    with tempfile.TemporaryDirectory(prefix="earthgpt-") as scratch:
        yield Path(scratch)
        _upload(Path(scratch), target)


@contextlib.contextmanager
def _renamed_folder(target: Path, *, key_file: str, if_exists: IfExists) -> Iterator[Path]:
    occupied = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if occupied and if_exists is IfExists.REFUSE:
        raise _occupied(target)
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


@contextlib.contextmanager
def _uploaded_folder(target: Path, *, key_file: str, if_exists: IfExists) -> Iterator[Path]:
    mark = partial_folder(target)
    unfinished = mark.exists()  # a process was killed: what it left may be removed
    if if_exists is IfExists.REFUSE and not unfinished and target.exists() and (target.is_file() or _any_in(target)):
        raise _occupied(target)
    mark.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(mark, b"")
    _clear(target, key_file)
    try:
        with tempfile.TemporaryDirectory(prefix="earthgpt-") as scratch:
            yield Path(scratch)
            _upload(Path(scratch), target, last=key_file)
    except BaseException:
        with contextlib.suppress(OSError, EarthGPTError):  # the first error says more
            _clear(target, key_file)
            mark.unlink(missing_ok=True)
        raise
    mark.unlink(missing_ok=True)


def _occupied(target: Path) -> EarthGPTError:
    return EarthGPTError(f"{target}: exists already; choose a folder that does not exist, or remove it")


def _any_in(folder: Path) -> bool:
    return next(iter(folder.iterdir()), None) is not None


def _clear(folder: Path, key_file: str) -> None:
    (folder / key_file).unlink(missing_ok=True)
    remove_folder(folder)


def _upload(folder: Path, target: Path, *, last: str | None = None, skip_same_size: bool = False) -> None:
    """Copy the files of a local folder to `target`, the file `last` after all others.

    Args:
        skip_same_size: leave out files that are in `target` with the same size.
    """
    sizes = file_sizes(folder)
    present = file_sizes(target) if skip_same_size else {}
    missing = [name for name, size in sorted(sizes.items()) if present.get(name) != size and name != last]

    def upload(name: str) -> int:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        copy(folder / name, target / name)
        return sizes[name]

    total = sum(map(sizes.__getitem__, missing))
    with _bar(total, f"{target.name}: upload") as bar, ThreadPoolExecutor(_UPLOADS) as threads:
        for size in threads.map(upload, missing):
            bar.update(size)
    if last is not None:
        upload(last)


def _bar(size: int, title: str) -> Any:
    from earthgpt_jax.common.progress import Bar  # imported here: most programs upload nothing

    return Bar(total=size, desc=title, unit="B", unit_scale=True, leave=False)


def renames_folders(path: Path) -> bool:
    """Return whether the file system of `path` renames a folder in one step: a disk does, a mounted bucket does not."""
    if isinstance(path, BucketPath):
        return False
    mounts = Path("/proc/self/mountinfo")
    if not mounts.exists():  # another system than Linux
        return True
    name, found, is_bucket = os.path.abspath(path), "", False
    for line in mounts.read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = before.split()[4].replace("\\040", " ")
        if len(point) >= len(found) and (name == point or name.startswith(point.rstrip("/") + "/")):
            found, is_bucket = point, _MOUNTED_BUCKETS.search(" ".join(after.split()[:2])) is not None
    return not is_bucket


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
