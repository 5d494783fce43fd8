"""Which questions an evaluation asks: all questions of the records, with an optional limit per image and task."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from earthgpt_jax.common.digests import sha256
from earthgpt_jax.input.prompts.derived import DerivedTask
from earthgpt_jax.input.prompts.questions import (
    BoxStyle,
    Question,
    build_question,
    evaluation_questions,
    question_indices,
)
from earthgpt_jax.records import UNKNOWN_CLASSES, AnnotatedClasses, Record, Task

# Maximum length of an answer per task, in tokens: each digit of a box is one token.
MAX_NEW_TOKENS: Mapping[str, int] = {
    Task.CLASSIFICATION: 16,
    Task.VQA: 16,
    Task.CAPTION: 64,
    Task.REGION_CAPTION: 48,
    Task.GROUNDING: 48,
    Task.HBB: 256,
    Task.OBB: 448,
    DerivedTask.PRESENCE: 16,
    DerivedTask.COUNT: 16,
    DerivedTask.REGION_CLASS: 16,
    DerivedTask.CLASS_HBB: 256,
    DerivedTask.CLASS_OBB: 448,
    DerivedTask.ABSENT_HBB: 256,
    DerivedTask.ABSENT_OBB: 448,
    DerivedTask.ABSENT_GROUNDING: 48,
}
# Questions about objects that are not in the image.
FALSE_PREMISES = (DerivedTask.ABSENT_HBB, DerivedTask.ABSENT_OBB, DerivedTask.ABSENT_GROUNDING)
# With questions about presence and number, which expose a model that says yes to everything.
DERIVED = (DerivedTask.PRESENCE, DerivedTask.COUNT, *FALSE_PREMISES)


@dataclasses.dataclass(frozen=True)
class Example:
    """A question and the record that it is about."""

    record: Record
    question: Question


def select_examples(
    records: Sequence[Record],
    *,
    decimals: int,
    per_image: Mapping[str, int] | None = None,
    tasks: Sequence[Task] = tuple(Task),
    derived: Sequence[DerivedTask] = (),
    annotated: Mapping[str, AnnotatedClasses] | None = None,
) -> list[Example]:
    """Return the questions of the records.

    Args:
        records: the images to ask about.
        decimals: number of decimals of box coordinates.
        per_image: task -> maximum number of questions per image; a hash of the question id decides which are kept, so
            the choice does not depend on the other records. Default: no limit.
        tasks: tasks whose questions are asked.
        derived: derived tasks that are asked as well, of the records that allow it.
        annotated: source -> its annotated classes; without them, no question about absent classes is asked.
    """
    limits = per_image or {}
    examples = []
    for number in range(len(records)):
        record = records[number]
        box_style = BoxStyle(decimals=decimals)
        classes = (annotated or {}).get(record.source, UNKNOWN_CLASSES)
        everything = evaluation_questions(record, box_style=box_style, tasks=tasks) + tuple(
            build_question(record, task.value, index, box_style=box_style, annotated=classes)
            for task in derived
            for index in question_indices(record, task.value, annotated=classes)
        )
        for task, group in itertools.groupby(everything, key=lambda question: question.task):
            kept = sorted(group, key=lambda question: sha256(question.id))
            examples += [Example(record, question) for question in kept[: limits.get(task)]]
    return examples
