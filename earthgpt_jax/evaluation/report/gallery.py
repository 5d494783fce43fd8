"""What the page shows of single images: pictures with boxes, questions with answers, unreadable answers."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes import BoxKind, polygon_to_rect, rect_to_polygon
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.pictures import data_uri, svg_points
from earthgpt_jax.evaluation.metrics import classification
from earthgpt_jax.evaluation.metrics.captions import captions
from earthgpt_jax.evaluation.metrics.detection import matching
from earthgpt_jax.evaluation.metrics.grounding import iou
from earthgpt_jax.evaluation.metrics.parsed_boxes import boxes_of, frame_of
from earthgpt_jax.evaluation.predictions import DETECTION, WITH_BOXES, Prediction, Truth
from earthgpt_jax.input.prompts.derived import DerivedTask
from earthgpt_jax.raster.decode import decode
from earthgpt_jax.records import Record, Sensor, Task

_EXACT = (Task.CLASSIFICATION, Task.VQA, *DerivedTask)  # tasks with one right answer
_LONGEST_SIDE = 640  # of a picture on the page; boxes keep the coordinates of the original


@dataclasses.dataclass(frozen=True, kw_only=True)
class Box:
    """A box to draw: label and the corners as an SVG `points` attribute, in pixels of the image."""

    label: str
    points: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """A question with its answer and truth; `verdict` is right, partly, wrong, unreadable, or "" for free text."""

    task: str
    question: str
    prediction: str
    truth: str
    verdict: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """An image of the gallery; `image` is a PNG as a data URI, `width` and `height` are the original's."""

    title: str
    sensor: str
    source: str
    image: str
    width: int
    height: int
    boxes: Mapping[str, tuple[Sequence[Box], Sequence[Box]]]  # task -> (truth, predicted)
    answers: Sequence[Answer]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Failure:
    """An answer whose boxes could not be read (and so scored as wrong), with the parser's reasons."""

    task: str
    record_id: str
    prediction: str
    reason: str


def cases(records: Sequence[Record], predictions: Sequence[Prediction], *, per_sensor: int) -> list[Case]:
    """The first answered images of each sensor; not chosen by how good the answers are."""
    by_record: dict[str, list[Prediction]] = collections.defaultdict(list)
    for prediction in predictions:
        by_record[prediction.record_id].append(prediction)
    found: dict[Sensor, list[Case]] = {sensor: [] for sensor in Sensor}
    for index in range(len(records)):
        if all(len(group) >= per_sensor for group in found.values()):
            break
        record = records[index]
        if len(found[record.sensor]) < per_sensor and record.id in by_record and record.image:
            found[record.sensor].append(_case(record, by_record[record.id]))
    return [case for group in found.values() for case in group]


