"""The length index: the number of tokens of every question that training can ask.

The packing schedule is computed from these lengths alone, without reading a record. The template of a question depends
on its record, task, index and the seed (`templates.template_rng`), so its length is the same in every epoch.
"""

from __future__ import annotations

import array
import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Int, Int32, UInt8, UInt16, UInt64

from earthgpt_jax.common.digests import fingerprint, sha256_int
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.input.prompts.chat_template import chat_template
from earthgpt_jax.input.prompts.prompt_config import PromptConfig
from earthgpt_jax.input.prompts.questions import question_indices
from earthgpt_jax.input.sequences import turn_ids
from earthgpt_jax.records import UNKNOWN_CLASSES, AnnotatedClasses, Record, Sensor

SENSORS = tuple(Sensor)
_COLUMNS = {"record": np.int32, "task": np.uint8, "index": np.uint16, "tokens": np.uint16}


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class LengthIndex:
    """Lengths of the Q questions about R records, sorted by record, task and index.

    Attributes:
        tasks: Names of the tasks.
        record: Number of the question's record.
        task: Index into `tasks`.
        index: Which question of the task it is, as in `questions.build_question`.
        tokens: Tokens of the turn, without the prefix that all questions about an image share.
        digests: Digests of the records' ids.
        sensors: Index into `SENSORS` for each record.
    """

    tasks: tuple[str, ...]
    record: Int32[np.ndarray, " Q"]
    task: UInt8[np.ndarray, " Q"]
    index: UInt16[np.ndarray, " Q"]
    tokens: UInt16[np.ndarray, " Q"]
    digests: UInt64[np.ndarray, " R"]
    sensors: UInt8[np.ndarray, " R"]

    def __len__(self) -> int:
        """Return Q."""
        return len(self.record)

    def keys(self, questions: Int[np.ndarray, " n"]) -> tuple[tuple[str, int], ...]:
        """Return `(task, index)` for each of some questions, given by their numbers."""
        return tuple((self.tasks[self.task[number]], int(self.index[number])) for number in questions.tolist())

    def about(self, records: Int[np.ndarray, " n"]) -> Bool[np.ndarray, " Q"]:
        """Return a mask of the questions about some records, given by their numbers."""
        wanted = np.zeros(len(self.digests), bool)
        wanted[records] = True
        return wanted[self.record]

    def count_by_task(self, questions: np.ndarray) -> dict[str, int]:
        """Count questions by task, leaving out tasks without any.

        Args:
            questions: Their numbers, i[n], or a mask, bool[Q].
        """
        counts = np.bincount(self.task[questions], minlength=len(self.tasks)).tolist()
        return {task: count for task, count in sorted(zip(self.tasks, counts, strict=True)) if count}

    def fingerprint(self) -> str:
        """Return a fingerprint of the whole index."""
        return fingerprint(repr(self.tasks), *(values.tobytes() for values in self.arrays().values()))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return all arrays by name."""
        return {name: getattr(self, name) for name in (*_COLUMNS, "digests", "sensors")}


def measure_lengths(
    records: Sequence[Record | None],
    *,
    prompt_config: PromptConfig,
    annotated: AnnotatedClasses = UNKNOWN_CLASSES,
    start: int = 0,
) -> LengthIndex:
    """Return the length index of consecutive records.

    Args:
        records: None stands for a damaged record, about which nothing is asked.
        annotated: Classes that the records' dataset annotates.
        start: Number of the first record.

    Raises:
        EarthGPTError: A question's index or length does not fit into 16 bits; names the question.
    """
    template = chat_template(prompt_config.chat_template)
    columns = {name: array.array(np.dtype(dtype).char) for name, dtype in _COLUMNS.items()}
    digests, sensors = np.zeros(len(records), np.uint64), np.zeros(len(records), np.uint8)
    for number, record in enumerate(records):
        if record is None:
            continue
        sensors[number] = SENSORS.index(record.sensor)
        digests[number] = sha256_int(record.id, size=8, byteorder="little")
        for task_number, task in enumerate(prompt_config.tasks):
            for index in question_indices(record, task, annotated=annotated, seed=prompt_config.seed):
                question = prompt_config.question(record, task, index, annotated=annotated)
                length = len(turn_ids(prompt_config.tokenizer, template, question.text, question.answer)[0])
                values = (start + number, task_number, index, length)
                try:
                    for column, value in zip(columns.values(), values, strict=True):
                        column.append(value)
                except OverflowError:
                    raise EarthGPTError(
                        f"question {question.id}: expected an index and a number of tokens below 2^16, got {index} "
                        f"and {length}; let data.max_boxes list fewer boxes, or leave the record out of the dataset"
                    ) from None
    return LengthIndex(
        tasks=prompt_config.tasks,
        digests=digests,
        sensors=sensors,
        **{name: np.array(column, _COLUMNS[name]) for name, column in columns.items()},
    )


def concatenate_indexes(parts: Sequence[LengthIndex]) -> LengthIndex:
    """Join the indexes of consecutive groups of records, of which there is at least one."""
    columns = {name: np.concatenate([part.arrays()[name] for part in parts]) for name in parts[0].arrays()}
    return LengthIndex(tasks=parts[0].tasks, **columns)
