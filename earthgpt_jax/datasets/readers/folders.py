"""Read class folders, `<class>/<image>`: the folder name is the scene class of its images.

Every file in a class folder counts: one that is no image of a known format is quarantined, and one that may lie next to
images, such as a list or a world file, is dropped.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator
from pathlib import Path

from earthgpt_jax.datasets.cards import Card
from earthgpt_jax.datasets.readers.events import Dropped, Entry, Event, ItemType, Native, Part, Rejected
from earthgpt_jax.datasets.readers.native_tree import is_companion, is_image, is_system_file, is_system_folder


def parse(part: Part, card: Card) -> Iterator[Entry | Event]:
    root = part.paths["images"]
    for folder in sorted(path for path in root.iterdir() if path.is_dir() and not is_system_folder(path.name)):
        files = sorted(path for path in folder.iterdir() if not path.is_dir() and not is_system_file(path.name))
        stems = collections.Counter(path.stem for path in files if is_image(path))
        for path in files:
            if is_image(path):
                # `a.jpg` and `a.png` are two images
                name = path.stem if stems[path.stem] == 1 else path.name
                yield Entry(
                    id=f"{part.prefix}{folder.name}/{name}",
                    image=path.relative_to(root).as_posix(),
                    file=part.name(path),
                    split=part.split,
                    label=folder.name,
                )
            else:
                yield from _not_an_image(path, part)


def _not_an_image(path: Path, part: Part) -> Iterator[Event]:
    if is_companion(path):
        yield Native(item_type=ItemType.FILE)
        yield Dropped(item_type=ItemType.FILE, reason=f"not an image: {path.suffix.lower()}")
        return
    yield Native(item_type=ItemType.IMAGE)
    reason = f"unknown image format {path.suffix.lower()!r}"
    yield Rejected(id=path.name, item_type=ItemType.IMAGE, reason=reason, file=part.name(path))
