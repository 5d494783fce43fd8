"""Predictions and true objects for tests of metrics."""

from typing import Any

from earthgpt_jax.boxes import rect_to_polygon
from earthgpt_jax.evaluation.predictions import Prediction, Truth


def answer(prediction: str = "", **changes: Any) -> Prediction:
    """Return a prediction about an image of 100 x 100 pixels; `changes` replace its other fields."""
    values = {
        "id": "r#hbb#0", "record_id": changes.get("id", "r"), "task": "hbb", "question_type": "", "sensor": "sar",
        "source": "s", "question": "?", "prediction": prediction, "answer": "", "references": (), "objects": (),
        "object_index": None,
        "width": 100, "height": 100,
    }  # fmt: skip
    return Prediction(**values | changes)


def truth(label: str, *numbers: float, difficult: bool = False) -> Truth:
    """Return a true object with the 4 numbers of an axis-aligned box or the 8 of a polygon, in pixels."""
    polygon = rect_to_polygon(*numbers).tolist() if len(numbers) == 4 else numbers
    return Truth(label=label, polygon=tuple(float(n) for n in polygon), difficult=difficult)
