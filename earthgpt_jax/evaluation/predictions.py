"""Predictions on disk: JSONL, a header line and one self-contained line a question.

A line holds the truth beside the answer, so that scoring needs neither model nor dataset.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.input.questions import Question
from earthgpt_jax.mmrs.record import Record


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truth:
    """An annotated object: label, polygon of 8 pixel coordinates, difficult or not."""

    label: str
    polygon: tuple[float, ...]
    difficult: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """One answered question with its truth; `objects` and sizes are of the original image, in pixels.

    Attributes:
        kind: VQA question type, "" for other tasks.
        references: all right texts of a caption, else the answer alone.
        object_index: which of `objects` a region caption or grounding is about.
    """

    id: str
    record_id: str
    task: str
    kind: str
    sensor: str
    source: str
    question: str
    prediction: str
    answer: str
    references: tuple[str, ...]
    objects: tuple[Truth, ...]
    object_index: int | None
    width: int
    height: int

    @classmethod
    def of(cls, record: Record, question: Question, prediction: str) -> Prediction:
        objects = tuple(
            Truth(
                label=item.label,
                polygon=tuple(float(value) for value in np.asarray(item.polygon)),
                difficult=item.difficult,
            )
            for item in record.objects
        )
        return cls(
            id=question.id,
            record_id=record.id,
            task=question.task,
            kind=question.kind,
            sensor=record.sensor.value,
            source=record.source,
            question=question.text,
            prediction=prediction,
            answer=question.answer,
            references=question.references,
            objects=objects,
            object_index=question.object_index,
            width=record.width,
            height=record.height,
        )


def to_line(prediction: Prediction) -> str:
    """One line of the file, with its line break."""
    return json.dumps(dataclasses.asdict(prediction), ensure_ascii=False) + "\n"


def _from_values(values: dict[str, Any]) -> Prediction:
    objects = tuple(Truth(**{**item, "polygon": tuple(item["polygon"])}) for item in values["objects"])
    return Prediction(**{**values, "objects": objects, "references": tuple(values["references"])})


def read(path: Path) -> tuple[dict[str, Any], list[Prediction]]:
    """The header and all complete lines; a last line that was cut off by a kill is left out.

    Raises:
        EarthGPTError: no such file, or not a predictions file, or an id twice; names the line.
    """
    try:
        # Bytes: the cut may have gone through the middle of a character.
        complete, _, _ = path.read_bytes().rpartition(b"\n")
    except OSError as error:
        raise EarthGPTError(f"predictions {path}: cannot be read ({error})") from error
    values = []
    for number, line in enumerate(complete.split(b"\n"), start=1):
        try:
            values.append(json.loads(line))
        except ValueError as error:
            raise EarthGPTError(f"{path}, line {number}: expected JSON ({error}); is it a predictions file?") from error
    if not isinstance(values[0], dict) or "header" not in values[0]:
        raise EarthGPTError(f"{path}: expected a predictions file, whose first line is {{'header': ...}}")
    seen: dict[str, int] = {}
    predictions = []
    for number, value in enumerate(values[1:], start=2):
        try:
            predictions.append(_from_values(value))
        except (KeyError, TypeError) as error:
            raise EarthGPTError(f"{path}, line {number}: a field is missing or unknown ({error})") from error
        first = seen.setdefault(predictions[-1].id, number)
        if first != number:
            raise EarthGPTError(
                f"{path}, line {number}: {predictions[-1].id} was answered in line {first} already; "
                "each question counts once, delete one of the two lines"
            )
    return values[0]["header"], predictions
