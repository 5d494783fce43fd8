"""Texts about an image: referring phrases, each true of one object only, and captions."""

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
LARGE, SMALL = 42.0, 28.0  # limits for the long side, world units
_MIN_LEAD = 8.0  # minimum distance between "the leftmost ship" and the next ship, world units
_AREA_FACTOR = 1.3  # minimum ratio of areas between "the largest ship" and the next ship


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneContents:
    """What texts can describe: the scene class, the sensor and the objects of an image."""

    scene: str
    sensor: Sensor
    objects: Sequence[PlacedObject]

    @property
    def counts(self) -> dict[str, int]:
        """Return the number of objects of each class that is present, in the order of `OBJECTS`."""
        counts = Counter(o.object_class.name for o in self.objects)
        return {name: counts[name] for name in OBJECTS if counts[name]}


def region(item: PlacedObject) -> str:
    """Return the region of the image that an object is in, or "" if people could disagree."""
    dx, dy = item.pose.cx - WORLD / 2, item.pose.cy - WORLD / 2
    near, far = sorted((abs(dx), abs(dy)))
    if far <= 14:
        return "center"
    if far >= 20 and near >= 5:
        return f"{'upper' if dy < 0 else 'lower'} {'left' if dx < 0 else 'right'}"
    return ""


def may_be_in(item: PlacedObject, place: str) -> bool:
    """Return whether an object could be considered to be in a region; less strict than `region`."""
    dx, dy = item.pose.cx - WORLD / 2, item.pose.cy - WORLD / 2
    far = max(abs(dx), abs(dy))
    if place == "center":
        return far < 20
    vertical, horizontal = place.split()
    down, right = (dy if vertical == "lower" else -dy), (dx if horizontal == "right" else -dx)
    return far > 6 and down > -5 and right > -5


def area(item: PlacedObject) -> float:
    """Return the area of an object's rectangle in square world units."""
    return item.pose.length * item.pose.width


def _size_word(item: PlacedObject) -> str:
    if item.pose.length >= LARGE:
        return "large "
    return "small " if item.pose.length <= SMALL else ""


def phrases(objects: Sequence[PlacedObject]) -> list[str]:
    """Return a referring phrase for each object, for example "the leftmost ship"; "" if no phrase is unambiguous."""
    return [
        _phrase(item, [o for o in objects if o is not item and o.object_class is item.object_class]) for item in objects
    ]


def _phrase(item: PlacedObject, others: list[PlacedObject]) -> str:
    name, place = item.object_class.name, region(item)
    if place and not any(may_be_in(o, place) for o in others):
        return f"the {_size_word(item)}{name} in the {place}"
    if not others:
        return f"the only {name}"
    x, y = item.pose.cx, item.pose.cy
    if all(x < o.pose.cx - _MIN_LEAD for o in others):
        return f"the leftmost {name}"
    if all(x > o.pose.cx + _MIN_LEAD for o in others):
        return f"the rightmost {name}"
    if all(y < o.pose.cy - _MIN_LEAD for o in others):
        return f"the topmost {name}"
    if all(y > o.pose.cy + _MIN_LEAD for o in others):
        return f"the bottommost {name}"
    if all(area(item) > _AREA_FACTOR * area(o) for o in others):
        return f"the largest {name}"
    if all(_AREA_FACTOR * area(item) < area(o) for o in others):
        return f"the smallest {name}"
    return ""


def article(word: str) -> str:
    """Return the word with its indefinite article."""
    return f"an {word}" if word[0] in "aeiou" else f"a {word}"


def sensor_name(sensor: Sensor) -> str:
    """Return the name of a sensor in sentences."""
    return "SAR" if sensor is Sensor.SAR else sensor.value


def format_count(name: str, count: int) -> str:
    """Return a count in words, for example "two ships"."""
    object_class = OBJECTS[name]
    return f"{NUMBERS[count]} {object_class.name if count == 1 else object_class.plural}"


def format_counts(counts: dict[str, int]) -> str:
    """Return counts in words, for example "two ships and one bridge" or "no objects"."""
    return " and ".join(format_count(name, count) for name, count in counts.items()) or "no objects"


def _layout(contents: SceneContents) -> str:
    """Return " in the upper left", " on the left side" or the like if it is true of all objects, else ""."""
    if len(contents.objects) == 1:
        place = region(contents.objects[0])
        return f" in the {place}" if place else ""
    xs = np.array([o.pose.cx for o in contents.objects]) - WORLD / 2
    ys = np.array([o.pose.cy for o in contents.objects]) - WORLD / 2
    for values, low, high in (
        (xs, " on the left side", " on the right side"),
        (ys, " in the upper half", " in the lower half"),
    ):
        if len(values) and (values < -5).all():
            return low
        if len(values) and (values > 5).all():
            return high
    return ""


def captions(contents: SceneContents) -> tuple[str, ...]:
    """Return four different captions with scene, sensor and counts, and the layout if it is unambiguous."""
    noun, counts, layout = SCENES[contents.scene].noun, format_counts(contents.counts), _layout(contents)
    image = f"{sensor_name(contents.sensor)} image"
    verb = "is" if len(contents.objects) == 1 else "are"
    return (
        f"{article(image)[:2].strip().capitalize()} {image} of {noun} with {counts}{layout}.",
        f"There {verb} {counts}{layout} in this {image} of {noun}.",
        f"{noun[0].upper()}{noun[1:]} seen by {_SENSOR_NOUNS[contents.sensor]}, with {counts}{layout}.",
        f"The {image} shows {noun}. {counts[0].upper()}{counts[1:]} {verb} visible{layout}.",
    )


_SENSOR_NOUNS = {
    Sensor.OPTICAL: "an optical camera",
    Sensor.SAR: "a radar",
    Sensor.INFRARED: "a thermal camera",
}
