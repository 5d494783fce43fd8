"""Read COCO detection JSON.

Boxes are `bbox` [x, y, w, h]. If the card says `orientation: rotated`, they are the minimum-area rotated rectangles
around the `segmentation` polygons.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

import numpy as np

from earthgpt_jax.boxes import min_area_rect, rect_to_polygon
from earthgpt_jax.datasets.cards import Card, SegmentationBox
from earthgpt_jax.datasets.readers.events import (
    Entry,
    Event,
    ItemType,
    Native,
    Part,
    RawObject,
    Rejected,
    hashable_id,
    int_or_zero,
    parse_number,
)


def parse(part: Part, card: Card) -> Iterator[Entry | Event]:
    box = _rotated_box if card.segmentation_box is SegmentationBox.ORIENTED else horizontal_box
    yield from entries(part, annotations="annotations", file_name="file_name", box=box)


def entries(
    part: Part, *, annotations: str, file_name: str, box: Callable[[dict[str, Any]], np.ndarray]
) -> Iterator[Entry | Event]:
    """Yield the entries of a JSON file with COCO's structure.

    Args:
        annotations: key of the list of annotations.
        file_name: key of an image's file name.
        box: returns the corners of an annotation, f64[8], pixels; raises ValueError if it has no valid box.
    """
    file = part.name(part.paths["annotations"])
    rows, categories = part.rows("annotations", "images"), part.rows("annotations", "categories")
    key_of, category_key = _same_ids(row.get("id") for row in rows), _same_ids(row.get("id") for row in categories)
    names = {category_key(row.get("id")): str(row.get("name")) for row in categories}
    objects: dict[Hashable, list[RawObject]] = collections.defaultdict(list)
    written: dict[Hashable, Any] = {}  # ids as the file writes them, for messages
    for row in part.rows("annotations", annotations):
        key = key_of(row.get("image_id"))
        written.setdefault(key, hashable_id(row.get("image_id")))
        objects[key].append(_object(row, names.get(category_key(row.get("category_id"))), box))
    images = collections.Counter(key_of(row.get("id")) for row in rows)
    known = {key for key, count in images.items() if count == 1 and key is not None}
    orphans = sum(len(found) for key, found in objects.items() if key not in known)
    file_names = [str(row.get(file_name) or "") for row in rows]
    stems = collections.Counter(map(_stem, file_names))
    for row, name in zip(rows, file_names, strict=True):
        key = key_of(row.get("id"))
        problem = "" if name else f"no {file_name}"
        if key not in known:
            # Its boxes cannot be identified, and without boxes the record would wrongly say that the image is empty.
            problem = "no id" if key is None else f"{images[key]} images have the id {hashable_id(row.get('id'))!r}"
        yield Entry(
            # Two folders may have images of the same name.
            id=part.prefix + (_stem(name) if stems[_stem(name)] == 1 else name.rsplit(".", 1)[0]),
            image=name,
            file=file,
            split=part.split,
            size=(int_or_zero(row.get("width")), int_or_zero(row.get("height"))),
            problem=problem,
            objects=tuple(objects.pop(key, ())) if key in known else (),
            orphans=orphans,
        )
    for key, found in objects.items():
        yield Native(item_type=ItemType.OBJECT, count=len(found))
        count = images[key] if key is not None else 0
        reason = f"missing pair: {'several images have' if count else 'no image has'} the id {written[key]!r}"
        yield Rejected(id=str(written[key]), item_type=ItemType.OBJECT, reason=reason, file=file, count=len(found))


def _stem(name: str) -> str:
    return name.rsplit("/", 1)[-1].rsplit(".", 1)[0]


def _same_ids(ids: Iterable[Any]) -> Callable[[Any], Hashable]:
    """Return a function from a native id to what identifies its row; None for a missing id.

    Releases write the same id as a number in one list and as text in another. The two are the same id, unless the ids
    themselves have both.
    """
    written = {hashable_id(value) for value in ids}
    if len({str(value) for value in written}) < len(written):
        return hashable_id
    return lambda value: None if value is None else str(hashable_id(value))


def _object(row: dict[str, Any], name: str | None, box: Callable[[dict[str, Any]], np.ndarray]) -> RawObject:
    name = name or f"category {row.get('category_id')!r}"
    difficult = int(any(row.get(flag) for flag in ("iscrowd", "ignore", "difficult")))
    try:
        return RawObject(name=name, polygon=box(row), difficult=difficult)
    except ValueError as error:
        return RawObject(name=name, polygon=None, problem=str(error))


def horizontal_box(row: dict[str, Any]) -> np.ndarray:
    """Return the corners of `bbox` [x, y, w, h], f64[8].

    Raises:
        ValueError: the box is missing or degenerate.
    """
    x, y, w, h = box_numbers(row, 4)
    if w <= 0 or h <= 0:
        raise ValueError(f"degenerate box: expected sides above 0, got {w:g} x {h:g}")
    return rect_to_polygon(x, y, x + w, y + h)


def _rotated_box(row: dict[str, Any]) -> np.ndarray:
    rings = row.get("segmentation")
    if not isinstance(rings, list) or not rings or not all(isinstance(ring, list) for ring in rings):
        raise ValueError("no polygon in `segmentation`")
    numbers = [parse_number(value) for ring in rings for value in ring]
    if len(numbers) % 2 or len(numbers) < 6:
        raise ValueError(f"degenerate box: expected 3 or more points, got {len(numbers)} numbers")
    try:
        return min_area_rect(np.array(numbers).reshape(-1, 2))
    except ValueError as error:
        raise ValueError(f"degenerate box: {error}") from error


def box_numbers(row: dict[str, Any], count: int) -> list[float]:
    """Return the numbers of `bbox`.

    Raises:
        ValueError: `bbox` is not a list of `count` numbers.
    """
    values = row.get("bbox")
    if not isinstance(values, list) or len(values) != count:
        raise ValueError(f"expected {count} numbers in bbox, got {values!r}")
    return [parse_number(value) for value in values]
