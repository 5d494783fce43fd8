"""Detection by chained questions: what is in the image, where is it, and is it that.

1. what: of each class that the dataset annotates, whether there is one (`presence`);
2. where: the boxes of what there is; others are left out;
3. verify: of each box, what is in it; a box stays if that is its own class.

The kinds of question of the last two are a `Protocol`, since a model answers only to those that it was trained on.
EarthGPT's own prompts are not public: both protocols are this project's. The model is told the dataset's classes, which
the direct question does not do; the two are scored as two tasks.

A box's confidence is that of its tokens, times the probability of the answer that its class is there, times that of
the tokens which name its class in the answer about the box.
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
from earthgpt_jax.evaluation import confidence, runner
from earthgpt_jax.evaluation import predictions as predictions_lib
from earthgpt_jax.evaluation.files import Process
from earthgpt_jax.evaluation.metrics.classification import normalise
from earthgpt_jax.evaluation.metrics.parsed_boxes import boxes_of
from earthgpt_jax.evaluation.predictions import DETECTION, Chained, Prediction, Step
from earthgpt_jax.evaluation.runner import Answerer, Asked, LogProbs, View
from earthgpt_jax.input.prompts.derived import DerivedTask
from earthgpt_jax.input.prompts.questions import BoxStyle, Question, build_question, question_indices
from earthgpt_jax.input.prompts.templates import choose_template
from earthgpt_jax.records import UNKNOWN_CLASSES, AnnotatedClasses, Record, Task


class Protocol(enum.StrEnum):
    """In which kinds of question the chain is asked.

    MMRS: those of MMRS-1M. The boxes of all objects are asked for once, and each box's short description must name its
    class. CLASSES: those derived from boxes (`input.prompts.derived`). The boxes of each class are asked for by
    themselves, and each box's class is asked for.
    """

    MMRS = "mmrs"
    CLASSES = "classes"


class Link(enum.StrEnum):
    WHAT = "what"
    WHERE = "where"
    VERIFY = "verify"


_DIRECT: Mapping[Chained, Task] = {Chained.HBB: Task.HBB, Chained.OBB: Task.OBB}
_WHERE: Mapping[Protocol, Mapping[Chained, str]] = {
    Protocol.MMRS: _DIRECT,
    Protocol.CLASSES: {Chained.HBB: DerivedTask.CLASS_HBB, Chained.OBB: DerivedTask.CLASS_OBB},
}
_VERIFY: Mapping[Protocol, str] = {Protocol.MMRS: Task.REGION_CAPTION, Protocol.CLASSES: DerivedTask.REGION_CLASS}
_ALL = "all"  # stands for the classes that are asked for together


_Answers = dict[str, dict[str, Prediction]]  # record -> question -> its answer


def detect(
    answerer: Answerer,
    records: Sequence[Record],
    *,
    kinds: Sequence[Chained],
    protocol: Protocol,
    annotated: Mapping[str, AnnotatedClasses],
    out: Path,
    header: Mapping[str, Any],
    view: View,
    label: str,
    process: Process | None = None,
) -> list[Prediction]:
    """Asks all records step by step; what is answered already is kept (`runner.evaluate`).

    Args:
        kinds: of detection; those that a record has no truth for are not asked of it.
        annotated: source -> its classes.
        out: predictions file, an answer an image and kind with all that was asked for it in its `steps`. Each step's
            own file is `<stem>-<step>.jsonl` in the folder `chained` beside it.

    Raises:
        EarthGPTError: no record has boxes, or it is not known which classes its source annotates.
    """
    process = process or Process.this()
    about = {**header, "chained": protocol.value}
    asked = [
        _Chain(record, kind, protocol, _direct(record, kind, answerer.decimals), answerer.decimals)
        for record in records
        for kind in kinds
        if question_indices(record, _DIRECT[kind].value)
    ]
    if not asked:
        raise EarthGPTError(f"{out}: nothing to ask; no record has boxes of {', '.join(kinds)}")

    def answers(link: Link, questions: Iterator[Asked]) -> _Answers:
        unique = {item.question.id: item for item in questions}
        if not unique:
            return {}
        path = out.parent / "chained" / f"{out.stem}-{link}.jsonl"
        found = runner.evaluate(
            answerer, list(unique.values()), out=path, header={**about, "step": link.value}, view=view,
            label=f"{label}, {link}", process=process, log_probs=LogProbs.ALL.tasks,
        )  # fmt: skip
        groups: _Answers = collections.defaultdict(dict)
        for p in found:
            groups[p.record_id][p.id] = p
        return groups

    def of(given: _Answers, chain: _Chain) -> dict[str, Prediction]:
        return given.get(chain.record.id, {})

    what = answers(Link.WHAT, (item for chain in asked for item in chain.what(_classes(chain.record, annotated))))
    where = answers(Link.WHERE, (item for chain in asked for item in chain.where(of(what, chain))))
    verify = answers(Link.VERIFY, (item for chain in asked for item in chain.verify(of(what, chain), of(where, chain))))
    made = [chain.answer(of(what, chain), of(where, chain), of(verify, chain)) for chain in asked]
    with process.together("writing what the chains found"):
        if process.leads:
            predictions_lib.write(out, made, header={**about, "kinds": [kind.value for kind in kinds]})
    return made


def alike(predictions: Sequence[Prediction], kinds: Sequence[Chained]) -> list[Prediction]:
    """A baseline's answers to the direct questions, as ones to the chained: it looks at nothing, whatever is asked."""
    names = {_DIRECT[kind].value: kind for kind in kinds}
    return [
        dataclasses.replace(p, id=_id(p.record_id, names[p.task]), task=names[p.task].value)
        for p in predictions
        if p.task in names
    ]


