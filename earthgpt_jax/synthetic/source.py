"""The embedded source: any number of multi-sensor records with exact truth, drawn on demand."""

from __future__ import annotations

import io
import operator
from collections.abc import Sequence

import numpy as np

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.records import Object, Record, Sensor, Task
from earthgpt_jax.synthetic.canvas import WORLD, Canvas
from earthgpt_jax.synthetic.language import SceneContents, captions, phrases
from earthgpt_jax.synthetic.noise import blob
from earthgpt_jax.synthetic.objects import PlacementArea
from earthgpt_jax.synthetic.placement import PlacedObject, place_objects, polygon, sample_classes
from earthgpt_jax.synthetic.questions import scene_questions
from earthgpt_jax.synthetic.scenes import SCENES
from earthgpt_jax.synthetic.sensors import render

NAME = "synthetic"
SPLITS = ("train", "val", "test")
_LEAST_SIZE = 32
_NEED_OBJECTS = (Task.REGION_CAPTION, Task.GROUNDING)


def scene_record(*, split: str, index: int, seed: int = 0, size: int = 128) -> Record:
    """One record; the same arguments give the same bytes.

    Args:
        split: "train", "val" or "test"; each draws from its own random streams.
        index: 0, 1, 2, ...
        seed: another seed is another data set.
        size: side of the square image, pixels.

    Raises:
        EarthGPTError: an unknown split, a negative index or seed, or a size under 32.
    """
    _check(split=split, index=index, seed=seed, size=size)
    # Truth and noise come from separate streams, so that a change of a sensor's look keeps the truth.
    layout, look = (np.random.default_rng((seed, SPLITS.index(split), index, part)) for part in range(2))
    return _record(
        layout,
        look,
        name=f"{NAME}/{split}/{index}",
        split=split,
        size=size,
        scene=str(layout.choice(list(SCENES))),
        sensor=Sensor(str(layout.choice([s.value for s in Sensor]))),
    )


def _record(
    layout: np.random.Generator,
    look: np.random.Generator,
    *,
    name: str,
    split: str,
    size: int,
    scene: str,
    sensor: Sensor,
) -> Record:
    canvas = Canvas(size=size, rng=look)
    if sensor is Sensor.SAR:
        canvas.sun = canvas.radar  # a radar's shadows point away from the radar
    kinds = sample_classes(layout, scene=scene)
    ground = SCENES[scene].draw(canvas, layout, bridged=any(kind.site == PlacementArea.CROSSING for kind in kinds))
    placed = place_objects(layout, kinds, water=canvas.water(), ground=ground)
    draw(canvas, placed, apron=SCENES[scene].apron, rng=look)
    view = SceneContents(scene=scene, sensor=sensor, objects=placed)
    objects = tuple(
        Object(label=item.kind.name, polygon=polygon(item.pose, scale=size / WORLD), phrase=phrase)
        for item, phrase in zip(placed, phrases(placed), strict=True)
    )
    return Record(
        id=name,
        image=_png(render(canvas, sensor, look)),
        height=size,
        width=size,
        sensor=sensor,
        source=NAME,
        split=split,
        tasks=tuple(task for task in Task if objects or task not in _NEED_OBJECTS),
        label=scene,
        turns=scene_questions(view, layout),
        references=captions(view),
        objects=objects,
    )


def draw(canvas: Canvas, placed: list[PlacedObject], *, apron: str, rng: np.random.Generator) -> None:
    """Paints the objects in order; first, what the background has under those on land goes away."""
    slot = canvas.slot(apron) if apron else None
    for item in placed:
        canvas.flatten(item.pose.rectangle(margin=6.0))
        if slot is not None and item.kind.clears:
            pose = item.pose
            rx, ry = pose.long * 0.56 + 3, pose.short * 0.56 + 3
            clearing = blob(rng, cx=pose.cx, cy=pose.cy, rx=rx, ry=ry, rough=0.1, turn=pose.angle)
            # Clutter would hide the corners of what is angular; a clearing around round things is round.
            for part in (clearing,) if item.kind.upright else (clearing, pose.rectangle(margin=1.5)):
                canvas.clear(part)
                canvas.polygon(part, slot)
    for item in placed:
        if item.kind.approach is not None:
            item.kind.approach(canvas, item.pose, rng)
    for item in placed:
        item.kind.draw(canvas, item.pose, rng)


def _png(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _check(*, split: str, index: int, seed: int, size: int) -> None:
    where = f"synthetic record (split={split!r}, index={index}, seed={seed}, size={size})"
    if split not in SPLITS:
        raise EarthGPTError(f"{where}: expected a split of {', '.join(SPLITS)}; got {split!r}. Name one of these.")
    if index < 0 or seed < 0:
        raise EarthGPTError(f"{where}: expected index and seed of 0 or more. Pass non-negative integers.")
    if size < _LEAST_SIZE:
        raise EarthGPTError(f"{where}: expected a size of {_LEAST_SIZE} px or more; got {size}. Use 128 or above.")


class SyntheticSource(Sequence[Record]):
    """A random-access sequence of records; nothing is stored, and it pickles.

    Attributes:
        name: "synthetic", as in every record's `source` and id.
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
