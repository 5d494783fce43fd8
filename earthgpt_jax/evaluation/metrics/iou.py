"""Intersection over union (IoU) of boxes in continuous coordinates: a box from 0 to 2 is 2 wide, without a `+1`."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import shapely

from earthgpt_jax.boxes import BoxKind

SLACK = 1e-6  # absorbs rounding only: an IoU of exactly 0.5 may be computed as 0.4999999
THRESHOLD = 0.5 - SLACK  # IoU from which a box counts as correct


def hbb_ious(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """Return the IoU matrix f[M, N] of axis-aligned boxes f[M, 4] and f[N, 4], each (x0, y0, x1, y1)."""
    low = np.maximum(boxes1[:, None, :2], boxes2[None, :, :2])
    high = np.minimum(boxes1[:, None, 2:], boxes2[None, :, 2:])
    intersection = np.clip(high - low, 0, None).prod(-1)
    areas = [np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(-1) for boxes in (boxes1, boxes2)]
    return intersection / np.maximum(areas[0][:, None] + areas[1][None] - intersection, 1e-12)


def obb_ious(polygons1: np.ndarray, polygons2: np.ndarray) -> np.ndarray:
    """Return the IoU matrix f[M, N] of polygons f[M, 8] and f[N, 8], by shapely; invalid polygons have IoU 0."""
    shapes = [np.asarray(shapely.polygons(polygons.reshape(-1, 4, 2))) for polygons in (polygons1, polygons2)]
    result = np.zeros((len(polygons1), len(polygons2)))
    valid = np.logical_and.outer(*(shapely.is_valid(group) for group in shapes))
    i, j = np.nonzero(valid)
    a, b = shapes[0][i], shapes[1][j]
    intersection = shapely.area(shapely.intersection(a, b))
    result[i, j] = intersection / np.maximum(shapely.area(a) + shapely.area(b) - intersection, 1e-12)
    return result


_IOUS: Mapping[BoxKind, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    BoxKind.HBB: hbb_ious,
    BoxKind.OBB: obb_ious,
}


def ious(boxes: list[np.ndarray], truths: list[np.ndarray], kind: BoxKind) -> np.ndarray:
    """Return the IoU matrix f[M, N] of two lists of boxes of one kind; either list may be empty.

    Args:
        boxes, truths: f[4] per axis-aligned box, f[8] per oriented box (see `parsed_boxes.truth_box`).
        kind: kind of all boxes.
    """
    if not boxes or not truths:
        return np.zeros((len(boxes), len(truths)))
    return _IOUS[kind](np.stack(boxes), np.stack(truths))
