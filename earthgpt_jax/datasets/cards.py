"""Read data cards, `data/sources/<name>.yaml`: one YAML file describes one dataset and how its files are read.

No other module has rules for a particular dataset. See docs/guides/data.md for the entries of a card.
"""

from __future__ import annotations

import dataclasses
import enum
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NotRequired, TypedDict

from earthgpt_jax.common import files, typed
from earthgpt_jax.common.digests import sha256_int
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean
from earthgpt_jax.common.parsing import parse_yaml
from earthgpt_jax.common.resources import data_path
from earthgpt_jax.raster.policy import DEFAULT, StretchPolicy
from earthgpt_jax.records import Sensor, Task

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {
    "restval": "train",
    "training": "train",
    "valid": "val",
    "validation": "val",
    "testing": "test",
}
# Native ids are hashed onto the unit interval. For each split, the upper end of its part of the interval.
_SPLIT_ENDS = {
    "hash": (("train", 0.7), ("val", 0.8), ("test", 1.0)),
    "name": (("train", 7 / 8), ("val", 1.0)),  # of the ids that do not match the pattern for test
}


class Images(enum.StrEnum):
    """Whether image files are distributed with the annotations."""

    FILES = "files"
    NONE = "none"


class UnannotatedImages(enum.StrEnum):
    """What to do with an image file that no annotation refers to."""

    QUARANTINE = "quarantine"
    DROP = "drop"


class SegmentationBox(enum.StrEnum):
    """The box of a COCO annotation: its `bbox`, or the smallest oriented box around its segmentation."""

    AXIS_ALIGNED = "axis_aligned"
    ORIENTED = "oriented"


class SplitRule(enum.StrEnum):
    """How records are assigned to splits.

    `hash`: by a hash of the native id, 70 % train, 10 % val, 20 % test.
    `native`: as the dataset itself says.
    `name`: native ids that match a pattern are test; a hash divides the others into train and val.
    """

    HASH = "hash"
    NATIVE = "native"
    NAME = "name"


class Role(enum.StrEnum):
    """What EarthGPT uses a dataset for: training (a source of MMRS-1M), zero-shot evaluation, or neither (`own`)."""

    TRAINED = "trained"
    ZERO_SHOT = "zero_shot"
    OWN = "own"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
    """How a build cuts large scenes into tiles.

    Attributes:
        size: side of a tile in pixels; an image that is not larger than this in either direction is not cut.
        overlap: overlap of neighbouring tiles in pixels.
        keep: minimum share of an object's area inside a tile for it to be kept there, clipped to the tile.
        ignore: minimum share for it to be kept, but marked difficult; with a smaller share, the object is removed.
    """

    size: int
    overlap: int = 0
    keep: float = 0.7
    ignore: float = 0.3


