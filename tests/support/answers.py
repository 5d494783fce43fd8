"""Answers with their truth, for tests of scorers."""

from earthgpt_jax.boxes import rect_to_polygon
from earthgpt_jax.evaluation.predictions import Prediction, Truth


def answer(prediction: str = "", **changes) -> Prediction:
    values = {
        "id": "r#hbb#0", "record_id": changes.get("id", "r"), "task": "hbb", "kind": "", "sensor": "sar", "source": "s",
        "question": "?", "prediction": prediction, "answer": "", "references": (), "objects": (), "object_index": None,
        "width": 100, "height": 100,
    }  # fmt: skip
    return Prediction(**values | changes)


def truth(label: str, *numbers: float, difficult: bool = False) -> Truth:
    """Of the four numbers of an upright box, or the eight of a polygon."""
    polygon = rect_to_polygon(*numbers).tolist() if len(numbers) == 4 else numbers
    return Truth(label=label, polygon=tuple(float(n) for n in polygon), difficult=difficult)
