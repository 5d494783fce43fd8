"""Detection by a chain of questions: what is in the image, where is it, and is that really it.

1. what: for each class that the dataset annotates, is there one in the image (`presence`)?
2. where: the boxes of the classes that are present; boxes of other classes are dropped.
3. verify: what is in each box? A box is kept if the answer is its own class.

A model can only answer tasks that it was trained on, so a `Protocol` chooses the tasks of steps 2 and 3. EarthGPT's own
prompts are not public; both protocols are this project's. The chain names the dataset's classes, which the direct
question does not, so chained and direct detection are scored as separate tasks.

The confidence of a box is the product of its token confidence, the probability of the answer `yes` to the presence
question, and the probability of the tokens that name its class in the answer of the verification.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earthgpt_jax.boxes import BoxKind, ParsedBox, Square, detection_sentence, format_boxes, plural
from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.evaluation import confidence, predictions_file, runner
from earthgpt_jax.evaluation.metrics.classification import normalize
from earthgpt_jax.evaluation.metrics.parsed_boxes import parse_answer
from earthgpt_jax.evaluation.predictions import DETECTION_TASKS, ChainedTask, Prediction, Step
from earthgpt_jax.evaluation.questions import Example
from earthgpt_jax.evaluation.runner import Answerer, LogProbs, View
from earthgpt_jax.inference.processes import Process
from earthgpt_jax.input.prompts.derived import DerivedTask
from earthgpt_jax.input.prompts.questions import BoxStyle, Question, build_question, question_indices
from earthgpt_jax.input.prompts.templates import choose_template
from earthgpt_jax.records import UNKNOWN_CLASSES, AnnotatedClasses, Record, Task


class Protocol(enum.StrEnum):
    """Which tasks steps 2 and 3 use.

    MMRS: the tasks of MMRS-1M. One question asks for the boxes of all objects; the description of each box must name
    its class. CLASSES: the tasks derived from boxes (`input.prompts.derived`). One question per class asks for its
    boxes; a second question asks for the class of each box.
    """

    MMRS = "mmrs"
    CLASSES = "classes"


class ChainStep(enum.StrEnum):
    """The steps of the chain, in order."""

    WHAT = "what"
    WHERE = "where"
    VERIFY = "verify"


_DIRECT: Mapping[ChainedTask, Task] = {ChainedTask.HBB: Task.HBB, ChainedTask.OBB: Task.OBB}
_WHERE_TASKS: Mapping[Protocol, Mapping[ChainedTask, str]] = {
    Protocol.MMRS: _DIRECT,
    Protocol.CLASSES: {ChainedTask.HBB: DerivedTask.CLASS_HBB, ChainedTask.OBB: DerivedTask.CLASS_OBB},
}
_VERIFY_TASKS: Mapping[Protocol, str] = {Protocol.MMRS: Task.REGION_CAPTION, Protocol.CLASSES: DerivedTask.REGION_CLASS}
_ALL = "all"  # in question ids: the question asks for all classes at once


_Answers = dict[str, dict[str, Prediction]]  # record id -> question id -> answer


def detect(
    answerer: Answerer,
    records: Sequence[Record],
    *,
    tasks: Sequence[ChainedTask],
    protocol: Protocol,
    annotated: Mapping[str, AnnotatedClasses],
    out: Path,
    header: Mapping[str, Any],
    view: View,
    label: str,
    process: Process | None = None,
) -> list[Prediction]:
    """Detect the objects of all records, step by step; existing answers are kept (see `runner.evaluate`).

    Args:
        answerer: the model.
        records: the images.
        tasks: chained tasks; a task is skipped for records that have no ground truth for it.
        protocol: which tasks steps 2 and 3 use.
        annotated: source -> its annotated classes.
        out: predictions file, with one answer per image and task, and all intermediate questions in its `steps`. The
            file of each step is `chained/<stem>-<step>.jsonl` in the same folder.
        header, view, label, process: see `runner.evaluate`.

    Returns:
        One prediction per image and task.

    Raises:
        EarthGPTError: no record has boxes, or the annotated classes of a source are unknown.
    """
    process = process or Process.current()
    header = {**header, "chained": protocol.value}
    chains = [
        _Chain(record, task, protocol, _direct_question(record, task, answerer.decimals), answerer.decimals)
        for record in records
        for task in tasks
        if question_indices(record, _DIRECT[task].value)
    ]
    if not chains:
        raise EarthGPTError(f"{out}: nothing to ask; no record has boxes for {', '.join(tasks)}")

    def answers(step: ChainStep, examples: Iterator[Example]) -> _Answers:
        unique = {item.question.id: item for item in examples}
        if not unique:
            return {}
        path = out.parent / "chained" / f"{out.stem}-{step}.jsonl"
        predictions = runner.evaluate(
            answerer, list(unique.values()), out=path, header={**header, "step": step.value}, view=view,
            label=f"{label}, {step}", process=process, log_probs=LogProbs.ALL.tasks,
        )  # fmt: skip
        groups: _Answers = collections.defaultdict(dict)
        for p in predictions:
            groups[p.record_id][p.id] = p
        return groups

    def of(groups: _Answers, chain: _Chain) -> dict[str, Prediction]:
        return groups.get(chain.record.id, {})

    what = answers(ChainStep.WHAT, (item for c in chains for item in c.what_examples(_classes(c.record, annotated))))
    where = answers(ChainStep.WHERE, (item for c in chains for item in c.where_examples(of(what, c))))
    verify = answers(ChainStep.VERIFY, (item for c in chains for item in c.verify_examples(of(what, c), of(where, c))))
    results = [c.answer(of(what, c), of(where, c), of(verify, c)) for c in chains]
    with process.synchronized("writing the chained answers"):
        if process.is_main:
            predictions_file.write(out, results, header={**header, "tasks": [task.value for task in tasks]})
    return results


def as_chained(predictions: Sequence[Prediction], tasks: Sequence[ChainedTask]) -> list[Prediction]:
    """Return a baseline's answers to direct questions as answers to chained ones: it does not depend on the prompt."""
    chained = {_DIRECT[task].value: task for task in tasks}
    return [
        dataclasses.replace(p, id=_id(p.record_id, chained[p.task]), task=chained[p.task].value)
        for p in predictions
        if p.task in chained
    ]


