"""`Prediction`: a model's answer to one question, together with the question and its ground truth.

A prediction holds everything that scoring needs, so that neither the model nor the dataset is needed to score it.
`predictions_file` stores predictions on disk.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from earthgpt_jax.boxes import MMRS, BoxKind
from earthgpt_jax.input.prompts.questions import Question
from earthgpt_jax.records import Record, Task


class CoordinateFrame(enum.StrEnum):
    """What the coordinates of an answer are fractions of: the square that the image is padded to, or the image."""

    SQUARE = "square"
    IMAGE = "image"


class ChainedTask(enum.StrEnum):
    """Detection by a chain of questions instead of one (see `chained`); scored separately from the direct question."""

    HBB = "chained_hbb"
    OBB = "chained_obb"


class MultiTargetTask(enum.StrEnum):
    """Grounding of a phrase that means several objects, or none: the targets are all objects of the prediction."""

    GROUNDING = "multi_grounding"


# Tasks whose answers list the objects of an image, with the kind of boxes that they ask for.
DETECTION_TASKS: Mapping[str, BoxKind] = {
    Task.HBB: BoxKind.HBB,
    Task.OBB: BoxKind.OBB,
    ChainedTask.HBB: BoxKind.HBB,
    ChainedTask.OBB: BoxKind.OBB,
}
BOX_TASKS: tuple[str, ...] = (*DETECTION_TASKS, Task.GROUNDING)

_DECIMALS = 4  # of stored log-probabilities; batch size and number of devices change them by much less in fp32


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """An intermediate question of a chain, and the model's answer to it."""

    id: str
    question: str
    answer: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Truth:
    """An annotated object.

    Attributes:
        label: class name.
        polygon: x1, y1, ..., x4, y4 in pixels of the original image.
        difficult: whether the annotation marks it as difficult; such objects are neither required nor penalized.
    """

    label: str
    polygon: tuple[float, ...]
    difficult: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prediction:
    """A model's answer to one question, with its ground truth.

    Attributes:
        id: unique id of the question.
        record_id: id of the image.
        task: task of the question, such as `vqa` or `hbb`.
        question_type: type of a VQA question, such as `presence`; "" for other tasks.
        sensor: `optical`, `sar` or `infrared`.
        source: name of the dataset.
        question: text of the question.
        prediction: the model's answer.
        answer: the true answer.
        references: all correct texts of a caption; for other tasks, the answer alone.
        objects: all annotated objects of the image.
        object_index: index into `objects` of the object that a region caption or grounding question is about.
        width, height: size of the original image in pixels; 1 if unknown, with coordinates as fractions.
        box_format: format of the boxes in `prediction`.
        frame: what the coordinates in `prediction` are fractions of (`CoordinateFrame`).
        confidences: one per box of `prediction` that can be parsed; () if unknown.
        synonyms: other correct answers, declared by a benchmark card.
        token_lengths: number of characters of `prediction` in each of its tokens, summing to its length; () if not
            stored.
        logprobs: natural log-probability of each of these tokens given the tokens before it.
        steps: the intermediate questions of an answer that combines several.
        stretch: how the pixels of the image became 8 bits, as in `Record`; "" if it was shown as it is.
    """

    id: str
    record_id: str
    task: str
    question_type: str
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
    frame: str = CoordinateFrame.SQUARE.value
    confidences: tuple[float, ...] = ()
    synonyms: tuple[str, ...] = ()
    token_lengths: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()
    steps: tuple[Step, ...] = ()
    stretch: str = ""

    def check(self) -> Iterator[str]:
        """Yield what cannot be true of a prediction that was read from a file."""
        if self.width < 1 or self.height < 1:
            yield f"width, height: expected at least 1, got {self.width} and {self.height}"
        if self.object_index is not None and not 0 <= self.object_index < len(self.objects):
            yield f"object_index: expected an index into {len(self.objects)} objects, got {self.object_index}"
        for i, item in enumerate(self.objects):
            if len(item.polygon) != 8:
                yield f"objects[{i}].polygon: expected x1, y1, ..., x4, y4, got {len(item.polygon)} numbers"
        if self.frame not in set(CoordinateFrame):
            yield f"frame: expected one of {', '.join(CoordinateFrame)}, got {self.frame!r}"
        if self.token_lengths or self.logprobs:
            yield from self._check_tokens()

    def _check_tokens(self) -> Iterator[str]:
        """Yield why the stored tokens cannot be those of the answer."""
        if len(self.token_lengths) != len(self.logprobs):
            yield f"expected a log-probability for each of {len(self.token_lengths)} tokens, got {len(self.logprobs)}"
        elif min(self.token_lengths) < 0 or sum(self.token_lengths) != len(self.prediction):
            yield (
                f"expected token_lengths that add up to the answer's {len(self.prediction)} characters, got "
                f"{sum(self.token_lengths)}; was the answer edited after its tokens were stored?"
            )
        elif max(self.logprobs) > 0:
            yield f"expected log-probabilities that are finite and not above 0, got {max(self.logprobs)}"

    @classmethod
    def from_answer(
        cls,
        record: Record,
        question: Question,
        prediction: str,
        *,
        token_lengths: Sequence[int] = (),
        logprobs: Sequence[float] = (),
    ) -> Prediction:
        """Build the prediction for an answer to a question about a record.

        Args:
            record: the image and its annotations.
            question: the question and its true answer.
            prediction: the model's answer.
            token_lengths, logprobs: of the answer's tokens. Log-probabilities are rounded; both are dropped unless all
                log-probabilities are finite.
        """
        rounded = tuple(round(float(value), _DECIMALS) + 0.0 for value in logprobs)  # -0.0 becomes 0.0
        keep = len(rounded) > 0 and bool(np.isfinite(rounded).all())
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
            question_type=question.question_type,
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
            stretch=record.stretch,
            box_format=question.box_format,
            # MMRS's boxes are fractions of the padded square, those in JSON of the image.
            frame=(CoordinateFrame.SQUARE if question.box_format == MMRS else CoordinateFrame.IMAGE).value,
            token_lengths=tuple(token_lengths) if keep else (),
            logprobs=rounded if keep else (),
        )

    def with_answer(self, prediction: str, **changes: Any) -> Prediction:
        """Return another answer to the same question, without confidences, tokens and steps unless given."""
        empty: dict[str, Any] = {"confidences": (), "token_lengths": (), "logprobs": (), "steps": ()}
        return dataclasses.replace(self, prediction=prediction, **empty | changes)
