"""From a format's entries to records: pairs images, decodes, checks, names classes, counts.

All rules that hold for every format are here, so that a parser only parses.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.geometry import canonical, degenerate, polygon_to_rect, rect_to_polygon
from earthgpt_jax.input.images import decode
from earthgpt_jax.mmrs.cards import Card, Images, Unlisted
from earthgpt_jax.mmrs.readers.events import Dropped, Entry, Event, Kind, Native, RawObject, Rejected, is_image
from earthgpt_jax.mmrs.record import Object, Record, Task

_OBJECT_TASKS = (Task.GROUNDING, Task.REGION_CAPTION)


class ImageFolder:
    """The image files of a folder, found by name or by stem; class folders below it count too."""

    def __init__(self, folder: Path):
        self.files = sorted(path for path in folder.rglob("*") if is_image(path))
        self._below = {path.relative_to(folder).as_posix(): path for path in self.files}
        self._names = {path.name.lower(): path for path in reversed(self.files)}
        self._stems = {path.stem.lower(): path for path in reversed(self.files)}
        self.used: set[Path] = set()

    def find(self, name: str) -> Path | None:
        """By the path below the folder, else by file name or stem; nothing outside is ever reached."""
        if name in self._below:
            self.used.add(self._below[name])
            return self._below[name]
        base = name.replace("\\", "/").rsplit("/", 1)[-1].lower()
        path = self._names.get(base) or self._stems.get(base) or self._stems.get(Path(base).stem)
        if path:
            self.used.add(path)
        return path


class Assembler:
    """Judges the entries of one dataset."""

    def __init__(self, card: Card, root: Path):
        self._card, self._root = card, root
        self._folders: dict[Path, ImageFolder] = {}
        self._seen: set[str] = set()

    def records(self, entries: Iterable[Entry | Event], images: Path | None) -> Iterator[Event]:
        """Entries of one part; what a parser rejected itself passes through."""
        folder = None
        if images is not None:
            folder = self._folders.setdefault(images, self._folders.get(images) or ImageFolder(images))
        for entry in entries:
            if isinstance(entry, Entry):
                yield from self._judge(entry, folder)
            else:
                yield entry

    def unlisted(self) -> Iterator[Event]:
        """Image files that no entry of any part named; to be asked last."""
        for folder in self._folders.values():
            for path in folder.files:
                if path in folder.used:
                    continue
                yield Native(kind=Kind.IMAGE)
                if self._card.unlisted is Unlisted.DROP:
                    yield Dropped(kind=Kind.IMAGE, reason="no annotation names the image")
                else:
                    file = str(path.relative_to(self._root))
                    yield Rejected(id=path.stem, kind=Kind.IMAGE, reason="no annotation names it", file=file)

    def _judge(self, entry: Entry, folder: ImageFolder | None) -> Iterator[Event]:
        yield Native(kind=Kind.IMAGE)
        parts = {Kind.OBJECT: entry.objects, Kind.QUESTION: entry.turns, Kind.CAPTION: entry.captions}
        for kind, items in parts.items():
            if items:
                yield Native(kind=kind, count=len(items))
        kind, problem, data, (width, height) = self._image(entry, folder)
        if problem:
            yield Rejected(id=entry.id, kind=kind, reason=problem, file=entry.file)
            for kind, items in parts.items():
                if items:
                    reason = f"its image or annotation was rejected: {problem}"
                    yield Rejected(id=entry.id, kind=kind, reason=reason, file=entry.file, count=len(items))
            return
        objects, complaints = self._objects(entry, width, height)
        yield from complaints
        if not objects and any(isinstance(event, Rejected) for event in complaints):
            # As a record it would say that there is nothing in the image.
            reason = "every object of it was rejected"
            yield Rejected(id=entry.id, kind=Kind.IMAGE, reason=reason, file=entry.file)
            return
        turns = [raw.turn for raw in entry.turns if raw.turn is not None]
        for raw in entry.turns:
            if raw.turn is None:
                yield Rejected(id=entry.id, kind=Kind.QUESTION, reason=raw.problem, file=entry.file)
        captions = tuple(text.strip() for text in entry.captions if text.strip())
        for _ in range(len(entry.captions) - len(captions)):
            yield Rejected(id=entry.id, kind=Kind.CAPTION, reason="empty", file=entry.file)
        split = self._card.split(entry.id, entry.split)
        yield Record(
            id=f"{self._card.name}/{split}/{entry.id}",
            image=data,
            height=height,
            width=width,
            sensor=self._card.sensor,
            source=self._card.name,
            split=split,
            tasks=self._tasks(entry, objects),
            label=self._card.label(entry.label) if entry.label else "",
            turns=tuple(turns),
            references=captions,
            objects=objects,
        )

    def _image(self, entry: Entry, folder: ImageFolder | None) -> tuple[Kind, str, bytes, tuple[int, int]]:
        """(kind, problem or "", bytes, (width, height))."""
        nothing = b"", (0, 0)
        path = folder.find(entry.image) if folder and entry.image else None
        if entry.problem:
            return Kind.ANNOTATION, entry.problem, *nothing
        if entry.id in self._seen:
            return Kind.ANNOTATION, f"the id {entry.id} occurs twice", *nothing
        self._seen.add(entry.id)
        if entry.label and not self._card.label(entry.label):
            return Kind.ANNOTATION, f"unknown class {entry.label!r}", *nothing
        if self._card.images is Images.NONE:
            return Kind.IMAGE, "", b"", entry.size
        if path is None:
            return Kind.IMAGE, f"missing image {entry.image!r}", *nothing
        data = path.read_bytes()
        try:
            height, width = decode(data).shape[:2]
        except EarthGPTError as error:
            return Kind.IMAGE, str(error), *nothing
        return Kind.IMAGE, "", data, (width, height)

    def _objects(self, entry: Entry, width: int, height: int) -> tuple[tuple[Object, ...], list[Event]]:
        kept: list[Object] = []
        events: list[Event] = []
        # Also what is rejected counts here: a second ship with a bad box is still a second ship.
        present: collections.Counter[str] = collections.Counter()
        for raw in entry.objects:
            if raw.name in self._card.drop:
                reason = f"class {raw.name}: {self._card.drop[raw.name]}"
                events.append(Dropped(kind=Kind.OBJECT, reason=reason))
                continue
            label = self._card.label(raw.name)
            present[label] += 1
            polygon, problem = self._polygon(raw, entry, width, height)
            if polygon is None or not label:
                problem = problem or f"unknown class {raw.name!r}"
                events.append(Rejected(id=entry.id, kind=Kind.OBJECT, reason=problem, file=entry.file))
                continue
            difficult = raw.difficult >= self._card.difficult_from
            kept.append(Object(label=label, polygon=polygon, difficult=difficult))
        # Nobody wrote these phrases: they are template text, true because the object is alone of its class.
        # An object of unknown class might be of any, so then nothing is said.
        named = [
            dataclasses.replace(item, phrase=f"the only {item.label}")
            if present[item.label] == 1 and not present[""]
            else item
            for item in kept
        ]
        return tuple(named), events

    def _polygon(self, raw: RawObject, entry: Entry, width: int, height: int) -> tuple[np.ndarray | None, str]:
        if raw.problem or raw.polygon is None:
            return None, raw.problem or "no box"
        points = np.asarray(raw.polygon, np.float64)
        if entry.fractions:
            points = points * np.array([width, height] * 4)
        reason = degenerate(points, width=width, height=height)
        if reason:
            return None, f"degenerate box: {reason}"
        polygon = canonical(points)
        if Task.OBB not in self._card.tasks:
            x0, y0, x1, y1 = polygon_to_rect(polygon)
            if width and height:
                x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
            polygon = rect_to_polygon(x0, y0, x1, y1)
            if degenerate(polygon, width=width, height=height):  # it only touched the border
                return None, "degenerate box: nothing of it is inside of the image"
        return polygon, ""

    def _tasks(self, entry: Entry, objects: tuple[Object, ...]) -> tuple[Task, ...]:
        tasks = self._card.tasks
        if any(item.phrase for item in objects):
            tasks = (*tasks, *(task for task in _OBJECT_TASKS if task not in tasks))
        return tasks
