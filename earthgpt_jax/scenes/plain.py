"""The results of scenes as plain values, for JSON and CSV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from earthgpt_jax.scenes.detection import SceneResult
from earthgpt_jax.scenes.layers import window_text
from earthgpt_jax.scenes.places import places

CORNERS = tuple(f"{axis}{i}" for i in (1, 2, 3, 4) for axis in "xy")
COLUMNS = (
    "image", "width", "height", "stretch", "label", "kind", "confidence", "window", "area_m2", "bearing", *CORNERS,
)  # fmt: skip


def to_dict(result: SceneResult) -> dict[str, Any]:
    """Return the result of a scene as JSON values. Polygons are in pixels; `map_polygon` is in the scene's CRS.

    `answer` is the model's answer where there is one window.
    """
    boxes = []
    for item, place in zip(result.objects, places(result.objects, result.georeference), strict=True):
        box: dict[str, Any] = {
            "label": item.label,
            "kind": item.kind.value,
            "polygon": [round(float(value), 2) for value in item.polygon.reshape(-1)],
            "confidence": None if item.confidence is None else round(item.confidence, 4),
            "window": window_text(item),
        }
        if result.georeference:
            box["map_polygon"] = place.polygon.reshape(-1).tolist()
        if result.georeference and result.georeference.crs:
            box["area_m2"] = _rounded(place.area_m2, 3)
            box["bearing"] = _rounded(place.bearing, 2)
        boxes.append(box)
    place_of_scene = {}
    if result.georeference:
        place_of_scene = {"affine": list(result.georeference.affine), "crs": result.georeference.crs}
    return {
        "image": str(result.path),
        "width": result.width,
        "height": result.height,
        **place_of_scene,
        "stretch": result.stretch.rule(),
        "windows": len(result.windows),
        "boxes": boxes,
        "rejected": result.rejected,
        **({"answer": result.answers[0].text} if len(result.answers) == 1 else {}),
    }


def to_rows(result: Mapping[str, Any]) -> list[list[Any]]:
    """Return the rows of a CSV file with `COLUMNS` for the result of `to_dict`."""
    shared = [result[name] for name in COLUMNS[:4]]
    return [[*shared, *(box.get(name) for name in COLUMNS[4:10]), *box["polygon"]] for box in result["boxes"]]


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