@dataclasses.dataclass(frozen=True)
class Card:
    """One dataset: what it contains and how its files are read.

    Attributes:
        folder: the dataset's folder, relative to the folder of all native datasets.
        parts: the layout, a list of parts. Each maps roles ("annotations", "images", ...) to paths below `folder`;
            "split" is the native split of the part, "prefix" is put in front of its native ids.
        classes: canonical labels; () for a dataset without classes.
        synonyms: canonical labels by native class name.
        drop: native class names to drop, each with the reason.
        difficult_from: the native value of `difficult` from which an object counts as difficult.
        open_classes: accept class names that `classes` does not list, because the list may be incomplete.
        fields: field names by role, for formats with configurable fields (qa_rows).
        tile: how large scenes are cut into tiles; None keeps them whole.
        stretch: how images become 8 bits.
        role: what EarthGPT uses the dataset for.
        expected: size of the complete native dataset: a number of `images`, `objects`, `questions` or `captions`, or
            the number of images of a split, under its name.
        obtain: where to download the native files.
        unverified: entries of this card that were never compared with the native files, such as "layout" or
            "expected.objects".
    """

    name: str
    title: str
    sensor: Sensor
    tasks: tuple[Task, ...]
    format: str
    folder: str
    parts: tuple[Mapping[str, str], ...]
    licence: str
    classes: tuple[str, ...] = ()
    synonyms: Mapping[str, str] = dataclasses.field(default_factory=dict)
    drop: Mapping[str, str] = dataclasses.field(default_factory=dict)
    images: Images = Images.FILES
    unannotated_images: UnannotatedImages = UnannotatedImages.QUARANTINE
    segmentation_box: SegmentationBox = SegmentationBox.AXIS_ALIGNED
    split_rule: SplitRule = SplitRule.HASH
    test_pattern: str = ""
    difficult_from: int = 1
    open_classes: bool = False
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tile: Tile | None = None
    stretch: StretchPolicy = DEFAULT
    role: Role = Role.OWN
    expected: Mapping[str, int] = dataclasses.field(default_factory=dict)
    obtain: str = ""
    unverified: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    variants: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def label(self, native: str) -> str:
        """Return the canonical label of a native class name, "" if the card does not have it."""
        if native in self.synonyms:
            return self.synonyms[native]
        label = re.sub(r"[\s_-]+", " ", native).strip().lower()
        return label if self.open_classes or label in self.classes else ""

    def split(self, native_id: str, native_split: str) -> str:
        """Return the split of a record.

        Raises:
            EarthGPTError: the card says `split: {rule: native}`, and the record's native split is missing or unknown.
        """
        if self.split_rule is SplitRule.NATIVE:
            split = _SPLIT_NAMES.get(native_split, native_split)
            if split not in SPLITS:
                raise EarthGPTError(
                    f"card {self.name}: {native_id}: expected a native split of {', '.join(SPLITS)}, "
                    f"got {native_split!r}; correct the annotation or the card"
                )
            return split
        if self.split_rule is SplitRule.NAME and re.search(self.test_pattern, native_id):
            return "test"
        return hash_split(native_id, rule=self.split_rule)

    def variant(self, name: str) -> Card:
        """Return the card with a variant's entries in place of its own: another native format, the official split."""
        if name not in self.variants:
            raise EarthGPTError(f"card {self.name}: no variant {name!r}; it has {', '.join(self.variants) or 'none'}")
        entries = typed.check(_CardFile, self.variants[name], where=f"card {self.name}/{name}", partial=True)
        return dataclasses.replace(self, **_fields(entries, where=f"card {self.name}/{name}"))

    def describe(self) -> dict[str, Any]:
        """Return the card as a plain dict, for the manifest. Cards that read files in the same way have equal dicts."""
        return dataclasses.asdict(self)


class _Split(TypedDict):
    rule: SplitRule
    test: NotRequired[str | int]


class _Tile(TypedDict):
    size: int
    overlap: NotRequired[int]
    keep: NotRequired[float]
    ignore: NotRequired[float]


_Name = str | int | float | bool  # YAML reads a name such as 747 or `no` as another type


class _CardFile(TypedDict):
    """The entries of a card file; a variant has some of them."""

    name: str
    title: str
    sensor: Sensor
    tasks: tuple[Task, ...]
    format: str
    folder: str
    layout: dict[str, str] | tuple[dict[str, str], ...]
    licence: str
    classes: NotRequired[tuple[_Name, ...]]
    synonyms: NotRequired[dict[str, _Name]]
    drop: NotRequired[dict[str, _Name]]
    images: NotRequired[Images]
    unannotated_images: NotRequired[UnannotatedImages]
    segmentation_box: NotRequired[SegmentationBox]
    split: NotRequired[_Split]
    difficult_from: NotRequired[int]
    open_classes: NotRequired[bool]
    fields: NotRequired[dict[str, _Name]]
    tile: NotRequired[_Tile | None]
    stretch: NotRequired[dict[str, Any]]
    role: NotRequired[Role]
    expected: NotRequired[dict[str, int]]
    obtain: NotRequired[str]
    unverified: NotRequired[tuple[str, ...]]
    notes: NotRequired[tuple[str, ...]]
    variants: NotRequired[dict[str, dict[str, Any]]]


_ENTRIES = frozenset(typing.get_type_hints(_CardFile))
EXPECTED_COUNTS = ("images", "objects", "questions", "captions", *SPLITS)


