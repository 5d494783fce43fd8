"""Published scoring rules of other projects, with their defects, to show how much of a number is the rule.

Each is as its project's evaluation code has it; the file is named. They see the same answers as our metrics: where an
answer is in another grammar than the project's, its boxes are written in the project's first.
"""

from __future__ import annotations

import collections
import dataclasses
import difflib
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes import BOX_FORMATS, BoxKind, polygon_to_rect, rect_to_polygon, write_boxes
from earthgpt_jax.boxes.plurals import WORDS
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation.metrics.captions import captions
from earthgpt_jax.evaluation.metrics.grounding import target
from earthgpt_jax.evaluation.metrics.iou import ious
from earthgpt_jax.evaluation.metrics.parsed_boxes import boxes_of, frame_of, numbers, pixels_of
from earthgpt_jax.evaluation.metrics.voc_ap import Interpolation, Ranked, average_precision
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.records import Task

Predictions = Sequence[Prediction]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rule:
    """One project's rule for one task.

    Attributes:
        figure: what it gives, under the name that the project prints or reports.
        ours: the metric of ours that the project's tables stand beside.
        file: where it is, in the project's repository.
        says: what it does differently.
    """

    figure: Callable[[Predictions], float]
    ours: str
    file: str
    says: str


# ------------------------------------------------------------------------------------- texts as a project reads them
def text_in(prediction: Prediction, box_format: str) -> str:
    """The answer as its model would have written it in a grammar; one that has no readable box stays as it is."""
    if prediction.box_format == box_format:
        return prediction.prediction
    parsed, frame = boxes_of(prediction), frame_of(prediction)
    if not parsed.boxes:
        return prediction.prediction
    if BOX_FORMATS[box_format].scale > 1:
        polygons = [box.pixels(frame) for box in parsed.boxes]
        return "".join(write_boxes([polygon], box_format=box_format, frame=frame) for polygon in polygons)
    rects = [polygon_to_rect(np.asarray(_corners(box.coords))) for box in parsed.boxes]
    return "".join("[" + ",".join(f"{n:.3f}" for n in rect) + "]" for rect in rects)


def _corners(coords: Sequence[float]) -> Sequence[float] | np.ndarray:
    return coords if len(coords) == 8 else rect_to_polygon(*coords)


def _fractions(prediction: Prediction) -> tuple[float, ...]:
    """The upright box asked for, as fractions of what the answer's are fractions of."""
    return polygon_to_rect(frame_of(prediction).to_fractions(np.asarray(target(prediction).polygon, float)))


# --------------------------------------------------------------------------------------------------------- grounding
def plus_one_iou(one: Sequence[float], two: Sequence[float]) -> float:
    """IoU with a pixel added to every side, whatever the unit: on fractions the one is the whole image."""
    w = max(0.0, min(one[2], two[2]) - max(one[0], two[0]) + 1)
    h = max(0.0, min(one[3], two[3]) - max(one[1], two[1]) + 1)
    areas = [(box[2] - box[0] + 1) * (box[3] - box[1] + 1) for box in (one, two)]
    return w * h / (sum(areas) - w * h)


def _lhrs_boxes(text: str) -> list[list[float]] | None:
    """None where a bracket holds what is no list of numbers."""
    try:
        return [list(map(float, part.split(","))) for part in re.findall(r"\[([0-9., ]+)\]", text)]
    except ValueError:
        return None


def _lhrs_grounding(predictions: Predictions) -> float:
    hits = []
    for p in predictions:
        boxes = _lhrs_boxes(text_in(p, "lhrs"))
        if boxes and len(boxes[0]) >= 4:  # else left out
            hits.append(plus_one_iou(boxes[0][:4], _fractions(p)) > 0.5)
    return float(np.mean(hits)) if hits else 0.0


def _vrsbench_grounding(predictions: Predictions) -> float:
    hits = []
    for p in predictions:
        found = [int(n) for n in re.findall(r"\d+", text_in(p, "geochat"))][:4]
        truth = [int(n * 100) for n in _fractions(p)]
        hits.append(len(found) == 4 and plus_one_iou(found, truth) >= 0.5)
    return float(np.mean(hits))


def _falcon_grounding(predictions: Predictions) -> float:
    hits = []
    for p in predictions:
        group = re.search(r"<box>(.*?)</box>", text_in(p, "falcon"))
        found = [float(n) for n in re.findall(r"<(\d+)>", group[1])] if group else []
        truth = [n * 1000 for n in _fractions(p)]
        hits.append(bool(group) and falcon_iou(found, truth) >= 0.5)
    return float(np.mean(hits))


