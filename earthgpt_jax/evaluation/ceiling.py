"""The best possible IoU of a box format: true boxes are written as text, parsed, and compared with themselves."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes import BoxKind, Square, area, format_boxes, parse, polygon_to_rect, write_boxes
from earthgpt_jax.evaluation.metrics.iou import THRESHOLD, hbb_ious, obb_ious
from earthgpt_jax.records import Record, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Encoding:
    """One way to write boxes as text.

    Attributes:
        name: column title of the table.
        kind: kind of boxes.
        box_format: format in which the text is parsed.
        write: (polygon in pixels, padded square) -> text.
    """

    name: str
    kind: BoxKind
    box_format: str
    write: Callable[[np.ndarray, Square], str]


def _mmrs(kind: BoxKind, decimals: int) -> Encoding:
    def write(polygon: np.ndarray, square: Square) -> str:
        return format_boxes([polygon], square=square, decimals=decimals, kind=kind)

    return Encoding(name=f"{decimals} decimals", kind=kind, box_format="mmrs", write=write)


def _third_party(name: str, kind: BoxKind, box_format: str) -> Encoding:
    def write(polygon: np.ndarray, square: Square) -> str:
        return write_boxes([polygon], box_format=box_format, frame=square)

    return Encoding(name=name, kind=kind, box_format=box_format, write=write)


ENCODINGS: tuple[Encoding, ...] = (
    *(_mmrs(kind, decimals) for kind in BoxKind for decimals in (2, 3, 4)),
    _third_party("0-1000", BoxKind.HBB, "qwen3"),
    _third_party("0-100 and degrees", BoxKind.OBB, "geochat"),
    _third_party("1000 bins, corners", BoxKind.OBB, "falcon_quad"),
)
# Object sizes: upper limits of the side of a square with the object's area, in pixels of the original image.
SIDE_LIMITS: Mapping[str, float] = {"<16": 16, "16-32": 32, "32-96": 96, ">=96": np.inf}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ceiling:
    """What a perfect answer scores on the objects of one source and size.

    Attributes:
        objects: number of objects.
        iou: mean IoU of a perfect answer.
        missed: fraction of objects whose perfect answer has an IoU below 0.5, and so counts as wrong.
    """

    objects: int
    iou: float
    missed: float


Key = tuple[str, str]  # (source or "all", size or "all")


def ceiling(records: Iterable[Record], encoding: Encoding) -> dict[Key, Ceiling]:
    """Compute the ceiling per source and object size, and over all; records without this kind of boxes are skipped.

    Every box is written alone, so that the association of boxes with objects plays no role. A record of unknown size is
    assumed to be as small as its boxes allow, so that its ceiling is an upper bound.
    """
    ious: dict[Key, list[float]] = collections.defaultdict(list)
    for record in records:
        if Task(encoding.kind.value) not in record.tasks:
            continue
        square = _square(record)
        for item in record.objects:
            value = _iou(item.polygon, square, encoding)
            size = next(name for name, end in SIDE_LIMITS.items() if area(item.polygon) ** 0.5 < end)
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


def _iou(polygon: np.ndarray, square: Square, encoding: Encoding) -> float:
    """Return the IoU of a box with its parsed text; 0 if the text cannot be parsed."""
    parsed = parse(encoding.write(polygon, square), box_format=encoding.box_format)
    if len(parsed.boxes) != 1:
        return 0.0
    box = parsed.boxes[0].pixels(square).astype(np.float64)
    if encoding.kind is BoxKind.OBB:
        return float(obb_ious(box[None], np.asarray(polygon, np.float64)[None])[0, 0])
    rects = [np.array([polygon_to_rect(corners)]) for corners in (box, polygon)]
    return float(hbb_ious(*rects)[0, 0])


def table(records: Sequence[Record], kind: BoxKind) -> str:
    """Return a Markdown table with one row per source and size and one column per encoding.

    A cell holds the mean IoU and, in brackets, the fraction of objects below IoU 0.5.
    """
    encodings = [encoding for encoding in ENCODINGS if encoding.kind is kind]
    ceilings = {encoding.name: ceiling(records, encoding) for encoding in encodings}
    first = ceilings[encodings[0].name]
    order = {size: index for index, size in enumerate((*SIDE_LIMITS, "all"))}
    keys = sorted(first, key=lambda key: (key[0] == "all", key[0], order[key[1]]))
    lines = [["source", "side, px", "objects", *(encoding.name for encoding in encodings)]]
    lines.append(["---", "---", "---:", *("---:" for _ in encodings)])
    for key in keys:
        cells = [f"{c.iou:.3f} ({c.missed:.1%})" for c in (ceilings[encoding.name][key] for encoding in encodings)]
        lines.append([*key, str(first[key].objects), *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
