"""Turn the entries of a parser into records: find the images, decode and validate, map class names, count.

The rules that apply to every format are here, so that a parser only parses.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from earthgpt_jax.boxes import Square, canonical, degeneracy, polygon_to_rect, rect_to_polygon
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.datasets.build.tiling import size_limit
from earthgpt_jax.datasets.cards import Card, Images, UnannotatedImages
from earthgpt_jax.datasets.readers.events import Dropped, Entry, Event, ItemType, Native, RawObject, Rejected
from earthgpt_jax.datasets.readers.native_tree import files_below, is_image
from earthgpt_jax.raster.decode import ImageInfo, examine
from earthgpt_jax.raster.orientation import AS_STORED, swaps_sides
from earthgpt_jax.records import Object, Record, Task, Turn

_OBJECT_TASKS = (Task.GROUNDING, Task.REGION_CAPTION)
_BAD_ENCODING = "wrong encoding: expected UTF-8"


def _is_utf8(*texts: str) -> bool:
    """Return whether the texts were valid UTF-8 in the file; reading replaces invalid bytes."""
    return not any("\ufffd" in text for text in texts)


class ImageFolder:
    """The image files of a folder and its subfolders, found by path, name or stem.

    Attributes:
        files: the images.
        used: images that an entry names.
    """

    def __init__(self, folder: Path):
        self._folder = folder
        self.files = [path for path in files_below(folder) if is_image(path)]
        self._below = {path.relative_to(folder).as_posix(): path for path in self.files}
        self._names: dict[str, list[Path]] = collections.defaultdict(list)
        self._stems: dict[str, list[Path]] = collections.defaultdict(list)
        for path in self.files:
            self._names[path.name.lower()].append(path)
            self._stems[path.stem.lower()].append(path)
        self.used: set[Path] = set()

    def find(self, name: str) -> list[Path]:
        """Return the files that `name` may refer to: by relative path, else by file name, else by stem.

        Where folders tell files of the same name apart, the files whose path ends like `name` are preferred, then those
        in the same case. The result has several files if nothing tells them apart. Files outside the folder are never
        returned.
        """
        name = name.replace("\\", "/")
        if name in self._below:
            return [self._below[name]]
        base = name.rsplit("/", 1)[-1]
        stem = Path(base).stem if is_image(Path(base)) else base  # "a.1" has no image suffix, so it is not image "a"
        files = self._names.get(base.lower()) or self._stems.get(stem.lower(), [])
        if len(files) <= 1:
            return files
        common = {path: self._common_folders(path, name) for path in files}
        files = [path for path in files if common[path] == max(common.values())]
        return [path for path in files if base in (path.name, path.stem)] or files

    def contradicts(self, path: Path, name: str) -> bool:
        """Return whether a file is in another folder than `name` says, so that it may be another image."""
        return (
            "/" in name.replace("\\", "/")
            and path.parent != self._folder
            and not self._common_folders(path, name.replace("\\", "/"))
        )

    def _common_folders(self, path: Path, name: str) -> int:
        """Return how many of the innermost folders of a file and of `name` are equal."""
        pairs = zip(reversed(path.relative_to(self._folder).parts[:-1]), reversed(name.split("/")[:-1]), strict=False)
        return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


@dataclasses.dataclass(frozen=True, kw_only=True)
class PairedEntry:
    """An entry and the image files with its name. It can be validated in any process, without other entries."""

    entry: Entry
    images: tuple[Path, ...] = ()


class ImagePairer:
    """Pair the entries of one dataset with their images, and make the checks that involve several entries."""

    def __init__(self, card: Card, root: Path):
        self._card, self._root = card, root
        self._folders: dict[Path, ImageFolder] = {}
        self._seen: set[str] = set()

    def pair(self, entries: Iterable[Entry | Event], images: Path | None) -> Iterator[PairedEntry | Event]:
        """Pair the entries of one part with the files of its image folder; events of the parser pass through.

        An entry whose folder differs from that of the only file of its name comes last: the file may belong to another
        entry, and the entry's own image may be missing.
        """
        folder = None
        if images is not None:
            folder = self._folders.setdefault(images, self._folders.get(images) or ImageFolder(images))
        doubtful: list[tuple[Entry, Path]] = []
        used: set[Path] = set()
        for entry in entries:
            if not isinstance(entry, Entry):
                yield entry
                continue
            entry = _with_valid_names(entry)
            if not entry.problem:
                if entry.id in self._seen:
                    entry = dataclasses.replace(entry, problem=f"the id {entry.id} occurs twice")
                self._seen.add(entry.id)
            paths = folder.find(entry.image) if folder and entry.image else []
            if folder and len(paths) == 1 and folder.contradicts(paths[0], entry.image):
                doubtful.append((entry, paths[0]))
                continue
            used.update(paths)
            yield PairedEntry(entry=entry, images=tuple(paths))
        claims = collections.Counter(path for _, path in doubtful)
        for entry, path in doubtful:
            own = path not in used and claims[path] == 1
            yield PairedEntry(entry=entry, images=(path,) if own else ())
            used.update((path,) if own else ())
        if folder:
            folder.used |= used

    def unlisted(self) -> Iterator[Event]:
        """Yield events for image files that no entry names; call it after `pair` has consumed all parts."""
        for folder in self._folders.values():
            for path in folder.files:
                if path in folder.used:
                    continue
                yield Native(item_type=ItemType.IMAGE)
                if self._card.unannotated_images is UnannotatedImages.DROP:
                    yield Dropped(item_type=ItemType.IMAGE, reason="no annotation names the image")
                else:
                    file = _printable(str(path.relative_to(self._root)))
                    yield Rejected(
                        id=_printable(path.stem), item_type=ItemType.IMAGE, reason="no annotation names it", file=file
                    )


def _with_valid_names(entry: Entry) -> Entry:
    """Return an entry whose names can be stored; names of files may be bytes that are no UTF-8."""
    if _is_utf8(entry.id, entry.file, entry.image, entry.label):
        return entry
    return dataclasses.replace(
        entry, id=_printable(entry.id), file=_printable(entry.file), image="", label="",
        problem=entry.problem or "a name of a file or class is not UTF-8; rename it",
    )  # fmt: skip


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def validate_entry(
    paired: PairedEntry, card: Card, *, read: Callable[[Path], bytes] = Path.read_bytes
) -> Iterator[Event]:
    """Validate one entry and yield its events: native counts, rejections, drops, and a record if it is valid.

    The result depends only on the entry, its image and the card.

    Args:
        read: reads an image file; raises OSError.
    """
    return _Validator(card, read).events(paired)


def _frame_problem(entry: Entry, info: ImageInfo) -> str:
    """Return why the coordinates of an annotation cannot be those of the displayed image, "" if they can.

    Programs disagree on whether boxes are drawn on the stored or on the displayed pixels of an image with an
    orientation tag. Only the annotated size can tell, where the tag exchanges width and height.
    """
    displayed = (info.width, info.height)
    stored = displayed[::-1] if swaps_sides(info.orientation) else displayed
    turned = info.orientation != AS_STORED
    if turned and entry.objects and (stored == displayed or entry.size != displayed):
        return (
            f"the image has the orientation tag {info.orientation}, and the annotation does not say that its boxes are "
            "of the displayed pixels; store the image without the tag"
        )
    if all(entry.size) and entry.size not in (displayed, stored):
        # The image was resized after annotation, or the annotation belongs to another image.
        annotated, found = ("x".join(map(str, size)) for size in (entry.size, displayed))
        return f"the annotation is of a {annotated} image, the image is {found}"
    return ""


class _Validator:
    def __init__(self, card: Card, read: Callable[[Path], bytes]):
        self._card, self._read = card, read

    def events(self, paired: PairedEntry) -> Iterator[Event]:
        entry = paired.entry
        yield Native(item_type=ItemType.IMAGE)
        items_of = {ItemType.OBJECT: entry.objects, ItemType.QUESTION: entry.turns, ItemType.CAPTION: entry.captions}
        for item_type, items in items_of.items():
            if items:
                yield Native(item_type=item_type, count=len(items))
        item_type, problem, data, info = self._image(entry, paired.images)
        if problem:
            yield Rejected(id=entry.id, item_type=item_type, reason=problem, file=entry.file)
            for item_type, items in items_of.items():
                if items:
                    reason = f"its image or annotation was rejected: {problem}"
                    yield Rejected(id=entry.id, item_type=item_type, reason=reason, file=entry.file, count=len(items))
            return
        objects, object_events = self._objects(entry, info.width, info.height)
        yield from object_events
        reason = ""  # why a record might wrongly say that the image contains no objects
        if not objects and any(isinstance(event, Rejected) for event in object_events):
            reason = "every object of it was rejected"
        elif not objects and entry.orphans:
            reason = f"it has no object, but {entry.orphans} objects of the annotation file have no image"
        if reason:
            yield Rejected(id=entry.id, item_type=ItemType.IMAGE, reason=reason, file=entry.file)
            return
        turns: list[Turn] = []
        for raw in entry.turns:
            if raw.turn is not None and _is_utf8(raw.turn.question, raw.turn.answer):
                turns.append(raw.turn)
            else:
                reason = raw.problem or _BAD_ENCODING
                yield Rejected(id=entry.id, item_type=ItemType.QUESTION, reason=reason, file=entry.file)
        captions = tuple(text.strip() for text in entry.captions if text.strip() and _is_utf8(text))
        for text in entry.captions:
            if not text.strip() or not _is_utf8(text):
                reason = _BAD_ENCODING if text.strip() else "empty"
                yield Rejected(id=entry.id, item_type=ItemType.CAPTION, reason=reason, file=entry.file)
        tasks = self._tasks(turns=turns, captions=captions, objects=objects)
        if not tasks:
            reason = f"nothing valid is left for {', '.join(self._card.tasks)}"
            yield Rejected(id=entry.id, item_type=ItemType.IMAGE, reason=reason, file=entry.file)
            return
        split = self._card.split(entry.id, entry.split)
        yield Record(
            id=f"{self._card.name}/{split}/{entry.id}",
            image=data,
            height=info.height,
            width=info.width,
            sensor=self._card.sensor,
            source=self._card.name,
            split=split,
            tasks=tasks,
            label=self._card.label(entry.label) if entry.label else "",
            turns=tuple(turns),
            references=captions,
            objects=objects,
            complete=entry.complete and not entry.orphans and not object_events,
            stretch=info.stretch,
        )

    def _image(self, entry: Entry, paths: Sequence[Path]) -> tuple[ItemType, str, bytes, ImageInfo]:
        """Return (item type to reject, problem or "", image bytes, size and stretch)."""
        nothing = b"", ImageInfo(width=0, height=0)
        if entry.problem:
            return ItemType.ANNOTATION, entry.problem, *nothing
        if entry.label and not self._card.label(entry.label):
            return ItemType.ANNOTATION, f"unknown class {entry.label!r}", *nothing
        if self._card.images is Images.NONE:
            return ItemType.IMAGE, "", b"", ImageInfo(width=entry.size[0], height=entry.size[1])
        if len(paths) != 1:
            reason = f"several images are called {entry.image!r}" if paths else f"missing image {entry.image!r}"
            return ItemType.IMAGE, reason, *nothing
        try:
            data = self._read(paths[0])
            with size_limit(self._card.tile):
                info = examine(data, self._card.stretch)
        except OSError as error:
            return ItemType.IMAGE, f"image cannot be read: {error.strerror}", *nothing
        except (EarthGPTError, Image.DecompressionBombError) as error:  # huge scenes need `tile` in the card
            return ItemType.IMAGE, str(error), *nothing
        if problem := _frame_problem(entry, info):
            return ItemType.ANNOTATION, problem, *nothing
        return ItemType.IMAGE, "", data, info

    def _objects(self, entry: Entry, width: int, height: int) -> tuple[tuple[Object, ...], list[Event]]:
        """Return the valid objects, and the events of those that are rejected or dropped."""
        kept: list[Object] = []
        events: list[Event] = []
        # Rejected objects count too: a second ship with an invalid box is still a second ship.
        present: collections.Counter[str] = collections.Counter()
        for raw in entry.objects:
            if raw.name in self._card.drop:
                reason = f"class {raw.name}: {self._card.drop[raw.name]}"
                events.append(Dropped(item_type=ItemType.OBJECT, reason=reason))
                continue
            label = self._card.label(raw.name)
            present[label] += 1
            polygon, problem = self._polygon(raw, entry, width, height)
            if not _is_utf8(raw.name, raw.phrase):
                problem = problem or _BAD_ENCODING
            elif not label:
                problem = problem or f"unknown class {raw.name!r}"
            if polygon is None or problem:
                events.append(Rejected(id=entry.id, item_type=ItemType.OBJECT, reason=problem, file=entry.file))
                continue
            difficult = raw.difficult >= self._card.difficult_from
            kept.append(Object(label=label, polygon=polygon, difficult=difficult, phrase=raw.phrase))
        # An object without a phrase gets a template phrase if it is the only one of its class. An object of unknown
        # class may belong to any class, so its presence prevents this.
        with_phrases = [
            dataclasses.replace(item, phrase=f"the only {item.label}")
            if not item.phrase and present[item.label] == 1 and not present[""] and entry.complete
            else item
            for item in kept
        ]
        return tuple(with_phrases), events

    def _polygon(self, raw: RawObject, entry: Entry, width: int, height: int) -> tuple[np.ndarray | None, str]:
        """Return (the polygon in pixels, f64[8], or None; problem or "")."""
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
            if degeneracy(polygon, width=width, height=height):  # the object only touches the border
                return None, "degenerate box: nothing of it is inside the image"
        return polygon, ""

    def _tasks(self, *, turns: Sequence[Turn], captions: Sequence[str], objects: Sequence[Object]) -> tuple[Task, ...]:
        """Return the tasks that the record has ground truth for.

        An image without objects is valid for detection, but one without captions is not valid for captioning.
        """
        phrases = [item.phrase for item in objects if item.phrase]
        truth_of = {Task.CAPTION: captions, Task.VQA: turns, **dict.fromkeys(_OBJECT_TASKS, phrases)}
        tasks = tuple(task for task in self._card.tasks if truth_of.get(task, True))
        if phrases:
            tasks = (*tasks, *(task for task in _OBJECT_TASKS if task not in tasks))
        return tasks
