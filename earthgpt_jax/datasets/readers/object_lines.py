"""Shared by formats with one text file per image and one object per line."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from earthgpt_jax.datasets.readers.events import Entry, Part, RawObject


def entries(part: Part, parse_line: Callable[[str], RawObject | None], *, fractions: bool = False) -> Iterator[Entry]:
    """Yield one entry per annotation file; an empty file is an image without objects.

    Args:
        parse_line: returns the object of a stripped, non-empty line, or None for a line without an object, such as a
            header.
        fractions: see `Entry`.
    """
    for path, text in part.texts("annotations", ".txt"):
        if path.name == "classes.txt":  # written by labelling tools, not an annotation
            continue
        objects = (parse_line(line.strip()) for line in text.splitlines() if line.strip())
        yield Entry(
            id=part.prefix + path.stem,
            image=path.stem,
            file=part.name(path),
            split=part.split,
            objects=tuple(item for item in objects if item is not None),
            fractions=fractions,
        )
