"""A record -> questions with answers. Everything that can be asked, in a fixed order, or one at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from earthgpt_jax.boxes import BoxKind, Shortlist, Square, format_boxes, format_detection, plural, shortlist
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.names import did_you_mean
from earthgpt_jax.input.prompts.derived import DerivedTask, question_classes
from earthgpt_jax.input.prompts.templates import answer_templates, choose_template
from earthgpt_jax.records import UNKNOWN_CLASSES, AnnotatedClasses, Record, Task

# Kinds that only the align stage draws: captions whose nouns carry boxes.
GROUNDED_CAPTIONS = {"grounded_caption": BoxKind.HBB, "grounded_caption_obb": BoxKind.OBB}
QUESTION_TASKS = (*(task.value for task in Task), *GROUNDED_CAPTIONS, *(kind.value for kind in DerivedTask))
_LISTING = {DerivedTask.CLASS_HBB: BoxKind.HBB, DerivedTask.CLASS_OBB: BoxKind.OBB}
_ORIENTED = {DerivedTask.CLASS_OBB, DerivedTask.ABSENT_OBB}
BOX_LIST_TASKS = frozenset(
    {Task.HBB.value, Task.OBB.value, *GROUNDED_CAPTIONS, *_LISTING}
)  # kinds whose answers list boxes
# Kind -> the task whose truth it needs: of a grounded caption, its boxes'.
_TASKS = {
    **{task.value: task for task in Task},
    **{kind: Task(boxes) for kind, boxes in GROUNDED_CAPTIONS.items()},
    **{kind.value: Task.OBB if kind in _ORIENTED else Task.HBB for kind in DerivedTask},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class BoxStyle:
    """How boxes are written.

    Attributes:
        decimals: of fractions of the padded square.
        max_boxes: most boxes that a detection lists, the largest; the others are counted. 0: all are listed.
    """

    decimals: int = 3
    max_boxes: int = 0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one image.

    Attributes:
        id: `record_id#task#index`.
        task: one of `KINDS`.
        kind: the VQA question type, "" for other tasks.
        references: every right text, for captions; the answer alone otherwise.
        object_index: into the record's objects, for questions about one of them.
        unlisted: objects that the answer counts, but does not list.
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


def annotation_task(kind: str) -> Task:
    """The task whose truth a kind of question needs.

    Raises:
        EarthGPTError: an unknown kind; names the nearest.
    """
    if kind not in _TASKS:
        raise EarthGPTError(
            f"data.task_weights: unknown task {kind!r}{did_you_mean(kind, QUESTION_TASKS)} "
            f"Tasks: {', '.join(QUESTION_TASKS)}."
        )
    return _TASKS[kind]


def question_indices(
    record: Record, kind: str, *, annotated: AnnotatedClasses = UNKNOWN_CLASSES, seed: int = 0
) -> range | list[int]:
    """The indices that `ask` takes for this kind: VQA turns, objects, captions, classes, or just 0.

    Args:
        annotated: the classes of the record's dataset; unknown, nothing is asked that needs them.
        seed: of the choice of classes that derived questions are about.
    """
    if annotation_task(kind) not in record.tasks or (kind in GROUNDED_CAPTIONS and not record.references):
        return range(0)
    match kind:
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
            return range(len(question_classes(record, DerivedTask(kind), annotated=annotated, seed=seed)))


def build_question(
    record: Record,
    kind: str,
    index: int,
    *,
    box_style: BoxStyle,
    rng: np.random.Generator | None = None,
    annotated: AnnotatedClasses = UNKNOWN_CLASSES,
    seed: int = 0,
) -> Question:
    """One question, `index` being one of `candidates` of the same `annotated` and `seed`.

    Without `rng` in the default wording.
    """
    wording = choose_template(kind, rng)
    if kind in _SAYS:
        said = _SAYS[kind](record, index, box_style)
    else:
        label = question_classes(record, DerivedTask(kind), annotated=annotated, seed=seed)[index]
        said = _class(record, DerivedTask(kind), label, box_style)
    answer = answer_templates()[kind].format(**said.fields)
    return Question(
        id=f"{record.id}#{kind}#{index}",
        record_id=record.id,
        task=kind,
        question_type=said.question_type,
        text=wording.format(**said.fields),
        answer=answer,
        references=said.references or (answer,),
        object_index=said.object_index,
        unlisted=said.unlisted,
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Said:
    """What fills the wording of a question and the form of its answer; the rest as in `Question`."""

    fields: Mapping[str, str | int]
    question_type: str = ""
    references: tuple[str, ...] = ()
    object_index: int | None = None
    unlisted: int = 0


def _scene(record: Record, index: int, box_style: BoxStyle) -> _Said:
    return _Said(fields={"label": record.label})


def _caption(record: Record, index: int, box_style: BoxStyle) -> _Said:
    return _Said(fields={"reference": record.references[index]}, references=record.references)


def _turn(record: Record, index: int, box_style: BoxStyle) -> _Said:
    turn = record.turns[index]
    return _Said(fields={"question": turn.question, "answer": turn.answer}, question_type=turn.question_type)


def _region(record: Record, index: int, box_style: BoxStyle) -> _Said:
    item, square = record.objects[index], Square(record.width, record.height)
    box = format_boxes([item.polygon], square=square, decimals=box_style.decimals, kind=BoxKind.HBB)
    return _Said(fields={"phrase": item.phrase, "label": item.label, "box": box}, object_index=index)


def _boxes(record: Record, boxes: BoxKind, box_style: BoxStyle, *, label: str = "") -> _Said:
    """Of all objects, or of one label's."""
    groups: dict[str, list[np.ndarray]] = {}
    for item in record.objects:
        if not label or item.label == label:
            groups.setdefault(item.label, []).append(item.polygon)
    chosen = shortlist(groups, most=box_style.max_boxes) if box_style.max_boxes else Shortlist(groups, {})
    square = Square(record.width, record.height)
    text = format_detection(chosen.groups, square=square, decimals=box_style.decimals, kind=boxes, rest=chosen.rest)
    return _Said(fields={"boxes": text}, unlisted=sum(chosen.rest.values()))


