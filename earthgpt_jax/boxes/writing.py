"""Write boxes as text: in MMRS's format, and as JSON."""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import json
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes.frames import Frame, FullImage, Square
from earthgpt_jax.boxes.plurals import count_phrase
from earthgpt_jax.boxes.polygons import BoxKind, area, canonical, degeneracy, polygon_to_rect


def format_boxes(polygons: Iterable[np.ndarray], *, square: Square, decimals: int, kind: BoxKind) -> str:
    """Return `[x0,y0,x1,y1;...]` in fractions of the padded square; for OBB, eight numbers per box.

    Boxes are sorted from top to bottom, then from left to right, by their first corner as printed. A box whose area is
    lost to rounding is widened by one step, so that `parse` accepts every box that is written.

    Args:
        polygons: f32[8] each, in pixels of the original image.
        square: the padded square of the image.
        decimals: decimals of the coordinates.
        kind: HBB writes the enclosing horizontal box, OBB the polygon.
    """
    arrays = [np.asarray(polygon) for polygon in polygons]
    rows = [_rounded(each.tobytes(), each.dtype.str, square, decimals, kind) for each in arrays]
    rows.sort(key=lambda row: (row[1], row[0], row))
    return "[" + ";".join(",".join(f"{n / 10**decimals:.{decimals}f}" for n in row) for row in rows) + "]"


@functools.lru_cache(maxsize=4096)  # the boxes of a dense scene are written repeatedly until they fit the token budget
def _rounded(polygon: bytes, dtype: str, frame: Frame, decimals: int, kind: BoxKind) -> tuple[int, ...]:
    """Return a box in whole steps of 10**-decimals of the frame's sides, with an area."""
    numbers = _numbers(np.frombuffer(polygon, dtype), kind)
    # Formatting rounds the number itself, once; multiplying by 10**decimals first would round twice.
    fractions = np.clip(frame.to_fractions(numbers), 0.0, 1.0).tolist()
    steps = [int(f"{v:.{decimals}f}".replace(".", "")) for v in fractions]
    return tuple(_with_area(steps, kind=kind, ends=(10**decimals, 10**decimals)))


def _numbers(polygon: np.ndarray, kind: BoxKind) -> np.ndarray:
    return np.asarray(polygon_to_rect(polygon) if kind is BoxKind.HBB else canonical(polygon))


def _with_area(steps: list[int], *, kind: BoxKind, ends: tuple[int, int]) -> list[int]:
    """Return a box in whole steps; one whose area was lost to rounding is widened by one step."""
    if kind is BoxKind.HBB:
        return widen(steps, ends=ends)
    if not degeneracy(np.divide(steps, [*ends] * 4), width=1, height=1):
        return steps
    # Rounding left no area, hence no direction: write the enclosing horizontal box.
    x0, y0, x1, y1 = widen(polygon_to_rect(np.array(steps)), ends=ends)
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def widen(rectangle: Sequence[float], *, ends: tuple[int, int]) -> list[int]:
    """Widen a side of length zero by one step, to the right or down; at the far edge `ends`, to the left or up."""
    x0, y0, x1, y1 = map(int, rectangle)
    x0, y0 = min(x0, ends[0] - 1), min(y0, ends[1] - 1)
    return [x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)]


class JsonStyle(enum.StrEnum):
    """How a JSON answer gives a box; each is also the name of a format that `parse` reads.

    json: `{"label":"ship","bbox":[x0,y0,x1,y1]}`, for OBB `"polygon"` with eight numbers, as fractions of the image's
    width and height. json_pixels: the same in whole pixels of the image. json_corners:
    `{"label":"ship","x_min":...,"y_min":...,"x_max":...,"y_max":...}` in fractions, horizontal boxes only.
    """

    FRACTIONS = "json"
    PIXELS = "json_pixels"
    CORNERS = "json_corners"


CORNER_KEYS = ("x_min", "y_min", "x_max", "y_max")
_BOX_KEYS = {BoxKind.HBB: "bbox", BoxKind.OBB: "polygon"}


