"""Questions derived from a record's boxes: is there one, how many, what is this, and what is not there.

Which classes they are about depends on the record's id and the seed alone. What is said to be absent is a class
that the record's dataset annotates (`mmrs.record.Annotated`); where that is not known, nothing is.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from earthgpt_jax.mmrs.record import Annotated, Record


class Derived(enum.StrEnum):
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


# Absent classes that one record is asked about, a kind.
_FALSE_PREMISES = 3
# The odds p / (1 - p) of a class that nearly every image holds, bounded.
_MOST_SHARE = 0.95


def subjects(record: Record, kind: Derived, *, annotated: Annotated, seed: int) -> tuple[str, ...]:
    """The classes that a record can be asked about; not for `REGION_CLASS`, which asks about objects."""
    digest = hashlib.sha256(f"{record.id}/{kind}".encode()).digest()
    rng = np.random.default_rng((seed, int.from_bytes(digest[:8], "big")))
    return tuple(_SUBJECTS[kind](record, annotated, rng))


def _nameable(label: str) -> bool:
    """`other vehicle`: "are there any other vehicles?" asks for something else."""
    return label.split(" ")[0] != "other"


def _present(record: Record) -> list[str]:
    """Classes of the record's objects, sorted; of difficult ones alone, nothing is asked."""
    return sorted({item.label for item in record.objects if not item.difficult and _nameable(item.label)})


def _absent(record: Record, annotated: Annotated, rng: np.random.Generator, count: int) -> list[str]:
    """Up to `count` absent classes, drawn by the odds p / (1 - p) of being in an image.

    So a class that is in p of the images is asked for about as often where it is absent as where it is
    present, and its name does not tell the answer.
    """
    options = [label for label in annotated.absent(record) if _nameable(label)]
    shares = np.minimum([annotated.shares[label] for label in options], _MOST_SHARE)
    odds = shares / (1 - shares)
    chosen = rng.choice(len(options), min(count, len(options)), replace=False, p=odds / odds.sum()) if options else ()
    return [options[i] for i in chosen]


def _presence(record: Record, annotated: Annotated, rng: np.random.Generator) -> Sequence[str]:
    """As many classes that are there as are not, where there are both; none that every image holds."""
    present = [label for label in _present(record) if annotated.shares.get(label, 1) < 1]
    absent = _absent(record, annotated, rng, max(len(present), 1))
    if present and absent:
        present = [present[i] for i in sorted(rng.choice(len(present), len(absent), replace=False))]
    return [*present, *absent]


def _whole(record: Record, annotated: Annotated, rng: np.random.Generator) -> Sequence[str]:
    """Classes all of whose objects are whole and not difficult, and one of which there are none."""
    unsure = {item.label for item in record.objects if item.difficult or item.visible < 1}
    return [label for label in _present(record) if label not in unsure] + _absent(record, annotated, rng, 1)


def _there(record: Record, annotated: Annotated, rng: np.random.Generator) -> Sequence[str]:
    return _present(record)


def _not_there(record: Record, annotated: Annotated, rng: np.random.Generator) -> Sequence[str]:
    return _absent(record, annotated, rng, _FALSE_PREMISES)


_SUBJECTS: Mapping[Derived, Callable[[Record, Annotated, np.random.Generator], Sequence[str]]] = {
    Derived.PRESENCE: _presence,
    Derived.COUNT: _whole,
    Derived.CLASS_HBB: _there,
    Derived.CLASS_OBB: _there,
    Derived.ABSENT_HBB: _not_there,
    Derived.ABSENT_OBB: _not_there,
    Derived.ABSENT_GROUNDING: _not_there,
}
# Kinds without any question where a dataset's classes are not known.
NEED_CLASSES = frozenset({Derived.PRESENCE, Derived.ABSENT_HBB, Derived.ABSENT_OBB, Derived.ABSENT_GROUNDING})
