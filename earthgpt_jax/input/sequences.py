"""Samples and rows: images with questions about them -> a row of tokens.

A sample is `[BOS][start_img] P visual [end_img] system`, and its turns behind it: independent questions, each of them a
branch that continues from the shared beginning, or a dialogue. A row is samples one behind the other, a segment each.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.config import QuestionContext
from earthgpt_jax.input.batch import END_SLOT, START_SLOT, TEXT_SLOT
from earthgpt_jax.input.prompts.chat_template import ChatTemplate
from earthgpt_jax.input.prompts.questions import Question
from earthgpt_jax.input.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """One image and its turns as L tokens, each array [L].

    Attributes:
        image_slots: visual tokens count from 0.
    """

    tokens: np.ndarray
    positions: np.ndarray
    question_index: np.ndarray
    loss_weights: np.ndarray
    image_slots: np.ndarray

    def __len__(self) -> int:
        return len(self.tokens)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The per-token arrays of a Batch row, each [T]."""

    tokens: np.ndarray
    positions: np.ndarray
    segments: np.ndarray
    question_index: np.ndarray
    loss_weights: np.ndarray
    image_slots: np.ndarray


@functools.lru_cache(maxsize=16)
def _prefix_ids(tokenizer: Tokenizer, chat_template: ChatTemplate) -> tuple[int, ...]:
    return tuple(tokenizer.encode(chat_template.prefix))


def image_prefix(
    tokenizer: Tokenizer, chat_template: ChatTemplate, *, visual_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """`(tokens, image_slots)` of the shared part: BOS, the image's slots, the system text."""
    text = _prefix_ids(tokenizer, chat_template)
    slots = [TEXT_SLOT, START_SLOT, *range(visual_tokens), END_SLOT, *([TEXT_SLOT] * len(text))]
    tokens = [tokenizer.bos_id, *([0] * (visual_tokens + 2)), *text]
    return np.array(tokens, np.int32), np.array(slots, np.int32)


def turn_ids(
    tokenizer: Tokenizer, chat_template: ChatTemplate, question: str, answer: str
) -> tuple[list[int], list[float]]:
    """Ids of one turn as they come out behind the prefix in a joint tokenisation, and their loss weights."""
    shared = len(_prefix_ids(tokenizer, chat_template))
    text, ((start, _),) = chat_template.dialogue([(question, answer)])
    ids, spans = tokenizer.encode_with_spans(text)
    return ids[shared:], [1.0 if begin >= start else 0.0 for begin, _ in spans[shared:]]


def open_turn_ids(
    tokenizer: Tokenizer, chat_template: ChatTemplate, question: str, *, history: Sequence[tuple[str, str]] = ()
) -> list[int]:
    """Return the ids of a turn up to where its answer begins, after those of the earlier turns (question, answer).

    Earlier turns are tokenized one by one, as in training with `data.question_context=dialogue`.
    """
    shared = len(_prefix_ids(tokenizer, chat_template))
    earlier = [token for turn in history for token in turn_ids(tokenizer, chat_template, *turn)[0]]
    return earlier + tokenizer.encode(chat_template.prefix + chat_template.open_turn(question))[shared:]


def generation_prompt(
    tokenizer: Tokenizer, chat_template: ChatTemplate, question: str, *, visual_tokens: int
) -> tuple[np.ndarray, np.ndarray]:
    """`(tokens, image_slots)` to generate from: the training row's beginning, to the token."""
    tokens, slots = image_prefix(tokenizer, chat_template, visual_tokens=visual_tokens)
    turn = np.array(open_turn_ids(tokenizer, chat_template, question), np.int32)
    return np.concatenate([tokens, turn]), np.concatenate([slots, np.full_like(turn, TEXT_SLOT)])


def build_sample(
    asked: Sequence[Question],
    *,
    prefix: tuple[np.ndarray, np.ndarray],
    tokenizer: Tokenizer,
    chat_template: ChatTemplate,
    question_context: QuestionContext = QuestionContext.INDEPENDENT,
) -> Sample:
    """An image's questions behind what they share, in order.

    Args:
        prefix: the shared part's tokens and image slots, from `image_prefix`.
        question_context: whether a question sees those before it.
    """
    shared, slots = prefix
    encoded = [turn_ids(tokenizer, chat_template, question.text, question.answer) for question in asked]
    lengths = [len(ids) for ids, _ in encoded]
    tokens = np.concatenate([shared, *(ids for ids, _ in encoded)]).astype(np.int32)
    if question_context is QuestionContext.DIALOGUE:
        positions, question_index = np.arange(len(tokens)), np.zeros(len(tokens))
    else:
        ordered = [np.arange(len(shared)), *(np.arange(len(shared), len(shared) + length) for length in lengths)]
        positions = np.concatenate(ordered)
        question_index = np.repeat(np.arange(1 + len(asked)), [len(shared), *lengths])
    return Sample(
        tokens=tokens,
        positions=positions.astype(np.int32),
        question_index=question_index.astype(np.int32),
        loss_weights=np.concatenate([np.zeros(len(shared)), *(loss for _, loss in encoded)]).astype(np.float32),
        image_slots=np.concatenate([slots, np.full(sum(lengths), TEXT_SLOT)]).astype(np.int32),
    )


def pack_samples(samples: Sequence[Sample], *, seq_len: int, visual_tokens: int) -> Row:
    """Samples one behind the other, padded to T tokens; the i-th one's image has the slots i * P to i * P + P - 1.

    Raises:
        EarthGPTError: they are longer than a row.
    """
    used = sum(map(len, samples))
    if used > seq_len:
        raise EarthGPTError(f"row: expected samples of {seq_len} tokens together, got {used}; ask fewer questions")

    def joined(name: str, fill: int = 0, dtype: type = np.int32) -> np.ndarray:
        return _padded([getattr(sample, name) for sample in samples], seq_len, fill, dtype)

    slots = joined("image_slots", TEXT_SLOT)
    segments = _padded([np.full(len(sample), number, np.int32) for number, sample in enumerate(samples, 1)], seq_len)
    return Row(
        tokens=joined("tokens"),
        positions=joined("positions"),
        segments=segments,
        question_index=joined("question_index"),
        loss_weights=joined("loss_weights", dtype=np.float32),
        image_slots=np.where(slots >= 0, slots + (segments - 1) * visual_tokens, slots),
    )


def _padded(parts: Sequence[np.ndarray], length: int, fill: int = 0, dtype: type = np.int32) -> np.ndarray:
    values = np.concatenate([*parts, np.zeros(0, dtype)])
    return np.pad(values, (0, length - len(values)), constant_values=fill)
