"""Transcripts: a sample of a batch decoded to text, showing what the model reads and what it is trained on."""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Bool, Int32

from earthgpt_jax.input.batch import TEXT_SLOT, Batch
from earthgpt_jax.input.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Span:
    """Text of consecutive tokens, all of which are supervised or all of which are not."""

    text: str
    supervised: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Transcript:
    """The text of one sample of a packed sequence.

    Attributes:
        tokens: Number of tokens, including visual ones.
        visual: Number of visual tokens.
        shared: Text before the questions.
        questions: Each independent question with its answer.
    """

    tokens: int
    visual: int
    shared: str
    questions: tuple[tuple[Span, ...], ...]


def decode_transcript(batch: Batch, sequence: int, *, tokenizer: Tokenizer, segment: int = 1) -> Transcript:
    """Decode one sample of independent questions; special tokens have no text."""
    used = batch.segments[sequence] == segment
    question_index, slots = batch.question_index[sequence], batch.image_slots[sequence]
    text = [
        _spans(batch.tokens[sequence][chosen], batch.loss_weights[sequence][chosen] > 0, tokenizer)
        for index in range(int(question_index[used].max()) + 1)
        if (chosen := used & (question_index == index) & (slots == TEXT_SLOT)).any()
    ]
    return Transcript(
        tokens=int(used.sum()),
        visual=int((slots[used] >= 0).sum()),
        shared="".join(span.text for span in text[0]),
        questions=tuple(text[1:]),
    )


def _spans(ids: Int32[np.ndarray, " n"], supervised: Bool[np.ndarray, " n"], tokenizer: Tokenizer) -> tuple[Span, ...]:
    ends = [*(np.flatnonzero(np.diff(supervised)) + 1).tolist(), len(ids)]
    spans, before = [], ""
    for end in ends:  # decode from the beginning each time, because a tokenizer decodes texts, not fragments of one
        text = tokenizer.decode(ids[:end].tolist())
        spans.append(Span(text=text[len(before) :], supervised=bool(supervised[end - 1])))
        before = text
    return tuple(spans)
