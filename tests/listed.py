"""Records in memory as a planned run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.config import Damaged, Turns
from earthgpt_jax.input.conversation import conversation
from earthgpt_jax.input.lengths import Asking, measure
from earthgpt_jax.input.pipeline import Assembler, InputSpec, Rows
from earthgpt_jax.input.plan import Plan, Source
from earthgpt_jax.input.questions import Grammar
from earthgpt_jax.input.rows import image_prefix
from earthgpt_jax.input.samples import Room
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.mmrs.record import UNKNOWN, Annotated, Record

GRAMMAR = Grammar(decimals=2)


@dataclasses.dataclass(frozen=True)
class Listed:
    """What `mmrs.store.RecordSource` is to the pipeline."""

    name: str
    records: Sequence[Record]
    annotated: Annotated = UNKNOWN

    def __getitem__(self, index: int) -> Record:
        return self.records[index]


def rows(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    *,
    weights: Mapping[str, float],
    tokens_per_row: int = 160,
    images_per_row: int = 3,
    batch_size: int = 4,
    image_size: int = 32,
    visual_tokens: int = 17,
    max_questions: int = 4,
    grammar: Grammar = GRAMMAR,
    chat: str = "plain",
    seed: int = 0,
    annotated: Annotated = UNKNOWN,
    turns: Turns = Turns.INDEPENDENT,
    damaged: Damaged = Damaged.REFUSE,
) -> Rows:
    """The rows of a plan over one source."""
    shared = len(image_prefix(tokenizer, conversation(chat), visual_tokens=visual_tokens)[0])
    asking = Asking(
        kinds=tuple(sorted(weights)), tokenizer=tokenizer, conversation=chat, grammar=grammar,
        room=tokens_per_row - shared, seed=seed,
    )  # fmt: skip
    index = measure(records, asking=asking, annotated=annotated)
    plan = Plan(
        [Source(name="listed", index=index, records=np.arange(len(records)))],
        weights=weights, room=Room(shared=shared, tokens_per_row=tokens_per_row, max_questions=max_questions),
        images_per_row=images_per_row, seed=seed,
    )  # fmt: skip
    spec = InputSpec(
        batch_size=batch_size, image_size=image_size, visual_tokens=visual_tokens, turns=turns, damaged=damaged
    )
    assemble = Assembler(
        sources=[Listed("listed", records, annotated)], asking=asking, spec=spec, tokens_per_row=tokens_per_row,
        images_per_row=images_per_row,
    )  # fmt: skip
    return Rows(plan=plan, assemble=assemble)
