"""GeoChat's scoring rules. Its repository scores scene classification alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.third_party.rule import Figures, Rule
from earthgpt_jax.records import Task

_TYPES = ("presence", "comp", "comparison", "rural_urban")


def _squeeze(text: str) -> str:
    return text.replace(" ", "").lower().replace(".", "")


def _scene_class(prediction: Prediction) -> str:
    """Return the true class: the folder in the id `class/file` where it is the class, else the true answer."""
    folder, _, file = prediction.id.partition("/")
    return (folder if file and _squeeze(folder) == _squeeze(prediction.answer) else prediction.answer).lower()


def scene(predictions: Sequence[Prediction]) -> Figures:
    """Compare the answer, in lower case without spaces and full stops, with the class in lower case."""
    return {"accuracy": float(np.mean([_squeeze(p.prediction) == _scene_class(p) for p in predictions]))}


def vqa(predictions: Sequence[Prediction]) -> Figures:
    """Compare texts without spaces and full stops; no questions of counts and areas, unless there are no types."""
    chosen = [p for p in predictions if p.question_type in _TYPES] or predictions
    return {"accuracy": float(np.mean([_squeeze(p.prediction) == _squeeze(p.answer) for p in chosen]))}


RULES: Mapping[str, Rule] = {
    Task.CLASSIFICATION: Rule(
        compute=scene, ours={"accuracy": "top1"}, file="geochat/eval/batch_geochat_scene.py",
        description="equality of the answer, in lower case without spaces and full stops, with the folder in the id, "
                    "of which only the case is changed"),
    Task.VQA: Rule(
        compute=vqa, ours={"accuracy": "accuracy"}, file="GeoChat#32 (the repository has no VQA scorer)",
        description="equality of lower-case texts; only presence, comparison and rural/urban questions count"),
}  # fmt: skip
