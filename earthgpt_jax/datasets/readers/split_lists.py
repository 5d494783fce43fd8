"""Official splits that are lists of native ids: `train`, `val` and `test` in a card's layout are text files, an id a
line, with or without the image's suffix; a class flag behind it (VOC: 1, -1, 0) is passed over.

An entry that no list names is rejected, and so is an id of a list without annotation.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import SPLITS
from earthgpt_jax.datasets.readers.events import Entry, Event, ItemType, Native, Part, Rejected, is_image, read_text


def assign(entries: Iterable[Entry | Event], part: Part) -> Iterator[Entry | Event]:
    """The entries of a part with their splits; unchanged where its layout has no lists.

    Raises:
        EarthGPTError: an id is in two lists.
    """
    splits = _splits(part)
    if not splits:
        yield from entries
        return
    used = set()
    for entry in entries:
        if not isinstance(entry, Entry):
            yield entry
            continue
        native = entry.id.removeprefix(part.prefix)
        name = native if native in splits else native.rsplit("/", 1)[-1]
        used.add(name)
        problem = entry.problem or ("" if name in splits else "no list of a split names it")
        yield dataclasses.replace(entry, split=splits.get(name, ""), problem=problem)
    for name, split in splits.items():
        if name not in used:
            yield Native(item_type=ItemType.IMAGE)
            file = part.name(part.paths[split])
            yield Rejected(
                id=part.prefix + name, item_type=ItemType.ANNOTATION, reason="listed, but not annotated", file=file
            )


def _splits(part: Part) -> dict[str, str]:
    """native id -> split."""
    found: dict[str, str] = {}
    for split in (split for split in SPLITS if split in part.paths):
        path = part.paths[split]
        for line in read_text(path).splitlines():
            name = re.sub(r"\s+-?[01]$", "", line.strip()).replace("\\", "/")
            name = name.rsplit(".", 1)[0] if is_image(Path(name)) else name
            if name and found.setdefault(name, split) != split:
                raise EarthGPTError(f"{path}: {name} is also in the list of {found[name]}; a split would leak")
    return found
