"""Ask a model every question, on any number of processes, and write the answers as they arrive."""

from __future__ import annotations

import collections
import enum
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.evaluation import predictions_file
from earthgpt_jax.evaluation.part_files import PartFiles
from earthgpt_jax.evaluation.predictions import BOX_TASKS, Prediction
from earthgpt_jax.evaluation.questions import MAX_NEW_TOKENS, Example
from earthgpt_jax.inference.processes import Process
from earthgpt_jax.inference.requests import Answer, ImageRequests, Request
from earthgpt_jax.input.images import grey_square, load_square
from earthgpt_jax.records import Record


class LogProbs(enum.StrEnum):
    """Which answers are stored with the log-probabilities of their tokens: those with boxes, all, or none."""

    BOXES = "boxes"
    ALL = "all"
    NONE = "none"

    @property
    def tasks(self) -> Collection[str]:
        """The tasks whose answers are stored with log-probabilities."""
        return {LogProbs.BOXES: BOX_TASKS, LogProbs.ALL: tuple(MAX_NEW_TOKENS), LogProbs.NONE: ()}[self]


# Answers are generated in groups of similar maximum length, since long answers need more memory: up to 64 tokens, then
# up to 512.
_LENGTH_GROUPS = (64, 512)


class View(enum.StrEnum):
    """What the model sees: the image, or a uniform grey square (the blind baseline)."""

    IMAGE = "image"
    BLIND = "blind"


class Answerer(Protocol):
    """The part of `inference.engine.Engine` that an evaluation uses."""

    @property
    def image_size(self) -> int: ...

    @property
    def decimals(self) -> int: ...

    def state_shape(self, images: Sequence[ImageRequests]) -> Any: ...

    def stream(self, images: Sequence[ImageRequests], *, state_shape: Any) -> Iterator[Answer]: ...


def evaluate(
    answerer: Answerer,
    examples: Sequence[Example],
    *,
    out: Path,
    header: Mapping[str, Any],
    view: View,
    label: str,
    process: Process | None = None,
    log_probs: Collection[str] = BOX_TASKS,
) -> list[Prediction]:
    """Answer every question once; answers that `out` or its part files already hold are kept.

    With several processes, all of them call this function with the same arguments. Each answers the questions about its
    share of the images and writes its own part file (see `part_files`); the main process joins the parts. All
    processes must see the folder of `out`.

    Args:
        answerer: the model.
        examples: the questions.
        out: predictions file; once it exists, it is complete.
        header: digests of model, data, prompt and decoding. A file with another header, or with answers to other
            questions, is refused.
        view: what the model sees.
        label: description of the progress bar.
        process: which process this is; default: as `jax.distributed` says.
        log_probs: tasks whose answers are stored with the log-probabilities of their tokens.

    Returns:
        One prediction per example, in the order of `examples`.

    Raises:
        EarthGPTError: there is nothing to ask; two questions have the same id; `out` belongs to another model, dataset
            or set of questions; an image cannot be decoded. Answers written so far are kept, and the same call
            answers the rest.
    """
    process = process or Process.current()
    with process.synchronized("looking for existing answers"):
        _check(examples, out)
        unanswered = [Prediction.from_answer(item.record, item.question, "") for item in examples]
        digests = {
            "questions_digest": predictions_file.digest(unanswered),
            "truth_digest": predictions_file.truth_digest(unanswered),
        }
        limits = {task: MAX_NEW_TOKENS[task] for task in sorted({item.question.task for item in examples})}
        files = PartFiles(out=out, header={**header, "max_new_tokens": limits, **digests})
        answered = files.answered()
    process.check_consistent(files.header)
    by_id = {item.question.id: item for item in examples}
    with process.synchronized("answering"):
        share = share_of(examples, index=process.index, count=process.count)
        total = sum(map(len, share))
        missing = sum(item.question.id not in answered for group in share for item in group)
        if missing:
            with files.append_to(process) as file, Bar(
                total=total, initial=total - missing, desc=label, unit="question", disable=not process.is_main
            ) as bar:  # fmt: skip
                for answer in answers(answerer, examples, share=share, answered=answered, view=view):
                    item = by_id[answer.id]
                    file.write(predictions_file.to_line(_prediction(item, answer, log_probs)))
                    file.flush()
                    bar.update()
    with process.synchronized("joining the answers"):
        if process.is_main:
            files.join(sorted(by_id))
    answered = files.answered()
    return [answered[item.question.id] for item in examples]


