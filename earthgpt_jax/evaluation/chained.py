"""Detection by chained questions: what is in the image, where is each of it, and is it that.

1. what: of each class that the dataset annotates, whether there is one (`presence`);
2. where: of each class that there is, its boxes (`class_hbb`, `class_obb`); boxes of other classes are left to theirs;
3. verify: of each box, which class is in it (`region_class`); a box stays if that is its own.

The wordings are those that a model is trained on. EarthGPT's prompts are not public: the protocol is this project's.
The model is told the dataset's classes, which the direct question does not do; the two are scored as two tasks.

A box's confidence is that of its tokens, times the probability of the answer that its class is there, times that of
the answer which class is in it.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from earthgpt_jax.errors import EarthGPTError
from earthgpt_jax.evaluation import confidence, runner
from earthgpt_jax.evaluation import predictions as predictions_lib
from earthgpt_jax.evaluation.metrics.classification import normalise
from earthgpt_jax.evaluation.metrics.reading import boxes_of
from earthgpt_jax.evaluation.predictions import DETECTION, Chained, Prediction, Step
from earthgpt_jax.evaluation.runner import Answerer, Asked, View
from earthgpt_jax.evaluation.shards import Process
from earthgpt_jax.geometry import BoxKind, ParsedBox, Square, detection_sentence, format_boxes, plural
from earthgpt_jax.input.derived import Derived
from earthgpt_jax.input.questions import Grammar, Question, ask, candidates
from earthgpt_jax.input.templates import choose
from earthgpt_jax.mmrs.record import UNKNOWN, Annotated, Record, Task


class Link(enum.StrEnum):
    WHAT = "what"
    WHERE = "where"
    VERIFY = "verify"


_DIRECT: Mapping[Chained, Task] = {Chained.HBB: Task.HBB, Chained.OBB: Task.OBB}
_WHERE: Mapping[Chained, Derived] = {Chained.HBB: Derived.CLASS_HBB, Chained.OBB: Derived.CLASS_OBB}
# Answers whose log-probabilities make a box's confidence.
_LOG_PROBS = (Derived.PRESENCE, *_WHERE.values(), Derived.REGION_CLASS)


_Answers = dict[str, dict[str, Prediction]]  # record -> question -> its answer


def detect(
    answerer: Answerer,
    records: Sequence[Record],
    *,
    kinds: Sequence[Chained],
    annotated: Mapping[str, Annotated],
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
    asked = [
        _Chain(record, kind, _direct(record, kind, answerer.decimals), answerer.decimals)
        for record in records
        for kind in kinds
        if candidates(record, _DIRECT[kind].value)
    ]
    if not asked:
        raise EarthGPTError(f"{out}: nothing to ask; no record has boxes of {', '.join(kinds)}")

    def answers(link: Link, questions: Iterator[Asked]) -> _Answers:
        unique = {item.question.id: item for item in questions}
        if not unique:
            return {}
        path = out.parent / "chained" / f"{out.stem}-{link}.jsonl"
        found = runner.evaluate(
            answerer, list(unique.values()), out=path, header={**header, "step": link.value}, view=view,
            label=f"{label}, {link}", process=process, log_probs=_LOG_PROBS,
        )  # fmt: skip
        groups: _Answers = collections.defaultdict(dict)
        for p in found:
            groups[p.record_id][p.id] = p
        return groups

    def of(given: _Answers, chain: _Chain) -> dict[str, Prediction]:
        return given.get(chain.record.id, {})

    what = answers(Link.WHAT, (item for chain in asked for item in chain.what(_classes(chain.record, annotated))))
    where = answers(Link.WHERE, (item for chain in asked for item in chain.where(of(what, chain))))
    verify = answers(Link.VERIFY, (item for chain in asked for item in chain.verify(of(where, chain))))
    made = [chain.answer(of(what, chain), of(where, chain), of(verify, chain)) for chain in asked]
    if process.index == 0:
        predictions_lib.write(out, made, header={**header, "chained": [kind.value for kind in kinds]})
    process.wait("chained")
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
    question = ask(record, _DIRECT[kind].value, 0, grammar=Grammar(decimals=decimals))
    return dataclasses.replace(question, id=_id(record.id, kind), task=kind.value)


def _classes(record: Record, annotated: Mapping[str, Annotated]) -> list[str]:
    classes = sorted(annotated.get(record.source, UNKNOWN).shares)
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
    direct: Question
    decimals: int

    def _asked(self, link: Link, task: Derived, name: str, **fields: str) -> Asked:
        # What is there is the same question for both kinds of boxes, and asked once.
        whose = "chained" if link is Link.WHAT else self.kind.value
        question = Question(
            id=f"{self.record.id}#{whose}/{link}#{name}", record_id=self.record.id, task=task.value, kind="",
            text=choose(task.value, None).format(**fields), answer="", references=("",),
        )  # fmt: skip
        return Asked(self.record, question)

    def _what(self, label: str) -> Asked:
        return self._asked(Link.WHAT, Derived.PRESENCE, label, label=label, plural=plural(label))

    def _where(self, label: str) -> Asked:
        return self._asked(Link.WHERE, _WHERE[self.kind], label, label=label, plural=plural(label))

    def _verify(self, label: str, place: int, box: ParsedBox) -> Asked:
        square = Square(self.record.width, self.record.height)
        text = format_boxes([box.pixels(square)], square=square, decimals=self.decimals, kind=BoxKind.HBB)
        return self._asked(Link.VERIFY, Derived.REGION_CLASS, f"{label}#{place}", box=text)

    def what(self, classes: Sequence[str]) -> Iterator[Asked]:
        return map(self._what, classes)

    def _present(self, what: Mapping[str, Prediction]) -> Iterator[tuple[str, Prediction]]:
        """(class, the answer that it is there)."""
        start = f"{self.record.id}#chained/{Link.WHAT}#"
        for name in sorted(what):
            if normalise(what[name].prediction) == "yes":
                yield name.removeprefix(start), what[name]

    def where(self, what: Mapping[str, Prediction]) -> Iterator[Asked]:
        return (self._where(label) for label, _ in self._present(what))

    def verify(self, where: Mapping[str, Prediction]) -> Iterator[Asked]:
        start = f"{self.record.id}#{self.kind}/{Link.WHERE}#"
        for name in sorted(name for name in where if name.startswith(start)):
            label = name.removeprefix(start)
            for place, box, _ in self._boxes(where[name], label):
                yield self._verify(label, place, box)

    def _boxes(self, answered: Prediction, label: str) -> Iterator[tuple[int, ParsedBox, float | None]]:
        """(place, box, confidence) of the boxes of the kind and class that was asked for."""
        sure = confidence.of_tokens(answered)
        for place, box in enumerate(boxes_of(answered).boxes):
            if box.kind is DETECTION[self.kind] and normalise(box.label or label) == normalise(label):
                yield place, box, None if sure is None else sure[place]

    def answer(
        self, what: Mapping[str, Prediction], where: Mapping[str, Prediction], verify: Mapping[str, Prediction]
    ) -> Prediction:
        """What is left, in the form of a direct answer; a box that could not be read stays as one: `[?]`."""
        groups: dict[str, list[str]] = collections.defaultdict(list)
        confidences: list[float | None] = []
        steps, unread = [what[name] for name in sorted(what)], 0
        for label, there in self._present(what):
            found = where[self._where(label).question.id]
            steps.append(found)
            unread += len(boxes_of(found).rejections)
            for place, box, sure in self._boxes(found, label):
                said = verify[self._verify(label, place, box).question.id]
                steps.append(said)
                if normalise(said.prediction) == normalise(label):
                    groups[label].append(found.prediction[slice(*box.span)].strip())
                    parts = [value for value in (_probability(there), sure, _probability(said)) if value is not None]
                    confidences.append(float(np.prod(parts)) if len(parts) == 3 else None)
        text = detection_sentence({label: (len(boxes), f"[{';'.join(boxes)}]") for label, boxes in groups.items()})
        sure_of = [value for value in confidences if value is not None]
        return dataclasses.replace(
            Prediction.of(self.record, self.direct, text + " [?]" * unread),
            confidences=tuple(sure_of) if len(sure_of) == len(confidences) else (),
            steps=tuple(Step(id=p.id, question=p.question, answer=p.prediction) for p in steps),
        )


def _probability(answered: Prediction) -> float | None:
    """The geometric mean of the tokens'."""
    return float(np.exp(np.mean(answered.logprobs))) if answered.logprobs else None
