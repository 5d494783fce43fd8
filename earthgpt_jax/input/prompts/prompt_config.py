"""The prompt config: which questions training asks, and how they and their answers are written."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from earthgpt_jax.common.digests import fingerprint_json
from earthgpt_jax.input.prompts import templates
from earthgpt_jax.input.prompts.box_budget import fit_to_budget
from earthgpt_jax.input.prompts.chat_template import chat_template
from earthgpt_jax.input.prompts.questions import BoxStyle, Question, annotation_task, build_question
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.records import AnnotatedClasses, Record

_VERSION = 4  # raise it when the same question gets another text or `LengthIndex` other columns


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Which questions are asked, and how they are written; fields as in `config.DataConfig`.

    Attributes:
        tasks: Tasks with a positive weight in `DataConfig.task_weights`.
        max_turn_tokens: Tokens that one turn may have; longer detection answers list fewer boxes (`box_budget`).

    Raises:
        EarthGPTError: An unknown task or chat template, or one that the tokenizer does not fit.
    """

    tasks: tuple[str, ...]
    tokenizer: Tokenizer
    chat_template: str
    box_style: BoxStyle
    max_turn_tokens: int
    seed: int

    def __post_init__(self) -> None:
        chat_template(self.chat_template).end_ids(self.tokenizer)
        for task in self.tasks:
            annotation_task(task)

    def question(self, record: Record, task: str, index: int, *, annotated: AnnotatedClasses) -> Question:
        """Build a question. Its text and its answer are the same in every epoch.

        Args:
            index: One of `questions.question_indices`.
            annotated: Classes that the record's dataset annotates.
        """
        options: Mapping[str, Any] = {"box_style": self.box_style, "annotated": annotated, "seed": self.seed}
        rng = templates.template_rng(record.id, task, index, seed=self.seed)
        return fit_to_budget(
            build_question(record, task, index, rng=rng, **options),
            record,
            max_tokens=self.max_turn_tokens,
            tokenizer=self.tokenizer,
            template=chat_template(self.chat_template),
            **options,
        )

    def identity(self) -> dict[str, Any]:
        """Return everything that the questions' lengths depend on, apart from the records."""
        dialogue = chat_template(self.chat_template).dialogue([("{question}", "{answer}")])
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "chat_template": self.chat_template,
            "chat template text": fingerprint_json(dialogue),
            "decimals": self.box_style.decimals,
            "max_boxes": self.box_style.max_boxes,
            "json_share": self.box_style.json_share,
            "max_turn_tokens": self.max_turn_tokens,
            "templates": templates.fingerprint(),
            "tasks": list(self.tasks),
            "seed": self.seed,
            "version": _VERSION,
        }
