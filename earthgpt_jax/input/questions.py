"""A record -> questions with answers. Everything that can be asked, in a fixed order, or one at a time."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Sequence

import numpy as np

from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.geometry import BoxKind, Square, format_boxes, format_detection
from earthgpt_jax.input.templates import choose
from earthgpt_jax.mmrs.record import Record, Task

# Kinds that only the align stage draws: captions whose nouns carry boxes.
GROUNDED = {"grounded_caption": BoxKind.HBB, "grounded_caption_obb": BoxKind.OBB}
_DETECTION = {Task.HBB.value: BoxKind.HBB, Task.OBB.value: BoxKind.OBB}
KINDS = (*(task.value for task in Task), *GROUNDED)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Grammar:
    """How boxes are written: decimals of fractions of the padded square."""

    decimals: int = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One question about one image.

    Attributes:
        id: `record_id#task#index`.
        task: one of `KINDS`.
        kind: the VQA question type, "" for other tasks.
        references: every right text, for captions; the answer alone otherwise.
        object_index: into the record's objects, for region captions and grounding.
    """

    id: str
    record_id: str
    task: str
    kind: str
    text: str
    answer: str
    references: tuple[str, ...]
    object_index: int | None = None


def task_of(kind: str) -> Task:
    """The task whose truth a kind of question needs: of a grounded caption, its boxes'.

    Raises:
        EarthGPTError: an unknown kind; names the nearest.
    """
    if kind not in KINDS:
        near = difflib.get_close_matches(kind, KINDS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise EarthGPTError(f"data.task_weights: unknown kind {kind!r}{hint} Kinds: {', '.join(KINDS)}.")
    return Task(GROUNDED[kind]) if kind in GROUNDED else Task(kind)


def candidates(record: Record, kind: str) -> range | list[int]:
    """The indices that `ask` takes for this kind: VQA turns, objects with a phrase, captions, or just 0."""
    if task_of(kind) not in record.tasks or (kind in GROUNDED and not record.references):
        return range(0)
    match kind:
        case Task.VQA.value:
            return range(len(record.turns))
        case Task.REGION_CAPTION.value | Task.GROUNDING.value:
            return [index for index, item in enumerate(record.objects) if item.phrase and not item.difficult]
        case Task.CAPTION.value | "grounded_caption" | "grounded_caption_obb":
            return range(len(record.references))
        case _:
            return range(1)


def ask(record: Record, kind: str, index: int, *, grammar: Grammar, rng: np.random.Generator | None = None) -> Question:
    """One question. Without `rng` in the default wording."""
    square = Square(record.width, record.height)
    text, answer, vqa_kind, object_index = choose(kind, rng), "", "", None
    references: tuple[str, ...] = ()

    def detection(box_kind: BoxKind) -> str:
        groups: dict[str, list[np.ndarray]] = {}
        for item in record.objects:
            groups.setdefault(item.label, []).append(item.polygon)
        return format_detection(groups, square=square, decimals=grammar.decimals, kind=box_kind)

    match kind:
        case Task.CLASSIFICATION.value:
            answer = record.label
        case Task.CAPTION.value:
            answer, references = record.references[index], record.references
        case Task.VQA.value:
            turn = record.turns[index]
            text, answer, vqa_kind = text.format(question=turn.question), turn.answer, turn.type
        case Task.REGION_CAPTION.value | Task.GROUNDING.value:
            item, object_index = record.objects[index], index
            box = format_boxes([item.polygon], square=square, decimals=grammar.decimals, kind=BoxKind.HBB)
            text = text.format(phrase=item.phrase, box=box)
            answer = item.phrase if kind == Task.REGION_CAPTION.value else box
        case Task.HBB.value | Task.OBB.value:
            answer = detection(_DETECTION[kind])
        case _:
            answer = f"{record.references[index]} {detection(GROUNDED[kind])}"
    return Question(
        id=f"{record.id}#{kind}#{index}",
        record_id=record.id,
        task=kind,
        kind=vqa_kind,
        text=text,
        answer=answer,
        references=tuple(references) or (answer,),
        object_index=object_index,
    )


def questions(record: Record, *, grammar: Grammar, tasks: Sequence[Task] = tuple(Task)) -> tuple[Question, ...]:
    """Every evaluation question of a record, in the default wordings, tasks in the order of `Task`.

    A caption is one question, whose references are all captions.
    """
    return tuple(
        ask(record, task.value, index, grammar=grammar)
        for task in tasks
        for index in list(candidates(record, task.value))[: 1 if task is Task.CAPTION else None]
    )
