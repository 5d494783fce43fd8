"""Merge what the windows of a scene show: each object once, and whole.

Windows overlap, so an object may be detected in several, and in some of them it is cut off by the window's edge. Two
detections are of one object if they have the same class and kind, come from different windows, and agree:

- both are whole: the intersection over union (IoU) of their boxes is at least `iou`;
- one is cut: the IoU with the box around what its window shows of the other is at least `iou`;
- both are cut: their parts in the area that both windows see have this IoU, or half of it and an intersection over the
  smaller part of at least `part`. (The oriented box around a cut corner may have twice its area.)

Pairs are joined from the highest IoU down. Two detections of one window stay two objects, so neighbours in a row of
parked cars are not joined, however much their boxes overlap. Only a box that repeats an earlier one of its window (IoU
of at least `repeat`), as language models do when they write in circles, is left out. Of the detections of an object,
the result is

- the one with the highest confidence among those that are whole: the window that saw all of the object decides;
- without one, when the object is larger than the overlap: the box around all parts. Its confidence is the mean of
  theirs, weighted by area.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np
import shapely

from earthgpt_jax.boxes import BoxKind, min_area_rect, rect_to_polygon
from earthgpt_jax.scenes.windows import EDGE, Window


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SceneObject:
    """An object that was detected in a scene.

    Attributes:
        label: the class; "" if the model named none.
        kind: horizontal or oriented box.
        polygon: f64[4, 2], corners (x, y) in pixels of the scene, clockwise on screen.
        confidence: in (0, 1], see `inference.confidence`; None if unknown.
        window: the window whose answer this is; of several, that of the most confident answer.
    """

    label: str
    kind: BoxKind
    polygon: np.ndarray
    confidence: float | None
    window: Window


@dataclasses.dataclass(frozen=True, kw_only=True)
class MergeRule:
    """When two detections are of one object.

    Attributes:
        iou: least intersection over union.
        part: least intersection over the smaller part, where both boxes are cut.
        edge: a box is cut if a corner is within this share of the window's side from an edge, unless the scene ends
            there.
        repeat: IoU from which a box repeats an earlier one of the same window.
    """

    iou: float = 0.5
    part: float = 0.7
    edge: float = EDGE
    repeat: float = 0.95

    def to_dict(self) -> dict[str, float]:
        """Return the attributes as JSON values."""
        return dataclasses.asdict(self)


def merge(found: Sequence[SceneObject], *, width: int, height: int, rule: MergeRule | None = None) -> list[SceneObject]:
    """Return each object once, ordered as the detections that stand for them.

    Args:
        found: the detections of all windows. Their order decides between equals.
        width, height: of the scene, in pixels.
        rule: default: `MergeRule()`.
    """
    rule = rule or MergeRule()
    classes: dict[tuple[str, BoxKind], list[int]] = collections.defaultdict(list)
    for i, item in enumerate(found):
        classes[item.label, item.kind].append(i)
    chosen = []
    for with_repeats in classes.values():
        indices = [with_repeats[i] for i in _without_repeats([found[i] for i in with_repeats], rule.repeat)]
        group = [found[i] for i in indices]
        cut = np.array([_is_cut(item, width=width, height=height, edge=rule.edge) for item in group])
        for cluster in _clusters(group, cut, rule):
            best = _best(group, [i for i in cluster if not cut[i]] or cluster)
            if len(cluster) > 1 and cut[cluster].all():
                chosen.append((indices[best], _joined([group[i] for i in cluster], group[best])))
            else:
                chosen.append((indices[best], group[best]))
    return [item for _, item in sorted(chosen, key=lambda pair: pair[0])]


def _without_repeats(group: Sequence[SceneObject], repeat: float) -> list[int]:
    """Return the indices of the detections that do not repeat an earlier one of their window."""
    windows, shapes, first, second = _intersecting(group)
    same = windows[first] == windows[second]
    first, second = first[same], second[same]
    iou, _ = _overlaps(shapes[first], shapes[second])
    repeated = set(second[iou >= repeat].tolist())
    return [i for i in range(len(group)) if i not in repeated]


def _intersecting(group: Sequence[SceneObject]) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the number of each detection's window, its shape, and the pairs that intersect, the earlier one first."""
    shapes = shapely.make_valid(shapely.polygons(np.stack([item.polygon for item in group])))
    numbers = {window: i for i, window in enumerate(dict.fromkeys(item.window for item in group))}
    first, second = shapely.STRtree(shapes).query(shapes, predicate="intersects")
    ordered = first < second
    return np.array([numbers[item.window] for item in group]), shapes, first[ordered], second[ordered]


def _is_cut(item: SceneObject, *, width: int, height: int, edge: float) -> bool:
    left, top, right, bottom = item.window.bounds
    (x0, y0), (x1, y1) = item.polygon.min(axis=0), item.polygon.max(axis=0)
    dx, dy = edge * item.window.width, edge * item.window.height
    return bool(
        (left > 0 and x0 <= left + dx) or (right < width and x1 >= right - dx)
        or (top > 0 and y0 <= top + dy) or (bottom < height and y1 >= bottom - dy)
    )  # fmt: skip


