"""Falcon's scoring rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import shapely

from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.evaluation.third_party.rule import Figures, Rule, answer_in_format, fraction, truth_in_format
from earthgpt_jax.input.prompts.derived import DerivedTask
from earthgpt_jax.records import Task

Box = Sequence[float]
_THRESHOLDS = tuple(n / 10 for n in range(1, 10))


# ------------------------------------------------------------------------------------------------ horizontal boxes
def _four_numbers(text: str) -> list[Box]:
    """Return each run of four location tokens; of five numbers the first four, of eight two boxes."""
    return [
        [float(n) for n in numbers] for numbers in re.findall(r"<(\d+)><(\d+)><(\d+)><(\d+)>", text.replace(" ", ""))
    ]


def falcon_iou(box1: Box, box2: Box) -> float:
    """Return Falcon's IoU: 1 if a box has fewer than four numbers; 0.1 is added to the union."""
    if min(len(box1), len(box2)) < 4:
        return 1.0
    width, height = min(box1[2], box2[2]) - max(box1[0], box2[0]), min(box1[3], box2[3]) - max(box1[1], box2[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (box1, box2)]
    union = areas[0] + areas[1] - shared + 0.1
    return shared / union if union else 1.0


def _plus_one_iou(box1: Box, box2: Box) -> float:
    width = min(box1[2], box2[2]) - max(box1[0], box2[0]) + 1
    height = min(box1[3], box2[3]) - max(box1[1], box2[1]) + 1
    if width <= 0 or height <= 0:
        return -1.0
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (box1, box2)]
    return width * height / (areas[0] + areas[1] - width * height)


def horizontal(predictions: Sequence[Prediction]) -> Figures:
    """Compute VOC's AP, in which the confidence of a box is its IoU with the truth, and classes are ignored.

    The confidence adds 0.1 to the union, the match adds 1 to each side. Boxes of equal confidence rank by the name of
    the image file.
    """
    ranked: list[tuple[float, bool]] = []
    objects = 0
    for p in sorted(predictions, key=_file_order):
        truths = _four_numbers(truth_in_format(p, "falcon"))
        boxes = _four_numbers(answer_in_format(p, "falcon"))
        objects += len(truths)
        confidences = [max([0.0, *(falcon_iou(box, truth) for truth in truths)]) for box in boxes]
        taken: set[int] = set()
        for i in sorted(range(len(boxes)), key=lambda i: -confidences[i]):
            ious = [_plus_one_iou(boxes[i], truth) for truth in truths]
            j = int(np.argmax(ious)) if ious else -1
            matched = j >= 0 and ious[j] >= 0.5
            ranked.append((confidences[i], matched and j not in taken))
            taken |= {j} if matched else set()
    ranked.sort(key=lambda item: -item[0])
    correct = np.array([hit for _, hit in ranked], bool)
    recall = np.concatenate([[0.0], np.cumsum(correct) / max(objects, 1), [1.0]])
    precision = np.concatenate([[0.0], np.cumsum(correct) / np.arange(1, len(correct) + 1), [0.0]])
    best = np.maximum.accumulate(precision[::-1])[::-1]
    ap = float(np.sum(np.diff(recall) * best[1:]))
    return {"map@0.5": ap if objects else float("nan")}


def _file_order(prediction: Prediction) -> str:
    """Return the name under which their code files an image; a time, which begins with `20`, follows the name."""
    name = prediction.record_id
    return name[name.rfind("/") + 1 : name.rfind(".")] + "20"


# ------------------------------------------------------------------------------- oriented boxes, visual grounding
def _tagged(text: str, tag: str) -> list[Box]:
    """Return all integers of each tag; [] unless the text has a tag."""
    if "<quad>" not in text and "<box>" not in text:
        return []
    return [[float(n) for n in re.findall(r"\d+", part)] for part in re.findall(f"<{tag}>(.*?)</{tag}>", text)]


