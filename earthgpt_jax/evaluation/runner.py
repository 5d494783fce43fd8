"""Asks a model every question of a set of records, and writes the answers as they come."""

from __future__ import annotations

import collections
import dataclasses
import enum
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.evaluation import predictions as predictions_lib
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.input.derived import Derived
from earthgpt_jax.input.images import grey_square, load_square
from earthgpt_jax.input.questions import Grammar, Question, ask, candidates, questions
from earthgpt_jax.mmrs.record import UNKNOWN, Annotated, Record, Task

# Longest answer of a task, in tokens: boxes take one token a digit.
MAX_NEW_TOKENS: Mapping[str, int] = {
    Task.CLASSIFICATION: 16,
    Task.VQA: 16,
    Task.CAPTION: 64,
    Task.REGION_CAPTION: 48,
    Task.GROUNDING: 48,
    Task.HBB: 256,
    Task.OBB: 448,
    Derived.ABSENT_HBB: 256,
    Derived.ABSENT_OBB: 448,
    Derived.ABSENT_GROUNDING: 48,
}
# Questions about what is not there.
FALSE_PREMISES = (Derived.ABSENT_HBB, Derived.ABSENT_OBB, Derived.ABSENT_GROUNDING)


class View(enum.StrEnum):
    """What the model gets to see: the image, or a grey square (the blind baseline)."""

    IMAGE = "image"
    GREY = "blind"


class Answerer(Protocol):
    """What answers: `inference.engine.Engine` or anything with its surface."""

    @property
    def image_size(self) -> int: ...

    @property
    def decimals(self) -> int: ...

    def answer(self, items: Sequence[tuple[np.ndarray, str]], *, max_new_tokens: int) -> list[str]: ...


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question and the record it is about."""

    record: Record
    question: Question


def plan(
    records: Sequence[Record],
    *,
    decimals: int,
    per_image: Mapping[str, int] | None = None,
    tasks: Sequence[Task] = tuple(Task),
    derived: Sequence[Derived] = (),
    annotated: Mapping[str, Annotated] | None = None,
) -> list[Asked]:
    """All questions of the records; at most `per_image[task]` an image, chosen by a hash of the id.

    Args:
        derived: kinds of question that are asked beside the tasks', of records that can be asked them.
        annotated: source -> its classes, without which it cannot be told what is absent.
    """
    limits = per_image or {}
    asked = []
    for index in range(len(records)):
        record = records[index]
        grammar = Grammar(decimals=decimals)
        classes = (annotated or {}).get(record.source, UNKNOWN)
        everything = questions(record, grammar=grammar, tasks=tasks) + tuple(
            ask(record, kind.value, place, grammar=grammar, annotated=classes)
            for kind in derived
            for place in candidates(record, kind.value, annotated=classes)
        )
        for task, group in itertools.groupby(everything, key=lambda question: question.task):
            chosen = sorted(group, key=lambda question: hashlib.sha256(question.id.encode()).digest())
            asked += [Asked(record, question) for question in chosen[: limits.get(task)]]
    return asked


def evaluate(
    answerer: Answerer,
    asked: Sequence[Asked],
    *,
    out: Path,
    header: Mapping[str, Any],
    view: View,
    label: str,
    batch_size: int = 200,
) -> list[Prediction]:
    """Answers every question once; what `out` has already is kept, what is missing is asked.

    Args:
        out: predictions file, appended to as answers come.
        header: digests of model, data and prompt; a file with another header, or of other questions, is refused.
        label: of the progress bar.
        batch_size: questions given to the answerer at a time, and written when they are answered.

    Returns:
        One prediction for each of `asked`, in its order.

    Raises:
        EarthGPTError: `out` is of another model, data or set of questions; a question comes twice; nothing is asked.
    """
    _check(asked, out)
    digest = predictions_lib.digest((item.question.id, item.question.text, item.question.answer) for item in asked)
    done = _resume(out, {**header, "asked": digest})
    with out.open("a", encoding="utf-8") as file, tqdm(
        total=len(asked), initial=len(done), desc=label, unit="question"
    ) as bar:  # fmt: skip
        for task, batch in _batches(asked, batch_size):
            missing = [item for item in batch if item.question.id not in done]
            if not missing:
                continue
            # The whole batch is asked again even where a kill left a part of it: rounding may depend on what a
            # question is batched with, and a resumed evaluation shall give what an uninterrupted one gives.
            pairs = [(_image(item.record, answerer.image_size, view), item.question.text) for item in batch]
            texts = answerer.answer(pairs, max_new_tokens=MAX_NEW_TOKENS[task])
            for item, text in zip(batch, texts, strict=True):
                if item.question.id not in done:
                    done[item.question.id] = Prediction.of(item.record, item.question, text)
                    file.write(predictions_lib.to_line(done[item.question.id]))
            file.flush()
            bar.update(len(missing))
    return [done[item.question.id] for item in asked]


def _check(asked: Sequence[Asked], out: Path) -> None:
    if not asked:
        raise EarthGPTError(f"{out}: nothing to ask; the records have no question of the chosen tasks")
    twice = [name for name, count in collections.Counter(item.question.id for item in asked).items() if count > 1]
    if twice:
        raise EarthGPTError(
            f"{out}: {len(twice)} question ids come more than once, the first is {twice[0]}; "
            "was the same dataset given twice?"
        )


def _batches(asked: Sequence[Asked], size: int) -> Iterator[tuple[str, list[Asked]]]:
    """Batches of one task each, so that answers are of about the same length; by id, whatever the order."""
    by_task: dict[str, list[Asked]] = collections.defaultdict(list)
    for item in sorted(asked, key=lambda item: item.question.id):
        by_task[item.question.task].append(item)
    for task in sorted(by_task, key=lambda task: (MAX_NEW_TOKENS[task], task)):
        for start in range(0, len(by_task[task]), size):
            yield task, by_task[task][start : start + size]


def _image(record: Record, size: int, view: View) -> np.ndarray:
    if view is View.GREY:
        return grey_square(size)
    try:
        return load_square(record.image, size)
    except EarthGPTError as error:
        raise EarthGPTError(f"record {record.id}: {error}") from error


def _resume(out: Path, header: Mapping[str, Any]) -> dict[str, Prediction]:
    """What was answered before; leaves `out` with a header and complete lines only."""
    out.parent.mkdir(parents=True, exist_ok=True)
    first = json.dumps({"header": dict(header)}) + "\n"
    header = json.loads(first)["header"]  # a tuple comes back as a list
    if not out.exists() or first.encode().startswith(out.read_bytes()):  # killed before the first answer
        out.write_text(first, encoding="utf-8")
        return {}
    saved, answered = predictions_lib.read(out)
    differing = [
        f"{key} was {saved.get(key)!r}, is {header.get(key)!r}"
        for key in sorted(saved.keys() | header.keys())
        if saved.get(key) != header.get(key)
    ]
    if differing:
        raise EarthGPTError(
            f"{out} holds answers of another evaluation: {'; '.join(differing)}. Name another folder, or delete it."
        )
    partial = out.with_suffix(".partial")
    partial.write_text(first + "".join(map(predictions_lib.to_line, answered)), encoding="utf-8")
    partial.replace(out)
    return {prediction.id: prediction for prediction in answered}