def format_json(
    groups: Mapping[str, Sequence[np.ndarray]], *, style: JsonStyle, image: FullImage, decimals: int, kind: BoxKind
) -> str:
    """Return a JSON array with one object per box, `[]` if there is none, without spaces.

    Objects are sorted by label, then as in `format_boxes`. The label "" is left out.

    Args:
        groups: label -> polygons, f32[8] each, in pixels of the image.
        decimals: decimals of fractions.
        kind: HBB writes the enclosing horizontal box, OBB the polygon.
    """
    ends = (image.width, image.height) if style is JsonStyle.PIXELS else (10**decimals, 10**decimals)
    objects = []
    for label, polygons in sorted(groups.items()):
        named = [f'"label":{json.dumps(label, ensure_ascii=False)}'] if label else []
        rows = [_json_steps(np.asarray(polygon), style, image, decimals, kind, ends) for polygon in polygons]
        for row in sorted(rows, key=lambda row: (row[1], row[0], row)):
            texts = [str(n) if style is JsonStyle.PIXELS else f"{n / ends[0]:.{decimals}f}" for n in row]
            if style is JsonStyle.CORNERS:
                fields = [f'"{key}":{text}' for key, text in zip(CORNER_KEYS, texts, strict=True)]
            else:
                fields = [f'"{_BOX_KEYS[kind]}":[{",".join(texts)}]']
            objects.append("{" + ",".join(named + fields) + "}")
    return "[" + ",".join(objects) + "]"


def _json_steps(
    polygon: np.ndarray, style: JsonStyle, image: FullImage, decimals: int, kind: BoxKind, ends: tuple[int, int]
) -> list[int]:
    if style is not JsonStyle.PIXELS:
        return list(_rounded(polygon.tobytes(), polygon.dtype.str, image, decimals, kind))
    limits = np.resize(np.array(ends), 4 if kind is BoxKind.HBB else 8)
    pixels = np.clip(np.floor(_numbers(polygon, kind).astype(np.float64) + 0.5), 0, limits)
    return _with_area([int(pixel) for pixel in pixels], kind=kind, ends=ends)


@dataclasses.dataclass(frozen=True)
class Shortlist:
    """The boxes that an answer lists.

    Attributes:
        groups: label -> polygons that are listed.
        rest: label -> number of boxes that are not listed.
    """

    groups: Mapping[str, Sequence[np.ndarray]]
    rest: Mapping[str, int]


def shortlist(groups: Mapping[str, Sequence[np.ndarray]], *, limit: int) -> Shortlist:
    """Return the `limit` largest boxes of all labels together; ties go to the upper, then to the left box."""
    ranked = sorted(
        ((label, polygon) for label, polygons in groups.items() for polygon in polygons),
        key=lambda item: (-area(item[1]), item[1][1], item[1][0], item[0]),
    )
    listed: dict[str, list[np.ndarray]] = {}
    for label, polygon in ranked[:limit]:
        listed.setdefault(label, []).append(polygon)
    return Shortlist(listed, collections.Counter(label for label, _ in ranked[limit:]))


def format_detection(
    groups: Mapping[str, Sequence[np.ndarray]],
    *,
    square: Square,
    decimals: int,
    kind: BoxKind,
    rest: Mapping[str, int] | None = None,
) -> str:
    """Return `There are <p>two ships</p>[...] and <p>one airplane</p>[...] in the image.`, sorted by label.

    Args:
        groups: label -> polygons, f32[8] each, in pixels of the original image.
        rest: label -> number of objects that are not listed: `... in the image; not listed: 25 more ships.`
    """
    return detection_sentence(
        {
            label: (len(polygons), format_boxes(polygons, square=square, decimals=decimals, kind=kind))
            for label, polygons in groups.items()
            if len(polygons)
        },
        rest=rest,
    )


def detection_sentence(listed: Mapping[str, tuple[int, str]], *, rest: Mapping[str, int] | None = None) -> str:
    """Return the sentence of `format_detection` for boxes that are text already: label -> (count, `[...]`)."""
    if not listed:
        return "There are no objects in the image."
    items = [f"<p>{count_phrase(label, count)}</p>{boxes}" for label, (count, boxes) in sorted(listed.items())]
    verb = "is" if len(items) == 1 and items[0].startswith("<p>one ") else "are"
    others = [
        count_phrase(f"more {label}" if label in listed else label, count)
        for label, count in sorted((rest or {}).items())
    ]
    return f"There {verb} {_joined(items)} in the image" + (f"; not listed: {_joined(others)}." if others else ".")


def _joined(items: Sequence[str]) -> str:
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
