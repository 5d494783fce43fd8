"""VRSBench's scoring rules."""

from __future__ import annotations

import collections
import re
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.evaluation.metrics.parsed_boxes import frame_of
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.third_party.rule import (
    Figures,
    Rule,
    answer_in_format,
    fraction,
    objects_of,
    polygon_to_rect,
    truth_in_format,
)
from earthgpt_jax.records import Task

_FORMAT = "geochat"
_GROUPS = ("unique", "non_unique")
_THRESHOLDS = (0.5, 0.7)
# Types of questions in its table; two more are counted as one of them.
_TYPES = (
    "object category", "object existence", "object quantity", "object color", "object shape", "object size",
    "object position", "object direction", "scene type", "reasoning",
)  # fmt: skip
_RENAMED = {"image": "scene type", "rural or urban": "scene type"}


def _integers(text: str) -> list[int]:
    return [int(n) for n in re.findall(r"\d+", text)][:4]


def _truth(prediction: Prediction) -> list[int]:
    """Return the true box on the grid of 100: the numbers of the file, or the object, rounded down as VRSBench does."""
    text = truth_in_format(prediction, _FORMAT)
    if text == prediction.answer:
        return _integers(text)
    [item] = objects_of(prediction)
    rect = polygon_to_rect(frame_of(prediction).to_fractions(np.asarray(item.polygon, float)))
    return [int(n * 100 + 1e-4) for n in rect]  # the slack absorbs rounding: 0.59 may be 0.58999


def _overlap(box: Sequence[int], truth: Sequence[int]) -> tuple[float, float, float] | None:
    """Return (IoU, intersection, union) with 1 added to each side; None where their code raises."""
    if len(box) != 4 or len(truth) != 4:
        return None
    shared = max(0, min(box[2], truth[2]) - max(box[0], truth[0]) + 1) * max(
        0, min(box[3], truth[3]) - max(box[1], truth[1]) + 1
    )
    areas = [(b[2] - b[0] + 1) * (b[3] - b[1] + 1) for b in (truth, box)]
    union = areas[0] + areas[1] - shared
    return (shared / union, shared, union) if union else None


def grounding(predictions: Sequence[Prediction]) -> Figures:
    """Compare the first four integers of the answer with the truth, on a grid of 100; all, unique and other objects."""
    overlaps = [_overlap(_integers(answer_in_format(p, _FORMAT)), _truth(p)) for p in predictions]
    figures = _grounding_figures(overlaps, "")
    for group in _GROUPS:
        members = [o for o, p in zip(overlaps, predictions, strict=True) if p.question_type == group]
        if members:
            figures |= _grounding_figures(members, f"_{group}")
    return figures


def _grounding_figures(overlaps: Sequence[tuple[float, float, float] | None], suffix: str) -> dict[str, float]:
    valid = [overlap for overlap in overlaps if overlap]
    return {
        **{
            f"acc@{limit}{suffix}": fraction(sum(iou >= limit for iou, _, _ in valid), len(overlaps))
            for limit in _THRESHOLDS
        },
        f"mean_iou{suffix}": fraction(sum(iou for iou, _, _ in valid), len(overlaps)),
        f"cum_iou{suffix}": fraction(sum(i for _, i, _ in valid), sum(u for _, _, u in valid)),
    }


def vqa(predictions: Sequence[Prediction]) -> Figures:
    """Accept an answer that contains the truth, so `no` is found in `I do not know`; `mean` is over the types."""
    hits = [p.answer.lower() in p.prediction.lower() for p in predictions]
    by_type = collections.defaultdict(list)
    for p, hit in zip(predictions, hits, strict=True):
        name = p.question_type.lower()
        by_type[_RENAMED.get(name, name)].append(hit)
    types = {f"accuracy_{name}": float(np.mean(by_type[name])) for name in _TYPES if name in by_type}
    mean = {"mean": float(np.mean(list(types.values())))} if types else {}
    return {"accuracy": float(np.mean(hits)), **mean, **types}


RULES: Mapping[str, Rule] = {
    Task.GROUNDING: Rule(
        compute=grounding,
        ours={"acc@0.5": "pr50", "acc@0.7": "pr70", "mean_iou": "mean_iou", "cum_iou": "cum_iou"},
        file="eval_fianl/compute_metrics.ipynb, eval_fianl/eval_utils.py",
        description="IoU with 1 added to each side, on a grid of 100; the box is the answer's first four integers"),
    Task.VQA: Rule(
        compute=vqa, ours={"accuracy": "accuracy"}, file="eval_fianl/eval_vqa_gpt.ipynb",
        description="an answer is correct if the truth is a substring of it "
                    "(the second step, a judgement by a language model, is left out)"),
}  # fmt: skip
