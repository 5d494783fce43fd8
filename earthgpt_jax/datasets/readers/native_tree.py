"""List the files of a native dataset: all of them, which are images, and which an operating system wrote."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NoReturn

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
    """Return all files in a folder and its subfolders, sorted. Folders and files that are links are followed.

    A link to nothing counts as a file, which cannot be read.

    Raises:
        EarthGPTError: a folder cannot be listed, or a link leads to a folder that contains it.
    """

    if isinstance(folder, BucketPath):
        return sorted(folder.walk_files())

    def stop(error: OSError) -> NoReturn:
        raise EarthGPTError(f"{error.filename}: cannot be listed: {error.strerror}; check its permissions") from error

    found: list[Path] = []
    for root, folders, names in os.walk(folder, followlinks=True, onerror=stop):
        for link in (path for path in (Path(root, name) for name in folders) if path.is_symlink()):
            if Path(root).resolve().is_relative_to(link.resolve()):
                raise EarthGPTError(f"{link}: a link to a folder that contains it; remove the link")
        found += [Path(root, name) for name in names]
    return sorted(found)


def is_image(path: Path) -> bool:
    """Return whether a file's suffix is that of an image format, in upper or lower case; not for `._a.jpg` of macOS."""
    return path.suffix.lower() in _IMAGE_SUFFIXES and not path.name.startswith("._")


def is_companion(path: Path) -> bool:
    """Return whether the suffix is that of a file that may lie next to images, such as a list or a world file."""
    return path.suffix.lower() in _COMPANION_SUFFIXES


def is_system_file(path: Path) -> bool:
    """Return whether an operating system or a viewer wrote a file, such as `._a.jpg`, `Thumbs.db` or `__MACOSX/a.jpg`.

    Args:
        path: relative to the dataset's folder.
    """
    *folders, name = (part.lower() for part in path.parts)
    return name.startswith("._") or name in _SYSTEM_FILES or not _SYSTEM_FOLDERS.isdisjoint(folders)
