"""Questions derived from a record's boxes: presence, count, class of a region, boxes of a class, absent classes.

The classes that they are about depend on the record's id and the seed alone. Absent classes are chosen among those
that the record's dataset annotates (`records.AnnotatedClasses`); if these are unknown, no absent class is asked about.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from earthgpt_jax.common.digests import sha256_int
from earthgpt_jax.records import AnnotatedClasses, Record


class DerivedTask(enum.StrEnum):
    """Tasks whose questions are derived from boxes instead of coming from a source.

    `absent_*` are false premises: they use the question templates of a present class for a class that is absent.
    """

    PRESENCE = "presence"
    COUNT = "count"
    REGION_CLASS = "region_class"
    CLASS_HBB = "class_hbb"
    CLASS_OBB = "class_obb"
    ABSENT_HBB = "absent_hbb"
    ABSENT_OBB = "absent_obb"
    ABSENT_GROUNDING = "absent_grounding"


# Share of the chosen absent classes for which the count is asked; about a fifth of the answers are then 0.
_ZERO_RATE = 0.25


def question_classes(record: Record, task: DerivedTask, *, annotated: AnnotatedClasses, seed: int) -> tuple[str, ...]:
    """Return the classes that a record's questions of a task are about; `REGION_CLASS` is about objects instead."""
    rng = np.random.default_rng((seed, sha256_int(f"{record.id}/{task}", size=8, byteorder="big")))
    return tuple(_CLASSES[task](record, annotated, rng))


def _nameable(label: str) -> bool:
    """Return whether a class can be asked about: "are there any other vehicles?" does not ask for `other vehicle`."""
    return label.split(" ")[0] != "other"


def _present(record: Record) -> list[str]:
    """Return the classes of the record's objects, sorted, without those that have only difficult objects."""
    return sorted({item.label for item in record.objects if not item.difficult and _nameable(item.label)})


def _sampled(labels: Sequence[str], chances: Sequence[float], rng: np.random.Generator) -> list[str]:
    """Return each label with its probability, in random order.

    Systematic sampling (Madow 1949) chooses as many labels as the sum of the probabilities, rounded up or down. With
    independent draws, more records would be asked about present classes only.
    """
    order = rng.permutation(len(labels))
    steps = np.floor(np.cumsum([0.0, *np.asarray(chances)[order]]) + rng.random())
    return [labels[i] for i in order[np.diff(steps) > 0]]


def _absent(record: Record, annotated: AnnotatedClasses, rng: np.random.Generator, *, rate: float = 1.0) -> list[str]:
    """Return absent classes, each with probability min(1, p / (1 - p)) times `rate`, where p is its share of images.

    Per image of the dataset, a class is then asked about min(p, 1 - p) times where it is absent. `_presence` asks about
    it as often where it is present, so that the name of the class does not reveal the answer.
    """
    labels = [label for label in annotated.absent(record) if _nameable(label)]
    shares = [annotated.shares[label] for label in labels]
    return _sampled(labels, [rate * min(1.0, p / max(1 - p, p)) for p in shares], rng)


def _presence(record: Record, annotated: AnnotatedClasses, rng: np.random.Generator) -> Sequence[str]:
    """Ask about a class as often where it is present as where it is absent; never about one that is in every image."""
    present = _present(record)
    shares = [annotated.shares.get(label, 1.0) for label in present]
    asked = _sampled(present, [(1 - p) / max(1 - p, p) for p in shares], rng)
    return [*asked, *_absent(record, annotated, rng)]


def _countable(record: Record, annotated: AnnotatedClasses, rng: np.random.Generator) -> Sequence[str]:
    """Return classes whose objects are all complete and not difficult, and some absent classes."""
    if not record.complete:
        return []
    unsure = {item.label for item in record.objects if item.difficult or item.visible < 1}
    certain = [label for label in _present(record) if label not in unsure]
    return [*certain, *_absent(record, annotated, rng, rate=_ZERO_RATE)]


def _present_classes(record: Record, annotated: AnnotatedClasses, rng: np.random.Generator) -> Sequence[str]:
    return _present(record)


def _absent_classes(record: Record, annotated: AnnotatedClasses, rng: np.random.Generator) -> Sequence[str]:
    return _absent(record, annotated, rng)


_CLASSES: Mapping[DerivedTask, Callable[[Record, AnnotatedClasses, np.random.Generator], Sequence[str]]] = {
    DerivedTask.PRESENCE: _presence,
    DerivedTask.COUNT: _countable,
    DerivedTask.CLASS_HBB: _present_classes,
    DerivedTask.CLASS_OBB: _present_classes,
    DerivedTask.ABSENT_HBB: _absent_classes,
    DerivedTask.ABSENT_OBB: _absent_classes,
    DerivedTask.ABSENT_GROUNDING: _absent_classes,
}
# Tasks without questions if a dataset's classes are unknown.
NEEDS_ANNOTATED_CLASSES = frozenset(
    {DerivedTask.PRESENCE, DerivedTask.ABSENT_HBB, DerivedTask.ABSENT_OBB, DerivedTask.ABSENT_GROUNDING}
)
