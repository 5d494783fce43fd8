"""Formats of one text file an image, one object a line."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from earthgpt_jax.datasets.readers.events import Entry, Part, RawObject


def entries(part: Part, read: Callable[[str], RawObject | None], *, fractions: bool = False) -> Iterator[Entry]:
    """An entry a file; one without lines is an image without objects.

    Args:
        read: a line, not blank and without blanks around it, as an object; None where it is none.
        fractions: as of `Entry`.
    """
    for path, text in part.texts("annotations", ".txt"):
        if path.name == "classes.txt":  # labelling tools leave it beside
            continue
        found = (read(line.strip()) for line in text.splitlines() if line.strip())
        yield Entry(
            id=part.prefix + path.stem,
            image=path.stem,
            file=part.name(path),
            split=part.split,
            objects=tuple(item for item in found if item is not None),
            fractions=fractions,
        )
