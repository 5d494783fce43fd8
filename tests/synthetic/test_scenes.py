"""The synthetic source: records are reproducible, and their boxes match the drawn objects."""

from __future__ import annotations

import io
import pickle

import numpy as np
import pytest
import shapely
from PIL import Image

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.records import Record, Sensor, Task
from earthgpt_jax.synthetic import OBJECTS, SCENES, SPLITS, SyntheticSource, scene_record
from earthgpt_jax.synthetic.canvas import Canvas
from earthgpt_jax.synthetic.pose import Pose
from earthgpt_jax.synthetic.scenes import CLASS_PROBABILITIES
from earthgpt_jax.synthetic.sensors import render


@pytest.fixture(scope="module")
def records() -> list[Record]:
    return [scene_record(split="train", index=i) for i in range(150)]


def _pixels(record: Record) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(record.image)).convert("RGB"))


def _facts(record: Record) -> tuple:
    boxes = [(o.label, o.phrase, o.polygon.tolist()) for o in record.objects]
    return record.id, record.image, record.label, record.sensor, record.turns, record.references, boxes


def test_same_arguments_same_record() -> None:
    assert _facts(scene_record(split="val", index=7)) == _facts(scene_record(split="val", index=7))


def test_splits_and_seeds_differ() -> None:
    images = {scene_record(split=split, index=3, seed=seed).image for split in SPLITS for seed in (0, 1)}
    assert len(images) == 6


def test_source_is_a_picklable_sequence() -> None:
    source = SyntheticSource("test", 5, seed=2, size=64)
    copy = pickle.loads(pickle.dumps(source))
    assert len(copy) == 5
    assert copy.name == "synthetic"
    assert _facts(copy[4]) == _facts(source[-1]) == _facts(scene_record(split="test", index=4, seed=2, size=64))
    with pytest.raises(IndexError):
        source[5]


@pytest.mark.parametrize(
    "wrong", [{"split": "dev"}, {"index": -1}, {"seed": -1}, {"size": 8}], ids=lambda wrong: next(iter(wrong))
)
def test_wrong_arguments_are_user_errors(wrong: dict) -> None:
    with pytest.raises(EarthGPTError, match="expected"):
        scene_record(**{"split": "train", "index": 0} | wrong)


def test_record_is_named_synthetic_and_complete(records: list[Record]) -> None:
    for index, record in enumerate(records):
        assert record.id == f"synthetic/train/{index}"
        assert record.source == "synthetic"
        assert record.label in SCENES
        assert len(set(record.references)) == 4
        assert (record.height, record.width) == _pixels(record).shape[:2] == (128, 128)
        mode = Image.open(io.BytesIO(record.image)).mode
        assert mode == ("RGB" if record.sensor is Sensor.OPTICAL else "L")
        assert {Task.HBB, Task.OBB, Task.VQA, Task.CAPTION, Task.CLASSIFICATION} <= set(record.tasks)
        assert (Task.GROUNDING in record.tasks) == (Task.REGION_CAPTION in record.tasks) == bool(record.objects)


def test_every_scene_sensor_and_class_occurs(records: list[Record]) -> None:
    assert {r.label for r in records} == set(SCENES)
    assert {r.sensor for r in records} == set(Sensor)
    assert {o.label for r in records for o in r.objects} == set(OBJECTS)
    assert any(not r.objects for r in records)
    assert all(len({o.label for o in r.objects}) <= 2 and len(r.objects) <= 5 for r in records)


