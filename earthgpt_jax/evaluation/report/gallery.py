"""What the page shows of single images: pictures with boxes, questions with answers, and unparsable answers."""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes import BoxKind, polygon_to_rect, rect_to_polygon
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.pictures import data_uri, svg_points
from earthgpt_jax.evaluation.metrics.captions import captions
from earthgpt_jax.evaluation.metrics.classification import is_correct
from earthgpt_jax.evaluation.metrics.detection import match_boxes
from earthgpt_jax.evaluation.metrics.grounding import grounding_iou
from earthgpt_jax.evaluation.metrics.parsed_boxes import frame_of, parse_answer
from earthgpt_jax.evaluation.predictions import BOX_TASKS, DETECTION_TASKS, Prediction, Truth
from earthgpt_jax.input.prompts.derived import DerivedTask
from earthgpt_jax.raster.decode import record_pixels
from earthgpt_jax.records import Record, Sensor, Task

_EXACT_TASKS = (Task.CLASSIFICATION, Task.VQA, *DerivedTask)  # tasks with one correct answer
_LONGEST_SIDE = 640  # of a picture, in pixels; boxes keep the coordinates of the original image


class Verdict(enum.StrEnum):
    """How an answer is marked on the page; a free text such as a caption has no verdict."""

    CORRECT = "correct"
    PARTLY = "partly"
    WRONG = "wrong"
    UNPARSABLE = "unparsable"
    NONE = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    """A box to draw: its label, and its corners in pixels of the image as an SVG `points` attribute."""

    label: str
    points: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """A question with its answer, truth and verdict."""

    task: str
    question: str
    prediction: str
    truth: str
    verdict: Verdict


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageCase:
    """An image with its answers.

    Attributes:
        title: id of the image.
        sensor, source: sensor and dataset.
        image: PNG as a data URI, at most 640 pixels wide and high.
        width, height: size of the original image.
        boxes: task -> (true boxes, predicted boxes).
        answers: all answers about the image.
    """

    title: str
    sensor: str
    source: str
    image: str
    width: int
    height: int
    boxes: Mapping[str, tuple[Sequence[Box], Sequence[Box]]]
    answers: Sequence[Answer]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParseFailure:
    """An answer whose boxes could not be parsed, and which therefore counts as wrong, with the parser's reasons."""

    task: str
    record_id: str
    prediction: str
    reason: str


def first_images(records: Sequence[Record], predictions: Sequence[Prediction], *, per_sensor: int) -> list[ImageCase]:
    """Return the first answered images of each sensor, however good their answers are."""
    by_record = _by_record(predictions)
    cases: dict[Sensor, list[ImageCase]] = {sensor: [] for sensor in Sensor}
    for index in range(len(records)):
        if all(len(group) >= per_sensor for group in cases.values()):
            break
        record = records[index]
        if len(cases[record.sensor]) < per_sensor and record.id in by_record and record.image:
            cases[record.sensor].append(_case(record, by_record[record.id]))
    return [case for group in cases.values() for case in group]


