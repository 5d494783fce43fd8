"""Asks a model every question of a set of records, and writes the answers as they come."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.evaluation import predictions as predictions_lib
from earthgpt_jax.evaluation.predictions import Prediction
from earthgpt_jax.input.images import grey_square, load_square
from earthgpt_jax.input.questions import Grammar, Question, questions
from earthgpt_jax.mmrs.record import Record, Task

# Longest answer of a task, in tokens: a handful of boxes each.
MAX_NEW_TOKENS: Mapping[str, int] = {
    Task.CLASSIFICATION: 16,
    Task.VQA: 16,
    Task.CAPTION: 48,
    Task.REGION_CAPTION: 32,
    Task.GROUNDING: 40,
    Task.HBB: 256,
    Task.OBB: 400,
}
_CHUNK = 200  # questions between two flushes


class View(enum.StrEnum):
    """What the model gets to see: the image, or a grey square (the blind baseline)."""

    IMAGE = "image"
    GREY = "blind"


class Answerer(Protocol):
    """What answers: `inference.engine.Engine` or anything with its surface."""

    @property
    def image_size(self) -> int: ...

    def answer(self, items: Sequence[tuple[np.ndarray, str]], *, max_new_tokens: int) -> list[str]: ...


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question and the record it is about."""

    record: Record
    question: Question


def plan(
    records: Sequence[Record], *, decimals: int, per_image: Mapping[str, int], tasks: Sequence[Task] = tuple(Task)
) -> list[Asked]:
    """All questions of the records; at most `per_image[task]` an image, chosen by a hash of the id."""
    asked = []
    for index in range(len(records)):
        record = records[index]
        everything = questions(record, grammar=Grammar(decimals=decimals), tasks=tasks)
        for task, group in itertools.groupby(everything, key=lambda question: question.task):
            chosen = sorted(group, key=lambda question: hashlib.sha256(question.id.encode()).digest())
            asked += [Asked(record, question) for question in chosen[: per_image.get(task)]]
    return asked


def evaluate(
    answerer: Answerer, asked: Sequence[Asked], *, out: Path, header: Mapping[str, Any], view: View, label: str
) -> list[Prediction]:
    """Answers every question once; what `out` has already is kept, what is missing is asked.

    Args:
        out: predictions file, appended to as answers come.
        header: digests of model, data and prompt; a file with another header is refused.

    Raises:
        EarthGPTError: `out` is of another model, data or set of questions.
    """
    done = _resume(out, header)
    todo = [item for item in asked if item.question.id not in done]
    # Tasks one after another, so that a batch's answers are of about the same length.
    todo.sort(key=lambda item: (MAX_NEW_TOKENS[item.question.task], item.question.task))
    with out.open("a") as file, tqdm(total=len(asked), initial=len(done), desc=label, unit="question") as bar:
        for task, group in itertools.groupby(todo, key=lambda item: item.question.task):
            items = list(group)
            for start in range(0, len(items), _CHUNK):
                chunk = items[start : start + _CHUNK]
                images = [_image(item.record, answerer.image_size, view) for item in chunk]
                pairs = [(image, item.question.text) for image, item in zip(images, chunk, strict=True)]
                for item, text in zip(chunk, answerer.answer(pairs, max_new_tokens=MAX_NEW_TOKENS[task]), strict=True):
                    done[item.question.id] = Prediction.of(item.record, item.question, text)
                    file.write(predictions_lib.to_line(done[item.question.id]))
                file.flush()
                bar.update(len(chunk))
    return [done[item.question.id] for item in asked]


def _image(record: Record, size: int, view: View) -> np.ndarray:
    return grey_square(size) if view is View.GREY else load_square(record.image, size)


def _resume(out: Path, header: Mapping[str, Any]) -> dict[str, Prediction]:
    """What was answered before; leaves `out` with a header and complete lines only."""
    out.parent.mkdir(parents=True, exist_ok=True)
    first = json.dumps({"header": dict(header)}) + "\n"
    if not out.exists() or "\n" not in out.read_text():
        out.write_text(first)
        return {}
    saved, answered = predictions_lib.read(out)
    differing = [f"{key} was {saved.get(key)!r}, is {header.get(key)!r}"
                 for key in sorted(saved.keys() | header.keys()) if saved.get(key) != header.get(key)]  # fmt: skip
    if differing:
        raise EarthGPTError(
            f"{out} holds answers of another evaluation: {'; '.join(differing)}. Name another folder, or delete it."
        )
    partial = out.with_suffix(".partial")
    partial.write_text(first + "".join(map(predictions_lib.to_line, answered)))
    partial.replace(out)
    return {prediction.id: prediction for prediction in answered}
