"""Which classes a built dataset annotates, from what its build wrote beside the records."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import Any

from earthgpt_jax.records import UNKNOWN_CLASSES, AnnotatedClasses, Task


def annotated(manifest: Mapping[str, Any]) -> AnnotatedClasses:
    """The classes that have objects in some split of a built dataset, by its manifest.

    What its card lists is not enough (a release may annotate fewer), and a card with `open_classes` says that the
    list is not certain: then, and for sets built before their records were counted by class, nothing is known.
    """
    splits = manifest["counts"].values()
    total = sum(counts.get("task", {}).get(Task.HBB.value, 0) for counts in splits)
    if not total or manifest.get("card", {}).get("open_classes"):
        return UNKNOWN_CLASSES
    holding: collections.Counter[str] = collections.Counter()
    for counts in splits:
        holding.update(counts.get("holding", {}))
    return AnnotatedClasses(shares={label: count / total for label, count in sorted(holding.items())})
