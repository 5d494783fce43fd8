"""How long every question is that can be asked: the tokens of its turn behind the shared prefix of its image.

From this alone rows are planned, without reading a record. A question's wording depends on its record, kind and
index and the seed (`templates.wording_rng`), so its length is the same in every epoch.
"""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from earthgpt_jax.common.digests import fingerprint, fingerprint_json, sha256_int
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.input.prompts import templates
from earthgpt_jax.input.prompts.box_budget import fit_to_budget
from earthgpt_jax.input.prompts.chat_template import chat_template
from earthgpt_jax.input.prompts.questions import (
    BoxStyle,
    Question,
    annotation_task,
    build_question,
    question_indices,
)
from earthgpt_jax.input.sequences import turn_ids
from earthgpt_jax.input.tokenizer import Tokenizer
from earthgpt_jax.records import UNKNOWN_CLASSES, AnnotatedClasses, Record, Sensor

SENSORS = tuple(Sensor)
_VERSION = 2  # raise it when code gives the same question another text, or the index has other columns
_COLUMNS = {"record": np.int32, "kind": np.uint8, "index": np.uint16, "tokens": np.uint16}


@dataclasses.dataclass(frozen=True, kw_only=True)
class PromptConfig:
    """Which questions are asked, and how they are written; fields as in `config.DataConfig`.

    Attributes:
        room: tokens that a row has for one turn; longer detections list fewer boxes (`fitting`).

    Raises:
        EarthGPTError: an unknown kind or conversation.
    """

    kinds: tuple[str, ...]
    tokenizer: Tokenizer
    chat_template: str
    box_style: BoxStyle
    room: int
    seed: int

    def __post_init__(self) -> None:
        chat_template(self.chat_template)
        for kind in self.kinds:
            annotation_task(kind)

    def question(self, record: Record, kind: str, index: int, *, annotated: AnnotatedClasses) -> Question:
        """The question, worded and answered the same whenever it is asked; `index` as `questions.ask` takes it."""
        known: Mapping[str, Any] = {"box_style": self.box_style, "annotated": annotated, "seed": self.seed}
        rng = templates.template_rng(record.id, kind, index, seed=self.seed)
        return fit_to_budget(
            build_question(record, kind, index, rng=rng, **known),
            record,
            room=self.room,
            tokenizer=self.tokenizer,
            template=chat_template(self.chat_template),
            **known,
        )

    def identity(self) -> dict[str, Any]:
        """Everything that the questions' lengths depend on, besides the records."""
        return {
            "tokenizer": self.tokenizer.fingerprint,
            "chat_template": self.chat_template,
            "chat template text": fingerprint_json(
                chat_template(self.chat_template).dialogue([("{question}", "{answer}")])
            ),
            "decimals": self.box_style.decimals,
            "max_boxes": self.box_style.max_boxes,
            "room": self.room,
            "templates": templates.fingerprint(),
            "kinds": list(self.kinds),
            "seed": self.seed,
            "version": _VERSION,
        }


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LengthIndex:
    """The questions of R records, sorted by record, kind and index.

    Attributes:
        record: i32[Q], the record's number.
        kind: u8[Q], into `kinds`.
        index: u16[Q], as `questions.ask` takes it.
        tokens: u16[Q], of the turn behind the shared prefix.
        digests: u64[R], of the records' ids.
        sensors: u8[R], into `SENSORS`.
    """

    kinds: tuple[str, ...]
    record: np.ndarray
    kind: np.ndarray
    index: np.ndarray
    tokens: np.ndarray
    digests: np.ndarray
    sensors: np.ndarray

    def __len__(self) -> int:
        return len(self.record)

    def named(self, questions: np.ndarray) -> tuple[tuple[str, int], ...]:
        """Questions by their numbers i[n], each as `(kind, index)`."""
        return tuple((self.kinds[self.kind[number]], int(self.index[number])) for number in questions.tolist())

    def fingerprint(self) -> str:
        """Of all that is in it."""
        return fingerprint(repr(self.kinds), *(values.tobytes() for values in self.arrays().values()))

    def arrays(self) -> dict[str, np.ndarray]:
        """By name, all but `kinds`."""
        return {name: getattr(self, name) for name in (*_COLUMNS, "digests", "sensors")}


def measure_lengths(
    records: Sequence[Record | None],
    *,
    prompt_config: PromptConfig,
    annotated: AnnotatedClasses = UNKNOWN_CLASSES,
    start: int = 0,
) -> LengthIndex:
    """The index of a run of records, whose first has the number `start`; of None, nothing is asked.

    Raises:
        EarthGPTError: a number that its type does not hold; names the question.
    """
    template = chat_template(prompt_config.chat_template)
    columns = {name: array.array(np.dtype(dtype).char) for name, dtype in _COLUMNS.items()}
    digests, sensors = np.zeros(len(records), np.uint64), np.zeros(len(records), np.uint8)
    for number, record in enumerate(records):
        if record is None:
            continue
        sensors[number] = SENSORS.index(record.sensor)
        digests[number] = sha256_int(record.id, size=8, byteorder="little")
        for place, kind in enumerate(prompt_config.kinds):
            for index in question_indices(record, kind, annotated=annotated, seed=prompt_config.seed):
                said = prompt_config.question(record, kind, index, annotated=annotated)
                length = len(turn_ids(prompt_config.tokenizer, template, said.text, said.answer)[0])
                try:
                    for column, value in zip(columns.values(), (start + number, place, index, length), strict=True):
                        column.append(value)
                except OverflowError:
                    raise EarthGPTError(
                        f"question {said.id}: expected an index and a number of tokens below 2^16, got {index} and "
                        f"{length}; let data.max_boxes list fewer boxes, or leave the record out of the dataset"
                    ) from None
    return LengthIndex(
        kinds=prompt_config.kinds,
        digests=digests,
        sensors=sensors,
        **{name: np.array(column, _COLUMNS[name]) for name, column in columns.items()},
    )


def concatenate_indexes(parts: Sequence[LengthIndex]) -> LengthIndex:
    """Of consecutive runs of records, at least one, the whole."""
    columns = {name: np.concatenate([part.arrays()[name] for part in parts]) for name in parts[0].arrays()}
    return LengthIndex(kinds=parts[0].kinds, **columns)
