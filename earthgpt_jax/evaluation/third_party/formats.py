"""Read predictions files of other projects: what their fields are called, and how they write boxes.

A format says which field is the answer and which is the truth. Where a file has several fields that could be either,
and its format does not decide, it is refused: `answer` is the model's answer in files of GeoChat and the truth in files
of VHM.
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earthgpt_jax.boxes import BOX_FORMATS, parse
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean
from earthgpt_jax.evaluation.predictions import BOX_TASKS, CoordinateFrame, MultiTargetTask, Prediction, Truth
from earthgpt_jax.evaluation.predictions_file import check_same_ids
from earthgpt_jax.evaluation.third_party import coco
from earthgpt_jax.evaluation.third_party.artefacts import Artefacts
from earthgpt_jax.evaluation.third_party.entries import Entry, read_document, unpack
from earthgpt_jax.evaluation.third_party.rule import lenient_boxes, polygon_of
from earthgpt_jax.input.prompts.derived import DerivedTask
from earthgpt_jax.records import Sensor, Task

TASKS: tuple[str, ...] = (*Task, DerivedTask.PRESENCE, DerivedTask.COUNT)

_Fields = tuple[str, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThirdPartyFormat:
    """How a project writes boxes, and what its fields are called. Of several names, the first that an entry has counts.

    Attributes:
        project: name of the project.
        box_format, obb_format: format of its boxes, and of its oriented boxes if it is another one.
        frame: what their coordinates are fractions of.
        answer, truth: the model's answer; the true answer.
        references: fields that together are the true answers.
        id, image, question, question_type, group, label, source: further fields. `group` is a group of box questions,
            such as `unique` or `small`. An entry without an id has its position as id.
        size: image height and width in pixels, as one list.
        pixel_truth: whether the true boxes are in pixels, whatever the format of the answers.
        tasks: field -> the task of entries that have it, if the file says no other.
        signature: fields by which the format is recognized, all of which an entry has.
    """

    project: str
    box_format: str = "mmrs"
    obb_format: str = ""
    frame: CoordinateFrame = CoordinateFrame.IMAGE
    answer: _Fields = ("answer", "prediction", "text", "response")
    truth: _Fields = ("ground_truth",)
    references: _Fields = ()
    id: _Fields = ("question_id", "id")
    image: _Fields = ("image_id", "image", "record_id")
    question: _Fields = ("question", "prompt", "query")
    question_type: _Fields = ("type", "question_type")
    group: _Fields = ()
    label: _Fields = ("obj_cls", "label", "class")
    source: _Fields = ("dataset", "source")
    size: str = ""
    pixel_truth: bool = False
    tasks: Mapping[str, str] = dataclasses.field(default_factory=dict)
    signature: tuple[_Fields, ...] = ()

    def boxes_of(self, task: str) -> str:
        """Return the format of the boxes in answers of a task."""
        return self.obb_format if task == Task.OBB and self.obb_format else self.box_format


FORMATS: Mapping[str, ThirdPartyFormat] = {
    "geochat": ThirdPartyFormat(
        project="GeoChat", box_format="geochat", group=("size_group",),
        signature=(("question_id", "image_id", "answer"),)),
    "vrsbench": ThirdPartyFormat(
        project="VRSBench", box_format="geochat", answer=("answer", "predicted", "prediction", "text"),
        group=("is_unique",), tasks={"is_unique": Task.GROUNDING},
        signature=(("question_id", "image_id", "answer", "ground_truth", "is_unique"),
                   ("question_id", "image_id", "predicted", "ground_truth"))),
    "lhrs": ThirdPartyFormat(
        project="LHRS-Bot", box_format="lhrs", answer=("pred", "answer", "prediction", "text"),
        truth=("target", "ground_truth"), id=("question_id", "filename", "id"), image=("filename", "image_id"),
        question_type=("types", "type"), signature=(("pred", "target"),)),
    "vhm": ThirdPartyFormat(
        project="VHM (RSEvalKit)", box_format="vhm", answer=("pred",), truth=("answer",), image=("filename",),
        size="size", pixel_truth=True, signature=(("filename", "query", "answer", "pred"),)),
    "llava": ThirdPartyFormat(
        project="LLaVA", box_format="lhrs", answer=("text", "answer", "prediction"),
        signature=(("question_id", "prompt", "text"),)),
    "earthdial": ThirdPartyFormat(
        project="EarthDial", box_format="earthdial", truth=("annotation", "gt_bbox", "groundtruth", "ground_truth"),
        references=("caption0", "caption1", "caption2", "caption3", "caption4"), question_type=("vqa_type", "type"),
        group=("size_group",),
        tasks={"caption0": Task.CAPTION, "gt_bbox": Task.OBB, "vqa_type": Task.VQA},
        signature=(("question", "answer", "annotation"), ("question", "answer", "gt_bbox"),
                   ("question", "answer", "caption0"))),
    "falcon": ThirdPartyFormat(
        project="Falcon", box_format="falcon", obb_format="falcon_quad", truth=("gt",),
        signature=(("image", "answer", "gt"),)),
    "rscovlm": ThirdPartyFormat(
        project="RSCoVLM", box_format="rscovlm", answer=("output",), truth=("ground_truth",), id=("file_name",),
        image=("file_name",), question=("question", "prompt"),
        signature=(("output", "original_width", "resized_width"),)),
    "lmms_eval": ThirdPartyFormat(
        project="lmms-eval", box_format="lhrs", answer=("filtered_resps", "resps"), truth=("target",), id=("doc_id",),
        image=("doc_id",), question=("input", "question"), signature=(("doc_id", "target", "filtered_resps"),)),
    "coco": ThirdPartyFormat(
        project="COCO results", box_format="mmrs", signature=(("image_id", "category_id", "bbox", "score"),)),
    "mmrs": ThirdPartyFormat(
        project="MMRS-1M", frame=CoordinateFrame.SQUARE, truth=("ground_truth", "gt")),
}  # fmt: skip

# Every field that holds the model's answer in some format; `answer` is also the truth of one.
_ANSWERS = frozenset(name for item in FORMATS.values() for name in item.answer)


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThirdPartyFile:
    """The contents of a file: its answers, and what a reader must know about them."""

    predictions: list[Prediction]
    notes: list[str]


def third_party_format(name: str) -> ThirdPartyFormat:
    """Return the format of a name.

    Raises:
        EarthGPTError: there is no such format; the message suggests the closest name.
    """
    if name not in FORMATS:
        raise EarthGPTError(
            f"no third-party format {name!r}{did_you_mean(name, FORMATS)} Formats: {', '.join(FORMATS)}"
        )
    return FORMATS[name]


def detect(path: Path) -> str:
    """Return the name of the format of a file, by the fields of its first entry; "" if no format or several fit."""
    entries, _ = unpack(read_document(path), path)
    fields = entries[0].keys()
    lengths = {
        name: max((len(needed) for needed in item.signature if set(needed) <= fields), default=0)
        for name, item in FORMATS.items()
    }
    longest = max(lengths.values())
    fitting = [name for name, length in lengths.items() if length == longest > 0]
    return fitting[0] if len(fitting) == 1 else ""


def read(
    path: Path,
    *,
    file_format: ThirdPartyFormat,
    questions: Sequence[Prediction] | None = None,
    questions_path: Path | None = None,
    task: str | None = None,
) -> list[Prediction]:
    """Return the predictions of `load`."""
    return load(
        path, file_format=file_format, questions=questions, questions_path=questions_path, task=task
    ).predictions  # fmt: skip


def load(
    path: Path,
    *,
    file_format: ThirdPartyFormat,
    questions: Sequence[Prediction] | None = None,
    questions_path: Path | None = None,
    task: str | None = None,
) -> ThirdPartyFile:
    """Read a third-party file as predictions.

    Args:
        path: JSON Lines, a JSON list, or Falcon's JSON object.
        file_format: its fields and its box format.
        questions: predictions of this project, whose ground truth is joined by id, or by image where the ids are file
            names. Without them, the ground truth of the file itself is used.
        questions_path: file of `questions`, for error messages.
        task: task of a file with its own ground truth, whose entries do not say it. Where the sizes of its images are
            unknown, boxes are compared as fractions of their frame, which leaves the IoU unchanged, and objects have no
            size.

    Raises:
        EarthGPTError: an entry has no answer, or several fields that could be it; an id is repeated, missing or
            unknown; there is no ground truth, or none of it can be read.
    """
    entries, file_task = unpack(read_document(path), path)
    if file_format.project == FORMATS["coco"].project:
        raise EarthGPTError(
            f"{path}: COCO results hold no ground truth; give the COCO annotation file with --questions"
        )
    artefacts = Artefacts()
    answers = [artefacts.clean(_answer(entry, file_format, path, n)) for n, entry in enumerate(entries, start=1)]
    if questions is not None:
        ids = [str(_required(entry, file_format.id, path, n)) for n, entry in enumerate(entries, start=1)]
        _check_unique(ids, path)
        ids = _question_ids(ids, questions)
        check_same_ids(ids, [q.id for q in questions], path=path, reference_path=questions_path or path)
        by_id = {name: (entry, text) for name, entry, text in zip(ids, entries, answers, strict=True)}
        return ThirdPartyFile(
            predictions=[_joined(q, *by_id[q.id], file_format) for q in questions], notes=artefacts.notes()
        )
    ids = [str(_get(entry, file_format.id, n)) for n, entry in enumerate(entries, start=1)]
    _check_unique(ids, path)
    chosen = task or file_task or _implied_task(entries[0], file_format)
    if chosen is None:
        raise EarthGPTError(
            f"{path}: the task is unknown; give --task ({', '.join(TASKS)}), or --questions with a file that holds the "
            "ground truth"
        )
    predictions = [
        _with_own_truth(entry, name, text, path=path, task=chosen, file_format=file_format, artefacts=artefacts)
        for entry, name, text in zip(entries, ids, answers, strict=True)
    ]
    _check_readable_truth(predictions, chosen, path=path, file_format=file_format)
    predictions, notes = _several_targets(predictions)
    return ThirdPartyFile(predictions=predictions, notes=artefacts.notes() + notes)


def load_coco(path: Path, *, annotations: Path) -> ThirdPartyFile:
    """Read COCO results with the annotation file that holds their images, classes and ground truth."""
    entries, _ = unpack(read_document(path), path)
    return ThirdPartyFile(predictions=coco.predictions(entries, path=path, annotations=annotations), notes=[])


def _check_unique(ids: Sequence[str], path: Path) -> None:
    if len(set(ids)) < len(ids):
        name, count = collections.Counter(ids).most_common(1)[0]
        raise EarthGPTError(f"{path}: id {name} occurs {count} times; each question counts once")


def _question_ids(names: Sequence[str], questions: Sequence[Prediction]) -> list[str]:
    """Return the ids of the questions that are meant: the names themselves, or the questions about these images."""
    if set(names) & {q.id for q in questions}:
        return list(names)
    by_image = {Path(q.record_id).stem: q.id for q in questions}
    return [by_image.get(Path(name).stem, name) if len(by_image) == len(questions) else name for name in names]


def _answer(entry: Entry, file_format: ThirdPartyFormat, path: Path, number: int) -> Any:
    """Return the model's answer of an entry.

    Raises:
        EarthGPTError: it has none, or two fields that could be it.
    """
    value = _required(entry, file_format.answer, path, number)
    [used] = [name for name in file_format.answer if entry.get(name) is not None][:1]
    others = [name for name in entry if name in _ANSWERS - {used, *file_format.truth, "text", "resps"}]
    if used != "filtered_resps" and others:
        raise EarthGPTError(
            f"{path}, entry {number}: {used!r} or {others[0]!r} may be the model's answer, and the other the truth; "
            f"name the format of the file with --from ({', '.join(FORMATS)}; `vhm`: 'answer' is the truth and 'pred' "
            "the answer), or remove one of the two fields"
        )
    return value


def _required(entry: Entry, names: _Fields, path: Path, number: int) -> Any:
    value = _get(entry, names)
    if value is None:
        raise EarthGPTError(
            f"{path}, entry {number}: expected one of {', '.join(names)}, got {', '.join(entry) or 'nothing'}"
        )
    return value


def _get(entry: Entry, names: _Fields, default: Any = None) -> Any:
    return next((entry[key] for key in names if entry.get(key) is not None), default)


def _joined(question: Prediction, entry: Entry, text: str, file_format: ThirdPartyFormat) -> Prediction:
    box_format = file_format.boxes_of(question.task)
    if box_format == "rscovlm":
        text = _original_pixels(text, entry)
    return question.with_answer(text, box_format=box_format, frame=file_format.frame.value)


def _original_pixels(text: str, entry: Entry) -> str:
    """Return RSCoVLM's lines with coordinates in pixels of the original image instead of the resized one."""
    scales = [float(entry[f"original_{side}"]) / float(entry[f"resized_{side}"]) for side in ("width", "height")]
    lines = []
    for line in text.splitlines():
        numbers, _, label = line.strip().partition(" ")
        fields = numbers.split(",")
        if all(field.strip().isdecimal() for field in fields):
            fields = [f"{int(field) * scales[i % 2]:.10g}" for i, field in enumerate(fields)]
        lines.append(f"{','.join(fields)} {label}")
    return "\n".join(lines)


