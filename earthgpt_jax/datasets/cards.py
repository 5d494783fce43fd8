"""Data cards: one YAML file a dataset, `data/sources/<name>.yaml`; the only place that knows a dataset's rules."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from earthgpt_jax.common.digests import sha256_int
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean
from earthgpt_jax.common.resources import data_path
from earthgpt_jax.records import Sensor, Task

SPLITS = ("train", "val", "test")
_SPLIT_NAMES = {
    "restval": "train",
    "training": "train",
    "valid": "val",
    "validation": "val",
    "testing": "test",
}
_SHARES = (("train", 0.7), ("val", 0.8), ("test", 1.0))  # upper ends of the hash fractions


class Images(enum.StrEnum):
    """Whether image files come with the annotations."""

    FILES = "files"
    NONE = "none"


class Unlisted(enum.StrEnum):
    """What becomes of an image file that no annotation names."""

    QUARANTINE = "quarantine"
    DROP = "drop"


class Orientation(enum.StrEnum):
    """How a segmentation becomes a box."""

    UPRIGHT = "upright"
    ROTATED = "rotated"


class SplitRule(enum.StrEnum):
    """`hash`: of the native id; `native`: the dataset's own; `name`: native ids that match a pattern are test."""

    HASH = "hash"
    NATIVE = "native"
    NAME = "name"


class Role(enum.StrEnum):
    """What a dataset is for in EarthGPT: a source of MMRS-1M, a zero-shot benchmark, or neither."""

    TRAINED = "trained"
    ZERO_SHOT = "zero_shot"
    OWN = "own"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tile:
    """How large scenes are cut when they are built.

    Attributes:
        size: side of a tile, pixels; an image no larger in both directions is not cut.
        overlap: of neighbouring tiles, pixels.
        keep: an object with at least this share of its area in a tile is kept there, cut at the border.
        ignore: one with at least this share, but less than `keep`, is kept as difficult; with less, it is left out.
    """

    size: int
    overlap: int = 0
    keep: float = 0.7
    ignore: float = 0.3


