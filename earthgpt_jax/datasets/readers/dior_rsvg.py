"""Read DIOR-RSVG: VOC XML with a `description` per object, and split files that list object indices.

An index numbers the objects of all XML files, sorted by file name, from 0 (`data_loader.py` of
ZhanYang-nwpu/RSVG-pytorch). One extra or missing file would shift every later object into another split. The reader
therefore requires that the lists contain each object index exactly once.

The official splits divide objects, so one image may occur in several splits. A record is one image: it goes to the
strictest of its splits (test before val before train), and its objects of the other splits are dropped. This keeps
every test object and never trains on a test image, which the official training set does.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import SPLITS, Card
from earthgpt_jax.datasets.readers import voc
from earthgpt_jax.datasets.readers.events import Dropped, Entry, Event, ItemType, Native, Part, is_index, read_text

_DIALECT = voc.Dialect(box=voc.horizontal_box, phrase="description")
_STRICTEST_FIRST = ("test", "val", "train")


def parse(part: Part, card: Card) -> Iterator[Entry | Event]:
    entries = [voc.entry(path, text, _DIALECT, part) for path, text in part.texts("annotations", ".xml")]
    if broken := [entry for entry in entries if entry.problem]:
        raise EarthGPTError(
            f"card {card.name}: {broken[0].file}: {broken[0].problem}; the number of its objects is unknown, and "
            f"with it the split of every later object. Download the annotations again (damaged files: {len(broken)})"
        )
    splits = _splits(part, objects=sum(len(entry.objects) for entry in entries), files=len(entries))
    start = 0
    for entry in entries:
        yield from _single_split(entry, splits[start : start + len(entry.objects)])
        start += len(entry.objects)


def _single_split(entry: Entry, splits: Sequence[str]) -> Iterator[Entry | Event]:
    """Assign an image to the strictest split of its objects, and drop its objects of other splits."""
    if not splits:
        yield dataclasses.replace(entry, problem="no objects, so no split")
        return
    split = min(splits, key=_STRICTEST_FIRST.index)
    for other, count in collections.Counter(splits).items():
        if other != split:
            yield Native(item_type=ItemType.OBJECT, count=count)
            yield Dropped(item_type=ItemType.OBJECT, reason=f"of {other}, but its image is of {split}", count=count)
    kept = tuple(item for item, its_split in zip(entry.objects, splits, strict=True) if its_split == split)
    yield dataclasses.replace(entry, split=split, objects=kept)


def _splits(part: Part, *, objects: int, files: int) -> list[str]:
    """Return the split of each object.

    Raises:
        EarthGPTError: the lists do not contain each object index exactly once.
    """
    split_of: dict[int, str] = {}
    for split in SPLITS:
        path = part.paths[f"objects_{split}"]
        for line in filter(None, map(str.strip, read_text(path).splitlines())):
            if not is_index(line):
                raise EarthGPTError(f"{path}: expected one object index per line, got {line!r}; download it again")
            if int(line) in split_of:
                raise EarthGPTError(f"{path}: {line} is also in {split_of[int(line)]}; the splits would overlap")
            split_of[int(line)] = split
    if sorted(split_of) != list(range(objects)):
        raise EarthGPTError(
            f"{part.paths['annotations']}: expected the {len(split_of)} objects of the split lists"
            f"{f', numbered 0 to {max(split_of)}' if split_of else ''}; got {objects} in {files} files. A missing or "
            "extra file shifts every later object into another split; download annotations and lists together"
        )
    return [split_of[index] for index in range(objects)]
