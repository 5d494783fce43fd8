"""A model that cannot err: it reads the truth of a scene and shows what a window has of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from earthgpt_jax.boxes import BoxKind, clip, degeneracy, rect_to_polygon, rotated_to_polygon
from earthgpt_jax.scenes.merging import SceneObject
from earthgpt_jax.scenes.windows import Window, grid

NOWHERE = Window(0, 0, 0, 0)


def random_objects(
    rng: np.random.Generator, count: int, *, width: int, height: int, largest: int, kind: BoxKind
) -> list[SceneObject]:
    """Return objects of two classes, of 6 px to `largest`, many of them in dense rows, inside the scene."""
    objects: list[SceneObject] = []
    while len(objects) < count:
        long = rng.uniform(6, largest * 0.9)
        wide = rng.uniform(max(3, long / 8), long * 0.7)
        angle, label = rng.uniform(-np.pi, np.pi), str(rng.choice(["ship", "harbor"]))
        centre = rng.uniform(0, 1, 2) * (width, height)
        across = np.array([-np.sin(angle), np.cos(angle)]) * (wide + 1)
        for i in range(int(rng.choice([1, 1, 5]))):  # ships side by side: their horizontal boxes overlap
            cx, cy = centre + i * across
            polygon = rotated_to_polygon(cx=cx, cy=cy, w=long, h=wide, angle=angle)
            points = np.float64(polygon).reshape(4, 2)
            if points.min() < 0 or (points.max(axis=0) > (width, height)).any():
                continue
            if kind is BoxKind.HBB:
                points = np.float64(rect_to_polygon(*points.min(axis=0), *points.max(axis=0))).reshape(4, 2)
            objects.append(SceneObject(label=label, kind=kind, polygon=points, confidence=1.0, window=NOWHERE))
    return objects[:count]


class Oracle:
    """Looks at windows of a scene whose objects it knows."""

    def __init__(self, truth: Sequence[SceneObject]):
        self._truth = truth
        corners = np.stack([item.polygon for item in truth])
        self._low, self._high = corners.min(axis=1), corners.max(axis=1)

    def look(self, window: Window) -> list[SceneObject]:
        """Return what a window shows: objects inside as they are, others clipped as in training tiles."""
        left, top, right, bottom = window.bounds
        low, high = np.array([left, top]), np.array([right, bottom])
        seen = []
        for i in np.flatnonzero(((self._low < high) & (self._high > low)).all(axis=1)):
            item = self._truth[i]
            polygon = item.polygon
            if (self._low[i] < low).any() or (self._high[i] > high).any():
                clipped, share = clip((polygon - low).reshape(8), 0, 0, window.width, window.height)
                if not share or degeneracy(clipped, width=0, height=0):
                    continue
                polygon = np.float64(clipped).reshape(4, 2) + low
            seen.append(dataclasses.replace(item, polygon=polygon, window=window))
        return seen


def shifted_grid(rng: np.random.Generator, width: int, height: int, *, size: int, overlap: int) -> list[Window]:
    """Return the windows of a grid that begins left of and above the scene by a random shift, cut to the scene."""
    dx, dy = (int(rng.integers(0, size - overlap)) for _ in range(2))
    windows = []
    for w in grid(width + dx, height + dy, size=size, overlap=overlap):
        left, top, right, bottom = w.bounds
        x0, y0, x1, y1 = max(left - dx, 0), max(top - dy, 0), right - dx, bottom - dy
        if x1 > x0 and y1 > y0:
            windows.append(Window(y0, x0, y1 - y0, x1 - x0))
    return windows
