"""What a perfect answer can score: true boxes written as text, read back and compared with themselves."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes import BoxKind, Square, area, format_boxes, parse, polygon_to_rect, write_boxes
from earthgpt_jax.evaluation.metrics.iou import THRESHOLD, hbb_ious, obb_ious
from earthgpt_jax.records import Record, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Writing:
    """One way to write boxes: its grammar, and how one polygon in pixels becomes text."""

    name: str
    kind: BoxKind
    box_format: str
    write: Callable[[np.ndarray, Square], str]


def _fractions(kind: BoxKind, decimals: int) -> Writing:
    def write(polygon: np.ndarray, square: Square) -> str:
        return format_boxes([polygon], square=square, decimals=decimals, kind=kind)

    return Writing(name=f"{decimals} decimals", kind=kind, box_format="mmrs", write=write)


def _foreign(name: str, kind: BoxKind, box_format: str) -> Writing:
    def write(polygon: np.ndarray, square: Square) -> str:
        return write_boxes([polygon], box_format=box_format, frame=square)

    return Writing(name=name, kind=kind, box_format=box_format, write=write)


WRITINGS: tuple[Writing, ...] = (
    *(_fractions(kind, decimals) for kind in BoxKind for decimals in (2, 3, 4)),
    _foreign("0-1000", BoxKind.HBB, "qwen3"),
    _foreign("0-100 and degrees", BoxKind.OBB, "geochat"),
    _foreign("1000 bins, corners", BoxKind.OBB, "falcon_quad"),
)
# Upper ends of the sides, pixels of the original image, of a square as large as the object.
SIZES: Mapping[str, float] = {"<16": 16, "16-32": 32, "32-96": 96, ">=96": np.inf}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ceiling:
    """What is lost to rounding, of the objects of one source and size.

    Attributes:
        iou: mean IoU of a perfect answer.
        missed: share of the objects whose perfect answer has an IoU below 0.5: it would count as wrong.
    """

    objects: int
    iou: float
    missed: float


Key = tuple[str, str]  # source or "all", size or "all"


def ceiling(records: Iterable[Record], writing: Writing) -> dict[Key, Ceiling]:
    """The ceiling of each source and object size, and of all; records that lack the kind of boxes do not count.

    Every box is written alone: which box an answer means is not in question here. A record of unknown size
    is taken to be as small as its boxes allow, so that its ceiling is too high rather than too low.
    """
    ious: dict[Key, list[float]] = collections.defaultdict(list)
    for record in records:
        if Task(writing.kind.value) not in record.tasks:
            continue
        square = _square(record)
        for item in record.objects:
            value = _iou(item.polygon, square, writing)
            size = next(name for name, end in SIZES.items() if area(item.polygon) ** 0.5 < end)
            for key in ((source, s) for source in (record.source, "all") for s in (size, "all")):
                ious[key].append(value)
    return {
        key: Ceiling(objects=len(v), iou=float(np.mean(v)), missed=float(np.mean(np.array(v) < THRESHOLD)))
        for key, v in ious.items()
    }


def _square(record: Record) -> Square:
    if (record.width and record.height) or not record.objects:
        return Square(record.width, record.height)
    corners = np.concatenate([item.polygon.reshape(-1, 2) for item in record.objects])
    width, height = np.ceil(corners.max(axis=0)).astype(int).tolist()
    return Square(width, height)


def _iou(polygon: np.ndarray, square: Square, writing: Writing) -> float:
    """Of the box as it is read with the box as it is; 0 if it cannot be read."""
    parsed = parse(writing.write(polygon, square), box_format=writing.box_format)
    if len(parsed.boxes) != 1:
        return 0.0
    read = parsed.boxes[0].pixels(square).astype(np.float64)
    if writing.kind is BoxKind.OBB:
        return float(obb_ious(read[None], np.asarray(polygon, np.float64)[None])[0, 0])
    rects = [np.array([polygon_to_rect(corners)]) for corners in (read, polygon)]
    return float(hbb_ious(*rects)[0, 0])


def table(records: Sequence[Record], kind: BoxKind) -> str:
    """A Markdown table: a row a source and size, a column a way to write; mean IoU, and share below 0.5."""
    chosen = [writing for writing in WRITINGS if writing.kind is kind]
    found = {writing.name: ceiling(records, writing) for writing in chosen}
    first = found[chosen[0].name]
    order = {size: place for place, size in enumerate((*SIZES, "all"))}
    keys = sorted(first, key=lambda key: (key[0] == "all", key[0], order[key[1]]))
    lines = [["source", "side, px", "objects", *(writing.name for writing in chosen)]]
    lines.append(["---", "---", "---:", *("---:" for _ in chosen)])
    for key in keys:
        cells = [f"{c.iou:.3f} ({c.missed:.1%})" for c in (found[writing.name][key] for writing in chosen)]
        lines.append([*key, str(first[key].objects), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
