"""Answers that other programs wrote -> predictions: what their files call things, and how they write boxes."""

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
from earthgpt_jax.evaluation.predictions import FrameKind, Prediction, Truth, same_ids
from earthgpt_jax.records import Sensor, Task


@dataclasses.dataclass(frozen=True, kw_only=True)
class Form:
    """How a project writes boxes: the grammar, and what its numbers are fractions of."""

    owner: str
    box_format: str
    frame: FrameKind = FrameKind.WHOLE


FORMS: Mapping[str, Form] = {
    "geochat": Form(owner="GeoChat", box_format="geochat"),
    "lhrs": Form(owner="LHRS-Bot", box_format="lhrs"),
    "vhm": Form(owner="VHM", box_format="vhm"),
    "earthdial": Form(owner="EarthDial", box_format="earthdial"),
    "vrsbench": Form(owner="VRSBench", box_format="geochat"),
    "falcon": Form(owner="Falcon", box_format="falcon"),
    "mmrs": Form(owner="MMRS-1M", box_format="mmrs", frame=FrameKind.SQUARE),
}

# Field -> what files call it, the first that an entry has. GeoChat and VRSBench write question_id, image_id, answer,
# ground_truth, type; LHRS-Bot filename or question_id, pred, target, types; EarthDial answer, annotation or gt_bbox;
# LLaVA, and VHM after it, question_id, text.
_FIELDS: Mapping[str, tuple[str, ...]] = {
    "id": ("id", "question_id", "filename"),
    "image": ("record_id", "image_id", "image", "filename"),
    "prediction": ("prediction", "answer", "pred", "text", "response"),
    "truth": ("ground_truth", "target", "annotation", "gt_bbox"),
    "kind": ("type", "types", "question_type"),
    "question": ("question", "prompt"),
    "label": ("obj_cls", "label", "class"),
    "source": ("dataset", "source"),
}


def entries(path: Path) -> list[dict[str, Any]]:
    """Of a JSON list, or of JSON lines.

    Raises:
        EarthGPTError: the file cannot be read, is no JSON, or holds something else than objects; names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise EarthGPTError(f"predictions {path}: cannot be read ({error})") from error
    try:
        if text.lstrip().startswith("["):
            found = list(enumerate(json.loads(text), start=1))
        else:
            found = [(n, json.loads(line)) for n, line in enumerate(text.splitlines(), start=1) if line.strip()]
    except ValueError as error:
        raise EarthGPTError(f"{path}: expected a JSON list or JSON lines ({error})") from error
    if not found:
        raise EarthGPTError(f"{path}: expected predictions, got an empty file")
    for number, entry in found:
        if not isinstance(entry, dict):
            raise EarthGPTError(f"{path}, entry {number}: expected a JSON object, got {type(entry).__name__}")
    return [entry for _, entry in found]


def read(
    path: Path,
    *,
    form: Form,
    questions: Sequence[Prediction] | None = None,
    questions_path: Path | None = None,
    task: Task | None = None,
) -> list[Prediction]:
    """A foreign file as predictions.

    Args:
        questions: the same questions with their truth, joined by id; without them the file's own truth is taken.
        questions_path: where `questions` come from, for messages.
        task: of a file with its own truth, whose entries do not say it. Sizes of images are not known then: boxes are
            compared as fractions of their frame, which changes no IoU, and no object has a size.

    Raises:
        EarthGPTError: an entry without id or answer, an id twice, ids missing or unknown, no truth to compare with.
    """
    found = entries(path)
    ids = [str(_field(entry, "id", path, number)) for number, entry in enumerate(found, start=1)]
    if len(set(ids)) < len(ids):
        name, count = collections.Counter(ids).most_common(1)[0]
        raise EarthGPTError(f"{path}: id {name} comes {count} times; each question counts once")
    texts = [str(_field(entry, "prediction", path, number)) for number, entry in enumerate(found, start=1)]
    if questions is not None:
        same_ids(ids, [q.id for q in questions], where=path, of=questions_path or path)
        by_id = dict(zip(ids, texts, strict=True))
        return [q.saying(by_id[q.id], box_format=form.box_format, frame=form.frame.value) for q in questions]
    if task is None:
        tasks = ", ".join(task.value for task in Task)
        raise EarthGPTError(f"{path}: says no task; give --task ({tasks}), or --questions with the truth")
    return [
        _own(entry, name, text, path=path, task=task, form=form)
        for entry, name, text in zip(found, ids, texts, strict=True)
    ]


def _field(entry: Mapping[str, Any], name: str, path: Path, number: int) -> Any:
    value = _get(entry, name)
    if value is None:
        raise EarthGPTError(
            f"{path}, entry {number}: expected one of {', '.join(_FIELDS[name])}, got {', '.join(entry) or 'nothing'}"
        )
    return value


def _get(entry: Mapping[str, Any], name: str, default: Any = None) -> Any:
    return next((entry[key] for key in _FIELDS[name] if entry.get(key) is not None), default)


def _own(entry: Mapping[str, Any], name: str, text: str, *, path: Path, task: Task, form: Form) -> Prediction:
    """A prediction with the truth that the entry itself holds."""
    truth = _get(entry, "truth")
    if truth is None and task is Task.CLASSIFICATION and "/" in name:
        truth = name.split("/")[0]  # GeoChat's scene questions are named class/file
    if truth is None:
        raise EarthGPTError(
            f"{path}: {name} has no truth ({', '.join(_FIELDS['truth'])}); give --questions FILE with the truth"
        )
    objects: tuple[Truth, ...] = ()
    if task in (Task.GROUNDING, Task.HBB, Task.OBB):
        objects = _objects(str(truth), form.box_format, str(_get(entry, "label", "")), where=f"{path}: {name}")
        if task is Task.GROUNDING and len(objects) != 1:
            raise EarthGPTError(
                f"{path}: {name} asks for {len(objects)} boxes; a grounding question has one: "
                "score the file with --task hbb or obb"
            )
    references = tuple(map(str, truth)) if isinstance(truth, list) else (str(truth),)
    return Prediction(
        id=name, record_id=str(_get(entry, "image", name)), task=task.value, kind=str(_get(entry, "kind", "")),
        sensor=Sensor.OPTICAL.value, source=str(_get(entry, "source", path.stem)),
        question=str(_get(entry, "question", "")), prediction=text, answer=references[0], references=references,
        objects=objects, object_index=0 if task is Task.GROUNDING else None, width=1, height=1,
        box_format=form.box_format, frame=form.frame.value,
    )  # fmt: skip


def _objects(text: str, box_format: str, label: str, *, where: str) -> tuple[Truth, ...]:
    parsed = parse(text, box_format=box_format, size=(1, 1))
    if parsed.rejections:
        raise EarthGPTError(
            f"{where}: the truth is not in the grammar {box_format!r}: {parsed.rejections[0]}; "
            f"name another with --box-format ({', '.join(BOX_FORMATS)})"
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


def form_of(name: str) -> Form:
    """Raises EarthGPTError, naming the nearest, if there is no such form."""
    if name not in FORMS:
        raise EarthGPTError(f"form {name!r}: unknown{did_you_mean(name, FORMS)} Forms: {', '.join(FORMS)}")
    return FORMS[name]
