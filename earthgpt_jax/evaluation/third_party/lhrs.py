"""LHRS-Bot's scoring rules."""

from __future__ import annotations

import collections
import difflib
import re
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes.plurals import NUMBER_WORDS
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.third_party.rule import Figures, Rule, answer_in_format, fraction, truth_in_format
from earthgpt_jax.records import Task


def classification(predictions: Sequence[Prediction]) -> Figures:
    """Take the class with the longest common substring, the last class if there is none; mean of the recalls."""
    names = sorted({p.answer for p in predictions})  # the folders, in the order of ImageFolder
    classes = list(dict.fromkeys(name.lower().replace("_", " ") for name in names))
    recalls = collections.defaultdict(list)
    for p in predictions:
        answer = p.prediction.strip()
        if answer not in classes:
            lengths = [_longest_common_substring(answer, name) for name in classes]
            answer = classes[int(np.argmax(lengths)) if max(lengths) else -1]
        truth = p.answer.lower().replace("_", " ")
        recalls[truth].append(answer == truth)
    return {"balanced_accuracy": float(np.mean([np.mean(hits) for hits in recalls.values()]))}


def _longest_common_substring(text1: str, text2: str) -> int:
    return difflib.SequenceMatcher(None, text1, text2).find_longest_match(0, len(text1), 0, len(text2)).size


_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_MAX_PERIODS = 32  # the code passes `re.UNICODE`, which is 32, as the number of replacements


def evalai_normalize(text: str) -> str:
    """Normalize a text as EvalAI does, in LHRS-Bot's version, but without its list of contractions."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    text = text.replace("\n", " ").replace("\t", " ").strip()
    out = text
    for sign in _PUNCTUATION:
        out = out.replace(sign, "" if f"{sign} " in text or f" {sign}" in text else " ")
    words = re.sub(r"\.(?!\d)", "", out, count=_MAX_PERIODS).lower().split()
    numbers = {"none": "0"} | {word: str(value) for value, word in enumerate(NUMBER_WORDS)}
    return " ".join(numbers.get(word, word) for word in words if numbers.get(word, word) not in ("a", "an", "the"))


def vqa(predictions: Sequence[Prediction]) -> Figures:
    """Accept any substring of the true answer, since the code expects a list there and gets a text."""
    hits = [evalai_normalize(p.prediction) in p.answer for p in predictions]
    by_type = collections.defaultdict(list)
    for p, hit in zip(predictions, hits, strict=True):
        by_type[p.question_type].append(hit)
    types = {f"accuracy_{name}": float(np.mean(of_type)) for name, of_type in sorted(by_type.items()) if name}
    return {"accuracy": float(np.mean(hits)), **types}


def plus_one_iou(box1: Sequence[float], box2: Sequence[float]) -> float:
    """Return the IoU with 1 added to every side, in any unit; for fractions, 1 is the whole image."""
    w = max(0.0, min(box1[2], box2[2]) - max(box1[0], box2[0]) + 1)
    h = max(0.0, min(box1[3], box2[3]) - max(box1[1], box2[1]) + 1)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (box1, box2)]
    return w * h / (areas[0] + areas[1] - w * h)


_BOX = re.compile(r"\[([0-9., ]+)\]")


def _boxes(text: str) -> list[list[float]]:
    return [[float(n) for n in part.split(",")] for part in _BOX.findall(text)]


def grounding(predictions: Sequence[Prediction]) -> Figures:
    """Score the pairs of predicted and true boxes, in the order of the text; what cannot be parsed is left out.

    `accuracy` leaves it out, `accuracy_with_failures` counts it as wrong.
    """
    ious: list[float] = []
    failures = 0
    for p in predictions:
        answer = answer_in_format(p, "lhrs")
        failures += not _BOX.search(answer)
        try:
            boxes = _boxes(answer)
        except ValueError:
            failures += 1
            continue
        for box, truth in zip(boxes, _boxes(truth_in_format(p, "lhrs")), strict=False):
            if len(box) < 4:
                failures += 1
            else:
                ious.append(plus_one_iou(box[:4], truth))
    hits = sum(iou > 0.5 for iou in ious)
    return {
        "accuracy": fraction(hits, len(ious)),
        "accuracy_with_failures": fraction(hits, len(ious) + failures),
        "failures": failures,
    }


RULES: Mapping[str, Rule] = {
    Task.CLASSIFICATION: Rule(
        compute=classification, ours={"balanced_accuracy": "mean_recall"}, file="main_cls.py",
        description="the class with the longest common substring is taken, so every answer is some class; "
                    "the value is the mean of the classes' recalls"),
    Task.VQA: Rule(
        compute=vqa, ours={"accuracy": "accuracy"}, file="main_vqa.py",
        description="any substring of the true answer is correct, so an empty answer always is"),
    Task.GROUNDING: Rule(
        compute=grounding, ours={"accuracy": "pr50", "accuracy_with_failures": "pr50"}, file="main_vg.py",
        description="IoU with 1 added to each side, of fractions of the image; answers that cannot be parsed are left "
                    "out"),
}  # fmt: skip
