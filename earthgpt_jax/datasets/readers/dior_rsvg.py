"""DIOR-RSVG: VOC XML whose objects have a `description`, and splits that are lists of running object indices.

An index counts the objects of all XML files in the order of their names, from 0 (`data_loader.py` of
ZhanYang-nwpu/RSVG-pytorch). One file too many or too few would shift every later object into another split, so files
and lists have to agree exactly: the lists hold each index of the objects that there are, once.

Objects of one image fall into different splits. A record is an image, so it goes to the strictest of them - test
before val before train - and its objects of the other splits are dropped. Test is whole, and nothing of a test image
is trained on; the official training set has such images.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.cards import SPLITS, Card
from earthgpt_jax.datasets.readers import voc
from earthgpt_jax.datasets.readers.events import Dropped, Entry, Event, ItemType, Native, Part, read_text

_DIALECT = voc.Dialect(box=voc.upright, phrase="description")
_STRICTEST_FIRST = ("test", "val", "train")


def parse(part: Part, card: Card) -> Iterator[Entry | Event]:
    entries = [voc.entry(path, text, _DIALECT, part) for path, text in part.texts("annotations", ".xml")]
    if broken := [entry for entry in entries if entry.problem]:
        raise EarthGPTError(
            f"card {card.name}: {broken[0].file}: {broken[0].problem}; how many objects it holds is not known, so the "
            f"split of no later one is. Fetch the annotations again ({len(broken)} such files)"
        )
    splits = _splits(part, objects=sum(len(entry.objects) for entry in entries), files=len(entries))
    start = 0
    for entry in entries:
        yield from _divided(entry, splits[start : start + len(entry.objects)])
        start += len(entry.objects)


def _divided(entry: Entry, splits: Sequence[str]) -> Iterator[Entry | Event]:
    if not splits:
        yield dataclasses.replace(entry, problem="no objects, so no split")
        return
    split = min(splits, key=_STRICTEST_FIRST.index)
    for other, count in collections.Counter(splits).items():
        if other != split:
            yield Native(item_type=ItemType.OBJECT, count=count)
            yield Dropped(item_type=ItemType.OBJECT, reason=f"of {other}, but its image is of {split}", count=count)
    kept = tuple(item for item, own in zip(entry.objects, splits, strict=True) if own == split)
    yield dataclasses.replace(entry, split=split, objects=kept)


def _splits(part: Part, *, objects: int, files: int) -> list[str]:
    """The split of each object.

    Raises:
        EarthGPTError: the lists are not of these objects.
    """
    found: dict[int, str] = {}
    for split in SPLITS:
        path = part.paths[f"objects_{split}"]
        for line in filter(None, map(str.strip, read_text(path).splitlines())):
            if not (line.isascii() and line.isdigit()):
                raise EarthGPTError(f"{path}: expected the index of an object a line, got {line!r}; fetch it again")
            if int(line) in found:
                raise EarthGPTError(f"{path}: {line} is also in {found[int(line)]}; a split would leak")
            found[int(line)] = split
    if sorted(found) != list(range(objects)):
        raise EarthGPTError(
            f"{part.paths['annotations']}: expected the {len(found)} objects that the lists of splits number"
            f"{f' 0 to {max(found)}' if found else ''}, got {objects} in {files} files. A missing or an extra file "
            "shifts every later object into another split; fetch annotations and lists together"
        )
    return [found[index] for index in range(objects)]
