"""Asks a model every question of a set of records, on any number of processes, and writes the answers as they come."""

from __future__ import annotations

import collections
import dataclasses
import enum
import itertools
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from earthgpt_jax.common.digests import sha256
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation import predictions as predictions_lib
from earthgpt_jax.evaluation.files import Files, Process
from earthgpt_jax.evaluation.predictions import WITH_BOXES, Prediction
from earthgpt_jax.inference.engine import Answer, ImageRequests, Request
from earthgpt_jax.input.images import grey_square, load_square
from earthgpt_jax.input.prompts.derived import DerivedTask
from earthgpt_jax.input.prompts.questions import (
    BoxStyle,
    Question,
    build_question,
    evaluation_questions,
    question_indices,
)
from earthgpt_jax.records import UNKNOWN_CLASSES, AnnotatedClasses, Record, Task

# Longest answer of a task, in tokens: boxes take one token a digit.
MAX_NEW_TOKENS: Mapping[str, int] = {
    Task.CLASSIFICATION: 16,
    Task.VQA: 16,
    Task.CAPTION: 64,
    Task.REGION_CAPTION: 48,
    Task.GROUNDING: 48,
    Task.HBB: 256,
    Task.OBB: 448,
    DerivedTask.PRESENCE: 16,
    DerivedTask.COUNT: 16,
    DerivedTask.REGION_CLASS: 16,
    DerivedTask.CLASS_HBB: 256,
    DerivedTask.CLASS_OBB: 448,
    DerivedTask.ABSENT_HBB: 256,
    DerivedTask.ABSENT_OBB: 448,
    DerivedTask.ABSENT_GROUNDING: 48,
}
# Questions about what is not there.
FALSE_PREMISES = (DerivedTask.ABSENT_HBB, DerivedTask.ABSENT_OBB, DerivedTask.ABSENT_GROUNDING)
# And those about what is there and how many, which tell a model that says yes to everything.
DERIVED = (DerivedTask.PRESENCE, DerivedTask.COUNT, *FALSE_PREMISES)


class LogProbs(enum.StrEnum):
    """Whose answers are kept with the log-probabilities of their tokens: those with boxes, all, none."""

    BOXES = "boxes"
    ALL = "all"
    NONE = "none"

    @property
    def tasks(self) -> Collection[str]:
        return {LogProbs.BOXES: WITH_BOXES, LogProbs.ALL: tuple(MAX_NEW_TOKENS), LogProbs.NONE: ()}[self]


_CLASSES = (64, 512)  # answers up to so many tokens are made together


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

    def state_shape(self, scenes: Sequence[ImageRequests]) -> Any: ...

    def stream(self, scenes: Sequence[ImageRequests], *, state_shape: Any) -> Iterator[Answer]: ...


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
    derived: Sequence[DerivedTask] = (),
    annotated: Mapping[str, AnnotatedClasses] | None = None,
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
        box_style = BoxStyle(decimals=decimals)
        classes = (annotated or {}).get(record.source, UNKNOWN_CLASSES)
        everything = evaluation_questions(record, box_style=box_style, tasks=tasks) + tuple(
            build_question(record, kind.value, place, box_style=box_style, annotated=classes)
            for kind in derived
            for place in question_indices(record, kind.value, annotated=classes)
        )
        for task, group in itertools.groupby(everything, key=lambda question: question.task):
            chosen = sorted(group, key=lambda question: sha256(question.id))
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
    process: Process | None = None,
    log_probs: Collection[str] = WITH_BOXES,
) -> list[Prediction]:
    """Answers every question once; what is answered already is kept, what is missing is asked.

    With several processes each calls this with the same arguments, answers the questions about its share of the images
    and writes them as they come (`evaluation.files`); the first one joins the files. All of them see `out`'s folder.

    Args:
        out: predictions file; when it is there, it is whole.
        header: digests of model, data, prompt and decoding; a file with another header, or of other questions, is
            refused.
        label: of the progress bar.
        process: which one this is; default: what `jax.distributed` says.
        log_probs: tasks whose answers are kept with the log-probabilities of their tokens.

    Returns:
        One prediction for each of `asked`, in its order.

    Raises:
        EarthGPTError: `out` is of another model, data or set of questions; a question comes twice; nothing is asked;
            an image cannot be read. What is answered stays, and the same call answers the rest.
    """
    process = process or Process.this()
    with process.together("looking for what is answered already"):
        _check(asked, out)
        digest = predictions_lib.digest((item.question.id, item.question.text, item.question.answer) for item in asked)
        limits = {task: MAX_NEW_TOKENS[task] for task in sorted({item.question.task for item in asked})}
        files = Files(out=out, header={**header, "limits": limits, "asked": digest})
        done = files.answered()
    process.agree(files.header)
    by_id = {item.question.id: item for item in asked}
    with process.together("answering"):
        own = [group for number, group in enumerate(_by_image(asked)) if number % process.count == process.index]
        total = sum(map(len, own))
        missing = sum(item.question.id not in done for group in own for item in group)
        if missing:
            with files.append_to(process) as file, tqdm(
                total=total, initial=total - missing, desc=label, unit="question", disable=not process.leads
            ) as bar:  # fmt: skip
                for answer in _answers(answerer, asked, own=own, done=done, view=view):
                    item = by_id[answer.id]
                    file.write(predictions_lib.to_line(_prediction(item, answer, log_probs)))
                    file.flush()
                    bar.update()
    with process.together("joining the answers"):
        if process.leads:
            files.join(sorted(by_id))
    done = files.answered()
    return [done[item.question.id] for item in asked]


