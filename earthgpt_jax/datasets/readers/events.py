"""What a reader yields beside records, and what a format's parser hands to `assemble`."""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.records import Record, Turn

_T = TypeVar("_T")


class ItemType(enum.StrEnum):
    IMAGE = "image"
    ANNOTATION = "annotation"
    OBJECT = "object"
    QUESTION = "question"
    CAPTION = "caption"

    @property
    def counted_as(self) -> ItemType:
        """An annotation that fails as a whole takes its image along: the two are one unit of the count."""
        return ItemType.IMAGE if self is ItemType.ANNOTATION else self


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rejected:
    """Goes to the quarantine: bad input with its reason."""

    id: str
    item_type: ItemType
    reason: str
    file: str
    count: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Dropped:
    """Left out by a declared rule of the card."""

    item_type: ItemType
    reason: str
    count: int = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Native:
    """How much the native files hold, counted before anything is judged."""

    item_type: ItemType
    count: int = 1


Event = Record | Rejected | Dropped | Native


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawObject:
    """One native object; `polygon` f64[8], pixels, or fractions of the image or square if its entry says so.

    `phrase`: the source's own description of it; "" if it has none.
    """

    name: str
    polygon: np.ndarray | None
    difficult: int = 0
    phrase: str = ""
    problem: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RawTurn:
    """One native question; a `problem` sends it to the quarantine."""

    turn: Turn | None
    problem: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Entry:
    """One native unit: an image's annotation.

    Attributes:
        id: native id, without split.
        image: name of the image file, with or without suffix; "" where images do not ship.
        file: the annotation file, relative to the dataset folder.
        split: native split; "" if unknown.
        size: (width, height) by the annotation; 0 where unknown.
        problem: why the annotation as a whole cannot be used.
        fractions: polygons are fractions of the image.
        squared: polygons are fractions of the square that the image is padded to.
        complete: every object of the card's classes is annotated, so one that is alone of its class is the only one.
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a card's layout, resolved.

    Attributes:
        base: the dataset folder.
        paths: role ("annotations", "images", ...) -> path.
        split: the native split of everything in it; "" if it has none.
        prefix: comes before native ids, where parts would share them.
        only: a pattern; of a file about many images, the part is those whose native path matches.
        label: the class of all its objects, where the files do not say it.
    """

    base: Path
    paths: Mapping[str, Path]
    split: str = ""
    prefix: str = ""
    only: str = ""
    label: str = ""

    def name(self, path: Path) -> str:
        """A file relative to the dataset folder, as messages show it."""
        return path.relative_to(self.base).as_posix()

    def load_json(self, role: str, kind: type[_T]) -> _T:
        """The JSON file of a role; its top must be a `kind`.

        Raises:
            EarthGPTError: unreadable: without its annotation file nothing of a part can be counted.
        """
        return load_json(self.paths[role], kind)

    def files(self, role: str, suffix: str) -> tuple[Path, ...]:
        """The file of a role, or every file with this suffix in and below its folder.

        Raises:
            EarthGPTError: the folder has none.
        """
        path = self.paths[role]
        if not path.is_dir():
            return (path,)
        found = tuple(sorted(below for below in path.rglob(f"*{suffix}") if below.is_file()))
        if not found:
            raise EarthGPTError(f"{path}: expected files ending in {suffix}, found none; see the card's layout")
        return found

    def rows(self, role: str, key: str) -> list[Any]:
        """The list under `key` of a role's JSON object; each row must be an object."""
        rows = self.load_json(role, dict).get(key)
        if not isinstance(rows, list):
            raise EarthGPTError(f"{self.paths[role]}: expected a list under {key!r}, got {type(rows).__name__}")
        for index, row in enumerate(rows):
            if not isinstance(row, dict):
                where = f"{self.paths[role]}: row {index} of {key!r}"
                raise EarthGPTError(f"{where}: expected an object, got {row!r:.60}; fetch the file again")
        return rows

    def texts(self, role: str, suffix: str) -> Iterator[tuple[Path, str]]:
        """(path, text) of every file of a folder with this suffix; bytes that are not UTF-8 are replaced."""
        for path in sorted(self.paths[role].iterdir()):
            if path.suffix.lower() == suffix:
                yield path, read_text(path)


def load_json(path: Path, kind: type[_T]) -> _T:
    """A JSON file; its top must be a `kind`. Bytes that are not UTF-8 are replaced: the texts with them are rejected.

    Raises:
        EarthGPTError: unreadable, or another top.
    """
    try:
        value = json.loads(read_text(path).removeprefix("\ufeff"))
    except ValueError as error:
        raise EarthGPTError(f"{path}: cannot be read as JSON: {error}; fetch the file again") from error
    if not isinstance(value, kind):
        raise EarthGPTError(f"{path}: expected a {kind.__name__}, got {type(value).__name__}")
    return value


def read_text(path: Path) -> str:
    """The text of a file; bytes that are not UTF-8 are replaced.

    Raises:
        EarthGPTError: the file cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise EarthGPTError(f"{path}: cannot be read: {error.strerror}; see to its rights, or remove it") from error


def number(text: object) -> float:
    """A finite float.

    Raises:
        ValueError: saying what came instead; parsers make it an object's `problem`.
    """
    try:
        value = float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        raise ValueError(f"bad number {text!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"bad number {text!r}")
    return value


def whole(value: object) -> int:
    """An integer, 0 where nothing sensible is written: only sizes and flags are read so."""
    try:
        return int(number(value))
    except ValueError:
        return 0


def plain(value: object) -> str:
    """Text, or a number as text; "" for anything else that JSON may hold."""
    return str(value).strip() if isinstance(value, str | int | float) else ""


def identity(value: object) -> int | str | None:
    """A native id as a key; what is no number and no text cannot be one and stands as its text."""
    return value if value is None or isinstance(value, int | str) else repr(value)


def is_image(path: Path) -> bool:
    """By its suffix, in any case."""
    return path.suffix.lower() in {".jpg", ".jpeg", ".png", ".tif", ".tiff", ".bmp"}