def quad_iou(box1: Box, box2: Box) -> float:
    """Return the IoU of two polygons of eight numbers; 0 if one is invalid or has another number of coordinates."""
    if len(box1) != 8 or len(box2) != 8:
        return 0.0
    polygons = [shapely.Polygon(np.reshape(box, (4, 2))) for box in (box1, box2)]
    if not all(polygon.is_valid for polygon in polygons):
        return 0.0
    shared = polygons[0].intersection(polygons[1]).area
    return fraction(shared, polygons[0].area + polygons[1].area - shared) if shared else 0.0


def _matched(ious: np.ndarray, threshold: float) -> np.ndarray:
    """Return whether each box (row) is the best one on the object (column) that it overlaps most, bool[boxes]."""
    best = ious.max(axis=1, initial=0.0)
    target = np.where(best >= threshold, ious.argmax(axis=1), -1) if ious.shape[1] else np.full(len(ious), -1)
    correct = np.zeros(len(ious), bool)
    for j in range(ious.shape[1]):
        members = np.flatnonzero(target == j)
        if len(members):
            correct[members[np.argmax(best[members])]] = True
    return correct


def swept(tag: str, box_format: str, iou: Callable[[Box, Box], float]) -> Callable[[Sequence[Prediction]], Figures]:
    """Return the rule of oriented boxes or of grounding: five figures at nine IoUs.

    The confidence of a box is its IoU with the truth.
    """

    def compute(predictions: Sequence[Prediction]) -> Figures:
        tables = []
        for p in predictions:
            boxes = _tagged(answer_in_format(p, box_format), tag)
            truths = _tagged(truth_in_format(p, box_format), tag)
            tables.append(np.array([[iou(box, truth) for truth in truths] for box in boxes]).reshape(
                len(boxes), len(truths)))  # fmt: skip
        return {
            f"{name}@{threshold}": value
            for threshold in (0.5, *(t for t in _THRESHOLDS if t != 0.5))
            for name, value in _sweep(tables, threshold).items()
        }

    return compute


def _sweep(tables: Sequence[np.ndarray], threshold: float) -> Figures:
    confidences = np.concatenate([table.max(axis=1, initial=0.0) for table in tables])
    correct = np.concatenate([_matched(table, threshold) for table in tables])
    objects, boxes, hits = sum(table.shape[1] for table in tables), len(correct), int(correct.sum())
    ordered = np.cumsum(correct[np.argsort(-confidences)])  # the sort of their code, which is not stable
    recall = np.concatenate([[0.0], ordered / max(objects, 1), [1.0]])
    precision = np.concatenate([[0.0], ordered / np.arange(1, boxes + 1), [0.0]])
    best = np.maximum.accumulate(precision[::-1])[::-1]
    everything = boxes + objects - hits
    return {
        "map": float(np.sum(np.diff(recall) * best[1:])),
        "precision": hits / boxes if boxes else 0.0,
        "recall": hits / objects if boxes and objects else 0.0,
        "accuracy": hits / everything if boxes else 0.0,
        "far": (boxes - hits) / everything if boxes else 0.0,
    }


