"""IoU of boxes in continuous coordinates."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import shapely

from earthgpt_jax.boxes import BoxKind

SLACK = 1e-6  # for rounding alone: an IoU of 0.5 in exact numbers may come out as 0.4999999
THRESHOLD = 0.5 - SLACK


def hbb_ious(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """IoU matrix f[M, N] of boxes f[M, 4] and f[N, 4] (x0, y0, x1, y1), continuous coordinates."""
    low = np.maximum(one[:, None, :2], two[None, :, :2])
    high = np.minimum(one[:, None, 2:], two[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (one, two)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-12)


def obb_ious(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """IoU matrix f[M, N] of polygons f[M, 8] and f[N, 8], by shapely; invalid polygons have IoU 0."""
    polygons = [np.asarray(shapely.polygons(boxes.reshape(-1, 4, 2))) for boxes in (one, two)]
    result = np.zeros((len(one), len(two)))
    valid = np.logical_and.outer(*(shapely.is_valid(shapes) for shapes in polygons))
    i, j = np.nonzero(valid)
    a, b = polygons[0][i], polygons[1][j]
    shared = shapely.area(shapely.intersection(a, b))
    result[i, j] = shared / np.maximum(shapely.area(a) + shapely.area(b) - shared, 1e-12)
    return result


_OVERLAP: Mapping[BoxKind, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    BoxKind.HBB: hbb_ious,
    BoxKind.OBB: obb_ious,
}


def ious(found: list[np.ndarray], truths: list[np.ndarray], kind: BoxKind) -> np.ndarray:
    """f[M, N] of what `reading.numbers` gives for boxes of a kind; either may be empty."""
    if not found or not truths:
        return np.zeros((len(found), len(truths)))
    return _OVERLAP[kind](np.stack(found), np.stack(truths))
