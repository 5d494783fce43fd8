"""Answers of dense scenes, cut down to the room that there is: never within a box, and what is left out is counted."""

from __future__ import annotations

import bisect
import dataclasses

from earthgpt_jax.input.prompts.chat_template import ChatTemplate
from earthgpt_jax.input.prompts.questions import BOX_LIST_TASKS, BoxStyle, Question, build_question
from earthgpt_jax.input.sequences import turn_ids
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.records import AnnotatedClasses, Record


def fit_to_budget(
    question: Question,
    record: Record,
    *,
    room: int,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    box_style: BoxStyle,
    annotated: AnnotatedClasses,
    seed: int,
) -> Question:
    """The question, its answer listing no more boxes than `room` tokens hold: the largest; the others are counted.

    One whose answer lists no boxes, or that is too long with a single box, stays as it is.

    Args:
        room: for the whole turn, its separators included.
        grammar, annotated, seed: as the question was asked with (`questions.ask`).
    """

    def fits(answer: str) -> bool:
        # A token is at least a character: most texts need not be encoded to be known to fit.
        return len(template.dialogue([(question.text, answer)])[0]) < room or (
            len(turn_ids(tokenizer, template, question.text, answer)[0]) <= room
        )

    if question.task not in BOX_LIST_TASKS or fits(question.answer):
        return question
    index = int(question.id.rsplit("#", 1)[1])

    def shorter(boxes: int) -> Question:
        short = dataclasses.replace(box_style, max_boxes=boxes)
        listed = build_question(record, question.task, index, box_style=short, annotated=annotated, seed=seed)
        return dataclasses.replace(listed, text=question.text)  # in the wording that was drawn

    most = len(record.objects) - question.unlisted
    count = bisect.bisect_left(range(1, most), True, key=lambda boxes: not fits(shorter(boxes).answer))
    return shorter(count) if count else question