def _prediction(item: Example, answer: Answer, log_probs: Collection[str]) -> Prediction:
    lengths = answer.token_lengths if item.question.task in log_probs else ()
    return Prediction.from_answer(
        item.record,
        item.question,
        answer.text,
        token_lengths=lengths,
        logprobs=answer.logprobs[: len(lengths)].tolist(),
    )


def share_of(examples: Sequence[Example], *, index: int, count: int) -> list[list[Example]]:
    """Return the questions of process `index` out of `count`, grouped by image."""
    return _by_image(examples)[index::count]


def answers(
    answerer: Answerer,
    examples: Sequence[Example],
    *,
    share: Sequence[Sequence[Example]],
    answered: Collection[str] = (),
    view: View = View.IMAGE,
) -> Iterator[Answer]:
    """Answer the missing questions of this process's share: short answers first, then long ones.

    The shape of the decoding state is chosen from all examples, so that it is the same for any subset of them and any
    number of processes.

    Args:
        answerer: the model.
        examples: the questions of all processes.
        share: those of this process, see `share_of`.
        answered: ids of questions that are answered already.
        view: what the model sees.
    """
    for max_length in sorted({_length_group(item) for item in examples}):

        def image_requests(groups: Iterable[Sequence[Example]], max_length: int = max_length) -> list[ImageRequests]:
            chosen = ([item for item in group if _length_group(item) == max_length] for group in groups)
            return [_image_requests(group, size=answerer.image_size, view=view) for group in chosen if group]

        missing = image_requests([[item for item in group if item.question.id not in answered] for group in share])
        if missing:
            yield from answerer.stream(missing, state_shape=answerer.state_shape(image_requests(_by_image(examples))))


def _length_group(item: Example) -> int:
    limit = MAX_NEW_TOKENS[item.question.task]
    return next(max_length for max_length in _LENGTH_GROUPS if limit <= max_length)


def _image_requests(group: Sequence[Example], *, size: int, view: View) -> ImageRequests:
    record = group[0].record
    return ImageRequests(
        image=lambda: _image(record, size, view),
        requests=[
            Request(id=item.question.id, text=item.question.text, max_new_tokens=MAX_NEW_TOKENS[item.question.task])
            for item in group
        ],
    )


def _by_image(examples: Sequence[Example]) -> list[list[Example]]:
    """Group the questions by image; images and questions are sorted by id, so the input order does not matter."""
    groups: dict[str, list[Example]] = collections.defaultdict(list)
    for item in sorted(examples, key=lambda item: item.question.id):
        groups[item.record.id].append(item)
    return [groups[name] for name in sorted(groups)]


def _check(examples: Sequence[Example], out: Path) -> None:
    if not examples:
        raise EarthGPTError(f"{out}: nothing to ask; the records have no question of the chosen tasks")
    ids = collections.Counter(item.question.id for item in examples)
    duplicates = [name for name, count in ids.items() if count > 1]
    if duplicates:
        raise EarthGPTError(
            f"{out}: {len(duplicates)} question ids are not unique, the first is {duplicates[0]}; was the same dataset "
            "given twice?"
        )


def _image(record: Record, size: int, view: View) -> np.ndarray:
    if view is View.BLIND:
        return grey_square(size)
    try:
        return load_square(record.image, size, record.stretch)
    except EarthGPTError as error:
        raise EarthGPTError(f"record {record.id}: {error}") from error
