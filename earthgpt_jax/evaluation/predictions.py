"""Predictions on disk: JSONL, a header line and one self-contained line a question.

A line holds the truth beside the answer, so that scoring needs neither model nor dataset.
"""

from __future__ import annotations

import dataclasses
import enum
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earthgpt_jax.boxes import MMRS, BoxKind
from earthgpt_jax.common.digests import fingerprint
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.input.prompts.questions import Question
from earthgpt_jax.records import Record, Task


class FrameKind(enum.StrEnum):
    """What boxes in an answer are fractions of: the square that the image is padded to, or the image itself."""

    SQUARE = "square"
    WHOLE = "whole"


class Chained(enum.StrEnum):
    """Detection by several questions instead of one (`evaluation.chained`): a task of its own beside the direct one."""

    HBB = "chained_hbb"
    OBB = "chained_obb"


# Tasks whose answers list the objects of an image, and the kind of boxes that they ask for.
DETECTION: Mapping[str, BoxKind] = {
    Task.HBB: BoxKind.HBB, Task.OBB: BoxKind.OBB, Chained.HBB: BoxKind.HBB, Chained.OBB: BoxKind.OBB,
}  # fmt: skip
WITH_BOXES: tuple[str, ...] = (*DETECTION, Task.GROUNDING)

_DECIMALS = 4  # of log-probabilities: what batch size and devices change is well below it in fp32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A question on the way to an answer, and what was answered to it."""

    id: str
    question: str
    answer: str


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
        width, height: 1 where a file gives no sizes; its boxes are then fractions.
        grammar, frame: of the boxes in the answer.
        confidences: one a box of the answer; () where none are known.
        synonyms: other right answers, declared by a benchmark.
        token_lengths: characters of `prediction` that each token of it is, together all of it; () where not kept.
        logprobs: of each of these tokens given those before it, natural logarithms.
        steps: what was asked before, of an answer that is made of several.
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
    box_format: str = MMRS
    frame: str = FrameKind.SQUARE.value
    confidences: tuple[float, ...] = ()
    synonyms: tuple[str, ...] = ()
    token_lengths: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    steps: tuple[Step, ...] = ()

    @classmethod
    def of(
        cls,
        record: Record,
        question: Question,
        prediction: str,
        *,
        token_lengths: Sequence[int] = (),
        logprobs: Sequence[float] = (),
    ) -> Prediction:
        """
        Args:
            token_lengths, logprobs: of the answer's tokens; kept rounded, and only if all are finite.
        """
        rounded = tuple(round(float(value), _DECIMALS) + 0.0 for value in logprobs)  # -0.0 becomes 0.0
        kept = len(rounded) > 0 and bool(np.isfinite(rounded).all())
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
            kind=question.question_type,
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
            token_lengths=tuple(token_lengths) if kept else (),
            logprobs=rounded if kept else (),
        )

    def saying(self, prediction: str, **changes: Any) -> Prediction:
        """Another answer to the same question; nothing is known of its tokens."""
        nothing: dict[str, Any] = {"confidences": (), "token_lengths": (), "logprobs": (), "steps": ()}
        return dataclasses.replace(self, prediction=prediction, **nothing | changes)


def to_line(prediction: Prediction) -> str:
    """One line of the file, with its line break."""
    values = dataclasses.asdict(prediction)
    kept = {name: value for name, value in values.items() if value or name not in _SELDOM}
    return json.dumps(kept, ensure_ascii=False) + "\n"


_TUPLES = ("references", "confidences", "synonyms", "token_lengths", "logprobs")
_SELDOM = ("token_lengths", "logprobs", "steps")  # not written where there are none


def _from_values(values: dict[str, Any]) -> Prediction:
    objects = tuple(Truth(**{**item, "polygon": tuple(item["polygon"])}) for item in values["objects"])
    tuples = {name: tuple(values[name]) for name in _TUPLES if name in values}
    steps = tuple(Step(**item) for item in values.get("steps", ()))
    found = Prediction(**{**values, "objects": objects, **tuples, "steps": steps})
    if wrong := _wrong_tokens(found):
        raise ValueError(wrong)
    return found


