"""One image and independent questions about it -> one row of tokens.

`[BOS][start_img] P visual [end_img] system` is shared (branch 0); each question with its answer is a
branch of its own whose positions continue from the shared prefix.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from earthgpt_jax.input.batch import END_SLOT, START_SLOT, TEXT_SLOT
from earthgpt_jax.input.conversation import Conversation
from earthgpt_jax.input.questions import Question
from earthgpt_jax.input.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Row:
    """The per-token arrays of a Batch row, each [T], the questions in it, and how many had no room."""

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    branches: np.ndarray
    loss_weights: np.ndarray
    image_slots: np.ndarray
    questions: tuple[Question, ...]
    left_out: int


@functools.lru_cache(maxsize=16)
def _prefix_ids(tokenizer: Tokenizer, conversation: Conversation) -> tuple[int, ...]:
    return tuple(tokenizer.encode(conversation.prefix))


def image_prefix(
    tokenizer: Tokenizer, conversation: Conversation, *, visual_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """`(tokens, image_slots)` of the shared part: BOS, the image's slots, the system text."""
    text = _prefix_ids(tokenizer, conversation)
    slots = [TEXT_SLOT, START_SLOT, *range(visual_tokens), END_SLOT, *([TEXT_SLOT] * len(text))]
    tokens = [tokenizer.bos_id, *([0] * (visual_tokens + 2)), *text]
    return np.array(tokens, np.int32), np.array(slots, np.int32)


def turn_ids(
    tokenizer: Tokenizer, conversation: Conversation, question: str, answer: str
) -> tuple[list[int], list[float]]:
    """Ids of one turn as they come out behind the prefix in a joint tokenisation, and their loss weights."""
    shared = len(_prefix_ids(tokenizer, conversation))
    text, ((start, _),) = conversation.dialogue([(question, answer)])
    ids, spans = tokenizer.encode_with_spans(text)
    return ids[shared:], [1.0 if begin >= start else 0.0 for begin, _ in spans[shared:]]


def open_turn_ids(tokenizer: Tokenizer, conversation: Conversation, question: str) -> list[int]:
    """Ids of a turn up to where its answer begins."""
    shared = len(_prefix_ids(tokenizer, conversation))
    return tokenizer.encode(conversation.prefix + conversation.open_turn(question))[shared:]


def prompt(
    tokenizer: Tokenizer, conversation: Conversation, question: str, *, visual_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """`(tokens, image_slots)` to generate from: the training row's beginning, to the token."""
    tokens, slots = image_prefix(tokenizer, conversation, visual_tokens=visual_tokens)
    turn = np.array(open_turn_ids(tokenizer, conversation, question), np.int32)
    return np.concatenate([tokens, turn]), np.concatenate([slots, np.full_like(turn, TEXT_SLOT)])


def build_row(
    asked: Sequence[Question],
    *,
    prefix: tuple[np.ndarray, np.ndarray],
    tokenizer: Tokenizer,
    conversation: Conversation,
    tokens_per_row: int,
) -> Row:
    """Packs questions into T tokens, in order; one that does not fit any more is left out, never cut.

    Args:
        prefix: the shared part's tokens and image slots, from `image_prefix`.
    """
    shared_ids, slots = prefix
    shared = len(shared_ids)
    tokens, positions, branches, weights = [*shared_ids], [*range(shared)], [0] * shared, [0.0] * shared
    packed = []
    for question in asked:
        ids, loss = turn_ids(tokenizer, conversation, question.text, question.answer)
        if len(tokens) + len(ids) > tokens_per_row:
            continue
        packed.append(question)
        tokens += ids
        weights += loss
        positions += range(shared, shared + len(ids))
        branches += [len(packed)] * len(ids)

    def padded(values: Sequence[float], dtype: type, fill: int = 0) -> np.ndarray:
        out: np.ndarray = np.full(tokens_per_row, fill, dtype)
        out[: len(values)] = values
        return out

    return Row(
        tokens=padded(tokens, np.int32),
        positions=padded(positions, np.int32),
        segments=padded([1] * len(tokens), np.int32),
        branches=padded(branches, np.int32),
        loss_weights=padded(weights, np.float32),
        image_slots=padded([*slots], np.int32, TEXT_SLOT),
        questions=tuple(packed),
        left_out=len(asked) - len(packed),
    )
