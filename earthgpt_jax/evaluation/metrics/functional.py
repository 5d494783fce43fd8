"""Every metric as a function of plain texts and boxes.

For answers that are not in a predictions file: lists of strings, and boxes as numpy arrays. Each function computes what
`earthgpt score` reports, by the same code.

    >>> from earthgpt_jax.evaluation.metrics import functional as metrics
    >>> metrics.classification(["Port.", "beach"], ["port", "lake"])["top1"]
    0.5
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from earthgpt_jax.boxes import MMRS, BoxKind
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation import predictions as predictions_lib
from earthgpt_jax.evaluation.metrics import average_precision as ap_lib
from earthgpt_jax.evaluation.metrics import calibration as calibration_lib
from earthgpt_jax.evaluation.metrics import captions as captions_lib
from earthgpt_jax.evaluation.metrics import classification as classification_lib
from earthgpt_jax.evaluation.metrics import detection as detection_lib
from earthgpt_jax.evaluation.metrics import grounding as grounding_lib
from earthgpt_jax.evaluation.metrics import intervals as intervals_lib
from earthgpt_jax.evaluation.metrics import iou as iou_lib
from earthgpt_jax.evaluation.metrics import meteor_spice as meteor_spice_lib
from earthgpt_jax.evaluation.metrics import ptb
from earthgpt_jax.evaluation.metrics import vqa as vqa_lib
from earthgpt_jax.records import Sensor, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boxes:
    """The boxes of one image, predicted or true.

    Attributes:
        boxes: f[n, 4] as x0, y0, x1, y1, or f[n, 8] as four corners; in pixels.
        labels: class of each box.
        confidences: of each predicted box; () if unknown.
        difficult: of each true box, whether it is neither required nor penalized; () if none is.
    """

    boxes: np.ndarray | Sequence[Sequence[float]]
    labels: Sequence[str]
    confidences: Sequence[float] = ()
    difficult: Sequence[bool] = ()

    @property
    def kind(self) -> BoxKind:
        return BoxKind.OBB if np.asarray(self.boxes).ndim == 2 and np.shape(self.boxes)[1] == 8 else BoxKind.HBB


def tokenize(text: str) -> str:
    """Return the lower-case Penn Treebank tokens of a caption, separated by spaces, without punctuation."""
    return ptb.tokenize(text)


def normalize(text: str) -> str:
    """Return a short answer in lower case, without punctuation; answers are compared in this form."""
    return classification_lib.normalize(text)


def classification(answers: Sequence[str], truths: Sequence[str]) -> dict[str, float]:
    """Compute `top1`, `mean_recall`, `macro_f1` and `kappa`; of truths with several labels, `multilabel_f1` and others.

    Args:
        answers: the predicted class of each image.
        truths: the true class; several labels are separated by commas.

    Raises:
        EarthGPTError: there are no answers, or as many answers as truths are expected.
    """
    return classification_lib.classification(_texts(answers, truths, Task.CLASSIFICATION))


def vqa(answers: Sequence[str], truths: Sequence[str], *, question_types: Sequence[str] = ()) -> dict[str, float]:
    """Compute `accuracy`, also by question type; errors of counts where truths are numbers; `false_yes_rate`.

    Args:
        answers, truths: one text per question.
        question_types: type of each question, such as `presence`; () for none.

    Raises:
        EarthGPTError: there are no answers, or as many answers as truths are expected.
    """
    rows = _texts(answers, truths, Task.VQA)
    if question_types:
        _check_lengths(answers, question_types, "question types")
        rows = [dataclasses.replace(p, question_type=t) for p, t in zip(rows, question_types, strict=True)]
    return vqa_lib.vqa(rows)


def captions(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute `bleu1` to `bleu4`, `rouge_l` and `cider`; CIDEr of a single caption is undefined, NaN.

    Args:
        answers: one caption per image.
        references: the true captions of each image.

    Raises:
        EarthGPTError: there are no answers, or as many answers as lists of references are expected.
    """
    return captions_lib.captions(_captions(answers, references))


