"""The scene classes: how each is drawn, what may stand in it, and how often."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Callable

import numpy as np

from earthgpt_jax.synthetic import natural, urban
from earthgpt_jax.synthetic.objects import OBJECTS
from earthgpt_jax.synthetic.terrain import Terrain


class AreaType(enum.StrEnum):
    RURAL = "rural"
    URBAN = "urban"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SceneClass:
    """One scene class.

    Attributes:
        noun: how a sentence names it, with its article.
        kinds: object classes that may stand in it.
        apron: material under objects on land; "" leaves the background as it is.
        draw: `(canvas, rng, *, bridged) -> Ground` paints the background onto an empty canvas; where
            `bridged`, it provides a watercourse to cross.
    """

    name: str
    noun: str
    setting: AreaType
    kinds: tuple[str, ...]
    apron: str
    draw: Callable[..., Terrain]


def _scene(name: str, noun: str, setting: AreaType, apron: str, draw, kinds: str) -> SceneClass:
    return SceneClass(name=name, noun=noun, setting=setting, apron=apron, draw=draw, kinds=tuple(kinds.split(", ")))


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


def _balanced() -> dict[str, dict[str, float]]:
    """For each scene, how likely each of its object classes is, so that over all scenes every class is
    as common as the others: a row- and column-scaled table (Sinkhorn and Knopp, 1967)."""
    scenes, kinds = list(SCENES), list(OBJECTS)
    table = np.array([[float(kind in SCENES[s].kinds) for kind in kinds] for s in scenes])
    for _ in range(200):
        table *= len(scenes) / len(kinds) / table.sum(axis=0, keepdims=True)
        table /= table.sum(axis=1, keepdims=True)
    return {
        s: {kind: float(p) for kind, p in zip(kinds, row, strict=True) if p > 0}
        for s, row in zip(scenes, table, strict=True)
    }


CHANCES: dict[str, dict[str, float]] = _balanced()