def extremes(records: Sequence[Record], predictions: Sequence[Prediction], *, count: int) -> dict[str, list[Case]]:
    """The worst and the best images, `count` each, by the mean quality of their answers; of equals the first by id."""
    by_record: dict[str, list[Prediction]] = collections.defaultdict(list)
    for prediction in predictions:
        by_record[prediction.record_id].append(prediction)
    means = {name: float(np.mean([quality(p) for p in group])) for name, group in by_record.items()}
    ranked = sorted(means, key=lambda name: (means[name], name))
    count = min(count, len(ranked) // 2)
    titles = {"Worst images": ranked[:count], "Best images": ranked[::-1][:count]}
    wanted = {name for names in titles.values() for name in names}
    found: dict[str, Case] = {}
    for index in range(len(records)):
        if len(found) == len(wanted):
            break
        record = records[index]
        if record.id in wanted and record.image:
            case = _case(record, by_record[record.id])
            found[record.id] = dataclasses.replace(case, title=f"{case.title}, quality {means[record.id]:.2f}")
    return {title: [found[name] for name in names if name in found] for title, names in titles.items()}


def quality(prediction: Prediction) -> float:
    """How good one answer is, 0 to 1: right or not, IoU, F1 of an image's boxes, ROUGE-L; for choosing images only."""
    match prediction.task:
        case Task.GROUNDING:
            return iou(prediction) or 0.0
        case task if task in DETECTION:
            matched = matching(prediction, DETECTION[prediction.task])
            wrong = matched.spurious + matched.missed
            return 2 * matched.right / (2 * matched.right + wrong) if matched.right + wrong else float(matched.parsed)
        case Task.CAPTION | Task.REGION_CAPTION:
            return captions([prediction])["rouge_l"]
        case _:
            return float(classification.right(prediction))


def failures(predictions: Sequence[Prediction]) -> list[Failure]:
    """Every answer that was asked for boxes and cannot be read, in the order of the predictions."""
    return [
        Failure(task=p.task, record_id=p.record_id, prediction=p.prediction, reason=_why(p))
        for p in predictions
        if p.task in WITH_BOXES and not _readable(p)
    ]


def _readable(prediction: Prediction) -> bool:
    if prediction.task == Task.GROUNDING:
        return iou(prediction) is not None
    return matching(prediction, DETECTION[prediction.task]).parsed


def _why(prediction: Prediction) -> str:
    parsed = boxes_of(prediction)
    if parsed.rejections:
        return "; ".join(parsed.rejections)
    if not parsed.boxes:
        return "no box in it" if prediction.prediction.strip() else "empty answer"
    return f"one horizontal box expected, got {len(parsed.boxes)} of kind {parsed.boxes[0].kind.value}"


def _case(record: Record, predictions: Sequence[Prediction]) -> Case:
    boxes: dict[str, tuple[list[Box], list[Box]]] = {}
    for prediction in predictions:
        if prediction.task in WITH_BOXES:
            truth, got = boxes.setdefault(prediction.task, ([], []))
            for item in _asked_for(prediction):  # drawn as it is scored: upright unless oriented boxes are asked for
                upright = DETECTION.get(prediction.task) is not BoxKind.OBB
                polygon = rect_to_polygon(*polygon_to_rect(np.asarray(item.polygon))) if upright else item.polygon
                truth.append(Box(label=item.label, points=svg_points(polygon)))
            frame = frame_of(prediction)
            got += [Box(label=box.label, points=svg_points(box.pixels(frame))) for box in boxes_of(prediction).boxes]
    return Case(
        title=record.id,
        sensor=record.sensor.value,
        source=record.source,
        image=_data_uri(record),
        width=record.width,
        height=record.height,
        boxes={str(task): boxes[task] for task in WITH_BOXES if task in boxes},
        answers=[
            Answer(task=p.task, question=p.question, prediction=p.prediction, truth=_truth(p), verdict=_verdict(p))
            for p in predictions
        ],
    )


def _asked_for(prediction: Prediction) -> Sequence[Truth]:
    if prediction.task != Task.GROUNDING or prediction.object_index is None:
        return prediction.objects
    return [prediction.objects[prediction.object_index]]


def _truth(prediction: Prediction) -> str:
    return " / ".join(prediction.references) if prediction.task == Task.CAPTION else prediction.answer


def _data_uri(record: Record) -> str:
    """PNG, whatever the original was (browsers do not show TIFF), no larger than a page needs."""
    try:
        return data_uri(decode(record.image), longest_side=_LONGEST_SIDE)
    except EarthGPTError as error:
        raise EarthGPTError(f"record {record.id}: {error}") from error


def _verdict(prediction: Prediction) -> str:
    match prediction.task:
        case task if task in _EXACT:
            return "right" if classification.right(prediction) else "wrong"
        case Task.GROUNDING:
            overlap = iou(prediction)
            return "unreadable" if overlap is None else "right" if overlap >= 0.5 else "wrong"
        case task if task in DETECTION:
            matched = matching(prediction, DETECTION[prediction.task])
            if not matched.parsed:
                return "unreadable"
            if matched.spurious == matched.missed == 0:
                return "right"
            return "partly" if matched.right else "wrong"
        case _:
            return ""
