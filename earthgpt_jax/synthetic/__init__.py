"""Procedural multi-sensor scenes with exact truth, named "synthetic" wherever they appear.

A scene is drawn once from surfaces (`canvas`, `materials`) and rendered by one of three sensors
(`sensors`): optical, SAR, infrared. Depends on numpy and Pillow only.
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
