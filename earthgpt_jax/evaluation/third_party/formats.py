"""Read predictions files of other projects: what their fields are called, and how they write boxes."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earthgpt_jax.boxes import BOX_FORMATS, BoxKind, parse, rect_to_polygon
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean
from earthgpt_jax.evaluation.predictions import CoordinateFrame, Prediction, Truth
from earthgpt_jax.evaluation.predictions_file import check_same_ids
from earthgpt_jax.records import Sensor, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class ThirdPartyFormat:
    """How a project writes boxes.

    Attributes:
        project: name of the project.
        box_format: format of its boxes.
        frame: what their coordinates are fractions of.
    """

    project: str
    box_format: str
    frame: CoordinateFrame = CoordinateFrame.IMAGE


FORMATS: Mapping[str, ThirdPartyFormat] = {
    "geochat": ThirdPartyFormat(project="GeoChat", box_format="geochat"),
    "lhrs": ThirdPartyFormat(project="LHRS-Bot", box_format="lhrs"),
    "vhm": ThirdPartyFormat(project="VHM", box_format="vhm"),
    "earthdial": ThirdPartyFormat(project="EarthDial", box_format="earthdial"),
    "vrsbench": ThirdPartyFormat(project="VRSBench", box_format="geochat"),
    "falcon": ThirdPartyFormat(project="Falcon", box_format="falcon"),
    "mmrs": ThirdPartyFormat(project="MMRS-1M", box_format="mmrs", frame=CoordinateFrame.SQUARE),
}

# Field -> its names in files; the first that an entry has is used. GeoChat and VRSBench write question_id, image_id,
# answer, ground_truth, type; LHRS-Bot writes filename or question_id, pred, target, types; EarthDial writes answer,
# annotation or gt_bbox; LLaVA, and VHM after it, write question_id, text.
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "question_id", "filename"),
    "image": ("record_id", "image_id", "image", "filename"),
    "prediction": ("prediction", "answer", "pred", "text", "response"),
    "truth": ("ground_truth", "target", "annotation", "gt_bbox"),
    "question_type": ("type", "types", "question_type"),
    "question": ("question", "prompt"),
    "label": ("obj_cls", "label", "class"),
    "source": ("dataset", "source"),
}


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


def read_entries(path: Path) -> list[dict[str, Any]]:
    """Read the entries of a JSON list or of a JSON Lines file.

    Raises:
        EarthGPTError: the file cannot be read, is not JSON, is empty, or holds something other than objects; names the
            entry.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EarthGPTError(f"predictions {path}: cannot be read ({error})") from error
    try:
        if text.lstrip().startswith("["):
            entries = list(enumerate(json.loads(text), start=1))
        else:
            entries = [(n, json.loads(line)) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    except ValueError as error:
        raise EarthGPTError(f"{path}: expected a JSON list or JSON Lines ({error})") from error
    if not entries:
        raise EarthGPTError(f"{path}: expected predictions, got an empty file")
    for number, entry in entries:
        if not isinstance(entry, dict):
            raise EarthGPTError(f"{path}, entry {number}: expected a JSON object, got {type(entry).__name__}")
    return [entry for _, entry in entries]


def read(
    path: Path,
    *,
    file_format: ThirdPartyFormat,
    questions: Sequence[Prediction] | None = None,
    questions_path: Path | None = None,
    task: Task | None = None,
) -> list[Prediction]:
    """Read a third-party file as predictions.

    Args:
        path: the file.
        file_format: how it writes boxes.
        questions: predictions for the same questions, whose ground truth is joined by id. Without them, the ground
            truth of the file itself is used.
        questions_path: file of `questions`, for error messages.
        task: task of a file with its own ground truth, whose entries do not say it. The sizes of its images are
            unknown: boxes are compared as fractions of their frame, which leaves the IoU unchanged, and objects have no
            size.

    Raises:
        EarthGPTError: an entry has no id or answer; an id is repeated, missing or unknown; there is no ground truth.
    """
    entries = read_entries(path)
    ids = [str(_required(entry, "id", path, number)) for number, entry in enumerate(entries, start=1)]
    if len(set(ids)) < len(ids):
        name, count = collections.Counter(ids).most_common(1)[0]
        raise EarthGPTError(f"{path}: id {name} occurs {count} times; each question counts once")
    answers = [str(_required(entry, "prediction", path, number)) for number, entry in enumerate(entries, start=1)]
    if questions is not None:
        check_same_ids(ids, [q.id for q in questions], path=path, reference_path=questions_path or path)
        by_id = dict(zip(ids, answers, strict=True))
        return [
            q.with_answer(by_id[q.id], box_format=file_format.box_format, frame=file_format.frame.value)
            for q in questions
        ]
    if task is None:
        tasks = ", ".join(task.value for task in Task)
        raise EarthGPTError(
            f"{path}: the task is unknown; give --task ({tasks}), or --questions with a file that holds the ground "
            "truth"
        )
    return [
        _with_own_truth(entry, name, answer, path=path, task=task, file_format=file_format)
        for entry, name, answer in zip(entries, ids, answers, strict=True)
    ]


def _required(entry: Mapping[str, Any], field: str, path: Path, number: int) -> Any:
    value = _get(entry, field)
    if value is None:
        raise EarthGPTError(
            f"{path}, entry {number}: expected one of {', '.join(_FIELDS[field])}, got {', '.join(entry) or 'nothing'}"
        )
    return value


def _get(entry: Mapping[str, Any], field: str, default: Any = None) -> Any:
    return next((entry[key] for key in _FIELDS[field] if entry.get(key) is not None), default)


def _with_own_truth(
    entry: Mapping[str, Any], name: str, answer: str, *, path: Path, task: Task, file_format: ThirdPartyFormat
) -> Prediction:
    """Return the prediction of an entry that holds its own ground truth."""
    truth = _get(entry, "truth")
    if truth is None and task is Task.CLASSIFICATION and "/" in name:
        truth = name.split("/")[0]  # GeoChat's scene questions have ids of the form class/file
    if truth is None:
        raise EarthGPTError(
            f"{path}: {name} has no ground truth ({', '.join(_FIELDS['truth'])}); give --questions FILE with a file "
            "that holds it"
        )
    objects: tuple[Truth, ...] = ()
    if task in (Task.GROUNDING, Task.HBB, Task.OBB):
        objects = _objects(
            str(truth), file_format.box_format, str(_get(entry, "label", "")), where=f"{path}: {name}"
        )  # fmt: skip
        if task is Task.GROUNDING and len(objects) != 1:
            raise EarthGPTError(
                f"{path}: {name} has {len(objects)} true boxes, but a grounding question has one; score the file with "
                "--task hbb or obb"
            )
    references = tuple(map(str, truth)) if isinstance(truth, list) else (str(truth),)
    return Prediction(
        id=name, record_id=str(_get(entry, "image", name)), task=task.value,
        question_type=str(_get(entry, "question_type", "")), sensor=Sensor.OPTICAL.value,
        source=str(_get(entry, "source", path.stem)), question=str(_get(entry, "question", "")), prediction=answer,
        answer=references[0], references=references, objects=objects,
        object_index=0 if task is Task.GROUNDING else None, width=1, height=1, box_format=file_format.box_format,
        frame=file_format.frame.value,
    )  # fmt: skip


def _objects(text: str, box_format: str, label: str, *, where: str) -> tuple[Truth, ...]:
    parsed = parse(text, box_format=box_format, size=(1, 1))
    if parsed.rejections:
        raise EarthGPTError(
            f"{where}: the true boxes are not in the box format {box_format!r} ({parsed.rejections[0]}); choose "
            f"another with --box-format ({', '.join(BOX_FORMATS)})"
        )
    return tuple(
        Truth(
            label=box.label or label,
            polygon=tuple(
                float(n) for n in (rect_to_polygon(*box.coords) if box.kind is BoxKind.HBB else np.asarray(box.coords))
            ),
            difficult=False,
        )
        for box in parsed.boxes
    )
