"""Assign official splits that are published as lists of native ids.

`train`, `val` and `test` in a card's layout are text files with one id per line, with or without the image's suffix.
A class flag after the id (VOC: 1, -1 or 0) is ignored. Entries that no list names are rejected, and so are listed ids
without an annotation.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import SPLITS
from earthgpt_jax.datasets.readers.events import Entry, Event, ItemType, Native, Part, Rejected, read_text
from earthgpt_jax.datasets.readers.native_tree import is_image


def assign(entries: Iterable[Entry | Event], part: Part) -> Iterator[Entry | Event]:
    """Yield the entries of a part with their splits; unchanged if its layout has no split lists.

    Raises:
        EarthGPTError: an id is in two lists.
    """
    splits = _splits(part)
    if not splits:
        yield from entries
        return
    matched = set()
    for entry in entries:
        if not isinstance(entry, Entry):
            yield entry
            continue
        native = entry.id.removeprefix(part.prefix)
        name = native if native in splits else native.rsplit("/", 1)[-1]
        matched.add(name)
        problem = entry.problem or ("" if name in splits else "not in any split list")
        yield dataclasses.replace(entry, split=splits.get(name, ""), problem=problem)
    for name, split in splits.items():
        if name not in matched:
            yield Native(item_type=ItemType.IMAGE)
            file = part.name(part.paths[split])
            yield Rejected(
                id=part.prefix + name,
                item_type=ItemType.ANNOTATION,
                reason="in a split list, but not annotated",
                file=file,
            )


def _splits(part: Part) -> dict[str, str]:
    """Return native id -> split.

    Raises:
        EarthGPTError: an id is in two lists.
    """
    split_of: dict[str, str] = {}
    for split in (split for split in SPLITS if split in part.paths):
        path = part.paths[split]
        for line in read_text(path).splitlines():
            name = re.sub(r"\s+-?[01]$", "", line.strip()).replace("\\", "/")
            name = name.rsplit(".", 1)[0] if is_image(Path(name)) else name
            if name and split_of.setdefault(name, split) != split:
                raise EarthGPTError(f"{path}: {name} is also in the {split_of[name]} list; the splits would overlap")
    return split_of