def test_boxes_are_inside_apart_and_within_size_limits(records: list[Record]) -> None:
    frame = shapely.box(0, 0, 128, 128)
    for record in records:
        shapes = [shapely.Polygon(o.polygon.reshape(4, 2)) for o in record.objects]
        for item, shape in zip(record.objects, shapes, strict=True):
            assert item.polygon.dtype == np.float32
            assert frame.contains(shape)
            corners = item.polygon.reshape(4, 2)
            sides = np.linalg.norm(corners - np.roll(corners, -1, axis=0), axis=1)
            assert 10 <= sides.min() <= sides.max() <= 60.01
            assert sides.max() >= 22
            assert sides[0] == pytest.approx(sides[2], abs=1e-3)
            assert corners[0, 1] == pytest.approx(corners[:, 1].min(), abs=1e-3)
            # Clockwise on screen: the shoelace sum is positive where y points down.
            x, y = corners.T.astype(np.float64)
            assert (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() > 0
        for one in range(len(shapes)):
            for other in range(one):
                assert shapes[one].distance(shapes[other]) > 1.0, record.id


def test_size_scales_boxes() -> None:
    small, large = (scene_record(split="train", index=1, size=size) for size in (128, 256))
    assert _pixels(large).shape == (256, 256, 3)
    assert small.objects
    np.testing.assert_allclose(large.objects[0].polygon, 2 * small.objects[0].polygon, atol=1e-3)


@pytest.mark.parametrize("name", OBJECTS)
def test_silhouette_fills_its_rectangle(name: str) -> None:
    """The drawing touches all four sides of the ground-truth rectangle and does not extend beyond them."""
    object_class = OBJECTS[name]
    rng = np.random.default_rng(5)
    canvas = Canvas(size=128, rng=rng)
    canvas.fill("grass")
    length = sum(object_class.length_range) / 2
    width = max(10.2, length * sum(object_class.width_ratio) / 2)
    pose = Pose(cx=64.3, cy=62.1, length=length, width=width, angle=0.0 if object_class.axis_aligned else 0.7)
    object_class.draw(canvas, pose, rng)
    indices = np.asarray(canvas._layers["material"])
    is_object = np.array([i > 0 and not m.water for i, m in enumerate(canvas.palette)])  # a wake is water
    rows, columns = np.nonzero(is_object[indices])
    x, y = (columns + 0.5) / canvas.scale - pose.cx, (rows + 0.5) / canvas.scale - pose.cy
    cos, sin = np.cos(pose.angle), np.sin(pose.angle)
    along, across = x * cos + y * sin, y * cos - x * sin
    reached = [along.min(), along.max(), across.min(), across.max()]
    np.testing.assert_allclose(reached, [-length / 2, length / 2, -width / 2, width / 2], atol=0.8)


def test_object_classes_are_equally_common_over_scenes() -> None:
    for name in OBJECTS:
        total = sum(probabilities.get(name, 0.0) for probabilities in CLASS_PROBABILITIES.values())
        assert total == pytest.approx(len(SCENES) / len(OBJECTS), rel=0.02)
    for scene, probabilities in CLASS_PROBABILITIES.items():
        assert len(probabilities) >= 2
        assert sum(probabilities.values()) == pytest.approx(1.0), scene


@pytest.mark.parametrize("sensor", [Sensor.SAR, Sensor.INFRARED])
def test_water_is_darker_than_land(sensor: Sensor) -> None:
    rng = np.random.default_rng(0)
    canvas = Canvas(size=128, rng=rng)
    SCENES["harbor"].draw(canvas, rng, needs_crossing=False)
    grey = np.asarray(render(canvas, sensor, rng)).astype(float)
    water = canvas.water()
    assert grey[~water].mean() > 1.6 * grey[water].mean()


def test_speckle_is_multiplicative() -> None:
    """Noise in SAR images grows with brightness; its relative level matches 2 to 8 looks."""
    ratios = []
    for material in ("fresh", "rock"):
        rng = np.random.default_rng(1)
        canvas = Canvas(size=128, rng=rng)
        canvas.fill(material)
        grey = np.asarray(render(canvas, Sensor.SAR, rng)).astype(float)
        ratios.append(grey.std() / grey.mean())
    assert all(0.08 < ratio < 0.5 for ratio in ratios)