def _prediction(item: Asked, answer: Answer, log_probs: Collection[str]) -> Prediction:
    kept = answer.token_lengths if item.question.task in log_probs else ()
    return Prediction.of(
        item.record, item.question, answer.text, token_lengths=kept, logprobs=answer.logprobs[: len(kept)].tolist()
    )


def _answers(
    answerer: Answerer,
    asked: Sequence[Asked],
    *,
    own: Sequence[Sequence[Asked]],
    done: Collection[str],
    view: View,
) -> Iterator[Answer]:
    """Of what is missing of `own`: short answers first, then long ones, which need more memory each.

    Sizes are chosen by all that is asked, so that they are the same for any part of it.
    """
    for at_most in sorted({_class(item) for item in asked}):

        def scenes(groups: Iterable[Sequence[Asked]], at_most: int = at_most) -> list[ImageRequests]:
            chosen = ([item for item in group if _class(item) == at_most] for group in groups)
            return [_scene(group, size=answerer.image_size, view=view) for group in chosen if group]

        missing = scenes([[item for item in group if item.question.id not in done] for group in own])
        if missing:
            yield from answerer.stream(missing, state_shape=answerer.state_shape(scenes(_by_image(asked))))


def _class(item: Asked) -> int:
    limit = MAX_NEW_TOKENS[item.question.task]
    return next(at_most for at_most in _CLASSES if limit <= at_most)


def _scene(group: Sequence[Asked], *, size: int, view: View) -> ImageRequests:
    record = group[0].record
    return ImageRequests(
        image=lambda: _image(record, size, view),
        requests=[
            Request(id=item.question.id, text=item.question.text, max_new_tokens=MAX_NEW_TOKENS[item.question.task])
            for item in group
        ],
    )


def _by_image(asked: Sequence[Asked]) -> list[list[Asked]]:
    """Sorted by id, whatever the order."""
    groups: dict[str, list[Asked]] = collections.defaultdict(list)
    for item in sorted(asked, key=lambda item: item.question.id):
        groups[item.record.id].append(item)
    return [groups[name] for name in sorted(groups)]


def _check(asked: Sequence[Asked], out: Path) -> None:
    if not asked:
        raise EarthGPTError(f"{out}: nothing to ask; the records have no question of the chosen tasks")
    twice = [name for name, count in collections.Counter(item.question.id for item in asked).items() if count > 1]
    if twice:
        raise EarthGPTError(
            f"{out}: {len(twice)} question ids come more than once, the first is {twice[0]}; "
            "was the same dataset given twice?"
        )


def _image(record: Record, size: int, view: View) -> np.ndarray:
    if view is View.GREY:
        return grey_square(size)
    try:
        return load_square(record.image, size)
    except EarthGPTError as error:
        raise EarthGPTError(f"record {record.id}: {error}") from error