def _implied_task(entry: Entry, file_format: ThirdPartyFormat) -> str | None:
    return next((str(task) for field, task in file_format.tasks.items() if entry.get(field) is not None), None)


def _with_own_truth(
    entry: Entry,
    name: str,
    answer: str,
    *,
    path: Path,
    task: str,
    file_format: ThirdPartyFormat,
    artefacts: Artefacts,
) -> Prediction:
    """Return the prediction of an entry that holds its own ground truth."""
    truths = [entry[field] for field in file_format.references if entry.get(field) is not None]
    truth: Any = truths or _get(entry, file_format.truth)
    if truth is None and task == Task.CLASSIFICATION and "/" in name:
        truth = name.split("/")[0]  # GeoChat's scene questions have ids of the form class/file
    if truth is None or truth == []:
        raise EarthGPTError(
            f"{path}: {name} has no ground truth ({', '.join((*file_format.truth, *file_format.references))}); give "
            "--questions FILE with a file that holds it"
        )
    box_format = file_format.boxes_of(task)
    height, width = _size(entry, file_format, path)
    boxes = task in BOX_TASKS
    references = (artefacts.clean(truth),) if boxes or not isinstance(truth, list) else artefacts.clean_all(truth)
    objects: tuple[Truth, ...] = ()
    if boxes:
        label, where = str(_get(entry, file_format.label, "")), f"{path}: {name}"
        read_objects = _pixel_objects if file_format.pixel_truth else _objects
        objects = read_objects(references[0], box_format, label, where=where)
    several = len(references) > 1 and task not in (Task.CAPTION, Task.REGION_CAPTION)
    artefacts.count_several_truths(several)
    return Prediction(
        id=name, record_id=str(_get(entry, file_format.image, name)), task=str(task),
        question_type=_question_type(entry, file_format, boxes=boxes), sensor=Sensor.OPTICAL.value,
        source=str(_get(entry, file_format.source, path.stem)), question=str(_get(entry, file_format.question, "")),
        prediction=answer, answer=references[0], references=references[:1] if several else references,
        synonyms=references[1:] if several else (), objects=objects,
        object_index=0 if task == Task.GROUNDING else None, width=width, height=height, box_format=box_format,
        frame=file_format.frame.value,
    )  # fmt: skip