@dataclasses.dataclass(frozen=True)
class Card:
    """What is known of one dataset, and how its files are read.

    Attributes:
        folder: where it lies under a root of many datasets.
        parts: layouts, each a mapping of role ("annotations", "images", ...) to a path below the folder;
            `split` is the part's native split, `prefix` comes before its native ids.
        classes: canonical labels; () where a dataset has no classes.
        synonyms: native name -> canonical label.
        drop: native class name -> the declared reason for leaving it out.
        difficult_from: a native `difficult` of at least this marks an object difficult.
        open_classes: a native class name that is not listed is a class too: the list is not known for certain.
        fields: role -> name of a field, where a format leaves its fields to the card.
        tile: how its scenes are cut; None: they are not.
        role: what EarthGPT uses it for.
        expected: how much the complete native set holds: kind of count (`images`, `objects`, `questions`,
            `captions`, or a split's name for its images) -> number.
        obtain: where the native files are to be had.
        unverified: entries of this card that no native file has confirmed, as `layout` or `expected.objects`.
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
    unlisted: Unlisted = Unlisted.QUARANTINE
    orientation: Orientation = Orientation.UPRIGHT
    split_rule: SplitRule = SplitRule.HASH
    test_pattern: str = ""
    difficult_from: int = 1
    open_classes: bool = False
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    tile: Tile | None = None
    role: Role = Role.OWN
    expected: Mapping[str, int] = dataclasses.field(default_factory=dict)
    obtain: str = ""
    unverified: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    variants: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)

    def label(self, native: str) -> str:
        """The canonical label of a native class name; "" if the card does not know it."""
        if native in self.synonyms:
            return self.synonyms[native]
        label = re.sub(r"[\s_-]+", " ", native).strip().lower()
        return label if self.open_classes or label in self.classes else ""

    def split(self, native_id: str, native_split: str) -> str:
        """The split of a record.

        Raises:
            EarthGPTError: the card follows the native split, and there is none or an unknown one.
        """
        if self.split_rule is SplitRule.NATIVE:
            split = _SPLIT_NAMES.get(native_split, native_split)
            if split not in SPLITS:
                raise EarthGPTError(
                    f"card {self.name}: {native_id}: expected a native split of {', '.join(SPLITS)}, "
                    f"got {native_split!r}; mend the annotation or the card"
                )
            return split
        if self.split_rule is SplitRule.NAME and re.search(self.test_pattern, native_id):
            return "test"
        shares = _SHARES if self.split_rule is SplitRule.HASH else (("train", 7 / 8), ("val", 1.0))
        place = sha256_int(native_id, size=8, byteorder="big") / 2**64
        return next(split for split, end in shares if place < end)

    def variant(self, name: str) -> Card:
        """The same dataset read from another of its native formats."""
        if name not in self.variants:
            raise EarthGPTError(f"card {self.name}: no variant {name!r}; it has {', '.join(self.variants) or 'none'}")
        return dataclasses.replace(self, **_fields(self.variants[name], where=f"card {self.name}/{name}"))

    def describe(self) -> dict[str, Any]:
        """A plain dict for manifests; two cards that read alike are equal here."""
        return dataclasses.asdict(self)


_ENUMS = {
    "sensor": Sensor,
    "images": Images,
    "unlisted": Unlisted,
    "orientation": Orientation,
    "split_rule": SplitRule,
    "role": Role,
}
EXPECTED = ("images", "objects", "questions", "captions", *SPLITS)


def _fields(values: Mapping[str, Any], *, where: str) -> dict[str, Any]:
    known = {field.name for field in dataclasses.fields(Card)}
    values = dict(values)
    if "layout" in values:
        layout = values.pop("layout")
        values["parts"] = layout if isinstance(layout, list) else [layout]
    if "split" in values:
        rule = values.pop("split")
        values["split_rule"] = rule["rule"]
        values["test_pattern"] = str(rule.get("test", ""))
    unknown = sorted(set(values) - known)
    if unknown:
        raise EarthGPTError(f"{where}: unknown entries {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    try:
        for key, enumeration in _ENUMS.items():
            if key in values:
                values[key] = enumeration(values[key])
        if "tasks" in values:
            values["tasks"] = tuple(Task(task) for task in values["tasks"])
    except ValueError as error:
        raise EarthGPTError(f"{where}: {error}; correct the card") from error
    if values.get("tile"):
        values["tile"] = _tile(values["tile"], where=where)
    if "expected" in values:
        values["expected"] = _expected(values["expected"], where=where)
    if stray := [name for name in values.get("unverified", ()) if name.split(".")[0] not in known | _WRITTEN_AS]:
        raise EarthGPTError(f"{where}: `unverified` names {', '.join(stray)}, which are no entries of a card")
    for key in ("parts", "classes", "notes", "unverified"):
        if key in values:
            values[key] = tuple(values[key])
    # A colon makes a mapping of a note, which then says something else than it seems to.
    if odd := [note for note in values.get("notes", ()) if not isinstance(note, str)]:
        raise EarthGPTError(f"{where}: notes: expected text, got {odd[0]!r}; quote a note that holds a colon")
    for key in ("synonyms", "drop", "fields"):
        if key in values:
            values[key] = {str(name): str(text) for name, text in values[key].items()}
    return values


_WRITTEN_AS = {"layout", "split"}  # entries that are called otherwise in a file than in `Card`


def _tile(values: Mapping[str, Any], *, where: str) -> Tile:
    try:
        tile = Tile(**values)
    except TypeError as error:
        known = ", ".join(field.name for field in dataclasses.fields(Tile))
        raise EarthGPTError(f"{where}: tile: {error}; known: {known}") from error
    if not 0 <= tile.overlap < tile.size or not 0 <= tile.ignore <= tile.keep <= 1:
        raise EarthGPTError(
            f"{where}: tile: expected 0 <= overlap < size and 0 <= ignore <= keep <= 1, got {dict(values)}"
        )
    return tile


def _expected(values: Mapping[str, Any], *, where: str) -> dict[str, int]:
    for name, count in values.items():
        if name not in EXPECTED or not isinstance(count, int):
            raise EarthGPTError(f"{where}: expected: {name}: {count!r}; takes whole numbers of {', '.join(EXPECTED)}")
    return dict(values)


def load_card(path: Path) -> Card:
    """Reads one card file.

    Raises:
        EarthGPTError: not YAML, a missing or unknown entry, a synonym of an unknown class.
    """
    where = f"card {path}"
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EarthGPTError(f"{where}: cannot be read: {error.strerror}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise EarthGPTError(f"{where}: cannot be read as YAML: {error}") from error
    if not isinstance(values, dict):
        raise EarthGPTError(f"{where}: expected a mapping, got {type(values).__name__}")
    try:
        card = Card(**_fields(values, where=where))
    except (TypeError, KeyError) as error:
        raise EarthGPTError(f"{where}: incomplete: {error}") from error
    stray = sorted(set(card.synonyms.values()) - set(card.classes))
    if stray:
        raise EarthGPTError(f"{where}: synonyms lead to {', '.join(stray)}, which `classes` does not have")
    return card


def cards() -> dict[str, Card]:
    """All cards that travel with the code, by name."""
    found = [load_card(path) for path in sorted(data_path("sources").glob("*.yaml"))]
    return {card.name: card for card in found}


def select(names: Sequence[str]) -> tuple[Card, ...]:
    """The cards of these names, in this order; a name that ends in .yaml is the file of a card of one's own.

    Behind a colon stands the variant: `dior:rotated`.

    Raises:
        EarthGPTError: a name without card or variant, or a card of one's own under the name of another.
    """
    known = cards()
    unknown = [name for name in names if name.partition(":")[0] not in known and not _is_file(name)]
    if unknown:
        raise EarthGPTError(
            f"no card for {', '.join(unknown)}{did_you_mean(unknown, known)} Cards: {', '.join(known)}. "
            "A card of your own is named by its file, which ends in .yaml"
        )
    chosen = tuple(load_card(Path(name)) if _is_file(name) else _known(name, known) for name in names)
    for name, card in zip(names, chosen, strict=True):
        if _is_file(name) and card.name in known:
            raise EarthGPTError(
                f"card {name}: expected a name of its own, got {card.name!r}, which is taken; rename it"
            )
    return chosen


def _known(name: str, known: Mapping[str, Card]) -> Card:
    name, _, variant = name.partition(":")
    return known[name].variant(variant) if variant else known[name]


def _is_file(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))
