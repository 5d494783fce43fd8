"""The synthetic data source: any number of multi-sensor records with exact ground truth, generated on demand."""

from __future__ import annotations

import io
import operator
from collections.abc import Sequence

import numpy as np
from PIL import Image

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.records import Object, Record, Sensor, Task
from earthgpt_jax.synthetic.canvas import WORLD, Canvas
from earthgpt_jax.synthetic.language import SceneContents, captions, phrases
from earthgpt_jax.synthetic.noise import blob_outline
from earthgpt_jax.synthetic.objects import PlacementArea
from earthgpt_jax.synthetic.placement import PlacedObject, corner_polygon, place_objects, sample_classes
from earthgpt_jax.synthetic.questions import scene_questions
from earthgpt_jax.synthetic.scenes import SCENES
from earthgpt_jax.synthetic.sensors import render

NAME = "synthetic"
SPLITS = ("train", "val", "test")
_MIN_SIZE = 32
_OBJECT_TASKS = (Task.REGION_CAPTION, Task.GROUNDING)


def scene_record(*, split: str, index: int, seed: int = 0, size: int = 128) -> Record:
    """Generate one record; the same arguments always give the same bytes.

    Args:
        split: "train", "val" or "test"; each has its own random streams.
        index: 0, 1, 2, ...
        seed: selects the dataset; another seed gives other records.
        size: side of the square image in pixels.

    Raises:
        EarthGPTError: the split is unknown, the index or seed is negative, or the size is below 32.
    """
    _check(split=split, index=index, seed=seed, size=size)
    # Ground truth and appearance use separate random streams, so that changes to rendering keep the ground truth.
    layout_rng, render_rng = (np.random.default_rng((seed, SPLITS.index(split), index, part)) for part in range(2))
    return _record(
        layout_rng,
        render_rng,
        name=f"{NAME}/{split}/{index}",
        split=split,
        size=size,
        scene=str(layout_rng.choice(list(SCENES))),
        sensor=Sensor(str(layout_rng.choice([s.value for s in Sensor]))),
    )


def _record(
    layout_rng: np.random.Generator,
    render_rng: np.random.Generator,
    *,
    name: str,
    split: str,
    size: int,
    scene: str,
    sensor: Sensor,
) -> Record:
    canvas = Canvas(size=size, rng=render_rng)
    if sensor is Sensor.SAR:
        canvas.sun_direction = canvas.radar_direction  # radar shadows point away from the radar
    classes = sample_classes(layout_rng, scene=scene)
    terrain = SCENES[scene].draw(
        canvas, layout_rng, needs_crossing=any(object_class.area == PlacementArea.CROSSING for object_class in classes)
    )
    placed = place_objects(layout_rng, classes, water=canvas.water(), terrain=terrain)
    draw_objects(canvas, placed, clearing_material=SCENES[scene].clearing_material, rng=render_rng)
    contents = SceneContents(scene=scene, sensor=sensor, objects=placed)
    objects = tuple(
        Object(label=item.object_class.name, polygon=corner_polygon(item.pose, scale=size / WORLD), phrase=phrase)
        for item, phrase in zip(placed, phrases(placed), strict=True)
    )
    return Record(
        id=name,
        image=_png(render(canvas, sensor, render_rng)),
        height=size,
        width=size,
        sensor=sensor,
        source=NAME,
        split=split,
        tasks=tuple(task for task in Task if objects or task not in _OBJECT_TASKS),
        label=scene,
        turns=scene_questions(contents, layout_rng),
        references=captions(contents),
        objects=objects,
    )


def draw_objects(
    canvas: Canvas, placed: list[PlacedObject], *, clearing_material: str, rng: np.random.Generator
) -> None:
    """Paint the objects in order, after removing the background clutter under objects on land.

    Args:
        clearing_material: see `SceneClass`.
    """
    clearing_index = canvas.add_material(clearing_material) if clearing_material else None
    for item in placed:
        canvas.flatten_relief(item.pose.rectangle(margin=6.0))
        if clearing_index is not None and item.object_class.needs_clearing:
            pose = item.pose
            rx, ry = pose.length * 0.56 + 3, pose.width * 0.56 + 3
            clearing = blob_outline(rng, cx=pose.cx, cy=pose.cy, rx=rx, ry=ry, roughness=0.1, rotation=pose.angle)
            # Clutter would hide the corners of angular objects; round objects need only the round clearing.
            for part in (clearing,) if item.object_class.axis_aligned else (clearing, pose.rectangle(margin=1.5)):
                canvas.clear_effects(part)
                canvas.polygon(part, clearing_index)
    for item in placed:
        if item.object_class.draw_approach is not None:
            item.object_class.draw_approach(canvas, item.pose, rng)
    for item in placed:
        item.object_class.draw(canvas, item.pose, rng)


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _check(*, split: str, index: int, seed: int, size: int) -> None:
    where = f"synthetic record (split={split!r}, index={index}, seed={seed}, size={size})"
    if split not in SPLITS:
        raise EarthGPTError(f"{where}: expected a split of {', '.join(SPLITS)}; got {split!r}. Use one of these.")
    if index < 0 or seed < 0:
        raise EarthGPTError(f"{where}: expected index and seed of 0 or more. Pass non-negative integers.")
    if size < _MIN_SIZE:
        raise EarthGPTError(f"{where}: expected a size of {_MIN_SIZE} px or more; got {size}. Use 128 or above.")


class SyntheticSource(Sequence[Record]):
    """A random-access sequence of records. It stores no records and can be pickled.

    Attributes:
        name: "synthetic", as in the `source` and id of every record.
        split: "train", "val" or "test".
    """

    name = NAME

    def __init__(self, split: str, count: int, *, seed: int = 0, size: int = 128):
        _check(split=split, index=0, seed=seed, size=size)
        if count < 0:
            raise EarthGPTError(f"synthetic source {split!r}: expected a count of 0 or more; got {count}.")
        self.split = split
        self._length = count
        self.seed = seed
        self.size = size

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Record:  # type: ignore[override]  # no slices
        position = operator.index(index)
        if position < 0:
            position += self._length
        if not 0 <= position < self._length:
            raise IndexError(f"synthetic source {self.split!r} holds {self._length} records; got index {index}")
        return scene_record(split=self.split, index=position, seed=self.seed, size=self.size)

    def __repr__(self) -> str:
        return f"SyntheticSource({self.split!r}, {self._length}, seed={self.seed}, size={self.size})"
