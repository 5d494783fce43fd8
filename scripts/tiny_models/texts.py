"""Texts of synthetic records, and the tokenizer trained on them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from earthgpt_jax.config import Config
from earthgpt_jax.datasets.cards import load_cards
from earthgpt_jax.input.prompts.chat_template import ChatTemplate, chat_template
from earthgpt_jax.input.prompts.derived import DerivedTask
from earthgpt_jax.input.prompts.questions import GROUNDED_CAPTIONS, BoxStyle, build_question, question_indices
from earthgpt_jax.input.tokenizer import train_tokenizer
from earthgpt_jax.records import Record, Task
from earthgpt_jax.synthetic import SyntheticSource

# Tasks derived from boxes. Their questions are about present classes here, as no list of annotated classes is given.
FROM_BOXES = (DerivedTask.COUNT.value, DerivedTask.CLASS_HBB.value, DerivedTask.CLASS_OBB.value)


@functools.cache
def real_class_names() -> tuple[str, ...]:
    """Return the class names of the real datasets, for words that the synthetic source does not contain."""
    return tuple(sorted({label for card in load_cards().values() for label in card.classes}))


def with_real_names(record: Record, rng: np.random.Generator) -> Record:
    """Return the record with random real class names, and with those tasks only whose texts consist of names."""
    old_names = sorted({item.label for item in record.objects})
    scene, *names = (
        real_class_names()[i] for i in rng.choice(len(real_class_names()), 1 + len(old_names), replace=False)
    )
    new_name = dict(zip(old_names, names, strict=True))
    return dataclasses.replace(
        record,
        label=scene,
        tasks=(Task.CLASSIFICATION, Task.HBB, Task.OBB),
        objects=tuple(dataclasses.replace(item, label=new_name[item.label], phrase="") for item in record.objects),
    )


def dialogues(records: Sequence[Record], box_style: BoxStyle, *, template: ChatTemplate) -> Iterator[str]:
    """Yield every question about the records as a dialogue, first with their own and then with real class names."""
    rngs = [np.random.default_rng(number) for number in range(len(records))]
    real = [with_real_names(record, rng) for record, rng in zip(records, rngs, strict=True)]
    for record, rng in zip([*records, *real], [*rngs, *rngs], strict=True):
        for question_type in (*(task.value for task in Task), *GROUNDED_CAPTIONS, *FROM_BOXES):
            for index in question_indices(record, question_type):
                question = build_question(record, question_type, index, box_style=box_style, rng=rng)
                yield template.dialogue([(question.text, question.answer)])[0]


def tokenizer(workdir: Path, config: Config) -> Path:
    """Train a SentencePiece model with LLaMA's layout on synthetic texts, and return its file."""
    path = workdir / "tokenizer.model"
    if not path.exists():
        source = SyntheticSource("train", 400)
        box_style = BoxStyle(decimals=config.data.decimals, json_share=0.5)  # half of the boxes as JSON
        template = chat_template(config.data.chat_template)
        texts = dialogues([source[i] for i in range(400)], box_style, template=template)
        train_tokenizer(texts, vocab_size=config.model.llm.vocab_size, path=path)
    return path
