"""A sample of a batch as text again: what the model reads, token by token, and what it is to answer."""

from __future__ import annotations

import dataclasses

import numpy as np

from earthgpt_jax.input.batch import TEXT_SLOT, Batch
from earthgpt_jax.input.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """Text of consecutive tokens that are all answers to learn, or all not."""

    text: str
    supervised: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcript:
    """One sample of a row.

    Attributes:
        tokens: how many it has, those of its image included.
        visual: how many of them are its image's.
        shared: the text before the questions.
        questions: each independent question with its answer.
    """

    tokens: int
    visual: int
    shared: str
    questions: tuple[tuple[Span, ...], ...]


def decode_transcript(batch: Batch, row: int, *, tokenizer: Tokenizer, segment: int = 1) -> Transcript:
    """Decodes the ids of one sample of independent questions; special tokens have no text."""
    used = batch.segments[row] == segment
    question_index, slots = batch.question_index[row], batch.image_slots[row]
    text = [
        _spans(batch.tokens[row][chosen], batch.loss_weights[row][chosen] > 0, tokenizer)
        for branch in range(int(question_index[used].max()) + 1)
        if (chosen := used & (question_index == branch) & (slots == TEXT_SLOT)).any()
    ]
    return Transcript(
        tokens=int(used.sum()),
        visual=int((slots[used] >= 0).sum()),
        shared="".join(span.text for span in text[0]),
        questions=tuple(text[1:]),
    )


def _spans(ids: np.ndarray, supervised: np.ndarray, tokenizer: Tokenizer) -> tuple[Span, ...]:
    ends = [*(np.flatnonzero(np.diff(supervised)) + 1).tolist(), len(ids)]
    spans, before = [], ""
    for end in ends:  # from the beginning each time: a tokenizer decodes a text, not the pieces of one
        text = tokenizer.decode(ids[:end].tolist())
        spans.append(Span(text=text[len(before) :], supervised=bool(supervised[end - 1])))
        before = text
    return tuple(spans)
