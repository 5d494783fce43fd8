"""Where the objects of a scene are on Earth, how large they are, and which way they point."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pyproj
from pyproj.exceptions import ProjError

from earthgpt_jax.boxes import BoxKind
from earthgpt_jax.raster.scene_file import Georeference
from earthgpt_jax.scenes.merging import SceneObject

WGS84 = "EPSG:4326"


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Place:
    """An object on the map.

    Attributes:
        polygon: f64[4, 2], corners in map coordinates; in pixels of the scene if it has no georeference.
        area_m2: on the ellipsoid, in square metres; None without a coordinate reference system.
        bearing: direction of the long side of an oriented box, in degrees from 0 to 180 clockwise from true north; None
            for horizontal boxes.
    """

    polygon: np.ndarray
    area_m2: float | None = None
    bearing: float | None = None


def places(objects: Sequence[SceneObject], georeference: Georeference | None) -> list[Place]:
    """Return where objects are."""
    if not objects:
        return []
    corners = np.stack([item.polygon for item in objects])
    if georeference is None:
        return [Place(polygon=polygon) for polygon in corners]
    corners = georeference.to_map(corners)
    if not georeference.crs:
        return [Place(polygon=polygon) for polygon in corners]
    try:
        crs = pyproj.CRS.from_wkt(georeference.crs)
        to_degrees = pyproj.Transformer.from_crs(crs, WGS84, always_xy=True)
    except ProjError:  # such as a local system of engineers, which has no place on Earth
        return [Place(polygon=polygon) for polygon in corners]
    geod = pyproj.Geod(ellps="WGS84")
    longitude, latitude = to_degrees.transform(corners[..., 0], corners[..., 1])
    directions, _, lengths = geod.inv(
        longitude, latitude, np.roll(longitude, -1, axis=1), np.roll(latitude, -1, axis=1)
    )
    found = []
    for i, item in enumerate(objects):
        area = abs(geod.polygon_area_perimeter(longitude[i], latitude[i])[0])
        long_side = int(np.argmax(lengths[i]))
        bearing = float(directions[i, long_side]) % 180 if item.kind is BoxKind.OBB else None
        known = bool(np.isfinite(area))
        found.append(
            Place(polygon=corners[i], area_m2=float(area) if known else None, bearing=bearing if known else None)
        )
    return found
