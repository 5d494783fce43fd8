"""Write boxes as text in MMRS's format."""

from __future__ import annotations

import collections
import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes.frames import Square
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
def _rounded(polygon: bytes, dtype: str, square: Square, decimals: int, kind: BoxKind) -> tuple[int, ...]:
    """Return a box in whole steps of 10**-decimals of the square's side, with an area."""
    return tuple(_steps(np.frombuffer(polygon, dtype), square=square, decimals=decimals, kind=kind))


def _steps(polygon: np.ndarray, *, square: Square, decimals: int, kind: BoxKind) -> list[int]:
    numbers = polygon_to_rect(polygon) if kind is BoxKind.HBB else canonical(polygon)
    # Formatting rounds the number itself, once; multiplying by 10**decimals first would round twice.
    fractions = np.clip(square.to_fractions(numbers), 0.0, 1.0).tolist()
    steps = [int(f"{v:.{decimals}f}".replace(".", "")) for v in fractions]
    if kind is BoxKind.HBB:
        return widen(steps, end=10**decimals)
    if not degeneracy(np.divide(steps, 10**decimals), width=1, height=1):
        return steps
    # Rounding left no area, hence no direction: write the enclosing horizontal box.
    x0, y0, x1, y1 = widen(polygon_to_rect(np.array(steps)), end=10**decimals)
    return [x0, y0, x1, y0, x1, y1, x0, y1]


def widen(rectangle: Sequence[float], *, end: int) -> list[int]:
    """Widen a side of length zero by one step, to the right or down; at the far edge `end`, to the left or up."""
    x0, y0, x1, y1 = map(int, rectangle)
    x0, y0 = min(x0, end - 1), min(y0, end - 1)
    return [x0, y0, max(x1, x0 + 1), max(y1, y0 + 1)]


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
