"""Scores of scenes: tiles are merged first, so that an object counts once."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from earthgpt_jax.boxes import BoxKind, Square
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation import scores
from earthgpt_jax.evaluation.predictions import Prediction, Truth
from earthgpt_jax.evaluation.report import scene_table
from earthgpt_jax.evaluation.scene_predictions import scene_predictions
from earthgpt_jax.scenes.windows import Window, grid
from tests.support.oracle import Oracle, random_objects

WIDTH, HEIGHT = 900, 600


def tiles(kind: BoxKind) -> tuple[list[Prediction], int]:
    """Return what an oracle says about the tiles of a scene, and the number of its objects."""
    truth = random_objects(np.random.default_rng(2), 40, width=WIDTH, height=HEIGHT, largest=60, kind=kind)
    oracle, found = Oracle(truth), []
    for window in grid(WIDTH, HEIGHT, size=300, overlap=80):
        seen = oracle.look(window)
        found.append(_tile(window, [(item.label, item.polygon - (window.x, window.y), item) for item in seen], kind))
    return found, len(truth)


def _tile(window: Window, seen: list, kind: BoxKind) -> Prediction:
    parts, objects = [], []
    for label, polygon, item in seen:
        whole = np.ptp(item.polygon, axis=0).min() > 0 and _inside(item.polygon, window)
        corners = np.clip(Square(window.width, window.height).to_fractions(polygon), 0, 1)
        values = [*corners[:2], *corners[4:6]] if kind is BoxKind.HBB else corners
        parts.append(f"<p>one {label}</p>[{','.join(f'{value:.5f}' for value in values)}]")
        objects.append(Truth(label=label, polygon=tuple(polygon.reshape(-1)), difficult=not whole))
    return Prediction(
        id=f"d/test/p@{window.x},{window.y}/{kind}", record_id=f"d/test/p@{window.x},{window.y}", task=kind.value,
        question_type="", sensor="optical", source="d", question="?", prediction=" ".join(parts), answer="",
        references=(), objects=tuple(objects), object_index=None, width=window.width, height=window.height,
    )  # fmt: skip


def _inside(polygon: np.ndarray, window: Window) -> bool:
    x0, y0, x1, y1 = window.bounds
    (left, top), (right, bottom) = polygon.min(axis=0), polygon.max(axis=0)
    return bool(
        (left > x0 or x0 == 0) and (top > y0 or y0 == 0) and right < x1 + (x1 == WIDTH) and bottom < y1 + (y1 == HEIGHT)
    )


@pytest.mark.parametrize("kind", BoxKind)
def test_the_tiles_of_a_scene_become_one_prediction(kind: BoxKind):
    predictions, count = tiles(kind)
    (scene,) = scene_predictions(predictions)
    assert (scene.record_id, scene.width, scene.height) == ("d/test/p", WIDTH, HEIGHT)
    assert len(scene.objects) == count and not any(item.difficult for item in scene.objects)
    cell = scores.score([scene], extras=(scores.Extra.AP,))[kind.value]["all"]
    assert cell["f1"] == 1 and cell["ap50"] == pytest.approx(1) and cell["n"] == 1
    table = scene_table(scores.score(predictions, extras=(scores.Extra.AP,)), scores.score([scene]))
    assert [row[1] for row in table.rows] == ["tiles", "scenes"]


def test_a_box_that_two_tiles_show_counts_once_and_an_unreadable_part_stays():
    predictions, _ = tiles(BoxKind.HBB)
    predictions[0] = dataclasses.replace(predictions[0], prediction=predictions[0].prediction + " [0.1,0.2]")
    (scene,) = scene_predictions(predictions)
    cell = scores.score([scene])["hbb"]["all"]
    assert cell["recall"] == 1 and 0.9 < cell["precision"] < 1 and cell["parse_rate"] == 0


def test_confidences_are_kept_and_images_that_are_no_tiles_stay():
    predictions, _ = tiles(BoxKind.HBB)
    sure = [dataclasses.replace(p, confidences=tuple(0.5 for _ in p.objects)) for p in predictions]
    whole = dataclasses.replace(sure[0], id="w", record_id="d/test/whole")
    same, scene = scene_predictions([whole, *sure])
    assert same.record_id == "d/test/whole" and set(scene.confidences) == {0.5}
    with pytest.raises(EarthGPTError, match="no image is one"):
        scene_predictions([whole])
