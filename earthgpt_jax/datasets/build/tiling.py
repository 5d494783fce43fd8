"""Large scenes: a record cut into tiles, each a record with its own image and the objects that are in it.

The truth of a whole image (label, captions, questions) says nothing certain of a part, so tiles have boxes only;
a phrase is kept where counting the tile's own objects shows it to be true.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import io
import re
from collections.abc import Iterator

import numpy as np
from PIL import Image

from earthgpt_jax.boxes import clip, polygon_to_rect
from earthgpt_jax.datasets.cards import Tile
from earthgpt_jax.records import Object, Record, Task

# Beyond the largest scenes of DOTA (8e8 pixels); a file of more is taken for a decompression bomb after all.
_LARGEST_SCENE = 2_000_000_000
_BOXES = (Task.HBB, Task.OBB)
_PHRASES = (Task.GROUNDING, Task.REGION_CAPTION)
_PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")
_TIFF_MODES = ("I", "F")  # what PNG cannot hold
_WHOLE = 1 - 1e-6


@contextlib.contextmanager
def allow_large_images(tile: Tile | None) -> Iterator[None]:
    """Lets Pillow open scenes that are to be cut; does nothing where they are not."""
    before = Image.MAX_IMAGE_PIXELS
    if tile is not None:
        Image.MAX_IMAGE_PIXELS = _LARGEST_SCENE
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


def tile_windows(width: int, height: int, tile: Tile) -> list[tuple[int, int, int, int]]:
    """(x0, y0, x1, y1) of every tile, row by row; the last of a row or column is flush with the border."""
    columns, rows = (_starts(length, tile) for length in (width, height))
    return [(x, y, min(x + tile.size, width), min(y + tile.size, height)) for y in rows for x in columns]


def _starts(length: int, tile: Tile) -> list[int]:
    last = max(length - tile.size, 0)
    return [*range(0, last, tile.size - tile.overlap), last]


def cut_into_tiles(record: Record, tile: Tile, *, counter: collections.Counter) -> Iterator[Record]:
    """The tiles of a scene, with ids `<id>@<x>,<y>`; the record itself if it is no larger than a tile.

    An object with at least `tile.keep` of its visible area in a tile is kept there, cut at the tile's border; with
    less, but at least `tile.ignore`, it is kept as difficult; with less, it is left out, and the tile is not
    `complete`. What reaches beyond the scene itself counts neither way: an object that no tile's border cuts keeps
    its corners.

    Args:
        counter: counts scenes, tiles and objects (one in two tiles counts twice).

    Raises:
        ValueError: the record has no boxes as a task, or no image.
    """
    if max(record.width, record.height) <= tile.size:
        counter["scenes_not_cut"] += 1
        yield record
        return
    if not record.image or not set(record.tasks) & set(_BOXES):
        raise ValueError(f"{record.id}: only images with boxes can be cut into tiles")
    counter["scenes_cut"] += 1
    scene = _Scene(record, tile)
    with allow_large_images(tile), Image.open(io.BytesIO(record.image)) as image:
        image.load()
        for x0, y0, x1, y1 in tile_windows(record.width, record.height, tile):
            objects, complete = scene.objects((x0, y0, x1, y1), counter)
            has_phrases = any(item.phrase for item in objects)
            counter["tiles"] += 1
            yield dataclasses.replace(
                record,
                id=f"{record.id}@{x0},{y0}",
                image=_encoded(image.crop((x0, y0, x1, y1))),
                width=x1 - x0,
                height=y1 - y0,
                tasks=tuple(t for t in record.tasks if t in _BOXES) + (_PHRASES if has_phrases else ()),
                label="",
                turns=(),
                references=(),
                objects=objects,
                complete=complete,
            )
    counter["objects_in_no_tile"] += len(record.objects) - len(scene.found)


def is_tile(record: Record) -> bool:
    """Whether a record was cut from a larger scene, by its id."""
    return re.search(r"@\d+,\d+$", record.id) is not None


class _Scene:
    """The objects of a scene, and which of them some tile has."""

    def __init__(self, record: Record, tile: Tile):
        self._record, self._tile = record, tile
        self._rects = np.array([polygon_to_rect(item.polygon) for item in record.objects]).reshape(-1, 4)
        border = (0, 0, record.width, record.height)
        self._visible = [clip(item.polygon, *border)[1] for item in record.objects]
        self.found: set[int] = set()

    def objects(
        self, window: tuple[int, int, int, int], counter: collections.Counter
    ) -> tuple[tuple[Object, ...], bool]:
        """Those of one tile, in its pixels, and whether nothing more shows in it."""
        x0, y0, x1, y1 = window
        left, top, right, bottom = self._rects.T
        complete = self._record.complete
        near = np.flatnonzero((left < x1) & (right > x0) & (top < y1) & (bottom > y0)).tolist()
        kept: list[Object] = []
        present: collections.Counter[str] = collections.Counter()  # also of what is left out: a part of it shows
        for number in near:
            item = self._record.objects[number]
            polygon, share = clip(item.polygon, x0, y0, x1, y1)
            share = min(share / self._visible[number], 1.0) if self._visible[number] else 0.0
            if not share:
                continue
            present[item.label] += 1
            if share < self._tile.ignore:
                counter["objects_left_out"] += 1
                complete = False
                continue
            whole, enough = share >= _WHOLE, share >= self._tile.keep
            counter["objects_whole" if whole else "objects_cut" if enough else "objects_difficult"] += 1
            self.found.add(number)
            moved = (item.polygon if whole else polygon) - np.array([x0, y0] * 4, np.float32)
            kept.append(
                Object(
                    label=item.label,
                    polygon=moved.astype(np.float32),
                    difficult=item.difficult or not enough,
                    visible=1.0 if whole else share,
                )
            )
        if self._record.complete:
            kept = [
                dataclasses.replace(item, phrase=f"the only {item.label}")
                if present[item.label] == 1 and item.visible >= self._tile.keep
                else item
                for item in kept
            ]
        return tuple(kept), complete


def _encoded(tile: Image.Image) -> bytes:
    """The tile's pixels without loss: PNG, or TIFF where PNG has no such pixels; the same pixels, the same bytes."""
    tile.info = {}  # what else the scene's file says is not of this image
    if tile.mode.startswith("I;16"):  # whatever the order of its bytes
        tile = Image.fromarray(np.asarray(tile).astype(np.uint16))
    elif tile.mode not in (*_PNG_MODES, *_TIFF_MODES):
        tile = tile.convert("RGB")  # as the input pipeline would
    buffer = io.BytesIO()
    tile.save(buffer, format="TIFF" if tile.mode in _TIFF_MODES else "PNG")
    return buffer.getvalue()