def _best(group: Sequence[SceneObject], candidates: Iterable[int]) -> int:
    """Return the most confident of some detections; of equals, the one farthest from its window's edges."""

    def rank(i: int) -> tuple[float, float, int]:
        item = group[i]
        left, top, right, bottom = item.window.bounds
        (x0, y0), (x1, y1) = item.polygon.min(axis=0), item.polygon.max(axis=0)
        return item.confidence or 0.0, float(min(x0 - left, right - x1, y0 - top, bottom - y1)), -i

    return max(candidates, key=rank)


def _clusters(group: Sequence[SceneObject], cut: np.ndarray, rule: MergeRule) -> list[list[int]]:
    """Return the detections of each object, as indices in increasing order."""
    cluster_of = list(range(len(group)))
    members = [[i] for i in range(len(group))]
    windows = [{item.window} for item in group]
    for i, j in _pairs(group, cut, rule):
        a, b = sorted((cluster_of[i], cluster_of[j]))
        if a == b or windows[a] & windows[b]:
            continue
        for member in members[b]:
            cluster_of[member] = a
        members[a] += members[b]
        windows[a] |= windows[b]
        members[b] = []
    return [sorted(cluster) for cluster in members if cluster]


def _pairs(group: Sequence[SceneObject], cut: np.ndarray, rule: MergeRule) -> list[tuple[int, int]]:
    """Return the pairs of detections that agree, from the highest IoU down."""
    corners = np.stack([item.polygon for item in group])
    window, shapes, first, second = _intersecting(group)
    bounds = np.array([item.window.bounds for item in group], np.float64)
    other = window[first] != window[second]
    first, second = first[other], second[other]
    low = np.maximum(bounds[first, :2], bounds[second, :2])
    high = np.minimum(bounds[first, 2:], bounds[second, 2:])
    common = (low < high).all(axis=1)
    first, second, low, high = first[common], second[common], low[common], high[common]
    a, b = shapes[first], shapes[second]
    cut_a, cut_b = cut[first], cut[second]
    both = cut_a & cut_b
    shared = shapely.box(*low[both].T, *high[both].T)
    a[both], b[both] = (shapely.intersection(parts[both], shared) for parts in (a, b))
    iou, part = _overlaps(a, b)
    for one, cut_ones, whole in ((cut_a & ~cut_b, first, b), (cut_b & ~cut_a, second, a)):
        boxes, seen_in = corners[cut_ones[one]], bounds[cut_ones[one]]
        iou[one] = _iou_with_visible(boxes, shapely.intersection(whole[one], shapely.box(*seen_in.T)))
    agree = (iou >= rule.iou) | (both & (part >= rule.part) & (iou >= rule.iou / 2))
    order = np.lexsort((second[agree], first[agree], -iou[agree].round(6)))
    return list(zip(first[agree][order].tolist(), second[agree][order].tolist(), strict=True))


def _overlaps(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the intersection over union of shapes, and over the smaller shape, f64[n] each."""
    common, area_a, area_b = shapely.area(shapely.intersection(a, b)), shapely.area(a), shapely.area(b)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(common / (area_a + area_b - common)), np.nan_to_num(common / np.minimum(area_a, area_b))


def _iou_with_visible(boxes: np.ndarray, visible: np.ndarray) -> np.ndarray:
    """Return the IoU of boxes f64[n, 4, 2] with the boxes around visible parts that have the same direction."""
    points, owner = shapely.get_coordinates(visible, return_index=True)
    along = boxes[:, 1] - boxes[:, 0]
    along /= np.maximum(np.linalg.norm(along, axis=1, keepdims=True), np.finfo(float).tiny)
    axes = np.stack([along, np.stack([-along[:, 1], along[:, 0]], axis=1)], axis=2)  # [n, xy, axis]
    low, high = np.full((len(boxes), 2), np.inf), np.full((len(boxes), 2), -np.inf)
    turned = np.einsum("px,pxa->pa", points, axes[owner])
    np.minimum.at(low, owner, turned)
    np.maximum.at(high, owner, turned)
    turned = np.einsum("npx,nxa->npa", boxes, axes)
    own_low, own_high = turned.min(axis=1), turned.max(axis=1)
    common = np.maximum(np.minimum(high, own_high) - np.maximum(low, own_low), 0).prod(axis=1)
    areas = (own_high - own_low).prod(axis=1) + np.maximum(high - low, 0).prod(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.nan_to_num(common / (areas - common))


def _joined(parts: Sequence[SceneObject], best: SceneObject) -> SceneObject:
    """Return an object of which no window saw the whole."""
    seen = [shapely.intersection(shapely.Polygon(part.polygon), shapely.box(*part.window.bounds)) for part in parts]
    areas = np.array([max(shape.area, np.finfo(float).tiny) for shape in seen])
    points = np.concatenate([shapely.get_coordinates(shape) for shape in seen if shape.area] or [best.polygon])
    origin = np.floor(points.min(axis=0))  # boxes are computed in float32
    if best.kind is BoxKind.HBB:
        polygon = rect_to_polygon(*(points.min(axis=0) - origin), *(points.max(axis=0) - origin))
    else:
        polygon = min_area_rect(points - origin)
    known = [part.confidence for part in parts if part.confidence is not None]
    confidence = float(np.average(known, weights=areas)) if len(known) == len(parts) else best.confidence
    return dataclasses.replace(best, polygon=polygon.astype(np.float64).reshape(4, 2) + origin, confidence=confidence)
