"""VHM's scoring rules: those of RSEvalKit, which its authors publish."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.evaluation.metrics.parsed_boxes import SIZE_LIMITS
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.third_party.rule import (
    Figures,
    Rule,
    answer_in_format,
    fraction,
    objects_of,
    polygon_to_rect,
)
from earthgpt_jax.input.prompts.derived import DerivedTask
from earthgpt_jax.records import Task


def _squeeze(text: str) -> str:
    return text.replace(" ", "").lower()


def contained(predictions: Sequence[Prediction]) -> Figures:
    """Accept an answer that is a substring of the truth, so an empty one always is correct."""
    figures = {"accuracy": float(np.mean([_squeeze(p.prediction) in _squeeze(p.answer) for p in predictions]))}
    return {**figures, **_multi_label(predictions)}


def _multi_label(predictions: Sequence[Prediction]) -> Figures:
    """Return the mean precision of the classes that the question lists after a colon; {} for single labels."""
    if not any("," in p.answer for p in predictions):
        return {}
    question = predictions[0].question
    classes = [name.strip() for name in question[question.find(":") + 1 : -1].split(",")]
    truth, answer = (
        np.array([[name in text for name in classes] for text in texts])
        for texts in ([p.answer for p in predictions], [p.prediction for p in predictions])
    )
    claimed = answer.sum(axis=0)
    return {"average_cp": float(np.mean((truth & answer).sum(axis=0) / np.maximum(claimed, 1)))}


def presence(predictions: Sequence[Prediction]) -> Figures:
    """Take `yes` where the answer contains it and neither `no` nor `false`, and the reverse; case matters for `no`."""

    def stated(text: str) -> str:
        yes, no = "yes" in text.lower(), any(word in text for word in ("no", "false"))
        return "yes" if yes and not no else "no" if no and not yes else "unknown"

    return {"accuracy": float(np.mean([p.answer.lower() == stated(p.prediction) for p in predictions]))}


_UNITS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_NUMBERS = {word: value for value, word in enumerate(_UNITS)} | {
    f"{tens}-{_UNITS[unit]}" if unit else tens: 10 * (position + 2) + unit
    for (position, tens), unit in itertools.product(enumerate(_TENS), range(10))
}
_LEVELS = {"low": (0, 2), "medium": (2, 6), "high": (6, 12), "ultra": (12, float("inf"))}


def stated_number(text: str) -> int | None:
    """Return the first digits of a text, else its first number word below 100; None if it has neither."""
    if found := re.search(r"\d+", text):
        return int(found[0])
    return next((_NUMBERS[word.lower()] for word in text.split() if word.lower() in _NUMBERS), None)


def counting(predictions: Sequence[Prediction]) -> Figures:
    """Compute MAE, MAPE and accuracy by magnitude, of the answers that state a number and truths above 0.

    Their code fails on an answer without a number, and on a true count of 0; both are left out here.
    """
    pairs = [(int(p.answer), stated_number(p.prediction)) for p in predictions if p.answer.strip().isdecimal()]
    stated = [(truth, count) for truth, count in pairs if count is not None]
    figures = {
        "mae": fraction(sum(abs(count - truth) for truth, count in stated), len(stated)),
        "mape": fraction(sum(abs((count - truth) / truth) for truth, count in stated if truth),
                         sum(truth > 0 for truth, _ in stated)),
    }  # fmt: skip
    for name, (low, high) in _LEVELS.items():
        hits = [truth == count for truth, count in stated if low < truth <= high or truth == low == 0]
        figures[f"accuracy_{name}"] = fraction(sum(hits), len(hits))
    return figures


_NUMBER = re.compile(r"[-+]?\d*\.?\d+")


def _numbers(text: str) -> list[float] | None:
    """Return the numbers between the first opening and the last closing bracket; None without brackets."""
    start, end = text.find("["), text.rfind("]")
    return None if start < 0 or end < 0 else [float(n) for n in _NUMBER.findall(text[start : end + 1])]


def _iou(box1: Sequence[float], box2: Sequence[float]) -> float:
    x0, y0, x1, y1 = max(box1[0], box2[0]), max(box1[1], box2[1]), min(box1[2], box2[2]), min(box1[3], box2[3])
    if x0 >= x1 or y0 >= y1:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (box1, box2)]
    return (x1 - x0) * (y1 - y0) / (areas[0] + areas[1] - (x1 - x0) * (y1 - y0))


def _level(box: Sequence[float]) -> str:
    """Return the size of a true box; a size's limit belongs to it, unlike in COCO."""
    area = (box[2] - box[0]) * (box[3] - box[1])
    return next(name for name, limit in SIZE_LIMITS.items() if not area > limit)


def grounding(predictions: Sequence[Prediction]) -> Figures:
    """Compare the numbers between brackets, in thousandths of the image, with the truth in pixels."""
    hits: dict[str, list[bool]] = {name: [] for name in SIZE_LIMITS}
    for p in predictions:
        [item] = objects_of(p)
        native = _numbers(p.answer) if p.box_format == "vhm" and p.width > 1 else None
        truth = native if native else polygon_to_rect(np.asarray(item.polygon, float) * _per_pixel(p))
        box = _numbers(answer_in_format(p, "vhm"))
        scaled = [n * side / 1000.0 for n, side in zip(box or [], _sides(p) * 2, strict=False)]
        hits[_level(truth)].append(len(scaled) == 4 and _iou(truth, scaled) >= 0.5)
    everything = [hit for of_size in hits.values() for hit in of_size]
    by_size = {f"precision_{name}": fraction(sum(of_size), len(of_size)) for name, of_size in hits.items()}
    return {"precision": fraction(sum(everything), len(everything)), **by_size}


def _sides(prediction: Prediction) -> list[float]:
    """Return width and height of the image; thousandths where the size is unknown, so that the IoU is unchanged."""
    return [1000.0, 1000.0] if prediction.width <= 1 else [float(prediction.width), float(prediction.height)]


def _per_pixel(prediction: Prediction) -> float:
    return 1000.0 if prediction.width <= 1 else 1.0


RULES: Mapping[str, Rule] = {
    Task.CLASSIFICATION: Rule(
        compute=contained, ours={"accuracy": "top1", "average_cp": "multilabel_precision"}, file="model_eval_mp.py",
        description="an answer is correct if it is a substring of the truth, both in lower case without spaces, so an "
                    "empty answer always is; several labels: mean over the classes of the fraction of claims that are "
                    "true"),
    Task.VQA: Rule(
        compute=contained, ours={"accuracy": "accuracy"}, file="model_eval_mp.py",
        description="an answer is correct if it is a substring of the truth, so an empty answer always is"),
    DerivedTask.PRESENCE: Rule(
        compute=presence, ours={"accuracy": "accuracy"}, file="model_eval_mp.py",
        description="`yes` anywhere in the answer counts, unless it contains `no` or `false`, also within a word"),
    DerivedTask.COUNT: Rule(
        compute=counting, ours={"mae": "count_mae", "mape": "count_mape"}, file="model_eval_mp.py",
        description="the first digits of the answer count; answers without a number end their program, and are left "
                    "out here"),
    Task.GROUNDING: Rule(
        compute=grounding, ours={"precision": "pr50"}, file="model_eval_mp.py",
        description="all numbers between the first and the last bracket are one box, in thousandths of the image"),
}  # fmt: skip
