"""The object classes: how large they are, where they go, how they are drawn.

Each drawing fills its pose's rectangle exactly (the silhouette touches all four sides), so the
rectangle is the truth. Shadows, echoes and clearings may reach beyond it, as they do in real images.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

import numpy as np

from earthgpt_jax.synthetic import silhouettes
from earthgpt_jax.synthetic.canvas import Canvas
from earthgpt_jax.synthetic.pose import Pose


class PlacementArea(enum.StrEnum):
    """Where an object may stand."""

    WATER = "water"
    LAND = "land"
    CROSSING = "crossing"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectClass:
    """One object class.

    Attributes:
        long: range of the long side, world units (128 an image).
        ratio: range of short side / long side.
        most: most of them in one image.
        upright: drawn without rotation (round things): its box is horizontal.
        draw: paints it; gets the pose and the image's random generator.
        clears: the background's clutter is taken away under it, where the scene has an apron.
        approach: paints what leads to it, under all objects.
    """

    name: str
    plural: str
    site: PlacementArea
    long: tuple[float, float]
    ratio: tuple[float, float]
    most: int
    draw: Callable[[Canvas, Pose, np.random.Generator], None]
    upright: bool = False
    clears: bool = True
    approach: Callable[[Canvas, Pose, np.random.Generator], None] | None = None


OBJECTS: dict[str, ObjectClass] = {
    kind.name: kind
    for kind in (
        ObjectClass(
            name="airplane",
            plural="airplanes",
            site=PlacementArea.LAND,
            long=(26, 50),
            ratio=(0.84, 0.98),
            most=5,
            draw=silhouettes.airplane,
        ),
        ObjectClass(
            name="ship",
            plural="ships",
            site=PlacementArea.WATER,
            clears=False,
            long=(30, 60),
            ratio=(0.26, 0.34),
            most=5,
            draw=silhouettes.ship,
        ),
        ObjectClass(
            name="storage tank",
            plural="storage tanks",
            site=PlacementArea.LAND,
            long=(22, 40),
            ratio=(1, 1),
            most=5,
            upright=True,
            draw=silhouettes.storage_tank,
        ),
        ObjectClass(
            name="truck",
            plural="trucks",
            site=PlacementArea.LAND,
            long=(26, 40),
            ratio=(0.39, 0.42),
            most=5,
            draw=silhouettes.truck,
        ),
        ObjectClass(
            name="warehouse",
            plural="warehouses",
            site=PlacementArea.LAND,
            long=(28, 54),
            ratio=(0.52, 0.72),
            most=4,
            draw=silhouettes.warehouse,
        ),
        ObjectClass(
            name="bridge",
            plural="bridges",
            site=PlacementArea.CROSSING,
            clears=False,
            long=(30, 60),
            ratio=(0.2, 0.3),
            most=2,
            draw=silhouettes.bridge,
            approach=silhouettes.bridge_road,
        ),
        ObjectClass(
            name="tennis court",
            plural="tennis courts",
            site=PlacementArea.LAND,
            long=(26, 46),
            ratio=(0.5, 0.55),
            most=5,
            draw=silhouettes.tennis_court,
        ),
        ObjectClass(
            name="roundabout",
            plural="roundabouts",
            site=PlacementArea.LAND,
            long=(28, 44),
            ratio=(1, 1),
            most=2,
            upright=True,
            draw=silhouettes.roundabout,
            approach=silhouettes.roundabout_roads,
        ),
        ObjectClass(
            name="windmill",
            plural="windmills",
            site=PlacementArea.LAND,
            long=(28, 44),
            ratio=(1, 1),
            most=4,
            upright=True,
            clears=False,
            draw=silhouettes.windmill,
        ),
        ObjectClass(
            name="stadium",
            plural="stadiums",
            site=PlacementArea.LAND,
            long=(38, 60),
            ratio=(0.56, 0.66),
            most=2,
            draw=silhouettes.stadium,
        ),
    )
}
