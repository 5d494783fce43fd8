"""The native files behind a dataset: which they were, and whether they are still the same.

`inputs.sha256` in a dataset directory holds the sha256 of every native file whose content was read, in the form
that `sha256sum --check` takes in the native folder. Names and sizes of all files below the card's layout are in
the manifest's `origin` too; times and places are not, so that a copy elsewhere gives the same dataset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from earthgpt_jax.common import digests
from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers import layout_paths
from earthgpt_jax.datasets.readers.events import is_image

FILE = "native_files.sha256"


class FileStatus(NamedTuple):
    """Bytes of a file, and when it or its status last changed (seconds since the epoch)."""

    size: int
    touched: float


def list_files(base: Path, card: Card) -> dict[str, FileStatus]:
    """Name below `base` -> status of every file that the card's layout covers, in order."""
    found: set[Path] = set()
    for part in card.parts:
        for path in (base / value for value in layout_paths(part)):
            found.update(below for below in path.rglob("*") if below.is_file()) if path.is_dir() else found.add(path)
    return {path.relative_to(base).as_posix(): _status(path) for path in sorted(found) if path.is_file()}


def _status(path: Path) -> FileStatus:
    status = path.stat()
    return FileStatus(status.st_size, max(status.st_mtime, status.st_ctime))


def hash_annotations(base: Path, names: Iterable[str]) -> dict[str, str]:
    """Name -> sha256 of the files that are no images: what parsers read."""
    return {name: sha256_or_empty(base / name) for name in names if not is_image(Path(name))}


def sha256_or_empty(path: Path) -> str:
    """Return the digest of a file, or "" if it cannot be read."""
    try:
        return digests.sha256_file(path)
    except OSError:
        return ""


def format_sums(sums: Mapping[str, str]) -> str:
    """The text of `FILE`."""
    return digests.format_sha256_list({name: digest for name, digest in sums.items() if digest})


def parse_sums(text: str) -> dict[str, str]:
    """The inverse of `write`."""
    return digests.parse_sha256_list(text, where=FILE)


def origin(described: Any, files: Mapping[str, FileStatus], text: str) -> str:
    """A digest of what a dataset is made from: its card and readers, names and sizes of all files, what was read."""
    sizes = [(name, status.size) for name, status in files.items()]
    return json_digest([described, sizes, digests.sha256(text)])


def refresh_sums(base: Path, files: Mapping[str, FileStatus], text: str, *, since: float) -> str:
    """`text`, with the sums of those files taken anew that were touched since, in seconds since the epoch.

    A file's status changes with its content, and cannot be set back as its time can; so what is older is not read.
    """
    sums = parse_sums(text)
    touched = {n for n in sums if (s := files.get(n)) is None or s.touched >= since}
    return format_sums(sums | {name: sha256_or_empty(base / name) for name in touched})


def json_digest(value: Any) -> str:
    """Of anything that JSON can say."""
    return digests.sha256_json(value, default=str)
