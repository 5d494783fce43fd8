"""Questions derived from a record's boxes: is there one, how many, what is this, and what is not there.

Which classes they are about depends on the record's id and the seed alone. What is said to be absent is a class
that the record's dataset annotates (`records.Annotated`); where that is not known, nothing is.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from earthgpt_jax.common.digests import sha256_int
from earthgpt_jax.records import AnnotatedClasses, Record


class DerivedTask(enum.StrEnum):
    """Kinds of question that no source asks itself.

    `absent_*` are false premises: the wording of a question about what is there, asked of what is not.
    """

    PRESENCE = "presence"
    COUNT = "count"
    REGION_CLASS = "region_class"
    CLASS_HBB = "class_hbb"
    CLASS_OBB = "class_obb"
    ABSENT_HBB = "absent_hbb"
    ABSENT_OBB = "absent_obb"
    ABSENT_GROUNDING = "absent_grounding"


# Of the absent classes that are asked about at all, how many are counted: about a fifth of the answers are 0.
_ZERO_RATE = 0.25


def question_classes(record: Record, kind: DerivedTask, *, annotated: AnnotatedClasses, seed: int) -> tuple[str, ...]:
    """The classes that a record can be asked about; not for `REGION_CLASS`, which asks about objects."""
    rng = np.random.default_rng((seed, sha256_int(f"{record.id}/{kind}", size=8, byteorder="big")))
    return tuple(_SUBJECTS[kind](record, annotated, rng))


def _nameable(label: str) -> bool:
    """`other vehicle`: "are there any other vehicles?" asks for something else."""
    return label.split(" ")[0] != "other"


def _present(record: Record) -> list[str]:
    """Classes of the record's objects, sorted; of difficult ones alone, nothing is asked."""
    return sorted({item.label for item in record.objects if not item.difficult and _nameable(item.label)})


def _sampled(labels: Sequence[str], chances: Sequence[float], rng: np.random.Generator) -> list[str]:
    """Each label with its chance, in random order.

    Systematic sampling (Madow 1949): how many are chosen is the sum of the chances, rounded up or down, so that
    hardly a record is asked about what is there alone.
    """
    order = rng.permutation(len(labels))
    steps = np.floor(np.cumsum([0.0, *np.asarray(chances)[order]]) + rng.random())
    return [labels[i] for i in order[np.diff(steps) > 0]]


def _absent(record: Record, annotated: AnnotatedClasses, rng: np.random.Generator, *, rate: float = 1.0) -> list[str]:
    """Absent classes, each with the odds p / (1 - p) of being in an image (at most 1), times `rate`.

    A class that p of the images hold is then asked for min(p, 1 - p) times an image where it is absent, which is
    how often `_presence` asks for it where it is present: its name does not tell the answer.
    """
    labels = [label for label in annotated.absent(record) if _nameable(label)]
    shares = [annotated.shares[label] for label in labels]
    return _sampled(labels, [rate * min(1.0, p / max(1 - p, p)) for p in shares], rng)


def _presence(record: Record, annotated: AnnotatedClasses, rng: np.random.Generator) -> Sequence[str]:
    """Each class is asked for as often where it is as where it is not; one that every image holds, never."""
    present = _present(record)
    shares = [annotated.shares.get(label, 1.0) for label in present]
    asked = _sampled(present, [(1 - p) / max(1 - p, p) for p in shares], rng)
    return [*asked, *_absent(record, annotated, rng)]


def _whole(record: Record, annotated: AnnotatedClasses, rng: np.random.Generator) -> Sequence[str]:
    """Classes all of whose objects are whole and not difficult, and some of which there are none."""
    if not record.complete:
        return []
    unsure = {item.label for item in record.objects if item.difficult or item.visible < 1}
    whole = [label for label in _present(record) if label not in unsure]
    return [*whole, *_absent(record, annotated, rng, rate=_ZERO_RATE)]


def _there(record: Record, annotated: AnnotatedClasses, rng: np.random.Generator) -> Sequence[str]:
    return _present(record)


def _not_there(record: Record, annotated: AnnotatedClasses, rng: np.random.Generator) -> Sequence[str]:
    return _absent(record, annotated, rng)


_SUBJECTS: Mapping[DerivedTask, Callable[[Record, AnnotatedClasses, np.random.Generator], Sequence[str]]] = {
    DerivedTask.PRESENCE: _presence,
    DerivedTask.COUNT: _whole,
    DerivedTask.CLASS_HBB: _there,
    DerivedTask.CLASS_OBB: _there,
    DerivedTask.ABSENT_HBB: _not_there,
    DerivedTask.ABSENT_OBB: _not_there,
    DerivedTask.ABSENT_GROUNDING: _not_there,
}
# Kinds without any question where a dataset's classes are not known.
NEEDS_ANNOTATED_CLASSES = frozenset(
    {DerivedTask.PRESENCE, DerivedTask.ABSENT_HBB, DerivedTask.ABSENT_OBB, DerivedTask.ABSENT_GROUNDING}
)