# ----------------------------------------------------------------------------------------------------------- texts
def captions(predictions: Sequence[Prediction]) -> Figures:
    """Compute BLEU, ROUGE-L and CIDEr with answer and truth exchanged, of lower-case texts that are not tokenized."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    references = {str(i): [p.prediction.lower()] for i, p in enumerate(predictions)}
    hypotheses = {str(i): [p.references[0].lower()] for i, p in enumerate(predictions)}
    bleu, _ = Bleu(4).compute_score(references, hypotheses, verbose=0)
    return {
        **{f"bleu{order}": float(value) for order, value in enumerate(bleu, start=1)},
        "rouge_l": float(Rouge().compute_score(references, hypotheses)[0]),
        "cider": float(Cider().compute_score(references, hypotheses)[0]),
    }


def _texts(predictions: Sequence[Prediction]) -> tuple[list[str], list[str]]:
    truths = [p.answer.lower().replace(".", "") for p in predictions]
    return truths, [p.prediction.lower().replace(".", "").replace("<", "") for p in predictions]


def classification(predictions: Sequence[Prediction]) -> Figures:
    """Compute accuracy and macro averages; an answer that is no class is the class `dummy`, which enters the means.

    Several labels, separated by a comma and a space: averages over the images.
    """
    truths, answers = _texts(predictions)
    if any("," in text for text in truths):
        return _multi_label([set(text.split(", ")) for text in truths], [set(text.split(", ")) for text in answers])
    true_sets, sets = ([set(text.strip().split(", ")) for text in texts] for texts in (truths, answers))
    classes = list(dict.fromkeys(truths))
    if set.union(*sets) - set(classes):
        sets = [{name if name in classes else "dummy" for name in names} for names in sets]
        classes = [*classes, "dummy"]
    truth, answer = (np.array([[name in names for name in classes] for names in rows]) for rows in (true_sets, sets))
    hits, claims, objects = (truth & answer).sum(0), answer.sum(0), truth.sum(0)
    return {
        "accuracy": float((truth == answer).all(axis=1).mean()),
        "precision": float(np.mean(hits / np.maximum(claims, 1))),
        "recall": float(np.mean(hits / np.maximum(objects, 1))),
        "f1": float(np.mean(2 * hits / np.maximum(claims + objects, 1))),
    }


def _multi_label(truths: Sequence[set[str]], answers: Sequence[set[str]]) -> Figures:
    hits = np.array([len(a & b) for a, b in zip(truths, answers, strict=True)])
    objects, claims = (np.array([len(names) for names in rows]) for rows in (truths, answers))
    return {
        "accuracy": float(np.mean(hits / (objects + claims - hits))),
        "precision": float(np.mean(hits / claims)),
        "recall": float(np.mean(hits / objects)),
        "f1": float(np.mean(2 * hits / (objects + claims))),
    }


def vqa(predictions: Sequence[Prediction]) -> Figures:
    """Compute accuracy, and F1 averaged over the true answers by their frequency."""
    truths, answers = map(np.array, _texts(predictions))
    f1 = 0.0
    for name in np.unique(truths):
        hits = int(((truths == name) & (answers == name)).sum())
        f1 += int((truths == name).sum()) * 2 * hits / int((truths == name).sum() + (answers == name).sum())
    return {"accuracy": float(np.mean(truths == answers)), "f1": f1 / len(truths)}


_ORACLE = "the confidence of a box is its IoU with the truth; classes are ignored"
_TEXT_RULE = Rule(
    compute=vqa, ours={"accuracy": "accuracy"}, file="eval/evaluation.py, eval/src/vqa.py",
    description="equality of lower-case texts without full stops")  # fmt: skip
RULES: Mapping[str, Rule] = {
    Task.CLASSIFICATION: Rule(
        compute=classification, ours={"accuracy": "top1", "recall": "mean_recall", "f1": "macro_f1"},
        file="eval/src/classification.py",
        description="answers that are no class form a class of their own, which enters the means"),
    Task.VQA: _TEXT_RULE,
    DerivedTask.COUNT: _TEXT_RULE,
    Task.CAPTION: Rule(
        compute=captions, ours={name: name for name in ("bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider")},
        file="eval/src/captioning.py",
        description="answer and truth are exchanged; one reference; texts are not tokenized; METEOR and the package "
                    "rouge are left out"),
    Task.GROUNDING: Rule(
        compute=swept("box", "falcon", falcon_iou), ours={"map@0.5": "pr50"}, file="eval/src/detection_obb.py",
        description=f"AP in which {_ORACLE}; a box with fewer than four numbers has IoU 1"),
    Task.HBB: Rule(
        compute=horizontal, ours={"map@0.5": "ap50"}, file="eval/evaluation.py, eval/src/detection.py",
        description=f"AP in which {_ORACLE}; 1 is added to each side when boxes are matched"),
    Task.OBB: Rule(
        compute=swept("quad", "falcon_quad", quad_iou), ours={"map@0.5": "ap50", "precision@0.5": "precision",
                                                               "recall@0.5": "recall"},
        file="eval/src/detection_obb.py", description=f"AP in which {_ORACLE}"),
}  # fmt: skip