def _wrong_tokens(p: Prediction) -> str:
    """Why the tokens are not those of the answer; "" if they can be."""
    if not (p.token_lengths or p.logprobs):
        return ""
    if len(p.token_lengths) != len(p.logprobs):
        return f"expected a log-probability for each of {len(p.token_lengths)} tokens, got {len(p.logprobs)}"
    if min(p.token_lengths) < 0 or sum(p.token_lengths) != len(p.prediction):
        return (
            f"expected token_lengths that add up to the answer's {len(p.prediction)} characters, got "
            f"{sum(p.token_lengths)}; was the answer changed behind its tokens?"
        )
    if not all(math.isfinite(value) and value <= 0 for value in p.logprobs):
        return f"expected log-probabilities that are finite and not above 0, got {_odd(p.logprobs)}"
    return ""


def _odd(logprobs: Sequence[float]) -> float:
    return next(value for value in logprobs if not (math.isfinite(value) and value <= 0))


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
        except ValueError as error:
            raise EarthGPTError(f"{path}, line {number}: {error}") from error
        first = seen.setdefault(predictions[-1].id, number)
        if first != number:
            raise EarthGPTError(
                f"{path}, line {number}: {predictions[-1].id} was answered in line {first} already; "
                "each question counts once, delete one of the two lines"
            )
    return values[0]["header"], predictions


def write(path: Path, predictions: Sequence[Prediction], *, header: Mapping[str, Any]) -> None:
    """A whole file at once; the header also gets the number and the digest of the questions."""
    asked = digest((p.id, p.question, p.answer) for p in predictions)
    first = json.dumps({"header": {**header, "questions": len(predictions), "asked": asked}}) + "\n"
    path.write_text(first + "".join(map(to_line, predictions)), encoding="utf-8")


def digest(questions: Iterable[tuple[str, str, str]]) -> str:
    """Of (id, wording, truth) of questions, in any order."""
    lines = sorted(json.dumps(list(question)) for question in questions)
    return fingerprint("\n".join(lines))


def check(header: Mapping[str, Any], predictions: Sequence[Prediction], *, where: Path) -> None:
    """That a file is whole: the answers are those to the questions that its header says were asked.

    Headers say `questions`, their number, and `asked`, their digest; what a header does not say is not checked.

    Raises:
        EarthGPTError: questions without answer, or other questions or another truth than were asked.
    """
    number = header.get("questions")
    if number is not None and number != len(predictions):
        raise EarthGPTError(
            f"{where}: expected answers to {number} questions, as its header says, got {len(predictions)}; "
            "the same `earthgpt eval` command answers what is missing"
        )
    asked, found = header.get("asked"), digest((p.id, p.question, p.answer) for p in predictions)
    if asked is not None and asked != found:
        raise EarthGPTError(
            f"{where}: expected the questions and truth of digest {asked}, as its header says, got {found}; "
            "a question, an answer of the truth or an id was changed, or the file is joined of several"
        )


def check_same(predictions: Sequence[Prediction], questions: Sequence[Prediction], *, where: Path, of: Path) -> None:
    """That two files answer the same questions, each once and with the same truth.

    Raises:
        EarthGPTError: names ids that are missing, that are too many, or whose question or truth differs.
    """
    ours, theirs = ({p.id: p for p in items} for items in (predictions, questions))
    same_ids(ours, theirs, where=where, of=of)
    differing = [name for name, p in ours.items() if _truth(p) != _truth(theirs[name])]
    if differing:
        raise EarthGPTError(
            f"{where}: {len(differing)} questions have another wording or truth than in {of}, as {differing[0]}; "
            "the two are of different datasets, or of different builds of one"
        )


def same_ids(ours: Iterable[str], theirs: Iterable[str], *, where: Path, of: Path) -> None:
    """Raises EarthGPTError, naming some, if ids are missing from `ours` or unknown to `theirs`."""
    have, want = set(ours), set(theirs)
    said = [
        f"{len(ids)} {what} ({', '.join(sorted(ids)[:3])}{', ...' if len(ids) > 3 else ''})"
        for ids, what in ((want - have, f"of {len(want)} questions have no answer"), (have - want, "ids are unknown"))
        if ids
    ]
    if said:
        raise EarthGPTError(f"{where}: {'; '.join(said)}; expected each question of {of} once")


def _truth(p: Prediction) -> tuple:
    return p.question, p.answer, p.references, p.objects, p.object_index, p.width, p.height


def whole(path: Path) -> list[Prediction]:
    """The predictions of a file that is whole by its header (`check`)."""
    header, found = read(path)
    check(header, found, where=path)
    return found
