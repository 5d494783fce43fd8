"""Data types of the readers: the events that a reader yields, and the entries that a parser passes to `assemble`."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.parsing import parse_json
from earthgpt_jax.datasets.readers.native_tree import files_below, is_system_file
from earthgpt_jax.records import Record, Turn

_T = TypeVar("_T")


class ItemType(enum.StrEnum):
    """What a count counts. Builds check native = kept + quarantined + dropped for each type."""

    IMAGE = "image"
    ANNOTATION = "annotation"
    OBJECT = "object"
    QUESTION = "question"
    CAPTION = "caption"
    FILE = "file"  # neither an image nor an annotation

    @property
    def counted_as(self) -> ItemType:
        """The type under which an item is counted: rejecting an image's whole annotation rejects the image."""
        return ItemType.IMAGE if self is ItemType.ANNOTATION else self


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejected:
    """An invalid native item and the reason; it is written to the quarantine file."""

    id: str
    item_type: ItemType
    reason: str
    file: str
    count: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropped:
    """A native item that a rule of the card excludes."""

    item_type: ItemType
    reason: str
    count: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Native:
    """The number of items in the native files, counted before validation."""

    item_type: ItemType
    count: int = 1


Event = Record | Rejected | Dropped | Native


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawObject:
    """One native object.

    Attributes:
        name: native class name.
        polygon: f64[8], the corners in pixels, or as fractions if the entry says so; None if it could not be parsed.
        difficult: native difficulty flag; the card says from which value on an object counts as difficult.
        phrase: the dataset's own description of the object; "" if it has none.
        problem: why the object cannot be used; "" if it can.
    """

    name: str
    polygon: np.ndarray | None
    difficult: int = 0
    phrase: str = ""
    problem: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawTurn:
    """One native question with its answer; with a `problem`, it goes to the quarantine file."""

    turn: Turn | None
    problem: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """The native annotation of one image.

    Attributes:
        id: native id, without the split.
        image: name of the image file, with or without suffix; "" where the dataset has no image files.
        file: the annotation file, relative to the dataset folder.
        split: native split; "" if unknown.
        size: (width, height) in pixels according to the annotation; 0 where unknown.
        problem: why the annotation as a whole cannot be used.
        label: native scene class; "" if there is none.
        fractions: polygons are fractions of the image's width and height.
        squared: polygons are fractions of the square that the image is padded to.
        complete: all objects of the card's classes are annotated, so the only annotated ship is the only ship.
        orphans: number of objects in the annotation file whose image is unknown; any of them may be in this image.
    """

    id: str
    image: str
    file: str
    split: str = ""
    size: tuple[int, int] = (0, 0)
    problem: str = ""
    label: str = ""
    objects: tuple[RawObject, ...] = ()
    turns: tuple[RawTurn, ...] = ()
    captions: tuple[str, ...] = ()
    fractions: bool = False
    squared: bool = False
    complete: bool = True
    orphans: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a card's layout, with absolute paths.

    Attributes:
        base: the dataset folder.
        paths: role ("annotations", "images", ...) -> path.
        split: the native split of all entries; "" if it is not known from the layout.
        prefix: put before native ids that would otherwise occur in several parts.
        only: a regular expression; only images whose native path matches belong to the part.
        label: the class of all objects, for formats that do not write it into the files.
    """

    base: Path
    paths: Mapping[str, Path]
    split: str = ""
    prefix: str = ""
    only: str = ""
    label: str = ""

    def name(self, path: Path) -> str:
        """Return a file's path relative to the dataset folder, as messages show it."""
        return path.relative_to(self.base).as_posix()

    def load_json(self, role: str, expected: type[_T]) -> _T:
        """Return the content of a role's JSON file, whose top level must be of type `expected`.

        Raises:
            EarthGPTError: as for the function `load_json`. It is fatal, because without its annotation file no item
                of a part can be counted.
        """
        return load_json(self.paths[role], expected)

    def files(self, role: str, suffix: str) -> tuple[Path, ...]:
        """Return the file of a role, or all files with this suffix in its folder and subfolders.

        Raises:
            EarthGPTError: the folder contains no such file.
        """
        path = self.paths[role]
        if not path.is_dir():
            return (path,)
        files = tuple(file for file in files_below(path) if file.name.endswith(suffix))
        if not files:
            raise EarthGPTError(f"{path}: expected files ending in {suffix}, found none; see the card's layout")
        return files

    def rows(self, role: str, key: str) -> list[Any]:
        """Return the list of JSON objects under `key` of a role's JSON file.

        Raises:
            EarthGPTError: the file is unreadable, or there is no such list of objects.
        """
        rows = self.load_json(role, dict).get(key)
        if not isinstance(rows, list):
            raise EarthGPTError(f"{self.paths[role]}: expected a list under {key!r}, got {type(rows).__name__}")
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                where = f"{self.paths[role]}: row {index} of {key!r}"
                raise EarthGPTError(f"{where}: expected an object, got {row!r:.60}; download the file again")
        return rows

    def texts(self, role: str, suffix: str) -> Iterator[tuple[Path, str]]:
        """Yield (path, text) of each file with this suffix in a role's folder; invalid UTF-8 bytes are replaced."""
        for path in sorted(self.paths[role].iterdir()):
            if path.suffix.lower() == suffix and not is_system_file(path.name):
                yield path, read_text(path)


_LARGEST = 1e9  # coordinates are stored in float32


def load_json(path: Path, expected: type[_T]) -> _T:
    """Return the content of a JSON file whose top level must be of type `expected`.

    Invalid UTF-8 bytes are replaced; validation later rejects the texts that contain them.

    Raises:
        EarthGPTError: the file is unreadable, or its top level is of another type.
    """
    value = parse_json(read_text(path), where=str(path), advice="download the file again")
    if not isinstance(value, expected):
        raise EarthGPTError(f"{path}: expected a {expected.__name__}, got {type(value).__name__}")
    return value


def read_text(path: Path) -> str:
    """Return the text of a file without a byte order mark, and with invalid UTF-8 bytes replaced.

    Raises:
        EarthGPTError: the file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8-sig", errors="replace")
    except OSError as error:
        raise EarthGPTError(f"{path}: cannot be read: {error.strerror}; check its permissions, or remove it") from error


def parse_number(text: object) -> float:
    """Return `text` as a float that a pixel coordinate, a size or a flag can have.

    Raises:
        ValueError: it is not one. Parsers use the message as an object's `problem`.
    """
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"bad number {str(text)[:40]!r}") from None
    if not abs(value) <= _LARGEST:
        raise ValueError(f"bad number {str(text)[:40]!r}")
    return value


def is_index(text: str) -> bool:
    """Return whether `text` is a whole number that an index can have: not negative, with at most nine ASCII digits."""
    return text.isascii() and text.isdigit() and len(text) <= 9


def int_or_zero(value: object) -> int:
    """Return `value` as an integer, or 0 if it is not a number; for optional sizes and flags."""
    try:
        return int(parse_number(value))
    except ValueError:
        return 0


def text_or_empty(value: object) -> str:
    """Return a JSON string or number as stripped text, and "" for any other JSON value."""
    return str(value).strip() if isinstance(value, str | int | float) else ""


def hashable_id(value: object) -> int | str | None:
    """Return a native JSON id as a dictionary key; lists and objects, which are invalid ids, become their repr."""
    return value if value is None or isinstance(value, int | str) else repr(value)