def falcon_iou(one: Sequence[float], two: Sequence[float]) -> float:
    """What cannot be computed is perfect; 0.1 is added to the union."""
    try:
        ax0, ay0, ax1, ay1 = one
        bx0, by0, bx1, by1 = two
    except ValueError:
        return 1.0
    shared = max(0.0, min(ax1, bx1) - max(ax0, bx0)) * max(0.0, min(ay1, by1) - max(ay0, by0))
    return shared / ((ax1 - ax0) * (ay1 - ay0) + (bx1 - bx0) * (by1 - by0) - shared + 0.1)


# --------------------------------------------------------------------------------------------------------- detection
def _overlaps(prediction: Prediction, kind: BoxKind) -> np.ndarray:
    """f[boxes, objects], whatever the class."""
    frame = frame_of(prediction)
    found = [pixels_of(box, frame) for box in boxes_of(prediction).boxes if box.kind is kind]
    return ious(found, [numbers(np.asarray(item.polygon), kind) for item in prediction.objects], kind)


def _earthdial_detection(kind: BoxKind) -> Callable[[Predictions], float]:
    def precision(predictions: Predictions) -> float:
        tables = [_overlaps(p, kind) for p in predictions]
        right = sum(int((table >= 0.5).any(axis=1).sum()) for table in tables)
        claimed = sum(len(table) for table in tables)
        return right / claimed if claimed else 0.0

    return precision


def _falcon_detection(kind: BoxKind) -> Callable[[Predictions], float]:
    def ap(predictions: Predictions) -> float:
        confidences, hits, images = [], [], []
        for place, p in enumerate(predictions):
            table = _overlaps(p, kind)
            best = table.max(axis=1, initial=0.0)
            taken: set[int] = set()
            for i in np.argsort(-best, kind="stable"):
                j = int(table[i].argmax()) if table.shape[1] else -1
                hits.append(bool(best[i] >= 0.5) and j not in taken)
                taken |= {j} if best[i] >= 0.5 else set()
                confidences.append(best[i])
                images.append(place)
        ranked = Ranked(
            confidences=np.array(confidences, float), hits=np.array(hits, bool), images=np.array(images, int),
            objects=np.array([len(p.objects) for p in predictions], float),
        )  # fmt: skip
        return float(np.nan_to_num(average_precision(ranked, Interpolation.VOC12)[0]))

    return ap


# ------------------------------------------------------------------------------------------------------------- texts
def _geochat_text(text: str) -> str:
    return text.lower().replace(" ", "").replace(".", "")


def _geochat_exact(predictions: Predictions) -> float:
    return float(np.mean([_geochat_text(p.prediction) == _geochat_text(p.answer) for p in predictions]))


def _lhrs_classification(predictions: Predictions) -> float:
    classes = sorted({p.answer.lower().replace("_", " ") for p in predictions})
    recalls = collections.defaultdict(list)
    for p in predictions:
        given = p.prediction.strip()
        if given not in classes:
            given = max(classes, key=lambda name: _common(given, name))  # of equals the first
        truth = p.answer.lower().replace("_", " ")
        recalls[truth].append(given == truth)
    return float(np.mean([np.mean(hits) for hits in recalls.values()]))


def _common(one: str, two: str) -> int:
    return difflib.SequenceMatcher(None, one, two).find_longest_match(0, len(one), 0, len(two)).size


def token_recall(answer: str, truth: str) -> float:
    """Share of the truth's tokens that the answer has; spaces are dropped first, so that tokens are what commas leave,
    and the commas."""
    given, wanted = ([*re.findall(r"\w+|[^\w\s]", text.strip().lower().replace(" ", ""))] for text in (answer, truth))
    return len(set(given) & set(wanted)) / len(wanted) if wanted else 0.0


_SIGNS = ';/[]"{}()=+\\_-><@`,?!'


def evalai(text: str) -> str:
    """EvalAI's normaliser as LHRS-Bot has it, less its list of contractions."""
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").replace("\n", " ").strip()
    out = text
    for sign in _SIGNS:
        out = out.replace(sign, "" if f"{sign} " in text or f" {sign}" in text else " ")
    words = re.sub(r"\.(?!\d)", "", out).split()
    numbers = {"none": "0"} | {word: str(value) for value, word in enumerate(WORDS)}
    return " ".join(numbers.get(word, word) for word in words if word not in ("a", "an", "the"))


def _lhrs_vqa(predictions: Predictions) -> float:
    """The answer is looked for in the truth, a text where a list is expected: any part of it is right."""
    chosen = [p for p in predictions if p.kind not in ("count", "area")] or predictions
    return float(np.mean([evalai(p.prediction) in p.answer for p in chosen]))


def _earthdial_recall(predictions: Predictions) -> float:
    return float(np.mean([token_recall(p.prediction, p.answer) for p in predictions]))