def meteor_spice(answers: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """Compute those of `meteor` and `spice` that this machine can compute; both need Java. Arguments as `captions`."""
    return meteor_spice_lib.meteor_spice(_captions(answers, references))


def iou(boxes1: np.ndarray, boxes2: np.ndarray) -> np.ndarray:
    """Return the IoU matrix f[M, N] of boxes f[M, 4] and f[N, 4], or of polygons f[M, 8] and f[N, 8].

    Raises:
        EarthGPTError: the boxes have another number of coordinates.
    """
    boxes1, boxes2 = np.asarray(boxes1, float), np.asarray(boxes2, float)
    functions = {4: iou_lib.hbb_ious, 8: iou_lib.obb_ious}
    if boxes1.ndim != 2 or boxes2.ndim != 2 or boxes1.shape[1] != boxes2.shape[1] or boxes1.shape[1] not in functions:
        raise EarthGPTError(
            f"iou: expected two arrays of shape [n, 4] or [n, 8], got {list(boxes1.shape)} and {list(boxes2.shape)}"
        )
    return functions[boxes1.shape[1]](boxes1, boxes2)


def grounding(boxes: Sequence[np.ndarray | None], truths: Sequence[np.ndarray]) -> dict[str, float]:
    """Compute `pr50` to `pr90`, `mean_iou`, `cum_iou` and `parse_rate`.

    Args:
        boxes: the predicted box of each question, f[4] in pixels; None for an answer that is not a box.
        truths: the true boxes, f[4].

    Raises:
        EarthGPTError: there are no questions, or as many boxes as truths are expected.
    """
    _check_lengths(boxes, truths, "truths")
    rows = []
    for number, (box, truth) in enumerate(zip(boxes, truths, strict=True)):
        side = _side([*([] if box is None else [box]), truth])
        rows.append(
            _prediction(
                number, "" if box is None else _box_text([box], side), Task.GROUNDING, side=side, object_index=0,
                objects=(_truth("", truth),),
            )
        )  # fmt: skip
    return grounding_lib.grounding(rows)


def detection(predicted: Sequence[Boxes], truths: Sequence[Boxes]) -> dict[str, float]:
    """Compute precision, recall, F1 and macro F1 at IoU 0.5, and the average precisions of VOC and COCO.

    Args:
        predicted, truths: the boxes of each image.

    Raises:
        EarthGPTError: there are no images, as many predictions as truths are expected, or one image has another
            number of labels or confidences than boxes.
    """
    rows, kind = _detections(predicted, truths)
    return {**detection_lib.detection[kind](rows), **ap_lib.average_precisions(rows, kind)}


def calibration(confidences: Sequence[float], correct: Sequence[bool]) -> dict[str, float]:
    """Compute `ece`, and `ece_if_calibrated` with its 95 % range as `ece_low` and `ece_high`.

    Args:
        confidences: of the boxes, in [0, 1].
        correct: whether each box is correct.

    Raises:
        EarthGPTError: there are no boxes, or as many confidences as outcomes are expected.
    """
    _check_lengths(confidences, correct, "outcomes")
    values, hits = np.asarray(confidences, float), np.asarray(correct, float)
    gaps = np.bincount(calibration_lib.bin_indices(values), values - hits, minlength=calibration_lib.BINS)
    expected, (low, high) = calibration_lib.ece_if_calibrated(values)
    return {
        "ece": float(np.abs(gaps).sum() / len(values)), "ece_if_calibrated": expected, "ece_low": low, "ece_high": high,
    }  # fmt: skip


def wilson_interval(fraction: float, n: float) -> tuple[float, float]:
    """Return the 95 % interval of a fraction of n independent outcomes."""
    low, high = intervals_lib.wilson_interval(fraction, n)
    return low, high


# ----------------------------------------------------------------------------------------------------- building rows
def _check_lengths(first: Sequence[object], second: Sequence[object], name: str) -> None:
    if len(first) != len(second) or not len(first):
        raise EarthGPTError(f"expected one or more answers and as many {name}, got {len(first)} and {len(second)}")


def _prediction(number: int, text: str, task: str, *, side: int = 1, **changes: object) -> predictions_lib.Prediction:
    name = f"{number:09d}"
    values: dict[str, object] = {
        "id": name, "record_id": name, "task": str(task), "question_type": "", "sensor": Sensor.OPTICAL.value,
        "source": "", "question": "", "prediction": text, "answer": "", "references": ("",), "objects": (),
        "object_index": None, "width": side, "height": side, "box_format": MMRS,
    }  # fmt: skip
    return predictions_lib.Prediction(**values | changes)  # type: ignore[arg-type]


def _texts(answers: Sequence[str], truths: Sequence[str], task: str) -> list[predictions_lib.Prediction]:
    _check_lengths(answers, truths, "truths")
    return [
        _prediction(number, text, task, answer=truth, references=(truth,))
        for number, (text, truth) in enumerate(zip(answers, truths, strict=True))
    ]


def _captions(answers: Sequence[str], references: Sequence[Sequence[str]]) -> list[predictions_lib.Prediction]:
    _check_lengths(answers, references, "lists of references")
    return [
        _prediction(number, text, Task.CAPTION, references=tuple(texts))
        for number, (text, texts) in enumerate(zip(answers, references, strict=True))
    ]


def _side(boxes: Sequence[np.ndarray]) -> int:
    """Return the side of a square that holds all boxes, in pixels."""
    return max(2, int(np.ceil(max((float(np.max(box)) for box in boxes if len(box)), default=1.0))))


def _polygon(box: np.ndarray) -> np.ndarray:
    box = np.asarray(box, float)
    if box.shape == (4,):
        x0, y0, x1, y1 = box
        return np.array([x0, y0, x1, y0, x1, y1, x0, y1])
    return box


def _truth(label: str, box: np.ndarray, difficult: bool = False) -> predictions_lib.Truth:
    return predictions_lib.Truth(label=label, polygon=tuple(_polygon(box).tolist()), difficult=bool(difficult))


def _box_text(boxes: Sequence[np.ndarray], side: int) -> str:
    return "[" + ";".join(",".join(f"{n / side:.12f}" for n in np.asarray(box, float)) for box in boxes) + "]"


def _detections(
    predicted: Sequence[Boxes], truths: Sequence[Boxes]
) -> tuple[list[predictions_lib.Prediction], BoxKind]:
    _check_lengths(predicted, truths, "truths")
    kind = next((item.kind for item in truths if len(item.boxes)), BoxKind.HBB)
    rows = []
    for number, (found, truth) in enumerate(zip(predicted, truths, strict=True)):
        for what, item, values in (("labels", found, found.labels), ("labels", truth, truth.labels),
                                   ("confidences", found, found.confidences or found.labels)):  # fmt: skip
            if len(values) != len(item.boxes):
                raise EarthGPTError(f"image {number}: expected {len(item.boxes)} {what}, got {len(values)}")
        side = _side([*found.boxes, *truth.boxes])
        text = " ".join(f"<p>one {label}</p>{_box_text([box], side)}"
                        for label, box in zip(found.labels, found.boxes, strict=True))  # fmt: skip
        difficult = truth.difficult or [False] * len(truth.boxes)
        objects = tuple(
            _truth(label, box, flag) for label, box, flag in zip(truth.labels, truth.boxes, difficult, strict=True)
        )
        rows.append(
            _prediction(number, text, Task(kind.value), side=side, objects=objects,
                        confidences=tuple(float(c) for c in found.confidences))
        )  # fmt: skip
    return rows, kind