def _id(record_id: str, kind: Chained) -> str:
    return f"{record_id}#{kind}#0"


def _direct(record: Record, kind: Chained, decimals: int) -> Question:
    """The direct question, for its truth, under the chain's name."""
    question = build_question(record, _DIRECT[kind].value, 0, box_style=BoxStyle(decimals=decimals))
    return dataclasses.replace(question, id=_id(record.id, kind), task=kind.value)


def _classes(record: Record, annotated: Mapping[str, AnnotatedClasses]) -> list[str]:
    classes = sorted(annotated.get(record.source, UNKNOWN_CLASSES).shares)
    if not classes:
        raise EarthGPTError(
            f"chained detection asks for each class that a dataset annotates, which {record.source} does not tell; "
            "build it anew with `earthgpt data build`, or ask it the direct question only"
        )
    return classes


@dataclasses.dataclass(frozen=True)
class _Chain:
    """One image's questions about one kind of boxes; each step's follow from the answers to the one before."""

    record: Record
    kind: Chained
    protocol: Protocol
    direct: Question
    decimals: int

    def _asked(self, link: Link, kind: str, name: str, **fields: str) -> Asked:
        # What is there is the same question for both kinds of boxes, and asked once.
        whose = "chained" if link is Link.WHAT else self.kind.value
        question = Question(
            id=f"{self.record.id}#{whose}/{link}#{name}", record_id=self.record.id, task=str(kind), question_type="",
            text=choose_template(str(kind), None).format(**fields), answer="", references=("",),
        )  # fmt: skip
        return Asked(self.record, question)

    def what(self, classes: Sequence[str]) -> Iterator[Asked]:
        for label in classes:
            yield self._asked(Link.WHAT, DerivedTask.PRESENCE, label, label=label, plural=plural(label))

    def _present(self, what: Mapping[str, Prediction]) -> dict[str, Prediction]:
        """Class -> the answer that it is there."""
        start = f"{self.record.id}#chained/{Link.WHAT}#"
        return {name.removeprefix(start): what[name] for name in sorted(what)
                if normalise(what[name].prediction) == "yes"}  # fmt: skip

    def _wheres(self, what: Mapping[str, Prediction]) -> Iterator[tuple[Asked, list[str]]]:
        """A question and the classes whose boxes are taken from its answer."""
        kind, present = _WHERE[self.protocol][self.kind], list(self._present(what))
        if self.protocol is Protocol.CLASSES:
            for label in present:
                yield self._asked(Link.WHERE, kind, label, label=label, plural=plural(label)), [label]
        elif present:
            yield self._asked(Link.WHERE, kind, _ALL), present

    def where(self, what: Mapping[str, Prediction]) -> Iterator[Asked]:
        return (asked for asked, _ in self._wheres(what))

    def _found(
        self, answered: Prediction, labels: Sequence[str]
    ) -> Iterator[tuple[str, ParsedBox, float | None, Asked]]:
        """(class, box, its own confidence, the question about it) of the boxes of the kind and classes asked for."""
        sure, square = confidence.of_tokens(answered), Square(self.record.width, self.record.height)
        names = {normalise(label): label for label in labels}
        for place, box in enumerate(boxes_of(answered).boxes):
            label = names.get(normalise(box.label)) if box.label or len(labels) > 1 else labels[0]
            if box.kind is DETECTION[self.kind] and label is not None:
                upright = format_boxes([box.pixels(square)], square=square, decimals=self.decimals, kind=BoxKind.HBB)
                asked = self._asked(Link.VERIFY, _VERIFY[self.protocol], f"{label}#{place}", box=upright)
                yield label, box, None if sure is None else sure[place], asked

    def verify(self, what: Mapping[str, Prediction], where: Mapping[str, Prediction]) -> Iterator[Asked]:
        for asked, labels in self._wheres(what):
            yield from (question for *_, question in self._found(where[asked.question.id], labels))

    def answer(
        self, what: Mapping[str, Prediction], where: Mapping[str, Prediction], verify: Mapping[str, Prediction]
    ) -> Prediction:
        """What is left, in the form of a direct answer; a box that could not be read stays as one: `[?]`."""
        present = self._present(what)
        kept: dict[str, list[tuple[str, float | None]]] = collections.defaultdict(list)
        steps, unread = [what[name] for name in sorted(what)], 0
        for asked, labels in self._wheres(what):
            found = where[asked.question.id]
            steps.append(found)
            unread += len(boxes_of(found).rejections)
            for label, box, sure, question in self._found(found, labels):
                said = verify[question.question.id]
                steps.append(said)
                if (named := self._names(said.prediction, label)) is not None:
                    parts = [sure, confidence.probability(present[label]), confidence.probability(said, named)]
                    known = [value for value in parts if value is not None]
                    text = found.prediction[slice(*box.span)].strip()
                    kept[label].append((text, float(np.prod(known)) if len(known) == len(parts) else None))
        text = detection_sentence({
            label: (len(boxes), f"[{';'.join(text for text, _ in boxes)}]") for label, boxes in kept.items()
        })  # fmt: skip
        confidences = [value for label in sorted(kept) for _, value in kept[label]]
        sure_of = [value for value in confidences if value is not None]
        return dataclasses.replace(
            Prediction.of(self.record, self.direct, text + " [?]" * unread),
            confidences=tuple(sure_of) if len(sure_of) == len(confidences) else (),
            steps=tuple(Step(id=p.id, question=p.question, answer=p.prediction) for p in steps),
        )

    def _names(self, said: str, label: str) -> tuple[int, int] | None:
        """Where the answer names the class, `(start, end)`; None where it does not."""
        if self.protocol is Protocol.CLASSES:
            return (0, len(said)) if normalise(said) == normalise(label) else None
        words = r"[\s_-]+".join(map(re.escape, normalise(label).split()))
        found = re.search(rf"(?<!\w){words}(?!\w)", said.lower())
        return found.span() if found else None
