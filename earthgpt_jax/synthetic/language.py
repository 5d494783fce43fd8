"""What is said about an image: phrases that single out an object, and captions."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from earthgpt_jax.records import Sensor
from earthgpt_jax.synthetic.canvas import WORLD
from earthgpt_jax.synthetic.objects import OBJECTS
from earthgpt_jax.synthetic.placement import PlacedObject
from earthgpt_jax.synthetic.scenes import SCENES

REGIONS = ("upper left", "upper right", "lower left", "lower right", "center")
NUMBERS = ("no", "one", "two", "three", "four", "five")
LARGE, SMALL = 42.0, 28.0  # long side, world units
_CLEAR = 8.0  # by how much the leftmost object is further left than the next, world units
_LARGER = 1.3  # by what factor in area the largest exceeds the next


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneContents:
    """Everything language needs of an image."""

    scene: str
    sensor: Sensor
    objects: Sequence[PlacedObject]

    @property
    def counts(self) -> dict[str, int]:
        """Objects of each class, in the order of the class table."""
        found = Counter(o.kind.name for o in self.objects)
        return {name: found[name] for name in OBJECTS if found[name]}


def region(item: PlacedObject) -> str:
    """One of REGIONS, or "" where people could disagree."""
    dx, dy = item.pose.cx - WORLD / 2, item.pose.cy - WORLD / 2
    near, far = sorted((abs(dx), abs(dy)))
    if far <= 14:
        return "center"
    if far >= 20 and near >= 5:
        return f"{'upper' if dy < 0 else 'lower'} {'left' if dx < 0 else 'right'}"
    return ""


def arguable(item: PlacedObject, place: str) -> bool:
    """Whether anybody might say that the object is in this one of REGIONS: a looser reading than `region`."""
    dx, dy = item.pose.cx - WORLD / 2, item.pose.cy - WORLD / 2
    far = max(abs(dx), abs(dy))
    if place == "center":
        return far < 20
    vertical, horizontal = place.split()
    down, right = (dy if vertical == "lower" else -dy), (dx if horizontal == "right" else -dx)
    return far > 6 and down > -5 and right > -5


def area(item: PlacedObject) -> float:
    return item.pose.long * item.pose.short


def _size_word(item: PlacedObject) -> str:
    if item.pose.long >= LARGE:
        return "large "
    return "small " if item.pose.long <= SMALL else ""


def phrases(objects: Sequence[PlacedObject]) -> list[str]:
    """For each object a phrase that is true of it alone, or ""."""
    return [_phrase(item, [o for o in objects if o is not item and o.kind is item.kind]) for item in objects]


def _phrase(item: PlacedObject, others: list[PlacedObject]) -> str:
    name, place = item.kind.name, region(item)
    if place and not any(arguable(o, place) for o in others):
        return f"the {_size_word(item)}{name} in the {place}"
    if not others:
        return f"the only {name}"
    x, y = item.pose.cx, item.pose.cy
    if all(x < o.pose.cx - _CLEAR for o in others):
        return f"the leftmost {name}"
    if all(x > o.pose.cx + _CLEAR for o in others):
        return f"the rightmost {name}"
    if all(y < o.pose.cy - _CLEAR for o in others):
        return f"the topmost {name}"
    if all(y > o.pose.cy + _CLEAR for o in others):
        return f"the bottommost {name}"
    if all(area(item) > _LARGER * area(o) for o in others):
        return f"the largest {name}"
    if all(_LARGER * area(item) < area(o) for o in others):
        return f"the smallest {name}"
    return ""


def article(word: str) -> str:
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def sensor_name(sensor: Sensor) -> str:
    return "SAR" if sensor is Sensor.SAR else sensor.value


def counted(name: str, count: int) -> str:
    kind = OBJECTS[name]
    return f"{NUMBERS[count]} {kind.name if count == 1 else kind.plural}"


def listing(counts: dict[str, int]) -> str:
    """ "two ships and one bridge"; "no objects"."""
    return " and ".join(counted(name, count) for name, count in counts.items()) or "no objects"


def _layout(view: SceneContents) -> str:
    """ " in the upper left" or " on the left side" where that is true of all objects, else ""."""
    if len(view.objects) == 1:
        place = region(view.objects[0])
        return f" in the {place}" if place else ""
    xs = np.array([o.pose.cx for o in view.objects]) - WORLD / 2
    ys = np.array([o.pose.cy for o in view.objects]) - WORLD / 2
    for values, low, high in (
        (xs, " on the left side", " on the right side"),
        (ys, " in the upper half", " in the lower half"),
    ):
        if len(values) and (values < -5).all():
            return low
        if len(values) and (values > 5).all():
            return high
    return ""


def captions(view: SceneContents) -> tuple[str, ...]:
    """Four true captions of different wording: scene, sensor, counts, and layout where it is clear."""
    noun, things, layout = SCENES[view.scene].noun, listing(view.counts), _layout(view)
    image = f"{sensor_name(view.sensor)} image"
    verb = "is" if len(view.objects) == 1 else "are"
    return (
        f"{article(image)[:2].strip().capitalize()} {image} of {noun} with {things}{layout}.",
        f"There {verb} {things}{layout} in this {image} of {noun}.",
        f"{noun[0].upper()}{noun[1:]} seen by {_BY[view.sensor]}, with {things}{layout}.",
        f"The {image} shows {noun}. {things[0].upper()}{things[1:]} {verb} visible{layout}.",
    )


_BY = {
    Sensor.OPTICAL: "an optical camera",
    Sensor.SAR: "a radar",
    Sensor.INFRARED: "a thermal camera",
}
