"""Answers that look at nothing: the best constant one, learnt from training records, and random ones."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes import (
    MMRS,
    BoxKind,
    Square,
    canonical,
    format_boxes,
    format_detection,
    polygon_to_rect,
    rect_to_polygon,
)
from earthgpt_jax.evaluation.metrics.captions import cider, tokenise
from earthgpt_jax.evaluation.predictions import DETECTION, FrameKind, Prediction
from earthgpt_jax.evaluation.runner import Asked
from earthgpt_jax.input.prompts.derived import DerivedTask
from earthgpt_jax.records import Record, Task

# What a question whose premise is false looks like.
_ASKS_FOR: Mapping[str, str] = {
    DerivedTask.ABSENT_GROUNDING: Task.GROUNDING,
    DerivedTask.ABSENT_HBB: Task.HBB,
    DerivedTask.ABSENT_OBB: Task.OBB,
}
_SAMPLE = 300  # phrases compared with one another for their medoid
_CANDIDATES, _IMAGES = 30, 120  # captions tried, and images they are tried on


def constant(train: Sequence[Record], asked: Sequence[Asked], *, decimals: int) -> list[Prediction]:
    """The same answer to every question of a task (and VQA type), whatever the image.

    Most frequent scene, VQA answer, count and class; the caption with the best CIDEr and the phrase nearest to all
    others; the median box of the most frequent class for grounding and detection.
    """
    # The statistics need no pixels: images are let go one by one.
    known = [dataclasses.replace(train[index], image=b"") for index in range(len(train))]
    answers = _Answers(known, decimals=decimals)
    return [Prediction.of(item.record, item.question, answers(item)) for item in asked]


class _Answers:
    def __init__(self, records: Sequence[Record], *, decimals: int):
        self._decimals = decimals
        self._label = _most_frequent(record.label for record in records if record.label)
        turns = collections.defaultdict(list)
        for record in records:
            for turn in record.turns:
                turns[turn.question_type].append(turn.answer)
        self._vqa = {kind: _most_frequent(values) for kind, values in turns.items()}
        self._caption = _best_caption([record.references for record in records if record.references])
        self._phrase = _medoid([item.phrase for record in records for item in record.objects if item.phrase])
        self._count = _most_frequent(
            str(count)
            for record in records
            for count in collections.Counter(item.label for item in record.objects).values()
        )
        self._object = _most_frequent(item.label for record in records for item in record.objects)
        # Median corners as fractions of the square, of all objects and of the most frequent class.
        self._any_box = _median_box(records, None)
        self._box = _median_box(records, self._object)

    def __call__(self, item: Asked) -> str:
        square = Square(item.record.width, item.record.height)
        match _ASKS_FOR.get(item.question.task, item.question.task):
            case Task.CLASSIFICATION:
                return self._label
            case Task.VQA:
                return self._vqa.get(item.question.question_type, "")
            case Task.CAPTION:
                return self._caption
            case Task.REGION_CAPTION:
                return self._phrase
            case DerivedTask.PRESENCE:
                return "yes"  # of each class as often right as `no`
            case DerivedTask.COUNT:
                return self._count
            case DerivedTask.REGION_CLASS:
                return self._object
            case Task.GROUNDING:
                return format_boxes(
                    [square.to_pixels(self._any_box)], square=square, decimals=self._decimals, kind=BoxKind.HBB
                )
            case task:
                box = canonical(square.to_pixels(self._box))
                return format_detection(
                    {self._object: [box]}, square=square, decimals=self._decimals, kind=BoxKind(task)
                )


def _most_frequent(values: Iterable[str]) -> str:
    """Of equals the alphabetically first, so that the baseline does not depend on the order of records."""
    counts = collections.Counter(values)
    return min(counts, key=lambda value: (-counts[value], value), default="")


def _best_caption(references: Sequence[Sequence[str]]) -> str:
    """The training caption with the best CIDEr against a sample of training images' references."""
    sample: dict[int, Sequence[str]] = dict(enumerate(references[:: max(1, len(references) // _IMAGES)]))
    candidates = sorted({texts[0] for texts in sample.values()})
    candidates = candidates[:: max(1, len(candidates) // _CANDIDATES)]

    def consensus(text: str) -> float:
        return cider(sample, {key: text for key in sample})  # noqa: C420  (fromkeys would lose the type)

    return max(candidates, key=consensus, default="")


def _medoid(texts: Sequence[str]) -> str:
    """The text that shares most words with the others (mean Jaccard index over a sample)."""
    sample = sorted(texts)[:: max(1, len(texts) // _SAMPLE)]
    words = [set(tokenise(text).split()) for text in sample]
    shared = [sum(len(a & b) / max(len(a | b), 1) for b in words) for a in words]
    return sample[int(np.argmax(shared))] if sample else ""


def _median_box(records: Sequence[Record], label: str | None) -> np.ndarray:
    boxes = [
        Square(record.width, record.height).to_fractions(polygon_to_rect(item.polygon))
        for record in records
        for item in record.objects
        if label in (None, item.label)
    ]
    return rect_to_polygon(*(np.median(boxes, axis=0) if boxes else (0.25, 0.25, 0.75, 0.75)))


def shuffled(predictions: Sequence[Prediction], *, seed: int = 0) -> list[Prediction]:
    """The random baseline: each question gets the right answer of another one of its task and type, drawn at random.

    So answers are as frequent, and boxes as many, as large and where they are in the truth; nothing of the image is in
    them. It needs nothing but the predictions' own file. No question gets its own answer, unless it is the only one.
    """
    groups: dict[tuple[str, str], list[Prediction]] = collections.defaultdict(list)
    for p in sorted(predictions, key=lambda p: p.id):
        groups[p.task, p.kind].append(p)
    rng = np.random.default_rng(seed)
    given = {}
    for rows in groups.values():
        order = rng.permutation(len(rows))
        for place, following in zip(order, np.roll(order, -1), strict=True):
            given[rows[place].id] = _right_answer(rows[following]) if len(rows) > 1 else ""
    return [p.saying(given[p.id], box_format=MMRS, frame=FrameKind.SQUARE.value) for p in predictions]


def _right_answer(p: Prediction) -> str:
    """Boxes are written anew, since an answer may be in any grammar."""
    square, decimals = Square(p.width, p.height), 4
    match p.task:
        case Task.GROUNDING if p.object_index is not None:
            polygon = np.asarray(p.objects[p.object_index].polygon)
            return format_boxes([polygon], square=square, decimals=decimals, kind=BoxKind.HBB)
        case task if task in DETECTION:
            boxes: dict[str, list[np.ndarray]] = collections.defaultdict(list)
            for item in p.objects:
                boxes[item.label].append(np.asarray(item.polygon))
            return format_detection(boxes, square=square, decimals=decimals, kind=DETECTION[task])
        case Task.CAPTION | Task.REGION_CAPTION:
            return p.references[0]
        case _:
            return p.answer
