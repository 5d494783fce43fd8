"""Predictions about whole scenes, from those about their tiles.

A build cuts a large scene into tiles, whose records are named `scene@x,y`. As in DOTA's evaluation, the boxes of a
scene's tiles are merged before they are scored: an object in the overlap of two tiles counts once, and one that a tile
cuts off counts as a whole. `scenes.merging` merges boxes and annotated objects alike.
"""

from __future__ import annotations

import collections
import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation.confidence import assign_confidences
from earthgpt_jax.evaluation.metrics.parsed_boxes import box_confidences, frame_of, parse_answer
from earthgpt_jax.evaluation.predictions import DETECTION_TASKS, CoordinateFrame, Prediction, Truth
from earthgpt_jax.scenes.merging import MergeRule, SceneObject, merge
from earthgpt_jax.scenes.windows import Window

_TILE = re.compile(r"(?P<scene>.+)@(?P<x>\d+),(?P<y>\d+)")
_EXACT = MergeRule(edge=1e-4)  # annotations are cut exactly at the edge of a tile
_DIGITS = 6  # of fractions


def scene_predictions(predictions: Sequence[Prediction], rule: MergeRule | None = None) -> list[Prediction]:
    """Return one prediction per scene and detection task; images that are no tiles stay as they are.

    Args:
        predictions: of all tiles of each scene; those of other tasks are left out.
        rule: how boxes are merged.

    Raises:
        EarthGPTError: no image is a tile.
    """
    scenes: dict[tuple[str, str], list[Prediction]] = collections.defaultdict(list)
    whole = []
    for prediction in assign_confidences([p for p in predictions if p.task in DETECTION_TASKS]):
        tile = _TILE.fullmatch(prediction.record_id)
        if tile:
            scenes[prediction.task, tile["scene"]].append(prediction)
        else:
            whole.append(prediction)
    if not scenes:
        raise EarthGPTError(
            "--scenes: expected tiles of scenes, as `earthgpt data build` makes for a card with `tile`; no image is one"
        )
    return [*whole, *(_merged(task, scene, tiles, rule) for (task, scene), tiles in scenes.items())]


def _merged(task: str, scene: str, tiles: Sequence[Prediction], rule: MergeRule | None) -> Prediction:
    tiles = sorted(tiles, key=_window)
    width, height = (max(_window(tile).bounds[i] for tile in tiles) for i in (2, 3))
    boxes = merge([box for tile in tiles for box in _boxes(tile)], width=width, height=height, rule=rule)
    truths = merge([truth for tile in tiles for truth in _truths(tile)], width=width, height=height, rule=_EXACT)
    size = np.array([width, height], np.float64)
    parts = []
    for box in boxes:
        corners = np.clip(box.polygon / size, 0, 1)
        low, high = corners.min(axis=0), corners.max(axis=0)
        values = np.concatenate([low, high]) if box.kind is BoxKind.HBB else corners.reshape(-1)
        parts.append(f"<p>{box.label}</p>[{','.join(f'{value:.{_DIGITS}f}' for value in values)}]")
    unreadable = sum(len(parse_answer(tile).rejections) for tile in tiles)
    known = all(box.confidence is not None for box in boxes)
    return dataclasses.replace(
        tiles[0],
        id=f"{scene}/{task}",
        record_id=scene,
        prediction=" ".join([*parts, *["[?]"] * unreadable]),  # an unreadable part stays one
        answer="",
        references=(),
        objects=tuple(
            Truth(
                label=truth.label, polygon=tuple(truth.polygon.reshape(-1).tolist()), difficult=truth.confidence == 0
            )
            for truth in truths
        ),
        width=width, height=height, frame=CoordinateFrame.IMAGE.value,
        confidences=tuple(box.confidence or 0.0 for box in boxes) if known else (), token_lengths=(), logprobs=(),
    )  # fmt: skip


def _window(tile: Prediction) -> Window:
    match = _TILE.fullmatch(tile.record_id)
    assert match is not None
    return Window(int(match["y"]), int(match["x"]), tile.height, tile.width)


def _boxes(tile: Prediction) -> list[SceneObject]:
    window, frame = _window(tile), frame_of(tile)
    confidences = box_confidences(tile) if tile.confidences else None
    return [
        SceneObject(
            label=box.label, kind=box.kind, polygon=_at(box.pixels(frame), window), window=window,
            confidence=None if confidences is None else float(confidences[i]),
        )
        for i, box in enumerate(parse_answer(tile).boxes)
    ]  # fmt: skip


def _truths(tile: Prediction) -> list[SceneObject]:
    """Return the annotated objects; those that are not difficult have confidence 1, and others 0.

    A build marks an object as difficult in a tile that cuts it, too. The tile that has all of it decides.
    """
    window = _window(tile)
    return [
        SceneObject(
            label=item.label, kind=BoxKind.OBB, polygon=_at(np.array(item.polygon), window), window=window,
            confidence=0.0 if item.difficult else 1.0,
        )
        for item in tile.objects
    ]  # fmt: skip


def _at(polygon: np.ndarray, window: Window) -> np.ndarray:
    return np.asarray(polygon, np.float64).reshape(4, 2) + np.array([window.x, window.y])
