"""List the files of a native dataset: all of them, which are images, and which an operating system wrote."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from earthgpt_jax.common.buckets import BucketPath
from earthgpt_jax.common.errors import EarthGPTError

_IMAGE_SUFFIXES = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".gif", ".webp", ".jp2", ".j2k", ".img", ".ntf",
    ".nitf", ".pgm", ".ppm", ".pnm",
})  # fmt: skip
# Files that may lie next to images.
_COMPANION_SUFFIXES = frozenset({
    ".txt", ".csv", ".tsv", ".json", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf", ".doc", ".docx", ".xlsx", ".py",
    ".m", ".mat", ".zip", ".gz", ".log", ".lst", ".tfw", ".jgw", ".pgw", ".j2w", ".wld", ".prj", ".ovr", ".msk", ".aux",
    ".hdr", ".rrd", ".vrt", ".geojson", ".kml",
})  # fmt: skip
_SYSTEM_FILES = frozenset({"thumbs.db", "ehthumbs.db", "desktop.ini", ".ds_store"})
_SYSTEM_FOLDERS = frozenset({"__macosx", "@eadir", ".ipynb_checkpoints", ".git"})


def files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and its subfolders, sorted, without those of operating systems.

    Folders and files that are links are followed. A link to nothing counts as a file, which cannot be read.

    Raises:
        EarthGPTError: a folder cannot be listed, or a link leads to a folder that contains it.
    """
    return [_path(name) for name, is_system in _walk(folder) if not is_system]


def all_files_below(folder: Path) -> list[Path]:
    """Return the files in a folder and its subfolders, sorted, with those of operating systems.

    Raises:
        EarthGPTError: as for `files_below`.
    """
    return [_path(name) for name, _ in _walk(folder)]


def system_files_below(folder: Path) -> list[Path]:
    """Return the files that operating systems or viewers left in a folder: `._a.jpg`, `Thumbs.db`, `__MACOSX/a.jpg`.

    Raises:
        EarthGPTError: as for `files_below`.
    """
    return [_path(name) for name, is_system in _walk(folder) if is_system]


def _path(name: str | Path) -> Path:
    return Path(name) if isinstance(name, str) else name


def _walk(folder: Path) -> Iterator[tuple[str | Path, bool]]:
    """Yield each file below a folder, in order, and whether it is a system file; on a disk as text, to save time."""
    if not isinstance(folder, BucketPath):
        yield from _walk_disk(os.fspath(folder), is_system=False)
        return
    for path in folder.walk_files():
        *folders, _ = path.relative_to(folder).parts
        yield path, is_system_file(path.name) or any(map(is_system_folder, folders))


def _walk_disk(folder: str, *, is_system: bool) -> Iterator[tuple[str, bool]]:
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise EarthGPTError(f"{folder}: cannot be listed: {error.strerror}; check its permissions") from error
    for entry in entries:
        if not entry.is_dir():
            yield entry.path, is_system or is_system_file(entry.name)
            continue
        if entry.is_symlink() and Path(folder).resolve().is_relative_to(Path(entry.path).resolve()):
            raise EarthGPTError(f"{entry.path}: a link to a folder that contains it; remove the link")
        yield from _walk_disk(entry.path, is_system=is_system or is_system_folder(entry.name))


def is_image(path: Path) -> bool:
    """Return whether a file's suffix is that of an image format, in upper or lower case; not for `._a.jpg` of macOS."""
    return path.suffix.lower() in _IMAGE_SUFFIXES and not path.name.startswith("._")


def is_companion(path: Path) -> bool:
    """Return whether the suffix is that of a file that may lie next to images, such as a list or a world file."""
    return path.suffix.lower() in _COMPANION_SUFFIXES


def is_system_file(name: str) -> bool:
    """Return whether a file name is one that operating systems or viewers use for files of their own."""
    return name.startswith("._") or name.lower() in _SYSTEM_FILES


def is_system_folder(name: str) -> bool:
    """Return whether a folder name is one that operating systems or viewers use for folders of their own."""
    return name.lower() in _SYSTEM_FOLDERS