def _fields(entries: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    """Return the entries of a card file, or of a variant in it, as arguments of `Card`.

    Raises:
        EarthGPTError: an entry has an impossible value; `where` names the card.
    """
    values = dict(entries)
    if "layout" in values:
        layout = values.pop("layout")
        values["parts"] = layout if isinstance(layout, tuple) else (layout,)
    if "split" in values:
        split = values.pop("split")
        values["split_rule"] = split["rule"]
        values["test_pattern"] = _pattern(str(split.get("test", "")), where=where)
    if values.get("tile"):
        values["tile"] = _tile(values["tile"], where=where)
    if "stretch" in values:
        values["stretch"] = StretchPolicy.of(values["stretch"], where=f"{where}: stretch", sensor=values.get("sensor"))
    if stray := [name for name in values.get("expected", ()) if name not in EXPECTED_COUNTS]:
        raise EarthGPTError(f"{where}: expected: {stray[0]}: expected one of {', '.join(EXPECTED_COUNTS)}")
    if stray := [name for name in values.get("unverified", ()) if name.split(".")[0] not in _ENTRIES]:
        raise EarthGPTError(f"{where}: `unverified` names {', '.join(stray)}; expected entries of a card")
    for name in values.get("name", "x"), values.get("folder", "x"):
        _check_below(name, where=where)
    if "classes" in values:
        values["classes"] = tuple(map(str, values["classes"]))
    for key in ("synonyms", "drop", "fields"):
        if key in values:
            values[key] = {name: str(text) for name, text in values[key].items()}
    return values


def _tile(values: Mapping[str, Any], *, where: str) -> Tile:
    tile = Tile(**values)
    if not 0 <= tile.overlap < tile.size or not 0 <= tile.ignore <= tile.keep <= 1:
        raise EarthGPTError(
            f"{where}: tile: expected 0 <= overlap < size and 0 <= ignore <= keep <= 1, got {dict(values)}"
        )
    return tile


def _pattern(text: str, *, where: str) -> str:
    try:
        re.compile(text)
    except (re.error, OverflowError, RecursionError) as error:
        raise EarthGPTError(f"{where}: split.test: expected a regular expression, got {text!r}: {error}") from error
    return text


def _check_below(name: str, *, where: str) -> None:
    """Refuse a path that leads out of the folder it is relative to."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise EarthGPTError(f"{where}: expected a name or a path below the folder of all datasets, got {name!r}")


def hash_split(native_id: str, *, rule: SplitRule = SplitRule.HASH) -> str:
    """Return the split that the hash of an id assigns it to, under a rule that uses hashes."""
    fraction = sha256_int(native_id, size=8, byteorder="big") / 2**64
    return next(split for split, end in _SPLIT_ENDS[rule] if fraction < end)


def load_card(path: Path) -> Card:
    """Read one card file.

    Raises:
        EarthGPTError: the file is not YAML, an entry is missing or unknown, or a synonym leads to an unknown class.
    """
    where = f"card {path}"
    try:
        content = path.read_bytes()
    except OSError as error:
        raise EarthGPTError(f"{where}: cannot be read: {error.strerror}") from error
    values = typed.check(_CardFile, parse_yaml(content, where=where), where=where)
    card = Card(**_fields(values, where=where))
    stray = sorted(set(card.synonyms.values()) - set(card.classes))
    if stray:
        raise EarthGPTError(f"{where}: synonyms lead to {', '.join(stray)}, which `classes` does not list")
    return card


def load_cards() -> dict[str, Card]:
    """Return all cards that come with the package, by name."""
    found = [load_card(path) for path in sorted(data_path("sources").glob("*.yaml"))]
    return {card.name: card for card in found}


def select_cards(names: Sequence[str]) -> tuple[Card, ...]:
    """Return the cards with these names, in this order.

    Args:
        names: each the name of a card that comes with the package (`dior`), a name with a variant (`dior:rotated`), or
            the path of a card file (`mine/port.yaml`).

    Raises:
        EarthGPTError: there is no such card or variant, or a card file has the name of a card of the package.
    """
    known = load_cards()
    unknown = [name for name in names if name.partition(":")[0] not in known and not _is_file(name)]
    if unknown:
        raise EarthGPTError(
            f"no card for {', '.join(unknown)}{did_you_mean(unknown, known)} Cards: {', '.join(known)}. "
            "To use a card of your own, give the path of its file, which ends in .yaml"
        )
    chosen = tuple(load_card(files.path(name)) if _is_file(name) else _known(name, known) for name in names)
    for name, card in zip(names, chosen, strict=True):
        if _is_file(name) and card.name in known:
            raise EarthGPTError(
                f"card {name}: expected a new name, got {card.name!r}, which another card has; choose another `name`"
            )
    return chosen


def _known(name: str, known: Mapping[str, Card]) -> Card:
    name, _, variant = name.partition(":")
    return known[name].variant(variant) if variant else known[name]


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))
