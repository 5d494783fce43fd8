"""Build questions with answers from records: one at a time, or all evaluation questions of a record."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes import (
    MMRS,
    BoxKind,
    FullImage,
    JsonStyle,
    Shortlist,
    Square,
    format_boxes,
    format_detection,
    format_json,
    plural,
    shortlist,
)
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean
from earthgpt_jax.input.prompts.derived import DerivedTask, question_classes
from earthgpt_jax.input.prompts.templates import Template, answer_templates, choose_template
from earthgpt_jax.records import UNKNOWN_CLASSES, AnnotatedClasses, Record, Task

# Captions followed by boxes, used in the align stage only.
GROUNDED_CAPTIONS = {"grounded_caption": BoxKind.HBB, "grounded_caption_obb": BoxKind.OBB}
QUESTION_TASKS = (*(task.value for task in Task), *GROUNDED_CAPTIONS, *(task.value for task in DerivedTask))
_CLASS_DETECTION = {DerivedTask.CLASS_HBB: BoxKind.HBB, DerivedTask.CLASS_OBB: BoxKind.OBB}
_ORIENTED = {DerivedTask.CLASS_OBB, DerivedTask.ABSENT_OBB}
# Tasks whose answers list boxes.
BOX_LIST_TASKS = frozenset({Task.HBB.value, Task.OBB.value, *GROUNDED_CAPTIONS, *_CLASS_DETECTION})
_ANNOTATION_TASKS = {
    **{task.value: task for task in Task},
    **{task: Task(boxes) for task, boxes in GROUNDED_CAPTIONS.items()},
    **{task.value: Task.OBB if task in _ORIENTED else Task.HBB for task in DerivedTask},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxStyle:
    """How boxes are written.

    Attributes:
        decimals: Decimals of coordinates, which are fractions of the padded square.
        max_boxes: Most boxes that a detection answer lists, the largest first; the others are counted. 0 for no limit.
        json_share: Share of the training questions about boxes that ask for JSON.
    """

    decimals: int = 3
    max_boxes: int = 0
    json_share: float = 0.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one image.

    Attributes:
        id: `record_id#task#index`.
        task: One of `QUESTION_TASKS`.
        question_type: Question type of VQA; "" for other tasks.
        references: All correct texts for captions, only the answer otherwise.
        object_index: Index of the object that the question is about, if it is about one.
        unlisted: Objects that the answer does not list; one in MMRS's format counts them.
        template: The question template; None if the question was not built from one.
    """

    id: str
    record_id: str
    task: str
    question_type: str
    text: str
    answer: str
    references: tuple[str, ...]
    object_index: int | None = None
    unlisted: int = 0
    template: Template | None = None

    @property
    def box_format(self) -> str:
        """Name of the format of the answer's boxes, if it has any."""
        style = self.template.json_style if self.template else None
        return MMRS if style is None else style.value


def annotation_task(task: str) -> Task:
    """Return the task whose annotations a question of `task` needs; for a grounded caption, that of its boxes.

    Raises:
        EarthGPTError: Unknown task; the message suggests the nearest one.
    """
    if task not in _ANNOTATION_TASKS:
        raise EarthGPTError(
            f"data.task_weights: unknown task {task!r}{did_you_mean(task, QUESTION_TASKS)} "
            f"Tasks: {', '.join(QUESTION_TASKS)}."
        )
    return _ANNOTATION_TASKS[task]


def question_indices(
    record: Record, task: str, *, annotated: AnnotatedClasses = UNKNOWN_CLASSES, seed: int = 0
) -> range | list[int]:
    """Return the values of `index` that `build_question` takes: of VQA turns, objects, captions or classes, or 0.

    Args:
        annotated: Classes that the record's dataset annotates; if unknown, questions that need them are left out.
        seed: Seeds the choice of the classes that derived questions are about.
    """
    if annotation_task(task) not in record.tasks or (task in GROUNDED_CAPTIONS and not record.references):
        return range(0)
    match task:
        case Task.VQA.value:
            return range(len(record.turns))
        case Task.REGION_CAPTION.value | Task.GROUNDING.value:
            return [index for index, item in enumerate(record.objects) if item.phrase and not item.difficult]
        case DerivedTask.REGION_CLASS.value:
            return [index for index, item in enumerate(record.objects) if not item.difficult]
        case Task.CAPTION.value | "grounded_caption" | "grounded_caption_obb":
            return range(len(record.references))
        case Task.CLASSIFICATION.value | Task.HBB.value | Task.OBB.value:
            return range(1)
        case _:
            return range(len(question_classes(record, DerivedTask(task), annotated=annotated, seed=seed)))


