"""The scene classes: how their backgrounds are drawn, and which objects occur in them how often."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

import numpy as np

from earthgpt_jax.synthetic import natural, urban
from earthgpt_jax.synthetic.objects import OBJECTS
from earthgpt_jax.synthetic.terrain import Terrain


class AreaType(enum.StrEnum):
    """The answer to the question whether a scene is rural or urban."""

    RURAL = "rural"
    URBAN = "urban"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneClass:
    """One scene class.

    Attributes:
        noun: its name in sentences, with an article if it needs one.
        object_classes: the object classes that may occur in it.
        clearing_material: painted under objects on land; "" keeps the background.
        draw: `(canvas, rng, *, needs_crossing) -> Terrain` paints the background onto an empty canvas. With
            `needs_crossing`, it includes a watercourse for bridges.
    """

    name: str
    noun: str
    area_type: AreaType
    object_classes: tuple[str, ...]
    clearing_material: str
    draw: Callable[..., Terrain]


def _scene(
    name: str, noun: str, area_type: AreaType, clearing: str, draw: Callable[..., Terrain], objects: str
) -> SceneClass:
    return SceneClass(
        name=name,
        noun=noun,
        area_type=area_type,
        object_classes=tuple(objects.split(", ")),
        clearing_material=clearing,
        draw=draw,
    )


_R, _U = AreaType.RURAL, AreaType.URBAN

SCENES: dict[str, SceneClass] = {
    s.name: s
    for s in (
        _scene("river", "a river", _R, "", natural.river, "ship, bridge"),
        _scene("lake", "a lake", _R, "", natural.lake, "ship, windmill, tennis court"),
        _scene("beach", "a beach", _R, "", natural.beach, "ship, tennis court, truck"),
        _scene("forest", "a forest", _R, "track", natural.forest, "bridge, windmill, warehouse, storage tank"),
        _scene("meadow", "a meadow", _R, "", natural.meadow, "airplane, windmill, bridge, stadium"),
        _scene("farmland", "farmland", _R, "", natural.farmland, "bridge, windmill, warehouse, truck"),
        _scene("desert", "a desert", _R, "", natural.desert, "airplane, storage tank, truck, roundabout"),
        _scene("mountain", "a mountain", _R, "", natural.mountain, "airplane, windmill, bridge"),
        _scene(
            "residential",
            "a residential area",
            _U,
            "grass",
            urban.residential,
            "tennis court, stadium, roundabout",
        ),
        _scene("industrial", "an industrial area", _U, "yard", urban.industrial, "storage tank, warehouse, truck"),
        _scene("harbor", "a harbor", _U, "concrete", urban.harbor, "ship, storage tank, warehouse"),
        _scene("airport", "an airport", _U, "", urban.airport, "airplane, truck, warehouse, storage tank"),
        _scene(
            "parking lot",
            "a parking lot",
            _U,
            "asphalt",
            urban.parking_lot,
            "truck, roundabout, tennis court",
        ),
        _scene(
            "sports field",
            "a sports field",
            _U,
            "pitch",
            urban.sports_field,
            "tennis court, stadium, roundabout",
        ),
    )
}


def _balance() -> dict[str, dict[str, float]]:
    """Return the probability of each object class in each scene class.

    Over all scenes, every object class is equally common. The table is made by alternately scaling rows and columns
    (Sinkhorn and Knopp, 1967).
    """
    scenes, objects = list(SCENES), list(OBJECTS)
    table = np.array([[float(name in SCENES[s].object_classes) for name in objects] for s in scenes])
    for _ in range(200):
        table *= len(scenes) / len(objects) / table.sum(axis=0, keepdims=True)
        table /= table.sum(axis=1, keepdims=True)
    return {
        s: {name: float(p) for name, p in zip(objects, row, strict=True) if p > 0}
        for s, row in zip(scenes, table, strict=True)
    }


CLASS_PROBABILITIES: dict[str, dict[str, float]] = _balance()
