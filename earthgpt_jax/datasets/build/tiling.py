"""Cut large scenes into tiles, each a record with its own image and the objects in it.

Label, captions and questions of a scene need not be true of a part of it, so tiles have boxes only. The one phrase they
get is "the only <label>", where the tile's objects show it to be true.
"""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import re
from collections.abc import Iterator

import numpy as np

from earthgpt_jax.boxes import clip, polygon_to_rect
from earthgpt_jax.datasets.cards import Tile
from earthgpt_jax.raster import decode, tiles
from earthgpt_jax.records import Object, Record, Task

_BOXES = (Task.HBB, Task.OBB)
_PHRASES = (Task.GROUNDING, Task.REGION_CAPTION)
_FULLY_VISIBLE = 1 - 1e-6


def size_limit(tile: Tile | None) -> contextlib.AbstractContextManager[None]:
    """Let very large images be opened if they will be cut into tiles, that is, unless `tile` is None."""
    return contextlib.nullcontext() if tile is None else decode.allow_large_images()


def tile_windows(width: int, height: int, tile: Tile) -> list[tuple[int, int, int, int]]:
    """Return (x0, y0, x1, y1) of all tiles, row by row. The last tile of a row or column ends at the image's border."""
    columns, rows = (_starts(length, tile) for length in (width, height))
    return [(x, y, min(x + tile.size, width), min(y + tile.size, height)) for y in rows for x in columns]


def _starts(length: int, tile: Tile) -> list[int]:
    last = max(length - tile.size, 0)
    return [*range(0, last, tile.size - tile.overlap), last]


def cut_into_tiles(record: Record, tile: Tile, *, counter: collections.Counter) -> Iterator[Record]:
    """Yield the tiles of a scene, with ids `<id>@<x>,<y>`, or the record itself if it is not larger than a tile.

    What happens to an object depends on the share of its visible area that is inside a tile:

    * at least `tile.keep`: it is kept, clipped to the tile;
    * at least `tile.ignore`: it is kept, clipped to the tile, and marked difficult;
    * less: it is removed from the tile, and the tile is not `complete`.

    The visible area is the part of the object inside the scene. An object that no tile border cuts keeps its corners,
    even beyond the scene's border.

    Args:
        counter: is updated with numbers of scenes, tiles and objects (an object in two tiles counts twice).

    Raises:
        ValueError: the record has no image, or no boxes among its tasks.
    """
    if max(record.width, record.height) <= tile.size:
        counter["scenes_not_cut"] += 1
        yield record
        return
    if not record.image or not set(record.tasks) & set(_BOXES):
        raise ValueError(f"{record.id}: only images with boxes can be cut into tiles")
    counter["scenes_cut"] += 1
    scene = _Scene(record, tile)
    with size_limit(tile):
        pixels = tiles.Scene(record.image, record.stretch)
    for x0, y0, x1, y1 in tile_windows(record.width, record.height, tile):
        objects, complete = scene.objects((x0, y0, x1, y1), counter)
        has_phrases = any(item.phrase for item in objects)
        counter["tiles"] += 1
        yield dataclasses.replace(
            record,
            id=f"{record.id}@{x0},{y0}",
            image=pixels.tile(x0, y0, x1, y1),
            width=x1 - x0,
            height=y1 - y0,
            tasks=tuple(t for t in record.tasks if t in _BOXES) + (_PHRASES if has_phrases else ()),
            label="",
            turns=(),
            references=(),
            objects=objects,
            complete=complete,
            stretch=pixels.stretch,
        )
    counter["objects_in_no_tile"] += len(record.objects) - len(scene.kept)


def is_tile(record: Record) -> bool:
    """Return whether a record was cut from a larger scene, which its id tells."""
    return re.search(r"@\d+,\d+$", record.id) is not None


class _Scene:
    """The objects of a scene.

    Attributes:
        kept: indices of the objects that at least one tile has kept.
    """

    def __init__(self, record: Record, tile: Tile):
        self._record, self._tile = record, tile
        self._rects = np.array([polygon_to_rect(item.polygon) for item in record.objects]).reshape(-1, 4)
        border = (0, 0, record.width, record.height)
        self._visible = [clip(item.polygon, *border)[1] for item in record.objects]
        self.kept: set[int] = set()

    def objects(
        self, window: tuple[int, int, int, int], counter: collections.Counter
    ) -> tuple[tuple[Object, ...], bool]:
        """Return the objects of one tile, in its pixel coordinates, and whether no other object is visible in it."""
        x0, y0, x1, y1 = window
        left, top, right, bottom = self._rects.T
        complete = self._record.complete
        near = np.flatnonzero((left < x1) & (right > x0) & (top < y1) & (bottom > y0)).tolist()
        kept: list[Object] = []
        visible: collections.Counter[str] = collections.Counter()  # by label, removed objects included
        for index in near:
            item = self._record.objects[index]
            polygon, share = clip(item.polygon, x0, y0, x1, y1)
            share = min(share / self._visible[index], 1.0) if self._visible[index] else 0.0
            if not share:
                continue
            visible[item.label] += 1
            if share < self._tile.ignore:
                counter["objects_removed"] += 1
                complete = False
                continue
            full, enough = share >= _FULLY_VISIBLE, share >= self._tile.keep
            counter["objects_whole" if full else "objects_cut" if enough else "objects_difficult"] += 1
            self.kept.add(index)
            moved = (item.polygon if full else polygon) - np.array([x0, y0] * 4, np.float32)
            kept.append(
                Object(
                    label=item.label,
                    polygon=moved.astype(np.float32),
                    difficult=item.difficult or not enough,
                    visible=1.0 if full else share,
                )
            )
        if self._record.complete:
            kept = [
                dataclasses.replace(item, phrase=f"the only {item.label}")
                if visible[item.label] == 1 and item.visible >= self._tile.keep
                else item
                for item in kept
            ]
        return tuple(kept), complete