def _several_targets(predictions: list[Prediction]) -> tuple[list[Prediction], list[str]]:
    """Return grounding questions as phrases with several targets if one of them has several targets or none."""
    several = sum(p.task == Task.GROUNDING and len(p.objects) != 1 for p in predictions)
    if not several:
        return predictions, []
    changed = [
        dataclasses.replace(p, task=MultiTargetTask.GROUNDING.value, object_index=None, question_type="")
        for p in predictions
    ]
    return changed, [f"{several} phrases have several targets or none, so that all are scored as sets of boxes."]


def _question_type(entry: Entry, file_format: ThirdPartyFormat, *, boxes: bool) -> str:
    """Return the type of a text question, or the group of a box question."""
    if not boxes:
        return str(_get(entry, file_format.question_type, ""))
    value = _get(entry, file_format.group, "")
    return str(value) if isinstance(value, str) else ("unique" if value else "non_unique")


def _size(entry: Entry, file_format: ThirdPartyFormat, path: Path) -> tuple[int, int]:
    value = entry.get(file_format.size) if file_format.size else None
    if value is None:
        return 1, 1
    if not (isinstance(value, list) and len(value) == 2 and all(isinstance(n, int) and n > 0 for n in value)):
        raise EarthGPTError(f"{path}: expected {file_format.size!r} to be two positive integers, got {value!r}")
    return value[0], value[1]


