"""The object classes: their sizes, where they are placed, and how they are drawn.

Each drawing fills the rectangle of its pose exactly: the silhouette touches all four sides, so the rectangle is the
ground truth. Shadows, radar echoes and clearings may extend beyond it, as in real images.
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
    """Where objects of a class are placed."""

    WATER = "water"
    LAND = "land"
    CROSSING = "crossing"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ObjectClass:
    """One object class.

    Attributes:
        area: where objects are placed.
        length_range: range of the long side in world units; an image has 128 x 128 of them.
        width_ratio: range of short side / long side.
        max_count: maximum number in one image.
        draw: paints an object, given the canvas, the pose and the image's random generator.
        axis_aligned: drawn without rotation, as for round objects, so that the box is horizontal.
        needs_clearing: background clutter is removed under the object, if the scene class has a clearing material.
        draw_approach: paints the roads that lead to the object, below all objects.
    """

    name: str
    plural: str
    area: PlacementArea
    length_range: tuple[float, float]
    width_ratio: tuple[float, float]
    max_count: int
    draw: Callable[[Canvas, Pose, np.random.Generator], None]
    axis_aligned: bool = False
    needs_clearing: bool = True
    draw_approach: Callable[[Canvas, Pose, np.random.Generator], None] | None = None


OBJECTS: dict[str, ObjectClass] = {
    object_class.name: object_class
    for object_class in (
        ObjectClass(
            name="airplane",
            plural="airplanes",
            area=PlacementArea.LAND,
            length_range=(26, 50),
            width_ratio=(0.84, 0.98),
            max_count=5,
            draw=silhouettes.airplane,
        ),
        ObjectClass(
            name="ship",
            plural="ships",
            area=PlacementArea.WATER,
            needs_clearing=False,
            length_range=(30, 60),
            width_ratio=(0.26, 0.34),
            max_count=5,
            draw=silhouettes.ship,
        ),
        ObjectClass(
            name="storage tank",
            plural="storage tanks",
            area=PlacementArea.LAND,
            length_range=(22, 40),
            width_ratio=(1, 1),
            max_count=5,
            axis_aligned=True,
            draw=silhouettes.storage_tank,
        ),
        ObjectClass(
            name="truck",
            plural="trucks",
            area=PlacementArea.LAND,
            length_range=(26, 40),
            width_ratio=(0.39, 0.42),
            max_count=5,
            draw=silhouettes.truck,
        ),
        ObjectClass(
            name="warehouse",
            plural="warehouses",
            area=PlacementArea.LAND,
            length_range=(28, 54),
            width_ratio=(0.52, 0.72),
            max_count=4,
            draw=silhouettes.warehouse,
        ),
        ObjectClass(
            name="bridge",
            plural="bridges",
            area=PlacementArea.CROSSING,
            needs_clearing=False,
            length_range=(30, 60),
            width_ratio=(0.2, 0.3),
            max_count=2,
            draw=silhouettes.bridge,
            draw_approach=silhouettes.bridge_road,
        ),
        ObjectClass(
            name="tennis court",
            plural="tennis courts",
            area=PlacementArea.LAND,
            length_range=(26, 46),
            width_ratio=(0.5, 0.55),
            max_count=5,
            draw=silhouettes.tennis_court,
        ),
        ObjectClass(
            name="roundabout",
            plural="roundabouts",
            area=PlacementArea.LAND,
            length_range=(28, 44),
            width_ratio=(1, 1),
            max_count=2,
            axis_aligned=True,
            draw=silhouettes.roundabout,
            draw_approach=silhouettes.roundabout_roads,
        ),
        ObjectClass(
            name="windmill",
            plural="windmills",
            area=PlacementArea.LAND,
            length_range=(28, 44),
            width_ratio=(1, 1),
            max_count=4,
            axis_aligned=True,
            needs_clearing=False,
            draw=silhouettes.windmill,
        ),
        ObjectClass(
            name="stadium",
            plural="stadiums",
            area=PlacementArea.LAND,
            length_range=(38, 60),
            width_ratio=(0.56, 0.66),
            max_count=2,
            draw=silhouettes.stadium,
        ),
    )
}