def _id(record_id: str, task: ChainedTask) -> str:
    return f"{record_id}#{task}#0"


def _direct_question(record: Record, task: ChainedTask, decimals: int) -> Question:
    """Return the direct question, for its ground truth, with the id and name of the chained task."""
    question = build_question(record, _DIRECT[task].value, 0, box_style=BoxStyle(decimals=decimals))
    return dataclasses.replace(question, id=_id(record.id, task), task=task.value)


def _classes(record: Record, annotated: Mapping[str, AnnotatedClasses]) -> list[str]:
    classes = sorted(annotated.get(record.source, UNKNOWN_CLASSES).shares)
    if not classes:
        raise EarthGPTError(
            f"chained detection asks about each class that a dataset annotates, but {record.source} does not record "
            "its classes; build it again with `earthgpt data build`, or evaluate without --chained"
        )
    return classes


@dataclasses.dataclass(frozen=True)
class _Chain:
    """The questions about one image for one chained task; each step depends on the answers to the previous one."""

    record: Record
    task: ChainedTask
    protocol: Protocol
    direct: Question
    decimals: int

    def _example(self, step: ChainStep, task: str, name: str, **fields: str) -> Example:
        # Presence does not depend on the kind of boxes, so both chained tasks share the question.
        owner = "chained" if step is ChainStep.WHAT else self.task.value
        question = Question(
            id=f"{self.record.id}#{owner}/{step}#{name}", record_id=self.record.id, task=str(task), question_type="",
            text=choose_template(str(task), None).text.format(**fields), answer="", references=("",),
        )  # fmt: skip
        return Example(self.record, question)

    def what_examples(self, classes: Sequence[str]) -> Iterator[Example]:
        """Yield one question per class."""
        for label in classes:
            yield self._example(ChainStep.WHAT, DerivedTask.PRESENCE, label, label=label, plural=plural(label))

    def _present(self, what: Mapping[str, Prediction]) -> dict[str, Prediction]:
        """Return the classes that are present, each with the answer that says so."""
        prefix = f"{self.record.id}#chained/{ChainStep.WHAT}#"
        return {name.removeprefix(prefix): what[name] for name in sorted(what)
                if normalize(what[name].prediction) == "yes"}  # fmt: skip

    def _where(self, what: Mapping[str, Prediction]) -> Iterator[tuple[Example, list[str]]]:
        """Yield each question of step 2 with the classes whose boxes are kept from its answer."""
        task, present = _WHERE_TASKS[self.protocol][self.task], list(self._present(what))
        if self.protocol is Protocol.CLASSES:
            for label in present:
                yield self._example(ChainStep.WHERE, task, label, label=label, plural=plural(label)), [label]
        elif present:
            yield self._example(ChainStep.WHERE, task, _ALL), present

    def where_examples(self, what: Mapping[str, Prediction]) -> Iterator[Example]:
        """Yield the questions of step 2."""
        return (example for example, _ in self._where(what))

    def _boxes(
        self, located: Prediction, labels: Sequence[str]
    ) -> Iterator[tuple[str, ParsedBox, float | None, Example]]:
        """Yield (class, box, token confidence, verification question) of the boxes of the right kind and classes."""
        confidences, square = confidence.token_confidences(located), Square(self.record.width, self.record.height)
        names = {normalize(label): label for label in labels}
        for index, box in enumerate(parse_answer(located).boxes):
            label = names.get(normalize(box.label)) if box.label or len(labels) > 1 else labels[0]
            if box.kind is DETECTION_TASKS[self.task] and label is not None:
                hbb = format_boxes([box.pixels(square)], square=square, decimals=self.decimals, kind=BoxKind.HBB)
                example = self._example(ChainStep.VERIFY, _VERIFY_TASKS[self.protocol], f"{label}#{index}", box=hbb)
                yield label, box, None if confidences is None else confidences[index], example

    def verify_examples(self, what: Mapping[str, Prediction], where: Mapping[str, Prediction]) -> Iterator[Example]:
        """Yield one question per box."""
        for example, labels in self._where(what):
            yield from (verification for *_, verification in self._boxes(where[example.question.id], labels))

    def answer(
        self,
        what: Mapping[str, Prediction],
        where: Mapping[str, Prediction],
        verify: Mapping[str, Prediction],
    ) -> Prediction:
        """Combine the steps into an answer in the form of a direct one.

        A box that could not be parsed stays in the answer as one that cannot be parsed: `[?]`.
        """
        present = self._present(what)
        kept: dict[str, list[tuple[str, float | None]]] = collections.defaultdict(list)
        steps, unparsed = [what[name] for name in sorted(what)], 0
        for example, labels in self._where(what):
            boxes = where[example.question.id]
            steps.append(boxes)
            unparsed += len(parse_answer(boxes).rejections)
            for label, box, token_confidence, verification in self._boxes(boxes, labels):
                verdict = verify[verification.question.id]
                steps.append(verdict)
                if (span := self._class_span(verdict.prediction, label)) is not None:
                    factors = [
                        token_confidence,
                        confidence.answer_probability(present[label]),
                        confidence.answer_probability(verdict, span),
                    ]
                    known = [value for value in factors if value is not None]
                    text = boxes.prediction[slice(*box.span)].strip()
                    kept[label].append((text, float(np.prod(known)) if len(known) == len(factors) else None))
        text = detection_sentence({
            label: (len(boxes), f"[{';'.join(text for text, _ in boxes)}]") for label, boxes in kept.items()
        })  # fmt: skip
        confidences = [value for label in sorted(kept) for _, value in kept[label]]
        known_confidences = [value for value in confidences if value is not None]
        return dataclasses.replace(
            Prediction.from_answer(self.record, self.direct, text + " [?]" * unparsed),
            confidences=tuple(known_confidences) if len(known_confidences) == len(confidences) else (),
            steps=tuple(Step(id=p.id, question=p.question, answer=p.prediction) for p in steps),
        )

    def _class_span(self, text: str, label: str) -> tuple[int, int] | None:
        """Return the characters (start, end) of an answer that name the class; None if it does not."""
        if self.protocol is Protocol.CLASSES:
            return (0, len(text)) if normalize(text) == normalize(label) else None
        words = r"[\s_-]+".join(map(re.escape, normalize(label).split()))
        found = re.search(rf"(?<!\w){words}(?!\w)", text.lower())
        return found.span() if found else None
