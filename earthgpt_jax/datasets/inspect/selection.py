"""Choose records to look at: a random sample, spread evenly over datasets and splits, that matches a filter."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from earthgpt_jax.common.errors import EarthGPTError
from earthgpt_jax.common.progress import Bar
from earthgpt_jax.datasets import store
from earthgpt_jax.datasets.manifest import read_manifest
from earthgpt_jax.records import Record, Sensor, Task

_MAX_LABELS = 30  # that an error message lists


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecordFilter:
    """Properties that records must have; "" and None accept any value.

    Attributes:
        label: the class of the scene or of one of its objects.
    """

    split: str = ""
    sensor: Sensor | None = None
    task: Task | None = None
    label: str = ""

    def matches(self, record: Record) -> bool:
        """Return whether a record has the sensor, task and label; its split is not checked."""
        return (
            (self.sensor is None or record.sensor is self.sensor)
            and (self.task is None or self.task in record.tasks)
            and (not self.label or self.label in {record.label, *(item.label for item in record.objects)})
        )

    def may_match(self, counts: dict[str, dict[str, int]]) -> bool:
        """Return whether a split can have matching records, by its counts in the manifest."""
        return (
            (self.sensor is None or self.sensor in counts["sensor"])
            and (self.task is None or self.task in counts["task"])
            and (not self.label or self.label in counts["label"] | counts["object"])
        )

    def __str__(self) -> str:
        return ", ".join(f"{name} {value}" for name, value in dataclasses.asdict(self).items() if value) or "any values"


def select_records(
    directories: Sequence[Path], *, count: int, seed: int = 0, wanted: RecordFilter | None = None
) -> list[Record]:
    """Return up to `count` matching records in stored order, taken in turn from all splits of all datasets.

    Args:
        directories: dataset directories.
        seed: sampling seed; the same seed selects the same records.
        wanted: the filter; None accepts all records.

    Raises:
        EarthGPTError: no record matches; the message lists the values that occur.
    """
    wanted = wanted or RecordFilter()
    sources = [
        store.RecordSource(directory, split)
        for directory in directories
        for split, counts in read_manifest(directory)["counts"].items()
        if split == (wanted.split or split) and wanted.may_match(counts)
    ]
    selected: list[list[tuple[int, Record]]] = [[] for _ in sources]
    queue = [(number, _matching(source, seed=seed, wanted=wanted)) for number, source in enumerate(sources)]
    with Bar(total=count, desc="selecting", unit="record", leave=False) as bar:
        while queue and bar.n < count:
            number, matching = queue.pop(0)
            item = next(matching, None)
            if item is not None:
                selected[number].append(item)
                queue.append((number, matching))
                bar.update()
    records = [record for group in selected for _, record in sorted(group, key=lambda item: item[0])]
    if not records:
        raise EarthGPTError(f"nothing to show: expected records with {wanted}; there are {_available(directories)}")
    return records


def _matching(source: store.RecordSource, *, seed: int, wanted: RecordFilter) -> Iterator[tuple[int, Record]]:
    """Yield (index, record) of the matching records of a split, in random order."""
    for index in np.random.default_rng(seed).permutation(len(source)).tolist():
        if wanted.matches(record := source[index]):
            yield index, record


def _available(directories: Sequence[Path]) -> str:
    splits = [(split, counts) for folder in directories for split, counts in read_manifest(folder)["counts"].items()]

    def names(*entries: str) -> list[str]:
        return sorted({name for _, counts in splits for entry in entries for name in counts[entry]})

    labels = names("label", "object")
    shown = ", ".join(labels[:_MAX_LABELS]) + (", ..." if len(labels) > _MAX_LABELS else "")
    return (
        f"splits {', '.join(sorted({split for split, _ in splits}))}; sensors {', '.join(names('sensor'))}; "
        f"tasks {', '.join(names('task'))}; labels {shown or 'none'}"
    )
