"""Which objects an image gets, and where: wholly inside, apart from each other, on their kind of ground."""

from __future__ import annotations

import dataclasses

import numpy as np
from PIL import Image, ImageDraw

from earthgpt_jax.synthetic.canvas import WORLD
from earthgpt_jax.synthetic.objects import OBJECTS, ObjectClass, PlacementArea
from earthgpt_jax.synthetic.pose import Pose
from earthgpt_jax.synthetic.scenes import CHANCES
from earthgpt_jax.synthetic.terrain import Terrain

EMPTY_SHARE = 0.07
TWO_KINDS_SHARE = 0.45
_EDGE = 2.0  # least distance to the image's border, world units
_GAP = 2.5  # half the least distance between two rectangles, world units
_TRIES = 50
# The more objects, the smaller they are, so that they fit: share of the size range that is used.
_ROOM = {1: 1.0, 2: 0.85, 3: 0.6, 4: 0.4, 5: 0.3}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlacedObject:
    kind: ObjectClass
    pose: Pose


def sample_classes(rng: np.random.Generator, *, scene: str) -> list[ObjectClass]:
    """The kinds to place, one entry an object; nothing in a small share of images."""
    if rng.random() < EMPTY_SHARE:
        return []
    names, weights = list(CHANCES[scene]), np.array(list(CHANCES[scene].values()))
    wanted = 2 if len(names) > 1 and rng.random() < TWO_KINDS_SHARE else 1
    kinds = [OBJECTS[n] for n in rng.choice(names, size=wanted, replace=False, p=weights / weights.sum())]
    if wanted == 1:
        return kinds * min(int(rng.integers(1, 6)), kinds[0].most)
    first, second = kinds
    few = int(rng.integers(1, 5))
    many = int(rng.integers(1, 6 - few))
    return [first] * min(few, first.most) + [second] * min(many, second.most)


def place_objects(
    rng: np.random.Generator, kinds: list[ObjectClass], *, water: np.ndarray, ground: Terrain
) -> list[PlacedObject]:
    """Poses for as many of the kinds as find room.

    Args:
        kinds: one entry an object.
        water: bool[128,128], true where ships may go.
        ground: hints of the background.
    """
    taken = Image.new("1", (int(WORLD), int(WORLD)), 0)
    draw = ImageDraw.Draw(taken)
    placed: list[PlacedObject] = []
    land = ~water
    # What is tied to a place goes first, then the large ones.
    order = sorted(kinds, key=lambda k: (k.site != PlacementArea.CROSSING, -k.long[1] * k.ratio[1]))
    for kind in order:
        if kind.site == PlacementArea.CROSSING and not ground.crossings:
            continue
        occupied = np.asarray(taken)
        allowed = (water if kind.site == PlacementArea.WATER else land) & ~occupied
        for _ in range(_TRIES):
            pose = _propose(rng, kind, ground=ground, count=len(kinds))
            free = ~occupied if kind.site == PlacementArea.CROSSING else allowed
            if pose is not None and _fits(pose, free):
                placed.append(PlacedObject(kind=kind, pose=pose))
                draw.polygon([tuple(p) for p in pose.rectangle(margin=_GAP).tolist()], fill=1)
                break
    return placed


def _propose(rng: np.random.Generator, kind: ObjectClass, *, ground: Terrain, count: int) -> Pose | None:
    low, high = kind.long
    long = rng.uniform(low, low + (high - low) * _ROOM[min(count, 5)])
    short = max(long * rng.uniform(*kind.ratio), 10.2)
    if kind.site == PlacementArea.CROSSING:
        spot = ground.crossings[int(rng.integers(len(ground.crossings)))]
        long, short = spot.width + rng.uniform(10, 14), rng.uniform(10.4, 13)
        return _inside(Pose(cx=spot.x, cy=spot.y, long=long, short=short, angle=spot.angle))
    if kind.upright:
        angle = 0.0
    elif ground.flow is not None and rng.random() < 0.6:
        angle = ground.flow + rng.normal() * 0.08 + np.pi * float(rng.integers(2))
    else:
        angle = rng.uniform(0, 2 * np.pi)
    half_x, half_y = _half_extent(long, short, angle)
    reach_x, reach_y = WORLD / 2 - _EDGE - half_x, WORLD / 2 - _EDGE - half_y
    if reach_x < 0 or reach_y < 0:
        return None
    cx, cy = WORLD / 2 + reach_x * rng.uniform(-1, 1), WORLD / 2 + reach_y * rng.uniform(-1, 1)
    return Pose(cx=cx, cy=cy, long=long, short=short, angle=angle)


def _half_extent(long: float, short: float, angle: float) -> tuple[float, float]:
    cos, sin = abs(np.cos(angle)), abs(np.sin(angle))
    return (long * cos + short * sin) / 2, (long * sin + short * cos) / 2


def _inside(pose: Pose) -> Pose | None:
    half_x, half_y = _half_extent(pose.long, pose.short, pose.angle)
    reach = WORLD / 2 - _EDGE
    fits = abs(pose.cx - WORLD / 2) + half_x <= reach and abs(pose.cy - WORLD / 2) + half_y <= reach
    return pose if fits else None


_STEPS = np.linspace(-0.5, 0.5, 13)
_LATTICE = np.stack(np.meshgrid(_STEPS, _STEPS[::2]), axis=-1).reshape(-1, 2)


def _fits(pose: Pose, free: np.ndarray) -> bool:
    """Whether the rectangle with its margin lies on free cells, tested on a lattice of about 4 units."""
    if not free[int(pose.cy), int(pose.cx)]:
        return False
    points = pose.offsets(_LATTICE * (pose.long + 2 * _GAP, pose.short + 2 * _GAP))
    cells = np.clip(points, 0, WORLD - 1).astype(np.intp)
    return bool(free[cells[:, 1], cells[:, 0]].all())


def polygon(pose: Pose, *, scale: float) -> np.ndarray:
    """f32[8]: corners in pixels, clockwise on screen from the topmost one (the left one of two)."""
    corners = (pose.rectangle() * scale).astype(np.float32)
    first = int(np.lexsort((corners[:, 0].round(3), corners[:, 1].round(3)))[0])
    return np.roll(corners, -first, axis=0).reshape(8)