def _objects(text: str, box_format: str, label: str, *, where: str) -> tuple[Truth, ...]:
    """Return the true boxes of a text, also those without an area, which no answer can match by our metrics."""
    parsed = parse(text, box_format=box_format, size=(1, 1))
    boxes = [(box.label, polygon_of(box.coords)) for box in parsed.boxes]
    if parsed.rejections:
        boxes = lenient_boxes(text, box_format)
        if len(boxes) < len(parsed.boxes) + len(parsed.rejections):
            raise EarthGPTError(
                f"{where}: the true boxes are not in the box format {box_format!r} ({parsed.rejections[0]}); choose "
                f"another with --box-format ({', '.join(BOX_FORMATS)})"
            )
    return tuple(
        Truth(label=name or label, polygon=tuple(polygon.tolist()), difficult=False) for name, polygon in boxes
    )


def _pixel_objects(text: str, box_format: str, label: str, *, where: str) -> tuple[Truth, ...]:
    """Return the true box `[x0, y0, x1, y1]` in pixels."""
    del box_format
    parts = text.replace("[", " ").replace("]", " ").replace(",", " ").split()
    try:
        numbers = np.array([float(part) for part in parts])
    except ValueError:
        numbers = np.zeros(0)
    if len(numbers) != 4:
        raise EarthGPTError(f"{where}: expected the true box as [x0, y0, x1, y1] in pixels, got {text[:80]!r}")
    return (Truth(label=label, polygon=tuple(polygon_of(numbers.tolist()).tolist()), difficult=False),)


def _check_readable_truth(
    predictions: Sequence[Prediction], task: str, *, path: Path, file_format: ThirdPartyFormat
) -> None:
    """Refuse a file of boxes none of whose true boxes could be read, which would be scored as images without objects.

    Raises:
        EarthGPTError: names the box format and others.
    """
    stated = [p for p in predictions if any(character.isdigit() for character in p.answer)]
    if task in BOX_TASKS and stated and not any(p.objects for p in predictions):
        raise EarthGPTError(
            f"{path}: none of {len(stated)} ground truths has a box in the format {file_format.boxes_of(task)!r}, for "
            f"example {stated[0].answer[:80]!r}; choose another with --box-format ({', '.join(BOX_FORMATS)})"
        )