def contained(answer: str, truth: str) -> bool:
    """Any answer that the truth is a part of is right; `no` is in `I do not know`."""
    return truth.lower() in answer.lower()


def _vrsbench_vqa(predictions: Predictions) -> float:
    return float(np.mean([contained(p.prediction, p.answer) for p in predictions]))


_PEERS_TYPES = ("presence", "comp", "comparison", "rural_urban")


def _some_types(predictions: Predictions) -> float:
    """Without counts and areas; where a file has no such types, of all."""
    chosen = [p for p in predictions if p.kind in _PEERS_TYPES] or predictions
    return _geochat_exact(chosen)


def _falcon_captions(predictions: Predictions) -> float:
    """BLEU-1 with answer and truth in each other's place, one reference each."""
    swapped = [dataclasses.replace(p, prediction=p.references[0], references=(p.prediction,)) for p in predictions]
    return captions(swapped)["bleu1"]


_TYPES = "lower-case equality; only presence, comparison and rural/urban questions count"
_PLUS_ONE = "IoU has a +1 in its sides"
PEERS: Mapping[str, Mapping[Task, Rule]] = {
    "geochat": {
        Task.CLASSIFICATION: Rule(
            figure=_geochat_exact, ours="top1", file="geochat/eval/batch_geochat_scene.py",
            says="lower-case equality without spaces and full stops"),
        Task.VQA: Rule(figure=_some_types, ours="accuracy", file="GeoChat#32 (it ships no scorer)", says=_TYPES),
    },
    "vhm": {Task.VQA: Rule(figure=_some_types, ours="accuracy", file="docs/Data.md", says=_TYPES)},
    "lhrs": {
        Task.CLASSIFICATION: Rule(
            figure=_lhrs_classification, ours="top1", file="main_cls.py",
            says="the class that shares the longest substring is taken, so that any answer is some class; "
                 "the figure is the mean of the classes' recalls"),
        Task.VQA: Rule(
            figure=_lhrs_vqa, ours="accuracy", file="main_vqa.py",
            says="an answer that is a part of the truth is right, an empty one always; no counts and areas"),
        Task.GROUNDING: Rule(
            figure=_lhrs_grounding, ours="pr50", file="main_vg.py",
            says=f"{_PLUS_ONE}, on fractions of the image; answers that cannot be read are left out"),
    },
    "vrsbench": {
        Task.GROUNDING: Rule(
            figure=_vrsbench_grounding, ours="pr50", file="eval_fianl/eval_utils.py",
            says=f"{_PLUS_ONE}, on a grid of 100; the first four whole numbers of the answer are the box"),
        Task.VQA: Rule(
            figure=_vrsbench_vqa, ours="accuracy", file="eval_fianl/eval_vqa_gpt.ipynb",
            says="an answer is right if the truth is a substring of it (its second step, a judge, is not applied)"),
    },
    "earthdial": {
        task: Rule(figure=_earthdial_recall, ours=ours, file=f"src/earthdial/eval/{folder}",
                   says="share of the truth's tokens that the answer has, commas among them")
        for task, ours, folder in ((Task.CLASSIFICATION, "top1", "rs_classification/eval.py"),
                                   (Task.VQA, "accuracy", "rs_vqa/eval.py"))
    } | {
        Task(kind.value): Rule(
            figure=_earthdial_detection(kind), ours="f1", file="src/earthdial/eval/rs_detection/eval.py",
            says="precision alone, called mAP: a box is right if it overlaps any object by half, also of another "
                 "class and however many do; objects that are missed cost nothing")
        for kind in BoxKind
    },
    "falcon": {
        Task.GROUNDING: Rule(
            figure=_falcon_grounding, ours="pr50", file="eval/src/detection_obb.py",
            says="a box of another number of corners has IoU 1"),
        Task.CAPTION: Rule(
            figure=_falcon_captions, ours="bleu1", file="eval/src",
            says="answer and truth in each other's place, one reference"),
    } | {
        Task(kind.value): Rule(
            figure=_falcon_detection(kind), ours="ap50", file="eval/evaluation.py",
            says="AP with each box's IoU with the truth as its confidence; classes are ignored")
        for kind in BoxKind
    },
}  # fmt: skip


def rules(peer: str) -> Mapping[Task, Rule]:
    """Raises EarthGPTError if there are none of that name."""
    if peer not in PEERS:
        raise EarthGPTError(f"no rules of {peer!r}; there are those of {', '.join(PEERS)}")
    return PEERS[peer]


def apply(peer: str, predictions: Predictions) -> dict[str, float]:
    """Task -> the peer's figure, of the tasks that it has a rule for."""
    return {
        str(task): rule.figure(rows)
        for task, rule in rules(peer).items()
        if (rows := [p for p in predictions if p.task == task])
    }
