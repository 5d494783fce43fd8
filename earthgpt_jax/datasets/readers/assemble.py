"""From a format's entries to records: pairs images, decodes, checks, names classes, counts.

All rules that hold for every format are here, so that a parser only parses.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from earthgpt_jax.boxes import Square, canonical, degeneracy, polygon_to_rect, rect_to_polygon
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.build.tiling import large_images
from earthgpt_jax.datasets.cards import Card, Images, Unlisted
from earthgpt_jax.datasets.readers.events import Dropped, Entry, Event, ItemType, Native, RawObject, Rejected, is_image
from earthgpt_jax.raster.decode import decode
from earthgpt_jax.records import Object, Record, Task, Turn

_OBJECT_TASKS = (Task.GROUNDING, Task.REGION_CAPTION)
_ILLEGIBLE = "wrong encoding: expected UTF-8"


def _legible(*texts: str) -> bool:
    """No byte of a text had to be replaced, because it was not UTF-8."""
    return not any("\ufffd" in text for text in texts)


class ImageFolder:
    """The image files of a folder, found by path, name or stem; class folders below it count too."""

    def __init__(self, folder: Path):
        self.files = sorted(path for path in folder.rglob("*") if is_image(path))
        self._below = {path.relative_to(folder).as_posix(): path for path in self.files}
        self._names: dict[str, list[Path]] = collections.defaultdict(list)
        self._stems: dict[str, list[Path]] = collections.defaultdict(list)
        for path in self.files:
            self._names[path.name.lower()].append(path)
            self._stems[path.stem.lower()].append(path)
        self.used: set[Path] = set()

    def find(self, name: str) -> list[Path]:
        """By the path below the folder, else by file name or stem; nothing outside is ever reached.

        More than one where only folders or suffixes tell files apart, and the annotation names neither.
        """
        base = name.replace("\\", "/").rsplit("/", 1)[-1].lower()
        stem = Path(base).stem if is_image(Path(base)) else base  # "a.1" is a whole stem: not image "a"
        found = [self._below[name]] if name in self._below else self._names.get(base) or self._stems.get(stem, [])
        self.used.update(found)
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedEntry:
    """One entry and the image files that bear its name; all that is needed to judge it, in any process."""

    entry: Entry
    images: tuple[Path, ...] = ()


class ImagePairer:
    """Pairs the entries of one dataset with their images; what depends on other entries is decided here."""

    def __init__(self, card: Card, root: Path):
        self._card, self._root = card, root
        self._folders: dict[Path, ImageFolder] = {}
        self._seen: set[str] = set()

    def units(self, entries: Iterable[Entry | Event], images: Path | None) -> Iterator[PairedEntry | Event]:
        """Entries of one part; what a parser rejected itself passes through."""
        folder = None
        if images is not None:
            folder = self._folders.setdefault(images, self._folders.get(images) or ImageFolder(images))
        for entry in entries:
            if not isinstance(entry, Entry):
                yield entry
                continue
            paths = folder.find(entry.image) if folder and entry.image else []
            if not entry.problem:
                if entry.id in self._seen:
                    entry = dataclasses.replace(entry, problem=f"the id {entry.id} occurs twice")
                self._seen.add(entry.id)
            yield PairedEntry(entry=entry, images=tuple(paths))

    def unlisted(self) -> Iterator[Event]:
        """Image files that no entry of any part named; to be asked last."""
        for folder in self._folders.values():
            for path in folder.files:
                if path in folder.used:
                    continue
                yield Native(item_type=ItemType.IMAGE)
                if self._card.unlisted is Unlisted.DROP:
                    yield Dropped(item_type=ItemType.IMAGE, reason="no annotation names the image")
                else:
                    file = str(path.relative_to(self._root))
                    yield Rejected(id=path.stem, item_type=ItemType.IMAGE, reason="no annotation names it", file=file)


def validate_entry(
    unit: PairedEntry, card: Card, *, read: Callable[[Path], bytes] = Path.read_bytes
) -> Iterator[Event]:
    """Everything that becomes of one unit; depends on nothing but the unit, its image and the card.

    Args:
        read: how an image file is read; raises OSError.
    """
    return _Judge(card, read).events(unit)


class _Judge:
    def __init__(self, card: Card, read: Callable[[Path], bytes]):
        self._card, self._read = card, read

    def events(self, unit: PairedEntry) -> Iterator[Event]:
        entry = unit.entry
        yield Native(item_type=ItemType.IMAGE)
        parts = {ItemType.OBJECT: entry.objects, ItemType.QUESTION: entry.turns, ItemType.CAPTION: entry.captions}
        for item_type, items in parts.items():
            if items:
                yield Native(item_type=item_type, count=len(items))
        item_type, problem, data, (width, height) = self._image(entry, unit.images)
        if problem:
            yield Rejected(id=entry.id, item_type=item_type, reason=problem, file=entry.file)
            for item_type, items in parts.items():
                if items:
                    reason = f"its image or annotation was rejected: {problem}"
                    yield Rejected(id=entry.id, item_type=item_type, reason=reason, file=entry.file, count=len(items))
            return
        objects, complaints = self._objects(entry, width, height)
        yield from complaints
        if not objects and any(isinstance(event, Rejected) for event in complaints):
            # As a record it would say that there is nothing in the image.
            reason = "every object of it was rejected"
            yield Rejected(id=entry.id, item_type=ItemType.IMAGE, reason=reason, file=entry.file)
            return
        turns: list[Turn] = []
        for raw in entry.turns:
            if raw.turn is not None and _legible(raw.turn.question, raw.turn.answer):
                turns.append(raw.turn)
            else:
                reason = raw.problem or _ILLEGIBLE
                yield Rejected(id=entry.id, item_type=ItemType.QUESTION, reason=reason, file=entry.file)
        captions = tuple(text.strip() for text in entry.captions if text.strip() and _legible(text))
        for text in entry.captions:
            if not text.strip() or not _legible(text):
                reason = _ILLEGIBLE if text.strip() else "empty"
                yield Rejected(id=entry.id, item_type=ItemType.CAPTION, reason=reason, file=entry.file)
        tasks = self._tasks(turns=turns, captions=captions, objects=objects)
        if not tasks:
            reason = f"nothing of it is left for {', '.join(self._card.tasks)}"
            yield Rejected(id=entry.id, item_type=ItemType.IMAGE, reason=reason, file=entry.file)
            return
        split = self._card.split(entry.id, entry.split)
        yield Record(
            id=f"{self._card.name}/{split}/{entry.id}",
            image=data,
            height=height,
            width=width,
            sensor=self._card.sensor,
            source=self._card.name,
            split=split,
            tasks=tasks,
            label=self._card.label(entry.label) if entry.label else "",
            turns=tuple(turns),
            references=captions,
            objects=objects,
            complete=entry.complete and not complaints,
        )

    def _image(self, entry: Entry, paths: Sequence[Path]) -> tuple[ItemType, str, bytes, tuple[int, int]]:
        """(kind, problem or "", bytes, (width, height))."""
        nothing = b"", (0, 0)
        if entry.problem:
            return ItemType.ANNOTATION, entry.problem, *nothing
        if entry.label and not self._card.label(entry.label):
            return ItemType.ANNOTATION, f"unknown class {entry.label!r}", *nothing
        if self._card.images is Images.NONE:
            return ItemType.IMAGE, "", b"", entry.size
        if len(paths) != 1:
            reason = f"several images are called {entry.image!r}" if paths else f"missing image {entry.image!r}"
            return ItemType.IMAGE, reason, *nothing
        try:
            data = self._read(paths[0])
            with large_images(self._card.tile):
                height, width = decode(data).shape[:2]
        except OSError as error:
            return ItemType.IMAGE, f"image cannot be read: {error.strerror}", *nothing
        except (EarthGPTError, Image.DecompressionBombError) as error:  # the latter: cut such scenes into tiles
            return ItemType.IMAGE, str(error), *nothing
        if all(entry.size) and entry.size != (width, height):
            # Boxes of an image that was resized, or of another image.
            said = "x".join(map(str, entry.size))
            return ItemType.ANNOTATION, f"the annotation is of a {said} image, the image is {width}x{height}", *nothing
        return ItemType.IMAGE, "", data, (width, height)

    def _objects(self, entry: Entry, width: int, height: int) -> tuple[tuple[Object, ...], list[Event]]:
        kept: list[Object] = []
        events: list[Event] = []
        # Also what is rejected counts here: a second ship with a bad box is still a second ship.
        present: collections.Counter[str] = collections.Counter()
        for raw in entry.objects:
            if raw.name in self._card.drop:
                reason = f"class {raw.name}: {self._card.drop[raw.name]}"
                events.append(Dropped(item_type=ItemType.OBJECT, reason=reason))
                continue
            label = self._card.label(raw.name)
            present[label] += 1
            polygon, problem = self._polygon(raw, entry, width, height)
            if not _legible(raw.name, raw.phrase):
                problem = problem or _ILLEGIBLE
            elif not label:
                problem = problem or f"unknown class {raw.name!r}"
            if polygon is None or problem:
                events.append(Rejected(id=entry.id, item_type=ItemType.OBJECT, reason=problem, file=entry.file))
                continue
            difficult = raw.difficult >= self._card.difficult_from
            kept.append(Object(label=label, polygon=polygon, difficult=difficult, phrase=raw.phrase))
        # Where nobody wrote a phrase, it is template text, true because the object is alone of its class.
        # An object of unknown class might be of any, so then nothing is said.
        named = [
            dataclasses.replace(item, phrase=f"the only {item.label}")
            if not item.phrase and present[item.label] == 1 and not present[""] and entry.complete
            else item
            for item in kept
        ]
        return tuple(named), events

    def _polygon(self, raw: RawObject, entry: Entry, width: int, height: int) -> tuple[np.ndarray | None, str]:
        if raw.problem or raw.polygon is None:
            return None, raw.problem or "no box"
        points = np.asarray(raw.polygon, np.float64)
        if entry.squared:
            points = Square(width, height).to_pixels(points)
        elif entry.fractions:
            points = points * np.array([width, height] * 4)
        reason = degeneracy(points, width=width, height=height)
        if reason:
            return None, f"degenerate box: {reason}"
        polygon = canonical(points)
        if Task.OBB not in self._card.tasks:
            x0, y0, x1, y1 = polygon_to_rect(polygon)
            if width and height:
                x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
            polygon = rect_to_polygon(x0, y0, x1, y1)
            if degeneracy(polygon, width=width, height=height):  # it only touched the border
                return None, "degenerate box: nothing of it is inside of the image"
        return polygon, ""

    def _tasks(self, *, turns: Sequence[Turn], captions: Sequence[str], objects: Sequence[Object]) -> tuple[Task, ...]:
        """What the truth is good for: no boxes is a truth too, no caption or question is none."""
        phrases = [item.phrase for item in objects if item.phrase]
        truth = {Task.CAPTION: captions, Task.VQA: turns, **dict.fromkeys(_OBJECT_TASKS, phrases)}
        tasks = tuple(task for task in self._card.tasks if truth.get(task, True))
        if phrases:
            tasks = (*tasks, *(task for task in _OBJECT_TASKS if task not in tasks))
        return tasks
