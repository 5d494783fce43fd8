"""Draw records with their boxes and texts on one sheet, to see whether a reader puts boxes where the objects are."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw

from earthgpt_jax.raster.decode import record_pixels
from earthgpt_jax.records import Object, Record

_SIDE, _TEXT, _GAP = 384, 92, 8  # side of an image, height of its text, distance between images; pixels
_COLUMNS = 4
_LINES, _WIDTH = 7, 60  # lines of text under an image, and characters per line
COLOURS = ("#ff3b30", "#34c759", "#0a84ff", "#ffcc00", "#ff2dff", "#00e5ff", "#ff9500", "#b8ff3b")


def contact_sheet(records: Sequence[Record]) -> Image.Image:
    """Return an image with a picture of every record, row by row."""
    columns = min(_COLUMNS, len(records))
    rows = -(-len(records) // columns)
    canvas = Image.new("RGB", (columns * (_SIDE + _GAP) + _GAP, rows * (_SIDE + _TEXT + _GAP) + _GAP), "white")
    for index, record in enumerate(records):
        row, column = divmod(index, columns)
        position = (_GAP + column * (_SIDE + _GAP), _GAP + row * (_SIDE + _TEXT + _GAP))
        canvas.paste(_picture(record), position)
    return canvas


def _picture(record: Record) -> Image.Image:
    picture = Image.new("RGB", (_SIDE, _SIDE + _TEXT), "white")
    width, height = image_extent(record)
    scale = _SIDE / max(width, height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    if record.image:
        image = Image.fromarray(record_pixels(record)).resize(size, Image.Resampling.BICUBIC)
    else:
        image = Image.new("RGB", size, "#dddddd")
    draw = ImageDraw.Draw(image)
    labels = sorted({item.label for item in record.objects})
    for item in record.objects:
        points = [float(value) * scale for value in item.polygon]
        colour = COLOURS[labels.index(item.label) % len(COLOURS)]
        draw.polygon(points, outline=colour, width=1 if item.difficult else 2)
    picture.paste(image, ((_SIDE - size[0]) // 2, (_SIDE - size[1]) // 2))
    lines = [line for text in _texts(record) for line in textwrap.wrap(text, _WIDTH)[:3]]
    ImageDraw.Draw(picture).multiline_text((2, _SIDE + 2), "\n".join(lines[:_LINES]), fill="black", spacing=2)
    return picture


def image_extent(record: Record) -> tuple[float, float]:
    """Return width and height of a record's image in pixels, or the extent of its boxes if the size is unknown."""
    if record.width and record.height:
        return record.width, record.height
    corners = [float(value) for item in record.objects for value in item.polygon]
    return max(corners[0::2], default=1.0), max(corners[1::2], default=1.0)


def _texts(record: Record) -> list[str]:
    texts = [f"{record.id} {record.width}x{record.height} {record.sensor.value}"]
    if record.label:
        texts.append(f"class: {record.label}")
    if record.objects:
        texts.append(_objects(record.objects))
    texts += [f"{turn.question} -> {turn.answer}" for turn in record.turns[:3]]
    return texts + [f"caption: {text}" for text in record.references[:2]]


def _objects(objects: Sequence[Object]) -> str:
    labels = sorted({item.label for item in objects})
    counts = ", ".join(f"{sum(item.label == label for item in objects)} {label}" for label in labels)
    phrases = [item.phrase for item in objects if item.phrase]
    return counts + (f"; phrases: {', '.join(phrases)}" if phrases else "")
