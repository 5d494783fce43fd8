"""The box budget: shorten answers of dense scenes to the tokens available, and count the boxes that are left out."""

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
    max_tokens: int,
    tokenizer: Tokenizer,
    template: ChatTemplate,
    box_style: BoxStyle,
    annotated: AnnotatedClasses,
    seed: int,
) -> Question:
    """Return the question with an answer that lists no more boxes than fit: the largest.

    MMRS's format counts the others; JSON leaves them out. No box is cut. A question stays as it is if its answer lists
    no boxes, or is too long even with a single box.

    Args:
        max_tokens: Tokens for the whole turn, separators included.
        box_style, annotated, seed: As the question was built with (`questions.build_question`).
    """

    def fits(answer: str) -> bool:
        # A token has at least one character, so most texts are known to fit without being tokenized.
        return len(template.dialogue([(question.text, answer)])[0]) < max_tokens or (
            len(turn_ids(tokenizer, template, question.text, answer)[0]) <= max_tokens
        )

    if question.task not in BOX_LIST_TASKS or fits(question.answer):
        return question
    index = int(question.id.rsplit("#", 1)[1])

    def shortened(boxes: int) -> Question:
        style = dataclasses.replace(box_style, max_boxes=boxes)
        return build_question(
            record, question.task, index, box_style=style, template=question.template, annotated=annotated, seed=seed
        )

    listed = len(record.objects) - question.unlisted
    count = bisect.bisect_left(range(1, listed), True, key=lambda boxes: not fits(shortened(boxes).answer))
    return shortened(count) if count else question
