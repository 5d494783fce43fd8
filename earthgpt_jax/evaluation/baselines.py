"""Baselines that do not look at the image: the best constant answers from training data, and random answers."""

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
from earthgpt_jax.evaluation.metrics.captions import cider, tokenize
from earthgpt_jax.evaluation.predictions import DETECTION_TASKS, CoordinateFrame, MultiTargetTask, Prediction
from earthgpt_jax.evaluation.questions import Example
from earthgpt_jax.input.prompts.derived import DerivedTask
from earthgpt_jax.records import Record, Task

# The task whose wording a question with a false premise uses.
_LOOKS_LIKE: Mapping[str, str] = {
    DerivedTask.ABSENT_GROUNDING: Task.GROUNDING,
    DerivedTask.ABSENT_HBB: Task.HBB,
    DerivedTask.ABSENT_OBB: Task.OBB,
}
_MAX_PHRASES = 300  # phrases compared with each other to find their medoid
_MAX_CAPTIONS, _MAX_IMAGES = 30, 120  # candidate captions, and images that they are scored on


def constant(train: Sequence[Record], examples: Sequence[Example], *, decimals: int) -> list[Prediction]:
    """Return the constant baseline: one answer per task (and VQA question type), chosen from training records.

    The answers are the most frequent scene class, VQA answer, count and object class; the caption with the best CIDEr;
    the phrase closest to all others; and the median box, for detection that of the most frequent class.

    Args:
        train: the training records.
        examples: the questions to answer.
        decimals: number of decimals of box coordinates.
    """
    # The statistics need no pixels, so each image is released as soon as its record is read.
    records = [dataclasses.replace(train[index], image=b"") for index in range(len(train))]
    answers = _ConstantAnswers(records, decimals=decimals)
    return [Prediction.from_answer(item.record, item.question, answers(item)) for item in examples]


class _ConstantAnswers:
    """The constant answer of each task."""

    def __init__(self, records: Sequence[Record], *, decimals: int):
        self._decimals = decimals
        self._label = _most_frequent(record.label for record in records if record.label)
        turns = collections.defaultdict(list)
        for record in records:
            for turn in record.turns:
                turns[turn.question_type].append(turn.answer)
        self._vqa = {question_type: _most_frequent(values) for question_type, values in turns.items()}
        self._caption = _best_caption([record.references for record in records if record.references])
        self._phrase = _medoid([item.phrase for record in records for item in record.objects if item.phrase])
        self._count = _most_frequent(
            str(count)
            for record in records
            for count in collections.Counter(item.label for item in record.objects).values()
        )
        self._object = _most_frequent(item.label for record in records for item in record.objects)
        # Median corners, as fractions of the square, of all objects and of the most frequent class.
        self._any_box = _median_box(records, None)
        self._box = _median_box(records, self._object)

    def __call__(self, item: Example) -> str:
        square = Square(item.record.width, item.record.height)
        match _LOOKS_LIKE.get(item.question.task, item.question.task):
            case Task.CLASSIFICATION:
                return self._label
            case Task.VQA:
                return self._vqa.get(item.question.question_type, "")
            case Task.CAPTION:
                return self._caption
            case Task.REGION_CAPTION:
                return self._phrase
            case DerivedTask.PRESENCE:
                return "yes"  # as often correct as `no`, for every class
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
    """Return the most frequent value; ties go to the alphabetically first, so that record order does not matter."""
    counts = collections.Counter(values)
    return min(counts, key=lambda value: (-counts[value], value), default="")


def _best_caption(references: Sequence[Sequence[str]]) -> str:
    """Return the training caption with the best CIDEr against the references of a sample of training images."""
    sample: dict[int, Sequence[str]] = dict(enumerate(references[:: max(1, len(references) // _MAX_IMAGES)]))
    candidates = sorted({texts[0] for texts in sample.values()})
    candidates = candidates[:: max(1, len(candidates) // _MAX_CAPTIONS)]

    def consensus(text: str) -> float:
        return cider(sample, {key: text for key in sample})  # noqa: C420  (fromkeys would lose the type)

    return max(candidates, key=consensus, default="")


def _medoid(texts: Sequence[str]) -> str:
    """Return the text that shares most words with the others, by the mean Jaccard index over a sample."""
    sample = sorted(texts)[:: max(1, len(texts) // _MAX_PHRASES)]
    words = [set(tokenize(text).split()) for text in sample]
    similarity = [sum(len(a & b) / max(len(a | b), 1) for b in words) for a in words]
    return sample[int(np.argmax(similarity))] if sample else ""


def _median_box(records: Sequence[Record], label: str | None) -> np.ndarray:
    """Return the median axis-aligned box of the objects of a class (None: all), as a polygon in fractions."""
    boxes = [
        Square(record.width, record.height).to_fractions(polygon_to_rect(item.polygon))
        for record in records
        for item in record.objects
        if label in (None, item.label)
    ]
    return rect_to_polygon(*(np.median(boxes, axis=0) if boxes else (0.25, 0.25, 0.75, 0.75)))


def shuffled(predictions: Sequence[Prediction], *, seed: int = 0) -> list[Prediction]:
    """Return the random baseline: each question gets the correct answer of another question of its task and type.

    Answers thus have the frequencies, and boxes the numbers, sizes and positions, of the ground truth, but are
    independent of the image. Only the predictions are needed. No question gets its own answer; the only question of
    its task and type gets an empty one.
    """
    groups: dict[tuple[str, str], list[Prediction]] = collections.defaultdict(list)
    for p in sorted(predictions, key=lambda p: p.id):
        groups[p.task, p.question_type].append(p)
    rng = np.random.default_rng(seed)
    answers = {}
    for rows in groups.values():
        order = rng.permutation(len(rows))
        for index, other in zip(order, np.roll(order, -1), strict=True):
            answers[rows[index].id] = _true_answer(rows[other]) if len(rows) > 1 else ""
    return [p.with_answer(answers[p.id], box_format=MMRS, frame=CoordinateFrame.SQUARE.value) for p in predictions]


def _true_answer(p: Prediction) -> str:
    """Return the true answer; boxes are formatted again in the MMRS format, since `p` may use any box format."""
    square, decimals = Square(p.width, p.height), 4
    match p.task:
        case Task.GROUNDING if p.object_index is not None:
            polygon = np.asarray(p.objects[p.object_index].polygon)
            return format_boxes([polygon], square=square, decimals=decimals, kind=BoxKind.HBB)
        case MultiTargetTask.GROUNDING:
            polygons = [np.asarray(item.polygon) for item in p.objects]
            return format_boxes(polygons, square=square, decimals=decimals, kind=BoxKind.HBB) if polygons else ""
        case task if task in DETECTION_TASKS:
            boxes: dict[str, list[np.ndarray]] = collections.defaultdict(list)
            for item in p.objects:
                boxes[item.label].append(np.asarray(item.polygon))
            return format_detection(boxes, square=square, decimals=decimals, kind=DETECTION_TASKS[task])
        case Task.CAPTION | Task.REGION_CAPTION:
            return p.references[0]
        case _:
            return p.answer
