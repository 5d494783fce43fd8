"""Packed sequences of records in memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from earthgpt_jax.config import Augment, OnDamaged, QuestionContext
from earthgpt_jax.input.packing.lengths import measure_lengths
from earthgpt_jax.input.packing.sampler import TokenBudget
from earthgpt_jax.input.packing.schedule import PackingSchedule, Source
from earthgpt_jax.input.pipeline import InputSpec, PackedSequences, SequenceBuilder
from earthgpt_jax.input.prompts.chat_template import chat_template
from earthgpt_jax.input.prompts.prompt_config import PromptConfig
from earthgpt_jax.input.prompts.questions import BoxStyle
from earthgpt_jax.input.sequences import image_prefix
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.records import UNKNOWN_CLASSES, AnnotatedClasses, Record

BOX_TEXT = BoxStyle(decimals=2)


@dataclasses.dataclass(frozen=True)
class InMemoryRecords:
    """Records in place of a `datasets.store.RecordSource`."""

    name: str
    records: Sequence[Record]
    annotated: AnnotatedClasses = UNKNOWN_CLASSES

    def __getitem__(self, index: int) -> Record:
        return self.records[index]


def packed_sequences(
    records: Sequence[Record],
    tokenizer: Tokenizer,
    *,
    weights: Mapping[str, float],
    seq_len: int = 160,
    max_images: int = 3,
    batch_size: int = 4,
    image_size: int = 32,
    visual_tokens: int = 17,
    max_questions: int = 4,
    box_style: BoxStyle = BOX_TEXT,
    chat: str = "plain",
    seed: int = 0,
    annotated: AnnotatedClasses = UNKNOWN_CLASSES,
    question_context: QuestionContext = QuestionContext.INDEPENDENT,
    on_damaged: OnDamaged = OnDamaged.REFUSE,
    augment: Augment = Augment.NONE,
) -> PackedSequences:
    """Return the packed sequences of a schedule over one source."""
    prefix_tokens = len(image_prefix(tokenizer, chat_template(chat), visual_tokens=visual_tokens)[0])
    prompt_config = PromptConfig(
        tasks=tuple(sorted(weights)), tokenizer=tokenizer, chat_template=chat, box_style=box_style,
        max_turn_tokens=seq_len - prefix_tokens, seed=seed,
    )  # fmt: skip
    index = measure_lengths(records, prompt_config=prompt_config, annotated=annotated)
    schedule = PackingSchedule(
        [Source(name="listed", index=index, records=np.arange(len(records)))],
        weights=weights,
        budget=TokenBudget(prefix_tokens=prefix_tokens, seq_len=seq_len, max_questions=max_questions),
        max_images=max_images, seed=seed,
    )  # fmt: skip
    spec = InputSpec(
        batch_size=batch_size,
        image_size=image_size,
        visual_tokens=visual_tokens,
        question_context=question_context,
        on_damaged=on_damaged,
        augment=augment,
    )
    build = SequenceBuilder(
        sources=[InMemoryRecords("listed", records, annotated)],
        prompt_config=prompt_config,
        spec=spec,
        seq_len=seq_len,
        max_images=max_images,
    )
    return PackedSequences(schedule=schedule, build=build)