def _detection(boxes: BoxKind) -> Callable[[Record, int, BoxStyle], _Said]:
    return lambda record, index, box_style: _boxes(record, boxes, box_style)


def _grounded(boxes: BoxKind) -> Callable[[Record, int, BoxStyle], _Said]:
    def said(record: Record, index: int, box_style: BoxStyle) -> _Said:
        listed = _boxes(record, boxes, box_style)
        return dataclasses.replace(listed, fields={**listed.fields, "reference": record.references[index]})

    return said


_SAYS: Mapping[str, Callable[[Record, int, BoxStyle], _Said]] = {
    Task.CLASSIFICATION: _scene,
    Task.CAPTION: _caption,
    Task.VQA: _turn,
    Task.REGION_CAPTION: _region,
    Task.GROUNDING: _region,
    DerivedTask.REGION_CLASS: _region,
    Task.HBB: _detection(BoxKind.HBB),
    Task.OBB: _detection(BoxKind.OBB),
    **{kind: _grounded(boxes) for kind, boxes in GROUNDED_CAPTIONS.items()},
}


def _class(record: Record, kind: DerivedTask, label: str, box_style: BoxStyle) -> _Said:
    """Of a derived question about one class."""
    count = sum(item.label == label for item in record.objects)
    told: dict[str, str | int] = {
        "label": label,
        "plural": plural(label),
        "phrase": f"the only {label}",  # as builds describe an object that is alone of its class
        "count": count,
        "yes_or_no": "yes" if count else "no",
    }
    if kind not in _LISTING:
        return _Said(fields=told)
    listed = _boxes(record, _LISTING[kind], box_style, label=label)
    return dataclasses.replace(listed, fields={**told, **listed.fields})


def evaluation_questions(
    record: Record, *, box_style: BoxStyle, tasks: Sequence[Task] = tuple(Task)
) -> tuple[Question, ...]:
    """Every evaluation question of a record, in the default wordings, tasks in the order of `Task`.

    A caption is one question, whose references are all captions.
    """
    return tuple(
        build_question(record, task.value, index, box_style=box_style)
        for task in tasks
        for index in list(question_indices(record, task.value))[: 1 if task is Task.CAPTION else None]
    )
