"""Generate synthetic remote sensing scenes with exact ground truth.

A scene is drawn once as a map of surface materials (`canvas`, `materials`) and rendered by one of three sensors:
optical, SAR or infrared (`sensors`). Its records have the source "synthetic". The package needs only numpy and Pillow.
"""

from earthgpt_jax.synthetic.objects import OBJECTS, ObjectClass
from earthgpt_jax.synthetic.scenes import SCENES, AreaType, SceneClass
from earthgpt_jax.synthetic.source import NAME, SPLITS, SyntheticSource, scene_record

__all__ = [
    "NAME",
    "OBJECTS",
    "SCENES",
    "SPLITS",
    "AreaType",
    "ObjectClass",
    "SceneClass",
    "SyntheticSource",
    "scene_record",
]
