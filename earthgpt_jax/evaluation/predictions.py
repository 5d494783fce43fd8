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
    """One answered question; `objects` and sizes are of the original image, in pixels."""

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
    return json.dumps(dataclasses.asdict(prediction), ensure_ascii=False) + "\n"


def _from_values(values: dict[str, Any]) -> Prediction:
    objects = tuple(Truth(**{**item, "polygon": tuple(item["polygon"])}) for item in values["objects"])
    return Prediction(**{**values, "objects": objects, "references": tuple(values["references"])})


def read(path: Path) -> tuple[dict[str, Any], list[Prediction]]:
    """The header and all complete lines; a last line that was cut off by a kill is left out.

    Raises:
        EarthGPTError: no such file, or not a predictions file; names the line.
    """
    try:
        lines = path.read_text().split("\n")
    except OSError as error:
        raise EarthGPTError(f"predictions {path}: cannot be read ({error})") from error
    values = []
    for number, line in enumerate(lines[:-1], start=1):  # behind the last line break nothing is complete
        try:
            values.append(json.loads(line))
        except ValueError as error:
            raise EarthGPTError(f"{path}, line {number}: not JSON ({error})") from error
    if not values or "header" not in values[0]:
        raise EarthGPTError(f"{path}: expected a predictions file, whose first line is {{'header': ...}}")
    try:
        return values[0]["header"], [_from_values(value) for value in values[1:]]
    except (KeyError, TypeError) as error:
        raise EarthGPTError(f"{path}: a prediction lacks or has a field too many ({error})") from error