def build_question(
    record: Record,
    task: str,
    index: int,
    *,
    box_style: BoxStyle,
    rng: np.random.Generator | None = None,
    template: Template | None = None,
    annotated: AnnotatedClasses = UNKNOWN_CLASSES,
    seed: int = 0,
) -> Question:
    """Build one question.

    Args:
        index: One of `question_indices` with the same `annotated` and `seed`.
        rng: Chooses the question template; None for the default one.
        template: The question template, if it is chosen already.
    """
    template = template or choose_template(task, rng, json_share=box_style.json_share)
    if task in _CONTENTS:
        label, content = "", _CONTENTS[task](record, index, box_style)
    else:
        label = question_classes(record, DerivedTask(task), annotated=annotated, seed=seed)[index]
        content = _class_question(record, DerivedTask(task), label, box_style)
    answer, unlisted = answer_templates()[task].format(**content.fields), content.unlisted
    if template.json_style is not None:
        chosen = _json_objects(record, content.object_index, label, box_style)
        answer, unlisted = _json(chosen, record, task, template.json_style, box_style), sum(chosen.rest.values())
    return Question(
        id=f"{record.id}#{task}#{index}",
        record_id=record.id,
        task=task,
        question_type=content.question_type,
        text=template.text.format(**content.fields, width=record.width, height=record.height),
        answer=answer,
        references=content.references or (answer,),
        object_index=content.object_index,
        unlisted=unlisted,
        template=template,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Content:
    """The fields of a question template and an answer template; the rest as in `Question`."""

    fields: Mapping[str, str | int]
    question_type: str = ""
    references: tuple[str, ...] = ()
    object_index: int | None = None
    unlisted: int = 0


def _scene(record: Record, index: int, box_style: BoxStyle) -> _Content:
    return _Content(fields={"label": record.label})


def _caption(record: Record, index: int, box_style: BoxStyle) -> _Content:
    return _Content(fields={"reference": record.references[index]}, references=record.references)


def _turn(record: Record, index: int, box_style: BoxStyle) -> _Content:
    turn = record.turns[index]
    return _Content(fields={"question": turn.question, "answer": turn.answer}, question_type=turn.question_type)


def _region(record: Record, index: int, box_style: BoxStyle) -> _Content:
    item, square = record.objects[index], Square(record.width, record.height)
    box = format_boxes([item.polygon], square=square, decimals=box_style.decimals, kind=BoxKind.HBB)
    return _Content(fields={"phrase": item.phrase, "label": item.label, "box": box}, object_index=index)


def _listed(record: Record, label: str, box_style: BoxStyle) -> Shortlist:
    """Return the objects that an answer lists: of one class, or of all if the label is ""."""
    groups: dict[str, list[np.ndarray]] = {}
    for item in record.objects:
        if not label or item.label == label:
            groups.setdefault(item.label, []).append(item.polygon)
    return shortlist(groups, limit=box_style.max_boxes) if box_style.max_boxes else Shortlist(groups, {})


def _boxes(record: Record, boxes: BoxKind, box_style: BoxStyle, *, label: str = "") -> _Content:
    """List the boxes of all objects, or of those with one label."""
    chosen = _listed(record, label, box_style)
    square = Square(record.width, record.height)
    text = format_detection(chosen.groups, square=square, decimals=box_style.decimals, kind=boxes, rest=chosen.rest)
    return _Content(fields={"boxes": text}, unlisted=sum(chosen.rest.values()))


def _json_objects(record: Record, index: int | None, label: str, box_style: BoxStyle) -> Shortlist:
    """Return the objects that a JSON answer lists: the object `index`, those of a class, all, or none."""
    if index is not None:
        return Shortlist({record.objects[index].label: [record.objects[index].polygon]}, {})
    return _listed(record, label, box_style)  # none of an absent class


def _json(chosen: Shortlist, record: Record, task: str, style: JsonStyle, box_style: BoxStyle) -> str:
    """Write the objects as JSON. Corners of one class have no label, because the question names it."""
    groups = chosen.groups
    if style is JsonStyle.CORNERS and task in {DerivedTask.CLASS_HBB, DerivedTask.ABSENT_HBB}:
        groups = {"": [polygon for polygons in groups.values() for polygon in polygons]}
    kind = BoxKind.OBB if annotation_task(task) is Task.OBB else BoxKind.HBB
    image = FullImage(record.width, record.height)
    return format_json(groups, style=style, image=image, decimals=box_style.decimals, kind=kind)


def _detection(boxes: BoxKind) -> Callable[[Record, int, BoxStyle], _Content]:
    return lambda record, index, box_style: _boxes(record, boxes, box_style)


def _grounded_caption(boxes: BoxKind) -> Callable[[Record, int, BoxStyle], _Content]:
    def content(record: Record, index: int, box_style: BoxStyle) -> _Content:
        listed = _boxes(record, boxes, box_style)
        return dataclasses.replace(listed, fields={**listed.fields, "reference": record.references[index]})

    return content


_CONTENTS: Mapping[str, Callable[[Record, int, BoxStyle], _Content]] = {
    Task.CLASSIFICATION: _scene,
    Task.CAPTION: _caption,
    Task.VQA: _turn,
    Task.REGION_CAPTION: _region,
    Task.GROUNDING: _region,
    DerivedTask.REGION_CLASS: _region,
    Task.HBB: _detection(BoxKind.HBB),
    Task.OBB: _detection(BoxKind.OBB),
    **{task: _grounded_caption(boxes) for task, boxes in GROUNDED_CAPTIONS.items()},
}


def _class_question(record: Record, task: DerivedTask, label: str, box_style: BoxStyle) -> _Content:
    """Return the content of a derived question about one class."""
    count = sum(item.label == label for item in record.objects)
    fields: dict[str, str | int] = {
        "label": label,
        "plural": plural(label),
        "phrase": f"the only {label}",  # how builds describe the only object of a class
        "count": count,
        "yes_or_no": "yes" if count else "no",
    }
    if task not in _CLASS_DETECTION:
        return _Content(fields=fields)
    listed = _boxes(record, _CLASS_DETECTION[task], box_style, label=label)
    return dataclasses.replace(listed, fields={**fields, **listed.fields})


def evaluation_questions(
    record: Record, *, box_style: BoxStyle, tasks: Sequence[Task] = tuple(Task)
) -> tuple[Question, ...]:
    """Build every evaluation question of a record with default templates, task by task.

    All captions of a record are the references of one question.
    """
    return tuple(
        build_question(record, task.value, index, box_style=box_style)
        for task in tasks
        for index in list(question_indices(record, task.value))[: 1 if task is Task.CAPTION else None]
    )
