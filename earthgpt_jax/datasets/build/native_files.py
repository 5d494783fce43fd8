"""Record which native files a dataset was built from, and tell whether they have changed.

`native_files.sha256` in a dataset directory lists the sha256 of every native file whose content was read, in the
format of `sha256sum`: `sha256sum --check` can verify it in the dataset's native folder. The `origin` in the manifest is
a digest of this list, the names and sizes of all files that the card's layout covers, and the card. It does not depend
on times and absolute paths, so a copy of the native files gives the same dataset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from earthgpt_jax.common import digests
from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers import layout_paths
from earthgpt_jax.datasets.readers.native_tree import all_files_below, is_image

FILE = "native_files.sha256"


class FileStatus(NamedTuple):
    """The size of a file in bytes, and when it or its status last changed, in seconds since the epoch."""

    size: int
    changed: float


def list_files(base: Path, card: Card) -> dict[str, FileStatus]:
    """Return all files that the card's layout covers, by their path relative to `base`, sorted."""
    found: set[Path] = set()
    for part in card.parts:
        for path in (base / value for value in layout_paths(part)):
            found.update(all_files_below(path) if path.is_dir() else (path,))
    return {path.relative_to(base).as_posix(): _status(path) for path in sorted(found) if path.is_file()}


def _status(path: Path) -> FileStatus:
    status = path.stat()
    return FileStatus(status.st_size, max(status.st_mtime, status.st_ctime))


def hash_annotations(base: Path, names: Iterable[str]) -> dict[str, str]:
    """Return the sha256 of those files that are not images; images are hashed when they are read."""
    return {name: sha256_or_empty(base / name) for name in names if not is_image(Path(name))}


def sha256_or_empty(path: Path) -> str:
    """Return the sha256 of a file, or "" if it cannot be read."""
    try:
        return digests.sha256_file(path)
    except OSError:
        return ""


def format_sums(sums: Mapping[str, str]) -> str:
    """Return the content of `FILE` for sha256 sums by file name; files without a sum are omitted."""
    return digests.format_sha256_list({name: digest for name, digest in sums.items() if digest})


def parse_sums(text: str) -> dict[str, str]:
    """Return sha256 sums by file name from the content of `FILE`."""
    return digests.parse_sha256_list(text, where=FILE)


def origin(settings: Any, files: Mapping[str, FileStatus], sums: str) -> str:
    """Return a digest of everything that a dataset is made from.

    Args:
        settings: the card and the version of the readers, as JSON values.
        files: the result of `list_files`.
        sums: the content of `FILE`.
    """
    sizes = [(name, status.size) for name, status in files.items()]
    return json_digest([settings, sizes, digests.sha256(sums)])


def refresh_sums(base: Path, files: Mapping[str, FileStatus], sums: str, *, since: float) -> str:
    """Return the content of `FILE` as it would be written now.

    Only files whose content or status changed at or after `since` (seconds since the epoch) are hashed again. The
    status change time of a file cannot be set back, unlike its modification time, so older files are unchanged.
    """
    old = parse_sums(sums)
    changed = {name for name in old if (status := files.get(name)) is None or status.changed >= since}
    return format_sums(old | {name: sha256_or_empty(base / name) for name in changed})


def json_digest(value: Any) -> str:
    """Return the sha256 of a value as JSON; paths and other types are written as text."""
    return digests.sha256_json(value, default=str)