def best_and_worst(
    records: Sequence[Record], predictions: Sequence[Prediction], *, count: int
) -> dict[str, list[ImageCase]]:
    """Return the worst and the best images, `count` each, by the mean quality of their answers; ties go by id."""
    by_record = _by_record(predictions)
    means = {name: float(np.mean([quality(p) for p in group])) for name, group in by_record.items()}
    ranked = sorted(means, key=lambda name: (means[name], name))
    count = min(count, len(ranked) // 2)
    titles = {"Worst images": ranked[:count], "Best images": ranked[::-1][:count]}
    chosen = {name for names in titles.values() for name in names}
    cases: dict[str, ImageCase] = {}
    for index in range(len(records)):
        if len(cases) == len(chosen):
            break
        record = records[index]
        if record.id in chosen and record.image:
            case = _case(record, by_record[record.id])
            cases[record.id] = dataclasses.replace(case, title=f"{case.title}, quality {means[record.id]:.2f}")
    return {title: [cases[name] for name in names if name in cases] for title, names in titles.items()}


def _by_record(predictions: Sequence[Prediction]) -> dict[str, list[Prediction]]:
    groups: dict[str, list[Prediction]] = collections.defaultdict(list)
    for prediction in predictions:
        groups[prediction.record_id].append(prediction)
    return groups


def quality(prediction: Prediction) -> float:
    """Return the quality of one answer, in [0, 1], by which images are chosen: exact match, IoU, F1, or ROUGE-L."""
    match prediction.task:
        case Task.GROUNDING:
            return grounding_iou(prediction) or 0.0
        case task if task in DETECTION_TASKS:
            matches = match_boxes(prediction, DETECTION_TASKS[prediction.task])
            correct, wrong = matches.true_positives, matches.false_positives + matches.false_negatives
            return 2 * correct / (2 * correct + wrong) if correct + wrong else float(matches.parsed)
        case Task.CAPTION | Task.REGION_CAPTION:
            return captions([prediction])["rouge_l"]
        case _:
            return float(is_correct(prediction))


def parse_failures(predictions: Sequence[Prediction]) -> list[ParseFailure]:
    """Return every answer to a question for boxes that cannot be parsed, in the order of the predictions."""
    return [
        ParseFailure(task=p.task, record_id=p.record_id, prediction=p.prediction, reason=_failure_reason(p))
        for p in predictions
        if p.task in BOX_TASKS and not _is_parsable(p)
    ]


def _is_parsable(prediction: Prediction) -> bool:
    if prediction.task == Task.GROUNDING:
        return grounding_iou(prediction) is not None
    return match_boxes(prediction, DETECTION_TASKS[prediction.task]).parsed


def _failure_reason(prediction: Prediction) -> str:
    parsed = parse_answer(prediction)
    if parsed.rejections:
        return "; ".join(parsed.rejections)
    if not parsed.boxes:
        return "no box in the answer" if prediction.prediction.strip() else "empty answer"
    return f"expected one horizontal box, got {len(parsed.boxes)} of kind {parsed.boxes[0].kind.value}"


def _case(record: Record, predictions: Sequence[Prediction]) -> ImageCase:
    boxes: dict[str, tuple[list[Box], list[Box]]] = {}
    for prediction in predictions:
        if prediction.task in BOX_TASKS:
            true, predicted = boxes.setdefault(prediction.task, ([], []))
            # Drawn as it is scored: axis-aligned unless oriented boxes are asked for.
            oriented = DETECTION_TASKS.get(prediction.task) is BoxKind.OBB
            for item in _targets(prediction):
                polygon = item.polygon if oriented else rect_to_polygon(*polygon_to_rect(np.asarray(item.polygon)))
                true.append(Box(label=item.label, points=svg_points(polygon)))
            frame = frame_of(prediction)
            predicted += [
                Box(label=box.label, points=svg_points(box.pixels(frame))) for box in parse_answer(prediction).boxes
            ]
    return ImageCase(
        title=record.id,
        sensor=record.sensor.value,
        source=record.source,
        image=_data_uri(record),
        width=record.width,
        height=record.height,
        boxes={str(task): boxes[task] for task in BOX_TASKS if task in boxes},
        answers=[
            Answer(task=p.task, question=p.question, prediction=p.prediction, truth=_truth(p), verdict=_verdict(p))
            for p in predictions
        ],
    )


def _targets(prediction: Prediction) -> Sequence[Truth]:
    """Return the objects that the question asks for."""
    if prediction.task != Task.GROUNDING or prediction.object_index is None:
        return prediction.objects
    return [prediction.objects[prediction.object_index]]


def _truth(prediction: Prediction) -> str:
    return " / ".join(prediction.references) if prediction.task == Task.CAPTION else prediction.answer


def _data_uri(record: Record) -> str:
    """Return the image as a PNG no larger than the page needs; browsers do not show formats such as TIFF."""
    try:
        return data_uri(record_pixels(record), longest_side=_LONGEST_SIDE)
    except EarthGPTError as error:
        raise EarthGPTError(f"record {record.id}: {error}") from error


def _verdict(prediction: Prediction) -> Verdict:
    match prediction.task:
        case task if task in _EXACT_TASKS:
            return Verdict.CORRECT if is_correct(prediction) else Verdict.WRONG
        case Task.GROUNDING:
            overlap = grounding_iou(prediction)
            if overlap is None:
                return Verdict.UNPARSABLE
            return Verdict.CORRECT if overlap >= 0.5 else Verdict.WRONG
        case task if task in DETECTION_TASKS:
            matches = match_boxes(prediction, DETECTION_TASKS[prediction.task])
            if not matches.parsed:
                return Verdict.UNPARSABLE
            if matches.false_positives == matches.false_negatives == 0:
                return Verdict.CORRECT
            return Verdict.PARTLY if matches.true_positives else Verdict.WRONG
        case _:
            return Verdict.NONE
