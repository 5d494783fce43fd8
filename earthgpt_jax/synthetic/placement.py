"""Choose the objects of an image and their positions: inside the image, apart from each other, on suitable ground."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image, ImageDraw

from earthgpt_jax.synthetic.canvas import WORLD
from earthgpt_jax.synthetic.objects import OBJECTS, ObjectClass, PlacementArea
from earthgpt_jax.synthetic.pose import Pose
from earthgpt_jax.synthetic.scenes import CLASS_PROBABILITIES
from earthgpt_jax.synthetic.terrain import Terrain

EMPTY_SHARE = 0.07
TWO_CLASSES_SHARE = 0.45
_BORDER = 2.0  # minimum distance to the image border, world units
_HALF_GAP = 2.5  # half of the minimum distance between two rectangles, world units
_MAX_ATTEMPTS = 50
# Share of the size range that is used, by number of objects: many objects fit only if they are small.
_SIZE_RANGE = {1: 1.0, 2: 0.85, 3: 0.6, 4: 0.4, 5: 0.3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlacedObject:
    """An object of a scene: its class and its rectangle."""

    object_class: ObjectClass
    pose: Pose


def sample_classes(rng: np.random.Generator, *, scene: str) -> list[ObjectClass]:
    """Draw the object classes of an image, one item per object; a small share of images has no objects."""
    if rng.random() < EMPTY_SHARE:
        return []
    names, weights = list(CLASS_PROBABILITIES[scene]), np.array(list(CLASS_PROBABILITIES[scene].values()))
    count = 2 if len(names) > 1 and rng.random() < TWO_CLASSES_SHARE else 1
    classes = [OBJECTS[n] for n in rng.choice(names, size=count, replace=False, p=weights / weights.sum())]
    if count == 1:
        return classes * min(int(rng.integers(1, 6)), classes[0].max_count)
    first, second = classes
    first_count = int(rng.integers(1, 5))
    second_count = int(rng.integers(1, 6 - first_count))
    return [first] * min(first_count, first.max_count) + [second] * min(second_count, second.max_count)


def place_objects(
    rng: np.random.Generator, classes: list[ObjectClass], *, water: np.ndarray, terrain: Terrain
) -> list[PlacedObject]:
    """Place the objects at random. Objects without a free position after some attempts are left out.

    Args:
        classes: one item per object.
        water: bool[128,128], True for water, one cell per world unit.
        terrain: positions and directions that the background suggests.
    """
    taken = Image.new("1", (int(WORLD), int(WORLD)), 0)
    draw = ImageDraw.Draw(taken)
    placed: list[PlacedObject] = []
    land = ~water
    # Objects with few possible positions come first, then large ones.
    order = sorted(classes, key=lambda c: (c.area != PlacementArea.CROSSING, -c.length_range[1] * c.width_ratio[1]))
    for object_class in order:
        if object_class.area == PlacementArea.CROSSING and not terrain.crossings:
            continue
        occupied = np.asarray(taken)
        allowed = (water if object_class.area == PlacementArea.WATER else land) & ~occupied
        for _ in range(_MAX_ATTEMPTS):
            pose = _sample_pose(rng, object_class, terrain=terrain, count=len(classes))
            free = ~occupied if object_class.area == PlacementArea.CROSSING else allowed
            if pose is not None and _fits(pose, free):
                placed.append(PlacedObject(object_class=object_class, pose=pose))
                draw.polygon([tuple(p) for p in pose.rectangle(margin=_HALF_GAP).tolist()], fill=1)
                break
    return placed


def _sample_pose(rng: np.random.Generator, object_class: ObjectClass, *, terrain: Terrain, count: int) -> Pose | None:
    low, high = object_class.length_range
    length = rng.uniform(low, low + (high - low) * _SIZE_RANGE[min(count, 5)])
    width = max(length * rng.uniform(*object_class.width_ratio), 10.2)
    if object_class.area == PlacementArea.CROSSING:
        spot = terrain.crossings[int(rng.integers(len(terrain.crossings)))]
        length, width = spot.width + rng.uniform(10, 14), rng.uniform(10.4, 13)
        return _if_inside(Pose(cx=spot.x, cy=spot.y, length=length, width=width, angle=spot.angle))
    if object_class.axis_aligned:
        angle = 0.0
    elif terrain.direction is not None and rng.random() < 0.6:
        angle = terrain.direction + rng.normal() * 0.08 + np.pi * float(rng.integers(2))
    else:
        angle = rng.uniform(0, 2 * np.pi)
    half_x, half_y = _half_extent(length, width, angle)
    reach_x, reach_y = WORLD / 2 - _BORDER - half_x, WORLD / 2 - _BORDER - half_y
    if reach_x < 0 or reach_y < 0:
        return None
    cx, cy = WORLD / 2 + reach_x * rng.uniform(-1, 1), WORLD / 2 + reach_y * rng.uniform(-1, 1)
    return Pose(cx=cx, cy=cy, length=length, width=width, angle=angle)


def _half_extent(length: float, width: float, angle: float) -> tuple[float, float]:
    cos, sin = abs(np.cos(angle)), abs(np.sin(angle))
    return (length * cos + width * sin) / 2, (length * sin + width * cos) / 2


def _if_inside(pose: Pose) -> Pose | None:
    half_x, half_y = _half_extent(pose.length, pose.width, pose.angle)
    reach = WORLD / 2 - _BORDER
    fits = abs(pose.cx - WORLD / 2) + half_x <= reach and abs(pose.cy - WORLD / 2) + half_y <= reach
    return pose if fits else None


_STEPS = np.linspace(-0.5, 0.5, 13)
_LATTICE = np.stack(np.meshgrid(_STEPS, _STEPS[::2]), axis=-1).reshape(-1, 2)


def _fits(pose: Pose, free: np.ndarray) -> bool:
    """Return whether the rectangle and its margin are on free cells; tested at points about 4 world units apart."""
    if not free[int(pose.cy), int(pose.cx)]:
        return False
    points = pose.offsets(_LATTICE * (pose.length + 2 * _HALF_GAP, pose.width + 2 * _HALF_GAP))
    cells = np.clip(points, 0, WORLD - 1).astype(np.intp)
    return bool(free[cells[:, 1], cells[:, 0]].all())


def corner_polygon(pose: Pose, *, scale: float) -> np.ndarray:
    """Return the corners in pixels, f32[8], clockwise on screen from the topmost one (the left one of two)."""
    corners = (pose.rectangle() * scale).astype(np.float32)
    first = int(np.lexsort((corners[:, 0].round(3), corners[:, 1].round(3)))[0])
    return np.roll(corners, -first, axis=0).reshape(8)
